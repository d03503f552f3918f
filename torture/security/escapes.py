"""Shows journals full of escape codes and markup by the real commands, in pipes and terminals.

Each hostile sequence is followed by a marker, so that it can be seen that a name was shown at all,
and what stands before it.
"""

from __future__ import annotations

import itertools
import os
import pty
import re
import select
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.process import SampleError
from bench.settings import Progress
from bench.terminal import Terminal
from torture.result import Result
from torture.security.hostile import HostileJournal
from torture.settings import Settings

MARK = "Qz7"
#: None of them is what Rich or Textual would write themselves.
SEQUENCES = {
    "CSI": "\x1b[2J\x1b[7;77;777m", "OSC 52": "\x1b]52;c;ZXZpbA==\x07", "OSC 0": "\x1b]0;evil\x07",
    "OSC 8": "\x1b]8;;http://evil.example\x1b\\", "DCS": "\x1bP+q544e\x1b\\",
    "APC": "\x1b_evil\x1b\\",
    "C1 CSI": "\x9b31;7;77m", "C1 OSC": "\x9d0;evil\x9c", "C1 DCS": "\x90+q544e\x9c",
    "a byte of C1": "\udc9b31;7;77m", "reset": "\x1bc", "BEL": "\x07\x07\x07",
    "backspace": "\x08\x08\x08", "CR": "evil\r\r", "line": "evil\n\nevil", "NEL": "\x85\x85",
    "vertical": "\x0b\x0c", "DEL": "\x7f\x7f", "shift": "\x0e\x0f", "bidi": "\u202e\u2067",
    "separators": "\u2028\u2029", "invisible": "\u200b\u2060\ufeff\u00ad", "tags": "\U000e0041",
    "markup": "[bold red on blue]", "link": "[link=http://evil.example]", "closing": "[/blue]",
    "action": "[@click=app.quit]", "half": "\\[/bold", "argument": "%s%n{0}$(id)`id`",
}  # fmt: skip
PLAIN = ("markup", "link", "closing", "action", "half", "argument")  # must be shown as they are
BEFORE_MARK = re.compile(rb"(?:[\0-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f])" + MARK.encode())
BAD = ("Cc", "Cf", "Cs", "Zl", "Zp")
COMMAND = [sys.executable, "-m", "firetrace.tui.cli"]
SECONDS = 120


def hostile_texts(first: int) -> Callable[[str], str]:
    """A text with a hostile sequence for each place: all of them in turn."""
    sequences = itertools.cycle(SEQUENCES.values())
    for _ in range(first):
        next(sequences)
    known: dict[str, str] = {}

    def text(place: str) -> str:
        if place not in known:
            known[place] = f"{next(sequences)}{MARK}{place}"
        return known[place]

    return text


def file_name(first: int) -> str:
    """The name of a run's directory, with all sequences that the system takes there."""
    chosen = [text for text in SEQUENCES.values() if "/" not in text and "\0" not in text]
    chosen = chosen[first % len(chosen) :] + chosen[: first % len(chosen)]
    name = "".join(f"{text}{MARK}" for text in chosen)
    return os.fsdecode(os.fsencode(name)[:180])


