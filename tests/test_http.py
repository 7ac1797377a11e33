"""HTTP against real TLS servers on this machine, the limiter and the retries on a clock of our own."""

from __future__ import annotations

import base64
import gzip
import random
import socket
import ssl
import struct
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

import lunobiz
from fakes import FakeClock
from lunobiz import (
    Answer,
    Credentials,
    ExchangeDown,
    ExchangeRefused,
    HttpTransport,
    LunoClient,
    LunoOrders,
    NotSent,
    OrderKind,
    RateLimit,
    RateLimited,
    SentOrder,
    SettingsError,
    Side,
    SystemClock,
)

KEY = Credentials("canaryid12345", "S3cr3t-canary_0123456789abcdefghijklmnopQRS")
QUICK = (1.0, 0.5, 1.0)


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says and remembers what came in."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        self.server.seen.append((self.command, self.path, dict(self.headers), self.rfile.read(length)))
        self.server.respond(self)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        """A plain, well-formed answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


Respond = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    """An https server on the loopback device."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, context: ssl.SSLContext, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond = respond
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.connections = 0
        self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://localhost:{self.server_port}"

    def get_request(self) -> tuple[socket.socket, object]:
        found = super().get_request()
        self.connections += 1
        return found

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def context_of(leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    return context


@contextmanager
def serving(context: ssl.SSLContext, respond: Respond) -> Iterator[Server]:
    server = Server(context, respond)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


Serve = Callable[[Respond], Server]


@pytest.fixture
def serve(authority: trustme.CA) -> Iterator[Serve]:
    """Starts servers with a good certificate and stops them afterwards."""
    with ExitStack() as running:
        yield lambda respond: running.enter_context(
            serving(context_of(authority.issue_cert("localhost")), respond)
        )


def hello(handler: Handler) -> None:
    handler.answer(b'{"ok": true}', X_Mixed_Case="yes")


def all_text(error: BaseException) -> str:
    """All that a log, a window or a crash file could show of an error and of what hangs on to it."""
    parts = [str(error), repr(error), "".join(traceback.format_exception(error, chain=True))]
    attached = (e for e in (error.__cause__, error.__context__) if e is not None)
    return "\n".join([*parts, *(all_text(e) for e in attached)])


def secrets_of(key: Credentials) -> list[str]:
    both = f"{key.key_id}:{key.secret}"
    half = len(key.secret) // 2
    packed = base64.b64encode(both.encode()).decode()
    encoded = [packed, base64.urlsafe_b64encode(both.encode()).decode(), quote(both), quote_plus(packed)]
    return [key.key_id, key.secret, key.secret[:half], key.secret[half:], packed[:30], packed[-30:], *encoded]


# ---- what a good call is ---------------------------------------------------------------------------------


def test_a_get_sends_its_parameters_in_the_query_and_the_key_as_basic(serve: Serve, ca_file: str) -> None:
    server = serve(hello)
    transport = HttpTransport(server.url, ca_file)
    reply = transport.send("GET", "/api/1/tickers", [("pair", "XBTZAR"), ("pair", "ETH ZAR")], KEY)
    assert (reply.status, reply.body, reply.headers["x-mixed-case"]) == (200, b'{"ok": true}', "yes")
    method, path, headers, body = server.seen[0]
    assert (method, path, body) == ("GET", "/api/1/tickers?pair=XBTZAR&pair=ETH+ZAR", b"")
    assert (
        base64.b64decode(headers["Authorization"].removeprefix("Basic ")).decode()
        == f"{KEY.key_id}:{KEY.secret}"
    )


def test_a_call_without_a_key_shows_none(serve: Serve, ca_file: str) -> None:
    server = serve(hello)
    transport = HttpTransport(server.url, ca_file)
    transport.send("GET", "/a", key=KEY)
    transport.send("GET", "/b")
    transport.send("GET", "/c", key=Credentials())
    assert ["Authorization" in headers for _, _, headers, _ in server.seen] == [True, False, False]


def test_a_post_is_a_form_and_goes_once_on_a_fresh_connection(serve: Serve, ca_file: str) -> None:
    server = serve(hello)
    transport = HttpTransport(server.url, ca_file)
    transport.send("GET", "/a")
    transport.send("GET", "/b")
    assert server.connections == 1, "reads share a connection"
    transport.send("POST", "/api/1/stoporder", [("order_id", "BX 1"), ("x", "é")], KEY)
    assert server.connections == 2
    method, path, headers, body = server.seen[2]
    assert (method, path, body) == ("POST", "/api/1/stoporder", b"order_id=BX+1&x=%C3%A9")
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"


def test_a_post_is_never_repeated(serve: Serve, ca_file: str) -> None:
    def hang_up(handler: Handler) -> None:
        handler.close_connection = True
        handler.connection.close()

    server = serve(hang_up)
    with pytest.raises(ExchangeDown):
        HttpTransport(server.url, ca_file).send("POST", "/api/1/stoporder", [("order_id", "BX1")], KEY)
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 409, 429, 500, 502, 503])
def test_statuses_are_for_the_caller_to_judge(serve: Serve, ca_file: str, status: int) -> None:
    def respond(handler: Handler) -> None:
        handler.answer(b"", status, Retry_After="7")

    reply = HttpTransport(serve(respond).url, ca_file).send("GET", "/a")
    assert (reply.status, reply.headers["retry-after"]) == (status, "7")


