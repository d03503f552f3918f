"""The spans of batches as they are made: a batch, its samples, their transforms, its collate.

One ``Pipeline`` a process, which writes one data journal; a track for each thread in which
something is made. What fails here ends the recording of data, never the making of it.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from time import monotonic_ns
from typing import Any

from firetrace.tracer.blame import raised_by_signal_handler
from firetrace.tracer.data.files import Place, StoppedError, open_journal
from firetrace.tracer.journal import Flag
from firetrace.tracer.storage import Pen, place_of
from firetrace.tracer.writer import JournalWriter

log = logging.getLogger("firetrace")

ERROR, CUT, VOID = int(Flag.ERROR), int(Flag.CUT), int(Flag.VOID)
OWN_LANE = "data"  #: what is made outside of every pass, such as a cache that is renewed


class Track:
    """What is being made in one thread."""

    __slots__ = (
        "lane", "muted", "name", "offset", "pen", "pipeline", "place", "sampling", "stack",
        "thread",
    )  # fmt: skip

    def __init__(self, pipeline: Pipeline, pen: Pen, name: str, offset: int) -> None:
        self.pipeline = pipeline
        self.pen = pen
        self.name = name  # of the thread, or of the one whose place it takes
        self.lane = 0  # as a label has it
        self.offset = offset  # from monotonic to the journal's time
        self.place = 0
        self.stack: list[int] = [0]
        self.sampling = False  # in a sample; those of the data sets within are no spans
        self.muted = False  # of a batch that is thinned out nothing is written
        self.thread = threading.current_thread()  # idents are used again

    def open(self, name: int) -> int:
        """Open a span of this name id under the innermost one. Return the height to close."""
        stack, pen = self.stack, self.pen
        height = len(stack)
        try:
            row = pen.next_row
            if row >= pen.last_row:
                pen.roll()
                row = pen.next_row
            pen.put_o(
                pen.target, row * 32 - pen.base, stack[-1], name | self.lane, self.place,
                monotonic_ns() + self.offset,
            )  # fmt: skip
            pen.next_row = row + 1
            stack.append(row)
        except Exception as error:
            self.pipeline.give_up(error)
        return height

    def close(self, height: int, flags: int = 0) -> None:
        """Close what was opened at this height, and what was left open in it."""
        stack, pen = self.stack, self.pen
        try:
            while len(stack) > height:
                row, now = stack[-1], monotonic_ns() + self.offset
                if flags or row < pen.first:
                    pen.close(row, now, flags)
                else:
                    pen.words[row * 4 + pen.end_at] = now
                stack.pop()
        except Exception as error:
            self.pipeline.give_up(error)

    def during(self, name: int, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call something; its span has this name id. ``StopIteration``: there was nothing."""
        height = self.open(name)
        try:
            result = call(*args, **kwargs)
        except StopIteration:
            self.close(height, CUT | VOID)
            raise
        except BaseException:
            self.close(height, CUT | ERROR)
            raise
        self.close(height)
        return result

    def sample(self, name: int, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The same for a sample, in which those of the data sets within are no spans."""
        self.sampling = True
        try:
            return self.during(name, call, *args, **kwargs)
        finally:
            self.sampling = False

    def cut_short(self) -> None:
        """What is being made is not recorded to its end. For any thread: nothing else changes."""
        for row in reversed(self.stack[1:]):
            self.pen.close(row, monotonic_ns() + self.offset, CUT)

    def end(self, height: int, outer: int, flags: int = 0) -> None:
        """A batch has been made, or an exception was raised; go on with that around it, if any."""
        try:
            self.close(height, flags)
        finally:  # Ctrl-C may come meanwhile, and the next batch is not in this one
            del self.stack[height:]
            self.place = outer


class Pipeline:
    """Records how this process makes batches.

    Args:
        place: where to.
        worker: this process's number as a loader's worker; None: it is the training itself.
    """

    def __init__(self, place: Place, worker: int | None = None) -> None:
        self.place = place
        self.pid = os.getpid()
        self._worker = worker
        self._writer: JournalWriter | None = None
        self._guard = threading.RLock()
        self.tracks: dict[int, Track] = {}  #: by thread
        self.transforms: dict[str, int] = {}  #: ids of their names
        self.samples = 0  #: the id of their name, once there is one
        self._known: dict[int, weakref.ref[Any]] = {}  # the transforms that data sets hold, by id
        self._ended = False
        self._names: dict[tuple[str, str], int] = {}

    # What may fail

    def give_up(self, error: BaseException) -> None:
        """Record no more; whoever makes data goes on.

        Raises:
            Exception: that very error, where a signal handler of the program's has raised it.
        """
        if raised_by_signal_handler(error):
            raise error
        if self._ended:
            return
        self._ended = True
        if isinstance(error, StoppedError):  # that was said when it happened
            log.debug("%s", error)
            return
        try:
            log.warning(
                "firetrace records no more of the data pipeline in %s (%s: %s); it goes on",
                self._writer.path if self._writer is not None else self.place.stem,
                type(error).__name__, error,
            )  # fmt: skip
            if self._writer is not None:
                self._writer.note_stop(f"{type(error).__name__}: {error}")
        except Exception as second:
            log.debug("giving up: %s", second)
        finally:
            self.close()

    def guarded(self, action: Callable[..., Any], *args: Any) -> Any:
        """Do something for the recording that must not fail into the making of data."""
        try:
            return action(*args)
        except Exception as error:
            self.give_up(error)
            return None

    # Tracks

    def track(self, lane: str = "") -> Track | None:
        """The calling thread's; None if nothing is recorded. ``lane``: what a pass calls it."""
        found = self.tracks.get(get_ident())
        if found is not None and not lane and found.thread is threading.current_thread():
            return None if found.muted else found
        return self._new_track(lane)

    def _new_track(self, lane: str) -> Track | None:
        if self._ended or self.pid != os.getpid():
            return None
        track: Track | None = self.guarded(self._make_track, lane)
        return track if track is None or not track.muted else None

    def _make_track(self, lane: str) -> Track:
        writer, ident = self._open(), get_ident()
        track = self.tracks.get(ident)
        if track is None or track.thread is not threading.current_thread():
            track = self.tracks[ident] = self._track_of_the_dead(writer)
        track.lane = writer.lane(lane or OWN_LANE, 0, track.name) << 16
        return track

    def _track_of_the_dead(self, writer: JournalWriter) -> Track:
        """One for this thread: loaders that are threads begin new ones in each epoch."""
        thread = threading.current_thread()
        with self._guard:
            for ident, track in list(self.tracks.items()):
                if not track.thread.is_alive() and self.tracks.pop(ident, None) is track:
                    pen, name = track.pen, track.name
                    break
            else:
                pen, name = writer.pen(), thread.name
        return Track(self, pen, name, writer.wall_ns - writer.monotonic_ns)

    def _open(self) -> JournalWriter:
        with self._guard:
            if self._writer is None:
                resource = self.place.resource
                if self._worker is not None:
                    resource = {**resource, "process.pid": self.pid, "ignite.worker": self._worker}
                self._writer = open_journal(self.place, resource)
            return self._writer

    def name(self, kind: str, text: str) -> int:
        """The id of a name."""
        key = kind, text
        found = self._names.get(key)
        if found is None:
            found = self._names[key] = self.guarded(self._new_name, kind, text) or 0
        return found

    def _new_name(self, kind: str, text: str) -> int:
        return self._open().name(kind, text)

    def sample_name(self) -> int:
        """The id of the name of samples."""
        self.samples = self.name("sample", "sample")
        return self.samples

    def transform(self, text: str) -> int:
        """The id of a transform's name."""
        found = self.transforms[text] = self.name("transform", text)
        return found

    def know(self, transform: Any) -> None:
        """A data set holds this transform."""
        with suppress(TypeError):  # there is no telling then when it is gone
            self._known[id(transform)] = weakref.ref(transform)

    def outside(self, transform: Any) -> Track | None:
        """The thread's track for a transform that is called outside of every batch.

        That is a data set's own, as for a cache that is renewed; or what belongs to no data.
        """
        track = self.tracks.get(get_ident())
        if track is not None and len(track.stack) > 1:
            return track
        known = self._known.get(id(transform))
        return self.track() if known is not None and known() is transform else None

    # Passes and batches

    def begin_pass(self, seed: int | None, worker: int, workers: int, dataset: str) -> int:
        """A worker (of so many; 0: no worker) begins a pass. Return its id; 0: not recorded."""
        if self._ended:
            return 0
        found: int | None = self.guarded(self._note_pass, seed, worker, workers, dataset)
        return found or 0

    def _note_pass(self, seed: int | None, worker: int, workers: int, dataset: str) -> int:
        writer = self._open()
        with self._guard:
            writer.passes += 1
            writer.note(
                "pass", id=writer.passes, time=writer.now_ns(), seed=seed, worker=worker,
                workers=workers, dataset=dataset, pid=self.pid,
            )  # fmt: skip
            return writer.passes

    def begin_batch(self, pass_id: int, number: int, lane: str) -> tuple[Track, int, int] | None:
        """A batch (from 1) is made from here on in this thread. Return what ``Track.end`` needs."""
        if not pass_id:
            return None
        track = self.tracks.get(get_ident())
        if track is not None:
            track.muted = False
        track = self.track(lane)
        if track is None or self._writer is None:
            return None
        if number % self._writer.every:
            track.muted = True
            return None
        outer, track.place = track.place, place_of(pass_id, number)
        return track, track.open(self.name("batch", "batch")), outer

    def close(self) -> None:
        """End the recording; what was recorded can be read."""
        self._ended = True
        tracks, self.tracks = self.tracks, {}
        with self._guard:
            if self._writer is not None and self.pid == os.getpid():
                for step in (*(track.cut_short for track in tracks.values()), self._writer.close):
                    try:
                        step()
                    except Exception as error:
                        log.debug("closing the data journal: %s", error)


#: What records in this process; None: nothing does.
active: Pipeline | None = None


def activate(pipeline: Pipeline | None) -> None:
    """Record with this from now on."""
    global active
    active = pipeline


def _forget() -> None:
    """In a forked child: it must not write into its parent's journal."""
    activate(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
