"""One process's recording of one run, shared by its handlers.

It opens the journal when the first event fires, hands out recorders, and is the one place where
recording ends: closed, given up after a failure of firetrace's own, or left behind by a fork.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from firetrace.tracer import begin, clock, relay, run
from firetrace.tracer.blame import raised_by_signal_handler
from firetrace.tracer.data.files import Place
from firetrace.tracer.data.seams import DataTracer
from firetrace.tracer.device.devices import Devices
from firetrace.tracer.recorder import Recorder
from firetrace.tracer.rows import ThreadTrack
from firetrace.tracer.world import Meeting, World, meet, world
from firetrace.tracer.writer import MAX_BYTES, JournalWriter

log = logging.getLogger("firetrace")

#: Of the budget of a process so much is that of each data journal beside its own.
DATA_PART = 8


@dataclass(frozen=True)
class Settings:
    """How to record; see ``TraceHandler``."""

    directory: Path | None = None
    name: str | None = None
    max_bytes: int = MAX_BYTES
    min_free_bytes: int | None = None
    every: int = 1
    mapped: bool | None = None
    context: bool = True
    otlp: bool | None = None
    otlp_wait_s: float | None = None
    data: bool | None = None
    device: Any = None
    #: Given the journal when it is made; returns what hands it on in this process.
    feed: Callable[[Path], Feed] | None = None


class Feed(Protocol):
    """Hands a journal on while it grows, in a thread of its own."""

    def end(self) -> None:
        """The journal is closed: hand over the rest, and then end."""

    def finish(self, timeout_s: float) -> bool:
        """Wait until everything has been handed over, and say whether that was done in time."""


class Recording:
    """The journal of this process in one run, and everyone who writes to it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.directory: Path | None = None  # known once the journal is open
        self.writer: JournalWriter | None = None
        self.ended = False
        self._pid = os.getpid()
        self._guard = threading.RLock()
        self._tracks: dict[int, ThreadTrack] = {}
        self._recorders: list[Recorder] = []
        self._users = 0
        self._feed: Feed | None = None
        self.data: DataTracer | None = None  # how batches are made, if that is recorded
        self.devices: Devices | None = None  # once the journal is open
        self._clock: clock.Clock | clock.Comparison | None = None  # among hosts
        self.relayed: Path | None = None  # the journal that a relay sends on
        _recordings.add(self)

    def join(self) -> Recording:
        """Another handler uses this recording."""
        self._users += 1
        return self

    def leave(self) -> None:
        """A handler is done with it; the last one closes it."""
        self._users -= 1
        if self._users <= 0:
            self.close()

    def recorder(self, engine: str, key: int) -> Recorder | None:
        """A recorder for an engine in the calling thread; None if recording has ended.

        Raises:
            OSError: the journal cannot be made.
        """
        with self._guard:
            if self.ended:
                return None
            if self.writer is None:
                self._open()
            assert self.writer is not None
            ident = threading.get_ident()
            track = self._tracks.get(ident)
            if track is None or track.thread() is not threading.current_thread():
                track = self._tracks[ident] = ThreadTrack(self.writer)
            recorder = Recorder(self.writer, track, engine, key)
            self._recorders.append(recorder)
            return recorder

    def _open(self) -> None:
        settings = self.settings
        here = world()
        alone = here.size == 1 or (here.one_host and settings.directory is not None)
        meeting = None if alone else meet()
        self.directory, resource = begin.begin(settings.directory, settings.name, here, meeting)
        for stem in begin.stems(self.directory, here.rank):
            try:
                self.writer = JournalWriter(
                    stem, resource, settings.max_bytes, settings.min_free_bytes, settings.every,
                    settings.mapped,
                )  # fmt: skip
                break
            except FileExistsError:
                continue  # another process or attempt has it
        if self.writer is None:
            raise OSError(f"{self.directory}: no free name for a journal")
        # ``firetrace run`` has said it already, and what the program logs shall stay the same.
        told = self.directory == run.chosen()[0]
        log.log(logging.DEBUG if told else logging.INFO, "recording to %s", self.directory)
        free, mapped = settings.min_free_bytes, settings.mapped
        self.devices = Devices(
            settings.device, self.writer, resource, (settings.max_bytes, free, mapped)
        )
        if data_wanted(settings.data):
            most = max(2**16, settings.max_bytes // DATA_PART)
            self.data = DataTracer(Place(stem, resource, most, free, mapped, settings.every))
        if meeting is not None:
            self._keep_time(meeting, here)
        if relay.wanted(settings.otlp):
            self._start_relay(self.writer.path)
        if settings.feed is not None:
            self._start_feed(settings.feed, self.writer.path)
        _close_when_child_ends()

    def _keep_time(self, meeting: Meeting, here: World) -> None:
        assert self.writer is not None
        try:
            self._clock = clock.keep_time(self.writer, meeting, here)
        except Exception as error:
            log.debug("the clocks of the hosts are not compared: %s", error)
        finally:
            if not isinstance(self._clock, clock.Comparison):  # which asks it later
                meeting.close()

    def _start_relay(self, journal: Path) -> None:
        try:
            relay.start(journal)
            self.relayed = journal
        except Exception as error:
            log.warning(
                "firetrace sends nothing meanwhile (%s); 'firetrace export --resume' will", error
            )

    def _start_feed(self, feed: Callable[[Path], Feed], journal: Path) -> None:
        try:
            self._feed = feed(journal)
        except Exception as error:
            log.warning("firetrace: %s", error)
            return
        # Registered now, it runs before the provider, which is older, shuts down.
        atexit.register(self.finish_feed)

    def finish_feed(self) -> None:
        """End the recording and hand on what has not been handed on."""
        if self._feed is None or self.inherited:
            return
        self.close()
        feed, self._feed = self._feed, None
        atexit.unregister(self.finish_feed)
        if not feed.finish(relay.wait_seconds(self.settings.otlp_wait_s)):
            log.warning("firetrace: not all spans could be handed on in time")

    def innermost(self) -> Recorder | None:
        """The recorder of the engine that runs innermost in the calling thread."""
        track = self._tracks.get(threading.get_ident())
        if track is None or track.thread() is not threading.current_thread():
            return None
        track.leave_what_is_over()
        found = track.innermost
        return found if isinstance(found, Recorder) and found.ident else None

    def guarded(self, action: Callable[..., Any], *args: Any) -> Any:
        """Do something for the recording that must not fail into the training."""
        try:
            return action(*args)
        except Exception as error:
            self.give_up(error)
            return None

    def give_up(self, error: BaseException) -> None:
        """Firetrace itself has failed: say so once, stop recording, let the training go on.

        Raises:
            Exception: that very error, where a signal handler of the program's has raised it while
                firetrace's code happened to run.
        """
        try:
            is_the_programs = raised_by_signal_handler(error)
        except Exception:
            is_the_programs = False
        if is_the_programs:
            raise error
        try:
            with self._guard:
                if not self.ended:
                    self.ended = True  # whatever else goes wrong: once is enough
                    self._give_up(error)
        except Exception as second:
            log.debug("giving up: %s", second)

    def _give_up(self, error: BaseException) -> None:
        reason = f"{type(error).__name__}: {error}"
        where = self.directory or self.settings.directory or "the run's directory"
        try:
            if self.writer is not None:
                self.writer.note_stop(reason)
        except Exception as second:  # the disk may be full: the log line below still comes
            log.debug("could not note why recording stopped: %s", second)
        try:
            log.warning("firetrace stopped recording to %s (%s); training goes on", where, reason)
        finally:
            self.close()

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child: it is the parent's, its lock perhaps held."""
        return os.getpid() != self._pid

    def close(self) -> None:
        """End the recording; what was recorded can be read."""
        try:
            self._close()
        except Exception as error:
            log.debug("closing: %s", error)

    def _close(self) -> None:
        if self.inherited:
            return
        with self._guard:
            for what, step in (
                ("telling the recorders", self.forget),
                ("closing what is open", self._close_tracks),
                ("recording data", self._close_data),
                ("recording devices", self._close_devices),
                ("comparing clocks", self._close_clock),
                ("closing the journal", self._close_writer),
                ("telling the feed", self._end_feed),
            ):
                try:
                    step()
                except Exception as error:
                    log.debug("%s: %s", what, error)

    def _close_tracks(self) -> None:
        if self.writer is not None:
            for track in self._tracks.values():
                track.close(self.writer)

    def _close_data(self) -> None:
        if self.data is not None:
            self.data.close()

    def _close_devices(self) -> None:
        if self.devices is not None:
            self.devices.close()

    def _close_clock(self) -> None:
        if self._clock is not None:
            self._clock.close()

    def _close_writer(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _end_feed(self) -> None:
        if self._feed is not None:
            self._feed.end()

    def leave_behind(self) -> None:
        """In a forked child: this stays the parent's, whose threads may hold the lock for ever."""
        self._guard = threading.RLock()
        self.forget()

    def forget(self) -> None:
        """Stop everyone from writing (in a forked child nothing else may be done)."""
        self.ended = True
        for recorder in self._recorders:
            recorder.end()
        if self.devices is not None:
            self.devices.stop()


_recordings: weakref.WeakSet[Recording] = weakref.WeakSet()
_shared: dict[Path | None, Recording] = {}
_shared_guard = threading.Lock()


def shared(settings: Settings) -> Recording:
    """The process's recording for these settings.

    Handlers that name the same directory share one, and those that name none join the first, or
    what ``firetrace run`` chose.
    """
    if settings.directory is None:
        directory, name = run.chosen()
        settings = replace(settings, directory=directory, name=settings.name or name)
    key = None if settings.directory is None else _absolute(settings.directory)
    with _shared_guard:
        found = _shared.get(key)
        if key is None and (found is None or found.ended):
            found = next((r for r in _shared.values() if not r.ended), None)
        if found is not None and not found.ended:
            own = replace(settings, directory=found.settings.directory)
            if own not in (found.settings, Settings(own.directory, found.settings.name)):
                log.warning(
                    "firetrace: this handler joins the recording of another one in this process, "
                    "whose settings stay: %s", found.settings
                )  # fmt: skip
        if found is None or found.ended:
            found = _shared[key] = Recording(settings)
        return found.join()


def recording(settings: Settings) -> Recording:
    """The process's recording for these settings, as ``shared``, or one that has already ended."""
    try:
        return shared(settings)
    except Exception as error:
        ended = Recording(settings).join()
        ended.give_up(error)
        return ended


def _absolute(directory: Path) -> Path:
    try:
        return Path(os.path.abspath(directory))
    except OSError:  # the current folder is gone; the first event says what comes of that
        return directory


def data_wanted(asked: bool | None) -> bool:
    """Whether batches, samples and transforms are recorded, too."""
    return asked if asked is not None else os.environ.get("FIRETRACE_DATA") == "1"


def close_all() -> None:
    """End every recording of this process, and wait a little for what is still being sent."""
    recordings = list(_recordings)
    for recording in recordings:
        recording.close()
        recording.finish_feed()
    end = time.monotonic()
    for recording in recordings:
        if recording.relayed is not None and not recording.inherited:
            seconds = relay.wait_seconds(recording.settings.otlp_wait_s)
            relay.wait(recording.relayed, end + seconds - time.monotonic())
            recording.relayed = None


def _forget_all() -> None:
    """In a forked child: it must not write into its parent's journal.

    Nor wait for a lock that was held when it was forked: who held it is not there.
    """
    global _shared_guard
    _shared_guard = threading.Lock()
    for recording in list(_recordings):
        recording.leave_behind()


def _close_when_child_ends() -> None:
    """A child that ``multiprocessing`` has forked leaves without ``atexit``."""
    if "multiprocessing.util" in sys.modules:
        from multiprocessing import parent_process, util

        if parent_process() is not None:
            util.Finalize(None, close_all, exitpriority=-10)


atexit.register(close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