def test_gzip_is_unpacked(serve: Serve, ca_file: str) -> None:
    text = b'{"candles": [' + b"1," * 50_000 + b"1]}"
    server = serve(lambda h: h.answer(gzip.compress(text), Content_Encoding="gzip"))
    transport = HttpTransport(server.url, ca_file)
    assert transport.send("GET", "/a").body == transport.send("GET", "/b").body == text
    assert server.connections == 1


def test_close_lets_go_and_a_later_call_still_works(serve: Serve, ca_file: str) -> None:
    server = serve(hello)
    transport = HttpTransport(server.url, ca_file)
    transport.send("GET", "/a")
    transport.close()
    transport.send("GET", "/b")
    assert server.connections == 2


# ---- where it may go -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://api.luno.com",
        "HTTP://api.luno.com",
        "api.luno.com",
        "",
        "https://",
        "https://user:pw@api.luno.com",
        "https://api.luno.com/",
        "https://api.luno.com/path",
        "https://api.luno.com?x=1",
        "https://api.luno.com#x",
        "https://api.luno.com:port",
        "https://api.luno.com\n",
        "https://\uff41pi.luno.com",
        "ftp://api.luno.com",
    ],
)
def test_only_a_plain_https_address_is_taken(url: str) -> None:
    with pytest.raises(SettingsError, match="LUNOBIZ_EXCHANGE_URL"):
        HttpTransport(url)


@pytest.mark.parametrize("url", ["https://api.luno.com", "https://API.luno.com:443", "https://api.luno.com."])
def test_luno_itself_takes_no_foreign_authority(url: str, ca_file: str) -> None:
    HttpTransport(url)
    with pytest.raises(SettingsError, match="LUNOBIZ_EXCHANGE_CA"):
        HttpTransport(url, ca_file)


