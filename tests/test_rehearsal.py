"""REHEARSAL: the whole way of LIVE on the built-in exchange, its line going wrong, and what it says of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import lunobiz
from lunobiz import (
    Amounts,
    JsonLog,
    Redactor,
    Rehearsal,
    RehearsalReport,
    SystemClock,
    TradingState,
    parse_settings,
    rehearsal_text,
)

ORDERS, BEATS = 12, 6_000


def rehearsal(folder: Path, seed: int = 6) -> Rehearsal:
    """A rehearsal in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    log = JsonLog(folder / "logs", Redactor([]), SystemClock())
    return Rehearsal(parse_settings({}), folder / "rehearsal.db", seed, log)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rehearsal, RehearsalReport]:
    """A short one, run to its end."""
    made = rehearsal(tmp_path_factory.mktemp("r"))
    return made, made.run(ORDERS, BEATS)


def test_a_short_rehearsal_agrees_to_the_last_cent(done: tuple[Rehearsal, RehearsalReport]) -> None:
    made, report = done
    assert len(report.orders) >= ORDERS and report.is_clean
    assert all(row.is_equal for row in report.orders) and not report.differences
    assert report.faults and sum(report.faults.values()) > 10
    assert made._exchange.calls["POST /api/1/postorder"] == sum(
        1 for row in report.orders if not row.order.why.startswith("not sent"))


def test_the_text_has_a_row_per_order_and_the_verdict(done: tuple[Rehearsal, RehearsalReport]) -> None:
    text = rehearsal_text(done[1])
    rows = [line for line in text.split("\n") if line.startswith("LB1-")]
    assert len(rows) == len(done[1].orders) and all(line.endswith("yes") for line in rows)
    assert "Every order, coin and cent agrees with the exchange." in text and "NO" not in text.split()
    assert "nothing was sent to Luno" in text


def test_a_lost_order_is_seen(tmp_path: Path) -> None:
    """One that the exchange has and the program has forgotten: the order, and the coins it moved."""
    made = rehearsal(tmp_path)
    assert made.run(4, BEATS).is_clean
    sent = made._session.executor._sent
    lost = next(i for i, o in sent.items() if o.filled.base)
    client = sent.pop(lost).client_id
    report = made._report()
    assert f"order {client} is at the exchange and not in the journal" in report.differences
    assert not report.is_clean and f"order {client}" in rehearsal_text(report)
    assert "Every order" not in rehearsal_text(report)


@pytest.mark.parametrize("what", ["filled", "state", "fees"])
def test_an_order_that_is_not_as_the_exchange_has_it_is_seen(tmp_path: Path, what: str) -> None:
    made = rehearsal(tmp_path)
    assert made.run(4, BEATS).is_clean
    sent = made._session.executor._sent
    name = next(i for i, o in sent.items() if o.filled.base and o.is_final)
    order = sent[name]
    more = order.filled._replace(base=order.filled.base + Decimal("0.000001"))
    fees = order.filled._replace(fee_base=order.filled.fee_base + Decimal("0.00000001"))
    changes: dict[str, dict[str, object]] = {
        "filled": {"filled": more}, "state": {"state": lunobiz.OrderState.OPEN}, "fees": {"filled": fees}}
    sent[name] = replace(order, **changes[what])  # type: ignore[arg-type]
    report = made._report()
    assert not report.is_clean and f"{name} does not agree" in rehearsal_text(report)


def test_coins_that_nothing_explains_are_seen(tmp_path: Path) -> None:
    made = rehearsal(tmp_path)
    assert made.run(2, BEATS).is_clean
    last = made._session.reconciler.last
    holding = last.holdings[0]._replace(unexplained=Decimal("-0.5"))
    made._session.reconciler.last = last._replace(holdings=(holding, *last.holdings[1:]))
    report = made._report()
    assert report.differences == (f"{holding.asset}: -0.5 that nothing explains",) and not report.is_clean


def test_the_same_seed_gives_the_same_rehearsal(tmp_path: Path) -> None:
    one, two = (rehearsal(tmp_path / name).run(3, BEATS) for name in ("a", "b"))
    assert [r.order for r in one.orders] == [r.order for r in two.orders] and one.faults == two.faults


def test_it_can_be_called_off(tmp_path: Path) -> None:
    """What is under way is still settled, with an honest line."""
    report = rehearsal(tmp_path).run(12, BEATS, lambda done, total: False)
    assert len(report.orders) < 12 and not report.faults and report.is_clean


