"""Chrome trace JSON, for Perfetto: an array of events, streamed in constant memory.

The process is the rank, a thread is a lane (one engine in one thread), scalars and speed are
counters, exceptions and early ends are instants, and a flow leads from one engine to the run of
another. What Perfetto's importer (v52) asks for: a child must not outlive its parent by even a
nanosecond; times are rebased and written as microseconds with three decimals, which is exact for
104 days; events of one thread that begin together stand parents first; ``B`` without ``E`` is kept
as open; names are raw UTF-8 without backslashes or control characters, because escapes are shown
as they stand. Whatever else is out of order it sorts. A file that ends anywhere is read up to the
last whole event.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

from firetrace.exporters.chrome.columns import NUMBERED, NUMBERED_DATA, encoded
from firetrace.exporters.chrome.compress import Gzip
from firetrace.exporters.chrome.journal import JournalEvents, base_of
from firetrace.exporters.chrome.tracks import Process
from firetrace.exporters.chrome.values import safe, shown
from firetrace.exporters.files import whole_file
from firetrace.tracer.run import is_data
from firetrace.tracer.table import Table

__all__ = ["export_chrome", "pieces", "safe", "shown", "too_large", "uncompressed_bytes"]

BROWSER_BYTES = 10**9  #: uncompressed; see too_large


def export_chrome(
    blocks: Iterable[Table] | Table,
    path: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    total: int = 0,
) -> int:
    """Write spans as Chrome trace JSON; gzipped if the name ends in ``.gz``.

    The file appears under its name when it is whole. Returns the number of spans written.

    Args:
        blocks: a journal's spans in the order of its file, such as ``stream.blocks`` gives them.
        path: where to.
        progress: is told after each block how many spans of ``total`` have been written.
        total: how many there are; not needed for a single table.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(blocks, Table):
        blocks, total = [blocks], len(blocks)
    count = 0

    def told(done: int) -> None:
        nonlocal count
        count = done
        progress(done, total)

    write_all(pieces(blocks, told), path)
    return count


def write_all(texts: Iterable[bytes], path: Path) -> None:
    """Write texts to a file; gzipped if the name ends in ``.gz``.

    Raises:
        OSError: it cannot be written.
    """
    zipped = path.suffix.lower() == ".gz"
    with whole_file(path) as file, Gzip(file) if zipped else nullcontext(file) as output:
        for text in texts:
            output.write(text)


def pieces(
    blocks: Iterable[Table], progress: Callable[[int], None] = lambda done: None
) -> Iterator[bytes]:
    """The pieces of the file. ``progress`` is told after each block how many spans they have."""
    base, last, events = None, None, None
    for block in blocks:
        if events is None:
            process = Process.alone(block)
            numbered = NUMBERED_DATA if is_data(block.path) else NUMBERED
            events = JournalEvents(process, numbered)
            yield b"[" + encoded(process.head())[1:]
        last = block
        base = base_of(block) if base is None else base
        if base is not None:
            yield from events.of(block, base)
            progress(events.count)
    if events is None or last is None:
        yield b"["
    else:
        yield from events.rest(last, base or 0)
    yield b"\n]\n"


def too_large(uncompressed_bytes: int) -> str | None:
    """One line about a trace that not every browser can open in Perfetto; None: every one can.

    Perfetto's engine has 4 GiB in a browser without 64-bit WebAssembly. In v52, 8.5 million spans,
    1.3 GB of JSON, took 3.3 GB of them, and 10 million, 1.5 GB, did not fit. With 64 bits
    (Chromium 156) these took more than a minute.
    """
    if uncompressed_bytes <= BROWSER_BYTES:
        return None
    return (
        f"{uncompressed_bytes / 1e9:.1f} GB of JSON is more than Perfetto can open in some "
        "browsers, and slow in all: take less (--from-epoch, --to-epoch, --slower-than), or run "
        "Perfetto's own `trace_processor_shell --httpd FILE`, which the browser then uses"
    )


def uncompressed_bytes(path: Path) -> int:
    """How large the text of an exported file is; of a gzipped one as its last bytes say.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if path.suffix.lower() != ".gz":
        return size
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        told = int.from_bytes(file.read(4), "little")  # modulo 2^32
    while size > 2**28 and told < 4 * size:  # our text is compressed to a tenth
        told += 2**32
    return told
