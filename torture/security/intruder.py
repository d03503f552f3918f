"""Asks the page of ``firetrace open`` for its trace in every way but the right one.

Raw sockets: what an HTTP library would not send is what is tried.
"""

from __future__ import annotations

import os
import random
import socket
import string
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil

from firetrace.exporters.perfetto import TracePage
from torture.result import Result
from torture.settings import Settings

TRACE = b'[{"name": "the trace itself", "ph": "X", "ts": 1, "dur": 2, "pid": 3, "tid": 4}]'
SECRET = b"the secret beside it"
ANSWER_S = 10.0
METHODS = (
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "PROPFIND",
    "get",
    "G\0T",
)


def ask(port: int, request: bytes, seconds: float = ANSWER_S, close: bool = True) -> bytes:
    """Everything that is answered to these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as asked:
        if hasattr(socket, "TCP_QUICKACK"):  # else each answer waits 40 ms for our acknowledgement
            asked.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        try:
            asked.sendall(request)
            if close:
                asked.shutdown(socket.SHUT_WR)
            data = b""
            while more := asked.recv(1 << 16):
                data += more
        except TimeoutError:
            return data + b"(no end)"
        except OSError:  # it does not read all of what is too long
            return b""
        return data


def request(line: str, *headers: str) -> bytes:
    """A request with these lines."""
    return "\r\n".join([line, *headers, "", ""]).encode("utf-8", "surrogateescape")


def wrong_requests(page: TracePage, seed: int, many: int) -> Iterator[bytes]:
    """Requests that must not get the trace, nor anything beside it."""
    port, token, chance = page.port, page.token, random.Random(seed)
    own = f"Host: 127.0.0.1:{port}"
    right = f"GET /{token}/trace HTTP/1.1"
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", "",
                 f"127.0.0.1.:{port}", f"127.1:{port}", f"2130706433:{port}", f"[::1]:{port}",
                 f"0.0.0.0:{port}", f"localhost.evil.example:{port}", f"127.0.0.1:{port}@evil",
                 f"evil@127.0.0.1:{port}", f"127.0.0.1:{port},evil", f"LOCALHOST\t:{port}",
                 f"127.0.0.1:0{port}", f"127.0.0.1:{port}\0", "\udcff", "x" * 60_000):  # fmt: skip
        yield request(right, f"Host: {host}")
    yield request(right)
    yield request(right, own, own)
    yield request(right, own, "Host: evil.example")
    yield request(right, "X-Forwarded-Host: 127.0.0.1", f" {own}")
    yield request(f"GET /{token}/trace")  # HTTP/0.9
    yield request(f"GET http://evil.example/{token}/trace HTTP/1.1", own)
    tokens = ["", token[:-1], token + "x", token.swapcase(), token[::-1], "x" * len(token), "%00",
              token + "%00", token + "%2f", f"%{ord(token[0]):02x}{token[1:]}x", ".", "..", "*",
              f"{token[:9]}/{token[9:]}", "\udcff" * 9, "x" * 60_000, f"./{token}",
              f"//{token}x", "é"]  # fmt: skip
    tokens += ["".join(chance.choices(string.ascii_letters + "-_", k=43)) for _ in range(many)]
    for each in tokens:
        yield request(f"GET /{each}/trace HTTP/1.1", own)
    ways = ["../secret", "ui/../secret", "ui/%2e%2e/secret", "ui/..%2fsecret",
            "ui/%252e%252e/secret", "ui//etc/passwd", "ui/%2fetc/passwd", "/etc/passwd",
            "ui/link", "ui/up/secret", "ui/.",
            "trace/", "trace/../secret", "trace%00", "Trace", "trace.json", "secret", "ui/secret",
            "ui/..\\secret", "ui/..%5csecret", "ui/%00", "ui/%ff%fe", "ui/" + "a" * 5000, "ui/pipe",
            "ui/" + "../" * 50 + "etc/passwd", "ui/trace.json", "ui/folder", "%74race", "\0trace",
            "ui/....//secret", "ui/;/secret", "ui/%c0%ae%c0%ae/secret", "ui/~root",
            "ui/file:///etc/passwd"]  # fmt: skip
    for way in ways:
        yield request(f"GET /{token}/{way} HTTP/1.1", own)
    for method in METHODS:
        yield request(f"{method} /{token}/trace HTTP/1.1", own)
    for line in ("", " ", "GET", f"GET /{token}/trace HTTP/9.9",
                 f"GET /{token}/trace HTTP/1.1 x", f"GET /{token}/trace HTTP/x", "\0" * 900,
                 f"GET\t/{token}x/trace\tHTTP/1.1", "GET / HTTP/1.1" + "A" * 70_000,
                 "\x16\x03\x01"):  # fmt: skip
        yield request(line, own)
    yield request(right, *(f"X-{n}: y" for n in range(200)), own)  # more than a hundred headers
    for _ in range(many):
        yield chance.randbytes(chance.randrange(1, 3000))


def leaked(answer: bytes) -> str:
    """What of the answer nobody may get."""
    for what, text in (("the trace", TRACE[:40]), ("a secret", SECRET), ("passwd", b"root:")):
        if text in answer:
            return what
    return ""


def copy_of_ui(folder: Path) -> Path:
    """A copy of the UI with links that lead out of it, and what must not be found."""
    ui = folder / "ui"
    (ui / "folder").mkdir(parents=True)
    (ui / "index.html").write_text("the copy")
    (folder / "secret").write_bytes(SECRET)
    (ui / "link").symlink_to(folder / "secret")
    (ui / "up").symlink_to(folder)
    os.mkfifo(ui / "pipe")
    return ui


def hurt_page(settings: Settings) -> Iterator[Result]:
    """See the module."""
    folder = settings.workspace / "page"
    ui = copy_of_ui(folder)
    trace = folder / "trace.json"
    trace.write_bytes(TRACE)
    wrong = Result("security", "wrong requests to the page")
    right = Result("security", "the right request, meanwhile")
    slow = Result("security", "half requests that wait")
    listens = Result("security", "where it listens")
    with TracePage(trace, ui=ui) as page:
        good = request(f"GET /{page.token}/trace HTTP/1.1", f"Host: 127.0.0.1:{page.port}")

        def check_right(when: str) -> None:
            right.tried += 1
            began, answer = time.monotonic(), ask(page.port, good)
            if not answer.endswith(TRACE) or b" 200 " not in answer[:20]:
                right.failures.append(f"{when}: {answer[:200]!r}")
            elif time.monotonic() - began > ANSWER_S / 2:
                right.failures.append(f"{when}: only after {time.monotonic() - began:.1f} s")

        check_right("at first")
        for each in wrong_requests(page, settings.seed, 60 if settings.short else 600):
            wrong.tried += 1
            answer = ask(page.port, each)
            if what := leaked(answer):
                wrong.failures.append(f"{what} for {each[:120]!r}")
            elif page.token.encode() in answer:
                wrong.failures.append(f"the token for {each[:120]!r}")
            elif b"(no end)" in answer:
                wrong.failures.append(f"no answer within {ANSWER_S:.0f} s to {each[:120]!r}")
            elif b" 500 " in answer[:20] or b"Traceback" in answer:
                wrong.failures.append(f"it failed at {each[:120]!r}")
        check_right("after all of these")
        with ExitStack() as held:
            for at in range(40 if settings.short else 400):
                half = held.enter_context(socket.create_connection(("127.0.0.1", page.port)))
                half.sendall(good[: at % len(good)])
                slow.tried += 1
            check_right("beside half requests")
        for address in listening():
            listens.tried += 1
            if address != ("127.0.0.1", page.port):
                listens.failures.append(f"{address}")
        if not listens.tried:
            listens.failures.append("it listens nowhere")
    right.failures += [] if socket_closed(page.port) else ["it listens after its end"]
    yield from (wrong, right, slow, listens)


def listening() -> list[tuple[str, int]]:
    """The addresses at which this process listens."""
    found = psutil.Process().net_connections("inet")
    return [(each.laddr.ip, each.laddr.port) for each in found if each.status == "LISTEN"]


def socket_closed(port: int) -> bool:
    """Whether nobody listens there any more."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False