def test_the_exit_code_says_whether_all_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every order there the answer is 0; with one that does not agree it is 1."""
    monkeypatch.setattr(lunobiz, "REHEARSED_ORDERS", 2)
    argv = ["--demo", "--rehearse-live", "--home", str(tmp_path)]
    assert lunobiz.main(argv) == 0
    assert "Every order, coin and cent agrees" in capsys.readouterr().out
    report = Rehearsal._report

    def wrong(self: Rehearsal) -> RehearsalReport:
        made = report(self)
        row = made.orders[0]._replace(is_equal=False)
        return made._replace(orders=(row, *made.orders[1:]))

    monkeypatch.setattr(Rehearsal, "_report", wrong)
    assert lunobiz.main(argv) == 1
    assert "does not agree" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):  # it belongs to --demo
        lunobiz.main(["--rehearse-live", "--home", str(tmp_path)])


def test_what_is_clean() -> None:
    empty = RehearsalReport((), {}, 0, (), TradingState.READY, ())
    assert not empty._replace(differences=("x",)).is_clean
    assert Amounts() == Amounts(*[Decimal(0)] * 4)


# ---- the same run over again ------------------------------------------------------------------------------


def check(database: Path) -> lunobiz.ParityReport:
    """The replay check of all that was done in LIVE."""
    return lunobiz.check_parity(lunobiz.read_audit(database, lunobiz.Mode.LIVE),
                                lunobiz.code_hash(lunobiz.program_source()))


def meddle(database: Path, change: Callable[[dict[str, Any]], bool], has_new_sum: bool = True) -> None:
    """Change the first answer of the exchange in the inputs in which `change` finds something to do."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        query = "SELECT rowid, time_ms, mode, number, kind, packed FROM inputs WHERE kind = 'block' ORDER BY number"
        for rowid, *head, packed in db.execute(query).fetchall():
            block = json.loads(zlib.decompress(packed))
            if any(change(e["settled"]) for e in block["entries"] if "settled" in e):
                new = zlib.compress(lunobiz.input_text(block).encode())
                db.execute("UPDATE inputs SET packed = ? WHERE rowid = ?", (new, rowid))
                if has_new_sum:
                    told = lunobiz._input_checksum(tuple(head), new)
                    db.execute("UPDATE inputs SET checksum = ? WHERE rowid = ?", (told, rowid))
                db.commit()
                return
    pytest.fail("nothing to change")


@pytest.fixture
def database(done: tuple[Rehearsal, RehearsalReport], tmp_path: Path) -> Path:
    """A copy of the audit to meddle with."""
    return Path(shutil.copy(done[0]._database, tmp_path / "rehearsal.db"))


def test_live_runs_over_again_with_what_the_exchange_said(
    done: tuple[Rehearsal, RehearsalReport], database: Path
) -> None:
    """All orders, fills and crashes of the rehearsal are in it, and none comes out otherwise."""
    found = check(database)
    assert found.is_equal, found.text
    with contextlib.closing(sqlite3.connect(database)) as db:
        rows = {t: db.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0] for t in lunobiz.REPLAYED}
    assert {t: found.counts[t] for t in rows} == rows
    assert rows["fills"] > 0 and rows["order_intents"] >= len(done[1].orders) >= ORDERS and done[1].crashes > 0


def changed_price(settled: dict[str, Any]) -> bool:
    for fill in settled["fills"]:
        fill["price"] *= 1.000001
    return bool(settled["fills"])


def without_fills(settled: dict[str, Any]) -> bool:
    had, settled["fills"] = bool(settled["fills"]), []
    return had


def other_end(settled: dict[str, Any]) -> bool:
    for outcome in settled["outcomes"]:
        outcome["why"] += "?"
    return bool(settled["outcomes"])


@pytest.mark.parametrize(("change", "what"), [
    (changed_price, "fill"), (without_fills, "desk"), (other_end, "order outcome"),
])
def test_an_answer_that_was_changed_is_found(
    database: Path, change: Callable[[dict[str, Any]], bool], what: str
) -> None:
    """A millionth on the price, a fill that is gone, other words: the row that was written does not come out."""
    meddle(database, change)
    found = check(database)
    assert not found.is_equal
    assert found.differences[0].what == what, found.text


def test_an_answer_that_cannot_be_read_is_named(database: Path) -> None:
    def change(settled: dict[str, Any]) -> bool:
        return settled.pop("fills") is not None

    meddle(database, change)
    found = check(database)
    assert found.differences[0].cause == "inputs-unreadable" and "recorded answer" in found.text


def test_a_change_by_hand_is_damage(database: Path) -> None:
    """Whoever edits the file does not have its sum."""
    meddle(database, changed_price, has_new_sum=False)
    with pytest.raises(lunobiz.AuditBroken, match="damaged in its table inputs"):
        check(database)


def test_each_look_of_live_tells_what_it_found(tmp_path: Path) -> None:
    """An order at the exchange that is not the bot's: told once, in the window as long as it is there."""
    made = rehearsal(tmp_path)
    for _ in range(8):
        made._look()
    assert not made._engine.findings
    made._session.lost = ("LB1-rehearsal-000999",)
    for _ in range(3):
        made._look()
        assert [b.key for b in made._engine.findings] == ["lost"]
    made._session.accept()
    made._look()
    assert not made._engine.findings
    made._engine.close()
    with contextlib.closing(sqlite3.connect(made._database)) as db:
        texts = [row[0] for row in db.execute("SELECT text FROM events WHERE kind = 'live'")]
    assert len(texts) == 1 and "LB1-rehearsal-000999" in texts[0]
