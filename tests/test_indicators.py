"""INDICATORS: the numbers of plain loops, the same to the last bit with any history, and blind to the future."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import lunobiz
from candles import random_walk, rows_of, series, series_from
from lunobiz import Floats, Series, series_of

NAN = math.nan
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


class Case(NamedTuple):
    """An indicator, its naive double over a list of candles (the last one is the row asked for), and its memory."""

    name: str
    fast: Callable[[Series, int], Floats]
    naive: Callable[[Series, int], float]
    memory: Callable[[int], int]


def ranges(s: Series) -> list[float]:
    """True range of each candle but the first, as Wilder wrote it."""
    return [
        max(s.high[i] - s.low[i], abs(s.high[i] - s.close[i - 1]), abs(s.low[i] - s.close[i - 1]))
        for i in range(1, len(s))
    ]


def returns(s: Series) -> list[float]:
    """Log return of each candle but the first."""
    return [math.log(float(b) / float(a)) for a, b in zip(s.close, s.close[1:], strict=False)]


def naive_efficiency(s: Series, n: int) -> float:
    """Way gained over way walked."""
    walked = math.fsum(abs(float(b) - float(a)) for a, b in zip(s.close, s.close[1:], strict=False))
    return abs(float(s.close[-1]) - float(s.close[0])) / walked if walked > 0 else 0.0


CASES = (
    Case("lag", lambda s, n: lunobiz.lag(s.close, n), lambda s, n: float(s.close[0]), lambda n: n + 1),
    Case("sum", lambda s, n: lunobiz.rolling_sum(s.volume, n), lambda s, n: math.fsum(s.volume), lambda n: n),
    Case("max", lambda s, n: lunobiz.rolling_max(s.high, n), lambda s, n: max(s.high), lambda n: n),
    Case("min", lambda s, n: lunobiz.rolling_min(s.low, n), lambda s, n: min(s.low), lambda n: n),
    Case("sma", lambda s, n: lunobiz.sma(s.close, n), lambda s, n: statistics.fmean(s.close), lambda n: n),
    Case("channel top", lambda s, n: lunobiz.channel_high(s, n), lambda s, n: max(s.high[:-1]), lambda n: n + 1),
    Case("channel floor", lambda s, n: lunobiz.channel_low(s, n), lambda s, n: min(s.low[:-1]), lambda n: n + 1),
    Case("true range", lambda s, n: lunobiz.true_range(s), lambda s, n: ranges(s)[-1], lambda n: 2),
    Case("atr", lunobiz.atr, lambda s, n: statistics.fmean(ranges(s)), lambda n: n + 1),
    Case("log return", lambda s, n: lunobiz.log_returns(s.close), lambda s, n: returns(s)[-1], lambda n: 2),
    Case(
        "volatility",
        lambda s, n: lunobiz.realised_volatility(s.close, n),
        lambda s, n: math.sqrt(statistics.fmean(r * r for r in returns(s))),
        lambda n: n + 1,
    ),
    Case("efficiency", lambda s, n: lunobiz.efficiency(s.close, n), naive_efficiency, lambda n: n + 1),
    Case(
        "bollinger mean",
        lambda s, n: lunobiz.bollinger(s.close, n)[0],
        lambda s, n: statistics.fmean(s.close),
        lambda n: n,
    ),
    Case(
        "bollinger width",
        lambda s, n: lunobiz.bollinger(s.close, n)[1],
        lambda s, n: statistics.pstdev([float(c) for c in s.close]),
        lambda n: n,
    ),
)
EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
LENGTHS = (1, 2, 3, 5, 7, 8, 16, 24, 48, 72, 96, 120)


def alike(one: Floats, two: Floats) -> bool:
    """True when two columns are equal to the last bit, NaN to NaN."""
    return bool(((one == two) | (np.isnan(one) & np.isnan(two))).all())


@EACH
@pytest.mark.parametrize("n", LENGTHS)
def test_each_row_is_what_a_plain_loop_finds(case: Case, n: int) -> None:
    whole = random_walk(200, seed=n)
    values, memory = case.fast(whole, n), case.memory(n)
    assert len(values) == 200
    assert values.dtype == np.float64
    assert np.isnan(values[: memory - 1]).all()
    for row in (*range(memory - 1, 199, 17), 199):
        naive = case.naive(whole.part(row - memory + 1, row + 1), n)
        assert values[row] == pytest.approx(naive, rel=1e-9, abs=1e-12), row


@EACH
@hypothesis_settings(max_examples=25)
@given(st.sampled_from(LENGTHS), st.integers(0, 10_000), st.data())
def test_the_value_is_the_same_to_the_last_bit_with_any_history(
    case: Case, n: int, seed: int, data: st.DataObject
) -> None:
    whole = random_walk(200, seed=seed, sigma=0.03)
    row = data.draw(st.integers(case.memory(n) - 1, 199))
    start = data.draw(st.integers(0, row - case.memory(n) + 1))
    full, cut = case.fast(whole, n), case.fast(whole.part(start, row + 1), n)
    assert full[row] == cut[-1]


@EACH
def test_memory_is_neither_longer_nor_shorter_than_declared(case: Case) -> None:
    whole, n = random_walk(200, seed=3), 7
    memory = case.memory(n)
    full = case.fast(whole, n)
    for row in (50, 120, 199):
        assert case.fast(whole.part(row - memory + 1, row + 1), n)[-1] == full[row]
        assert np.isnan(case.fast(whole.part(row - memory + 2, row + 1), n)[-1:]).all()


@EACH
@hypothesis_settings(max_examples=25)
@given(st.sampled_from(LENGTHS), st.integers(1, 198), st.integers(0, 10_000))
def test_the_future_changes_nothing(case: Case, n: int, row: int, seed: int) -> None:
    rows = rows_of(random_walk(200, seed=seed))
    other = rows.copy()
    other[row + 1 :, 1:] *= np.random.default_rng(seed).uniform(0.2, 5.0, (199 - row, 1))
    one, two = case.fast(series_of(rows, 3600), n), case.fast(series_of(other, 3600), n)
    assert alike(one[: row + 1], two[: row + 1])


@EACH
@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_candles_are_no_error(case: Case, count: int) -> None:
    values = case.fast(random_walk(10).part(0, count), 5)
    assert len(values) == count


@EACH
def test_the_candles_are_left_alone(case: Case) -> None:
    whole = random_walk(50)
    before = rows_of(whole)
    values = case.fast(whole, 5)
    if case.name != "lag":
        values[:] = -1.0
    assert np.array_equal(rows_of(whole), before)


# --- by hand ---


def test_lag_by_hand() -> None:
    x = np.array([1.0, 2.0, 3.0])
    assert lunobiz.lag(x, 0).tolist() == [1.0, 2.0, 3.0]
    assert alike(lunobiz.lag(x, 1), np.array([NAN, 1.0, 2.0]))
    assert alike(lunobiz.lag(x, 3), np.array([NAN, NAN, NAN]))
    assert alike(lunobiz.lag(x, 9), np.array([NAN, NAN, NAN]))


def test_rolling_by_hand() -> None:
    x = np.array([1.0, 5.0, 2.0, 4.0, 3.0])
    assert alike(lunobiz.rolling_sum(x, 3), np.array([NAN, NAN, 8.0, 11.0, 9.0]))
    assert alike(lunobiz.rolling_max(x, 2), np.array([NAN, 5.0, 5.0, 4.0, 4.0]))
    assert alike(lunobiz.rolling_min(x, 4), np.array([NAN, NAN, NAN, 1.0, 2.0]))
    assert lunobiz.rolling_max(x, 1).tolist() == x.tolist()


def test_a_huge_value_leaves_no_trace_behind() -> None:
    """A running total would carry the rounding error of 1e17 along for ever."""
    x = np.array([1.0, 1e17, 1.0, 1.0, 1.0, 1.0])
    assert lunobiz.rolling_sum(x, 3)[-1] == 3.0
    assert lunobiz.bollinger(x, 3)[1][-1] == 0.0


def test_a_hole_spoils_only_the_rows_that_see_it() -> None:
    x = np.array([1.0, NAN, 1.0, 1.0, 1.0])
    assert np.isnan(lunobiz.rolling_sum(x, 3)).tolist() == [True, True, True, True, False]
    assert np.isnan(lunobiz.rolling_max(x, 3)).tolist() == [True, True, True, True, False]


HAND = """
100 104  98 102 1
103 108 103 107 1   # opens above the close before: the range reaches back to 102
106 107  95  96 1
 90  92  88  91 1   # falls from 96
