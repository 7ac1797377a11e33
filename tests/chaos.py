"""A small world to break: the simulated exchange on a line that goes wrong, the real database, a program that crashes.

Every call to the exchange and every write to the database is a numbered point at which something may be done: raise
`Crash`, let the disk fail, put the kill file there, fill an order. The world watches what the program does with orders
and raises `Violation` with the number of the invariant (reliability.md, section 6) that no longer holds.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import lunobiz
from desks import bar, market, outlook, setup, with_limits
from lunobiz import (
    OWNER_CAUSES,
    CauseKind,
    Conditions,
    Credentials,
    CycleReport,
    DemoExchange,
    DemoOrder,
    Desk,
    ExitPhase,
    Fault,
    LiveDesk,
    LiveSession,
    LunoClient,
    LunoOrders,
    Market,
    MarketView,
    Mode,
    Moment,
    OrderKind,
    OrderState,
    Params,
    RateLimit,
    Redactor,
    Reply,
    SteppedClock,
    Store,
    Ticker,
    TradingState,
)

START_MS = 1_767_225_600_000 + 10 * 3_600_000  # Thursday 2026-01-01 10:00 UTC
MARKETS = {"AAAZAR": market("AAA", min_volume=5.0), "BBBZAR": market("BBB", min_volume=0.01)}
PAIRS = tuple(MARKETS)
OWNER = {"ZAR": Decimal(100_000), "AAA": Decimal(50), "BBB": Decimal(30)}  # the coins are the owner's, not the bot's
INSTALL = "abcd1234"
OWN = f"LB1-{INSTALL}"  # then a dash and the number, or the name that orders got after some were lost
SECRETS = ("canarykeyq7x", "canarysecretz9w")
KEY = Credentials(*SECRETS)
POST, STOP, LOOK = "/api/1/postorder", "/api/1/stoporder", "/api/exchange/3/order"
LISTS, BALANCE, TICKERS = "/api/exchange/2/listorders", "/api/1/balance", "/api/1/tickers"
FINAL = ("done", "rejected", "not placed")
ARROWS = {  # from what was last written of an order to what may be written next
    "": ("open", "unknown", "rejected", "done", "not placed"), "unknown": ("unknown", "open", "done", "rejected",
                                                                         "not placed"),
    "open": ("open", "done"), "done": (), "rejected": (), "not placed": (),
}
BARE_LOOKS, BARE_MS, BARE_IN_ALL_MS = 2, 60_000, 300_000
SETTLE_BEATS = 120  # of five seconds: ten minutes


class Crash(BaseException):
    """The computer is off."""


class Violation(AssertionError):
    """An invariant does not hold."""

    def __init__(self, number: str, words: str) -> None:
        super().__init__(f"{number}: {words}")
        self.number = number


class WallClock:
    """The computer's clock: the true time and how wrong it is."""

    def __init__(self, true: SteppedClock) -> None:
        self._true, self.offset_ms = true, 0

    def now_ms(self) -> int:
        """Wall time."""
        return self._true.now_ms() + self.offset_ms

    def mono_s(self) -> float:
        """Time that never goes back."""
        return self._true.mono_s()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._true.sleep(seconds)


class BrittleStore(Store):
    """The real database; before, within and after each transaction something may happen."""

    at: Callable[[str], None] = staticmethod(lambda name: None)
    _known: tuple[int, dict[str, tuple[str, dict[str, object]]]] | None = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self.at("before a write")
        with super()._writing():
            yield
            self.at("within a write")
        self.at("after a write")

    def forget(self) -> None:
        """Nothing in memory any more, as after opening the file afresh."""
        self._seals, self._others, self._known = {}, None, None

    def journal(self) -> dict[str, tuple[str, dict[str, object]]]:
        """Client ids with the last state written and the row that was written before the order was sent."""
        if self._known is None or self._known[0] != self._db.total_changes:
            self._known = self._db.total_changes, self._read_journal()
        return self._known[1]

    def _read_journal(self) -> dict[str, tuple[str, dict[str, object]]]:
        rows = self.rows_of("sendings", Mode.LIVE)
        query = "SELECT order_id, state FROM answers ORDER BY rowid"
        states = {str(name): str(state) for name, state in self._db.execute(query)}
        return {str(r["client_id"]): (states.get(str(r["order_id"]), ""), r) for r in rows}

    def lines(self) -> Iterator[str]:
        """All that the database holds, as text."""
        return self._db.iterdump()

    def save_to(self, other: sqlite3.Connection) -> None:
        """Copy all to another connection."""
        self._db.backup(other)

    def load_from(self, other: sqlite3.Connection) -> None:
        """Take over all of another connection."""
        other.backup(self._db)
        self.forget()


