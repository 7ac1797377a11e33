"""STORE: the audit, the journal of orders and the cache of candles, on disk."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lunobiz
from lunobiz import (
    Action,
    AuditBroken,
    Candle,
    Cause,
    CauseKind,
    Credentials,
    CycleReport,
    Decision,
    Desk,
    Event,
    Fill,
    InputRow,
    Market,
    Mode,
    Order,
    OrderKind,
    OrderState,
    Outcome,
    Redactor,
    Regime,
    RoundTrip,
    Settlement,
    Side,
    Store,
)

HOME_OF_PROGRAM = str(Path(lunobiz.__file__).parent)
XBT = Market("XBTZAR", "XBT", "ZAR", 0, 6, 0.0001, 100.0, 1.0, 1e8)
XRP = Market("XRPZAR", "XRP", "ZAR", 2, 0, 1.0, 1e6, 0.01, 1e5)
MARKETS: Mapping[str, Market] = MappingProxyType({"XBTZAR": XBT, "XRPZAR": XRP})
SECRET = "Zx81kQpL0aBcDeFgHiJkLmNoPqRsTuVwXyZ-_123456"
KEY = Credentials("d5gtn3zq7x5kp", SECRET)
T0 = 1_767_225_600_000


def order(number: int, **changes: object) -> Order:
    """An entry order as the cycle makes it."""
    made = Order(
        f"LB1-{number:06}", "XBTZAR", Side.BUY, OrderKind.ENTRY, OrderState.INTENT, 0.123456,
        1_234_567.0, 1_200_000.0, T0 + number, T0 + number + 3_600_000, "breakout",
        Regime.TRENDING, 3600, "close above the channel",
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def fill(number: int, **changes: object) -> Fill:
    """A fill of the order with the same number."""
    made = Fill(
        f"LB1-{number:06}@{T0 + number}", f"LB1-{number:06}", "XBTZAR", Side.BUY, OrderKind.ENTRY,
        T0 + number, 1_234_567.0, 0.1 + 0.02, 0.0, 592.59216, True, "bar low 1234000",
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def report(number: int, **changes: object) -> CycleReport:
    """A cycle with one row for every table; the desk's cash is its number."""
    decision = Decision(
        T0 + number, "XBTZAR", 3600, T0, Action.ENTER, "breakout", Regime.TRENDING, 0.7, "OK", "go",
        (("b", 0.1), ("a", 2.0)),
    )  # fmt: skip
    trip = RoundTrip(
        "XBTZAR", "breakout", Regime.TRENDING, 3600, T0, T0 + number, 0.12, 1_234_567.0, 1_300_000.0, 1216.59,
        6635.37 + 1e-11, "stop",
    )  # fmt: skip
    desk = Desk(float(number), orders=(order(number),), causes=(Cause(CauseKind.DAILY_CAP, T0, 0, "3 %"),))
    made = CycleReport(
        now_ms=T0 + number,
        due=(3600,),
        desk=desk,
        settlement=Settlement((fill(number),), (Outcome(f"LB1-{number:06}", OrderState.OPEN, "accepted", False),)),
        signals=(),
        verdicts=(),
        decisions=(decision,),
        cancels=(order(number, state=OrderState.OPEN),),
        orders=(order(number),),
        round_trips=(trip,),
        events=(Event(T0 + number, "state", "warning", "cooling down", "XBTZAR"),),
        equity=100_000.1,
        exposure=0.1 + 0.2,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database goes."""
    return tmp_path / "lunobiz.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """A fresh store; the speed of the disk is not tested here."""
    made = Store(path, Redactor([KEY]), synchronous="OFF")
    yield made
    made.close()


def everything(store: Store) -> dict[str, list[dict[str, object]]]:
    """All rows of all tables."""
    return {name: store.table(name, limit=10_000) for name in lunobiz.TABLES}


# ---- what is written can be read -------------------------------------------------------------------


def test_a_cycle_is_written_to_all_its_tables(store: Store) -> None:
    store.record(report(1), Mode.PAPER, MARKETS)
    assert store.table("fills") == [
        {
            "rowid": 1, "time_ms": T0 + 1, "mode": "paper", "fill_id": f"LB1-000001@{T0 + 1}",
            "order_id": "LB1-000001", "pair": "XBTZAR", "side": "buy", "kind": "entry",
            "price": "1234567", "volume": "0.120000",
            "value": "148148.040000",
            "fee_base": "0.00000000", "fee_counter": "592.59216000", "is_maker": 1,
            "evidence": "bar low 1234000",
        }
    ]  # fmt: skip
    (trade,) = store.table("trades")
    figures = [trade[name] for name in ("volume", "entry", "exit", "fees", "profit", "opened_ms", "closed_ms")]
    assert figures == ["0.120000", "1234567", "1300000", "1216.59000000", "6635.37000000", T0, T0 + 1]
    (decision,) = store.table("decisions")
    assert (decision["numbers"], decision["action"]) == ('{"a":2.0,"b":0.1}', "enter")
    (row,) = store.table("orders")
    assert (row["volume"], row["limit_price"], row["stop_price"]) == ("0.123456", "1234567", "1200000")
    assert [(e["event"], e["state"]) for e in store.table("order_events")] == [
        ("cancel", "open"),
        ("outcome", "open"),
    ]
    (snapshot,) = store.table("snapshots")
    money = (snapshot["equity"], snapshot["cash"], snapshot["exposure"], snapshot["state"])
    assert money == ("100000.10000000", "1.00000000", "0.30000000", "COOLDOWN")
    assert [e["text"] for e in store.table("events")] == ["cooling down"]
    assert not any("seal" in row for rows in everything(store).values() for row in rows)


def test_orders_show_the_state_they_have_come_to(store: Store) -> None:
    nothing = {"cancels": (), "settlement": Settlement(), "round_trips": ()}
    store.record(report(1, **nothing), Mode.PAPER, MARKETS)
    assert [row["state"] for row in store.table("orders")] == ["intent"]
    for state in (OrderState.UNKNOWN, OrderState.OPEN, OrderState.DONE):
        outcome = Outcome("LB1-000001", state, "looked up")
        changes = {**nothing, "settlement": Settlement((), (outcome,)), "orders": ()}
        store.record(report(2, **changes), Mode.PAPER, MARKETS)
        assert [row["state"] for row in store.table("orders")] == [state.value]
    assert len(store.table("order_events")) == 3


def test_the_newest_desk_of_each_mode_comes_back(store: Store, path: Path) -> None:
    assert store.last_desk(Mode.PAPER) is None
    for number in (1, 2, 3):
        store.record(report(number), Mode.PAPER, MARKETS)
    store.record(report(9), Mode.LIVE, MARKETS)
    assert store.last_desk(Mode.PAPER) == (T0 + 3, report(3).desk)
    assert store.last_desk(Mode.LIVE) == (T0 + 9, report(9).desk)
    assert store.last_desk(Mode.DEMO) is None
    store.close()
    again = Store(path, Redactor([]), synchronous="OFF")
    assert again.last_desk(Mode.PAPER) == (T0 + 3, report(3).desk)
    again.close()


def test_money_is_exact_whatever_the_float_says(store: Store) -> None:
    changes = {"price": 23.84, "volume": 410.0, "fee_base": 0.1 + 0.2, "fee_counter": -0.0, "pair": "XRPZAR"}
    store.record(report(1, settlement=Settlement((fill(1, **changes),))), Mode.PAPER, MARKETS)
    (row,) = store.table("fills")
    assert (row["price"], row["volume"], row["value"]) == ("23.84", "410", "9774.40")
    assert (row["fee_base"], row["fee_counter"]) == ("0.30000000", "0.00000000")


def test_a_market_that_is_gone_does_not_stop_the_audit(store: Store) -> None:
    store.record(report(1), Mode.PAPER, {})
    (row,) = store.table("fills")
    assert Decimal(str(row["price"])) == Decimal("1234567")
    assert Decimal(str(row["volume"])) == Decimal("0.12")


def test_an_average_off_the_grid_keeps_its_digits(store: Store) -> None:
    store.record(report(1, settlement=Settlement((fill(1, price=1_234_567.125),))), Mode.LIVE, MARKETS)
    (row,) = store.table("fills")
    assert Decimal(str(row["price"])) == Decimal("1234567.125")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_refused_whole(store: Store, bad: float) -> None:
    with pytest.raises(AuditBroken, match="not finite"):
        store.record(report(1, equity=bad), Mode.PAPER, MARKETS)
    assert all(rows == [] for rows in everything(store).values())
    store.record(report(1), Mode.PAPER, MARKETS)
    store.verify()


def test_a_number_of_a_decision_may_be_missing(store: Store) -> None:
    odd = replace(report(1).decisions[0], confidence=float("nan"), numbers=(("x", float("inf")),))
    store.record(report(1, decisions=(odd,)), Mode.PAPER, MARKETS)
    (row,) = store.table("decisions")
    assert (row["confidence"], row["numbers"]) == (None, '{"x":null}')
    store.verify()


# ---- once and only once ----------------------------------------------------------------------------


def test_the_same_fill_twice_is_kept_once(store: Store) -> None:
    store.record(report(1), Mode.PAPER, MARKETS)
    twice = Settlement((fill(1, evidence="told again", time_ms=T0 + 5), fill(2)))
    store.record(report(2, settlement=twice), Mode.PAPER, MARKETS)
    assert [row["fill_id"] for row in store.table("fills")] == [fill(1).fill_id, fill(2).fill_id]
    store.record(report(3, settlement=Settlement((fill(1),))), Mode.LIVE, MARKETS)  # another mode, another fill
    assert len(store.table("fills")) == 3


def test_another_fill_with_the_same_id_is_refused_whole(store: Store) -> None:
    store.record(report(1), Mode.PAPER, MARKETS)
    before = everything(store)
    with pytest.raises(AuditBroken, match="differently"):
        store.record(report(2, settlement=Settlement((fill(2), fill(1, volume=0.5)))), Mode.PAPER, MARKETS)
    with pytest.raises(AuditBroken, match="differently"):
        store.record(report(3, orders=(order(1, volume=0.5),)), Mode.PAPER, MARKETS)
    assert everything(store) == before
    store.record(report(4), Mode.PAPER, MARKETS)
    store.verify()


def test_rows_are_never_changed_or_removed(store: Store, path: Path) -> None:
    store.record(report(1), Mode.PAPER, MARKETS)
    store.record_metrics(T0, "backtest", {"a": 1})
    store.mark_session("opened", T0)
    other = sqlite3.connect(path)
    tables = [*lunobiz.SEALED, "gate_rows", "attempts"]
    other.execute("INSERT INTO gate_rows VALUES (1, 1, '', '', '')")
    other.execute("INSERT INTO attempts VALUES (1, 1, '', '', '')")
    other.execute("PRAGMA recursive_triggers = ON")
    for table in tables:
        column = "payload" if table in ("gate_rows", "attempts") else "seal"
        for text in (
            f"UPDATE {table} SET {column} = 'x'",
            f"DELETE FROM {table}",
            f"REPLACE INTO {table} SELECT * FROM {table}",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="audit"):
                other.execute(text)
    other.close()


# ---- inputs ----------------------------------------------------------------------------------------


def inputs(path: Path) -> list[lunobiz.KeptInput]:
    """The inputs of PAPER, whatever they begin with."""
    db = sqlite3.connect(path)
    rows = db.execute("SELECT * FROM inputs WHERE mode = 'paper' ORDER BY number").fetchall()
    db.close()
    return [lunobiz._read_input(row[1:], path) for row in rows]


def test_inputs_are_written_with_their_cycle_or_not_at_all(store: Store, path: Path) -> None:
    block = InputRow(T0 + 1, "block", '{"idle":0,"entries":[]}')
    store.record(report(1), Mode.PAPER, MARKETS, (block,))
    with pytest.raises(AuditBroken, match="not finite"):
        store.record(report(2, equity=float("nan")), Mode.PAPER, MARKETS, (block,))
    store.record_inputs(Mode.PAPER, (block._replace(time_ms=T0 + 2), block._replace(time_ms=T0 + 3)))
    store.record_inputs(Mode.DEMO, (block,))
    assert [(r.number, r.time_ms, r.kind, r.text) for r in inputs(path)] == [
        (n, T0 + n, "block", block.text) for n in (1, 2, 3)
    ]
    store.verify()
    assert store.marks() == {t: int(t != "order_events") + 2 * (t == "order_events") for t in lunobiz.REPLAYED}


def test_a_cycle_whose_inputs_cannot_be_written_is_not_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(row: object, packed: bytes) -> str:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(lunobiz, "_input_checksum", full)
    with pytest.raises(AuditBroken):
        store.record(report(1), Mode.PAPER, MARKETS, (InputRow(T0, "block", "{}"),))
    assert all(rows == [] for rows in everything(store).values())


def test_inputs_are_swept_after_their_days_and_candles_are_not(store: Store, path: Path) -> None:
    for day in range(50):
        kind = "candles" if day == 3 else "block"
        store.record_inputs(Mode.PAPER, (InputRow(T0 + day * lunobiz.DAY_MS, kind, "{}"),))
    assert [r.number for r in inputs(path)] == [4, *range(10, 51)]  # 49 - 40 = 9: day 9 is number 10
    other = sqlite3.connect(path)
    for text in ("DELETE FROM inputs WHERE number = 10", "DELETE FROM inputs WHERE number = 4",
                 "UPDATE inputs SET kind = 'x' WHERE number = 10", "REPLACE INTO inputs SELECT * FROM inputs"):
        other.execute("PRAGMA recursive_triggers = ON")
        with pytest.raises(sqlite3.IntegrityError, match="audit"):
            other.execute(text)
    other.close()


def test_no_secret_is_in_an_input_and_its_numbers_stay(store: Store, path: Path) -> None:
    text = lunobiz.input_text({"why": f"refused {SECRET}", "atr": float("nan"), "age": float("inf"), "bid": -0.0})
    store.record_inputs(Mode.PAPER, (InputRow(T0, "block", text),))
    (row,) = inputs(path)
    assert row.text == '{"why":"refused ***","atr":NaN,"age":Infinity,"bid":-0.0}'


def test_an_input_changed_by_hand_is_damage(store: Store, path: Path) -> None:
    store.record_inputs(Mode.PAPER, (InputRow(T0, "start", "{}"),))
    other = sqlite3.connect(path)
    (text,) = other.execute("SELECT sql FROM sqlite_schema WHERE name = 'inputs_stay'").fetchone()
    other.execute("DROP TRIGGER inputs_stay")
    other.execute("UPDATE inputs SET time_ms = time_ms + 1")
    other.execute(text)
    other.commit()
    other.close()
    with pytest.raises(AuditBroken, match="damaged in its table inputs"):
        store.verify()


def test_an_older_database_is_led_on_and_keeps_its_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lunobiz, "MIGRATIONS", lunobiz.MIGRATIONS[:1])
    monkeypatch.setattr(lunobiz, "GROWING", lunobiz.SEALED)
    monkeypatch.setattr(lunobiz, "TABLES", tuple(t for t in lunobiz.TABLES if t not in lunobiz.JOURNAL))
    old = Store(path, Redactor([]), synchronous="OFF")
    old._append_inputs = lambda mode, inputs: 0  # type: ignore[method-assign]
    append = old._append
    old._append = lambda table, rows: append(table, rows) if table in lunobiz.SEALED else None  # type: ignore[method-assign]
    old.record(report(1), Mode.PAPER, MARKETS)
    before = everything(old)
    old.close()
    monkeypatch.undo()
    store = Store(path, Redactor([]), synchronous="OFF")
    assert everything(store) == before | {table: [] for table in lunobiz.JOURNAL}
    store.record(report(2), Mode.PAPER, MARKETS, (InputRow(T0, "start", "{}"),))
    store.verify()
    store.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (len(lunobiz.MIGRATIONS),)
    db.close()
    assert [r.number for r in inputs(path)] == [1]


# ---- sessions, events, metrics, tables -------------------------------------------------------------


def test_a_session_that_was_not_closed_is_seen(store: Store) -> None:
    assert not store.is_session_open()
    store.mark_session("opened", T0)
    assert store.is_session_open()
    store.mark_session("closed", T0 + 1)
    assert not store.is_session_open()
    with pytest.raises(ValueError, match="opened or closed"):
        store.mark_session("paused", T0)


def test_events_and_metrics(store: Store) -> None:
    store.record_events(Event(T0 + i, "note", "info", f"number {i}") for i in range(3))
    assert [row["text"] for row in store.table("events")] == ["number 0", "number 1", "number 2"]
    values = {
        "z": 1,
        "a": float("nan"),
        "n": np.int64(3),
        "f": np.float64(0.5),
        "d": Decimal("1.10"),
        "s": SECRET,
    }
    store.record_metrics(T0, "backtest", values)
    (row,) = store.table("metrics")
    assert row["payload"] == '{"a":"nan","d":"1.10","f":0.5,"n":3,"s":"***","z":1}'
    store.verify()


def test_tables_are_read_in_pages(store: Store) -> None:
    store.record_events(Event(T0, "n", "info", str(i)) for i in range(10))
    page = store.table("events", since_rowid=3, limit=4)
    assert [row["rowid"] for row in page] == [4, 5, 6, 7]
    assert store.table("events", since_rowid=10) == []
    for name in ("sqlite_schema", "fills; DROP TABLE fills", "", "order_intents"):
        with pytest.raises(ValueError, match="no table"):
            store.table(name)


def test_the_tables_can_be_read_by_any_program(store: Store, path: Path) -> None:
    store.record(report(1), Mode.PAPER, MARKETS)
    store.save_candles("XBTZAR", 300, [Candle(300_000, 1, 2, 0.5, 1.5, 3)])
    other = sqlite3.connect(path)
    wanted = "trades fills orders decisions snapshots metrics events gate_rows attempts candles"
    counts = {name: other.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in wanted.split()}
    other.close()
    assert counts == dict.fromkeys(wanted.split(), 1) | {"metrics": 0, "gate_rows": 0, "attempts": 0}


# ---- chains: gate rows and attempts ----------------------------------------------------------------


@pytest.mark.parametrize("table", ["gate_rows", "attempts"])
def test_a_chain_grows_row_by_row_and_is_read_back(store: Store, path: Path, table: str) -> None:
    told: list[str] = []

    def payload_after(before: str) -> str:
        told.append(before)
        return f"row {len(told)} \u2014"

    made = [store.add_link(table, T0 + n, payload_after) for n in range(3)]
    assert told == ["", made[0].hash, made[1].hash]
    assert store.links(table) == tuple(made) and lunobiz.is_chain_whole(made)
    assert [row["payload"] for row in store.table(table)] == [link.payload for link in made]
    store.verify()
    other = sqlite3.connect(path)
    assert other.execute(f"SELECT hash FROM {table}").fetchall() == [(link.hash,) for link in made]
    other.close()
    assert store.links({"gate_rows": "attempts", "attempts": "gate_rows"}[table]) == ()


def test_only_chains_are_chained(store: Store) -> None:
    for table in ("events", "", "attempts; DROP TABLE attempts"):
        with pytest.raises(ValueError, match="not chained"):
            store.links(table)
        with pytest.raises(ValueError, match="not chained"):
            store.add_link(table, T0, str)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE attempts SET payload = 'row z' WHERE rowid = 2", "UPDATE attempts SET time_ms = 5 WHERE rowid = 1",
        "UPDATE attempts SET prev_hash = '' WHERE rowid = 3", "UPDATE attempts SET hash = 'x' WHERE rowid = 3",
        "UPDATE attempts SET time_ms = 'soon' WHERE rowid = 2", "UPDATE attempts SET payload = x'00' WHERE rowid = 3",
        "DELETE FROM attempts WHERE rowid = 1", "DELETE FROM attempts WHERE rowid = 2",
    ],
)  # fmt: skip
def test_a_chain_that_was_edited_is_seen_and_never_continued(store: Store, path: Path, edit: str) -> None:
    for n in range(3):
        store.add_link("attempts", T0 + n, lambda before: "row")
    other = sqlite3.connect(path)
    for trigger in ("attempts_stay", "attempts_grow"):
        other.execute(f"DROP TRIGGER {trigger}")
    other.execute(edit)
    other.commit()
    other.close()
    before = store.links("attempts")
    assert not lunobiz.is_chain_whole(before)
    with pytest.raises(lunobiz.DataError, match="damaged in its table attempts"):
        store.add_link("attempts", T0 + 9, lambda before: "row")
    assert store.links("attempts") == before
    with pytest.raises(AuditBroken):
        store.verify()


def test_verify_names_the_broken_chain(store: Store, path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("INSERT INTO gate_rows VALUES (NULL, 1, '{}', '', 'made up')")
    other.commit()
    other.close()
    with pytest.raises(AuditBroken, match="damaged in its table gate_rows"):
        store.verify()
    again = Store(path, Redactor([]), "OFF")  # PAPER goes on; only LIVE is locked
    again.close()


def test_a_row_that_cannot_be_made_leaves_nothing(store: Store) -> None:
    def fail(before: str) -> str:
        raise lunobiz.SettingsError("no")

    with pytest.raises(lunobiz.SettingsError):
        store.add_link("attempts", T0, fail)
    assert store.links("attempts") == ()
    store.record_events([Event(T0, "n", "info", "goes on")])


# ---- secrets ---------------------------------------------------------------------------------------


def test_no_secret_reaches_the_file(store: Store, path: Path) -> None:
    text = f"\ud800 key {KEY.key_id}:{SECRET} \x00"
    number = report(1)
    desk = replace(number.desk, orders=(order(1, why=text),))
    store.record(
        replace(
            number,
            desk=desk,
            orders=(order(1, why=text),),
            cancels=(order(1, why=text),),
            decisions=(replace(number.decisions[0], why=text),),
            settlement=Settlement((fill(1, evidence=text),), (Outcome("LB1-000001", OrderState.OPEN, text),)),
            round_trips=(replace(number.round_trips[0], reason=text),),
            events=(Event(T0, "note", "info", text),),
        ),
        Mode.PAPER,
        MARKETS,
    )
    store.record_metrics(T0, text, {text: [text]})
    last = store.last_desk(Mode.PAPER)
    assert last is not None
    assert "***" in last[1].orders[0].why
    store.verify()
    store.close()
    data = path.read_bytes()
    assert SECRET.encode() not in data
    assert KEY.key_id.encode() not in data
    assert data.count(b"***") >= 8


# ---- crashes ---------------------------------------------------------------------------------------

WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from lunobiz import Mode, Redactor, Store
from test_store import MARKETS, report
store = Store(Path(sys.argv[1]), Redactor([]))
last = store.last_desk(Mode.PAPER)
number = int(last[1].cash) if last else 0
while True:
    number += 1
    store.record(report(number), Mode.PAPER, MARKETS)
    print(number, flush=True)
"""


@pytest.mark.parametrize("run", range(2))
def test_a_kill_at_any_moment_loses_no_cycle_and_halves_none(path: Path, run: int) -> None:
    env = os.environ | {"PYTHONPATH": HOME_OF_PROGRAM}
    command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)]
    told = 0
    for start in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=path.parent)
        assert process.stdout is not None
        for _ in range(random.Random(100 * run + start).randint(3, 40)):
            told = int(process.stdout.readline())
        process.kill()
        rest = [line for line in process.stdout.read().split("\n") if line]
        told = int(rest[-1]) if rest else told  # what was said was on disk; more may be
        process.wait()
        process.stdout.close()
        store = Store(path, Redactor([]))
        store.verify()
        rows = everything(store)
        last = store.last_desk(Mode.PAPER)
        store.close()
        assert last is not None
        number = int(last[1].cash)
        assert told <= number <= told + 1
        for name in ("fills", "trades", "orders", "decisions", "snapshots", "events"):
            assert len(rows[name]) == number, name
        assert [row["fill_id"] for row in rows["fills"]] == [fill(n + 1).fill_id for n in range(number)]
        assert len(rows["order_events"]) == 2 * number


