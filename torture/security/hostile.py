"""Journals in which every text is chosen by whoever wants to do harm.

A text is asked for by its place in the journal, such as ``handler`` or ``exception.message``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from itertools import count
from pathlib import Path

from firetrace.tracer.journal import Flag
from firetrace.tracer.writer import JournalWriter

MS = 10**6
Texts = Callable[[str], str]


class HostileJournal:
    """Two epochs of a training that fails at last, closed properly; a minute ago.

    Args:
        folder: of the run; made if it is not there.
        texts: every text of it, by its place.
        slower: how many times as long its phases take, so that two of them differ.
    """

    def __init__(self, folder: Path, texts: Texts, slower: float = 1.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.texts = texts
        resource = {name: texts(name) for name in (
            "service.name", "service.instance.id", "host.name", "os.type", "process.runtime.name",
            "process.executable.path", "telemetry.distro.version", "ignite.run.id",
        )} | {texts("resource key"): texts("resource value")}  # fmt: skip
        self.writer = JournalWriter(folder / "rank0.1", resource, min_free_bytes=0)
        self.path = self.writer.path
        self._now = self.writer.wall_ns - 60 * 10**9
        self._pen = self.writer.pen()
        self._lanes = [self.writer.lane(texts("engine"), key) for key in (1, 2)]
        self._names: dict[tuple[str, str], int] = {}
        self.writer.split = "run"
        self.writer.note("traces", split="run", parent=texts("traceparent"))
        self._train(slower)
        self.writer.note("stopped", reason=texts("stopped"))
        self.writer.note(texts("type"), text=texts("unknown"))
        self.writer.close()
        self._name_threads()

    def _name(self, kind: str, place: str) -> int:
        found = self._names.get((kind, place))
        if found is None:
            code = {each: self.texts(each) for each in ("code.file.path", "code.function.name")}
            code["code.line.number"] = self.texts("code.line.number")
            found = self.writer.name(kind, self.texts(place), **code)
            self._names[kind, place] = found
        return found

    def _open(self, above: int, kind: str, place: str, at: tuple[int, int], lane: int = 0) -> int:
        name = self._name(kind, place) if place else self.writer.name(kind, kind)
        return self._pen.open(above, name, self._lanes[lane], 0, *at, 0, self._now)

    def _close(self, row: int, took_ns: int = 0, flags: int = 0) -> None:
        self._now += took_ns
        self._pen.close(row, self._now, flags)

    def _train(self, slower: float) -> None:
        numbers = count(1)
        run = self._open(0, "run", "", (0, 0))
        self.writer.note("run", row=run, max_epochs=2, epoch_length=40, max_iters=None)
        for epoch in (1, 2):
            inner = self._open(run, "epoch", "", (epoch, 40 * (epoch - 1)))
            for _ in range(40):
                self._step(inner, (epoch, next(numbers)), slower)
            self._validate(inner, (epoch, 40 * epoch))
            self._close(inner)
        self._fail(run, Flag.ERROR | Flag.CUT)
        self._close(run, 0, Flag.ERROR | Flag.CUT)

    def _step(self, epoch: int, at: tuple[int, int], slower: float) -> None:
        step = self._open(epoch, "step", "", at)
        inner = self._open(step, "iteration", "", at)
        for place in ("phase", "another phase"):
            took = int((30 if at[1] % 20 else 300) * slower * MS) + at[1] % 7 * MS
            self._close(self._open(inner, "phase", place, at), took)
        event = self._open(inner, "event", "event", at)
        handler = self._open(event, "handler", "handler", at)
        span = self._open(handler, "span", "span", at)
        attributes = {self.texts("attribute key"): self.texts("attribute value"),
                      "list": [self.texts("attribute value")]}  # fmt: skip
        self.writer.note("attributes", row=span, attributes=attributes)
        failed = at[1] % 16 == 0
        if failed:
            self._fail(span, Flag.ERROR)
        self._close(span, MS, Flag.ERROR if failed else 0)
        for row in (handler, event, inner):
            self._close(row, MS)
        (bits,) = struct.unpack("<q", struct.pack("<d", 1 / at[1]))
        name = self._name("scalar", "scalar")
        self._pen.open(step, name, self._lanes[0], Flag.SCALAR, *at, bits, self._now)
        self._close(step, 0, Flag.ERROR if failed else 0)

    def _validate(self, epoch: int, at: tuple[int, int]) -> None:
        run = self._open(epoch, "run", "", (0, 0), 1)
        self._close(self._open(run, "pair", "pair", at, 1), 5 * MS)
        self._close(run, MS)

    def _fail(self, row: int, flags: int) -> None:
        what = {name: self.texts(name) for name in (
            "exception.type", "exception.message", "exception.stacktrace"
        )}  # fmt: skip
        self.writer.note("exception", row=row, time=self._now, **what)
        if flags & Flag.CUT:
            self.writer.note("end_reason", row=row, reason=self.texts("end reason"))

    def _name_threads(self) -> None:
        """A lane's thread is this one: name it anew, as another writer could have done."""
        meta = self.path.with_suffix(".meta.jsonl")
        lines = [json.loads(line) for line in meta.read_text().splitlines()]
        for line in lines:
            if line["type"] == "lane":
                line["thread"] = self.texts("thread")
        meta.write_text("".join(json.dumps(line) + "\n" for line in lines))
