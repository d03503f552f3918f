"""A program on a terminal of its own, the pane that shows it, and the real terminal after it.

Real programs on real pseudo-terminals; for ``passthrough`` one within the other.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.color import Color
from textual.pilot import Pilot

from firetrace.tui.child import Child, shell_code
from firetrace.tui.widgets import output
from firetrace.tui.widgets.output import HISTORY, Emulator, OutputPane

DEADLINE_S = 60
Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a Python program, or a command, on a terminal of 80 x 24; hangs up at the end."""
    children: list[Child] = []

    def start(code: str, *argv: str, env: dict[str, str] | None = None) -> Child:
        words = list(argv) or [sys.executable, "-c", code]
        children.append(Child(words[0], words, dict(os.environ) if env is None else env, 80, 24))
        return children[-1]

    yield start
    for child in children:
        child.send_signal(signal.SIGKILL)
        child.close()
        child.wait()


def until_printed(child: Child, text: bytes = b"\0") -> bytes:
    """What is printed until there is this text, or until the end."""
    printed, deadline = bytearray(), time.monotonic() + DEADLINE_S
    while text not in printed and (new := child.read(0.1)) != b"":
        printed += new or b""
        assert time.monotonic() < deadline, bytes(printed[-2000:])
    return bytes(printed)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines_of(child: Child) -> list[str]:
    return until_printed(child).decode().splitlines()


# The program


LOOK = """\
import os, sys
print([os.isatty(fd) for fd in range(3)], os.get_terminal_size())
print(sys.argv, os.getpgrp() == os.getpid(), os.tcgetpgrp(0) == os.getpid(), os.getsid(0))
os.setpgrp()
print(sorted(os.environ.items()))
"""


def test_the_program_has_a_terminal(start: Start) -> None:
    """It sees a terminal of the size given, and leads its process group as from a shell."""
    child = start("", sys.executable, "-c", LOOK, "a b", "")
    isatty, process, _ = lines_of(child)
    assert isatty == "[True, True, True] os.terminal_size(columns=80, lines=24)"
    assert process.startswith("['-c', 'a b', ''] True True ")
    assert child.wait() == 0


@pytest.mark.parametrize("more", [{}, {"LC_CTYPE": "C"}, {"PYTHONCOERCECLOCALE": "0"}])
def test_the_environment_is_as_given(start: Start, more: dict[str, str]) -> None:
    """Nothing is added, not even the locale that Python sets for itself."""
    variables = {"A": "1", "EMPTY": "", "BYTES": "\udcff", "PYTHONPATH": "/nowhere", **more}
    child = start("", "/usr/bin/env", env=variables)
    printed = until_printed(child).decode(errors="surrogateescape").splitlines()
    assert sorted(printed) == sorted(f"{key}={value}" for key, value in variables.items())


def test_signals_are_as_from_a_shell(start: Start) -> None:
    """None is ignored or blocked in the program."""
    printed = until_printed(start("", "/bin/sh", "-c", "cat /proc/self/status")).decode()
    found = dict(re.findall(r"(Sig(?:Blk|Ign)):\s*(\w+)", printed))
    theirs = dict(re.findall(r"(Sig(?:Blk|Ign)):\s*(\w+)", Path("/proc/self/status").read_text()))
    python = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
    assert int(found["SigBlk"], 16) == int(theirs["SigBlk"], 16)
    assert int(found["SigIgn"], 16) == int(theirs["SigIgn"], 16) & ~python


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os._exit(137)", 137),
        *((f"import os; os.kill(os.getpid(), {number:d})", -number)
          for number in (signal.SIGINT, signal.SIGKILL, signal.SIGSEGV, signal.SIGHUP)),
    ],
)  # fmt: skip
def test_exit_codes_are_the_program_s(start: Start, code: str, expected: int) -> None:
    """Whatever ends it; a shell's way to say it is there too."""
    child = start(code)
    until_printed(child)
    assert child.wait() == child.poll() == expected
    assert shell_code(expected) == (expected if expected >= 0 else 128 - expected)


