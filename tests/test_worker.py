"""WORKER: the thread, its messages, and the processes it starts."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import lunobiz
from lunobiz import (
    BacktestDone,
    BacktestProgress,
    BacktestRequest,
    CancelBacktest,
    Child,
    Closed,
    DeskNews,
    Export,
    Failed,
    Kill,
    LogLine,
    Mode,
    Note,
    Rearm,
    ResolveHalt,
    RunBacktest,
    SaveKey,
    Session,
    SetSpeed,
    Shutdown,
    Start,
    Stop,
    Worker,
    open_engine,
)
from recordings import Shape, market_rows, write_folder

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
    assert {len(row.cells) for row in news.decisions} == {5}
    assert any("Wait" in cell or "Enter" in cell for row in news.ranking for cell in row.cells)


def test_a_finished_day_is_checked_in_a_process_and_told(listener: Listener) -> None:
    line = listener.wait(lambda e: isinstance(e, LogLine) and e.kind == "parity")
    assert isinstance(line, LogLine)
    assert line.level == "info", line.text
    days = r"2026-01-\d\d( to 2026-01-\d\d)?"
    assert re.fullmatch(rf"Replay check: \d+ cycles of {days} equal \(\d+ signals, .*\)", line.text)
    assert listener.news(lambda n: "Replay check: " in n.footer and " equal" in n.footer)


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
    assert listener.news(lambda n: n.status.is_running and n.time_ms > stopped.time_ms)


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
    assert listener.news(lambda n: not n.status.is_killed)
    kinds = {e.kind for e in listener.seen if isinstance(e, LogLine)}
    assert {"kill", "rearm"} <= kinds


def test_resolving_without_a_halt_says_so(listener: Listener) -> None:
    listener.worker.send(ResolveHalt())
    note = listener.wait(lambda e: isinstance(e, Note))
    assert isinstance(note, Note) and note.text == "Nothing is halted"


def test_a_key_is_kept_in_env_and_shown_nowhere(listener: Listener, session: Session) -> None:
    secret = "s3cretS3cretS3cretS3cretS3cretS3cretS3cret0"
    assert secret not in repr(SaveKey("abcdefghijklm", secret))
    listener.worker.send(SaveKey("abcdefghijklm", secret))
    note = listener.wait(lambda e: isinstance(e, Note))
    assert isinstance(note, Note) and "saved" in note.text and secret not in note.text
    assert f"LUNOBIZ_READ_KEY_SECRET={secret}" in (session.home / ".env").read_text().replace("'", "").replace('"', "")


def test_half_a_key_is_refused_with_the_cure(session: Session) -> None:
    text = lunobiz.save_key(session.home, "abcdefghijklm", "")
    assert "LUNOBIZ_READ_KEY_SECRET is missing" in text
    assert not (session.home / ".env").exists()


def test_a_backtest_of_a_folder_runs_in_a_process_with_progress(listener: Listener, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "data")
    listener.worker.send(RunBacktest(BacktestRequest("folder", str(folder))))
    done = listener.wait(lambda e: isinstance(e, BacktestDone))
    assert isinstance(done, BacktestDone)
    assert any(row.key == "total_return" or "return" in row.cells[0].lower() for row in done.rows)
    assert "NOT CHOSEN" in done.summary
    assert any(isinstance(e, BacktestProgress) for e in listener.seen)


def test_a_cancelled_backtest_ends_at_once_and_says_so(listener: Listener, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "data")
    listener.worker.send(RunBacktest(BacktestRequest("folder", str(folder))))
    listener.wait(lambda e: isinstance(e, BacktestProgress) and e.total > 0)
    listener.worker.send(CancelBacktest())
    done = listener.wait(lambda e: isinstance(e, BacktestDone))
    assert isinstance(done, BacktestDone) and not done.rows and done.summary


def test_a_backtest_of_a_missing_folder_names_it(listener: Listener, tmp_path: Path) -> None:
    listener.worker.send(RunBacktest(BacktestRequest("folder", str(tmp_path / "nowhere"))))
    done = listener.wait(lambda e: isinstance(e, BacktestDone))
    assert isinstance(done, BacktestDone) and "nowhere" in done.summary


def test_an_empty_cache_says_what_fills_it(listener: Listener) -> None:
    listener.worker.send(RunBacktest(BacktestRequest("cache")))
    done = listener.wait(lambda e: isinstance(e, BacktestDone))
    assert isinstance(done, BacktestDone) and "no cached candles" in done.summary


def test_an_export_writes_the_audit(listener: Listener, tmp_path: Path) -> None:
    listener.news(lambda n: bool(n.decisions))
    target = tmp_path / "out"
    target.mkdir()
    listener.worker.send(Export(str(target)))
    note = listener.wait(lambda e: isinstance(e, Note))
    assert isinstance(note, Note) and note.level == "info"
    assert {"decisions.csv", "fills.jsonl"} <= {p.name for p in target.rglob("*")}


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
