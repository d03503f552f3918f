"""Ways in which a journal goes wrong, for hypothesis to put together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from firetrace.tracer.journal import FIRST_ROW, HEADER_BYTES, ROW_BYTES, ROW_DTYPE


@dataclass
class Files:
    """A journal's two files."""

    rows: bytearray
    meta: bytearray

    @classmethod
    def read(cls, journal: Path) -> Files:
        """Of a recording."""
        meta = journal.with_suffix(".meta.jsonl").read_bytes()
        return cls(bytearray(journal.read_bytes()), bytearray(meta))

    def copy(self) -> Files:
        """Another one to damage."""
        return Files(bytearray(self.rows), bytearray(self.meta))

    def write(self, journal: Path) -> int:
        """Put it there; returns its bytes."""
        journal.write_bytes(self.rows)
        journal.with_suffix(".meta.jsonl").write_bytes(self.meta)
        return len(self.rows) + len(self.meta)


Damage = Callable[[Files], None]
places = st.floats(0, 1, exclude_max=True)
bytes_ = st.binary(min_size=1, max_size=64)
whole_numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2**16, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, -(2**63), 10**30]),
    st.integers(0, 300), st.integers(),
)  # fmt: skip
VALUES: dict[str, st.SearchStrategy[int]] = {
    "parent": st.one_of(st.integers(0, 2**32 - 1), st.integers(FIRST_ROW, FIRST_ROW + 600)),
    "name": st.one_of(st.integers(0, 30), st.integers(0, 2**16 - 1)),
    "lane": st.integers(0, 255),
    "flags": st.integers(0, 255),
    "epoch": st.integers(0, 2**32 - 1),
    "iteration": st.integers(0, 2**32 - 1),
    "end": st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 2**62, 10**18, 18 * 10**17]),
    "start": st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 2**62, 10**18, 18 * 10**17]),
}
texts = st.one_of(
    st.text(max_size=20), st.just("x" * 100_000), st.sampled_from(["\x1b[31m", "\0", "[/]", ""])
)
anything: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), whole_numbers, st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
KINDS_OF_LINES = (
    "process", "traces", "name", "lane", "run", "exception", "end_reason", "link", "attributes",
    "thin", "clock", "offset", "loading", "pass", "stopped", "end", "none of these",
)  # fmt: skip
KEYS = (
    "resource", "split", "parent", "id", "kind", "name", "code", "engine", "thread", "thread_id",
    "row", "max_epochs", "epoch_length", "max_iters", "time", "exception.type",
    "exception.message", "exception.stacktrace", "reason", "to", "attributes", "every", "wall",
    "monotonic", "offset", "error", "lane", "iteration", "seed", "worker", "workers", "dataset",
    "pid",
)  # fmt: skip


def _at(data: bytearray, place: float, first: int = 0) -> int:
    return first + int(place * max(len(data) - first, 1))


@st.composite
def flipped(draw: st.DrawFn) -> Damage:
    """Bytes are others, in the header, the rows or the meta file."""
    where = draw(st.sampled_from(["header", "rows", "meta"]))
    new = draw(st.lists(st.tuples(places, bytes_), min_size=1, max_size=20))

    def damage(files: Files) -> None:
        data = files.meta if where == "meta" else files.rows
        for place, patch in new:
            at = int(place * 160) if where == "header" else _at(data, place)
            data[at : at + len(patch)] = patch

    return damage


@st.composite
def cut(draw: st.DrawFn) -> Damage:
    """A file ends somewhere."""
    place, of_meta = draw(places), draw(st.booleans())

    def damage(files: Files) -> None:
        data = files.meta if of_meta else files.rows
        del data[_at(data, place) :]

    return damage


@st.composite
def other_rows(draw: st.DrawFn) -> Damage:
    """Fields of rows are others: rows that point at themselves or in circles, absurd times."""
    column = draw(st.sampled_from([*VALUES]))
    new = draw(st.lists(st.tuples(places, VALUES[column]), min_size=1, max_size=20))
    how = draw(st.sampled_from(["some", "all", "itself", "next"]))

    def damage(files: Files) -> None:
        count = (len(files.rows) - HEADER_BYTES) // ROW_BYTES
        if count <= 0:
            return
        rows = np.frombuffer(files.rows, ROW_DTYPE, count, HEADER_BYTES)
        numbers = np.arange(FIRST_ROW, FIRST_ROW + count)
        if how == "all":
            rows[column] = new[0][1]
        elif how == "itself":
            rows["parent"] = numbers
        elif how == "next":
            rows["parent"] = np.roll(numbers, -1)
        else:
            for place, value in new:
                rows[column][int(place * count)] = value

    return damage


