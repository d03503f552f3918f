"""Attach firetrace to a plain pytorch-ignite training, without MONAI.

A small classifier learns which cluster a point belongs to. The training has what real ones have: a
validation after every epoch, a checkpoint of the best model, and events of its own that are fired
from inside an iteration. One handler records them all; to attach it takes the three lines right
before the trainer runs.

    python ignite_trainer.py --epochs 3
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from ignite.engine import (
    Engine,
    EventEnum,
    Events,
    create_supervised_evaluator,
    create_supervised_trainer,
)
from ignite.handlers import Checkpoint, ModelCheckpoint
from ignite.metrics import Accuracy, Loss
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from firetrace import TraceHandler

CLASSES, FEATURES, BATCH_SIZE, MAX_GRADIENT_NORM = 4, 16, 64, 0.75


class GradEvents(EventEnum):
    """What happens to the gradients between the backward pass and the optimizer step."""

    CLIP_STARTED = "clip_started"
    CLIP_COMPLETED = "clip_completed"
    # Only in the iterations whose gradients were too long, so the trace shows how often that is.
    GRADIENTS_CLIPPED = "gradients_clipped"


def make_loader(centres: Tensor, batches: int, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
    """Make noisy points around the centre of their class."""
    labels = torch.randint(CLASSES, (batches * BATCH_SIZE,))
    points = centres[labels] + 1.5 * torch.randn(len(labels), FEATURES)
    return DataLoader(TensorDataset(points, labels), batch_size=BATCH_SIZE, shuffle=shuffle)


def main() -> None:
    """Train, validate, save the best model, and trace all of it."""
    parser = argparse.ArgumentParser(description="A plain ignite training with firetrace attached.")
    parser.add_argument("--epochs", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--batches", type=int, default=20, help="per epoch, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    centres = torch.randn(CLASSES, FEATURES)
    train_loader = make_loader(centres, args.batches, shuffle=True)
    val_loader = make_loader(centres, max(1, args.batches // 4), shuffle=False)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    loss = nn.CrossEntropyLoss()

    trainer = create_supervised_trainer(model, optimizer, loss)
    evaluator = create_supervised_evaluator(
        model, metrics={"accuracy": Accuracy(), "loss": Loss(loss)}
    )
    trainer.register_events(*GradEvents)

    # ignite's ready-made trainer has no place between backward and step, but the optimizer does.
    @optimizer.register_step_pre_hook
    def clip_gradients(*_: object) -> None:
        trainer.fire_event(GradEvents.CLIP_STARTED)
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        trainer.fire_event(GradEvents.CLIP_COMPLETED)
        if norm > MAX_GRADIENT_NORM:
            trainer.fire_event(GradEvents.GRADIENTS_CLIPPED)

    clipped: list[int] = []

    @trainer.on(GradEvents.GRADIENTS_CLIPPED)
    def remember_clipping(engine: Engine) -> None:
        clipped.append(engine.state.iteration)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        evaluator.run(val_loader)
        metrics = evaluator.state.metrics
        print(
            f"epoch {engine.state.epoch}: validation accuracy {metrics['accuracy']:.3f}, "
            f"loss {metrics['loss']:.3f}, gradients clipped {len(clipped)} times so far"
        )

    # The trace is what this sample is about, so the checkpoints go when the training is done.
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ModelCheckpoint(
            folder,
            score_name="accuracy",
            score_function=Checkpoint.get_default_score_fn("accuracy"),
            global_step_transform=lambda *_: trainer.state.epoch,
        )
        evaluator.add_event_handler(Events.COMPLETED, checkpoint, {"model": model})

        # The same handler goes on both engines, so that each validation is recorded where it
        # happens: inside of the epoch whose end started it.
        handler = TraceHandler()
        handler.attach(trainer)
        handler.attach(evaluator)
        trainer.run(train_loader, max_epochs=args.epochs)


if __name__ == "__main__":
    main()
