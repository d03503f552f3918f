"""What the device made of one span: for the pane with all that is known of it."""

from __future__ import annotations

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import bytes_of, duration
from firetrace.tui.model.device import DeviceLane, DeviceMark
from firetrace.tui.model.tree import Span

Facts = list[tuple[str, str]]
#: Kinds of spans that have a time of their own on a device.
TIMED = ("phase", "pair", "span")
#: Attributes with this prefix are bytes.
MEMORY = "ignite.device.memory."
#: A device that is further behind is not looked for.
FURTHEST_NS = 60 * 10**9


def device_facts(snapshot: Snapshot, span: Span) -> Facts:
    """Names and values; none where the device had nothing of it."""
    if not snapshot.devices or span.kind not in (*TIMED, "step", "iteration"):
        return []
    rows = {span.number}
    if span.kind not in TIMED:
        step = snapshot.tree.step_of(span.number)
        rows = set(snapshot.tree.family(step).numbers.tolist()) if step else set()
    for lane in snapshot.devices:
        marks = marks_of(lane, rows, span, snapshot.now_ns)
        if marks and span.kind in TIMED:
            return _of_phase(snapshot, span, lane, marks[0])
        if marks:
            return _of_step(span, lane, marks)
    return []


def marks_of(lane: DeviceLane, rows: set[int], span: Span, now_ns: int) -> list[DeviceMark]:
    """What the device did for these rows, which are in a span; it may have been long after that.

    Rows of the host that are later ones than these were reached after them.
    """
    last, took = max(rows, default=0), span.took_ns(now_ns)
    width = max(10**6, took)
    while True:
        marks = lane.between(span.start_ns, span.start_ns + width)
        if width > took + FURTHEST_NS or any(mark.host_row > last for mark in marks):
            return [mark for mark in marks if mark.host_row in rows]
        width *= 4


def _of_phase(snapshot: Snapshot, span: Span, lane: DeviceLane, mark: DeviceMark) -> Facts:
    if not mark.end_ns:
        return [("device", f"not known yet on {lane.label}")]
    found = [("device", f"{duration(mark.end_ns - mark.start_ns)} on {lane.label}")]
    behind = mark.start_ns - span.start_ns
    found.append(("", f"begun {duration(max(0, behind))} later than here"))
    if span.end_ns > mark.start_ns:  # what was queued before had been done by then
        idle = min(span.end_ns, mark.end_ns) - mark.start_ns
        found.append(("", f"idle for at most {duration(idle)} of it"))
    else:
        found.append(("", "busy throughout: all was queued by then"))
    report = snapshot.report.device
    usual = report.phases.get(mark.text) if report is not None else None
    if usual is not None and span.lane == snapshot.main_lane:
        found.append(("", f"p50 {duration(usual.p50_ns)}, p99 {duration(usual.p99_ns)}"))
    copied = lane.copied_bytes(mark) if mark.kind == "copy" else None
    if copied is not None:
        found.append(("copied", f"{bytes_of(copied)} to {lane.label}"))
    return found


def _of_step(span: Span, lane: DeviceLane, marks: list[DeviceMark]) -> Facts:
    reached = [mark for mark in marks if mark.end_ns]
    took = sum(mark.end_ns - mark.start_ns for mark in reached)
    if not reached:
        return [("device", f"not known yet on {lane.label}")]
    found = [("device", f"{duration(took)} on {lane.label}")]
    if len(reached) < len(marks):
        found.append(("", "of what is known so far"))
    elif span.end_ns:
        behind = reached[-1].end_ns - span.end_ns
        order = "later" if behind > 0 else "earlier"
        found.append(("", f"done {duration(abs(behind))} {order} than here"))
    return found


def in_words(name: str, value: object) -> str:
    """An attribute's value: of device memory with its unit."""
    if name.startswith(MEMORY) and type(value) is int:
        return bytes_of(value)
    return str(value)
