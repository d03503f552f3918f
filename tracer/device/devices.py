"""The devices that the engines of one recording train on, and the journal of their times."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firetrace.tracer.blame import raised_by_signal_handler
from firetrace.tracer.device.accelerator import Accelerator, find
from firetrace.tracer.device.marks import Marks
from firetrace.tracer.device.memory import Seen
from firetrace.tracer.device.track import Track
from firetrace.tracer.writer import JournalWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from firetrace.tracer.recorder import Recorder

log = logging.getLogger("firetrace")

#: Of the budget of a process the journal of devices has so much, beside its own.
DEVICE_PART = 4


def device_wanted(asked: Any) -> Any:
    """What was asked for, or the environment asks for; None: wherever there is a GPU."""
    if asked is not None:
        return asked
    return {"0": False, "1": True}.get(os.environ.get("FIRETRACE_DEVICE", ""))


class Devices:
    """Records device time for the engines of one recording.

    Args:
        asked: as ``TraceHandler``'s ``device``.
        rank: the rank's journal.
        resource: of the process.
        more: ``max_bytes``, ``min_free_bytes`` and ``mapped``, as of the rank's journal.
    """

    def __init__(
        self, asked: Any, rank: JournalWriter, resource: dict[str, Any], more: tuple[Any, ...]
    ) -> None:
        self._asked, self._rank, self._resource = device_wanted(asked), rank, resource
        # A step that the rank's journal has not is none here: ``every`` must not count twice.
        self._more = max(2**16, more[0] // DEVICE_PART), more[1], 1, more[2]
        self._writer: JournalWriter | None = None
        self._accelerators: dict[str, Accelerator] = {}
        self._seen: dict[str, Seen] = {}
        self._tracks: list[Track] = []
        self._marks: list[Marks] = []
        self._ended = self._said = False
        self._guard = threading.RLock()

    def marks(self, recorder: Recorder, engine: Any, models: Mapping[str, Any]) -> Marks | None:
        """What marks the phases of an engine that begins to run; None: nothing does."""
        if self._ended or self._asked is False:
            return None
        try:
            with self._guard:
                return self._marks_of(recorder, engine, models)
        except Exception as error:
            self.failed(error)
            return None

    def _marks_of(self, recorder: Recorder, engine: Any, models: Mapping[str, Any]) -> Marks | None:
        accelerator, reason = find(self._asked, engine, models)
        if accelerator is None:
            if self._asked is not None and not self._said:
                self._said = True
                log.warning("firetrace: no device time is recorded: %s", reason)
            return None
        accelerator = self._accelerators.setdefault(accelerator.label, accelerator)
        known = recorder.marks
        if known is not None and known.on and known.track.accelerator is accelerator:
            return known
        marks = Marks(self._track(accelerator), recorder, self.failed)
        self._marks.append(marks)
        return marks

    def _track(self, accelerator: Accelerator) -> Track:
        """The calling thread's, which may have been that of a thread that has ended."""
        of_device = [each for each in self._tracks if each.accelerator is accelerator]
        for track in of_device:
            if track.thread is threading.current_thread():
                return track
        for track in of_device:
            if not track.thread.is_alive():
                track.adopt()
                return track
        writer, label = self._open(accelerator), accelerator.label
        if label not in self._seen:
            self._seen[label] = Seen(accelerator.memory())
        self._tracks.append(Track(accelerator, writer, self._seen[label]))
        return self._tracks[-1]

    def _open(self, accelerator: Accelerator) -> JournalWriter:
        if self._writer is None:
            rows: Path = self._rank.path
            hardware = accelerator.hardware()
            resource = {**self._resource, **hardware}
            self._writer = JournalWriter(
                rows.with_name(f"{rows.stem}.device"), resource, *self._more
            )
            self._rank.note("process", resource=resource)
        return self._writer

    def failed(self, error: BaseException) -> None:
        """Device time cannot be recorded any more: say so once. Everything else goes on.

        Raises:
            BaseException: that very error, where the program's signal handler has raised it.
        """
        if raised_by_signal_handler(error):
            raise error
        said, self._said = self._said, True
        self.stop()
        reason = f"{type(error).__name__}: {error}"
        if not said:
            log.warning("firetrace records no more device time (%s); all else goes on", reason)
        try:
            if self._writer is not None and not self._writer.closed:
                self._writer.note_stop(reason)
        except Exception as second:
            log.debug("could not note why device time ended: %s", second)

    def stop(self) -> None:
        """Write nothing from now on, and ask nothing of a device (in a forked child, too)."""
        self._ended = True
        for marks in self._marks:
            marks.on = False

    def close(self) -> None:
        """End the recording; what was recorded can be read."""
        with self._guard:
            self.stop()
            writer = self._writer
            if writer is None or writer.closed:
                return
            for track in self._tracks:
                try:
                    track.close()
                except Exception as error:  # what could not be settled stays open
                    log.debug("closing the device's journal: %s", error)
            writer.close()
