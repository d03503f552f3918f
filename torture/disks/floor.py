"""The floor of free space: firetrace never takes what the training needs for its checkpoints.

Trainings that fire events as fast as they can fill a small file system down to ``min_free_bytes``.
Whoever takes space is told apart: only what the journal grew by counts.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, EventEnum, Events
from ignite.handlers import Checkpoint, DiskSaver

from bench.process import begin
from bench.settings import Progress
from firetrace import TraceHandler
from firetrace.tracer.storage import MAPPABLE
from torture.children import has_ended
from torture.disks.places import MIB, UnavailableError, fill, mounted
from torture.disks.victims import Answer, in_child, unread
from torture.result import Result
from torture.settings import Settings

#: What is free at the beginning, what has to stay free, and what of that a training takes that
#: keeps two checkpoints and writes a third.
ROOM, FLOOR = 14 * MIB, 6 * MIB
SIZE = 64 * MIB
#: Not btrfs: what it says is free, files cannot always have.
KINDS = ("tmpfs", "ext4", "xfs")
SAVE_EVERY = 25  #: epochs
PER_EPOCH = 400  #: events
AHEAD = 2**14
MOST_SAVED = 12  #: checkpoints, and as many more as there is room to record


class Often(EventEnum):
    """Fired again and again in each iteration."""

    HAPPENED = "happened"


@dataclass
class Hoarder:
    """A training that would fill the disk."""

    place: Path
    mapped: bool
    epochs: int = 450
    processes: int = 1
    threads: int = 1
    texts: int = 0  #: characters noted on a span of the user's, in place of each event
    saves: bool = False

    def run(self) -> dict[str, Any]:
        """Train, in forked processes or threads or right here. Returns what was seen."""
        if self.processes > 1:
            return self._fork()
        handler = TraceHandler(self.place / "run", min_free_bytes=FLOOR, name="hoarder")
        recording = handler._recording
        object.__setattr__(recording.settings, "mapped", self.mapped)
        scale = Scale(self.place)
        others = [threading.Thread(target=self.train, args=(handler, scale, False))
                  for _ in range(self.threads - 1)]  # fmt: skip
        for thread in others:
            thread.start()
        saved = self.train(handler, scale, self.saves)
        for thread in others:
            thread.join()
        stopped = recording.ended
        handler.close()
        scale.weigh()
        return {"stopped": stopped, "least": scale.least, "crossed": scale.crossed, "saved": saved}

    def _fork(self) -> dict[str, Any]:
        def be(rank: int) -> None:
            os.environ["RANK"] = str(rank)
            Hoarder(self.place, self.mapped, self.epochs, texts=self.texts).run()

        left = {begin(partial(be, rank)) for rank in range(self.processes)}
        scale = Scale(self.place)
        try:
            while left:
                scale.weigh()
                left -= {pid for pid in left if has_ended(pid)}
        finally:
            for pid in left:  # the others of one that failed
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return {"stopped": True, "least": scale.least, "crossed": scale.crossed, "saved": 0}

    def train(self, handler: TraceHandler, scale: Scale, saves: bool) -> int:
        """One engine. Returns how many checkpoints were saved, all of which can be loaded."""
        torch.manual_seed(1)
        model = torch.nn.Linear(512, 512)

        def update(engine: Engine, batch: Any) -> None:
            pass

        def be_busy(engine: Engine) -> None:
            for number in range(PER_EPOCH):
                if not self.texts:
                    engine.fire_event(Often.HAPPENED)
                    continue
                with handler.span("noted", text="x" * self.texts):
                    if number % 20 == 0:
                        scale.weigh()
            scale.weigh()
            if handler._recording.ended and saved >= MOST_SAVED * saves:
                engine.terminate()

        engine = Engine(update)
        engine.register_events(*Often)
        engine.add_event_handler(Often.HAPPENED, lambda: None)
        # Outside of steps, of which fewer and fewer would be recorded as the room runs out.
        engine.add_event_handler(Events.EPOCH_COMPLETED, be_busy)
        saved = 0

        def save(engine: Engine, checkpoint: Checkpoint) -> None:
            nonlocal saved
            scale.weigh()
            checkpoint(engine)
            found = torch.load(self.place / "saved" / str(checkpoint.last_checkpoint))
            assert torch.equal(found["weight"], model.weight)
            saved += 1
            scale.weigh()

        if saves:  # only one does, as not even the folder can be made by two at once
            checkpoint = Checkpoint(
                {"model": model}, DiskSaver(str(self.place / "saved"), create_dir=True),
                n_saved=2, global_step_transform=lambda engine, event: engine.state.epoch,
            )  # fmt: skip
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=SAVE_EVERY), save, checkpoint)
        handler.attach(engine)
        engine.run(range(2), max_epochs=self.epochs)
        return saved


class Scale:
    """Weighs what is free, and the journal, again and again."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._journal = 0
        self._guard = threading.Lock()
        self.least = 2**62  #: bytes that were free
        self.crossed = 0  #: by how many bytes the journals grew where there was less than the floor

    def weigh(self) -> None:
        """Look once."""
        with self._guard:
            journal = ahead = 0
            with suppress(FileNotFoundError):
                for entry in os.scandir(self._place / "run"):
                    took, size = entry.stat().st_blocks * 512, entry.stat().st_size
                    # What xfs gives a file ahead of its end it takes back where others need it.
                    more = took - size if took - size > AHEAD else 0
                    ahead, journal = ahead + more, journal + took - more
            found = os.statvfs(self._place)
            free = found.f_bavail * found.f_frsize + ahead
            self.least = min(self.least, free)
            if free < FLOOR:
                self.crossed += max(0, journal - self._journal)
            self._journal = journal


