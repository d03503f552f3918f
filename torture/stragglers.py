"""Two ranks that train together, one of them slow: which is named, and what it is slow in.

Real trainings over gloo, begun by torchrun. Which rank is slow, and in its data, its forward or a
handler, is drawn; every all-reduce makes both equally long.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.settings import Progress
from firetrace.tui.model.ranks import Ranks, Skew, skew
from torture.result import Result
from torture.settings import Settings

#: What is made slow, and how it is to be named: the cause, and the span or transform.
CAUSES = {
    "data": ("data", "SlowReadd"),
    "forward": ("forward", "forward"),
    "handler": ("handlers", "slow_handler"),
}
LIMIT_S = 180

PROGRAM = """
import sys, time
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader, Dataset
from firetrace import TraceHandler

out, slow_rank, cause = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo")
torch.set_num_threads(1)
torch.manual_seed(0)
slow = cause if dist.get_rank() == slow_rank else ""


def wait(which):
    time.sleep(0.05 if slow == which else 0.002)


class SlowReadd:
    def __call__(self, sample):
        wait("data")
        return sample


class Samples(Dataset):
    transform = None

    def __init__(self):
        self.transform = SlowReadd()

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.transform(torch.full((8,), float(index)))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line, self.norm = torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)

    def forward(self, batch):
        wait("forward")
        return self.norm(self.line(batch)).sum()


net = torch.nn.parallel.DistributedDataParallel(Net())
optimizer = torch.optim.SGD(net.parameters(), 0.01)


def update(engine, batch):
    optimizer.zero_grad()
    net(batch).backward()
    optimizer.step()


trainer = Engine(update)


@trainer.on(Events.ITERATION_COMPLETED)
def slow_handler():
    wait("handler")


TraceHandler(out, data=True).attach(trainer, model=net, optimizer=optimizer)
trainer.run(DataLoader(Samples(), batch_size=2), max_epochs=2)
time.sleep(0.5)  # torch may hang if gloo has not let go of the last collective by then
dist.destroy_process_group()
"""


def hurt(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Train, and ask who is slow and in what."""
    dice = random.Random(settings.seed)
    program = settings.workspace / "train.py"
    program.write_text(PROGRAM)
    wrong, said = list[str](), list[str]()
    for run in range(settings.stragglers):
        rank, cause = dice.randrange(2), list(CAUSES)[run % len(CAUSES)]
        progress(f"stragglers: {run + 1} of {settings.stragglers}, rank {rank} in {cause}")
        folder = settings.workspace / f"run{run}"
        problem = _train(program, folder, rank, cause)
        if not problem:
            found = _look(folder)
            problem = _misnamed(found, rank, cause)
            said.append(found.verdict)
        if problem:
            wrong.append(f"rank {rank} slow in {cause}: {problem}")
    yield Result(
        "two ranks on gloo, one slow", "trainings begun by torchrun", settings.stragglers, wrong,
        f"right rank and right cause: {settings.stragglers - len(wrong)} of {settings.stragglers}",
    )  # fmt: skip


def _train(program: Path, folder: Path, rank: int, cause: str) -> str:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(program), str(folder), str(rank), cause,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the training took more than {LIMIT_S} s"
    return "" if done.returncode == 0 else f"the training failed: {done.stderr[-300:]}"


def _look(folder: Path) -> Skew:
    ranks = Ranks(folder)
    ranks.poll()
    return skew(ranks)


def _misnamed(found: Skew, rank: int, cause: str) -> str:
    if not found.chronic:
        return f"nobody is blamed: {found.verdict}"
    first = found.chronic[0]
    named = first.made_by if cause == "data" else first.name
    if (first.rank, first.cause) != (rank, CAUSES[cause][0]) or CAUSES[cause][1] not in named:
        return f"blamed is rank {first.rank}, {first.cause} ({named}): {found.verdict}"
    return ""
