"""GATES: each gate by pencil, nothing opens by default, same job same bytes, planted faults stay locked."""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lunobiz
from candles import HOURLY, START_MS, series
from lunobiz import (
    FAIL,
    GATE_NAMES,
    NO_FEES,
    PASS,
    REAL_FEES,
    TRIAL_PAIRS,
    WAIT,
    Candles,
    Costs,
    Crew,
    DataError,
    Evaluation,
    Floats,
    Gate,
    GateJob,
    GateLimits,
    Luck,
    LuckJob,
    Market,
    MarketModel,
    PaperRecord,
    RiskLimits,
    Schedule,
    Series,
    Settings,
    StrategyParams,
    TrialCase,
    Unseen,
    WalkJob,
    Window,
    evaluate,
    evaluation_json,
    gate_alive,
    gate_data,
    gate_kinds,
    gate_luck,
    gate_money,
    gate_paper,
    gate_self_test,
    gate_size,
    gate_stretch,
    gate_trips,
    luck_chunks,
    luck_plan,
    money_test,
    safe_size,
    self_market,
    shown_figures,
    stressed,
    summary_of,
    try_luck,
    unseen_span,
    walk_real,
    windows_of,
)

A = TypeVar("A")
B = TypeVar("B")
DAY_MS = 86_400_000
DAY_S, BAR_S = 86_400, 14_400
FIRST_DAY = START_MS // DAY_MS
STEP = 1 / 1024  # sums of it are exact


def windows(results: Sequence[float], days: int = 60) -> tuple[Window, ...]:
    """Windows in a row that earned these results."""
    start = START_MS + 430 * DAY_MS
    return tuple(
        Window(n + 1, START_MS, START_MS + 365 * DAY_MS, start + n * days * DAY_MS, start + (n + 1) * days * DAY_MS,
               chosen=0, result=result)
        for n, result in enumerate(results)
    )  # fmt: skip


def unseen(returns: Sequence[float] | Floats, **others: object) -> Unseen:
    """Unseen days that earned these returns; one pair that was never held and never moved, unless told otherwise."""
    days = len(returns)
    held = Unseen(
        days=FIRST_DAY + 30 + np.arange(days), returns=np.array(returns, dtype=np.float64), turnover=np.zeros(days),
        round_trips=np.zeros(days, dtype=np.int64), weights=np.zeros((days, 1)), pair_returns=np.zeros((days, 1)),
        trials=np.zeros((days, 2)), windows=windows([0.0] * 12), late=0.0, gaps=np.zeros(days),
    )  # fmt: skip
    return replace(held, **others)  # type: ignore[arg-type]


def market(pair: str = "XBTZAR", maker: float = 0.004, taker: float = 0.006, source: str = "entry tier") -> Market:
    return Market(pair, pair[:3], pair[3:], 2, 8, 1e-8, 1e9, 0.01, 1e12, maker_fee=maker, taker_fee=taker,
                  fee_source=source)  # fmt: skip


def held(*markets: Market, costs: Costs | None = None, **limits: object) -> GateJob:
    """A job of these markets with one candle each, for the gates that read no more."""
    gates = GateLimits(**limits)  # type: ignore[arg-type]
    one = series([100.0])
    settings = Settings(schedule=Schedule(timeframes=(14_400,)), gates=gates, costs=costs or Costs())
    return GateJob(tuple((m, one) for m in markets or (market(),)), settings)


def says(gate: Gate, *words: str) -> bool:
    """True if the gate's sentence has all these words, after its name."""
    return gate.text.startswith(f"{GATE_NAMES[gate.id]}: ") and all(word in gate.text for word in words)


# ---- G0, data -------------------------------------------------------------------------------------
# warm-up 2, training 4, gap 1: 7 days before; unseen windows of 2 days, at least 2 and at most 3: 11 to 13 days

HUNDREDTH = GateLimits(luck_p=0.01)  # one of 199 may do as well
SMALL = GateLimits(warm_up_days=2, train_days=4, embargo_days=1, test_days=2, windows=3, min_windows=2)


def quiet(days: float, start_day: int = 0) -> Series:
    """Hourly candles of this many days that go nowhere."""
    return series(np.full(round(days * 24), 100.0), start_ms=START_MS + start_day * DAY_MS)


def without(whole: Series, rows: Iterable[int]) -> Series:
    """The series with these rows missing."""
    kept = np.setdiff1d(np.arange(len(whole)), list(rows))
    columns = (whole.opened, whole.open, whole.high, whole.low, whole.close, whole.volume)
    return Series(whole.seconds, *(column[kept] for column in columns))


def data(*found: Series, gates: GateLimits = SMALL, as_of_ms: int = 0, **schedule: object) -> Gate:
    """G0 on these candles."""
    pairs = ("ETHZAR", "LTCZAR", "XBTZAR", "XRPZAR")
    candles = tuple((market(pair), part) for pair, part in zip(pairs, found, strict=False))
    settings = Settings(gates=gates, schedule=Schedule(**schedule))  # type: ignore[arg-type]
    job = GateJob(candles, settings, as_of_ms=as_of_ms)
    return gate_data(job, candles, windows_of(candles, gates))


def test_g0_passes_whole_fresh_candles_of_two_markets() -> None:
    gate = data(quiet(13), quiet(13))
    assert (gate.result, gate.margin) == (PASS, 1.0)
    assert "2 windows (11 days), 2 markets, 0.5% missing" in gate.needed
    assert "3 windows (13 days), 2 markets, 0.00% missing" in gate.actual
    assert says(gate, "whole and fresh", "ETHZAR from 2023-11-15 to 2023-11-28", "LTCZAR from")


@pytest.mark.parametrize(
    ("days", "result", "margin", "count"),
    [(11, PASS, 0.0, 2), (10.9, FAIL, -1.0, 1), (9, FAIL, -1.0, 1), (8, FAIL, -2.0, 0), (1, FAIL, -2.0, 0)],
)
def test_g0_counts_windows(days: float, result: str, margin: float, count: int) -> None:
    gate = data(quiet(days), quiet(days))
    assert (gate.result, gate.margin) == (result, margin)
    assert gate.actual.startswith(f"{count} windows ({int(days)} days)")
    if result == FAIL:
        words = f"not enough history: {int(days)} days give {count} windows, 2 need 11 days and all 3 need 13"
        assert says(gate, words)


def test_g0_fails_for_missing_candles_and_allows_as_many_as_the_limit_says() -> None:
    # 13 days have 312 candles; 3 missing of them are 3/312 = 0.96 %
    limits = replace(SMALL, max_missing=3 / 312)
    few, more = without(quiet(13), (50, 60, 70)), without(quiet(13), (50, 60, 70, 80))
    assert data(quiet(13), few, gates=limits).result == PASS
    gate = data(quiet(13), more, gates=limits)
    assert gate.result == FAIL and says(gate, "LTCZAR misses 1.28% of its candles") and "1.28% missing" in gate.actual
    assert "ETHZAR misses" not in gate.text
    assert data(quiet(13), without(quiet(13), (50, 60))).result == FAIL  # 0.64 % is above the usual 0.5 %
    assert data(quiet(13), without(quiet(13), (50,))).result == PASS  # 0.32 %


@pytest.mark.parametrize(
    ("first", "count", "result"),
    [
        (200, 24, PASS),  # a day is not more than a day
        (200, 25, FAIL),
        (180, 25, FAIL),  # it ends among the unseen days, which begin with candle 168
        (150, 25, FAIL),  # it begins before them and ends inside: candle 175 is the next
        (143, 25, PASS),  # candle 168 is there: all of the gap lies before
        (100, 30, PASS),
    ],
)
def test_g0_fails_for_a_gap_of_more_than_a_day_inside_the_unseen_days(first: int, count: int, result: str) -> None:
    limits = replace(SMALL, max_missing=0.5)
    gate = data(quiet(13), without(quiet(13), range(first, first + count)), gates=limits)
    assert gate.result == result
    if result == FAIL:
        day = np.datetime_as_string(np.datetime64(START_MS + (first - 1) * 3_600_000, "ms"), unit="s")
        assert says(gate, f"LTCZAR has 1 gap(s) of more than a day in the unseen days, the first after {day}Z")