def test_an_authority_that_cannot_be_read_is_a_wrong_setting(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("not a certificate")
    for path in (str(junk), str(tmp_path / "absent.pem"), str(tmp_path)):
        with pytest.raises(SettingsError, match="LUNOBIZ_EXCHANGE_CA"):
            HttpTransport("https://localhost:1", path)


@pytest.mark.parametrize(
    "path",
    [
        "@evil.com/x",
        "",
        "api/1",
        "//evil.com/x",
        "/a?b=1",
        "/a#b",
        "/a b",
        "/a\r\nX: 1",
        "/a\n",
        "/é",
        ":1/x",
    ],
)
def test_no_path_leads_to_another_host(path: str) -> None:
    with pytest.raises(ExchangeRefused, match="bad-request"):
        HttpTransport("https://localhost:1").send("GET", path, key=KEY)


@pytest.mark.parametrize("method", ["get", "PUT", "DELETE", "GET\r\n", ""])
def test_only_two_methods_are_known(method: str) -> None:
    with pytest.raises(ExchangeRefused, match="bad-request"):
        HttpTransport("https://localhost:1").send(method, "/a")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_redirect_is_not_followed(serve: Serve, ca_file: str, status: int, method: str) -> None:
    thief = serve(hello)
    first = serve(lambda h: h.answer(b"moved", status, Location=f"{thief.url}/api"))
    reply = HttpTransport(first.url, ca_file).send(method, "/a", [("x", "1")], KEY)
    assert (reply.status, len(first.seen)) == (status, 1)
    assert thief.connections == 0 and not thief.seen


def test_no_cookie_is_kept(serve: Serve, ca_file: str) -> None:
    server = serve(lambda h: h.answer(b"{}", Set_Cookie="track=1; Path=/"))
    transport = HttpTransport(server.url, ca_file)
    transport.send("GET", "/a")
    transport.send("GET", "/b")
    assert "Cookie" not in server.seen[1][2]


# ---- whom it trusts --------------------------------------------------------------------------------------


def refused(url: str, ca_file: str = "") -> str:
    """The words of the refusal; it must be about the certificate and hold no secret."""
    with pytest.raises(ExchangeDown) as caught:
        HttpTransport(url, ca_file, QUICK).send("GET", "/a", key=KEY)
    text = all_text(caught.value)
    assert not [secret for secret in secrets_of(KEY) if secret in text]
    assert "localhost" not in str(caught.value)
    return str(caught.value)


def bad_context(authority: trustme.CA, kind: str) -> ssl.SSLContext:
    past = datetime.now(UTC) - timedelta(days=2)
    leaves: dict[str, Callable[[], trustme.LeafCert]] = {
        "expired": lambda: authority.issue_cert(
            "localhost", not_before=past - timedelta(days=9), not_after=past
        ),
        "wrong host": lambda: authority.issue_cert("api.luno.com"),
        "unknown authority": lambda: trustme.CA().issue_cert("localhost"),
    }
    return context_of(leaves[kind]())


@pytest.mark.parametrize("kind", ["expired", "wrong host", "unknown authority"])
def test_a_bad_certificate_is_refused_before_anything_is_sent(
    authority: trustme.CA, ca_file: str, kind: str
) -> None:
    with serving(bad_context(authority, kind), hello) as server:
        assert "certificate" in refused(server.url, ca_file)
        assert not server.seen


def test_a_test_authority_is_trusted_alone_and_only_when_named(serve: Serve) -> None:
    assert "certificate" in refused(serve(hello).url)


def test_a_named_authority_replaces_the_usual_ones(
    authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    """The usual bundle, here another authority's, must not be trusted beside the one named."""
    usual = trustme.CA()
    bundle = tmp_path / "usual.pem"
    usual.cert_pem.write_to_path(str(bundle))
    with (
        pytest.MonkeyPatch.context() as patch,
        serving(context_of(usual.issue_cert("localhost")), hello) as server,
    ):
        patch.setattr("requests.utils.DEFAULT_CA_BUNDLE_PATH", str(bundle))
        patch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(bundle))
        assert HttpTransport(server.url).send("GET", "/a").status == 200
        assert "certificate" in refused(server.url, ca_file)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_old_tls_is_refused(authority: trustme.CA, ca_file: str) -> None:
    context = context_of(authority.issue_cert("localhost"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with serving(context, hello) as server:
        assert "secure connection" in refused(server.url, ca_file)
        assert not server.seen


def test_the_environment_has_no_say(
    serve: Serve, ca_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keylog, netrc = tmp_path / "keys.log", tmp_path / "netrc"
    netrc.write_text("machine localhost login thief password thief\n")
    netrc.chmod(0o600)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("SSLKEYLOGFILE", str(keylog))
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    server = serve(hello)
    assert HttpTransport(server.url, ca_file).send("GET", "/a").status == 200
    assert "Authorization" not in server.seen[0][2]
    assert not keylog.exists()
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, ca_file)
    assert "certificate" in refused(server.url)


# ---- how long and how much -------------------------------------------------------------------------------


def test_a_gzip_bomb_is_dropped_within_little_memory(serve: Serve, ca_file: str) -> None:
    bomb = gzip.compress(bytes(200 * 1024 * 1024), 6)
    server = serve(lambda h: h.answer(bomb, Content_Encoding="gzip"))
    twice = serve(lambda h: h.answer(gzip.compress(bomb), Content_Encoding="gzip, gzip"))
    moved = serve(lambda h: h.answer(bomb, 302, Content_Encoding="gzip", Location="/x"))
    for url in (server.url, twice.url, moved.url):
        transport = HttpTransport(url, ca_file)
        tracemalloc.start()
        with pytest.raises(ExchangeDown, match="too large"):
            transport.send("GET", "/a")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 24 * 1024 * 1024


def test_the_cap_is_exact(serve: Serve, ca_file: str) -> None:
    server = serve(lambda h: h.answer(bytes(lunobiz.BODY_CAP + (h.path == "/more"))))
    transport = HttpTransport(server.url, ca_file)
    assert len(transport.send("GET", "/just").body) == 2 * 1024 * 1024
    with pytest.raises(ExchangeDown, match="too large"):
        transport.send("GET", "/more")
    assert len(transport.send("GET", "/just").body) == 2 * 1024 * 1024, "the connection recovers"


def drip(handler: Handler, head: bytes, drop: bytes) -> None:
    with suppress(OSError):
        handler.wfile.write(head)
        for _ in range(100):
            handler.wfile.write(drop)
            time.sleep(0.1)
    handler.close_connection = True


OK = b"HTTP/1.1 200 OK\r\n"
DRIPS = {
    "body": (OK + b"Content-Length: 1000\r\n\r\n", b"x"),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "until closed": (OK + b"\r\n", b"x"),
    "header": (OK + b"X-Slow: ", b"x"),
    "headers": (OK, b"X-Slow: 1\r\n"),
    "status line": (b"HTTP/1.1 ", b"2"),
    "empty gzip": (OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"")),
}


@pytest.mark.parametrize("kind", DRIPS)
def test_a_slow_drip_ends_at_the_deadline(serve: Serve, ca_file: str, kind: str) -> None:
    """Each drop comes within the read time-out, so only a deadline over the whole answer helps."""
    server = serve(lambda h: drip(h, *DRIPS[kind]))
    started = time.monotonic()
    with pytest.raises(ExchangeDown, match="in time"):
        HttpTransport(server.url, ca_file, (1.0, 0.5, 0.8)).send("GET", "/a", key=KEY)
    assert time.monotonic() - started < 1.5


def test_a_silent_server_ends_at_the_read_timeout(serve: Serve, ca_file: str) -> None:
    server = serve(lambda h: time.sleep(1.2))
    started = time.monotonic()
    with pytest.raises(ExchangeDown, match="in time"):
        HttpTransport(server.url, ca_file, (1.0, 0.3, 5.0)).send("GET", "/a", key=KEY)
    assert time.monotonic() - started < 1.0


def test_a_server_that_never_greets_ends_at_the_connect_timeout(ca_file: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}"
        started = time.monotonic()
        assert "in time" in refused(url, ca_file)
        assert time.monotonic() - started < 2.5


def test_nobody_listens(ca_file: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}"
    assert "cannot be reached" in refused(url, ca_file)
    assert "cannot be reached" in refused("https://no-such-host.invalid", ca_file)


WRECKS = {
    "short body": OK + b"Content-Length: 100\r\n\r\n{}",
    "short chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{}",
    "bad chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "no answer": b"",
    "half a status": b"HTTP/1.1 2",
    "no http": b"SSH-2.0-OpenSSH\r\n\r\n",
    "bad status": b"HTTP/1.1 abc OK\r\n\r\n",
    "long header": OK + b"X: " + b"x" * 70_000 + b"\r\n\r\n",
    "many headers": OK + b"X: 1\r\n" * 200 + b"\r\n",
    "not gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\nplaintext",
}


@pytest.mark.parametrize("kind", WRECKS)
def test_a_broken_answer_is_no_answer(serve: Serve, ca_file: str, kind: str) -> None:
    def respond(handler: Handler) -> None:
        handler.wfile.write(WRECKS[kind])
        handler.close_connection = True

    assert refused(serve(respond).url, ca_file)


def test_an_answer_that_repeats_the_key_stays_out_of_sight(serve: Serve, ca_file: str) -> None:
    def respond(handler: Handler) -> None:
        handler.answer(
            handler.headers["Authorization"].encode(), 500, X_Echo=handler.headers["Authorization"]
        )

    transport = HttpTransport(serve(respond).url, ca_file)
    reply = transport.send("GET", "/a", key=KEY)
    assert repr(reply) == f"Reply(500, {len(reply.body)} bytes)"
    assert not [secret for secret in secrets_of(KEY) if secret in repr((reply, transport, KEY))]


@pytest.mark.parametrize("secret", ["with\r\nX-Evil: 1", "schlüssel", "\udcff\udcfe", "a" * 5000])
def test_a_strange_secret_neither_splits_a_header_nor_shows(serve: Serve, ca_file: str, secret: str) -> None:
    server = serve(hello)
    key = Credentials("canaryid12345", secret)
    try:
        HttpTransport(server.url, ca_file).send("GET", "/a", key=key)
    except ExchangeDown as error:
        assert secret not in all_text(error) and "\\udcff" not in all_text(error)
    assert all("X-Evil" not in headers for _, _, headers, _ in server.seen)


# ---- the limiter -----------------------------------------------------------------------------------------

CALLS = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 70), st.booleans()), min_size=1, max_size=30)


