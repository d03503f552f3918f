"""What made a step slow: its parts, each compared with what is usual for it."""

from __future__ import annotations

from dataclasses import dataclass

from firetrace.tui.model.tree import Tree

#: What a step is made of; what is inside of one of these is that one's.
PARTS = ("phase", "handler", "loader", "pair", "span")
MOST_SPANS = 2_000
OTHER = "other"  #: what of a step lies in none of its parts
WORTH = 0.03  #: of the step's time: less than this is not worth a word


@dataclass(frozen=True)
class SlowStep:
    """A step that took long, and what took it. Times in ns."""

    number: int  #: of its row
    epoch: int
    iteration: int
    start_ns: int
    duration_ns: int
    largest: tuple[tuple[str, int], ...]  #: its biggest parts: name, how long
    because: tuple[tuple[str, int], ...]  #: what took longer than usual: name, how much longer


def slow_steps(tree: Tree, main: int) -> tuple[SlowStep, ...]:
    """The slowest steps of a lane that have ended, the slowest first."""
    found = tree.digest.slowest.get(main)
    if found is None or not len(found[1]):
        return ()
    usual = _usual(tree, main)
    steps = []
    for row, number in zip(*found, strict=True):
        parts = parts_of(tree, int(number))
        start = int(row["start"])
        took = int(row["end"]) - start
        largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
        parts[OTHER] = took - sum(parts.values())
        more = [(name, ns - usual.get(name, 0)) for name, ns in parts.items()]
        more = [part for part in more if part[1] > took * WORTH]
        more = sorted(more, key=lambda part: -part[1])[:3]
        steps.append(
            SlowStep(
                int(number), int(row["epoch"]), int(row["iteration"]), start,
                took, tuple(largest), tuple(more),
            )
        )  # fmt: skip
    return tuple(steps)


def parts_of(tree: Tree, step: int) -> dict[str, int]:
    """What a step's time went to: names and ns."""
    known = tree.parts.get(step)
    if known is not None:
        return dict(known)
    parts: dict[str, int] = {}
    stack, seen = [step], 0
    while stack and seen < MOST_SPANS:
        for number in tree.children(stack.pop()).tolist():
            seen += 1
            span = tree.span(number)
            if span is None:
                continue
            if span.kind in PARTS:
                parts[span.text] = parts.get(span.text, 0) + span.took_ns(tree.now_ns)
            else:
                stack.append(number)
    own = tree.span(step)
    if own is not None and own.end_ns:
        tree.parts[step] = dict(parts)
    return parts


def _usual(tree: Tree, main: int) -> dict[str, int]:
    """What the parts of a median step take; nothing for what most steps do not have."""
    groups = tree.digest.groups
    steps = groups.total_count("step", main)
    usual: dict[str, int] = {}
    for group in groups.all:
        if group.lane == main and group.name.kind in PARTS and 2 * group.times.count >= steps:
            (median,) = group.times.percentiles(50)
            times = round(group.times.count / max(1, steps))
            usual[group.name.text] = usual.get(group.name.text, 0) + median * max(1, times)
    counted = [each.times for each in groups.of("step", main) if each.times.count]
    whole = max((times.percentiles(50)[0] for times in counted), default=0)
    usual[OTHER] = max(0, whole - sum(usual.values()))
    return usual
