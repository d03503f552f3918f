"""The objects that stand in an engine for its own methods while it is traced.

An instance attribute shadows the method of the class, so every event, run and loader start passes
here. A closure there would change the program: ``copy.deepcopy(engine)`` would fire the original's
handlers, ``pickle`` would fail, and the engine would be freed only by the cycle collector. These
objects hold their engine weakly, and a copied or unpickled engine gets its own method back.

Nothing here may raise anything of its own into the training, or keep it from running.
"""

from __future__ import annotations

import copy
import weakref
from threading import get_ident
from typing import TYPE_CHECKING, Any

from firetrace.tracer.shortcuts import pass_phase

if TYPE_CHECKING:
    from firetrace.tracer.engine import EngineTracer
    from firetrace.tracer.recorder import Recorder


class Seam:
    """Stands for the method ``name`` of one engine. Without a tracer it just passes calls on."""

    name = ""

    def __init__(self, engine: Any, tracer: EngineTracer | None, below: Any = None) -> None:
        self.engine_ref = weakref.ref(engine)
        self.tracer = tracer
        self.recorder: Recorder | None = None  # of the thread in which the engine runs
        self.below = below  # what another tool had put there before
        self.suspended: Any = None  # the engine, while a run of it is interrupted

    def original(self, engine: Any) -> Any:
        """The method that this object stands for, bound to the engine."""
        if self.below is not None:
            return self.below
        return getattr(type(engine), self.name).__get__(engine)

    def engine(self) -> Any:
        """The engine.

        Raises:
            ReferenceError: it is gone; someone kept the bare method without it.
        """
        engine = self.suspended or self.engine_ref()
        if engine is None:
            raise ReferenceError(f"the engine of this {self.name} no longer exists")
        return engine

    def running(self) -> Recorder | None:
        """The recorder, if the engine is being recorded in the calling thread."""
        recorder = self.recorder
        return recorder if recorder is not None and recorder.ident == get_ident() else None

    def hold(self, engine: Any) -> None:
        """The engine runs (None: not any more)."""

    @property
    def stands_in(self) -> Any:
        """What is put into the engine: a bound method is quicker to call than an object."""
        return self.__call__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        return self.original(self.engine())(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        engine = self.engine_ref()
        twin = memo.get(id(engine))
        if twin is None:
            return self  # it was copied without its engine
        return type(self)(twin, None, copy.deepcopy(self.below, memo))

    def __reduce__(self) -> Any:
        return getattr, (self.engine(), self.name)  # unpickles without firetrace

    @property
    def __wrapped__(self) -> Any:
        """The method behind, for ``inspect.signature``."""
        return self.original(self.engine())


class Run(Seam):
    """Stands for ``_internal_run``: however a run ends, what it opened is closed.

    Not for ``run``: in ``make_trainer().run()`` only the bound method keeps the engine alive.
    """

    name = "_internal_run"
    runs_in_itself = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the engine."""
        run = self.original(self.engine())
        tracer = self.tracer  # may be taken out while it runs
        if tracer is None:
            return run(*args, **kwargs)
        recorder = tracer.guarded(tracer.enter, self.runs_in_itself)
        if recorder is None:
            return run(*args, **kwargs)
        try:
            result = run(*args, **kwargs)
        except BaseException as error:
            tracer.guarded(tracer.leave, recorder, error)
            raise
        tracer.guarded(tracer.leave, recorder, None)
        return result


class LegacyRun(Run):
    """What ``run`` calls where ``interrupt_resume_enabled`` is off."""

    name = "_internal_run_legacy"
    runs_in_itself = True


class PublicRun(Run):
    """Stands for ``run`` in an ignite that has no ``_internal_run``."""

    name = "run"


class Loader(Seam):
    """Stands for ``_setup_dataloader_iter``: ``iter(dataloader)`` and starting its workers."""

    name = "_setup_dataloader_iter"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Set up the loader's iterator."""
        engine = self.engine()
        setup = self.original(engine)
        tracer = self.tracer
        recorder = self.running()
        if tracer is None or recorder is None or engine.state.dataloader is None:
            return setup(*args, **kwargs)
        begun = tracer.guarded(recorder.now)
        height = tracer.guarded(recorder.begin_loader)
        try:
            result = setup(*args, **kwargs)
        except BaseException as error:
            if height and recorder.ident:
                tracer.guarded(recorder.loader_failed, height, error)
            raise
        if height and recorder.ident:
            tracer.guarded(recorder.end_loader, height)
            tracer.guarded(tracer.note_loading, recorder, engine, begun)
        return result


#: Functions that MONAI's engines were given and call, and the phases that the calls are.
CALLS = {"prepare_batch": "prepare_batch"}
#: The same of a ``GanTrainer``, which fires no events inside an iteration.
GAN_CALLS = {
    "g_prepare_batch": "generator_prepare_batch",
    "g_inferer": "generator_forward",
    "d_loss_function": "discriminator_loss",
    "g_loss_function": "generator_loss",
}


CALLED, RETURNED = -1, -2  # keys for ``Recorder.pass_phase``


def _when_called(boundary: str, phase: str) -> tuple[None, str] | None:
    return None if boundary == "ITERATION_STARTED" else (None, phase)


def _when_returned(boundary: str, phase: str) -> tuple[str, str]:
    return phase, ""


class Call(Seam):
    """Stands for a function that an engine was given, such as MONAI's ``prepare_batch``."""

    def __init__(
        self, engine: Any, tracer: EngineTracer, function: Any, name: str, phase: str
    ) -> None:
        super().__init__(engine, tracer, function)
        self.name = name
        self.phase = phase
        self.prepares = name.endswith("prepare_batch")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        tracer, recorder = self.tracer, self.running()
        if tracer is None or recorder is None:
            return self.below(*args, **kwargs)
        tracer.guarded(pass_phase, recorder, (CALLED, self.phase), _when_called)
        marks = recorder.marks if self.prepares else None
        look = None if marks is None else marks.look(recorder, self.phase, args, kwargs)
        result = self.below(*args, **kwargs)
        if marks is None or look is None:
            tracer.guarded(pass_phase, recorder, (RETURNED, self.phase), _when_returned)
            return result
        marks.prepared = look, result
        try:
            tracer.guarded(pass_phase, recorder, (RETURNED, self.phase), _when_returned)
        finally:
            marks.prepared = None  # the batch is the program's
        return result

    @property
    def stands_in(self) -> Any:
        """An object that looks like the function, which may be one that has attributes.

        A new one each time, as a bound method is: the two would be garbage together else.
        """
        return Standing(self)


class Standing:
    """What lies in the engine for a ``Call``. All that a program finds there is the function's."""

    __slots__ = ("__weakref__", "_firetrace")

    def __init__(self, call: Call) -> None:
        object.__setattr__(self, "_firetrace", call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._firetrace(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return type(other) is Standing and self._firetrace is other._firetrace

    def __hash__(self) -> int:
        return hash(self._firetrace)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The function's: a program may ask what kind of inferer it has."""
        return type(self._firetrace.below)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._firetrace.below, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._firetrace.below, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._firetrace.below, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._firetrace.below, memo)

    def __reduce__(self) -> Any:
        return copy.copy, (self._firetrace.below,)

    @property
    def __wrapped__(self) -> Any:
        """The function behind."""
        return self._firetrace.below