"""


def test_true_range_and_atr_by_hand() -> None:
    whole = series_from(HAND)
    assert alike(lunobiz.true_range(whole), np.array([NAN, 6.0, 12.0, 8.0]))
    assert alike(lunobiz.atr(whole, 2), np.array([NAN, NAN, 9.0, 10.0]))


def test_the_channel_is_of_the_candles_before() -> None:
    top, floor = lunobiz.channel_high(series_from(HAND), 2), lunobiz.channel_low(series_from(HAND), 2)
    assert alike(top, np.array([NAN, NAN, 108.0, 108.0]))
    assert alike(floor, np.array([NAN, NAN, 98.0, 95.0]))


def test_efficiency_by_hand() -> None:
    straight = lunobiz.efficiency(np.array([10.0, 11.0, 12.0, 13.0]), 3)
    assert straight[-1] == 1.0
    back = lunobiz.efficiency(np.array([10.0, 12.0, 11.0, 11.0]), 3)
    assert back[-1] == 1.0 / 3.0
    still = lunobiz.efficiency(np.array([10.0, 10.0, 10.0, 10.0]), 2)
    assert alike(still, np.array([NAN, NAN, 0.0, 0.0]))


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_efficiency_is_a_share(seed: int, n: int) -> None:
    values = lunobiz.efficiency(random_walk(100, seed=seed).close, n)[n:]
    assert ((values >= 0) & (values <= 1 + 1e-12)).all()


def test_bollinger_by_hand() -> None:
    mean, width = lunobiz.bollinger(np.array([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]), 8)
    assert (mean[-1], width[-1]) == (5.0, 2.0)


def test_bollinger_does_not_cancel_far_from_nought() -> None:
    """Mean of squares less square of mean has no correct digit left here."""
    x = 1e9 + np.array([0.0, 1.0, 0.0, 1.0])
    assert lunobiz.bollinger(x, 4)[1][-1] == 0.5


def test_volatility_of_a_steady_climb_is_its_step() -> None:
    closes = [100 * 1.01**n for n in range(10)]
    assert lunobiz.realised_volatility(np.array(closes), 5)[-1] == pytest.approx(math.log(1.01), rel=1e-9)


def test_a_series_of_equal_closes_has_no_volatility() -> None:
    whole = series([100.0] * 10)
    assert lunobiz.realised_volatility(whole.close, 5)[-1] == 0.0
