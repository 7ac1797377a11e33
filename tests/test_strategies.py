"""STRATEGIES: each rule on candles made by hand, the kinds of market, the ranking, and no look at what comes later."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import lunobiz
from candles import (
    DAY_S,
    HOUR_S,
    START_MS,
    random_walk,
    ranging,
    rows_of,
    series,
    series_from,
    trending,
    wild,
)
from lunobiz import (
    Base,
    Costs,
    Doubt,
    Floats,
    Ints,
    Market,
    MarketView,
    Outlook,
    Regime,
    RegimeColumns,
    Series,
    Setup,
    SetupColumns,
    SignalTable,
    StrategyParams,
    Ticker,
    break_even,
    confidence_of,
    explain,
    explain_nothing,
    outlook_at,
    rank_markets,
    series_of,
    signal_table,
)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
PARAMS = StrategyParams()
FREE = Costs(0.0, 0.0, 0.0)
UNKNOWN, TREND, RANGE, WILD = range(4)  # the codes, as places in REGIMES


def market(pair: str = "XBTZAR", price_scale: int = 2) -> Market:
    """A market of the entry tier: maker 0.4 %, taker 0.6 %."""
    return Market(pair, pair[:3], pair[3:], price_scale, 6, 1e-6, 1e6, 0.01, 1e9, "ACTIVE", 0.004, 0.006)


def quote(pair: str = "XBTZAR", bid: float = 99.95, ask: float = 100.05) -> Ticker:
    """A quote; bid and ask are a tenth of a percent apart unless given."""
    return Ticker(pair, START_MS, bid, ask, (bid + ask) / 2, 100.0)


def base_of(whole: Series, code: int, atr: float | Floats, efficiency: float = 0.3, is_up: bool = True) -> Base:
    """What the strategies share, with one kind of market at all candles."""
    count = len(whole)
    columns = RegimeColumns(np.full(count, code), np.full(count, efficiency), np.full(count, is_up))
    return Base(whole, np.full(count, atr) if isinstance(atr, float) else atr, columns)


def fired(flags: lunobiz.Flags) -> list[int]:
    """The rows with a flag."""
    return np.flatnonzero(flags).tolist()


# --- momentum breakout ---

BREAKOUT = replace(PARAMS, breakout=3, exit_channel=2)
CLIMB = """
100 101  99 100 1
100 102  99 101 1
101 103 100 102 1
102 103  99 101 1
101 104.5 101 104 1   # closes above 103, the highest of the three candles before
104 105 103 104.5 1   # equals the channel high of 104.5: not above it
"""


def test_a_breakout_buys_a_close_above_the_channel_in_a_rising_trend() -> None:
    setup = lunobiz.momentum_breakout(base_of(series_from(CLIMB), TREND, 2.0), BREAKOUT)
    assert setup.strategy == "momentum breakout"
    assert fired(setup.is_entry) == [4]
    assert setup.strength[4] == pytest.approx(0.4 + 0.3 * (1.0 / 2.0) + 0.3 * (0.3 / 0.6))
    assert setup.stop_distance[4] == 5.0 * 2.0
    assert setup.move[4] == pytest.approx(2 * 10.0 / 104.0)
    extra = dict(setup.extra)
    assert (extra["high"][4], extra["low"][4], extra["efficiency"][4]) == (103.0, 99.0, 0.3)


@pytest.mark.parametrize(("code", "is_up"), [(UNKNOWN, True), (RANGE, True), (WILD, True), (TREND, False)])
def test_a_breakout_in_any_other_market_buys_nothing(code: int, is_up: bool) -> None:
    setup = lunobiz.momentum_breakout(base_of(series_from(CLIMB), code, 2.0, is_up=is_up), BREAKOUT)
    assert fired(setup.is_entry) == []


def test_a_breakout_needs_a_range_to_measure_its_stop() -> None:
    for atr in (0.0, math.nan):
        setup = lunobiz.momentum_breakout(base_of(series_from(CLIMB), TREND, atr), BREAKOUT)
        assert fired(setup.is_entry) == []


def test_a_breakout_is_left_below_the_exit_channel() -> None:
    whole = series_from(CLIMB + "104 105 100.9 100.5 1\n 100 101 100 100.9 1\n")
    setup = lunobiz.momentum_breakout(base_of(whole, TREND, 2.0), BREAKOUT)
    # row 6 closes at 100.5, below 101, the lowest of the two candles before; row 7 at 100.9 just touches its floor
    assert fired(setup.is_exit) == [6]


def test_a_breakout_is_left_when_its_market_ranges_below_the_average() -> None:
    whole = series_from(CLIMB)
    for code, is_up, expected in ((RANGE, False, True), (RANGE, True, False), (TREND, False, False)):
        setup = lunobiz.momentum_breakout(base_of(whole, code, 2.0, is_up=is_up), BREAKOUT)
        assert bool(setup.is_exit.any()) == expected


def test_the_parts_of_a_strength_are_capped() -> None:
    whole = series_from(CLIMB + "104 300 104 300 1\n")
    setup = lunobiz.momentum_breakout(base_of(whole, TREND, 2.0, efficiency=0.9), BREAKOUT)
    assert setup.strength[6] == pytest.approx(1.0)


# --- volatility expansion ---

EXPAND = replace(PARAMS, atr=2, squeeze=4, expansion=2.0, stop_atr=5.0)
QUIET = """
100 102  98 100 1
100 102  98 100 1
100 102  98 100 1
100 102  98 100 1
100 102  98 100 1
100 101  99 100 1   # ranges of 2 after ranges of 4: quiet
100 101  99 100 1
100 106 100 105.5 1 # a range of 6, closed near its high, above the closes before
"""


def expansion(text: str, code: int = TREND) -> SetupColumns:
    """The expansion's reading, with the average range of the candles themselves."""
    whole = series_from(text)
    return lunobiz.volatility_expansion(base_of(whole, code, lunobiz.atr(whole, EXPAND.atr)), EXPAND)


