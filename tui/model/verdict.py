"""The one thing to know about a run, in plain words and with its figure."""

from __future__ import annotations

from dataclasses import dataclass, field

from firetrace.tui.format import duration
from firetrace.tui.model.device import DeviceReport
from firetrace.tui.model.digest import FETCHING
from firetrace.tui.model.distribution import Stats
from firetrace.tui.model.groups import BETWEEN_STEPS
from firetrace.tui.model.idle import GET_BATCH, HANDLERS
from firetrace.tui.model.pipeline import DataReport
from firetrace.tui.model.progress import Progress
from firetrace.tui.model.tree import Span, Tree

#: A part of the run that is smaller than this is no verdict.
CLEAR = 1 / 3
#: A device that is idle for a smaller part of a step is what bounds it.
IDLE = 0.1
#: Steps that got slower by less than this are none either.
DRIFT = 0.15
#: A span is called hanging when it is open for this long, and this many times the slowest seen.
HANG_NS, HANG_TIMES = 10 * 10**9, 5


@dataclass(frozen=True)
class Verdict:
    """What bounds the run, what changed, what could be had."""

    text: str  #: ``DATA-BOUND: waiting for data is 61% of the run; ...``
    drift: str = ""  #: ``steps lately 34% slower than the run's, forward most``
    what_if: str = ""  #: ``without the wait 12ms a step, ETA 43m``


@dataclass
class Parts:
    """Where the main engine's time went. Times in ns."""

    run_ns: int
    step: Stats | None
    phases: dict[str, Stats]
    handlers: dict[str, Stats]
    wait_ns: int = 0
    wait_in_steps_ns: int = 0  #: of it what lies in steps that have ended, not before the first
    events_ns: int = 0
    events_in_steps_ns: int = 0
    nested: dict[str, int] = field(default_factory=dict)  #: other engines that handlers ran
    own: dict[str, int] = field(default_factory=dict)  #: phases of the process function
    scale: float = 1.0  #: one in so many steps was recorded; sums of all are so many times theirs

    @property
    def compute_ns(self) -> int:
        """The process function: steps less waiting and less handlers."""
        whole = (self.step.total_ns if self.step else 0) - self.wait_in_steps_ns
        return max(0, round(whole * self.scale) - self.events_in_steps_ns)


def parts(
    tree: Tree, main: int, run_ns: int, step: Stats | None, phases: dict[str, Stats],
    handlers: dict[str, Stats],
) -> Parts:  # fmt: skip
    """Where the time went, of spans that have ended and of those that are open now."""
    found = Parts(run_ns, step, phases, handlers, wait_in_steps_ns=tree.digest.waited_ns(main))
    found.scale = tree.digest.scale(main)
    groups = tree.digest.groups
    for group in groups.all:
        name, took = group.name, round(group.whole_ns(found.scale))
        if group.lane == main and name.text in FETCHING and name.kind in ("phase", "loader"):
            found.wait_ns += took
        elif group.lane == main and name.kind == "event":
            found.events_ns += took
            found.events_in_steps_ns += 0 if name.text in BETWEEN_STEPS else took
        elif group.lane == main and name.kind == "phase":
            found.own[name.text] = took
    for lane, runs in tree.digest.runs.items():
        if lane != main:
            engine = tree.meta.lane(lane).engine
            ended = runs.nested_ns()
            found.nested[engine] = found.nested.get(engine, 0) + ended
    for span in open_spans(tree):
        took = span.took_ns(tree.now_ns)
        if span.lane == main and span.text in FETCHING:
            found.wait_ns += took
        elif span.lane == main and span.kind == "event":
            found.events_ns += took
            found.events_in_steps_ns += 0 if span.text in BETWEEN_STEPS else took
        elif span.lane != main and span.kind == "run" and span.parent:
            engine = tree.meta.lane(span.lane).engine
            found.nested[engine] = found.nested.get(engine, 0) + took
    found.nested = {engine: ns for engine, ns in found.nested.items() if ns}
    return found


