"""What each command loads: start-up is felt, and a login node has no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

HEAVY = ("torch", "ignite", "monai", "textual", "opentelemetry", "numpy", "rich", "grpc")


def loaded(program: str) -> set[str]:
    """Which of the heavy packages a program has loaded when it ends."""
    ask = f"\nimport sys; print('LOADED', *(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program + ask], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("LOADED")[1].split())


def test_the_command_loads_nothing_heavy() -> None:
    """``import firetrace.tui.cli`` is quick: neither torch nor textual, nor numpy."""
    assert loaded("import firetrace.tui.cli") == set()


def test_help_loads_nothing_heavy() -> None:
    """``firetrace --help`` and the help of every command."""
    program = (
        "from firetrace.tui.cli import main\n"
        "for words in ([], ['run'], ['watch'], ['report'], ['export'], ['list'], ['prune']):\n"
        "    try: main([*words, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
    )
    assert loaded(program) == set()


def test_importing_firetrace_loads_nothing() -> None:
    """The package and its rooms are lazy."""
    assert loaded("import firetrace, firetrace.tracer, firetrace.exporters, firetrace.tui") == set()


@pytest.mark.parametrize(
    ("program", "never"),
    [
        ("from firetrace import TraceHandler", {"torch", "ignite", "textual", "opentelemetry"}),
        ("from firetrace.tracer.everywhere import trace_every_engine as t; t()", set(HEAVY)),
        ("import firetrace.tracer.instrumentor", {"torch", "ignite", "numpy"}),
        ("import firetrace.tui.app", {"torch", "ignite", "monai", "opentelemetry"}),
        ("import firetrace.tui.model, firetrace.tui.text", {"torch", "textual", "opentelemetry"}),
        ("import firetrace.tui.html.page", {"torch", "ignite", "textual", "opentelemetry"}),
        ("import firetrace.exporters.chrome.export", {"torch", "textual", "opentelemetry", "rich"}),
        ("import firetrace.exporters.otlp", {"torch", "textual", "ignite", "rich"}),
    ],
)  # fmt: skip
def test_each_room_loads_only_what_it_needs(program: str, never: set[str]) -> None:
    """The app runs without torch, the exporters without textual, the handler without either."""
    assert not loaded(program) & never


def test_every_room_is_installed() -> None:
    """What ``pip install`` takes along, editable or not: each folder that has modules."""
    toml = pytest.importorskip("tomllib")  # Python 3.11
    setup = toml.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {
        ".".join(("firetrace", *path.parent.relative_to(ROOT).parts)): path.parent
        for room in ("tracer", "exporters", "tui")
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert set(setup["packages"]) == {"firetrace", *rooms}
    assert {name: ROOT / path for name, path in setup["package-dir"].items()} == {
        "firetrace": ROOT / "root", **rooms,
    }  # fmt: skip
