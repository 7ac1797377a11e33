"""ROWS: what the window says, as text worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lunobiz as lb
import screen as sc

NOW = sc.NOON  # 12:00 UTC, 14:00 SAST
HOUR, DAY = lb.HOUR_MS, lb.DAY_MS


# ---- numbers ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "counter", "text"),
    [
        (102_418.55, "ZAR", "R102,418.55"),
        (-97.96, "ZAR", "-R97.96"),
        (0.0, "ZAR", "R0.00"),
        (-0.001, "ZAR", "R0.00"),  # never "-R0.00"
        (1_234.5, "USDT", "1,234.50 USDT"),
        (0.01234567, "XBT", "0.01234567 XBT"),
        (None, "ZAR", "—"),
        (math.nan, "ZAR", "—"),
        (math.inf, "USDT", "—"),
    ],
)
def test_money(value: float | None, counter: str, text: str) -> None:
    assert lb.money_text(value, counter) == text


@pytest.mark.parametrize(
    ("value", "counter", "text"),
    [
        (1_245.1, "ZAR", "+R1,245.10"),
        (-2_310.4, "ZAR", "-R2,310.40"),
        (0.0, "ZAR", "R0.00"),
        (0.004, "ZAR", "R0.00"),  # rounds to nothing: no sign
        (12.0, "USDC", "+12.00 USDC"),
        (None, "ZAR", "—"),
    ],
)
def test_gains_are_always_signed(value: float | None, counter: str, text: str) -> None:
    assert lb.signed_money(value, counter) == text


def test_money_left_is_rounded_down() -> None:
    assert lb.whole_money(3_072.99, "ZAR") == "R3,072"
    assert lb.whole_money(-0.5, "ZAR") == "-R1"
    assert lb.whole_money(None, "ZAR") == "—"


@pytest.mark.parametrize(
    ("fraction", "text", "tone"),
    [
        (0.0123, "+1.23 %", "up"),
        (-0.0226, "-2.26 %", "down"),
        (0.0, "0.00 %", ""),
        (0.00004, "0.00 %", ""),  # inside the dead band of 0.005 %
        (-0.00004, "0.00 %", ""),
        (0.00006, "+0.01 %", "up"),
        (None, "—", ""),
    ],
)
def test_changes_have_a_dead_band(fraction: float | None, text: str, tone: str) -> None:
    assert (lb.signed_percent(fraction), lb.tone_of(fraction)) == (text, tone)


def test_a_gain_is_told_by_glyph_and_sign_as_well_as_colour() -> None:
    assert lb.with_glyph("+182.44", "up") == "▲ +182.44"
    assert lb.with_glyph("-97.96", "down") == "▼ -97.96"
    assert lb.with_glyph("0.00", "") == "0.00"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (38_203_000.0, "38.2 M"),
        (412_000.0, "0.4 M"),
        (99_999.0, "100 k"),
        (41_200.0, "41 k"),
        (950.0, "950"),
        (2.5e9, "2.5 B"),
        (0.0, "0"),
        (None, "—"),
    ],
)
def test_big_volumes(value: float | None, text: str) -> None:
    assert lb.big_text(value) == text


@pytest.mark.parametrize(
    ("span_s", "text"),
    [(0, "0s"), (12, "12s"), (59.9, "59s"), (2_280, "38m"), (8_040, "2h 14m"), (18_120, "5h 02m"), (273_600, "3d 04h")],
)
def test_ages(span_s: float, text: str) -> None:
    assert lb.age_text(span_s * 1000) == text


def test_what_lies_ahead_has_no_negative_age() -> None:
    assert lb.age_text(-5_000) == "0s"
    assert lb.age_text(None) == "—"


@pytest.mark.parametrize(
    ("span_ms", "text"), [(41_000, "00:41"), (40_001, "00:41"), (-3, "00:00"), (3_900_000, "1:05:00")]
)
def test_countdowns(span_ms: float, text: str) -> None:
    assert lb.countdown_text(span_ms) == text


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12), st.integers(0, 8))
def test_a_shown_number_reads_back_as_what_it_was(value: float, scale: int) -> None:
    text = lb.number_text(value, scale)
    assert math.isclose(float(text.replace(",", "")), value, abs_tol=0.5000001 * 10**-scale)
    assert text != "-0" and not (text.startswith("-") and float(text.replace(",", "")) == 0)
    assert len(text.partition(".")[2]) == scale


@given(st.floats(min_value=-1e9, max_value=1e9))
def test_the_sign_is_shown_exactly_when_something_is_left_after_rounding(value: float) -> None:
    text = lb.signed_money(value, "ZAR")
    assert text.startswith("+R") == (value > 0 and f"{value:.2f}" != "0.00")
    assert text.startswith("-R") == (value < 0 and f"{value:.2f}" != "-0.00")


# ---- time -------------------------------------------------------------------


def test_windows_long_zone_name_becomes_short() -> None:
    assert lb.zone_of(7200, "South Africa Standard Time") == lb.Zone(7200, "SAST")
    assert lb.zone_of(7200, "E. Europe Standard Time") == lb.Zone(7200, "UTC+02:00")
    assert lb.zone_of(-12_600, "Newfoundland Standard Time") == lb.Zone(-12_600, "UTC-03:30")
    assert lb.zone_of(0, "Greenwich Standard Time") == lb.Zone(0, "UTC")


@pytest.mark.parametrize(
    ("back_ms", "stamp", "when"),
    [
        (0, "14:00:00", "14:00 SAST"),
        (14 * HOUR, "00:00:00", "00:00 SAST"),  # midnight in Johannesburg, 22:00 UTC of the day before
        (14 * HOUR + 1000, "21 Nov 23:59", "21 Nov 23:59 SAST"),
        (-12 * HOUR, "23 Nov 02:00", "23 Nov 02:00 SAST"),
        (20 * DAY, " 2 Nov 14:00", "2 Nov 14:00 SAST"),
    ],
)
def test_times_of_other_days_name_the_day(back_ms: int, stamp: str, when: str) -> None:
    assert lb.stamp_text(NOW - back_ms, NOW, sc.SAST) == stamp
    assert lb.when_text(NOW - back_ms, NOW, sc.SAST) == when


def test_a_stepped_market_shows_the_day_always() -> None:
    assert lb.day_and_time(NOW, sc.SAST) == "22 Nov 14:00 SAST"
    assert lb.clock_text(NOW + 32_000, lb.Zone()) == "12:00:32"
    assert lb.day_in({"on": -DAY}, "on") == "1969-12-31"  # the machine's own conversion fails before 1970 on Windows


# ---- status strip -----------------------------------------------------------


def status(now: lb.Desk | None = None, **changes: object) -> lb.Status:
    shown = sc.desk() if now is None else now
    return lb.status_row(shown, sc.report(shown), lb.Settings(), sc.health(**changes), sc.SAST)


def flat(worth: float, *causes: lb.Cause, start: float = 100_000.0) -> lb.Desk:
    """A desk without positions that is worth so much and began its day at `start`."""
    return lb.Desk(worth, causes=causes, day_start_equity=start)


def test_money_on_the_strip() -> None:
    # 63,298.10 cash + 45,804 x 0.31 x 0.994 + 1,262,905 x 0.0125 x 0.994 + 24.11 x 410 x 0.994
    #   = 63,298.10 + 14,114.04456 + 15,691.594625 + 9,825.7894 = 102,929.52859
    # exposure: 14,199.24 + 15,786.3125 + 9,885.10 = 39,870.6525
    shown = status()
    assert shown.equity == lb.Reading("EQUITY", "R102,929.53", "day start R101,173.45", "", "start R101,173")
    assert shown.cash == lb.Reading("CASH", "R63,298.10", "61.5 % of equity", "", "61.5 %")
    assert (shown.exposure.value, shown.exposure.note) == ("R39,870.65", "38.7 % of 60 %")


@pytest.mark.parametrize(
    ("worth", "value", "note", "tone"),
    [
        (100_420.0, "▲ +R420.00", "+0.42 % of 3.00 % wished", "up"),
        (97_690.0, "▼ -R2,310.00", "-2.31 % of 3.00 % wished", "down"),
        (100_000.0, "R0.00", "0.00 % of 3.00 % wished", ""),
        (100_003.0, "+R3.00", "0.00 % of 3.00 % wished", ""),
    ],
)
def test_the_days_result_stands_beside_the_wish(worth: float, value: str, note: str, tone: str) -> None:
    day = status(flat(worth)).day
    assert (day.value, day.note, day.tone) == (value, note, tone)


@pytest.mark.parametrize(
    ("worth", "used", "note", "tone"),
    [
        (100_000.0, 0.0, "R3,000 left before halt", ""),
        (101_000.0, 0.0, "R4,000 left before halt", ""),  # gains of the day may be lost as well
        (98_800.0, 0.4, "R1,800 left before halt", ""),
        (97_750.0, 0.75, "R750 left before halt", "warn"),
        (97_000.0, 1.0, "cap reached", "error"),
        (96_500.0, 1.0, "cap reached", "error"),
    ],
)
def test_the_cap_says_what_may_still_be_lost(worth: float, used: float, note: str, tone: str) -> None:
    shown = status(flat(worth))
    assert shown.cap_used == pytest.approx(used)
    assert (shown.cap.caption, shown.cap.note, shown.cap.tone) == ("DAILY CAP -3.00 %", note, tone)


def test_unknown_money_is_not_zero() -> None:
    shown = lb.status_row(lb.Desk(100_000.0), None, lb.Settings(), sc.health(), sc.SAST)
    assert [shown.equity.value, shown.exposure.value, shown.day.value, shown.cap.value] == ["—"] * 4
    assert shown.equity.note == "no prices yet"
    assert shown.cash.value == "R100,000.00"


def test_another_currency_goes_behind_the_amount() -> None:
    settings = replace(lb.Settings(), schedule=lb.Schedule(counter="USDT", pairs=("XBTUSDT",)))
    shown = lb.status_row(flat(1_010.0, start=1_000.0), sc.report(flat(1_010.0)), settings, sc.health(), sc.SAST)
    assert shown.equity.value == "1,010.00 USDT"
    assert shown.day.value == "▲ +10.00 USDT"
    assert shown.cap.note == "40 USDT left before halt"
    assert shown.counter == "USDT"


def cause(kind: lb.CauseKind, until_ms: int = 0, why: str = "") -> lb.Cause:
    return lb.Cause(kind, NOW - 600_000, until_ms, why)


@pytest.mark.parametrize(
    ("kind", "until_ms", "value", "note", "tone"),
    [
        (lb.CauseKind.BALANCE_DRIFT, 0, "REDUCING", "exits only", "warn"),
        (lb.CauseKind.DAILY_CAP, NOW + 12 * HOUR, "COOLDOWN", "until 23 Nov 02:00 SAST", "warn"),
        (lb.CauseKind.DAILY_CAP, 0, "COOLDOWN", "exits only", "warn"),
        (lb.CauseKind.NO_NETWORK, 0, "UNCERTAIN", "no orders", "warn"),
        (lb.CauseKind.WEEKLY_CAP, 0, "HALTED", "since 13:50 SAST", "error"),
        (lb.CauseKind.KILL, 0, "KILLED", "since 13:50 SAST", "error"),
    ],
)
def test_the_state_says_what_it_allows_and_until_when(
    kind: lb.CauseKind, until_ms: int, value: str, note: str, tone: str
) -> None:
    state = status(sc.desk(cause(kind, until_ms))).state
    assert (state.value, state.note, state.tone) == (value, note, tone)


def test_the_most_severe_cause_is_the_state() -> None:
    shown = status(sc.desk(cause(lb.CauseKind.DAILY_CAP, NOW + HOUR), cause(lb.CauseKind.KILL)))
    assert shown.state.value == "KILLED"
    assert shown.is_killed


def test_ready_says_whether_the_bot_runs() -> None:
    assert status().state.note == "all orders"
    assert (status(is_running=False).state.value, status(is_running=False).state.note) == ("STOPPED", "F5 starts it")
    assert status().state.value == "READY"
    assert (status().run.value, status(is_running=False).run.value) == ("● Running", "■ Stopped")


@pytest.mark.parametrize(
    ("changes", "value", "note", "tone"),
    [
        ({}, "● OK", "142 ms · 2s ago", "up"),
        ({"mode": lb.Mode.LIVE}, "● OK", "prices and orders, 142 ms · 2s ago", "up"),
        ({"mode": lb.Mode.LIVE, "order_trouble": "HTTP 503"}, "✖ Orders", "prices come, orders do not · 2s ago",
         "error"),
        ({"last_ok_ms": None}, "○ Waiting", "no answer yet", "muted"),
        ({"last_ok_ms": None, "has_network": False}, "✖ Down", "no answer", "error"),
        ({"has_network": False, "failures": 4, "last_ok_ms": NOW - 40_000}, "✖ Down", "4 failures · 47s ago", "error"),
        ({"failures": 3}, "▲ Retrying", "3 failed · 2s ago", "warn"),
        ({"latency_ms": 2_410.0}, "▲ Slow", "2,410 ms · 2s ago", "warn"),
        ({"skew_ms": -3_200.0}, "▲ Clock off", "by -3.2 s · 2s ago", "warn"),
        ({"calls_left": 12}, "▲ Busy", "12 calls left · 2s ago", "warn"),
        ({"last_ok_ms": NOW - 120_000}, "▲ Stale", "no fresh answer · 2m ago", "warn"),
        ({"last_ok_ms": NOW - 120_000, "is_running": False}, "● OK", "142 ms · 2m ago", "up"),
    ],
)
def test_api_health(changes: dict[str, object], value: str, note: str, tone: str) -> None:
    api = status(None, **changes).api
    assert (api.caption, api.value, api.note, api.tone) == ("LUNO API", value, note, tone)


@pytest.mark.parametrize(
    ("changes", "mode", "tone"),
    [
        ({}, "PAPER", "paper"),
        ({"mode": lb.Mode.DEMO}, "DEMO", "demo"),
        ({"mode": lb.Mode.REPLAY}, "REPLAY", "demo"),
        ({"mode": lb.Mode.LIVE}, "LIVE", "live"),
        ({"is_test_exchange": True}, "TEST EXCHANGE", "test"),
    ],
)
def test_the_mode_is_told_in_words_and_colour(changes: dict[str, object], mode: str, tone: str) -> None:
    shown = status(None, **changes)
    assert (shown.mode, shown.mode_tone) == (mode, tone)


def test_a_demo_never_looks_like_the_exchange() -> None:
    shown = status(mode=lb.Mode.DEMO, progress="day 12 of 210")
    assert shown.api == lb.Reading("MARKET DATA", "● Generated", "day 12 of 210")
    assert status(mode=lb.Mode.REPLAY).api.value == "● Recorded"
    assert shown.is_market_time
    assert "No network used" in lb.footer_text(sc.health(mode=lb.Mode.DEMO), sc.SAST)
    assert "calls left" not in lb.footer_text(sc.health(mode=lb.Mode.DEMO), sc.SAST)
    assert "no notices in a demo" in lb.footer_text(sc.health(mode=lb.Mode.DEMO), sc.SAST)


def test_the_footer() -> None:
    assert lb.footer_text(sc.health(), sc.SAST) == (
        "● Connected  ·  Next cycle 00:41  ·  Last candle 14:00 SAST  ·  Clock OK  ·  DB 12.4 MB  ·  Log OK  ·  "
        "Telegram OK  ·  Parameters: first set, NOT CHOSEN  ·  231 calls left"
    )
    unknown = sc.health(has_network=False, next_cycle_ms=None, last_candle_ms=None, db_mb=None, log_ok=False, label="",
                        notice_state="", calls_left=None, last_ok_ms=0)  # fmt: skip
    assert lb.footer_text(unknown, sc.SAST) == "✖ No network  ·  Last candle —  ·  DB —  ·  ✖ Log cannot be written"
    for skew_ms, says in ((-1_340.0, "Clock 1.3 s off"), (60.0, "Clock 0.1 s off"), (0.0, "Clock OK")):
        assert says in lb.footer_text(sc.health(skew_ms=skew_ms), sc.SAST).split(lb.PART)
    assert "Clock" not in lb.footer_text(sc.health(mode=lb.Mode.DEMO), sc.SAST)  # no exchange was asked


# ---- banners ----------------------------------------------------------------


def banners(now: lb.Desk, views: tuple[lb.MarketView, ...] = (), **changes: object) -> tuple[lb.Banner, ...]:
    return lb.banner_rows(now, views, lb.Settings(), sc.health(**changes), sc.SAST)


@pytest.mark.parametrize(
    ("found", "level", "action", "text"),
    [
        (
            cause(lb.CauseKind.DAILY_CAP, NOW + 12 * HOUR, "lost 3.02 %, the cap is 3.00 %"), "warning", "",
            "COOLDOWN. Daily loss cap: lost 3.02 %, the cap is 3.00 %. No new entries; open positions are being "
            "closed. It ends 23 Nov 02:00 SAST.",
        ),
        (
            cause(lb.CauseKind.NO_NETWORK, 0, "no answer for 45 s"), "warning", "",
            "UNCERTAIN. No network: no answer for 45 s. No orders are sent; stops that rest stay. It ends by itself "
            "after a clean check of the account.",
        ),
        (
            cause(lb.CauseKind.WEEKLY_CAP, 0, "weekly loss cap: lost 6.10 %"), "error", "resolve",
            "HALTED. Weekly loss cap: lost 6.10 %. No new entries; exits and stops still run. It ends when you "
            "resolve it.",
        ),
        (
            cause(lb.CauseKind.KEY_REFUSED), "error", "resolve",
            "HALTED. Key refused. No orders at all; stops that rest stay. It ends when you resolve it.",
        ),
        (
            cause(lb.CauseKind.KILL), "error", "rearm",
            "KILLED. Kill switch. No new orders; entries are cancelled, stops stay. Remove the kill file, then re-arm.",
        ),
    ],
    ids=lambda v: v.kind.name if isinstance(v, lb.Cause) else None,
)  # fmt: skip
def test_a_halt_says_what_stops_until_when_and_what_runs_on(
    found: lb.Cause, level: str, action: str, text: str
) -> None:
    assert banners(sc.desk(found)) == (lb.Banner(level, text, action, found.kind.name),)


def test_every_cause_has_a_sentence_that_names_its_state() -> None:
    for kind in lb.CauseKind:
        text = lb.cause_sentence(cause(kind), lb.Settings(), NOW, sc.SAST)
        assert text.startswith(f"{kind.state.name}. ")
        assert "No " in text and text.endswith(".") and ".." not in text


def test_held_positions_are_not_said_to_be_closed_when_the_owner_chose_to_hold() -> None:
    settings = replace(lb.Settings(), limits=lb.RiskLimits(daily_cap_action="hold"))
    text = lb.cause_sentence(cause(lb.CauseKind.DAILY_CAP, NOW + HOUR), settings, NOW, sc.SAST)
    assert "exits and stops still run" in text and "closed" not in text


def test_banners_do_not_contradict_each_other_on_what_still_runs() -> None:
    week, key = cause(lb.CauseKind.WEEKLY_CAP), cause(lb.CauseKind.KEY_REFUSED)
    alone, (first, second) = banners(sc.desk(week)), banners(sc.desk(week, key))
    assert "No new entries; exits and stops still run." in alone[0].text
    assert first.key == "KEY_REFUSED" and "No orders at all; stops that rest stay." in first.text
    assert second.key == "WEEKLY_CAP" and "still run" not in second.text and second.text.startswith("HALTED. ")
    day, unknown = cause(lb.CauseKind.DAILY_CAP, NOW + HOUR), cause(lb.CauseKind.NO_NETWORK)
    assert [b.key for b in banners(sc.desk(day, unknown))] == ["NO_NETWORK", "DAILY_CAP"]
    assert "closed" not in banners(sc.desk(day, unknown))[1].text
    assert all("still run" in b.text or "closed" in b.text for b in banners(sc.desk(day, week)))


def test_what_the_banners_say_still_runs_is_what_the_risk_checks_allow() -> None:
    for one in lb.CauseKind:
        for other in lb.CauseKind:
            held = sc.desk(cause(one), cause(other)) if one is not other else sc.desk(cause(one))
            says_exits = any("still run" in b.text or "being closed" in b.text for b in banners(held))
            assert says_exits == lb.may_reduce(held), (one, other)


def test_without_a_key_paper_says_what_it_needs() -> None:
    assert [b.key for b in banners(sc.desk(), has_key=False)] == ["no key"]
    assert "enter one in Settings" in banners(sc.desk(), has_key=False)[0].text
    assert banners(sc.desk(), has_key=False, mode=lb.Mode.DEMO) == ()


def test_a_line_of_the_log_is_written_as_the_window_writes() -> None:
    assert lb.spoken("sell 171 XRPZAR at 39.35, round trip -2.96%", "ZAR") == (
        "Sell 171 XRP/ZAR at 39.35, round trip -2.96 %")
    assert lb.spoken("The day ended at -0.31 % in ETHUSDT", "USDT") == "The day ended at -0.31 % in ETH/USDT"
    assert lb.spoken("ZAR and LUNOBIZ_PAIRS stay; 1INCHZAR too", "ZAR") == (
        "ZAR and LUNOBIZ_PAIRS stay; 1INCH/ZAR too")
    assert lb.spoken("", "ZAR") == ""


def test_an_evaluation_says_what_it_is_busy_with() -> None:
    assert lb.gates_phase(99, 1_000) == "Walking forward over unseen days"
    assert lb.gates_phase(100, 1_000) == "Comparing with shuffled markets (gate G2)"


def test_the_most_severe_banner_is_on_top() -> None:
    shown = banners(sc.desk(cause(lb.CauseKind.NO_NETWORK), cause(lb.CauseKind.KILL)), log_ok=False,
                    progress="Loading XBTZAR (1 of 5 done)")  # fmt: skip
    assert [b.key for b in shown] == ["KILL", "log", "NO_NETWORK", "progress"]
    assert [b.level for b in shown] == ["error", "error", "warning", "info"]


def test_single_doubts_are_no_banner_but_most_markets_are() -> None:
    one = tuple(sc.view(b, sc.GAP_FOUND if b == "ADA" else ()) for b in sc.BASES)
    most = tuple(sc.view(b, sc.GAP_FOUND if b != "XBT" else ()) for b in sc.BASES)
    everyone = tuple(sc.view(b, sc.GAP_FOUND) for b in ("XBT", "ETH"))
    assert banners(sc.desk(), one) == ()
    assert [b.level for b in banners(sc.desk(), most)] == ["info"]
    assert banners(sc.desk(), everyone) == (
        lb.Banner("warning", "No entries in 2 of 2 markets: XBT/ZAR (gap in candles), ETH/ZAR (gap in candles).", "",
                  "doubts"),
    )  # fmt: skip


def test_a_test_exchange_is_always_told() -> None:
    assert [b.key for b in banners(sc.desk(), is_test_exchange=True)] == ["test"]


# ---- tables -----------------------------------------------------------------

VIEWS = tuple(sc.view(b) for b in sc.BASES)
MARKETS = {v.pair: v.market for v in VIEWS}


def test_positions() -> None:
    # ETH: bought 0.31 at 46,120 = 14,297.20, fee 57.1888; now 0.31 x 45,804 x 0.994 = 14,114.04456
    #      result -240.34424, paid 14,354.3888, -1.67 %; to stop (45,804 - 45,198) / 45,804 = 1.32 %
    # XBT: 15,228.875 + 60.9155 paid, 15,691.594625 now: +401.804125, +2.63 %
    rows = lb.position_rows(sc.desk(), VIEWS, NOW)
    assert [r.cells for r in rows] == [
        ("ETH/ZAR", "▼ -240.34", "-1.67 %", "45,804", "45,198", "1.3 %", "46,120", "0.310000", "38m"),
        ("XBT/ZAR", "▲ +401.80", "+2.63 %", "1,262,905", "1,183,344", "6.3 %", "1,218,310", "0.012500", "2h 14m"),
        ("XRP/ZAR", "▲ +94.62", "+0.97 %", "24.11", "22.92", "4.9 %", "23.64", "410.00", "5h 02m"),
    ]
    assert [r.tone for r in rows] == ["down", "up", "up"]
    assert [r.key for r in rows] == ["ETHZAR", "XBTZAR", "XRPZAR"]


def test_a_position_without_a_resting_stop_says_so() -> None:
    naked = replace(sc.desk(), orders=())
    assert lb.position_rows(naked, VIEWS, NOW)[0].cells[0] == "ETH/ZAR stop due"
    assert lb.position_rows(naked, VIEWS, NOW)[0].tone == "warn"
    leaving = sc.desk(held=(replace(sc.HELD[0], phase=lb.ExitPhase.EXITING),))
    assert lb.position_rows(leaving, VIEWS, NOW)[0].cells[0] == "ETH/ZAR exiting"


def test_a_position_without_a_price_has_no_result() -> None:
    unpriced = sc.desk(held=(replace(sc.HELD[0], mark=0.0),))
    cells = lb.position_rows(unpriced, VIEWS, NOW)[0].cells
    assert cells[1:6] == ("—", "—", "—", "45,198", "—")


def test_ranking() -> None:
    rows = lb.ranking_rows(sc.LATEST, (), VIEWS)
    assert [r.cells for r in rows][:4] == [
        ("1", "XRP/ZAR", "0.81", "Trending", "Breakout", "0.18 %", "4.1 M", "▲ Enter"),
        ("2", "SOL/ZAR", "0.66", "Trending", "Breakout", "0.31 %", "1.9 M", "Reject: spread"),
        ("3", "LINK/ZAR", "0.58", "Wild", "Breakout", "0.71 %", "0.2 M", "Reject: volume 24h"),
        ("4", "ADA/ZAR", "—", "Unknown", "—", "0.62 %", "0.3 M", "Skip: gap"),
    ]
    assert [r.cells[1] for r in rows][4:] == ["ETH/ZAR", "LTC/ZAR", "XBT/ZAR"]  # ties by name
    assert [r.tone for r in rows] == ["up", "", "", "muted", "", "", ""]


def setup(strength: float) -> lb.Setup:
    return lb.Setup(lb.MOMENTUM, False, False, strength, 1.0, 0.1, ())


def test_without_a_signal_the_nearest_setup_ranks_a_market() -> None:
    outlooks = tuple(
        lb.Outlook(pair, 3600, 0, 1.0, 0.1, lb.Regime.RANGING, (setup(a), setup(b)))
        for pair, a, b in (("LTCZAR", 0.41, 0.52), ("ADAZAR", 0.47, math.nan))
    )
    rows = lb.ranking_rows(sc.LATEST, outlooks, VIEWS)
    assert [(r.cells[1], r.cells[2]) for r in rows][3:5] == [("LTC/ZAR", "0.52"), ("ADA/ZAR", "0.47")]


def test_a_market_without_a_quote_is_ranked_all_the_same() -> None:
    silent = (replace(sc.view("XRP"), ticker=None),)
    assert lb.ranking_rows(sc.LATEST[:1], (), silent)[0].cells[5:7] == ("—", "—")
    assert lb.ranking_rows(sc.LATEST[:1], (), ())[0].cells[1] == "XRPZAR"


def test_several_timeframes_are_told_apart() -> None:
    slow = replace(sc.LATEST[0], timeframe_s=14_400)
    rows = lb.ranking_rows((sc.LATEST[0], slow), (), VIEWS)
    assert [r.cells[1] for r in rows] == ["XRP/ZAR 1h", "XRP/ZAR 4h"]
    assert len({r.key for r in rows}) == 2
    assert [lb.duration_word(s) for s in lb.DURATIONS_S] == ["5m", "15m", "30m", "1h", "3h", "4h", "8h", "1d"]


def test_decisions() -> None:
    rows = lb.decision_rows((*sc.EARLIER, *sc.LATEST), MARKETS, NOW, sc.SAST)
    assert rows[0].cells[:4] == ("14:00:05", "XRP/ZAR", "ENTER", "0.81")
    assert rows[0].cells[4].startswith("Buys 410 at 24.08: 0.50 % of equity at risk.")
    # only what was done is coloured; data trouble is amber, waiting is muted, a rejection is plain
    assert {r.cells[2]: r.tone for r in rows} == {
        "ENTER": "up", "HOLD": "muted", "WAIT": "muted", "REJECT": "", "SKIP": "warn",
    }  # fmt: skip
    assert {r.cells[3] for r in rows if r.cells[2] == "WAIT"} == {"—"}


def test_decisions_are_newest_first_and_capped() -> None:
    many = tuple(replace(sc.LATEST[0], time_ms=NOW - n * HOUR) for n in range(500))
    rows = lb.decision_rows(many, MARKETS, NOW, sc.SAST)
    assert len(rows) == lb.DECISIONS_SHOWN == 200
    assert rows[0].cells[0] == "14:00:00"
    assert rows[-1].cells[0] == "14 Nov 07:00"  # 199 hours back


def test_equal_rows_keep_keys_of_their_own() -> None:
    rows = lb.decision_rows((sc.LATEST[0],) * 3, MARKETS, NOW, sc.SAST)
    assert len({r.key for r in rows}) == 3


@pytest.mark.parametrize(
    ("code", "word"),
    [("P8-volume-24h", "volume 24h"), ("S1-confidence", "confidence"), ("no-signal", "no signal"),
     ("stale_candles", "stale candles"), ("P12-loss-cap", "loss cap"), ("", "")],
)  # fmt: skip
def test_codes_in_words(code: str, word: str) -> None:
    assert lb.code_word(code) == word


def test_every_refusal_has_a_word() -> None:
    assert all(lb.code_word(r.value).replace(" ", "").isalnum() for r in lb.Refusal)


def test_fills() -> None:
    rows = lb.fill_rows(sc.FILLS, MARKETS, "demo", NOW, sc.SAST)
    assert [r.cells for r in rows] == [
        ("13:22:00", "ETH/ZAR", "BUY", "0.310000", "46,120", "14,297.20", "57.19", "DEMO"),
        ("11:46:00", "XBT/ZAR", "BUY", "0.012500", "1,218,310", "15,228.88", "60.92", "DEMO"),
        ("08:58:00", "XRP/ZAR", "BUY", "410.00", "23.64", "9,692.40", "38.77", "DEMO"),
        ("00:00:00", "SOL/ZAR", "SELL", "4.2000", "2,981", "12,520.20", "75.12", "DEMO"),
    ]


def test_a_fee_in_coins_is_shown_in_counter() -> None:
    fill = replace(sc.FILLS[0], fee_base=1.64, fee_counter=0.0)  # 1.64 XRP at 23.64
    assert lb.fill_rows((fill,), MARKETS, "paper", NOW, sc.SAST)[0].cells[6] == "38.77"


def test_no_table_has_more_than_nine_columns() -> None:
    told = sc.news()
    tables = (told.positions, told.ranking, told.decisions, told.fills)
    assert all(len(row.cells) <= 9 for table in tables for row in table)


# ---- reports ----------------------------------------------------------------

METRICS: dict[str, object] = {
    "total_return": -0.0421,
    "daily_returns": {"mean": 0.0002, "std": 0.0043, "p05": -0.006, "p50": 0.0, "p95": 0.0071, "best": 0.021,
                      "worst_day": -0.0184},
    "max_drawdown": {"value": 0.0978, "from": 1_704_067_200_000, "to": "2024-03-01T00:00:00Z"},
    "profit_factor": 0.87, "expectancy": -45.2, "exposure_time": 0.31, "trades": 93, "fees_paid": 4_210.55,
    "buy_and_hold": 0.34,
}  # fmt: skip


def test_metrics() -> None:
    told = {r.key: r for r in lb.metrics_rows(METRICS, "ZAR", 0.03)}
    assert told["total_return"].cells[:2] == ("Total return", "-4.21 %")
    assert told["total_return"].tone == "down"
    assert told["mean"].cells == ("Mean day", "+0.02 %", "3.00 % wished")
    assert told["max_drawdown"].cells == ("Maximum drawdown", "-9.78 %", "2024-01-01 to 2024-03-01")
    assert told["worst_day"].cells[:2] == ("Worst day", "-1.84 %")
    assert told["expectancy"].cells[1] == "-R45.20"
    assert told["fees_paid"].cells[1] == "R4,210.55"
    assert told["buy_and_hold"].tone == ""  # the market's luck is not ours to colour


def test_metrics_that_cannot_be_told() -> None:
    told = {r.key: r for r in lb.metrics_rows({**METRICS, "profit_factor": None}, "ZAR", 0.03)}
    assert told["profit_factor"].cells == ("Profit factor", "—", "no losing round trip")
    empty = {r.key: r for r in lb.metrics_rows({}, "ZAR", 0.03)}
    assert all(r.cells[1] == "—" for r in empty.values())
    assert empty["profit_factor"].cells[2] == "no round trips"
    odd = {r.key: r for r in lb.metrics_rows({"trades": True, "total_return": "1"}, "ZAR", 0.03)}
    assert odd["trades"].cells[1] == odd["total_return"].cells[1] == "—"


def test_against_holding_is_the_difference() -> None:
    told = {r.key: r for r in lb.metrics_rows(METRICS, "ZAR", 0.03)}
    assert told["against_holding"].cells[1] == "-38.21 %"  # -4.21 less 34.00
    assert told["against_holding"].tone == "down"
    alone = {r.key: r for r in lb.metrics_rows({"total_return": 0.1}, "ZAR", 0.03)}
    assert alone["against_holding"].cells[1] == "—"


# ---- a saved run: heading, costs, parts, comparison -------------------------


def test_the_heading_of_a_run() -> None:
    assert lb.run_parts(sc.run_json()) == ("XBT/ZAR, ETH/ZAR", "1h and 4h", "2025-03-01 to 2025-05-31")
    assert lb.run_parts({}) == ("—", "—", "—")
    assert lb.run_parts({"period": {"from": "2025-03-01", "to": "soon"}})[2] == "2025-03-01 to —"


def test_the_costs_name_a_range_where_markets_differ() -> None:
    assert lb.costs_text(sc.run_json()) == (
        "Costs: fees maker 0.40 %, taker 0.60 % at entry tier; slippage 0.10 %; spread 0.04 to 0.31 %"
    )
    assert lb.costs_text({}) == "Costs: fees maker —, taker —; slippage —; spread —"


def test_a_split_by_pair_puts_the_best_first_and_measures_against_the_start() -> None:
    best, worst = lb.split_rows(sc.run_json(), "by_pair")
    assert best.cells == ("XBT/ZAR", "+1.50 %", "+1,500.00", "30", "50 %", "1.90", "+50.00", "1,200.00")
    assert worst.cells == ("ETH/ZAR", "-0.27 %", "-270.00", "10", "50 %", "0.80", "-27.00", "400.00")
    assert (best.tone, worst.tone) == ("up", "down")


def test_a_split_by_month_keeps_the_order_and_shows_the_change_of_equity() -> None:
    march, april = lb.split_rows(sc.run_json(), "by_window")
    assert march.cells == ("2025-03", "0.00 %", "—", "0", "—", "—", "—", "—")
    assert april.cells[:4] == ("2025-04", "-2.00 %", "+1,230.00", "40")  # equity fell although what closed had gained
    assert april.tone == "down"


def test_strategies_and_regimes_have_their_words() -> None:
    assert lb.split_rows(sc.run_json(), "by_strategy")[0].cells[0] == "Breakout"
    trend = lb.split_rows(sc.run_json(), "by_regime")[0]
    assert (trend.cells[0], trend.cells[5]) == ("Trending", "—")
    assert lb.split_rows({}, "by_pair") == lb.split_rows({"by_pair": 3}, "by_pair") == ()


def test_two_runs_side_by_side() -> None:
    first, second = sc.run_json(0.0123), sc.run_json(-0.01)
    second["metrics"] = {**lb.group_in(second, "metrics"), "trades": 35, "fees_paid": 1_700.5, "profit_factor": None}
    told = {r.key: r for r in lb.compare_rows(first, second)}
    assert told["total_return"].cells[:4] == ("Total return", "+1.23 %", "-1.00 %", "-2.23 %")
    assert told["total_return"].tone == "down"
    assert told["trades"].cells[1:4] == ("40", "35", "-5")
    assert told["fees_paid"].cells[1:4] == ("R1,600.00", "R1,700.50", "+R100.50")
    assert told["profit_factor"].cells[1:4] == ("1.31", "—", "—")
    assert told["max_drawdown"].cells[1:4] == ("-9.78 %", "-9.78 %", "0.00 %")


def test_amounts_of_two_currencies_have_no_difference() -> None:
    told = {r.key: r for r in lb.compare_rows(sc.run_json(), sc.run_json(counter="USDT"))}
    assert told["fees_paid"].cells[1:4] == ("R1,600.00", "1,600.00 USDT", "—")
    assert told["total_return"].cells[3] == "0.00 %"


def test_saved_runs_in_a_line() -> None:
    row = lb.run_row("7", "2025-11-22 14:05", "backtest", sc.run_json())
    data = "1h and 4h  2025-03-01 to 2025-05-31  XBT/ZAR, ETH/ZAR"
    assert row == lb.Row("7", ("2025-11-22 14:05", "Backtest", data, "+1.23 %", "-32.77 %", "-9.78 %", "40"), "up")
    gates = lb.run_row("8", "2025-11-22 14:06", "gates", sc.EVALUATION)
    assert gates.cells[1:4] == ("Gates: locked", "LOCKED, 2 of 9 failed. Even a pass is no promise.", "—")
    assert lb.run_row("9", "", "gates", {"unlocked": 1}).cells[1] == "Gates: locked"  # only true unlocks
    assert lb.run_row("9", "", "gates", {"unlocked": True}).cells[1] == "Gates: unlocked"


# ---- the gates --------------------------------------------------------------


def test_one_row_per_gate() -> None:
    rows = lb.gate_rows(sc.EVALUATION)
    assert [r.key for r in rows] == [f"G{n}" for n in range(10)]
    luck = ("G2", "Better than luck", "✖ FAIL", "at most 0 of 299", "2 of 37", "-2 shuffles")
    assert rows[2] == lb.Row("G2", luck, "down")
    assert rows[1].cells[2:] == ("✔ PASS", "p ≤ 0.20", "0.041", "+0.159 p")
    assert rows[8].cells[2:] == ("… WAIT", "60 days", "12 days", "-48 days")
    assert (rows[1].tone, rows[8].tone, rows[9].cells[5]) == ("up", "muted", "—")


@pytest.mark.parametrize("gates", [{}, {"G3": {}}, {"G3": {"result": "pass"}}, {"G3": {"result": True}}, {"G3": 1}])
def test_a_gate_that_says_nothing_clear_has_not_passed(gates: dict[str, object]) -> None:
    rows = lb.gate_rows({"unlocked": True, "gates": gates})
    assert {r.cells[2] for r in rows} == {"✖ MISSING"}
    assert {r.tone for r in rows} == {"error"}


@pytest.mark.parametrize(("key", "margin", "text"), [
    ("G0", 4.0, "+4 windows"), ("G0", -1.0, "-1 window"), ("G1", -0.0756, "-0.076 p"), ("G1", -0.0001, "0.000 p"),
    ("G2", -13.0, "-13 shuffles"), ("G3", 64.0, "+64 trips"), ("G3", 1_234.0, "+1,234 trips"), ("G3", 0.0, "0 trips"),
    ("G4", -0.031, "-3.10 %"), ("G5", 0.012, "+1.20 %"), ("G6", 0.0, "0.00 %"), ("G7", 0.32, "+0.320 size"),
    ("G8", 0.0213, "+2.13 %"), ("G9", None, "—"), ("G4", None, "—"), ("G1", float("nan"), "—"), ("G5", 1, "+100.00 %"),
])
def test_margins_have_the_unit_of_their_limit(key: str, margin: float | None, text: str) -> None:
    assert lb.margin_text(key, {"result": "FAIL", "margin": margin}) == text


def test_every_gate_but_the_self_test_has_a_unit_and_a_wait_is_for_days() -> None:
    assert {*lb.MARGIN_UNITS, "G9"} == set(lb.GATE_NAMES)
    assert lb.margin_text("G8", {"result": "WAIT", "margin": -48.0}) == "-48 days"
    assert lb.margin_text("G8", {"result": "WAIT", "margin": -1.0}) == "-1 day"


def test_attempts_and_sentences() -> None:
    assert lb.attempt_text(sc.EVALUATION) == "Attempt 3 on this data: the bar is 3x higher."
    assert lb.attempt_text({"attempt": 1}) == "Attempt 1: the first look at these unseen days."
    assert lb.attempt_text({}) == ""
    assert lb.gate_sentence(sc.EVALUATION, "G3") == "G3  Round trips: PASS. 94 of at least 30."
    assert lb.gate_sentence({}, "G3") == "G3  —"


def test_windows_and_figures() -> None:
    first, second = lb.window_rows(sc.EVALUATION)
    assert first.cells == (
        "1", "2016-09-01 to 2017-08-31", "2017-09-05 to 2017-11-04", "set 5", "+1.23", "-3.12 %", "9",
    )  # fmt: skip
    assert first.tone == "down"
    assert second.cells == ("2", "2016-11-01 to —", "2017-11-04 to 2018-01-03", "cash", "—", "0.00 %", "0")
    told = lb.shown_rows(sc.EVALUATION)
    assert [(r.cells[0], r.cells[1]) for r in told] == [
        ("Overfit (PBO)", "37.00 %"), ("Skill (DSR)", "—"), ("Above 0 (PSR)", "88.31 %"), ("Days (MinTRL)", "412"),
        ("Odd one", "1.50"),
    ]
    assert lb.window_rows({}) == lb.shown_rows({}) == ()


@pytest.mark.parametrize(("has_network", "last_ok_ms", "says"), [
    (True, NOW, "● Connected"), (True, None, "○ No answer yet"), (False, NOW, "✖ No network"),
])
def test_connected_is_said_only_after_an_answer(has_network: bool, last_ok_ms: int | None, says: str) -> None:
    health = lb.Health(NOW, has_network=has_network, last_ok_ms=last_ok_ms)
    assert lb.footer_text(health, sc.SAST).startswith(says)


def test_the_footer_says_what_the_replay_check_found_and_a_difference_is_a_banner() -> None:
    equal = "Replay check: 241 cycles of 2026-01-05 equal"
    assert equal in lb.footer_text(sc.health(parity=equal), sc.SAST)
    broken = {"parity": "Replay check: NOT equal. XBTZAR decision", "is_parity_broken": True}
    assert "✖ Replay differs" in lb.footer_text(sc.health(**broken), sc.SAST)
    found = [b for b in lb.banner_rows(sc.desk(), (), lb.Settings(), sc.health(**broken), sc.SAST) if b.key == "parity"]
    assert [(b.level, b.text) for b in found] == [("error", broken["parity"])]
    healthy = lb.banner_rows(sc.desk(), (), lb.Settings(), sc.health(parity=equal), sc.SAST)
    assert not [b for b in healthy if b.key == "parity"]
