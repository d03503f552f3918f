"""The instructions of firetrace that run in a program, and doing something just before one of them.

By ``sys.settrace`` on opcodes: an exception raised by the trace function is raised where the
traced frame is, as if the instruction itself had failed.
"""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import firetrace.exporters
import firetrace.tracer

#: What runs inside the training.
FOLDERS = tuple(
    str(Path(str(room.__file__)).parent) for room in (firetrace.tracer, firetrace.exporters)
)
CALLS = frozenset({
    "CALL", "CALL_KW", "CALL_FUNCTION", "CALL_FUNCTION_EX", "CALL_FUNCTION_KW", "CALL_METHOD",
})  # fmt: skip
#: Other instructions that may raise: an index, a key, a type, a module that is not as expected.
MAY_FAIL = frozenset({
    "BINARY_OP", "BINARY_SUBSCR", "CONTAINS_OP", "DELETE_SUBSCR", "FOR_ITER", "IMPORT_FROM",
    "IMPORT_NAME", "STORE_SUBSCR", "UNPACK_EX", "UNPACK_SEQUENCE",
})  # fmt: skip


class Site(NamedTuple):
    """An instruction of firetrace's."""

    file: str
    function: str
    line: int
    offset: int
    is_call: bool

    def __str__(self) -> str:
        return f"{Path(self.file).parent.name}/{Path(self.file).name}:{self.line} {self.function}"


class Visit(NamedTuple):
    """The ``time``-th time, from 1, at a site."""

    site: Site
    time: int


@cache
def sites_of(code: CodeType) -> dict[int, Site]:
    """The sites of a function, by the offset at which an exception appears."""
    found, line, before = {}, code.co_firstlineno, 0
    nothing = 0  # times in a row that None was put on the stack: three for an ``__exit__``
    for each in dis.get_instructions(code):
        if each.starts_line:
            line = getattr(each, "line_number", None) or _line(each) or line
        if (each.opname in CALLS or each.opname in MAY_FAIL) and nothing != 3:
            # 3.11 splits a call in two; the first one is before anything has happened.
            at = before if each.opname == "CALL" and _was_precall(code, before) else each.offset
            name = getattr(code, "co_qualname", code.co_name)
            found[at] = Site(code.co_filename, name, line, at, each.opname in CALLS)
        before = each.offset
        if each.opname != "PRECALL":
            is_none = each.opname == "LOAD_CONST" and each.argval is None
            nothing = nothing + 1 if is_none else 0
    return found


def _line(instruction: dis.Instruction) -> int:
    starts = instruction.starts_line
    return starts if isinstance(starts, int) and not isinstance(starts, bool) else 0


def _was_precall(code: CodeType, offset: int) -> bool:
    return dis.opname[code.co_code[offset]] == "PRECALL"


class Watch:
    """While its block lasts, calls ``reach`` at every site that is about to run, in any thread.

    ``led_on``: is told of the sites that called a function of firetrace's own.
    """

    def __init__(
        self, reach: Callable[[Site], None], led_on: Callable[[Site], None] | None = None
    ) -> None:
        self._reach = reach
        self._led_on = led_on

    def __enter__(self) -> None:
        threading.settrace(self._call)
        sys.settrace(self._call)

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)
        threading.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(FOLDERS):
            return None
        if self._led_on is not None and (caller := frame.f_back) is not None:
            # The caller stands somewhere in its call, which has caches behind it.
            behind = [at for at in sites_of(caller.f_code) if at <= caller.f_lasti]
            if behind:
                self._led_on(sites_of(caller.f_code)[behind[-1]])
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._inside

    def _inside(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            site = sites_of(frame.f_code).get(frame.f_lasti)
            if site is not None:
                self._reach(site)
        return self._inside


def visits(program: Callable[[], Any]) -> dict[Site, int]:
    """How often a program comes to each site, in the order of their first times.

    Calls of firetrace's own functions are no sites: what can go wrong there goes wrong inside.
    """
    counts: dict[Site, int] = {}
    inner: set[Site] = set()

    def note(site: Site) -> None:
        counts[site] = counts.get(site, 0) + 1

    with Watch(note, inner.add):
        program()
    return {site: count for site, count in counts.items() if site not in inner}


def act_at(visit: Visit, act: Callable[[], None], program: Callable[[], Any]) -> Any:
    """Run a program; do something just before this visit."""
    left = visit.time

    def count(site: Site) -> None:
        nonlocal left
        if site == visit.site:
            left -= 1
            if left == 0:
                act()

    with Watch(count):
        return program()
