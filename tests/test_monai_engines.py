"""MONAI's engines and handlers: traced as untraced, their events and handlers by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.apps.deepedit.interaction import Interaction as DeepEditInteraction
from monai.apps.deepgrow.interaction import Interaction as DeepgrowInteraction
from monai.data import DataLoader, Dataset, SmartCacheDataset
from monai.engines import (
    AdversarialTrainer,
    EnsembleEvaluator,
    GanTrainer,
    SupervisedEvaluator,
    SupervisedTrainer,
)
from monai.handlers import (
    CheckpointSaver,
    EarlyStopHandler,
    MeanAbsoluteError,
    SmartCacheHandler,
    StatsHandler,
    TensorBoardStatsHandler,
    ValidationHandler,
    from_engine,
)
from monai.transforms import Compose, Lambdad, RandGaussianNoised
from torch.nn import functional

from tests.support.programs import interrupt, on
from tests.support.shape import brief
from tests.support.unchanged import Seen, Stage, compare

CPU = torch.device("cpu")
Program = Callable[[Stage], Any]


class Traced:
    """A handler in MONAI's sense: it puts the engine on the stage when it is attached."""

    def __init__(self, stage: Stage, label: str = "") -> None:
        self.stage, self.label = stage, label

    def attach(self, engine: Engine) -> None:
        self.stage.add(engine, self.label)


def samples(count: int = 4) -> list[dict[str, Any]]:
    return [{"image": torch.randn(1, 8), "label": torch.randn(1, 2)} for _ in range(count)]


def loader(count: int = 4) -> Any:
    return DataLoader(Dataset(samples(count)), batch_size=2)


def network(inputs: int = 8, outputs: int = 2) -> Any:
    layers = torch.nn.Linear(inputs, 4), torch.nn.ReLU(), torch.nn.Linear(4, outputs)
    return torch.nn.Sequential(*layers)


def metric() -> dict[str, Any]:
    return {"mae": MeanAbsoluteError(output_transform=from_engine(["pred", "label"]))}


def supervised(stage: Stage, *handlers: Any, **how: Any) -> Any:
    """A trainer, two epochs of two batches."""
    net = how.pop("network", None) or network()
    data = how.pop("data", None) or loader()
    return SupervisedTrainer(
        device=CPU, max_epochs=2, train_data_loader=data, network=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1), loss_function=torch.nn.MSELoss(),
        train_handlers=[*handlers, Traced(stage)], **how,
    )  # fmt: skip


def evaluator(stage: Stage, *handlers: Any, **how: Any) -> Any:
    return SupervisedEvaluator(
        device=CPU, val_data_loader=loader(), network=network(), key_val_metric=metric(),
        val_handlers=[*handlers, Traced(stage)], **how,
    )  # fmt: skip


def run_supervised(stage: Stage, **how: Any) -> Any:
    trainer = supervised(stage, **how)
    trainer.run()
    return trainer.network.state_dict()


def accumulating(stage: Stage) -> Any:
    return run_supervised(stage, accumulation_steps=2)


def with_amp(stage: Stage) -> Any:
    """Mixed precision: on a CPU its scaler is off, its code path is taken."""
    return run_supervised(stage, amp=True)


def registered_events(stage: Stage) -> Any:
    """Events of the user's own, by name and by enumeration."""
    return run_supervised(stage, event_names=["before_step", Events.STARTED])


def evaluated(stage: Stage) -> Any:
    engine = evaluator(stage)
    engine.run()
    return engine.state.metrics


def evaluated_at_epoch_five(stage: Stage) -> Any:
    """The trainer's epoch: STARTED at 4, then epoch 5."""
    engine = evaluator(stage)
    engine.run(5)
    engine.run(6)
    return engine.state.epoch


def ensemble(stage: Stage) -> Any:
    engine = EnsembleEvaluator(
        device=CPU, val_data_loader=loader(), networks=[network(), network()],
        pred_keys=["one", "other"], val_handlers=[Traced(stage)],
    )  # fmt: skip
    engine.run()
    return engine.state.output


def gan(stage: Stage) -> Any:
    """Two steps of the discriminator to each of the generator."""
    generator, critic = network(3, 8), network(8, 1)
    data = DataLoader(Dataset([{"reals": torch.randn(8)} for _ in range(4)]), batch_size=2)
    trainer = GanTrainer(
        device=CPU, max_epochs=2, train_data_loader=data, latent_shape=3, d_train_steps=2,
        g_network=generator, g_optimizer=torch.optim.SGD(generator.parameters(), 0.1),
        g_loss_function=lambda fake: critic(fake).mean(),
        d_network=critic, d_optimizer=torch.optim.SGD(critic.parameters(), 0.1),
        d_loss_function=lambda fake, real: (critic(fake.detach()) - critic(real)).mean(),
        d_prepare_batch=lambda batch, device, non_blocking: batch["reals"].to(device),
        train_handlers=[Traced(stage)],
    )  # fmt: skip
    trainer.run()
    return generator.state_dict()


