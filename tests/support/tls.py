"""A line that ends TLS in front of a plain server, with a certificate made for the occasion."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from typing_extensions import Self


class TlsLine:
    """Listens with TLS on loopback and passes everything on to a port, while the block lasts.

    ``authority`` is the file with the certificate that clients have to trust.
    """

    def __init__(self, port: int, folder: Path) -> None:
        authority = trustme.CA()
        self.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(self.authority)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        context.set_alpn_protocols(["h2", "http/1.1"])

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                try:
                    client = context.wrap_socket(self.request, server_side=True)
                except (ssl.SSLError, OSError):  # a client that does not trust us
                    return
                with client, socket.create_connection(("127.0.0.1", port)) as server:
                    back = threading.Thread(target=_pass, args=(server, client), daemon=True)
                    back.start()
                    _pass(client, server)
                    back.join(5)

        self._server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"https://localhost:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _pass(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
