"""Several ranks of one job record into one run, unasked, and train exactly as they did.

Real launchers, real process groups. Where a rank dies there is no group: gloo may hang for ever.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from firetrace.tracer import world
from firetrace.tracer.run import is_data, open_run
from firetrace.tracer.table import Table, read_table
from tests.conftest import SAMPLES
from tests.support.shape import assert_well_formed

PROGRAMS = Path(__file__).parent / "support" / "rankprograms.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
FIRETRACE = (sys.executable, "-m", "firetrace.tui.cli")


def launch(
    *given: object, traced: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; nothing of it is left behind if that takes too long.

    gloo may hang by itself (``rankprograms.leave`` says where): if the stacks of all threads show
    that none was in a line of ours, the command gets a second chance.
    """
    words = [str(word) for word in given]
    own = {"TRACED": str(int(traced)), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    for last in (False, True):
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **own, **variables}, start_new_session=True,
        )  # fmt: skip
        try:
            out, error = process.communicate(timeout=130)
            break
        except subprocess.TimeoutExpired:
            told = stacks(process)
            assert not last, told
            assert not re.search(r"first\):\n +File \"[^\"]*/(tracer|exporters|tui)/", told), told
    return subprocess.CompletedProcess(words, process.returncode, out, error)


def stacks(process: subprocess.Popen[str]) -> str:
    """End a command and all that it has started; what they say of where they were."""
    everyone = psutil.Process(process.pid).children(recursive=True)
    for each in everyone:
        with suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGABRT)
    try:
        return process.communicate(timeout=20)[1]
    except subprocess.TimeoutExpired:
        return "no stacks: it did not even end"
    finally:
        process.kill()
        for each in everyone:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def said(done: Any) -> list[str]:
    """What the ranks have printed."""
    return sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))


