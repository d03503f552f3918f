"""Run directories of several processes: ranks, attempts and DataLoader workers, on several hosts.

The journals are written by the recorder's own writer. Times are given by one monotonic clock that
all share; a journal has them as its host's wall clock, which may be wrong, would have told them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from firetrace.exporters.journals import Member, members
from firetrace.tracer.journal import HEADER_BYTES, Flag, Header
from firetrace.tracer.run import open_run
from firetrace.tracer.writer import JournalWriter

MS = 10**6
#: What is the same for all: a step, its fetch, and how long before that begins its batch has been
#: made; of every third it is as long before it ends.
STEP, FETCH, AHEAD = 10 * MS, 3 * MS, 1 * MS


class Journal:
    """Writes a journal.

    Args:
        stem: of its files.
        resource: of the process.
        wrong_ns: how much later it is by this host's wall clock.
        boot_id: of another host; "": of this one.
    """

    def __init__(
        self, stem: Path, resource: dict[str, Any], wrong_ns: int = 0, boot_id: str = ""
    ) -> None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        self.writer = JournalWriter(stem, resource, min_free_bytes=0)
        self.path, self._wrong_ns, self._boot_id = self.writer.path, wrong_ns, boot_id
        #: what is to be added to times of the shared clock to have the journal's
        self.wall_ns = self.writer.wall_ns - self.writer.monotonic_ns + wrong_ns
        self.pen = self.writer.pen()
        self.begun = self.writer.monotonic_ns
        self.times: dict[int, tuple[int, int]] = {}  #: of each row, by the clock that all share
        self.names: dict[int, str] = {}
        self.lanes: dict[int, str] = {}
        self._flags: dict[int, int] = {}
        self._engines: dict[int, str] = {}

    def lane(self, engine: str, key: int) -> int:
        """A lane of the main thread."""
        lane = self.writer.lane(engine, key)
        self._engines[lane] = engine
        return lane

    def span(
        self, above: int, kind: str, text: str, lane: int, numbers: tuple[int, int],
        begin: int, end: int, flags: int = 0,
    ) -> int:  # fmt: skip
        """A span, of which what is inside is still to come; ``end`` 0 leaves it open."""
        name = self.writer.name(kind, text)
        row = self.pen.open(above, name, lane, 0, *numbers, 0, begin + self.wall_ns)
        self.times[row], self.names[row] = (begin, end), text
        self._flags[row], self.lanes[row] = flags, self._engines[lane]
        return row

    def note(self, type: str, time: int, **fields: Any) -> None:
        """A line of the meta file that says something of a time."""
        self.writer.note(type, time=time + self.wall_ns, **fields)

    def close(self) -> None:
        """End all spans, those inside first; the header then has this host's anchor."""
        for row in sorted(self.times, reverse=True):
            end = self.times[row][1]
            if end:
                self.pen.close(row, end + self.wall_ns, self._flags[row])
        self.writer.close()
        data = bytearray(self.path.read_bytes())
        header = Header.unpack(bytes(data[:HEADER_BYTES]), self.path)
        own = replace(
            header, wall_ns=header.wall_ns + self._wrong_ns, boot_id=self._boot_id or header.boot_id
        )
        data[:HEADER_BYTES] = own.pack()
        self.path.write_bytes(data)


@dataclass
class Plan:
    """What a rank does."""

    rank: int = 0
    attempt: int = 1
    world: int = 3
    epochs: int = 2
    steps: int = 6  #: an epoch
    workers: int = 2
    late_ns: int = 0  #: how much later than the others it begins
    wrong_ns: int = 0
    boot_id: str = ""
    slow: tuple[int, ...] = ()  #: iterations that take three times as long
    trainer: str = "Trainer"
    fetches: bool = True
    skip: tuple[int, ...] = ()  #: iterations that were thinned out
    #: a journal of another host with which clocks were compared, and with which error
    compared: tuple[Journal, int] | None = None
    fails: tuple[int, ...] = ()  #: iterations
    spare: int = 2  #: batches that are made and never used, each epoch


@dataclass
class Process:
    """What was written of a rank."""

    journal: Journal
    data: list[Journal] = field(default_factory=list)
    #: by epoch and batch: the number of the batch's row, of the step's and of the fetch's
    used: dict[tuple[int, int], tuple[Journal, int, int, int]] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)  #: rows of the trainer's, by iteration
    evaluations: dict[tuple[int, int], int] = field(default_factory=dict)  #: by epoch, iteration


