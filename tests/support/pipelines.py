"""Data pipelines that say themselves what they do, to compare with what was recorded of them."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.transforms import RandomizableTrait, Transform
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from firetrace.tracer.aligned import aligned
from firetrace.tracer.journal import Flag, Header
from firetrace.tracer.meta import Loading
from firetrace.tracer.passes import consumers
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.run import data_journals, open_run
from firetrace.tracer.table import Table, read_table
from tests.support.light import say
from tests.support.shape import assert_well_formed
from tests.support.unchanged import Stage, compare


class Told(Transform):
    """A transform that notes each of its calls."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, data: Any) -> Any:
        say(self.log, type(self).__name__, data["id"])
        return dict(data)


class Load(Told):
    """A deterministic transform."""


class Crop(Load, RandomizableTrait):
    """A random one, with which a cache ends, whose base has a ``__call__`` of its own."""

    def __call__(self, data: Any) -> Any:
        return super().__call__(data) | {"random": torch.rand(2)}


class Mark(Told):
    """A deterministic one that, like ``Crop``, says which samples a batch has."""


class Flip(Told, RandomizableTrait):
    """Another random one."""


class Fails(Told):
    """Raises for one sample."""

    def __call__(self, data: Any) -> Any:
        if data["id"] == 3:
            raise LookupError("no [b]luck")
        return super().__call__(data)


def items(count: int) -> list[dict[str, Any]]:
    """Samples, each of which has an id."""
    return [{"id": id, "image": torch.full((1, 4, 4), float(id))} for id in range(count)]


class Map(Dataset[Any]):
    """As a program would write it."""

    def __init__(self, count: int, transform: Any) -> None:
        self.items, self.transform = items(count), transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.items[index])


class Batched(Map):
    """Gives all samples of a batch at once."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


class Stream(IterableDataset[Any]):
    """Each worker has its share of the samples."""

    def __init__(self, count: int, transform: Any) -> None:
        self.items, self.transform = items(count), transform

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info is not None else (0, 1)
        for item in self.items[first::step]:
            yield self.transform(item)


def ids(batch: Any) -> list[int]:
    """The samples that are in a batch."""
    found = batch["id"] if isinstance(batch, dict) else [each["id"] for each in batch]
    return torch.as_tensor(found).reshape(-1).tolist()


def digest(batch: Any) -> str:
    """All that a batch holds, bit for bit."""
    whole = hashlib.sha256()

    def take(value: Any) -> None:
        if isinstance(value, dict):
            for name in sorted(value):
                whole.update(name.encode())
                take(value[name])
        elif isinstance(value, (list, tuple)):
            for each in value:
                take(each)
        else:
            whole.update(torch.as_tensor(value).numpy().tobytes())

    take(batch)
    return whole.hexdigest()


@dataclass
class Use:
    """A batch was used."""

    engine: str
    iteration: int
    ids: list[int]
    monotonic_ns: int


@dataclass
class Data:
    """A data journal."""

    table: Table
    header: Header


@dataclass
class Recorded:
    """What a program did and what was recorded of it."""

    rank: Data
    data: list[Data]
    uses: list[Use]
    calls: list[tuple[int, str, int, str, int]]  #: pid, thread, monotonic ns, name, sample
    folder: Path
    said: list[str] = field(default_factory=list)

    def counts(self, *kinds: str) -> Counter[str]:
        """How many spans have a name, of these kinds."""
        return Counter(
            each.table.name(i).text
            for each in self.data
            for i in range(len(each.table))
            if each.table.name(i).kind in (kinds or ("transform",))
        )

    def called(self) -> Counter[str]:
        """How often the transforms were called that say it."""
        return Counter(name for *_, name, _ in self.calls)

    def batches(self) -> Iterator[tuple[Loading | None, int, list[int]]]:
        """Of each batch who used it, as which iteration, and the samples that were made in it."""
        for each in self.data:
            shift = aligned(each.header, each.table.meta, self.rank.header).offset_ns
            used = consumers(self.rank.table.meta, each.table.meta, shift)
            zero = each.header.wall_ns - each.header.monotonic_ns
            rows = each.table.rows
            several = len({lane.thread for lane in each.table.meta.lanes.values()}) > 1
            for i in each.table.of_kind("batch").tolist():
                start, end, id = int(rows["start"][i]), int(rows["end"][i]), int(rows["epoch"][i])
                thread = each.table.lane(i).thread.replace(" ", "_")
                pid, loading = each.table.meta.passes[id].pid, used.get(id)
                made = [
                    sample for of, by, at, name, sample in self.calls
                    if of == pid and start <= at + zero <= end and name in ("Crop", "Mark")
                    and (not several or by == thread)
                ]  # fmt: skip
                number = int(rows["iteration"][i])
                yield loading, 0 if loading is None else loading.iteration + number, made

    def check_links(self) -> None:
        """Each use of a batch is linked to the one batch in which its samples were made."""
        meta = self.rank.table.meta
        zero = self.rank.header.wall_ns - self.rank.header.monotonic_ns
        found: dict[tuple[Any, int], list[list[int]]] = {}
        for loading, iteration, made in self.batches():
            if loading is not None:
                found.setdefault((loading, iteration), []).append(made)
        assert self.uses
        for use in self.uses:
            loading = max(
                (each for each in meta.loadings if meta.lanes[each.lane].engine == use.engine
                 and each.time_ns <= use.monotonic_ns + zero),
                key=lambda each: each.time_ns,
            )  # fmt: skip
            assert found.get((loading, use.iteration)) == [use.ids], use


class Program:
    """What a scenario is given."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.log = stage.folder / "log"
        self.uses: list[Use] = []

    def engine(self, label: str = "trainer", then: Callable[[Engine], Any] | None = None) -> Engine:
        """An engine that notes which batches it gets."""

        def process(engine: Engine, batch: Any) -> None:
            self.uses.append(Use(label, engine.state.iteration, ids(batch), time.monotonic_ns()))
            self.stage.note((label, engine.state.iteration, ids(batch), digest(batch)))
            if then is not None:
                then(engine)

        process.__qualname__ = label
        made: Engine = self.stage.add(Engine(process), label)
        return made


