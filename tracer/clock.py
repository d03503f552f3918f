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
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from firetrace.tracer.journal import boot_id
from firetrace.tracer.world import Meeting, World
from firetrace.tracer.writer import JournalWriter

log = logging.getLogger("firetrace")

KEY = "clock"
QUESTIONS, ANSWER_S = 16, 0.25
AGAIN_S = 600.0
#: How long a rank looks for a rank 0 that answers, and how often. After a restart it may find the
#: one that was before.
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
            self._socket.bind(("", 0) if _stands_for_itself(host, address[0]) else address)
        except OSError:  # behind an address that is translated
            self._socket.bind(("", 0))
        self.port = int(self._socket.getsockname()[1])
        self._closed = False
        self._thread = threading.Thread(target=self._answer, name="firetrace-clock", daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        with self._socket:
            while True:
                try:
                    data, address = self._socket.recvfrom(QUESTION.size + 1)
                except OSError:
                    return
                if self._closed:
                    return
                if len(data) == QUESTION.size and data[:TOKEN_BYTES] == self.token:
                    _, number = QUESTION.unpack(data)
                    with suppress(OSError):  # that one cannot be reached now
                        told = ANSWER.pack(self.token, number, self._now_ns())
                        self._socket.sendto(told, address)

    def close(self) -> None:
        """Answer no more."""
        self._closed = True
        with suppress(OSError):  # it is not connected, but who waits there is woken
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(2 * ANSWER_S)


def _stands_for_itself(host: str, address: Any) -> bool:
    """Whether a host calls itself so that others do not find it there, as 127.0.1.1 in Debian."""
    own = ip_address(str(address).partition("%")[0])
    return host not in ("", "localhost", address) and own.is_loopback


def ask(
    address: tuple[str, int], token: bytes, now_ns: Callable[[], int], questions: int = QUESTIONS
) -> tuple[int, int] | None:
    """What to add to ``now_ns()`` to have the other's time, and the bound of its error, in ns.

    None: nobody answers.

    Raises:
        OSError: it cannot be asked.
    """
    found: list[tuple[int, int]] = []  # at least and at most so much
    family, *_, to = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as asker:
        for number in range(questions):
            begun = now_ns()
            asker.sendto(QUESTION.pack(token, number), to)
            told = _told(asker, token, number)
            ended = now_ns()
            if told is not None:  # it was told after the question and before the answer came
                found.append((told - ended, told - begun))
    if not found:
        return None
    least, most = max(each for each, _ in found), min(each for _, each in found)
    if least > most:  # a clock was set meanwhile
        least, most = min(each for each, _ in found), max(each for _, each in found)
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
            while found is not None and not self._stop.wait(AGAIN_S):
                self._measure(found)
        except Exception as error:  # the store is gone: nothing is lost but the offset
            log.debug("comparing clocks: %s", error)

    def _find(self) -> dict[str, str] | None:
        """A rank 0 on another host, which has answered."""
        until = time.monotonic() + LOOK_S
        try:
            while time.monotonic() < until:
                said = self._meeting.look(key_of(self._meeting))
                found: dict[str, str] | None = None if said is None else json.loads(said)
                if found is not None and found["boot_id"] == boot_id():
                    return None
                if found is not None and self._measure(found):
                    return found
                if self._stop.wait(EVERY_S):
                    return None
            return None
        finally:
            self._meeting.close()

    def _measure(self, found: dict[str, str]) -> bool:
        """Whether rank 0 has answered."""
        writer = self._writer
        address = self._meeting.host, int(found["port"])
        try:
            measured = ask(address, bytes.fromhex(found["token"]), writer.now_ns)
        except OSError as unreachable:
            log.debug("comparing clocks: %s", unreachable)
            return False
        if measured is not None and not self._stop.is_set():
            offset, error = measured
            writer.note(
                "offset", time=writer.now_ns(), offset=offset, error=error, to=found["seed"]
            )
        return measured is not None

    def close(self) -> None:
        """Compare no more."""
        self._stop.set()
        self._meeting.close()
        if self._thread is not threading.current_thread():
            self._thread.join(2 * ANSWER_S)


def key_of(meeting: Meeting) -> str:
    """Where rank 0 says how to ask it."""
    return f"{KEY}/{meeting.number}"


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
    meeting.put(key_of(meeting), json.dumps({**said, "seed": writer.seed.hex()}))
    return clock
