"""Reads the journal of one rank of many: of its steps only when each part of them began and ended.

No file stays open between two polls: a thousand ranks have more files than a process may open.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firetrace.tracer.errors import FiretraceError, JournalError
from firetrace.tracer.journal import ROW_DTYPE, Flag, Header, Rows
from firetrace.tracer.meta import Meta
from firetrace.tracer.pages import are_spans
from firetrace.tracer.reader import JournalReader, Numbers, Position
from firetrace.tracer.run import attempt_of, rank_of
from firetrace.tracer.table import UNKNOWN
from firetrace.tui.model.columns import Column

#: Of a step, times in Unix ns of the journal. What a step has not is as if it took no time.
STEP = np.dtype(
    [
        ("key", "<i8"),  # the same on every rank: the how-manieth run, and the iteration in it
        ("previous", "<i8"),  # key of the step that was recorded before this one; -1: none
        ("number", "<u4"),  # of its row
        ("previous_number", "<u4"),
        ("epoch", "<u4"),
        ("optimizer", "<f4"),  # what the optimizer took between ``before`` and this step, ns
        ("before", "<i8"),  # end of the previous step's backward, at which ranks meet; 0: none
        ("gone", "<i8"),  # end of the previous step; 0: none
        ("start", "<i8"),
        ("data", "<i8"),  # end of get_batch
        ("ready", "<i8"),  # start of backward; without one, end of the process function
        ("end", "<i8"),
    ]
)
RUN_SHIFT = 32  # of a key; the iteration is what is below
ITERATION_MASK = 2**RUN_SHIFT - 1
#: Parts that wait for the end of their step; a step has few, a damaged journal may have many.
MOST_WAITING = 4096
#: Windows that are read at once: 131,072 rows, 4 MiB.
WINDOWS = 16
#: The end of what was read: the last time in it is when the rank was last heard of.
TAIL = 64
#: Rows of a time that is further than this from the journal's are damaged.
FAR_NS = 86_400 * 10**9
DEEPEST = 100
#: Codes of the rows that are looked at.
STEPS, DATA, BACKWARD, OPTIMIZER, COMPLETED, ITERATION, RUN = range(1, 8)
#: Where in a step a rank is, in the order of time; it waits for others in the third.
STAGES = ("data", "forward", "backward", "after")
Codes = npt.NDArray[np.uint8]
Selected = tuple[Rows, Numbers, Codes]


@dataclass(frozen=True)
class Place:
    """Where a rank is, or was when it died."""

    name: str  #: of the innermost open span; raw text of the trace: not safe to print
    engine: str
    epoch: int
    iteration: int
    key: int  #: of the step; as in ``STEP``
    stage: str  #: one of ``STAGES``
    since_ns: int  #: when that span began, Unix ns of the journal


class RankSteps:
    """The steps of one engine in one thread, as they ended."""

    def __init__(self) -> None:
        self.column = Column(STEP)
        self.count = 0  #: steps that there were, kept or not
        self._waiting: Selected | None = None  # parts of a step that has not ended
        self._last = (-1, 0, 0.0, 0, 0)  # key, number, optimizer, end of backward, end

    @property
    def values(self) -> npt.NDArray[np.void]:
        """Those that are kept, dtype ``STEP``, in the order of the file."""
        return self.column.values

    @property
    def last_key(self) -> int:
        """Of the step that ended last; -1: none."""
        return self._last[0]

    def in_step(self, number: int) -> set[int]:
        """Codes of what has ended in the step with this row number, which has not ended."""
        if self._waiting is None:
            return set()
        return set(self._waiting[2][self._waiting[1] > number].tolist())

    def add(self, found: Selected, runs: list[int], every: int) -> None:
        """Take in rows that have ended; ``runs``: numbers of the lane's runs, rising."""
        rows, numbers, codes = found
        if self._waiting is not None:
            rows = np.concatenate([self._waiting[0], rows])
            numbers = np.concatenate([self._waiting[1], numbers])
            codes = np.concatenate([self._waiting[2], codes])
        if not (numbers[1:] > numbers[:-1]).all():
            order = np.argsort(numbers, kind="stable")
            rows, numbers, codes = rows[order], numbers[order], codes[order]
        are_steps = codes == STEPS
        steps, at = rows[are_steps], numbers[are_steps]
        if not len(steps):
            last = slice(-MOST_WAITING, None)
            self._waiting = rows[last], numbers[last], codes[last]
            return
        later = numbers > at[-1]
        self._waiting = rows[later], numbers[later], codes[later]
        self._assemble(steps, at, rows[~are_steps], codes[~are_steps], runs, every)

    def _assemble(
        self, steps: Rows, numbers: Numbers, parts: Rows, codes: Codes, runs: list[int], every: int
    ) -> None:
        count = len(steps)
        by_time = np.argsort(steps["start"], kind="stable")
        place = np.searchsorted(steps["start"][by_time], parts["start"], "right") - 1
        place = by_time[np.maximum(place, 0)]
        mine = (parts["start"] >= steps["start"][place]) & (parts["end"] <= steps["end"][place])
        mine &= parts["iteration"] == steps["iteration"][place]
        parts, codes, place = parts[mine], codes[mine], place[mine]

        def of(code: int) -> tuple[Rows, npt.NDArray[np.int64]]:
            which = np.flatnonzero(codes == code)
            return parts[which], place[which]

        new = np.zeros(count, STEP)
        new["key"] = steps["iteration"]
        new["key"] |= np.searchsorted(runs, numbers, "right").astype(np.int64) << RUN_SHIFT
        new["number"], new["epoch"] = numbers, steps["epoch"]
        new["start"] = new["data"] = steps["start"]
        new["ready"] = new["end"] = steps["end"]
        found, at = of(DATA)
        new["data"][at] = found["end"]
        found, at = of(ITERATION)
        new["ready"][at] = found["end"]
        found, at = of(COMPLETED)
        new["ready"][at] = found["start"]
        left = new["ready"].copy()
        found, at = of(BACKWARD)
        new["ready"][at[::-1]] = found["start"][::-1]  # of several the first: there ranks meet
        left[at] = found["end"]
        found, at = of(OPTIMIZER)
        optimizer = np.bincount(at, found["end"] - found["start"], count)

        key, number, took, before, gone = self._last
        for name, first, values in (
            ("previous", key, new["key"]), ("previous_number", number, new["number"]),
            ("optimizer", took, optimizer), ("before", before, left), ("gone", gone, new["end"]),
        ):  # fmt: skip
            new[name][0], new[name][1:] = first, values[:-1]
        self._last = (
            int(new["key"][-1]), int(numbers[-1]), float(optimizer[-1]), int(left[-1]),
            int(new["end"][-1]),
        )  # fmt: skip
        self.count += count
        # What was cut, or recorded from its middle on, has other times than a step has.
        whole = steps["flags"] & (Flag.CUT | Flag.ERROR | Flag.LATE) == 0
        self.column.append(_every(new[whole], every))

    def thin(self, every: int) -> None:
        """Keep only each so many-th step, the same on every rank."""
        kept, self.column = _every(self.values, every), Column(STEP)
        self.column.append(kept)


