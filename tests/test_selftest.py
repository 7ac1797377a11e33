"""SELFTEST: made markets have the truth that their kind promises, and the table counts what the gates said."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

import lunobiz
from candles import random_walk, rows_of
from lunobiz import (
    GATES_OF_TEST,
    NO_FEES,
    REAL_FEES,
    DataError,
    Floats,
    MarketModel,
    RecordedBars,
    SelfTestJob,
    SelfTestLine,
    SelfTestPlan,
    Series,
    Settings,
    SettingsError,
    Side,
    Trial,
    TrialCase,
    TrialVerdict,
    append_row,
    kind_of,
    read_rows,
    recorded_bars,
    retries,
    rows_of_self_test,
    self_market,
    self_test_cases,
    self_test_markdown,
    self_test_rows,
    self_test_table,
    self_test_targets,
    shard_of,
)

KINDS = ("A0", "A1", "A2", "A3", "A4", "A5", "E", "R")
BARS_A_YEAR = 365 * 6
ALL_PASS = tuple((gate, "PASS", 0.5) for gate in GATES_OF_TEST)


def recorded() -> RecordedBars:
    """Three hourly markets of 300 days that move together, with wide and narrow days."""
    rng = np.random.default_rng(5)
    shared = rng.normal(0, 0.004, 7200) * np.repeat(np.exp(rng.normal(0, 0.5, 300)), 24)
    found = []
    for seed in range(3):
        walk = random_walk(7200, seed=seed, sigma=0.003)
        rise = np.exp(np.cumsum(shared))
        before = np.concatenate(([1.0], rise[:-1]))
        tops, bottoms = np.maximum(rise, before), np.minimum(rise, before)
        found.append(dataclasses.replace(walk, open=walk.open * before, close=walk.close * rise,
                                         high=walk.high * tops, low=walk.low * bottoms))  # fmt: skip
    return recorded_bars(found)


RECORDED = recorded()


def returns(kind: str, seed: int, strength: float = 0.0, model: MarketModel | None = None) -> Floats:
    """Returns of the closes, pairs x bars."""
    case = TrialCase(kind, seed, strength, model=model or MarketModel())
    closes = np.array([series.close for _, series in self_market(case, RECORDED)])
    return np.asarray(closes[:, 1:] / closes[:, :-1] - 1, dtype=np.float64)


def fingerprint(kind: str, seed: int) -> bytes:
    """All bytes of a market."""
    return b"".join(rows_of(series).tobytes() for _, series in self_market(TrialCase(kind, seed, 0.15), RECORDED))


# --- the markets ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_market_is_six_candles_a_day_of_three_pairs_all_possible_and_on_the_grid(kind: str) -> None:
    made = self_market(TrialCase(kind, 3, 0.2), RECORDED)
    assert [market.pair for market, _ in made] == ["ETHZAR", "LTCZAR", "XBTZAR"]
    for market, series in made:
        assert len(series) == 1150 * 6 and series.seconds == 14_400
        assert series.opened[0] % 86_400_000 == 0 and set(np.diff(series.opened)) == {14_400_000}
        assert lunobiz.is_possible(rows_of(series), 14_400).all()
        for column in (series.open, series.high, series.low, series.close):
            for price in map(float, column[::97]):
                assert market.round_price(price, Side.BUY) == price == market.round_price(price, Side.SELL)
        assert (series.volume * series.close > 1e8).all()  # a tenth of it is far more than this desk ever orders


@pytest.mark.parametrize("kind", ["A0", "A2", "E"])
def test_a_bar_opens_at_the_close_before(kind: str) -> None:
    for _, series in self_market(TrialCase(kind, 1, 0.1)):
        assert (series.open[1:] == series.close[:-1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_bytes_each_time_and_another_seed_others(kind: str) -> None:
    assert fingerprint(kind, 7) == fingerprint(kind, 7)
    assert fingerprint(kind, 7) != fingerprint(kind, 8)


def test_kinds_of_one_seed_are_different_markets() -> None:
    assert len({fingerprint(kind, 7) for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", ["A0", "A1", "A5", "R"])
def test_a_market_without_edge_has_the_mean_return_nothing(kind: str) -> None:
    """The mean over pairs counts once, for they move together; 20 seeds, 3 deviations."""
    means = np.concatenate([returns(kind, seed).mean(axis=0) for seed in range(20)])
    assert abs(means.mean()) < 3 * means.std() / math.sqrt(len(means))


@pytest.mark.parametrize("kind", ["A0", "A1"])
@pytest.mark.parametrize("bars", [1, 6, 40])
def test_what_a_market_without_edge_did_tells_nothing(kind: str, bars: int) -> None:
    """The return after a rise less the return after a fall, for three lengths; 20 seeds, 3 deviations."""
    gains = []
    for seed in range(20):
        move = returns(kind, seed).mean(axis=0)
        path = np.concatenate(([0.0], np.cumsum(move)))
        side = np.sign(path[bars:-1] - path[: -bars - 1])
        gains.append(side * move[bars:])
    gain = np.concatenate(gains)
    assert abs(gain.mean()) < 3 * gain.std() / math.sqrt(len(gain))


def test_an_order_at_any_price_inside_a_bar_gains_nothing_on_average() -> None:
    """A limit below or above the open that was reached: the close lies at it on average. One pair, 3 deviations."""
    made = [self_market(TrialCase("A0", seed))[0][1] for seed in range(30)]
    opens = np.concatenate([series.open for series in made])
    lows, highs = (np.concatenate([getattr(series, side) for series in made]) for side in ("low", "high"))
    closes = np.concatenate([series.close for series in made])
    for distance in (-0.02, -0.01, -0.005, -0.001, 0.001, 0.005, 0.01, 0.02):
        limit = opens * (1 - distance)
        gain = (closes / limit - 1)[lows <= limit] if distance > 0 else (closes / limit - 1)[highs >= limit]
        assert len(gain) > 1000
        assert abs(gain.mean()) < 3 * gain.std() / math.sqrt(len(gain)), distance


def test_pairs_move_together_with_heavy_tails_and_waves_of_volatility() -> None:
    model = MarketModel()
    moves = [returns("A0", seed) for seed in range(10)]
    together = np.mean([(np.asarray(np.corrcoef(m)).sum() - 3) / 6 for m in moves])
    assert together == pytest.approx(0.6, abs=0.03)
    assert np.mean([m.std() for m in moves]) == pytest.approx(model.bar_volatility, rel=0.1)
    tails = [float(np.mean((m - m.mean()) ** 4) / m.var() ** 2) for m in moves]
    assert min(tails) > 4 and statistics.median(tails) > 7  # waves alone make 3 e^0.64 = 5.7
    size = np.log(np.abs(np.concatenate([m[0] for m in moves])) + 1e-6)
    near, far = (float(np.corrcoef(size[:-k], size[k:])[0, 1]) for k in (6, 600))
    assert near > 0.05 and abs(far) < 0.03  # a day later it still tells, a hundred days later it does not


def test_waves_remember_for_their_half_life_and_keep_their_variance() -> None:
    """AR(1): half of a shock is left after the half-life; against the recursion itself, worked out step by step."""
    shocks = np.random.default_rng(1).standard_normal((4000, 2))
    waves = lunobiz._waves(shocks.copy(), 60.0)
    decay = 0.5 ** (1 / 60)
    value, found = shocks[0], [shocks[0]]
    for shock in shocks[1:]:
        value = decay * value + math.sqrt(1 - decay**2) * shock
        found.append(value)
    assert np.allclose(waves, np.array(found), atol=1e-9)
    single = np.zeros((200, 1))
    single[0] = 1.0
    assert lunobiz._waves(single, 60.0)[60, 0] == pytest.approx(0.5)
    long = lunobiz._waves(np.random.default_rng(2).standard_normal((200_000, 1)), 60.0)[:, 0]
    assert long.std() == pytest.approx(1.0, abs=0.1)


def test_a_planted_edge_is_there_and_grows_with_its_strength() -> None:
    """Longer than the last 40 bars are high or low: what follows has their sign if there is a hidden drift."""
    gains = []
    for strength in (0.0, 0.1, 0.2):
        parts = []
        for seed in range(6):
            move = returns("E", seed, strength)
            path = np.cumsum(move, axis=1)
            parts.append((np.sign(path[:, 40:-1] - path[:, :-41]) * move[:, 41:]).mean() / move.std())
        gains.append(statistics.fmean(parts))
    assert abs(gains[0]) < 0.012 < gains[1] < gains[2]


def drift_of(kind: str, seed: int, strength: float = 0.0, model: MarketModel | None = None) -> Floats:
    """The drift alone, bars x pairs."""
    case = TrialCase(kind, seed, strength, model=model or MarketModel())
    return lunobiz._drift(np.random.default_rng(seed), case, case.model.days * 6)


def test_the_hidden_drift_has_the_strength_that_was_asked_for() -> None:
    drift = np.concatenate([drift_of("E", seed, 0.15) for seed in range(20)])
    assert drift.std() == pytest.approx(0.15 * 0.015, rel=0.1)
    later = float(np.corrcoef(drift[:-60, 0], drift[60:, 0])[0, 1])
    assert later == pytest.approx(0.5, abs=0.08)  # half is left after ten days
    assert abs(float(np.corrcoef(drift.T)[0, 1])) < 0.15


def test_one_drift_for_all_pairs_and_another_half_life_can_be_asked_for() -> None:
    model = MarketModel(drift_correlation=1.0, drift_half_life=5.0)
    drift = drift_of("E", 1, 0.15, model)
    assert np.allclose(drift[:, 0], drift[:, 1]) and np.allclose(drift[:, 0], drift[:, 2])


def test_a_bull_market_earns_sixty_percent_a_year() -> None:
    assert drift_of("A2", 1).sum(axis=0) == pytest.approx(0.60 * 1150 / 365)
    gained = [returns("A2", seed).mean() * BARS_A_YEAR for seed in range(40)]
    assert statistics.fmean(gained) == pytest.approx(0.60, abs=3 * statistics.stdev(gained) / math.sqrt(40))


def test_the_lucky_phase_lies_in_the_unseen_days_and_adds_ninety_percent() -> None:
    starts = set()
    for seed in range(30):
        drift = drift_of("A3", seed)
        held = np.flatnonzero(drift[:, 0])
        assert len(held) == 90 * 6 == held[-1] - held[0] + 1
        assert held[0] >= (1150 - 720) * 6 and (drift == drift[:, :1]).all()
        assert drift[:, 0].sum() == pytest.approx(0.90)
        starts.add(int(held[0]))
    assert len(starts) > 20


def test_the_dying_edge_is_dead_for_the_last_360_days() -> None:
    drift = drift_of("A4", 2, 0.2)
    assert (drift[-360 * 6 :] == 0).all() and (drift[: -360 * 6] != 0).all()


# --- recorded bars ---


def flat(count: int, price: float, seconds: int = 14_400) -> Series:
    """Bars that all look alike."""
    return random_walk(count, sigma=0.0, seconds=seconds, start=price)


def test_a_recorded_bar_is_read_as_moves_from_the_close_before() -> None:
    """The last bar: close before 100, open 101, high 104, low 98, close 102."""
    bars = [flat(1200, 100.0) for _ in range(3)]
    for series in bars:
        series.close[:] = series.open[:] = series.high[:] = series.low[:] = 100.0
        series.open[-1], series.high[-1], series.low[-1], series.close[-1] = 101, 104, 98, 102
    moves = recorded_bars(bars).moves
    assert moves.shape == (4, 1199, 3)
    assert moves[:, -1, 1] == pytest.approx([0.01, 0.04, -0.02, 0.02])
    assert (moves[:, :-1] == 0).all()


def test_a_mirrored_bar_has_its_high_where_its_low_was() -> None:
    """All bars are alike: +1, +4, -2, +2 %. Mirrored: -1, +2, -4, -2 %. A coin decides, for all pairs at once."""
    moves = np.empty((4, 1200, 3))
    moves[:] = np.array([0.01, 0.04, -0.02, 0.02])[:, None, None]
    drawn = lunobiz._drawn_moves(np.random.default_rng(1), RecordedBars(moves, ""), 5000)
    mirrored = drawn[3, :, 0] < 0
    assert np.allclose(drawn[:, mirrored, 2], np.array([-0.01, 0.02, -0.04, -0.02])[:, None])
    assert np.allclose(drawn[:, ~mirrored, 2], np.array([0.01, 0.04, -0.02, 0.02])[:, None])
    assert mirrored.mean() == pytest.approx(0.5, abs=0.03)
    assert (np.sign(drawn[3]) == np.sign(drawn[3, :, :1])).all()


def test_blocks_are_about_twenty_days_long_and_run_on_from_the_end_to_the_start() -> None:
    """Bar i of 1,000 moved by i+1 parts in a million, so that each drawn bar tells where it comes from."""
    moves = np.zeros((4, 1000, 3))
    moves[:] = (np.arange(1000) + 1)[None, :, None] * 1e-6
    drawn = lunobiz._drawn_moves(np.random.default_rng(1), RecordedBars(moves, ""), 200_000)
    rows = np.round(np.abs(drawn[3, :, 0]) * 1e6).astype(int) - 1
    breaks = np.diff(rows) % 1000 != 1
    assert 1 / breaks.mean() == pytest.approx(120, rel=0.1)
    assert np.bincount(rows, minlength=1000).min() > 0  # with 1,667 blocks none is left out


def test_bars_after_a_hole_and_bars_too_large_to_mirror_are_left_out() -> None:
    bars = [random_walk(1300, seed=s, seconds=14_400) for s in range(3)]
    whole = recorded_bars(bars).moves.shape[1]
    holed = lunobiz.series_of(np.delete(rows_of(bars[0]), 700, axis=0), 14_400)
    assert recorded_bars([holed, *bars[1:]]).moves.shape[1] == whole - 2
    bars[1].high[50] = bars[1].close[49] * 2.5
    assert recorded_bars(bars).moves.shape[1] == whole - 1


@pytest.mark.parametrize(("count", "markets", "says"), [(1200, 2, "3 recorded markets"), (900, 3, "share 150 days")])
def test_too_little_to_draw_from_is_named(count: int, markets: int, says: str) -> None:
    with pytest.raises(DataError, match=says):
        recorded_bars([random_walk(count, seed=s, seconds=14_400) for s in range(markets)])


def test_recorded_bars_are_needed_for_their_kind_and_have_a_name_of_their_own() -> None:
    with pytest.raises(DataError, match="--data"):
        self_market(TrialCase("A1", 1))
    other = recorded_bars([random_walk(7200, seed=s) for s in range(4, 7)])
    assert recorded().digest == RECORDED.digest != other.digest


# --- one row ---


def verdict(results: Sequence[str], permutations: int = 7) -> TrialVerdict:
    """A verdict with these results of G1, G2, ..."""
    gates = tuple((f"G{number}", result, 0.25) for number, result in enumerate(results, start=1))
    return TrialVerdict(gates, permutations, 0.001, 0.01)


def lock_all(trials: Sequence[Trial]) -> list[TrialVerdict]:
    """A judge that stops at the first gate."""
    return [verdict(["FAIL", *["SKIP"] * 5]) for _ in trials]


def by_mean(trials: Sequence[Trial]) -> list[TrialVerdict]:
    """A judge that unlocks whatever rose, and can be sent to a process."""
    closes = [trial.candles[0][1].close for trial in trials]
    return [verdict(["PASS"] * 6 if c[-1] > c[0] else ["PASS", "FAIL", *["SKIP"] * 4]) for c in closes]


def fail_loudly(trials: Sequence[Trial]) -> list[TrialVerdict]:
    """A judge that names a trouble."""
    raise DataError("the judge is ill")


def die(trials: Sequence[Trial]) -> list[TrialVerdict]:
    """A judge whose process ends at once."""
    os._exit(9)


def job(judge: lunobiz.Judge, *cases: TrialCase) -> SelfTestJob:
    """A job with the standard settings."""
    return SelfTestJob(cases, Settings(), "c0ffee", RECORDED, judge)


def one_row(case: TrialCase, work: SelfTestJob) -> dict[str, object]:
    """The row of a case that is judged alone."""
    return self_test_rows((case,), work)[0]


def test_a_row_tells_case_gates_and_figures() -> None:
    said = verdict(["PASS", "FAIL", *["SKIP"] * 4])
    row = one_row(TrialCase("E", 4, 0.15), job(lambda trials: [said for _ in trials]))
    assert row == {
        "kind": "E", "strength": 0.15, "seed": 4, "fees": [0.004, 0.006], "key": "E 0.15 0.004,0.006 4",
        "config": "c0ffee", "data": "", "attempts": 1, "permutations": 7, "unlocked": False, "daily_mean": 0.001,
        "daily_deviation": 0.01, "sharpe": pytest.approx(1.91050, abs=1e-5),  # 0.1 x root of 365 = 1.910497
        "gates": {"G1": {"result": "PASS", "value": 0.25}, "G2": {"result": "FAIL", "value": 0.25}}
        | {f"G{n}": {"result": "SKIP", "value": 0.25} for n in range(3, 7)},
    }  # fmt: skip
    assert json.loads(lunobiz.canonical(row)).keys() == row.keys()


def test_the_judge_sees_the_market_its_costs_and_fitting_timeframes() -> None:
    seen: list[Trial] = []

    def note(trials: Sequence[Trial]) -> list[TrialVerdict]:
        seen.extend(trials)
        return lock_all(trials)

    one_row(TrialCase("A5", 1, fees=NO_FEES), job(note))
    one_row(TrialCase("A0", 1), job(note))
    free, real = seen
    assert free.is_peeking and not real.is_peeking and free.attempt == real.attempt == 1
    assert {(m.maker_fee, m.taker_fee, m.model_spread) for m, _ in free.candles} == {(0.0, 0.0, 0.0)}
    assert {(m.maker_fee, m.taker_fee, m.model_spread) for m, _ in real.candles} == {(0.004, 0.006, 0.001)}
    assert free.settings.costs.slippage == 0 and real.settings.costs == Settings().costs
    assert free.settings.schedule.pairs == tuple(m.pair for m, _ in free.candles)
    assert all(s % 14_400 == 0 for s in free.settings.schedule.timeframes)
    assert real.settings.limits == Settings().limits


def test_only_six_passes_unlock() -> None:
    assert verdict(["PASS"] * 6).is_unlocked
    for number in range(6):
        for result in ("FAIL", "SKIP", "WAIT"):
            results = ["PASS"] * 6
            results[number] = result
            assert not verdict(results).is_unlocked
    assert not verdict(["PASS"] * 5).is_unlocked and not verdict([]).is_unlocked


def test_where_nothing_moved_there_is_no_sharpe_ratio() -> None:
    still = TrialVerdict(ALL_PASS[:1], 0, 0.0, 0.0)
    assert one_row(TrialCase("A0", 1), job(lambda trials: [still for _ in trials]))["sharpe"] is None


def test_28_attempts_differ_and_end_with_the_first_that_unlocks() -> None:
    tried = retries(Settings())
    assert len(tried) == len(set(tried)) == 28 and tried[0] == Settings()
    seen: list[Trial] = []

    def at_third(trials: Sequence[Trial]) -> list[TrialVerdict]:
        seen.extend(trials)
        return [verdict(["PASS"] * 6 if trial.attempt == 3 else ["PASS", "FAIL"]) for trial in trials]

    row = one_row(TrialCase("R", 1), job(at_third))
    assert (row["attempts"], row["unlocked"], row["permutations"]) == (3, True, 21)
    assert [t.attempt for t in seen] == [1, 2, 3] and len({t.settings for t in seen}) == 3
    assert one_row(TrialCase("R", 1), job(lock_all))["attempts"] == 28


def test_a_row_is_the_same_each_time() -> None:
    case = TrialCase("A1", 3)
    rows = [lunobiz.canonical(one_row(case, job(by_mean))) for _ in range(2)]
    assert rows[0] == rows[1] and f'"data":"{RECORDED.name}"' in rows[0]


# --- the plan ---


def test_words_are_kinds() -> None:
    assert kind_of("A0") == ("A0", 0.0) and kind_of("e15") == ("E", 0.15) and kind_of("R") == ("R", 0.0)
    assert kind_of("A4") == ("A4", 0.20) and kind_of("A430") == ("A4", 0.30)


@pytest.mark.parametrize("word", ["A6", "A", "E", "E5", "E00", "E150", "A015", "R2", "", "A0,A1"])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(SettingsError, match="E01 to E99"):
        kind_of(word)


def test_the_standard_plan_has_what_the_targets_need() -> None:
    cases = self_test_cases(SelfTestPlan())
    assert len({case.key for case in cases}) == len(cases)
    counts: dict[tuple[str, float, bool], int] = {}
    for case in cases:
        name = (case.kind, case.strength, case.fees == NO_FEES)
        counts[name] = counts.get(name, 0) + 1
    for bound in lunobiz.BOUNDS:
        for kind in bound.kinds:
            strength = 0.20 if kind == "A4" else 0.0
            assert counts[kind, strength, bound.fees == NO_FEES] * len(bound.kinds) >= bound.needed
    assert counts["E", 0.12, False] == counts["E", 0.15, False] == lunobiz.POWER_CASES


def test_seeds_fees_and_kinds_can_be_chosen_and_doubles_count_once() -> None:
    cases = self_test_cases(SelfTestPlan(("A0", "E20", "A0"), 100, 3, ((0.001, 0.002),)))
    assert [case.key for case in cases] == [
        f"{kind} 0.001,0.002 {seed}" for seed in (100, 101, 102) for kind in ("A0 0", "E 0.2")
    ]


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 50))
def test_shards_share_the_cases_out_with_all_kinds_in_each(shards: int, seeds: int, first: int) -> None:
    cases = self_test_cases(SelfTestPlan(("A0", "A2", "E12"), first, seeds))
    parts = [shard_of(cases, number, shards) for number in range(1, shards + 1)]
    assert sorted(case.key for part in parts for case in part) == sorted(case.key for case in cases)
    assert max(map(len, parts)) - min(map(len, parts)) <= 4
    assert all({case.kind for case in part} in (set(), {"A0", "A2", "E"}) for part in parts)
    halves = [shard_of(parts[0], number, 2) for number in (1, 2)]  # for the processes of one shard
    assert sorted(c.key for half in halves for c in half) == sorted(c.key for c in parts[0])
    assert len(halves[0]) - len(halves[1]) in (0, 4)


# --- the table ---


def short_row(case: TrialCase, said: TrialVerdict) -> dict[str, object]:
    """A row without a market."""
    return {
        "kind": case.kind, "strength": case.strength, "seed": case.seed, "fees": list(case.fees), "key": case.key,
        "gates": {gate: {"result": result, "value": value} for gate, result, value in said.gates},
        "permutations": said.permutations, "daily_mean": said.mean, "daily_deviation": said.deviation,
    }  # fmt: skip


def rows_with(
    case: TrialCase, unlocked: int, count: int, mean: float = 0.001
) -> list[dict[str, object]]:
    """So many rows like this case, the first ones unlocked; the others fail G2 after ten permutations."""
    passed = verdict(["PASS"] * 6, 199)._replace(mean=mean)
    failed = verdict(["PASS", "FAIL", *["SKIP"] * 4], 10)._replace(mean=mean)
    seeds = range(count)
    return [short_row(dataclasses.replace(case, seed=s), passed if s < unlocked else failed) for s in seeds]


A0, A1, E15 = TrialCase("A0", 0), TrialCase("A1", 0), TrialCase("E", 0, 0.15)


def test_a_line_counts_what_the_gates_said() -> None:
    """2 of 8 unlock: 0.25, Clopper and Pearson 0.0319 to 0.6509. All asked G1 and G2, two the others."""
    (line,) = self_test_table(rows_with(A0, 2, 8))
    assert (line.kind, line.strength, line.fees, line.cases, line.unlocked) == ("A0", 0.0, REAL_FEES, 8, 2)
    assert (line.rate, line.low, line.high) == pytest.approx((0.25, 0.03185, 0.65086), abs=1e-4)
    assert line.asked == (8, 8, 2, 2, 2, 2) and line.passed == (8, 2, 2, 2, 2, 2)
    assert line.permutations == 10  # the median of six tens and two 199
    assert line.sharpe == pytest.approx(1.910497, abs=1e-5)


def test_the_pooled_sharpe_ratio_is_that_of_all_days_together() -> None:
    """Two cases, means 0.003 and -0.001, deviation 0.01 each: mean 0.001, variance 1e-4 + 4e-6."""
    said = (verdict(["FAIL"])._replace(mean=mean) for mean in (0.003, -0.001))
    (line,) = self_test_table([short_row(TrialCase("A0", n), v) for n, v in enumerate(said)])
    assert line.sharpe == pytest.approx(0.001 / math.sqrt(1.04e-4) * math.sqrt(365))


def test_kinds_strengths_and_fees_have_lines_of_their_own_and_doubles_count_once() -> None:
    free = dataclasses.replace(A0, fees=NO_FEES)
    rows = [*rows_with(E15, 1, 2), *rows_with(A0, 0, 3), *rows_with(free, 1, 4), *rows_with(A0, 0, 3)]
    lines = self_test_table(rows)
    assert [(line.kind, line.fees, line.cases) for line in lines] == [
        ("A0", NO_FEES, 4), ("A0", REAL_FEES, 3), ("E", REAL_FEES, 2)
    ]  # fmt: skip
    assert self_test_table([]) == []
    assert lines == self_test_table(reversed(rows))


@pytest.mark.parametrize(
    "change",
    [{"kind": 3}, {"fees": "0"}, {"gates": []}, {"permutations": True}, {"daily_mean": None}, {"strength": "x"}],
)
def test_a_row_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match="row of the self-test"):
        self_test_table([short_row(A0, lock_all([ANY])[0]) | change])


ANY = Trial((), Settings(), 1, False)


def results(lines: list[SelfTestLine]) -> dict[str, str]:
    """Each target's result by its words."""
    return {row.text: row.result for row in self_test_targets(lines)}


