"""The data pipeline that is recorded: MONAI's data set and torch's loader, with little to do.

Idle transforms give each sample back as they got it, so whatever a tracer adds is seen against
little more than what MONAI and torch need to call them. MONAI's own work on an image of 64 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from ignite.engine import Engine
from monai.data import Dataset
from monai.transforms import Compose, MapTransform
from torch.utils.data import DataLoader, Sampler

TRANSFORMS = 8  #: of a sample
KEY, SHAPE = "image", (1, 8, 8)


class Order(Sampler[int]):
    """Every sample in turn; calls ``second_epoch`` when that begins.

    So a run can be timed without its first epoch and without a handler, which would be traced.
    """

    def __init__(self, samples: int, second_epoch: Callable[[], None]) -> None:
        self._samples, self._second_epoch = samples, second_epoch
        self._epochs = 0

    def __len__(self) -> int:
        return self._samples

    def __iter__(self) -> Iterator[int]:
        self._epochs += 1
        if self._epochs == 2:
            self._second_epoch()
        return iter(range(self._samples))


def keep(number: int) -> MapTransform:
    """A transform of a class of its own, as those of a real pipeline are."""

    class Keep(MapTransform):
        def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
            kept = dict(data)
            for key in self.keys:
                kept[key] = kept[key]
            return kept

    Keep.__name__ = Keep.__qualname__ = f"Keep{number}d"
    return Keep(KEY)


def of_monai() -> list[MapTransform]:
    """As many of those that MONAI comes with, as they stand in its tutorials."""
    from monai import transforms as t

    return [
        t.EnsureTyped(KEY), t.ScaleIntensityd(KEY), t.NormalizeIntensityd(KEY),
        t.SpatialPadd(KEY, SHAPE[1:]), t.CenterSpatialCropd(KEY, SHAPE[1:]),
        t.RandFlipd(KEY, prob=0.5), t.RandShiftIntensityd(KEY, 0.1, prob=0.5), t.ToTensord(KEY),
    ]  # fmt: skip


def build_loader(
    transforms: str, batch: int, samples: int, workers: int, second_epoch: Callable[[], None]
) -> DataLoader[Any]:
    """A new loader of batches of so many samples.

    Args:
        transforms: that each sample goes through: ``idle``, ``MONAI's``, or ``none``, of which
            MONAI makes a ``Compose`` as well.
        batch: samples in one.
        samples: in an epoch.
        workers: processes; 0: the training makes the batches itself.
        second_epoch: called when that begins.
    """
    own = of_monai() if transforms == "MONAI's" else []
    if transforms == "idle":
        own = [keep(number) for number in range(TRANSFORMS)]
    value = torch.zeros(SHAPE) if transforms == "MONAI's" else 0.0
    return DataLoader(
        Dataset([{KEY: value}] * samples, Compose(own)), batch,
        sampler=Order(samples, second_epoch), num_workers=workers, persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip


def build_engine() -> Engine:
    """A new engine that does nothing with a batch."""

    def process(engine: Engine, batch: Any) -> None:
        pass

    return Engine(process)