def test_a_file_that_cannot_be_executed(start: Start) -> None:
    """Is said in a line on the terminal, with exit code 1."""
    child = start("", "/nowhere/train")
    assert lines_of(child) == ["firetrace: /nowhere/train: No such file or directory"]
    assert child.wait() == 1


WAIT = """\
import signal, sys, time
{first}
try:
    print("ready", flush=True)
    while True:
        time.sleep(0.02)  # one long sleep would miss a signal that comes just before it
except KeyboardInterrupt:
    print("interrupted")
"""

ON_RESIZE = """\
import os
signal.signal(signal.SIGWINCH, lambda *_: print(os.get_terminal_size(), flush=True))
"""


@pytest.mark.parametrize("first", ["", "import tty; tty.setraw(0)"])
def test_ctrl_c_interrupts(start: Start, first: str) -> None:
    """The program sees a KeyboardInterrupt, also where its terminal is raw."""
    child = start(WAIT.format(first=first))
    until_printed(child, b"ready")
    child.interrupt()
    assert b"interrupted" in until_printed(child)
    assert child.wait() == 0


def test_a_program_may_ignore_ctrl_c(start: Start) -> None:
    """It goes on; a signal sent to it ends it, and not what stands before it."""
    child = start(WAIT.format(first="signal.signal(2, 1)\nsignal.signal(10, lambda *_: print(10))"))
    until_printed(child, b"ready")
    child.interrupt()
    child.send_signal(signal.SIGUSR1)
    until_printed(child, b"10")
    child.send_signal(signal.SIGTERM)
    until_printed(child)
    assert child.wait() == -signal.SIGTERM


def test_the_program_sees_a_new_size(start: Start) -> None:
    """By SIGWINCH, as in a window."""
    child = start(WAIT.format(first=ON_RESIZE))
    until_printed(child, b"ready")
    child.resize(132, 50)
    assert b"columns=132, lines=50" in until_printed(child, b"lines=50")


def test_all_of_a_flood_arrives(start: Start) -> None:
    """Fifty megabytes, the last bytes without a newline."""
    child = start("import sys\nsys.stdout.write(('x' * 99 + '\\n') * 500_000 + 'end')")
    size, tail = 0, b""
    while (new := child.read(DEADLINE_S)) != b"":
        assert new is not None, "stuck"
        size, tail = size + len(new), new
    assert size == 500_000 * 101 + 3
    assert tail.endswith(b"x\r\nend")
    assert child.wait() == 0


def test_a_background_process_does_not_hold_us_up(start: Start, tmp_path: Path) -> None:
    """The end is the program's end; what it left running is not hung up."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    child = start("", "/bin/sh", "-c", f"(echo alive; read go < {fifo}; echo $go > {fifo}) & wait_")
    until_printed(child)
    assert child.wait() == 127
    with open(fifo, "w") as pipe:  # waits for one who reads: it lives
        pipe.write("on\n")
    assert fifo.read_text() == "on\n"


def test_a_program_that_stops_itself_goes_on(start: Start) -> None:
    """There is no shell that could continue it; its whole group is continued."""
    child = start("", "/bin/sh", "-c", "kill -TSTP $$; (kill -STOP 0; echo on); echo back")
    assert lines_of(child) == ["on", "back"]
    assert child.wait() == 0


def test_the_terminal_is_set_as_ours(start: Start) -> None:
    """UTF-8, flow control and the user's other settings are the real terminal's."""
    within = WITHIN.format(code="import os; os.system('stty -a')")
    set_up = "import os; os.system('stty iutf8 -ixon erase ^H')\n"
    printed = until_printed(start(set_up + within))
    assert re.search(rb"erase = \^H;.* susp = <undef>;.* -ixon .*(?<!-)iutf8", printed, re.S)


def test_ctrl_c_can_be_typed(start: Start) -> None:
    """The terminal knows its keys; but Ctrl-Z, after which nobody could go on, is none."""
    child = start(WAIT.format(first=""))
    until_printed(child, b"ready")
    assert child.write(b"\x1a\x03") == 2
    assert b"interrupted" in until_printed(child)


def test_typing_never_waits(start: Start) -> None:
    """A program that reads nothing takes a bounded number of bytes."""
    child = start(WAIT.format(first=""))
    until_printed(child, b"ready")
    deadline = time.monotonic() + DEADLINE_S
    while child.write(b"x\n" * 4096):
        assert time.monotonic() < deadline
    child.interrupt()
    assert b"interrupted" in until_printed(child)


def test_hanging_up_ends_the_program(start: Start, tmp_path: Path) -> None:
    """It gets SIGHUP, as when a terminal's window is closed."""
    left = tmp_path / "left"
    first = f"signal.signal(1, lambda *_: (open({str(left)!r}, 'w'), sys.exit()))"
    child = start(WAIT.format(first=first))
    until_printed(child, b"ready\r\n")  # all of it: what is half written fails
    child.close()
    wait_for(left.exists)
    assert child.wait() == -signal.SIGHUP


