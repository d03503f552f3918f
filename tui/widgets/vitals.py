"""The third line: throughput, what the process uses of the machine, and the scalars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import bytes_of, clip, number, rate, sparkline
from firetrace.tui.model.device import DeviceReport
from firetrace.tui.widgets.palette import colours

if TYPE_CHECKING:
    from firetrace.tui.gauges import Gauges, Usage

SPARK = 10
#: A line narrower than this has no sparklines but the throughput's.
ROOMY = 100


class Vitals(Widget):
    """Parts are left out from the right where the line is too short."""

    snapshot: reactive[Snapshot | None] = reactive(None)
    usage: reactive[Usage | None] = reactive(None)
    gauges: Gauges | None = None

    def render(self) -> Text:
        """The line."""
        line = Text(no_wrap=True, overflow="crop", end="")
        if self.snapshot is None:
            return line
        for part in self._parts(self.snapshot, self.size.width >= ROOMY):
            gap = 3 if line.cell_len else 0
            if line.cell_len + gap + part.cell_len <= self.size.width:
                line.append(" " * gap)
                line.append_text(part)
        return line

    def _parts(self, snapshot: Snapshot, roomy: bool) -> list[Text]:
        own, progress = colours(), snapshot.report.progress
        parts = []
        if progress.steps_per_second is not None:
            speed = Text.assemble((rate(progress.steps_per_second), "bold"), (" step/s ", own.dim))
            cells = 2 * SPARK if roomy else SPARK
            speed.append(sparkline(progress.rates[-cells:], cells, zero=True), own.live)
            parts.append(speed)
        usage, gauges = self.usage, self.gauges
        if usage is not None and gauges is not None and snapshot.report.state == "running":
            parts.append(_gauge("CPU", f"{usage.cpu:.0%}", gauges.cpu, roomy))
            parts.append(_gauge("MEM", bytes_of(usage.memory_bytes), gauges.memory, roomy))
            if usage.gpu is not None:
                parts.append(_gauge("GPU", f"{usage.gpu:.0%}", gauges.gpu, roomy))
            if usage.gpu_memory_bytes is not None:
                parts.append(_gauge("VRAM", bytes_of(usage.gpu_memory_bytes), (), roomy))
        device = snapshot.report.device
        if device is not None and device.allocated is not None:
            parts.append(_memory(device, roomy))
        for scalar in snapshot.report.scalars:
            name, last = clip(scalar.name, 24), number(scalar.last)
            part = Text.assemble((f"{name} ", own.dim), (last, "bold"))
            if roomy and len(scalar.points) > 1:
                part.append(" " + sparkline(scalar.points, SPARK), own.handler)
            parts.append(part)
        return parts


def _memory(device: DeviceReport, roomy: bool) -> Text:
    """What is allocated on the device, the most that was, and how often it was not enough."""
    part = Text.assemble((f"{clip(device.label, 12)} ", colours().dim))
    part.append(bytes_of(device.allocated or 0), "bold")
    if device.peak is not None:
        part.append("/peak ", colours().dim).append(bytes_of(device.peak))
    if roomy and len(device.memory) > 1:
        part.append(" " + sparkline(device.memory, SPARK, zero=True), colours().live)
    if device.ooms:
        part.append(f" out of memory: {len(device.ooms)}", colours().error)
    return part


def _gauge(name: str, value: str, course: Sequence[float], roomy: bool) -> Text:
    part = Text.assemble((f"{name} ", colours().dim), (value, "bold"))
    if roomy and len(course) > 1:
        part.append(" " + sparkline(list(course), SPARK // 2, zero=True), colours().live)
    return part
