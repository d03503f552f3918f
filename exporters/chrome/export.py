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
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from firetrace.exporters.chrome.columns import CHUNK, Columns, encoded
from firetrace.exporters.chrome.counters import Counters
from firetrace.exporters.chrome.tracks import Kinds, Tracks
from firetrace.exporters.chrome.values import safe, shown
from firetrace.exporters.files import whole_file
from firetrace.tracer.run import rank_of
from firetrace.tracer.table import Table

__all__ = ["export_chrome", "pieces", "safe", "shown", "too_large", "uncompressed_bytes"]

NEAR, BEFORE = 2**50, 10**12  # ns: 13 days, 1,000 seconds
LEVEL = 3  #: of gzip: 4% of the size more time than 1 a sixth less
BROWSER_BYTES = 10**9  #: uncompressed; see too_large
PIECE = 2**21  #: bytes that are compressed by themselves


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
    with whole_file(path) as file:
        return _write(blocks, file, path.suffix.lower() == ".gz", progress, total)


def _write(
    blocks: Iterable[Table],
    file: IO[bytes],
    zipped: bool,
    progress: Callable[[int, int], None],
    total: int,
) -> int:
    count = 0

    def told(done: int) -> None:
        nonlocal count
        count = done
        progress(done, total)

    if not zipped:
        for text in pieces(blocks, told):
            file.write(text)
        return count
    with _Gzip(file) as output:
        for text in pieces(blocks, told):
            output.write(text)
    return count


def pieces(
    blocks: Iterable[Table], progress: Callable[[int], None] = lambda done: None
) -> Iterator[bytes]:
    """The pieces of the file. ``progress`` is told after each block how many spans they have."""
    base, done, last = None, 0, None
    for block in blocks:
        if last is None:
            pid = (rank_of(block.path) or 0) + 1  # Perfetto takes process 0 for the idle task
            kinds = Kinds()
            tracks, counters = Tracks(pid, kinds), Counters(pid, kinds)
            columns = Columns(pid, tracks.tids)
            yield encoded(tracks.head(block))
        last = block
        if base is None:
            base = base_of(block)
        table = block
        if base is None:
            continue
        if len(block) and int(block.rows["start"].min()) < base:  # see base_of
            keep = block.rows["start"] >= base
            table = replace(block, rows=block.rows[keep], numbers=block.numbers[keep])
        yield encoded(tracks.names(table))
        for first in range(0, len(table), CHUNK):
            yield columns.text(table, first, base)
        counters.add(table)
        yield encoded(tracks.beside(table, base) + counters.scalars(table, base))
        done += len(table)
        progress(done)
    if last is None:
        yield b"["
    else:
        yield encoded(tracks.names(last) + tracks.tail(last, base or 0))
        yield encoded(counters.rates(last, base or 0))
    yield b"\n]\n"


def base_of(block: Table) -> int | None:
    """Unix ns that are to be time 0; None: the block has nothing that has a time.

    That is the journal's anchor, which the recorder takes before it writes its first row, so no
    row of any thread lies before it. (Perfetto drops what does.) Only where the anchor is no help,
    in rows that were not recorded or not for months after it, it is some time before the first
    block. What would then lie before it is left out.
    """
    starts = np.concatenate([block.rows["start"], block.scalars["start"]])
    if not len(starts):
        return None
    first = int(starts.min())
    anchor = block.header.wall_ns
    return anchor if 0 <= first - anchor < NEAR else max(first - BEFORE, 0)


class _Gzip:
    """One gzip member, of pieces that several threads compress meanwhile, each by itself."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._threads = min(4, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._threads)
        self._waiting: deque[Future[bytes]] = deque()
        self._piece: list[bytes] = []
        self._room = PIECE
        self._crc = self._size = 0

    def __enter__(self) -> _Gzip:
        self._file.write(b"\x1f\x8b\x08" + bytes(6) + b"\xff")  # deflate, no name, no time
        return self

    def write(self, data: bytes) -> None:
        """Take a text; it is written some pieces later."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        self._piece.append(data)
        self._room -= len(data)
        if self._room <= 0:
            self._compress(zlib.Z_SYNC_FLUSH)

    def _compress(self, flush: int) -> None:
        self._waiting.append(self._pool.submit(_deflated, b"".join(self._piece), flush))
        self._piece, self._room = [], PIECE
        while len(self._waiting) > self._threads or (flush == zlib.Z_FINISH and self._waiting):
            self._file.write(self._waiting.popleft().result())

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            if kind is None:
                self._compress(zlib.Z_FINISH)
                ends = self._crc.to_bytes(4, "little"), (self._size % 2**32).to_bytes(4, "little")
                self._file.write(b"".join(ends))
        finally:
            self._pool.shutdown(cancel_futures=True)


def _deflated(data: bytes, flush: int) -> bytes:
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush(flush)


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
