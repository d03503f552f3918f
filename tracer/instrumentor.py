"""For ``opentelemetry-instrument python train.py``: its entry point. Imported by nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,  # its file tells type checkers to look away
)

from firetrace.tracer.everywhere import trace_every_engine


class FiretraceInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Records every ignite and MONAI engine of the process into a run.

    ``instrument`` takes ``directory`` and ``name``, which mean what they do for ``TraceHandler``.
    """

    _undo: Callable[[], None] | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """What is traced; looked up in the packages' metadata, not imported."""
        return ["pytorch-ignite >= 0.5"]

    def _instrument(self, **kwargs: Any) -> None:
        self._undo = trace_every_engine(kwargs.get("directory"), kwargs.get("name"))

    def _uninstrument(self, **kwargs: Any) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None
