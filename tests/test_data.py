"""How batches are made is recorded, exactly, in every kind of loader; and none can tell.

Each scenario runs untraced and traced: batches, random streams, exceptions and warnings are equal.
"""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import (
    CacheDataset,
    PersistentDataset,
    SmartCacheDataset,
    ThreadDataLoader,
)
from monai.data import Dataset as MonaiDataset
from monai.transforms import (
    Compose,
    EnsureTyped,
    OneOf,
    RandFlipd,
    RandomOrder,
    Resized,
    SomeOf,
    SpatialPadd,
)
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split

from tests.support import light
from tests.support.light import Light
from tests.support.pipelines import (
    Batched,
    Crop,
    Flip,
    Load,
    Map,
    Mark,
    Program,
    Recorded,
    Stream,
    digest,
    items,
    record,
)
from tests.support.trainings import seed

COUNT = 10


def both(program: Program) -> Compose:
    """A deterministic and a random transform."""
    return Compose([Load(program.log), Crop(program.log)])


def dataset(program: Program, count: int = COUNT) -> Map:
    return Map(count, both(program))


def run(program: Program, loader: Any, epochs: int = 2, **how: Any) -> None:
    program.engine().run(loader, max_epochs=epochs, **how)


def check(recorded: Recorded, samples: int, batches: int, *, composed: int | None = None) -> None:
    """So many samples and batches; each transform as often as it was called; links are right."""
    spans = recorded.counts()
    called = recorded.called()
    assert {name: spans[name] for name in called} == dict(called)
    assert spans["Compose"] == (samples if composed is None else composed)
    assert recorded.counts("sample") == Counter({"sample": samples} if samples else {})
    assert recorded.counts("batch") == Counter(batch=batches)
    assert sum(recorded.counts("collate").values()) == batches
    recorded.check_links()
    for each in recorded.data:
        above = {"batch": ("",), "sample": ("batch",), "collate": ("batch",),
                 "transform": ("sample", "transform")}  # fmt: skip
        for i, parent in enumerate(each.table.parents().tolist()):
            kind = "" if parent < 0 else each.table.name(parent).kind
            assert kind in above[each.table.name(i).kind]


@pytest.mark.parametrize(
    ("workers", "persistent"), [(0, False), (1, False), (3, False), (1, True), (3, True)]
)
def test_a_map_data_set(workers: int, persistent: bool) -> None:
    """Two epochs, of which the last batch is not whole; as many journals as workers."""
    recorded = record(
        lambda p: run(p, DataLoader(dataset(p), 4, shuffle=True, num_workers=workers,
                                    persistent_workers=persistent))
    )  # fmt: skip
    check(recorded, 2 * COUNT, 2 * 3)
    assert len(recorded.data) == max(1, workers)
    for each in recorded.data:
        assert len(each.table.meta.passes) == 2
        assert {one.dataset for one in each.table.meta.passes.values()} == {"Map"}


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_begin_anew(method: str) -> None:
    """Spawned ones load firetrace themselves."""
    recorded = record(
        lambda p: run(p, DataLoader(Light(6, light.Mark(p.log)), 3, num_workers=1,
                                    multiprocessing_context=method), epochs=1)
    )  # fmt: skip
    check(recorded, 6, 2, composed=0)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_iterable_data_set(workers: int) -> None:
    """What is asked for when there is no more is no batch and no sample."""
    recorded = record(
        lambda p: run(p, DataLoader(Stream(8, both(p)), 2, num_workers=workers), epochs=2)
    )
    check(recorded, 16, 8)


def test_what_an_iterable_data_set_drops() -> None:
    """Samples of a batch that is not whole were made, for nobody."""
    recorded = record(lambda p: run(p, DataLoader(Stream(7, both(p)), 3, drop_last=True), epochs=1))
    assert recorded.counts("batch") == Counter(batch=2)
    assert recorded.counts("sample") == Counter(sample=7)
    recorded.check_links()


def cached(p: Program) -> Any:
    return CacheDataset(items(COUNT), both(p), num_workers=2, progress=False)