def _every(steps: npt.NDArray[np.void], every: int) -> npt.NDArray[np.void]:
    return steps if every == 1 else steps[steps["key"] % every == 0]


class RankReader:
    """Reads the journal of one rank; ``poll`` brings everything up to date.

    Args:
        path: of the rows file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rank = rank_of(path) or 0
        self.attempt = attempt_of(path)
        self.attempts = 1  #: of this rank, this one included
        self.header: Header | None = None  #: once it has been read
        self.meta = Meta(path.with_suffix(".meta.jsonl"))  #: what was said; not what of rows
        self.lanes: dict[int, RankSteps] = {}  #: of engines that run on their own
        self.every = 1  #: only each so many-th step is kept
        self.alive: bool | None = None
        self.last_ns = 0  #: the last time in it, Unix ns of the journal
        self.trouble = ""  #: why it could not be read
        self.exception = ""  #: the last one
        self._runs: dict[int, dict[int, int]] = {}  # by lane: numbers and flags of root runs
        self._open: tuple[Rows, Numbers] = np.empty(0, ROW_DTYPE), np.empty(0, np.uint32)
        self._failed: np.void | None = None  # the last row with an error
        self._position: Position | None = None
        self._codes: Codes = np.zeros(2**16, np.uint8)
        self._known = 0  # how many names ``_codes`` is of
        self._seen: tuple[int, ...] = ()

    def poll(self) -> bool:
        """Read what is new; return whether anything was. What goes wrong is in ``trouble``."""
        seen = self._stamp()
        if self.alive is False and seen == self._seen:
            return False
        try:
            with JournalReader(self.path) as reader:
                changed = self._read(reader)
            self.trouble = ""
        except (FiretraceError, OSError) as error:
            changed = self.trouble != str(error)
            self.trouble = str(error)
        self._seen = seen
        return changed

    def _stamp(self) -> tuple[int, ...]:
        found = []
        for path in (self.path, self.meta.path):
            try:
                status = os.stat(path)
                found += [status.st_size, status.st_mtime_ns, status.st_ino]
            except OSError:
                found.append(0)
        return tuple(found)

    def _read(self, reader: JournalReader) -> bool:
        if self.header is not None and self.header.seed != reader.header.seed:
            raise JournalError(f"{self.path}: is another journal than it was")
        self.header = reader.header
        if self._position is not None:
            reader.go_to(self._position)
        _go_on(self.meta, reader.meta)
        before, changed = (self.alive, reader.meta.read_bytes), False
        while True:
            changed |= reader.poll(WINDOWS)
            self._learn_names(reader.meta)
            rows, numbers = reader.take()
            running = reader.rows["end"] == 0
            self._open = _sane(reader, reader.rows[running], reader.numbers[running])
            self._take(reader, rows, numbers)
            if not reader.behind:
                break
        for number in reader.meta.exceptions.since(before[1]):
            said = reader.meta.exceptions.get(number) or {}
            self.exception = f"{said.get('exception.type', '?')}"[:200]
        self._position = reader.position
        self.alive = reader.alive()
        _go_on(reader.meta, self.meta)
        return changed or before != (self.alive, self.meta.read_bytes)

    def _learn_names(self, meta: Meta) -> None:
        if len(meta.names) == self._known:
            return
        self._known = len(meta.names)
        for id, name in meta.names.items():
            self._codes[id] = _code(name.kind, name.text)

    def _take(self, reader: JournalReader, rows: Rows, numbers: Numbers) -> None:
        opened, at = self._open
        last = _sane(reader, rows[-TAIL:], numbers[-TAIL:])[0]
        times = (self.last_ns, last["end"].max(initial=0), opened["start"].max(initial=0))
        self.last_ns = int(max(times))
        wanted = np.flatnonzero(self._codes[rows["name"]])
        failed = np.flatnonzero(rows["flags"] & Flag.ERROR)[-1:]
        for row in _sane(reader, rows[failed], numbers[failed])[0]:
            self._failed = row
        rows, numbers = _sane(reader, rows[wanted], numbers[wanted])
        for more, numbers_of in ((opened, at), (rows, numbers)):
            roots = (self._codes[more["name"]] == RUN) & (more["parent"] == 0)
            for row, number in zip(more[roots], numbers_of[roots].tolist(), strict=True):
                open_bit = 0 if row["end"] else Flag.GUESS  # a run is never a guess
                flags = int(row["flags"]) & ~Flag.GUESS | open_bit
                self._runs.setdefault(int(row["lane"]), {})[number] = flags
        codes = self._codes[rows["name"]]
        for lane in np.flatnonzero(np.bincount(rows["lane"], minlength=1)).tolist():
            if lane in self._runs:
                mine = (rows["lane"] == lane) & (codes != RUN)
                steps = self.lanes.setdefault(lane, RankSteps())
                runs = sorted(self._runs[lane])
                steps.add((rows[mine], numbers[mine], codes[mine]), runs, self.every)

    def thin(self, every: int) -> None:
        """Keep only each so many-th step from now on, and of those before."""
        self.every = every
        for steps in self.lanes.values():
            steps.thin(every)

    def lane_of(self, engine: str) -> int | None:
        """The lane of an engine; where there is none of this name, the one with most steps."""
        if not self._runs:
            return None
        most = {i: self.lanes[i].count if i in self.lanes else 0 for i in self._runs}
        return max(most, key=lambda i: (self.meta.lane(i).engine == engine, most[i], -i))

    def steps(self, engine: str) -> RankSteps:
        """The steps of an engine; see ``lane_of``."""
        lane = self.lane_of(engine)
        return self.lanes.get(lane, RankSteps()) if lane is not None else RankSteps()

    def state(self, engine: str) -> str:
        """What has become of it: running, finished, ended, died, unknown, empty, or unreadable."""
        if self.header is None:
            return "unreadable"
        lane = self.lane_of(engine)
        if lane is None:
            return "running" if self.alive else "empty"
        runs = self._runs[lane]
        last = runs[max(runs)]
        if last & Flag.GUESS:
            return {True: "running", False: "died", None: "unknown"}[self.alive]
        if last & Flag.ERROR:
            return "failed"
        return "ended" if last & Flag.CUT else "finished"

    def place(self, engine: str) -> Place | None:
        """Where it is now, or was when it died or failed; None where nothing is open."""
        lane = self.lane_of(engine)
        if lane is None:
            return None
        steps, key = self.steps(engine), len(self._runs[lane]) << RUN_SHIFT
        if self.state(engine) == "failed" and self._failed is not None:
            row = self._failed
            code = int(self._codes[row["name"]])
            stage = {DATA: 0, BACKWARD: 2, OPTIMIZER: 3}.get(code, 1)
            return self._place(row, row, key | int(row["iteration"]), stage)
        rows, chain = self._open[0], self._chain(lane)
        if not chain:
            return None
        mine = [at for at in chain if rows["lane"][at] == lane]
        inner = {int(self._codes[rows["name"][at]]): at for at in mine}
        step = inner.get(STEPS)
        if step is None:  # between two steps
            key = max(key | int(rows["iteration"][mine[-1]]), steps.last_key)
            return self._place(rows[mine[-1]], rows[chain[-1]], key, 3)
        ended = steps.in_step(int(self._open[1][step]))
        if BACKWARD in inner:
            stage = 2
        elif BACKWARD in ended or COMPLETED in inner:
            stage = 3
        else:
            stage = 1 if DATA in ended or ITERATION in inner else 0
        key |= int(rows["iteration"][step])
        return self._place(rows[step], rows[chain[-1]], key, stage)

    def _chain(self, lane: int) -> list[int]:
        """Of what is open the places of a lane's run and what is inside, to the innermost."""
        rows, numbers = self._open
        roots = np.flatnonzero((rows["parent"] == 0) & (rows["lane"] == lane))
        chain: list[int] = roots[-1:].tolist()
        while chain and len(chain) < DEEPEST:
            inside = np.flatnonzero(rows["parent"] == numbers[chain[-1]])
            if not len(inside):
                break
            chain.append(int(inside[-1]))
        return chain

    def _place(self, within: np.void, innermost: np.void, key: int, stage: int) -> Place:
        name = self.meta.names.get(int(innermost["name"]), UNKNOWN)
        return Place(
            name.text, self.meta.lane(int(innermost["lane"])).engine, int(within["epoch"]),
            key & ITERATION_MASK, key, STAGES[stage], int(innermost["start"]),
        )  # fmt: skip


def _sane(reader: JournalReader, rows: Rows, numbers: Numbers) -> tuple[Rows, Numbers]:
    """The rows that are spans, and of a time at which there was this journal."""
    keep = are_spans(rows, numbers)
    since, until = reader.header.wall_ns - FAR_NS, reader.now_ns() + FAR_NS
    keep &= (rows["start"] > since) & (rows["end"] < until) & (rows["start"] < until)
    return (rows, numbers) if keep.all() else (rows[keep], numbers[keep])


def _code(kind: str, text: str) -> int:
    if kind in ("phase", "pair", "span"):
        if text == "backward" or text.endswith("_backward"):
            return BACKWARD
        return {"get_batch": DATA, "optimizer": OPTIMIZER}.get(text, 0)
    if kind == "event":
        return COMPLETED if text == "ITERATION_COMPLETED" else 0
    return {"step": STEPS, "iteration": ITERATION, "run": RUN}.get(kind, 0)


def _go_on(before: Meta, after: Meta) -> None:
    """Let one reader of a meta file go on where another was; that one's file may be closed."""
    for name in ("resource", "names", "lanes", "thinned", "offsets", "ended", "stopped",
                 "read_bytes"):  # fmt: skip
        setattr(after, name, getattr(before, name))