def test_a_cut_wal_leaves_whole_cycles(path: Path, tmp_path: Path) -> None:
    store = Store(path, Redactor([]), synchronous="OFF")
    for number in range(1, 9):
        store.record(report(number), Mode.PAPER, MARKETS)
    wal = path.with_name("lunobiz.db-wal").read_bytes()
    whole = path.read_bytes()
    store.close()
    seen = set()
    for cut in range(0, len(wal), 3_989):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "lunobiz.db").write_bytes(whole)
        (folder / "lunobiz.db-wal").write_bytes(wal[:cut])
        again = Store(folder / "lunobiz.db", Redactor([]), synchronous="OFF")
        again.verify()
        count = len(again.table("snapshots"))
        assert len(again.table("fills")) == len(again.table("trades")) == count
        seen.add(count)
        again.close()
        shutil.rmtree(folder)
    assert min(seen) == 0
    assert max(seen) >= 7


def test_a_crash_while_a_database_is_made_leaves_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(source: Path, target: Path) -> None:
        raise OSError(5, "crash")

    monkeypatch.setattr(lunobiz, "replace_file", crash)
    with pytest.raises(AuditBroken):
        Store(path, Redactor([]))
    assert not path.exists()
    monkeypatch.undo()
    Store(path, Redactor([])).close()
    assert sorted(p.name for p in path.parent.iterdir()) == ["lunobiz.db"]


