"""What a check hands over: a row of one table, and whether it holds."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.table import markdown

#: A phase is right within this part of it, and a phase that is shorter than 1 ms of that.
PART, SHORT_NS = 0.02, 1_000_000


@dataclass(frozen=True)
class Check:
    """One row."""

    name: str
    measured: str
    bar: str = ""
    ok: bool | None = None  #: None: nothing is held against a bar
    samples: dict[str, list[float]] = field(default_factory=dict)  #: as measured, for ``--json``

    @property
    def result(self) -> str:
        """Whether it holds, in a word."""
        return {True: "ok", False: "MISSED", None: ""}[self.ok]


@dataclass(frozen=True)
class Settings:
    """How much is tried, and where."""

    workspace: Path
    steps: int = 40  #: under the profiler
    pairs: int = 12  #: of trainings with and without device time
    tiny_steps: int = 400  #: timed in one of them
    unet_steps: int = 24
    planted_steps: int = 100
    many_steps: int = 1_500  #: that the events are counted in
    clock_s: float = 20.0
    calls: int = 1_000
    compiled: bool = True

    @classmethod
    def quick(cls, workspace: Path) -> Settings:
        """About two minutes; its bounds are wide."""
        return cls(
            workspace, steps=20, pairs=10, tiny_steps=200, unet_steps=8, planted_steps=50,
            many_steps=600, clock_s=5.0, calls=300, compiled=False,
        )  # fmt: skip

    def folder(self) -> Path:
        """A new one, for one recording."""
        return Path(tempfile.mkdtemp(dir=self.workspace))


def guarded(
    name: str, checks: Callable[[], Iterable[Check]], told: Callable[[str], None]
) -> Iterator[Check]:
    """The rows of one subject. What it raises is a row that is missed; those before it stay."""
    try:
        for each in checks():
            told(f"{each.name}: {each.measured} {each.result}")
            yield each
    except Exception as error:
        told(traceback.format_exc())
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())[:200]
        text = (
            f"{type(error).__name__}: {message} ({os.path.basename(where.filename)}:{where.lineno})"
        )
        yield Check(name, text, "to be tried to its end", False)


def render(checks: Iterable[Check]) -> str:
    """The table, as text that is also Markdown."""
    lines = [("", "measured", "bar", "")]
    lines += [(each.name, each.measured, each.bar, each.result) for each in checks]
    return markdown(lines)


def milliseconds(ns: float) -> str:
    """A time."""
    return f"{ns / 1e6:.3f} ms"


def microseconds(ns: float) -> str:
    """A short time, or a difference."""
    return f"{ns / 1e3:.1f} \u00b5s"