@settings(max_examples=150)
@given(CALLS, st.sampled_from([(240, 40), (60, 10), (12, 0), (300, 200)]))
def test_no_minute_sees_more_calls_than_allowed(
    calls: list[tuple[float, int, bool]], figures: tuple[int, int]
) -> None:
    clock = FakeClock()
    limit = RateLimit(clock, *figures)
    times: list[float] = []
    for pause, count, is_urgent in calls:
        clock.advance(pause)
        for _ in range(count):
            with suppress(RateLimited):
                limit.take(is_urgent)
                times.append(clock.mono_s())
    for i, start in enumerate(times):
        assert sum(1 for t in times[i:] if t < start + 60 - 1e-6) <= figures[0]


def test_a_hungry_caller_gets_three_a_second_and_never_the_reserve() -> None:
    clock = FakeClock()
    limit = RateLimit(clock)
    assert limit.left() == 60
    waits = [limit.take() for _ in range(200)]
    assert waits[:20] == [0.0] * 20
    assert all(wait == pytest.approx(1 / 3, abs=1e-6) for wait in waits[21:])
    assert limit.left() == 40
    assert [limit.take(is_urgent=True) for _ in range(40)] == [0.0] * 40
    assert limit.take(is_urgent=True) == pytest.approx(1 / 3, abs=1e-6)


