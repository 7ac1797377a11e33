"""The straight line from candle to fill: one for backtest and paper, blind to the future, written before it is sent."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import pytest

import lunobiz
from local_exchange import LocalExchange
from lunobiz import (
    AuditBroken,
    BacktestJob,
    BacktestReport,
    CycleReport,
    Desk,
    Engine,
    Market,
    Mode,
    Moment,
    Order,
    Outlook,
    RegimeColumns,
    Series,
    Session,
    Settings,
    Settlement,
    SignalTable,
    run_backtest,
    series_of,
)
from recordings import DAY_MS, START_MS, Shape, lines, market_rows, quick_settings, write_folder

PROGRAM = Path(lunobiz.__file__)
DAYS = 86
SHAPES = {
    # a gap of three days that is about to pass out of memory, a short one, and a morning without a trade
    "AAAZAR": Shape(1000.0, 2, 400.0, 1, missing=((8.0, 11.1), (73.3, 73.4)), silent=(76.0, 76.8)),
    # begins and ends inside an hour
    "BBBZAR": Shape(20.0, 4, 60_000.0, 2, days=(13.01, 1e9)),
    "DDDZAR": Shape(350.0, 3, 3_000.0, 4, days=(0.0, 84.76)),
    # too thin to enter, with volumes of many digits
    "EEEZAR": Shape(80.0, 3, 50.123457, 5),
}
SAYS = {pair: {"spread": 0.002} for pair in SHAPES}

# ---- backtest = paper ------------------------------------------------------


class Run(NamedTuple):
    """What a run decided, ordered and filled, as canonical text, and its desk at the end."""

    decisions: list[str]
    orders: list[str]
    fills: list[str]
    trips: list[str]
    desk: str
    kinds: Counter[str]


def run_of(report: BacktestReport) -> Run:
    """A backtest as comparable texts."""
    kinds = Counter(f.kind.value for f in report.fills)
    return Run(
        lines(report.decisions), lines(report.orders), lines(report.fills), lines(report.round_trips),
        lunobiz.desk_json(report.desk), kinds,
    )  # fmt: skip


def run_of_cycles(reports: Sequence[CycleReport]) -> Run:
    """The reports of a session as comparable texts."""
    return Run(
        lines(d for r in reports for d in r.decisions), lines(o for r in reports for o in r.orders),
        lines(f for r in reports for f in r.settlement.fills), lines(t for r in reports for t in r.round_trips),
        lunobiz.desk_json(reports[-1].desk), Counter(f.kind.value for r in reports for f in r.settlement.fills),
    )  # fmt: skip


def job_of(folder: Path, settings: Settings, start_ms: int = 0) -> BacktestJob:
    """The backtest of a folder that keeps its decisions, from its own start or a later one."""
    read = lunobiz.read_folder(folder)
    job = lunobiz.folder_job(lunobiz.folder_settings(settings, read), read)
    return replace(job, keeps_decisions=True, start_ms=start_ms or job.start_ms)


def open_replay(folder: Path, home: Path, settings: Settings) -> tuple[Engine, lunobiz.WorkerOptions]:
    """A replay session as `--replay` opens it, without waiting for the disk."""
    home.mkdir(exist_ok=True)
    session = Session(Mode.REPLAY, settings, home, {}, 0, str(folder), 0.0, "OFF")
    return lunobiz.open_engine(session, lunobiz.ignore_event)


def play(engine: Engine, options: lunobiz.WorkerOptions) -> Iterator[CycleReport]:
    """Load the history, then every report until the recording ends."""
    while engine.load(options.clock.now_ms()) is not None:
        pass
    while (reports := engine.step()) is not None:
        yield from reports


def replayed(folder: Path, home: Path, settings: Settings, start_ms: int = 0) -> Run:
    """A whole replay; with a start, as if the candle before it had been the last one decided."""
    engine, options = open_replay(folder, home, settings)
    if start_ms:
        engine.parts.pace.resume(start_ms + lunobiz.DECISION_DELAY_MS - engine_step_ms(folder))
    found = run_of_cycles(list(play(engine, options)))
    engine.close()
    return found


def engine_step_ms(folder: Path) -> int:
    """The duration of the folder's candles."""
    return lunobiz.read_folder(folder).seconds * 1000


def assert_same(backtest: Run, paper: Run) -> None:
    """The first difference is named; nothing is worse to read than two long lists."""
    for name, ours, theirs in zip(Run._fields[:4], backtest[:4], paper[:4], strict=True):
        assert isinstance(ours, list)
        assert isinstance(theirs, list)
        for number, (a, b) in enumerate(zip(ours, theirs, strict=False)):
            assert a == b, f"{name} number {number}"
        assert len(ours) == len(theirs), name
    assert backtest.desk == paper.desk