def test_g0_tells_too_little_history_even_with_a_gap_in_it() -> None:
    """Five days with two missing give no window, so there are no unseen days for the gap to lie in."""
    gate = data(quiet(5), without(quiet(5), range(40, 88)), gates=replace(SMALL, max_missing=0.5))
    assert gate.result == FAIL and says(gate, "not enough history: 5 days give 0 windows") and "gap(s)" not in gate.text


def test_g0_needs_markets_that_reach_back_to_the_first_training_day() -> None:
    # with 13 days the first training begins after the warm-up of 2
    assert data(quiet(13), quiet(11, 2)).result == PASS
    late = data(quiet(13), without(quiet(11, 2), (0,)))
    assert late.result == FAIL and says(late, "only 1 market(s) have candles from the first training day to the last")
    assert says(late, "2 are needed")
    assert data(quiet(13)).result == FAIL  # a single market
    assert data(quiet(13), quiet(13), quiet(5, 8)).result == PASS  # one listed later does no harm
    assert data(quiet(13), quiet(13), gates=replace(SMALL, min_pairs=3)).result == FAIL


def test_g0_needs_markets_that_reach_to_the_last_unseen_day() -> None:
    # the last unseen day ends with day 13; as with the age of the data, two days are allowed
    assert data(quiet(13), quiet(11)).result == PASS
    gone = data(quiet(13), without(quiet(11), (263,)))
    assert gone.result == FAIL and says(gone, "only 1 market(s)")
    assert data(quiet(13), quiet(6)).result == FAIL  # a coin that was delisted before the unseen days is no second one
    assert data(quiet(13), quiet(13), quiet(6)).result == PASS


def test_g0_counts_the_age_of_the_data_from_the_moment_given() -> None:
    end = START_MS + 13 * DAY_MS
    assert data(quiet(13), quiet(13), as_of_ms=end + 2 * DAY_MS).result == PASS
    old = data(quiet(13), quiet(13), as_of_ms=end + 2 * DAY_MS + 1)
    assert old.result == FAIL and says(old, "the last candle is 2.1 days old, at most 2 are allowed")
    assert says(data(quiet(13), quiet(13), as_of_ms=end + 45 * DAY_MS), "the last candle is 45.0 days old", "at most 2")
    assert data(quiet(13), quiet(13), as_of_ms=0).result == PASS  # 0: the last candle itself


def test_g0_judges_one_timeframe_and_post_only_entries_alone() -> None:
    two = data(quiet(13), quiet(13), timeframes=(3600, 14400))
    assert two.result == FAIL and says(two, "one decision timeframe; set LUNOBIZ_TIMEFRAME_S to one")
    taker = data(quiet(13), quiet(13), takes_after_timeout=True)
    assert taker.result == FAIL and says(taker, "post-only entries; set LUNOBIZ_ENTRY_TAKER_AFTER_TIMEOUT to no")


def test_g0_shows_no_margin_of_windows_where_something_else_is_wrong() -> None:
    old = data(quiet(11), quiet(11), as_of_ms=START_MS + 99 * DAY_MS)
    assert (old.result, old.margin) == (FAIL, None)
    assert data(quiet(9), quiet(9), as_of_ms=START_MS + 99 * DAY_MS).margin == -1.0  # these are missing as well


def test_g0_names_all_troubles_at_once() -> None:
    gate = data(without(quiet(5), (50, 51)), timeframes=(3600, 7200), as_of_ms=START_MS + 30 * DAY_MS)
    assert gate.result == FAIL and gate.text.count("; ") >= 3
    assert says(gate, "one decision timeframe", "not enough history", "misses", "the last candle is 25")


# ---- G1, money after stressed costs ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("markets", "slippage", "cost"),
    [
        ((market(),), 0.001, 0.0015),  # the entry tier: only the stress
        ((market(),), 0.0015, 0.0015),
        ((market(),), 0.003, 0.003),  # a slippage above the stress counts twice
        ((market(maker=0.002, taker=0.004),), 0.001, 0.0035),  # 0.2 % cheaper on both sides
        ((market(maker=0.003, taker=0.003),), 0.001, 0.0045),  # the side that would get dearer most: 0.3 %
        ((market(maker=-0.0001, taker=0.001),), 0.001, 0.0065),  # 0.41 % and 0.5 %
        ((market(), market("ETHZAR", 0.0, 0.006)), 0.001, 0.0055),  # the market that would get dearer most: 0.4 %
        ((market(maker=0.01, taker=0.02),), 0.001, 0.0015),  # dearer than the worst tier is no discount
        ((market(maker=0.0, taker=0.0, source="self-test"),), 0.0, 0.0015),  # a made market has no tier
    ],
)
def test_stressed_costs_by_pencil(markets: tuple[Market, ...], slippage: float, cost: float) -> None:
    # 1, 2 and 0 times the equity turned over: one, two and no times the extra cost of a side
    days = unseen([0.01, 0.02, -0.01], turnover=np.array([1.0, 2.0, 0.0]))
    found = stressed(days, markets, Costs(slippage=slippage))
    assert found == pytest.approx([0.01 - cost, 0.02 - 2 * cost, -0.01], abs=1e-15)


@pytest.mark.parametrize(("daily", "result", "p"), [(0.0004, PASS, 1 / 2001), (0.0002, FAIL, 1.0)])
def test_g1_takes_the_stressed_costs_off(daily: float, result: str, p: float) -> None:
    # 0.2 of the equity a day at 0.15 % is 0.03 % a day
    days = unseen(np.full(100, daily), turnover=np.full(100, 0.2))
    gate = gate_money(held(), days)
    assert gate.result == result and f"p {p:.3f}" in gate.actual
    assert gate.margin == pytest.approx(0.2 - p)
    assert says(gate, "in 100 days", f"the average day was {daily - 0.0003:+.3%}", f"above {daily - 0.0003:+.3%}")
    assert says(gate, "80% sure", f"one candle late the total is {daily * 100:+.1%}, needed above 0")


def test_g1_asks_the_bootstrap_of_the_stressed_days() -> None:
    rng = np.random.default_rng(1)
    chance = rng.normal(0, 0.005, 300)
    days = unseen(chance - chance.mean() + 0.0005, turnover=np.full(300, 0.1), late=-1.0)
    test = money_test(days.returns - 0.1 * 0.0015, GateLimits().seed, draws=2000, level=0.2)
    gate = gate_money(held(), days)
    assert 0.02 < test.p_value < 0.2 and f"p {test.p_value:.3f}" in gate.actual
    assert gate.margin == pytest.approx(0.2 - test.p_value) and gate.result == PASS
    assert says(gate, f"above {test.lower_bound:+.3%}")
    exact = gate_money(held(money_p=test.p_value), days)
    assert (exact.result, exact.margin) == (PASS, 0.0)  # at the threshold
    below = gate_money(held(money_p=test.p_value - 1e-9), days)
    assert below.result == FAIL and below.margin is not None and below.margin < 0
    assert gate_money(held(seed=1), days).actual != gate.actual  # chance comes from the seed alone


@pytest.mark.parametrize(("late", "result"), [(0.12, PASS), (0.125, FAIL), (0.13, FAIL)])
def test_g1_needs_a_profit_with_every_fill_a_candle_late(late: float, result: str) -> None:
    # 128 days of 1/1024 are 0.125
    gate = gate_money(held(), unseen(np.full(128, STEP), late=late))
    assert gate.result == result and says(gate, f"the total is {0.125 - late:+.1%}, needed above 0")
    assert (gate.needed, gate.actual) == ("p at most 0.20, late above 0", f"p 0.000, late {0.125 - late:+.1%}")
    assert (gate.margin is None) is (result == FAIL)  # its p passed: the number does not say why it failed


