"""How far apart the clocks of two hosts are, with a bound: asked of rank 0, over UDP.

Rank 0 answers each question with the time in its journal. The answer was given at some moment
between question and reply, so the offset is known up to half of the time that this took; what
several questions say is cut together. Nobody waits for it: questions are asked from a thread of
their own, when a rank begins and every ten minutes after. On one host nothing is measured.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable

from firetrace.tracer.journal import boot_id
from firetrace.tracer.world import Meeting, World
from firetrace.tracer.writer import JournalWriter

log = logging.getLogger("firetrace")

KEY = "clock"
QUESTIONS, ANSWER_S = 16, 0.25
AGAIN_S = 600.0
#: How long a rank looks for rank 0, and how often.
LOOK_S, EVERY_S = 60.0, 0.5
TOKEN_BYTES = 16
QUESTION, ANSWER = struct.Struct("<16sQ"), struct.Struct("<16sQq")


class Clock:
    """Answers for rank 0, until ``close``.

    Args:
        now_ns: the time in its journal, Unix ns.
        host: an address of this host at which the others reach it.

    Raises:
        OSError: no port can be had.
    """

    def __init__(self, now_ns: Callable[[], int], host: str) -> None:
        self._now_ns = now_ns
        self.token = secrets.token_bytes(TOKEN_BYTES)  # who does not know it gets no answer
        family, *_, address = socket.getaddrinfo(host or None, 0, type=socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.bind(address)
        except OSError:  # behind an address that is translated
            self._socket.bind(("", 0))
        self.port = int(self._socket.getsockname()[1])
        self._closed = False
        threading.Thread(target=self._answer, name="firetrace-clock", daemon=True).start()

    def _answer(self) -> None:
        while not self._closed:
            try:
                data, address = self._socket.recvfrom(QUESTION.size)
                if len(data) == QUESTION.size and data[:TOKEN_BYTES] == self.token:
                    _, number = QUESTION.unpack(data)
                    self._socket.sendto(ANSWER.pack(self.token, number, self._now_ns()), address)
            except OSError:
                return

    def close(self) -> None:
        """Answer no more."""
        self._closed = True
        self._socket.close()


def ask(
    address: tuple[str, int], token: bytes, now_ns: Callable[[], int], questions: int = QUESTIONS
) -> tuple[int, int] | None:
    """What to add to ``now_ns()`` to have the other's time, and the bound of its error, in ns.

    None: nobody answers.

    Raises:
        OSError: it cannot be asked.
    """
    least, most, answers = -(2**62), 2**62, 0
    family, *_, to = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as asker:
        for number in range(questions):
            begun = now_ns()
            asker.sendto(QUESTION.pack(token, number), to)
            told = _told(asker, token, number)
            ended = now_ns()
            if told is not None:  # it was told after the question and before the answer came
                answers += 1
                least, most = max(least, told - ended), min(most, told - begun)
    if not answers:
        return None
    if least > most:  # a clock was set meanwhile
        least, most = most, least
    return (least + most) // 2, (most - least + 1) // 2


def _told(asker: socket.socket, token: bytes, number: int) -> int | None:
    until = time.monotonic() + ANSWER_S
    while (left := until - time.monotonic()) > 0:
        asker.settimeout(left)
        try:
            data = asker.recv(ANSWER.size)
        except TimeoutError:
            return None
        if len(data) == ANSWER.size:
            of, which, told = ANSWER.unpack(data)
            if of == token and which == number:
                return int(told)
    return None


class Comparison:
    """Keeps a rank's journal told of how far its clock is from rank 0's, until ``close``."""

    def __init__(self, writer: JournalWriter, meeting: Meeting) -> None:
        self._writer, self._meeting = writer, meeting
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="firetrace-clock", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            found = self._find()
            while found is not None and found["boot_id"] != boot_id():
                self._measure(found)
                if self._stop.wait(AGAIN_S):
                    return
        except Exception as error:  # the store or the network: nothing is lost but the offset
            log.debug("comparing clocks: %s", error)

    def _find(self) -> dict[str, str] | None:
        until = time.monotonic() + LOOK_S
        while time.monotonic() < until:
            said = self._meeting.look(KEY)
            if said is not None:
                found: dict[str, str] = json.loads(said)
                return found
            if self._stop.wait(EVERY_S):
                return None
        return None

    def _measure(self, found: dict[str, str]) -> None:
        writer = self._writer
        address = self._meeting.host, int(found["port"])
        measured = ask(address, bytes.fromhex(found["token"]), writer.now_ns)
        if measured is not None and not self._stop.is_set():
            offset, error = measured
            writer.note(
                "offset", time=writer.now_ns(), offset=offset, error=error, to=found["seed"]
            )

    def close(self) -> None:
        """Compare no more."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(2 * ANSWER_S)


def keep_time(writer: JournalWriter, meeting: Meeting, world: World) -> Clock | Comparison | None:
    """Compare the clocks of all ranks with rank 0's; None where all are on one host.

    Raises:
        OSError, RuntimeError: this one cannot take part.
    """
    if world.one_host:
        return None
    if world.rank:
        return Comparison(writer, meeting)
    clock = Clock(writer.now_ns, meeting.host)
    said = {"boot_id": boot_id(), "port": clock.port, "token": clock.token.hex()}
    meeting.put(KEY, json.dumps({**said, "seed": writer.seed.hex()}))
    return clock
