"""How far apart the clocks of hosts are, and what comes of it: real UDP, skewed clocks."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is there

from firetrace.tracer import clock
from firetrace.tracer.aligned import aligned
from firetrace.tracer.clock import ANSWER, QUESTION, Clock, Comparison, ask, key_of
from firetrace.tracer.fuse import Fuse
from firetrace.tracer.journal import Header
from firetrace.tracer.meta import Meta, Offset
from firetrace.tracer.run import open_run
from firetrace.tracer.table import read_table
from firetrace.tracer.world import Meeting
from firetrace.tracer.writer import JournalWriter
from tests.test_many_ranks import PROGRAMS, TORCHRUN, launch, the_run

S, MS = 10**9, 10**6
HOST = "127.0.0.1"


def skewed(offset: int) -> Callable[[], int]:
    """A clock that is so much ahead."""
    return lambda: time.monotonic_ns() + offset


@contextmanager
def answering(offset: int = 0) -> Iterator[Clock]:
    """A rank 0 whose clock is so much ahead."""
    made = Clock(skewed(offset), HOST)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def proxy(port: int, way: Callable[[bytes, int], float | None]) -> Iterator[int]:
    """Carries questions there and answers back, after so many seconds (None: not at all).

    ``way`` is given the datagram and how many there were before it.
    """
    door, ended = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), threading.Event()
    door.bind((HOST, 0))
    door.settimeout(0.05)

    def carry() -> None:
        asker, count = ("", 0), 0
        while not ended.is_set():
            try:
                data, sender = door.recvfrom(100)
            except TimeoutError:
                continue
            asker = asker if sender[1] == port else sender
            seconds = way(data, count)
            count += 1
            if seconds is not None:
                ended.wait(seconds)
                door.sendto(data, asker if sender[1] == port else (HOST, port))

    thread = threading.Thread(target=carry)
    thread.start()
    try:
        yield int(door.getsockname()[1])
    finally:
        ended.set()
        thread.join(5)
        door.close()


@pytest.mark.parametrize("offset", [0, 1, -1, 3 * S, -(10**15), 10**18])
def test_an_offset_is_found(offset: int) -> None:
    """Within the bound, which is that of a loopback."""
    with answering(offset) as other:
        found = ask((HOST, other.port), other.token, skewed(0))
    assert found is not None
    assert abs(found[0] - offset) <= found[1] < 50 * MS


@pytest.mark.parametrize("there", [0.0, 0.02])
@pytest.mark.parametrize("back", [0.0, 0.02])
def test_a_way_that_takes_longer_in_one_direction(there: float, back: float) -> None:
    """The bound has room for the truth, however unequal the ways are."""

    def way(data: bytes, count: int) -> float:
        return there if len(data) == QUESTION.size else back

    with answering(5 * S) as other, proxy(other.port, way) as port:
        found = ask((HOST, port), other.token, skewed(0), questions=4)
    assert found is not None
    assert abs(found[0] - 5 * S) <= found[1]
    assert found[1] >= (there + back) * S / 2


def test_answers_that_are_lost_or_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come in time tell; a late one is not taken for the next one's."""
    monkeypatch.setattr(clock, "ANSWER_S", 0.05)

    def way(data: bytes, count: int) -> float | None:
        if len(data) == QUESTION.size:
            return None if count % 3 == 0 else 0.0
        return 0.07 if count % 5 == 0 else 0.0

    with answering(-7 * S) as other, proxy(other.port, way) as port:
        found = ask((HOST, port), other.token, skewed(0), questions=12)
    assert found is not None
    assert abs(found[0] + 7 * S) <= found[1]


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where nobody listens, nor to those who do not know the token."""
    monkeypatch.setattr(clock, "ANSWER_S", 0.02)
    with answering() as other:
        assert ask((HOST, other.port), bytes(16), skewed(0), questions=3) is None
        port = other.port
        assert ask((HOST, port), other.token, skewed(0), questions=100) is not None
    assert ask((HOST, port), other.token, skewed(0), questions=3) is None


def test_what_is_no_question_gets_no_answer() -> None:
    """Too short, too long, another token: silence; and it goes on answering."""
    with answering() as other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(0.1)
        for data in (b"", other.token, QUESTION.pack(other.token, 1) + b"x", os.urandom(24)):
            asker.sendto(data, (HOST, other.port))
            with pytest.raises(TimeoutError):
                asker.recv(100)
        asker.settimeout(30)
        asker.sendto(QUESTION.pack(other.token, 9), (HOST, other.port))
        token, number, _ = ANSWER.unpack(asker.recv(100))
        assert (token, number) == (other.token, 9)


@pytest.mark.parametrize("step", [2 * S, -2 * S])
def test_a_clock_that_was_set_meanwhile(step: int) -> None:
    """The bound holds both: what it was before, and after."""
    asked = [0]

    def now() -> int:
        asked[0] += 1
        return time.monotonic_ns() + (step if asked[0] > 8 else 0)

    with answering() as other:
        found = ask((HOST, other.port), other.token, now)
    assert found is not None
    for truth in (0, -step):
        assert abs(found[0] - truth) <= found[1]


def test_closed_it_leaves_no_thread_and_no_port() -> None:
    """Although that thread was waiting for a question."""
    with answering() as other:
        pass
    assert not [each for each in threading.enumerate() if each.name == "firetrace-clock"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind((HOST, other.port))


@pytest.mark.parametrize(
    ("host", "address", "expected"),
    [("node0", "127.0.1.1", True), ("node0", "10.0.0.1", False), ("localhost", "127.0.0.1", False),
     ("127.0.0.1", "127.0.0.1", False), ("", "::1", False), ("node0", "fe80::1%eth0", False)],
)  # fmt: skip
def test_a_host_that_is_itself_to_itself_only(host: str, address: str, expected: bool) -> None:
    """Debian calls a host 127.0.1.1, where the others would ask themselves."""
    assert clock._stands_for_itself(host, address) is expected


def test_a_rank_0_that_was_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart its notice is still there; the rank looks again until somebody answers."""
    monkeypatch.setattr(clock, "ANSWER_S", 0.01)
    monkeypatch.setattr(clock, "EVERY_S", 0.01)
    store = TCPStore(HOST, 0, None, True, wait_for_workers=False)
    fuse = Fuse(HOST, store.port, 5)
    meeting = Meeting(TCPStore(HOST, fuse.port, None, False), HOST, fuse)
    writer = JournalWriter(tmp_path / "rank1.1", {}, min_free_bytes=0)
    notice = {"boot_id": "another", "port": 9, "token": "00" * 16, "seed": "aa"}
    meeting.put(key_of(meeting), json.dumps(notice))
    comparison = Comparison(writer, meeting)
    time.sleep(0.3)
    with answering() as other:
        notice |= {"port": other.port, "token": other.token.hex(), "seed": "bb"}
        meeting.put(key_of(meeting), json.dumps(notice))
        meta = tmp_path / "rank1.1.meta.jsonl"
        until = time.monotonic() + 60
        while '"offset"' not in meta.read_text() and time.monotonic() < until:
            time.sleep(0.02)
    comparison.close()
    writer.close()
    offsets = read_table(writer.path).meta.offsets
    assert {each.to for each in offsets} == {"bb"}