# ---- G2, better than luck -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempts", "planned", "allowed"),
    [
        (1, 199, 0),  # 200 x 1 - 1 = 199: p = 1 / 200 = 0.005
        (2, 399, 0),
        (3, 599, 0),
        (5, 999, 0),
        (28, 5599, 0),
    ],
)
def test_the_plan_of_shuffles_for_n_attempts(attempts: int, planned: int, allowed: int) -> None:
    plan = luck_plan(GateLimits(), attempts)
    assert plan == Luck(0, 0, allowed, planned)
    assert planned == max(199, 200 * attempts - 1)
    assert (1 + allowed) / (1 + planned) <= 0.005 / attempts + 1e-12 < (2 + allowed) / (1 + planned)


def test_a_wider_bar_lets_more_do_as_well() -> None:
    wide = GateLimits(luck_p=0.01)
    assert [luck_plan(wide, n) for n in (1, 2, 3)] == [Luck(0, 0, 1, 199), Luck(0, 0, 0, 199), Luck(0, 0, 0, 299)]


@given(st.integers(1, 60), st.integers(1, 500), st.sampled_from([0.005, 0.01, 0.02, 0.05, 0.1]))
def test_as_many_may_do_as_well_as_keep_p_at_the_bar_and_no_more(attempts: int, least: int, bar: float) -> None:
    plan = luck_plan(GateLimits(permutations=least, luck_p=bar), attempts)
    assert plan.planned >= least and plan.allowed >= 0
    assert Luck(plan.planned, plan.allowed, plan.allowed, plan.planned).p_value <= bar / attempts + 1e-12
    assert Luck(plan.planned, plan.allowed + 1, plan.allowed, plan.planned).p_value > bar / attempts + 1e-12


def test_p_counts_the_real_market_itself() -> None:
    assert Luck(199, 1, 1, 199).p_value == pytest.approx(0.01)  # (1 + 1) / (1 + 199)
    assert Luck(199, 0, 1, 199).p_value == pytest.approx(0.005)
    assert Luck(37, 2, 1, 199).p_value == pytest.approx(3 / 38)
    assert Luck(0, 0, 1, 199).p_value == 1.0  # nothing shuffled proves nothing


@pytest.mark.parametrize(
    ("luck", "is_passed"),
    [
        (Luck(199, 1, 1, 199), True),
        (Luck(199, 2, 1, 199), False),
        (Luck(198, 0, 1, 199), False),  # one shuffle is missing
        (Luck(0, 0, 1, 199), False),
        (Luck(199, 0, 0, 199), True),
    ],
)
def test_luck_passes_only_when_all_shuffles_were_made(luck: Luck, is_passed: bool) -> None:
    assert luck.is_passed is is_passed
    gate = gate_luck(luck, 0.1, 1)
    assert gate.result == (PASS if is_passed else FAIL) and gate.actual == f"{luck.better} of {luck.used}"
    assert gate.needed == f"at most {luck.allowed} of {luck.planned}"
    assert gate.margin == (luck.allowed - luck.better if luck.used == luck.planned else None)
    assert says(gate, f"shuffled the market {luck.used} times", f"In {luck.better} shuffled market(s)",
                f"At most {luck.allowed} of {luck.planned} may.")  # fmt: skip
    assert "attempt" not in gate.text


def test_the_sentence_tells_how_much_higher_the_bar_is() -> None:
    assert says(gate_luck(Luck(299, 0, 0, 299), 0.1, 3), "attempt 3 on this data: the bar is 3 times higher")


def luck_job(rows: int = 4000) -> LuckJob:
    """A job whose walk has this many hourly rows; nothing of it is read by the mappers of these tests."""
    span = Window(1, 0, 0, 0, rows * 3_600_000)
    walk_job = WalkJob(((market(), series([])),), HOURLY, ())
    return LuckJob(walk_job, (span,), None, 0, ())  # type: ignore[arg-type]


