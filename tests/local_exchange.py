"""An exchange on this computer: the recorded one behind real TLS, for whole runs of the program."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, urlsplit

import trustme

from lunobiz import Credentials, DemoExchange, Market, SystemClock
from recordings import Shape, market_rows

DAY_MS = 86_400_000


def recent_exchange(now_ms: int, days: int = 76) -> DemoExchange:
    """Two hourly markets recorded up to some hours from now."""
    first = (now_ms // DAY_MS - days + 1) * DAY_MS
    data = {
        "AAAZAR": market_rows(Shape(900.0, 2, 3000.0, 5), days, 3600, first),
        "BBBZAR": market_rows(Shape(30.0, 3, 90000.0, 6), days, 3600, first),
    }
    markets = {p: Market(p, p[:3], "ZAR", 3, 4, 0.001, 1e6, 0.001, 1e6, model_spread=0.002) for p in data}
    return DemoExchange.recorded(data, 3600, markets, SystemClock())


class LocalExchange:
    """Serves the recorded exchange; when broken it repeats the caller's own headers, as careless servers do."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        self.is_broken = False
        self.seen: list[tuple[str, str]] = []
        self._exchange = recent_exchange(SystemClock().now_ms())
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.daemon_threads = True
        self.url = f"https://localhost:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *trouble: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """The exchange's reply, or an echo of what came in."""
        parts, header = urlsplit(handler.path), handler.headers.get("Authorization", "")
        with self._lock:
            self.seen.append((parts.path, header))
            key = Credentials("some", "key") if header else None
            reply = self._exchange.send("GET", parts.path, parse_qsl(parts.query), key)
        status, body = reply.status, reply.body
        if self.is_broken:
            echo = {"error": f"no such key {header}", "error_code": "ErrInternal", "headers": dict(handler.headers)}
            status, body = (500, 502, 403)[len(self.seen) % 3], json.dumps(echo).encode()
        handler.send_response(status)
        for name, value in reply.headers.items():
            if name != "date":
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def wait_for(self, path: str, count: int, seconds: float) -> bool:
        """True once a path has been asked for so many times."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if sum(p == path for p, _ in self.seen) >= count:
                return True
            time.sleep(0.05)
        return False

    def saw_key(self, key_id: str, secret: str) -> bool:
        """True if the key came, so that its absence elsewhere means something."""
        text = base64.b64encode(f"{key_id}:{secret}".encode()).decode()
        return any(header == f"Basic {text}" for _, header in self.seen)
