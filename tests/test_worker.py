"""WORKER: the thread, its messages, and the processes it starts."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest

import lunobiz
import screen
from desks import desk, order, position
from lunobiz import (
    BacktestDone,
    BacktestJob,
    BacktestProgress,
    BacktestRequest,
    CancelBacktest,
    CancelGates,
    ChangeSettings,
    Child,
    Closed,
    DeskNews,
    EvaluateGates,
    Export,
    Failed,
    GatesDone,
    GatesProgress,
    Kill,
    LogLine,
    Mode,
    Note,
    Rearm,
    ResolveHalt,
    RunBacktest,
    RunsListed,
    Session,
    SetSpeed,
    SettingsSaved,
    Shutdown,
    Start,
    Stop,
    Worker,
    open_engine,
)
from recordings import DAY_MS, START_MS, Shape, market_rows, write_folder

PATIENCE_S = 60.0
Predicate = Callable[[object], bool]


def recorded(folder: Path) -> Path:
    """Two recorded markets, long enough for some decisions after the history that they need."""
    shapes = {"XBTUSDT": Shape(30_000.0, 1, 40.0, 1), "ETHUSDT": Shape(2_000.0, 2, 500.0, 2)}
    return write_folder(folder, {pair: market_rows(shape, 90.0) for pair, shape in shapes.items()}, 900)


class Listener:
    """Collects a worker's events and waits for one that fits."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.seen: list[object] = []

    def wait(self, fits: Predicate) -> object:
        """The first event from now on that fits; fails after PATIENCE_S."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            event = self.worker.take_event()
            if event is None:
                time.sleep(0.01)
                continue
            self.seen.append(event)
            if fits(event):
                return event
        pytest.fail(f"no such event among {[type(e).__name__ for e in self.seen[-20:]]}")

    def news(self, fits: Callable[[DeskNews], bool]) -> DeskNews:
        """The first news that fit."""
        event = self.wait(lambda e: isinstance(e, DeskNews) and fits(e))
        assert isinstance(event, DeskNews)
        return event


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(Mode.DEMO, lunobiz.parse_settings({}), tmp_path, {}, 6, "", 0.0, "OFF")


@pytest.fixture
def listener(session: Session) -> Iterator[Listener]:
    worker = Worker(lambda listen: open_engine(session, listen))
    worker.start()
    yield Listener(worker)
    worker.send(Shutdown())
    assert worker.join(PATIENCE_S)


def test_a_demo_starts_by_itself_decides_and_says_demo(listener: Listener) -> None:
    news = listener.news(lambda n: len(n.decisions) >= 14)
    assert news.status.mode == "DEMO"
    assert "Parameters: the demo's own set, NOT CHOSEN" in news.footer
    assert {len(row.cells) for row in news.decisions} == {5}
    assert any("Wait" in cell or "Enter" in cell for row in news.ranking for cell in row.cells)


def test_a_finished_day_is_checked_in_a_process_and_told(listener: Listener) -> None:
    line = listener.wait(lambda e: isinstance(e, LogLine) and e.kind == "parity")
    assert isinstance(line, LogLine)
    assert line.level == "info", line.text
    days = r"2026-01-\d\d( to 2026-01-\d\d)?"
    assert re.fullmatch(rf"Replay check: \d+ cycles of {days} equal \(\d+ signals, .*\)", line.text)
    news = listener.news(lambda n: "Replay check: " in n.footer)
    assert " equal" in news.footer


class FakeChild:
    """A process that has ended with these messages."""

    is_done, exit_code = True, 3

    def __init__(self, messages: list[object]) -> None:
        self._messages = messages

    def poll(self) -> Iterator[object]:
        """All of them."""
        return iter(self._messages)


def test_a_day_that_differs_is_an_error_and_so_is_a_process_that_dies(session: Session) -> None:
    engine, options = open_engine(session, lunobiz.ignore_event)
    checks = lunobiz.DayCheck(engine, options)
    found = lunobiz.Difference("edited", "decision", 0, "XBTZAR", "code", "enter", "wait")
    report = lunobiz.ParityReport(Mode.DEMO, 0, 1, 1, {"cycles": 3}, (found,), ())
    child = FakeChild([report])
    checks._child = child  # type: ignore[assignment]
    checks.look_after()
    assert checks.is_broken
    assert "XBTZAR decision" in checks.text and "code: recorded enter, replayed wait" in checks.text
    rows = engine.parts.store.table("events")
    assert [(r["kind"], r["level"], r["text"]) for r in rows if r["kind"] == "parity"] == [
        ("parity", "error", checks.text)
    ]
    checks._child, checks._has_answered = FakeChild([]), False  # type: ignore[assignment]
    checks.look_after()
    assert "ended early (code 3)" in checks.text
    engine.close()


def test_stop_freezes_the_market_clock_and_start_goes_on(listener: Listener) -> None:
    listener.news(lambda n: bool(n.decisions))
    listener.worker.send(Stop())
    stopped = listener.news(lambda n: not n.status.is_running)
    time.sleep(0.6)
    later = listener.news(lambda n: not n.status.is_running)
    assert later.time_ms == stopped.time_ms
    listener.worker.send(Start())
    listener.news(lambda n: n.status.is_running and n.time_ms > stopped.time_ms)


def test_speed_is_market_seconds_per_second(listener: Listener) -> None:
    listener.worker.send(SetSpeed(600.0))
    first = listener.news(lambda n: n.status.speed == 600.0 and bool(n.decisions))
    time.sleep(2.0)
    second = listener.news(lambda n: n.time_ms > first.time_ms + 600_000)
    assert second.time_ms - first.time_ms < 600_000 * 10


def test_the_kill_file_stops_and_rearming_needs_it_gone(listener: Listener, session: Session) -> None:
    listener.news(lambda n: bool(n.decisions))
    lunobiz.write_kill_file(session.home)
    listener.worker.send(Kill())
    listener.news(lambda n: n.status.is_killed)
    listener.worker.send(Rearm())
    refused = listener.wait(lambda e: isinstance(e, Note))
    assert isinstance(refused, Note) and "still there" in refused.text
    kill_file = lunobiz.kill_file_found((session.home,))
    assert kill_file is not None
    kill_file.unlink()
    listener.worker.send(Rearm())
    listener.news(lambda n: not n.status.is_killed)
    kinds = {e.kind for e in listener.seen if isinstance(e, LogLine)}
    assert {"kill", "rearm"} <= kinds


def test_resolving_without_a_halt_says_so(listener: Listener) -> None:
    listener.worker.send(ResolveHalt())
    note = listener.wait(lambda e: isinstance(e, Note))
    assert isinstance(note, Note) and note.text == "Nothing is halted"


def saved(listener: Listener, **values: str) -> SettingsSaved:
    """What the worker says to these settings."""
    listener.worker.send(ChangeSettings(tuple((f"LUNOBIZ_{name}", text) for name, text in values.items())))
    found = listener.wait(lambda e: isinstance(e, SettingsSaved))
    assert isinstance(found, SettingsSaved)
    return found


SECRET = "s3cretS3cretS3cretS3cretS3cretS3cretS3cret0"


def test_a_key_is_kept_in_env_and_shown_nowhere(listener: Listener, session: Session) -> None:
    assert SECRET not in repr(ChangeSettings((("LUNOBIZ_READ_KEY_SECRET", SECRET),)))
    told = saved(listener, READ_KEY_ID="abcdefghijklm", READ_KEY_SECRET=SECRET)
    assert told == SettingsSaved((("LUNOBIZ_READ_KEY_ID", "***"), ("LUNOBIZ_READ_KEY_SECRET", "***")))
    assert f"LUNOBIZ_READ_KEY_SECRET={SECRET}" in (session.home / ".env").read_text().replace("'", "")
    assert all(SECRET.encode() not in path.read_bytes() for path in session.home.glob("*.db*"))


def test_half_a_key_is_refused_with_the_cure(listener: Listener, session: Session) -> None:
    assert "LUNOBIZ_READ_KEY_SECRET is missing" in saved(listener, READ_KEY_ID="abcdefghijklm").problem
    assert not (session.home / ".env").exists()


def test_a_demo_goes_on_and_knows_what_was_changed_in_it(listener: Listener, session: Session) -> None:
    assert not saved(listener, DAILY_LOSS_CAP="0.02").problem
    assert not saved(listener, WEEKLY_LOSS_CAP="0.025").problem
    assert "WEEKLY_LOSS_CAP is 0.019" in saved(listener, WEEKLY_LOSS_CAP="0.019").problem
    assert listener.news(lambda n: True).status.mode == "DEMO"
    assert events_of(session)[1] == "LUNOBIZ_WEEKLY_LOSS_CAP was changed by the owner from 0.06 to 0.025"


@pytest.fixture
def paper(session: Session) -> Iterator[Listener]:
    """PAPER without a key, stopped: nothing is asked of the network."""
    worker = Worker(lambda listen: open_engine(replace(session, mode=Mode.PAPER), listen))
    worker.start()
    yield Listener(worker)
    worker.send(Shutdown())
    assert worker.join(PATIENCE_S)


def events_of(session: Session) -> list[str]:
    """The texts of the owner's changes in the audit of PAPER."""
    with contextlib.closing(sqlite3.connect(session.home / "lunobiz.db")) as base:
        return [text for (text,) in base.execute("SELECT text FROM events WHERE kind = 'settings'")]


