"""The fourth line: how long a step takes, and what it is made of."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import clip, duration
from firetrace.tui.widgets.palette import Palette, colours

#: A narrower line has no device time.
ROOMY = 100


class StepBar(Widget):
    """A step's p50 and p95, and its phases in proportion."""

    snapshot: reactive[Snapshot | None] = reactive(None)

    def render(self) -> Text:
        """The line; empty until a step has been completed."""
        if self.snapshot is None or self.snapshot.report.step is None:
            return Text()
        report = self.snapshot.report
        assert report.step is not None
        line = Text(no_wrap=True, overflow="crop", end="")
        dim = colours().dim
        line.append("step p50 ", dim).append(duration(report.step.p50_ns), "bold")
        line.append("  p95 ", dim).append(f"{duration(report.step.p95_ns)}  ")
        device = report.device
        if device is not None and device.busy_ns is not None and self.size.width >= ROOMY:
            line.append(f"{clip(device.label, 12)} ", dim)
            line.append(f"≥{duration(round(device.busy_ns))}  ")
        return line + self._phases(self.snapshot, self.size.width - line.cell_len)

    def _phases(self, snapshot: Snapshot, width: int) -> Text:
        palette = Palette(snapshot.tree.meta)
        shares = [
            (name, stats.share)
            for name, stats in snapshot.report.phases.items()
            # Another engine's phases, and the loader between the steps, are no part of a step.
            if name != "loader" and ": " not in name
        ]
        order = {name.text: id for id, name in list(snapshot.tree.meta.names.items())}
        shares.sort(key=lambda pair: order.get(pair[0], 0))  # as they follow one another
        whole = max(1.0, sum(share for _, share in shares))  # pairs may nest in phases
        parts = [(name, share / whole, palette.phase(name)) for name, share in shares]
        parts.append(("other", 1 - sum(share for _, share, _ in parts), colours().structure))
        text, done, edge = Text(), 0.0, 0
        for name, share, colour in parts:
            done += share
            cells = round(done * width) - edge
            edge += cells
            if cells < 1:
                continue
            label = clip(name, cells - 1) if cells > 3 else ""
            label = label if len(label) > 2 or label == name else ""
            filled = f" {label}" + " " * (cells - 1 - cell_len(label))
            text.append(filled, f"{colours().ink} on {colour}")
        return text
