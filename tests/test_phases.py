"""What happens inside an iteration, in full shape: by events, torch's hooks, MONAI's calls."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.contrib.engines.tbptt import create_supervised_tbptt_trainer
from ignite.engine import (
    Engine,
    Events,
    create_supervised_evaluator,
    create_supervised_trainer,
)
from monai.data import DataLoader, Dataset
from monai.engines import AdversarialTrainer, GanTrainer, SupervisedTrainer
from monai.networks.nets import UNet
from torch import nn

from firetrace import TraceHandler
from firetrace.tracer.journal import Flag
from firetrace.tracer.seam import GAN_CALLS
from firetrace.tracer.table import Table
from firetrace.tui.model.report import read_report
from tests.support.recordings import recorded
from tests.support.shape import Tree, outline, tree
from tests.support.trainings import Training

CPU = torch.device("cpu")


def iterations(trees: list[Tree]) -> list[str]:
    """The outline of every iteration, in order."""
    found: list[str] = []
    for name, children in trees:
        if name == "iteration":
            found.append(outline(children).replace("\n", ", "))
        else:
            found += iterations(children)
    return found


def mlp(inputs: int = 8, outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


def batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 8, generator=generator), torch.randn(4, 2, generator=generator))
        for _ in range(count)
    ]


def named(table: Table, name: str) -> list[int]:
    return [i for i in range(len(table)) if table.name(i).text == name]


PLAIN = (
    "ITERATION_STARTED, prepare_batch, forward, loss, backward, optimizer, output,"
    " ITERATION_COMPLETED"
)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.functional.mse_loss])
def test_a_supervised_trainer_of_ignite(loss: Callable[..., Any]) -> None:
    """Model, loss and optimizer give the phases, whether the loss can be watched or not."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = create_supervised_trainer(model, optimizer, loss)
    handler = TraceHandler()
    handler.attach(trainer, model=model, optimizer=optimizer, loss_fn=loss)
    trainer.run(batches(), max_epochs=2)
    assert set(iterations(tree(recorded(handler)))) == {PLAIN}


def test_gradients_that_accumulate() -> None:
    """Where the optimizer is not stepped there is no such span; backward ends with the turn."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = nn.MSELoss()
    trainer = create_supervised_trainer(model, optimizer, loss, gradient_accumulation_steps=2)
    handler = TraceHandler()
    handler.attach(trainer, model=model, optimizer=optimizer, loss_fn=loss)
    trainer.run(batches())
    without = PLAIN.replace(" optimizer, output,", "")
    assert iterations(tree(recorded(handler))) == [without, PLAIN, without, PLAIN]


def test_a_supervised_evaluator_of_ignite() -> None:
    """An evaluator that shares the trainer's model has its own forward spans, no others."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
    evaluator = create_supervised_evaluator(model)
    handler = TraceHandler()
    handler.attach(trainer, model=model, optimizer=optimizer)
    handler.attach(evaluator, model=model)

    @trainer.on(Events.ITERATION_COMPLETED)
    def validate() -> None:
        evaluator.run(batches(1))

    trainer.run(batches(2))
    table = recorded(handler)
    lanes = [table.lane(i).engine for i in named(table, "forward")]
    assert lanes == ["trainer", "evaluator", "trainer", "evaluator"]
    assert "ITERATION_STARTED, prepare_batch, forward, output, ITERATION_COMPLETED" in str(
        iterations([node for node in _all(tree(table)) if node[0] == "iteration"])
    )


def _all(trees: list[Tree]) -> list[Tree]:
    return [node for each in trees for node in (each, *_all(each[1]))]


def test_the_tbptt_trainer() -> None:
    """Truncated backpropagation through time: phases inside each of its own time iterations."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNN(3, 4)

        def forward(self, x: torch.Tensor, hidden: Any = None) -> Any:
            output, hidden = self.cell(x, hidden)
            return output, hidden

    model = Recurrent()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = nn.MSELoss()
    trainer = create_supervised_tbptt_trainer(model, optimizer, loss, tbtt_step=2)
    handler = TraceHandler()
    handler.attach(trainer, model=model, optimizer=optimizer, loss_fn=loss)
    trainer.run([(torch.randn(4, 2, 3), torch.randn(4, 2, 4))])
    (text,) = iterations(tree(recorded(handler)))
    assert text == (
        "ITERATION_STARTED, time_iteration x2,   TIME_ITERATION_STARTED,   forward,   loss, "
        "  backward,   optimizer,   TIME_ITERATION_COMPLETED, ITERATION_COMPLETED"
    )


def test_several_models_and_optimizers() -> None:
    """A dict's keys go before the names of the phases."""
    models = {"encoder": mlp(8, 8), "head": mlp(8, 2)}
    optimizers = {name: torch.optim.SGD(m.parameters(), 0.1) for name, m in models.items()}

    def step(engine: Engine, batch: Any) -> Any:
        loss = models["head"](models["encoder"](batch[0])).sum()
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()

    trainer = Engine(step)
    handler = TraceHandler()
    handler.attach(trainer, model=models, optimizer=optimizers)
    trainer.run(batches())
    assert set(iterations(tree(recorded(handler)))) == {
        "ITERATION_STARTED, prepare_batch, encoder_forward, head_forward, head_loss, "
        "encoder_backward, encoder_optimizer, head_optimizer, output, ITERATION_COMPLETED"
    }