@pytest.fixture(scope="module")
def quarter_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four markets of quarter hours with all that recorded candles suffer from."""
    data = {pair: market_rows(shape, DAYS) for pair, shape in SHAPES.items()}
    return write_folder(tmp_path_factory.mktemp("quarters"), data, 900, SAYS)


@pytest.fixture(scope="module")
def hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hourly markets."""
    shapes = {"AAAZAR": (900.0, 18), "BBBZAR": (31.0, 19)}
    data = {p: market_rows(Shape(c, 3, 2e6 / c, s, missing=((76.0, 76.2),)), 86, 3600) for p, (c, s) in shapes.items()}
    return write_folder(tmp_path_factory.mktemp("hours"), data, 3600, {p: {"spread": 0.002} for p in data})


def test_a_backtest_and_a_replay_of_the_same_candles_agree_byte_for_byte(quarter_hours: Path, tmp_path: Path) -> None:
    settings, start_ms = quick_settings(), START_MS + 72 * DAY_MS
    backtest = run_of(run_backtest(job_of(quarter_hours, settings, start_ms)))
    assert min(backtest.kinds.values()) >= 5
    assert set(backtest.kinds) == {"entry", "exit", "protection"}
    assert {json.loads(d)["code"] for d in backtest.decisions} >= {
        "enter", "hold", "gap", "no-signal", "short_history", "stale_quote", "P8-volume-24h", "no_trades",
    }  # fmt: skip
    assert_same(backtest, replayed(quarter_hours, tmp_path / "home", settings, start_ms))


@pytest.mark.parametrize(
    "schedule",
    [
        {"timeframes": (3600, 14400)},
        {"takes_after_timeout": True},
        {"timeframes": (14400,), "entry_timeout_candles": 3},
    ],
    ids=["two timeframes", "takes after timeout", "slow and patient"],
)
def test_they_agree_under_every_schedule(hours: Path, tmp_path: Path, schedule: dict[str, object]) -> None:
    settings, start_ms = quick_settings(**schedule), START_MS + 74 * DAY_MS
    backtest = run_of(run_backtest(job_of(hours, settings, start_ms)))
    assert backtest.kinds["entry"] + backtest.kinds["taker entry"] >= 2
    assert ("taker entry" in backtest.kinds) == ("takes_after_timeout" in schedule)
    assert_same(backtest, replayed(hours, tmp_path / "home", settings, start_ms))


def test_they_agree_for_a_coin_that_costs_next_to_nothing(tmp_path: Path) -> None:
    """Six digits of a price of 0.00025 are ten decimals, two more than the exchange writes in its tickers."""
    data = {"PEPEZAR": market_rows(Shape(0.00025, 10, 8e9, 3), 84, 3600)}
    folder = write_folder(tmp_path / "candles", data, 3600, {"PEPEZAR": {"spread": 0.002}})
    settings, start_ms = quick_settings(), START_MS + 71 * DAY_MS
    backtest = run_of(run_backtest(job_of(folder, settings, start_ms)))
    assert len(backtest.fills) >= 4
    assert_same(backtest, replayed(folder, tmp_path / "home", settings, start_ms))


