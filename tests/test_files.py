"""Files that are whole, or not there."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from firetrace.exporters.files import whole_file
from firetrace.tui.cli import main
from tests.support.recordings import record

TO = pytest.mark.parametrize("to", ["chrome", "otlp-file"])


def test_nothing_stays_of_what_failed(tmp_path: Path) -> None:
    """What was there before is there still."""
    path = tmp_path / "x"
    path.write_text("before")

    def interrupted() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """What it points to is written; a link to an open file of the process's is not replaced."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("before")
    link.symlink_to(target)
    with whole_file(link) as file:
        file.write(b"after")
    assert link.is_symlink()
    assert target.read_text() == "after"
    with (tmp_path / "open").open("wb") as opened:
        out = tmp_path / "out"
        out.symlink_to(f"/proc/self/fd/{opened.fileno()}")
        with whole_file(out) as file:
            file.write(b"straight")
        assert out.is_symlink()
    assert (tmp_path / "open").read_bytes() == b"straight"


@TO
def test_a_full_disk_is_one_line(to: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A device is written to and never replaced; that it is full is said with its name."""
    directory = record(epochs=1, steps=3)
    assert main(["export", "--to", to, "-o", "/dev/full", str(directory)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "firetrace: /dev/full: No space left on device"
    )
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@TO
@pytest.mark.parametrize("target", ["/nowhere/x.json", "{folder}", ".", "/"])
def test_a_place_that_cannot_be_written(
    to: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and exit code 1; nothing is left behind."""
    directory = record(epochs=1, steps=3)
    before = sorted(tmp_path.rglob("*"))
    words = ["-o", target.format(folder=tmp_path), str(directory)]
    assert main(["export", "--to", to, *words]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_pipe_gets_the_trace_alone(tmp_path: Path) -> None:
    """``-o /dev/stdout`` can be piped on; what is said goes to stderr."""
    directory = record(epochs=1, steps=3)
    words = ["export", "--to", "chrome", "-o", "/dev/stdout", str(directory)]
    done = subprocess.run(
        [sys.executable, "-m", "firetrace.tui.cli", *words], capture_output=True, check=True
    )
    assert json.loads(done.stdout)[0]["name"] == "process_name"
    assert b"spans" in done.stderr


def test_the_run_itself_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    """An output that is one of the run's files is wrong usage."""
    directory = record(epochs=1, steps=3)
    (journal,) = directory.glob("*.rows")
    before = journal.read_bytes()
    assert main(["export", "--to", "chrome", "-o", str(journal), str(directory)]) == 2
    assert journal.read_bytes() == before
    assert "is a part of the run" in capsys.readouterr().err