# ---- trouble ---------------------------------------------------------------------------------------


def filled(path: Path) -> None:
    """A healthy database with rows in every table."""
    store = Store(path, Redactor([]), synchronous="OFF")
    for number in range(1, 21):
        store.record(report(number), Mode.PAPER, MARKETS)
    store.record_metrics(T0, "backtest", {"a": 1})
    store.mark_session("opened", T0)
    store.save_rows("XBTZAR", 300, candle_rows(600))
    store.close()


def refused(path: Path) -> str:
    """The words with which a database is refused; its bytes must not change."""
    before = path.read_bytes()
    with pytest.raises(AuditBroken) as caught:
        Store(path, Redactor([]), synchronous="OFF").close()
    assert path.read_bytes() == before
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 15, 16, 100, 1024, 4096, 4097, 0.3, 0.6, 0.99])
def test_a_truncated_database_is_refused_and_kept(path: Path, kept: float) -> None:
    filled(path)
    size = path.stat().st_size
    os.truncate(path, int(kept if kept == int(kept) else kept * size))
    assert "put back a backup" in refused(path)


def test_other_files_are_refused_and_kept(path: Path) -> None:
    path.write_text("not a database, but long enough to be taken for one" * 100)
    assert "not a database" in refused(path)
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    other.close()
    assert "not a LunoBiz database" in refused(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(AuditBroken):
        Store(path, Redactor([]))


def test_a_newer_database_is_refused_and_kept(path: Path) -> None:
    filled(path)
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 99")
    other.close()
    assert "newer LunoBiz" in refused(path)


@pytest.mark.parametrize("what", ["TRIGGER fills_stay", "INDEX snapshots_by_mode", "VIEW orders", "TABLE attempts"])
def test_a_database_with_something_missing_is_refused(path: Path, what: str) -> None:
    filled(path)
    other = sqlite3.connect(path)
    other.execute(f"DROP {what}")
    other.commit()
    other.close()
    assert "damaged" in refused(path)


@pytest.mark.parametrize("table", list(lunobiz.SEALED))
def test_a_row_changed_by_hand_is_found(path: Path, table: str) -> None:
    filled(path)
    other = sqlite3.connect(path)
    triggers = other.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        other.execute(f"DROP TRIGGER {name}")
    other.execute(f"UPDATE {table} SET time_ms = time_ms + 1 WHERE rowid = 1")
    for _, text in triggers:
        other.execute(text)
    other.commit()
    other.close()
    assert table in refused(path)


def test_flipped_bytes_are_found_or_harmless(path: Path) -> None:
    """SQLite has no checksums of its own; the seals must find what it does not see."""
    filled(path)
    healthy = Store(path, Redactor([]), synchronous="OFF")
    truth, candles = everything(healthy), healthy.candles("XBTZAR", 300)
    healthy.close()
    original = path.read_bytes()
    chance = random.Random(7)
    found = 0
    for _ in range(60):
        data = bytearray(original)
        at = chance.choice((chance.randrange(100), chance.randrange(len(data)), chance.randrange(len(data))))
        data[at] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            store = Store(path, Redactor([]), synchronous="OFF")
            try:
                assert everything(store) == truth, f"byte {at}"
                assert np.array_equal(store.candles("XBTZAR", 300), candles), f"byte {at}"
            finally:
                store.close()
        except AuditBroken:
            found += 1
        for extra in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + extra).unlink(missing_ok=True)
    assert found >= 20


