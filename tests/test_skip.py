"""A lane that leaves candles out against lanes that visit every one: the same fills, the same money, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import lunobiz
from lunobiz import (
    DAY_MS,
    LaneJob,
    LaneResult,
    Lanes,
    StrategyParams,
    floor_to,
    grid_floor,
    lane_table,
    run_every_row,
    run_lanes,
    skip_rows,
)
from rough import SETS, Scene, rough_rows, scene

HOUR_MS = 3_600_000


def job_of(rough: Scene, sets: tuple[StrategyParams, ...] = SETS) -> LaneJob:
    """The scene under some sets, with room for all orders, on two runs of markets."""
    limits = replace(rough.settings.limits, orders_per_minute=100, orders_per_day=10_000)
    rng = np.random.default_rng(77)
    seconds = rough.candles[0][1].seconds
    other = tuple((m, lunobiz.series_of(rough_rows(rng, seconds), seconds)) for m, _ in rough.candles)
    return LaneJob((rough.candles, other), replace(rough.settings, limits=limits), sets, rough.start_ms, rough.end_ms)


def both_ways(job: LaneJob, past: tuple[Lanes, Lanes] | None = None) -> list[tuple[Lanes, LaneResult]]:
    """The job with and without leaving candles out, from the start or from where lanes stand."""
    table, done = lane_table(job), []
    for place, run in enumerate((skip_rows, run_every_row)):
        lanes = Lanes(table, job.settings)
        if past is not None:
            lanes.go_on(past[place].state())
        lanes.fills = []
        result = run(table, lanes)
        assert result is not None
        done.append((lanes, result))
    return done


def assert_same(done: list[tuple[Lanes, LaneResult]]) -> int:
    """All that both did is the same; the number of fills."""
    (lanes, result), (every, wanted) = done
    assert sorted(lanes.fills or ()) == sorted(every.fills or ())
    for name in ("days", "equity", "turnover", "round_trips"):
        assert np.array_equal(getattr(result, name), getattr(wanted, name)), name
    for name in ("cash", "equity", "day_line", "week_line", "until", "is_halted", "volume", "wanted", "selling", "line",
                 "stop", "kind", "leaving", "opened"):
        assert np.array_equal(vars(lanes)[name], vars(every)[name]), name
    held = every.volume > 0
    assert np.array_equal(lanes.best[held & (every.kind > 0)], every.best[held & (every.kind > 0)])
    assert lanes.day == every.day
    return len(lanes.fills or ())


@pytest.mark.parametrize("seed", range(60, 84))
def test_nothing_happens_in_a_candle_that_is_left_out(seed: int) -> None:
    assert_same(both_ways(job_of(scene(seed))))


@pytest.mark.parametrize("action", ["close", "hold"])
@pytest.mark.parametrize("seed", [24, 31, 35, 61])
def test_caps_are_seen_between_events(seed: int, action: str) -> None:
    rough = scene(seed, daily_loss_cap=0.004, weekly_loss_cap=0.01, daily_cap_action=action, risk_per_trade=0.02,
                  max_positions=3, cooldown_hours=30.0)  # fmt: skip
    done = both_ways(job_of(rough))
    assert assert_same(done) > 20


@pytest.mark.parametrize("seed", [8, 23, 31, 33, 62])
def test_lanes_that_leave_candles_out_go_on_from_any_midnight(seed: int) -> None:
    whole = job_of(scene(seed, max_positions=8))
    whole = replace(whole, settings=replace(
        whole.settings, schedule=replace(whole.settings.schedule, entry_timeout_candles=4)))
    step = whole.runs[0][0][1].seconds * 1000
    for days in (5, 11, 17):
        cut = (whole.start_ms // DAY_MS + days) * DAY_MS
        first = both_ways(replace(whole, end_ms=cut))
        assert_same(first)
        later = both_ways(replace(whole, start_ms=cut + step), (first[0][0], first[1][0]))
        assert assert_same(later) > 0


def test_a_long_hold_is_found_by_columns() -> None:
    # stops so wide and channels so long that positions last for more candles than are looked at one by one
    slow = replace(SETS[0], stop_atr=9.0, trail_atr=12.0, exit_channel=200, max_holding=150)
    rough = scene(8)
    done = both_ways(job_of(rough, (slow, replace(slow, max_holding=600))))
    assert assert_same(done) > 10
    bought = {}
    longest = 0
    for row, cell, name, _, _ in sorted(done[0][0].fills or ()):
        if name == "entry":
            bought.setdefault(cell, row)
        elif cell in bought:
            longest = max(longest, row - bought.pop(cell))
    assert longest > lunobiz.NEAR_ROWS


def test_few_candles_are_visited(monkeypatch: pytest.MonkeyPatch) -> None:
    visited = []
    act = lunobiz.LaneRun._act

    def watched(self: lunobiz.LaneRun, row: int) -> None:
        visited.append(row)
        act(self, row)

    monkeypatch.setattr(lunobiz.LaneRun, "_act", watched)
    job = job_of(scene(8), SETS[:1])
    table = lane_table(replace(job, runs=job.runs[:1]))
    lanes = Lanes(table, job.settings)
    lanes.fills = []
    run_lanes(table, lanes)
    assert lanes.fills
    assert len(visited) == len(set(visited)) < len(table.times) / 2
    assert {row for row, *_ in lanes.fills} <= set(visited)


def test_few_lanes_skip_and_many_busy_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(lunobiz, "skip_rows", lambda *_: chosen.append("skip"))
    monkeypatch.setattr(lunobiz, "run_every_row", lambda *_: chosen.append("every"))
    job = job_of(scene(8))
    table = lane_table(job)
    run_lanes(table, Lanes(table, job.settings))
    crowded = replace(table, wishes=table.wishes.at(np.zeros(100_000, dtype=np.int64)))
    run_lanes(crowded, Lanes(crowded, job.settings))
    throttled = replace(job.settings, limits=replace(job.settings.limits, orders_per_day=1))
    run_lanes(table, Lanes(table, throttled))
    assert chosen == ["skip", "every", "every"]


SCALED = st.tuples(st.integers(0, 8), st.integers(-(10**14), 10**14), st.floats(-1.5, 1.5))


@given(SCALED)
@hypothesis_settings(max_examples=300)
def test_one_value_is_rounded_as_a_column_is(drawn: tuple[int, int, float]) -> None:
    scale, steps, off = drawn
    value = (steps + off) / 10.0**scale
    assert floor_to(value, 10.0**scale) == float(grid_floor(np.array(value), 10.0**scale))
