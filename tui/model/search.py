"""All spans whose names match, in the order of the file, without a list of them.

How many there are in each window of the file is known; a window is read when somebody looks at its
matches. So a search costs what is on the screen, however long the run is.
"""

from __future__ import annotations

import re
from bisect import bisect_right

import numpy as np

from firetrace.tracer.pages import are_spans
from firetrace.tracer.reader import Numbers
from firetrace.tui.model.groups import Group
from firetrace.tui.model.tree import Tree

#: Windows whose matches are kept.
MOST_WINDOWS = 64
_NUMBERED = re.compile(r"(step|iteration|epoch)\s+#?(\d+)", re.IGNORECASE)


class Matches:
    """The spans that have ended and match a pattern; they stand in a list, as the lines of a tree.

    Args:
        tree: where to look.
        pattern: part of a name, of an engine and a name (``Trainer: forward``), or of a kind, in
            any case; or ``step 412``, ``epoch 3``.
    """

    def __init__(self, tree: Tree, pattern: str) -> None:
        self._tree = tree
        wanted = pattern.strip().lower()
        numbered = _NUMBERED.fullmatch(wanted)
        self._fixed: Numbers | None = None
        groups: list[Group] = []
        if numbered is not None:
            self._fixed = self._of_number(numbered[1], int(numbered[2]))
        elif wanted:
            groups = [each for each in tree.digest.groups.all if self._fits(each, wanted)]
        self._keys = np.array([each.lane << 16 | each.id for each in groups], np.uint32)
        counts: dict[int, int] = {}
        for group in groups:
            for window, count in list(group.windows.items()):
                counts[window] = counts.get(window, 0) + count
        self._windows = sorted(counts)
        self._tops = np.cumsum([0, *(counts[each] for each in self._windows)]).tolist()
        self._read: dict[int, Numbers] = {}

    def _fits(self, group: Group, wanted: str) -> bool:
        text, kind = group.name.text.lower(), group.name.kind
        engine = self._tree.meta.lane(group.lane).engine.lower()
        return wanted in text or wanted in f"{engine}: {text}" or wanted == kind

    def _of_number(self, kind: str, number: int) -> Numbers:
        digest = self._tree.digest
        found = [np.empty(0, np.uint32)]
        for spans in list((digest.epochs if kind == "epoch" else digest.steps).values()):
            count = len(spans)
            column = (spans.epoch if kind == "epoch" else spans.iteration).values[:count]
            found.append(spans.number.values[:count][column == number])
        return np.sort(np.concatenate(found))

    def __len__(self) -> int:
        return len(self._fixed) if self._fixed is not None else int(self._tops[-1])

    def at(self, line: int) -> tuple[int, int]:
        """The row number on a line, and a depth, which is always 0."""
        if self._fixed is not None:
            return int(self._fixed[line]), 0
        place = bisect_right(self._tops, line) - 1
        numbers = self._numbers(self._windows[place])
        if not len(numbers):  # the file was cut short
            return 0, 0
        return int(numbers[min(line - self._tops[place], len(numbers) - 1)]), 0

    def _numbers(self, window: int) -> Numbers:
        found = self._read.get(window)
        if found is None:
            rows, numbers = self._tree.pages.window(window)
            keys = rows["lane"].astype(np.uint32) << 16 | rows["name"]
            ended = (rows["end"] != 0) & are_spans(rows, numbers)
            found = numbers[ended & np.isin(keys, self._keys)]
            while len(self._read) >= MOST_WINDOWS:
                del self._read[next(iter(self._read))]
            self._read[window] = found
        return found

    def index(self, number: int) -> int | None:
        """On which line a span stands; None if it does not match."""
        if not len(self):
            return None
        line = self.nearest(number)
        return line if self.at(line)[0] == number else None

    def nearest(self, number: int) -> int:
        """The line of the match nearest to a row number. There must be one."""
        before = max(0, self.after(number) - 1)
        lines = (before, min(before + 1, len(self) - 1))
        return min(lines, key=lambda line: abs(self.at(line)[0] - number))

    def after(self, number: int) -> int:
        """The line of the first match after a row number; the count of all if there is none."""
        if self._fixed is not None:
            return int(np.searchsorted(self._fixed, number, side="right"))
        window = number // self._tree.pages.per_window
        place = int(np.searchsorted(self._windows, window))
        if place == len(self._windows) or self._windows[place] != window:
            return int(self._tops[place])
        inside = int(np.searchsorted(self._numbers(window), number, side="right"))
        return min(int(self._tops[place]) + inside, int(self._tops[place + 1]))
