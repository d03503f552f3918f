"""What disks do: they are full, forbidden, gone, read-only; and readers whose file is taken away.

On small file systems of its own where that is allowed, on limits otherwise. Whatever happens, the
training's result and exit code are those of the untraced one, one line says why recording stopped,
and what was recorded can be read.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.settings import Progress
from firetrace.tracer import storage, writer
from torture.disks.floor import keep_to_the_floor
from torture.disks.places import (
    ANYBODY,
    SIZES,
    UnavailableError,
    cleared,
    command,
    fill,
    make_read_only,
    mounted,
    quota,
    shut_down,
    use_up_descriptors,
    use_up_inodes,
)
from torture.disks.torn import read_torn
from torture.disks.victims import EPOCHS, STEPS, Plan, complaints, in_child, train
from torture.result import Result
from torture.settings import Settings

HERE = "here"  #: where the workspace is, instead of a file system of its own
#: After this there is no need for another window, so a fault may not be noticed.
LAST = EPOCHS * STEPS - 40


def hurt(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Take the disk away from trainings, and journals from readers."""
    for folder in (settings.workspace.parent, settings.workspace):
        with suppress(OSError):
            folder.chmod(0o711)  # the training may be somebody who is not root
    train(Plan())  # so that nothing is imported in a child whose disk is full
    ward = Ward(settings, progress)
    few, many = (1, 2) if settings.short else (5, 20)
    ended = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:  # whoever ends this finds nothing mounted
        yield from ward.full_disks(few, many)
        yield from ward.forbidden(few)
        yield from ward.taken_away(few)
        yield from ward.used_up(few)
        yield from keep_to_the_floor(settings, progress)
        yield from read_torn(settings, progress)
    finally:
        signal.signal(signal.SIGTERM, ended)


@dataclass
class Attempt:
    """A training, where its journal is to be found, and what is known beforehand."""

    plan: Plan
    folder: Path | None  #: None: the journal goes with the fault
    stops: bool | None = True  #: whether recording has to end; None: it may


Prepare = Callable[[Path], Attempt]