def trained(traced: bool) -> tuple[Any, ...]:
    """Train a model that is copied, pickled and saved meanwhile; what came of it, and the hooks."""
    torch.manual_seed(0)
    model = nn.Sequential(mlp(), nn.Dropout(0.5))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    loss = nn.MSELoss()
    trainer = create_supervised_trainer(
        model, optimizer, loss, output_transform=lambda x, y, y_pred, loss: y_pred
    )
    copies: list[Any] = []

    @trainer.on(Events.ITERATION_COMPLETED(once=3))
    def copy_model(engine: Engine) -> None:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        pickle.dumps(engine.state.output)
        copies.extend((copy.deepcopy(model), torch.load(file, weights_only=False)))

    if traced:
        handler = TraceHandler()
        handler.attach(trainer, model=model, optimizer=optimizer, loss_fn=loss)
    trainer.run(batches(), max_epochs=2)
    hooks = [
        *model._forward_hooks, *model._forward_pre_hooks, *loss._forward_hooks,
        *loss._forward_pre_hooks, *optimizer._optimizer_step_pre_hooks,
        *optimizer._optimizer_step_post_hooks,
    ]  # fmt: skip
    outputs = [each(batches(1)[0][0]).tolist() for each in (model, *copies)]
    return outputs, torch.get_rng_state().tolist(), hooks


@pytest.mark.filterwarnings("error")
def test_hooks_change_nothing() -> None:
    """Weights, copies and random streams are those of an untraced run, and no hook stays."""
    untraced, traced = trained(False), trained(True)
    assert len(untraced[0]) == 3
    assert traced == untraced


def test_a_forward_that_raises() -> None:
    """The exception passes; the span that was open says so, and the next run is whole."""
    model = mlp()
    trainer = create_supervised_trainer(
        model, torch.optim.SGD(model.parameters(), 0.1), nn.functional.mse_loss
    )
    handler = TraceHandler()
    handler.attach(trainer, model=model)
    trainer.run(batches(2))
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.run([(torch.zeros(4, 3), torch.zeros(4, 2))], max_epochs=2)
    trainer.state.max_epochs = None
    trainer.run(batches(2))
    table = recorded(handler)
    flags = [int(table.rows["flags"][i]) & ~Flag.GUESS for i in named(table, "forward")]
    assert flags == [0, 0, Flag.CUT | Flag.ERROR, 0, 0]


# MONAI


def test_steps_that_the_optimizer_skipped_are_marked() -> None:
    """With gradient accumulation MONAI fires its events all the same; the mark tells."""
    training = Training()
    training.trainer.accumulation_steps = 2
    handler = TraceHandler()
    handler.attach(training.trainer)
    training.trainer.run()
    table = recorded(handler)
    skipped = [bool(table.rows["flags"][i] & Flag.SKIPPED) for i in named(table, "optimizer")]
    assert skipped == [True, False, False] * 2
    assert read_report(table.path).phases["optimizer"].count == 4


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_steps_that_a_gradient_scaler_skipped_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where a scaler found gradients that are not finite."""
    scaler = functools.partial(torch.amp.GradScaler, "cpu", init_scale=2.0)
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", scaler)
    trainer = Training().trainer
    trainer.amp = True

    class Once(nn.MSELoss):
        calls = 0

        def forward(self, *args: Any) -> Any:
            self.calls += 1
            return super().forward(*args) * (torch.inf if self.calls == 2 else 1)

    trainer.loss_function = Once()
    handler = TraceHandler()
    handler.attach(trainer)
    trainer.run()
    table = recorded(handler)
    skipped = [bool(table.rows["flags"][i] & Flag.SKIPPED) for i in named(table, "optimizer")]
    assert skipped == [False, True, False, False, False, False]


class Noise(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), float(index))


def gan_trainer() -> GanTrainer:
    """A GAN of two small networks, two discriminator steps an iteration."""
    generator, discriminator = mlp(64, 8), mlp(8, 1)
    return GanTrainer(
        device=CPU, max_epochs=2,
        train_data_loader=DataLoader(Noise(), batch_size=2),
        g_network=generator, g_optimizer=torch.optim.Adam(generator.parameters()),
        g_loss_function=lambda fake: -discriminator(fake).mean(),
        d_network=discriminator, d_optimizer=torch.optim.Adam(discriminator.parameters()),
        d_loss_function=lambda fake, real: (
            discriminator(fake.detach()).mean() - discriminator(real).mean()
        ),
        d_prepare_batch=lambda batch, *_, **__: batch, d_train_steps=2, decollate=False,
    )  # fmt: skip


def test_a_gan_trainer() -> None:
    """It fires nothing inside an iteration: its own functions and its optimizers' steps tell."""
    trainer = gan_trainer()
    before = dict(vars(trainer))
    handler = TraceHandler()
    handler.attach(trainer)
    trainer.run()
    handler.detach(trainer)
    assert vars(trainer).keys() == before.keys()
    assert all(vars(trainer)[name] is before[name] for name in GAN_CALLS)
    discriminator = "discriminator_loss, discriminator_backward, discriminator_optimizer, "
    assert set(iterations(tree(recorded(handler)))) == {
        "ITERATION_STARTED, prepare_batch, generator_prepare_batch, generator_forward, "
        + discriminator * 2
        + "generator_prepare_batch, generator_forward, generator_loss, generator_backward, "
        "generator_optimizer, output, ITERATION_COMPLETED"
    }


