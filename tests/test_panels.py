"""PANELS: the screens, each fed with rows, in a real window."""

from __future__ import annotations

import json
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
        start_stop=lambda: done.append("start/stop"), go_live=lambda: done.append("live"),
        close_all=lambda: done.append("close all"), backtest=lambda: done.append("backtest"),
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


def test_live_is_locked_and_says_why(bar: lb.ActionBar, done: list[object]) -> None:
    """The button asks, and the answer is a list of what is in the way."""
    bar.show(sc.news(lock_reason="No gate has been evaluated.").status)
    assert bar.live.cget("text") == "Go LIVE… (locked)"
    assert bar._live_tip.text == "LIVE is locked. No gate has been evaluated."
    bar.live.invoke()
    assert done == ["live"]


def test_the_live_button_follows_gates_and_mode(bar: lb.ActionBar) -> None:
    bar.show(sc.news(lock_reason="").status)
    assert (bar.live.cget("text"), bar._live_tip.text) == (
        "Go LIVE…", "The gates are open; a confirmation is asked.")  # fmt: skip
    bar.show(sc.news(mode=lb.Mode.LIVE, lock_reason="").status)
    assert (bar.live.cget("text"), bar._live_tip.text) == ("Back to PAPER…", "Orders are real.")


def test_the_button_closes_all(bar: lb.ActionBar, done: list[object]) -> None:
    assert bar.close_all.cget("text") == "Close all…"
    bar.close_all.invoke()
    assert done == ["close all"]


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
    assert {"0", "1", "2", "3", "4"} <= set(shown)  # and the name has room for the words beside it


# ---- backtest ---------------------------------------------------------------


@pytest.fixture
def clock() -> StepClock:
    return StepClock()


@pytest.fixture
def backtest(look: lb.Look, done: list[object], clock: StepClock) -> lb.BacktestPanel:
    made = lb.BacktestPanel(look.root, look, done.append, clock, sc.SAST)
    made.frame.pack(fill="both", expand=True)
    sc.settle(look.root, 0.05)
    return made


def phase(backtest: lb.BacktestPanel) -> str:
    return str(backtest._phase.label.cget("text"))


def test_the_form_asks_for_what_was_chosen(backtest: lb.BacktestPanel) -> None:
    form = backtest.form
    form.folder.set(" /data/candles ")
    form.pairs.set("xbtzar, ETHZAR")
    form.timeframes[3_600].set(True)  # beside the default of four hours
    form.first_day.set("2025-06-01")
    form.last_day.set(" 2025-06-30 ")
    day = 86_400_000  # 2025-06-01 is day 20,240; the last day counts whole
    assert form.request() == lb.BacktestRequest(
        "folder", "/data/candles", ("XBTZAR", "ETHZAR"), (3_600, 14_400), 20_240 * day, 20_270 * day
    )
    form.source.set("cache")
    for field in (form.pairs, form.first_day, form.last_day):
        field.set("")
    assert form.request() == lb.BacktestRequest("cache", "", (), (3_600, 14_400), 0, 0)


def test_the_form_starts_with_the_candles_of_the_settings(backtest: lb.BacktestPanel) -> None:
    def ticked() -> tuple[int, ...]:
        return tuple(seconds for seconds, variable in backtest.form.timeframes.items() if variable.get())

    assert ticked() == lb.Schedule().timeframes == (14_400,)
    backtest.form.tick((900, 86_400))
    assert ticked() == (900, 86_400)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"folder": ""}, "✖ Choose the folder that holds the candle files."),
        ({"pairs": "XBT ZAR"}, "✖ Markets: write a comma list of markets such as XBTZAR."),
        ({"pairs": "XBTZAR,XBTZAR"}, "✖ Markets: a market is named twice."),
        ({"first_day": "1 March"}, "✖ From: write a day such as 2025-03-01."),
        ({"last_day": "2025-02-30"}, "✖ To: write a day such as 2025-03-01."),
        ({"first_day": "2025-03-02", "last_day": "2025-03-01"}, "✖ The period ends before it begins."),
    ],
)
@pytest.mark.parametrize("button", ["run", "evaluate"])
def test_a_wrong_form_says_what_is_wrong(
    backtest: lb.BacktestPanel, done: list[object], changes: dict[str, str], problem: str, button: str
) -> None:
    backtest.form.folder.set("/data")
    for name, text in changes.items():
        getattr(backtest.form, name).set(text)
    getattr(backtest, button).invoke()
    assert phase(backtest) == problem
    assert done == []
    assert not backtest.is_running


