"""A span of the user's own, inside a process function or a handler."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firetrace.tracer.moves import Node
    from firetrace.tracer.recorder import Recorder
    from firetrace.tracer.recording import Recording


class UserSpan:
    """What ``TraceHandler.span`` returns: a context manager, for one use."""

    def __init__(self, recording: Recording, name: str, attributes: dict[str, Any]) -> None:
        self._recording = recording
        self._name = name
        self._attributes = attributes
        self._recorder: Recorder | None = None
        self._entered: tuple[Node, int, int] | None = None

    def set_attribute(self, key: str, value: Any) -> None:
        """Note something on the span. After its end it may have been sent on without it."""
        self._note({key: value})

    def _note(self, attributes: dict[str, Any]) -> None:
        if self._entered is not None:
            self._recording.guarded(self._describe, self._recorder, self._entered, attributes)

    @staticmethod
    def _describe(recorder: Recorder, entered: tuple[Node, int, int], attributes: Any) -> None:
        if recorder.ident:
            recorder.describe(entered[1], attributes)

    def __enter__(self) -> UserSpan:
        recorder = self._recorder = self._recording.guarded(self._recording.innermost)
        if recorder is not None:
            self._entered = self._recording.guarded(self._enter, recorder)
            self._note(self._attributes)
        return self

    def _enter(self, recorder: Recorder) -> Any:
        return recorder.enter_span(recorder.label("span", self._name))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._recorder is not None and self._entered is not None:
            self._recording.guarded(self._recorder.exit_span, self._entered, error)
