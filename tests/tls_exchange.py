"""The built-in exchange behind real TLS sockets, for a LIVE session in this process or in another, and its bad days."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, urlsplit

import trustme

from lunobiz import Credentials, DemoExchange, HttpTransport
from sessions import AnyClock

# connect, one read, the whole answer: what hangs is given up soon, in real seconds
TIMEOUTS_S = (2.0, 0.25, 0.5)
HANG_S = 0.6
WILD = ("reset", "reset_after", "hang", "hang_after", "truncated", "truncated_after", "redirect", "redirect_after",
        "429", "500", "502_after", "garbage_after", "silence", "silence_after", "bad_certificate")  # fmt: skip
STATUS_BODIES = {"429": (429, b"Too Many Requests"), "500": (500, b"<h1>500</h1>"), "502": (502, b"<h1>502</h1>"),
                 "garbage": (200, b"\x00\xff{]")}  # fmt: skip
Watch = Callable[[str, str, str], None]


def nobody(phase: str, method: str, path: str) -> None:
    """Nobody watches."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # one packet for an answer, or each waits 40 ms for the other side's acknowledgement
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        """Any request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.outer.answer(self, body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, outer: TlsExchange) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.outer = outer

    def get_request(self) -> tuple[socket.socket, object]:
        raw, address = super().get_request()
        raw.settimeout(5.0)
        context = self.outer.context()
        try:
            return context.wrap_socket(raw, server_side=True), address
        except OSError:
            raw.close()
            raise

    def handle_error(self, request: object, client_address: object) -> None:
        """Callers that went away are what these tests are about."""


class TlsExchange:
    """Serves an exchange; `plan` says what goes wrong with a request, `watch` is told before and after each is served.

    Kinds are those of WILD: without `_after` the request is not carried out, with it only its answer is lost.
    """

    def __init__(self, folder: Path, exchange: DemoExchange, clock: AnyClock) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        authority, stranger = trustme.CA(), trustme.CA()
        self.ca_file = str(folder / "ca.pem")
        authority.cert_pem.write_to_path(self.ca_file)
        self.exchange, self.clock = exchange, clock
        self.plan: Callable[[str, str], str] = lambda method, path: ""
        self.watch: Watch = nobody
        self.seen: Counter[str] = Counter()
        self.done: Counter[str] = Counter()  # kinds of trouble that were served
        self.bodies: list[bytes] = []  # of orders that arrived
        self.stolen: list[str] = []  # requests that followed a redirect
        self.lock = threading.Lock()
        self._good, self._bad = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2))
        authority.issue_cert("localhost").configure_cert(self._good)
        stranger.issue_cert("localhost").configure_cert(self._bad)
        self._bad_left = 0
        self._server = _Server(self)
        self.url = f"https://localhost:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *trouble: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def transport(self) -> HttpTransport:
        """The program's own way to this exchange."""
        return HttpTransport(self.url, self.ca_file, TIMEOUTS_S)

    def spoil_certificates(self, connections: int) -> None:
        """The next connections are greeted with a certificate of somebody else."""
        self._bad_left = connections

    def context(self) -> ssl.SSLContext:
        """The certificate of the next connection."""
        if self._bad_left > 0:
            self._bad_left -= 1
            self.done["bad_certificate"] += 1
            return self._bad
        return self._good

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """Serve one request, or what the plan makes of it."""
        parts, method = urlsplit(handler.path), handler.command
        if parts.path.startswith("/stolen"):
            self.stolen.append(f"{method} {handler.headers.get('Authorization')} {body!r}")
        with self.lock:
            self.watch("before", method, parts.path)
            kind = self.plan(method, parts.path)
            if kind == "bad_certificate":  # for the connection that comes next
                self._bad_left, kind = 1, ""
            self.seen[f"{method} {parts.path}"] += 1
            if method == "POST" and parts.path == "/api/1/postorder":
                self.bodies.append(body)
            if kind:
                self.done[kind] += 1
            name, after, _ = kind.partition("_after")
            is_served = not name or bool(after)
            status, text, headers = 0, b"", {}
            if is_served:
                key = Credentials("some", "key") if handler.headers.get("Authorization") else None
                pairs = parse_qsl(body.decode() if method == "POST" else parts.query)
                status, headers, text = self.exchange.send(method, parts.path, pairs, key)
                headers = dict(headers)
            else:
                headers = dict(self.exchange._made(200, b"").headers)
            self.watch("after", method, parts.path)
            if name in ("hang", "silence"):
                self.clock.sleep(3.0)
        self._reply(handler, name, (status, text, headers))

    def _reply(self, handler: BaseHTTPRequestHandler, name: str, made: tuple[int, bytes, dict[str, str]]) -> None:
        status, text, headers = made
        if name == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._hang_up(handler)
            return
        if name == "hang":  # says nothing until nobody listens any more
            time.sleep(HANG_S)
            self._hang_up(handler)
            return
        if name == "silence":  # the connection ends in order, without a word
            self._hang_up(handler)
            return
        if name == "redirect":
            status, text, headers = 302, b"", {**headers, "location": f"{self.url}/stolen"}
        elif name in STATUS_BODIES:
            status, text = STATUS_BODIES[name]
        elif not status:
            status, text = 200, json.dumps({"orders": [{"order_id": "BX"}] * 9}).encode()
        handler.send_response_only(status)
        for header, value in headers.items():
            handler.send_header(header, value)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        if name == "truncated":
            handler.wfile.write(text[: len(text) // 2])
            self._hang_up(handler)
            return
        handler.wfile.write(text)

    def _hang_up(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.wfile.flush()
        with contextlib.suppress(OSError):
            handler.connection.close()
