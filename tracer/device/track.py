"""The phases of one thread on one device: marks, the spans between them, what was allocated.

A mark is an event that is queued where a phase begins or ends. A span is written open when its
phase has ended on the host, and gets its times when a later look finds that the device has passed
it: at the end of a step, the oldest steps first. What the device has not reached yet is left for
the next look, so nothing waits. Marks are used again, and only so much is ever left unsettled.
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from threading import current_thread
from typing import TYPE_CHECKING, Any

from firetrace.tracer.device.clock import Base, DeviceClock
from firetrace.tracer.device.memory import Memory, Seen
from firetrace.tracer.journal import Flag
from firetrace.tracer.storage import label_of, place_of
from firetrace.tracer.writer import JournalWriter

if TYPE_CHECKING:
    from firetrace.tracer.device.accelerator import Accelerator

log = logging.getLogger("firetrace")

CUT, SCALAR = int(Flag.CUT), int(Flag.SCALAR)
#: Steps that are not settled, and marks of one: beyond that there are no more spans for a while.
MOST_STEPS, MOST_MARKS = 256, 512
#: Steps that are settled at a time: a hiccup of some 20 us each.
AT_ONCE = 4
#: What is allocated is looked at this often: it takes about 20 us. Less often as the budget fills.
MEMORY_EVERY_NS = 20_000_000
ANCHOR_EVERY_NS = 60 * 10**9
COPY, COPIED = "copy to device", "copied to device"
UNMARKED = "its beginning has no mark"
MIXED = -1  #: in place of a stream: there were several
_FLOAT, _BITS = struct.Struct("<d"), struct.Struct("<q")


def bits_of(value: float) -> int:
    """A number as the 64 bits that it is in a row."""
    found: int = _BITS.unpack(_FLOAT.pack(value))[0]
    return found


class Step:
    """The marks of a step and the spans between them."""

    __slots__ = ("base", "marks", "mixed", "spans", "stream")

    def __init__(self, base: Base) -> None:
        self.base = base
        self.marks: list[Any] = []
        self.spans: list[tuple[int, int, int]] = []  # row, its first mark and its last
        self.stream = 0  # of the last mark
        self.mixed = False  # there were several streams


class Track:
    """What the engines that run in one thread do on one device.

    Args:
        accelerator: the device.
        writer: of the journal of devices.
        seen: what is known of the device's memory.
    """

    def __init__(self, accelerator: Accelerator, writer: JournalWriter, seen: Seen) -> None:
        self.accelerator, self.writer, self._seen = accelerator, writer, seen
        self.pen = writer.pen()
        self.new_event, self.record = accelerator.event, accelerator.record
        self._clock = DeviceClock(accelerator, writer.now_ns)
        self.pool: list[Any] = []  #: events that are not in use
        self._waiting: deque[Step] = deque()
        self.step: Step | None = None  # that goes on; None: its marks are not taken
        self.refused = ""  #: why the step that goes on is not timed, though it is recorded
        self._last_end = 0  # Unix ns, of the last span that was settled,
        self._last_stream = MIXED  # and the stream that it was in
        self._anchored = 0  # Unix ns
        self.untimed: dict[str, int] = {}  #: phases without a span, by the reason
        self.adopt()

    def adopt(self) -> None:
        """It is the calling thread's from now on. Another one that it was before has ended."""
        self.thread = current_thread()
        self._lane = self.writer.lane(self.accelerator.label, 0)
        self.put_by()

    def label(self, kind: str, text: str) -> int:
        """A name as the rows have it."""
        return label_of(self.writer.name(kind, text), self._lane)

    # While a step goes on

    def begin_step(self, number: int, now: int) -> None:
        """A step begins; ``number``: of its engine's, from 1."""
        self.refused = ""
        if number % self.writer.every:
            return  # the budget allows for so many only: of those that the rank's journal has
        if len(self._waiting) >= MOST_STEPS:
            self.refused = "the device is too far behind"
            return
        clock = self._clock
        if now >= clock.due:
            clock.compare()
        base = clock.base
        if base is None:
            self.refused = "the clocks could not be compared"
            return
        if now - self._anchored >= ANCHOR_EVERY_NS:
            self._anchored = now
            self.writer.note("anchor", time=now, lane=self._lane, error=base.error_ns)
        self.step = Step(base)

    def mark(self, step: Step) -> int:
        """Queue an event. Returns its place among the step's; less than 0: there is none."""
        marks = step.marks
        if len(marks) >= MOST_MARKS:
            return -1
        event = self.pool.pop() if self.pool else self.new_event()
        stream = self.record(event)
        if stream < 0:
            self.pool.append(event)
            return -1
        step.mixed = step.mixed or (bool(marks) and stream != step.stream)
        step.stream = stream
        marks.append(event)
        return len(marks) - 1

    def not_timed(self, reason: str) -> None:
        """A phase gets no span."""
        self.untimed[reason] = self.untimed.get(reason, 0) + 1

    def put_by(self) -> None:
        """No more marks of this step: it waits until the device has passed them."""
        step, self.step = self.step, None
        if step is not None:
            if step.spans:
                self._waiting.append(step)
            else:
                self.pool += step.marks

    def end_step(self, began: bool, iteration: int, now: int) -> None:
        """A step has ended (not ``began``: a part of one that is not recorded).

        See what the device has reached of it and of those before.
        """
        if began:
            self.put_by()
        self.settle(AT_ONCE)
        if now - self._seen.looked >= MEMORY_EVERY_NS * self.writer.every:
            self._seen.looked = now
            self._note_memory(iteration, now)

    # What the device has reached

    def settle(self, most: int = MOST_STEPS + 1) -> None:
        """Give the spans of the oldest steps their times, as far as the device has come."""
        waiting, done = self._waiting, self.accelerator.done
        while waiting and most:
            step = waiting[0]
            marks = step.marks
            if not (all(done(each) for each in marks) if step.mixed else done(marks[-1])):
                return
            self._place(step)
            waiting.popleft()
            self.pool += marks
            most -= 1

    def _place(self, step: Step) -> None:
        elapsed, marks, base = self.accelerator.elapsed_ms, step.marks, step.base
        event, time_ns, scale = base.event, base.time_ns, base.scale
        pen = self.pen
        known, words, offset, settle = pen.first, pen.words, pen.end_at, pen.settle
        stream = MIXED if step.mixed else step.stream
        # Of one stream they follow one another; two comparisons of the clocks differ by some us.
        earliest = self._last_end if stream == self._last_stream != MIXED else 0
        at, last = -1, 0
        for row, first, final in step.spans:
            start = last if first == at else time_ns + int(elapsed(event, marks[first]) * scale)
            at, last = final, time_ns + int(elapsed(event, marks[final]) * scale)
            if start < earliest:
                start = earliest
            if last < start:
                last = start
            if row >= known:
                at_word = row * 4 + offset
                words[at_word + 1] = start
                words[at_word] = last
            else:
                settle(row, start, last)
        self._last_end, self._last_stream = last, stream

    # What is allocated

    def _note_memory(self, iteration: int, now: int) -> None:
        found, known = self.accelerator.memory(), self._seen.failures
        if found is None:
            return
        place = place_of(0, iteration)
        self.scalar("memory allocated", found.allocated, place, now)
        self.scalar("memory reserved", found.reserved, place, now)
        self.scalar("memory peak", found.peak, place, now)
        if found.failures > known:
            self.out_of_memory(found, iteration, "the program went on")

    def scalar(self, name: str, value: float, place: int, now: int) -> None:
        """Write a number: bytes."""
        label = self.label("scalar", name) | SCALAR << 24
        self.pen.write(0, label, place, bits_of(value), now)

    def out_of_memory(self, found: Memory | None, iteration: int, message: str) -> dict[str, Any]:
        """Write an instant, once, with what was allocated. Returns its attributes."""
        found = found or self.accelerator.memory()
        about: dict[str, Any] = {"message": message[:1000]}
        if found is not None:
            about |= {
                "allocated": found.allocated, "reserved": found.reserved, "peak": found.peak,
            }  # fmt: skip
        about = {f"ignite.device.memory.{key}": value for key, value in about.items()}
        if self._seen.is_new(found, message):
            now = self.writer.now_ns()
            row = self.pen.write(
                0, self.label("event", "out of memory"), place_of(0, iteration), now, now
            )
            if self.writer.text_room():
                self.writer.note("attributes", row=row, attributes=about)
        return about

    # The end

    def close(self) -> None:
        """Settle what the device has reached by now, and mark what it has not."""
        self.put_by()
        try:
            self.settle()
        except Exception as error:  # the device has failed, which is the training's affair
            log.debug("device times: %s", error)
        for step in self._waiting:
            for row, _, _ in step.spans:
                if self.writer.text_room():
                    self.writer.note("end_reason", row=row, reason="not reached by the device")
                self.pen.give_up(row, CUT)
        self._waiting.clear()
        for reason, count in self.untimed.items():
            self.writer.note("untimed", lane=self._lane, reason=reason, count=count)