# The real terminal, after the app


WITHIN = """\
import os, sys
from firetrace.tui.child import Child, passthrough
child = Child(sys.executable, [sys.executable, "-c", {code!r}], dict(os.environ), 10, 10)
print("starting", os.getpid(), flush=True)
raise SystemExit(passthrough(child) & 255)
"""


@pytest.mark.parametrize(
    ("code", "seen", "typed", "then", "exit_code"),
    [
        ("print(input('name? '))", b"name? ", b"Ada\r", b"Ada\r\nAda\r\n", 0),
        (WAIT.format(first=""), b"ready", b"\x03", b"^Cinterrupted\r\n", 0),
        ("import os\nprint(os.get_terminal_size())", b"columns=80, lines=24)", b"", b"\r\n", 0),
        ("print('?')\nraise SystemExit(3)", b"?", b"", b"\r\n", 3),
        ("import os\nos.abort()", b"starting", b"", b"", -signal.SIGABRT & 255),
    ],
)  # fmt: skip
def test_passthrough_is_as_if_nobody_were_between(
    start: Start, code: str, seen: bytes, typed: bytes, then: bytes, exit_code: int
) -> None:
    """Keys, Ctrl-C, size, output and exit code pass; the terminal is left as it was found."""
    real = start(WITHIN.format(code=code))
    before = termios.tcgetattr(real.fileno())
    printed = until_printed(real, seen)
    real.write(typed)
    printed += until_printed(real)
    assert printed.endswith(then)
    assert real.wait() == exit_code
    assert termios.tcgetattr(real.fileno()) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_passthrough_forwards_signals(start: Start, number: signal.Signals) -> None:
    """A signal for this process is for the program; the terminal is restored all the same."""
    first = f"signal.signal({number:d}, lambda *_: sys.exit('forwarded'))"
    real = start(WITHIN.format(code=WAIT.format(first=first)))
    before = termios.tcgetattr(real.fileno())
    printed = until_printed(real, b"ready")
    found = re.search(rb"starting (\d+)", printed)
    assert found is not None
    os.kill(int(found[1]), number)
    assert b"forwarded" in until_printed(real)
    assert real.wait() == 1
    assert termios.tcgetattr(real.fileno()) == before


def test_passthrough_tells_a_new_size(start: Start) -> None:
    """When the real window changes."""
    real = start(WITHIN.format(code=WAIT.format(first=ON_RESIZE)))
    until_printed(real, b"ready")
    real.resize(100, 30)
    assert b"columns=100, lines=30" in until_printed(real, b"lines=30")


