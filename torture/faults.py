"""firetrace itself is wrong: each call that it makes inside a training fails, one after another.

Programs run once untraced; then once for every call site of firetrace's that they come to, with an
exception raised there. The training must be the untraced one to the last detail: results, events,
exceptions, random streams, logs, what is left in the engines; at most one warning.
"""

from __future__ import annotations

import linecache
import random
import traceback
from collections.abc import Iterator
from typing import Any

from bench.process import SampleError, forked
from bench.settings import Progress
from tests.support.unchanged import Seen, differences, observe
from torture.programs import PROGRAMS
from torture.result import Result
from torture.settings import Settings
from torture.sites import Site, Visit, act_at, visits

WAY = "lookups"
AGAIN = 0.1  #: of the sites that a program comes to more than once, tried at a later time as well
SHORT = 9  #: of each program's, in the short form
#: Where the training's own code runs, or what ignite's own method would do as well: function, and
#: what stands in the line. What is raised there is the training's, and has to reach it.
ITS_OWN = (
    ("Seam.engine", ""),
    ("Seam.original", ""),
    ("resolved", ""),
    ("Run.__call__", "run("),
    ("Loader.__call__", "setup("),
    ("Call.__call__", "self.below("),
    ("FireEvent._call", ""),
    ("FireEvent._run", "isinstance("),
    ("FireEvent._run", "itself"),
    ("FireEvent._run", "args"),
    ("FireEvent._run", "len("),
    ("FireEvent._run", "others"),
    ("FireEvent._run", "handlers[0]"),
    ("FireEvent._run", "handler[0]"),
    ("FireEvent._otherwise", "engine.logger"),
    ("FireEvent._otherwise", "state."),
    ("FireEvent._otherwise", "handlers ="),
    ("FireEvent.__call__", "handlers ="),
    ("is_quiet", ""),
    ("CheckedFire.__call__", "self.original("),
    ("Entries._entry.<locals>.enter", ""),
    ("FirePublicEvent.__call__", ""),
    ("FireEvent._around", "self.original("),
    ("FireEvent._otherwise", "self.original("),
)
#: What the program itself calls before its training, and what looks like a call and cannot fail.
NO_CALLBACK = ("TraceHandler.__init__", "TraceHandler.attach", "trace_every_engine")
CANNOT_FAIL = ("get_ident()", "threading.RLock", "with self._guard")
#: Where OpenTelemetry itself would have failed.
OPENTELEMETRY = ("enter.<locals>.leave",)


class InjectedError(RuntimeError):
    """Stands for a mistake of firetrace's own."""


def hurt(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Inject exceptions."""
    draw = random.Random(settings.seed)
    known: set[Site] = set()
    for name, (program, how) in PROGRAMS.items():
        observe(program, WAY, None)  # whatever is made once is made now
        untraced = observe(program, WAY, None)
        plan = list(_plan(forked(_visited, program, how), known, draw))
        sites = len({visit.site for visit in plan})
        if settings.short:
            plan = draw.sample(plan, min(len(plan), SHORT))
        result = Result("an exception of firetrace's own", name, figures=f"{sites:,} new sites")
        for index, visit in enumerate(plan):
            if index % 20 == 0:
                progress(f"faults: {name}, {index} of {len(plan)}")
            result.tried += 1
            try:
                wrong = forked(_injected, program, how, visit, untraced)
            except SampleError as error:
                wrong = [str(error)]
            result.failures += [f"{visit.site} (time {visit.time}): {each}" for each in wrong]
        yield result


def _plan(found: list[tuple[Any, int]], known: set[Site], draw: random.Random) -> Iterator[Visit]:
    """Every site that no program before has come to, at first and later; of the others some."""
    for fields, times in found:
        site = Site(*fields)
        if not is_ours(site):
            continue
        if site not in known:
            known.add(site)
            yield Visit(site, 1)
        if times > 1 and draw.random() < AGAIN:
            yield Visit(site, draw.randint(2, times))


def is_ours(site: Site) -> bool:
    """Whether what is raised there would be a mistake of firetrace's."""
    text = linecache.getline(site.file, site.line)
    if site.function in NO_CALLBACK + OPENTELEMETRY or any(each in text for each in CANNOT_FAIL):
        return False
    return not any(site.function == where and what in text for where, what in ITS_OWN)


def _visited(program: Any, how: dict[str, Any]) -> list[tuple[Any, int]]:
    return [*visits(lambda: observe(program, WAY, how, sound=False)).items()]


def _injected(program: Any, how: dict[str, Any], visit: Visit, untraced: Seen) -> list[str]:
    """What is wrong when this visit fails."""

    def fail() -> None:
        raise InjectedError("injected")

    try:
        seen = act_at(visit, fail, lambda: observe(program, WAY, how, sound=False))
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return [f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"]
    wrong = differences(untraced, seen)
    if len(seen.said) > 1:
        wrong.append(f"{len(seen.said)} warnings: {seen.said}")
    return wrong
