"""OTLP over gRPC or HTTP, through OpenTelemetry's official exporters.

They read the standard variables (``OTEL_EXPORTER_OTLP_*``) for endpoint, headers, certificates,
compression and timeout, and try again, for as long as that timeout lasts, what the specification
says may be tried again. What they do not say is how it ended: here the answers are weighed, so that
what a backend did not take is known, and what it may take later is sent later.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from firetrace.exporters.otlp.protobuf import Batch
from firetrace.exporters.otlp.transport import Answer, GrpcTransport, HttpTransport, Transport
from firetrace.tracer.errors import FiretraceError

GRPC, HTTP = "grpc", "http/protobuf"
PROTOCOLS = (GRPC, HTTP)
#: Seconds for which a backend that is down or busy is tried again, unless told otherwise.
PATIENCE_S = 60.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
#: So many batches refused one after the other, and the rest is not even tried.
REFUSALS = 3
MOST_IDS = 100_000  # of rejected spans that are remembered


class ExportError(FiretraceError):
    """Nothing can be sent with these settings."""


@dataclass
class Sent:
    """How it went. Counts of spans."""

    accepted: int = 0  #: the backend said that it has them
    rejected: int = 0  #: it said that it does not want them
    unsent: int = 0  #: not tried, or not answered until patience was out
    reasons: list[str] = field(default_factory=list)  #: each once, in the backend's words
    #: ids of spans that were rejected by name: of a partial success only the number is known
    rejected_ids: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the backend has acknowledged everything."""
        return not self.rejected and not self.unsent

    def because(self, reason: str) -> None:
        """Remember a reason."""
        if reason not in self.reasons and len(self.reasons) < 10:
            self.reasons.append(reason)


def connect(protocol: str | None = None, endpoint: str | None = None) -> Transport:
    """The way to a backend.

    Args:
        protocol: ``grpc`` or ``http/protobuf``; by default the standard variables', or by the
            endpoint's port (4317 is gRPC's), or ``http/protobuf``.
        endpoint: base URL, such as ``http://localhost:4318``; by default the standard variables'.

    Raises:
        ExportError: these settings make no sense.
    """
    protocol = protocol or protocol_for(endpoint)
    if protocol not in PROTOCOLS:
        raise ExportError(f"protocol {protocol!r} is unknown; use {' or '.join(PROTOCOLS)}")
    if protocol == HTTP and endpoint and not endpoint.rstrip("/").endswith("/v1/traces"):
        endpoint = endpoint.rstrip("/") + "/v1/traces"
    try:
        return GrpcTransport(endpoint) if protocol == GRPC else HttpTransport(endpoint)
    except Exception as error:  # a certificate, a header, a variable: each has its own
        raise ExportError(f"OTLP settings: {error or type(error).__name__}") from error


def protocol_for(endpoint: str | None) -> str:
    """The protocol that the environment or an endpoint's port asks for."""
    said = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    if said:
        return said
    return GRPC if endpoint and endpoint.rstrip("/").endswith(":4317") else HTTP


class Sender:
    """Sends batches and keeps the books.

    Args:
        transport: see ``connect``.
        patience_s: how long a backend that is down or busy is tried again; None: for ever.
        told: called with a line for the user when something has to be waited for.
        stop: ends a wait, and sending, early.
    """

    def __init__(
        self,
        transport: Transport,
        patience_s: float | None = PATIENCE_S,
        told: Callable[[str], None] = lambda line: None,
        stop: threading.Event | None = None,
    ) -> None:
        self.sent = Sent()
        self.patience_s = patience_s
        self.gave_up = False
        self.stop = stop or threading.Event()
        self._transport, self._told = transport, told
        self._refusals = 0

    def send(self, batch: Batch) -> bool:
        """Send a batch. Returns False if it was given up: then its spans are still to be sent."""
        if self.gave_up or self.stop.is_set():
            self.gave_up = True
            self.sent.unsent += len(batch)
            return False
        waited, wait = 0.0, FIRST_WAIT_S
        while True:
            answer = self._transport.post(batch)
            if answer.success:
                self._accepted(batch, answer)
                return True
            if answer.too_large and len(batch) > 1:
                first, second = batch.halves()
                return self.send(first) and self.send(second)
            # Who waits for ever also waits for an address or a key to be put right.
            if not answer.retryable and not (answer.settings and self.patience_s is None):
                return self._refused(batch, answer)
            pause = wait if answer.retry_after_s is None else answer.retry_after_s
            if self.patience_s is not None and waited + pause > self.patience_s:
                return self._give_up(batch, str(answer))
            self._told(f"{answer}; trying again in {pause:.0f} s")
            if self.stop.wait(pause):
                return self._give_up(batch, str(answer))
            waited, wait = waited + pause, min(2 * wait, LONGEST_WAIT_S)

    def _accepted(self, batch: Batch, answer: Answer) -> None:
        rejected = min(answer.rejected, len(batch))
        self.sent.accepted += len(batch) - rejected
        self.sent.rejected += rejected
        if answer.text:
            self.sent.because(answer.text)
        self._refusals = 0

    def _refused(self, batch: Batch, answer: Answer) -> bool:
        """It will not take these, now or later; others it may."""
        self.sent.because(str(answer))
        self._refusals += 1
        if answer.settings or (self._refusals >= REFUSALS and not self.sent.accepted):
            return self._give_up(batch, str(answer))
        self.sent.rejected += len(batch)
        room = MOST_IDS - len(self.sent.rejected_ids)
        self.sent.rejected_ids += batch.ids[:room]
        return True

    def _give_up(self, batch: Batch, reason: str) -> bool:
        self.gave_up = True
        self.sent.unsent += len(batch)
        self.sent.because(reason)
        return False

    def close(self) -> None:
        """Let go of the connection."""
        self._transport.close()