def test_a_lost_database_with_its_wal_left_is_not_made_anew(path: Path) -> None:
    path.with_name("lunobiz.db-wal").write_bytes(b"x" * 100)
    with pytest.raises(AuditBroken, match="missing"):
        Store(path, Redactor([]))
    assert not path.exists()


def test_a_full_disk_stops_and_harms_nothing(path: Path) -> None:
    store = Store(path, Redactor([]), synchronous="OFF")
    store.record(report(1), Mode.PAPER, MARKETS)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 4}").fetchone()
    written = 1
    with pytest.raises(AuditBroken, match="disk is full"):
        for number in range(2, 200):
            store.record(report(number), Mode.PAPER, MARKETS)
            written = number
    rows = everything(store)
    assert {len(rows[name]) for name in ("fills", "trades", "snapshots", "orders")} == {written}
    with pytest.raises(AuditBroken, match="disk is full"):
        store.save_rows("XBTZAR", 300, candle_rows(5_000))
    store._db.execute("PRAGMA max_page_count = 1000000").fetchone()
    store.record(report(written + 1), Mode.PAPER, MARKETS)  # room again: it goes on
    store.verify()
    store.close()
    again = Store(path, Redactor([]), synchronous="OFF")
    assert len(again.table("fills")) == written + 1
    again.close()