@pytest.mark.parametrize("days", [30, 96, 139.5, 160])
def test_they_start_at_the_same_candle(tmp_path: Path, days: float) -> None:
    """However long the recording is, and also if it begins inside an hour."""
    rows = market_rows(Shape(100.0, 2, 1000.0, 9), days, 1800)[3:]
    folder = write_folder(tmp_path / "candles", {"AAAZAR": rows}, 1800)
    engine, _ = open_replay(folder, tmp_path / "home", quick_settings())
    job, first = job_of(folder, quick_settings()), engine.parts.pace.beat()
    engine.close()
    assert first is not None
    assert 0 <= job.start_ms - (first.now_ms - lunobiz.DECISION_DELAY_MS) < 3_600_000


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_they_agree_for_many_markets(tmp_path: Path, seed: int) -> None:
    """All of three hundred days of one market after the other: pytest -m long -k many_markets"""
    shape = Shape(10.0 ** (seed - 3), 8 - seed // 2, 3e7 / 10.0 ** (seed - 3), 100 + seed, missing=((80.0, 81.5),))
    folder = write_folder(tmp_path / "candles", {"AAAZAR": market_rows(shape, 300, 1800)}, 1800)
    settings = quick_settings(timeframes=(1800, 10800, 86400), takes_after_timeout=seed % 2 == 0)
    assert_same(run_of(run_backtest(job_of(folder, settings))), replayed(folder, tmp_path / "home", settings))


@pytest.mark.parametrize("seconds", lunobiz.DURATIONS_S[2:])
def test_what_paper_keeps_of_the_past_is_enough_for_every_timeframe(seconds: int) -> None:
    """Paper forgets old candles: the newest outlook must not depend on them, nor on a hole where its memory ends."""
    rows = market_rows(Shape(100.0, 3, 100.0, 21, missing=((133.5, 138.5),)), 200, seconds)
    now_ms, params = int(rows[-1, 0]) + seconds * 1000, lunobiz.StrategyParams()
    track = lunobiz.Track("AAAZAR", seconds, rows)
    track.trim(now_ms + lunobiz.DECISION_DELAY_MS)
    tables = [lunobiz.signal_table("AAAZAR", series_of(r, seconds), params) for r in (rows, track.rows)]
    newest = [lunobiz.outlook_at(table, len(table.series) - 1) for table in tables]
    assert lunobiz.Doubt.SHORT_HISTORY not in {f.doubt for f in newest[0].findings}
    assert lunobiz.canonical(newest[0]) == lunobiz.canonical(newest[1])


# ---- no look-ahead ---------------------------------------------------------


def cut_job(job: BacktestJob, cut_ms: int, garbage: int = 0) -> BacktestJob:
    """The job up to a cut: candles that close later are gone, or replaced by garbage."""
    candles = []
    for market, series in job.candles:
        known = int(np.searchsorted(series.closed, cut_ms, side="right"))
        if garbage:
            candles.append((market, spoiled(series, known, garbage)))
        elif known:
            candles.append((market, series.part(0, known)))
    return replace(job, candles=tuple(candles), end_ms=cut_ms)


def spoiled(series: Series, known: int, seed: int) -> Series:
    """The series with anything at all in place of the candles after the first `known`."""
    rng = np.random.default_rng(seed)
    fakes = rng.uniform(0.2, 5.0, (4, len(series) - known)) * float(series.close[known - 1])
    columns = (series.open, series.high, series.low, series.close, series.volume)
    news = (fakes[0], fakes.max(axis=0), fakes.min(axis=0), fakes[1], fakes[2])
    opened, high, low, close, volume = (np.append(c[:known], n) for c, n in zip(columns, news, strict=True))
    return Series(series.seconds, series.opened, opened, high, low, close, volume)


def first_peek(job: BacktestJob, cuts: Sequence[int], modes: Sequence[int] = (0, 1)) -> str:
    """The first order or decision up to one of the cuts that depends on candles after it, or nothing."""
    whole = run_backtest(job)
    for cut_ms in cuts:
        last = cut_ms + lunobiz.DECISION_DELAY_MS + lunobiz.MAX_FOLLOW_UPS * lunobiz.FOLLOW_UP_MS
        orders = [o for o in whole.orders if o.created_ms <= last]
        decisions = [d for d in whole.decisions if d.time_ms <= last]
        for garbage in modes:
            part = run_backtest(cut_job(job, cut_ms, garbage))
            if lines(part.orders) != lines(orders):
                return f"orders up to {cut_ms}, garbage {garbage}"
            if lines(part.decisions) != lines(decisions):
                return f"decisions up to {cut_ms}, garbage {garbage}"
    return ""


@pytest.fixture(scope="module")
def short_job(hours: Path) -> BacktestJob:
    """Two weeks of trading on two markets."""
    job = job_of(hours, quick_settings(timeframes=(3600, 14400)), START_MS + 71 * DAY_MS)
    return replace(job, end_ms=START_MS + 85 * DAY_MS)


def order_cuts(job: BacktestJob, count: int, seed: int) -> list[int]:
    """Closes at which orders were placed, where a peek shows at once."""
    found = sorted({o.created_ms // 3_600_000 * 3_600_000 for o in run_backtest(job).orders if o.side.value == "buy"})
    return sorted(random.Random(seed).sample(found, min(count, len(found))))


def test_no_order_depends_on_what_comes_after_it(short_job: BacktestJob) -> None:
    every = range(short_job.start_ms, short_job.end_ms, 3_600_000)
    cuts = order_cuts(short_job, 8, 1) + random.Random(2).sample(every, 4)
    assert first_peek(short_job, cuts) == ""


@pytest.mark.long
def test_no_order_depends_on_what_comes_after_it_at_any_cut(short_job: BacktestJob) -> None:
    """About ten minutes: pytest -m long -k at_any_cut"""
    assert first_peek(short_job, range(short_job.start_ms, short_job.end_ms, 3_600_000), (0, 1, 2)) == ""


def peeking_strategy(base: lunobiz.Base, params: lunobiz.StrategyParams) -> lunobiz.SetupColumns:
    """Reversion that waits for the candle before the next rise."""
    ahead = np.append(base.series.close[1:], base.series.close[-1])
    honest = lunobiz_reversion(base, params)
    return honest._replace(is_entry=honest.is_entry & (ahead > base.series.close))


def peeking_regime(series: Series, params: lunobiz.StrategyParams) -> RegimeColumns:
    """The regime label of the next candle."""
    honest = lunobiz_regime(series, params)
    return honest._replace(code=np.append(honest.code[1:], honest.code[-1]))


def peeking_ranks(table: SignalTable, row: int) -> Outlook:
    """An outlook that ranks its setups by what they are worth one candle later."""
    honest, later = lunobiz_outlook(table, row), lunobiz_outlook(table, min(row + 1, len(table.series) - 1))
    mixed = (replace(a, strength=b.strength) for a, b in zip(honest.setups, later.setups, strict=True))
    return replace(honest, setups=tuple(mixed))


lunobiz_reversion, lunobiz_regime, lunobiz_outlook = lunobiz.mean_reversion, lunobiz.regime, lunobiz.outlook_at
PEEKS = {"mean_reversion": peeking_strategy, "regime": peeking_regime, "outlook_at": peeking_ranks}


@pytest.mark.parametrize("name", PEEKS)
def test_a_planted_peek_of_one_candle_is_caught(
    short_job: BacktestJob, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lunobiz, name, PEEKS[name])
    assert first_peek(short_job, order_cuts(short_job, 25, 3), (0,)) != ""


# ---- idle candles, write before send ---------------------------------------


def test_skipping_idle_candles_changes_nothing(hours: Path, quarter_hours: Path) -> None:
    for folder, start in ((hours, 75), (quarter_hours, 80)):
        job = job_of(folder, quick_settings(), START_MS + start * DAY_MS)
        skipping, visiting = run_backtest(job), run_backtest(replace(job, visits_every_bar=True))
        assert skipping.fills
        assert lunobiz.canonical(skipping) == lunobiz.canonical(visiting)


class Spy:
    """An executor that notes what it is asked, and a recorder that works or fails, in one list."""

    def __init__(self, inner: lunobiz.SimulatedExecutor, fails_at: int) -> None:
        self.inner, self.fails_at = inner, fails_at
        self.log: list[tuple[str, object]] = []
        self.records = 0

    def settle(self, moment: Moment) -> Settlement:
        return self.inner.settle(moment)

    def place(self, order: Order) -> None:
        self.log.append(("place", order))
        self.inner.place(order)

    def cancel(self, order: Order) -> None:
        self.log.append(("cancel", order))
        self.inner.cancel(order)

    def record(self, report: CycleReport) -> None:
        self.records += 1
        if self.records == self.fails_at:
            raise AuditBroken("the disk is full")
        self.log.append(("record", report))


def spied(job: BacktestJob, fails_at: int) -> Spy:
    """A run over the job's moments with a spy on both ends of the line."""
    spy = Spy(lunobiz.SimulatedExecutor(job.settings.costs), fails_at)
    recorded, desk = lunobiz.Recorded(job), Desk(job.settings.schedule.paper_cash)
    for time_ms in range(job.start_ms, job.end_ms + 1, 3_600_000):
        try:
            desk = lunobiz.trade_moment(desk, recorded.moment(time_ms), spy, spy, job.settings)[-1].desk
        except AuditBroken:
            break
    return spy


def test_nothing_is_placed_or_cancelled_that_was_not_written_first(short_job: BacktestJob) -> None:
    spy = spied(short_job, 0)
    written: set[tuple[str, str]] = set()
    for what, value in spy.log:
        if isinstance(value, CycleReport):
            written |= {("place", o.order_id) for o in value.orders} | {("cancel", o.order_id) for o in value.cancels}
        elif isinstance(value, Order):
            assert (what, value.order_id) in written
    assert sum(what == "place" for what, _ in spy.log) > 20


def test_a_recorder_that_fails_leaves_nothing_placed(short_job: BacktestJob) -> None:
    clean = spied(short_job, 0)
    reports = [value for _, value in clean.log if isinstance(value, CycleReport)]
    busy = [n for n, report in enumerate(reports, 1) if report.orders or report.cancels]
    for number in random.Random(5).sample(busy, 5):
        spy = spied(short_job, number)
        assert spy.records == number
        assert spy.log[-1] == clean.log[len(spy.log) - 1]
        assert len([1 for what, _ in spy.log if what == "record"]) == number - 1
        told = {o.order_id for _, r in spy.log if isinstance(r, CycleReport) for o in (*r.orders, *r.cancels)}
        assert {o.order_id for _, o in spy.log if isinstance(o, Order)} <= told


# ---- the pure core with the world removed, and an import that does nothing --


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds the program, with nothing of ours in its environment."""
    places = [str(PROGRAM.parent), str(Path(__file__).parent)]
    start = f"import sys; sys.path[:0] = {places!r}\n"
    return subprocess.run(
        [sys.executable, "-P", "-B", "-c", start + textwrap.dedent(code), *arguments],
        capture_output=True, text=True, timeout=120, env=plain_env(), check=False,
    )  # fmt: skip


def plain_env(**more: str) -> dict[str, str]:
    """This environment without settings of the program."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("LUNOBIZ_", "COV_", "PYTHONPATH"))} | more


WORLD_REMOVED = """
    import builtins, io, os, socket, sqlite3, subprocess, threading, time
    from dataclasses import replace
    from recordings import *
    import lunobiz

    shapes = {"AAAZAR": Shape(900.0, 3, 2e3, 1), "BBBZAR": Shape(30.0, 3, 6e4, 2)}
    data = {pair: market_rows(shape, 90, 3600) for pair, shape in shapes.items()}
    market = lunobiz.Market("AAAZAR", "AAA", "ZAR", 3, 6, 0.001, 1e9, 0.001, 1e12, model_spread=0.002)
    markets = {p: replace(market, pair=p, base=p[:3]) for p in data}
    series = tuple((markets[p], lunobiz.series_of(rows, 3600)) for p, rows in data.items())
    first, last = lunobiz.span_of(s for _, s in series)
    settings = quick_settings(pairs=tuple(data))
    np.linalg.norm([1.0]), np.percentile([1.0, 2.0], (5, 50)), np.median([1.0])  # numpy loads some parts late

    def gone(*arguments, **named):
        raise SystemExit(f"the pure core reached for the world: {arguments[:1]}")

    def hook(event, arguments):
        if event.split(".")[0] in ("open", "socket", "subprocess", "sqlite3", "os", "shutil", "ctypes", "import"):
            raise SystemExit(f"the pure core reached for the world: {event} {arguments[:1]}")

    for module, names in (
        (builtins, ("open", "print", "input")), (io, ("open",)), (sqlite3, ("connect",)),
        (os, ("open", "stat", "listdir", "urandom", "getenv")), (threading.Thread, ("start",)),
        (socket, ("socket", "create_connection", "getaddrinfo")), (subprocess, ("Popen", "run")),
        (time, ("time", "time_ns", "monotonic", "perf_counter", "sleep")),
    ):
        for name in names:
            setattr(module, name, gone)
    sys.addaudithook(hook)
    job = lunobiz.BacktestJob(series, settings, lunobiz.first_decision_ms(first, last), last, keeps_decisions=True)
    report = lunobiz.run_backtest(job)
    text = lunobiz.canonical(lunobiz.report_json(report, settings))
    sys.stdout.write(f"{len(report.fills)} fills, {len(report.decisions)} decisions, {len(text)} characters")
"""


def test_the_core_runs_with_the_world_removed() -> None:
    done = python(WORLD_REMOVED)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 10, done.stdout


def test_the_removed_world_is_missed_by_code_that_wants_it() -> None:
    """The test above would see a core that opens a file."""
    planted = WORLD_REMOVED.replace("report = lunobiz.run_backtest(job)", "os.stat('.')")
    assert "reached for the world" in python(planted).stderr


def test_importing_the_program_does_nothing() -> None:
    """What the libraries do at their own import is theirs; what is looked for comes from our module's body."""
    done = python(
        """
        import os, threading
        seen = []

        def is_ours(frame):
            while frame is not None and frame.f_code.co_name != "<module>":
                frame = frame.f_back
            return frame is not None and frame.f_code.co_filename.endswith("lunobiz.py")

        def hook(event, arguments):
            watched = ("open", "socket", "subprocess", "sqlite3", "os", "_thread", "signal", "shutil", "ctypes")
            if event.split(".")[0] in watched and is_ours(sys._getframe(1)):
                frame = sys._getframe(1)
                if "importlib" not in frame.f_code.co_filename:
                    seen.append(f"{event} {arguments[:1]} line {frame.f_lineno}")

        def handles():
            return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()

        before = handles()
        sys.addaudithook(hook)
        import lunobiz
        heavy = {"tkinter", "_tkinter", "ttkbootstrap", "plyer", "pandas", "PIL"} & set(sys.modules)
        sys.stdout.write(repr((seen, sorted(heavy), threading.active_count(), len(handles()) - len(before))))
        """
    )
    assert (done.stdout, done.stderr) == ("([], [], 1, 0)", "")


# ---- the program as a process ----------------------------------------------


def start(home: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """The program in a process of its own, its output in files of the folder above `home`."""
    home.mkdir(exist_ok=True, parents=True)
    out, err = (home.parent / f"{home.name}.{name}" for name in ("out", "err"))
    with out.open("ab") as stdout, err.open("ab") as stderr:
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments, "--home", str(home)],
            stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL, env=plain_env(**(env or {})), cwd=home,
        )  # fmt: skip


def told(home: Path, name: str = "out") -> bytes:
    """What the program wrote."""
    return (home.parent / f"{home.name}.{name}").read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path: Path) -> None:
    runs = {"a": "7", "b": "7", "c": "8"}
    demo = ("--headless", "--demo", "--cycles", "30", "--seed")
    processes = {name: start(tmp_path / name, *demo, seed) for name, seed in runs.items()}
    assert {name: p.wait(120) for name, p in processes.items()} == dict.fromkeys(runs, 0), told(tmp_path / "a", "err")
    out = {name: told(tmp_path / name) for name in runs}
    assert out["a"] == out["b"] != out["c"]
    rows = [json.loads(line) for line in out["a"].decode().splitlines()]
    assert rows[-1]["kind"] == "end"
    assert rows[-1]["cycles"] == sum(r["kind"] == "cycle" for r in rows) == 30
    assert sum(r["kind"] == "decision" for r in rows) == 30 * 7


def audit(database: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that two runs must have in common, row by row, and the last desk."""
    texts = {
        "decisions": "SELECT time_ms, pair, timeframe_s, opened_ms, code, confidence, why, numbers FROM decisions",
        "orders": "SELECT time_ms, order_id, pair, side, kind, state, volume, limit_price, stop_price, why FROM orders",
        "fills": "SELECT time_ms, fill_id, order_id, pair, side, price, volume, fee_counter, is_maker FROM fills",
        "trades": "SELECT opened_ms, closed_ms, pair, volume, entry, exit, fees, profit, reason FROM trades",
        "desk": "SELECT time_ms, equity, desk FROM snapshots ORDER BY rowid DESC LIMIT 1",
    }
    db = sqlite3.connect(database)
    try:
        return {name: db.execute(text).fetchall() for name, text in texts.items()}
    finally:
        db.close()


LOOSE = {
    "LUNOBIZ_MIN_EDGE": "1", "LUNOBIZ_MIN_CONFIDENCE": "0.2", "LUNOBIZ_ENTRY_TAKER_AFTER_TIMEOUT": "yes",
    "LUNOBIZ_MIN_VOLUME_24H": "0", "LUNOBIZ_PAIRS": "AAAZAR,BBBZAR",
}  # fmt: skip


def kill_run(folder: Path, home: Path, kills: int, seed: int) -> dict[str, list[tuple[object, ...]]]:
    """A replay that is killed `kills` times at random moments, and started again each time until it ends."""
    rng, home_db = random.Random(seed), home / "replay.db"
    seen: list[tuple[object, ...]] = []
    while True:
        process = start(home, "--headless", "--replay", str(folder), env=LOOSE)
        if kills <= 0:
            assert process.wait(120) == 0, told(home, "err")
            break
        # half of the kills hit a run that is well under way, the others any moment from its birth on
        while rng.random() < 0.5 and process.poll() is None and not home_db.exists():
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 1.2))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        kills -= 1
        if home_db.exists():
            fills = audit(home_db)["fills"]
            assert fills[: len(seen)] == seen, "a recorded fill was lost"
            seen = fills
    return audit(home_db)


@pytest.fixture(scope="module")
def small_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two markets, sixteen days that can be traded."""
    shapes = {"AAAZAR": Shape(900.0, 3, 2e4, 31), "BBBZAR": Shape(31.0, 3, 6e5, 32)}
    data = {pair: market_rows(shape, 120, 3600) for pair, shape in shapes.items()}
    return write_folder(tmp_path_factory.mktemp("small"), data, 3600, {p: {"spread": 0.002} for p in data})


@pytest.fixture(scope="module")
def unbroken(small_hours: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[object, ...]]]:
    """The audit of a replay that nobody disturbed."""
    home = tmp_path_factory.mktemp("unbroken") / "home"
    assert start(home, "--headless", "--replay", str(small_hours), env=LOOSE).wait(120) == 0, told(home, "err")
    found = audit(home / "replay.db")
    assert len(found["fills"]) >= 10
    return found


def test_a_run_that_is_killed_and_started_again_ends_as_if_nothing_had_been(
    small_hours: Path, unbroken: dict[str, list[tuple[object, ...]]], tmp_path: Path
) -> None:
    found = kill_run(small_hours, tmp_path / "home", 2, 11)
    for name, rows in unbroken.items():
        assert found[name] == rows, name


@pytest.mark.long
def test_fifty_kills_lose_nothing(
    small_hours: Path, unbroken: dict[str, list[tuple[object, ...]]], tmp_path: Path
) -> None:
    """Ten runs with five kills each, about three minutes: pytest -m long -k fifty_kills"""
    for seed in range(10):
        found = kill_run(small_hours, tmp_path / f"home{seed}", 5, seed)
        for name, rows in unbroken.items():
            assert found[name] == rows, (seed, name)


class Crash(BaseException):
    """The end of the program in the middle of a step."""


class Fate:
    """Lets a session die around the commits it is told: once just before each, then once just after it."""

    def __init__(self, dies: Callable[[CycleReport], bool]) -> None:
        self.dies = dies
        self.deaths: Counter[int] = Counter()
        self.kept: list[CycleReport] = []

    def bind(self, engine: Engine) -> None:
        """Stand between the engine and its file."""
        write = engine.parts.store.record

        def record(
            report: CycleReport, mode: Mode, markets: Mapping[str, Market], inputs: Iterable[lunobiz.InputRow] = ()
        ) -> None:
            died = self.deaths[report.now_ms] if self.dies(report) else 2
            self.deaths[report.now_ms] += died < 2
            if died == 0:
                raise Crash
            write(report, mode, markets, inputs)
            self.kept.append(report)
            if died == 1:
                raise Crash

        engine.parts.store.record = record  # type: ignore[method-assign]


def crash_run(folder: Path, home: Path, settings: Settings, dies: Callable[[CycleReport], bool]) -> Fate:
    """A replay that dies now and then and goes on from its file until the recording ends."""
    fate = Fate(dies)
    while True:
        engine, options = open_replay(folder, home, settings)
        fate.bind(engine)
        try:
            for _ in play(engine, options):
                pass
            engine.close()
            return fate
        except Crash:
            engine.parts.store.close()
            engine.parts.log.close()


@pytest.fixture(scope="module")
def crash_hours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings]:
    """One market, two weeks of trading with entries that are taken after their time."""
    data = {"AAAZAR": market_rows(Shape(900.0, 3, 2e4, 52), 84, 3600)}
    folder = write_folder(tmp_path_factory.mktemp("crash"), data, 3600, {"AAAZAR": {"spread": 0.002}})
    return folder, quick_settings(takes_after_timeout=True)


