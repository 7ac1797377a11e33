"""The kill file at every point of a LIVE cycle: no order leaves after it is there, and stops that rest at Luno stay.

The file is a real one and the program looks for it as it always does. It is put there when a point is reached: before
or after a request, before or after a write, while the program waits.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from local_exchange import recent_exchange
from lunobiz import (
    CauseKind,
    Credentials,
    ExchangeDown,
    Params,
    RealPace,
    Redactor,
    Reply,
    SentOrder,
    SteppedClock,
    Store,
    SystemClock,
    TradingState,
    is_killed,
)
from sessions import Run, disagreements, lively_exchange

POST, STOP = "/api/1/postorder", "/api/1/stoporder"


class Points:
    """Counts the points of a session and puts the file there at one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.left, self.is_hot_only = folder, 0, False
        self.has_order = False  # an order of this cycle is written or about to go
        self.place = ""
        self.posts: list[str] = []  # client ids of POSTs as they began
        self.stops: list[str] = []  # ids of orders that were asked to end
        self.before = (0, 0)

    @property
    def file(self) -> Path:
        """The kill file."""
        return self.folder / "KILL"

    def arm(self, left: int, is_hot_only: bool) -> None:
        """At the so manieth point from now; or from the next order on."""
        self.left, self.is_hot_only, self.has_order, self.place = left, is_hot_only, False, ""

    def reach(self, name: str) -> None:
        """A point of the session."""
        if self.left > 0 and (self.has_order or not self.is_hot_only):
            self.left -= 1
            if self.left == 0:
                self.place, self.before = name, (len(self.posts), len(self.stops))
                self.file.touch()


class WatchedClock(SteppedClock):
    """A market clock whose waits are points."""

    points: Points

    def sleep(self, seconds: float) -> None:
        self.points.reach("asleep")
        super().sleep(seconds)


class WatchedStore(Store):
    """A store whose transactions are points."""

    points: Points

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        points: Points | None = getattr(self, "points", None)
        if points is not None:
            points.reach("before a write")
        with super()._writing():
            yield
        if points is not None:
            points.reach("after a write")

    def _append(self, table: str, rows: Iterable[Sequence[object]]) -> None:
        kept = list(rows)
        points: Points | None = getattr(self, "points", None)
        if points is not None and table == "order_intents" and kept:
            points.has_order = True
            points.reach("while an intent is written")
        super()._append(table, kept)


class Watched:
    """The line, whose requests are points; a POST has begun once it is here."""

    def __init__(self, exchange: object, points: Points) -> None:
        self.exchange, self.points = exchange, points

    def send(self, method: str, path: str, params: Params = (), key: Credentials | None = None) -> Reply:
        words = {POST: "an order", STOP: "a cancel"}.get(path, path.rsplit("/", 1)[-1])
        if path == POST:
            self.points.posts.append(dict(params)["client_order_id"])
        elif path == STOP:
            self.points.stops.append(dict(params)["order_id"])
        self.points.reach(f"before {words}")
        made: Reply = self.exchange.send(method, path, params, key)  # type: ignore[attr-defined]
        self.points.reach(f"after {words}")
        return made

    def close(self) -> None:
        """Nothing to let go of."""


