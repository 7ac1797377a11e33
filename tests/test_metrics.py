"""METRICS: what a run amounts to, worked out by hand."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lunobiz
from candles import series
from lunobiz import (
    DailyReturns,
    Desk,
    Drawdown,
    Market,
    Regime,
    RoundTrip,
    Settings,
    buy_and_hold,
    daily_returns,
    expectancy,
    group_metrics,
    max_drawdown,
    profit_factor,
    returns_of,
    total_return,
)

DAY_MS = 86_400_000
T0 = 1_700_006_400_000
EQUITIES = st.lists(st.floats(1.0, 1e7), max_size=20)


# --- returns ---


def test_total_return_by_hand() -> None:
    assert total_return(100_000.0, 112_500.0) == 0.125
    assert total_return(100_000.0, 75_000.0) == -0.25
    assert total_return(100_000.0, 100_000.0) == 0.0
    assert total_return(100_000.0, 0.0) == -1.0
    assert total_return(0.0, 5.0) == 0.0


def test_the_first_day_is_measured_against_the_start() -> None:
    assert returns_of([110.0, 99.0, 99.0], 100.0) == pytest.approx([0.10, -0.10, 0.0])
    assert returns_of([], 100.0) == []


def test_daily_returns_by_hand() -> None:
    # 100 -> 102 -> 101.49 -> 104.5347 -> 103.489353 -> 103.489353: +2 %, -0.5 %, +3 %, -1 %, 0 %
    found = daily_returns([102.0, 101.49, 104.5347, 103.489353, 103.489353], 100.0)
    assert found.mean == pytest.approx(0.007)
    # squares of the distances from the mean: 0.013, 0.012, 0.023, 0.017, 0.007 squared, over four
    assert found.std == pytest.approx(math.sqrt((0.013**2 + 0.012**2 + 0.023**2 + 0.017**2 + 0.007**2) / 4))
    # sorted: -1, -0.5, 0, 2, 3 %; a twentieth of the way along four steps is a fifth of the first one
    assert found.p05 == pytest.approx(-0.009)
    assert found.p50 == pytest.approx(0.0)
    assert found.p95 == pytest.approx(0.028)
    assert found.best == pytest.approx(0.03)
    assert found.worst_day == pytest.approx(-0.01)


def test_no_days_and_one_day() -> None:
    assert daily_returns([], 100.0) == DailyReturns(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    one = daily_returns([97.0], 100.0)
    assert one.std == 0.0
    assert {one.mean, one.p05, one.p50, one.p95, one.best, one.worst_day} == {one.mean}
    assert one.mean == pytest.approx(-0.03)


def test_the_worst_day_of_a_lucky_run_is_a_gain() -> None:
    assert daily_returns([101.0, 103.02], 100.0).worst_day == pytest.approx(0.01)


@given(EQUITIES.filter(lambda e: len(e) > 1), st.floats(1.0, 1e7))
def test_the_distribution_agrees_with_numpy(equities: list[float], start: float) -> None:
    returns = np.array(equities) / np.array([start, *equities[:-1]]) - 1
    found = daily_returns(equities, start)
    assert found.mean == pytest.approx(float(returns.mean()), rel=1e-9, abs=1e-9)
    assert found.std == pytest.approx(float(returns.std(ddof=1)), rel=1e-9, abs=1e-9)
    assert found.worst_day == returns.min()
    assert found.best == returns.max()
    assert found.worst_day <= found.p05 <= found.p50 <= found.p95 <= found.best
    assert math.prod(1 + r for r in returns_of(equities, start)) == pytest.approx(equities[-1] / start, rel=1e-9)


# --- drawdown ---


def test_a_drawdown_has_its_size_and_its_dates() -> None:
    curve = [
        (T0, 100.0),
        (T0 + 1 * DAY_MS, 120.0),
        (T0 + 2 * DAY_MS, 108.0),  # a tenth down
        (T0 + 3 * DAY_MS, 125.0),  # the peak
        (T0 + 4 * DAY_MS, 110.0),
        (T0 + 5 * DAY_MS, 100.0),  # the trough: a fifth down
        (T0 + 6 * DAY_MS, 130.0),
        (T0 + 7 * DAY_MS, 117.0),
    ]
    found = max_drawdown(curve)
    assert found.value == pytest.approx(0.20)
    assert (found.from_ms, found.to_ms) == (T0 + 3 * DAY_MS, T0 + 5 * DAY_MS)


def test_of_equal_peaks_and_troughs_the_first_dates_count() -> None:
    curve = [(1, 100.0), (2, 100.0), (3, 90.0), (4, 90.0), (5, 100.0), (6, 90.0)]
    found = max_drawdown(curve)
    assert found.value == pytest.approx(0.1)
    assert (found.from_ms, found.to_ms) == (1, 3)


@pytest.mark.parametrize("curve", [[], [(1, 100.0)], [(1, 100.0), (2, 100.0), (3, 101.0)], [(1, 0.0), (2, 0.0)]])
def test_a_curve_that_never_falls_has_no_drawdown(curve: list[tuple[int, float]]) -> None:
    assert max_drawdown(curve) == Drawdown(0.0, 0, 0)


def test_everything_lost_is_a_drawdown_of_one() -> None:
    assert max_drawdown([(1, 100.0), (2, 0.0)]) == Drawdown(1.0, 1, 2)


@given(EQUITIES)
def test_the_drawdown_is_the_worst_of_all_pairs(equities: list[float]) -> None:
    found = max_drawdown(list(enumerate(equities)))
    falls = [1 - b / a for i, a in enumerate(equities) for b in equities[i:]]
    assert found.value == pytest.approx(max(falls, default=0.0), abs=1e-12)
    if found.value > 0:
        assert found.from_ms < found.to_ms
        assert 1 - equities[found.to_ms] / equities[found.from_ms] == found.value


# --- round trips ---


def test_profit_factor_and_expectancy_by_hand() -> None:
    profits = [300.0, -100.0, 50.0, -40.0, 0.0]
    assert profit_factor(profits) == 2.5
    assert expectancy(profits) == 42.0


def test_without_losses_there_is_no_profit_factor() -> None:
    assert profit_factor([10.0, 0.0]) is None
    assert profit_factor([]) is None
    assert profit_factor([-10.0]) == 0.0
    assert expectancy([]) == 0.0


def trip(pair: str, strategy: str, profit: float, fees: float, regime: Regime = Regime.TRENDING) -> RoundTrip:
    """An entry and its exit."""
    return RoundTrip(pair, strategy, regime, 3600, T0, T0 + DAY_MS, 1.0, 100.0, 100.0 + profit, fees, profit, "stop")


TRIPS = (
    trip("XBTZAR", "momentum breakout", 90.0, 1.0),
    trip("ETHZAR", "momentum breakout", -30.0, 2.0, Regime.RANGING),
    trip("XBTZAR", "mean reversion", 0.0, 0.5, Regime.RANGING),
    trip("XBTZAR", "momentum breakout", -15.0, 1.5),
)


def test_groups_by_hand() -> None:
    by_strategy = group_metrics(TRIPS, lambda t: t.strategy)
    assert list(by_strategy) == ["mean reversion", "momentum breakout"]
    assert by_strategy["momentum breakout"] == {
        "trades": 3.0, "profit": 45.0, "win_rate": pytest.approx(1 / 3), "profit_factor": 2.0, "expectancy": 15.0,
        "fees_paid": 4.5,
    }  # fmt: skip
    assert by_strategy["mean reversion"] == {
        "trades": 1.0, "profit": 0.0, "win_rate": 0.0, "profit_factor": None, "expectancy": 0.0, "fees_paid": 0.5,
    }  # fmt: skip
    assert {name: g["trades"] for name, g in group_metrics(TRIPS, lambda t: t.pair).items()} == {
        "ETHZAR": 1.0, "XBTZAR": 3.0,
    }  # fmt: skip
    assert list(group_metrics(TRIPS, lambda t: t.regime.value)) == ["ranging", "trending"]
    assert group_metrics((), lambda t: t.pair) == {}


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(-1000, 1000)), max_size=12))
def test_groups_add_up_to_the_whole(items: list[tuple[str, int]]) -> None:
    trips = [trip(pair, "x", float(profit), 1.0) for pair, profit in items]
    groups = group_metrics(trips, lambda t: t.pair).values()
    for name, whole in (("trades", len(trips)), ("profit", sum(p for _, p in items)), ("fees_paid", len(trips))):
        assert sum(g[name] or 0.0 for g in groups) == whole


# --- comparison ---


def test_buy_and_hold_by_hand() -> None:
    # 100 -> 150 and 100 -> 80, each bought and sold for 0.6 %
    kept = 0.994 * 0.994
    assert buy_and_hold([(100.0, 150.0, 0.006), (100.0, 80.0, 0.006)]) == pytest.approx((1.5 + 0.8) / 2 * kept - 1)
    assert buy_and_hold([(100.0, 100.0, 0.006)]) == pytest.approx(-0.011964)
    assert buy_and_hold([(50.0, 100.0, 0.0)]) == 1.0
    assert buy_and_hold([]) == 0.0


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6), st.floats(0, 0.02)), min_size=1, max_size=8))
def test_buy_and_hold_is_the_mean_of_its_markets(items: list[tuple[float, float, float]]) -> None:
    alone = [buy_and_hold([item]) for item in items]
    assert buy_and_hold(items) == pytest.approx(statistics.fmean(alone), rel=1e-9, abs=1e-9)


# --- a tape of cycles ---


def cycle(time_ms: int, equity: float, exposure: float) -> lunobiz.CycleReport:
    """A cycle in which nothing happened but that the equity stood here."""
    nothing = lunobiz.Settlement()
    return lunobiz.CycleReport(
        time_ms, (), Desk(equity), nothing, (), (), (), (), (), (), (), equity, exposure
    )


def test_exposure_days_and_drawdown_of_a_tape() -> None:
    """Eight six-hour steps over two days; something was held in three of them."""
    step = DAY_MS // 4
    steps = [
        (100_000.0, 0.0), (101_000.0, 40_000.0), (99_000.0, 40_000.0), (102_000.0, 0.0),  # ends at midnight
        (102_000.0, 0.0), (91_800.0, 50_000.0), (96_900.0, 0.0), (96_900.0, 0.0),
    ]  # fmt: skip
    tape = lunobiz.Tape()
    for number, (equity, exposure) in enumerate(steps, 1):
        report = cycle(T0 + number * step, equity, exposure)
        tape.record(report)
        tape.end_step(T0 + number * step, report)
    market = Market("XBTZAR", "XBT", "ZAR", 0, 6, 0.0001, 100.0, 1.0, 1e8)
    candles = series(np.linspace(500.0, 640.0, 8).tolist(), seconds=21_600, start_ms=T0)
    job = lunobiz.BacktestJob(((market, candles),), Settings(), T0 + step, T0 + 8 * step)
    found = lunobiz._metrics(job, tape, Desk(96_900.0, fees_paid=123.0), len(steps))
    assert found.exposure_time == 3 / 8
    assert found.total_return == pytest.approx(-0.031)
    assert tape.days == {T0 // DAY_MS: 102_000.0, T0 // DAY_MS + 1: 96_900.0}
    assert found.daily_returns.best == pytest.approx(0.02)
    assert found.daily_returns.worst_day == pytest.approx(-0.05)
    assert found.max_drawdown.value == pytest.approx(0.1)
    assert (found.max_drawdown.from_ms, found.max_drawdown.to_ms) == (T0 + 4 * step, T0 + 6 * step)
    assert (found.round_trips, found.fees_paid, found.expectancy, found.profit_factor) == (0, 123.0, 0.0, None)
    assert found.buy_and_hold == pytest.approx(640.0 / 500.0 * 0.994**2 - 1)
