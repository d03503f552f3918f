"""``python -m torture``: tries, prints one table; its exit code says whether everything held."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from bench.environment import unset_variables, without_pools
from bench.settings import Progress
from torture.result import Result, complaints, render
from torture.settings import Settings

#: By name: the module that has ``hurt``.
SUBJECTS = {
    "kills": "kills", "budget": "budget", "disks": "disks.subject", "processes": "processes",
    "journals": "journals.subject", "fuzz": "journals.fuzz", "long": "long",
    "threads": "threads", "security": "security.subject", "faults": "faults",
    "stragglers": "stragglers",
}  # fmt: skip
Subject = Callable[[Settings, Progress], Iterable[Result]]


def main(argv: Sequence[str] | None = None) -> int:
    """Try everything. Returns 0 if all of it held, 1 if something failed, 2 for wrong usage."""
    arguments = parser().parse_args(argv)
    prepare_environment()
    progress, results = Progress(), list[Result]()
    began = time.monotonic()
    with _workspace(arguments.directory) as name:
        for subject in arguments.subject or SUBJECTS:
            folder = Path(name, subject)
            folder.mkdir()
            os.environ["XDG_STATE_HOME"] = str(folder / "state")  # the user's is not for these
            make = Settings.brief if arguments.short else Settings
            hurt: Subject = import_module(f"torture.{SUBJECTS[subject]}").hurt
            try:
                for result in hurt(make(folder, arguments.seed), progress):
                    results.append(result)
            except (Exception, SystemExit) as error:  # the others are tried all the same
                traceback.print_exc()
                wrong = f"{type(error).__name__}: {error}"
                results.append(Result(subject, "to be tried to its end", 1, [wrong]))
    progress("")
    print(render(results))
    form = "the short form" if arguments.short else "the whole form"
    print(
        f"\n{form}, seed {arguments.seed}; {os.cpu_count()} cores, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}; "
        f"{time.monotonic() - began:.0f} s"
    )
    if arguments.json:
        lines = [asdict(each) for each in results]
        arguments.json.write_text(json.dumps(lines, indent=1) + "\n")
    if found := complaints(results):
        print(found)
    return 1 if any(each.failed for each in results) else 0


def _workspace(directory: str | None) -> tempfile.TemporaryDirectory[str]:
    """Where all is tried. If something is left in it, the results are told all the same."""
    return tempfile.TemporaryDirectory(
        prefix="firetrace-torture-", dir=directory, ignore_cleanup_errors=True
    )


def parser() -> argparse.ArgumentParser:
    """The command's arguments; its help says what is tried."""
    root = argparse.ArgumentParser(
        prog="python -m torture",
        description="Kills trainings, fills their disks, damages their journals, breaks firetrace "
        "itself, and counts what went wrong. Exit code 1 if anything did.",
        epilog=f"subjects: {', '.join(SUBJECTS)}. What each does stands at the head of its file.",
    )
    root.add_argument(
        "subject", nargs="*", type=_subject, metavar="SUBJECT", help="by default all of them"
    )
    root.add_argument("--short", action="store_true", help="the form that every change must pass")
    root.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    root.add_argument("--json", type=Path, metavar="FILE", help="also write every failure there")
    root.add_argument("--directory", metavar="DIR", help="where it works (default: temporary)")
    return root


def _subject(text: str) -> str:
    if text not in SUBJECTS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SUBJECTS)}")
    return text


def prepare_environment() -> None:
    """Make runs alike; before torch is imported, and inherited by every child."""
    without_pools()
    unset_variables()
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # exceptions are what happens here


if __name__ == "__main__":
    sys.exit(main())