def test_an_expansion_buys_a_wide_candle_after_a_squeeze() -> None:
    setup = expansion(QUIET)
    assert setup.strategy == "volatility expansion"
    assert fired(setup.is_entry) == [7]
    # before: the mean of 2 and 2; quiet: the mean of 4, 4, 2 and 2; width: 6
    assert setup.strength[7] == pytest.approx(0.4 + 0.3 * ((6 / 2 - 2) / 2) + 0.3 * ((1 - 2 / 3) / 0.5))
    assert setup.stop_distance[7] == 10.0
    assert setup.move[7] == pytest.approx(20 / 105.5)
    extra = dict(setup.extra)
    assert (extra["width"][7], extra["top"][7], extra["low"][7]) == (3.0, 100.0, 99.0)


LAST = "100 106 100 105.5 1"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("100 101  99 100 1", "100 102  98 100 1"), "no squeeze"),
        ((LAST, "100 104 100 103.9 1"), "exactly twice as wide"),
        ((LAST, "100 106 100 104.5 1"), "closed at three quarters of its range"),
        ((LAST, "100 100  94 99.9 1"), "closed below the closes before"),
    ],
)
def test_an_expansion_lacks_one_part(change: tuple[str, str], why: str) -> None:
    assert change[0] in QUIET
    assert fired(expansion(QUIET.replace(*change)).is_entry) == [], why


@pytest.mark.parametrize(("code", "rows"), [(UNKNOWN, []), (WILD, []), (TREND, [7]), (RANGE, [7])])
def test_an_expansion_stays_out_of_wild_and_unknown_markets(code: int, rows: list[int]) -> None:
    assert fired(expansion(QUIET, code).is_entry) == rows


def test_an_expansion_is_left_below_the_lows_before() -> None:
    setup = expansion(QUIET + "105 106 98.9 98.9 1\n 99 100 97 98.8 1\n 98 99 90 97 1\n")
    # the floors of the two candles before are 99, then 98.9, then 97: 97 is not below 97
    assert fired(setup.is_exit) == [8, 9]


def test_an_expansion_after_dead_silence_buys_nothing() -> None:
    """Without any range before there is nothing to measure a stop by."""
    silent = QUIET.replace("100 101  99 100 1", "100 100 100 100 0")
    setup = expansion(silent)
    for row in fired(setup.is_entry):
        assert setup.stop_distance[row] > 0
        assert math.isfinite(dict(setup.extra)["width"][row])


# --- mean reversion ---

REVERT = replace(PARAMS, reversion=4, reversion_z=1.5, trend_efficiency=0.30, stop_atr=4.0)
DIP = (100.0, 100.0, 100.0, 90.0, 91.0, 97.0)


def reversion(closes: Iterable[float], code: int = RANGE, atr: float = 2.0) -> SetupColumns:
    """The reversion's reading of these closes."""
    return lunobiz.mean_reversion(base_of(series(list(closes)), code, atr, efficiency=0.12), REVERT)


def test_a_reversion_buys_the_turn_after_a_deep_fall_in_a_range() -> None:
    setup = reversion(DIP)
    assert setup.strategy == "mean reversion"
    assert fired(setup.is_entry) == [4]
    window = DIP[1:5]
    mean, width = statistics.fmean(window), statistics.pstdev(window)
    z = (91.0 - mean) / width
    assert z < -0.75  # half of the limit
    assert (statistics.fmean(DIP[:4]) - 90.0) / statistics.pstdev(DIP[:4]) > 1.5  # the candle before was deep enough
    assert setup.strength[4] == pytest.approx(0.4 + 0.3 * (-z / 3) + 0.3 * (1 - 0.12 / 0.30))
    assert setup.move[4] == pytest.approx((95.25 - 91) / 91)
    assert setup.stop_distance[4] == 4.0 * 0.75 * 2.0
    assert dict(setup.extra)["z"][4] == pytest.approx(z)
    assert dict(setup.extra)["mean"][4] == 95.25


@pytest.mark.parametrize("code", [UNKNOWN, TREND, WILD])
def test_a_reversion_outside_a_range_buys_nothing(code: int) -> None:
    assert fired(reversion(DIP, code).is_entry) == []


@pytest.mark.parametrize(
    ("closes", "why"),
    [
        ((100, 100, 100, 90, 90, 90), "has not turned up"),
        ((100, 100, 100, 90, 89, 88), "still falls"),
        ((100, 100, 100, 90, 97, 97), "already half-way back"),
        ((100, 98, 96, 94, 95, 96), "never far below the mean"),
        ((100, 100, 100, 110, 109, 103), "far above the mean"),
    ],
)
def test_a_reversion_lacks_one_part(closes: tuple[float, ...], why: str) -> None:
    assert fired(reversion(closes).is_entry) == [], why


def test_a_reversion_needs_a_range_to_measure_its_stop() -> None:
    assert fired(reversion(DIP, atr=0.0).is_entry) == []
    assert fired(reversion(DIP, atr=math.nan).is_entry) == []


