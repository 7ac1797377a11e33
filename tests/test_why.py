"""WHY: what kept a market from trading, counted from decisions that were written down by hand."""

from __future__ import annotations

import tkinter
from collections.abc import Iterator
from pathlib import Path
from tkinter import ttk
from typing import cast

import pytest

import lunobiz as lb
from desks import market
from lunobiz import ReasonRow, Zone, blocker_rows, why_told
from screen import a_screen  # noqa: F401  (a fixture, `screen`)

NOW = 1_763_812_800_000  # 2025-11-22 12:00:00 UTC, a Saturday
HOUR = 3_600_000


def reason(hours_ago: float, pair: str, action: str, code: str, why: str = "because") -> ReasonRow:
    """One decision on a four-hour candle."""
    return ReasonRow(NOW - round(hours_ago * HOUR), pair, 14_400, action, code, why)


ROWS = (  # the newest first
    reason(0, "XBTZAR", "reject", "P8-spread", "Spread 0.31 % > limit 0.25 %"),
    reason(0, "ETHZAR", "wait", "no-signal"),
    reason(4, "XBTZAR", "enter", "enter"),
    reason(4, "ETHZAR", "reject", "P8-spread"),
    reason(8, "XBTZAR", "hold", "hold"),
    reason(8, "ETHZAR", "skip", "stale_candles"),
    reason(25, "XBTZAR", "reject", "P12-loss-cap"),
)


def test_the_newest_reason_of_the_market_is_the_answer() -> None:
    told = why_told("XBTZAR", "XBT/ZAR", ROWS, NOW, Zone())
    assert told.sentence == "Spread 0.31 % > limit 0.25 %" and told.name == "XBT/ZAR"
    assert [r.cells[:4] for r in told.history] == [
        ("12:00:00", "4h", "REJECT", "spread"), ("08:00:00", "4h", "ENTER", "enter"),
        ("04:00:00", "4h", "HOLD", "hold"), ("21 Nov 11:00", "4h", "REJECT", "loss cap"),
    ]
    assert len({r.key for r in told.history}) == 4


def test_a_market_without_a_decision_says_when_there_will_be_one() -> None:
    told = why_told("XRPZAR", "XRP/ZAR", ROWS, NOW, Zone())
    assert "a few seconds after a candle closes" in told.sentence and told.history == ()
    assert told.blockers  # those of the other markets are there all the same


def test_blockers_are_counted_over_all_markets_of_a_day() -> None:
    """Of four that held back in 24 hours two were the spread: 50 %; entries and holds hold nothing back."""
    rows = why_told("XBTZAR", "XBT/ZAR", ROWS, NOW, Zone()).blockers
    assert [r.cells for r in rows] == [
        ("Spread", "2", "50 %", "ETH/ZAR, XBT/ZAR"), ("No signal", "1", "25 %", "ETH/ZAR"),
        ("Stale candles", "1", "25 %", "ETH/ZAR"),
    ]
    assert blocker_rows(()) == () and blocker_rows([reason(0, "A", "enter", "enter")]) == ()


def written(time_ms: int, code: str) -> lb.CycleReport:
    """A cycle that made one decision."""
    row = lb.Decision(time_ms, "XBTZAR", 14_400, 0, lb.Action.WAIT, "", lb.Regime.TRENDING, 0.0, code, "because", ())
    return lb.CycleReport(time_ms, (14_400,), lb.Desk(100_000.0), lb.Settlement(), (), (), (row,), (), (), (), (),
                          100_000.0, 0.0)


def test_the_audit_gives_the_newest_first_and_only_its_own_mode(tmp_path: Path) -> None:
    store = lb.Store(tmp_path / "a.db", lb.Redactor([]), "OFF")
    for time_ms, mode, code in ((1, lb.Mode.PAPER, "old"), (10, lb.Mode.PAPER, "a"), (20, lb.Mode.PAPER, "b"),
                                (30, lb.Mode.DEMO, "c")):
        store.record(written(NOW + time_ms, code), mode, {"XBTZAR": market("XBT")})
    found = lb.read_reasons(tmp_path / "a.db", lb.Mode.PAPER, NOW + 10)
    store.close()
    assert [(r.time_ms - NOW, r.code) for r in found] == [(20, "b"), (10, "a")]
    assert found[0] == ReasonRow(NOW + 20, "XBTZAR", 14_400, "wait", "b", "because")


@pytest.fixture
def look(screen: None) -> Iterator[lb.Look]:
    root = lb.open_root("test", is_dark=True)
    yield lb.Look(root)
    root.destroy()


def test_the_dialog_shows_both_tables(look: lb.Look, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []

    def close(dialog: lb.Dialog, focus: tkinter.Misc) -> str:
        dialog.window.update()

        def walk(widget: tkinter.Misc) -> None:
            if widget.winfo_class() == "Treeview":
                table = cast(ttk.Treeview, widget)
                seen.extend(tuple(map(str, table.item(i, "values"))) for i in table.get_children())
            for child in widget.winfo_children():
                walk(child)

        walk(dialog.window)
        dialog.close()
        return ""

    monkeypatch.setattr(lb.Dialog, "show", close)
    lb.show_why(look, why_told("XBTZAR", "XBT/ZAR", ROWS, NOW, Zone()))
    assert len(seen) == 7 and any("Spread 0.31 % > limit 0.25 %" in cell for row in seen for cell in row)
