"""A backtest by pencil: what it fills, pays, counts and reports, and what it does with data that end."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, cast

import numpy as np
import pytest

import lunobiz
from candles import HOURLY
from lunobiz import (
    BacktestJob,
    BacktestReport,
    Base,
    DataError,
    Floats,
    Market,
    OrderKind,
    Schedule,
    Settings,
    SetupColumns,
    StrategyParams,
    report_json,
    run_backtest,
    series_of,
)
from recordings import DAY_MS, START_MS, Shape, lines, market_rows, quick_settings

HOUR_MS = 3_600_000
QUIET_DAYS = 64  # before the scene: more than any memory needs
SCENE_MS = START_MS + QUIET_DAYS * DAY_MS
D = Decimal
# a tick of 0.01, a lot of 0.0001 and a spread of 0.2 %: a close of 100 is a bid of 99.90 and an ask of 100.10
PENCIL = Market("AAAZAR", "AAA", "ZAR", 2, 4, 0.01, 1e6, 0.01, 1e6, model_spread=0.002)


def scene(*candles: Sequence[float]) -> Floats:
    """Weeks of hours at 100, so wide that no stop trails, then candles of open, high, low, close and perhaps volume."""
    quiet = [(100.0, 102.0, 98.0, 100.0, 1000.0)] * (QUIET_DAYS * 24)
    rows = quiet + [(*c[:4], c[4] if len(c) > 4 else 1000.0) for c in candles]
    times = START_MS + np.arange(len(rows)) * HOUR_MS
    return np.column_stack((times, np.array(rows)))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, frozenset[int]]:
    """The candles of the scene at which the only strategy wants in and out; the stop lies 5 below the close."""
    told: dict[str, frozenset[int]] = {"in": frozenset(), "out": frozenset()}

    def flags(base: Base, name: str) -> lunobiz.Flags:
        return np.isin((base.series.opened - SCENE_MS) // HOUR_MS, sorted(told[name]))

    def strategy(base: Base, params: StrategyParams) -> SetupColumns:
        one = np.ones(len(base.series))
        extra = tuple((name, one) for name in ("high", "low", "efficiency"))
        return SetupColumns(lunobiz.MOMENTUM, flags(base, "in"), flags(base, "out"), one, 5 * one, 0.5 * one, extra)

    def silent(name: str) -> object:
        def nothing(base: Base, params: StrategyParams) -> SetupColumns:
            no, zero = np.zeros(len(base.series), dtype=bool), np.zeros(len(base.series))
            extra = tuple((n, zero) for n in ("width", "top", "z", "mean"))
            return SetupColumns(name, no, no, zero, zero, zero, extra)

        return nothing

    monkeypatch.setattr(lunobiz, "momentum_breakout", strategy)
    monkeypatch.setattr(lunobiz, "volatility_expansion", silent(lunobiz.EXPANSION))
    monkeypatch.setattr(lunobiz, "mean_reversion", silent(lunobiz.REVERSION))
    return told


def job_of(data: Mapping[str, Floats], settings: Settings | None = None, **changes: object) -> BacktestJob:
    """A job over hourly candles from the start of the scene to the end of the data."""
    candles = tuple((replace(PENCIL, pair=p, base=p[:3]), series_of(rows, 3600)) for p, rows in data.items())
    end_ms = max(int(s.closed[-1]) for _, s in candles)
    job = BacktestJob(candles, settings or HOURLY, SCENE_MS, end_ms, keeps_decisions=True)
    return replace(job, **changes)  # type: ignore[arg-type]


def down(value: Decimal, places: str) -> Decimal:
    return value.quantize(D(places), rounding=ROUND_FLOOR)


def fee(price: Decimal, volume: Decimal, rate: str) -> Decimal:
    return (price * volume * D(rate)).quantize(D("1e-8"), rounding=ROUND_CEILING)


def risked_volume(cash: Decimal, limit: Decimal, stop: Decimal) -> Decimal:
    """Half a percent of equity over what one unit loses with fees and twice the slippage."""
    loss = limit * D("1.004") - stop * D("0.998") * D("0.994")
    return down(cash * D("0.005") / loss, "0.0001")


def assert_money(report: BacktestReport, fills: Sequence[tuple[str, Decimal, Decimal, Decimal]]) -> None:
    """Kind, price, volume and fee of every fill, the cash at the end, and what all that adds up to."""
    found = [(f.kind.value, f.price, f.volume, f.fee_counter) for f in report.fills]
    assert found == [(k, float(p), float(v), float(c)) for k, p, v, c in fills]
    signs = [-1 if f.side.value == "buy" else 1 for f in report.fills]
    cash = D(100_000) + sum((s * p * v - c for s, (_, p, v, c) in zip(signs, fills, strict=True)), D(0))
    assert report.desk.cash == pytest.approx(float(cash), abs=1e-7)
    assert report.metrics.fees_paid == pytest.approx(float(sum(c for *_, c in fills)), abs=1e-7)


def test_a_stop_by_pencil(script: dict[str, frozenset[int]]) -> None:
    script["in"] = frozenset({0})
    rows = scene(
        (100, 100.05, 99.95, 100),  # wants in: rests at the bid of 99.90
        (100, 100.10, 99.90, 100),  # touches the limit: no fill
        (100, 100.10, 99.80, 100),  # too late: the order has timed out
    )
    report = run_backtest(job_of({"AAAZAR": rows}))
    assert [(o.kind, o.limit, o.stop) for o in report.orders] == [(OrderKind.ENTRY, 99.90, 95.0)]
    assert report.fills == ()

    rows = scene(
        (100, 100.05, 99.95, 100),  # wants in
        (100, 100.10, 99.80, 100),  # trades through 99.90: filled there as maker; the stop at 95 rests from now on
        (99, 99.00, 94.50, 96),  # falls through the stop: sold half a spread and the slippage below it
        (96, 96.50, 95.50, 96),
    )
    report = run_backtest(job_of({"AAAZAR": rows}))
    volume = risked_volume(D(100_000), D("99.90"), D(95))
    half = (D("96.10") - D("95.90")) / D(96) / 2  # the quote of a close of 96, rounded against us
    sold = down(D(95) * (1 - half) * D("0.999"), "0.01")
    fees = fee(D("99.90"), volume, "0.004"), fee(sold, volume, "0.006")
    assert_money(report, [("entry", D("99.90"), volume, fees[0]), ("protection", sold, volume, fees[1])])
    (trip,) = report.round_trips
    assert trip.profit == pytest.approx(float((sold - D("99.90")) * volume - sum(fees)), abs=1e-7)
    assert trip.profit == pytest.approx(-500, rel=0.02), "half a percent of 100,000"
    assert (trip.reason, trip.strategy) == ("protection", lunobiz.MOMENTUM)
    assert (trip.opened_ms, trip.closed_ms) == (SCENE_MS + 2 * HOUR_MS + 5000, SCENE_MS + 3 * HOUR_MS + 5000)
    protections = [o for o in report.orders if o.kind is OrderKind.PROTECTION]
    assert [(o.stop, o.limit, o.volume) for o in protections] == [(95.0, 94.05, float(volume))]
    # equity falls from 100,000 only by what was lost; what is held counts after its exit's fee
    assert report.metrics.max_drawdown.value == pytest.approx(-trip.profit / 100_000, rel=1e-9)
    assert report.metrics.exposure_time == pytest.approx(1 / 5), "held at one of five closes"


def test_a_gap_below_the_stop_sells_at_the_open_or_at_the_next(script: dict[str, frozenset[int]]) -> None:
    script["in"] = frozenset({0})
    start = ((100, 100.05, 99.95, 100), (100, 100.10, 99.80, 100))
    rows = scene(*start, (94.6, 95.0, 94.0, 94.6))  # opens below the stop: the open counts
    report = run_backtest(job_of({"AAAZAR": rows}))
    bid, ask = D("94.50"), D("94.70")  # of a close of 94.6, rounded outward
    sold = down(D("94.6") * (1 - (ask - bid) / ((ask + bid) / 2) / 2) * D("0.999"), "0.01")
    assert sold >= D("94.05")
    assert report.fills[-1].price == float(sold)

    # far below the stop and below its limit of 94.05: it is called back, and the next open is sold at
    rows = scene(*start, (93, 93.5, 92, 93), (93, 93.9, 92.5, 93), (93.5, 94.5, 93.4, 94.4))
    report = run_backtest(job_of({"AAAZAR": rows}))
    last = report.fills[-1]
    half = (D("93.10") - D("92.90")) / D(93) / 2
    assert (last.kind, last.time_ms) == (OrderKind.EXIT, SCENE_MS + 4 * HOUR_MS + 5000)
    assert last.price == float(down(D(93) * (1 - half) * D("0.999"), "0.01"))
    assert report.round_trips[0].reason == "stop"


def test_an_exit_by_pencil(script: dict[str, frozenset[int]]) -> None:
    script["in"], script["out"] = frozenset({0}), frozenset({2})
    rows = scene(
        (100, 100.05, 99.95, 100),  # wants in
        (100, 100.10, 99.80, 100, 300.0),  # thin: only a tenth of 300 fills, the order times out
        (103, 104.00, 102.9, 104),  # wants out at its close: the protection is taken off, the sale goes out
        (104.5, 105, 104, 104.6),  # sold at this open, less half the spread and the slippage
    )
    report = run_backtest(job_of({"AAAZAR": rows}))
    volume = D("30.0000")
    half = (D("104.71") - D("104.49")) / (D("104.60") * 2)  # the quote of a close of 104.6
    sold = down(D("104.5") * (1 - half) * D("0.999"), "0.01")
    fees = fee(D("99.90"), volume, "0.004"), fee(sold, volume, "0.006")
    assert_money(report, [("entry", D("99.90"), volume, fees[0]), ("exit", sold, volume, fees[1])])
    (trip,) = report.round_trips
    assert trip.reason == "trend over"
    assert trip.profit == pytest.approx(float((sold - D("99.90")) * volume - sum(fees)), abs=1e-7)
    assert not report.desk.orders
    assert not report.desk.positions
    assert report.metrics.profit_factor is None
    assert report.metrics.expectancy == trip.profit
    assert report.metrics.total_return == pytest.approx(trip.profit / 100_000, abs=1e-12)


def test_a_study_of_other_fees_pays_them(script: dict[str, frozenset[int]]) -> None:
    script["in"], script["out"] = frozenset({0}), frozenset({2})
    rows = scene((100, 100.05, 99.95, 100), (100, 100.10, 99.80, 100), (103, 104, 102.9, 104), (104.5, 105, 104, 104.6))
    job = job_of({"AAAZAR": rows})
    cheap = replace(job, candles=tuple((lunobiz.with_fees(m, 0.0, 0.001, "study"), s) for m, s in job.candles))
    entry, leave = run_backtest(cheap).fills
    assert entry.fee_counter == 0
    assert leave.fee_counter == float(fee(D(repr(leave.price)), D(repr(leave.volume)), "0.001"))


# ---- counts, days, holding -------------------------------------------------


def two_markets(days: float = 90) -> dict[str, Floats]:
    """Two lively hourly markets."""
    shapes = {"AAAZAR": Shape(900.0, 2, 2e3, 51), "BBBZAR": Shape(30.0, 2, 6e4, 52)}
    return {pair: market_rows(shape, days, 3600) for pair, shape in shapes.items()}


@pytest.fixture(scope="module")
def lively() -> BacktestReport:
    """A run with trades in two markets and two timeframes."""
    report = run_backtest(job_of(two_markets(), quick_settings(timeframes=(3600, 14400))))
    assert len(report.round_trips) >= 10
    return report


def test_every_market_and_timeframe_has_a_decision_at_each_of_its_closes(lively: BacktestReport) -> None:
    hours = (90 - QUIET_DAYS) * 24 + 1  # both ends
    assert len(lively.decisions) == 2 * (hours + (hours + 3) // 4)
    assert sum(count for _, count in lively.codes) == len(lively.decisions)
    keys = [(d.time_ms, d.pair, d.timeframe_s) for d in lively.decisions]
    assert len(set(keys)) == len(keys)
    assert keys == sorted(keys)
    assert all(d.time_ms - d.opened_ms == d.timeframe_s * 1000 + 5000 for d in lively.decisions)
    assert all(d.why for d in lively.decisions)


def test_only_what_is_asked_for_is_kept(lively: BacktestReport) -> None:
    job = job_of(two_markets(), quick_settings(timeframes=(3600, 14400)), keeps_decisions=False)
    report = run_backtest(job)
    assert report.decisions == ()
    assert replace(report, decisions=lively.decisions) == lively


def test_equity_is_told_for_every_day(lively: BacktestReport) -> None:
    days = [day for day, _ in lively.equity_daily]
    first = SCENE_MS // DAY_MS - 1  # the close at midnight ends the day before
    assert days == list(range(first, first + 91 - QUIET_DAYS))
    assert lively.equity_daily[0][1] == 100_000
    assert lively.equity_daily[-1][1] == lunobiz.equity(lively.desk)
    returns = np.diff([100_000, *(value for _, value in lively.equity_daily)]) / [
        100_000, *(value for _, value in lively.equity_daily[:-1])
    ]  # fmt: skip
    told = lively.metrics.daily_returns
    assert (told.best, told.worst_day) == pytest.approx((returns.max(), returns.min()))
    assert (told.mean, told.std) == pytest.approx((returns.mean(), returns.std(ddof=1)))
    assert (told.p05, told.p50, told.p95) == pytest.approx(tuple(np.percentile(returns, (5, 50, 95))))


def test_the_books_balance(lively: BacktestReport) -> None:
    """Start, less what was bought, plus what was sold, less all fees, is the cash; trips are made of fills."""
    signs = {"buy": -1, "sell": 1}
    cash = 100_000 + sum(signs[f.side.value] * f.price * f.volume - f.fee_counter for f in lively.fills)
    assert lively.desk.cash == pytest.approx(cash, abs=1e-6)
    assert lively.metrics.fees_paid == pytest.approx(sum(f.fee_counter for f in lively.fills), abs=1e-6)
    for pair in ("AAAZAR", "BBBZAR"):
        held = sum(-signs[f.side.value] * f.volume for f in lively.fills if f.pair == pair)
        position, dust = lively.desk.position(pair), sum(v for p, v in lively.desk.dust if p == pair)
        assert held == pytest.approx((position.volume if position else 0) + dust, abs=1e-9)
    assert lively.metrics.round_trips == len(lively.round_trips)


def test_holding_is_the_mean_of_all_markets_after_two_taker_fees() -> None:
    data = two_markets(66)
    report = run_backtest(job_of(data))
    kept = D("0.994") ** 2
    returns = []
    for rows in data.values():
        inside = rows[rows[:, 0] + HOUR_MS >= SCENE_MS]
        returns.append(D(repr(float(inside[-1, 4]))) / D(repr(float(inside[0, 4]))) * kept - 1)
    assert report.metrics.buy_and_hold == pytest.approx(float(sum(returns) / 2), abs=1e-12)


# ---- idle candles, cancelling ----------------------------------------------


def test_idle_candles_are_skipped_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    visits: list[int] = []
    honest = lunobiz.Recorded.moment

    def moment(self: lunobiz.Recorded, time_ms: int) -> lunobiz.Moment:
        visits.append(time_ms)
        return honest(self, time_ms)

    monkeypatch.setattr(lunobiz.Recorded, "moment", moment)
    rows = scene(*[(100, 100.05, 99.95, 100)] * 48)
    job = job_of({"AAAZAR": rows}, Settings(schedule=Schedule(timeframes=(14400,))))
    quiet = run_backtest(job)
    assert visits == list(range(SCENE_MS, SCENE_MS + 48 * HOUR_MS + 1, 4 * HOUR_MS))
    visits.clear()
    assert run_backtest(replace(job, visits_every_bar=True)) == quiet
    assert len(visits) == 49


def test_a_position_is_looked_after_at_every_candle(script: dict[str, frozenset[int]]) -> None:
    """With a decision every four hours, the stop in the second hour is hit in that hour."""
    script["in"] = frozenset({0})
    before, after = [(100, 100.05, 99.95, 100)] * 4, [(96, 96.5, 95.5, 96)] * 4
    rows = scene(*before, (100, 100.1, 99.8, 100), (99, 99, 94.5, 96), *after)
    settings = Settings(schedule=Schedule(timeframes=(14400,)))
    report = run_backtest(job_of({"AAAZAR": rows}, settings))
    assert [(f.kind.value, f.time_ms) for f in report.fills] == [
        ("entry", SCENE_MS + 5 * HOUR_MS + 5000), ("protection", SCENE_MS + 6 * HOUR_MS + 5000),
    ]  # fmt: skip


def test_progress_runs_to_the_end_and_can_cancel() -> None:
    job = job_of(two_markets(), quick_settings())
    whole = run_backtest(job)
    calls: list[tuple[int, int]] = []

    def watch(done: int, total: int) -> bool:
        calls.append((done, total))
        return True

    assert run_backtest(job, watch) == whole
    steps = (90 - QUIET_DAYS) * 24 + 1
    assert calls == [*((n, steps) for n in range(0, steps, 256)), (steps, steps)]
    part = run_backtest(job, lambda done, total: done < 256)
    assert part.is_cancelled
    assert not whole.is_cancelled
    last = SCENE_MS + 255 * HOUR_MS + 3 * 5000 + 5000
    assert lines(part.fills) == lines(f for f in whole.fills if f.time_ms <= last)
    assert run_backtest(job, lambda done, total: False).fills == ()


# ---- the report ------------------------------------------------------------


def test_the_report_has_the_promised_keys_and_is_json(lively: BacktestReport) -> None:
    found = report_json(lively, quick_settings())
    promised = {
        "version", "config_hash", "data", "costs", "metrics", "by_strategy", "by_pair", "by_regime", "by_window",
        "round_trips", "equity_daily",
    }  # fmt: skip
    beside = {
        "parameters", "period", "target_daily_return", "decisions", "open_positions", "counter", "timeframes",
        "start_equity",
    }  # fmt: skip
    assert set(found) == promised | beside
    back = json.loads(json.dumps(found, allow_nan=False))
    assert set(back["metrics"]) == {
        "total_return", "daily_returns", "max_drawdown", "profit_factor", "expectancy", "exposure_time", "trades",
        "fees_paid", "buy_and_hold",
    }  # fmt: skip
    assert set(back["metrics"]["daily_returns"]) == {"mean", "std", "p05", "p50", "p95", "best", "worst_day"}
    assert set(back["metrics"]["max_drawdown"]) == {"value", "from", "to"}
    assert {tuple(sorted(v)) for v in back["data"].values()} == {("first", "hash", "last", "missing", "rows")}
    keys = {"pair", "strategy", "regime", "opened", "closed", "volume", "entry", "exit", "fees", "profit", "reason"}
    assert all(set(trip) == keys for trip in back["round_trips"])
    assert back["metrics"]["trades"] == len(back["round_trips"]) == len(lively.round_trips)
    assert sum(g["trades"] for g in back["by_strategy"].values()) == len(lively.round_trips)
    profit = sum(t.profit for t in lively.round_trips)
    assert sum(g["profit"] for g in back["by_pair"].values()) == pytest.approx(profit)
    assert back["equity_daily"][-1] == ["2024-03-30", lively.equity_daily[-1][1]]
    assert back["period"] == {"from": "2024-03-05T00:00:00Z", "to": "2024-03-31T00:00:00Z"}
    assert "NOT CHOSEN" in back["parameters"]
    assert back["config_hash"] == lunobiz.config_hash(quick_settings(timeframes=(3600, 14400)))


def test_the_months_multiply_to_the_whole_and_share_all_round_trips(lively: BacktestReport) -> None:
    found = report_json(lively, quick_settings())
    months = cast("list[dict[str, Any]]", found["by_window"])
    assert [m["name"] for m in months] == sorted({day[:7] for day, _ in cast("list[list[str]]", found["equity_daily"])})
    grown = math.prod(1 + m["return"] for m in months)
    assert grown == pytest.approx(1 + lively.metrics.total_return, rel=1e-12)
    assert sum(m["trades"] for m in months) == len(lively.round_trips) > 0
    assert sum(m.get("profit", 0.0) for m in months) == pytest.approx(sum(t.profit for t in lively.round_trips))


def test_a_run_that_starts_at_midnight_has_no_month_before_it(lively: BacktestReport) -> None:
    # day 20,240 after 1970 is 2025-06-01, 20,269 the last of June and 20,270 the first of July
    days = ((20_239, 100.0), (20_240, 101.0), (20_269, 99.0), (20_270, 108.9))
    early = replace(lively, job_start_ms=DAY_MS * 20_240, equity_daily=days, round_trips=())
    june, july = lunobiz.month_groups(early, 100.0)
    assert june == {"name": "2025-06", "return": pytest.approx(-0.01), "trades": 0.0}
    assert july == {"name": "2025-07", "return": pytest.approx(0.1), "trades": 0.0}


def test_a_run_without_a_trade_is_json_too() -> None:
    rows = scene((100, 100.05, 99.95, 100))
    report = run_backtest(job_of({"AAAZAR": rows}))
    text = json.dumps(report_json(report, HOURLY), allow_nan=False)
    assert json.loads(text)["metrics"]["profit_factor"] is None
    assert report.metrics.exposure_time == report.metrics.fees_paid == 0


def test_a_job_travels_to_another_process_and_back() -> None:
    job = job_of(two_markets(70), quick_settings())
    copy = pickle.loads(pickle.dumps(job))  # noqa: S301 - our own bytes
    report = run_backtest(copy)
    assert lines([pickle.loads(pickle.dumps(report))]) == lines([run_backtest(job)])  # noqa: S301


# ---- data that begin late, end early, or are not there ---------------------


def test_a_market_whose_candles_end_is_named_and_the_others_go_on() -> None:
    data = two_markets()
    whole = run_backtest(job_of({"BBBZAR": data["BBBZAR"]}, quick_settings()))
    gone_ms = START_MS + 80 * DAY_MS
    data["AAAZAR"] = data["AAAZAR"][data["AAAZAR"][:, 0] < gone_ms]
    report = run_backtest(job_of(data, quick_settings()))
    after = [d for d in report.decisions if d.pair == "AAAZAR" and d.time_ms > gone_ms + 3 * HOUR_MS]
    assert len(after) == 10 * 24 - 2
    assert {d.code for d in after} <= {"stale_quote", "hold", "exit"}
    assert not [f for f in report.fills if f.pair == "AAAZAR" and f.time_ms > gone_ms + 2 * HOUR_MS]
    assert any(f.pair == "BBBZAR" and f.time_ms > gone_ms for f in report.fills)
    assert {t.pair for t in whole.round_trips} == {"BBBZAR"}
    shapes = {pair: shape for pair, shape, _ in report.data}
    assert (shapes["AAAZAR"].rows, shapes["BBBZAR"].rows) == (80 * 24, 90 * 24)


def test_the_last_candle_of_a_market_that_ends_inside_it_is_decided_like_any_other() -> None:
    """Half an hour of the last hour was traded: once that hour is over its candle is closed, as it is in a replay."""
    shapes = {"AAAZAR": Shape(900.0, 2, 1e3, 51), "BBBZAR": Shape(30.0, 2, 3e4, 52)}
    data = {pair: market_rows(shape, 70, 1800) for pair, shape in shapes.items()}
    last_ms = START_MS + 68 * DAY_MS
    data["AAAZAR"] = data["AAAZAR"][data["AAAZAR"][:, 0] <= last_ms]
    candles = tuple((replace(PENCIL, pair=p, base=p[:3]), series_of(rows, 1800)) for p, rows in data.items())
    job = BacktestJob(candles, quick_settings(), SCENE_MS, START_MS + 70 * DAY_MS, keeps_decisions=True)
    (row,) = [d for d in run_backtest(job).decisions if d.pair == "AAAZAR" and d.opened_ms == last_ms]
    assert "has not arrived" not in row.why
    assert row.regime is not lunobiz.Regime.UNKNOWN


def test_a_market_that_begins_late_waits_for_its_history() -> None:
    data = two_markets(136)
    data["BBBZAR"] = data["BBBZAR"][data["BBBZAR"][:, 0] >= START_MS + 70 * DAY_MS]
    report = run_backtest(job_of(data, quick_settings()))
    late = [d for d in report.decisions if d.pair == "BBBZAR"]
    before = [d.code for d in late if d.time_ms < START_MS + 70 * DAY_MS]
    young = [d.code for d in late if START_MS + 70 * DAY_MS + HOUR_MS < d.time_ms < START_MS + 132 * DAY_MS]
    assert set(before) == {"no_quote"}
    assert set(young) <= {"short_history", "S4-doubt", "S2-break-even", "gap"}
    assert "enter" in {d.code for d in report.decisions if d.pair == "AAAZAR"}
    assert not [o for o in report.orders if o.pair == "BBBZAR" and o.created_ms < START_MS + 132 * DAY_MS]
    assert {d.code for d in late if d.time_ms > START_MS + 132 * DAY_MS} >= {"no-signal"}


def test_there_is_nothing_to_do_without_candles() -> None:
    empty = series_of(np.empty((0, 6)), 3600)
    with pytest.raises(DataError, match="no candles"):
        lunobiz.span_of([empty])
    with pytest.raises(DataError):
        run_backtest(BacktestJob(((PENCIL, empty),), HOURLY, SCENE_MS, SCENE_MS + HOUR_MS))
    with pytest.raises(DataError):
        run_backtest(BacktestJob((), HOURLY, SCENE_MS, SCENE_MS + HOUR_MS))


def test_first_decisions() -> None:
    start, day = START_MS + 1, DAY_MS
    assert lunobiz.first_decision_ms(start, start + 400 * day) == START_MS + 70 * day + HOUR_MS
    assert lunobiz.first_decision_ms(START_MS, START_MS + 20 * day) == START_MS + 10 * day
    assert lunobiz.due_at(START_MS + 4 * HOUR_MS, (3600, 14400, 86400)) == (3600, 14400)
    assert lunobiz.due_at(START_MS + 900_000, (3600,)) == ()


def test_no_warning_is_printed(recwarn: pytest.WarningsRecorder) -> None:
    """Still hours make the quiet range 0; that must not end up on the owner's screen."""
    run_backtest(job_of({"AAAZAR": scene(*[(100.0, 100.0, 100.0, 100.0)] * 200)}))
    assert [str(w.message) for w in recwarn] == []