def write(folder: Path, plan: Plan, begin: int) -> Process:
    """Write the journals of a rank that begins at a time of the shared clock, ns."""
    stem = folder / f"rank{plan.rank}.{plan.attempt}"
    about: dict[str, Any] = {
        "service.name": folder.name, "ignite.run.id": folder.name, "ignite.rank": plan.rank,
        "ignite.world_size": plan.world,
    }  # fmt: skip
    main = Journal(stem, about, plan.wrong_ns, plan.boot_id)
    if plan.compared is not None:
        other, error = plan.compared
        offset = other.wall_ns - main.wall_ns
        for time in (begin, begin + 10 * STEP):  # it has been measured wrong, but not too wrong
            to = other.writer.seed.hex()
            main.note("offset", time, offset=offset + error // 2, error=error, to=to)
    made = Process(main)
    for worker in range(plan.workers):
        about_it = {**about, "ignite.worker": worker}
        name = f"{stem.name}.data{worker}"
        own = Journal(stem.with_name(name), about_it, plan.wrong_ns, plan.boot_id)
        made.data.append(own)
    main.writer.choose_split("step")
    trainer, evaluator = main.lane(plan.trainer, 1), main.lane("Evaluator", 2)
    now = begin + plan.late_ns
    run = main.span(0, "run", "run", trainer, (0, 0), now, 0)
    main.writer.note("run", row=run, max_epochs=plan.epochs, epoch_length=plan.steps)
    iteration = 0
    for epoch in range(1, plan.epochs + 1):
        now += 10
        begun = now
        outer = main.span(run, "epoch", "epoch", trainer, (epoch, iteration), now, 0)
        main.note("loading", now + 20, lane=trainer, iteration=iteration, seed=1000 + epoch)
        now += 6 * MS
        fetched: dict[int, int] = {}
        for batch in range(1, plan.steps + 1):
            iteration += 1
            took = STEP * (3 if iteration in plan.slow else 1)
            numbers = epoch, iteration
            fetched[batch] = now + FETCH
            if iteration not in plan.skip:
                flags = Flag.ERROR if iteration in plan.fails else 0
                step = main.span(outer, "step", "step", trainer, numbers, now, now + took, flags)
                if flags:
                    main.note("exception", now + took, row=step, **{"exception.type": "Bad[b]"})
                fetch = 0
                if plan.fetches:
                    begin = now
                    if batch == 1 and epoch > 1:  # the loader had no more, and began anew
                        tried = now, now + 10
                        main.span(step, "phase", "get_batch", trainer, numbers, *tried)
                        main.span(step, "loader", "loader", trainer, numbers, now + 10, now + 20)
                        begin = now + 20
                    fetch = main.span(
                        step, "phase", "get_batch", trainer, numbers, begin, now + FETCH
                    )
                    inner = now + FETCH + 1, now + took
                    main.span(step, "iteration", "iteration", trainer, numbers, *inner)
                made.steps[iteration] = step
                if made.data:
                    own = made.data[batch % plan.workers]
                    made.used[epoch, batch] = own, 0, step, fetch
            now += took
        _work(plan, made, epoch, begun, fetched)
        now = _evaluate(main, evaluator, outer, epoch, now, made)
        main.times[outer] = begun, now
    main.times[run] = main.times[run][0], now + 10
    for each in (main, *made.data):
        each.close()
    return made


def _work(plan: Plan, made: Process, epoch: int, begun: int, fetched: dict[int, int]) -> None:
    """What the workers do in an epoch."""
    for worker, own in enumerate(made.data):
        lane = own.lane(f"worker {worker}", 7)
        own.note(
            "pass", begun + 100, id=epoch, seed=1000 + epoch, worker=worker, workers=plan.workers,
            dataset="[b]Cases", pid=1,
        )  # fmt: skip
        for batch in range(1, plan.steps + plan.spare + 1):
            if batch % plan.workers != worker:
                continue
            later = (batch - plan.steps) * STEP // 2
            end = fetched.get(batch, max(fetched.values()) + later) - AHEAD
            end -= FETCH if batch % 3 else 0
            start, numbers = end - 4 * MS, (epoch, batch)
            row = own.span(0, "batch", "batch", lane, numbers, start, end)
            for sample in range(2):
                at = start + 100 + sample * MS
                inner = own.span(row, "sample", "sample", lane, numbers, at, at + MS - 10)
                name = "[bold]Load'\"<b>"
                own.span(inner, "transform", name, lane, numbers, at + 10, at + 1000)
            own.span(row, "collate", "collate", lane, numbers, start + 2 * MS + 100, end - 10)
            if (epoch, batch) in made.used:
                journal, _, step, fetch = made.used[epoch, batch]
                made.used[epoch, batch] = journal, row, step, fetch


def _evaluate(
    main: Journal, lane: int, outer: int, epoch: int, now: int, made: Process
) -> int:  # fmt: skip
    """A run of two steps in an event of the trainer's; returns when it has ended."""
    end = now + 8 * MS
    event = main.span(outer, "event", "EPOCH_COMPLETED", 0, (epoch, 0), now, end)
    run = main.span(event, "run", "run", lane, (0, 0), now + 1000, end - 1000)
    main.writer.note("run", row=run, max_epochs=1, epoch_length=2)
    inner = main.span(run, "epoch", "epoch", lane, (1, 0), now + 2000, end - 2000)
    for iteration in (1, 2):
        begin = now + iteration * 3 * MS
        row = main.span(inner, "step", "step", lane, (1, iteration), begin, begin + MS)
        made.evaluations[epoch, iteration] = row
    return end


#: By how much the clock of the rank on another host may be wrong, ns.
ERROR = 12_000


@dataclass
class Made:
    """A run of three ranks, of which one began twice and one is on another host."""

    folder: Path
    processes: dict[str, Process]  #: by how Perfetto calls them

    @property
    def members(self) -> tuple[Member, ...]:
        """Its journals."""
        return members(open_run(self.folder))


def three_ranks(folder: Path) -> Made:
    """Four journals of ranks, two of workers for each; clocks differ by seconds."""
    begin = time.monotonic_ns() + 10**9
    zero = write(folder, Plan(0, slow=(3, 9), fails=(5,)), begin)
    first = write(folder, Plan(1, 1, epochs=1, wrong_ns=5 * 10**9), begin)
    second = write(folder, Plan(1, 2, wrong_ns=5 * 10**9, late_ns=777, skip=(4,)), begin)
    far = Plan(
        2, wrong_ns=-3 * 10**9, boot_id="another", fetches=False, compared=(zero.journal, ERROR)
    )
    return Made(
        folder,
        {
            f"rank 0 {folder.name}": zero,
            f"rank 1 attempt 1 {folder.name}": first,
            f"rank 1 attempt 2 {folder.name}": second,
            f"rank 2 {folder.name} (clock ±12 µs)": write(folder, far, begin),
        },
    )