def test_paper_is_opened_anew_with_what_was_changed(paper: Listener, session: Session) -> None:
    assert "-3.00 %" in paper.news(lambda n: True).status.cap.caption
    assert saved(paper, DAILY_LOSS_CAP="0.02") == SettingsSaved((("LUNOBIZ_DAILY_LOSS_CAP", "0.02"),))
    assert not paper.news(lambda n: "-2.00 %" in n.status.cap.caption).status.is_running
    assert (session.home / ".env").read_text() == "LUNOBIZ_DAILY_LOSS_CAP=0.02\n"
    assert events_of(session) == ["LUNOBIZ_DAILY_LOSS_CAP was changed by the owner from 0.03 to 0.02"]
    assert saved(paper, DAILY_LOSS_CAP="0.5").problem.startswith('Nothing was changed: LUNOBIZ_DAILY_LOSS_CAP is "0.5"')


def test_a_bot_that_trades_goes_on_with_the_new_settings(paper: Listener) -> None:
    assert not paper.news(lambda n: True).status.is_running
    paper.worker._next_s = math.inf  # it would ask the network
    paper.worker._is_running = True
    assert not saved(paper, DAILY_LOSS_CAP="0.02").problem
    assert paper.news(lambda n: "-2.00 %" in n.status.cap.caption).status.is_running
    paper.worker.send(Stop())


