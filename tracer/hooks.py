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
from typing import TYPE_CHECKING, Any

from firetrace.tracer.rules import BACKWARD, BACKWARD_BEGINS, FORWARD, OPTIMIZER

if TYPE_CHECKING:
    from firetrace.tracer.engine import EngineTracer
    from firetrace.tracer.recorder import Recorder

log = logging.getLogger("firetrace")

#: MONAI's engines have their optimizers here, or in their state, under these names.
KNOWN_OPTIMIZERS = {
    "optimizer": "", "g_optimizer": "generator_", "d_optimizer": "discriminator_",
}  # fmt: skip


class Hook:
    """What is registered with torch. A copied or pickled model has one that does nothing."""

    __torch_unserializable__ = True  # no warning when a tensor that carries it is pickled

    def __init__(self, hooks: TorchHooks, action: str, phase: str) -> None:
        self.hooks = hooks
        self.action = action
        self.phase = phase

    def __call__(self, target: Any, *args: Any) -> None:
        """Tell of the call that begins or ends."""
        self.hooks.told(self.action, self.phase, args)

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
        self._inside: tuple[str, int] | None = None  # a watched call: its phase, and the row place
        self._reached = 0  # Unix ns at which another thread saw a gradient reach an output

    def install(self, engine: Any) -> bool:
        """Register the hooks. Returns whether all optimizers' steps will be told of."""
        optimizers = {**known_optimizers(engine), **self.optimizers}
        for prefix, optimizer in optimizers.items():
            self._add(optimizer.register_step_pre_hook, "step", prefix + OPTIMIZER)
            self._add(optimizer.register_step_post_hook, "leave", prefix + OPTIMIZER)
        for phase, modules in (("forward", self.models), ("loss", self.losses)):
            for prefix, module in modules.items():
                if is_hookable(module):
                    self._add(module.register_forward_pre_hook, "enter", prefix + phase)
                    after = "leave" if phase == "loss" else "leave_model"
                    self._add(module.register_forward_hook, after, prefix + phase)
        return bool(optimizers)

    def _add(self, register: Any, action: str, phase: str) -> None:
        try:
            self._handles.append(register(Hook(self, action, phase)))
        except Exception as error:  # a module of an unusual kind; it is trained all the same
            log.warning("firetrace: no %s spans (%s: %s)", phase, type(error).__name__, error)

    def remove(self) -> None:
        """Take every hook out again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inside, self._reached = None, 0

    def told(self, action: str, phase: str, args: tuple[Any, ...]) -> None:
        """A hook was called."""
        recorder = self.tracer.running()
        if recorder is not None:
            self.tracer.guarded(self._told, recorder, action, phase, args)
        elif action == "reached":
            self._reached = self.tracer.now()  # by a thread of autograd's own, as for CUDA

    def _told(self, recorder: Recorder, action: str, phase: str, args: tuple[Any, ...]) -> None:
        if not recorder.in_process_function():
            return
        if self._reached > recorder.boundary:
            self._backward_begins(recorder, self._reached)
        self._reached = 0
        here = phase, recorder.place
        if self._inside is not None and self._inside[1] != recorder.place:
            self._inside = None  # it raised
        if action == "reached":
            if self._inside is None:
                self._backward_begins(recorder, 0)
        elif action in ("enter", "step"):
            if self._inside in (None, here):
                self._inside = here
                self._begin(recorder, phase, action == "step")
        elif self._inside == here:
            self._inside = None
            recorder.stepped |= phase.endswith(OPTIMIZER)
            if recorder.node.boundary.endswith(BACKWARD):
                return  # the engine's own event comes soon, and ends the phase
            recorder.end_phase(phase)
            if action == "leave_model":
                for tensor in outputs(args[-1]):
                    tensor.register_hook(Hook(self, "reached", phase))
                    break

    def _begin(self, recorder: Recorder, phase: str, is_step: bool) -> None:
        """Name what lies between the last boundary and this one, if it is known."""
        boundary, gap = recorder.node.boundary, None
        if boundary == BACKWARD_BEGINS:
            gap = phase.removesuffix(OPTIMIZER) + "backward" if is_step else "backward"
        elif is_step and boundary.endswith(BACKWARD):
            return  # the engine says itself when backward ends and, soon, the optimizer's step
        elif is_step and boundary.upper().endswith(("LOSS", "LOSS_COMPLETED")):
            gap = phase.removesuffix(OPTIMIZER) + "backward"
        elif is_step and boundary.upper().endswith(("FORWARD", FORWARD)):
            gap = "loss_and_backward"
        elif boundary == "ITERATION_STARTED" and phase.endswith("forward"):
            gap = "prepare_batch"
        recorder.end_phase(gap, begins=phase)

    def _backward_begins(self, recorder: Recorder, now: int) -> None:
        boundary = recorder.node.boundary
        if boundary.endswith("forward"):
            loss = boundary.removesuffix("forward") + "loss"
            recorder.end_phase(loss, now, begins="backward")
        elif boundary != BACKWARD_BEGINS:  # the loss's own gradient was first
            recorder.end_phase(None, recorder.boundary, begins="backward")


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
