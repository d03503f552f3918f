"""What a subject hands over: how often something was tried, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bench.table import markdown

SHOWN = 5  #: failures that are shown of each line


@dataclass
class Result:
    """One line of the table."""

    subject: str
    what: str  #: what was done, such as "kills at a random moment"
    tried: int = 0
    failures: list[str] = field(default_factory=list)  #: what went wrong, a text each
    figures: str = ""  #: what else was counted: "spans lost: 0 of 1,234,567"
    skipped: str = ""  #: why it could not be tried here

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.failures:
            return "FAILED"
        return f"not tried: {self.skipped}" if self.skipped else "held"

    @property
    def failed(self) -> bool:
        """Whether this line fails the run. Nothing tried without a reason is a failure, too."""
        return bool(self.failures) or (not self.tried and not self.skipped)


def render(results: Iterable[Result]) -> str:
    """The table, as text that is also Markdown."""
    lines, last = [("", "tried", "failures", "", "")], ""
    for each in results:
        if each.subject != last:
            lines.append((f"**{each.subject}**", "", "", "", ""))
            last = each.subject
        counts = f"{each.tried:,}", f"{len(each.failures):,}"
        lines.append((each.what, *counts, each.figures, each.verdict))
    return markdown(lines)


def complaints(results: Iterable[Result]) -> str:
    """What went wrong, the first few of each line."""
    lines = []
    for each in results:
        if each.failed and not each.failures:
            lines.append(f"FAILED: {each.subject}, {each.what}: nothing was tried")
        for failure in each.failures[:SHOWN]:
            lines.append(f"FAILED: {each.subject}, {each.what}: {failure}")
        if len(each.failures) > SHOWN:
            lines.append(f"  ... and {len(each.failures) - SHOWN} more")
    return "\n".join(lines)
