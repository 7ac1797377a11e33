"""The walk-forward: which days train and which test, what is chosen, and that nothing later is ever known."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from lunobiz import (
    CASH,
    DAY_MS,
    TRIAL_PAIRS,
    BacktestJob,
    Candles,
    Choice,
    Desk,
    Flags,
    Floats,
    GateJob,
    GateLimits,
    Market,
    MarketModel,
    Recorded,
    RiskLimits,
    Schedule,
    Series,
    Settings,
    SimulatedExecutor,
    StrategyParams,
    Tape,
    TrialCase,
    Unseen,
    Walk,
    WalkJob,
    Window,
    choose,
    clear_cause,
    closed_only,
    current_choice,
    day_returns,
    decision_candles,
    is_new_week,
    later_table,
    missing_days,
    past_of,
    permuted,
    run_backtest,
    self_market,
    series_of,
    span_of,
    trade_moment,
    unseen_of,
    unseen_sharpes,
    walk,
    walk_real,
    whole_candles,
    windows_of,
)
from lunobiz import CauseKind as Cause
from recordings import QUICK, START_MS, Shape, market_rows, quick_settings
from rough import HOUR_MS

START_DAY = START_MS // DAY_MS
GATES = GateLimits(warm_up_days=63, train_days=40, embargo_days=5, test_days=10, windows=4, min_windows=2)
DAYS = 63 + 40 + 5 + 4 * 10
SETS = (
    replace(QUICK, breakout=48, stop_atr=3.0, trail_atr=4.0, atr=24),
    QUICK,
    replace(QUICK, reversion_z=1.0, breakout=16, exit_channel=8),
)

# ---- windows by pencil ------------------------------------------------------------


def ends(first_ms: int, last_ms: int) -> Candles:
    """A market of two hourly candles: the first opens at `first_ms`, the last closes at `last_ms`."""
    rows = np.array([[first_ms, 1, 1, 1, 1, 1], [last_ms - HOUR_MS, 1, 1, 1, 1, 1]], dtype=np.float64)
    return ((Market("AAAZAR", "AAA", "ZAR", 2, 2, 0.1, 1e6, 0.01, 1e6), series_of(rows, 3600)),)


def days_of(windows: Sequence[Window]) -> list[tuple[int, int, int, int]]:
    """Training from and to, test from and to, in days since the start."""
    for w in windows:
        assert not any(t % DAY_MS for t in (w.train_from_ms, w.train_to_ms, w.test_from_ms, w.test_to_ms))
    return [
        (w.train_from_ms // DAY_MS - START_DAY, w.train_to_ms // DAY_MS - START_DAY,
         w.test_from_ms // DAY_MS - START_DAY, w.test_to_ms // DAY_MS - START_DAY)
        for w in windows
    ]  # fmt: skip


def test_windows_by_pencil() -> None:
    gates = replace(GATES, windows=3)
    # 150 days: the last window tests days 140 to 150, trains the 40 days before the gap of 5: 95 to 135
    wanted = [(75, 115, 120, 130), (85, 125, 130, 140), (95, 135, 140, 150)]
    assert days_of(windows_of(ends(START_MS, START_MS + 150 * DAY_MS), gates)) == wanted
    # a day that has only begun, or was only half seen, is no whole day
    assert days_of(windows_of(ends(START_MS - HOUR_MS, START_MS + 150 * DAY_MS + 23 * HOUR_MS), gates)) == wanted
    assert [w.number for w in windows_of(ends(START_MS, START_MS + 150 * DAY_MS), gates)] == [1, 2, 3]


@pytest.mark.parametrize(("days", "count"), [(107, 0), (117, 0), (118, 1), (127, 1), (128, 2), (138, 3), (900, 3)])
def test_as_many_windows_as_the_history_holds(days: int, count: int) -> None:
    # 63 + 40 + 5 = 108 days come before the first unseen one, and each window needs 10 more
    windows = windows_of(ends(START_MS, START_MS + days * DAY_MS), replace(GATES, windows=3))
    assert len(windows) == count
    assert all(w.train_from_ms >= START_MS + 63 * DAY_MS for w in windows)
    assert not windows or windows[-1].test_to_ms == START_MS + days * DAY_MS
    # an hour less than the whole first or last day, and a window at the edge is lost
    short = windows_of(ends(START_MS + HOUR_MS, START_MS + days * DAY_MS), replace(GATES, windows=3))
    assert len(short) == (count - 1 if days in (118, 128, 138) else count)


def test_the_real_windows_are_720_unseen_days_each_once() -> None:
    windows = windows_of(ends(START_MS, START_MS + 1150 * DAY_MS), GateLimits())
    spans = days_of(windows)
    assert spans[0] == (60, 425, 430, 490)
    assert spans[-1] == (720, 1085, 1090, 1150)
    unseen = [day for _, _, start, end in spans for day in range(start, end)]
    assert unseen == list(range(430, 1150))
    assert len(unseen) == 720
    for train_from, train_to, test_from, _ in spans:
        assert (train_to - train_from, test_from - train_to) == (365, 5)
    assert len(windows_of(ends(START_MS, START_MS + 1149 * DAY_MS), GateLimits())) == 11


# ---- the choice ---------------------------------------------------------------------


def test_the_best_ratio_is_chosen() -> None:
    good, better, bad = [0.01, 0.03], [0.02, 0.03], [-0.01, -0.03]
    returns = np.array([[good, better, bad]]).transpose(2, 0, 1)  # [days, runs, sets]
    trips = np.full((2, 1, 3), 5)
    place, ratio = choose(returns, trips, 10)
    assert place.tolist() == [1]
    # mean 0.025, deviation 0.005 * sqrt 2
    assert ratio[0] == pytest.approx(0.025 / (0.005 * math.sqrt(2)) * math.sqrt(365))
    # ten round trips in training are enough, nine are not; then the next best is taken
    trips[:, 0, 1] = (5, 4)
    assert choose(returns, trips, 10)[0].tolist() == [0]
    assert choose(returns, np.zeros_like(trips), 10)[0].tolist() == [CASH]
    assert choose(returns, np.zeros_like(trips), 10)[1].tolist() == [0.0]


def test_cash_unless_something_earned() -> None:
    bad, worse, flat = [-0.01, -0.03], [-0.02, -0.03], [0.0, 0.0]
    trips = np.full((2, 2, 3), 99)
    runs = np.array([[bad, worse, flat], [worse, [0.03, -0.01], flat]]).transpose(2, 0, 1)
    assert choose(runs, trips, 10)[0].tolist() == [CASH, 1]
    assert choose(runs[:, :1], trips[:, :1], 10)[0].tolist() == [CASH]
    assert choose(np.zeros((2, 1, 3)), trips[:, :1], 10)[0].tolist() == [CASH]


def test_ties_go_to_the_earlier_set() -> None:
    same = [0.01, 0.03]
    trips = np.full((2, 1, 3), 5)
    assert choose(np.array([[[0.0, 0.0], same, same]]).transpose(2, 0, 1), trips, 10)[0].tolist() == [1]
    assert choose(np.array([[same, same, same]]).transpose(2, 0, 1), trips, 10)[0].tolist() == [0]


def test_day_returns_by_pencil() -> None:
    assert day_returns(np.array([110.0, 99.0, 99.0]), 100.0) == pytest.approx([0.10, -0.10, 0.0])
    assert day_returns(np.array([[110.0, 50.0]]), 100.0) == pytest.approx(np.array([[0.10, -0.50]]))


# ---- a walk against its oracles ---------------------------------------------------------


def market_of(number: int) -> Market:
    return Market(f"M{number}ZAR", f"M{number}", "ZAR", 2, 4, 0.0001, 1e6, 0.01, 1e9, model_spread=0.001,
                  maker_fee=0.0, taker_fee=0.0005)  # fmt: skip


def candles_of(seed: int, count: int = 2, seconds: int = 3600) -> Candles:
    """Markets of trends and ranges."""
    return tuple(
        (market_of(n), series_of(market_rows(Shape(1000.0, 2, 5000.0, 100 * seed + n), DAYS, seconds), seconds))
        for n in range(count)
    )


def settings_of(seconds: int = 3600) -> Settings:
    plain = quick_settings(timeframes=(seconds,))
    return replace(plain, gates=GATES, limits=replace(plain.limits, min_volume_24h=0.0))


class Walked(NamedTuple):
    """A walk and the job it came from."""

    job: WalkJob
    windows: tuple[Window, ...]
    done: Walk

    def unseen(self, run: int = 0) -> Unseen:
        return unseen_of(self.done, self.job.candles, run)


def walked(candles: Candles, *others: Candles, is_stressed: bool = False, settings: Settings | None = None) -> Walked:
    """The steps of an evaluation: all sets to the end of the first training, then on, choose and test unseen."""
    job = WalkJob(candles, settings or settings_of(candles[0][1].seconds), SETS)
    windows = windows_of(candles, GATES)
    past = past_of(job, windows, (candles, *others))
    assert past is not None
    done = walk(later_table(job, windows, (candles, *others)), past, windows, job.settings, is_stressed=is_stressed)
    assert done is not None
    return Walked(job, windows, done)


def best_of(job: WalkJob, window: Window, days: dict[int, dict[int, float]], trips: dict[int, list[int]]) -> int:
    """The choice of one window, from backtests of the sets alone."""
    ratios = []
    for place in range(len(job.sets)):
        days_in = range(window.train_from_ms // DAY_MS, window.train_to_ms // DAY_MS)
        values = [days[place][d] / days[place][d - 1] - 1 for d in days_in]
        count = sum(window.train_from_ms < t - 5000 <= window.train_to_ms for t in trips[place])
        spread = statistics.stdev(values)
        ratios.append(statistics.fmean(values) / spread if count >= 10 and spread > 0 else 0.0)
    return max(range(len(ratios)), key=lambda p: (ratios[p], -p)) if max(ratios) > 0 else CASH


def switched_tape(job: WalkJob, windows: Sequence[Window], chosen: Sequence[int]) -> Tape:
    """The cycle over the unseen days of one run, its settings changed at each window's start; cash never enters."""
    start, end = windows[0].test_from_ms, windows[-1].test_to_ms
    step, held = job.candles[0][1].seconds * 1000, 0
    recorded = [Recorded(BacktestJob(job.candles, replace(job.settings, params=p), start, end)) for p in job.sets]
    tape, executor = Tape(), SimulatedExecutor(job.settings.costs)
    desk = Desk(job.settings.schedule.paper_cash)
    for time in range(start + step, end + 1, step):
        place = next(i for i, w in enumerate(windows) if w.test_from_ms < time <= w.test_to_ms)
        held = chosen[place] if chosen[place] != CASH else held
        shy = 2.0 if chosen[place] == CASH else job.settings.limits.min_confidence  # none is so confident
        settings = replace(job.settings, params=job.sets[held], limits=replace(job.settings.limits,
                                                                              min_confidence=shy))  # fmt: skip
        report = trade_moment(desk, recorded[held].moment(time), executor, tape, settings)[-1]
        desk = clear_cause(report.desk, Cause.WEEKLY_CAP) if is_new_week(time, step) else report.desk
        tape.end_step(time, report)
    return tape


