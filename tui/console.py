"""A console whose tables keep their figures, however narrow it is and however long the names are.

The report, the comparison and the list of runs print through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from firetrace.tui.format import clip, printable

MOST_ROWS = 20
#: In a file or a pipe: nearly every name is whole.
PIPE_CELLS = 160
#: Columns are left out before names get fewer cells than this; then they get ``FEWEST_CELLS``.
NAME_CELLS, FEWEST_CELLS = 16, 6
GAP = "  "
WHOLE = 10**6

#: A text, or what makes one of at most so many cells; only names are clipped.
Cell = str | Callable[[int], str]


def text(name: str) -> Text:
    """A name from a trace: text, never markup or escape codes."""
    return Text(printable(name))


class Page(Console):
    """A console on stdout."""

    def __init__(self) -> None:
        super().__init__(highlight=False)
        if not self.is_terminal:
            self.width = PIPE_CELLS
        self._left_out: dict[str, None] = {}

    def on_broken_pipe(self) -> None:
        """Leave ``| head`` to the command, which ends well; rich would exit with 1.

        Raises:
            BrokenPipeError: always.
        """
        raise BrokenPipeError

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        names: int = 0,
        drop: Sequence[str] = (),
        left: Sequence[str] = (),
        styles: Sequence[str] = (),
        cells: int | None = None,
    ) -> None:
        """Print a table. Figures are whole; names get the cells that are left.

        Args:
            columns: their headers.
            rows: the cells of each. In the column of names raw text of the trace is allowed.
            names: the index of the one column that is clipped.
            drop: headers of what is left out where names would get too little, the first first.
            left: headers of columns that are aligned to the left, as the first and the names are.
            styles: of the rows; empty: none.
            cells: how wide the table may be; by default as wide as the console.
        """
        rows = list(rows)
        whole = [_fit(row[names], WHOLE) for row in rows]
        wanted = max(map(cell_len, [columns[names], *whole]))
        widths = {
            index: max(map(cell_len, [header, *(str(row[index]) for row in rows)]))
            for index, header in enumerate(columns)
            if index != names
        }

        def room() -> int:
            return (cells or self.width) - sum(widths.values()) - len(GAP) * len(widths)

        for header in drop:
            if room() >= min(wanted, NAME_CELLS):
                break
            del widths[columns.index(header)]
            self._left_out[header] = None
        widths[names] = min(wanted, max(room(), FEWEST_CELLS))
        kept = sorted(widths)
        to_left = {0, names, *map(columns.index, left)}

        def line(row: Sequence[Cell], style: str) -> None:
            said = []
            for index in kept:
                width, cell = widths[index], row[index]
                shown = _fit(cell, width) if index == names else str(cell)
                filled = set_cell_size(shown, width)
                said.append(filled if index in to_left else " " * (width - cell_len(shown)) + shown)
            self.print(Text(GAP.join(said).rstrip(), style=style), soft_wrap=True)

        line(columns, "dim")
        for index, row in enumerate(rows):
            line(row, styles[index] if styles else "")

    def more(self, count: int, what: str = "more (--json has all)") -> None:
        """Say that a table goes on, if it does."""
        if count > 0:
            self.print(Text(f"... and {count:,} {what}", style="dim"))

    def end(self) -> None:
        """Say which columns were left out."""
        if self._left_out:
            columns = ", ".join(self._left_out)
            self.print(Text(f"too narrow to show: {columns}", style="dim"))


def _fit(cell: Cell, cells: int) -> str:
    return clip(cell, cells) if isinstance(cell, str) else cell(cells)
