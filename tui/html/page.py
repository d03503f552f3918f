"""The page: the report's parts in the order in which one reads them, and nothing from elsewhere."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from firetrace.tui.colours import LIGHT
from firetrace.tui.device_text import device_lines
from firetrace.tui.format import duration
from firetrace.tui.html import plots, tables
from firetrace.tui.html.marks import Paint, text
from firetrace.tui.html.scenes import scenes
from firetrace.tui.html.timeline import timeline
from firetrace.tui.model.columns import Spans
from firetrace.tui.model.heat import Heat
from firetrace.tui.model.report import Report
from firetrace.tui.model.tree import Tree
from firetrace.tui.text import WORDS, headline, unexplained

STYLE = Path(__file__).with_name("page.css")
HEAT_CELLS, MOST_MARKED = 200, 60
#: Nothing may be fetched, and nothing may run.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(tree: Tree, found: Report) -> str:
    """A run's report as a whole HTML document."""
    paint = Paint(tree.meta)
    body = "".join(
        [_head(tree, found), _trouble(found), _step(tree, found, paint),
         _section("Device", _device(found, paint)),
         _section("Events and handlers", _timeline(tree, found, paint)),
         _section("Steps over the run", _steps(tree, found)),
         _section("Slowest steps", tables.slowest(found.slowest_steps)),
         _section("Handlers", tables.stats("handler", found.handlers, "of the run",
                                           lambda name: paint.span("handler", name))),
         _section("Epochs", _epochs(found, paint)),
         _section("Scalars", tables.scalars(found.scalars))]
    )  # fmt: skip
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_plain(found.run)} - firetrace</title>\n"
        f"<style>\n{paint.css()}{STYLE.read_text()}</style>\n</head>\n<body>\n{body}"
        "<footer>made by firetrace from "
        f"{text(tree.open.path.name)}; times are wall time, shares of what the column says"
        "</footer>\n</body>\n</html>\n"
    )


def _plain(name: str) -> str:
    """A name where no element may be."""
    return text(name).replace("<bdi>", "").replace("</bdi>", "")


def _section(title: str, *parts: str) -> str:
    """Nothing if there is nothing in it."""
    inside = "".join(parts)
    return f"<section>\n<h2>{title}</h2>\n{inside}</section>\n" if inside else ""


def _note(words: str) -> str:
    return f'<p class="note">{words}</p>\n'