def test_without_rows_every_target_waits() -> None:
    rows = self_test_targets([])
    assert {row.result for row in rows} == {"WAIT"} and {row.target for row in rows} == {f"T{n}" for n in range(1, 7)}


@pytest.mark.parametrize(
    ("unlocked", "count", "result"),
    [(3, 500, "PASS"), (4, 500, "FAIL"), (3, 499, "WAIT"), (11, 100, "FAIL"), (10, 100, "WAIT"), (0, 0, "WAIT")],
)
def test_three_false_unlocks_of_a_thousand_are_the_most(unlocked: int, count: int, result: str) -> None:
    """Both nulls together: 3 of 1,000 has the upper bound 0.874 %, 4 of 1,000 has 1.021 %."""
    lines = self_test_table([*rows_with(A0, unlocked, count), *rows_with(A1, 0, count)])
    assert results(lines)["no edge, real fees"] == result
    assert results(lines)["no edge, no fees"] == "WAIT"


def test_one_null_is_not_both() -> None:
    assert results(self_test_table(rows_with(A0, 0, 1200)))["no edge, real fees"] == "WAIT"


@pytest.mark.parametrize(
    ("kind", "words", "unlocked", "count", "result"),
    [
        ("A5", "the engine looks ahead, real fees", 1, 100, "PASS"),
        ("A5", "the engine looks ahead, real fees", 2, 100, "FAIL"),
        ("A2", "a bull market and no edge", 8, 400, "PASS"),
        ("A2", "a bull market and no edge", 9, 400, "FAIL"),
        ("A3", "one lucky phase and no edge", 8, 399, "WAIT"),
        ("R", "no edge, up to 28 attempts", 3, 200, "PASS"),
        ("R", "no edge, up to 28 attempts", 4, 200, "FAIL"),
        ("A4", "an edge that has died", 35, 100, "PASS"),
        ("A4", "an edge that has died", 36, 100, "FAIL"),
    ],
)
def test_the_other_rates_are_bounded_as_they_stand(
    kind: str, words: str, unlocked: int, count: int, result: str
) -> None:
    case = TrialCase(kind, 0, 0.2 if kind == "A4" else 0.0)
    assert results(self_test_table(rows_with(case, unlocked, count)))[words] == result