@contextlib.contextmanager
def quickened() -> Iterator[None]:
    """Two calls that have nothing to do with orders, and take a fifth of a run's time, made short."""
    known: dict[str, int | None] = {}
    read_date = lunobiz.http_date_ms

    def remembered(text: str) -> int | None:
        if text not in known:
            known[text] = read_date(text)
        return known[text]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lunobiz, "http_date_ms", remembered)
        patch.setattr(lunobiz, "read_fills", lambda path, mode: ())  # what fills cost against what was expected
        yield


class Disk:
    """One database file for many worlds, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = BrittleStore(path, Redactor([]), "OFF")
        self.empty = sqlite3.connect(":memory:")
        self.store.save_to(self.empty)

    def reopen(self, is_thorough: bool) -> BrittleStore:
        """The store as a new process finds it; closing and opening the file takes ten times as long."""
        at, self.store.at = self.store.at, BrittleStore.at
        if is_thorough:
            self.store.close()
            self.store = BrittleStore(self.path, Redactor([]), "OFF")
        self.store.forget()
        self.store.at = at
        return self.store

    def close(self) -> None:
        """Done with the file."""
        self.store.close()


class Scene(NamedTuple):
    """A world at rest, to begin from again and again."""

    database: sqlite3.Connection
    orders: tuple[DemoOrder, ...]
    fills: tuple[tuple[str, int, int, dict[str, object]], ...]
    totals: dict[str, Decimal]
    now_ms: int
    prices: dict[str, float]
    are_fees_on_top: bool


Trick = Callable[[Callable[[], Reply], Params], Reply]


class Wire:
    """The line between program and exchange: points, tricks on answers, and a watch on every order that is sent."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.tricks: deque[tuple[str, Trick]] = deque()

    def send(self, method: str, path: str, params: Params = (), key: Credentials | None = None) -> Reply:
        """Pass on one request."""
        world = self._world
        if path == POST:
            world.judge_post(dict(params))
        if path == STOP:
            world.judge_stop(dict(params)["order_id"])
        world.judge_key(path)
        world.point(f"before {path}")
        trick = next((t for t in self.tricks if path.startswith(t[0])), None)

        def serve() -> Reply:
            return world.exchange.send(method, path, params, key)

        if trick is not None:
            self.tricks.remove(trick)
        reply = serve() if trick is None else trick[1](serve, params)
        world.has_refused |= reply.status in (401, 403) and path not in lunobiz.PUBLIC_PATHS
        world.point(f"answered {path}")
        return reply

    def close(self) -> None:
        """Nothing to let go of."""


class _Recorder:
    """Writes each report before its orders are sent."""

    def __init__(self, world: World) -> None:
        self._world = world

    def record(self, report: CycleReport) -> None:
        """One transaction."""
        world = self._world
        if not report.is_quiet or world.is_first or report.desk.day != world.decided.day:
            world.store.record(report, Mode.LIVE, MARKETS)
            world.owner.keep()
        world.decided, world.is_first = report.desk, False
        world.learn()


@dataclass
class Owner:
    """What the owner did by himself: how his coins changed, what of the bot's he took, orders that are his."""

    change: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(OWNER, Decimal(0)))
    taken: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(OWNER, Decimal(0)))
    day_worth: float = float(OWNER["ZAR"])  # the bot's at the start, and its share of that once some was taken
    fresh: tuple[Decimal, float] = (Decimal(0), 1.0)  # cash taken and the share left, not written yet
    planted: set[str] = field(default_factory=set)  # ids at the exchange

    def taken_cash(self) -> Decimal:
        """What the desk does not trade with any more."""
        return self.taken["ZAR"] + self.fresh[0]

    def keep(self) -> None:
        """The desk without it is on disk."""
        self.taken["ZAR"] += self.fresh[0]
        self.day_worth *= self.fresh[1]
        self.fresh = (Decimal(0), 1.0)