def test_what_stands_for_a_function_looks_like_it() -> None:
    """A program may ask a traced engine what kind of inferer it has, and for its attributes."""
    trainer = gan_trainer()
    inferer = trainer.g_inferer
    handler = TraceHandler()
    handler.attach(trainer)
    with contextlib.suppress(RuntimeError):
        trainer.run()
    assert isinstance(trainer.g_inferer, type(inferer))
    handler.close()
    assert trainer.g_inferer is inferer


def test_an_adversarial_trainer() -> None:
    """It fires no event at the end of the discriminator's backward and step; a hook tells."""
    generator, discriminator = mlp(8, 8), mlp(8, 1)
    cases = [{"image": torch.ones(8), "label": torch.ones(8)}] * 6
    trainer = AdversarialTrainer(
        device=CPU, max_epochs=2,
        train_data_loader=DataLoader(Dataset(cases), batch_size=2),
        recon_loss_function=nn.L1Loss(),
        g_network=generator, g_optimizer=torch.optim.Adam(generator.parameters()),
        g_loss_function=lambda fake: -fake.mean(),
        d_network=discriminator, d_optimizer=torch.optim.Adam(discriminator.parameters()),
        d_loss_function=lambda real, fake: (fake - real).mean(), decollate=False,
    )  # fmt: skip
    handler = TraceHandler()
    handler.attach(trainer)
    trainer.run()
    phases = (
        "generator_forward", "generator_discriminator_forward", "reconstruction_loss",
        "generator_loss", "generator_backward", "generator_optimizer",
        "discriminator_reals_forward", "discriminator_fakes_forward", "discriminator_loss",
    )  # fmt: skip
    events = [f"{phase}, {phase.upper()}_COMPLETED" for phase in phases]
    events[5] = "generator_optimizer, GENERATOR_MODEL_COMPLETED"
    assert set(iterations(tree(recorded(handler)))) == {
        ", ".join(("ITERATION_STARTED, prepare_batch", *events, "discriminator_backward"))
        + ", discriminator_optimizer, output, ITERATION_COMPLETED"
    }


# How much is explained


def monai_trainer(network: nn.Module, *shape: int) -> SupervisedTrainer:
    """MONAI's trainer on random images that are their own labels."""
    cases = [{"image": torch.randn(*shape), "label": torch.randn(*shape)} for _ in range(120)]
    return SupervisedTrainer(
        device=CPU, max_epochs=1, train_data_loader=DataLoader(Dataset(cases), batch_size=4),
        network=network, optimizer=torch.optim.Adam(network.parameters()),
        loss_function=nn.MSELoss(),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["mlp", "unet"])
@pytest.mark.parametrize("library", ["ignite", "monai"])
def test_a_step_is_explained(library: str, kind: str, tmp_path: Path) -> None:
    """At least 99% of the steps' time lies in spans under them.

    Of ten trainings the best counts: the machine may be busy with other things.
    """
    shape = (64,) if kind == "mlp" else (1, 32, 32)
    network = (
        nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
                      nn.Linear(256, 64))
        if kind == "mlp" else UNet(2, 1, 1, (4, 8, 16), (2, 2))
    )  # fmt: skip
    found = []
    for attempt in range(10):
        handler = TraceHandler(tmp_path / str(attempt))
        if library == "monai":
            trainer = monai_trainer(network, *shape)
            handler.attach(trainer)
            trainer.run()
        else:
            optimizer, loss = torch.optim.Adam(network.parameters()), nn.MSELoss()
            engine = create_supervised_trainer(network, optimizer, loss)
            handler.attach(engine, model=network, optimizer=optimizer, loss_fn=loss)
            engine.run([(torch.randn(4, *shape), torch.randn(4, *shape)) for _ in range(30)])
        unexplained = read_report(recorded(handler).path).unexplained
        assert unexplained is not None
        found.append(unexplained)
        if unexplained < 0.01:
            return
    raise AssertionError(found)


def test_what_no_span_explains_is_said() -> None:
    """An engine that says nothing of its process function: nearly all of a step is unexplained."""

    def step(engine: Engine, batch: Any) -> None:
        torch.randn(200_000).sort()

    engine = Engine(step)
    handler = TraceHandler()
    handler.attach(engine)
    engine.run(range(5))
    unexplained = read_report(recorded(handler).path).unexplained
    assert unexplained is not None
    assert unexplained > 0.9