def test_the_limiter_fills_up_again() -> None:
    clock = FakeClock()
    limit = RateLimit(clock)
    for _ in range(60):
        limit.take(is_urgent=True)
    assert limit.left() == 0
    clock.advance(10)
    assert limit.left() == 30
    clock.advance(1000)
    assert limit.left() == 60


def test_after_a_429_the_urgent_go_first_and_nobody_goes_early() -> None:
    clock = FakeClock()
    limit = RateLimit(clock)
    limit.empty(30.0)
    assert limit.left() == 0
    with pytest.raises(RateLimited) as caught:
        limit.take(is_urgent=True)
    assert caught.value.wait_s == pytest.approx(30 + 1 / 3)
    assert not clock.sleeps, "a long wait is the caller's"
    clock.advance(29)
    assert limit.take(is_urgent=True) == pytest.approx(1 + 1 / 3)
    with pytest.raises(RateLimited) as caught:
        limit.take()
    assert caught.value.wait_s == pytest.approx(41 / 3)
    limit.empty(1.0)
    limit.empty(0.0)
    with pytest.raises(RateLimited):
        limit.take()


def test_a_reserve_that_starves_the_rest_is_refused() -> None:
    for figures in ((10, 9), (10, 10), (10, -1)):
        with pytest.raises(ValueError, match="reserve"):
            RateLimit(FakeClock(), *figures)


# ---- retries ---------------------------------------------------------------------------------------------


