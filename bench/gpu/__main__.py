"""``make gpu-check``: everything about device time that only a real GPU can tell, in eight minutes.

Prints one table. Exit code 0 if all of it holds, 1 if something is missed, 2 where there is no GPU
(or no torch that can use it), which is said in one line.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.environment import unset_variables, versions
from bench.gpu.check import Check, Settings, guarded, render

#: name -> module, and what in it makes the checks. What may leave CUDA in a bad state comes last,
#: and what is timed first: CUDA's calls stay slower once torch's profiler has watched them.
SUBJECTS = {
    "calls": ("cost", "calls"), "clocks": ("clocks", "checks"), "cost": ("cost", "checks"),
    "spans": ("spans", "checks"), "waits": ("waits", "checks"), "planted": ("planted", "checks"),
    "memory": ("memory", "checks"), "engines": ("engines", "checks"),
    "streams": ("streams", "checks"),
}  # fmt: skip
#: What is imported, and what it is called where packages are installed.
NEEDED = {
    "torch": "torch (for CUDA)", "monai": "monai", "ignite": "pytorch-ignite", "numpy": "numpy",
    "platformdirs": "platformdirs", "rich": "rich", "firetrace": "firetrace (use make gpu-check)",
}  # fmt: skip
PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy")
#: A check that hangs ends everything after so long, with the stack of each thread.
LIMIT_S = 480


def main(argv: Sequence[str] | None = None) -> int:
    """Check. Returns the exit code."""
    arguments = parser().parse_args(argv)
    if reason := missing():
        print(f"gpu-check: {reason}; nothing was checked")
        return 2
    unset_variables()
    warned = Warned()
    with tempfile.TemporaryDirectory(prefix="firetrace-gpu-", dir=arguments.directory) as folder:
        os.environ["XDG_STATE_HOME"] = folder  # the user's list of runs is not for these
        # Taken down after each profile, CUPTI may be so in the midst of the next one.
        os.environ["TEARDOWN_CUPTI"] = "0"
        settings = (Settings.quick if arguments.quick else Settings)(Path(folder))
        began = time.monotonic()
        found = tried(arguments.subject or SUBJECTS, settings, told)
        found.append(warned.check())
    print(render(found))
    print(f"\n{machine()}; {time.monotonic() - began:.0f} s")
    if arguments.quick:
        print("The short form: few samples, so the bounds are wide.")
    if arguments.json:
        lines = [{**asdict(each), "result": each.result} for each in found]
        arguments.json.write_text(json.dumps({"machine": machine(), "checks": lines}) + "\n")
    missed = [each for each in found if each.ok is False]
    for each in missed:
        print(f"MISSED: {each.name}: {each.measured}; {each.bar}")
    return 1 if missed else 0


def tried(subjects: Iterable[str], settings: Settings, told: Callable[[str], None]) -> list[Check]:
    """The rows of some subjects; where the GPU itself cannot be had, one that is missed."""
    found: list[Check] = []
    gpu: list[Any] = []

    def rows(name: str) -> Iterable[Check]:
        if not gpu:
            from bench.gpu.machine import Gpu

            gpu.append(Gpu(settings))
        module, function = SUBJECTS[name]
        checks = getattr(import_module(f"bench.gpu.{module}"), function)
        made: Iterable[Check] = checks(gpu[0], settings)
        return made

    for name in subjects:
        told(f"{name} ...")
        found += guarded(name, lambda name=name: rows(name), told)  # type: ignore[misc]
    return found


def told(text: str) -> None:
    """How far it has come, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Warned(logging.Handler):
    """Collects what firetrace warns of: nothing, if all is well."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger("firetrace").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.said.append(record.getMessage())
        told(f"firetrace warns: {record.getMessage()}")

    def check(self) -> Check:
        """The row that says so."""
        logging.getLogger("firetrace").removeHandler(self)
        text = "; ".join(dict.fromkeys(self.said)) or "nothing"
        return Check("firetrace warned of", text, "nothing", not self.said)


def missing() -> str:
    """Why nothing can be checked here, in one line; empty: it can."""
    without = [called for name, called in NEEDED.items() if find_spec(name) is None]
    if without:
        return f"{sys.executable} has no {', '.join(without)}"
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = f"no GPU that torch {torch.__version__} can use"
        return f"{why}: it finds none" if built else f"{why}: it is built without CUDA"
    return ""


def machine() -> str:
    """What the figures were taken on."""
    import torch

    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return (
        f"{gpu.name}, CUDA {torch.version.cuda or torch.version.hip}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"{versions(PACKAGES)}"
    )


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    root = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    root.add_argument(
        "subject", nargs="*", type=_subject, metavar="SUBJECT",
        help=f"what to check: {', '.join(SUBJECTS)}; by default everything",
    )  # fmt: skip
    root.add_argument("--quick", action="store_true", help="the short form, about two minutes")
    root.add_argument("--json", type=Path, metavar="FILE", help="also write every sample there")
    root.add_argument("--directory", metavar="DIR", help="where journals are written meanwhile")
    return root


def _subject(text: str) -> str:
    if text not in SUBJECTS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SUBJECTS)}")
    return text


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    sys.exit(main())
