"""The way to an OTLP backend through the official exporters, and what it answers.

They know the standard variables, TLS, headers and compression. But ``export`` of an official
exporter says success or failure, no more. Whether a failure may be tried again
later, when, and how many spans of a success were not taken (a *partial success*) stands in the
answer: over HTTP it is read off the ``requests`` session that the exporter is given, over gRPC off
the stub that it calls.

Sources: OTLP specification, "Failures" and "Partial success", for which statuses may be retried.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from firetrace.exporters.otlp.protobuf import Batch

RETRYABLE_HTTP = (429, 502, 503, 504)
RETRYABLE_GRPC = (
    "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """An answer to one batch."""

    success: bool
    text: str = ""  #: in the backend's words
    retryable: bool = False
    retry_after_s: float | None = None  #: what the backend asks for
    too_large: bool = False  #: a smaller batch may be taken
    settings: bool = False  #: no batch will be taken: address, credentials
    rejected: int = 0  #: spans of a success that were not taken

    def __str__(self) -> str:
        return self.text or ("accepted" if self.success else "no answer")


class Transport:
    """A connection through an official exporter."""

    exporter: SpanExporter

    def __init__(self) -> None:
        self.last: Answer | None = None

    def post(self, batch: Batch) -> Answer:
        """Send a batch. What was answered counts: an exporter may take a redirection for a success.

        Within its timeout the exporter tries again what may be tried again.
        """
        self.last = None
        try:
            success = self._export(batch)
        except Exception as error:
            return Answer(False, f"{type(error).__name__}: {error}")
        if self.last is not None:
            return self.last
        return Answer(success, "" if success else "the exporter did not send it")

    def _export(self, batch: Batch) -> bool:
        return self.exporter.export(batch) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """Let go of the connection."""
        self.exporter.shutdown()


class HttpTransport(Transport):
    """``http/protobuf``."""

    def __init__(self, endpoint: str | None) -> None:
        super().__init__()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        self.exporter = OTLPSpanExporter(endpoint=endpoint, session=_Session(self))

    def _export(self, batch: Batch) -> bool:
        send = getattr(getattr(self.exporter, "_client", None), "export", None)
        if send is None:  # an older exporter, which encodes by itself
            return super()._export(batch)
        result = send(batch.request())
        if not result.success and self.last is None and result.error is not None:
            self.last = Answer(False, str(result.error), settings=True)  # no such address
        return bool(result.success)


class GrpcTransport(Transport):
    """``grpc``."""

    def __init__(self, endpoint: str | None) -> None:
        super().__init__()
        import grpc  # type: ignore[import-untyped]
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        own = self

        class Exporter(OTLPSpanExporter):
            def _initialize_channel_and_stub(self) -> None:  # also when it connects anew
                super()._initialize_channel_and_stub()  # type: ignore[no-untyped-call]
                stub: Any = _Stub(self._client, own, str(self._endpoint))
                self._client = stub

            def _translate_data(self, data: Any) -> Any:
                return ExportTraceServiceRequest.FromString(data.request())

        plain = None if endpoint is None else not endpoint.startswith("https:")
        said = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION") or os.environ.get(
            "OTEL_EXPORTER_OTLP_COMPRESSION", ""
        )  # "none", which the specification knows and this exporter does not
        none = grpc.Compression.NoCompression if said.strip().lower() == "none" else None
        exporter = Exporter(endpoint=endpoint, insecure=plain, compression=none)
        # To be tried again only where the server says when. Otherwise the message is too large.
        codes: frozenset[Any] = getattr(exporter, "_retryable_error_codes", frozenset())
        exporter._retryable_error_codes = codes - {grpc.StatusCode.RESOURCE_EXHAUSTED}
        self.exporter = exporter


class _Session(requests.Session):
    """The exporter's connection; notes how each request ended."""

    def __init__(self, transport: Transport) -> None:
        super().__init__()
        self._transport = transport

    def merge_environment_settings(self, *args: Any) -> Any:
        """What OpenTelemetry's variable names wins over those for all programs."""
        settings = super().merge_environment_settings(*args)
        if isinstance(self.verify, str):
            settings["verify"] = self.verify
        return settings

    def send(self, request: Any, **how: Any) -> Any:
        """Send a request and note the answer."""
        try:
            response = super().send(request, **how)
        except requests.RequestException as error:
            untrusted = isinstance(error, requests.exceptions.SSLError)
            self._transport.last = Answer(
                False, _connection_trouble(error, request), not untrusted, settings=untrusted
            )
            raise
        self._transport.last = http_answer(
            response.status_code, response.reason or "", response.headers, response.content
        )
        return response


