"""What the views must say of a journal, computed in the plainest way from its whole table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from firetrace.tracer.journal import Flag
from firetrace.tracer.table import Table
from firetrace.tui.model.tree import Tree

Key = tuple[int, int]  #: lane, name id


def children(table: Table) -> dict[int, list[int]]:
    """The numbers of every span's children, by its number; 0: the roots."""
    found: dict[int, list[int]] = defaultdict(list)
    pairs = zip(table.rows["parent"].tolist(), table.numbers.tolist(), strict=True)
    for parent, number in pairs:
        found[parent].append(number)
    return found


def positions(table: Table) -> dict[int, int]:
    """Where each number stands in the table."""
    return {number: at for at, number in enumerate(table.numbers.tolist())}


def durations(table: Table, without: int = 0) -> dict[Key, list[int]]:
    """Of the spans that have ended and have none of these flags, by lane and name."""
    found: dict[Key, list[int]] = defaultdict(list)
    for row in table.rows[table.rows["end"] != 0]:
        if not row["flags"] & without:
            key = int(row["lane"]), int(row["name"])
            found[key].append(int(row["end"]) - int(row["start"]))
    return found


def of_kind(table: Table, kind: str, ended: bool = True) -> list[int]:
    """Positions of the spans of a kind."""
    return [
        at for at in range(len(table))
        if table.name(at).kind == kind and (table.rows["end"][at] != 0 or not ended)
    ]  # fmt: skip


def origins_of_errors(table: Table) -> list[int]:
    """Spans that ended with an error of which no child did."""
    rows = table.rows
    wrong = (rows["flags"] & Flag.ERROR != 0) & (rows["end"] != 0)
    around = set(rows["parent"][wrong].tolist())
    return [number for number in table.numbers[wrong].tolist() if number not in around]


def walk(tree: Tree, least: int = 0) -> Iterator[int]:
    """The numbers of all spans, each below its parent."""
    stack = [0]
    while stack:
        number = stack.pop()
        if number:
            yield number
        stack += reversed(tree.children(number, least).tolist())


def shape(tree: Tree) -> dict[int, list[int]]:
    """``children``, as a tree tells them."""
    found = {number: tree.children(number).tolist() for number in (0, *walk(tree))}
    return {number: inside for number, inside in found.items() if inside}


def labelled(tree: Tree, numbers: Iterable[int]) -> dict[int, str]:
    """What spans are called."""
    spans = ((number, tree.span(number)) for number in numbers)
    return {number: tree.label(span) for number, span in spans if span is not None}
