"""DASHBOARD: the whole window over a scripted worker."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import lunobiz as lb
import screen as sc
from screen import a_screen  # noqa: F401  (a fixture, `screen`)


class Clock:
    """A clock the test sets; it starts beside the news."""

    def __init__(self) -> None:
        self.wall_ms = sc.NOON + 9_000
        self.seconds = 5_000.0

    def now_ms(self) -> int:
        return self.wall_ms

    def mono_s(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Bench:
    """A window, its worker, and what it has written."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.worker, self.clock = sc.FakeWorker(), Clock()
        self.kills: list[str] = []
        self.faults: list[str] = []
        given = {"write_kill": lambda: self.kills.append("killed"), "write_log": self.faults.append, **options}
        self.window = sc.open_dashboard(self.worker, folder, **given)
        self.root = self.window.root
        self.window._clock = self.window.screen.clock = self.clock
        self.window.screen.zone = sc.SAST
        self.window.screen.heard_s = self.clock.seconds
        self.has_ended = False

    @property
    def screen(self) -> lb.Screen:
        return self.window.screen

    def tell(self, *events: object) -> None:
        """Let the worker say something and the window hear it."""
        self.worker.say(*events)
        sc.until(self.root, lambda: not self.worker.events)
        sc.settle(self.root, 0.05)

    def wait(self, seconds: float) -> None:
        """Let the machine's time pass, and the window notice."""
        self.clock.seconds += seconds
        self.clock.wall_ms += round(seconds * 1000)
        self.window.screen.show_silence(self.worker.is_alive())

    def press(self, key: str) -> None:
        self.root.focus_force()
        self.root.update()
        self.root.event_generate(key)
        self.root.update()

    @property
    def banners(self) -> list[str]:
        return [b.text for b in self.screen.banners.visible]

    def end(self) -> None:
        if not self.has_ended:
            self.window.end()
        self.has_ended = True