def adversarial(stage: Stage, amp: bool = False) -> Any:
    generator, critic = network(8, 8), network(8, 1)
    trainer = AdversarialTrainer(
        device=CPU, max_epochs=2, train_data_loader=loader(),
        g_network=generator, g_optimizer=torch.optim.SGD(generator.parameters(), 0.1),
        g_loss_function=torch.neg, recon_loss_function=functional.l1_loss,
        d_network=critic, d_optimizer=torch.optim.SGD(critic.parameters(), 0.1),
        d_loss_function=lambda real, fake: fake - real, amp=amp, train_handlers=[Traced(stage)],
        prepare_batch=lambda batch, *_, **__: (batch["image"], batch["image"]),
    )  # fmt: skip
    trainer.run()
    return generator.state_dict()


def adversarial_with_amp(stage: Stage) -> Any:
    return adversarial(stage, amp=True)


def noise() -> Any:
    """What stands for a click: noise on the image."""
    return Compose([RandGaussianNoised("image", 0.5)]).set_random_state(7)


def deepgrow(stage: Stage) -> Any:
    """Two clicks before each step of the trainer."""
    clicks = DeepgrowInteraction(noise(), 2, train=True)
    return run_supervised(stage, iteration_update=clicks, prepare_batch=image_and_label)


def deepedit(stage: Stage, probability: float = 1.0) -> Any:
    clicks = DeepEditInteraction(probability, noise(), train=True, max_interactions=2)
    return run_supervised(stage, iteration_update=clicks, prepare_batch=image_and_label)


def deepedit_without_clicks(stage: Stage) -> Any:
    return deepedit(stage, 0.0)


def deepedit_by_chance(stage: Stage) -> Any:
    return deepedit(stage, 0.5)


def image_and_label(batch: Any, *_: Any, **__: Any) -> Any:
    return batch["image"], batch["label"]


def no_iterations(stage: Stage) -> None:
    """``run`` returns at once, with a warning."""
    supervised(stage, epoch_length=0).run()


def resumed(stage: Stage) -> Any:
    """A trainer that is interrupted in its second iteration and goes on."""
    trainer = supervised(stage)
    on(Events.ITERATION_COMPLETED, interrupt, 2)(trainer)
    trainer.run()
    trainer.run()
    return trainer.network.state_dict()


PHASES = ["FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED"]
INNER = ["INNER_ITERATION_STARTED", "INNER_ITERATION_COMPLETED"]
ADVERSARIAL = [
    "GENERATOR_FORWARD_COMPLETED", "GENERATOR_DISCRIMINATOR_FORWARD_COMPLETED",
    "RECONSTRUCTION_LOSS_COMPLETED", "GENERATOR_LOSS_COMPLETED", "GENERATOR_BACKWARD_COMPLETED",
    "GENERATOR_MODEL_COMPLETED", "DISCRIMINATOR_REALS_FORWARD_COMPLETED",
    "DISCRIMINATOR_FAKES_FORWARD_COMPLETED", "DISCRIMINATOR_LOSS_COMPLETED",
]  # fmt: skip
#: By program: the events of its first iteration; None: they are left to chance.
ENGINES: dict[Program, list[str] | None] = {
    run_supervised: PHASES,
    accumulating: PHASES,
    with_amp: PHASES,
    registered_events: PHASES,
    resumed: PHASES,
    evaluated: ["FORWARD_COMPLETED", "MODEL_COMPLETED"],
    evaluated_at_epoch_five: ["FORWARD_COMPLETED", "MODEL_COMPLETED"],
    ensemble: ["FORWARD_COMPLETED", "MODEL_COMPLETED"],
    gan: [],
    adversarial: ADVERSARIAL,
    adversarial_with_amp: [*ADVERSARIAL, "DISCRIMINATOR_BACKWARD_COMPLETED"],
    deepgrow: [*INNER, *INNER, *PHASES],
    deepedit: [*INNER, *INNER, *PHASES],
    deepedit_without_clicks: PHASES,
    deepedit_by_chance: None,
}


def recorded_events(seen: Seen) -> list[str]:
    table = seen.recorded
    return [table.name(i).text for i in table.of_kind("event").tolist()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["lookups", "calls", "bare"])
@pytest.mark.parametrize("program", ENGINES, ids=lambda program: program.__name__)
def test_engines(program: Program, way: str) -> None:
    """Weights, outputs and events are those of the untraced engine; the events are recorded."""
    seen = compare(program, way)
    assert seen.facts["raised"] is None
    events, expected = recorded_events(seen), ENGINES[program]
    first = events[events.index("ITERATION_STARTED") + 1 : events.index("ITERATION_COMPLETED")]
    assert expected in (None, first)


