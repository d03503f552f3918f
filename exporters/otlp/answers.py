"""What an OTLP backend answers, which the official exporters keep to themselves.

``export`` of an official exporter says success or failure. Whether a failure may be tried again
later, when, and how many spans of a success were not taken (a *partial success*) stands in the
answer: over HTTP it is read off the ``requests`` session that the exporter is given, over gRPC off
the stub that it calls.

Sources: OTLP specification, "Failures" and "Partial success", for which statuses may be retried.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace.export import SpanExporter

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


class Answers:
    """The last answer."""

    def __init__(self) -> None:
        self.last: Answer | None = None

    def forget(self) -> None:
        """A new batch is about to be sent."""
        self.last = None

    def to(self, success: bool) -> Answer:
        """The answer to a batch of which the exporter says that it succeeded or failed.

        What was answered counts: an exporter may take a redirection for a success.
        """
        if self.last is not None:
            return self.last
        return Answer(success, "" if success else "the exporter did not send it")


class _Session(requests.Session):
    """The exporter's connection; notes how each request ended."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._answers = answers

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
            self._answers.last = Answer(
                False, _connection_trouble(error, request), not untrusted, settings=untrusted
            )
            raise
        self._answers.last = http_answer(
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
    return f"{request.url}: {said}"


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


def http_exporter(endpoint: str | None) -> tuple[SpanExporter, Answers]:
    """The official exporter for ``http/protobuf``."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    answers = Answers()
    return OTLPSpanExporter(endpoint=endpoint, session=_Session(answers)), answers


class _Stub:
    """The exporter's stub; notes how each call ended."""

    def __init__(self, stub: Any, answers: Answers, endpoint: str) -> None:
        self._stub, self._answers, self._endpoint = stub, answers, endpoint

    def Export(self, *args: Any, **how: Any) -> Any:
        import grpc  # type: ignore[import-untyped]

        try:
            response = self._stub.Export(*args, **how)
        except grpc.RpcError as error:
            self._answers.last = grpc_answer(error, self._endpoint)
            raise
        self._answers.last = _success(response)
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
        False, f"{endpoint}: {code} {details}".strip(),
        code in RETRYABLE_GRPC or (exhausted and wait is not None), wait,
        settings=code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"),
    )  # fmt: skip
    if exhausted and wait is None:  # as servers say that a message is too large
        return replace(answer, too_large=True)
    return answer


def grpc_exporter(endpoint: str | None) -> tuple[SpanExporter, Answers]:
    """The official exporter for ``grpc``."""
    import grpc
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    answers = Answers()

    class Exporter(OTLPSpanExporter):
        def _initialize_channel_and_stub(self) -> None:  # also when it connects anew
            super()._initialize_channel_and_stub()  # type: ignore[no-untyped-call]
            stub: Any = _Stub(self._client, answers, str(self._endpoint))
            self._client = stub

    plain = None if endpoint is None else not endpoint.startswith("https:")
    said = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION") or os.environ.get(
        "OTEL_EXPORTER_OTLP_COMPRESSION", ""
    )  # "none", which the specification knows and this exporter does not
    none = grpc.Compression.NoCompression if said.strip().lower() == "none" else None
    exporter = Exporter(endpoint=endpoint, insecure=plain, compression=none)
    # To be tried again only where the server says when. Otherwise the message is too large.
    codes: frozenset[Any] = getattr(exporter, "_retryable_error_codes", frozenset())
    exporter._retryable_error_codes = codes - {grpc.StatusCode.RESOURCE_EXHAUSTED}
    return exporter, answers
