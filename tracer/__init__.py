"""Records: runs inside the training process and writes the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firetrace.tracer.handler import TraceHandler

__all__ = ["TraceHandler"]


def __getattr__(name: str) -> Any:
    """Load the handler only when it is asked for: readers of a journal do not need it."""
    if name == "TraceHandler":
        from firetrace.tracer.handler import TraceHandler

        return TraceHandler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