def keep_to_the_floor(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Fill disks down to the floor, in every way that there is."""
    rounds = 1 if settings.short else 2
    lines: dict[str, Callable[[Path, bool], Hoarder]] = {
        "the floor, beside checkpoints": lambda place, mapped: Hoarder(place, mapped, saves=True),
        "the floor, four threads": lambda place, mapped: Hoarder(place, mapped, 120, threads=4),
        "the floor, four processes": lambda place, mapped: Hoarder(place, mapped, 120, processes=4),
        "the floor, long texts on spans": lambda place, mapped: Hoarder(
            place, mapped, 100, texts=1000
        ),
    }
    for what, hoarder in lines.items():
        result, missing, least = Result("disks", what), list[str](), 2**62
        for kind in KINDS:
            progress(f"disks: {what}: {kind}")
            for _ in range(rounds):
                for mapped in ways(kind, settings.short):
                    try:
                        with mounted(kind, settings.workspace, size=sized(kind)) as place:
                            fill(place, ROOM)
                            answer = in_child(hoarder(place, mapped).run)
                            wrong = [*crossings(answer), *unread(place, {})]
                        # A span that another thread opens just then may stay open.
                        wrong = [each for each in wrong if "open in a parent" not in each]
                    except UnavailableError as error:
                        missing.append(f"{kind}: {error}")
                        continue
                    result.tried += 1
                    where = f"{kind}, {'mapped' if mapped else 'pwrite'}"
                    result.failures += [f"{where}: {each}" for each in wrong]
                    if answer.answer:
                        least = min(least, answer.answer["least"])
        if result.tried:
            result.figures = f"floor {FLOOR / MIB:.1f} MiB, least free {least / MIB:.1f} MiB"
        else:
            result.skipped = "; ".join(dict.fromkeys(missing))
        yield result


def ways(kind: str, short: bool) -> tuple[bool, ...]:
    """Whether rows are mapped, and by ``pwrite``, on a file system."""
    if short:
        return {"tmpfs": (True,), "ext4": (False,)}.get(kind, ())
    return (True, False) if kind in MAPPABLE else (False,)


def sized(kind: str) -> int:
    """Bytes of the file system."""
    return SIZE if kind in ("tmpfs", "ext4") else 0


def crossings(answer: Answer) -> list[str]:
    """What went wrong with a training that would fill the disk."""
    if answer.status or answer.answer is None:
        return [f"{answer.status or 'no answer'}: {answer.stderr[-300:]}"]
    wrong, found = [], answer.answer
    if not found["stopped"]:
        wrong.append("the floor was not reached")
    if found["crossed"]:
        below = FLOOR - found["least"]
        wrong.append(f"the journal grew below the floor; {below:,} bytes too few were free")
    return wrong