def test_a_lock_of_another_program_is_waited_for_and_told(store: Store, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(AuditBroken, match="another program"):
        store.record(report(1), Mode.PAPER, MARKETS)
    assert 1.5 < time.monotonic() - started < 10
    other.execute("ROLLBACK")
    other.close()
    store.record(report(1), Mode.PAPER, MARKETS)


def test_two_connections_keep_one_chain(store: Store, path: Path) -> None:
    second = Store(path, Redactor([]), synchronous="OFF")
    for number in range(1, 9):
        (store if number % 3 else second).record(report(number), Mode.PAPER, MARKETS)
    second.close()
    store.verify()


def test_a_closed_store_says_so(path: Path) -> None:
    store = Store(path, Redactor([]), synchronous="OFF")
    store.close()
    store.close()
    with pytest.raises(AuditBroken):
        store.record(report(1), Mode.PAPER, MARKETS)
    with pytest.raises(AuditBroken):
        store.table("fills")


def test_a_folder_that_is_missing_or_full_is_told(tmp_path: Path) -> None:
    with pytest.raises(AuditBroken, match="check the disk"):
        Store(tmp_path / "missing" / "lunobiz.db", Redactor([]))


# ---- the file --------------------------------------------------------------------------------------


def test_what_is_written_is_durable(path: Path) -> None:
    store = Store(path, Redactor([]))
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    store.close()


def test_a_journal_of_the_other_kind_is_rolled_back(path: Path) -> None:
    Store(path, Redactor([])).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA journal_mode = DELETE").fetchall()
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO attempts VALUES (NULL, 1, '', '', '')")
    torn = path.read_bytes(), path.with_name("lunobiz.db-journal").read_bytes()
    other.execute("ROLLBACK")
    other.close()
    path.write_bytes(torn[0])  # as a crash in the middle of a transaction leaves it
    path.with_name("lunobiz.db-journal").write_bytes(torn[1])
    store = Store(path, Redactor([]))
    assert store.table("attempts") == []
    store.record(report(1), Mode.PAPER, MARKETS)
    store.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
def test_only_the_owner_can_read_it(store: Store, path: Path, tmp_path: Path) -> None:
    store.record(report(1), Mode.PAPER, MARKETS)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}


