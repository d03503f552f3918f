"""Journals that are huge in one way: millions of names, notes, lines, a hole of a terabyte.

Each reader reads each in a process of its own; what that takes beyond reading a small journal is
held against twice the files.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench.process import SampleError, fresh
from bench.settings import Progress
from firetrace.tracer.errors import FiretraceError
from firetrace.tracer.journal import FIRST_ROW, HEADER_BYTES, ROW_BYTES, ROW_DTYPE
from torture.journals.readers import READERS
from torture.result import Result
from torture.settings import Settings

#: What a reader may take besides: buffers of a fixed size.
MARGIN_BYTES = 64 * 2**20
PATIENCE_S = 60
Make = Callable[[Path, Path, int], None]


def hurt_by_size(settings: Settings, source: Path, progress: Progress) -> Iterator[Result]:
    """Read huge journals made of a small one."""
    count = 20_000 if settings.short else 1_000_000
    small: dict[str, int] = {}
    for number, (what, make) in enumerate(MAKERS.items()):
        readers = [*READERS]
        if settings.short:
            readers = [readers[number % 2]]
        for name in readers:
            small[name] = small.get(name) or fresh(_read, name, source)[0]
        result = Result("a huge journal", what.format(f"{count:,}"))
        folder = settings.workspace / "huge"
        folder.mkdir()
        journal = folder / "rank0.1.rows"
        make(source, journal, count)
        size = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
        largest = 0.0
        for name in readers:
            progress(f"journals: {result.what}, {name}")
            result.tried += 1
            try:
                took, seconds, said = fresh(_read, name, journal)
            except (SampleError, OSError, MemoryError) as error:
                result.failures.append(f"{name}: {type(error).__name__}: {error}")
                continue
            more = max(took - small[name] - MARGIN_BYTES, 0)
            largest = max(largest, more / size)
            if more > 2 * size:
                result.failures.append(f"{name}: {more:,} bytes for {size:,}")
            if seconds > PATIENCE_S:
                result.failures.append(f"{name}: {seconds:.0f} s")
            if said:
                result.failures.append(f"{name}: {said}")
        result.figures = f"{size / 2**20:,.0f} MiB; memory at most {largest:.1f} times that"
        shutil.rmtree(folder)
        yield result


def _read(name: str, journal: Path) -> tuple[int, float, str]:
    """Read a journal; the most memory that this process had, bytes, and how long it took, s."""
    began, said = time.monotonic(), ""
    try:
        READERS[name](journal, journal.parent)
    except FiretraceError as error:
        said = str(error)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    # Not what ``getrusage`` says: that begins with what the parent had.
    peak = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert peak is not None
    return int(peak[1]) * 1024, time.monotonic() - began, said


def _copy(source: Path, journal: Path, lines: Iterator[bytes]) -> None:
    """The small journal, with more lines in its meta file."""
    journal.write_bytes(source.read_bytes())
    with journal.with_suffix(".meta.jsonl").open("wb") as file:
        file.write(source.with_suffix(".meta.jsonl").read_bytes())
        file.writelines(lines)


def _line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def _names(source: Path, journal: Path, count: int) -> None:
    _copy(
        source,
        journal,
        (_line(type="name", id=i, kind="event", name=f"n{i}") for i in range(count)),
    )


def _long_names(source: Path, journal: Path, count: int) -> None:
    lines = (
        _line(type="name", id=i % 2**16, kind="handler", name="x" * 10_000)
        for i in range(count // 100)
    )
    _copy(source, journal, lines)


def _one_line(source: Path, journal: Path, count: int) -> None:
    _copy(
        source, journal, iter([b'{"type": "stopped", "reason": "' + b"y" * (50 * count), b'"}\n'])
    )


def _attributes(source: Path, journal: Path, count: int) -> None:
    lines = (_line(type="attributes", row=FIRST_ROW + i, attributes={"n": i}) for i in range(count))
    _copy(source, journal, lines)


def _exceptions(source: Path, journal: Path, count: int) -> None:
    more = {"exception.type": "E", "exception.message": "m"}
    lines = (_line(type="exception", row=FIRST_ROW + i, time=i, **more) for i in range(count))
    _copy(source, journal, lines)


def _timed(source: Path, journal: Path, count: int) -> None:
    lines = (
        _line(type="thin", every=2, time=i) if i % 2 else _line(type="clock", wall=i, monotonic=i)
        for i in range(count)
    )
    _copy(source, journal, lines)


def _damaged(source: Path, journal: Path, count: int) -> None:
    _copy(source, journal, (b"[" * 90 + b"\n" for _ in range(count)))


def _rows(source: Path, journal: Path, count: int, parents: str) -> None:
    """``count`` rows of the first name, each open, under the one before, itself, or the next."""
    _copy(source, journal, iter(()))
    first = np.frombuffer(source.read_bytes(), ROW_DTYPE, 1, HEADER_BYTES)
    rows = np.repeat(first, count)
    numbers = np.arange(FIRST_ROW, FIRST_ROW + count)
    rows["parent"] = {
        "chain": np.maximum(numbers - 1, FIRST_ROW),
        "itself": numbers,
        "circle": np.roll(numbers, -1),
    }[parents]
    rows["parent"][0] = 0
    rows["start"] += np.arange(count)
    rows["end"] = rows["start"][-1] + count - np.arange(count)
    with journal.open("r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(rows.tobytes())


def _chain(source: Path, journal: Path, count: int) -> None:
    _rows(source, journal, count, "chain")


def _circle(source: Path, journal: Path, count: int) -> None:
    _rows(source, journal, count, "circle")


def _open(source: Path, journal: Path, count: int) -> None:
    _rows(source, journal, count // 20, "itself")  # each is encoded by the official encoders
    data = bytearray(journal.read_bytes())
    rows = np.frombuffer(data, ROW_DTYPE, offset=HEADER_BYTES)
    rows["parent"], rows["end"] = 0, 0
    journal.write_bytes(data)


def _hole(source: Path, journal: Path, count: int) -> None:
    """A file of a terabyte, with more rows than have numbers, and next to nothing in it."""
    _copy(source, journal, iter(()))
    end = journal.read_bytes()[HEADER_BYTES : HEADER_BYTES + ROW_BYTES]
    with journal.open("r+b") as file:
        for at in (2**32 * ROW_BYTES - ROW_BYTES, 2**32 * ROW_BYTES, 2**40):
            file.seek(at)
            file.write(end)


MAKERS: dict[str, Make] = {
    "{} names": _names,
    "names of 10,000 characters": _long_names,
    "one line without end": _one_line,
    "{} notes of attributes": _attributes,
    "{} exceptions": _exceptions,
    "{} lines that say something of a time": _timed,
    "{} damaged lines": _damaged,
    "{} spans, each in the one before": _chain,
    "{} rows in a circle": _circle,
    "a twentieth of that of open spans": _open,
    "a hole of a terabyte": _hole,
}