# Aligned


def header(wall: int, monotonic: int, boot: str, seed: int) -> Header:
    return Header(2**18, wall, monotonic, bytes([seed]) * 16, 1, "host", boot)


def test_on_one_host_it_is_exact() -> None:
    """Two anchors of one monotonic clock, taken before and after the wall clock was set."""
    one, other = header(1000 * S, 10 * S, "b", 1), header(5000 * S, 12 * S, "b", 2)
    found = aligned(one, Meta(Path()), other)
    assert found.error_ns == 0
    assert found.shift([1000 * S, 0]).tolist() == [4998 * S, 0]
    assert aligned(one, Meta(Path()), one).shift(7) == 7


def test_between_hosts_it_is_in_proportion() -> None:
    """Between two measurements; before the first and after the last as they were."""
    meta = Meta(Path())
    base = 1_700_000_000 * S
    to = (b"\2" * 16).hex()
    meta.offsets += [Offset(base + 10 * S, 300, 40, to), Offset(base, 100, 50, to),
                     Offset(base + 5 * S, 10**15, 1, "ff")]  # fmt: skip
    found = aligned(header(1, 1, "b", 1), meta, header(1, 1, "c", 2))
    assert found.error_ns == 50
    assert found.offset_ns == 300
    times = np.array([base - S, base, base + 5 * S, base + 10 * S, base + 99 * S, 0])
    assert (found.shift(times) - times).tolist() == [100, 100, 200, 300, 300, 0]


def test_where_nothing_is_known_nothing_is_shifted() -> None:
    """Also where hosts do not say which boot it is."""
    for boots in (("b", "c"), ("", "")):
        found = aligned(header(1, 2, boots[0], 1), Meta(Path()), header(9, 1, boots[1], 2))
        assert found.error_ns is None
        assert found.shift([5, 0]).tolist() == [5, 0]


def test_two_hosts(own_folders: Path) -> None:
    """Two ranks, one of them elsewhere, an hour ahead: what they did together is so in the end."""
    done = launch(*TORCHRUN, PROGRAMS, "another_host")
    assert done.returncode == 0, done.stderr[-2000:]
    tables = [read_table(path) for path in open_run(the_run(own_folders)).journals]
    zero, one = sorted(tables, key=lambda table: table.path.name)
    assert one.meta.offsets
    found = aligned(one.header, one.meta, zero.header)
    assert found.error_ns is not None
    assert abs(found.offset_ns + 3600 * S) < 60 * S
    # All leave the barrier in an iteration together: it ends in each after it has begun in both.
    begun = [table.rows["start"][table.of_kind("iteration")] for table in (zero, one)]
    ended = [table.rows["end"][table.of_kind("iteration")] for table in (zero, one)]
    assert len(begun[0]) == len(begun[1]) == 100
    last_begun = np.maximum(begun[0], found.shift(begun[1]))
    first_ended = np.minimum(ended[0], found.shift(ended[1]))
    assert (last_begun - first_ended <= found.error_ns).all()
