"""A training that firetrace has recorded, read back: each phase on the host and on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.check import Settings
from bench.gpu.machine import Machine
from bench.gpu.traces import Trace
from firetrace.tracer import TraceHandler
from firetrace.tracer.aligned import aligned
from firetrace.tracer.journal import Flag, Header
from firetrace.tracer.meta import Meta
from firetrace.tracer.run import device_journal, open_run
from firetrace.tracer.table import Table, read_table

#: Phases in which a training uses its device.
WORKING = ("prepare_batch", "forward", "loss", "backward", "optimizer")


@dataclass(frozen=True)
class Phase:
    """A phase of an iteration. Times in ns of the host's monotonic clock."""

    name: str
    engine: str
    iteration: int
    begin: int  #: on the host
    end: int
    device: tuple[int, int] | None  #: None: it has no times there
    copied: bool = False  #: it copied the batch there


@dataclass(frozen=True)
class Recorded:
    """What became of one training."""

    journal: Path  #: the rank's
    phases: list[Phase]  #: as they ended on the host
    scalars: dict[str, list[tuple[int, float]]]  #: of the device: iteration and value, by name
    meta: Meta  #: of the device's journal
    host: Meta
    events: int  #: that were made, if the device counts them
    trace: Trace | None = None

    def problems(self, phases: tuple[str, ...] = WORKING[1:]) -> list[str]:
        """Why it is not whole: phases that ought to have times on the device, and have none."""
        found = [f"recording stopped: {self.meta.stopped}"] if self.meta.stopped else []
        found += [f"recording stopped: {self.host.stopped}"] if self.host.stopped else []
        found += [f"{count} not timed: {why}" for (_, why), count in self.meta.untimed.items()]
        without = [each.name for each in self.phases if each.device is None and each.name in phases]
        found += [f"{without.count(name)} {name} without times" for name in dict.fromkeys(without)]
        if not any(each.device for each in self.phases):
            found.append("no device time at all")
        return found

    @property
    def anchor_ns(self) -> int:
        """By which the device's clock may be off the host's; large where nothing is said of it."""
        return max((each.error_ns for each in self.meta.anchors), default=2**62)

    def of(self, name: str) -> list[Phase]:
        """The phases of a name that have times on the device."""
        return [each for each in self.phases if each.name == name and each.device is not None]


def record(
    machine: Machine,
    settings: Settings,
    engine: Any,
    run: Callable[[], Any] | None = None,
    attach: Callable[[TraceHandler], None] | None = None,
    device: Any = None,
    profile: bool = False,
) -> Recorded:
    """Run an engine under firetrace and read what it wrote.

    Args:
        machine: that it runs on.
        settings: where the journal goes.
        engine: of ignite.
        run: it, if that takes arguments.
        attach: the handler, if that takes arguments.
        device: as of ``TraceHandler``; by default as the machine has it.
        profile: whether torch's profiler watches.
    """
    device = machine.asked if device is None else device
    handler = TraceHandler(settings.folder() / "run", device=device)
    trace = None

    def whole() -> None:
        (run or engine.run)()
        machine.synchronize()

    try:
        (attach or (lambda handler: handler.attach(engine)))(handler)
        if profile:
            trace = machine.profile(whole)
        else:
            whole()
    finally:
        handler.close()
    assert handler.directory is not None
    found = read(open_run(handler.directory).newest)
    return replace(found, events=getattr(device, "events", 0), trace=trace)


def read(journal: Path) -> Recorded:
    """Read a rank's journal and the device's beside it."""
    rank = read_table(journal)
    path = device_journal(journal)
    device = read_table(path) if path.exists() else None
    phases = _phases(rank, device)
    if device is None:
        return Recorded(journal, phases, {}, Meta(path.with_suffix(".meta.jsonl")), rank.meta, 0)
    scalars: dict[str, list[tuple[int, float]]] = {}
    values = np.ascontiguousarray(device.scalars["end"]).view(np.float64)
    for row, value in zip(device.scalars, values, strict=True):
        name = device.meta.names[int(row["name"])].text
        scalars.setdefault(name, []).append((int(row["iteration"]), float(value)))
    return Recorded(journal, phases, scalars, device.meta, rank.meta, 0)


def _phases(rank: Table, device: Table | None) -> list[Phase]:
    times: dict[int, tuple[int, int]] = {}
    copies = set()
    if device is not None:
        shift = aligned(device.header, device.meta, rank.header)
        for kind in ("device", "copy"):
            for at in device.of_kind(kind).tolist():
                row = device.rows[at]
                if row["end"] and not row["flags"] & Flag.CUT:
                    start, end = shift.shift([int(row["start"]), int(row["end"])]).tolist()
                    times[int(row["epoch"])] = _monotonic(rank.header, start, end)
                if kind == "copy":
                    copies.add(int(row["epoch"]))
    found = []
    for at in rank.of_kind("phase").tolist():
        row, number = rank.rows[at], int(rank.numbers[at])
        if row["end"]:
            begin, end = _monotonic(rank.header, int(row["start"]), int(row["end"]))
            name, engine = rank.name(at).text, rank.lane(at).engine
            found.append(
                Phase(
                    name, engine, int(row["iteration"]), begin, end, times.get(number),
                    number in copies,
                )
            )  # fmt: skip
    return sorted(found, key=lambda each: each.end)


def _monotonic(header: Header, *times: int) -> tuple[int, int]:
    first, last = (time - header.wall_ns + header.monotonic_ns for time in times)
    return first, last
