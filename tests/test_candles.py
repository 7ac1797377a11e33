"""CANDLES: every fault found, counted and named; slower candles, closed ones, and what moves together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import lunobiz
from candles import DAY_S, HOUR_S, START_MS, random_walk, rows_of, series, series_from, table
from lunobiz import (
    Candle,
    CandleReport,
    Doubt,
    Floats,
    Market,
    Series,
    Ticker,
    clean_rows,
    closed_only,
    correlated_pairs,
    correlation,
    doubt_columns,
    doubts_at,
    is_possible,
    quote_doubts,
    resample,
    series_of,
    shape_of,
    stale_finding,
)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
HOUR = HOUR_S * 1000
DAY = DAY_S * 1000
MARKET = Market("XBTZAR", "XBT", "ZAR", 0, 6, 0.0001, 100.0, 1.0, 1e8)
FOUR = """
100 110  90 105 1
105 115 100 110 2
110 120 105 115 3
115 125 110 120 4
"""
LATER = START_MS + 1000 * HOUR


def same(one: Series, two: Series) -> bool:
    """True when two series are equal to the last bit."""
    columns = ("opened", "open", "high", "low", "close", "volume")
    return one.seconds == two.seconds and all(np.array_equal(getattr(one, c), getattr(two, c)) for c in columns)


def doubts(whole: Series, row: int, days: float = 100.0) -> list[Doubt]:
    """The kinds of doubt that the candles up to a row raise."""
    return [f.doubt for f in doubts_at(doubt_columns(whole), row, days, 62)]


# --- a series ---


def test_a_series_is_its_table() -> None:
    whole = series_from(FOUR)
    assert len(whole) == 4
    assert whole.opened.dtype == np.int64
    assert whole.closed.tolist() == [START_MS + n * HOUR for n in (1, 2, 3, 4)]
    assert whole.candle(2) == Candle(START_MS + 2 * HOUR, 110.0, 120.0, 105.0, 115.0, 3.0)
    assert all(type(v) is float for v in (whole.candle(2).open, whole.candle(2).volume))
    assert np.array_equal(rows_of(whole), table(FOUR))


def test_a_part_is_cut_like_a_list() -> None:
    whole = series_from(FOUR)
    assert whole.part(1, 3).close.tolist() == [110.0, 115.0]
    assert len(whole.part(2, 2)) == 0
    assert same(whole.part(0, 4), whole)


def test_an_empty_table_is_an_empty_series() -> None:
    assert len(series_of(np.empty((0, 6)), HOUR_S)) == 0
    cleaned, report = clean_rows(np.empty((0, 6)), HOUR_S, LATER)
    assert cleaned.shape == (0, 6)
    assert report == CandleReport()
    assert report.missing_share == 0.0


# --- faults, one by one ---


def test_good_candles_pass_untouched() -> None:
    cleaned, report = clean_rows(table(FOUR), HOUR_S, LATER)
    assert np.array_equal(cleaned, table(FOUR))
    assert report == CandleReport(rows=4, first_ms=START_MS, last_ms=START_MS + 3 * HOUR)


def test_a_gap_is_measured() -> None:
    rows = table("""
    0: 100 110 90 100 1
    1: 100 110 90 100 1
    4: 100 110 90 100 1   # two are missing
    6: 100 110 90 100 1   # one is missing
    """)
    _, report = clean_rows(rows, HOUR_S, LATER)
    assert (report.rows, report.missing, report.longest_gap_ms) == (4, 3, 2 * HOUR)
    assert report.missing_share == 3 / 7


def test_of_duplicates_the_first_wins() -> None:
    rows = table("""
    0: 100 110 90 101 1
    1: 100 110 90 102 1
    1: 100 110 90 103 1
    1: 100 110 90 104 1
    2: 100 110 90 105 1
    """)
    cleaned, report = clean_rows(rows, HOUR_S, LATER)
    assert cleaned[:, 4].tolist() == [101.0, 102.0, 105.0]
    assert (report.rows, report.duplicates, report.disordered, report.missing) == (3, 2, 0, 0)


def test_disorder_is_put_right_and_counted() -> None:
    rows = table("""
    2: 100 110 90 103 1
    0: 100 110 90 101 1   # back
    3: 100 110 90 104 1
    1: 100 110 90 102 1   # back
    """)
    cleaned, report = clean_rows(rows, HOUR_S, LATER)
    assert cleaned[:, 4].tolist() == [101.0, 102.0, 103.0, 104.0]
    assert (report.disordered, report.duplicates, report.missing) == (2, 0, 0)


def test_the_first_of_disordered_duplicates_wins_too() -> None:
    rows = table("""
    1: 100 110 90 101 1
    0: 100 110 90 102 1
    1: 100 110 90 103 1
    """)
    cleaned, report = clean_rows(rows, HOUR_S, LATER)
    assert cleaned[:, 4].tolist() == [102.0, 101.0]
    assert (report.disordered, report.duplicates) == (1, 1)


@pytest.mark.parametrize(
    ("now_ms", "kept", "unfinished", "future"),
    [
        (START_MS + 4 * HOUR, 4, 0, 0),  # the last one closes at this moment
        (START_MS + 4 * HOUR - 1, 3, 1, 0),
        (START_MS + 3 * HOUR, 3, 1, 0),  # the last one opens at this moment
        (START_MS + 3 * HOUR - 1, 2, 1, 1),
        (START_MS - 1, 0, 0, 4),
    ],
)
def test_future_and_unfinished_candles_are_left_out(now_ms: int, kept: int, unfinished: int, future: int) -> None:
    cleaned, report = clean_rows(table(FOUR), HOUR_S, now_ms)
    assert len(cleaned) == report.rows == kept
    assert (report.unfinished, report.future, report.impossible) == (unfinished, future, 0)


@pytest.mark.parametrize(
    "row",
    [
        "1: 100  90  80 100 1   # high below both",
        "1: 100 110 101 105 1   # low above the open",
        "1: 105 110 101 100 1   # low above the close",
        "1: 100 104  90 105 1   # high below the close",
        "1: 106 105  90 100 1   # high below the open",
        "1:   0 110   0 105 1",
        "1: -5  110  -5 105 1",
        "1: 100 110  90 105 -1",
        "1: nan 110  90 105 1",
        "1: 100 nan  90 105 1",
        "1: 100 110 nan 105 1",
        "1: 100 110  90 nan 1",
        "1: 100 110  90 105 nan",
        "1: 100 inf  90 105 1",
        "1: 100 110  90 105 inf",
        "1: 100 110 -inf 105 1",
        "1.5: 100 110 90 105 1  # not on the hour",
        "1.0000003: 100 110 90 105 1  # a millisecond off",
        "-9999999: 100 110 90 105 1  # before 1970",
    ],
)
def test_an_impossible_candle_is_left_out_and_counted(row: str) -> None:
    rows = table(f"0: 100 110 90 100 1\n{row}\n2: 100 110 90 100 1")
    assert is_possible(rows, HOUR_S).tolist() == [True, False, True]
    cleaned, report = clean_rows(rows, HOUR_S, LATER)
    assert (len(cleaned), report.impossible, report.missing) == (2, 1, 1)


@pytest.mark.parametrize("opened", [math.nan, math.inf, -math.inf, 0.0])
def test_a_candle_without_a_time_is_impossible(opened: float) -> None:
    rows = table(FOUR)
    rows[1, 0] = opened
    assert clean_rows(rows, HOUR_S, LATER)[1].impossible == 1


def test_a_candle_of_another_duration_is_misaligned() -> None:
    rows = table("0: 100 110 90 100 1\n1: 100 110 90 100 1\n4: 100 110 90 100 1")
    assert is_possible(rows, 14_400).tolist() == [True, False, True]


def test_a_flat_candle_without_trades_is_possible() -> None:
    assert is_possible(table("100 100 100 100 0"), HOUR_S).tolist() == [True]


def test_silent_candles_and_jumps_are_counted() -> None:
    whole = series_from("""
    100 100 100 100 0
    100 125 100 121 1    # up by more than a fifth
    121 121  96  97 1    # down by a little less
     97  97  77  77 0    # down by more
      77 100  77  92.3 1  # up by a little less
    """)
    report = shape_of(whole)
    assert (report.silent, report.jumps, report.missing) == (2, 2, 0)


def test_all_faults_at_once_are_each_counted() -> None:
    rows = table("""
    3: 100 110 90 100 0
    0: 100 110 90 100 1     # out of order
    0: 100 110 90 999 1     # impossible: close above high
    1: 100 150 90 150 1     # a jump
    1: 100 110 90 101 1     # duplicate
    8: 150 150 90 100 1     # unfinished
    9: 100 110 90 100 1     # future
    3.25: 100 110 90 100 1  # misaligned
    """)
    _, report = clean_rows(rows, HOUR_S, START_MS + 8 * HOUR + 5)
    assert report == CandleReport(
        rows=3, first_ms=START_MS, last_ms=START_MS + 3 * HOUR, missing=1, longest_gap_ms=HOUR, jumps=2, silent=1,
        duplicates=1, disordered=1, future=1, unfinished=1, impossible=2,
    )  # fmt: skip


FAULTS: Mapping[str, Callable[[Floats, int], Floats]] = {
    "impossible": lambda rows, at: np.insert(rows, at, [[START_MS + at * HOUR, 1, 1, 2, 1, 1]], axis=0),
    "duplicates": lambda rows, at: np.insert(rows, at + 1, rows[at], axis=0),
    "future": lambda rows, at: np.insert(rows, at, [[LATER + HOUR, 1, 1, 1, 1, 1]], axis=0),
    "unfinished": lambda rows, at: np.insert(rows, at, [[LATER, 1, 1, 1, 1, 1]], axis=0),
}


@given(st.lists(st.tuples(st.sampled_from(sorted(FAULTS)), st.integers(0, 39)), max_size=8))
def test_planted_faults_are_all_found_and_nothing_else_is_lost(planted: list[tuple[str, int]]) -> None:
    clean = rows_of(random_walk(40, seed=3))
    rows, expected = clean, dict.fromkeys(FAULTS, 0)
    for fault, at in planted:
        # a copy of a planted fault would be counted as that fault
        if fault == "duplicates" and not any((clean == rows[at]).all(axis=1)):
            continue
        rows = FAULTS[fault](rows, at)
        expected[fault] += 1
    cleaned, report = clean_rows(rows, HOUR_S, LATER)
    assert np.array_equal(cleaned, clean)
    assert {name: getattr(report, name) for name in FAULTS} == expected
    assert (report.rows, report.missing, report.disordered) == (40, 0, 0)


@given(st.permutations(range(12)))
def test_any_order_gives_the_same_candles(order: list[int]) -> None:
    rows = rows_of(random_walk(12, seed=4))
    cleaned, report = clean_rows(rows[list(order)], HOUR_S, LATER)
    assert np.array_equal(cleaned, rows)
    assert report.disordered == sum(b < a for a, b in pairwise(order))


@given(st.sets(st.integers(0, 40), min_size=1))
def test_missing_candles_are_counted_as_a_loop_would(present: set[int]) -> None:
    rows = rows_of(random_walk(41, seed=5))[sorted(present)]
    report = clean_rows(rows, HOUR_S, LATER)[1]
    first, last = min(present), max(present)
    assert report.missing == sum(n not in present for n in range(first, last))
    longest = run = 0
    for n in range(first, last):
        run = 0 if n in present else run + 1
        longest = max(longest, run)
    assert report.longest_gap_ms == longest * HOUR
    assert report.missing_share == report.missing / (last - first + 1)


def test_cleaning_leaves_its_argument_alone() -> None:
    rows = rows_of(random_walk(10))[::-1].copy()
    before = rows.copy()
    clean_rows(rows, HOUR_S, LATER)
    assert np.array_equal(rows, before)


# --- doubts ---


def with_gap(count: int, after: int) -> Series:
    """A series that lacks one candle after a row."""
    rows = rows_of(random_walk(count + 1, sigma=0.001))
    return series_of(np.delete(rows, after + 1, axis=0), HOUR_S)


def test_a_gap_is_a_doubt_for_as_long_as_it_is_recent() -> None:
    whole = with_gap(60, after=9)
    assert [row for row in range(60) if doubts(whole, row)] == list(range(10, 10 + lunobiz.RECENT))
    assert doubts(whole, 10) == [Doubt.GAP]


def test_a_jump_is_a_doubt_for_as_long_as_it_is_recent() -> None:
    whole = series([100.0] * 10 + [125.0] * 50)
    assert [row for row in range(60) if doubts(whole, row)] == list(range(10, 10 + lunobiz.RECENT))
    assert doubts(whole, 33) == [Doubt.JUMP]


def test_silence_is_a_doubt_when_more_than_half_of_the_recent_candles_have_it() -> None:
    for silent, expected in ((12, []), (13, [Doubt.NO_TRADES])):
        volumes = [1.0] * 30 + [0.0] * silent + [1.0] * (24 - silent)
        assert doubts(series([100.0] * 54, volumes=volumes), 53) == expected


def test_short_history_is_a_doubt() -> None:
    whole = series([100.0] * 30)
    assert doubts(whole, 29, days=61.9) == [Doubt.SHORT_HISTORY]
    assert doubts(whole, 29, days=62.0) == []
    (finding,) = doubts_at(doubt_columns(whole), 29, 1.25, 62)
    assert finding.why == "1.2 days of candles, 62 needed"


def test_doubts_come_together_and_name_their_numbers() -> None:
    rows = rows_of(series([100.0] * 20 + [130.0] * 10, volumes=[0.0] * 30))
    whole = series_of(np.delete(rows, [25, 27], axis=0), HOUR_S)
    found = doubts_at(doubt_columns(whole), len(whole) - 1, 1.0, 62)
    assert [f.doubt for f in found] == [Doubt.SHORT_HISTORY, Doubt.GAP, Doubt.JUMP, Doubt.NO_TRADES]
    assert found[1].why == "2 gap(s) in the last 24 candles"
    assert "20%" in found[2].why
    assert found[3].why == "24 of the last 24 candles had no trade"


def test_the_counts_are_what_a_loop_counts() -> None:
    rng = np.random.default_rng(8)
    volumes = rng.integers(0, 2, 80).astype(float)
    closes = np.cumprod(rng.choice([0.7, 1.0, 1.4], 80))
    whole = series_of(np.delete(rows_of(series(closes, volumes=volumes)), [3, 30, 31, 60], axis=0), HOUR_S)
    columns = doubt_columns(whole)
    for row in range(len(whole)):
        recent = range(max(0, row - 23), row + 1)
        assert columns.silent[row] == sum(whole.volume[n] == 0 for n in recent)
        assert columns.gaps[row] == sum(n > 0 and whole.opened[n] - whole.opened[n - 1] != HOUR for n in recent)
        moves = [whole.close[n] / whole.close[n - 1] - 1 for n in recent if n > 0]
        assert columns.jumps[row] == sum(abs(move) > 0.2 for move in moves)


QUOTE = Ticker("XBTZAR", START_MS, 99.0, 101.0, 100.0, 5.0)


QUOTES = (
    (MARKET, QUOTE, 0, []),
    (MARKET, QUOTE, 15_000, []),
    (MARKET, QUOTE, 15_001, [Doubt.STALE_QUOTE]),
    (MARKET, None, 0, [Doubt.NO_QUOTE]),
    (MARKET, replace(QUOTE, bid=0.0), 0, [Doubt.NO_QUOTE]),
    (MARKET, replace(QUOTE, ask=0.0), 0, [Doubt.NO_QUOTE]),
    (MARKET, replace(QUOTE, bid=101.0), 0, [Doubt.CROSSED]),
    (MARKET, replace(QUOTE, bid=102.0), 20_000, [Doubt.CROSSED, Doubt.STALE_QUOTE]),
    (MARKET, replace(QUOTE, status="POSTONLY"), 0, [Doubt.NOT_ACTIVE]),
    (replace(MARKET, status="SUSPENDED"), QUOTE, 0, [Doubt.NOT_ACTIVE]),
    (replace(MARKET, status="SUSPENDED"), None, 0, [Doubt.NOT_ACTIVE, Doubt.NO_QUOTE]),
    (MARKET, replace(QUOTE, status="DISABLED", bid=0.0), 0, [Doubt.NOT_ACTIVE, Doubt.NO_QUOTE]),
)


@pytest.mark.parametrize(("market", "ticker", "after_ms", "expected"), QUOTES)
def test_doubts_about_a_quote(market: Market, ticker: Ticker | None, after_ms: int, expected: list[Doubt]) -> None:
    assert [f.doubt for f in quote_doubts(market, ticker, START_MS + after_ms)] == expected


def test_doubts_about_a_quote_name_their_numbers() -> None:
    crossed = replace(QUOTE, bid=102.0, status="POSTONLY")
    found = quote_doubts(MARKET, crossed, START_MS + 21_400)
    assert [f.why for f in found] == [
        "Luno says POSTONLY", "bid 102 is not below ask 101", "quote is 21 s old, limit 15 s",
    ]  # fmt: skip


def test_a_doubt_about_a_price_of_bitcoin_in_rand_is_readable() -> None:
    (found,) = quote_doubts(MARKET, replace(QUOTE, bid=1_234_567.0, ask=1_234_566.0), START_MS)
    assert "1234567" in found.why.replace(",", "")
    assert "1234566" in found.why.replace(",", "")


def test_every_doubt_is_raised_but_the_feeds_own_and_three_that_nothing_raises() -> None:
    """NO_CANDLES is the feed's. A candle that cannot be is refused, a market that is listed no more is not active, and
    fees that are not known lock LIVE: none of these has a doubt of its own now.
    """
    found = (quote_doubts(market, ticker, START_MS + after_ms) for market, ticker, after_ms, _ in QUOTES)
    raised = {f.doubt for findings in found for f in findings}
    rows = rows_of(series([100.0] * 20 + [130.0] * 10, volumes=[0.0] * 30))
    whole = series_of(np.delete(rows, [25, 27], axis=0), HOUR_S)
    raised |= {f.doubt for f in doubts_at(doubt_columns(whole), len(whole) - 1, 1.0, 62)}
    raised |= {f.doubt for f in stale_finding(START_MS, HOUR_S, START_MS + 3 * HOUR)}
    assert set(Doubt) - raised == {Doubt.NO_CANDLES, Doubt.BAD_CANDLE, Doubt.DELISTED, Doubt.FEES_UNKNOWN}


def test_candles_are_stale_when_the_newest_is_more_than_two_candles_old() -> None:
    assert stale_finding(START_MS, HOUR_S, START_MS) == ()
    assert stale_finding(START_MS, HOUR_S, START_MS + 2 * HOUR) == ()
    (found,) = stale_finding(START_MS, HOUR_S, START_MS + 2 * HOUR + HOUR // 2)
    assert found.doubt is Doubt.STALE_CANDLES
    assert found.why == "newest candle closed 2.5 candles ago, limit 2"
    assert stale_finding(START_MS, HOUR_S, START_MS + 2 * HOUR + 1)
    assert stale_finding(START_MS, DAY_S, START_MS + 2 * DAY) == ()


# --- slower candles ---


def naive_resample(whole: Series, seconds: int) -> list[tuple[int, float, float, float, float, float]]:
    """Slower candles by the calendar, with loops."""
    groups: dict[datetime, list[Candle]] = {}
    for row in range(len(whole)):
        moment = datetime.fromtimestamp(int(whole.opened[row]) / 1000, UTC)
        midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        part = int((moment - midnight).total_seconds()) // seconds
        groups.setdefault(datetime.fromtimestamp(midnight.timestamp() + part * seconds, UTC), []).append(
            whole.candle(row)
        )
    return [
        (
            int(start.timestamp() * 1000), group[0].open, max(c.high for c in group), min(c.low for c in group),
            group[-1].close, math.fsum(c.volume for c in group),
        )
        for start, group in sorted(groups.items())
    ]  # fmt: skip


@hypothesis_settings(max_examples=60)
@given(
    st.sampled_from([(300, 900), (300, 3600), (900, 14_400), (3600, 10_800), (3600, 28_800), (3600, 86_400)]),
    st.integers(0, 300),
    st.integers(1, 200),
    st.sets(st.integers(0, 199), max_size=60),
)
def test_slower_candles_are_those_of_the_calendar(
    durations: tuple[int, int], start: int, count: int, holes: set[int]
) -> None:
    fast, slow = durations
    rows = rows_of(random_walk(500, seed=6, seconds=fast))[start : start + count]
    whole = series_of(rows[[n not in holes for n in range(len(rows))]], fast)
    made, expected = resample(whole, slow), naive_resample(whole, slow)
    assert made.seconds == slow
    assert len(made) == len(expected)
    for row, (opened, *prices, volume) in enumerate(expected):
        candle = made.candle(row)
        assert [candle.opened_ms, candle.open, candle.high, candle.low, candle.close] == [opened, *prices]
        assert candle.volume == pytest.approx(volume, rel=1e-12)
        assert candle.opened_ms % (slow * 1000) == 0


def test_four_hours_by_hand() -> None:
    made = resample(series_from(FOUR + "120 130 119 125 5\n"), 14_400)
    assert made.candle(0) == Candle(START_MS, 100.0, 125.0, 90.0, 120.0, 10.0)
    assert made.candle(1) == Candle(START_MS + 4 * HOUR, 120.0, 130.0, 119.0, 125.0, 5.0)


def test_the_same_duration_and_no_candles_need_no_work() -> None:
    whole = series_from(FOUR)
    assert same(resample(whole, HOUR_S), whole)
    nothing = resample(whole.part(0, 0), DAY_S)
    assert (len(nothing), nothing.seconds) == (0, DAY_S)


@pytest.mark.parametrize(("fast", "slow"), [(HOUR_S, 1800), (10_800, 14_400), (HOUR_S, 5400)])
def test_only_whole_multiples_can_be_made(fast: int, slow: int) -> None:
    with pytest.raises(ValueError, match=f"{slow} s is not a multiple of {fast} s"):
        resample(random_walk(10, seconds=fast), slow)


@pytest.mark.parametrize(("after_ms", "kept"), [(0, 0), (HOUR - 1, 0), (HOUR, 1), (4 * HOUR - 1, 3), (4 * HOUR, 4)])
def test_only_closed_candles_are_kept(after_ms: int, kept: int) -> None:
    whole = series_from(FOUR)
    assert same(closed_only(whole, START_MS + after_ms), whole.part(0, kept))
    assert len(closed_only(whole, LATER)) == 4


# --- what moves together ---


def daily(returns: Floats, start_ms: int = START_MS, per_day: int = 2) -> Series:
    """Half-day candles whose UTC days have these log returns, after a first day at 100."""
    closes = 100 * np.exp(np.concatenate(([0.0], np.cumsum(returns))))
    return series(np.repeat(closes, per_day), seconds=DAY_S // per_day, start_ms=start_ms)


def mixed(count: int, share: float, seed: int = 9) -> tuple[Floats, Floats]:
    """Two rows of returns with about this correlation."""
    rng = np.random.default_rng(seed)
    one, noise = rng.normal(0, 0.02, count), rng.normal(0, 0.02, count)
    return one, share * one + math.sqrt(1 - share * share) * noise


@given(st.integers(30, 60), st.floats(-1, 1), st.integers(0, 10_000))
def test_correlation_is_pearsons(count: int, share: float, seed: int) -> None:
    one, two = mixed(count, share, seed)
    days = range(0, count * DAY, DAY)
    found = correlation(dict(zip(days, one, strict=True)), dict(zip(days, two, strict=True)))
    assert found == pytest.approx(float(np.corrcoef(one, two)[0, 1]), abs=1e-12)


def test_only_common_days_count_and_only_the_last_sixty() -> None:
    one, two = mixed(100, 0.5)
    a = {n: float(v) for n, v in enumerate(one)}
    b = {n: float(v) for n, v in enumerate(two) if n % 10}
    common = sorted(a.keys() & b.keys())[-60:]
    expected = np.corrcoef([a[n] for n in common], [b[n] for n in common])[0, 1]
    assert correlation(a, b) == pytest.approx(float(expected), abs=1e-12)
    assert correlation(a, b) == correlation(b, a)


@pytest.mark.parametrize("common", [0, 1, 29])
def test_few_common_days_count_as_moving_together(common: int) -> None:
    one, two = mixed(60, -0.9)
    a = {n: float(v) for n, v in enumerate(one[:30])}
    b = {n + 30 - common: float(v) for n, v in enumerate(two[:30])}
    assert correlation(a, b) == 1.0


def test_thirty_common_days_are_enough() -> None:
    one, two = mixed(30, -0.9)
    assert correlation(dict(enumerate(one.tolist())), dict(enumerate(two.tolist()))) < -0.8


def test_a_market_that_never_moved_counts_as_moving_together() -> None:
    still = dict.fromkeys(range(40), 0.0)
    moving = dict(enumerate(mixed(40, 0.0)[0].tolist()))
    for one, two in ((still, moving), (moving, still), (still, still)):
        assert correlation(one, two) == 1.0


def test_pairs_are_grouped_by_their_daily_returns() -> None:
    one, two = mixed(70, 0.97)
    other = mixed(70, 0.0, seed=77)[0]
    markets = {"ETHZAR": daily(two), "XBTZAR": daily(one), "XRPZAR": daily(other), "LTCZAR": daily(-one)}
    now = START_MS + 71 * DAY
    assert correlated_pairs(markets, now) == {
        "ETHZAR": ("XBTZAR",), "LTCZAR": (), "XBTZAR": ("ETHZAR",), "XRPZAR": (),
    }  # fmt: skip
    assert list(correlated_pairs(markets, now)) == sorted(markets)


def test_short_or_no_history_counts_as_moving_together() -> None:
    one = mixed(70, 0.0)[0]
    new = daily(-one[:20], START_MS + 50 * DAY)
    found = correlated_pairs({"XBTZAR": daily(one), "NEWZAR": new, "NILZAR": new.part(0, 0)}, START_MS + 71 * DAY)
    assert found == {
        "NEWZAR": ("NILZAR", "XBTZAR"), "NILZAR": ("NEWZAR", "XBTZAR"), "XBTZAR": ("NEWZAR", "NILZAR"),
    }  # fmt: skip


def test_one_market_alone_moves_with_nobody() -> None:
    assert correlated_pairs({"XBTZAR": daily(mixed(70, 0.0)[0])}, START_MS + 71 * DAY) == {"XBTZAR": ()}
    assert correlated_pairs({}, START_MS) == {}


def test_correlation_of_pairs_is_that_of_the_last_sixty_closed_days() -> None:
    """Just above the limit and just below it, as numpy computes it."""
    seen = set()
    for seed in range(40):
        one, two = mixed(90, 0.8, seed)
        expected = float(np.corrcoef(one[-60:], two[-60:])[0, 1]) > 0.8
        found = correlated_pairs({"A": daily(one), "B": daily(two)}, START_MS + 91 * DAY)
        assert found == ({"A": ("B",), "B": ("A",)} if expected else {"A": (), "B": ()})
        seen.add(expected)
    assert seen == {True, False}


def test_days_that_have_not_closed_are_not_looked_at() -> None:
    one, two = mixed(70, 0.9)
    now = START_MS + 65 * DAY + 7 * HOUR
    whole = {"A": daily(one), "B": daily(two)}
    cut = {pair: closed_only(s, now) for pair, s in whole.items()}
    rng = np.random.default_rng(1)
    changed = {}
    for pair, s in whole.items():
        later = s.opened >= START_MS + 65 * DAY  # the day that is still open, and all after it
        changed[pair] = replace(s, close=np.where(later, s.close * rng.uniform(0.5, 2, len(s)), s.close))
    for moment in (now, START_MS + 65 * DAY, START_MS + 66 * DAY - 1):
        assert correlated_pairs(whole, moment) == correlated_pairs(changed, moment)
    assert correlated_pairs(whole, now) == correlated_pairs(cut, now)


def test_the_first_day_may_be_cut_short() -> None:
    """What a live desk keeps starts at any hour: the first close of a day still counts."""
    one, two = mixed(80, 0.8, seed=3)
    now = START_MS + 81 * DAY
    whole = {"A": daily(one, per_day=24), "B": daily(two, per_day=24)}
    kept = {pair: s.part(len(s) - 62 * 24, len(s)) for pair, s in whole.items()}
    assert correlated_pairs(kept, now) == correlated_pairs(whole, now)


def test_a_missing_day_breaks_two_returns_only() -> None:
    one, two = mixed(70, 0.97)
    holed = daily(two)
    days = (holed.opened - START_MS) // DAY
    holed = series_of(rows_of(holed)[days != 40], DAY_S // 2)
    found = correlated_pairs({"A": daily(one), "B": holed}, START_MS + 71 * DAY)
    assert found == {"A": ("B",), "B": ("A",)}
