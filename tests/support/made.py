"""Journals made row by row, and trainings that take as long as they are told: nothing is waited."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firetrace.tracer.journal import FIRST_ROW, ROW_DTYPE, Header, Rows
from firetrace.tracer.writer import JournalWriter
from firetrace.tui.model.report import read_tree
from firetrace.tui.model.tree import Tree

MS = 10**6
#: Unix ns around which made rows lie.
THEN = 1_700_000_000 * 10**9
NAMES = (
    ("span", "x"), ("run", "run"), ("epoch", "epoch"), ("step", "step"), ("phase", "get_batch"),
    ("event", "EPOCH_COMPLETED"), ("handler", "save"), ("scalar", "loss"),
    ("iteration", "iteration"),
)  # fmt: skip
IDS = {kind: id for id, (kind, _) in enumerate(NAMES)}


def meta_lines() -> list[dict[str, Any]]:
    """Names and a lane for made rows."""
    names = [{"type": "name", "id": i, "kind": k, "name": n} for i, (k, n) in enumerate(NAMES)]
    return [*names, {"type": "lane", "id": 0, "engine": "Engine", "thread": "main"}]


def write_rows(path: Path, rows: Rows, meta: list[dict[str, Any]] | None = None) -> Path:
    """A journal that holds these rows, from ``FIRST_ROW`` on, in windows of 256."""
    header = Header(2**13, THEN, 0, bytes(16), 1, "", "")
    path.write_bytes(header.pack() + rows.tobytes())
    text = "".join(json.dumps(line) + "\n" for line in (meta or meta_lines()))
    path.with_suffix(".meta.jsonl").write_text(text)
    return path


def chain(count: int, kind: str = "span") -> Rows:
    """Spans each inside the one before."""
    rows = np.zeros(count, ROW_DTYPE)
    rows["name"] = IDS[kind]
    rows["start"] = THEN + np.arange(count)
    rows["end"] = THEN + 2 * count - np.arange(count)
    rows["parent"][1:] = np.arange(FIRST_ROW, FIRST_ROW + count - 1)
    return rows


def tree_at(path: Path, now_ns: int) -> Tree:
    """The tree of a journal, looked at at a moment."""
    tree = read_tree(path)
    return Tree(tree.digest, tree.pages, tree.open, now_ns)


Took = int | Callable[[int], int]  #: ns; or by the iteration


def ns_of(took: Took, iteration: int) -> int:
    """How long something takes in an iteration."""
    return took if isinstance(took, int) else took(iteration)


@dataclass
class Plan:
    """How long each part of a training takes, in ns."""

    epochs: int = 10
    steps: int = 50  #: an epoch
    loader: int = 0  #: before the first step
    get_batch: Took = 10 * MS
    forward: Took = 50 * MS
    backward: Took = 40 * MS
    handler: Took = 0  #: ``save``, at the end of an iteration; 0: it is not called
    validation: int = 0  #: after each epoch
    flags: Took = 0  #: of steps


class MadeTraining:
    """Writes the journal of a training as ignite's would be; begins an hour ago.

    ``next(training)`` makes a step, or what comes after an epoch; what is open then stays open.
    """

    def __init__(self, folder: Path, plan: Plan, stem: str = "rank0.1") -> None:
        self.writer = JournalWriter(folder / stem, {}, min_free_bytes=0)
        self.path, self.plan = self.writer.path, plan
        self.begin = self.now = self.writer.wall_ns - 3600 * 10**9
        self.ends: dict[tuple[int, int], int] = {}  #: when each step ended, by epoch and iteration
        self._pen = self.writer.pen()
        self._trainer = self.writer.lane("Trainer", 1)
        self._evaluator = self.writer.lane("Evaluator", 2)
        self._moves = self._run()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self._moves

    def until(self, epoch: int, iteration: int) -> int:
        """Go on until this step has ended; return when that was."""
        while (epoch, iteration) not in self.ends:
            next(self._moves)
        return self.ends[epoch, iteration]

    def finish(self) -> MadeTraining:
        """Go on until the end, and close the journal."""
        for _ in self._moves:
            pass
        self.writer.close()
        return self

    def opened(
        self, above: int, kind: str, text: str, epoch: int, iteration: int, lane: int = -1,
        flags: int = 0,
    ) -> int:  # fmt: skip
        """A span begins now."""
        lane = self._trainer if lane < 0 else lane
        name = self.writer.name(kind, text)
        return self._pen.open(above, name, lane, flags, epoch, iteration, 0, self.now)

    def ended(self, row: int, flags: int = 0) -> None:
        """A span ends now."""
        self._pen.close(row, self.now, flags)

    def _took(self, ns: int, *what: Any) -> None:
        row = self.opened(*what)
        self.now += ns
        self.ended(row)

    def _run(self) -> Iterator[tuple[int, int]]:
        plan, iteration = self.plan, 0
        run = self.opened(0, "run", "run", 0, 0)
        self.writer.note(
            "run", row=run, max_epochs=plan.epochs, epoch_length=plan.steps, max_iters=None
        )
        for at in range(1, plan.epochs + 1):
            epoch = self.opened(run, "epoch", "epoch", at, iteration)
            self._took(0, epoch, "event", "EPOCH_STARTED", at, iteration)
            if at == 1 and plan.loader:
                self._took(plan.loader, epoch, "loader", "loader", at, iteration)
            for _ in range(plan.steps):
                iteration += 1
                self._step(epoch, at, iteration)
                self.ends[at, iteration] = self.now
                yield at, iteration
            self._validate(epoch, at, iteration)
            self.ended(epoch)
            yield at, iteration
        self.ended(run)
        yield plan.epochs, iteration

    def _step(self, epoch: int, at: int, iteration: int) -> None:
        plan, where = self.plan, (at, iteration)
        step = self.opened(epoch, "step", "step", *where)
        self._took(ns_of(plan.get_batch, iteration), step, "phase", "get_batch", *where)
        inner = self.opened(step, "iteration", "iteration", *where)
        self._took(ns_of(plan.forward, iteration), inner, "phase", "forward", *where)
        self._took(ns_of(plan.backward, iteration), inner, "phase", "backward", *where)
        event = self.opened(inner, "event", "ITERATION_COMPLETED", *where)
        handler = ns_of(plan.handler, iteration)
        if handler:
            self._took(handler, event, "handler", "save", *where)
        for row in (event, inner):
            self.ended(row)
        self.ended(step, ns_of(plan.flags, iteration))

    def _validate(self, epoch: int, at: int, iteration: int) -> None:
        event = self.opened(epoch, "event", "EPOCH_COMPLETED", at, iteration)
        if self.plan.validation:
            handler = self.opened(event, "handler", "validate", at, iteration)
            run = self.opened(handler, "run", "run", 0, 0, self._evaluator)
            inner = self.opened(run, "epoch", "epoch", 1, 0, self._evaluator)
            half = self.plan.validation // 2
            self._took(half, inner, "step", "step", 1, 1, self._evaluator)
            self._took(half, inner, "step", "step", 1, 2, self._evaluator)
            for row in (inner, run, handler):
                self.ended(row)
        self.ended(event)