@pytest.mark.parametrize(
    ("sharpe", "unlocked", "count", "result"),
    [(3.1, 160, 200, "PASS"), (3.1, 159, 200, "FAIL"), (3.1, 199, 199, "WAIT"), (3.4, 200, 200, "WAIT")],
)
def test_power_is_asked_where_the_measured_sharpe_ratio_is_near(
    sharpe: float, unlocked: int, count: int, result: str
) -> None:
    lines = self_test_table(rows_with(E15, unlocked, count, sharpe * 0.01 / math.sqrt(365)))
    assert lines[0].sharpe == pytest.approx(sharpe)
    found = results(lines)
    assert found["an edge of net Sharpe 3"] == result and found["an edge of net Sharpe 2.3"] == "WAIT"


def test_the_text_is_a_table_and_the_targets() -> None:
    lines = self_test_table([*rows_with(A0, 2, 8), *rows_with(E15, 1, 1)])
    text = self_test_markdown(lines, self_test_targets(lines))
    assert "| A0 | 0.40 % / 0.60 % | 8 | 2 | 25.0 % (3.2 % to 65.1 %) | 100 % | 25 % | 100 % |" in text
    assert "\n| E15 | " in text and "| T3 | the engine looks ahead, no fees | WAIT |" in text
    widths = {row.count("|") for row in text.split("\n\n")[0].split("\n")}
    assert widths == {14}


