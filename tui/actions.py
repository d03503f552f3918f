"""What the app does besides showing: export, open in Perfetto, copy, save the screen."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from firetrace.tracer.run import file_name
from firetrace.tui.feed import Snapshot
from firetrace.tui.format import count, duration
from firetrace.tui.model.tree import Span

if TYPE_CHECKING:
    from firetrace.exporters.selection import Selection

#: A run of more spans than this is a slow guest in a browser: its epoch alone is opened.
MOST_IN_BROWSER = 3_000_000


@dataclass(frozen=True)
class Part:
    """A part of a run that can be exported."""

    id: str
    label: str
    selection: Selection


def parts(snapshot: Snapshot, shown: list[Span], frame: Span | None) -> list[Part]:
    """What can be exported, what is on the screen first."""
    from firetrace.exporters.selection import Selection

    found = []
    tree = snapshot.tree
    if shown:
        outer = [span for span in shown if span.kind not in ("run", "epoch")] or shown
        begin = min(span.start_ns for span in outer)
        end = max(span.end_ns or snapshot.now_ns for span in outer)
        label = f"what is on the screen: {duration(end - begin)} of the run"
        found.append(Part("screen", label, Selection(from_ns=begin, to_ns=end)))
    if frame is not None and frame.kind == "step":
        own = Selection(from_ns=frame.start_ns, to_ns=frame.end_ns or snapshot.now_ns)
        found.append(Part(f"step{frame.iteration}", f"this {tree.label(frame)}", own))
    if frame is not None and frame.epoch:
        epoch = Selection(from_epoch=frame.epoch, to_epoch=frame.epoch)
        found.append(Part(f"epoch{frame.epoch}", f"this epoch {frame.epoch}", epoch))
    step = snapshot.report.step
    if step is not None:
        label = f"the slow steps: {duration(step.p95_ns)} and more (p95)"
        found.append(Part("slow", label, Selection(slower_than_ns=step.p95_ns)))
    if len(tree.errors()):
        found.append(Part("errors", "the steps in which something failed", Selection(errors=True)))
    label = f"the whole run: {count(snapshot.report.spans)} spans"
    return [*found, Part("all", label, Selection())]


def default_path(snapshot: Snapshot) -> str:
    """Where a part goes if nothing else is said."""
    return f"{file_name(snapshot.path.parent.name)}.json.gz"


def new_path(path: Path, part: Part) -> Path:
    """Where a part goes: a name that is taken gets the part's behind it, and a number at last."""
    stem, dot, suffix = path.name.partition(".")
    names = (f"{stem}-{part.id}{n}{dot}{suffix}" for n in ("", *(f"-{i}" for i in range(2, 1000))))
    candidates = (path, *(path.with_name(name) for name in names))
    return next((each for each in candidates if not each.exists()), path)


def export(journal: Path, path: Path, selection: Selection) -> int:
    """Write a part of a journal as Chrome JSON. Returns how many spans.

    Raises:
        OSError: it cannot be written.
        JournalError: the journal cannot be read.
    """
    from firetrace.exporters.chrome.export import export_chrome
    from firetrace.exporters.selection import Selector
    from firetrace.tracer.stream import blocks

    with Selector(journal, selection) as selector:
        return export_chrome(selector.select(blocks(journal)), path)


class PerfettoPage:
    """A loopback page with the run's trace, for as long as the app is open."""

    def __init__(self, snapshot: Snapshot, frame: Span | None) -> None:
        from firetrace.exporters.perfetto import TracePage, offline_ui, open_browser, ssh_line
        from firetrace.exporters.selection import Selection

        selection, part = Selection(), "the run"
        if snapshot.report.spans > MOST_IN_BROWSER and frame is not None and frame.epoch:
            selection = Selection(from_epoch=frame.epoch, to_epoch=frame.epoch)
            part = f"epoch {frame.epoch} of the run, which is too long for a browser"
        with contextlib.ExitStack() as opened:
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="firetrace-"))
            trace = Path(folder) / default_path(snapshot)
            self.spans = export(snapshot.path, trace, selection)
            name = snapshot.path.parent.name
            page = opened.enter_context(TracePage(trace, title=name, ui=offline_ui()))
            self._opened = opened.pop_all()
        there = "opened in the browser"
        if not open_browser(page.url):
            there = f"no browser here; on your own machine: {ssh_line(page.port)}"
        self.message = f"{part}: {page.url}\n{there}"

    def close(self) -> None:
        """Stop serving."""
        self._opened.close()
