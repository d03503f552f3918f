"""Processes to measure in: nothing that one sample leaves behind may reach the next.

``forked`` is a child of this process as it stands, warm; ``fresh`` is a new interpreter, with
nothing in its memory.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


#: What a fork may take, s.
PATIENCE_S = 900


class SampleError(Exception):
    """A sample could not be taken, so there is nothing to report."""


def forked(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a fork of this process. What it returns travels as JSON.

    Raises:
        SampleError: the child failed, or took too long; its traceback is on stderr.
    """
    inlet, outlet = os.pipe()

    def tell() -> None:
        faulthandler.dump_traceback_later(PATIENCE_S, exit=True)  # says where it hangs
        answer = json.dumps(function(*args, **kwargs)).encode()
        with open(outlet, "wb") as pipe:
            pipe.write(answer)

    pid = begin(tell)
    os.close(outlet)
    with open(inlet, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status or not answer:
        raise SampleError(f"{function.__name__}{args}: the child failed (wait status {status})")
    result: T = json.loads(answer)
    return result


def begin(program: Callable[[], object]) -> int:
    """Run a program in a fork of this process, which ends with it. Returns its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        program()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)  # no atexit hook of the parent's may run here


def fresh(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a module's function in a new interpreter that imports only what it needs."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()
