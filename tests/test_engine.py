"""One session in real time: beats, trouble of every kind and the way back, the kill file, restarts."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import lunobiz
from fakes import FakeClock
from lunobiz import (
    DAY_MS,
    DEMO_START_MS,
    HOUR_MS,
    AuditBroken,
    CauseKind,
    Credentials,
    CycleReport,
    DemoExchange,
    Desk,
    Engine,
    EngineParts,
    Event,
    Executor,
    Fault,
    Feed,
    JsonLog,
    LunoClient,
    Market,
    Mode,
    Moment,
    Notifier,
    Order,
    OrderKind,
    OrderState,
    Position,
    RateLimit,
    RealPace,
    Recorder,
    Redactor,
    Regime,
    Reply,
    Settings,
    Settlement,
    Side,
    SteppedClock,
    SteppedPace,
    Store,
    TradingState,
    is_killed,
    trade_now,
)
from passes import keep_a_choice, keep_a_pass
from recordings import Shape, market_rows, quick_settings

KEY = Credentials("cnz2yjswbv3jd", "C4n4ryS3cretQ_-zXw9Yk2LmP8vBt5RhJ7dFgAe1NuI")
PAIRS = ("ETHZAR", "SOLZAR", "XBTZAR")
T0 = DEMO_START_MS + 3 * HOUR_MS
ALL = "/api/"


class Watcher:
    """A trade step that notes which orders really went out, and lets the rest be as it is."""

    def __init__(self) -> None:
        self.placed: list[Order] = []
        self.cancelled: list[Order] = []
        self.moments: list[Moment] = []

    def __call__(
        self, desk: Desk, moment: Moment, executor: Executor, recorder: Recorder, settings: Settings
    ) -> tuple[CycleReport, ...]:
        self.moments.append(moment)
        self._inner = executor
        return trade_now(desk, moment, self, recorder, settings)

    def settle(self, moment: Moment) -> Settlement:
        return self._inner.settle(moment)

    def place(self, order: Order) -> None:
        self.placed.append(order)
        self._inner.place(order)

    def cancel(self, order: Order) -> None:
        self.cancelled.append(order)
        self._inner.cancel(order)


class Lively:
    """The demo exchange with quotes of this second, where it has those of the last close."""

    def __init__(self, exchange: DemoExchange, clock: FakeClock) -> None:
        self.exchange, self.clock, self.wait_s = exchange, clock, 0.0

    def send(
        self, method: str, path: str, params: Sequence[tuple[str, str]] = (), key: Credentials | None = None
    ) -> Reply:
        """One request."""
        self.clock.advance(self.wait_s)
        reply = self.exchange.send(method, path, params, key)
        if path != "/api/1/tickers" or reply.status != 200:
            return reply
        answer = json.loads(reply.body)
        for row in answer["tickers"]:
            row["timestamp"] = self.clock.now_ms() - 400
        return reply._replace(body=json.dumps(answer).encode())

    def close(self) -> None:
        """Nothing to let go of."""


class Paper:
    """A PAPER session on the demo exchange, in the time of a clock that moves when told."""

    def __init__(self, home: Path, **schedule: object) -> None:
        self.home = home
        self.clock = FakeClock(T0 + 50 * 60_000)
        self.exchange = self.made_exchange()
        self.line = Lively(self.exchange, self.clock)
        self.settings = quick_settings(pairs=PAIRS, **schedule)
        self.told: list[Event] = []
        self.open()

    def made_exchange(self) -> DemoExchange:
        """Where it trades."""
        return DemoExchange.generated(5, self.clock)

    def open(self) -> None:
        """A new session on the same folder."""
        self.watcher = Watcher()
        redactor = Redactor([KEY.key_id, KEY.secret])
        self.store = Store(self.home / "lunobiz.db", redactor, "OFF")
        limit = RateLimit(self.clock)
        client = LunoClient(self.line, KEY, limit, self.clock, random.Random(1))
        parts = EngineParts(
            Mode.PAPER, client, Feed(client, self.store, self.settings), self.store,
            RealPace(self.clock, self.settings.schedule.timeframes), self.watcher,
            lambda: is_killed((self.home,)), JsonLog(self.home / "logs", redactor, self.clock),
            Notifier((), self.clock, redactor.clean), self.told.append,
            lunobiz.read_install(self.home),
        )  # fmt: skip
        self.engine = Engine(parts, self.settings)
        while self.engine.load(self.clock.now_ms()) is not None:
            pass

    def tick(self, seconds: int = 1) -> list[CycleReport]:
        """So many seconds of the session, one at a time."""
        reports: list[CycleReport] = []
        for _ in range(seconds):
            self.clock.advance(1)
            reports += self.engine.step() or ()
        return reports

    def until(self, time_ms: int) -> list[CycleReport]:
        """The session up to a time."""
        return self.tick(max(0, -(-(time_ms - self.clock.now_ms()) // 1000)))

    def hour(self, number: int) -> CycleReport:
        """Go to a decision in few steps and return its report; what lies between is slept over and forgiven."""
        at_ms = T0 + number * HOUR_MS + 5000
        self.clock.advance(max(0.0, (at_ms - 30_000 - self.clock.now_ms()) / 1000))
        reports = [r for r in self.until(at_ms) if r.due]
        assert len(reports) == 1
        return reports[0]

    def state(self) -> TradingState:
        """What the desk may do now."""
        return self.engine.desk.state

    def kinds(self) -> list[str]:
        """Kinds of the events that were told."""
        return [e.kind for e in self.told]

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """Read the file as another program would."""
        db = sqlite3.connect(self.home / "lunobiz.db")
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return Paper(tmp_path)


def entry(now_ms: int, pair: str = "XBTZAR") -> Order:
    """An entry order that rests far below the market until the end of the day."""
    return Order(
        "LB1-000900", pair, Side.BUY, OrderKind.ENTRY, OrderState.OPEN, 0.001, 1000.0, 900.0, now_ms,
        now_ms + DAY_MS, lunobiz.MOMENTUM, Regime.TRENDING, 3600, "a reason",
    )  # fmt: skip


def position(now_ms: int, pair: str = "XBTZAR") -> Position:
    """A hundredth of a coin with a stop far below the market."""
    return Position(
        pair, 0.01, 500_000.0, 1000.0, now_ms, lunobiz.MOMENTUM, Regime.TRENDING, 3600, 2e6, 2e6, 0.01, 20_000.0,
        80.0, 0.006,
    )  # fmt: skip


def give(paper: Paper, *orders: Order, positions: Sequence[Position] = ()) -> None:
    """Put orders and positions into a session as if they had been there all along."""
    paper.engine.desk = replace(paper.engine.desk, orders=orders, positions=tuple(positions))
    paper.engine._executor = lunobiz.SimulatedExecutor(
        paper.settings.costs, paper.engine.parts.is_killed, paper.engine.desk.orders
    )


# ---- beats -----------------------------------------------------------------


def beats(pace: RealPace, clock: FakeClock, seconds: int) -> list[lunobiz.Beat]:
    """One beat a second."""
    found = []
    for _ in range(seconds):
        clock.advance(1)
        beat = pace.beat()
        assert beat is not None
        found.append(beat)
    return found


def test_a_tick_a_second_a_quote_every_ten_a_decision_once(paper: Paper) -> None:
    clock = FakeClock(T0 + 50 * 60_000)
    pace = RealPace(clock, (3600, 14400))
    found = beats(pace, clock, 2 * 3600)
    assert pace.wait_s() == 1
    assert max(b.gap_ms for b in found) == 0
    quotes = [b.now_ms for b in found if b.has_quote and not b.due]
    assert len(quotes) == pytest.approx(720, abs=4)
    assert max(b - a for a, b in pairwise(quotes)) <= 20_000
    decided = [(b.now_ms, b.due) for b in found if b.due]
    first = T0 + HOUR_MS + 5000
    assert decided == [(first, (3600, 14400)), (first + HOUR_MS, (3600,))]
    assert all(b.has_quote for b in found if b.due)


@pytest.mark.parametrize(("is_busy", "failures", "second"), [
    (True, 0, 6), (False, 0, 11), (True, 1, 21), (False, 1, 21),
])  # fmt: skip
def test_while_an_order_is_under_way_the_next_quote_comes_in_half_the_time(
    is_busy: bool, failures: int, second: int
) -> None:
    """The first is had after 1 s, the next 10 s later, or 5 s; after a failure 20 s later, busy or not."""
    clock = FakeClock(T0 + 50 * 60_000)
    pace = RealPace(clock, (3600,))
    pace.hold_back(failures)
    found = beats(pace, clock, 1)
    pace.hurry(is_busy)
    found += beats(pace, clock, 24)
    assert [n for n, b in enumerate(found, 1) if b.has_quote][:2] == [1, second]


@pytest.mark.parametrize("offset_ms", [1, 333, 999])
def test_a_decision_is_never_missed_nor_taken_twice_at_an_uneven_pace(offset_ms: int) -> None:
    clock = FakeClock(T0 + 50 * 60_000 + offset_ms)
    pace = RealPace(clock, (300,))
    decided = []
    for number in range(3000):
        clock.advance((0.2, 1.0, 3.7, 0.05)[number % 4])
        beat = pace.beat()
        assert beat is not None
        decided += [(beat.now_ms - 5000) // 300_000] if beat.due else []
        assert not beat.due or (beat.now_ms - 5000) % 300_000 < 3_701
    first = (T0 + 50 * 60_000) // 300_000  # its five seconds are not over yet
    assert decided == list(range(first, first + len(decided)))
    assert len(decided) == pytest.approx(3000 * 4.95 / 4 / 300, abs=1)


@pytest.mark.parametrize("asleep_s", [60, 1800, 8 * 3600, 3 * DAY_MS // 1000])
def test_after_sleep_the_gap_is_told_and_no_old_candle_is_decided(asleep_s: int) -> None:
    clock = FakeClock(T0 + 50 * 60_000)
    pace = RealPace(clock, (3600,))
    beats(pace, clock, 30)
    clock.advance(asleep_s)
    (beat,) = beats(pace, clock, 1)
    assert beat.has_quote
    assert beat.gap_ms == asleep_s * 1000
    assert beat.due == ()
    later = [b for b in beats(pace, clock, 3700) if b.due]
    assert len(later) == 1
    assert max(b.gap_ms for b in later) == 0
    assert (later[0].now_ms - 5000) % HOUR_MS < 1000


def test_a_short_pause_over_the_close_still_decides() -> None:
    clock = FakeClock(T0 + HOUR_MS - 6000)
    pace = RealPace(clock, (3600,))
    beats(pace, clock, 1)
    clock.advance(25)
    beat = pace.beat()
    assert beat is not None
    assert beat.due == (3600,)
    assert beat.gap_ms == 24_000


@pytest.mark.parametrize("jump_s", [7200, 2 * DAY_MS // 1000, 400 * DAY_MS // 1000])
def test_a_wall_clock_that_was_wrong_for_a_while_does_not_stop_the_decisions(jump_s: int) -> None:
    """A clock set ahead and put right again: the next close is decided, once."""
    clock = FakeClock(T0 + 40 * 60_000)
    pace = RealPace(clock, (3600,))
    beats(pace, clock, 20)
    clock.jump(jump_s)
    assert [b.gap_ms >= 1000 * jump_s for b in beats(pace, clock, 5)] == [True, False, False, False, False]
    clock.jump(-jump_s)
    back = beats(pace, clock, 5)
    assert [b.gap_ms > 1000 for b in back] == [True, False, False, False, False]
    assert any(b.has_quote for b in beats(pace, clock, 61))
    decided = [b.now_ms for b in beats(pace, clock, 3600) if b.due]
    assert decided == [T0 + HOUR_MS + 5000]


def test_a_stepped_clock_goes_from_close_to_close() -> None:
    clock = SteppedClock(0)
    pace = SteppedPace(clock, 900, (3600,), (T0 + 1, T0 + 2 * HOUR_MS))
    found = []
    while (beat := pace.beat()) is not None:
        assert clock.now_ms() == beat.now_ms
        found.append(beat)
    assert [b.now_ms for b in found] == [T0 + n * 900_000 + 5000 for n in range(1, 9)]
    assert [b.due for b in found] == [(), (), (), (3600,)] * 2
    assert all(b.has_quote and b.gap_ms == 0 for b in found)
    assert pace.wait_s() == 900
    pace.hold_back(3)
    pace.resume(T0 + HOUR_MS + 10_000)  # the follow-up of the close at one
    assert (clock.now_ms(), pace.beat()) == (T0 + HOUR_MS + 10_000, lunobiz.Beat(T0 + 4_505_000, (), True, 0.0))


# ---- an ordinary session ---------------------------------------------------


def test_a_session_decides_once_an_hour_and_quotes_in_between(paper: Paper) -> None:
    reports = paper.until(T0 + HOUR_MS + 120_000)
    decided = [r for r in reports if r.due]
    assert [(r.now_ms, len(r.decisions)) for r in decided] == [(T0 + HOUR_MS + 5000, 3)]
    assert len(reports) == pytest.approx(10 * 6 + 13, abs=3)
    assert paper.state() is TradingState.READY
    assert [row[0] for row in paper.rows("SELECT count(*) FROM decisions")] == [3]
    assert paper.engine.report is reports[-1]
    assert paper.rows("SELECT kind FROM sessions") == [("opened",)]
    paper.engine.close()
    assert paper.rows("SELECT kind FROM sessions") == [("opened",), ("closed",)]


def test_paper_trades_and_every_order_was_written_before(paper: Paper) -> None:
    for number in range(1, 60):
        paper.hour(number)
        paper.tick(15)
        if len(paper.watcher.placed) >= 3:
            break
    written = {row[0] for row in paper.rows("SELECT order_id FROM orders")}
    assert {o.order_id for o in paper.watcher.placed} == written
    assert len(written) >= 3


# ---- no network, refused, wrong clock --------------------------------------


def test_a_lost_network_holds_all_back_and_its_return_frees_the_desk(paper: Paper) -> None:
    paper.tick(20)
    give(paper, entry(paper.clock.now_ms()), positions=[position(paper.clock.now_ms())])
    paper.tick(21)
    placed, orders = len(paper.watcher.placed), paper.engine.desk.orders
    assert {o.kind for o in orders} == {OrderKind.ENTRY, OrderKind.PROTECTION}
    paper.exchange.faults.append(Fault("down", ALL, times=10**6))
    start_ms, seen = paper.clock.now_ms(), len(paper.watcher.moments)
    paper.until(start_ms + 240_000)
    assert paper.state() is TradingState.UNCERTAIN
    assert {c.kind for c in paper.engine.desk.causes} == {CauseKind.NO_NETWORK}
    assert paper.engine.desk.orders == orders, "what rests stays"
    assert len(paper.watcher.placed) == placed
    assert "api_error" in paper.kinds()
    assert "api_retry" in paper.kinds()
    assert len(paper.watcher.moments) - seen <= 7, "asks after 10, 20, 40, then every 60 s"
    paper.exchange.faults.clear()
    paper.tick(70)
    assert paper.state() is TradingState.READY
    assert "api_ok" in paper.kinds()
    assert paper.engine.failures == 0
    assert not [e for e in paper.told if KEY.secret in e.text]
    reports = paper.tick(60)
    assert len(reports) >= 5, "back to a quote every ten seconds"


def test_a_close_without_network_gives_rows_and_no_orders(paper: Paper) -> None:
    paper.exchange.faults.append(Fault("down", ALL, times=10**6))
    report = paper.hour(1)
    assert {(d.code, d.action.value) for d in report.decisions} == {("no_quote", "skip")}
    assert len(report.decisions) == 3
    assert paper.watcher.placed == []
    paper.exchange.faults.clear()
    paper.tick(61)
    assert paper.state() is TradingState.READY
    assert {d.code for d in paper.hour(2).decisions}.isdisjoint({"no_quote", "stale_candles"})


@pytest.mark.parametrize("status", ["ErrUnauthorised", "ErrApiKeyRevoked", "ErrInsufficientPerms"])
def test_a_refused_key_halts_until_the_owner_speaks(paper: Paper, status: str) -> None:
    """Quotes need no key: the refusal comes with the candles, or with the fees of a new day."""
    paper.tick(20)
    paper.exchange.faults.append(Fault(status, "/api/exchange/1/candles", times=10**6))
    paper.hour(1)
    assert paper.state() is TradingState.HALTED
    assert {c.kind for c in paper.engine.desk.causes} == {CauseKind.KEY_REFUSED}
    paper.exchange.faults.clear()
    paper.tick(30)
    assert paper.state() is TradingState.HALTED, "not by itself"
    assert paper.engine.resolve_halt(paper.clock.now_ms()) == ""
    paper.tick(11)
    assert paper.state() is TradingState.READY
    assert paper.engine.resolve_halt(paper.clock.now_ms()) == "Nothing is halted"


def test_a_key_refused_with_the_fees_of_a_new_day_halts(paper: Paper) -> None:
    paper.tick(20)
    paper.exchange.faults.append(Fault("ErrUnauthorised", "/api/1/fee_info", times=10**6))
    paper.clock.advance(21 * 3600)
    paper.tick(30)
    assert paper.state() is TradingState.HALTED
    assert CauseKind.KEY_REFUSED in {c.kind for c in paper.engine.desk.causes}


def test_another_refusal_is_no_reason_to_halt(paper: Paper) -> None:
    paper.tick(20)
    paper.exchange.faults.append(Fault("ErrInvalidArguments", "/api/1/tickers", times=4))
    paper.tick(60)
    assert {c.kind for c in paper.engine.desk.causes} <= {CauseKind.NO_NETWORK}
    paper.exchange.faults.clear()
    paper.tick(90)
    assert paper.state() is TradingState.READY


def test_maintenance_lets_exits_go_and_ends_by_itself(paper: Paper) -> None:
    paper.tick(20)
    paper.exchange.faults.append(Fault("ErrUnderMaintenance", "/api/1/tickers", times=10**6))
    paper.tick(20)
    assert {c.kind for c in paper.engine.desk.causes} == {CauseKind.MAINTENANCE}
    assert paper.state() is TradingState.REDUCING
    paper.exchange.faults.clear()
    paper.tick(70)
    assert paper.state() is TradingState.READY


@pytest.mark.parametrize("skew_ms", [5000, -5000, 7_200_000, -20 * 365 * DAY_MS])
def test_a_wrong_clock_holds_back_until_it_is_right(paper: Paper, skew_ms: int) -> None:
    paper.tick(20)
    paper.exchange.skew_ms = skew_ms
    paper.tick(21)
    assert paper.state() is TradingState.UNCERTAIN
    assert {c.kind for c in paper.engine.desk.causes} == {CauseKind.CLOCK_SKEW}
    paper.hour(1)
    assert paper.watcher.placed == []
    paper.exchange.skew_ms = 0
    paper.tick(31)
    assert paper.state() is TradingState.READY


@pytest.mark.parametrize("skew_ms", [0, 1400, -1400])
def test_a_clock_that_is_right_to_a_second_is_right(paper: Paper, skew_ms: int) -> None:
    paper.exchange.skew_ms = skew_ms
    paper.tick(60)
    assert paper.state() is TradingState.READY


def test_sleep_holds_back_until_a_clean_look_around(paper: Paper) -> None:
    paper.tick(20)
    paper.clock.advance(2 * 3600)
    (report,) = paper.tick(1)
    assert report.due == ()
    assert paper.state() is TradingState.UNCERTAIN
    assert {c.kind for c in paper.engine.desk.causes} == {CauseKind.RESUMED}
    paper.tick(11)
    assert paper.state() is TradingState.READY
    assert paper.kinds()[-2:] == ["state", "state"]


def test_the_loading_of_history_is_no_sleep(paper: Paper) -> None:
    """A first start fetches for a minute; that must not show the owner a desk that was resumed from sleep."""
    paper.engine.close()
    paper.home = paper.home / "fresh"
    paper.home.mkdir()
    paper.line.wait_s = 8.0
    paper.open()
    paper.line.wait_s = 0.0
    reports = paper.engine.step()
    assert reports
    assert [c.kind for c in reports[-1].desk.causes] == []


# ---- the kill file ---------------------------------------------------------


@pytest.mark.parametrize("name", ["KILL", "kill.txt"])
def test_a_kill_file_stops_within_a_tick_and_only_the_owner_goes_on(paper: Paper, name: str) -> None:
    paper.tick(23)
    give(paper, entry(paper.clock.now_ms()), positions=[position(paper.clock.now_ms())])
    paper.tick(10)
    (paper.home / name).touch()
    (report,) = paper.tick(1)
    assert report.desk.state is TradingState.KILLED
    assert [o.kind for o in paper.watcher.cancelled] == [OrderKind.ENTRY]
    assert "kill" in paper.kinds()
    paper.tick(12)
    assert {o.kind for o in paper.engine.desk.orders} == {OrderKind.PROTECTION}, "protection stays"
    placed = len(paper.watcher.placed)
    assert {d.code for d in paper.hour(1).decisions} <= {"hold", "no-signal", "P1-killed", "S4-doubt"}
    assert len(paper.watcher.placed) == placed

    assert paper.engine.rearm(paper.clock.now_ms()) != ""
    assert paper.state() is TradingState.KILLED
    (paper.home / name).unlink()
    paper.tick(30)
    assert paper.state() is TradingState.KILLED, "its removal does not start anything"
    assert paper.engine.rearm(paper.clock.now_ms()) == ""
    assert paper.state() is TradingState.READY
    paper.tick(11)
    paper.engine.close()
    paper.open()
    assert paper.state() is TradingState.READY, "and that was written"


def test_a_kill_file_between_decision_and_sending_stops_the_orders(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last look is at the moment of sending."""
    write = paper.store.record

    def record(report: CycleReport, *rest: object) -> None:
        write(report, *rest)  # type: ignore[arg-type]
        if report.orders:
            (paper.home / "KILL").touch()

    monkeypatch.setattr(paper.store, "record", record)
    for number in range(1, 60):
        if paper.hour(number).orders:
            break
    paper.tick(11)
    assert paper.watcher.placed
    states = {row[0] for row in paper.rows("SELECT state FROM orders")}
    assert states == {"rejected"}
    assert paper.engine.desk.orders == ()
    assert paper.state() is TradingState.KILLED


