"""The report's tables as HTML: the same rows and figures as the text report's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from firetrace.tui.format import duration, number, share
from firetrace.tui.html.marks import text
from firetrace.tui.html.plots import scalar as plot
from firetrace.tui.model.digest import EpochTime
from firetrace.tui.model.distribution import Stats
from firetrace.tui.model.report import Scalar
from firetrace.tui.model.slow import SlowStep
from firetrace.tui.model.verdict import OpenSpan

#: Rows that are seen at once, and those that a click shows.
MOST_SEEN, MOST_ROWS, MOST_SCALARS = 20, 200, 60


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: Iterable[int] = (0,)) -> str:
    """Rows of markup. The columns in ``left`` hold words, the others figures."""
    if not rows:
        return ""
    first = _table(headers, rows[:MOST_SEEN], set(left))
    rest = rows[MOST_SEEN:MOST_ROWS]
    if not rest:
        return first
    note = f"<p class=note>... and {len(rows) - MOST_ROWS:,} more: firetrace report --json</p>"
    return (
        f"{first}<details><summary>{len(rows) - MOST_SEEN:,} more</summary>\n"
        f"{_table(headers, rest, set(left))}{note if len(rows) > MOST_ROWS else ''}</details>\n"
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: set[int]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        looks = (' class="w"' if i in left else "" for i in range(len(cells)))
        scope = ' scope="col"' if tag == "th" else ""
        found = "".join(
            f"<{tag}{scope}{look}>{cell}</{tag}>" for cell, look in zip(cells, looks, strict=True)
        )
        return f"<tr>{found}</tr>\n"

    body = "".join(line(row, "td") for row in rows)
    return (
        f'<div class="scroll"><table><thead>{line(headers, "th")}</thead>'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def stats(title: str, groups: Mapping[str, Stats], of: str, look: Callable[[str], str]) -> str:
    """Phases or handlers; ``look``: the class of a name's colour; ``of``: what shares are of."""
    drifts = any(each.drift is not None for each in groups.values())
    headers = [title, "n", "total", "p50", "p95", "p99", "max", *(["lately"] if drifts else []), of]
    rows = []
    for name, each in groups.items():
        times = (each.total_ns, each.p50_ns, each.p95_ns, each.p99_ns, each.max_ns)
        lately = "" if each.drift is None else f"{each.drift:+.0%}"
        rows.append([
            f'<span class="name"><i class="key {look(name)}"></i>{text(name)}</span>',
            f"{each.count:,}",
            *map(duration, times), *([lately] if drifts else []),
            f'<span class="share"><i class="{look(name)}" style="width:{each.share:.2%}"></i>'
            f"</span>{share(each.share)}",
        ])  # fmt: skip
    return table(headers, rows)


def idle(places: Mapping[str, float]) -> str:
    """Where a device may be idle, in shares of a step."""
    return table(
        ["idle at most", "of a step"],
        [[text(place), share(part)] for place, part in places.items()],
    )


def slowest(steps: Sequence[SlowStep]) -> str:
    """The slowest steps and what in them took longer than usual."""
    rows = [
        [f"{each.iteration:,}", f"{each.epoch:,}", duration(each.duration_ns),
         ", ".join(f"{text(name)} +{duration(ns)}" for name, ns in each.because)]
        for each in steps
    ]  # fmt: skip
    return table(["step", "epoch", "duration", "longer than usual"], rows, (0, 3))


def epochs(times: Sequence[EpochTime]) -> str:
    """The epochs, the newest first."""
    rows = [
        [f"{each.epoch:,}", duration(each.end_ns - each.start_ns), duration(each.steps_ns),
         duration(each.wait_ns) if each.wait_ns else "",
         duration(each.nested_ns) if each.nested_ns else "", f"{each.iterations:,}"]
        for each in reversed(times)
    ]  # fmt: skip
    return table(["epoch", "took", "steps", "waited", "other engines", "iterations"], rows)


def open_spans(spans: Sequence[OpenSpan]) -> str:
    """What is open, or was when the process died."""
    rows = [
        [f"{text(each.engine)}: {text(each.name)}{'?' if each.guessed else ''}", f"{each.epoch:,}",
         f"{each.iteration:,}", duration(each.open_ns)]
        for each in spans
    ]  # fmt: skip
    return table(["open span", "epoch", "iteration", "open for"], rows)


def scalars(every: Sequence[Scalar]) -> str:
    """A curve for each."""
    figures = "".join(
        f"<figure><figcaption><b>{text(each.name)}</b> {number(each.last)} "
        f"<span>n {each.count:,}</span></figcaption>{plot(each)}</figure>\n"
        for each in every[:MOST_SCALARS]
    )
    left = len(every) - MOST_SCALARS
    more = f"<p class=note>... and {left:,} more: firetrace report --json</p>" if left > 0 else ""
    return f'<div class="curves">{figures}</div>{more}\n' if every else ""
