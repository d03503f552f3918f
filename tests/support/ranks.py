"""Simulated runs of many ranks: real journals of trainings whose every duration is known.

Ranks wait for one another where distributed ranks do: all leave ``backward`` together, and with
``forward_barrier`` they wait at the beginning of ``forward``, too.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firetrace.tracer import journal
from firetrace.tracer.journal import FIRST_ROW, ROW_DTYPE, Header, Rows

MS = 10**6
THEN = 1_700_000_000 * 10**9
FOREVER = 3600 * 10**9
Times = npt.NDArray[np.int64]

#: What a step is made of, in the order of its rows: kind, name, and what it is in.
PARTS = (
    ("step", "step", "epoch"), ("event", "GET_BATCH_STARTED", "step"),
    ("phase", "get_batch", "step"), ("event", "GET_BATCH_COMPLETED", "step"),
    ("iteration", "iteration", "step"), ("event", "ITERATION_STARTED", "iteration"),
    ("phase", "forward", "iteration"), ("event", "FORWARD_COMPLETED", "iteration"),
    ("phase", "backward", "iteration"), ("event", "BACKWARD_COMPLETED", "iteration"),
    ("phase", "optimizer", "iteration"), ("event", "MODEL_COMPLETED", "iteration"),
    ("event", "ITERATION_COMPLETED", "iteration"), ("handler", "save", "ITERATION_COMPLETED"),
)  # fmt: skip
OTHERS = (
    ("run", "run"), ("epoch", "epoch"), ("event", "EPOCH_COMPLETED"), ("handler", "CheckpointSaver")
)  # fmt: skip
NAMES = [(kind, name) for kind, name, _ in PARTS] + list(OTHERS)
#: Not there in an engine that fires no events inside its iterations and has no hooks.
INNER = ("forward", "FORWARD_COMPLETED", "backward", "BACKWARD_COMPLETED", "optimizer",
         "MODEL_COMPLETED")  # fmt: skip


@dataclass
class SimulatedRun:
    """A run to be written. Change its arrays of durations, ns, by rank and step, before that."""

    ranks: int = 2
    steps: int = 60
    epoch_length: int = 0  #: 0: one epoch
    seed: int = 1
    jitter: float = 0.01  #: of each duration
    barrier: bool = True  #: at the end of ``backward``
    forward_barrier: bool = False
    phases: bool = True  #: whether there are spans of forward, backward and optimizer
    every: int = 1  #: only each so many-th step is recorded
    attempt: int = 1
    begun: list[int] = field(default_factory=list)  #: ns after the first, by rank
    ends: dict[int, int] = field(default_factory=dict)  #: ns after the first one's begin: killed
    hosts: list[int] = field(default_factory=list)  #: by rank; hosts have clocks of their own
    clock_errors: dict[int, int] = field(
        default_factory=dict
    )  #: measured wrong by so much, by host
    said_errors: dict[int, int] = field(default_factory=dict)  #: the bound in the journal, by host
    held: tuple[int, ...] = ()  #: ranks whose writers live

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)

        def around(ns: int) -> Times:
            spread = random.normal(1, self.jitter, (self.ranks, self.steps))
            return (ns * np.clip(spread, 0.5, 1.5)).astype(np.int64)

        self.data, self.forward = around(10 * MS), around(30 * MS)
        self.backward, self.optimizer = around(40 * MS), around(3 * MS)
        self.handler, self.epoch_end = around(1 * MS), around(2 * MS)

    @property
    def _length(self) -> int:
        return self.epoch_length or self.steps

    @cached_property
    def times(self) -> dict[str, Times]:
        """When everything was, by rank and step, ns after the first one's begin."""
        now = np.zeros(self.ranks, np.int64)
        now[: len(self.begun)] = self.begun
        names = ("start", "data", "ready", "backward", "optimizer", "end", "after")
        found = {name: np.zeros((self.ranks, self.steps), np.int64) for name in names}
        for n in range(self.steps):
            start, data = now, now + self.data[:, n]
            ready = (data.max() if self.forward_barrier else data) + self.forward[:, n]
            left = ready + self.backward[:, n]
            backward = np.full_like(left, left.max()) if self.barrier else left
            optimizer = backward + self.optimizer[:, n]
            end = optimizer + self.handler[:, n]
            after = end + (self.epoch_end[:, n] if (n + 1) % self._length == 0 else 0)
            for name, value in zip(
                names, (start, data, ready, backward, optimizer, end, after), strict=True
            ):
                found[name][:, n] = value
            now = after + 20_000
        return found

    def kill(self, rank: int, step: int, part: str, others_later: int) -> None:
        """One rank dies in ``data``, ``forward`` or ``handler`` of a step. Call it last.

        The others wait for it in ``backward`` and are killed some ns later.
        """
        column = {"data": self.data, "forward": self.forward, "handler": self.handler}[part]
        column[rank, step - 1] = FOREVER
        before = {"data": "start", "forward": "data", "handler": "optimizer"}[part]
        died = int(self.times[before][rank, step - 1]) + 2 * MS
        self.ends = dict.fromkeys(range(self.ranks), died + others_later) | {rank: died}

    def write(self, folder: Path, only: tuple[int, ...] | None = None) -> Path:
        """Make the journals (or only some ranks') in the run's directory; return it."""
        folder.mkdir(parents=True, exist_ok=True)
        for rank in range(self.ranks) if only is None else only:
            self._write_rank(folder / f"rank{rank}.{self.attempt}.rows", rank)
        return folder

    def seed_of(self, rank: int) -> bytes:
        """The seed in a rank's header."""
        return struct.pack("<QII", self.seed, self.attempt, rank)

    def _write_rank(self, path: Path, rank: int) -> None:
        host = self.hosts[rank] if self.hosts else 0
        clock = host * 5 * 10**9 + rank * 7 * MS  # each journal has an anchor of its own
        rows = self._rows(rank)
        for column in ("start", "end"):
            rows[column] += np.where(rows[column] > 0, clock, 0)
        header = Header(
            2**18, THEN + clock, 10**9 if not host else 9 * 10**9, self.seed_of(rank),
            1000 + rank, f"node{host}", f"boot{host}",
        )  # fmt: skip
        path.write_bytes(header.pack() + rows.tobytes())
        lines = self._meta(rank, host, clock)
        path.with_suffix(".meta.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        path.with_suffix(".lock").touch()
        if rank in self.held:
            journal.written_here.add(self.seed_of(rank))

    def _meta(self, rank: int, host: int, clock: int) -> list[dict[str, Any]]:
        resource = {
            "ignite.rank": rank, "ignite.world_size": self.ranks, "host.name": f"node{host}",
            "process.pid": 1000 + rank, "ignite.run.id": "simulated",
        }  # fmt: skip
        lines: list[dict[str, Any]] = [{"type": "process", "resource": resource}]
        lines.append({"type": "lane", "id": 0, "engine": "Trainer", "thread": "MainThread"})
        lines += [
            {"type": "name", "id": id, "kind": kind, "name": name}
            for id, (kind, name) in enumerate(NAMES)
        ]
        if host and self.said_errors.get(host, 1000) >= 0:
            offset = self.clock_errors.get(host, 0) - clock  # rank 0's clock is 0
            lines += [
                {"type": "offset", "time": THEN + clock + at * 10**9, "offset": offset,
                 "error": self.said_errors.get(host, 1000), "to": self.seed_of(0).hex()}
                for at in (0, 1)
            ]  # fmt: skip
        if rank not in self.ends and rank not in self.held:
            lines.append({"type": "end", "time": THEN + clock + int(self.times["after"][rank, -1])})
        return lines

    def _rows(self, rank: int) -> Rows:
        parts = [part for part in PARTS if self.phases or part[1] not in INNER]
        at = {name: place for place, (_, name, _) in enumerate(parts)}
        times = {name: values[rank] for name, values in self.times.items()}
        spans = {
            "step": ("start", "end"), "get_batch": ("start", "data"), "iteration": ("data", "end"),
            "forward": ("data", "ready"), "backward": ("ready", "backward"),
            "optimizer": ("backward", "optimizer"), "ITERATION_COMPLETED": ("optimizer", "end"),
            "save": ("optimizer", "end"), "GET_BATCH_STARTED": ("start", "start"),
            "GET_BATCH_COMPLETED": ("data", "data"), "ITERATION_STARTED": ("data", "data"),
            "FORWARD_COMPLETED": ("ready", "ready"), "BACKWARD_COMPLETED": ("backward", "backward"),
            "MODEL_COMPLETED": ("optimizer", "optimizer"),
        }  # fmt: skip
        first = 1 if not self.begun else 1 + self.begun[rank]
        pieces = [_row("run", 0, 0, 0, first, int(times["after"][-1]))]
        number = FIRST_ROW + 1
        for epoch, begin in enumerate(range(0, self.steps, self._length), 1):
            steps = np.arange(begin, min(begin + self._length, self.steps))
            last = int(times["after"][steps[-1]])
            pieces.append(_row("epoch", FIRST_ROW, epoch, begin, int(times["start"][begin]), last))
            kept = steps[(steps + 1) % self.every == 0]
            block = np.zeros((len(kept), len(parts)), ROW_DTYPE)
            block["epoch"], block["iteration"] = epoch, (kept + 1)[:, None]
            base = number + 1 + np.arange(len(kept)) * len(parts)
            for place, (kind, name, above) in enumerate(parts):
                block["name"][:, place] = NAMES.index((kind, name))
                block["parent"][:, place] = number if above == "epoch" else base + at[above]
                for column, which in zip(("start", "end"), spans[name], strict=True):
                    block[column][:, place] = THEN + times[which][kept]
            pieces.append(block.reshape(-1))
            event = number + 1 + block.size
            end = int(times["end"][steps[-1]])
            pieces.append(_row("EPOCH_COMPLETED", number, epoch, steps[-1] + 1, end, last))
            pieces.append(_row("CheckpointSaver", event, epoch, steps[-1] + 1, end, last))
            number = event + 2
        rows = np.concatenate(pieces)
        killed = self.ends.get(rank)
        if killed is not None:
            rows = rows[rows["start"] <= THEN + killed]
            rows["end"][rows["end"] > THEN + killed] = 0
        return rows


def _row(name: str, parent: int, epoch: int, iteration: int, start: int, end: int) -> Rows:
    row = np.zeros(1, ROW_DTYPE)
    id = next(id for id, (_, text) in enumerate(NAMES) if text == name)
    row[0] = (parent, id, 0, 0, epoch, iteration, THEN + end, THEN + start)
    return row
