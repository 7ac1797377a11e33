"""WIDGETS: tables, strip and colours in a real window."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import lunobiz as lb
import screen as sc
from screen import a_screen  # noqa: F401  (a fixture, `screen`)

if TYPE_CHECKING:
    import ttkbootstrap as ttk

COLUMNS = (
    lb.Column("Market", "XBT/ZAR", stretches=True),
    lb.Column("Price", "1,248", is_number=True),
    lb.Column("Side", "SELL"),
)


def rows(*keys: str, price: str = "1") -> tuple[lb.Row, ...]:
    return tuple(lb.Row(key, (f"{key}/ZAR", price, "BUY"), "up") for key in keys)


@pytest.fixture
def look(screen: None) -> Iterator[lb.Look]:
    root = lb.open_root("test", is_dark=True)
    root.deiconify()
    root.geometry("600x300")
    yield lb.Look(root)
    root.destroy()


@pytest.fixture
def table(look: lb.Look) -> lb.Table:
    made = lb.Table(look.root, look, "Things", COLUMNS, "Nothing yet.\nIt will come.")
    made.frame.pack(fill="both", expand=True)
    sc.settle(look.root, 0.1)
    return made


def shown(table: lb.Table) -> list[tuple[str, ...]]:
    """The cells as the widget holds them, without the gap in front of text that follows digits."""
    return [tuple(str(v).strip() for v in table.tree.item(key, "values")) for key in table.tree.get_children()]


def test_importing_the_program_loads_neither_the_toolkit_nor_the_network_library() -> None:
    heavy = ("tkinter", "ttkbootstrap", "PIL", "requests", "urllib3", "pandas", "plyer")
    code = f"import sys, lunobiz; print([m for m in {heavy} if m in sys.modules])"
    folder = Path(str(lb.__file__)).parent
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert answer.stdout.strip() == "[]"


# ---- colours and fonts ------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("is_dark", "ground"), [(True, "#161b22"), (False, "#f7f8fa")])
def test_every_tone_can_be_read(is_dark: bool, ground: str) -> None:
    palette = lb.palette_of(is_dark)
    for tone in ("up", "down", "muted", "warn", "error"):
        assert contrast(palette.tones[tone], ground) >= 4.5, tone
        assert contrast(palette.tones[tone], palette.band) >= 4.5, tone
    pairs = [palette.modes[m] for m in ("paper", "live", "demo", "test")]
    pairs += [palette.banners[b] for b in ("error", "warning", "info")]
    assert all(contrast(*pair) >= 4.5 for pair in pairs)
    assert len({palette.modes[m] for m in ("paper", "live", "demo", "test")}) == 4


def test_a_font_whose_digits_differ_is_refused() -> None:
    assert lb.has_even_digits(lambda text: 8 * len(text))
    assert not lb.has_even_digits(lambda text: 8 * len(text) - text.count("1"))


def test_the_chosen_font_has_even_digits(look: lb.Look) -> None:
    for font in (look.body, look.bold, look.small, *look.values):
        assert lb.has_even_digits(font.measure)


def test_light_and_dark_recolour_everything(look: lb.Look, table: lb.Table) -> None:
    def colours() -> tuple[str, str, str]:
        tag, field = str(table.tree.tag_configure("up", "foreground")), str(look.field)
        return tag, field, str(look.root.style.lookup("Treeview", "rowheight"))

    dark = colours()
    look.toggle()
    assert not look.is_dark
    assert colours()[0] == lb.palette_of(is_dark=False).tones["up"] != dark[0]
    assert colours()[1] != dark[1]
    assert colours()[2] == dark[2]
    look.toggle()
    assert colours() == dark


# ---- tables -----------------------------------------------------------------


def test_an_empty_table_says_what_will_fill_it(table: lb.Table) -> None:
    assert table._empty.winfo_ismapped()
    assert table._empty.cget("text") == "Nothing yet.\nIt will come."
    table.show(rows("A"))
    table.tree.update()
    assert not table._empty.winfo_ismapped()
    table.show(())
    table.tree.update()
    assert table._empty.winfo_ismapped()


def test_digits_are_right_aligned_under_right_aligned_headings(table: lb.Table) -> None:
    assert str(table.tree.column("1", "anchor")) == str(table.tree.heading("1", "anchor")) == "e"
    assert str(table.tree.column("0", "anchor")) == str(table.tree.heading("0", "anchor")) == "w"


def test_selection_focus_and_scroll_survive_an_update(table: lb.Table) -> None:
    keys = [f"K{n:02d}" for n in range(60)]
    table.show(rows(*keys))
    table.tree.update()
    table.tree.selection_set("K30", "K31")
    table.tree.focus("K31")
    table.tree.yview_moveto(0.5)
    table.tree.update()
    top = table.tree.identify_row(40)
    table.show((*rows("N1", "N2", "N3"), *rows(*keys, price="2")))
    table.tree.update()
    assert table.tree.selection() == ("K30", "K31")
    assert table.tree.focus() == "K31"
    assert abs(keys.index(table.tree.identify_row(40)) - keys.index(top)) <= 1
    assert [r[:2] for r in shown(table)[:4]] == [("N1/ZAR", "1"), ("N2/ZAR", "1"), ("N3/ZAR", "1"), ("K00/ZAR", "2")]


def test_a_following_table_stays_at_the_newest(table: lb.Table) -> None:
    table.keeps_newest = True
    table.show(rows(*(f"K{n}" for n in range(60))))
    table.tree.yview_moveto(0.5)
    table.show(rows("N1", *(f"K{n}" for n in range(60))))
    table.tree.update()
    assert table.tree.yview()[0] == 0.0


def test_what_did_not_change_is_not_touched(table: lb.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    table.show(rows("A", "B", "C"))
    calls: list[str] = []

    def watched(name: str) -> Callable[..., object]:
        real = getattr(table.tree, name)

        def call(*given: object, **options: object) -> object:
            calls.append(name)
            return real(*given, **options)

        return call

    for name in ("insert", "item", "set", "move", "delete"):
        monkeypatch.setattr(table.tree, name, watched(name))
    table.show(rows("A", "B", "C"))
    assert calls == []
    table.show((*rows("A"), *rows("B", price="2"), *rows("C")))
    assert calls == ["set"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from("ABCDEFGH"), unique=True, max_size=8), min_size=1, max_size=6))
def test_a_table_shows_exactly_the_rows_it_was_given_last(table: lb.Table, steps: list[list[str]]) -> None:
    for number, keys in enumerate(steps):
        table.show(rows(*keys, price=str(number)))
        assert [r[:2] for r in shown(table)] == [(f"{k}/ZAR", str(number)) for k in keys]
        assert table.keys == tuple(keys) == table.tree.get_children()
        assert table.count.cget("text") == str(len(keys))


@pytest.mark.parametrize("text", ["{", "}", "a b", "\\", '"', "$x", "[exit]", "", "-1", "007", "{a} b", "▲ ö €"])
def test_cells_are_shown_letter_by_letter(table: lb.Table, text: str) -> None:
    table.show((lb.Row("key {odd} [name]", ("XBT", text, text)),))
    assert [str(v) for v in table.tree.item("key {odd} [name]", "values")][1] == text
    table.tree.selection_set(table.tree.get_children())
    assert table.selected_text() == f"XBT\t{text}\t{text}"


def test_a_number_is_never_cut(table: lb.Table, look: lb.Look) -> None:
    price = "1,234,567,890.12345678"
    table.show(rows("A", price=price))
    table.tree.update()
    assert int(table.tree.column("1", "width")) >= look.body.measure(price) + look.px(8)
    assert int(table.tree.column("1", "minwidth")) >= look.body.measure(price)


def test_a_long_sentence_ends_in_an_ellipsis_and_is_copied_whole(table: lb.Table, look: lb.Look) -> None:
    sentence = "Close 24.08 above the channel high " * 10
    table.show((lb.Row("A", (sentence, "1", "BUY")),))
    table.tree.update()
    text = str(table.tree.set("A", "0"))
    assert text.endswith("…") and sentence.startswith(text[:-1])
    assert look.body.measure(text) <= int(table.tree.column("0", "width"))
    table.tree.selection_set("A")
    assert table.selected_text() == f"{sentence}\t1\tBUY"
    look.root.geometry("1500x300")
    sc.settle(look.root, 0.2)
    assert len(str(table.tree.set("A", "0"))) > len(text)


def test_a_narrow_table_leaves_out_the_least_column_and_says_so(look: lb.Look) -> None:
    ranked = (COLUMNS[0], replace(COLUMNS[1], rank=2), replace(COLUMNS[2], rank=1))
    table = lb.Table(look.root, look, "Things", ranked, "")
    table.frame.pack(fill="both", expand=True)
    table.show(rows("A", price="1,234,567"))
    look.root.geometry(f"{look.px(600)}x300")
    sc.settle(look.root, 0.2)
    assert list(table.tree.cget("displaycolumns")) == ["0", "1", "2"]
    assert table._absent.cget("text") == ""
    look.root.minsize(1, 1)
    look.root.geometry(f"{look.px(190)}x300")
    sc.settle(look.root, 0.2)
    assert list(table.tree.cget("displaycolumns")) == ["0", "1"]
    assert table._absent.cget("text") == "no room for Side"
    look.root.geometry(f"{look.px(600)}x300")
    sc.settle(look.root, 0.2)
    assert list(table.tree.cget("displaycolumns")) == ["0", "1", "2"]


def test_control_c_copies_rows_for_a_sheet(table: lb.Table) -> None:
    table.show(rows("A", "B", "C"))
    table.tree.selection_set("C", "A")
    table.tree.focus_force()
    table.tree.update()
    table.tree.event_generate("<Control-c>")
    assert table.tree.clipboard_get() == "A/ZAR\t1\tBUY\nC/ZAR\t1\tBUY"


def test_nothing_selected_leaves_the_clipboard_alone(table: lb.Table) -> None:
    lb.copy_text(table.tree, "mine")
    table.show(rows("A"))
    table.tree.event_generate("<Control-c>")
    lb.copy_text(table.tree, table.selected_text())
    assert table.tree.clipboard_get() == "mine"


def test_return_opens_the_whole_row(table: lb.Table) -> None:
    opened: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    table.on_open = lambda headings, cells: opened.append((headings, cells))
    table.show(rows("A"))
    table.tree.focus("A")
    table.tree.focus_force()
    table.tree.update()
    table.tree.event_generate("<Return>")
    assert opened == [(("Market", "Price", "Side"), ("A/ZAR", "1", "BUY"))]


# ---- status strip -----------------------------------------------------------


@pytest.fixture
def strip(look: lb.Look) -> lb.StatusStrip:
    made = lb.StatusStrip(look.root, look, lambda: None)
    made.bar.pack(fill="x")
    made.frame.pack(fill="x")
    made.show_clock("14:00:09 SAST", "12:00:09 UTC")
    return made


def is_whole(root: ttk.App, strip: lb.StatusStrip) -> bool:
    """True when every cell of the strip lies left of the clock, which lies left of the kill switch."""
    parts = [*(cell.frame for cell in strip._cells.values()), strip._clock.master, strip.kill]
    edges = [(p.winfo_rootx(), p.winfo_rootx() + p.winfo_width()) for p in parts]
    is_ordered = all(left[1] <= right[0] for left, right in pairwise(edges))
    is_uncut = all(p.winfo_reqwidth() <= p.winfo_width() for p in parts)
    return is_ordered and is_uncut and edges[-1][1] <= root.winfo_rootx() + root.winfo_width()


@pytest.mark.parametrize("width", [1024, 1100, 1280, 1440, 1900])
@pytest.mark.parametrize("mode", [lb.Mode.PAPER, lb.Mode.DEMO])
def test_a_narrow_strip_loses_no_cell(look: lb.Look, strip: lb.StatusStrip, width: int, mode: lb.Mode) -> None:
    halted = sc.desk(lb.Cause(lb.CauseKind.DAILY_CAP, sc.NOON, sc.NOON + 12 * lb.HOUR_MS, ""))
    look.root.geometry(f"{look.px(width)}x300")
    rich = replace(sc.desk(), cash=12_345_678.90, day_start_equity=11_000_000.0)
    for now in (sc.desk(), halted, rich):
        strip.show(sc.news(now, mode=mode, progress="day 112 of 210").status)
        sc.settle(look.root, 0.2)
        assert is_whole(look.root, strip), (width, strip._level)
        assert strip.kill.cget("text") == "KILL SWITCH"


def test_a_wide_strip_is_roomy_again(look: lb.Look, strip: lb.StatusStrip) -> None:
    strip.show(sc.news().status)
    levels = []
    for width in (1024, 1600):
        look.root.geometry(f"{look.px(width)}x300")
        sc.settle(look.root, 0.2)
        levels.append(strip._level)
    assert levels[0] > levels[1] == 0


def test_the_kill_switch_becomes_rearm(strip: lb.StatusStrip) -> None:
    strip.show(sc.news(sc.desk(lb.Cause(lb.CauseKind.KILL, sc.NOON, 0, ""))).status)
    assert strip.kill.cget("text") == "Re-arm…"
    strip.show(sc.news().status)
    assert strip.kill.cget("text") == "KILL SWITCH"


def test_old_figures_are_muted_and_come_back(look: lb.Look, strip: lb.StatusStrip) -> None:
    strip.show(sc.news().status)
    value, note = strip._cells["day"]._value, strip._cells["day"]._note
    assert str(value.cget("foreground")) == look.colour("up")
    strip.fade("stale 38 s")
    assert str(value.cget("foreground")) == look.palette.muted
    assert note.cget("text") == "stale 38 s"
    strip.unfade()
    assert str(value.cget("foreground")) == look.colour("up")
    assert "wished" in note.cget("text") or " of " in note.cget("text")


@pytest.mark.parametrize("tone", ["paper", "demo", "live", "test"])
def test_pill_and_bar_have_the_colour_of_the_mode(look: lb.Look, strip: lb.StatusStrip, tone: str) -> None:
    strip.show(replace(sc.news().status, mode_tone=tone))
    background, text = look.palette.modes[tone]
    assert str(strip.bar.cget("background")) == str(strip._pill.cget("background")) == background
    assert str(strip._pill.cget("foreground")) == text


# ---- the icon ---------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 20, 24, 32, 48, 64, 256])
def test_the_icon_is_drawn_sharp_at_every_size(size: int) -> None:
    """Every opaque pixel has one of three colours: no edge of a candle is smeared over two pixels."""
    image = Image.open(io.BytesIO(lb.icon_png(size)))
    assert (image.size, image.mode) == ((size, size), "RGBA")
    colours = {c[:3] for _, c in image.getcolors(size * size) or [] if isinstance(c, tuple) and c[3] == 255}
    assert colours == {lb.ICON_GROUND, *(candle[0] for candle in lb.ICON_CANDLES)}
    corner, middle = image.getpixel((0, 0)), image.getpixel((size // 2, size // 2))
    assert isinstance(corner, tuple) and corner[3] < 128
    assert middle == (*lb.ICON_CANDLES[1][0], 255)


def test_a_number_is_never_cut_even_where_its_column_stretches(look: lb.Look) -> None:
    """Spare room is shared out evenly; without any the column is as wide as its longest number."""
    columns = (lb.Column("Coin", "XBT"), lb.Column("Bot's", "1", True, stretches=True),
               lb.Column("Yours", "1", True, stretches=True))
    made = lb.Table(look.root, look, "Coins", columns, "")
    made.frame.pack(fill="both", expand=True)
    number = "-123,456,789,012.123456789012345678"
    for width in (250, 900):
        look.root.geometry(f"{width}x300")
        made.show((lb.Row("a", ("XBT", number, "7")),))
        sc.settle(look.root, 0.1)
        assert made.tree.set("a", "1") == number
        assert int(made.tree.column("1", "width")) >= look.body.measure(number)
    extra = [int(made.tree.column(str(n), "width")) - made._widths[n] for n in (1, 2)]
    assert abs(extra[0] - extra[1]) <= 2 and extra[0] > 0


def test_only_the_cells_that_differ_are_written(look: lb.Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 200 rows in each table the window would otherwise be late while it measures and writes them all."""
    columns = (lb.Column("Market", "XBT/ZAR"), lb.Column("Last", "1", True), lb.Column("Why", "x", stretches=True))
    made = lb.Table(look.root, look, "Things", columns, "")
    rows = [lb.Row(str(n), ("XBT/ZAR", "1,000", "a reason")) for n in range(200)]
    made.show(rows)
    asked: list[str] = []
    plain, measure = made.tree.set, look.body.measure
    monkeypatch.setattr(made.tree, "set", lambda key, *cell: asked.append(f"{key}:{cell[0]}") or plain(key, *cell))
    monkeypatch.setattr(look.body, "measure", lambda text: asked.append(text) or measure(text))
    made.show([lb.Row("7", ("XBT/ZAR", "2,000", "a reason")) if r.key == "7" else r for r in rows])
    assert asked == ["2,000", "7:1"]
    assert plain("7", "1") == "2,000"
    made.show([lb.Row(r.key, made._shown[r.key][0].cells, "up") for r in rows])
    assert asked == ["2,000", "7:1"] and "up" in made.tree.item("7", "tags")


def test_larger_letters_leave_room_for_the_numbers_that_are_there(look: lb.Look) -> None:
    made = lb.Table(look.root, look, "Things", (lb.Column("Last", "1", True), lb.Column("", "", stretches=True)), "")
    made.show((lb.Row("a", ("1,234,567,890", "")),))
    look.dress(14, is_classic=False)
    assert made._widths[0] > look.body.measure("1,234,567,890")
