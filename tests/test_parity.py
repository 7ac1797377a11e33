"""PARITY: the recorded inputs give what was recorded, and each difference has its place and its cause."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import lunobiz
from lunobiz import (
    AuditBroken,
    CauseKind,
    CycleReport,
    Difference,
    Engine,
    InputRow,
    Market,
    Mode,
    OrderKind,
    ParityReport,
    Redactor,
    Session,
    Settings,
    Store,
    check_parity,
    read_audit,
)
from recordings import QUICK, Shape, market_rows, quick_settings, write_folder

PROGRAM = Path(lunobiz.__file__)
CODE = "c0de"
Row = dict[str, object]
Step = Callable[[Engine, CycleReport], None]


# ---- sessions, and hands that meddle with what they left -----------------------------


def leave_alone(engine: Engine, report: CycleReport) -> None:
    """Nothing happens between two cycles."""


class Crash(BaseException):
    """The end of the program in the middle of a step."""


@pytest.fixture(scope="module", autouse=True)
def lively_sets() -> Iterator[None]:
    """Recorded candles are traded with the first set of the fixed list; a quick one brings dozens of orders a week."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lunobiz, "parameter_sets", lambda: (QUICK,))
        yield


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two markets, a week that can be traded."""
    shapes = {"AAAZAR": Shape(900.0, 3, 2e4, 52), "BBBZAR": Shape(31.0, 3, 6e5, 32)}
    data = {pair: market_rows(shape, 78, 3600) for pair, shape in shapes.items()}
    return write_folder(tmp_path_factory.mktemp("candles"), data, 3600, {p: {"spread": 0.002} for p in data})


def session_of(folder: Path, home: Path, settings: Settings) -> tuple[Engine, lunobiz.WorkerOptions]:
    """A replay session as the command line opens it, its program called CODE."""
    session = Session(Mode.REPLAY, settings, home, {}, 0, str(folder), 0.0, "OFF")
    engine, options = lunobiz.open_engine(session, lunobiz.ignore_event)
    engine.parts = replace(engine.parts, install=replace(engine.parts.install, code_hash=CODE))
    return engine, options


def play(folder: Path, home: Path, settings: Settings, between: Step = leave_alone) -> None:
    """A session to the end of the recording; after a Crash nothing is closed in order."""
    home.mkdir(exist_ok=True)
    engine, options = session_of(folder, home, settings)
    try:
        while engine.load(options.clock.now_ms()) is not None:
            pass
        while (reports := engine.step()) is not None:
            for report in reports:
                between(engine, report)
        engine.close()
    except Crash:
        engine.parts.store.close()
        engine.parts.log.close()
        raise


def after_writing(engine: Engine, happens: Callable[[CycleReport], None]) -> None:
    """Have something happen when a cycle is on disk and its orders are not sent yet."""
    write = engine.parts.store.record

    def record(
        report: CycleReport, mode: Mode, markets: Mapping[str, Market], inputs: Iterable[InputRow] = ()
    ) -> None:
        write(report, mode, markets, inputs)
        happens(report)

    engine.parts.store.record = record  # type: ignore[method-assign]


def quick(**schedule: object) -> Settings:
    """Quick settings that also take entries after their time, so that every kind of order occurs."""
    return quick_settings(takes_after_timeout=True, **schedule)


@pytest.fixture(scope="module")
def recorded(candles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a session that nobody disturbed."""
    home = tmp_path_factory.mktemp("recorded")
    play(candles, home, quick())
    return home / "replay.db"


@pytest.fixture
def database(recorded: Path, tmp_path: Path) -> Path:
    """A copy to meddle with."""
    return Path(shutil.copy(recorded, tmp_path / "replay.db"))


def check(database: Path, source: str = CODE) -> ParityReport:
    """The whole check."""
    return check_parity(read_audit(database, Mode.REPLAY), source)


def only(report: ParityReport) -> Difference:
    """The one difference of a check."""
    assert len(report.differences) == 1, [d.text for d in report.differences]
    return report.differences[0]