class World:
    """Exchange, line, database and program; `beat` is one look of the program at the world."""

    def __init__(self, disk: Disk, scene: Scene | None = None, is_thorough: bool = False) -> None:
        self.disk, self.is_thorough = disk, is_thorough
        self.true = SteppedClock(START_MS if scene is None else scene.now_ms)
        self.wall = WallClock(self.true)
        self.prices = dict.fromkeys(PAIRS, 100.0) if scene is None else dict(scene.prices)
        rows = {pair: np.array([[self.true.now_ms() - 2000, *[price] * 4, 1000.0]]) for pair, price in
                self.prices.items()}
        self.exchange = DemoExchange.recorded(rows, 1, MARKETS, self.true)
        self.accounts = self.exchange.accounts
        self.accounts.total.update(OWNER)
        self.wire, self.owner = Wire(self), Owner()
        self.story_points, self.cash_before = 0, float(OWNER["ZAR"])
        self.points, self.names, self.at = 0, list[str](), dict[int, Callable[[], None]]()
        self.posted: Counter[str] = Counter()
        self.buys: list[int] = []
        self.refused_calls = self.crashes = self.stops = self.told_to_wait_ms = 0
        self.is_killed = self.asks_quotes = self.is_poisoned = self.has_refused = False
        self.learned: dict[str, int] = {}  # since when it is known of a market that sales take their fee in its coin
        self.gap_ms, self.writes_left = 0.0, 10**9  # the disk fails once so many writes are done, for `failing` writes
        self.failing = 0
        self.is_struck, self.is_runaway = True, False
        self.listed = set(PAIRS)
        self.locks: tuple[str, ...] = ()  # why the gates lock entries
        # looks at a position without protection while all was certain, since when in all, with which order, since when
        self.bare: dict[str, tuple[int, int, frozenset[str], int]] = {}
        self.checked_ms = 0  # when that was looked at last
        self.days = {(0, 0.0)}
        self.seen: dict[str, Decimal] = {}
        self.causes_before: frozenset[CauseKind] = frozenset()
        self.reached: set[CauseKind] = set()
        self.is_first = True
        self._calm_ms = 0
        self._held_back_at: lunobiz.Reconciled | None = None
        self._load(scene)
        self.settings = with_limits(min_volume_24h=0.0)
        self.store = disk.store
        self.open()

    def _load(self, scene: Scene | None) -> None:
        self.disk.store.at = BrittleStore.at
        self.disk.store.load_from(self.disk.empty if scene is None else scene.database)
        self.disk.store.at = self.point
        if scene is not None:
            self.is_first = False
            self.accounts.orders = {o.order_id: replace(o, checked=1) for o in scene.orders}
            self.accounts.fills = list(scene.fills)
            self.accounts.total = dict(scene.totals)
            self.accounts.are_fees_on_top = scene.are_fees_on_top

    def scene(self) -> Scene:
        """This world as it is now, the program switched off."""
        database = sqlite3.connect(":memory:")
        self.store.save_to(database)
        orders = tuple(copy.copy(o) for o in self.accounts.orders.values())
        return Scene(database, orders, tuple(self.accounts.fills), dict(self.accounts.total), self.true.now_ms(),
                     dict(self.prices), self.accounts.are_fees_on_top)

    # ---- the program

    def open(self) -> None:
        """Start the program on what the database has; a crash while it starts makes it start again."""
        while True:
            try:
                self.store = self.disk.store
                limit = RateLimit(self.wall)
                self.client = LunoClient(self.wire, KEY, limit, self.wall, random.Random(1))
                saved = self.store.last_desk(Mode.LIVE)
                who = LiveDesk(INSTALL, lambda: self.locks, lambda: self.is_killed, self.settings, self.market_of,
                               lambda: 1.0)
                self.session = LiveSession(LunoOrders(self.client), self.store, who,
                                           saved[1].orders if saved is not None else ())
                if saved is None:
                    self.session.begin()
                self.desk = self.decided = saved[1] if saved is not None else Desk(
                    float(self.session.cash()))  # what the owner's own orders hold is not the bot's
                self.cash_before = self.cash_before if saved is not None else self.desk.cash
                self.learn()
                return
            except Crash:
                self.crashes += 1
            except (lunobiz.ExchangeDown, lunobiz.ExchangeRefused):
                self.true.sleep(10.0)

    def learn(self) -> None:
        """Note of which markets the desk, as it is on disk, knows how fees are charged."""
        for pair in self.decided.base_fees:
            self.learned.setdefault(pair, self.true.now_ms())

    def fee_debt(self, pair: str) -> Decimal:
        """Fees of sales in the coin itself that came as a surprise: they came out of the owner's coins."""
        until_ms = self.learned.get(pair, self.true.now_ms())
        return sum((o.fee_base for o in self.own() if not o.is_buy and o.market.pair == pair
                    and o.created_ms <= until_ms), Decimal(0))

    def market_of(self, pair: str) -> Market | None:
        """A market as the program knows it."""
        return MARKETS[pair] if pair in self.listed else None

    def restart(self) -> None:
        """All that was in memory is gone."""
        self.disk.reopen(self.is_thorough)
        self.refused_calls, self.has_refused = 0, False
        self.owner.fresh = (Decimal(0), 1.0)
        self.open()

    def beat(self, seconds: float = 5.0, enter: Sequence[str] = (), leave: Sequence[str] = (),
             is_due: bool = False) -> None:
        """Let time pass, then one look of the program; what it must not do raises Violation."""
        self.advance(seconds)
        self.look(enter, leave, is_due)

    def look(self, enter: Sequence[str] = (), leave: Sequence[str] = (), is_due: bool = False) -> None:
        """One look of the program at this moment."""
        enter = PAIRS if self.is_runaway else enter
        try:
            self._cycle(enter, leave, is_due or bool(enter or leave))
        except Crash:
            self.crashes += 1
            self.restart()
        except lunobiz.AuditBroken:
            self.stops += 1
            self.restart()
        except Violation:
            raise
        except Exception as error:
            raise Violation("escaped", f"{type(error).__name__}: {error}") from error
        self.check()

    def _cycle(self, enter: Sequence[str], leave: Sequence[str], is_due: bool) -> None:
        """What the session does with a beat: look at the account, then at the quotes, then decide."""
        now = self.wall.now_ms()
        base = Conditions(is_killed=self.is_killed, loop_gap_ms=self.gap_ms, skew_ms=self.client.skew_ms)
        is_calm = self.gap_ms <= lunobiz.MAX_LOOP_GAP_MS and abs(base.skew_ms) <= lunobiz.MAX_SKEW_MS
        self.gap_ms = 0.0
        self.give_up()
        base = self.session.look(replace(base, is_reconciled=is_calm), self.desk)
        tickers = {p: Ticker(p, now, *self._quote(p), self.prices[p], 1e6) for p in self.listed}
        try:
            if self.asks_quotes:  # it takes long, and most faults have nothing to do with it
                tickers = {t.pair: t for t in self.client.tickers()}
        except (lunobiz.ExchangeDown, lunobiz.ExchangeRefused) as error:
            code = error.code if isinstance(error, lunobiz.ExchangeRefused) else ""
            base = replace(base, has_network=bool(code), is_maintenance=code in lunobiz.MAINTENANCE_CODES,
                           is_reconciled=False, reconcile_age_ms=float("inf"))
            tickers = {}
        views = tuple(self._view(pair, tickers.get(pair), enter, leave, is_due) for pair in PAIRS)
        moment = Moment(now, views, base, (3600,) if is_due else ())
        report = lunobiz.trade_cycle(self.desk, moment, self.session.executor, _Recorder(self), self.settings)
        self.desk = report.desk

    def _view(self, pair: str, ticker: Ticker | None, enter: Sequence[str], leave: Sequence[str],
              is_due: bool) -> MarketView:
        price, now = self.prices[pair], self.wall.now_ms()
        wish = setup(is_entry=pair in enter, is_exit=pair in leave)
        read = outlook(wish, closed_ms=now, pair=pair, close=price) if is_due else None
        known = MARKETS[pair] if pair in self.listed else replace(MARKETS[pair], status="NOT LISTED")
        candle = bar(now - 3_600_000, (price,) * 4, 1e5)
        return MarketView(known, ticker, candle, () if read is None else (read,))

    # ---- the world

    def _quote(self, pair: str) -> tuple[float, float]:
        return round(self.prices[pair] * 0.999, 2), round(self.prices[pair] * 1.001, 2)

    def point(self, name: str) -> None:
        """Something may happen here."""
        self.points += 1
        self.names.append(name)
        if name == "within a write":
            self.writes_left -= 1
            if self.writes_left < 0 and self.failing > 0:
                self.failing -= 1
                raise sqlite3.OperationalError("database or disk is full")
        act = self.at.pop(self.points, None)
        if act is not None:
            act()

    def advance(self, seconds: float, pair: str = "", reach: tuple[float, float] | None = None,
                volume: float = 1000.0) -> None:
        """Let time pass; `reach` is how low and high one market traded meanwhile, and how much there."""
        self.true.sleep(seconds)
        opened = self.true.now_ms() - 1000
        for name, price in self.prices.items():
            track = self.exchange._tracks[name].rows
            assert isinstance(track, lunobiz.RecordedRows)
            low, high = reach if reach is not None and name == pair else (price, price)
            amount = volume if name == pair else 1000.0
            row = [price, max(high, price), min(low, price), price, amount]
            is_news = self.asks_quotes or track.rows[-1].tolist()[1:] != row
            if int(track.opened[-1]) < opened and is_news:
                track.extend(np.array([[opened, *row]]))

    def fill(self, pair: str, volume: float = 1000.0, seconds: float = 1.0) -> None:
        """The market trades through a resting entry of this market, so much of it."""
        price = self.prices[pair]
        self.advance(seconds, pair, (price * 0.99, price), volume)

    def faults(self, *rows: Fault) -> None:
        """Trouble to come on the line."""
        self.exchange.faults.extend(rows)

    def trick(self, path: str, trick: Trick, times: int = 1) -> None:
        """Something done with the answers to the next calls of a path."""
        self.wire.tricks.extend([(path, trick)] * times)

    def waiting(self) -> int:
        """How much trouble on the line has not come yet."""
        return len(self.wire.tricks) + sum(fault.times for fault in self.exchange.faults)

    def own(self) -> list[DemoOrder]:
        """The bot's orders at the exchange."""
        return [o for o in self.accounts.orders.values()
                if o.client_id.startswith(OWN) and o.order_id not in self.owner.planted]

    def coins(self, pair: str) -> Decimal:
        """What the bot has of a market's base, by the exchange's own books."""
        total = Decimal(0)
        for order in self.own():
            if order.market.pair == pair:
                total += (order.base if order.is_buy else -order.base) - order.fee_base
        return total - self.owner.taken[pair.removesuffix("ZAR")]

    def cash(self) -> Decimal:
        """By how much the bot's orders have changed the cash."""
        return sum(((-o.counter if o.is_buy else o.counter) - o.fee_counter for o in self.own()), Decimal(0))

    def on_desk(self, pair: str) -> float:
        """What the bot itself thinks it has of a market's base."""
        held = self.desk.position(pair)
        return (0.0 if held is None else held.volume) + dict(self.desk.dust).get(pair, 0.0)

    def worth(self) -> float:
        """The bot's equity at the last prices."""
        cash = OWNER["ZAR"] + self.cash() - self.owner.taken_cash()
        return float(cash) + sum(float(self.coins(p)) * self.prices[p] for p in PAIRS)

    def plant(self, client_id: str, pair: str = "BBBZAR", price: str = "50") -> str:
        """An order that rests at the exchange and is not of this session."""
        order = DemoOrder(MARKETS[pair], True, Decimal(price), Decimal(1), self.true.now_ms(), client_id, "GTC", True,
                          Decimal(0), "", "PENDING")  # fmt: skip
        self.accounts.accept(order, self.true.now_ms())
        self.owner.planted.add(order.order_id)
        return order.order_id

    def move(self, asset: str, amount: str) -> None:
        """The owner pays in or out, or buys or sells elsewhere in the account."""
        self.accounts.total[asset] += Decimal(amount)
        self.owner.change[asset] += Decimal(amount)

    def resolve(self) -> None:
        """The owner looks at the account, lifts all halts, re-arms; or is told to wait."""
        for order_id in self.owner.planted:
            with contextlib.suppress(lunobiz.ExchangeRefused):
                self.accounts.cancel(order_id, self.true.now_ms())
        self.refused_calls, self.has_refused = 0, False
        try:
            if self.session.accept():
                self.told_to_wait_ms = self.true.now_ms()
                return None
        except Crash:
            self.crashes += 1
            return self.restart()  # what he resolved was not written: he is asked again
        except lunobiz.AuditBroken:
            self.stops += 1
            return self.restart()
        self.give_up()
        self.desk = lunobiz.owner_act(lunobiz.owner_act(self.desk, "resolve"), "rearm")
        self.is_first = True  # the act is written with the next cycle
        self.causes_before = frozenset(c.kind for c in self.desk.causes)

    def give_up(self) -> None:
        """What the bot gives up must have been its own, and must be missing at the exchange."""
        worth, acts, before = self.worth(), self.session.owed(self.desk), {p: self.on_desk(p) for p in PAIRS}
        for act in acts:
            self.desk = lunobiz.owner_act(self.desk, act)
        for pair in PAIRS:
            asset = pair.removesuffix("ZAR")
            taken = self.owner.taken[asset]
            lost = self.session.reconciler.gone.get(asset, taken) - taken
            self._hold(0 <= lost <= max(Decimal(0), self.coins(pair)), "I15", f"{lost} given up of {self.coins(pair)}")
            self._hold(not lost or self.accounts.total[asset] < OWNER[asset] + self.coins(pair), "I15",
                       f"{lost} {asset} given up, though nothing is missing")
            self.owner.taken[asset] += lost
            self.owner.change[asset] += lost
            again = before[pair] - self.on_desk(pair) - float(lost)  # what a crash had brought back to the desk
            worth += max(0.0, again) * self.prices[pair]
        if acts:
            cash = sum((Decimal(act.split()[2]) for act in acts if act.startswith("gone cash ")), self.owner.fresh[0])
            self.owner.fresh = (cash, self.owner.fresh[1])
            self.owner.fresh = (cash, self.owner.fresh[1] * self.worth() / worth)
            self.is_first = True  # written with the next cycle
            self.days.add((self.desk.day, self.desk.day_start_equity))  # a crash may bring the one before back

    # ---- what must hold

    def judge_post(self, form: dict[str, str]) -> None:
        """At the moment at which an order's request begins."""
        client, journal = form.get("client_order_id", ""), self.store.journal()
        self.posted[client] += 1
        self._hold(self.posted[client] == 1, "I8", f"{client} was sent a second time")
        self._hold(client in journal, "I1", f"{client} was sent before it was written")
        self._hold(not self.is_killed, "I10", f"{client} was sent with the kill file there")
        row = journal[client][1]
        told = (form["pair"], form["type"], form["volume"], form["price"], form.get("stop_price", "0"),
                form.get("timestamp"), form.get("ttl"))
        meant = (row["pair"], "BID" if row["side"] == "buy" else "ASK", row["volume"], row["price"], row["stop"],
                 str(row["time_ms"]), "5000")
        self._hold(told == meant, "I9", f"sent {told}, written {meant}")
        others = [c for c, (state, _) in journal.items() if c != client and state not in ("open", *FINAL)]
        self._hold(not others, "I7", f"{client} was sent while {others} are unknown")
        self._judge_limits(form)

    def judge_stop(self, exchange_id: str) -> None:
        """A protection is taken off only while nothing is in the way of the order that is to follow."""
        order = self.accounts.orders.get(exchange_id)
        if order is None or order.status == "COMPLETE" or not order.stop:
            return
        unknown = [c for c, (state, _) in self.store.journal().items() if state not in ("open", *FINAL)]
        way = self.session.in_the_way() or ", ".join(unknown)
        self._hold(not way, "I21", f"the protection is taken off while in the way: {way}")

    def judge_key(self, path: str) -> None:
        """No call with a key that was refused, until the owner has looked."""
        is_private = path not in lunobiz.PUBLIC_PATHS
        self.refused_calls += is_private and self.has_refused
        self._hold(self.refused_calls <= 3, "F38", "the refused key is tried again and again")

    def _judge_limits(self, form: dict[str, str]) -> None:
        """Limits, by the exchange's own books."""
        pair, volume, limits = form["pair"], Decimal(form["volume"]), self.settings.limits
        live = [o for o in self.own() if o.status != "COMPLETE"]
        state, kinds = self.decided.state, {c.kind for c in self.decided.causes}
        if form["type"] == "ASK":
            promised = sum((o.remaining for o in live if not o.is_buy and o.market.pair == pair), Decimal(0))
            is_surprise = self.accounts.are_fees_on_top and pair not in self.learned  # the first sale will tell
            slack = volume / 100 if is_surprise else self.fee_debt(pair)
            is_held = promised + volume <= self.coins(pair) + slack or self.is_poisoned
            self._hold(is_held, "I15", f"sells {volume} {pair} of {self.coins(pair)}, {promised} promised")
            self._hold(lunobiz.may_reduce(self.decided), "I22", f"a sale while {state.name}")
            return
        self._hold(state is TradingState.READY, "I22", f"an entry while {state.name}, {kinds}")
        self._hold(not self.locks, "I12", f"an entry while locked: {self.locks}")
        now, value = self.true.now_ms(), self.worth()
        self.buys = [*(t for t in self.buys if t > now - 60_000), now]
        self._hold(len(self.buys) <= limits.orders_per_minute, "I4", f"{len(self.buys)} entries in a minute")
        wanted = sum((o.remaining * o.price for o in live if o.is_buy), Decimal(0)) + volume * Decimal(form["price"])
        held = sum(float(self.coins(p)) * self.prices[p] for p in PAIRS)
        self._hold(float(wanted) + held <= value * limits.max_exposure * 1.001, "I4", "exposure")
        is_first_day = now // lunobiz.DAY_MS == START_MS // lunobiz.DAY_MS
        is_fallen = value <= self.owner.day_worth * self.owner.fresh[1] * (1 - limits.daily_loss_cap)
        self._hold(not (is_first_day and is_fallen), "I14", "an entry after the daily cap")

    def _hold(self, is_true: bool, number: str, words: str) -> None:
        if not is_true:
            raise Violation(number, words)

    def check(self) -> None:
        """After each look."""
        journal, own = self.store.journal(), self.own()
        there = {o.client_id: o for o in own}
        self._hold(set(there) <= set(journal), "I1", f"not in the journal: {set(there) - set(journal)}")
        for client, (state, _) in journal.items():
            is_gone = state in ("rejected", "not placed")
            self._hold(not is_gone or client not in there, "I2", f"{client} is {state} and at the exchange")
        for order in self.session.executor.sent.values():
            base, real = order.filled.base, there.get(order.client_id)
            self._hold(0 <= base <= order.volume, "I3", f"{order.order_id} filled {base} of {order.volume}")
            truth = Decimal(0) if real is None else real.base
            self._hold(base <= truth or self.is_poisoned, "I3", f"{order.order_id} filled {base}, in truth {truth}")
            booked = order.booked.base
            self._hold(booked >= self.seen.get(order.order_id, booked), "I3", f"{order.order_id} booked less")
            self.seen[order.order_id] = booked
        for pair in PAIRS:
            sales = [o.order_id for o in own if o.market.pair == pair and not o.is_buy and o.status != "COMPLETE"]
            self._hold(len(sales) <= 1, "I4", f"two live sales: {sales}")
            self._hold(self.coins(pair) >= -self.fee_debt(pair), "I15", f"the bot has {self.coins(pair)} of {pair}")
        self._check_causes()
        self._check_protection()
        self._check_day()

    def _check_protection(self) -> None:
        """A position has a sale at the exchange soon after all is certain, or the owner has been told.

        Soon: at the second look at which the program knows that there is none, and within a minute if it does not know
        what became of one order. A cancel and a new order whose answers are both lost are two such minutes. The
        look after a sleep of the computer does not count: what it reads is dated by the clock from before.
        """
        is_certain = self.desk.state is TradingState.READY and not self.session.in_the_way()
        now = self.true.now_ms()
        slept_ms = now - self.checked_ms if now - self.checked_ms > BARE_MS else 0
        self.checked_ms = now
        for pair in PAIRS:
            held, known = self.desk.position(pair), MARKETS[pair]
            volume = 0.0 if held is None else lunobiz.sellable(self.desk, held.volume, known)
            sales = [o for o in self.own() if o.market.pair == pair and not o.is_buy and o.status != "COMPLETE"]
            is_told = held is not None and (held.refused > 0 or held.phase is not ExitPhase.NONE)
            is_bare = is_certain and volume >= known.min_volume and not sales and not is_told and pair in self.listed
            ours = frozenset(o.order_id for o in self.desk.orders_of(pair, OrderKind.PROTECTION))
            looks, since_ms, asked, asked_ms = self.bare.pop(pair, (0, now, ours, now))
            if is_bare:
                since_ms, asked_ms = since_ms + slept_ms, asked_ms + slept_ms if asked == ours else now
                self.bare[pair] = looks + (not ours and not slept_ms), since_ms, ours, asked_ms
                is_late = looks >= BARE_LOOKS or now - asked_ms > BARE_MS or now - since_ms > BARE_IN_ALL_MS
                self._hold(not is_late, "I21", f"{volume} {pair} without protection, looks {looks}")

    def _check_day(self) -> None:
        """A day begins once, with one equity; days do not go back."""
        day = (self.desk.day, self.desk.day_start_equity)
        is_same = day in self.days or self.desk.day > max(self.days)[0]
        self._hold(is_same, "I20", f"day {self.days} became {day}")
        self.days = {day}

    def _check_causes(self) -> None:
        """Halts leave by the owner only; READY comes after a reconcile that is later than the trouble."""
        now = frozenset(c.kind for c in self.desk.causes)
        lost = [k.name for k in self.causes_before - now if k in OWNER_CAUSES]
        self._hold(not lost or bool(self.crashes + self.stops), "I22", f"{lost} ended without the owner")
        self.causes_before = now
        self.reached |= now
        is_held_back = any(k.state is TradingState.UNCERTAIN for k in now)
        last = self.session.reconciler.last
        if self._held_back_at is not None and not is_held_back:
            self._hold(last is not self._held_back_at, "I22", "certain again without a reconcile after the trouble")
        self._held_back_at = last if is_held_back else None

    # ---- the end

    def is_settled(self) -> bool:
        """True when nothing is open but the question what the market does."""
        states = {o.state for o in self.session.executor.sent.values()}
        is_calm = self.desk.state in (TradingState.READY, TradingState.COOLDOWN)
        is_certain = is_calm and not states & {OrderState.INTENT, OrderState.UNKNOWN}
        moving = any(o.is_cancelling or o.kind is OrderKind.EXIT for o in self.desk.orders)
        is_fresh = self.session.reconciler.last.at_ms >= self._calm_ms and not self.session.trouble
        return is_certain and not moving and is_fresh and not self.exchange._late and self._is_protected()

    def _is_protected(self) -> bool:
        for position in self.desk.positions:
            known = MARKETS[position.pair]
            volume = lunobiz.sellable(self.desk, position.volume, known)
            resting = self.desk.orders_of(position.pair, OrderKind.PROTECTION)
            if volume >= known.min_volume and [known.round_volume(o.remaining) for o in resting] != [volume]:
                return False
        return True

    def calm(self) -> None:
        """The faults end."""
        self.exchange.faults.clear()
        self.wire.tricks.clear()
        self.at.clear()
        self.failing, self.writes_left = 0, 10**9
        self.wall.offset_ms, self.exchange.skew_ms = 0, 0
        self.exchange.can_trade, self.listed, self.is_runaway, self.locks = True, set(PAIRS), False, ()
        self.exchange.statuses = dict.fromkeys(PAIRS, "ACTIVE")
        self.is_killed, self._calm_ms = False, self.true.now_ms()

    def finish(self) -> None:
        """After the faults everything settles, by itself or by the owner after a halt with its reason, and agrees."""
        self.calm()
        start_ms = self.true.now_ms()
        for number in range(SETTLE_BEATS + 120):
            is_stuck = any(p.refused >= lunobiz.REFUSED_SALES for p in self.desk.positions)
            self.beat(5.0 if number < 6 or number % 4 else 55.0, is_due=is_stuck and number % 8 == 3)  # the next candle
            if self.is_settled() and number >= 1:
                break
            is_late = self.true.now_ms() - max(start_ms, min(self.told_to_wait_ms, start_ms + 605_000)) > 605_000
            is_odd = {c.kind for c in self.desk.causes} & {
                *OWNER_CAUSES, CauseKind.BALANCE_DRIFT, CauseKind.FOREIGN_ORDER}
            if number % 8 == 7 and is_odd:
                self.resolve()
            self._hold(not is_late or bool(self.exchange._late), "I5", f"not settled in ten minutes: {self._words()}")
        self._hold(self.is_settled(), "I5", f"not settled: {self._words()}")
        self.agree()

    def _words(self) -> str:
        orders = [(o.order_id, o.kind.value, o.state.name, o.why) for o in self.session.executor.sent.values()
                  if not o.is_final]
        return f"{self.desk.state.name} {[c.kind.name for c in self.desk.causes]} {orders} {self.session.trouble}"

    def agree(self) -> None:
        """Journal, desk and exchange say the same, to the last digit."""
        there = {o.client_id: o for o in self.own()}
        ledger = {str(r["order_id"]): r for r in self.store.rows_of("ledger", Mode.LIVE)}
        for order in self.session.executor.sent.values():
            real = there.pop(order.client_id, None)
            gone = order.state in (OrderState.REJECTED, OrderState.NOT_PLACED)
            self._hold((real is None) == gone, "I6", f"{order.order_id} is {order.state.name}, {real}")
            if real is None:
                continue
            truth = (real.base, real.counter, real.fee_base, real.fee_counter)
            self._hold(tuple(order.filled) == truth, "I6", f"{order.order_id} {order.filled}, in truth {truth}")
            self._hold(order.is_final == (real.status == "COMPLETE"), "I6", f"{order.order_id} is {real.status}")
            row = ledger.get(order.order_id)
            names = ("base", "counter", "fee_base", "fee_counter")
            booked = tuple(Decimal(str(row[n])) for n in names) if row is not None else (Decimal(0),) * 4
            self._hold(booked == truth, "I6", f"{order.order_id} booked {booked}, in truth {truth}")
        self._hold(not there, "I1", f"lost: {sorted(there)}")
        self._agree_accounts()
        self._agree_rows()

    def _agree_accounts(self) -> None:
        """Coins and cash, explained to the last digit."""
        for asset, before in OWNER.items():
            bot = self.cash() if asset == "ZAR" else self.coins(asset + "ZAR")
            explained = before + self.owner.change[asset] + bot
            self._hold(self.accounts.total[asset] == explained, "I6", f"{asset} at the exchange")
        cash = self.cash_before + float(self.cash() - self.owner.taken_cash())
        self._hold(abs(self.desk.cash - cash) < 1e-6, "I6", f"cash {self.desk.cash}, in truth {cash}")
        for pair in PAIRS:
            volume = self.on_desk(pair)
            self._hold(-1e-9 < volume - float(self.coins(pair)) < float(self.fee_debt(pair)) + 1e-9, "I6",
                       f"{pair} {volume}, in truth {self.coins(pair)}")

    def _agree_rows(self) -> None:
        """States along their arrows only, every sending explained by its intent, no secret anywhere."""
        arrows: dict[str, str] = {}
        for row in self.store.rows_of("answers", Mode.LIVE):
            name, state = str(row["order_id"]), str(row["state"])
            self._hold(state in ARROWS[arrows.get(name, "")], "I22", f"{name} from {arrows.get(name)} to {state}")
            arrows[name] = state
        intents = {str(row["order_id"]) for row in self.store.rows_of("order_intents", Mode.LIVE)}
        sent = {str(row["order_id"]) for row in self.store.rows_of("sendings", Mode.LIVE)}
        self._hold(sent <= intents, "I17", f"sent without a decision: {sorted(sent - intents)}")
        if self.is_thorough:
            self.store.verify()
            told = "".join(self.store.lines()) + self._words()
            self._hold(not any(secret in told for secret in SECRETS), "I18", "a secret was written")


def json_reply(reply: Reply, change: Callable[[dict[str, object]], object]) -> Reply:
    """The answer with its JSON changed."""
    try:
        body = json.loads(reply.body)
    except ValueError:
        return reply
    if not isinstance(body, dict):
        return reply
    return reply._replace(body=json.dumps(change(body) or body).encode())


def instead(status: int, body: bytes = b"") -> Trick:
    """The request is carried out, and answered with this."""
    return lambda serve, params: serve()._replace(status=status, body=body)


def not_served(status: int, body: bytes = b"") -> Trick:
    """The request goes nowhere and is answered with this."""
    return lambda serve, params: Reply(status, {}, body)


def raised(error: Exception) -> Trick:
    """The line breaks before anything is sent."""

    def broken(serve: Callable[[], Reply], params: Params) -> Reply:
        raise error

    return broken


def changed(change: Callable[[dict[str, object]], object]) -> Trick:
    """The answer is carried out and changed."""
    return lambda serve, params: json_reply(serve(), change)


