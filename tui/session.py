"""Starts the live app in this terminal: on a run, or on a program that runs under it.

Leaving the app never ends the program: its output goes on in the plain terminal.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

from firetrace.tui.app import WatchApp
from firetrace.tui.child import Child, passthrough, shell_code

#: Lines of the program's output that stay in the terminal when the app has left.
LAST_LINES = 40


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
    problem = app.run()
    if problem:
        sys.stderr.write(f"firetrace: {problem}\n")
    return app.return_code or 0


def run_under_app(file: str, words: list[str], variables: dict[str, str], directory: Path) -> int:
    """Start a program, show its run, and wait for it.

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
    try:
        app.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        code = _go_on(app, child)
    return shell_code(code)


def _go_on(app: WatchApp, child: Child) -> int:
    """The program without the app: what it printed last, and what it prints until it ends."""
    pane = app.output
    lines = pane.last_lines(LAST_LINES) if pane is not None else []
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))
    sys.stdout.flush()
    code = child.poll()
    if code is None:
        sys.stderr.write("firetrace: the program goes on; its output follows\n")
        code = passthrough(child)
    child.close()
    return code
