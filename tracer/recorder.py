"""Records one engine in one thread: its whole runs, its loader, what comes between its events.

A recorder knows the time, its pen and which rows are open; it does not know ignite. Anything
raised here is firetrace's own failure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from firetrace.tracer.events import Events, plan_of
from firetrace.tracer.journal import Flag
from firetrace.tracer.moves import ENDINGS, GET_BATCH, LOADER, RUN, STEP, Frame, Node
from firetrace.tracer.rows import ThreadTrack

# Nothing is imported when an engine runs: a fork that comes meanwhile, from another thread, has a
# child that waits for ever where it needs the same module.
from firetrace.tracer.traces import chosen_split
from firetrace.tracer.writer import JournalWriter

CUT, ERROR, GUESS, VOID = int(Flag.CUT), int(Flag.ERROR), int(Flag.GUESS), int(Flag.VOID)


class Paused(NamedTuple):
    """Where a run was when it was interrupted."""

    row: int  #: of its run
    frames: tuple[Frame, ...]  #: what was open
    boundary: str
    place: int
    muted: bool


class Recorder(Events):
    """Writes the spans of one engine in one thread."""

    __slots__ = ("awake", "is_over", "loading", "outer")

    def __init__(self, writer: JournalWriter, track: ThreadTrack, engine: str, key: int) -> None:
        super().__init__(writer, track, engine, key)
        self.awake = 0  # ``ident`` while this engine is the one that runs innermost
        self.outer: Recorder | None = None  # the engine inside whose run this one runs
        self.loading = self.node  # where the engine is while ``iter(dataloader)`` runs
        self.is_over: Callable[[], bool] | None = None  # of a run whose end will not be seen

    def end(self) -> None:
        """Write nothing from now on."""
        self.ident = self.awake = 0

    # Beside other engines, and the user's own spans

    def assume(self) -> None:
        """Something else is recorded now, inside what may be a phase: open it, without its name.

        If no event ends it, it was none, and what was inside belongs to what is around it.
        """
        if not self.muted and self.ident and self.rules.may_be_in_phase(self.node):
            parent, label = self.stack[-1], self.unknown | GUESS << 24
            self.stack.append(self.pen.write(parent, label, self.place, 0, self.boundary))
            if self.marks is not None:
                self.marks.assumed(self.boundary, self.stack[-1])
            self.node = self.node.twin(self.unknown)

    def step_aside(self) -> tuple[Node, bool] | None:
        """An event comes while this engine does not run innermost: it opens and closes nothing.

        Return what ``step_back`` needs.
        """
        innermost = self.track.innermost
        if innermost is self:
            return None
        before = self.node, self.muted
        self.node, self.muted = self.rules.outside, False
        if innermost is not None:
            innermost.assume()
            self.muted = innermost.muted
        return before

    def step_back(self, before: tuple[Node, bool] | None) -> None:
        """The event is over."""
        if before is not None:
            self.node, self.muted = before
            if self.track.innermost is not None and self.ident:
                self.track.innermost.boundary = self.now()

    def enter_span(self, label: int) -> tuple[Node, int, int] | None:
        """Open a span of the user's. Return what ``exit_span`` needs; None: it is not recorded."""
        self.assume()
        before = self.node
        inside = self.rules.inside_span(before)
        if inside is None or self.muted:
            return None
        now = self.now()
        row = self.push(label, now)
        self.node, self.boundary = inside, now
        return before, row, len(self.stack)

    def exit_span(self, entered: tuple[Node, int, int], error: BaseException | None) -> None:
        """Close it, unless what encloses it has ended before."""
        before, row, height = entered
        if not self.ident or len(self.stack) < height or self.stack[height - 1] != row:
            return
        now = self.now()
        if self.node.guess is not None and self.node.frames == self.rules.frames_inside(before):
            if self.node.guess == self.unknown:
                self.node.base.barren = True
            self.node.learn(None)
            self.pop(now, GUESS | VOID)
        self.unwind(height, now)
        if error is not None:
            self.failed(error)
        self.pop(now, CUT | ERROR if error is not None else 0)
        self.node, self.boundary = before, now

    # A whole run

    def begin_loader(self) -> int:
        """``iter(dataloader)`` begins. What was taken for fetching until now was not.

        Return the stack's height, 0 if the loader is not recorded: no run is known to be open.
        """
        if not self.node.frames:
            return 0
        now = self.now()
        if self.node.guess is not None:
            self.pop(now, GUESS | VOID)
        self.push(self.label(*LOADER), now)
        # What the loader fires or runs meanwhile is as inside a handler.
        self.loading, self.node = self.node.base, self.handler_root
        return len(self.stack)

    def end_loader(self, height: int) -> None:
        """``iter(dataloader)`` has returned; in a step, the fetch of its first batch begins."""
        self.boundary = now = self.now()
        self.unwind(height, now)
        self.pop(now)
        self.node = self.loading
        self.guess(now)

    def loader_failed(self, height: int, error: BaseException) -> None:
        """``iter(dataloader)`` has raised: the loader's span ends here."""
        self.failed(error)
        self.unwind(height - 1, self.now(), "exception", CUT | ERROR)
        self.node = self.loading

    def begin_run(self, paused: Paused | None, engine: Any) -> None:
        """``engine.run`` was called: rows of this engine lie above what is open now.

        ``paused``: it goes on where it was interrupted.
        """
        self.track.leave_what_is_over()
        if not self.writer.split:
            self._choose_split(engine)
        outer = self.outer = self.track.innermost
        if outer is not None:
            outer.assume()
            outer.awake = 0
        self.track.innermost, self.awake = self, self.ident
        self.base = len(self.stack)
        self.node, self.muted, self.resumes = self.rules.root, False, 0
        if paused is not None:
            self._go_on(paused, engine)

    def _choose_split(self, engine: Any) -> None:
        self.writer.choose_split(chosen_split(*plan_of(engine)))

    def _go_on(self, paused: Paused, engine: Any) -> None:
        self.resumes, self.place = paused.row, paused.place
        if not paused.frames:
            return  # what is open shows when the next event comes
        now = self.now()
        for frame in paused.frames:
            self.muted = (paused.muted and frame == STEP) or self.muted
            self._opened(self.push(self.label(*frame), now, Flag.RESUMED))
        self._plan(engine)
        self.node = self.rules.node(paused.frames, paused.boundary)
        if paused.boundary == "GET_BATCH_STARTED":  # now it is fetched
            self.push(self.label(*GET_BATCH), now)
            self.node = self.rules.node((*paused.frames, GET_BATCH))
        self.boundary = now
        self.guess(now)

    def restart(self) -> None:
        """The engine is run again inside its own run, which goes on after it."""
        self.unwind(self.base, self.now(), "started again")
        self.node, self.muted = self.rules.root, False

    def cut_short(self, reason: str) -> None:
        """Nothing more will be seen of this run: what is open ends here."""
        self._end_rows(self.now(), reason, None)
        self.node = self.rules.outside

    def _end_rows(self, now: int, reason: str, error: BaseException | None) -> None:
        flags = CUT if error is None else CUT | ERROR
        if self.node.guess is not None and len(self.stack) > self.base:
            self._cut(now, reason, GUESS | flags)
        self.unwind(self.base, now, reason, flags)

    def end_run(self, error: BaseException | None = None) -> Paused | None:
        """``engine.run`` has returned or raised: nothing of it stays open.

        Return where it was, if it was interrupted.
        """
        node = self.node
        # What is still open has not COMPLETED; the last event that cut something says why.
        reason = "exception" if error else ENDINGS.get(node.boundary, "interrupt")
        paused = None
        if RUN in node.frames and reason == "interrupt":
            deepest = next(
                (i for i, f in enumerate(node.frames) if f.kind in ("pair", "span", "guess")), None
            )
            paused = Paused(
                self.run_row, node.frames[:deepest], node.boundary, self.place, self.muted
            )
        if error is not None:
            self.failed(error)
        now = self.now()
        self._end_rows(now, reason, error)
        self.track.innermost, self.awake = self.outer, 0
        if self.outer is not None:
            self.outer.awake, self.outer.boundary = self.outer.ident, now
            self.outer = None
        self.track.noted = 0
        self.muted = False
        self.node = self.rules.outside
        return paused