def complaints_of_pipe(data: bytes) -> list[str]:
    """What a pipe got that acts on a terminal, or that took markup for more than text."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return [f"not UTF-8: {data[error.start - 20 : error.end + 20]!r}"]
    found = []
    for at, character in enumerate(text):
        if character != "\n" and unicodedata.category(character) in BAD:
            found.append(f"{character!r} in {text[max(0, at - 20) : at + 20]!r}")
            break
    if SEQUENCES["line"] in text:
        found.append("a name broke its line")
    return found + [f"it took {each} in {text[:60]!r}" for each in taken_markup(text)]


def taken_markup(text: str) -> Iterator[str]:
    """Markup that is missing before its marker. What is clipped has lost the marker as well."""
    for name in PLAIN:
        markup = SEQUENCES[name]
        seen = text.count(markup + MARK)
        bare = text.count(markup.strip("[]\\") + MARK)  # the brackets have gone, the rest has not
        if bare > seen and name != "argument":
            yield f"{name} for markup"


def complaints_of_terminal(data: bytes) -> list[str]:
    """What a terminal got of the sequences as they are."""
    found = []
    for name, text in SEQUENCES.items():
        raw = re.escape(text.encode("utf-8", "surrogateescape"))
        # A lone byte of C1 is also the end of the same control in UTF-8, which is another line.
        hit = re.search((b"(?<!\xc2)" if name == "a byte of C1" else b"") + raw, data)
        if name not in PLAIN and name != "line" and hit:
            around = data[max(0, hit.start() - 20) : hit.end() + 20]
            found.append(f"{name} arrived raw: {around!r}")
    if hit := BEFORE_MARK.search(data):
        found.append(f"a control before a name: {data[max(0, hit.start() - 20) : hit.end()]!r}")
    return found


def piped(words: list[str], environment: dict[str, str]) -> bytes:
    """What a command writes into pipes."""
    done = subprocess.run(
        [*COMMAND, *words], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=SECONDS, check=False,
    )  # fmt: skip
    return done.stdout


def on_terminal(words: list[str], environment: dict[str, str]) -> bytes:
    """What a command writes to a terminal; it is interrupted where it waits for somebody."""
    outer, inner = pty.openpty()
    environment = {**environment, "TERM": "xterm-256color", "COLUMNS": "200"}
    process = subprocess.Popen(
        [*COMMAND, *words], env=environment, stdin=inner, stdout=inner, stderr=inner,
        start_new_session=True,
    )  # fmt: skip
    os.close(inner)
    data, end, quiet = b"", time.monotonic() + SECONDS, 0
    try:
        while time.monotonic() < end:
            if select.select([outer], [], [], 0.2)[0]:
                data += os.read(outer, 1 << 16)
            elif b"Ctrl-C ends this" in data:
                process.terminate()
            elif (quiet := quiet + 1) % 10 == 0:
                os.write(outer, b"q")  # the app waits for a run that does not come
    except OSError:  # what Linux says when nobody has the other end any more
        pass
    finally:
        process.kill()
        process.wait()
        os.close(outer)
    return data


def shown_by_app(run: Path, words: list[str]) -> bytes:
    """What the live app paints, while keys are pressed that show more."""
    data = b""
    with Terminal([*COMMAND, *words, str(run)]) as terminal:
        terminal.wait_for("COMPUTE-BOUND|FOLLOW|step p50")
        for keys in ("", "e", "\r", "s", "\x1b[B", "y", "r", "\x1b", "x", "\x1b", "?"):
            if keys:
                data += b"".join(each.data for each in terminal.painted)
                terminal.type(keys)
            terminal.settle(0.25, 1)
        data += b"".join(each.data for each in terminal.painted)
    return data


def hostile_commands(folder: Path, run: Path, other: Path) -> list[list[str]]:
    """Every command that shows a name, and errors that name what was asked for."""
    there, name = str(run), str(folder / file_name(5))
    out, no_journal = str(folder / f"{MARK}out{file_name(1)}.json"), str(run / "rank0.1.meta.jsonl")
    nobody = ["--endpoint", "http://127.0.0.1:9", "--patience", "1us"]
    return [
        ["report", there], ["list"], ["diff", there, str(other)],
        ["prune", "--keep", "0", "--dry-run"],
        ["export", "--to", "chrome", "-o", out, there], ["report", name],
        ["report", there, name], ["export", "--to", "otlp", *nobody, there],
        ["report", "--json", there], ["report", no_journal], ["run", f"{name}.py"],
        ["export", "--to", "chrome", "-o", f"{out}/x", there], ["diff", there, name],
        ["export", "--to", "otlp-file", "-o", f"{out}l", there], ["watch", name],
        ["export", "--to", name, there], ["report", "--html", f"{out}.html", there],
        ["export", "--to", "chrome", "-o", there, there], ["list", name],
        ["export", "--to", "otlp", "--endpoint", name, there], [name],
    ]  # fmt: skip


def hurt_terminals(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Try all commands with a rotation of the sequences; the short form tries the first ones."""
    pipes = Result("security", "hostile names in a pipe")
    terminals = Result("security", "hostile names on a terminal")
    apps = Result("security", "hostile names in the live app")
    marks = 0
    for first in (settings.seed,) if settings.short else range(0, len(SEQUENCES), 8):
        folder = settings.workspace / f"escapes{first}"
        run, other = folder / f"a{file_name(first)}", folder / f"b{file_name(first + 3)}"
        for path, slower in ((run, 1.0), (other, 1.5)):
            HostileJournal(path, hostile_texts(first), slower)
        (folder / f"c{file_name(first)}").mkdir()
        environment = {**os.environ, "FIRETRACE_DIR": str(folder)}
        commands = hostile_commands(folder, run, other)
        for at, words in enumerate(commands[: 7 if settings.short else None]):
            progress(f"hostile names: command {at}")
            pipes.tried += 1
            try:
                data = piped(words, environment)
            except subprocess.TimeoutExpired as error:
                pipes.failures.append(f"{words[0]!a} {at}: it took more than {error.timeout} s")
                continue
            marks += data.count(MARK.encode())
            pipes.failures += [f"{words[0]!a} {at}: {each}" for each in complaints_of_pipe(data)]
        commands.insert(0, ["open", "--online", str(run)])
        for at, words in enumerate(commands[: 3 if settings.short else None]):
            progress(f"hostile names on a terminal: command {at}")
            data = on_terminal(words, environment)
            marks += data.count(MARK.encode())
            terminals.tried += 1
            found = complaints_of_terminal(data)
            terminals.failures += [f"{words[0]!a} {at}: {each}" for each in found]
        progress("hostile names in the app")
        try:
            data = shown_by_app(run, ["watch"])
        except SampleError as error:
            apps.failures.append(str(error))
        else:
            marks += data.count(MARK.encode())
            apps.failures += complaints_of_terminal(data)
            if MARK.encode() not in data:
                apps.failures.append("the app showed none of the names")
        apps.tried += 1
    pipes.figures = f"{len(SEQUENCES)} sequences; names seen: {marks:,}"
    if not marks:
        pipes.failures.append("no name was ever shown")
    yield from (pipes, terminals, apps)