@pytest.fixture
def bench(screen: None, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    sc.settle(made.root, 0.2)
    yield made
    made.end()


def answers(monkeypatch: pytest.MonkeyPatch, **given: object) -> None:
    """Answer the dialogs of these names without showing them."""
    for name, answer in given.items():
        monkeypatch.setattr(lb, name, lambda *parts, _answer=answer: _answer)


# ---- news -------------------------------------------------------------------


def test_the_window_opens_without_a_deprecated_call(screen: None, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = Bench(tmp_path)
        made.tell(sc.news())
        made.window.look.toggle()
        sc.settle(made.root, 0.1)
        made.end()


def test_news_reach_every_part(bench: Bench) -> None:
    bench.tell(sc.news())
    assert bench.root.title() == "PAPER — LunoBiz"
    assert [len(t.keys) for t in bench.screen.desk.tables] == [3, 7, len(sc.news().decisions), 4]
    assert bench.screen.strip._cells["equity"]._value.cget("text") == "R102,929.53"
    assert "Connected" in bench.screen.footer._text.cget("text")
    assert bench.screen.strip._clock.cget("text") == "14:00:09 SAST"
    assert bench.screen.strip._clock_note.cget("text") == "12:00:09 UTC"
    bench.screen.zone = lb.Zone()  # the same time twice would tell nothing
    bench.screen.show_clock()
    assert bench.screen.strip._clock.cget("text") == "12:00:09 UTC"
    assert bench.screen.strip._clock_note.cget("text") == "2025-11-22"


def test_only_the_newest_news_is_drawn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(bench.screen, "show", drawn.append)
    first, last = sc.news(), sc.news(sc.desk(held=()))
    bench.tell(first, first, last)
    assert drawn == [last]


def test_at_most_fifty_events_are_taken_at_a_time(bench: Bench) -> None:
    bench.worker.say(*(lb.LogLine(sc.NOON, "info", "cycle", f"n{n}") for n in range(120)))
    bench.window._take_events()
    assert len(bench.worker.events) == 70
    assert sc.until(bench.root, lambda: not bench.worker.events)


def test_a_demo_is_marked_everywhere(screen: None, tmp_path: Path) -> None:
    bench = Bench(tmp_path, mode=lb.Mode.DEMO)
    assert bench.root.title() == "DEMO — LunoBiz"
    bench.tell(sc.news(mode=lb.Mode.DEMO, speed=1_800.0))
    assert bench.screen.strip._pill.cget("text") == "DEMO"
    assert str(bench.screen.strip.bar.cget("background")) == bench.window.look.palette.modes["demo"][0]
    fills = bench.screen.desk.fills
    assert {str(fills.tree.set(k, "7")).strip() for k in fills.keys} == {"DEMO"}
    assert bench.screen.strip._clock.cget("text") == "22 Nov 14:00 SAST"
    assert bench.screen.strip._clock_note.cget("text") == "market time"
    bench.end()


def test_hidden_tables_catch_up_when_their_tab_opens(bench: Bench) -> None:
    bench.screen.tabs.select(1)
    sc.settle(bench.root, 0.1)
    bench.tell(sc.news())
    assert bench.screen.desk.positions.keys == ()
    bench.press("<Control-Key-1>")
    sc.settle(bench.root, 0.1)
    assert len(bench.screen.desk.positions.keys) == 3


def test_banners_end_with_their_condition(bench: Bench) -> None:
    drift = lb.Cause(lb.CauseKind.BALANCE_DRIFT, sc.NOON, 0, "0.1 XBT is missing")
    bench.tell(sc.news(sc.desk(drift)))
    assert len(bench.banners) == 1 and bench.banners[0].startswith("REDUCING. Balance drift: 0.1 XBT is missing.")
    bench.tell(sc.news())
    assert bench.banners == []


def test_notes_stay_until_dismissed_and_stand_in_the_log(bench: Bench) -> None:
    bench.tell(sc.news(), lb.Note("info", "Exported 9 files."), lb.Note("warning", "Disk is nearly full."))
    assert bench.banners == ["Disk is nearly full.", "Exported 9 files."]
    bench.tell(sc.news())
    bench.press("<Escape>")
    assert bench.banners == ["Exported 9 files."]
    bench.tell(sc.news())
    assert bench.banners == ["Exported 9 files."]
    bench.press("<Control-Key-3>")
    sc.settle(bench.root, 0.1)
    assert {str(bench.screen.log.table.tree.set(k, "3")) for k in bench.screen.log.table.keys} == {
        "Disk is nearly full.", "Exported 9 files.",
    }  # fmt: skip


def test_backtest_events_reach_the_form(bench: Bench) -> None:
    bench.press("<Control-b>")
    panel = bench.screen.backtest
    panel.form.folder.set("/data")
    panel.run.invoke()
    assert [type(c) for c in bench.worker.commands] == [lb.RunBacktest]
    bench.tell(lb.BacktestProgress(10, 100, "Running", "candles"))
    assert str(panel._eta.cget("text")).startswith("10 of 100 candles · 10 %")
    bench.press("<Escape>")
    assert bench.worker.commands[1:] == [lb.CancelBacktest()]
    run = lb.SavedRun(1, sc.NOON, "backtest", json.dumps(sc.run_json()))
    bench.tell(lb.BacktestDone(run), lb.RunsListed((run,)))
    assert len(panel.result.metrics.keys) == len(lb.MEASURES)
    assert panel.saved.runs.keys == ("1",)
    bench.tell(lb.GatesDone(json.dumps(sc.EVALUATION), "", sc.NOON))
    assert len(panel.gates.gates.keys) == 10


def test_before_the_first_news_there_is_a_mode_and_no_figure(bench: Bench) -> None:
    cells = bench.screen.strip._cells
    assert bench.screen.strip._pill.cget("text") == "PAPER"
    assert [str(c._caption.cget("text")) for c in cells.values()] == [
        "STATE", "EQUITY", "CASH", "EXPOSURE", "DAY P&L · UTC DAY", "DAILY CAP", "LUNO API",
    ]  # fmt: skip
    assert {str(c._value.cget("text")) for c in cells.values()} == {"—"}
    assert {str(c._note.cget("text")) for c in cells.values()} == {""}


# ---- faults and silence -----------------------------------------------------


def test_a_fault_in_one_event_does_not_stop_the_next(bench: Bench) -> None:
    bench.tell(KeyError("secret-looking text"), lb.Note("info", "still here"))
    assert sc.until(bench.root, lambda: "still here" in bench.banners)
    assert any(text.startswith("The window failed: KeyError at line ") for text in bench.banners)
    assert "secret-looking text" not in " ".join(bench.banners + bench.faults)
    assert len(bench.faults) == 1


def test_a_fault_in_a_callback_is_told(bench: Bench) -> None:
    bench.root.after(1, lambda: 1 // 0)
    assert sc.until(bench.root, lambda: bool(bench.faults))
    assert "ZeroDivisionError" in bench.banners[0]


def test_our_own_errors_are_told_in_their_words(bench: Bench) -> None:
    assert "disk full" in lb.fault_text(lb.AuditBroken("disk full"))


def test_silence_turns_amber_then_red_and_old_figures_grey(bench: Bench) -> None:
    bench.tell(sc.news())
    bench.wait(2)
    assert bench.screen.footer._cycle.cget("text") == "Last cycle 4 s ago"  # the news was two seconds old when it came
    bench.wait(28)
    assert bench.screen.footer._cycle.cget("text") == "▲ Last cycle 32 s ago"
    value = bench.screen.strip._cells["equity"]
    assert str(value._value.cget("foreground")) == bench.window.look.palette.muted
    assert value._note.cget("text") == "stale 32 s"
    tables, muted = (*bench.screen.desk.tables, *bench.screen.account.tables), bench.window.look.palette.muted
    tones = ("up", "plain", "error")
    assert {str(t.tree.tag_configure(tone, "foreground")) for t in tables for tone in tones} == {muted}
    bench.window.look.toggle()  # another theme does not bring the colours back
    assert str(tables[0].tree.tag_configure("up", "foreground")) == bench.window.look.palette.muted
    bench.window.look.toggle()
    assert bench.banners == []
    bench.wait(40)
    assert bench.screen.footer._cycle.cget("text") == "✖ Last cycle 72 s ago: the worker does not answer"
    assert bench.banners == [lb.SILENCE]
    bench.tell(replace(sc.news(), time_ms=bench.clock.wall_ms))
    bench.wait(0)
    assert bench.banners == []
    assert str(value._value.cget("foreground")) == bench.window.look.plain
    assert str(tables[0].tree.tag_configure("up", "foreground")) == bench.window.look.colour("up")


def test_a_worker_that_turns_in_one_spot_is_seen(bench: Bench) -> None:
    bench.tell(sc.news())
    bench.wait(70)
    bench.tell(sc.news())  # it talks, but of a cycle long past
    bench.wait(0)
    assert bench.screen.footer._cycle.cget("text").startswith("✖ Last cycle 72 s ago")


def test_a_stepped_market_is_not_judged_by_the_wall_clock(bench: Bench) -> None:
    bench.clock.wall_ms += 400 * lb.DAY_MS
    bench.tell(sc.news(mode=lb.Mode.DEMO))
    bench.wait(1)
    assert bench.screen.footer._cycle.cget("text") == "Last cycle 1 s ago"


def test_a_dead_worker_is_seen_without_its_help(bench: Bench) -> None:
    bench.tell(sc.news())
    bench.worker.is_up = False
    bench.wait(0)
    assert bench.screen.footer._cycle.cget("text").startswith("✖ Worker has ended: nothing is traded.")
    assert bench.banners == [lb.SILENCE]


def test_a_stopped_bot_is_not_silent(bench: Bench) -> None:
    bench.tell(sc.news(is_running=False))
    bench.wait(10)
    assert bench.screen.footer._cycle.cget("text") == "Bot stopped"
    bench.wait(30)
    assert bench.screen.footer._cycle.cget("text") == "▲ Last cycle 42 s ago"  # it should have been heard all the same


def test_the_foot_says_at_once_that_the_bot_runs(bench: Bench) -> None:
    for is_running, words in ((False, "Bot stopped"), (True, "Last cycle 2 s ago"), (False, "Bot stopped")):
        bench.screen.show(sc.news(is_running=is_running))
        assert bench.screen.footer._cycle.cget("text") == words


def test_the_kill_switch_is_solid_while_money_is_real(bench: Bench) -> None:
    styles = []
    for mode in (lb.Mode.PAPER, lb.Mode.LIVE, lb.Mode.PAPER):
        bench.tell(sc.news(mode=mode))
        assert bench.screen.strip.kill.cget("text") == "KILL SWITCH"
        styles.append(str(bench.screen.strip.kill.cget("style")).lower())
    assert ["outline" in style for style in styles] == [True, False, True]


def test_a_cap_that_is_reached_is_marked_as_an_error(bench: Bench) -> None:
    bar, styles = bench.screen.strip._cells["cap"]._bar, []
    reached = lb.Cause(lb.CauseKind.DAILY_CAP, sc.NOON, 0, "the cap")
    for causes in ((), (reached,)):
        bench.tell(sc.news(sc.desk(*causes)))
        styles.append(str(bar.cget("style")).lower() if bar is not None else "")
    assert ["danger" in style for style in styles] == [False, True]


# ---- commands ---------------------------------------------------------------


def killed() -> lb.DeskNews:
    return sc.news(sc.desk(lb.Cause(lb.CauseKind.KILL, sc.NOON, 0, "")))


def test_f5_starts_and_stops(bench: Bench) -> None:
    bench.tell(sc.news(is_running=False))
    bench.press("<F5>")
    assert bench.worker.commands == [lb.Start()]
    bench.tell(sc.news())
    bench.screen.actions.start.invoke()
    bench.press("<Alt-s>")
    assert bench.worker.commands == [lb.Start(), lb.Stop(), lb.Stop()]


def test_f9_kills_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(lb, "ask_question")  # no question may be asked
    bench.tell(sc.news())
    bench.press("<F9>")
    assert bench.kills == ["killed"]
    assert bench.worker.commands == [lb.Kill()]
    assert bench.banners == ["Kill switch pressed at 14:00 SAST."]
    bench.screen.strip.kill.invoke()
    assert bench.kills == ["killed"] * 2
    bench.tell(killed())
    assert [b.key for b in bench.screen.banners.visible] == ["KILL"]


def test_f9_works_while_a_dialog_is_open(bench: Bench) -> None:
    bench.tell(sc.news())

    def press() -> None:
        top = next(c for c in bench.root.winfo_children() if c.winfo_class() == "Toplevel")
        top.focus_force()
        top.update()
        top.event_generate("<F9>")
        top.event_generate("<F5>")
        top.event_generate("<Escape>")

    bench.root.after(300, press)
    bench.press("<F1>")
    assert bench.kills == ["killed"]
    assert bench.worker.commands == [lb.Kill()]  # and nothing else got through


def test_a_kill_file_that_cannot_be_written_is_told(screen: None, tmp_path: Path) -> None:
    def refuse() -> None:
        raise PermissionError(13, "no", "C:/secret/path")

    bench = Bench(tmp_path, write_kill=refuse)
    bench.window.kill()
    assert bench.worker.commands == [lb.Kill()]
    assert "The kill file could not be written (PermissionError); the bot has been told." in bench.banners
    bench.end()


@pytest.mark.parametrize(("is_sure", "sent"), [(False, []), (True, [lb.Rearm()])])
def test_rearming_asks_first(bench: Bench, monkeypatch: pytest.MonkeyPatch, is_sure: bool, sent: list[object]) -> None:
    answers(monkeypatch, ask_rearm=is_sure)
    bench.tell(killed())
    bench.screen.strip.kill.invoke()
    assert bench.worker.commands == sent
    assert bench.kills == []


@pytest.mark.parametrize(("is_sure", "sent"), [(False, []), (True, [lb.ResolveHalt()])])
def test_resolving_a_halt_asks_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_sure: bool, sent: list[object]
) -> None:
    answers(monkeypatch, ask_resolve=is_sure)
    bench.tell(sc.news(sc.desk(lb.Cause(lb.CauseKind.WEEKLY_CAP, sc.NOON, 0, ""))))
    bench.window._act_on_banner("resolve")
    assert bench.worker.commands == sent


def test_speed_is_sent(bench: Bench) -> None:
    bench.tell(sc.news(mode=lb.Mode.DEMO))
    bench.screen.actions.speed.current(1)
    bench.screen.actions.speed.event_generate("<<ComboboxSelected>>")
    assert bench.worker.commands == [lb.SetSpeed(60.0)]


@pytest.mark.parametrize(("chosen", "sent"), [("", []), ("/out", [lb.Export("/out")])])
def test_export_asks_for_a_folder(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, chosen: str, sent: list[object]
) -> None:
    monkeypatch.setattr("lunobiz.ask_export", lambda look: "audit")
    monkeypatch.setattr("tkinter.filedialog.askdirectory", lambda **options: chosen)
    bench.press("<Control-e>")
    assert bench.worker.commands == sent


@pytest.mark.parametrize(("is_wished", "chosen"), [(False, "/s.zip"), (True, ""), (True, "/s.zip")])
def test_a_support_bundle_is_seen_before_it_is_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_wished: bool, chosen: str
) -> None:
    draft = lb.SupportDraft((lb.SupportFile("about.txt", "all"),))
    monkeypatch.setattr("lunobiz.ask_export", lambda look: "support")
    monkeypatch.setattr("lunobiz.SupportDialog.ask", lambda dialog: dialog.dialog.window.destroy() or is_wished)
    monkeypatch.setattr("tkinter.filedialog.asksaveasfilename", lambda **options: chosen)
    bench.press("<Control-e>")
    assert bench.worker.commands == [lb.AskSupport()]
    bench.worker.say(draft)
    sc.settle(bench.root, 0.5)
    written = [lb.SaveSupport("/s.zip", draft)] if is_wished and chosen else []
    assert bench.worker.commands == [lb.AskSupport(), *written]


def test_nothing_is_exported_without_an_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lunobiz.ask_export", lambda look: "")
    bench.press("<Control-e>")
    assert bench.worker.commands == []


def test_the_account_is_the_fourth_tab_and_hears_the_news(bench: Bench) -> None:
    assert [bench.screen.tabs.tab(n, "text") for n in range(4)][3].strip() == "Account"
    bench.tell(sc.news(sc.working_desk(), mode=lb.Mode.LIVE))
    bench.press("<Control-Key-4>")
    assert [len(t.keys) for t in bench.screen.account.tables] == [7, 4]
    assert bench.screen.account.frame.winfo_ismapped()


OFFER = lb.ClosingOffer(("ETHZAR", "lb-SOL"), ("•  ETH/ZAR   0.31", "•  SOLZAR   entry order"))


@pytest.mark.parametrize("is_sure", [True, False])
def test_all_is_closed_only_after_a_question_with_what_is_shown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_sure: bool
) -> None:
    asked: list[object] = []

    def ask(look: lb.Look, *rest: object) -> bool:
        asked.append(rest)
        return is_sure

    monkeypatch.setattr(lb, "ask_close_all", ask)
    bench.tell(sc.news(mode=lb.Mode.LIVE))
    sent = len(bench.worker.commands)
    bench.screen.actions.close_all.invoke()
    assert bench.worker.commands[sent:] == [lb.AskClose()] and asked == []
    bench.tell(OFFER)
    assert asked == [("LIVE", OFFER)]
    assert bench.worker.commands[sent + 1:] == ([lb.CloseAll(OFFER.marks)] if is_sure else [])