def assert_unseen(found: Unseen, tape: Tape, cash: float) -> None:
    """The unseen days are those of the cycle: equity, turnover and round trips of each day."""
    days = found.days.tolist()
    assert days == sorted(tape.days)
    equity = [cash * float(v) for v in np.cumprod(1 + found.returns)]
    assert equity == pytest.approx([tape.days[d] for d in days], rel=1e-9)
    trips, value = dict.fromkeys(days, 0), dict.fromkeys(days, 0.0)
    for trip in tape.round_trips:
        trips[(trip.closed_ms - 5001) // DAY_MS] += 1
    for fill in tape.fills:
        value[(fill.time_ms - 5001) // DAY_MS] += fill.price * fill.volume
    assert found.round_trips.tolist() == list(trips.values())
    before = [cash, *equity[:-1]]
    assert found.turnover == pytest.approx([value[d] / b for d, b in zip(days, before, strict=True)], rel=1e-9)


@pytest.fixture(scope="module")
def plain() -> Walked:
    return walked(candles_of(WALK_SEED), is_stressed=True)


WALK_SEED = 5


def test_choices_are_those_of_backtests_of_each_set(plain: Walked) -> None:
    job, windows = plain.job, plain.windows
    days, trips = {}, {}
    for place, params in enumerate(job.sets):
        report = run_backtest(BacktestJob(job.candles, replace(job.settings, params=params),
                                          windows[0].train_from_ms, windows[-1].test_to_ms))  # fmt: skip
        days[place] = dict(report.equity_daily)
        trips[place] = [t.closed_ms for t in report.round_trips]
    wanted = [best_of(job, w, days, trips) for w in windows]
    assert plain.done.chosen[:, 0].tolist() == wanted
    assert len(set(wanted)) > 1
    for number, window in enumerate(windows):
        place = wanted[number]
        if place != CASH:
            span = range(window.train_from_ms // DAY_MS, window.train_to_ms // DAY_MS)
            values = [days[place][d] / days[place][d - 1] - 1 for d in span]
            ratio = statistics.fmean(values) / statistics.stdev(values) * math.sqrt(365)
            assert float(plain.done.sharpes[number, 0]) == pytest.approx(ratio, rel=1e-6)
    trials = plain.unseen().trials
    for place in days:
        alone = [days[place][d] / days[place][d - 1] - 1 for d in plain.unseen().days.tolist()]
        assert trials[:, place] == pytest.approx(alone, abs=1e-9)


def test_unseen_days_are_consecutive_and_each_once(plain: Walked) -> None:
    unseen = plain.unseen()
    first = plain.windows[0].test_from_ms // DAY_MS
    assert unseen.days.tolist() == list(range(first, first + 40))
    trained = {d for w in plain.windows[:1] for d in range(w.train_from_ms // DAY_MS, w.train_to_ms // DAY_MS)}
    assert not trained & set(unseen.days.tolist())
    assert len(unseen.returns) == len(unseen.turnover) == len(unseen.trials) == 40
    assert unseen_sharpes(plain.done.unseen)[0] == pytest.approx(
        statistics.fmean(unseen.returns) / statistics.stdev(unseen.returns)
    )
    for number, window in enumerate(unseen.windows):
        assert window.chosen == plain.done.chosen[number, 0]
        part = slice(10 * number, 10 * number + 10)
        assert window.result == pytest.approx(math.prod(1 + r for r in unseen.returns[part]) - 1)
        assert window.round_trips == unseen.round_trips[part].sum()
    assert sum(w.round_trips for w in unseen.windows) > 5


def test_unseen_days_are_those_of_a_cycle_that_changes_its_set(plain: Walked) -> None:
    tape = switched_tape(plain.job, plain.windows, plain.done.chosen[:, 0].tolist())
    assert_unseen(plain.unseen(), tape, plain.job.settings.schedule.paper_cash)


CHOICES = ((0, CASH, CASH, 2), (CASH, 1, 0, CASH), (2, 1, 2, 0), (CASH, CASH, CASH, CASH))


def test_any_change_of_sets_is_that_of_the_cycle(plain: Walked, monkeypatch: pytest.MonkeyPatch) -> None:
    job, windows = plain.job, plain.windows
    past = past_of(job, windows, (job.candles,))
    assert past is not None
    table = later_table(job, windows, (job.candles,))
    for choice in CHOICES:
        rest = iter(choice)
        monkeypatch.setattr("lunobiz.choose", lambda *_, r=rest: (np.array([next(r)]), np.zeros(1)))
        done = walk(table, past, windows, job.settings)
        assert done is not None
        found = unseen_of(done, job.candles)
        assert_unseen(found, switched_tape(job, windows, choice), job.settings.schedule.paper_cash)
        assert [w.chosen for w in found.windows] == list(choice)
        # a window in cash only leaves what the one before it still held
        assert set(choice) != {CASH} or not found.returns.any()


def test_stress_of_a_walk(plain: Walked) -> None:
    job, unseen = plain.job, plain.unseen()
    tape = switched_tape(job, plain.windows, plain.done.chosen[:, 0].tolist())
    series = {m.pair: s for m, s in job.candles}
    cash, late, exits = job.settings.schedule.paper_cash, 0.0, []
    for fill in tape.fills:
        bars = series[fill.pair]
        row = int(np.searchsorted(bars.closed, fill.time_ms - 5000))
        after = min(row + 1, len(bars) - 1)
        sign = -1 if fill.kind.name == "ENTRY" else 1
        late += sign * (fill.price - float(bars.open[after])) * fill.volume
        if sign > 0:
            fall = (fill.price - float(bars.low[row])) / fill.price
            exits.append((fall, fill.price * fill.volume, (fill.time_ms - 5001) // DAY_MS))
    assert unseen.late == pytest.approx(late / cash, rel=1e-9)
    before = dict(zip(unseen.days.tolist(), np.concatenate(([1.0], np.cumprod(1 + unseen.returns)[:-1])), strict=True))
    gaps = dict.fromkeys(unseen.days.tolist(), 0.0)
    worst = sorted(exits, reverse=True)[: math.ceil(0.05 * len(exits))]
    assert worst
    for fall, value, day in worst:
        gaps[day] += fall * value / (cash * before[day])
    assert unseen.gaps == pytest.approx(list(gaps.values()), rel=1e-6)


def test_pair_returns_by_pencil(plain: Walked) -> None:
    unseen = plain.unseen()
    for place, (_, series) in enumerate(plain.job.candles):
        for row, day in ((0, int(unseen.days[0])), (17, int(unseen.days[17])), (39, int(unseen.days[39]))):
            at = np.searchsorted(series.closed, [day * DAY_MS, (day + 1) * DAY_MS])
            start, end = series.close[at]
            assert unseen.pair_returns[row, place] == pytest.approx(float(end / start - 1))


def test_sets_change_between_the_last_row_of_a_day_and_the_first_of_the_next(
    plain: Walked, monkeypatch: pytest.MonkeyPatch
) -> None:
    # forty windows of a day: many boundaries, so that wishes and exits fall on some of them
    job, choice = plain.job, [(0, 1, CASH, 2, 1)[day % 5] for day in range(40)]
    windows = windows_of(job.candles, replace(GATES, test_days=1, windows=40))
    assert len(windows) == 40
    past = past_of(job, windows, (job.candles,))
    assert past is not None
    rest = iter(choice)
    monkeypatch.setattr("lunobiz.choose", lambda *_: (np.array([next(rest)]), np.zeros(1)))
    done = walk(later_table(job, windows, (job.candles,)), past, windows, job.settings)
    assert done is not None
    assert_unseen(unseen_of(done, job.candles), switched_tape(job, windows, choice), job.settings.schedule.paper_cash)


# ---- nothing later is known ------------------------------------------------------------


def garbled(candles: Candles, after_ms: int) -> Candles:
    """Other candles after a time, of the same markets."""
    changed = []
    for market, series in candles:
        is_later = series.closed > after_ms
        other = {n: np.where(is_later, np.roll(getattr(series, n), 555)[...] * 1.5, getattr(series, n))
                 for n in ("open", "high", "low", "close", "volume")}  # fmt: skip
        changed.append((market, replace(series, **other)))
    return tuple(changed)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_choice_knows_nothing_after_its_training(plain: Walked, number: int) -> None:
    cut = plain.windows[number].train_to_ms
    other = walked(garbled(plain.job.candles, cut))
    assert other.done.chosen[: number + 1].tolist() == plain.done.chosen[: number + 1].tolist()
    assert other.done.sharpes[: number + 1].tolist() == plain.done.sharpes[: number + 1].tolist()
    days = int(np.searchsorted(plain.unseen().days, cut // DAY_MS))
    assert other.unseen().returns[:days].tolist() == plain.unseen().returns[:days].tolist()
    assert not np.array_equal(other.unseen().trials, plain.unseen().trials)


@pytest.mark.parametrize("day", [1, 13, 29])
def test_an_unseen_day_knows_nothing_after_it(plain: Walked, day: int) -> None:
    cut = plain.windows[0].test_from_ms + day * DAY_MS
    other = walked(garbled(plain.job.candles, cut))
    assert other.unseen().returns[:day].tolist() == plain.unseen().returns[:day].tolist()
    assert other.unseen().trials[:day].tolist() == plain.unseen().trials[:day].tolist()
    assert other.unseen().trials[day:].tolist() != plain.unseen().trials[day:].tolist()


def test_runs_side_by_side_are_as_if_alone(plain: Walked) -> None:
    first = plain.job.candles
    start = plain.windows[0].train_to_ms
    runs = (candles_of(7), first, permuted(first, start, 5))
    many = walked(runs[0], *runs[1:])
    for place, candles in enumerate(runs):
        alone = walked(candles)
        assert many.done.chosen[:, place].tolist() == alone.done.chosen[:, 0].tolist()
        assert many.unseen(place).returns == pytest.approx(alone.unseen().returns, abs=1e-12)
        assert many.unseen(place).round_trips.tolist() == alone.unseen().round_trips.tolist()
    # shuffled markets may share one run's past: before the shuffle they are that run
    job, windows = WalkJob(runs[1], plain.job.settings, SETS), plain.windows
    whole = past_of(job, windows, runs)
    assert whole is not None
    shared = [permuted(first, start, seed) for seed in (5, 6)]
    done = walk(later_table(job, windows, shared), whole.of_run(1), windows, job.settings)
    assert done is not None
    assert unseen_of(done, first, 0).returns == pytest.approx(many.unseen(2).returns, abs=1e-12)
    assert done.chosen[0].tolist() == [int(plain.done.chosen[0, 0])] * 2
    assert not np.array_equal(unseen_of(done, first, 0).trials, unseen_of(done, first, 1).trials)


def test_a_market_that_ends_stays_to_the_end() -> None:
    whole = candles_of(WALK_SEED)
    windows = windows_of(whole, GATES)
    gone = windows[1].test_from_ms + 5 * DAY_MS + 7 * HOUR_MS
    cut = int(np.searchsorted(whole[1][1].closed, gone, side="right"))
    candles = decision_candles((whole[0], (whole[1][0], whole[1][1].part(0, cut))), settings_of())
    assert [m.pair for m, _ in candles] == ["M0ZAR", "M1ZAR"]
    assert windows_of(candles, GATES) == windows
    ended = walked(candles, is_stressed=True)
    tape = switched_tape(ended.job, windows, ended.done.chosen[:, 0].tolist())
    assert_unseen(ended.unseen(), tape, ended.job.settings.schedule.paper_cash)
    found, before = ended.unseen(), walked(whole).unseen()
    assert found.pair_returns.shape == (40, 2)
    assert found.pair_returns[:15].tolist() == before.pair_returns[:15].tolist()
    assert not found.pair_returns[16:, 1].any()
    assert found.returns[:15].tolist() == before.returns[:15].tolist()


def test_a_walk_can_be_cancelled(plain: Walked) -> None:
    job, windows = plain.job, plain.windows
    assert past_of(job, windows, (job.candles,), lambda done, total: done < 5) is None
    past, table = past_of(job, windows, (job.candles,)), later_table(job, windows, (job.candles,))
    assert past is not None
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int) -> bool:
        seen.append((done, total))
        return True

    assert walk(table, past, windows, job.settings, watch) is not None
    shares = [done / total for done, total in seen]
    assert shares == sorted(shares)
    for stop in (3, seen[-1][0]):

        def until(done: int, total: int, stop: int = stop) -> bool:
            return done < stop

        assert walk(table, past, windows, job.settings, until) is None


def test_decision_candles() -> None:
    rows = market_rows(Shape(1000.0, 2, 5000.0, 3), 5, 1800)
    late, early = series_of(rows[:-1], 1800), series_of(rows[:37], 1800)
    empty = series_of(rows[:0], 1800)
    found = decision_candles(((market_of(2), late), (market_of(1), early), (market_of(0), empty)), settings_of(7200))
    assert [m.pair for m, _ in found] == ["M1ZAR", "M2ZAR"]
    # 239 half hours are 59 whole candles of two hours; the last of 37 has its time over, for the other market went on
    assert [len(s) for _, s in found] == [10, 59]
    assert {s.seconds for _, s in found} == {7200}
    assert float(found[0][1].close[0]) == rows[3, 4]


# ---- shuffled markets ----------------------------------------------------------------------


def shapes(series: Series, is_in: Flags) -> Floats:
    """High, low, close and worth of candles against their open, a row each."""
    columns = [np.log(v[is_in] / series.open[is_in]) for v in (series.high, series.low, series.close)]
    return np.column_stack((*columns, (series.volume * series.close)[is_in]))


def in_order(rows: Floats) -> Floats:
    return rows[np.lexsort(rows.T)]


def gaps_of(series: Series) -> Floats:
    """The step from each close to the next open."""
    return np.log(series.open[1:] / series.close[:-1])


def gappy(seed: int, count: int = 2) -> Candles:
    """Markets of four hours whose opens are not the closes before, and whose volumes differ."""
    made = []
    for market, series in candles_of(seed, count, 14_400):
        rng = np.random.default_rng(seed)
        jump = np.exp(rng.normal(0, 0.003, len(series)))
        scale = np.cumprod(jump)
        made.append((market, replace(
            series, open=series.open * scale, high=series.high * scale, low=series.low * scale,
            close=series.close * scale)))  # fmt: skip
    return tuple(made)


FROM_MS = START_MS + 70 * DAY_MS


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_shuffle_keeps_the_ends_the_past_and_every_candle(seed: int) -> None:
    candles = gappy(seed)
    made = permuted(candles, FROM_MS, seed)
    for (market, old), (same, new) in zip(candles, made, strict=True):
        assert market == same
        assert new.opened.tolist() == old.opened.tolist()
        before, after = old.opened < FROM_MS, old.opened >= FROM_MS
        for name in ("open", "high", "low", "close", "volume"):
            assert getattr(new, name)[before].tolist() == getattr(old, name)[before].tolist()
        assert new.close[0] == old.close[0]
        assert float(new.close[-1]) == pytest.approx(float(old.close[-1]), rel=1e-9)
        # every body and every gap from then on, each once, and none from before
        assert in_order(shapes(new, after)) == pytest.approx(in_order(shapes(old, after)), rel=1e-8, abs=1e-11)
        cut = int(before.sum()) - 1
        assert np.sort(gaps_of(new)[cut:]) == pytest.approx(np.sort(gaps_of(old)[cut:]), abs=1e-11)
        moved = (np.abs(new.close[after] / old.close[after] - 1) > 1e-9).mean()
        assert moved > 0.95
        assert (new.high >= np.maximum(new.open, new.close) * (1 - 1e-12)).all()
        assert (new.low <= np.minimum(new.open, new.close) * (1 + 1e-12)).all()


def order_of(old: Series, new: Series, is_in: Flags) -> list[int]:
    """Which candle's worth stands in each place."""
    was, now = (old.volume * old.close)[is_in], (new.volume * new.close)[is_in]
    return np.abs(was[None, :] - now[:, None]).argmin(axis=1).tolist()  # type: ignore[no-any-return]


def test_all_markets_are_shuffled_alike_and_bodies_apart_from_gaps() -> None:
    candles = gappy(4, 3)
    made = permuted(candles, FROM_MS, 9)
    after = candles[0][1].opened >= FROM_MS
    orders = [order_of(old, new, after) for (_, old), (_, new) in zip(candles, made, strict=True)]
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == list(range(int(after.sum())))
    cut = int((~after).sum()) - 1
    gaps = []
    for (_, old), (_, new) in zip(candles, made, strict=True):
        was, now = gaps_of(old)[cut:], gaps_of(new)[cut:]
        gaps.append(np.abs(was[None, :] - now[:, None]).argmin(axis=1).tolist())
    assert gaps[0] == gaps[1] == gaps[2]
    assert gaps[0] != orders[0]


def test_seeds_reproduce_and_differ() -> None:
    candles = gappy(5)
    one, two, other = (permuted(candles, FROM_MS, seed) for seed in (3, 3, 4))
    assert [s.close.tolist() for _, s in one] == [s.close.tolist() for _, s in two]
    assert [s.close.tolist() for _, s in one] != [s.close.tolist() for _, s in other]


def test_a_shuffle_keeps_who_is_listed_when() -> None:
    (a, whole), (b, late), (c, early) = gappy(6, 3)
    begins, ended = FROM_MS + 20 * DAY_MS, FROM_MS + 50 * DAY_MS
    late = late.part(int(np.searchsorted(late.opened, begins)), len(late))
    early = early.part(0, int(np.searchsorted(early.opened, ended)))
    candles = ((a, whole), (b, late), (c, early))
    made = permuted(candles, FROM_MS, 2)
    for (_, old), (_, new) in zip(candles, made, strict=True):
        assert new.opened.tolist() == old.opened.tolist()
        assert float(new.close[-1]) == pytest.approx(float(old.close[-1]), rel=1e-9)
        assert float(new.close[0]) == pytest.approx(float(old.close[0]), rel=1e-12)
    # candles stay in their third: before the second market, with all three, after the last
    shuffled = [s for _, s in made]
    step = 4 * HOUR_MS
    for start, end in itertools.pairwise((FROM_MS, begins + step, ended, int(whole.closed[-1]))):
        for was, now in zip((whole, late, early), shuffled, strict=True):
            is_in = (was.opened >= start) & (was.opened < end)
            assert in_order(shapes(now, is_in)) == pytest.approx(in_order(shapes(was, is_in)), rel=1e-8, abs=1e-11)
            if is_in.any():
                at = int(np.flatnonzero(is_in)[-1])
                assert float(now.close[at]) == pytest.approx(float(was.close[at]), rel=1e-9)
    together = (whole.opened >= begins + step) & (whole.opened < ended)
    order = order_of(whole, shuffled[0], together)
    for was, now in ((late, shuffled[1]), (early, shuffled[2])):
        assert order_of(was, now, (was.opened >= begins + step) & (was.opened < ended)) == order


def test_holes_are_filled_before_a_shuffle() -> None:
    (a, whole), (b, other) = gappy(7)
    keep = np.ones(len(whole), dtype=bool)
    keep[[500, 501, 502, 600]] = False
    holed = Series(whole.seconds, *(getattr(whole, n)[keep] for n in ("opened", "open", "high", "low", "close",
                                                                     "volume")))  # fmt: skip
    filled = whole_candles(holed)
    assert filled.opened.tolist() == whole.opened.tolist()
    for row in range(len(whole)):
        candle = filled.candle(row)
        if keep[row]:
            assert candle == whole.candle(row)
        else:
            close = float(filled.close[row - 1])
            assert (candle.open, candle.high, candle.low, candle.close, candle.volume) == (close,) * 4 + (0.0,)
    assert float(filled.close[502]) == float(whole.close[499])
    assert whole_candles(whole) is whole
    made = permuted(((a, holed), (b, other)), FROM_MS, 1)
    assert [len(s) for _, s in made] == [len(whole)] * 2
    assert (made[0][1].volume == 0).sum() == (filled.volume == 0).sum()
    assert float(made[0][1].close[-1]) == pytest.approx(float(holed.close[-1]), rel=1e-9)


# ---- the choice of now: what PAPER trades is what the walk-forward would have chosen ----

CHOICE_FEES = (0.0004, 0.0006)
CHOICE_LIMITS = GateLimits(warm_up_days=70, train_days=120, embargo_days=5, test_days=30, windows=1, min_windows=1)
CHOICE_DAYS = 230

# quick sets, so that a short training has round trips to choose by
CHOICE_SETS = tuple(
    StrategyParams(breakout=hours, exit_channel=24, stop_atr=2.0, trail_atr=3.0, squeeze=96, reversion=24,
                   max_holding=96, trend_efficiency=0.1)
    for hours in (24, 36, 48)
)  # fmt: skip


def choice_settings(limits: GateLimits = CHOICE_LIMITS) -> Settings:
    return Settings(gates=limits, schedule=Schedule(pairs=TRIAL_PAIRS, timeframes=(14_400,)),
                    limits=RiskLimits(min_edge=0.5, min_confidence=0.3))  # fmt: skip


def planted(kind: str = "E", seed: int = 1, strength: float = 0.6) -> Candles:
    """Three markets of 230 days."""
    return self_market(TrialCase(kind, seed, strength, CHOICE_FEES, MarketModel(days=CHOICE_DAYS, unseen_days=80)))


@pytest.mark.parametrize(("kind", "seed"), [("E", 1), ("E", 2), ("A0", 1), ("A0", 2), ("A0", 4)])
def test_the_current_choice_is_that_of_a_window_whose_training_ends_that_day(kind: str, seed: int) -> None:
    """The choice is asked for in the middle of the day after the training; the candles go on long after it."""
    candles, wanted = planted(kind, seed), choice_settings()
    (window,) = windows_of(candles, CHOICE_LIMITS)
    tested = walk_real(GateJob(candles, wanted, sets=CHOICE_SETS), (window,))
    assert tested is not None
    (told,) = tested.unseen.windows
    choice = current_choice(candles, wanted, CHOICE_SETS, window.train_to_ms + DAY_MS // 2)
    assert told.train_sharpe != 0
    assert choice == Choice(told.chosen, told.train_sharpe, window.train_from_ms, window.train_to_ms)


def test_candles_after_the_last_whole_day_change_nothing() -> None:
    candles, now_ms = planted(), span_of(s for _, s in planted())[1] - 20 * DAY_MS
    known = tuple((m, closed_only(s, now_ms)) for m, s in candles)
    whole, cut = (current_choice(c, choice_settings(), CHOICE_SETS, now_ms) for c in (candles, known))
    assert whole == cut
    assert whole.chosen is not None


def test_no_set_that_earned_its_costs_is_cash() -> None:
    """With fees of 5 % a side nothing can earn."""
    dear = tuple((replace(m, maker_fee=0.05, taker_fee=0.05), s) for m, s in planted("A0"))
    now_ms = span_of(s for _, s in dear)[1]
    assert current_choice(dear, choice_settings(), CHOICE_SETS, now_ms).chosen == CASH


def test_too_little_history_tells_how_many_days_are_missing() -> None:
    """190 days are needed; the markets have days 0 to 229, listed from START_MS on."""
    candles = planted()
    first = span_of(s for _, s in candles)[0]
    for days, missing in ((190, 0), (189, 1), (62, 128), (0, 190)):
        found = current_choice(candles, choice_settings(), CHOICE_SETS, first + days * DAY_MS + 1)
        assert (found.missing_days, found.chosen is None) == (missing, missing > 0)
    late = first + (CHOICE_DAYS + 3) * DAY_MS  # the last three days have not come
    assert current_choice(candles, choice_settings(), CHOICE_SETS, late).missing_days == 3
    assert current_choice((), choice_settings(), CHOICE_SETS, late).missing_days == 190


def test_one_market_with_the_whole_history_is_enough_as_it_is_for_the_windows() -> None:
    candles = planted()
    short = ((candles[0][0], candles[0][1]), (candles[1][0], candles[1][1].part(600, len(candles[1][1]))))
    last = span_of(s for _, s in candles)[1]
    assert missing_days(short, CHOICE_LIMITS, last) == 0
    assert missing_days(short[1:], CHOICE_LIMITS, last) == 60  # 600 candles of 4 h are 100 days; 130 are left of 190