def test_closing_merges_everything_into_one_file(path: Path) -> None:
    store = Store(path, Redactor([]), synchronous="OFF")
    store.record(report(1), Mode.PAPER, MARKETS)
    assert store.size_bytes() > path.stat().st_size
    store.close()
    assert [p.name for p in path.parent.iterdir()] == ["lunobiz.db"]
    assert store.size_bytes() == path.stat().st_size


# ---- candles ---------------------------------------------------------------------------------------


def candle_rows(count: int, seed: int = 1, timeframe_s: int = 300) -> NDArray[np.float64]:
    """Candles without gaps from T0 on."""
    chance = np.random.default_rng(seed)
    times = T0 + np.arange(count) * timeframe_s * 1000.0
    close = np.round(1e6 * np.exp(np.cumsum(chance.normal(0, 0.001, count))))
    return np.column_stack([times, close, close + 500, close - 500, close + 10, np.round(chance.random(count), 6)])


def as_candles(rows: NDArray[np.float64]) -> list[Candle]:
    """Rows as Candle values."""
    return [Candle(int(row[0]), *row[1:]) for row in rows.tolist()]


def test_candles_come_back_in_order_and_by_range(store: Store) -> None:
    rows = candle_rows(700)
    shuffled = rows[np.random.default_rng(3).permutation(700)]
    assert store.save_candles("XBTZAR", 300, as_candles(shuffled)) == 0
    assert np.array_equal(store.candles("XBTZAR", 300), rows)
    since, until = int(rows[255, 0]), int(rows[513, 0])
    assert np.array_equal(store.candles("XBTZAR", 300, since, until), rows[255:513])
    assert np.array_equal(store.candles("XBTZAR", 300, since + 1, until + 1), rows[256:514])
    assert store.candles("XBTZAR", 300, until, since).shape == (0, 6)
    assert store.candles("XBTZAR", 900).shape == (0, 6)
    assert store.candles("ETHZAR", 300).shape == (0, 6)
    assert (store.candle_count("XBTZAR", 300), store.candle_count("ETHZAR", 300)) == (700, 0)
    assert store.save_candles("XBTZAR", 300, []) == 0


