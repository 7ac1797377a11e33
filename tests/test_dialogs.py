"""DIALOGS: the safe answer is the easy one, and nothing secret stays behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import pytest

import lunobiz as lb
import screen as sc
from screen import a_screen  # noqa: F401  (a fixture, `screen`)

if TYPE_CHECKING:
    import tkinter

    import ttkbootstrap as ttk


@pytest.fixture
def look(screen: None) -> Iterator[lb.Look]:
    root = lb.open_root("test", is_dark=True)
    root.deiconify()
    root.geometry("900x600")
    yield lb.Look(root)
    root.destroy()


def top(look: lb.Look) -> tkinter.Misc:
    """The dialog that is open."""
    return next(c for c in look.root.winfo_children() if c.winfo_class() == "Toplevel")


def widgets(parent: tkinter.Misc, kind: str) -> list[tkinter.Misc]:
    """All widgets of a class below a widget, in the order they were made."""
    found: list[tkinter.Misc] = []
    for child in parent.winfo_children():
        found += [child] if child.winfo_class() == kind else []
        found += widgets(child, kind)
    return found


def texts(look: lb.Look) -> str:
    return "\n".join(str(w.cget("text")) for w in widgets(top(look), "TLabel"))


def button(look: lb.Look, text: str) -> ttk.Button:
    found = next(b for b in widgets(top(look), "TButton") if b.cget("text") == text)
    return cast("ttk.Button", found)


def during(look: lb.Look, *steps: Callable[[], object]) -> None:
    """Do these things one after another once the next dialog is open; close it in the end whatever happens."""

    def act(left: tuple[Callable[[], object], ...]) -> None:
        try:
            left[0]()
        except BaseException:
            for child in look.root.winfo_children():
                if child.winfo_class() == "Toplevel":
                    child.destroy()
            raise
        if left[1:]:
            look.root.after(120, act, left[1:])

    def fail(kind: type[BaseException], error: BaseException, trace: object) -> None:
        faults.append(error)

    faults: list[BaseException] = []
    look.root.report_callback_exception = fail
    look.root.faults = faults  # type: ignore[attr-defined]
    look.root.after(250, act, steps)


def check(look: lb.Look) -> None:
    """Raise what failed inside a dialog."""
    faults = cast("list[BaseException]", look.root.faults)  # type: ignore[attr-defined]
    if faults:
        raise faults[0]


def press(look: lb.Look, key: str) -> Callable[[], object]:
    return lambda: (look.root.focus_get() or top(look)).event_generate(key)


QUESTION = lb.Question("Title", "Sure?", ("One line.", "Another."), ("Do it", "Leave it"), is_grave=True)


@pytest.mark.parametrize(("key", "answer"), [("<Return>", "Leave it"), ("<Escape>", "")])
def test_enter_and_escape_are_safe(look: lb.Look, key: str, answer: str) -> None:
    during(look, press(look, key))
    assert lb.ask_question(look, QUESTION) == answer
    check(look)


def test_a_question_shows_its_lines_and_takes_the_click(look: lb.Look) -> None:
    seen: list[str] = []
    during(look, lambda: seen.append(texts(look)), lambda: button(look, "Do it").invoke())
    assert lb.ask_question(look, QUESTION) == "Do it"
    check(look)
    assert seen == ["Sure?\nOne line.\nAnother."]


def test_the_safe_answer_stands_rightmost_and_has_the_focus(look: lb.Look) -> None:
    seen: list[object] = []

    def inspect() -> None:
        safe, grave = button(look, "Leave it"), button(look, "Do it")
        seen.append((safe.winfo_rootx() > grave.winfo_rootx(), look.root.focus_get() is safe))

    during(look, inspect, lambda: top(look).destroy())
    lb.ask_question(look, QUESTION)
    check(look)
    assert seen == [(True, True)]


def test_the_loop_goes_on_under_a_dialog(look: lb.Look) -> None:
    beats: list[int] = []

    def beat() -> None:
        beats.append(1)
        look.root.after(20, beat)

    beat()
    during(look, lambda: None, press(look, "<Escape>"))
    lb.ask_question(look, QUESTION)
    check(look)
    assert len(beats) > 5


def test_exit_lists_what_is_open_and_what_becomes_of_it(look: lb.Look) -> None:
    seen: list[str] = []
    during(look, lambda: seen.append(texts(look)), press(look, "<Return>"))
    assert not lb.ask_exit(look, "DEMO", sc.news().positions)
    check(look)
    assert "3 open positions:" in seen[0]
    assert "•  ETH/ZAR   ▼ -240.34 (-1.67 %)   stop 45,198" in seen[0]
    assert "The next DEMO starts from the beginning." in seen[0]


def test_exit_without_positions(look: lb.Look) -> None:
    seen: list[str] = []
    during(look, lambda: seen.append(texts(look)), lambda: button(look, "Stop bot and exit").invoke())
    assert lb.ask_exit(look, "PAPER", ())
    check(look)
    assert "There are no open positions." in seen[0]


def test_rearming_and_resolving_need_a_click(look: lb.Look) -> None:
    during(look, press(look, "<Return>"))
    assert not lb.ask_rearm(look, "/data")
    during(look, lambda: button(look, "Re-arm").invoke())
    assert lb.ask_rearm(look, "/data")
    during(look, press(look, "<Escape>"))
    assert not lb.ask_resolve(look, ["HALTED. Key refused."])
    during(look, lambda: button(look, "Resolved, go on").invoke())
    assert lb.ask_resolve(look, ["HALTED. Key refused."])
    check(look)


def test_a_row_is_shown_in_full_and_copied(look: lb.Look) -> None:
    seen: list[str] = []
    copy, close = (lambda: button(look, "Copy").invoke()), (lambda: button(look, "Close").invoke())
    during(look, lambda: seen.append(texts(look)), copy, close)
    lb.show_row(look, ("Market", "Reason"), ("XRP/ZAR", "A long sentence"))
    check(look)
    assert seen == ["Market\nXRP/ZAR\nReason\nA long sentence"]
    assert look.root.clipboard_get() == "XRP/ZAR\tA long sentence"


def test_help_lists_every_key(look: lb.Look) -> None:
    seen: list[str] = []
    during(look, lambda: seen.append(texts(look)), press(look, "<Escape>"))
    lb.show_help(look, "LunoBiz 0.1.0")
    check(look)
    keys = ("F5", "F9", "Ctrl+1, 2, 3, 4, 5", "Ctrl+B", "Ctrl+E", "Ctrl+F", "Ctrl+C", "Esc", "F1")
    assert all(key in seen[0] for key in keys)


# ---- the door to LIVE ----------------------------------------------------------

OFFER = lb.LiveOffer((), (
    ("Cash at Luno", "R12,000.00"), ("Equity", "R14,310.55 when LIVE was left"),
    ("Gate run", "9f3c21ab of 2026-11-21, holds to 2026-12-21; 50% of the tested size"),
    *lb.live_words(lb.Settings(), 10)), lb.PROMISES)  # fmt: skip


def asked(look: lb.Look, offer: lb.LiveOffer, *steps: Callable[[lb.LiveDialog], object]) -> lb.RequestLive | None:
    """What comes of the dialog when these things are done in it."""
    dialog = lb.LiveDialog(look, offer)
    during(look, *(lambda step=step: step(dialog) for step in steps))
    found = dialog.ask()
    check(look)
    return found


def tick_all(dialog: lb.LiveDialog) -> None:
    for box in widgets(dialog.dialog.window, "TCheckbutton"):
        box.invoke()  # type: ignore[attr-defined]


def is_open(dialog: lb.LiveDialog) -> bool:
    assert dialog.go is not None
    return not dialog.go.instate(["disabled"])


def test_live_needs_every_tick_and_the_word(look: lb.Look) -> None:
    doors: list[bool] = []

    def write(word: str) -> Callable[[lb.LiveDialog], None]:
        def act(dialog: lb.LiveDialog) -> None:
            dialog.word.set(word)
            doors.append(is_open(dialog))

        return act

    def untick(dialog: lb.LiveDialog) -> None:
        dialog.ticks[1].set(False)
        dialog._follow()
        doors.append(is_open(dialog))
        dialog.ticks[1].set(True)

    found = asked(
        look, OFFER, write("LIVE"), tick_all, write("live"), write("LIVE "), write("LIVE"), untick, write("LIVE"),
        lambda dialog: dialog.go.invoke() if dialog.go is not None else None)  # fmt: skip
    assert doors == [False, False, False, True, False, True]
    assert found == lb.RequestLive("LIVE", lb.PROMISES)


def test_live_shows_what_it_would_trade_with_and_the_safe_answer_has_the_focus(look: lb.Look) -> None:
    seen: list[str] = []

    def read(dialog: lb.LiveDialog) -> None:
        seen.extend([texts(look), str(look.root.focus_get()) == str(dialog.close)])  # type: ignore[list-item]
        dialog.close.invoke()

    assert asked(look, OFFER, read) is None
    assert all(words in seen[0] for words in (
        "R12,000.00", "XBT/ZAR, ETH/ZAR", "Home currency", "0.50 % of equity", "3.0 % a day", *lb.PROMISES))
    assert "XBTZAR" not in seen[0] and "Counter" not in seen[0]
    assert seen[1]


def test_a_closed_dialog_stays_in_paper(look: lb.Look) -> None:
    def leave(dialog: lb.LiveDialog) -> None:
        tick_all(dialog)
        dialog.word.set("LIVE")
        dialog.dialog.window.event_generate("<Escape>")

    assert asked(look, OFFER, leave) is None


def test_what_is_in_the_way_is_listed_and_there_is_no_way_on(look: lb.Look) -> None:
    seen: list[str] = []

    def read(dialog: lb.LiveDialog) -> None:
        assert dialog.go is None
        seen.extend([texts(look), *(str(b.cget("text")) for b in widgets(top(look), "TButton"))])
        dialog.close.invoke()

    assert asked(look, lb.LiveOffer(("The gates are shut.", "There is no live key.")), read) is None
    assert "LIVE is locked: 2 things in the way." in seen[0] and "There is no live key." in seen[0]
    assert seen[1:] == ["Stay in PAPER"]


# ---- export and support bundle ----


@pytest.mark.parametrize(
    ("answer", "what"), [("Audit and tax tables…", "audit"), ("Support bundle…", "support"), ("Cancel", "")]
)
def test_what_to_export_is_asked(look: lb.Look, answer: str, what: str) -> None:
    during(look, lambda: button(look, answer).invoke())
    assert lb.ask_export(look) == what
    check(look)


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_support_bundle_shows_each_file_first(look: lb.Look, is_saved: bool) -> None:
    long = "\n".join(f"line {n}" for n in range(99))
    draft = lb.SupportDraft((lb.SupportFile("about.txt", "what is in it"), lb.SupportFile("log.jsonl", long)))
    dialog = lb.SupportDialog(look, draft)
    seen: list[str] = []

    def choose() -> None:
        seen.append(dialog.text.get("1.0", "end"))
        dialog.names.selection_set("1")

    def end() -> None:
        seen.append(dialog.text.get("1.0", "end"))
        seen.append(str(look.root.focus_get() is dialog.close))
        button(look, "Save bundle…" if is_saved else "Cancel").invoke()

    during(look, choose, end)
    assert dialog.ask() is is_saved
    check(look)
    assert seen[0].strip() == "what is in it"
    assert seen[1].startswith("line 0\n") and "line 39\n…" in seen[1] and "line 40" not in seen[1]
    assert seen[2] == "True"  # the safe answer has the focus


def test_the_sizes_of_large_files_have_room(look: lb.Look) -> None:
    draft = lb.SupportDraft((lb.SupportFile("log.jsonl", "x" * 12_345_678),))
    dialog = lb.SupportDialog(look, draft)
    assert dialog.names.set("0", "size") == "12,345,678 bytes"
    assert dialog.names.column("size", "width") > look.body.measure("12,345,678 bytes")
    assert str(dialog.names.column("size", "anchor")) == "e"
    dialog.dialog.close()


def test_escape_writes_no_bundle(look: lb.Look) -> None:
    dialog = lb.SupportDialog(look, lb.SupportDraft((lb.SupportFile("about.txt", "x"),)))
    during(look, lambda: dialog.dialog.window.event_generate("<Escape>"))
    assert not dialog.ask()
    check(look)


# ---- closing all ------------------------------------------------------------

CLOSING = lb.ClosingOffer(("ETHZAR",), (
    "•  ETH/ZAR   0.310000 at the bid of 45,804 = R14,114.04 after R85.20 fee", "About R14,114.04 comes in."))


@pytest.mark.parametrize(("answer", "is_sure"), [("Close all", True), ("Keep", False)])
def test_closing_all_shows_what_it_does_and_that_it_is_done_once(look: lb.Look, answer: str, is_sure: bool) -> None:
    seen: list[str] = []
    during(look, lambda: seen.append(texts(look)), lambda: button(look, answer).invoke())
    assert lb.ask_close_all(look, "LIVE", CLOSING) is is_sure
    check(look)
    (words,) = seen
    assert words.startswith("Sell everything the bot holds, and cancel its entries? (LIVE)")
    assert all(line in words for line in CLOSING.lines) and "It happens once" in words


@pytest.mark.parametrize("key", ["<Return>", "<Escape>"])
def test_enter_and_escape_close_nothing(look: lb.Look, key: str) -> None:
    during(look, press(look, key))
    assert lb.ask_close_all(look, "PAPER", CLOSING) is False
    check(look)


def test_what_cannot_be_closed_is_only_told(look: lb.Look) -> None:
    seen: list[str] = []
    during(look, lambda: seen.append(texts(look)), lambda: button(look, "Close").invoke())
    assert lb.ask_close_all(look, "LIVE", lb.ClosingOffer(problem="Not now.")) is False
    check(look)
    assert seen == ["Not now."]