def test_a_reversion_is_left_at_the_mean() -> None:
    setup = reversion((*DIP, 100.0))
    # means: 97.5 at 90, 95.25 at 91, 94.5 at 97, 94.5 at 100; before row 3 nothing moved and z is not a number
    assert fired(setup.is_exit) == [5, 6]


# --- the kinds of market ---


def labels(whole: Series) -> list[Regime]:
    """The kind of market at each candle."""
    return [lunobiz.REGIMES[int(code)] for code in lunobiz.regime(whole, PARAMS).code]


FIRST_KNOWN = 11 * 24 - 1  # eleven daily closes make ten daily steps


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("drift", "is_up"), [(0.002, True), (-0.002, False)])
def test_a_steady_move_is_a_trend(seed: int, drift: float, is_up: bool) -> None:
    whole = trending(600, seed, drift)
    assert set(labels(whole)[FIRST_KNOWN:]) == {Regime.TRENDING}
    known = lunobiz.regime(whole, PARAMS)
    assert np.mean(known.is_up[FIRST_KNOWN:] == is_up) > 0.99
    assert (known.efficiency[FIRST_KNOWN:] > PARAMS.trend_efficiency).all()


@pytest.mark.parametrize("seed", range(5))
def test_closes_scattered_about_a_level_are_a_range(seed: int) -> None:
    found = labels(ranging(900, seed))[FIRST_KNOWN:]
    assert found.count(Regime.RANGING) > 0.8 * len(found)
    assert Regime.WILD not in found


@pytest.mark.parametrize("seed", range(5))
def test_sudden_swings_are_wild(seed: int) -> None:
    found = labels(wild(600, seed))
    assert found[-1] is Regime.WILD
    assert Regime.WILD not in found[:-24]


def test_too_little_history_is_unknown() -> None:
    found = labels(trending(600))
    assert set(found[:FIRST_KNOWN]) == {Regime.UNKNOWN}
    assert found[FIRST_KNOWN] is Regime.TRENDING
    assert labels(random_walk(5)) == [Regime.UNKNOWN] * 5
    assert labels(random_walk(5).part(0, 0)) == []


def test_a_market_that_never_moves_is_a_range() -> None:
    found = labels(series([100.0] * 400))
    assert found[FIRST_KNOWN:] == [Regime.RANGING] * (400 - FIRST_KNOWN)