def test_a_closed_candle_never_changes(store: Store) -> None:
    rows = candle_rows(10)
    assert store.save_rows("XBTZAR", 300, rows) == 0
    assert store.save_rows("XBTZAR", 300, rows) == 0
    other = rows.copy()
    other[3, 4] += 1
    other[7, 5] += 1
    assert store.save_rows("XBTZAR", 300, other) == 2
    assert np.array_equal(store.candles("XBTZAR", 300), rows)
    twice = np.concatenate((candle_rows(12)[10:], candle_rows(12, seed=2)[10:]))
    assert store.save_rows("XBTZAR", 300, twice) == 2
    assert np.array_equal(store.candles("XBTZAR", 300)[10:], candle_rows(12)[10:])


def test_candles_of_many_markets_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "lunobiz.db", Redactor([]))
    rows = candle_rows(300)
    store.save_rows("ETHZAR", 300, rows[:1] + np.array([0, 0, 0, 0, 0, 1]))
    news = [("XBTZAR", 300, as_candles(rows)), ("ETHZAR", 300, as_candles(rows)), ("XRPZAR", 300, [])]
    torn = [*news, ("LTCZAR", 300, [Candle(T0, 1, 1, 1, 1, "no number")])]
    with pytest.raises(ValueError, match="no number"):
        store.save_news(torn)
    assert store.candle_count("XBTZAR", 300) == 0
    assert store.save_news(news) == (0, 1, 0), "one candle of ETHZAR came differently"
    assert np.array_equal(store.candles("XBTZAR", 300), rows)
    assert np.array_equal(store.candles("ETHZAR", 300)[1:], rows[1:])
    store.close()