class Ward:
    """Where trainings are hurt, and a healthy one to compare them with."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.draw = random.Random(settings.seed)
        self.workspace = settings.workspace
        self.progress = progress
        self.untraced = in_child(lambda: train(Plan()))

    def line(
        self, what: str, prepare: Prepare, rounds: int, kinds: Iterable[str] = SIZES,
        options: str = "", make: tuple[str, ...] = (), fresh: bool = False,
        place: Callable[[], AbstractContextManager[Path]] | None = None,
    ) -> Result:  # fmt: skip
        """Try something on each file system, with each storage that firetrace uses there.

        Args:
            what: of the line.
            prepare: given an empty folder, what is to happen.
            rounds: how often, for each file system and storage.
            kinds: of file systems.
            options: with which they are mounted.
            make: more words for the program that makes them.
            fresh: whether what happens leaves a file system that cannot be used again.
            place: what to use instead of one of ``kinds``.
        """
        result, done, missing = Result("disks", what), list[str](), list[str]()
        for kind in kinds:
            turns: list[bool] = []  # whether the rows are mapped
            self.progress(f"disks: {what}: {kind}")
            try:
                again = True
                while again:
                    with place() if place else self.place(kind, options, make) as folder:
                        system, _ = storage.mount_of(folder)
                        both = (True, False) if storage.can_be_mapped(folder) else (False,)
                        turns = turns or [mapped for mapped in both for _ in range(rounds)]
                        while turns:
                            failures = self.attempt(prepare(cleared(folder)), turns[0])
                            where = f"{system}, {'mapped' if turns.pop(0) else 'pwrite'}"
                            result.failures += [f"{where}: {each}" for each in failures]
                            result.tried += 1
                            if fresh:
                                break
                    again = bool(turns)
                done.append(system)
            except UnavailableError as error:
                missing.append(f"{kind}: {error}" if not place else str(error))
        if result.tried:
            result.figures = ", ".join(done) + f" (not {'; '.join(missing)})" * bool(missing)
        else:
            result.skipped = "; ".join(missing)
        return result

    def attempt(self, attempt: Attempt, mapped: bool) -> list[str]:
        """One training and what went wrong."""
        attempt.plan.mapped = mapped
        attempt.plan.closes = self.draw.random() < 0.5
        answer = in_child(lambda: train(attempt.plan))
        return complaints(answer, self.untraced, attempt.folder, attempt.stops)

    @contextmanager
    def place(self, kind: str, options: str = "", make: tuple[str, ...] = ()) -> Iterator[Path]:
        """A file system of a kind."""
        if kind != HERE:
            with mounted(kind, self.workspace, options, make) as folder:
                yield folder
            return
        folder = self.workspace / HERE
        folder.mkdir()
        folder.chmod(0o777)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def sometime(self, plan: Plan) -> Plan:
        """The plan, with its fault at a random moment of the training."""
        plan.at, plan.spot = self.draw.randint(1, LAST), self.draw.randrange(3)
        return plan

    # What is done

    def full_disks(self, few: int, many: int) -> Iterator[Result]:
        """The disk is full, or becomes so."""
        draw = self.draw

        def full(place: Path) -> Attempt:
            fill(place, draw.choice((0, 0, 512, 4096, 5000, 12_000, 25_000)))
            return Attempt(Plan(place / "run"), place)

        def by_firetrace(place: Path) -> Attempt:
            fill(place, draw.randint(40_000, 100_000))
            return Attempt(Plan(place / "run"), place)

        def by_another(place: Path) -> Attempt:
            plan = self.sometime(Plan(place / "run", fault=lambda: fill(place)))
            return Attempt(plan, place, full_at_once(place))

        def before_the_first_event(place: Path) -> Attempt:
            return Attempt(Plan(place / "run", fault=lambda: fill(place)), place)

        def at_an_edge(place: Path) -> Attempt:
            how, number = draw.choice((when_handed_out, when_reserved)), draw.randint(1, 4)
            plan = Plan(place / "run")
            plan.before = lambda: (how if plan.mapped else when_handed_out)(number, place)
            return Attempt(plan, place, full_at_once(place))

        def limited(place: Path) -> Attempt:
            size = draw.choice((0, 100, 4095, 4096, 5000, 2**15, draw.randint(2**15, 2**17)))
            return Attempt(Plan(place / "run", before=lambda: limit_files(size)), place)

        def quota_reached(place: Path) -> Attempt:
            return Attempt(Plan(place / "run", before=be_anybody), place)

        yield self.line("full from the start", full, few + 1)
        yield self.line("filled by firetrace itself", by_firetrace, few)
        yield self.line("filled by another before the first event", before_the_first_event, few)
        yield self.line("filled by another at a random moment", by_another, many)
        yield self.line("filled while a window is made", at_an_edge, many)
        yield self.line("file size limit (RLIMIT_FSIZE)", limited, many, [HERE])
        yield self.line(
            "quota reached", quota_reached, few, ["quota"],
            place=lambda: quota(self.workspace, 65_536),
        )  # fmt: skip

    def forbidden(self, few: int) -> Iterator[Result]:
        """The journal may not be made."""
        draw = self.draw

        def no_permission(place: Path) -> Attempt:
            (place / "run").mkdir()
            for folder in (place / "run", place):
                folder.chmod(draw.choice((0o555, 0o111)))
            plan = draw.choice(
                (Plan(place / "run"), Plan(place / "new" / "run"), Plan(base=place),
                 Plan(base=place / "new"))
            )  # fmt: skip
            plan.before = be_anybody
            return Attempt(plan, place)

        def no_way_there(place: Path) -> Attempt:
            (place / "base").mkdir(mode=0o700)
            (place / "base" / "run").mkdir(mode=0o777)
            (place / "base").chmod(0)
            return Attempt(Plan(place / "base" / "run", before=be_anybody), None)

        def a_file(place: Path) -> Attempt:
            path = place / "file"
            how = draw.randrange(4)
            if how == 0:
                path.symlink_to("nowhere/at/all")
            elif how == 1:
                path.symlink_to("file")
            elif how == 2:
                os.mkfifo(path)
            else:
                path.write_text("mine")
            paths = (Plan(path), Plan(path / "run"), Plan(path / "a" / "b"), Plan(base=path))
            return Attempt(draw.choice(paths), place)

        def long_name(place: Path) -> Attempt:
            return Attempt(
                Plan(place / draw.choice(("x" * 300, "/".join(["deep" * 50] * 30)))), place
            )

        def read_only(place: Path) -> Attempt:
            (place / "run").mkdir()
            command("mount", "-o", "remount,ro", place)
            plan = draw.choice((Plan(place / "run"), Plan(place / "new"), Plan(base=place)))
            return Attempt(plan, place)

        yield self.line("no permission to write", no_permission, 3 * few, [HERE])
        yield self.line("no permission to go there", no_way_there, few, [HERE])
        yield self.line("the path, or one above it, is a file", a_file, 4 * few, [HERE])
        yield self.line("the name is too long", long_name, 2 * few, [HERE])
        yield self.line("read-only from the start", read_only, few, fresh=True)

    def taken_away(self, few: int) -> Iterator[Result]:
        """The journal is there, and then it is not, or may not be written any more."""

        def removed(place: Path) -> Attempt:
            what = self.draw.choice((place / "base" / "run", place / "base"))
            comes_back = self.draw.random() < 0.3

            def fault() -> None:
                shutil.rmtree(what)
                if comes_back:
                    (place / "base" / "run").mkdir(parents=True)

            plan = self.sometime(Plan(place / "base" / "run", fault=fault))
            plan.min_free = self.draw.choice((0, 1))  # without, nobody looks at the folder again
            return Attempt(plan, None, True if plan.min_free and not comes_back else None)

        def no_current_folder(place: Path) -> Attempt:
            gone = place / "gone"
            gone.mkdir()

            def before() -> None:
                os.chdir(gone)
                gone.rmdir()

            plan = self.draw.choice((Plan(Path("run")), Plan(base=Path("base"))))
            plan.before = before
            return Attempt(plan, None)

        def late(place: Path, fault: Callable[[Path], None]) -> Callable[[], None]:
            written = self.draw.random() < 0.5  # as the kernel does it every few seconds

            def strike() -> None:
                if written:
                    command("sync", "-f", place)
                fault(place)

            return strike

        def becomes_read_only(place: Path) -> Attempt:
            fault = late(place, make_read_only)
            plan = self.sometime(Plan(place / "run", fault=fault))
            return Attempt(plan, place)

        def fails(place: Path) -> Attempt:
            plan = self.sometime(Plan(place / "run", fault=late(place, shut_down)))
            return Attempt(plan, None)

        yield self.line("the run's folder is removed", removed, 2 * few, [HERE])
        yield self.line("the current folder is removed", no_current_folder, 2 * few, [HERE])
        yield self.line(
            "read-only in mid-run, after an error", becomes_read_only, 2 * few, ["ext4"],
            options="errors=remount-ro", fresh=True,
        )  # fmt: skip
        yield self.line(
            "the disk is gone in mid-run (EIO)", fails, 2 * few, ["ext4", "xfs"], fresh=True
        )

    def used_up(self, few: int) -> Iterator[Result]:
        """What else may run out."""
        draw = self.draw

        def inodes(place: Path) -> Attempt:
            use_up_inodes(place, draw.randrange(4))
            return Attempt(Plan(place / "run"), place)

        def descriptors(place: Path) -> Attempt:
            leave = draw.randrange(6)
            plan = Plan(place / "run", fault=lambda: use_up_descriptors(leave))
            if draw.random() < 0.5:
                plan = self.sometime(plan)
            plan.before = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
            return Attempt(plan, place, None)

        yield self.line("out of inodes", inodes, 2 * few, ["ext4"], make=("-N", "16"))
        yield self.line(
            "out of inodes in memory", inodes, 2 * few, ["tmpfs"], options="nr_inodes=16"
        )
        yield self.line("out of file descriptors", descriptors, 4 * few, [HERE])


def full_at_once(place: Path) -> bool | None:
    """Whether nothing more can be written where a disk is full; xfs gives a file more than it asks.

    What a file has been given beyond its end it has when the disk is full, too.
    """
    return None if storage.mount_of(place)[0] == "xfs" else True


def be_anybody() -> None:
    """Give up root's rights: root may do what others may not."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(ANYBODY)
        os.setuid(ANYBODY)


def limit_files(size: int) -> None:
    """No file may become longer than so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def when_handed_out(number: int, place: Path) -> None:
    """Another program fills the disk after the n-th window was handed out."""
    hand_out, count = writer.JournalWriter._next_window, 0

    def next_window(self: writer.JournalWriter, pen: storage.Pen) -> tuple[int, int]:
        nonlocal count
        found, count = hand_out(self, pen), count + 1
        if count == number:
            fill(place)
        return found

    writer.JournalWriter._next_window = next_window  # type: ignore[method-assign]


def when_reserved(number: int, place: Path) -> None:
    """Another program fills the disk after the n-th window was reserved, before it is used."""
    reserve, count = storage.reserve, 0

    def reserved(fd: int, offset: int, length: int) -> None:
        nonlocal count
        reserve(fd, offset, length)
        count += 1
        if count == number:
            fill(place)

    storage.reserve = reserved