GONE = """\
import os, sys
from pathlib import Path
from firetrace.tui.session import run_under_app
Path({folder!r}, "pid").write_text(str(os.getpid()))
words = [sys.executable, "-c", {code!r}]
run_under_app(sys.executable, words, dict(os.environ), Path({folder!r}, "run"))
"""

ENDURES = """\
import os, signal, time
signal.signal(signal.SIGHUP, lambda *_: None)
open({folder!r} + "/begun", "w")
while os.path.exists({folder!r} + "/begun"):
    print("x" * 1000)
    time.sleep(0.001)
print("x" * 1_000_000, flush=True)
open({folder!r} + "/over", "w")
"""


@pytest.mark.parametrize("leave", [False, True])
def test_without_its_terminal_it_ends_with_the_program(
    start: Start, tmp_path: Path, leave: bool
) -> None:
    """In the app and after it: a program that endures the hang-up can print on to its end."""
    folder = str(tmp_path)
    real = start(GONE.format(folder=folder, code=ENDURES.format(folder=folder)))
    until_printed(real, b"Output")
    if leave:
        real.write(b"q")
        assert b"; see it with: firetrace watch " in until_printed(real, b"its output follows")
    pid = int((tmp_path / "pid").read_text())
    begun, over = tmp_path / "begun", tmp_path / "over"
    wait_for(begun.exists)  # now it endures
    real.close()
    time.sleep(1)
    begun.unlink()
    wait_for(lambda: over.exists() and not lives(pid))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# The picture


def picture(printed: str | bytes, columns: int = 20, rows: int = 4) -> list[str]:
    """The lines that are there after this was printed."""
    emulator = Emulator(columns, rows, lambda answer: None)
    emulator.feed(printed.encode() if isinstance(printed, str) else printed)
    return texts(emulator)


def texts(emulator: Emulator) -> list[str]:
    return ["".join(text for text, _ in line) for line in emulator.printed().lines]


@pytest.mark.parametrize(
    ("printed", "lines"),
    [
        ("one\r\ntwo", ["one", "two"]),
        ("10%\r20%\r\n", ["20%"]),
        ("a\r\nb\x1b[A\x1b[2K\rc", ["c", "b"]),
        ("x" * 45, ["x" * 20, "x" * 20, "x" * 5]),
        ("12345678901234567890\x1b[D\x1b[Dab", ["12345678901234567ab0"]),
        ("\x1b[?7l" + "x" * 25 + "y", ["x" * 19 + "y"]),
        ("abc\r\x1b[4hX", ["Xabc"]),
        *((f"a{joiner}b", ["ab"]) for joiner in "\u200d\x00\x1a\u202e\u2060"),
        ("\u2764\ufe0fx", ["\u2764x"]),
        ("e\u0301x\u1112\u1161\u11ab", ["\u00e9x\ud55c"]),
        ("e" + "\u0336" * 100 + "x", ["e" + "\u0336" * 7 + "x"]),
        ("日本語", ["日本語"]),
        ("日本\rx", ["x 本"]),
        ("日本\r\x1b[Cx", [" x本"]),
        ("שלום", ["שלום"]),
        (b"\xff\xe6\x97ok", ["\ufffd\ufffdok"]),
        ("\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", ["link"]),
        ("\x1b[?1;2r\x1b[1;2;3;4;5A\x1b[²m\x1b[9J\x1b[38;2;999;0;0mok", ["ok"]),
        ("\x1b]" + "x" * 5000 + "\r\nok", ["ok"]),
    ],
)  # fmt: skip
def test_shows_what_a_terminal_shows(printed: str | bytes, lines: list[str]) -> None:
    """Progress bars, cursor movements, wide letters; nothing that is printed is too odd."""
    assert picture(printed)[-len(lines) :] == lines


def test_keeps_the_last_lines() -> None:
    """As many as said, and knows how many are gone."""
    emulator = Emulator(20, 4, lambda answer: None)
    emulator.feed("".join(f"line {n}\r\n" for n in range(HISTORY + 500)).encode())
    printed = emulator.printed()
    assert len(printed.lines) == HISTORY + 3
    assert texts(emulator)[0] == f"line {printed.first}"
    assert texts(emulator)[-1] == f"line {HISTORY + 499}"


