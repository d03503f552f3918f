"""What the device did while the step above it was made: lanes on the waterfall's own axis.

A device is behind its host: what is left of the step before is at the left. Of what is hatched is
not known yet when it was done, only when the host queued it. Where nothing is, the device had
nothing to do.
"""

from __future__ import annotations

from itertools import zip_longest

from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import clip, duration, share
from firetrace.tui.model.device_lanes import MOST_MARKS, DeviceMark
from firetrace.tui.model.tree import Span
from firetrace.tui.widgets.lanes import Lanes, head
from firetrace.tui.widgets.palette import Palette, colours
from firetrace.tui.widgets.waterfall import Axis, Bar, Columns

#: By phase what its time on the device is called where it copied something there.
COPIES = {"prepare_batch": "copy to device"}
COPIED_IN = {copy: phase for phase, copy in COPIES.items()}
#: More steps are not told apart; to read all of their spans would take too long.
MOST_STEPS = 400
#: Of more spans at a time it is not asked how much of each the device may have been idle.
MOST_ASKED = 200


class DeviceLanes(Lanes):
    """A line a device: the phases in their colours."""

    def __init__(self) -> None:
        super().__init__(id="devices")
        self.border_title = "Device"

    def count(self, snapshot: Snapshot) -> int:
        """A line for each device, and thread that uses it."""
        return len(snapshot.devices)

    def watch_snapshot(self, before: Snapshot | None, snapshot: Snapshot | None) -> None:
        """Say which device it is. The name is from the journal: no markup."""
        super().watch_snapshot(before, snapshot)
        report = snapshot.report.device if snapshot is not None else None
        model = clip(report.model, 60) if report is not None else ""
        self.border_title = Text(f"Device · {model}" if model else "Device")

    def line(
        self, snapshot: Snapshot, index: int, begin_ns: int, axis: Axis, frame: Span,
        columns: Columns,
    ) -> list[Segment]:  # fmt: skip
        """A device: its name, how long it was busy in this time, and the bar."""
        lane, now, whole_ns = snapshot.devices[index], snapshot.now_ns, axis.whole_ns
        palette, bar = Palette(snapshot.tree.meta), Bar(columns.bar, whole_ns)
        end_ns = min(begin_ns + whole_ns, frame.end_ns or now)
        style, step = Style(color=colours().dim), snapshot.report.step
        marks = None
        if step is None or end_ns - begin_ns <= MOST_STEPS * step.p50_ns:
            marks = lane.between(begin_ns, begin_ns + whole_ns)
        if marks is None or len(marks) >= MOST_MARKS:
            bar.paint(0, end_ns - begin_ns, colours().faint, hatched=True)
            return [*head(lane.label, "too many steps: zoom in", style, "", columns),
                    *bar.segments(False, Style())]  # fmt: skip
        ahead = [mark for mark in marks if not mark.end_ns]
        for mark, following in zip_longest(ahead, ahead[1:]):
            if following is None or following.start_ns > begin_ns:
                start, end = mark.start_ns - begin_ns, _queued_ns(snapshot, mark) - begin_ns
                bar.paint(start, end, colour_of(palette, mark), hatched=True)
        for mark in marks:
            if mark.end_ns:
                start, end = mark.start_ns - begin_ns, mark.end_ns - begin_ns
                bar.paint(start, end, colour_of(palette, mark))
        busy, known = busy_of(marks, begin_ns, end_ns)
        note, figure = "not known yet" if ahead else "", ""
        if known > 0:
            idle = idle_of(snapshot, marks, begin_ns, end_ns)
            note, figure = _in_words(busy, idle, known)
        before = head(lane.label, note, style, figure, columns)
        return [*before, *bar.segments(False, Style())]


def busy_of(marks: list[DeviceMark], begin_ns: int, end_ns: int) -> tuple[int, int]:
    """How long the device was at something between two times, and how much of that is known, in ns.

    Of the time after what it reached last nothing is known while more is queued.
    """
    reached = [mark for mark in marks if mark.end_ns]
    if len(reached) < len(marks):
        end_ns = min(end_ns, max((mark.end_ns for mark in reached), default=begin_ns))
    busy = sum(
        max(0, min(mark.end_ns, end_ns) - max(mark.start_ns, begin_ns)) for mark in reached
    )  # fmt: skip
    return busy, end_ns - begin_ns


def idle_of(snapshot: Snapshot, marks: list[DeviceMark], begin_ns: int, end_ns: int) -> int:
    """How long the device was perhaps idle in what it did between two times, in ns.

    From when all that was queued before a phase was done, until the host was out of the phase.
    """
    if len(marks) > MOST_ASKED:
        return end_ns - begin_ns
    idle = 0
    for mark in marks:
        host = snapshot.tree.span(mark.host_row)
        if mark.end_ns and host is not None:
            until = min(host.end_ns or mark.end_ns, mark.end_ns, end_ns)
            idle += max(0, until - max(mark.start_ns, begin_ns))
    return idle


def _queued_ns(snapshot: Snapshot, mark: DeviceMark) -> int:
    """When the host had queued all of a phase, Unix ns."""
    host = snapshot.tree.span(mark.host_row)
    return host.end_ns or snapshot.now_ns if host is not None else mark.start_ns


def _in_words(busy: int, idle: int, known: int) -> tuple[str, str]:
    """The share and the time that a device was busy, of which it may have been idle for a part."""
    most, least = share(busy / known), share(max(0, busy - idle) / known)
    if most == least:
        return f"busy {most}", duration(busy)
    if idle >= busy:
        return f"busy up to {most}", f"≤{duration(busy)}"
    return f"busy {least.rstrip('%')} to {most}", f"≤{duration(busy)}"


def colour_of(palette: Palette, mark: DeviceMark) -> str:
    """The colour that the same phase has on the host."""
    return palette.phase(COPIED_IN.get(mark.text, mark.text))