def persisted(p: Program) -> Any:
    return PersistentDataset(items(COUNT), both(p), cache_dir=p.stage.folder / "cache")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [cached, persisted])
def test_caches(make: Any, workers: int) -> None:
    """What comes from a cache is not called again; what fills it while an engine runs is seen."""
    recorded = record(lambda p: run(p, DataLoader(make(p), 4, num_workers=workers)))
    spans, called = recorded.counts(), recorded.called()
    assert called["Crop"] == 2 * COUNT == spans["Crop"]
    assert called["Load"] == COUNT
    assert spans["Load"] == (0 if make is cached else COUNT)  # a cache is filled before the run
    assert recorded.counts("sample") == Counter(sample=2 * COUNT)
    recorded.check_links()


def test_a_smart_cache() -> None:
    """Its replacements are made in threads, outside of every batch."""

    def scenario(p: Program) -> None:
        data = SmartCacheDataset(items(COUNT), both(p), replace_rate=0.5, cache_num=4,
                                 num_init_workers=1, num_replace_workers=1,
                                 progress=False)  # fmt: skip
        engine = p.engine()
        engine.add_event_handler(Events.STARTED, lambda: data.start())
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: data.update_cache())
        engine.run(DataLoader(data, 2), max_epochs=3)
        data.shutdown()

    recorded = record(scenario)
    assert recorded.counts("sample") == Counter(sample=12)
    outside = recorded.called()["Load"] - 4  # what was there from the start
    assert 0 < recorded.counts()["Load"] <= outside
    recorded.check_links()


def test_a_thread_that_reads_ahead() -> None:
    """MONAI's ``ThreadDataLoader``: its batches are made in a thread of its own."""
    recorded = record(lambda p: run(p, ThreadDataLoader(dataset(p), batch_size=4)))
    check(recorded, 2 * COUNT, 6)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_are_threads(workers: int) -> None:
    """They write one journal, each in its lane."""

    def scenario(p: Program) -> None:
        loader = ThreadDataLoader(Map(8, Compose([Mark(p.log)])), batch_size=2,
                                  num_workers=workers, use_thread_workers=True)  # fmt: skip
        run(p, loader, epochs=1)
        seed()  # each of the threads has done that, in any order

    recorded = record(scenario)
    check(recorded, 8, 4)
    assert len(recorded.data) == 1


def test_many_threads_need_no_more_than_there_are_at_a_time() -> None:
    """A loader's thread of each epoch takes the place of the one before: lanes, pens, windows."""
    recorded = record(
        lambda p: run(p, ThreadDataLoader(Map(2, Compose([Crop(p.log)])), batch_size=2), epochs=40)
    )
    (data,) = recorded.data
    assert len(data.table.meta.lanes) == 1
    assert (recorded.folder / "rank0.1.data0.rows").parent.name == "journal"
    assert int(data.table.numbers.max()) < 512
    recorded.check_links()


def test_lazy_transforms() -> None:
    """What they put off is a span where it is done; the batches are the same."""

    def scenario(p: Program) -> None:
        lazy = Compose([Crop(p.log), EnsureTyped("image"), RandFlipd("image", 0.5, 0),
                        SpatialPadd("image", (6, 6, 6)), Resized("image", (8, 8, 8))],
                       lazy=True)  # fmt: skip
        lazy.set_random_state(3)
        volumes = [{"id": id, "image": torch.rand(1, 4, 4, 4)} for id in range(6)]
        run(p, DataLoader(MonaiDataset(volumes, lazy), 2), epochs=1)

    spans = record(scenario).counts()
    assert spans["Resized"] == spans["RandFlipd"] == spans["Compose"] == spans["Crop"] == 6
    assert spans["apply_pending"] >= 6