def test_no_length_of_candles_is_no_run(backtest: lb.BacktestPanel, done: list[object]) -> None:
    backtest.form.folder.set("/data")
    backtest.form.timeframes[14_400].set(False)
    backtest.run.invoke()
    assert (phase(backtest), done) == ("✖ Tick at least one length of decision candles.", [])


def begin(backtest: lb.BacktestPanel, job: str = "backtest") -> None:
    backtest.form.folder.set("/data")
    (backtest.run if job == "backtest" else backtest.evaluate).invoke()


ASKED = lb.BacktestRequest("folder", "/data", (), (14_400,))


@pytest.mark.parametrize(
    ("job", "order", "end", "answer"),
    [
        ("backtest", lb.RunBacktest(ASKED), lb.CancelBacktest(), lb.BacktestDone(None, "Cancelled")),
        ("gates", lb.EvaluateGates(ASKED), lb.CancelGates(), lb.GatesDone("", "Cancelled")),
    ],
)
def test_a_job_locks_the_form_and_can_be_cancelled(
    backtest: lb.BacktestPanel, done: list[object], job: str, order: object, end: object, answer: object
) -> None:
    begin(backtest, job)
    assert done == [order]
    assert backtest.run.instate(["disabled"]) and backtest.evaluate.instate(["disabled"])
    assert backtest.cancel.instate(["!disabled"]) and backtest.form._folder_entry.instate(["disabled"])
    backtest.cancel.invoke()
    assert done[1:] == [end]
    assert backtest.cancel.instate(["disabled"])
    assert phase(backtest) == "Cancelling"
    backtest.take(lb.BacktestProgress(5, 10, "Running"))  # what was on its way
    assert phase(backtest) == "Cancelling"
    backtest.stop()
    assert backtest.take(answer)
    assert phase(backtest) == "Cancelled"
    assert backtest.run.instate(["!disabled"]) and backtest.evaluate.instate(["!disabled"])
    assert not backtest.is_running


def test_progress_tells_the_rest_after_five_percent(backtest: lb.BacktestPanel, clock: StepClock) -> None:
    begin(backtest)
    backtest.take(lb.BacktestProgress(0, 1_000, "Running", "candles"))
    clock.seconds += 4
    backtest.take(lb.BacktestProgress(40, 1_000, "Running", "candles"))
    assert backtest._eta.cget("text") == "40 of 1,000 candles · 4 % · elapsed 00:04"
    clock.seconds += 6
    backtest.take(lb.GatesProgress(100, 1_000, "Luck: 12 of 299"))  # 10 a second, 900 to go
    assert backtest._eta.cget("text") == "10 % · elapsed 00:10 · about 01:30 left"
    assert phase(backtest) == "Luck: 12 of 299"
    clock.seconds += 9
    backtest.pass_time()
    assert backtest._eta.cget("text") == "10 % · elapsed 00:19 · about 01:30 left"
    clock.seconds += 20  # no progress: the clock goes on, and nothing is foretold
    backtest.pass_time()
    assert backtest._eta.cget("text") == "10 % · elapsed 00:39 · still at work"
    clock.seconds -= 29
    backtest.take(lb.BacktestProgress(0, 0, "Reading candles"))
    assert (phase(backtest), backtest._eta.cget("text")) == ("Reading candles", "elapsed 00:10")


def saved(number: int, kind: str = "backtest", **changes: object) -> lb.SavedRun:
    values = sc.EVALUATION if kind == "gates" else {**sc.run_json(), **changes}
    return lb.SavedRun(number, sc.NOON + number * 60_000, kind, json.dumps(values))


def labels(page: lb.ResultPage | lb.GatesPage) -> list[str]:
    found = [child for frame in page.frame.winfo_children() for child in frame.winfo_children()]
    return [str(cast("tkinter.Label", c).cget("text")) for c in found if c.winfo_class() == "TLabel"]


def cells(table: lb.Table, column: int) -> list[str]:
    return [str(table.tree.set(key, str(column))).strip() for key in table.keys]