class Dealt:
    """A mapper that deals out ratios by the numbers of the shuffles, and remembers which it was asked for."""

    def __init__(self, ratios: Sequence[float]) -> None:
        self.ratios, self.asked = list(ratios), [0] * 0

    def __call__(self, work: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        for item in items:
            assert isinstance(item, LuckJob)
            self.asked += item.numbers
            yield tuple(self.ratios[n] for n in item.numbers)  # type: ignore[misc]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("cells", [1, 40_000, 10**9])
@pytest.mark.parametrize("planned", [1, 4, 19, 199, 999])
def test_every_shuffle_is_in_one_chunk_and_in_order(
    workers: int, cells: int, planned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lunobiz, "CELLS_PER_CHUNK", cells)
    chunks = [chunk.numbers for chunk in luck_chunks(luck_job(), planned, workers)]
    assert [n for chunk in chunks for n in chunk] == list(range(planned))
    assert len(chunks[0]) <= 4 and max(len(chunk) for chunk in chunks) <= max(4, cells // 4000)


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("cells", [1, 3_000_000])
@pytest.mark.parametrize(
    ("better", "wanted"),
    [
        ((3, 7, 8), Luck(8, 2, 1, 199)),  # the second of them is the eighth shuffle
        ((0, 1), Luck(2, 2, 1, 199)),
        ((5, 198), Luck(199, 2, 1, 199)),
        ((198,), Luck(199, 1, 1, 199)),
        ((), Luck(199, 0, 1, 199)),
    ],
)
def test_shuffling_stops_as_soon_as_failure_is_certain(
    workers: int, cells: int, better: tuple[int, ...], wanted: Luck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lunobiz, "CELLS_PER_CHUNK", cells)
    dealt = Dealt([0.1 if n in better else 0.0999 for n in range(199)])  # as good as the real one counts
    found = try_luck(luck_job(), 0.1, luck_plan(HUNDREDTH, 1), lunobiz.always, Crew(dealt, workers))
    assert found == wanted
    if wanted.used <= 8:
        assert len(dealt.asked) <= 12  # 4 and 8: no more chunks were asked for than it took


def test_with_more_attempts_one_as_good_is_too_many() -> None:
    dealt = Dealt([0.2 if n == 1 else 0.0 for n in range(199)])
    assert try_luck(luck_job(), 0.1, luck_plan(HUNDREDTH, 2), lunobiz.always, Crew(dealt)) == Luck(2, 1, 0, 199)
    assert try_luck(luck_job(), 0.1, luck_plan(HUNDREDTH, 1), lunobiz.always, Crew(dealt)) == Luck(199, 1, 1, 199)


@pytest.mark.parametrize("real", [0.0, -0.1])
def test_without_a_profit_nothing_is_shuffled_and_luck_fails(real: float) -> None:
    dealt = Dealt([-1.0] * 199)
    luck = try_luck(luck_job(), real, luck_plan(HUNDREDTH, 1), lunobiz.always, Crew(dealt))
    assert luck == Luck(0, 0, 1, 199) and not luck.is_passed and not dealt.asked
    gate = gate_luck(luck, real, 1)
    assert (gate.result, gate.actual, gate.margin) == (FAIL, "no profit", None) and says(gate, "earned nothing")
    assert gate_luck(Luck(199, 0, 1, 199), real, 1).result == FAIL  # whatever was counted


def test_shuffling_ends_when_it_is_cancelled() -> None:
    seen: list[int] = []
    dealt = Dealt([0.0] * 199)

    def until_ten(done: int, total: int) -> bool:
        seen.append(done)
        return done < 10

    assert try_luck(luck_job(), 0.1, luck_plan(GateLimits(), 1), until_ten, Crew(dealt)) is None
    assert seen == [4, 12]


# ---- G3 to G6 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "result", "margin"), [(30, PASS, 0.0), (29, FAIL, -1.0), (41, PASS, 11.0)])
def test_g3_counts_round_trips(count: int, result: str, margin: float) -> None:
    trips = np.zeros(60, dtype=np.int64)
    trips[:2] = count - 20, 20
    gate = gate_trips(held(), unseen(np.zeros(60), round_trips=trips))
    assert (gate.result, gate.margin, gate.needed, gate.actual) == (result, margin, "30", f"{count}")
    assert says(gate, f"{count} round trips", "30 are needed")
    assert gate_trips(held(min_round_trips=count + 1), unseen(np.zeros(60), round_trips=trips)).result == FAIL


def test_g3_tells_where_the_bot_stayed_in_cash() -> None:
    some = tuple(replace(w, chosen=-1) if w.number > 3 else w for w in windows([0.0] * 12))
    words = "In 9 of 12 windows no set had earned money in training with 10 round trips or more, and the bot stayed in"
    assert says(gate_trips(held(), unseen(np.zeros(60), windows=some)), words)
    assert "cash" not in gate_trips(held(), unseen(np.zeros(60))).text


@pytest.mark.parametrize(
    ("results", "out", "rest"),
    [
        ((0.5, 0.25, 0.125, 0.0625, *[-0.015625] * 8), 2, 0.0625),
        ((0.5, 0.25, 0.125, *[0.0] * 8, -0.125), 2, 0.0),  # at the threshold
        ((0.5, 0.25, *[-0.0625] * 10), 2, -0.625),
        ((-0.5, 0.25, 0.5, 0.125, 0.125, 0.125), 1, 0.125),  # 6 windows: one
        ((0.25, 0.25, *[0.125] * 6), 2, 0.75),  # 8 windows: two
        ((1.0, 1.0, 1.0, *[0.0625] * 10), 3, 0.625),  # 13 windows: three
    ],
)
def test_g4_leaves_out_the_best_sixth_of_the_windows(results: Sequence[float], out: int, rest: float) -> None:
    gate = gate_stretch(held(), unseen(np.zeros(60), windows=windows(results)))
    assert gate.result == (PASS if rest > 0 else FAIL) and gate.margin == rest and gate.actual == f"{rest:+.2%}"
    assert says(gate, f"best {out} of {len(results)} windows", f"{out * 60} days", f"result is {rest:+.2%}")


@pytest.mark.parametrize(
    ("last", "before", "result"),
    [(STEP, -1.0, PASS), (0.0, 1.0, FAIL), (-STEP, 1.0, FAIL)],
)
def test_g5_reads_the_last_third_of_the_days(last: float, before: float, result: str) -> None:
    days = np.full(720, 0.0)
    days[479], days[480] = before, last  # the last 240 of 720 begin with number 480
    gate = gate_alive(held(), unseen(days))
    assert (gate.result, gate.margin, gate.actual) == (result, last, f"{last:+.2%}")
    assert says(gate, f"the last 240 unseen days earned {last:+.2%}")


# (mean, swing) of one market's days in percent; each day is mean plus or minus swing in turn
UP_CALM, FLAT, DOWN_WILD, UP_WILD = (1.0, 0.1), (0.0, 1.0), (-1.0, 2.0), (2.0, 2.0)


def phases(*kinds: tuple[float, float]) -> tuple[Floats, Candles]:
    """The returns of 300 days in three phases, and the daily candles of a market that made them.

    The first 30 days lie before the unseen ones. A day is judged by the 30 before it: unseen days 0 to 80 are purely
    the first phase, 110 to 175 the second, 205 to 269 the third. In order of their swing the first 81 days are calm,
    those of the second phase normal, the third one's wild, if the three swing more and more.
    """
    lengths = (110, 95, 95)
    turns = [mean + swing * (-1) ** (day % 2) for (mean, swing), days in zip(kinds, lengths, strict=True)
             for day in range(days)]  # fmt: skip
    moves = np.array(turns) / 100
    closes = 1000 * np.cumprod(1 + moves)
    before = series(np.concatenate(([1000.0], closes)), seconds=DAY_S, start_ms=START_MS - DAY_MS)
    return moves[30:], ((market(), before),)


def earning(first: float, second: float, third: float) -> Floats:
    """270 unseen days that earned something on one day of each phase."""
    days = np.zeros(270)
    days[40], days[140], days[240] = first, second, third
    return days


@pytest.mark.parametrize(
    ("kinds", "earned", "rest", "words"),
    [
        ((UP_CALM, FLAT, DOWN_WILD), (0.5, 0.25, -0.125), 0.125,
         "up-trend +50.0%, sideways +25.0%, down-trend -12.5%; calm +50.0%, normal +25.0%, wild -12.5%"),
        ((UP_CALM, FLAT, DOWN_WILD), (0.5, 0.25, -0.25), 0.0, "down-trend -25.0%"),
        ((UP_CALM, FLAT, DOWN_WILD), (0.5, 0.0, -0.25), -0.25, "sideways +0.0%"),
        ((UP_CALM, FLAT, DOWN_WILD), (-0.125, 0.25, 0.5), 0.125, "wild +50.0%"),
        # trend alone would leave 0.0625, volatility 0.3125
        ((UP_CALM, FLAT, UP_WILD), (0.25, 0.0625, 0.25), 0.0625,
         "up-trend +50.0%, sideways +6.2%, down-trend +0.0%; calm +25.0%, normal +6.2%, wild +25.0%"),
        # volatility alone would leave 0, trend 0.25
        ((UP_CALM, FLAT, (0.0, 2.0)), (0.25, 0.25, 0.25), 0.25, "sideways +50.0%"),
    ],
)  # fmt: skip
def test_g6_leaves_out_the_best_kind_of_market(
    kinds: tuple[tuple[float, float], ...], earned: tuple[float, float, float], rest: float, words: str
) -> None:
    _, candles = phases(*kinds)
    gate = gate_kinds(held(), unseen(earning(*earned)), candles)
    assert gate.margin == pytest.approx(rest, abs=1e-15) and gate.actual == f"{rest:+.2%}"
    assert gate.result == (PASS if rest > 0 else FAIL)
    assert says(gate, words, f"Without the best kind {rest:+.2%} is left")


def test_g6_groups_by_volatility_too() -> None:
    # all that was earned came on calm days, up and sideways alike
    _, candles = phases(UP_CALM, (0.0, 0.1), DOWN_WILD)
    days = np.zeros(270)
    days[40] = days[150] = 0.25
    gate = gate_kinds(held(), unseen(days), candles)
    assert says(gate, "up-trend +25.0%, sideways +25.0%, down-trend +0.0%")
    assert gate.result == (PASS if "calm +25.0%" in gate.text else FAIL)
    days[:] = 0.0
    days[40] = days[41] = 0.25
    assert gate_kinds(held(), unseen(days), candles).margin == 0.0  # one kind only


def test_g6_fails_a_bull_market_that_was_simply_held() -> None:
    """Holding half of the account in a market that climbs passes every cheap gate but this one."""
    moves, candles = phases(UP_CALM, (0.05, 1.0), UP_WILD)  # a climb with a pause, which earned a little too
    weights, pairs = np.full((270, 1), 0.5), moves[:, None]
    days = unseen(0.5 * moves - 1e-6, weights=weights, pair_returns=pairs, windows=windows([0.2] * 12),
                  round_trips=np.ones(270, dtype=np.int64))  # fmt: skip
    job = held()
    passed = [gate(job, days).result for gate in (gate_money, gate_trips, gate_stretch, gate_alive)]
    assert passed == [PASS] * 4
    gate = gate_kinds(job, days, candles)
    assert gate.result == FAIL and gate.margin == pytest.approx(-270e-6)  # what it lost against holding, all of it
    alone = replace(days, weights=np.zeros((270, 1)))
    assert gate_kinds(job, alone, candles).result == PASS  # without the comparison it would have passed
    assert gate_kinds(job, replace(days, returns=0.5 * moves), candles).result == FAIL  # exactly as good as holding


def test_g6_judges_a_day_by_the_days_before_it() -> None:
    closes = 1000 * np.cumprod(1 + 0.001 * (-1.0) ** np.arange(301))
    closes[171:] *= 1.5  # the jump of unseen day 140
    days = np.zeros(270)
    days[140] = 0.25
    candles = ((market(), series(closes, seconds=DAY_S, start_ms=START_MS - DAY_MS)),)
    assert says(gate_kinds(held(), unseen(days), candles), "up-trend +0.0%, sideways +25.0%", "wild +0.0%")
    days[140:142] = 0.0, 0.25
    assert says(gate_kinds(held(), unseen(days), candles), "up-trend +25.0%, sideways +0.0%", "wild +25.0%")


def test_g6_compares_with_the_average_amount_held() -> None:
    """Half of the days in the market, all of them good ones: better than holding half of it all the time."""
    moves, candles = phases(UP_CALM, FLAT, DOWN_WILD)
    inside = (moves > 0).astype(np.float64)
    days = unseen(list(inside * moves), weights=inside[:, None], pair_returns=moves[:, None])
    assert gate_kinds(held(), days, candles).result == PASS
    # what is left: all gains, less the share held of all moves, less the best kind
    margin = gate_kinds(held(), days, candles).margin
    assert margin is not None and float(days.returns.sum() - inside.mean() * moves.sum()) > margin


# ---- G7, safe size --------------------------------------------------------------------------------


def flat_but(day: float, days: int = 360) -> Floats:
    """Days that earned 0, but one."""
    found = np.zeros(days)
    found[100] = day
    return found


@pytest.mark.parametrize(
    ("worst_day", "size", "result"),
    [
        (-0.02, 1.0, PASS),  # 1.5 x 2 % = 3 % of 5 %
        (-0.10, 0.33, PASS),  # 0.05 / 0.15 = 0.333
        (-0.32, 0.10, PASS),  # 0.05 / 0.48 = 0.104
        (-0.34, 0.09, FAIL),  # 0.05 / 0.51 = 0.098
        (-0.40, 0.08, FAIL),  # 0.05 / 0.60 = 0.083
    ],
)
def test_g7_keeps_one_and_a_half_worst_days_in_the_owners_limit(worst_day: float, size: float, result: str) -> None:
    gate, found = gate_size(held(max_drawdown=1.0), unseen(flat_but(worst_day)))
    worst = -1.5 * worst_day
    assert found == size and gate.result == result and gate.actual == f"size {size:.2f}"
    assert gate.margin == pytest.approx(size - 0.10) and gate.needed == "size at least 0.10"
    assert says(gate, f"at {size:.0%} of the tested size", f"1.5 x worst day {worst * size:.1%} of 5% PASS")
    assert ("less than 10% of the tested size is not worth while" in gate.text) is (result == FAIL)


def test_g7_keeps_the_drawdown_within_the_owners_limit() -> None:
    # every year loses 1 - 0.999 ** 360 = 30.25 %; half of it is 15.13 %, 0.49 of it 14.82 %
    gate, size = gate_size(held(), unseen(np.full(480, -0.001)))
    assert size == 0.49 and gate.result == PASS
    assert says(gate, "at 49% of the tested size: drawdown 14.8% of 15% PASS, 1.5 x worst day 0.1% of 5% PASS")
    assert gate_size(held(max_drawdown=0.3026), unseen(np.full(480, -0.001)))[1] == 1.0
    # 1 - 0.99 ** 360 = 97.3 %: 0.15 of it and no more
    assert gate_size(held(worst_day=0.10), unseen(np.full(480, -0.01)))[1] == 0.15
    locked, size = gate_size(held(max_drawdown=0.09), unseen(np.full(480, -0.01)))
    assert (locked.result, size) == (FAIL, 0.09) and locked.margin == pytest.approx(-0.01)


def test_g7_never_trades_larger_than_tested() -> None:
    assert safe_size(np.full(100, 0.01), GateLimits()) == (1.0, 0.0, 0.0)


@given(st.lists(st.floats(-0.3, 0.3), min_size=20, max_size=60), st.floats(0.05, 0.3), st.floats(0.01, 0.1))
def test_g7_finds_the_largest_hundredth_that_keeps_both_limits(days: list[float], deep: float, bad: float) -> None:
    limits = GateLimits(max_drawdown=deep, worst_day=bad, bootstraps=50)
    size, fall, worst = safe_size(np.array(days), limits)
    assert 0 <= size <= 1 and fall * size <= deep and worst * size <= bad
    assert size == 1 or fall * (size + 0.0101) > deep or worst * (size + 0.0101) > bad


def test_g7_counts_the_worst_exits_at_the_low_of_their_candle() -> None:
    calm, gaps = unseen(np.full(360, 0.001)), flat_but(0.101)
    assert gate_size(held(max_drawdown=1.0), calm)[1] == 1.0
    gate, size = gate_size(held(max_drawdown=1.0), replace(calm, gaps=gaps))
    assert size == 0.33  # 0.001 - 0.101 = -10 %: 0.05 / 0.15
    assert says(gate, "the worst 5% of exits at the low")


def test_g7_needs_a_size_at_which_the_exchange_takes_the_largest_order() -> None:
    # 100,000 of cash, 25 % in one asset at most, at size 0.33: 8,250; 82.5 coins of 100 and no more
    jobs = [replace(held(max_drawdown=1.0), candles=((replace(market(), min_volume=v), series([100.0])),))
            for v in (82.5, 82.6)]  # fmt: skip
    largest = Settings().limits.max_asset_exposure
    assert largest == 0.25 and Settings().schedule.paper_cash == 100_000.0
    (enough, _), (little, _) = (gate_size(job, unseen(flat_but(-0.10))) for job in jobs)
    assert enough.result == PASS and says(enough, "largest order 8,250 ZAR, XBTZAR takes 8,250 or more PASS")
    assert little.result == FAIL and says(little, "XBTZAR takes 8,260 or more FAIL")
    assert "not worth while" not in little.text  # a third of the tested size is
    nothing = replace(jobs[0], candles=((market(), series([])),))
    assert gate_size(nothing, unseen(flat_but(-0.10)))[0].result == FAIL  # an unknown minimum opens nothing


# ---- G8 and G9 ------------------------------------------------------------------------------------


def rising(days: int = 22) -> Unseen:
    """Days that earned 0, 1, 2, ... steps: sums of two days in a row are 1, 3, 5, ... steps."""
    return unseen([n * STEP for n in range(days)])


@pytest.mark.parametrize(
    ("record", "actual", "margin"),
    [(None, "0 days", -60.0), (PaperRecord(0, 0.0, True), "0 days", -60.0),
     (PaperRecord(59, 9.0, True), "59 days", -1.0)],
)
def test_g8_waits_and_shows_the_days(record: PaperRecord | None, actual: str, margin: float) -> None:
    gate = gate_paper(replace(held(), paper=record), unseen(np.zeros(720)))
    assert (gate.result, gate.needed, gate.actual, gate.margin) == (WAIT, "60 days", actual, margin)
    assert says(gate, f"{actual[:-5]} of 60 days of PAPER with this exact configuration.")
    assert ("recorded candles cannot stand for it" in gate.text) is (record is None)


@pytest.mark.parametrize(
    ("steps", "within", "result"),
    [(3.0, True, PASS), (2.99, True, FAIL), (40.0, True, PASS), (3.0, False, FAIL), (-40.0, True, FAIL)],
)
def test_g8_compares_with_the_fifth_percentile_of_the_unseen_stretches(
    steps: float, within: bool, result: str
) -> None:
    # 21 sums of two days; the 5 % quantile is the one 0.05 x 20 = 1 above the least: 3 steps
    job = replace(held(paper_days=2), paper=PaperRecord(2, steps * STEP, within))
    gate = gate_paper(job, rising())
    assert gate.result == result and gate.needed.startswith(f"at least {3 * STEP:+.2%}")
    assert says(gate, f"2 days of PAPER earned {steps * STEP:+.2%}", f"earned more than {3 * STEP:+.2%}",
                "19 of 20 stretches of 2 unseen days", f"cost {'within' if within else 'above'} what")  # fmt: skip
    assert (gate.margin is None) is not within  # it earned enough and fails all the same
    if within:
        assert gate.margin == pytest.approx((steps - 3) * STEP)


def test_g8_cannot_be_judged_by_fewer_unseen_days_than_paper_has() -> None:
    job = replace(held(paper_days=22), paper=PaperRecord(22, 9.0, True))
    assert gate_paper(job, rising(22)).result == PASS  # one stretch
    short = gate_paper(job, rising(21))
    assert (short.result, short.margin) == (WAIT, None) and says(short, "21 unseen days", "22 days of PAPER")


def test_g9_is_the_measured_table() -> None:
    no = gate_self_test(held())
    assert (no.result, no.actual, no.margin) == (FAIL, "not measured", None) and says(no, "run --self-test")
    yes = gate_self_test(replace(held(), is_self_tested=True, self_test_id="T-7"))
    assert (yes.result, yes.actual) == (PASS, "T-7") and says(yes, "was measured")
    assert gate_self_test(replace(held(), self_test_id="T-7")).result == FAIL  # an id is no proof


def test_g9_is_for_the_candles_that_were_measured() -> None:
    job = replace(held(), is_self_tested=True, self_test_id="T-7")
    hourly = replace(job.settings, schedule=replace(job.settings.schedule, timeframes=(3600,)))
    gate = gate_self_test(replace(job, settings=hourly))
    assert (gate.result, gate.actual) == (FAIL, "not measured")
    assert says(gate, "on 4-hour candles; yours are 3600 s: set LUNOBIZ_TIMEFRAME_S to 14400")


# ---- figures and alarm ----------------------------------------------------------------------------


def test_shown_figures_by_pencil() -> None:
    rng = np.random.default_rng(2)
    days = np.concatenate((np.full(30, STEP), np.full(30, -2 * STEP), np.full(30, 4 * STEP)))
    won = tuple(replace(w, chosen=-1 if n < 3 else 0) for n, w in enumerate(windows([0.1, 0.0, -0.1, 0.2])))
    weights = np.tile([0.25, 0.125], (90, 1))
    figures = dict(shown_figures(unseen(days, windows=won, weights=weights, turnover=np.full(90, 0.5),
                                        trials=rng.normal(0, 0.01, (90, 3))), 1))  # fmt: skip
    assert figures["unseen_days"] == 90 and figures["mean_day"] == pytest.approx(STEP)
    assert figures["total"] == pytest.approx((1 + STEP) ** 30 * (1 - 2 * STEP) ** 30 * (1 + 4 * STEP) ** 30 - 1)
    assert figures["max_drawdown"] == pytest.approx(1 - (1 - 2 * STEP) ** 30)
    assert figures["profit_factor_of_days"] == pytest.approx(150 / 60)
    assert (figures["best_month"], figures["worst_month"]) == (120 * STEP, -60 * STEP)
    assert (figures["windows_positive"], figures["windows_in_cash"]) == (2, 3)
    assert (figures["exposure"], figures["turnover_per_day"]) == (0.375, 0.5)


def test_a_figure_that_is_not_finite_is_unknown() -> None:
    figures = dict(shown_figures(unseen(np.zeros(60)), 1))
    assert figures["min_trl_days"] is None and figures["profit_factor_of_days"] is None
    assert all(value is None or math.isfinite(value) for value in figures.values())


def test_more_attempts_deflate_the_sharpe_ratio_more() -> None:
    rng = np.random.default_rng(3)
    days = unseen(rng.normal(0.001, 0.01, 300), trials=rng.normal(0, 0.01, (300, 4)))
    one, many = (dict(shown_figures(days, n))["dsr"] for n in (1, 10))
    assert one is not None and many is not None and many < one


# ---- nothing opens by default ---------------------------------------------------------------------


def gate_of(name: str, result: str = PASS) -> Gate:
    return Gate(name, GATE_NAMES[name], result, "x", "y", 1.0, "")


ALL = tuple(gate_of(name) for name in GATE_NAMES)
OPEN = Evaluation(ALL, (), (), "", 1, 1.0, 0, 0, "{}", "luno")


def test_all_ten_gates_on_the_exchanges_own_candles_unlock() -> None:
    assert tuple(GATE_NAMES) == tuple(f"G{n}" for n in range(10)) and OPEN.is_unlocked


def test_any_set_of_gates_that_is_removed_or_not_passed_locks() -> None:
    names = tuple(GATE_NAMES)
    for count in range(1, 11):
        for chosen in itertools.combinations(names, count):
            for result in (WAIT, FAIL, None):
                gates = tuple(replace(g, result=result or "") if g.id in chosen else g for g in ALL)
                left = tuple(g for g in gates if g.result)
                assert not replace(OPEN, gates=left).is_unlocked


@pytest.mark.parametrize("word", ["", "pass", "PASS ", "PASSED", "OK", "SKIP", "True", "1"])
def test_only_the_exact_word_passes(word: str) -> None:
    assert not any(replace(OPEN, gates=(*ALL[:n], replace(ALL[n], result=word), *ALL[n + 1:])).is_unlocked
                   for n in range(10))  # fmt: skip


@pytest.mark.parametrize("source", ["", "recorded", "demo", "test exchange", "Luno", "luno ", "replay"])
def test_no_other_source_ever_unlocks(source: str) -> None:
    assert not replace(OPEN, source=source).is_unlocked
    assert "LOCKED" in summary_of(ALL, source, "") and "never unlock the exchange" in summary_of(ALL, source, "")


def test_a_gate_of_another_name_does_not_stand_for_a_missing_one() -> None:
    assert not replace(OPEN, gates=(*ALL[:9], replace(ALL[9], id="G10"))).is_unlocked
    assert not replace(OPEN, gates=(*ALL, replace(ALL[9], id="G10"))).is_unlocked


def test_a_gate_that_stands_twice_locks() -> None:
    for name in GATE_NAMES:
        for result in (PASS, FAIL, WAIT):
            assert not replace(OPEN, gates=(*ALL, gate_of(name, result))).is_unlocked


def test_a_gate_that_was_not_computed_waits() -> None:
    for name in GATE_NAMES:
        gate = lunobiz.waiting(name, "Not yet.")
        assert (gate.result, gate.margin) == (WAIT, None) and says(gate, "not judged. Not yet.")


def test_the_summary_counts_and_names_what_failed() -> None:
    failed = replace(ALL[4], result=FAIL, needed="above 0", actual="-3.10%", margin=-0.031)
    text = summary_of((*ALL[:4], failed, *ALL[5:8], replace(ALL[8], result=WAIT), ALL[9]), "luno", "")
    assert text.startswith("LOCKED, 1 of 10 failed, 1 not judged yet. G4 Not one lucky stretch: needs above 0,"
                           " is -3.10%.")  # fmt: skip
    assert "1 in 3 lost money in the next two months; expect about three quarters" in text
    assert summary_of(ALL, "luno", "").startswith("All 10 gates passed. Even a pass is no promise")
    assert "  " not in text + summary_of(ALL, "luno", "") + summary_of(ALL, "demo", "")


def test_the_summary_says_why_where_a_number_does_not() -> None:
    """A gate may fail although its number is good enough, or has none: then its sentence is told."""
    old = data(quiet(13), quiet(13), as_of_ms=START_MS + 58 * DAY_MS)
    late = gate_money(held(), unseen(np.full(128, STEP), late=0.2))
    poor, none = gate_luck(Luck(0, 0, 1, 199), -1.0, 1), gate_self_test(held())
    text = summary_of((old, late, poor, *ALL[3:9], none), "luno", "")
    assert text.startswith("LOCKED, 4 of 10 failed. G0 Data: the last candle is 45")
    assert "G1 Money after costs: in 128 days" in text and "one candle late the total is -7.5%, needed above 0." in text
    assert "G2 Better than luck: the unseen days earned nothing" in text and "run --self-test" in text
    assert "needs" not in text


# ---- the whole evaluation -------------------------------------------------------------------------

LIMITS = GateLimits(warm_up_days=63, train_days=40, test_days=10, windows=8, min_windows=4, permutations=19,
                    luck_p=0.10, min_round_trips=3, bootstraps=400, paper_days=20)  # fmt: skip
SETTINGS = Settings(gates=LIMITS, schedule=Schedule(timeframes=(BAR_S,), pairs=TRIAL_PAIRS),
                    limits=RiskLimits(min_edge=0.5, min_confidence=0.3))  # fmt: skip
SETS = tuple(StrategyParams(breakout=hours, exit_channel=24, stop_atr=2.0, trail_atr=3.0, squeeze=96, reversion=24,
                            max_holding=96, trend_efficiency=0.1) for hours in (24, 48))  # fmt: skip
FEW = replace(SETTINGS, gates=replace(LIMITS, permutations=9, luck_p=0.2))  # shuffles
PROVEN = PaperRecord(20, 1.0, True)


def made(
    kind: str, seed: int, strength: float = 0.0, days: int = 200, fees: tuple[float, float] = REAL_FEES
) -> Candles:
    return self_market(TrialCase(kind, seed, strength, fees, MarketModel(days=days, unseen_days=80)))


def job(candles: Candles, **others: object) -> GateJob:
    """A job for which everything but the candles speaks for an unlock."""
    whole = GateJob(candles, SETTINGS, source="luno", is_self_tested=True, self_test_id="T-1", paper=PROVEN, sets=SETS)
    return replace(whole, **others)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def edge() -> Candles:
    """Markets with a strong planted edge."""
    return made("E", 1, 0.6)


@pytest.fixture
def no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted edge is strong beyond belief; here that is meant."""
    monkeypatch.setattr(lunobiz, "ALARM_SHARPE", 99.0)


@pytest.fixture(scope="module")
def unlocked(edge: Candles) -> Evaluation:
    """So strong that it would alarm: the alarm is set aside here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lunobiz, "ALARM_SHARPE", 99.0)
        found = evaluate(job(edge))
    assert found is not None
    return found


def test_what_is_too_good_stays_locked_although_all_gates_pass(edge: Candles) -> None:
    found = evaluate(job(edge))
    assert found is not None and results(found) == dict.fromkeys(GATE_NAMES, PASS)
    assert not found.is_unlocked and found.alarm.startswith("ALARM")
    assert "LOCKED. All gates passed, but the result is too good to be believed." in found.summary


def results(evaluation: Evaluation | None) -> dict[str, str]:
    assert evaluation is not None
    return {g.id: g.result for g in evaluation.gates}


def test_a_strong_edge_with_all_that_is_asked_for_unlocks(unlocked: Evaluation) -> None:
    assert results(unlocked) == dict.fromkeys(GATE_NAMES, PASS) and unlocked.is_unlocked
    assert "All 10 gates passed." in unlocked.summary and unlocked.size == 1.0
    assert unlocked.gates[2].actual == "0 of 19" and len(unlocked.windows) == 8
    span = unlocked.windows[0].test_from_ms, unlocked.windows[-1].test_to_ms
    assert (unlocked.unseen_from_ms, unlocked.unseen_to_ms) == span and span[1] - span[0] == 80 * DAY_MS
    assert span == unseen_span(job(made("E", 1, 0.6)))


class Stage:
    """An evaluation whose walk and shuffles are known, so that only the gates are worked out again."""

    def __init__(self, tested: lunobiz.Tested, luck: Luck) -> None:
        self.tested, self.luck = tested, luck

    def gates(self, tried: GateJob, monkeypatch: pytest.MonkeyPatch) -> Evaluation:
        monkeypatch.setattr(lunobiz, "walk_real", lambda *_: self.tested)
        monkeypatch.setattr(lunobiz, "try_luck", lambda *_: self.luck)
        found = evaluate(tried)
        assert found is not None
        return found

    def days(self, returns: Floats, **others: object) -> Stage:
        """The same with other unseen days."""
        changed = replace(self.tested.unseen, returns=returns, **others)  # type: ignore[arg-type]
        return Stage(self.tested._replace(unseen=changed), self.luck)


@pytest.fixture(scope="module")
def stage(edge: Candles) -> Stage:
    tried = job(edge)
    tested = walk_real(tried, windows_of(lunobiz.decision_candles(edge, SETTINGS), LIMITS))
    assert tested is not None
    return Stage(tested, Luck(19, 0, 1, 19))


@pytest.mark.usefixtures("no_alarm")
@pytest.mark.parametrize(
    ("change", "gate", "result"),
    [
        ({"paper": None}, "G8", WAIT),
        ({"paper": PaperRecord(19, 1.0, True)}, "G8", WAIT),
        ({"paper": PaperRecord(20, -1.0, True)}, "G8", FAIL),
        ({"paper": PaperRecord(20, 1.0, False)}, "G8", FAIL),
        ({"is_self_tested": False}, "G9", FAIL),
        ({"as_of_ms": 2_000_000_000_000}, "G0", FAIL),
    ],
)
def test_each_thing_that_is_taken_away_locks(
    change: dict[str, object], gate: str, result: str, edge: Candles, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage.gates(job(edge), monkeypatch).is_unlocked
    found = stage.gates(job(edge, **change), monkeypatch)
    assert not found.is_unlocked and "LOCKED" in found.summary
    assert results(found) == {**dict.fromkeys(GATE_NAMES, PASS), gate: result}


def test_what_is_not_given_stays_locked(edge: Candles, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    found = stage.gates(GateJob(edge, SETTINGS), monkeypatch)
    assert (results(found)["G8"], results(found)["G9"], found.is_unlocked) == (WAIT, FAIL, False)


WORKED_OUT = {"G0": "gate_data", "G1": "gate_money", "G2": "gate_luck", "G3": "gate_trips", "G4": "gate_stretch",
              "G5": "gate_alive", "G6": "gate_kinds", "G7": "gate_size", "G8": "gate_paper",
              "G9": "gate_self_test"}  # fmt: skip


@pytest.mark.parametrize("name", GATE_NAMES)
@pytest.mark.parametrize("result", [WAIT, FAIL])
def test_the_answer_of_each_gate_counts(
    name: str, result: str, edge: Candles, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate whose answer is dropped, or that is open by default, would let this through."""
    stub = gate_of(name, result)
    monkeypatch.setattr(lunobiz, WORKED_OUT[name], lambda *_: (stub, 1.0) if name == "G7" else stub)
    found = stage.gates(job(edge), monkeypatch)
    assert not found.is_unlocked and results(found) == {**dict.fromkeys(GATE_NAMES, PASS), name: result}


@pytest.mark.usefixtures("no_alarm")
@pytest.mark.parametrize("source", ["recorded", "demo", "test exchange"])
def test_the_same_markets_from_elsewhere_pass_and_stay_locked(
    source: str, edge: Candles, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = stage.gates(job(edge, source=source), monkeypatch)
    assert results(found) == dict.fromkeys(GATE_NAMES, PASS) and not found.is_unlocked
    assert f"LOCKED. All gates passed, but on {source} candles" in found.summary
    assert evaluation_json(found)["unlocked"] is False


def swinging(mean: float, ratio: float) -> Floats:
    """80 days of `mean` whose deviation is mean / ratio, in turn above and below."""
    return np.asarray(mean + mean / ratio * (-1.0) ** np.arange(80), dtype=np.float64)


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (np.full(80, 0.0101), "ALARM: +1.01% a day at a Sharpe ratio of 0.0"),
        (swinging(0.0101, 0.2), "ALARM: +1.01% a day at a Sharpe ratio of 3.8"),  # 0.2 x sqrt(365 x 79/80) = 3.80
        (swinging(0.001, 0.32), "ALARM: +0.10% a day at a Sharpe ratio of 6.1"),  # 0.32 x 18.99 = 6.08
        (swinging(0.001, 0.31), ""),  # 5.89
        (swinging(0.0099, 0.2), ""),
    ],
)
def test_too_good_raises_the_alarm(
    days: Floats, words: str, edge: Candles, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = stage.days(days).gates(job(edge), monkeypatch)
    assert found.summary.startswith(words) and ("ALARM" in found.summary) is bool(words)
    assert "too good, probably a fault" in found.summary or not words


def test_too_little_history_is_an_honest_no() -> None:
    short = made("A0", 1, days=140)  # 63 + 40 + 5 days leave 32, which are three windows
    found = evaluate(job(short))
    assert found is not None and not found.is_unlocked
    assert results(found) == {"G0": FAIL, "G9": PASS} | {f"G{n}": WAIT for n in range(1, 9)}
    assert (found.unseen_from_ms, found.unseen_to_ms, found.windows, found.shown) == (0, 0, (), ())
    assert found.size == 0.0 and unseen_span(job(short)) == (0, 0)
    assert found.summary.startswith("LOCKED, 1 of 10 failed, 8 not judged yet. G0 Data: needs 4 windows (148 days)")
    assert "140 days give 3 windows, 4 need 148 days" in found.gates[0].text
    assert all("not enough history" in g.text for g in found.gates[1:9])
    assert evaluation_json(found)["windows"] == []
    enough = made("A0", 1, days=148)
    assert unseen_span(job(enough))[1] - unseen_span(job(enough))[0] == 40 * DAY_MS


def test_no_candles_at_all_are_an_error_and_no_answer() -> None:
    with pytest.raises(DataError, match="no candles"):
        evaluate(job(()))


def test_progress_rises_to_its_end_and_a_cancel_at_any_stage_ends_it(edge: Candles) -> None:
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int) -> bool:
        seen.append((done, total))
        return True

    small = job(edge, sets=SETS[:1], settings=FEW)
    assert evaluate(small, watch) is not None
    assert {total for _, total in seen} == {1000} and seen[-1] == (1000, 1000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    places = [done for done, _ in seen]
    # training, the sets on the unseen days, the unseen days themselves, shuffling
    stages = [0, 1, next(n for n, d in enumerate(places) if d >= 45), next(n for n, d in enumerate(places) if d >= 80),
              next(n for n, d in enumerate(places) if d > 100), len(seen) - 2]  # fmt: skip
    for stop in stages:
        calls: list[int] = []

        def cancel(done: int, total: int, stop: int = stop, calls: list[int] = calls) -> bool:
            calls.append(done)
            return len(calls) <= stop

        assert evaluate(small, cancel) is None
        assert len(calls) == stop + 1  # nobody asked again


def threads(work: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(work, items)


def test_the_same_job_gives_the_same_bytes(
    unlocked: Evaluation, edge: Candles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lunobiz, "CELLS_PER_CHUNK", 20_000)  # other chunks
    again = evaluate(job(made("E", 1, 0.6), as_of_ms=int(edge[0][1].closed[-1]) + DAY_MS), crew=Crew(threads, 3))
    assert again is not None and again.payload == unlocked.payload and again.payload_hash == unlocked.payload_hash
    assert again.gates == unlocked.gates and again.windows == unlocked.windows


@pytest.mark.parametrize(
    "change",
    [
        {"settings": replace(SETTINGS, gates=replace(LIMITS, seed=1))},
        {"attempts": 2},
        {"source": "recorded"},
        {"self_test_id": "T-2"},
        {"hashes": (("XBTZAR", "00"),)},
        {"sets": SETS[:1]},
        {"settings": replace(SETTINGS, limits=replace(SETTINGS.limits, max_exposure=0.5))},
        {"paper": PaperRecord(20, 0.5, True)},
    ],
)
def test_whatever_decides_is_in_the_payload(
    change: dict[str, object], edge: Candles, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = stage.gates(job(edge), monkeypatch), stage.gates(job(edge, **change), monkeypatch)
    assert first.payload == stage.gates(job(edge), monkeypatch).payload
    assert other.payload != first.payload and other.payload_hash != first.payload_hash


def test_the_payload_holds_no_time_and_no_machine(unlocked: Evaluation) -> None:
    found = json.loads(unlocked.payload)
    assert set(found) == {"gates", "shown", "windows", "size", "attempt", "source", "config", "sets", "data", "hashes",
                          "self_test", "fees", "seed", "version"}  # fmt: skip
    assert list(found["data"]) == list(TRIAL_PAIRS) and found["attempt"] == 1 and found["seed"] == LIMITS.seed
    assert platform.node() not in unlocked.payload and str(Path.home()) not in unlocked.payload


def test_another_process_gives_the_same_bytes(unlocked: Evaluation) -> None:
    here = Path(__file__).parent
    code = "import test_gates as t; print(t.evaluate(t.job(t.made('E', 1, 0.6))).payload_hash)"
    path = f"{here}{os.pathsep}{here.parent}"
    away = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Pacific/Auckland", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=away, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == unlocked.payload_hash, done.stderr


def test_the_json_has_the_keys_that_were_promised_and_only_real_numbers(unlocked: Evaluation) -> None:
    short = evaluate(job(made("A0", 1, days=120)))
    cash = evaluate(job(made("A0", 1)))  # nothing is gained or lost: some figures have no value
    for found in (unlocked, short, cash):
        assert found is not None
        report = evaluation_json(found)
        assert {"unlocked", "summary", "attempt", "gates", "shown", "windows", "payload_hash"} <= set(report)
        text = json.dumps(report, allow_nan=False)
        assert "NaN" not in found.payload and "Infinity" not in found.payload
        back = json.loads(text)
        assert list(back["gates"]) == list(GATE_NAMES) and back["payload_hash"] == found.payload_hash
        assert all(set(g) == {"name", "result", "needed", "actual", "margin", "text"} for g in back["gates"].values())
        assert back["unlocked"] is found.is_unlocked and back["attempt"] == 1
    shown = evaluation_json(unlocked)["shown"]
    assert isinstance(shown, dict) and {"pbo", "dsr", "psr", "min_trl_days"} <= set(shown)
    first = json.loads(json.dumps(evaluation_json(unlocked)["windows"]))[0]
    assert first["number"] == 1 and first["train_from"].endswith("T00:00:00Z") and first["chosen"] in (0, 1)
    assert cash is not None and dict(cash.shown)["profit_factor_of_days"] is None


# ---- planted faults -------------------------------------------------------------------------------


def test_a_look_ahead_stays_locked_by_the_shuffles_alone() -> None:
    """Half of the signal candle's move given to each entry: every other gate passes, on markets without any edge."""
    free = replace(SETTINGS, costs=replace(SETTINGS.costs, slippage=0.0))
    blind = made("A0", 11, fees=NO_FEES)
    peeking = evaluate(job(blind, settings=free, peek=0.5))
    assert peeking is not None and not peeking.is_unlocked
    assert results(peeking) == {**dict.fromkeys(GATE_NAMES, PASS), "G2": FAIL}
    assert peeking.gates[2].actual.startswith("2 of ")  # judged by shuffles, and stopped at the second
    honest = evaluate(job(blind, settings=free))
    assert honest is not None and not honest.is_unlocked
    assert dict(peeking.shown)["total"] > dict(honest.shown)["total"]  # type: ignore[operator]


def test_a_fee_left_out_shows() -> None:
    candles = made("E", 1, 0.3)

    def total(change: Callable[[Market], Market]) -> float:
        tried = job(tuple((change(m), s) for m, s in candles), sets=SETS[:1])
        tested = walk_real(tried, windows_of(candles, LIMITS))
        assert tested is not None and all(w.chosen == 0 for w in tested.unseen.windows[:2])
        return float(tested.unseen.returns[:20].sum())

    whole = total(lambda m: m)
    no_maker, no_taker = total(lambda m: replace(m, maker_fee=0.0)), total(lambda m: replace(m, taker_fee=0.0))
    neither = total(lambda m: replace(m, maker_fee=0.0, taker_fee=0.0))
    assert whole < min(no_maker, no_taker) and max(no_maker, no_taker) < neither


def test_a_market_that_ends_stays_in_the_data_and_does_no_harm() -> None:
    """A coin delisted among the unseen days counts to its end; the answer is made all the same."""
    (first, whole), *others = made("E", 1, 0.6)
    gone = (first, whole.part(0, len(whole) - 30 * 6))
    found = evaluate(job((gone, *others), settings=FEW))
    assert found is not None and results(found)["G0"] == PASS
    assert f"{first.pair} from 2020-01-01 to 2020-06-19" in found.gates[0].text