#: Open spans that are looked at: threads have few, a journal of nothing else has millions.
MOST_OPEN = 1_000


def open_spans(tree: Tree) -> list[Span]:
    """What is open, outermost first; not all of it where that makes no sense any more."""
    spans = (tree.span(number) for number in tree.open.numbers[:MOST_OPEN].tolist())
    return [span for span in spans if span is not None and not span.end_ns]


def verdict(
    found: Parts, progress: Progress, data: DataReport | None = None,
    device: DeviceReport | None = None,
) -> Verdict:  # fmt: skip
    """The largest part of the run, what causes it, and what to expect without it.

    Of the steps a device knows better than the host, which may only have waited for it there.
    """
    step, run_ns = found.step, found.run_ns
    if step is None or not run_ns:
        return Verdict("no step has been completed yet")
    choices = _choices(found)
    word = max(choices, key=lambda word: choices[word][0])
    part, figure = choices[word]
    clear = part >= CLEAR * run_ns
    idles, what_if, drift = "", _what_if(found, progress), _drift(step, found.phases)
    if device is not None and not (clear and _elsewhere(found, word)):
        said, idles = _by_device(found, device)
        if said and device.idle_in.get(GET_BATCH, 0.0) < IDLE:
            what_if = ""  # the wait is no time that could be won
        if said and said not in choices:
            return Verdict(f"{said}: {idles}", drift, what_if)
        if said:
            word, figure, clear, idles = said, choices[said][1], True, f"; {idles}"
    of_step = ""
    if step.total_ns:
        of_step = f"; get_batch is {found.wait_in_steps_ns / step.total_ns:.0%} of a step"
    if word == "DATA-BOUND" and data is not None:
        of_step += _cause(data)
    if not clear:
        word, figure = "BALANCED", f"nothing dominates; {figure}"
    return Verdict(f"{word}: {figure}{of_step}{idles}", drift, what_if)


def _choices(found: Parts) -> dict[str, tuple[int, str]]:
    """What may bound the run, by the host's times: for how long, and in words."""
    run_ns, nested = found.run_ns, found.nested
    wait, compute = found.wait_ns, found.compute_ns
    choices = {
        "DATA-BOUND": (wait, f"waiting for data is {_share(wait, run_ns)} of the run"),
        "COMPUTE-BOUND": (compute, f"the process function is {_share(compute, run_ns)} of the run"),
    }
    if found.own:
        name = max(found.own, key=lambda name: found.own[name])
        figure = f"{choices['COMPUTE-BOUND'][1]}, {name} alone {_share(found.own[name], run_ns)}"
        choices["COMPUTE-BOUND"] = compute, figure
    if nested:
        engine = max(nested, key=lambda engine: nested[engine])
        part = nested[engine]
        choices["VALIDATION-BOUND"] = part, f"{engine} is {_share(part, run_ns)} of the run"
    rest = found.events_ns - sum(nested.values())  # handlers, less the engines that they ran
    if found.handlers and rest > 0:
        slow = {n: s for n, s in found.handlers.items() if s.share * run_ns <= rest * 1.05}
        name = max(slow, key=lambda name: slow[name].share, default="")
        if name:
            figure = (
                f"handlers are {_share(rest, run_ns)} of the run, {name} {slow[name].share:.0%}"
            )
            choices["HANDLER-BOUND"] = rest, figure
    return choices


def _elsewhere(found: Parts, word: str) -> bool:
    """Whether what bounds the run lies outside of its steps, of which a device could tell."""
    in_steps = (found.step.total_ns if found.step else 0) * found.scale
    outside = {
        "DATA-BOUND": found.wait_ns - found.wait_in_steps_ns * found.scale,
        "HANDLER-BOUND": found.events_ns - found.events_in_steps_ns - sum(found.nested.values()),
    }
    return word == "VALIDATION-BOUND" or outside.get(word, 0) > in_steps