def test_a_result_is_kept_when_the_next_run_fails(backtest: lb.BacktestPanel, clock: StepClock) -> None:
    begin(backtest)
    clock.seconds += 65
    backtest.take(lb.BacktestDone(saved(1)))
    assert (phase(backtest), backtest._eta.cget("text")) == ("Done", "took 01:05")
    assert labels(backtest.result) == [
        "XBT/ZAR, ETH/ZAR  ·  1h and 4h candles  ·  2025-03-01 to 2025-05-31",
        "Costs: fees maker 0.40 %, taker 0.60 % at entry tier; slippage 0.10 %; spread 0.04 to 0.31 %",
    ]
    assert cells(backtest.result.metrics, 1)[:3] == ["+1.23 %", "+34.00 %", "-32.77 %"]
    begin(backtest)
    backtest.take(lb.BacktestDone(None, "the folder holds no candles"))
    assert phase(backtest) == "✖ the folder holds no candles"
    assert cells(backtest.result.metrics, 1)[0] == "+1.23 %"


def test_one_selector_for_all_splits(backtest: lb.BacktestPanel, look: lb.Look) -> None:
    page = backtest.result
    assert page.splits._empty.cget("text") == lb.NO_SPLIT
    backtest.open_run(saved(1))
    seen = {}
    for index, word in enumerate(("Month", "Pair", "Strategy", "Regime")):
        page.by.current(index)
        page.by.event_generate("<<ComboboxSelected>>")
        look.root.update()
        seen[word] = cells(page.splits, 0)
        assert str(page.splits.tree.heading("0", "text")) == word
    assert seen == {"Month": ["2025-03", "2025-04"], "Pair": ["XBT/ZAR", "ETH/ZAR"], "Strategy": ["Breakout"],
                    "Regime": ["Trending"]}
    backtest.open_run(saved(2, by_regime={}))
    assert page.splits._empty.cget("text") == lb.NO_TRIPS


def test_saved_runs_are_listed_opened_and_compared(backtest: lb.BacktestPanel, look: lb.Look) -> None:
    page = backtest.saved
    second = saved(2, metrics={"total_return": -0.01, "buy_and_hold": 0.34})
    backtest.take(lb.RunsListed((saved(9, "gates"), second, saved(1))))
    assert cells(page.runs, 0) == ["2025-11-22 14:09", "2025-11-22 14:02", "2025-11-22 14:01"]
    page.runs.tree.selection_set("2", "1")
    look.root.update()
    assert cells(page.pair, 1)[0] == "+1.23 %" and cells(page.pair, 2)[0] == "-1.00 %"  # the earlier one is the first
    assert str(page.pair.tree.heading("1", "text")) == "2025-11-22 14:01"
    page.runs.tree.selection_set("2", "1", "9")  # an evaluation of the gates has no metrics to compare
    look.root.update()
    assert cells(page.pair, 3)[0] == "-2.23 %"
    page.runs.tree.selection_set("9")
    look.root.update()
    assert page.pair.keys == ()
    page.open()
    assert backtest.pages.index("current") == 2 and len(backtest.gates.gates.keys) == 10
    page.runs.tree.selection_set("2")
    page.open()
    assert backtest.pages.index("current") == 0 and cells(backtest.result.metrics, 1)[0] == "-1.00 %"


def test_the_gates_show_their_verdict_and_the_first_failure_in_full(backtest: lb.BacktestPanel, look: lb.Look) -> None:
    page = backtest.gates
    assert page.gates._empty.cget("text") == lb.NO_GATES
    begin(backtest, "gates")
    backtest.take(lb.GatesDone(json.dumps(sc.EVALUATION), "", sc.NOON - 3_600_000, "valid until 22 Dec"))
    look.root.update()
    assert backtest.pages.index("current") == 2
    assert page.verdict.label.cget("text") == "LOCKED, 2 of 9 failed. Even a pass is no promise."
    assert str(page.verdict.label.cget("foreground")) == look.colour("down")
    assert page.about.label.cget("text") == (
        "Attempt 3 on this data: the bar is 3x higher  ·  Evaluated 13:00 SAST  ·  Valid until 22 Dec"
    )
    assert page.gates.tree.selection() == ("G2",)
    assert str(page.sentence.label.cget("text")).startswith("G2  Luck: FAIL. We shuffled")
    page.gates.tree.selection_set("G8")
    look.root.update()
    assert page.sentence.label.cget("text") == "G8  Paper: WAIT. 12 of 60 days are counted."
    assert cells(backtest.windows.windows, 3) == ["set 5", "cash"]
    assert backtest.windows.shown.keys == ("pbo", "dsr", "psr", "min_trl", "odd_one")


