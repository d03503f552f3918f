"""A recorded run as a tree of nested lists, for comparisons of its full shape."""

from __future__ import annotations

from itertools import groupby

from firetrace.tracer.journal import Flag
from firetrace.tracer.table import Table
from tests.support.described import SHORT

Tree = tuple[str, list["Tree"]]


def tree(table: Table) -> list[Tree]:
    """Every span as (name, children), children in the order in which they began."""
    nodes: list[Tree] = [(table.name(i).text, []) for i in range(len(table))]
    roots: list[Tree] = []
    order = sorted(range(len(table)), key=lambda i: (int(table.rows["start"][i]), i))
    parents = table.parents().tolist()
    for i in order:
        (nodes[parents[i]][1] if parents[i] >= 0 else roots).append(nodes[i])
    return roots


def outline(trees: list[Tree], depth: int = 0, repeat: bool = False) -> str:
    """A tree as indented lines; equal neighbours are folded into ``name x N``."""
    lines: list[str] = []
    index = 0
    while index < len(trees):
        count = 1
        while index + count < len(trees) and trees[index + count] == trees[index]:
            count += 1
        name, children = trees[index]
        times = f" x{count}" if count > 1 else ""
        lines.append("  " * depth + name + times)
        if children:
            lines.append(outline(children, depth + 1))
        index += count
    return "\n".join(lines)


def assert_well_formed(table: Table) -> None:
    """Ids are unique, children lie within their parents, siblings of a lane do not overlap."""
    rows, parents = table.rows, table.parents()
    assert len(set(table.numbers.tolist())) == len(table)
    last_end: dict[int, int] = {}
    for i in sorted(range(len(table)), key=lambda i: (int(rows["start"][i]), i)):
        start, end, parent = int(rows["start"][i]), int(rows["end"][i]), int(parents[i])
        assert end == 0 or start <= end, (table.name(i), start, end)
        if parent >= 0:
            assert int(rows["start"][parent]) <= start
            if rows["end"][parent]:
                assert 0 < end <= int(rows["end"][parent]), (table.name(i), table.name(parent))
            assert last_end.get(parent, 0) <= start, (table.name(i), table.name(parent))
            last_end[parent] = end or start


def brief(table: Table) -> str:
    """A recording in one line: ``run[S epoch~terminate[...] C]``; equal neighbours as ``x2``.

    Marked are ends (``~reason``, ``!`` an exception) and beginnings (``^`` it had begun before
    recording did, ``>`` it goes on after an interrupt).
    """
    rows, parents = table.rows, table.parents().tolist()
    children: dict[int, list[int]] = {-1: []}
    for i in sorted(range(len(table)), key=lambda i: (int(rows["start"][i]), i)):
        children.setdefault(i, [])
        children.setdefault(parents[i], []).append(i)

    def text(i: int) -> str:
        flags, name = int(rows["flags"][i]), SHORT.get(table.name(i).text, table.name(i).text)
        if flags & Flag.CUT:
            name += "~" + table.meta.reasons.get(int(table.numbers[i]), "")
        marks = {Flag.ERROR: "!", Flag.LATE: "^", Flag.RESUMED: ">"}
        name += "".join(m for flag, m in marks.items() if flags & flag)
        return f"{name}[{row(children[i])}]" if children[i] else name

    def row(indices: list[int]) -> str:
        groups = [(same, len(list(group))) for same, group in groupby(map(text, indices))]
        return " ".join(same + (f" x{count}" if count > 1 else "") for same, count in groups)

    return row(children[-1])
