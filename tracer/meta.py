"""Reads a journal's meta file: what is said once is kept, what is said of rows is found again.

A file may be long, damaged or somebody's prank: it is read piece by piece, and takes no more memory
than 16 bytes a note.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from firetrace.tracer.journal import KINDS, MAX_LANES, MAX_NAMES, MAX_ROW, Lane, Name
from firetrace.tracer.notes import (
    DAMAGE,
    FOREVER,
    LONGEST_LINE,
    Lines,
    Notes,
    parsed,
    printable,
    whole,
)

T = TypeVar("T")

PIECE_BYTES = 2**20
LONGEST_NAME = 1000
#: Lines kept of those that say something of a time, not of a row; later ones are left out.
MOST_TIMED = 4096
#: Reasons kept why phases were not timed: there are a handful.
MOST_REASONS = 128


@dataclass(frozen=True)
class Offset:
    """How much later it was in another host's journal. Times in ns."""

    time_ns: int  #: of this journal
    offset_ns: int
    error_ns: int  #: it was at most so much more or less
    to: str  #: seed of the other journal, as hex digits


@dataclass(frozen=True)
class Loading:
    """An engine began to iterate over a loader: its next iterations use the batches, in turn."""

    time_ns: int
    lane: int
    iteration: int  #: that had been completed
    seed: int | None  #: the iterator's


@dataclass(frozen=True)
class Pass:
    """A worker's pass over its data set."""

    id: int  #: what its rows have as epoch
    time_ns: int
    seed: int | None  #: the iterator's
    worker: int
    workers: int  #: of the iterator; 0: it makes the batches itself
    dataset: str  #: class name
    pid: int


@dataclass(frozen=True)
class Anchor:
    """A device's clock was placed on the host's. Times in ns."""

    time_ns: int
    lane: int
    error_ns: int  #: it was at most so much more or less


