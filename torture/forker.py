"""A training that makes processes in all the ways that there are; it ends with a line of JSON.

``python -m torture.forker SCENARIO+SCENARIO [traced]``. Traced or not, it must do and say the same;
what is to be seen of it afterwards is in ``Training.report``.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader, Dataset

EPOCHS, BATCHES, FORKS = 3, 6, 15
PATIENCE_S = 10
METHODS = ("fork", "spawn", "forkserver")


class Numbers(Dataset[torch.Tensor]):
    """Some tensors; a worker that is to die does so at the last one."""

    deadly = False

    def __len__(self) -> int:
        return 4 * BATCHES

    def __getitem__(self, index: int) -> torch.Tensor:
        """One of them."""
        if self.deadly and index == len(self) - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((2,), float(index))


def double(number: int) -> int:
    """What a pool computes."""
    return 2 * number


def small_run() -> int:
    """An engine that nobody attached to, run in whatever process this is."""
    return int(Engine(lambda engine, batch: batch).run(range(5)).iteration)


class Training:
    """An engine over a loader; ``act`` is called after each epoch, ``count`` after each step."""

    def __init__(self, traced: bool) -> None:
        self.pid, self.begin_ns = os.getpid(), time.time_ns()
        self.result: list[Any] = []
        self.counted, self.runs = 0, 0
        self.handler: Any = None
        self.others = 0  #: journals that other processes write, by the handler
        self.running = 0  #: other processes in which an engine runs that was not traced before
        if traced:
            from firetrace import TraceHandler

            self.handler = TraceHandler()
        self.engine = Engine(self.step)
        self.act: Callable[[], Any] = lambda: None
        self.engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: self.act())
        self.engine.add_event_handler(Events.ITERATION_COMPLETED, self.count)
        if traced:
            self.handler.attach(self.engine)

    def step(self, engine: Engine, batch: Any) -> float:
        """The process function."""
        with self.span("own"):
            return float(torch.as_tensor(batch).sum())

    def span(self, name: str) -> Any:
        """A span, if it is traced."""
        return self.handler.span(name) if self.handler is not None else contextlib.nullcontext()

    def count(self, engine: Engine) -> None:
        """Log a step."""
        self.counted += 1
        self.result.append(engine.state.output)

    def run(self, loader: Any = None) -> None:
        """Train."""
        self.runs += 1
        self.engine.state.max_epochs = None
        self.engine.run(loader or DataLoader(Numbers(), batch_size=4), max_epochs=EPOCHS)

    def child(self, do: Callable[[], Any], code: int = 0, wait: bool = True) -> int:
        """Fork; what the child does ends it. Complain of another exit code."""
        pid = os.fork()
        if not pid:
            faulthandler.dump_traceback_later(PATIENCE_S - 2)  # says where
            signal.alarm(PATIENCE_S)  # a deadlock is a signal
            if code:
                silence()
            do()
            return 0  # it goes on
        if wait:
            _, status = os.waitpid(pid, 0)
            self.result.append(os.waitstatus_to_exitcode(status))
            if self.result[-1] != code:
                self.result.append(f"the child ended with {self.result[-1]} instead of {code}")
        return pid

    def report(self) -> None:
        """What is to be seen of it, as the last line."""
        me = threading.main_thread()
        self.engine.state.dataloader = self.engine._dataloader_iter = None  # its workers end
        end = time.monotonic() + 5
        # A thread that was joined is the kernel's for a moment longer.
        while multiprocessing.active_children() or len(os.listdir("/proc/self/task")) > 1:
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        said = {
            "pid": self.pid, "begin": self.begin_ns, "end": time.time_ns(), "result": self.result,
            "counted": self.counted, "runs": self.runs, "others": self.others,
            "running": self.running,
            "threads": sorted(t.name for t in threading.enumerate() if t is not me),
            "tasks": len(os.listdir("/proc/self/task")),
            "children": len(multiprocessing.active_children()),
            "open": len(os.listdir("/proc/self/fd")),
        }  # fmt: skip
        print(json.dumps(said), flush=True)


def silence() -> None:
    """What is meant to fail shall not say so: its traceback shows frames of firetrace's."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def leave() -> None:
    """End at once."""
    os._exit(0)


def last(act: Callable[[], None], end: Callable[[], None] = leave) -> Callable[[], None]:
    """The last that a process does, and its end."""

    def do() -> None:
        act()
        end()

    return do


# Scenarios


def loader(training: Training, method: str, workers: str, persistent: str) -> None:
    """Loader workers."""
    how: dict[str, Any] = {}
    if int(workers):
        how = {"multiprocessing_context": method, "persistent_workers": persistent == "1"}
    data = DataLoader(Numbers(), batch_size=4, num_workers=int(workers), **how)
    training.run(data)
    training.run(data)
    del data


def monai(training: Training, workers: str) -> None:
    """MONAI's cache and its loader with threads, and an evaluator with worker processes."""
    from monai.data import CacheDataset, ThreadDataLoader

    items = [{"image": float(n)} for n in range(4 * BATCHES)]
    cached = CacheDataset(items, num_workers=2, progress=False)
    batches = ThreadDataLoader(cached, batch_size=4, num_workers=int(workers), buffer_size=2)
    training.run([each["image"] for each in batches])
    training.run([each["image"] for each in batches])


def killed(training: Training) -> None:
    """A loader worker is killed; the training says so, and another one goes well."""
    data = Numbers()
    data.deadly = True
    before = training.result
    training.result = []
    try:
        training.run(DataLoader(data, batch_size=4, num_workers=2))
    except (RuntimeError, OSError):  # what it says, and after how many batches, is left to chance
        before.append("killed")
    training.result = before
    training.run()