def _head(tree: Tree, found: Report) -> str:
    state = text(WORDS.get(found.state, found.state))
    more = "".join(f"<p>{text(each)}</p>\n" for each in (found.drift, found.what_if) if each)
    progress = ""
    if found.progress.fraction is not None:
        done = f"{found.progress.fraction:.1%}"
        progress = (
            f'<div class="progress" role="img" aria-label="{done} done">'
            f'<i class="c-live" style="width:{done}"></i></div>\n'
        )
    begun = datetime.fromtimestamp(tree.open.header.wall_ns // 10**9, timezone.utc)
    return (
        f'<header>\n<h1>{text(found.run)}</h1>\n<p class="state {found.state}">{state}</p>\n'
        f'<p class="verdict">{text(found.verdict)}</p>\n<div class="more">{more}</div>\n{progress}'
        f"<p>{text(headline(found))}</p>\n"
        f'<p class="note">recorded from {begun:%Y-%m-%d %H:%M:%S} UTC on</p>\n</header>\n'
    )


def _trouble(found: Report) -> str:
    """What somebody has to know before the figures."""
    exceptions = found.exceptions[: tables.MOST_ROWS]
    lines = [f'<p class="error">{text(each, 600)}</p>\n' for each in exceptions]
    lines += [f'<p class="warning">{text(each, 600)}</p>\n' for each in found.notes]
    return (
        _section("Exceptions and notes", *lines)
        + _section("Open spans", tables.open_spans(found.incomplete))
    )  # fmt: skip


def _step(tree: Tree, found: Report, paint: Paint) -> str:
    if found.step is None:
        return _section("Phases", tables.stats("phase", found.phases, "of a step", paint.phase))
    usual = found.step
    line = (
        f"{usual.count:,} steps: p50 <b>{duration(usual.p50_ns)}</b>, p95 "
        f"{duration(usual.p95_ns)}, p99 {duration(usual.p99_ns)}, max {duration(usual.max_ns)}, "
        f"together {duration(usual.total_ns)}"
    )
    if usual.drift is not None:
        line += f"; lately {usual.drift:+.0%}"
    parts = step_parts(tree, found, paint)
    legend = "".join(
        f'<li><i class="key {look}"></i>{text(name)} {part:.1%}</li>'
        for name, part, look in parts
        if part >= 0.0005
    )
    left = _note(text(unexplained(found.unexplained))) if found.unexplained is not None else ""
    return _section(
        "What a step is made of", f"<p>{line}</p>\n", plots.phase_bar(parts),
        f'<ul class="legend">{legend}</ul>\n',
        tables.stats("phase", found.phases, "of a step", paint.phase), left,
    )  # fmt: skip


def _device(found: Report, paint: Paint) -> str:
    """What a step takes on the device, and where that may be idle."""
    if found.device is None:
        return ""
    lines = [_note(text(line)) for line in device_lines(found.device)]
    phases = tables.stats("on the device", found.device.phases, "of a step", paint.phase)
    return "".join([*lines[:1], phases, tables.idle(found.device.idle_in), *lines[1:]])


def step_parts(tree: Tree, found: Report, paint: Paint) -> list[tuple[str, float, str]]:
    """The phases in their order, and the rest: name, share of the steps 0 to 1, class."""
    order = {name.text: id for id, name in tree.meta.names.items()}
    # Another engine's phases, and the loader between the steps, are no part of a step.
    shares = [
        (name, each.share)
        for name, each in found.phases.items()
        if name != "loader" and ": " not in name
    ]
    shares.sort(key=lambda pair: order.get(pair[0], 0))
    whole = max(1.0, sum(share for _, share in shares))  # pairs may nest in phases
    parts = [(name, share / whole, paint.phase(name)) for name, share in shares]
    left = max(0.0, 1 - sum(share for _, share, _ in parts))
    return [*parts, ("other", left, "c-structure")]


def _timeline(tree: Tree, found: Report, paint: Paint) -> str:
    drawn = timeline(scenes(tree, found), paint)
    if not drawn:
        return ""
    return f'<div class="scroll">{drawn}</div>' + _note(
        "Names above the bars are events, at the time when they were fired; below hang the "
        "handlers that ran on them. Each picture shows the outlined part of the one before."
    )


def _steps(tree: Tree, found: Report) -> str:
    steps = tree.digest.steps.get(found.main_lane, Spans())
    if found.step is None or not len(steps):
        return ""
    iterations, usual = steps.iteration.values, found.step.p50_ns
    cells = Heat(steps).cells(HEAT_CELLS)
    shades = "".join(f'<i class="heat{i}"></i>' for i in range(len(LIGHT.heat)))
    times = found.epoch_times
    marked = [each.start_ns for each in times] if len(times) <= MOST_MARKED else []
    return (
        f'<div class="scroll">{plots.heat_strip(cells, iterations, usual)}</div>'
        f'<p class="note scale">faster {shades} slower; the middle is the usual '
        f"{duration(usual)}, the last twice that or more. Upper half: the median of the steps in a "
        f"column, lower half: the slowest of them.</p>\n<h3>Steps a second</h3>\n"
        f'<div class="scroll">{plots.throughput(steps, marked)}</div>'
        + (_note("Dashed lines: where epochs begin.") if marked else "")
    )


def _epochs(found: Report, paint: Paint) -> str:
    if not found.epoch_times:
        return ""
    looks = [paint.phase("get_batch"), paint.phase("forward"), "c-handler", "c-structure"]
    legend = "".join(
        f'<li><i class="key {look}"></i>{name}</li>'
        for name, look in zip(plots.EPOCH_PARTS, looks, strict=True)
    )
    step_ns = found.step.total_ns / found.step.count if found.step else 0.0
    return (
        f'<div class="scroll">{plots.epochs(found.epoch_times, step_ns, looks)}</div>'
        f'<ul class="legend">{legend}</ul>\n{tables.epochs(found.epoch_times)}'
    )
