"""Other ways to train: several batches a step, a validation inside, compiled networks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from ignite.engine import create_supervised_trainer
from monai.engines import SupervisedEvaluator

from bench.gpu.check import Check, Settings
from bench.gpu.machine import Machine
from bench.gpu.planted import After
from bench.gpu.recorded import Recorded, record
from bench.gpu.spans import whole
from bench.gpu.trainings import Batches, tiny

STEPS, GATHERED, VALIDATED = 24, 4, 6
MODES = ("default", "reduce-overhead")


def checks(machine: Machine, settings: Settings) -> Iterator[Check]:
    """All of them; the compiled ones last."""
    yield gathered(machine, settings)
    yield validated(machine, settings)
    for mode in MODES:
        yield compiled(mode, machine, settings)


def gathered(machine: Machine, settings: Settings) -> Check:
    """The trainer that ignite makes, which steps its optimizer every fourth time."""
    parts = tiny(machine.device)
    engine = create_supervised_trainer(
        parts.network, parts.optimizer, parts.loss, device=machine.device,
        gradient_accumulation_steps=GATHERED,
    )  # fmt: skip
    batch = parts.batch["image"], parts.batch["label"]
    recorded = record(
        machine, settings, engine, lambda: engine.run([batch] * STEPS, max_epochs=1),
        lambda handler: handler.attach(engine, model=parts.network, optimizer=parts.optimizer),
    )  # fmt: skip
    counts = {"forward": STEPS, "backward": STEPS, "optimizer": STEPS // GATHERED}
    return counted("gradients gathered over 4 steps", recorded, counts)


def counted(name: str, recorded: Recorded, wanted: dict[str, int]) -> Check:
    """Whether so many phases of each name have times, and none is without."""
    found = {phase: len(recorded.of(phase)) for phase in wanted}
    problems = recorded.problems(tuple(wanted))
    text = ", ".join(f"{count} {phase}" for phase, count in found.items())
    return Check(
        name, "; ".join([text, *problems]),
        ", ".join(f"{count} {phase}" for phase, count in wanted.items()),
        found == wanted and not problems,
    )  # fmt: skip


def validated(machine: Machine, settings: Settings) -> Check:
    """A validation in a handler of the training: both engines have device time, in one journal."""
    parts = tiny(machine.device)
    evaluator = SupervisedEvaluator(
        device=machine.device, val_data_loader=Batches(parts.batch, VALIDATED),
        network=parts.network, decollate=False,
    )  # fmt: skip

    def validate(engine: Any) -> None:
        if engine.state.iteration % (STEPS // 2) == 0:
            evaluator.run()

    trainer = parts.trainer(Batches(parts.batch, STEPS), [After(validate)])

    def attach(handler: Any) -> None:
        handler.attach(trainer)
        handler.attach(evaluator)

    recorded = record(machine, settings, trainer, attach=attach)
    return both(recorded)


def both(recorded: Recorded) -> Check:
    """Forwards of the one and of the other."""
    forwards = [each.engine for each in recorded.of("forward")]
    found = {engine: forwards.count(engine) for engine in dict.fromkeys(forwards)}
    problems = recorded.problems()
    return Check(
        "a validation inside the training",
        "; ".join([*(f"{count} forwards of {name}" for name, count in found.items()), *problems]),
        f"{STEPS} and {2 * VALIDATED}",
        sorted(found.values()) == sorted((STEPS, 2 * VALIDATED)) and not problems,
    )  # fmt: skip


def compiled(mode: str, machine: Machine, settings: Settings) -> Check:
    """A network that torch compiles while it is recorded, if torch can do that here."""
    name = f"torch.compile, {mode}"
    if reason := _cannot_compile(mode, machine, settings):
        return Check(name, f"skipped: {reason}")
    torch._dynamo.reset()
    parts = tiny(machine.device)
    parts.network = torch.compile(parts.network, mode=mode)  # type: ignore[assignment]
    return whole(name, record(machine, settings, parts.steps(STEPS)), STEPS)


def _cannot_compile(mode: str, machine: Machine, settings: Settings) -> str:
    if not settings.compiled:
        return "the short form"
    if importlib.util.find_spec("triton") is None:
        return "there is no triton"
    try:  # without firetrace: what fails here is none of its affair
        parts = tiny(machine.device)
        parts.network = torch.compile(parts.network, mode=mode)  # type: ignore[assignment]
        parts.steps(3).run()
        machine.synchronize()
    except Exception as error:
        return f"torch cannot here ({type(error).__name__}: {str(error).splitlines()[0][:80]})"
    return ""