@contextlib.contextmanager
def meddling(path: Path) -> Iterator[sqlite3.Connection]:
    """The database without its triggers; they are put back at the end, and so are the seals of what was changed."""
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    yield db
    for table in lunobiz.SEALED:
        before = ""
        for row in db.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall():
            before = lunobiz._seal(before, tuple(row)[1:-1])
            db.execute(f"UPDATE {table} SET seal = ? WHERE rowid = ?", (before, row["rowid"]))
    for _, text in triggers:
        db.execute(text)
    db.commit()
    db.close()


def rewrite(path: Path, kind: str, change: Callable[[Row], bool]) -> None:
    """Change the first row of inputs of a kind in which `change` finds something to do, checksum and all."""
    with meddling(path) as db:
        query = "SELECT rowid, time_ms, mode, number, kind, packed FROM inputs WHERE kind = ? ORDER BY number"
        for row in db.execute(query, (kind,)).fetchall():
            value = json.loads(zlib.decompress(row["packed"]))
            if change(value):
                packed = zlib.compress(lunobiz.input_text(value).encode())
                told = lunobiz._input_checksum(tuple(row)[1:5], packed)
                db.execute("UPDATE inputs SET packed = ?, checksum = ? WHERE rowid = ?", (packed, told, row["rowid"]))
                return
    pytest.fail("nothing to change")


def entries(block: Row) -> list[Row]:
    """The entries of a block."""
    found = block["entries"]
    assert isinstance(found, list)
    return found


# ---- equal -----------------------------------------------------------------


def test_a_session_run_again_is_equal(recorded: Path) -> None:
    report = check(recorded)
    assert [d.text for d in report.differences] == []
    assert (report.is_equal, report.notes) == (True, ())
    db = sqlite3.connect(recorded)
    counts = {t: db.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0] for t in lunobiz.REPLAYED}
    kinds = {row[0] for row in db.execute("SELECT kind FROM order_intents")}
    db.close()
    assert {t: report.counts[t] for t in counts} == counts
    assert kinds == {k.value for k in OrderKind}
    assert report.counts["fills"] >= 10
    assert report.counts["signals"] == report.counts["decisions"]  # each reading of each candle was computed again
    assert report.stretches == 9  # 11 to 18 March, and the midnight at which the recording ends
    assert "equal" in report.text and "fills" in report.text


