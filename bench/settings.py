"""How much is measured, and where; the default and the quick form."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """The size of each measurement."""

    workspace: Path
    pairs: int = 24  #: rounds of the recording measurement
    epochs: int = 15  #: of 1,000 iterations, timed in one of its samples
    data_rounds: int = 9
    data_epochs: int = 1  #: timed in each turn of its samples
    disk_iterations: int = 100_000
    memory_spans: int = 5_000_000
    reading_spans: int = 1_000_000
    reading_pairs: int = 8
    exporting_spans: int = 1_000_000
    exporting_pairs: int = 5
    exporting_many: int = 10_000_000  #: spans, for what it takes in memory
    sending_spans: int = 200_000
    sending_pairs: int = 7
    relay_seconds: int = 30
    starts: int = 9
    watching_starts: int = 7
    watching_seconds: int = 20  #: in which processor time is counted
    watching_rounds: int = 4  #: of all keys
    watching_steps: int = 40
    ranks_pairs: int = 5
    ranks_many: tuple[int, int] = (1_024, 500)  #: ranks, and steps of each
    ranks_long: tuple[int, int] = (16, 20_000)

    @classmethod
    def quick(cls, workspace: Path) -> Settings:
        """Enough to see a large change; its bounds are wide."""
        return cls(
            workspace, pairs=5, epochs=3, disk_iterations=20_000, memory_spans=300_000,
            reading_spans=200_000, reading_pairs=3, exporting_spans=100_000, exporting_pairs=3,
            exporting_many=1_000_000, sending_spans=40_000, sending_pairs=3, relay_seconds=15,
            starts=3, watching_starts=3, watching_seconds=5, watching_rounds=2, watching_steps=20,
            data_rounds=3, ranks_pairs=2, ranks_many=(256, 500), ranks_long=(16, 5_000),
        )  # fmt: skip


@dataclass
class Progress:
    """One line on stderr that says what is being measured."""

    shown: int = field(default=0, init=False)

    def __call__(self, text: str) -> None:
        """Show a text in place of the last one; "" clears the line."""
        if sys.stderr.isatty():
            sys.stderr.write("\r" + text.ljust(self.shown) + ("\r" if not text else ""))
            self.shown = len(text)
        elif text:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()
