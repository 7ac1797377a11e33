"""The lanes against the cycle: the same fills at the same prices, candle for candle, however rough the market is."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import lunobiz
from lunobiz import (
    DAY_MS,
    BacktestJob,
    Candles,
    Floats,
    LaneJob,
    LaneResult,
    Lanes,
    LaneTable,
    Market,
    Settings,
    Side,
    correlated_pairs,
    daily_friends,
    grid_ceil,
    grid_floor,
    lane_table,
    run_backtest,
    run_lanes,
    series_of,
)
from recordings import START_MS, Shape, market_rows, quick_settings
from rough import HOUR_MS, SETS, Scene, rough_rows, scene

NAMES = {"entry": "ENTRY", "exit": "EXIT", "protection": "PROTECTION"}
DELAY_MS = 5_000  # a decision comes this long after its candle closed
Filled = tuple[int, str, str, float, float]

# ---- the same fills as the cycle ----------------------------------------------


class Ran(NamedTuple):
    """A table, its lanes after the last row, and what they earned."""

    table: LaneTable
    lanes: Lanes
    result: LaneResult

    def fills(self, candles: Candles, cell: int) -> list[Filled]:
        """The fills of one lane in order."""
        pairs = [market.pair for market, _ in candles]
        return sorted(
            (int(self.table.times[row]) + DELAY_MS, pairs[place % len(pairs)], NAMES[name], price, volume)
            for row, place, name, price, volume in self.lanes.fills or ()
            if place // len(pairs) == cell
        )


def run(job: LaneJob) -> Ran:
    """Lanes over all rows, with their fills kept."""
    table = lane_table(job)
    lanes = Lanes(table, job.settings)
    lanes.fills = []
    result = run_lanes(table, lanes)
    assert result is not None
    return Ran(table, lanes, result)


class Compared(NamedTuple):
    """What both have done under one set."""

    lanes: list[Filled]
    cycle: list[Filled]
    lane_equity: dict[int, float]
    cycle_equity: dict[int, float]
    round_trips: tuple[int, int]
    codes: dict[str, int]
    rests: int


@functools.cache
def compared(seed: int) -> tuple[Compared, ...]:
    """One rough scene under all sets, in lanes side by side and in a backtest each."""
    rough = scene(seed)
    ran = run(LaneJob((rough.candles,), rough.settings, SETS, rough.start_ms, rough.end_ms))
    found = []
    for place, params in enumerate(SETS):
        report = run_backtest(BacktestJob(rough.candles, rough.under(params), rough.start_ms, rough.end_ms))
        volumes = {o.order_id: o.volume for o in report.orders}
        found.append(Compared(
            ran.fills(rough.candles, place),
            sorted((f.time_ms, f.pair, f.kind.name, f.price, f.volume) for f in report.fills),
            dict(zip(ran.result.days.tolist(), ran.result.equity[:, 0, place].tolist(), strict=True)),
            dict(report.equity_daily),
            (int(ran.result.round_trips[:, 0, place].sum()), report.metrics.round_trips), dict(report.codes),
            sum(f.volume < volumes[f.order_id] for f in report.fills),
        ))  # fmt: skip
    return tuple(found)


# 6, 22, 24, 31, 33, 106 and 120 have entries that rest for candles and fill in parts while a protection sells
SEEDS = (0, 4, 6, 8, 10, 14, 22, 23, 24, 27, 31, 33, 39, 106, 120)


@pytest.mark.parametrize("seed", SEEDS)
def test_lanes_fill_what_the_cycle_fills(seed: int) -> None:
    for both in compared(seed):
        assert both.lanes == both.cycle
        assert both.lane_equity == pytest.approx(both.cycle_equity, rel=1e-9)
        assert both.round_trips[0] == both.round_trips[1]


def test_the_scenes_reach_every_rule() -> None:
    codes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    rests = 0
    for both in itertools.chain.from_iterable(compared(seed) for seed in SEEDS):
        codes.update(both.codes)
        kinds.update(name for _, _, name, _, _ in both.cycle)
        rests += both.rests
    assert min(kinds[name] for name in NAMES.values()) > 200
    assert rests > 100  # a tenth of the bar was less than the order
    for code in ("P2-state", "P7-positions", "P7-asset", "P8-depth", "P11-throttle", "S3-held", "S4-doubt", "gap",
                 "jump", "no_trades", "short_history", "stale_quote"):  # fmt: skip
        assert codes[code] > 0, code
    settings = [scene(seed).settings for seed in SEEDS]
    assert {s.limits.daily_cap_action for s in settings} == {"close", "hold"}
    assert {s.schedule.entry_timeout_candles for s in settings} == {1, 2, 3}
    assert {s.schedule.timeframes for s in settings} == {(3600,), (14_400,)}
    assert 8 in {s.limits.max_positions for s in settings}


@pytest.mark.parametrize("action", ["close", "hold"])
def test_caps_bite_in_both_ways(action: str) -> None:
    held_back, reasons = 0, set()
    for seed in (24, 31, 35):
        rough = scene(seed, daily_loss_cap=0.005, weekly_loss_cap=0.01, daily_cap_action=action,
                      risk_per_trade=0.02, max_positions=3, cooldown_hours=30.0)  # fmt: skip
        ran = run(LaneJob((rough.candles,), rough.settings, SETS[:1], rough.start_ms, rough.end_ms))
        report = run_backtest(BacktestJob(rough.candles, rough.under(SETS[0]), rough.start_ms, rough.end_ms))
        held_back += dict(report.codes).get("P2-state", 0)
        reasons |= {t.reason for t in report.round_trips}
        assert ran.fills(rough.candles, 0) == sorted(
            (f.time_ms, f.pair, f.kind.name, f.price, f.volume) for f in report.fills
        )
    assert held_back > 10
    assert ("loss cap" in reasons) == (action == "close")


# ---- many lanes, and lanes that go on -------------------------------------------


def runs_of(rough: Scene, count: int) -> tuple[Candles, ...]:
    """The same markets with other candles."""
    runs = [rough.candles]
    for number in range(1, count):
        rng = np.random.default_rng(1000 + number)
        seconds = rough.candles[0][1].seconds
        runs.append(tuple((market, series_of(rough_rows(rng, seconds), seconds)) for market, _ in rough.candles))
    return tuple(runs)


@pytest.mark.parametrize("seed", [8, 23, 31])
def test_each_lane_is_as_if_alone(seed: int) -> None:
    rough = scene(seed)
    runs = runs_of(rough, 3)
    whole = run(LaneJob(runs, rough.settings, SETS, rough.start_ms, rough.end_ms))
    for (number, candles), (place, params) in itertools.product(enumerate(runs), enumerate(SETS)):
        alone = run(LaneJob((candles,), rough.settings, (params,), rough.start_ms, rough.end_ms))
        assert whole.fills(candles, number * len(SETS) + place) == alone.fills(candles, 0)
        for name in ("equity", "turnover", "round_trips"):
            one, many = getattr(alone.result, name)[:, 0, 0], getattr(whole.result, name)[:, number, place]
            np.testing.assert_allclose(many, one, rtol=1e-12, atol=1e-9)


def go_on(first: Ran, job: LaneJob) -> Ran:
    """The lanes of one run on the candles after it."""
    table = lane_table(job)
    lanes = Lanes(table, job.settings).go_on(first.lanes.state())
    lanes.fills = []
    result = run_lanes(table, lanes)
    assert result is not None
    return Ran(table, lanes, result)


def busy_midnights(job: LaneJob) -> list[int]:
    """Midnights at which something is held, and at which an entry rests; three of each at most."""
    table = lane_table(job)
    lanes = Lanes(table, job.settings)
    holding: list[int] = []
    resting: list[int] = []
    for row, time in enumerate(table.times.tolist()):
        lanes.step(row)
        lanes.end_week(row)
        if time % DAY_MS == 0 and 0 < row < len(table.times) - 1:
            (resting if lanes.wanted.any() else holding if lanes.volume.any() else []).append(time)
    return [*resting[::-1][:3], *holding[::-1][:3]]


@pytest.mark.parametrize("seed", [6, 8, 10, 22, 23, 31, 33, 106])
def test_a_run_cut_at_midnight_is_one_run(seed: int) -> None:
    rough = scene(seed, max_positions=8, orders_per_day=2, orders_per_minute=2)
    timing = replace(rough.settings.schedule, entry_timeout_candles=4)
    settings = replace(rough.settings, schedule=timing)
    job = LaneJob((rough.candles,), settings, SETS, rough.start_ms, rough.end_ms)
    step, whole = rough.candles[0][1].seconds * 1000, run(job)
    cuts = busy_midnights(job)
    assert cuts
    for cut in cuts:
        first = run(replace(job, end_ms=cut))
        later = go_on(first, replace(job, start_ms=cut + step))
        for cell in range(len(SETS)):
            joined = first.fills(rough.candles, cell) + later.fills(rough.candles, cell)
            assert joined == whole.fills(rough.candles, cell)
        equity = np.concatenate((first.result.equity, later.result.equity))
        assert equity == pytest.approx(whole.result.equity, rel=1e-12)
        days = np.concatenate((first.result.days, later.result.days))
        assert days.tolist() == whole.result.days.tolist()


def test_runs_that_share_a_past_go_on_apart() -> None:
    rough, cut = scene(10), START_MS + 75 * DAY_MS
    job = LaneJob((rough.candles,), rough.settings, SETS, rough.start_ms, cut)
    other = tuple((m, replace(s, close=np.where(s.closed > cut, s.low, s.close))) for m, s in rough.candles)
    first = run(job)
    step = rough.candles[0][1].seconds * 1000
    both = replace(job, runs=(rough.candles, other), start_ms=cut + step, end_ms=rough.end_ms)
    later = go_on(first, both)
    for place, candles in enumerate((rough.candles, other)):
        alone = go_on(first, replace(both, runs=(candles,)))
        assert alone.fills(candles, 1)
        for cell in range(len(SETS)):
            assert later.fills(candles, place * len(SETS) + cell) == alone.fills(candles, cell)
    assert not np.array_equal(later.result.equity[:, 0], later.result.equity[:, 1])


# ---- what a run adds up to --------------------------------------------------------


def plain_job(cash: float = 100_000.0, peek: float = 0.0) -> LaneJob:
    """One deep market for a month, under the quick set."""
    market = Market("AAAZAR", "AAA", "ZAR", 2, 4, 0.0001, 1e6, 0.01, 1e9, model_spread=0.002)
    series = series_of(market_rows(Shape(1000.0, 2, 5000.0, 11), 92, 3600), 3600)
    settings = quick_settings(paper_cash=cash)
    settings = replace(settings, limits=replace(settings.limits, min_volume_24h=0.0))
    start = START_MS + 63 * DAY_MS
    return LaneJob((((market, series),),), settings, SETS[:1], start, start + 29 * DAY_MS, peek)


def test_days_add_up() -> None:
    job = plain_job()
    ran = run(job)
    market, series = job.runs[0][0]
    closed = {int(t): row for row, t in enumerate(series.closed)}
    cash, held, trips, turnover = 100_000.0, 0.0, dict.fromkeys(ran.result.days.tolist(), 0), Counter[int]()
    equity, fills = {}, ran.fills(job.runs[0], 0)
    for time in ran.table.times.tolist():
        day = (time - 1) // DAY_MS
        for _, _, name, price, volume in (f for f in fills if f[0] == time + DELAY_MS):
            rate = market.maker_fee if name == "ENTRY" or price == 0 else market.taker_fee
            sign = -1 if name == "ENTRY" else 1
            cash += sign * price * volume - round(price * volume * rate + 5e-9, 8)
            held = round(held - sign * volume, 8)
            turnover[day] += price * volume  # type: ignore[assignment]
            trips[day] += held == 0
        bid = market.round_price(float(series.close[closed[time]]) * (1 - market.model_spread / 2), Side.SELL)
        equity[day] = cash + held * bid * (1 - market.taker_fee)
    assert len(fills) > 30
    assert ran.result.days.tolist() == list(equity)
    assert ran.result.equity[:, 0, 0] == pytest.approx(list(equity.values()), abs=1e-5)
    assert ran.result.turnover[:, 0, 0] == pytest.approx([float(turnover[d]) for d in equity], rel=1e-12)
    assert ran.result.round_trips[:, 0, 0].tolist() == list(trips.values())


def test_late_fills_and_weights() -> None:
    job = plain_job()
    table = lane_table(job)
    lanes = Lanes(table, job.settings)
    lanes.fills, lanes.is_stressed = [], True
    result = run_lanes(table, lanes)
    assert result is not None
    _, series = job.runs[0][0]
    rows = {int(t): row for row, t in enumerate(series.closed)}
    late = 0.0
    for row, _, name, price, volume in lanes.fills:
        after = rows.get(int(table.times[row]) + HOUR_MS, rows[int(table.times[row])])
        late += (volume if name != "entry" else -volume) * (price - float(series.open[after]))
    assert lanes.late[0, 0] == pytest.approx(late, rel=1e-9)
    assert result.weights.shape == (len(result.days), 1, 1, 1)
    assert 0 < result.weights.max() < job.settings.limits.max_asset_exposure * 1.2
    idle = [d for d, t in zip(result.days, result.turnover[:, 0, 0], strict=True) if t == 0]
    assert len(idle) < len(result.days)


def test_a_planted_peek_pays_its_share_of_the_signal_candle() -> None:
    share = 1e-9  # too small to change any order
    job = plain_job(1e6)
    honest, peeked = run(job), run(replace(job, peek=share))
    _, series = job.runs[0][0]
    # an entry is filled a candle after its signal: it rests for one candle only
    row_of = {int(t): row - 1 for row, t in enumerate(series.closed)}
    gain = sum(
        volume * share * float(series.close[row_of[time - DELAY_MS]] - series.open[row_of[time - DELAY_MS]])
        for time, _, name, _, volume in honest.fills(job.runs[0], 0) if name == "ENTRY"
    )  # fmt: skip
    assert peeked.fills(job.runs[0], 0) == honest.fills(job.runs[0], 0)
    assert gain > 0
    assert float(peeked.lanes.cash[0, 0] - honest.lanes.cash[0, 0]) == pytest.approx(gain, rel=1e-3)


def test_no_later_candle_is_read() -> None:
    job = plain_job()
    whole, cut = run(job), job.start_ms + 17 * DAY_MS + 5 * HOUR_MS
    market, series = job.runs[0][0]
    is_later = series.closed > cut
    other = replace(series, **{
        name: np.where(is_later, np.roll(getattr(series, name), 777), getattr(series, name))
        for name in ("open", "high", "low", "close", "volume")
    })
    changed = run(replace(job, runs=(((market, other),),)))
    short = run(replace(job, end_ms=cut))

    def before(ran: Ran) -> list[Filled]:
        return [f for f in ran.fills(job.runs[0], 0) if f[0] <= cut + DELAY_MS]

    assert len(before(whole)) > 10
    assert before(whole) == before(changed) == before(short)
    assert whole.fills(job.runs[0], 0) != changed.fills(job.runs[0], 0)
    days = int(np.searchsorted(whole.result.days, cut // DAY_MS))
    assert whole.result.equity[:days].tolist() == changed.result.equity[:days].tolist()


def test_a_run_can_be_cancelled() -> None:
    job = plain_job()
    table = lane_table(job)
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int) -> bool:
        seen.append((done, total))
        return done < 3

    assert run_lanes(table, Lanes(table, job.settings), watch) is None
    assert seen == [(0, 30), (1, 30), (2, 30), (3, 30)]  # the first row is midnight, the end of the day before


# ---- the grid ------------------------------------------------------------------------

SCALED = st.tuples(st.integers(0, 8), st.integers(-(10**14), 10**14), st.floats(-1.5, 1.5))


@given(SCALED)
@hypothesis_settings(max_examples=300)
def test_the_grid_is_the_market_s(drawn: tuple[int, int, float]) -> None:
    scale, steps, off = drawn
    market = Market("AAAZAR", "AAA", "ZAR", scale, scale, 0.1, 1.0, 0.1, 1.0)
    value = abs(steps + off) / 10.0**scale
    assert float(grid_floor(np.array(value), 10.0**scale)) == market.round_volume(value)
    assert float(grid_floor(np.array(value), 10.0**scale)) == market.round_price(value, Side.SELL)
    assert float(grid_ceil(np.array(value), 10.0**scale)) == market.round_price(value, Side.BUY)


@given(st.integers(0, 8), st.integers(0, 10**12))
def test_a_value_on_the_grid_stays(scale: int, steps: int) -> None:
    value = steps / 10**scale
    for near in (value, float(np.nextafter(value, 1e300)), float(np.nextafter(value, 0.0))):
        assert float(grid_floor(np.array(near), 10.0**scale)) == value
        assert float(grid_ceil(np.array(near), 10.0**scale)) == value


# ---- which markets move together -------------------------------------------------------


def daily_rows(seed: int, days: int, own: float, flat: tuple[int, int] = (0, 0)) -> Floats:
    """Candles of four hours that share a part of their steps with all others."""
    count = days * 6
    shared = np.random.default_rng(5).normal(0, 0.02, count)
    steps = (1 - own) * shared + own * np.random.default_rng(seed).normal(0, 0.02, count)
    steps[flat[0] * 6 : flat[1] * 6] = 0
    close = 100 * np.exp(np.cumsum(steps))
    times = START_MS + np.arange(count) * 4.0 * HOUR_MS
    start = np.concatenate(([100.0], close[:-1]))
    return np.column_stack((times, start, np.maximum(start, close), np.minimum(start, close), close, np.ones(count)))


def without_days(rows: Floats, *days: int) -> Floats:
    return rows[~np.isin((rows[:, 0] - START_MS) // DAY_MS, days)]


WHOLE = (daily_rows(1, 160, 0.4), daily_rows(2, 160, 0.45))
OTHERS = {
    "whole": daily_rows(3, 160, 0.4),
    "listed later": daily_rows(3, 160, 0.3)[70 * 6 + 2 :],
    "ends early": daily_rows(3, 160, 0.3)[: 90 * 6 + 3],
    "listed after the last day": daily_rows(3, 200, 0.3)[190 * 6 :],
    "days missing": without_days(daily_rows(3, 160, 0.3), 20, 66, 67, 68, 100, 101),
    "a month missing": without_days(daily_rows(3, 160, 0.3), *range(80, 115)),
    "flat": daily_rows(3, 160, 0.3, (60, 140)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_friends_are_the_pairs_that_the_cycle_calls_correlated(name: str) -> None:
    series = [series_of(rows, 14_400) for rows in (*WHOLE, OTHERS[name])]
    days = np.arange(START_MS // DAY_MS + 1, START_MS // DAY_MS + 170)
    found = daily_friends(series, days)
    named = {f"P{place}": s for place, s in enumerate(series)}
    for place, day in enumerate(days.tolist()):
        friends = correlated_pairs(named, day * DAY_MS)
        wanted = [[one == other or other in friends[one] for other in named] for one in named]
        assert found[place].tolist() == wanted, day - START_MS // DAY_MS
    assert found.any() and not found.all()
    assert {bool(f) for f in found[:, 0, 1]} == {True, False}  # the two whole ones, whatever the third does


def shares(candles: Candles, settings: Settings, sets: Sequence[lunobiz.StrategyParams]) -> LaneJob:
    """A month of these candles."""
    start = START_MS + 63 * DAY_MS
    return LaneJob((candles,), settings, tuple(sets), start, start + 29 * DAY_MS)


def test_sets_with_and_without_one_range_are_the_same() -> None:
    # the sets share their average true range in one table and not in the other
    job = plain_job()
    settings, candles = job.settings, job.runs[0]
    alike, apart = shares(candles, settings, SETS[::2]), shares(candles, settings, SETS)
    assert lane_table(alike).atr.shape[2] == 1
    assert lane_table(apart).atr.shape[2] == len(SETS)
    for place, other in ((0, 0), (1, 2)):
        assert run(alike).fills(candles, place) == run(apart).fills(candles, other)
