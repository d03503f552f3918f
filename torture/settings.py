"""How much is tried; the whole form and the short one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """The size of each subject."""

    workspace: Path  #: an empty folder for what is written meanwhile
    seed: int = 0
    short: bool = False
    kills: int = 300
    relayed_kills: int = 30  #: of which a relay sends the spans on
    budget_factor: int = 20  #: how many times its budget a run would write
    journals: int = 6_000  #: damaged journals that are read
    commands: int = 40  #: of which the real commands, and the app, get one each
    fuzz_seconds: int = 60  #: of each target of the coverage-guided fuzzer
    long_spans: int = 50_000_000
    stragglers: int = 20  #: trainings of two ranks, one of them slow
    events: int = 1_000_000  #: beside a reader that opens and closes all the time

    @classmethod
    def brief(cls, workspace: Path, seed: int = 0) -> Settings:
        """What runs on every change: every kind of fault, fewer of each."""
        return cls(
            workspace, seed, short=True, kills=9, relayed_kills=2, journals=80, commands=3,
            fuzz_seconds=2, long_spans=300_000, stragglers=1, events=100_000,
        )  # fmt: skip
