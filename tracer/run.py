"""A run's directory: its name, what lies in it, and how to find runs again.

``./firetrace-runs/<start>-<name>/``, or under ``$FIRETRACE_DIR``. Every run is also listed in the
user's state folder, so that ``firetrace watch`` finds the newest one from anywhere.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_state_path

from firetrace.tracer.errors import FiretraceError, RunNotFoundError
from firetrace.tracer.lock import lock_path
from firetrace.tracer.reader import JournalReader, lock_is_held

FOLDER = "firetrace-runs"


def base_directory() -> Path:
    """Where new runs are made: ``$FIRETRACE_DIR``, or ``firetrace-runs`` in the current folder."""
    return Path(os.environ.get("FIRETRACE_DIR") or FOLDER).absolute()


def chosen() -> tuple[Path | None, str | None]:
    """The directory and name that ``firetrace run`` chose, for this process and its children."""
    directory = os.environ.get("FIRETRACE_RUN")
    return Path(directory) if directory else None, os.environ.get("FIRETRACE_NAME") or None


def unused_directory(name: str) -> Path:
    """A directory for a run that may come. Nothing is made, so chance keeps it from others."""
    start = time.strftime("%Y%m%d-%H%M%S")
    return base_directory() / f"{start}-{os.urandom(3).hex()}-{file_name(name)}"


def index_path() -> Path:
    """The user's list of runs, one JSON object a line."""
    return Path(user_state_path("firetrace", appauthor=False)) / "runs.jsonl"


def default_name() -> str:
    """What to call a run: the script's name, or the current folder's for ``python -m``."""
    script = Path(sys.argv[0] if sys.argv else "").stem
    if script in ("", "-", "-c", "-m", "__main__"):
        script = Path.cwd().name
    return file_name(script)


def file_name(text: str, most: int = 60) -> str:
    """``text`` as a part of a directory's name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:most] or "run"


@dataclass(frozen=True)
class Run:
    """A run's directory and the journals in it, oldest first."""

    path: Path
    journals: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The run's id: its directory's name."""
        return self.path.name

    @property
    def newest(self) -> Path:
        """The journal that was begun last."""
        return self.journals[-1]

    @property
    def ranks(self) -> dict[int, Path]:
        """The newest journal of each rank, by rank; a file that names none counts as the last."""
        found: dict[int, Path] = {}
        for journal in self.journals:
            rank = rank_of(journal)
            found[rank if rank is not None else 1 << 30] = journal
        return dict(sorted(found.items()))

    @property
    def main(self) -> Path:
        """The newest attempt of the lowest rank: all ranks do the same, and rank 0 logs."""
        return next(iter(self.ranks.values()))

    def size_bytes(self) -> int:
        """Bytes on disk of everything in the directory."""
        return sum(f.stat().st_blocks * 512 for f in self.path.iterdir() if f.is_file())

    def alive(self) -> bool:
        """Whether a process still writes to it, or sends it on."""
        for journal in self.journals:
            if lock_is_held(lock_path(journal)):
                return True
            try:
                with JournalReader(journal) as reader:
                    if reader.alive():
                        return True
            except FiretraceError:  # something else under a journal's name
                continue
        return False


def rank_of(journal: Path) -> int | None:
    """The rank of the process that wrote a journal, by its name; None where that names none."""
    match = re.match(r"rank(\d+)", journal.name, re.ASCII)
    return int(match[1]) if match else None


def attempt_of(journal: Path) -> int:
    """Which attempt of its rank a journal is, by its name; 1 where that names none."""
    match = re.match(r"rank\d+\.(\d+)", journal.name, re.ASCII)
    return int(match[1]) if match else 1


def is_data(journal: Path) -> bool:
    """Whether a journal is of batches being made, beside that of its rank."""
    return re.search(r"\.data\d+\.rows$", journal.name, re.ASCII) is not None


def is_device(journal: Path) -> bool:
    """Whether a journal is of device time, beside that of its rank."""
    return journal.name.endswith(".device.rows")


def is_rank(journal: Path) -> bool:
    """Whether a journal is a rank's own, of its engines."""
    return not (is_data(journal) or is_device(journal))


def device_journal(journal: Path) -> Path:
    """The journal of device time beside a rank's; perhaps there is none."""
    return journal.with_name(f"{journal.stem}.device.rows")


def data_journals(journal: Path) -> tuple[Path, ...]:
    """Those of the batches that were made for the rank which wrote a journal; one a process."""
    if not is_rank(journal):
        return ()
    found = journal.parent.glob(f"{glob.escape(journal.stem)}.data*.rows")
    return tuple(sorted((each for each in found if is_data(each)), key=_natural))


def _natural(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.name)
    return int(digits[-1]), path.name


def open_run(path: Path) -> Run:
    """The run at ``path``: its directory, or one of its ``.rows`` files.

    Raises:
        RunNotFoundError: there is none; the message says what is there instead.
    """
    if path.is_file() and path.suffix == ".rows":
        return Run(path.parent, (path,))
    if not path.exists():
        raise RunNotFoundError(f"{path}: no such run")
    if not path.is_dir():
        raise RunNotFoundError(f"{path}: not a run (a run is a directory with .rows files)")
    journals = sorted(filter(is_rank, path.glob("rank*.rows")), key=_begun)
    if not journals:
        raise RunNotFoundError(f"{path}: no journal in this directory")
    return Run(path, tuple(journals))


def _begun(journal: Path) -> tuple[int, str]:
    try:
        with JournalReader(journal) as reader:
            return reader.header.wall_ns, journal.name
    except FiretraceError:
        return 0, journal.name


def begun_ns(run: Run) -> int:
    """When the run's newest journal was begun, Unix ns."""
    return _begun(run.newest)[0]


def known_runs() -> list[Run]:
    """Every run that is listed in the index or lies in the current base directory, newest last."""
    paths: dict[Path, None] = {}
    try:
        for line in index_path().read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                paths[Path(json.loads(line)["path"])] = None
            except (ValueError, KeyError, TypeError):
                continue
    except OSError:
        pass
    if base_directory().is_dir():
        for child in base_directory().iterdir():
            paths[child] = None
    runs = []
    for path in paths:
        try:
            runs.append(open_run(path))
        except (FiretraceError, OSError):
            continue
    return sorted(runs, key=lambda run: _begun(run.newest))


def find_run(name: str | None) -> Run:
    """The run that a user means: a path, a run's name, or (None) the newest.

    Raises:
        RunNotFoundError: there is none.
    """
    if name is None:
        runs = known_runs()
        if not runs:
            raise RunNotFoundError(
                f"no run found, neither in {base_directory()} nor in {index_path()}"
            )
        return runs[-1]
    path = Path(name)
    if path.exists() or os.sep in name:
        return open_run(path)
    matches = [run for run in known_runs() if run.name == name or run.name.endswith(f"-{name}")]
    if not matches:
        raise RunNotFoundError(f"{name}: no such run; 'firetrace list' shows those known here")
    return matches[-1]


def remove(run: Run) -> None:
    """Delete a run's journals, and its directory unless the user keeps something else in it.

    Raises:
        OSError: a file could not be deleted.
    """
    for journal in run.journals:
        for file in journal.parent.glob(f"{journal.stem}.*"):
            file.unlink(missing_ok=True)
    if not any(run.path.iterdir()):
        run.path.rmdir()
