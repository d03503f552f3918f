"""Whose an exception is that surfaces in firetrace's code: its own, or the program's."""

from __future__ import annotations

import signal


def raised_by_signal_handler(error: BaseException) -> bool:
    """Whether a Python signal handler raised it, such as torch's for a loader worker that died."""
    codes = set()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler):
            function = getattr(handler, "func", handler)  # of a partial
            method = vars(type(function)).get("__call__")
            codes |= {getattr(function, "__code__", None), getattr(method, "__code__", None)}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False
