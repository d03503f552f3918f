"""A program that shows and exports a run while Python tells what it opens, starts and connects to.

``python -m torture.security.audited RUN OTHER OUT`` does all that firetrace does with a run, in
this one process, and prints what happened as JSON. ``betrayals`` says what of it ought not to have
happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from types import CodeType
from typing import Any

#: What nothing here may do at all.
NEVER = (
    "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.system",
    "pickle.find_class", "pty.spawn", "socket.connect", "socket.getaddrinfo", "socket.sendto",
    "socket.gethostbyname", "subprocess.Popen", "urllib.Request", "webbrowser.open", "os.chmod",
    "os.link", "os.symlink", "shutil.copyfile", "shutil.rmtree", "ctypes.dlopen", "smtplib.connect",
)  # fmt: skip
#: What changes the file system, by its first argument that is a path.
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.utime")
KEYS = (
    "enter",
    "e",
    "s",
    "down",
    "r",
    "escape",
    "x",
    "escape",
    "question_mark",
    "escape",
    "c",
    "t",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Witness:
    """Takes down what is told while ``on``; what has the marker in it comes from the run."""

    def __init__(self, marker: str) -> None:
        self.marker = marker
        self.on = False
        self.read: dict[str, str] = {}  #: path, and what was done when it was opened
        self.written: dict[str, str] = {}
        self.never: dict[str, str] = {}
        self.compiled: dict[str, str] = {}  #: code that the run's texts are in
        self.events = 0
        self.doing = ""
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Python tells of something that it is about to do."""
        if not self.on:
            return
        self.events += 1
        if event == "open":
            path, mode, flags = args
            writes = bool(flags and flags & WRITING) or any(c in str(mode or "") for c in "wax+")
            if not isinstance(path, int):
                (self.written if writes else self.read)[os.fsdecode(path)] = self.doing
        elif event in CHANGES:
            for path in args[:2]:
                if isinstance(path, (str, bytes, os.PathLike)):
                    self.written[os.fsdecode(path)] = self.doing
        elif event in NEVER and args != (None,):  # ``ctypes`` opens Python itself
            self.never[f"{event} {args!r}"[:300]] = self.doing
        elif event == "compile" and self.marker in f"{_text(args[0])}{args[1]}":
            self.compiled[_text(args[0])[:300]] = self.doing
        elif event == "exec" and isinstance(args[0], CodeType) and self._has_marker(args[0]):
            self.compiled[str(args[0])[:300]] = self.doing

    def _has_marker(self, code: CodeType) -> bool:
        own = f"{code.co_names}{code.co_filename}{code.co_name}{code.co_varnames}"
        inner = (each for each in code.co_consts if isinstance(each, CodeType))
        return self.marker in f"{own}{code.co_consts}" or any(map(self._has_marker, inner))


def _text(source: Any) -> str:
    return source.decode("utf-8", "replace") if isinstance(source, bytes) else str(source)


def main(arguments: list[str]) -> int:
    """See the module."""
    run, other, out, marker = arguments
    from firetrace.tui.cli import main as command

    witness = Witness(marker)
    done: dict[str, Any] = {}
    commands = [
        ["report", run], ["report", "--json", run], ["list"], ["diff", run, other],
        ["report", "--html", f"{out}/page.html", run],
        ["export", "--to", "chrome", "-o", f"{out}/trace.json.gz", run],
        ["export", "--to", "otlp-file", "-o", f"{out}/spans.jsonl", run],
        ["export", "--to", "chrome", "--errors", "-o", f"{out}/errors.json", run],
        ["report"], ["prune", "--keep", "9", "--dry-run"],
    ]  # fmt: skip
    witness.on = True
    for words in commands:
        witness.doing = " ".join(word for word in words[:3] if os.sep not in word)
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())) as said:
            code = command(words)
            said.flush()
            done[witness.doing] = code, said.buffer.getvalue().count(marker.encode())
    witness.doing = "app"
    done["app"] = asyncio.run(use_app(run, witness.marker))
    witness.on = False
    names = ("read", "written", "never", "compiled", "events")
    print(json.dumps({"done": done, **{name: getattr(witness, name) for name in names}}))
    return 0


async def use_app(run: str, marker: str) -> tuple[int, int]:
    """Look at everything in the app; 0, and how often it showed a text of the run."""
    from firetrace.tui.app import WatchApp
    from firetrace.tui.widgets.detail import Detail

    app, seen = WatchApp(run), 0
    async with app.run_test(size=(200, 50)) as pilot:
        deadline = time.monotonic() + 120
        while app.shown is None and time.monotonic() < deadline:
            await pilot.pause(0.05)
        for key in KEYS:
            await pilot.press(key)
            await pilot.pause(0.05)
            details = app.screen_stack[0].query(Detail).results(Detail)
            seen += sum(each.text.count(marker) for each in details)
            seen += app.export_screenshot().count(marker)
    return 0, seen


def betrayals(said: dict[str, Any], reads: list[str], writes: list[str]) -> list[str]:
    """What ought not to have happened.

    Args:
        said: what the program printed.
        reads: folders and files, of which the contents may be read.
        writes: the same of what may be written, too.
    """
    found = [f"{event} ({doing})" for event, doing in said["never"].items()]
    found += [f"compiled {code!r} ({doing})" for code, doing in said["compiled"].items()]
    for path, doing in said["written"].items():
        if not _is_in(path, [*writes, "/dev/null"]):
            found.append(f"wrote {path!r} ({doing})")
    for path, doing in said["read"].items():
        if not _is_in(path, [*reads, *writes]):
            found.append(f"read {path!r} ({doing})")
    for doing, (code, seen) in said["done"].items():
        if code:
            found.append(f"{doing}: exit code {code}")
        if doing in ("report", "report --json", "diff", "app") and not seen:
            found.append(f"{doing}: showed nothing of the run")
    return found


def _is_in(path: str, places: list[str]) -> bool:
    whole = Path(os.path.abspath(path))
    return any(whole == Path(place) or whole.is_relative_to(place) for place in places)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