def test_answers_where_the_cursor_is() -> None:
    """For programs that ask the terminal."""
    answers: list[bytes] = []
    Emulator(20, 4, answers.append).feed(b"a\r\nbc\x1b[6n")
    assert answers == [b"\x1b[2;3R"]


def test_a_new_size_loses_no_line_above_the_cursor() -> None:
    """Lower, wider, higher, narrower; what was on the first lines is kept."""
    emulator = Emulator(20, 4, lambda answer: None)
    emulator.feed(b"one\r\ntwo\r\nthree")
    for columns, rows in ((20, 1), (60, 10), (60, 2), (5, 1), (20, 4)):
        emulator.resize(columns=columns, lines=rows)
    emulator.feed(b"!\r\nfour")
    assert texts(emulator) == ["one", "two", "three!", "four"]
    assert emulator.printed().first == 0


# The pane


class PaneApp(App[None]):
    CSS = "OutputPane { height: 10; }"

    def __init__(self, child: Child) -> None:
        super().__init__()
        self.pane, self.code = OutputPane(child), None

    code: int | None

    def compose(self) -> ComposeResult:
        yield self.pane

    def on_output_pane_ended(self, message: OutputPane.Ended) -> None:
        self.code = message.code


@pytest.fixture(autouse=True)
def fast_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not wait for a pane made for eyes."""
    monkeypatch.setattr(output, "PERIOD_S", 0.05)


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, shown(pilot)
        await pilot.pause(0.02)


def pane_of(pilot: Pilot[None]) -> OutputPane:
    assert isinstance(pilot.app, PaneApp)
    return pilot.app.pane


def shown(pilot: Pilot[None]) -> list[str]:
    pane = pane_of(pilot)
    return [pane.render_line(y).text.rstrip() for y in range(pane.size.height)]


async def until_shown(pilot: Pilot[None], text: str) -> None:
    await until(pilot, lambda: any(text in line for line in shown(pilot)))


async def test_the_pane_shows_a_program(start: Start) -> None:
    """Its output in its colours, and the exit code when it ends."""
    app = PaneApp(start("print('\\033[1;38;2;1;2;3mbold\\033[0m plain'); raise SystemExit(3)"))
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.code == 3)
        await until_shown(pilot, "bold plain")
        bold, plain, *_ = app.pane.render_line(0)
        assert (bold.text, plain.text) == ("bold", " plain")
        assert bold.style is not None
        assert plain.style is not None
        assert bold.style.bold
        assert not plain.style.bold
        assert bold.style.color is not None
        assert Color.from_rich_color(bold.style.color).rgb == (1, 2, 3)
    assert app.pane.last_lines(5) == ["bold plain"]


async def test_the_program_has_the_pane_s_size(start: Start) -> None:
    """From the first layout on, and after each change."""
    code = (
        "import os, time\nwhile True:\n    time.sleep(0.02)\n"
        "    print(end=f'\\r{os.get_terminal_size()}', flush=True)"
    )
    async with PaneApp(start(code)).run_test(size=(60, 20)) as pilot:
        await until_shown(pilot, "columns=59, lines=10")
        await pilot.resize_terminal(70, 20)
        await until_shown(pilot, "columns=69, lines=10")


NUMBERS = """\
import sys
for line in sys.stdin:
    for n in range(*map(int, line.split())):
        print("line", n)
