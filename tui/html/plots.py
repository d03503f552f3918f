"""Pictures of a run's numbers: pure functions from numbers to SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from firetrace.tui.colours import LIGHT
from firetrace.tui.format import count, duration, rate
from firetrace.tui.format import number as figure
from firetrace.tui.html.marks import CHARACTER, drawing, label, number, path, rect, words
from firetrace.tui.html.timeline import round_times
from firetrace.tui.model.columns import Spans
from firetrace.tui.model.digest import EpochTime
from firetrace.tui.model.heat import Cell, shade
from firetrace.tui.model.report import Scalar

WIDTH, LEFT, RIGHT = 1100, 64, 10  # of drawings, and of what is beside their axes
RATE_BINS, MOST_COLUMNS = 160, 220
HEIGHT, TOP, BOTTOM = 130, 8, 20
SCALAR_WIDTH, SCALAR_HEIGHT = 360, 150
#: The parts of an epoch, in the order in which they are stacked.
EPOCH_PARTS = ("waiting for data", "rest of the steps", "other engines", "in between")


def phase_bar(parts: Sequence[tuple[str, float, str]]) -> str:
    """What a step is made of. ``parts``: raw name, share 0 to 1, class of its colour."""
    drawn, done = [], 0.0
    for name, share, look in parts:
        x, width = done * WIDTH, share * WIDTH
        done += share
        said = f"{label(name, 80)} {share:.1%}"
        drawn.append(rect(x, 0, max(0.5, width - 1), 34, look, said))
        room = int((width - 10) / CHARACTER)
        if room >= min(5, len(name)):
            drawn.append(words(x + 6, 21, label(name, room), f"in on-{look}"))
    says = ", ".join(f"{label(name, 80)} {share:.1%}" for name, share, _ in parts)
    return drawing(WIDTH, 34, f"what a step is made of: {says}", drawn)


def heat_strip(cells: Sequence[Cell], iterations: npt.NDArray[Any], usual_ns: int) -> str:
    """All steps by colour: above how slow a cell's usually were, below the slowest of them.

    ``iterations``: the numbers of all steps.
    """
    shades, drawn = len(LIGHT.heat), []
    each = WIDTH / max(1, len(cells))
    for i, cell in enumerate(cells):
        first, last = iterations[cell.first], iterations[cell.first + cell.count - 1]
        where = f"step {first:,}" if cell.count == 1 else f"steps {first:,} to {last:,}"
        usually, slowest = duration(round(cell.median_ns)), duration(cell.slowest_ns)
        said = f"{where}: p50 {usually}, slowest {slowest}"
        typical = shade(cell.median_ns, usual_ns, shades)
        worst = shade(cell.slowest_ns, usual_ns, shades)
        width = each + (0.3 if i + 1 < len(cells) else 0)  # no gaps by rounding
        drawn.append(
            f"<g><title>{said}</title>{rect(i * each, 0, width, 20, f'heat{typical}')}"
            f"{rect(i * each, 20, width, 20, f'heat{worst}')}</g>"
        )
    return drawing(WIDTH, 40, "how long steps took over the whole run", drawn)


def throughput(steps: Spans, epochs_ns: Sequence[int]) -> str:
    """Steps a second over the run; ``epochs_ns``: when epochs began, Unix ns, to mark them."""
    ends, begin = steps.end.values, int(steps.start.values[0])
    whole = max(1, int(ends[-1]) - begin)
    bins = max(1, min(RATE_BINS, len(ends) // 6))
    at = np.clip((ends - begin) / whole * bins, 0, bins - 1).astype(int)
    # Thinned steps count too: the numbers of the recorded ones tell of them.
    numbers = steps.iteration.values.astype(np.int64)
    done = np.maximum(1, np.diff(numbers, prepend=numbers[0]))
    rates = np.bincount(at, done, bins) / (whole / bins / 1e9)
    top, room = float(rates.max()), WIDTH - LEFT - RIGHT
    drawn = _grid(top, rate)
    for ns in epochs_ns:
        x = LEFT + (ns - begin) / whole * room
        if LEFT < x < WIDTH - RIGHT:
            drawn.append(path(f"M{number(x)} {TOP}V{HEIGHT - BOTTOM}", "edge"))
    line = f"M{LEFT} {HEIGHT - BOTTOM}"
    for i, value in enumerate(rates.tolist()):
        y = _height(value / top)
        line += f"V{number(y)}H{number(LEFT + (i + 1) / bins * room)}"
    drawn.append(path(f"{line}V{HEIGHT - BOTTOM}Z", "area"))
    for ns in round_times(whole):
        anchor = "end" if ns > 0.97 * whole else "middle"
        said = duration(ns) if ns else "0"
        drawn.append(words(LEFT + ns / whole * room, HEIGHT - 4, said, "time", anchor))
    says = f"steps a second over the run: {rate(float(rates.min()))} to {rate(top)}"
    return drawing(WIDTH, HEIGHT, says, drawn)


def epochs(times: Sequence[EpochTime], step_ns: float, looks: Sequence[str]) -> str:
    """A column an epoch; of many, one for a few of them, the mean. ``looks``: of ``EPOCH_PARTS``.

    ``step_ns``: what a step takes on average, for those that were not recorded.
    """
    each = -(-len(times) // MOST_COLUMNS)
    groups = [times[i : i + each] for i in range(0, len(times), each)]
    took = [sum(e.end_ns - e.start_ns for e in group) / len(group) for group in groups]
    top, room = max(1.0, *took), WIDTH - LEFT - RIGHT
    drawn = _grid(top, lambda ns: duration(round(ns)))
    wide = min(60.0, room / len(groups))
    every = -(-len(groups) // max(1, int(room / max(wide, 46.0))))
    for i, group in enumerate(groups):
        x = LEFT + i * wide
        first, last = group[0].epoch, group[-1].epoch
        where = f"epoch {first:,}" if first == last else f"epochs {first:,} to {last:,}, each"
        columns = [_epoch_parts(one, step_ns) for one in group]
        parts = [sum(part) / len(group) for part in zip(*columns, strict=True)]
        said = [
            f"{name} {duration(round(ns))}"
            for name, ns in zip(EPOCH_PARTS, parts, strict=True)
            if ns
        ]
        title = f"{where}: {duration(round(took[i]))} ({', '.join(said)})"
        bars, done = "", 0.0
        for ns, look in zip(parts, looks, strict=True):
            if ns:
                high, low = _height((done + ns) / top), _height(done / top)
                width = wide - 2 if wide > 6 else wide
                bars += rect(x, high, width, low - high, look)
            done += ns
        drawn.append(f"<g><title>{title}</title>{bars}</g>")
        if i % every == 0:
            drawn.append(words(x + min(wide, 46) / 2, HEIGHT - 4, f"{first:,}", "time", "middle"))
    return drawing(WIDTH, HEIGHT, "what each epoch's time went to", drawn)


def _epoch_parts(each: EpochTime, step_ns: float) -> list[float]:
    """Waiting, the rest of the steps, other engines, what is left; together the epoch."""
    took = each.end_ns - each.start_ns
    part = each.iterations / each.steps if each.steps else 0.0  # those that were not recorded
    steps = min(float(took), max(each.steps_ns, took - each.between_ns(step_ns)))
    wait = min(steps, each.wait_ns * part)
    nested = min(took - steps, float(each.nested_ns))
    return [wait, steps - wait, nested, took - steps - nested]


def scalar(each: Scalar) -> str:
    """A scalar over the run; what is not finite leaves a gap."""
    width, height = SCALAR_WIDTH, SCALAR_HEIGHT
    finite = [x for x in each.points if math.isfinite(x)]
    says = f"{label(each.name, 80)}, {each.count:,} values, the last {figure(each.last)}"
    if not finite:
        return drawing(width, height, says, [words(LEFT, height / 2, "no finite value", "time")])
    low, high = min(finite), max(finite)
    top, room = height - BOTTOM - TOP, width - LEFT - RIGHT

    def y(value: float) -> float:
        # Halves: the difference of the largest floats is none.
        part = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.5
        return TOP + (1 - part) * top

    drawn = []
    for value in sorted({low, high}):
        drawn.append(path(f"M{LEFT} {number(y(value))}H{width - RIGHT}", "grid"))
        drawn.append(words(LEFT - 6, y(value) + 4, figure(value), "time", "end"))
    line, joined = "", False
    for i, value in enumerate(each.points):
        if not math.isfinite(value):
            joined = False
            continue
        x = LEFT + (i / (len(each.points) - 1) if len(each.points) > 1 else 0.5) * room
        at = f"{number(x)} {number(y(value))}"
        line += f"L{at}" if joined else f"M{at}h0"  # a point between gaps is a dot
        joined = True
    drawn.append(path(line, "line"))
    drawn.append(words(LEFT, height - 4, "first", "time"))
    drawn.append(words(width - RIGHT, height - 4, f"{count(each.count)}th value", "time", "end"))
    return drawing(width, height, says, drawn)


def _height(part: float) -> float:
    """Where a part of the largest value is."""
    return HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP)


def _grid(top: float, say: Callable[[float], str]) -> list[str]:
    """Three lines with their values: none, half, all."""
    drawn = []
    for part in (0.0, 0.5, 1.0):
        y = _height(part)
        drawn.append(path(f"M{LEFT} {number(y)}H{WIDTH - RIGHT}", "grid"))
        drawn.append(words(LEFT - 6, y + 4, say(top * part) if part else "0", "time", "end"))
    return drawn