def _connection_trouble(error: Exception, request: Any) -> str:
    """Why there was no answer, in few words: the libraries' own texts nest three deep."""
    cause: BaseException = error
    while True:
        inner = getattr(cause, "reason", None) or cause.__cause__ or cause.__context__
        if not isinstance(inner, BaseException) and cause.args:
            inner = next((each for each in cause.args if isinstance(each, BaseException)), None)
        if not isinstance(inner, BaseException) or inner is cause:
            break
        cause = inner
    said = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return f"{bare(str(request.url))}: {said}"


def bare(url: str) -> str:
    """An address without the password or the key that may be in it: it is shown and logged."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def http_answer(status: int, reason: str, headers: Any, body: bytes) -> Answer:
    """An answer over HTTP."""
    if 200 <= status < 300:
        try:
            return _success(ExportTraceServiceResponse.FromString(body))
        except Exception:  # an empty body, or JSON, as some backends answer
            return Answer(True)
    said = f"{status} {reason}".strip() + _more(headers.get("Content-Type", ""), body)
    after = headers.get("Retry-After")
    return Answer(
        False, said, status in RETRYABLE_HTTP, _seconds(after), too_large=status == 413,
        settings=status < 400 or status in (401, 403, 404, 405),
    )  # fmt: skip


def _more(content_type: str, body: bytes) -> str:
    """What the body of a refusal says: OTLP wants a ``google.rpc.Status``, many send text."""
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

    text = ""
    if "protobuf" in content_type:
        try:
            text = Status.FromString(body).message
        except Exception:  # not what it says it is
            return ""
    elif "json" in content_type or "plain" in content_type:
        text = body[:300].decode("utf-8", "replace").strip()
    return f" ({text[:300]})" if text else ""


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After asks for: seconds, or a date."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    import time
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _success(response: ExportTraceServiceResponse) -> Answer:
    partial = response.partial_success
    return Answer(True, partial.error_message, rejected=partial.rejected_spans)


class _Stub:
    """The exporter's stub; notes how each call ended."""

    def __init__(self, stub: Any, transport: Transport, endpoint: str) -> None:
        self._stub, self._transport, self._endpoint = stub, transport, endpoint

    def Export(self, *args: Any, **how: Any) -> Any:
        import grpc

        try:
            response = self._stub.Export(*args, **how)
        except grpc.RpcError as error:
            self._transport.last = grpc_answer(error, self._endpoint)
            raise
        self._transport.last = _success(response)
        return response


def grpc_answer(error: Any, endpoint: str) -> Answer:
    """An answer over gRPC that is an error."""
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]

    code, details = error.code().name, error.details() or ""
    wait = None
    for key, value in error.trailing_metadata() or ():
        if key == "google.rpc.retryinfo-bin":
            info = RetryInfo.FromString(value)
            wait = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
    exhausted = code == "RESOURCE_EXHAUSTED"
    answer = Answer(
        False, f"{endpoint.rpartition('@')[2]}: {code} {details}".strip(),
        code in RETRYABLE_GRPC or (exhausted and wait is not None), wait,
        settings=code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"),
    )  # fmt: skip
    if exhausted and wait is None:  # as servers say that a message is too large
        return replace(answer, too_large=True)
    return answer
