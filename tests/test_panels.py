"""PANELS: the screens, each fed with rows, in a real window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

import lunobiz as lb
import screen as sc
from screen import a_screen  # noqa: F401  (a fixture, `screen`)

if TYPE_CHECKING:
    import tkinter


class StepClock:
    """A clock that stands until it is pushed."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def now_ms(self) -> int:
        return sc.NOON

    def mono_s(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def look(screen: None) -> Iterator[lb.Look]:
    root = lb.open_root("test", is_dark=True)
    root.deiconify()
    root.geometry("1200x700")
    yield lb.Look(root)
    root.destroy()


# ---- action bar -------------------------------------------------------------


@pytest.fixture
def done() -> list[object]:
    return []


@pytest.fixture
def bar(look: lb.Look, done: list[object]) -> lb.ActionBar:
    doings = lb.Doings(
        start_stop=lambda: done.append("start/stop"), backtest=lambda: done.append("backtest"),
        export=lambda: done.append("export"), open_folder=lambda: done.append("folder"), set_speed=done.append,
        toggle_theme=lambda: done.append("theme"), act_on_banner=done.append,
    )  # fmt: skip
    made = lb.ActionBar(look.root, look, doings)
    made.frame.pack(fill="x")
    return made


def test_the_start_button_says_what_it_does(bar: lb.ActionBar) -> None:
    bar.show(sc.news(is_running=False).status)
    assert bar.start.cget("text") == "▶  Start bot"
    bar.show(sc.news(is_running=True).status)
    assert bar.start.cget("text") == "■  Stop bot"


def test_live_is_locked_and_says_why(bar: lb.ActionBar) -> None:
    bar.show(sc.news(lock_reason="No gate has been evaluated.").status)
    assert bar.live.instate(["disabled"])
    assert bar.live.cget("text") == "Go LIVE… (locked)"
    assert bar._live_tip.text == "LIVE is locked. No gate has been evaluated."


def test_only_a_stepped_market_has_a_speed(bar: lb.ActionBar, look: lb.Look, done: list[object]) -> None:
    bar.show(sc.news().status)
    sc.settle(look.root, 0.05)
    assert not bar.speed.winfo_ismapped()
    bar.show(sc.news(mode=lb.Mode.DEMO, speed=1_800.0).status)
    sc.settle(look.root, 0.05)
    assert bar.speed.winfo_ismapped()
    assert bar.speed.get() == "1,800x"
    assert list(bar.speed.cget("values")) == ["1x", "60x", "300x", "1,800x", "7,200x"]
    bar.speed.current(4)
    bar.speed.event_generate("<<ComboboxSelected>>")
    assert done == [7_200.0]
    bar.show(sc.news(mode=lb.Mode.REPLAY, speed=0.0).status)
    assert bar.speed.get() == "fastest"


def test_key_hints_give_way_to_buttons(bar: lb.ActionBar, look: lb.Look) -> None:
    bar.show(sc.news(mode=lb.Mode.DEMO).status)
    for width, is_there in ((1440, True), (1024, False)):
        look.root.geometry(f"{look.px(width)}x400")
        sc.settle(look.root, 0.2)
        assert bool(bar._hints.winfo_ismapped()) is is_there
        assert bar.theme.winfo_ismapped()
        right = bar.theme.winfo_rootx() + bar.theme.winfo_width()
        assert bar.speed.winfo_rootx() + bar.speed.winfo_width() < bar.theme.winfo_rootx() < right
        assert right <= look.root.winfo_rootx() + look.root.winfo_width()


# ---- banners ----------------------------------------------------------------


@pytest.fixture
def banners(look: lb.Look, done: list[object]) -> lb.BannerBar:
    made = lb.BannerBar(look.root, look, done.append, lambda: done.append("details"))
    made.frame.pack(fill="x")
    return made


def texts(banners: lb.BannerBar) -> list[str]:
    return [str(label.cget("text")) for label in banners._labels]


ERROR = lb.Banner("error", "KILLED.", "rearm", "KILL")
WARNING = lb.Banner("warning", "Slow.", "", "slow")
INFO = lb.Banner("info", "Loading.", "", "progress")


def test_the_worst_banner_is_on_top_and_two_are_shown(banners: lb.BannerBar, look: lb.Look) -> None:
    banners.show((INFO, WARNING, ERROR))
    assert texts(banners) == ["✖  KILLED.", "▲  Slow."]
    rest = [str(c.cget("text")) for c in banners.frame.winfo_children() if c.winfo_class() == "TLabel"]
    assert rest == ["1 more: Loading."]


def test_a_dismissed_banner_stays_away_until_it_has_ended(banners: lb.BannerBar) -> None:
    banners.show((WARNING, INFO))
    banners.dismiss(WARNING)
    assert texts(banners) == ["●  Loading."]
    banners.show((replace(WARNING, text="Slower."), INFO))  # the same condition with other numbers
    assert texts(banners) == ["●  Loading."]
    banners.show((INFO,))
    banners.show((WARNING, INFO))
    assert texts(banners) == ["▲  Slow.", "●  Loading."]


def test_escape_leaves_what_needs_the_owner(banners: lb.BannerBar) -> None:
    banners.show((ERROR, WARNING))
    banners.dismiss_top()
    assert texts(banners) == ["✖  KILLED."]
    banners.dismiss_top()
    assert texts(banners) == ["✖  KILLED."]


def test_banner_buttons(banners: lb.BannerBar, look: lb.Look, done: list[object]) -> None:
    banners.show((ERROR, WARNING))
    made = [child for line in banners.frame.winfo_children() for child in line.winfo_children()]
    buttons = [cast("tkinter.Button", child) for child in made if child.winfo_class() == "Button"]
    by_text = {str(b.cget("text")): b for b in buttons}
    by_text["Re-arm…"].invoke()
    by_text["Details"].invoke()
    assert done == ["rearm", "details"]
    by_text["Dismiss"].invoke()
    assert texts(banners) == ["✖  KILLED."]


def test_no_banner_takes_no_room(banners: lb.BannerBar, look: lb.Look) -> None:
    banners.show((WARNING,))
    sc.settle(look.root, 0.1)
    tall = banners.frame.winfo_height()
    banners.show(())
    sc.settle(look.root, 0.1)
    assert banners.frame.winfo_height() <= 2 < 20 < tall


# ---- the trader's view ------------------------------------------------------


@pytest.fixture
def desk(look: lb.Look) -> lb.DeskPanel:
    made = lb.DeskPanel(look.root, look)
    made.frame.pack(fill="both", expand=True)
    sc.settle(look.root, 0.2)
    return made


def test_all_four_tables_are_filled(desk: lb.DeskPanel) -> None:
    told = sc.news()
    desk.show(told)
    assert [len(t.keys) for t in desk.tables] == [3, 7, len(told.decisions), 4]


def test_hold_and_wait_can_be_hidden(desk: lb.DeskPanel) -> None:
    desk.show(sc.news())
    desk.hides_quiet.set(True)
    desk._show_decisions()
    words = {str(desk.decisions.tree.set(k, "2")) for k in desk.decisions.keys}
    assert words == {"ENTER", "REJECT", "SKIP"}
    quiet = tuple(r for r in sc.news().decisions if r.cells[2] in ("HOLD", "WAIT"))
    desk.show(replace(sc.news(), decisions=quiet))
    assert desk.decisions.keys == ()
    assert desk.decisions._empty.cget("text") == lb.NO_SHOWN_DECISIONS


def test_headings_name_the_currency(desk: lb.DeskPanel) -> None:
    told = sc.news()
    desk.show(replace(told, status=replace(told.status, counter="USDT")))
    assert str(desk.positions.tree.heading("1", "text")) == "P&L USDT"
    assert str(desk.ranking.tree.heading("6", "text")) == "24h vol USDT"
    assert str(desk.fills.tree.heading("5", "text")) == "Value USDT"


def test_an_empty_ranking_says_what_it_waits_for(desk: lb.DeskPanel) -> None:
    desk.show(sc.news(lb.Desk(1.0), is_empty=True, is_running=False))
    assert desk.ranking._empty.cget("text") == lb.NO_RANKING
    desk.show(sc.news(lb.Desk(1.0), is_empty=True))
    assert desk.ranking._empty.cget("text") == lb.NO_RANKING_YET


def test_headings_and_cells_agree_in_number(desk: lb.DeskPanel) -> None:
    told = sc.news()
    for table, rows in zip(desk.tables, (told.positions, told.ranking, told.decisions, told.fills), strict=True):
        assert {len(row.cells) for row in rows} == {len(table.columns)}


def test_gain_and_loss_are_never_left_out(desk: lb.DeskPanel, look: lb.Look) -> None:
    look.root.geometry("700x700")
    desk.show(sc.news())
    sc.settle(look.root, 0.3)
    shown = list(desk.positions.tree.cget("displaycolumns"))
    assert {"0", "1", "2", "3", "4", "7"} <= set(shown)


# ---- backtest ---------------------------------------------------------------


@pytest.fixture
def clock() -> StepClock:
    return StepClock()


@pytest.fixture
def backtest(look: lb.Look, done: list[object], clock: StepClock) -> lb.BacktestPanel:
    made = lb.BacktestPanel(look.root, look, done.append, clock)
    made.frame.pack(fill="both", expand=True)
    sc.settle(look.root, 0.05)
    return made


def test_the_form_asks_for_what_was_chosen(backtest: lb.BacktestPanel) -> None:
    backtest.folder.set(" /data/candles ")
    backtest.pairs.set("xbtzar, ETHZAR")
    backtest.timeframes[14_400].set(True)
    assert backtest.request() == lb.BacktestRequest("folder", "/data/candles", ("XBTZAR", "ETHZAR"), (3_600, 14_400))
    backtest.source.set("cache")
    backtest.pairs.set("")
    assert backtest.request() == lb.BacktestRequest("cache", "", (), (3_600, 14_400))


@pytest.mark.parametrize(
    ("folder", "pairs", "hour", "problem"),
    [
        ("", "", True, "✖ Choose the folder that holds the candle files."),
        ("/data", "XBT ZAR", True, "✖ Markets: write a comma list of markets such as XBTZAR."),
        ("/data", "XBTZAR,XBTZAR", True, "✖ Markets: a market is named twice."),
        ("/data", "", False, "✖ Tick at least one length of decision candles."),
    ],
)
def test_a_wrong_form_says_what_is_wrong(
    backtest: lb.BacktestPanel, done: list[object], folder: str, pairs: str, hour: bool, problem: str
) -> None:
    backtest.folder.set(folder)
    backtest.pairs.set(pairs)
    backtest.timeframes[3_600].set(hour)
    backtest.run.invoke()
    assert backtest.problem.cget("text") == problem
    assert done == []
    assert not backtest.is_running


def begin(backtest: lb.BacktestPanel) -> None:
    backtest.folder.set("/data")
    backtest.run.invoke()


def test_a_run_locks_the_form_and_can_be_cancelled(backtest: lb.BacktestPanel, done: list[object]) -> None:
    begin(backtest)
    assert done == [lb.RunBacktest(lb.BacktestRequest("folder", "/data", (), (3_600,)))]
    assert backtest.run.instate(["disabled"]) and backtest.cancel.instate(["!disabled"])
    assert backtest._folder_entry.instate(["disabled"])
    backtest.cancel.invoke()
    assert done[1:] == [lb.CancelBacktest()]
    assert backtest.cancel.instate(["disabled"])
    backtest.stop()
    backtest.show_result(lb.BacktestDone((), "Backtest", "Cancelled"))
    assert backtest._phase.cget("text") == "Cancelled"
    assert backtest.run.instate(["!disabled"])
    assert backtest.problem.cget("text") == ""


def test_progress_tells_the_rest_after_five_percent(backtest: lb.BacktestPanel, clock: StepClock) -> None:
    begin(backtest)
    backtest.show_progress(lb.BacktestProgress(0, 1_000, "running"))
    clock.seconds += 4
    backtest.show_progress(lb.BacktestProgress(40, 1_000, "running"))
    assert backtest._eta.cget("text") == "40 of 1,000 · 4 % · elapsed 00:04"
    clock.seconds += 6
    backtest.show_progress(lb.BacktestProgress(100, 1_000, "running"))  # 10 a second, 900 to go
    assert backtest._eta.cget("text") == "100 of 1,000 · 10 % · elapsed 00:10 · about 01:30 left"
    backtest.show_progress(lb.BacktestProgress(0, 0, "reading candles"))
    assert backtest._phase.cget("text") == "reading candles"


def test_a_result_is_kept_when_the_next_run_fails(backtest: lb.BacktestPanel, clock: StepClock) -> None:
    begin(backtest)
    clock.seconds += 65
    row = lb.Row("a", ("Total return", "-4.21 %", "after costs"), "down")
    backtest.show_result(lb.BacktestDone((row,), "XBTZAR", "1 trip."))
    assert backtest._eta.cget("text") == "took 01:05"
    assert backtest.result._title.cget("text") == "XBTZAR"
    assert backtest._summary.cget("text") == "1 trip."
    begin(backtest)
    backtest.show_result(lb.BacktestDone((), "Backtest", "the folder holds no candles"))
    assert backtest.problem.cget("text") == "✖ the folder holds no candles"
    assert backtest.result.keys == ("a",)


def test_the_pace_forgets_what_is_long_past() -> None:
    tempo = lb.Tempo()
    tempo.start(0.0)
    assert tempo.left_text(500, 1_000) == ""
    for second in range(100):
        tempo.note(float(second), second if second < 50 else 50 + 10 * (second - 50))
    assert tempo.per_s == pytest.approx(10.0)
    assert tempo.left_text(1_000, 1_000) == ""
    assert tempo.left_text(980, 1_000) == "about 00:05 left"


# ---- log --------------------------------------------------------------------


@pytest.fixture
def log(look: lb.Look) -> lb.LogPanel:
    made = lb.LogPanel(look.root, look, sc.SAST)
    made.frame.pack(fill="both", expand=True)
    for number, level in enumerate(("info", "warning", "error", "info")):
        made.add(lb.LogLine(sc.NOON + number * 1_000, level, "fill", f"line {number}"), sc.NOON)
    made.refresh()
    sc.settle(look.root, 0.05)
    return made


def messages(log: lb.LogPanel) -> list[str]:
    return [str(log.table.tree.set(k, "3")) for k in log.table.keys]


def test_the_newest_line_is_on_top(log: lb.LogPanel) -> None:
    assert messages(log) == ["line 3", "line 2", "line 1", "line 0"]
    first = log.table._shown[log.table.keys[0]][0]
    assert first.cells == ("14:00:03", "INFO", "fill", "line 3")


def test_lines_are_filtered_by_level_and_text(log: lb.LogPanel) -> None:
    log.level.set("Warnings and errors")
    log.refresh()
    assert messages(log) == ["line 2", "line 1"]
    log.level.set("Errors")
    log.refresh()
    assert messages(log) == ["line 2"]
    log.level.set("All")
    log.find.insert(0, "FILL line 1")
    log.refresh()
    assert messages(log) == ["line 1"]


def test_only_the_newest_lines_are_kept(log: lb.LogPanel) -> None:
    for number in range(lb.LOG_ROWS + 10):
        log.add(lb.LogLine(sc.NOON, "info", "cycle", f"n{number}"), sc.NOON)
    log.refresh()
    assert len(log.table.keys) == lb.LOG_ROWS == 2_000
    assert messages(log)[0] == f"n{lb.LOG_ROWS + 9}"


def test_scrolling_away_stops_following(log: lb.LogPanel, look: lb.Look) -> None:
    for number in range(200):
        log.add(lb.LogLine(sc.NOON, "info", "cycle", f"n{number}"), sc.NOON)
    log.refresh()
    assert log.follows.get()
    log.table.tree.yview_moveto(0.5)
    log._scrolled(None)  # type: ignore[arg-type]
    sc.settle(look.root, 0.1)
    assert not log.follows.get()
    log.follows.set(True)
    log._follow()
    assert log.table.tree.yview()[0] == 0.0


def test_rows_are_copied_with_their_cells(log: lb.LogPanel) -> None:
    log.table.tree.selection_set(log.table.keys[1])
    log.copy()
    assert log.frame.clipboard_get() == "14:00:02\tERROR\tfill\tline 2"


# ---- footer -----------------------------------------------------------------


def test_a_narrow_footer_keeps_the_words_and_drops_the_folder(look: lb.Look) -> None:
    footer = lb.Footer(look.root, look, "LunoBiz 0.1.0", "/home/trader/.local/share/LunoBiz")
    footer.frame.pack(fill="x")
    footer.show_cycle("Last cycle 2 s ago", "muted")
    for width, text in ((1440, "LunoBiz 0.1.0  ·  /home/trader/.local/share/LunoBiz"), (1024, "LunoBiz 0.1.0")):
        look.root.geometry(f"{look.px(width)}x300")
        footer.show(sc.news().footer)
        sc.settle(look.root, 0.2)
        assert footer._about.cget("text") == text
        assert footer._text.winfo_rootx() + footer._text.winfo_reqwidth() <= footer._about.winfo_rootx()