class Meta:
    """What the meta file says so far; ``poll`` reads what has been added since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = Lines(path)
        self.resource: dict[str, Any] = {}
        self.split = "run"  #: what is a trace
        self.traceparent: str | None = None  #: of the program's caller
        self.names: dict[int, Name] = {}
        self.lanes: dict[int, Lane] = {}
        self.runs = self._notes(_itself)
        self.exceptions = self._notes(_itself)
        self.reasons = self._notes(lambda line, _: str(line["reason"]))
        #: by row: the row of the run that it goes on with
        self.links = self._notes(lambda line, _: whole(line["to"], MAX_ROW))
        #: by row: what the user noted
        self.attributes = self._notes(lambda line, known: {**(known or {}), **line["attributes"]})
        self.thinned: list[dict[str, Any]] = []  #: ``every`` and ``time``, the first ones
        self.clocks: list[dict[str, Any]] = []  #: ``wall`` and ``monotonic``, the first ones
        self.offsets: list[Offset] = []  #: the first ones
        self.loadings: list[Loading] = []  #: the last ones
        self.passes: dict[int, Pass] = {}  #: by id, the last ones
        self.anchors: list[Anchor] = []  #: the last ones
        #: by lane and reason, the last ones: phases that have no row
        self.untimed: dict[tuple[int, str], int] = {}
        self.stopped: str | None = None
        self.ended: int | None = None  #: Unix ns at which the writer closed the journal
        self.damaged = 0  #: lines that could not be read
        self.read_bytes = 0  #: up to where the file has been read
        self._skipping = False  # in the middle of a line that is too long
        self._noted: dict[str, Notes[Any]] = {
            "run": self.runs, "exception": self.exceptions, "end_reason": self.reasons,
            "link": self.links, "attributes": self.attributes,
        }  # fmt: skip

    def _notes(self, value: Callable[[dict[str, Any], T | None], T]) -> Notes[T]:
        return Notes(self._lines, value)

    def poll(self) -> None:
        """Read the lines that were completed since the last call."""
        while True:
            data = self._lines.read(self.read_bytes, PIECE_BYTES)
            complete = data.rfind(b"\n") + 1
            length = PIECE_BYTES
            while not complete and len(data) == length < LONGEST_LINE:
                length = min(4 * length, LONGEST_LINE)
                data = self._lines.read(self.read_bytes, length)
                complete = data.rfind(b"\n") + 1
            if not complete and len(data) < LONGEST_LINE:
                return  # the last line is not complete
            if not complete:  # no line is as long
                self.damaged += not self._skipping
                self._skipping, self.read_bytes = True, self.read_bytes + len(data)
                continue
            offset = self.read_bytes
            for text in data[: complete - 1].split(b"\n"):
                if self._skipping:
                    self._skipping = False  # this is the end of it
                else:
                    self._take(text, offset)
                offset += len(text) + 1
            self.read_bytes += complete

    def _take(self, text: bytes, offset: int) -> None:
        try:
            line = parsed(text)
            kind = line["type"]
            if (notes := self._noted.get(kind)) is not None:
                notes.add(line, offset)
            elif (taker := TAKERS.get(kind)) is not None:
                taker(self, line)
        except DAMAGE:
            self.damaged += 1

    def said_of(self, row: int) -> list[dict[str, Any]]:
        """The lines about a row: attributes, an exception, a reason, a link, a plan."""
        return [line for notes in self._noted.values() for line in notes.lines(row)]

    def lane(self, id: int) -> Lane:
        """The engine and thread with this lane id."""
        return self.lanes.get(id) or Lane(f"engine {id}", "")

    def _process(self, line: dict[str, Any]) -> None:
        self.resource = dict(line["resource"])

    def _traces(self, line: dict[str, Any]) -> None:
        self.split = line["split"] if line["split"] in ("epoch", "step") else "run"
        self.traceparent = line.get("parent")

    def _name(self, line: dict[str, Any]) -> None:
        kind = line["kind"] if line["kind"] in KINDS else "span"
        text = printable(str(line["name"]))[:LONGEST_NAME]
        self.names[whole(line["id"], MAX_NAMES - 1)] = Name(kind, text, dict(line.get("code", {})))

    def _lane(self, line: dict[str, Any]) -> None:
        self.lanes[whole(line["id"], MAX_LANES - 1)] = Lane(
            printable(str(line["engine"]))[:LONGEST_NAME],
            printable(str(line["thread"]))[:LONGEST_NAME],
            whole(line.get("thread_id", 0), 2**64),
        )

    def _thin(self, line: dict[str, Any]) -> None:
        found = {"every": whole(line["every"]), "time": whole(line["time"])}
        if len(self.thinned) < MOST_TIMED:
            self.thinned.append(found)

    def _clock(self, line: dict[str, Any]) -> None:
        found = {"wall": whole(line["wall"]), "monotonic": whole(line["monotonic"])}
        if len(self.clocks) < MOST_TIMED:
            self.clocks.append(found)

    def _offset(self, line: dict[str, Any]) -> None:
        if not -FOREVER <= (offset := int(line["offset"])) <= FOREVER:
            raise ValueError("no offset")
        found = Offset(whole(line["time"]), offset, whole(line["error"]), str(line["to"]))
        if len(self.offsets) < MOST_TIMED:
            self.offsets.append(found)

    def _loading(self, line: dict[str, Any]) -> None:
        found = Loading(
            whole(line["time"]), whole(line["lane"], MAX_LANES - 1), whole(line["iteration"]),
            _seed(line["seed"]),
        )  # fmt: skip
        self.loadings.append(found)
        if len(self.loadings) > 2 * MOST_TIMED:
            del self.loadings[:MOST_TIMED]

    def _pass(self, line: dict[str, Any]) -> None:
        id = whole(line["id"], 2**32 - 1)
        self.passes[id] = Pass(
            id, whole(line["time"]), _seed(line["seed"]), whole(line["worker"]),
            whole(line["workers"]), printable(str(line["dataset"]))[:LONGEST_NAME],
            whole(line["pid"]),
        )  # fmt: skip
        if len(self.passes) > 2 * MOST_TIMED:
            for old in sorted(self.passes)[:MOST_TIMED]:
                del self.passes[old]

    def _anchor(self, line: dict[str, Any]) -> None:
        found = Anchor(
            whole(line["time"]), whole(line["lane"], MAX_LANES - 1), whole(line["error"])
        )  # fmt: skip
        self.anchors.append(found)
        if len(self.anchors) > 2 * MOST_TIMED:
            del self.anchors[:MOST_TIMED]

    def _untimed(self, line: dict[str, Any]) -> None:
        key = whole(line["lane"], MAX_LANES - 1), printable(str(line["reason"]))[:LONGEST_NAME]
        count = whole(line["count"])
        self.untimed[key] = self.untimed.pop(key, 0) + count  # each thread has said its own
        if len(self.untimed) > 2 * MOST_REASONS:
            for old in list(self.untimed)[:MOST_REASONS]:
                del self.untimed[old]

    @property
    def sparsest(self) -> int:
        """One step in so many was recorded at the least."""
        return max((int(line["every"]) for line in self.thinned), default=1)

    def _stopped(self, line: dict[str, Any]) -> None:
        self.stopped = printable(str(line["reason"]))

    def _ended(self, line: dict[str, Any]) -> None:
        self.ended = whole(line["time"])


TAKERS: dict[str, Callable[[Meta, dict[str, Any]], None]] = {
    "process": Meta._process, "traces": Meta._traces, "name": Meta._name, "lane": Meta._lane,
    "thin": Meta._thin, "clock": Meta._clock, "stopped": Meta._stopped, "end": Meta._ended,
    "offset": Meta._offset, "loading": Meta._loading, "pass": Meta._pass,
    "anchor": Meta._anchor, "untimed": Meta._untimed,
}  # fmt: skip


def _seed(value: Any) -> int | None:
    """A seed of torch's, which may be any number of 64 bits."""
    if value is not None and not (type(value) is int and -(2**63) <= value < 2**64):
        raise ValueError("no seed")
    return value


def _itself(line: dict[str, Any], before: object) -> dict[str, Any]:
    return line