def test_an_evaluation_on_record_is_shown_without_being_asked_for(backtest: lb.BacktestPanel, look: lb.Look) -> None:
    passed = {key: {**dict(zip(sc.GATE_FIELDS, v, strict=True)), "result": "PASS"} for key, v in sc.GATES.items()}
    values = {**sc.EVALUATION, "unlocked": True, "summary": "UNLOCKED.", "gates": passed}
    backtest.take(lb.GatesDone(json.dumps(values), "", sc.NOON, ""))
    look.root.update()
    assert backtest.pages.index("current") == 0
    assert phase(backtest) == ""
    assert str(backtest.gates.verdict.label.cget("foreground")) == look.colour("up")
    assert backtest.gates.gates.tree.selection() == ("G0",)
    backtest.take(lb.GatesDone(json.dumps(values), "", sc.NOON, "STALE: settings have changed"))
    assert str(backtest.gates.verdict.label.cget("foreground")) == look.colour("warn")


def test_everything_fits_the_smallest_window(backtest: lb.BacktestPanel, look: lb.Look) -> None:
    look.root.geometry(f"{look.px(1008)}x{look.px(520)}")  # what strip, buttons, tabs and footer leave of 1024x700
    summary = ("LOCKED, 2 of 9 failed. Even a pass is no promise: of strategies as good as the best we tested, 1 in 3 "
               "lost money in the next two months; expect about three quarters of the tested profit.")
    begin(backtest)
    backtest.take(lb.GatesDone(json.dumps({**sc.EVALUATION, "summary": summary}), "", sc.NOON, "valid until 22 Dec"))
    backtest.open_run(saved(1))
    for number in range(4):
        backtest.pages.select(number)
        sc.settle(look.root, 0.2)
        for table in backtest.tables:
            if table.tree.winfo_ismapped():
                assert table._horizontal.winfo_manager() == "", table._title.cget("text")  # nothing is cut off
                assert table.tree.winfo_height() > look.px(80)
    backtest.pages.select(2)
    sc.settle(look.root, 0.2)
    assert backtest.gates.gates._vertical.winfo_manager() == ""  # all ten gates at once
    bottom = look.root.winfo_rooty() + look.root.winfo_height()
    for widget in (backtest._eta, backtest.gates.sentence.label):
        assert widget.winfo_rooty() + widget.winfo_height() <= bottom


def test_two_tables_stand_side_by_side_only_where_there_is_room(backtest: lb.BacktestPanel, look: lb.Look) -> None:
    for width, is_wide in ((1420, True), (1008, False)):
        look.root.geometry(f"{look.px(width)}x{look.px(600)}")
        sc.settle(look.root, 0.3)
        first, second = backtest.result.metrics.frame, backtest.result.splits.frame
        assert (first.winfo_y() == second.winfo_y()) is is_wide
        assert (first.winfo_x() == second.winfo_x()) is not is_wide


def test_the_pace_forgets_what_is_long_past() -> None:
    tempo = lb.Tempo()
    tempo.start(0.0)
    assert tempo.left_text(500, 1_000) == ""
    for second in range(100):
        tempo.note(float(second), second if second < 50 else 50 + 10 * (second - 50))
    assert tempo.per_s == pytest.approx(10.0)
    assert tempo.left_text(1_000, 1_000) == ""
    assert tempo.left_text(980, 1_000) == "about 00:05 left"


# ---- account ----------------------------------------------------------------


@pytest.fixture
def account(look: lb.Look) -> lb.AccountPanel:
    made = lb.AccountPanel(look.root, look)
    made.frame.pack(fill="both", expand=True)
    return made


def live_news() -> lb.DeskNews:
    """LIVE with an order in every state, a stop that does not rest and a coin that nothing explains."""
    return sc.news(sc.working_desk(), mode=lb.Mode.LIVE)