Scenario = Callable[[Program], Any]


def record(
    scenario: Scenario, said: bool = False, raises: str | None = None, **settings: Any
) -> Recorded:
    """Run a scenario untraced and traced, see that it is the same, and read what was recorded.

    ``said``: whether firetrace may have warned; ``raises``: part of the story of its exception.
    """
    found: list[Recorded] = []

    def program(stage: Stage) -> None:
        of = Program(stage)
        try:
            scenario(of)
        finally:
            if stage.handler is not None:
                stage.close()
                found.append(_read(of))

    seen = compare(program, **{"data": True, **settings})
    assert said or not seen.said, seen.said
    raised = seen.facts["raised"]
    assert raised is None if raises is None else raises in str(raised), raised
    found[0].said = seen.said
    return found[0]


def read_data(path: Path) -> Data:
    """A journal that is well formed and in which nothing was left open."""
    with JournalReader(path) as reader:
        header = reader.header
    table = read_table(path)
    assert_well_formed(table)
    assert not table.damaged
    assert not table.meta.damaged
    return Data(table, header)


def _read(program: Program) -> Recorded:
    folder = program.stage.folder / "journal"
    main = open_run(folder).newest
    data = [read_data(path) for path in data_journals(main)]
    for each in data:
        left = each.table.open_positions().tolist()
        assert not left, [each.table.name(i) for i in left]
        for i in range(len(each.table)):
            assert not each.table.rows["flags"][i] & Flag.VOID
    lines = program.log.read_text().splitlines() if program.log.exists() else []
    calls = [
        (int(pid), thread, int(at), name, int(id))
        for pid, thread, at, name, id in (line.split() for line in lines)
    ]
    return Recorded(read_data(main), data, program.uses, calls, folder)


def engine() -> Engine:
    """One that does nothing with its batches."""
    return Engine(lambda engine, batch: None)