def crash_and_compare(
    crash_hours: tuple[Path, Settings], tmp_path: Path, dies: Callable[[CycleReport], bool]
) -> None:
    """All that was decided, ordered and filled is the same as without the crashes."""
    folder, settings = crash_hours
    whole = run_of_cycles(crash_run(folder, tmp_path / "whole", settings, lambda report: False).kept)
    assert len(whole.fills) >= 10
    assert whole.kinds["taker entry"] >= 1
    broken = crash_run(folder, tmp_path / "broken", settings, dies)
    assert sum(broken.deaths.values()) >= 6
    assert_same(whole, run_of_cycles(broken.kept))
    assert [row[2] for row in audit(tmp_path / "broken" / "replay.db")["desk"]] == [whole.desk]


def test_a_crash_around_a_cancel_changes_nothing(crash_hours: tuple[Path, Settings], tmp_path: Path) -> None:
    """The hardest place: a cancel is written, and what it makes room for is not."""

    def dies(report: CycleReport) -> bool:
        return any(o.kind is lunobiz.OrderKind.ENTRY for o in report.cancels)

    crash_and_compare(crash_hours, tmp_path, dies)


def test_a_crash_around_an_order_or_a_fill_changes_nothing(
    crash_hours: tuple[Path, Settings], tmp_path: Path
) -> None:
    def dies(report: CycleReport) -> bool:
        return bool(report.settlement.fills or report.orders) and not report.cancels and report.now_ms % 7 < 1

    crash_and_compare(crash_hours, tmp_path, dies)