def test_the_account_shows_orders_and_coins_where_they_are(account: lb.AccountPanel, look: lb.Look) -> None:
    account.show(live_news())
    sc.settle(look.root, 0.2)
    orders, coins = account.tables
    assert orders.keys == ("stop of XRPZAR", "lb-1", "lb-2", "lb-SOL", "lb-LTC", "lb-ADA", "lb-LINK")
    watched = [str(orders.tree.set(key, "9")).strip() for key in orders.keys]
    assert watched == ["Only in the program", "At Luno", "At Luno", "At Luno", "Not certain", "At Luno",
                       "In the program"]
    assert coins.keys == ("ETH", "XBT", "XRP", "ZAR")  # there is no ADA
    warned = [key for table in account.tables for key in table.keys if "warn" in table.tree.item(key, "tags")]
    assert warned == ["stop of XRPZAR", "lb-LTC", "XRP"]


def test_an_account_without_anything_says_what_would_be_there(account: lb.AccountPanel, look: lb.Look) -> None:
    """In PAPER too: there are no coins to tell apart there."""
    account.show(sc.news(sc.desk(held=())))
    sc.settle(look.root, 0.2)
    words = [t._empty for t in account.tables]
    assert [str(w.cget("text")).split("\n")[0] for w in words] == ["No orders and no stops.", "Nothing to tell apart."]
    assert all(w.winfo_ismapped() for w in words)
    account.show(live_news())
    sc.settle(look.root, 0.2)
    assert not any(w.winfo_ismapped() for w in words)


@pytest.mark.parametrize(("width", "is_wide"), [(1008, False), (1564, False), (1588, True), (1900, True)])
def test_nothing_of_the_account_is_cut_off(
    account: lb.AccountPanel, look: lb.Look, width: int, is_wide: bool
) -> None:
    """Every column at every width, side by side or one above the other; the words of an empty table as well."""
    look.root.geometry(f"{look.px(width)}x{look.px(520)}")
    for news in (live_news(), sc.news(sc.desk(held=()))):
        account.show(news)
        sc.settle(look.root, 0.3)
        first, second = (t.frame for t in account.tables)
        assert (first.winfo_y() == second.winfo_y()) is is_wide
        for table in account.tables:
            assert table._horizontal.winfo_manager() == "" and str(table._absent.cget("text")) == ""
            assert table._empty.winfo_reqwidth() <= table.tree.winfo_width()


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


def test_on_another_day_earlier_lines_get_their_date(log: lb.LogPanel) -> None:
    log.add(lb.LogLine(sc.NOON + lb.DAY_MS, "info", "parity", "next day"), sc.NOON + lb.DAY_MS - 60_000)
    log.refresh()
    rows = [log.table._shown[key][0].cells for key in log.table.keys]
    assert rows[0] == ("14:00:00", "INFO", "replay check", "next day")
    assert {cells[0] for cells in rows[1:]} == {"22 Nov 14:00"}


# ---- footer -----------------------------------------------------------------


def test_parts_that_do_not_fit_the_footer_are_left_out_and_stand_in_its_tip(look: lb.Look) -> None:
    footer = lb.Footer(look.root, look, "LunoBiz 0.1.0", "/home/trader")
    footer.frame.pack(fill="x")
    footer.show_cycle("Last cycle 2 s ago", "muted")
    words = "  ·  ".join(f"part {n} of a long status" for n in range(20))
    look.root.geometry(f"{look.px(1024)}x300")
    footer.show(words)
    sc.settle(look.root, 0.2)
    footer.show(words)
    shown = str(footer._text.cget("text"))
    assert shown.endswith("status  ·  …") and words.startswith(shown[:-1]) and len(shown) > 60
    assert footer._text.winfo_rootx() + footer._text.winfo_reqwidth() <= footer._about.winfo_rootx()
    assert str(footer._tip.cget("text")) == words
    footer.show("short")
    assert (footer._text.cget("text"), str(footer._tip.cget("text"))) == ("short", "")
    footer.show("one part that is too long " * 20)
    shown = str(footer._text.cget("text"))
    assert shown.startswith("one part that is too long one part") and shown.endswith("…")


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
