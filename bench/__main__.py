"""``python -m bench``: measures, prints one table; its exit code says whether every bar holds."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import (
    data,
    device,
    disk,
    exporting,
    memory,
    ranks,
    reading,
    recording,
    sending,
    startup,
    watching,
)
from bench.environment import unset_variables, versions, without_pools
from bench.process import SampleError
from bench.result import Row, render
from bench.settings import Progress, Settings

SUBJECTS: dict[str, Any] = {
    "recording": recording, "device": device, "data": data, "disk": disk, "memory": memory,
    "reading": reading, "exporting": exporting, "sending": sending, "startup": startup,
    "watching": watching, "ranks": ranks,
}  # fmt: skip
PACKAGES = (
    "firetrace", "pytorch-ignite", "monai", "torch", "opentelemetry-sdk", "numpy", "textual",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure. Returns 0 if every bar is reached, 1 if one is missed, 2 for wrong usage."""
    arguments = parser().parse_args(argv)
    without_pools()
    unset_variables()
    progress, rows = Progress(), list[Row]()
    with tempfile.TemporaryDirectory(prefix="firetrace-bench-", dir=arguments.directory) as folder:
        os.environ["XDG_STATE_HOME"] = folder  # the user's list of runs is not for these
        workspace = Path(folder)
        settings = Settings.quick(workspace) if arguments.quick else Settings(workspace)
        began = time.monotonic()
        system = machine(workspace)
        for name in arguments.subject or SUBJECTS:
            measure: Callable[[Settings, Progress], list[Row]] = SUBJECTS[name].measure
            try:
                rows += measure(settings, progress)
            except SampleError as error:
                sys.stderr.write(f"bench: {error}\n")
                return 1
        progress("")
    print(render(rows))
    print(f"\n{system}; {time.monotonic() - began:.0f} s")
    if arguments.quick:
        print("The short form: few samples, so the bounds are wide.")
    if arguments.json:
        document = {"machine": system, "quick": arguments.quick, "rows": [as_json(r) for r in rows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    missed = [row for row in rows if row.failed]
    for row in missed:
        print(f"MISSED: {row.subject}, {row.what}: {row.ratio or row.ours} {row.peer}; {row.bar}")
    return 1 if missed else 0


def parser() -> argparse.ArgumentParser:
    """The command's arguments; its help says what is measured."""
    subjects = "\n\n".join(str(subject.__doc__) for subject in SUBJECTS.values())
    root = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures firetrace against its peers, in the same run on the same machine, "
        "and prints one table. Exit code 1 if a bar is missed.",
        epilog="A ratio in the table is that of the medians; in brackets its 95% bound on the "
        "unfavourable\nside (one-sided, bootstrap over pairs), which is what the bar is held "
        f"against.\n\n{subjects}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument(
        "subject", nargs="*", type=_subject, metavar="SUBJECT",
        help=f"what to measure: {', '.join(SUBJECTS)}; by default everything",
    )  # fmt: skip
    root.add_argument("--quick", action="store_true", help="the short form, under a minute")
    root.add_argument("--json", type=_file, metavar="FILE", help="also write every sample there")
    root.add_argument(
        "--directory", type=_folder, metavar="DIR",
        help="where journals are written meanwhile; the file system matters (default: the "
        "temporary directory)",
    )  # fmt: skip
    return root


def _subject(text: str) -> str:
    if text not in SUBJECTS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SUBJECTS)}")
    return text


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():  # said now, not in eight minutes
        raise argparse.ArgumentTypeError(f"{text}: not a file in an existing folder")
    return path


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return Path(text)


def machine(workspace: Path) -> str:
    """What the figures were taken on."""
    from firetrace.tracer.storage import can_be_mapped, mount_of

    kind, _ = mount_of(workspace)
    way = "mapped" if can_be_mapped(workspace) else "by pwrite"
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, journals {way} "
        f"on {kind}, Python {platform.python_version()}, {versions(PACKAGES)}"
    )


def as_json(row: Row) -> dict[str, Any]:
    """A row with its verdict."""
    return {**asdict(row), "verdict": row.verdict}


if __name__ == "__main__":
    sys.exit(main())