@pytest.mark.parametrize(
    ("kind", "inner"), [(Compose, 2), (OneOf, 1), (RandomOrder, 2), (SomeOf, None)]
)
def test_nested_transforms(kind: Any, inner: int | None) -> None:
    """Whichever were chosen, each call is a span within that of its chooser."""

    def scenario(p: Program) -> None:
        more = {"num_transforms": (1, 2)} if kind is SomeOf else {}
        several = kind([Load(p.log), Flip(p.log)], **more)
        if kind is not Compose:
            several.set_random_state(3)
        run(p, DataLoader(Map(COUNT, Compose([several, Crop(p.log)])), 5, num_workers=1), epochs=1)

    recorded = record(scenario)
    check(recorded, COUNT, 2, composed=2 * COUNT if kind is Compose else COUNT)
    if kind is not Compose:
        assert recorded.counts()[kind.__name__] == COUNT
    if inner is not None:
        assert sum(recorded.counts()[name] for name in ("Load", "Flip")) == inner * COUNT


@pytest.mark.parametrize("how", ["subset", "concat", "split", "nested"])
def test_data_sets_of_data_sets(how: str) -> None:
    """A sample is one span, whichever of them is asked."""

    def scenario(p: Program) -> None:
        one, other = dataset(p, 6), dataset(p, 4)
        ways: dict[str, Callable[[], Any]] = {
            "subset": lambda: Subset(Map(12, one.transform), range(0, 12, 2)),
            "concat": lambda: ConcatDataset([one, other]),
            "split": lambda: random_split(Map(12, one.transform), [6, 6])[1],
            "nested": lambda: ConcatDataset([Subset(one, [5, 3]), Subset(other, [0])]),
        }
        run(p, DataLoader(ways[how](), 2, num_workers=1))

    samples = {"concat": 10, "nested": 3}.get(how, 6)
    check(record(scenario), 2 * samples, 2 * -(-samples // 2))


def test_a_whole_batch_at_once() -> None:
    """``__getitems__``: its samples are seen where it asks for them one by one."""
    check(record(lambda p: run(p, DataLoader(Batched(8, both(p)), 4))), 16, 4)


def as_it_is(samples: list[Any]) -> list[Any]:
    return samples


def test_a_collate_function_of_one_s_own() -> None:
    """By its name."""
    recorded = record(lambda p: run(p, DataLoader(dataset(p), 5, collate_fn=as_it_is)))
    check(recorded, 2 * COUNT, 4)
    assert recorded.counts("collate") == Counter(as_it_is=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_batches(workers: int) -> None:
    """With ``batch_size=None`` each sample is one."""
    recorded = record(lambda p: run(p, DataLoader(dataset(p, 4), None, num_workers=workers)))
    check(recorded, 8, 8)


def test_transforms_that_are_functions() -> None:
    """They have no class of the program's and are no spans; the sample is."""

    def scenario(p: Program) -> None:
        crop = Crop(p.log)
        run(p, DataLoader(Map(4, lambda item: {**crop(item), "more": 1}), 2), epochs=1)

    recorded = record(scenario)
    assert not recorded.counts()
    assert recorded.counts("sample") == Counter(sample=4)
    recorded.check_links()


class Static:
    """Its call takes no self."""

    @staticmethod
    def __call__(data: Any) -> Any:
        return dict(data)


class Adds:
    def __call__(self, data: Any) -> Any:
        return {**data, "more": 2}


class Borrowed:
    """Its call is an object's, which gets no self either."""

    __call__ = Adds()


class Meta(type):
    def __setattr__(cls, name: str, value: Any) -> None:
        raise RuntimeError("not mine")

    def __getitem__(cls, index: int) -> int:
        return index


class Resists(metaclass=Meta):
    """Does not want to be changed."""

    __slots__ = ()

    def __call__(self, data: Any) -> Any:
        return dict(data)


class Slotted:
    """Has neither a dictionary nor weak references."""

    __slots__ = ("log",)

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, data: Any) -> Any:
        return dict(data)


def test_classes_that_resist() -> None:
    """They are called as ever, and the others are recorded."""

    def scenario(p: Program) -> None:
        odd = [Static(), Borrowed(), Resists(), Slotted(p.log)]
        run(p, DataLoader(Map(4, Compose([*odd, Crop(p.log)])), 2), epochs=1)

    recorded = record(scenario)
    assert recorded.counts() == Counter(Compose=4, Crop=4, Slotted=4)


# Whose batches


def test_a_validation_within() -> None:
    """Each has its own loader; both begin again and again."""
    for workers in (0, 1):

        def scenario(p: Program, workers: int = workers) -> None:
            evaluator = p.engine("evaluator")
            loader = DataLoader(dataset(p, 4), 2, num_workers=workers)
            trainer = p.engine("trainer")
            trainer.add_event_handler(
                Events.ITERATION_COMPLETED(every=2), lambda: evaluator.run(loader)
            )
            trainer.run(DataLoader(dataset(p, 8), 2, num_workers=workers), max_epochs=2)

        check(record(scenario), 16 + 4 * 4, 8 + 4 * 2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epoch_length", [2, 3, 7])
def test_epochs_of_another_length(epoch_length: int, workers: int) -> None:
    """The loader begins anew within an epoch, or is not used up by one."""
    recorded = record(
        lambda p: run(p, DataLoader(dataset(p), 2, shuffle=True, num_workers=workers), epochs=3,
                      epoch_length=epoch_length)
    )  # fmt: skip
    recorded.check_links()


@pytest.mark.parametrize("workers", [0, 2])
def test_runs_again_after_all_kinds_of_ends(workers: int) -> None:
    """Run twice, terminated, failed, interrupted and resumed."""

    def scenario(p: Program) -> None:
        def act(engine: Engine) -> None:
            if acts and engine.state.iteration == 2:
                acts.pop()(engine)

        def fail(engine: Engine) -> None:
            raise ValueError("no luck")

        acts: list[Callable[[Engine], Any]]
        acts = [lambda e: e.interrupt(), fail, lambda e: e.terminate()]
        trainer = p.engine(then=act)
        loader = DataLoader(dataset(p), 2, shuffle=True, num_workers=workers)
        for _ in range(5):
            p.stage.attempt(lambda: trainer.run(loader, max_epochs=2).iteration)

    record(scenario).check_links()


def test_engines_in_several_threads() -> None:
    """What one thread's loader makes is linked to the engine of that thread."""
    import threading

    def scenario(p: Program) -> None:
        engines = [p.engine(f"engine{n}") for n in range(2)]
        loaders = [DataLoader(dataset(p, 8), 2, num_workers=1) for _ in engines]
        threads = [
            threading.Thread(target=engine.run, args=(loader, 3), name=f"engine{n}")
            for n, (engine, loader) in enumerate(zip(engines, loaders, strict=True))
        ]
        torch.manual_seed(3)  # the iterators draw their seeds in some order
        for thread in threads:
            thread.start()
            thread.join()

    recorded = record(scenario)
    assert recorded.counts("batch") == Counter(batch=24)
    recorded.check_links()


# What the program can see


def test_objects_and_classes_are_as_before() -> None:
    """Attributes, classes, pickles and copies, while it runs and after it."""
    classes = (Load, Crop, Compose, Map, Dataset, MonaiDataset)
    before = [
        {name: value for name, value in vars(each).items() if name != "__slotnames__"}
        for each in classes
    ]

    def scenario(p: Program) -> None:
        data = dataset(p)
        loader = DataLoader(data, 5)

        def look(engine: Engine) -> None:
            state = {k: (type(v), len(vars(v)) if hasattr(v, "__dict__") else 0)
                     for k, v in vars(data).items()}  # fmt: skip
            copied = pickle.loads(pickle.dumps(data))
            twin = copy.deepcopy(data)
            torch.manual_seed(1)
            p.stage.note((str(state), digest(copied[0]), digest(twin[1]), type(copied).__name__))
            p.stage.note((data.transform.__call__.__name__, Map.__getitem__.__qualname__))

        p.engine(then=look).run(loader)

    record(scenario)
    for each, attributes in zip(classes, before, strict=True):
        now = {name: value for name, value in vars(each).items() if name != "__slotnames__"}
        assert now == attributes  # (that one is of ``copyreg``)
    import torch.utils.data._utils.worker as worker
    from monai.transforms.lazy import functional
    from torch.utils.data import _DatasetKind

    for function in (worker._worker_loop, _DatasetKind.create_fetcher, functional.apply_pending):
        assert type(function).__name__ == "function"
        assert not hasattr(function, "__wrapped__")