@pytest.mark.long
def test_a_crash_around_every_commit_changes_nothing(crash_hours: tuple[Path, Settings], tmp_path: Path) -> None:
    """Some minutes, two restarts for every single commit: pytest -m long -k every_commit"""
    crash_and_compare(crash_hours, tmp_path, lambda report: True)


def test_the_second_copy_on_one_folder_ends_with_a_message(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = start(home, "--headless", "--demo", "--speed", "1")
    try:
        deadline = time.monotonic() + 60
        while not (home / "demo.db").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        second = subprocess.run(
            [sys.executable, str(PROGRAM), "--headless", "--demo", "--cycles", "1", "--home", str(home)],
            capture_output=True, text=True, timeout=60, env=plain_env(), check=False,
        )  # fmt: skip
        assert (second.returncode, second.stdout) == (4, "")
        assert "another LunoBiz is running" in second.stderr
        assert str(home) in second.stderr
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 0, told(home, "err")
    third = start(home, "--headless", "--demo", "--cycles", "1")
    assert third.wait(60) == 0, told(home, "err")


# ---- secrets ---------------------------------------------------------------

KEY_ID, SECRET = "cnrykeyid7q2w", "C4n4ryS3cretQ_-zXw9Yk2LmP8vBt5RhJ7dFgAe1NuI"
TOKEN = "7316549821:AAG-canaryTOKENvalue_0123456789abcdefXYZ"


def forms(secret: str) -> set[bytes]:
    """A secret as it may leak: raw, in base64 at any offset, url-encoded, reversed, or half of it."""
    raw, half = secret.encode(), len(secret) // 2
    found = {raw, raw[:half], raw[half:], raw[::-1], quote(secret, safe="").encode(), raw.hex().encode()}
    for shift in range(3):  # base64 of a text that contains it, whatever stands before
        text = base64.b64encode(b"x" * shift + raw)
        found.add(text[4:-4] if shift else text.rstrip(b"=")[:-2])
    return {f for f in found if len(f) >= 6}


def leaks(folder: Path) -> list[str]:
    """Files of a folder with any form of a secret in them."""
    wanted = {f for secret in (KEY_ID, SECRET, f"{KEY_ID}:{SECRET}", TOKEN) for f in forms(secret)}
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".env")):
        data = path.read_bytes()
        found += [f"{path.name}: {form.decode()}" for form in wanted if form in data]
    return found


