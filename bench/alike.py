"""A run of any number of ranks from the recorded journal of one, as if they had trained together.

Every rank gets the rows of that journal with times of its own: each step's data, forward, backward
and optimizer take as long as those of a training would, a little different on every rank and in
every step, and all leave a step's backward together, as an all-reduce makes them. What else there
is in a step is stretched with what it lies in, so no reader can tell the journals from recorded
ones. One rank is slow in its data, for which the others wait.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firetrace.tracer.journal import FIRST_ROW, HEADER_BYTES, ROW_DTYPE, Flag, Header, Rows

SLOW_RANK = 7
A_HOST = 8  #: ranks
CLOCK_ERROR_NS = 20_000  #: with which the clocks of hosts are known
SEED = 1
MS = 10**6
#: What the parts of a step take: the data, forward and loss, backward, optimizer, and until the
#: next step.
PARTS = (10 * MS, 30 * MS, 40 * MS, 3 * MS, MS // 2)
SLOWER_NS, SPREAD = 15 * MS, 0.01
Times = npt.NDArray[np.int64]


def as_ranks(journal: str | Path, folder: Path, ranks: int) -> str:
    """Write the journals of so many ranks; return the run's directory, which is made.

    Args:
        journal: the rows file of a recorded one that was closed: one engine, one thread, in each
            step one backward and one optimizer.
        folder: the new run's directory.
        ranks: how many; more than ``SLOW_RANK``.
    """
    source = Path(journal)
    data, meta = source.read_bytes(), source.with_suffix(".meta.jsonl")
    header = Header.unpack(data[:HEADER_BYTES], source)
    rows = np.frombuffer(data, ROW_DTYPE)[FIRST_ROW:]
    rows = rows[: int(np.flatnonzero(rows["start"])[-1]) + 1]
    lines = [json.loads(line) for line in meta.open("rb")]
    before = _boundaries(rows, lines)
    after = _together(ranks, before.shape[0])
    began = header.wall_ns - int(after.max())  # a reader waits with what is of the future
    folder.mkdir(parents=True)
    seeds = [(1 + rank).to_bytes(16, "little") for rank in range(ranks)]
    for rank, seed in enumerate(seeds):
        host = f"node{rank // A_HOST}"
        own = replace(
            header, wall_ns=began - MS, seed=seed, pid=1000 + rank, host=host, boot_id=host
        )
        move = _Move(before, began + after[rank])
        path = folder / f"rank{rank}.1.rows"
        path.write_bytes(own.pack() + move.rows(rows).tobytes())
        path.with_suffix(".lock").touch()
        who = {"ignite.rank": rank, "ignite.world_size": ranks, "host.name": host,
               "process.pid": own.pid}  # fmt: skip
        said = [_said(line, who, move) for line in lines]
        if rank >= A_HOST:
            said.append(
                {"type": "offset", "time": began, "offset": 0, "error": CLOCK_ERROR_NS,
                 "to": seeds[0].hex()}
            )  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in said)
        path.with_suffix(".meta.jsonl").write_text(text)
    return str(folder)


def _boundaries(rows: Rows, lines: list[dict[str, Any]]) -> Times:
    """When each step of the recorded journal and its parts began, and the step ended: steps x 6."""
    ids = {(line["kind"], line["name"]): line["id"] for line in lines if line["type"] == "name"}

    def of(kind: str, text: str, column: str) -> Times:
        mine = (rows["name"] == ids[kind, text]) & (rows["start"] != 0)
        found: Times = rows[column][mine]
        return found

    columns = (
        of("step", "step", "start"), of("event", "GET_BATCH_COMPLETED", "start"),
        of("phase", "backward", "start"), of("phase", "backward", "end"),
        of("phase", "optimizer", "end"), of("step", "step", "end"),
    )  # fmt: skip
    return np.stack(columns, axis=1)


def _together(ranks: int, steps: int) -> Times:
    """The same for each rank, ns after the first step's begin: ranks x steps x 6."""
    random = np.random.default_rng(SEED)
    spread = random.normal(1, SPREAD, (ranks, steps, len(PARTS))).clip(0.5, 1.5)
    took = (spread * PARTS).astype(np.int64)
    took[SLOW_RANK, :, 0] += SLOWER_NS
    found = np.zeros((ranks, steps, len(PARTS) + 1), np.int64)
    now = np.zeros(ranks, np.int64)
    for step in range(steps):
        own = found[:, step]
        own[:, 0] = now
        own[:, 1:] = now[:, None] + np.cumsum(took[:, step], axis=1)
        own[:, 3:] += (own[:, 3].max() - own[:, 3])[:, None]
        now = own[:, -1] + MS // 50
    return found


class _Move:
    """From a time of the recorded journal to one of a rank's: in proportion between boundaries."""

    def __init__(self, before: Times, after: Times) -> None:
        self._first, self._began = int(before[0, 0]), int(after[0, 0])
        self._before = (before - self._first).ravel()
        self._after = (after - self._began).ravel()

    def __call__(self, times: npt.ArrayLike) -> Times:
        """What lies before the first boundary or after the last one stays as far from it."""
        given = np.asarray(times, np.int64) - self._first
        within = given.clip(0, self._before[-1])
        moved = np.interp(within, self._before, self._after).astype(np.int64)
        found: Times = moved + (given - within) + self._began
        return found

    def rows(self, rows: Rows) -> Rows:
        """A copy of rows with a rank's times."""
        copy: Rows = rows.copy()
        used = rows["start"] != 0
        ended = used & (rows["end"] != 0) & ((rows["flags"] & Flag.SCALAR) == 0)
        copy["start"][used] = self(rows["start"][used])
        copy["end"][ended] = self(rows["end"][ended])
        return copy


def _said(line: dict[str, Any], who: dict[str, Any], move: _Move) -> dict[str, Any]:
    """A line of the meta file as a rank says it."""
    if line["type"] == "process":
        return {**line, "resource": {**line["resource"], **who}}
    return {**line, "time": int(move(line["time"]))} if "time" in line else line
