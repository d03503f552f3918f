"""A program on a pseudo-terminal of its own, as the app's lower pane shows it. No Textual.

The program must not be able to tell. As from a shell it leads its process group and not the
session: for a session's leader ``os.setpgrp()`` fails, and its background processes are hung up
when it ends. So this file, executed, leads the session: it starts the program, waits, and ends as
the program did. It is a process of its own because forking here is not safe with threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
import tty
from collections.abc import Callable, Sequence
from io import FileIO
from types import FrameType
from typing import BinaryIO

#: Where there is nothing to wake a reader (a background process holds the terminal), it looks
#: this often whether the program has ended.
PERIOD_S = 0.25
#: Signals that are for the program, sent to the process before it.
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Child:
    """A program that runs on its own terminal.

    What is typed there counts: the byte 3 is Ctrl-C. Ctrl-Z does nothing, for there is no
    shell to go on from; a program that stops itself is continued at once. The terminal is set as
    the one that is our stdin, if any. Threads may read, write, resize and signal at a time.

    Processes that the program leaves in the background lose their terminal when we hang up, as
    when a terminal's window is closed.

    Args:
        file: the file to execute.
        argv: its arguments, the first being its name.
        env: its environment, complete.
        columns: its window's width.
        rows: its window's height.

    Raises:
        OSError: there are no pseudo-terminals or processes left. A file that cannot be executed
            is said on the program's terminal, with exit code 1.
    """

    def __init__(
        self, file: str, argv: Sequence[str], env: dict[str, str], columns: int, rows: int
    ) -> None:
        master, slave = os.openpty()
        self._master = FileIO(master, "r+")
        self.held = True  #: False once ``read`` has found that no process has the terminal
        try:
            os.set_blocking(master, False)
            self.resize(columns, rows)
            modes = termios.tcgetattr(0 if os.isatty(0) else slave)
            modes[6][termios.VSUSP] = os.fpathconf(slave, "PC_VDISABLE").to_bytes(1, "little")
            termios.tcsetattr(slave, termios.TCSANOW, modes)
            # Python itself sets LC_CTYPE where the locale is C (PEP 538), even with -I.
            self._leader = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, env.get("LC_CTYPE", ""), file, *argv],
                env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                close_fds=False,  # what the user's shell handed on is the program's
            )  # fmt: skip
        except BaseException:
            self._master.close()
            raise
        finally:
            os.close(slave)

    def fileno(self) -> int:
        """Our end of the terminal, for ``select``."""
        return self._master.fileno()

    def read(self, timeout: float) -> bytes | None:
        """What the program has printed; waits for it.

        Args:
            timeout: the longest wait in seconds.

        Returns:
            None if there was nothing in that time, ``b""`` if the program has ended and all that
            it printed is read. Its background processes may still hold the terminal then.
        """
        ended = self.poll() is not None  # asked first: what it printed before is there already
        if not select.select([self], [], [], 0 if ended else timeout)[0]:
            return b"" if ended else None
        try:
            return os.read(self.fileno(), 65536)
        except BlockingIOError:  # another thread was faster
            return None
        except OSError as error:
            if error.errno != errno.EIO:  # Linux's word for the end
                raise
            self.held = False
            self._leader.wait()
            return b""

    def write(self, data: bytes) -> int:
        """Type something.

        Returns:
            How many bytes were taken: fewer if the program does not read them. Never waits, for
            a program that waits for us to read what it prints would never go on.
        """
        try:
            return os.write(self.fileno(), data)
        except OSError:  # full, or nobody there
            return 0

    def resize(self, columns: int, rows: int) -> None:
        """Give the terminal another size; the kernel tells the program by SIGWINCH."""
        size = struct.pack("HHHH", max(1, rows), max(1, columns), 0, 0)
        fcntl.ioctl(self.fileno(), termios.TIOCSWINSZ, size)

    def interrupt(self) -> None:
        """Send SIGINT to the foreground processes, as Ctrl-C does.

        Not by the key: a raw terminal has none, behind unread lines it waits, and it drops what
        the program printed last.
        """
        self._send(os.killpg, signal.SIGINT)

    def send_signal(self, number: int) -> None:
        """Send the program a signal: it alone, as ``kill`` would."""
        self._send(os.kill, number)

    def _send(self, kill: Callable[[int, int], None], number: int) -> None:
        if self.poll() is None:
            try:  # a group has its leader's number; without one, the program is still to start
                kill(os.tcgetpgrp(self.fileno()) or self._leader.pid, number)
            except OSError:  # ended meanwhile
                pass

    def poll(self) -> int | None:
        """The exit code, -n for a death by signal n, None while the program runs."""
        return self._leader.poll()

    def wait(self) -> int:
        """Wait for the end and return the exit code. Someone must read meanwhile."""
        return self._leader.wait()

    def close(self) -> None:
        """Hang up, as a closed terminal does. A program that still runs gets SIGHUP."""
        self._master.close()


def shell_code(code: int) -> int:
    """The exit code as a shell gives it: 128 + n for a death by signal n."""
    return code if code >= 0 else 128 - code


def put(stream: BinaryIO, data: bytes) -> None:
    """Write to the real terminal, or from now on to nowhere if that is gone."""
    try:
        stream.write(data)
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # what is left in the buffer goes there too
        os.close(nowhere)


def passthrough(child: Child) -> int:
    """Connect the real terminal with the program's until the program ends.

    Keys, Ctrl-C among them, reach it as they are, since the real terminal is raw meanwhile; so do
    signals sent to this process. Only for the main thread, and while nobody else reads the child.
    Without a terminal as stdin, its end is not passed on. If the terminal goes away, what the
    program prints is read on, so that it can end.

    Returns:
        The exit code as of ``Child.poll``.
    """

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    def fit(number: int = 0, frame: FrameType | None = None) -> None:
        if output.isatty():
            child.resize(*os.get_terminal_size(output.fileno()))

    output, keyboard = sys.stdout.buffer, sys.stdin.fileno()
    before = termios.tcgetattr(keyboard) if os.isatty(keyboard) else None
    handlers = {number: signal.signal(number, forward) for number in FORWARDED}
    handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, fit)
    try:
        if before:
            try:
                tty.setraw(keyboard, termios.TCSADRAIN)
            except termios.error:  # it is gone
                before = None
        put(output, b"")
        fit()
        return _copy(child, keyboard, output)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if before:
            try:
                termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
            except termios.error:  # it is gone
                pass


def _copy(child: Child, keyboard: int, output: BinaryIO) -> int:
    """Copy both ways until the program has ended."""
    typed, more = b"", True
    while True:
        sources = [child.fileno(), keyboard] if more and not typed else [child.fileno()]
        if keyboard in select.select(sources, [], [], PERIOD_S)[0]:
            try:
                typed = os.read(keyboard, 1024)
            except OSError:  # the terminal is gone
                typed = b""
            more = bool(typed)
        typed = typed[child.write(typed) :]
        printed = child.read(0)
        if printed:
            put(output, printed)
        elif printed is not None:
            return child.wait()


def lead(locale: str, file: str, argv: list[str]) -> None:
    """Start the program on the terminal that is our stdin, and end as it does.

    Args:
        locale: LC_CTYPE for the program; empty if it has none.
        file: what to execute; the environment is this process's.
        argv: its arguments, the first being its name.
    """
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # A signal to all processes of a job is for the program; a hang-up we pass on by ending.
    blocked = signal.valid_signals() - {signal.SIGHUP}
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)
        variables = {**os.environ, "LC_CTYPE": locale}
        if not locale:
            del variables["LC_CTYPE"]
        try:
            os.execve(file, argv, variables)
        except OSError as error:
            sys.exit(f"firetrace: {file}: {error.strerror}")
    _, status = os.waitpid(pid, os.WUNTRACED)
    while os.WIFSTOPPED(status):  # go on as by a shell's "fg", for nobody could type that
        try:
            os.tcsetpgrp(0, os.getpgid(pid))
            os.killpg(os.getpgid(pid), signal.SIGCONT)
        except OSError:  # the terminal is gone, or the program was killed meanwhile
            os.kill(pid, signal.SIGCONT)
        _, status = os.waitpid(pid, os.WUNTRACED)
    try:
        os.tcsetpgrp(0, os.getpgrp())  # or what it left in the background is hung up with us
    except OSError:  # the terminal is gone
        pass
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core file is enough
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
    os._exit(code)


if __name__ == "__main__":
    lead(sys.argv[1], sys.argv[2], sys.argv[3:])