def test_the_search_for_secrets_finds_them(tmp_path: Path) -> None:
    for number, text in enumerate((SECRET, TOKEN[20:], base64.b64encode(f"{KEY_ID}:{SECRET}".encode()).decode())):
        (tmp_path / f"{number}.log").write_text(f"noise {text} noise", encoding="ascii")
    assert {leak.split(":")[0] for leak in leaks(tmp_path)} == {"0.log", "1.log", "2.log"}


def test_no_secret_is_in_anything_the_program_writes(tmp_path: Path) -> None:
    """PAPER on an exchange that works, then on one that repeats our own headers; demo, doctor and export beside it."""
    home = tmp_path / "home"
    home.mkdir()
    with LocalExchange(tmp_path / "ca") as exchange:
        names = {
            "LUNOBIZ_READ_KEY_ID": KEY_ID, "LUNOBIZ_READ_KEY_SECRET": SECRET, "LUNOBIZ_TELEGRAM_TOKEN": TOKEN,
            "LUNOBIZ_TELEGRAM_CHAT_ID": "123456", "LUNOBIZ_PAIRS": "AAAZAR,BBBZAR",
            "LUNOBIZ_EXCHANGE_URL": exchange.url, "LUNOBIZ_EXCHANGE_CA": str(exchange.ca_file),
        }  # fmt: skip
        (home / ".env").write_text("".join(f"{k}={v}\n" for k, v in names.items()), encoding="utf-8")
        paper = start(home, "--headless")
        assert exchange.wait_for("/api/1/tickers", 1, 60), told(home, "err")
        assert exchange.saw_key(KEY_ID, SECRET)
        paper.send_signal(signal.SIGTERM)
        assert paper.wait(30) == 0, told(home, "err")
        exchange.is_broken = True
        assert [start(home, *arguments).wait(90) for arguments in (
            ("--headless",), ("--doctor",), ("--headless", "--demo", "--cycles", "1"),
            ("--export", str(tmp_path / "export")),
        )] == [3, 0, 0, 0]  # fmt: skip
        (home / ".env").write_text(f"LUNOBIZ_READ_KEY_ID={SECRET}\nLUNOBIZ_READ_KEYS={TOKEN}\n", encoding="utf-8")
        assert start(home, "--headless").wait(60) == 2
    assert b'"kind"' in told(home)
    assert (home / "test.db").stat().st_size > 0
    assert any((tmp_path / "export").rglob("*.csv"))
    assert leaks(tmp_path) == []
