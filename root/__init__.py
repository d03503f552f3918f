"""firetrace shows where a training loop's time goes, while it runs.

``TraceHandler`` records an engine; the ``firetrace`` command shows and exports what was recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firetrace.tracer.handler import TraceHandler

__all__ = ["TraceHandler", "__version__"]


def __getattr__(name: str) -> Any:
    """Load what is asked for, and nothing before."""
    if name == "TraceHandler":
        from firetrace.tracer.handler import TraceHandler

        return TraceHandler
    if name == "__version__":
        from importlib.metadata import version

        return version("firetrace")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