def slow_closes(whole: Series, row: int, seconds: int) -> list[float]:
    """Closes of the slower candles that were closed when a row's candle closed, whole ones only."""
    groups: dict[int, list[int]] = {}
    for i in range(row + 1):
        groups.setdefault(int(whole.opened[i]) // (seconds * 1000), []).append(i)
    now = int(whole.opened[row]) + whole.seconds * 1000
    return [
        float(whole.close[members[-1]])
        for start, members in sorted(groups.items())
        if (start + 1) * seconds * 1000 <= now and (members[0] > 0 or whole.opened[0] % (seconds * 1000) == 0)
    ]


def naive_regime(whole: Series, row: int) -> tuple[Regime, float, bool]:
    """The kind of market at one row, from its definition and with loops."""
    fast, slow = slow_closes(whole, row, 14_400), slow_closes(whole, row, 86_400)
    steps = [math.log(b / a) for a, b in pairwise(fast)]
    if len(steps) < 60 or len(slow) < 11:
        return Regime.UNKNOWN, math.nan, False

    def went(closes: list[float]) -> float:
        walked = math.fsum(abs(b - a) for a, b in pairwise(closes))
        return abs(closes[-1] - closes[0]) / walked

    day, ten = (math.sqrt(statistics.fmean(s * s for s in steps[-n:])) for n in (6, 60))
    strongest = max(went(fast[-31:]), went(slow[-11:]))
    is_up = float(whole.close[row]) > statistics.fmean(fast[-30:])
    if day / ten > 2.5:
        return Regime.WILD, strongest, is_up
    return (Regime.TRENDING if strongest >= 0.30 else Regime.RANGING), strongest, is_up


def test_the_kind_of_market_is_what_its_definition_says() -> None:
    seen = set()
    for start in (0, 1, 3, 4, 13, 24):
        steps = np.random.default_rng(start).normal(0, 0.004, 700)
        steps[400:424] *= 9
        whole = series(1000 * np.exp(np.cumsum(steps))).part(start, 700)
        found = lunobiz.regime(whole, PARAMS)
        for row in range(0, len(whole), 7):
            kind, strongest, is_up = naive_regime(whole, row)
            assert lunobiz.REGIMES[int(found.code[row])] is kind
            if kind is not Regime.UNKNOWN:
                assert found.efficiency[row] == pytest.approx(strongest, rel=1e-9)
                assert bool(found.is_up[row]) == is_up
            seen.add(kind)
    assert seen == set(Regime)


@pytest.mark.parametrize("seconds", lunobiz.DURATIONS_S)
def test_every_timeframe_that_can_be_set_has_a_kind_of_market(seconds: int) -> None:
    count = min(200, 90 * DAY_S // seconds)
    table = signal_table("XBTZAR", random_walk(count, seconds=seconds), PARAMS)
    assert len(table.regime.code) == count
    assert outlook_at(table, count - 1).timeframe_s == seconds


@pytest.mark.parametrize("seconds", [10_800, 14_400, 28_800, 86_400])
def test_a_steady_move_is_a_trend_on_every_slow_timeframe(seconds: int) -> None:
    closes = 1000 * np.cumprod(1.002 + np.random.default_rng(1).normal(0, 0.001, 300))
    assert labels(series(closes.tolist(), seconds=seconds))[-1] is Regime.TRENDING


# --- no look at what comes later ---


def cells(table: SignalTable, row: int) -> dict[str, float]:
    """All that a table says at one row, by name."""
    outlook = outlook_at(table, row)
    found = {
        "atr": float(table.atr[row]),
        "regime": float(table.regime.code[row]),
        "efficiency": float(table.regime.efficiency[row]),
        "is_up": float(table.regime.is_up[row]),
        "outlook close": outlook.close,
        "outlook atr": outlook.atr,
        "outlook opened": float(outlook.opened_ms),
        "outlook regime": float(list(Regime).index(outlook.regime)),
        "outlook doubts": float(len(outlook.findings)),
    }
    for name, counts in zip(table.doubts._fields, table.doubts, strict=True):
        found[f"doubt {name}"] = float(counts[row])
    for columns, setup in zip(table.setups, outlook.setups, strict=True):
        own = {name: float(getattr(columns, name)[row]) for name in columns._fields[1:-1]}
        own |= {name: float(values[row]) for name, values in columns.extra}
        own |= {f"outlook {name}": float(getattr(setup, name)) for name in columns._fields[1:-1]}
        own |= {f"outlook {name}": value for name, value in setup.numbers}
        found |= {f"{columns.strategy}: {name}": value for name, value in own.items()}
    return found


def differences(one: Mapping[str, float], two: Mapping[str, float]) -> set[str]:
    """The names whose values are not equal to the last bit; NaN equals NaN."""
    assert one.keys() == two.keys()
    return {n for n, v in one.items() if not (v == two[n] or (math.isnan(v) and math.isnan(two[n])))}


def peeks(whole: Series, rows: Iterable[int], params: StrategyParams = PARAMS) -> set[str]:
    """What is read differently at a row when the candles after it are not there yet."""
    full = lunobiz.signal_table("XBTZAR", whole, params)
    found: set[str] = set()
    for row in rows:
        cut = lunobiz.signal_table("XBTZAR", whole.part(0, row + 1), params)
        found |= differences(cells(full, row), cells(cut, row))
    return found


def ranking(tables: Mapping[str, SignalTable], row: int) -> tuple[lunobiz.Signal, ...]:
    """The ranking of several markets at one row."""
    views = [MarketView(market(p), quote(p), None, (lunobiz.outlook_at(t, row),)) for p, t in tables.items()]
    return lunobiz.rank_markets(views, Costs())


def ranking_peeks(markets: Mapping[str, Series], rows: Iterable[int], params: StrategyParams) -> list[int]:
    """The rows at which the ranking is another one when the candles after them are not there yet."""
    full = {p: lunobiz.signal_table(p, s, params) for p, s in markets.items()}
    found = []
    for row in rows:
        ranked = ranking(full, row)
        cut = {p: lunobiz.signal_table(p, s.part(0, row + 1), params) for p, s in markets.items()}
        if ranking(cut, row) != ranked:
            found.append(row)
    return found


QUICK = replace(PARAMS, breakout=6, exit_channel=4, atr=4, squeeze=8, expansion=1.2, reversion=8, reversion_z=1.0,
                trend_efficiency=0.2)  # fmt: skip
PLACES = sorted(np.random.default_rng(11).choice(np.arange(20, 799), 60, replace=False).tolist())


def restless(seed: int, count: int = 800) -> Series:
    """A random walk with storms, a gap, silence and a jump: every column has something to say."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 0.004, count)
    for start in (330, 470, 610):
        steps[start : start + 24] *= 9
    steps[150] = 0.3
    volumes = rng.integers(0, 3, count).astype(float)
    whole = series(1000 * np.exp(np.cumsum(steps)), volumes=volumes)
    return series_of(np.delete(rows_of(whole), [100, 101, 520], axis=0), HOUR_S)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("params", [PARAMS, QUICK], ids=["house", "quick"])
def test_nothing_is_read_from_candles_that_come_later(seed: int, params: StrategyParams) -> None:
    assert peeks(restless(seed), [n for n in PLACES if n < 797], params) == set()


@pytest.mark.parametrize("seconds", [300, 900, 10_800, 14_400, 28_800, 86_400])
def test_nothing_is_read_from_later_candles_on_other_timeframes(seconds: int) -> None:
    whole = random_walk(400, seed=4, seconds=seconds)
    assert peeks(whole, (130, 257, 300, 398)) == set()


def test_changed_later_candles_change_nothing() -> None:
    whole, row = restless(3), 400
    rows = rows_of(whole)
    rows[row + 1 :, 1:] *= np.random.default_rng(1).uniform(0.5, 2, (len(rows) - row - 1, 1))
    one, two = signal_table("XBTZAR", whole, QUICK), signal_table("XBTZAR", series_of(rows, HOUR_S), QUICK)
    for at in range(row - 30, row + 1):
        assert differences(cells(one, at), cells(two, at)) == set()


def the_busiest(markets: Mapping[str, Series]) -> list[int]:
    """Rows at which some market is a candidate."""
    tables = [signal_table(p, s, QUICK) for p, s in markets.items()]
    wishes = np.sum([c.is_entry for t in tables for c in t.setups], axis=0)
    return np.flatnonzero(wishes[:-1] > 0).tolist()


def three_markets() -> dict[str, Series]:
    """Three markets of equal length with many candidates."""
    return {p: random_walk(700, seed=n, sigma=0.006) for n, p in enumerate(("XBTZAR", "ETHZAR", "XRPZAR"), 21)}


def test_the_ranking_does_not_look_at_what_comes_later() -> None:
    markets = three_markets()
    rows = the_busiest(markets)[:40]
    assert len(rows) == 40
    assert ranking_peeks(markets, rows, QUICK) == []


def one_later(values: Floats) -> Floats:
    """The column moved up by one candle: each row sees the next one, the last row sees itself."""
    return np.append(values[1:], values[-1:]).astype(values.dtype)


def rolled(values: Floats) -> Floats:
    """The column moved up by one candle, the usual slip of the hand."""
    return np.roll(values, -1)


SLIPS = pytest.mark.parametrize("slip", [one_later, rolled])
STRATEGY_NAMES = ("momentum_breakout", "volatility_expansion", "mean_reversion")


@SLIPS
@pytest.mark.parametrize("column", ["is_entry", "is_exit", "strength", "stop_distance", "move"])
@pytest.mark.parametrize("name", STRATEGY_NAMES)
def test_a_strategy_that_peeks_one_candle_is_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, column: str, slip: Callable[[Floats], Floats]
) -> None:
    honest: Callable[[Base, StrategyParams], SetupColumns] = getattr(lunobiz, name)

    def peeking(base: Base, params: StrategyParams) -> SetupColumns:
        columns = honest(base, params)
        return columns._replace(**{column: slip(getattr(columns, column))})  # type: ignore[arg-type]

    monkeypatch.setattr(lunobiz, name, peeking)
    whole = ranging(800) if name == "mean_reversion" else restless(1)
    flags = honest(Base(whole, *_shared(whole)), QUICK)
    changes = np.flatnonzero(np.diff(getattr(flags, column)))  # rows whose next row reads differently
    rows = [int(n) for n in changes if n > 280][:5]
    assert rows
    found = peeks(whole, rows, QUICK)
    assert found == {f"{flags.strategy}: {column}", f"{flags.strategy}: outlook {column}"}


def _shared(whole: Series) -> tuple[Floats, RegimeColumns]:
    return lunobiz.atr(whole, QUICK.atr), lunobiz.regime(whole, QUICK)


@SLIPS
@pytest.mark.parametrize("column", ["code", "efficiency", "is_up"])
def test_a_regime_that_peeks_one_candle_is_caught(
    monkeypatch: pytest.MonkeyPatch, column: str, slip: Callable[[Floats], Floats]
) -> None:
    whole, honest = restless(1), lunobiz.regime
    values = getattr(honest(whole, QUICK), column)
    rows = [int(n) for n in np.flatnonzero(np.diff(values)) if n > 280][:5]
    assert rows

    def peeking(part: Series, params: StrategyParams) -> RegimeColumns:
        columns = honest(part, params)
        return columns._replace(**{column: slip(getattr(columns, column))})  # type: ignore[arg-type]

    monkeypatch.setattr(lunobiz, "regime", peeking)
    label = {"code": "regime"}.get(column, column)
    assert label in peeks(whole, rows, QUICK)


def test_slow_candles_used_before_they_close_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic: a day's close, known in the morning of that day."""

    def early(slow: Series, closed: Ints) -> Ints:
        return np.searchsorted(slow.opened, closed, side="left") - 1

    monkeypatch.setattr(lunobiz, "_newest", early)
    assert {"efficiency", "outlook regime"} <= peeks(restless(1), range(300, 780, 7), QUICK)


@SLIPS
def test_an_indicator_that_peeks_one_candle_is_caught(
    monkeypatch: pytest.MonkeyPatch, slip: Callable[[Floats], Floats]
) -> None:
    honest = lunobiz.atr
    monkeypatch.setattr(lunobiz, "atr", lambda whole, n: slip(honest(whole, n)))
    assert {"atr", "momentum breakout: stop_distance"} <= peeks(restless(1), (400, 500), QUICK)


def test_an_outlook_of_the_next_row_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = lunobiz.outlook_at
    monkeypatch.setattr(lunobiz, "outlook_at", lambda t, row: honest(t, min(row + 1, len(t.series) - 1)))
    markets = three_markets()
    rows = the_busiest(markets)[:40]
    assert ranking_peeks(markets, rows, QUICK)


def test_a_ranking_that_peeks_one_candle_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order alone is taken from the next candle; the signals themselves are honest."""
    honest_outlook, honest_rank = lunobiz.outlook_at, lunobiz.rank_markets
    known: dict[str, SignalTable] = {}

    def remembered(table: SignalTable, row: int) -> Outlook:
        known[table.pair] = table
        return honest_outlook(table, row)

    def peeking(views: list[MarketView], costs: Costs) -> tuple[lunobiz.Signal, ...]:
        def next_close(signal: lunobiz.Signal) -> float:
            whole = known[signal.pair].series
            row = int(np.searchsorted(whole.opened, signal.opened_ms))
            return -float(whole.close[min(row + 1, len(whole) - 1)] / whole.close[row])

        return tuple(sorted(honest_rank(views, costs), key=next_close))

    markets = {p: trending(500, seed=n, sigma=0.004) for n, p in enumerate(("XBTZAR", "ETHZAR", "XRPZAR"), 31)}
    tables = [signal_table(p, s, QUICK) for p, s in markets.items()]
    wishes = np.sum([c.is_entry for t in tables for c in t.setups], axis=0)
    rows = np.flatnonzero(wishes[:-1] > 1)[:30].tolist()
    assert len(rows) > 5
    assert ranking_peeks(markets, rows, QUICK) == []
    monkeypatch.setattr(lunobiz, "outlook_at", remembered)
    monkeypatch.setattr(lunobiz, "rank_markets", peeking)
    assert ranking_peeks(markets, rows, QUICK)


# --- memory ---


@pytest.mark.parametrize("seconds", [900, 1800, 3600, 10_800, 14_400, 28_800, 86_400])
def test_the_declared_memory_is_enough_to_the_last_bit(seconds: int) -> None:
    """What a desk reads from the candles it keeps is what a backtest reads from all of them."""
    memory = lunobiz.memory_rows(seconds)
    whole = random_walk(memory + 400, seed=12, seconds=seconds, sigma=0.004)
    full = signal_table("XBTZAR", whole, PARAMS)
    rng = np.random.default_rng(5)
    for row in rng.choice(np.arange(memory + 200, memory + 400), 8, replace=False).tolist():
        kept = whole.part(row + 1 - memory, row + 1)
        short = signal_table("XBTZAR", kept, PARAMS)
        assert differences(cells(full, row), cells(short, memory - 1)) == set()
        assert outlook_at(short, memory - 1).findings == outlook_at(full, row).findings


@hypothesis_settings(max_examples=60)
@given(st.integers(400, 799), st.integers(0, 10_000))
def test_more_history_changes_nothing(row: int, seed: int) -> None:
    whole = random_walk(800, seed=6, sigma=0.004)
    full = signal_table("XBTZAR", whole, QUICK)
    start = int(np.random.default_rng(seed).integers(0, row + 1 - 300))
    cut = signal_table("XBTZAR", whole.part(start, row + 1), QUICK)
    assert differences(cells(full, row), cells(cut, row - start)) == set()


SETS = (PARAMS, QUICK, *lunobiz.parameter_sets()[:2], replace(PARAMS, reversion=700), replace(PARAMS, atr=650))


def newest_of(markets: Mapping[str, Series], params: StrategyParams) -> dict[str, SignalTable]:
    """The tables as a desk reads them: of no more candles than are needed, alike ones as a stack."""
    found = []
    for pair, whole in markets.items():
        start = max(0, len(whole) - lunobiz.signal_rows(params, whole.seconds))
        found.append(lunobiz.Newest(pair, whole.part(start, len(whole)), int(whole.opened[0])))
    return {table.pair: table for table in lunobiz.newest_tables(found, params)}


@hypothesis_settings(max_examples=40)
@given(st.integers(1, 1600), st.sampled_from(SETS), st.integers(0, 9999), st.sampled_from((900, 3600, 14_400, 86_400)))
def test_many_markets_at_once_read_what_each_reads_alone(
    count: int, params: StrategyParams, seed: int, seconds: int
) -> None:
    """To the last bit, doubts included; HOLED lacks candles and SHORT began later, so they stay out of the stack."""
    markets = {f"{n}ZAR": random_walk(count, seed=seed + n, seconds=seconds, sigma=0.004) for n in range(3)}
    rows = rows_of(markets["0ZAR"])
    markets["HOLED"] = series_of(np.delete(rows, slice(count // 2, count // 2 + 2), axis=0), seconds)
    markets["SHORT"] = series_of(rows[count // 3 :], seconds)
    markets = {pair: whole for pair, whole in markets.items() if len(whole)}
    tables = newest_of(markets, params)
    assert tables.keys() == markets.keys()
    for pair, whole in markets.items():
        alone, last = signal_table(pair, whole, params), len(tables[pair].series) - 1
        assert differences(cells(alone, len(whole) - 1), cells(tables[pair], last)) == set()
        assert lunobiz.canonical(outlook_at(alone, len(whole) - 1)) == lunobiz.canonical(outlook_at(tables[pair], last))


def test_every_row_of_a_stack_is_the_row_alone() -> None:
    markets = {"XBTZAR": restless(1), "ETHZAR": restless(2)}
    whole = [lunobiz.Newest(p, s, int(s.opened[0])) for p, s in markets.items()]
    for table in lunobiz.newest_tables(whole, QUICK):
        alone = signal_table(table.pair, markets[table.pair], QUICK)
        assert all(differences(cells(alone, n), cells(table, n)) == set() for n in range(0, 797, 3))


def test_little_history_is_a_doubt_and_enough_is_none() -> None:
    table = signal_table("XBTZAR", random_walk(lunobiz.memory_rows(HOUR_S) + 5, sigma=0.002), PARAMS)
    rows = lunobiz.memory_rows(HOUR_S)
    assert [f.doubt for f in outlook_at(table, rows - 2).findings] == [Doubt.SHORT_HISTORY]
    assert outlook_at(table, rows - 1).findings == ()


# --- the outlook ---


def test_an_outlook_is_a_row_of_its_table() -> None:
    whole = random_walk(400, seed=2)
    table = signal_table("ETHZAR", whole, PARAMS)
    outlook = outlook_at(table, 300)
    assert (outlook.pair, outlook.timeframe_s) == ("ETHZAR", HOUR_S)
    assert (outlook.opened_ms, outlook.close) == (int(whole.opened[300]), float(whole.close[300]))
    assert outlook.closed_ms == int(whole.closed[300])
    assert tuple(s.strategy for s in outlook.setups) == lunobiz.STRATEGIES
    assert outlook.atr == float(lunobiz.atr(whole, PARAMS.atr)[300])
    for setup in outlook.setups:
        assert (type(setup.is_entry), type(setup.strength), type(setup.move)) == (bool, float, float)
    assert {type(v) for s in outlook.setups for _, v in s.numbers} == {float}


@pytest.mark.parametrize("make", [random_walk, trending, ranging, wild])
@pytest.mark.parametrize("params", [PARAMS, QUICK], ids=["house", "quick"])
def test_every_strength_is_a_share_and_no_first_candle_is_an_entry(
    make: Callable[[int, int], Series], params: StrategyParams
) -> None:
    for seed in range(4):
        table = signal_table("XBTZAR", make(500, seed), params)
        for columns in table.setups:
            assert ((columns.strength >= 0) & (columns.strength <= 1)).all()
            assert not columns.is_entry[:250].any() or columns.strategy != lunobiz.REVERSION
            assert not columns.is_entry[: params.atr].any()
            entries = columns.is_entry
            assert (columns.stop_distance[entries] > 0).all()


# --- costs ---


def test_break_even_by_hand() -> None:
    """Bought at 100 as a maker for 100.40; the sale must bring that back after spread, slippage and 0.6 %."""
    needed = break_even(market(), 0.001, Costs(slippage=0.001))
    assert needed == pytest.approx(1.004 / (0.994 * 0.999 * 0.9995) - 1, abs=1e-15)
    assert needed == pytest.approx(0.0115772, abs=1e-7)
    sold_at = 100 * (1 + needed) * (1 - 0.0005) * (1 - 0.001)
    assert sold_at * (1 - 0.006) == pytest.approx(100 * 1.004, rel=1e-12)


def test_break_even_of_fees_alone() -> None:
    assert break_even(market(), 0.0, FREE) == pytest.approx(1.004 / 0.994 - 1, abs=1e-15)
    assert break_even(replace(market(), maker_fee=0.0, taker_fee=0.0), 0.0, FREE) == 0.0


@given(st.floats(0, 3), st.floats(0, 3), st.floats(0, 0.02))
def test_a_wider_spread_never_costs_less(one: float, two: float, slippage: float) -> None:
    costs = Costs(slippage)
    narrow, wide = (break_even(market(), s, costs) for s in (min(one, two), max(one, two)))
    assert 0 < narrow <= wide


@pytest.mark.parametrize(("bid", "ask"), [(0.0, 100.0), (0.0, 0.0)])
def test_a_market_without_a_bid_can_never_pay_for_itself(bid: float, ask: float) -> None:
    assert break_even(market(), quote(bid=bid, ask=ask).spread, Costs()) == math.inf


# --- confidence ---


NUMBERS: Mapping[str, float] = MappingProxyType({"high": 99.0, "efficiency": 0.4})


def setup_of(
    strategy: str = "momentum breakout",
    strength: float = 0.7,
    move: float = 0.05,
    stop: float = 10.0,
    numbers: Mapping[str, float] = NUMBERS,
) -> Setup:
    """A wish to enter."""
    return Setup(strategy, True, False, strength, stop, move, tuple(numbers.items()))


@pytest.mark.parametrize(
    ("strength", "move", "needed", "expected"),
    [
        (0.7, 0.05, 0.02, 0.7 * 0.7 + 0.3 * 0.75),
        (1.0, 0.06, 0.02, 1.0),
        (1.0, 9.99, 0.02, 1.0),
        (0.5, 0.02, 0.02, 0.35),
        (0.5, 0.01, 0.02, 0.35),
        (0.5, -0.01, 0.02, 0.35),
        (0.0, 0.0, 0.02, 0.0),
        (0.4, 0.01, 0.0, 0.58),
        (0.6, 0.05, math.inf, 0.42),
    ],
)
def test_confidence_by_hand(strength: float, move: float, needed: float, expected: float) -> None:
    assert confidence_of(setup_of(strength=strength, move=move), needed) == pytest.approx(expected, abs=1e-12)


@given(st.floats(0, 1), st.floats(-1, 100), st.floats(0, 10))
def test_confidence_is_a_share(strength: float, move: float, needed: float) -> None:
    assert 0.0 <= confidence_of(setup_of(strength=strength, move=move), needed) <= 1.0


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-4, 1), st.floats(1e-4, 1))
def test_confidence_falls_with_costs(strength: float, move: float, one: float, two: float) -> None:
    wish = setup_of(strength=strength, move=move)
    assert confidence_of(wish, max(one, two)) <= confidence_of(wish, min(one, two))


# --- the ranking ---


def view_of(pair: str, *setups: Setup, seconds: int = HOUR_S, ticker: Ticker | None = None) -> MarketView:
    """A market with one outlook at a close of 100."""
    outlook = Outlook(pair, seconds, START_MS, 100.0, 2.0, Regime.TRENDING, setups)
    return MarketView(market(pair), ticker or quote(pair), None, (outlook,))


def test_the_most_confident_wish_comes_first_and_ties_go_by_name() -> None:
    weak, strong = setup_of(strength=0.5), setup_of(strength=0.9)
    expansion_too = setup_of("volatility expansion", 0.5, numbers={"width": 3.0, "top": 99.0})
    views = [
        view_of("XRPZAR", weak, expansion_too), view_of("ETHZAR", weak), view_of("LTCZAR", strong),
        view_of("XBTZAR", weak, seconds=14_400), view_of("XBTZAR", weak),
    ]  # fmt: skip
    ranked = rank_markets(views, Costs())
    expected = [
        ("LTCZAR", "momentum breakout", 3600),
        ("ETHZAR", "momentum breakout", 3600),
        ("XBTZAR", "momentum breakout", 3600),
        ("XBTZAR", "momentum breakout", 14_400),
        ("XRPZAR", "momentum breakout", 3600),
        ("XRPZAR", "volatility expansion", 3600),
    ]
    assert [(s.pair, s.strategy, s.timeframe_s) for s in ranked] == expected
    assert rank_markets(views[::-1], Costs()) == ranked


def test_a_signal_carries_its_numbers() -> None:
    (signal,) = rank_markets([view_of("XBTZAR", setup_of(stop=10.004))], Costs())
    needed = break_even(market(), quote().spread, Costs())
    assert signal.stop == 89.99  # 89.996, rounded down
    assert (signal.stop_distance, signal.move, signal.break_even) == (10.004, 0.05, needed)
    assert signal.confidence == confidence_of(setup_of(), needed)
    assert (signal.opened_ms, signal.regime) == (START_MS, Regime.TRENDING)
    assert signal.why == (
        "Close 100 above the channel high 99; trend efficiency 0.40; expects 5.0%, break-even 1.2%"
    )  # fmt: skip


def test_only_entries_with_finite_numbers_are_wishes() -> None:
    setups = (
        replace(setup_of(), is_entry=False),
        setup_of(stop=math.nan),
        setup_of(move=math.inf),
        setup_of(move=math.nan),
    )
    assert rank_markets([view_of("XBTZAR", *setups)], Costs()) == ()
    assert rank_markets([], Costs()) == ()
    assert rank_markets([MarketView(market(), quote())], Costs()) == ()


@pytest.mark.parametrize("ticker", [None, quote(bid=0.0), quote(bid=0.0, ask=0.0)])
def test_a_market_without_a_quote_never_ranks_above_one_with_a_quote(ticker: Ticker | None) -> None:
    good = view_of("XRPZAR", setup_of())
    blind = replace(view_of("ETHZAR", setup_of()), ticker=ticker)
    ranked = rank_markets([blind, good], Costs())
    assert ranked[0].pair == "XRPZAR"
    assert all(s.break_even > 1 for s in ranked if s.pair == "ETHZAR")


# --- sentences ---


def numbers_in(text: str) -> list[float]:
    """All numbers of a sentence; 1,234.5 is one."""
    return [float(word.replace(",", "")) for word in re.findall(r"[-+]?\d[\d,]*(?:\.\d+)?(?![\d.]*e)", text)]


SENTENCES = (
    (setup_of(numbers={"high": 1_229_876.0, "efficiency": 0.375}), (1_234_567.0, 1_229_876.0, 0.38)),
    (
        setup_of("volatility expansion", numbers={"width": 3.14, "top": 1_229_876.0}),
        (3.1, 1_234_567.0, 1_229_876.0),
    ),
    (
        setup_of("mean reversion", numbers={"z": -2.345, "mean": 1_300_000.0}),
        (1_234_567.0, -2.3, 1_300_000.0),
    ),
)


@pytest.mark.parametrize(("setup", "expected"), SENTENCES, ids=lambda v: getattr(v, "strategy", ""))
def test_a_sentence_has_its_numbers(setup: Setup, expected: tuple[float, ...]) -> None:
    """At a price of Bitcoin in rand, where a careless format turns to 1.23457e+06."""
    outlook = Outlook("XBTZAR", HOUR_S, START_MS, 1_234_567.0, 2.0, Regime.TRENDING, (setup,))
    text = explain(outlook, setup)
    assert numbers_in(text) == list(expected)
    assert "e+" not in text


@pytest.mark.parametrize(
    ("regime", "expected"),
    [
        (Regime.UNKNOWN, []),
        (Regime.RANGING, [-0.4, 1_300_000.0]),
        (Regime.TRENDING, [1_234_567.0, 1_250_000.0]),
        (Regime.WILD, [1_234_567.0, 1_250_000.0]),
    ],
)
def test_no_signal_says_why(regime: Regime, expected: list[float]) -> None:
    setups = (
        setup_of(numbers={"high": 1_250_000.0, "efficiency": 0.2}),
        setup_of("mean reversion", numbers={"z": -0.41, "mean": 1_300_000.0}),
    )
    text = explain_nothing(Outlook("XBTZAR", HOUR_S, START_MS, 1_234_567.0, 2.0, regime, setups))
    assert text.startswith("No signal: ")
    assert regime.value in text
    assert numbers_in(text) == expected


def test_every_wish_of_a_long_run_is_explained_by_the_candle_it_came_from() -> None:
    count = 0
    for pair, whole in three_markets().items():
        table = signal_table(pair, whole, QUICK)
        for row in the_busiest({pair: whole}):
            outlook = outlook_at(table, row)
            for setup in (s for s in outlook.setups if s.is_entry):
                text = explain(outlook, setup)
                assert any(n == pytest.approx(outlook.close, rel=1e-5) for n in numbers_in(text))
                assert "nan" not in text
                assert "inf" not in text
                count += 1
            assert "nan" not in explain_nothing(outlook)
    assert count > 50
