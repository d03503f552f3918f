"""Which part of a step, an epoch or a run the waterfall shows. Pure: no widget."""

from __future__ import annotations

from firetrace.tui.feed import Snapshot
from firetrace.tui.model.tree import Span
from firetrace.tui.widgets.waterfall import Axis

FACTOR, PART = 2.0, 0.25


class Zoom:
    """What was chosen stays from step to step, so that the same part of each can be compared."""

    def __init__(self) -> None:
        self._axis: Axis | None = None

    @property
    def is_on(self) -> bool:
        """Whether something else than the whole is shown."""
        return self._axis is not None

    def axis(self, snapshot: Snapshot | None, cursor: int) -> Axis | None:
        """The time to show around a span, by its row number."""
        if snapshot is None:
            return None
        fit = Axis.around(snapshot, cursor)
        if self._axis is None:
            return fit
        old, new = (snapshot.tree.span(number) for number in (self._axis.frame, fit.frame))
        if old is None or new is None or old.kind != new.kind:
            self._axis = None
            return fit
        return Axis(fit.frame, self._axis.begin_ns, self._axis.whole_ns)

    def zoom(self, snapshot: Snapshot, axis: Axis, span: Span, direction: int) -> None:
        """Less (1) or more (-1) time; the middle of the span stays where it is on the screen."""
        begin = span.start_ns - snapshot.tree.origin(span.number, axis.frame)
        middle = begin + span.took_ns(snapshot.now_ns) / 2
        middle = min(max(middle, axis.begin_ns), axis.begin_ns + axis.whole_ns)
        zoomed = axis.zoomed(FACTOR**-direction, middle)
        whole = Axis.around(snapshot, span.number).whole_ns
        self._axis = zoomed if zoomed.whole_ns < whole else None

    def pan(self, axis: Axis, direction: int) -> None:
        """Later (1) or earlier (-1)."""
        self._axis = axis.moved(PART * direction)

    def fit(self) -> None:
        """The whole."""
        self._axis = None