def fork(training: Training, way: str) -> None:
    """``os.fork`` in a handler; the child ends in one way or another."""

    def events() -> None:
        training.engine.fire_event(Events.EPOCH_STARTED)
        small_run()

    def uses() -> None:
        with training.span("in the child"):
            training.engine.fire_event(Events.ITERATION_STARTED)
        if training.handler is not None:
            training.handler.attach(Engine(training.step))
            training.handler.detach(training.engine)
            training.handler.close()
            from firetrace import TraceHandler

            again, engine = TraceHandler(), Engine(training.step)
            again.attach(engine)
            engine.run(range(5))
            again.close()
        else:
            small_run()

    def grandchild() -> None:
        pid = os.fork()
        small_run()
        if pid:
            os.waitpid(pid, 0)

    def fail() -> None:
        raise ValueError("the child's own")

    def outlives() -> None:
        os.setsid()
        os.closerange(0, 3)
        time.sleep(2)

    def atexits() -> None:
        atexit.register(small_run)
        sys.exit(0)

    counted, runs = training.counted, training.runs

    def dies() -> None:
        small_run()
        os.kill(os.getpid(), signal.SIGKILL)

    # What the child does; its exit code; its journals with a handler of its own, and without.
    ways: dict[str, tuple[Callable[[], Any], int, int, int]] = {
        "exit": (leave, 0, 0, 0),
        "sys.exit": (lambda: sys.exit(3), 3, 0, 0),
        "atexit": (atexits, 0, 0, 1),
        "exception": (fail, 1, 0, 0),
        "events": (last(events), 0, 0, 1),
        "uses": (last(uses), 0, 1, 1),
        "uses and exits": (last(uses, sys.exit), 0, 1, 1),
        "goes on": (int, 0, 0, 1),
        "grandchild": (last(grandchild), 0, 0, 2),
        "outlives": (last(outlives), 0, 0, 0),
        "killed": (dies, -9, 0, 1),
    }
    do, code, others, running = ways[way]

    def act() -> None:
        if os.getpid() != training.pid:  # the child that goes on forks no more
            return
        with training.span("around the fork"):
            training.child(do, code, wait=way != "outlives")
        training.others += others
        # Of the runs of a child that goes on, the one in which it was forked is not recorded.
        training.running += running if way != "goes on" or training.runs == runs + 1 else 0

    training.act = act
    training.run()
    training.run(range(5))  # the child that goes on is here, too
    if os.getpid() != training.pid:
        os._exit(0 if training.counted - counted == EPOCHS * BATCHES + EPOCHS * 5 else 9)
    training.act = lambda: None


def pool(training: Training, method: str, kind: str) -> None:
    """A pool of processes in a handler, with a task that runs an engine."""
    context: Any = multiprocessing.get_context(method)

    def act() -> None:
        if kind == "executor":
            with ProcessPoolExecutor(2, mp_context=context) as executor:
                training.result += list(executor.map(double, range(9)))
                training.result.append(executor.submit(small_run).result())
        else:
            with context.Pool(2) as workers:
                training.result += workers.map(double, range(9))
                training.result.append(workers.apply(small_run))
                workers.close()
                workers.join()
        training.running += 1

    training.act = act
    training.run()
    training.act = lambda: None


def programs(training: Training) -> None:
    """Other programs: they get no descriptor of ours."""
    words = [sys.executable, "-c", "import os; print(len(os.listdir('/proc/self/fd')))"]

    def act() -> None:
        for close in (True, False):
            done = subprocess.run(words, capture_output=True, check=True, close_fds=close)
            training.result.append(done.stdout.decode())
        inlet, outlet = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, outlet, 1)]
        pid = os.posix_spawn(sys.executable, words, os.environ, file_actions=actions)
        os.close(outlet)
        training.result += [os.waitpid(pid, 0)[1], os.read(inlet, 99).decode()]
        os.close(inlet)

    training.act = act
    training.run()
    training.act = lambda: None


def hammer(training: Training) -> None:
    """Fork again and again while other threads hold whatever locks there are.

    The children end at once: Python's own end can hang in such a child, traced or not.
    """
    over = threading.Event()

    def work(number: int) -> None:
        while not over.is_set():
            engine = Engine(lambda engine, batch: batch)
            if training.handler is not None:
                from firetrace import TraceHandler

                handler = TraceHandler()
                training.handler.attach(engine)
                handler.attach(engine)
                engine.run([1, 2])
                handler.close()
                training.handler.detach(engine)
            else:
                engine.run([1, 2])

    def use() -> None:
        small_run()
        if training.handler is not None:
            from firetrace import TraceHandler

            engine = Engine(training.step)
            training.handler.attach(engine)
            training.handler.detach()
            again = TraceHandler()
            again.attach(engine)
            engine.run([1, 2])
            again.close()
            training.handler.close()
        leave()

    def forks() -> Iterator[int]:
        for _ in range(FORKS):
            training.child(use)
            yield 1
            if training.result[-1] != 0:
                break

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # the threads are stopped anywhere
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        training.running = training.others = sum(forks())
    finally:
        sys.setswitchinterval(interval)
        over.set()
        if os.getpid() == training.pid:
            for thread in threads:
                thread.join()
    training.run()


SCENARIOS: dict[str, Callable[..., None]] = {
    "loader": loader, "monai": monai, "killed": killed, "fork": fork, "pool": pool,
    "programs": programs, "hammer": hammer,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """See the module."""
    training = Training(arguments[1:] == ["traced"])
    for scenario in arguments[0].split("+"):
        name, *more = scenario.split(":")
        SCENARIOS[name](training, *more)
    if training.handler is not None:
        training.handler.close()
    training.report()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
