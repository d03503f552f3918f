"""A small real training that runs in a forked child, and what must hold whatever its disk does.

It is the same program traced and untraced: its result, exit code and what it prints are compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine, Events

from firetrace import TraceHandler
from firetrace.tracer.recording import close_all
from firetrace.tracer.table import Table
from firetrace.tui.model.report import read_report
from torture.checks import read

EPOCHS, STEPS, VALIDATION = 3, 80, 5
#: Windows of 512 rows, some 28 iterations; every step of the training is within the budget.
MAX_BYTES = 2**20
PATIENCE_S = 60.0
NOTED = (
    Events.STARTED, Events.EPOCH_STARTED, Events.GET_BATCH_COMPLETED, Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED, Events.COMPLETED,
)  # fmt: skip


def nothing() -> None:
    """No fault."""


@dataclass
class Plan:
    """A training and what is done to it."""

    directory: Path | None = None  #: of the journal; None: untraced
    mapped: bool = True
    before: Callable[[], object] = nothing  #: done in the child at its beginning
    fault: Callable[[], object] = nothing  #: done by the training itself
    at: int = 0  #: the iteration of the fault; 0: before the first event
    spot: int = 0  #: where in it: first handler, process function, last handler
    min_free: int | None = 0
    max_bytes: int = MAX_BYTES
    base: Path | None = None  #: with ``directory`` "default": what ``$FIRETRACE_DIR`` says
    epochs: int = EPOCHS
    closes: bool = True  #: whether the program closes its handler, or just ends


class Answer(NamedTuple):
    """How a child ended."""

    status: str  #: "" for exit code 0
    answer: Any
    stderr: str


def in_child(function: Callable[[], Any], patience_s: float = PATIENCE_S) -> Answer:
    """Call a function in a fork of this process. What it returns travels as JSON.

    A child that takes longer is killed, which its status says.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pipes = [os.pipe(), os.pipe()]
    pid = os.fork()
    if pid == 0:
        _be_child(function, pipes[0][1], pipes[1][1])
    heard: dict[int, bytes] = {}
    for inlet, outlet in pipes:
        os.close(outlet)
        heard[inlet] = b""
    until, open_ones, late = time.monotonic() + patience_s, set(heard), False
    while open_ones:
        ready, _, _ = select.select([*open_ones], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            late = True
            os.kill(pid, signal.SIGKILL)
            break
        for fd in ready:
            data = os.read(fd, 2**16)
            heard[fd] += data
            if not data:
                open_ones.discard(fd)
    _, status = os.waitpid(pid, 0)
    answer, stderr = heard.values()
    for fd in heard:
        os.close(fd)
    text = f"it hung for {patience_s:.0f} s" if late else ""
    if not late and os.WIFSIGNALED(status):
        text = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    elif not late and status:
        text = f"exit code {os.waitstatus_to_exitcode(status)}"
    return Answer(text, json.loads(answer) if answer and not text else None, stderr.decode())


def _be_child(function: Callable[[], Any], answer: int, stderr: int) -> None:
    status = 1
    try:
        os.dup2(stderr, 2)
        os.dup2(stderr, 1)
        data = json.dumps(function()).encode()
        while data:
            data = data[os.write(answer, data) :]
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def train(plan: Plan) -> dict[str, Any]:
    """Run the training. Returns what it computed, and how far it was recorded."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    plan.before()
    if plan.base is not None:
        os.environ["FIRETRACE_DIR"] = str(plan.base)
    torch.manual_seed(3)
    random.seed(3)
    model, optimizer, log, recorded = _model(), None, list[tuple[str, int, int]](), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses: list[float] = []
    if plan.at == 0:
        plan.fault()
    handler = _handler(plan)
    due = set() if plan.at == 0 else {plan.at}

    def strike(engine: Engine, spot: int) -> None:
        if spot == plan.spot and engine.state.iteration in due:
            due.clear()
            plan.fault()

    def update(engine: Engine, batch: Any) -> float:
        optimizer.zero_grad()
        loss = (model(batch) - batch.sum(1, keepdim=True)).pow(2).mean()
        loss.backward()
        strike(engine, 1)
        optimizer.step()
        losses.append(loss.item())
        return losses[-1]

    def evaluate(engine: Engine, batch: Any) -> None:
        with torch.no_grad():
            losses.append(model(batch).sum().item())

    def noted(engine: Engine, name: str) -> Callable[[Engine], None]:
        def note(engine: Engine) -> None:
            nonlocal recorded
            if handler is not None and not handler._recording.ended:
                recorded = len(log)  # those before: this one may meet the fault as it returns
            # While a batch is fetched ignite still counts the one before, firetrace does not.
            fetched = "GET_BATCH" in name
            log.append((name, engine.state.epoch, engine.state.iteration + fetched))

        note.__qualname__ = name
        return note

    trainer, evaluator = Engine(update), Engine(evaluate)
    trainer.add_event_handler(Events.ITERATION_STARTED, strike, 0)
    for event in NOTED:
        trainer.add_event_handler(event, noted(trainer, f"on {event.name}"))
        evaluator.add_event_handler(event, noted(evaluator, f"evaluator on {event.name}"))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, strike, 2)
    data = [torch.randn(4, 8) for _ in range(STEPS)]
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(data[:VALIDATION]))
    if handler is not None:
        handler.attach(trainer, model=model, optimizer=optimizer)
        handler.attach(evaluator)
    trainer.run(data, max_epochs=plan.epochs)
    stopped = handler is not None and handler._recording.ended
    if handler is not None and plan.closes:
        handler.close()
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    result = [
        [each.hex() for each in losses], _digest(weights), _digest(repr(log).encode()),
        _digest(torch.get_rng_state().numpy().tobytes()), _digest(repr(random.getstate()).encode()),
        trainer.state.iteration,
    ]  # fmt: skip
    close_all()  # as the end of the process does
    expected = Counter("/".join(map(str, each)) for each in log[:recorded])
    return {"result": result, "stopped": stopped, "expected": expected}


def _model() -> torch.nn.Module:
    return torch.nn.Linear(8, 1)


def _handler(plan: Plan) -> TraceHandler | None:
    if plan.directory is None and plan.base is None:
        return None
    handler = TraceHandler(
        plan.directory, max_bytes=plan.max_bytes, min_free_bytes=plan.min_free, name="victim"
    )
    recording = handler._recording
    recording.settings = replace(recording.settings, mapped=plan.mapped)
    return handler


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def complaints(
    answer: Answer, untraced: Answer, folder: Path | None, stops: bool | None = None
) -> list[str]:
    """What went wrong with a training and with what is left of its journal.

    Args:
        answer: of the training.
        untraced: of the same training without firetrace.
        folder: in which its journals are; None: they are gone with the fault.
        stops: whether the recording had to stop, or (True) must not have; None: either.
    """
    if answer.status or answer.answer is None:
        return [f"{answer.status or 'no answer'}: {answer.stderr[-300:]}"]
    wrong = []
    if answer.answer["result"] != untraced.answer["result"]:
        wrong.append("the result is not that of the untraced training")
    stopped = answer.answer["stopped"]
    if stops is not None and stopped != stops:
        wrong.append(f"the recording {'stopped' if stopped else 'went on'}")
    lines = answer.stderr.splitlines()
    if len(lines) != stopped or any("firetrace stopped recording" not in each for each in lines):
        wrong.append(f"{len(lines)} lines on stderr, {int(stopped)} expected: {lines[:3]}")
    return wrong + (unread(folder, answer.answer["expected"]) if folder is not None else [])


def unread(folder: Path, expected: dict[str, int]) -> list[str]:
    """What is wrong with the journals in a folder, of which one must hold these handlers' calls."""
    wrong, found = [], Counter[str]()
    for path in sorted(folder.rglob("*.rows")):
        table, problems = read(path)
        wrong += [f"{path.name}: {each}" for each in problems]
        if table is not None:
            if expected:
                found += calls(table)
            try:
                read_report(path)
            except Exception as error:
                wrong.append(f"the report: {type(error).__name__}: {error}")
    lost = Counter(expected) - found
    if lost:
        first = next(iter(lost))
        wrong.append(f"{lost.total()} of {sum(expected.values())} spans are lost, such as {first}")
    return wrong


def calls(table: Table) -> Counter[str]:
    """The calls of handlers that have ended, by name, epoch and iteration."""
    found: Counter[str] = Counter()
    for position in table.of_kind("handler").tolist():
        row = table.rows[position]
        if row["end"]:
            found[f"{table.name(position).text}/{row['epoch']}/{row['iteration']}"] += 1
    return found
