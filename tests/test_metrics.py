"""METRICS: what a run amounts to, worked out by hand."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from itertools import combinations

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
    Floats,
    Market,
    Regime,
    ReturnShape,
    RoundTrip,
    Settings,
    annual_sharpe,
    binomial_interval,
    bootstrap_rows,
    buy_and_hold,
    daily_returns,
    drawdown_of,
    drawdown_quantile,
    drawdowns,
    dsr,
    expectancy,
    expected_max_sharpe,
    group_metrics,
    max_drawdown,
    min_trl,
    money_test,
    pbo,
    profit_factor,
    psr,
    psr_of,
    return_shape,
    returns_of,
    sharpe,
    sharpes,
    total_return,
)

DAY_MS = 86_400_000
T0 = 1_700_006_400_000
EQUITIES = st.lists(st.floats(1.0, 1e7), max_size=20)
# tenths of a percent
RETURNS = st.lists(st.integers(-200, 200), min_size=2, max_size=40).map(lambda steps: np.array(steps) / 1000)


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


# --- Sharpe ratios ---


def noise(*shape: int, mean: float = 0.0, seed: int = 1) -> Floats:
    """Normal daily returns of 1 % about a mean."""
    return np.random.default_rng(seed).normal(mean, 0.01, shape)


def test_sharpe_by_hand() -> None:
    # mean 1 %; distances -1, -1, -1, +3 %, squares 1 + 1 + 1 + 9 over three: a spread of 2 %
    assert sharpe([0.0, 0.0, 0.0, 0.04]) == pytest.approx(0.5)
    assert sharpe([0.0, 0.0, 0.0, -0.04]) == pytest.approx(-0.5)
    # nineteen steps of a hundredth squared are 361, and four more make 365
    assert annual_sharpe([0.0, 0.0, 0.0, 0.04]) == pytest.approx(0.5 * math.sqrt(361 + 4))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("returns", [[], [0.05], [0.1, 0.1, 0.1], [0.0] * 50, [1 / 3] * 7])
def test_without_a_spread_there_is_no_ratio(returns: list[float]) -> None:
    assert sharpe(returns) == 0.0


def test_sharpes_run_along_the_last_axis() -> None:
    rows = np.array([[0.0, 0.0, 0.0, 0.04], [0.1, 0.1, 0.1, 0.1], [-0.01, -0.01, -0.01, -0.05]])
    assert sharpes(rows).tolist() == pytest.approx([0.5, 0.0, -1.0])  # the last one: mean -2 %, the same spread
    assert sharpes(np.stack([rows, -rows])).shape == (2, 3)
    assert sharpes(rows[:, :1]).tolist() == [0.0, 0.0, 0.0]


@given(RETURNS)
def test_sharpe_agrees_with_the_library(returns: Floats) -> None:
    spread = statistics.stdev(returns.tolist())
    known = statistics.fmean(returns.tolist()) / spread if len(set(returns.tolist())) > 1 else 0.0
    assert sharpe(returns) == pytest.approx(known, abs=1e-12)


# --- the stationary bootstrap ---


def test_bootstrapped_days_follow_each_other_in_blocks() -> None:
    rows = bootstrap_rows(2000, 720, 10, seed=3)
    assert rows.shape == (2000, 720)
    assert (rows.min(), rows.max()) == (0, 719)
    follows = (rows[:, 1:] - rows[:, :-1]) % 720 == 1
    # nine times in ten on purpose, and once in 720 by chance; 1.4 million steps put it within 0.0003
    assert follows.mean() == pytest.approx(0.9 + 0.1 / 720, abs=0.001)
    # each day is drawn 2000 times, with a spread of about 2000^0.5; the spread itself is known to a fortieth
    counts = np.bincount(rows.ravel(), minlength=720)
    assert counts.std() == pytest.approx(math.sqrt(2000), rel=0.15)
    assert np.bincount(rows[:, 0], minlength=720).max() < 20  # a row starts anywhere: 2.8 expected


def test_the_first_day_comes_after_the_last() -> None:
    rows = bootstrap_rows(50, 4, 1e9, seed=3)
    assert {tuple(row) for row in rows.tolist()} == {(0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2)}


def test_a_bootstrap_is_as_wide_as_wished_and_hangs_on_its_seed() -> None:
    assert bootstrap_rows(3, 5, 2, seed=1, width=12).shape == (3, 12)
    assert bootstrap_rows(3, 500, 2, seed=1, width=12).max() > 12
    assert (bootstrap_rows(9, 50, 5, seed=1) == bootstrap_rows(9, 50, 5, seed=1)).all()
    assert (bootstrap_rows(9, 50, 5, seed=1) != bootstrap_rows(9, 50, 5, seed=2)).any()


@pytest.mark.parametrize("block", [1.0, 4.0, 10.0])
def test_the_drawn_means_have_the_variance_of_theory(block: float) -> None:
    """Two drawn days k apart lie in one block with chance (1 - 1/L)^k, and then have the circular covariance."""
    returns = np.array([3, 4, 5, 2, 1, 0, -3, -2, -4, -1, 0, 1, 2, 2, 3, -5, -4, -2, 0, 1], dtype=np.float64)
    size = returns.size
    off = returns - returns.mean()
    covariance = [float(np.mean(off * np.roll(off, -k))) for k in range(size)]
    known = covariance[0] / size
    for k in range(1, size):
        known += 2 / size * (1 - k / size) * (1 - 1 / block) ** k * covariance[k]
    means = returns[bootstrap_rows(40_000, size, block, seed=8)].mean(axis=1)
    assert means.var() == pytest.approx(known, rel=0.03)
    assert means.mean() == pytest.approx(returns.mean(), abs=4 * math.sqrt(known / 40_000))


def test_a_bootstrap_of_two_years_is_quick() -> None:
    spent = []
    for seed in range(5):
        start = time.process_time()
        bootstrap_rows(2000, 720, 10, seed)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.05


# --- money ---


def test_the_money_test_by_hand() -> None:
    # draws of two days have the mean +3 % in a quarter, +1 % in a half and -1 % in a quarter of all cases; the mean
    # is +1 %, so that p counts the means of 2 % and more; the bound is 2 % less the mean that level x 2001 reach
    returns = np.array([0.03, -0.01])
    found = money_test(returns, seed=5, block=1.0, level=0.20)
    assert found.p_value == pytest.approx(0.25, abs=0.04)
    assert found.lower_bound == pytest.approx(-0.01)
    assert money_test(returns, seed=5, block=1.0, level=0.40).lower_bound == pytest.approx(0.01)
    assert money_test(returns, seed=5, block=1.0, level=0.90).lower_bound == pytest.approx(0.03)


def test_one_draw_always_counts() -> None:
    assert money_test(np.full(50, 0.01), seed=1) == pytest.approx((1 / 2001, 0.01))
    assert money_test(np.full(50, 0.01), seed=1, draws=99).p_value == 1 / 100
    assert money_test(np.full(50, -0.01), seed=1) == pytest.approx((1.0, -0.01))


def test_days_in_cash_and_no_days_prove_nothing() -> None:
    assert money_test(np.zeros(720), seed=1) == (1.0, 0.0)
    assert money_test(np.zeros(0), seed=1) == (1.0, 0.0)


@given(RETURNS, st.integers(0, 9), st.sampled_from([0.05, 0.10, 0.20, 0.29, 0.50]))
def test_the_bound_and_the_chance_never_contradict_each_other(returns: Floats, seed: int, level: float) -> None:
    found = money_test(returns, seed, block=3.0, draws=99, level=level)
    assert (found.lower_bound > 0) == (found.p_value <= level)


def test_days_that_hang_together_prove_less() -> None:
    """Each of 72 draws is held for ten days: ten times the days, and no more to learn."""
    luck = noise(72)
    held = np.repeat((luck - luck.mean()) / luck.std() * 0.01 + 0.001, 10)
    # day by day the mean is 0.1 x 720^0.5 = 2.68 spreads above nought
    assert money_test(held, seed=1, block=1.0).p_value == pytest.approx(0.0037, abs=0.004)
    # in blocks the variance grows by 1 + 2 x the sum of (1 - k/10) 0.9^k = 7.28: 0.99 spreads
    assert money_test(held, seed=1, block=10.0).p_value == pytest.approx(0.16, abs=0.05)


def ks_p_value(values: Sequence[float]) -> float:
    """Chance of so large a distance of uniform values from their line (Kolmogorov and Smirnov)."""
    ordered, size = sorted(values), len(values)
    distance = max(max((i + 1) / size - v, v - i / size) for i, v in enumerate(ordered))
    reach = (math.sqrt(size) + 0.12 + 0.11 / math.sqrt(size)) * distance
    if reach < 0.2:
        return 1.0
    return min(1.0, 2 * sum((-1.0) ** (k - 1) * math.exp(-2 * k * k * reach * reach) for k in range(1, 100)))


def test_the_distance_from_uniform_as_in_the_tables() -> None:
    # evenly spaced values, moved up by the tables' 5 % and 1 % distances: 1.358 and 1.628 over the root of 500
    even = [i / 500 for i in range(500)]
    assert ks_p_value(even) == 1.0
    assert ks_p_value([v + 1.358 / math.sqrt(500) for v in even]) == pytest.approx(0.05, abs=0.01)
    assert ks_p_value([v + 1.628 / math.sqrt(500) for v in even]) == pytest.approx(0.01, abs=0.003)


def test_without_an_edge_every_chance_is_as_likely() -> None:
    series_of_luck = noise(500, 720, seed=11)
    found = [money_test(row, seed, draws=399).p_value for seed, row in enumerate(series_of_luck)]
    assert ks_p_value(found) > 0.01


# --- the Sharpe ratio's own chance ---


def test_the_shape_by_hand() -> None:
    # distances -1, -1, -1, +3 %: mean square (1 + 1 + 1 + 9) / 4 = 3, cube (-3 + 27) / 4 = 6, fourth (3 + 81) / 4 = 21
    found = return_shape(np.array([0.0, 0.0, 0.0, 0.04]))
    assert found == pytest.approx((0.5, 4, 6 / 3**1.5, 21 / 9))
    assert found.spread == pytest.approx(1 - 1.154701 * 0.5 + 1.333333 / 4 * 0.25, abs=1e-6)
    assert return_shape(np.full(5, 0.1)) == (0.0, 5, 0.0, 3.0)


def test_psr_by_hand() -> None:
    # a normal distribution, 0.1 a day, 100 steps: 0.1 x 10 over the root of 1 + 0.01 / 2, or 0.99751 spreads
    assert psr_of(ReturnShape(0.1, 101, 0.0, 3.0), 0.0) == pytest.approx(0.84074, abs=1e-5)
    # (0.5 - 0.1) x 3^0.5 over 0.505983^0.5, or 0.973986 spreads
    assert psr(np.array([0.0, 0.0, 0.0, 0.04]), 0.1) == pytest.approx(0.83497, abs=2e-5)
    # +3 % and -1 % by turns: symmetric and of kurtosis 1, so the divisor is 1; 1 / 2 x (3 / 4)^0.5 x 3^0.5 = 3 / 4
    assert psr(np.array([0.03, -0.01, 0.03, -0.01]), 0.0) == pytest.approx(0.77337, abs=1e-5)


def test_psr_of_next_to_nothing_is_even() -> None:
    for returns in (np.zeros(0), np.array([0.02]), np.zeros(30), np.array([0.01, -0.01])):
        assert psr(returns, 0.0) == 0.5
    # two values alone: the divisor is nought, and rounding must not make it less
    assert psr_of(ReturnShape(2.0, 50, 1.0, 2.0), 1.0) == 1.0


def test_the_best_of_many_by_hand() -> None:
    # ten trials: 1.281552 and, at 1 - 1 / (10 e) = 0.9632121, 1.789238; 0.4227843 and 0.5772157 parts of them
    assert expected_max_sharpe(1.0, 10) == pytest.approx(0.4227843 * 1.281552 + 0.5772157 * 1.789238, abs=1e-5)
    assert expected_max_sharpe(0.0025, 10) == pytest.approx(0.05 * expected_max_sharpe(1.0, 10))
    assert expected_max_sharpe(1.0, 1) == expected_max_sharpe(1.0, 0) == 0.0


def test_the_published_deflated_ratio() -> None:
    """Bailey and Lopez de Prado 2014: 2.5 a year of 250 days, five years, 100 trials of variance 1/2, skewed."""
    sr0 = expected_max_sharpe(0.5 / 250, 100)
    assert round(sr0, 4) == 0.1132
    assert round(psr_of(ReturnShape(2.5 / math.sqrt(250), 1250, -3.0, 10.0), sr0), 4) == 0.9004


def test_dsr_by_hand() -> None:
    # trials of variance 0.01; of three, 0.430727 and at 1 - 1 / (3 e) 1.161957: 0.1 x 0.852803 by luck;
    # (0.5 - 0.0852803) x 3^0.5 over 0.711325 is 1.009820
    returns = np.array([0.0, 0.0, 0.0, 0.04])
    assert dsr(returns, [0.1, 0.2, 0.3]) == pytest.approx(0.84371, abs=2e-5)
    assert dsr(returns, np.array([0.1, 0.2, 0.3])) == dsr(returns, [0.1, 0.2, 0.3])
    assert dsr(returns, [0.5]) == dsr(returns, []) == psr(returns, 0.0)


def test_days_needed_by_hand() -> None:
    # 1 + 0.505983 x (1.644854 / 0.4)^2
    assert min_trl(np.array([0.0, 0.0, 0.0, 0.04]), 0.1) == pytest.approx(9.5560, abs=2e-4)
    assert min_trl(np.array([0.0, 0.0, 0.0, 0.04]), 0.5) == math.inf
    assert min_trl(np.array([0.0, 0.0, 0.0, 0.04]), 0.6) == math.inf
    assert min_trl(np.zeros(9), 0.0) == math.inf


@given(RETURNS, st.floats(-0.2, 0.2), st.floats(0.6, 0.99))
def test_after_the_days_needed_the_confidence_is_reached(returns: Floats, sr0: float, confidence: float) -> None:
    shape = return_shape(returns)
    if shape.sr > sr0 + 0.01 and shape.spread > 0.01:
        days = min_trl(returns, sr0, confidence)
        reached = (shape.sr - sr0) * math.sqrt((days - 1) / shape.spread)
        assert statistics.NormalDist().cdf(reached) == pytest.approx(confidence)


# --- overfitting ---


def brute_pbo(matrix: list[list[float]], blocks: int) -> float:
    """PBO word for word: logits of the relative rank, counted where not above nought; the rows fill the blocks."""

    def ratio(days: list[int], one: int) -> float:
        values = [matrix[day][one] for day in days]
        return statistics.fmean(values) / statistics.stdev(values)

    sets, size = range(len(matrix[0])), len(matrix) // blocks
    logits = []
    for half in combinations(range(blocks), blocks // 2):
        inside = [day for day in range(len(matrix)) if day // size in half]
        outside = [day for day in range(len(matrix)) if day // size not in half]
        best = max(sets, key=lambda one: ratio(inside, one))
        rank = 1 + sum(ratio(outside, one) < ratio(outside, best) for one in sets)
        share = rank / (len(sets) + 1)
        logits.append(math.log(share / (1 - share)))
    assert len(logits) == math.comb(blocks, blocks // 2)
    return sum(logit <= 1e-12 for logit in logits) / len(logits)


@pytest.mark.parametrize(("sets", "seed"), [(2, 5), (5, 2), (6, 3), (7, 4)])
def test_pbo_equals_brute_force(sets: int, seed: int) -> None:
    matrix = noise(64, sets, seed=seed) + np.linspace(0.0, 0.004, sets)
    found = pbo(matrix, blocks=8)
    assert found == brute_pbo(matrix.tolist(), 8)
    assert 0 < found < 1


def test_pbo_by_hand() -> None:
    # the better set is better in every block
    ladder = noise(48, 1) + np.array([0.0, 0.02, 0.04])
    assert pbo(ladder) == 0.0
    # what one set gains, the other loses; over all days both end at nought, and no three blocks do: the set that
    # leads in one half trails in the other
    swing = np.repeat([0.01, -0.02, 0.04, -0.08, 0.16, -0.11], 2) + np.tile([0.001, -0.001], 6)
    assert pbo(np.stack([swing, -swing], axis=1), blocks=6) == 1.0


def test_the_middle_set_counts_as_the_lower_half() -> None:
    # two blocks and three sets: the best of each block is in the middle of the other one
    day = np.array([0.01, -0.01])
    first, second = np.array([3, 2, 1]), np.array([2, 3, 1])
    matrix = np.concatenate([np.add.outer(day, 0.01 * first), np.add.outer(day, 0.01 * second)])
    assert pbo(matrix, blocks=2) == 1.0
    third = np.array([3, 1, 2])  # of four splits' ends both are won by the same set
    matrix = np.concatenate([np.add.outer(day, 0.01 * first), np.add.outer(day, 0.01 * third)])
    assert pbo(matrix, blocks=2) == 0.0


def test_pbo_of_sets_that_are_all_alike() -> None:
    assert pbo(np.zeros((24, 3))) == 1.0
    assert pbo(np.repeat(noise(24, 1), 4, axis=1)) == 1.0


def test_pbo_leaves_no_day_out() -> None:
    """With 50 days for 12 blocks, two are too many; here the first and the last day alone tell the sets apart."""
    days = np.tile([-0.01, 0.01], 25)
    days[-1] = -0.01
    matrix = np.stack([days, days], axis=1)
    matrix[[0, -1], 1] = 0.0
    # the second set wins in both halves if each holds one of the two days; else a half has nothing to choose from
    assert pbo(matrix) == 2 * math.comb(10, 4) / 924


# --- drawdown of returns ---


def test_drawdown_of_returns_by_hand() -> None:
    assert drawdown_of([0.10, -0.10, -0.10, 0.50]) == pytest.approx(0.19)  # 0.9 x 0.9 = 0.81
    assert drawdown_of([-0.20, 0.10]) == pytest.approx(0.20)  # the start is a peak as well
    assert drawdown_of([0.01, 0.02, 0.0]) == 0.0
    assert drawdown_of([]) == 0.0
    assert drawdowns(np.array([[0.1, -0.1, -0.1], [-0.2, 0.1, 0.0]])).tolist() == pytest.approx([0.19, 0.20])


@given(RETURNS)
def test_both_drawdowns_agree(returns: Floats) -> None:
    curve = np.concatenate([[1.0], np.cumprod(1 + returns)])
    assert drawdown_of(returns) == pytest.approx(max_drawdown(list(enumerate(curve.tolist()))).value, abs=1e-12)


def test_the_drawdown_quantile_by_hand() -> None:
    # -1 % on each of ten days, however they are drawn
    assert drawdown_quantile(np.full(3, -0.01), seed=1, days=10) == pytest.approx(1 - 0.99**10)
    # one day is 0 or -50 %, as likely
    coin = np.array([0.0, -0.5])
    assert drawdown_quantile(coin, seed=1, days=1, block=1.0, quantile=0.45) == 0.0
    assert drawdown_quantile(coin, seed=1, days=1, block=1.0, quantile=0.55) == 0.5
    # two days lose 75 % in a quarter of cases; with blocks of two only in an eighth, for half of the time 0 follows
    assert drawdown_quantile(coin, seed=1, days=2, block=1.0, quantile=0.80) == 0.75
    assert drawdown_quantile(coin, seed=1, days=2, block=2.0, quantile=0.80) == 0.5
    assert drawdown_quantile(np.zeros(0), seed=1) == 0.0


def test_the_drawdown_quantile_is_of_the_days_asked_for() -> None:
    returns = noise(720, mean=0.001)
    falls = [drawdown_quantile(returns, seed=1, days=days) for days in (30, 360, 1080)]
    assert falls == sorted(falls)
    assert drawdown_quantile(returns, seed=1) == falls[1]
    assert drawdown_quantile(returns, seed=1, quantile=0.5) < falls[1]


# --- rates ---


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(12, 2600, 0.0024, 0.0080), (1, 1000, 0.0, 0.0056), (0, 1600, 0.0, 0.0023), (216, 300, 0.6655, 0.7701)],
)
def test_the_interval_of_a_rate_as_published(k: int, n: int, low: float, high: float) -> None:
    assert binomial_interval(k, n) == pytest.approx((low, high), abs=6e-5)


def test_the_interval_of_none_of_all_and_of_nothing() -> None:
    # none of n: (1 - p)^n = 1/40; all of n is its mirror image
    assert binomial_interval(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert binomial_interval(10, 10) == pytest.approx((0.025**0.1, 1.0))
    assert binomial_interval(0, 0) == (0.0, 1.0)
    # one of two at 80 %: (1 - p)^2 and p^2 leave a tenth
    assert binomial_interval(1, 2, 0.80) == pytest.approx((1 - math.sqrt(0.9), math.sqrt(0.9)))


@given(st.integers(1, 60), st.data())
def test_the_bounds_leave_their_tails(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = binomial_interval(k, n, 0.90)

    def chance(counts: range, rate: float) -> float:
        return math.fsum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in counts)

    assert low <= k / n <= high
    assert k == 0 or chance(range(k, n + 1), low) == pytest.approx(0.05, rel=1e-6)
    assert k == n or chance(range(k + 1), high) == pytest.approx(0.05, rel=1e-6)


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
