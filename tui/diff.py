"""Two runs compared: which step, phase or handler got slower. Pure; the statistics are `noise`'s.

Each journal is read twice, block by block: once to count, once to reduce the durations of every
name to a few batches, so that the length of a run hardly shows in the memory. Times are ns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from firetrace.tracer.journal import MAX_LANES, MAX_NAMES, Flag
from firetrace.tracer.stream import blocks
from firetrace.tracer.table import UNKNOWN, Ints, Table
from firetrace.tui.format import duration, printable
from firetrace.tui.noise import FEWEST, Batches, Change, corrected, mean_change, typical_change

COMPARED = ("step", "phase", "loader", "pair", "span", "handler")
#: Spans that did not come to their own end, or were not seen from their beginning.
UNFIT = int(Flag.CUT | Flag.SKIPPED | Flag.LATE)
FALSE_CLAIMS = 0.05  #: the chance of any claim where nothing changed
#: What is smaller is no news, however certain: runs of one program on one shared machine differed
#: by 2% to 7% in everything.
LEAST_PART, LEAST_NS = 0.05, 2_000
#: What explains less of the step's change is not named.
LEAST_CAUSE = 0.2
#: From here on the number of spans a step has changed, and more than that the runs ended elsewhere.
OFTEN_PART, OFTEN_SPANS = 0.1, 2
NOTHING = "no difference that noise could not make"
FOREVER = 2**63 - 1


class Key(NamedTuple):
    """What is compared. An engine that ran in several threads is one."""

    engine: str
    kind: str
    name: str


@dataclass(frozen=True)
class Part:
    """The spans of one name in one run that came to their own end."""

    count: int
    mean_ns: float  #: without the warm-up, as are the others
    typical_ns: float  #: the mean of the medians of batches of spans
    per_step_ns: float  #: all of them, divided by the number of the main engine's steps
    in_a_step: float  #: how many a step of their own engine has; 0: most lie between steps


@dataclass(frozen=True)
class Difference:
    """One name in both runs."""

    engine: str
    kind: str
    name: str
    verdict: str  #: slower, faster, more often, less often (in a step), unclear, too few
    before: Part
    after: Part
    mean: Change | None  #: None: too few. Chances are corrected for all that was tested
    typical: Change | None

    @property
    def clear(self) -> bool:
        """Whether it is claimed."""
        return self.verdict not in ("unclear", "too few")

    @property
    def per_step_ns(self) -> float:
        """By how much its time a step grew."""
        return self.after.per_step_ns - self.before.per_step_ns

    @property
    def often(self) -> float:
        """How many times as often a step has it; 1: as often, or it is not in steps."""
        both = self.before.in_a_step and self.after.in_a_step
        return self.after.in_a_step / self.before.in_a_step if both else 1.0


@dataclass(frozen=True)
class Only:
    """A name that only one of the runs has."""

    engine: str
    kind: str
    name: str
    part: Part

    @property
    def per_step_ns(self) -> float:
        """Its time a step."""
        return self.part.per_step_ns


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    run: str
    path: str
    engine: str  #: the main engine: the one that began first
    steps: int  #: of the main engine
    steps_of: dict[str, int]  #: by engine
    notes: tuple[str, ...]  #: what its numbers do not show


@dataclass(frozen=True)
class Diff:
    """Everything that ``firetrace diff`` says."""

    before: Side
    after: Side
    verdict: str
    names: tuple[Difference, ...]  #: what changed first, steps before their parts
    new: tuple[Only, ...]
    gone: tuple[Only, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return asdict(self)

    def label(self, part: Difference | Only) -> str:
        """A name; of another engine than the main one, with the engine's."""
        main = part.engine == self.before.engine == self.after.engine
        return part.name if main else f"{part.engine}: {part.name}"


def diff(before: Path, after: Path) -> Diff:
    """Compare two journals, given their rows files.

    Raises:
        JournalError: one of them cannot be read.
    """
    (old_side, old), (new_side, new) = _read(before), _read(after)
    if old_side.engine != new_side.engine:
        note = (
            f"the main engine is {new_side.engine}, in the other run {old_side.engine}: "
            "a step is not the same in both"
        )
        new_side = replace(new_side, notes=(note, *new_side.notes))
    shared = [key for key in old if key in new]
    tested = [key for key in shared if min(old[key].batches.kept, new[key].batches.kept) >= FEWEST]
    changes = [
        change(old[key].batches, new[key].batches)
        for key in tested
        for change in (mean_change, typical_change)
    ]
    chances = corrected([change.p for change in changes])
    changes = [replace(change, p=p) for change, p in zip(changes, chances, strict=True)]
    by_key = dict(zip(tested, zip(changes[::2], changes[1::2], strict=True), strict=True))
    parts = {
        key: (old[key].part(key.engine, old_side), new[key].part(key.engine, new_side))
        for key in shared
    }
    names = [
        _difference(key, *parts[key], by_key.get(key), _fewest_steps(key, old_side, new_side))
        for key in shared
    ]
    names.sort(
        key=lambda each: (
            not each.clear,
            each.kind != "step",
            -abs(each.per_step_ns) if each.clear else -each.after.per_step_ns,
        )
    )
    result = Diff(
        old_side, new_side, "", tuple(names),
        _only(new, old, new_side), _only(old, new, old_side),
    )  # fmt: skip
    return replace(result, verdict=_verdict(result))