"""


async def test_the_view_stays_where_it_was_scrolled_to(start: Start) -> None:
    """New lines, and old ones that go, do not move it; from the end, the end is followed again."""
    child = start(NUMBERS.replace("import sys", "import os, sys; os.system('stty -echo')"))
    app = PaneApp(child)
    async with app.run_test() as pilot:
        app.pane.focus()
        child.write(b"0 100\n")
        await until_shown(pilot, "line 99")
        assert app.pane.following
        await pilot.press("pageup", "pageup")
        await until(pilot, lambda: app.pane.scroll_y == app.pane.scroll_target_y)
        assert not app.pane.following
        before = shown(pilot)
        assert "line 99" not in before
        for begin, end in ((100, 200), (200, HISTORY + 60)):
            child.write(f"{begin} {end}\n".encode())
            await until(pilot, lambda: app.pane.last_lines(1) == [f"line {end - 1}"])  # noqa: B023
            await pilot.pause()
            assert shown(pilot) == before
        assert "line 0" not in app.pane.last_lines(HISTORY + 100)
        await pilot.press("end")
        await until(pilot, lambda: app.pane.following)
        child.write(b"5000 5010\n")
        await until_shown(pilot, "line 5009")


async def test_a_flood_is_cut(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is shown, what is left out is said, and the app goes on meanwhile."""
    monkeypatch.setattr(output, "LIMIT", 8192)  # so that the last lines have a gap
    line = "\\033[31m" + "x" * 70
    app = PaneApp(start(f"import sys\nsys.stdout.write('{line}\\n' * 300_000 + 'the end')"))
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.code == 0)
        await until_shown(pilot, "the end")
        kept = app.pane.last_lines(HISTORY)
        assert any(re.fullmatch(r" [\d,]{6,} bytes not shown ", line) for line in kept)
        after = [line for before, line in itertools.pairwise(kept) if "not shown" in before]
        assert set(after) <= {"x" * 70, "the end"}


NOISE = """\
import random, sys
random.seed(1)
parts = [b"\\x1b[", b"\\x1b]", b"\\x9b", b";", b"?", b"\\r\\n"]
parts += [character.encode() for character in "éאש日\\u202e\\u200d\\U0001f468\\x9b\\x85\\u0378"]
for _ in range(20_000):
    noise = random.randbytes(random.choice([0, 1, 5]))
    sys.stdout.buffer.write(random.choice(parts) + noise)
"""


CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e]")


async def test_nothing_printed_reaches_the_real_terminal(start: Start) -> None:
    """Random bytes and codes: every line is as wide as the pane, without a control character."""
    app = PaneApp(start(NOISE))
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.code is not None)
        pane = app.pane
        await until(pilot, lambda: pane.virtual_size.height > 10)
        await pilot.pause()
        for y in range(-pane.scroll_offset.y, pane.size.height):
            strip = pane.render_line(y)
            assert cell_len(strip.text) == pane.scrollable_content_region.width
            assert not CONTROLS.search(strip.text)
            assert not any(segment.control for segment in strip)


async def test_what_a_background_process_prints_is_read_on(start: Start, tmp_path: Path) -> None:
    """After the program's end too, more than a terminal holds, until the app leaves."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    behind = f"(read go < {fifo}; seq 50000; cat {fifo}) & read key; exit 3"
    child = start("", "/bin/sh", "-c", behind)
    app = PaneApp(child)
    try:
        async with app.run_test() as pilot:
            assert "keys go to the program" in str(app.pane.border_title)
            child.write(b"\n")
            await until(pilot, lambda: app.code == 3)
            assert app.pane.border_title == "Output"
            fifo.write_text("on\n")
            await until_shown(pilot, "50000")
    finally:
        with suppress(OSError):  # nobody waits there
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


async def test_leaving_keeps_what_was_shown_last(start: Start) -> None:
    """The program goes on when the app leaves, and somebody else may read."""
    child = start("print('first', flush=True); print(input())")
    app = PaneApp(child)
    async with app.run_test() as pilot:
        await until_shown(pilot, "first")
    assert child.poll() is None
    assert app.pane.last_lines(3) == ["first"]
    child.write(b"second\n")
    assert until_printed(child) == b"second\r\nsecond\r\n"
