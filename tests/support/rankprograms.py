"""Programs of several ranks, run by real launchers: ``python rankprograms.py WHAT ARGUMENTS``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events


def digest(network: torch.nn.Module) -> str:
    """The weights and the state of torch's random stream."""
    weights = [value.tolist() for value in network.state_dict().values()]
    return f"{weights} {torch.rand(2).tolist()}"


def attach(engine: Engine) -> None:
    """Trace it, unless the program is to be compared, or traced from outside."""
    if os.environ.get("TRACED") == "1":
        from firetrace import TraceHandler

        TraceHandler(data=True).attach(engine)


def say(*words: object) -> None:
    """One whole line in one write: ranks print at once."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def ignite_ddp(init: str = "env://") -> None:
    """Plain ignite, DDP over gloo; rank 1 begins late."""
    ranked: dict[str, Any] = {} if init == "env://" else {
        "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])
    }  # fmt: skip
    dist.init_process_group("gloo", init_method=init, **ranked)
    rank = dist.get_rank()
    torch.manual_seed(7 + rank)
    network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)

    def update(engine: Engine, batch: Any) -> None:
        optimizer.zero_grad()
        network(torch.rand(3, 4)).square().mean().backward()
        optimizer.step()

    trainer = Engine(update)
    attach(trainer)
    time.sleep(0.5 * rank)
    trainer.run(range(4), max_epochs=2)
    say("rank", rank, digest(network))
    leave()


def leave() -> None:
    """End the process group, when gloo's thread has surely let go of the last collective.

    Whoever frees the group waits for that thread, and holds the GIL meanwhile; the thread needs the
    GIL to let go. torch 2.13 hangs there for ever, traced or not, once in some fifty trainings.
    """
    dist.barrier()
    time.sleep(0.5)
    dist.destroy_process_group()


def monai_ddp() -> None:
    """MONAI's SupervisedTrainer with a loader that has a worker."""
    from monai.data import DataLoader, Dataset
    from monai.engines import SupervisedTrainer
    from monai.transforms import Compose, RandGaussianNoised

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(7)
    network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 2))
    noise = Compose([RandGaussianNoised("image", prob=0.5)])
    noise.set_random_state(rank)
    data = [{"image": torch.rand(8), "label": torch.rand(2)} for _ in range(8)]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=2, network=network,
        train_data_loader=DataLoader(Dataset(data, noise), batch_size=4, num_workers=1),
        optimizer=torch.optim.SGD(network.parameters(), 0.1), loss_function=torch.nn.MSELoss(),
    )  # fmt: skip
    attach(trainer)
    trainer.run()
    say("rank", rank, digest(network))
    leave()


def parallel() -> None:
    """Ignite's own launcher of processes."""
    from ignite.distributed.launcher import Parallel

    with Parallel(backend="gloo", nproc_per_node=2) as launcher:
        launcher.run(_training)


def _training(rank: int) -> None:
    trainer = Engine(lambda engine, batch: dist.barrier())
    attach(trainer)
    trainer.run(range(4), max_epochs=2)
    time.sleep(0.5)  # see ``leave``; the launcher ends the group


def alone(end: str = "") -> None:
    """Without a process group: ranks know of one another by the environment alone.

    ``end``: what rank 1 does in its fifth iteration of the first attempt.
    """
    rank = int(os.environ["RANK"])
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    torch.manual_seed(7)

    def update(engine: Engine, batch: Any) -> None:
        if rank == 1 and first and engine.state.iteration == 5 and end:
            wait_for_rank_0()
            if end == "die":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL)

    trainer = Engine(update)
    attach(trainer)
    if end:
        trainer.add_event_handler(Events.COMPLETED, lambda: time.sleep(2 * (rank == 0 and first)))
    trainer.run(range(4), max_epochs=2)
    say("rank", rank, trainer.state.iteration, torch.rand(2).tolist())


def wait_for_rank_0() -> None:
    """Until it has begun to record: a minute at most."""
    until = time.monotonic() + 60
    runs = Path(os.environ["FIRETRACE_DIR"])
    while not any(runs.glob("*/rank0.1.rows")) and time.monotonic() < until:
        time.sleep(0.02)


def another_host() -> None:
    """Rank 1 is on another host, as far as can be told: other boot, other clock."""
    os.environ.pop("LOCAL_WORLD_SIZE", None)
    rank, ahead = int(os.environ["RANK"]), 3_600 * 10**9
    from firetrace.tracer import clock, journal

    if rank:
        real, monotonic = time.time_ns, time.monotonic_ns
        time.time_ns = lambda: real() + ahead
        time.monotonic_ns = lambda: monotonic() - 10**9  # it was booted later
        for module in (journal, clock):
            vars(module)["boot_id"] = lambda: "another"
    dist.init_process_group("gloo")

    def update(engine: Engine, batch: Any) -> None:
        dist.barrier()
        time.sleep(0.01)

    from firetrace import TraceHandler

    trainer = Engine(update)
    TraceHandler().attach(trainer)
    trainer.run(range(10), max_epochs=10)
    leave()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    globals()[sys.argv[1]](*sys.argv[2:])
