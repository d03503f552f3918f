"""``firetrace run``: becomes the program, with an environment in which its engines are traced.

The process is replaced, so exit code, output, signals and terminal are the program's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from firetrace.tracer import startup

OPTIONS_WITH_VALUE = ("-o", "--output", "-n", "--name")


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell the options of ``firetrace run`` from the program, whose arguments are its own."""
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-m":
        if words[at] == "--":
            return list(words[:at]), list(words[at + 1 :])
        at += 2 if words[at] in OPTIONS_WITH_VALUE else 1
    return list(words[:at]), list(words[at:])


def command(program: Sequence[str]) -> tuple[str, list[str]]:
    """The file to execute and its arguments, for a script, ``-m`` and a module, or a command.

    Raises:
        FileNotFoundError: there is no such program.
    """
    first = program[0]
    if first == "-m":
        if len(program) < 2:
            raise FileNotFoundError("-m: the name of a module is missing")
        return sys.executable, [sys.executable, *program]
    found = None if first.endswith(".py") else shutil.which(first)
    if found:
        return found, list(program)
    if not os.path.isfile(first) and not os.path.isfile(os.path.join(first, "__main__.py")):
        raise FileNotFoundError(f"{first}: neither a file nor a command")
    return sys.executable, [sys.executable, *program]


def default_name(program: Sequence[str]) -> str:
    """What to call the run: after the script or module, also where a launcher starts that."""
    for at, word in enumerate(program):
        if word.endswith(".py"):
            return Path(word).stem
        if word == "-m" and at + 1 < len(program):
            return _module_name(program[at + 1])
    return Path(program[0]).stem


def _module_name(module: str) -> str:
    """A module's last part, or for a package's ``__main__`` the current folder. Imports nothing."""
    top, *rest = module.split(".")
    spec = PathFinder.find_spec(top, ["", *sys.path])
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    if any(Path(place, *rest, "__main__.py").is_file() for place in places):
        return Path.cwd().name
    return rest[-1] if rest else top


def environment(
    directory: Path, name: str, data: bool = False, device: bool = True
) -> dict[str, str]:
    """The environment in which Python traces every engine into the directory.

    ``data``: the making of batches, too. ``device``: device time, where there is a GPU.
    """
    folder = os.path.dirname(os.path.abspath(startup.__file__))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {
        **os.environ,
        "FIRETRACE_RUN": str(directory),
        "FIRETRACE_NAME": name,
        **({"FIRETRACE_DATA": "1"} if data else {}),
        **({} if device else {"FIRETRACE_DEVICE": "0"}),
        # An empty entry would be the current folder; an empty variable is none.
        "PYTHONPATH": os.pathsep.join([folder, *(p for p in paths if p != folder)])
        if paths != [""] else folder,
    }  # fmt: skip


def become(file: str, words: list[str], variables: dict[str, str]) -> None:
    """Replace this process by the program.

    Raises:
        OSError: it cannot be executed.
    """
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and an ignored one is inherited
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(file, words, variables)