@st.composite
def other_lines(draw: st.DrawFn) -> Damage:
    """Lines of the meta file say something else, or something of their own."""
    lines = draw(
        st.lists(
            st.fixed_dictionaries(
                {"type": st.sampled_from(KINDS_OF_LINES)},
                optional=dict.fromkeys(KEYS, anything),
            ),
            min_size=1, max_size=4,
        )
    )  # fmt: skip
    place, replaces = draw(places), draw(st.booleans())

    def damage(files: Files) -> None:
        text = b"\n".join(json.dumps(line).encode() for line in lines) + b"\n"
        at = files.meta.find(b"\n", _at(files.meta, place)) + 1
        end = files.meta.find(b"\n", at) + 1 if replaces else at
        files.meta[at : max(end, at)] = text

    return damage


@st.composite
def raw_lines(draw: st.DrawFn) -> Damage:
    """Lines that are no JSON, or JSON that is too deep, too long, no text."""
    text = draw(
        st.sampled_from([
            b"[" * 100_000, b'{"type":' * 50_000, b"{}", b"null", b"1e999", b'{"type": NaN}',
            b"\xff\xfe", b'{"type": "name", "id": 1e400}', b'{"type": [], "id": {}}',
            b"\r\r\r", b"9" * 10_000,
            b'{"type": "end", "time": ' + b"9" * 5000 + b"}", b'"' + b"x" * 2**20,
        ])
    )  # fmt: skip
    place = draw(places)

    def damage(files: Files) -> None:
        at = files.meta.find(b"\n", _at(files.meta, place)) + 1
        files.meta[at:at] = text + b"\n"

    return damage


@st.composite
def moved(draw: st.DrawFn) -> Damage:
    """Parts of the rows are elsewhere, twice, or all zero."""
    a, b, length = draw(places), draw(places), draw(st.integers(1, 4000))
    how = draw(st.sampled_from(["copy", "zero", "insert", "shift"]))

    def damage(files: Files) -> None:
        data = files.rows
        one, other = _at(data, a, HEADER_BYTES), _at(data, b, HEADER_BYTES)
        piece = bytes(length) if how == "zero" else data[one : one + length]
        if how == "insert":
            data[other:other] = piece
        elif how == "shift":
            del data[other : other + length]
        else:
            data[other : other + length] = piece

    return damage


@st.composite
def two_writers(draw: st.DrawFn) -> Damage:
    """Another journal's rows or lines lie over this one's, or between them."""
    rows_too, every = draw(st.booleans()), draw(st.integers(2, 5))

    def damage(files: Files) -> None:
        other = files.copy()
        if rows_too:
            data, half = files.rows, other.rows[HEADER_BYTES:][::-1]
            step = ROW_BYTES * every
            for at in range(HEADER_BYTES, len(data) - step, step):
                data[at : at + ROW_BYTES] = half[at - HEADER_BYTES : at - HEADER_BYTES + ROW_BYTES]
        lines = other.meta.split(b"\n")
        files.meta[:] = b"\n".join(
            piece for pair in zip(lines, lines[::-1], strict=True) for piece in pair
        )

    return damage


@st.composite
def other_header(draw: st.DrawFn) -> Damage:
    """Another version, another size of windows, other clocks."""
    at = draw(st.sampled_from([8, 12, 16, 20, 24, 32, 40, 56, 64]))
    value = draw(st.one_of(st.binary(min_size=8, max_size=8), st.sampled_from([
        bytes(8), b"\xff" * 8, (4096).to_bytes(8, "little"), (2**31).to_bytes(8, "little"),
        (4128).to_bytes(8, "little"), (2**62).to_bytes(8, "little"),
    ])))  # fmt: skip

    def damage(files: Files) -> None:
        files.rows[at : at + 8] = value

    return damage


damages: st.SearchStrategy[list[Damage]] = st.lists(
    st.one_of(
        flipped(), cut(), other_rows(), other_lines(), raw_lines(), moved(), two_writers(),
        other_header(),
    ),
    min_size=1, max_size=4,
)  # fmt: skip
