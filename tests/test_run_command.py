"""``firetrace run``: a program that is not changed is traced, and cannot tell.

Real processes, each compared with the same one started without us.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from firetrace.tracer.run import open_run
from firetrace.tracer.table import Table, read_table
from firetrace.tui.launch import environment
from tests.conftest import SAMPLES
from tests.support.shape import assert_well_formed, outline, tree

FIRETRACE = (sys.executable, "-m", "firetrace.tui.cli")

LOOK = """\
import os, sys
print(sys.argv, sys.path, sys.flags)
print(__name__, __file__, __package__, getattr(__spec__, "name", None))
print(sorted(sys.modules), os.getcwd(), [os.isatty(fd) for fd in range(3)], sys.orig_argv[1:])
print(sys.stdin.read())
print("to stderr", file=sys.stderr)
"""

TRAIN = """\
import sys
from ignite.engine import Engine

def step(engine, batch):
    print("batch", batch, flush=True)
    if batch == "wait":
        sys.stdin.read()
    return 1 // batch

engine = Engine(step)
engine.run([eval(word) for word in sys.argv[1:]], max_epochs=2)
print("trained", engine.state.iteration)
"""


def untraced(*words: object, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=120, **how
    )


def traced(*words: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """``firetrace run -q`` with these words."""
    return untraced(*FIRETRACE, "run", "-q", *words, **how)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def recorded(directory: Path, journal: str = "rank0.1.rows") -> Table:
    table = read_table(directory / journal)
    assert_well_formed(table)
    return table


def engines(table: Table) -> list[str]:
    """The engines of the outermost runs."""
    parents = table.parents()
    return [table.lane(i).engine for i in table.of_kind("run").tolist() if parents[i] < 0]


def the_run(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


# What the program sees


def test_the_program_cannot_tell(tmp_path: Path, own_folders: Path) -> None:
    """Arguments, paths, modules, stdin, stdout, stderr are those of the untraced program."""
    written(tmp_path, "look.py", LOOK)
    words = ("look.py", "--help", "-o", "x", "-q", "--", "-m", "")
    how = {"cwd": tmp_path, "input": "in\nput"}
    ours, theirs = traced(*words, **how), untraced(sys.executable, *words, **how)
    assert ours.stdout == theirs.stdout
    assert ours.stderr == theirs.stderr == "to stderr\n"
    assert ours.returncode == theirs.returncode == 0
    assert not own_folders.exists()  # no engine, no run


@pytest.mark.parametrize("custom", ["print('customized')", "raise KeyError('mine')"])
def test_the_user_s_sitecustomize_runs(
    tmp_path: Path, custom: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours hides it, runs it, and leaves its errors to Python."""
    (tmp_path / "site").mkdir()
    written(tmp_path / "site", "sitecustomize.py", custom)
    script = written(tmp_path, "look.py", LOOK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{tmp_path}")
    theirs = untraced(sys.executable, script, input="")
    ours = untraced(sys.executable, script, input="", env=environment(tmp_path / "run", "look"))
    assert (ours.stdout, ours.stderr) == (theirs.stdout, theirs.stderr)
    assert "customized" in ours.stdout or "KeyError: 'mine'" in ours.stderr


def test_a_module_cannot_tell(tmp_path: Path) -> None:
    """``-m`` is Python's own."""
    (tmp_path / "package").mkdir()
    for name in ("__main__.py", "tool.py"):
        written(tmp_path / "package", name, LOOK)
    for module in ("package", "package.tool"):
        words = ("-m", module, "-m", "--version")
        how = {"cwd": tmp_path, "input": ""}
        assert traced(*words, **how).stdout == untraced(sys.executable, *words, **how).stdout


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("raise ValueError", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)  # fmt: skip
def test_exit_codes_are_the_program_s(tmp_path: Path, code: str, expected: int) -> None:
    """Whatever ends it."""
    script = written(tmp_path, "end.py", code)
    ours, theirs = traced(script), untraced(sys.executable, script)
    assert ours.returncode == theirs.returncode == expected
    assert ours.stderr == theirs.stderr


def test_a_command_starts_as_from_a_shell(tmp_path: Path) -> None:
    """Found on PATH, with its own arguments, and no signal ignored that was not before."""
    words = ("sh", "-c", 'echo "$0" "$@"; grep Sig /proc/self/status; exit 7', "a b", "-q")
    ours, theirs = traced(*words), untraced(*words)
    assert ours.stdout == theirs.stdout
    assert ours.returncode == theirs.returncode == 7


# What is recorded


def test_an_unchanged_program_is_traced(tmp_path: Path, own_folders: Path) -> None:
    """Its run has its name; one line on stderr says where; the exception shows the same frames."""
    script = written(tmp_path, "train.py", TRAIN)
    words = (script.name, "1", "2", "0")
    theirs = untraced(sys.executable, *words, cwd=tmp_path)
    ours = untraced(*FIRETRACE, "run", *words, cwd=tmp_path)
    run = the_run(own_folders)
    first, rest = ours.stderr.split("\n", 1)
    assert first == f"firetrace: recording to {run}; see it with: firetrace watch {run}"
    frames = re.compile(rf'File "{re.escape(str(script))}", line \d+, in .*\n.*')
    assert frames.findall(rest) == frames.findall(theirs.stderr) != []
    assert rest.splitlines()[-1] == theirs.stderr.splitlines()[-1]
    assert ours.stdout == theirs.stdout
    assert ours.returncode == theirs.returncode == 1
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}-train", run.name)
    table = recorded(run)
    assert table.meta.resource["service.name"] == "train"
    assert engines(table) == ["step"]
    assert len(table.of_kind("step")) == 3
    report = untraced(*FIRETRACE, "report", "train")
    assert "ZeroDivisionError" in report.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_training(tmp_path: Path, number: signal.Signals) -> None:
    """Sent to the one process that there is; what was recorded until then is there."""
    script = written(tmp_path, "train.py", TRAIN)
    words = [*FIRETRACE, "run", "-q", "-o", str(tmp_path / "run"), str(script), "1", "'wait'"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while "wait" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == -number
    table = recorded(tmp_path / "run")
    assert table.meta.resource["process.pid"] == process.pid
    assert len(table.of_kind("step")) == 2


def test_monai_as_a_module(tmp_path: Path, own_folders: Path) -> None:
    """A MONAI trainer in a module that knows nothing of us, with a validation in it."""
    written(tmp_path, "study.py", "from tests.support.trainings import Training\n"
            "training = Training(workers=2)\ntraining.trainer.run()\n")  # fmt: skip
    root = str(Path(__file__).resolve().parent.parent)
    how = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": root}}
    ours = untraced(*FIRETRACE, "run", "-m", "study", **how)
    assert ours.returncode == 0, ours.stderr
    run = the_run(own_folders)
    assert run.name.endswith("-study")
    assert [path.name for path in sorted(run.glob("*.rows"))] == ["rank0.1.rows"]  # no worker's
    text = outline(tree(recorded(run)))
    assert "prepare_batch\n        forward" in text
    assert "ValidationHandler\n        run" in text


def test_a_handler_in_the_program_is_not_doubled(tmp_path: Path, own_folders: Path) -> None:
    """The sample attaches one itself: it joins, all lies in one run, every step once."""
    words = (SAMPLES / "ignite_trainer.py", "--epochs", "2", "--batches", "4")
    ours = traced("-o", tmp_path / "run", "-n", "two words", *words)
    assert ours.returncode == 0, ours.stderr
    assert ours.stderr == ""
    table = recorded(tmp_path / "run")
    assert engines(table) == ["trainer"]
    assert len(table.of_kind("step")) == 2 * (4 + 1)
    assert table.meta.resource["service.name"] == "two words"
    assert not own_folders.exists()


CHILDREN = """\
import multiprocessing, os
from ignite.engine import Engine

def step(engine, batch):
    return batch

def study(engine=None):
    (engine or Engine(step)).run([1, 2, 3])

if __name__ == "__main__":
    engine = Engine(step)
    study(engine)
    for method, argument in (("spawn", None), ("fork", None), ("fork", engine)):
        child = multiprocessing.get_context(method).Process(target=study, args=(argument,))
        child.start()
        child.join()
        assert child.exitcode == 0
    pid = os.fork()
    if not pid:
        os._exit(0)  # a child without an engine
    os.waitpid(pid, 0)
    study(engine)
"""


def test_children_record_beside_their_parent(tmp_path: Path) -> None:
    """Spawned or forked, with an engine of their own or the parent's: a journal each."""
    script = written(tmp_path, "children.py", CHILDREN)
    ours = traced("-o", tmp_path / "run", script)
    assert ours.returncode == 0, ours.stderr
    journals = open_run(tmp_path / "run").journals
    assert [path.name for path in journals] == [f"rank0.{n}.rows" for n in (1, 2, 3, 4)]
    parent, *children = [recorded(tmp_path / "run", path.name) for path in journals]
    assert engines(parent) == ["step", "step"]
    whole = outline(tree(parent)[:1])
    for child in children:
        assert outline(tree(child)) == whole
        assert child.meta.ended is not None


DISTRIBUTED = """\
import time
import ignite.distributed as idist
from ignite.engine import Engine

def training(rank):
    def step(engine, batch):
        return idist.all_reduce(batch)
    state = Engine(step).run([1, 2, 3])
    assert state.output == 3 * idist.get_world_size() == 6
    time.sleep(0.5)  # torch may hang if gloo has not let go of the last collective by then

with idist.Parallel(backend="gloo") as parallel:
    parallel.run(training)
"""


def test_torchrun(tmp_path: Path) -> None:
    """Two workers, two journals in one run; the launcher has none."""
    script = written(tmp_path, "train.py", DISTRIBUTED)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ours = traced(
        "-o", tmp_path / "run", "torchrun", "--standalone", "--nproc_per_node", 2, script,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ours.returncode == 0, ours.stderr
    names = sorted(path.name for path in open_run(tmp_path / "run").journals)
    assert names == ["rank0.1.rows", "rank1.1.rows"]
    for name in names:
        assert engines(recorded(tmp_path / "run", name)) == ["training"]


def test_opentelemetry_instrument(tmp_path: Path, own_folders: Path) -> None:
    """Its entry point finds us; the program knows of neither."""
    script = written(tmp_path, "train.py", TRAIN)
    tool = Path(sys.executable).with_name("opentelemetry-instrument")
    off = [
        word for kind in ("traces", "metrics", "logs") for word in (f"--{kind}_exporter", "none")
    ]
    ours = untraced(tool, *off, sys.executable, script, "1", "2")
    assert (ours.returncode, ours.stderr) == (0, "")
    run = the_run(own_folders)
    assert run.name.endswith("-train")
    assert engines(recorded(run)) == ["step"]
    assert len(recorded(run).of_kind("step")) == 4


def test_the_instrumentor_can_be_undone(own_folders: Path) -> None:
    """By hand, as every instrumentor."""
    from ignite.engine import Engine

    from firetrace.tracer.instrumentor import FiretraceInstrumentor

    original = Engine._internal_run
    instrumentor = FiretraceInstrumentor()
    instrumentor.instrument(directory=own_folders / "run", name="by hand")
    assert Engine._internal_run is not original
    Engine(lambda engine, batch: batch).run([1])
    instrumentor.uninstrument()
    assert Engine._internal_run is original
    assert recorded(own_folders / "run").meta.resource["service.name"] == "by hand"


# What the command refuses


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.py", "1"], "missing.py: neither a file nor a command"),
        (["no-such-command"], "no-such-command: neither a file nor a command"),
        (["-m"], "-m: the name of a module is missing"),
        ([], "name a program"),
        (["--nmae", "x", "look.py"], "--nmae"),
    ],
)  # fmt: skip
def test_what_cannot_be_started(words: list[str], said: str, own_folders: Path) -> None:
    """One line says why; the exit code is that of wrong usage."""
    ours = traced(*words)
    assert ours.returncode == 2
    assert said in ours.stderr.splitlines()[-1]
    assert ours.stdout == ""
    assert not own_folders.exists()


def test_the_help_teaches() -> None:
    """By examples."""
    ours = untraced(*FIRETRACE, "run", "--help")
    assert ours.returncode == 0
    assert "firetrace run -m monai.bundle run" in ours.stdout


def test_a_python_without_firetrace_goes_on(tmp_path: Path) -> None:
    """One line on stderr says it. That Python has no ignite either: there is a stand-in for it."""
    (tmp_path / "ignite" / "engine").mkdir(parents=True)
    for name in ("ignite", "ignite/engine"):
        written(tmp_path / name, "__init__.py", "")
    written(tmp_path / "ignite/engine", "engine.py", "")
    script = written(tmp_path, "train.py", "import ignite.engine.engine; print('trained')")
    python = Path(sys.base_prefix, "bin", "python3")
    ours = traced(python, script)
    assert (ours.returncode, ours.stdout) == (0, "trained\n")
    (line,) = ours.stderr.splitlines()
    assert line.startswith(f"firetrace: {python}")
    assert "No module named 'firetrace'" in line