class Attempts:
    """A call that fails as the list says and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def down(count: int) -> list[ExchangeDown]:
    return [ExchangeDown("down") for _ in range(count)]


@given(st.integers(0, 10**9))
def test_pauses_are_random_below_a_doubling_bound(seed: int) -> None:
    clock, call = FakeClock(), Attempts(*down(8))
    assert lunobiz.with_retries(call, clock, random.Random(seed), attempts=9, cap_s=5.0) == "done"
    bounds = [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0]
    assert all(0 <= pause <= bound for pause, bound in zip(clock.sleeps, bounds, strict=True))


def test_pauses_fill_the_whole_range() -> None:
    pauses = []
    for seed in range(300):
        clock = FakeClock()
        lunobiz.with_retries(Attempts(*down(1)), clock, random.Random(seed))
        pauses += clock.sleeps
    assert min(pauses) < 0.02 and max(pauses) > 0.48 and sum(pauses) / 300 == pytest.approx(0.25, abs=0.03)


def test_it_gives_up_after_four() -> None:
    clock, call = FakeClock(), Attempts(*down(9))
    with pytest.raises(ExchangeDown):
        lunobiz.with_retries(call, clock, random.Random(1))
    assert (call.count, len(clock.sleeps)) == (4, 3)


def test_a_refusal_is_not_tried_again() -> None:
    clock, call = FakeClock(), Attempts(ExchangeRefused("ErrX", "no"))
    with pytest.raises(ExchangeRefused):
        lunobiz.with_retries(call, clock, random.Random(1))
    assert (call.count, clock.sleeps) == (1, [])


def test_an_asked_wait_is_kept_and_a_long_one_handed_on() -> None:
    clock, call = FakeClock(), Attempts(RateLimited(7.0))
    assert lunobiz.with_retries(call, clock, random.Random(1)) == "done"
    assert 7.0 <= clock.sleeps[0] <= 7.5
    clock, call = FakeClock(), Attempts(RateLimited(21.0))
    with pytest.raises(RateLimited):
        lunobiz.with_retries(call, clock, random.Random(1))
    assert (call.count, clock.sleeps) == (1, [])


# ---- headers that tell times -----------------------------------------------------------------------------

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
DATE_MS = 784_111_777_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DATE, DATE_MS),
        ("", None),
        ("yesterday", None),
        ("Sun, 06 Nov 1994", None),
        ("Sun, 99 Nov 1994 08:49:37 GMT", None),
    ],
)
def test_http_dates(text: str, expected: int | None) -> None:
    assert lunobiz.http_date_ms(text) == expected


@pytest.mark.parametrize(
    ("headers", "now_ms", "expected"),
    [
        ({"retry-after": "7"}, 0, 7.0),
        ({"retry-after": " 0 "}, 0, 0.0),
        ({"retry-after": "301"}, 0, 300.0),
        ({"retry-after": "999999999"}, 0, 300.0),
        ({"retry-after": "-5"}, 0, None),
        ({"retry-after": "7.5"}, 0, None),
        ({"retry-after": "\u0667"}, 0, None),
        ({"retry-after": "Infinity"}, 0, None),
        ({"retry-after": DATE}, DATE_MS - 9_000, 9.0),
        ({"retry-after": DATE}, DATE_MS + 9_000, 0.0),
        ({"retry-after": DATE}, 0, 300.0),
        ({"retry-after": DATE, "date": "Sun, 06 Nov 1994 08:49:30 GMT"}, 0, 7.0),
        ({}, 0, None),
    ],
)
def test_retry_after(headers: dict[str, str], now_ms: int, expected: float | None) -> None:
    assert lunobiz.retry_after_s(headers, now_ms) == expected


@settings(max_examples=300)
@given(
    st.text(max_size=60)
    | st.from_regex(r"\w{3}, \d{1,4} (Jan|Feb|Xyz) \d{1,9} \d+:\d+:\d+ (GMT|[+-]\d{1,9})")
)
def test_no_header_is_a_surprise(text: str) -> None:
    wait = lunobiz.retry_after_s({"retry-after": text, "date": text}, 0)
    assert wait is None or 0 <= wait <= 300


# ---- what is certain not to have left --------------------------------------------------------------------

ORDER = SentOrder("LB1-000001", "LB1-3fa9c2d1-000001", "XBTZAR", Side.BUY, OrderKind.ENTRY, Decimal("1900000"),
                  Decimal("0.002000"), Decimal("0"), 1_764_000_000_000)


def outage(url: str, ca_file: str, method: str = "POST") -> ExchangeDown:
    """How a request ends that must end badly."""
    line = HttpTransport(url, ca_file, QUICK)
    with pytest.raises(ExchangeDown) as caught:
        line.send(method, "/api/1/postorder", [("pair", "XBTZAR")], KEY)
    line.close()
    return caught.value


def answer_of(url: str, ca_file: str) -> Answer:
    """What LUNO makes of the same for an order."""
    clock = SystemClock()
    line = HttpTransport(url, ca_file, QUICK)
    client = LunoClient(line, KEY, RateLimit(clock), clock, random.Random(1))
    found = LunoOrders(client).post(ORDER).answer
    line.close()
    return found


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"https://localhost:{listener.getsockname()[1]}"


def test_a_refused_connection_has_sent_nothing(ca_file: str) -> None:
    assert type(outage(closed_port(), ca_file)) is NotSent
    assert answer_of(closed_port(), ca_file) is Answer.NOT_SENT
    assert type(outage("https://no-such-host.invalid", ca_file)) is NotSent


def test_of_a_read_nobody_needs_to_know(ca_file: str) -> None:
    assert type(outage(closed_port(), ca_file, "GET")) is ExchangeDown


def test_a_connection_that_times_out_has_sent_nothing(ca_file: str) -> None:
    """A full queue of connections lets no further one in."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        assert type(outage(url, ca_file)) is NotSent
        assert answer_of(url, ca_file) is Answer.NOT_SENT


