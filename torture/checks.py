"""What must hold of every journal, whatever happened to its writer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from firetrace.tracer.ids import span_ids
from firetrace.tracer.table import Table, read_table


def problems(table: Table) -> list[str]:
    """Whatever a table breaks of what every recording promises. One text a kind of problem."""
    rows, numbers, parents = table.rows, table.numbers, table.parents()
    start, end = rows["start"], rows["end"]
    ids = span_ids(table.header.seed, numbers)
    wrong = {
        "rows make no sense": table.damaged,
        "lines of the meta file make no sense": table.meta.damaged,
        "row numbers are there twice": len(numbers) - len(np.unique(numbers)),
        "span ids are there twice": len(numbers) - len(np.unique(ids)),
        "names are unknown": _unknown(rows["name"], table.meta.names),
        "lanes are unknown": _unknown(rows["lane"], table.meta.lanes),
    }  # fmt: skip
    inside = np.flatnonzero(parents >= 0)
    around = parents[inside]
    wrong["spans have a parent that is not there"] = int(
        np.count_nonzero((rows["parent"] != 0) & (parents < 0))
    )
    wrong["spans end before they begin"] = int(np.count_nonzero((end < start) & (end != 0)))
    wrong["spans begin before their parent"] = int(np.count_nonzero(start[inside] < start[around]))
    has_ended = end[around] != 0
    wrong["spans are open in a parent that has ended"] = int(
        np.count_nonzero(has_ended & (end[inside] == 0))
    )
    wrong["spans end after their parent"] = int(
        np.count_nonzero(has_ended & (end[inside] > end[around]))
    )
    return [f"{count} {what}" for what, count in wrong.items() if count]


def _unknown(ids: np.ndarray, known: Iterable[int]) -> int:
    used = np.unique(ids)
    return int(np.count_nonzero(~np.isin(used, np.fromiter(known, np.int64))))


def read(path: Path) -> tuple[Table | None, list[str]]:
    """A journal and what is wrong with it."""
    try:
        table = read_table(path)
    except Exception as error:
        return None, [f"{type(error).__name__}: {error}"]
    return table, problems(table)