def _fewest_steps(key: Key, before: Side, after: Side) -> int:
    """How many steps of its engine the run has that has fewer."""
    return min(side.steps_of.get(key.engine, 0) for side in (before, after))


def _difference(
    key: Key, before: Part, after: Part, changes: tuple[Change, Change] | None, steps: int
) -> Difference:
    mean, typical = changes or (None, None)
    found = Difference(*key, "unclear" if changes else "too few", before, after, mean, typical)
    off = abs(after.count * (1 - 1 / found.often))
    # Loaders come once an epoch: how many a step has says how long the epochs are.
    known = changes is not None and steps >= FEWEST and key.kind != "loader"
    large = off > max(OFTEN_SPANS, OFTEN_PART * after.count)
    if known and large and abs(found.per_step_ns) >= LEAST_NS:
        found = replace(found, verdict="more often" if found.often > 1 else "less often")
    for change, grown_ns in (
        (typical, after.typical_ns - before.typical_ns),
        (mean, after.mean_ns - before.mean_ns),  # has the last word: means add up
    ):
        if change is not None and _claimed(change, grown_ns):
            found = replace(found, verdict="slower" if grown_ns > 0 else "faster")
    return found


def _claimed(change: Change, grown_ns: float) -> bool:
    """Whether noise hardly made it and it is worth a word."""
    large = abs(change.ratio - 1) >= LEAST_PART and abs(grown_ns) >= LEAST_NS
    return large and change.p < FALSE_CLAIMS


def _only(these: dict[Key, _Spans], others: dict[Key, _Spans], side: Side) -> tuple[Only, ...]:
    found = [
        Only(*key, spans.part(key.engine, side))
        for key, spans in these.items()
        if key not in others
    ]
    return tuple(sorted(found, key=lambda each: -each.per_step_ns))


def _verdict(result: Diff) -> str:
    """The one thing to know, in plain words."""
    for side, which in ((result.before, "first"), (result.after, "second")):
        if not side.steps:
            return f"the {which} run has no completed step: nothing to compare"
    if not result.names:
        return "the two runs have no name in common: nothing to compare"
    changed = [each for each in result.names if each.clear]
    main = (result.before.engine, result.after.engine)
    step = next(
        (each for each in result.names if each.kind == "step" and {*main} == {each.engine}), None
    )
    if not changed:
        few = step is not None and step.verdict == "too few"
        return "too few steps to tell a difference from noise" if few else NOTHING
    if step is None or not step.clear:
        largest, more = changed[0], len(changed) - 1
        also = f"; {more} more changed" if more else ""
        said = f"{_sentence(result, largest)}{also}"
        if step is None:
            return f"{said}; the steps are of different engines"
        few = step.verdict == "too few"
        return f"{said}; " + (
            "too few steps to compare" if few else f"of the step itself {NOTHING}"
        )
    return f"{_sentence(result, step)}; {_cause(result, step)}"


def _cause(result: Diff, step: Difference) -> str:
    """What most of a change of the step comes from."""
    inside: list[tuple[float, str]] = []
    for each in result.names:
        if each.clear and each.engine == step.engine and each.after.in_a_step:
            how = f", {each.often:.2g} times as often," if each.verdict.endswith("often") else ""
            inside.append((each.per_step_ns, printable(each.name) + how))
    for which, sign, names in (("new ", 1, result.new), ("gone ", -1, result.gone)):
        for only in names:
            if only.engine == step.engine and only.part.in_a_step:
                inside.append((sign * only.per_step_ns, which + printable(only.name)))
    part, cause = max(((ns / step.per_step_ns, name) for ns, name in inside), default=(0.0, ""))
    if part < LEAST_CAUSE:
        return "no part that changed for certain explains it"
    return f"{cause} explains {min(1.0, part):.0%} of it"


def _sentence(result: Diff, each: Difference) -> str:
    name = printable(result.label(each))
    if each.mean is None or each.typical is None or each.verdict.endswith("often"):
        return f"{name} is in a step {each.often:.2g} times as often"
    before, after, change, got = each.before.mean_ns, each.after.mean_ns, each.mean, "got"
    if not _claimed(change, after - before):
        before, after, change = each.before.typical_ns, each.after.typical_ns, each.typical
        got = "typically got"
    times = f"{duration(round(before))} -> {duration(round(after))}"
    p = "p < 0.001" if change.p < 0.001 else f"p = {change.p:.3f}"
    if change.ratio >= 3:
        return f"{name} {got} {change.ratio:.3g} times as slow ({times}, {p})"
    return f"{name} {got} {abs(change.ratio - 1):.0%} {each.verdict} ({times}, {p})"


