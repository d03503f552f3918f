"""Phases that no event tells of, by torch's public hooks: forward, loss, backward, optimizer.

The hooks are in place only while the engine runs. Each marks a boundary, as an event would: a
phase is what lies between two of them. Calls inside a watched call are part of it.

``backward`` begins when the gradient reaches a watched model's output (a hook on that tensor) and
ends at the next boundary: the optimizer's step, the next forward, the end of the iteration. Where
no loss was watched, what lies between forward and backward is ``loss``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from threading import get_ident
from typing import TYPE_CHECKING, Any

from firetrace.tracer.rules import BACKWARD, BACKWARD_BEGINS, FORWARD, OPTIMIZER, SINCE_BOUNDARY
from firetrace.tracer.shortcuts import Passing, pass_phase

if TYPE_CHECKING:
    from firetrace.tracer.engine import EngineTracer
    from firetrace.tracer.recorder import Recorder

log = logging.getLogger("firetrace")

#: MONAI's engines have their optimizers here, or in their state, under these names.
KNOWN_OPTIMIZERS = {
    "optimizer": "", "g_optimizer": "generator_", "d_optimizer": "discriminator_",
}  # fmt: skip


#: What a hook tells: a gradient reaches an output, a call begins, an optimizer's step begins; and
#: the ends of calls, of steps, of a model's calls.
REACHED, ENTER, STEP, LEAVE, LEAVE_STEP, LEAVE_MODEL = range(6)


class Hook:
    """What is registered with torch. A copied or pickled model has one that does nothing."""

    __torch_unserializable__ = True  # no warning when a tensor that carries it is pickled

    def __init__(self, hooks: TorchHooks, action: int, phase: str) -> None:
        self.hooks = hooks
        self.action = action
        self.phase = phase
        self.key = action, phase

    def __call__(self, target: Any, *args: Any) -> None:
        """Tell of the call that begins or ends."""
        self.hooks.told(self, args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return nullcontext().__exit__  # takes any arguments, returns None

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")  # loads without firetrace


class TorchHooks:
    """Watches models, losses and optimizers for one traced engine.

    Args:
        tracer: of the engine.
        models: torch modules, by the prefix of their phases' names ("" for a single one).
        losses: the same of loss functions; those that are no modules cannot be watched.
        optimizers: the same of torch optimizers.
    """

    def __init__(
        self,
        tracer: EngineTracer,
        models: Mapping[str, Any],
        losses: Mapping[str, Any],
        optimizers: Mapping[str, Any],
    ) -> None:
        self.tracer = tracer
        self.models, self.losses, self.optimizers = dict(models), dict(losses), dict(optimizers)
        self._handles: list[Any] = []
        self._recorder: Recorder | None = None  # of the run that goes on
        self._inside: str | None = None  # a watched call: its phase,
        self._inside_place = 0  # and the iteration in which it was made
        self._reached = 0  # Unix ns at which another thread saw a gradient reach an output

    def install(self, engine: Any, recorder: Recorder) -> bool:
        """Register the hooks. Returns whether optimizers' steps will be told of."""
        self._recorder = recorder
        optimizers = {**known_optimizers(engine), **self.optimizers}
        for prefix, optimizer in optimizers.items():
            self._add(optimizer.register_step_pre_hook, STEP, prefix + OPTIMIZER)
            self._add(optimizer.register_step_post_hook, LEAVE_STEP, prefix + OPTIMIZER)
        for phase, modules in (("forward", self.models), ("loss", self.losses)):
            for prefix, module in modules.items():
                if is_hookable(module):
                    self._add(module.register_forward_pre_hook, ENTER, prefix + phase)
                    after = LEAVE if phase == "loss" else LEAVE_MODEL
                    self._add(module.register_forward_hook, after, prefix + phase)
        return bool(optimizers)

    def _add(self, register: Any, action: int, phase: str) -> None:
        try:
            self._handles.append(register(Hook(self, action, phase)))
        except Exception as error:  # a module of an unusual kind; it is trained all the same
            log.warning("firetrace: no %s spans (%s: %s)", phase, type(error).__name__, error)

    def remove(self) -> None:
        """Take every hook out again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._recorder, self._inside, self._reached = None, None, 0

    def told(self, hook: Hook, args: tuple[Any, ...]) -> None:
        """A hook was called."""
        recorder = self._recorder
        if recorder is not None and recorder.awake == get_ident():
            try:
                self._told(recorder, hook, args)
            except Exception as error:
                self.tracer.give_up(error)
        elif hook.action == REACHED:
            # By a thread of autograd's own, as for CUDA; of several outputs the first one counts.
            self._reached = self._reached or self.tracer.now()
            if recorder is not None and recorder.marks is not None:
                recorder.marks.reached()

    def _told(self, recorder: Recorder, hook: Hook, args: tuple[Any, ...]) -> None:
        if recorder.node.inside_handler:
            return
        action, place, inside = hook.action, recorder.place, self._inside
        if self._reached:
            if self._reached > recorder.boundary:
                pass_phase(recorder, (REACHED, ""), _when_reached, self._reached)
            self._reached = 0
        if inside is not None and self._inside_place != place:
            inside = None  # that call raised
        if action >= LEAVE:
            if inside != hook.phase:
                return
            self._inside = None
            recorder.stepped |= action == LEAVE_STEP
        elif action == REACHED:
            if inside is None:
                pass_phase(recorder, (REACHED, ""), _when_reached)
            return
        elif inside is None or inside == hook.phase:
            self._inside, self._inside_place = hook.phase, place
        else:
            return
        pass_phase(recorder, hook.key, _BOUNDARIES[action])
        if action == LEAVE_MODEL:
            for tensor in outputs(args[-1]):
                tensor.register_hook(Hook(self, REACHED, hook.phase))
                break


# What a hook says of the boundary at which an engine is: the phase that ends there (None: it has no
# name) and the one that begins. No answer: it is no boundary.


def _when_entered(boundary: str, phase: str) -> Passing:
    if boundary == BACKWARD_BEGINS:
        return "backward", phase
    if phase.endswith("loss") and boundary.endswith("forward"):
        return None  # what lies between is done to the model's output, for the loss
    gap = "prepare_batch" if boundary == "ITERATION_STARTED" and phase.endswith("forward") else None
    return gap, phase


def _when_stepped(boundary: str, phase: str) -> Passing:
    whose = phase.removesuffix(OPTIMIZER)
    if boundary.endswith(BACKWARD):
        return None  # the engine says itself when backward ends and, soon, the optimizer's step
    if boundary == BACKWARD_BEGINS or boundary.upper().endswith(("LOSS", "LOSS_COMPLETED")):
        return whose + "backward", phase
    if boundary.upper().endswith(("FORWARD", FORWARD)):
        return whose + "loss_and_backward", phase
    return None, phase


def _when_left(boundary: str, phase: str) -> Passing:
    if boundary.endswith(BACKWARD):
        return None  # the engine's own event comes soon, and ends the phase
    return phase, ""


def _when_reached(boundary: str, phase: str) -> Passing:
    if boundary == BACKWARD_BEGINS:
        return None
    if boundary.endswith("forward"):
        return boundary.removesuffix("forward") + "loss", "backward"
    return SINCE_BOUNDARY, "backward"  # the loss's own gradient was first


_BOUNDARIES = {
    ENTER: _when_entered, STEP: _when_stepped, LEAVE: _when_left, LEAVE_STEP: _when_left,
    LEAVE_MODEL: _when_left,
}  # fmt: skip


def known_optimizers(engine: Any) -> dict[str, Any]:
    """The optimizers that a MONAI engine has, by the prefix of their phases' names."""
    found = {}
    for name, prefix in KNOWN_OPTIMIZERS.items():
        for owner in (engine, engine.state):
            optimizer = getattr(owner, name, None)
            if hasattr(optimizer, "register_step_post_hook"):
                found[prefix] = optimizer
    return found


def is_hookable(module: Any) -> bool:
    """Whether it is a module that can be watched: a hook inside ``Module.compile`` recompiles."""
    return (
        hasattr(module, "register_forward_hook")
        and getattr(module, "_compiled_call_impl", None) is None
    )


def by_prefix(given: Any) -> dict[str, Any]:
    """One object, a sequence or a mapping of them, by the prefix of their phases' names."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {f"{name}_": each for name, each in given.items()}
    if isinstance(given, Sequence):
        return {f"{type(each).__name__}{index}_": each for index, each in enumerate(given, 1)}
    return {"": given}


def outputs(value: Any) -> Iterable[Any]:
    """The tensors of a model's output through which a gradient may come."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from outputs(each)
    elif getattr(value, "requires_grad", False) and hasattr(value, "register_hook"):
        yield value
