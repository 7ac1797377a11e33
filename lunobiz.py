"""LunoBiz: a trading desk for one private Luno account, in one file.

It trades PAPER by default, on the same decision and risk code as a backtest. LIVE stays locked.
Run `python lunobiz.py --demo` for a first look without a key or a network; `--help` lists the rest.

How to read this file: from top to bottom. A name is defined before it is used. Everything above SYSTEM is pure:
no disk, network, clock, thread, screen or unseeded chance. One straight line leads from a closed candle to a fill:
FEED or BACKTEST -> MarketView -> decide -> Order -> executor -> Fill -> Desk, and `trade_cycle` is that line.

Map:
    ERRORS     what can go wrong, and what the caller should do
    TYPES      the words of the trade
    SETTINGS   what the owner may set, checked before it is believed
    CANDLES    are these candles whole, in order and closed
    INDICATORS numbers drawn from closed candles
    STRATEGIES what each market is worth, and why
    PORTFOLIO  what we own after each fill
    RISK       may this order go out, and how large
    FILLS      at what price, and how much, would the market have filled this order
    CYCLE      what happens between a closed candle and the next orders
    METRICS    what a run amounts to
    BACKTEST   the same line over recorded candles
    LANES      many parameter sets and many markets at once, by the rules of the cycle
    SKIP       which candles a lane may leave out, and what it does in the others
    WALK       which parameter set would have been chosen, and what it earned unseen
    GATES      may this configuration ever trade for real, and why not
    LEDGER     is an old pass still worth anything
    SELFTEST   how often are the gates themselves wrong
    REPLAY     what went into each cycle, and the same line run over it once more
    ORDERS     what became of an order that was sent, and when that is certain
    ROWS       what the window and the messages say
    ACCOUNT    what rests where, whose coins are whose, and what closing all would bring
    WHY        what kept a market from trading
    SYSTEM     the machine: clock, folders, settings file, kill file, log
    STORE      the audit, the journal of orders and the cache of candles, on disk
    PARITY     do the recorded inputs still give what was recorded
    HTTP       one polite way out
    LUNO       the exchange's words turned into ours
    DEMO       a small exchange inside the program, for the first look and for tests
    FEED       closed candles and fresh quotes, with their faults named
    EXECUTION  real orders, and what became of them
    LIVE       may a real order go out now, and is what the exchange says what we know
    NOTIFY     tell the owner
    KEYS       what only this installation knows
    FILES      recorded candles in, reports and exports out
    DOCTOR     is everything in place, and what would mend it
    ENGINE     one trading session
    REHEARSAL  the whole way of LIVE on the built-in exchange, with its line going wrong
    JOBS       the processes that backtest, export and evaluate, and what the window says to the worker
    WORKER     the thread that trades
    WIDGETS    the parts every screen is made of
    PANELS     the screens of the window, each fed with rows
    DIALOGS    the questions the window asks
    DASHBOARD  the window
    ARGUMENTS  what the command line may say
    MAIN       wire the parts, go

Glossary:
    Market       a tradable pair with its scales, fees and minimum; `pair` is its text, as in "XBTZAR"
    Candle       one closed period; `opened_ms` is its start
    Ticker       best bid and ask now; the spread is their distance
    Outlook      what the strategies read in one market at one closed candle
    Doubt        a reason not to trust one market now
    MarketView   all that a decision may know of one market at one moment, and its doubts
    Moment       all views and conditions of one cycle
    Signal       a strategy's wish to buy; an OrderIntent is the wish with a side, before risk
    RiskVerdict  a volume, or a Refusal with its numbers
    Order, Fill  what is sent, and one execution of it
    Position     what the bot holds of a market; a RoundTrip is its entry and exit together
    Desk         positions, cash, orders, day, halts: the whole trading state in one value
    Cause        one reason why trading is held back; the worst one is the TradingState
Units: prices in counter per base, volumes in base, fractions of one (0.02 is 2 %), times in UTC epoch
milliseconds (`_ms`) or seconds (`_s`).
"""

from __future__ import annotations

import bisect
import difflib
import hashlib
import hmac
import itertools
import json
import math
import re
import statistics
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__version__ = "0.1.0"


# ==============================================================================
# ERRORS | what can go wrong, and what the caller should do
# pure | uses -
# ==============================================================================

# LunobizError
#   SettingsError      refuse to start, name the field
#   ExchangeDown       skip the cycle, back off, try again
#     RateLimited      the same, after wait_s
#     NotSent          the same; no byte of the request has left
#     ContradictedOrder  the same, and trust nothing until it is resolved
#   ExchangeRefused    our request is wrong: do not retry, tell
#   OutcomeUnknown     an order may or may not exist: look it up before anything else
#   AuditBroken        cannot write: stop trading at once
#   KilledByOwner      the kill file is there: send nothing
#   DataError          a file of candles cannot be used: name it and the line


class LunobizError(Exception):
    """Any trouble this program names itself; the message is safe to show and never holds a secret."""


class SettingsError(LunobizError):
    """A setting is wrong: refuse to start. `problems` has one sentence per field."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class ExchangeDown(LunobizError):
    """The exchange did not answer usefully: skip this cycle and back off."""


class RateLimited(ExchangeDown):
    """The exchange asks for fewer calls: wait `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s

    def __str__(self) -> str:
        return f"rate limit reached, waiting {self.wait_s:.0f} s"


class NotSent(ExchangeDown):
    """There was no connection: the exchange cannot have seen anything of the request."""


class ContradictedOrder(ExchangeDown):
    """What the exchange says of an order cannot be true: believe nothing of it, send nothing."""


class ExchangeRefused(LunobizError):
    """The exchange refused the request: do not repeat it, show `code`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


class OutcomeUnknown(LunobizError):
    """An order may or may not exist: settle `order_id` before anything else."""

    def __init__(self, order_id: str) -> None:
        super().__init__(order_id)
        self.order_id = order_id

    def __str__(self) -> str:
        return f"the outcome of order {self.order_id} is unknown"


class AuditBroken(LunobizError):
    """The audit cannot be written or is damaged: stop trading at once."""


class KilledByOwner(LunobizError):
    """The kill file is present or in doubt: send nothing."""


class DataError(LunobizError):
    """A file of recorded data cannot be used; the message names the file and what is wrong."""


# ==============================================================================
# TYPES | the words of the trade
# pure | uses -
# ==============================================================================

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
DECISION_DELAY_MS = 5_000  # a decision is taken this long after its candle has closed, in every mode
DURATIONS_S = (300, 900, 1800, 3600, 10800, 14400, 28800, 86400)


class Mode(Enum):
    """Where prices come from and where orders go."""

    BACKTEST = "backtest"
    DEMO = "demo"
    REPLAY = "replay"
    PAPER = "paper"
    LIVE = "live"


class Side(Enum):
    """Buy or sell the base asset."""

    BUY = "buy"
    SELL = "sell"


class OrderKind(Enum):
    """What an order is for; it decides how it rests, what it pays and whether it is fenced by risk limits."""

    ENTRY = "entry"  # post-only limit, pays the maker fee
    TAKER_ENTRY = "taker entry"  # bounded limit that takes, only after an entry timed out
    EXIT = "exit"  # bounded limit that takes
    PROTECTION = "protection"  # stop-limit that rests at the exchange


class OrderState(Enum):
    """Where an order stands; REJECTED, NOT_PLACED and DONE are final."""

    INTENT = "intent"
    OPEN = "open"
    DONE = "done"
    REJECTED = "rejected"
    UNKNOWN = "unknown"
    NOT_PLACED = "not placed"


class TradingState(Enum):
    """What the desk may do now, from free to nothing at all; the order is the order of severity."""

    READY = 0
    REDUCING = 1
    COOLDOWN = 2
    UNCERTAIN = 3
    HALTED = 4
    KILLED = 5


class CauseKind(Enum):
    """Each reason to hold back, with the trading state it brings."""

    BALANCE_DRIFT = ("balance drift", TradingState.REDUCING)
    FOREIGN_ORDER = ("foreign order", TradingState.REDUCING)
    MAINTENANCE = ("exchange maintenance", TradingState.REDUCING)
    DAILY_CAP = ("daily loss cap", TradingState.COOLDOWN)
    UNKNOWN_ORDER = ("unknown order outcome", TradingState.UNCERTAIN)
    NO_NETWORK = ("no network", TradingState.UNCERTAIN)
    CLOCK_SKEW = ("clock skew", TradingState.UNCERTAIN)
    RESUMED = ("resumed from sleep", TradingState.UNCERTAIN)
    STORE_TROUBLE = ("store trouble", TradingState.UNCERTAIN)
    WEEKLY_CAP = ("weekly loss cap", TradingState.HALTED)
    UNRESOLVED = ("order unresolved", TradingState.HALTED)
    KEY_REFUSED = ("key refused", TradingState.HALTED)
    DAMAGED_STORE = ("damaged store", TradingState.HALTED)
    DOUBLE_USE = ("double use", TradingState.HALTED)
    KILL = ("kill switch", TradingState.KILLED)

    @property
    def words(self) -> str:
        """The cause in plain words."""
        return str(self.value[0])

    @property
    def state(self) -> TradingState:
        """The trading state this cause brings."""
        return TradingState(self.value[1])


class Regime(Enum):
    """The kind of market, from trend and volatility on slower timeframes."""

    TRENDING = "trending"
    RANGING = "ranging"
    WILD = "wild"
    UNKNOWN = "unknown"


class Doubt(Enum):
    """Why one market is not to be trusted now: no entries there."""

    NO_CANDLES = "no candles"
    SHORT_HISTORY = "history too short"
    STALE_CANDLES = "candles stale"
    GAP = "gap in candles"
    BAD_CANDLE = "impossible candle"
    JUMP = "price jump"
    NO_TRADES = "no trades"
    NO_QUOTE = "no quote"
    STALE_QUOTE = "quote stale"
    CROSSED = "bid above ask"
    NOT_ACTIVE = "market not active"
    DELISTED = "market not listed"
    FEES_UNKNOWN = "fees unknown"


class Refusal(Enum):
    """Why risk refused an order; the value is the stable code of the audit."""

    KILLED = "P1-killed"
    STATE = "P2-state"
    UNKNOWN_ORDER = "P3-unknown-order"
    MODE = "P4-mode"
    BAD_NUMBER = "P5-number"
    MIN_VOLUME = "P5-minimum"
    ORDER_VALUE = "P6-order-value"
    MAX_POSITIONS = "P7-positions"
    EXPOSURE = "P7-exposure"
    ASSET_EXPOSURE = "P7-asset"
    GROUP_EXPOSURE = "P7-group"
    PRICE_COLLAR = "P8-price"
    SPREAD = "P8-spread"
    DEPTH = "P8-depth"
    VOLUME_24H = "P8-volume-24h"
    STALE = "P9-stale"
    DUPLICATE = "P10-duplicate"
    THROTTLE = "P11-throttle"
    LOSS_CAP = "P12-loss-cap"
    MARKET = "P13-market"
    BALANCE = "P14-balance"
    CONDITIONS = "P15-conditions"
    CASH = "S0-cash"
    CONFIDENCE = "S1-confidence"
    BREAK_EVEN = "S2-break-even"
    HELD = "S3-held"
    DOUBT = "S4-doubt"


class Action(Enum):
    """What was decided for one market at one closed candle."""

    ENTER = "enter"
    EXIT = "exit"
    HOLD = "hold"
    WAIT = "wait"
    REJECT = "reject"
    SKIP = "skip"


class ExitPhase(Enum):
    """How far leaving a position has come; each step is settled before the next."""

    NONE = "none"
    CANCELLING = "cancelling"
    EXITING = "exiting"


def _slack(value: float, step: float) -> float:
    """How near to the grid counts as on it: a millionth of a step, or the last binary digits of the value."""
    return max(step * 1e-6, 4 * math.ulp(value))


def _floor_steps(value: float, scale: int) -> float:
    """Value rounded down to `scale` decimals; `round` knows the grid, a product with 10**scale misses it."""
    near, step = round(value, scale), 10.0**-scale
    return near if near - value <= _slack(value, step) else round(near - step, scale)


def _ceil_steps(value: float, scale: int) -> float:
    near, step = round(value, scale), 10.0**-scale
    return near if value - near <= _slack(value, step) else round(near + step, scale)


def plain(value: float) -> str:
    """A price or volume for a sentence: six significant digits, thousands set apart, never an exponent."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else "unknown"
    places = min(12, max(0, 5 - math.floor(math.log10(abs(value)))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


@dataclass(frozen=True, slots=True)
class Market:
    """A tradable pair: scales are decimals, fees are fractions of the notional."""

    pair: str
    base: str
    counter: str
    price_scale: int
    volume_scale: int
    min_volume: float
    max_volume: float
    min_price: float
    max_price: float
    status: str = "ACTIVE"
    maker_fee: float = 0.004
    taker_fee: float = 0.006
    fee_source: str = "entry tier"
    model_spread: float = 0.001  # used where no quote was recorded

    @property
    def tick(self) -> float:
        """The smallest step of a price."""
        return float(10.0**-self.price_scale)

    @property
    def name(self) -> str:
        """The pair as people write it, base/counter."""
        return f"{self.base}/{self.counter}"

    def round_price(self, price: float, side: Side) -> float:
        """Price on the tick grid, rounded against ourselves: up to buy, down to sell."""
        rounder = _ceil_steps if side is Side.BUY else _floor_steps
        return rounder(price, self.price_scale)

    def round_volume(self, volume: float) -> float:
        """Volume on the lot grid, rounded down."""
        return _floor_steps(volume, self.volume_scale)


FEE_SCALE = 8


def round_fee(fee: float) -> float:
    """A fee on the exchange's grid, rounded up, against ourselves; a rebate stays a rebate."""
    return _ceil_steps(fee, FEE_SCALE)


def exact(value: float, scale: int) -> Decimal:
    """A float that lies on a grid of `scale` decimals as the Decimal it stands for."""
    return Decimal(f"{value:.{scale}f}")


def approx(value: Decimal) -> float:
    """A Decimal from the exchange as the float the decisions compute with."""
    return float(value)


@dataclass(frozen=True, slots=True)
class Candle:
    """One closed period."""

    opened_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass(frozen=True, slots=True)
class Ticker:
    """Best bid and ask and the last price at `time_ms`; 24-hour volume in base."""

    pair: str
    time_ms: int
    bid: float
    ask: float
    last: float
    volume_24h: float
    status: str = "ACTIVE"

    @property
    def mid(self) -> float:
        """Halfway between bid and ask."""
        return (self.bid + self.ask) / 2

    @property
    def spread(self) -> float:
        """Distance of bid and ask as a fraction of the middle."""
        return (self.ask - self.bid) / self.mid if self.mid > 0 else math.inf


@dataclass(frozen=True, slots=True)
class OrderBook:
    """Levels of (price, volume), best first."""

    time_ms: int
    bids: tuple[tuple[float, float], ...]
    asks: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Setup:
    """What one strategy reads in one market at one closed candle; `move` is the expected move as a fraction."""

    strategy: str
    is_entry: bool
    is_exit: bool
    strength: float
    stop_distance: float
    move: float
    numbers: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """A doubt with its reason in words."""

    doubt: Doubt
    why: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """All strategies' reading of one market at one closed candle."""

    pair: str
    timeframe_s: int
    opened_ms: int
    close: float
    atr: float
    regime: Regime
    setups: tuple[Setup, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def closed_ms(self) -> int:
        """When the candle closed."""
        return self.opened_ms + self.timeframe_s * 1000


@dataclass(frozen=True, slots=True)
class MarketView:
    """All that a decision may know of one market at one moment.

    `bar` is the finest candle that closed since the last cycle, evidence for fills; `outlooks` has a row per
    decision candle that closed in this cycle; `correlated` names the pairs that move with this one.
    """

    market: Market
    ticker: Ticker | None
    bar: Candle | None = None
    outlooks: tuple[Outlook, ...] = ()
    book: OrderBook | None = None
    findings: tuple[Finding, ...] = ()
    correlated: tuple[str, ...] = ()

    @property
    def pair(self) -> str:
        """The pair's text."""
        return self.market.pair


@dataclass(frozen=True, slots=True)
class Conditions:
    """The state of the machine and the line at this moment; anything unknown is False or infinite.

    `size` is the share of the tested size that may be traded: LIVE takes what its gates found safe, and in its first
    orders, `is_trial`, the smallest there are. From `may_enter` on it is what LIVE knows of its account and orders.
    """

    is_killed: bool = False
    has_network: bool = True
    is_store_ok: bool = True
    is_mode_allowed: bool = True
    is_maintenance: bool = False
    is_key_refused: bool = False
    skew_ms: float = 0.0
    loop_gap_ms: float = 0.0
    reconcile_age_ms: float = 0.0
    is_reconciled: bool = True
    size: float = 1.0
    is_trial: bool = False
    may_enter: bool = True
    is_drifting: bool = False
    has_foreign: bool = False
    is_double_used: bool = False
    is_unresolved: bool = False
    is_contradicted: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """Everything one cycle is decided on; views are in order of their pairs.

    `due` holds the timeframes whose candle has just closed: only then may entries be considered. A follow-up is a
    second look a few seconds later that brings no new evidence, only the answers to cancels.
    """

    now_ms: int
    views: tuple[MarketView, ...]
    conditions: Conditions = field(default_factory=Conditions)
    due: tuple[int, ...] = ()
    is_follow_up: bool = False

    def view(self, pair: str) -> MarketView | None:
        """The view of one market."""
        return next((v for v in self.views if v.pair == pair), None)


@dataclass(frozen=True, slots=True)
class Signal:
    """A strategy's wish to buy; `move` and `break_even` are fractions, `stop` a price."""

    pair: str
    strategy: str
    timeframe_s: int
    opened_ms: int
    regime: Regime
    confidence: float
    stop: float
    stop_distance: float
    move: float
    break_even: float
    why: str


@dataclass(frozen=True, slots=True)
class OrderIntent:
    """A wish with a side, before risk: `limit` is the price it may not pass, `volume` 0 lets risk size it."""

    pair: str
    side: Side
    kind: OrderKind
    limit: float
    stop: float
    volume: float
    signal: Signal | None
    why: str


@dataclass(frozen=True, slots=True)
class RiskVerdict:
    """A volume to trade, or 0 with the refusal, a sentence and its numbers."""

    intent: OrderIntent
    volume: float
    refusal: Refusal | None
    why: str
    numbers: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """An order with its own id, as written to the journal before it is sent.

    `stop` is the trigger of a PROTECTION and, for an entry, the stop the position will get. `expires_ms` is 0 for
    orders that rest until cancelled. `is_triggered` marks a stop-limit whose stop was reached.
    """

    order_id: str
    pair: str
    side: Side
    kind: OrderKind
    state: OrderState
    volume: float
    limit: float
    stop: float
    created_ms: int
    expires_ms: int
    strategy: str
    regime: Regime
    timeframe_s: int
    why: str
    filled: float = 0.0
    is_triggered: bool = False
    is_cancelling: bool = False

    @property
    def remaining(self) -> float:
        """Volume not filled yet."""
        return max(0.0, self.volume - self.filled)


@dataclass(frozen=True, slots=True)
class Fill:
    """One execution; fees in base and in counter, either may be 0."""

    fill_id: str
    order_id: str
    pair: str
    side: Side
    kind: OrderKind
    time_ms: int
    price: float
    volume: float
    fee_base: float
    fee_counter: float
    is_maker: bool
    evidence: str

    @property
    def value(self) -> float:
        """Price times volume, in counter."""
        return self.price * self.volume


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an order: its state now and why; `refused` is the exchange's code if it refused it."""

    order_id: str
    state: OrderState
    why: str
    is_triggered: bool = False
    refused: str = ""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What an order has traded in all with its fills booked so far, exact: base, counter, and fees in both."""

    order_id: str
    base: Decimal
    counter: Decimal
    fee_base: Decimal
    fee_counter: Decimal


@dataclass(frozen=True, slots=True)
class Settlement:
    """All that happened to our orders since the last cycle; real ones come with their exact ledger."""

    fills: tuple[Fill, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    ledger: tuple[LedgerRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Position:
    """What the bot holds of a market.

    `bought` and `entry_value` grow with each buy, `sold` and `exit_value` with each sale, `fees` (in counter) with
    both; `mark` is the last bid seen, `best` the highest close since entry, `exit_fee` the taker fee of a sale.
    `refused` counts the sales that the exchange refused one after the other.
    """

    pair: str
    volume: float
    stop: float
    stop_distance: float
    opened_ms: int
    strategy: str
    regime: Regime
    timeframe_s: int
    best: float
    mark: float
    bought: float
    entry_value: float
    fees: float
    exit_fee: float
    sold: float = 0.0
    exit_value: float = 0.0
    phase: ExitPhase = ExitPhase.NONE
    exit_why: str = ""
    refused: int = 0

    @property
    def entry(self) -> float:
        """Average price paid, without fees."""
        return self.entry_value / self.bought if self.bought > 0 else 0.0


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Entry and exit together; `profit` is after fees, in counter."""

    pair: str
    strategy: str
    regime: Regime
    timeframe_s: int
    opened_ms: int
    closed_ms: int
    volume: float
    entry: float
    exit: float
    fees: float
    profit: float
    reason: str


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason to hold back, since when, and until when if that is known (0 = not by time)."""

    kind: CauseKind
    since_ms: int
    until_ms: int
    why: str


@dataclass(frozen=True, slots=True)
class Balance:
    """What the exchange says of one asset: total and reserved, exact."""

    account_id: str
    asset: str
    total: Decimal
    reserved: Decimal

    @property
    def available(self) -> Decimal:
        """What may be used now; the cautious reading of the exchange's two figures."""
        return self.total - self.reserved


@dataclass(frozen=True, slots=True)
class Decision:
    """One row per pair and closed candle: what was decided, why, and the numbers behind it."""

    time_ms: int
    pair: str
    timeframe_s: int
    opened_ms: int
    action: Action
    strategy: str
    regime: Regime
    confidence: float
    code: str
    why: str
    numbers: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth telling: `kind` is a stable word, `level` info, warning or error."""

    time_ms: int
    kind: str
    level: str
    text: str
    pair: str = ""


DASH = "—"  # unknown is never shown as zero
DEAD_BAND = 0.00005  # a change below this fraction has no sign, no colour and no glyph
COIN_COUNTERS = frozenset(("XBT", "BTC", "ETH"))


def number_text(value: float | None, scale: int) -> str:
    """A number with grouped thousands and `scale` decimals; never "-0"."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:,.{scale}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.,") else text


def signed_number(value: float | None, scale: int) -> str:
    """The same with a plus sign where it is above zero."""
    text = number_text(value, scale)
    return text if text == DASH or text.startswith("-") or not text.strip("0.,") else "+" + text


def money_scale(counter: str) -> int:
    """Decimals that an amount of this currency is shown with."""
    return 8 if counter in COIN_COUNTERS else 2


def _with_sign_of(counter: str, text: str) -> str:
    """The rand's R goes between sign and digits, any other currency behind the amount."""
    if text == DASH:
        return text
    if counter != "ZAR":
        return f"{text} {counter}"
    sign = text[0] if text[0] in "+-" else ""
    return f"{sign}R{text[len(sign):]}"


def money_text(value: float | None, counter: str) -> str:
    """An amount with its currency: `R102,418.55` or `1,234.50 USDT`."""
    return _with_sign_of(counter, number_text(value, money_scale(counter)))


def signed_money(value: float | None, counter: str) -> str:
    """A gain or loss with its currency: `+R1,245.10`, `-R97.96`, `R0.00`."""
    return _with_sign_of(counter, signed_number(value, money_scale(counter)))


def whole_money(value: float | None, counter: str) -> str:
    """An amount without cents, rounded down, so that what is left is never overstated."""
    if value is None or not math.isfinite(value) or counter in COIN_COUNTERS:
        return money_text(value, counter)
    return _with_sign_of(counter, number_text(float(math.floor(value)), 0))


def percent_text(fraction: float | None, places: int = 2) -> str:
    """A fraction of one as `61.80 %`."""
    text = number_text(None if fraction is None else fraction * 100, places)
    return text if text == DASH else text + " %"


def signed_percent(fraction: float | None) -> str:
    """A change as `+1.23 %`; inside the dead band it has no sign."""
    if fraction is None or not math.isfinite(fraction):
        return DASH
    return "0.00 %" if abs(fraction) < DEAD_BAND else signed_number(fraction * 100, 2) + " %"


# ==============================================================================
# SETTINGS | what the owner may set, checked before it is believed
# pure | uses ERRORS TYPES
# ==============================================================================

PREFIX = "LUNOBIZ_"
DEFAULT_PAIRS = ("XBTZAR", "ETHZAR", "XRPZAR", "SOLZAR", "LTCZAR")
DEFAULT_TIMEFRAMES = (14_400,)  # four hours, in seconds: README.md, "How fast to trade", says why


@dataclass(frozen=True, slots=True)
class RiskLimits:
    """Limits on what may be risked; fractions of equity unless said otherwise."""

    risk_per_trade: float = 0.005
    daily_loss_cap: float = 0.03
    weekly_loss_cap: float = 0.06
    cooldown_hours: float = 12.0
    daily_cap_action: str = "close"
    max_positions: int = 3
    max_exposure: float = 0.60
    max_asset_exposure: float = 0.25
    max_group_exposure: float = 0.40
    max_spread: float = 0.004
    min_volume_24h: float = 1_000_000.0
    min_confidence: float = 0.55
    min_edge: float = 2.0
    orders_per_minute: int = 6
    orders_per_day: int = 100
    round_trips_per_day: int = 10
    price_collar: float = 0.02


@dataclass(frozen=True, slots=True)
class Costs:
    """What trading costs beyond the fees; fractions of the price."""

    slippage: float = 0.001
    stop_gap: float = 0.01
    exit_bound: float = 0.02


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is traded and when; timeframes in seconds."""

    counter: str = "ZAR"
    pairs: tuple[str, ...] = DEFAULT_PAIRS
    timeframes: tuple[int, ...] = DEFAULT_TIMEFRAMES
    paper_cash: float = 100_000.0
    entry_timeout_candles: int = 1
    takes_after_timeout: bool = False
    target_daily_return: float = 0.03


@dataclass(frozen=True, slots=True)
class GateLimits:
    """The owner's thresholds of the gates for LIVE."""

    max_drawdown: float = 0.15
    worst_day: float = 0.05
    min_round_trips: int = 30
    windows: int = 12
    min_windows: int = 8
    warm_up_days: int = 60
    train_days: int = 365
    embargo_days: int = 5
    test_days: int = 60
    money_p: float = 0.20
    luck_p: float = 0.005
    permutations: int = 199
    bootstraps: int = 2000
    paper_days: int = 60
    max_missing: float = 0.005
    min_pairs: int = 2
    max_age_days: int = 2
    valid_days: int = 30
    max_unseen_age_days: int = 35
    min_size: float = 0.10
    seed: int = 20_260_101


@dataclass(frozen=True, slots=True)
class StrategyParams:
    """One set of the strategies' parameters; lengths are in hours, whatever the decision timeframe.

    The default is the lively set of the demo. What trades for real comes from the fixed list of sets. A set that
    `is_cash` enters nothing; what is held is left by its rules.
    """

    breakout: int = 120
    exit_channel: int = 72
    atr: int = 24
    stop_atr: float = 5.0
    trail_atr: float = 7.0
    squeeze: int = 96
    expansion: float = 2.0
    reversion: int = 48
    reversion_z: float = 2.0
    max_holding: int = 480
    trend_efficiency: float = 0.30
    wild_ratio: float = 2.5
    is_cash: bool = False


@dataclass(frozen=True, slots=True)
class Notices:
    """Where messages go; the token itself lives in Credentials."""

    desktop: bool = True
    telegram_chat: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the owner may set, checked; no secret is in here."""

    limits: RiskLimits = field(default_factory=RiskLimits)
    costs: Costs = field(default_factory=Costs)
    schedule: Schedule = field(default_factory=Schedule)
    gates: GateLimits = field(default_factory=GateLimits)
    params: StrategyParams = field(default_factory=StrategyParams)
    notices: Notices = field(default_factory=Notices)
    wants_live: bool = False
    exchange_url: str = "https://api.luno.com"
    exchange_ca: str = ""

    @property
    def is_test_exchange(self) -> bool:
        """True when the client points at another host than Luno's."""
        return self.exchange_url != "https://api.luno.com"


class Credentials:
    """A key pair or a token; nothing shows it, and it refuses to be changed, copied or pickled.

    Not a dataclass: `asdict` and `astuple` would spell it out.
    """

    __slots__ = ("key_id", "secret")
    key_id: str
    secret: str

    def __init__(self, key_id: str = "", secret: str = "") -> None:
        object.__setattr__(self, "key_id", key_id)
        object.__setattr__(self, "secret", secret)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError("credentials never change")

    def __delattr__(self, name: str) -> None:
        raise TypeError("credentials never change")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Credentials) and (self.key_id, self.secret) == (other.key_id, other.secret)

    def __repr__(self) -> str:
        return "Credentials(set)" if self else "Credentials(empty)"

    def __bool__(self) -> bool:
        return bool(self.key_id and self.secret)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("credentials are never pickled")

    def __getstate__(self) -> object:
        raise TypeError("credentials are never pickled")


RANGE_WORDS = types.MappingProxyType(
    {
        "yesno": "yes or no",
        "action": "close or hold",
        "pairs": "comma list of markets such as XBTZAR",
        "durations": "comma list of 300, 900, 1800, 3600, 10800, 14400, 28800, 86400",
        "counter": "3 to 4 capital letters",
        "url": "a URL starting with https://",
        "text": "text",
        "secret": "as issued",
        "path": "a writable folder",
    }
)


class Field(NamedTuple):
    """One setting: its name, where it lands (`group.attribute`), its kind, default, range, unit and meaning."""

    name: str
    target: str
    kind: str
    default: str
    low: float
    high: float
    unit: str
    meaning: str
    is_in_window: bool = True

    @property
    def range_text(self) -> str:
        """The allowed range in words."""
        if self.kind in ("float", "int"):
            return f"{plain(self.low)} to {plain(self.high)}"
        return RANGE_WORDS.get(self.kind, self.kind)


FIELDS = (
    Field("READ_KEY_ID", "", "secret", "", 0, 0, "", "Luno key for reading only (permission bits 131107)"),
    Field("READ_KEY_SECRET", "", "secret", "", 0, 0, "", "its secret"),
    Field("LIVE_KEY_ID", "", "secret", "", 0, 0, "", "Luno key for LIVE orders (131171); never the read key"),
    Field("LIVE_KEY_SECRET", "", "secret", "", 0, 0, "", "its secret"),
    Field("ENABLE_LIVE", "wants_live", "yesno", "no", 0, 0, "", "ask for LIVE; the gates still decide", False),
    Field("COUNTER", "schedule.counter", "counter", "ZAR", 0, 0, "", "home currency; only its markets are traded"),
    Field("PAIRS", "schedule.pairs", "pairs", "XBTZAR,ETHZAR,XRPZAR,SOLZAR,LTCZAR", 0, 0, "", "markets to trade"),
    Field("TIMEFRAME_S", "schedule.timeframes", "durations", "14400", 0, 0, "s", "decision candles"),
    Field("PAPER_CASH", "schedule.paper_cash", "float", "100000", 1e3, 1e9, "counter", "cash PAPER starts with"),
    Field("RISK_PER_TRADE", "limits.risk_per_trade", "float", "0.005", 0.001, 0.02, "of equity",
          "lost if a stop is hit, after costs"),
    Field("DAILY_LOSS_CAP", "limits.daily_loss_cap", "float", "0.03", 0.005, 0.05, "of equity",
          "loss of a UTC day that halts trading"),
    Field("WEEKLY_LOSS_CAP", "limits.weekly_loss_cap", "float", "0.06", 0.005, 0.10, "of equity",
          "loss of a week that halts trading until you confirm; not below the daily cap"),
    Field("COOLDOWN_HOURS", "limits.cooldown_hours", "float", "12", 1, 72, "h", "pause after the daily cap"),
    Field("DAILY_CAP_ACTION", "limits.daily_cap_action", "action", "close", 0, 0, "",
          "close all positions at the cap, or hold them to their stops"),
    Field("MAX_POSITIONS", "limits.max_positions", "int", "3", 1, 8, "", "positions open at once"),
    Field("MAX_EXPOSURE", "limits.max_exposure", "float", "0.60", 0.05, 1, "of equity", "all positions together"),
    Field("MAX_ASSET_EXPOSURE", "limits.max_asset_exposure", "float", "0.25", 0.05, 1, "of equity", "one asset"),
    Field("MAX_GROUP_EXPOSURE", "limits.max_group_exposure", "float", "0.40", 0.05, 1, "of equity",
          "markets with a 60-day correlation above 0.8, together"),
    Field("MAX_SPREAD", "limits.max_spread", "float", "0.0040", 0.0005, 0.02, "of price", "widest spread to enter at"),
    Field("MIN_VOLUME_24H", "limits.min_volume_24h", "float", "1000000", 0, 1e9, "counter",
          "thinnest market to enter"),
    Field("SLIPPAGE", "costs.slippage", "float", "0.0010", 0, 0.02, "of price", "assumed on every taking fill"),
    Field("STOP_GAP", "costs.stop_gap", "float", "0.01", 0.001, 0.05, "of price",
          "how far below its stop a protection may still sell"),
    Field("ENTRY_TIMEOUT_CANDLES", "schedule.entry_timeout_candles", "int", "1", 1, 24, "candles",
          "how long an entry order rests"),
    Field("ENTRY_TAKER_AFTER_TIMEOUT", "schedule.takes_after_timeout", "yesno", "no", 0, 0, "",
          "take at the market when a resting entry was not filled and its signal still stands"),
    Field("MIN_CONFIDENCE", "limits.min_confidence", "float", "0.55", 0, 1, "", "lowest confidence to enter with"),
    Field("MIN_EDGE", "limits.min_edge", "float", "2", 1, 10, "x break-even",
          "how far the expected move of an entry must exceed its costs"),
    Field("MAX_DRAWDOWN_GATE", "gates.max_drawdown", "float", "0.15", 0.05, 0.30, "of equity",
          "drawdown a gate evaluation may show"),
    Field("WORST_DAY_GATE", "gates.worst_day", "float", "0.05", 0.01, 0.10, "of equity",
          "worst day a gate evaluation may show"),
    Field("MIN_TRADES_GATE", "gates.min_round_trips", "int", "30", 30, 1000, "", "round trips a gate evaluation needs"),
    Field("TARGET_DAILY_RETURN", "schedule.target_daily_return", "float", "0.03", 0, 0.05, "of equity",
          "your wish, shown beside what was reached; it never changes risk"),
    Field("TELEGRAM_TOKEN", "", "secret", "", 0, 0, "", "token of your Telegram bot"),
    Field("TELEGRAM_CHAT_ID", "notices.telegram_chat", "text", "", 0, 0, "", "chat that gets the messages"),
    Field("DESKTOP_NOTICES", "notices.desktop", "yesno", "yes", 0, 0, "", "desktop notices when Telegram is not set"),
    Field("EXCHANGE_URL", "exchange_url", "url", "https://api.luno.com", 0, 0, "",
          "another exchange host, for tests; shown as TEST EXCHANGE", False),
    Field("EXCHANGE_CA", "exchange_ca", "text", "", 0, 0, "", "PEM file with its certificate authority", False),
    Field("HOME", "", "path", "", 0, 0, "", "folder of database, log and kill file", False),
)
SECRET_NAMES = tuple(PREFIX + f.name for f in FIELDS if f.kind == "secret")
_NUMBER = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,12})?")
_PAIR = re.compile(r"[A-Z0-9]{6,10}")
_COUNTER = re.compile(r"[A-Z]{3,4}")
_KEY = re.compile(r"[\x21-\x7e]{1,200}")


def plain_number(text: str) -> float:
    """A number written as 1000000, 1,000,000 or 1 000 000; ValueError says how to write it otherwise."""
    squeezed = text.strip()
    if re.fullmatch(r"-?[1-9][0-9]{0,2}([, ])[0-9]{3}(\1[0-9]{3})*(\.[0-9]+)?", squeezed):
        squeezed = squeezed.replace(",", "").replace(" ", "")
    if re.fullmatch(r"-?[0-9]+,[0-9]+", squeezed):
        raise ValueError(f"use a point: {squeezed.replace(',', '.')}")
    if not _NUMBER.fullmatch(squeezed):
        raise ValueError("write a plain number such as 0.75")
    return float(squeezed)


def _read_number(spec: Field, text: str) -> float:
    value = plain_number(text)
    if not spec.low <= value <= spec.high:
        raise ValueError(f"allowed is {spec.range_text}")
    return value


def _read_int(spec: Field, text: str) -> int:
    value = _read_number(spec, text)
    if value != int(value):
        raise ValueError("write a whole number")
    return int(value)


def _read_choice(spec: Field, text: str, choices: tuple[str, ...]) -> str:
    word = text.strip().lower()
    if word not in choices:
        raise ValueError(f"allowed is {spec.range_text}")
    return word


def _read_pairs(spec: Field, text: str) -> tuple[str, ...]:
    pairs = tuple(p.strip().upper() for p in text.split(",") if p.strip())
    if not pairs or not all(_PAIR.fullmatch(p) for p in pairs):
        raise ValueError(f"write a {spec.range_text}")
    if len(set(pairs)) < len(pairs):
        raise ValueError("a market is named twice")
    return pairs


def _read_durations(spec: Field, text: str) -> tuple[int, ...]:
    words = [w.strip() for w in text.split(",") if w.strip()]
    if not words or any(not w.isascii() or not w.isdigit() or int(w) not in DURATIONS_S for w in words):
        raise ValueError(f"write a {spec.range_text}")
    if len(set(words)) < len(words):
        raise ValueError("a timeframe is named twice")
    return tuple(sorted(int(w) for w in words))


def _read_url(spec: Field, text: str) -> str:
    url = text.strip().rstrip("/").lower()
    if not re.fullmatch(r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?", url):
        raise ValueError("write https://host or https://host:port, nothing behind it")
    return url


def _read_counter(spec: Field, text: str) -> str:
    word = text.strip().upper()
    if not _COUNTER.fullmatch(word):
        raise ValueError(f"write {spec.range_text}")
    return word


READERS: Mapping[str, Callable[[Field, str], object]] = types.MappingProxyType(
    {
        "float": _read_number,
        "int": _read_int,
        "yesno": lambda spec, text: _read_choice(spec, text, ("yes", "no")) == "yes",
        "action": lambda spec, text: _read_choice(spec, text, ("close", "hold")),
        "pairs": _read_pairs,
        "durations": _read_durations,
        "counter": _read_counter,
        "url": _read_url,
        "text": lambda spec, text: text.strip(),
    }
)


def read_field(spec: Field, text: str) -> object:
    """The value of one setting; ValueError says what is allowed."""
    return READERS[spec.kind](spec, text)


def _assemble(values: Mapping[str, object]) -> Settings:
    """Settings from `group.attribute` -> value; the readers have fixed the types that mypy cannot follow."""
    groups: dict[str, dict[str, object]] = {}
    top: dict[str, object] = {}
    for target, value in values.items():
        group, dot, attribute = target.partition(".")
        if dot:
            groups.setdefault(group, {})[attribute] = value
        else:
            top[target] = value
    return Settings(
        limits=RiskLimits(**groups["limits"]),  # type: ignore[arg-type]
        costs=Costs(**groups["costs"]),  # type: ignore[arg-type]
        schedule=Schedule(**groups["schedule"]),  # type: ignore[arg-type]
        gates=GateLimits(**groups["gates"]),  # type: ignore[arg-type]
        notices=Notices(**groups["notices"]),  # type: ignore[arg-type]
        **top,  # type: ignore[arg-type]
    )


def _cross_checks(settings: Settings) -> list[str]:
    """What no single field can tell."""
    limits, problems = settings.limits, []
    if limits.weekly_loss_cap < limits.daily_loss_cap:
        problems.append(
            f"LUNOBIZ_WEEKLY_LOSS_CAP is {limits.weekly_loss_cap:g}; it may not be below"
            f" LUNOBIZ_DAILY_LOSS_CAP, {limits.daily_loss_cap:g}"
        )
    wrong = [p for p in settings.schedule.pairs if not p.endswith(settings.schedule.counter)]
    if wrong:
        problems.append(f"LUNOBIZ_PAIRS names {', '.join(wrong)}; only {settings.schedule.counter} markets are traded")
    return problems


def unknown_names(env: Mapping[str, str]) -> list[str]:
    """One sentence per LUNOBIZ_ name that no setting has, with the nearest known one."""
    known = [PREFIX + f.name for f in FIELDS]
    sentences = []
    for name in sorted(n for n in env if n.startswith(PREFIX) and n not in known):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        sentences.append(f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
    return sentences


def parse_settings(env: Mapping[str, str]) -> Settings:
    """Settings from the environment; SettingsError names each wrong field, its value and what is allowed."""
    problems: list[str] = []
    values: dict[str, object] = {}
    for spec in FIELDS:
        if not spec.target:
            continue
        text = env.get(PREFIX + spec.name, "")
        try:
            values[spec.target] = read_field(spec, text if text.strip() else spec.default)
        except ValueError as error:
            allowed = "" if spec.range_text in str(error) else f" ({spec.range_text})"
            problems.append(f'{PREFIX}{spec.name} is "{text[:60]}": {error}{allowed}')
    if not problems:
        settings = _assemble(values)
        problems = _cross_checks(settings)
    if problems:
        raise SettingsError(*problems)
    return settings


def _key_pair(env: Mapping[str, str], name: str) -> Credentials:
    key_id, secret = (env.get(f"{PREFIX}{name}_KEY_{part}", "").strip() for part in ("ID", "SECRET"))
    if bool(key_id) != bool(secret):
        missing = "SECRET" if key_id else "ID"
        raise SettingsError(f"LUNOBIZ_{name}_KEY_{missing} is missing: a key needs both its id and its secret")
    if key_id and not (_KEY.fullmatch(key_id) and _KEY.fullmatch(secret) and ":" not in key_id):
        raise SettingsError(f"LUNOBIZ_{name}_KEY_ID or its secret has characters that no Luno key has")
    return Credentials(key_id, secret)


def parse_read_key(env: Mapping[str, str]) -> Credentials:
    """The read-only key; SettingsError if it is half given or equal to the live one."""
    key = _key_pair(env, "READ")
    live_id, live_secret = (env.get(f"{PREFIX}LIVE_KEY_{part}", "").strip() for part in ("ID", "SECRET"))
    if key and (key.key_id == live_id or key.secret == live_secret):
        raise SettingsError("LUNOBIZ_READ_KEY_ID and LUNOBIZ_LIVE_KEY_ID must be two different keys")
    return key


def parse_live_key(env: Mapping[str, str]) -> Credentials:
    """The key for LIVE orders; SettingsError if it is half given or equal to the read-only one."""
    parse_read_key(env)
    return _key_pair(env, "LIVE")


def telegram_token(env: Mapping[str, str]) -> Credentials:
    """The Telegram bot's token, as a value that hides itself."""
    token = env.get(PREFIX + "TELEGRAM_TOKEN", "").strip()
    if token and not re.fullmatch(r"[0-9]{3,20}:[A-Za-z0-9_-]{10,100}", token):
        raise SettingsError("LUNOBIZ_TELEGRAM_TOKEN does not look like a bot token (digits, a colon, letters)")
    return Credentials("telegram", token) if token else Credentials()


def env_example() -> str:
    """The text of .env.example: every setting with its meaning, unit, range and default."""
    lines = [
        "# Copy this file to .env and fill in what you need. Every line may stay empty: the default then holds.",
        "# The .env file holds secrets. It is ignored by git; never share or commit it.",
        "",
    ]
    for spec in FIELDS:
        meaning, unit = spec.meaning[0].upper() + spec.meaning[1:], f" Unit: {spec.unit}." if spec.unit else ""
        lines.append(f"# {meaning}.{unit} Allowed: {spec.range_text}. Default: {spec.default or 'none'}.")
        lines.append(f"{PREFIX}{spec.name}=")
    return "\n".join(lines) + "\n"


def settings_table() -> str:
    """The table of settings for README.md."""
    rows = ["| name | default | range | unit | meaning |", "|---|---|---|---|---|"]
    for f in FIELDS:
        cells = (f"`{PREFIX}{f.name}`", f.default or "-", f.range_text, f.unit or "-", f.meaning)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def config_hash(settings: Settings) -> str:
    """SHA-256 over everything that decides a trade; wishes, notices and hosts do not count."""
    schedule = replace(settings.schedule, target_daily_return=0.0)
    parts = (settings.limits, settings.costs, schedule, settings.gates, settings.params)
    return hashlib.sha256(json.dumps([asdict(part) for part in parts], sort_keys=True).encode()).hexdigest()


# ==============================================================================
# CANDLES | are these candles whole, in order and closed
# pure | uses TYPES
# ==============================================================================

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
JUMP = 0.20  # a close this far from the one before, as a fraction, is named a jump
RECENT = 24  # candles in which a gap, a jump or silence keeps a market out
MAX_QUOTE_AGE_S = 15


@dataclass(frozen=True, slots=True)
class Series:
    """Closed candles of one market as columns of equal length, oldest first.

    Columns may be stacks [..., rows] of markets whose candles opened at the same times: the readings work on the last
    axis.
    """

    seconds: int
    opened: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __len__(self) -> int:
        return len(self.opened)

    @property
    def closed(self) -> Ints:
        """When each candle closed, in ms."""
        return self.opened + self.seconds * 1000

    def part(self, start: int, stop: int) -> Series:
        """The rows from `start` up to but not including `stop`."""
        cut = slice(start, stop)
        return Series(self.seconds, self.opened[cut], self.open[..., cut], self.high[..., cut], self.low[..., cut],
                      self.close[..., cut], self.volume[..., cut])

    def candle(self, row: int) -> Candle:
        """One row as a Candle."""
        return Candle(int(self.opened[row]), float(self.open[row]), float(self.high[row]), float(self.low[row]),
                      float(self.close[row]), float(self.volume[row]))


def series_of(rows: Floats, seconds: int) -> Series:
    """A Series from an (n, 6) table of opened_ms, open, high, low, close, volume."""
    table = rows.reshape(-1, 6)
    return Series(seconds, table[:, 0].astype(np.int64), *(np.ascontiguousarray(table[:, i]) for i in range(1, 6)))


@dataclass(frozen=True, slots=True)
class CandleReport:
    """What was found in a table of candles; `missing` counts candles that should be between first and last."""

    rows: int = 0
    first_ms: int = 0
    last_ms: int = 0
    missing: int = 0
    longest_gap_ms: int = 0
    jumps: int = 0
    silent: int = 0
    duplicates: int = 0
    disordered: int = 0
    future: int = 0
    unfinished: int = 0
    impossible: int = 0

    @property
    def missing_share(self) -> float:
        """Missing candles as a fraction of those expected."""
        return self.missing / (self.rows + self.missing) if self.rows else 0.0


def is_possible(rows: Floats, seconds: int) -> Flags:
    """Which rows could be candles: finite, positive, high and low on their sides, on the grid of their duration."""
    opened, start, high, low, close, volume = (rows[:, i] for i in range(6))
    with np.errstate(invalid="ignore"):
        sound = np.isfinite(rows).all(axis=1) & (low > 0) & (volume >= 0) & (opened > 0)
        sound &= (high >= np.maximum(start, close)) & (low <= np.minimum(start, close))
        return np.asarray(sound & (opened % (seconds * 1000) == 0), dtype=np.bool_)


def _jumps(close: Floats) -> Flags:
    """Which closes are a jump away from the one before."""
    flags = np.zeros(close.shape, dtype=np.bool_)
    flags[..., 1:] = np.abs(close[..., 1:] / close[..., :-1] - 1) > JUMP
    return flags


def shape_of(series: Series) -> CandleReport:
    """Rows, ends, gaps, jumps and silent candles of an ordered series."""
    if not len(series):
        return CandleReport()
    steps = np.diff(series.opened) // (series.seconds * 1000)
    return CandleReport(
        rows=len(series),
        first_ms=int(series.opened[0]),
        last_ms=int(series.opened[-1]),
        missing=int((steps - 1).sum()),
        longest_gap_ms=int((steps.max(initial=1) - 1) * series.seconds * 1000),
        jumps=int(_jumps(series.close).sum()),
        silent=int((series.volume == 0).sum()),
    )


def sift_rows(rows: Floats, seconds: int, now_ms: int) -> tuple[Floats, CandleReport]:
    """The closed, possible candles in order, each once (the first one wins), and only what was left out."""
    table = np.asarray(rows, dtype=np.float64).reshape(-1, 6)
    possible = is_possible(table, seconds)
    impossible = int(len(table) - possible.sum())
    table = table[possible]
    future = table[:, 0] > now_ms
    unfinished = ~future & (table[:, 0] + seconds * 1000 > now_ms)
    table = table[~future & ~unfinished]
    disordered = int((np.diff(table[:, 0]) < 0).sum())
    ordered = table[np.argsort(table[:, 0], kind="stable")]
    is_first = np.ones(len(ordered), dtype=np.bool_)
    is_first[1:] = np.diff(ordered[:, 0]) > 0
    cleaned = ordered[is_first]
    left_out = CandleReport(
        impossible=impossible, future=int(future.sum()), unfinished=int(unfinished.sum()), disordered=disordered,
        duplicates=len(table) - len(cleaned))
    return cleaned, left_out


def clean_rows(rows: Floats, seconds: int, now_ms: int) -> tuple[Floats, CandleReport]:
    """The same with a report of what is there, too."""
    cleaned, left = sift_rows(rows, seconds, now_ms)
    report = replace(
        shape_of(series_of(cleaned, seconds)), impossible=left.impossible, future=left.future,
        unfinished=left.unfinished, disordered=left.disordered, duplicates=left.duplicates)
    return cleaned, report


def _gaps(series: Series) -> Flags:
    """Which candles come after a hole."""
    flags = np.zeros(len(series), dtype=np.bool_)
    flags[1:] = np.diff(series.opened) != series.seconds * 1000
    return flags


def _count_recent(flags: Flags) -> Ints:
    """How many of the last RECENT rows are flagged, at each row."""
    total = np.cumsum(flags, axis=-1, dtype=np.int64)
    count = total.copy()
    count[..., RECENT:] -= total[..., :-RECENT]
    return count


class DoubtColumns(NamedTuple):
    """How many of the last RECENT candles follow a gap, jump, or are silent, at each row."""

    gaps: Ints
    jumps: Ints
    silent: Ints


def doubt_columns(series: Series) -> DoubtColumns:
    """The counts behind the doubts, for all rows at once."""
    return DoubtColumns(
        _count_recent(_gaps(series)), _count_recent(_jumps(series.close)), _count_recent(series.volume == 0)
    )


def doubts_at(columns: DoubtColumns, row: int, days: float, needed_days: int) -> tuple[Finding, ...]:
    """The doubts that the candles up to `row` raise; `days` is how far back they reach."""
    findings = []
    if days < needed_days:
        findings.append(Finding(Doubt.SHORT_HISTORY, f"{days:.1f} days of candles, {needed_days} needed"))
    if columns.gaps[row]:
        findings.append(Finding(Doubt.GAP, f"{columns.gaps[row]} gap(s) in the last {RECENT} candles"))
    if columns.jumps[row]:
        findings.append(Finding(Doubt.JUMP, f"a close jumped by more than {JUMP:.0%} in the last {RECENT} candles"))
    if columns.silent[row] * 2 > RECENT:
        findings.append(Finding(Doubt.NO_TRADES, f"{columns.silent[row]} of the last {RECENT} candles had no trade"))
    return tuple(findings)


def quote_doubts(market: Market, ticker: Ticker | None, now_ms: int) -> tuple[Finding, ...]:
    """The doubts that the market's status and its quote raise."""
    findings = []
    status = market.status if ticker is None or ticker.status == "ACTIVE" else ticker.status
    if status != "ACTIVE":
        findings.append(Finding(Doubt.NOT_ACTIVE, f"Luno says {status}"))
    if ticker is None or ticker.bid <= 0 or ticker.ask <= 0:
        return (*findings, Finding(Doubt.NO_QUOTE, "no bid or no ask"))
    if ticker.bid >= ticker.ask:
        findings.append(Finding(Doubt.CROSSED, f"bid {plain(ticker.bid)} is not below ask {plain(ticker.ask)}"))
    age_s = (now_ms - ticker.time_ms) / 1000
    if age_s > MAX_QUOTE_AGE_S:
        findings.append(Finding(Doubt.STALE_QUOTE, f"quote is {age_s:.0f} s old, limit {MAX_QUOTE_AGE_S} s"))
    return tuple(findings)


def stale_finding(last_closed_ms: int, seconds: int, now_ms: int) -> tuple[Finding, ...]:
    """A doubt when the newest closed candle is more than two candles old."""
    age = (now_ms - last_closed_ms) / (seconds * 1000)
    if age <= 2:
        return ()
    return (Finding(Doubt.STALE_CANDLES, f"newest candle closed {age:.1f} candles ago, limit 2"),)


def resample(series: Series, seconds: int) -> Series:
    """Slower candles on UTC anchors, from all rows; the last one may still be open, see `closed_only`."""
    if seconds == series.seconds or not len(series):
        return replace(series, seconds=seconds)
    if seconds % series.seconds:
        raise ValueError(f"{seconds} s is not a multiple of {series.seconds} s")
    step = seconds * 1000
    anchors = series.opened // step * step
    starts = np.flatnonzero(np.concatenate(([True], np.diff(anchors) != 0)))
    ends = np.concatenate((starts[1:], [len(series)])) - 1
    return Series(
        seconds,
        anchors[starts],
        series.open[..., starts],
        np.maximum.reduceat(series.high, starts, axis=-1),
        np.minimum.reduceat(series.low, starts, axis=-1),
        series.close[..., ends],
        np.add.reduceat(series.volume, starts, axis=-1),
    )


def closed_only(series: Series, now_ms: int) -> Series:
    """The rows whose period has ended at `now_ms`."""
    return series.part(0, int(np.searchsorted(series.closed, now_ms, side="right")))


CORRELATION_DAYS = 60
CORRELATION_LIMIT = 0.8


def _daily_returns(series: Series, now_ms: int) -> dict[int, float]:
    """Log return per closed UTC day of the last CORRELATION_DAYS days."""
    daily = closed_only(resample(series, 86_400), now_ms)
    first = now_ms - (CORRELATION_DAYS + 2) * DAY_MS
    closes = {int(t): float(c) for t, c in zip(daily.opened, daily.close, strict=True) if t >= first}
    return {t: math.log(c / closes[t - DAY_MS]) for t, c in closes.items() if t - DAY_MS in closes}


def correlation(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """Pearson correlation over the common keys; 1 (the cautious answer) if there are fewer than 30."""
    days = sorted(a.keys() & b.keys())[-CORRELATION_DAYS:]
    if len(days) < 30:
        return 1.0
    xs, ys = [a[d] for d in days], [b[d] for d in days]
    mx, my = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    sxy = math.fsum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
    sxx, syy = math.fsum((x - mx) ** 2 for x in xs), math.fsum((y - my) ** 2 for y in ys)
    return sxy / math.sqrt(sxx * syy) if sxx > 0 and syy > 0 else 1.0


def correlated_pairs(series: Mapping[str, Series], now_ms: int) -> dict[str, tuple[str, ...]]:
    """For each pair the others whose daily returns moved with it over the last 60 days; unknown counts as yes."""
    returns = {pair: _daily_returns(s, now_ms) for pair, s in sorted(series.items())}
    return {
        pair: tuple(o for o in returns if o != pair and correlation(returns[pair], returns[o]) > CORRELATION_LIMIT)
        for pair in returns
    }


# ==============================================================================
# INDICATORS | numbers drawn from closed candles
# pure | uses CANDLES
# ==============================================================================

# Every function has a finite memory and adds in a fixed order, so the value at a row is the same to the last bit
# however much history lies before it, and however many markets are stacked: rows are the last axis. Rows without
# enough history are NaN.


def lag(x: Floats, rows: int) -> Floats:
    """The value `rows` earlier."""
    if rows == 0:
        return x
    result = np.empty(x.shape)
    result[..., :rows] = np.nan
    result[..., rows:] = x[..., : max(0, x.shape[-1] - rows)]
    return result


def rolling_sum(x: Floats, n: int) -> Floats:
    """Sum of the last n values, built from sums of 1, 2, 4, ... so that no running total carries history along."""
    total, power, size, offset = np.zeros(x.shape), x, 1, 0
    while True:
        if n & size:
            total = total + lag(power, offset)
            offset += size
        if offset == n:
            return total
        power = power + lag(power, size)
        size *= 2


def _rolling_extreme(x: Floats, n: int, pick: Callable[[Floats, Floats], Floats]) -> Floats:
    power, size = x, 1
    while size * 2 <= n:
        power = pick(power, lag(power, size))
        size *= 2
    return pick(power, lag(power, n - size))


def rolling_max(x: Floats, n: int) -> Floats:
    """Highest of the last n values."""
    return _rolling_extreme(x, n, np.maximum)


def rolling_min(x: Floats, n: int) -> Floats:
    """Lowest of the last n values."""
    return _rolling_extreme(x, n, np.minimum)


def sma(x: Floats, n: int) -> Floats:
    """Simple moving average."""
    return rolling_sum(x, n) / n


def channel_high(series: Series, n: int) -> Floats:
    """Highest high of the n candles before each one (Donchian channel)."""
    return lag(rolling_max(series.high, n), 1)


def channel_low(series: Series, n: int) -> Floats:
    """Lowest low of the n candles before each one (Donchian channel)."""
    return lag(rolling_min(series.low, n), 1)


def true_range(series: Series) -> Floats:
    """Wilder's true range; NaN on the first row."""
    before = lag(series.close, 1)
    return np.maximum(series.high, before) - np.minimum(series.low, before)


def atr(series: Series, n: int) -> Floats:
    """Average true range over n candles, simple average."""
    return sma(true_range(series), n)


def log_returns(close: Floats) -> Floats:
    """ln(close / close before)."""
    return np.log(close) - np.log(lag(close, 1))


def realised_volatility(close: Floats, n: int) -> Floats:
    """Root mean square of the last n log returns, per candle."""
    returns = log_returns(close)
    return np.asarray(np.sqrt(sma(returns * returns, n)), dtype=np.float64)


def efficiency(close: Floats, n: int) -> Floats:
    """Kaufman's efficiency ratio: distance covered over path walked in n candles, 0 to 1."""
    path = rolling_sum(np.abs(close - lag(close, 1)), n)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(path > 0, np.abs(close - lag(close, n)) / path, np.where(np.isnan(path), np.nan, 0.0))


def bollinger(close: Floats, n: int) -> tuple[Floats, Floats]:
    """Mean and population standard deviation of the last n closes, in two passes so that nothing cancels."""
    mean = sma(close, n)
    squares = np.zeros(close.shape)
    for rows in range(n):
        squares = squares + (lag(close, rows) - mean) ** 2
    return mean, np.asarray(np.sqrt(squares / n), dtype=np.float64)


# ==============================================================================
# STRATEGIES | what each market is worth, and why
# pure | uses TYPES SETTINGS CANDLES INDICATORS
# ==============================================================================

MOMENTUM, EXPANSION, REVERSION = "momentum breakout", "volatility expansion", "mean reversion"
STRATEGIES = (MOMENTUM, EXPANSION, REVERSION)
REGIME_FAST_S, REGIME_SLOW_S = 14_400, 86_400
MEMORY_DAYS = 62  # the correlation of 60 daily returns is the longest memory in days
REGIMES = (Regime.UNKNOWN, Regime.TRENDING, Regime.RANGING, Regime.WILD)
TREND_CANDLES, CALM_CANDLES, DAY_CANDLES, DAILY_TREND = 30, 60, 6, 10
MEMORY_CANDLES = 130  # the longest channel, 120 candles, and what it lags


def memory_rows(timeframe_s: int) -> int:
    """How many closed candles the strategies look back on, regimes included."""
    return max(MEMORY_DAYS * 86_400 // timeframe_s, MEMORY_CANDLES)


def memory_days(timeframe_s: int) -> int:
    """The same in days, rounded up."""
    return -(-memory_rows(timeframe_s) * timeframe_s // 86_400)


class RegimeColumns(NamedTuple):
    """Per decision candle: index into REGIMES, efficiency of the trend, and whether price is above its average."""

    code: Ints
    efficiency: Floats
    is_up: Flags


def _newest(slow: Series, closed: Ints) -> Ints:
    """The row of the last slower candle that had closed when each decision candle closed, -1 before the first."""
    return np.asarray(np.searchsorted(slow.closed, closed, side="right") - 1, dtype=np.int64)


def _aligned(values: Floats, rows: Ints) -> Floats:
    """The values of slower candles at these rows, NaN before the first."""
    if not values.shape[-1]:
        return np.full((*values.shape[:-1], len(rows)), np.nan)
    return np.where(rows >= 0, values[..., np.maximum(rows, 0)], np.nan)


def _whole(series: Series, seconds: int) -> Series:
    """Slower candles without the first one if the series starts inside it."""
    slow = resample(series, seconds)
    starts_inside = len(slow) > 0 and series.opened[0] != slow.opened[0]
    return slow.part(1, len(slow)) if starts_inside else slow


def regime(series: Series, params: StrategyParams) -> RegimeColumns:
    """The kind of market at each candle, from closed candles of 4 hours and a day.

    Wild: the volatility of the last day is a multiple of that of ten days. Trending: four-hour or daily closes went
    somewhere (efficiency ratio). Ranging: neither.
    """
    fast, slow = (_whole(series, -(-s // series.seconds) * series.seconds) for s in (REGIME_FAST_S, REGIME_SLOW_S))
    calm = realised_volatility(fast.close, CALM_CANDLES)
    ratio = np.divide(realised_volatility(fast.close, DAY_CANDLES), calm, out=np.ones(calm.shape), where=calm > 0)
    ratio[np.isnan(calm)] = np.nan
    rows = _newest(fast, series.closed)
    trend = _aligned(efficiency(fast.close, TREND_CANDLES), rows)
    daily = _aligned(efficiency(slow.close, DAILY_TREND), _newest(slow, series.closed))
    wild = _aligned(ratio, rows)
    average = _aligned(sma(fast.close, TREND_CANDLES), rows)
    with np.errstate(invalid="ignore"):
        strongest = np.maximum(trend, daily)
        code = np.where(strongest >= params.trend_efficiency, 1, 2)
        code = np.where(wild > params.wild_ratio, 3, code)
        is_up = series.close > average
    code[np.isnan(strongest) | np.isnan(wild)] = 0
    return RegimeColumns(code.astype(np.int64), strongest, is_up)


class SetupColumns(NamedTuple):
    """One strategy's reading of all rows; `extra` are the columns its sentence quotes."""

    strategy: str
    is_entry: Flags
    is_exit: Flags
    strength: Floats
    stop_distance: Floats
    move: Floats
    extra: tuple[tuple[str, Floats], ...]


class Breakout(NamedTuple):
    """Closes above a channel in an up-trend."""

    high: Floats
    is_entry: Flags
    strength: Floats


class Retreat(NamedTuple):
    """Closes below a channel, or the end of an up-trend."""

    low: Floats
    is_exit: Flags


class Reach(NamedTuple):
    """How far a stop of so many ranges is away, and the rise that twice as much would be."""

    stop: Floats
    move: Floats


class Base:
    """What the strategies share: candles, average true range, regime, and what several sets read alike, read once."""

    def __init__(self, series: Series, atr: Floats, regime: RegimeColumns) -> None:
        self.series, self.atr, self.regime = series, atr, regime
        self.breakouts: dict[int, Breakout] = {}
        self.retreats: dict[int, Retreat] = {}
        self.reaches: dict[float, Reach] = {}


def _share(value: Floats, full: float) -> Floats:
    """Value as a share of `full`, between 0 and 1; NaN counts as 0."""
    return np.asarray(np.fmin(np.fmax(value / full, 0.0), 1.0), dtype=np.float64)


def _breakout(base: Base, rows: int) -> Breakout:
    """The entries above a channel of this many rows, read once."""
    if rows not in base.breakouts:
        series, high = base.series, channel_high(base.series, rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            entry = (series.close > high) & (base.regime.code == 1) & base.regime.is_up & (base.atr > 0)
            above, trend = _share((series.close - high) / base.atr, 1.0), _share(base.regime.efficiency, 0.6)
        base.breakouts[rows] = Breakout(high, entry, 0.4 + 0.3 * above + 0.3 * trend)
    return base.breakouts[rows]


def _retreat(base: Base, rows: int) -> Retreat:
    """The exits below a channel of this many rows, read once."""
    if rows not in base.retreats:
        low = channel_low(base.series, rows)
        with np.errstate(invalid="ignore"):
            leave = (base.series.close < low) | ((base.regime.code == 2) & ~base.regime.is_up)
        base.retreats[rows] = Retreat(low, leave)
    return base.retreats[rows]


def _reach(base: Base, ranges: float) -> Reach:
    """The stop of a breakout, read once."""
    if ranges not in base.reaches:
        stop = ranges * base.atr
        with np.errstate(invalid="ignore", divide="ignore"):
            base.reaches[ranges] = Reach(stop, 2.0 * stop / base.series.close)
    return base.reaches[ranges]


def momentum_breakout(base: Base, params: StrategyParams) -> SetupColumns:
    """Buy a close above the channel of the candles before it in an up-trend; leave below the exit channel."""
    high, entry, strength = _breakout(base, params.breakout)
    low, leave = _retreat(base, params.exit_channel)
    stop, move = _reach(base, params.stop_atr)
    return SetupColumns(MOMENTUM, entry, leave, strength, stop, move,
                        (("high", high), ("low", low), ("efficiency", base.regime.efficiency)))


def volatility_expansion(base: Base, params: StrategyParams) -> SetupColumns:
    """Buy a wide candle that closes near its high after a quiet stretch; leave when half the gain is given back."""
    series, range_ = base.series, base.atr
    before = lag(range_, 1)
    quiet = lag(sma(true_range(series), params.squeeze), 1)
    width = true_range(series)
    top = lag(rolling_max(series.close, params.atr), 1)
    low = channel_low(series, params.atr)
    with np.errstate(invalid="ignore", divide="ignore"):
        place = np.where(series.high > series.low, (series.close - series.low) / (series.high - series.low), 0.0)
        entry = (width > params.expansion * before) & (before < quiet) & (place > 0.75) & (series.close > top)
        entry &= (base.regime.code != 3) & (base.regime.code != 0) & (before > 0)
        leave = series.close < low
        strength = 0.4 + 0.3 * _share(width / before - params.expansion, 2.0) + 0.3 * _share(1 - before / quiet, 0.5)
        stop = params.stop_atr * before
        move = 2.0 * stop / series.close
        wider = width / before
    return SetupColumns(EXPANSION, entry, leave, strength, stop, move,
                        (("width", wider), ("top", top), ("low", low)))


def mean_reversion(base: Base, params: StrategyParams) -> SetupColumns:
    """In a range only: buy a close far below the mean that has turned up; leave at the mean."""
    series, range_ = base.series, base.atr
    mean, deviation = bollinger(series.close, params.reversion)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (series.close - mean) / deviation
        turned = (series.close > lag(series.close, 1)) & (lag(z, 1) < -params.reversion_z)
        entry = turned & (z < -0.5 * params.reversion_z) & (base.regime.code == 2) & (range_ > 0)
        leave = z >= 0
        strength = 0.4 + 0.3 * _share(-z, 3.0) + 0.3 * (1 - _share(base.regime.efficiency, params.trend_efficiency))
        stop = params.stop_atr * 0.75 * range_
        move = (mean - series.close) / series.close
    return SetupColumns(REVERSION, entry, leave, strength, stop, move, (("z", z), ("mean", mean)))


@dataclass(frozen=True, slots=True)
class SignalTable:
    """What all strategies read in all candles of one market; row i knows candles up to i only.

    `since_ms` is where the market's candles begin, which may be before those read here.
    """

    pair: str
    series: Series
    atr: Floats
    regime: RegimeColumns
    setups: tuple[SetupColumns, ...]
    doubts: DoubtColumns
    since_ms: int


# The fixed list that training may choose from. All are slow: on markets without any edge a set loses its costs, and
# that loss falls with the number of round trips (README, "How fast to trade"). Twenty-day channels pay for themselves
# at the weakest edge; expansions and reversions are rare on purpose, at usual thresholds they lose more than they add.
class SetPace(NamedTuple):
    """What tells the sets of the list apart: breakout in hours, stop and trail in average true ranges."""

    breakout: int
    stop_atr: float
    trail_atr: float


PACES = (SetPace(480, 6.0, 9.0), SetPace(480, 4.0, 6.0), SetPace(240, 6.0, 9.0), SetPace(240, 4.0, 6.0))


def parameter_sets() -> tuple[StrategyParams, ...]:
    """The fixed list of sets, the same in every mode."""
    return tuple(
        StrategyParams(breakout=pace.breakout, stop_atr=pace.stop_atr, trail_atr=pace.trail_atr, exit_channel=240,
                       atr=96, squeeze=384, expansion=3.0, reversion=96, reversion_z=3.0, max_holding=1920,
                       trend_efficiency=0.20)
        for pace in PACES
    )


def in_candles(params: StrategyParams, seconds: int) -> StrategyParams:
    """The set with its lengths in candles of this duration, two at least."""
    def rows(hours: int) -> int:
        return max(2, round(hours * 3600 / seconds))

    return replace(
        params, breakout=rows(params.breakout), exit_channel=rows(params.exit_channel), atr=rows(params.atr),
        squeeze=rows(params.squeeze), reversion=rows(params.reversion), max_holding=rows(params.max_holding))


class Readings:
    """One market's signal tables for several parameter sets; what the sets have in common is computed once."""

    def __init__(self, pair: str, series: Series) -> None:
        self._pair, self._series = pair, series
        self._doubts = doubt_columns(series)
        self._ranges: dict[int, Floats] = {}
        self._regimes: dict[tuple[float, ...], RegimeColumns] = {}
        self._bases: dict[tuple[float, ...], Base] = {}
        self._setups: dict[tuple[object, ...], SetupColumns] = {}

    def _once(
        self, strategy: Callable[[Base, StrategyParams], SetupColumns], base: Base, params: StrategyParams,
        used: tuple[float, ...],
    ) -> SetupColumns:
        key = (strategy, params.atr, params.stop_atr, params.trend_efficiency, params.wild_ratio, *used)
        if key not in self._setups:
            self._setups[key] = strategy(base, params)
        return self._setups[key]

    def table(self, params: StrategyParams) -> SignalTable:
        """All strategies over the whole series at once."""
        params = in_candles(params, self._series.seconds)
        kinds = (params.trend_efficiency, params.wild_ratio)
        if params.atr not in self._ranges:
            self._ranges[params.atr] = atr(self._series, params.atr)
        if kinds not in self._regimes:
            self._regimes[kinds] = regime(self._series, params)
        base = self._bases.setdefault(
            (params.atr, *kinds), Base(self._series, self._ranges[params.atr], self._regimes[kinds]))
        setups = (
            self._once(momentum_breakout, base, params, (params.breakout, params.exit_channel)),
            self._once(volatility_expansion, base, params, (params.squeeze, params.expansion)),
            self._once(mean_reversion, base, params, (params.reversion, params.reversion_z)),
        )
        since_ms = int(self._series.opened[0]) if len(self._series) else 0
        return SignalTable(self._pair, self._series, base.atr, base.regime, setups, self._doubts, since_ms)


def signal_table(pair: str, series: Series, params: StrategyParams) -> SignalTable:
    """All strategies over a whole series at once."""
    return Readings(pair, series).table(params)


def signal_rows(params: StrategyParams, seconds: int) -> int:
    """How many closed candles the newest row of a signal table looks back on, doubts about the whole history aside."""
    p = in_candles(params, seconds)
    longest = max(p.breakout, p.exit_channel, p.atr, p.squeeze, p.reversion) + 2  # what is lagged, and its lag
    slow = max(REGIME_SLOW_S * (DAILY_TREND + 3), REGIME_FAST_S * (CALM_CANDLES + 3))  # ends may be cut, see `_whole`
    return max(longest, -(-slow // seconds), CALM_CANDLES + 3, RECENT + 1)


class Newest(NamedTuple):
    """The newest candles of one market, at least `signal_rows` if there are as many, and where all of them begin."""

    pair: str
    series: Series
    since_ms: int


def _stack(markets: Sequence[Newest]) -> Series:
    """Markets whose candles opened at the same times as one series."""
    all_ = [m.series for m in markets]
    return Series(
        all_[0].seconds, all_[0].opened, np.stack([s.open for s in all_]), np.stack([s.high for s in all_]),
        np.stack([s.low for s in all_]), np.stack([s.close for s in all_]), np.stack([s.volume for s in all_]))


def _setup_of(columns: SetupColumns, place: int) -> SetupColumns:
    return SetupColumns(
        columns.strategy, columns.is_entry[place], columns.is_exit[place], columns.strength[place],
        columns.stop_distance[place], columns.move[place],
        tuple((name, values[place]) for name, values in columns.extra))


def _table_of(stack: SignalTable, place: int, market: Newest) -> SignalTable:
    """One market of a stack."""
    kind, doubts = stack.regime, stack.doubts
    return SignalTable(
        market.pair, market.series, stack.atr[place],
        RegimeColumns(kind.code[place], kind.efficiency[place], kind.is_up[place]),
        tuple(_setup_of(columns, place) for columns in stack.setups),
        DoubtColumns(doubts.gaps, doubts.jumps[place], doubts.silent[place]), market.since_ms)


def newest_tables(markets: Iterable[Newest], params: StrategyParams) -> Iterator[SignalTable]:
    """The tables of many markets, of which the newest rows count; those with the same times are read as one."""
    alike: dict[tuple[int, bytes], list[Newest]] = {}
    for market in markets:
        alike.setdefault((market.series.seconds, market.series.opened.tobytes()), []).append(market)
    for group in alike.values():
        stack = signal_table("", _stack(group), params)
        yield from (_table_of(stack, place, market) for place, market in enumerate(group))


def _setup_at(columns: SetupColumns, row: int) -> Setup:
    return Setup(
        columns.strategy,
        bool(columns.is_entry[row]),
        bool(columns.is_exit[row]),
        float(columns.strength[row]),
        float(columns.stop_distance[row]),
        float(columns.move[row]),
        tuple((name, float(values[row])) for name, values in columns.extra),
    )


def outlook_at(table: SignalTable, row: int) -> Outlook:
    """One row of the table as a value."""
    days = float(table.series.closed[row] - table.since_ms) / DAY_MS
    return Outlook(
        table.pair,
        table.series.seconds,
        int(table.series.opened[row]),
        float(table.series.close[row]),
        float(table.atr[row]),
        REGIMES[int(table.regime.code[row])],
        tuple(_setup_at(columns, row) for columns in table.setups),
        doubts_at(table.doubts, row, days, memory_days(table.series.seconds)),
    )


def break_even(market: Market, spread: float, costs: Costs) -> float:
    """The rise, as a fraction, at which a post-only entry and a taking exit earn nothing: fees, spread, slippage."""
    if not spread < 2:  # no bid or no quote at all: no rise pays for that
        return math.inf
    paid = 1 + market.maker_fee
    kept = (1 - market.taker_fee) * (1 - costs.slippage) * (1 - spread / 2)
    return paid / kept - 1


def confidences(strength: Floats | np.float64, move: Floats | np.float64, needed: Floats | np.float64) -> Floats:
    """Confidence of one setup or of many, to four decimals; `needed` is the break-even, as a fraction."""
    with np.errstate(all="ignore"):
        edge = np.where(needed > 0, np.fmin(1.0, np.fmax(0.0, (move / needed - 1) / 2)), 1.0)
        return np.asarray(np.rint((0.7 * strength + 0.3 * edge) * 1e4) / 1e4, dtype=np.float64)


def confidence_of(setup: Setup, needed: float) -> float:
    """0 to 1: seven parts the setup's strength, three parts how far the expected move exceeds the break-even."""
    return float(confidences(np.float64(setup.strength), np.float64(setup.move), np.float64(needed)))


def explain(outlook: Outlook, setup: Setup) -> str:
    """The setup in one sentence with its numbers."""
    n, close = dict(setup.numbers), plain(outlook.close)
    if setup.strategy == MOMENTUM:
        return f"Close {close} above the channel high {plain(n['high'])}; trend efficiency {n['efficiency']:.2f}"
    if setup.strategy == EXPANSION:
        return f"Range {n['width']:.1f} x normal after a quiet stretch; close {close} above {plain(n['top'])}"
    return f"Close {close} is {n['z']:.1f} deviations from the mean {plain(n['mean'])} and has turned up"


def explain_nothing(outlook: Outlook) -> str:
    """Why no strategy wants to buy, in one sentence with the nearest numbers."""
    n = {name: value for setup in outlook.setups for name, value in setup.numbers}
    if outlook.regime is Regime.UNKNOWN:
        return "No signal: the kind of market is unknown, too little history"
    if outlook.regime is Regime.RANGING:
        return f"No signal: ranging, {n['z']:+.1f} deviations from the mean {plain(n['mean'])}"
    close, high = plain(outlook.close), plain(n["high"])
    return f"No signal: {outlook.regime.value}, close {close} against the channel high {high}"


def _signal(view: MarketView, outlook: Outlook, setup: Setup, costs: Costs) -> Signal:
    needed = break_even(view.market, view.ticker.spread if view.ticker is not None else math.inf, costs)
    return Signal(
        outlook.pair, setup.strategy, outlook.timeframe_s, outlook.opened_ms, outlook.regime,
        confidence_of(setup, needed), view.market.round_price(outlook.close - setup.stop_distance, Side.SELL),
        setup.stop_distance, setup.move, needed,
        f"{explain(outlook, setup)}; expects {setup.move:.1%}, break-even {needed:.1%}",
    )


def rank_markets(views: Sequence[MarketView], costs: Costs) -> tuple[Signal, ...]:
    """All wishes of this moment, most confident first, ties by name."""
    signals = [
        _signal(view, outlook, setup, costs)
        for view in views
        for outlook in view.outlooks
        for setup in outlook.setups
        if setup.is_entry and math.isfinite(setup.stop_distance) and math.isfinite(setup.move)
    ]
    return tuple(sorted(signals, key=lambda s: (-s.confidence, s.pair, s.strategy, s.timeframe_s)))


# ==============================================================================
# PORTFOLIO | what we own after each fill
# pure | uses ERRORS TYPES
# ==============================================================================

@dataclass(frozen=True, slots=True)
class Desk:
    """The whole trading state in one value; it is replaced each cycle, never changed.

    `orders` holds orders that are not final. `entries` remembers (pair, time of the decision candle) of recent
    entries for the throttle, `closings` (pair, time) of round trips, `dust` (pair, volume) that is too small to
    sell and counts for nothing, `retries` signals to be taken once their timed-out order is off the book, `base_fees`
    the markets in which the exchange has taken the fee of a sale in base, on top of what was sold.
    """

    cash: float
    positions: tuple[Position, ...] = ()
    orders: tuple[Order, ...] = ()
    causes: tuple[Cause, ...] = ()
    day: int = 0
    day_start_equity: float = 0.0
    week: int = 0
    week_start_equity: float = 0.0
    peak_equity: float = 0.0
    next_order: int = 1
    order_times: tuple[int, ...] = ()
    entries: tuple[tuple[str, int], ...] = ()
    closings: tuple[tuple[str, int], ...] = ()
    dust: tuple[tuple[str, float], ...] = ()
    retries: tuple[Signal, ...] = ()
    fees_paid: float = 0.0
    base_fees: tuple[str, ...] = ()

    @property
    def state(self) -> TradingState:
        """The most severe of the states that the causes bring."""
        return max((c.kind.state for c in self.causes), key=lambda s: s.value, default=TradingState.READY)

    def position(self, pair: str) -> Position | None:
        """The position in a market, if any."""
        return next((p for p in self.positions if p.pair == pair), None)

    def order(self, order_id: str) -> Order | None:
        """An order that is not final, by its id."""
        return next((o for o in self.orders if o.order_id == order_id), None)

    def orders_of(self, pair: str, *kinds: OrderKind) -> tuple[Order, ...]:
        """Orders of a market that are not final, of the given kinds or of all."""
        return tuple(o for o in self.orders if o.pair == pair and (not kinds or o.kind in kinds))


def market_value(position: Position) -> float:
    """What a position would bring now: at the last bid, after the taker fee."""
    return position.volume * position.mark * (1 - position.exit_fee)


def exposure(desk: Desk) -> float:
    """Counter value of all positions at the last bid."""
    return sum(p.volume * p.mark for p in desk.positions)


def equity(desk: Desk) -> float:
    """Cash and what all positions would bring now."""
    return desk.cash + sum(market_value(p) for p in desk.positions)


def reserved_cash(desk: Desk, fee: float) -> float:
    """Cash that open buy orders would spend if all were filled; `fee` is the highest fee they may pay."""
    return sum(o.remaining * o.limit * (1 + fee) for o in desk.orders if o.side is Side.BUY)


def daily_profit(desk: Desk) -> float:
    """Equity against the start of the UTC day, in counter."""
    return equity(desk) - desk.day_start_equity


def unrealised(position: Position) -> float:
    """Profit of what is still held if sold now, fees of both sides counted."""
    share = position.volume / position.bought if position.bought > 0 else 0.0
    return market_value(position) - share * position.entry_value - share * position.fees


def mark_positions(desk: Desk, views: Sequence[MarketView]) -> Desk:
    """The desk with each position at the newest known bid."""
    bids = {v.pair: v for v in views if v.ticker is not None and v.ticker.bid > 0}
    marked = tuple(
        replace(p, mark=v.ticker.bid, exit_fee=v.market.taker_fee)
        if (v := bids.get(p.pair)) is not None and v.ticker is not None
        else p
        for p in desk.positions
    )
    return replace(desk, positions=marked)


def put_position(desk: Desk, position: Position) -> Desk:
    """The desk with this position in place of the one in the same market."""
    others = [p for p in desk.positions if p.pair != position.pair]
    return replace(desk, positions=tuple(sorted([*others, position], key=lambda p: p.pair)))


def put_order(desk: Desk, order: Order) -> Desk:
    """The desk with this order in place of the one with the same id, or without it if it is final."""
    others = [o for o in desk.orders if o.order_id != order.order_id]
    is_final = order.state in (OrderState.DONE, OrderState.REJECTED, OrderState.NOT_PLACED)
    kept = others if is_final else [*others, order]
    return replace(desk, orders=tuple(sorted(kept, key=lambda o: o.order_id)))


def _bought(desk: Desk, fill: Fill, order: Order) -> Position:
    """The position after a buy."""
    held = desk.position(fill.pair)
    got = fill.volume - fill.fee_base  # a fee in base is a fee: it was paid for and never held
    fee = fill.fee_counter + fill.fee_base * fill.price
    if held is None:
        return Position(
            fill.pair, got, order.stop, max(0.0, fill.price - order.stop), fill.time_ms,
            order.strategy, order.regime, order.timeframe_s, fill.price, fill.price, got, got * fill.price, fee, 0.0,
        )
    return replace(
        held,
        volume=held.volume + got,
        bought=held.bought + got,
        entry_value=held.entry_value + got * fill.price,
        fees=held.fees + fee,
    )


def keep_base_fee(desk: Desk, pair: str) -> Desk:
    """The desk that keeps the fee back in this market's sales from now on."""
    return replace(desk, base_fees=tuple(sorted({*desk.base_fees, pair})))


def _sold(held: Position, fill: Fill) -> Position:
    """The position after a sale; a fee in base of which more was taken than was left came out of the owner's coins."""
    gone = fill.volume + fill.fee_base
    left = held.volume - gone
    return replace(
        held,
        volume=left if left > 1e-12 else 0.0,
        sold=held.sold + gone,
        exit_value=held.exit_value + gone * fill.price,
        fees=held.fees + fill.fee_counter + fill.fee_base * fill.price,
        exit_why=held.exit_why or fill.kind.value,
    )


def round_trip(position: Position, closed_ms: int) -> RoundTrip:
    """A closed position as entry and exit together."""
    return RoundTrip(
        position.pair, position.strategy, position.regime, position.timeframe_s, position.opened_ms, closed_ms,
        position.sold, position.entry, position.exit_value / position.sold if position.sold > 0 else 0.0,
        position.fees, position.exit_value - position.entry_value - position.fees, position.exit_why,
    )


def close_position(desk: Desk, position: Position, now_ms: int) -> tuple[Desk, RoundTrip]:
    """The desk without the position, what is left of it listed as dust, and its round trip."""
    rest = tuple(p for p in desk.positions if p.pair != position.pair)
    left = dict(desk.dust)
    if position.volume > 0:
        left[position.pair] = left.get(position.pair, 0.0) + position.volume
    closings = (*desk.closings, (position.pair, now_ms))
    closed = replace(desk, positions=rest, dust=tuple(sorted(left.items())), closings=closings)
    return closed, round_trip(position, now_ms)


def book_fill(desk: Desk, fill: Fill, order: Order) -> tuple[Desk, RoundTrip | None]:
    """The desk after one fill of one of its orders; a round trip if it closed the position.

    A fill without a volume is a fee that came later. ValueError if it exceeds its order, or a sale what is held: that
    can only be a fault and must not be booked.
    """
    if fill.volume > order.remaining + 1e-9:
        raise ValueError(f"fill {fill.fill_id} of {plain(fill.volume)} {fill.pair} is more than was ordered")
    sign = -1 if fill.side is Side.BUY else 1
    fee = fill.fee_counter + fill.fee_base * fill.price
    desk = replace(
        desk, cash=desk.cash + sign * fill.value - fill.fee_counter, fees_paid=desk.fees_paid + fee
    )
    desk = put_order(desk, replace(order, filled=order.filled + fill.volume))
    held = desk.position(fill.pair)
    if fill.side is Side.SELL and fill.fee_base > 0:
        desk = keep_base_fee(desk, fill.pair)
    if held is None and fill.volume == 0:
        return desk, None
    if fill.side is Side.BUY:
        return put_position(desk, _bought(desk, fill, order)), None
    if held is None or fill.volume > held.volume + 1e-9:
        raise ValueError(f"fill {fill.fill_id} sells {plain(fill.volume)} {fill.pair}, more than is held")
    position = _sold(held, fill)
    if position.volume > 0:
        return put_position(desk, position), None
    return close_position(desk, position, fill.time_ms)


def set_cause(desk: Desk, cause: Cause) -> Desk:
    """The desk with this cause; one that is already there keeps its start."""
    if any(c.kind is cause.kind for c in desk.causes):
        return desk
    return replace(desk, causes=(*desk.causes, cause))


def clear_cause(desk: Desk, *kinds: CauseKind) -> Desk:
    """The desk without causes of these kinds."""
    return replace(desk, causes=tuple(c for c in desk.causes if c.kind not in kinds))


def _jsonable(value: object) -> object:
    """Enums by name, dataclasses as objects, tuples as lists."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (tuple, list)):
        return [_jsonable(v) for v in value]
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def canonical(value: object) -> str:
    """The one JSON text of a value: keys sorted, enums by name, no spaces; equal values give equal bytes."""
    plain = asdict(value) if hasattr(value, "__dataclass_fields__") else value  # type: ignore[call-overload]
    return json.dumps(_jsonable(plain), sort_keys=True, separators=(",", ":"))


def desk_json(desk: Desk) -> str:
    """The desk as text; `desk_from_json` reads it back."""
    return canonical(desk)


T = TypeVar("T")


def _revive(make: Callable[..., T], row: dict[str, object], enums: Mapping[str, type[Enum]]) -> T:
    """A value from its row, the names of its enums turned back into members."""
    return make(**{k: enums[k][str(v)] if k in enums else v for k, v in row.items()})


ENUMS_OF_ORDER: Mapping[str, type[Enum]] = types.MappingProxyType(
    {"side": Side, "kind": OrderKind, "state": OrderState, "regime": Regime}
)
ENUMS_OF_POSITION: Mapping[str, type[Enum]] = types.MappingProxyType({"regime": Regime, "phase": ExitPhase})
ENUMS_OF_CAUSE: Mapping[str, type[Enum]] = types.MappingProxyType({"kind": CauseKind})


def desk_from_json(text: str) -> Desk:
    """A desk from its text; DataError if it is not one."""
    try:
        row = json.loads(text)
        row["positions"] = tuple(_revive(Position, p, ENUMS_OF_POSITION) for p in row["positions"])
        row["orders"] = tuple(_revive(Order, o, ENUMS_OF_ORDER) for o in row["orders"])
        row["retries"] = tuple(_revive(Signal, r, {"regime": Regime}) for r in row["retries"])
        row["causes"] = tuple(_revive(Cause, c, ENUMS_OF_CAUSE) for c in row["causes"])
        for name in ("entries", "closings", "dust"):
            row[name] = tuple((str(a), b) for a, b in row[name])
        row["order_times"], row["base_fees"] = tuple(row["order_times"]), tuple(row.get("base_fees", ()))
        if not all(isinstance(row[n], float) and math.isfinite(row[n]) for n in ("cash", "day_start_equity")):
            raise ValueError("not a number")
        return Desk(**row)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"the saved desk cannot be read ({type(error).__name__})") from None


# ==============================================================================
# RISK | may this order go out, and how large
# pure | uses TYPES SETTINGS CANDLES PORTFOLIO
# ==============================================================================

# The checks of one order, in this order; the first refusal is the verdict. "in" binds entries, "out" binds exits
# and protection, which may only reduce what is held.
#
#   check                 in  out   refuses when
#   kill switch           x   x     the kill file is there or in doubt                      P1
#   state                 x   x     the trading state does not allow it                     P2
#   unknown order         x   x     any order's outcome is unknown                          P3
#   mode                  x   x     the mode's keys or gates do not match                   P4
#   numbers               x   x     a number is not finite, positive, in the market's range P5
#   confidence, edge      x         the signal is weak or cannot pay its costs              S1 S2
#   held                  x         the market is held or has an order                      S3
#   doubts                x         the market's data are in doubt                          S4
#   market, stale         x   x     it is not ACTIVE (in); no fresh quote                   P13 P9
#   price, spread, volume x         far from the last price, wide, thin                     P8
#   duplicate, throttle   x         same candle again, too many orders                      P10 P11
#   loss caps             x         daily or weekly cap, cooldown                           P12
#   line and clock        x   x     not reconciled, skew, gap in the loop                   P15
#   size                  x         no room left: exposure, group, cash, depth, minimum     P6 P7 P8 P14
MAX_SKEW_MS, MAX_LOOP_GAP_MS, MAX_RECONCILE_AGE_MS = 2_000, 30_000, 60_000
DEPTH_TIMES = 3.0  # the book must hold this many times our size
BAR_SHARE = 0.10  # without a book: at most this share of the last bar's volume
CASH_MARGIN = 0.01
TRIAL_ORDERS = 2.0  # the first LIVE orders are so many times the smallest, so that a part of one can still be sold
STRESSED_SLIPPAGE = 2.0  # a stop is sized as if it slipped this many times the usual
Numbers = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One intent with all that its checks need."""

    intent: OrderIntent
    desk: Desk
    view: MarketView
    moment: Moment
    settings: Settings


class Problem(NamedTuple):
    """A refusal with its sentence and numbers."""

    refusal: Refusal
    why: str
    numbers: Numbers = ()


def check_kill(case: Case) -> Problem | None:
    """P1: the kill file is absent and its folder readable."""
    if case.moment.conditions.is_killed or case.desk.state is TradingState.KILLED:
        return Problem(Refusal.KILLED, "Kill switch is on: no new order of any kind")
    return None


def may_reduce(desk: Desk) -> bool:
    """True if exits are allowed in the desk's state."""
    barring = {c.kind for c in desk.causes if c.kind.state.value >= TradingState.UNCERTAIN.value}
    return barring <= {CauseKind.WEEKLY_CAP}


def check_state(case: Case) -> Problem | None:
    """P2: READY, or the order reduces and the state lets it."""
    desk, reduces = case.desk, case.intent.side is Side.SELL
    if desk.state is TradingState.READY or (reduces and may_reduce(desk)):
        return None
    reasons = ", ".join(c.kind.words for c in desk.causes)
    return Problem(Refusal.STATE, f"State is {desk.state.name}: {reasons}")


def check_unknown(case: Case) -> Problem | None:
    """P3: no order anywhere has an unknown outcome."""
    unknown = [o.order_id for o in case.desk.orders if o.state is OrderState.UNKNOWN]
    return Problem(Refusal.UNKNOWN_ORDER, f"Order {unknown[0]} has an unknown outcome") if unknown else None


def check_mode(case: Case) -> Problem | None:
    """P4: the mode's keys and gates match."""
    return None if case.moment.conditions.is_mode_allowed else Problem(Refusal.MODE, "This mode may not trade now")


def check_gates(case: Case) -> Problem | None:
    """P4: the gates have not locked again since LIVE began."""
    return None if case.moment.conditions.may_enter else Problem(Refusal.MODE, "LIVE is locked again: no new entries")


CASH_WORDS = "Cash: no set earned its costs in training"


def check_cash(case: Case) -> Problem | None:
    """S0: training has chosen a set to trade with."""
    return Problem(Refusal.CASH, CASH_WORDS) if case.settings.params.is_cash else None


def check_numbers(case: Case) -> Problem | None:
    """P5: prices finite, positive and within the market's range."""
    market, intent = case.view.market, case.intent
    if not math.isfinite(intent.volume):
        return Problem(Refusal.BAD_NUMBER, "The volume is no number", (("volume", intent.volume),))
    for name, value in (("limit", intent.limit), ("stop", intent.stop)):
        if not (math.isfinite(value) and market.min_price <= value <= market.max_price):
            why = f"The {name} {plain(value)} is outside the market's prices"
            return Problem(Refusal.BAD_NUMBER, why, ((name, value),))
    if intent.side is Side.BUY and intent.stop >= intent.limit:
        why = f"The stop {plain(intent.stop)} is not below the entry {plain(intent.limit)}"
        return Problem(Refusal.BAD_NUMBER, why, (("stop", intent.stop), ("limit", intent.limit)))
    return None


def check_signal(case: Case) -> Problem | None:
    """S1, S2: the expected move is a multiple of the break-even and the signal is confident enough."""
    signal, floor = case.intent.signal, case.settings.limits.min_confidence
    if signal is None:
        return Problem(Refusal.CONFIDENCE, "An entry without a signal")
    needed = signal.break_even * case.settings.limits.min_edge
    if not signal.move >= needed:
        return Problem(Refusal.BREAK_EVEN, f"Expected move {signal.move:.2%} < {needed:.2%}, which is"
                       f" {case.settings.limits.min_edge:g} x the break-even {signal.break_even:.2%}",
                       (("move", signal.move), ("break_even", signal.break_even), ("limit", needed)))
    if not signal.confidence >= floor:
        return Problem(Refusal.CONFIDENCE, f"Confidence {signal.confidence:.2f} below {floor:.2f}",
                       (("confidence", signal.confidence), ("limit", floor)))
    return None


def check_held(case: Case) -> Problem | None:
    """S3: neither a position nor an order in this market."""
    if case.desk.position(case.view.pair) is not None:
        return Problem(Refusal.HELD, "A position is already open")
    return Problem(Refusal.HELD, "An order is already working") if case.desk.orders_of(case.view.pair) else None


def check_doubts(case: Case) -> Problem | None:
    """S4: nothing speaks against the market's data."""
    findings = case.view.findings + tuple(f for o in case.view.outlooks for f in o.findings)
    return Problem(Refusal.DOUBT, f"{findings[0].doubt.value}: {findings[0].why}") if findings else None


def check_market(case: Case) -> Problem | None:
    """P13: entries only where the market is ACTIVE; nothing where it is suspended."""
    ticker = case.view.ticker
    status = case.view.market.status if ticker is None or ticker.status == "ACTIVE" else ticker.status
    if status == "ACTIVE" or (case.intent.side is Side.SELL and status == "POST_ONLY"):
        return None
    return Problem(Refusal.MARKET, f"Luno says the market is {status}")


def check_fresh(case: Case) -> Problem | None:
    """P9: a quote that is not older than MAX_QUOTE_AGE_S."""
    ticker = case.view.ticker
    if case.intent.kind is OrderKind.PROTECTION:
        return None  # its price is the position's stop, not the quote's
    if ticker is None or ticker.bid <= 0:
        return Problem(Refusal.STALE, "No quote")
    age_s = (case.moment.now_ms - ticker.time_ms) / 1000
    if age_s > MAX_QUOTE_AGE_S:
        return Problem(Refusal.STALE, f"Quote is {age_s:.0f} s old > limit {MAX_QUOTE_AGE_S} s",
                       (("age_s", age_s), ("limit", float(MAX_QUOTE_AGE_S))))
    return None


def _references(view: MarketView) -> dict[str, float]:
    """Prices of independent origin to hold an order's price against."""
    prices = {f"close of {o.timeframe_s} s candle": o.close for o in view.outlooks}
    prices |= {"last trade": view.ticker.last} if view.ticker is not None else {}
    if view.book is not None and view.book.bids and view.book.asks:
        prices["book"] = (view.book.bids[0][0] + view.book.asks[0][0]) / 2
    return prices


def check_price(case: Case) -> Problem | None:
    """P8: within the collar of at least two sources; spread and 24-hour volume within limits."""
    limits, ticker, intent = case.settings.limits, case.view.ticker, case.intent
    references = _references(case.view)
    if ticker is None or len(references) < 2:
        return Problem(Refusal.PRICE_COLLAR, "Fewer than two sources for the price")
    for source, price in references.items():
        if not abs(intent.limit - price) <= limits.price_collar * price:
            why = f"Price {plain(intent.limit)} is over {limits.price_collar:.0%} from the {source} {plain(price)}"
            return Problem(Refusal.PRICE_COLLAR, why, (("limit", intent.limit), ("reference", price)))
    if not 0 <= ticker.spread <= limits.max_spread:
        return Problem(Refusal.SPREAD, f"Spread {ticker.spread:.2%} > limit {limits.max_spread:.2%}",
                       (("spread", ticker.spread), ("limit", limits.max_spread)))
    value = ticker.volume_24h * ticker.last
    if not value >= limits.min_volume_24h:
        return Problem(Refusal.VOLUME_24H, f"24 h volume {value:,.0f} < minimum {limits.min_volume_24h:,.0f}",
                       (("volume_24h", value), ("limit", limits.min_volume_24h)))
    return None


def check_throttle(case: Case) -> Problem | None:
    """P10, P11: not the same candle twice, not too many orders or round trips."""
    limits, now, signal = case.settings.limits, case.moment.now_ms, case.intent.signal
    if signal is not None and (case.view.pair, signal.opened_ms) in case.desk.entries:
        return Problem(Refusal.DUPLICATE, "This candle already led to an entry order")
    minute = sum(1 for t in case.desk.order_times if t > now - 60_000)
    day = sum(1 for t in case.desk.order_times if t > now - DAY_MS)
    trips = sum(1 for pair, t in case.desk.closings if pair == case.view.pair and t > now - DAY_MS)
    for count, limit, unit in (
        (minute, limits.orders_per_minute, "orders in a minute"),
        (day, limits.orders_per_day, "orders in 24 hours"),
        (trips, limits.round_trips_per_day, "round trips here in 24 hours"),
    ):
        if count >= limit:
            return Problem(Refusal.THROTTLE, f"{count} {unit}, limit {limit}",
                           (("count", float(count)), ("limit", float(limit))))
    return None


def check_losses(case: Case) -> Problem | None:
    """P12: the day and the week are within their loss caps."""
    desk, limits, now = case.desk, case.settings.limits, equity(case.desk)
    for name, start, cap in (
        ("day", desk.day_start_equity, limits.daily_loss_cap), ("week", desk.week_start_equity, limits.weekly_loss_cap)
    ):
        if not now > start * (1 - cap):
            why = f"The {name} went from {start:,.2f} to {now:,.2f}, at the cap of -{cap:.2%}"
            return Problem(Refusal.LOSS_CAP, why, (("equity", now), ("start", start)))
    return None


def check_line(case: Case) -> Problem | None:
    """P15: reconciled lately, clock right, no gap in the loop."""
    now = case.moment.conditions
    for value, limit, words in (
        (now.reconcile_age_ms, MAX_RECONCILE_AGE_MS, "since the last reconcile"),
        (abs(now.skew_ms), MAX_SKEW_MS, "clock skew"),
        (now.loop_gap_ms, MAX_LOOP_GAP_MS, "gap in the loop"),
    ):
        if not value <= limit:
            return Problem(Refusal.CONDITIONS, f"{value / 1000:.1f} s {words}, limit {limit / 1000:.0f} s",
                           (("value_ms", value), ("limit_ms", float(limit))))
    if not (now.has_network and now.is_store_ok):
        return Problem(Refusal.CONDITIONS, "No network" if not now.has_network else "The audit cannot be written")
    return None


ENTRY_CHECKS = (check_kill, check_state, check_unknown, check_mode, check_gates, check_cash, check_numbers,
                check_signal, check_held, check_doubts, check_market, check_fresh, check_price, check_throttle,
                check_losses, check_line)
EXIT_CHECKS = (check_kill, check_state, check_unknown, check_mode, check_numbers, check_market, check_fresh, check_line)


def loss_per_unit(case: Case) -> float:
    """What one unit of base loses if bought at the limit and stopped out with stressed slippage, fees included."""
    market, intent = case.view.market, case.intent
    fee = market.taker_fee if intent.kind is OrderKind.TAKER_ENTRY else market.maker_fee
    slipped = intent.stop * (1 - STRESSED_SLIPPAGE * case.settings.costs.slippage)
    return intent.limit * (1 + fee) - slipped * (1 - market.taker_fee)


def worst_exposure(desk: Desk, pairs: frozenset[str] | None = None) -> float:
    """Value of positions and of open buy orders as if filled, in these markets or in all."""
    held = sum(p.volume * p.mark for p in desk.positions if pairs is None or p.pair in pairs)
    wanted = sum(o.remaining * o.limit for o in desk.orders
                 if o.side is Side.BUY and (pairs is None or o.pair in pairs))
    return held + wanted


def depth_volume(case: Case) -> float:
    """The largest volume the market can take: a third of the book within the collar, or a tenth of the last bar."""
    view, collar = case.view, case.settings.limits.price_collar
    if view.book is not None:
        floor = case.intent.limit * (1 - collar)
        return sum(v for price, v in view.book.bids if price >= floor) / DEPTH_TIMES
    return view.bar.volume * BAR_SHARE if view.bar is not None else 0.0


def base_fee(desk: Desk, market: Market) -> float:
    """The fee that a sale takes in base on top of its volume, as a fraction; 0 where it was never seen to."""
    return max(0.0, market.maker_fee, market.taker_fee) if market.pair in desk.base_fees else 0.0


def sellable(desk: Desk, volume: float, market: Market) -> float:
    """What of a volume can be sold, on the lot grid: all of it, or what leaves enough for a fee in base."""
    return market.round_volume(volume / (1 + base_fee(desk, market)))


def smallest_volume(case: Case) -> float:
    """The least volume that can still be sold after the fee was taken from it."""
    market = case.view.market
    fee = max(market.maker_fee, market.taker_fee)
    return market.min_volume * (1 + base_fee(case.desk, market)) / (1 - fee) + 10.0**-market.volume_scale


def rooms(case: Case) -> tuple[tuple[Refusal, str, float], ...]:
    """How much base volume each limit leaves, with the refusal and the words if it leaves too little."""
    desk, limits, limit = case.desk, case.settings.limits, case.intent.limit
    now = equity(desk) * case.moment.conditions.size
    fee = max(case.view.market.maker_fee, case.view.market.taker_fee)
    group = frozenset((case.view.pair, *case.view.correlated))
    first = TRIAL_ORDERS * smallest_volume(case) if case.moment.conditions.is_trial else math.inf
    free = (desk.cash - reserved_cash(desk, fee)) * (1 - CASH_MARGIN) / (1 + fee)
    loss = loss_per_unit(case)
    return (
        (Refusal.ORDER_VALUE, "risk per trade", now * limits.risk_per_trade / loss if loss > 0 else 0.0),
        (Refusal.EXPOSURE, "total exposure", (now * limits.max_exposure - worst_exposure(desk)) / limit),
        (Refusal.ASSET_EXPOSURE, "exposure in one asset",
         (now * limits.max_asset_exposure - worst_exposure(desk, frozenset((case.view.pair,)))) / limit),
        (Refusal.GROUP_EXPOSURE, "exposure in markets that move together",
         (now * limits.max_group_exposure - worst_exposure(desk, group)) / limit),
        (Refusal.BALANCE, "free cash", free / limit),
        (Refusal.DEPTH, "depth of the market", depth_volume(case)),
        (Refusal.ORDER_VALUE, "largest order of the market", case.view.market.max_volume),
        (Refusal.ORDER_VALUE, "size of the first LIVE orders", first),
    )


def size_for_risk(case: Case) -> Problem | float:
    """The volume that all limits allow, on the lot grid, or why there is none."""
    taken = len(case.desk.positions) + len({o.pair for o in case.desk.orders if o.side is Side.BUY}
                                           - {p.pair for p in case.desk.positions})
    if taken >= case.settings.limits.max_positions:
        return Problem(Refusal.MAX_POSITIONS, f"{taken} of {case.settings.limits.max_positions} places are taken",
                       (("taken", float(taken)), ("limit", float(case.settings.limits.max_positions))))
    refusal, words, room = min(rooms(case), key=lambda r: r[2])
    volume, least = case.view.market.round_volume(max(0.0, room)), smallest_volume(case)
    if volume < least:
        why = f"The {words} leaves {plain(max(0.0, room))}, the smallest sellable order is {plain(least)}"
        return Problem(refusal, why, (("room", room), ("minimum", least)))
    return volume


def _assess_sale(case: Case) -> RiskVerdict:
    """A sale never exceeds what is held and can be sold, and is at least the market's minimum."""
    held, market = case.desk.position(case.view.pair), case.view.market
    most = sellable(case.desk, held.volume, market) if held is not None else 0.0
    volume = min(market.round_volume(case.intent.volume), most)
    if volume < case.view.market.min_volume:
        why = f"{plain(volume)} is less than the smallest order {plain(case.view.market.min_volume)}"
        return RiskVerdict(case.intent, 0.0, Refusal.MIN_VOLUME, why, (("volume", volume),))
    return RiskVerdict(case.intent, volume, None, case.intent.why, (("volume", volume),))


def assess(case: Case) -> RiskVerdict:
    """The volume the intent may trade, or the first reason to refuse it."""
    is_entry = case.intent.side is Side.BUY
    for check in ENTRY_CHECKS if is_entry else EXIT_CHECKS:
        problem = check(case)
        if problem is not None:
            return RiskVerdict(case.intent, 0.0, problem.refusal, problem.why, problem.numbers)
    if is_entry:
        size = size_for_risk(case)
        if isinstance(size, Problem):
            return RiskVerdict(case.intent, 0.0, size.refusal, size.why, size.numbers)
        return RiskVerdict(case.intent, size, None, f"{plain(size)} at {plain(case.intent.limit)}",
                           (("volume", size), ("value", size * case.intent.limit)))
    return _assess_sale(case)


# ==============================================================================
# FILLS | at what price, and how much, would the market have filled this order
# pure | uses TYPES SETTINGS CANDLES RISK
# ==============================================================================

# One rule for backtest, demo, replay and paper. Only evidence newer than the order counts.
#
#   order                 with a book              without a book, with the bar after the order
#   post-only entry       bar, last trade or the opposite quote at least one tick beyond the limit; at the limit
#   taking entry or exit  walk the book, slip      open of the bar, half the spread and slippage worse
#   protection            stop reached by bar low or last trade: the worse of open and stop, slipped, in its limit
#   volume                the book's levels        at most a tenth of the bar's volume
EVIDENCE_SLACK_MS = 15_000  # a bar that opened this much before the order is still the bar after it


class Execution(NamedTuple):
    """A price and volume the market would have given, and what shows it."""

    price: float
    volume: float
    is_maker: bool
    evidence: str


def modelled_quote(market: Market, candle: Candle) -> tuple[float, float]:
    """Bid and ask where none was recorded: the close less and plus half the modelled spread, rounded against us."""
    half = market.model_spread / 2
    bid = market.round_price(candle.close * (1 - half), Side.SELL)
    ask = market.round_price(candle.close * (1 + half), Side.BUY)
    return bid, max(ask, round(bid + market.tick, market.price_scale))


def rolling_volume(opened: Ints, volume: Floats, seconds: int) -> Floats:
    """Base volume of the 24 hours up to the end of each candle, to 8 decimals."""
    total = np.concatenate(([0.0], np.cumsum(volume)))
    starts = np.searchsorted(opened, opened + seconds * 1000 - DAY_MS, side="left")
    return np.asarray(np.round(np.maximum(total[1:] - total[starts], 0.0), 8), dtype=np.float64)


def half_spread(view: MarketView) -> float:
    """Half the distance of bid and ask as a fraction: as quoted, or as modelled where there is no quote."""
    quoted = view.ticker.spread if view.ticker is not None else math.inf
    return (quoted if math.isfinite(quoted) else view.market.model_spread) / 2


def bar_after(view: MarketView, order: Order) -> Candle | None:
    """The view's bar if it is evidence for this order."""
    bar = view.bar
    return bar if bar is not None and bar.opened_ms + EVIDENCE_SLACK_MS >= order.created_ms else None


def ticker_after(view: MarketView, order: Order) -> Ticker | None:
    """The view's quote if it is newer than the order."""
    ticker = view.ticker
    return ticker if ticker is not None and ticker.time_ms > order.created_ms else None


def traded(ticker: Ticker) -> float:
    """The last price, but not below the bid: what is, was traded before that bid came in."""
    return max(ticker.last, ticker.bid) if ticker.last > 0 else 0.0


def bar_volume(view: MarketView, bar: Candle, wanted: float) -> float:
    """How much of an order one bar can have filled."""
    return view.market.round_volume(min(wanted, bar.volume * BAR_SHARE))


def resting_execution(order: Order, view: MarketView) -> Execution | None:
    """A resting buy fills at its limit when the market traded through it by a tick."""
    through = order.limit - view.market.tick * 0.999999
    bar, ticker = bar_after(view, order), ticker_after(view, order)
    if bar is not None and bar.low <= through:
        volume = bar_volume(view, bar, order.remaining)
        return Execution(order.limit, volume, True, f"bar low {plain(bar.low)}") if volume > 0 else None
    seen = [p for p in (traded(ticker), ticker.ask) if p > 0] if bar is None and ticker is not None else []
    if seen and min(seen) <= through:
        volume = view.market.round_volume(order.remaining)
        return Execution(order.limit, volume, True, f"trade or ask at {plain(min(seen))}")
    return None


def walk_book(
    levels: Sequence[tuple[float, float]], wanted: float, is_allowed: Callable[[float], bool]
) -> tuple[float, float]:
    """Volume and value taken from the levels in order, as far as their price is allowed."""
    volume = value = 0.0
    for price, size in levels:
        if volume >= wanted or not is_allowed(price):
            break
        taken = min(size, wanted - volume)
        volume, value = volume + taken, value + taken * price
    return volume, value


def taking_execution(order: Order, view: MarketView, costs: Costs) -> Execution | None:
    """A taking order fills against the book, or at the open of the next bar, never past its limit."""
    sign = 1 if order.side is Side.BUY else -1
    slip = 1 + sign * costs.slippage

    def is_allowed(price: float) -> bool:
        return sign * (order.limit - price * slip) >= 0

    market, book, bar = view.market, view.book, bar_after(view, order)
    if book is not None and book.time_ms > order.created_ms:
        side = book.asks if order.side is Side.BUY else book.bids
        volume, value = walk_book(side, order.remaining, is_allowed)
        price, words, volume = (value / volume if volume > 0 else 0.0), "book", market.round_volume(volume)
    elif bar is not None:
        price, words = bar.open * (1 + sign * half_spread(view)), f"open {plain(bar.open)}"
        volume = bar_volume(view, bar, order.remaining) if is_allowed(price) else 0.0
    else:
        return None
    return Execution(market.round_price(price * slip, order.side), volume, False, words) if volume > 0 else None


def is_stop_reached(order: Order, view: MarketView) -> bool:
    """True when the market traded at or below the stop after the order was placed."""
    bar, ticker = bar_after(view, order), ticker_after(view, order)
    low = min([bar.low] if bar is not None else [traded(ticker)] if ticker is not None else [math.inf])
    return low <= order.stop


def stop_execution(order: Order, view: MarketView, costs: Costs) -> Execution | None:
    """A triggered protection sells at the worse of stop and open, slipped, or rests at its limit if that is too low.

    `order.is_triggered` tells a stop reached earlier: then it is a resting sale at its limit.
    """
    market, bar, ticker = view.market, bar_after(view, order), ticker_after(view, order)
    top = bar.high if bar is not None else ticker.last if ticker is not None else 0.0
    if order.is_triggered:
        price, has_traded = order.limit, top >= order.limit + market.tick * 0.999999
    else:
        start = bar.open if bar is not None else traded(ticker) if ticker is not None else 0.0
        worst = min(start, order.stop) * (1 - half_spread(view)) * (1 - costs.slippage)
        price = market.round_price(worst, Side.SELL)
        has_traded = price >= order.limit
    if not has_traded:
        return None
    volume = bar_volume(view, bar, order.remaining) if bar is not None else market.round_volume(order.remaining)
    return Execution(price, volume, order.is_triggered, f"stop {plain(order.stop)}") if volume > 0 else None


def execute(order: Order, view: MarketView, costs: Costs) -> tuple[Execution | None, bool]:
    """What the market gives this order now, and whether its stop has been reached."""
    if order.kind is OrderKind.ENTRY:
        return resting_execution(order, view), False
    if order.kind is OrderKind.PROTECTION:
        if not (order.is_triggered or is_stop_reached(order, view)):
            return None, False
        return stop_execution(order, view, costs), True
    return taking_execution(order, view, costs), False


def fill_of(order: Order, execution: Execution, market: Market, now_ms: int) -> Fill:
    """The execution as a fill with its fee; one fill per order and cycle, so its id is order and time."""
    fee = market.maker_fee if execution.is_maker else market.taker_fee
    return Fill(
        f"{order.order_id}@{now_ms}", order.order_id, order.pair, order.side, order.kind, now_ms,
        execution.price, execution.volume, 0.0, round_fee(execution.price * execution.volume * fee),
        execution.is_maker, execution.evidence,
    )


# ==============================================================================
# CYCLE | what happens between a closed candle and the next orders
# pure | uses ERRORS TYPES SETTINGS STRATEGIES PORTFOLIO RISK FILLS
# ==============================================================================

FOLLOW_UP_MS = 5_000
MAX_FOLLOW_UPS = 3
REFUSED_SALES = 2  # after so many refused sales in a row the next one waits for a decision
FUNDS_CODES = ("ErrInsufficientFunds", "ErrInsufficientBalance")
TRAIL_STEP_ATR = 0.5  # a trailing stop moves only this far at a time, so that orders are not replaced for nothing
EXIT_REGIMES: Mapping[str, tuple[Regime, ...]] = types.MappingProxyType(
    {MOMENTUM: (), EXPANSION: (), REVERSION: (Regime.TRENDING, Regime.WILD)}
)
# these end by the owner's word only
OWNER_CAUSES = (CauseKind.KILL, CauseKind.WEEKLY_CAP, CauseKind.KEY_REFUSED, CauseKind.UNRESOLVED,
                CauseKind.DAMAGED_STORE, CauseKind.DOUBLE_USE)
ENTRY_KINDS = (OrderKind.ENTRY, OrderKind.TAKER_ENTRY)
CALLED_OFF_MS = 1  # the expiry of an entry that the owner has called off: its signal is not taken up again


@dataclass(frozen=True, slots=True)
class CycleReport:
    """All that one cycle found, decided and wants done; `desk` is the new desk, `exposure` counter value."""

    now_ms: int
    due: tuple[int, ...]
    desk: Desk
    settlement: Settlement
    signals: tuple[Signal, ...]
    verdicts: tuple[RiskVerdict, ...]
    decisions: tuple[Decision, ...]
    cancels: tuple[Order, ...]
    orders: tuple[Order, ...]
    round_trips: tuple[RoundTrip, ...]
    events: tuple[Event, ...]
    equity: float
    exposure: float

    @property
    def is_quiet(self) -> bool:
        """True when nothing happened that the audit must keep."""
        s = self.settlement
        told = self.decisions or self.events or self.round_trips
        return not (s.fills or s.outcomes or self.cancels or self.orders or told)


class Executor(Protocol):
    """Where orders go and where their fate comes from."""

    def settle(self, moment: Moment) -> Settlement:
        """Fills and outcomes since the last call."""

    def place(self, order: Order) -> None:
        """Send one order; what became of it is told by a later settle."""

    def cancel(self, order: Order) -> None:
        """Ask for an order's end; a later settle tells when it is off."""


class Recorder(Protocol):
    """Where a report is written before any of its orders is sent."""

    def record(self, report: CycleReport) -> None:
        """Keep the report; AuditBroken if that is impossible."""


def never() -> bool:
    """No kill switch: for backtests."""
    return False


class SimulatedExecutor:
    """Orders against recorded or live quotes, filled by the rules of FILLS; for backtest, demo, replay and paper."""

    def __init__(self, costs: Costs, is_killed: Callable[[], bool] = never, orders: Iterable[Order] = ()) -> None:
        self._costs = costs
        self._is_killed = is_killed
        self._orders: dict[str, Order] = {}
        self._filled_ms: dict[str, int] = {}  # when an order was last filled: no older quote fills its rest
        self._outcomes: list[Outcome] = []
        for order in orders:  # a desk read back after a crash: do what was written and may not have been done
            if order.state is OrderState.INTENT and not order.is_cancelling:
                self._accept(order)
                continue
            self._orders[order.order_id] = replace(order, state=OrderState.OPEN)
            if order.is_cancelling:
                self.cancel(order)

    def settle(self, moment: Moment) -> Settlement:
        """Fills that the moment's evidence gives, and what became of orders placed or cancelled before."""
        fills: list[Fill] = []
        views = {} if moment.is_follow_up else {v.pair: v for v in moment.views}
        outcomes, self._outcomes = self._outcomes, []
        for order_id in sorted(self._orders):
            order = self._orders[order_id]
            view = views.get(order.pair)
            if view is not None:
                fills += self._try(order, view, moment.now_ms)
        outcomes, self._outcomes = outcomes + self._outcomes, []
        return Settlement(tuple(fills), tuple(outcomes))

    def _try(self, order: Order, view: MarketView, now_ms: int) -> list[Fill]:
        """The fill this view gives an order, if any, and its outcome."""
        if view.ticker is not None and view.ticker.time_ms <= self._filled_ms.get(order.order_id, 0):
            view = replace(view, ticker=None)
        execution, is_triggered = execute(order, view, self._costs)
        fills = []
        if execution is not None:
            self._filled_ms[order.order_id] = now_ms
            fills.append(fill_of(order, execution, view.market, now_ms))
            order = replace(order, filled=order.filled + execution.volume)
        if is_triggered and not order.is_triggered:
            order = replace(order, is_triggered=True)
            self._outcomes.append(Outcome(order.order_id, OrderState.OPEN, "stop reached", True))
        self._orders[order.order_id] = order
        self._finish(order, view)
        return fills

    def _finish(self, order: Order, view: MarketView) -> None:
        """End an order that is filled, or a taking one that has had its chance."""
        has_evidence = bar_after(view, order) is not None or (
            view.book is not None and view.book.time_ms > order.created_ms
        )
        if view.market.round_volume(order.remaining) <= 0:
            self._end(order, OrderState.DONE, "filled")
        elif order.kind in (OrderKind.EXIT, OrderKind.TAKER_ENTRY) and has_evidence:
            self._end(order, OrderState.DONE, "rest cancelled: nothing more within its limit")

    def _end(self, order: Order, state: OrderState, why: str) -> None:
        del self._orders[order.order_id]
        self._filled_ms.pop(order.order_id, None)
        self._outcomes.append(Outcome(order.order_id, state, why))

    def place(self, order: Order) -> None:
        """Accept an order, or refuse it when the kill switch came on after it was decided."""
        self._accept(order)

    def _accept(self, order: Order) -> None:
        if self._is_killed():
            self._outcomes.append(Outcome(order.order_id, OrderState.REJECTED, "kill switch"))
            return
        self._orders[order.order_id] = replace(order, state=OrderState.OPEN)
        self._outcomes.append(Outcome(order.order_id, OrderState.OPEN, "accepted"))

    def cancel(self, order: Order) -> None:
        """Take an order off, unless it has ended already."""
        if order.order_id in self._orders:
            self._end(self._orders[order.order_id], OrderState.DONE, "cancelled")


@dataclass(slots=True)
class Draft:
    """One cycle's report while it is being written; it lives inside `decide` only."""

    desk: Desk
    moment: Moment
    settings: Settings
    signals: tuple[Signal, ...] = ()
    verdicts: list[RiskVerdict] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    cancels: list[Order] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    round_trips: list[RoundTrip] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    moves: dict[str, str] = field(default_factory=dict)

    @property
    def now_ms(self) -> int:
        """The moment's time."""
        return self.moment.now_ms

    def tell(self, kind: str, level: str, text: str, pair: str = "") -> None:
        """Add an event."""
        self.events.append(Event(self.now_ms, kind, level, text, pair))

    def cancel(self, order: Order) -> None:
        """Have an order cancelled, once."""
        if not order.is_cancelling:
            marked = replace(order, is_cancelling=True)
            self.desk = put_order(self.desk, marked)
            self.cancels.append(marked)

    def close(self, position: Position) -> None:
        """Close a position whose rest is too small to sell."""
        self.desk, trip = close_position(self.desk, position, self.now_ms)
        self.round_trips.append(trip)
        self.tell("dust", "info", f"{plain(position.volume)} {position.pair} is too small to sell", position.pair)


def _tell_fill(draft: Draft, fill: Fill, trip: RoundTrip | None) -> None:
    name = {OrderKind.PROTECTION: "stop", OrderKind.EXIT: "exit"}.get(fill.kind, "entry")
    text = f"{fill.side.value} {plain(fill.volume)} {fill.pair} at {plain(fill.price)}"
    if trip is not None:
        text += f", round trip {trip.profit / (trip.entry * trip.volume):+.2%}" if trip.entry * trip.volume > 0 else ""
    draft.tell(name, "info", text, fill.pair)


def _sweep_dust(draft: Draft, position: Position) -> None:
    """Close a position that is too small to sell once nothing more can be bought or sold."""
    view = draft.moment.view(position.pair)
    if view is None or draft.desk.orders_of(position.pair):
        return
    if position.volume / (1 + base_fee(draft.desk, view.market)) >= view.market.min_volume:
        return
    draft.close(replace(position, exit_why=position.exit_why or "too small to sell"))


BASE_FEE_WORDS = "the fee of a sale is taken in the coin itself; sales keep it back from now on"


def _book_fill(draft: Draft, fill: Fill, order: Order) -> None:
    """Book one fill and tell it, and what it shows of the fees of sales."""
    held, known = draft.desk.position(fill.pair), draft.desk.base_fees
    draft.desk, trip = book_fill(draft.desk, fill, order)
    _tell_fill(draft, fill, trip)
    if trip is not None:
        draft.round_trips.append(trip)
    if draft.desk.base_fees != known:
        missing = fill.volume + fill.fee_base - (held.volume if held is not None else 0.0)
        words = f"; {plain(missing)} of it was not the bot's" if missing > 1e-9 else ""
        draft.tell("fee", "warning", f"{fill.pair}: {BASE_FEE_WORDS}{words}", fill.pair)


def _note_answer(draft: Draft, order: Order, outcome: Outcome) -> None:
    """Tell a refusal; count it for a sale, which keeps the fee back from now on if the coins were not enough."""
    position, is_sale = draft.desk.position(order.pair), order.side is Side.SELL
    if outcome.refused:
        text = f"{order.pair}: {order.kind.value} refused by Luno, {outcome.refused}"
        draft.tell("refused", "error" if is_sale else "warning", text, order.pair)
    if position is None or not is_sale:
        return
    if outcome.refused:
        draft.desk = put_position(draft.desk, replace(position, refused=position.refused + 1))
    elif outcome.state in (OrderState.OPEN, OrderState.DONE) and position.refused:
        draft.desk = put_position(draft.desk, replace(position, refused=0))
    if outcome.refused in FUNDS_CODES and order.pair not in draft.desk.base_fees:
        draft.desk = keep_base_fee(draft.desk, order.pair)
        text = f"{order.pair}: less can be sold than is held, so it is taken that {BASE_FEE_WORDS}"
        draft.tell("fee", "warning", text, order.pair)


def book(draft: Draft, settlement: Settlement) -> None:
    """Put fills and outcomes into the desk."""
    for fill in settlement.fills:
        order = draft.desk.order(fill.order_id)
        if order is None:
            raise OutcomeUnknown(fill.order_id)
        _book_fill(draft, fill, order)
    for outcome in settlement.outcomes:
        order = draft.desk.order(outcome.order_id)
        if order is not None:
            is_triggered = order.is_triggered or outcome.is_triggered
            draft.desk = put_order(draft.desk, replace(order, state=outcome.state, is_triggered=is_triggered))
            _note_answer(draft, order, outcome)
    for position in draft.desk.positions:
        _sweep_dust(draft, position)


def roll_day(draft: Draft) -> None:
    """Start a new UTC day and week with the equity of now; forget counts that are too old to matter."""
    desk, now = draft.desk, draft.now_ms
    day, week = now // DAY_MS, (now // DAY_MS + 3) // 7
    value = equity(desk)
    if day > desk.day:
        desk = replace(desk, day=day, day_start_equity=value)
    if week > desk.week:
        desk = replace(desk, week=week, week_start_equity=value)
    draft.desk = replace(
        desk,
        peak_equity=max(desk.peak_equity, value),
        order_times=tuple(t for t in desk.order_times if t > now - DAY_MS),
        entries=tuple(e for e in desk.entries if e[1] > now - 7 * DAY_MS),
        closings=tuple(c for c in desk.closings if c[1] > now - DAY_MS),
    )


def review_conditions(draft: Draft) -> None:
    """Set causes for what is wrong with machine and line; clear them when a full reconcile was clean."""
    now = draft.moment.conditions
    for kind, is_wrong in (
        (CauseKind.KILL, now.is_killed),
        (CauseKind.NO_NETWORK, not now.has_network),
        (CauseKind.STORE_TROUBLE, not now.is_store_ok),
        (CauseKind.MAINTENANCE, now.is_maintenance),
        (CauseKind.KEY_REFUSED, now.is_key_refused),
        (CauseKind.CLOCK_SKEW, abs(now.skew_ms) > MAX_SKEW_MS),
        (CauseKind.RESUMED, now.loop_gap_ms > MAX_LOOP_GAP_MS),
        (CauseKind.UNKNOWN_ORDER, now.is_contradicted or any(o.state is OrderState.UNKNOWN for o in draft.desk.orders)),
        (CauseKind.BALANCE_DRIFT, now.is_drifting),
        (CauseKind.FOREIGN_ORDER, now.has_foreign),
        (CauseKind.UNRESOLVED, now.is_unresolved),
        (CauseKind.DOUBLE_USE, now.is_double_used),
    ):
        has_it = any(c.kind is kind for c in draft.desk.causes)
        if is_wrong and not has_it:
            draft.desk = set_cause(draft.desk, Cause(kind, draft.now_ms, 0, kind.words))
            draft.tell("kill" if kind is CauseKind.KILL else "state", "warning", f"Held back: {kind.words}")
        elif has_it and not is_wrong and now.is_reconciled and kind not in OWNER_CAUSES:
            draft.desk = clear_cause(draft.desk, kind)
            draft.tell("state", "info", f"Over: {kind.words}")


def _cap_words(limits: RiskLimits) -> str:
    return "positions are being closed" if limits.daily_cap_action == "close" else "positions keep their stops"


def review_caps(draft: Draft) -> None:
    """Set the daily and weekly caps when equity, open losses included, has fallen to them."""
    limits, desk, now = draft.settings.limits, draft.desk, draft.now_ms
    value, kinds = equity(desk), {c.kind for c in desk.causes}
    if desk.day_start_equity <= 0 or desk.week_start_equity <= 0:
        return  # nothing to lose
    if CauseKind.DAILY_CAP not in kinds and value <= desk.day_start_equity * (1 - limits.daily_loss_cap):
        until = max((desk.day + 1) * DAY_MS, now + int(limits.cooldown_hours * HOUR_MS))
        why = f"day {value / desk.day_start_equity - 1:.2%}, cap -{limits.daily_loss_cap:.2%}"
        draft.desk = set_cause(draft.desk, Cause(CauseKind.DAILY_CAP, now, until, why))
        draft.tell("daily_cap", "error", f"Daily loss cap reached: {why}; entries stopped, {_cap_words(limits)}")
    if CauseKind.WEEKLY_CAP not in kinds and value <= desk.week_start_equity * (1 - limits.weekly_loss_cap):
        why = f"week {value / desk.week_start_equity - 1:.2%}, cap -{limits.weekly_loss_cap:.2%}"
        draft.desk = set_cause(draft.desk, Cause(CauseKind.WEEKLY_CAP, now, 0, why))
        draft.tell("weekly_cap", "error", f"Weekly loss cap reached: {why}; halted until you confirm")


def end_cooldown(draft: Draft) -> None:
    """Lift the daily cap once its time is over; a new day has begun by then."""
    if any(c.kind is CauseKind.DAILY_CAP and c.until_ms <= draft.now_ms for c in draft.desk.causes):
        draft.desk = clear_cause(draft.desk, CauseKind.DAILY_CAP)
        draft.tell("cooldown", "info", "Cooldown over: entries are allowed again")
        review_caps(draft)  # what was held to its stops may have lost the next day's share too


def review_limits(draft: Draft) -> None:
    """Loss caps, day roll, end of a cooldown, machine and line."""
    review_caps(draft)  # first: what the last candle of a day lost counts for that day
    roll_day(draft)
    end_cooldown(draft)
    review_conditions(draft)


def _plan_retry(draft: Draft, order: Order) -> None:
    """Remember the signal of a timed-out entry if it still stands, to take it once the order is off."""
    wanted = (order.pair, order.strategy, order.timeframe_s)
    standing = [s for s in draft.signals if (s.pair, s.strategy, s.timeframe_s) == wanted
                and math.isfinite(s.break_even)]  # without a quote there is nothing to take
    is_wanted = order.kind is OrderKind.ENTRY and order.expires_ms != CALLED_OFF_MS
    if standing and is_wanted and order.filled == 0:
        draft.desk = replace(draft.desk, retries=(*draft.desk.retries, standing[0]))


def cancel_entries(draft: Draft) -> None:
    """Cancel entry orders that are out of time, or that the state no longer allows."""
    state = draft.desk.state
    for order in draft.desk.orders if state is not TradingState.UNCERTAIN else ():
        if order.kind not in ENTRY_KINDS or order.is_cancelling:
            continue
        is_late = 0 < order.expires_ms <= draft.now_ms
        if is_late and state is TradingState.READY and draft.settings.schedule.takes_after_timeout:
            _plan_retry(draft, order)
        if is_late or state is not TradingState.READY:
            draft.cancel(order)


def outlook_of(view: MarketView, timeframe_s: int) -> Outlook | None:
    """The view's row for one timeframe."""
    return next((o for o in view.outlooks if o.timeframe_s == timeframe_s), None)


def trail(draft: Draft, position: Position, view: MarketView) -> None:
    """Raise a stop behind the highest close, in steps; never lower it."""
    outlook = outlook_of(view, position.timeframe_s)
    if outlook is None or not draft.moment.due or not math.isfinite(outlook.atr):
        return
    best = max(position.best, outlook.close)
    wanted = view.market.round_price(best - draft.settings.params.trail_atr * outlook.atr, Side.SELL)
    if wanted > position.stop + TRAIL_STEP_ATR * outlook.atr:
        draft.moves[position.pair] = f"Stop raised from {plain(position.stop)} to {plain(wanted)}"
        position = replace(position, stop=wanted)
    draft.desk = put_position(draft.desk, replace(position, best=best))


def _strategy_exit(draft: Draft, position: Position, outlook: Outlook) -> str:
    setup = next((s for s in outlook.setups if s.strategy == position.strategy), None)
    if setup is not None and setup.is_exit:
        return "mean reached" if position.strategy == REVERSION else "trend over"
    if outlook.regime in EXIT_REGIMES.get(position.strategy, ()):
        return "regime change"
    age = draft.now_ms - position.opened_ms
    return "time" if age >= draft.settings.params.max_holding * HOUR_MS else ""


def exit_reason(draft: Draft, position: Position, view: MarketView) -> str:
    """Why to leave this position now, or an empty text."""
    kinds = {c.kind for c in draft.desk.causes}
    if kinds & {CauseKind.DAILY_CAP, CauseKind.WEEKLY_CAP} and draft.settings.limits.daily_cap_action == "close":
        return "loss cap"
    protection = draft.desk.orders_of(position.pair, OrderKind.PROTECTION)
    is_new = position.opened_ms == draft.now_ms
    if is_new and view.bar is not None and view.bar.low <= position.stop:
        return "stop"  # the candle that filled the entry went on through its stop
    is_below = view.ticker is not None and 0 < view.ticker.bid <= position.stop
    if is_below and all(o.is_triggered for o in protection):
        return "stop"
    outlook = outlook_of(view, position.timeframe_s) if draft.moment.due else None
    return "" if outlook is None else _strategy_exit(draft, position, outlook)


def sale(draft: Draft, position: Position, view: MarketView) -> RiskVerdict:
    """Risk's word on leaving a position at the bid, at most `exit_bound` below it."""
    bid = view.ticker.bid if view.ticker is not None else 0.0
    limit = view.market.round_price(bid * (1 - draft.settings.costs.exit_bound), Side.SELL)
    intent = OrderIntent(position.pair, Side.SELL, OrderKind.EXIT, limit, limit, position.volume, None,
                         position.exit_why)
    return assess(Case(intent, draft.desk, view, draft.moment, draft.settings))


def order_for(draft: Draft, verdict: RiskVerdict, position: Position | None) -> Order:
    """The approved intent as an order with its own id; a sale carries its position's strategy."""
    intent, signal = verdict.intent, verdict.intent.signal
    source = position if signal is None else signal
    timeframe = source.timeframe_s if source is not None else 0
    expires = 0
    if intent.kind is OrderKind.ENTRY and signal is not None:
        candles = 1 + draft.settings.schedule.entry_timeout_candles
        expires = signal.opened_ms + candles * timeframe * 1000 + DECISION_DELAY_MS
    return Order(
        f"LB1-{draft.desk.next_order:06d}", intent.pair, intent.side, intent.kind, OrderState.INTENT, verdict.volume,
        intent.limit, intent.stop, draft.now_ms, expires, source.strategy if source is not None else "",
        source.regime if source is not None else Regime.UNKNOWN, timeframe, intent.why,
    )


def send(draft: Draft, verdict: RiskVerdict, position: Position | None = None) -> None:
    """Make the order, put it on the desk, and have it placed after the report is written."""
    order = order_for(draft, verdict, position)
    desk = put_order(replace(draft.desk, next_order=draft.desk.next_order + 1), order)
    if order.side is Side.BUY and verdict.intent.signal is not None:
        mark = (order.pair, verdict.intent.signal.opened_ms)
        desk = replace(desk, order_times=(*desk.order_times, draft.now_ms), entries=(*desk.entries, mark))
    draft.desk = desk
    draft.orders.append(order)


def _tell_refused(draft: Draft, verdict: RiskVerdict) -> None:
    """A sale or protection that cannot go out, told at each decision: the owner may have to act."""
    code = verdict.refusal.value if verdict.refusal is not None else ""
    if draft.moment.due and verdict.refusal not in (Refusal.KILLED, Refusal.STATE):  # those were told by their cause
        intent = verdict.intent
        text = f"{intent.pair}: {intent.kind.value} refused, {code}: {verdict.why}"
        draft.tell("refused", "error", text, intent.pair)


def is_held_back(draft: Draft, position: Position) -> bool:
    """True between decisions once the exchange has refused a position's sales again and again."""
    return position.refused >= REFUSED_SALES and not draft.moment.due


def leave(draft: Draft, position: Position, view: MarketView) -> None:
    """One step of leaving: take the market's orders off, then sell, then sell what is left."""
    if position.phase is ExitPhase.NONE:
        why = exit_reason(draft, position, view)
        if not why:
            return
        position = replace(position, phase=ExitPhase.CANCELLING, exit_why=why, refused=0)
        draft.desk = put_position(draft.desk, position)
    working = draft.desk.orders_of(position.pair)
    if not may_reduce(draft.desk) or any(o.kind is OrderKind.EXIT for o in working) or is_held_back(draft, position):
        return
    verdict = sale(draft, position, view)
    draft.verdicts.append(verdict)
    if verdict.refusal is not None:
        _tell_refused(draft, verdict)
        return
    for order in working:
        draft.cancel(order)
    if not working:
        draft.desk = put_position(draft.desk, replace(position, phase=ExitPhase.EXITING))
        send(draft, verdict, position)


def protect(draft: Draft, position: Position, view: MarketView) -> None:
    """See to it that exactly one stop-limit for the whole position rests; replace it by cancel, wait, new."""
    resting = draft.desk.orders_of(position.pair, OrderKind.PROTECTION)
    volume = sellable(draft.desk, position.volume, view.market)
    stale = [o for o in resting if o.stop != position.stop or view.market.round_volume(o.remaining) != volume]
    if (resting and not stale) or volume < view.market.min_volume or is_held_back(draft, position):
        return
    limit = view.market.round_price(position.stop * (1 - draft.settings.costs.stop_gap), Side.SELL)
    kind = OrderKind.PROTECTION
    intent = OrderIntent(position.pair, Side.SELL, kind, limit, position.stop, volume, None, kind.value)
    verdict = assess(Case(intent, draft.desk, view, draft.moment, draft.settings))
    draft.verdicts.append(verdict)
    if verdict.refusal is not None:
        _tell_refused(draft, verdict)
        return
    for order in stale:
        draft.cancel(order)
    if not resting:
        send(draft, verdict, position)


def look_after_positions(draft: Draft) -> None:
    """Trail, leave or protect each position."""
    for pair in [p.pair for p in draft.desk.positions]:
        view = draft.moment.view(pair)
        position = draft.desk.position(pair)
        if view is None or position is None:
            continue
        if position.phase is ExitPhase.NONE:
            trail(draft, position, view)
        leave(draft, draft.desk.position(pair) or position, view)
        position = draft.desk.position(pair)
        if position is not None and position.phase is ExitPhase.NONE:
            protect(draft, position, view)


def entry_intent(signal: Signal, view: MarketView, kind: OrderKind, costs: Costs) -> OrderIntent:
    """The wish to buy: post-only at the bid, or taking up to the slippage above the ask."""
    ticker, market = view.ticker, view.market
    bid, ask = (ticker.bid, ticker.ask) if ticker is not None else (0.0, 0.0)
    limit = bid if kind is OrderKind.ENTRY else ask * (1 + 2 * costs.slippage)
    limit = market.round_price(limit, Side.SELL if kind is OrderKind.ENTRY else Side.BUY)
    return OrderIntent(signal.pair, Side.BUY, kind, limit, signal.stop, 0.0, signal, signal.why)


def consider(draft: Draft, signal: Signal, kind: OrderKind) -> None:
    """Let risk judge one signal and send the order if it agrees."""
    view = draft.moment.view(signal.pair)
    if view is None:
        return
    intent = entry_intent(signal, view, kind, draft.settings.costs)
    verdict = assess(Case(intent, draft.desk, view, draft.moment, draft.settings))
    draft.verdicts.append(verdict)
    if verdict.refusal is None:
        send(draft, verdict)


def enter(draft: Draft) -> None:
    """Entries, strongest first, each judged against the desk that the ones before it have left."""
    waiting = [s for s in draft.desk.retries if draft.desk.orders_of(s.pair)]
    ready = [s for s in draft.desk.retries if not draft.desk.orders_of(s.pair)
             and draft.now_ms < s.opened_ms + 2 * s.timeframe_s * 1000]  # the candle after it is still open
    draft.desk = replace(draft.desk, retries=tuple(waiting))
    for retry in ready:
        unmarked = tuple(e for e in draft.desk.entries if e != (retry.pair, retry.opened_ms))
        draft.desk = replace(draft.desk, entries=unmarked)
        consider(draft, retry, OrderKind.TAKER_ENTRY)
    planned = {s.pair for s in waiting}
    seen: set[tuple[str, int]] = set()
    for wish in draft.signals if draft.moment.due else ():
        key = (wish.pair, wish.timeframe_s)
        if key not in seen and wish.pair not in planned:
            consider(draft, wish, OrderKind.ENTRY)
        seen.add(key)


class Reason(NamedTuple):
    """What a decision says beyond market and candle."""

    action: Action
    code: str
    why: str
    confidence: float = 0.0
    strategy: str = ""
    numbers: Numbers = ()


def _held_row(draft: Draft, position: Position) -> Reason:
    if position.phase is not ExitPhase.NONE:
        return Reason(Action.EXIT, "exit", f"Leaving: {position.exit_why}", 0.0, position.strategy)
    words = draft.moves.get(position.pair, f"Held from {plain(position.entry)}, stop {plain(position.stop)}")
    return Reason(Action.HOLD, "hold", words, 0.0, position.strategy,
               (("entry", position.entry), ("mark", position.mark), ("stop", position.stop)))


def _verdict_row(verdict: RiskVerdict, signal: Signal) -> Reason:
    if verdict.refusal is not None:
        return Reason(Action.REJECT, verdict.refusal.value, f"{verdict.why}. {signal.why}", signal.confidence,
                   signal.strategy, verdict.numbers)
    return Reason(Action.ENTER, "enter", f"Buys {verdict.why}. {signal.why}", signal.confidence, signal.strategy,
               (*verdict.numbers, ("move", signal.move), ("break_even", signal.break_even)))


def _row(draft: Draft, view: MarketView, timeframe_s: int) -> Reason:
    """The decision for one market and timeframe: held, doubted, judged, working or nothing to see."""
    outlook = outlook_of(view, timeframe_s)
    position = draft.desk.position(view.pair)
    if position is not None and position.timeframe_s == timeframe_s:
        return _held_row(draft, position)
    for verdict in draft.verdicts:
        signal = verdict.intent.signal
        if signal is not None and (signal.pair, signal.timeframe_s) == (view.pair, timeframe_s):
            return _verdict_row(verdict, signal)
    findings = view.findings + (outlook.findings if outlook is not None else ())
    if outlook is None or findings:
        finding = findings[0] if findings else Finding(Doubt.STALE_CANDLES, "the candle has not arrived")
        return Reason(Action.SKIP, finding.doubt.name.lower(), f"No decision: {finding.doubt.value}, {finding.why}")
    if position is not None:
        return _held_row(draft, position)
    if draft.desk.orders_of(view.pair):
        order = draft.desk.orders_of(view.pair)[0]
        return Reason(Action.WAIT, "working", f"Entry order rests at {plain(order.limit)}", 0.0, order.strategy)
    if draft.settings.params.is_cash:
        return Reason(Action.WAIT, "cash", CASH_WORDS, 0.0, "", (("close", outlook.close),))
    return Reason(Action.WAIT, "no-signal", explain_nothing(outlook), 0.0, "", (("close", outlook.close),))


def write_rows(draft: Draft) -> None:
    """One row per market and closed candle, whatever was decided."""
    for view in draft.moment.views:
        for timeframe in draft.moment.due:
            outlook = outlook_of(view, timeframe)
            row = _row(draft, view, timeframe)
            regime_now = outlook.regime if outlook is not None else Regime.UNKNOWN
            opened = (draft.now_ms // (timeframe * 1000) - 1) * timeframe * 1000
            draft.decisions.append(Decision(
                draft.now_ms, view.pair, timeframe, opened, row.action, row.strategy,
                regime_now, row.confidence, row.code, row.why, row.numbers,
            ))


def decide(desk: Desk, moment: Moment, settlement: Settlement, settings: Settings) -> CycleReport:
    """From what happened to what is wanted: book, mark, review limits, look after positions, enter, explain."""
    draft = Draft(desk, moment, settings)
    book(draft, settlement)
    draft.desk = mark_positions(draft.desk, moment.views)
    review_limits(draft)
    draft.signals = rank_markets(moment.views, settings.costs) if moment.due else ()
    cancel_entries(draft)
    look_after_positions(draft)
    enter(draft)
    write_rows(draft)
    return CycleReport(
        moment.now_ms, moment.due, draft.desk, settlement, draft.signals, tuple(draft.verdicts),
        tuple(draft.decisions), tuple(draft.cancels), tuple(draft.orders), tuple(draft.round_trips),
        tuple(draft.events), equity(draft.desk), exposure(draft.desk),
    )


def trade_cycle(
    desk: Desk, moment: Moment, executor: Executor, recorder: Recorder, settings: Settings
) -> CycleReport:
    """The one line from candle to fill: settle, decide, write, and only then cancel and place."""
    settlement = executor.settle(moment)
    report = decide(desk, moment, settlement, settings)
    recorder.record(report)
    for order in report.cancels:
        executor.cancel(order)
    for order in report.orders:
        executor.place(order)
    return report


def trade_moment(
    desk: Desk, moment: Moment, executor: Executor, recorder: Recorder, settings: Settings
) -> tuple[CycleReport, ...]:
    """One cycle on a stepped clock, and a follow-up some seconds later while cancels are being answered."""
    reports = [trade_cycle(desk, moment, executor, recorder, settings)]
    while reports[-1].cancels and len(reports) <= MAX_FOLLOW_UPS:
        later = replace(moment, now_ms=reports[-1].now_ms + FOLLOW_UP_MS, due=(), is_follow_up=True)
        reports.append(trade_cycle(reports[-1].desk, later, executor, recorder, settings))
    return tuple(reports)


def trade_now(
    desk: Desk, moment: Moment, executor: Executor, recorder: Recorder, settings: Settings
) -> tuple[CycleReport, ...]:
    """One cycle in real time; the next quote some seconds later is its follow-up."""
    return (trade_cycle(desk, moment, executor, recorder, settings),)


# ==============================================================================
# METRICS | what a run amounts to
# pure | uses TYPES CANDLES
# ==============================================================================

@dataclass(frozen=True, slots=True)
class Drawdown:
    """The largest fall of equity from a peak, as a fraction, with the times of peak and trough."""

    value: float
    from_ms: int
    to_ms: int


@dataclass(frozen=True, slots=True)
class DailyReturns:
    """Distribution of the returns of UTC days."""

    mean: float
    std: float
    p05: float
    p50: float
    p95: float
    best: float
    worst_day: float


def total_return(start: float, end: float) -> float:
    """End over start, less one."""
    return end / start - 1 if start > 0 else 0.0


def returns_of(equities: Sequence[float], start: float) -> list[float]:
    """Return of each day from the equity at its end, the first one against `start`."""
    return [total_return(a, b) for a, b in zip([start, *equities], equities, strict=False)]


def daily_returns(equities: Sequence[float], start: float) -> DailyReturns:
    """Mean, spread (sample standard deviation), percentiles and extremes of the daily returns."""
    returns = returns_of(equities, start)
    if not returns:
        return DailyReturns(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    p05, p50, p95 = (float(v) for v in np.percentile(returns, (5, 50, 95)))
    spread = statistics.stdev(returns) if len(returns) > 1 else 0.0
    return DailyReturns(statistics.fmean(returns), spread, p05, p50, p95, max(returns), min(returns))


def max_drawdown(curve: Sequence[tuple[int, float]]) -> Drawdown:
    """Largest fall from a peak along (time, equity)."""
    worst, peak = Drawdown(0.0, 0, 0), (0, 0.0)
    for time_ms, value in curve:
        if value > peak[1]:
            peak = (time_ms, value)
        fall = 1 - value / peak[1] if peak[1] > 0 else 0.0
        if fall > worst.value:
            worst = Drawdown(fall, peak[0], time_ms)
    return worst


def profit_factor(profits: Sequence[float]) -> float | None:
    """Gains over losses; None when nothing was lost."""
    lost = -sum(p for p in profits if p < 0)
    return sum(p for p in profits if p > 0) / lost if lost > 0 else None


def expectancy(profits: Sequence[float]) -> float:
    """Average profit of a round trip, in counter."""
    return statistics.fmean(profits) if profits else 0.0


def buy_and_hold(firsts: Sequence[tuple[float, float, float]]) -> float:
    """Return of holding equal parts of all markets, taker fee both ways; items are (first price, last price, fee)."""
    if not firsts:
        return 0.0
    return statistics.fmean(last / first * (1 - fee) * (1 - fee) for first, last, fee in firsts) - 1


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a run amounts to; returns and shares are fractions, money is in counter."""

    total_return: float
    daily_returns: DailyReturns
    max_drawdown: Drawdown
    profit_factor: float | None
    expectancy: float
    exposure_time: float
    round_trips: int
    fees_paid: float
    buy_and_hold: float


def _group(trips: Sequence[RoundTrip]) -> dict[str, float | None]:
    profits = [t.profit for t in trips]
    return {
        "trades": float(len(trips)),
        "profit": sum(profits),
        "win_rate": sum(p > 0 for p in profits) / len(profits),
        "profit_factor": profit_factor(profits),
        "expectancy": expectancy(profits),
        "fees_paid": sum(t.fees for t in trips),
    }


def group_metrics(trips: Sequence[RoundTrip], key: Callable[[RoundTrip], str]) -> dict[str, dict[str, float | None]]:
    """Count, profit, share of winners, profit factor, expectancy and fees per strategy, pair or regime."""
    groups: dict[str, list[RoundTrip]] = {}
    for trip in trips:
        groups.setdefault(key(trip), []).append(trip)
    return {name: _group(groups[name]) for name in sorted(groups)}


# The statistics of the gates. Returns are of days, the Sharpe ratio (`sr`) too unless its name says annual.
# Chance comes from a seed alone: the same returns give the same figures.

YEAR_DAYS = 365
EULER = 0.5772156649015329  # the Euler-Mascheroni constant


def sharpes(returns: Floats) -> Floats:
    """Sharpe ratios per day along the last axis; 0 where nothing varies or for fewer than two days."""
    if returns.shape[-1] < 2:
        return np.zeros(returns.shape[:-1])
    spread = np.asarray(returns.std(axis=-1, ddof=1))
    is_flat = (returns == returns[..., :1]).all(axis=-1) | (spread == 0)  # rounding can give equal values a spread
    ratios: Floats = np.divide(returns.mean(axis=-1), spread, out=np.zeros_like(spread), where=~is_flat)
    return ratios


def sharpe(returns: Sequence[float] | Floats) -> float:
    """Sharpe ratio per day; 0 where nothing varies or for fewer than two days."""
    return float(sharpes(np.asarray(returns, dtype=np.float64)))


def annual_sharpe(returns: Sequence[float] | Floats) -> float:
    """Sharpe ratio of a year of 365 days."""
    return sharpe(returns) * math.sqrt(YEAR_DAYS)


def bootstrap_rows(count: int, length: int, block: float, seed: int, width: int | None = None) -> Ints:
    """Stationary bootstrap (Politis and Romano 1994): `count` rows of `width` (or `length`) numbers below `length`."""
    # the next number is one higher (0 after the last), or with probability 1 / block any number
    rng = np.random.default_rng(seed)
    is_new = rng.random((count, width or length)) < 1 / block
    is_new[:, 0] = True
    fresh = np.flatnonzero(is_new)
    starts = rng.integers(0, length, fresh.size)
    rows = np.repeat(starts - fresh, np.diff(fresh, append=is_new.size)) + np.arange(is_new.size)
    return np.remainder(rows, length).reshape(is_new.shape)


class MoneyTest(NamedTuple):
    """The chance of so good a mean where the true one is not above zero, and a lower bound of it, per day."""

    p_value: float
    lower_bound: float


def money_test(returns: Floats, seed: int, block: float = 10.0, draws: int = 2000, level: float = 0.20) -> MoneyTest:
    """One-sided bootstrap test that the mean is above zero, with its lower bound at `level`; no days prove nothing."""
    if not returns.size:
        return MoneyTest(1.0, 0.0)
    means = np.sort(returns[bootstrap_rows(draws, returns.size, block, seed)].mean(axis=1))
    twice = 2 * float(returns.mean())  # m* - m >= m, where m* is the mean of a draw
    p_value = (1 + int((means >= twice).sum())) / (1 + draws)
    # both read the same errors m* - m, so that the bound is above zero just when p is at most the level
    allowed = max(1, math.floor(level * (1 + draws) + 1e-9))
    return MoneyTest(p_value, twice - float(means[-allowed]))


class ReturnShape(NamedTuple):
    """What the Sharpe formulas need of daily returns; a normal distribution has skew 0 and kurtosis 3."""

    sr: float
    days: int
    skew: float
    kurtosis: float

    @property
    def spread(self) -> float:
        """Variance of the Sharpe ratio, times days less one."""
        return 1 - self.skew * self.sr + (self.kurtosis - 1) / 4 * self.sr**2


def return_shape(returns: Floats) -> ReturnShape:
    """Sharpe ratio, days, skew and kurtosis; at a ratio of 0 the formulas do not ask for the latter two."""
    sr = sharpe(returns)
    if sr == 0:
        return ReturnShape(0.0, returns.size, 0.0, 3.0)
    z = (returns - returns.mean()) / returns.std()
    return ReturnShape(sr, returns.size, float((z**3).mean()), float((z**4).mean()))


def psr_of(shape: ReturnShape, sr0: float) -> float:
    """Probability that the true Sharpe ratio is above `sr0` (Bailey and Lopez de Prado 2012)."""
    spread = max(shape.spread, 1e-12)  # never negative but for rounding
    return statistics.NormalDist().cdf((shape.sr - sr0) * math.sqrt(max(shape.days - 1, 0) / spread))


def psr(returns: Floats, sr0: float) -> float:
    """Probability that the true Sharpe ratio of these daily returns is above `sr0`."""
    return psr_of(return_shape(returns), sr0)


def expected_max_sharpe(variance: float, count: int) -> float:
    """Best Sharpe ratio that luck alone gives among `count` trials whose ratios have this variance."""
    if count < 2:
        return 0.0
    normal = statistics.NormalDist()
    best, further = normal.inv_cdf(1 - 1 / count), normal.inv_cdf(1 - 1 / (count * math.e))
    return math.sqrt(variance) * ((1 - EULER) * best + EULER * further)


def dsr(returns: Floats, trial_sharpes: Sequence[float] | Floats) -> float:
    """Deflated Sharpe ratio: `psr` above what luck alone gives the best of all the trials."""
    count = len(trial_sharpes)
    variance = float(np.var(trial_sharpes, ddof=1)) if count > 1 else 0.0
    return psr(returns, expected_max_sharpe(variance, count))


def min_trl(returns: Floats, sr0: float, confidence: float = 0.95) -> float:
    """Days needed until `psr` reaches the confidence at this shape; infinite if the Sharpe ratio is not above `sr0`."""
    shape = return_shape(returns)
    if shape.sr <= sr0:
        return math.inf
    return 1 + shape.spread * (statistics.NormalDist().inv_cdf(confidence) / (shape.sr - sr0)) ** 2


def pbo(matrix: Floats, blocks: int = 12) -> float:
    """Share of half-splits whose best set ranks in the lower half on the other half; [days, sets], `blocks` even."""
    # CSCV (Bailey, Borwein, Lopez de Prado, Zhu 2015); the median counts as lower, and equal ratios share their rank
    parts = np.array_split(matrix, blocks)
    halves = itertools.combinations(range(blocks), blocks // 2)
    inside = np.array([sharpes(np.concatenate([parts[i] for i in half]).T) for half in halves])
    outside = inside[::-1]  # the n-th combination from the back holds what the n-th one leaves out
    chosen = np.take_along_axis(outside, inside.argmax(axis=1)[:, None], axis=1)
    lead = (outside < chosen).sum(axis=1) - (outside > chosen).sum(axis=1)
    return float((lead <= 0).mean())


def drawdowns(returns: Floats) -> Floats:
    """Largest fall of compounded returns from a peak or from the start, along the last axis, as fractions."""
    value = np.cumprod(1 + returns, axis=-1)
    peak = np.maximum(np.maximum.accumulate(value, axis=-1), 1.0)
    return np.asarray((1 - value / peak).max(axis=-1, initial=0.0))


def drawdown_of(returns: Sequence[float] | Floats) -> float:
    """Largest fall of compounded returns from a peak or from the start, as a fraction."""
    return float(drawdowns(np.asarray(returns, dtype=np.float64)))


def drawdown_quantile(
    returns: Floats, seed: int, days: int = 360, block: float = 20.0, draws: int = 2000, quantile: float = 0.99
) -> float:
    """Quantile of the largest fall within `days`, over bootstrapped returns; 0 without returns."""
    if not returns.size:
        return 0.0
    rows = bootstrap_rows(draws, returns.size, block, seed, width=days)
    return float(np.quantile(drawdowns(returns[rows]), quantile))


def _upper_rate(k: int, n: int, tail: float) -> float:
    """The rate at which k or fewer of n have probability `tail`, by bisection; 1 if all of n came."""
    if k >= n:
        return 1.0
    i = np.arange(k + 1)
    ways = np.array([math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1) for j in range(k + 1)])
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        is_likely = np.exp(ways + i * math.log(rate) + (n - i) * math.log1p(-rate)).sum() > tail
        low, high = (rate, high) if is_likely else (low, rate)
    return high


def binomial_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact bounds (Clopper and Pearson) of a rate seen k times in n; nothing is known of it without a look."""
    tail = (1 - confidence) / 2
    return 1 - _upper_rate(n - k, n, tail), _upper_rate(k, n, tail)


MEASURES = (  # key, words, how it is written, what the value is of
    ("total_return", "Total return", "change", "after costs"),
    ("buy_and_hold", "Buy and hold", "change", "same coins and span"),
    ("against_holding", "Against holding", "change", "total return less holding"),
    ("max_drawdown", "Maximum drawdown", "share", ""),
    ("profit_factor", "Profit factor", "number", "gains over losses, after costs"),
    ("trades", "Round trips", "count", "entry and exit together"),
    ("expectancy", "Expectancy", "gain", "per round trip, after costs"),
    ("fees_paid", "Fees paid", "money", "both sides"),
    ("exposure_time", "Exposure time", "share", "of all candles"),
    ("mean", "Mean day", "change", ""),
    ("std", "Standard deviation", "share", "of daily returns"),
    ("p05", "Day, 5th percentile", "change", "of daily returns"),
    ("p50", "Median day", "change", "of daily returns"),
    ("p95", "Day, 95th percentile", "change", "of daily returns"),
    ("best", "Best day", "change", "of equity at its start"),
    ("worst_day", "Worst day", "change", "of equity at its start"),
)


def number_in(values: Mapping[str, object], name: str) -> float | None:
    """A finite number out of a report, or None."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def group_in(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    """A nested part of a report, empty if it is missing."""
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}


def list_in(values: Mapping[str, object], name: str) -> tuple[Mapping[str, object], ...]:
    """The parts of a report under this name; a mapping gives its parts with their names."""
    value = values.get(name)
    if isinstance(value, Mapping):
        return tuple({"name": key, **group_in(value, key)} for key in value)
    return tuple(part for part in value if isinstance(part, Mapping)) if isinstance(value, list | tuple) else ()


def figures_of(metrics: Mapping[str, object]) -> dict[str, float | None]:
    """All measures of a run in one row; a fall is negative, unknown is None."""
    flat = {**metrics, **group_in(metrics, "daily_returns")}
    values = {key: number_in(flat, key) for key, *_ in MEASURES}
    total, held, fall = values["total_return"], values["buy_and_hold"], group_in(metrics, "max_drawdown")
    values["against_holding"] = None if total is None or held is None else total - held
    depth = number_in(fall, "value")
    values["max_drawdown"] = None if depth is None else -abs(depth)
    return values


# ==============================================================================
# BACKTEST | the same line over recorded candles
# pure | uses ERRORS TYPES SETTINGS CANDLES STRATEGIES PORTFOLIO FILLS CYCLE METRICS
# ==============================================================================

Listed = tuple[Market, Series]
Candles = tuple[Listed, ...]
HISTORY_DAYS = 70  # recorded days before the first decision, enough for every memory


@dataclass(frozen=True, slots=True)
class BacktestJob:
    """Recorded candles of the finest duration per market, and what to run on them; it can be sent to a process."""

    candles: Candles
    settings: Settings
    start_ms: int
    end_ms: int
    hashes: tuple[tuple[str, str], ...] = ()
    keeps_decisions: bool = False
    visits_every_bar: bool = False


@dataclass(frozen=True, slots=True)
class BacktestReport:
    """What a backtest found; `equity_daily` has the equity at the end of each UTC day, `codes` counts decisions."""

    job_start_ms: int
    job_end_ms: int
    config_hash: str
    metrics: Metrics
    round_trips: tuple[RoundTrip, ...]
    fills: tuple[Fill, ...]
    orders: tuple[Order, ...]
    decisions: tuple[Decision, ...]
    codes: tuple[tuple[str, int], ...]
    equity_daily: tuple[tuple[int, float], ...]
    data: tuple[tuple[str, CandleReport, str], ...]
    markets: tuple[Market, ...]
    desk: Desk
    is_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """One market's recorded candles with all that can be known of them once and for all."""

    market: Market
    series: Series
    volume_24h: Floats
    tables: tuple[SignalTable, ...]


def record_market(market: Market, series: Series, settings: Settings, end_ms: int) -> Recording:
    """Signals of all timeframes up to the end of the run and the rolling volume, computed once."""
    tables = tuple(
        signal_table(market.pair, closed_only(resample(series, s), end_ms), settings.params)
        for s in settings.schedule.timeframes
    )
    return Recording(market, series, rolling_volume(series.opened, series.volume, series.seconds), tables)


def _row_at(series: Series, time_ms: int) -> int:
    """Row of the last candle closed at this time, -1 before the first."""
    return int(np.searchsorted(series.opened, time_ms - series.seconds * 1000, side="right")) - 1


def _outlooks(recording: Recording, time_ms: int, due: tuple[int, ...]) -> tuple[Outlook, ...]:
    found = []
    for table in recording.tables:
        row = _row_at(table.series, time_ms) if table.series.seconds in due else -1
        if row >= 0 and int(table.series.closed[row]) == time_ms:
            found.append(outlook_at(table, row))
    return tuple(found)


def recorded_ticker(recording: Recording, row: int) -> Ticker:
    """The quote that stands for a recorded candle."""
    candle = recording.series.candle(row)
    bid, ask = modelled_quote(recording.market, candle)
    closed = candle.opened_ms + recording.series.seconds * 1000
    return Ticker(recording.market.pair, closed, bid, ask, candle.close, float(recording.volume_24h[row]))


def recorded_view(
    recording: Recording, time_ms: int, due: tuple[int, ...], correlated: tuple[str, ...]
) -> MarketView:
    """What was to be known of one market when candles closed at `time_ms`."""
    series = recording.series
    row = _row_at(series, time_ms)
    ticker = recorded_ticker(recording, row) if row >= 0 else None
    bar = series.candle(row) if row >= 0 and int(series.closed[row]) == time_ms else None
    findings = quote_doubts(recording.market, ticker, time_ms + DECISION_DELAY_MS)
    slow = recording.tables[0].series
    newest = _row_at(slow, time_ms)
    if newest >= 0:
        findings += stale_finding(int(slow.closed[newest]), slow.seconds, time_ms)
    return MarketView(recording.market, ticker, bar, _outlooks(recording, time_ms, due), None, findings, correlated)


def due_at(time_ms: int, timeframes: tuple[int, ...]) -> tuple[int, ...]:
    """The timeframes of which a candle closes at this time."""
    return tuple(s for s in timeframes if time_ms % (s * 1000) == 0)


class Recorded:
    """The recorded markets as a row of moments; correlations are renewed at the first decision of each UTC day."""

    def __init__(self, job: BacktestJob) -> None:
        self._markets = sorted((record_market(m, s, job.settings, job.end_ms) for m, s in job.candles if len(s)),
                               key=lambda r: r.market.pair)
        self._timeframes = job.settings.schedule.timeframes
        self._day = -1
        self._correlated: dict[str, tuple[str, ...]] = {}

    def moment(self, time_ms: int) -> Moment:
        """All markets as they stood when candles closed at `time_ms`."""
        due = due_at(time_ms, self._timeframes)
        if due and time_ms // DAY_MS != self._day:
            self._day = time_ms // DAY_MS
            self._correlated = correlated_pairs({r.market.pair: r.tables[0].series for r in self._markets}, time_ms)
        views = tuple(recorded_view(r, time_ms, due, self._correlated.get(r.market.pair, ())) for r in self._markets)
        return Moment(time_ms + DECISION_DELAY_MS, views, due=due)


class Tape:
    """A recorder in memory: fills, round trips, daily equity, drawdown, counts of decisions."""

    def __init__(self, keeps_decisions: bool = False) -> None:
        self.fills: list[Fill] = []
        self.orders: list[Order] = []
        self.round_trips: list[RoundTrip] = []
        self.decisions: list[Decision] = []
        self.codes: Counter[str] = Counter()
        self.days: dict[int, float] = {}
        self.curve: list[tuple[int, float]] = []
        self.held = 0
        self._keeps_decisions = keeps_decisions

    def record(self, report: CycleReport) -> None:
        """Keep what happened and where equity stood."""
        self.fills += report.settlement.fills
        self.orders += report.orders
        self.round_trips += report.round_trips
        self.codes.update(d.code for d in report.decisions)
        if self._keeps_decisions:
            self.decisions += report.decisions
        if not self.curve or report.equity != self.curve[-1][1]:
            self.curve.append((report.now_ms, report.equity))

    def end_step(self, time_ms: int, report: CycleReport | None) -> None:
        """Note the day's equity and whether anything was held, once per step of the clock."""
        if report is not None:
            self.days[(time_ms - 1) // DAY_MS] = report.equity
            self.held += report.exposure > 0


def is_idle(desk: Desk, time_ms: int, timeframes: tuple[int, ...]) -> bool:
    """True when a cycle could change nothing: nothing held or wanted, no decision due, no day roll."""
    return not (desk.positions or desk.orders or desk.causes or due_at(time_ms, timeframes) or time_ms % DAY_MS == 0)


def is_new_week(time_ms: int, step_ms: int) -> bool:
    """True at the first step of a new week, Monday 00:00 UTC."""
    now, before = ((t + DECISION_DELAY_MS) // DAY_MS + 3 for t in (time_ms, time_ms - step_ms))
    return now // 7 > before // 7


def first_decision_ms(first_ms: int, last_ms: int) -> int:
    """Where a run over recorded candles starts: after HISTORY_DAYS, or half-way if there are fewer."""
    history, span = HISTORY_DAYS * DAY_MS, last_ms - first_ms
    start = first_ms + (history if span > history else span // 2)
    return -(-start // HOUR_MS) * HOUR_MS


def span_of(series: Iterable[Series]) -> tuple[int, int]:
    """First opening and last closing over several markets."""
    rows = [s for s in series if len(s)]
    if not rows:
        raise DataError("there are no candles")
    return min(int(s.opened[0]) for s in rows), max(int(s.closed[-1]) for s in rows)


Progress = Callable[[int, int], bool]


def always(done: int, total: int) -> bool:
    """Progress that nobody watches and nobody cancels."""
    return True


def _data(job: BacktestJob) -> tuple[tuple[str, CandleReport, str], ...]:
    hashes = dict(job.hashes)
    return tuple((m.pair, shape_of(s), hashes.get(m.pair, "")) for m, s in job.candles)


def _holding(job: BacktestJob) -> list[tuple[float, float, float]]:
    """First and last close inside the run, and the taker fee, per market that has any."""
    parts = []
    for market, series in job.candles:
        inside = (series.closed >= job.start_ms) & (series.closed <= job.end_ms)
        if inside.any():
            closes = series.close[inside]
            parts.append((float(closes[0]), float(closes[-1]), market.taker_fee))
    return parts


def _metrics(job: BacktestJob, tape: Tape, desk: Desk, steps: int) -> Metrics:
    start, end = job.settings.schedule.paper_cash, equity(desk)
    equities = [tape.days[d] for d in sorted(tape.days)]
    profits = [t.profit for t in tape.round_trips]
    return Metrics(
        total_return(start, end), daily_returns(equities, start), max_drawdown(tape.curve), profit_factor(profits),
        expectancy(profits), tape.held / steps if steps else 0.0, len(profits), desk.fees_paid,
        buy_and_hold(_holding(job)),
    )


def _summary(job: BacktestJob, tape: Tape, desk: Desk, steps: int, is_cancelled: bool) -> BacktestReport:
    return BacktestReport(
        job.start_ms, job.end_ms, config_hash(job.settings), _metrics(job, tape, desk, steps),
        tuple(tape.round_trips), tuple(tape.fills), tuple(tape.orders), tuple(tape.decisions),
        tuple(sorted(tape.codes.items())), tuple(sorted(tape.days.items())), _data(job),
        tuple(m for m, _ in job.candles), desk, is_cancelled,
    )


def run_backtest(job: BacktestJob, on_progress: Progress = always) -> BacktestReport:
    """Run `trade_moment` over the recorded candles; `on_progress(done, total)` is False to cancel."""
    span_of(series for _, series in job.candles)  # DataError if there is nothing to run on
    recorded, tape = Recorded(job), Tape(job.keeps_decisions)
    executor = SimulatedExecutor(job.settings.costs)
    desk = Desk(job.settings.schedule.paper_cash)
    step = min(series.seconds for _, series in job.candles) * 1000
    times = range(-(-job.start_ms // step) * step, job.end_ms + 1, step)
    report: CycleReport | None = None
    is_cancelled = False
    for count, time_ms in enumerate(times):
        if count % 256 == 0 and not on_progress(count, len(times)):
            is_cancelled = True
            break
        if job.visits_every_bar or report is None or not is_idle(desk, time_ms, job.settings.schedule.timeframes):
            report = trade_moment(desk, recorded.moment(time_ms), executor, tape, job.settings)[-1]
            desk = report.desk
        if is_new_week(time_ms, step):  # nobody is there to confirm a weekly halt; a new week counts as the word
            desk = clear_cause(desk, CauseKind.WEEKLY_CAP)
        tape.end_step(time_ms, report)
    on_progress(len(times), len(times))
    return _summary(job, tape, desk, len(times), is_cancelled)


def _iso(time_ms: int) -> str:
    """UTC time as ISO 8601; empty for 0."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat().replace("+00:00", "Z") if time_ms else ""


def _trip_json(trip: RoundTrip) -> dict[str, object]:
    return {
        "pair": trip.pair, "strategy": trip.strategy, "regime": trip.regime.value, "opened": _iso(trip.opened_ms),
        "closed": _iso(trip.closed_ms), "volume": trip.volume, "entry": trip.entry, "exit": trip.exit,
        "fees": trip.fees, "profit": trip.profit, "reason": trip.reason,
    }


def metrics_json(metrics: Metrics) -> dict[str, object]:
    """The metrics under the names of the report."""
    drawdown = metrics.max_drawdown
    return {
        "total_return": metrics.total_return,
        "daily_returns": asdict(metrics.daily_returns),
        "max_drawdown": {"value": drawdown.value, "from": _iso(drawdown.from_ms), "to": _iso(drawdown.to_ms)},
        "profit_factor": metrics.profit_factor,
        "expectancy": metrics.expectancy,
        "exposure_time": metrics.exposure_time,
        "trades": metrics.round_trips,
        "fees_paid": metrics.fees_paid,
        "buy_and_hold": metrics.buy_and_hold,
    }


def month_groups(report: BacktestReport, start: float) -> list[dict[str, object]]:
    """Calendar months (UTC): the change of equity from `start` on, and the round trips that closed in the month."""
    groups = group_metrics(report.round_trips, lambda t: _iso(t.closed_ms - 1)[:7])
    first = report.job_start_ms // DAY_MS  # a run that starts at midnight also notes the day before, an idle one
    ends = {_iso(day * DAY_MS)[:7]: value for day, value in report.equity_daily if day >= first}
    changes = zip(ends, returns_of(list(ends.values()), start), strict=True)
    return [{"name": month, "return": change, **groups.get(month, {"trades": 0.0})} for month, change in changes]


def report_json(report: BacktestReport, settings: Settings) -> dict[str, object]:
    """The whole report as plain values for a JSON file."""
    trips, schedule = report.round_trips, settings.schedule
    return {
        "version": __version__,
        "config_hash": report.config_hash,
        "parameters": "first set of the list, NOT CHOSEN by training",
        "period": {"from": _iso(report.job_start_ms), "to": _iso(report.job_end_ms)},
        "data": {pair: {"rows": shape.rows, "first": _iso(shape.first_ms), "last": _iso(shape.last_ms),
                        "missing": shape.missing, "hash": digest} for pair, shape, digest in report.data},
        "costs": {"slippage": settings.costs.slippage,
                  "markets": {m.pair: {"maker": m.maker_fee, "taker": m.taker_fee, "source": m.fee_source,
                                       "spread": m.model_spread} for m in report.markets}},
        "counter": schedule.counter,
        "timeframes": list(schedule.timeframes),
        "start_equity": schedule.paper_cash,
        "target_daily_return": schedule.target_daily_return,
        "metrics": metrics_json(report.metrics),
        "by_strategy": group_metrics(trips, lambda t: t.strategy),
        "by_pair": group_metrics(trips, lambda t: t.pair),
        "by_regime": group_metrics(trips, lambda t: t.regime.value),
        "by_window": month_groups(report, schedule.paper_cash),
        "decisions": dict(report.codes),
        "open_positions": [p.pair for p in report.desk.positions],
        "round_trips": [_trip_json(t) for t in trips],
        "equity_daily": [[_iso(day * DAY_MS)[:10], value] for day, value in report.equity_daily],
    }


# ==============================================================================
# LANES | many parameter sets and many markets at once, by the rules of the cycle
# pure | uses TYPES SETTINGS CANDLES STRATEGIES RISK FILLS CYCLE BACKTEST
# ==============================================================================

# A lane is one parameter set on one run of markets. State is held in arrays over runs x sets x pairs, and each row of
# candles takes the same steps in the same order as `trade_moment`: settle, mark, caps, trail, leave, enter. A test
# compares it with the cycle, fill for fill. One timeframe only, and candles of that timeframe; no taking entries.
# Left out: the limit of round trips per day, which needs a candle an hour or faster and an entry every second one, and
# the fills that the cycle gives a triggered protection on an old quote when the next candle is missing.
BIT_OF: Mapping[str, int] = types.MappingProxyType({MOMENTUM: 1, EXPANSION: 2, REVERSION: 4})
NAMES_IN_ORDER = (REVERSION, MOMENTUM, EXPANSION)  # as ties between strategies are settled: by name
NEVER_ROW = 2**31 - 1
LEVELS, PAIRS = 10_001, 256  # of confidence, which has four decimals; more pairs than there will be
Cells = NDArray[np.intp]  # flat indices into runs x sets x pairs


@dataclass(frozen=True, slots=True)
class LaneJob:
    """Runs of the same markets, each under the same parameter sets, on candles of the decision timeframe.

    `peek` is the planted fault of the self-test: the share of the signal candle's move that an entry is given.
    """

    runs: tuple[Candles, ...]
    settings: Settings
    sets: tuple[StrategyParams, ...]
    start_ms: int
    end_ms: int
    peek: float = 0.0


def _cells(flags: NDArray[np.generic]) -> Cells:
    """Where flags are up, as flat places."""
    return flags.reshape(-1).nonzero()[0]


def grid_floor(value: Floats, power: Floats | float) -> Floats:
    """Values rounded down to a grid of 1/power, by the rule of `Market.round_volume`."""
    near = np.rint(value * power)
    slack = np.maximum(1e-6 / power, 4 * np.spacing(np.abs(value)))
    return np.asarray((near - (near / power - value > slack)) / power)


def grid_ceil(value: Floats, power: Floats | float) -> Floats:
    """Values rounded up to a grid of 1/power."""
    return -grid_floor(-value, power)


class Terms(NamedTuple):
    """What the markets and the settings fix: one value per pair, or one for all."""

    price_power: Floats
    volume_power: Floats
    tick: Floats
    min_volume: Floats
    least: Floats
    max_volume: Floats
    min_price: Floats
    maker: Floats
    taker: Floats
    dearest: Floats


def terms_of(markets: Sequence[Market]) -> Terms:
    """The markets' constants as columns."""
    def column(read: Callable[[Market], float]) -> Floats:
        return np.array([read(m) for m in markets], dtype=np.float64)

    dearest = column(lambda m: max(m.maker_fee, m.taker_fee))
    return Terms(
        column(lambda m: 10.0**m.price_scale), column(lambda m: 10.0**m.volume_scale), column(lambda m: m.tick),
        column(lambda m: m.min_volume),
        column(lambda m: m.min_volume / (1 - max(m.maker_fee, m.taker_fee)) + 10.0**-m.volume_scale),
        column(lambda m: m.max_volume), column(lambda m: m.min_price), column(lambda m: m.maker_fee),
        column(lambda m: m.taker_fee), dearest,
    )


class Wishes(NamedTuple):
    """Signals that passed every check but those of the desk, in order of row, lane and rank."""

    row: NDArray[np.int32]
    lane: NDArray[np.int32]
    pair: NDArray[np.uint8]
    bit: NDArray[np.uint8]
    stop: Floats

    def at(self, rows: Ints | Flags) -> Wishes:
        """Some of the wishes."""
        return Wishes(self.row[rows], self.lane[rows], self.pair[rows], self.bit[rows], self.stop[rows])


@dataclass(frozen=True, slots=True)
class LaneTable:
    """All that lanes read. Market columns are [rows, runs, 1, pairs], `exits` is [rows, runs, sets, pairs], `trail`
    and `holding` are [rows, runs or 1, sets, 1].

    `starts` is the place in `wishes` at which each row of candles begins; `friends` says per day, run and pair which
    pairs move with it, itself included; NaN stands for a missing candle.
    """

    times: Ints
    step_ms: int
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    bid: Floats
    half: Floats
    volume: Floats
    atr: Floats
    exits: NDArray[np.uint8]
    wishes: Wishes
    starts: Ints
    friends: Flags
    terms: Terms
    trail: Floats
    holding: Ints
    peek: float


def _weakness(confidence: Floats) -> Ints:
    """Confidence as a whole number, 0 for the strongest."""
    return LEVELS - 1 - np.rint(confidence * (LEVELS - 1)).astype(np.int64)


class _Quotes(NamedTuple):
    """Bid, half the spread, break-even and whether entries are allowed, at each candle of one market."""

    bid: Floats
    half: Floats
    needed: Floats
    is_open: Flags


def _quotes(market: Market, series: Series, settings: Settings, doubts: DoubtColumns) -> _Quotes:
    """The modelled quote at each close, as `modelled_quote` gives it, and the checks that only need the market."""
    power, half, costs = 10.0**market.price_scale, market.model_spread / 2, settings.costs
    bid = grid_floor(series.close * (1 - half), power)
    ask = np.maximum(grid_ceil(series.close * (1 + half), power), np.rint((bid + market.tick) * power) / power)
    mid = (bid + ask) / 2
    spread = (ask - bid) / mid
    kept = (1 - market.taker_fee) * (1 - costs.slippage) * (1 - spread / 2)
    limits = settings.limits
    is_open = (doubts.gaps == 0) & (doubts.jumps == 0) & (doubts.silent * 2 <= RECENT) & (bid > 0)
    days = (series.closed - series.opened[0]) / DAY_MS
    is_open &= (days >= memory_days(series.seconds)) & (spread <= limits.max_spread) & (market.status == "ACTIVE")
    is_open &= np.abs(bid - series.close) <= limits.price_collar * series.close
    daily = rolling_volume(series.opened, series.volume, series.seconds)
    is_open &= daily * series.close >= limits.min_volume_24h
    return _Quotes(bid, spread / 2, (1 + market.maker_fee) / kept - 1, np.asarray(is_open, dtype=np.bool_))


class _Wish(NamedTuple):
    """Wishes of one market under one set: rows of its series, and the numbers of each."""

    rows: Ints
    confidence: Floats
    stop: Floats
    bit: NDArray[np.uint8]


def _market_wishes(table: SignalTable, quotes: _Quotes, market: Market, limits: RiskLimits) -> _Wish:
    """The strongest wish of each row, if it passes the checks of signal and numbers."""
    parts = []
    for place, name in enumerate(NAMES_IN_ORDER):
        setup = next(s for s in table.setups if s.strategy == name)
        found = np.flatnonzero(setup.is_entry & quotes.is_open)
        move, away = setup.move[found], setup.stop_distance[found]
        kept = np.isfinite(move) & np.isfinite(away)
        parts.append((found[kept], setup.strength[found][kept], move[kept], away[kept], np.full(kept.sum(), place)))
    row, strength, moved, away, order = (np.concatenate(p) for p in zip(*parts, strict=True))
    needed = quotes.needed[row]
    confidence = confidences(strength, moved, needed)
    rank = np.argsort((row * LEVELS + _weakness(confidence)) * len(NAMES_IN_ORDER) + order)
    best = rank[np.diff(row[rank], prepend=-1) > 0]
    stop = grid_floor(table.series.close[row[best]] - away[best], 10.0**market.price_scale)
    passes = (moved >= needed * limits.min_edge) & (confidence >= limits.min_confidence)
    is_good = passes[best] & (stop >= market.min_price) & (stop < quotes.bid[row[best]])
    best = best[is_good]
    bits = np.array([BIT_OF[name] for name in NAMES_IN_ORDER], dtype=np.uint8)
    return _Wish(row[best], confidence[best], stop[is_good], bits[order[best]])


def _exit_bits(table: SignalTable) -> NDArray[np.uint8]:
    """Which strategies would leave at each row, a bit each, the kind of market included."""
    bits = np.zeros(len(table.series), dtype=np.uint8)
    for setup in table.setups:
        wrong = [code for code, r in enumerate(REGIMES) if r in EXIT_REGIMES.get(setup.strategy, ())]
        is_exit = setup.is_exit | np.isin(table.regime.code, wrong) if wrong else setup.is_exit
        bits |= np.asarray(is_exit * np.uint8(BIT_OF[setup.strategy]), dtype=np.uint8)
    return bits


def _is_alike(one: SignalTable, other: SignalTable) -> bool:
    """True if the exits of two sets of one market are the same columns."""
    return one.regime is other.regime and all(
        a.is_exit is b.is_exit for a, b in zip(one.setups, other.setups, strict=True))


def _leaving(tables: Sequence[SignalTable]) -> NDArray[np.uint8]:
    """[rows, sets]: the exits of all sets of one market, each computed once."""
    known: list[SignalTable] = []
    places = []
    for table in tables:
        place = next((i for i, other in enumerate(known) if _is_alike(table, other)), len(known))
        known += [table] if place == len(known) else []
        places.append(place)
    return np.stack([_exit_bits(table) for table in known], axis=1)[:, places]


def _daily_closes(markets: Sequence[Series], days: Ints) -> Floats:
    """[pairs, days]: the close of each UTC day, NaN where there is no candle."""
    closes = np.full((len(markets), len(days)), np.nan)
    for place, series in enumerate(markets):
        daily = resample(series, 86_400)
        at = daily.opened // DAY_MS - days[0]
        inside = (at >= 0) & (at < len(days))
        closes[place, at[inside]] = daily.close[inside]
    return closes


def daily_friends(markets: Sequence[Series], days: Ints) -> Flags:
    """[days, pairs, pairs]: which pairs moved together before each of consecutive days, as `correlated_pairs` says."""
    span = CORRELATION_DAYS + 1  # one more than is looked at: it counts where another is missing
    closes = _daily_closes(markets, np.arange(int(days[0]) - span - 1, int(days[-1])))
    returns = np.log(closes[:, 1:] / closes[:, :-1])
    window = np.lib.stride_tricks.sliding_window_view(returns, span, axis=1)
    found = np.ones((len(days), len(markets), len(markets)), dtype=np.bool_)
    for one, other in itertools.combinations(range(len(markets)), 2):
        common = np.isfinite(window[one]) & np.isfinite(window[other])
        common[common.all(axis=1), 0] = False
        count = common.sum(axis=1)
        here, there = (np.where(common, window[place], 0.0) for place in (one, other))
        with np.errstate(divide="ignore", invalid="ignore"):
            here, there = (np.where(common, v - (v.sum(axis=1) / count)[:, None], 0.0) for v in (here, there))
            size = np.sqrt((here * here).sum(axis=1) * (there * there).sum(axis=1))
            is_apart = (here * there).sum(axis=1) / size <= CORRELATION_LIMIT
        found[:, one, other] = found[:, other, one] = ~((count >= 30) & is_apart)
    return found


def _on_grid(values: Floats, places: Ints, count: int) -> Floats:
    """A column of a series on the rows of the lanes, NaN where there is no candle."""
    column = np.full(count, np.nan)
    column[places] = values
    return column


def _kept(column: Floats) -> Floats:
    """The last known value in place of each NaN."""
    rows = np.maximum.accumulate(np.where(np.isnan(column), 0, np.arange(len(column))))
    return column[rows]


def _is_run(rows: Ints) -> bool:
    """True for numbers without a gap, which are written much faster."""
    return len(rows) > 0 and int(rows[-1] - rows[0]) == len(rows) - 1


class LaneBuilder:
    """Fills the columns of a LaneTable, one market of one run after the other."""

    def __init__(self, job: LaneJob) -> None:
        self.job = job
        self.seconds = job.settings.schedule.timeframes[0]
        step = self.seconds * 1000
        self.times = np.arange(-(-job.start_ms // step) * step, job.end_ms + 1, step, dtype=np.int64)
        rows, runs, sets, pairs = len(self.times), len(job.runs), len(job.sets), len(job.runs[0])
        self.columns = {name: np.full((rows, runs, 1, pairs), np.nan)
                        for name in ("open", "high", "low", "close", "bid", "half", "volume")}
        self.has_one_range = len({p.atr for p in job.sets}) == 1
        self.atr = np.full((rows, runs, 1 if self.has_one_range else sets, pairs), np.nan)
        self.exits = np.zeros((rows, runs, sets, pairs), dtype=np.uint8)
        self.lanes = runs * sets
        self.ranks: list[Ints] = []  # row, lane, confidence downwards and pair of each wish in one number
        self.bits: list[NDArray[np.uint8]] = []
        self.stops: list[Floats] = []

    def add(self, run: int, pair: int, market: Market, series: Series) -> None:
        """Put one market's candles, exits and wishes in their places."""
        series = closed_only(series, self.job.end_ms)
        places = (series.closed - self.times[0]) // (self.seconds * 1000)
        inside = (places >= 0) & (places < len(self.times))
        spots = places[inside]
        place = slice(int(spots[0]), int(spots[-1]) + 1) if _is_run(spots) else spots
        quotes = _quotes(market, series, self.job.settings, doubt_columns(series))
        for name, values in (("open", series.open), ("high", series.high), ("low", series.low),
                             ("close", series.close), ("volume", series.volume), ("half", quotes.half)):
            self.columns[name][place, run, 0, pair] = values[inside]
        before = _cells(places < 0)  # the last quote before the first row still stands
        bids = _on_grid(quotes.bid[inside], spots, len(self.times))
        if len(before) and np.isnan(bids[:1]).all():
            bids[0] = quotes.bid[before[-1]]
        self.columns["bid"][:, run, 0, pair] = np.nan_to_num(_kept(bids))
        readings = Readings(market.pair, series)
        tables = [readings.table(params) for params in self.job.sets]
        self.exits[place, run, :, pair] = _leaving(tables)[inside]
        for lane, table in enumerate(tables):
            if lane == 0 or not self.has_one_range:
                self.atr[place, run, lane, pair] = table.atr[inside]
            wish = _market_wishes(table, quotes, market, self.job.settings.limits)
            self._add_wishes(wish, run * len(self.job.sets) + lane, pair, places)

    def _add_wishes(self, wish: _Wish, lane: int, pair: int, places: Ints) -> None:
        row = places[wish.rows]
        keep = (row >= 0) & (row < len(self.times))
        rank = (row[keep] * self.lanes + lane) * LEVELS + _weakness(wish.confidence[keep])
        self.ranks.append(rank * PAIRS + pair)
        self.bits.append(wish.bit[keep])
        self.stops.append(wish.stop[keep])

    def _sorted_wishes(self) -> Wishes:
        ranks = np.concatenate(self.ranks)
        order = np.argsort(ranks)  # no two are the same
        ranks = ranks[order]
        cells = ranks // (PAIRS * LEVELS)
        return Wishes((cells // self.lanes).astype(np.int32), (cells % self.lanes).astype(np.int32),
                      (ranks % PAIRS).astype(np.uint8), np.concatenate(self.bits)[order],
                      np.concatenate(self.stops)[order])

    def table(self) -> LaneTable:
        """Everything in one place, the wishes in order."""
        job, wishes = self.job, self._sorted_wishes()
        days = np.unique(self.times // DAY_MS)
        friends = np.stack([daily_friends([s for _, s in run], days) for run in job.runs], axis=1)
        lanes, whole = (1, 1, len(job.sets), 1), (len(self.times), 1, len(job.sets), 1)
        return LaneTable(
            self.times, self.seconds * 1000, self.columns["open"], self.columns["high"], self.columns["low"],
            self.columns["close"], self.columns["bid"], self.columns["half"], self.columns["volume"], self.atr,
            self.exits, wishes, np.searchsorted(wishes.row, np.arange(len(self.times) + 1)),
            friends, terms_of([m for m, _ in job.runs[0]]),
            np.broadcast_to(np.array([p.trail_atr for p in job.sets], dtype=np.float64).reshape(lanes), whole),
            np.broadcast_to(np.array([-(-p.max_holding * 3600 // self.seconds) for p in job.sets],
                                     dtype=np.int64).reshape(lanes), whole), job.peek,
        )


def lane_table(job: LaneJob) -> LaneTable:
    """The candles and signals of all runs and sets as lanes read them; markets in order of their names."""
    builder = LaneBuilder(job)
    for number, run in enumerate(job.runs):
        for place, (market, series) in enumerate(run):
            builder.add(number, place, market, series)
    return builder.table()


LaneFill = tuple[int, int, str, float, float]  # row, cell, what, price, volume


class LaneState(NamedTuple):
    """Where lanes stand after so many rows."""

    rows: int
    day: int
    columns: Mapping[str, NDArray[np.generic]]


class LaneBook:
    """Cash, positions and orders of all lanes, as arrays over runs x sets x pairs, and what a row of candles fills."""

    def __init__(self, table: LaneTable, settings: Settings) -> None:
        self.table, self.settings = table, settings
        runs, sets, pairs = table.exits.shape[1:]
        shape, lanes = (runs, sets, pairs), (runs, sets)
        self.cash = np.full(lanes, settings.schedule.paper_cash)
        self.equity = self.cash.copy()
        self.day_line, self.week_line = np.full(lanes, -np.inf), np.full(lanes, -np.inf)
        self.cap_line = self.day_line  # the higher of both
        self.until = np.zeros(lanes)  # end of the cooldown, 0 for none
        self.is_halted = np.zeros(lanes, dtype=np.bool_)
        self.volume, self.best = np.zeros(shape), np.zeros(shape)
        self.stop = np.full(shape, np.inf)  # of positions that are neither leaving nor empty
        self.line = np.full(shape, -np.inf)  # where a protection rests; +inf once it was triggered
        self.floor, self.guarded = np.zeros(shape), np.zeros(shape)  # limit and volume of that protection
        self.kind = np.zeros(shape, dtype=np.uint8)
        self.opened = np.full(shape, NEVER_ROW, dtype=np.int64)
        self.least_holding = int(table.holding.min(initial=NEVER_ROW))
        self.next_old = 0  # no position is too old before this row
        self.leaving, self.selling = np.zeros(shape, dtype=np.bool_), np.zeros(shape)
        self.wanted, self.limit, self.entry_stop = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.expires, self.entry_kind = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.uint8)
        self.gain = np.zeros(shape)
        # whether any cell has that, so that quiet rows cost little
        self.has_triggered = self.has_selling = self.has_wanted = self.has_leaving = self.has_barred = False
        self.turnover, self.trips = np.zeros(lanes), np.zeros(lanes, dtype=np.int64)
        self.weights = np.zeros(shape)
        self.late, self.is_stressed = np.zeros(lanes), False  # what every fill a candle later would have cost
        self.fills: list[LaneFill] | None = None
        self.sent = np.zeros((runs, sets, max(1, DAY_MS // table.step_ms)), dtype=np.int64)
        self.day = -1
        self.kept = 1 - table.terms.taker
        limits, slots = settings.limits, self.sent.shape[2]
        self.is_throttled = (limits.max_positions > limits.orders_per_minute
                             or limits.max_positions * slots > limits.orders_per_day)

    def _where(self, cells: Cells) -> tuple[Cells, Cells, Cells]:
        """Lane, pair and market place of flat cells."""
        pairs = self.volume.shape[2]
        lane, pair = cells // pairs, cells % pairs
        return lane, pair, lane // self.volume.shape[1] * pairs + pair

    def _pay(self, row: int, cells: Cells, price: Floats, volume: Floats, sign: int, fee: Floats) -> None:
        """Move cash for fills; `sign` is -1 for buys."""
        lane = cells // self.volume.shape[2]
        value = price * volume
        fees = grid_ceil(value * fee, 10.0**FEE_SCALE)
        np.add.at(self.cash.reshape(-1), lane, sign * value - fees)
        np.add.at(self.turnover.reshape(-1), lane, value)
        if self.is_stressed:
            after = self.table.open[min(row + 1, len(self.table.times) - 1)].reshape(-1)[self._where(cells)[2]]
            np.add.at(self.late.reshape(-1), lane, np.nan_to_num(sign * (price - after) * volume))

    def _note(self, row: int, cells: Cells, name: str, price: Floats, volume: Floats) -> None:
        if self.fills is not None:
            self.fills += [(row, int(c), name, float(p), float(v))
                           for c, p, v in zip(cells, price, volume, strict=True)]

    def _sold(self, row: int, cells: Cells, name: str, price: Floats, volume: Floats, fee: Floats) -> None:
        """Book sales; a position that is gone leaves its place."""
        self._note(row, cells, name, price, volume)
        self._pay(row, cells, price, volume, 1, fee)
        left = self.volume.reshape(-1)[cells] - volume
        self.volume.reshape(-1)[cells] = np.where(left > 1e-12, left, 0.0)
        self._clear(cells[left <= 1e-12])

    def _clear(self, cells: Cells) -> None:
        """Forget positions that are closed, and count their round trips."""
        if len(cells):
            np.add.at(self.trips.reshape(-1), cells // self.volume.shape[2], 1)
            for column, empty in ((self.volume, 0.0), (self.stop, np.inf), (self.line, -np.inf), (self.selling, 0.0),
                                  (self.opened, NEVER_ROW), (self.kind, 0), (self.leaving, False)):
                column.reshape(-1)[cells] = empty

    def _share(self, row: int, places: Cells, pair: Cells, wanted: Floats) -> Floats:
        """How much of each order one bar can have filled, on the lot grid."""
        seen = self.table.volume[row].reshape(-1)[places] * BAR_SHARE
        return grid_floor(np.minimum(wanted, seen), self.table.terms.volume_power[pair])

    def _settle_exits(self, row: int) -> None:
        """Taking sales fill at the open of the bar, unless it is below their limit."""
        table, slip = self.table, 1 - self.settings.costs.slippage
        cells = _cells(self.selling)
        _, pair, place = self._where(cells)
        start = table.open[row].reshape(-1)[place]
        cells, pair, place, start = (v[~np.isnan(start)] for v in (cells, pair, place, start))
        price = start * (1 - table.half[row].reshape(-1)[place])
        limit = self.selling.reshape(-1)[cells]
        self.has_selling = bool(len(cells) < np.count_nonzero(self.selling))  # without a bar an order stays
        self.selling.reshape(-1)[cells] = 0.0  # filled or not, a taking order has had its chance
        volume = self._share(row, place, pair, self.volume.reshape(-1)[cells])
        good = (limit - price * slip <= 0) & (volume > 0)
        filled = grid_floor(price * slip, table.terms.price_power[pair])
        self._sold(row, cells[good], "exit", filled[good], volume[good], table.terms.taker[pair[good]])
        self._sweep(cells[good])

    def _settle_stops(self, row: int, cells: Cells) -> None:
        """Protections whose stop the bar has reached sell at the worse of stop and open, or rest at their limit."""
        table, terms, costs = self.table, self.table.terms, self.settings.costs
        _, pair, place = self._where(cells)
        line, floor = self.line.reshape(-1)[cells], self.floor.reshape(-1)[cells]
        was_triggered = np.isinf(line)
        worst = np.minimum(table.open[row].reshape(-1)[place], line) * (1 - table.half[row].reshape(-1)[place])
        price = grid_floor(worst * (1 - costs.slippage), terms.price_power[pair])
        through = table.high[row].reshape(-1)[place] >= floor + terms.tick[pair] * 0.999999
        guarded = self.guarded.reshape(-1)[cells]
        volume = self._share(row, place, pair, guarded)
        good = np.where(was_triggered, through, price >= floor) & (volume > 0)
        self.line.reshape(-1)[cells] = np.inf
        self.has_triggered = True
        fee = np.where(was_triggered, terms.maker[pair], terms.taker[pair])
        price = np.where(was_triggered, floor, price)
        self._sold(row, cells[good], "protection", price[good], volume[good], fee[good])
        self.guarded.reshape(-1)[cells[good]] -= volume[good]
        done = cells[good & (guarded - volume < 0.5 / terms.volume_power[pair])]
        self.line.reshape(-1)[done] = -np.inf
        self._sweep(done)
        self.has_triggered = bool((self.line == np.inf).any())

    def _settle_entries(self, row: int) -> Cells:
        """Resting buys fill at their limit when the bar went through it by a tick; the cells that were filled."""
        table, terms = self.table, self.table.terms
        cells = _cells(self.wanted)
        _, pair, place = self._where(cells)
        through = self.limit.reshape(-1)[cells] - terms.tick[pair] * 0.999999
        cells = cells[table.low[row].reshape(-1)[place] <= through]
        _, pair, place = self._where(cells)
        volume = self._share(row, place, pair, self.wanted.reshape(-1)[cells])
        cells, pair, volume = cells[volume > 0], pair[volume > 0], volume[volume > 0]
        price = self.limit.reshape(-1)[cells]
        self._note(row, cells, "entry", price, volume)
        self._pay(row, cells, price, volume, -1, terms.maker[pair])
        np.add.at(self.cash.reshape(-1), cells // self.volume.shape[2], self.gain.reshape(-1)[cells] * volume)
        left = self.wanted.reshape(-1)[cells] - volume
        self.wanted.reshape(-1)[cells] = np.where(left > 0.5 / terms.volume_power[pair], left, 0.0)
        fresh = cells[self.volume.reshape(-1)[cells] == 0]
        self.volume.reshape(-1)[cells] += volume
        self.stop.reshape(-1)[fresh] = self.entry_stop.reshape(-1)[fresh]
        self.kind.reshape(-1)[fresh] = self.entry_kind.reshape(-1)[fresh]
        self.best.reshape(-1)[fresh] = self.limit.reshape(-1)[fresh]
        self.opened.reshape(-1)[fresh] = row
        self.next_old = min(self.next_old, row + self.least_holding)
        return np.asarray(cells, dtype=np.intp)

    def _sweep(self, cells: Cells) -> bool:
        """Close positions that are too small to sell and have no order to change that; True if there were any."""
        flat = self.volume.reshape(-1)[cells]
        small = (flat > 0) & (flat < self.table.terms.min_volume[cells % self.volume.shape[2]])
        small &= (self.wanted.reshape(-1)[cells] == 0) & (self.selling.reshape(-1)[cells] == 0)
        small &= np.isneginf(self.line.reshape(-1)[cells])
        if small.any():
            self._clear(cells[small])
        return bool(small.any())


class Lanes(LaneBook):
    """The desks of all lanes; `step` takes them through one row of candles."""

    def state(self) -> LaneState:
        """All that a later table needs to go on from here."""
        columns = {name: value for name, value in vars(self).items()
                   if isinstance(value, np.ndarray) and name not in ("kept", "cap_line")}
        return LaneState(len(self.table.times), self.day, columns)

    def go_on(self, state: LaneState) -> Lanes:
        """These lanes from a state, that of one run once for each; their table begins with the row after it."""
        runs = self.volume.shape[0] // state.columns["volume"].shape[0]
        for name, value in state.columns.items():
            vars(self)[name] = np.repeat(value, runs, axis=0)
        self.cap_line = np.maximum(self.day_line, self.week_line)
        self.opened, self.expires, self.day = self.opened - state.rows, self.expires - state.rows, state.day
        self.sent = np.roll(self.sent, -state.rows, axis=2)
        self.has_triggered = self.has_selling = self.has_wanted = self.has_leaving = self.has_barred = True
        return self

    def _review_caps(self, now_ms: int, day: int) -> None:
        """Note the lanes that have fallen to their daily or weekly cap."""
        if not np.count_nonzero(self.equity <= self.cap_line):
            return
        low = self.equity <= self.day_line
        if low.any():
            hours = self.settings.limits.cooldown_hours
            self.until[low & (self.until == 0)] = max((day + 1) * DAY_MS, now_ms + int(hours * HOUR_MS))
            self.has_barred = True
        low = self.equity <= self.week_line
        if low.any():
            self.is_halted |= low
            self.has_barred = True

    def _review_limits(self, row: int) -> None:
        """Caps, day roll, end of cooldowns, in the order of the cycle."""
        limits, now = self.settings.limits, int(self.table.times[row]) + DECISION_DELAY_MS
        before, self.day = self.day, now // DAY_MS
        self._review_caps(now, before)
        if self.day > before:
            self.day_line = self.equity * (1 - limits.daily_loss_cap)
        if (self.day + 3) // 7 > (before + 3) // 7:
            self.week_line = self.equity * (1 - limits.weekly_loss_cap)
        if self.day > before:
            self.cap_line = np.maximum(self.day_line, self.week_line)
        if self.has_barred:
            over = (self.until > 0) & (self.until <= now)
            self.until[over] = 0
            self.has_barred = bool(self.until.any() or self.is_halted.any())
            if over.any():
                self._review_caps(now, self.day)

    def _trail(self, row: int) -> Cells:
        """Raise stops behind the highest close; the cells whose stop moved."""
        table = self.table
        np.fmax(self.best, table.close[row], out=self.best)
        range_ = table.atr[row]
        wanted = self.best - table.trail[row] * range_
        cells = _cells(wanted > self.stop + TRAIL_STEP_ATR * range_)
        if len(cells):
            pair = cells % self.volume.shape[2]
            rounded = grid_floor(wanted.reshape(-1)[cells], table.terms.price_power[pair])
            step = np.broadcast_to(TRAIL_STEP_ATR * range_, wanted.shape).reshape(-1)[cells]
            cells, rounded = (v[rounded > self.stop.reshape(-1)[cells] + step] for v in (cells, rounded))
            self.stop.reshape(-1)[cells] = rounded
        return cells

    def _leave(self, row: int, fresh: Cells, renewed: Cells) -> None:
        """Find the positions to leave, and send their sales where there is a quote.

        While a protection is renewed none rests: a bid at or below its new stop is then sold at once.
        """
        table, bid = self.table, self.table.bid[row]
        out = (table.exits[row] & self.kind) != 0
        if row >= self.next_old:
            out |= (self.opened <= row - table.holding[row]) & ~np.isnan(table.close[row])
            self.next_old = int(self.opened.min()) + self.least_holding
        if self.settings.limits.daily_cap_action == "close" and self.has_barred:
            out |= ((self.until > 0) | self.is_halted)[:, :, None] & (self.kind != 0)
        if self.has_triggered:
            out |= (self.line == np.inf) & (bid <= self.stop)
        for cells, price in ((fresh, table.low[row]), (renewed, bid)):
            if len(cells):
                out.reshape(-1)[cells] |= price.reshape(-1)[self._where(cells)[2]] <= self.stop.reshape(-1)[cells]
        cells = _cells(out)
        cells = cells[self.kind.reshape(-1)[cells] != 0]
        for column, value in ((self.leaving, True), (self.kind, 0), (self.stop, np.inf), (self.opened, NEVER_ROW)):
            column.reshape(-1)[cells] = value
        self.has_leaving |= len(cells) > 0
        if self.has_leaving:
            self._sell(row, _cells(self.leaving))

    def _sell(self, row: int, cells: Cells) -> None:
        """Send the sales of positions to leave that have none working, and take their other orders off."""
        self.has_leaving = len(cells) > 0
        pair, place = self._where(cells)[1:]
        bid, close = (column[row].reshape(-1)[place] for column in (self.table.bid, self.table.close))
        good = (self.selling.reshape(-1)[cells] == 0) & ~np.isnan(close)
        good &= self.volume.reshape(-1)[cells] >= self.table.terms.min_volume[pair]
        power = self.table.terms.price_power[pair[good]]
        self.selling.reshape(-1)[cells[good]] = grid_floor(bid[good] * (1 - self.settings.costs.exit_bound), power)
        self.line.reshape(-1)[cells[good]] = -np.inf
        self.wanted.reshape(-1)[cells[good]] = 0.0
        self.has_selling |= bool(good.any())

    def _protect(self, cells: Cells) -> None:
        """Rest a stop-limit for positions that are new, grew, or whose stop moved."""
        pair = cells % self.volume.shape[2]
        good = (self.kind.reshape(-1)[cells] != 0) & (self.volume.reshape(-1)[cells]
                                                      >= self.table.terms.min_volume[pair])
        cells, pair = cells[good], pair[good]
        stop = self.stop.reshape(-1)[cells]
        self.line.reshape(-1)[cells], self.guarded.reshape(-1)[cells] = stop, self.volume.reshape(-1)[cells]
        self.floor.reshape(-1)[cells] = grid_floor(
            stop * (1 - self.settings.costs.stop_gap), self.table.terms.price_power[pair])

    def _may_send(self, row: int, lane: NDArray[np.int32]) -> Flags:
        """Which lanes have not yet sent as many orders as a minute and a day may have."""
        sent, limits = self.sent.reshape(-1, self.sent.shape[2])[lane], self.settings.limits
        few = sent.sum(axis=1) < limits.orders_per_day
        return np.asarray(few & (sent[:, row % sent.shape[1]] < limits.orders_per_minute), dtype=np.bool_)

    def _size(self, row: int, wishes: Ints) -> None:
        """Size one wish per lane against what the lane has left, and let it rest at the bid."""
        table, limits, lots, terms = self.table, self.settings.limits, self.table.wishes, self.table.terms
        runs, sets, pairs = self.volume.shape
        lane, pair, stop = lots.lane[wishes], lots.pair[wishes], lots.stop[wishes]
        place = lane // sets * pairs + pair
        limit, open_, close, seen = (c[row].reshape(-1)[place]
                                     for c in (table.bid, table.open, table.close, table.volume))
        slipped = stop * (1 - STRESSED_SLIPPAGE * self.settings.costs.slippage)
        loss = limit * (1 + terms.maker[pair]) - slipped * (1 - terms.taker[pair])
        value = self.volume.reshape(-1, pairs)[lane] * table.bid[row].reshape(runs, pairs)[lane // sets]
        wanted = self.wanted.reshape(-1, pairs)[lane] * self.limit.reshape(-1, pairs)[lane]
        worst, each = value + wanted, np.arange(len(lane))
        day = int(table.times[row] // DAY_MS - table.times[0] // DAY_MS)
        friends = table.friends[day, lane // sets][each, pair]
        now, fee = self.equity.reshape(-1)[lane], terms.dearest[pair]
        free = self.cash.reshape(-1)[lane] - wanted.sum(axis=1) * (1 + fee)
        room = np.minimum.reduce([
            now * limits.risk_per_trade / loss,
            (now * limits.max_exposure - worst.sum(axis=1)) / limit,
            (now * limits.max_asset_exposure - worst[each, pair]) / limit,
            (now * limits.max_group_exposure - (worst * friends).sum(axis=1)) / limit,
            free * (1 - CASH_MARGIN) / (1 + fee) / limit,
            seen * BAR_SHARE, terms.max_volume[pair],
        ])
        volume = grid_floor(np.maximum(room, 0.0), terms.volume_power[pair])
        taken = (worst > 0).sum(axis=1)
        good = (taken < limits.max_positions) & (volume >= terms.least[pair]) & (loss > 0)
        if self.is_throttled:
            good &= self._may_send(row, lane)
            self.sent.reshape(-1, self.sent.shape[2])[lane[good], row % self.sent.shape[2]] += 1
        cells = (lane * pairs + pair)[good]
        self.has_wanted |= len(cells) > 0
        rests = self.settings.schedule.entry_timeout_candles
        for column, values in (
            (self.wanted, volume[good]), (self.limit, limit[good]), (self.entry_stop, stop[good]),
            (self.entry_kind, lots.bit[wishes[good]]), (self.gain, table.peek * (close - open_)[good]),
            (self.expires, np.full(len(cells), row + rests)),
        ):
            column.reshape(-1)[cells] = values

    def _enter(self, row: int) -> None:
        """Wishes, strongest first in each lane, each judged against what the ones before it have left."""
        lots, pairs = self.table.wishes, self.volume.shape[2]
        wishes = np.arange(self.table.starts[row], self.table.starts[row + 1])
        lane = lots.lane[wishes]
        cells = lane * pairs + lots.pair[wishes]
        free = (self.volume.reshape(-1)[cells] == 0) & (self.wanted.reshape(-1)[cells] == 0)
        if self.has_barred:
            free &= ((self.until == 0) & ~self.is_halted).reshape(-1)[lane]
        wishes = wishes[free]
        while len(wishes):
            lane = lots.lane[wishes]
            is_first = np.concatenate(([True], np.diff(lane) > 0))
            self._size(row, wishes[is_first])
            wishes = wishes[~is_first]

    def _expire(self, row: int) -> None:
        """Take entries off that are out of time or that the lane's state forbids."""
        cells = _cells(self.wanted)
        late = self.expires.reshape(-1)[cells] <= row
        if self.has_barred:
            late |= ((self.until > 0) | self.is_halted).reshape(-1)[cells // self.volume.shape[2]]
        self.has_wanted = not late.all()
        if late.any():
            self.wanted.reshape(-1)[cells[late]] = 0.0
            if self._sweep(cells[late]):
                self._mark(row)

    def _mark(self, row: int) -> None:
        self.equity = self.cash + np.add.reduce(self.volume * self.table.bid[row] * self.kept, axis=2)

    def end_week(self, row: int) -> None:
        """A new week has begun: the owner is taken to confirm a weekly halt."""
        if self.has_barred and is_new_week(int(self.table.times[row]), self.table.step_ms):
            self.is_halted[...] = False

    def step(self, row: int) -> None:
        """One row of candles: settle, mark, caps, trail, leave, protect, enter, expire."""
        if self.is_throttled:
            self.sent[:, :, row % self.sent.shape[2]] = 0
        if self.has_selling:
            self._settle_exits(row)
        hit = _cells(self.table.low[row] <= self.line)
        fresh = grown = np.empty(0, dtype=np.intp)
        if self.has_wanted:
            grown = self._settle_entries(row)
            fresh = grown[self.opened.reshape(-1)[grown] == row]
        if len(hit):  # after the entries, which were placed before: what they add is not in the protection
            self._settle_stops(row, hit)
        self._mark(row)
        self._review_limits(row)
        raised = self._trail(row)
        renewed = np.concatenate((grown, raised))
        self._leave(row, fresh, renewed)
        if len(renewed):
            self._protect(renewed)
        if self.table.starts[row] < self.table.starts[row + 1]:
            self._enter(row)
        if self.has_wanted:
            self._expire(row)


# ==============================================================================
# SKIP | which candles a lane may leave out, and what it does in the others
# pure | uses TYPES CANDLES RISK CYCLE BACKTEST LANES
# ==============================================================================

# A lane by itself, in plain numbers, goes from one candle in which it can act to the next. In between nothing can
# happen: no order works, nothing held reaches its stop, its exit, its age or a new stop, no free market has a wish for
# which there is a place, no UTC day begins, and at the lowest bids equity stays above its caps. The steps, their order
# and the arithmetic are those of `Lanes.step`, which visits every candle; a test compares the two, fill for fill.
NEAR_ROWS, FAR_ROWS = 24, 512  # the next candles are looked at one by one, the later ones as columns
FEE_POWER = 10.0**FEE_SCALE
Plain = Sequence[float]  # a memoryview gives its items as plain numbers, faster than an array


def floor_to(value: float, power: float) -> float:
    """One value on the grid, as `grid_floor` gives it."""
    near = float(round(value * power))
    return (near - (near / power - value > max(1e-6 / power, 4 * math.ulp(value)))) / power


class Strip(NamedTuple):
    """One market of a run: its candles, and what it fixes; all lanes of the run read it."""

    open: Plain
    high: Plain
    low: Plain
    close: Plain
    bid: Plain
    half: Plain
    seen: Plain
    lows: Floats
    closes: Floats
    bids: Floats
    price_power: float
    volume_power: float
    min_volume: float
    least: float
    max_volume: float
    maker: float
    taker: float
    dearest: float
    kept: float
    through: float


def strips_of(table: LaneTable, run: int) -> tuple[Strip, ...]:
    """The markets of one run."""
    made = []
    for pair in range(table.exits.shape[3]):
        open_, high, low, close, bid, half, seen = (np.ascontiguousarray(c[:, run, 0, pair]) for c in (
            table.open, table.high, table.low, table.close, table.bid, table.half, table.volume))
        price, lots, tick, least, whole, most, _, maker, taker, dearest = (float(c[pair]) for c in table.terms)
        made.append(Strip(
            open_.data, high.data, low.data, close.data, bid.data, half.data, seen.data, low, close, bid, price, lots,
            least, whole, most, maker, taker, dearest, 1 - taker, tick * 0.999999))
    return tuple(made)


class Spot:
    """One market in one lane: what is held and ordered, and the next candle that matters to it."""

    def __init__(self, strip: Strip, table: LaneTable, lane: tuple[int, int], pair: int) -> None:
        run, place = lane
        self.strip, self.pair = strip, pair
        range_ = table.atr[:, run, min(place, table.atr.shape[2] - 1), pair]
        self.pull = table.trail[:, min(run, table.trail.shape[1] - 1), place, 0] * range_
        self.notch = TRAIL_STEP_ATR * range_
        self.exits = np.ascontiguousarray(table.exits[:, run, place, pair])
        holding = table.holding[:, min(run, table.holding.shape[1] - 1), place, 0]
        self.holding, self.rows = holding, len(table.times)
        self.least_holding = int(holding.min(initial=NEVER_ROW))
        self.volume = self.wanted = self.selling = self.limit = self.entry_stop = self.gain = self.best = 0.0
        self.stop, self.line, self.floor, self.guarded = math.inf, -math.inf, 0.0, 0.0
        self.kind = self.entry_kind = self.expires = 0
        self.opened, self.leaving = NEVER_ROW, False
        # until the row `next` nothing happens here by itself; the highest close and the lowest bid before it
        self.next, self.read, self.peak, self.lowest = 0, -1, 0.0, 0.0

    @property
    def is_busy(self) -> bool:
        """True while it takes one of the places."""
        return self.volume > 0 or self.wanted > 0

    def clear(self) -> None:
        """Forget a position that is closed."""
        self.volume, self.stop, self.line, self.selling = 0.0, math.inf, -math.inf, 0.0
        self.opened, self.kind, self.leaving = NEVER_ROW, 0, False

    def share(self, row: int, wanted: float) -> float:
        """How much of an order one bar can have filled, 0 without a bar."""
        seen = self.strip.seen[row] * BAR_SHARE
        return floor_to(min(wanted, seen), self.strip.volume_power) if seen > 0 else 0.0

    def catch_up(self, row: int) -> None:
        """Know the highest close before this row."""
        if self.read < row - 1:
            passed = self.strip.closes[self.read + 1 : row]
            self.best = self.peak if row == self.next else float(np.fmax.reduce(passed, initial=self.best))
            self.read = row - 1

    def wait(self, row: int) -> None:
        """Something may happen here in the next row."""
        self.read, self.next, self.peak = row, row + 1, self.best

    def look_ahead(self, row: int) -> None:
        """Find the next row in which something happens here."""
        self.wait(row)
        if self.wanted or self.selling or self.leaving or self.line == math.inf:
            return
        self.lowest = math.inf
        end = min(self.rows, max(row + 1, self.opened + self.least_holding))
        near = min(end, row + 1 + NEAR_ROWS)
        self.next = self._look_near(row + 1, near)
        while self.next == near < end:
            first, near = near, min(end, near + FAR_ROWS)
            self.next = self._look_far(first, near)

    def _look_near(self, first: int, end: int) -> int:
        strip, cut, best, lowest = self.strip, slice(first, end), self.peak, math.inf
        line, kind, stop, row = self.line, self.kind, self.stop, first
        for low, close, bid, leaves, pull, notch in zip(
            strip.lows[cut].tolist(), strip.closes[cut].tolist(), strip.bids[cut].tolist(),
            self.exits[cut].tolist(), self.pull[cut].tolist(), self.notch[cut].tolist(), strict=True,
        ):
            top = close if close > best else best
            if low <= line or leaves & kind or top - pull > stop + notch:
                break
            best, row = top, row + 1
            if bid < lowest:
                lowest = bid
        self.peak, self.lowest = best, lowest
        return row

    def _look_far(self, first: int, end: int) -> int:
        cut = slice(first, end)
        tops = np.fmax(np.fmax.accumulate(self.strip.closes[cut]), self.peak)
        is_event = (self.strip.lows[cut] <= self.line) | ((self.exits[cut] & self.kind) != 0)
        is_event |= tops - self.pull[cut] > self.stop + self.notch[cut]
        count = int(is_event.argmax()) if is_event.any() else end - first
        if count:
            self.peak = float(tops[count - 1])
            self.lowest = min(self.lowest, float(self.strip.bids[first : first + count].min()))
        return first + count


class LaneWishes(NamedTuple):
    """The wishes of one lane in order of row and rank."""

    rows: list[int]
    pairs: list[int]
    stops: list[float]
    bits: list[int]


OF_LANE = ("cash", "equity", "day_line", "week_line", "until", "is_halted")
OF_SPOT = ("volume", "best", "stop", "line", "floor", "guarded", "kind", "opened", "leaving", "selling", "wanted",
           "limit", "entry_stop", "entry_kind", "expires", "gain")


class LaneDesk:
    """Cash, positions and orders of one lane; `turnover` and `trips` are sums that the caller takes each day."""

    def __init__(self, lanes: Lanes, lane: tuple[int, int], strips: Sequence[Strip], wishes: LaneWishes) -> None:
        self.lanes, self.lane, self.table, self.wishes = lanes, lane, lanes.table, wishes
        self.limits, self.settings = lanes.settings.limits, lanes.settings
        self.friends = lanes.table.friends[:, lane[0]]
        self.rows, self.first_ms, self.step_ms = len(lanes.table.times), int(lanes.table.times[0]), lanes.table.step_ms
        self.spots = [Spot(strip, lanes.table, lane, pair) for pair, strip in enumerate(strips)]
        self.day, self.wish, self.row = lanes.day, 0, -1
        self.turnover, self.trips = 0.0, 0
        self.cash = self.equity = self.day_line = self.week_line = self.until = 0.0
        self.is_halted = False
        for name in OF_LANE:
            vars(self)[name] = vars(lanes)[name][lane].item()
        for spot in self.spots:
            for name in OF_SPOT:
                vars(spot)[name] = vars(lanes)[name][lane][spot.pair].item()
        self.is_barred = self.until > 0 or self.is_halted
        self.busy = [s for s in self.spots if s.is_busy]
        for spot in self.busy:
            spot.look_ahead(-1)

    def save(self) -> None:
        """Put the state back into the columns of all lanes."""
        for name in OF_LANE:
            vars(self.lanes)[name][self.lane] = vars(self)[name]
        for spot in self.spots:
            if spot in self.busy:
                spot.catch_up(self.rows)
            for name in OF_SPOT:
                vars(self.lanes)[name][self.lane][spot.pair] = vars(spot)[name]

    def _pay(self, value: float, sign: int, fee: float) -> None:
        self.cash += sign * value + floor_to(-(value * fee), FEE_POWER)
        self.turnover += value

    def _note(self, row: int, spot: Spot, name: str, price: float, volume: float) -> None:
        if self.lanes.fills is not None:
            cell = (self.lane[0] * self.table.exits.shape[2] + self.lane[1]) * len(self.spots) + spot.pair
            self.lanes.fills.append((row, cell, name, price, volume))

    def _sold(self, row: int, spot: Spot, name: str, price: float, volume: float) -> None:
        self._note(row, spot, name, price, volume)
        left = spot.volume - volume
        if left > 1e-12:
            spot.volume = left
        else:
            spot.clear()
            self.trips += 1

    def _sweep(self, spot: Spot) -> bool:
        """Close a position that is too small to sell and has no order to change that; True if it was."""
        is_small = 0 < spot.volume < spot.strip.min_volume and not spot.wanted and not spot.selling
        if is_small and spot.line == -math.inf:
            spot.clear()
            self.trips += 1
            return True
        return False

    def _settle_exit(self, row: int, spot: Spot) -> None:
        strip, slip, start = spot.strip, 1 - self.settings.costs.slippage, spot.strip.open[row]
        if math.isnan(start):
            return
        price, limit, spot.selling = start * (1 - strip.half[row]) * slip, spot.selling, 0.0
        volume = spot.share(row, spot.volume)
        if limit - price <= 0 and volume > 0:
            filled = floor_to(price, strip.price_power)
            self._pay(filled * volume, 1, strip.taker)
            self._sold(row, spot, "exit", filled, volume)
            self._sweep(spot)

    def _settle_entry(self, row: int, spot: Spot) -> bool:
        """True if the market went through the limit and gave a part at least."""
        strip, price = spot.strip, spot.limit
        volume = spot.share(row, spot.wanted) if strip.low[row] <= price - strip.through else 0.0
        if volume <= 0:
            return False
        self._note(row, spot, "entry", price, volume)
        self._pay(price * volume, -1, strip.maker)
        self.cash += spot.gain * volume
        left = spot.wanted - volume
        spot.wanted = left if left > 0.5 / strip.volume_power else 0.0
        if spot.volume == 0:
            spot.stop, spot.kind, spot.best, spot.opened = spot.entry_stop, spot.entry_kind, price, row
        spot.volume += volume
        return True

    def _settle_stop(self, row: int, spot: Spot) -> None:
        strip, line, floor = spot.strip, spot.line, spot.floor
        was_triggered, fee, price = line == math.inf, strip.maker, floor
        if was_triggered:
            is_done = strip.high[row] >= floor + strip.through
        else:
            worst = min(strip.open[row], line) * (1 - strip.half[row])
            price, fee = floor_to(worst * (1 - self.settings.costs.slippage), strip.price_power), strip.taker
            is_done = price >= floor
        volume, guarded, spot.line = spot.share(row, spot.guarded), spot.guarded, math.inf
        if not is_done or volume <= 0:
            return
        self._pay(price * volume, 1, fee)
        self._sold(row, spot, "protection", price, volume)
        spot.guarded = guarded - volume
        if spot.guarded < 0.5 / strip.volume_power:
            spot.line = -math.inf
            self._sweep(spot)

    def _mark(self, row: int) -> None:
        held = 0.0
        for spot in self.busy:
            held += spot.volume * spot.strip.bid[row] * spot.strip.kept
        self.equity = self.cash + held

class LaneRun(LaneDesk):
    """One lane over all rows, from one row in which something happens to the next."""

    def run_to(self, end: int) -> None:
        """Take the rows up to and including this one; nothing is left out there."""
        while self.row < end:
            self.row = self._next(end)
            self._act(self.row)

    def _next(self, end: int) -> int:
        """The next row in which something happens, at most `end`."""
        row, last = self.row + 1, end
        if self.is_barred:
            return row
        for spot in self.busy:
            if spot.next < last:
                last = spot.next
        if len(self.busy) < self.limits.max_positions:
            last = self._next_wish(row, last)
        if self.busy and last > row and self._is_near_cap():
            return self._fallen(row, last)
        return last

    def _next_wish(self, row: int, last: int) -> int:
        """The next row up to `last` in which a free market has a wish."""
        rows, pairs, spots = self.wishes.rows, self.wishes.pairs, self.spots
        at = self.wish = bisect.bisect_left(rows, row, self.wish)
        while at < len(rows) and rows[at] < last:
            if not spots[pairs[at]].is_busy:
                return rows[at]
            at += 1
        return last

    def _is_near_cap(self) -> bool:
        """True if equity might fall to a cap before any market's next event."""
        held = 0.0
        for spot in self.busy:
            held += spot.volume * spot.lowest * spot.strip.kept
        return self.cash + held <= max(self.day_line, self.week_line)

    def _fallen(self, first: int, last: int) -> int:
        """The first row before `last` in which equity is at a cap, or `last`."""
        held = np.zeros(last - first)
        for spot in self.busy:
            held += spot.volume * spot.strip.bids[first:last] * spot.strip.kept
        low = self.cash + held <= max(self.day_line, self.week_line)
        return first + int(low.argmax()) if low.any() else last

    def _act(self, row: int) -> None:
        """One row, in the order of `Lanes.step`."""
        due = self._caught_up(row)
        grown = self._settle(row, due) if due else []
        self._mark(row)
        if self._review(row):
            due = self._caught_up(row)
        for spot in due:
            self._look_after(row, spot, spot in grown)
        asked = self._enter(row) if not self.is_barred else []
        if asked or due:
            self._expire(row, due)
            self.busy = [s for s in self.spots if s.volume or s.wanted]
            self._look_ahead(row, due)
            self._look_ahead(row, asked)
        if self.is_halted and is_new_week(self.first_ms + row * self.step_ms, self.step_ms):
            self.is_halted, self.is_barred = False, self.until > 0

    def _caught_up(self, row: int) -> list[Spot]:
        """The markets to which something may happen in this row."""
        due = self.busy if self.is_barred else [s for s in self.busy if s.next <= row]
        for spot in due:
            spot.catch_up(row)
        return due

    def _settle(self, row: int, due: Sequence[Spot]) -> list[Spot]:
        """Sales, entries, stops, in this order; the markets in which something was bought."""
        for spot in due:
            if spot.selling:
                self._settle_exit(row, spot)
        hit = [s for s in due if s.strip.low[row] <= s.line]
        grown = [s for s in due if s.wanted and self._settle_entry(row, s)]
        for spot in hit:
            self._settle_stop(row, spot)
        return grown

    def _look_ahead(self, row: int, acted: Iterable[Spot]) -> None:
        for spot in acted:
            if self.is_barred:
                spot.wait(row)
            elif spot.volume or spot.wanted:
                spot.look_ahead(row)

    def _review_caps(self, now_ms: int, day: int) -> None:
        if self.equity <= self.day_line and not self.until:
            self.until = max((day + 1) * DAY_MS, now_ms + int(self.limits.cooldown_hours * HOUR_MS))
        if self.equity <= self.week_line:
            self.is_halted = True

    def _review(self, row: int) -> bool:
        """Caps, day roll and end of cooldowns; True while a cap keeps entries off."""
        now, before = self.first_ms + row * self.step_ms + DECISION_DELAY_MS, self.day
        self.day = now // DAY_MS
        if self.day == before and self.equity > max(self.day_line, self.week_line) and not self.is_barred:
            return False
        self._review_caps(now, before)
        if self.day > before:
            self.day_line = self.equity * (1 - self.limits.daily_loss_cap)
            if (self.day + 3) // 7 > (before + 3) // 7:
                self.week_line = self.equity * (1 - self.limits.weekly_loss_cap)
        if 0 < self.until <= now:
            self.until = 0
            self._review_caps(now, self.day)
        self.is_barred = self.until > 0 or self.is_halted
        return self.is_barred

    def _look_after(self, row: int, spot: Spot, is_grown: bool) -> None:
        """Trail the stop, then leave, or rest a protection if what is held or its stop is new."""
        strip, is_renewed = spot.strip, is_grown
        if spot.kind:
            close, notch = strip.close[row], float(spot.notch[row])
            spot.best = close if close > spot.best else spot.best
            wanted = spot.best - float(spot.pull[row])
            if wanted > spot.stop + notch:
                wanted = floor_to(wanted, strip.price_power)
                if wanted > spot.stop + notch:
                    spot.stop, is_renewed = wanted, True
            if self._is_over(row, spot, is_renewed):
                spot.leaving, spot.kind, spot.stop, spot.opened = True, 0, math.inf, NEVER_ROW
        if spot.leaving:
            self._sell(row, spot)
        elif is_renewed and spot.kind and spot.volume >= strip.min_volume:
            spot.line, spot.guarded = spot.stop, spot.volume
            spot.floor = floor_to(spot.stop * (1 - self.settings.costs.stop_gap), strip.price_power)

    def _is_over(self, row: int, spot: Spot, is_renewed: bool) -> bool:
        """True if the position is to be left."""
        strip = spot.strip
        if int(spot.exits[row]) & spot.kind or (self.is_barred and self.limits.daily_cap_action == "close"):
            return True
        if (is_renewed or spot.line == math.inf) and strip.bid[row] <= spot.stop:
            return True
        if spot.opened == row and strip.low[row] <= spot.stop:
            return True
        is_old = row >= spot.opened + spot.least_holding and spot.opened <= row - int(spot.holding[row])
        return is_old and not math.isnan(strip.close[row])

    def _sell(self, row: int, spot: Spot) -> None:
        strip = spot.strip
        if not spot.selling and not math.isnan(strip.close[row]) and spot.volume >= strip.min_volume:
            bound = strip.bid[row] * (1 - self.settings.costs.exit_bound)
            spot.selling, spot.line, spot.wanted = floor_to(bound, strip.price_power), -math.inf, 0.0

    def _enter(self, row: int) -> list[Spot]:
        """The wishes of this row, strongest first, each sized against what the ones before it have left."""
        asked: list[Spot] = []
        rows, at = self.wishes.rows, self.wish
        if at >= len(rows) or rows[at] > row:
            return asked
        at = bisect.bisect_left(rows, row, at)
        while at < len(rows) and rows[at] == row:
            spot = self.spots[self.wishes.pairs[at]]
            if not spot.is_busy and self._size(row, spot, self.wishes.stops[at]):
                spot.entry_stop, spot.entry_kind = self.wishes.stops[at], self.wishes.bits[at]
                asked.append(spot)
            at += 1
        return asked

    def _size(self, row: int, spot: Spot, stop: float) -> bool:
        """Size one wish against what the lane has left, and let it rest at the bid; False if nothing is left."""
        limits, strip, limit, fee = self.limits, spot.strip, spot.strip.bid[row], spot.strip.dearest
        slipped = stop * (1 - STRESSED_SLIPPAGE * self.settings.costs.slippage)
        loss = limit * (1 + strip.maker) - slipped * (1 - strip.taker)
        friends = self.friends[(self.first_ms + row * self.step_ms) // DAY_MS - self.first_ms // DAY_MS, spot.pair]
        whole = group = reserved = 0.0
        taken = 0
        for other in self.spots:
            if other.volume or other.wanted:
                wanted = other.wanted * other.limit
                worst = other.volume * other.strip.bid[row] + wanted
                whole, reserved, taken = whole + worst, reserved + wanted, taken + (worst > 0)
                group += worst if friends[other.pair] else 0.0
        if taken >= limits.max_positions or not loss > 0:
            return False
        now, free = self.equity, self.cash - reserved * (1 + fee)
        room = min(
            now * limits.risk_per_trade / loss, (now * limits.max_exposure - whole) / limit,
            now * limits.max_asset_exposure / limit, (now * limits.max_group_exposure - group) / limit,
            free * (1 - CASH_MARGIN) / (1 + fee) / limit, strip.seen[row] * BAR_SHARE, strip.max_volume)
        volume = floor_to(max(room, 0.0), strip.volume_power)
        if volume < strip.least:
            return False
        spot.wanted, spot.limit, spot.expires = volume, limit, row + self.settings.schedule.entry_timeout_candles
        spot.gain = self.table.peek * (strip.close[row] - strip.open[row])
        return True

    def _expire(self, row: int, due: Sequence[Spot]) -> None:
        """Take entries off that are out of time or that the lane's state forbids."""
        has_swept = False
        for spot in due:
            if spot.wanted and (spot.expires <= row or self.is_barred):
                spot.wanted = 0.0
                has_swept |= self._sweep(spot)
        if has_swept:
            self._mark(row)


@dataclass(frozen=True, slots=True)
class LaneResult:
    """What lanes earned: days, and [days, runs, sets] of equity at each day's end, value bought and sold, and round
    trips closed; `weights` is the mean share of equity in each pair, [days, runs, sets, pairs].
    """

    days: Ints
    start: float
    equity: Floats
    turnover: Floats
    round_trips: Ints
    weights: Floats


def day_ends(table: LaneTable) -> Ints:
    """The rows at which UTC days end, and the last one."""
    return np.flatnonzero((table.times % DAY_MS == 0) | (np.arange(len(table.times)) == len(table.times) - 1))


def new_result(table: LaneTable, lanes: Lanes) -> LaneResult:
    """A result to be filled day by day."""
    ends = day_ends(table)
    shape = (len(ends), *lanes.cash.shape)
    return LaneResult(
        (table.times[ends] - 1) // DAY_MS, lanes.settings.schedule.paper_cash, np.zeros(shape), np.zeros(shape),
        np.zeros(shape, dtype=np.int64), np.zeros((*shape, lanes.volume.shape[2])))


def run_every_row(table: LaneTable, lanes: Lanes, on_progress: Progress = always) -> LaneResult | None:
    """Take all lanes over all rows side by side; None if cancelled."""
    result, ends, last = new_result(table, lanes), day_ends(table), 0
    for day, end in enumerate(ends.tolist()):
        if not on_progress(day, len(ends)):
            return None
        for row in range(last, end + 1):
            lanes.step(row)
            lanes.end_week(row)
            if lanes.is_stressed:
                lanes.weights += lanes.volume * table.bid[row] / lanes.equity[:, :, None]
        result.equity[day], result.turnover[day], result.round_trips[day] = lanes.equity, lanes.turnover, lanes.trips
        result.weights[day] = lanes.weights / (end + 1 - last)
        for total in (lanes.turnover, lanes.trips, lanes.weights):
            total[...] = 0
        last = end + 1
    return result


def _lane_wishes(wishes: Wishes, lanes: int) -> Iterator[LaneWishes]:
    """The wishes of each lane."""
    order = np.argsort(wishes.lane, kind="stable")
    cuts = np.searchsorted(wishes.lane, np.arange(lanes + 1), sorter=order)
    for first, end in itertools.pairwise(cuts.tolist()):
        at = order[first:end]
        yield LaneWishes(*(column[at].tolist() for column in (wishes.row, wishes.pair, wishes.stop, wishes.bit)))


def skip_lane(lane: LaneRun, result: LaneResult, ends: Ints, on_day: Callable[[int], bool]) -> bool:
    """Take one lane over all rows and write down its days; False if cancelled."""
    days = (lane.table.times + DECISION_DELAY_MS) // DAY_MS
    rolls = set(np.flatnonzero(np.diff(days, prepend=lane.day)).tolist())
    places = {row: day for day, row in enumerate(ends.tolist())}
    for row in sorted(rolls | places.keys()):
        day = places.get(row)
        if day is not None and not on_day(day):
            return False
        lane.run_to(row)
        if day is not None:
            at = (day, *lane.lane)
            result.equity[at], result.turnover[at], result.round_trips[at] = lane.equity, lane.turnover, lane.trips
            lane.turnover, lane.trips = 0.0, 0
    lane.save()
    return True


def skip_rows(table: LaneTable, lanes: Lanes, on_progress: Progress = always) -> LaneResult | None:
    """Take one lane after the other over all rows; None if cancelled."""
    runs, sets = lanes.cash.shape
    result, ends = new_result(table, lanes), day_ends(table)

    def on_day(day: int) -> bool:
        done = number * len(ends) + day
        share = done // (runs * sets)
        return (done - 1) // (runs * sets) == share or on_progress(share, len(ends))

    wishes = _lane_wishes(table.wishes, runs * sets)
    for number, lots in enumerate(wishes):
        run, place = divmod(number, sets)
        if place == 0:
            strips = strips_of(table, run)
        if not skip_lane(LaneRun(lanes, (run, place), strips, lots), result, ends, on_day):
            return None
    lanes.day = int(table.times[-1] + DECISION_DELAY_MS) // DAY_MS
    return result


ACT_COST, ROW_COST, CELL_COST = 20.0, 60.0, 0.3  # roughly microseconds: a lane that acts, a row, a market of it


def _is_sparse(table: LaneTable) -> bool:
    """True if lanes one by one, by their events, take less time than all of them row by row."""
    rows, runs, sets, pairs = table.exits.shape
    cells = runs * sets * pairs
    days = rows * table.step_ms / DAY_MS * runs * sets
    return bool((len(table.wishes.row) + days) * ACT_COST < rows * (ROW_COST + cells * CELL_COST))


def run_lanes(table: LaneTable, lanes: Lanes, on_progress: Progress = always) -> LaneResult | None:
    """Take lanes over all rows; None if cancelled. A weekly halt is confirmed at the first row of the next week."""
    needs_every_row = lanes.is_stressed or lanes.is_throttled
    return (run_every_row if needs_every_row or not _is_sparse(table) else skip_rows)(table, lanes, on_progress)


# ==============================================================================
# WALK | which parameter set would have been chosen, and what it earned unseen
# pure | uses TYPES SETTINGS CANDLES STRATEGIES METRICS BACKTEST LANES SKIP
# ==============================================================================

#   |- warm-up 60 d -|------- training 365 d -------|- 5 d -|- unseen 60 d -|                  window 1
#                        |------- training 365 d -------|- 5 d -|- unseen 60 d -|              window 2 ... 12
#
# Every set trades the whole history once, on one account. Training looks at the daily returns of its slice, so nothing
# later than its last day counts; the gap of five days is used by neither side. The unseen days are one account again,
# which takes over the chosen set at each window's start: what it holds then is left by the rules of the new set, and
# what that costs is paid. A return is marked at the end of its UTC day, so its label reaches one day, not further.
CASH = -1


@dataclass(frozen=True, slots=True)
class Window:
    """One training and its unseen stretch; `chosen` is a place in the list of sets, CASH for none."""

    number: int
    train_from_ms: int
    train_to_ms: int
    test_from_ms: int
    test_to_ms: int
    chosen: int = CASH
    train_sharpe: float = 0.0
    result: float = 0.0
    round_trips: int = 0


@dataclass(frozen=True, slots=True)
class WalkJob:
    """Candles of the decision timeframe in order of their markets' names, and the sets to choose from."""

    candles: Candles
    settings: Settings
    sets: tuple[StrategyParams, ...]
    peek: float = 0.0


@dataclass(frozen=True, slots=True)
class Unseen:
    """What the chosen sets earned on days they had never seen: returns, turnover per equity and round trips by day,
    mean weights and returns of the pairs, [days] or [days, pairs]; `trials` are all sets' returns on those days.
    `late` is what it would cost if every fill came a candle later, `gaps` by day what the worst exits would cost at
    the low of their candle, both as fractions.
    """

    days: Ints
    returns: Floats
    turnover: Floats
    round_trips: Ints
    weights: Floats
    pair_returns: Floats
    trials: Floats
    windows: tuple[Window, ...]
    late: float
    gaps: Floats


def decision_candles(candles: Iterable[Listed], settings: Settings) -> Candles:
    """Whole candles of the decision timeframe, markets in order of their names."""
    seconds = settings.schedule.timeframes[0]
    _, last = span_of(series for _, series in candles)
    made = ((market, closed_only(resample(series, seconds), last)) for market, series in candles if len(series))
    return tuple(sorted(((m, s) for m, s in made if len(s)), key=lambda c: c[0].pair))


def windows_of(candles: Iterable[Listed], gates: GateLimits) -> tuple[Window, ...]:
    """As many windows as the history holds, at most `gates.windows`, the last one ending on the last whole UTC day."""
    first_ms, last_ms = span_of(series for _, series in candles)
    first, last = -(-first_ms // DAY_MS), last_ms // DAY_MS
    before = gates.warm_up_days + gates.train_days + gates.embargo_days
    count = max(0, min(gates.windows, (last - first - before) // gates.test_days))
    made = []
    for number in range(count):
        start = last - (count - number) * gates.test_days
        trained = start - gates.embargo_days
        made.append(Window(number + 1, (trained - gates.train_days) * DAY_MS, trained * DAY_MS, start * DAY_MS,
                           (start + gates.test_days) * DAY_MS))
    return tuple(made)


def day_returns(equity: Floats, start: float) -> Floats:
    """Returns of days along the first axis from the equity at their ends."""
    before = np.concatenate((np.full((1, *equity.shape[1:]), start), equity[:-1]))
    return np.asarray(equity / before - 1)


def choose(returns: Floats, round_trips: Ints, least: int) -> tuple[Ints, Floats]:
    """[runs]: the set with the best Sharpe ratio of [days, runs, sets] returns, CASH if none is above 0; its ratio.

    A set with fewer than `least` round trips in training is passed over; ties go to the earlier set.
    """
    ratio = sharpes(np.moveaxis(returns, 0, -1))
    ratio[round_trips.sum(axis=0) < least] = 0.0
    best = np.asarray(ratio.argmax(axis=1), dtype=np.int64)
    top = ratio[np.arange(len(best)), best]
    return np.where(top > 0, best, CASH), np.asarray(top * math.sqrt(365))


def _switched(table: LaneTable, windows: Sequence[Window], chosen: Ints) -> LaneTable:
    """One lane per run that follows the chosen set ([windows, runs]) from each window's start; CASH never enters."""
    first = int(np.searchsorted(table.times, windows[0].test_from_ms, side="right"))
    cut = slice(first, int(np.searchsorted(table.times, windows[-1].test_to_ms, side="right")))
    times = table.times[cut]
    window = np.minimum((times - 1 - windows[0].test_from_ms) // (windows[0].test_to_ms - windows[0].test_from_ms),
                        len(windows) - 1)
    runs, sets = table.exits.shape[1:3]
    lane = chosen[window]  # [rows, runs]
    kept = np.maximum.accumulate(np.where(lane >= 0, np.arange(len(lane))[:, None], -1), axis=0)
    held = np.where(kept >= 0, lane[np.maximum(kept, 0), np.arange(runs)], 0)  # in cash the last set's exits go on
    rows, run = np.arange(len(times))[:, None] + cut.start, np.arange(runs)[None, :]
    wishes = table.wishes
    inside = (wishes.row >= cut.start) & (wishes.row < cut.start + len(times))
    moved = wishes.at(inside)
    row, of_run = moved.row - cut.start, moved.lane // sets
    moved = moved._replace(row=row, lane=of_run).at(lane[row, of_run] == moved.lane % sets)
    return replace(
        table, times=times, open=table.open[cut], high=table.high[cut], low=table.low[cut], close=table.close[cut],
        bid=table.bid[cut], half=table.half[cut], volume=table.volume[cut],
        atr=table.atr[rows, run, held if table.atr.shape[2] > 1 else 0][:, :, None],
        exits=table.exits[rows, run, held][:, :, None], wishes=moved,
        starts=np.searchsorted(moved.row, np.arange(len(times) + 1)),
        friends=table.friends[int(times[0] // DAY_MS - table.times[0] // DAY_MS):],
        trail=table.trail[0, 0, held, :][:, :, None], holding=table.holding[0, 0, held, :][:, :, None],
    )


class Walk(NamedTuple):
    """The steps of a walk-forward over several runs: windows, the choices [windows, runs], the unseen days' lanes."""

    windows: tuple[Window, ...]
    chosen: Ints
    sharpes: Floats
    trials: LaneResult
    unseen: LaneResult
    late: Floats  # [runs]
    gaps: Floats | None = None


WORST_EXITS = 0.05


def _bad_exits(table: LaneTable, fills: Sequence[LaneFill], days: Ints) -> Floats:
    """By day, what the worst exits of a single run would cost at the low of their candle."""
    gaps, exits = np.zeros(len(days)), []
    for row, pair, name, price, volume in fills:
        if name != "entry":
            exits.append(((price - float(table.low[row, 0, 0, pair])) / price, row, price * volume))
    for fall, row, value in sorted(exits, reverse=True)[: math.ceil(WORST_EXITS * len(exits))]:
        gaps[np.searchsorted(days, (table.times[row] - 1) // DAY_MS)] += max(0.0, fall) * value
    return gaps


MIN_TRAINING_TRIPS = 10


class Past(NamedTuple):
    """The lanes at the end of the first training, and what they earned till then."""

    state: LaneState
    result: LaneResult

    def of_run(self, run: int) -> Past:
        """The past of one run, which all its shuffled markets share."""
        only, result = slice(run, run + 1), self.result
        columns = {name: column[only] for name, column in self.state.columns.items()}
        return Past(self.state._replace(columns=columns), replace(
            result, equity=result.equity[:, only], turnover=result.turnover[:, only],
            round_trips=result.round_trips[:, only], weights=result.weights[:, only]))


def past_of(
    job: WalkJob, windows: Sequence[Window], runs: tuple[Candles, ...], on_progress: Progress = always
) -> Past | None:
    """All sets on each run to the end of the first training; None if cancelled."""
    table = lane_table(LaneJob(runs, job.settings, job.sets, windows[0].train_from_ms, windows[0].train_to_ms,
                               job.peek))
    lanes = Lanes(table, job.settings)
    result = run_lanes(table, lanes, on_progress)
    return None if result is None else Past(lanes.state(), result)


class Choice(NamedTuple):
    """What the chooser takes from one training: a place in the list of sets, CASH, or None where candles of
    `missing_days` days are not there; `sharpe` is that of the training, a year.
    """

    chosen: int | None
    sharpe: float
    from_ms: int
    to_ms: int
    missing_days: int = 0


def history_days(gates: GateLimits) -> int:
    """How many days of candles a choice needs."""
    return gates.warm_up_days + gates.train_days


def missing_days(candles: Iterable[Listed], gates: GateLimits, to_ms: int) -> int:
    """How many of the days that a training which ends at `to_ms` needs have no candles."""
    rows = [series for _, series in candles if len(series)]
    first, last = span_of(rows) if rows else (to_ms, to_ms)
    start, end = to_ms // DAY_MS - history_days(gates), to_ms // DAY_MS
    return history_days(gates) - max(0, min(last // DAY_MS, end) - max(-(-first // DAY_MS), start))


def _training(candles: Iterable[Listed], settings: Settings, sets: tuple[StrategyParams, ...], window: Window
              ) -> Past | None:
    """All sets over one training, on what was known when it ended."""
    known = decision_candles([(m, closed_only(s, window.train_to_ms)) for m, s in candles], settings)
    return past_of(WalkJob(known, settings, sets), (window,), (known,))


def current_choice(
    candles: Iterable[Listed], settings: Settings, sets: tuple[StrategyParams, ...], now_ms: int
) -> Choice:
    """What `walk` would choose from a first training that ends with the last whole UTC day before now."""
    listed, to_ms = tuple(candles), now_ms // DAY_MS * DAY_MS
    from_ms, missing = to_ms - settings.gates.train_days * DAY_MS, missing_days(listed, settings.gates, to_ms)
    past = None if missing else _training(listed, settings, sets, Window(1, from_ms, to_ms, to_ms, to_ms))
    if past is None:
        return Choice(None, 0.0, from_ms, to_ms, missing)
    returns, days = day_returns(past.result.equity, past.result.start), past.result.days
    cut = slice(*np.searchsorted(days, (from_ms // DAY_MS, to_ms // DAY_MS)))
    best, ratio = choose(returns[cut], past.result.round_trips[cut], MIN_TRAINING_TRIPS)
    return Choice(int(best[0]), float(ratio[0]), from_ms, to_ms)


def _joined(past: LaneResult, later: LaneResult) -> LaneResult:
    """The past, a shared one once for each run, and what came after it."""
    runs = later.equity.shape[1] // past.equity.shape[1]
    return LaneResult(
        np.concatenate((past.days, later.days)), past.start,
        np.concatenate((np.repeat(past.equity, runs, axis=1), later.equity)),
        np.concatenate((np.repeat(past.turnover, runs, axis=1), later.turnover)),
        np.concatenate((np.repeat(past.round_trips, runs, axis=1), later.round_trips)),
        np.concatenate((np.repeat(past.weights, runs, axis=1), later.weights)))


def walk(
    table: LaneTable, past: Past, windows: tuple[Window, ...], settings: Settings, on_progress: Progress = always,
    is_stressed: bool = False,
) -> Walk | None:
    """Go on with all sets on every run of the table, choose, and test unseen; None if cancelled.

    `is_stressed` also tells what late fills, and of a single run what bad exits would have cost.
    """
    later = run_lanes(table, Lanes(table, settings).go_on(past.state), lambda done, total: on_progress(done, 2 * total))
    if later is None:
        return None
    trials = _joined(past.result, later)
    returns = day_returns(trials.equity, trials.start)
    chosen, ratios = [], []
    for window in windows:
        cut = slice(*np.searchsorted(trials.days, (window.train_from_ms // DAY_MS, window.train_to_ms // DAY_MS)))
        best, ratio = choose(returns[cut], trials.round_trips[cut], MIN_TRAINING_TRIPS)
        chosen.append(best)
        ratios.append(ratio)
    table = _switched(table, windows, np.array(chosen))
    lanes = Lanes(table, settings)
    lanes.is_stressed, lanes.fills = is_stressed, [] if is_stressed and table.exits.shape[1] == 1 else None
    unseen = run_lanes(table, lanes, lambda done, total: on_progress(total + done, 2 * total))
    if unseen is None:
        return None
    gaps = None if lanes.fills is None else _bad_exits(table, lanes.fills, unseen.days)
    return Walk(windows, np.array(chosen), np.array(ratios), trials, unseen, lanes.late[:, 0], gaps)


def unseen_sharpes(result: LaneResult) -> Floats:
    """[runs]: Sharpe ratio per day of what the unseen days earned, 0 for cash."""
    return sharpes(day_returns(result.equity, result.start)[:, :, 0].T)


def _remembered(series: Series, from_ms: int) -> Series:
    """The series from where strategies can remember at `from_ms`."""
    rows = int(np.searchsorted(series.closed, from_ms)) - memory_rows(series.seconds) - 3 * DAY_MS // (
        series.seconds * 1000)
    return series.part(max(0, rows), len(series))


def later_table(
    job: WalkJob, windows: Sequence[Window], runs: Iterable[Candles]
) -> LaneTable:
    """All sets on these runs, from the end of the first training to the last unseen day."""
    start = windows[0].train_to_ms
    cut = tuple(tuple((market, _remembered(series, start)) for market, series in run) for run in runs)
    step = job.settings.schedule.timeframes[0] * 1000
    return lane_table(LaneJob(cut, job.settings, job.sets, start + step, windows[-1].test_to_ms, job.peek))


def _pair_returns(candles: Sequence[Listed], days: Ints) -> Floats:
    """[days, pairs]: return of each market on each UTC day, 0 where it is not listed."""
    columns = []
    for _, series in candles:
        rows = np.searchsorted(series.closed, np.concatenate((days[:1], days + 1)) * DAY_MS, side="right") - 1
        close = np.where(rows >= 0, series.close[np.maximum(rows, 0)], np.nan)
        columns.append(np.nan_to_num(close[1:] / close[:-1] - 1))
    return np.stack(columns, axis=1)


def _filled_windows(done: Walk, run: int, returns: Floats) -> tuple[Window, ...]:
    """The windows of one run with what was chosen and what it earned."""
    days, trips, made = done.unseen.days, done.unseen.round_trips[:, run, 0], []
    for place, window in enumerate(done.windows):
        cut = slice(*np.searchsorted(days, (window.test_from_ms // DAY_MS, window.test_to_ms // DAY_MS)))
        made.append(replace(
            window, chosen=int(done.chosen[place, run]), train_sharpe=float(done.sharpes[place, run]),
            result=float(np.prod(1 + returns[cut]) - 1), round_trips=int(trips[cut].sum())))
    return tuple(made)


def unseen_of(done: Walk, candles: Sequence[Listed], run: int = 0) -> Unseen:
    """What one run of a walk earned on its unseen days."""
    result = done.unseen
    returns = day_returns(result.equity, result.start)[:, run, 0]
    before = np.concatenate(([result.start], result.equity[:-1, run, 0]))
    first = int(np.searchsorted(done.trials.days, result.days[0]))
    trials = day_returns(done.trials.equity, done.trials.start)[first:first + len(returns), run]
    return Unseen(
        result.days, returns, result.turnover[:, run, 0] / before, result.round_trips[:, run, 0],
        result.weights[:, run, 0], _pair_returns(candles, result.days), trials,
        _filled_windows(done, run, returns), float(done.late[run]) / result.start,
        np.zeros(len(returns)) if done.gaps is None else done.gaps / before,
    )


def whole_candles(series: Series) -> Series:
    """The series with each missing candle as a flat one without volume, as the exchange reports a quiet period."""
    step = series.seconds * 1000
    opened = np.arange(int(series.opened[0]), int(series.opened[-1]) + 1, step, dtype=np.int64)
    if len(opened) == len(series):
        return series
    rows = np.searchsorted(series.opened, opened, side="right") - 1
    is_there = series.opened[rows] == opened
    close = series.close[rows]
    open_, high, low = (np.where(is_there, v[rows], close) for v in (series.open, series.high, series.low))
    return Series(series.seconds, opened, open_, high, low, close, np.where(is_there, series.volume[rows], 0.0))


def _shuffled(series: Series, rows: Ints, bodies: Ints, gaps: Ints) -> Series:
    """The series with the shapes of the candles at `rows` taken from `bodies` and the gaps before them from `gaps`."""
    before = series.close[rows - 1]
    jump = np.log(series.open[rows] / before)
    shape = [np.log(v[rows] / series.open[rows]) for v in (series.high, series.low, series.close)]
    worth = (series.volume * series.close)[rows]
    place = rows - rows[0]
    high, low, close = (v[bodies[place]] for v in shape)
    steps = jump[gaps[place]] + close
    ends = np.log(before[0]) + np.cumsum(steps)
    starts = ends - close

    def put(old: Floats, new: Floats) -> Floats:
        column = old.copy()
        column[rows] = new
        return column

    prices = np.exp(ends)
    return Series(
        series.seconds, series.opened, put(series.open, np.exp(starts)), put(series.high, np.exp(starts + high)),
        put(series.low, np.exp(starts + low)), put(series.close, prices),
        put(series.volume, worth[bodies[place]] / prices))


def permuted(candles: Candles, from_ms: int, seed: int) -> Candles:
    """The same markets with the candles opened from `from_ms` on in another order, the same order for all markets.

    Bodies and gaps are shuffled apart (Masters, permutation of bars). Each market keeps its first and its last price
    and its drift; what could be foreseen is gone. Where a market is listed later or ends earlier than another, candles
    change places only with those of the same listing.
    """
    chance = np.random.default_rng(seed)
    whole = [whole_candles(series) for _, series in candles]
    step = whole[0].seconds * 1000
    first = max(from_ms, min(int(s.opened[1]) for s in whole))
    cuts = sorted({first, *(int(s.opened[1]) for s in whole), *(int(s.opened[-1]) + step for s in whole)})
    for start, end in itertools.pairwise([c for c in cuts if c >= first]):
        count = (end - start) // step
        bodies, gaps = chance.permutation(count), chance.permutation(count)
        for place, series in enumerate(whole):
            rows = np.flatnonzero((series.opened >= start) & (series.opened < end))
            if len(rows) == count and rows[0] > 0:
                whole[place] = _shuffled(series, rows, bodies, gaps)
    return tuple((market, series) for (market, _), series in zip(candles, whole, strict=True))


# ==============================================================================
# GATES | may this configuration ever trade for real, and why not
# pure | uses TYPES SETTINGS CANDLES STRATEGIES PORTFOLIO METRICS BACKTEST WALK
# ==============================================================================

# G1 and G2 carry the evidence: money after stressed costs, and better than the same procedure on shuffled markets.
# G3 to G6 ask whether it was enough, one stretch, still alive, one kind of market. G7 finds a size that is safe.
# Nothing here opens by default: a gate that was not computed is WAIT, and WAIT is locked.
PASS, FAIL, WAIT = "PASS", "FAIL", "WAIT"
GATE_NAMES: Mapping[str, str] = types.MappingProxyType({
    "G0": "Data", "G1": "Money after costs", "G2": "Better than luck", "G3": "Enough round trips",
    "G4": "Not one lucky stretch", "G5": "Still works", "G6": "Not one kind of market", "G7": "Safe size",
    "G8": "Paper agrees", "G9": "Self-test",
})
REAL_SOURCE = "luno"
STRESS_PER_SIDE = 0.0015
WORST_MAKER, WORST_TAKER = 0.004, 0.006
SELF_TESTED_S = 14_400  # the candles on which the self-test measures the gates
NO_TIER = "self-test"  # the fees of a made market are no tier that could get worse
ALARM_MEAN, ALARM_SHARPE = 0.01, 6.0
REGIME_DAYS, TREND_Z = 30, 0.5
CELLS_PER_CHUNK = 3_000_000  # rows x pairs x runs; about 300 MB
A = TypeVar("A")
B = TypeVar("B")


class Mapper(Protocol):
    """Applies a picklable function to picklable items and gives the results in their order."""

    def __call__(self, work: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        """The results, as they are asked for."""


def serial(work: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
    """One after the other, in this process."""
    return map(work, items)


@dataclass(frozen=True, slots=True)
class PaperRecord:
    """What PAPER did on the real exchange with this exact configuration: whole days, their summed return, and whether
    its fills cost no more than the stress of G1 allows.
    """

    days: int
    total: float
    is_within_costs: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition for LIVE: what is needed, what was found, and a sentence; a margin above 0 has passed."""

    id: str
    name: str
    result: str
    needed: str
    actual: str
    margin: float | None
    text: str


@dataclass(frozen=True, slots=True)
class GateJob:
    """What is to be evaluated. `as_of_ms` is the moment the age of the data counts from, 0 for the last candle;
    `attempts` counts the looks at these unseen days, this one included; only `source` "luno" can ever unlock.
    """

    candles: Candles
    settings: Settings
    as_of_ms: int = 0
    attempts: int = 1
    hashes: tuple[tuple[str, str], ...] = ()
    source: str = "recorded"
    is_self_tested: bool = False
    self_test_id: str = ""
    paper: PaperRecord | None = None
    sets: tuple[StrategyParams, ...] = field(default_factory=parameter_sets)
    peek: float = 0.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All gates with what was found on the unseen days; `payload` is its canonical text, without time or install."""

    gates: tuple[Gate, ...]
    shown: tuple[tuple[str, float | None], ...]
    windows: tuple[Window, ...]
    summary: str
    attempt: int
    size: float
    unseen_from_ms: int
    unseen_to_ms: int
    payload: str
    source: str
    alarm: str = ""  # too good to be true: passes nothing by itself

    @property
    def is_unlocked(self) -> bool:
        """True when each gate stands there once and passed, on candles of the real exchange, and nothing alarms."""
        passed = sorted(g.id for g in self.gates if g.result == PASS)
        is_whole = passed == sorted(GATE_NAMES) and len(self.gates) == len(passed)
        return is_whole and self.source == REAL_SOURCE and not self.alarm

    @property
    def payload_hash(self) -> str:
        """SHA-256 of the payload."""
        return hashlib.sha256(self.payload.encode()).hexdigest()


def _gate(gate: str, passes: bool, needed: str, actual: str, margin: float | None, text: str) -> Gate:
    name = GATE_NAMES[gate]
    if not passes and margin is not None and margin > 0:
        margin = None  # it fails for another reason than this number, which the sentence tells
    return Gate(gate, name, PASS if passes else FAIL, needed, actual, margin, f"{name}: {text}")


def waiting(gate: str, why: str) -> Gate:
    """A gate that was not computed."""
    return Gate(gate, GATE_NAMES[gate], WAIT, "-", "-", None, f"{GATE_NAMES[gate]}: not judged. {why}")


def _gap_troubles(candles: Sequence[Listed], windows: Sequence[Window]) -> list[str]:
    """Markets with a hole of more than a day inside the unseen days."""
    found = []
    for market, series in candles:
        holes = np.flatnonzero(np.diff(series.opened) > DAY_MS + series.seconds * 1000)
        inside = [h for h in holes if windows and series.opened[h + 1] > windows[0].test_from_ms]
        if inside:
            found.append(f"{market.pair} has {len(inside)} gap(s) of more than a day in the unseen days, the first"
                         f" after {_iso(int(series.opened[inside[0]]))}")
    return found


def _short_troubles(candles: Sequence[Listed], windows: Sequence[Window], limits: GateLimits) -> list[str]:
    """Too few markets whose candles span training and unseen days; one that ended with the others is not short."""
    if not windows:
        return []
    first, last = windows[0].train_from_ms, windows[-1].test_to_ms - limits.max_age_days * DAY_MS
    whole = [m for m, s in candles if int(s.opened[0]) <= first and int(s.closed[-1]) >= last]
    if len(whole) >= limits.min_pairs:
        return []
    return [f"only {len(whole)} market(s) have candles from the first training day to the last unseen one,"
            f" {limits.min_pairs} are needed"]


def gate_data(job: GateJob, candles: Sequence[Listed], windows: Sequence[Window]) -> Gate:
    """G0: enough whole history of enough markets, and fresh."""
    limits, troubles = job.settings.gates, []
    first_ms, last_ms = span_of(series for _, series in candles)
    days = (last_ms - first_ms) // DAY_MS
    before = limits.warm_up_days + limits.train_days + limits.embargo_days
    least, whole = before + limits.min_windows * limits.test_days, before + limits.windows * limits.test_days
    needed = (f"{limits.min_windows} windows ({least} days), {limits.min_pairs} markets,"
              f" {limits.max_missing:.1%} missing")
    if len(job.settings.schedule.timeframes) > 1:
        troubles.append("the gates judge one decision timeframe; set LUNOBIZ_TIMEFRAME_S to one")
    if job.settings.schedule.takes_after_timeout:
        troubles.append("the gates judge post-only entries; set LUNOBIZ_ENTRY_TAKER_AFTER_TIMEOUT to no")
    if len(windows) < limits.min_windows:
        troubles.append(f"not enough history: {days} days give {len(windows)} windows, {limits.min_windows} need"
                        f" {least} days and all {limits.windows} need {whole}")
    missing = {m.pair: shape_of(s).missing_share for m, s in candles}
    troubles += [f"{pair} misses {share:.2%} of its candles" for pair, share in missing.items()
                 if share > limits.max_missing]
    troubles += _gap_troubles(candles, windows)
    troubles += _short_troubles(candles, windows, limits)
    age = ((job.as_of_ms or last_ms) - last_ms) / DAY_MS
    if age > limits.max_age_days:
        troubles.append(f"the last candle is {math.ceil(age * 10) / 10:.1f} days old, at most {limits.max_age_days}"
                        " are allowed")
    actual = f"{len(windows)} windows ({days} days), {len(candles)} markets, {max(missing.values()):.2%} missing"
    listed = [f"{m.pair} from {_iso(int(s.opened[0]))[:10]} to {_iso(int(s.closed[-1]))[:10]}" for m, s in candles]
    text = "; ".join(troubles) if troubles else "whole and fresh"
    margin = len(windows) - limits.min_windows
    return _gate("G0", not troubles, needed, actual, None if troubles and margin >= 0 else float(margin),
                 f"{text}. {', '.join(listed)}.")


def stressed(unseen: Unseen, markets: Sequence[Market], costs: Costs) -> Floats:
    """S1: the daily returns if each side of each round trip had cost more, at the worst fee tier."""
    dearer = max(0.0 if m.fee_source == NO_TIER else max(WORST_MAKER - m.maker_fee, WORST_TAKER - m.taker_fee, 0.0)
                 for m in markets)
    return unseen.returns - (max(STRESS_PER_SIDE, costs.slippage) + dearer) * unseen.turnover


def gate_money(job: GateJob, unseen: Unseen) -> Gate:
    """G1: the mean unseen day after stressed costs is above zero, and late fills leave a profit."""
    limits = job.settings.gates
    returns = stressed(unseen, [m for m, _ in job.candles], job.settings.costs)
    test = money_test(returns, limits.seed, draws=limits.bootstraps, level=limits.money_p)
    late = float(unseen.returns.sum()) - unseen.late
    passes = test.p_value <= limits.money_p and late > 0
    return _gate(
        "G1", passes, f"p at most {limits.money_p:.2f}, late above 0", f"p {test.p_value:.3f}, late {late:+.1%}",
        limits.money_p - test.p_value,
        f"in {len(returns)} days the bot had never seen, after fees and stressed slippage, the average day was"
        f" {returns.mean():+.3%}. Allowing for luck we are {1 - limits.money_p:.0%} sure that the true average is above"
        f" {test.lower_bound:+.3%}. With every fill one candle late the total is {late:+.1%}, needed above 0.")


def gate_trips(job: GateJob, unseen: Unseen) -> Gate:
    """G3: enough closed round trips on the unseen days."""
    count, least = int(unseen.round_trips.sum()), job.settings.gates.min_round_trips
    idle = sum(window.chosen == CASH for window in unseen.windows)
    cash = (f" In {idle} of {len(unseen.windows)} windows no set had earned money in training with {MIN_TRAINING_TRIPS}"
            " round trips or more, and the bot stayed in cash.") if idle else ""
    return _gate("G3", count >= least, f"{least}", f"{count}", float(count - least),
                 f"{count} round trips were closed on the unseen days, {least} are needed to judge by.{cash}")


def gate_stretch(job: GateJob, unseen: Unseen) -> Gate:
    """G4: a profit without the best sixth of the windows."""
    results = sorted(w.result for w in unseen.windows)
    out = -(-len(results) // 6)
    rest = sum(results[:-out])
    return _gate("G4", rest > 0, "above 0", f"{rest:+.2%}", rest,
                 f"without the best {out} of {len(results)} windows, {out * job.settings.gates.test_days} days, the"
                 f" result is {rest:+.2%}.")


def gate_alive(job: GateJob, unseen: Unseen) -> Gate:
    """G5: a profit in the last third of the unseen days."""
    last = unseen.returns[-(len(unseen.returns) // 3):]
    total = float(last.sum())
    return _gate("G5", total > 0, "above 0", f"{total:+.2%}", total,
                 f"the last {len(last)} unseen days earned {total:+.2%}.")


def _by_kind(unseen: Unseen, candles: Sequence[Listed]) -> tuple[dict[str, float], dict[str, float]]:
    """Excess over holding the same average amount, by trend and by volatility of the 30 days before each day."""
    days = np.arange(int(unseen.days[0]) - REGIME_DAYS, int(unseen.days[-1]) + 1, dtype=np.int64)
    market = _pair_returns(candles, days).mean(axis=1)
    window = np.lib.stride_tricks.sliding_window_view(market[:-1], REGIME_DAYS)
    spread = window.std(axis=1, ddof=1)
    z = np.divide(window.sum(axis=1), spread * math.sqrt(REGIME_DAYS), out=np.zeros(len(spread)), where=spread > 0)
    held = unseen.weights.mean(axis=0)
    excess = unseen.returns - unseen.pair_returns @ held
    low, high = np.quantile(spread, (1 / 3, 2 / 3))
    trends = {"up-trend": z > TREND_Z, "sideways": np.abs(z) <= TREND_Z, "down-trend": z < -TREND_Z}
    calms = {"calm": spread <= low, "normal": (spread > low) & (spread <= high), "wild": spread > high}
    return ({name: float(excess[flags].sum()) for name, flags in trends.items()},
            {name: float(excess[flags].sum()) for name, flags in calms.items()})


def gate_kinds(job: GateJob, unseen: Unseen, candles: Sequence[Listed]) -> Gate:
    """G6: better than holding the same amount even without the best kind of market."""
    groups = _by_kind(unseen, candles)
    rest = min(sum(parts.values()) - max(parts.values()) for parts in groups)
    words = "; ".join(", ".join(f"{name} {value:+.1%}" for name, value in parts.items()) for parts in groups)
    return _gate("G6", rest > 0, "above 0", f"{rest:+.2%}", rest,
                 f"{words}, compared with simply holding the same average amount. Without the best kind {rest:+.2%}"
                 " is left.")


def safe_size(returns: Floats, limits: GateLimits) -> tuple[float, float, float]:
    """The largest size up to 1 that keeps both of the owner's limits; the drawdown and the worst day behind it."""
    fall = drawdown_quantile(returns, limits.seed, draws=limits.bootstraps)
    worst = max(0.0, -float(returns.min())) * 1.5
    sizes = [1.0, limits.max_drawdown / fall if fall > 0 else 1.0, limits.worst_day / worst if worst > 0 else 1.0]
    return math.floor(min(sizes) * 100) / 100, fall, worst


def gate_size(job: GateJob, unseen: Unseen) -> tuple[Gate, float]:
    """G7: the size at which drawdown and worst day stay within the owner's limits, bad exits included."""
    limits = job.settings.gates
    size, fall, worst = safe_size(unseen.returns - unseen.gaps, limits)
    schedule = job.settings.schedule
    order = schedule.paper_cash * size * job.settings.limits.max_asset_exposure
    least, pair = max(((m.min_volume * float(s.close[-1]), m.pair) for m, s in job.candles if len(s)),
                      default=(math.inf, "an unknown market"))
    rows = ((f"drawdown {fall * size:.1%} of {limits.max_drawdown:.0%}", fall * size <= limits.max_drawdown),
            (f"1.5 x worst day {worst * size:.1%} of {limits.worst_day:.0%}", worst * size <= limits.worst_day),
            (f"largest order {order:,.0f} {schedule.counter}, {pair} takes {least:,.0f} or more", order >= least))
    words = ", ".join(f"{text} {PASS if good else FAIL}" for text, good in rows)
    is_big = size >= limits.min_size
    little = "" if is_big else f" To trade with less than {limits.min_size:.0%} of the tested size is not worth while."
    passes = is_big and all(good for _, good in rows)
    return _gate("G7", passes, f"size at least {limits.min_size:.2f}", f"size {size:.2f}", size - limits.min_size,
                 f"at {size:.0%} of the tested size: {words} (99 % bootstrap of a year, the worst"
                 f" {WORST_EXITS:.0%} of exits at the low of their candle).{little}"), size


def gate_paper(job: GateJob, unseen: Unseen) -> Gate:
    """G8: PAPER did what the backtest said, for long enough."""
    days, paper = job.settings.gates.paper_days, job.paper
    if paper is None or paper.days < days:
        done = 0 if paper is None else paper.days
        why = "PAPER has to run on Luno itself; recorded candles cannot stand for it." if paper is None else ""
        return Gate("G8", GATE_NAMES["G8"], WAIT, f"{days} days", f"{done} days", float(done - days),
                    f"{GATE_NAMES['G8']}: {done} of {days} days of PAPER with this exact configuration. {why}".rstrip())
    if len(unseen.returns) < days:
        return waiting("G8", f"There are {len(unseen.returns)} unseen days to compare {days} days of PAPER with.")
    sums = np.convolve(unseen.returns, np.ones(days), "valid")
    floor = float(np.quantile(sums, 0.05))
    passes = paper.total >= floor and paper.is_within_costs
    cost = "within" if paper.is_within_costs else "above"
    margin = paper.total - floor if paper.is_within_costs else None
    return _gate("G8", passes, f"at least {floor:+.2%}", f"{paper.total:+.2%}", margin,
                 f"{paper.days} days of PAPER earned {paper.total:+.2%}; 19 of 20 stretches of {days} unseen days"
                 f" earned more than {floor:+.2%}. Its fills cost {cost} what the stressed test allows.")


def gate_self_test(job: GateJob) -> Gate:
    """G9: the gates themselves were measured for these strategies."""
    schedule = job.settings.schedule
    is_here = schedule.timeframes == (SELF_TESTED_S,)
    words = "the rate of false unlocks was measured for these strategies, on 4-hour candles"
    if not job.is_self_tested:
        words = "the rate of false unlocks has not been measured for these strategies; run --self-test"
    elif not is_here:
        words += f"; yours are {schedule.timeframes[0]} s: set LUNOBIZ_TIMEFRAME_S to {SELF_TESTED_S}"
    is_measured = job.is_self_tested and is_here
    return _gate("G9", is_measured, "measured", (is_here and job.self_test_id) or "not measured", None, words + ".")


@dataclass(frozen=True, slots=True)
class LuckJob:
    """Some shuffled markets of one walk, by their numbers."""

    walk: WalkJob
    windows: tuple[Window, ...]
    past: Past
    seed: int
    numbers: tuple[int, ...]


def luck_chunk(job: LuckJob) -> tuple[float, ...]:
    """The unseen Sharpe ratio of the whole procedure on each of the chunk's shuffled markets."""
    start = job.windows[0].train_to_ms
    near = tuple((m, _remembered(s, start)) for m, s in job.walk.candles)
    runs = [permuted(near, start, job.seed + number) for number in job.numbers]
    done = walk(later_table(job.walk, job.windows, runs), job.past, job.windows, job.walk.settings)
    return () if done is None else tuple(float(s) for s in unseen_sharpes(done.unseen))


class Luck(NamedTuple):
    """How often a shuffled market did as well: shuffles made, how many did, how many may, how many there would be."""

    used: int
    better: int
    allowed: int
    planned: int

    @property
    def p_value(self) -> float:
        """(1 + better) / (1 + used), for all planned shuffles or those made before failure was certain."""
        return (1 + self.better) / (1 + self.used)

    @property
    def is_passed(self) -> bool:
        """True when all planned shuffles were made and few enough did as well."""
        return self.used == self.planned and self.better <= self.allowed


def luck_plan(gates: GateLimits, attempts: int) -> Luck:
    """How many shuffles N attempts ask for, and how many of them may do as well: p must be at most luck_p / N."""
    planned = max(gates.permutations, math.ceil(attempts / gates.luck_p - 1e-9) - 1)
    return Luck(0, 0, math.floor(gates.luck_p / attempts * (planned + 1) + 1e-9) - 1, planned)


def luck_chunks(job: LuckJob, planned: int, workers: int) -> Iterator[LuckJob]:
    """Small chunks first, so that a failing strategy is soon out, then as large as memory and workers allow."""
    step = job.walk.settings.schedule.timeframes[0] * 1000
    rows = (job.windows[-1].test_to_ms - job.windows[0].train_to_ms) // step * len(job.walk.candles)
    largest, size, first = max(4, CELLS_PER_CHUNK // max(1, rows)), 4, 0
    while first < planned:
        left = planned - first
        count = min(size if size <= 16 else -(-left // workers), largest, left)
        yield replace(job, numbers=tuple(range(first, first + count)))
        first, size = first + count, size * 2


class Crew(NamedTuple):
    """Who does the shuffling: a way to map it, and how many work at the same time."""

    mapper: Mapper = serial
    workers: int = 1


def try_luck(job: LuckJob, real: float, plan: Luck, on_progress: Progress, crew: Crew) -> Luck | None:
    """Shuffle until failure is certain or the plan is done, in order of the numbers; None if cancelled."""
    used = better = 0
    if real <= 0:
        return plan._replace(used=0, better=0)
    results = crew.mapper(luck_chunk, luck_chunks(job, plan.planned, crew.workers))
    for ratios in results:
        for ratio in ratios:
            used, better = used + 1, better + (ratio >= real)
            if better > plan.allowed:
                return plan._replace(used=used, better=better)
        if not on_progress(used, plan.planned):
            return None
    return plan._replace(used=used, better=better)


def gate_luck(luck: Luck, real: float, attempts: int) -> Gate:
    """G2: the same procedure on shuffled markets hardly ever does as well."""
    needed = f"at most {luck.allowed} of {luck.planned}"
    if real <= 0:
        return _gate("G2", False, needed, "no profit", None,
                     "the unseen days earned nothing, so there is nothing that luck would have to explain.")
    again = f" This is attempt {attempts} on this data: the bar is {attempts} times higher." if attempts > 1 else ""
    return _gate("G2", luck.is_passed, needed, f"{luck.better} of {luck.used}", float(luck.allowed - luck.better),
                 f"we shuffled the market {luck.used} times. In {luck.better} shuffled market(s), where nothing can be"
                 f" foreseen, the same procedure did as well. At most {luck.allowed} of {luck.planned} may.{again}")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def shown_figures(unseen: Unseen, attempts: int) -> tuple[tuple[str, float | None], ...]:
    """What is worth knowing and decides nothing."""
    returns, trials = unseen.returns, unseen.trials
    ratios = np.repeat(sharpes(trials.T), max(1, attempts))
    gains, losses = returns[returns > 0].sum(), -returns[returns < 0].sum()
    months = [float(part.sum()) for part in np.array_split(returns, max(1, len(returns) // 30))]
    figures = {
        "unseen_days": float(len(returns)), "mean_day": float(returns.mean()), "sharpe": annual_sharpe(returns),
        "total": float(np.prod(1 + returns) - 1), "max_drawdown": drawdown_of(returns), "psr": psr(returns, 0.0),
        "dsr": dsr(returns, ratios), "pbo": pbo(trials), "min_trl_days": min_trl(returns, 0.0),
        "windows_positive": float(sum(w.result > 0 for w in unseen.windows)),
        "profit_factor_of_days": float(gains / losses) if losses > 0 else math.inf,
        "exposure": float(unseen.weights.sum(axis=1).mean()), "turnover_per_day": float(unseen.turnover.mean()),
        "best_month": max(months), "worst_month": min(months),
        "windows_in_cash": float(sum(w.chosen == CASH for w in unseen.windows)),
    }
    return tuple((name, _finite(value)) for name, value in figures.items())


def _alarm(unseen: Unseen) -> str:
    mean, ratio = float(unseen.returns.mean()), annual_sharpe(unseen.returns)
    if mean <= ALARM_MEAN and ratio <= ALARM_SHARPE:
        return ""
    return (f"ALARM: {mean:+.2%} a day at a Sharpe ratio of {ratio:.1f} is too good, probably a fault in data or"
            " program. It needs a second confirmation, which this version does not take. ")


def summary_of(gates: Sequence[Gate], source: str, alarm: str) -> str:
    """The answer in one paragraph: locked or not, what failed, what would have to change, and what a pass is worth."""
    failed, waits = ([g for g in gates if g.result == word] for word in (FAIL, WAIT))
    if not failed and not waits and source == REAL_SOURCE and not alarm:
        head = f"All {len(gates)} gates passed."
    else:
        head = f"LOCKED, {len(failed)} of {len(gates)} failed"
        head += f", {len(waits)} not judged yet." if waits else "."
        if not failed and not waits and alarm:
            head = "LOCKED. All gates passed, but the result is too good to be believed."
        elif not failed and not waits:
            head = f"LOCKED. All gates passed, but on {source} candles, which never unlock the exchange."
    todo = " ".join(f"{g.id} {g.text}" if g.margin is None else f"{g.id} {g.name}: needs {g.needed}, is {g.actual}."
                    for g in failed)
    return (f"{alarm}{head} {todo} Even a pass is no promise: of strategies as good as the best we tested, 1 in 3 lost"
            " money in the next two months; expect about three quarters of the tested profit.").replace("  ", " ")


def _payload(job: GateJob, gates: Sequence[Gate], shown: Sequence[tuple[str, float | None]],
             windows: Sequence[Window], size: float) -> str:
    """Everything the answer rests on, as canonical text; no time, no install."""
    ends = {m.pair: [int(s.opened[0]), int(s.closed[-1])] for m, s in job.candles if len(s)}
    return canonical({
        "gates": {g.id: asdict(g) for g in gates}, "shown": dict(shown), "windows": [asdict(w) for w in windows],
        "size": size, "attempt": job.attempts, "source": job.source, "config": config_hash(job.settings),
        "sets": [asdict(p) for p in job.sets], "data": ends, "hashes": dict(job.hashes), "self_test": job.self_test_id,
        "fees": {m.pair: [m.maker_fee, m.taker_fee] for m, _ in job.candles}, "seed": job.settings.gates.seed,
        "version": __version__,
    })


def _evaluation(job: GateJob, gates: tuple[Gate, ...], windows: tuple[Window, ...], unseen: Unseen | None,
                size: float) -> Evaluation:
    shown = shown_figures(unseen, job.attempts) if unseen is not None else ()
    alarm = _alarm(unseen) if unseen is not None else ""
    span = (windows[0].test_from_ms, windows[-1].test_to_ms) if windows else (0, 0)
    return Evaluation(gates, shown, windows, summary_of(gates, job.source, alarm), job.attempts, size, *span,
                      _payload(job, gates, shown, windows, size), job.source, alarm.strip())


def unseen_span(job: GateJob) -> tuple[int, int]:
    """First and last moment of the unseen days that an evaluation would look at; (0, 0) if there are too few."""
    windows = windows_of(decision_candles(job.candles, job.settings), job.settings.gates)
    is_enough = len(windows) >= job.settings.gates.min_windows
    return (windows[0].test_from_ms, windows[-1].test_to_ms) if is_enough else (0, 0)


def _part(on_progress: Progress, start: float, end: float) -> Progress:
    """Progress of one part of the whole, in thousandths."""
    return lambda done, total: on_progress(round(1000 * (start + (end - start) * done / max(1, total))), 1000)


class Tested(NamedTuple):
    """The walk on the real market, before any shuffle: what earned what, and the shuffles to make."""

    unseen: Unseen
    luck: LuckJob


def walk_real(job: GateJob, windows: tuple[Window, ...], on_progress: Progress = always) -> Tested | None:
    """Train, choose and test on the market as it was; None if cancelled."""
    walk_job = WalkJob(decision_candles(job.candles, job.settings), job.settings, job.sets, job.peek)
    past = past_of(walk_job, windows, (walk_job.candles,), _part(on_progress, 0.0, 0.4))
    if past is None:
        return None
    table = later_table(walk_job, windows, (walk_job.candles,))
    done = walk(table, past, windows, job.settings, _part(on_progress, 0.4, 1.0), is_stressed=True)
    if done is None:
        return None
    luck = LuckJob(walk_job, windows, past, job.settings.gates.seed, ())
    return Tested(unseen_of(done, walk_job.candles), luck)


def cheap_gates(job: GateJob, tested: Tested) -> tuple[Gate, ...]:
    """G1 and G3 to G6: what can be said without shuffling."""
    unseen, candles = tested.unseen, tested.luck.walk.candles
    return (gate_money(job, unseen), gate_trips(job, unseen), gate_stretch(job, unseen), gate_alive(job, unseen),
            gate_kinds(job, unseen, candles))


ALONE = Crew()


def evaluate(job: GateJob, on_progress: Progress = always, crew: Crew = ALONE) -> Evaluation | None:
    """All gates on the job's candles; None if cancelled. The same job gives the same payload with any crew."""
    candles = decision_candles(job.candles, job.settings)
    windows = windows_of(candles, job.settings.gates)
    data = gate_data(job, candles, windows)
    if len(windows) < job.settings.gates.min_windows:
        rest = tuple(waiting(name, "There is not enough history.") for name in GATE_NAMES if name not in ("G0", "G9"))
        return _evaluation(job, (data, *rest, gate_self_test(job)), (), None, 0.0)
    tested = walk_real(job, windows, _part(on_progress, 0.0, 0.1))
    if tested is None:
        return None
    unseen, plan, real = tested.unseen, luck_plan(job.settings.gates, job.attempts), sharpe(tested.unseen.returns)
    luck = try_luck(tested.luck, real, plan, _part(on_progress, 0.1, 1.0), crew)
    if luck is None:
        return None
    on_progress(1000, 1000)
    money, trips, stretch, alive, kinds = cheap_gates(job, tested)
    size, safe = gate_size(job, unseen)
    gates = (data, money, gate_luck(luck, real, job.attempts), trips, stretch, alive, kinds, size,
             gate_paper(job, unseen), gate_self_test(job))
    return _evaluation(job, gates, unseen.windows, unseen, safe)


def _window_json(window: Window) -> dict[str, object]:
    return {
        "number": window.number, "train_from": _iso(window.train_from_ms), "train_to": _iso(window.train_to_ms),
        "test_from": _iso(window.test_from_ms), "test_to": _iso(window.test_to_ms), "chosen": window.chosen,
        "train_sharpe": window.train_sharpe, "result": window.result, "round_trips": window.round_trips,
    }


def evaluation_json(evaluation: Evaluation) -> dict[str, object]:
    """The evaluation as plain values for a JSON file."""
    gates = {g.id: {"name": g.name, "result": g.result, "needed": g.needed, "actual": g.actual, "margin": g.margin,
                    "text": g.text} for g in evaluation.gates}
    return {
        "unlocked": evaluation.is_unlocked, "summary": evaluation.summary, "attempt": evaluation.attempt,
        "gates": gates, "shown": dict(evaluation.shown), "windows": [_window_json(w) for w in evaluation.windows],
        "size": evaluation.size, "source": evaluation.source, "payload_hash": evaluation.payload_hash,
    }


# ==============================================================================
# LEDGER | is an old pass still worth anything
# pure | uses ERRORS TYPES SETTINGS CANDLES STRATEGIES PORTFOLIO GATES
# ==============================================================================

LEAST_OVERLAP = 0.5  # an earlier look at less than half of the unseen days is a look at other data
SOURCE_WORDS = types.MappingProxyType({"demo": "the demo market", "test exchange": "the test exchange"})
TIGHTER: Mapping[str, int] = types.MappingProxyType({  # which way a limit is tighter; one not named may not change
    "limits.risk_per_trade": -1, "limits.daily_loss_cap": -1, "limits.weekly_loss_cap": -1,
    "limits.cooldown_hours": 1, "limits.max_positions": -1, "limits.max_exposure": -1,
    "limits.max_asset_exposure": -1, "limits.max_group_exposure": -1, "limits.max_spread": -1,
    "limits.min_volume_24h": 1, "limits.min_confidence": 1, "limits.min_edge": 1, "limits.orders_per_minute": -1,
    "limits.orders_per_day": -1, "limits.round_trips_per_day": -1, "limits.price_collar": -1,
    "limits.daily_cap_action": 1, "gates.max_drawdown": -1, "gates.worst_day": -1, "gates.min_round_trips": 1,
})  # fmt: skip
ACTION_RANKS: Mapping[str, float] = types.MappingProxyType({"hold": 0.0, "close": 1.0})
CUT_AT = "\n# SYSTEM | "
METHOD_BEGINS, METHOD_ENDS = "\n# ERRORS | ", "\n# LEDGER | "
NO_ROW = "The gates have not been evaluated yet."
UNREADABLE = "The stored evaluation cannot be read. Evaluate again."
NO_KEY = "The signing key of this installation, install.key, is missing or damaged."
FORGED = "The stored evaluation was edited, or another installation signed it. Evaluate again."
BROKEN = "The chain of evaluations and attempts is broken: the database is damaged or was edited."
CUT_OFF = "The ledger of attempts lacks the look that this evaluation took."
CLOCK_BACK = "The computer's clock is earlier than the stored evaluation. Set the clock."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Link(NamedTuple):
    """A stored row of a chain; `hash` covers the row and the hash of the row before it, "" before the first."""

    time_ms: int
    payload: str
    prev_hash: str
    hash: str


def linked(prev_hash: str, time_ms: int, payload: str) -> Link:
    """The row that follows the one with this hash."""
    return Link(time_ms, payload, prev_hash, _digest(f"{prev_hash}\n{time_ms}\n{payload}"))


def is_chain_whole(links: Iterable[Link]) -> bool:
    """True if every row, oldest first, is as it was written and follows the one before it."""
    before = ""
    for link in links:
        if link != linked(before, link.time_ms, link.payload):
            return False
        before = link.hash
    return True


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One look at unseen days: what was tried, on which data, over which days, and when."""

    config_hash: str
    data_hash: str
    unseen_from_ms: int
    unseen_to_ms: int
    time_ms: int


def _as_int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a whole number is missing")
    return value


def _as_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError("a number is missing")
    return value


def _as_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is missing")
    return value


def read_attempts(links: Iterable[Link]) -> tuple[AttemptRow, ...]:
    """The looks of a chain; DataError if one cannot be read, for a look that is lost would lower the bar."""
    rows = []
    for link in links:
        try:
            row = json.loads(link.payload)
            tried, data = _as_text(row["config_hash"]), _as_text(row["data_hash"])
            span = _as_int(row["unseen_from_ms"]), _as_int(row["unseen_to_ms"])
            rows.append(AttemptRow(tried, data, *span, link.time_ms))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError("the ledger of attempts is damaged: put back a backup of the database") from None
    return tuple(rows)


def seen_share(spans: Iterable[tuple[int, int]], from_ms: int, to_ms: int) -> float:
    """The share of a time that at least one of the spans covers, 0 to 1."""
    seen, reached = 0, from_ms
    for start, end in sorted(spans):
        start, end = max(start, reached), min(end, to_ms)
        if end > start:
            seen, reached = seen + end - start, end
    return seen / (to_ms - from_ms) if to_ms > from_ms else 0.0


def attempt_number(rows: Iterable[AttemptRow], config_hash: str, unseen_from_ms: int, unseen_to_ms: int) -> int:
    """How many configurations have looked at these unseen days, this one included; each counts by its share of them.

    A configuration that saw less than half of them does not count; at half, it counts half.
    """
    spans: dict[str, list[tuple[int, int]]] = {}
    for row in rows:
        spans.setdefault(row.config_hash, []).append((row.unseen_from_ms, row.unseen_to_ms))
    shares = {name: seen_share(held, unseen_from_ms, unseen_to_ms) for name, held in spans.items()}
    counted = {name: share for name, share in shares.items() if share >= LEAST_OVERLAP}
    total = sum(sorted(counted.values())) + (config_hash not in counted)
    return max(1, math.ceil(total - 1e-9))


def is_known_look(rows: Iterable[AttemptRow], look: AttemptRow) -> bool:
    """True if the ledger has this look already, whenever it was."""
    return any(replace(row, time_ms=look.time_ms) == look for row in rows)


def pure_source(program: str) -> str:
    """The text of the pure sections of the program's source, lines ended alike; "" if they cannot be told."""
    text = program.replace("\r\n", "\n")
    return text.partition(CUT_AT)[0] if text.count(CUT_AT) == 1 else ""


def code_hash(program: str) -> str:
    """SHA-256 of the pure sections, which decide what is traded; "" if they cannot be told, which locks."""
    text = pure_source(program)
    return _digest(text) if text else ""


def strategies_hash(sets: Iterable[StrategyParams]) -> str:
    """SHA-256 of the fixed list of parameter sets."""
    return _digest(canonical([asdict(params) for params in sets]))


def method_hash(program: str, sets: Iterable[StrategyParams]) -> str:
    """SHA-256 of what a self-test measures: the sections up to the gates, list of sets; "" if it cannot be told."""
    text = program.replace("\r\n", "\n")
    if (text.count(METHOD_BEGINS), text.count(METHOD_ENDS)) != (1, 1):
        return ""
    return _digest(text.partition(METHOD_BEGINS)[2].partition(METHOD_ENDS)[0] + strategies_hash(sets))


def configuration_hash(settings: Settings, code: str, strategies: str) -> str:
    """One hash for all that decides a trade: settings, list of sets and code; what an attempt tries."""
    return _digest("\n".join((config_hash(settings), strategies, code)))


def series_hash(series: Series) -> str:
    """SHA-256 of candles, whatever file they came from."""
    whole = hashlib.sha256(f"{series.seconds}".encode() + series.opened.astype("<i8").tobytes())
    for column in (series.open, series.high, series.low, series.close, series.volume):
        whole.update(column.astype("<f8").tobytes())
    return whole.hexdigest()


def with_hashes(job: GateJob) -> GateJob:
    """The job with a hash for each market's data; one that came with the files stays."""
    known = dict(job.hashes)
    return replace(job, hashes=tuple((m.pair, known.get(m.pair) or series_hash(s)) for m, s in job.candles))


def look_of(job: GateJob, code: str, span: tuple[int, int], now_ms: int) -> AttemptRow:
    """The look at the unseen days `span` that an evaluation of this job takes."""
    tried = configuration_hash(job.settings, code, strategies_hash(job.sets))
    return AttemptRow(tried, _digest(canonical(with_hashes(job).hashes)), *span, now_ms)


def limit_values(settings: Settings) -> dict[str, float | str]:
    """The owner's limits and thresholds one by one, under `group.name`."""
    groups = (("limits", asdict(settings.limits)), ("gates", asdict(settings.gates)))
    return {f"{group}.{name}": value for group, values in groups for name, value in values.items()}


def rest_hash(settings: Settings) -> str:
    """SHA-256 of what decides a trade beyond the limits and the list of markets."""
    schedule = replace(settings.schedule, pairs=())
    return config_hash(replace(settings, limits=RiskLimits(), gates=GateLimits(), schedule=schedule))


@dataclass(frozen=True, slots=True)
class GatePass:
    """What one evaluation found, and all that it was found for; an answer, whether it passed or not."""

    gates: tuple[Gate, ...]
    code_hash: str
    config_hash: str
    strategies_hash: str
    rest_hash: str
    evaluation_hash: str
    limits: tuple[tuple[str, float | str], ...]
    data: tuple[tuple[str, str, int, int], ...]  # pair, SHA-256, first opening and last closing in ms
    fees: tuple[tuple[str, float, float], ...]  # pair, maker, taker
    unseen_from_ms: int
    unseen_to_ms: int
    attempt: int
    seed: int
    self_test_id: str
    size: float
    source: str
    alarm: str = ""


def _data_rows(job: GateJob) -> tuple[tuple[str, str, int, int], ...]:
    hashes = dict(with_hashes(job).hashes)
    return tuple((m.pair, hashes[m.pair], int(s.opened[0]), int(s.closed[-1])) for m, s in job.candles if len(s))


def gate_pass(job: GateJob, evaluation: Evaluation, code: str) -> GatePass:
    """The row to keep of an evaluation of this job by this code."""
    limits = limit_values(job.settings)
    return GatePass(
        gates=evaluation.gates, code_hash=code, config_hash=config_hash(job.settings),
        strategies_hash=strategies_hash(job.sets), rest_hash=rest_hash(job.settings),
        evaluation_hash=evaluation.payload_hash, limits=tuple(sorted(limits.items())), data=_data_rows(job),
        fees=tuple((m.pair, float(m.maker_fee), float(m.taker_fee)) for m, _ in job.candles),
        unseen_from_ms=evaluation.unseen_from_ms, unseen_to_ms=evaluation.unseen_to_ms, attempt=evaluation.attempt,
        seed=job.settings.gates.seed, self_test_id=job.self_test_id, size=float(evaluation.size),
        source=job.source, alarm=evaluation.alarm,
    )


def _read_gate(row: Mapping[str, object]) -> Gate:
    margin = None if row["margin"] is None else _as_number(row["margin"])
    texts = {name: _as_text(row[name]) for name in ("id", "name", "result", "needed", "actual", "text")}
    return Gate(**texts, margin=margin)


def _limit_value(value: object) -> float | str:
    return value if isinstance(value, str) else _as_number(value)


def _read_fields(row: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The plain fields of a pass by their kind."""
    hashes = ("code_hash", "config_hash", "strategies_hash", "rest_hash", "evaluation_hash")
    for name in (*hashes, "self_test_id", "source", "alarm"):
        yield name, _as_text(row[name])
    for name in ("unseen_from_ms", "unseen_to_ms", "attempt", "seed"):
        yield name, _as_int(row[name])
    yield "size", _as_number(row["size"])


def read_pass(payload: str) -> GatePass | None:
    """The pass that a payload tells; None if anything in it is missing, of the wrong kind or too much."""
    try:
        row = json.loads(payload)
        held = GatePass(
            gates=tuple(map(_read_gate, row["gates"])),
            limits=tuple((_as_text(name), _limit_value(value)) for name, value in row["limits"]),
            data=tuple((_as_text(p), _as_text(h), _as_int(a), _as_int(b)) for p, h, a, b in row["data"]),
            fees=tuple((_as_text(p), _as_number(m), _as_number(t)) for p, m, t in row["fees"]),
            **dict(_read_fields(row)),  # type: ignore[arg-type]
        )
        return held if canonical(held) == payload else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def sign(payload: str, key: Credentials) -> str:
    """The HMAC-SHA-256 of a text under the key of this installation, as hex."""
    return hmac.new(key.secret.encode(), payload.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


class Seal(NamedTuple):
    """A pass as it is stored: its canonical text, the newest attempt when it was made, the HMAC over all of it."""

    payload: str
    attempts_hash: str
    hmac: str


def _signature(seal: Seal, link: Link, key: Credentials) -> str:
    return sign(canonical([link.prev_hash, link.time_ms, seal.attempts_hash, seal.payload]), key)


def sealed(payload: str, prev_hash: str, time_ms: int, attempts_hash: str, key: Credentials) -> str:
    """The text to store for a pass that follows the row with `prev_hash`."""
    seal = Seal(payload, attempts_hash, "")
    signature = _signature(seal, Link(time_ms, "", prev_hash, ""), key)
    return canonical(seal._replace(hmac=signature)._asdict())


def read_seal(link: Link) -> Seal | None:
    """The stored pass with its signature, unchecked; None if the row does not tell one."""
    try:
        row = json.loads(link.payload)
        return Seal(*(_as_text(row[name]) for name in Seal._fields))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def is_signed(link: Link, key: Credentials) -> bool:
    """True if this installation has signed the row for this place in its chain, as it is."""
    seal = read_seal(link)
    return seal is not None and bool(key) and hmac.compare_digest(seal.hmac, _signature(seal, link, key))


LEAST_PROCESSED = 0.95  # of a day's decision candles, of the market with the fewest


class PaperMark(NamedTuple):
    """From when on PAPER ran which configuration; "" where its set was not chosen by training."""

    time_ms: int
    configuration: str


class PaperFill(NamedTuple):
    """A fill of PAPER with the limit and the stop of its order."""

    time_ms: int
    kind: OrderKind
    side: Side
    price: float
    volume: float
    limit: float
    stop: float


class PaperFacts(NamedTuple):
    """What the audit has of PAPER: decided candles by (pair, timeframe in s, UTC day), each day's return, fills."""

    marks: tuple[PaperMark, ...]
    decided: Mapping[tuple[str, int, int], int]
    results: Mapping[int, float]
    fills: tuple[PaperFill, ...]


def is_whole_day(marks: Sequence[PaperMark], configuration: str, day: int) -> bool:
    """True if nothing but this configuration ran on a UTC day, from its first moment on."""
    before = [mark for mark in marks if mark.time_ms <= day * DAY_MS]
    during = [mark for mark in marks if day * DAY_MS < mark.time_ms < (day + 1) * DAY_MS]
    return bool(configuration and before) and {m.configuration for m in (before[-1], *during)} == {configuration}


def processed_share(decided: Mapping[tuple[str, int, int], int], schedule: Schedule, day: int) -> float:
    """The share of a day's decision candles that were processed, of the market and timeframe with the fewest."""
    keys = itertools.product(schedule.pairs, schedule.timeframes)
    return min((decided.get((pair, s, day), 0) * s * 1000 / DAY_MS for pair, s in keys), default=0.0)


def excess_cost(fill: PaperFill, costs: Costs) -> float:
    """What a fill cost beyond what the backtest assumes, as a fraction of the price it was decided at.

    That is the limit of a resting entry, the stop of a protection, and for orders that take the quote, which their
    limit tells.
    """
    quote = {OrderKind.ENTRY: fill.limit, OrderKind.PROTECTION: fill.stop, OrderKind.EXIT: fill.limit /
             (1 - costs.exit_bound)}.get(fill.kind, fill.limit / (1 + 2 * costs.slippage))
    lost = (fill.price - quote) / quote * (1 if fill.side is Side.BUY else -1)
    return lost - (0.0 if fill.kind is OrderKind.ENTRY else costs.slippage)


def is_within_costs(fills: Iterable[PaperFill], costs: Costs) -> bool:
    """True if fills on average cost no more than the stress of G1 adds; False if that cannot be told."""
    rows = [(excess_cost(f, costs), f.price * f.volume) for f in fills if min(f.price, f.volume, f.limit, f.stop) > 0]
    total = sum(value for _, value in rows)
    return total > 0 and sum(c * value for c, value in rows) <= max(STRESS_PER_SIDE, costs.slippage) * total


def paper_days(facts: PaperFacts, settings: Settings, configuration: str) -> PaperRecord:
    """The newest whole days of PAPER with this configuration, no more than G8 asks for.

    Since the first of them any other day counts with its loss and not with its gain, so none can be dropped by
    stopping the bot.
    """
    days = [day for day in sorted(facts.results) if is_whole_day(facts.marks, configuration, day)
            and processed_share(facts.decided, settings.schedule, day) >= LEAST_PROCESSED]
    counted = days[-settings.gates.paper_days:]
    fills = [f for f in facts.fills if f.time_ms // DAY_MS in set(counted)]
    others = sum(min(0.0, result) for day, result in facts.results.items()
                 if counted and day > counted[0] and day not in counted)
    return PaperRecord(len(counted), sum(facts.results[day] for day in counted) + others,
                       is_within_costs(fills, settings.costs))


@dataclass(frozen=True, slots=True)
class LiveFacts:
    """What holds now, for comparison with a stored pass; whatever is not known here locks."""

    settings: Settings
    mode: Mode
    now_ms: int
    key: Credentials
    code_hash: str = ""
    fees: tuple[tuple[str, float, float], ...] = ()  # pair, maker, taker as the account has them
    is_chain_whole: bool = False
    attempt_hashes: frozenset[str] = frozenset()


def _place_reasons(now: LiveFacts) -> Iterator[str]:
    if now.mode not in (Mode.PAPER, Mode.LIVE):
        yield f"This is {now.mode.value.upper()}: only PAPER on Luno itself can lead to LIVE."
    if now.settings.is_test_exchange:
        yield "This is a TEST EXCHANGE: only Luno itself can lead to LIVE."


def _seal_reasons(link: Link, seal: Seal, now: LiveFacts) -> Iterator[str]:
    if not now.key:
        yield NO_KEY
    elif not is_signed(link, now.key):
        yield FORGED
    if not now.is_chain_whole:
        yield BROKEN
    elif seal.attempts_hash not in now.attempt_hashes:
        yield CUT_OFF
    if now.now_ms < link.time_ms:
        yield CLOCK_BACK


def _gate_reasons(held: GatePass, least_size: float) -> Iterator[str]:
    passed = {g.id for g in held.gates if g.result == PASS} - {g.id for g in held.gates if g.result != PASS}
    names = {g.id: f"{g.id} {g.name}" for g in held.gates}
    missed = [names.get(name, f"{name} (missing)") for name in sorted({*GATE_NAMES, *names} - passed)]
    if missed:
        yield f"{len(missed)} of {len(GATE_NAMES)} gates did not pass: {', '.join(missed)}."
    if not least_size <= held.size <= 1 or held.attempt < 1 or not held.self_test_id:
        yield "The stored evaluation has no safe size, no attempt number or no self-test of the gates."
    if held.alarm:
        yield held.alarm
    if held.source != REAL_SOURCE:
        yield f"It was evaluated on {SOURCE_WORDS.get(held.source, 'recorded or imported candles')}, not on Luno's own."


def _age_reasons(time_ms: int, held: GatePass, now: LiveFacts) -> Iterator[str]:
    limits = now.settings.gates
    age, unseen = ((now.now_ms - t) / DAY_MS for t in (time_ms, held.unseen_to_ms))
    if age > limits.valid_days:
        yield f"The evaluation is {math.floor(age)} days old; it holds for {limits.valid_days}. Evaluate again."
    if unseen > limits.max_unseen_age_days:
        words = f"allowed is {limits.max_unseen_age_days}. Evaluate again."
        yield f"The last unseen candle is {math.floor(unseen)} days old; {words}"
    if not 0 < held.unseen_from_ms < held.unseen_to_ms <= now.now_ms:
        yield "The stored evaluation has no unseen days that lie in the past."


def _level(value: float | str | None) -> float:
    """A limit as a number that can be compared; NaN if it cannot."""
    return ACTION_RANKS.get(value, math.nan) if isinstance(value, str) else math.nan if value is None else value


def is_tightened(name: str, then: float | str | None, now: float | str | None) -> bool:
    """True if a limit is as it was or tighter; False for one that is missing or has no known direction."""
    if then is None or now is None or name not in TIGHTER:
        return then is not None and then == now
    if isinstance(then, str) is not isinstance(now, str):
        return False
    return (_level(now) - _level(then)) * TIGHTER[name] >= 0


def _limit_reasons(held: GatePass, now: LiveFacts) -> Iterator[str]:
    """A sentence for each limit that is not what it was, or tighter."""
    then, today = dict(held.limits), limit_values(now.settings)
    names = {spec.target: PREFIX + spec.name for spec in FIELDS}
    for name in sorted({*then, *today}):
        if not is_tightened(name, then.get(name), today.get(name)):
            yield f"{names.get(name, name)} is {today.get(name, 'gone')}; evaluated was {then.get(name, 'nothing')}."


def _change_reasons(held: GatePass, now: LiveFacts) -> Iterator[str]:
    if not now.code_hash or held.code_hash != now.code_hash:
        yield "The code that decides has changed since the evaluation."
    if held.strategies_hash != strategies_hash(parameter_sets()):
        yield "The list of strategies has changed since the evaluation."
    pairs, evaluated = sorted(now.settings.schedule.pairs), sorted(pair for pair, *_ in held.data)
    if not pairs or pairs != evaluated or pairs != sorted(pair for pair, *_ in held.fees):
        yield "The markets have changed since the evaluation."
    if held.rest_hash != rest_hash(now.settings):
        yield "Timeframes, costs or other settings have changed since the evaluation."
    yield from _limit_reasons(held, now)


def _fee_reasons(held: GatePass, now: LiveFacts) -> Iterator[str]:
    today = {pair: fees for pair, *fees in now.fees}
    unknown = sorted({p for p, *_ in held.fees} - set(today))
    if unknown or not held.fees:
        yield f"The account's fees are not known for {', '.join(unknown) or 'any market'}."
    for pair, *then in held.fees:
        if not all(new <= old + 1e-12 for new, old in zip(today.get(pair, then), then, strict=True)):
            yield f"The fees of {pair} are higher than those evaluated."


def lock_reasons(row: Link | None, now: LiveFacts) -> tuple[str, ...]:
    """Every reason why LIVE is locked, the nearest first; empty only if a stored pass holds for all that is now."""
    place = tuple(_place_reasons(now))
    if row is None:
        return (*place, NO_ROW)
    seal = read_seal(row)
    held = read_pass(seal.payload) if seal is not None else None
    if seal is None or held is None:
        return (*place, UNREADABLE)
    return (
        *place, *_seal_reasons(row, seal, now), *_gate_reasons(held, now.settings.gates.min_size),
        *_age_reasons(row.time_ms, held, now), *_change_reasons(held, now), *_fee_reasons(held, now),
    )


def _is_a_study(link: Link, key: Credentials) -> bool:
    """True if we signed this row and it says itself that it is not about Luno's own candles."""
    seal = read_seal(link)
    held = read_pass(seal.payload) if seal is not None and is_signed(link, key) else None
    return held is not None and held.source != REAL_SOURCE


def row_that_counts(links: Sequence[Link], key: Credentials) -> Link | None:
    """The newest row; studies of other candles give way, and count only where there is nothing else."""
    return next((link for link in reversed(links) if not _is_a_study(link, key)), links[-1] if links else None)


def safe_share(gate_rows: Sequence[Link], key: Credentials) -> float:
    """The share of the tested size that the pass in force found safe (its G7); 0 without one."""
    row = row_that_counts(gate_rows, key)
    seal = read_seal(row) if row is not None and is_signed(row, key) else None
    held = read_pass(seal.payload) if seal is not None else None
    return held.size if held is not None and 0 < held.size <= 1 else 0.0


def live_locks(gate_rows: Sequence[Link], attempts: Sequence[Link], now: LiveFacts) -> tuple[str, ...]:
    """Every reason why LIVE is locked, from the two chains as they are stored."""
    is_whole = is_chain_whole(gate_rows) and is_chain_whole(attempts)
    facts = replace(now, is_chain_whole=is_whole, attempt_hashes=frozenset(link.hash for link in attempts))
    return lock_reasons(row_that_counts(gate_rows, now.key), facts)


class LiveOffer(NamedTuple):
    """What the owner is asked before LIVE: what is in the way, what it would trade with, what only he can know."""

    problems: tuple[str, ...]
    facts: tuple[tuple[str, str], ...] = ()
    promises: tuple[str, ...] = ()


LIVE_WORD = "LIVE"
PROMISES = (
    "At Luno I ticked single permissions for this key. Send, Withdrawals, Addresses and Beneficiaries are not ticked.",
    "I know that a stop can be jumped over: a loss can be larger than the risk per trade.",
    "I know that the gates promise nothing: of strategies as good as the best tested, 1 in 3 lost money in two months.",
)


def live_words(settings: Settings, first_trips: int) -> tuple[tuple[str, str], ...]:
    """The limits that LIVE would trade under, as the dialog shows them."""
    limits, counter = settings.limits, settings.schedule.counter
    return (
        ("Markets", ", ".join(settings.schedule.pairs)), ("Counter", counter),
        ("Risk per trade", f"{limits.risk_per_trade:.2%} of equity"),
        ("Loss caps", f"{limits.daily_loss_cap:.1%} a day, {limits.weekly_loss_cap:.1%} a week"),
        ("Exposure", f"{limits.max_exposure:.0%} in all, {limits.max_asset_exposure:.0%} in one asset,"
                     f" {limits.max_positions} positions"),
        ("First orders", f"the smallest Luno takes, for {first_trips} round trips; then larger step by step"),
    )


# ==============================================================================
# SELFTEST | how often are the gates themselves wrong
# pure | uses ERRORS TYPES SETTINGS CANDLES PORTFOLIO METRICS BACKTEST WALK GATES
# ==============================================================================

# Markets are made whose truth is known, and the gates are asked what they make of them.
#
#   kind  truth                                                                     the gates should
#   A0    no edge: volatility in waves, heavy tails, the mean return of a bar is 0    stay locked
#   A1    no edge: recorded bars in blocks of about 20 days, each mirrored by a coin  stay locked
#   A2    no edge, but a drift of 60 % a year: to hold pays, to time does not         stay locked
#   A3    no edge, but one phase of 90 unseen days that climbs 1 % a day              stay locked
#   A4    an edge that dies half-way through the unseen days                          mostly stay locked
#   A5    as A0, but the engine looks ahead                                           stay locked
#   E15   an edge: a hidden drift of 15 % of a bar's volatility; any E01 to E99       unlock
#   R     as A0, tried again and again with other settings until it unlocks           stay locked
#
# A bar without edge has the mean return 0 in prices, not in logarithms, whatever is known before it. In A0 its path is
# a Brownian motion whose volatility is drawn first, so no order at any price inside it gains on average either. A1 has
# the insides of real bars: on average 0.08 % is lost after a shallow touch of a limit, 0.16 % won after one at 4 %.
TRIAL_BAR_S = SELF_TESTED_S
TRIAL_BARS_A_DAY = 6
TRIAL_START_MS = 1_577_836_800_000  # Wednesday 2020-01-01 00:00 UTC
TRIAL_PAIRS = ("ETHZAR", "LTCZAR", "XBTZAR")
TRIAL_PRICE, TRIAL_PRICE_SCALE, TRIAL_VOLUME_SCALE = 100_000.0, 4, 8  # room to fall and to rise a thousandfold
TRIAL_TURNOVER = 1e9  # counter a bar: no order of this desk is ever too large
HIGHEST_VOLATILITY = 0.08  # of one bar; keeps every price above 0
HIGHEST_MOVE = 0.5
BULL_DRIFT_A_YEAR, LUCKY_DAYS, LUCKY_DRIFT_A_DAY = 0.60, 90, 0.01
DYING_STRENGTH = 0.20
BLOCK_DAYS = 20
LEAST_RECORDED_DAYS = 180
MIRROR_LIMIT = 0.9  # a recorded bar that moved further cannot be mirrored
REAL_FEES, NO_FEES = (0.004, 0.006), (0.0, 0.0)  # maker and taker of the entry tier
GATES_OF_TEST = ("G1", "G2", "G3", "G4", "G5", "G6")
RETRY_EDGES = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
RETRY_CONFIDENCES = (0.45, 0.55, 0.60, 0.65)


class MarketKind(NamedTuple):
    """A kind of made market: how many seeds a full test has, and whether it is also tried without costs."""

    name: str
    seeds: int
    is_tried_free: bool


KINDS = (
    MarketKind("A0", 1000, True), MarketKind("A1", 1000, True), MarketKind("A2", 400, False),
    MarketKind("A3", 400, False), MarketKind("A4", 400, False), MarketKind("A5", 100, True),
    MarketKind("E", 200, False), MarketKind("R", 200, False),
)  # fmt: skip
DEFAULT_KINDS = ("A0", "A1", "A2", "A3", "A4", "A5", "E12", "E15", "R")
_KIND = re.compile(r"(A[0-5]|R|E(?=[0-9]{2}))([0-9]{2})?")


@dataclass(frozen=True, slots=True)
class MarketModel:
    """How made markets behave; volatilities of one bar as fractions, times in days."""

    days: int = 1150
    unseen_days: int = 720
    bar_volatility: float = 0.015
    correlation: float = 0.6
    wave: float = 0.4  # standard deviation of the logarithm of volatility
    wave_half_life: float = 10.0
    freedom: int = 6  # degrees of freedom of the tails
    drift_half_life: float = 10.0
    drift_correlation: float = 0.0  # of the hidden drifts of two pairs; 1 is one drift for all


@dataclass(frozen=True, slots=True)
class TrialCase:
    """One market to make and judge: kind, seed, strength of a planted edge, maker and taker fee."""

    kind: str
    seed: int
    strength: float = 0.0
    fees: tuple[float, float] = REAL_FEES
    model: MarketModel = field(default_factory=MarketModel)

    @property
    def key(self) -> str:
        """What tells this case from all others in a file of rows."""
        return f"{self.kind} {self.strength:g} {self.fees[0]:g},{self.fees[1]:g} {self.seed}"


@dataclass(frozen=True, slots=True)
class RecordedBars:
    """Recorded four-hour bars as moves from the close before: (open, high, low, close) x bars x pairs."""

    moves: Floats
    digest: str  # SHA-256 of the moves

    @property
    def name(self) -> str:
        """A short name for these bars, the same for the same bars."""
        return self.digest[:12]


def recorded_bars(recorded: Sequence[Series]) -> RecordedBars:
    """The first three recorded markets as bars to draw from; DataError if there are fewer, or too few common bars."""
    if len(recorded) < len(TRIAL_PAIRS):
        raise DataError(f"the self-test draws from {len(TRIAL_PAIRS)} recorded markets; there are {len(recorded)}")
    slow = [resample(s, TRIAL_BAR_S) for s in recorded[: len(TRIAL_PAIRS)]]
    common = slow[0].opened
    for other in slow[1:]:
        common = np.intersect1d(common, other.opened)
    if len(common) < LEAST_RECORDED_DAYS * TRIAL_BARS_A_DAY:
        raise DataError(f"the recorded markets share {len(common) // TRIAL_BARS_A_DAY} days; the self-test needs"
                        f" {LEAST_RECORDED_DAYS}")
    rows = [np.searchsorted(s.opened, common) for s in slow]
    bars = [np.stack((s.open[r], s.high[r], s.low[r], s.close[r])) for s, r in zip(slow, rows, strict=True)]
    prices = np.stack(bars, axis=2)
    moves = prices[:, 1:] / prices[3:, :-1] - 1
    is_sound = (np.diff(common) == TRIAL_BAR_S * 1000) & (np.abs(moves) < MIRROR_LIMIT).all(axis=(0, 2))
    kept = np.ascontiguousarray(moves[:, is_sound])
    return RecordedBars(kept, hashlib.sha256(kept.tobytes()).hexdigest())


def _waves(shocks: Floats, half_life: float) -> Floats:
    """Columns of independent shocks as columns that remember: AR(1) of the same variance, from its first row on."""
    decay = float(0.5 ** (1 / half_life))
    total = shocks * math.sqrt(1 - decay * decay)
    total[0] = shocks[0]
    reach = 1
    while reach < len(total):  # sums of 1, 2, 4, ... decayed shocks
        later = decay**reach * total[:-reach]
        total[reach:] += later
        reach *= 2
    return total


def _correlated(rng: np.random.Generator, bars: int, correlation: float) -> Floats:
    """Standard normal columns, one for each pair, with this correlation."""
    own, common = rng.standard_normal((bars, len(TRIAL_PAIRS))), rng.standard_normal((bars, 1))
    return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own


def _volatility(rng: np.random.Generator, model: MarketModel, bars: int) -> Floats:
    """The volatility of each bar, one column: waves of several days, and tails of Student's t."""
    waves = _waves(rng.standard_normal((bars, 1)), model.wave_half_life * TRIAL_BARS_A_DAY)
    tails = np.sqrt((model.freedom - 2) / rng.chisquare(model.freedom, (bars, 1)))
    sigma = model.bar_volatility * np.exp(model.wave * waves - model.wave**2) * tails
    return np.asarray(np.minimum(sigma, HIGHEST_VOLATILITY), dtype=np.float64)


def _planted(rng: np.random.Generator, case: TrialCase, bars: int) -> Floats:
    """The hidden drift of each bar and pair: its deviation is a fraction of the usual volatility of a bar."""
    model = case.model
    shocks = _correlated(rng, bars, model.drift_correlation)
    drift = case.strength * model.bar_volatility * _waves(shocks, model.drift_half_life * TRIAL_BARS_A_DAY)
    if case.kind == "A4":
        drift[bars - model.unseen_days * TRIAL_BARS_A_DAY // 2 :] = 0.0
    return drift


def _drift(rng: np.random.Generator, case: TrialCase, bars: int) -> Floats:
    """The mean return of each bar and pair that the kind has beyond chance."""
    drift = np.zeros((bars, len(TRIAL_PAIRS)))
    if case.kind in ("E", "A4"):
        return _planted(rng, case, bars)
    if case.kind == "A2":
        drift += BULL_DRIFT_A_YEAR / (365 * TRIAL_BARS_A_DAY)
    if case.kind == "A3":
        unseen = bars - case.model.unseen_days * TRIAL_BARS_A_DAY
        start = int(rng.integers(unseen, bars - LUCKY_DAYS * TRIAL_BARS_A_DAY + 1))
        drift[start : start + LUCKY_DAYS * TRIAL_BARS_A_DAY] = LUCKY_DRIFT_A_DAY / TRIAL_BARS_A_DAY
    return drift


def _made_moves(rng: np.random.Generator, case: TrialCase, bars: int) -> Floats:
    """Made bars as moves from the close before; high and low by the law of a Brownian bridge between open and close."""
    sigma = _volatility(rng, case.model, bars)
    move = sigma * _correlated(rng, bars, case.model.correlation) + _drift(rng, case, bars)
    move = np.clip(move, -HIGHEST_MOVE, HIGHEST_MOVE)
    reach = -2 * sigma**2 * np.log(1 - rng.random((2, *move.shape)))
    high, low = (move + np.sqrt(move**2 + reach[0])) / 2, (move - np.sqrt(move**2 + reach[1])) / 2
    return np.stack((np.zeros_like(move), high, low, move))


def _drawn_moves(rng: np.random.Generator, recorded: RecordedBars, bars: int) -> Floats:
    """Recorded bars in blocks of random place and length, each bar mirrored in all pairs where a coin says so."""
    count = recorded.moves.shape[1]
    is_start = rng.random(bars) < 1 / (BLOCK_DAYS * TRIAL_BARS_A_DAY)
    is_start[0] = True
    block = np.cumsum(is_start) - 1
    firsts, places = np.flatnonzero(is_start), rng.integers(0, count, int(block[-1]) + 1)
    rows = (places[block] + np.arange(bars) - firsts[block]) % count
    drawn = recorded.moves[:, rows]
    mirrored = -drawn[[0, 2, 1, 3]]  # what was the low is the high
    return np.where((rng.random(bars) < 0.5)[None, :, None], mirrored, drawn)


def _priced(moves: Floats) -> Series:
    """One pair's moves as candles on the grid of its market; a wide bar has a large volume."""
    closes = np.round(TRIAL_PRICE * np.cumprod(1 + moves[3]), TRIAL_PRICE_SCALE)
    before = np.concatenate(([TRIAL_PRICE], closes[:-1]))
    opens, highs, lows = (np.round(before * (1 + m), TRIAL_PRICE_SCALE) for m in moves[:3])
    width = moves[1] - moves[2]
    volumes = np.round(TRIAL_TURNOVER * (0.25 + width / width.mean()) / closes, TRIAL_VOLUME_SCALE)
    opened = TRIAL_START_MS + np.arange(len(closes), dtype=np.int64) * TRIAL_BAR_S * 1000
    tops, bottoms = np.maximum(highs, np.maximum(opens, closes)), np.minimum(lows, np.minimum(opens, closes))
    return Series(TRIAL_BAR_S, opened, opens, tops, bottoms, closes, volumes)


def _trial_market(pair: str, fees: tuple[float, float]) -> Market:
    """A market with these fees; where there are none, there is no spread either."""
    return Market(
        pair, pair[:3], pair[3:], TRIAL_PRICE_SCALE, TRIAL_VOLUME_SCALE, min_volume=10.0**-TRIAL_VOLUME_SCALE,
        max_volume=1e9, min_price=10.0**-TRIAL_PRICE_SCALE, max_price=1e12, maker_fee=fees[0], taker_fee=fees[1],
        fee_source=NO_TIER, model_spread=0.0 if fees == NO_FEES else 0.001,
    )  # fmt: skip


def self_market(case: TrialCase, recorded: RecordedBars | None = None) -> Candles:
    """Three markets of this kind and seed, the same ones each time; DataError for A1 without recorded bars."""
    rng = np.random.default_rng([case.seed, [k.name for k in KINDS].index(case.kind)])
    bars = case.model.days * TRIAL_BARS_A_DAY
    if case.kind != "A1":
        moves = _made_moves(rng, case, bars)
    elif recorded is None:
        raise DataError("kind A1 draws from recorded candles: name their folder with --data")
    else:
        moves = _drawn_moves(rng, recorded, bars)
    return tuple((_trial_market(p, case.fees), _priced(moves[:, :, i])) for i, p in enumerate(TRIAL_PAIRS))


class Trial(NamedTuple):
    """What the gates are asked about: one market, the settings, which attempt this is, whether to look ahead."""

    candles: Candles
    settings: Settings
    attempt: int
    is_peeking: bool


class TrialVerdict(NamedTuple):
    """What G1 to G6 said, "SKIP" where they were not asked; mean and deviation are of the unseen daily returns."""

    gates: tuple[tuple[str, str, float | None], ...]  # id, "PASS" "FAIL" "SKIP", value
    permutations: int
    mean: float
    deviation: float

    @property
    def is_unlocked(self) -> bool:
        """True when each of the six was asked and passed."""
        return {gate for gate, result, _ in self.gates if result == "PASS"} >= set(GATES_OF_TEST)


Judge = Callable[[Sequence[Trial]], list[TrialVerdict]]
PEEK = 0.5  # the planted fault: an entry is given half of its signal candle's move


def _trial_job(trial: Trial) -> GateJob:
    return GateJob(trial.candles, trial.settings, attempts=trial.attempt, peek=PEEK if trial.is_peeking else 0.0)


def _judged(trial: Trial, tested: Tested) -> TrialVerdict:
    """The cheap gates, and the shuffles if all of them pass."""
    job, real = _trial_job(trial), sharpe(tested.unseen.returns)
    found = [(g.id, g.result, g.margin) for g in cheap_gates(job, tested)]
    used = 0
    if all(result == PASS for _, result, _ in found):
        luck = try_luck(tested.luck, real, luck_plan(trial.settings.gates, trial.attempt), always, ALONE)
        used = luck.used if luck is not None else 0
        passes = luck is not None and luck.is_passed
        found.append(("G2", PASS if passes else FAIL, luck.p_value if luck is not None else None))
    else:
        found.append(("G2", "SKIP", None))
    returns = tested.unseen.returns
    return TrialVerdict(tuple(sorted(found)), used, float(returns.mean()), float(returns.std(ddof=1)))


def judge_trials(trials: Sequence[Trial]) -> list[TrialVerdict]:
    """G1 to G6 over made markets of the same settings, walked side by side; the shuffles last."""
    first = _trial_job(trials[0])
    runs = tuple(decision_candles(trial.candles, first.settings) for trial in trials)
    windows = windows_of(runs[0], first.settings.gates)
    job = WalkJob(runs[0], first.settings, first.sets, first.peek)
    past = past_of(job, windows, runs)
    done = None if past is None else walk(later_table(job, windows, runs), past, windows, first.settings,
                                          is_stressed=True)
    if past is None or done is None:
        return []
    return [
        _judged(trial, Tested(unseen_of(done, runs[run], run), LuckJob(
            replace(job, candles=runs[run]), windows, past.of_run(run), first.settings.gates.seed, ())))
        for run, trial in enumerate(trials)
    ]


@dataclass(frozen=True, slots=True)
class SelfTestJob:
    """Cases to judge with one configuration, whose hash goes into each row; it can be sent to a process."""

    cases: tuple[TrialCase, ...]
    settings: Settings
    config: str
    recorded: RecordedBars | None = None
    judge: Judge = judge_trials


def _trial_settings(settings: Settings, fees: tuple[float, float]) -> Settings:
    """The settings for made markets: their pairs, timeframes of whole bars, no slippage where there are no fees."""
    fitting = tuple(s for s in settings.schedule.timeframes if s % TRIAL_BAR_S == 0) or (TRIAL_BAR_S,)
    schedule = replace(settings.schedule, counter="ZAR", pairs=TRIAL_PAIRS, timeframes=fitting)
    costs = replace(settings.costs, slippage=0.0) if fees == NO_FEES else settings.costs
    return replace(settings, schedule=schedule, costs=costs)


def retries(settings: Settings) -> tuple[Settings, ...]:
    """The settings, and 27 others that an owner might try next on the same data."""
    tried = [replace(settings.limits, min_edge=e, min_confidence=c) for c in RETRY_CONFIDENCES for e in RETRY_EDGES]
    others = [limits for limits in tried if limits != settings.limits]
    most = len(RETRY_EDGES) * len(RETRY_CONFIDENCES)
    return tuple(replace(settings, limits=limits) for limits in (settings.limits, *others)[:most])


def _verdicts(cases: Sequence[TrialCase], job: SelfTestJob) -> list[list[TrialVerdict]]:
    """What the gates say of each attempt of each case, up to the first one that unlocks."""
    first, markets = cases[0], [self_market(case, job.recorded) for case in cases]
    settings = _trial_settings(job.settings, first.fees)
    verdicts: list[list[TrialVerdict]] = [[] for _ in cases]
    waiting_ = list(range(len(cases)))
    for attempt, tried in enumerate(retries(settings) if first.kind == "R" else (settings,), start=1):
        found = job.judge([Trial(markets[i], tried, attempt, first.kind == "A5") for i in waiting_])
        for place, verdict in zip(waiting_, found, strict=True):
            verdicts[place].append(verdict)
        waiting_ = [i for i in waiting_ if not verdicts[i][-1].is_unlocked]
        if not waiting_:
            break
    return verdicts


BATCHES: Mapping[str, int] = types.MappingProxyType({"E": 4, "A4": 4, "A5": 8})  # where shuffles take the time
BATCH = 24


def batches_of(cases: Iterable[TrialCase]) -> Iterator[tuple[TrialCase, ...]]:
    """Cases that can be judged side by side: of one kind, strength and fees."""
    waiting_: dict[tuple[str, float, tuple[float, float]], list[TrialCase]] = {}
    for case in cases:
        group = waiting_.setdefault((case.kind, case.strength, case.fees), [])
        group.append(case)
        if len(group) == BATCHES.get(case.kind, BATCH):
            yield tuple(group)
            group.clear()
    yield from (tuple(group) for group in waiting_.values() if group)


def _yearly_sharpe(mean: float, deviation: float) -> float | None:
    """Mean over deviation of daily returns, for a year of 365 days; None where nothing moved."""
    return mean / deviation * math.sqrt(365) if deviation > 0 else None


def _row_of_case(case: TrialCase, job: SelfTestJob, verdicts: Sequence[TrialVerdict]) -> dict[str, object]:
    """The result of one case: the gates of its last attempt, the permutations of all."""
    last = verdicts[-1]
    return {
        "kind": case.kind, "strength": case.strength, "seed": case.seed, "fees": list(case.fees), "key": case.key,
        "config": job.config, "data": job.recorded.name if case.kind == "A1" and job.recorded else "",
        "gates": {gate: {"result": result, "value": value} for gate, result, value in last.gates},
        "attempts": len(verdicts), "permutations": sum(v.permutations for v in verdicts),
        "unlocked": last.is_unlocked, "daily_mean": last.mean, "daily_deviation": last.deviation,
        "sharpe": _yearly_sharpe(last.mean, last.deviation),
    }  # fmt: skip


def self_test_rows(cases: Sequence[TrialCase], job: SelfTestJob) -> list[dict[str, object]]:
    """The results of one batch of cases as JSON rows."""
    return [_row_of_case(c, job, found) for c, found in zip(cases, _verdicts(cases, job), strict=True)]


def kind_of(word: str) -> tuple[str, float]:
    """MarketKind and strength from a word such as A0, A4 or E15; SettingsError says what is allowed."""
    match = _KIND.fullmatch(word.strip().upper())
    if match is None or (match[2] and match[1] not in ("A4", "E")) or match[2] == "00":
        raise SettingsError(f'"{word[:20]}" is no kind of self-test; allowed are A0 to A5, E01 to E99 and R')
    return match[1], int(match[2]) / 100 if match[2] else DYING_STRENGTH if match[1] == "A4" else 0.0


class SelfTestPlan(NamedTuple):
    """Which cases a self-test has: kinds, first seed, seeds of each kind (0: as many as it needs), fees to try."""

    words: tuple[str, ...] = DEFAULT_KINDS
    first_seed: int = 0
    seeds: int = 0
    fees: tuple[tuple[float, float], ...] = ()  # empty: the real ones, and none at all where the kind asks for it


def self_test_cases(plan: SelfTestPlan) -> tuple[TrialCase, ...]:
    """All cases of a plan, first seeds of all kinds first, so that a part of them shows something of each."""
    known = {kind.name: kind for kind in KINDS}
    cases: list[TrialCase] = []
    for name, strength in dict.fromkeys(kind_of(word) for word in plan.words):
        both = (REAL_FEES, NO_FEES) if known[name].is_tried_free else (REAL_FEES,)
        seeds = range(plan.first_seed, plan.first_seed + (plan.seeds or known[name].seeds))
        cases += [TrialCase(name, seed, strength, fees) for seed in seeds for fees in plan.fees or both]
    return tuple(sorted(cases, key=lambda case: case.seed))


def shard_of(cases: Iterable[TrialCase], number: int, shards: int) -> tuple[TrialCase, ...]:
    """The cases of shard `number` of `shards`, counted from 1; seeds are dealt, so that all shards have all kinds."""
    found = tuple(cases)
    places = {seed: place for place, seed in enumerate(sorted({case.seed for case in found}))}
    return tuple(case for case in found if places[case.seed] % shards == number - 1)


class SelfTestLine(NamedTuple):
    """One line of the table: all cases of a kind, strength and fees; rates are fractions."""

    kind: str
    strength: float
    fees: tuple[float, float]
    cases: int
    unlocked: int
    low: float
    high: float
    asked: tuple[int, ...]  # how many cases came as far as G1, G2, ... G6
    passed: tuple[int, ...]
    permutations: float | None  # the median of the cases that had any
    sharpe: float | None  # pooled over the unseen days of all cases

    @property
    def rate(self) -> float:
        """Share of the cases that unlocked."""
        return self.unlocked / self.cases if self.cases else 0.0


class TrialOutcome(NamedTuple):
    """One row of a self-test as it was read back; `results` are those of G1 to G6."""

    kind: str
    strength: float
    fees: tuple[float, ...]
    results: tuple[str, ...]
    permutations: float
    mean: float
    deviation: float

    @property
    def is_unlocked(self) -> bool:
        """True when all six gates passed; the row's own word for it is not needed."""
        return all(result == "PASS" for result in self.results)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError("a row of the self-test lacks a number that it should have")
    return float(value)


def trial_outcome(row: Mapping[str, object]) -> TrialOutcome:
    """A row of `self_test_row` read back; DataError if it is none."""
    kind, fees, gates = row.get("kind"), row.get("fees"), row.get("gates")
    if not isinstance(kind, str) or not isinstance(fees, list) or not isinstance(gates, dict):
        raise DataError("a row of the self-test lacks its kind, its fees or its gates")
    found = [gates.get(gate) for gate in GATES_OF_TEST]
    return TrialOutcome(
        kind, _number(row.get("strength")), tuple(_number(fee) for fee in fees),
        tuple(str(gate.get("result")) if isinstance(gate, dict) else "SKIP" for gate in found),
        _number(row.get("permutations")), _number(row.get("daily_mean")), _number(row.get("daily_deviation")),
    )


def name_of_rows(rows: Iterable[Mapping[str, object]]) -> str:
    """A short name for these rows, whatever their order."""
    return hashlib.sha256("\n".join(sorted(canonical(dict(row)) for row in rows)).encode()).hexdigest()[:12]


def _pooled_sharpe(outcomes: Sequence[TrialOutcome]) -> float | None:
    """The Sharpe ratio of all unseen days of these cases together; each case has as many days."""
    mean = statistics.fmean(o.mean for o in outcomes)
    variance = statistics.fmean(o.deviation**2 + (o.mean - mean) ** 2 for o in outcomes)
    return _yearly_sharpe(mean, math.sqrt(variance))


def _line(outcomes: Sequence[TrialOutcome]) -> SelfTestLine:
    """The line of cases that have kind, strength and fees in common."""
    first, unlocked = outcomes[0], sum(o.is_unlocked for o in outcomes)
    low, high = binomial_interval(unlocked, len(outcomes))
    columns = list(zip(*(o.results for o in outcomes), strict=True))
    shuffles = [o.permutations for o in outcomes if o.permutations > 0]
    return SelfTestLine(
        first.kind, first.strength, (first.fees[0], first.fees[-1]), len(outcomes), unlocked, low, high,
        tuple(sum(result in ("PASS", "FAIL") for result in column) for column in columns),
        tuple(column.count("PASS") for column in columns),
        statistics.median(shuffles) if shuffles else None, _pooled_sharpe(outcomes),
    )


def self_test_table(rows: Iterable[Mapping[str, object]]) -> list[SelfTestLine]:
    """A line for each kind, strength and fees; a case that stands twice counts once. DataError for other rows."""
    unique = {str(row.get("key")): trial_outcome(row) for row in rows}
    groups: dict[tuple[str, float, tuple[float, ...]], list[TrialOutcome]] = {}
    for key in sorted(unique):
        outcome = unique[key]
        groups.setdefault((outcome.kind, outcome.strength, outcome.fees), []).append(outcome)
    return [_line(groups[name]) for name in sorted(groups)]


class TargetBound(NamedTuple):
    """A target: of at least `needed` cases of these kinds and fees at most this share may unlock."""

    target: str
    text: str
    kinds: tuple[str, ...]
    fees: tuple[float, float]
    needed: int
    limit: float
    is_of_interval: bool = False  # the upper end of the 95 % interval counts, not the share itself


BOUNDS = (
    TargetBound("T1", "no edge, real fees", ("A0", "A1"), REAL_FEES, 1000, 0.01, is_of_interval=True),
    TargetBound("T1", "no edge, no fees", ("A0", "A1"), NO_FEES, 1000, 0.01, is_of_interval=True),
    TargetBound("T3", "the engine looks ahead, real fees", ("A5",), REAL_FEES, 100, 0.01),
    TargetBound("T3", "the engine looks ahead, no fees", ("A5",), NO_FEES, 100, 0.01),
    TargetBound("T4", "a bull market and no edge", ("A2",), REAL_FEES, 400, 0.02),
    TargetBound("T4", "one lucky phase and no edge", ("A3",), REAL_FEES, 400, 0.02),
    TargetBound("T5", "no edge, up to 28 attempts", ("R",), REAL_FEES, 200, 0.015),
    TargetBound("T6", "an edge that has died", ("A4",), REAL_FEES, 100, 0.35),
)
POWERS = ((2.3, 0.65), (3.0, 0.80))  # net Sharpe ratio of a planted edge, and the share that must unlock
POWER_CASES = 200
SHARPE_TOLERANCE = 0.3


class TargetRow(NamedTuple):
    """One target with its result, "PASS", "FAIL" or "WAIT", what is needed and what was measured."""

    target: str
    text: str
    result: str
    needed: str
    actual: str


def _percent(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def _interval_text(low: float, high: float) -> str:
    return f"{_percent(low)} to {_percent(high)}"


def _bound_result(bound: TargetBound, count: int, unlocked: int, is_whole: bool) -> str:
    """FAIL as soon as it is certain, WAIT while there are too few cases."""
    if unlocked > bound.limit * max(count, bound.needed):
        return "FAIL"
    if count < bound.needed or not is_whole:
        return "WAIT"
    measured = binomial_interval(unlocked, count)[1] if bound.is_of_interval else unlocked / count
    return "PASS" if measured <= bound.limit else "FAIL"


def _bound_row(bound: TargetBound, lines: Sequence[SelfTestLine]) -> TargetRow:
    chosen = [line for line in lines if line.kind in bound.kinds and line.fees == bound.fees]
    count, unlocked = sum(line.cases for line in chosen), sum(line.unlocked for line in chosen)
    is_whole = {line.kind for line in chosen} == set(bound.kinds)
    actual = f"{unlocked} of {count}"
    if count:
        actual += f", 95 % interval {_interval_text(*binomial_interval(unlocked, count))}"
    what = "upper end of the interval" if bound.is_of_interval else "unlocked"
    needed = f"{what} at most {_percent(bound.limit)} of {bound.needed} or more"
    return TargetRow(bound.target, bound.text, _bound_result(bound, count, unlocked, is_whole), needed, actual)


def word_of(line: SelfTestLine) -> str:
    """The kind as `kind_of` reads it."""
    return f"{line.kind}{round(line.strength * 100):02d}" if line.strength else line.kind


def _power_row(sharpe: float, share: float, lines: Sequence[SelfTestLine]) -> TargetRow:
    """The power at the planted edge whose measured Sharpe ratio is nearest to the one asked for."""
    edges = [(abs(line.sharpe - sharpe), line) for line in lines
             if line.kind == "E" and line.fees == REAL_FEES and line.sharpe is not None]
    near = min((edge for edge in edges if edge[0] <= SHARPE_TOLERANCE), default=None)
    needed = f"at least {_percent(share)} of {POWER_CASES} or more unlocked"
    text = f"an edge of net Sharpe {sharpe:g}"
    if near is None:
        return TargetRow("T2", text, "WAIT", needed, "no edge near that was measured")
    line = near[1]
    result = "WAIT" if line.cases < POWER_CASES else "PASS" if line.rate >= share else "FAIL"
    actual = (f"{line.unlocked} of {line.cases} at {line.sharpe:.2f} ({word_of(line)}),"
              f" 95 % interval {_interval_text(line.low, line.high)}")
    return TargetRow("T2", text, result, needed, actual)


def self_test_targets(lines: Sequence[SelfTestLine]) -> tuple[TargetRow, ...]:
    """T1 to T6 as far as the table can tell."""
    rows = [_bound_row(bound, lines) for bound in BOUNDS] + [_power_row(*power, lines) for power in POWERS]
    return tuple(sorted(rows, key=lambda row: row.target))


def _table_text(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _line_cells(line: SelfTestLine) -> list[str]:
    """A line's cells: what it is, how many unlocked, each gate's share of those that came as far, shuffles, Sharpe."""
    fees = "none" if line.fees == NO_FEES else " / ".join(f"{fee:.2%}".replace("%", " %") for fee in line.fees)
    gates = [f"{passed / asked:.0%}".replace("%", " %") if asked else "-"
             for passed, asked in zip(line.passed, line.asked, strict=True)]
    return [
        word_of(line), fees, f"{line.cases:,}", f"{line.unlocked:,}",
        f"{_percent(line.rate)} ({_interval_text(line.low, line.high)})", *gates,
        "-" if line.permutations is None else f"{line.permutations:g}",
        "-" if line.sharpe is None else f"{line.sharpe:.2f}",
    ]


def self_test_markdown(lines: Sequence[SelfTestLine], targets: Sequence[TargetRow]) -> str:
    """The table and the targets for README.md."""
    head = ["kind", "maker / taker", "markets", "unlocked", "rate (95 % interval)", *GATES_OF_TEST,
            "median shuffles", "Sharpe"]
    return (
        _table_text(head, (_line_cells(line) for line in lines))
        + "\nA gate's share is of the markets that came as far as this gate.\n\n"
        + _table_text(["target", "market", "result", "needed", "measured"], targets)
    )


# ==============================================================================
# REPLAY | what went into each cycle, and the same line run over it once more
# pure | uses ERRORS TYPES SETTINGS CANDLES STRATEGIES PORTFOLIO CYCLE
# ==============================================================================

# The inputs of a session are entries of text: a moment as the line saw it, the answers of the kill switch while
# orders were being placed, an act of the owner. A moment tells what differs from the one before it in its block, and
# keeps a book only where one was looked at. A cycle that wrote nothing and left the desk as it was is not kept.
BLOCK_ENTRIES = 360  # an hour of quotes: more are written without waiting for something to happen
TAKING = (OrderKind.EXIT, OrderKind.TAKER_ENTRY)
ACTS = ("rearm", "resolve", "close_all")
CLOSED_WORDS = "closed by the owner"


def _name_of(value: object) -> str:
    """The name of an enum's member, for JSON."""
    if isinstance(value, Enum):
        return value.name
    raise TypeError(f"a {type(value).__name__} is no input")


def input_text(value: object) -> str:
    """A value as JSON that gives every number back to the last bit, infinite and unknown ones too."""
    return json.dumps(value, default=_name_of, separators=(",", ":"))


def _reading_row(outlook: Outlook) -> dict[str, object]:
    return {
        "pair": outlook.pair, "timeframe_s": outlook.timeframe_s, "opened_ms": outlook.opened_ms,
        "close": outlook.close, "atr": outlook.atr, "regime": outlook.regime,
        "setups": [{"strategy": s.strategy, "is_entry": s.is_entry, "is_exit": s.is_exit, "strength": s.strength,
                    "stop_distance": s.stop_distance, "move": s.move, "numbers": s.numbers} for s in outlook.setups],
        "findings": [asdict(finding) for finding in outlook.findings],
    }


def _part_row(part: object) -> object:
    """A part of a view as JSON can hold it; most come often, and `asdict` takes its time."""
    if isinstance(part, Ticker):
        return {"pair": part.pair, "time_ms": part.time_ms, "bid": part.bid, "ask": part.ask, "last": part.last,
                "volume_24h": part.volume_24h, "status": part.status}
    if isinstance(part, OrderBook):
        return {"time_ms": part.time_ms, "bids": part.bids, "asks": part.asks}
    if isinstance(part, Outlook):
        return _reading_row(part)
    if isinstance(part, Candle):
        return {"opened_ms": part.opened_ms, "open": part.open, "high": part.high, "low": part.low,
                "close": part.close, "volume": part.volume}
    if isinstance(part, Market | Finding):
        return asdict(part)
    return [_part_row(p) for p in part] if isinstance(part, tuple) else part


def _parts(view: MarketView) -> dict[str, object]:
    return {
        "market": view.market, "ticker": view.ticker, "bar": view.bar, "outlooks": view.outlooks, "book": view.book,
        "findings": view.findings, "correlated": view.correlated,
    }


def _is_same(a: object, b: object) -> bool:
    """Equal to the last bit; 0.0 and -0.0, and 1 and 1.0, are not."""
    return a is b or (a == b and repr(a) == repr(b))


def _view_row(view: MarketView, before: MarketView | None) -> dict[str, object]:
    old = {} if before is None else _parts(before)
    return {n: _part_row(p) for n, p in _parts(view).items() if n not in old or not _is_same(p, old[n])}


def moment_row(moment: Moment, before: Moment | None = None) -> dict[str, object]:
    """A moment as JSON can hold it: all of it, or what differs from the one before."""
    old = {} if before is None else {v.pair: v for v in before.views}
    row: dict[str, object] = {
        "t": moment.now_ms, "due": moment.due, "follow": moment.is_follow_up,
        "views": {v.pair: _view_row(v, old.get(v.pair)) for v in moment.views},
    }
    if before is None or not _is_same(moment.conditions, before.conditions):
        line, known = asdict(moment.conditions), {} if before is None else asdict(before.conditions)
        row["line"] = {name: v for name, v in line.items() if name not in known or not _is_same(v, known[name])}
    return row


def _tuples(value: object) -> object:
    """Lists, and lists in them, as tuples."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


Parsed = dict[str, object]


def _object(value: object) -> Parsed:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _revived(make: Callable[..., T], row: object, **parts: object) -> T:
    """A value from its row, some of its parts revived before."""
    return make(**{k: parts[k] if k in parts else _tuples(v) for k, v in _object(row).items()})


def _list(value: object) -> list[Parsed]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return value


def _finding(row: Parsed) -> Finding:
    return _revived(Finding, row, doubt=Doubt[str(row["doubt"])])


def _outlook(row: Parsed) -> Outlook:
    return _revived(
        Outlook, row, regime=Regime[str(row["regime"])], setups=tuple(_revived(Setup, s) for s in _list(row["setups"])),
        findings=tuple(_finding(f) for f in _list(row["findings"])),
    )


VIEW_KINDS: Mapping[str, Callable[..., object]] = types.MappingProxyType(
    {"market": Market, "ticker": Ticker, "bar": Candle, "book": OrderBook}
)


def _view(row: Parsed, before: MarketView | None) -> MarketView:
    """A view from its row and the view before it."""
    made = {} if before is None else _parts(before)
    for name, part in row.items():
        if name == "outlooks":
            made[name] = tuple(_outlook(o) for o in _list(part))
        elif name == "findings":
            made[name] = tuple(_finding(f) for f in _list(part))
        elif name == "correlated" or part is None:
            made[name] = _tuples(part)
        else:
            made[name] = _revived(VIEW_KINDS[name], part)
    return _revived(MarketView, made)


def moment_from_row(row: Parsed, before: Moment | None = None) -> Moment:
    """A moment from its row and the moment before it; DataError if it is none."""
    old = {} if before is None else {v.pair: v for v in before.views}
    try:
        views = _object(row["views"])
        if not isinstance(row["t"], int):
            raise ValueError("not a moment")
        known = {} if before is None else asdict(before.conditions)
        conditions = _revived(Conditions, known | _object(row.get("line", {})))
        due = tuple(int(str(s)) for s in _list(row["due"]))
        made = tuple(_view(_object(parts), old.get(pair)) for pair, parts in views.items())
        return Moment(row["t"], made, conditions, due, bool(row["follow"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"a recorded moment cannot be read ({type(error).__name__})") from None


def moment_json(moment: Moment) -> str:
    """All of a moment as text; `moment_from_json` gives it back to the last bit."""
    return input_text(moment_row(moment))


def _loaded(text: str) -> Parsed:
    """A JSON object; DataError if the text is none."""
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise DataError("a recorded input cannot be read")
    return row


def moment_from_json(text: str) -> Moment:
    """A moment from its text; DataError if it is none."""
    return moment_from_row(_loaded(text))


def settings_json(settings: Settings) -> Parsed:
    """What of the settings decides, as JSON can hold it; wishes, notices and hosts do not."""
    return {
        "limits": asdict(settings.limits), "costs": asdict(settings.costs), "schedule": asdict(settings.schedule),
        "gates": asdict(settings.gates), "params": asdict(settings.params),
    }


def settings_from_json(row: Parsed) -> Settings:
    """Settings from what decides in them; DataError if this program does not know them."""
    try:
        return Settings(
            _revived(RiskLimits, row["limits"]), _revived(Costs, row["costs"]), _revived(Schedule, row["schedule"]),
            _revived(GateLimits, row["gates"]), _revived(StrategyParams, row["params"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"the recorded settings cannot be read ({type(error).__name__})") from None


def _called_off(desk: Desk) -> Desk:
    """The desk that leaves every position and takes its entry orders off."""
    left = tuple(p if p.phase is not ExitPhase.NONE else replace(p, phase=ExitPhase.CANCELLING, refused=0,
                                                                 exit_why=CLOSED_WORDS) for p in desk.positions)
    orders = tuple(replace(o, expires_ms=CALLED_OFF_MS) if o.kind in ENTRY_KINDS else o for o in desk.orders)
    return replace(desk, positions=left, orders=orders, retries=())


def owner_act(desk: Desk, act: str) -> Desk:
    """The desk after the owner re-armed it, had all closed, or lifted its halt: then the week starts anew with the
    equity of now.
    """
    if act == "rearm":
        return clear_cause(desk, CauseKind.KILL)
    if act == "close_all":
        return _called_off(desk)
    kinds = tuple(k for k in OWNER_CAUSES if k is not CauseKind.KILL)
    return replace(clear_cause(desk, *kinds), week_start_equity=equity(desk))


def is_settled(desk: Desk) -> bool:
    """True when no order waits for an answer: the executor can be made anew from the desk and is the same."""
    return all(o.state is OrderState.OPEN and not o.is_cancelling for o in desk.orders)


def settlement_row(settlement: Settlement) -> dict[str, object]:
    """A settlement as JSON can hold it."""
    fills = [asdict(fill) for fill in settlement.fills]
    return {"fills": fills, "outcomes": [asdict(outcome) for outcome in settlement.outcomes]}


def settlement_from_row(row: object) -> Settlement:
    """A settlement from its row; DataError if it is none."""
    try:
        fills = tuple(_revived(Fill, f, side=Side[str(f["side"])], kind=OrderKind[str(f["kind"])])
                      for f in _list(_object(row)["fills"]))
        outcomes = tuple(_revived(Outcome, o, state=OrderState[str(o["state"])])
                         for o in _list(_object(row)["outcomes"]))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"a recorded answer cannot be read ({type(error).__name__})") from None
    return Settlement(fills, outcomes)


class InputRow(NamedTuple):
    """A row of inputs: the time of its first entry, "start", "block" or "candles", and its text."""

    time_ms: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class StartRow:
    """Where a replay can begin: what the session was, its desk, and where the audit stood in each of its tables.

    `is_session` marks the first of a session, `is_after_crash` one whose session before was never closed.
    """

    is_session: bool
    is_after_crash: bool
    version: str
    source_hash: str
    config_hash: str
    settings: Settings
    desk: str
    marks: Mapping[str, int]


def start_text(start: StartRow) -> str:
    """The start as text; `start_from_text` gives it back."""
    return input_text({
        "session": start.is_session, "crash": start.is_after_crash, "version": start.version,
        "source": start.source_hash, "config": start.config_hash, "settings": settings_json(start.settings),
        "desk": start.desk, "marks": dict(start.marks),
    })


def start_from_text(text: str) -> StartRow:
    """A start from its text; DataError if it is none that this program can run."""
    row = _loaded(text)
    settings, marks = row.get("settings"), row.get("marks")
    if not isinstance(settings, dict) or not isinstance(marks, dict):
        raise DataError("the start of a recorded session cannot be read")
    return StartRow(
        bool(row.get("session")), bool(row.get("crash")), str(row.get("version")), str(row.get("source")),
        str(row.get("config")), settings_from_json(settings), str(row.get("desk")),
        {str(table): int(str(mark)) for table, mark in marks.items()},
    )


def without_books(moment: Moment, pairs: frozenset[str]) -> Moment:
    """The moment with the books of these pairs only."""
    bare = [v if v.book is None or v.pair in pairs else replace(v, book=None) for v in moment.views]
    return replace(moment, views=tuple(bare))


def read_books(desk: Desk, report: CycleReport) -> frozenset[str]:
    """The pairs whose books a cycle can have looked at: risk judged an intent there, or an order takes from it."""
    taking = {o.pair for o in desk.orders if o.kind in TAKING}
    return frozenset(taking | {v.intent.pair for v in report.verdicts})


class InputLog:
    """The inputs of a session until they are written; `desk` is the one that the next cycle begins with."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._entries: list[str] = []
        self._times: list[int] = []
        self._answers: list[bool] = []
        self._moment: Moment | None = None
        self._before: Moment | None = None
        self._heard: Settlement | None = None
        self._idle = 0
        self._candles: list[tuple[int, str, int, list[list[float]]]] = []

    @property
    def is_full(self) -> bool:
        """True when there is enough to be written by itself."""
        return len(self._entries) >= BLOCK_ENTRIES

    def answer(self, is_killed: bool) -> bool:
        """Note what the kill switch said while an order was being placed."""
        self._answers.append(is_killed)
        return is_killed

    def see(self, moment: Moment) -> None:
        """Note the moment that a cycle begins with."""
        if any(self._answers):
            self._add(moment.now_ms, {"killed": self._answers})
        self._answers, self._moment, self._heard = [], moment, None

    def hear(self, settlement: Settlement) -> None:
        """Note what the exchange said of real orders: only that can be replayed of them."""
        self._heard = settlement

    def note(self, report: CycleReport, is_kept: bool) -> None:
        """Keep the moment of a cycle that changed something; `is_kept` if the audit keeps the cycle."""
        moment, self._moment = self._moment, None
        desk, self.desk = self.desk, report.desk
        if moment is None:
            return
        if not is_kept and report.desk == desk:
            self._idle += 1
            return
        moment = without_books(moment, read_books(desk, report))
        heard = {} if self._heard is None else {"settled": settlement_row(self._heard)}
        self._add(moment.now_ms, moment_row(moment, self._before) | {"kept": is_kept} | heard)
        self._before = moment

    def act(self, act: str, time_ms: int) -> Desk:
        """Note an act of the owner; returns the desk after it."""
        self._add(time_ms, {"act": act, "t": time_ms})
        self.desk = owner_act(self.desk, act)
        return self.desk

    def _add(self, time_ms: int, row: Parsed) -> None:
        self._entries.append(input_text(row))
        self._times.append(time_ms)

    def add_candles(self, time_ms: int, news: Iterable[tuple[str, int, Sequence[Candle]]]) -> None:
        """Note candles that are new and in no cache: (pair, seconds, candles)."""
        for pair, seconds, candles in news:
            rows = [[c.opened_ms, c.open, c.high, c.low, c.close, c.volume] for c in candles]
            self._candles.append((time_ms, pair, seconds, rows))

    def _take_candles(self) -> tuple[InputRow, ...]:
        """The new candles as a row of their own."""
        news, self._candles = self._candles, []
        return (InputRow(news[0][0], "candles", input_text({"candles": [n[1:] for n in news]})),) if news else ()

    def take(self) -> tuple[InputRow, ...]:
        """What has come together, as one block and one row of candles; nothing if there is nothing."""
        entries, self._entries, self._before = self._entries, [], None
        times, self._times = self._times, []
        idle, self._idle = self._idle, 0
        text = f'{{"idle":{idle},"entries":[{",".join(entries)}]}}'
        block = (InputRow(times[0], "block", text),) if entries else ()
        return (*self._take_candles(), *block)


class NotingExecutor(SimulatedExecutor):
    """The executor of a session whose inputs are noted."""

    def __init__(self, log: InputLog, costs: Costs, is_killed: Callable[[], bool], orders: Iterable[Order]) -> None:
        self._log = log
        super().__init__(costs, lambda: log.answer(is_killed()), orders)

    def settle(self, moment: Moment) -> Settlement:
        """The same as without a log."""
        self._log.see(moment)
        return super().settle(moment)


class ListeningExecutor:
    """Real orders whose answers are noted."""

    def __init__(self, log: InputLog, executor: Executor) -> None:
        self._log, self._executor = log, executor
        self.place, self.cancel = executor.place, executor.cancel

    def settle(self, moment: Moment) -> Settlement:
        """The same as without a log."""
        self._log.see(moment)
        found = self._executor.settle(moment)
        self._log.hear(found)
        return found


class Entry(NamedTuple):
    """One entry read back: a moment, an act or answers of the kill switch, and whether the audit kept the cycle; of
    real orders also what the exchange said.
    """

    moment: Moment | None = None
    is_kept: bool = False
    act: str = ""
    answers: tuple[bool, ...] = ()
    heard: Settlement | None = None


def block_entries(text: str) -> tuple[int, tuple[Entry, ...]]:
    """The cycles left out of a block and its entries; DataError if it cannot be read."""
    block = _loaded(text)
    found: list[Entry] = []
    before: Moment | None = None
    idle, rows = block.get("idle"), block.get("entries")
    if not isinstance(idle, int) or not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise DataError("a block of recorded inputs cannot be read")
    for row in rows:
        if "killed" in row:
            found.append(Entry(answers=tuple(bool(a) for a in row["killed"])))
        elif row.get("act") in ACTS:
            found.append(Entry(act=row["act"]))
        else:
            before = moment_from_row(row, before)
            heard = settlement_from_row(row["settled"]) if "settled" in row else None
            found.append(Entry(before, bool(row.get("kept")), heard=heard))
    return idle, tuple(found)


CandleRows = Mapping[tuple[str, int], Floats]


def candle_rows(texts: Iterable[str]) -> dict[tuple[str, int], Floats]:
    """Candles per pair and seconds from rows of inputs, the first of each time; DataError if they cannot be read."""
    found: dict[tuple[str, int], list[Floats]] = {}
    try:
        for text in texts:
            for pair, seconds, rows in _list(_loaded(text)["candles"]):
                found.setdefault((str(pair), int(seconds)), []).append(np.array(rows, dtype=np.float64).reshape(-1, 6))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"recorded candles cannot be read ({type(error).__name__})") from None
    whole = {key: np.concatenate(parts) for key, parts in found.items()}
    return {key: rows[np.unique(rows[:, 0], return_index=True)[1]] for key, rows in whole.items()}


class Signals:
    """The strategies' readings computed once more from the candles; a reading depends on no candle after it."""

    def __init__(self, candles: CandleRows, params: StrategyParams) -> None:
        self._candles, self._params = candles, params
        self._tables: dict[tuple[str, int], SignalTable] = {}

    def again(self, told: Outlook) -> Outlook | None:
        """The reading of the same candle; None if that candle was not kept."""
        key = (told.pair, told.timeframe_s)
        if key not in self._tables and key in self._candles:
            series = series_of(self._candles[key], told.timeframe_s)
            self._tables[key] = signal_table(told.pair, series, self._params)
        if key not in self._tables:
            return None
        series = self._tables[key].series
        row = int(np.searchsorted(series.opened, told.opened_ms))
        is_there = row < len(series) and int(series.opened[row]) == told.opened_ms
        return outlook_at(self._tables[key], row) if is_there else None


class Rerun:
    """The line run over recorded inputs from a desk on, with the backtest's executor."""

    def __init__(self, settings: Settings, desk: Desk, answers: Sequence[bool] = ()) -> None:
        self._settings, self.desk = settings, desk
        self._answers = list(answers)
        self._executor = SimulatedExecutor(settings.costs, self._is_killed, desk.orders)

    def _is_killed(self) -> bool:
        """What the kill switch said when this order was placed; nothing was noted while it was off."""
        return self._answers.pop(0) if self._answers else False

    def record(self, report: CycleReport) -> None:
        """Nothing is written: it is compared with what was."""

    def cycle(self, moment: Moment, answers: Sequence[bool], heard: Settlement | None = None) -> CycleReport:
        """One cycle; `answers` are those of the kill switch while its orders are placed, `heard` what the exchange
        said of real ones.
        """
        self._answers = list(answers)
        if heard is not None:
            report = decide(self.desk, moment, heard, self._settings)
        else:
            report = trade_cycle(self.desk, moment, self._executor, self, self._settings)
        self.desk = report.desk
        return report

    def act(self, act: str) -> None:
        """An act of the owner."""
        self.desk = owner_act(self.desk, act)


# ==============================================================================
# ORDERS | what became of an order that was sent, and when that is certain
# pure | uses ERRORS TYPES
# ==============================================================================

# One POST per order, ever. A lost answer is looked up by the order's own id; nothing is sent a second time.
#
#   INTENT --not sent--> REJECTED
#   INTENT --sent--> OPEN, or UNKNOWN when the answer does not say
#   UNKNOWN --found--> OPEN   --refused and not found--> REJECTED   --four proofs--> NOT_PLACED
#   OPEN --complete--> DONE
#
# The four proofs that an order never came to be: exchange time a minute past its deadline, three well-formed "no such
# order" at least 5 s apart, its id in no list, and balances that are explained without it.
TTL_MS = 5_000  # the exchange refuses the request when it comes later than this
GRACE_MS = 60_000
MISSES_NEEDED, MISS_SPACING_MS = 3, 5_000
UNRESOLVED_MS = 600_000  # an outcome unknown for so long halts
STALE_ORDER_MS = 15_000  # an order decided longer ago than this is not sent any more
FEE_CEILING = Decimal("0.05")  # of what was traded; above it the answer means something else
PRICE_SLACK = Decimal("0.000001")
PRICE_SPAN = 2  # no order is filled at so many times its limit, or at its limit over that
ZERO = Decimal("0")
REFUSED_CODES = (  # beginnings of codes that say: this order was not taken
    "ErrInsufficientFunds", "ErrInsufficientBalance", "ErrPrice", "ErrVolume", "ErrCounterDenomination",
    "ErrValueTooHigh", "ErrAmount", "ErrInvalid", "ErrMarket", "ErrPostOnly", "ErrUnderMaintenance",
    "ErrNotEnoughLiquidity", "ErrCannotTradeWhileQuoteActive", "ErrStopPrice", "ErrNoTradesToInferStopDirection",
    "ErrUserNotVerified",
)
KEY_TROUBLE = frozenset(("ErrUnauthorised", "ErrApiKeyRevoked", "ErrAPIKeyNotFound", "ErrInsufficientPerms"))
OWN_PREFIX = "LB1-"


class Answer(Enum):
    """What the answer to a POST of an order means."""

    ACCEPTED = "accepted"
    EXISTS = "exists already"
    REFUSED = "refused"
    CANCELLED = "post-only cancelled"
    KEY = "key refused"
    NOT_SENT = "not sent"
    UNKNOWN = "no clear answer"


class PostAnswer(NamedTuple):
    """The class of an answer, the exchange's id if there is one, and its error code."""

    answer: Answer
    exchange_id: str = ""
    code: str = ""


def class_of_post(status: int, code: str, exchange_id: str) -> Answer:
    """What status, error code and order id of an answer mean; whatever is not listed is UNKNOWN."""
    if status == 409 or code == "ErrDuplicateClientOrderID":
        return Answer.EXISTS
    if status in (401, 403) or code in KEY_TROUBLE:
        return Answer.KEY
    if code == "ErrOrderCanceled":
        return Answer.CANCELLED
    if 400 <= status < 500 and status != 429 and code.startswith(REFUSED_CODES):
        return Answer.REFUSED
    is_accepted = 200 <= status < 300 and exchange_id and not code
    return Answer.ACCEPTED if is_accepted else Answer.UNKNOWN


class Amounts(NamedTuple):
    """What an order has traded so far and the fees of it, exact."""

    base: Decimal = ZERO
    counter: Decimal = ZERO
    fee_base: Decimal = ZERO
    fee_counter: Decimal = ZERO

    def minus(self, other: Amounts) -> Amounts:
        """The difference, part by part."""
        return Amounts(*(a - b for a, b in zip(self, other, strict=True)))


class FoundOrder(NamedTuple):
    """An order as the exchange shows it; status AWAITING, PENDING or COMPLETE."""

    exchange_id: str
    client_id: str
    pair: str
    side: Side
    price: Decimal
    volume: Decimal
    stop: Decimal
    status: str
    amounts: Amounts
    created_ms: int


@dataclass(frozen=True, slots=True)
class SentOrder:
    """An order as it was sent, exact, and what is known of it; `sent_ms` is exchange time.

    `accounts` are those of base and counter at the exchange, "" for its default ones; `assets` are the two.
    `filled` is what look-ups have shown, `booked` what the desk has been told. `refused` is the code of a refusal
    that a look-up has yet to confirm. `misses` are times at which the exchange knew no such order.
    """

    order_id: str
    client_id: str
    pair: str
    side: Side
    kind: OrderKind
    price: Decimal
    volume: Decimal
    stop: Decimal
    sent_ms: int
    accounts: tuple[str, str] = ("", "")
    assets: tuple[str, str] = ("", "")
    state: OrderState = OrderState.INTENT
    exchange_id: str = ""
    filled: Amounts = field(default_factory=Amounts)
    booked: Amounts = field(default_factory=Amounts)
    refused: str = ""
    misses: tuple[int, ...] = ()
    is_triggered: bool = False
    why: str = ""

    @property
    def deadline_ms(self) -> int:
        """After this exchange time the exchange does not take the request any more."""
        return self.sent_ms + TTL_MS

    @property
    def is_final(self) -> bool:
        """True when nothing more can become of it."""
        return self.state in (OrderState.DONE, OrderState.REJECTED, OrderState.NOT_PLACED)


def client_id(install: str, order_id: str) -> str:
    """The id that the exchange keeps with the order: of this program, this installation and this order."""
    return f"{OWN_PREFIX}{install}-{order_id.removeprefix(OWN_PREFIX)}"


def order_form(order: SentOrder) -> tuple[tuple[str, str], ...]:
    """The fields of the POST, in a fixed order: the same order gives the same bytes."""
    form = [("pair", order.pair), ("type", "BID" if order.side is Side.BUY else "ASK"),
            ("volume", format(order.volume, "f")), ("price", format(order.price, "f"))]
    if order.kind is OrderKind.ENTRY:
        form += [("post_only", "true"), ("time_in_force", "GTC")]
    elif order.kind is OrderKind.PROTECTION:
        form += [("stop_price", format(order.stop, "f")), ("stop_direction", "BELOW"), ("time_in_force", "GTC")]
    else:
        form += [("time_in_force", "IOC")]
    names = ("base_account_id", "counter_account_id")
    form += [(name, account) for name, account in zip(names, order.accounts, strict=True) if account]
    return (*form, ("timestamp", str(order.sent_ms)), ("ttl", str(TTL_MS)), ("client_order_id", order.client_id))


def written(order: Order, market: Market, install: str, sent_ms: int, accounts: tuple[str, str]) -> SentOrder:
    """The order in exact numbers, as it is written before it is sent."""
    return SentOrder(
        order.order_id, client_id(install, order.order_id), order.pair, order.side, order.kind,
        exact(order.limit, market.price_scale), exact(order.volume, market.volume_scale),
        exact(order.stop, market.price_scale) if order.kind is OrderKind.PROTECTION else ZERO, sent_ms, accounts,
        (market.base, market.counter))


def after_post(order: SentOrder, told: PostAnswer) -> SentOrder:
    """The order after the answer to its one POST."""
    if told.answer is Answer.NOT_SENT:
        return replace(order, state=OrderState.REJECTED, why="not sent: the exchange could not be reached")
    if told.answer is Answer.ACCEPTED:
        return replace(order, state=OrderState.OPEN, exchange_id=told.exchange_id, why="accepted")
    is_no = told.answer in (Answer.REFUSED, Answer.CANCELLED)
    return replace(order, state=OrderState.UNKNOWN, refused=told.code if is_no else "",
                   why=f"{told.answer.value}{told.code and ', '}{told.code}")


def mismatch(order: SentOrder, found: FoundOrder) -> str:
    """What of a found order is not what was sent; "" if all is."""
    pairs = (("id", order.client_id, found.client_id), ("market", order.pair, found.pair),
             ("side", order.side, found.side), ("price", order.price, found.price),
             ("volume", order.volume, found.volume), ("stop", order.stop, found.stop),
             ("exchange's id", order.exchange_id or found.exchange_id, found.exchange_id))
    return next((name for name, ours, theirs in pairs if ours != theirs), "")


def implausible(order: SentOrder, found: FoundOrder) -> str:
    """What of a found order's amounts cannot be, or is older than what is known; "" if all can."""
    base, counter, fee_base, fee_counter = found.amounts
    if not ZERO <= base <= order.volume:
        return "filled volume"
    worth, slack = base * order.price, counter * PRICE_SLACK + PRICE_SLACK
    is_beyond = counter > worth + slack if order.side is Side.BUY else counter < worth - slack
    if is_beyond or not worth / PRICE_SPAN - slack <= counter <= worth * PRICE_SPAN + slack:
        return "value at the limit"
    if not -FEE_CEILING * base <= fee_base <= FEE_CEILING * base:
        return "fee in base"
    if not -FEE_CEILING * counter <= fee_counter <= FEE_CEILING * counter:
        return "fee in counter"
    is_older = base < order.filled.base or counter < order.filled.counter
    return "older than what is known" if is_older else ""


def after_found(order: SentOrder, found: FoundOrder) -> SentOrder:
    """The order after a look-up found it; ContradictedOrder if the answer cannot be true of this order."""
    trouble = mismatch(order, found) or implausible(order, found)
    if trouble:
        raise ContradictedOrder(f"the exchange's answer about order {order.order_id} cannot be: {trouble}")
    is_over = found.status == "COMPLETE"
    is_triggered = order.is_triggered or (order.kind is OrderKind.PROTECTION and found.status == "PENDING")
    rest = order.volume - found.amounts.base
    why = "at the exchange" if not is_over else "filled" if not rest else f"ended with {format(rest, 'f')} not filled"
    return replace(order, state=OrderState.DONE if is_over else OrderState.OPEN, exchange_id=found.exchange_id,
                   filled=found.amounts, misses=(), refused="", is_triggered=is_triggered, why=why)


def after_missing(order: SentOrder, now_ms: int) -> SentOrder:
    """The order after the exchange knew no such order; one it had acknowledged stays what it was, since when it is gone
    counting from the first time.
    """
    if order.exchange_id:
        return replace(order, misses=order.misses or (now_ms,), why="acknowledged, but the exchange does not find it")
    if order.refused:
        return replace(order, state=OrderState.REJECTED, why=f"refused by the exchange, {order.refused}")
    known = tuple(t for t in order.misses if t <= now_ms)  # the others were noted with a clock that was ahead
    if known and now_ms - known[-1] < MISS_SPACING_MS:
        return replace(order, misses=known)
    return replace(order, misses=(*known[-9:], now_ms))


def is_absent(order: SentOrder, now_ms: int, is_listed: bool, is_explained: bool) -> bool:
    """True when it is proved that the order never came to be; `now_ms` is exchange time."""
    late = [t for t in order.misses if order.deadline_ms < t <= now_ms]  # earlier it could still have arrived
    is_over = now_ms > order.deadline_ms + GRACE_MS
    return (order.state is OrderState.UNKNOWN and not order.exchange_id and is_over
            and len(late) >= MISSES_NEEDED and not is_listed and is_explained)


def is_gone(order: SentOrder) -> bool:
    """True for an order that the exchange had acknowledged and does not find any more."""
    return order.state is OrderState.OPEN and bool(order.misses)


def is_unresolved(order: SentOrder, now_ms: int) -> bool:
    """True when an outcome has been unknown, or an order gone, for too long."""
    if order.state is OrderState.UNKNOWN:
        return now_ms > order.sent_ms + UNRESOLVED_MS
    return is_gone(order) and now_ms > order.misses[0] + UNRESOLVED_MS


def fill_since(order: SentOrder, now_ms: int) -> Fill | None:
    """What the order has traded since the desk was told, as one fill at the average price; None if nothing."""
    base, counter, fee_base, fee_counter = order.filled.minus(order.booked)
    if not (base or fee_base or fee_counter):
        return None
    price = counter / base if base else order.price
    number = format(order.filled.base, "f")
    if not base:  # a fee that came later than its fill
        number += f"+{format(order.filled.fee_base, 'f')}+{format(order.filled.fee_counter, 'f')}"
    return Fill(
        f"{order.order_id}@{number}", order.order_id, order.pair, order.side, order.kind,
        now_ms, approx(price), approx(base), approx(fee_base), approx(fee_counter), order.kind is OrderKind.ENTRY,
        f"order {order.exchange_id}")


class StatementRow(NamedTuple):
    """One entry of an account's statement: what changed, when, and the exchange's word for it, such as TRANSFER."""

    time_ms: int
    kind: str
    change: Decimal


class Holding(NamedTuple):
    """One asset in three columns: the bot's, the owner's, and what nothing explains."""

    asset: str
    bot: Decimal
    owner: Decimal
    unexplained: Decimal


def booked_change(orders: Iterable[SentOrder]) -> dict[str, Decimal]:
    """By how much the orders have changed each asset, fees included."""
    change: dict[str, Decimal] = {}
    for order in orders:
        sign = 1 if order.side is Side.BUY else -1
        base, counter = order.assets
        change[base] = change.get(base, ZERO) + sign * order.filled.base - order.filled.fee_base
        change[counter] = change.get(counter, ZERO) - sign * order.filled.counter - order.filled.fee_counter
    return change


# ==============================================================================
# ROWS | what the window and the messages say
# pure | uses TYPES SETTINGS STRATEGIES PORTFOLIO CYCLE METRICS
# ==============================================================================

DECISIONS_SHOWN = 200
SLOW_MS, SKEW_SHOWN_MS, STALE_API_MS, CALLS_RESERVE = 2_000.0, 2_000.0, 60_000, 40
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
ZONE_LABELS = types.MappingProxyType({"SAST": "SAST", "South Africa Standard Time": "SAST", "UTC": "UTC",
                                      "Coordinated Universal Time": "UTC"})
STATE_NOTES = types.MappingProxyType({TradingState.READY: "all orders", TradingState.REDUCING: "exits only",
                                      TradingState.COOLDOWN: "exits only", TradingState.UNCERTAIN: "no orders"})
STATE_TONES = types.MappingProxyType({"READY": "", "HALTED": "error", "KILLED": "error"})
MODE_TONES = types.MappingProxyType({Mode.LIVE: "live", Mode.PAPER: "paper"})
SIMULATED_MARKETS = frozenset((Mode.DEMO, Mode.REPLAY))
ENDS_CLEAN = "It ends by itself after a clean check of the account."
ENTRIES_STOP = "No new entries; exits and stops still run."
STATE_RULES = types.MappingProxyType({  # what is stopped and what still runs; how it ends
    TradingState.REDUCING: (ENTRIES_STOP, ENDS_CLEAN),
    TradingState.COOLDOWN: (ENTRIES_STOP, ""),
    TradingState.UNCERTAIN: ("No orders are sent; stops that rest stay.", ENDS_CLEAN),
    TradingState.HALTED: ("No orders at all; stops that rest stay.", "It ends when you resolve it."),
    TradingState.KILLED: ("No new orders; entries are cancelled, stops stay.", "Remove the kill file, then re-arm."),
})
BANNER_LEVELS = types.MappingProxyType({"error": 0, "warning": 1, "info": 2})
CODE_PREFIX = re.compile(r"[A-Z]\d+-")
ACTION_WORDS = types.MappingProxyType({Action.ENTER: "▲ Enter", Action.EXIT: "▼ Exit", Action.HOLD: "Held"})
SETUP_WORDS = types.MappingProxyType({MOMENTUM: "Breakout", EXPANSION: "Vol. expansion", REVERSION: "Mean reversion",
                                      "": DASH})
TONED = frozenset(("total_return", "against_holding", "max_drawdown", "mean", "best", "worst_day"))
DIFFERENCES = types.MappingProxyType({"share": "change", "money": "gain", "count": "+count", "number": "+number"})
GATE_IDS = ("G0", "G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9")
RESULTS = types.MappingProxyType({"PASS": ("✔ PASS", "up"), "FAIL": ("✖ FAIL", "down"), "WAIT": ("… WAIT", "muted"),
                                  "STALE": ("– STALE", "warn")})
SHOWN = types.MappingProxyType({  # figures beside the gates: words, how they are written, what they tell
    "pbo": ("PBO", "share", "how often the training winner ends in the lower half"),
    "dsr": ("DSR", "share", "chance of a better Sharpe ratio than luck's best try"),
    "psr": ("PSR", "share", "chance of a true Sharpe ratio above 0"),
    "min_trl": ("MinTRL", "days", "days of results needed to call it above 0"),
    "sharpe": ("Sharpe ratio", "number", "of the unseen days, per year, after costs"),
    "total_return": ("Return", "change", "of the unseen days, after costs"),
    "max_drawdown": ("Maximum drawdown", "share", "of the unseen days"),
    "windows_positive": ("Windows above 0", "count", "of all unseen windows"),
    "profit_factor": ("Profit factor", "number", "gains over losses on unseen days"),
    "exposure": ("Exposure", "share", "of the unseen time"),
    "best_month": ("Best month", "change", "of the unseen days"),
    "worst_month": ("Worst month", "change", "of the unseen days"),
})
ACTION_TONES = types.MappingProxyType({Action.ENTER: "up", Action.EXIT: "down", Action.HOLD: "muted",
                                       Action.WAIT: "muted", Action.SKIP: "warn"})


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a key that stays, cells, a tone: "" plain, up, down, muted, warn or error."""

    key: str
    cells: tuple[str, ...]
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Banner:
    """One condition worth a line across the window; `action` is "", "rearm", "resolve" or "protect"."""

    level: str
    text: str
    action: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Zone:
    """How far local time is ahead of UTC, and the short name to print behind it."""

    offset_s: int = 0
    label: str = "UTC"


@dataclass(frozen=True, slots=True)
class Health:
    """How machine and line are doing; None is unknown, all `_ms` times are by the clock of `now_ms`."""

    now_ms: int
    mode: Mode = Mode.PAPER
    label: str = ""  # which parameter set trades, such as "NOT CHOSEN"
    is_running: bool = False
    has_network: bool = True
    is_test_exchange: bool = False
    latency_ms: float | None = None
    last_ok_ms: int | None = None
    calls_left: int | None = None
    failures: int = 0
    skew_ms: float | None = None
    next_cycle_ms: int | None = None
    last_candle_ms: int | None = None
    db_mb: float | None = None
    log_ok: bool = True
    notice_state: str = ""
    speed: float = 1.0
    progress: str = ""
    version: str = ""
    folder: str = ""
    lock_reason: str = ""
    lock_reasons: tuple[str, ...] = ()
    parity: str = ""  # what the last replay check said
    is_parity_broken: bool = False
    findings: tuple[Banner, ...] = ()  # of LIVE: what is not as it should be
    order_trouble: str = ""  # of LIVE: why orders and balances cannot be looked up


@dataclass(frozen=True, slots=True)
class Reading:
    """One cell of the status strip: caption, value, a line below, a tone; `short` is the line when narrow."""

    caption: str
    value: str
    note: str = ""
    tone: str = ""
    short: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """All texts of the status strip, and the few facts the window's buttons depend on."""

    mode: str
    mode_tone: str
    run: Reading
    state: Reading
    equity: Reading
    cash: Reading
    exposure: Reading
    day: Reading
    cap: Reading
    api: Reading
    cap_used: float
    counter: str
    lock_reason: str
    speed: float
    is_running: bool = False
    is_killed: bool = False
    is_market_time: bool = False
    lock_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeskNews:
    """What the worker tells the window, at most five times a second; `time_ms` is the market's time."""

    time_ms: int
    status: Status
    positions: tuple[Row, ...] = ()
    ranking: tuple[Row, ...] = ()
    decisions: tuple[Row, ...] = ()
    fills: tuple[Row, ...] = ()
    banners: tuple[Banner, ...] = ()
    footer: str = ""
    orders: tuple[Row, ...] = ()
    coins: tuple[Row, ...] = ()


def tone_of(fraction: float | None) -> str:
    """The tone of a gain or loss: up, down, or none inside the dead band."""
    if fraction is None or not math.isfinite(fraction) or abs(fraction) < DEAD_BAND:
        return ""
    return "up" if fraction > 0 else "down"


def with_glyph(text: str, tone: str) -> str:
    """The text behind the triangle of its tone, so that colour is never the only cue."""
    return {"up": f"▲ {text}", "down": f"▼ {text}"}.get(tone, text)


def big_text(value: float | None) -> str:
    """A large volume in three or four digits: `38.2 M`, `412 k`."""
    if value is None or not math.isfinite(value):
        return DASH
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= size / 10:
            return f"{value / size:,.1f} {unit}"
    return f"{value / 1e3:,.0f} k" if abs(value) >= 1e3 else f"{value:,.0f}"


def age_text(span_ms: float | None) -> str:
    """How long something lasts or has lasted: `12s`, `38m`, `2h 14m`, `3d 04h`."""
    if span_ms is None or not math.isfinite(span_ms):
        return DASH
    seconds = max(0, int(span_ms // 1000))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d {hours % 24:02d}h"
    if hours:
        return f"{hours}h {minutes % 60:02d}m"
    return f"{minutes}m" if minutes else f"{seconds}s"


def countdown_text(span_ms: float) -> str:
    """Time left as `00:41`, or `1:05:00`; never below zero."""
    seconds = max(0, math.ceil(span_ms / 1000))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60:02d}:{rest % 60:02d}"


def moment_of(time_ms: int, zone: Zone) -> datetime:
    """The wall time of a moment in a zone; it carries UTC but means local time."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms, seconds=zone.offset_s)


def zone_of(offset_s: int, name: str) -> Zone:
    """A zone with a short label; Windows gives long names, so unknown ones become `UTC+02:00`."""
    if not offset_s and name not in ZONE_LABELS:
        return Zone(0, "UTC")
    sign, minutes = "-" if offset_s < 0 else "+", abs(offset_s) // 60
    return Zone(offset_s, ZONE_LABELS.get(name, f"UTC{sign}{minutes // 60:02d}:{minutes % 60:02d}"))


def clock_text(time_ms: int, zone: Zone) -> str:
    """Time of day to the second."""
    return f"{moment_of(time_ms, zone):%H:%M:%S}"


def day_and_time(time_ms: int, zone: Zone) -> str:
    """A moment with its day, as the clock of a stepped market shows it: `22 Nov 14:05 SAST`."""
    then = moment_of(time_ms, zone)
    return f"{then.day} {MONTHS[then.month - 1]} {then:%H:%M} {zone.label}"


def stamp_text(time_ms: int, now_ms: int, zone: Zone) -> str:
    """The time of day to the second, or `21 Nov 14:05` when it was another day."""
    then, now = moment_of(time_ms, zone), moment_of(now_ms, zone)
    return f"{then:%H:%M:%S}" if then.date() == now.date() else f"{then.day:2d} {MONTHS[then.month - 1]} {then:%H:%M}"


def when_text(time_ms: int, now_ms: int, zone: Zone) -> str:
    """A time to wait for or look back to, with its zone: `14:05 SAST`, `23 Nov 02:00 SAST`."""
    then = moment_of(time_ms, zone)
    is_today = then.date() == moment_of(now_ms, zone).date()
    return f"{then:%H:%M} {zone.label}" if is_today else day_and_time(time_ms, zone)


def _state_reading(desk: Desk, health: Health, zone: Zone) -> Reading:
    """The trading state, with what it allows, until when (the latest end of its causes), or since when."""
    state, causes = desk.state, [c for c in desk.causes if c.kind.state is desk.state]
    note = STATE_NOTES.get(state, "")
    if state is TradingState.READY and not health.is_running:
        note = "bot stopped"
    elif causes and all(c.until_ms for c in causes):
        note = "until " + when_text(max(c.until_ms for c in causes), health.now_ms, zone)
    elif not note:
        note = "since " + when_text(min(c.since_ms for c in causes), health.now_ms, zone)
    name = "STOPPED" if state is TradingState.READY and not health.is_running else state.name
    return Reading("STATE", name, note, STATE_TONES.get(state.name, "warn"), note.removesuffix(" " + zone.label))


def _equity_reading(desk: Desk, worth: float | None, counter: str) -> Reading:
    start = desk.day_start_equity
    if worth is None or start <= 0:
        return Reading("EQUITY", money_text(worth, counter), "no prices yet" if worth is None else "")
    note, short = money_text(start, counter), whole_money(start, counter)
    return Reading("EQUITY", money_text(worth, counter), f"day start {note}", "", f"start {short}")


def _exposure_reading(report: CycleReport | None, settings: Settings) -> Reading:
    counter, limit = settings.schedule.counter, percent_text(settings.limits.max_exposure, 0)
    if report is None or report.equity <= 0:
        return Reading("EXPOSURE", DASH, f"limit {limit}")
    share = percent_text(report.exposure / report.equity, 1)
    return Reading("EXPOSURE", money_text(report.exposure, counter), f"{share} of {limit}")


def _cash_reading(desk: Desk, worth: float | None, counter: str) -> Reading:
    share = percent_text(desk.cash / worth, 1) if worth is not None and worth > 0 else ""
    return Reading("CASH", money_text(desk.cash, counter), f"{share} of equity" if share else "", "", share)


def _day_reading(desk: Desk, worth: float | None, settings: Settings) -> Reading:
    """The day's result beside the owner's wish; the day is the one the daily cap counts by."""
    caption, wish = "DAY P&L · UTC DAY", percent_text(settings.schedule.target_daily_return)
    if worth is None or desk.day_start_equity <= 0:
        return Reading(caption, DASH, f"{wish} wished")
    result = worth - desk.day_start_equity
    share = result / desk.day_start_equity
    tone, reached = tone_of(share), signed_percent(share)
    text = with_glyph(signed_money(result, settings.schedule.counter), tone)
    return Reading(caption, text, f"{reached} of {wish} wished", tone, f"{reached} of {wish}")


def _cap_reading(desk: Desk, worth: float | None, settings: Settings) -> tuple[Reading, float]:
    """The daily loss cap: how much of it is used, and the money left before it halts."""
    cap, start = settings.limits.daily_loss_cap, desk.day_start_equity
    caption = f"DAILY CAP -{percent_text(cap)}"
    if worth is None or start <= 0:
        return Reading(caption, DASH, "no prices yet"), 0.0
    left = worth - start * (1 - cap)
    used = min(1.0, max(0.0, (start - worth) / (start * cap)))
    if left <= 0 or any(c.kind is CauseKind.DAILY_CAP for c in desk.causes):
        return Reading(caption, "reached", "cap reached", "error"), 1.0
    room, tone = whole_money(left, settings.schedule.counter), "warn" if used >= 0.5 else ""
    return Reading(caption, percent_text(used, 0), f"{room} left before halt", tone, f"{room} left"), used


def _api_trouble(health: Health) -> tuple[str, str, str]:
    """Word, note and tone of the first thing that is wrong with the exchange's line, or ("", "", "")."""
    calls, skew = CALLS_RESERVE if health.calls_left is None else health.calls_left, health.skew_ms or 0.0
    old = health.now_ms - (health.last_ok_ms or 0)
    table = (
        (not health.has_network, "✖ Down", f"{health.failures} failures", "error"),
        (bool(health.order_trouble), "✖ Orders", "prices come, orders do not", "error"),
        (abs(skew) > SKEW_SHOWN_MS, "▲ Clock off", f"by {skew / 1000:.1f} s", "warn"),
        (health.failures > 0, "▲ Retrying", f"{health.failures} failed", "warn"),
        (health.is_running and old > STALE_API_MS, "▲ Stale", "no fresh answer", "warn"),
        ((health.latency_ms or 0.0) > SLOW_MS, "▲ Slow", f"{health.latency_ms or 0:,.0f} ms", "warn"),
        (calls < CALLS_RESERVE, "▲ Busy", f"{calls} calls left", "warn"),
    )
    return next(((word, note, tone) for is_so, word, note, tone in table if is_so), ("", "", ""))


def _api_reading(health: Health) -> Reading:
    """Health of the exchange's line: state, latency, age of the last answer; or where prices come from."""
    if health.mode in SIMULATED_MARKETS:
        word = "● Generated" if health.mode is Mode.DEMO else "● Recorded"
        return Reading("MARKET DATA", word, health.progress or "no network used")
    if health.last_ok_ms is None:
        if health.has_network:
            return Reading("LUNO API", "○ Waiting", "no answer yet", "muted")
        return Reading("LUNO API", "✖ Down", "no answer", "error")
    ago = age_text(health.now_ms - health.last_ok_ms)
    word, note, tone = _api_trouble(health)
    if not word:
        both = "prices and orders, " if health.mode is Mode.LIVE else ""
        word, note, tone = "● OK", f"{both}{number_text(health.latency_ms, 0)} ms", "up"
    return Reading("LUNO API", word, f"{note} · {ago} ago", tone, f"{note} · {ago}")


def status_row(desk: Desk, report: CycleReport | None, settings: Settings, health: Health, zone: Zone) -> Status:
    """The status strip; without a report (nothing priced yet) the money is unknown, not zero."""
    counter, worth = settings.schedule.counter, None if report is None else report.equity
    cap, used = _cap_reading(desk, worth, settings)
    return Status(
        mode="TEST EXCHANGE" if health.is_test_exchange else health.mode.value.upper(),
        mode_tone="test" if health.is_test_exchange else MODE_TONES.get(health.mode, "demo"),
        run=Reading("", "● Running", "", "up") if health.is_running else Reading("", "■ Stopped", "", "muted"),
        state=_state_reading(desk, health, zone), equity=_equity_reading(desk, worth, counter),
        cash=_cash_reading(desk, worth, counter), exposure=_exposure_reading(report, settings),
        day=_day_reading(desk, worth, settings), cap=cap, api=_api_reading(health), cap_used=used, counter=counter,
        lock_reason=health.lock_reason, speed=health.speed, is_running=health.is_running,
        is_killed=desk.state is TradingState.KILLED, is_market_time=health.mode in SIMULATED_MARKETS,
        lock_reasons=health.lock_reasons,
    )


LINK_WORDS: Mapping[tuple[bool, bool], str] = types.MappingProxyType({
    (True, True): "● Connected", (True, False): "○ No answer yet", (False, True): "✖ No network",
    (False, False): "✖ No network",
})  # network seems there, has ever answered


def footer_text(health: Health, zone: Zone) -> str:
    """The status bar: connection, next cycle, last candle, database, log, replay check, notices, parameter set."""
    is_simulated = health.mode in SIMULATED_MARKETS
    parts = ["● No network used" if is_simulated else LINK_WORDS[health.has_network, bool(health.last_ok_ms)]]
    if health.is_running and health.next_cycle_ms is not None and not is_simulated:
        parts.append("Next cycle " + countdown_text(health.next_cycle_ms - health.now_ms))
    last = health.last_candle_ms
    parts.append("Last candle " + (DASH if last is None else when_text(last, health.now_ms, zone)))
    parts.append(f"DB {number_text(health.db_mb, 1)} MB" if health.db_mb is not None else "DB " + DASH)
    parts.append("Log OK" if health.log_ok else "✖ Log cannot be written")
    checked = "✖ Replay differs" if health.is_parity_broken else health.parity
    parts += [text for text in (checked, health.notice_state, health.label) if text]
    return "  ·  ".join(parts)


def _sentence(text: str) -> str:
    """Text with a capital letter and one full stop."""
    trimmed = text.strip().rstrip(".")
    return trimmed[:1].upper() + trimmed[1:] + "." if trimmed else ""


def cause_sentence(cause: Cause, settings: Settings, now_ms: int, zone: Zone) -> str:
    """What happened, what is stopped, what still runs, and when it ends."""
    state = cause.kind.state
    stopped, ends = STATE_RULES[state]
    if cause.kind is CauseKind.WEEKLY_CAP:
        stopped = ENTRIES_STOP
    if cause.kind is CauseKind.DAILY_CAP and settings.limits.daily_cap_action == "close":
        stopped = "No new entries; open positions are being closed."
    if cause.until_ms:
        ends = f"It ends {when_text(cause.until_ms, now_ms, zone)}."
    why = cause.why or cause.kind.words
    head = why if why.lower().startswith(cause.kind.words) else f"{cause.kind.words}: {why}"
    return " ".join(part for part in (f"{state.name}.", _sentence(head), stopped, ends) if part)


def cause_banner(cause: Cause, settings: Settings, now_ms: int, zone: Zone) -> Banner:
    """The banner of one cause."""
    action = {TradingState.HALTED: "resolve", TradingState.KILLED: "rearm"}.get(cause.kind.state, "")
    text = cause_sentence(cause, settings, now_ms, zone)
    return Banner("error" if action else "warning", text, action, cause.kind.name)


def _doubt_banner(views: Sequence[MarketView]) -> tuple[Banner, ...]:
    """One line when most markets are in doubt; single ones are told in the ranking."""
    doubtful = [f"{v.market.name} ({v.findings[0].doubt.value})" for v in views if v.findings]
    if 2 * len(doubtful) <= len(views):
        return ()
    level, more = "warning" if len(doubtful) == len(views) else "info", ", …" if len(doubtful) > 4 else ""
    text = f"No entries in {len(doubtful)} of {len(views)} markets: {', '.join(doubtful[:4])}{more}."
    return (Banner(level, text, key="doubts"),)


def banner_rows(desk: Desk, views: Sequence[MarketView], settings: Settings, health: Health,
                zone: Zone) -> tuple[Banner, ...]:
    """All conditions worth a banner, the most severe first; each ends with its condition."""
    causes = sorted(desk.causes, key=lambda c: -c.kind.state.value)
    banners = [*(cause_banner(c, settings, health.now_ms, zone) for c in causes), *health.findings]
    if not health.log_ok:
        banners.append(Banner("error", "The log file cannot be written. Check that the disk is not full.", key="log"))
    if health.is_parity_broken:
        banners.append(Banner("error", health.parity, key="parity"))
    if health.is_test_exchange:
        banners.append(Banner("warning", "TEST EXCHANGE: prices come from another host than Luno's.", key="test"))
    if health.progress and health.mode not in SIMULATED_MARKETS:
        level = "warning" if not health.has_network or "cannot" in health.progress else "info"
        banners.append(Banner(level, health.progress, key="progress"))
    banners.extend(_doubt_banner(views))
    return tuple(sorted(banners, key=lambda b: BANNER_LEVELS[b.level]))


def _unique(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows with a number behind keys that occur twice."""
    seen: Counter[str] = Counter()
    result = []
    for row in rows:
        seen[row.key] += 1
        result.append(row if seen[row.key] == 1 else replace(row, key=f"{row.key}#{seen[row.key]}"))
    return tuple(result)


def _protection_note(desk: Desk, position: Position) -> str:
    """What is special about a position, in a word: it is being left, or its stop does not rest yet."""
    if position.phase is not ExitPhase.NONE:
        return "exiting"
    resting = desk.orders_of(position.pair, OrderKind.PROTECTION)
    return "" if any(o.state is OrderState.OPEN for o in resting) else "stop pending"


def _position_row(position: Position, market: Market, desk: Desk, now_ms: int) -> Row:
    mark, scale = position.mark if position.mark > 0 else None, market.price_scale
    held = position.volume / position.bought if position.bought > 0 else 0.0
    paid = held * (position.entry_value + position.fees)
    result = None if mark is None else unrealised(position)
    share = None if result is None or paid <= 0 else result / paid
    tone, note = tone_of(share), _protection_note(desk, position)
    cells = (
        f"{market.name} {note}".strip(), with_glyph(signed_number(result, money_scale(market.counter)), tone),
        signed_percent(share), number_text(mark, scale), number_text(position.stop, scale),
        percent_text(None if mark is None else (mark - position.stop) / mark, 1), number_text(position.entry, scale),
        number_text(position.volume, market.volume_scale), age_text(now_ms - position.opened_ms),
    )
    return Row(position.pair, cells, "warn" if note else tone)


def position_rows(desk: Desk, views: Sequence[MarketView], now_ms: int) -> tuple[Row, ...]:
    """Open positions by pair; P&L is after the fees of entry and exit, P&L % is of what was paid, fees included."""
    markets = {v.pair: v.market for v in views}
    held = sorted((p for p in desk.positions if p.pair in markets), key=lambda p: p.pair)
    return tuple(_position_row(p, markets[p.pair], desk, now_ms) for p in held)


def code_word(code: str) -> str:
    """A decision's code in words: `P8-volume-24h` is "volume 24h", `stale_candles` "stale candles"."""
    return CODE_PREFIX.sub("", code, count=1).replace("-", " ").replace("_", " ")


def duration_word(duration_s: int) -> str:
    """A timeframe as `15m`, `4h`, `1d`."""
    for size, unit in ((86400, "d"), (3600, "h")):
        if duration_s % size == 0:
            return f"{duration_s // size}{unit}"
    return f"{duration_s // 60}m"


def _action_word(decision: Decision) -> str:
    verb, reason = decision.action.value.capitalize(), code_word(decision.code)
    return ACTION_WORDS.get(decision.action) or (f"{verb}: {reason}" if reason else verb)


def _names_with_timeframe(decisions: Sequence[Decision], markets: Mapping[str, Market]) -> list[str]:
    """The market of each decision, with the timeframe behind it where there are several."""
    names = [markets[d.pair].name if d.pair in markets else d.pair for d in decisions]
    if len({d.timeframe_s for d in decisions}) < 2:
        return names
    return [f"{name} {duration_word(d.timeframe_s)}" for name, d in zip(names, decisions, strict=True)]


def _standing(decision: Decision, outlook: Outlook | None) -> tuple[bool, float]:
    """Signals come first, then the best score: a signal's confidence, or the strength of the nearest setup."""
    setups = outlook.setups if outlook is not None else ()
    strongest = max((s.strength for s in setups if math.isfinite(s.strength)), default=0.0)
    has_signal = decision.confidence > 0
    return not has_signal, -(decision.confidence if has_signal else strongest)


def _ranking_row(place: int, name: str, score: float, decision: Decision, view: MarketView | None) -> Row:
    setup = SETUP_WORDS.get(decision.strategy, decision.strategy.capitalize())
    ticker = view.ticker if view is not None else None
    spread = ticker.spread if ticker is not None else None
    turnover = ticker.volume_24h * ticker.last if ticker is not None else None
    cells = (
        str(place), name, number_text(score, 2) if score > 0 else DASH, decision.regime.value.capitalize(),
        setup, percent_text(spread), big_text(turnover), _action_word(decision),
    )
    tones = {Action.ENTER: "up", Action.EXIT: "down", Action.SKIP: "muted"}
    return Row(f"{decision.pair}-{decision.timeframe_s}", cells, tones.get(decision.action, ""))


def ranking_rows(decisions: Sequence[Decision], outlooks: Sequence[Outlook],
                 views: Sequence[MarketView]) -> tuple[Row, ...]:
    """Markets from best to worst at the last decision candle, ties by name; `views` bring the quotes of now."""
    by_pair = {v.pair: v for v in views}
    read = {(o.pair, o.timeframe_s): o for o in outlooks}
    names = _names_with_timeframe(decisions, {v.pair: v.market for v in views})
    standings = [(*_standing(d, read.get((d.pair, d.timeframe_s))), name, d)
                 for d, name in zip(decisions, names, strict=True)]
    ranked = enumerate(sorted(standings, key=lambda s: s[:3]), start=1)
    return _unique(_ranking_row(i, name, -below, d, by_pair.get(d.pair)) for i, (_, below, name, d) in ranked)


def _decision_row(decision: Decision, name: str, now_ms: int, zone: Zone) -> Row:
    tone = "warn" if decision.code == Refusal.DOUBT.value else ACTION_TONES.get(decision.action, "")
    score = number_text(decision.confidence, 2) if decision.confidence > 0 else DASH
    cells = (stamp_text(decision.time_ms, now_ms, zone), name, decision.action.name, score, decision.why)
    key = f"{decision.time_ms}-{decision.pair}-{decision.timeframe_s}-{decision.action.name}"
    return Row(key, cells, tone)


def decision_rows(decisions: Sequence[Decision], markets: Mapping[str, Market], now_ms: int,
                  zone: Zone) -> tuple[Row, ...]:
    """The newest decisions first, at most 200: Time, Market, Decision, Confidence, Reason."""
    newest = sorted(decisions, key=lambda d: -d.time_ms)[:DECISIONS_SHOWN]
    names = _names_with_timeframe(newest, markets)
    return _unique(_decision_row(d, name, now_ms, zone) for d, name in zip(newest, names, strict=True))


def _fill_row(fill: Fill, market: Market | None, mode: str, time_text: str) -> Row:
    fee = fill.fee_counter + fill.fee_base * fill.price
    price, volume = (8, 8) if market is None else (market.price_scale, market.volume_scale)
    scale = 2 if market is None else money_scale(market.counter)
    cells = (
        time_text, fill.pair if market is None else market.name, fill.side.name, number_text(fill.volume, volume),
        number_text(fill.price, price), number_text(fill.value, scale), number_text(fee, scale), mode,
    )
    return Row(fill.fill_id, cells)


def fill_rows(fills: Sequence[Fill], markets: Mapping[str, Market], mode: str, now_ms: int,
              zone: Zone) -> tuple[Row, ...]:
    """The newest fills first, at most 200: Time, Market, Side, Size, Price, Value, Fee, Mode."""
    newest = sorted(fills, key=lambda f: -f.time_ms)[:DECISIONS_SHOWN]
    return _unique(
        _fill_row(f, markets.get(f.pair), mode.upper(), stamp_text(f.time_ms, now_ms, zone)) for f in newest
    )


def text_in(values: Mapping[str, object], name: str) -> str:
    """A text out of a report, a dash where there is none."""
    value = values.get(name)
    return DASH if value is None or value == "" else str(value)


def day_in(values: Mapping[str, object], name: str) -> str:
    """A day out of a report, which may hold it as text or as milliseconds."""
    value = values.get(name)
    if isinstance(value, str):
        return value[:10] or DASH
    number = number_in(values, name)
    return DASH if number is None else f"{moment_of(int(number), Zone()):%Y-%m-%d}"


def measure_text(value: float | None, kind: str, counter: str) -> str:
    """A figure in the way its kind is written: change, share, money, gain, count, days or plain number."""
    texts = {
        "change": signed_percent(value), "share": percent_text(value), "money": money_text(value, counter),
        "gain": signed_money(value, counter), "count": number_text(value, 0), "+count": signed_number(value, 0),
        "+number": signed_number(value, 2), "days": number_text(value, 0),
    }
    return texts.get(kind) or number_text(value, 2)


def metrics_rows(metrics: Mapping[str, object], counter: str, target: float) -> tuple[Row, ...]:
    """A run's metrics: Measure, Value, and what the value is of; holding is the market's luck and has no colour."""
    values, fall = figures_of(metrics), group_in(metrics, "max_drawdown")
    notes = {"mean": f"{percent_text(target)} wished", "max_drawdown": "none"}
    if values["max_drawdown"]:
        notes["max_drawdown"] = f"{day_in(fall, 'from')} to {day_in(fall, 'to')}"
    if values["profit_factor"] is None:
        notes["profit_factor"] = "no losing round trip" if values["trades"] else "no round trips"
    return tuple(
        Row(key, (words, measure_text(values[key], kind, counter), notes.get(key, note)),
            tone_of(values[key]) if key in TONED else "")
        for key, words, kind, note in MEASURES
    )


def compare_rows(first: Mapping[str, object], second: Mapping[str, object]) -> tuple[Row, ...]:
    """Two runs: Measure, first, second, Difference, Note; amounts of two currencies have no difference."""
    one, two = (figures_of(group_in(run, "metrics")) for run in (first, second))
    coins = (text_in(first, "counter"), text_in(second, "counter"))
    rows = []
    for key, words, kind, note in MEASURES:
        a, b = one[key], two[key]
        is_comparable = kind not in ("money", "gain") or coins[0] == coins[1]
        gap = b - a if a is not None and b is not None and is_comparable else None
        texts = (measure_text(a, kind, coins[0]), measure_text(b, kind, coins[1]))
        shown = measure_text(gap, DIFFERENCES.get(kind, kind), coins[0])
        rows.append(Row(key, (words, *texts, shown, note), tone_of(gap) if key in TONED else ""))
    return tuple(rows)


def _pair_name(pair: str, counter: str) -> str:
    base = pair.removesuffix(counter)
    return f"{base}/{counter}" if base != pair and base else pair


def _last_day(until: str) -> str:
    """The last day of a period: one that ends at midnight ends with the day before."""
    try:
        return f"{datetime.fromisoformat(until) - timedelta(milliseconds=1):%Y-%m-%d}"
    except ValueError:
        return DASH


def run_parts(values: Mapping[str, object]) -> tuple[str, str, str]:
    """What a run was made on: its markets, its candles and its period."""
    period, counter, frames = group_in(values, "period"), text_in(values, "counter"), values.get("timeframes")
    durations = [duration_word(s) for s in frames if isinstance(s, int)] if isinstance(frames, list | tuple) else []
    pairs = ", ".join(_pair_name(pair, counter) for pair in group_in(values, "data"))
    span = f"{day_in(period, 'from')} to {_last_day(text_in(period, 'to'))}" if period else DASH
    return pairs or DASH, " and ".join(durations) or DASH, span


def _range_text(values: Iterable[float | None]) -> str:
    known = sorted({v for v in values if v is not None})
    if len(known) < 2:
        return percent_text(known[0] if known else None)
    return f"{number_text(known[0] * 100, 2)} to {percent_text(known[-1])}"


def costs_text(values: Mapping[str, object]) -> str:
    """The costs a run was made with: fees and their source, slippage, spread; a range where markets differ."""
    costs, markets = group_in(values, "costs"), list_in(group_in(values, "costs"), "markets")
    maker, taker, spread = (_range_text(number_in(m, name) for m in markets) for name in ("maker", "taker", "spread"))
    sources = " and ".join(sorted({text_in(m, "source") for m in markets}))
    fees = f"maker {maker}, taker {taker}" + (f" at {sources}" if sources else "")
    return f"Costs: fees {fees}; slippage {percent_text(number_in(costs, 'slippage'))}; spread {spread}"


def split_rows(values: Mapping[str, object], name: str) -> tuple[Row, ...]:
    """A run by window, pair, strategy or regime: return, profit, round trips, winners, factor, expectancy, fees."""
    counter, start, rows = text_in(values, "counter"), number_in(values, "start_equity"), []
    scale, groups = money_scale(counter), list_in(values, name)
    for part in groups if name == "by_window" else sorted(groups, key=lambda g: -(number_in(g, "profit") or 0.0)):
        key, profit = text_in(part, "name"), number_in(part, "profit")
        share = profit / start if profit is not None and start else None
        change = number_in(part, "return") if "return" in part else share
        word = SETUP_WORDS.get(key) or (_pair_name(key, counter) if key.isupper() else key.capitalize())
        cells = (
            word, signed_percent(change), signed_number(profit, scale), number_text(number_in(part, "trades"), 0),
            percent_text(number_in(part, "win_rate"), 0), number_text(number_in(part, "profit_factor"), 2),
            signed_number(number_in(part, "expectancy"), scale), number_text(number_in(part, "fees_paid"), scale),
        )
        rows.append(Row(key, cells, tone_of(change)))
    return tuple(rows)


def run_row(key: str, when: str, kind: str, values: Mapping[str, object]) -> Row:
    """A saved run in a line: Time, Kind, Data, Return, Against holding, Drawdown, Round trips."""
    if kind == "gates":
        word = "Gates: unlocked" if values.get("unlocked") is True else "Gates: locked"
        return Row(key, (when, word, text_in(values, "summary"), DASH, DASH, DASH, DASH))
    found, (pairs, candles, span) = figures_of(group_in(values, "metrics")), run_parts(values)
    shown = (signed_percent(found["total_return"]), signed_percent(found["against_holding"]),
             percent_text(found["max_drawdown"]), number_text(found["trades"], 0))
    return Row(key, (when, kind.capitalize(), f"{candles}  {span}  {pairs}", *shown), tone_of(found["total_return"]))


MARGIN_UNITS = types.MappingProxyType({"G0": "windows", "G1": "p", "G2": "shuffles", "G3": "trips", "G4": "%",
                                       "G5": "%", "G6": "%", "G7": "size", "G8": "%"})


def margin_text(key: str, gate: Mapping[str, object]) -> str:
    """How far a gate is passed or missed, in the unit of its limit; PAPER waits for days first."""
    value = number_in(gate, "margin")
    unit = "days" if text_in(gate, "result") == "WAIT" else MARGIN_UNITS.get(key, "")
    if value is None or unit == "%":
        return signed_percent(value)
    places = 0 if abs(value) >= 100 or value == round(value) else 3 if abs(value) < 1 else 2
    return f"{signed_number(value, places)} {unit.removesuffix('s') if abs(value) == 1 else unit}".rstrip()


def gate_rows(evaluation: Mapping[str, object]) -> tuple[Row, ...]:
    """The gates in order: Gate, Name, Result, Needed, Actual, Margin; one that is missing counts as not passed."""
    gates, rows = group_in(evaluation, "gates"), []
    for key in GATE_IDS:
        gate = group_in(gates, key)
        word, tone = RESULTS.get(text_in(gate, "result"), ("✖ MISSING", "error"))
        cells = (key, text_in(gate, "name"), word, text_in(gate, "needed"), text_in(gate, "actual"))
        rows.append(Row(key, (*cells, margin_text(key, gate)), tone))
    return tuple(rows)


def gate_sentence(evaluation: Mapping[str, object], key: str) -> str:
    """What one gate found, in full and in plain words."""
    return f"{key}  {text_in(group_in(group_in(evaluation, 'gates'), key), 'text')}"


def attempt_text(evaluation: Mapping[str, object]) -> str:
    """How often these unseen days have been looked at, and what that does to the bar."""
    attempt = number_in(evaluation, "attempt") or 0.0
    if attempt > 1:
        return f"Attempt {attempt:.0f} on this data: the bar is {attempt:.0f}x higher."
    return "Attempt 1: the first look at these unseen days." if attempt == 1 else ""


def window_rows(evaluation: Mapping[str, object]) -> tuple[Row, ...]:
    """The windows in order: #, Training, Unseen days, Set, Training Sharpe, Result, Round trips."""
    rows = []
    for window in list_in(evaluation, "windows"):
        number, chosen, result = (number_in(window, n) for n in ("number", "chosen", "result"))
        days = tuple(f"{day_in(window, f'{n}_from')} to {day_in(window, f'{n}_to')}" for n in ("train", "test"))
        name = DASH if chosen is None else "cash" if chosen < 0 else f"set {chosen + 1:.0f}"
        sharpe, trips = number_in(window, "train_sharpe"), number_in(window, "round_trips")
        cells = (number_text(number, 0), *days, name, signed_number(sharpe, 2), signed_percent(result))
        rows.append(Row(cells[0], (*cells, number_text(trips, 0)), tone_of(result)))
    return _unique(rows)


def shown_rows(evaluation: Mapping[str, object]) -> tuple[Row, ...]:
    """The figures that are shown and gate nothing: Figure, Value, what it tells; those known first."""
    shown = group_in(evaluation, "shown")
    names = [*(name for name in SHOWN if name in shown), *sorted(name for name in shown if name not in SHOWN)]
    rows = []
    for name in names:
        words, kind, note = SHOWN.get(name, (name.replace("_", " ").capitalize(), "number", ""))
        rows.append(Row(name, (words, measure_text(number_in(shown, name), kind, ""), note)))
    return tuple(rows)


# ==============================================================================
# ACCOUNT | what rests where, whose coins are whose, and what closing all would bring
# pure | uses TYPES SETTINGS PORTFOLIO RISK CYCLE ORDERS ROWS
# ==============================================================================

LIVE_CHECKS = (  # what was never seen at Luno itself: what to do there by hand or by the bot, what must come of it
    ("The live key's boxes", "At Luno, under API keys, Send, Withdrawals, Addresses and Beneficiaries are not ticked."
     " The program cannot try those without using them."),
    ("A buy of the smallest volume far below the market", "The Account tab shows it within a minute as an order that is"
     " not the bot's; after you cancel it the state is READY again."),
    ("The bot's first entry", "Luno's app shows it at the price and size of the Account tab, as post-only."),
    ("The fee of the first buy and of the first sale", "Under Coins nothing stays unexplained after either."),
    ("The first stop", "Luno's app shows a stop-limit order for the whole position, and the coins as held back."),
    ("Pull the network for five minutes while a position is open", "The stop is still at Luno; the bot goes UNCERTAIN,"
     " and READY by itself once the network is back and all is reconciled."),
    ("Put a file named KILL into the data folder", "KILLED within a second; the stop is still at Luno. Remove the file"
     " and re-arm."),
)


@dataclass(frozen=True, slots=True)
class AskChecks:
    """Which of the checks with small amounts were done; answered by a ChecksTold."""


@dataclass(frozen=True, slots=True)
class ChecksTold:
    """Places in LIVE_CHECKS that the owner has ticked; as a command, keep them."""

    done: frozenset[int] = frozenset()


def checks_from(payload: str) -> ChecksTold:
    """The ticks as they were kept; what cannot be read was not done."""
    try:
        done = json.loads(payload)["done"]
    except (ValueError, TypeError, KeyError):
        return ChecksTold()
    places = range(len(LIVE_CHECKS))
    return ChecksTold(frozenset(n for n in done if n in places) if isinstance(done, list) else frozenset())


@dataclass(frozen=True, slots=True)
class AskClose:
    """What closing all would do; answered by a ClosingOffer."""


@dataclass(frozen=True, slots=True)
class CloseAll:
    """Leave every position and cancel every entry, once, if they are still the ones that were shown."""

    marks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClosingOffer:
    """What closing all would do now: the positions and entry orders it is about, as lines, or why it cannot be."""

    marks: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    problem: str = ""


def _closing_line(position: Position, market: Market) -> str:
    """One position with what a sale at the last bid would bring, after the taker fee."""
    value, fee = position.volume * position.mark, position.volume * position.mark * position.exit_fee
    return (f"•  {market.name}   {number_text(position.volume, market.volume_scale)} at the bid of"
            f" {number_text(position.mark, market.price_scale)} = {money_text(value - fee, market.counter)} after"
            f" {money_text(fee, market.counter)} fee   ({signed_money(unrealised(position), market.counter)})")


def closing_offer(desk: Desk, markets: Mapping[str, Market], settings: Settings) -> ClosingOffer:
    """What closing all would do to this desk."""
    entries = [o for o in desk.orders if o.kind in ENTRY_KINDS]
    held = [p for p in desk.positions if p.phase is ExitPhase.NONE]
    if not may_reduce(desk):
        reasons = ", ".join(c.kind.words for c in desk.causes)
        return ClosingOffer(problem=f"Not now: the state is {desk.state.name} ({reasons}), and it lets no sale out.")
    if not (held or entries):
        return ClosingOffer(problem="There is nothing to close: no position that is not being left already, no entry.")
    lines = [_closing_line(p, markets[p.pair]) for p in held if p.pair in markets]
    lines += [f"•  {o.pair}   entry order at {plain(o.limit)} is cancelled" for o in entries]
    bound, counter = settings.costs.exit_bound, settings.schedule.counter
    value = sum(market_value(p) for p in held)
    if held:
        lines.append(f"About {money_text(value, counter)} comes in. Each sale takes the bids down to {bound:.1%} below"
                     f" the best one, so at worst {money_text(value * (1 - bound), counter)}; what is left over is"
                     " offered again.")
    return ClosingOffer(tuple(sorted((*(p.pair for p in held), *(o.order_id for o in entries)))), tuple(lines))


def _place_of(order: Order, mode: Mode) -> str:
    """Where an order is watched."""
    if mode is not Mode.LIVE:
        return "simulated"
    if order.state is OrderState.UNKNOWN:
        return "not certain"
    return "at Luno" if order.state is OrderState.OPEN else "in the program"


def _order_state(order: Order) -> str:
    if order.is_cancelling:
        return "being cancelled"
    words = {OrderState.INTENT: "being sent", OrderState.UNKNOWN: "outcome unknown"}
    resting = "stop reached" if order.is_triggered else "waits for its stop" if order.stop and order.side is Side.SELL \
        and order.kind is OrderKind.PROTECTION else "resting"
    return words.get(order.state, resting)


def _order_row(order: Order, market: Market, mode: Mode, now_ms: int) -> Row:
    where = _place_of(order, mode)
    has_stop = order.kind is OrderKind.PROTECTION
    cells = (
        market.name, order.kind.value, order.side.value, number_text(order.limit, market.price_scale),
        number_text(order.stop if has_stop else None, market.price_scale),
        number_text(order.volume, market.volume_scale), number_text(order.filled, market.volume_scale),
        _order_state(order), where, age_text(now_ms - order.created_ms),
    )
    return Row(order.order_id, cells, "warn" if where == "not certain" else "")


def _bare_stop_row(position: Position, market: Market, now_ms: int) -> Row:
    """The stop of a position that nothing at the exchange watches."""
    stop, volume = number_text(position.stop, market.price_scale), number_text(position.volume, market.volume_scale)
    cells = (market.name, "stop", Side.SELL.value, DASH, stop, volume, DASH, "does not rest", "only in the program",
             age_text(now_ms - position.opened_ms))
    return Row(f"stop of {position.pair}", cells, "warn")


def order_rows(desk: Desk, markets: Mapping[str, Market], mode: Mode, now_ms: int) -> tuple[Row, ...]:
    """Every order that is not over, and where it is watched; stops that do not rest come first."""
    bare = [p for p in desk.positions if p.pair in markets
            and not any(o.state is OrderState.OPEN for o in desk.orders_of(p.pair, OrderKind.PROTECTION))]
    stops = [_bare_stop_row(p, markets[p.pair], now_ms) for p in bare]
    orders = [_order_row(o, markets[o.pair], mode, now_ms) for o in desk.orders if o.pair in markets]
    return (*stops, *orders)


def coin_rows(holdings: Iterable[Holding]) -> tuple[Row, ...]:
    """Each asset in three columns: the bot's, the owner's, and what nothing explains; those without any left out."""
    rows = []
    for asset, bot, owner, odd in holdings:
        if bot or owner or odd:
            cells = (asset, *(format(n.normalize(), "f") for n in (bot, owner, odd, bot + owner + odd)))
            rows.append(Row(asset, cells, "warn" if odd else ""))
    return tuple(rows)


# ==============================================================================
# WHY | what kept a market from trading
# pure | uses TYPES ROWS
# ==============================================================================

WHY_DAYS, BLOCKERS_SHOWN = 7, 8
NOTHING_YET = "Nothing was decided here in the last seven days: decisions come a few seconds after a candle closes."
TRADING_ACTIONS = frozenset(("enter", "exit", "hold"))


class ReasonRow(NamedTuple):
    """One decision as the audit has it."""

    time_ms: int
    pair: str
    timeframe_s: int
    action: str
    code: str
    why: str


@dataclass(frozen=True, slots=True)
class AskWhy:
    """Why a market was not traded; answered by a WhyTold."""

    pair: str


@dataclass(frozen=True, slots=True)
class WhyTold:
    """The newest reason of a market, those before it, and what held back all markets in the last day."""

    name: str
    sentence: str
    history: tuple[Row, ...] = ()
    blockers: tuple[Row, ...] = ()


def _reason_row(number: int, reason: ReasonRow, now_ms: int, zone: Zone) -> Row:
    cells = (stamp_text(reason.time_ms, now_ms, zone), duration_word(reason.timeframe_s), reason.action.upper(),
             code_word(reason.code), reason.why)
    return Row(str(number), cells, "muted" if reason.action == "wait" else "")


def blocker_rows(reasons: Iterable[ReasonRow]) -> tuple[Row, ...]:
    """What kept markets from trading, the most frequent first, with how often, its share and the markets."""
    held_back = [r for r in reasons if r.action not in TRADING_ACTIONS]
    counts = Counter(r.code for r in held_back).most_common(BLOCKERS_SHOWN)
    rows = []
    for code, count in counts:
        pairs = sorted({r.pair for r in held_back if r.code == code})
        cells = (code_word(code).capitalize(), str(count), percent_text(count / len(held_back), 0), ", ".join(pairs))
        rows.append(Row(code, cells))
    return tuple(rows)


def why_told(pair: str, name: str, reasons: Sequence[ReasonRow], now_ms: int, zone: Zone) -> WhyTold:
    """The answer for one market from the decisions of the last days, the newest first."""
    mine = [r for r in reasons if r.pair == pair]
    rows = tuple(_reason_row(n, r, now_ms, zone) for n, r in enumerate(mine))
    sentence = mine[0].why if mine else NOTHING_YET
    return WhyTold(name, sentence, rows, blocker_rows(r for r in reasons if r.time_ms > now_ms - DAY_MS))


# ==============================================================================
# SYSTEM | the machine: clock, folders, settings file, kill file, log
# shell | uses ERRORS TYPES SETTINGS | owns dotenv
# ==============================================================================

import base64
import contextlib
import io
import os
import random
import sys
import time
from collections import deque
from decimal import InvalidOperation
from pathlib import Path
from urllib.parse import quote, quote_plus

from dotenv.parser import Binding, parse_stream

if sys.platform == "win32":
    import ctypes
    import msvcrt
    import subprocess
else:
    import fcntl


class Clock(Protocol):
    """Where time comes from; nothing outside SYSTEM reads the machine's clock itself."""

    def now_ms(self) -> int:
        """UTC epoch milliseconds; they may jump."""

    def mono_s(self) -> float:
        """Seconds that never run backwards, for measuring how long something took."""

    def sleep(self, seconds: float) -> None:
        """Lets that much time pass."""


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        """UTC epoch milliseconds; they may jump."""
        return time.time_ns() // 1_000_000

    def mono_s(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(max(0.0, seconds))


class SteppedClock:
    """The market's clock of demo and replay: it stands still until it is stepped, and sleeping steps it."""

    def __init__(self, start_ms: int) -> None:
        self._us = start_ms * 1000  # microseconds, so that many short sleeps add up

    def now_ms(self) -> int:
        """Market time in UTC epoch milliseconds."""
        return self._us // 1000

    def mono_s(self) -> float:
        """Market seconds."""
        return self._us / 1_000_000

    def sleep(self, seconds: float) -> None:
        """Steps the clock; nobody waits."""
        self._us += round(max(0.0, seconds) * 1_000_000)

    def set_ms(self, ms: int) -> None:
        """Moves the clock to a moment."""
        self._us = ms * 1000


def local_zone_parts() -> tuple[int, str]:
    """Seconds that local time is ahead of UTC now, and the zone's name as the system gives it."""
    local = time.localtime()
    return local.tm_gmtoff, local.tm_zone


def program_folder() -> Path:
    """The folder of the exe, or of the script; never the exe's unpacked bundle."""
    return Path(sys.executable if getattr(sys, "frozen", False) else __file__).resolve().parent


def program_source() -> str:
    """The text of this program's own file, which the exe carries along; "" if it cannot be read."""
    try:
        return Path(__file__).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


LONGEST_NAME = 64  # characters of the longest name that is ever made in the data folder, an export's with it


def is_writable(folder: Path) -> bool:
    """True if a file with a name as long as ours can be made here; Windows has a longest path, and odd permissions."""
    probe = folder / f".write-{os.getpid()}-".ljust(LONGEST_NAME, "x")
    try:
        probe.touch()
        probe.unlink()
        return True
    except OSError:
        return False


def _default_folder(program: Path, env: Mapping[str, str], platform: str) -> Path:
    """Where data goes when nobody says otherwise."""
    if os.path.isfile(program / "portable.txt") and is_writable(program):
        return program
    if platform == "win32":
        base = env.get("LOCALAPPDATA", "") or str(Path.home() / "AppData" / "Local")
    elif platform == "darwin":
        base = str(Path.home() / "Library" / "Application Support")
    else:
        wanted = env.get("XDG_DATA_HOME", "")
        base = wanted if os.path.isabs(wanted) else str(Path.home() / ".local" / "share")
    return Path(base) / "LunoBiz"


def data_folder(argument: str | None, env: Mapping[str, str]) -> Path:
    """The folder of database, logs and kill file, made if missing; SettingsError if it cannot be written."""
    wanted = (argument or "").strip() or env.get(PREFIX + "HOME", "").strip()
    try:
        default = _default_folder(program_folder(), env, sys.platform)
        folder = (Path(wanted).expanduser() if wanted else default).resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError):
        raise SettingsError(f"the data folder {wanted!r} cannot be made; choose one with --home") from None
    if not is_writable(folder):
        raise SettingsError(f"the data folder {folder} cannot be written, or its path is too long; choose another with"
                            " --home")
    return folder


SYNCED_NAMES = ("onedrive", "dropbox", "google drive", "googledrive", "icloud", "nextcloud")


def folder_doubts(folder: Path, env: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences on why a database is not safe in this folder; LIVE refuses to start there, PAPER warns."""
    doubts = []
    roots = [env.get(name, "") for name in ("OneDrive", "OneDriveConsumer", "OneDriveCommercial")]
    is_inside = any(folder.is_relative_to(root) for root in roots if root)
    if is_inside or any(part.casefold().startswith(SYNCED_NAMES) for part in folder.parts):
        doubts.append(f"{folder} is synchronised by a cloud program, which can damage the database")
    if str(folder).startswith(("\\\\", "//")):
        doubts.append(f"{folder} is on a network share")
    if sys.platform == "win32":
        kind = {2: "removable", 4: "network"}.get(ctypes.windll.kernel32.GetDriveTypeW(folder.anchor))
        doubts += [f"{folder} is on a {kind} drive"] if kind else []
    return tuple(doubts)


def private_file(path: Path) -> None:
    """Lets only the owner read a file, as well as the system allows; never raises."""
    with contextlib.suppress(OSError):
        path.chmod(0o600)
    user = os.environ.get("USERNAME", "")
    if sys.platform == "win32" and user:  # chmod does nothing there
        tool = os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "icacls.exe")
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(  # noqa: S603 - a fixed program and our own path
                [tool, str(path), "/inheritance:r", "/grant:r", f"{user}:F"], stdin=subprocess.DEVNULL,
                capture_output=True, timeout=10, check=False, creationflags=subprocess.CREATE_NO_WINDOW,
            )  # fmt: skip


def replace_file(source: Path, target: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Puts a file in another's place; five tries, since Windows programs hold files for moments."""
    for wait_s in (0.05, 0.15, 0.3, 0.5):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            sleep(wait_s)
    os.replace(source, target)


def write_safely(path: Path, data: bytes) -> None:
    """Writes a private file as a whole or not at all; OSError if it cannot be done."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        private_file(fresh)
        replace_file(fresh, path)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()


def _env_bindings(path: Path) -> list[Binding]:
    """All lines of a settings file, if there is one; SettingsError names one of ours that cannot be understood."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"{path} cannot be read; save it as UTF-8 text") from None
    if "\0" in text:
        raise SettingsError(f"{path} is damaged or not UTF-8 text; restore it from its dated copy")
    bindings = list(parse_stream(io.StringIO(text, newline="")))
    for binding in bindings:
        is_ours = PREFIX in binding.original.string if binding.error else (binding.key or "").startswith(PREFIX)
        if is_ours and binding.value is None:
            raise SettingsError(f"{path}, line {binding.original.line}: write NAME=value; check the quotes")
    return bindings


def read_env(folders: Sequence[Path], environ: Mapping[str, str]) -> dict[str, str]:
    """Our settings: the environment, then the .env files in the folders' order; "" in a file is unset."""
    found: dict[str, str] = {}
    for folder in reversed(folders):
        found |= {b.key: b.value for b in _env_bindings(folder / ".env") if b.key and b.value}
    found |= environ
    return {name: value for name, value in found.items() if name.startswith(PREFIX)}


_ENV_NAME = re.compile(PREFIX + r"[A-Z0-9_]{1,60}")
_ENV_PLAIN = re.compile(r"[A-Za-z0-9_./:,@%+-]*")
_ENV_LINE = re.compile(  # what stands before the value, the value, and the comment behind it
    r"(\s*(?:export\s+)?[^=\s'#]+[^\S\r\n]*=[^\S\r\n]*?)"
    r"('(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|(?![^\S\r\n]*['\"])[^\r\n]*?)"
    r"((?:[^\S\r\n]+#[^\r\n]*)?\s*)",
    re.DOTALL,
)
KEPT_COPIES = 10


def _env_updated(bindings: Iterable[Binding], values: Mapping[str, str], newline: str) -> str:
    """The file's text with these values; every other line and all comments stay as they are."""
    fresh = {}
    for name, value in values.items():
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        fresh[name] = value if _ENV_PLAIN.fullmatch(value) else f"'{escaped}'"
    text, new = "", dict(fresh)
    for binding in bindings:
        line, name = binding.original.string, binding.key or ""
        if name in fresh:
            new.pop(name, None)
            parts = _ENV_LINE.fullmatch(line)
            line = parts[1] + fresh[name] + parts[3] if parts else f"{name}={fresh[name]}{newline}"
        text += line
    if text and not text.endswith(("\n", "\r")):
        text += newline
    return text + "".join(f"{name}={value}{newline}" for name, value in new.items())


def _dated_copies(path: Path) -> list[Path]:
    """The dated copies beside a settings file, the oldest first; there may be no folder."""
    dated = re.compile(re.escape(path.name) + r"\.\d{4}-\d\d-\d\dT[\d.]+Z(-\d+)?")
    return sorted(p for p in path.parent.glob("*") if dated.fullmatch(p.name))


def _copy_dated(path: Path) -> None:
    """A private copy of a settings file beside it; only the newest copies are kept, for they hold secrets."""
    write_safely(path.with_name(f"{path.name}.{datetime.now(UTC):%Y-%m-%dT%H%M%S.%fZ}"), path.read_bytes())
    for old in _dated_copies(path)[:-KEPT_COPIES]:
        old.unlink()


def write_env(path: Path, values: Mapping[str, str]) -> None:
    """Sets our values in a settings file and keeps all else, and a dated copy; SettingsError leaves it untouched."""
    for name, value in values.items():
        if not _ENV_NAME.fullmatch(name):
            raise SettingsError(f"{name[:60]} is not the name of a setting")
        if not value.isprintable():
            raise SettingsError(f"{name} may not hold line breaks or control characters")
    path = path.resolve()
    bindings = _env_bindings(path)
    newline = "\r\n" if any("\r\n" in b.original.string for b in bindings) else "\n"
    text = _env_updated(bindings, values, newline)
    again = {b.key: b.value for b in parse_stream(io.StringIO(text, newline=""))}
    if any(again.get(name) != value for name, value in values.items()):
        raise SettingsError(f"{path} cannot be changed safely; edit it by hand")
    try:
        if path.exists():
            _copy_dated(path)
        write_safely(path, text.encode())
    except OSError:
        raise SettingsError(f"{path} cannot be written; nothing was changed") from None


def drop_env(path: Path, names: Iterable[str]) -> None:
    """Takes our values out of a settings file and of its dated copies; SettingsError if one cannot be written."""
    path, gone = path.resolve(), set(names)
    try:
        for each in (path, *_dated_copies(path)):
            bindings = _env_bindings(each)
            kept = "".join(b.original.string for b in bindings if b.key not in gone)
            if any(b.key in gone for b in bindings):
                write_safely(each, kept.encode())
    except OSError:
        raise SettingsError(f"{path} or a copy of it cannot be written; take the lines out by hand") from None


KILL_NAMES = frozenset({"kill", "kill.txt", "kill.txt.txt"})  # Explorer hides .txt, so people add it twice


def kill_file_found(folders: Sequence[Path]) -> Path | None:
    """The kill file that stops us, or a folder that cannot be read, which counts the same; else None."""
    for folder in folders:
        try:
            found = [name for name in os.listdir(folder) if name.strip(" .").casefold() in KILL_NAMES]
        except (OSError, ValueError):
            return folder
        if found:
            return folder / found[0]
    return None


def is_killed(folders: Sequence[Path]) -> bool:
    """True if a kill file is there in any form, or if that cannot be told."""
    return not folders or kill_file_found(folders) is not None


def write_kill_file(folder: Path) -> None:
    """Puts the kill file into a folder; KilledByOwner if even that fails, which stops us as well."""
    target = folder / "KILL"
    try:
        with target.open("ab") as stream:
            os.fsync(stream.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            target.mkdir()
    if not is_killed([folder]):
        raise KilledByOwner(f"the kill file cannot be written in {folder}: close the program to stop it")


AWAKE, AS_USUAL = 0x80000001, 0x80000000  # ES_CONTINUOUS with and without ES_SYSTEM_REQUIRED


class KeepAwake:
    """Keeps Windows from going to sleep by itself while orders or positions are open; a closed lid still wins.

    It holds for the thread that asks; other systems are left alone.
    """

    def __init__(self, ask: Callable[[int], int] | None = None) -> None:
        self._ask, self.is_held = ask, False
        if ask is None and sys.platform == "win32":
            self._ask = ctypes.windll.kernel32.SetThreadExecutionState

    def hold(self, is_wanted: bool) -> None:
        """Keep awake, or not any more; asks the system only where that changes."""
        if self._ask is not None and is_wanted != self.is_held and self._ask(AWAKE if is_wanted else AS_USUAL):
            self.is_held = is_wanted


class InstanceLock:
    """Only one program per data folder; the system frees the lock when a program ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path, self._handle = path, -1

    def acquire(self) -> bool:
        """True if the lock is ours now; False if another program has it."""
        if self._handle >= 0:
            return True
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)  # children do not inherit it
        except OSError:
            raise SettingsError(f"{self._path} cannot be opened; check the rights of the folder") from None
        try:
            if sys.platform == "win32":
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        self._handle = handle
        return True

    def release(self) -> None:
        """Lets the next program in."""
        if self._handle >= 0:
            os.close(self._handle)  # closing unlocks; the file stays, or two programs could lock two files
            self._handle = -1


class ShowRequest:
    """How a second start brings the running window to the front: a file in the data folder, looked for each second.

    No port and no window of another program is needed, and it works where both see only the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "show.request"

    @property
    def is_waiting(self) -> bool:
        """True while nobody has taken the request."""
        return self._path.exists()

    def ask(self) -> bool:
        """True if the request was left; the window that runs on this folder takes it."""
        if sys.platform == "win32":
            ctypes.windll.user32.AllowSetForegroundWindow(-1)  # who was just started may pass the right on
        try:
            self._path.touch()
        except OSError:
            return False
        return True

    def take(self) -> bool:
        """True once for each request; a file that cannot be removed is no request, or it would be one each second."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True


HIDDEN = "***"
SHORTEST_SECRET = 4  # redacting shorter ones would eat every text
_SECRET_SHAPES = re.compile(  # at most one group takes part in a match: the label that may stay
    r"((?:authorization|cookie)[\"']?\s*[:=]\s*)[\"']?[^\r\n\"']+"
    r"|(\b(?:basic|bearer)\s+)[\w+/.=~-]{16,}"
    r"|(bot)\d{3,20}:[\w-]{10,}"
    r"|\b\d{6,20}:[\w-]{30,}"
    r"|(://)[^/\s@]+:[^/\s@]*@"
    r"|((?:secret|token|password|key_id)[\"']?\s*[:=]\s*)[\"']?[^\s\"',;&}]+"
    r"|(?<![\w-])[\w-]{43}(?![\w-])",
    re.ASCII | re.IGNORECASE,
)


def _forms(secrets: Iterable[str | Credentials]) -> Iterator[str]:
    """All texts that give a secret away: each, its halves, and any two as `id:secret`, in all encodings."""
    raws: set[str] = set()
    for secret in secrets:
        pair = (secret,) if isinstance(secret, str) else (secret.key_id, secret.secret)
        raws |= {raw for raw in pair if len(raw) >= SHORTEST_SECRET and raw != "telegram"}
    halves = {half for raw in raws for half in (raw[: len(raw) // 2], raw[len(raw) // 2 :]) if len(half) >= 8}
    pairs = {f"{a}:{b}" for a, b in itertools.permutations(sorted(raws), 2)}
    for raw in raws | halves | pairs:
        data = raw.encode("utf-8", "surrogatepass")  # as URLs, headers, JSON and Python's own messages have it
        yield from (raw, json.dumps(raw)[1:-1], repr(raw)[1:-1], quote(data, safe=""), quote(data), quote_plus(data))
        yield from (encode(data).decode().rstrip("=") for encode in (base64.b64encode, base64.urlsafe_b64encode))


class Redactor:
    """Takes secrets out of texts: the loaded ones by value in every encoding, unknown ones by their shape."""

    def __init__(self, secrets: Iterable[str | Credentials] = ()) -> None:
        forms = {form for form in _forms(secrets) if len(form) >= SHORTEST_SECRET}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._folded = tuple(dict.fromkeys(form.casefold() for form in longest_first))
        self._values = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)", re.IGNORECASE)

    def clean(self, text: str) -> str:
        """The text without secrets; *** alone if they cannot be got out."""
        for _ in range(5):
            cleaned = self._pass(text)
            if cleaned == text:
                return text
            text = cleaned
        return HIDDEN

    def clean_value(self, value: object) -> object:
        """A value as JSON can hold it, all texts clean; numbers stay, unknown objects give their type."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, Mapping):
            return {self.clean(str(k)): self.clean_value(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.clean_value(v) for v in value]
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, np.integer):
            return int(value)
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, Enum):
            return value.name
        return self.clean(str(value)) if isinstance(value, (Decimal, Path)) else type(value).__name__

    def _pass(self, text: str) -> str:
        folded = text.casefold()
        if any(form in folded for form in self._folded):  # far quicker than the expression, and mostly false
            text = self._values.sub(HIDDEN, text)
        return _SECRET_SHAPES.sub(lambda m: (m[m.lastindex] if m.lastindex else "") + HIDDEN, text)


LOG_DAYS = 30
LOG_BYTES = 20_000_000
LOG_PARTS = 9  # files a day; what comes after them is dropped and counted
LINE_CHARS = 8_000
_LOG_NAME = re.compile(r"(\d{4}-\d\d-\d\d)(-\d)?\.jsonl")


class JsonLog:
    """One JSON object a line, a file per UTC day; trouble is counted in `failures` and never raised."""

    def __init__(self, folder: Path, redactor: Redactor, clock: Clock) -> None:
        self._folder, self._redactor, self._clock = folder, redactor, clock
        self.failures, self._handle, self._day = 0, -1, -1
        self._left = 0  # bytes that still go into the open file

    def write(self, level: str, kind: str, text: str, **details: object) -> None:
        """Adds a line; it is in the system's hands when this returns."""
        try:
            now_ms = self._clock.now_ms()
            line = self._line({**details, "t": now_ms, "level": level, "kind": kind, "text": text})
            if now_ms // DAY_MS != self._day or self._left < len(line) or self._handle < 0:
                self._open(now_ms, len(line))
            if os.write(self._handle, line) != len(line):  # one write, so that lines of two threads never mix
                self.failures += 1
                self.close()
            self._left -= len(line)
        except (OSError, ValueError, TypeError, OverflowError, RecursionError):
            self.failures += 1

    def close(self) -> None:
        """Closes the file; the next line opens it again."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            with contextlib.suppress(OSError):
                os.close(handle)

    def _line(self, row: Mapping[str, object]) -> bytes:
        text = json.dumps(self._redactor.clean_value(row), sort_keys=True)
        if len(text) > LINE_CHARS:  # cut after cleaning: half a secret would not be found
            words = {k: self._redactor.clean(str(row[k]))[:400] for k in ("level", "kind", "text")}
            text = json.dumps({**words, "t": row["t"], "cut": len(text)}, sort_keys=True)
        return text.encode() + b"\n"

    def _open(self, now_ms: int, size: int) -> None:
        """Opens the day's first file with room, sweeps old ones when the day is new."""
        self.close()
        today = datetime.fromtimestamp(now_ms / 1000, UTC)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in ("", *(f"-{n}" for n in range(2, LOG_PARTS + 1))):
            path = self._folder / f"{today:%Y-%m-%d}{part}.jsonl"
            used = path.stat().st_size if path.exists() else 0
            if used + size <= LOG_BYTES:
                break
        else:
            raise ValueError("the log of this day is full")
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
        self._left = LOG_BYTES - used
        if used == 0:
            private_file(path)
        else:
            os.lseek(self._handle, -1, os.SEEK_END)
            if os.read(self._handle, 1) != b"\n":  # torn by a crash or a full disk
                os.write(self._handle, b"\n")
        if now_ms // DAY_MS != self._day:
            self._day = now_ms // DAY_MS
            self._sweep(f"{today - timedelta(days=LOG_DAYS):%Y-%m-%d}")

    def _sweep(self, oldest: str) -> None:
        for path in self._folder.iterdir():
            name = _LOG_NAME.fullmatch(path.name)
            if name and name[1] <= oldest:
                with contextlib.suppress(OSError):
                    path.unlink()


# ==============================================================================
# STORE | the audit, the journal of orders and the cache of candles, on disk
# shell | uses ERRORS TYPES CANDLES PORTFOLIO CYCLE LEDGER REPLAY WHY SYSTEM | owns sqlite3
# ==============================================================================

import sqlite3
import zlib

APPLICATION_ID = 0x4C42495A  # "LBIZ": says whose file this is
SEALED: Mapping[str, str] = types.MappingProxyType({  # what their rows hold between rowid, time_ms and the seal
    "decisions": "mode pair timeframe_s opened_ms action strategy regime confidence code why numbers",
    "order_intents": "mode order_id pair side kind volume limit_price stop_price expires_ms strategy regime"
    " timeframe_s why",
    "order_events": "mode order_id event state is_triggered why",
    "fills": "mode fill_id order_id pair side kind price volume value fee_base fee_counter is_maker evidence",
    "trades": "mode pair strategy regime timeframe_s opened_ms closed_ms volume entry exit fees profit reason",
    "events": "mode kind level pair text",
    "snapshots": "mode equity cash exposure state desk",
    "metrics": "name payload",
    "sessions": "kind",
})  # fmt: skip
JOURNAL: Mapping[str, str] = types.MappingProxyType({  # what was sent to the exchange and heard of it, from version 3
    "sendings": "mode order_id client_id pair side kind price volume stop base_account counter_account base counter",
    "answers": "mode order_id state exchange_id base counter fee_base fee_counter refused is_triggered why",
    "ledger": "mode order_id base counter fee_base fee_counter",
})
GROWING: Mapping[str, str] = types.MappingProxyType({**SEALED, **JOURNAL})
CHAINED = ("gate_rows", "attempts")  # each row holds the hash of the one before it
ID_OF: Mapping[str, str] = types.MappingProxyType({"order_intents": "order_id", "fills": "fill_id",
                                                  "sendings": "order_id"})
INPUT_DAYS = 40  # so long the inputs of a session are kept; it is part of the schema
REPLAYED = ("fills", "order_events", "trades", "decisions", "order_intents", "snapshots")  # as the causes run
TABLES = ("trades", "fills", "orders", "order_events", "decisions", "snapshots", "metrics", "events", *JOURNAL,
          *CHAINED)
OTHER_OBJECTS = """
CREATE INDEX order_events_by_order ON order_events (mode, order_id);
CREATE INDEX snapshots_by_mode ON snapshots (mode);
CREATE VIEW orders AS SELECT i.rowid AS rowid, time_ms, mode, order_id, pair, side, kind,
    COALESCE((SELECT e.state FROM order_events e WHERE e.mode = i.mode AND e.order_id = i.order_id
        ORDER BY e.rowid DESC LIMIT 1), 'intent') AS state,
    volume, limit_price, stop_price, expires_ms, strategy, regime, timeframe_s, why FROM order_intents i;
CREATE TABLE candles (rowid INTEGER PRIMARY KEY, pair TEXT NOT NULL, timeframe_s INTEGER NOT NULL,
    block INTEGER NOT NULL, packed BLOB NOT NULL, checksum INTEGER NOT NULL, UNIQUE (pair, timeframe_s, block));
"""


def _column(name: str) -> str:
    """A column as SQL; its type follows from its name, and only a confidence may be missing."""
    if name == "confidence":
        return "confidence REAL"
    is_whole = name.startswith("is_") or name.endswith(("_ms", "_s"))
    return f"{name} {'INTEGER' if is_whole else 'TEXT'} NOT NULL"


def _growing_tables(sealed: Mapping[str, str], others: Mapping[str, str]) -> Iterator[str]:
    """Tables and the triggers that let them only grow."""
    for table, words in ({t: f"time_ms {words} seal" for t, words in sealed.items()} | dict(others)).items():
        rows = ", ".join(["rowid INTEGER PRIMARY KEY", *map(_column, words.split())])
        unique = f", UNIQUE (mode, {ID_OF[table]})" if table in ID_OF else ""
        yield f"CREATE TABLE {table} ({rows}{unique});"
        for name, change in (("stay", "UPDATE"), ("grow", "DELETE")):
            rule = f"BEFORE {change} ON {table} BEGIN SELECT RAISE(ABORT, 'audit'); END;"
            yield f"CREATE TRIGGER {table}_{name} {rule}"


def _first_schema() -> str:
    """The script that makes version 1 in one transaction: triggers let the tables of the audit only grow."""
    start = f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;"
    chained = dict.fromkeys(CHAINED, "time_ms payload prev_hash hash")
    return "\n".join((start, *_growing_tables(SEALED, chained), OTHER_OBJECTS, "COMMIT;"))


def _second_schema() -> str:
    """The script that leads to version 2: the inputs of sessions only grow and are swept after their time."""
    old = f"SELECT MAX(time_ms) - {INPUT_DAYS * DAY_MS} FROM inputs WHERE mode = OLD.mode"  # noqa: S608 - of ours
    return f"""BEGIN IMMEDIATE; PRAGMA user_version = 2;
CREATE TABLE inputs (rowid INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, mode TEXT NOT NULL, number INTEGER NOT NULL,
    kind TEXT NOT NULL, packed BLOB NOT NULL, checksum TEXT NOT NULL, UNIQUE (mode, number));
CREATE TRIGGER inputs_stay BEFORE UPDATE ON inputs BEGIN SELECT RAISE(ABORT, 'audit'); END;
CREATE TRIGGER inputs_grow BEFORE DELETE ON inputs WHEN OLD.kind = 'candles' OR OLD.time_ms >= ({old})
    BEGIN SELECT RAISE(ABORT, 'audit'); END;
COMMIT;"""


def _third_schema() -> str:
    """The script that leads to version 3: the journal of real orders."""
    return "\n".join(("BEGIN IMMEDIATE; PRAGMA user_version = 3;", *_growing_tables(JOURNAL, {}), "COMMIT;"))


# number n leads from version n to n + 1, in one transaction of its own
MIGRATIONS = (_first_schema, _second_schema, _third_schema)


def _page_query(table: str, newest: bool = False) -> str:
    order = "rowid DESC" if newest else "rowid"
    return f"SELECT * FROM {table} WHERE rowid > ? ORDER BY {order} LIMIT ?"  # noqa: S608 - a name of ours


MOVE_AWAY = "keep it, move it away together with its -wal file, and put back a backup"
CURES: Mapping[int, str] = types.MappingProxyType({
    sqlite3.SQLITE_FULL: "cannot be written, the disk is full: make room and start again",
    sqlite3.SQLITE_BUSY: "is held by another program: close that program",
    sqlite3.SQLITE_LOCKED: "is held by another program: close that program",
    sqlite3.SQLITE_CORRUPT: f"is damaged: {MOVE_AWAY}",
    sqlite3.SQLITE_NOTADB: f"is not a database or is damaged: {MOVE_AWAY}",
    sqlite3.SQLITE_READONLY: "may not be written: check the rights of the file and its folder",
    sqlite3.SQLITE_PERM: "may not be written: check the rights of the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check the rights of the file and its folder",
    sqlite3.SQLITE_IOERR: "cannot be read or written, the disk reports an error: check the disk",
    sqlite3.SQLITE_CONSTRAINT: "refused a row that would change the audit: stop and report this",
})  # fmt: skip
CHECKED_ROWS = 20_000  # of each table, when a store is opened; `verify` checks them all
BLOCK_CANDLES = 256


@contextlib.contextmanager
def _named_trouble(path: Path) -> Iterator[None]:
    """Turns the database's errors, and the disk's, into AuditBroken with the file and the cure."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the first byte is the kind of error
        cure = CURES.get(code, f"cannot be used ({type(error).__name__} {code}): {MOVE_AWAY}")
        raise AuditBroken(f"{path} {cure}") from None
    except (OSError, OverflowError, UnicodeError) as error:
        raise AuditBroken(f"{path} cannot be used ({type(error).__name__}): check the disk and the folder") from None


def _link(path: Path, mode: str) -> sqlite3.Connection:
    """A connection that never makes a file by itself and waits two seconds for others."""
    address = f"{path.resolve().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=2.0, isolation_level=None)


def _create(path: Path) -> None:
    """Makes an empty database under another name first, so that one under the real name is always whole."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    with contextlib.closing(_link(fresh, "rw")) as db:
        for script in MIGRATIONS:
            db.executescript(script())
    private_file(fresh)
    replace_file(fresh, path)


def _schema_rows(db: sqlite3.Connection) -> set[tuple[object, ...]]:
    return set(db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall())


def _pragma(db: sqlite3.Connection, text: str) -> object:
    row = db.execute(text).fetchone()
    return row[0] if row else None


def _inspect(db: sqlite3.Connection, path: Path) -> None:
    """AuditBroken unless this is our database, of a version we know, and whole."""
    if _pragma(db, "PRAGMA application_id") != APPLICATION_ID:
        raise AuditBroken(f"{path} is not a LunoBiz database or is damaged: {MOVE_AWAY}")
    version = _pragma(db, "PRAGMA user_version")
    if not isinstance(version, int) or not 1 <= version <= len(MIGRATIONS):
        raise AuditBroken(f"{path} was written by a newer LunoBiz (version {version}): start that one")
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as model:
        for script in MIGRATIONS[:version]:
            model.executescript(script())
        is_whole = _schema_rows(db) >= _schema_rows(model)
    if not is_whole or _pragma(db, "PRAGMA integrity_check(1)") != "ok":
        raise AuditBroken(f"{path} is damaged: {MOVE_AWAY}")


def _check_file(path: Path) -> None:
    """AuditBroken if there is a file that must not be touched; looks without writing to it."""
    wal = path.with_name(path.name + "-wal")
    if not path.exists():
        if wal.exists() and wal.stat().st_size > 0:
            raise AuditBroken(f"{path} is missing but {wal.name} is there: put it back, or move that away")
        return
    with path.open("rb") as stream:
        if stream.read(16) != b"SQLite format 3\0":
            raise AuditBroken(f"{path} is empty, damaged or not a database: {MOVE_AWAY}")
    is_torn = path.with_name(path.name + "-journal").exists()  # a rollback needs the right to write
    with contextlib.closing(_link(path, "rw" if is_torn else "ro")) as db:
        _inspect(db, path)


def _seal(previous: str, values: Sequence[object]) -> str:
    """The checksum of a row that also covers all rows before it."""
    return hashlib.sha256((previous + repr(tuple(values))).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _money(value: float, scale: int) -> str:
    """A float as the exact decimal text it stands for."""
    if not math.isfinite(value):
        raise AuditBroken("a number in the report is not finite: nothing was written")
    return format(exact(value, scale) + 0, "f")  # + 0 turns -0 into 0


def _told(value: float, scale: int) -> str:
    """The same for a price, volume or fee of a fill; more digits if it lies on no grid, as averages do."""
    is_on_grid = math.isclose(round(value, scale), value, rel_tol=1e-12, abs_tol=1e-15)
    return _money(value, scale if is_on_grid else scale + 8)


class _Clerk(NamedTuple):
    """Turns values into rows of their tables, time first: money exact, texts clean."""

    redactor: Redactor
    mode: str = ""
    markets: Mapping[str, Market] = types.MappingProxyType({})

    def text(self, text: str) -> str:
        """A text fit to be kept: no secret, no half character."""
        return self.redactor.clean(text).encode("utf-8", "replace").decode()

    def clean_json(self, text: str) -> str:
        """A JSON text without secrets that is still JSON; hardly ever is there anything to do."""
        is_clean = self.redactor.clean(text) == text
        return text if is_clean else canonical(self.redactor.clean_value(json.loads(text)))

    def scales(self, pair: str) -> tuple[int, int]:
        """Decimals of price and volume; a market that is gone from the list must not stop the audit."""
        market = self.markets.get(pair)
        return (market.price_scale, market.volume_scale) if market else (FEE_SCALE, FEE_SCALE)

    def decision(self, d: Decision) -> tuple[object, ...]:
        sure = float(d.confidence) if math.isfinite(d.confidence) else None
        known = (d.time_ms, self.mode, d.pair, d.timeframe_s, d.opened_ms, d.action.value, d.strategy, d.regime.value)
        return (*known, sure, d.code, self.text(d.why), self.clean_json(canonical(dict(d.numbers))))

    def order(self, o: Order) -> tuple[object, ...]:
        price, volume = self.scales(o.pair)
        known = (o.created_ms, self.mode, o.order_id, o.pair, o.side.value, o.kind.value)
        money = (_money(o.volume, volume), _money(o.limit, price), _money(o.stop, price))
        return (*known, *money, o.expires_ms, o.strategy, o.regime.value, o.timeframe_s, self.text(o.why))

    def order_event(self, time_ms: int, event: str, what: Order | Outcome) -> tuple[object, ...]:
        why = self.text(what.why)
        return time_ms, self.mode, what.order_id, event, what.state.value, what.is_triggered, why

    def fill(self, f: Fill) -> tuple[object, ...]:
        scales = self.scales(f.pair)
        price, volume = _told(f.price, scales[0]), _told(f.volume, scales[1])
        known = (f.time_ms, self.mode, f.fill_id, f.order_id, f.pair, f.side.value, f.kind.value)
        value, fees = Decimal(price) * Decimal(volume), (_told(f.fee_base, FEE_SCALE), _told(f.fee_counter, FEE_SCALE))
        return (*known, price, volume, format(value, "f"), *fees, f.is_maker, self.text(f.evidence))

    def ledger(self, time_ms: int, row: LedgerRow) -> tuple[object, ...]:
        amounts = (format(n, "f") for n in (row.base, row.counter, row.fee_base, row.fee_counter))
        return time_ms, self.mode, row.order_id, *amounts

    def trip(self, t: RoundTrip) -> tuple[object, ...]:
        price, volume = self.scales(t.pair)
        known = (t.closed_ms, self.mode, t.pair, t.strategy, t.regime.value, t.timeframe_s, t.opened_ms, t.closed_ms)
        money = (_told(t.volume, volume), _told(t.entry, price), _told(t.exit, price))
        return (*known, *money, _money(t.fees, FEE_SCALE), _money(t.profit, FEE_SCALE), self.text(t.reason))

    def event(self, e: Event) -> tuple[object, ...]:
        return e.time_ms, self.mode, e.kind, e.level, e.pair, self.text(e.text)

    def snapshot(self, r: CycleReport) -> tuple[object, ...]:
        money = (_money(value, FEE_SCALE) for value in (r.equity, r.desk.cash, r.exposure))
        return r.now_ms, self.mode, *money, r.desk.state.name, self.clean_json(desk_json(r.desk))


def _link_of(row: Sequence[object]) -> Link:
    """A stored row of a chain; what cannot have been written by us fits no chain."""
    time_ms, *texts = row
    payload, prev_hash, own_hash = (text if isinstance(text, str) else "" for text in texts)
    return Link(time_ms if isinstance(time_ms, int) else -1, payload, prev_hash, own_hash)


Columns = dict[str, object]


class StoredInput(NamedTuple):
    """A row of inputs read back; `number` counts them without a gap in each mode."""

    number: int
    time_ms: int
    kind: str
    text: str


class Audit(NamedTuple):
    """What the audit knows of a mode: its inputs, the rows of its cycles per table, and the owner's acts."""

    mode: Mode
    inputs: tuple[StoredInput, ...]
    rows: Mapping[str, tuple[Columns, ...]]
    acts: tuple[int, ...]
    candles: CandleRows


def _clean_strings(value: object, clean: Callable[[str], str]) -> object:
    """The value with all its texts cleaned; numbers stay, infinite and unknown ones too."""
    if isinstance(value, dict):
        return {k: _clean_strings(v, clean) for k, v in value.items()}
    if isinstance(value, list):
        return [_clean_strings(v, clean) for v in value]
    return clean(value) if isinstance(value, str) else value


def _input_checksum(row: Sequence[object], packed: bytes) -> str:
    return hashlib.sha256(repr(tuple(row)).encode() + packed).hexdigest()[:32]


def _read_input(row: Sequence[object], path: Path) -> StoredInput:
    """A row of `inputs` from its time on; AuditBroken if it is not as it was written."""
    time_ms, mode, number, kind, packed, checksum = row
    if not isinstance(packed, bytes) or checksum != _input_checksum((time_ms, mode, number, kind), packed):
        raise AuditBroken(f"{path} is damaged in its table inputs: {MOVE_AWAY}")
    return StoredInput(int(str(number)), int(str(time_ms)), str(kind), zlib.decompress(packed).decode())


def cycle_rows(report: CycleReport, mode: Mode, markets: Mapping[str, Market],
               redactor: Redactor) -> dict[str, list[tuple[object, ...]]]:
    """What the audit keeps of a cycle, per table of SEALED, as it is written."""
    clerk, settlement, now = _Clerk(redactor, mode.value, markets), report.settlement, report.now_ms
    return {
        "decisions": [clerk.decision(d) for d in report.decisions],
        "order_intents": [clerk.order(o) for o in report.orders],
        "order_events": [clerk.order_event(now, "cancel", o) for o in report.cancels]
        + [clerk.order_event(now, "outcome", o) for o in settlement.outcomes],
        "fills": [clerk.fill(f) for f in settlement.fills],
        "trades": [clerk.trip(t) for t in report.round_trips],
        "events": [clerk.event(e) for e in report.events],
        "snapshots": [clerk.snapshot(report)],
        "ledger": [clerk.ledger(now, row) for row in settlement.ledger],
    }


def _plain_row(row: Sequence[object]) -> list[object]:
    """Numbers as the types that come back from the database."""
    return [float(v) if isinstance(v, float) else int(v) if isinstance(v, int) else v for v in row]


def named_rows(table: str, rows: Iterable[Sequence[object]]) -> list[Columns]:
    """Rows of a cycle as they come back from the database, by the names of their columns."""
    names = ("time_ms", *GROWING[table].split())
    return [dict(zip(names, _plain_row(row), strict=True)) for row in rows]


def _block_checksum(row: Sequence[object], packed: bytes) -> int:
    return zlib.crc32(repr(tuple(row)).encode() + packed)


def _unpack(row: Sequence[object], path: Path) -> NDArray[np.float64]:
    """The candles of a row of `candles`; AuditBroken if they are not as they were written."""
    packed, checksum = row[-2], row[-1]
    if not isinstance(packed, bytes) or checksum != _block_checksum(row[1:-2], packed) or len(packed) % 48:
        raise AuditBroken(f"{path} is damaged in its candles: {MOVE_AWAY}")
    return np.frombuffer(packed, "<f8").reshape(-1, 6)


def _save_block(db: sqlite3.Connection, path: Path, key: tuple[str, int, int], new: NDArray[np.float64]) -> int:
    """Merges candles into their block, where the first of each time stays; returns how many came differently."""
    row = db.execute("SELECT * FROM candles WHERE pair = ? AND timeframe_s = ? AND block = ?", key).fetchone()
    held = _unpack(row, path) if row else np.empty((0, 6))
    both = np.concatenate((held, new))
    times, first = np.unique(both[:, 0], return_index=True)
    rows = both[first]
    if len(rows) > len(held):
        packed = rows.astype("<f8").tobytes()
        db.execute(
            "INSERT INTO candles VALUES (NULL, ?, ?, ?, ?, ?) ON CONFLICT (pair, timeframe_s, block)"
            " DO UPDATE SET packed = excluded.packed, checksum = excluded.checksum",
            (*key, packed, _block_checksum(key, packed)),
        )
    told = rows[np.searchsorted(times, new[:, 0])]
    return int(np.count_nonzero((told != new).any(axis=1)))


def _candle_rows(candles: Iterable[Candle]) -> NDArray[np.float64]:
    rows = [(c.opened_ms, c.open, c.high, c.low, c.close, c.volume) for c in candles]
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


def _save_candles(db: sqlite3.Connection, path: Path, pair: str, seconds: int, rows: NDArray[np.float64]) -> int:
    """Merges candles into all blocks they belong to; returns how many came differently."""
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    blocks = (rows[:, 0] // (seconds * 1000 * BLOCK_CANDLES)).astype(np.int64)
    keys = [(pair, seconds, int(block)) for block in np.unique(blocks)]
    return sum(_save_block(db, path, key, rows[blocks == key[2]]) for key in keys)


def _rows_between(db: sqlite3.Connection, table: str, mode: Mode, span: tuple[int, int]) -> tuple[Columns, ...]:
    """Rows of a mode with span[0] <= rowid <= span[1], by the names of their columns, without their seals."""
    query = f"SELECT * FROM {table} WHERE mode = ? AND rowid BETWEEN ? AND ? ORDER BY rowid"  # noqa: S608
    names = ("rowid", "time_ms", *GROWING[table].split())
    return tuple(dict(zip(names, row[:-1], strict=True)) for row in db.execute(query, (mode.value, *span)))


class Store:
    """The database of one data folder, for one thread; every call that writes is one transaction on disk."""

    def __init__(self, path: Path, redactor: Redactor, synchronous: str = "FULL") -> None:
        self.path, self._redactor = path, redactor
        self._seals: dict[str, str] = {}
        self._others: object = None  # changes when another connection has written
        with _named_trouble(path):
            _check_file(path)
            if not path.exists():
                _create(path)
            self._db = _link(path, "rw")
        try:
            with _named_trouble(path):
                self._prepare(synchronous)
        except AuditBroken:
            self._db.close()
            raise

    def record(self, report: CycleReport, mode: Mode, markets: Mapping[str, Market],
               inputs: Iterable[InputRow] = ()) -> None:
        """Writes all of a cycle and its inputs, or nothing; AuditBroken then, and nothing of it may be sent."""
        with self._writing():
            for table, rows in cycle_rows(report, mode, markets, self._redactor).items():
                self._append(table, rows)
            self._append_inputs(mode, inputs)

    def record_inputs(self, mode: Mode, inputs: Iterable[InputRow]) -> None:
        """Writes inputs of cycles that left nothing else, and lets go of those older than INPUT_DAYS; candles stay."""
        with self._writing():
            newest = self._append_inputs(mode, inputs)
            oldest = (mode.value, newest - INPUT_DAYS * DAY_MS)
            self._db.execute("DELETE FROM inputs WHERE kind <> 'candles' AND mode = ? AND time_ms < ?", oldest)

    def marks(self) -> dict[str, int]:
        """The newest row of each table that a replay is compared with."""
        return {t: int(str((self._fetch(_page_query(t, newest=True), (0, 1)) or [(0,)])[0][0])) for t in REPLAYED}

    def write_journal(self, table: str, row: Sequence[object]) -> None:
        """Adds one row to a table of JOURNAL; AuditBroken then, and what it speaks of must not be done."""
        with self._writing():
            self._append(table, [[_Clerk(self._redactor).text(v) if isinstance(v, str) else v for v in row]])

    def rows_of(self, table: str, mode: Mode) -> tuple[Columns, ...]:
        """All rows of a growing table in a mode, oldest first."""
        with _named_trouble(self.path):
            return _rows_between(self._db, table, mode, (0, 2**62))

    def record_events(self, events: Iterable[Event]) -> None:
        """Writes events that belong to no cycle."""
        with self._writing():
            self._append("events", map(_Clerk(self._redactor).event, events))

    def record_metrics(self, time_ms: int, name: str, values: Mapping[str, object]) -> None:
        """Writes the result of a backtest."""
        payload = canonical(self._redactor.clean_value(values))
        with self._writing():
            self._append("metrics", [(time_ms, _Clerk(self._redactor).text(name), payload)])

    def adopt_results(self, rows: Sequence[tuple[int, str, str]]) -> None:
        """Writes time, name and payload of results that another database held, oldest first, all or none."""
        with self._writing():
            self._append("metrics", rows)

    def results(self, name: str, newest: int) -> list[tuple[int, int, str]]:
        """Number, time and payload (JSON) of the newest results of this name, the newest first."""
        query = "SELECT rowid, time_ms, payload FROM metrics WHERE name = ? ORDER BY rowid DESC LIMIT ?"
        return [(int(str(n)), int(str(t)), str(text)) for n, t, text in self._fetch(query, (name, newest))]

    def mark_session(self, kind: str, time_ms: int) -> None:
        """Notes that a trading session was "opened" or "closed"."""
        if kind not in ("opened", "closed"):
            raise ValueError(f"a session is opened or closed, not {kind}")
        with self._writing():
            self._append("sessions", [(time_ms, kind)])

    def is_session_open(self) -> bool:
        """True if the last session was never closed: the program or the machine crashed."""
        rows = self._fetch(_page_query("sessions", newest=True), (0, 1))
        return bool(rows) and rows[0][2] == "opened"

    def last_desk(self, mode: Mode) -> tuple[int, Desk] | None:
        """Market time and desk of the newest snapshot of a mode; None if there is none."""
        newest = "SELECT time_ms, desk FROM snapshots WHERE mode = ? ORDER BY rowid DESC LIMIT 1"
        rows = self._fetch(newest, (mode.value,))
        try:
            return (int(str(rows[0][0])), desk_from_json(str(rows[0][1]))) if rows else None
        except DataError:
            raise AuditBroken(f"{self.path}: the last desk cannot be read; {MOVE_AWAY}") from None

    def save_candles(self, pair: str, timeframe_s: int, candles: Sequence[Candle]) -> int:
        """Adds closed candles; one that is there already stays. Returns how many came differently."""
        return self.save_rows(pair, timeframe_s, _candle_rows(candles))

    def save_news(self, news: Sequence[tuple[str, int, Sequence[Candle]]]) -> tuple[int, ...]:
        """The same for (pair, seconds, candles) of many markets, all in one transaction."""
        with self._writing():
            return tuple(_save_candles(self._db, self.path, pair, seconds, _candle_rows(candles))
                         for pair, seconds, candles in news)

    def save_rows(self, pair: str, timeframe_s: int, rows: NDArray[np.float64]) -> int:
        """The same for an array of opened_ms, open, high, low, close, volume."""
        with self._writing():
            return _save_candles(self._db, self.path, pair, timeframe_s, rows)

    def candles(self, pair: str, timeframe_s: int, since_ms: int = 0, until_ms: int = 2**62) -> NDArray[np.float64]:
        """Rows of opened_ms, open, high, low, close, volume with since <= opened_ms < until, oldest first."""
        span = timeframe_s * 1000 * BLOCK_CANDLES
        query = "SELECT * FROM candles WHERE pair = ? AND timeframe_s = ? AND block BETWEEN ? AND ? ORDER BY block"
        found = self._fetch(query, (pair, timeframe_s, since_ms // span, until_ms // span))
        if not found:
            return np.empty((0, 6))
        rows = np.concatenate([_unpack(row, self.path) for row in found])
        low, high = np.searchsorted(rows[:, 0], (since_ms, until_ms))
        return rows[low:high]

    def candle_count(self, pair: str, timeframe_s: int) -> int:
        """How many candles are there."""
        query = "SELECT SUM(LENGTH(packed)) / 48 FROM candles WHERE pair = ? AND timeframe_s = ?"
        return int(str(self._fetch(query, (pair, timeframe_s))[0][0] or 0))

    def table(self, name: str, since_rowid: int = 0, limit: int = 1000) -> list[dict[str, object]]:
        """Rows with a greater `rowid`, oldest first."""
        if name not in TABLES:
            raise ValueError(f"there is no table {name[:40]!r}")
        with _named_trouble(self.path):
            cursor = self._db.execute(_page_query(name), (since_rowid, limit))
            names = [column[0] for column in cursor.description]
            return [{k: v for k, v in zip(names, row, strict=True) if k != "seal"} for row in cursor]

    def verify(self) -> None:
        """Checks every row and every candle; AuditBroken if one is not as it was written."""
        with _named_trouble(self.path):
            _inspect(self._db, self.path)
            self._check_seals(2**62)
            for table in CHAINED:
                if not is_chain_whole(self.links(table)):
                    raise AuditBroken(f"{self.path} is damaged in its table {table}: {MOVE_AWAY}")
            for row in self._db.execute(_page_query("candles"), (0, -1)):
                _unpack(row, self.path)
            for row in self._db.execute(_page_query("inputs"), (0, -1)):
                _read_input(row[1:], self.path)

    def links(self, table: str) -> tuple[Link, ...]:
        """All rows of "gate_rows" or "attempts" as they are stored, oldest first; nothing is checked."""
        if table not in CHAINED:
            raise ValueError(f"{table[:40]!r} is not chained")
        return tuple(_link_of(row[1:]) for row in self._fetch(_page_query(table), (0, -1)))

    def add_link(self, table: str, time_ms: int, payload_after: Callable[[str], str]) -> Link:
        """Adds a row, made from the hash of the row before it; DataError if the chain is not whole."""
        with self._writing():
            held = self.links(table)
            if not is_chain_whole(held):
                raise DataError(f"{self.path} is damaged in its table {table}: {MOVE_AWAY}")
            before = held[-1].hash if held else ""
            link = linked(before, time_ms, payload_after(before))
            query = f"INSERT INTO {table} VALUES (NULL, ?, ?, ?, ?)"  # noqa: S608 - a name of ours
            self._db.execute(query, link)
        return link

    def size_bytes(self) -> int:
        """Size on disk, the part not yet merged included."""
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(f.stat().st_size for f in files if f.exists())

    def close(self) -> None:
        """Merges what is not merged yet and closes; may be called twice."""
        with contextlib.suppress(sqlite3.Error):  # what is not merged stays safe in the -wal file
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with _named_trouble(self.path):
            self._db.close()

    def _prepare(self, synchronous: str) -> None:
        try:
            self._db.execute("PRAGMA journal_mode = WAL").fetchall()
        except sqlite3.OperationalError:  # some file systems cannot share memory
            self._db.execute("PRAGMA journal_mode = DELETE").fetchall()
        self._db.execute("PRAGMA synchronous = OFF" if synchronous == "OFF" else "PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA fullfsync = ON")
        self._db.execute("PRAGMA recursive_triggers = ON")  # or INSERT OR REPLACE would pass by the triggers
        version = _pragma(self._db, "PRAGMA user_version")
        for script in MIGRATIONS[version if isinstance(version, int) else len(MIGRATIONS) :]:
            self._db.executescript(script())
        self._check_seals(CHECKED_ROWS)

    def _fetch(self, query: str, values: Sequence[object]) -> list[tuple[object, ...]]:
        with _named_trouble(self.path):
            return self._db.execute(query, values).fetchall()

    def _check_seals(self, limit: int) -> None:
        """AuditBroken unless the newest `limit` rows of each table are as they were written."""
        for table in GROWING:
            newest = self._db.execute(_page_query(table, newest=True), (0, 1)).fetchone()
            since = max(0, newest[0] - limit - 1) if newest else 0
            previous = "" if since == 0 else None
            for row in self._db.execute(_page_query(table), (since, -1)):
                if previous is not None and row[-1] != _seal(previous, row[1:-1]):
                    raise AuditBroken(f"{self.path} is damaged in its table {table}: {MOVE_AWAY}")
                previous = row[-1]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction; whatever goes wrong, nothing of it stays."""
        with _named_trouble(self.path):
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                others = _pragma(self._db, "PRAGMA data_version")
                if others != self._others:
                    self._seals = {}
                self._others = None  # until all is written: after trouble the last seals are read afresh
                yield
            self._others = others

    def _append(self, table: str, rows: Iterable[Sequence[object]]) -> None:
        """Adds sealed rows; numbers as the types that come back from the database."""
        if table not in self._seals:
            newest = self._db.execute(_page_query(table, newest=True), (0, 1)).fetchone()
            self._seals[table] = newest[-1] if newest else ""
        marks = ", ?" * (len(GROWING[table].split()) + 2)
        query = f"INSERT INTO {table} VALUES (NULL{marks})"  # noqa: S608 - a name of ours
        for row in rows:
            if table not in ID_OF or not self._is_held(table, row):
                plain = _plain_row(row)
                seal = _seal(self._seals[table], plain)
                self._db.execute(query, (*plain, seal))
                self._seals[table] = seal

    def _append_inputs(self, mode: Mode, inputs: Iterable[InputRow]) -> int:
        """Adds inputs, numbered on; returns the newest time."""
        query = "SELECT MAX(number), MAX(time_ms) FROM inputs WHERE mode = ?"
        number, newest = (int(str(v or 0)) for v in self._db.execute(query, (mode.value,)).fetchone())
        for row in inputs:
            number, newest = number + 1, max(newest, row.time_ms)
            text, known = row.text, (row.time_ms, mode.value, number, row.kind)
            if self._redactor.clean(text) != text:
                text = input_text(_clean_strings(json.loads(text), self._redactor.clean))
            packed = zlib.compress(text.encode("utf-8", "replace"))
            self._db.execute(
                "INSERT INTO inputs VALUES (NULL, ?, ?, ?, ?, ?, ?)", (*known, packed, _input_checksum(known, packed))
            )
        return newest

    def _is_held(self, table: str, row: Sequence[object]) -> bool:
        """True if an order or a fill is there already; AuditBroken if another one has its id."""
        query = f"SELECT * FROM {table} WHERE mode = ? AND {ID_OF[table]} = ?"  # noqa: S608 - names of ours
        held = self._db.execute(query, (row[1], row[2])).fetchone()
        if held is not None and held[3:-2] != tuple(row[2:-1]):  # all but when it was told and in which words
            raise AuditBroken(f"{self.path}: {row[2]} came a second time, and differently: report this")
        return held is not None


def _marks_of(text: str) -> dict[str, int]:
    """The marks of a start, whether this program can run it or not."""
    try:
        return {t: int(json.loads(text)["marks"][t]) for t in REPLAYED}
    except (ValueError, TypeError, KeyError):
        raise AuditBroken("a start in the table inputs cannot be read") from None


def _numbers(db: sqlite3.Connection, mode: Mode, from_ms: int, to_ms: int) -> tuple[int, int]:
    """First and last number of the inputs between two times; the start that comes after them is the last."""
    query = "SELECT number, time_ms FROM inputs WHERE mode = ? AND kind = 'start' ORDER BY number"
    starts = db.execute(query, (mode.value,)).fetchall()
    first = next((n for n, t in starts if from_ms <= t < to_ms), 2**62)
    return first, next((n for n, t in starts if n > first and t >= to_ms), 2**62)


def _read_rows(
    db: sqlite3.Connection, mode: Mode, inputs: Sequence[StoredInput], is_closed: bool
) -> dict[str, tuple[Columns, ...]]:
    """The audit's rows beside these inputs, up to the last start if they are closed; and the snapshot before them."""
    if not inputs:
        return {table: () for table in REPLAYED}
    low = _marks_of(inputs[0].text)
    high = _marks_of(inputs[-1].text) if is_closed else dict.fromkeys(REPLAYED, 2**62)
    last = "SELECT MAX(rowid) FROM snapshots WHERE mode = ? AND rowid <= ?"
    before = db.execute(last, (mode.value, low["snapshots"])).fetchone()[0]
    spans = {t: (low[t] + 1, high[t]) for t in REPLAYED}
    if before is not None:
        spans["snapshots"] = (before, high["snapshots"])
    return {t: _rows_between(db, t, mode, span) for t, span in spans.items()}


def _all_candles(db: sqlite3.Connection, path: Path, mode: Mode) -> dict[tuple[str, int], Floats]:
    """All candles a session had: of the cache in real time, of its own inputs on a stepped clock."""
    query = "SELECT * FROM inputs WHERE mode = ? AND kind = 'candles' ORDER BY number"
    found = candle_rows(_read_input(row[1:], path).text for row in db.execute(query, (mode.value,)))
    parts: dict[tuple[str, int], list[Floats]] = {}
    for row in db.execute("SELECT * FROM candles ORDER BY pair, timeframe_s, block"):
        parts.setdefault((str(row[1]), int(row[2])), []).append(_unpack(row, path))
    return found | {key: np.concatenate(blocks) for key, blocks in parts.items()}


def read_audit(path: Path, mode: Mode, from_ms: int = 0, to_ms: int = 2**62) -> Audit:
    """Inputs and rows of the stretches that began between two times; only reads, and holds nothing up for long."""
    with _named_trouble(path), contextlib.closing(_link(path, "ro")) as db:
        db.execute("BEGIN")
        span = _numbers(db, mode, from_ms, to_ms)
        query = "SELECT * FROM inputs WHERE mode = ? AND number BETWEEN ? AND ? ORDER BY number"
        inputs = tuple(_read_input(row[1:], path) for row in db.execute(query, (mode.value, *span)))
        query = "SELECT time_ms FROM events WHERE mode IN ('', ?) AND kind IN ('rearm', 'close_all')"
        acts = db.execute(query, (mode.value,))
        rows, candles = _read_rows(db, mode, inputs, span[1] < 2**62), _all_candles(db, path, mode)
        return Audit(mode, inputs, rows, tuple(int(row[0]) for row in acts), candles)


NOT_PROCESSED = ("no_candles", "stale_candles", "no_quote", "stale_quote")  # decided without the candle or a quote
PAPER_DECIDED = """SELECT pair, timeframe_s, opened_ms / 86400000, COUNT(DISTINCT opened_ms) FROM decisions
WHERE mode = ? AND code NOT IN (?, ?, ?, ?) GROUP BY 1, 2, 3"""
PAPER_FILLS = """SELECT f.time_ms, f.kind, f.side, f.price, f.volume, o.limit_price, o.stop_price FROM fills f
LEFT JOIN order_intents o ON o.mode = f.mode AND o.order_id = f.order_id WHERE f.mode = ? ORDER BY f.rowid"""


def _paper_fill(row: Sequence[object]) -> PaperFill:
    """A fill read back; an order that is not there has prices of 0."""
    numbers = (float(str(value or 0)) for value in row[3:])
    return PaperFill(int(str(row[0])), OrderKind(row[1]), Side(row[2]), *numbers)


def read_reasons(path: Path, mode: Mode, since_ms: int) -> tuple[ReasonRow, ...]:
    """The newest decisions of a mode since a time, the newest first; only reads."""
    query = ("SELECT time_ms, pair, timeframe_s, action, code, why FROM decisions WHERE mode = ? AND time_ms >= ?"
             " ORDER BY rowid DESC LIMIT 5000")
    with _named_trouble(path), contextlib.closing(_link(path, "ro")) as db:
        return tuple(ReasonRow(*row) for row in db.execute(query, (mode.value, since_ms)))


def read_fills(path: Path, mode: Mode) -> tuple[PaperFill, ...]:
    """All fills of a mode with the limits and stops of their orders, oldest first; only reads."""
    with _named_trouble(path), contextlib.closing(_link(path, "ro")) as db:
        return tuple(map(_paper_fill, db.execute(PAPER_FILLS, (mode.value,))))


def read_paper(path: Path) -> PaperFacts:
    """What the audit has of PAPER; only reads. What cannot be read as it was written raises AuditBroken."""
    mode = Mode.PAPER.value
    with _named_trouble(path), contextlib.closing(_link(path, "ro")) as db:
        db.execute("BEGIN")
        told = db.execute("SELECT name, time_ms, payload FROM metrics WHERE name IN (?, ?) ORDER BY rowid",
                          ("configuration", "day")).fetchall()
        decided = {(str(p), int(s), int(day)): int(n)
                   for p, s, day, n in db.execute(PAPER_DECIDED, (mode, *NOT_PROCESSED))}
    fills = read_fills(path, Mode.PAPER)
    rows = [(name, int(time_ms), json.loads(payload)) for name, time_ms, payload in told]
    results: dict[int, float] = {}
    for name, _, row in rows:
        if name == "day":
            results[int(row["day"])] = min(float(row["return"]), results.get(int(row["day"]), math.inf))
    marks = tuple(PaperMark(t, str(row["configuration"])) for name, t, row in rows if name == "configuration")
    return PaperFacts(marks, decided, results, fills)


# ==============================================================================
# PARITY | do the recorded inputs still give what was recorded
# shell | uses ERRORS TYPES SETTINGS PORTFOLIO CYCLE BACKTEST REPLAY SYSTEM STORE
# ==============================================================================

from itertools import pairwise, zip_longest

# A stretch begins with a start, which holds the desk and the settings, and ends before the next start. Each is run by
# itself: after a difference the rest of its stretch can only differ too, and the next one has its own desk.
CAUSES: Mapping[str, str] = types.MappingProxyType({
    "inputs-missing": "inputs are missing",
    "inputs-unreadable": "this program cannot read the inputs",
    "cycle-without-input": "a cycle was recorded without its input",
    "program-changed": "the program has changed since",
    "settings-changed": "the recorded settings are not the ones the session ran with",
    "crash": "the program broke off, and went on from another desk than the one written last",
    "start-differs": "the session went on from another desk than the one written last",
    "owner-act": "an act of the owner, such as re-arming or closing all, is missing among the inputs",
    "kill": "an answer of the kill switch is missing among the inputs",
    "edited": "same program, same settings: an input or a row was changed after it was written",
})  # fmt: skip
ROW_WORDS: Mapping[str, str] = types.MappingProxyType({
    "fills": "fill", "order_events": "order outcome", "trades": "round trip", "decisions": "decision",
    "order_intents": "order", "snapshots": "desk",
})  # fmt: skip
JSON_COLUMNS = ("numbers", "desk")

@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing that a stretch gives otherwise than it was recorded: where, what, and why."""

    cause: str
    what: str
    time_ms: int
    pair: str = ""
    field: str = ""
    recorded: str = ""
    replayed: str = ""
    detail: str = ""

    @property
    def text(self) -> str:
        """The difference as sentences."""
        where = " ".join(w for w in (self.pair, self.what, "at", _iso(self.time_ms)) if w)
        if self.recorded or self.replayed:
            where += f", {self.field or 'row'}: recorded {self.recorded}, replayed {self.replayed}"
        why = CAUSES[self.cause] + (f" ({self.detail})" if self.detail else "")
        return f"{where}. Cause: {why}."


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What a check found; `idle` counts cycles that changed nothing, whose inputs were not kept."""

    mode: Mode
    from_ms: int
    to_ms: int
    stretches: int
    counts: Mapping[str, int]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """True when nothing differs."""
        return not self.differences

    @property
    def headline(self) -> str:
        """The result in a line: how much is equal, or the first difference."""
        if self.differences:
            more = f" And {len(self.differences) - 1} more." if len(self.differences) > 1 else ""
            return f"Replay check: NOT equal. {self.differences[0].text}{more}"
        days = " to ".join(dict.fromkeys(_iso(t)[:10] for t in (self.from_ms, self.to_ms)))
        done = f"{self.counts.get('cycles', 0)} cycles of {days} equal" if self.stretches else "nothing to check"
        return f"Replay check: {done}"

    @property
    def text(self) -> str:
        """The headline, and what was compared."""
        compared = (("signals", "signals"), ("decisions", "decisions"), ("order_intents", "orders"), ("fills", "fills"))
        made = ", ".join(f"{self.counts.get(table, 0)} {words}" for table, words in compared)
        return self.headline if self.differences or not self.stretches else f"{self.headline} ({made})"


class Stretch(NamedTuple):
    """A start and the rows of inputs after it up to the next start; `gap` is the first number missing, 0 for none."""

    first: StoredInput
    rest: tuple[StoredInput, ...]
    following: StoredInput | None
    gap: int


def stretches_of(inputs: Sequence[StoredInput], to_ms: int) -> Iterator[Stretch]:
    """The stretches that begin before a time; what comes before the first start has no desk to begin from."""
    places = [i for i, row in enumerate(inputs) if row.kind == "start"]
    for place, end in zip_longest(places, places[1:]):
        if inputs[place].time_ms < to_ms or place == places[0]:
            following = None if end is None else inputs[end]
            part = inputs[place:] if end is None else inputs[place : end + 1]
            gap = next((a.number + 1 for a, b in pairwise(part) if b.number != a.number + 1), 0)
            yield Stretch(inputs[place], tuple(inputs[place + 1 : end]), following, gap)


def _shown(value: object) -> str:
    """A value of a difference, short enough for a sentence."""
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= 80 else text[:77] + "..."


def first_path(a: object, b: object, path: str = "") -> tuple[str, object, object] | None:
    """Where two JSON values first differ, by the names and places on the way, and both values there."""
    if isinstance(a, dict) and isinstance(b, dict):
        places = [(str(k), a.get(k), b.get(k)) for k in dict.fromkeys((*a, *b))]
    elif isinstance(a, list) and isinstance(b, list):
        places = [(str(i), x, y) for i, (x, y) in enumerate(zip_longest(a, b))]
    else:
        return None if canonical(a) == canonical(b) else (path, a, b)
    found = (first_path(x, y, f"{path}.{name}" if path else name) for name, x, y in places)
    return next((place for place in found if place is not None), None)


def _opened(row: Columns) -> Columns:
    """A row with its JSON columns read and its place in the file left out."""
    return {k: json.loads(str(v)) if k in JSON_COLUMNS else v for k, v in row.items() if k != "rowid"}


def _pair_in(row: Columns, path: str) -> str:
    """The market of the position or order that a path into a desk leads to."""
    found: object = row
    for name in path.split(".")[:3]:
        if isinstance(found, dict):
            found = found.get(name)
        else:
            found = found[int(name)] if isinstance(found, list) and int(name) < len(found) else None
    return str(found.get("pair", "")) if isinstance(found, dict) else ""


def _time_of(row: Columns) -> int:
    return int(str(row["time_ms"]))


class _Run:
    """One stretch, run beside the rows that were recorded in it."""

    def __init__(self, stretch: Stretch, audit: Audit, source_hash: str) -> None:
        self.stretch, self.audit, self._source = stretch, audit, source_hash
        self.start = start_from_text(stretch.first.text)
        self.rerun = Rerun(self.start.settings, desk_from_json(self.start.desk))
        self._signals = Signals(audit.candles, self.start.settings.params)
        ends = {} if stretch.following is None else _marks_of(stretch.following.text)
        self.left = {
            t: deque(r for r in audit.rows[t] if self.start.marks[t] < int(str(r["rowid"])) <= ends.get(t, 2**62))
            for t in REPLAYED
        }
        self.pairs = {o.order_id: o.pair for o in self.rerun.desk.orders}
        self.counts: Counter[str] = Counter()
        self._times: set[int] = set()
        self._acts = 0

    def _cause(self, time_ms: int, row: Columns) -> tuple[str, str]:
        """Why this row differs, and what more there is to say."""
        start = self.start
        acts = sum(self.stretch.first.time_ms <= t <= time_ms for t in self.audit.acts)
        if start.source_hash != self._source:
            then, now = f"{start.version} {start.source_hash[:8]}", f"{__version__} {self._source[:8]}"
            return "program-changed", f"version {then} then, {now} now"
        if start.config_hash != config_hash(start.settings):
            return "settings-changed", ""
        if acts > self._acts:
            return "owner-act", ""
        answers = [row, *(r for r in self.left["order_events"] if _time_of(r) == time_ms)]
        return ("kill" if any(r.get("why") == "kill switch" for r in answers) else "edited"), ""

    def _differ(self, table: str, theirs: Columns | None, ours: Columns | None) -> Difference:
        """The difference of two rows that should be the same one; either may be missing."""
        is_other = theirs is None or ours is None or _time_of(theirs) != _time_of(ours)
        if is_other and theirs is not None and (ours is None or _time_of(theirs) < _time_of(ours)):
            return self._alone(table, theirs, ("a row", "none"))
        if theirs is None or ours is None or is_other:
            return self._alone(table, ours or {}, ("none", "a row"))
        a, b = _opened(theirs), _opened(ours)
        path, old, new = first_path(a, b) or ("", None, None)
        pair = self._pair(b) or _pair_in(a, path) or _pair_in(b, path)
        cause, detail = self._cause(_time_of(a), a)
        words = ROW_WORDS[table]
        return Difference(cause, words, _time_of(a), pair, path, _shown(old), _shown(new), detail)

    def _alone(self, table: str, row: Columns, sides: tuple[str, str]) -> Difference:
        """A row that only one side has."""
        cause, detail = self._cause(_time_of(row), row)
        if sides[1] == "none" and _time_of(row) not in self._times:
            cause, detail = "cycle-without-input", ""
        return Difference(cause, ROW_WORDS[table], _time_of(row), self._pair(row), "row", *sides, detail)

    def _pair(self, row: Columns) -> str:
        return str(row.get("pair") or self.pairs.get(str(row.get("order_id")), ""))

    def _compare(self, report: CycleReport, moment: Moment) -> Difference | None:
        """The first row of a cycle that was recorded otherwise."""
        made = cycle_rows(report, self.audit.mode, {v.pair: v.market for v in moment.views}, Redactor())
        self.pairs.update({o.order_id: o.pair for o in report.orders})
        for table in REPLAYED:
            for ours in named_rows(table, made[table]):
                theirs = self.left[table].popleft() if self.left[table] else None
                if theirs is None or canonical({k: theirs[k] for k in ours}) != canonical(ours):
                    return self._differ(table, theirs, ours)
        self.counts.update({table: len(made[table]) for table in REPLAYED})
        return None

    def _reread(self, moment: Moment) -> Difference | None:
        """The first reading of the strategies that the candles do not give again."""
        for told in (o for v in moment.views for o in v.outlooks if moment.due):
            ours = self._signals.again(told)
            self.counts["signals"] += ours is not None
            if ours is not None and canonical(told) != canonical(ours):
                path, a, b = first_path(json.loads(canonical(told)), json.loads(canonical(ours))) or ("", None, None)
                cause, detail = self._cause(moment.now_ms, {})
                return Difference(cause, "signal", moment.now_ms, told.pair, path, _shown(a), _shown(b), detail)
        return None

    def _step(self, entry: Entry, answers: Sequence[bool]) -> Difference | None:
        """One entry: a cycle, or an act of the owner."""
        if entry.act:
            self.rerun.act(entry.act)
            self._acts += 1
        if entry.moment is None:
            return None
        try:
            report = self.rerun.cycle(entry.moment, answers, entry.heard)
        except (LunobizError, ValueError, TypeError, ArithmeticError) as error:
            now, stops = entry.moment.now_ms, f"the line stops at it: {type(error).__name__}"
            return Difference(self._cause(now, {})[0], "input", now, detail=stops)
        self._times.add(report.now_ms)
        self.counts["cycles"] += 1
        if not entry.is_kept and report.is_quiet:
            return None
        return self._reread(entry.moment) or self._compare(report, entry.moment)

    def _entries(self) -> Iterator[Entry]:
        """All entries up to the first row that is missing, and an empty one at the end."""
        for row in self.stretch.rest:
            if row.kind == "block" and not 0 < self.stretch.gap < row.number:
                idle, found = block_entries(row.text)
                self.counts["idle"] += idle
                yield from found
        yield Entry()

    def walk(self) -> Difference | None:
        """Run all entries; the first difference, a gap, or the first row that is left over."""
        waiting = Entry()
        for entry in self._entries():  # the answers to a cycle's orders come after it
            found = self._step(waiting, entry.answers)
            if found is not None:
                return found
            waiting = entry
        if self.stretch.gap:
            rows = [*self.stretch.rest, *([self.stretch.following] if self.stretch.following else [])]
            later = next(row.time_ms for row in rows if row.number > self.stretch.gap)
            return Difference("inputs-missing", "input", later, detail=f"number {self.stretch.gap}")
        rest = [(t, self.left[t][0]) for t in REPLAYED if self.left[t]]
        first = min(rest, key=lambda r: _time_of(r[1])) if rest else None
        return None if first is None else self._differ(first[0], first[1], None)


def _opening(run: _Run, before: _Run | None) -> Difference | None:
    """The desk a stretch begins with must be the one that was there: written last, or reached by the replay."""
    start, mark = run.start, run.start.marks["snapshots"]
    rows = [r for r in run.audit.rows["snapshots"] if int(str(r["rowid"])) <= mark]
    if not start.is_session:
        if before is None:
            return None
        expected = desk_json(before.rerun.desk)
    else:
        expected = str(rows[-1]["desk"]) if rows else desk_json(Desk(start.settings.schedule.paper_cash))
    if start.desk == expected:
        return None
    path, old, new = first_path(json.loads(start.desk), json.loads(expected)) or ("", None, None)
    cause = "edited" if not start.is_session else "crash" if start.is_after_crash else "start-differs"
    if start.is_session and not rows and (mark or run.audit.mode is Mode.LIVE):
        return None  # the row before was written long ago or in another mode; LIVE begins with what the account has
    time_ms = run.stretch.first.time_ms
    return Difference(cause, "desk", time_ms, "", path, _shown(old), _shown(new))


def _notes(run: _Run, before: StartRow | None, source_hash: str) -> Iterator[str]:
    """What is worth knowing of a stretch even if it is equal."""
    start, when = run.start, _iso(run.stretch.first.time_ms)
    if start.is_after_crash:
        yield f"{when}: began after a crash, from the desk written last"
    if before is not None and before.config_hash != start.config_hash:
        yield f"{when}: other settings from here on ({before.config_hash[:8]}, then {start.config_hash[:8]})"
    if start.source_hash != source_hash and (before is None or before.source_hash != start.source_hash):
        yield f"{when}: recorded by another program, version {start.version}"


def check_parity(audit: Audit, source_hash: str, to_ms: int = 2**62) -> ParityReport:
    """Run all stretches that begin before a time; a difference at most from each."""
    found: list[Difference] = []
    notes: list[str] = []
    counts: Counter[str] = Counter()
    before: _Run | None = None
    start: StartRow | None = None
    stretches = list(stretches_of(audit.inputs, to_ms))
    for stretch in stretches:
        try:
            run = _Run(stretch, audit, source_hash)
            difference = _opening(run, before) or run.walk()
        except DataError as error:
            before = None
            found.append(Difference("inputs-unreadable", "input", stretch.first.time_ms, detail=str(error)))
            continue
        notes += _notes(run, start, source_hash)
        counts.update(run.counts)
        before, start = (run if difference is None else None), run.start
        found += [difference] if difference is not None else []
    times = [row.time_ms for s in stretches for row in (s.first, *s.rest)]
    span = (min(times), max(times)) if times else (0, 0)
    return ParityReport(audit.mode, *span, len(stretches), dict(counts), tuple(found), tuple(notes))


def parity_json(report: ParityReport) -> dict[str, object]:
    """The report as plain values for a JSON file."""
    counts = {t: t.replace("order_intents", "orders") for t in ("cycles", "idle", "signals", *REPLAYED)}
    return {
        "mode": report.mode.value, "equal": report.is_equal, "text": report.text,
        "from": _iso(report.from_ms), "to": _iso(report.to_ms), "stretches": report.stretches,
        "counts": {name: report.counts.get(key, 0) for key, name in counts.items()},
        "differences": [asdict(d) | {"time": _iso(d.time_ms), "text": d.text} for d in report.differences],
        "notes": list(report.notes),
    }


# ==============================================================================
# HTTP | one polite way out
# shell | uses ERRORS SETTINGS PORTFOLIO SYSTEM | owns requests ssl urllib3
# ==============================================================================

import ssl
from email.utils import parsedate_to_datetime
from http.client import HTTPException

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH

Params = Sequence[tuple[str, str]]
LUNO_HOST = "api.luno.com"
BODY_CAP = 2 * 1024 * 1024  # bytes after unpacking; a thousand candles are about 150 kB
TIMEOUTS_S = (5.0, 10.0, 20.0)  # to connect, for one read, for the whole answer
MAX_RETRY_AFTER_S = 300.0
PATIENCE_S = 25.0
MAX_PAUSE_S = 5.0  # the limiter waits this long by itself; beyond it the caller is told
TOO_LATE = "the exchange did not answer in time"
_BASE_URL = re.compile(r"https://([A-Za-z0-9.-]+)(:\d{1,5})?", re.ASCII)
_URL_PATH = re.compile(r"(/[A-Za-z0-9_.:,;-]+)+", re.ASCII)


class Reply(NamedTuple):
    """An answer of any status; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Reply({self.status}, {len(self.body)} bytes)"


class Transport(Protocol):
    """The one way to the exchange; the demo exchange and the tests have their own."""

    def send(self, method: str, path: str, params: Params = (), key: Credentials | None = None) -> Reply:
        """One request, one answer; ExchangeDown if there is none. Statuses are for the caller to judge."""

    def close(self) -> None:
        """Let go of the connection."""


class _Context(ssl.SSLContext):
    """Trust of our own, as the library's default listens to the environment, and the deadline of the answer."""

    clock: Clock
    deadline_s: float = math.inf
    read_s: float = math.inf


class _DeadlineSocket(ssl.SSLSocket):
    """A TLS socket that keeps the deadline at each read, or a slow drip of bytes could hold us for hours."""

    def recv_into(self, buffer: bytearray, nbytes: int | None = None, flags: int = 0) -> int:  # type: ignore[override]
        if isinstance(self.context, _Context):
            left_s = self.context.deadline_s - self.context.clock.mono_s()
            if left_s <= 0:
                raise ExchangeDown(TOO_LATE)
            self.settimeout(min(left_s, self.context.read_s))
        return super().recv_into(buffer, nbytes, flags)


class _Adapter(HTTPAdapter):
    """The library's connection pool with our context in it."""

    def __init__(self, context: _Context) -> None:
        self._context = context
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: object) -> None:
        super().init_poolmanager(connections, maxsize, block, ssl_context=self._context, **kwargs)

    def cert_verify(self, conn: object, url: object, verify: object, cert: object) -> None:
        """Add no certificates: the library would put its whole bundle beside a test exchange's authority."""


def _tls_context(ca_file: str) -> _Context:
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name by itself
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _DeadlineSocket
    context.clock = SystemClock()  # sockets live in real time, whatever clock the desk runs on
    try:
        context.load_verify_locations(ca_file or DEFAULT_CA_BUNDLE_PATH)
    except OSError:
        raise SettingsError("LUNOBIZ_EXCHANGE_CA does not name a readable file of PEM certificates") from None
    return context


def _chain_of(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__context__
    return chain


def _has_no_connection(error: BaseException) -> bool:
    """True for a refused or timed-out connect on a fresh connection: only then is it certain that nothing left."""
    kinds = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    return any(isinstance(e, kinds) for e in _chain_of(error))


def _plain_words(error: BaseException) -> str:
    """What went wrong; never the library's words, which hold addresses and headers."""
    chain = _chain_of(error)
    for kinds, words in (
        ((ssl.SSLCertVerificationError,), "the certificate of the exchange could not be verified; connection refused"),
        ((ssl.SSLError, urllib3.exceptions.SSLError), "no secure connection to the exchange"),
        ((urllib3.exceptions.NewConnectionError,), "the exchange cannot be reached"),
        ((TimeoutError, urllib3.exceptions.TimeoutError), TOO_LATE),
    ):
        if any(isinstance(e, kinds) for e in chain):
            return words
    return "the answer of the exchange broke off or could not be read"


class HttpTransport:
    """Requests to one https host, the only one to see a key: verified, bounded in time and size.

    It uses the library's adapter without a session, so no redirects, cookies, proxies or netrc have to be switched off.
    """

    def __init__(self, base_url: str, ca_file: str = "", timeout: tuple[float, float, float] = TIMEOUTS_S) -> None:
        base = _BASE_URL.fullmatch(base_url)
        if base is None:
            raise SettingsError("LUNOBIZ_EXCHANGE_URL must be https://host or https://host:port")
        if ca_file and base[1].lower().rstrip(".") == LUNO_HOST:
            raise SettingsError("LUNOBIZ_EXCHANGE_CA is for a test exchange only, not for Luno's own host")
        self._base_url, self._context = base_url, _tls_context(ca_file)
        self._connect_s, self._context.read_s, self._total_s = timeout
        self._adapter = _Adapter(self._context)

    def send(self, method: str, path: str, params: Params = (), key: Credentials | None = None) -> Reply:
        """One request, never repeated here; ExchangeDown if no whole answer of decent size came in time."""
        if method not in ("GET", "POST") or _URL_PATH.fullmatch(path) is None:
            raise ExchangeRefused("bad-request", "this is not a request the program may send")
        try:
            return self._exchange(method, path, params, key)
        except (OSError, HTTPException, urllib3.exceptions.HTTPError, ValueError) as error:
            trouble, is_unsent = _plain_words(error), method == "POST" and _has_no_connection(error)
        # outside the handler, so the library's error is not attached to ours
        raise NotSent(trouble) if is_unsent else ExchangeDown(trouble)

    def _exchange(self, method: str, path: str, params: Params, key: Credentials | None) -> Reply:
        headers = {"Accept-Encoding": "gzip", "User-Agent": f"lunobiz/{__version__}"}
        if key:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{key.key_id}:{key.secret}".encode()).decode()
        url, pairs = self._base_url + path, list(params)
        if method == "GET":
            request = requests.Request(method, url, headers, params=pairs).prepare()
        else:  # a form, because queries end up in logs; on a fresh connection, so that none can have gone stale
            self._adapter.close()
            request = requests.Request(method, url, headers, data=pairs).prepare()
        self._context.deadline_s = self._context.clock.mono_s() + self._total_s
        timeout = (self._connect_s, self._context.read_s)
        with contextlib.closing(self._adapter.send(request, stream=True, timeout=timeout)) as response:
            body: bytes = response.raw.read(BODY_CAP + 1, decode_content=True)
            if len(body) > BODY_CAP:
                raise ExchangeDown("the answer of the exchange is too large")
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status_code, headers, body)

    def close(self) -> None:
        """Let go of the connection; the next request opens a new one."""
        self._adapter.close()


class RateLimit:
    """A token bucket shared by all calls; the last `reserve` tokens are for urgent ones."""

    # A full bucket and what a minute brings add up to `per_minute`, so no 60 seconds see more calls than that,
    # wherever they begin: 60 tokens and 3 a second for 240 a minute with 40 in reserve.
    def __init__(self, clock: Clock, per_minute: int = 240, reserve: int = 40) -> None:
        if not 0 <= reserve <= per_minute - 2:
            raise ValueError("the reserve must leave room for other calls")
        self._clock, self._reserve = clock, reserve
        self._capacity = reserve + max(1.0, (per_minute - reserve) / 10)
        self._per_s = (per_minute - self._capacity) / 60
        self._tokens = self._capacity
        self._filled_s = clock.mono_s()  # tokens are counted up to here; in the future while shut

    def take(self, is_urgent: bool = False) -> float:
        """Take a token and return the seconds waited for it; RateLimited if that would be more than 5 s."""
        self._refill()
        missing = (1 if is_urgent else 1 + self._reserve) - self._tokens
        wait_s = max(0.0, self._filled_s - self._clock.mono_s()) + max(0.0, missing / self._per_s)
        if wait_s > MAX_PAUSE_S:
            raise RateLimited(wait_s)
        if wait_s > 0:
            self._clock.sleep(wait_s)
            self._refill()
        self._tokens -= 1
        return wait_s

    def empty(self, wait_s: float) -> None:
        """The exchange asked for fewer calls: nothing is left, and for `wait_s` nothing comes back."""
        self._tokens, self._filled_s = 0.0, max(self._filled_s, self._clock.mono_s() + wait_s)

    def left(self) -> int:
        """Calls that could be made at once, urgent ones included."""
        self._refill()
        return max(0, math.floor(self._tokens))

    def _refill(self) -> None:
        now_s = self._clock.mono_s()
        if now_s > self._filled_s:
            self._tokens = min(self._capacity, self._tokens + (now_s - self._filled_s) * self._per_s)
            self._filled_s = now_s


def http_date_ms(text: str) -> int | None:
    """The time of a Date header, None if it is not one."""
    try:
        moment = parsedate_to_datetime(text)
        return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()) * 1000
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def retry_after_s(headers: Mapping[str, str], now_ms: int) -> float | None:
    """Seconds the server asks us to wait, at most 300; None if it does not say."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return min(float(text), MAX_RETRY_AFTER_S)
    until_ms, server_ms = http_date_ms(text), http_date_ms(headers.get("date", ""))
    if until_ms is None:
        return None
    wait_s = (until_ms - (now_ms if server_ms is None else server_ms)) / 1000  # a wrong clock here does no harm
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)


def with_retries(call: Callable[[], T], clock: Clock, rng: random.Random, attempts: int = 4, cap_s: float = 20.0) -> T:
    """The result of a read, never of an order, tried again with full-jitter pauses while the exchange is down.

    Nobody waits longer than PATIENCE_S for a further try: after two time-outs the session goes on without.
    """
    started_s = clock.mono_s()
    for attempt in range(attempts - 1):
        try:
            return call()
        except ExchangeDown as error:
            asked_s = error.wait_s if isinstance(error, RateLimited) else 0.0
            if asked_s > cap_s or clock.mono_s() - started_s + asked_s > PATIENCE_S:
                raise
        clock.sleep(asked_s + rng.uniform(0.0, min(cap_s, 0.5 * 2.0**attempt)))
    return call()


# ==============================================================================
# LUNO | the exchange's words turned into ours
# shell | uses ERRORS TYPES SETTINGS PORTFOLIO SELFTEST ORDERS SYSTEM HTTP
# ==============================================================================

KEY_CODES = frozenset(  # the key itself is the trouble: stop and tell the owner
    ("ErrUnauthorised", "ErrApiKeyRevoked", "ErrAPIKeyNotFound", "ErrInsufficientPerms", "HTTP-401", "HTTP-403")
)
MAINTENANCE_CODES = frozenset(("ErrUnderMaintenance", "ErrMarketUnavailable"))
RETRY_CODES = frozenset(("ErrInternal", "ErrDeadlineExceeded"))  # a read may simply be tried again
RATE_WAIT_S = 30.0  # after a 429 that does not say how long
SKEW_RESOLUTION_MS = 2_000.0  # a Date header has whole seconds
NUMERAL_CHARS = 64  # longer numbers are not even read, that could take long
STATUSES = types.MappingProxyType({  # markets and tickers spell them differently
    "ACTIVE": "ACTIVE", "POST_ONLY": "POST_ONLY", "POSTONLY": "POST_ONLY", "SUSPENDED": "SUSPENDED",
    "DISABLED": "SUSPENDED",
})  # fmt: skip
_STRICT_DECIMAL = re.compile(r"-?\d{1,18}(\.\d{1,18})?", re.ASCII)
_MARKET_ID = re.compile(r"[A-Z0-9]{4,12}", re.ASCII)
_ASSET = re.compile(r"[A-Z0-9]{2,10}", re.ASCII)
_KIND = re.compile(r"[A-Z_]{1,20}", re.ASCII)
_ACCOUNT = re.compile(r"[0-9A-Za-z]{1,40}", re.ASCII)
_ERROR_CODE = re.compile(r"Err[A-Za-z0-9]{1,40}", re.ASCII)
_RFC3339 = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _unusable(what: str) -> ExchangeDown:
    """The error for an answer of the wrong shape; `what` is our word for the place, never remote text."""
    return ExchangeDown(f"the answer of the exchange cannot be used: {what}")


def _strict_numeral(text: str) -> Decimal | int:
    if len(text) > NUMERAL_CHARS:
        raise ValueError("digits")
    return int(text) if text.lstrip("-").isdigit() else Decimal(text)


def _strict_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def _parse_json(body: bytes) -> object:
    """The strictly read JSON of a body, None if it is not such JSON."""
    try:
        return json.loads(
            body.decode(), parse_float=_strict_numeral, parse_int=_strict_numeral, object_pairs_hook=_strict_object,
            parse_constant=int,  # which refuses NaN and Infinity: they are Python's idea, not JSON
        )  # fmt: skip
    except (ValueError, RecursionError, InvalidOperation):
        return None


class _Answer:
    """One JSON object of an answer, read field by field; ExchangeDown names the field that is wrong."""

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            raise _unusable(what)
        self._fields: Mapping[str, object] = value
        self._what = what

    def _wrong(self, name: str) -> ExchangeDown:
        return _unusable(f"{self._what}, {name}")

    def has(self, name: str) -> bool:
        """True when the field is there and not null."""
        return self._fields.get(name) is not None

    def word(self, name: str, pattern: re.Pattern[str]) -> str:
        """A text of the given form; ids may come as numbers."""
        value = self._fields.get(name)
        text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
        if not pattern.fullmatch(text):
            raise self._wrong(name)
        return text

    def number(self, name: str) -> Decimal:
        """A plain decimal text or a JSON number, of either sign and of ordinary size."""
        value = self._fields.get(name)
        is_text = isinstance(value, str) and _STRICT_DECIMAL.fullmatch(value) is not None
        is_number = isinstance(value, (int, Decimal)) and not isinstance(value, bool)
        if not (is_text or is_number):
            raise self._wrong(name)
        found = Decimal(str(value))
        if found and not -18 <= found.adjusted() < 18:
            raise self._wrong(name)
        return found if found else Decimal(0)

    def amount(self, name: str) -> Decimal:
        """A number that cannot be negative."""
        found = self.number(name)
        if found < 0:
            raise self._wrong(name)
        return found

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number within bounds."""
        found = self.number(name)
        if found % 1 or not low <= found <= high:
            raise self._wrong(name)
        return int(found)

    def time_ms(self, name: str) -> int:
        """UTC milliseconds from a number, its text, or RFC 3339, which some endpoints send."""
        value = self._fields.get(name)
        if not (isinstance(value, str) and _RFC3339.fullmatch(value)):
            return self.whole(name, 10**12, 4 * 10**12)
        with contextlib.suppress(ValueError):
            return (datetime.fromisoformat(value) - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)
        raise self._wrong(name)

    def status(self, name: str) -> str:
        """A market's status in one spelling; whatever is new or missing is UNKNOWN."""
        return STATUSES.get(str(self._fields.get(name)), "UNKNOWN")

    def rows(self, name: str) -> list[object]:
        """The objects of a list; an empty one may come as null, but it has to be there."""
        found = self._fields.get(name, "missing")
        if found is None:
            return []
        if not isinstance(found, list):
            raise self._wrong(name)
        return found


def _parse_market(row: _Answer) -> Market:
    pair, base = row.word("market_id", _MARKET_ID), row.word("base_currency", _ASSET)
    counter = row.word("counter_currency", _ASSET)
    low, high = row.amount("min_volume"), row.amount("max_volume")
    cheap, dear = row.amount("min_price"), row.amount("max_price")
    if pair != base + counter or not low <= high or not cheap <= dear or not high or not dear:
        raise _unusable("market, limits")
    return Market(
        pair, base, counter, row.whole("price_scale", 0, 12), row.whole("volume_scale", 0, 12),
        min_volume=approx(low), max_volume=approx(high), min_price=approx(cheap), max_price=approx(dear),
        status=row.status("trading_status"),
    )  # fmt: skip


def with_fees(market: Market, maker: float, taker: float, source: str) -> Market:
    """The market with the account's own fees, which its list does not tell."""
    return replace(market, maker_fee=maker, taker_fee=taker, fee_source=source)


def _parse_ticker(row: _Answer) -> Ticker:
    bid, ask, last = (approx(row.amount(name)) for name in ("bid", "ask", "last_trade"))
    volume_24h = approx(row.amount("rolling_24_hour_volume"))
    pair, time_ms = row.word("pair", _MARKET_ID), row.time_ms("timestamp")
    return Ticker(pair, time_ms, bid, ask, last, volume_24h, row.status("status"))


def _parse_levels(answer: _Answer, name: str) -> tuple[tuple[float, float], ...]:
    """One side of a book, its empty levels dropped."""
    rows = [_Answer(value, "order book level") for value in answer.rows(name)]
    levels = [(row.amount("price"), row.amount("volume")) for row in rows]
    prices = [price for price, volume in levels if volume]
    if prices != sorted(prices, reverse=name == "bids") or not all(prices):
        raise _unusable(f"order book, order of {name}")
    return tuple((approx(price), approx(volume)) for price, volume in levels if volume)


def _parse_order_book(answer: _Answer) -> OrderBook | None:
    bids, asks = _parse_levels(answer, "bids"), _parse_levels(answer, "asks")
    return OrderBook(answer.time_ms("timestamp"), bids, asks) if bids or asks else None


def _parse_candle_list(answer: _Answer, pair: str, duration_s: int) -> tuple[Candle, ...]:
    """Candles of the pair and duration that were asked for; an answer that names others is not ours."""
    if answer.has("pair") and answer.word("pair", _MARKET_ID) != pair:
        raise _unusable("candles of another market")
    if answer.has("duration") and answer.whole("duration", 1, 10**7) != duration_s:
        raise _unusable("candles of another duration")
    names = ("open", "high", "low", "close", "volume")
    rows = [_Answer(value, "candle") for value in answer.rows("candles")]
    return tuple(Candle(row.time_ms("timestamp"), *(approx(row.number(name)) for name in names)) for row in rows)


def _parse_fees(answer: _Answer) -> tuple[float, float]:
    """Maker and taker, of each the dearer for buying and selling; older answers have one for both."""
    fees = []
    for kind in ("maker", "taker"):
        both = [name for name in (f"{kind}_fee_buy", f"{kind}_fee_sell") if answer.has(name)]
        fees.append(max(answer.number(name) for name in both or [f"{kind}_fee"]))
        if not -1 <= fees[-1] * 20 <= 2:  # -5 % to 10 %: beyond it the answer means something else
            raise _unusable(f"fees, {kind}")
    return approx(fees[0]), approx(fees[1])


def _parse_balances(answer: _Answer) -> tuple[Balance, ...]:
    rows = [_Answer(value, "balance") for value in answer.rows("balance")]
    return tuple(
        Balance(r.word("account_id", _ACCOUNT), r.word("asset", _ASSET), r.amount("balance"), r.amount("reserved"))
        for r in rows
    )


def _error_code(value: object) -> str:
    """The error code of an answer, "" if it has none; a code of unknown form still means an error."""
    found = value.get("error_code") if isinstance(value, dict) else None
    if not found:
        return ""
    return found if isinstance(found, str) and _ERROR_CODE.fullmatch(found) else "ErrUnreadable"


def _trouble_of_reply(reply: Reply, code: str, has_key: bool, now_ms: int) -> LunobizError | None:
    """The error that status and code mean, None for success. The exchange's own words are never shown."""
    status, asked_s = reply.status, retry_after_s(reply.headers, now_ms)
    if status == 429 or code == "ErrTooManyRequests" or (status == 503 and asked_s is not None):
        return RateLimited(RATE_WAIT_S if asked_s is None else asked_s)
    if code in MAINTENANCE_CODES:
        return ExchangeRefused(code, "the exchange is under maintenance")
    if status >= 500 or code in RETRY_CODES:
        return ExchangeDown(f"the exchange has trouble of its own (HTTP {status}{code and ', '}{code})")
    if status in (401, 403) and has_key:
        return ExchangeRefused(code or f"HTTP-{status}", "the exchange refused the key")
    if status in (401, 403):
        return ExchangeRefused(code or f"HTTP-{status}-public", "the exchange turned us away")
    if code:
        return ExchangeRefused(code, "the exchange refused the request")
    return None if 200 <= status < 300 else ExchangeDown(f"the exchange answered with HTTP {status}")


class LunoClient:
    """The exchange's read calls, tried again, as checked values of ours; only ExchangeDown and -Refused come out."""

    def __init__(
        self, transport: Transport, key: Credentials, limit: RateLimit, clock: Clock, rng: random.Random
    ) -> None:
        self._transport, self._key, self._limit, self._clock, self._rng = transport, key, limit, clock, rng
        self.skew_ms = 0.0  # the exchange's clock minus ours, 0 while too small to be sure
        self.last_ok_ms, self.latency_ms = 0, 0.0

    @property
    def has_key(self) -> bool:
        """True when there is a key for candles, fees and balances."""
        return bool(self._key)

    def markets(self, pairs: Sequence[str] = ()) -> tuple[Market, ...]:
        """Scales and limits of the given markets or of all, with the entry tier's fees."""
        found = self._list("/api/exchange/1/markets", pairs, "markets", _parse_market)
        return tuple(m for m in found if not pairs or m.pair in pairs)

    def tickers(self, pairs: Sequence[str] = ()) -> tuple[Ticker, ...]:
        """Quotes of the given markets or of all; an empty side has the price 0."""
        found = self._list("/api/1/tickers", pairs, "tickers", _parse_ticker)
        return tuple(t for t in found if not pairs or t.pair in pairs)

    def order_book(self, pair: str) -> OrderBook | None:
        """The best 100 levels of each side, None when both are empty."""
        return self._ask("/api/1/orderbook_top", [("pair", pair)], _parse_order_book)

    def candles(self, pair: str, since_ms: int, duration_s: int) -> tuple[Candle, ...]:
        """At most 1,000 candles from the first at or after `since_ms`, as sent, the unfinished one too."""
        params = [("pair", pair), ("since", str(since_ms)), ("duration", str(duration_s))]
        path = "/api/exchange/1/candles"
        return self._ask(path, params, lambda answer: _parse_candle_list(answer, pair, duration_s), self._key)

    def fees(self, pair: str) -> tuple[float, float]:
        """Maker and taker fee of the account in a market, as fractions."""
        return self._ask("/api/1/fee_info", [("pair", pair)], _parse_fees, self._key)

    def balances(self) -> tuple[Balance, ...]:
        """Every account's balance; an asset may have several accounts."""
        return self._ask("/api/1/balance", (), _parse_balances, self._key)

    def _list(self, path: str, pairs: Sequence[str], name: str, read: Callable[[_Answer], T]) -> list[T]:
        """What can be read of a list: one broken market must not hide the others; all broken is an error."""

        def parse(answer: _Answer) -> list[T]:
            values, found = answer.rows(name), []
            for value in values:
                with contextlib.suppress(ExchangeDown):
                    found.append(read(_Answer(value, name)))
            if values and not found:
                raise _unusable(f"all of {name}")
            return found

        return self._ask(path, [("pair", pair) for pair in pairs], parse)

    def _ask(self, path: str, params: Params, parse: Callable[[_Answer], T], key: Credentials | None = None) -> T:
        """A call; one that needs no key shows none."""
        if key is not None and not key:
            raise ExchangeRefused("no-key", "this needs a Luno key and none is set")
        return with_retries(lambda: self._once(path, params, parse, key), self._clock, self._rng)

    def look_up(self, path: str, params: Params, parse: Callable[[_Answer], T]) -> T:
        """One urgent read with the key, tried once: whoever asks asks again soon."""
        return self._once(path, params, parse, self._key, is_urgent=True)

    def post(self, path: str, params: Params) -> Reply:
        """One POST, never repeated; its answer is for the caller to judge. NotSent if it cannot have left."""
        try:
            self._limit.take(is_urgent=True)
        except RateLimited as error:
            raise NotSent(str(error)) from None
        reply = self._send("POST", path, params, self._key)
        if reply.status == 429:
            self._limit.empty(retry_after_s(reply.headers, self._clock.now_ms()) or RATE_WAIT_S)
        return reply

    def exchange_ms(self) -> int:
        """The exchange's time as well as it is known."""
        return self._clock.now_ms() + round(self.skew_ms)

    def _send(self, method: str, path: str, params: Params, key: Credentials | None) -> Reply:
        started_ms, started_s = self._clock.now_ms(), self._clock.mono_s()
        reply = self._transport.send(method, path, params, key)
        self.latency_ms = (self._clock.mono_s() - started_s) * 1000
        self._measure_skew(reply, started_ms)
        return reply

    def _once(self, path: str, params: Params, parse: Callable[[_Answer], T], key: Credentials | None,
              is_urgent: bool = False) -> T:
        self._limit.take(is_urgent)
        reply = self._send("GET", path, params, key)
        value = _parse_json(reply.body)
        trouble = _trouble_of_reply(reply, _error_code(value), key is not None, self._clock.now_ms())
        if isinstance(trouble, RateLimited):
            self._limit.empty(trouble.wait_s)
        if trouble is not None:
            raise trouble
        result = parse(_Answer(value, "not a JSON object"))
        self.last_ok_ms = self._clock.now_ms()
        return result

    def _measure_skew(self, reply: Reply, started_ms: int) -> None:
        """Compare the answer's Date, the middle of its second, with the middle of the request."""
        date_ms = http_date_ms(reply.headers.get("date", ""))
        if date_ms is not None:
            skew_ms = date_ms + 500 - (started_ms + self.latency_ms / 2)
            is_real = abs(skew_ms) > SKEW_RESOLUTION_MS + self.latency_ms / 2
            self.skew_ms = skew_ms if is_real else 0.0


ORDER_PATH = "/api/1/postorder"
NOT_FOUND = frozenset(("ErrOrderNotFound", "ErrInvalidOrderRef", "ErrNotFound"))
LIST_PAGE, LIST_PAGES, STATEMENT_ROWS = 1000, 20, 50
IMPOSSIBLE_ORDER = "BX0000000000000"
_ORDER_ID = re.compile(r"[0-9A-Za-z]{4,40}", re.ASCII)
_CLIENT_ID = re.compile(r"[0-9A-Za-z_;,.\-]{0,255}", re.ASCII)
_ORDER_STATUS = re.compile(r"AWAITING|PENDING|COMPLETE", re.ASCII)
_ORDER_SIDE = re.compile(r"BUY|SELL", re.ASCII)


def _parse_order(row: _Answer) -> FoundOrder:
    """An order; fields that an owner's market order may lack are empty or 0."""
    price, volume, stop = (row.amount(name) if row.has(name) else Decimal(0)
                           for name in ("limit_price", "limit_volume", "stop_price"))
    amounts = Amounts(row.amount("base"), row.amount("counter"), row.number("fee_base"), row.number("fee_counter"))
    return FoundOrder(
        row.word("order_id", _ORDER_ID), row.word("client_order_id", _CLIENT_ID) if row.has("client_order_id") else "",
        row.word("pair", _MARKET_ID), Side.BUY if row.word("side", _ORDER_SIDE) == "BUY" else Side.SELL,
        price, volume, stop, row.word("status", _ORDER_STATUS), amounts, row.time_ms("creation_timestamp"))


def _parse_orders(answer: _Answer) -> list[FoundOrder]:
    return [_parse_order(_Answer(value, "order")) for value in answer.rows("orders")]


def _parse_statement(answer: _Answer) -> tuple[StatementRow, ...]:
    """Entries that changed the balance, the newest first; those that only reserve are left out."""
    rows = [_Answer(value, "statement") for value in answer.rows("transactions")]
    found = {r.whole("row_index", 1, 10**15): StatementRow(r.time_ms("timestamp"), r.word("kind", _KIND),
                                                           r.number("balance_delta")) for r in rows}
    return tuple(row for _, row in sorted(found.items(), reverse=True) if row.change)


class LunoOrders:
    """The calls of a LIVE session about its orders; each is made once, and what an answer means is told."""

    def __init__(self, client: LunoClient) -> None:
        self._client = client

    def exchange_ms(self) -> int:
        """The exchange's time as well as it is known."""
        return self._client.exchange_ms()

    def post(self, order: SentOrder) -> PostAnswer:
        """The one POST of an order; whatever happens, it has a class."""
        try:
            reply = self._client.post(ORDER_PATH, order_form(order))
        except NotSent:
            return PostAnswer(Answer.NOT_SENT)
        except ExchangeDown:
            return PostAnswer(Answer.UNKNOWN)
        value = _parse_json(reply.body)
        code, found = _error_code(value), ""
        with contextlib.suppress(ExchangeDown):
            found = _Answer(value, "order").word("order_id", _ORDER_ID)
        return PostAnswer(class_of_post(reply.status, code, found), found, code)

    def cancel(self, exchange_id: str) -> str:
        """Asks for an order's end; returns the error code, "" if there was none. Only a look-up tells what became."""
        reply = self._client.post("/api/1/stoporder", [("order_id", exchange_id)])
        return _error_code(_parse_json(reply.body)) or ("" if reply.status == 200 else f"HTTP-{reply.status}")

    def key_trouble(self) -> str:
        """What the key cannot do that LIVE needs, or ""; asks to end an order that there cannot be, and only reads."""
        code = self.cancel(IMPOSSIBLE_ORDER)
        if code not in (*NOT_FOUND, "ErrCannotStopUnknownOrNonPendingOrder"):
            return f"it may not place orders, or Luno does not know it ({code or 'no error'})"
        for name, look in (("balances", self.balances), ("orders", self.open_orders)):
            try:
                look()
            except ExchangeRefused as error:
                return f"it may not read {name} ({error.code})"
        return ""

    def find(self, order: SentOrder) -> FoundOrder | None:
        """The order as the exchange has it, None if it says that there is no such order; else ExchangeDown."""
        params = [("id", order.exchange_id)] if order.exchange_id else [("client_order_id", order.client_id)]
        try:
            return self._client.look_up("/api/exchange/3/order", params, _parse_order)
        except ExchangeRefused as error:
            if error.code not in NOT_FOUND:
                raise
            return None

    def open_orders(self) -> tuple[FoundOrder, ...]:
        """All orders of the account that are not complete, the owner's included."""
        return tuple(self._list(is_closed=False, since_ms=0))

    def closed_orders(self, since_ms: int) -> tuple[FoundOrder, ...]:
        """Orders of the account that are complete, created at or after a time."""
        return tuple(self._list(is_closed=True, since_ms=since_ms))

    def balances(self) -> tuple[Balance, ...]:
        """Every account's balance."""
        return self._client.look_up("/api/1/balance", (), _parse_balances)

    def statement(self, account_id: str) -> tuple[StatementRow, ...]:
        """The newest entries of one account that changed its balance, the newest first."""
        params = [("min_row", str(-STATEMENT_ROWS)), ("max_row", "0")]
        return self._client.look_up(f"/api/1/accounts/{account_id}/transactions", params, _parse_statement)

    def _list(self, is_closed: bool, since_ms: int) -> Iterator[FoundOrder]:
        """Pages of the list, newest first, each order once; orders of one millisecond may stand on two pages."""
        params, before = [("closed", "true" if is_closed else "false"), ("limit", str(LIST_PAGE))], 0
        seen: set[str] = set()
        for _ in range(LIST_PAGES):
            more = [("created_before", str(before))] if before else []
            page = self._client.look_up("/api/exchange/2/listorders", [*params, *more], _parse_orders)
            yield from (o for o in page if o.exchange_id not in seen and o.created_ms >= since_ms)
            seen |= {o.exchange_id for o in page}
            if len(page) < LIST_PAGE or page[-1].created_ms < since_ms:
                return
            before = page[-1].created_ms + 1
        raise _unusable("more orders than can be listed")


# ==============================================================================
# DEMO | a small exchange inside the program, for the first look and for tests
# shell | uses ERRORS TYPES SETTINGS CANDLES FILLS SYSTEM HTTP
# ==============================================================================

from decimal import ROUND_CEILING
from email.utils import formatdate

# Between two closes of the finest candle the market stands still: the ticker shows the last closed one, and a
# resting order is tried against the candles that close after it came.
DEMO_FINEST_S = 300
DEMO_START_MS = 1_767_571_200_000  # 2026-01-05T00:00Z, fixed, so that a seed always shows the same days
DEMO_HISTORY_MS, DEMO_ENDLESS_MS = 70 * DAY_MS, 2**62
BLOCK_HOURS, HOUR_STEPS, BLOCK_STEPS = 240, 12, 2880
COMMON_VOLATILITY = 0.0052  # per hour, of the factor that all markets share
COMMON_REACH, OWN_REACH = 0.060, 0.035  # typical trend legs of that factor and of each market by itself
LEG_WEIGHTS = ((0.15, 0.65, 0.20), (0.45, 0.35, 0.20), (0.45, 0.50, 0.05))  # from row to quiet, trend, burst
LEG_HEAT, TREND_LEG = (0.60, 0.90, 2.00), 1
CANDLES_S = (60, *DURATIONS_S, 259200, 604800)
CANDLE_FIELDS = ((1, "open"), (4, "close"), (2, "high"), (3, "low"), (5, "volume"))
CANDLE_PAGE = 1000
BOOK_LEVELS, BOOK_STREAM = 20, 7_919  # the latter keeps the seeds of books apart from those of blocks
OFFERED_SHARE = 0.10  # of the last candle's volume is there to take where no book was recorded
DEMO_REFUSED = "refused by the demo exchange"
NOTHING, FEE_STEP = Decimal("0"), Decimal("0.00000001")
FIRST_ACCOUNT = 3_706_266_844_366_961_196  # beyond 2**53, as real ones are


class DemoProfile(NamedTuple):
    """How a generated market looks and moves; `thin` is the share of hours almost without trades."""

    market: tuple[str, str, float, int, int, float]  # pair, base, price, two scales, smallest volume
    volatility: float
    beta: float
    spread: float
    day_value: float
    thin: float


DEMO_PROFILES = (  # the last two are thin and wide on purpose: there the desk must refuse
    DemoProfile(("XBTZAR", "XBT", 1_950_000.0, 0, 6, 0.0001), 0.0024, 0.9, 0.0007, 28e6, 0.002),
    DemoProfile(("ETHZAR", "ETH", 58_000.0, 0, 6, 0.0005), 0.0034, 1.1, 0.0010, 12e6, 0.003),
    DemoProfile(("XRPZAR", "XRP", 38.50, 2, 0, 1.0), 0.0046, 1.1, 0.0015, 15e6, 0.003),
    DemoProfile(("SOLZAR", "SOL", 2_450.0, 2, 4, 0.01), 0.0050, 1.3, 0.0020, 6e6, 0.005),
    DemoProfile(("LTCZAR", "LTC", 1_540.0, 2, 4, 0.01), 0.0040, 0.9, 0.0026, 3e6, 0.010),
    DemoProfile(("ADAZAR", "ADA", 7.4, 3, 0, 1.0), 0.0050, 1.2, 0.0052, 0.75e6, 0.060),
    DemoProfile(("LINKZAR", "LINK", 236.0, 2, 2, 0.1), 0.0050, 1.2, 0.0047, 0.75e6, 0.060),
)


def _demo_path(seed: int, stream: int, reach: float, volatility: float) -> Iterator[tuple[Floats, Floats]]:
    """Blocks of log price and deviation of each step: legs of 12 to 60 hours and clustered noise."""
    kind, level, noise, cluster = 0, 0.0, np.zeros(1), np.zeros(1)
    decay = 0.95 ** np.arange(1, BLOCK_HOURS + 1)  # hourly log volatility is an AR(1), here in closed form
    season = 1 + 0.3 * np.sin(2 * np.pi * (np.arange(BLOCK_HOURS) - 8) / 24)
    for block in range(DEMO_ENDLESS_MS):
        rng = np.random.default_rng(np.random.SeedSequence([seed, stream, block, 1]))
        plan, heat, left = np.empty(0), np.empty(0), BLOCK_HOURS
        while left > 0:
            hours = left if left <= 60 else int(rng.integers(12, 49))
            kind = int(rng.choice(3, p=LEG_WEIGHTS[kind]))
            x = np.arange(1, hours * HOUR_STEPS + 1) / (hours * HOUR_STEPS)
            # a trend turns back the farther the market has come
            is_up = rng.random() < 1 / (1 + math.exp((level + noise[-1]) / (3 * reach)))
            rise = float(rng.uniform(0.8, 2.0)) * (reach if is_up else -reach)
            trend, swing = x - np.sin(2 * np.pi * x) / (2 * np.pi), np.sin(2 * np.pi * rng.integers(1, 4) * x)
            plan = np.append(plan, level + rise * (trend if kind == TREND_LEG else 0.15 * swing))
            heat = np.append(heat, np.full(hours, LEG_HEAT[kind]))
            level, left = level + (rise if kind == TREND_LEG else 0.0), left - hours
        cluster = decay * (cluster[-1] + np.cumsum(0.12 * rng.standard_normal(BLOCK_HOURS) / decay))
        step = np.repeat(volatility / math.sqrt(HOUR_STEPS) * heat * season * np.exp(cluster), HOUR_STEPS)
        noise = noise[-1] + np.cumsum(step * np.clip(rng.standard_t(6, BLOCK_STEPS) / math.sqrt(1.5), -5, 5))
        yield plan + noise, step


def _demo_block(rng: np.random.Generator, profile: DemoProfile, log: Floats, step: Floats, last: float) -> Floats:
    """Rows of o, h, l, c, volume, bid, ask; `log` begins and `last` is where the block before ended."""
    scale, lot = 10.0 ** profile.market[3], 10.0 ** profile.market[4]
    heat = step / (math.hypot(profile.beta * COMMON_VOLATILITY, profile.volatility) / math.sqrt(HOUR_STEPS))
    before, after = log[:-1], log[1:]
    # the extremes of a Brownian path between two known ends
    reach = np.sqrt((after - before) ** 2 - 2 * step**2 * np.log(1 - rng.random((2, BLOCK_STEPS))))
    price = np.maximum(np.rint(np.exp(after) * scale), 2)
    lively = np.sqrt(heat) * (0.5 + 0.6 * np.abs(after - before) / step)
    # more is traded in a lively market, nothing in most steps of a thin hour
    flow = np.exp(np.repeat(0.35 * rng.standard_normal(BLOCK_HOURS), HOUR_STEPS) - 0.38)
    value = profile.day_value / 288 * flow * np.exp(0.8 * rng.standard_normal(BLOCK_STEPS)) * lively
    share = np.where(rng.random(BLOCK_HOURS) < profile.thin, rng.choice((0.0, 0.3), BLOCK_HOURS), 1.0)
    value[rng.random(BLOCK_STEPS) >= np.repeat(share, HOUR_STEPS)] = 0.0
    lots = np.floor(value / price * scale * lot)
    # a step without a trade repeats the close before it
    origin = np.maximum.accumulate(np.where(lots > 0, np.arange(BLOCK_STEPS), -1))
    close = np.where(origin >= 0, price[origin], round(last * scale))
    start = np.concatenate(([round(last * scale)], close[:-1]))
    high = np.maximum(np.rint(np.exp((before + after + reach[0]) / 2) * scale), np.maximum(start, close))
    low = np.minimum(np.rint(np.exp((before + after - reach[1]) / 2) * scale), np.minimum(start, close))
    high, low = np.where(lots > 0, high, close), np.where(lots > 0, np.maximum(low, 2), close)
    half = np.clip(profile.spread * np.sqrt(heat) * rng.uniform(0.85, 1.2, BLOCK_STEPS), 5e-4, 6e-3) / 2
    quotes = np.floor(close * (1 - half)) / scale, np.ceil(close * (1 + half)) / scale
    return np.column_stack((start / scale, high / scale, low / scale, close / scale, lots / lot, *quotes))


def demo_blocks(seed: int) -> Iterator[list[Floats]]:
    """Ten days of every market after the other, as opened, o, h, l, c, volume, bid, ask."""
    common = _demo_path(seed, 0, COMMON_REACH, COMMON_VOLATILITY)
    paths = [_demo_path(seed, n, OWN_REACH, p.volatility) for n, p in enumerate(DEMO_PROFILES, 1)]
    logs, closes = [[math.log(p.market[2])] for p in DEMO_PROFILES], [p.market[2] for p in DEMO_PROFILES]
    opened = DEMO_START_MS - DEMO_HISTORY_MS + np.arange(BLOCK_STEPS) * (DEMO_FINEST_S * 1000.0)
    for block, (whole, whole_step) in enumerate(common):
        found = []
        for n, profile in enumerate(DEMO_PROFILES):
            own, own_step = next(paths[n])
            log = np.concatenate((logs[n], math.log(profile.market[2]) + profile.beta * whole + own))
            rng = np.random.default_rng(np.random.SeedSequence([seed, n, block, 2]))
            rows = _demo_block(rng, profile, log, np.hypot(profile.beta * whole_step, own_step), closes[n])
            logs[n], closes[n] = [float(log[-1])], float(rows[-1, 3])
            found.append(np.column_stack((opened + block * BLOCK_HOURS * HOUR_MS, rows)))
        yield found


def _demo_resample(rows: Floats, duration_ms: int) -> Floats:
    """Rows gathered into longer candles on anchors of the epoch; what is missing stays missing."""
    groups = rows[:, 0] // duration_ms
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    tops, lows = np.maximum.reduceat(rows[:, 2], starts), np.minimum.reduceat(rows[:, 3], starts)
    ends, opened = np.append(starts[1:], len(rows)) - 1, groups[starts] * duration_ms
    volumes = np.add.reduceat(rows[:, 5], starts)
    return np.column_stack((opened, rows[starts, 1], tops, lows, rows[ends, 4], volumes))


def _demo_float(value: float) -> str:
    """A float with eight decimals, without the last digits that only sums in binary bring."""
    return f"{float(f'{value:.13g}'):.8f}"


def _demo_amounts(values: Mapping[str, Decimal | float]) -> dict[str, str]:
    """Decimal strings with at least two decimals, never in scientific notation."""
    exact_ones = {k: v if isinstance(v, Decimal) else Decimal(f"{v:.13g}") for k, v in values.items()}
    texts = {name: format(value.normalize(), "f") for name, value in exact_ones.items()}
    return {k: text if len(text.partition(".")[2]) >= 2 else f"{Decimal(text):.2f}" for k, text in texts.items()}


class DemoTrack:
    """One market's candles, those to come included, and what the public may see of them at a moment."""

    def __init__(self, market: Market, finest_s: int, seed: tuple[int, int] | None = None) -> None:
        self.market, self.has_book = market, seed is not None
        self.rows: Floats = np.empty((0, 8 if self.has_book else 6))
        self.opened: Ints = np.empty(0, np.int64)
        self._step_ms, self._seed, self._total = finest_s * 1000, seed or (0, 0), np.zeros(1)
        self._coarse: dict[int, Floats] = {}

    def extend(self, rows: Floats) -> None:
        """Later rows: opened, o, h, l, c, volume and, for generated markets, bid and ask."""
        self.rows = np.concatenate((self.rows, rows))
        self.opened = self.rows[:, 0].astype(np.int64)
        self._total = np.concatenate(([0.0], np.cumsum(self.rows[:, 5])))
        self._coarse.clear()

    def closed(self, now_ms: int) -> int:
        """Row of the last closed candle, -1 before the first."""
        return int(self.opened.searchsorted(now_ms - self._step_ms, side="right")) - 1

    def closed_ms(self, index: int) -> int:
        """When a row closes."""
        return int(self.opened[index]) + self._step_ms

    def quote(self, index: int) -> tuple[float, float]:
        """Bid and ask once a row has closed; zero before the first."""
        if index < 0:
            return 0.0, 0.0
        row = self.rows[index].tolist()
        return (row[6], row[7]) if self.has_book else modelled_quote(self.market, Candle(int(row[0]), *row[1:6]))

    def volume_24h(self, index: int) -> float:
        """Base traded in the 24 hours before the close of a row."""
        first = int(self.opened.searchsorted(self.closed_ms(index) - DAY_MS))
        return float(self._total[index + 1] - self._total[first])

    def levels(self, index: int, is_ask: bool, shift: float = 0.0) -> list[tuple[float, float]]:
        """One side of the book, best first, moved by `shift`; its depth follows the day's volume."""
        bid, ask = self.quote(index)
        market, best = self.market, (ask if is_ask else bid) + shift
        if not self.has_book:
            price = market.round_price(best, Side.BUY if is_ask else Side.SELL)
            return [(price, market.round_volume(self.rows[index, 5] * OFFERED_SHARE))]
        rng = np.random.default_rng(np.random.SeedSequence([*self._seed, index, int(is_ask), BOOK_STREAM]))
        scale, lot = 10.0**market.price_scale, 10.0**market.volume_scale
        gaps = np.ceil((ask - bid) * scale / 4 * rng.exponential(1.0, BOOK_LEVELS))
        gaps[0] = 0
        prices = np.maximum(round(best * scale) + np.cumsum(gaps) * (1 if is_ask else -1), 1) / scale
        usual = self.volume_24h(index) / 288 * (0.15 + 0.1 * np.arange(BOOK_LEVELS))
        lots = np.maximum(np.floor(usual * rng.exponential(1.0, BOOK_LEVELS) * lot), 1)
        return list(zip(prices.tolist(), (lots / lot).tolist(), strict=True))

    def ticker(self, now_ms: int, status: str) -> dict[str, object]:
        """Luno's ticker; a market without a closed candle yet shows zeros."""
        index, time_ms, last, volume = self.closed(now_ms), now_ms, 0.0, 0.0
        bid, ask = self.quote(index)
        places = max(8, self.market.price_scale)  # recorded coins may cost less than any at Luno
        if index >= 0:
            time_ms, last, volume = self.closed_ms(index), self.rows[index, 4], self.volume_24h(index)
        return {"pair": self.market.pair, "timestamp": time_ms, "bid": f"{bid:.{places}f}", "ask": f"{ask:.{places}f}",
                "last_trade": f"{last:.{places}f}", "rolling_24_hour_volume": _demo_float(volume), "status": status}

    def candles(self, since_ms: int, duration_ms: int, now_ms: int) -> list[dict[str, object]]:
        """Luno's page: the earliest candles from `since_ms`, the one in progress included."""
        if duration_ms not in self._coarse:
            self._coarse[duration_ms] = _demo_resample(self.rows, duration_ms)
        rows = self._coarse[duration_ms]
        first = int(rows[:, 0].searchsorted(since_ms))
        closed = int(rows[:, 0].searchsorted(now_ms - duration_ms, side="right"))
        page = rows[first : max(first, min(closed, first + CANDLE_PAGE))].tolist()
        if len(page) < CANDLE_PAGE and now_ms - now_ms % duration_ms >= since_ms:
            page += self._running(duration_ms, now_ms).tolist()
        return [{"timestamp": int(r[0]), **_demo_amounts({name: r[n] for n, name in CANDLE_FIELDS})} for r in page]

    def _running(self, duration_ms: int, now_ms: int) -> Floats:
        """The candle in progress: what has closed of it, or a flat start; no row if none is to come."""
        opened = now_ms - now_ms % duration_ms
        first, last = int(self.opened.searchsorted(opened)), self.closed(now_ms) + 1
        if last > first:
            return _demo_resample(self.rows[first:last], duration_ms)
        if last >= len(self.rows) or int(self.opened[last]) > now_ms:
            return np.empty((0, 6))
        return np.array([[opened, *[self.rows[last, 1]] * 4, 0.0]])

    def trades(self, since_ms: int, now_ms: int) -> list[dict[str, object]]:
        """Luno's public trades, at most 100, newest first, made up from the candles: one to a candle."""
        oldest, last = int(self.opened.searchsorted(since_ms - self._step_ms + 1)), self.closed(now_ms)
        rows = ((n, *self.rows[n, :6].tolist()) for n in range(last, oldest - 1, -1))
        found = [(n, start, close, volume) for n, _, start, _, _, close, volume in rows if volume > 0]
        return [{"sequence": n * 1000, "timestamp": self.closed_ms(n) - 1, "price": _demo_float(close),
                 "volume": _demo_float(volume), "is_buy": close >= start} for n, start, close, volume in found[:100]]


@dataclass(slots=True)
class DemoOrder:
    """One order of the customer; `checked` is the first row it has not been tried against."""

    market: Market
    is_buy: bool
    price: Decimal
    volume: Decimal
    created_ms: int
    client_id: str
    time_in_force: str
    is_post_only: bool
    stop: Decimal
    direction: str
    status: str
    order_id: str = ""
    checked: int = 0
    base: Decimal = NOTHING
    counter: Decimal = NOTHING
    fee_base: Decimal = NOTHING
    fee_counter: Decimal = NOTHING
    completed_ms: int = 0
    cancelled_ms: int = 0

    @property
    def remaining(self) -> Decimal:
        """Volume not filled yet."""
        return self.volume - self.base

    def is_met_by(self, price: Decimal) -> bool:
        """True when the limit allows this price."""
        return price <= self.price if self.is_buy else price >= self.price

    def row(self, ids: Mapping[str, int]) -> dict[str, object]:
        """The order as Luno's second and third version show it."""
        amounts = {"limit_price": self.price, "limit_volume": self.volume, "stop_price": self.stop, "base": self.base,
                   "counter": self.counter, "fee_base": self.fee_base, "fee_counter": self.fee_counter}
        return {
            "order_id": self.order_id, "client_order_id": self.client_id, "pair": self.market.pair,
            "type": "STOP_LIMIT" if self.stop else "LIMIT", "side": "BUY" if self.is_buy else "SELL",
            "status": self.status, "time_in_force": self.time_in_force, "stop_direction": self.direction,
            "creation_timestamp": self.created_ms, "completed_timestamp": self.completed_ms,
            "expiration_timestamp": self.cancelled_ms, "base_account_id": ids[self.market.base],
            "counter_account_id": ids[self.market.counter], **_demo_amounts(amounts),
        }  # fmt: skip


PLAIN_AMOUNT = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")


class DemoQuery(NamedTuple):
    """The parameters of one request and when it arrived; empty counts as not given, as at Luno."""

    params: Params
    now_ms: int

    def every(self, name: str) -> list[str]:
        """All values of a repeated parameter."""
        return [value for key, value in self.params if key == name and value]

    def text(self, name: str, default: str = "") -> str:
        """One value or the default."""
        return next(iter(self.every(name)), default)

    def whole(self, name: str, default: int = 0, least: int = 0, most: int = DEMO_ENDLESS_MS) -> int:
        """A whole number within bounds."""
        text = self.text(name, str(default))
        if not re.fullmatch(r"[0-9]{1,19}", text) or not least <= int(text) <= most:
            raise ExchangeRefused("ErrLimitOutOfRange" if name == "limit" else "ErrInvalidArguments", DEMO_REFUSED)
        return int(text)

    def amount(self, name: str) -> Decimal:
        """A plain decimal, zero if not given; scientific notation is refused, as at Luno."""
        text = self.text(name, "0")
        if not PLAIN_AMOUNT.fullmatch(text):
            raise ExchangeRefused("ErrInvalidValue", DEMO_REFUSED)
        return Decimal(text)


class DemoAccounts:
    """Balances, orders and fills of the customer, exact; fees come off what is received, or on top."""

    def __init__(self, tracks: Mapping[str, DemoTrack]) -> None:
        self.total: dict[str, Decimal] = {}
        self.orders: dict[str, DemoOrder] = {}
        self.fills: list[tuple[str, int, int, dict[str, object]]] = []  # pair, sequence, time, row
        self.entries: list[tuple[str, int, str, Decimal]] = []  # of the statement: asset, time, kind, change
        self.are_fees_on_top, self._tracks = False, tracks

    def reserved(self, asset: str) -> Decimal:
        """What live orders hold back of an asset."""
        return sum((n for a, n in map(self._held, self._live()) if a == asset), NOTHING)

    def change(self, asset: str, amount: Decimal, time_ms: int, kind: str = "TRANSFER") -> None:
        """Book a change of a balance, and the entry of the statement that tells it."""
        self.total[asset] += amount
        self.entries.append((asset, time_ms, kind, amount))

    def statement(self, asset: str, query: DemoQuery) -> dict[str, object]:
        """The newest entries of an account; asked as the program asks, by how many from the end."""
        if query.text("max_row") != "0" or not re.fullmatch(r"-[0-9]{1,4}", query.text("min_row")):
            raise ExchangeRefused("ErrInvalidArguments", DEMO_REFUSED)
        rows = [{"row_index": n, "timestamp": e[1], "kind": e[2], "balance_delta": float(e[3])}
                for n, e in enumerate((e for e in self.entries if e[0] == asset), start=1)]
        return {"transactions": rows[int(query.text("min_row")):]}

    def of_client(self, client_id: str) -> DemoOrder | None:
        """The order that has this id of the customer's own."""
        return next((o for o in self.orders.values() if o.client_id == client_id != ""), None)

    def accept(self, order: DemoOrder, now_ms: int) -> None:
        """Take in a checked order and let it meet the book: it takes, rests, or is gone at once."""
        track, (asset, amount) = self._tracks[order.market.pair], self._held(order)
        index = track.closed(now_ms)
        if amount > self.total[asset] - self.reserved(asset):
            raise ExchangeRefused("ErrInsufficientBalance", DEMO_REFUSED)
        order.checked, order.order_id = index + 1, f"BXDEMO{len(self.orders) + 1:09d}"
        self.orders[order.order_id] = order
        bid, ask = track.quote(index)
        is_crossing = order.is_met_by(exact(ask if order.is_buy else bid, order.market.price_scale))
        if order.status == "PENDING" and is_crossing and not order.is_post_only:
            self._take(order, track, index, now_ms)
        is_over = order.time_in_force == "IOC" or (is_crossing and order.is_post_only)
        if order.status == "PENDING" and is_over:
            order.status, order.completed_ms = "COMPLETE", now_ms

    def cancel(self, order_id: str, now_ms: int) -> dict[str, object]:
        """Take an order out of the book, with Luno's answer."""
        order = self.orders.get(order_id)
        if order is None or order.status == "COMPLETE":
            raise ExchangeRefused("ErrCannotStopUnknownOrNonPendingOrder", DEMO_REFUSED)
        order.status, order.completed_ms, order.cancelled_ms = "COMPLETE", now_ms, now_ms
        return {"success": True}

    def settle(self, now_ms: int) -> None:
        """Try all live orders against the candles that closed since the last call."""
        for order in self._live():
            track = self._tracks[order.market.pair]
            end = track.closed(now_ms) + 1
            if order.status == "AWAITING":
                self._trigger(order, track, end)
            if order.status == "PENDING":
                self._rest(order, track, end)
            order.checked = end

    def _live(self) -> list[DemoOrder]:
        return [order for order in self.orders.values() if order.status != "COMPLETE"]

    def _trigger(self, order: DemoOrder, track: DemoTrack, end: int) -> None:
        """The first trade at the stop sets the order free; a gap is met at the price it opened with."""
        rows, stop, is_low = track.rows[order.checked : end], float(order.stop), order.direction == "BELOW"
        hits = np.flatnonzero((rows[:, 3] <= stop if is_low else rows[:, 2] >= stop) & (rows[:, 5] > 0))
        if len(hits):
            index = order.checked + int(hits[0])
            opened, close = float(track.rows[index, 1]), float(track.rows[index, 4])
            shift = (min(opened, stop) if is_low else max(opened, stop)) - close
            order.status, order.checked = "PENDING", index + 1
            self._take(order, track, index, track.closed_ms(index), shift)

    def _take(self, order: DemoOrder, track: DemoTrack, index: int, time_ms: int, shift: float = 0.0) -> None:
        """Walk the book up to the limit."""
        for level, depth in track.levels(index, order.is_buy, shift):
            price, volume = exact(level, order.market.price_scale), exact(depth, order.market.volume_scale)
            if order.remaining > 0 and volume > 0 and order.is_met_by(price):
                self._fill(order, index, time_ms, (price, min(order.remaining, volume)), is_maker=False)

    def _rest(self, order: DemoOrder, track: DemoTrack, end: int) -> None:
        """A resting order gets what later candles traded, once one goes through its price by a tick."""
        rows, limit, tick = track.rows[order.checked : end], float(order.price), order.market.tick * 0.999999
        is_through = rows[:, 3] <= limit - tick if order.is_buy else rows[:, 2] >= limit + tick
        for index in (order.checked + np.flatnonzero(is_through)).tolist():
            volume = track.market.round_volume(float(track.rows[index, 5]))
            part = min(order.remaining, exact(volume, track.market.volume_scale))
            if part > 0:
                self._fill(order, index, track.closed_ms(index), (order.price, part), is_maker=True)

    def _fill(self, order: DemoOrder, index: int, time_ms: int, at: tuple[Decimal, Decimal], *, is_maker: bool) -> None:
        """Book one execution; its number tells only when it was, not how often anybody looked."""
        (price, volume), market, sign = at, order.market, 1 if order.is_buy else -1
        counter, is_in_base = price * volume, order.is_buy != self.are_fees_on_top
        rate = Decimal(str(market.maker_fee if is_maker else market.taker_fee))
        fee = ((volume if is_in_base else counter) * rate).quantize(FEE_STEP, rounding=ROUND_CEILING)
        fee_base, fee_counter = (fee, NOTHING) if is_in_base else (NOTHING, fee)
        self.change(market.base, sign * volume - fee_base, time_ms, "EXCHANGE")
        self.change(market.counter, -sign * counter - fee_counter, time_ms, "EXCHANGE")
        order.base, order.counter = order.base + volume, order.counter + counter
        order.fee_base, order.fee_counter = order.fee_base + fee_base, order.fee_counter + fee_counter
        if not order.remaining:
            order.status, order.completed_ms = "COMPLETE", time_ms
        number = index * 1000 + 1 + sum(f[0] == market.pair and f[1] // 1000 == index for f in self.fills)
        amounts = {"price": price, "volume": volume, "base": volume, "counter": counter,
                   "fee_base": fee_base, "fee_counter": fee_counter}
        self.fills.append((market.pair, number, time_ms, {
            "pair": market.pair, "sequence": number, "order_id": order.order_id, "timestamp": time_ms,
            "type": "BID" if order.is_buy else "ASK", "is_buy": order.is_buy != is_maker,
            "client_order_id": order.client_id, **_demo_amounts(amounts),
        }))  # fmt: skip

    def _held(self, order: DemoOrder) -> tuple[str, Decimal]:
        """What a live order holds back."""
        on_top = Decimal(str(order.market.taker_fee)) if self.are_fees_on_top else NOTHING
        amount = order.remaining * (order.price if order.is_buy else 1) * (1 + on_top)
        asset = order.market.counter if order.is_buy else order.market.base
        return asset, amount.quantize(FEE_STEP, rounding=ROUND_CEILING)


@dataclass(frozen=True, slots=True)
class Fault:
    """Trouble for the next `times` calls whose path begins with `path`.

    Kinds: down, timeout (after `wait_s`), late (arrives `wait_s` later, unheard), slow, twice, truncated,
    null_lists, names of FAULT_REPLIES, any error code. A fault stops the request; with `_after` at its end
    it spoils the answer to a request that was carried out.
    """

    kind: str
    path: str = ""
    times: int = 1
    wait_s: float = 0.0


FAULT_REPLIES = types.MappingProxyType({
    "401": (401, b"Unauthorised"), "429": (429, b"Too Many Requests"), "wrong_shape": (200, b"[1, 2, 3]"),
    "500": (500, b"<html><body><h1>500 Internal Server Error</h1></body></html>"),
    "garbage": (200, b"\x00\xff{]garbage"),
})  # fmt: skip
ERROR_STATUS = types.MappingProxyType({
    "ErrInsufficientPerms": 403, "ErrOrderNotFound": 404, "ErrNotFound": 404, "ErrInternal": 500,
    "ErrDuplicateClientOrderID": 409, "ErrUnderMaintenance": 503,
})  # fmt: skip
TICKER_STATUS = types.MappingProxyType({"ACTIVE": "ACTIVE", "POST_ONLY": "POSTONLY", "SUSPENDED": "DISABLED"})
PUBLIC_PATHS = ("/api/exchange/1/markets", "/api/1/ticker", "/api/1/tickers", "/api/1/orderbook_top", "/api/1/trades")
CLIENT_ID = re.compile(r"[0-9A-Za-z_;,.\-]{0,255}")
DemoRequest = tuple[str, str, Params, Credentials | None]


def _demo_trouble(order: DemoOrder, query: DemoQuery, status: str) -> Iterator[tuple[bool, str]]:
    """What can be wrong with an order, and Luno's code for it; the first that holds counts."""
    market, price, volume, stop = order.market, order.price, order.volume, order.stop
    sent_ms, ttl_ms = query.whole("timestamp"), query.whole("ttl", 10_000, 1, 10_000)
    yield 0 < sent_ms < query.now_ms - ttl_ms, "ErrDeadlineExceeded"
    yield query.text("type") not in ("BID", "ASK"), "ErrInvalidOrderSide"
    yield not CLIENT_ID.fullmatch(order.client_id), "ErrInvalidClientOrderId"
    yield status not in ("ACTIVE", "POST_ONLY"), "ErrMarketUnavailable"
    yield status == "POST_ONLY" and not order.is_post_only, "ErrPostOnlyMode"
    yield price != round(price, market.price_scale), "ErrPriceDenominationNotAllowed"
    yield volume != round(volume, market.volume_scale), "ErrVolumeDenominationNotAllowed"
    yield volume < Decimal(str(market.min_volume)) or volume == 0, "ErrVolumeTooLow"
    yield volume > Decimal(str(market.max_volume)), "ErrVolumeTooHigh"
    yield price < Decimal(str(market.min_price)) or price == 0, "ErrPriceTooLow"
    yield price > Decimal(str(market.max_price)), "ErrPriceTooHigh"
    yield stop != round(stop, market.price_scale), "ErrInvalidStopPrice"
    yield stop > 0 and order.direction not in ("ABOVE", "BELOW"), "ErrInvalidStopDirection"
    yield order.time_in_force not in ("GTC", "IOC"), "ErrInvalidArguments"
    yield order.is_post_only and order.time_in_force != "GTC", "ErrPostOnlyNotAllowed"


class DemoExchange:
    """Luno's REST answers from a generated or a recorded market; never to be mistaken for the real ones."""

    def __init__(
        self, tracks: Mapping[str, DemoTrack], finest_s: int, clock: Clock, span: tuple[int, int, int],
        blocks: Iterator[list[Floats]],
    ) -> None:  # fmt: skip
        self.finest_s, self._clock, self._blocks, self._tracks = finest_s, clock, blocks, tracks
        self.history_start_ms, self.start_ms, self.end_ms = span
        self.accounts = DemoAccounts(tracks)
        # for tests: trouble to come, statuses (DELISTED hides a market), the rights of the key, requests seen
        self.faults: deque[Fault] = deque()
        self.statuses = {pair: track.market.status for pair, track in tracks.items()}
        self.can_trade, self.skew_ms = True, 0
        self.calls: Counter[str] = Counter()
        self._late: list[tuple[int, DemoRequest]] = []
        counters = {t.market.counter for t in tracks.values()}
        assets = sorted(counters | {t.market.base for t in tracks.values()})
        self._ids = {asset: FIRST_ACCOUNT + n for n, asset in enumerate(assets)}
        self.accounts.total.update({a: Decimal("100000" if a in counters else "0") for a in assets})
        self._routes: Mapping[tuple[str, str], Callable[[DemoQuery], object]] = {
            ("GET", "/api/exchange/1/markets"): self._answer_markets,
            ("GET", "/api/1/ticker"): lambda q: self._ticker(self._track(q), q),
            ("GET", "/api/1/tickers"): lambda q: {"tickers": [self._ticker(t, q) for t in self._listed(q)]},
            ("GET", "/api/1/orderbook_top"): self._answer_book,
            ("GET", "/api/1/trades"): self._answer_trades,
            ("GET", "/api/exchange/1/candles"): self._answer_candles,
            ("GET", "/api/1/fee_info"): self._answer_fees,
            ("GET", "/api/1/balance"): self._answer_balance,
            ("GET", "/api/exchange/3/order"): self._answer_order,
            ("GET", "/api/exchange/2/listorders"): self._answer_orders,
            ("GET", "/api/1/listtrades"): self._answer_fills,
            ("POST", "/api/1/postorder"): self._answer_post,
            ("POST", "/api/1/stoporder"): lambda q: self.accounts.cancel(q.text("order_id"), q.now_ms),
        }

    @classmethod
    def generated(cls, seed: int, clock: Clock) -> DemoExchange:
        """The demo market: seven rand markets without an end, the same for the same seed."""
        tracks = {}
        for number, profile in enumerate(DEMO_PROFILES):
            pair, base, price, digits, volume_digits, least = profile.market
            limits = (least, least * 1e6, 10.0**-digits, price * 50)
            market = Market(pair, base, "ZAR", digits, volume_digits, *limits, model_spread=profile.spread)
            tracks[pair] = DemoTrack(market, DEMO_FINEST_S, (seed, number))
        span = (DEMO_START_MS - DEMO_HISTORY_MS, DEMO_START_MS, DEMO_ENDLESS_MS)
        return cls(tracks, DEMO_FINEST_S, clock, span, demo_blocks(seed))

    @classmethod
    def recorded(cls, data: Mapping[str, Floats], finest_s: int, markets: Mapping[str, Market],
                 clock: Clock) -> DemoExchange:
        """Recorded candles played again: rows of opened, open, high, low, close, volume, ascending."""
        tracks = {pair: DemoTrack(markets[pair], finest_s) for pair in sorted(data) if len(data[pair])}
        for pair, track in tracks.items():
            track.extend(np.asarray(data[pair], dtype=np.float64))
        first = min(int(track.opened[0]) for track in tracks.values())
        end = max(track.closed_ms(-1) for track in tracks.values())
        lead = DEMO_HISTORY_MS if end - first > DEMO_HISTORY_MS else (end - first) // 2
        return cls(tracks, finest_s, clock, (first, first + lead - lead % (finest_s * 1000), end), iter(()))

    def markets(self) -> tuple[Market, ...]:
        """The markets on offer."""
        return tuple(track.market for track in self._tracks.values())

    def send(self, method: str, path: str, params: Params = (), key: Credentials | None = None) -> Reply:
        """One request to Luno, answered here."""
        self.calls[f"{method} {path}"] += 1
        request, fault = (method, path, params, key), self._next_fault(path)
        kind = fault.kind.removesuffix("_after")
        if kind in ("slow", "timeout"):
            self._clock.sleep(fault.wait_s)
        if kind == "late":
            self._late.append((self._clock.now_ms() + round(fault.wait_s * 1000), request))
        is_unheard, is_known = kind in ("down", "timeout", "late"), kind in FAULT_REPLIES
        is_lost = kind == fault.kind and (is_unheard or is_known or kind.startswith("Err"))
        reply = self._made(0, b"") if is_lost else self._serve(request)
        if is_unheard:
            raise ExchangeDown("the exchange did not answer")
        return self._spoil(self._serve(request) if kind == "twice" else reply, kind, fault.wait_s)

    def close(self) -> None:
        """Nothing to let go of."""

    def _next_fault(self, path: str) -> Fault:
        """The first planned fault for this path, used up once; without one, a fault that does nothing."""
        for number, fault in enumerate(self.faults):
            if path.startswith(fault.path):
                del self.faults[number]
                self.faults.extendleft([replace(fault, times=fault.times - 1)] if fault.times > 1 else [])
                return fault
        return Fault("none")

    def _spoil(self, reply: Reply, kind: str, wait_s: float) -> Reply:
        """The answer as the fault leaves it."""
        if kind in FAULT_REPLIES:
            wait = {"retry-after": f"{wait_s:.0f}"} if wait_s > 0 else {}
            return Reply(FAULT_REPLIES[kind][0], {**reply.headers, **wait}, FAULT_REPLIES[kind][1])
        if kind.startswith("Err"):
            return self._refused(kind)
        if kind == "truncated":
            return reply._replace(body=reply.body[: len(reply.body) // 2])
        if kind == "null_lists":
            nulled = {n: None if isinstance(v, list) else v for n, v in json.loads(reply.body).items()}
            return reply._replace(body=json.dumps(nulled).encode())
        return reply

    def _made(self, status: int, body: bytes, kind: str = "application/json") -> Reply:
        date = formatdate((self._clock.now_ms() + self.skew_ms) // 1000, usegmt=True)
        return Reply(status, {"date": date, "content-type": kind}, body)

    def _refused(self, code: str) -> Reply:
        body = json.dumps({"error": "Refused.", "error_code": code, "error_action": {}})
        return self._made(ERROR_STATUS.get(code, 400), body.encode())

    def _serve(self, request: DemoRequest) -> Reply:
        """Make the market up to one candle beyond now, deliver what was late, then answer."""
        now_ms, tracks = self._clock.now_ms(), tuple(self._tracks.values())
        while self.end_ms == DEMO_ENDLESS_MS and tracks[0].closed(now_ms) + 1 >= len(tracks[0].rows):
            for track, rows in zip(tracks, next(self._blocks), strict=True):
                track.extend(rows)
        due = [late for late in self._late if late[0] <= now_ms]
        self._late = [late for late in self._late if late[0] > now_ms]
        for due_ms, late in sorted(due, key=lambda late: late[0]):
            self._reply(late, due_ms)
        return self._reply(request, now_ms)

    def _reply(self, request: DemoRequest, now_ms: int) -> Reply:
        method, path, params, key = request
        self.accounts.settle(now_ms)
        if path not in PUBLIC_PATHS and not key:
            return self._made(401, b"Unauthorised", "text/plain")
        try:
            asset = next((a for a, n in self._ids.items() if path == f"/api/1/accounts/{n}/transactions"), "")
            if (method, path) not in self._routes and not asset:
                raise ExchangeRefused("ErrNotFound", DEMO_REFUSED)
            if method == "POST" and not self.can_trade:
                raise ExchangeRefused("ErrInsufficientPerms", DEMO_REFUSED)
            query = DemoQuery(params, now_ms)
            answer = self.accounts.statement(asset, query) if asset else self._routes[method, path](query)
        except ExchangeRefused as refusal:
            return self._refused(refusal.code)
        return self._made(200, json.dumps(answer).encode())

    def _listed(self, query: DemoQuery) -> list[DemoTrack]:
        """The markets a request names, or all; an unknown one is an error."""
        wanted = query.every("pair") or list(self._tracks)
        if not set(wanted) <= set(self._tracks):
            raise ExchangeRefused("ErrInvalidMarketPair", DEMO_REFUSED)
        return [t for p, t in self._tracks.items() if p in wanted and self.statuses[p] != "DELISTED"]

    def _track(self, query: DemoQuery) -> DemoTrack:
        found = self._listed(query)
        if not query.text("pair") or not found:
            raise ExchangeRefused("ErrInvalidMarketPair", DEMO_REFUSED)
        return found[0]

    def _ticker(self, track: DemoTrack, query: DemoQuery) -> dict[str, object]:
        return track.ticker(query.now_ms, TICKER_STATUS.get(self.statuses[track.market.pair], "UNKNOWN"))

    def _answer_markets(self, query: DemoQuery) -> object:
        return {"markets": [
            {
                "market_id": m.pair, "trading_status": self.statuses[m.pair], "base_currency": m.base,
                "counter_currency": m.counter, "volume_scale": m.volume_scale, "price_scale": m.price_scale,
                "fee_scale": FEE_SCALE, **_demo_amounts({"min_volume": m.min_volume, "max_volume": m.max_volume,
                                                         "min_price": m.min_price, "max_price": m.max_price}),
            }
            for m in (track.market for track in self._listed(query))
        ]}  # fmt: skip

    def _answer_book(self, query: DemoQuery) -> object:
        track = self._track(query)
        index = track.closed(query.now_ms)
        if not track.has_book or index < 0:
            return {"timestamp": query.now_ms, "asks": None, "bids": None}
        asks, bids = ([{"price": _demo_float(p), "volume": _demo_float(v)} for p, v in track.levels(index, is_ask)]
                      for is_ask in (True, False))
        return {"timestamp": track.closed_ms(index), "asks": asks, "bids": bids}

    def _answer_trades(self, query: DemoQuery) -> object:
        since_ms = query.whole("since", query.now_ms - DAY_MS, query.now_ms - DAY_MS)
        return {"trades": self._track(query).trades(since_ms, query.now_ms)}

    def _answer_candles(self, query: DemoQuery) -> object:
        track, duration = self._track(query), query.whole("duration")
        if duration not in CANDLES_S or duration % self.finest_s or not query.text("since"):
            raise ExchangeRefused("ErrInvalidArguments", DEMO_REFUSED)
        rows = track.candles(query.whole("since"), duration * 1000, query.now_ms)
        return {"candles": rows, "duration": duration, "pair": track.market.pair}

    def _answer_fees(self, query: DemoQuery) -> object:
        market = self._track(query).market
        fees = (("maker_fee", market.maker_fee), ("taker_fee", market.taker_fee))
        rows = {f"{name}{side}": f"{fee:.8f}" for side in ("", "_buy", "_sell") for name, fee in fees}
        return {"thirty_day_volume": "0", **rows}

    def _answer_balance(self, query: DemoQuery) -> object:
        accounts, wanted = self.accounts, query.every("assets") or list(self._ids)
        held = {a: {"balance": accounts.total[a], "reserved": accounts.reserved(a), "unconfirmed": NOTHING}
                for a in self._ids if a in wanted}
        return {"balance": [{"account_id": str(self._ids[a]), "asset": a, **_demo_amounts(amounts), "name": a}
                            for a, amounts in held.items()]}

    def _answer_order(self, query: DemoQuery) -> object:
        order_id, client_id = query.text("id"), query.text("client_order_id")
        if bool(order_id) == bool(client_id):
            raise ExchangeRefused("ErrInvalidArguments", DEMO_REFUSED)
        order = self.accounts.orders.get(order_id) or self.accounts.of_client(client_id)
        if order is None:
            raise ExchangeRefused("ErrOrderNotFound", DEMO_REFUSED)
        return order.row(self._ids)

    def _answer_orders(self, query: DemoQuery) -> object:
        before_ms, limit = query.whole("created_before", DEMO_ENDLESS_MS), query.whole("limit", 100, 1, 1000)
        pairs, is_closed = query.every("pair") or list(self._tracks), query.text("closed") == "true"
        found = [o for o in reversed(self.accounts.orders.values()) if (o.status == "COMPLETE") == is_closed]
        found = [o for o in found if o.created_ms < before_ms and o.market.pair in pairs]
        return {"orders": [order.row(self._ids) for order in found[:limit]]}

    def _answer_fills(self, query: DemoQuery) -> object:
        pair, limit = self._track(query).market.pair, query.whole("limit", 100, 1, 1000)
        times = range(query.whole("since"), query.whole("before", DEMO_ENDLESS_MS))
        numbers = range(query.whole("after_seq"), query.whole("before_seq", DEMO_ENDLESS_MS))
        is_newest_first = query.text("sort_desc") == "true" or bool(query.text("before"))
        found = [f[1:] for f in self.accounts.fills if f[0] == pair and f[1] in numbers and f[2] in times]
        found.sort(key=lambda fill: fill[0], reverse=is_newest_first)
        return {"trades": [row for _, _, row in found[:limit]]}

    def _answer_post(self, query: DemoQuery) -> object:
        track, text, stop = self._track(query), query.text, query.amount("stop_price")
        order = DemoOrder(
            track.market, text("type") == "BID", query.amount("price"), query.amount("volume"), query.now_ms,
            client_id=text("client_order_id"), time_in_force=text("time_in_force", "GTC"), stop=stop,
            direction=text("stop_direction") if stop else "", is_post_only=text("post_only") == "true",
            status="AWAITING" if stop else "PENDING",
        )  # fmt: skip
        status = self.statuses[track.market.pair] if track.closed(query.now_ms) >= 0 else "UNKNOWN"
        codes = ["ErrDuplicateClientOrderID"] if self.accounts.of_client(order.client_id) else []
        codes += [code for is_wrong, code in _demo_trouble(order, query, status) if is_wrong]
        if codes:
            raise ExchangeRefused(codes[0], DEMO_REFUSED)
        self.accounts.accept(order, query.now_ms)
        return {"order_id": order.order_id}


# ==============================================================================
# FEED | closed candles and fresh quotes, with their faults named
# shell | uses ERRORS TYPES SETTINGS CANDLES STRATEGIES LUNO
# ==============================================================================

MARKETS_EVERY_MS = HOUR_MS
KEEP_DAYS, LOAD_DAYS = 2, 8  # more than the memory of the strategies
PAGE_CANDLES = 1000


class LoadState(NamedTuple):
    """How far the loading of history has come: series or pages, done and in total, and what is being loaded."""

    done: int
    total: int
    words: str


CandleNews = tuple[str, int, Sequence[Candle]]  # pair, seconds, closed candles


class CandleCache(Protocol):
    """Where closed candles are kept between runs."""

    def candles(self, pair: str, timeframe_s: int, since_ms: int = 0) -> Floats:
        """Rows of opened_ms, open, high, low, close, volume, ascending."""

    def save_news(self, news: Sequence[CandleNews]) -> tuple[int, ...]:
        """Keep closed candles, all or nothing; returns for each how many contradicted one kept before."""


def rows_of(candles: Iterable[Candle]) -> Floats:
    """Candles as an (n, 6) table."""
    rows = [(c.opened_ms, c.open, c.high, c.low, c.close, c.volume) for c in candles]
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


class Track:
    """One market's candles of one timeframe, kept whole and closed, with a report of every fault seen."""

    def __init__(self, pair: str, seconds: int, rows: Floats) -> None:
        self.pair, self.seconds, self.rows = pair, seconds, rows
        self.conflicts = 0
        self._faults = CandleReport()
        self._report: CandleReport | None = None

    @property
    def report(self) -> CandleReport:
        """The candles that are there, and what was left out."""
        if self._report is None:
            seen = self._faults
            self._report = replace(
                shape_of(series_of(self.rows, self.seconds)), duplicates=seen.duplicates, disordered=seen.disordered,
                future=seen.future, impossible=seen.impossible)
        return self._report

    @property
    def next_ms(self) -> int:
        """Start of the first candle that is not there yet."""
        return int(self.rows[-1, 0]) + self.seconds * 1000 if len(self.rows) else 0

    def add(self, candles: Sequence[Candle], now_ms: int) -> list[Candle]:
        """Take in closed candles that are new; returns them."""
        cleaned, found = sift_rows(rows_of(candles), self.seconds, now_ms)
        fresh = cleaned[cleaned[:, 0] >= self.next_ms]
        self.rows = np.vstack((self.rows, fresh)) if len(self.rows) else fresh
        seen, self._report = self._faults, None
        self._faults = CandleReport(
            duplicates=seen.duplicates + found.duplicates, disordered=seen.disordered + found.disordered,
            future=seen.future + found.future, impossible=seen.impossible + found.impossible)
        return [Candle(int(r[0]), *(float(v) for v in r[1:])) for r in fresh]

    def trim(self, now_ms: int) -> None:
        """Forget candles older than any memory needs; one before them stays, so that a hole there shortens nothing."""
        start = int(np.searchsorted(self.rows[:, 0], now_ms - (memory_days(self.seconds) + KEEP_DAYS) * DAY_MS))
        self.rows = self.rows[max(0, start - 1):]

    def newest(self, params: StrategyParams) -> Newest:
        """The candles that the newest reading needs; there must be one."""
        tail = self.rows[-signal_rows(params, self.seconds):]
        return Newest(self.pair, series_of(tail, self.seconds), int(self.rows[0, 0]))


def unlisted(pair: str, counter: str) -> Market:
    """A market the exchange does not list: named, shown, never traded."""
    return Market(pair, pair.removesuffix(counter), counter, 8, 8, 0.0, 0.0, 0.0, 0.0, "NOT LISTED")


def choice_days(gates: GateLimits, seconds: int) -> int:
    """How many days of candles a choice of the set reads, the strategies' memory included."""
    return gates.train_days + max(gates.warm_up_days, memory_days(seconds)) + 1


def evaluation_days(gates: GateLimits, seconds: int) -> int:
    """The same for an evaluation of the gates with all its windows."""
    return choice_days(gates, seconds) + gates.embargo_days + gates.windows * gates.test_days


class Wanted(NamedTuple):
    """Candles that are to be in the cache: of these markets and length, of so many whole days before this one."""

    pairs: tuple[str, ...]
    seconds: int
    days: int


class History:
    """Older candles, page by page into the cache, each market from the newest down, so that none is left out.

    `known` tells between which times a market's candles are there or the exchange has none, for a later time.
    """

    def __init__(self, client: LunoClient, cache: CandleCache, wanted: Wanted, now_ms: int,
                 known: dict[tuple[str, int], tuple[int, int]]) -> None:
        self._client, self._cache, self._wanted, self._known = client, cache, wanted, known
        self._step = wanted.seconds * 1000
        self._end = (now_ms - DECISION_DELAY_MS) // self._step * self._step
        self._since = now_ms // DAY_MS * DAY_MS - wanted.days * DAY_MS
        self._tops = dict.fromkeys(wanted.pairs, self._end)
        self._opened: dict[str, Floats] = {}
        self._total = 0

    def load_page(self, now_ms: int) -> LoadState | None:
        """Fetch one page; None when all is there."""
        left = [(pair, self._pages(pair)) for pair in self._wanted.pairs]
        pages = sum(count for _, count in left)
        self._total = max(self._total, pages)
        if not pages:
            return None
        pair = next(pair for pair, count in left if count)
        self._fetch(pair, now_ms)
        return LoadState(self._total - pages, self._total, f"candles of {pair}, {self._wanted.seconds} s")

    def _pages(self, pair: str) -> int:
        """How many pages this market still needs, at most."""
        return max(0, -(-(self._whole_from(pair) - self._since) // (PAGE_CANDLES * self._step)))

    def _fetch(self, pair: str, now_ms: int) -> None:
        seconds, top = self._wanted.seconds, self._tops[pair]
        start = max(self._since, top - PAGE_CANDLES * self._step)
        rows, _ = sift_rows(rows_of(self._client.candles(pair, start, seconds)), seconds, now_ms)
        older = [Candle(int(r[0]), *(float(v) for v in r[1:])) for r in rows if r[0] < top]
        self._cache.save_news([(pair, seconds, older)])
        self._tops[pair] = start  # what is missing in the page is missing at the exchange

    def _whole_from(self, pair: str) -> int:
        """From when on the cache has all that the exchange has."""
        key, top = (pair, self._wanted.seconds), self._tops[pair]
        if pair not in self._opened:
            self._opened[pair] = self._cache.candles(*key, self._since)[:, 0]
        low, high = self._known.get(key, (top, top))
        while True:
            older = self._opened[pair][self._opened[pair] < top][::-1]
            is_next = older == top - self._step * np.arange(1, len(older) + 1)
            reached = top - self._step * int(len(older) if is_next.all() else is_next.argmin())
            reached = min(reached, low) if low <= reached <= high else reached
            if reached == top:
                break
            top = reached
        if top <= high:
            self._known[key] = (min(low, top), max(high, self._end))
        self._tops[pair] = top
        return top


class Feed:
    """Views of all markets, from the exchange's answers and the cache.

    `bar_s` is the duration of the candles that are evidence for fills when the clock is stepped, 0 in real time:
    then the decision candle itself is.
    """

    def __init__(self, client: LunoClient, cache: CandleCache, settings: Settings, bar_s: int = 0) -> None:
        self._client, self._cache, self._settings, self._bar_s = client, cache, settings, bar_s
        self.markets: dict[str, Market] = {}
        self._markets_ms = 0
        self._fees: dict[str, tuple[float, float]] = {}
        self._tracks: dict[tuple[str, int], Track] = {}
        self._loaded: set[tuple[str, int]] = set()
        self._tables: dict[tuple[str, int], SignalTable] = {}
        self._bars: dict[str, Candle] = {}
        self._correlated: dict[str, tuple[str, ...]] = {}
        self._troubles: dict[str, tuple[Finding, ...]] = {}
        self._day = -1
        self._known: dict[tuple[str, int], tuple[int, int]] = {}
        self._older: History | None = None
        self.saves_candles = bar_s == 0
        self.unsaved: list[CandleNews] = []  # new candles that the cache does not have
        self.events: list[tuple[str, str, str]] = []

    def refresh_markets(self, now_ms: int) -> None:
        """Read scales, minimums and fees again; a market that is not listed stays as suspended."""
        found = {m.pair: m for m in self._client.markets()}
        is_new_day = now_ms // DAY_MS != self._markets_ms // DAY_MS
        for pair in self._settings.schedule.pairs:
            if pair not in found:
                self._tell_once(pair)
            elif self._client.has_key and (is_new_day or pair not in self._fees):
                self._fees[pair] = self._client.fees(pair)
        self.markets = {p: self._with_fees(found.get(p) or unlisted(p, self._settings.schedule.counter))
                        for p in sorted(self._settings.schedule.pairs)}
        self._markets_ms = now_ms

    def _tell_once(self, pair: str) -> None:
        if pair not in self.markets or self.markets[pair].status != "NOT LISTED":
            self.events.append(("market", "warning", f"{pair} is not listed by the exchange: no trading there"))

    def _with_fees(self, market: Market) -> Market:
        if market.pair not in self._fees:
            return market
        maker, taker = self._fees[market.pair]
        return with_fees(market, maker, taker, "account")

    def load_page(self, now_ms: int) -> LoadState | None:
        """Fetch one page of missing history; None when all is there."""
        if not self.markets:
            self.refresh_markets(now_ms)
        wanted = [(p, s) for s in self._settings.schedule.timeframes for p in self.markets]
        missing = [key for key in wanted if key not in self._loaded and self.markets[key[0]].status != "NOT LISTED"]
        if not missing:
            return None
        pair, seconds = missing[0]
        if self._fetch(self._track(pair, seconds, now_ms), now_ms):
            self._loaded.add((pair, seconds))
        self._save()
        return LoadState(len(wanted) - len(missing), len(wanted), f"candles of {pair}, {seconds} s")

    def use(self, params: StrategyParams) -> None:
        """Read the candles with another set from now on."""
        self._settings = replace(self._settings, params=params)
        self._read([self._tracks[key] for key in self._tables])

    def history(self, seconds: int, days: int, now_ms: int, pairs: Sequence[str] = ()) -> History:
        """The way to candles of so many whole days before this one, of these or all markets that are listed."""
        if not self.markets:
            self.refresh_markets(now_ms)
        listed = tuple(p for p, m in self.markets.items() if m.status != "NOT LISTED" and (not pairs or p in pairs))
        return History(self._client, self._cache, Wanted(listed, seconds, days), now_ms, self._known)

    def history_page(self, now_ms: int) -> bool:
        """Fetch a page of what a choice of the set needs beyond the strategies' memory; False when all is there."""
        if self._older is None:
            seconds = min(self._settings.schedule.timeframes)
            self._older = self.history(seconds, choice_days(self._settings.gates, seconds), now_ms)
        return self._older.load_page(now_ms) is not None

    def _track(self, pair: str, seconds: int, now_ms: int) -> Track:
        key = (pair, seconds)
        if key not in self._tracks:
            since = now_ms - (memory_days(seconds) + LOAD_DAYS) * DAY_MS
            rows = self._cache.candles(pair, seconds, since) if self.saves_candles else np.empty((0, 6))
            self._tracks[key] = Track(pair, seconds, rows)
        return self._tracks[key]

    def _fetch(self, track: Track, now_ms: int) -> bool:
        """Fetch the next page of a track; True when it reaches the present."""
        step = track.seconds * 1000
        since = max(track.next_ms, (now_ms - (memory_days(track.seconds) + LOAD_DAYS) * DAY_MS) // step * step)
        page = self._client.candles(track.pair, since, track.seconds)
        fresh = track.add(page, now_ms)
        if fresh:
            self.unsaved.append((track.pair, track.seconds, fresh))
        return len(page) < PAGE_CANDLES or not fresh

    def _save(self) -> None:
        """Write all new candles into the cache, one transaction for all markets; without a cache they stay."""
        if self.saves_candles and self.unsaved:
            conflicts = self._cache.save_news(self.unsaved)
            for (pair, seconds, _), count in zip(self.unsaved, conflicts, strict=True):
                self._tracks[(pair, seconds)].conflicts += count
            self.unsaved.clear()

    def moment(self, now_ms: int, due: tuple[int, ...], conditions: Conditions, wanted: frozenset[str]) -> Moment:
        """All views now; `wanted` are the markets with positions or orders, whose books are needed.

        ExchangeDown if the quotes themselves cannot be had; trouble with one market is that market's doubt.
        """
        if now_ms - self._markets_ms >= MARKETS_EVERY_MS:
            self.refresh_markets(now_ms)
        tickers = {t.pair: t for t in self._client.tickers()}
        self._troubles = self._update(now_ms, due, wanted)
        if due:
            self._correlate(now_ms)
        views = tuple(self._view(self.markets[p], tickers.get(p), now_ms, due, p in wanted) for p in self.markets)
        return Moment(now_ms, views, conditions, due)

    def blind_moment(self, now_ms: int, due: tuple[int, ...], conditions: Conditions, why: str) -> Moment:
        """What is left to know when the exchange does not answer: nothing but the markets' names."""
        finding = (Finding(Doubt.NO_QUOTE, why),)
        views = tuple(MarketView(m, None, None, (), None, finding) for m in self.markets.values())
        return Moment(now_ms, views, conditions, due)

    def _update(self, now_ms: int, due: tuple[int, ...], wanted: frozenset[str]) -> dict[str, tuple[Finding, ...]]:
        """Fetch what closed since the last time; returns the doubts of markets whose candles could not be had."""
        troubles: dict[str, tuple[Finding, ...]] = {}
        done: list[Track] = []
        try:
            for pair, market in self.markets.items():
                if market.status == "NOT LISTED":
                    continue
                try:
                    done += self._update_market(pair, now_ms, due)
                    if self._bar_s and (due or pair in wanted):
                        self._update_bar(pair, now_ms)
                except (ExchangeDown, ExchangeRefused) as error:
                    if isinstance(error, ExchangeRefused) and error.code in KEY_CODES:
                        raise  # the key is everybody's trouble
                    troubles[pair] = (Finding(Doubt.NO_CANDLES, str(error)),)
        finally:  # what was fetched counts, whatever came then
            self._save()
            self._read(done)
        return troubles

    def _update_market(self, pair: str, now_ms: int, due: tuple[int, ...]) -> Iterator[Track]:
        """Fetch what closed in one market; the tracks that are complete now."""
        for seconds in due:
            track = self._track(pair, seconds, now_ms)
            while not self._fetch(track, now_ms):
                pass
            track.trim(now_ms)
            if len(track.rows):
                yield track

    def _read(self, tracks: Sequence[Track]) -> None:
        """The strategies' readings of tracks that have changed, all markets at once."""
        params = self._settings.params
        for table in newest_tables((track.newest(params) for track in tracks), params):
            self._tables[(table.pair, table.series.seconds)] = table

    def _update_bar(self, pair: str, now_ms: int) -> None:
        """Fetch the newest finest candle; only markets with orders and those under decision need it."""
        since = (now_ms // (self._bar_s * 1000) - 2) * self._bar_s * 1000
        closed, _ = sift_rows(rows_of(self._client.candles(pair, since, self._bar_s)), self._bar_s, now_ms)
        if len(closed):
            self._bars[pair] = Candle(int(closed[-1, 0]), *(float(v) for v in closed[-1, 1:]))

    def _correlate(self, now_ms: int) -> None:
        closed_ms = now_ms - DECISION_DELAY_MS
        seconds = min(self._settings.schedule.timeframes)
        if closed_ms // DAY_MS != self._day:
            self._day = closed_ms // DAY_MS
            series = {p: series_of(self._tracks[(p, s)].rows, s) for p, s in self._tables if s == seconds}
            self._correlated = correlated_pairs(series, closed_ms)

    def _bar(self, pair: str, now_ms: int, due: tuple[int, ...]) -> Candle | None:
        """The candle that closed just now, if one did."""
        if self._bar_s:
            bar = self._bars.get(pair)
            is_now = bar is not None and 0 <= now_ms - bar.opened_ms - self._bar_s * 1000 < self._bar_s * 1000
            return bar if is_now else None
        if not due or (pair, due[0]) not in self._tables:
            return None
        series = self._tables[(pair, due[0])].series
        is_fresh = now_ms - int(series.closed[-1]) < due[0] * 1000
        return series.candle(len(series) - 1) if is_fresh else None

    def _outlooks(self, pair: str, now_ms: int, due: tuple[int, ...]) -> tuple[Outlook, ...]:
        found = []
        for seconds in due:
            table = self._tables.get((pair, seconds))
            if table is not None and 0 <= now_ms - int(table.series.closed[-1]) < seconds * 1000:
                found.append(outlook_at(table, len(table.series) - 1))
        return tuple(found)

    def _stale(self, pair: str, now_ms: int) -> tuple[Finding, ...]:
        seconds = min(self._settings.schedule.timeframes)
        table = self._tables.get((pair, seconds))
        if table is None:
            return ()
        return stale_finding(int(table.series.closed[-1]), seconds, now_ms - DECISION_DELAY_MS)

    def _view(
        self, market: Market, ticker: Ticker | None, now_ms: int, due: tuple[int, ...], is_wanted: bool
    ) -> MarketView:
        pair = market.pair
        outlooks = self._outlooks(pair, now_ms, due)
        is_candidate = is_wanted or any(s.is_entry for o in outlooks for s in o.setups)
        book = self._book(pair) if is_candidate and ticker is not None else None
        findings = self._troubles.get(pair, ()) + quote_doubts(market, ticker, now_ms) + self._stale(pair, now_ms)
        return MarketView(market, ticker, self._bar(pair, now_ms, due), outlooks, book, findings,
                          self._correlated.get(pair, ()))

    def _book(self, pair: str) -> OrderBook | None:
        """The book of one market, or none if it cannot be had: then the rules without a book hold."""
        try:
            return self._client.order_book(pair)
        except (ExchangeDown, ExchangeRefused):
            return None

    def data_events(self) -> Iterator[tuple[str, str, str]]:
        """The data report of each market as an event, for the log."""
        for pair, found in self.reports().items():
            gap = f"longest gap {found.longest_gap_ms / HOUR_MS:.1f} h" if found.missing else "no gap"
            faults = found.duplicates + found.disordered + found.future + found.impossible
            text = (f"{pair}: {found.rows:,} candles, {found.missing_share:.2%} missing, {gap}, {found.jumps} jumps,"
                    f" {found.silent} without a trade, {faults} refused")
            yield "data", "warning" if found.missing or faults else "info", text

    def reports(self) -> dict[str, CandleReport]:
        """The data report per pair, of the first timeframe."""
        seconds = min(self._settings.schedule.timeframes)
        return {p: t.report for (p, s), t in self._tracks.items() if s == seconds}


# ==============================================================================
# EXECUTION | real orders, and what became of them
# shell | uses ERRORS TYPES ORDERS STORE LUNO
# ==============================================================================

CANCEL_AGAIN_MS = 10_000  # an order that is still there is asked to end once more
DRIFT_LOOKS = 2  # so often in a row must balances differ: the exchange's answers are not all of one moment


def _amounts_of(row: Mapping[str, object]) -> Amounts:
    return Amounts(*(Decimal(str(row[name])) for name in Amounts._fields))


def _sent_of(row: Mapping[str, object]) -> SentOrder:
    price, volume, stop = (Decimal(str(row[name])) for name in ("price", "volume", "stop"))
    return SentOrder(
        str(row["order_id"]), str(row["client_id"]), str(row["pair"]), Side(row["side"]), OrderKind(row["kind"]),
        price, volume, stop, int(str(row["time_ms"])), (str(row["base_account"]), str(row["counter_account"])),
        (str(row["base"]), str(row["counter"])), OrderState.UNKNOWN,
        why="the program ended before the answer was written")


class OrderJournal:
    """What was sent and heard of real orders, on disk before the next step; a row that cannot be written stops all."""

    def __init__(self, store: Store, mode: Mode = Mode.LIVE) -> None:
        self._store, self._mode = store, mode

    def write_sending(self, order: SentOrder) -> None:
        """Before the one POST."""
        money = (format(n, "f") for n in (order.price, order.volume, order.stop))
        self._store.write_journal("sendings", (
            order.sent_ms, self._mode.value, order.order_id, order.client_id, order.pair, order.side.value,
            order.kind.value, *money, *order.accounts, *order.assets))

    def write_answer(self, order: SentOrder, now_ms: int) -> None:
        """After anything new was heard of it."""
        money = (format(n, "f") for n in order.filled)
        self._store.write_journal("answers", (
            now_ms, self._mode.value, order.order_id, order.state.value, order.exchange_id, *money, order.refused,
            order.is_triggered, order.why))

    def orders(self) -> dict[str, SentOrder]:
        """All orders that were ever sent, as they were last heard of; one never heard of is UNKNOWN."""
        found = {str(r["order_id"]): _sent_of(r) for r in self._store.rows_of("sendings", self._mode)}
        for row in self._store.rows_of("answers", self._mode):
            order_id = str(row["order_id"])
            found[order_id] = replace(
                found[order_id], state=OrderState(row["state"]), exchange_id=str(row["exchange_id"]),
                filled=_amounts_of(row), refused=str(row["refused"]), is_triggered=bool(row["is_triggered"]),
                why=str(row["why"]))
        for row in self._store.rows_of("ledger", self._mode):
            order_id = str(row["order_id"])
            found[order_id] = replace(found[order_id], booked=_amounts_of(row))
        return found


class Line(Protocol):
    """The exchange as the executor needs it: LunoOrders, or a test's."""

    def exchange_ms(self) -> int:
        """The exchange's time."""

    def post(self, order: SentOrder) -> PostAnswer:
        """The one POST of an order."""

    def cancel(self, exchange_id: str) -> str:
        """Asks for an order's end; returns an error code or ""."""

    def find(self, order: SentOrder) -> FoundOrder | None:
        """The order as the exchange has it, None if it says there is none."""

    def open_orders(self) -> tuple[FoundOrder, ...]:
        """All orders that are not complete."""

    def closed_orders(self, since_ms: int) -> tuple[FoundOrder, ...]:
        """Complete orders created since."""

    def balances(self) -> tuple[Balance, ...]:
        """Every account's balance."""

    def statement(self, account_id: str) -> tuple[StatementRow, ...]:
        """The newest changes of one account."""


@dataclass(frozen=True, slots=True)
class LiveDoor:
    """What an order needs to go out: whose it is, the market's grid, the accounts, and what is in its way now."""

    install: str
    market: Callable[[str], Market | None]
    accounts: Callable[[str], tuple[str, str]]
    in_the_way: Callable[[], str]  # "" if nothing is; asked again right before each POST


class LiveExecutor:
    """Orders at the exchange by the protocol of ORDERS: one POST each, and only a look-up ends one."""

    def __init__(self, line: Line, journal: OrderJournal, door: LiveDoor, orders: Iterable[Order] = ()) -> None:
        self._line, self._journal, self._door = line, journal, door
        self._sent = journal.orders()
        self._told = {o.order_id: (o.state, o.is_triggered) for o in orders}
        self._outcomes = [Outcome(o.order_id, OrderState.REJECTED, "not sent: the program had ended before")
                          for o in orders if o.order_id not in self._sent]
        self._ending = {o.order_id: 0 for o in orders if o.is_cancelling}  # when each was last asked to end
        self.key_trouble = ""  # the code with which the exchange refused the key
        self.contradictions: dict[str, str] = {}  # orders about which the exchange says what cannot be

    @property
    def sent(self) -> Mapping[str, SentOrder]:
        """All orders that were ever sent, by their own ids."""
        return self._sent

    def unresolved(self) -> tuple[SentOrder, ...]:
        """Orders whose outcome has been unknown for too long."""
        now = self._line.exchange_ms()
        return tuple(o for o in self._sent.values() if is_unresolved(o, now))

    def place(self, order: Order) -> None:
        """Write, look once more at what could be in the way, send once, write what was heard."""
        if order.order_id in self._sent:
            raise OutcomeUnknown(order.order_id)  # sent before: it must never go out again
        market, trouble = self._door.market(order.pair), self._in_the_way(order)
        if trouble or market is None:
            why = trouble or "the market is not known"
            self._outcomes.append(Outcome(order.order_id, OrderState.REJECTED, f"not sent: {why}"))
            return
        sending = written(order, market, self._door.install, self._line.exchange_ms(), self._door.accounts(order.pair))
        self._journal.write_sending(sending)
        self._sent[order.order_id] = replace(sending, state=OrderState.UNKNOWN, why="being sent")
        self._told[order.order_id] = (order.state, order.is_triggered)
        trouble = self._in_the_way(order)  # the write may have taken a while
        if trouble:
            self._keep(replace(sending, state=OrderState.REJECTED, why=f"not sent: {trouble}"))
            return
        answer = self._line.post(sending)
        self.key_trouble = self.key_trouble or (answer.code or "HTTP" if answer.answer is Answer.KEY else "")
        self._keep(after_post(sending, answer))
        if self._sent[order.order_id].refused:
            self._look(order.order_id)

    def cancel(self, order: Order) -> None:
        """Ask for an order's end; later look-ups tell what became of it, and ask again while it is there."""
        self._ending.setdefault(order.order_id, 0)
        self._ask_to_end(order.order_id)

    def refresh(self) -> None:
        """Look up every order that is not final; a key that was refused is not tried again."""
        for order_id in sorted(self._sent):
            if not self._sent[order_id].is_final and not self.key_trouble:
                self._look(order_id)

    def settle(self, moment: Moment) -> Settlement:
        """Look up what is not final; tell the desk what it has not heard."""
        if moment.conditions.has_network and not self.key_trouble:
            self.refresh()
            for order_id in sorted(self._ending):
                self._ask_to_end(order_id)
        outcomes, self._outcomes = self._outcomes, []
        fills, ledger = [], []
        for order_id, order in sorted(self._sent.items()):
            fill = fill_since(order, moment.now_ms)
            if fill is not None:
                fills.append(fill)
                ledger.append(LedgerRow(order_id, *order.filled))
                self._sent[order_id] = replace(order, booked=order.filled)
            news = (order.state, order.is_triggered)
            if order_id in self._told and news != self._told[order_id]:
                self._told[order_id] = news
                refused = order.refused if order.state is OrderState.REJECTED else ""
                outcomes.append(Outcome(order_id, order.state, order.why, order.is_triggered, refused))
        return Settlement(tuple(fills), tuple(outcomes), tuple(ledger))

    def prove_absent(self, is_explained: bool) -> None:
        """End unknown orders that provably never came to be; `is_explained` if the balances need none of them."""
        now = self._line.exchange_ms()
        ready = [o for o in self._sent.values() if is_absent(o, now, False, is_explained)]
        if not ready:
            return
        listed = {o.client_id for o in self._line.open_orders()}
        listed |= {o.client_id for o in self._line.closed_orders(min(o.sent_ms for o in ready) - GRACE_MS)}
        for order in ready:
            if order.client_id not in listed:
                self._keep(replace(order, state=OrderState.NOT_PLACED, why="it never reached the exchange"))

    def _in_the_way(self, order: Order) -> str:
        if self._unknown(order.order_id):
            return f"the outcome of {self._unknown(order.order_id)} is unknown"
        if abs(self._line.exchange_ms() - order.created_ms) > STALE_ORDER_MS:
            return f"it was decided more than {STALE_ORDER_MS // 1000} s ago"
        return self._door.in_the_way()

    def _unknown(self, but_for: str) -> str:
        """Another order whose outcome is unknown, or ""."""
        return next((o.order_id for o in self._sent.values()
                     if o.state is OrderState.UNKNOWN and o.order_id != but_for), "")

    def _look(self, order_id: str) -> None:
        """One look-up of one order; trouble leaves it as it is."""
        order = self._sent[order_id]
        try:
            found = self._line.find(order)
            now = self._line.exchange_ms()  # after the answer: it tells the exchange's time
            order = after_missing(order, now) if found is None else after_found(order, found)
            self._keep(order)
            self.contradictions.pop(order_id, None)
            if is_gone(order):
                self.contradictions[order_id] = order.why
        except ExchangeRefused as error:
            self.key_trouble = self.key_trouble or (error.code if error.code in KEY_CODES else "")
        except ContradictedOrder as error:
            self.contradictions[order_id] = str(error)
        except ExchangeDown:
            pass  # asked again at the next settle

    def _keep(self, order: SentOrder) -> None:
        """Take over what is known of an order, written first if it is news."""
        before = self._sent[order.order_id]
        self._sent[order.order_id] = order
        if replace(order, misses=(), booked=before.booked) != replace(before, misses=()):
            self._journal.write_answer(order, self._line.exchange_ms())

    def _ask_to_end(self, order_id: str) -> None:
        order, now = self._sent.get(order_id), self._line.exchange_ms()
        if order_id not in self._ending or order is None or order.is_final or not order.exchange_id:
            return
        if self.key_trouble:
            return
        is_kept = order.kind is OrderKind.PROTECTION and (self._unknown(order_id) or self._door.in_the_way())
        if is_kept or now - self._ending[order_id] < CANCEL_AGAIN_MS:
            return  # a protection stays while what is to follow it could not be sent
        self._ending[order_id] = now
        try:
            code = self._line.cancel(order.exchange_id)
            self.key_trouble = code if code in KEY_CODES else ""
        except ExchangeDown:
            pass  # the next look-up tells whether it was heard


class Reconciled(NamedTuple):
    """What a reconcile found: when, coins in three columns, and what is not as it should be ("" if all is).

    `is_explained` if every coin, and what is held back of it, needs no order but those that are known to be there.
    """

    at_ms: int
    holdings: tuple[Holding, ...] = ()
    drift: str = ""
    foreign: str = ""
    double_use: str = ""
    is_explained: bool = False


class Reconciler:
    """Holds the exchange's balances and lists against the journal; only reads."""

    def __init__(self, line: Line, executor: LiveExecutor) -> None:
        self._line, self._executor = line, executor
        self.owner: dict[str, Decimal] = {}  # what was there before the bot, by asset
        self.accounts: dict[str, str] = {}  # the account of each asset that the bot uses
        self.available: dict[str, Decimal] = {}
        self._drifted: Counter[str] = Counter()
        self._named: dict[tuple[str, Decimal], str] = {}  # what the statement says of a drift
        self._reserved: dict[str, Decimal] = {}
        self._set_aside: dict[str, Decimal] = {}  # reserved beyond what open orders need, while none was unknown
        self.last = Reconciled(0)

    def begin(self, owner: Mapping[str, Decimal] | None) -> None:
        """Take stock: the owner's coins as they were kept, or all that the orders do not explain."""
        totals = self._totals()
        change = self._change()
        self.owner = dict(owner) if owner is not None else {a: n - change.get(a, ZERO) for a, n in totals.items()}

    def run(self) -> Reconciled:
        """One comparison; ExchangeDown or ExchangeRefused if it cannot be made."""
        self._executor.refresh()  # fills that nobody has looked up yet are no drift
        now, totals, change = self._line.exchange_ms(), self._totals(), self._change()
        assets = sorted(totals.keys() | change.keys() | self.owner.keys())  # one that is not shown is empty
        parts = [(a, change.get(a, ZERO), self.owner.get(a, ZERO)) for a in assets]
        rows = tuple(Holding(a, bot, owners, totals.get(a, ZERO) - bot - owners) for a, bot, owners in parts)
        odd = {row.asset: row.unexplained for row in rows if row.unexplained}
        self._drifted = Counter({a: self._drifted[a] + 1 for a in odd})
        drift = [self._name(asset, odd[asset]) for asset, n in self._drifted.items() if n >= DRIFT_LOOKS]
        listed = self._line.open_orders()
        known = {o.client_id for o in self._executor.sent.values()}
        known -= {o.client_id for o in self._executor.sent.values() if o.is_final and o.state is not OrderState.DONE}
        strange = [o for o in listed if o.client_id not in known]  # also what was taken for never placed
        own = [o for o in strange if o.client_id.startswith(OWN_PREFIX)]
        foreign = [o for o in strange if o not in own]
        self.last = Reconciled(
            now, rows, ", ".join(drift),
            ", ".join(f"{o.side.value} {format(o.volume, 'f')} {o.pair}" for o in foreign[:3]),
            ", ".join(o.client_id for o in own[:3]), self._is_reserve_known(listed) and not odd)
        return self.last

    def _is_reserve_known(self, listed: Iterable[FoundOrder]) -> bool:
        """True if no more is held back than open orders need, and what was held back while no order was unknown."""
        need: dict[str, Decimal] = {}
        for order in listed:
            left, assets = order.volume - order.amounts.base, [a for a in self._reserved if order.pair.startswith(a)]
            base = next((a for a in assets if order.pair.removeprefix(a) in self._reserved), "")
            asset = base if order.side is Side.SELL else order.pair.removeprefix(base)
            need[asset] = need.get(asset, ZERO) + left * (1 if order.side is Side.SELL else order.price)
        aside = {a: n - need.get(a, ZERO) for a, n in self._reserved.items()}
        if not any(o.state is OrderState.UNKNOWN for o in self._executor.sent.values()):
            self._set_aside = aside
        return all(n <= max(ZERO, self._set_aside.get(a, ZERO)) + FEE_CEILING * need.get(a, ZERO)
                   for a, n in aside.items())

    def _name(self, asset: str, change: Decimal) -> str:
        """A drift with the entry of the statement that has just this amount, if it can be read and there is one."""
        said = self._named.get((asset, change), "no entry of the statement says so")
        if (asset, change) not in self._named and asset in self.accounts:
            try:
                rows = self._line.statement(self.accounts[asset])
            except (ExchangeDown, ExchangeRefused):
                rows, said = (), "its statement cannot be read"
            for row in (r for r in rows if r.change == change):
                when = datetime.fromtimestamp(row.time_ms / 1000, UTC)
                said = self._named[asset, change] = f"{row.kind.lower()} of {when:%Y-%m-%d %H:%M} UTC"
                break
        return f"{asset} {change:+f} ({said})"

    def _totals(self) -> dict[str, Decimal]:
        """What each asset's account holds; of several the one that was chosen first, which is the exchange's first."""
        found: dict[str, Decimal] = {}
        for balance in self._line.balances():
            if self.accounts.setdefault(balance.asset, balance.account_id) == balance.account_id:
                found[balance.asset], self._reserved[balance.asset] = balance.total, balance.reserved
                self.available[balance.asset] = balance.available
        return found

    def _change(self) -> dict[str, Decimal]:
        return booked_change(self._executor.sent.values())


# ==============================================================================
# LIVE | may a real order go out now, and is what the exchange says what we know
# shell | uses ERRORS TYPES SETTINGS PORTFOLIO RISK LEDGER ORDERS ROWS STORE LUNO EXECUTION
# ==============================================================================

RECONCILE_MS = 30_000
RAMP = ((10, 0.0), (20, 0.25), (40, 0.5))  # below so many round trips this share of the safe size; 0 = the smallest
BASELINE = "baseline"
LEASH_FILLS = 20
LOST_DAYS = 30  # so far back a restored database is found out by the orders it lacks


class LiveDesk(NamedTuple):
    """Whose session it is and what it needs to know of the rest of the program."""

    install: str
    locks: Callable[[], tuple[str, ...]]  # why entries are locked, asked afresh
    is_killed: Callable[[], bool]
    settings: Settings
    market: Callable[[str], Market | None]
    size: Callable[[], float]  # the share of the tested size that the gates found safe


def ramp_share(round_trips: int) -> float:
    """How much of the safe size may be traded after so many round trips; 0 means the smallest orders."""
    return next((share for count, share in RAMP if round_trips < count), 1.0)


class LiveSession:
    """What LIVE has beyond PAPER: real orders, reconciles, and every reason not to send."""

    def __init__(self, line: Line, store: Store, who: LiveDesk, orders: Iterable[Order]) -> None:
        self._line, self._store, self._who = line, store, who
        door = LiveDoor(who.install, who.market, self._accounts, self.in_the_way)
        self.executor = LiveExecutor(line, OrderJournal(store), door, orders)
        self.reconciler = Reconciler(line, self.executor)
        self._conditions = Conditions(has_network=False, is_reconciled=False, reconcile_age_ms=math.inf)
        self._is_begun = False
        self.lost: tuple[str, ...] = ()  # orders of this installation that the journal does not have
        self.trouble = "no reconcile yet"
        self._round_trips, self._fall = 0, 0.0
        self._fills: tuple[PaperFill, ...] = ()

    def locks(self) -> tuple[str, ...]:
        """Why no entries may be made: the gates, and results that are not what they promised."""
        results = tuple(self._leash())
        return (*self._who.locks(), *results)

    def _leash(self) -> Iterator[str]:
        """LIVE must stay within what the gates measured: its fall, and what its fills cost."""
        who = self._who.settings
        if self._fall > who.gates.max_drawdown:
            yield f"LIVE has fallen {self._fall:.1%} from its peak; the gates allow {who.gates.max_drawdown:.0%}."
        fills = self._fills[-LEASH_FILLS:]
        if len(fills) == LEASH_FILLS and not is_within_costs(fills, who.costs):
            yield f"The last {LEASH_FILLS} fills cost more than the stressed test allows."

    def begin(self) -> None:
        """Take stock of the account, the first time for good; raises what the exchange raises."""
        rows = self._store.results(BASELINE, 1)
        kept = json.loads(rows[0][2]) if rows else None
        if kept is not None:
            self.reconciler.accounts = {str(a): str(n) for a, n in kept["accounts"].items()}
        owner = None if kept is None else {str(a): Decimal(str(n)) for a, n in kept["owner"].items()}
        self.reconciler.begin(owner)
        own, known = f"{OWN_PREFIX}{self._who.install}-", {o.client_id for o in self.executor.sent.values()}
        since_ms = self._line.exchange_ms() - LOST_DAYS * DAY_MS
        closed = [o.client_id for o in self._line.closed_orders(since_ms) if o.client_id.startswith(own)]
        self.lost = tuple(client for client in closed if client not in known)
        if owner is None:
            self.rebase()
        self._is_begun = True

    def cash(self) -> Decimal:
        """What the account has of the counter and no order holds; after `begin`."""
        return self.reconciler.available.get(self._who.settings.schedule.counter, ZERO)

    def accept(self) -> None:
        """The owner has looked at account and key: what nothing explains is his, and lost orders are known."""
        self.lost, self.executor.key_trouble = (), ""
        if self._is_begun:  # before that it is not known what was the owner's all along
            self.rebase()

    def rebase(self) -> None:
        """What nothing explains is the owner's from now on."""
        rows = self.reconciler.last.holdings
        owner = self.reconciler.owner | {row.asset: row.owner + row.unexplained for row in rows}
        self.reconciler.owner = owner
        self.reconciler.last = Reconciled(0)  # what it found is settled now and must not count again
        self._store.record_metrics(self._line.exchange_ms(), BASELINE, {
            "owner": {a: format(n, "f") for a, n in owner.items()}, "accounts": self.reconciler.accounts})

    def look(self, base: Conditions, desk: Desk) -> Conditions:
        """The conditions of this beat: the line's own, and what a reconcile says, anew where that is due."""
        now, last = self._line.exchange_ms(), self.reconciler.last
        self._fall = 1 - equity(desk) / desk.peak_equity if desk.peak_equity > 0 else 0.0
        is_old = not 0 <= now - last.at_ms < RECONCILE_MS
        is_due = is_old or self.trouble or desk.causes or not base.is_reconciled  # a cause ends only after another one
        if is_due and base.has_network:
            self._reconcile()
        found, share = self.reconciler.last, ramp_share(self._round_trips)
        is_clean = not (self.trouble or self.executor.key_trouble)
        self._conditions = replace(
            base, has_network=base.has_network and not self.trouble, may_enter=not self.locks(),
            size=self._who.size() * (share or 1.0), is_trial=not share,
            reconcile_age_ms=float(now - found.at_ms), is_reconciled=base.is_reconciled and is_clean,
            is_key_refused=base.is_key_refused or bool(self.executor.key_trouble), is_drifting=bool(found.drift),
            has_foreign=bool(found.foreign), is_double_used=bool(found.double_use or self.lost),
            is_unresolved=bool(self.executor.unresolved()), is_contradicted=bool(self.executor.contradictions))
        return self._conditions

    def findings(self) -> Iterator[Banner]:
        """What is not as it should be, each in a sentence that says what to do; "resolve" is the owner's word on it."""
        found = self.reconciler.last
        for key, what, words, action in (
            ("drift", found.drift, "The account does not add up: {}, and nothing explains it. If it was you (a deposit,"
             " a withdrawal, an order by hand), resolve it: from then on it counts as yours.", "resolve"),
            ("foreign", found.foreign, "Open orders at Luno that are not the bot's: {}. No entries while they are there"
             ".", ""),
            ("double", found.double_use, "Orders with this bot's mark that it did not send: {}. Is a second copy using"
             " the key?", ""),
            ("lost", ", ".join(self.lost[:3]), "Orders at Luno that the audit does not have: {}. Was an older database"
             " restored? Look at the account.", ""),
            ("key", self.executor.key_trouble, "Luno refuses the key ({}). It is not tried again until you resolve"
             " this.", ""),
            ("said", ", ".join(sorted(self.executor.contradictions.values())[:2]), "What Luno says of an order cannot"
             " be: {}.", ""),
            ("leash", " ".join(self._leash()), "{} No new entries.", ""),
        ):
            if what:
                yield Banner("warning", words.format(what), action, key)

    def in_the_way(self) -> str:
        """Why nothing may be sent at this moment; "" if nothing is in the way."""
        now = self._conditions
        age_ms = self._line.exchange_ms() - self.reconciler.last.at_ms
        for is_wrong, words in (
            (self._who.is_killed(), "kill switch"),
            (self.trouble, "not reconciled"),
            (self.executor.key_trouble, "the key was refused"),
            (self.executor.contradictions, "the exchange contradicts itself"),
            (abs(now.skew_ms) > MAX_SKEW_MS, "clock skew"),
            (not 0 <= age_ms <= MAX_RECONCILE_AGE_MS, "the last reconcile is too old"),
        ):
            if is_wrong:
                return words
        return ""

    def _reconcile(self) -> None:
        if self.executor.key_trouble:
            return  # trying it again could lock the owner out
        try:
            if not self._is_begun:
                self.begin()
            found = self.reconciler.run()
            self.executor.prove_absent(found.is_explained)
            self._round_trips = len(self._store.rows_of("trades", Mode.LIVE))
            self._fills = read_fills(self._store.path, Mode.LIVE)
            self.trouble = ""
        except (ExchangeDown, ExchangeRefused) as error:
            self.trouble = str(error)
            if isinstance(error, ExchangeRefused) and error.code in KEY_CODES:
                self.executor.key_trouble = error.code

    def _assets(self, pair: str) -> tuple[str, str]:
        market, counter = self._who.market(pair), self._who.settings.schedule.counter
        return (market.base, market.counter) if market is not None else (pair.removesuffix(counter), counter)

    def _accounts(self, pair: str) -> tuple[str, str]:
        base, counter = self._assets(pair)
        return self.reconciler.accounts.get(base, ""), self.reconciler.accounts.get(counter, "")


# ==============================================================================
# NOTIFY | tell the owner
# shell | uses ERRORS TYPES SETTINGS SYSTEM HTTP | owns plyer
# ==============================================================================

import html
import subprocess
from bisect import bisect_right
from shutil import which

TELEGRAM_URL = "https://api.telegram.org"
TELEGRAM_UNITS = 4000  # Telegram takes 4096
TELEGRAM_REFUSALS = types.MappingProxyType(
    {400: "chat refused", 401: "token refused", 403: "chat refused", 404: "token refused"}
)
TITLE_UNITS = 63  # a Windows balloon takes 64 and 256 with the terminator and fails on more
TEXT_UNITS = 255
QUEUE_BOUND = 50
INBOX_BOUND = 1000
GAP_S = 1.0
MAX_TRIES = 8
MAX_REFUSALS = 3
MAX_REST_S = 300.0
MAX_WAIT_S = 3600
QUIET_S = 3600.0
CHANNEL_ERRORS = (LunobizError, OSError, ValueError, RuntimeError, ImportError, AttributeError)
NOTICE_TITLES = types.MappingProxyType({
    "entry": "Entry", "exit": "Exit", "stop": "Stop hit", "summary": "Daily summary", "rearm": "Re-armed",
    "close_all": "Closing all", "live": "Look at the account",
    "daily_cap": "Daily loss cap reached", "weekly_cap": "Weekly loss cap reached", "cooldown": "Cooldown",
    "kill": "Kill switch engaged", "state": "Held back", "state info": "Over",
    "api_error": "Exchange trouble", "api_retry": "Exchange slow, trying again", "api_ok": "Exchange answers again",
})  # fmt: skip
_PERCENT = re.compile(r"(?<![\d.,])[-+\u2212]?\d{1,4}(?:\.\d{1,4})?\s?%")
_PAIR_WORD = re.compile(r"[A-Z0-9]{6,10}")
_CHAT = re.compile(r"-?\d{1,20}|@[A-Za-z0-9_]{4,32}")
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Notice:
    """One message to the owner; `level` is info, warning or error."""

    level: str
    title: str
    text: str


class Delivery(NamedTuple):
    """What became of one try; a refusal counts towards switching the channel off, other failures pass."""

    is_sent: bool
    why: str = ""
    wait_s: float = 0.0
    is_refused: bool = False


NO_SERVICE = Delivery(False, "no notification service", is_refused=True)


class Channel(Protocol):
    """A way to the owner. `send` may take seconds; `idle` is called often and must be quick."""

    name: str

    def send(self, notice: Notice) -> Delivery:
        """Try once to deliver a notice."""

    def idle(self) -> None:
        """Whatever the channel needs between notices."""

    def close(self) -> None:
        """Give back what the channel holds."""


def clip16(text: str, units: int) -> str:
    """Text of at most `units` UTF-16 units; what is cut ends in an ellipsis and no character is split."""
    sizes = list(itertools.accumulate(1 + (ch > "\uffff") for ch in text))
    if not sizes or sizes[-1] <= units:
        return text
    return text[: bisect_right(sizes, units - 1)] + "\u2026" if units > 0 else ""


def notice_of(event: Event) -> Notice | None:
    """The notice that an event is worth, if any: event, pair, percent and cause, never the whole text."""
    title = NOTICE_TITLES.get(f"{event.kind} {event.level}") or NOTICE_TITLES.get(event.kind, "")
    title = title or ("Needs your attention" if event.level == "error" else "")
    if not title:
        return None
    words = [event.pair] if _PAIR_WORD.fullmatch(event.pair) else []
    words += _PERCENT.findall(event.text)[:2]
    words += [kind.words for kind in CauseKind if kind.words in event.text]
    return Notice(event.level, title, ", ".join(words) or "See the program for details.")


def _telegram_delivery(reply: Reply) -> Delivery:
    """What Telegram's answer means; its words are not repeated, they may hold the address."""
    try:
        value: object = json.loads(reply.body)
    except (ValueError, RecursionError):
        value = None
    answer = value if isinstance(value, dict) else {}
    if reply.status == 200 and answer.get("ok") is True:
        return Delivery(True)
    if reply.status != 429:
        why = TELEGRAM_REFUSALS.get(reply.status, "")
        return Delivery(False, why or f"unexpected answer {reply.status}", is_refused=bool(why))
    parameters = answer.get("parameters")
    asked = parameters.get("retry_after") if isinstance(parameters, dict) else None
    wait_s = min(max(asked, 1), MAX_WAIT_S) if isinstance(asked, int) else retry_after_s(reply.headers, 0)
    return Delivery(False, "asked to wait", float(wait_s or 30))


class Telegram:
    """Messages from the owner's bot to one chat. It takes no commands."""

    def __init__(self, transport: Transport, token: Credentials, chat_id: str) -> None:
        self.name = "Telegram"
        self._transport, self._token, self._chat_id = transport, token, chat_id.strip()

    def send(self, notice: Notice) -> Delivery:
        """One POST; the token is in its path and nowhere else."""
        if not self._token or not _CHAT.fullmatch(self._chat_id):
            return Delivery(False, "token or chat id missing", is_refused=True)
        text = clip16(_UNPRINTABLE.sub(" ", f"LunoBiz: {notice.title}\n{notice.text}"), TELEGRAM_UNITS)
        params = (("chat_id", self._chat_id), ("text", text),
                  ("disable_notification", "true" if notice.level == "info" else "false"))
        try:
            reply = self._transport.send("POST", f"/bot{self._token.secret}/sendMessage", params)
        except LunobizError:
            return Delivery(False, "no connection")
        return _telegram_delivery(reply)

    def idle(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


def run_program(name: str, arguments: Sequence[str], seconds: float) -> int:
    """The exit code of a program of the system, run unseen; -1 if there is none or it does not end."""
    program, quiet = which(name), subprocess.DEVNULL
    if program is None:
        return -1
    try:
        return subprocess.run(  # noqa: S603 - our own arguments, and any text behind --
            [program, *arguments], stdin=quiet, stdout=quiet, stderr=quiet, timeout=seconds, check=False
        ).returncode
    except (OSError, subprocess.SubprocessError):
        return -1


class _Balloon(Protocol):
    def notify(self, title: str, message: str, app_name: str) -> None: ...

    def remove_notify(self) -> None: ...


def _is_plyers(kind: type[BaseException] | None, error: object, trace: object) -> bool:
    """True for an error that plyer raises, which then ends here; of Exception itself just that class, not its kin."""
    named = (OSError, ValueError, ImportError, AttributeError)
    return kind is Exception or (kind is not None and issubclass(kind, named))


class Desktop:
    """Notices of the operating system, best effort. One thread only: Windows ties windows to threads."""

    def __init__(self, platform: str = sys.platform) -> None:
        self.name = "Desktop"
        self._platform = platform
        self._balloon: _Balloon | None = None

    def send(self, notice: Notice) -> Delivery:
        """Show one notice, clipped to what every system takes."""
        title = clip16(_UNPRINTABLE.sub(" ", f"LunoBiz: {notice.title}"), TITLE_UNITS)
        text = clip16(_UNPRINTABLE.sub(" ", notice.text), TEXT_UNITS) or " "
        if self._platform == "win32":
            return self._show_balloon(title, text)
        # plyer ignores the answer of notify-send and takes a title for an option
        arguments = ("--app-name=LunoBiz", "--", title, html.escape(text, quote=False))
        return NO_SERVICE if run_program("notify-send", arguments, 5) else Delivery(True)

    def _show_balloon(self, title: str, text: str) -> Delivery:
        """One balloon object is used again: plyer keeps each for ever, and a thread beside it."""
        delivery = NO_SERVICE
        with contextlib.ExitStack() as stack:
            stack.push(_is_plyers)
            if self._balloon is None:
                from plyer.platforms.win.libs.balloontip import WindowsBalloonTip

                self._balloon = WindowsBalloonTip(title, text, "LunoBiz", timeout=0)
            else:
                self._balloon.notify(title, text, "LunoBiz")
            delivery = Delivery(True)
        return delivery

    def idle(self) -> None:
        """Hand on the messages of the balloon's hidden window; a window that never answers counts as hung."""
        if sys.platform == "win32" and self._balloon is not None:
            import ctypes
            from ctypes import wintypes

            message, user32 = wintypes.MSG(), ctypes.windll.user32
            for _ in range(100):
                if not user32.PeekMessageW(ctypes.byref(message), None, 0, 0, 1):
                    return
                user32.DispatchMessageW(ctypes.byref(message))

    def close(self) -> None:
        """Take the balloon and its icon away."""
        balloon, self._balloon = self._balloon, None
        with contextlib.ExitStack() as stack:
            stack.push(_is_plyers)
            if balloon is not None:
                balloon.remove_notify()


@dataclass(slots=True)
class _Lane:
    """A channel with its record: when it may send again, and how often in a row it failed and was refused."""

    channel: Channel
    sent: int = 0
    failures: int = 0
    refusals: int = 0
    due_s: float = -math.inf
    rest_until_s: float = -math.inf
    why: str = ""

    def book(self, delivery: Delivery, now_s: float) -> None:
        """Note what became of a try and when the next one may be."""
        self.due_s, self.why = now_s + GAP_S, delivery.why
        if delivery.is_sent:
            self.sent, self.failures, self.refusals = self.sent + 1, 0, 0
            return
        self.failures += 1
        self.refusals += delivery.is_refused
        back_off = min(2.0 ** min(self.failures, 20), MAX_REST_S)
        self.rest_until_s = now_s + max(delivery.wait_s, back_off)

    def text(self) -> str:
        """The channel's state in words."""
        if self.refusals >= MAX_REFUSALS:
            return f"{self.channel.name} off: {self.why}"
        state = f"failing: {self.why}" if self.failures else "OK"
        return f"{self.channel.name} {state}, {self.sent} sent"


class Notifier:
    """A bounded queue before the channels. A notice goes to the first channel that can take it now.

    `tell` and `offer` belong to one thread, `pump` and `close` to another; only an append crosses over.
    """

    def __init__(self, channels: Sequence[Channel], clock: Clock, clean: Callable[[str], str] = str) -> None:
        self._lanes = tuple(_Lane(channel) for channel in channels)
        self._clock, self._clean = clock, clean
        self._inbox: deque[Notice] = deque(maxlen=INBOX_BOUND)
        self._waiting: Counter[Notice] = Counter()  # oldest first, with how often each was offered
        self._tries = self._dropped = 0  # tries of the oldest one
        self._told_s: dict[str, float] = {}
        self._held_back: Counter[str] = Counter()

    def tell(self, event: Event) -> None:
        """Offer what an event is worth; trouble with the exchange and the state at most once an hour each."""
        notice = notice_of(event)
        if notice is None:
            return
        is_api = event.kind.startswith("api_")
        if is_api or event.kind == "state":
            key, now_s = event.kind if is_api else f"{notice.title} {notice.text}", self._clock.mono_s()
            if now_s - self._told_s.get(key, -math.inf) < QUIET_S:
                self._held_back[key] += 1
                return
            self._told_s[key], more = now_s, self._held_back.pop(key, 0)
            tail = f" (and {more} more since the last message)" if more else ""
            notice = replace(notice, text=notice.text + tail)
        self.offer(notice)

    def offer(self, notice: Notice) -> None:
        """Take a notice for later; returns at once."""
        if self._lanes:
            self._inbox.append(notice)

    def pump(self) -> None:
        """Send at most one notice that is due; a failure is kept for `state_text`, never raised."""
        while self._inbox:  # equal notices become one, the oldest make room
            self._waiting[self._inbox.popleft()] += 1
        self._drop(len(self._waiting) - QUEUE_BOUND)
        for lane in self._lanes:
            with contextlib.suppress(*CHANNEL_ERRORS):
                lane.channel.idle()
        lanes, now_s = [lane for lane in self._lanes if lane.refusals < MAX_REFUSALS], self._clock.mono_s()
        ready = next((lane for lane in lanes if lane.rest_until_s <= now_s), None)
        if not lanes:
            self._drop(len(self._waiting))
        elif ready is not None and self._waiting and ready.due_s <= now_s:
            self._send_oldest(ready)

    def state_text(self) -> str:
        """How delivery goes, for the status line."""
        words = [lane.text() for lane in self._lanes] or ["no notices set up"]
        words += [f"{len(self._waiting)} waiting"] if self._waiting else []
        words += [f"{self._dropped} dropped"] if self._dropped else []
        return "; ".join(words)

    def close(self) -> None:
        """Close every channel; what still waits is not sent."""
        for lane in self._lanes:
            with contextlib.suppress(*CHANNEL_ERRORS):
                lane.channel.close()

    def _drop(self, notices: int) -> None:
        for notice in list(self._waiting)[: max(notices, 0)]:
            self._dropped += self._waiting.pop(notice)
            self._tries = 0

    def _send_oldest(self, lane: _Lane) -> None:
        notice, count = next(iter(self._waiting.items()))
        times = f" ({count} times)" if count > 1 else ""
        shown = Notice(notice.level, self._clean(notice.title), self._clean(notice.text) + times)
        try:
            delivery = lane.channel.send(shown)
        except CHANNEL_ERRORS as error:  # told by its type only
            delivery = Delivery(False, type(error).__name__, is_refused=True)
        lane.book(delivery, self._clock.mono_s())
        self._tries += 1
        if delivery.is_sent:
            del self._waiting[notice]
            self._tries = 0
        elif self._tries >= MAX_TRIES:
            self._drop(1)


# ==============================================================================
# KEYS | what only this installation knows
# shell | uses ERRORS SETTINGS LEDGER SYSTEM
# ==============================================================================

import secrets

KEY_FILE = "install.key"
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Install:
    """What a pass is bound to: the signing key of this installation, and the hash of the code that runs."""

    key: Credentials
    code_hash: str


def signing_key(home: Path) -> Credentials:
    """The key that signs gate rows, made on first use and never again; an empty one, which locks, if it is damaged."""
    path = home / KEY_FILE
    try:
        if not path.exists() and not path.is_symlink():
            write_safely(path, secrets.token_bytes(KEY_BYTES))
        raw = b"" if path.is_symlink() else path.read_bytes()
        if os.name == "posix" and path.stat().st_mode & 0o077:
            private_file(path)
    except OSError:
        return Credentials()
    return Credentials("key", raw.hex()) if len(raw) == KEY_BYTES else Credentials()


def install_name(install: Install) -> str:
    """Eight characters that tell this installation's orders from another's; "" without a key, which sends nothing."""
    return hashlib.sha256(install.key.secret.encode()).hexdigest()[:8] if install.key else ""


def read_install(home: Path) -> Install:
    """The signing key in this folder and the hash of this program; whatever cannot be told locks."""
    return Install(signing_key(home), code_hash(program_source()))


PROTECTED_FILE = "keys.protected"
ENTROPY = b"LunoBiz keys 1"  # no secret: it keeps other programs' calls without it from opening the file
NO_PROMPT = 1  # CRYPTPROTECT_UI_FORBIDDEN
KEY_PAIRS = tuple((f"{PREFIX}{name}_KEY_ID", f"{PREFIX}{name}_KEY_SECRET") for name in ("READ", "LIVE"))
KEY_SETS = (*KEY_PAIRS, (f"{PREFIX}TELEGRAM_TOKEN",))
KEY_NAMES = frozenset(name for names in KEY_SETS for name in names)


class Protection(NamedTuple):
    """The system's own way to lock bytes to this user; ValueError where it refuses."""

    protect: Callable[[bytes], bytes]
    unprotect: Callable[[bytes], bytes]


if sys.platform == "win32":

    class _Blob(ctypes.Structure):
        """DATA_BLOB of Windows."""

        _fields_ = (("size", ctypes.c_uint32), ("data", ctypes.c_void_p))

    def _crypt(name: str, given: bytes) -> bytes:
        """One call of the data protection API for this user of this computer; ValueError where it refuses."""
        buffers = [ctypes.create_string_buffer(part, len(part)) for part in (given, ENTROPY)]
        data, entropy = (_Blob(len(b), ctypes.cast(b, ctypes.c_void_p)) for b in buffers)
        out, call = _Blob(), ctypes.WinDLL("crypt32", use_last_error=True)[name]
        if not call(ctypes.byref(data), None, ctypes.byref(entropy), None, None, NO_PROMPT, ctypes.byref(out)):
            raise ValueError(f"{name}: error {ctypes.get_last_error()}")
        try:
            return ctypes.string_at(out.data, out.size)
        finally:
            free = ctypes.WinDLL("kernel32").LocalFree
            free.argtypes = (ctypes.c_void_p,)
            free(out.data)


def system_protection() -> Protection | None:
    """Windows' protection of data for this user; None elsewhere, where the rights of the file have to do."""
    if sys.platform == "win32":
        return Protection(lambda text: _crypt("CryptProtectData", text), lambda raw: _crypt("CryptUnprotectData", raw))
    return None


class KeyVault:
    """Keys in the data folder that only this user of this computer can open; where there is no protection, `.env`.

    Values go in and to the exchange, and are never shown. What `.env` or the environment says comes first.
    """

    def __init__(self, home: Path, folders: Sequence[Path], protection: Protection | None) -> None:
        self._home, self._folders, self._protection = home, folders, protection
        self._path = home / PROTECTED_FILE

    @property
    def trouble(self) -> str:
        """Why the protected file cannot be opened; "" if it can, or if there is none."""
        try:
            self._read()
        except SettingsError as error:
            return str(error)
        return ""

    def _read(self) -> dict[str, str]:
        """What the protected file holds; SettingsError if it cannot be opened."""
        if self._protection is None:
            return {}
        try:
            values = json.loads(self._protection.unprotect(self._path.read_bytes()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            raise SettingsError(f"{self._path} cannot be opened by this user on this computer: enter the keys again, or"
                                " delete the file") from None
        is_sound = isinstance(values, dict) and all(isinstance(value, str) for value in values.values())
        return {name: value for name, value in values.items() if name in KEY_NAMES and value} if is_sound else {}

    def env(self, environ: Mapping[str, str]) -> dict[str, str]:
        """All settings: the environment, `.env`, then the protected keys; never one half of a key from each."""
        found = read_env(self._folders, environ)
        try:
            kept = self._read()
        except SettingsError:
            return found
        for names in KEY_SETS:
            if not any(found.get(name, "").strip() for name in names):
                found |= {name: kept[name] for name in names if name in kept}
        return found

    def movable(self) -> tuple[str, ...]:
        """The keys that stand readable in `.env` and could be protected, by name."""
        return tuple(sorted(KEY_NAMES & read_env(self._folders, {}).keys())) if self._protection is not None else ()

    def save(self, values: Mapping[str, str]) -> None:
        """Keeps settings: keys protected where the system can do that, all else in `.env`; SettingsError."""
        kept = {name: value for name, value in values.items() if self._protection and name in KEY_NAMES}
        if kept:
            self._protect(kept)
            self._drop(kept)
        plain = {name: value for name, value in values.items() if name not in kept}
        if plain:
            write_env(self._home / ".env", plain)

    def move(self) -> tuple[str, ...]:
        """Protects the keys of `.env` and removes their lines, in its dated copies too; the names, or SettingsError."""
        names = self.movable()
        if names:
            found = read_env(self._folders, {})
            self._protect({name: found[name] for name in names})
            self._drop(names)
        return names

    def _drop(self, names: Iterable[str]) -> None:
        for folder in self._folders:
            drop_env(folder / ".env", names)

    def _protect(self, values: Mapping[str, str]) -> None:
        """Adds keys to the protected file and reads them back; "" removes one. SettingsError leaves `.env` as it is."""
        if self._protection is None:
            raise SettingsError("this system has no protection for keys")
        try:
            before = self._read()
        except SettingsError:  # another computer's file: nobody here could ever open it
            before = {}
        wanted = {name: value for name, value in {**before, **values}.items() if value}
        try:
            write_safely(self._path, self._protection.protect(json.dumps(wanted).encode()))
        except (OSError, ValueError):
            raise SettingsError(f"the keys could not be protected in {self._path}; nothing was changed") from None
        if self._read() != wanted:
            raise SettingsError(f"{self._path} does not give back what was written; the keys stay in .env")


# ==============================================================================
# FILES | recorded candles in, reports and exports out
# shell | uses ERRORS TYPES SETTINGS CANDLES PORTFOLIO LEDGER SYSTEM
# ==============================================================================

import csv
import gzip
from zlib import error as ZlibError

COUNTERS = ("EUR", "GBP", "IDR", "KES", "MYR", "NGN", "UGX", "USD", "USDC", "USDT", "XBT", "ZAR", "ZMW")
COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")
MARKETS_FILE = "markets.json"
TEXT_LIMIT = 256 * 2**20  # a year of five-minute candles is 8 MB
EARLIEST_MS = 1_230_768_000_000  # 2009, before the first coin
LATEST_MS = 4_102_444_800_000  # 2100
MODEL_MIN_VALUE = 50.0
MODEL_SPREAD = 0.001
MODEL_MIN_VOLUME_24H = 50_000.0
PRICE_DIGITS = 6
VOLUME_SCALE = 6
MARKET_RANGES = types.MappingProxyType({
    "price_scale": (0.0, 12.0), "volume_scale": (0.0, 12.0), "min_volume": (0.0, 1e9), "max_volume": (1e-9, 1e12),
    "min_price": (0.0, 1e12), "max_price": (1e-9, 1e15), "spread": (0.0, 0.1), "min_volume_24h": (0.0, 1e12),
})  # fmt: skip
AUDIT_TABLES = ("decisions", "fills", "trades", "orders", "snapshots", "metrics", "events", "gate_rows", "attempts")
CELL_LIMIT = 32_000  # a spreadsheet takes 32,767
PAGE_ROWS = 1000
TAX_SUMS = ("value", "fee", "proceeds", "fifo_gain", "average_gain")
TAX_YEAR_MONTH = 3  # South Africa: 1 March to the end of February, at UTC+2
_CANDLE_NAME = re.compile(r"([A-Z0-9]{5,12})_([0-9]{1,6})\.csv(\.gz)?")
_NUMBER_CELL = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_PLAIN_CELL = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_RISKY_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\0", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@dataclass(frozen=True, slots=True)
class CandleFolder:
    """Recorded candles of one folder: rows of opened_ms, open, high, low, close, volume for each pair."""

    seconds: int
    counter: str
    data: Mapping[str, Floats]
    markets: Mapping[str, Market]
    hashes: Mapping[str, str]
    min_volume_24h: float


class _CandleFile(NamedTuple):
    path: Path
    pair: str
    seconds: int


def _io_words(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _moment(time_ms: int, hours: int = 0) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms, hours=hours)


def counter_of(pair: str) -> str:
    """The currency in which a pair is priced, from its name."""
    fits = [c for c in COUNTERS if pair.endswith(c) and len(pair) - len(c) >= 2]
    if not fits:
        raise DataError(f"{pair}: its counter is not known; a pair ends in one of {', '.join(COUNTERS)}")
    return max(fits, key=len)


def _candle_files(folder: Path) -> list[_CandleFile]:
    """All files of candles in a folder, by name; hidden files are passed over."""
    try:
        paths = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {_io_words(error)}") from None
    files, durations = [], ", ".join(map(str, DURATIONS_S))
    for path in (p for p in paths if p.name.lower().endswith((".csv", ".csv.gz"))):
        match = _CANDLE_NAME.fullmatch(path.name)
        if match is None:
            raise DataError(f"{path.name}: candle files are named PAIR_SECONDS.csv or PAIR_SECONDS.csv.gz")
        files.append(_CandleFile(path, match[1], int(match[2])))
        if files[-1].seconds not in DURATIONS_S:
            raise DataError(f"{path.name}: {files[-1].seconds} s is no timeframe; allowed is {durations}")
    if not files:
        raise DataError(f"folder {folder} has no file named PAIR_SECONDS.csv or PAIR_SECONDS.csv.gz")
    return files


def _chosen_files(folder: Path, pairs: Sequence[str]) -> list[_CandleFile]:
    """One file for each pair, at the finest timeframe that all of them have."""
    files = _candle_files(folder)
    known = sorted({f.pair for f in files})
    wanted = tuple(dict.fromkeys(p.strip().upper() for p in pairs)) or tuple(known)
    missing = [p for p in wanted if p not in known]
    if missing:
        raise DataError(f"folder {folder} has no candles of {', '.join(missing)}; it has {', '.join(known)}")
    common = set.intersection(*({f.seconds for f in files if f.pair == p} for p in wanted))
    if not common:
        raise DataError(f"folder {folder}: {', '.join(wanted)} have no timeframe in common")
    chosen = [f for f in files if f.pair in wanted and f.seconds == min(common)]
    twice = next((f for f, g in itertools.pairwise(chosen) if f.pair == g.pair), None)
    if twice is not None:
        raise DataError(f"{twice.path.name}: the same candles are there as .csv and as .csv.gz; remove one")
    return sorted(chosen, key=lambda f: wanted.index(f.pair))


def _file_text(name: str, raw: bytes) -> str:
    try:
        if name.endswith(".gz"):
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
                raw = stream.read(TEXT_LIMIT + 1)
        if len(raw) > TEXT_LIMIT:
            raise DataError(f"{name}: more than {TEXT_LIMIT >> 20} MB of text; split it")
        return raw.decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
    except UnicodeDecodeError:
        raise DataError(f"{name}: this is no text; allowed is comma separated text in UTF-8") from None
    except (OSError, EOFError, ZlibError):
        raise DataError(f"{name}: the gz file is damaged or cut off; copy it again") from None


def _check_header(name: str, header: str) -> None:
    found = tuple(cell.strip().lower() for cell in header.split(","))
    missing = [c for c in COLUMNS if c not in found]
    why = "the columns are in another order or there are more"
    if header.count(";") >= 5:
        why = "the columns are separated by semicolons; save it with commas and decimal points"
    elif missing:
        why = f"column {', '.join(missing)} is missing"
    if found != COLUMNS:
        raise DataError(f"{name}, line 1: {why}; the line must read {','.join(COLUMNS)}")


def _unreadable(name: str, lines: Sequence[str]) -> DataError:
    """The error that names the first line and column which are not six numbers."""
    for number, line in enumerate(lines, start=2):
        cells, where = [cell.strip() for cell in line.split(",")], f"{name}, line {number}"
        if not line.strip():
            return DataError(f"{where}: the line is empty; remove it")
        if len(cells) != len(COLUMNS):
            return DataError(f"{where}: {len(cells)} columns; allowed is {len(COLUMNS)}")
        for column, cell in zip(COLUMNS, cells, strict=True):
            if not _NUMBER_CELL.fullmatch(cell):
                found = f"is {cell[:30]!a}" if cell else "is empty"
                return DataError(f"{where}, column {column}: {found}; allowed is a plain number")
    return DataError(f"{name}: the numbers cannot be read")


def _parse_candles(name: str, text: str) -> Floats:
    """Rows of numbers; numpy reads 36,000 rows in 17 ms, pandas in 10 ms after an import of 340 ms."""
    header, _, body = text.partition("\n")
    if text:
        _check_header(name, header)
    if not body:
        raise DataError(f"{name}: there is no candle in it")
    with contextlib.suppress(ValueError):
        rows = np.loadtxt(io.StringIO(body), delimiter=",", comments=None, ndmin=2, dtype=np.float64)
        if rows.shape == (body.count("\n") + 1, len(COLUMNS)):
            return rows
    raise _unreadable(name, body.split("\n"))


def _faults(rows: Floats, seconds: int) -> Iterator[tuple[str, str, Flags]]:
    """Column, what is allowed, and the rows that break it; each check may rely on those before it."""
    for index, column in enumerate(COLUMNS):
        yield column, "a finite number", ~np.isfinite(rows[:, index])
    times = rows[:, 0]
    yield "timestamp", "UTC milliseconds, not seconds", (times < EARLIEST_MS) | (times > LATEST_MS)
    yield "timestamp", f"the start of a candle of {seconds} s", times % (seconds * 1000) != 0
    yield "timestamp", "later than the line before", np.diff(times, prepend=-1.0) <= 0
    for index, column in enumerate(COLUMNS[1:5], start=1):
        yield column, "a price above 0", rows[:, index] <= 0
    yield "volume", "0 or more", rows[:, 5] < 0
    yield "high", "not below open, low and close", rows[:, 2] < rows[:, [1, 3, 4]].max(axis=1)
    yield "low", "not above open, high and close", rows[:, 3] > rows[:, [1, 2, 4]].min(axis=1)


def _read_candles(file: _CandleFile) -> tuple[Floats, str]:
    """The checked candles of one file and the SHA-256 of its bytes."""
    name, seconds = file.path.name, file.seconds
    try:
        raw = file.path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {_io_words(error)}") from None
    rows = _parse_candles(name, _file_text(name, raw))
    for column, allowed, is_bad in _faults(rows, seconds):
        if is_bad.any():
            line = int(is_bad.argmax())
            found = f"is {rows[line, COLUMNS.index(column)]:.13g}; allowed is {allowed}"
            raise DataError(f"{name}, line {line + 2}, column {column}: {found}")
    step = float(np.diff(rows[:, 0]).min()) / 1000 if len(rows) >= 10 else seconds
    if step != seconds:
        raise DataError(f"{name}: its closest candles are {step:.0f} s apart, not {seconds} s")
    rows.flags.writeable = False
    return rows, hashlib.sha256(raw).hexdigest()


def _no_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _market_number(place: str, key: str, value: object) -> float:
    """One checked number of markets.json."""
    if key not in MARKET_RANGES:
        raise DataError(f"{place}: {key[:40]!a} is not known; allowed is {', '.join(MARKET_RANGES)}")
    low, high = MARKET_RANGES[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise DataError(f"{place}: {key} must be a number from {low:g} to {high:g}")
    if key.endswith("_scale") and value != int(value):
        raise DataError(f"{place}: {key} must be a whole number")
    return float(value)


def _read_markets(path: Path) -> dict[str, dict[str, float]]:
    """What markets.json says of each pair, checked; nothing if there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_doubles)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {_io_words(error)}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path.name}: this is no JSON text, or a name stands twice in it") from None
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise DataError(f'{path.name}: must read {{"XBTZAR": {{"price_scale": 0, ...}}, ...}}')
    return {
        pair: {key: _market_number(f"{path.name}, {pair[:12]}", key, number) for key, number in says.items()}
        for pair, says in value.items()
    }


def _market_of(pair: str, counter: str, price: float, says: Mapping[str, float]) -> Market:
    """A pair's market: what markets.json says, else six digits of price and a minimum worth 50 of counter."""
    digits_before = math.floor(math.log10(price)) + 1
    price_scale = int(says.get("price_scale", min(max(PRICE_DIGITS - digits_before, 0), 12)))
    volume_scale = int(says.get("volume_scale", VOLUME_SCALE))
    least = round(math.ceil(MODEL_MIN_VALUE / price * 10**volume_scale) / 10**volume_scale, volume_scale)
    market = Market(
        pair, pair.removesuffix(counter), counter, price_scale, volume_scale,
        min_volume=says.get("min_volume", least), max_volume=says.get("max_volume", 1e9),
        min_price=says.get("min_price", 10.0**-price_scale), max_price=says.get("max_price", 1e12),
        fee_source="entry tier (documented)", model_spread=says.get("spread", MODEL_SPREAD),
    )  # fmt: skip
    if market.min_volume >= market.max_volume or market.min_price >= market.max_price:
        raise DataError(f"{MARKETS_FILE}, {pair}: a minimum is not below its maximum")
    return market


def read_folder(folder: Path, pairs: Sequence[str] = ()) -> CandleFolder:
    """The candles of a folder, all or of `pairs`; DataError names file, line, column and what is allowed."""
    files = _chosen_files(folder, pairs)
    counters = {f.pair: counter_of(f.pair) for f in files}
    if len(set(counters.values())) > 1:
        words = ", ".join(f"{pair} in {counter}" for pair, counter in counters.items())
        raise DataError(f"folder {folder} has several counters ({words}); choose pairs of one of them")
    counter, says = counters[files[0].pair], _read_markets(folder / MARKETS_FILE)
    read = {f.pair: _read_candles(f) for f in files}
    medians = {pair: float(np.median(rows[:, 4])) for pair, (rows, _) in read.items()}
    fallback = RiskLimits().min_volume_24h if counter == "ZAR" else MODEL_MIN_VOLUME_24H
    return CandleFolder(
        files[0].seconds, counter, data={pair: rows for pair, (rows, _) in read.items()},
        markets={pair: _market_of(pair, counter, m, says.get(pair, {})) for pair, m in medians.items()},
        hashes={pair: digest for pair, (_, digest) in read.items()},
        min_volume_24h=max(says.get(pair, {}).get("min_volume_24h", fallback) for pair in read),
    )  # fmt: skip


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON that people can read; the file is there whole or not at all."""
    text = json.dumps(json.loads(canonical(value)), indent=1) + "\n"
    try:
        write_safely(path, text.encode())
    except OSError as error:
        raise DataError(f"{path.name} cannot be written: {_io_words(error)}") from None


def _json_object(place: str, line: bytes) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{place}: this is no JSON object")
    return value


def read_rows(path: Path) -> list[dict[str, object]]:
    """The objects of a file of JSON lines, none if there is no file; a last line that was cut off is removed."""
    try:
        *lines, rest = path.read_bytes().split(b"\n")
        rows = [_json_object(f"{path.name}, line {number}", line) for number, line in enumerate(lines, start=1)]
        if rest:
            write_safely(path, b"".join(line + b"\n" for line in lines))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path.name} cannot be read or mended: {_io_words(error)}") from None
    return rows


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Add one object as a JSON line; it is on its way to the disk when this returns."""
    try:
        with path.open("ab") as stream:
            stream.write((canonical(dict(row)) + "\n").encode())
    except OSError as error:
        raise DataError(f"{path.name} cannot be written: {_io_words(error)}") from None


def csv_cell(value: object) -> str:
    """A cell that no spreadsheet takes for a formula; numbers stay numbers."""
    text = "" if value is None else str(value)[:CELL_LIMIT]
    is_safe = bool(_PLAIN_CELL.fullmatch(text)) or not text.lstrip(" ").startswith(_RISKY_STARTS)
    return text if is_safe else "'" + text


def utc_text(time_ms: object) -> str:
    """UTC milliseconds as ISO-8601, empty where there is no time."""
    if isinstance(time_ms, bool) or not isinstance(time_ms, int) or not 0 < time_ms < LATEST_MS * 2:
        return ""
    return _moment(time_ms).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


class AuditTables(Protocol):
    """What an export reads of the audit."""

    def table(self, name: str, since_rowid: int = 0, limit: int = 1000) -> list[dict[str, object]]:
        """Rows of a table after a rowid, oldest first; each holds its `rowid`."""


def _unsigned(row: Mapping[str, object]) -> dict[str, object]:
    """A row of the gates without its signature, which is for this installation alone; a damaged one tells nothing."""
    seal = read_seal(Link(0, str(row.get("payload")), "", "")) or Seal("", "", "")
    return {**row, "payload": seal.payload, "attempts_hash": seal.attempts_hash}


def _rows_of(store: AuditTables, name: str) -> Iterator[dict[str, object]]:
    """All rows of a table, page by page."""
    since = 0
    while page := store.table(name, since, PAGE_ROWS):
        yield from map(_unsigned, page) if name == "gate_rows" else page
        last = page[-1].get("rowid")
        if not isinstance(last, int) or last <= since:
            raise DataError(f"table {name} cannot be paged")
        since = last


def _with_utc(row: Mapping[str, object]) -> dict[str, object]:
    """A row with the time in words beside each time in milliseconds."""
    wide: dict[str, object] = {}
    for key, value in row.items():
        wide[key] = value
        if key.endswith("_ms"):
            wide[key.removesuffix("_ms") + "_utc"] = utc_text(value)
    return wide


def _write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Rows as CSV for spreadsheets: UTF-8 with its mark, all cells quoted."""
    with path.open("x", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        for number, row in enumerate(map(_with_utc, rows)):
            if number == 0:
                writer.writerow(row)
            writer.writerow([csv_cell(value) for value in row.values()])


def _write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Rows as JSON lines."""
    with path.open("x", encoding="utf-8", newline="\n") as stream:
        for row in map(_with_utc, rows):
            cut = {key: value[:CELL_LIMIT] if isinstance(value, str) else value for key, value in row.items()}
            stream.write(canonical(cut) + "\n")


class _Holding:
    """What is held of one market, as lots in order and as one average; exact."""

    def __init__(self) -> None:
        self.lots: deque[tuple[Decimal, Decimal]] = deque()  # volume and cost
        self.volume = self.cost = Decimal(0)

    def buy(self, volume: Decimal, cost: Decimal) -> None:
        """Add a lot."""
        self.lots.append((volume, cost))
        self.volume, self.cost = self.volume + volume, self.cost + cost

    def sell(self, volume: Decimal) -> tuple[Decimal, Decimal, Decimal]:
        """Cost of what is sold, first in first out and on average, and the volume never bought here."""
        left = matched = min(volume, self.volume)
        average = self.cost * matched / self.volume if self.volume else Decimal(0)
        self.volume, self.cost, fifo = self.volume - matched, self.cost - average, Decimal(0)
        while left > 0 and self.lots:
            held, cost = self.lots.popleft()
            part = min(held, left)
            fifo, left = fifo + cost * part / held, left - part
            if held > part:
                self.lots.appendleft((held - part, cost - cost * part / held))
        return fifo, average, volume - matched


def _exact_cell(row: Mapping[str, object], key: str) -> Decimal:
    """A number of the audit, exact."""
    try:
        value = Decimal(str(row.get(key) or 0))
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite():
        raise DataError(f"table fills, {ascii(row.get('fill_id'))[:40]}: {key} is no number")
    return value


def tax_lots(fills: Iterable[Mapping[str, object]]) -> Iterator[dict[str, object]]:
    """One row per fill: its value and fees in the counter, the gain by first in first out and by average."""
    holdings: dict[tuple[object, object], _Holding] = {}
    for row in fills:
        holding = holdings.setdefault((row.get("mode"), row.get("pair")), _Holding())
        price, volume = _exact_cell(row, "price"), _exact_cell(row, "volume")
        fee_base, fee = _exact_cell(row, "fee_base"), _exact_cell(row, "fee_counter")
        value, time_ms = price * volume, int(_exact_cell(row, "time_ms"))
        fifo = average = unmatched = proceeds = Decimal(0)
        if str(row.get("side")).lower() == Side.SELL.value:
            fifo, average, unmatched = holding.sell(volume + fee_base)
            proceeds = value - fee
        else:
            holding.buy(volume - fee_base, value + fee)
        day = _moment(time_ms, hours=2)  # the tax year has the name of the year in which it ends
        known = {key: row.get(key) for key in ("mode", "pair", "side", "fill_id", "order_id")}
        money = {"value": value, "fee": fee + fee_base * price, "proceeds": proceeds, "fifo_cost": fifo,
                 "fifo_gain": proceeds - fifo, "average_cost": average, "average_gain": proceeds - average}
        sizes = {"price": price, "volume": volume, "fee_base": fee_base, "fee_counter": fee,
                 "unmatched_volume": unmatched, "held": holding.volume}
        gains = {key: round(amount, 8) for key, amount in money.items()}
        yield {"time_ms": time_ms, "tax_year": day.year + (day.month >= TAX_YEAR_MONTH), **known, **sizes, **gains}


def tax_years(lots: Iterable[Mapping[str, object]]) -> tuple[dict[str, object], ...]:
    """The lots summed by mode, counter and tax year."""
    sums: dict[tuple[str, str, int], dict[str, Decimal]] = {}
    for row in lots:
        key = (str(row["mode"]), counter_of(str(row["pair"])), int(_exact_cell(row, "tax_year")))
        total = sums.setdefault(key, dict.fromkeys(TAX_SUMS, Decimal(0)))
        for name in TAX_SUMS:
            total[name] += _exact_cell(row, name)
    return tuple({"mode": m, "counter": c, "tax_year": y, **total} for (m, c, y), total in sorted(sums.items()))


def export_audit(store: AuditTables, folder: Path, now_ms: int) -> tuple[str, ...]:
    """The audit as CSV and JSON lines in a new folder inside `folder`; the names of the files."""
    home = folder / f"lunobiz-export-{_moment(now_ms):%Y%m%d-%H%M%S}"
    names = [f"{name}.{kind}" for name in AUDIT_TABLES for kind in ("csv", "jsonl")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        home.mkdir()
        for name in AUDIT_TABLES:
            _write_csv(home / f"{name}.csv", _rows_of(store, name))
            _write_lines(home / f"{name}.jsonl", _rows_of(store, name))
        _write_csv(home / "tax-lots.csv", tax_lots(_rows_of(store, "fills")))
        _write_csv(home / "tax-years.csv", tax_years(tax_lots(_rows_of(store, "fills"))))
    except FileExistsError:
        raise DataError(f"{home} is there already; nothing was overwritten") from None
    except OSError as error:
        raise DataError(f"the export to {home} failed: {_io_words(error)}") from None
    return tuple(f"{home.name}/{name}" for name in (*names, "tax-lots.csv", "tax-years.csv"))


# ==============================================================================
# DOCTOR | is everything in place, and what would mend it
# shell | uses ERRORS SETTINGS SYSTEM NOTIFY KEYS
# ==============================================================================

import importlib.metadata
import importlib.util
import platform
import stat
from shutil import disk_usage

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 13)
PACKAGES = ("numpy", "requests", "python-dotenv", "ttkbootstrap", "plyer")
FREE_FAIL = 200 * 2**20
FREE_WARN = 2**30
CLOCK_LIMIT_MS = 2_000
_RESULT_WIDTH = 4
Trouble = tuple[bool, str, str, str]  # whether it is there; then result, text and cure of the check


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the doctor: `result` is ok, warn, fail or skip; `cure` says what to do."""

    name: str
    result: str
    text: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What the computer is and has; a package that is not there has no version."""

    python: tuple[int, int, int]
    platform: str
    is_64_bit: bool
    packages: tuple[tuple[str, str], ...]
    has_tk: bool
    has_display: bool
    free_bytes: int


@dataclass(frozen=True, slots=True)
class DoctorFacts:
    """All that the doctor may know; callables are tried once, None stands for what is not asked.

    `folders` may hold .env and kill file. `home_doubts` are sentences on a data folder that is not safe.
    """

    machine: MachineFacts
    home: Path
    folders: tuple[Path, ...]
    environ: Mapping[str, str]
    home_doubts: tuple[str, ...] = ()
    live_locks: tuple[str, ...] = ("no valid gate evaluation",)
    open_store: Callable[[], object] | None = None
    read_tickers: Callable[[], object] | None = None
    read_candles: Callable[[], object] | None = None
    skew_ms: Callable[[], float] | None = None
    is_ignored: Callable[[Path], bool | None] | None = None
    protection: Protection | None = None

    @property
    def env_files(self) -> tuple[Path, ...]:
        """The settings files that are there."""
        return tuple(path for folder in self.folders if (path := folder / ".env").is_file())


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def machine_facts(home: Path, environ: Mapping[str, str]) -> MachineFacts:
    """Look at this computer; opens no window and imports no library."""
    free_bytes = -1
    with contextlib.suppress(OSError):
        free_bytes = disk_usage(home).free
    has_screen = bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))
    return MachineFacts(
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        is_64_bit=sys.maxsize > 2**32, packages=tuple((name, _version_of(name)) for name in PACKAGES),
        has_tk=importlib.util.find_spec("_tkinter") is not None,
        has_display=has_screen or sys.platform in ("win32", "darwin"), free_bytes=free_bytes,
    )  # fmt: skip


def is_ignored_by_git(path: Path) -> bool | None:
    """Whether git ignores a file; None where there is no work tree, False where git cannot say."""
    if not any((folder / ".git").exists() for folder in path.parents):
        return None
    return run_program("git", ("-C", str(path.parent), "check-ignore", "--quiet", "--", path.name), 10) == 0


def _judge(name: str, good: str, *troubles: Trouble) -> Check:
    """The first trouble that is there, or all is well."""
    return next((Check(name, *said) for is_there, *said in troubles if is_there), Check(name, "ok", good))


def _check_machine(machine: MachineFacts) -> Iterator[Check]:
    is_odd = machine.python[:2] > NEWEST_PYTHON or not machine.is_64_bit
    text = f"{'.'.join(map(str, machine.python))} on {machine.platform}, {64 if machine.is_64_bit else 32} bit"
    yield _judge(
        "Python", text,
        (machine.python < OLDEST_PYTHON, "fail", text, "install Python 3.13, 64 bit, from python.org"),
        (is_odd, "warn", text, "install 3.13, 64 bit, if something fails"),
    )  # fmt: skip
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in machine.packages)
    is_missing = not all(version for _, version in machine.packages)
    yield _judge("Packages", text, (is_missing, "fail", text, "run: python -m pip install -r requirements.txt"))
    cure = "install python3-tk, or Python from python.org; --headless works without"
    yield _judge(
        "Window", "tkinter and a display are there",
        (not machine.has_tk, "fail", "Python came without tkinter", cure),
        (not machine.has_display, "warn", "no display here", "use --headless or a desktop session"),
    )  # fmt: skip


def _check_folders(facts: DoctorFacts) -> Iterator[Check]:
    """Where the program writes, and whether there is room for it."""
    home, logs, free = facts.home, facts.home / "logs", facts.machine.free_bytes
    cure = "choose a local folder that is not synced with --home DIR; LIVE refuses this one"
    yield _judge(
        "Data folder", f"{home}, writable, local",
        (not is_writable(home), "fail", f"{home} cannot be written", "choose another with --home DIR or LUNOBIZ_HOME"),
        (bool(facts.home_doubts), "warn", "; ".join(facts.home_doubts), cure),
    )  # fmt: skip
    cure = "make the folder writable, or move away a file of that name"
    is_shut = logs.exists() and not is_writable(logs)
    text = str(logs) if logs.exists() else f"{logs}, made at the first start"
    yield _judge("Log", text, (is_shut, "fail", f"{logs} cannot be written", cure))
    text, cure = f"{free / 2**30:.1f} GB free", "free some space: the audit must never run out of it"
    yield _judge(
        "Disk space", text, (free < 0, "warn", "cannot be read", "look whether the drive is there"),
        (free < FREE_FAIL, "fail", text, cure), (free < FREE_WARN, "warn", text, cure),
    )  # fmt: skip


def _check_settings(env: Mapping[str, str]) -> Check:
    try:
        settings = parse_settings(env)
    except SettingsError as error:
        return Check("Settings", "fail", str(error), "correct these lines in .env or the environment")
    text, cure = f"TEST EXCHANGE {settings.exchange_url}", "remove LUNOBIZ_EXCHANGE_URL to use Luno"
    good = f"valid; {len(settings.schedule.pairs)} {settings.schedule.counter} markets"
    return _judge("Settings", good, (settings.is_test_exchange, "warn", text, cure))


def _check_keys(env: Mapping[str, str], vault: KeyVault) -> Check:
    """Which keys are there, by name only, and whether they could be kept better."""
    try:
        read_key = parse_read_key(env)
        telegram_token(env)
    except SettingsError as error:
        return Check("Keys", "fail", str(error), "enter the keys again in the window, or correct .env")
    has_live = all(env.get(f"{PREFIX}LIVE_KEY_{part}", "").strip() for part in ("ID", "SECRET"))
    text = f"read key {'set' if read_key else 'not set'}, live key {'set' if has_live else 'not set'}"
    cure = "candles need a read-only Luno key (131107); --demo does not"
    shut, loose = vault.trouble, f"{text}, readable in .env"
    return _judge(
        "Keys", text, (bool(shut), "warn", shut, "enter the keys again in the window"),
        (not read_key, "warn", text, cure),
        (bool(vault.movable()), "warn", loose, "start the window: it offers to let Windows protect them"),
    )  # fmt: skip


def _check_environment(facts: DoctorFacts) -> Iterator[Check]:
    """The settings as written; if they cannot be read, nothing is said about the rest of them."""
    try:
        vault = KeyVault(facts.home, facts.folders, facts.protection)
        env = vault.env(facts.environ)
    except SettingsError as error:
        yield Check(".env", "fail", str(error), "correct the line, then look again")
        return
    text, problems = ", ".join(map(str, facts.env_files)), unknown_names(env)
    text = text or "none, so the defaults and the environment hold"
    wrong = f"{text}; {'; '.join(problems)}"
    yield _judge(".env", text, (bool(problems), "warn", wrong, "correct or remove these names"))
    yield _check_settings(env)
    yield _check_keys(env, vault)
    token, chat = (bool(env.get(f"{PREFIX}TELEGRAM_{part}", "").strip()) for part in ("TOKEN", "CHAT_ID"))
    missing, cure = f"{PREFIX}TELEGRAM_{'CHAT_ID' if token else 'TOKEN'}", "set both, or none for desktop notices"
    yield _judge("Notices", "Telegram" if token else "desktop", (token != chat, "warn", f"{missing} is missing", cure))


def _is_open_to_others(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    except OSError:
        return False


def _check_files(facts: DoctorFacts) -> Iterator[Check]:
    """Who may read the secrets, whether they could be published, and the kill file."""
    is_windows, asked, found = os.name == "nt", facts.is_ignored, kill_file_found(facts.folders)
    private = (*facts.env_files, facts.home / "lunobiz.db", facts.home / KEY_FILE)
    loose = [str(path) for path in private if _is_open_to_others(path)]
    cure = "run: chmod 600 on each; LIVE refuses them as they are"
    yield _judge(
        "File rights", "only you can read .env, the database and the signing key",
        (is_windows, "skip", "Windows: the rights of the folder hold", "keep the data folder inside your own profile"),
        (bool(loose), "warn", f"others may read {', '.join(loose)}", cure),
    )  # fmt: skip
    taken = [str(path) for path in facts.env_files if asked is not None and asked(path) is False]
    cure = "add .env to .gitignore, git rm --cached it; make new keys if it was ever pushed"
    yield _judge(
        "git", ".env is ignored or in no work tree",
        (asked is None or not facts.env_files, "skip", "no .env file to look at", ""),
        (bool(taken), "fail", f"git does not ignore {', '.join(taken)}", cure),
    )  # fmt: skip
    cure = "remove it and re-arm in the window when you want to trade again"
    yield _judge(
        "Kill file", "none",
        (found in facts.folders, "fail", f"{found} cannot be read, which counts as killed", "make the folder readable"),
        (found is not None, "warn", f"{found} is there: no order is sent", cure),
    )  # fmt: skip


def _asked(name: str, call: Callable[[], object] | None, good: str, skipped: str, *cures: str) -> Check:
    """One attempt; `cures` for what it needs to be asked, for no answer, and for a refusal or a damage."""
    if call is None:
        return Check(name, "skip", skipped, cures[0])
    try:
        call()
    except ExchangeDown as error:
        return Check(name, "warn", str(error), cures[1])
    except (ExchangeRefused, AuditBroken) as error:
        return Check(name, "fail", str(error), cures[2])
    return Check(name, "ok", good)


def _check_access(facts: DoctorFacts) -> Iterator[Check]:
    """Whether the audit opens, the exchange answers and the key does; then the clock: Date headers tell it."""
    yield _asked(
        "Database", facts.open_store, "opens, integrity is good", "none yet", "", "",
        "close other programs that use it; else move it away, keep it, and restore a backup",
    )  # fmt: skip
    yield _asked(
        "Exchange", facts.read_tickers, "prices came", "not asked", "",
        "look at the network, the firewall and Luno's status page; --demo works without",
        "look whether Luno shuts your network out",
    )  # fmt: skip
    yield _asked(
        "Read key works", facts.read_candles, "candles came: the key is right and confirmed", "not asked",
        "needs a read key and the network", "try again when the exchange answers",
        "make a read-only key at Luno (bits 131107), confirm it on your phone, enter it in the window",
    )  # fmt: skip
    skew_ms = facts.skew_ms() if facts.skew_ms is not None else math.nan
    text, cure = f"{abs(skew_ms) / 1000:.1f} s away from the exchange", "switch on automatic time"
    yield _judge(
        "Clock", text, (not math.isfinite(skew_ms), "skip", "the exchange was not asked", ""),
        (abs(skew_ms) > CLOCK_LIMIT_MS, "warn", text, f"{cure}; above 2 s no LIVE order is sent"),
    )  # fmt: skip


def run_checks(facts: DoctorFacts) -> tuple[Check, ...]:
    """All checks in the order in which to mend them; no value of a secret is in any of them."""
    locks, unlocked = facts.live_locks, "unlocked: real orders are possible"
    return (
        *_check_machine(facts.machine), *_check_folders(facts), *_check_environment(facts), *_check_files(facts),
        *_check_access(facts),
        Check("LIVE", "ok", f"locked: {'; '.join(locks)}") if locks else Check("LIVE", "warn", unlocked),
    )  # fmt: skip


def has_failed(checks: Iterable[Check]) -> bool:
    """True if any check failed; the program then ends with code 1."""
    return any(check.result == "fail" for check in checks)


def format_checks(checks: Sequence[Check]) -> str:
    """The checks as an aligned table; a cure stands below what it cures."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.result:<{_RESULT_WIDTH}}  {check.name:<{width}}  {check.text}")
        if check.cure:
            lines.append(f"{'':<{_RESULT_WIDTH}}  {'':<{width}}  -> {check.cure}")
    return "\n".join(lines)


# ==============================================================================
# ENGINE | one trading session
# shell | uses ERRORS TYPES SETTINGS STRATEGIES PORTFOLIO RISK CYCLE METRICS BACKTEST WALK LEDGER REPLAY ROWS ACCOUNT SYSTEM STORE LUNO FEED LIVE NOTIFY KEYS
# ==============================================================================

QUOTE_MS, MAX_PAUSE_MS = 10_000, 60_000
TICK_S = 1.0
TradeStep = Callable[[Desk, Moment, Executor, Recorder, Settings], tuple[CycleReport, ...]]


class Beat(NamedTuple):
    """When something is to be done: the timeframes due, whether quotes are, and how late the loop was."""

    now_ms: int
    due: tuple[int, ...]
    has_quote: bool
    gap_ms: float


class Pace(Protocol):
    """What drives a session: a stepped market clock or the computer's."""

    def beat(self) -> Beat | None:
        """The next beat; None when there is no more time to trade in."""

    def resume(self, time_ms: int) -> None:
        """Go on after the cycle at `time_ms`, read back from the audit."""

    def hold_back(self, failures: int) -> None:
        """Ask less often after this many failures in a row."""

    def hurry(self, is_busy: bool) -> None:
        """Look twice as often while an order is under way."""

    def wait_s(self) -> float:
        """Seconds until the next beat is worth asking for, at speed 1."""


class SteppedPace:
    """A market clock that jumps to five seconds after the close of each finest candle."""

    def __init__(self, clock: SteppedClock, step_s: int, timeframes: tuple[int, ...], span_ms: tuple[int, int]) -> None:
        self._clock, self._step, self._timeframes = clock, step_s * 1000, timeframes
        self._next = -(-span_ms[0] // self._step) * self._step
        self._end = span_ms[1]

    def beat(self) -> Beat | None:
        """Jump to the next candle's close."""
        if self._next > self._end:
            return None
        closed, self._next = self._next, self._next + self._step
        self._clock.set_ms(closed + DECISION_DELAY_MS)
        return Beat(closed + DECISION_DELAY_MS, due_at(closed, self._timeframes), True, 0.0)

    def resume(self, time_ms: int) -> None:
        """Go on with the candle after the one that was decided last."""
        self._next = (time_ms - DECISION_DELAY_MS) // self._step * self._step + self._step
        self._clock.set_ms(time_ms)

    def hold_back(self, failures: int) -> None:
        """A stepped clock asks once per candle in any case."""

    def hurry(self, is_busy: bool) -> None:
        """It does not look in between either."""

    def wait_s(self) -> float:
        """Market seconds per step."""
        return self._step / 1000


class RealPace:
    """The computer's clock: a tick a second, quotes every ten, decisions five seconds after a close."""

    def __init__(self, clock: Clock, timeframes: tuple[int, ...]) -> None:
        self._clock, self._timeframes = clock, timeframes
        self._last = 0  # no beat yet: the loading of history is no gap
        self._quote_ms = 0
        self._decided_ms = clock.now_ms() - DECISION_DELAY_MS
        self._pause = QUOTE_MS

    def beat(self) -> Beat | None:
        """What is due now."""
        now = self._clock.now_ms()
        gap, self._last = now - self._last - TICK_S * 1000 if self._last else 0.0, now
        due = self._due(now)
        has_quote = bool(due) or now >= self._quote_ms or now < self._quote_ms - MAX_PAUSE_MS
        if has_quote:
            self._quote_ms = now + self._pause
        return Beat(now, due, has_quote, max(0.0, abs(gap)))

    def _due(self, now: int) -> tuple[int, ...]:
        """Timeframes that closed since the last decision, unless that was so long ago that the close is no news."""
        closed = now - DECISION_DELAY_MS
        if self._decided_ms - closed > MAX_LOOP_GAP_MS:  # the clock was ahead and has been put right
            self._decided_ms = closed
        since, self._decided_ms = self._decided_ms, max(closed, self._decided_ms)
        return tuple(s for s in self._timeframes
                     if closed // (s * 1000) > since // (s * 1000) and closed % (s * 1000) < MAX_LOOP_GAP_MS)

    def resume(self, time_ms: int) -> None:
        """Real time goes on by itself; what closed meanwhile is no news."""

    def hold_back(self, failures: int) -> None:
        """Double the pause after each failure, up to a minute."""
        self._pause = min(MAX_PAUSE_MS, QUOTE_MS * 2**min(failures, 4)) if failures else QUOTE_MS

    def hurry(self, is_busy: bool) -> None:
        """Bring the next quote forward."""
        if is_busy and self._pause == QUOTE_MS:
            self._quote_ms = min(self._quote_ms, self._last + QUOTE_MS // 2)

    def wait_s(self) -> float:
        """A tick."""
        return TICK_S


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What a session is made of; MAIN puts it together per mode."""

    mode: Mode
    client: LunoClient
    feed: Feed
    store: Store
    pace: Pace
    trade: TradeStep
    is_killed: Callable[[], bool]
    log: JsonLog
    notifier: Notifier
    listen: Callable[[Event], None]
    install: Install
    live: LiveSession | None = None


def configuration_of(settings: Settings, install: Install) -> str:
    """The hash of all that decides a trade; "" if the code cannot be told, which counts for nothing."""
    code = install.code_hash
    return configuration_hash(settings, code, strategies_hash(parameter_sets())) if code else ""


class HeldChoice(NamedTuple):
    """The choice in force: a place in the list or CASH, the set whose rules hold, the training's ratio and end."""

    chosen: int
    held: int
    sharpe: float
    to_ms: int


def last_choice(parts: EngineParts, settings: Settings) -> HeldChoice | None:
    """The choice that PAPER made last, if it was made for this configuration."""
    rows = parts.store.results("choice", 1) if parts.mode in (Mode.PAPER, Mode.LIVE) else []
    row = json.loads(rows[0][2]) if rows else {"configuration": ""}
    if not row["configuration"] or row["configuration"] != configuration_of(settings, parts.install):
        return None
    return HeldChoice(int(row["chosen"]), int(row["held"]), float(row["sharpe"]), int(row["to_ms"]))


LOCKS_EVERY_MS = 60_000
GATES_OPEN = "The gates are open: LIVE can be asked for."
NO_LIVE_YET = "This version's real orders were only rehearsed: it sends none, whatever the gates say."
ALARMS = frozenset({FORGED, BROKEN, CUT_OFF, CLOCK_BACK, UNREADABLE})


def gate_locks(store: Store, feed: Feed, facts: LiveFacts) -> tuple[str, ...]:
    """Why the gates lock LIVE, with the account's fees as the feed has them; empty if they do not."""
    fees = tuple((m.pair, m.maker_fee, m.taker_fee) for m in feed.markets.values() if m.fee_source == "account")
    return live_locks(store.links("gate_rows"), store.links("attempts"), replace(facts, fees=fees))


HISTORY_PAUSE_MS = 60_000  # after a page of older history could not be had


def is_under_way(desk: Desk) -> bool:
    """True while an order's answer or end is awaited."""
    waiting = (OrderState.INTENT, OrderState.UNKNOWN)
    return any(o.state in waiting or o.is_cancelling or o.kind is OrderKind.EXIT for o in desk.orders)


def day_row(before: Desk, report: CycleReport, wish: float) -> dict[str, object]:
    """What is kept of a day that has ended."""
    start = report.desk.day_start_equity
    return {"day": before.day, "return": total_return(before.day_start_equity, start), "wished": wish, "equity": start,
            "fees_paid": report.desk.fees_paid, "positions": len(report.desk.positions)}


class AuditRecorder:
    """Writes each report that holds anything, and the inputs it came from, before its orders are sent."""

    def __init__(self, store: Store, mode: Mode, feed: Feed, inputs: InputLog) -> None:
        self._store, self._mode, self._feed, self._inputs = store, mode, feed, inputs
        self.is_due = False

    def record(self, report: CycleReport) -> None:
        """One transaction; AuditBroken stops the session before any order goes out."""
        is_kept = self.is_due or not report.is_quiet
        self._inputs.note(report, is_kept)
        if is_kept:
            self._store.record(report, self._mode, self._feed.markets, self._inputs.take())
            self.is_due = False
        elif self._inputs.is_full:
            self._store.record_inputs(self._mode, self._inputs.take())


def untrained_words(mode: Mode, days_known: int, days_needed: int) -> str:
    """Which set trades while training has chosen none; days below 0 are not known."""
    first = "the demo's own set" if mode is Mode.DEMO else "first set"
    known = f": {days_known} of {days_needed} days of candles" if days_known >= 0 else ""
    return f"Parameters: {first}, NOT CHOSEN{known}"


def _executor(parts: EngineParts, inputs: InputLog, costs: Costs, orders: Iterable[Order]) -> Executor:
    """Where a session's orders go: to the exchange, or to the rules of FILLS; either way what they bring is noted."""
    if parts.live is not None:
        return ListeningExecutor(inputs, parts.live.executor)
    return NotingExecutor(inputs, costs, parts.is_killed, orders)


class Engine:
    """One session from recovery to close; it knows neither threads nor windows."""

    def __init__(self, parts: EngineParts, settings: Settings) -> None:
        self.parts, self.settings = parts, settings  # the configuration, of which `traded` is what is traded now
        self.traded, self.choice, self.days_known = settings, last_choice(parts, settings), -1
        self.has_history, self._history_ms = parts.mode not in (Mode.PAPER, Mode.LIVE), 0
        self._waiting: Choice | None = None
        if self.choice is not None:
            self._trade_with(self.choice)
        self.report: CycleReport | None = None
        self.moment: Moment | None = None
        self.failures, self._was_killed = 0, False
        self.has_loaded = False  # the memory of the strategies is not there yet
        self.findings: tuple[Banner, ...] = ()
        self._locks: tuple[int, tuple[str, ...]] = (-1, ())
        saved = parts.store.last_desk(parts.mode)
        cash = settings.schedule.paper_cash if parts.live is None else approx(parts.live.cash())
        self.desk = saved[1] if saved is not None else Desk(cash)
        self._inputs = InputLog(self.desk)
        self._recorder = AuditRecorder(parts.store, parts.mode, parts.feed, self._inputs)
        self._executor = _executor(parts, self._inputs, settings.costs, self.desk.orders)
        self._input_day, self._is_after_crash = -1, parts.store.is_session_open()
        self._resumes_ms = saved[0] if saved is not None else 0
        if saved is not None:
            parts.pace.resume(saved[0])
        parts.store.mark_session("opened", self._resumes_ms)

    @property
    def has_resumed(self) -> bool:
        """True when the desk was read back from the audit."""
        return self._resumes_ms > 0

    @property
    def label(self) -> str:
        """Which set trades, and since which training."""
        if self.choice is None:
            return untrained_words(self.parts.mode, self.days_known, history_days(self.settings.gates))
        trained = f"{moment_of(self.choice.to_ms - 1, Zone()):%Y-%m-%d}"
        if self.choice.chosen == CASH:
            return f"Parameters: cash, no set earned its costs in training to {trained}"
        return f"Parameters: set {self.choice.chosen + 1} of {len(parameter_sets())}, trained to {trained}"

    def is_choice_due(self, now_ms: int) -> bool:
        """True if a set is to be chosen: none was, or the last training is as old as a window is long."""
        days = self.settings.gates.test_days
        is_old = self.choice is None or now_ms >= self.choice.to_ms + days * DAY_MS
        return self.parts.mode in (Mode.PAPER, Mode.LIVE) and self.has_loaded and self._waiting is None and is_old

    def take_choice(self, choice: Choice) -> None:
        """Trade by this choice from the next cycle on before which no order is under way."""
        self._waiting = choice

    def _trade_with(self, choice: HeldChoice) -> None:
        params = replace(parameter_sets()[choice.held], is_cash=choice.chosen == CASH)
        self.choice, self.traded = choice, replace(self.settings, params=params)
        self.parts.feed.use(params)

    def _apply_choice(self, now_ms: int) -> None:
        """Take over a new choice between two cycles; a replay begins anew there."""
        if self._waiting is None or self._input_day < 0 or not is_settled(self.desk):
            return
        found, self._waiting = self._waiting, None
        held = 0 if self.choice is None else self.choice.held  # in cash its exits go on
        held = held if found.chosen in (CASH, None) else found.chosen
        chosen = HeldChoice(CASH if found.chosen is None else found.chosen, held, found.sharpe, found.to_ms)
        row = {"configuration": configuration_of(self.settings, self.parts.install), **chosen._asdict()}
        self.parts.store.record_metrics(now_ms, "choice", row)
        self._trade_with(chosen)
        self._begin_inputs(now_ms, is_changed=True)
        self.tell(Event(now_ms, "choice", "info", f"{self.label}, Sharpe ratio {found.sharpe:.2f} in training"))

    def _fill_history(self, now_ms: int) -> None:
        """Fetch a page of the history that a choice needs, in a moment without work."""
        if self.has_history or self.failures or now_ms < self._history_ms:
            return
        try:
            self.has_history = not self.parts.feed.history_page(now_ms)
        except (ExchangeDown, ExchangeRefused):
            self._history_ms = now_ms + HISTORY_PAUSE_MS

    def load(self, now_ms: int) -> LoadState | None:
        """Fetch one page of missing history; None when the session can begin."""
        state = self.parts.feed.load_page(now_ms)
        if state is None and not self.has_loaded:
            self.has_loaded = True
            for kind, level, text in self.parts.feed.data_events():
                self.tell(Event(now_ms, kind, level, text))
        return state

    def step(self) -> tuple[CycleReport, ...] | None:
        """What is due now; None when the recording has ended."""
        if self._resumes_ms and any(o.is_cancelling for o in self.desk.orders):
            reports = self._follow_up()
            if reports:
                return reports
        self._resumes_ms = 0
        beat = self.parts.pace.beat()
        if beat is None:
            return None
        was_killed, self._was_killed = self._was_killed, self.parts.is_killed()
        if not beat.has_quote and was_killed == self._was_killed:
            self._fill_history(beat.now_ms)
            return ()
        self._apply_choice(beat.now_ms)
        return self._trade(self._observe(beat, self._was_killed))

    def _follow_up(self) -> tuple[CycleReport, ...]:
        """Finish what a crash interrupted between asking for cancels and hearing of them."""
        now, closed, self._resumes_ms = self._resumes_ms + FOLLOW_UP_MS, self._resumes_ms - DECISION_DELAY_MS, 0
        if self.parts.mode in (Mode.PAPER, Mode.LIVE):
            return ()
        wanted = frozenset(p.pair for p in self.desk.positions) | {o.pair for o in self.desk.orders}
        slack = MAX_FOLLOW_UPS * FOLLOW_UP_MS
        due = tuple(s for s in self.settings.schedule.timeframes if closed % (s * 1000) <= slack)
        moment = self.parts.feed.moment(now, due, Conditions(is_killed=self.parts.is_killed()), wanted)
        return self._trade(replace(moment, due=(), is_follow_up=True))

    def _observe(self, beat: Beat, is_killed: bool) -> Moment:
        """The moment of this beat; without an answer from the exchange, a blind one."""
        wanted = frozenset(p.pair for p in self.desk.positions) | {o.pair for o in self.desk.orders}
        base = Conditions(is_killed=is_killed, loop_gap_ms=beat.gap_ms, skew_ms=self.parts.client.skew_ms)
        base = replace(base, is_reconciled=beat.gap_ms <= MAX_LOOP_GAP_MS and abs(base.skew_ms) <= MAX_SKEW_MS)
        if self.parts.live is not None:
            base = self.parts.live.look(base, self.desk)
            self._tell_findings(tuple(self.parts.live.findings()), beat.now_ms)
        try:
            moment = self.parts.feed.moment(beat.now_ms, beat.due, base, wanted)
        except (ExchangeDown, ExchangeRefused) as error:
            return self._blind(beat, base, error)
        if self.failures:
            self.tell(Event(beat.now_ms, "api_ok", "info", f"Luno answers again after {self.failures} failed calls"))
        self.failures = 0
        self.parts.pace.hold_back(0)
        return moment

    def _tell_findings(self, findings: tuple[Banner, ...], now_ms: int) -> None:
        before, self.findings = {b.text for b in self.findings}, findings
        for banner in (b for b in findings if b.text not in before):
            self.tell(Event(now_ms, "live", banner.level, banner.text))

    def _blind(self, beat: Beat, base: Conditions, error: ExchangeDown | ExchangeRefused) -> Moment:
        self.failures += 1
        self.parts.pace.hold_back(self.failures)
        code = error.code if isinstance(error, ExchangeRefused) else ""
        is_refused = code in KEY_CODES
        text = f"No usable answer from Luno, try {self.failures}: {error}"
        self.tell(Event(beat.now_ms, "api_retry" if self.failures > 1 else "api_error", "warning", text))
        conditions = replace(
            base, has_network=bool(code), is_key_refused=is_refused, is_maintenance=code in MAINTENANCE_CODES,
            is_reconciled=False, reconcile_age_ms=math.inf,
        )
        return self.parts.feed.blind_moment(beat.now_ms, beat.due, conditions, str(error))

    def _trade(self, moment: Moment) -> tuple[CycleReport, ...]:
        """Run the line on a moment and take over its desk."""
        for kind, level, text in self.parts.feed.events:
            self.tell(Event(moment.now_ms, kind, level, text))
        self.parts.feed.events.clear()
        self._inputs.add_candles(moment.now_ms, self.parts.feed.unsaved)
        self.parts.feed.unsaved.clear()
        self._begin_inputs(moment.now_ms)
        before = self.desk
        reports = self.parts.trade(self.desk, moment, self._executor, self._recorder, self.traded)
        if before.day and reports[-1].desk.day != before.day:
            self._end_day(before, reports[-1])
        self.moment, self.report, self.desk = moment, reports[-1], reports[-1].desk
        self.parts.pace.hurry(self.parts.live is not None and is_under_way(self.desk))
        for report in reports:
            for event in report.events:
                self._pass_on(event)
        return reports

    def _begin_inputs(self, now_ms: int, is_changed: bool = False) -> None:
        """Say where a replay can begin: at the start of the session, once a UTC day, and with a new choice; but while
        the session runs only when no order is under way.
        """
        is_session, day = self._input_day < 0, now_ms // DAY_MS
        if not is_changed and (day == self._input_day or not (is_session or is_settled(self.desk))):
            return
        store, desk = self.parts.store, desk_json(self.desk)
        if (is_session or is_changed) and self.parts.mode is Mode.PAPER:
            known = "" if self.choice is None else configuration_of(self.settings, self.parts.install)
            store.record_metrics(now_ms, "configuration", {"configuration": known})
        start = StartRow(is_session, is_session and self._is_after_crash, __version__, self.parts.install.code_hash,
                         config_hash(self.traded), self.traded, desk, store.marks())
        store.record_inputs(self.parts.mode, (*self._inputs.take(), InputRow(now_ms, "start", start_text(start))))
        self._input_day = day

    def _end_day(self, before: Desk, report: CycleReport) -> None:
        """Keep a day's result and tell it."""
        row = day_row(before, report, self.settings.schedule.target_daily_return)
        self.parts.store.record_metrics(report.now_ms, "day" if self.parts.live is None else "live_day", row)
        text = f"The day ended at {row['return']:+.2%} of {row['wished']:.2%} wished"
        self.tell(Event(report.now_ms, "summary", "info", text))

    def tell(self, event: Event) -> None:
        """Write an event of the session itself, log it and pass it on."""
        self.parts.store.record_events((event,))
        self._pass_on(event)

    def _pass_on(self, event: Event) -> None:
        self.parts.log.write(event.level, event.kind, event.text, pair=event.pair, market_ms=event.time_ms)
        self.parts.notifier.tell(event)
        self.parts.listen(event)

    def lock_reasons(self, now_ms: int, is_fresh: bool = False) -> tuple[str, ...]:
        """Why LIVE is locked at this wall time, the nearest reason first; looked up once a minute, or afresh."""
        minute = now_ms // LOCKS_EVERY_MS
        if is_fresh or minute != self._locks[0]:
            before, self._locks = self._locks[1], (minute, self._read_locks(now_ms))
            for reason in (r for r in self._locks[1] if r in ALARMS and r not in before):
                self.tell(Event(now_ms, "gates", "error", f"LIVE is locked: {reason}"))
        return self._locks[1]

    def _read_locks(self, now_ms: int) -> tuple[str, ...]:
        parts = self.parts
        facts = LiveFacts(self.settings, parts.mode, now_ms, parts.install.key, parts.install.code_hash)
        return gate_locks(parts.store, parts.feed, facts) or (NO_LIVE_YET,)

    def rearm(self, now_ms: int) -> str:
        """Take the kill switch off if its file is gone; returns what is in the way, or an empty text."""
        if self.parts.is_killed():
            return "The kill file is still there: remove the file named KILL first"
        self.act("rearm", now_ms)
        self.tell(Event(now_ms, "rearm", "warning", "Re-armed by the owner"))
        return ""

    def resolve_halt(self, now_ms: int) -> str:
        """Lift the halts that only the owner may lift; the week starts anew with the equity of now."""
        kinds = (*(k for k in OWNER_CAUSES if k is not CauseKind.KILL), CauseKind.BALANCE_DRIFT)
        if not any(c.kind in kinds for c in self.desk.causes):
            return "Nothing is halted"
        if self.parts.live is not None:
            self.parts.live.accept()
        self.act("resolve", now_ms)
        self.tell(Event(now_ms, "rearm", "warning", "Halt lifted by the owner"))
        return ""

    def act(self, act: str, now_ms: int) -> None:
        """An act of the owner on the desk, which is an input like a moment; the next cycle writes both."""
        self._begin_inputs(now_ms)
        self.desk, self._recorder.is_due = self._inputs.act(act, now_ms), True

    def close(self) -> None:
        """End the session in order; positions and orders stay in the audit for the next one."""
        self.parts.store.record_inputs(self.parts.mode, self._inputs.take())
        self.parts.store.mark_session("closed", self.report.now_ms if self.report is not None else 0)
        self.parts.store.close()
        self.parts.log.close()


def close_all(engine: Engine, now_ms: int, marks: tuple[str, ...]) -> str:
    """Leave all positions and take all entries off if they are the ones that were shown; returns what is wrong."""
    offer = closing_offer(engine.desk, engine.parts.feed.markets, engine.settings)
    if offer.problem or offer.marks != marks:
        return offer.problem or "Nothing was closed: positions or orders have changed. Look again."
    engine.act("close_all", now_ms)
    engine.tell(Event(now_ms, "close_all", "warning", f"Closing all, by the owner: {', '.join(marks)}"))
    return ""


# ==============================================================================
# REHEARSAL | the whole way of LIVE on the built-in exchange, with its line going wrong
# shell | uses ERRORS TYPES SETTINGS CYCLE BACKTEST ORDERS SYSTEM STORE HTTP LUNO DEMO FEED LIVE NOTIFY KEYS ENGINE
# ==============================================================================

REHEARSAL_BEATS_S = (5, 15, 35, 95)  # after each close of the finest candle
REHEARSED_FAULTS = (
    "down", "down_after", "timeout", "timeout_after", "late", "twice", "500", "500_after", "429", "429_after",
    "garbage_after", "wrong_shape_after", "truncated_after", "ErrInternal_after", "ErrDeadlineExceeded",
)
REHEARSED_PATHS = (  # orders twice as often
    ORDER_PATH, ORDER_PATH, "/api/1/stoporder", "/api/exchange/3/order", "/api/1/balance",
    "/api/exchange/2/listorders",
)
FAULT_CHANCE, CRASH_CHANCE = 0.10, 0.01  # of each beat
MOST_FAULTS = 2  # waiting for one path at a time, or the first order would meet all that gathered before it
REHEARSED_ORDERS, REHEARSED_BEATS = 30, 20_000
REHEARSED_TIMEFRAMES = (3600,)  # so that there is something to send
QUIET_BEATS = 60  # at the end, with an honest line: everything must settle
REHEARSAL_KEY = "rehearsal"


class RehearsalPace:
    """A stepped clock that looks several times after each candle, as LIVE does."""

    def __init__(self, clock: SteppedClock, exchange: DemoExchange, timeframes: tuple[int, ...]) -> None:
        self._clock, self._step, self._timeframes = clock, exchange.finest_s * 1000, timeframes
        self._closed, self._beat = exchange.start_ms, 0

    def beat(self) -> Beat | None:
        """The next look: some seconds after a close, or after the one before if that took longer."""
        due = due_at(self._closed, self._timeframes) if self._beat == 0 else ()
        self._clock.set_ms(max(self._clock.now_ms(), self._closed + REHEARSAL_BEATS_S[self._beat] * 1000))
        self._beat = (self._beat + 1) % len(REHEARSAL_BEATS_S)
        self._closed += self._step if self._beat == 0 else 0
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


class RehearsedOrder(NamedTuple):
    """What became of one order: as the program knows it, and as the exchange has it."""

    order: SentOrder
    at_exchange: str
    is_equal: bool


class RehearsalReport(NamedTuple):
    """What a rehearsal did: orders, faults and crashes it met, money that does not agree, and the last state."""

    orders: tuple[RehearsedOrder, ...]
    faults: Mapping[str, int]
    crashes: int
    differences: tuple[str, ...]
    state: TradingState
    causes: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """True when all orders and all money agree, and the desk is ready again."""
        is_equal = all(row.is_equal for row in self.orders)
        return is_equal and not self.differences and self.state is TradingState.READY


class Rehearsal:
    """LIVE on the built-in exchange: the same engine, executor and audit, an exchange whose line goes wrong."""

    def __init__(self, settings: Settings, database: Path, seed: int, log: JsonLog) -> None:
        self._rng, self._clock = random.Random(seed), SteppedClock(0)
        self._exchange = DemoExchange.generated(seed, self._clock)
        self._clock.set_ms(self._exchange.start_ms)
        pairs = tuple(m.pair for m in self._exchange.markets())
        schedule = replace(settings.schedule, counter="ZAR", pairs=pairs, timeframes=REHEARSED_TIMEFRAMES)
        self._settings = replace(settings, schedule=schedule)
        self._pace = RehearsalPace(self._clock, self._exchange, REHEARSED_TIMEFRAMES)
        self._database, self._log = database, log
        self._faults: Counter[str] = Counter()
        self._crashes = 0
        self._open()

    def _open(self) -> None:
        """Start the program: from nothing, or from what the audit has."""
        self._store = store = Store(self._database, Redactor([]), "OFF")
        limit = RateLimit(self._clock)
        key = Credentials(REHEARSAL_KEY, REHEARSAL_KEY)
        client = LunoClient(self._exchange, key, limit, self._clock, self._rng)
        feed = Feed(client, store, self._settings, 0)
        saved = store.last_desk(Mode.LIVE)
        who = LiveDesk(REHEARSAL_KEY, tuple, never, self._settings,
                       lambda pair: feed.markets.get(pair), lambda: 1.0)
        self._session = LiveSession(LunoOrders(client), store, who, saved[1].orders if saved is not None else ())
        self._begin(feed)
        parts = EngineParts(
            Mode.LIVE, client, feed, store, self._pace, trade_now, never, self._log, Notifier([], self._clock, str),
            lambda event: None, Install(Credentials(), ""), self._session)
        self._engine = Engine(parts, self._settings)

    def _begin(self, feed: Feed) -> None:
        """Read the account once; the line may be down just now."""
        while True:
            try:
                feed.refresh_markets(self._clock.now_ms())
                self._session.begin()
                return
            except (ExchangeDown, ExchangeRefused):
                self._clock.sleep(10.0)

    def run(self, orders: int, most_beats: int, on_progress: Progress = always) -> RehearsalReport:
        """Trade until so many orders were sent and settled, or so many looks are over."""
        for _ in range(most_beats):
            if len(self._session.executor.sent) >= orders or not on_progress(len(self._session.executor.sent), orders):
                break
            self._disturb()
            self._look()
            if self._rng.random() < CRASH_CHANCE:
                self._crash()
        self._exchange.faults.clear()
        for _ in range(QUIET_BEATS):
            self._look()
        report = self._report()
        self._engine.close()
        return report

    def _disturb(self) -> None:
        if self._rng.random() < FAULT_CHANCE:
            kind, path = self._rng.choice(REHEARSED_FAULTS), self._rng.choice(REHEARSED_PATHS)
            wait_s = self._rng.choice((0.0, 3.0, 8.0, 45.0)) if kind in ("late", "timeout", "timeout_after") else 0.0
            if sum(fault.path == path for fault in self._exchange.faults) < MOST_FAULTS:
                self._exchange.faults.append(Fault(kind, path, 1, wait_s))
                self._faults[kind] += 1

    def _look(self) -> None:
        """One beat; history is loaded first."""
        while not self._engine.has_loaded:
            with contextlib.suppress(ExchangeDown, ExchangeRefused):
                self._engine.load(self._clock.now_ms())
        self._engine.step()

    def _crash(self) -> None:
        """The program is gone in the middle of it, and starts again from its audit."""
        self._crashes += 1
        self._store.close()
        self._open()

    def _report(self) -> RehearsalReport:
        accounts, sent = self._exchange.accounts, self._session.executor.sent
        rows = []
        for order in sent.values():
            there = accounts.of_client(order.client_id)
            words = "not there" if there is None else f"{there.status.lower()}, filled {there.base:f}"
            is_equal = order.filled == (Amounts() if there is None else
                                        Amounts(there.base, there.counter, there.fee_base, there.fee_counter))
            is_over = order.is_final == (there is None or there.status == "COMPLETE")
            rows.append(RehearsedOrder(order, words, is_equal and is_over))
        differences = [f"{a.asset}: {a.unexplained:f} that nothing explains"
                       for a in self._session.reconciler.last.holdings if a.unexplained]
        strange = set(o.client_id for o in accounts.orders.values()) - {o.client_id for o in sent.values()}
        differences += [f"order {client} is at the exchange and not in the journal" for client in sorted(strange)]
        desk = self._engine.desk
        return RehearsalReport(tuple(rows), self._faults, self._crashes, tuple(differences), desk.state,
                               tuple(cause.kind.words for cause in desk.causes))


def rehearsal_text(report: RehearsalReport) -> str:
    """What a rehearsal did, for people: a row per order, the faults it met, and whether all agrees."""
    cells = [("Order", "For", "Market", "Side", "Volume", "Limit", "State", "Filled", "At the exchange", "Agrees")]
    for order, there, is_equal in report.orders:
        cells.append((
            order.order_id, order.kind.value, order.pair, order.side.value, format(order.volume, "f"),
            format(order.price, "f"), order.state.value, format(order.filled.base, "f"), there,
            "yes" if is_equal else "NO"))
    widths = [max(len(row[column]) for row in cells) + 2 for column in range(len(cells[0]))]
    faults = ", ".join(f"{count} x {kind}" for kind, count in sorted(report.faults.items()))
    wrong = [f"{row.order.order_id} does not agree" for row in report.orders if not row.is_equal]
    words = ["".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    words += ["", f"Faults on the line: {faults or 'none'}. Crashes in between: {report.crashes}."]
    words += [f"At the end {report.state.name}{': ' if report.causes else ''}{', '.join(report.causes)}."]
    words += [*wrong, *report.differences] or ["Every order, coin and cent agrees with the exchange."]
    return "\n".join((*words, "REHEARSAL on the built-in exchange: nothing was sent to Luno.", ""))


# ==============================================================================
# JOBS | the processes that backtest, export and evaluate, and what the window says to the worker
# shell | uses ERRORS TYPES SETTINGS CANDLES STRATEGIES PORTFOLIO BACKTEST WALK GATES LEDGER SELFTEST ROWS SYSTEM STORE PARITY LUNO KEYS FILES ENGINE | owns multiprocessing
# ==============================================================================

import multiprocessing
import signal
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_pipes

NEWS_EVERY_S = 0.2
CHILD_PATIENCE_S = 3.0
MOST_HELPERS = 8
RUNS_LISTED = 100
CHOICE_LOOK_MS, CHOICE_RETRY_MS = 60_000, HOUR_MS  # between two looks while history is coming, and after it
CANCELLED = "Cancelled"
STAYS_AN_ATTEMPT = "The unseen days were opened: this stays an attempt."
NOT_KEPT = frozenset(("round_trips", "equity_daily", "decisions"))  # long lists: the command line writes them


@dataclass(frozen=True, slots=True)
class Start:
    """Let the bot trade."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the bot; what it holds stays as it is."""


@dataclass(frozen=True, slots=True)
class Kill:
    """The kill file has been written: look at it now."""


@dataclass(frozen=True, slots=True)
class Rearm:
    """Take the kill switch off."""


@dataclass(frozen=True, slots=True)
class ResolveHalt:
    """Lift a halt that only the owner may lift."""


@dataclass(frozen=True, slots=True)
class AskLive:
    """What is between PAPER and LIVE; answered by a LiveOffer."""


@dataclass(frozen=True, slots=True)
class RequestLive:
    """Trade LIVE from now on: the word as it was typed, and the promises that were ticked."""

    word: str
    promises: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LeaveLive:
    """Back to PAPER; what rests at the exchange stays there."""


@dataclass(frozen=True, slots=True)
class SetSpeed:
    """Market seconds per second of the wall clock, 0 for as fast as possible."""

    speed: float


@dataclass(frozen=True, slots=True)
class BacktestRequest:
    """What to run on: `source` is "folder" or "cache"; no pairs or timeframes means the settings', 0 means no bound."""

    source: str
    folder: str = ""
    pairs: tuple[str, ...] = ()
    timeframes: tuple[int, ...] = ()
    from_ms: int = 0
    to_ms: int = 0


@dataclass(frozen=True, slots=True)
class RunBacktest:
    """Run a backtest in a process of its own."""

    request: BacktestRequest


@dataclass(frozen=True, slots=True)
class CancelBacktest:
    """End the running backtest."""


@dataclass(frozen=True, slots=True)
class EvaluateGates:
    """Evaluate the gates on these candles, in processes of their own."""

    request: BacktestRequest


@dataclass(frozen=True, slots=True)
class CancelGates:
    """End the running evaluation; once it may have looked at the unseen days it stays an attempt."""


@dataclass(frozen=True, slots=True)
class Export:
    """Write the audit to a new folder inside this one."""

    folder: str


@dataclass(frozen=True, slots=True, repr=False)
class SaveKey:
    """Keep a read-only key in .env and use it from the next start on."""

    key_id: str
    secret: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the session in order."""


@dataclass(frozen=True, slots=True)
class BacktestProgress:
    """How far a backtest has come."""

    done: int
    total: int
    phase: str


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A result out of the audit: its number, when it was made, "backtest" or "gates", and the report as JSON."""

    number: int
    time_ms: int
    kind: str
    payload: str


@dataclass(frozen=True, slots=True)
class BacktestDone:
    """The run as it was saved, or None with the reason."""

    run: SavedRun | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RunsListed:
    """The saved runs, the newest first."""

    runs: tuple[SavedRun, ...]


@dataclass(frozen=True, slots=True)
class GatesProgress:
    """How far an evaluation of the gates has come, and with what it is busy."""

    done: int
    total: int
    phase: str


@dataclass(frozen=True, slots=True)
class GatesDone:
    """The evaluation as JSON and what became of it since ("valid until ...", "STALE: ..."), or "" with the reason."""

    payload: str
    problem: str = ""
    time_ms: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of the log, as it happens."""

    time_ms: int
    level: str
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """A short message for the owner."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The session broke off; the text says why and what to do."""

    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The session has ended and everything is written."""


def folder_settings(settings: Settings, folder: CandleFolder, timeframes: tuple[int, ...] = ()) -> Settings:
    """The settings for recorded candles: their markets, their counter, their smallest daily volume."""
    schedule = replace(settings.schedule, counter=folder.counter, pairs=tuple(sorted(folder.data)),
                       timeframes=timeframes or settings.schedule.timeframes)
    is_foreign = folder.counter != settings.schedule.counter  # the owner's minimum is in his own currency
    limits = replace(settings.limits, min_volume_24h=folder.min_volume_24h) if is_foreign else settings.limits
    return replace(settings, schedule=schedule, limits=limits)


def folder_job(settings: Settings, folder: CandleFolder, fees: tuple[float, float] | None = None) -> BacktestJob:
    """A backtest of a folder of recorded candles; `fees` are maker and taker of a study."""
    wrong = [s for s in settings.schedule.timeframes if s % folder.seconds]
    if wrong:
        raise SettingsError(f"timeframe {wrong[0]} s is not a multiple of the recorded {folder.seconds} s candles")
    markets = {p: m if fees is None else with_fees(m, *fees, "study") for p, m in folder.markets.items()}
    candles = tuple((markets[p], series_of(folder.data[p], folder.seconds)) for p in sorted(folder.data))
    first, last = span_of(s for _, s in candles)
    return BacktestJob(candles, settings, first_decision_ms(first, last), last, tuple(sorted(folder.hashes.items())))


def cached_job(store: Store, markets: Mapping[str, Market], settings: Settings) -> BacktestJob:
    """A backtest of the candles in the cache."""
    seconds = min(settings.schedule.timeframes)
    pairs = [p for p in settings.schedule.pairs if p in markets and store.candle_count(p, seconds)]
    if not pairs:
        raise DataError("there are no cached candles yet; start the bot once with a key, or choose a folder")
    candles = tuple((markets[p], series_of(store.candles(p, seconds), seconds)) for p in sorted(pairs))
    first, last = span_of(s for _, s in candles)
    return BacktestJob(candles, settings, first_decision_ms(first, last), last)


def within(job: BacktestJob, request: BacktestRequest) -> BacktestJob:
    """The same run inside the asked period; candles before it still serve as memory. DataError if nothing is left."""
    start = max(job.start_ms, request.from_ms)
    end = min(job.end_ms, request.to_ms or job.end_ms)
    if start >= end:
        first, last = (f"{moment_of(t, Zone()):%Y-%m-%d}" for t in (job.start_ms, job.end_ms))
        raise DataError(f"no candles in this period: decisions can be made from {first} to {last}")
    return replace(job, start_ms=start, end_ms=end)


def _tell_progress(pipe: Connection, last_s: float, done: int, total: int) -> float:
    """Send progress if the last one is a fifth of a second old; returns when it was sent last."""
    now = SystemClock().mono_s()
    if now - last_s < 0.2 and done < total:
        return last_s
    pipe.send(BacktestProgress(done, total, "Running"))
    return now


def _backtest_child(source: BacktestJob | BacktestRequest, settings: Settings, pipe: Connection) -> None:
    """Runs in a process of its own: read, run, tell progress five times a second, send the report."""

    told = deque([0.0], maxlen=1)

    def on_progress(done: int, total: int) -> bool:
        told.append(_tell_progress(pipe, told[0], done, total))
        return True

    try:
        if isinstance(source, BacktestRequest):
            pipe.send(BacktestProgress(0, 0, "Reading candles"))
            folder = read_folder(Path(source.folder), source.pairs)
            settings = folder_settings(settings, folder, source.timeframes)
            source = within(folder_job(settings, folder), source)
        values = report_json(run_backtest(source, on_progress), settings)
        pipe.send({name: values[name] for name in values if name not in NOT_KEPT})
    except LunobizError as error:
        pipe.send(Failed(str(error)))
    finally:
        pipe.close()


def _export_child(database: str, folder: str, now_ms: int, pipe: Connection) -> None:
    """Runs in a process of its own: write the audit of a database to a folder."""
    try:
        store = Store(Path(database), Redactor())
        pipe.send(Note("info", f"Exported {len(export_audit(store, Path(folder), now_ms))} files to {folder}"))
        store.close()
    except LunobizError as error:
        pipe.send(Note("error", f"Export failed: {error}"))
    finally:
        pipe.close()


def _parity_child(database: str, mode: Mode, span_ms: tuple[int, int], pipe: Connection) -> None:
    """Runs in a process of its own: run what was recorded between two times over again."""
    try:
        pipe.send(check_parity(read_audit(Path(database), mode, *span_ms), code_hash(program_source()), span_ms[1]))
    except LunobizError as error:
        pipe.send(Failed(str(error)))
    finally:
        pipe.close()


def _choice_child(candles: Candles, settings: Settings, now_ms: int, pipe: Connection) -> None:
    """Runs in a process of its own: choose a set on the latest training."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    with contextlib.suppress(OSError):
        try:
            pipe.send(current_choice(candles, settings, parameter_sets(), now_ms))
        except LunobizError as error:
            pipe.send(Failed(str(error)))
        finally:
            pipe.close()


def _self_test_child(job: SelfTestJob, pipe: Connection) -> None:
    """Runs in a process of its own: judge case after case, send a row each, stop between two when asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    try:
        for batch in batches_of(job.cases):
            if pipe.poll():
                break
            for row in self_test_rows(batch, job):
                pipe.send(row)
    except LunobizError as error:
        pipe.send(Failed(str(error)))
    finally:
        pipe.close()


class Child:
    """One process with a pipe: started, polled for messages, asked to stop and then ended."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
        self._process.start()
        self._wall = SystemClock()
        theirs.close()
        self._ends_s = math.inf
        self.is_done = False

    def poll(self) -> Iterator[object]:
        """The messages that have arrived; marks the end, a crash included."""
        try:
            while self._pipe.poll():
                yield self._pipe.recv()
            self.is_done = not self._process.is_alive() and not self._pipe.poll()
        except (EOFError, OSError):  # Windows raises where a pipe has no other end any more, when asked as well
            self._process.join(1.0)
            self.is_done = True
        if self._wall.mono_s() > self._ends_s:
            self._process.terminate()

    @property
    def exit_code(self) -> int | None:
        """How the process ended."""
        return self._process.exitcode

    def send(self, value: object) -> None:
        """Tell the process something; nothing happens if it has ended."""
        with contextlib.suppress(OSError):
            self._pipe.send(value)

    def kill(self) -> None:
        """End the process at once and do not wait for it; any thread may do that."""
        self._process.kill()

    def cancel(self) -> None:
        """Ask the process to stop; it is ended if it has not within a few seconds."""
        if math.isinf(self._ends_s):
            self._ends_s = self._wall.mono_s() + CHILD_PATIENCE_S
            with contextlib.suppress(OSError):
                self._pipe.send("cancel")

    def terminate(self) -> None:
        """End the process at once and do not wait for it."""
        self._process.terminate()

    def end(self) -> None:
        """End the process at once and see it gone."""
        self._process.terminate()
        self._process.join(CHILD_PATIENCE_S)


def rows_of_self_test(jobs: Sequence[SelfTestJob]) -> Iterator[dict[str, object]]:
    """The rows of all jobs as they come, a process for each; DataError if one of them fails or breaks off."""
    children, wall = [Child(_self_test_child, job) for job in jobs], SystemClock()
    try:
        while not all(child.is_done for child in children):
            messages = [message for child in children if not child.is_done for message in child.poll()]
            for message in messages:
                if isinstance(message, dict):
                    yield message
                elif isinstance(message, Failed):
                    raise DataError(message.text)
            wall.sleep(0.0 if messages else 0.05)
        codes = [child.exit_code for child in children if child.exit_code]
        if codes:
            raise DataError(f"a process of the self-test broke off (code {codes[0]}); run it again, it goes on")
    finally:
        for child in children:
            child.end()


Evaluate = Callable[[GateJob, Progress, Crew], Evaluation | None]


class SelfTested(NamedTuple):
    """The method that `--self-test` has measured, and the name of its rows; README.md has the table."""

    method: str
    id: str


SELF_TESTED = SelfTested("cccb80b65ea181e035b428b8ef8a238c0e367f877a5c37cda4bed2192cb45306", "bb42a2436c6a")


def with_self_test(job: GateJob, program: str) -> GateJob:
    """The job with what is known of its method's own error rate: nothing, unless exactly this method was measured."""
    is_known = bool(SELF_TESTED.method) and SELF_TESTED.method == method_hash(program, job.sets)
    return replace(job, is_self_tested=is_known, self_test_id=SELF_TESTED.id if is_known else "")


HELPER_LOST = "A process that helped to evaluate ended early: the computer may be short of memory. Evaluate again."


class GateTask(NamedTuple):
    """What to evaluate: candles at hand or a folder of them, and the work itself; `as_of_ms` 0 is the last candle.

    `fees` are maker and taker of a study.
    """

    source: GateJob | BacktestRequest
    settings: Settings
    code_hash: str
    now_ms: int
    as_of_ms: int = 0
    fees: tuple[float, float] | None = None
    work: Evaluate = evaluate

    def job(self) -> GateJob:
        """The candles, read if need be, with their hashes."""
        if isinstance(self.source, GateJob):
            return with_hashes(self.source)
        folder = read_folder(Path(self.source.folder), self.source.pairs)
        settings = folder_settings(self.settings, folder, self.source.timeframes)
        job = folder_job(settings, folder, self.fees)
        return GateJob(job.candles, settings, self.as_of_ms, 1, job.hashes, "recorded")


def _helper_child(pipe: Connection) -> None:
    """Runs in a process of its own: takes (turn, number, function or None for the last one, item) and answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    known: deque[Callable[[object], object]] = deque(maxlen=1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            turn, number, work, item = pipe.recv()
            known.extend([work] if work is not None else [])
            try:
                answer = known[0](item)
            except LunobizError as error:
                answer = Failed(str(error))
            pipe.send((turn, number, answer))


class HelperPool:
    """Maps work over helper processes: in order, a few items ahead, the function sent once to each."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._idle, self._ahead = deque(pipes), 2 * len(pipes)
        self._busy: list[Connection] = []
        self._knows: dict[Connection, int] = {}
        self._answers: dict[tuple[int, int], object] = {}
        self._turns = itertools.count()

    def map(self, work: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        """As `map` does; what nobody asks for any more is thrown away. LunobizError if a process ends early."""
        turn, left = next(self._turns), enumerate(items)
        sent = due = 0
        while True:
            sent += self._hand_out(turn, work, left, self._ahead - (sent - due))
            if (turn, due) in self._answers:
                answer = self._answers.pop((turn, due))
                due += 1
                if isinstance(answer, Failed):
                    raise LunobizError(answer.text)
                yield answer  # type: ignore[misc]
            elif due == sent and self._idle:
                return
            else:
                self._collect()

    def _hand_out(self, turn: int, work: Callable[[A], B], left: Iterator[tuple[int, A]], room: int) -> int:
        """Give items to idle processes; returns how many."""
        count = 0
        while self._idle and count < room and (job := next(left, None)) is not None:
            pipe = self._idle.popleft()
            try:
                pipe.send((turn, job[0], None if self._knows.get(pipe) == turn else work, job[1]))
            except OSError:
                raise LunobizError(HELPER_LOST) from None
            self._knows[pipe] = turn
            self._busy.append(pipe)
            count += 1
        return count

    def _collect(self) -> None:
        """Wait for answers and keep them."""
        for pipe in [p for p in self._busy if p in wait_for_pipes(self._busy)]:
            try:
                turn, number, answer = pipe.recv()
            except (EOFError, OSError):
                raise LunobizError(HELPER_LOST) from None
            self._answers[turn, number] = answer
            self._busy.remove(pipe)
            self._idle.append(pipe)


def _gates_child(task: GateTask, helpers: tuple[Connection, ...], pipe: Connection) -> None:
    """Runs in a process of its own: tell which unseen days it will look at, wait for their number, then evaluate."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    clock, told = SystemClock(), deque([0.0], maxlen=1)

    def on_progress(done: int, total: int) -> bool:
        if done >= total or clock.mono_s() - told[0] >= NEWS_EVERY_S:
            told.append(clock.mono_s())
            pipe.send(GatesProgress(done, total, "Evaluating"))
        return True

    with contextlib.suppress(EOFError, OSError):  # nobody listens any more
        try:
            pipe.send(GatesProgress(0, 0, "Reading candles"))
            job = with_self_test(task.job(), program_source())
            pipe.send(look_of(job, task.code_hash, unseen_span(job), task.now_ms))
            job = replace(job, attempts=pipe.recv())
            evaluation = task.work(job, on_progress, Crew(HelperPool(helpers).map, len(helpers)))
            pipe.send(Failed(CANCELLED) if evaluation is None else (
                gate_pass(job, evaluation, task.code_hash), evaluation_json(evaluation)))
        except LunobizError as error:
            pipe.send(Failed(str(error)))


def helper_count() -> int:
    """How many processes share the work: one for each core, at most MOST_HELPERS."""
    return min(MOST_HELPERS, os.cpu_count() or 1)


class Once:
    """A right that goes to the first who takes it, in whichever thread; everybody else comes too late."""

    def __init__(self) -> None:
        self._left = deque((True,))

    @property
    def is_taken(self) -> bool:
        """True once somebody has it."""
        return not self._left

    def take(self) -> bool:
        """True for the first who asks."""
        with contextlib.suppress(IndexError):
            return self._left.pop()
        return False


class GateRun:
    """One evaluation: polled for messages, counted as an attempt before it looks, kept signed when it is done.

    It has one answer, from its processes or from who cancels it; `answer` is the right to give that.
    """

    def __init__(self, task: GateTask, store: Store, install: Install, answer: Once | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(helper_count())]
        self._helpers = [context.Process(target=_helper_child, args=(end,), daemon=True) for _, end in pipes]
        for helper in self._helpers:
            helper.start()
        self._child = Child(_gates_child, task, tuple(end for end, _ in pipes))
        for end in itertools.chain(*pipes):
            end.close()
        self._store, self._install = store, install
        self._answer, self._look = answer or Once(), Once()
        self._counted: AttemptRow | None = None
        self._is_done = False

    @property
    def is_done(self) -> bool:
        """True once all processes were ended."""
        return self._is_done

    def poll(self) -> Iterator[GatesProgress | GatesDone]:
        """What there is to tell; after GatesDone, or when it was cancelled, there is nothing more."""
        if self._answer.is_taken:
            self.end()
        if self.is_done:
            return
        for message in self._child.poll():
            yield from self._hear(message)
        if self._child.is_done and not self._answer.is_taken:
            yield from self._finish(f"The evaluation ended early (code {self._child.exit_code}).")

    def cancel(self) -> GatesDone | None:
        """The answer at once, from any thread, unless there is one; the processes are told to end, not waited for."""
        is_first = self._answer.take()
        self._child.kill()
        for helper in self._helpers:
            helper.kill()
        return GatesDone("", CANCELLED, note="" if self._look.take() else STAYS_AN_ATTEMPT) if is_first else None

    def end(self) -> None:
        """End all processes and wait until they have ended."""
        self._is_done = True
        self._child.end()
        for helper in self._helpers:
            helper.kill()
            helper.join(CHILD_PATIENCE_S)

    def _hear(self, message: object) -> Iterator[GatesProgress | GatesDone]:
        try:
            if isinstance(message, GatesProgress):
                yield message
            elif isinstance(message, AttemptRow):
                if message.unseen_to_ms <= message.unseen_from_ms or self._look.take():
                    self._child.send(self._count(message))
            elif isinstance(message, Failed):
                yield from self._finish(message.text)
            elif isinstance(message, tuple) and self._answer.take():
                yield self._keep(*message)
                self.end()
        except DataError as error:
            yield from self._finish(str(error))

    def _finish(self, problem: str) -> Iterator[GatesDone]:
        """End all processes; the answer, unless it was cancelled before."""
        if self._answer.take():
            yield self._failed(problem)
        self.end()

    def _failed(self, problem: str) -> GatesDone:
        return GatesDone("", problem, note=STAYS_AN_ATTEMPT if self._counted else "")

    def _count(self, look: AttemptRow) -> int:
        """Write the look into the ledger, unless it has it; returns the number of the attempt."""
        rows = read_attempts(self._store.links("attempts"))
        if look.unseen_to_ms > look.unseen_from_ms:
            self._counted = look
            if not is_known_look(rows, look):
                self._store.add_link("attempts", look.time_ms, lambda _: canonical(look))
        return attempt_number(rows, look.config_hash, look.unseen_from_ms, look.unseen_to_ms)

    def _keep(self, held: GatePass, values: dict[str, object]) -> GatesDone:
        """Sign and store an evaluation; a span that is not the one announced is one more look."""
        now_ms, span = SystemClock().now_ms(), (held.unseen_from_ms, held.unseen_to_ms)
        try:
            if self._counted is not None:
                self._count(replace(self._counted, unseen_from_ms=span[0], unseen_to_ms=span[1]))
            newest = next((link.hash for link in reversed(self._store.links("attempts"))), "")
            self._store.add_link("gate_rows", now_ms, lambda before: sealed(
                canonical(held), before, now_ms, newest, self._install.key))
        except DataError as error:
            return self._failed(str(error))
        self._store.record_metrics(now_ms, "gates", values)
        return GatesDone(canonical(values), time_ms=now_ms)


def data_source(mode: Mode, settings: Settings) -> str:
    """Where the candles of this session's cache came from; only Luno's own can ever lead to LIVE."""
    if settings.is_test_exchange:
        return "test exchange"
    return {Mode.PAPER: REAL_SOURCE, Mode.LIVE: REAL_SOURCE, Mode.DEMO: "demo"}.get(mode, "recorded")


def gate_task(engine: Engine, request: BacktestRequest, now_ms: int) -> GateTask:
    """What the window asks for: a folder as it is, or the cache under the session's settings."""
    settings, parts = engine.settings, engine.parts
    if request.source == "folder":
        return GateTask(request, settings, parts.install.code_hash, now_ms)
    schedule = replace(settings.schedule, timeframes=request.timeframes or settings.schedule.timeframes,
                       pairs=request.pairs or settings.schedule.pairs)
    settings = replace(settings, schedule=schedule)
    cached = cached_job(parts.store, parts.feed.markets, settings)
    as_of_ms = now_ms if parts.mode in (Mode.PAPER, Mode.LIVE) else cached.end_ms
    source = data_source(parts.mode, settings)
    job = GateJob(cached.candles, settings, as_of_ms, 1, source=source)
    if source == REAL_SOURCE:
        paper = paper_days(read_paper(parts.store.path), settings, configuration_of(settings, parts.install))
        job = replace(job, paper=paper)
    return GateTask(job, settings, parts.install.code_hash, now_ms)


class Chooser:
    """In PAPER: has the set chosen in a process of its own, at the start and after each `test_days`."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock
        self._child: Child | None = None
        self._next_ms = 0
        self._has_answered = False

    def look_after(self) -> None:
        """Start a choice when one is due and its candles are there; pass on what came out."""
        engine, now_ms = self._engine, self._clock.now_ms()
        if self._child is not None:
            self._listen(self._child, now_ms)
        elif engine.is_choice_due(now_ms) and now_ms >= self._next_ms:
            self._next_ms = now_ms + (CHOICE_RETRY_MS if engine.has_history else CHOICE_LOOK_MS)
            with contextlib.suppress(DataError):  # no candles yet
                self._begin(cached_job(engine.parts.store, engine.parts.feed.markets, engine.settings), now_ms)

    def _begin(self, job: BacktestJob, now_ms: int) -> None:
        engine, gates = self._engine, job.settings.gates
        missing = missing_days(job.candles, gates, now_ms // DAY_MS * DAY_MS)
        engine.days_known = history_days(gates) - missing
        if engine.has_history and not missing:
            self._has_answered = False
            self._child = Child(_choice_child, job.candles, job.settings, now_ms)

    def _listen(self, child: Child, now_ms: int) -> None:
        for message in child.poll():
            self._has_answered = True
            if isinstance(message, Choice) and message.chosen is not None:
                self._engine.take_choice(message)
            elif isinstance(message, Failed):
                self._engine.tell(Event(now_ms, "choice", "warning", f"No set could be chosen: {message.text}"))
        if child.is_done:
            self._child = None
            if not self._has_answered:
                text = f"No set could be chosen: the process ended early (code {child.exit_code})"
                self._engine.tell(Event(now_ms, "choice", "warning", text))

    def end(self) -> None:
        """End a choice that is under way."""
        if self._child is not None:
            self._child.end()


# ==============================================================================
# WORKER | the thread that trades
# shell | uses ERRORS TYPES SETTINGS STRATEGIES CYCLE BACKTEST LEDGER ROWS ACCOUNT WHY SYSTEM STORE PARITY FEED NOTIFY ENGINE JOBS | owns queue threading
# ==============================================================================

import queue
import threading

STEP_BUDGET_S = 0.05
NOTICE_EVERY_S = 0.5
HISTORY_ROWS = 400
HISTORY_EVERY_S, HISTORY_RETRY_S, HISTORY_TRIES = 1.0, 10.0, 6  # 60 pages a minute of the 300 calls Luno allows
EVENTS_WAITING = 1000  # a window that hangs may not fill the memory; the audit has everything


def local_zone() -> Zone:
    """The computer's time zone now."""
    return zone_of(*local_zone_parts())


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the worker needs beside the session: its clock, folder, speed, and how a key is kept."""

    clock: Clock
    folder: Path
    database: Path
    calls_left: Callable[[], int]
    save_key: Callable[[str, str], str]
    speed: float
    starts_running: bool
    offer_live: Callable[[Engine], LiveOffer] | None = None  # asks the exchange
    open_live: Callable[[Callable[[Event], None]], tuple[Engine, WorkerOptions]] | None = None


class DayCheck:
    """Once a UTC day: was the finished day, run over again in a process of its own, the same."""

    def __init__(self, engine: Engine, options: WorkerOptions) -> None:
        self._engine, self._options = engine, options
        self._day = engine.desk.day
        self._child: Child | None = None
        self._has_answered = False
        self.text, self.is_broken = "", False

    def look_after(self) -> None:
        """Start a check when a day has ended, and tell what it found."""
        day = self._engine.desk.day
        if self._child is not None:
            self._listen(self._child)
        elif day > self._day:
            if self._day:
                mode, span = self._engine.parts.mode, (self._day * DAY_MS, day * DAY_MS)
                self._child, self._has_answered = Child(_parity_child, str(self._options.database), mode, span), False
            self._day = day

    def _listen(self, child: Child) -> None:
        for message in child.poll():
            self._has_answered = True
            if isinstance(message, ParityReport):
                self._tell(message.headline, message.text, not message.is_equal)
            elif isinstance(message, Failed):
                self._tell(f"Replay check: {message.text}", f"Replay check: {message.text}", True)
        if child.is_done:
            self._child = None
            if not self._has_answered:
                text = f"Replay check: it ended early (code {child.exit_code})"
                self._tell(text, text, True)

    def _tell(self, headline: str, text: str, is_broken: bool) -> None:
        self.text, self.is_broken = headline, is_broken
        level = "error" if is_broken else "info"
        self._engine.tell(Event(self._options.clock.now_ms(), "parity", level, text))

    def end(self) -> None:
        """End a check that is under way."""
        if self._child is not None:
            self._child.end()


class Newsroom:
    """Turns reports into what the window shows, with the last decisions and fills kept for its tables."""

    def __init__(self, engine: Engine, options: WorkerOptions, checks: DayCheck) -> None:
        self._engine, self._options, self._checks = engine, options, checks
        self._zone = local_zone()
        self._decisions: deque[Decision] = deque(maxlen=HISTORY_ROWS)
        self._fills: deque[Fill] = deque(maxlen=HISTORY_ROWS)
        self._latest: tuple[Decision, ...] = ()
        self._outlooks: tuple[Outlook, ...] = ()

    def add(self, reports: Sequence[CycleReport]) -> None:
        """Remember what a step brought."""
        for report in reports:
            self._fills.extend(report.settlement.fills)
            if report.decisions:
                self._decisions.extend(report.decisions)
                self._latest = report.decisions
        moment = self._engine.moment
        if moment is not None and moment.due:
            self._outlooks = tuple(o for v in moment.views for o in v.outlooks)

    def health(self, is_running: bool, speed: float, progress: str) -> Health:
        """How machine and line are doing."""
        engine, client = self._engine, self._engine.parts.client
        report, options = engine.report, self._options
        now = report.now_ms if report is not None else options.clock.now_ms()
        locks = engine.lock_reasons(SystemClock().now_ms())
        return Health(
            now_ms=now, mode=engine.parts.mode, label=engine.label, is_running=is_running,
            has_network=engine.failures == 0, is_test_exchange=engine.settings.is_test_exchange,
            latency_ms=client.latency_ms, last_ok_ms=client.last_ok_ms or None, calls_left=options.calls_left(),
            failures=engine.failures, skew_ms=client.skew_ms, last_candle_ms=self._last_candle(),
            db_mb=engine.parts.store.size_bytes() / 1e6, log_ok=engine.parts.log.failures == 0,
            notice_state=engine.parts.notifier.state_text(), speed=speed, progress=progress, version=__version__,
            folder=options.folder.name, lock_reason=locks[0] if locks else "", lock_reasons=locks,
            parity=self._checks.text, is_parity_broken=self._checks.is_broken, findings=engine.findings,
            next_cycle_ms=self._next_decision(now),
            order_trouble=engine.parts.live.trouble if engine.parts.live is not None else "",
        )

    def _next_decision(self, now_ms: int) -> int:
        """When the next candle that decides has closed and is looked at."""
        finest_ms = min(self._engine.settings.schedule.timeframes) * 1000
        return (max(now_ms, self._options.clock.now_ms()) // finest_ms + 1) * finest_ms + DECISION_DELAY_MS

    def why(self, pair: str) -> WhyTold:
        """What kept one market from trading."""
        engine = self._engine
        now = engine.report.now_ms if engine.report is not None else self._options.clock.now_ms()
        reasons = read_reasons(self._options.database, engine.parts.mode, now - WHY_DAYS * DAY_MS)
        market = engine.parts.feed.markets.get(pair)
        return why_told(pair, market.name if market is not None else pair, reasons, now, self._zone)

    def _last_candle(self) -> int | None:
        return self._latest[0].opened_ms + self._latest[0].timeframe_s * 1000 if self._latest else None

    def news(self, is_running: bool, speed: float, progress: str) -> DeskNews:
        """Everything the window shows, as text."""
        engine, zone = self._engine, self._zone
        health = self.health(is_running, speed, progress)
        views = engine.moment.views if engine.moment is not None else ()
        markets = engine.parts.feed.markets
        return DeskNews(
            health.now_ms, status_row(engine.desk, engine.report, engine.settings, health, zone),
            position_rows(engine.desk, views, health.now_ms),
            ranking_rows(self._latest, self._outlooks, views),
            decision_rows(tuple(self._decisions), markets, health.now_ms, zone),
            fill_rows(tuple(self._fills), markets, engine.parts.mode.value.upper(), health.now_ms, zone),
            banner_rows(engine.desk, views, engine.settings, health, zone),
            footer_text(health, zone),
            order_rows(engine.desk, markets, engine.parts.mode, health.now_ms),
            coin_rows(engine.parts.live.reconciler.last.holdings if engine.parts.live is not None else ()),
        )


def saved_runs(store: Store) -> RunsListed:
    """The newest backtests and evaluations in the audit."""
    runs = [SavedRun(number, time_ms, kind, payload) for kind in ("backtest", "gates")
            for number, time_ms, payload in store.results(kind, RUNS_LISTED)]
    return RunsListed(tuple(sorted(runs, key=lambda r: -r.number)[:RUNS_LISTED]))


def last_evaluation(store: Store, now_ms: int, valid_days: int) -> GatesDone | None:
    """The newest evaluation in the audit, marked when it is too old to count."""
    for _, time_ms, payload in store.results("gates", 1):
        days = (now_ms - time_ms) // DAY_MS
        return GatesDone(payload, time_ms=time_ms, note="" if days <= valid_days else
                         f"STALE: {days} days old; an evaluation counts for {valid_days}. Evaluate again.")
    return None


class BacktestRun:
    """One backtest in a process of its own, kept when it is done; it has one answer, as an evaluation has."""

    def __init__(self, source: BacktestJob | BacktestRequest, settings: Settings, store: Store, answer: Once) -> None:
        self._store, self._answer = store, answer
        self._child = Child(_backtest_child, source, settings)
        self.is_done = False

    def poll(self) -> Iterator[BacktestProgress | BacktestDone]:
        """What there is to tell; after BacktestDone, or when it was cancelled, there is nothing more."""
        if self._answer.is_taken:
            self.end()
        if self.is_done:
            return
        for message in self._child.poll():
            if isinstance(message, BacktestProgress):
                yield message
            elif isinstance(message, dict) and self._answer.take():
                yield self._keep(message)
            elif isinstance(message, Failed) and self._answer.take():
                yield BacktestDone(None, message.text)
        if self._child.is_done and self._answer.take():
            yield BacktestDone(None, f"The backtest ended early (code {self._child.exit_code})")

    def cancel(self) -> BacktestDone | None:
        """The answer at once, from any thread, unless there is one; the process is told to end, not waited for."""
        is_first = self._answer.take()
        self._child.kill()
        return BacktestDone(None, CANCELLED) if is_first else None

    def end(self) -> None:
        """End the process and wait until it has ended."""
        self.is_done = True
        self._child.end()

    def _keep(self, values: dict[str, object]) -> BacktestDone:
        self._store.record_metrics(SystemClock().now_ms(), "backtest", values)
        ((number, time_ms, payload),) = self._store.results("backtest", 1)
        return BacktestDone(SavedRun(number, time_ms, "backtest", payload))


def backtest_source(engine: Engine, request: BacktestRequest) -> tuple[BacktestJob | BacktestRequest, Settings]:
    """What a backtest runs on, and its settings; DataError if there are no candles."""
    schedule, settings = engine.settings.schedule, engine.settings
    if request.source == "folder":
        return request, replace(settings, params=parameter_sets()[0])  # not the demo's lively set
    chosen = replace(schedule, timeframes=request.timeframes or schedule.timeframes,
                     pairs=request.pairs or schedule.pairs)
    settings = replace(settings, schedule=chosen)
    return within(cached_job(engine.parts.store, engine.parts.feed.markets, settings), request), settings


JobNews = BacktestProgress | BacktestDone | GatesProgress | GatesDone


def wanted_days(engine: Engine, command: RunBacktest | EvaluateGates, now_ms: int) -> int:
    """How many days of the own markets' candles a job is to have: its period, else what a choice needs."""
    request, gates = command.request, engine.settings.gates
    seconds = min(request.timeframes or engine.settings.schedule.timeframes)
    if isinstance(command, EvaluateGates):
        return evaluation_days(gates, seconds)
    if not request.from_ms:
        return choice_days(gates, seconds)
    return now_ms // DAY_MS - request.from_ms // DAY_MS + memory_days(seconds) + 1


class Errand:
    """What the window asked for, from the asking to its one answer; the worker's thread begins and polls it.

    A job on the own markets first fetches what the cache lacks, a page at a time beside the trading.
    """

    def __init__(self, command: RunBacktest | EvaluateGates) -> None:
        self._command, self._answer = command, Once()
        self._run: BacktestRun | GateRun | None = None
        self._history: History | None = None
        self._next_s, self._failures = 0.0, 0

    @property
    def is_answered(self) -> bool:
        """True once the window has its answer, or is about to get it."""
        return self._answer.is_taken

    @property
    def is_done(self) -> bool:
        """True once it is answered and its processes have ended."""
        return self.is_answered and (self._run is None or self._run.is_done)

    def poll(self, engine: Engine, clock: Clock) -> Iterator[JobNews]:
        """Do the next step and tell what there is to tell."""
        if self._run is not None:
            yield from self._run.poll()
        elif not self.is_answered and clock.mono_s() >= self._next_s:
            try:
                yield from self._prepare(engine, clock)
            except LunobizError as error:
                yield from filter(None, (self.failed(str(error)),))

    def _prepare(self, engine: Engine, clock: Clock) -> Iterator[BacktestProgress | GatesProgress]:
        """Fetch a page of candles, or start the processes when all are there."""
        self._next_s = clock.mono_s() + HISTORY_EVERY_S
        try:
            state = self._load_page(engine, clock.now_ms())
            self._failures = 0
        except (ExchangeDown, ExchangeRefused) as error:
            self._failures += 1
            if self._failures == HISTORY_TRIES or isinstance(error, ExchangeRefused):
                raise DataError(f"the candles cannot be fetched: {error}. What has come is kept.") from None
            self._next_s = clock.mono_s() + HISTORY_RETRY_S
            yield self._progress(0, 0, f"No answer from Luno, trying again in {HISTORY_RETRY_S:.0f} s")
            return
        if state is None:
            self._run = self._start(engine, clock.now_ms())
        else:
            yield self._progress(state.done, state.total, f"Fetching {state.words}")

    def _load_page(self, engine: Engine, now_ms: int) -> LoadState | None:
        """One page of what the cache lacks; None when nothing is missing or nothing can be fetched."""
        parts, request = engine.parts, self._command.request
        if request.source == "folder" or not (parts.feed.saves_candles and parts.client.has_key):
            return None
        if self._history is None:
            seconds = min(request.timeframes or engine.settings.schedule.timeframes)
            days = wanted_days(engine, self._command, now_ms)
            self._history = parts.feed.history(seconds, days, now_ms, request.pairs)
        return self._history.load_page(now_ms)

    def _start(self, engine: Engine, now_ms: int) -> BacktestRun | GateRun:
        parts, request = engine.parts, self._command.request
        if isinstance(self._command, RunBacktest):
            return BacktestRun(*backtest_source(engine, request), parts.store, self._answer)
        task = gate_task(engine, request, now_ms)
        return GateRun(task, parts.store, parts.install, self._answer)

    def _progress(self, done: int, total: int, words: str) -> BacktestProgress | GatesProgress:
        kind = BacktestProgress if isinstance(self._command, RunBacktest) else GatesProgress
        return kind(done, total, words)

    def cancel(self) -> BacktestDone | GatesDone | None:
        """The answer at once, from any thread; None if there was one already."""
        if self._run is not None:
            return self._run.cancel()
        return self.failed(CANCELLED)

    def failed(self, problem: str) -> BacktestDone | GatesDone | None:
        """The answer that nothing comes of it; None if there was one already."""
        if not self._answer.take():
            return None
        return BacktestDone(None, problem) if isinstance(self._command, RunBacktest) else GatesDone("", problem)

    def end(self) -> None:
        """End its processes and wait until they have ended."""
        self._answer.take()
        if self._run is not None:
            self._run.end()


OpenEngine = Callable[[Callable[[Event], None]], tuple[Engine, WorkerOptions]]
NO_WAY_TO_LIVE = LiveOffer(("Only PAPER on Luno itself can lead to LIVE: start without --demo and --replay.",))


def answer_to(newsroom: Newsroom, engine: Engine, question: AskClose | AskWhy | AskChecks) -> object:
    """What the window asked."""
    if isinstance(question, AskWhy):
        return newsroom.why(question.pair)
    if isinstance(question, AskClose):
        return closing_offer(engine.desk, engine.parts.feed.markets, engine.settings)
    rows = engine.parts.store.results("live_checks", 1)
    return checks_from(rows[0][2] if rows else "")


def keep_checks(engine: Engine, checks: ChecksTold, now_ms: int) -> None:
    """Keep which checks with small amounts the owner says were done."""
    engine.parts.store.record_metrics(now_ms, "live_checks", {"done": sorted(checks.done)})
    text = f"Checks of LIVE with small amounts: {len(checks.done)} of {len(LIVE_CHECKS)} done, by the owner's word"
    engine.tell(Event(now_ms, "checks", "info", text))


class Worker:
    """Runs a session in a thread of its own; the window and it exchange only messages."""

    def __init__(self, open_engine: OpenEngine) -> None:
        self._open = open_engine
        self._wall = SystemClock()
        self._commands: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[object] = queue.SimpleQueue()  # what waits for no other event
        self._thread = threading.Thread(target=self._run, name="lunobiz-worker", daemon=False)
        self._closing = threading.Event()
        self._is_running = False
        self._speed = 0.0
        self._progress = ""
        self._next_s = self._news_s = 0.0
        self._export: Child | None = None
        self._asked: dict[type, Errand] = {}  # by command, the newest; of the thread that sends
        self._errands: list[Errand] = []  # of the worker's thread
        self._next_open: OpenEngine | None = None
        self._awake = KeepAwake()

    def start(self) -> None:
        """Open the session in its thread."""
        self._thread.start()

    def send(self, command: object) -> None:
        """Queue a command; a cancel is answered before this returns, whatever the worker is busy with or waits for."""
        if isinstance(command, (RunBacktest, EvaluateGates)):
            kind = type(command)
            if kind in self._asked and not self._asked[kind].is_answered:
                return  # one at a time
            command = self._asked[kind] = Errand(command)
        elif isinstance(command, (CancelBacktest, CancelGates)):
            errand = self._asked.get(RunBacktest if isinstance(command, CancelBacktest) else EvaluateGates)
            done = errand.cancel() if errand is not None else None
            if done is not None:
                self._answers.put(done)
        self._commands.put(command)

    def take_event(self) -> object | None:
        """The next event, or None."""
        for events in (self._answers, self._events):
            with contextlib.suppress(queue.Empty):
                return events.get_nowait()
        return None

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; True if it came in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        """The thread: open, loop, close; every failure becomes an event."""
        try:
            opening: OpenEngine | None = self._open
            while opening is not None:
                opening = self._run_session(*opening(self._hear))
        except LunobizError as error:
            self._events.put(Failed(str(error)))
        except Exception as error:
            self._events.put(Failed(f"The session stopped: {type(error).__name__}. The log says where."))
            raise
        finally:
            self._closing.set()
            for child in (*self._errands, self._export):
                if child is not None and not child.is_done:
                    child.end()
            self._events.put(Closed())

    def _run_session(self, engine: Engine, options: WorkerOptions) -> OpenEngine | None:
        """One session from its opening to its close; what is to be opened after it."""
        self._options, self._next_open = options, None
        self._is_running, self._speed = options.starts_running, options.speed
        ending = threading.Event()
        notices = threading.Thread(target=self._send_notices, args=(engine.parts.notifier, ending), daemon=True,
                                   name="lunobiz-notices")
        notices.start()
        self._checks = DayCheck(engine, options)
        self._chooser = Chooser(engine, options.clock)
        self._newsroom = Newsroom(engine, options, self._checks)
        self._events.put(saved_runs(engine.parts.store))
        evaluation = last_evaluation(engine.parts.store, self._wall.now_ms(), engine.settings.gates.valid_days)
        if evaluation is not None:
            self._events.put(evaluation)
        self._loop(engine)
        self._checks.end()
        self._chooser.end()
        ending.set()
        engine.close()
        return self._next_open

    def _hear(self, event: Event) -> None:
        if self._events.qsize() < EVENTS_WAITING:
            self._events.put(LogLine(event.time_ms, event.level, event.kind, event.text))

    def _send_notices(self, notifier: Notifier, ending: threading.Event) -> None:
        """The notices' thread: slow channels delay nothing but each other."""
        while not (ending.wait(NOTICE_EVERY_S) or self._closing.is_set()):
            notifier.pump()
        notifier.close()

    def _loop(self, engine: Engine) -> None:
        while True:
            try:
                command = self._commands.get(timeout=self._patience_s())
            except queue.Empty:
                command = None
            if isinstance(command, Shutdown):
                return
            if command is not None:
                self._obey(engine, command)
            if self._next_open is not None:
                return
            self._step(engine)
            is_exposed = bool(engine.desk.positions or engine.desk.orders)
            self._awake.hold(self._is_running and is_exposed and engine.parts.mode in (Mode.PAPER, Mode.LIVE))
            self._look_after_children(engine)
            self._post(engine, is_urgent=command is not None)

    def _patience_s(self) -> float:
        """Seconds until something is due, never more than a fifth."""
        return min(NEWS_EVERY_S, max(0.0, self._next_s - self._wall.mono_s())) if self._is_running else NEWS_EVERY_S

    def _step(self, engine: Engine) -> None:
        """Do what is due: a page of history, or beats until the speed is kept or the time is used up."""
        started = self._wall.mono_s()
        while self._is_running and self._next_s <= self._wall.mono_s() < started + STEP_BUDGET_S:
            if self._load(engine):
                return
            reports = engine.step()
            if reports is None:
                self._is_running = False
                self._events.put(Note("info", "The recording has ended"))
                return
            self._newsroom.add(reports)
            self._next_s = max(self._next_s, started) + self._pause_s(engine)

    def _load(self, engine: Engine) -> bool:
        """Fetch a page of history; True while there is more to fetch or the exchange does not answer."""
        try:
            state = engine.load(self._options.clock.now_ms())
        except (ExchangeDown, ExchangeRefused) as error:
            self._progress = f"History cannot be loaded: {error}. Trying again."
            self._next_s = self._wall.mono_s() + 10
            return True
        self._progress = "" if state is None else f"Loading {state.words} ({state.done} of {state.total} done)"
        return state is not None

    def _pause_s(self, engine: Engine) -> float:
        pause = engine.parts.pace.wait_s()
        return pause / self._speed if self._speed > 0 else 0.0

    def _post(self, engine: Engine, is_urgent: bool) -> None:
        """Tell the window, at most five times a second."""
        now = self._wall.mono_s()
        has_room = self._events.qsize() < EVENTS_WAITING
        if has_room and (is_urgent or now - self._news_s >= NEWS_EVERY_S):
            self._news_s = now
            self._events.put(self._newsroom.news(self._is_running, self._speed, self._progress))

    def _obey(self, engine: Engine, command: object) -> None:
        """Carry out one command of the window."""
        now = self._options.clock.now_ms()
        if isinstance(command, (Start, Stop)):
            self._is_running = isinstance(command, Start)
            self._next_s = self._wall.mono_s()
        elif isinstance(command, SetSpeed):
            self._speed, self._next_s = max(0.0, command.speed), self._wall.mono_s()
        elif isinstance(command, (Rearm, ResolveHalt, CloseAll)):
            problem = (close_all(engine, now, command.marks) if isinstance(command, CloseAll) else
                       engine.rearm(now) if isinstance(command, Rearm) else engine.resolve_halt(now))
            if problem:
                self._events.put(Note("warning", problem))
        elif isinstance(command, (AskClose, AskWhy, AskChecks)):
            self._events.put(answer_to(self._newsroom, engine, command))
        elif isinstance(command, ChecksTold):
            keep_checks(engine, command, self._wall.now_ms())
        elif isinstance(command, SaveKey):
            self._events.put(Note("info", self._options.save_key(command.key_id, command.secret)))
        elif isinstance(command, (AskLive, RequestLive, LeaveLive)):
            self._obey_live(engine, command)
        else:
            self._obey_long(engine, command)

    def _obey_live(self, engine: Engine, command: AskLive | RequestLive | LeaveLive) -> None:
        """Tell what is between PAPER and LIVE, or change over when nothing is; each time all is asked anew."""
        if isinstance(command, LeaveLive):
            self._next_open = self._open if engine.parts.mode is Mode.LIVE else None
            return
        ask, way = self._options.offer_live, self._options.open_live
        offer = NO_WAY_TO_LIVE if ask is None else ask(engine)
        if isinstance(command, AskLive):
            self._events.put(offer)
        elif offer.problems or way is None:
            self._events.put(Note("error", f"Still in PAPER: {offer.problems[0]}"))
        elif command.word != LIVE_WORD or set(command.promises) != set(offer.promises):
            self._events.put(Note("error", f"Still in PAPER: type {LIVE_WORD} and tick every line"))
        else:
            self._next_open = lambda listen: self._open_live(way, listen)

    def _open_live(self, way: OpenEngine, listen: Callable[[Event], None]) -> tuple[Engine, WorkerOptions]:
        """A LIVE session, or PAPER again if there cannot be one."""
        try:
            return way(listen)
        except LunobizError as error:
            self._events.put(Note("error", f"Back in PAPER: {error}"))
            return self._open(listen)

    def _obey_long(self, engine: Engine, command: object) -> None:
        """Commands that start or end a process."""
        if isinstance(command, Errand):
            self._errands.append(command)
        elif isinstance(command, Export) and self._export is None:
            now_ms = self._wall.now_ms()
            self._export = Child(_export_child, str(self._options.database), command.folder, now_ms)

    def _tell(self, engine: Engine, message: object) -> None:
        """Pass on what an errand says; an evaluation with what now locks LIVE, a finished run with the list of all."""
        if isinstance(message, GatesDone):
            locks = engine.lock_reasons(self._wall.now_ms(), is_fresh=True)
            message = replace(message, note=message.note or (locks[0] if locks else GATES_OPEN))
        self._events.put(message)
        if isinstance(message, (GatesDone, BacktestDone)):
            self._events.put(saved_runs(engine.parts.store))

    def _look_after_children(self, engine: Engine) -> None:
        """Pass on what the processes say, and see to their ends."""
        self._checks.look_after()
        self._chooser.look_after()
        if self._export is not None:
            for message in self._export.poll():
                self._events.put(message)
            self._export = None if self._export.is_done else self._export
        for errand in self._errands:
            for message in errand.poll(engine, self._wall):
                self._tell(engine, message)
        self._errands = [errand for errand in self._errands if not errand.is_done]


FaultHook = Callable[[type[BaseException], BaseException | None, types.TracebackType | None], None]


def hook_threads(on_fault: FaultHook) -> None:
    """Have every error that ends a thread told to `on_fault`."""
    threading.excepthook = lambda told: on_fault(told.exc_type, told.exc_value, told.exc_traceback)


# ==============================================================================
# WIDGETS | the parts every screen is made of
# shell | uses TYPES ROWS | owns tkinter ttkbootstrap
# ==============================================================================

from typing import TYPE_CHECKING, Literal

# the toolkit itself is imported when a window opens: spawned children and headless runs never load it
if TYPE_CHECKING:
    import tkinter
    import tkinter.font

    import ttkbootstrap as ttk
FAMILIES = ("Segoe UI", "Noto Sans", "DejaVu Sans", "Consolas")
BASE_POINTS = 10
ROW_SPACING = 1.45  # row height in line heights
CELL_PADDING = 8  # what a Treeview leaves left and right of a cell's text together, in pixels at 96 dpi
COLUMN_GAP = "  "  # in front of left-aligned text: the column before it may end in digits
BANDED_ROWS = 60
WIDE = 900  # two tables stand side by side from this width on, in pixels at 96 dpi
# how far the status strip can be squeezed: roomy, snug, short notes, no notes, small
STRIP_LEVELS, NO_NOTES, STRIP_PADS = 5, 3, (11, 7, 4, 3, 2)
LEVEL_GLYPHS = types.MappingProxyType({"error": "✖", "warning": "▲", "info": "●"})


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of values, bars and banners; a pair is background and text."""

    band: str
    tones: Mapping[str, str]
    modes: Mapping[str, tuple[str, str]]
    banners: Mapping[str, tuple[str, str]]
    chosen: str  # behind a selected row, whose text keeps its tone

    @property
    def muted(self) -> str:
        """The colour of what is less important."""
        return self.tones["muted"]


def palette_of(is_dark: bool) -> Palette:
    """Blue and orange keep their distance for colour-blind eyes, where green and red do not."""
    if is_dark:
        orange, amber = ("#e07b2c", "#140b03"), ("#f2c14e", "#1c1500")
        return Palette(
            "#1f2731",
            {"up": "#5ab0ff", "down": "#ff9a4d", "muted": "#8b98a5", "warn": "#f2c14e", "error": "#ff9a4d"},
            {"paper": ("#5898db", "#0b1420"), "live": orange, "demo": ("#38b897", "#06201a"), "test": amber},
            {"error": orange, "warning": ("#edb332", "#1c1500"), "info": ("#24384f", "#dcebfa")},
            "#2b4057",
        )
    orange, amber = ("#b84a00", "#ffffff"), ("#8a5a00", "#ffffff")
    return Palette(
        "#eef1f6",
        {"up": "#0b5cad", "down": "#b84a00", "muted": "#5b6672", "warn": "#8a5a00", "error": "#b84a00"},
        {"paper": ("#2765ab", "#ffffff"), "live": orange, "demo": ("#0a6b54", "#ffffff"), "test": amber},
        {"error": orange, "warning": ("#f2c14e", "#241a00"), "info": ("#d7e6f6", "#0e2f52")},
        "#c9dcf2",
    )


PackedWidget = TypeVar("PackedWidget", bound="tkinter.Widget")


def packed(widget: PackedWidget, **options: object) -> PackedWidget:
    """The widget, packed into its parent."""
    widget.pack(options)
    return widget


def has_even_digits(measure: Callable[[str], int]) -> bool:
    """True when all ten digits are equally wide, so that columns of numbers line up."""
    return len({measure(digit * 8) for digit in "0123456789"}) == 1


def digit_family(root: tkinter.Misc) -> str:
    """The first known font family that is installed and has digits of equal width."""
    from tkinter import font
    installed = set(font.families(root))
    for family in FAMILIES:
        if family in installed and has_even_digits(font.Font(root, family=family, size=BASE_POINTS).measure):
            return family
    return str(font.nametofont("TkFixedFont", root).actual("family"))


# colour, top of the wick, top and bottom of the body, foot of the wick; in parts of the icon's height
ICON_CANDLES = (
    ((0xF0, 0x8A, 0x3C), 0.40, 0.50, 0.74, 0.84),
    ((0x5A, 0xB0, 0xFF), 0.27, 0.36, 0.65, 0.74),
    ((0x5A, 0xB0, 0xFF), 0.14, 0.22, 0.49, 0.60),
)
ICON_GROUND, ICON_CORNER, ICON_SIZES = (0x1B, 0x2A, 0x3D), 0.2, (16, 24, 32, 48, 64)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Rows of red, green, blue and opacity as a PNG file."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = b"".join(n.to_bytes(4, "big") for n in (width, height)) + b"\x08\x06\0\0\0"
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in parts)


def icon_png(size: int) -> bytes:
    """The program's icon as a PNG of so many pixels: three candles, drawn anew for each size on whole pixels."""
    pixels = np.empty((size, size, 4), np.uint8)
    radius, middle = size * ICON_CORNER, np.arange(size) + 0.5
    beyond = np.maximum(np.maximum(radius - middle, middle - (size - radius)), 0.0)
    pixels[:, :, :3] = ICON_GROUND
    pixels[:, :, 3] = np.clip(radius - np.hypot(beyond[:, None], beyond) + 0.5, 0, 1) * 255
    wick, side, gap = max(1, round(size * 0.06)), max(1, int(size * 0.075)), max(1, round(size * 0.08))
    body = wick + 2 * side
    left = (size - 3 * body - 2 * gap) // 2
    for colour, *heights in ICON_CANDLES:
        high, top, bottom, low = (round(size * height) for height in heights)
        pixels[top:bottom, left : left + body, :3] = colour
        pixels[high:low, left + side : left + side + wick, :3] = colour
        left += body + gap
    return _png(pixels)


def open_root(title: str, is_dark: bool) -> ttk.App:
    """The root window in the program's own theme and with its icon, still empty and hidden."""
    import tkinter

    import ttkbootstrap as ttk
    ttk.Theme(
        name="ledger", primary="#2f7fd1", success="#0a9d78", info="#56b4e9", warning="#e69f00", danger="#d55e00",
        secondary="#6c7a89", neutral="#8a96a3", light={"background": "#f7f8fa", "foreground": "#1c2430"},
        dark={"background": "#161b22", "foreground": "#e6edf3"},
    ).register()
    theme = "ledger-dark" if is_dark else "ledger-light"
    root = ttk.App(title=title, theme=theme, light_theme="ledger-light", dark_theme="ledger-dark")
    root.withdraw()
    root.iconphoto(True, *(tkinter.PhotoImage(master=root, data=icon_png(size)) for size in ICON_SIZES))
    return root


class Look:
    """Fonts, colours and sizes, in one place; `on_change` calls back when light and dark are switched."""

    def __init__(self, root: ttk.App) -> None:
        import ttkbootstrap as ttk
        self.root = root
        self._listeners: list[Callable[[], None]] = []
        family = digit_family(root)
        ttk.Fonts.set_global_family(family)
        for name in ("TkDefaultFont", "TkTextFont", "TkMenuFont", "TkHeadingFont", "TkTooltipFont"):
            ttk.Fonts.configure(name, size=BASE_POINTS, weight="normal")
        self.body = self._font("body", family, 0)
        self.bold = self._font("bold", family, 0, "bold")
        self.small = self._font("small", family, -1)
        self.caption = self._font("caption", family, -2)
        self.title = self._font("title", family, 3, "bold")
        self.values = tuple(self._font(f"value{n}", family, n, "bold") for n in (4, 3, 1, 1, 0))  # by strip level
        self.palette = palette_of(is_dark=True)
        self.plain = self.field = ""
        root.style.on_theme_change(self._restyle)

    def _font(self, name: str, family: str, larger: int, weight: str = "normal") -> tkinter.font.Font:
        import ttkbootstrap as ttk
        return ttk.Fonts.create_alias(f"Luno{name}", family=family, size=BASE_POINTS + larger, weight=weight)

    @property
    def is_dark(self) -> bool:
        """True while the dark theme is in use."""
        return self.root.theme_mode == "dark"

    def px(self, size: float) -> int:
        """A length given in pixels at 96 dpi, in pixels of this screen."""
        import ttkbootstrap as ttk
        return int(ttk.scale_size(self.root, size))

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every switch of the theme, and once now."""
        self._listeners.append(listener)
        listener()

    def colour(self, tone: str) -> str:
        """The text colour of a tone; plain text keeps the theme's."""
        return self.palette.tones.get(tone, self.plain)

    def toggle(self) -> None:
        """Switch between light and dark."""
        self.root.toggle_theme()

    def _restyle(self, style: ttk.Style) -> None:
        """Tag colours and own styles are not part of a theme: set them again after every switch."""
        self.palette = palette_of(self.is_dark)
        self.plain, self.field = str(style.colors.fg), str(style.colors.inputbg)
        px, muted = self.px, self.palette.muted
        style.configure("Treeview", font=self.body, rowheight=round(self.body.metrics("linespace") * ROW_SPACING))
        style.configure("Treeview.Heading", font=self.bold, foreground=muted, padding=(px(2), px(5)))
        style.map("Treeview.Heading", foreground=[("active", self.plain)])
        style.map("Treeview", foreground=[], background=[("selected", self.palette.chosen)])
        style.configure("TNotebook.Tab", padding=(px(14), px(6)))
        for listener in self._listeners:
            listener()


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading and usual text; a narrow table leaves out those with a rank, the lowest first."""

    heading: str
    sample: str
    is_number: bool = False
    stretches: bool = False
    rank: int = 0


def copy_text(widget: tkinter.Misc, text: str) -> None:
    """Put text on the clipboard; nothing selected leaves the clipboard alone."""
    if text:
        widget.clipboard_clear()
        widget.clipboard_append(text)


class Table:
    """A titled Treeview, updated in place by the keys of its rows: selection, scroll and focus stay."""

    def __init__(self, parent: tkinter.Misc, look: Look, title: str, columns: Sequence[Column], empty: str) -> None:
        import ttkbootstrap as ttk
        self.look, self.columns, self.keeps_newest = look, tuple(columns), False
        self.frame = ttk.Frame(parent, padding=(look.px(6), look.px(4)))
        self.on_open: Callable[[tuple[str, ...], tuple[str, ...]], None] | None = None
        self._order: list[str] = []
        self._shown: dict[str, tuple[Row, bool]] = {}
        self._hidden: list[int] = []
        self._rooms: dict[int, int] = {}
        self._head(title)
        self._build_tree()
        self._empty = ttk.Label(self.tree, text=empty, justify="center", anchor="center", font=look.body)
        self._measure(self.columns)
        look.on_change(self.recolour)
        self._show_emptiness()

    def _head(self, title: str) -> None:
        import ttkbootstrap as ttk
        self.head = ttk.Frame(self.frame)
        self.head.grid(row=0, column=0, columnspan=2, sticky="ew", pady=(0, self.look.px(4)))
        self._title = packed(ttk.Label(self.head, text=title, font=self.look.bold), side="left")
        count = ttk.Label(self.head, text="0", font=self.look.small)
        self.count = packed(count, side="left", padx=self.look.px(8))
        self._absent = packed(ttk.Label(self.head, font=self.look.caption), side="left")
        self.frame.columnconfigure(0, weight=1)
        self.frame.rowconfigure(1, weight=1)

    def _build_tree(self) -> None:
        import ttkbootstrap as ttk
        names = [str(i) for i in range(len(self.columns))]
        self.tree = ttk.Treeview(self.frame, columns=names, displaycolumns=names, show="headings", height=3)
        self.tree.grid(row=1, column=0, sticky="nsew")
        self._vertical = ttk.Scrollbar(self.frame, orient="vertical", command=self.tree.yview)
        self._horizontal = ttk.Scrollbar(self.frame, orient="horizontal", command=self.tree.xview)
        self._vertical.grid(row=1, column=1, sticky="ns")
        self._horizontal.grid(row=2, column=0, sticky="ew")
        self.tree.configure(
            yscrollcommand=lambda first, last: self._scrolled(self._vertical, first, last),
            xscrollcommand=lambda first, last: self._scrolled(self._horizontal, first, last),
        )
        self.tree.bind("<Configure>", lambda event: self._arrange())
        for sequence in ("<Control-c>", "<Control-C>"):
            self.tree.bind(sequence, self._copy)
        for sequence in ("<Double-1>", "<Return>"):
            self.tree.bind(sequence, self.open)

    def _scrolled(self, bar: ttk.Scrollbar, first: str, last: str) -> None:
        """A scrollbar is there only while something is out of sight."""
        bar.set(first, last)
        if float(first) <= 0 and float(last) >= 1:
            bar.grid_remove()
        else:
            bar.grid()

    def _measure(self, columns: Sequence[Column]) -> None:
        """Headings, alignment and widths from the font; fixed pixels would cut digits on other screens."""
        self.columns = tuple(columns)
        self._widths = []
        for index, column in enumerate(self.columns):
            side: Literal["e", "w"] = "e" if column.is_number else "w"
            text, sample = self._padded(index, column.heading), self._padded(index, column.sample)
            self._widths.append(0)
            self.tree.heading(str(index), text=text, anchor=side)
            self.tree.column(str(index), anchor=side, stretch=column.stretches)
            self._widen(index, max(self.look.bold.measure(text), self.look.body.measure(sample)))

    def _widen(self, index: int, text_width: int) -> None:
        width = text_width + self.look.px(CELL_PADDING) + 4
        if width > self._widths[index]:
            self._widths[index] = width
            self.tree.column(str(index), width=width, minwidth=width)

    def _arrange(self) -> None:
        """Leave out what a narrow table has no room for, say so, and cut the texts of the stretching column."""
        room = self.tree.winfo_width() - self.look.px(4)
        shown = list(range(len(self.columns)))
        for index in sorted((i for i in shown if self.columns[i].rank), key=lambda i: self.columns[i].rank):
            if sum(self._widths[i] for i in shown) > room > 1:
                shown.remove(index)
        hidden = [i for i in range(len(self.columns)) if i not in shown]
        if hidden != self._hidden:
            self._hidden = hidden
            self.tree.configure(displaycolumns=[str(i) for i in shown])
            names = ", ".join(self.columns[i].heading for i in hidden)
            self._absent.configure(text=f"no room for {names}" if names else "")
        stretching = [i for i in shown if self.columns[i].stretches]
        spare = room - sum(self._widths[i] for i in shown if i not in stretching)
        for index in stretching:
            width = max(self._widths[index], spare // len(stretching))
            self.tree.column(str(index), width=width)  # Tk would not fill the gap of a column left out
            self._rooms[index] = width - self.look.px(CELL_PADDING)
            self._cut(index)

    def _cut(self, index: int) -> None:
        for key in self._order:
            text = self._fitting(index, self._padded(index, self._shown[key][0].cells[index]))
            if self.tree.set(key, str(index)) != text:
                self.tree.set(key, str(index), text)

    def _fitting(self, index: int, text: str) -> str:
        """The text, or as much of it as fits, with an ellipsis: a Treeview would cut it within a letter."""
        width, room = self.look.body.measure(text), self._rooms.get(index, 0)
        if width <= room or room <= 0:
            return text
        length = len(text) * room // width
        while length > 0 and self.look.body.measure(text[:length] + "…") > room:
            length -= 1
        return text[:length].rstrip() + "…"

    def _padded(self, index: int, text: str) -> str:
        """Left-aligned text keeps away from digits that end right before it."""
        before = [c for i, c in enumerate(self.columns[:index]) if i == index - 1 or not c.rank][-2:]
        is_apart = not self.columns[index].is_number and any(column.is_number for column in before)
        return COLUMN_GAP + text if is_apart else text

    def set_columns(self, columns: Sequence[Column]) -> None:
        """Other headings over the same columns, as when the currency becomes known."""
        if tuple(columns) != self.columns:
            self._measure(columns)

    def set_empty(self, text: str) -> None:
        """What to say while there are no rows: what is missing and what will fill it."""
        self._empty.configure(text=text)

    def set_title(self, text: str) -> None:
        """Another title."""
        self._title.configure(text=text)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the rows in the order they are shown."""
        return tuple(self._order)

    def show(self, rows: Sequence[Row]) -> None:
        """Make the table show these rows, touching only what differs."""
        anchor, widths = self._anchor(), list(self._widths)
        wanted = {row.key for row in rows}
        gone = [key for key in self._order if key not in wanted]
        if gone:
            self.tree.delete(*gone)
        self._order = [key for key in self._order if key in wanted]
        self._shown = {key: self._shown[key] for key in self._order}
        for index, row in enumerate(rows):
            self._put(index, row, len(rows) <= BANDED_ROWS and index % 2 == 1)
        if widths != self._widths:
            self._arrange()
        self.count.configure(text=f"{len(rows):,}")
        self._return_to(anchor)
        self._show_emptiness()

    def _put(self, index: int, row: Row, is_band: bool) -> None:
        tags = (row.tone or "plain", "band") if is_band else (row.tone or "plain",)
        if row.key not in self._shown:
            self.tree.insert("", index, iid=row.key, values=self._values(row), tags=tags)
            self._order.insert(index, row.key)
        elif self._order[index] != row.key:
            self.tree.move(row.key, "", index)
            self._order.remove(row.key)
            self._order.insert(index, row.key)
        if self._shown.get(row.key, (row, is_band)) != (row, is_band):
            self.tree.item(row.key, values=self._values(row), tags=tags)
        self._shown[row.key] = (row, is_band)

    def _values(self, row: Row) -> tuple[str, ...]:
        texts = [self._padded(index, text) for index, text in enumerate(row.cells)]
        for index, text in enumerate(texts):
            if self.columns[index].stretches:
                texts[index] = self._fitting(index, text)
            else:
                self._widen(index, self.look.body.measure(text))
        return tuple(texts)

    def _anchor(self) -> str:
        """The row at the top of the view, if the view was scrolled and should stay where it is."""
        if self.keeps_newest or not self._order or self.tree.yview()[0] <= 0:
            return ""
        return self._order[min(len(self._order) - 1, round(self.tree.yview()[0] * len(self._order)))]

    def _return_to(self, anchor: str) -> None:
        if self.keeps_newest:
            self.tree.yview_moveto(0)
        elif anchor in self._shown:
            self.tree.yview_moveto(self._order.index(anchor) / len(self._order))

    def _show_emptiness(self) -> None:
        if self._order:
            self._empty.place_forget()
        else:
            self._empty.place_configure(relx=0.5, rely=0.55, anchor="center")

    def recolour(self) -> None:
        """Tag colours after a switch of the theme."""
        for tone in ("up", "down", "muted", "warn", "error", "plain"):
            self.tree.tag_configure(tone, foreground=self.look.colour(tone))
        self.tree.tag_configure("band", background=self.look.palette.band)
        for label in (self.count, self._absent):
            label.configure(foreground=self.look.palette.muted)
        self._empty.configure(background=self.look.field, foreground=self.look.palette.muted)

    def selected_text(self) -> str:
        """The selected rows as tab-separated lines, as they can be pasted into a sheet."""
        rows = [self._shown[key][0] for key in self._order if key in self.tree.selection()]
        return "\n".join("\t".join(row.cells) for row in rows)

    def _copy(self, event: tkinter.Event[tkinter.Misc]) -> str:
        copy_text(self.tree, self.selected_text())
        return "break"

    def open(self, event: tkinter.Event[tkinter.Misc] | None = None) -> None:
        """Show the row that was chosen last in full, or the first one."""
        chosen = self.tree.focus() or next(iter(self._shown), "")
        if self.on_open is not None and chosen in self._shown:
            self.on_open(tuple(c.heading for c in self.columns), self._shown[chosen][0].cells)


def add_tip(widget: tkinter.Misc, text: str) -> ttk.ToolTip:
    """A tooltip whose text can be changed later with `configure(text=...)`."""
    import ttkbootstrap as ttk
    return ttk.ToolTip(widget, text=text, delay=400)


def fit_on_screen(root: ttk.App, look: Look, wanted: tuple[int, int], smallest: tuple[int, int]) -> None:
    """Size and place the window: logical pixels, but never larger than the screen; then show it."""
    room = (root.winfo_screenwidth(), root.winfo_screenheight())
    width, height = (min(look.px(size), limit) for size, limit in zip(wanted, room, strict=True))
    root.minsize(*(min(look.px(size), limit) for size, limit in zip(smallest, room, strict=True)))
    root.geometry(f"{width}x{height}+{(room[0] - width) // 2}+{(room[1] - height) // 4}")
    root.deiconify()


class Prose:
    """A text that wraps at the width it is given, in a tone; `lines` are kept free for it."""

    def __init__(self, parent: tkinter.Misc, look: Look, font: tkinter.font.Font, lines: int = 0,
                 side: str = "top", pad: int = 8) -> None:
        import ttkbootstrap as ttk
        self._look, self._tone = look, ""
        frame = packed(ttk.Frame(parent, padding=(look.px(pad), look.px(4), look.px(pad), 0)), fill="x", side=side)
        if lines:
            ttk.Frame(frame, height=lines * font.metrics("linespace") + look.px(4)).pack(side="right")
        self.label = packed(ttk.Label(frame, font=font, justify="left", anchor="nw"), side="left", fill="both",
                            expand=True)
        self.label.bind("<Configure>", lambda event: self.label.configure(wraplength=max(200, event.width - 4)))
        look.on_change(self.recolour)

    def say(self, text: str, tone: str | None = None) -> None:
        """Another text, and another tone if one is given."""
        self._tone = self._tone if tone is None else tone
        self.label.configure(text=text)
        self.recolour()

    def recolour(self) -> None:
        """Colours after a switch of the theme."""
        self.label.configure(foreground=self._look.colour(self._tone))


class Halves:
    """Two tables side by side where there is room, their widths by weight, else one above the other."""

    def __init__(self, parent: tkinter.Misc, look: Look, weights: tuple[int, int] = (1, 1)) -> None:
        import ttkbootstrap as ttk
        self._look, self._weights, self._is_wide = look, weights, False
        self.frame = packed(ttk.Frame(parent), fill="both", expand=True)

    def put(self, first: Table, second: Table) -> None:
        """The two tables; their frames are children of this one."""
        self._tables = (first, second)
        self._arrange(is_wide=False)
        self.frame.bind("<Configure>", lambda event: self._fit(event.width))

    def _fit(self, width: int) -> None:
        is_wide = width >= self._look.px(WIDE)
        if is_wide != self._is_wide:
            self._arrange(is_wide)

    def _arrange(self, is_wide: bool) -> None:
        """Shares go by weight alone, or a long text would squeeze the other table out."""
        self._is_wide = is_wide
        for index, (table, weight) in enumerate(zip(self._tables, self._weights, strict=True)):
            table.frame.grid(row=0 if is_wide else index, column=index if is_wide else 0, sticky="nsew")
            row, column = (1 if index == 0 else 0, weight) if is_wide else (1, 1 if index == 0 else 0)
            self.frame.rowconfigure(index, weight=row, uniform="halves" if row else "")
            self.frame.columnconfigure(index, weight=column, uniform="halves" if column else "")


class Tempo:
    """How fast a job goes, from what was done over the last half minute."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=60)
        self._started_s = 0.0

    def start(self, now_s: float) -> None:
        """A new job starts."""
        self._marks.clear()
        self._started_s = now_s

    def note(self, now_s: float, done: int) -> None:
        """So much is done now."""
        while self._marks and (now_s - self._marks[0][0] > 30 or done < self._marks[-1][1]):
            self._marks.popleft()
        self._marks.append((now_s, done))

    def elapsed_text(self, now_s: float) -> str:
        """The time since the start."""
        return countdown_text((now_s - self._started_s) * 1000)

    @property
    def per_s(self) -> float:
        """Steps a second, 0 while it cannot be told."""
        if len(self._marks) < 2 or self._marks[-1][0] <= self._marks[0][0]:
            return 0.0
        return (self._marks[-1][1] - self._marks[0][1]) / (self._marks[-1][0] - self._marks[0][0])

    def left_text(self, done: int, total: int) -> str:
        """About how long the rest takes, in steps of five seconds; nothing before 5 % are done."""
        if self.per_s <= 0 or done < 0.05 * total or done >= total:
            return ""
        return f"about {countdown_text(max(5, round((total - done) / self.per_s / 5) * 5) * 1000)} left"


class ReadingCell:
    """One cell of the strip: caption, value, and a line below; optionally a thin bar in place of the value."""

    def __init__(self, parent: tkinter.Misc, look: Look, has_bar: bool = False) -> None:
        import ttkbootstrap as ttk
        self._look, self._reading, self._level = look, Reading("", DASH), 0
        self.line = ttk.Separator(parent, orient="vertical")
        self.frame = ttk.Frame(parent)
        self._caption, self._value, self._note = (
            ttk.Label(self.frame, font=font) for font in (look.caption, look.values[0], look.small)
        )
        for row, label in enumerate((self._caption, self._value, self._note)):
            label.grid(row=row, sticky="w")
        self._value.configure(text=DASH)
        self._bar = ttk.Progressbar(self.frame, maximum=1.0, length=look.px(110)) if has_bar else None
        if self._bar is not None:
            self._value.grid_remove()
            self._bar.grid(row=1, sticky="ew", pady=look.px(7))

    def show(self, reading: Reading, used: float = 0.0) -> None:
        """Show a reading; `used` fills the bar."""
        if reading == self._reading:
            return
        self._reading = reading
        if self._bar is not None:
            self._bar.configure(value=used, bootstyle="warning" if reading.tone else "primary")
        self._write()

    def _write(self) -> None:
        reading = self._reading
        self._caption.configure(text=reading.caption)
        self._value.configure(text=reading.value, foreground=self._look.colour(reading.tone))
        self._note.configure(text=(reading.short or reading.note) if self._level >= 2 else reading.note)

    def squeeze(self, level: int) -> None:
        """Take less room: smaller values, short notes, at last no notes."""
        self._level = level
        self._value.configure(font=self._look.values[level])
        if self._bar is not None:
            self._bar.configure(length=self._look.px(60 if level > NO_NOTES else 110))
        if level >= NO_NOTES:
            self._note.grid_remove()
        else:
            self._note.grid()
        self._write()

    @property
    def width(self) -> int:
        """The width the cell asks for, without what stands around it."""
        parts = [self._caption, self._bar or self._value, *([self._note] if self._level < NO_NOTES else [])]
        return max(part.winfo_reqwidth() for part in parts)

    def fade(self, note: str) -> None:
        """Mute a figure that is too old to be trusted and say how old it is."""
        self._value.configure(foreground=self._look.palette.muted)
        self._note.configure(text=note)

    def recolour(self) -> None:
        """Colours after a switch of the theme."""
        for label in (self._caption, self._note):
            label.configure(foreground=self._look.palette.muted)
        self._write()


class StatusStrip:
    """Mode, state and money across the top, with the clock and the kill switch at the right."""

    def __init__(self, parent: tkinter.Misc, look: Look, on_kill: Callable[[], None]) -> None:
        import ttkbootstrap as ttk
        self._look, self._level = look, 0
        self._status: Status | None = None
        self.bar = ttk.TkFrame(parent, autostyle=False, height=look.px(4))
        self.frame = ttk.Frame(parent, padding=(look.px(8), look.px(8), look.px(8), look.px(6)))
        self._build_right(on_kill)
        self._build_left()
        self.frame.bind("<Configure>", lambda event: self.fit())
        look.on_change(self.recolour)

    def _build_right(self, on_kill: Callable[[], None]) -> None:
        """The kill switch and the clock are packed first: a narrow window must not lose them."""
        import ttkbootstrap as ttk
        px = self._look.px
        kill = ttk.Button(self.frame, text="KILL SWITCH", bootstyle="danger-outline", command=on_kill)
        self.kill = packed(kill, side="right", padx=(px(8), 0), ipady=px(6))
        add_tip(self.kill, "Stop all new orders at once (F9). Entry orders are cancelled, stops stay.")
        clock = packed(ttk.Frame(self.frame), side="right", padx=px(6))
        self._clock = packed(ttk.Label(clock, font=self._look.bold, anchor="e"), anchor="e")
        self._clock_note = packed(ttk.Label(clock, font=self._look.small, anchor="e"), anchor="e")

    def _build_left(self) -> None:
        import ttkbootstrap as ttk
        px = self._look.px
        left = packed(ttk.Frame(self.frame), side="left")
        pill = ttk.TkLabel(left, autostyle=False, font=self._look.title, padx=px(12), pady=px(5))
        self._pill = packed(pill, fill="x")
        self._run = packed(ttk.Label(left, font=self._look.small, anchor="center"), pady=(px(2), 0))
        names = ("state", "equity", "cash", "exposure", "day", "cap", "api")
        self._cells = {name: ReadingCell(self.frame, self._look, has_bar=name == "cap") for name in names}
        for cell in self._cells.values():
            cell.line.pack(side="left", fill="y", padx=px(10))
            cell.frame.pack(side="left", anchor="n")

    def show(self, status: Status) -> None:
        """Show the newest status."""
        if status == self._status:
            return
        self._status = status
        readings = (status.state, status.equity, status.cash, status.exposure, status.day, status.cap, status.api)
        for cell, reading in zip(self._cells.values(), readings, strict=True):
            cell.show(reading, status.cap_used)
        self._pill.configure(text=status.mode)
        self._run.configure(text=status.run.value, foreground=self._look.colour(status.run.tone))
        solid = "danger" if status.mode_tone == "live" else "danger-outline"
        text, style = ("Re-arm…", "warning-outline") if status.is_killed else ("KILL SWITCH", solid)
        if self.kill.cget("text") != text:
            self.kill.configure(text=text, bootstyle=style)
        self._paint_mode(status.mode_tone)
        self.fit(only_if_short=True)

    def show_clock(self, text: str, note: str) -> None:
        """The time, and what it means or the same in UTC."""
        self._clock.configure(text=text)
        self._clock_note.configure(text=note)

    def fade(self, note: str) -> None:
        """Mute everything when the worker has been silent: old figures must not look new."""
        for cell in self._cells.values():
            cell.fade(note)

    def unfade(self) -> None:
        """Write the figures in their own colours, once fresh ones have come or the theme was switched."""
        for cell in self._cells.values():
            cell.recolour()

    def fit(self, only_if_short: bool = False) -> None:
        """Squeeze the cells just as far as the width of the window asks for."""
        room = self.frame.winfo_width()
        if room <= 1 or (only_if_short and self._needed() <= room):
            return
        for level in range(STRIP_LEVELS):
            self._squeeze(level)
            if self._needed() <= room:
                break

    def _squeeze(self, level: int) -> None:
        self._level, pad = level, self._look.px(STRIP_PADS[level])
        for cell in self._cells.values():
            cell.squeeze(level)
            cell.line.pack_configure(padx=pad)
        font = self._look.title if level < 2 else self._look.bold
        self._pill.configure(font=font, padx=self._look.px((12, 10, 8, 6, 4)[level]))

    def _needed(self) -> int:
        """The width all parts ask for now; the packer itself would only tell after the next redraw."""
        around = 2 * self._look.px(STRIP_PADS[self._level]) + self._look.px(2)
        cells = sum(cell.width + around for cell in self._cells.values())
        pill = max(self._pill.winfo_reqwidth(), self._run.winfo_reqwidth())
        clock = max(self._clock.winfo_reqwidth(), self._clock_note.winfo_reqwidth())
        return cells + pill + clock + self.kill.winfo_reqwidth() + self._look.px(16 + 12 + 8 + 6)

    def _paint_mode(self, tone: str) -> None:
        background, text = self._look.palette.modes[tone]
        self.bar.configure(background=background)
        self._pill.configure(background=background, foreground=text)

    def recolour(self) -> None:
        """Colours after a switch of the theme."""
        self.unfade()
        self._clock_note.configure(foreground=self._look.palette.muted)
        self._paint_mode("demo" if self._status is None else self._status.mode_tone)
        if self._status is not None:
            self._run.configure(foreground=self._look.colour(self._status.run.tone))


# ==============================================================================
# PANELS | the screens of the window, each fed with rows
# shell | uses TYPES SETTINGS METRICS ROWS SYSTEM JOBS WIDGETS | owns tkinter ttkbootstrap
# ==============================================================================

from functools import partial

LOG_ROWS, BANNERS_SHOWN = 2_000, 2
QUIET_DECISIONS = frozenset(("HOLD", "WAIT"))
LOG_LEVELS = ("All", "Warnings and errors", "Errors")
NO_ORDERS = "No orders and no stops.\nWhat the bot has sent, and where it is watched, is listed here."
NO_COINS = "Nothing to tell apart.\nIn LIVE this lists the coins at Luno: the bot's, yours, and what nothing explains."
NO_POSITIONS = "No open positions.\nThe bot opens one when a signal passes every risk check."
NO_RANKING = "No market has been ranked yet.\nMarkets are ranked at each closed candle once the bot is started."
NO_RANKING_YET = "Waiting for the first candle to close.\nMarkets are ranked a few seconds after each close."
NO_DECISIONS = "No decisions yet.\nEvery market gets one line, with its reason, at each closed candle."
NO_SHOWN_DECISIONS = "Only HOLD and WAIT so far, and they are hidden."
NO_FILLS = "No fills yet.\nEach execution is listed here with its fee."
NO_RESULT = "No backtest is shown.\nChoose candles on the left, then Run backtest,\nor open one of the saved runs."
NO_SPLIT = "The parts of a run stand here:\nby month, pair, strategy and regime."
NO_TRIPS = "No position was opened and closed in this run."
NO_RUNS = "No run has been saved yet.\nEvery finished backtest and evaluation is kept here."
NO_PAIR = "Select two backtests above (click one, Ctrl+click the other)\nto see them side by side."
NO_GATES = (
    "The gates have not been evaluated: LIVE stays locked.\n"
    "Choose candles on the left (1,150 days of at least two markets), then Evaluate gates."
)
NO_WINDOWS = "No windows yet.\nEvaluate gates trains on 365 days, then tests on 60 unseen ones, over and over."
NO_SHOWN = "PBO, DSR, PSR and others stand here\nonce the gates have been evaluated."
NO_LOG = "Nothing logged yet, or nothing that fits the filter."


class BannerBar:
    """One line per condition, the most severe on top, two at most and how many more there are."""

    def __init__(self, parent: tkinter.Misc, look: Look, on_act: Callable[[str], None],
                 on_details: Callable[[], None]) -> None:
        import ttkbootstrap as ttk
        self._look, self._on_act, self._on_details = look, on_act, on_details
        self.frame = ttk.Frame(parent, padding=(look.px(8), 0))
        self._banners: tuple[Banner, ...] = ()
        self._dismissed: set[str] = set()
        self._drawn: tuple[Banner, ...] | None = None
        self._labels: list[tkinter.Label] = []
        self.frame.bind("<Configure>", lambda event: self._wrap())
        look.on_change(self._redraw)

    @property
    def visible(self) -> tuple[Banner, ...]:
        """The banners that were not dismissed, as many as there are."""
        return tuple(b for b in self._banners if (b.key or b.text) not in self._dismissed)

    def show(self, banners: Sequence[Banner]) -> None:
        """Show these conditions; one that has ended may come back later undismissed."""
        self._banners = tuple(sorted(banners, key=lambda b: BANNER_LEVELS.get(b.level, 2)))
        self._dismissed &= {b.key or b.text for b in banners}
        if self.visible != self._drawn:
            self._redraw()

    def dismiss(self, banner: Banner) -> None:
        """Put a banner out of sight until its condition has ended."""
        self._dismissed.add(banner.key or banner.text)
        self._redraw()

    def dismiss_top(self) -> None:
        """Dismiss the topmost banner that may be dismissed."""
        top = next((b for b in self.visible[:BANNERS_SHOWN] if not b.action), None)
        if top is not None:
            self.dismiss(top)

    def _redraw(self) -> None:
        import ttkbootstrap as ttk
        for child in self.frame.winfo_children():
            child.destroy()
        self._labels, self._drawn = [], self.visible
        for banner in self._drawn[:BANNERS_SHOWN]:
            self._draw(banner)
        rest = self._drawn[BANNERS_SHOWN:]
        if rest:  # what has no line of its own: how many, and the beginning of the first
            more = ttk.Label(self.frame, text=f"{len(rest)} more: {rest[0].text}", font=self._look.small)
            more.configure(foreground=self._look.palette.muted)
            more.pack(fill="x", padx=self._look.px(12), pady=(0, self._look.px(4)))
        if not self._drawn:
            self.frame.configure(height=1)
        self._wrap()

    def _draw(self, banner: Banner) -> None:
        import tkinter
        px = self._look.px
        banners = self._look.palette.banners
        background, text = banners.get(banner.level, banners["info"])
        line = packed(tkinter.Frame(self.frame, background=background), fill="x", pady=(0, px(4)))
        last = {"rearm": "Re-arm…", "resolve": "Resolve…", "protect": "Protect…"}.get(banner.action, "Dismiss")
        act = partial(self._on_act, banner.action) if banner.action else partial(self.dismiss, banner)
        for label, command in ((last, act), ("Details", self._on_details)):
            tkinter.Button(
                line, text=label, command=command, background=background, foreground=text, relief="flat", borderwidth=0,
                activebackground=background, activeforeground=text, highlightbackground=background,
                highlightcolor=text, highlightthickness=px(1), font=self._look.body, padx=px(10), pady=px(5),
            ).pack(side="right", padx=px(4), pady=px(2))
        words = tkinter.Label(
            line, text=f"{LEVEL_GLYPHS.get(banner.level, '●')}  {banner.text}", background=background,
            foreground=text, font=self._look.body, anchor="w", justify="left", padx=px(12), pady=px(8),
        )
        self._labels.append(packed(words, side="left", fill="x", expand=True))

    def _wrap(self) -> None:
        """Long texts wrap before the buttons instead of pushing them out."""
        room = self.frame.winfo_width() - self._look.px(240)
        for label in self._labels:
            label.configure(wraplength=max(self._look.px(300), room))


def _desk_columns(unit: str) -> tuple[tuple[Column, ...], ...]:
    """The columns of positions, ranking, decisions and fills, with the currency of their amounts."""
    time, market = Column("Time", "14:05:00"), Column("Market", "XBT/ZAR")
    positions = (
        Column("Market", "XBT/ZAR", stretches=True), Column(f"P&L {unit}", "▲ +1,182.44", True),
        Column("P&L %", "+1.17 %", True), Column("Last", "1,262,905", True), Column("Stop", "1,223,344", True),
        Column("To stop", "3.1 %", True, rank=3), Column("Entry", "1,248,310", True, rank=2),
        Column("Size", "0.012500", True), Column("Age", "2h 14m", True, rank=1),
    )
    ranking = (
        Column("#", "7", True, rank=1), market, Column("Score", "0.81", True), Column("Regime", "Trending", rank=2),
        Column("Setup", "Vol. expansion", rank=4), Column("Spread", "0.18 %", True),
        Column(f"24h vol {unit}", "38.2 M", True, rank=3), Column("Action", "Reject: spread", stretches=True),
    )
    reason = Column("Reason", "Spread 0.31 % > limit 0.25 %", stretches=True)
    decisions = (time, market, Column("Decision", "REJECT"), Column("Conf.", "0.81", True), reason)
    fills = (
        time, market, Column("Side", "SELL"), Column("Size", "0.012500", True), Column("Price", "1,248,310", True),
        Column(f"Value {unit}", "15,603.88", True, rank=1), Column(f"Fee {unit}", "15.60", True, rank=2),
        Column("Mode", "replay", stretches=True),
    )
    return positions, ranking, decisions, fills


class DeskPanel:
    """The trader's view: positions, ranking, decisions and fills behind draggable sashes."""

    def __init__(self, parent: tkinter.Misc, look: Look) -> None:
        import ttkbootstrap as ttk
        self.frame = ttk.Frame(parent)
        self._news: DeskNews | None = None
        self._rows = packed(ttk.Panedwindow(self.frame, orient="vertical"), fill="both", expand=True)
        self._top, self._bottom = (ttk.Panedwindow(self._rows, orient="horizontal") for _ in range(2))
        self._rows.add(self._top, weight=9)
        self._rows.add(self._bottom, weight=11)
        positions, ranking, decisions, fills = _desk_columns("R")
        self.positions = Table(self._top, look, "Open positions", positions, NO_POSITIONS)
        self.ranking = Table(self._top, look, "Market ranking", ranking, NO_RANKING)
        self.decisions = Table(self._bottom, look, "Signals and decisions", decisions, NO_DECISIONS)
        self.fills = Table(self._bottom, look, "Recent fills", fills, NO_FILLS)
        for panes, tables in ((self._top, self.tables[:2]), (self._bottom, self.tables[2:])):
            for table, weight in zip(tables, (11, 10), strict=True):
                panes.add(table.frame, weight=weight)
        why = packed(ttk.Button(self.ranking.head, text="Why not?", command=self.ranking.open), side="right")
        for table in self.tables[:2]:  # both heads as high as the one with the button
            table.frame.rowconfigure(0, minsize=why.winfo_reqheight() + look.px(4))
        self.hides_quiet = ttk.BooleanVar(self.frame, value=False)
        quiet = ttk.Checkbutton(self.decisions.head, text="Hide HOLD and WAIT", variable=self.hides_quiet)
        quiet.configure(command=self._show_decisions)
        quiet.pack(side="right")
        self._rows.bind("<Map>", lambda event: self.frame.after_idle(self._place_sashes))

    def _place_sashes(self) -> None:
        """The first split: once, when the sizes are known; after that it is the user's."""
        self._rows.unbind("<Map>")
        self.frame.update_idletasks()
        self._rows.sashpos(0, int(self._rows.winfo_height() * 0.42))
        self._top.sashpos(0, int(self._top.winfo_width() * 0.53))
        self._bottom.sashpos(0, int(self._bottom.winfo_width() * 0.57))

    @property
    def tables(self) -> tuple[Table, ...]:
        """All four tables."""
        return (self.positions, self.ranking, self.decisions, self.fills)

    def show(self, news: DeskNews) -> None:
        """Show the newest rows."""
        self._news = news
        unit = "R" if news.status.counter == "ZAR" else news.status.counter
        for table, columns in zip(self.tables, _desk_columns(unit), strict=True):
            table.set_columns(columns)
        self.ranking.set_empty(NO_RANKING_YET if news.status.is_running else NO_RANKING)
        self.positions.show(news.positions)
        self.ranking.show(news.ranking)
        self.fills.show(news.fills)
        self._show_decisions()

    def _show_decisions(self) -> None:
        rows, hides = self._news.decisions if self._news is not None else (), self.hides_quiet.get()
        self.decisions.set_empty(NO_SHOWN_DECISIONS if rows and hides else NO_DECISIONS)
        self.decisions.show([row for row in rows if not hides or row.cells[2] not in QUIET_DECISIONS])


class AccountPanel:
    """What waits at the exchange or in the program, and whose coins are whose."""

    def __init__(self, parent: tkinter.Misc, look: Look) -> None:
        import ttkbootstrap as ttk
        self.frame = ttk.Frame(parent)
        halves = Halves(self.frame, look, (13, 7))
        number = "12,345.678900"
        orders = (
            Column("Market", "XBT/ZAR"), Column("For", "protection"), Column("Side", "SELL"),
            Column("Limit", "1,248,310", True), Column("Stop", "1,223,344", True), Column("Size", "0.012500", True),
            Column("Filled", "0.012500", True, rank=2), Column("State", "outcome unknown", stretches=True),
            Column("Watched", "only in the program"), Column("Age", "2h 14m", True, rank=1),
        )
        coins = (Column("Coin", "USDT", stretches=True), Column("Bot's", number, True),
                 Column("Yours", number, True), Column("Unexplained", number, True),
                 Column("At Luno", number, True, rank=1))
        self.orders = Table(halves.frame, look, "Orders and stops", orders, NO_ORDERS)
        self.coins = Table(halves.frame, look, "Coins", coins, NO_COINS)
        self.checks = packed(ttk.Button(self.coins.head, text="LIVE checklist…"), side="right")
        for table in self.tables:  # both heads as high as the one with the button
            table.frame.rowconfigure(0, minsize=self.checks.winfo_reqheight() + look.px(4))
        halves.put(self.orders, self.coins)

    @property
    def tables(self) -> tuple[Table, ...]:
        """Both tables."""
        return self.orders, self.coins

    def show(self, news: DeskNews) -> None:
        """Show the newest rows."""
        self.orders.show(news.orders)
        self.coins.show(news.coins)


def read_day(name: str, text: str) -> int:
    """The start of a UTC day in ms, 0 for an empty text; ValueError says how a day is written."""
    words = text.strip()
    if not words:
        return 0
    try:
        return int(datetime.strptime(words, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * 1000
    except (ValueError, OverflowError):
        raise ValueError(f"{name}: write a day such as 2025-03-01.") from None


class CandleForm:
    """Which candles to run on: their source, markets, lengths and period."""

    def __init__(self, parent: tkinter.Misc, look: Look) -> None:
        import ttkbootstrap as ttk
        self._look, self._is_open = look, True
        self.frame = ttk.Labelframe(parent, text="Run on", padding=look.px(10))
        self._inputs: list[ttk.Entry | ttk.Button | ttk.Radiobutton | ttk.Checkbutton] = []
        self._hints: list[ttk.Label] = []
        self._build_source()
        self._build_choice()
        self._build_lengths()
        look.on_change(self.recolour)

    def _build_source(self) -> None:
        import ttkbootstrap as ttk
        px = self._look.px
        self.source, self.folder = ttk.StringVar(self.frame, value="folder"), ttk.StringVar(self.frame)
        for value, text in (("folder", "Folder of candle files"), ("cache", "Own markets, as fetched from Luno")):
            button = ttk.Radiobutton(self.frame, text=text, value=value, variable=self.source, command=self._follow)
            self._inputs.append(packed(button, anchor="w", pady=px(2)))
            if value == "folder":
                line = packed(ttk.Frame(self.frame), fill="x", padx=(px(22), 0), pady=px(2))
                entry = ttk.Entry(line, textvariable=self.folder, width=22)
                self._folder_entry = packed(entry, side="left", fill="x", expand=True)
                browse = ttk.Button(line, text="Browse…", command=self._choose_folder)
                self._browse = packed(browse, side="left", padx=(px(4), 0))

    def _hint(self, text: str) -> None:
        import ttkbootstrap as ttk
        self._hints.append(packed(ttk.Label(self.frame, text=text, font=self._look.small), anchor="w"))

    def _entry(self, parent: tkinter.Misc, label: str, width: int) -> ttk.StringVar:
        """A labelled field in a line."""
        import ttkbootstrap as ttk
        px, variable = self._look.px, ttk.StringVar(self.frame)
        ttk.Label(parent, text=label).pack(side="left")
        entry = ttk.Entry(parent, textvariable=variable, width=width)
        self._inputs.append(packed(entry, side="left", fill="x", expand=True, padx=(px(6), px(6))))
        return variable

    def _build_choice(self) -> None:
        import ttkbootstrap as ttk
        px = self._look.px
        ttk.Separator(self.frame).pack(fill="x", pady=px(6))
        line = packed(ttk.Frame(self.frame), fill="x", pady=(0, px(2)))
        self.pairs = self._entry(line, "Markets", 18)
        self._hint("Such as XBTZAR,ETHZAR; empty: all there are")
        line = packed(ttk.Frame(self.frame), fill="x", pady=(px(6), px(2)))
        self.first_day, self.last_day = self._entry(line, "From", 10), self._entry(line, "to", 10)
        self._hint("UTC days such as 2025-03-01; empty: all there are")

    def _build_lengths(self) -> None:
        import ttkbootstrap as ttk
        px = self._look.px
        ttk.Label(self.frame, text="Decision candles").pack(anchor="w", pady=(px(6), 0))
        grid = packed(ttk.Frame(self.frame), anchor="w")
        self.timeframes = {d: ttk.BooleanVar(self.frame, value=d in DEFAULT_TIMEFRAMES) for d in DURATIONS_S}
        for index, (duration, variable) in enumerate(self.timeframes.items()):
            box = ttk.Checkbutton(grid, text=duration_word(duration), variable=variable)
            box.grid(row=index // 4, column=index % 4, sticky="w", padx=(0, px(12)), pady=px(2))
            self._inputs.append(box)

    def tick(self, timeframes: Sequence[int]) -> None:
        """Tick these decision candles, in seconds, and no others."""
        for duration, variable in self.timeframes.items():
            variable.set(duration in timeframes)

    def _choose_folder(self) -> None:
        from tkinter import filedialog
        chosen = filedialog.askdirectory(parent=self.frame, title="Folder of candle files", mustexist=True)
        if chosen:
            self.folder.set(str(chosen))

    def _follow(self) -> None:
        """The folder counts only when it is the source."""
        for widget in (self._folder_entry, self._browse):
            widget.configure(state="normal" if self.source.get() == "folder" and self._is_open else "disabled")

    def set_open(self, is_open: bool) -> None:
        """Let the fields be changed, or not while a job runs on them."""
        self._is_open = is_open
        for widget in self._inputs:
            widget.configure(state="normal" if is_open else "disabled")
        self._follow()

    def _chosen_pairs(self) -> tuple[str, ...]:
        text, spec = self.pairs.get().strip(), next(field for field in FIELDS if field.name == "PAIRS")
        try:
            pairs = read_field(spec, text) if text else ()
        except ValueError as error:
            raise ValueError(f"Markets: {error}.") from None
        return tuple(str(pair) for pair in pairs) if isinstance(pairs, tuple) else ()

    def request(self) -> BacktestRequest:
        """What the form asks for; ValueError says what is missing."""
        source, folder = self.source.get(), self.folder.get().strip()
        if source == "folder" and not folder:
            raise ValueError("Choose the folder that holds the candle files.")
        pairs = self._chosen_pairs()
        timeframes = tuple(duration for duration, variable in self.timeframes.items() if variable.get())
        if not timeframes:
            raise ValueError("Tick at least one length of decision candles.")
        first, last = read_day("From", self.first_day.get()), read_day("To", self.last_day.get())
        if last and first > last:
            raise ValueError("The period ends before it begins.")
        until = last + DAY_MS if last else 0
        return BacktestRequest(source, folder if source == "folder" else "", pairs, timeframes, first, until)

    def recolour(self) -> None:
        """Colours after a switch of the theme."""
        for label in self._hints:
            label.configure(foreground=self._look.palette.muted)


SPLITS = types.MappingProxyType({"Month": "by_window", "Pair": "by_pair", "Strategy": "by_strategy",
                                 "Regime": "by_regime"})


def _split_columns(word: str) -> tuple[Column, ...]:
    """The columns of a split; a month has the change of equity, other parts their share of the start."""
    return (
        Column(word, "Mean reversion", stretches=True),
        Column("Return" if word == "Month" else "Of start", "+12.34 %", is_number=True),
        Column("Realised", "-12,345.67", is_number=True), Column("Trips", "1,234", is_number=True),
        Column("Won", "100 %", is_number=True, rank=1), Column("Factor", "12.34", is_number=True),
        Column("Per trip", "-123.45", is_number=True, rank=3), Column("Fees", "12,345.67", is_number=True, rank=2),
    )


class ResultPage:
    """One run: what it was made on and at which costs, its metrics, and its parts."""

    def __init__(self, parent: tkinter.Misc, look: Look) -> None:
        import ttkbootstrap as ttk
        self.frame, self._values = ttk.Frame(parent), dict[str, object]()
        self._title = Prose(self.frame, look, look.bold)
        self._costs = Prose(self.frame, look, look.small)
        halves = Halves(self.frame, look, (9, 11))
        columns = (Column("Measure", "Maximum drawdown"), Column("Value", "-R102,418.55", is_number=True),
                   Column("Note", "2017-05-25 to 2017-08-02", stretches=True, rank=1))
        self.metrics = Table(halves.frame, look, "Result", columns, NO_RESULT)
        self.metrics.count.pack_forget()
        self.splits = Table(halves.frame, look, "Split by", _split_columns("Month"), NO_SPLIT)
        self.by = ttk.Combobox(self.splits.head, values=tuple(SPLITS), state="readonly", width=10)
        self.by.pack(side="left", padx=look.px(6))
        self.by.current(0)
        self.by.bind("<<ComboboxSelected>>", lambda event: self._show_split())
        self._unit = packed(ttk.Label(self.splits.head, font=look.small), side="right")
        for table in (self.metrics, self.splits):  # both heads as high as the one with the selector
            table.frame.rowconfigure(0, minsize=self.by.winfo_reqheight() + look.px(4))
        halves.put(self.metrics, self.splits)

    def show(self, values: Mapping[str, object]) -> None:
        """Show a report as it was saved."""
        self._values = dict(values)
        counter, target = text_in(values, "counter"), number_in(values, "target_daily_return") or 0.0
        pairs, candles, span = run_parts(values)
        self._title.say(f"{pairs}  ·  {candles} candles  ·  {span}")
        self._costs.say(costs_text(values), "muted")
        self.metrics.set_title(f"Result, {text_in(values, 'parameters')}")
        self.metrics.show(metrics_rows(group_in(values, "metrics"), counter, target))
        self._show_split()

    def _show_split(self) -> None:
        word = str(self.by.get())
        self._unit.configure(text=f"amounts in {text_in(self._values, 'counter')}" if self._values else "")
        self.splits.set_empty(NO_TRIPS if self._values else NO_SPLIT)
        self.splits.set_columns(_split_columns(word))
        self.splits.show(split_rows(self._values, SPLITS[word]))


def _pair_columns(first: str, second: str) -> tuple[Column, ...]:
    names = (first, second, "Difference")
    return (Column("Measure", "Maximum drawdown"), *(Column(name, "-R102,418.55", is_number=True) for name in names),
            Column("Note", "after costs", stretches=True))


class RunsPage:
    """The saved runs; two that are selected stand side by side below."""

    def __init__(self, parent: tkinter.Misc, look: Look, zone: Zone, on_open: Callable[[SavedRun], None]) -> None:
        import ttkbootstrap as ttk
        self.frame, self._zone, self._on_open = ttk.Frame(parent), zone, on_open
        self._runs: dict[str, SavedRun] = {}
        columns = (
            Column("Time", "2025-11-22 14:05"), Column("Kind", "Gates: locked"),
            Column("Data", "4h  2024-12-31 to 2025-12-31", stretches=True),
            Column("Return", "+12.34 %", is_number=True),
            Column("Against holding", "+123.45 %", is_number=True, rank=1),
            Column("Drawdown", "-12.34 %", is_number=True), Column("Trips", "1,234", is_number=True),
        )
        self.runs = Table(self.frame, look, "Saved runs", columns, NO_RUNS)
        self.runs.frame.pack(fill="both", expand=True)
        self.runs.on_open = lambda headings, cells: self.open()
        ttk.Button(self.runs.head, text="Show this run", command=self.open).pack(side="right")
        self.pair = Table(self.frame, look, "Comparison", _pair_columns("First", "Second"), NO_PAIR)
        self.pair.count.pack_forget()
        self.pair.frame.pack(fill="both", expand=True)
        self.runs.tree.bind("<<TreeviewSelect>>", lambda event: self._compare())

    def show(self, runs: Sequence[SavedRun]) -> None:
        """List the runs."""
        self._runs = {str(run.number): run for run in runs}
        self.runs.show([
            run_row(key, f"{moment_of(run.time_ms, self._zone):%Y-%m-%d %H:%M}", run.kind, json.loads(run.payload))
            for key, run in self._runs.items()])

    def open(self) -> None:
        """Show the selected run in full."""
        chosen = self.runs.tree.selection()
        if chosen:
            self._on_open(self._runs[chosen[0]])

    def _compare(self) -> None:
        """The earlier of two selected backtests is the first."""
        keys = sorted((k for k in self.runs.tree.selection() if self._runs[k].kind == "backtest"), key=int)
        if len(keys) != 2:
            self.pair.show(())
            return
        times = [self.runs.tree.set(key, "0").strip() for key in keys]
        self.pair.set_columns(_pair_columns(*times))
        first, second = (json.loads(self._runs[key].payload) for key in keys)
        self.pair.show(compare_rows(first, second))


class GatesPage:
    """The verdict, one line per gate, and the sentence of the selected one in full."""

    def __init__(self, parent: tkinter.Misc, look: Look, zone: Zone) -> None:
        import ttkbootstrap as ttk
        self.frame, self._zone, self._evaluation = ttk.Frame(parent), zone, dict[str, object]()
        self.verdict = Prose(self.frame, look, look.bold)
        self.about = Prose(self.frame, look, look.small)
        self.sentence = Prose(self.frame, look, look.body, lines=2, side="bottom")
        columns = (
            Column("Gate", "G0"), Column("Name", "Not one kind of market"), Column("Result", "✖ MISSING"),
            Column("Needed", "at most 0.005", stretches=True), Column("Actual", "at most 0.005", stretches=True),
            Column("Margin", "-13 shuffles", is_number=True),
        )
        self.gates = Table(self.frame, look, "Gates for LIVE", columns, NO_GATES)
        self.gates.head.grid_remove()  # the tab says it, and at the smallest size all ten rows are to fit
        self.gates.frame.pack(fill="both", expand=True)
        self.gates.tree.configure(selectmode="browse")
        self.gates.tree.bind("<<TreeviewSelect>>", lambda event: self._tell())

    def show(self, evaluation: Mapping[str, object], time_ms: int, now_ms: int, note: str) -> None:
        """Show an evaluation and select the first gate that did not pass."""
        self._evaluation = dict(evaluation)
        is_stale, is_open = note.startswith("STALE"), evaluation.get("unlocked") is True
        self.verdict.say(text_in(evaluation, "summary"), "warn" if is_stale else "up" if is_open else "down")
        when = f"Evaluated {when_text(time_ms, now_ms, self._zone)}" if time_ms else ""
        parts = (attempt_text(evaluation).rstrip("."), when, note[:1].upper() + note[1:])
        self.about.say("  ·  ".join(part for part in parts if part), "muted")
        rows = gate_rows(evaluation)
        self.gates.show(rows)
        failed = [row.key for row in rows if "PASS" not in row.cells[2]]
        first = next((key for key in failed if "WAIT" not in self.gates.tree.set(key, "2")), (*failed, rows[0].key)[0])
        self.gates.tree.selection_set(first)
        self.gates.tree.focus(first)

    def _tell(self) -> None:
        chosen = self.gates.tree.selection()
        self.sentence.say(gate_sentence(self._evaluation, chosen[0]) if chosen else "")


class WindowsPage:
    """The unseen windows of an evaluation, and the figures that gate nothing."""

    def __init__(self, parent: tkinter.Misc, look: Look) -> None:
        halves = Halves(parent, look)
        self.frame = halves.frame
        columns = (
            Column("#", "12", is_number=True), Column("Training", "2024-01-01 to 2024-12-31", rank=1),
            Column("Unseen days", "2024-01-01 to 2024-12-31", stretches=True), Column("Set", "set 12"),
            Column("Train Sharpe", "+1.23", is_number=True), Column("Result", "+12.34 %", is_number=True),
            Column("Trips", "123", is_number=True),
        )
        self.windows = Table(halves.frame, look, "Unseen windows", columns, NO_WINDOWS)
        figures = (Column("Figure", "Maximum drawdown"), Column("Value", "+12.34 %", is_number=True),
                   Column("What it tells", "chance that the true", stretches=True))
        self.shown = Table(halves.frame, look, "Shown, not gating", figures, NO_SHOWN)
        self.shown.count.pack_forget()
        halves.put(self.windows, self.shown)

    def show(self, evaluation: Mapping[str, object]) -> None:
        """Show the windows and figures of an evaluation."""
        self.windows.set_title(f"Unseen windows of evaluation {text_in(evaluation, 'payload_hash')[:8]}")
        self.windows.show(window_rows(evaluation))
        self.shown.show(shown_rows(evaluation))


class BacktestPanel:
    """Choose candles, run a backtest or evaluate the gates, watch, read, compare."""

    def __init__(self, parent: tkinter.Misc, look: Look, post: Callable[[object], None], clock: Clock,
                 zone: Zone) -> None:
        import ttkbootstrap as ttk
        self._look, self._post, self._clock, self._tempo, self._job = look, post, clock, Tempo(), ""
        self.frame = ttk.Frame(parent)
        left = packed(ttk.Frame(self.frame), side="left", fill="y", padx=look.px(6), pady=look.px(6))
        self.form = CandleForm(left, look)
        self.form.frame.pack(fill="x")
        self.pages = packed(ttk.Notebook(self.frame), side="left", fill="both", expand=True, pady=look.px(6))
        self._build_job(left)
        self.result, self.saved = ResultPage(self.pages, look), RunsPage(self.pages, look, zone, self.open_run)
        self.gates, self.windows = GatesPage(self.pages, look, zone), WindowsPage(self.pages, look)
        for frame, name in ((self.result.frame, "Result"), (self.saved.frame, "Saved runs"),
                            (self.gates.frame, "Gates"), (self.windows.frame, "Windows and figures")):
            self.pages.add(frame, text=name)
        look.on_change(self.recolour)

    def _build_job(self, left: tkinter.Misc) -> None:
        import ttkbootstrap as ttk
        px = self._look.px
        line = packed(ttk.Frame(left), fill="x", pady=(px(8), px(4)))
        run = ttk.Button(line, text="Run backtest", bootstyle="primary", command=partial(self.start, "backtest"))
        self.run = packed(run, side="left")
        evaluate = ttk.Button(line, text="Evaluate gates", command=partial(self.start, "gates"))
        self.evaluate = packed(evaluate, side="left", padx=px(4))
        cancel = ttk.Button(line, text="Cancel", command=self.stop, state="disabled")
        self.cancel = packed(cancel, side="right")
        self._phase = Prose(left, self._look, self._look.body, pad=0)
        self._progress = packed(ttk.Progressbar(left, maximum=1.0), fill="x", pady=px(2))
        self._eta = packed(ttk.Label(left, font=self._look.small), anchor="w")

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables whose rows can be shown in full."""
        return (self.result.metrics, self.result.splits, self.saved.pair, self.gates.gates, self.windows.windows,
                self.windows.shown)

    @property
    def is_running(self) -> bool:
        """True while a job runs."""
        return bool(self._job)

    def start(self, job: str = "backtest") -> None:
        """Check the form and ask the worker for the job, "backtest" or "gates"."""
        try:
            request = self.form.request()
        except ValueError as error:
            self._phase.say(f"✖ {error}", "error")
            return
        self._set_job(job)
        self._phase.say("Starting", "")
        self._progress.configure(value=0.0)
        self._eta.configure(text="")
        self._tempo.start(self._clock.mono_s())
        self._post(RunBacktest(request) if job == "backtest" else EvaluateGates(request))

    def stop(self) -> None:
        """Ask for the end of the job; the button answers at once."""
        if self._job:
            self.cancel.configure(state="disabled")
            self._phase.say("Cancelling")
            self._post(CancelBacktest() if self._job == "backtest" else CancelGates())

    def _set_job(self, job: str) -> None:
        self._job = job
        self.cancel.configure(state="normal" if job else "disabled")
        for button in (self.run, self.evaluate):
            button.configure(state="disabled" if job else "normal")
        self.form.set_open(not job)

    def take(self, event: object) -> bool:
        """Act on an event of the worker; False if it is none of this panel's."""
        if isinstance(event, BacktestProgress | GatesProgress):
            self.show_progress(event)
        elif isinstance(event, BacktestDone):
            self.show_result(event)
        elif isinstance(event, GatesDone):
            self.show_gates(event)
        elif isinstance(event, RunsListed):
            self.saved.show(event.runs)
        else:
            return False
        return True

    def show_progress(self, progress: BacktestProgress | GatesProgress) -> None:
        """How far the job is, and about how long the rest takes."""
        if not self._job or self.cancel.instate(["disabled"]):
            return  # what was on its way when the job was cancelled
        now = self._clock.mono_s()
        self._tempo.note(now, progress.done)
        share = progress.done / progress.total if progress.total > 0 else 0.0
        parts = (f"{progress.done:,} of {progress.total:,}" if progress.total else "",
                 percent_text(share, 0) if progress.total else "", f"elapsed {self._tempo.elapsed_text(now)}",
                 self._tempo.left_text(progress.done, progress.total))
        self._progress.configure(value=share)
        self._phase.say(progress.phase)
        self._eta.configure(text=" · ".join(part for part in parts if part))

    def show_result(self, done: BacktestDone) -> None:
        """A finished run; one that failed or was cancelled keeps what was shown before."""
        if done.run is None:
            self._fail(done.problem)
            return
        self.end("Done")
        self.open_run(done.run)

    def show_gates(self, done: GatesDone) -> None:
        """A finished evaluation, or the last one on record when the program starts."""
        if not done.payload:
            self._fail(done.problem)
            return
        was_asked = bool(self._job)
        self.end("Done")
        self._show_evaluation(json.loads(done.payload), done.time_ms, done.note)
        if was_asked:
            self.pages.select(2)

    def open_run(self, run: SavedRun) -> None:
        """Show a saved run in full."""
        if run.kind == "gates":
            self._show_evaluation(json.loads(run.payload), run.time_ms, "")
            self.pages.select(2)
        else:
            self.result.show(json.loads(run.payload))
            self.pages.select(0)

    def _show_evaluation(self, evaluation: Mapping[str, object], time_ms: int, note: str) -> None:
        self.gates.show(evaluation, time_ms, self._clock.now_ms(), note)
        self.windows.show(evaluation)

    def _fail(self, problem: str) -> None:
        was_cancelled = problem == CANCELLED
        self.end(problem if was_cancelled else f"✖ {problem}", "" if was_cancelled else "error")
        self._progress.configure(value=0.0)

    def end(self, word: str, tone: str = "") -> None:
        """The job has ended, in this word."""
        if self._job:
            self._set_job("")
            self._phase.say(word, tone)
            self._progress.configure(value=1.0)
            self._eta.configure(text=f"took {self._tempo.elapsed_text(self._clock.mono_s())}")

    def recolour(self) -> None:
        """Colours after a switch of the theme."""
        self._eta.configure(foreground=self._look.palette.muted)


class LogPanel:
    """The newest lines of the log, by level and by what they contain; the file holds the rest."""

    def __init__(self, parent: tkinter.Misc, look: Look, zone: Zone) -> None:
        import ttkbootstrap as ttk
        px, self._zone, self._number = look.px, zone, 0
        self._lines: deque[tuple[LogLine, Row]] = deque(maxlen=LOG_ROWS)
        self.frame = ttk.Frame(parent)
        tools = packed(ttk.Frame(self.frame, padding=(px(8), px(8), px(8), 0)), fill="x")
        ttk.Label(tools, text="Level").pack(side="left")
        level = ttk.Combobox(tools, values=LOG_LEVELS, state="readonly", width=18)
        self.level = packed(level, side="left", padx=px(6))
        self.level.set(LOG_LEVELS[0])
        self.level.bind("<<ComboboxSelected>>", lambda event: self.refresh())
        ttk.Label(tools, text="Find").pack(side="left", padx=(px(10), 0))
        self.find = packed(ttk.Entry(tools, width=30), side="left", padx=px(6))
        self.find.bind("<KeyRelease>", lambda event: self.refresh())
        self.follows = ttk.BooleanVar(self.frame, value=True)
        follow = ttk.Checkbutton(tools, text="Follow newest", variable=self.follows, bootstyle="round-toggle")
        follow.configure(command=self._follow)
        follow.pack(side="left", padx=px(12))
        columns = (Column("Time", "14:05:00"), Column("Level", "WARNING"), Column("Area", "network"),
                   Column("Message", "Paper fill XRP/ZAR BUY 410.00 @ 23.84, fee 9.77", stretches=True))
        self.table = Table(self.frame, look, "Log", columns, NO_LOG)
        self.table.keeps_newest = True
        self.table.frame.pack(fill="both", expand=True)
        ttk.Button(tools, text="Copy rows", command=self.copy).pack(side="right")
        for sequence in ("<MouseWheel>", "<Button-4>", "<Button-5>", "<Next>", "<Prior>"):
            self.table.tree.bind(sequence, self._scrolled, add="+")

    def add(self, line: LogLine, now_ms: int) -> None:
        """Remember a line; `refresh` shows it."""
        self._number += 1
        tone = {"error": "error", "warning": "warn"}.get(line.level, "")
        cells = (stamp_text(line.time_ms, now_ms, self._zone), line.level.upper(), line.kind, line.text)
        self._lines.appendleft((line, Row(str(self._number), cells, tone)))

    def refresh(self) -> None:
        """Show the lines that pass the filter, newest first."""
        wanted = self.find.get().strip().casefold()
        levels = {LOG_LEVELS[1]: ("warning", "error"), LOG_LEVELS[2]: ("error",)}.get(self.level.get())
        self.table.show([row for line, row in self._lines if (levels is None or line.level in levels)
                         and wanted in f"{line.kind} {line.text}".casefold()])

    def _follow(self) -> None:
        self.table.keeps_newest = bool(self.follows.get())
        if self.table.keeps_newest:
            self.table.tree.yview_moveto(0)

    def _scrolled(self, event: tkinter.Event[tkinter.Misc]) -> None:
        """Scrolling away from the top means reading: stop following."""
        self.table.tree.after_idle(self._unfollow)

    def _unfollow(self) -> None:
        if self.table.tree.yview()[0] > 0:
            self.follows.set(False)
            self.table.keeps_newest = False

    def copy(self) -> None:
        """Copy the selected rows."""
        copy_text(self.frame, self.table.selected_text())


# ==============================================================================
# DIALOGS | the questions the window asks
# shell | uses ERRORS SETTINGS LEDGER ROWS ACCOUNT WHY JOBS WIDGETS | owns tkinter ttkbootstrap
# ==============================================================================

KEY_HELP = (
    "Candles of Luno need a key, even for looking. Make one for reading only:",
    "1. On luno.com open Settings, then API keys, then Create key.",
    "2. Tick single permissions, not a preset: read balance, transactions, orders and transfers.",
    "3. Leave all others empty, above all Send, Withdrawals and everything that writes.",
    "The key is kept in the .env file of the data folder, never in the log.",
)
KEYS_HELP = (
    ("F5", "start or stop the bot"), ("F9", "kill switch: no new orders, at once and without a question"),
    ("Ctrl+1, 2, 3, 4", "Dashboard, Backtest & gates, Log, Account"), ("Ctrl+B", "backtest and gates"),
    ("Ctrl+E", "export to a folder"), ("Ctrl+F", "find in the log"),
    ("Ctrl+C", "copy the selected rows, ready for a sheet"),
    ("Enter, double click", "show a row in full; in the ranking, why the market was not traded"),
    ("Esc", "close a dialog, cancel a backtest, dismiss a banner"),
    ("F1", "this list"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answers; the last one is safe: it has the focus, and Escape means it."""

    title: str
    head: str
    lines: tuple[str, ...]
    answers: tuple[str, ...]
    is_grave: bool = False


class Dialog:
    """A modal window over the main one; the loop goes on underneath, so the kill switch and the news do too."""

    def __init__(self, look: Look, title: str) -> None:
        import ttkbootstrap as ttk
        self.look, self.result = look, ""
        self.window = ttk.Toplevel(title=title, master=look.root, resizable=(False, False))
        self.window.withdraw()
        self.window.transient(look.root)
        self.window.protocol("WM_DELETE_WINDOW", self.close)
        self.window.bind("<Escape>", lambda event: self.close())
        self.body = packed(ttk.Frame(self.window, padding=look.px(20)), fill="both", expand=True)
        ttk.Separator(self.window).pack(fill="x")
        self.feet = packed(ttk.Frame(self.window, padding=look.px(10)), fill="x", side="bottom")

    def say(self, text: str, is_head: bool = False) -> ttk.Label:
        """A line of text in the body."""
        import ttkbootstrap as ttk
        font, px = self.look.title if is_head else self.look.body, self.look.px
        label = ttk.Label(self.body, text=text, wraplength=px(520), justify="left", font=font)
        return packed(label, anchor="w", pady=(0, px(10 if is_head else 5)))

    def button(self, text: str, command: Callable[[], None], bootstyle: str = "default") -> ttk.Button:
        """A button at the bottom right; the first one made stands rightmost."""
        import ttkbootstrap as ttk
        made = ttk.Button(self.feet, text=text, bootstyle=bootstyle, command=command)
        made.lower()  # Tab goes from left to right
        return packed(made, side="right", padx=(self.look.px(6), 0))

    def show(self, focus: tkinter.Misc) -> str:
        """Open over the main window, wait until it is closed, and give the result."""
        self.window.update_idletasks()
        root = self.look.root
        left = root.winfo_rootx() + (root.winfo_width() - self.window.winfo_reqwidth()) // 2
        top = root.winfo_rooty() + (root.winfo_height() - self.window.winfo_reqheight()) // 3
        self.window.geometry(f"+{max(0, left)}+{max(0, top)}")
        self.window.deiconify()
        self.window.wait_visibility()
        self.window.grab_set()
        focus.focus_force()
        self.window.wait_window()
        return self.result

    def finish(self, result: str) -> None:
        """Close with a result."""
        self.result = result
        self.close()

    def close(self) -> None:
        """Close; without a result the safe answer holds."""
        self.window.grab_release()
        self.window.destroy()


def ask_question(look: Look, question: Question) -> str:
    """The chosen answer, or "" when the dialog was closed without one."""
    dialog = Dialog(look, question.title)
    dialog.say(question.head, is_head=True)
    for line in question.lines:
        dialog.say(line)
    made: list[ttk.Button] = []
    for answer in reversed(question.answers):
        style = "primary" if not made else "danger" if question.is_grave else "default"
        made.append(dialog.button(answer, partial(dialog.finish, answer), style))
    return dialog.show(made[0])


def _is_confirmed(look: Look, title: str, head: str, lines: Sequence[str], answers: tuple[str, str]) -> bool:
    """True when the first, grave answer was chosen."""
    return ask_question(look, Question(title, head, tuple(lines), answers, is_grave=True)) == answers[0]


def ask_exit(look: Look, mode: str, positions: Sequence[Row]) -> bool:
    """May the program end while the bot runs? Lists what is open and what becomes of it."""
    held = [f"•  {row.cells[0]}   {row.cells[1]} ({row.cells[2]})   stop {row.cells[4]}" for row in positions]
    many = f"{len(held)} open position" + ("" if len(held) == 1 else "s") + ":"
    after = f"{mode} positions are kept in the database; their stops are not watched meanwhile."
    if mode in ("DEMO", "REPLAY"):
        after = f"The next {mode} starts from the beginning."
    elif mode == "LIVE":
        after = "Stops that rest at Luno stay there; nothing else watches them until you start again."
    lines = (many, *held, after) if held else ("There are no open positions.",)
    return _is_confirmed(look, "Exit LunoBiz", "The bot is running.", lines, ("Stop bot and exit", "Keep running"))


def ask_rearm(look: Look, folder: str) -> bool:
    """May the bot send orders again after the kill switch?"""
    lines = (
        "The bot may open positions again at the next closed candle.",
        "First remove the file named KILL from the data folder, and from beside the program if it is there; "
        "as long as one is found the bot stays killed.", folder,
    )
    return _is_confirmed(look, "Re-arm", "Re-arm the bot after the kill switch?", lines, ("Re-arm", "Stay killed"))


def ask_resolve(look: Look, reasons: Sequence[str]) -> bool:
    """Has the owner dealt with what halted the bot?"""
    lines = (*reasons, "Go on only when you have looked at your account and the cause is gone.")
    return _is_confirmed(look, "Resolve", "Trading is held back until you say so.", lines,
                         ("Resolved, go on", "Not yet"))


def ask_close_all(look: Look, mode: str, offer: ClosingOffer) -> bool:
    """May all be closed? Shows what, at what price and what it costs."""
    if offer.problem:
        ask_question(look, Question("Close all", offer.problem, (), ("Close",)))
        return False
    after = "It happens once: the bot goes on and may enter again. Stop the bot or use the kill switch to prevent that."
    head = f"Sell everything the bot holds, and cancel its entries? ({mode})"
    return _is_confirmed(look, "Close all", head, (*offer.lines, after), ("Close all", "Keep"))


def ask_leave_live(look: Look) -> bool:
    """May LIVE end? Says what stays at the exchange."""
    lines = ("Stops that rest at Luno stay there; so do entry orders, until LIVE looks at them again.",
             "PAPER starts with its own positions; LIVE has to be confirmed anew.")
    return _is_confirmed(look, "Back to PAPER", "Leave LIVE?", lines, ("Back to PAPER", "Stay in LIVE"))


def show_row(look: Look, headings: Sequence[str], cells: Sequence[str]) -> None:
    """One row of a table in full, for texts that do not fit their column."""
    import ttkbootstrap as ttk
    dialog = Dialog(look, "Details")
    for number, (heading, cell) in enumerate(zip(headings, cells, strict=False)):
        name = ttk.Label(dialog.body, text=heading, font=look.bold)
        name.grid(row=number, column=0, sticky="nw", padx=(0, look.px(16)), pady=look.px(3))
        text = ttk.Label(dialog.body, text=cell, wraplength=look.px(520), justify="left")
        text.grid(row=number, column=1, sticky="w", pady=look.px(3))
    close = dialog.button("Close", dialog.close, "primary")
    dialog.button("Copy", partial(copy_text, look.root, "\t".join(cells)))
    dialog.show(close)


class ChecksDialog:
    """The checks with small amounts, to be ticked off one by one."""

    def __init__(self, look: Look, told: ChecksTold) -> None:
        import ttkbootstrap as ttk
        self.dialog = dialog = Dialog(look, "LIVE checklist")
        px = look.px
        dialog.say("To be checked at Luno with the smallest amounts", is_head=True)
        dialog.say("Nothing here was ever seen at the real exchange. Do these in order; stop LIVE if one comes out"
                   " otherwise.")
        self.ticks = [ttk.BooleanVar(dialog.window, value=n in told.done) for n in range(len(LIVE_CHECKS))]
        for (what, sign), tick in zip(LIVE_CHECKS, self.ticks, strict=True):
            line = packed(ttk.Frame(dialog.body), fill="x", pady=px(3))
            ttk.Checkbutton(line, variable=tick).pack(side="left", anchor="n")
            words = packed(ttk.Frame(line), side="left", fill="x")
            ttk.Label(words, text=what, font=look.bold).pack(anchor="w")
            ttk.Label(words, text=sign, wraplength=px(480), justify="left").pack(anchor="w")
        self.close = dialog.button("Close", dialog.close, "primary")
        dialog.button("Keep ticks", partial(dialog.finish, "keep"))

    def ask(self) -> ChecksTold | None:
        """The ticks to keep, or nothing."""
        is_kept = self.dialog.show(self.close) == "keep"
        return ChecksTold(frozenset(n for n, t in enumerate(self.ticks) if t.get())) if is_kept else None


def show_why(look: Look, told: WhyTold) -> None:
    """Why a market was not traded: the newest reason in full, those before it, and what held back all markets."""
    dialog = Dialog(look, f"Why not {told.name}?")
    dialog.say(told.sentence, is_head=True)
    history = (Column("Time", "21 Nov 14:05"), Column("Candles", "15m"), Column("Decision", "REJECT"),
               Column("Reason", "confidence below"), Column("In full", "x" * 64, stretches=True))
    blockers = (Column("Held back by", "confidence below"), Column("Times", "1,234", True),
                Column("Share", "100 %", True), Column("Markets", "x" * 64, stretches=True))
    for title, columns, rows, empty in (
        (f"{told.name}, last {WHY_DAYS} days", history, told.history, "No decision yet."),
        ("All markets, last 24 hours", blockers, told.blockers, "Nothing was held back."),
    ):
        table = Table(dialog.body, look, title, columns, empty)
        table.tree.configure(height=min(8, max(3, len(rows))))
        table.frame.pack(fill="both", expand=True)
        table.show(rows)
    dialog.show(dialog.button("Close", dialog.close, "primary"))


def show_help(look: Look, about: str) -> None:
    """The keys, and what the program is."""
    show_row(look, [key for key, _ in KEYS_HELP] + ["About"], [text for _, text in KEYS_HELP] + [about])


class LiveDialog:
    """The last door before real money: what LIVE would trade with, promises to tick, and a word to type."""

    def __init__(self, look: Look, offer: LiveOffer) -> None:
        import ttkbootstrap as ttk
        self.look, self.offer = look, offer
        self.dialog = dialog = Dialog(look, "Go LIVE")
        self.ticks = [ttk.BooleanVar(dialog.window, value=False) for _ in offer.promises]
        self.word = ttk.StringVar(dialog.window)
        self.go: ttk.Button | None = None
        if offer.problems:
            self._show_problems()
        else:
            self._show_door()

    def _show_problems(self) -> None:
        many = len(self.offer.problems)
        self.dialog.say(f"LIVE is locked: {many} thing{'' if many == 1 else 's'} in the way.", is_head=True)
        for problem in self.offer.problems:
            self.dialog.say(f"•  {problem}")
        self.close = self.dialog.button("Stay in PAPER", self.dialog.close, "primary")

    def _show_door(self) -> None:
        import ttkbootstrap as ttk
        dialog, px = self.dialog, self.look.px
        dialog.say("From here on orders are real and cost real money.", is_head=True)
        grid = packed(ttk.Frame(dialog.body), fill="x", pady=(0, px(8)))
        for row, (name, text) in enumerate(self.offer.facts):
            ttk.Label(grid, text=name, font=self.look.bold).grid(row=row, column=0, sticky="nw", padx=(0, px(16)))
            ttk.Label(grid, text=text, wraplength=px(400), justify="left").grid(row=row, column=1, sticky="w")
        for promise, tick in zip(self.offer.promises, self.ticks, strict=True):
            line = packed(ttk.Frame(dialog.body), fill="x", pady=px(2))
            ttk.Checkbutton(line, variable=tick, command=self._follow).pack(side="left", anchor="n")
            ttk.Label(line, text=promise, wraplength=px(480), justify="left").pack(side="left")
        line = packed(ttk.Frame(dialog.body), fill="x", pady=px(8))
        ttk.Label(line, text=f"Type {LIVE_WORD} in capitals:").pack(side="left", padx=(0, px(8)))
        self.entry = packed(ttk.Entry(line, width=10, textvariable=self.word), side="left")
        self.word.trace_add("write", lambda *_: self._follow())
        self.close = dialog.button("Stay in PAPER", dialog.close, "primary")
        self.go = dialog.button("Trade LIVE", partial(dialog.finish, LIVE_WORD), "danger")
        self._follow()

    def _follow(self) -> None:
        """The way is open only while all is ticked and the word stands there."""
        is_open = self.word.get() == LIVE_WORD and all(tick.get() for tick in self.ticks)
        if self.go is not None:
            self.go.configure(state="normal" if is_open else "disabled")

    def ask(self) -> RequestLive | None:
        """The request, or nothing when the owner stays in PAPER."""
        is_go = self.dialog.show(self.close) == LIVE_WORD
        return RequestLive(LIVE_WORD, self.offer.promises) if is_go else None


class FirstRun:
    """The choice of a start without a key: the demo, or a read-only key."""

    def __init__(self, look: Look) -> None:
        self.dialog = dialog = Dialog(look, "Welcome to LunoBiz")
        self.look, self.key_id, self.secret = look, "", ""
        dialog.say("How do you want to start?", is_head=True)
        dialog.say("The demo runs on prices invented by this program: no key, no network.")
        dialog.say("With a read-only key it trades on paper at Luno's real prices.")
        dialog.say("A key can be entered at any later start.").configure(foreground=look.palette.muted)
        self.demo = dialog.button("Start the demo", partial(dialog.finish, "demo"), "primary")
        self.key = dialog.button("Enter a read-only key…", self._ask_key)

    def choose(self) -> str:
        """The choice: `demo`, `key` with `key_id` and `secret` filled, or nothing when closed."""
        return self.dialog.show(self.demo)

    def _ask_key(self) -> None:
        """The second page: what to tick at Luno, and two masked fields."""
        import ttkbootstrap as ttk
        dialog, px = self.dialog, self.look.px
        for child in (*dialog.body.winfo_children(), *dialog.feet.winfo_children()):
            child.destroy()
        dialog.say("Your read-only key", is_head=True)
        for line in KEY_HELP:
            dialog.say(line)
        grid = packed(ttk.Frame(dialog.body), fill="x", pady=px(8))
        self.entries = [ttk.Entry(grid, width=46, show="•") for _ in range(2)]
        for row, (name, entry) in enumerate(zip(("Key ID", "Secret"), self.entries, strict=True)):
            ttk.Label(grid, text=name).grid(row=row, column=0, sticky="w", padx=(0, px(12)))
            entry.grid(row=row, column=1, sticky="ew", pady=px(3))
        self.problem = packed(ttk.Label(dialog.body, foreground=self.look.colour("error")), anchor="w")
        self.save = dialog.button("Save key", self._save, "primary")
        dialog.button("Use the demo", partial(dialog.finish, "demo"))
        dialog.window.bind("<Return>", lambda event: self._save())
        self.entries[0].focus_set()

    def _save(self) -> None:
        """Check the form of the key before it is taken, and empty the fields once it is."""
        key_id, secret = (entry.get().strip() for entry in self.entries)
        try:
            key = parse_read_key({f"{PREFIX}READ_KEY_ID": key_id, f"{PREFIX}READ_KEY_SECRET": secret})
        except SettingsError:
            key = Credentials()
        if not key:
            self.problem.configure(text="✖ Paste both the key ID and its secret, just as Luno shows them.")
            self.entries[0].focus_set()
            return
        self.key_id, self.secret = key.key_id, key.secret
        for entry in self.entries:
            entry.delete(0, "end")
        self.dialog.finish("key")


# ==============================================================================
# DASHBOARD | the window
# shell | uses ERRORS TYPES SETTINGS PORTFOLIO LEDGER ROWS ACCOUNT WHY SYSTEM JOBS WORKER WIDGETS PANELS DIALOGS | owns tkinter ttkbootstrap
# ==============================================================================

import gc

DRAIN_MS, FIRST_RUN_MS = 100, 200
EVENTS_PER_DRAIN = 50
SPEEDS = (1.0, 60.0, 300.0, 1_800.0, 7_200.0)
WINDOW_SIZE, SMALLEST_SIZE = (1440, 860), (1024, 700)
SILENT_WARN_S, SILENT_ERROR_S = 25.0, 60.0  # a cycle takes at most about ten seconds
JOIN_S, NOTES_KEPT = 5.0, 5
FULL_COLLECTION = 60  # ticks
SLOW_END = "Closing takes longer than 5 s: the journal comes first. Close again to let it finish unseen."
SILENCE = "The worker does not answer: the figures are old. The kill switch works all the same."

READABLE_KEYS = "Keys stand readable in .env. Windows can protect them, so that only your account can open them."
PROTECTED_MEANS = (
    "They stand readable in .env now. Protected, only your Windows account on this computer can open them.",
    "Their lines are removed from .env and from its dated copies. The program uses them and never shows them; on"
    " another computer, or after Windows is installed anew, you enter them again.",
)
PROTECT_ANSWERS = ("Protect and remove from .env", "Leave them in .env")


@dataclass(frozen=True, slots=True)
class Doings:
    """What the buttons of the action bar and of the banners do."""

    start_stop: Callable[[], None]
    go_live: Callable[[], None]
    close_all: Callable[[], None]
    backtest: Callable[[], None]
    export: Callable[[], None]
    open_folder: Callable[[], None]
    set_speed: Callable[[float], None]
    toggle_theme: Callable[[], None]
    act_on_banner: Callable[[str], None]


class ActionBar:
    """The row of buttons; the label of each is what it does."""

    def __init__(self, parent: tkinter.Misc, look: Look, doings: Doings) -> None:
        import ttkbootstrap as ttk
        self._look = look
        self.frame = ttk.Frame(parent, padding=(look.px(8), 0, look.px(8), look.px(8)))
        start = ttk.Button(self.frame, text="▶  Start bot", underline=3, width=11, bootstyle="primary")
        self.start = packed(start, side="left")
        self.start.configure(command=doings.start_stop)
        others = {"Run backtest…": doings.backtest, "Export…": doings.export, "Open data folder": doings.open_folder}
        for text, command in others.items():
            packed(ttk.Button(self.frame, text=text, command=command), side="left", padx=(look.px(4), 0))
        close = ttk.Button(self.frame, text="Close all…", command=doings.close_all)
        self.close_all = packed(close, side="left", padx=(look.px(4), 0))
        live = ttk.Button(self.frame, text="Go LIVE… (locked)", command=doings.go_live)
        self.live = packed(live, side="left", padx=(look.px(4), 0))
        self._live_tip = add_tip(self.live, "LIVE is locked.")
        theme = ttk.Button(self.frame, text="Light", bootstyle="ghost", command=doings.toggle_theme)
        self.theme = packed(theme, side="right")
        self._build_speed(doings.set_speed)
        self._hints = ttk.Label(self.frame, text="F5 start/stop   F9 kill   Ctrl+1…4 tabs   F1 help", font=look.small)
        self.frame.bind("<Configure>", lambda event: self._show_hints())
        look.on_change(self.recolour)

    def _build_speed(self, set_speed: Callable[[float], None]) -> None:
        import ttkbootstrap as ttk
        self._speed_frame = ttk.Frame(self.frame)
        ttk.Label(self._speed_frame, text="Speed").pack(side="left", padx=(self._look.px(12), self._look.px(6)))
        texts = [f"{speed:,.0f}x" for speed in SPEEDS]
        self.speed = packed(ttk.Combobox(self._speed_frame, values=texts, state="readonly", width=7), side="left")
        self.speed.bind("<<ComboboxSelected>>", lambda event: set_speed(SPEEDS[self.speed.current()]))
        add_tip(self.speed, "Market seconds per second of yours")

    def _show_hints(self) -> None:
        """The key hints are the first thing a narrow window does without."""
        needed = sum(child.winfo_reqwidth() for child in self.frame.winfo_children()) + self._look.px(60)
        if needed <= self.frame.winfo_width():
            self._hints.pack(side="right", padx=self._look.px(10))
        else:
            self._hints.pack_forget()

    def show(self, status: Status) -> None:
        """Follow the bot's state: what Start/Stop does, why LIVE is locked, how fast a demo runs."""
        self.start.configure(text="■  Stop bot" if status.is_running else "▶  Start bot")
        is_live = status.mode == LIVE_WORD
        is_locked = bool(status.lock_reason)
        self.live.configure(text="Back to PAPER…" if is_live else "Go LIVE… (locked)" if is_locked else "Go LIVE…")
        self._live_tip.configure(text="Orders are real." if is_live else f"LIVE is locked. {status.lock_reason}"
                                 if is_locked else "The gates are open; a confirmation is asked.")
        is_there = bool(self._speed_frame.winfo_manager())
        if status.is_market_time and not is_there:
            self._speed_frame.pack(side="left", after=self.live)
        elif is_there and not status.is_market_time:
            self._speed_frame.pack_forget()
        if not str(self.speed.tk.call("focus")).startswith(str(self.speed)):  # its open list has the focus as a child
            self.speed.set(f"{status.speed:,.0f}x" if status.speed > 0 else "fastest")

    def recolour(self) -> None:
        """Texts and colours after a switch of the theme."""
        self.theme.configure(text="Light" if self._look.is_dark else "Dark")
        self._hints.configure(foreground=self._look.palette.muted)


class Footer:
    """The status bar: how long ago the worker was heard, its own words, version and folder."""

    def __init__(self, parent: tkinter.Misc, look: Look, version: str, folder: str) -> None:
        import ttkbootstrap as ttk
        self._look, self._tone, self._version, self._folder = look, "muted", version, folder
        self.frame = ttk.Frame(parent, padding=(look.px(10), look.px(4)))
        self._about, self._cycle, self._text = (ttk.Label(self.frame, font=look.small) for _ in range(3))
        self._about.pack(side="right", padx=(look.px(8), 0))
        self._cycle.pack(side="left")
        self._text.pack(side="left", padx=(look.px(14), 0))
        add_tip(self._about, f"Data folder: {folder}")
        self.frame.bind("<Configure>", lambda event: self._fit())
        look.on_change(self.recolour)

    def _fit(self) -> None:
        """The folder is named only where there is room for it; the tip has it always."""
        whole = f"{self._version}  ·  {self._folder}"
        needed = self._cycle.winfo_reqwidth() + self._text.winfo_reqwidth() + self._look.small.measure(whole)
        is_wide = needed + self._look.px(60) <= self.frame.winfo_width()
        self._about.configure(text=whole if is_wide else self._version)

    def show(self, text: str) -> None:
        """The worker's words."""
        self._text.configure(text=text)
        self._fit()

    def show_cycle(self, text: str, tone: str) -> None:
        """How long ago the last cycle was."""
        self._tone = tone
        self._cycle.configure(text=text, foreground=self._look.colour(tone))

    def recolour(self) -> None:
        """Colours after a switch of the theme."""
        for label in (self._about, self._text):
            label.configure(foreground=self._look.palette.muted)
        self._cycle.configure(foreground=self._look.colour(self._tone))


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """What MAIN hands to the window; `write_kill` writes the kill file even when the worker hangs."""

    mode: Mode
    folder: Path
    version: str
    write_kill: Callable[[], None]
    save_key: Callable[[str, str], str]
    title: str = "LunoBiz"
    is_test_exchange: bool = False
    asks_first_run: bool = False
    theme: str = ""  # "dark" or "light"; empty follows the system
    write_log: Callable[[str], None] | None = None  # a fault of the window, for the log file
    timeframes: tuple[int, ...] = DEFAULT_TIMEFRAMES  # decision candles of the session, in seconds
    is_asked_for: Callable[[], bool] | None = None  # once True after a second start, which this window answers
    protect_keys: Callable[[], str] | None = None  # only where keys stand readable that could be protected


def prefers_light() -> bool:
    """What the system asks of programs; dark where it does not say."""
    if sys.platform == "win32":
        import winreg

        path = r"Software\Microsoft\Windows\CurrentVersion\Themes\Personalize"
        try:
            with winreg.OpenKey(winreg.HKEY_CURRENT_USER, path) as key:
                return bool(winreg.QueryValueEx(key, "AppsUseLightTheme")[0])
        except OSError:
            return False
    return False


def on_session_end(root: tkinter.Tk, action: Callable[[], None]) -> None:
    """Act when Windows ends the session; elsewhere that comes as a signal, and this message would mean saving."""
    if sys.platform == "win32":
        root.protocol("WM_SAVE_YOURSELF", action)


def show_folder(folder: Path) -> None:
    """Open a folder in the system's file manager."""
    import webbrowser
    webbrowser.open(folder.resolve().as_uri())


def fault_text(error: BaseException) -> str:
    """What went wrong in the window and where, without the library's own words."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at line {place.tb_lineno}" if place is not None else ""
    words = str(error) if isinstance(error, LunobizError) else type(error).__name__
    return f"The window failed: {words}{where}. Trading goes on; please report this."


def opening_status(options: WindowOptions) -> Status:
    """What the strip shows until the worker has spoken: the mode, and no figure at all."""
    health = Health(0, options.mode, is_test_exchange=options.is_test_exchange)
    empty = status_row(Desk(math.nan), None, Settings(), health, Zone())
    return replace(
        empty, state=Reading("STATE", DASH), equity=Reading("EQUITY", DASH), cash=Reading("CASH", DASH),
        exposure=Reading("EXPOSURE", DASH), day=Reading(empty.day.caption, DASH), cap=Reading("DAILY CAP", DASH),
        api=Reading(empty.api.caption, DASH))


def silence_words(news_age_s: float, cycle_age_s: float, is_running: bool, is_alive: bool) -> tuple[str, str]:
    """What to say of the last cycle, and in which tone; the worker may be silent, or turn in one spot."""
    if not is_alive:
        return "✖ Worker has ended: nothing is traded. Restart LunoBiz.", "error"
    if not is_running and news_age_s < SILENT_WARN_S:
        return "Bot stopped", "muted"
    silent_s = max(news_age_s, cycle_age_s)
    text = f"Last cycle {silent_s:,.0f} s ago"
    if silent_s >= SILENT_ERROR_S:
        return f"✖ {text}: the worker does not answer", "error"
    return (f"▲ {text}", "warn") if silent_s >= SILENT_WARN_S else (text, "muted")


TABS = ("Dashboard", "Backtest & gates", "Log", "Account")


class Screen:
    """All that is seen: the panels, the newest news in them, the notes of the moment, clock and silence."""

    def __init__(self, root: ttk.App, look: Look, options: WindowOptions, clock: Clock) -> None:
        self.root, self.look, self.options = root, look, options
        self.clock, self.zone, self.heard_s = clock, local_zone(), clock.mono_s()
        self.news: DeskNews | None = None
        self._notes: list[Banner] = []
        self._is_faded = self._is_silent = False

    def build(self, doings: Doings, on_kill: Callable[[], None], post: Callable[[object], None]) -> None:
        """The status bar is packed first, so that a small window loses the tables' rows and nothing else."""
        import ttkbootstrap as ttk
        root, look, options = self.root, self.look, self.options
        self.footer = Footer(root, look, f"{options.title} {options.version}", str(options.folder))
        self.footer.frame.pack(side="bottom", fill="x")
        self.strip, self.actions = StatusStrip(root, look, on_kill), ActionBar(root, look, doings)
        self.banners = BannerBar(root, look, doings.act_on_banner, self.open_log)
        self.strip.bar.pack(side="top", fill="x")
        for part in (self.strip, self.actions, self.banners):
            part.frame.pack(side="top", fill="x")
        self.tabs = packed(ttk.Notebook(root), fill="both", expand=True, padx=look.px(8))
        self.desk = DeskPanel(self.tabs, look)
        self.backtest = BacktestPanel(self.tabs, look, post, self.clock, self.zone)
        self.backtest.form.tick(options.timeframes)
        self.log = LogPanel(self.tabs, look, self.zone)
        self.account = AccountPanel(self.tabs, look)
        panels = (self.desk.frame, self.backtest.frame, self.log.frame, self.account.frame)
        for frame, name in zip(panels, TABS, strict=True):
            self.tabs.add(frame, text=name)
        self.tabs.bind("<<NotebookTabChanged>>", lambda event: self._show_tab())
        for table in (*self.desk.tables, self.log.table, *self.account.tables, *self.backtest.tables):
            table.on_open = partial(show_row, look)
        self.strip.show(opening_status(options))

    @property
    def tab(self) -> int:
        """The tab in front: 0 dashboard, 1 backtest, 2 log, 3 account."""
        return int(self.tabs.index("current"))

    def open_log(self) -> None:
        """Bring the log to the front."""
        self.tabs.select(2)

    def take(self, event: object) -> bool:
        """Act on one event of the worker; True if the log has a new line."""
        if self.backtest.take(event):
            return False
        if isinstance(event, LogLine):
            self.log.add(event, self.now_ms())
        elif isinstance(event, Note):
            self.note(event.level, event.text)
        elif isinstance(event, Failed):
            self.backtest.end("✖ Ended with an error", "error")
            self.note("error", event.text)
        return True

    def note(self, level: str, text: str, key: str = "", action: str = "") -> None:
        """A message of the moment: a line of the log, and a banner until it is dismissed."""
        self.log.add(LogLine(self.now_ms(), level, "window", text), self.now_ms())
        banner = Banner(level, text, action, key)
        self._notes = [*(n for n in self._notes if n != banner), banner][-NOTES_KEPT:]
        self._show_banners()

    def come_forward(self) -> None:
        """Bring the window to the front of all others where a second start has asked for that."""
        if self.options.is_asked_for is None or not self.options.is_asked_for():
            return
        if self.root.state() in ("iconic", "withdrawn"):
            self.root.deiconify()
        self.root.lift()
        self.root.attributes("-topmost", True)  # a window that is lifted in vain is let through so
        self.root.after_idle(self.root.attributes, "-topmost", False)
        self.root.focus_force()

    def offer_protection(self) -> None:
        """Offer, where keys stand readable in `.env`, to let the system protect them."""
        if self.options.protect_keys is not None:
            self.note("info", READABLE_KEYS, "keys", "protect")

    def protect_keys(self) -> None:
        """Ask whether the keys may leave `.env` for the system's protection; asked once a start."""
        self._notes = [n for n in self._notes if n.key != "keys"]
        self._show_banners()
        question = Question("Protect the keys", "Let Windows protect the keys?", PROTECTED_MEANS, PROTECT_ANSWERS)
        if self.options.protect_keys is not None and ask_question(self.look, question) == PROTECT_ANSWERS[0]:
            self.note("info", self.options.protect_keys())

    def show(self, news: DeskNews) -> None:
        """Show the newest figures."""
        before, self.news = self.news, news
        if before is not None and before.status.is_killed and not news.status.is_killed:
            self._notes = [n for n in self._notes if "kill file" not in n.text]
        self.heard_s = self.clock.mono_s()
        if self._is_faded:
            self._is_faded = False
            self.strip.unfade()
        self.strip.show(news.status)
        self.actions.show(news.status)
        self.footer.show(news.footer)
        if news.status.is_killed:  # what was pressed has come to pass, and has a banner of its own
            self._notes = [n for n in self._notes if n.key != "kill"]
        if before is None or before.status.mode != news.status.mode:
            self.root.title(f"{news.status.mode} — {self.options.title}")
        self._show_banners()
        self.show_clock()
        if self.tab in (0, 3):
            self._show_tab()

    def _show_tab(self) -> None:
        """A tab that was hidden catches up when it is opened."""
        if self.news is not None and self.tab in (0, 3):
            (self.desk if self.tab == 0 else self.account).show(self.news)
        if self.tab == 2:
            self.log.refresh()

    def _show_banners(self) -> None:
        conditions = self.news.banners if self.news is not None else ()
        silence = (Banner("error", SILENCE, key="silence"),) if self._is_silent else ()
        self.banners.show((*silence, *conditions, *reversed(self._notes)))

    def dismiss(self) -> None:
        """Dismiss the topmost banner."""
        self.banners.dismiss_top()
        self._notes = [n for n in self._notes if n in self.banners.visible]

    def now_ms(self) -> int:
        """The time that is shown: the market's in a demo or replay, else the computer's."""
        news = self.news
        return news.time_ms if news is not None and news.status.is_market_time else self.clock.now_ms()

    def show_clock(self) -> None:
        """The time, local and UTC; a stepped market shows its own, with the day."""
        now = self.now_ms()
        if self.news is not None and self.news.status.is_market_time:
            self.strip.show_clock(day_and_time(now, self.zone), "market time")
        else:
            local = f"{clock_text(now, self.zone)} {self.zone.label}"
            self.strip.show_clock(local, clock_text(now, Zone()) + " UTC")

    def show_silence(self, is_alive: bool) -> None:
        """How long ago the last cycle was; old figures are muted, and a dead worker is told without its help."""
        is_running = self.news is not None and self.news.status.is_running
        news_age_s, cycle_age_s = self.clock.mono_s() - self.heard_s if self.news is not None else 0.0, 0.0
        if self.news is not None and not self.news.status.is_market_time:  # a stepped market has no such age
            cycle_age_s = max(0.0, (self.clock.now_ms() - self.news.time_ms) / 1000)
        text, tone = silence_words(news_age_s, cycle_age_s, is_running, is_alive)
        self.footer.show_cycle(text, tone)
        if self._is_silent != (tone == "error"):
            self._is_silent = tone == "error"
            self._show_banners()
        if tone in ("warn", "error") and self.news is not None:
            self._is_faded = True
            self.strip.fade(f"stale {max(news_age_s, cycle_age_s):,.0f} s")


def show_failure(text: str) -> None:
    """Say why the program cannot start, in a box of its own; without a screen nobody could read it."""
    import tkinter
    from tkinter import messagebox

    with contextlib.suppress(tkinter.TclError):
        root = tkinter.Tk()
        root.withdraw()
        messagebox.showerror("LunoBiz cannot start", text, parent=root)
        root.destroy()


class Dashboard:
    """The window: it shows frozen news and sends commands; it never computes, waits or uses the network."""

    def __init__(self, worker: Worker, options: WindowOptions) -> None:
        self._worker, self._options, self._choice, self._ticks = worker, options, "", 0
        self._clock: Clock = SystemClock()
        gc.disable()
        self._closing_s: float | None = None
        self._timers: dict[str, str] = {}
        mode = "TEST EXCHANGE" if options.is_test_exchange else options.mode.value.upper()
        is_dark = options.theme == "dark" or (not options.theme and not prefers_light())
        self.root = open_root(f"{mode} — {options.title}", is_dark)
        self.root.report_callback_exception = self._on_fault
        self.root.protocol("WM_DELETE_WINDOW", self.close)
        on_session_end(self.root, self.leave)
        self.look = Look(self.root)
        self.screen = Screen(self.root, self.look, options, self._clock)
        doings = Doings(
            start_stop=self.start_or_stop, go_live=self.go_live, close_all=lambda: worker.send(AskClose()),
            backtest=self.open_backtest, export=self.export, open_folder=self._open_folder,
            set_speed=lambda speed: worker.send(SetSpeed(speed)),
            toggle_theme=self.look.toggle, act_on_banner=self._act_on_banner,
        )
        self.screen.build(doings, self.kill_or_rearm, worker.send)
        self.screen.account.checks.configure(command=lambda: worker.send(AskChecks()))
        self.screen.desk.ranking.on_open = lambda headings, cells: self._ask_why(cells[1])
        self._bind_keys()
        fit_on_screen(self.root, self.look, WINDOW_SIZE, SMALLEST_SIZE)
        self._tick()
        self._drain()

    def _bind_keys(self) -> None:
        tabs = self.screen.tabs
        keys: tuple[tuple[str, Callable[[], None]], ...] = (
            ("<F5>", self.start_or_stop), ("<Alt-s>", self.start_or_stop), ("<F9>", self.kill), ("<F1>", self._help),
            ("<Control-b>", self.open_backtest), ("<Control-e>", self.export), ("<Control-f>", self._find),
            ("<Escape>", self._escape), *((f"<Control-Key-{n + 1}>", partial(tabs.select, n)) for n in range(4)),
        )
        for sequence, action in keys:
            # the kill switch must work while a dialog is open, the others must not
            binder = self.root.bind_all if sequence == "<F9>" else self.root.bind
            binder(sequence, partial(self._on_key, action))

    def _on_key(self, action: Callable[[], None], event: tkinter.Event[tkinter.Misc]) -> str:
        action()
        return "break"

    def run(self) -> str:
        """Show the window until it is closed; `demo` or `key` if that was chosen in place of starting."""
        if self._options.asks_first_run:
            self.root.after(FIRST_RUN_MS, self.ask_first_run)
        elif not self._worker.is_alive():
            self._worker.start()
        self.screen.offer_protection()
        self.root.mainloop()
        return self._choice

    @property
    def is_running(self) -> bool:
        """True while the bot trades."""
        return self.screen.news is not None and self.screen.news.status.is_running

    def start_or_stop(self) -> None:
        """F5: the one button whose label is what it does."""
        self._worker.send(Stop() if self.is_running else Start())

    def kill(self) -> None:
        """F9: no new orders, at once and without a question; the file works even when the worker hangs."""
        try:
            self._options.write_kill()
        except (OSError, LunobizError) as error:
            text = f"The kill file could not be written ({type(error).__name__}); the bot has been told."
            self.screen.note("error", text)
        self._worker.send(Kill())
        now = self.screen.now_ms()
        self.screen.note("warning", f"Kill switch pressed at {when_text(now, now, self.screen.zone)}.", key="kill")

    def kill_or_rearm(self) -> None:
        """The kill button; when the bot is killed it re-arms, with a question."""
        if self.screen.news is None or not self.screen.news.status.is_killed:
            self.kill()
        elif ask_rearm(self.look, str(self._options.folder)):
            self._worker.send(Rearm())

    def go_live(self) -> None:
        """Ask what is between PAPER and LIVE, whose answer opens the dialog; in LIVE, the way back."""
        if self.screen.news is None or self.screen.news.status.mode != LIVE_WORD:
            self._worker.send(AskLive())
        elif ask_leave_live(self.look):
            self._worker.send(LeaveLive())

    def _show_checks(self, told: ChecksTold) -> None:
        ticked = ChecksDialog(self.look, told).ask()
        if ticked is not None:
            self._worker.send(ticked)

    def _ask_why(self, name: str) -> None:
        """Ask what kept a market, named as in the ranking, from trading."""
        self._worker.send(AskWhy(name.partition(" ")[0].replace("/", "")))

    def _show_offer(self, offer: LiveOffer | ClosingOffer) -> None:
        if isinstance(offer, ClosingOffer):
            mode = "" if self.screen.news is None else self.screen.news.status.mode
            if ask_close_all(self.look, mode, offer):
                self._worker.send(CloseAll(offer.marks))
            return
        request = LiveDialog(self.look, offer).ask()
        if request is not None:
            self._worker.send(request)

    def _act_on_banner(self, action: str) -> None:
        news = self.screen.news
        if action == "rearm":
            self.kill_or_rearm()
        elif action == "protect":
            self.screen.protect_keys()
        elif news is not None and ask_resolve(self.look, [b.text for b in news.banners if b.action == "resolve"]):
            self._worker.send(ResolveHalt())

    def open_backtest(self) -> None:
        """Ctrl+B: the form of the backtest."""
        self.screen.tabs.select(1)

    def export(self) -> None:
        """Ctrl+E: everything as files, into a folder of the owner's choice."""
        from tkinter import filedialog
        chosen = filedialog.askdirectory(parent=self.root, title="Export to folder", mustexist=True)
        if chosen:
            self._worker.send(Export(str(chosen)))

    def _open_folder(self) -> None:
        try:
            show_folder(self._options.folder)
        except (OSError, ValueError):
            self.screen.note("warning", f"The folder could not be opened: {self._options.folder}")

    def _find(self) -> None:
        self.screen.open_log()
        self.screen.log.find.focus_set()

    def _help(self) -> None:
        show_help(self.look, f"{self._options.title} {self._options.version}, data in {self._options.folder}")

    def _escape(self) -> None:
        if self.screen.backtest.is_running and self.screen.tab == 1:
            self.screen.backtest.stop()
        else:
            self.screen.dismiss()

    def ask_first_run(self) -> None:
        """A start without a key: the demo, or the key to paper trading; the worker has not been started."""
        first = FirstRun(self.look)
        self._choice = first.choose()
        if self._choice == "key":
            answer = self._options.save_key(first.key_id, first.secret)
            ask_question(self.look, Question("Your read-only key", answer, (), ("Close",)))
        self.end()

    def _drain(self) -> None:
        """Take what the worker has sent, at most fifty at a time; a fault in one may not stop the next."""
        try:
            self._take_events()
        except Exception as error:
            self._on_fault(type(error), error, None)
        finally:
            if self._closing_s is None or not self._finish_closing():
                self._timers["drain"] = self.root.after(DRAIN_MS, self._drain)

    def _take_events(self) -> None:
        newest: DeskNews | None = None
        has_lines = False
        for _ in range(EVENTS_PER_DRAIN):
            event = self._worker.take_event()
            if event is None:
                break
            if isinstance(event, DeskNews):
                newest = event
            elif isinstance(event, (LiveOffer, ClosingOffer)):
                self.root.after_idle(partial(self._show_offer, event))  # a dialog may not hold up the drain
            elif isinstance(event, ChecksTold):
                self.root.after_idle(partial(self._show_checks, event))
            elif isinstance(event, WhyTold):
                self.root.after_idle(partial(show_why, self.look, event))
            else:
                has_lines = self.screen.take(event) or has_lines
        if newest is not None:
            self.screen.show(newest)
        if has_lines and self.screen.tab == 2:
            self.screen.log.refresh()

    def _tick(self) -> None:
        """Once a second: the clock, how long the worker has been silent, and the garbage.

        Tk's objects may only die in this thread. A collection in the worker's would make it wait for the window.
        """
        try:
            self._ticks += 1
            gc.collect(2 if self._ticks % FULL_COLLECTION == 0 else 1)
            self.screen.come_forward()
            self.screen.show_clock()
            has_started = self.screen.news is not None and self._closing_s is None
            self.screen.show_silence(not has_started or self._worker.is_alive())
        finally:
            self._timers["tick"] = self.root.after(1000, self._tick)

    def close(self) -> None:
        """The window's close button: ask while the bot runs, then let the worker finish its journal."""
        if self._closing_s is not None:
            self.end()
            return
        news = self.screen.news
        if news is not None and self.is_running and not ask_exit(self.look, news.status.mode, news.positions):
            return
        self.leave()
        self.screen.note("info", "Closing: the worker finishes its journal first.")

    def leave(self) -> None:
        """Close without a question, as a signal asks; touches no widget, so a signal handler may call it."""
        if self._closing_s is None:
            self._closing_s = self._clock.mono_s()
            self._worker.send(Shutdown())

    def end(self) -> None:
        """Take the window down, its timers first; a second call does nothing."""
        timers, self._timers = self._timers, {}
        for timer in timers.values():
            self.root.after_cancel(timer)
        if timers:
            self.root.destroy()
            gc.collect()
            gc.enable()

    def _finish_closing(self) -> bool:
        """True once the worker has ended and the window is gone; says so when it takes long."""
        if not self._worker.is_alive():
            self.end()
            return True
        waited = self._clock.mono_s() - (self._closing_s or 0.0)
        if waited > JOIN_S and not any(b.text == SLOW_END for b in self.screen.banners.visible):
            self.screen.note("warning", SLOW_END)
        return False

    def _on_fault(self, kind: type[BaseException], error: BaseException, trace: object) -> None:
        """A fault of the window itself: into the log and onto a banner, never silent and never fatal."""
        text = fault_text(error)
        if self._options.write_log is not None:
            self._options.write_log(text)
        self.screen.note("error", text)


# ==============================================================================
# ARGUMENTS | what the command line may say
# shell | uses TYPES SETTINGS
# ==============================================================================

import argparse

DEMO_SEED = 6  # a market that gets going in its first hours


def _pairs(text: str) -> tuple[str, ...]:
    return tuple(p.strip().upper() for p in text.split(",") if p.strip())


def _durations(text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(w) for w in text.split(",")}))
    except ValueError:
        found = ()
    if not found or any(s not in DURATIONS_S for s in found):
        raise argparse.ArgumentTypeError(f"allowed are {', '.join(map(str, DURATIONS_S))}, as a comma list")
    return found


def _fees(text: str) -> tuple[float, float]:
    words = text.split(",")
    try:
        maker, taker = (plain_number(w) for w in words)
    except ValueError:
        raise argparse.ArgumentTypeError("write maker,taker as fractions, such as 0.004,0.006") from None
    if not (-0.01 <= maker <= 0.05 and 0 <= taker <= 0.05):
        raise argparse.ArgumentTypeError("a fee is a fraction of at most 0.05, such as 0.006 for 0.6 %")
    return maker, taker


def _time(text: str) -> int:
    """A UTC time in ms from an ISO date, an ISO time or milliseconds."""
    try:
        given = datetime.fromisoformat(text) if not text.isdigit() else None
    except ValueError:
        raise argparse.ArgumentTypeError("write a UTC time such as 2019-12-31 or 2019-12-31T14:00") from None
    if given is None:
        return int(text)
    return round((given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp() * 1000)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError("write a whole number, 0 or more")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError("write the number of the part and how many there are, such as 1/4")
    return int(match[1]), int(match[2])


def _speed(text: str) -> float:
    try:
        value = plain_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError("allowed is 0 (as fast as possible) to 1,000,000")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="lunobiz", description="A trading desk for the Luno exchange. Without options: the dashboard.",
        epilog="Exit codes: 0 done; 1 the answer is no; 2 wrong use or settings; 3 network or exchange;"
        " 4 damaged or locked data.",
    )
    what = p.add_mutually_exclusive_group()
    what.add_argument("--headless", action="store_true", help="no window: one JSON object a line on stdout")
    what.add_argument("--backtest", action="store_true", help="backtest the candles in --data, report to --json")
    what.add_argument("--gates", action="store_true", help="evaluate all gates for LIVE on the candles in --data")
    what.add_argument("--replay-check", action="store_true", help="run the recorded inputs again: the same decisions?")
    words = "with --demo: LIVE on the built-in exchange, its line going wrong"
    what.add_argument("--rehearse-live", action="store_true", help=words)
    what.add_argument("--doctor", action="store_true", help="check this computer, folder, settings and connection")
    what.add_argument("--export", metavar="DIR", help="write the audit as CSV and JSON lines into a new folder in DIR")
    what.add_argument("--self-test", action="store_true", help="measure how often the gates are wrong, rows to --json")
    what.add_argument("--version", action="version", version=f"LunoBiz {__version__}")
    source = p.add_mutually_exclusive_group()
    source.add_argument("--demo", action="store_true", help="trade on the built-in demo exchange; no key, no network")
    source.add_argument("--replay", metavar="DIR", help="trade on recorded candles, PAIR_SECONDS.csv[.gz]")
    p.add_argument("--home", metavar="DIR", help="folder of .env, database, log and kill file")
    p.add_argument("--cycles", type=_count, default=0, metavar="N", help="with --headless: end after N candles")
    p.add_argument("--speed", type=_speed, metavar="X", help="market seconds per second, 0 for as fast as possible")
    words = f"seed of everything random (default {DEMO_SEED})"
    p.add_argument("--seed", type=_count, default=DEMO_SEED, metavar="S", help=words)
    p.add_argument("--data", metavar="DIR", help="folder of recorded candles to backtest, judge or draw from")
    p.add_argument("--pairs", type=_pairs, default=(), metavar="A,B", help="with --backtest, --gates: only these")
    p.add_argument("--timeframe", type=_durations, default=(), metavar="S[,S]", help="decision candles in seconds")
    p.add_argument("--fees", type=_fees, metavar="M,T", help="maker and taker fee of a study, as fractions")
    p.add_argument("--as-of", type=_time, metavar="TIME", help="with --gates: now, in UTC; else the last candle")
    p.add_argument("--json", metavar="OUT", help="a study's or --replay-check's file for the report")
    p.add_argument("--kinds", type=_pairs, default=(), metavar="A0,E15", help="with --self-test: only these markets")
    p.add_argument("--count", type=_count, default=0, metavar="N", help="with --self-test: seeds of each kind")
    p.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/K", help="with --self-test: part I of K")
    return p


def _check_source(p: argparse.ArgumentParser, a: argparse.Namespace) -> None:
    """What may run on the demo or a recording, and what may not."""
    if a.rehearse_live and not a.demo:
        p.error("--rehearse-live needs --demo: it never touches Luno")
    if (a.demo or a.replay) and (a.backtest or a.gates or a.doctor or a.self_test):
        p.error("--demo and --replay belong to the dashboard, --headless, --replay-check and --export")
    if a.headless and not (a.demo or a.replay) and a.speed is not None:
        p.error("--speed belongs to --demo and --replay: PAPER runs in real time")


def check_use(p: argparse.ArgumentParser, a: argparse.Namespace) -> None:
    """Combinations that mean nothing are refused, not ignored."""
    if a.backtest and not (a.data and a.json):
        p.error("--backtest needs --data DIR and --json OUT")
    if a.self_test and not a.json:
        p.error("--self-test needs --json OUT; its rows are added to that file")
    if a.gates and not a.data:
        p.error("--gates needs --data DIR")
    is_study = a.backtest or a.gates or a.self_test
    if not is_study and (a.data or (a.json and not a.replay_check) or a.pairs or a.fees):
        p.error("--data, --pairs, --fees and --json belong to --backtest, --gates and --self-test")
    if not a.self_test and (a.kinds or a.count or a.shard != (1, 1)):
        p.error("--kinds, --count and --shard belong to --self-test")
    if a.as_of is not None and not a.gates:
        p.error("--as-of belongs to --gates")
    if a.cycles and not a.headless:
        p.error("--cycles belongs to --headless")
    _check_source(p, a)


# ==============================================================================
# MAIN | wire the parts, go
# shell | uses ERRORS TYPES SETTINGS CANDLES STRATEGIES PORTFOLIO RISK CYCLE BACKTEST LEDGER SELFTEST ROWS SYSTEM STORE PARITY HTTP LUNO DEMO FEED LIVE NOTIFY KEYS FILES DOCTOR ENGINE REHEARSAL JOBS WORKER DASHBOARD ARGUMENTS
# ==============================================================================

import traceback

POLL_S = 0.05
SHOW_WAIT_S = 5.0  # the window looks once a second
if sys.platform == "win32":
    END_SIGNALS = (signal.SIGTERM, signal.SIGBREAK)  # a console that is closed sends the last
else:
    END_SIGNALS = (signal.SIGTERM,)
EXIT_OK, EXIT_NO, EXIT_USAGE, EXIT_OUTSIDE, EXIT_DATA = 0, 1, 2, 3, 4
DEMO_SPEED = 1800.0
DEMO_KEY_ID = "demo"
DEMO_TIMEFRAME_S = 3600  # on 4-hour candles there would be a decision every eight seconds and minutes without a fill
TIMEFRAME_NAME = "LUNOBIZ_TIMEFRAME_S"


@dataclass(frozen=True, slots=True)
class Session:
    """What the command line and the folder decide: mode, settings, where things are."""

    mode: Mode
    settings: Settings
    home: Path
    env: Mapping[str, str]
    seed: int
    replay: str
    speed: float
    synchronous: str = "FULL"

    @property
    def database(self) -> Path:
        """PAPER on Luno has the audit that counts; demo, replay and a test exchange have files of their own."""
        names = {Mode.DEMO: "demo.db", Mode.REPLAY: "replay.db"}
        return self.home / names.get(self.mode, "test.db" if self.settings.is_test_exchange else "lunobiz.db")

    @property
    def kill_folders(self) -> tuple[Path, ...]:
        """Where a kill file is honoured: the data folder and beside the program."""
        return (self.home, program_folder())

    @property
    def vault(self) -> KeyVault:
        """Where keys are kept: `.env` in the same folders, or what the system protects."""
        return KeyVault(self.home, self.kill_folders, system_protection())

    @property
    def redactor(self) -> Redactor:
        """Knows every secret that was loaded."""
        return Redactor([self.env[n] for n in SECRET_NAMES if self.env.get(n)])


class Ways(NamedTuple):
    """What differs between the modes: the way to an exchange, the clock, the pace."""

    settings: Settings
    transport: Transport
    key: Credentials
    clock: Clock
    pace: Pace
    bar_s: int
    trade: TradeStep


def _stepped_ways(session: Session) -> Ways:
    """The built-in exchange on its own clock: generated for the demo, recorded for a replay."""
    settings, clock = session.settings, SteppedClock(0)
    if session.mode is Mode.DEMO:
        exchange = DemoExchange.generated(session.seed, clock)
        pairs = tuple(m.pair for m in exchange.markets())
        settings = replace(settings, schedule=replace(settings.schedule, counter="ZAR", pairs=pairs))
    else:
        folder = read_folder(Path(session.replay))
        settings = folder_settings(settings, folder)
        folder_job(settings, folder)
        exchange = DemoExchange.recorded(folder.data, folder.seconds, folder.markets, clock)
    clock.set_ms(exchange.start_ms)
    pace = SteppedPace(clock, exchange.finest_s, settings.schedule.timeframes, (exchange.start_ms, exchange.end_ms))
    key = Credentials(DEMO_KEY_ID, DEMO_KEY_ID)
    return Ways(settings, exchange, key, clock, pace, exchange.finest_s, trade_moment)


def _real_ways(session: Session, wall: Clock) -> Ways:
    """Luno, or the test exchange, in real time."""
    settings = session.settings
    transport = HttpTransport(settings.exchange_url, settings.exchange_ca)
    pace = RealPace(wall, settings.schedule.timeframes)
    key = parse_live_key(session.env) if session.mode is Mode.LIVE else parse_read_key(session.env)
    return Ways(settings, transport, key, wall, pace, 0, trade_now)


def _notifier(session: Session, clock: Clock) -> Notifier:
    """Telegram if it is set up, else the desktop; none for demo and replay, whose events are not real."""
    channels: list[Channel] = []
    token = telegram_token(session.env)
    is_real = session.mode in (Mode.PAPER, Mode.LIVE)
    if is_real and token and session.settings.notices.telegram_chat:
        channels.append(Telegram(HttpTransport(TELEGRAM_URL), token, session.settings.notices.telegram_chat))
    if is_real and session.settings.notices.desktop:
        channels.append(Desktop())
    return Notifier(channels, clock, session.redactor.clean)


def _fresh_store(session: Session) -> Store:
    """The audit; a demo or replay that ended in order starts anew but for its saved runs, a broken off one goes on."""
    store = Store(session.database, session.redactor, session.synchronous)
    if session.mode in (Mode.PAPER, Mode.LIVE) or store.is_session_open():
        return store
    runs = [(run.time_ms, run.kind, run.payload) for run in reversed(saved_runs(store).runs)]
    store.close()
    for suffix in ("", "-wal", "-shm"):
        session.database.with_name(session.database.name + suffix).unlink(missing_ok=True)
    store = Store(session.database, session.redactor, session.synchronous)
    store.adopt_results(runs)
    return store


def save_key(vault: KeyVault, key_id: str, secret: str) -> str:
    """Keep a read-only key, protected where the system can do that; returns what to tell the owner."""
    names = {PREFIX + "READ_KEY_ID": key_id.strip(), PREFIX + "READ_KEY_SECRET": secret.strip()}
    try:
        parse_read_key(names)
        vault.save(names)
    except SettingsError as error:
        return f"The key was not saved: {error}"
    return "The key was saved."


def protect_keys(vault: KeyVault) -> str:
    """Move the keys from `.env` to where the system protects them; returns what to tell the owner."""
    try:
        names = vault.move()
    except SettingsError as error:
        return f"The keys were not moved: {error}"
    return f"Windows protects the keys now; {len(names)} lines were removed from .env and its copies."


def _live_problems(session: Session, engine: Engine) -> Iterator[str]:
    """What is in the way of LIVE as far as this computer can tell."""
    if not session.settings.wants_live:
        yield "LUNOBIZ_ENABLE_LIVE is not yes in the .env file."
    yield from engine.lock_reasons(SystemClock().now_ms(), is_fresh=True)
    if not parse_live_key(session.env):
        yield "LUNOBIZ_LIVE_KEY_ID and LUNOBIZ_LIVE_KEY_SECRET are not set: LIVE needs a key of its own."
    yield from (f"{doubt}." for doubt in folder_doubts(session.home, os.environ))
    if engine.desk.state in (TradingState.KILLED, TradingState.HALTED):
        yield f"PAPER is {engine.desk.state.name}: {', '.join(c.kind.words for c in engine.desk.causes)}."


def _ask_line(session: Session) -> tuple[tuple[str, ...], str]:
    """What the exchange says of key and clock, and the cash that is free there."""
    ways = _real_ways(session, SystemClock())
    client = LunoClient(ways.transport, ways.key, RateLimit(ways.clock), ways.clock, random.Random())
    counter, funds = session.settings.schedule.counter, ""
    try:
        orders = LunoOrders(client)
        trouble = orders.key_trouble()
        free = next((b.available for b in orders.balances() if b.asset == counter), Decimal(0))
        funds = f"{free:,.2f} {counter}"
    except (ExchangeDown, ExchangeRefused) as error:
        trouble = str(error)
    finally:
        ways.transport.close()
    problems = [f"The live key did not pass its check: {trouble}."] if trouble else []
    if abs(client.skew_ms) > MAX_SKEW_MS:
        problems.append(f"This computer's clock is {client.skew_ms / 1000:+.1f} s off Luno's: set it right.")
    return tuple(problems), funds


def live_offer(session: Session, engine: Engine) -> LiveOffer:
    """What is in the way of LIVE, and what it would be; asks the exchange only when nothing else is in the way."""
    problems, funds = tuple(_live_problems(session, engine)), ""
    if not problems:
        problems, funds = _ask_line(session)
    facts = (("Cash at Luno", funds), *live_words(session.settings, RAMP[0][0]))
    return LiveOffer(problems, facts, PROMISES)


def _live_session(session: Session, parts: EngineParts) -> LiveSession:
    """Real orders for these parts, after the account was read once."""
    store, install = parts.store, parts.install

    def locks() -> tuple[str, ...]:
        facts = LiveFacts(session.settings, Mode.LIVE, SystemClock().now_ms(), install.key, install.code_hash)
        return gate_locks(store, parts.feed, facts)

    saved = store.last_desk(Mode.LIVE)
    who = LiveDesk(install_name(install), locks, parts.is_killed, session.settings,
                   lambda pair: parts.feed.markets.get(pair),
                   lambda: safe_share(store.links("gate_rows"), install.key))
    live = LiveSession(LunoOrders(parts.client), store, who, saved[1].orders if saved is not None else ())
    parts.feed.refresh_markets(parts.client.exchange_ms())
    live.begin()
    return live


def open_engine(session: Session, listen: Callable[[Event], None]) -> tuple[Engine, WorkerOptions]:
    """The one place that knows which parts make a mode."""
    wall, is_real = SystemClock(), session.mode in (Mode.PAPER, Mode.LIVE)
    store = _fresh_store(session)
    log = JsonLog(session.home / "logs", session.redactor, wall)
    ways = _real_ways(session, wall) if is_real else _stepped_ways(session)
    limit = RateLimit(ways.clock)
    client = LunoClient(ways.transport, ways.key, limit, ways.clock, random.Random(session.seed))
    feed = Feed(client, store, ways.settings, ways.bar_s)
    parts = EngineParts(
        session.mode, client, feed, store, ways.pace, ways.trade, lambda: is_killed(session.kill_folders), log,
        _notifier(session, wall), listen, read_install(session.home),
    )
    if session.mode is Mode.LIVE:
        try:
            parts = replace(parts, live=_live_session(session, parts))
        except LunobizError:
            store.close()
            raise
    options = WorkerOptions(
        ways.clock, session.home, session.database, limit.left, lambda i, s: save_key(session.vault, i, s),
        session.speed, session.mode is not Mode.PAPER,
    )
    if session.mode is Mode.PAPER:
        live = replace(session, mode=Mode.LIVE)
        way = partial(open_engine, live)
        options = replace(options, offer_live=partial(live_offer, live), open_live=way)
    engine = Engine(parts, ways.settings)
    for sentence in unknown_names(session.env):
        engine.tell(Event(ways.clock.now_ms(), "settings", "warning", sentence))
    locks = engine.lock_reasons(wall.now_ms())
    if session.settings.wants_live and session.mode is not Mode.LIVE and sys.stderr is not None:
        why = f"LIVE is locked: {locks[0]}" if locks else "LIVE asks for your confirmation in the window."
        sys.stderr.write(f"{why} Going on in PAPER.\n")
    left = store.last_desk(Mode.LIVE) if session.mode is Mode.PAPER else None
    if left is not None and (left[1].positions or left[1].orders):
        held = ", ".join(p.pair for p in left[1].positions) or "none"
        text = (f"LIVE was left with positions ({held}) and {len(left[1].orders)} order(s): only the stops that rest at"
                " Luno watch them until LIVE is confirmed again")
        engine.tell(Event(ways.clock.now_ms(), "live_left", "error", text))
    return engine, options


def emit(value: Mapping[str, object]) -> None:
    """One JSON object as a line on stdout."""
    sys.stdout.write(canonical(dict(value)) + "\n")


def _lines(report: CycleReport, state: TradingState) -> Iterator[dict[str, object]]:
    """A report as lines: fills, decisions, orders, events, a change of state, and the cycle itself."""
    now = report.now_ms
    for fill in report.settlement.fills:
        yield {"t": now, "kind": "fill", "fill": asdict(fill)}
    for decision in report.decisions:
        yield {"t": now, "kind": "decision", "decision": asdict(decision)}
    for order in report.orders:
        yield {"t": now, "kind": "order", "order": asdict(order)}
    for event in report.events:
        yield {"t": now, "kind": "event", "event": asdict(event)}
    if report.desk.state is not state:
        yield {"t": now, "kind": "state", "from": state.name, "to": report.desk.state.name}
    if report.due:
        yield {"t": now, "kind": "cycle", "equity": report.equity, "exposure": report.exposure,
               "state": report.desk.state.name}


def ignore_event(event: Event) -> None:
    """Nobody listens in a headless run: its reports are the output."""


def _pause(market_s: float, session: Session) -> None:
    """Wait as the speed asks; real time waits a tick."""
    speed = 1.0 if session.mode is Mode.PAPER else session.speed
    if speed > 0:
        SystemClock().sleep(market_s / speed)


def run_headless(session: Session, cycles: int) -> int:
    """The same engine without a window, one JSON object a line; ends after `cycles` decisions, 0 for never."""
    engine, options = open_engine(session, ignore_event)
    chooser = Chooser(engine, options.clock)
    decided = fills = 0
    try:
        while engine.load(options.clock.now_ms()) is not None:
            pass
        if engine.has_resumed:
            emit({"t": options.clock.now_ms(), "kind": "event", "event": "resumed after an interruption"})
        while not cycles or decided < cycles:
            state = engine.desk.state
            chooser.look_after()
            reports = engine.step()
            if reports is None:
                break
            for report in reports:
                for line in _lines(report, state):
                    emit({"mode": session.mode.value, **line})
                state = report.desk.state
                fills, decided = fills + len(report.settlement.fills), decided + bool(report.due)
            _pause(engine.parts.pace.wait_s(), session)
    finally:
        chooser.end()
        engine.close()
    emit({"kind": "end", "mode": session.mode.value, "cycles": decided, "fills": fills,
          "equity": round(equity(engine.desk), 8), "state": engine.desk.state.name})
    sys.stdout.flush()
    return EXIT_OK


def run_file_backtest(session: Session, arguments: argparse.Namespace) -> int:
    """A backtest of a folder from the command line, with progress on stderr and the report in a file."""
    folder = read_folder(Path(arguments.data), arguments.pairs)
    settings = folder_settings(session.settings, folder, arguments.timeframe)
    job = folder_job(settings, folder, arguments.fees)
    wall = SystemClock()
    started = wall.mono_s()

    def on_progress(done: int, total: int) -> bool:
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write(f"\r{done / total:4.0%} of {total:,} steps, {wall.mono_s() - started:.0f} s ")
        return True

    report = run_backtest(job, on_progress)
    write_json(Path(arguments.json), report_json(report, settings))
    metrics = report.metrics
    sys.stdout.write(
        f"{len(job.candles)} markets, {metrics.round_trips} round trips, total return {metrics.total_return:+.2%}"
        f" against {metrics.buy_and_hold:+.2%} held, worst fall {metrics.max_drawdown.value:.2%},"
        f" fees {metrics.fees_paid:,.2f} {settings.schedule.counter}\n"
        f"First parameter set, NOT CHOSEN by training. Report: {arguments.json}\n"
    )
    return EXIT_OK


def _recorded_bars(folder: str, pairs: Sequence[str]) -> RecordedBars:
    """What the self-test draws recorded bars from."""
    found = read_folder(Path(folder), pairs)
    return recorded_bars([series_of(found.data[pair], found.seconds) for pair in sorted(found.data)])


def _test_cases(a: argparse.Namespace, has_candles: bool) -> tuple[TrialCase, ...]:
    """The cases that the command line asks for; without recorded candles there are none of kind A1."""
    words = a.kinds or tuple(w for w in DEFAULT_KINDS if has_candles or w != "A1")
    if not has_candles and any(kind_of(word)[0] == "A1" for word in words):
        raise SettingsError("kind A1 draws from recorded candles: name their folder with --data DIR")
    plan = SelfTestPlan(words, a.seed, a.count, (a.fees,) if a.fees else ())
    return shard_of(self_test_cases(plan), *a.shard)


def _kept_rows(path: Path, job: SelfTestJob) -> list[dict[str, object]]:
    """The rows of an earlier run; DataError if they were measured with another configuration or other candles."""
    rows = read_rows(path)
    if any(row.get("config") != job.config for row in rows):
        raise DataError(f"{path.name} holds rows of another configuration; name another file with --json")
    if job.recorded and any(row.get("data") not in ("", job.recorded.name) for row in rows):
        raise DataError(f"{path.name} holds rows drawn from other candles; name another file with --json")
    return rows


def _measure_cases(cases: Sequence[TrialCase], job: SelfTestJob, out: Path) -> None:
    """Judge the cases on all cores and add a row for each to the file, with progress on stderr."""
    wall, processes = SystemClock(), min(os.cpu_count() or 1, len(cases))
    jobs = [replace(job, cases=shard_of(cases, number, processes)) for number in range(1, processes + 1)]
    started = wall.mono_s()
    for done, row in enumerate(rows_of_self_test([job for job in jobs if job.cases]), start=1):
        append_row(out, row)
        if sys.stderr is not None and (sys.stderr.isatty() or done % 100 == 0 or done == len(cases)):
            spent = wall.mono_s() - started
            left_min = spent / done * (len(cases) - done) / 60
            end = "\r" if sys.stderr.isatty() else "\n"
            sys.stderr.write(f"{done:,} of {len(cases):,} markets, {spent:.0f} s, {left_min:.0f} min left   {end}")


def run_self_test(session: Session, a: argparse.Namespace, judge: Judge = judge_trials) -> int:
    """Measure how often the gates are wrong, as far as the file of rows does not tell yet; 1 if a target is missed."""
    out, recorded = Path(a.json), _recorded_bars(a.data, a.pairs) if a.data else None
    method = method_hash(program_source(), parameter_sets())
    job = SelfTestJob((), session.settings, f"{method} {config_hash(session.settings)}", recorded, judge)
    done = {row.get("key") for row in _kept_rows(out, job)}
    cases = [case for case in _test_cases(a, recorded is not None) if case.key not in done]
    try:
        if cases:
            _measure_cases(cases, job, out)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nStopped. What was measured is in {out}; the same command goes on from there.\n")
        raise
    rows = _kept_rows(out, job)
    lines = self_test_table(rows)
    targets = self_test_targets(lines)
    sys.stdout.write(f"{self_test_markdown(lines, targets)}\nMethod {method}, rows {name_of_rows(rows)}\n")
    return EXIT_NO if any(target.result == "FAIL" for target in targets) else EXIT_OK


def gates_text(values: Mapping[str, object]) -> str:
    """An evaluation as a table for people: a row per gate, its sentence below it, the summary last."""
    gates = values["gates"] if isinstance(values["gates"], dict) else {}
    cells = [("", "Gate", "Result", "Needed", "Actual", "Margin")]
    cells += [(name, g["name"], g["result"], g["needed"], g["actual"], margin_text(name, g))
              for name, g in sorted(gates.items())]
    widths = [max(map(len, column)) + 2 for column in zip(*cells, strict=True)]
    lines = ["".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    told = [f"{line}\n    {gates[row[0]]['text']}" for line, row in zip(lines[1:], cells[1:], strict=True)]
    return "\n".join((lines[0], *told, "", f"{values['summary']}", f"Attempt {values['attempt']} on this data.", ""))


def _show_gates_progress(progress: GatesProgress, spent_s: float) -> None:
    """One line on stderr that writes over itself; on a terminal only."""
    if sys.stderr is None or not sys.stderr.isatty():
        return
    left = f", about {spent_s * (progress.total / progress.done - 1):.0f} s left" if progress.done else ""
    share = f"{progress.done / progress.total:4.0%}" if progress.total else ""
    sys.stderr.write(f"\r{progress.phase} {share}, {spent_s:.0f} s{left}   ")
    sys.stderr.flush()


def _await_gates(task: GateTask, store: Store, install: Install) -> GatesDone:
    """Evaluate and wait; Ctrl-C ends all processes and counts as cancelled."""
    wall = SystemClock()
    started = wall.mono_s()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the children inherit it: Ctrl-C is ours
    run = GateRun(task, store, install)
    try:
        signal.signal(signal.SIGINT, before)
        while True:
            for message in run.poll():
                if isinstance(message, GatesDone):
                    return message
                _show_gates_progress(message, wall.mono_s() - started)
            wall.sleep(POLL_S)
    except KeyboardInterrupt:
        return run.cancel() or GatesDone("", CANCELLED)
    finally:
        run.end()


def run_gates(session: Session, a: argparse.Namespace) -> int:
    """All gates on a folder of candles; LOCKED or not, the answer is the result. 1 if there is none."""
    store = Store(session.database, session.redactor, session.synchronous)
    install = read_install(session.home)
    request = BacktestRequest("folder", a.data, a.pairs, a.timeframe)
    task = GateTask(request, session.settings, install.code_hash, SystemClock().now_ms(), a.as_of or 0, a.fees)
    try:
        done = _await_gates(task, store, install)
    finally:
        store.close()
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write("\r" + " " * 70 + "\r")
    if not done.payload:
        if done.problem != CANCELLED:
            raise DataError(f"{done.problem} {done.note}".strip())
        if sys.stderr is not None:
            sys.stderr.write(f"Cancelled. {done.note}".rstrip() + "\n")
        return EXIT_NO
    values = json.loads(done.payload)
    if a.json:
        write_json(Path(a.json), values)
    sys.stdout.write(f"{gates_text(values)}Recorded candles never unlock LIVE.\n")
    return EXIT_OK


def _probe(session: Session) -> LunoClient:
    """A client for the doctor's questions."""
    clock = SystemClock()
    transport = HttpTransport(session.settings.exchange_url, session.settings.exchange_ca)
    return LunoClient(transport, parse_read_key(session.env), RateLimit(clock), clock, random.Random(session.seed))


def now_hour_ms() -> int:
    """Two hours ago, on the hour."""
    return (SystemClock().now_ms() // HOUR_MS - 2) * HOUR_MS


def _skew_of(client: LunoClient) -> float:
    """The clock's difference, NaN until the exchange has answered."""
    return client.skew_ms if client.last_ok_ms else math.nan


def _stored_locks(home: Path, env: Mapping[str, str]) -> tuple[str, ...]:
    """Why the stored evaluations lock LIVE, the account's fees aside; nothing if they cannot be read."""
    locks: tuple[str, ...] = ()
    with contextlib.suppress(LunobizError):
        session = Session(Mode.PAPER, parse_settings(env), home, env, 0, "", 0.0)
        if session.database.exists():
            store, install = Store(session.database, session.redactor), read_install(home)
            facts = LiveFacts(session.settings, Mode.PAPER, SystemClock().now_ms(), install.key, install.code_hash)
            locks = live_locks(store.links("gate_rows"), store.links("attempts"), facts)
            store.close()
    return locks


def run_doctor(home: Path, env: Mapping[str, str]) -> int:
    """The self-check, a row per check; 1 if any failed."""
    facts = DoctorFacts(
        machine=machine_facts(home, os.environ), home=home, folders=(home, program_folder()), environ=os.environ,
        home_doubts=folder_doubts(home, os.environ), is_ignored=is_ignored_by_git,
        open_store=lambda: Store(home / "lunobiz.db", Redactor()).close(), protection=system_protection(),
    )
    with contextlib.suppress(SettingsError):  # what is wrong with the settings is a check of its own
        session = Session(Mode.PAPER, parse_settings(env), home, env, 0, "", 0.0)
        client = _probe(session)
        pair = session.settings.schedule.pairs[0]
        facts = replace(
            facts, read_tickers=client.tickers, skew_ms=lambda: _skew_of(client),
            read_candles=(lambda: client.candles(pair, now_hour_ms(), 3600)) if client.has_key else None,
        )
    checks = run_checks(replace(facts, live_locks=_stored_locks(home, env) or facts.live_locks))
    sys.stdout.write(format_checks(checks) + "\n")
    return EXIT_NO if has_failed(checks) else EXIT_OK


def run_export(session: Session, folder: str) -> int:
    """Write the audit of PAPER, or of the demo or replay, to a new folder inside `folder`."""
    if not session.database.exists():
        raise DataError(f"there is no {session.database.name} in {session.home} yet: start the bot first")
    store = Store(session.database, session.redactor)
    names = export_audit(store, Path(folder), SystemClock().now_ms())
    store.close()
    sys.stdout.write("".join(f"{name}\n" for name in names))
    return EXIT_OK


def run_replay_check(session: Session, is_one: bool, out: str) -> int:
    """Run what PAPER, demo and replay recorded over again; 1 if anything comes out otherwise than it was recorded."""
    modes = (session.mode,) if is_one else (Mode.PAPER, Mode.LIVE, Mode.DEMO, Mode.REPLAY)
    chosen = [replace(session, mode=m) for m in modes if replace(session, mode=m).database.exists()]
    reports = []
    for each in chosen:
        store = Store(each.database, each.redactor)
        try:
            store.verify()
            reports.append(check_parity(read_audit(each.database, each.mode), code_hash(program_source())))
        finally:
            store.close()
    reports = [r for r in reports if r.stretches]
    if not reports:
        raise DataError(f"there are no recorded inputs in {session.home} yet: start the bot first")
    is_equal = all(r.is_equal for r in reports)
    if out:
        write_json(Path(out), {"version": __version__, "equal": is_equal, "checks": [parity_json(r) for r in reports]})
    for report in reports:
        lines = [report.text, *(d.text for d in report.differences[1:]), *report.notes]
        sys.stdout.write("".join(f"{report.mode.value}: {line}\n" for line in lines))
    return EXIT_OK if is_equal else EXIT_NO


def fault_words(error: BaseException | None) -> str:
    """An unforeseen error as its kind and place; its own text might hold what may not be shown."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    return f"internal fault {type(error).__name__} at " + "; ".join(f"{f.name}:{f.lineno}" for f in frames[-4:])


def _hook_faults(log: JsonLog) -> None:
    """Whatever escapes in any thread goes to the log, by kind and place only."""

    def on_fault(kind: type[BaseException], error: BaseException | None, trace: types.TracebackType | None) -> None:
        log.write("error", "fault", fault_words(error))

    sys.excepthook = on_fault
    hook_threads(on_fault)


def mode_settings(mode: Mode, env: Mapping[str, str]) -> Settings:
    """The owner's settings; the demo keeps its lively set, and hourly candles unless the owner chose others."""
    settings = parse_settings(env)
    if mode is not Mode.DEMO:
        return replace(settings, params=parameter_sets()[0])
    if env.get(TIMEFRAME_NAME, "").strip():
        return settings
    return replace(settings, schedule=replace(settings.schedule, timeframes=(DEMO_TIMEFRAME_S,)))


def run_window(session: Session) -> int:
    """The dashboard; the worker opens the session in its own thread."""
    has_key = session.mode is not Mode.PAPER or bool(parse_read_key(session.env))
    worker = Worker(lambda listen: open_engine(session, listen))
    log = JsonLog(session.home / "logs", session.redactor, SystemClock())
    _hook_faults(log)
    request, is_loose = ShowRequest(session.home), session.mode is Mode.PAPER and bool(session.vault.movable())
    request.take()  # one that nobody answered
    window = Dashboard(worker, WindowOptions(
        session.mode, session.home, __version__, lambda: write_kill_file(session.home),
        lambda i, s: save_key(session.vault, i, s), is_test_exchange=session.settings.is_test_exchange,
        asks_first_run=not has_key, write_log=lambda text: log.write("error", "window", text),
        timeframes=session.settings.schedule.timeframes, is_asked_for=request.take,
        protect_keys=partial(protect_keys, session.vault) if is_loose else None,
    ))
    for number in (*END_SIGNALS, signal.SIGINT):
        signal.signal(number, lambda *_: window.leave())
    choice = window.run()
    log.close()
    if choice == "demo":
        settings = mode_settings(Mode.DEMO, session.env)
        return run_window(replace(session, mode=Mode.DEMO, settings=settings, speed=DEMO_SPEED))
    env = session.vault.env(os.environ)
    if choice == "key" and parse_read_key(env):
        return run_window(replace(session, env=env))
    return EXIT_OK


def _show_rehearsal(done: int, total: int) -> bool:
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"\r{done} of {total} orders ")
    return True


def run_rehearsal(session: Session) -> int:
    """LIVE from start to end on the built-in exchange, with faults and crashes; 1 if anything does not agree."""
    log = JsonLog(session.home / "logs", session.redactor, SystemClock())
    database = session.home / "rehearsal.db"
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    report = Rehearsal(session.settings, database, session.seed, log).run(REHEARSED_ORDERS, REHEARSED_BEATS,
                                                                         _show_rehearsal)
    sys.stdout.write(rehearsal_text(report))
    return EXIT_OK if report.is_clean else EXIT_NO


def _session(a: argparse.Namespace, home: Path, env: Mapping[str, str]) -> Session:
    """Settings and mode; LIVE is refused with its reason."""
    if a.timeframe:
        env = {**env, TIMEFRAME_NAME: ",".join(map(str, a.timeframe))}
    mode = Mode.DEMO if a.demo else Mode.REPLAY if a.replay else Mode.PAPER
    settings = mode_settings(mode, env)
    default_speed = 0.0 if a.headless else DEMO_SPEED
    speed = a.speed if a.speed is not None else default_speed
    return Session(mode, settings, home, env, a.seed, a.replay or "", speed)


def is_shown_instead(home: Path) -> bool:
    """True if a window that runs on this folder came to the front in place of a second one."""
    request, clock = ShowRequest(home), SystemClock()
    end = clock.mono_s() + SHOW_WAIT_S
    if not request.ask():
        return False
    while request.is_waiting and clock.mono_s() < end:
        clock.sleep(POLL_S)
    is_taken = not request.is_waiting
    request.take()
    return is_taken


def run_alone(session: Session, a: argparse.Namespace) -> int:
    """Trade, in the window or without; one program per data folder, a second start shows the window of the first."""
    lock = InstanceLock(session.home / "instance.lock")
    if not lock.acquire():
        if not a.headless and is_shown_instead(session.home):
            if sys.stdout is not None:
                sys.stdout.write("LunoBiz runs already on this folder: its window was brought to the front.\n")
            return EXIT_OK
        raise AuditBroken(f"another LunoBiz is running on {session.home}; close it first or choose another --home")
    try:
        return run_headless(session, a.cycles) if a.headless else run_window(session)
    finally:
        lock.release()


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks; LunobizErrors are for `main`."""
    p = parser()
    a = p.parse_args(argv)
    check_use(p, a)
    home = data_folder(a.home, os.environ)
    vault = KeyVault(home, (home, program_folder()), system_protection())
    env = vault.env(os.environ)
    for sentence in (*unknown_names(env), *filter(None, [vault.trouble])) if sys.stderr is not None else ():
        sys.stderr.write(f"warning: {sentence}\n")
    if a.doctor:
        return run_doctor(home, env)
    session = _session(a, home, env)
    if a.rehearse_live:
        return run_rehearsal(session)
    if a.export:
        return run_export(session, a.export)
    if a.replay_check:
        return run_replay_check(session, a.demo or bool(a.replay), a.json or "")
    studies = ((a.backtest, run_file_backtest), (a.self_test, run_self_test), (a.gates, run_gates))
    for is_asked, study in studies:
        if is_asked:
            return study(session, a)
    return run_alone(session, a)


EXIT_CODES = (
    (SettingsError, EXIT_USAGE), (DataError, EXIT_DATA), (AuditBroken, EXIT_DATA),
    (ExchangeDown, EXIT_OUTSIDE), (ExchangeRefused, EXIT_OUTSIDE), (LunobizError, EXIT_NO),
)


def _ready_streams() -> None:
    """A windowed exe has no stdout; text is UTF-8 everywhere."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    for number in END_SIGNALS:
        signal.signal(number, signal.default_int_handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code. No traceback ever shows a secret: texts of libraries are not shown."""
    multiprocessing.freeze_support()
    _ready_streams()
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except LunobizError as error:
        if sys.stderr is not None:
            sys.stderr.write(f"lunobiz: {error}\n")
        else:
            show_failure(str(error))  # double-clicked: there is no console to read it on
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    except KeyboardInterrupt:
        return EXIT_OK
    except Exception as error:
        if sys.stderr is not None:
            sys.stderr.write(f"lunobiz: {fault_words(error)}\n")
        return EXIT_NO


if __name__ == "__main__":
    raise SystemExit(main())