@pytest.mark.parametrize("way", ["lookups", "bare"])
def test_no_iterations(way: str) -> None:
    """An engine of no iterations runs without an event, and nothing is recorded."""
    seen = compare(no_iterations, way)
    assert seen.facts["warnings"]
    assert seen.table is None


def test_the_epoch_of_an_evaluation_is_its_trainers() -> None:
    """``run(5)`` is recorded as epoch 5."""
    table = compare(evaluated_at_epoch_five).recorded
    assert table.rows["epoch"][table.of_kind("epoch")].tolist() == [5, 6]


def test_events_that_are_registered_after_attaching() -> None:
    """8: AdversarialTrainer registers its own when its handlers are attached already."""
    allowed: list[int] = []

    class Counting(Stage):
        def add(self, engine: Any, label: str = "", attach: bool = True) -> Any:
            allowed.append(len(engine._allowed_events))
            return super().add(engine, label, attach)

    def program(stage: Stage) -> None:
        stage.__class__ = Counting
        adversarial(stage)
        allowed.append(len(stage.engines["engine 0"]._allowed_events))

    assert set(ADVERSARIAL) <= set(recorded_events(compare(program)))
    assert allowed[0] + 11 == allowed[1]


# Handlers


def everything(stage: Stage) -> Any:
    """A training with the handlers that nearly every one has."""
    validator = evaluator(
        stage,
        StatsHandler(output_transform=lambda output: None),
        CheckpointSaver(str(stage.folder), {"net": network()}, save_key_metric=True),
        postprocessing=Lambdad("pred", lambda x: x * 2),
    )
    stopper = EarlyStopHandler(1, lambda engine: -engine.state.epoch)
    trainer = supervised(
        stage,
        ValidationHandler(1, validator),
        StatsHandler(tag_name="loss", output_transform=from_engine(["loss"], first=True)),
        TensorBoardStatsHandler(
            log_dir=str(stage.folder), output_transform=from_engine(["loss"], first=True)
        ),
        CheckpointSaver(str(stage.folder), {"net": network()}, save_final=True, save_interval=1),
        stopper,
        postprocessing=Lambdad("pred", lambda x: x + 1),
        key_train_metric=metric(),
    )
    stopper.set_trainer(trainer)
    trainer.run()
    stage.note(sorted(path.suffix for path in stage.folder.iterdir() if path.suffix == ".pt"))
    return trainer.state.metrics, validator.state.best_metric


def smart_cache(stage: Stage) -> Any:
    """Half of the samples are cached, and replaced while the training runs."""
    data = SmartCacheDataset(samples(8), replace_rate=0.5, cache_num=4, num_init_workers=1)
    trainer = supervised(stage, SmartCacheHandler(data), data=DataLoader(data, batch_size=2))
    trainer.run()
    return trainer.network.state_dict()


#: What each handler of ``everything`` is called in the recording.
HANDLERS = {
    "Workflow._decollate_data", "Workflow._run_postprocessing", "Workflow._compare_metrics",
    "MeanAbsoluteError.started", "MeanAbsoluteError.iteration_completed",
    "MeanAbsoluteError.completed", "ValidationHandler", "EarlyStopHandler",
    "StatsHandler.iteration_completed", "StatsHandler.epoch_completed",
    "TensorBoardStatsHandler.iteration_completed", "TensorBoardStatsHandler.epoch_completed",
    "CheckpointSaver.interval_completed", "CheckpointSaver.metrics_completed",
    "CheckpointSaver.completed",
}  # fmt: skip


@pytest.mark.parametrize("way", ["lookups", "calls"])
@pytest.mark.parametrize("program", [everything, smart_cache])
def test_handlers(program: Program, way: str) -> None:
    """MONAI's handlers do what they do untraced."""
    assert compare(program, way).facts["raised"] is None


def test_handlers_are_recorded_by_their_names() -> None:
    """6: each handler has a span of its own, MONAI's own before the user's."""
    table = compare(everything).recorded
    assert {table.name(i).text for i in table.of_kind("handler").tolist()} == HANDLERS
    said = brief(table)
    assert "MODEL_COMPLETED[Workflow._decollate_data Workflow._run_postprocessing]" in said
    assert "EC[MeanAbsoluteError.completed Workflow._compare_metrics ValidationHandler[run[" in said


def test_the_smart_cache_is_recorded_by_its_name() -> None:
    """Its replacement of samples, in an epoch's end, is its own span."""
    table = compare(smart_cache).recorded
    names = [table.name(i).text for i in table.of_kind("handler").tolist()]
    assert [name.rpartition(".")[2] for name in names if "SmartCache" in name] == [
        "started", "epoch_completed", "epoch_completed", "completed",
    ]  # fmt: skip