# --- the file of rows ---


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    rows = rows_with(A0, 1, 3)
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    assert path.read_text().count("\n") == 3


@profile(max_examples=30)
@given(st.integers(0, 400))
def test_a_file_cut_off_anywhere_goes_on_after_its_last_whole_row(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    rows = rows_with(A0, 1, 3)
    for row in rows:
        append_row(path, row)
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - cut)])
    kept = read_rows(path)
    assert kept == rows[: len(kept)] and len(kept) == data[: max(0, len(data) - cut)].count(b"\n")
    for row in rows[len(kept) :]:
        append_row(path, row)
    assert path.read_bytes() == data


def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text in ('{\n "version": 1\n}', "[1]\n", "hello\n"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"report\.json, line 1: this is no JSON object"):
            read_rows(path)
        assert path.read_text() == text


# --- processes ---


def test_two_processes_give_the_rows_that_one_gives() -> None:
    cases = self_test_cases(SelfTestPlan(("A0", "A1", "E12"), 0, 2, (REAL_FEES,)))
    jobs = [job(by_mean, *shard_of(cases, number, 2)) for number in (1, 2)]
    found = sorted(map(lunobiz.canonical, rows_of_self_test(jobs)))
    assert found == sorted(lunobiz.canonical(one_row(case, jobs[0])) for case in cases)


@pytest.mark.parametrize(("judge", "says"), [(fail_loudly, "the judge is ill"), (die, "broke off .code 9.")])
def test_a_process_that_fails_or_dies_is_told(judge: lunobiz.Judge, says: str) -> None:
    with pytest.raises(DataError, match=says):
        list(rows_of_self_test([job(judge, A0)]))


def test_rows_that_nobody_wants_any_more_end_their_processes() -> None:
    rows = rows_of_self_test([job(by_mean, *self_test_cases(SelfTestPlan(("A0",), 0, 2000)))])
    next(rows)
    assert multiprocessing.active_children()
    started = time.monotonic()
    del rows
    assert time.monotonic() - started < 3 and not multiprocessing.active_children()
