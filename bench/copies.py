"""A journal of any length from a recorded one: its rows again and again, one run after another.

Ten million spans take two seconds, where a training that fires their events takes a minute. Every
copy has row numbers, parents, times, epochs and iterations of its own, and its lines in the meta
file, so no reader can tell them from recorded ones. For journals that one thread has written.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from firetrace.tracer.journal import FIRST_ROW, HEADER_BYTES, MAX_ROW, ROW_DTYPE, Flag

PAUSE_NS = 1_000_000  #: from the end of one copy to the start of the next


def enlarge(journal: str | Path, stem: str | Path, spans: int) -> str:
    """Write a journal of at least so many spans, in whole copies.

    Args:
        journal: the rows file of a recorded one that was closed.
        stem: the new files' path without suffixes, such as ``run/rank0.1``; its folder is made.
        spans: how many at least.

    Returns:
        The path of the new rows file.

    Raises:
        ValueError: the rows would have no numbers any more.
    """
    source, target = Path(journal), Path(f"{stem}.rows")
    data = source.read_bytes()
    rows = np.frombuffer(data, ROW_DTYPE)[FIRST_ROW:]
    rows = rows[: int(np.flatnonzero(rows["start"])[-1]) + 1]
    used, is_scalar = rows["start"] != 0, (rows["flags"] & Flag.SCALAR) != 0
    has_end = used & ~is_scalar & (rows["end"] != 0)
    no_span = ~used | ((rows["flags"] & (Flag.SCALAR | Flag.VOID)) != 0)
    copies = -(-spans // int(np.count_nonzero(~no_span)))
    if FIRST_ROW + copies * len(rows) > MAX_ROW:
        raise ValueError(f"{copies} copies of {source} have more rows than a journal can number")
    period = int(rows["end"][has_end].max() - rows["start"][used].min()) + PAUSE_NS
    epochs, iterations = int(rows["epoch"].max()), int(rows["iteration"].max())
    lines = [json.loads(line) for line in source.with_suffix(".meta.jsonl").open("rb")]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".lock").touch()
    with target.open("wb") as file, target.with_suffix(".meta.jsonl").open("w") as meta:
        file.write(data[:HEADER_BYTES])
        meta.writelines(json.dumps(line) + "\n" for line in lines if _said_once(line))
        for index in range(copies):
            copy, shift, later = rows.copy(), index * len(rows), index * period
            copy["parent"][copy["parent"] != 0] += shift
            copy["start"][used] += later
            copy["end"][has_end] += later
            copy["epoch"][copy["epoch"] != 0] += index * epochs
            copy["iteration"][copy["iteration"] != 0] += index * iterations
            file.write(copy.tobytes())
            for line in lines:
                if not _said_once(line) and line["type"] != "end":
                    moved = {key: line[key] + shift for key in ("row", "to") if key in line}
                    if "time" in line:
                        moved["time"] = line["time"] + later
                    meta.write(json.dumps({**line, **moved}) + "\n")
        for line in lines:
            if line["type"] == "end":
                meta.write(json.dumps({**line, "time": line["time"] + later}) + "\n")
    return str(target)


def _said_once(line: dict[str, object]) -> bool:
    """Whether a line of the meta file stands for the whole journal."""
    return "row" not in line and line["type"] != "end"
