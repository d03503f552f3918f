"""The rows that are open in one thread, and how they are opened, closed and cut short.

The stack of open rows belongs to the thread and is shared by the engines that run in it, so an
evaluator that a trainer's handler runs finds its parent on top.
"""

from __future__ import annotations

import struct
import threading
import traceback
import weakref
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic_ns
from typing import Any

from firetrace.tracer.journal import Flag
from firetrace.tracer.storage import Pen, label_of
from firetrace.tracer.writer import JournalWriter

CUT, SCALAR = int(Flag.CUT), int(Flag.SCALAR)


class ThreadTrack:
    """What the engines that run in one thread share: the pen and the stack of open rows."""

    def __init__(self, writer: JournalWriter) -> None:
        self.ident = threading.get_ident()
        self.pen: Pen = writer.pen()
        self.stack: list[int] = [0]  # row numbers, outermost first; 0 at the bottom: no parent
        self.thread = weakref.ref(threading.current_thread())  # idents are used again
        self.noted = 0  # ``id`` of the exception that is passing and has been noted
        self.innermost: Any = None  # the recorder of the engine that runs innermost

    def leave_what_is_over(self) -> None:
        """End the runs whose end could not be seen, because tracing began in the middle of them."""
        while self.innermost is not None and self.innermost.is_over is not None:
            if not self.innermost.is_over():
                break
            self.innermost.end_run()

    def close(self, writer: JournalWriter) -> None:
        """Recording ends here: mark what is open."""
        now = writer.now_ns()
        for row in reversed(self.stack):
            if row:
                with suppress(OSError):  # where there is no room for it, the row ends all the same
                    if writer.text_room():
                        writer.note("end_reason", row=row, reason="recording ended")
                self.pen.close(row, now, CUT)
        del self.stack[1:]


class OpenRows:
    """Writes rows for one engine in one thread."""

    __slots__ = ("ident", "lane", "muted", "offset", "pen", "place", "stack", "track", "writer")

    def __init__(self, writer: JournalWriter, track: ThreadTrack, lane: int) -> None:
        self.writer = writer
        self.lane = lane
        self.track = track
        self.ident = track.ident  # of the thread; 0 once recording has ended
        self.pen = track.pen
        self.stack = track.stack
        self.offset = writer.wall_ns - writer.monotonic_ns
        self.place = 0  # epoch and iteration, as a row holds them
        self.muted = False  # in a step that is thinned out: spans are not written

    def now(self) -> int:
        """Unix ns: the journal's anchor plus the monotonic time since."""
        return monotonic_ns() + self.offset

    def label(self, kind: str, text: str, **code: Any) -> int:
        """A name as the rows of this engine hold it, with their lane."""
        return label_of(self.writer.name(kind, text, **code), self.lane)

    # In a muted step nothing is written and the stack holds 0 in a row's place.

    def push(self, label: int, now: int, flags: int = 0) -> int:
        """Open a row under the innermost one."""
        stack = self.stack
        if self.muted:
            stack.append(0)
            return 0
        parent = stack[-1] or self.unmuted_parent()
        row = self.pen.write(parent, label | flags << 24, self.place, 0, now)
        stack.append(row)
        return row

    def pop(self, now: int, flags: int = 0) -> None:
        """Close the innermost row."""
        row = self.stack[-1]
        if row:
            self.pen.close(row, now, flags)
        self.stack.pop()

    def unmuted_parent(self) -> int:
        """The innermost open row that is really written."""
        return next((row for row in reversed(self.stack) if row), 0)

    def _cut(self, now: int, reason: str, flags: int) -> None:
        row = self.stack[-1]
        if row and reason and self.writer.text_room():
            self.writer.note("end_reason", row=row, reason=reason)
        self.pop(now, flags)

    def unwind(self, depth: int, now: int, reason: str = "", flags: int = CUT) -> None:
        """Close what is open above ``depth``."""
        while len(self.stack) > depth:
            self._cut(now, reason, flags)

    def failed(self, error: BaseException) -> None:
        """Note an exception on the innermost open row, once, as OpenTelemetry's conventions say."""
        row = self.unmuted_parent()
        if not row or self.track.noted == id(error):
            return
        self.track.noted = id(error)
        kind = type(error)
        module = "" if kind.__module__ == "builtins" else kind.__module__ + "."
        try:
            message = str(error)
        except Exception:
            message = "<its __str__ failed>"
        stack = "".join(traceback.format_exception(kind, error, error.__traceback__))
        room = self.writer.text_room()  # exceptions are always counted, their texts have a budget
        if not room:
            return
        self.writer.note(
            "exception", row=row, time=self.now(),
            **{
                "exception.type": module + kind.__qualname__,
                "exception.message": message[:room],
                "exception.stacktrace": stack[-room:],
            },
        )  # fmt: skip

    def scalar(self, name: str, value: float, now: int) -> None:
        """Write a number on the innermost open row."""
        if not self.muted:
            label = self.label("scalar", name) | SCALAR << 24
            (bits,) = _BITS.unpack(_FLOAT.pack(value))
            self.pen.write(self.unmuted_parent(), label, self.place, bits, now)

    def describe(self, row: int, attributes: Mapping[str, Any]) -> None:
        """Note attributes on a row, while there is room for texts."""
        if row and attributes and self.writer.text_room():
            plain = {str(key)[:200]: plain_value(value) for key, value in attributes.items()}
            self.writer.note("attributes", row=row, attributes=plain)


_FLOAT, _BITS = struct.Struct("<d"), struct.Struct("<q")


def plain_value(value: Any) -> Any:
    """A value as OpenTelemetry takes it. Of others the type: a tensor's text may need the GPU."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value[:1000]
    if isinstance(value, (list, tuple)) and len(value) <= 100:
        kinds = {type(item) for item in value}
        if len(kinds) == 1 and kinds <= {bool, int, float, str}:
            return [plain_value(item) for item in value]
    return f"<{type(value).__qualname__}>"
