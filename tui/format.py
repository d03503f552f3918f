"""Numbers and names as people read them; shared by the app and the text report.

Pure: no terminal, no Textual. Every function returns plain text without markup or control codes.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from rich.cells import cell_len, set_cell_size

#: A name in a trace may be 10 kB long; nobody reads more of it than this.
LONGEST = 300
RISING = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"


def duration(ns: int) -> str:
    """A duration in ns with three digits or two units: ``128ms``, ``1.42s``, ``1h12m``."""
    ns = int(ns)
    if ns < 0:
        return f"-{duration(-ns)}"
    for unit, scale in (("ns", 1), ("µs", 10**3), ("ms", 10**6), ("s", 10**9)):
        text = _three_digits(ns / scale)
        if text is not None and (unit != "s" or ns < 60 * 10**9):
            return text + unit
    seconds = round(ns / 10**9)
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(minutes / 60)
    return f"{hours // 24}d{hours % 24:02d}h"


def _three_digits(value: float) -> str | None:
    """``value`` with three digits; None if it has more than three before the point."""
    for places, limit in ((2, 9.995), (1, 99.95), (0, 999.5)):
        if value < limit:
            text = f"{value:.{places}f}"
            return text.rstrip("0").rstrip(".") if "." in text else text
    return None


def count(n: int) -> str:
    """A count with thousands separators, from ten millions on with a unit: ``12,345``, ``25M``."""
    for unit, scale in (("G", 10**9), ("M", 10**6)):
        if n >= 10 * scale:
            return f"{n / scale:,.0f}{unit}"
    return f"{n:,}"


def share(x: float) -> str:
    """A share of 0 to 1 in percent; what is there but tiny is not shown as nothing."""
    if 0 < x < 0.005:
        return "<1%"
    return f"{x:.0%}"


def rate(per_second: float) -> str:
    """How many a second: ``0.25``, ``4.8``, ``3,312``."""
    if per_second < 1:
        return f"{per_second:.2f}"
    return f"{per_second:.1f}" if per_second < 100 else f"{per_second:,.0f}"


@lru_cache(maxsize=4096)
def printable(text: str) -> str:
    """``text`` with everything that could act on a terminal replaced by something visible.

    C0 controls become their pictures (``␛``, ``␊``); other controls, line separators, bidi and
    zero-width formatting, lone surrogates and unassigned characters become ``�``.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp"):
        return "�"
    return character


def clip(text: str, cells: int) -> str:
    """A printable ``text`` in at most ``cells`` terminal cells, with ``…`` where it was cut."""
    text = printable(text[:LONGEST])
    if cell_len(text) <= cells:
        return text
    if cells <= 0:
        return ""
    return set_cell_size(text, cells - 1).rstrip() + "…"


def bar(x: float, cells: int) -> str:
    """A bar for a share of 0 to 1, exact to an eighth of a cell; always ``cells`` wide."""
    eighths = round(min(1.0, max(0.0, x)) * cells * 8)
    if x > 0 and not eighths:
        eighths = 1
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(cells)


def number(x: float) -> str:
    """A scalar with four digits: ``0.1832``, ``1.2e-05``, ``nan``."""
    return f"{x:.4g}"


def sparkline(values: Sequence[float], cells: int, zero: bool = False) -> str:
    """The course of values in at most ``cells`` cells, each the mean of equally many of them.

    ``zero``: the lowest line is 0, for rates; otherwise it is the smallest value. What is not
    finite leaves a gap.
    """
    if not values or cells < 1:
        return ""
    count = min(cells, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    points: list[float | None] = []
    for begin, end in pairwise(edges):
        known = [x for x in values[begin:end] if math.isfinite(x)]
        points.append(sum(known) / len(known) if known else None)
    known = [x for x in points if x is not None]
    if not known:
        return " " * count
    low, high = 0.0 if zero else min(known), max(known)
    step = (high - low) / (len(RISING) - 1)
    if not step or not math.isfinite(step):
        return "".join(" " if x is None else RISING[3 if not zero else 0] for x in points)
    return "".join(
        " "
        if x is None or not math.isfinite(x)
        else RISING[min(7, max(0, round((x - low) / step)))]
        for x in points
    )


def bytes_of(n: int) -> str:
    """A size in bytes with a binary unit: ``812M``, ``6.2G``."""
    for unit, scale in (("T", 2**40), ("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if n >= scale:
            return f"{n / scale:.1f}{unit}" if n < 10 * scale else f"{n / scale:.0f}{unit}"
    return f"{n}B"