def test_nothing_is_changed_while_a_job_runs(paper: Listener, session: Session) -> None:
    paper.worker._errands.append(lunobiz.Errand(RunBacktest(BacktestRequest("folder", "x"))))
    paper.worker._errands[0]._next_s = math.inf
    assert saved(paper, DAILY_LOSS_CAP="0.02").problem == lunobiz.NOT_NOW
    assert not (session.home / ".env").exists()


def test_a_limit_is_not_loosened_over_a_live_position(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    held = lunobiz.Desk(1e5, (screen.position("ETH", 46_120.0, 0.31, 45_198.0, 38),))
    monkeypatch.setattr(lunobiz.Store, "last_desk", lambda store, mode: (1, held) if mode is Mode.LIVE else None)
    looser, _ = lunobiz.change_stopped(session, {"LUNOBIZ_RISK_PER_TRADE": "0.006"})
    assert looser == "Nothing was changed: no limit is loosened while a LIVE position is open; close it first."
    assert not (session.home / ".env").exists() and events_of(session) == []
    tighter, after = lunobiz.change_stopped(session, {"LUNOBIZ_RISK_PER_TRADE": "0.004"})
    assert tighter == "" and after.settings.limits.risk_per_trade == 0.004


def test_an_account_keeps_its_currency(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        lunobiz.Store, "last_desk", lambda store, mode: (1, lunobiz.Desk(1e5)) if mode is Mode.PAPER else None)
    text, _ = lunobiz.change_stopped(session, {"LUNOBIZ_COUNTER": "USDT", "LUNOBIZ_PAIRS": "XBTUSDT"})
    assert "keeps an account in ZAR" in text
    monkeypatch.undo()
    assert lunobiz.change_stopped(session, {"LUNOBIZ_COUNTER": "USDT", "LUNOBIZ_PAIRS": "XBTUSDT"})[0] == ""


def test_what_the_environment_sets_is_changed_there(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNOBIZ_SLIPPAGE", "0.002")
    assert "set in the environment" in lunobiz.change_stopped(session, {"LUNOBIZ_SLIPPAGE": "0.003"})[0]


def finished(listener: Listener) -> BacktestDone:
    done = listener.wait(lambda e: isinstance(e, BacktestDone))
    assert isinstance(done, BacktestDone)
    return done


def test_a_backtest_of_a_folder_runs_in_a_process_and_is_saved(listener: Listener, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "data")
    assert listener.wait(lambda e: isinstance(e, RunsListed)) == RunsListed(())
    listener.worker.send(RunBacktest(BacktestRequest("folder", str(folder))))
    done = finished(listener)
    assert done.run is not None and done.run.kind == "backtest"
    values = json.loads(done.run.payload)
    assert "NOT CHOSEN" in values["parameters"]
    assert set(values["data"]) == {"XBTUSDT", "ETHUSDT"}
    first = replace(lunobiz.Settings(), params=lunobiz.parameter_sets()[0])  # not the lively set that the demo trades
    as_run = lunobiz.folder_settings(first, lunobiz.read_folder(folder))
    assert values["config_hash"] == lunobiz.config_hash(as_run)
    assert not {"round_trips", "equity_daily", "decisions"} & set(values)
    assert any(isinstance(e, BacktestProgress) for e in listener.seen)
    assert listener.wait(lambda e: isinstance(e, RunsListed)) == RunsListed((done.run,))


def test_the_period_bounds_the_run(listener: Listener, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "data")  # 90 days; decisions from day 70 on
    start = START_MS + 80 * DAY_MS
    listener.worker.send(RunBacktest(BacktestRequest("folder", str(folder), (), (), start, start + 2 * DAY_MS)))
    done = finished(listener)
    assert done.run is not None
    period = json.loads(done.run.payload)["period"]
    found = [datetime.fromisoformat(period[name]).timestamp() * 1000 for name in ("from", "to")]
    assert found == [start, start + 2 * DAY_MS]


def test_a_period_without_candles_says_which_there_are(listener: Listener, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "data")
    listener.worker.send(RunBacktest(BacktestRequest("folder", str(folder), (), (), START_MS + 400 * DAY_MS)))
    done = finished(listener)
    assert done.run is None and done.problem.startswith("no candles in this period: decisions can be made from 20")


def test_the_period_keeps_the_history_before_it() -> None:
    job = BacktestJob((), lunobiz.Settings(), 100, 200)
    asked = BacktestRequest("folder")
    assert lunobiz.within(job, asked) == job
    assert lunobiz.within(job, replace(asked, from_ms=50, to_ms=500)) == job  # never before the memory is filled
    inside = lunobiz.within(job, replace(asked, from_ms=150, to_ms=160))
    assert (inside.start_ms, inside.end_ms) == (150, 160)
    for bounds in ((200, 0), (0, 100), (150, 150)):
        with pytest.raises(lunobiz.DataError):
            lunobiz.within(job, replace(asked, from_ms=bounds[0], to_ms=bounds[1]))


class Held:
    """Keeps the worker's thread in one place once a job has begun, as a slow exchange does, until it is let go."""

    def __init__(self, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_waiting, self.go_on = threading.Event(), threading.Event()

        def wait(engine: object) -> None:
            if any(errand._run for errand in listener.worker._errands):
                self.is_waiting.set()
                self.go_on.wait(PATIENCE_S)

        monkeypatch.setattr(listener.worker, "_step", wait)


def first_event(listener: Listener) -> object:
    """What the window would take next; nothing is waited for."""
    return listener.worker.take_event()


@pytest.mark.parametrize(
    ("order", "cancel", "answer"),
    [(RunBacktest, CancelBacktest(), BacktestDone(None, "Cancelled")),
     (EvaluateGates, CancelGates(), GatesDone("", "Cancelled"))],
)  # fmt: skip
def test_cancel_is_answered_whatever_the_worker_does(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    order: type[RunBacktest] | type[EvaluateGates], cancel: object, answer: object,
) -> None:  # fmt: skip
    """The worker's thread stands still and a thousand events wait: the answer comes first, and the process ends."""
    worker, asked = listener.worker, order(BacktestRequest("folder", str(recorded(tmp_path / "data"))))
    held = Held(listener, monkeypatch)
    worker.send(asked)
    assert held.is_waiting.wait(PATIENCE_S)
    for number in range(1000):
        worker._events.put(LogLine(number, "info", "test", "one of many"))
    run = worker._errands[0]._run
    assert run is not None
    worker.send(cancel)
    done = first_event(listener)
    assert (replace(done, note="") if isinstance(done, GatesDone) else done) == answer
    run._child._process.join(PATIENCE_S)
    assert not run._child._process.is_alive()
    worker.send(cancel)
    assert not isinstance(first_event(listener), (BacktestDone, GatesDone)), "there is nothing to cancel any more"
    worker.send(asked)
    worker.send(cancel)  # before its turn has come
    assert first_event(listener) == answer
    late = worker._asked[order]
    held.go_on.set()
    monkeypatch.undo()
    worker.send(order(BacktestRequest("folder", str(tmp_path / "nowhere"))))
    done = listener.wait(lambda e: isinstance(e, (GatesDone, BacktestDone)))
    assert isinstance(done, (GatesDone, BacktestDone)) and "nowhere" in done.problem
    assert late._run is None, "it was never begun"


def test_a_second_job_of_a_kind_waits_for_nothing_and_is_not_begun(listener: Listener, tmp_path: Path) -> None:
    folder = str(recorded(tmp_path / "data"))
    listener.worker.send(RunBacktest(BacktestRequest("folder", folder)))
    listener.worker.send(RunBacktest(BacktestRequest("folder", "nowhere")))
    assert finished(listener).run is not None
    listener.worker.send(RunBacktest(BacktestRequest("folder", "nowhere")))
    assert "nowhere" in finished(listener).problem


def test_the_next_backtest_is_not_taken_for_cancelled(listener: Listener, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "data")
    order = RunBacktest(BacktestRequest("folder", str(folder)))
    listener.worker.send(order)
    listener.wait(lambda e: isinstance(e, BacktestProgress))
    listener.worker.send(CancelBacktest())
    assert finished(listener).problem == "Cancelled"
    listener.worker.send(order)
    assert finished(listener).run is not None


def test_a_backtest_of_a_missing_folder_names_it(listener: Listener, tmp_path: Path) -> None:
    listener.worker.send(RunBacktest(BacktestRequest("folder", str(tmp_path / "nowhere"))))
    assert "nowhere" in finished(listener).problem


def test_an_empty_cache_says_what_fills_it(listener: Listener) -> None:
    listener.worker.send(RunBacktest(BacktestRequest("cache")))
    assert "no cached candles" in finished(listener).problem


def test_saved_runs_come_newest_first_and_only_runs(tmp_path: Path) -> None:
    store = lunobiz.Store(tmp_path / "a.db", lunobiz.Redactor())
    for number, name in enumerate(("backtest", "day", "gates", "backtest")):
        store.record_metrics(1_000 + number, name, {"n": number})
    listed = lunobiz.saved_runs(store).runs
    assert [(r.kind, r.time_ms, json.loads(r.payload)["n"]) for r in listed] == [
        ("backtest", 1_003, 3), ("gates", 1_002, 2), ("backtest", 1_000, 0),
    ]  # fmt: skip
    assert [row[0] for row in store.results("backtest", 1)] == [listed[0].number]
    store.close()


def test_saved_runs_outlive_a_demo_that_starts_anew(session: Session) -> None:
    """Two runs and an evaluation come back in their order and byte for byte; nothing else does."""
    engine, _ = open_engine(session, lunobiz.ignore_event)
    for number, name in enumerate(("backtest", "day", "gates", "choice", "backtest")):
        engine.parts.store.record_metrics(1_000 + number, name, {"n": number, "é": 0.1})
    before = lunobiz.saved_runs(engine.parts.store).runs
    engine.close()
    engine, _ = open_engine(session, lunobiz.ignore_event)
    store = engine.parts.store
    after = lunobiz.saved_runs(store).runs
    assert [(r.time_ms, r.kind, r.payload) for r in after] == [(r.time_ms, r.kind, r.payload) for r in before]
    assert [r.kind for r in after] == ["backtest", "gates", "backtest"]
    assert [row["name"] for row in store.table("metrics")] == ["backtest", "gates", "backtest"]
    assert not store.table("decisions") and not engine.has_resumed
    store.verify()
    engine.close()


def test_an_export_writes_the_audit(listener: Listener, tmp_path: Path) -> None:
    listener.news(lambda n: bool(n.decisions))
    target = tmp_path / "out"
    target.mkdir()
    listener.worker.send(Export(str(target)))
    note = listener.wait(lambda e: isinstance(e, Note))
    assert isinstance(note, Note) and note.level == "info"
    assert {"decisions.csv", "fills.jsonl"} <= {p.name for p in target.rglob("*")}


def test_a_support_bundle_is_gathered_and_written_by_a_process(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUNOBIZ_EXCHANGE_URL", "https://127.0.0.1:9")
    listener.news(lambda n: bool(n.decisions))
    listener.worker.send(lunobiz.AskSupport())
    draft = listener.wait(lambda e: isinstance(e, lunobiz.SupportDraft))
    assert isinstance(draft, lunobiz.SupportDraft)
    assert {"doctor.txt", "decisions.jsonl"} <= {file.name for file in draft.files}
    listener.worker.send(lunobiz.SaveSupport(str(tmp_path / "s.zip"), draft))
    note = listener.wait(lambda e: isinstance(e, Note))
    assert isinstance(note, Note) and note.level == "info" and (tmp_path / "s.zip").exists()


def test_gates_on_a_folder_are_evaluated_counted_and_locked(listener: Listener, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "data")
    listener.worker.send(EvaluateGates(BacktestRequest("folder", str(folder))))
    done = listener.wait(lambda e: isinstance(e, GatesDone))
    assert isinstance(done, GatesDone) and not done.problem and done.note
    evaluation = json.loads(done.payload)
    assert evaluation["unlocked"] is False and set(evaluation["gates"]) == {f"G{n}" for n in range(10)}
    assert any(isinstance(e, GatesProgress) for e in listener.seen)


def test_gates_on_an_empty_cache_say_what_fills_it(session: Session, tmp_path: Path) -> None:
    paper = replace(session, mode=Mode.PAPER, settings=replace(session.settings, exchange_url="https://127.0.0.1:9"))
    worker = Worker(lambda listen: open_engine(paper, listen))
    worker.start()
    listener = Listener(worker)
    worker.send(EvaluateGates(BacktestRequest("cache")))
    done = listener.wait(lambda e: isinstance(e, GatesDone))
    assert isinstance(done, GatesDone) and "no cached candles" in done.problem
    assert "no key" in {banner.key for banner in listener.news(lambda n: bool(n.banners)).banners}
    worker.send(Shutdown())
    assert worker.join(PATIENCE_S)


def test_the_window_is_told_every_reason_why_live_is_locked(listener: Listener) -> None:
    status = listener.news(lambda n: bool(n.decisions)).status
    assert status.lock_reason == status.lock_reasons[0] and "DEMO" in status.lock_reason
    assert lunobiz.NO_ROW in status.lock_reasons


def test_the_demo_is_no_way_to_live(listener: Listener) -> None:
    listener.worker.send(lunobiz.AskLive())
    offer = listener.wait(lambda e: isinstance(e, lunobiz.LiveOffer))
    assert offer == lunobiz.NO_WAY_TO_LIVE
    listener.worker.send(lunobiz.RequestLive("LIVE", lunobiz.PROMISES))
    told = listener.wait(lambda e: isinstance(e, Note))
    assert isinstance(told, Note) and told.text.startswith("Still in PAPER: Only PAPER on Luno itself")


class Desks:
    """Opens sessions of the demo one after another; in the place of LIVE another one, or trouble."""

    def __init__(self, session: Session, problems: tuple[str, ...] = (), trouble: Exception | None = None) -> None:
        self.session, self.problems, self.trouble = session, problems, trouble
        self.opened: list[str] = []

    def paper(self, listen: Callable[[lunobiz.Event], None]) -> tuple[lunobiz.Engine, lunobiz.WorkerOptions]:
        self.opened.append("paper")
        engine, options = open_engine(self.session, listen)
        offer = lunobiz.LiveOffer(self.problems, (), lunobiz.PROMISES)
        return engine, replace(options, offer_live=lambda engine: offer, open_live=self.live)

    def live(self, listen: Callable[[lunobiz.Event], None]) -> tuple[lunobiz.Engine, lunobiz.WorkerOptions]:
        self.opened.append("live")
        if self.trouble is not None:
            raise self.trouble
        return open_engine(self.session, listen)


def asked_for_live(desks: Desks, word: str, promises: tuple[str, ...], until: Predicate) -> object:
    """What a worker says when LIVE is asked for so."""
    worker = Worker(desks.paper)
    worker.start()
    listener = Listener(worker)
    listener.news(lambda n: bool(n.decisions))
    worker.send(lunobiz.RequestLive(word, promises))
    found = listener.wait(until)
    worker.send(Shutdown())
    assert worker.join(PATIENCE_S)
    return found


def is_note(event: object) -> bool:
    return isinstance(event, Note)


@pytest.mark.parametrize(
    ("word", "promises"),
    [("live", lunobiz.PROMISES), ("", lunobiz.PROMISES), ("LIVE", lunobiz.PROMISES[:-1]), ("LIVE", ())],
)
def test_without_the_word_and_every_promise_it_stays_paper(
    session: Session, word: str, promises: tuple[str, ...]
) -> None:
    desks = Desks(session)
    told = asked_for_live(desks, word, promises, is_note)
    assert told == Note("error", "Still in PAPER: type LIVE and tick every line")
    assert desks.opened == ["paper"]


def test_what_is_in_the_way_is_asked_anew_when_live_is_wanted(session: Session) -> None:
    desks = Desks(session, ("The gates are shut.",))
    told = asked_for_live(desks, "LIVE", lunobiz.PROMISES, is_note)
    assert told == Note("error", "Still in PAPER: The gates are shut.") and desks.opened == ["paper"]


def test_a_confirmed_request_opens_live_after_paper_was_closed(session: Session) -> None:
    desks = Desks(session)
    asked_for_live(desks, "LIVE", lunobiz.PROMISES, lambda e: isinstance(e, lunobiz.RunsListed) and
                   desks.opened == ["paper", "live"])  # fmt: skip


def test_when_live_cannot_be_opened_paper_goes_on(session: Session) -> None:
    """Trading, if it was."""
    desks = Desks(session, trouble=lunobiz.ExchangeDown("the exchange cannot be reached"))
    told = asked_for_live(desks, "LIVE", lunobiz.PROMISES, is_note)
    assert told == Note("error", "Back in PAPER: the exchange cannot be reached")
    assert desks.opened == ["paper", "live", "paper"]


@pytest.mark.parametrize("runs", [True, False])
def test_paper_is_as_it_was_after_a_live_that_could_not_be_opened(session: Session, runs: bool) -> None:
    desks = Desks(session, trouble=lunobiz.ExchangeDown("the exchange cannot be reached"))
    worker = Worker(desks.paper)
    worker.start()
    listener = Listener(worker)
    listener.news(lambda n: bool(n.decisions))
    worker.send(lunobiz.Start() if runs else lunobiz.Stop())
    worker.send(lunobiz.RequestLive("LIVE", lunobiz.PROMISES))
    listener.wait(is_note)
    is_running = listener.news(lambda n: True).status.is_running
    worker.send(Shutdown())
    assert worker.join(PATIENCE_S) and is_running is runs


def test_what_runs_when_live_is_asked_for_is_cancelled_and_the_worker_goes_on(session: Session, tmp_path: Path) -> None:
    """Its result would go into the audit of a session that has been closed."""
    desks = Desks(session)
    worker = Worker(desks.paper)
    worker.start()
    listener = Listener(worker)
    listener.news(lambda n: bool(n.decisions))
    worker.send(EvaluateGates(BacktestRequest("folder", str(recorded(tmp_path / "data")))))
    listener.wait(lambda e: isinstance(e, GatesProgress))
    worker.send(lunobiz.RequestLive("LIVE", lunobiz.PROMISES))
    try:
        done = listener.wait(lambda e: isinstance(e, GatesDone))
        assert isinstance(done, GatesDone) and done.problem == lunobiz.CANCELLED
        listener.wait(lambda e: isinstance(e, lunobiz.RunsListed) and desks.opened == ["paper", "live"])
        assert listener.news(lambda n: bool(n.decisions)).status.is_running
    finally:
        worker.send(Shutdown())
    assert worker.join(PATIENCE_S)


def test_a_stop_and_a_kill_of_a_session_that_stands_still_end_what_live_wants_to_buy(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[bool] = []
    monkeypatch.setattr(lunobiz, "call_off_entries", lambda engine, clock: called.append(engine.bars_entries))
    worker = Worker(lambda listen: open_engine(session, listen))
    worker.start()
    listener = Listener(worker)
    listener.news(lambda n: bool(n.decisions))
    for command in (lunobiz.Kill(), lunobiz.Stop(), lunobiz.Kill(), lunobiz.Start(), Shutdown()):
        worker.send(command)
    assert worker.join(PATIENCE_S)
    assert len(called) == 3  # not by the kill while it ran: the next beat sees the file


def test_a_worker_that_ends_takes_its_evaluation_with_it(session: Session, tmp_path: Path) -> None:
    worker = Worker(lambda listen: open_engine(session, listen))
    worker.start()
    worker.send(EvaluateGates(BacktestRequest("folder", str(recorded(tmp_path / "data")))))
    Listener(worker).wait(lambda e: isinstance(e, GatesProgress))
    run = worker._errands[0]._run
    worker.send(Shutdown())
    assert worker.join(PATIENCE_S) and isinstance(run, lunobiz.GateRun)
    assert not any(process.is_alive() for process in (*run._helpers, run._child._process))


def crash(pipe: object) -> None:
    """A process that dies without a word."""
    os._exit(3)


def test_a_process_that_crashes_is_noticed(tmp_path: Path) -> None:
    child = Child(crash)
    end = time.monotonic() + PATIENCE_S
    while not child.is_done and time.monotonic() < end:
        assert list(child.poll()) == []
        time.sleep(0.02)
    assert child.is_done and child.exit_code == 3


def speak(pipe: Connection) -> None:
    """A process that says two words and ends."""
    pipe.send("one")
    pipe.send("two")
    pipe.close()


class WindowsPipe:
    """A pipe as Windows has it: where the other end is gone, asking whether something is there raises as well."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._next = pipe, deque[object]()

    def poll(self) -> bool:
        """True if something is there; BrokenPipeError where nothing can come any more."""
        while self._pipe.poll():
            try:
                self._next.append(self._pipe.recv())
            except EOFError:
                break
        else:
            return bool(self._next)
        if not self._next:
            raise BrokenPipeError
        return True

    def recv(self) -> object:
        """The next word."""
        return self._next.popleft()


def test_a_process_that_has_ended_is_no_fault_where_its_pipe_is_broken(tmp_path: Path) -> None:
    child = Child(speak)
    if sys.platform != "win32":
        child._pipe = WindowsPipe(child._pipe)  # type: ignore[assignment]
    end, told = time.monotonic() + PATIENCE_S, list[object]()
    while not child.is_done and time.monotonic() < end:
        told += child.poll()
        time.sleep(0.02)
    assert told == ["one", "two"]
    assert list(child.poll()) == [] and child.is_done and child.exit_code == 0


# ---- closing all ------------------------------------------------------------------


def slowly(listener: Listener, fits: Callable[[DeskNews], bool]) -> DeskNews:
    """Let the demo run until something is so, and then hardly at all."""
    listener.news(lambda n: fits(n))
    listener.worker.send(SetSpeed(1.0))  # the next step is 15 minutes away
    return listener.news(lambda n: n.status.speed == 1.0)


def offer_of(listener: Listener) -> lunobiz.ClosingOffer:
    """What closing all would do."""
    listener.worker.send(lunobiz.AskClose())
    offer = listener.wait(lambda e: isinstance(e, lunobiz.ClosingOffer))
    assert isinstance(offer, lunobiz.ClosingOffer)
    return offer


def test_all_is_closed_when_what_was_shown_is_still_there(listener: Listener) -> None:
    news = slowly(listener, lambda n: bool(n.positions))
    while not news.positions:  # it was closed meanwhile
        listener.worker.send(SetSpeed(0.0))
        news = slowly(listener, lambda n: bool(n.positions))
    offer = offer_of(listener)
    assert not offer.problem and len(offer.lines) >= 2
    assert {r.key for r in news.positions} <= set(offer.marks)
    listener.worker.send(lunobiz.CloseAll((*offer.marks, "XXXZAR")))
    note = listener.wait(is_note)
    assert isinstance(note, Note) and "positions or orders have changed" in note.text
    listener.worker.send(lunobiz.CloseAll(offer.marks))
    listener.wait(lambda e: isinstance(e, LogLine) and e.kind == "close_all")
    listener.worker.send(SetSpeed(0.0))
    listener.news(lambda n: not n.positions)
    assert not any(isinstance(e, Note) and "changed" in e.text for e in listener.seen[listener.seen.index(note) + 1:])


def test_a_session_that_stands_still_closes_nothing_then_or_later(listener: Listener) -> None:
    """Nothing would be sold now, and prices will be others when it goes on."""
    listener.news(lambda n: bool(n.positions))
    listener.worker.send(Stop())
    listener.news(lambda n: not n.status.is_running)
    assert offer_of(listener).problem == "The bot is stopped, so nothing would be sold: start it first."
    listener.worker.send(lunobiz.CloseAll(("ETHZAR",)))
    note = listener.wait(is_note)
    assert isinstance(note, Note) and note.text.startswith("The bot is stopped")
    listener.worker.send(Start())
    listener.news(lambda n: n.status.is_running)
    assert not any(isinstance(e, LogLine) and e.kind == "close_all" for e in listener.seen)


def test_before_the_first_price_there_is_no_offer(session: Session) -> None:
    engine, _ = open_engine(session, lunobiz.ignore_event)
    assert lunobiz.offer_to_close(engine, True).problem == "Not now: no price has come yet."
    assert lunobiz.offer_to_close(engine, False).problem.startswith("The bot is stopped")
    assert lunobiz.close_all(engine, 0, ()) == "Not now: no price has come yet."
    engine.close()


# ---- staying awake ----------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_the_computer_stays_awake_while_something_is_open(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of the loop for each: nothing open, an order, a position, stopped, running again, all closed."""
    rounds = ((True, desk()), (True, desk(orders=(order(),))), (True, desk(positions=(position(),))),
              (False, desk(positions=(position(),))), (True, desk(positions=(position(),))), (True, desk()))
    worker = Worker(lambda listen: pytest.fail("nothing is opened"))
    engine = SimpleNamespace(parts=SimpleNamespace(mode=mode), desk=desk())
    left, held, asked = list(rounds), list[bool](), list[int]()

    def ask(state: int) -> int:
        asked.append(state)
        return 1

    def step(engine: SimpleNamespace) -> None:
        worker._is_running, engine.desk = left.pop(0)

    def post(engine: SimpleNamespace, is_urgent: bool) -> None:
        held.append(worker._awake.is_held)
        if not left:
            worker.send(Shutdown())

    worker._awake = lunobiz.KeepAwake(ask)
    monkeypatch.setattr(worker, "_step", step)
    monkeypatch.setattr(worker, "_post", post)
    monkeypatch.setattr(worker, "_look_after_children", lambda engine: None)
    worker._loop(engine)  # type: ignore[arg-type]
    is_real = mode in (Mode.PAPER, Mode.LIVE)
    assert held == [is_real and wanted for wanted in (False, True, True, False, True, False)]
    assert len(asked) == (4 if is_real else 0)


def test_a_session_that_cannot_open_fails_in_words(session: Session) -> None:
    session.database.write_bytes(b"this is no database, and it must not be overwritten")
    broken = replace(session, mode=Mode.PAPER)
    (session.home / "lunobiz.db").write_bytes(b"no database")
    worker = Worker(lambda listen: open_engine(broken, listen))
    worker.start()
    listener = Listener(worker)
    failed = listener.wait(lambda e: isinstance(e, Failed))
    assert isinstance(failed, Failed) and "lunobiz.db" in failed.text
    listener.wait(lambda e: isinstance(e, Closed))
    assert worker.join(5.0)


def test_the_newest_evaluation_is_shown_again_and_an_old_one_is_marked(tmp_path: Path) -> None:
    store = lunobiz.Store(tmp_path / "lunobiz.db", lunobiz.Redactor())
    assert lunobiz.last_evaluation(store, 0, 30) is None
    for time_ms, summary in ((1_000, "first"), (2_000, "second")):
        store.record_metrics(time_ms, "gates", {"summary": summary})
    fresh, stale = (lunobiz.last_evaluation(store, 2_000 + days * lunobiz.DAY_MS, 30) for days in (30, 31))
    store.close()
    assert fresh is not None and stale is not None
    assert json.loads(fresh.payload) == {"summary": "second"} and fresh.time_ms == 2_000 and fresh.note == ""
    assert stale.note.startswith("STALE: 31 days old")


class Refusing:
    """A channel that takes nothing."""

    name, can_be_silent = "Telegram", True

    def send(self, notice: lunobiz.Notice) -> lunobiz.Delivery:
        return lunobiz.Delivery(False, "token refused", is_refused=True)

    def idle(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_dead_channel_stands_in_status_bar_banner_and_log(session: Session) -> None:
    heard: list[lunobiz.Event] = []
    engine, options = open_engine(session, heard.append)
    clock = lunobiz.SteppedClock(START_MS)
    notifier = lunobiz.Notifier((Refusing(),), clock)
    engine.parts = replace(engine.parts, notifier=notifier)
    newsroom = lunobiz.Newsroom(engine, options, lunobiz.DayCheck(engine, options))
    assert newsroom.health(True, 1.0, "").findings == ()
    notifier.offer(lunobiz.Notice("error", "Stop hit", "x"))
    for _ in range(4):
        notifier.pump()
        clock.sleep(400)
    for _ in range(2):
        health = newsroom.health(True, 1.0, "")
        assert [b.key for b in health.findings] == ["notices"] and "No message reaches you" in health.findings[0].text
    paper = replace(health, mode=lunobiz.Mode.PAPER)  # a demo has no channel
    assert "Telegram off: token refused; 1 dropped" in lunobiz.footer_text(paper, lunobiz.Zone())
    assert [e.text for e in heard if e.kind == "notices"] == [notifier.trouble]
    engine.close()
