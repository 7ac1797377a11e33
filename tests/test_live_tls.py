"""LIVE over real TLS sockets with the program's own HTTP stack: whatever the line does, no order is doubled or lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from lunobiz import OrderState, SteppedClock
from sessions import Run, disagreements, lively_exchange
from tls_exchange import WILD, TlsExchange

POST, STOP, LOOK = "/api/1/postorder", "/api/1/stoporder", "/api/exchange/3/order"
PRIVATE = (POST, STOP, LOOK, "/api/1/balance", "/api/exchange/2/listorders")
QUIET_LOOKS = 40


class Line:
    """A session on an exchange behind TLS, and all that was ever posted."""

    def __init__(self, folder: Path) -> None:
        self.clock = SteppedClock(0)
        self.exchange = lively_exchange(self.clock)
        self.server = TlsExchange(folder / "ca", self.exchange, self.clock)
        self.database = folder / "live.db"
        self.run: Run | None = None

    def start(self) -> Run:
        """The program starts, or starts again."""
        self.run = Run(self.server.transport(), self.clock, self.database)
        return self.run

    def posted(self) -> list[str]:
        """Client ids of all POSTs of orders that arrived, in their order."""
        return [dict(parse_qsl(body.decode()))["client_order_id"] for body in self.server.bodies]

    def settle(self) -> list[str]:
        """Let an honest line bring all to rest; what does not agree then."""
        assert self.run is not None
        self.server.plan = lambda method, path: ""
        self.server.spoil_certificates(0)
        self.run.rest(QUIET_LOOKS)
        return disagreements(self.run, self.exchange)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    """A server with nothing wrong yet."""
    made = Line(tmp_path)
    with made.server:
        yield made
    if made.run is not None:
        made.run.drop()


def once(method: str, path: str, kind: str, times: int = 1) -> Callable[[str, str], str]:
    """This trouble for the next requests to a path."""
    left = [times]

    def plan(asked: str, where: str) -> str:
        if asked == method and where == path and left[0]:
            left[0] -= 1
            return kind
        return ""

    return plan


def until_posted(line: Line, run: Run, count: int, most: int = 2_000) -> None:
    """Look until so many orders were posted in all."""
    for _ in range(most):
        if len(line.server.bodies) >= count:
            return
        run.look()
    raise AssertionError("no order was posted")


@pytest.mark.parametrize("kind", [k for k in WILD if k != "bad_certificate"])
def test_trouble_with_the_post_of_an_order(line: Line, kind: str) -> None:
    """One POST, whatever became of its answer; the desk goes on when it is certain."""
    run = line.start()
    line.server.plan = once("POST", POST, kind)
    until_posted(line, run, 1)
    first = next(iter(run.sent.values()))
    was_served = kind.endswith("_after")
    assert first.state is OrderState.UNKNOWN and line.server.done[kind] == 1
    before = len(line.server.bodies)
    if not was_served:
        assert len(line.exchange.accounts.orders) == 0
        run.look(1)
        assert len(line.server.bodies) == before  # nothing goes out while it is not certain
    assert line.settle() == [] and line.server.stolen == []
    assert run.sent[first.client_id].state is not OrderState.UNKNOWN
    assert (run.sent[first.client_id].state is OrderState.NOT_PLACED) == (not was_served)
    posted = line.posted()
    assert len(posted) == len(set(posted))


def test_a_bad_certificate_sends_nothing_and_loses_nothing(line: Line) -> None:
    """POSTs and reads of an hour meet somebody else's certificate: nobody is shown a key, no order leaves."""
    run = line.start()
    until_posted(line, run, 1)
    run.client._transport.close()
    line.server.spoil_certificates(10**6)
    seen = sum(line.server.seen.values())
    run.look(10)
    assert sum(line.server.seen.values()) == seen and line.server.done["bad_certificate"] > 10
    assert run.engine.failures > 0 and run.live.in_the_way() == "not reconciled"
    assert line.settle() == []


def test_a_storm_of_429(line: Line) -> None:
    """Every private call for six hours: few calls are made, nothing is lost, and it goes on by itself."""
    run = line.start()
    until_posted(line, run, 3)
    calls, started = sum(line.server.seen.values()), line.clock.now_ms()
    line.server.plan = lambda method, path: "429" if path in PRIVATE else ""
    run.look(30)
    minutes = (line.clock.now_ms() - started) / 60_000
    assert line.server.done["429"] > 5 and sum(line.server.seen.values()) - calls < 4 * minutes
    assert line.settle() == []


def wild(rng: random.Random, chance: float) -> Callable[[str, str], str]:
    """Any trouble at any request; orders and cancels meet more of it."""
    def plan(method: str, path: str) -> str:
        likely = chance * (4 if method == "POST" else 1)
        return rng.choice(WILD) if rng.random() < likely else ""

    return plan


def storm(folder: Path, seed: int, orders: int) -> Line:
    """A session until so many orders went out, on a line that does everything, with a crash now and then."""
    line, rng = Line(folder), random.Random(seed)
    with line.server:
        run = line.start()
        line.server.plan = wild(rng, 0.04)
        for _ in range(6_000):
            if len(line.server.bodies) >= orders:
                break
            run.look()
            if rng.random() < 0.01:
                run.drop()
                run = line.start()
            run.resolve()
        wrong, posted = line.settle(), line.posted()
        run.drop()
    assert wrong == [] and line.server.stolen == []
    assert len(posted) == len(set(posted)) >= orders
    return line


def test_a_wild_line_loses_and_doubles_nothing(tmp_path: Path) -> None:
    line = storm(tmp_path, 5, 12)
    assert sum(line.server.done.values()) > 15


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_twenty_wild_lines(tmp_path: Path, seed: int) -> None:
    """Thirty orders each, half an hour in all: pytest -m long -k twenty_wild"""
    line = storm(tmp_path, 100 + seed, 30)
    assert sum(line.server.done.values()) > 40
