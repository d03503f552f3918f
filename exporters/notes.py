"""What is noted of a span in the journal, as OpenTelemetry tells it: scalars, plans, exceptions."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import Event
from opentelemetry.trace.status import Status, StatusCode

from firetrace.tracer.journal import Flag
from firetrace.tracer.meta import Meta
from firetrace.tracer.table import Table


def scalars_of(table: Table) -> dict[int, dict[str, float]]:
    """The scalars of each row, as attributes."""
    found: dict[int, dict[str, float]] = {}
    values = table.scalars["end"].copy().view("<f8").tolist()
    for row, value in zip(table.scalars.tolist(), values, strict=True):
        name = table.meta.names.get(row[1])
        found.setdefault(row[0], {})[f"ignite.scalar.{name.text if name else row[1]}"] = value
    return found


def plan_of(meta: Meta, number: int) -> dict[str, int]:
    """How far a run means to go."""
    plan = meta.runs.get(number, {})
    return {
        f"ignite.{key}": plan[key]
        for key in ("max_epochs", "epoch_length", "max_iters")
        if isinstance(plan.get(key), int)
    }


def failure_of(
    table: Table, number: int, flags: int, attributes: dict[str, Any], end: int
) -> tuple[tuple[Event, ...], Status]:
    """The exception that ended a span, as OpenTelemetry records exceptions."""
    exception = table.meta.exceptions.get(number)
    if exception is None:
        if flags & Flag.ERROR:
            return (), Status(StatusCode.ERROR)
        return (), Status(StatusCode.UNSET)
    attributes["error.type"] = exception.get("exception.type", "_OTHER")
    recorded = {
        key: value for key, value in exception.items() if key.startswith("exception.") and value
    }
    at = exception.get("time")
    event = Event("exception", recorded, timestamp=at if isinstance(at, int) and at > 0 else end)
    return (event,), Status(StatusCode.ERROR, str(exception.get("exception.message", "")))
