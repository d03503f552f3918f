"""Trainings that fire events as fast as they can, and note beside the journal what has happened.

The notes are stores into shared memory: they outlive the process, and no firetrace is in them.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic_ns, sleep
from typing import Any

import numpy as np
import numpy.typing as npt
from ignite.engine import Engine, EventEnum, Events

from firetrace import TraceHandler
from firetrace.tracer import writer
from firetrace.tracer.table import Table

STEPS_AN_EPOCH = 50
THREAD = "train-{}"


class Part(EventEnum):
    """Phases of the process function."""

    FORWARD_COMPLETED = "forward_completed"
    BACKWARD_COMPLETED = "backward_completed"


class Witness:
    """A handler that notes when it was called, in memory that it shares with whoever watches.

    Args:
        room: calls that can be noted; later ones are counted and not noted.
    """

    def __init__(self, room: int = 1 << 18) -> None:
        self._memory = mmap.mmap(-1, 8 * (room + 1))
        self._words: Any = memoryview(self._memory).cast("q")
        self._room = room

    def __call__(self, engine: Engine) -> None:
        """Note this call: first its time, then the count."""
        count = self._words[0] + 1
        if count <= self._room:
            self._words[count] = monotonic_ns()
        self._words[0] = count

    @property
    def calls(self) -> int:
        """How often it was called."""
        return int(self._words[0])

    def times(self) -> npt.NDArray[np.int64]:
        """When it was called, ns of the monotonic clock."""
        count = min(int(self._words[0]), self._room)
        return np.array(self._words[1 : count + 1], np.int64)


class Firehose:
    """What to run: one engine a witness, each in a thread of its own if there are several.

    Args:
        witnesses: one an engine.
        mapped: the journal's storage.
        window_bytes: of the journal; small ones have many edges.
        pause_s: in each iteration.
        steps: of each engine; 0: until somebody stops it.
    """

    def __init__(
        self, witnesses: Sequence[Witness], *, mapped: bool = True, window_bytes: int = 2**18,
        pause_s: float = 0.0, steps: int = 0, otlp: bool = False,
    ) -> None:  # fmt: skip
        self.witnesses = witnesses
        self.mapped = mapped
        self.window_bytes = window_bytes
        self.pause_s = pause_s
        self.epochs = -(-steps // STEPS_AN_EPOCH) if steps else 10**6
        self.otlp = otlp

    def run(self, directory: Path) -> None:
        """Train, recorded into this directory."""
        writer.WINDOW_BYTES = self.window_bytes
        handler = TraceHandler(directory, min_free_bytes=0, max_bytes=2**40, otlp=self.otlp)
        recording = handler._recording
        recording.settings = replace(recording.settings, mapped=self.mapped)
        if len(self.witnesses) == 1:
            self._train(handler, self.witnesses[0])
            return
        threads = [
            threading.Thread(
                target=self._train, args=(handler, witness), name=THREAD.format(index), daemon=True
            )
            for index, witness in enumerate(self.witnesses)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _train(self, handler: TraceHandler, witness: Witness) -> None:
        def update(engine: Engine, batch: Any) -> float:
            engine.fire_event(Part.FORWARD_COMPLETED)
            engine.fire_event(Part.BACKWARD_COMPLETED)
            if self.pause_s:
                sleep(self.pause_s)
            return 0.5

        trainer, evaluator = Engine(update), Engine(lambda engine, batch: None)
        trainer.register_events(*Part)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, witness)

        @trainer.on(Events.EPOCH_COMPLETED)
        def validate(engine: Engine) -> None:
            evaluator.run([1, 2])

        handler.attach(trainer, output_transform=lambda output: output)
        handler.attach(evaluator)
        trainer.run(range(STEPS_AN_EPOCH), max_epochs=self.epochs)


def lost(table: Table, witnesses: Sequence[Witness]) -> tuple[int, int, list[str]]:
    """How many spans must be in a journal, how many of them are not, and what is wrong."""
    expected = missing = 0
    wrong: list[str] = []
    offset = table.header.wall_ns - table.header.monotonic_ns
    handlers = [id for id, name in table.names.items() if name.text == "Witness"]
    runs = [id for id, name in table.names.items() if name.kind == "step"]
    rows = table.rows
    for index, witness in enumerate(witnesses):
        name = THREAD.format(index) if len(witnesses) > 1 else "MainThread"
        lanes = [id for id, lane in table.meta.lanes.items() if lane.thread == name]
        mine = rows[np.isin(rows["lane"], lanes)]
        calls = mine[np.isin(mine["name"], handlers)]
        times = witness.times() + offset
        # The last call may be going on; all before it have returned, and their spans have ended.
        over = max(len(times) - 1, 0)
        found = calls[:over]
        missing += over - len(found)
        if over - len(found):
            wrong.append(f"{over - len(found)} of {over} handler calls have no span")
        if len(calls) > len(times) + 1:
            wrong.append(f"{len(calls)} spans for {len(times)} handler calls")
        when = times[: len(found)]
        is_open, outside = found["end"] == 0, (found["start"] > when) | (found["end"] < when)
        if is_open.any():
            wrong.append(f"{int(is_open.sum())} handler calls that returned are open")
        if (outside & ~is_open).any():
            wrong.append(f"{int((outside & ~is_open).sum())} handler calls have other times")
        if (found["iteration"] != np.arange(1, len(found) + 1)).any():
            wrong.append("handler calls are of other iterations")
        more, gone = _steps(mine[~np.isin(mine["lane"], _evaluators(table))], runs, over)
        expected, missing = expected + more, missing + gone
        if gone:
            wrong.append(f"{gone} spans are missing in steps that were over")
    return expected, missing, wrong


def _evaluators(table: Table) -> list[int]:
    return [id for id, lane in table.meta.lanes.items() if lane.engine.startswith("<lambda>")]


def _steps(rows: Any, steps: list[int], over: int) -> tuple[int, int]:
    """Spans of the steps that were over: how many there must be, how many are missing.

    Steps are alike but for the first ones, where phases have no names yet, and those at the edges
    of epochs.
    """
    rows = rows[rows["end"] != 0]
    counts = np.bincount(rows["iteration"], minlength=over + 1)[: over + 1]
    numbers = np.arange(over + 1)
    alike = counts[(numbers > 2) & (numbers % STEPS_AN_EPOCH > 1) & (numbers < over)]
    if not len(alike):
        return 0, 0
    each = int(np.bincount(alike).argmax())
    return each * len(alike), int(np.maximum(each - alike, 0).sum())