class Stand:
    """A LIVE session with points, on which the file comes and goes."""

    def __init__(self, folder: Path, days: int) -> None:
        (folder / "home").mkdir()
        self.points = Points(folder / "home")
        self.clock = WatchedClock(0)
        self.clock.points = self.points
        self.exchange = lively_exchange(self.clock, days, skipped_h=40)
        store = WatchedStore(folder / "live.db", Redactor([]), "OFF")
        self.run = Run(Watched(self.exchange, self.points), self.clock, folder / "live.db", store=store,
                       is_killed=lambda: is_killed([self.points.folder]))
        store.points = self.points
        self.places: Counter[str] = Counter()

    def resting_stops(self) -> set[str]:
        """Protections that rest at the exchange."""
        return {o.order_id for o in self.exchange.accounts.orders.values() if o.stop and o.status == "AWAITING"}

    def try_once(self, rng: random.Random) -> bool:
        """The file comes at some point; what must hold then; it goes, and the owner re-arms. False if it never came."""
        run, points = self.run, self.points
        points.arm(rng.randint(1, 12), rng.random() < 0.7)
        for _ in range(80):
            if rng.random() < 0.1:
                run.client._limit._tokens = 0.4  # the next call has to wait
            run.look()
            if points.place:
                break
        else:
            points.arm(0, False)
            return False
        stops = self.resting_stops() - set(points.stops[: points.before[1]])
        run.look(3)
        assert len(points.posts) == points.before[0], f"an order left after the file was there: {points.place}"
        assert run.engine.desk.state is TradingState.KILLED
        ended = {i for i in stops if self.exchange.accounts.orders[i].cancelled_ms}
        assert not ended, f"a stop was taken off after the file was there: {points.place}"
        self.places[points.place] += 1
        points.file.unlink()
        assert run.engine.rearm(self.clock.now_ms()) == ""
        run.look(3)
        return True

    def finish(self) -> list[str]:
        """What does not agree at the end."""
        self.points.arm(0, False)
        self.run.rest(40)
        wrong = disagreements(self.run, self.exchange)
        self.run.close()
        assert len(self.points.posts) == len(set(self.points.posts))
        return wrong


def placements(folder: Path, seed: int, count: int, days: int) -> Stand:
    """So many placements of the file."""
    stand, rng, done = Stand(folder, days), random.Random(seed), 0
    for _ in range(count * 2):
        done += stand.try_once(rng)
        if done == count:
            break
    assert done == count and stand.finish() == []
    return stand


def test_no_order_leaves_once_the_file_is_there(tmp_path: Path) -> None:
    """50 placements; those between the intent and the order are among them."""
    stand = placements(tmp_path, 2, 50, 120)
    assert {"before a write", "after a write", "before an order", "after an order", "while an intent is written",
            "before tickers"} <= set(stand.places)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_placements(tmp_path: Path, seed: int) -> None:
    """A thousand each, half an hour in all: pytest -m long -k ten_thousand_placements"""
    stand = placements(tmp_path, 100 + seed, 1_000, 800)
    assert len(stand.places) >= 12


def test_an_order_does_not_wait_for_its_turn(tmp_path: Path) -> None:
    """Calls are limited: one that would have to wait is not sent, as the file could come meanwhile."""
    stand = Stand(tmp_path, 30)
    run, points = stand.run, stand.points
    write, is_written = run.live.executor._journal.write_sending, []

    def writing(order: SentOrder) -> None:
        write(order)
        is_written.append(order.client_id)
        run.client._limit._tokens = 0.4
        points.arm(2, False)  # the first point is the write's own end; the next one is a wait, or the request

    run.live.executor._journal.write_sending = writing  # type: ignore[method-assign]
    for _ in range(600):
        if is_written:
            break
        run.look()
    assert is_written and points.posts == []


def test_trading_stops_within_a_second(tmp_path: Path) -> None:
    """In real time: the loop ticks once a second, and the state is KILLED at the next tick."""
    clock = SystemClock()
    exchange = recent_exchange(clock.now_ms())
    run = Run(exchange, clock, tmp_path / "live.db", is_killed=lambda: is_killed([tmp_path]),  # type: ignore[arg-type]
              pace=RealPace(clock, (3600,)))
    run.look()
    waits = []
    for _ in range(3):
        time.sleep(run.engine.parts.pace.wait_s())
        run.look()
        assert run.engine.desk.state is not TradingState.KILLED
        started = time.monotonic()
        (tmp_path / "kill.txt").touch()
        assert run.live.in_the_way() == "kill switch"  # for orders it holds at once
        while run.engine.desk.state is not TradingState.KILLED and time.monotonic() < started + 10:
            time.sleep(max(0.0, min(run.engine.parts.pace.wait_s(), started + 0.9 - time.monotonic())))
            run.look()
        waits.append(time.monotonic() - started)
        (tmp_path / "kill.txt").unlink()
        assert run.engine.rearm(clock.now_ms()) == ""
        with contextlib.suppress(ExchangeDown):
            run.look()
        assert CauseKind.KILL not in {c.kind for c in run.engine.desk.causes}
    run.close()
    assert max(waits) < 1.3  # a tick, and what the machine takes for a step
