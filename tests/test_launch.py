"""How ``firetrace run`` reads its arguments and names its runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from firetrace.tracer.run import unused_directory
from firetrace.tui.launch import command, default_name, split


def test_options_end_where_the_program_begins() -> None:
    """Everything from the program on is the program's."""
    assert split(["-q", "a.py", "-q"]) == (["-q"], ["a.py", "-q"])
    assert split(["--name", "-m", "-m", "x", "-o"]) == (["--name", "-m"], ["-m", "x", "-o"])
    assert split(["--name=n", "-od", "--", "-x.py"]) == (["--name=n", "-od"], ["-x.py"])
    assert split(["-q"]) == (["-q"], [])


def test_names_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the script, also behind a launcher; a package is named after the folder."""
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path / "study")
    assert default_name(["src/train.py", "x.py"]) == "train"
    assert default_name(["torchrun", "--nproc_per_node", "2", "fit.py"]) == "fit"
    assert default_name(["-m", "monai.bundle", "run"]) == "study"
    assert default_name(["python", "-m", "my.tools.fit"]) == "fit"
    assert default_name(["./start"]) == "start"
    assert unused_directory("a/b").name.endswith("-a-b")
    assert unused_directory("a") != unused_directory("a")


def test_programs_that_are_not_named_py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command is executed itself; other files and folders are Python's."""
    monkeypatch.chdir(tmp_path)
    Path("plain").touch()
    Path("tool").touch(0o755)
    Path("app").mkdir()
    Path("app", "__main__.py").touch()
    assert command(["plain", "x"]) == (sys.executable, [sys.executable, "plain", "x"])
    assert command(["app"]) == (sys.executable, [sys.executable, "app"])
    assert command(["./tool", "x"]) == ("./tool", ["./tool", "x"])
