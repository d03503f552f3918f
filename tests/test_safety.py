"""Nobody gets in by a run's directory, a name or an address; a fork waits for nobody's lock."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from firetrace.exporters.files import whole_file
from firetrace.exporters.otlp.delivery import Cursor, CursorError
from firetrace.exporters.otlp.sender import Sent
from firetrace.exporters.otlp.transport import bare
from firetrace.tracer.files import open_own
from firetrace.tracer.lock import lock_path, take_lock
from firetrace.tracer.reader import Position
from firetrace.tracer.run import open_run
from firetrace.tui.cli import main
from tests.support.recordings import record

HOSTILE = "a\x1b]0;evil\x07b"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_not_written_through(tmp_path: Path, there: bool) -> None:
    """Neither the lock nor the cursor's or an export's temporary file leads out of the folder."""
    journal, precious = open_run(record(epochs=1)).newest, tmp_path / "precious"
    if there:
        precious.write_text("work")
    lock_path(journal).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        take_lock(lock_path(journal))
    lock_path(journal).unlink()
    journal.with_suffix(".otlp.part").symlink_to(precious)
    cursor = Cursor(journal)
    cursor.write(Position(1, {}, []), Sent())
    cursor.close()
    (tmp_path / "out.part").symlink_to(precious)
    with whole_file(tmp_path / "out") as file:
        file.write(b"whole")
    assert precious.exists() == there
    assert not there or precious.read_text() == "work"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe where a file of ours belongs is an error at once."""
    journal = open_run(record(epochs=1)).newest
    os.mkfifo(journal.with_suffix(".otlp.json"))
    with pytest.raises(CursorError, match="damaged"):
        Cursor(journal)
    with pytest.raises(OSError, match="no regular file"):
        open_own(journal.with_suffix(".otlp.json"), os.O_RDWR)


def test_something_under_a_journals_name_hides_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    """``list`` shows all runs, whatever lies in one of them."""
    directory = record(epochs=1)
    (directory / "rank0.7.rows").write_bytes(b"no journal")
    assert main(["list"]) == 0
    assert directory.name in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["report", "{}", "and"], ["prune", "--keep", "0", "--dry-run"],
              ["export", "--to", "chrome", "-o", "{}.json"]]
)  # fmt: skip
def test_no_name_acts_on_the_terminal(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a command says of a path, or of words that it does not know, has no escape codes."""
    directory = record(epochs=1)
    hostile = directory.rename(directory.with_name(HOSTILE))
    words = [word.format(tmp_path / HOSTILE if ".json" in word else hostile) for word in words]
    with contextlib.suppress(SystemExit):  # of wrong usage
        main(words)
    said = "".join(capfd.readouterr())
    assert "\x1b" not in said
    assert "\x07" not in said


def test_an_address_is_shown_without_its_password() -> None:
    """What is logged of an endpoint has neither user nor password nor key."""
    url = "https://ada:secret@collector.example:4318/v1/traces?key=secret#secret"
    assert bare(url) == "https://collector.example:4318/v1/traces"


FORK = """\
import os, signal, sys, threading
from ignite.engine import Engine
from firetrace import TraceHandler
from firetrace.tracer import recording
handler, engine = TraceHandler(), Engine(lambda engine, batch: batch)
handler.attach(engine)
engine.run([1, 2])
held, over = threading.Event(), threading.Event()
def hold():
    with recording._shared_guard, handler._guard, handler._recording._guard:
        held.set()
        over.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
pid = os.fork()
if not pid:
    signal.alarm(20)
    handler.attach(Engine(engine._process_function))
    engine.run([1, 2])
    own = TraceHandler()
    own.attach(engine)
    engine.run([1, 2])
    own.close()
    handler.close()
    os._exit(0)
_, status = os.waitpid(pid, 0)
over.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


def test_a_forked_child_waits_for_no_lock_of_its_parents(own_folders: Path) -> None:
    """Another thread holds every lock of firetrace's when it is forked; it uses firetrace."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(list(own_folders.glob("*/*.rows"))) == 2