def _by_device(found: Parts, device: DeviceReport) -> tuple[str, str]:
    """What bounds the steps, by what the device did in them, and its figure; empty: unknown."""
    idle, step = device.idle, found.step
    if not device.step_ns or step is None or device.unknown > max(idle, IDLE):
        return "", ""
    if idle + device.unknown < IDLE or not device.idle_in:
        name = max(device.phases, key=lambda name: device.phases[name].share, default="")
        most = f", {name} {device.phases[name].share:.0%} of it" if name else ""
        busy = 1 - idle - device.unknown
        return "DEVICE-BOUND", f"the {device.kind} is busy {busy:.0%} of a step{most}"
    idles = f"the {device.kind} idles up to {idle:.0%} of a step"
    place, part = max(device.idle_in.items(), key=lambda pair: pair[1])
    if place == GET_BATCH:
        return "DATA-BOUND", idles
    if place == HANDLERS:
        handlers = found.events_in_steps_ns / (step.count * found.scale)
        if found.handlers and 2 * handlers > part * device.step_ns:
            return "HANDLER-BOUND", idles
        place = "what lies between the phases"
    return "LAUNCH-BOUND", f"{idles}, most in {place} ({part:.0%})"


def _cause(data: DataReport) -> str:
    """What takes the time of those who make the batches, and how many would be enough."""
    text = ""
    if data.slowest is not None:
        name, part = data.slowest
        whose = "the workers' time" if data.workers else "making them"
        text = f"; {name} is {part:.0%} of {whose}"
    return f"{text}; {data.advice}" if data.advice else text


def _share(part: float, whole: float) -> str:
    """In percent; of a damaged journal never more than all."""
    return f"{min(1.0, part / whole):.0%}"


def _drift(step: Stats, phases: dict[str, Stats]) -> str:
    if step.drift is None or abs(step.drift) < DRIFT:
        return ""
    own = {n: s for n, s in phases.items() if ": " not in n and s.drift is not None}
    name = max(own, key=lambda n: own[n].p50_ns * abs(own[n].drift or 0), default="")
    way = "slower" if step.drift > 0 else "faster"
    most = f", {name} {own[name].drift:+.0%}" if name else ""
    return f"steps lately {abs(step.drift):.0%} {way} than the run's{most}"


def _what_if(found: Parts, progress: Progress) -> str:
    step = found.step
    assert step is not None
    wait = found.wait_in_steps_ns / step.count
    if wait * 10 < step.total_ns / step.count:  # little to win
        return ""
    text = f"without the wait {duration(round(step.total_ns / step.count - wait))} a step"
    if progress.eta_without_wait_ns is not None:
        text += f", ETA {duration(round(progress.eta_without_wait_ns, -9))}"
    return text


@dataclass(frozen=True)
class OpenSpan:
    """A span without an end: running now, or cut off when the process died. Times in ns."""

    number: int  #: of its row
    kind: str
    name: str
    engine: str
    epoch: int
    iteration: int
    start_ns: int
    open_ns: int
    guessed: bool  #: its name is what followed here before; it is not known yet
    usual_ns: int | None  #: p99 of its like
    longest_ns: int | None  #: the longest of its like


def hanging(spans: tuple[OpenSpan, ...], now_ns: int) -> str:
    """What to say of a span that is open for far longer than any like it; empty if none is.

    Of several the innermost that is known to be quicker tells where.
    """
    for span in reversed(spans):
        took = now_ns - span.start_ns
        if span.longest_ns is None or span.kind in ("run", "epoch"):
            continue
        if took > max(HANG_NS, HANG_TIMES * span.longest_ns):
            place = f"in {span.name} of {span.engine}'s iteration {span.iteration}"
            return f"hangs for {duration(took)} {place}; p99 {duration(span.usual_ns or 0)}"
    return ""
