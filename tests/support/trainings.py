"""Real, small trainings for the tests: plain ignite and MONAI's supervised engines."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, EventEnum, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanAbsoluteError, StatsHandler, ValidationHandler, from_engine
from monai.transforms import Compose, RandGaussianNoised

EPOCHS, BATCHES, VALIDATION_BATCHES = 2, 3, 2


def seed() -> None:
    """Make what follows repeatable."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)


def random_states() -> tuple[Any, ...]:
    """The states of every random stream that a training draws from, comparable by ``==``."""
    name, keys, *rest = np.random.get_state()
    return (
        random.getstate(),
        (name, np.asarray(keys).tolist(), *rest),
        torch.get_rng_state().tolist(),
    )


class Training:
    """A MONAI trainer with a validation in its EPOCH_COMPLETED, and random augmentation."""

    def __init__(
        self, handlers: Callable[[], list[Any]] = list, workers: int = 0, epochs: int = EPOCHS
    ) -> None:
        seed()
        self.network = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 2)
        )
        noise = Compose([RandGaussianNoised(keys="image", prob=0.5)])
        noise.set_random_state(7)
        device = torch.device("cpu")
        self.evaluator = SupervisedEvaluator(
            device=device,
            val_data_loader=self._loader(VALIDATION_BATCHES, None, 0),
            network=self.network,
            key_val_metric={
                "mae": MeanAbsoluteError(output_transform=from_engine(["pred", "label"]))
            },
            val_handlers=[*handlers()],
        )
        self.trainer = SupervisedTrainer(
            device=device,
            max_epochs=epochs,
            train_data_loader=self._loader(BATCHES, noise, workers),
            network=self.network,
            optimizer=torch.optim.Adam(self.network.parameters(), lr=0.01),
            loss_function=torch.nn.MSELoss(),
            train_handlers=[
                ValidationHandler(interval=1, validator=self.evaluator),
                StatsHandler(tag_name="loss", output_transform=from_engine(["loss"], first=True)),
                *handlers(),
            ],
        )

    @staticmethod
    def _loader(batches: int, transform: Any, workers: int) -> Any:
        generator = torch.Generator().manual_seed(3)
        data = [
            {
                "image": torch.randn(8, generator=generator),
                "label": torch.randn(2, generator=generator),
            }
            for _ in range(batches * 4)
        ]
        return DataLoader(Dataset(data, transform), batch_size=4, shuffle=True, num_workers=workers)

    def weights(self) -> dict[str, list[Any]]:
        """The network's parameters, for a comparison bit for bit."""
        return {name: value.tolist() for name, value in self.network.state_dict().items()}


class Phase(EventEnum):
    """What MONAI's SupervisedTrainer fires in an iteration."""

    FORWARD_COMPLETED = "forward_completed"
    LOSS_COMPLETED = "loss_completed"
    BACKWARD_COMPLETED = "backward_completed"
    MODEL_COMPLETED = "model_completed"


def plain_engine() -> Engine:
    """An ignite engine whose process function only fires the events of ``Phase``."""

    def train_step(engine: Engine, batch: Any) -> Any:
        for event in Phase:
            engine.fire_event(event)
        return batch

    engine = Engine(train_step)
    engine.register_events(*Phase)
    return engine


def name_of(event: Any) -> str:
    """An event's name, without the address of its filter."""
    return str(getattr(event, "name", event))


def handler_lists(engine: Engine) -> dict[str, list[Any]]:
    """Which handlers an engine has, by event, with their arguments."""
    return {
        name_of(event): [(getattr(h, "__qualname__", type(h).__name__), len(args), dict(kwargs))
                     for h, args, kwargs in handlers]
        for event, handlers in engine._event_handlers.items()
    }  # fmt: skip


__all__ = [
    "Events",
    "Phase",
    "Training",
    "handler_lists",
    "plain_engine",
]