def test_a_kill_survives_a_restart(paper: Paper) -> None:
    paper.tick(20)
    (paper.home / "KILL").touch()
    paper.tick(2)
    paper.engine.close()
    (paper.home / "KILL").unlink()
    paper.open()
    assert paper.engine.has_resumed
    paper.tick(12)
    assert paper.state() is TradingState.KILLED


# ---- restart, days, caps ---------------------------------------------------


def test_a_day_that_has_begun_has_begun_for_good(paper: Paper) -> None:
    """A crash right after midnight, before the first decision of the day: the day does not begin once more."""
    midnight = (T0 // DAY_MS + 1) * DAY_MS
    paper.hour(20)
    paper.clock.advance((midnight - 27_000 - paper.clock.now_ms()) / 1000)
    began = [r.desk for r in paper.until(midnight + 4_000) if r.desk.day == midnight // DAY_MS]
    assert began and not [r for r in began if r.day != began[0].day]
    saved = paper.store.last_desk(Mode.PAPER)
    assert saved is not None
    assert (saved[1].day, saved[1].day_start_equity) == (began[0].day, began[0].day_start_equity)


@pytest.mark.parametrize("days", [2, 400])
def test_no_day_begins_by_a_clock_that_is_wrong(paper: Paper, days: int) -> None:
    """Somebody sets the clock far ahead and back again: the day of the exchange goes on, and ends when it does."""
    paper.tick(30)
    today = paper.engine.desk.day
    real, paper.exchange._clock = paper.clock, FakeClock(paper.clock.now_ms())
    real.advance(days * 86_400)
    paper.tick(60)
    assert paper.engine.desk.day == today
    assert CauseKind.CLOCK_SKEW in {c.kind for c in paper.engine.desk.causes}


def test_a_restart_brings_the_desk_back_with_its_cooldown(paper: Paper) -> None:
    paper.tick(20)
    give(paper, positions=[position(paper.clock.now_ms())])
    lost = replace(paper.engine.desk, day_start_equity=lunobiz.equity(paper.engine.desk) * 1.05)
    paper.engine.desk = lost
    paper.tick(11)
    assert paper.state() is TradingState.COOLDOWN
    assert "daily_cap" in paper.kinds()
    (cause,) = paper.engine.desk.causes
    assert cause.until_ms == max(DEMO_START_MS + DAY_MS, cause.since_ms + 12 * HOUR_MS)
    paper.tick(30)
    paper.engine.close()
    before = paper.engine.desk
    paper.open()
    assert paper.state() is TradingState.COOLDOWN
    assert paper.engine.desk.causes == (cause,)
    saved = paper.rows("SELECT desk FROM snapshots ORDER BY rowid DESC LIMIT 1")[0][0]
    assert lunobiz.desk_json(paper.engine.desk) == saved
    assert (paper.engine.desk.day, paper.engine.desk.day_start_equity) == (before.day, before.day_start_equity)
    paper.clock.advance((cause.until_ms - paper.clock.now_ms()) / 1000 - 60)
    paper.tick(30)
    assert paper.state() is TradingState.COOLDOWN
    paper.tick(60)
    assert paper.state() is TradingState.READY
    assert "cooldown" in paper.kinds()


def test_a_crash_leaves_the_orders_that_were_written(paper: Paper) -> None:
    paper.tick(20)
    give(paper, positions=[position(paper.clock.now_ms())])
    paper.tick(21)
    (protection,) = paper.engine.desk.orders
    paper.store.close()  # no closing words
    paper.open()
    (order,) = paper.engine.desk.orders
    assert (order.order_id, order.kind) == (protection.order_id, OrderKind.PROTECTION)
    paper.tick(21)
    (after,) = paper.engine.desk.orders
    assert (after.order_id, after.state) == (protection.order_id, OrderState.OPEN)
    assert paper.watcher.placed == [], "it is there, it is not sent again"


def test_the_end_of_a_day_is_kept_and_told(paper: Paper) -> None:
    paper.tick(20)
    day = paper.engine.desk.day
    paper.clock.advance((DEMO_START_MS + DAY_MS - 20_000 - paper.clock.now_ms()) / 1000)
    paper.tick(60)
    rows = [(name, json.loads(str(text))) for name, text in paper.rows("SELECT name, payload FROM metrics")][1:]
    assert [name for name, _ in rows] == ["day"]
    found = rows[0][1]
    assert (found["day"], found["return"], found["wished"], found["positions"]) == (day, 0, 0.03, 0)
    assert found["equity"] == 100_000
    assert paper.kinds().count("summary") == 1
    assert "+0.00% of 3.00% wished" in next(e.text for e in paper.told if e.kind == "summary")


# ---- the audit fails -------------------------------------------------------


def broken_store(paper: Paper, monkeypatch: pytest.MonkeyPatch, is_real: bool) -> Callable[[], None]:
    """Another program holds the file, or every write fails; returns what lets go."""
    if is_real:
        other = sqlite3.connect(paper.home / "lunobiz.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        return other.close

    def record(*arguments: object) -> None:
        raise AuditBroken("the disk is full")

    monkeypatch.setattr(paper.store, "record", record)
    return lambda: None


@pytest.mark.parametrize("is_real", [True, False], ids=["locked file", "full disk"])
def test_an_audit_that_cannot_be_written_stops_the_session_before_any_order(
    paper: Paper, monkeypatch: pytest.MonkeyPatch, is_real: bool
) -> None:
    twin_orders = 0
    for number in range(1, 60):
        snapshot = lunobiz.desk_json(paper.engine.desk)
        paper.clock.advance(max(0.0, (T0 + number * HOUR_MS - 25_000 - paper.clock.now_ms()) / 1000))
        paper.until(T0 + number * HOUR_MS + 4000)
        moment = paper.engine.parts.feed.moment(
            T0 + number * HOUR_MS + 5000, (3600,), lunobiz.Conditions(), frozenset()
        )
        twin_orders = len(lunobiz.decide(paper.engine.desk, moment, Settlement(), paper.settings).orders)
        if twin_orders:
            break
        paper.tick(2)
    assert twin_orders, "nobody wanted in: choose another seed"
    let_go = broken_store(paper, monkeypatch, is_real)
    with pytest.raises(AuditBroken):
        paper.tick(2)
    assert paper.watcher.placed == []
    assert snapshot
    let_go()
    assert paper.rows("SELECT count(*) FROM orders") == [(0,)]


# ---- what is told ----------------------------------------------------------


def test_events_go_to_the_audit_the_log_and_the_listener(paper: Paper) -> None:
    paper.tick(20)
    (paper.home / "KILL").touch()
    paper.tick(2)
    (paper.home / "KILL").unlink()
    paper.engine.rearm(paper.clock.now_ms())
    told = [(e.kind, e.text) for e in paper.told]
    assert [k for k, _ in told][-2:] == ["kill", "rearm"]
    assert [tuple(r) for r in paper.rows("SELECT kind, text FROM events ORDER BY rowid")] == told
    texts = [p.read_text(encoding="utf-8") for p in sorted((paper.home / "logs").glob("*.jsonl"))]
    logged = [json.loads(line) for text in texts for line in text.splitlines()]
    assert [(row["kind"], row["text"]) for row in logged] == told


def test_an_hour_of_inputs_is_written_though_nothing_happened(paper: Paper) -> None:
    """Where a position's price moves for an hour nothing is decided: its quotes do not pile up in memory."""
    paper.tick(20)
    inputs = lunobiz.InputLog(paper.engine.desk)
    recorder = lunobiz.AuditRecorder(paper.store, Mode.PAPER, paper.engine.parts.feed, inputs, paper.engine.desk.day)
    assert paper.engine.report is not None
    quiet = replace(paper.engine.report, decisions=(), events=(), cancels=(), orders=(), round_trips=(),
                    settlement=Settlement())
    counts = []
    for number in range(lunobiz.BLOCK_ENTRIES):
        inputs.act("rearm", T0 + number)
        recorder.record(quiet)
        counts.append(paper.rows("SELECT count(*) FROM inputs")[0][0])
    assert counts[:-1] == counts[:1] * (lunobiz.BLOCK_ENTRIES - 1) and counts[-1] == int(str(counts[0])) + 1
    assert inputs.take() == ()


def test_what_the_feed_has_to_say_is_told_once(paper: Paper) -> None:
    paper.tick(20)
    paper.told.clear()
    paper.engine.parts.feed.events.append(("candles", "warning", "XBTZAR: 3 candles are missing"))
    paper.tick(25)
    assert [(e.kind, e.level, e.text) for e in paper.told if e.kind == "candles"] == [
        ("candles", "warning", "XBTZAR: 3 candles are missing")]


def test_quiet_quotes_write_nothing(paper: Paper) -> None:
    paper.tick(15)
    before = paper.rows("SELECT count(*) FROM snapshots")
    assert len(paper.tick(120)) >= 11
    assert paper.rows("SELECT count(*) FROM snapshots") == before


def test_a_weekly_halt_is_lifted_by_the_owner_with_a_new_week(paper: Paper) -> None:
    paper.tick(20)
    desk = paper.engine.desk
    paper.engine.desk = replace(desk, week_start_equity=desk.cash * 1.10)
    paper.tick(11)
    assert paper.state() is TradingState.HALTED
    paper.tick(30)
    assert paper.state() is TradingState.HALTED
    assert paper.engine.resolve_halt(paper.clock.now_ms()) == ""
    paper.tick(20)
    assert paper.state() is TradingState.READY
    assert paper.engine.desk.week_start_equity == desk.cash


class Word:
    """What LIVE answers to the owner's word: what is in the way, or what is not the bot's any more, told once."""

    def __init__(self, problem: str = "", acts: tuple[str, ...] = ()) -> None:
        self.problem, self.acts = problem, acts

    def accept(self) -> str:
        """His word."""
        return self.problem

    def owed(self, desk: Desk) -> tuple[str, ...]:
        """What it takes from the desk."""
        acts, self.acts = self.acts, ()
        return acts


def drifting(paper: Paper, word: Word) -> Desk:
    """A LIVE session whose account does not add up."""
    paper.tick(20)
    paper.engine.parts = replace(paper.engine.parts, live=word)  # type: ignore[arg-type]
    drift = lunobiz.Cause(CauseKind.BALANCE_DRIFT, paper.clock.now_ms(), 0, "balance drift")
    paper.engine.desk = replace(paper.engine.desk, causes=(drift,))
    paper.engine._inputs.desk = paper.engine.desk
    paper.told.clear()
    return paper.engine.desk


def test_a_halt_is_not_lifted_while_the_account_is_being_compared(paper: Paper) -> None:
    before = drifting(paper, Word("The account is being compared once more", ("gone cash 1.0",)))
    assert paper.engine.resolve_halt(paper.clock.now_ms()) == "The account is being compared once more"
    assert paper.engine.desk == before and not paper.told


def test_what_is_gone_is_taken_from_the_desk_by_the_owners_word_and_told(paper: Paper) -> None:
    """1,000 of 100,000 were withdrawn; the drift itself ends with the next comparison that is clean."""
    before = drifting(paper, Word("", ("gone cash 1000.0",)))
    assert before.cash == 100_000.0
    assert paper.engine.resolve_halt(paper.clock.now_ms()) == ""
    assert paper.engine.desk.cash == 99_000.0 and paper.engine.desk.causes == before.causes
    assert [e.text for e in paper.told] == [
        "1,000 ZAR less to trade with: they are not in the account any more", "Halt lifted by the owner"]
    assert paper.engine.resolve_halt(paper.clock.now_ms()) == ""
    assert paper.engine.desk.cash == 99_000.0  # not a second time


@pytest.mark.parametrize("is_live", [False, True])
def test_days_of_live_are_no_days_of_paper(paper: Paper, is_live: bool) -> None:
    """G8 counts the days of PAPER: those of real orders are kept under another name."""
    paper.tick(20)
    assert paper.engine.report is not None
    if is_live:
        paper.engine.parts = replace(paper.engine.parts, live=Word())  # type: ignore[arg-type]
    before = replace(paper.engine.desk, day=paper.engine.desk.day - 1, day_start_equity=100_000.0)
    paper.engine._end_day(before, paper.engine.report)
    found = [paper.store.results(kind, 5) for kind in ("day", "live_day")]
    assert [len(rows) for rows in found] == [not is_live, is_live]


@pytest.mark.parametrize(("kind", "changes", "answer"), [
    (OrderKind.ENTRY, {}, False), (OrderKind.PROTECTION, {}, False), (OrderKind.EXIT, {}, True),
    (OrderKind.ENTRY, {"state": OrderState.INTENT}, True), (OrderKind.PROTECTION, {"state": OrderState.UNKNOWN}, True),
    (OrderKind.ENTRY, {"is_cancelling": True}, True),
])  # fmt: skip
def test_what_is_under_way(kind: OrderKind, changes: dict[str, object], answer: bool) -> None:
    """A resting entry and a resting stop can wait; whatever an answer is awaited of cannot."""
    wanted = replace(entry(T0), kind=kind, **changes)  # type: ignore[arg-type]
    assert lunobiz.is_under_way(Desk(1.0, orders=(wanted,))) is answer
    assert not lunobiz.is_under_way(Desk(1.0))


# ---- why LIVE is locked ----------------------------------------------------


def test_a_pass_for_exactly_this_lifts_every_lock(paper: Paper) -> None:
    now_ms = paper.clock.now_ms()
    keep_a_choice(paper.engine, now_ms)
    assert paper.engine.lock_reasons(now_ms) == (lunobiz.NO_ROW,)
    keep_a_pass(paper.engine, now_ms)
    assert paper.engine.lock_reasons(now_ms) == (lunobiz.NO_ROW,)  # looked up once a minute
    assert paper.engine.lock_reasons(now_ms + 60_000) == ()
    assert "31 days old" in paper.engine.lock_reasons(now_ms + 31 * DAY_MS)[0]
    keep_a_pass(paper.engine, now_ms + 1, source="recorded", size=0.0)
    assert paper.engine.lock_reasons(now_ms + 1, is_fresh=True) == ()
    keep_a_pass(paper.engine, now_ms + 2, gates=())
    assert "10 of 10 gates" in paper.engine.lock_reasons(now_ms + 2, is_fresh=True)[0]


@pytest.mark.parametrize("what", ["code", "key", "fees", "limits", "test exchange"])
def test_what_holds_now_is_taken_from_the_session(paper: Paper, what: str) -> None:
    engine, now_ms = paper.engine, paper.clock.now_ms()
    keep_a_choice(paper.engine, now_ms)
    keep_a_pass(paper.engine, now_ms)
    assert engine.lock_reasons(now_ms, is_fresh=True) == ()
    if what in ("code", "key"):
        install, other = engine.parts.install, Credentials("key", "0" * 64)
        changed = replace(install, code_hash="") if what == "code" else replace(install, key=other)
        engine.parts = replace(engine.parts, install=changed)
    elif what == "fees":
        markets = engine.parts.feed.markets
        engine.parts.feed.markets = {p: lunobiz.with_fees(m, 0.01, 0.01, "account") for p, m in markets.items()}
    elif what == "limits":
        engine.settings = replace(engine.settings, limits=replace(engine.settings.limits, max_positions=8))
    else:
        engine.settings = replace(engine.settings, exchange_url="https://x.test")
    reasons = engine.lock_reasons(now_ms, is_fresh=True)
    assert reasons


def test_a_set_that_training_did_not_choose_for_these_settings_locks(paper: Paper) -> None:
    """None at all, one for other limits (tighter ones are no lock by themselves), and one of more than 120 days ago."""
    engine, now_ms = paper.engine, paper.clock.now_ms()
    keep_a_pass(engine, now_ms)
    assert engine.lock_reasons(now_ms, is_fresh=True) == (lunobiz.NO_CHOICE,)
    keep_a_choice(engine, now_ms)
    assert engine.lock_reasons(now_ms, is_fresh=True) == ()
    engine.settings = replace(engine.settings, limits=replace(engine.settings.limits, max_positions=3))
    assert engine.lock_reasons(now_ms, is_fresh=True) == (lunobiz.NO_CHOICE,)
    keep_a_choice(engine, now_ms - 121 * DAY_MS)
    (reason,) = engine.lock_reasons(now_ms, is_fresh=True)
    assert "trained to 12" in reason and "120 are allowed" in reason


def test_fees_that_are_not_the_accounts_are_not_known(paper: Paper) -> None:
    keep_a_pass(paper.engine, paper.clock.now_ms())
    feed = paper.engine.parts.feed
    feed.markets = {p: replace(m, fee_source="entry tier") for p, m in feed.markets.items()}
    assert "fees are not known" in paper.engine.lock_reasons(paper.clock.now_ms(), is_fresh=True)[0]


def test_an_edited_row_locks_and_raises_an_alarm_once(paper: Paper) -> None:
    now_ms = paper.clock.now_ms()
    keep_a_pass(paper.engine, now_ms)
    other = sqlite3.connect(paper.home / "lunobiz.db")
    other.execute("DROP TRIGGER gate_rows_stay")
    other.execute("UPDATE gate_rows SET payload = replace(payload, '0.5', '0.6')")
    other.commit()
    other.close()
    for minute in range(3):
        reasons = paper.engine.lock_reasons(now_ms + minute * 60_000)
        assert lunobiz.FORGED in reasons and lunobiz.BROKEN in reasons
    alarms = [e for e in paper.told if e.kind == "gates"]
    assert [(e.level, e.text) for e in alarms] == [
        ("error", f"LIVE is locked: {lunobiz.FORGED}"), ("error", f"LIVE is locked: {lunobiz.BROKEN}"),
    ]  # fmt: skip


def test_the_cache_is_evaluated_under_the_sessions_settings(paper: Paper) -> None:
    now_ms = paper.clock.now_ms()
    task = lunobiz.gate_task(paper.engine, lunobiz.BacktestRequest("cache", pairs=("XBTZAR",)), now_ms)
    assert isinstance(task.source, lunobiz.GateJob)
    assert (task.source.source, task.source.as_of_ms, task.now_ms) == ("luno", now_ms, now_ms)
    assert [m.pair for m, _ in task.source.candles] == ["XBTZAR"] == list(task.source.settings.schedule.pairs)
    assert {m.fee_source for m, _ in task.source.candles} == {"account"}
    paper.engine.settings = replace(paper.settings, exchange_url="https://x.test")
    task = lunobiz.gate_task(paper.engine, lunobiz.BacktestRequest("cache"), now_ms)
    assert isinstance(task.source, lunobiz.GateJob) and task.source.source == "test exchange"
    folder = lunobiz.BacktestRequest("folder", "somewhere")
    assert lunobiz.gate_task(paper.engine, folder, now_ms).source == folder


# ---- parity by replay ------------------------------------------------------


def test_paper_in_real_time_run_again_is_equal(paper: Paper) -> None:
    """Orders and fills, a lost network, a refused key and the owner's word, a kill switch, a crash, a new day."""
    for number in range(1, 30):
        paper.hour(number)
        paper.tick(40)
        if number == 4:
            paper.exchange.faults.append(Fault("down", ALL, times=10**6))
            paper.tick(120)
            paper.exchange.faults.clear()
            paper.exchange.faults.append(Fault("ErrUnauthorised", "/api/exchange/1/candles", times=10**6))
        if number == 5:
            paper.exchange.faults.clear()
            assert paper.engine.resolve_halt(paper.clock.now_ms()) == ""
        if number == 6:
            (paper.home / "KILL").touch()
            paper.tick(5)
            (paper.home / "KILL").unlink()
            assert paper.engine.rearm(paper.clock.now_ms()) == ""
        if number == 7:
            paper.store.close()
            paper.open()
    paper.engine.close()
    code = paper.engine.parts.install.code_hash
    report = lunobiz.check_parity(lunobiz.read_audit(paper.home / "lunobiz.db", Mode.PAPER), code)
    assert [d.text for d in report.differences] == []
    tables = ("decisions", "fills", "snapshots")
    assert [(report.counts[t],) for t in tables] == [paper.rows(f"SELECT count(*) FROM {t}")[0] for t in tables]
    assert report.counts["decisions"] >= 80 and report.counts["fills"] >= 2
    assert report.counts["signals"] >= 80 and report.counts["idle"] >= 100
    assert len(report.notes) == 1 and "after a crash" in report.notes[0]


# ---- the chosen set --------------------------------------------------------


def chosen(number: int | None, paper: Paper) -> lunobiz.Choice:
    day = paper.clock.now_ms() // DAY_MS * DAY_MS
    return lunobiz.Choice(number, 1.5, day - 365 * DAY_MS, day)


def test_a_choice_is_traded_remembered_and_run_again_equal(paper: Paper) -> None:
    """The first set, then the third, then cash, then a restart; the replay finds all of it equal."""
    sets = lunobiz.parameter_sets()
    paper.hour(1)
    assert paper.engine.label == "Parameters: first set, NOT CHOSEN"
    assert paper.engine.is_choice_due(paper.clock.now_ms())
    paper.engine.take_choice(chosen(2, paper))
    paper.hour(2)
    assert paper.engine.traded.params == sets[2] and paper.engine.settings == paper.settings
    assert paper.engine.label.startswith("Parameters: set 3 of ") and "choice" in paper.kinds()
    now_ms = paper.clock.now_ms()
    assert not paper.engine.is_choice_due(now_ms) and not paper.engine.is_choice_due(now_ms + 58 * DAY_MS)
    assert paper.engine.is_choice_due(now_ms + 60 * DAY_MS)
    paper.engine.take_choice(chosen(lunobiz.CASH, paper))
    report = paper.hour(3)
    assert paper.engine.traded.params == replace(sets[2], is_cash=True), "its exits go on"
    assert not report.orders and {d.code for d in report.decisions} <= {"cash", "S0-cash"}
    assert "cash, no set earned its costs" in paper.engine.label
    paper.engine.close()
    paper.open()
    assert paper.engine.traded.params == replace(sets[2], is_cash=True)
    assert {d.code for d in paper.hour(4).decisions} <= {"cash", "S0-cash"}
    paper.engine.close()
    code = paper.engine.parts.install.code_hash
    found = lunobiz.check_parity(lunobiz.read_audit(paper.home / "lunobiz.db", Mode.PAPER), code)
    assert [d.text for d in found.differences] == [] and found.stretches == 4
    assert found.counts["signals"] == found.counts["decisions"] == 12
    marks = lunobiz.read_paper(paper.home / "lunobiz.db").marks
    mine = lunobiz.configuration_of(paper.settings, paper.engine.parts.install)
    assert [m.configuration for m in marks] == ["", mine, mine, mine], "the first set does not count"


def test_a_choice_for_another_configuration_is_not_taken_over(paper: Paper) -> None:
    paper.tick(20)
    paper.engine.take_choice(chosen(1, paper))
    paper.tick(11)
    assert paper.engine.choice is not None
    paper.engine.close()
    paper.settings = replace(paper.settings, costs=replace(paper.settings.costs, slippage=0.002))
    paper.open()
    assert paper.engine.choice is None and paper.engine.traded == paper.settings


def test_a_choice_waits_until_no_order_is_under_way(paper: Paper) -> None:
    paper.tick(20)
    waiting = replace(entry(paper.clock.now_ms()), state=OrderState.UNKNOWN)
    give(paper, waiting)
    paper.engine.take_choice(chosen(1, paper))
    paper.engine._apply_choice(paper.clock.now_ms())
    assert paper.engine.choice is None
    give(paper, replace(waiting, state=OrderState.OPEN))
    paper.engine._apply_choice(paper.clock.now_ms())
    assert paper.engine.choice is not None


class Chosen:
    """A process that has answered."""

    is_done, exit_code = True, 0

    def __init__(self, *messages: object) -> None:
        self.messages = messages

    def poll(self) -> tuple[object, ...]:
        return self.messages

    def end(self) -> None:
        """It has ended."""


def test_the_chooser_tells_what_is_missing_and_asks_when_all_is_there(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[object, ...]] = []
    answer = Chosen(chosen(0, paper))

    def start(*what: object) -> Chosen:
        started.append(what)
        return answer

    monkeypatch.setattr(lunobiz, "Child", start)
    chooser = lunobiz.Chooser(paper.engine, paper.clock)
    chooser.look_after()
    assert paper.engine.label == "Parameters: first set, NOT CHOSEN: 69 of 425 days of candles" and not started
    gates = replace(paper.settings.gates, warm_up_days=20, train_days=40)
    paper.engine.settings = replace(paper.settings, gates=gates)
    paper.engine.has_history = True
    chooser.look_after()
    assert not started, "it looks once a minute"
    paper.clock.advance(61)
    chooser.look_after()
    assert [what[0] for what in started] == [lunobiz._choice_child]
    chooser.look_after()
    paper.tick(20)
    paper.tick(11)
    assert paper.engine.choice is not None and paper.engine.choice.chosen == 0
    answer.messages = ()
    paper.engine.choice = None
    paper.clock.advance(3601)
    chooser.look_after()
    chooser.look_after()
    assert [e.text for e in paper.told if e.kind == "choice"][-1].endswith("ended early (code 0)")


WAVE_DAYS = 30
WAVE_PAIRS = ("AAAZAR", "BBBZAR")


class Wave(Paper):
    """PAPER on two hourly markets whose price swings by half in 30 days, recorded from 480 days before to 70 after."""

    def made_exchange(self) -> DemoExchange:
        """The recorded swings; what has not happened yet is not told."""
        first = (T0 // DAY_MS - 480) * DAY_MS
        shapes = (Shape(900.0, 2, 3000.0, 5), Shape(30.0, 3, 90000.0, 6))
        self.data = {p: market_rows(shape, 550, 3600, first) for p, shape in zip(WAVE_PAIRS, shapes, strict=True)}
        for number, rows in enumerate(self.data.values()):
            turns = (rows[:, 0] - first) / DAY_MS / WAVE_DAYS + number / 3
            rows[:, 1:5] = np.round(rows[:, 1:5] * np.exp(0.35 * np.sin(2 * np.pi * turns))[:, None], 2 + number)
            rows[1:, 1] = rows[:-1, 4]
            rows[:, 2], rows[:, 3] = rows[:, 1:5].max(axis=1), rows[:, 1:5].min(axis=1)
        self.markets = {p: Market(p, p[:3], "ZAR", 3, 4, 0.001, 1e6, 0.001, 1e6, model_spread=0.002)
                        for p in self.data}  # fmt: skip
        return DemoExchange.recorded(self.data, 3600, self.markets, self.clock)

    def open(self) -> None:
        """The settings of the program itself, with hourly candles."""
        plain = Settings(params=lunobiz.parameter_sets()[0])
        self.settings = replace(plain, schedule=replace(plain.schedule, pairs=WAVE_PAIRS, timeframes=(3600,)))
        super().open()
        self.chooser = lunobiz.Chooser(self.engine, self.clock)

    def seconds_until(self, is_so: Callable[[], bool], most: int) -> int:
        """How many seconds it takes; a process that chooses gets real time beside."""
        for second in range(most):
            if is_so():
                return second
            self.chooser.look_after()
            self.tick()
            if self.chooser._child is not None:
                time.sleep(0.02)
        pytest.fail(f"not within {most} s: {self.engine.label}")

    def pages(self) -> int:
        """How many pages of candles the exchange was asked for."""
        return self.exchange.calls["GET /api/exchange/1/candles"]

    def expected(self) -> lunobiz.Choice:
        """What the markets themselves say, without page and cache."""
        now_ms = self.clock.now_ms()
        known = {p: rows[rows[:, 0] < now_ms - HOUR_MS] for p, rows in self.data.items()}
        candles = [(m, lunobiz.series_of(known[p], 3600)) for p, m in self.engine.parts.feed.markets.items()]
        return lunobiz.current_choice(candles, self.settings, lunobiz.parameter_sets(), now_ms)


def test_paper_from_an_empty_folder_to_the_set_that_training_chose(tmp_path: Path) -> None:
    """History page by page over a restart, a choice in a real process, orders by it, a restart, the next choice."""
    paper, sets = Wave(tmp_path), lunobiz.parameter_sets()
    paper.seconds_until(lambda: paper.pages() >= 12, 30)
    assert paper.engine.label.startswith("Parameters: first set, NOT CHOSEN") and not paper.engine.has_history
    paper.engine.close()
    paper.open()
    # 365 + 62 + 1 days before the last midnight and 3 hours after it: 10,275 candles a market, 2 x 11
    # pages; the restart asks for the newest page of each again
    paper.seconds_until(lambda: paper.engine.has_history, 30)
    assert paper.pages() <= 22 + 2
    assert {len(paper.store.candles(p, 3600)) for p in WAVE_PAIRS} == {(365 + 62 + 1) * 24 + 3}
    assert paper.seconds_until(lambda: paper.engine.choice is not None, 2 * 3600) < 1800
    expected = paper.expected()
    assert paper.engine.choice == lunobiz.HeldChoice(3, 3, expected.sharpe, T0 // DAY_MS * DAY_MS)
    assert (expected.chosen, paper.engine.traded.params) == (3, sets[3])
    shown = [e.text for e in paper.told if e.kind == "choice"]
    assert shown == [f"Parameters: set 4 of 4, trained to 2026-01-04, Sharpe ratio {expected.sharpe:.2f} in training"]

    number = next(n for n in range(2, 72) if paper.hour(n).orders)
    (order,) = paper.watcher.placed[-1:]
    rows = paper.data[order.pair]
    until = int(np.searchsorted(rows[:, 0], T0 + (number - 1) * HOUR_MS))  # the candle that closed now is not in it
    highs = [float(rows[until - hours:until, 2].max()) for hours in (240, 480)]
    assert highs[0] < rows[until, 4] < highs[1], "the first set, which looks back 480 hours, would have waited"
    assert f"above the channel high {highs[0]:.2f}" in order.why

    paper.engine.close()
    paper.open()
    assert paper.engine.label == "Parameters: set 4 of 4, trained to 2026-01-04"
    assert paper.engine.traded.params == sets[3] and paper.engine.desk.orders
    assert not paper.engine.is_choice_due(paper.clock.now_ms())
    paper.hour(number + 1)
    code = paper.engine.parts.install.code_hash
    report = lunobiz.check_parity(lunobiz.read_audit(paper.home / "lunobiz.db", Mode.PAPER), code)
    assert [d.text for d in report.differences] == [] and report.counts["signals"] >= 2 * number

    paper.hour(60 * 24 - 3)  # midnight, 60 days after the training ended
    paper.seconds_until(lambda: paper.engine.label.endswith("trained to 2026-03-05"), 2 * 3600)
    assert paper.engine.choice is not None
    assert paper.engine.choice.sharpe == paper.expected().sharpe != expected.sharpe
    paper.engine.close()


SHORT = lunobiz.GateLimits(warm_up_days=20, train_days=40, embargo_days=5, test_days=10, windows=2, min_windows=2,
                           permutations=19, bootstraps=100)  # fmt: skip


def asked_for(paper: Paper, command: lunobiz.RunBacktest | lunobiz.EvaluateGates) -> lunobiz.Errand:
    """A job of the window, with gates that ask for 128 days: 40 + 62 + 1 and 5 + 2 x 10 more."""
    paper.engine.settings = replace(paper.engine.settings, gates=SHORT)
    return lunobiz.Errand(command)


def polled(errand: lunobiz.Errand, paper: Paper, seconds: float) -> list[lunobiz.JobNews]:
    """What it tells in so many seconds, asked five times a second as the worker does."""
    told: list[lunobiz.JobNews] = []
    for _ in range(round(seconds * 5)):
        told += errand.poll(paper.engine, paper.clock)
        paper.clock.advance(0.2)
    return told


EVALUATE_OWN = lunobiz.EvaluateGates(lunobiz.BacktestRequest("cache"))


def test_an_evaluation_of_the_own_markets_fetches_its_history_first(tmp_path: Path) -> None:
    """Of 3,075 hours 1,395 are missing, two pages a market, a second each; what came before a cancel is kept."""
    paper = Wave(tmp_path)
    before, errand = paper.pages(), asked_for(paper, EVALUATE_OWN)
    told = polled(errand, paper, 2.9)
    assert [(e.done, e.total, e.phase) for e in told if isinstance(e, lunobiz.GatesProgress)] == [
        (n, 4, f"Fetching candles of {WAVE_PAIRS[0]}, 3600 s") for n in range(2)
    ] + [(2, 4, f"Fetching candles of {WAVE_PAIRS[1]}, 3600 s")]
    assert paper.pages() == before + 3
    assert errand.cancel() == lunobiz.GatesDone("", lunobiz.CANCELLED) and errand.is_done
    assert polled(errand, paper, 5) == [] and paper.pages() == before + 3
    again = asked_for(paper, EVALUATE_OWN)
    told = polled(again, paper, 1.9)
    assert paper.pages() == before + 4 and isinstance(again._run, lunobiz.GateRun)
    assert {len(paper.store.candles(p, 3600)) for p in WAVE_PAIRS} == {128 * 24 + 3}
    end = time.monotonic() + 60
    while not again.is_done and time.monotonic() < end:
        told += again.poll(paper.engine, paper.clock)
        time.sleep(0.02)
    (done,) = [e for e in told if isinstance(e, lunobiz.GatesDone)]
    data = json.loads(done.payload)["gates"]["G0"]
    assert (data["result"], data["actual"].split(",")[0]) == ("PASS", "2 windows (128 days)"), data


def test_a_backtest_of_the_own_markets_fetches_what_its_period_needs(tmp_path: Path) -> None:
    """From 100 days ago on: with 62 days of memory and one more these are 163 days."""
    paper = Wave(tmp_path)
    day = T0 // DAY_MS * DAY_MS
    request = lunobiz.BacktestRequest("cache", from_ms=day - 100 * DAY_MS, to_ms=day)
    errand = asked_for(paper, lunobiz.RunBacktest(request))
    told = polled(errand, paper, 12)
    assert isinstance(told[0], lunobiz.BacktestProgress) and isinstance(errand._run, lunobiz.BacktestRun)
    assert {len(paper.store.candles(p, 3600)) for p in WAVE_PAIRS} == {163 * 24 + 3}
    errand.end()
    assert errand.is_done and errand.cancel() is None
    plain = lunobiz.RunBacktest(lunobiz.BacktestRequest("cache"))
    assert lunobiz.wanted_days(paper.engine, plain, paper.clock.now_ms()) == 40 + 62 + 1, "no period: as for a choice"


def test_history_waits_for_an_exchange_that_is_down_and_gives_up_in_words(paper: Paper) -> None:
    errand = asked_for(paper, EVALUATE_OWN)
    paper.exchange.faults.append(Fault("down", "/api/exchange/1/candles", times=10**6))
    told = polled(errand, paper, 9)
    assert [e.phase for e in told if isinstance(e, lunobiz.GatesProgress)] == [
        "No answer from Luno, trying again in 10 s"
    ]
    paper.exchange.faults.clear()
    paper.clock.advance(10)
    (progress,) = polled(errand, paper, 0.2)
    assert isinstance(progress, lunobiz.GatesProgress) and progress.phase.startswith("Fetching")
    paper.exchange.faults.append(Fault("down", "/api/exchange/1/candles", times=10**6))
    told = polled(errand, paper, 200)
    assert len(told) == 6 and isinstance(told[-1], lunobiz.GatesDone), "five more tries, then the answer"
    assert told[-1].problem.startswith("the candles cannot be fetched: ")
    paper.exchange.faults.clear()
    paper.exchange.faults.append(Fault("ErrUnauthorised", "/api/exchange/1/candles", times=10**6))
    (done,) = polled(asked_for(paper, EVALUATE_OWN), paper, 5)
    assert isinstance(done, lunobiz.GatesDone) and "ErrUnauthorised" in done.problem, "a refusal is not tried again"


def test_paper_days_are_read_from_the_audit(paper: Paper) -> None:
    """The session begins at three of day 0: 21 of its 24 candles are decided, so it is no whole day."""
    paper.tick(20)
    for number in range(1, 23):
        paper.hour(number)
    facts = lunobiz.read_paper(paper.home / "lunobiz.db")
    day = T0 // DAY_MS
    assert facts.decided[("XBTZAR", 3600, day)] == 21 and facts.results.keys() == {day}
    assert len(facts.fills) == paper.rows("SELECT count(*) FROM fills")[0][0]
    task = lunobiz.gate_task(paper.engine, lunobiz.BacktestRequest("cache"), paper.clock.now_ms())
    assert isinstance(task.source, lunobiz.GateJob) and task.source.paper == lunobiz.PaperRecord(0, 0.0, False)


# ---- closing all -------------------------------------------------------------


class Fresh(Lively):
    """Its books are of this second too, so that what takes is filled at the next look."""

    def send(
        self, method: str, path: str, params: Sequence[tuple[str, str]] = (), key: Credentials | None = None
    ) -> Reply:
        """One request."""
        reply = super().send(method, path, params, key)
        if path != "/api/1/orderbook_top" or reply.status != 200:
            return reply
        return reply._replace(body=json.dumps({**json.loads(reply.body), "timestamp": self.clock.now_ms()}).encode())


class FreshPaper(Paper):
    """A PAPER session whose books are of this second."""

    def open(self) -> None:
        """A new session on the same folder."""
        self.line = Fresh(self.exchange, self.clock)
        super().open()


def busy(home: Path) -> Paper:
    """A session that holds ETH under a resting stop while two entries rest; entries are taken after their time."""
    paper = FreshPaper(home, takes_after_timeout=True)
    for number in range(1, 60):
        paper.hour(number)
        kinds = [o.kind for o in paper.engine.desk.orders]
        if kinds.count(OrderKind.PROTECTION) == 1 and kinds.count(OrderKind.ENTRY) == 2:
            break
    while any(o.state is OrderState.INTENT for o in paper.engine.desk.orders):
        paper.tick()
    held, orders = paper.engine.desk.positions, paper.engine.desk.orders
    assert [p.pair for p in held] == ["ETHZAR"] and {o.state for o in orders} == {OrderState.OPEN} and len(orders) == 3
    return paper


def offered(paper: Paper) -> tuple[str, ...]:
    """The marks of what closing all would do now."""
    offer = lunobiz.closing_offer(paper.engine.desk, paper.engine.parts.feed.markets, paper.settings)
    assert not offer.problem
    return offer.marks


def all_closed(paper: Paper) -> list[CycleReport]:
    """The cycles until nothing is open; fails after two minutes."""
    reports: list[CycleReport] = []
    for _ in range(120):
        reports += paper.tick()
        if not (paper.engine.desk.positions or paper.engine.desk.orders):
            return reports
    pytest.fail(f"still open: {paper.engine.desk.positions} {paper.engine.desk.orders}")


def replayed(paper: Paper) -> lunobiz.ParityReport:
    """Close the session and run its inputs over again."""
    paper.engine.close()
    audit = lunobiz.read_audit(paper.home / "lunobiz.db", Mode.PAPER)
    return lunobiz.check_parity(audit, paper.engine.parts.install.code_hash)


def test_closing_all_cancels_first_then_sells_at_the_bid_bound(tmp_path: Path) -> None:
    """Three cycles: all three orders off, one exit at most 2 % below the bid, its fill. Nothing is bought again."""
    paper = busy(tmp_path)
    before, marks = paper.engine.desk, offered(paper)
    assert marks == ("ETHZAR", *(o.order_id for o in before.orders if o.kind is OrderKind.ENTRY))
    paper.watcher.placed.clear()
    assert lunobiz.close_all(paper.engine, paper.clock.now_ms(), marks) == ""
    assert [e.text for e in paper.told if e.kind == "close_all"] == [f"Closing all, by the owner: {', '.join(marks)}"]
    reports = [r for r in all_closed(paper) if not r.is_quiet]
    assert [sorted(o.kind.value for o in r.cancels) for r in reports] == [["entry", "entry", "protection"], [], []]
    assert [[o.kind for o in r.orders] for r in reports] == [[], [OrderKind.EXIT], []]
    (exit_order,) = paper.watcher.placed
    held = reports[1].desk.positions[0]
    step = paper.engine.parts.feed.markets["ETHZAR"].price_scale
    assert exit_order.limit <= held.mark * 0.98 < exit_order.limit + 10.0**-step  # rounded down to the tick
    assert (exit_order.volume, exit_order.side) == (before.positions[0].volume, Side.SELL)
    (fill,) = reports[2].settlement.fills
    assert fill.volume == exit_order.volume and exit_order.limit <= fill.price <= held.mark
    (trip,) = reports[2].round_trips
    assert (trip.pair, trip.reason) == ("ETHZAR", "closed by the owner")
    assert paper.engine.desk.retries == ()


def test_it_happens_once_and_a_later_signal_may_enter_again(tmp_path: Path) -> None:
    """What the act called off is not taken afterwards; new candles bring new orders, which stay."""
    paper = busy(tmp_path)
    assert lunobiz.close_all(paper.engine, paper.clock.now_ms(), offered(paper)) == ""
    all_closed(paper)
    first = 1 + (paper.clock.now_ms() - T0) // HOUR_MS
    paper.watcher.placed.clear()
    paper.until(T0 + first * HOUR_MS + 4000)  # up to the next candle
    assert paper.watcher.placed == []
    for number in range(first, first + 24):
        paper.hour(number)
        paper.tick(11)
    kinds = [o.kind for o in paper.watcher.placed]
    assert OrderKind.ENTRY in kinds and OrderKind.PROTECTION in kinds
    assert all(p.exit_why != "closed by the owner" for p in paper.engine.desk.positions)
    found = replayed(paper)
    assert found.is_equal, found.text
    assert found.counts["order_intents"] == len(paper.rows("SELECT 1 FROM order_intents"))


def test_an_entry_that_is_called_off_is_not_taken_while_its_signal_stands(tmp_path: Path) -> None:
    """Without the act the same entry is taken once its time is over; with it, at the very same decision, it is not."""
    for is_called_off in (False, True):
        home = tmp_path / str(is_called_off)
        home.mkdir()
        paper = busy(home)
        desk, now = paper.engine.desk, paper.clock.now_ms()
        entries = [o for o in desk.orders if o.kind is OrderKind.ENTRY]
        standing = lunobiz.Signal(entries[0].pair, entries[0].strategy, entries[0].timeframe_s, now - HOUR_MS,
                                  Regime.TRENDING, 0.9, 1.0, 1.0, 0.1, 0.01, "it still stands")
        draft = lunobiz.Draft(desk, Moment(now, ()), paper.settings, signals=(standing,))
        late = replace(entries[0], expires_ms=now)
        draft.desk = lunobiz.put_order(desk, late)
        if is_called_off:
            draft.desk = lunobiz.owner_act(draft.desk, "close_all")
        lunobiz.cancel_entries(draft)
        assert late.order_id in [o.order_id for o in draft.cancels]
        assert draft.desk.retries == (() if is_called_off else (standing,))
        paper.engine.close()


@pytest.mark.parametrize("wrong", [(), ("ETHZAR",), ("ETHZAR", "XBTZAR"), ("LB1-000001",)])
def test_marks_that_are_not_the_ones_shown_close_nothing(tmp_path: Path, wrong: tuple[str, ...]) -> None:
    paper = busy(tmp_path)
    before = paper.engine.desk
    text = lunobiz.close_all(paper.engine, paper.clock.now_ms(), wrong)
    assert text == "Nothing was closed: positions or orders have changed. Look again."
    assert paper.engine.desk == before and "close_all" not in paper.kinds()
    paper.tick(30)
    assert paper.engine.desk.positions[0].phase is lunobiz.ExitPhase.NONE and len(paper.engine.desk.orders) == 3
    assert replayed(paper).is_equal


def test_a_session_that_stands_still_or_has_no_price_closes_nothing(paper: Paper) -> None:
    give(paper, entry(paper.clock.now_ms()))
    before = paper.engine.desk
    for is_running, words in ((False, "The bot is stopped"), (True, "no price has come yet")):
        offer = lunobiz.offer_to_close(paper.engine, is_running)
        assert words in offer.problem and offer.marks == ()
        assert lunobiz.close_all(paper.engine, paper.clock.now_ms(), (), is_running) == offer.problem
    assert paper.engine.desk == before and "close_all" not in paper.kinds()


def test_a_state_that_forbids_it_closes_nothing(tmp_path: Path) -> None:
    """The kill switch came on while the question was on the screen."""
    paper = busy(tmp_path)
    marks = offered(paper)
    (tmp_path / "KILL").touch()
    paper.tick(2)
    for given in (marks, ()):
        assert "KILLED (kill switch)" in lunobiz.close_all(paper.engine, paper.clock.now_ms(), given)
    assert paper.engine.desk.positions[0].phase is lunobiz.ExitPhase.NONE and "close_all" not in paper.kinds()


@pytest.mark.parametrize("cycles", [1, 2])
def test_closing_all_goes_on_after_a_restart(tmp_path: Path, cycles: int) -> None:
    """The program is gone after the cancels, or after the exit was placed; either way all is closed, and replays."""
    paper = busy(tmp_path)
    assert lunobiz.close_all(paper.engine, paper.clock.now_ms(), offered(paper)) == ""
    reports: list[CycleReport] = []
    while len(reports) < cycles:
        reports += [r for r in paper.tick() if not r.is_quiet]
    phase = lunobiz.ExitPhase.CANCELLING if cycles == 1 else lunobiz.ExitPhase.EXITING
    assert [p.phase for p in paper.engine.desk.positions] == [phase]
    paper.store.close()  # nothing is closed in order
    paper.open()
    later = all_closed(paper)
    assert [f.kind for r in later for f in r.settlement.fills] == [OrderKind.EXIT]
    assert [o.kind for o in paper.watcher.placed] == ([OrderKind.EXIT] if cycles == 1 else [])
    found = replayed(paper)
    assert found.is_equal, found.text


def test_an_act_that_no_cycle_has_taken_up_is_gone_after_a_restart(tmp_path: Path) -> None:
    """It was about the prices of that moment: the position stays under its stop and the owner is asked anew."""
    paper = busy(tmp_path)
    assert lunobiz.close_all(paper.engine, paper.clock.now_ms(), offered(paper)) == ""
    paper.engine.close()
    paper.open()
    paper.tick(30)
    assert [p.phase for p in paper.engine.desk.positions] == [lunobiz.ExitPhase.NONE]
    assert OrderKind.PROTECTION in [o.kind for o in paper.engine.desk.orders]
    found = replayed(paper)
    assert found.is_equal, found.text


# ---- findings of LIVE --------------------------------------------------------


def test_a_finding_is_told_once_while_it_lasts_and_again_when_it_is_back(paper: Paper) -> None:
    """Its numbers may change meanwhile: 15.0 %, 15.1 % and back are one finding, and no message each."""
    def banner(text: str, key: str) -> lunobiz.Banner:
        return lunobiz.Banner("warning", text, "", key)

    paper.told.clear()
    first, worse, other = banner("fallen 15.0%", "leash"), banner("fallen 15.1%", "leash"), banner("drift", "drift")
    for number, findings in enumerate(((first,), (worse,), (first, other), (other,), (), (first,))):
        paper.engine._tell_findings(findings, T0 + number)
        assert paper.engine.findings == findings
    told = [(e.time_ms - T0, e.kind, e.level, e.text) for e in paper.told]
    assert told == [(0, "live", "warning", "fallen 15.0%"), (2, "live", "warning", "drift"),
                    (5, "live", "warning", "fallen 15.0%")]
    assert [row[0] for row in paper.rows("SELECT text FROM events WHERE kind = 'live' ORDER BY rowid")] == [
        text for *_, text in told]
