"""LIVE sessions on the built-in exchange for tests: a lively market, a clock, the whole engine, and who is right."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lunobiz import (
    Amounts,
    Beat,
    CauseKind,
    Credentials,
    DemoExchange,
    Engine,
    EngineParts,
    Event,
    ExchangeDown,
    ExchangeRefused,
    Feed,
    Install,
    JsonLog,
    LiveDesk,
    LiveSession,
    LunoClient,
    LunoOrders,
    Market,
    Mode,
    Notifier,
    OrderJournal,
    Pace,
    RateLimit,
    Redactor,
    SentOrder,
    Settings,
    SteppedClock,
    Store,
    TradingState,
    Transport,
    due_at,
    is_under_way,
    never,
    trade_now,
)
from recordings import START_MS, Shape, market_rows, quick_settings

HOUR_MS = 3_600_000
SHAPES = {"AAAZAR": Shape(900.0, 3, 2e4, 31), "BBBZAR": Shape(31.0, 3, 6e5, 32), "CCCZAR": Shape(150.0, 3, 1e5, 33)}
LOOKS_S = (5, 15, 35, 95, 240)  # after each close
KEY = Credentials("livekeyid123", "L1veS3cret-0123456789abcdefghijklmnopqrstu")
INSTALL = "3fa9c2d1"
HISTORY_DAYS = 70


class SharedClock:
    """Market time that two processes share through a file and that outlives both; it moves only when told."""

    def __init__(self, path: Path, start_ms: int = 0) -> None:
        if not path.exists():
            path.write_bytes((start_ms * 1000).to_bytes(8, "little"))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)

    def _us(self) -> int:
        return int.from_bytes(self._memory[:8], "little")

    def now_ms(self) -> int:
        """Market time."""
        return self._us() // 1000

    def mono_s(self) -> float:
        """Market seconds."""
        return self._us() / 1_000_000

    def sleep(self, seconds: float) -> None:
        """Let market time pass; nobody waits."""
        self._memory[:8] = (self._us() + round(max(0.0, seconds) * 1_000_000)).to_bytes(8, "little")

    def set_ms(self, ms: int) -> None:
        """Go to a moment."""
        self._memory[:8] = (ms * 1000).to_bytes(8, "little")


AnyClock = SteppedClock | SharedClock


class HourPace:
    """Some looks after each hour's close, from wherever the clock stands, as in real time after a restart."""

    def __init__(self, clock: AnyClock, end_ms: int = 2**62) -> None:
        self._clock, self._end = clock, end_ms
        self._closed, self._look = clock.now_ms(), 0  # the first looks come at once and decide nothing
        self._is_new = True

    def beat(self) -> Beat | None:
        """The next look."""
        if self._closed >= self._end:
            return None
        due = due_at(self._closed, (3600,)) if self._look == 0 and not self._is_new else ()
        self._clock.set_ms(max(self._clock.now_ms(), self._closed + LOOKS_S[self._look] * 1000))
        self._look = (self._look + 1) % len(LOOKS_S)
        if self._look == 0:
            self._closed, self._is_new = (self._closed // HOUR_MS + 1) * HOUR_MS, False
        return Beat(self._clock.now_ms(), due, True, 0.0)

    def resume(self, time_ms: int) -> None:
        """The clock goes on by itself."""

    def hold_back(self, failures: int) -> None:
        """Every look counts here."""

    def hurry(self, is_busy: bool) -> None:
        """It looks often anyhow."""

    def wait_s(self) -> float:
        """No time passes outside."""
        return 0.0


def lively_markets() -> dict[str, Market]:
    """Three markets with much to trade and room in the least volume, so that fills come in parts."""
    return {p: Market(p, p[:3], "ZAR", 3, 4, 0.01, 1e6, 0.001, 1e6, model_spread=0.002, maker_fee=0.001,
                      taker_fee=0.002) for p in SHAPES}


def lively_exchange(clock: AnyClock, days: int = 30, skipped_h: int = 0) -> DemoExchange:
    """Hourly candles of three markets; the clock is set to where trading can begin, or so many hours later."""
    data = {p: market_rows(shape, HISTORY_DAYS + days, 3600) for p, shape in SHAPES.items()}
    made = DemoExchange.recorded(data, 3600, lively_markets(), clock)
    clock.set_ms(START_MS + (HISTORY_DAYS * 24 + skipped_h) * HOUR_MS)
    return made


def lively_settings() -> Settings:
    """Much happens, and no cap on losses ends it."""
    made = quick_settings()
    limits = replace(made.limits, daily_loss_cap=0.2, weekly_loss_cap=0.5, min_volume_24h=0.0, cooldown_hours=1.0)
    schedule = replace(made.schedule, counter="ZAR", pairs=tuple(SHAPES))
    return replace(made, limits=limits, schedule=schedule)


class Run:
    """One start of the program in LIVE, from what its database holds; the whole engine."""

    def __init__(self, transport: Transport, clock: AnyClock, database: Path, seed: int = 1,
                 is_killed: Callable[[], bool] = never, store: Store | None = None, end_ms: int = 2**62,
                 pace: Pace | None = None) -> None:
        self.clock, self.events, self.transport = clock, list[Event](), transport
        self.settings = lively_settings()
        self.store = store or Store(database, Redactor([KEY]), "OFF")
        self.client = LunoClient(transport, KEY, RateLimit(clock), clock, random.Random(seed))
        feed = Feed(self.client, self.store, self.settings, 0)
        saved = self.store.last_desk(Mode.LIVE)
        who = LiveDesk(INSTALL, tuple, is_killed, self.settings, lambda p: feed.markets.get(p), lambda: 1.0)
        self.live = LiveSession(LunoOrders(self.client), self.store, who, saved[1].orders if saved is not None else ())
        self._patient(lambda: feed.refresh_markets(clock.now_ms()))
        self._patient(self.live.begin)
        parts = EngineParts(
            Mode.LIVE, self.client, feed, self.store, pace or HourPace(clock, end_ms), trade_now, is_killed,
            JsonLog(database.parent / "logs", Redactor([KEY]), clock), Notifier([], clock, str), self.events.append,
            Install(Credentials(), ""), self.live)
        self.engine = Engine(parts, self.settings)
        while self._patient(lambda: self.engine.load(clock.now_ms())) is not None:
            pass

    def _patient(self, call: Callable[[], object]) -> object:
        """The call, again after a while if the exchange is not there."""
        for _ in range(200):
            try:
                return call()
            except (ExchangeDown, ExchangeRefused):
                self.clock.sleep(10.0)
        raise AssertionError("the exchange never answered")

    @property
    def sent(self) -> dict[str, SentOrder]:
        """All orders of the journal by their ids at the exchange."""
        return {o.client_id: o for o in self.live.executor.sent.values()}

    def look(self, times: int = 1) -> None:
        """So many beats."""
        for _ in range(times):
            self.engine.step()

    def resolve(self) -> None:
        """The owner lifts what halts after an outcome was unknown for ten minutes."""
        if any(c.kind is CauseKind.UNRESOLVED for c in self.engine.desk.causes):
            self.engine.resolve_halt(self.clock.now_ms())

    def rest(self, times: int) -> None:
        """So many beats and the owner's word after half of them, then more until no order is under way."""
        self.look(times // 2)
        self.resolve()
        self.look(times // 2)
        for _ in range(50):
            if not is_under_way(self.engine.desk):
                return
            self.look()

    def close(self) -> None:
        """End in order."""
        self.engine.close()

    def drop(self) -> None:
        """The program is gone; only what was committed stays."""
        self.store.close()


def disagreements(run: Run, exchange: DemoExchange) -> list[str]:
    """What of orders, coins and ledger is not at the exchange as the program has it; no order twice."""
    accounts, sent = exchange.accounts, run.sent
    there = {o.client_id: o for o in accounts.orders.values()}
    wrong = [f"{c} is at the exchange and not in the journal" for c in there if c not in sent]
    if len(there) != len(accounts.orders):
        wrong.append("an order is at the exchange twice")
    for client, order in sent.items():
        known = there.get(client)
        amounts = Amounts() if known is None else Amounts(known.base, known.counter, known.fee_base, known.fee_counter)
        if order.filled != amounts or order.booked != amounts:
            wrong.append(f"{client}: filled {order.filled}, booked {order.booked}, at the exchange {amounts}")
        if order.is_final != (known is None or known.status == "COMPLETE"):
            wrong.append(f"{client} is {order.state}, at the exchange {known and known.status}")
    written = OrderJournal(run.store).orders()
    wrong += [f"{o.client_id} is not on disk as it is" for o in run.live.executor.sent.values()
              if (written[o.order_id].filled, written[o.order_id].booked, written[o.order_id].state)
              != (o.filled, o.booked, o.state)]
    wrong += [f"{h.asset}: {h.unexplained} unexplained" for h in run.live.reconciler.run().holdings if h.unexplained]
    desk = run.engine.desk
    for pair in SHAPES:
        held = sum(p.volume for p in desk.positions if p.pair == pair)
        bought, orders = accounts.total[pair[:3]], sum(o.pair == pair for o in sent.values())
        if abs(held - float(bought)) > 1e-4 * (orders + 1):  # what each sale leaves below a lot is no position
            wrong.append(f"{pair}: {held} on the desk, {bought} at the exchange")
    if desk.state is not TradingState.READY:
        wrong.append(f"{desk.state.name}: {', '.join(f'{c.kind.name} {c.why}' for c in desk.causes)}")
    return wrong
