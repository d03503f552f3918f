"""Starts the live app in this terminal: on a run, or on a program that runs under it.

Leaving the app never ends the program: its output goes on in the plain terminal.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TextIO

from firetrace.tui.app import WatchApp
from firetrace.tui.child import Child, passthrough, put, shell_code
from firetrace.tui.format import printable

#: Lines of the program's output that stay in the terminal when the app has left.
LAST_LINES = 40
#: So long after the program, a process whose terminal is gone ends, whatever it waits for.
GONE_S = 5


def forget_size() -> None:
    """Let the terminal say how large it is: where these are exported, Textual believes them."""
    for variable in ("COLUMNS", "LINES"):
        os.environ.pop(variable, None)


def watch(name: str | None, exit_when_done: bool = False) -> int:
    """Show a run in the terminal until the user leaves.

    Args:
        name: as for ``find_run``: a path, a run's name, or None for the newest.
        exit_when_done: leave by itself about 1.5 s after the run is over.

    Returns:
        The exit code: 0, or 1 if the run could not be read (one line on stderr says why).
    """
    forget_size()
    app = WatchApp(name, exit_when_done)

    def leave(number: int, _: FrameType | None) -> None:
        """The terminal is put in order first."""
        app.exit(return_code=128 + number)

    before = {each: signal.signal(each, leave) for each in (signal.SIGTERM, signal.SIGHUP)}
    threading.Thread(target=_leave_without_terminal, daemon=True).start()
    try:
        problem = app.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if problem:
        sys.stderr.write(f"firetrace: {printable(problem)}\n")
    return app.return_code or 0


def run_under_app(file: str, words: list[str], variables: dict[str, str], directory: Path) -> int:
    """Start a program, show its run, and wait for it.

    Processes that it leaves in the background lose their terminal when this returns, as when a
    terminal's window is closed.

    Args:
        file: to execute.
        words: its arguments, the first being its name.
        variables: its environment.
        directory: where its run is recorded.

    Returns:
        The program's exit code, as a shell tells it.
    """
    forget_size()
    variables = {k: v for k, v in variables.items() if k not in ("COLUMNS", "LINES")}
    size = shutil.get_terminal_size()
    child = Child(file, words, variables, size.columns, size.lines)
    app = WatchApp(str(directory), child=child)

    def forward(number: int, _: FrameType | None) -> None:
        """Whoever ends firetrace means the program."""
        child.send_signal(signal.Signals(number))
        app.exit()

    before = {each: signal.signal(each, forward) for each in (signal.SIGTERM, signal.SIGHUP)}
    threading.Thread(target=_end_without_terminal, args=(child,), daemon=True).start()
    try:
        try:
            app.run()
        finally:
            for each in (signal.SIGTSTP, signal.SIGCONT):  # a hang-up sends the latter, and
                signal.signal(each, signal.SIG_DFL)  # Textual's handlers would start it again
            code = _go_on(app, child, directory)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return shell_code(code)


def _wait_for_hang_up() -> None:
    """Return when the terminal is gone, which a signal tells only to those that it belongs to."""
    terminal = select.poll()
    terminal.register(0, 0)
    while not terminal.poll(0):  # tells of a hang-up, but nothing wakes one who waits for it
        time.sleep(1)


def _leave_without_terminal() -> None:
    """End once the terminal is gone: Textual would go on reading from it, as fast as it can."""
    _wait_for_hang_up()
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(GONE_S)
    os._exit(128 + signal.SIGHUP)


def _end_without_terminal(child: Child) -> None:
    """Once the terminal is gone, see to it that the program can print, and end after it.

    Textual's thread that writes is dead then, and the main thread may wait for it for ever.
    """
    _wait_for_hang_up()
    with contextlib.suppress(OSError, ValueError):  # the main thread has closed it
        while child.read(1) != b"":
            pass
    code = child.wait()
    time.sleep(GONE_S)
    os._exit(shell_code(code))


def _go_on(app: WatchApp, child: Child, directory: Path) -> int:
    """The program without the app: what it printed last, and what it prints until it ends."""
    pane = app.output
    lines = pane.last_lines(LAST_LINES) if pane is not None else []
    _say(sys.stdout, "".join(f"{line.rstrip()}\n" for line in lines))
    code = child.poll()
    if code is None or directory.exists():  # else no engine ran
        did = "recording" if code is None else "recorded"
        see = f"firetrace watch {shlex.quote(str(directory))}"
        _say(sys.stderr, printable(f"firetrace: {did} to {directory}; see it with: {see}") + "\n")
    if code is None:
        _say(sys.stderr, "firetrace: the program goes on; its output follows\n")
        code = passthrough(child)
    child.close()
    return code


def _say(stream: TextIO, text: str) -> None:
    put(stream.buffer, text.encode(stream.encoding, "replace"))