def reset(connection: socket.socket) -> None:
    """Hang up without a farewell."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("kind", ["reset soon", "close at once", "reset in the greeting", "silent"])
def test_trouble_after_the_connection_stood_is_not_certain(ca_file: str, kind: str) -> None:
    """TLS had not begun in earnest, but a connection stood: the strict reading calls it unknown."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as held:
        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                if kind == "reset in the greeting":
                    connection.recv(1)
                if kind == "reset soon":
                    time.sleep(0.05)  # or the connection itself would fail, and nothing would have left
                if kind == "close at once":
                    connection.close()
                elif kind == "silent":
                    held.callback(connection.close)
                else:
                    reset(connection)

        threading.Thread(target=accept, daemon=True).start()
        url = f"https://localhost:{listener.getsockname()[1]}"
        assert type(outage(url, ca_file)) is ExchangeDown
        assert answer_of(url, ca_file) is Answer.UNKNOWN
        listener.shutdown(socket.SHUT_RDWR)


def hang_up(handler: Handler, head: bytes = b"") -> None:
    """Break the line, perhaps after a beginning of an answer."""
    handler.wfile.write(head)
    handler.wfile.flush()
    handler.close_connection = True
    reset(handler.connection)


ENDS: dict[str, Respond] = {
    "reset before an answer": hang_up,
    "reset in the status": lambda h: hang_up(h, b"HTTP/1.1 20"),
    "reset in the body": lambda h: hang_up(h, OK + b'Content-Length: 100\r\n\r\n{"order_id": "BX1'),
    "truncated": lambda h: drip_once(h, OK + b'Content-Length: 100\r\nConnection: close\r\n\r\n{"order_id": "BX1'),
    "hang": lambda h: time.sleep(0.8),
    "hang after the head": lambda h: (h.wfile.write(OK + b"Content-Length: 100\r\n\r\n"), time.sleep(0.8))[1],
}


def drip_once(handler: Handler, text: bytes) -> None:
    """Say this and close as if all were well."""
    handler.wfile.write(text)
    handler.close_connection = True


@pytest.mark.parametrize("kind", ENDS)
def test_once_a_request_was_heard_it_is_never_not_sent(serve: Serve, ca_file: str, kind: str) -> None:
    server = serve(ENDS[kind])
    assert type(outage(server.url, ca_file)) is ExchangeDown
    assert [seen[0] for seen in server.seen] == ["POST"]  # once, whatever became of it
    assert answer_of(server.url, ca_file) is Answer.UNKNOWN
    assert len(server.seen) == 2


def test_an_answer_that_breaks_off_in_its_head_is_unknown(serve: Serve, ca_file: str) -> None:
    """It may look like a 200 without a body, which is not the number of an order."""
    server = serve(lambda h: hang_up(h, OK + b"Content-Le"))
    assert answer_of(server.url, ca_file) is Answer.UNKNOWN and len(server.seen) == 1


def test_a_server_that_went_away_between_two_orders_was_sent_nothing(authority: trustme.CA, ca_file: str) -> None:
    """The second POST does not go down the first one's connection, where it might be lost."""
    with serving(context_of(authority.issue_cert("localhost")), hello) as server:
        line = HttpTransport(server.url, ca_file, QUICK)
        assert line.send("POST", "/api/1/postorder", [("pair", "XBTZAR")], KEY).status == 200
    with pytest.raises(NotSent):
        line.send("POST", "/api/1/postorder", [("pair", "XBTZAR")], KEY)
    line.close()


def test_an_order_arrives_byte_by_byte_as_it_was_written(serve: Serve, ca_file: str) -> None:
    server = serve(lambda h: h.answer(b'{"order_id": "BXMC2CJ7HNB88U4"}'))
    assert answer_of(server.url, ca_file) is Answer.ACCEPTED
    method, path, headers, body = server.seen[0]
    assert (method, path) == ("POST", "/api/1/postorder")
    assert body == (b"pair=XBTZAR&type=BID&volume=0.002000&price=1900000&post_only=true&time_in_force=GTC"
                    b"&timestamp=1764000000000&ttl=5000&client_order_id=LB1-3fa9c2d1-000001")
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"