def test_keys_go_to_their_tabs(bench: Bench) -> None:
    keys = (("<Control-Key-2>", 1), ("<Control-Key-3>", 2), ("<Control-Key-4>", 3), ("<Control-Key-5>", 4),
            ("<Control-Key-1>", 0))
    for key, tab in (*keys, ("<Control-b>", 1)):
        bench.press(key)
        assert bench.screen.tab == tab
    bench.press("<Control-f>")
    assert bench.screen.tab == 2
    assert bench.root.focus_get() is bench.screen.log.find


def test_the_data_folder_is_opened(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    bench.window._open_folder()
    assert opened == [tmp_path.resolve().as_uri()]


# ---- first run and end ------------------------------------------------------


@pytest.mark.parametrize("answer", ["demo", "paper", ""])
def test_a_start_without_a_key_asks_before_anything_runs(
    screen: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(lb.Wizard, "run", lambda wizard: answer)
    bench = Bench(tmp_path, asks_first_run=True)
    bench.worker.is_up = False
    assert bench.window.run() == answer
    assert not bench.worker.is_up


def test_the_backtest_form_starts_with_the_candles_of_the_session(screen: None, tmp_path: Path) -> None:
    bench = Bench(tmp_path, timeframes=(900, 3600))
    ticks = bench.screen.backtest.form.timeframes
    assert [seconds for seconds, variable in ticks.items() if variable.get()] == [900, 3600]
    bench.end()


def test_a_usual_start_starts_the_worker(screen: None, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.worker.is_up = False
    bench.root.after(300, bench.window.close)
    assert bench.window.run() == ""
    assert bench.worker.commands == [lb.Shutdown()]


def test_closing_while_it_runs_asks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(lb, "ask_exit", lambda *parts: asked.append(parts[1:]))
    bench.tell(sc.news())
    bench.window.close()
    assert asked == [("PAPER", sc.news().positions)]
    assert bench.worker.commands == []


def test_closing_waits_for_the_journal_and_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ask_exit=True)
    bench.worker.ends_at_shutdown = False
    bench.tell(sc.news())
    bench.window.close()
    assert bench.worker.commands == [lb.Shutdown()]
    sc.settle(bench.root, 0.3)
    assert bench.banners == ["Closing: the worker finishes its journal first."]
    bench.clock.seconds += 6
    assert sc.until(bench.root, lambda: lb.SLOW_END in bench.banners)
    bench.worker.is_up = False
    ended: list[bool] = []
    monkeypatch.setattr(bench.window, "end", lambda: ended.append(True))
    assert sc.until(bench.root, lambda: bool(ended))
    monkeypatch.undo()


def test_a_signal_closes_without_a_question(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(lb, "ask_exit")
    bench.tell(sc.news())
    bench.window.leave()
    bench.window.leave()
    assert bench.worker.commands == [lb.Shutdown()]
    ended: list[bool] = []
    monkeypatch.setattr(bench.window, "end", lambda: ended.append(True))
    assert sc.until(bench.root, lambda: bool(ended))
    monkeypatch.undo()


def test_the_window_ends_once(bench: Bench) -> None:
    bench.window.end()
    bench.window.end()


def test_a_second_close_leaves_the_worker_to_finish_alone(bench: Bench) -> None:
    bench.worker.ends_at_shutdown = False
    bench.window.close()
    assert bench.worker.commands == [lb.Shutdown()]
    bench.window.close()
    bench.has_ended = True
    assert bench.worker.commands == [lb.Shutdown()]
    assert bench.worker.is_up


def test_two_windows_one_after_the_other(screen: None, tmp_path: Path) -> None:
    for mode in (lb.Mode.PAPER, lb.Mode.DEMO):
        bench = Bench(tmp_path, mode=mode)
        bench.tell(sc.news(mode=mode))
        assert bench.root.title() == f"{mode.value.upper()} — LunoBiz"
        bench.end()


# ---- layout -----------------------------------------------------------------


@pytest.mark.parametrize("size", [(1440, 860), (1024, 700)])
@pytest.mark.parametrize("troubles", [0, 3])
def test_everything_has_its_place_at_every_size(bench: Bench, size: tuple[int, int], troubles: int) -> None:
    kinds = (lb.CauseKind.KILL, lb.CauseKind.DAILY_CAP, lb.CauseKind.NO_NETWORK)[:troubles]
    causes = tuple(lb.Cause(k, sc.NOON, sc.NOON + lb.HOUR_MS, "a reason with numbers") for k in kinds)
    bench.root.geometry("x".join(str(bench.window.look.px(s)) for s in size))
    bench.tell(sc.news(sc.desk(*causes)))
    sc.settle(bench.root, 0.4)
    parts = [bench.screen.strip.frame, bench.screen.actions.frame, bench.screen.tabs, bench.screen.footer.frame]
    assert all(p.winfo_ismapped() for p in parts)
    bottom = bench.root.winfo_rooty() + bench.root.winfo_height()
    footer = bench.screen.footer.frame
    assert footer.winfo_rooty() + footer.winfo_height() <= bottom
    assert footer.winfo_height() >= footer.winfo_reqheight()
    right = bench.root.winfo_rootx() + bench.root.winfo_width()
    for widget in (bench.screen.strip.kill, bench.screen.actions.theme):
        assert widget.winfo_rootx() + widget.winfo_width() <= right
    assert min(t.tree.winfo_height() for t in bench.screen.desk.tables) > 3 * 27


def test_the_window_is_never_larger_than_the_screen(bench: Bench) -> None:
    lb.fit_on_screen(bench.root, bench.window.look, (9_000, 9_000), (1024, 700))
    sc.settle(bench.root, 0.2)
    assert bench.root.winfo_width() <= bench.root.winfo_screenwidth()
    assert bench.root.winfo_height() <= bench.root.winfo_screenheight()


def test_the_loop_is_not_held_up_by_a_full_refresh(bench: Bench) -> None:
    bench.tell(sc.news())
    started = lb.SystemClock().mono_s()
    for number in range(20):
        told = sc.news()
        moved = tuple(replace(r, key=f"{number}{r.key}") for r in told.decisions)
        bench.screen.show(replace(told, decisions=moved))
    assert (lb.SystemClock().mono_s() - started) / 20 < 0.2


# ---- a second start, the session's end, readable keys ------------------------


def test_a_second_start_brings_the_window_to_the_front(screen: None, tmp_path: Path) -> None:
    request = lb.ShowRequest(tmp_path)
    bench = Bench(tmp_path, is_asked_for=request.take)
    sc.settle(bench.root, 0.2)
    bench.root.withdraw()
    bench.root.update()
    request.ask()
    assert sc.until(bench.root, lambda: not request.is_waiting, 3.0)
    assert sc.until(bench.root, lambda: bool(bench.root.winfo_viewable()))
    assert not bench.root.attributes("-topmost")
    bench.end()


def test_keys_that_stand_readable_are_offered_once_and_left_unless_the_owner_agrees(
    screen: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []

    def move() -> str:
        moved.append("moved")
        return "Windows protects the keys now."

    bench = Bench(tmp_path, protect_keys=move)
    for answer in ("", lb.PROTECT_ANSWERS[1]):
        bench.screen.offer_protection()
        assert [b.action for b in bench.screen.banners.visible] == ["protect"]
        answers(monkeypatch, ask_question=answer)
        bench.window._act_on_banner("protect")
        assert bench.banners == [] and moved == []
    answers(monkeypatch, ask_question=lb.PROTECT_ANSWERS[0])
    bench.window._act_on_banner("protect")
    assert moved == ["moved"] and bench.banners == ["Windows protects the keys now."]
    bench.end()


def test_the_end_of_the_session_is_as_a_close_without_a_question(bench: Bench) -> None:
    bench.window.leave()
    assert bench.worker.commands == [lb.Shutdown()]
    assert ("WM_SAVE_YOURSELF" in bench.root.tk.splitlist(bench.root.tk.call("wm", "protocol", "."))) == (
        sys.platform == "win32")