@hypothesis_settings(max_examples=40)
@given(batches=st.lists(st.lists(st.tuples(st.integers(0, 600), st.integers(1, 2)), max_size=40), max_size=5))
def test_candles_are_a_book_in_which_the_first_entry_stays(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]]
) -> None:
    store = Store(tmp_path_factory.mktemp("c") / "lunobiz.db", Redactor([]), synchronous="OFF")
    model: dict[int, int] = {}
    for batch in batches:
        expected = 0
        for place, price in batch:
            expected += model.setdefault(place, price) != price
        made = [Candle(T0 + place * 300_000, price, price, price, price, 1) for place, price in batch]
        assert store.save_candles("XBTZAR", 300, made) == expected
    rows = store.candles("XBTZAR", 300)
    assert [(int(row[0] - T0) // 300_000, int(row[1])) for row in rows] == sorted(model.items())
    assert store.candle_count("XBTZAR", 300) == len(model)
    store.verify()
    store.close()


def test_a_damaged_candle_is_refused(store: Store, path: Path) -> None:
    store.save_rows("XBTZAR", 300, candle_rows(10))
    other = sqlite3.connect(path)
    other.execute("UPDATE candles SET packed = zeroblob(480)")
    other.commit()
    other.close()
    for read in (
        lambda: store.candles("XBTZAR", 300),
        lambda: store.save_rows("XBTZAR", 300, candle_rows(11)),
        store.verify,
    ):
        with pytest.raises(AuditBroken, match="candles"):
            read()


def test_a_year_of_five_minute_candles_of_five_pairs_is_read_in_half_a_second(store: Store) -> None:
    pairs = ("XBTZAR", "ETHZAR", "XRPZAR", "SOLZAR", "LTCZAR")
    rows = candle_rows(105_120)
    for pair in pairs:
        store.save_rows(pair, 300, rows)
    best = 9.0
    for _ in range(3):
        started = time.perf_counter()
        read = [store.candles(pair, 300) for pair in pairs]
        best = min(best, time.perf_counter() - started)
    assert sum(len(r) for r in read) == 525_600
    assert np.array_equal(read[4], rows)
    assert best <= 0.5


# ---- growth ----------------------------------------------------------------------------------------


def test_opening_checks_the_newest_rows_and_verify_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(path, Redactor([]), synchronous="OFF")
    store.record_events(Event(T0, "n", "info", str(i)) for i in range(300))
    store.close()
    other = sqlite3.connect(path)
    (text,) = other.execute("SELECT sql FROM sqlite_schema WHERE name = 'events_stay'").fetchone()
    other.execute("DROP TRIGGER events_stay")
    other.execute("UPDATE events SET text = 'x' WHERE rowid = 150")
    other.execute(text)
    other.commit()
    other.close()
    monkeypatch.setattr(lunobiz, "CHECKED_ROWS", 151)
    assert "events" in refused(path)
    monkeypatch.setattr(lunobiz, "CHECKED_ROWS", 150)
    again = Store(path, Redactor([]), synchronous="OFF")
    with pytest.raises(AuditBroken, match="events"):
        again.verify()
    again.close()


def test_a_record_is_quick(store: Store) -> None:
    started = time.process_time()
    for number in range(1, 301):
        store.record(report(number), Mode.PAPER, MARKETS)
    assert (time.process_time() - started) / 300 < 0.01
    assert json.loads(str(store.table("snapshots", since_rowid=299)[0]["desk"]))["cash"] == 300