def the_run(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


def tables(run: Path, *names: str) -> list[Table]:
    """The journals of the ranks, which have these names and are whole."""
    found = {path.stem: path for path in open_run(run).journals}
    assert sorted(found) == sorted(names)
    made = [read_table(found[name]) for name in names]
    for table in made:
        assert_well_formed(table)
        assert not table.damaged
    return made


def check_ranks(found: list[Table], run: Path) -> None:
    """Each says who it is."""
    for rank, table in enumerate(found):
        about = table.meta.resource
        assert about["ignite.run.id"] == run.name
        assert (about["ignite.rank"], about["ignite.world_size"]) == (rank, 2)
        assert table.meta.ended is not None
    assert len({table.meta.resource["process.pid"] for table in found}) == len(found)


@pytest.mark.parametrize("program", ["ignite_ddp", "monai_ddp"])
def test_torchrun(program: str, own_folders: Path) -> None:
    """One directory without configuration; one rank is late; weights and streams are the same."""
    ours = launch(*TORCHRUN, PROGRAMS, program)
    theirs = launch(*TORCHRUN, PROGRAMS, program, traced=False)
    assert (ours.returncode, theirs.returncode) == (0, 0), ours.stderr[-2000:]
    assert len(said(ours)) == 2
    assert said(ours) == said(theirs)
    run = the_run(own_folders)
    found = tables(run, "rank0.1", "rank1.1")
    check_ranks(found, run)
    assert {len(table.of_kind("step")) for table in found} <= {4, 8}
    data = sorted(path.name for path in run.glob("*.rows") if is_data(path))
    assert data == (["rank0.1.data0.rows", "rank1.1.data0.rows"] if "monai" in program else [])


def test_ignite_s_own_launcher(own_folders: Path) -> None:
    """``idist.Parallel`` spawns the ranks; the store is theirs."""
    done = launch(sys.executable, PROGRAMS, "parallel")
    assert done.returncode == 0, done.stderr[-2000:]
    run = the_run(own_folders)
    check_ranks(tables(run, "rank0.1", "rank1.1"), run)


def test_a_bundle_on_two_ranks(tmp_path: Path, own_folders: Path) -> None:
    """As MONAI's multi-GPU configs do, with ``firetrace run`` before the launcher."""
    config = {
        "imports": ["$import time", "$import torch.distributed as dist"],
        "device": "$torch.device('cpu')",
        "network_def": {"_target_": "torch.nn.Linear", "in_features": 8, "out_features": 2},
        "network": {"_target_": "torch.nn.parallel.DistributedDataParallel",
                    "module": "$@network_def.to(@device)"},
        "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.1},
        "items": "$[{'image': torch.rand(8), 'label': torch.rand(2)} for _ in range(8)]",
        "dataset": {"_target_": "Dataset", "data": "@items"},
        "sampler": {"_target_": "DistributedSampler", "dataset": "@dataset", "even_divisible": True,
                    "shuffle": True},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 2,
                       "sampler": "@sampler"},
        "trainer": {"_target_": "SupervisedTrainer", "max_epochs": 2, "device": "@device",
                    "train_data_loader": "@dataloader", "network": "@network",
                    "loss_function": "$torch.nn.MSELoss()", "optimizer": "@optimizer"},
        "initialize": ["$dist.init_process_group(backend='gloo')",
                       "$monai.utils.set_determinism(seed=123)"],
        "run": ["$@trainer.run()"],
        "finalize": ["$time.sleep(0.5)", "$dist.destroy_process_group()"],
    }  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(config))
    done = launch(
        *FIRETRACE, "run", "-q", "--data", *TORCHRUN, "-m", "monai.bundle", "run",
        "--config_file", tmp_path / "train.json", "--bundle_root", SAMPLES / "spleen_bundle",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    run = the_run(own_folders)
    found = tables(run, "rank0.1", "rank1.1")
    check_ranks(found, run)
    for table in found:
        assert len(table.of_kind("step")) == 2 * 2
        (data,) = run.glob(f"{table.path.stem}.data*.rows")
        assert len(read_table(data).of_kind("batch")) == 2 * 2


def test_a_restart(own_folders: Path) -> None:
    """A rank dies and all are started again: new journals in the same directory."""
    done = launch(*TORCHRUN, "--max_restarts", 1, PROGRAMS, "alone", "die")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(said(done)) >= 2
    names = ["rank0.1", "rank1.1", "rank0.2", "rank1.2"]
    found = tables(the_run(own_folders), *names)
    assert len({table.meta.resource["process.pid"] for table in found}) == 4
    assert found[1].meta.ended is None
    assert len(found[1].of_kind("iteration")) == 5
    for table in found[2:]:
        assert table.meta.ended is not None
        assert len(table.of_kind("iteration")) == 8


def test_a_rank_that_is_killed(own_folders: Path) -> None:
    """Its journal says that it died, and the report of the run names it."""
    done = launch(*TORCHRUN, PROGRAMS, "alone", "kill")
    assert done.returncode != 0
    run = the_run(own_folders)
    found = tables(run, "rank0.1", "rank1.1")
    assert found[1].meta.ended is None
    assert not found[1].alive
    assert len(found[1].open_positions())
    report = launch(*FIRETRACE, "report", run)
    assert report.returncode == 0, report.stderr
    assert re.search(r"rank 1\b[^\n]*died", report.stdout), report.stdout


def test_jobs_of_the_same_second(own_folders: Path) -> None:
    """Two jobs that begin at once stay apart."""
    jobs = [threading.Thread(target=launch, args=(*TORCHRUN, PROGRAMS, "alone")) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    runs = sorted(own_folders.iterdir())
    assert len(runs) == 2
    for run in runs:
        check_ranks(tables(run, "rank0.1", "rank1.1"), run)


def hang_up(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def test_a_store_that_does_not_answer(own_folders: Path) -> None:
    """The program goes on, and ends as ever; its run is one of its own."""
    import torch

    with socket.create_server(("127.0.0.1", 0)) as server:
        done = launch(
            sys.executable, PROGRAMS, "alone", RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(server.getsockname()[1]), TORCHELASTIC_USE_AGENT_STORE="True",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("firetrace: the store of this job does not answer") == 1
    generator = torch.Generator().manual_seed(7)
    assert said(done) == [f"rank 1 8 {torch.rand(2, generator=generator).tolist()}"]
    (table,) = tables(the_run(own_folders), "rank1.1")
    assert len(table.of_kind("step")) == 8


@pytest.mark.parametrize("how", ["silent", "refused", "hangs up"])
def test_patience(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the store fails to answer, it is over in time, and no thread is left waiting.

    (torch's own connection would wait for ever; hence no other bound than that of the test.)
    """
    monkeypatch.setattr(world, "PATIENCE_S", 0.6)
    import torch.distributed  # noqa: F401

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if how != "refused":
            server.listen(8)
        if how == "hangs up":
            threading.Thread(target=hang_up, args=(server,), daemon=True).start()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        assert world.meet() is None
    left = [each for each in threading.enumerate() if each.name == "firetrace-store"]
    for each in left:
        each.join(5)
        assert not each.is_alive()


STOPPED = """\
import os, signal, subprocess, sys, threading, time
import torch.distributed as dist
from firetrace.tracer import world
world.PATIENCE_S = 3.0
store = subprocess.Popen([sys.executable, "-c", '''
import time, torch.distributed as d
store = d.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(100)
'''], stdout=subprocess.PIPE, text=True)
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=store.stdout.readline().strip(),
                  TORCHELASTIC_USE_AGENT_STORE="True")
meeting = world.meet()
assert meeting.agree("run", "mine") == "mine"
assert meeting.look("nothing") is None
os.kill(store.pid, signal.SIGSTOP)  # the host is gone
thread = threading.Thread(target=lambda: print(meeting.look("run")), daemon=True)
thread.start()
time.sleep(0.2)
if "close" in sys.argv:
    meeting.close()
thread.join(60)
print("ended" if not thread.is_alive() else "waits", flush=True)
store.kill()
"""


@pytest.mark.parametrize("words", [["close"], []])
def test_a_store_that_is_gone(words: list[str]) -> None:
    """Who asks it gets an error in time, and is not caught in it when the interpreter ends.

    (That ends in ``terminate called without an active exception`` and another exit code.)
    """
    done = launch(sys.executable, "-c", STOPPED, *words)
    assert "ended" in done.stdout
    assert done.returncode == 0, done.stderr[-2000:]
    assert "terminate" not in done.stderr
