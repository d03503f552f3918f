"""The counters of a Chrome trace: every scalar, each engine's steps/s and its share of data wait.

A counter's value holds until the next. Scalars are written as they were recorded. Steps are summed
in buckets: at first each step is one, and whenever an engine has more than ``MOST`` of them, they
are made twice as long. So a run of any length has some thousands of points, the same whatever the
size of the blocks in which it was read.

Perfetto calls a counter by its event's name and its value's key, with a blank between them.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from firetrace.exporters.chrome.columns import as_json
from firetrace.exporters.chrome.tracks import Kinds, label, line
from firetrace.exporters.chrome.values import safe
from firetrace.tracer.journal import Flag
from firetrace.tracer.table import Table

MOST = 2_048  #: buckets of an engine
AT_ONCE = 65_536  #: spans that are looked at together, in a table of any size
SHORTEST = 2**10  #: ns, of a bucket that is longer than its step
UNUSUAL = int(Flag.CUT | Flag.ERROR | Flag.LATE)  # such a step says nothing about speed

Ints = npt.NDArray[np.int64]
#: A bucket: where it begins and ends, its steps, their time and their fetches', ns, and the epochs
#: (rows) of its first and last step.
START, END, STEPS, STEP_NS, WAIT_NS, FIRST_EPOCH, LAST_EPOCH = range(7)


class Rate:
    """The steps of one engine in one thread, in buckets."""

    def __init__(self) -> None:
        self._buckets: Ints = np.empty((7, 0), np.int64)
        self._length = 0  # ns of a bucket; 0: each step is one

    def add(self, steps: Any, fetches: Any) -> None:
        """Add rows: steps that have ended, and fetches that have, in the order of time."""
        if len(steps):
            parents = steps["parent"].astype(np.int64)
            took = steps["end"] - steps["start"]
            new = np.stack([
                steps["start"], steps["end"], np.ones(len(steps), np.int64), took,
                np.zeros(len(steps), np.int64), parents, parents,
            ])  # fmt: skip
            self._buckets = np.concatenate([self._buckets, new], axis=1)
        if len(fetches) and self._buckets.shape[1]:
            at = np.searchsorted(self._buckets[START], fetches["start"], side="right") - 1
            inside = (at >= 0) & (fetches["end"] <= self._buckets[END, at])
            took = fetches["end"] - fetches["start"]
            np.add.at(self._buckets[WAIT_NS], at[inside], took[inside])
        while self._buckets.shape[1] > MOST:
            self._fold()
            if self._buckets.shape[1] > MOST:
                self._length = max(2 * self._length, SHORTEST)

    def _fold(self) -> None:
        """Put together what lies in one bucket. Buckets begin at multiples of their length."""
        if not self._length or not self._buckets.shape[1]:
            return
        old = self._buckets
        index = old[START] // self._length
        first = np.flatnonzero(np.diff(index, prepend=index[0] - 1))
        last = np.append(first[1:], len(index)) - 1
        sums = np.add.reduceat(old[STEPS : WAIT_NS + 1], first, axis=1)
        self._buckets = np.concatenate([
            old[START : START + 1, first], old[END : END + 1, last], sums,
            old[FIRST_EPOCH : FIRST_EPOCH + 1, first], old[LAST_EPOCH : LAST_EPOCH + 1, last],
        ])  # fmt: skip

    def points(self) -> tuple[list[int], list[float], list[float]]:
        """Times, Unix ns; steps a second of the steps' own time; percent of it that is data wait.

        Between two epochs, where an engine does not step for long, and at the end both are 0.
        """
        self._fold()
        buckets = self._buckets
        count = buckets.shape[1]
        took = np.maximum(buckets[STEP_NS], 1)
        gap = np.append(buckets[START, 1:] - buckets[END, :-1], 1)
        same_epoch = np.append(buckets[FIRST_EPOCH, 1:] == buckets[LAST_EPOCH, :-1], False)[:count]
        typical = took // np.maximum(buckets[STEPS], 1)
        stops = (gap[:count] > np.maximum(typical, self._length)) & ~same_epoch
        stops[-1:] = True
        times = np.concatenate([buckets[START], buckets[END, stops]])
        nothing = np.zeros(int(np.count_nonzero(stops)))
        rates = np.concatenate([buckets[STEPS] * 1e9 / took, nothing])
        waits = np.concatenate([buckets[WAIT_NS] * 100 / took, nothing])
        order = np.argsort(times, kind="stable")
        return times[order].tolist(), rates[order].tolist(), waits[order].tolist()


RATES = "steps/s", "data wait %"


class Counters:
    """The counters of one process.

    Args:
        pid: the process, as Perfetto is told.
        kinds: what rows are.
    """

    def __init__(self, pid: int, kinds: Kinds) -> None:
        self._pid, self._kinds = pid, kinds
        self._rates: dict[int, Rate] = {}  # by lane
        self._scalars: dict[tuple[int, int], tuple[str, str]] = {}  # before and after the time

    def add(self, table: Table) -> None:
        """Take note of a block's steps."""
        codes = self._kinds.of(table)
        rows = table.rows
        usual = (rows["end"] != 0) & (rows["flags"] & UNUSUAL == 0)
        positions = np.flatnonzero(usual & ((codes == Kinds.STEP) | (codes == Kinds.GET_BATCH)))
        for first in range(0, len(positions), AT_ONCE):
            part = positions[first : first + AT_ONCE]
            found, is_step = rows[part], codes[part] == Kinds.STEP
            for lane in np.unique(found["lane"]).tolist():
                here = found["lane"] == lane
                rate = self._rates.setdefault(lane, Rate())
                rate.add(found[here & is_step], found[here & ~is_step])

    def scalars(self, table: Table, base: int) -> str:
        """The scalars of a block. Those that are not finite have no place in a counter."""
        rows = table.scalars
        values = rows["end"].copy().view("<f8").tolist()
        lines = []
        for lane, name, start, value in zip(
            rows["lane"].tolist(), rows["name"].tolist(), rows["start"].tolist(), values,
            strict=True,
        ):  # fmt: skip
            if start < base or not isfinite(value):
                continue
            template = self._scalars.get((lane, name))
            if template is None:
                found = table.meta.names.get(name)
                template = self._template(table, lane, found.text if found else str(name))
                if found is not None:
                    self._scalars[lane, name] = template
            micro, nano = divmod(start - base, 1000)
            lines.append(f"{template[0]}{micro}.{nano:03}{template[1]}{value!r}}}}}")
        return "".join(lines)

    def _template(self, table: Table, lane: int, name: str) -> tuple[str, str]:
        """What stands before a point's time, and between its time and its value."""
        engine = label(table.lane_of(lane))
        key = as_json(safe(f"{name} (metric)" if name in RATES else name))
        return (
            ',\n{"ph":"C","ts":',
            f',"pid":{self._pid},"name":{as_json(engine)},"args":{{{key}:',
        )

    def rates(self, table: Table, base: int) -> str:
        """What has come of all steps."""
        lines = []
        for lane, rate in sorted(self._rates.items()):
            engine = label(table.lane_of(lane))
            times, speeds, waits = rate.points()
            for key, values in zip(RATES, (speeds, waits), strict=True):
                lines += [
                    line("C", self._pid, time - base, name=engine, args={key: value})
                    for time, value in zip(times, values, strict=True)
                    if time >= base and any(values)
                ]
        return "".join(lines)


__all__ = ["Counters", "Rate"]
