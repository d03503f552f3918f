"""Everything that is known of one span: for whoever has found it and wants to know why."""

from __future__ import annotations

import time
from typing import Any

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from firetrace.tracer.journal import Flag
from firetrace.tui.feed import Snapshot
from firetrace.tui.format import LONGEST, clip, count, duration, printable
from firetrace.tui.model.tree import Span
from firetrace.tui.model.workers import made_for, own_times
from firetrace.tui.widgets.device_facts import Facts, device_facts, in_words
from firetrace.tui.widgets.palette import colours

FLAGS = {
    Flag.ERROR: "an exception passed through it",
    Flag.CUT: "cut: it did not come to its own end",
    Flag.GUESS: "its name is a guess",
    Flag.LATE: "recording began in the middle of it",
    Flag.RESUMED: "goes on with an interrupted run",
    Flag.SKIPPED: "the optimizer was not stepped",
}
MOST_PARTS = 4


class Detail(VerticalScroll):
    """The pane beside the tree; follows the cursor."""

    def __init__(self) -> None:
        super().__init__(id="detail")
        self.border_title = "Span"
        self._noted: tuple[object, int, int] = None, 0, 0  # of which span
        self._notes: list[dict[str, Any]] = []
        self.text = ""  #: what it shows, for the clipboard

    def compose(self) -> ComposeResult:
        """One text."""
        yield Static(id="facts", markup=False)

    def show(self, snapshot: Snapshot, span: Span | None) -> None:
        """Show a span."""
        if span is None:
            self.query_one("#facts", Static).update("")
            return
        wanted = snapshot.tree.pages, span.number, span.end_ns
        if self._noted != wanted:  # what ends has more to say
            self._noted, self._notes = wanted, snapshot.tree.meta.said_of(span.number)
        own, text = colours(), Text()
        text.append(clip(snapshot.tree.label(span), LONGEST) + "\n", "bold")
        for name, value in facts(snapshot, span, self._notes):
            text.append(f"{printable(name)}  ", own.dim)
            text.append(clip(value, LONGEST) + "\n")
        for note in self._notes:
            if note.get("type") == "exception":
                text.append("\n" + printable(said(note)) + "\n", f"bold {own.error}")
                trace = str(note.get("exception.stacktrace") or "")
                text.append("\n".join(printable(each) for each in trace.splitlines()) + "\n")
        self.text = text.plain
        self.query_one("#facts", Static).update(text)


def said(note: dict[str, Any]) -> str:
    """An exception's type and message."""
    return f"{note.get('exception.type', '?')}: {note.get('exception.message', '')}"


def facts(snapshot: Snapshot, span: Span, notes: list[dict[str, Any]]) -> Facts:
    """Names and values, the most asked for first. Raw text of the trace: not safe to print."""
    tree = snapshot.tree
    lane, took = tree.lane(span), span.took_ns(snapshot.now_ns)
    found: Facts = [("took" if span.end_ns else "open for", duration(took))]
    for group in tree.digest.groups.of(span.kind, span.lane):
        if group.name.text == span.text and group.times.count:
            p50, p99 = group.times.percentiles(50, 99)
            times = f", {took / p50:.3g} times p50" if p50 else ""
            found.append(("its like", f"p50 {duration(p50)}, p99 {duration(p99)}{times}"))
            found.append(("", f"max {duration(group.times.largest)}, n {count(group.ended)}"))
    found += device_facts(snapshot, span)
    found += _batch(snapshot, span)
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(span.start_ns / 1e9))
    found += [
        ("begun", f"{begun}.{span.start_ns % 10**9 // 1000:06d}"),
        ("epoch", count(span.epoch)), ("iteration", count(span.iteration)),
        ("kind", f"{span.kind} {span.text}"), ("engine", lane.engine), ("thread", lane.thread),
    ]  # fmt: skip
    around = " / ".join(tree.label(each) for each in reversed(tree.ancestors(span.number)))
    if around:
        found.append(("in", around))
    found += [("note", words) for flag, words in FLAGS.items() if span.flags & flag]
    row = tree.pages.row(span.number)
    name = tree.meta.names.get(int(row["name"])) if row is not None else None
    found += [(str(k), str(v)) for k, v in (name.code if name is not None else {}).items()]
    for note in notes:
        if note.get("type") == "attributes" and isinstance(note.get("attributes"), dict):
            found += [(str(k), in_words(str(k), v)) for k, v in note["attributes"].items()]
        elif note.get("type") == "end_reason":
            found.append(("ended by", str(note.get("reason"))))
        elif note.get("type") == "run":
            limits = ("max_epochs", "epoch_length", "max_iters")
            found += [(key, str(note[key])) for key in limits if note.get(key) is not None]
        elif note.get("type") == "link":
            found.append(("goes on with", f"row {note.get('to')}"))
    children = tree.children(span.number)
    if len(children):
        found.append(("inside", f"{count(len(children))} spans"))
    return found


def _batch(snapshot: Snapshot, span: Span) -> Facts:
    """Who made the batch that a step used, how long that took, and what in it."""
    if span.kind not in ("step", "iteration") and span.text != "get_batch":
        return []
    made = made_for(snapshot.workers, span.lane, span.iteration)
    if made is None:
        return []
    worker, batch, inside = made
    took = own_times(inside, snapshot.now_ns)
    most = sorted(took.items(), key=lambda pair: -pair[1])[:MOST_PARTS]
    parts = ", ".join(f"{name} {duration(ns)}" for name, ns in most)
    return [
        ("its batch", f"made by {worker.label} in {duration(batch.end_ns - batch.start_ns)}"),
        *([("", parts)] if parts else []),
    ]
