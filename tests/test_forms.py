"""FORMS, WIZARD, SETUP: what is typed is checked, told in words, confirmed where it loosens, and written safely."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

import lunobiz as lb
import screen as sc
from fakes import FakeClock, FakeTransport, reply
from screen import a_screen  # noqa: F401  (a fixture, `screen`)

if TYPE_CHECKING:
    import ttkbootstrap as ttk

SECRET = "s3cretS3cretS3cretS3cretS3cretS3cretS3cret0"
SHOWN = {f.name: f for f in lb.ALL_FIELDS if f.is_in_window and f.kind != "secret"}


class Form:
    """A Settings tab by itself, with what it asks of the worker."""

    def __init__(self, options: lb.FormOptions) -> None:
        self.root = lb.open_root("test", is_dark=True)
        self.root.geometry("1200x800")
        self.root.deiconify()
        self.look, self.sent = lb.Look(self.root), list[lb.ChangeSettings]()
        self.panel = lb.SettingsPanel(self.root, self.look, options, self.post)
        self.panel.frame.pack(fill="both", expand=True)
        sc.settle(self.root, 0.15)

    def post(self, command: object) -> None:
        assert isinstance(command, lb.ChangeSettings)
        self.sent.append(command)

    def write(self, name: str, text: str) -> None:
        self.panel.rows[name].input.text.set(text)

    def hint(self, name: str) -> str:
        return str(self.panel.rows[name]._hint.cget("text"))

    @property
    def words(self) -> str:
        return str(self.panel._words.label.cget("text"))

    @property
    def can_apply(self) -> bool:
        return not self.panel.apply.instate(["disabled"])

    @property
    def can_revert(self) -> bool:
        return not self.panel.revert.instate(["disabled"])

    def apply(self) -> dict[str, str]:
        """What Apply asks to be written."""
        self.sent.clear()
        self.panel.apply.invoke()
        return dict(self.sent[0].values) if self.sent else {}


@pytest.fixture
def form(screen: None) -> Iterator[Form]:
    made = Form(lb.FormOptions())
    yield made
    made.root.destroy()


# ---- what stands in the fields -------------------------------------------------


def test_every_setting_of_the_window_stands_in_one_group_and_no_secret_does() -> None:
    named = [name for names in lb.GROUPS.values() for name in names]
    assert sorted(named) == sorted(SHOWN) and len(set(named)) == len(named)
    assert len({lb.label_of(f) for f in SHOWN.values()}) == len(SHOWN)


@pytest.mark.parametrize("spec", SHOWN.values(), ids=lambda f: f.name)
def test_a_default_is_shown_and_read_back_as_it_was(spec: lb.Field) -> None:
    shown = lb.shown_text(spec, "")
    if spec.default:
        assert lb.read_setting(spec, lb.env_text(spec, shown)) == lb.read_setting(spec, spec.default)


@pytest.mark.parametrize(
    ("name", "env", "shown"),
    [
        ("RISK_PER_TRADE", "0.0075", "0.75"),  # 0.0075 of 1 = 0.75 %
        ("RISK_PER_TRADE", "0.00125", "0.125"),
        ("MAX_EXPOSURE", "0.6", "60.00"),
        ("MAX_SPREAD", "0.0005", "0.05"),
        ("PAPER_CASH", "1000000", "1,000,000"),
        ("PAPER_CASH", "1234.5", "1,234.5"),
        ("MIN_CONFIDENCE", "0.55", "0.55"),
        ("MAX_POSITIONS", "8", "8"),
        ("ENTRY_TAKER_AFTER_TIMEOUT", "yes", "yes"),
        ("TIMEFRAME_S", "3600,14400", "3600,14400"),
    ],
)
def test_fractions_are_shown_in_percent_and_written_as_fractions(name: str, env: str, shown: str) -> None:
    assert lb.shown_text(SHOWN[name], env) == shown
    assert lb.env_text(SHOWN[name], shown) == env


@pytest.mark.parametrize("typed", ["1,000,000", "1 000 000", "1000000"])
def test_thousands_may_be_set_apart(typed: str) -> None:
    assert lb.env_text(SHOWN["MIN_VOLUME_24H"], typed) == "1000000"


# ---- wrong input, field by field -----------------------------------------------

WRONG: dict[str, tuple[tuple[str, str], ...]] = {
    "float": (("", "Write a plain number such as 0.75"), ("abc", "Write a plain number such as 0.75"),
              ("1e3", "Write a plain number such as 0.75"), ("0,75", "Use a point: 0.75")),
    "int": (("", "Write a plain number such as 0.75"), ("2,5", "Use a point: 2.5")),
    "pairs": (("", "Write a comma list"), ("xbt zar", "Write a comma list"), ("XBTZAR,XBTZAR", "named twice")),
    "durations": (("", "Write a comma list of 300"),),
    "counter": (("", "Write 3 to 4 capital letters"), ("Z1", "Write 3 to 4 capital letters")),
    "text": (("my chat", "Write the chat's number such as 123456789, or @channel"),),
}  # fmt: skip


def wrong_inputs() -> list[tuple[str, str, str]]:
    """Field, text and the cure that must be named; numbers also just beyond both ends of their range."""
    cases = [(f.name, text, cure) for f in SHOWN.values() for text, cure in WRONG.get(f.kind, ())]
    for spec in SHOWN.values():
        if spec.kind in ("float", "int"):
            unit = 100 if spec.unit in ("of equity", "of price") else 1
            step = 1 if spec.kind == "int" else spec.low * unit / 100 or 0.001
            ends = f"{lb.plain(spec.low * unit)} to {lb.plain(spec.high * unit)}"
            beyond = (spec.low * unit - step, spec.high * unit + step)
            cases += [(spec.name, f"{spec.low + 0.5}", "Write a whole number")] if spec.kind == "int" else []
            cases += [(spec.name, f"{n:.6f}".rstrip("0").rstrip("."), f"Allowed is {ends}") for n in beyond]
    return cases


def test_wrong_input_in_every_field_is_told_with_its_cure_and_cannot_be_applied(form: Form) -> None:
    tried = set()
    for name, text, cure in wrong_inputs():
        usual = form.hint(name)
        form.write(name, text)
        told = form.words
        assert not form.can_apply, (name, text)
        assert told == f"✖ 1 field needs attention: {lb.label_of(SHOWN[name])}.", (name, text)
        assert form.hint(name) == usual, "nothing is marked while one still types"
        form.panel.rows[name].input.stops[0].event_generate("<FocusOut>")
        marked = form.hint(name)
        assert marked.startswith("✖ ") and cure in marked, (name, text, marked)
        form.panel.revert_all()
        assert form.hint(name) == usual
        assert form.words == lb.SAME_AS_BEFORE
        tried.add(name)
    listed = ("yesno", "action", lb.FREE_KIND, lb.SAFETY_KIND)  # these only offer what fits
    assert tried == {f.name for f in SHOWN.values() if f.kind not in listed}


def test_a_mark_goes_as_soon_as_the_field_is_right(form: Form) -> None:
    form.write("MAX_SPREAD", "0,3")
    form.panel.rows["MAX_SPREAD"].judge()
    assert form.hint("MAX_SPREAD") == "✖ Use a point: 0.3"
    form.write("MAX_SPREAD", "0.3")
    assert form.hint("MAX_SPREAD") == "0.05 to 2; widest spread to enter at"
    assert form.can_apply


def test_apply_goes_to_the_first_field_that_is_wrong(form: Form) -> None:
    form.write("STOP_GAP", "x")
    form.write("MAX_POSITIONS", "99")
    form.root.focus_force()
    form.panel.ask_apply()  # as the button would, were it not disabled
    form.root.update()
    assert form.root.focus_get() is form.panel.rows["MAX_POSITIONS"].input.widget
    assert form.hint("MAX_POSITIONS") == "✖ Allowed is 1 to 8" and form.hint("STOP_GAP").startswith("✖ ")
    assert form.words == "✖ 2 fields need attention: Max positions, Stop gap." and not form.sent


def test_what_no_single_field_can_tell_is_told(form: Form) -> None:
    form.write("WEEKLY_LOSS_CAP", "2")
    assert form.words == "✖ The weekly loss cap is below the daily one: set it to the daily cap or more."
    assert not form.can_apply
    form.panel.revert_all()
    form.write("PAIRS", "XBTUSDT")
    assert form.words == "✖ Markets names XBTUSDT; only ZAR markets are traded." and not form.can_apply


def test_the_usual_markets_can_be_read_to_the_last_letter(form: Form) -> None:
    import tkinter.font

    form.root.geometry(f"{form.panel._look.px(1440)}x{form.panel._look.px(860)}")
    sc.settle(form.root, 0.2)
    entry = form.panel.rows["PAIRS"].input.widget
    font = tkinter.font.nametofont("TkTextFont", form.root)
    assert entry.winfo_width() >= font.measure("XBTZAR,ETHZAR,XRPZAR,SOLZAR,LTCZAR") + form.panel._look.px(14)


def test_markets_may_be_written_as_the_window_shows_them(form: Form) -> None:
    form.write("PAIRS", "XBT/ZAR, eth/zar")
    assert form.can_apply and form.panel.changes() == {"PAIRS": "XBTZAR,ETHZAR"}
    form.write("PAIRS", "BTCZAR,ETHZAR")
    form.panel.rows["PAIRS"].judge()
    assert form.hint("PAIRS") == "✖ Luno calls bitcoin XBT: write XBTZAR" and not form.can_apply


# ---- change, revert, consequences, apply ----------------------------------------


def test_the_same_value_written_otherwise_is_no_change(form: Form) -> None:
    for name, text in (("RISK_PER_TRADE", "0.500"), ("PAPER_CASH", "100 000"), ("PAIRS", "xbtzar, ETHZAR,XRPZAR,"
                                                                                          "SOLZAR,LTCZAR")):
        form.write(name, text)
        assert not form.can_apply and not form.can_revert, name
    assert form.words == lb.SAME_AS_BEFORE


def test_revert_brings_back_what_was_there(form: Form) -> None:
    form.write("RISK_PER_TRADE", "0.3")
    form.panel.rows["TIMEFRAME_S"].input.ticks["3600"].set(True)
    form.panel.rows["TIMEFRAME_S"].input._join()
    form.write("DESKTOP_NOTICES", "no")
    assert form.can_apply and form.can_revert
    form.panel.revert.invoke()
    assert form.panel.changes() == {} and not form.can_revert and not form.can_apply
    assert form.panel.rows["RISK_PER_TRADE"].input.text.get() == "0.50"
    ticks = form.panel.rows["TIMEFRAME_S"].input.ticks
    assert [name for name, variable in ticks.items() if variable.get()] == ["14400"]


def test_consequences_are_told_in_words(form: Form) -> None:
    form.write("RISK_PER_TRADE", "1.0")
    assert form.words == (
        "Risk 1.00 % of R100,000 is R1,000 a trade. At most 3 open at once: 3 stops hit together cost about R3,000."
        " Looser: risk per trade. Applying locks LIVE until the gates are evaluated again."
        " PAPER chooses its set anew; its days for gate G8 begin again."
        " Takes effect at once: PAPER is opened anew, positions stay.")
    form.write("RISK_PER_TRADE", "0.4")  # tighter: no lock, nothing looser
    assert "Looser" not in form.words and "locks LIVE" not in form.words
    assert form.words.startswith("Risk 0.40 % of R100,000 is R400 a trade.")
    form.panel.revert_all()
    form.write("DESKTOP_NOTICES", "no")  # decides no order
    assert form.words == "Takes effect at once: PAPER is opened anew, positions stay."
    form.panel.see("LIVE", True)
    assert form.words == "Takes effect when LIVE has ended and PAPER is opened."


@pytest.mark.parametrize(
    ("name", "text", "locks"),
    [("COOLDOWN_HOURS", "24", False), ("COOLDOWN_HOURS", "6", True), ("MIN_VOLUME_24H", "2000000", False),
     ("DAILY_CAP_ACTION", "hold", True), ("MAX_DRAWDOWN_GATE", "20", True), ("TARGET_DAILY_RETURN", "1", False),
     ("SLIPPAGE", "0.2", True), ("PAIRS", "XBTZAR", True), ("TELEGRAM_CHAT_ID", "-100123", False)],
)  # fmt: skip
def test_what_locks_live_again_says_so(form: Form, name: str, text: str, locks: bool) -> None:
    form.write(name, text)
    assert form.can_apply and ("Applying locks LIVE" in form.words) is locks


def test_tightening_is_written_without_a_question(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lb, "ask_loosen", lambda *parts: pytest.fail("nobody is asked"))
    form.write("RISK_PER_TRADE", "0.25")
    form.write("MIN_VOLUME_24H", "2,000,000")
    form.write("TIMEFRAME_S", "3600,14400")
    expected = {"LUNOBIZ_RISK_PER_TRADE": "0.0025", "LUNOBIZ_MIN_VOLUME_24H": "2000000",
                "LUNOBIZ_TIMEFRAME_S": "3600,14400"}
    assert form.apply() == expected
    assert form.words == "Saving…" and not form.can_apply and not form.can_revert
    form.panel.take(lb.SettingsSaved(tuple(expected.items())))
    assert form.words == "✔ Saved. It takes effect at once: PAPER is opened anew, positions stay."
    assert form.panel.changes() == {} and form.panel.before.limits.risk_per_trade == 0.0025


def test_notices_are_chosen_from_a_list_and_applied(form: Form) -> None:
    boxes = {name: row.input.widget for name, row in form.panel.rows.items() if name.startswith("NOTICE_")}
    assert len(boxes) == 8 and "never off" in form.hint("NOTICE_HALTS")
    assert boxes["NOTICE_ENTRIES"].cget("values") == ("on", "silent", "off")
    assert boxes["NOTICE_HALTS"].cget("values") == ("on", "silent")
    assert {str(box.cget("state")) for box in boxes.values()} == {"readonly"}
    form.write("NOTICE_ENTRIES", "off")
    assert form.words == lb.when_words("PAPER")
    assert form.apply() == {"LUNOBIZ_NOTICE_ENTRIES": "off"}


@pytest.mark.parametrize("answer", [True, False])
def test_loosening_is_asked_about(form: Form, monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    asked: list[lb.Question] = []

    def ask(look: lb.Look, question: lb.Question) -> str:
        asked.append(question)
        return question.answers[0] if answer else ""

    monkeypatch.setattr(lb, "ask_question", ask)
    form.write("RISK_PER_TRADE", "1")
    form.write("MAX_POSITIONS", "5")
    found = form.apply()
    assert found == ({"LUNOBIZ_RISK_PER_TRADE": "0.01", "LUNOBIZ_MAX_POSITIONS": "5"} if answer else {})
    (question,) = asked
    assert question.head == "Loosen these 2 limits?" and question.answers[-1] == "Keep as it is" and question.is_grave
    assert question.lines[:2] == ("•  Risk per trade: 0.50 becomes 1.00 % of equity", "•  Max positions: 3 becomes 5")
    assert "Risk 1.00 % of R100,000 is R1,000 a trade." in question.lines


def test_no_limit_is_loosened_over_a_live_position(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lb, "ask_loosen", lambda *parts: True)
    form.panel.see("LIVE", True)
    form.write("RISK_PER_TRADE", "1")
    assert form.apply() == {}
    assert form.words == "✖ No limit is loosened while a LIVE position is open. Close it first."
    form.write("RISK_PER_TRADE", "0.4")  # tightening is always possible
    assert form.apply() == {"LUNOBIZ_RISK_PER_TRADE": "0.004"}
    form.panel.take(lb.SettingsSaved((), "It was refused."))
    assert form.words == "✖ It was refused." and form.can_apply, "what was typed is still there"
    form.panel.see("LIVE", False)
    form.write("RISK_PER_TRADE", "1")
    assert form.apply() == {"LUNOBIZ_RISK_PER_TRADE": "0.01"}


def test_what_the_environment_sets_can_only_be_read(screen: None) -> None:
    form = Form(lb.FormOptions(values={"MAX_EXPOSURE": "0.3"}, fixed=frozenset(("MAX_EXPOSURE",))))
    row = form.panel.rows["MAX_EXPOSURE"]
    assert row.input.stops[0].instate(["disabled"])  # type: ignore[attr-defined]
    assert row.input.text.get() == "30.00"
    assert form.hint("MAX_EXPOSURE") == "Set as LUNOBIZ_MAX_EXPOSURE in the environment, which comes first"
    form.root.destroy()


def test_secrets_are_told_by_name_only(screen: None) -> None:
    form = Form(lb.FormOptions(secrets=frozenset(("READ_KEY_SECRET",))))
    states = {name: str(label.cget("text")) for name, label in form.panel.secrets._states.items()}
    assert states == {"READ_KEY_SECRET": "✔ set", "LIVE_KEY_SECRET": "not set", "TELEGRAM_TOKEN": "not set"}
    form.panel.take(lb.SettingsSaved((("LUNOBIZ_TELEGRAM_TOKEN", "***"),)))
    assert str(form.panel.secrets._states["TELEGRAM_TOKEN"].cget("text")) == "✔ set"
    form.root.destroy()


def test_tab_goes_through_the_fields_in_reading_order(form: Form) -> None:
    form.root.focus_force()
    here, seen = form.panel.rows["RISK_PER_TRADE"].input.widget, list[str]()
    owners = {str(stop): name for name, row in form.panel.rows.items() for stop in row.input.stops}
    here.focus_force()
    classes = set[str]()
    for _ in range(50):
        form.root.update()
        focus = form.root.focus_get()
        assert focus is not None
        classes.add(focus.winfo_class())
        name = owners.get(str(focus), "")
        seen += [name] if name and name not in seen else []
        following = cast("ttk.Entry", focus).tk_focusNext()
        assert following is not None
        following.focus_set()
    assert seen == [name for names in lb.GROUPS.values() for name in names]
    assert classes <= lb.FOCUS_CLASSES, "Tab stops at nothing that takes no input"


def test_the_focused_field_is_scrolled_into_sight(form: Form) -> None:
    form.root.geometry("700x400")
    sc.settle(form.root, 0.3)
    last = form.panel.rows["DESKTOP_NOTICES"]
    form.root.focus_force()
    last.focus()
    sc.settle(form.root, 0.2)
    canvas = form.panel.area._canvas
    top = last.input.stops[0].winfo_rooty() - canvas.winfo_rooty()
    assert 0 <= top <= canvas.winfo_height() - last.input.stops[0].winfo_height()


def test_a_wheel_over_a_list_changes_nothing(form: Form) -> None:
    form.panel.rows["DAILY_CAP_ACTION"].input.widget.event_generate("<Button-5>")
    form.root.update()
    assert form.panel.changes() == {}


# ---- the file and the audit -------------------------------------------------------


def changed(home: Path, env: Mapping[str, str], **values: str) -> tuple[str, lb.Session]:
    session = lb.Session(lb.Mode.PAPER, lb.parse_settings(env), home, env, 0, "", 0.0, "OFF")
    return lb.change_stopped(session, {f"LUNOBIZ_{name}": text for name, text in values.items()})


def test_applying_keeps_comments_other_lines_and_secrets(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    before = ("# my notes\nLUNOBIZ_READ_KEY_ID=abcdefghijklm\n"
              f"LUNOBIZ_READ_KEY_SECRET={SECRET}  # mine\nOTHER=1\nLUNOBIZ_RISK_PER_TRADE=0.004 # careful\n")
    path.write_text(before, encoding="utf-8")
    env = lb.read_env((tmp_path,), {"LUNOBIZ_SLIPPAGE": "0.002"})  # that one stays where it is
    problem, session = changed(tmp_path, env, RISK_PER_TRADE="0.003", MAX_POSITIONS="2")
    assert problem == ""
    assert path.read_text(encoding="utf-8") == before.replace("0.004", "0.003") + "LUNOBIZ_MAX_POSITIONS=2\n"
    assert lb.parse_settings(session.env).costs.slippage == 0.002
    assert session.settings.limits.max_positions == 2 and session.settings.limits.risk_per_trade == 0.003
    store = lb.Store(tmp_path / "lunobiz.db", lb.Redactor())
    texts = [str(row[0]) for row in store._fetch("SELECT text FROM events ORDER BY rowid", ())]
    store.close()
    assert texts == ["LUNOBIZ_RISK_PER_TRADE was changed by the owner from 0.004 to 0.003",
                     "LUNOBIZ_MAX_POSITIONS was changed by the owner from 3 to 2"]


def test_a_choice_that_is_not_allowed_is_not_written(tmp_path: Path) -> None:
    problem, session = changed(tmp_path, {}, NOTICE_HALTS="off")
    assert problem == 'Nothing was changed: LUNOBIZ_NOTICE_HALTS is "off": allowed is on or silent.'
    assert not (tmp_path / ".env").exists() and session.env == {}
    assert changed(tmp_path, {}, NOTICE_HALTS="silent")[0] == ""
    assert lb.change_words("LUNOBIZ_NOTICE_SUMMARY", "", "off").endswith("from on to off")


def test_a_secret_is_written_and_told_by_name(tmp_path: Path) -> None:
    assert changed(tmp_path, {}, READ_KEY_ID="abcdefghijklm", READ_KEY_SECRET=SECRET)[0] == ""
    assert SECRET in (tmp_path / ".env").read_text(encoding="utf-8")
    for path in tmp_path.glob("lunobiz.db*"):
        assert SECRET.encode() not in path.read_bytes()
    assert lb.change_words("LUNOBIZ_READ_KEY_SECRET", "", SECRET) == "LUNOBIZ_READ_KEY_SECRET was set by the owner"


def test_a_file_that_cannot_be_changed_leaves_all_as_it_was(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('LUNOBIZ_RISK_PER_TRADE="0.004\n', encoding="utf-8")
    problem, session = changed(tmp_path, {}, RISK_PER_TRADE="0.003")
    assert problem.startswith("Nothing was changed: ") and session.env == {}
    assert (tmp_path / ".env").read_text(encoding="utf-8") == 'LUNOBIZ_RISK_PER_TRADE="0.004\n'


# ---- how the window looks ----------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[]", "{", '{"points": 99, "theme": 1, "colours": "x"}', '{"points": "10"}'])
def test_a_damaged_window_file_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / lb.WINDOW_FILE).write_text(text, encoding="utf-8")
    assert lb.read_prefs(tmp_path) == lb.WindowPrefs()


def test_looks_are_kept(tmp_path: Path) -> None:
    prefs = lb.WindowPrefs(12, "light", "classic", "1300x800+20+30", True)
    lb.write_prefs(tmp_path, prefs)
    assert lb.read_prefs(tmp_path) == prefs
    lb.write_prefs(tmp_path / "missing", prefs)  # not worth an error


@pytest.mark.parametrize(
    ("text", "is_there"),
    [("1200x800+100+50", True), ("1200x800+-1150+50", False), ("1200x800+-900+50", True), ("1200x800+1800+50", False),
     ("1200x800+100+1100", False), ("1200x800+100+-300", False), ("100x", False), ("", False), ("9x9+0+0", False)],
)  # fmt: skip
def test_a_window_comes_back_where_its_title_can_be_reached(text: str, is_there: bool) -> None:
    assert lb.kept_place(text, (0, 0, 1920, 1080)) == (text if is_there else "")
    assert lb.kept_place("1200x800+-1500+50", (-1920, 0, 3840, 1080)), "the second screen stands at the left"


def test_size_theme_and_colours_are_worn_at_once_and_remembered(screen: None, tmp_path: Path) -> None:
    window = sc.open_dashboard(sc.FakeWorker(sc.news()), tmp_path, theme="")
    sc.settle(window.root, 0.3)
    wide = window.screen.desk.positions._widths[1]
    size, theme, colours = window.wardrobe.box.boxes
    size.set("14 pt")
    size.event_generate("<<ComboboxSelected>>")
    theme.set("Light")
    theme.event_generate("<<ComboboxSelected>>")
    colours.set("Green and red")
    colours.event_generate("<<ComboboxSelected>>")
    window.root.update()
    assert window.screen.desk.positions._widths[1] > wide
    assert not window.look.is_dark and window.look.colour("up") == "#14713d"
    assert str(window.look.body.cget("size")) == "14" and str(window.look.title.cget("size")) == "17"
    window.screen.actions.theme.invoke()
    assert window.look.is_dark and theme.get() == "Dark"
    window.root.geometry("1100x720+33+44")
    sc.settle(window.root, 0.2)
    place = window.root.geometry()
    window.end()
    assert lb.read_prefs(tmp_path) == lb.WindowPrefs(14, "dark", "classic", place)
    again = sc.open_dashboard(sc.FakeWorker(), tmp_path, theme="")
    sc.settle(again.root, 0.3)
    assert str(again.look.body.cget("size")) == "14" and again.root.geometry().startswith(place.split("+")[0])
    again.end()


@pytest.mark.parametrize(("theme", "is_followed"), [("", True), ("dark", False)])
def test_the_theme_of_windows_is_followed_while_the_program_runs(
    screen: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theme: str, is_followed: bool
) -> None:
    """Unless the owner has chosen one; what is followed is not kept as his choice."""
    asked: list[bool] = []
    monkeypatch.setattr(lb, "prefers_light", lambda: bool(asked))
    window = sc.open_dashboard(sc.FakeWorker(), tmp_path, theme=theme)
    assert window.look.is_dark
    asked.append(True)
    window._ticks = 3 * lb.FOLLOW_THEME - 1  # it is looked at every few seconds only
    window._tick()
    assert window.look.is_dark is not is_followed
    assert window.wardrobe.prefs.theme == theme
    asked.clear()
    window.wardrobe.follow()
    assert window.look.is_dark
    window.end()


def test_news_and_answers_reach_the_tab(screen: None, tmp_path: Path) -> None:
    worker = sc.FakeWorker(sc.news())
    window = sc.open_dashboard(worker, tmp_path)
    sc.settle(window.root, 0.3)
    panel = window.screen.settings
    assert (panel._mode, panel._is_exposed) == ("PAPER", True)
    panel.rows["RISK_PER_TRADE"].input.text.set("0.4")
    panel.apply.invoke()
    assert worker.commands == [lb.ChangeSettings((("LUNOBIZ_RISK_PER_TRADE", "0.004"),))]
    worker.say(lb.SettingsSaved((("LUNOBIZ_RISK_PER_TRADE", "0.004"),)))
    sc.settle(window.root, 0.3)
    assert panel._words.label.cget("text").startswith("✔ Saved.")
    window.end()


# ---- the first run ------------------------------------------------------------------


class Run:
    """A wizard that is walked through, with what it saved and asked."""

    def __init__(self, look: lb.Look, only: tuple[str, ...] = (), problem: str = "", **options: object) -> None:
        self.look, self.saved, self.asked, self.problem = look, list[dict[str, str]](), list[object](), problem
        given = {"save": self.save, "test_key": self.test_key, "test_telegram": self.test_telegram,
                 "test_desktop": lambda: "✔ The notice was shown.", **options}
        self.wizard = lb.Wizard(look, lb.FormOptions(**given), only)  # type: ignore[arg-type]

    def save(self, values: Mapping[str, str]) -> str:
        self.saved.append(dict(values))
        return self.problem

    def test_key(self, key_id: str, secret: str) -> str:
        self.asked.append((key_id, secret, threading.current_thread() is threading.main_thread()))
        return "✔ The key works."

    def test_telegram(self, token: str, chat: str) -> str:
        self.asked.append((token, chat))
        return "✖ Token refused: compare the token."

    def walk(self, *steps: Callable[[], object]) -> str:
        """Do these things one after another in the open dialog; its choice."""
        faults: list[BaseException] = []

        def act(left: tuple[Callable[[], object], ...]) -> None:
            try:
                left[0]()
            except BaseException as error:
                faults.append(error)
                self.wizard.dialog.close()
                return
            if left[1:]:
                self.look.root.after(60, act, left[1:])

        self.look.root.after(250, act, steps)
        choice = self.wizard.run()
        if faults:
            raise faults[0]
        return choice

    @property
    def head(self) -> str:
        return str(self.wizard._head.cget("text"))

    @property
    def told(self) -> str:
        return str(self.wizard.problem.label.cget("text"))

    def type_key(self, key_id: str = "abc123", secret: str = SECRET) -> None:
        for entry, text in zip(self.wizard.key.entries, (key_id, secret), strict=True):
            entry.delete(0, "end")
            entry.insert(0, text)


@pytest.fixture
def look(screen: None) -> Iterator[lb.Look]:
    root = lb.open_root("test", is_dark=True)
    root.geometry("900x600")
    root.deiconify()
    yield lb.Look(root)
    root.destroy()


def test_four_steps_skipped_end_on_paper_with_nothing_written(look: lb.Look) -> None:
    run, heads = Run(look), list[str]()
    wizard = run.wizard

    def on() -> None:
        heads.append(run.head)
        wizard.skip.invoke()

    assert run.walk(on, on, on, on) == "paper"
    assert heads == ["Step 1 of 4 · Data folder", "Step 2 of 4 · Read-only key", "Step 3 of 4 · Risk limits",
                     "Step 4 of 4 · Notifications"]
    assert run.saved == []


def test_a_key_is_masked_tested_aside_saved_and_wiped(look: lb.Look) -> None:
    run, seen = Run(look), list[object]()
    wizard = run.wizard
    words = wizard.key.test.words.label

    def wait() -> None:
        assert sc.until(look.root, lambda: str(words.cget("text")) == "✔ The key works.")
        seen.append([str(entry.cget("show")) for entry in wizard.key.entries])

    limits = wizard.limits.rows["RISK_PER_TRADE"].input.text
    choice = run.walk(
        wizard.next.invoke, run.type_key, wizard.key.test.button.invoke, wait, wizard.next.invoke,
        lambda: limits.set("0.25"), wizard.next.invoke, wizard.next.invoke)  # fmt: skip
    assert choice == "paper"
    assert run.asked == [("abc123", SECRET, False)], "the window does not wait for the network"
    assert run.saved == [{"READ_KEY_ID": "abc123", "READ_KEY_SECRET": SECRET, "RISK_PER_TRADE": "0.0025"}]
    assert seen == [["•", "•"]] and wizard._done == {}


@pytest.mark.parametrize(("key_id", "secret"), [("", ""), ("abc123", ""), ("", "s3cret"), ("a b", "x"), ("a:b", "x")])
def test_half_a_key_is_not_taken(look: lb.Look, key_id: str, secret: str) -> None:
    run, seen = Run(look), list[str]()
    wizard = run.wizard
    run.walk(wizard.next.invoke, lambda: run.type_key(key_id, secret), wizard.next.invoke,
             lambda: seen.extend([run.head, run.told]), wizard.key.test.button.invoke,
             lambda: seen.append(str(wizard.key.test.words.label.cget("text"))), wizard.dialog.close)
    problem = "✖ Paste both the key ID and its secret, just as Luno shows them; or skip this step."
    assert seen == ["Step 2 of 4 · Read-only key", problem, problem]
    assert run.asked == [] and run.saved == []


def test_nothing_typed_is_lost_on_the_way_back(look: lb.Look) -> None:
    run, seen = Run(look), list[object]()
    wizard = run.wizard
    cash = wizard.limits.rows["PAPER_CASH"].input.text
    run.walk(
        wizard.next.invoke, run.type_key, wizard.next.invoke, lambda: cash.set("50,000"), wizard.back.invoke,
        lambda: seen.append([run.head, *(entry.get() for entry in wizard.key.entries)]), wizard.back.invoke,
        lambda: seen.append(wizard.back.instate(["disabled"])), wizard.next.invoke, wizard.next.invoke,
        lambda: seen.append(cash.get()), wizard.dialog.close)  # fmt: skip
    assert seen == [["Step 2 of 4 · Read-only key", "abc123", SECRET], True, "50,000"]


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_the_demo_is_always_at_hand_and_keeps_what_was_finished(look: lb.Look, steps: int) -> None:
    run = Run(look)
    wizard = run.wizard
    onward = [step for _ in range(steps) for step in (run.type_key, wizard.next.invoke)]
    assert run.walk(*onward, wizard.demo.invoke) == "demo"
    assert run.saved == ([{"READ_KEY_ID": "abc123", "READ_KEY_SECRET": SECRET}] if steps > 1 else [])


def test_closing_chooses_and_writes_nothing(look: lb.Look) -> None:
    run = Run(look)
    assert run.walk(run.wizard.next.invoke, run.type_key, run.wizard.next.invoke,
                    lambda: run.wizard.dialog.window.event_generate("<Escape>")) == ""
    assert run.saved == []


def test_what_cannot_be_written_keeps_the_wizard_open(look: lb.Look) -> None:
    run, seen = Run(look, problem="The disk is full."), list[str]()
    wizard = run.wizard
    run.walk(wizard.next.invoke, run.type_key, *[wizard.next.invoke] * 3, lambda: seen.append(run.told),
             lambda: seen.append(wizard.key.entries[1].get()), wizard.dialog.close)
    assert seen == ["✖ The disk is full.", SECRET]


def test_limits_are_told_in_rand_and_a_looser_one_is_asked_about(
    look: lb.Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen, answers = Run(look), list[str](), [False, True]
    wizard = run.wizard
    monkeypatch.setattr(lb, "ask_loosen", lambda *parts: answers.pop(0))
    risk = wizard.limits.rows["RISK_PER_TRADE"].input.text

    def note() -> None:
        seen.extend([run.head, str(wizard.limits.words.label.cget("text")).splitlines()[0]])

    run.walk(wizard.next.invoke, wizard.skip.invoke, note, lambda: risk.set("0,5"), wizard.next.invoke,
             lambda: seen.append(run.told), lambda: risk.set("1"), note, wizard.next.invoke, note,
             lambda: seen.append(run.told), wizard.next.invoke, wizard.next.invoke)
    head = "Step 3 of 4 · Risk limits"
    looser = "Risk 1.00 % of R100,000 is R1,000 a trade."
    assert seen == [head, "Risk 0.50 % of R100,000 is R500 a trade.",
                    "✖ Correct what is marked, or skip this step to keep the defaults.", head, looser, head, looser, ""]
    assert run.saved == [{"RISK_PER_TRADE": "0.01"}] and answers == []


def test_messages_are_tested_and_need_both_parts(look: lb.Look) -> None:
    run, seen = Run(look, only=("key", "notices")), list[str]()
    wizard, page = run.wizard, run.wizard.notices
    masks = [str(entry.cget("show")) for entry in (page.token, page.chat)]
    words = page.telegram.words.label

    def ask(text: str) -> Callable[[], None]:
        def act() -> None:
            page.telegram.button.invoke()
            sc.until(look.root, lambda: text in str(words.cget("text")))
            seen.append(str(words.cget("text")))

        return act

    choice = run.walk(
        wizard.skip.invoke, ask("first"), lambda: page.token.insert(0, "12345:abc"), ask("no bot token"),
        lambda: page.token.insert("end", "defghijklmn"), wizard.next.invoke, lambda: seen.append(run.told),
        lambda: page.chat.insert(0, "12 34"), ask("number"), lambda: page.chat.delete(0, "end"),
        lambda: page.chat.insert(0, "-100123"), ask("refused"), wizard.next.invoke)  # fmt: skip
    assert choice == "paper" and not hasattr(wizard, "demo")
    both = "Telegram needs both the bot token and the chat number; or leave both empty."
    assert seen == ["✖ Paste the bot token and the chat number first.",
                    "✖ This is no bot token: digits, a colon, letters; copy all of it.", f"✖ {both}",
                    "✖ Write the chat's number such as 123456789, or @channel", "✖ Token refused: compare the token."]
    assert run.asked == [("12345:abcdefghijklmn", "-100123")]
    assert run.saved == [{"TELEGRAM_TOKEN": "12345:abcdefghijklmn", "TELEGRAM_CHAT_ID": "-100123"}]
    assert masks == ["•", ""]


def test_doubts_of_the_folder_are_shown(look: lb.Look) -> None:
    doubt = "C:/OneDrive/LunoBiz is synchronised by a cloud program, which can damage the database"
    run = Run(look, doubts=(doubt,), folder=Path("C:/OneDrive/LunoBiz"))
    page = cast("lb.FolderPage", run.wizard.pages[0])
    assert page.words.label.cget("text") == f"▲ {doubt}. PAPER works there; LIVE refuses it."
    assert page._name.cget("text") == str(Path("C:/OneDrive/LunoBiz"))
    assert not page.other.winfo_manager(), "the folder was named at the start"
    run.walk(run.wizard.dialog.close)


class Places:
    """The usual folder and others: what was looked at and moved to, in which order with what was saved."""

    def __init__(self, look: lb.Look, problem: str = "") -> None:
        self.problem, self.steps = problem, list[object]()
        self.run = Run(look, folder=Path("/usual"), check_folder=self.check, move=self.move, save=self.save)
        self.page = cast("lb.FolderPage", self.run.wizard.pages[0])

    def check(self, text: str) -> str:
        return "it is synchronised" if "OneDrive" in text else ""

    def move(self, text: str) -> str:
        self.steps.append(text)
        return self.problem

    def save(self, values: Mapping[str, str]) -> str:
        self.steps.append(dict(values))
        return ""


def test_another_folder_is_looked_at_first_and_moved_to_before_anything_is_saved(
    look: lb.Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places(look)
    wizard, page, answers = places.run.wizard, places.page, iter(["", "/OneDrive/x", "/new"])
    monkeypatch.setattr("tkinter.filedialog.askdirectory", lambda **given: next(answers))

    def steps() -> None:
        for shown, words in (("/usual", "✔"), ("/usual", "✖ It is synchronised."), ("/new", "✔")):
            page.other.invoke()
            assert page._name.cget("text") == shown and page.words.label.cget("text").startswith(words)
        wizard.go_on()
        wizard.go_past()
        wizard.limits.rows["PAPER_CASH"].input.text.set("50,000")
        wizard.go_on()
        assert places.steps == []
        wizard.go_past()

    assert places.run.walk(steps) == "paper"
    assert places.steps == ["/new", {"PAPER_CASH": "50000"}]


def test_a_folder_that_was_skipped_is_not_moved_to(look: lb.Look) -> None:
    places = Places(look)

    def steps() -> None:
        places.page.take("/new")
        for _ in range(4):
            places.run.wizard.go_past()

    assert places.run.walk(steps) == "paper" and places.steps == []


def test_a_move_that_fails_keeps_the_wizard_open_and_saves_nothing(look: lb.Look) -> None:
    places = Places(look, "another LunoBiz is running on /new")

    def steps() -> None:
        places.page.take("/new")
        places.run.wizard.go_on()
        places.run.wizard.watch()
        assert places.run.wizard.problem.label.cget("text") == "✖ Another LunoBiz is running on /new"
        places.run.wizard.dialog.close()

    assert places.run.walk(steps) == "" and places.steps == ["/new"]


# ---- the live key, in Settings --------------------------------------------------------

SETTINGS_PAGES = ("key", "live", "notices")
OTHER = "0ther0ther0ther0ther0ther0ther0ther0ther0the"


def fill(page: lb.KeyPage, key_id: str, secret: str) -> None:
    page.wipe()
    for entry, text in zip(page.entries, (key_id, secret), strict=True):
        entry.insert(0, text)


def test_the_live_key_is_masked_tested_by_reading_saved_and_wiped(look: lb.Look) -> None:
    asked: list[tuple[str, str]] = []

    def test_live_key(key_id: str, secret: str) -> str:
        asked.append((key_id, secret))
        return "✔ The key works."

    run, seen = Run(look, SETTINGS_PAGES, test_live_key=test_live_key), list[str]()
    wizard, finish = run.wizard, run.wizard.dialog.finish

    def ending(result: str) -> None:
        seen.extend(entry.get() for entry in wizard.live.entries)
        finish(result)

    wizard.dialog.finish = ending  # type: ignore[method-assign]

    def steps() -> None:
        wizard.go_past()
        assert run.head == "Step 2 of 3 · Live key"
        fill(wizard.live, "live123", OTHER)
        assert [str(entry.cget("show")) for entry in wizard.live.entries] == ["•", "•"]
        wizard.live.test.button.invoke()
        assert sc.until(look.root, lambda: str(wizard.live.test.words.label.cget("text")) == "✔ The key works.")
        wizard.go_on()
        wizard.go_past()

    assert run.walk(steps) == "paper"
    assert asked == [("live123", OTHER)] and run.asked == []
    assert run.saved == [{"LIVE_KEY_ID": "live123", "LIVE_KEY_SECRET": OTHER}]
    assert seen == ["", ""] and wizard._done == {}


@pytest.mark.parametrize(("key_id", "secret"), [("abc123", OTHER), ("live123", SECRET)])
def test_the_same_key_twice_is_refused_at_once(look: lb.Look, key_id: str, secret: str) -> None:
    run = Run(look, SETTINGS_PAGES)

    def steps() -> None:
        run.type_key()
        run.wizard.go_on()
        fill(run.wizard.live, key_id, secret)
        run.wizard.go_on()
        assert run.head == "Step 2 of 3 · Live key"
        assert run.told == "✖ The read-only key and the live key must be two different keys."
        run.wizard.dialog.close()

    assert run.walk(steps) == "" and run.saved == []


@pytest.mark.parametrize("name", ["READ", "LIVE"])
def test_a_key_that_is_already_known_as_the_other_one_is_refused(name: str) -> None:
    other = {"READ": "LIVE", "LIVE": "READ"}[name]
    known = {f"LUNOBIZ_{other}_KEY_ID": "abc123", f"LUNOBIZ_{other}_KEY_SECRET": SECRET}
    session = lb.Session(lb.Mode.PAPER, lb.Settings(), Path("/x"), known, 0, "", 0.0)
    check = lb.form_options(session, lambda values: "").check_keys
    assert "two different keys" in check({f"{name}_KEY_ID": "abc123", f"{name}_KEY_SECRET": OTHER})
    assert SECRET not in check({f"{name}_KEY_ID": "new", f"{name}_KEY_SECRET": SECRET})
    assert check({f"{name}_KEY_ID": "new", f"{name}_KEY_SECRET": OTHER}) == ""


def test_the_live_key_is_not_asked_for_in_the_first_run(look: lb.Look) -> None:
    run = Run(look)
    assert [page.title for page in run.wizard.pages] == ["Data folder", "Read-only key", "Risk limits", "Notifications"]
    run.walk(run.wizard.dialog.close)


@pytest.mark.parametrize(
    ("name", "answer", "sent"),
    [("LIVE_KEY_SECRET", "Remove", {"LUNOBIZ_LIVE_KEY_ID": "", "LUNOBIZ_LIVE_KEY_SECRET": ""}),
     ("READ_KEY_SECRET", "Remove", {"LUNOBIZ_READ_KEY_ID": "", "LUNOBIZ_READ_KEY_SECRET": ""}),
     ("TELEGRAM_TOKEN", "Remove", {"LUNOBIZ_TELEGRAM_TOKEN": "", "LUNOBIZ_TELEGRAM_CHAT_ID": ""}),
     ("LIVE_KEY_SECRET", "Keep it", {}), ("LIVE_KEY_SECRET", "", {})],
)  # fmt: skip
def test_a_secret_is_removed_after_a_question(
    screen: None, monkeypatch: pytest.MonkeyPatch, name: str, answer: str, sent: dict[str, str]
) -> None:
    form = Form(lb.FormOptions(secrets=frozenset(n for _, n in lb.SECRETS_SHOWN)))
    monkeypatch.setattr(lb, "ask_question", lambda look, question: answer)
    box = form.panel.secrets
    box.removers[name].invoke()
    assert [dict(command.values) for command in form.sent] == ([sent] if sent else [])
    if sent:
        form.panel.take(lb.SettingsSaved(lb.without_secrets(sent)))
    assert str(box._states[name].cget("text")) == ("not set" if sent else "✔ set")
    assert bool(box.removers[name].winfo_manager()) == (not sent)
    form.root.destroy()


def test_the_owner_can_set_and_remove_the_live_key_and_no_text_shows_it(tmp_path: Path) -> None:
    read = {"LUNOBIZ_READ_KEY_ID": "abc123", "LUNOBIZ_READ_KEY_SECRET": SECRET}
    problem, session = changed(tmp_path, read, LIVE_KEY_ID="abc123", LIVE_KEY_SECRET=OTHER)
    assert "must be two different keys" in problem and not (tmp_path / ".env").exists()
    problem, session = changed(tmp_path, read, LIVE_KEY_ID="live123", LIVE_KEY_SECRET=OTHER)
    assert problem == "" and lb.parse_live_key(session.env) == lb.Credentials("live123", OTHER)
    problem, session = changed(tmp_path, session.env, LIVE_KEY_ID="", LIVE_KEY_SECRET="")
    assert problem == "" and not lb.parse_live_key(session.env) and lb.parse_read_key(session.env)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or OTHER.encode() not in path.read_bytes()
    store = lb.Store(tmp_path / "lunobiz.db", lb.Redactor())
    texts = [str(row[0]) for row in store._fetch("SELECT text FROM events ORDER BY rowid", ())]
    store.close()
    assert texts == [f"LUNOBIZ_LIVE_KEY_{part} was {what} by the owner" for what in ("set", "removed")
                     for part in ("ID", "SECRET")]


def test_return_goes_on_from_a_field(look: lb.Look) -> None:
    run, seen = Run(look), list[str]()
    wizard = run.wizard
    run.walk(wizard.next.invoke, run.type_key, wizard.key.entries[1].focus_force,
             lambda: wizard.key.entries[1].event_generate("<Return>"), lambda: seen.append(run.head),
             wizard.dialog.close)
    assert seen == ["Step 3 of 4 · Risk limits"]


def test_return_on_a_button_presses_it_once_and_may_end_the_wizard(look: lb.Look) -> None:
    run, seen, faults = Run(look, only=("key", "notices")), list[str](), list[object]()
    wizard = run.wizard
    look.root.report_callback_exception = lambda *fault: faults.append(fault)
    look.root.tk.createcommand("bgerror", lambda *words: faults.append(words))

    def press() -> None:
        wizard.skip.focus_force()
        look.root.update()
        seen.append(run.head)
        wizard.skip.event_generate("<Return>")

    choice = run.walk(press, press)
    look.root.update()
    assert (seen, choice, faults) == (["Step 1 of 2 · Read-only key", "Step 2 of 2 · Notifications"], "paper", [])


# ---- what the tests of key and messages say -------------------------------------------


def asked_key(*script: lb.Reply | Exception) -> str:
    clock = FakeClock()
    client = lb.LunoClient(FakeTransport(*script), lb.Credentials("abc", "s3cret"), lb.RateLimit(clock), clock,
                           random.Random(1))
    return lb.key_words(client, "XBTZAR")


def test_the_test_of_a_key_says_in_words_what_luno_answered() -> None:
    candles, balances = reply({"candles": [], "duration": 3600, "pair": "XBTZAR"}), reply({"balance": []})
    refused = reply({"error": "no", "error_code": "ErrUnauthorised"}, 401)
    lacking = reply({"error": "no", "error_code": "ErrInsufficientPerms"}, 403)
    assert asked_key(candles, balances).startswith("✔ The key works: candles and balances can be read.")
    assert asked_key(refused).startswith("✖ Luno refuses the key (ErrUnauthorised): compare both parts")
    assert "a box is missing" in asked_key(candles, lacking)
    assert asked_key(lb.ExchangeDown("no answer")).startswith("✖ No usable answer from Luno: no answer.")


def test_the_test_of_the_live_key_only_reads() -> None:
    balances, none = reply({"balance": []}), reply({"orders": []})

    def asked(*answers: lb.Reply | lb.LunobizError) -> tuple[str, list[str]]:
        line, clock = FakeTransport(*answers), FakeClock()
        client = lb.LunoClient(line, lb.Credentials("live123", OTHER), lb.RateLimit(clock), clock, random.Random(1))
        return lb.live_key_words(client), [request.method for request in line.requests]

    told, methods = asked(balances, none)
    assert told.startswith("✔ The key works: balances and orders can be read.") and set(methods) == {"GET"}
    told, methods = asked(reply({"error": "no", "error_code": "ErrUnauthorised"}, 401))
    assert told.startswith("✖ Luno refuses the key") and set(methods) == {"GET"}
    assert "a box is missing" in asked(balances, reply({"error": "no", "error_code": "ErrInsufficientPerms"}, 403))[0]


@pytest.mark.parametrize(
    ("status", "words"),
    [(200, "✔ Telegram has taken the message"), (401, "✖ Token refused: compare the token"),
     (400, "✖ Chat refused: write to your bot first"), (500, "✖ Unexpected answer 500: try again later.")],
)  # fmt: skip
def test_the_test_message_says_what_telegram_answered(status: int, words: str) -> None:
    line = FakeTransport(reply({"ok": status == 200}, status))
    channel = lb.Telegram(line, lb.Credentials("telegram", "12345:abcdefghijklmn"), "123")
    told = lb.telegram_words(channel)
    assert told.startswith(words) and "12345" not in told and line.is_closed


def test_a_fault_in_a_test_is_told_and_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []
    monkeypatch.setattr(threading, "excepthook", heard.append)
    aside = lb.Aside()
    aside.ask(lambda: cast("str", json.loads("{")))
    answer = None
    while answer is None:
        answer = aside.take()
    assert answer == "✖ The test itself failed; the log says where."
    time.sleep(0.1)
    assert len(heard) == 1


def test_the_options_hold_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNOBIZ_SLIPPAGE", "0.002")
    env = {"LUNOBIZ_READ_KEY_ID": "abcdefghijklm", "LUNOBIZ_READ_KEY_SECRET": SECRET, "LUNOBIZ_PAIRS": "XBTZAR"}
    session = lb.Session(lb.Mode.PAPER, lb.parse_settings(env), tmp_path, env, 0, "", 0.0)
    options = lb.form_options(session, lambda values: "")
    assert options.values["PAIRS"] == "XBTZAR" and options.fixed == {"SLIPPAGE"}
    assert options.secrets == {"READ_KEY_ID", "READ_KEY_SECRET"}
    assert SECRET not in repr(options)
