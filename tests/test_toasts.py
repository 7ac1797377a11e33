"""TOASTS: what is said in passing, where it stands, and that it goes by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import lunobiz as lb
import screen as sc
from screen import a_screen  # noqa: F401  (a fixture, `screen`)

RUN = lb.SavedRun(1, sc.NOON, "backtest", "{}")


@pytest.mark.parametrize(
    ("event", "is_asked", "text"),
    [
        (lb.LogLine(1, "info", "entry", "buy 0.1 XBTZAR at 1"), False, "buy 0.1 XBTZAR at 1"),
        (lb.LogLine(1, "info", "stop", "SELL 0.1 XBTZAR at 1"), False, "SELL 0.1 XBTZAR at 1"),
        (lb.LogLine(1, "warning", "state", "Held back: no network"), False, ""),
        (lb.Note("info", "Exported 9 files to x", is_passing=True), False, "Exported 9 files to x"),
        (lb.Note("error", "Export failed"), False, ""),
        (lb.SettingsSaved((("LUNOBIZ_SLIPPAGE", "0.002"),)), False, "1 setting saved"),
        (lb.SettingsSaved((("A", "1"), ("B", "2"))), False, "2 settings saved"),
        (lb.SettingsSaved((("A", "1"),), "Nothing was changed"), False, ""),
        (lb.SettingsSaved(()), False, ""),
        (lb.BacktestDone(RUN), True, "The backtest has finished"),
        (lb.BacktestDone(RUN), False, ""),
        (lb.BacktestDone(None, "Cancelled"), True, ""),
        (lb.GatesDone("{}"), True, "The gates have been evaluated"),
        (lb.GatesDone("{}"), False, ""),  # the one on record, told at the start
        (lb.GatesDone("", "Cancelled"), True, ""),
        (object(), True, ""),
    ],
)
def test_only_what_went_well_is_said_in_passing(event: object, is_asked: bool, text: str) -> None:
    assert lb.toast_of(event, is_asked) == text


class Stage:
    """Tabs in a window of their own, with toasts and buttons below."""

    def __init__(self, width: int = 900) -> None:
        import ttkbootstrap as ttk

        self.root = lb.open_root("test", is_dark=True)
        self.root.geometry(f"{width}x400")
        self.root.deiconify()
        self.look, self.tabs = lb.Look(self.root), ttk.Notebook(self.root)
        self.tabs.pack(fill="both", expand=True)
        for name in lb.TABS:
            self.tabs.add(ttk.Frame(self.tabs), text=name)
        self.toasts = lb.Toasts(self.root, self.look, self.tabs)
        sc.settle(self.root, 0.2)


@pytest.fixture
def stage(screen: None) -> Iterator[Stage]:
    made = Stage()
    yield made
    made.root.destroy()


def test_a_line_goes_by_itself(stage: Stage) -> None:
    stage.toasts.say("Saved", 100.0)
    stage.toasts.pass_time(104.9)
    assert stage.toasts.text == "✔ Saved" and stage.toasts.label.winfo_manager() == "place"
    stage.toasts.pass_time(105.0)
    assert stage.toasts.text == "" and stage.toasts.label.winfo_manager() == ""


def test_lines_follow_each_other_sooner_and_a_flood_leaves_the_newest(stage: Stage) -> None:
    seen: list[tuple[int, str]] = []
    for n in range(9):
        stage.toasts.say(str(n), 100.0)
    for second in range(100, 130):
        stage.toasts.pass_time(float(second))
        if stage.toasts.text and stage.toasts.text not in [text for _, text in seen]:
            seen.append((second, stage.toasts.text))
    assert seen == [(100, "✔ 0"), (102, "✔ 6"), (104, "✔ 7"), (106, "✔ 8")]
    assert stage.toasts.text == ""


def test_it_stands_beside_the_tabs_and_above_their_pages(stage: Stage) -> None:
    stage.toasts.say("x" * 500, 1.0)
    sc.settle(stage.root, 0.1)
    label, tabs = stage.toasts.label, stage.tabs
    left, right = label.winfo_rootx() - tabs.winfo_rootx(), label.winfo_rootx() + label.winfo_width()
    last = max(x for x in range(tabs.winfo_width()) if tabs.identify(x, 12))
    page = stage.root.nametowidget(tabs.select())
    assert last < left and right <= tabs.winfo_rootx() + tabs.winfo_width()
    assert label.winfo_rooty() + label.winfo_height() <= page.winfo_rooty()
    assert stage.toasts.text.endswith("…") and str(label.cget("takefocus")) in ("0", "")


def test_without_room_it_is_left_to_the_log(screen: None) -> None:
    stage = Stage(380)
    stage.toasts.say("Saved", 1.0)
    assert stage.toasts.text == "" and stage.toasts.label.winfo_manager() == ""
    stage.root.destroy()


def test_a_click_or_another_width_takes_it_away(stage: Stage) -> None:
    stage.toasts.say("Saved", 1.0)
    stage.root.update()
    stage.toasts.label.event_generate("<Button-1>")
    assert stage.toasts.text == ""
    stage.toasts.say("Saved", 2.0)
    stage.root.geometry("900x300")
    sc.settle(stage.root, 0.2)
    assert stage.toasts.text == "✔ Saved"
    stage.root.geometry("600x300")
    assert sc.until(stage.root, lambda: stage.toasts.text == "")


def test_the_window_says_it_in_passing_and_in_the_log(screen: None, tmp_path: Path) -> None:
    worker = sc.FakeWorker(sc.news(), lb.Note("info", "Exported 9 files to x", is_passing=True))
    window = sc.open_dashboard(worker, tmp_path)
    assert sc.until(window.root, lambda: window.screen.toasts.text == "✔ Exported 9 files to x")
    assert all("Exported" not in banner.text for banner in window.screen.banners.visible)
    worker.say(lb.LogLine(sc.NOON, "info", "entry", "buy 0.1 XBTZAR at 1"))
    assert sc.until(window.root, lambda: window.screen.toasts.text == "✔ Buy 0.1 XBT/ZAR at 1", 8)
    window.screen.tabs.select(2)
    sc.settle(window.root, 0.2)
    texts = [str(window.screen.log.table.tree.set(k, "3")) for k in window.screen.log.table.keys]
    assert sorted(texts) == ["Buy 0.1 XBT/ZAR at 1", "Exported 9 files to x"]
    assert sc.until(window.root, lambda: window.screen.toasts.text == "", 8)
    window.end()
