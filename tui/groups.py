"""Spans grouped by name and engine, and their statistics. Pure; times are ns, shares 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firetrace.tracer.journal import Flag
from firetrace.tracer.table import Ints, Table

#: Events outside of steps: what their handlers take is no part of a step's time.
BETWEEN_STEPS = frozenset(
    ("STARTED", "EPOCH_STARTED", "EPOCH_COMPLETED", "COMPLETED", "TERMINATE", "INTERRUPT",
     "TERMINATE_SINGLE_EPOCH", "EXCEPTION_RAISED")
)  # fmt: skip


@dataclass(frozen=True)
class Stats:
    """How long spans of one name took; percentiles as numpy's, linear between neighbours."""

    count: int
    total_ns: int
    p50_ns: int
    p95_ns: int
    p99_ns: int
    max_ns: int
    share: float  #: phases: of their engine's steps; handlers: of the whole run


class Groups:
    """Spans grouped by name and lane: one radix sort of the name ids."""

    def __init__(self, table: Table, main: int) -> None:
        self.table, self.main = table, main
        names = table.rows["name"]
        self._order = np.argsort(names, kind="stable")
        self._bounds = np.concatenate([[0], np.cumsum(np.bincount(names, minlength=1))])

    def _of_name(self, id: int) -> Ints:
        if id + 1 >= len(self._bounds):
            return self._order[:0]
        return self._order[self._bounds[id] : self._bounds[id + 1]]

    def by_lane(self, id: int) -> dict[int, Ints]:
        """Positions of the spans with a name id, by lane."""
        positions = self._of_name(id)
        if not len(positions):
            return {}
        lanes = self.table.rows["lane"][positions]
        first = int(lanes[0])
        if (lanes == first).all():
            return {first: positions}
        return {int(lane): positions[lanes == lane] for lane in np.unique(lanes)}

    def positions(self, kind: str, lane: int) -> Ints:
        """Positions of the spans of a kind in a lane, in file order."""
        found = [self.by_lane(id).get(lane) for id in self.table.ids_of(kind)]
        parts = [part for part in found if part is not None]
        if not parts:
            return self._order[:0]
        return parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))

    def stats(self, positions: Ints, whole_ns: int) -> Stats | None:
        """Statistics of the spans that came to their own end; None if there are none."""
        rows = self.table.rows
        end = rows["end"][positions]
        done = (end != 0) & (rows["flags"][positions] & (Flag.CUT | Flag.SKIPPED) == 0)
        durations = (end - rows["start"][positions])[done]
        if not len(durations):
            return None
        p50, p95, p99 = np.percentile(durations, (50, 95, 99))
        total = int(durations.sum())
        share = min(1.0, total / whole_ns) if whole_ns else 0.0
        return Stats(
            len(durations), total, round(p50), round(p95), round(p99), int(durations.max()), share
        )

    def event_ns(self, in_steps: bool = False) -> int:
        """What the handlers of the main engine's events took; ``in_steps``: those in steps."""
        total = 0
        for id in self.table.ids_of("event"):
            if in_steps and self.table.names[id].text in BETWEEN_STEPS:
                continue
            stats = self.stats(self.by_lane(id).get(self.main, self._order[:0]), 0)
            total += stats.total_ns if stats else 0
        return total

    def unexplained_ns(self) -> int:
        """What of the main engine's steps and iterations no span under them covers."""
        rows, numbers = self.table.rows, self.table.numbers
        if not len(rows):
            return 0
        lasted = np.where(rows["end"] != 0, rows["end"] - rows["start"], 0)
        inside = np.bincount(rows["parent"], lasted, minlength=int(numbers[-1]) + 1)
        total = 0
        for kind in ("step", "iteration"):
            found = self.positions(kind, self.main)
            found = found[rows["end"][found] != 0]
            total += int((lasted[found] - inside[numbers[found]]).sum())
        return total

    def label(self, lane: int, text: str) -> str:
        """A name; of another engine than the main one, with the engine's."""
        main, engine = self.table.lane_of(self.main).engine, self.table.lane_of(lane).engine
        return text if engine == main else f"{engine}: {text}"

    def phases(self) -> dict[str, Stats]:
        """Statistics of the phases, pairs and loaders; share: of their engine's step time."""
        found: dict[str, Stats] = {}
        step_ns: dict[int, int] = {}
        for kind in ("loader", "phase", "pair", "span"):
            for id in self.table.ids_of(kind):
                for lane, positions in self.by_lane(id).items():
                    if lane not in step_ns:
                        whole = self.stats(self.positions("step", lane), 0)
                        step_ns[lane] = whole.total_ns if whole else 0
                    stats = self.stats(positions, step_ns[lane])
                    if stats is not None:
                        found[self.label(lane, self.table.names[id].text)] = stats
        return dict(sorted(found.items(), key=lambda item: -item[1].total_ns))

    def handlers(self, run_ns: int) -> dict[str, Stats]:
        """Statistics of the handlers; share: of the main engine's run."""
        found: dict[str, Stats] = {}
        for id in self.table.ids_of("handler"):
            for lane, positions in self.by_lane(id).items():
                stats = self.stats(positions, run_ns)
                if stats is not None:
                    found[self.label(lane, self.table.names[id].text)] = stats
        return dict(sorted(found.items(), key=lambda item: -item[1].total_ns))