@dataclass
class _Spans:
    """The spans of one name in one run, while they are read."""

    batches: Batches
    in_steps: int = 0

    def part(self, engine: str, side: Side) -> Part:
        batches, own_steps = self.batches, side.steps_of.get(engine, 0)
        per_step_ns = batches.mean * batches.count / max(1, side.steps)
        inside = own_steps and 2 * self.in_steps > batches.count
        in_a_step = batches.count / own_steps if inside else 0.0
        return Part(batches.count, batches.mean, batches.typical, per_step_ns, in_a_step)


def _read(path: Path) -> tuple[Side, dict[Key, _Spans]]:
    counts: Counter[Key] = Counter()
    main, damaged = "", 0
    for block in blocks(path):
        if not main:
            runs = block.of_kind("run")
            roots = runs[block.rows["parent"][runs] == 0]
            main = block.lane(int(roots[0])).engine if len(roots) else ""
        damaged += block.damaged
        for key, positions in _ended(block):
            counts[key] += len(positions)
    spans = {key: _Spans(Batches(count)) for key, count in counts.items()}
    steps_end: dict[int, int] = {}
    for block in blocks(path):
        inside = _in_steps(block, steps_end)
        for key, positions in _ended(block):
            if key in spans:  # else it came meanwhile
                rows = block.rows[positions]
                spans[key].batches.add(rows["end"] - rows["start"])
                spans[key].in_steps += int(np.count_nonzero(inside[positions]))
    steps_of = {key.engine: count for key, count in counts.items() if key.kind == "step"}
    run = str(block.meta.resource.get("ignite.run.id") or path.parent.name)
    return Side(
        run, str(path), main, steps_of.get(main, 0), steps_of, _notes(block, damaged)
    ), spans


def _ended(block: Table) -> Iterator[tuple[Key, Ints]]:
    """Positions of the spans to compare, by what they are, each in the order of the file."""
    rows = block.rows
    texts = {(UNKNOWN.kind, UNKNOWN.text): 0}
    text_of = np.zeros(MAX_NAMES, np.int64)
    for id, name in block.names.items():
        known = name.kind in COMPARED
        text_of[id] = texts.setdefault((name.kind, name.text), len(texts)) if known else -1
    engines: dict[str, int] = {}
    engine_of = np.zeros(MAX_LANES, np.int64)
    for lane in np.unique(rows["lane"]).tolist():
        engine_of[lane] = engines.setdefault(block.lane_of(lane).engine, len(engines))
    text = text_of[rows["name"]]
    fit = np.flatnonzero((text >= 0) & (rows["end"] != 0) & (rows["flags"] & UNFIT == 0))
    if not len(fit):
        return
    what = text[fit] * len(engines) + engine_of[rows["lane"][fit]]
    order = np.argsort(what.astype(np.min_scalar_type(int(what.max()))), kind="stable")
    what, fit = what[order], fit[order]
    names, lanes = [*texts], [*engines]
    for part in np.split(np.arange(len(fit)), np.flatnonzero(np.diff(what)) + 1):
        text_index, engine = divmod(int(what[part[0]]), len(engines))
        yield Key(lanes[engine], *names[text_index]), fit[part]


def _in_steps(block: Table, steps_end: dict[int, int]) -> npt.NDArray[np.bool_]:
    """Which spans began in a step of their own engine.

    Args:
        block: the next one of the journal.
        steps_end: when the last step ended, by lane; brought up to date.
    """
    rows = block.rows
    inside = np.zeros(len(rows), bool)
    is_step = np.isin(rows["name"], block.ids_of("step"))
    for lane in np.unique(rows["lane"]).tolist():
        mine = np.flatnonzero(rows["lane"] == lane)
        step = is_step[mine]
        ends = rows["end"][mine[step]]
        ends = np.concatenate([[steps_end.get(lane, 0)], np.where(ends == 0, FOREVER, ends)])
        inside[mine] = (rows["start"][mine] < ends[np.cumsum(step)]) & ~step
        steps_end[lane] = int(ends[-1])
    return inside


def _notes(block: Table, damaged: int) -> tuple[str, ...]:
    """From the last block of a journal."""
    meta, notes = block.meta, []
    if block.alive:
        notes.append("still running: compared is what has ended so far")
    if meta.thinned:
        notes.append(
            f"only every {meta.sparsest:,}th step was recorded for a time: "
            "what lies between steps weighs too much in the times a step"
        )
    if meta.stopped:
        notes.append(f"recording stopped before the training did: {meta.stopped}")
    if damaged or meta.damaged:
        notes.append(f"{damaged:,} damaged rows and {meta.damaged:,} damaged lines left out")
    return tuple(notes)