def test_a_day_is_checked_by_itself(recorded: Path) -> None:
    whole = check(recorded)
    first = whole.from_ms // lunobiz.DAY_MS
    counts = 0
    for day in range(first, whole.to_ms // lunobiz.DAY_MS + 1):
        span = (day * lunobiz.DAY_MS, (day + 1) * lunobiz.DAY_MS)
        report = check_parity(read_audit(recorded, Mode.REPLAY, *span), CODE, span[1])
        assert report.is_equal and report.stretches == 1
        counts += report.counts["cycles"]
    assert counts == whole.counts["cycles"]


def test_another_program_that_gives_the_same_is_equal_and_named(recorded: Path) -> None:
    report = check(recorded, "0ther")
    assert report.is_equal
    assert len(report.notes) == 1 and "another program" in report.notes[0]


def dies_after(cycles: int) -> Step:
    """The end at the first cycle after so many that left something."""
    seen: list[int] = []

    def dies(engine: Engine, report: CycleReport) -> None:
        seen.append(report.now_ms)
        if len(seen) >= cycles and not report.is_quiet:
            raise Crash

    return dies


def test_crashes_again_and_again_change_nothing_and_are_named(candles: Path, tmp_path: Path) -> None:
    """Each session goes on from the desk written last."""
    home = tmp_path / "home"
    for cycles in (3, 4, 4, 9, 10, 30, 31, 60):
        with pytest.raises(Crash):
            play(candles, home, quick(), dies_after(cycles))
    play(candles, home, quick())
    report = check(home / "replay.db")
    assert [d.text for d in report.differences] == []
    assert sum("after a crash" in note for note in report.notes) == 8


def test_a_crash_between_writing_and_sending_changes_nothing(candles: Path, tmp_path: Path) -> None:
    home, died = tmp_path / "home", set[int]()
    home.mkdir()

    def dies(report: CycleReport) -> None:
        if (report.orders or report.cancels) and report.now_ms not in died and len(died) < 12:
            died.add(report.now_ms)
            raise Crash

    while True:
        engine, options = session_of(candles, home, quick())
        after_writing(engine, dies)
        try:
            while engine.load(options.clock.now_ms()) is not None:
                pass
            while engine.step() is not None:
                pass
            engine.close()
            break
        except Crash:
            engine.parts.store.close()
            engine.parts.log.close()
    report = check(home / "replay.db")
    assert [d.text for d in report.differences] == []
    assert len(report.notes) == len(died) == 12


# ---- each difference with its cause ------------------------------------------------


def test_an_input_changed_by_hand_is_damage_or_a_difference(database: Path) -> None:
    """The bid of a quote at a decision with a position: marks and stops follow from it."""

    def change(block: Row) -> bool:
        for entry in entries(block):
            views = entry.get("views")
            for view in views.values() if isinstance(views, dict) and entry["due"] else ():
                if entry.get("kept") and view.get("ticker"):
                    view["ticker"]["bid"] *= 0.9
                    view["ticker"]["last"] *= 0.9
                    return True
        return False

    rewrite(database, "block", change)
    found = check(database).differences[0]
    assert found.cause == "edited"
    assert found.what in ("decision", "desk")
    assert found.time_ms > 0 and found.field
    db = sqlite3.connect(database)
    db.execute("DROP TRIGGER inputs_stay")
    db.execute("UPDATE inputs SET packed = zeroblob(20) WHERE kind = 'block'")
    db.commit()
    db.close()
    with pytest.raises(AuditBroken, match="damaged in its table inputs"):
        check(database)


def test_a_changed_row_is_named_with_field_moment_and_market(database: Path) -> None:
    with meddling(database) as db:
        row = db.execute("SELECT * FROM decisions WHERE action = 'enter' LIMIT 1").fetchone()
        db.execute("UPDATE decisions SET code = 'no-signal' WHERE rowid = ?", (row["rowid"],))
    Store(database, Redactor()).verify()  # whoever did it knows how to seal
    found = only(check(database))
    assert (found.cause, found.what, found.time_ms, found.pair) == ("edited", "decision", row["time_ms"], row["pair"])
    assert (found.field, found.recorded, found.replayed) == ("code", "no-signal", "enter")
    assert "Cause: same program, same settings" in found.text and row["pair"] in found.text


def test_a_changed_number_is_named_inside_its_text(database: Path) -> None:
    with meddling(database) as db:
        row = db.execute("SELECT * FROM decisions WHERE numbers LIKE '%\"close\"%' LIMIT 1").fetchone()
        numbers = json.loads(row["numbers"]) | {"close": 1.0}
        db.execute("UPDATE decisions SET numbers = ? WHERE rowid = ?", (lunobiz.canonical(numbers), row["rowid"]))
    found = only(check(database))
    assert (found.field, found.recorded, found.pair) == ("numbers.close", "1.0", row["pair"])


def test_a_changed_desk_is_named_with_the_market_of_its_position(database: Path) -> None:
    with meddling(database) as db:
        rows = db.execute("SELECT rowid, desk FROM snapshots ORDER BY rowid").fetchall()
        number, desk = next((r["rowid"], json.loads(r["desk"])) for r in rows if json.loads(r["desk"])["positions"])
        pair = desk["positions"][0]["pair"]
        desk["positions"][0]["stop"] += 1e-9
        db.execute("UPDATE snapshots SET desk = ? WHERE rowid = ?", (lunobiz.canonical(desk), number))
    found = only(check(database))
    assert (found.what, found.field, found.pair) == ("desk", "desk.positions.0.stop", pair)


@pytest.mark.parametrize("table", ["fills", "order_intents", "trades", "decisions"])
def test_a_row_too_few_and_a_row_too_many_are_named(database: Path, table: str) -> None:
    with meddling(database) as db:
        row = db.execute(f"SELECT * FROM {table} ORDER BY rowid LIMIT 1 OFFSET 2").fetchone()
        db.execute(f"DELETE FROM {table} WHERE rowid = ?", (row["rowid"],))
    found = check(database).differences[0]
    assert (found.what, found.time_ms, found.pair) == (lunobiz.ROW_WORDS[table], row["time_ms"], row["pair"])
    assert found.cause == "edited"


def test_a_missing_block_is_named_by_its_number(database: Path) -> None:
    with meddling(database) as db:
        query = "SELECT number, time_ms FROM inputs WHERE kind = 'block' ORDER BY number LIMIT 1 OFFSET 20"
        number, time_ms = db.execute(query).fetchone()
        db.execute("DELETE FROM inputs WHERE number = ?", (number,))
    found = only(check(database))
    assert (found.cause, found.detail) == ("inputs-missing", f"number {number}")
    assert found.time_ms >= time_ms


def test_a_cycle_without_its_input_is_named(database: Path) -> None:
    taken: list[int] = []

    def change(block: Row) -> bool:
        rows = entries(block)
        place = next((i for i, e in enumerate(rows) if e.get("kept") and e["due"] and len(rows) == 1), -1)
        if place >= 0:
            taken.append(int(str(rows.pop(place)["t"])))
        return place >= 0

    rewrite(database, "block", change)
    found = check(database).differences[0]
    assert (found.cause, found.time_ms) == ("cycle-without-input", taken[0])


def test_rows_after_the_last_input_are_named(database: Path) -> None:
    with meddling(database) as db:
        number = db.execute("SELECT MAX(number) FROM inputs WHERE kind = 'block'").fetchone()[0]
        db.execute("DELETE FROM inputs WHERE number >= ?", (number,))
        (last,) = db.execute("SELECT MAX(time_ms) FROM snapshots").fetchone()
    found = only(check(database))
    assert (found.cause, found.time_ms) == ("cycle-without-input", last)


def test_settings_changed_in_the_record_are_named(database: Path) -> None:
    def change(start: Row) -> bool:
        settings = start["settings"]
        assert isinstance(settings, dict)
        settings["limits"]["min_confidence"] = 0.99
        return True

    rewrite(database, "start", change)
    assert check(database).differences[0].cause == "settings-changed"


def test_settings_the_program_does_not_know_are_named(database: Path) -> None:
    def change(start: Row) -> bool:
        settings = start["settings"]
        assert isinstance(settings, dict)
        settings["limits"]["moon_phase"] = 0.5
        return True

    rewrite(database, "start", change)
    found = check(database).differences[0]
    assert (found.cause, "settings" in found.detail) == ("inputs-unreadable", True)


def test_settings_the_owner_changed_between_sessions_are_a_note(candles: Path, tmp_path: Path) -> None:
    """Each session is run with its own settings; only the change is told."""

    def dies(engine: Engine, report: CycleReport) -> None:
        if len(engine.parts.store.table("decisions")) > 100:
            raise Crash

    with pytest.raises(Crash):
        play(candles, tmp_path / "home", quick(), dies)
    other = replace(quick(), limits=replace(quick().limits, max_positions=1))
    play(candles, tmp_path / "home", other)
    report = check(tmp_path / "home" / "replay.db")
    assert [d.text for d in report.differences] == []
    assert sum("other settings" in note for note in report.notes) == 1


def test_a_planted_change_of_a_rule_is_caught(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = lunobiz.confidence_of
    monkeypatch.setattr(lunobiz, "confidence_of", lambda setup, needed: kind(setup, needed) * 0.999)
    found = check(database, "0ther").differences[0]
    assert (found.cause, found.what, found.field) == ("program-changed", "decision", "confidence")
    assert "c0de" in found.detail and "0ther" in found.detail


def test_a_planted_change_of_a_strategy_is_caught_at_the_candle_it_reads_otherwise(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = lunobiz.outlook_at

    def planted(table: lunobiz.SignalTable, row: int) -> lunobiz.Outlook:
        told = reading(table, row)
        is_it = told.pair == "BBBZAR" and told.opened_ms // lunobiz.HOUR_MS % 24 == 7
        return replace(told, atr=told.atr * (1 + 1e-15)) if is_it else told

    monkeypatch.setattr(lunobiz, "outlook_at", planted)
    report = check(database, "0ther")
    found = report.differences[0]
    assert (found.cause, found.what, found.pair, found.field) == ("program-changed", "signal", "BBBZAR", "atr")
    assert found.time_ms // lunobiz.HOUR_MS % 24 == 8


def test_a_line_that_stops_at_an_input_is_named(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(draft: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(lunobiz, "enter", stops)
    found = check(database, "0ther").differences[0]
    assert (found.cause, found.what) == ("program-changed", "input")
    assert "ZeroDivisionError" in found.detail


@pytest.mark.parametrize("is_after_crash", [True, False])
def test_a_session_that_went_on_from_another_desk_is_named(
    candles: Path, tmp_path: Path, is_after_crash: bool
) -> None:
    def dies(engine: Engine, report: CycleReport) -> None:
        if len(engine.parts.store.table("decisions")) > 60:
            if not is_after_crash:
                engine.parts.store.mark_session("closed", report.now_ms)
            raise Crash

    with pytest.raises(Crash):
        play(candles, tmp_path / "home", quick(), dies)
    database = tmp_path / "home" / "replay.db"
    if not is_after_crash:  # a replay that ended in order starts anew; this one is made to go on
        with meddling(database) as db:
            db.execute("UPDATE sessions SET kind = 'opened'")
    play(candles, tmp_path / "home", quick())

    def change(start: Row) -> bool:
        desk = json.loads(str(start["desk"]))
        if not start["session"] or desk["day"] == 0:  # the first session began with a new desk
            return False
        desk["cash"] += 1.0
        start["desk"], start["crash"] = lunobiz.canonical(desk), is_after_crash
        return True

    rewrite(database, "start", change)
    found = check(database).differences[0]
    assert (found.cause, found.field) == ("crash" if is_after_crash else "start-differs", "cash")


# ---- the owner's acts ------------------------------------------------------


class Owner:
    """Presses the kill switch and re-arms; lifts a halt that a lost week brings."""

    def __init__(self, kill_file: Path) -> None:
        self.file, self.acts, self.cycles = kill_file, 0, 0

    def __call__(self, engine: Engine, report: CycleReport) -> None:
        """What the owner does after a cycle."""
        self.cycles += 1
        now = report.now_ms
        kinds = {c.kind for c in engine.desk.causes}
        if CauseKind.KILL in kinds:
            self.file.unlink(missing_ok=True)
            self.acts += engine.rearm(now) == ""
        elif CauseKind.WEEKLY_CAP in kinds:
            self.acts += engine.resolve_halt(now) == ""
        elif self.cycles % 40 == 0:
            self.file.touch()


@pytest.fixture
def ruled(candles: Path, tmp_path: Path) -> tuple[Path, Owner]:
    """A session with an owner who interferes, and a cap that is soon reached."""
    tight = replace(quick(), limits=replace(quick().limits, weekly_loss_cap=0.005, daily_loss_cap=0.005))
    owner = Owner(tmp_path / "home" / "KILL")
    play(candles, tmp_path / "home", tight, owner)
    return tmp_path / "home" / "replay.db", owner


def test_acts_of_the_owner_are_inputs(ruled: tuple[Path, Owner]) -> None:
    database, owner = ruled
    db = sqlite3.connect(database)
    texts = [row[0] for row in db.execute("SELECT text FROM events WHERE kind = 'rearm'")]
    db.close()
    assert len(texts) == owner.acts >= 3
    assert {"Halt lifted by the owner", "Re-armed by the owner"} == set(texts)
    assert [d.text for d in check(database).differences] == []


def test_an_act_that_is_missing_is_named(ruled: tuple[Path, Owner]) -> None:
    def change(block: Row) -> bool:
        rows = entries(block)
        kept = [e for e in rows if "act" not in e]
        block["entries"] = kept
        return len(kept) < len(rows)

    rewrite(ruled[0], "block", change)
    assert check(ruled[0]).differences[0].cause == "owner-act"


def test_a_kill_switch_between_decision_and_order_is_an_input(candles: Path, tmp_path: Path) -> None:
    """It is off when the moment is taken and on when the order goes out."""
    home = tmp_path / "home"
    home.mkdir()
    engine, options = session_of(candles, home, quick())
    is_on: list[int] = []

    def switch(report: CycleReport) -> None:
        if report.orders and len(is_on) < 3:
            (home / "KILL").touch()
            is_on.append(report.now_ms)

    after_writing(engine, switch)
    while engine.load(options.clock.now_ms()) is not None:
        pass
    while engine.step() is not None:
        (home / "KILL").unlink(missing_ok=True)
        if any(c.kind is CauseKind.KILL for c in engine.desk.causes):
            engine.rearm(options.clock.now_ms())
    engine.close()
    db = sqlite3.connect(home / "replay.db")
    refused = db.execute("SELECT COUNT(*) FROM order_events WHERE why = 'kill switch'").fetchone()[0]
    db.close()
    assert refused == len(is_on) == 3
    assert [d.text for d in check(home / "replay.db").differences] == []

    def change(block: Row) -> bool:
        rows = entries(block)
        block["entries"] = [e for e in rows if "killed" not in e]
        return len(rows) > len(entries(block))

    rewrite(home / "replay.db", "block", change)
    found = check(home / "replay.db").differences[0]
    assert found.cause == "kill", found.text


# ---- the command -----------------------------------------------------------


def start(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The program as a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LUNOBIZ_")}
    command = [sys.executable, str(PROGRAM), *words, "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=clean)


def test_the_command_says_equal_differs_or_damaged(tmp_path: Path) -> None:
    assert start(tmp_path, "--replay-check").returncode == lunobiz.EXIT_DATA  # there is nothing yet
    assert start(tmp_path, "--headless", "--demo", "--cycles", "40").returncode == lunobiz.EXIT_OK
    out, database = tmp_path / "out.json", tmp_path / "demo.db"
    done = start(tmp_path, "--replay-check", "--json", str(out))
    assert (done.returncode, done.stderr) == (lunobiz.EXIT_OK, "")
    assert done.stdout.startswith("demo: Replay check: ") and "280 decisions" in done.stdout
    told = json.loads(out.read_text(encoding="utf-8"))
    assert (told["equal"], told["checks"][0]["counts"]["decisions"]) == (True, 280)
    with meddling(database) as db:
        db.execute("UPDATE decisions SET why = 'because' WHERE rowid = 9")
    done = start(tmp_path, "--replay-check", "--demo", "--json", str(out))
    assert done.returncode == lunobiz.EXIT_NO
    told = json.loads(out.read_text(encoding="utf-8"))
    (found,) = told["checks"][0]["differences"]
    assert (told["equal"], found["field"], found["recorded"]) == (False, "why", "because")
    db = sqlite3.connect(database)
    (text,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'decisions_stay'").fetchone()
    db.execute("DROP TRIGGER decisions_stay")
    db.execute("UPDATE decisions SET why = 'for no reason' WHERE rowid = 9")
    db.execute(text)
    db.commit()
    db.close()
    done = start(tmp_path, "--replay-check")
    assert done.returncode == lunobiz.EXIT_DATA and "decisions" in done.stderr
