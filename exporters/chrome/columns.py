"""Spans as Chrome trace events, thousands at a time: a matrix of bytes, one row a span.

Every row is equally wide. Its fixed text is written once and stays; numbers are put beside it in
columns of four digits each, taken from tables; the name comes from a table of its own. What a span
does not need of its columns is NUL, and all NULs are squeezed out at the end. Arguments that few
spans have, and long names, are left as a mark and put in where the text is cut there.

A million spans take 0.3 s; a dict for each and ``json.dumps`` take 6.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from firetrace.exporters.chrome.values import safe, shown
from firetrace.tracer.journal import MAX_NAMES, Flag, Name, Rows
from firetrace.tracer.table import UNKNOWN, Table

#: Spans a matrix: 3 MB of text, which a processor's cache holds. 4,096 and 65,536 are slower.
CHUNK = 16_384
WIDEST = 120  #: bytes of a category and a name that stand in the matrix
MARK = b"\x01"  #: no JSON text has it
TOLD = int(Flag.ERROR | Flag.CUT | Flag.SKIPPED)

Cells = npt.NDArray[np.uint32]
#: JSON in one line, raw UTF-8. Kept: ``json.dumps`` with such options makes one anew each time.
as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def encoded(text: str) -> bytes:
    """UTF-8; a lone surrogate, which has none, is a question mark."""
    return text.encode("utf-8", "replace")


def _cells(first_zero: bytes, pad: bytes) -> Cells:
    """The four digits of 0 to 9999, with ``pad`` for leading zeros, each as one number."""
    text = b"".join(b"%04d" % number for number in range(10_000))
    digits = np.frombuffer(text, np.uint8).reshape(-1, 4).copy()
    if pad != b"0":
        leading = np.cumsum(digits != ord("0"), axis=1) == 0
        digits[leading] = ord(pad)
        digits[0] = np.frombuffer(first_zero, np.uint8)
    cells: Cells = digits.reshape(-1).view(np.uint32)
    return cells


_FULL = _cells(b"0000", b"0")
#: Below 10,000 digits that begin a number, above digits that go on with one.
LAST = np.concatenate([_cells(b"\0\0\0" + b"0", b"\0"), _FULL])
OTHERS = np.concatenate([_cells(b"\0" * 4, b"\0"), _FULL])
THOUSANDTHS = np.frombuffer(b"".join(b".%03d" % n for n in range(1000)), np.uint32)


def _width(highest: int) -> int:
    """How many cells of four digits a number takes."""
    return max(1, -(-len(str(highest)) // 4))


#: Arguments that the rows' epoch and iteration are; in data and device journals they are others.
NUMBERED, NUMBERED_DATA = ("epoch", "iteration"), ("pass", "batch")
NUMBERED_DEVICE = ("host_row", "iteration")
#: Arguments of a span that are not the user's.
OURS = {
    "epoch", "iteration", "row", "skipped", "error", "cut",
    "exception.type", "exception.message", "exception.stacktrace",
}  # fmt: skip


class Columns:
    """Writes the spans of one process.

    Args:
        pid: the process, as Perfetto is told.
        tids: of each lane the thread that Perfetto is told, as text; filled before it is needed.
        numbered: arguments that the rows' epoch and iteration are.
    """

    def __init__(
        self, pid: int, tids: npt.NDArray[np.bytes_], numbered: tuple[str, str] = NUMBERED
    ) -> None:
        self._pid, self._tids, self._numbered = pid, tids, numbered
        self._layout: tuple[int, ...] = ()
        self._matrix = np.empty(0, np.uint8)
        self._names = np.zeros((0, WIDEST), np.uint8)
        self._name_cells = np.empty(0, "S1")  # the same, as wide as the widest
        self._long: dict[int, bytes] = {}  # what did not fit, by name id
        self._known = np.zeros(MAX_NAMES, bool)
        self._widest = 16
        self._open_from: set[tuple[int, int]] = set()  # lanes and starts of open spans

    def text(self, table: Table, first: int, base: int) -> bytes:
        """Up to ``CHUNK`` spans of a table from position ``first`` on, each after a comma.

        Args:
            table: whose spans all start at ``base`` or later.
            first: a position in it.
            base: Unix ns that are to be time 0.
        """
        rows, numbers = table.rows[first : first + CHUNK], table.numbers[first : first + CHUNK]
        self._learn(table.meta.names, rows["name"])
        end, start = rows["end"], rows["start"]
        is_open = np.flatnonzero(end == 0)
        begins = start - base
        lasts = end - start
        lasts[is_open] = 0
        times = [np.divmod(each, 1000) for each in (begins, lasts)]
        whole = [times[0][0], times[1][0], rows["epoch"], rows["iteration"], numbers]
        matrix = self._room(len(rows), [_width(int(each.max(initial=0))) for each in whole])
        for field, values in enumerate(whole):
            self._put(matrix, field, values)
        for field, (_, nanos) in enumerate(times):
            matrix[f"nanos{field}"] = THOUSANDTHS[nanos]
        matrix["tid"] = self._tids[rows["lane"]]
        matrix["name"] = self._name_cells[rows["name"]]
        told = self._told(table, rows, numbers)
        matrix["more"] = 0
        matrix["more"][told] = MARK[0]
        pairs = self._pairs(rows, is_open)
        if len(is_open) or len(pairs):
            self._leave_open(matrix, np.concatenate([is_open, pairs]))
        flat = matrix.view(np.uint8)
        text = flat[flat != 0].tobytes()
        if len(is_open) or len(pairs):
            self._layout = ()  # what was blanked is to be written anew
        text = self._with_marks(text, table, rows, numbers, told)
        return text + self._ends(rows, numbers, pairs, base)

    def _pairs(self, rows: Rows, is_open: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Spans that begin with an open one: Perfetto would put a complete event before it.

        One without duration it puts after it, and the end of such a pair before its beginning.
        """
        lanes, starts = rows["lane"], rows["start"]
        self._open_from |= set(zip(lanes[is_open].tolist(), starts[is_open].tolist(), strict=True))
        if not self._open_from:
            return is_open[:0]
        times = [start for _, start in self._open_from]
        found = np.flatnonzero((rows["end"] > starts) & np.isin(starts, times))
        both = zip(lanes[found].tolist(), starts[found].tolist(), strict=True)
        begin_so = np.array([each in self._open_from for each in both], bool)
        pairs: npt.NDArray[np.int64] = found[begin_so]
        return pairs

    def _ends(self, rows: Rows, numbers: Any, pairs: npt.NDArray[np.int64], base: int) -> bytes:
        """The ends of these spans, of those that end together the inner ones first."""
        lines = []
        for end, _, lane in sorted(
            zip(
                rows["end"][pairs].tolist(), (-numbers[pairs].astype(np.int64)).tolist(),
                rows["lane"][pairs].tolist(), strict=True,
            )
        ):  # fmt: skip
            micro, nano = divmod(end - base, 1000)
            tid = self._tids[lane].decode()
            lines.append(f',\n{{"ph":"E","ts":{micro}.{nano:03},"pid":{self._pid},"tid":{tid}}}')
        return encoded("".join(lines))

    def _put(self, matrix: Any, field: int, values: Any) -> None:
        """Write whole numbers in cells of four digits, the last ones first."""
        cells, rest = LAST, values
        for cell in range(self._layout[field]):
            high = rest // 10_000
            index = rest - high * 10_000
            index += 10_000 * (high != 0).astype(index.dtype)
            matrix[f"n{field}.{cell}"] = cells[index]
            cells, rest = OTHERS, high

    def _room(self, count: int, widths: list[int]) -> Any:
        """A matrix that has its fixed text; only the columns of a span's own are to be filled."""
        layout = (*widths, self._widest)
        if layout != self._layout or len(self._matrix) < count:
            self._layout = layout
            self._matrix = self._fresh(count, widths)
        return self._matrix[:count]

    def _fresh(self, count: int, widths: list[int]) -> Any:
        """A matrix with nothing but its fixed text."""
        fields: list[tuple[str, str]] = []
        texts: dict[str, bytes] = {}

        def text(value: bytes, name: str = "") -> None:
            name = name or f"text{len(fields)}"
            fields.append((name, f"S{len(value)}"))
            texts[name] = value

        def number(field: int) -> None:
            fields.extend((f"n{field}.{cell}", "<u4") for cell in reversed(range(widths[field])))

        text(b',\n{"ph":"')
        text(b"X", "phase")
        text(b'","ts":')
        number(0)
        fields.append(("nanos0", "<u4"))
        text(b',"dur":', "dur")
        number(1)
        fields.append(("nanos1", "<u4"))
        for field, key in enumerate((*self._numbered, "row"), 2):
            text(encoded(f',"args":{{"{key}":' if field == 2 else f',"{key}":'))
            number(field)
        fields.append(("more", "u1"))
        text(b'},"pid":%d,"tid":' % self._pid)
        fields.append(("tid", self._tids.dtype.str))
        fields.append(("name", f"S{self._widest}"))
        text(b"}")
        matrix: Any = np.zeros(count, np.dtype(fields))
        for name, value in texts.items():
            matrix[name] = value
        return matrix

    def _leave_open(self, matrix: Any, positions: npt.NDArray[np.int64]) -> None:
        """Turn complete events into ones that only begin."""
        matrix["phase"][positions] = b"B"
        matrix["dur"][positions] = b""
        for cell in range(self._layout[1]):
            matrix[f"n1.{cell}"][positions] = 0
        matrix["nanos1"][positions] = 0

    def _learn(self, names: Mapping[int, Name], ids: npt.NDArray[np.uint16]) -> None:
        """Make room for names and write those that are new."""
        new = ids[~self._known[ids]]
        if not len(new):
            return
        highest = max(int(new.max()), max(names, default=0))
        if highest >= len(self._names):
            more = np.zeros((min(highest + 64, MAX_NAMES) - len(self._names), WIDEST), np.uint8)
            self._names = np.concatenate([self._names, more])
        for id in np.unique(new).tolist():
            name = names.get(id, UNKNOWN)
            text = encoded(f',"cat":"{name.kind}","name":"{safe(name.text)}"')
            if len(text) > WIDEST:
                self._long[id], text = text, MARK
            self._names[id] = 0
            self._names[id, : len(text)] = np.frombuffer(text, np.uint8)
            self._widest = max(self._widest, len(text))
            self._known[id] = id in names  # a lost one may turn up
        narrow = np.ascontiguousarray(self._names[:, : self._widest])
        self._name_cells = narrow.view(f"S{self._widest}")[:, 0]

    def _told(self, table: Table, rows: Rows, numbers: Any) -> npt.NDArray[np.int64]:
        """Positions of the spans that have more arguments."""
        told = (rows["flags"] & TOLD) != 0
        for notes in (table.meta.attributes, table.meta.exceptions):
            if notes:
                told |= np.isin(numbers, notes.among(numbers))
        return np.flatnonzero(told)

    def _with_marks(
        self, text: bytes, table: Table, rows: Rows, numbers: Any, told: npt.NDArray[np.int64]
    ) -> bytes:
        """The text with what belongs where its marks are."""
        inserted: list[tuple[int, int, bytes]] = [
            (position, 0, more_arguments(table, number, flags, self._numbered))
            for position, number, flags in zip(
                told.tolist(), numbers[told].tolist(), rows["flags"][told].tolist(), strict=True
            )
        ]
        if self._long:
            ids = rows["name"]
            positions = np.flatnonzero(np.isin(ids, list(self._long))).tolist()
            inserted += [(each, 1, self._long[int(ids[each])]) for each in positions]
            inserted.sort()
        if not inserted:
            return text
        pieces = text.split(MARK)
        both = [b""] * (2 * len(pieces) - 1)
        both[0::2] = pieces
        both[1::2] = [piece for _, _, piece in inserted]
        return b"".join(both)


def more_arguments(
    table: Table, number: int, flags: int, numbered: tuple[str, str] = NUMBERED
) -> bytes:
    """Arguments of a span that failed, was cut short or skipped, or is the user's own."""
    meta = table.meta
    more: dict[str, Any] = {}
    for key, value in meta.attributes.get(number, {}).items():
        name = safe(str(key))
        is_ours = name in OURS or name in numbered
        more[f"attribute.{name}" if is_ours else name] = shown(value)
    if flags & Flag.SKIPPED:
        more["skipped"] = True
    exception = meta.exceptions.get(number)
    if exception is not None:
        for key in ("exception.type", "exception.message", "exception.stacktrace"):
            more[key] = shown(str(exception.get(key, "")))
    elif flags & Flag.ERROR:
        more["error"] = True
    if flags & Flag.CUT:
        more["cut"] = meta.reasons.get(number, "cut short")
    return encoded("," + as_json(more)[1:-1]) if more else b""
