"""NOTIFY: what is told to the owner, when, and that no trouble with it goes any further."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunobiz import (
    NOTICE_FIELDS,
    Credentials,
    Delivery,
    Desktop,
    Event,
    ExchangeDown,
    LunobizError,
    Notice,
    Notifier,
    RateLimited,
    Reply,
    SettingsError,
    SteppedClock,
    Telegram,
    clip16,
    notice_choices,
    notice_group,
    notice_of,
    unknown_settings,
)

TOKEN = "123456789:CANARYtokenCANARYtokenCANARYtoken12"
START_MS = 1_763_999_999_137
NOTICE = Notice("warning", "Stop hit", "XBTZAR, -1.2 %")
BALLOON_MODULE = "plyer.platforms.win.libs.balloontip"


class FakeTransport:
    """Answers from a list, and keeps what was sent."""

    def __init__(self, *answers: Reply | LunobizError) -> None:
        self.answers = list(answers)
        self.sent: list[tuple[str, str, dict[str, str]]] = []
        self.is_closed = False

    def send(
        self, method: str, path: str, params: Sequence[tuple[str, str]] = (), key: Credentials | None = None
    ) -> Reply:
        assert key is None
        self.sent.append((method, path, dict(params)))
        answer = self.answers.pop(0) if self.answers else reply(200, {"ok": True})
        if isinstance(answer, LunobizError):
            raise answer
        return answer

    def close(self) -> None:
        self.is_closed = True


class FakeChannel:
    """A channel that does what the test says, one entry per try; then it delivers."""

    def __init__(self, name: str, *plan: Delivery | BaseException) -> None:
        self.name, self.can_be_silent = name, name != "Desktop"
        self.plan = list(plan)
        self.got: list[Notice] = []
        self.tries = 0
        self.closed = 0

    def send(self, notice: Notice) -> Delivery:
        self.tries += 1
        step = self.plan.pop(0) if self.plan else Delivery(True)
        if isinstance(step, BaseException):
            raise step
        if step.is_sent:
            self.got.append(notice)
        return step

    def idle(self) -> None:
        if self.plan and isinstance(self.plan[0], RuntimeError):
            raise RuntimeError("idle")

    def close(self) -> None:
        self.closed += 1
        raise OSError("close")


def reply(status: int, body: object, **headers: str) -> Reply:
    """An answer with a JSON body."""
    return Reply(status, headers, json.dumps(body).encode())


def telegram(transport: FakeTransport, chat: str = "-100200300") -> Telegram:
    """The channel with the canary token."""
    return Telegram(transport, Credentials("telegram", TOKEN), chat)


def event(kind: str, text: str = "", pair: str = "XBTZAR", level: str = "warning") -> Event:
    """An event as the engine makes them."""
    return Event(START_MS, kind, level, text, pair)


def run(notifier: Notifier, clock: SteppedClock, seconds: int) -> None:
    """Pump four times a second."""
    for _ in range(4 * seconds):
        notifier.pump()
        clock.sleep(0.25)


def units(text: str) -> int:
    """The length that Windows and Telegram count."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


# ---- clipping ----


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("a😀é漢"))), st.integers(0, 40))
def test_clipped_text_fits_and_is_a_start_of_the_text(text: str, limit: int) -> None:
    clipped = clip16(text, limit)
    assert units(clipped) <= limit
    if units(text) <= limit:
        assert clipped == text
    elif limit > 0:
        assert clipped.endswith("…") and text.startswith(clipped[:-1])
        assert units(clipped) >= limit - 1  # only a pair that does not fit may leave a unit free


def test_an_emoji_counts_twice_and_is_never_split() -> None:
    assert clip16("a" * 62 + "😀", 63) == "a" * 62 + "…"
    assert clip16("a" * 61 + "😀", 63) == "a" * 61 + "😀"
    assert clip16("😀😀", 3) == "😀…"


# ---- which events are told ----


@pytest.mark.parametrize(
    "kind",
    [
        "entry",
        "exit",
        "stop",
        "daily_cap",
        "cooldown",
        "weekly_cap",
        "kill",
        "rearm",
        "api_error",
        "api_retry",
        "api_ok",
        "summary",
        "state",
    ],
)
def test_each_of_these_events_is_told(kind: str) -> None:
    notice = notice_of(event(kind, "moved 1.5 %"))
    assert notice is not None and notice.title and notice.text == "XBT/ZAR, 1.5 %"


def test_unknown_kinds_are_told_only_when_they_are_errors() -> None:
    assert notice_of(event("candle", level="info")) is None
    assert notice_of(event("candle", level="warning")) is None
    told = notice_of(event("candle", "balance 1,234.50", pair="", level="error"))
    assert told == Notice("error", "Needs your attention", "See the program for details.")


def test_the_default_text_holds_event_pair_and_percent_only() -> None:
    text = "order 7f3a-99 sold 0.5 at 1,950,000: equity 98,765.43 ZAR, -1.25 % of the day, cap 3 %, was 2.5 %"
    told = notice_of(event("stop", text))
    assert told == Notice("warning", "Stop hit", "XBT/ZAR, -1.25 %, 3 %")


def test_a_pair_that_is_none_and_long_numbers_stay_out() -> None:
    told = notice_of(event("exit", "sell 171 XRPUSDT at 0.5, round trip -2.96%", pair="XRPUSDT", level="info"))
    assert told == Notice("info", "Exit", "XRP/USDT, -2.96 %")
    told = notice_of(event("summary", "The day ended at -0.31% of 3.00% wished", pair="", level="info"))
    assert told is not None and told.text == "-0.31 % of 3.00 % wished"
    told = notice_of(event("stop", "id 1234567% and 12,345%", pair="<b>x</b>"))
    assert told is not None and told.text == "See the program for details."


# ---- Telegram ----


def test_telegram_posts_text_to_the_one_chat_with_the_token_in_the_path_only() -> None:
    transport = FakeTransport()
    assert telegram(transport).send(NOTICE) == Delivery(True)
    ((method, path, params),) = transport.sent
    assert (method, path) == ("POST", f"/bot{TOKEN}/sendMessage")
    assert params == {
        "chat_id": "-100200300",
        "text": "LunoBiz: Stop hit\nXBTZAR, -1.2 %",
        "disable_notification": "false",
    }


def test_telegram_text_is_clipped_and_clean() -> None:
    transport = FakeTransport()
    telegram(transport).send(Notice("info", "a\0b", "\ud800\u2028" + "😀" * 5000, is_silent=True))
    text = transport.sent[0][2]["text"]
    assert text.startswith("LunoBiz: a b\n  😀") and units(text) <= 4000
    assert text.encode()  # a lone surrogate would raise here
    assert transport.sent[0][2]["disable_notification"] == "true"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reply(200, {"ok": True}), Delivery(True)),
        (reply(200, {"ok": False}), Delivery(False, "unexpected answer 200")),
        (reply(200, [1]), Delivery(False, "unexpected answer 200")),
        (Reply(200, {}, b"<html>"), Delivery(False, "unexpected answer 200")),
        (Reply(200, {}, b"[" * 100_000), Delivery(False, "unexpected answer 200")),
        (reply(429, {"parameters": {"retry_after": 17}}), Delivery(False, "asked to wait", 17.0)),
        (reply(429, {"parameters": {"retry_after": 10**9}}), Delivery(False, "asked to wait", 3600.0)),
        (reply(429, {"parameters": {"retry_after": -3}}), Delivery(False, "asked to wait", 1.0)),
        (reply(429, {"parameters": 5}), Delivery(False, "asked to wait", 30.0)),
        (Reply(429, {"retry-after": "44"}, b""), Delivery(False, "asked to wait", 44.0)),
        (reply(401, {}), Delivery(False, "token refused", is_refused=True)),
        (reply(404, {}), Delivery(False, "token refused", is_refused=True)),
        (reply(400, {}), Delivery(False, "chat refused", is_refused=True)),
        (reply(403, {}), Delivery(False, "chat refused", is_refused=True)),
        (reply(302, {}), Delivery(False, "unexpected answer 302")),
        (reply(502, {}), Delivery(False, "unexpected answer 502")),
        (ExchangeDown("gone"), Delivery(False, "no connection")),
        (RateLimited(9), Delivery(False, "no connection")),
    ],
)
def test_what_telegram_answers(answer: Reply | LunobizError, expected: Delivery) -> None:
    assert telegram(FakeTransport(answer)).send(NOTICE) == expected


def test_without_token_or_with_a_wrong_chat_nothing_is_sent() -> None:
    transport = FakeTransport()
    assert Telegram(transport, Credentials(), "123").send(NOTICE).is_refused
    for chat in ("", "12 34", "me", "@ab", "1&chat_id=2"):
        assert telegram(transport, chat).send(NOTICE).is_refused
    assert transport.sent == []


def test_the_token_is_in_no_text_whatever_telegram_says(capfd: pytest.CaptureFixture[str]) -> None:
    echoes: list[Reply | LunobizError] = [
        reply(status, {"description": f"/bot{TOKEN}/"}) for status in (200, 302, 400, 401, 403, 404, 429, 500)
    ]
    for answer in [*echoes, ExchangeDown("down")]:
        clock = SteppedClock(START_MS)
        channel = telegram(FakeTransport(*[answer] * 20))
        notifier = Notifier((channel,), clock)
        notifier.offer(NOTICE)
        run(notifier, clock, 30)
        assert "CANARY" not in f"{notifier.state_text()}{channel.send(NOTICE)!r}{vars(channel)!r}"
    out, err = capfd.readouterr()
    assert "CANARY" not in out + err


# ---- the desktop ----


@pytest.fixture
def notify_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """A notify-send that writes its arguments down and ends with a code."""

    def make(code: int) -> Path:
        log, program = tmp_path / "log", tmp_path / "notify-send"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {log}\nexit {code}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return log

    return make


@pytest.mark.skipif(sys.platform == "win32", reason="notify-send is a program of other systems")
def test_a_title_that_looks_like_an_option_is_a_title(notify_send: Callable[[int], Path]) -> None:
    log = notify_send(0)
    assert Desktop("linux").send(Notice("info", "--help", "-u critical <b>&\nx")) == Delivery(True)
    lines = log.read_text().splitlines()
    assert lines == ["--app-name=LunoBiz", "--", "LunoBiz: --help", "-u critical &lt;b&gt;&amp;", "x"]


@pytest.mark.skipif(sys.platform == "win32", reason="notify-send is a program of other systems")
def test_an_exit_code_is_a_failure_and_three_switch_the_desktop_off(
    notify_send: Callable[[int], Path],
) -> None:
    log = notify_send(1)
    clock = SteppedClock(START_MS)
    notifier = Notifier((Desktop("linux"),), clock)
    notifier.offer(NOTICE)
    run(notifier, clock, 60)
    assert notifier.state_text() == "Desktop off: no notification service; 1 dropped"
    assert log.read_text().count("--app-name") == 3


def test_no_program_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Desktop("linux").send(NOTICE) == Delivery(False, "no notification service", is_refused=True)


class FakeBalloon:
    """plyer's class with the limits that were measured: 64 and 256 units with the terminator."""

    made = 0
    shown: tuple[tuple[str, str], ...] = ()
    removed = 0
    error: BaseException | None = None

    def __init__(self, title: str, message: str, app_name: str, timeout: int = 10) -> None:
        assert timeout == 0, "any other time-out sleeps"
        FakeBalloon.made += 1
        self.notify(title, message, app_name)

    def notify(self, title: str, message: str, app_name: str) -> None:
        if FakeBalloon.error is not None:
            raise FakeBalloon.error
        if units(title) >= 64 or units(message) >= 256 or not message:
            raise ValueError("too long")
        FakeBalloon.shown = (*FakeBalloon.shown, (title, message))

    def remove_notify(self) -> None:
        FakeBalloon.removed += 1


@pytest.fixture
def balloon(monkeypatch: pytest.MonkeyPatch) -> type[FakeBalloon]:
    """plyer's Windows part, replaced."""
    module = types.ModuleType(BALLOON_MODULE)
    monkeypatch.setattr(module, "WindowsBalloonTip", FakeBalloon, raising=False)
    monkeypatch.setitem(sys.modules, BALLOON_MODULE, module)
    for name, value in (("made", 0), ("shown", ()), ("removed", 0), ("error", None)):
        monkeypatch.setattr(FakeBalloon, name, value)
    return FakeBalloon


def test_windows_uses_one_balloon_again_and_clips_to_its_limits(balloon: type[FakeBalloon]) -> None:
    desktop = Desktop("win32")
    for n in range(39):
        assert desktop.send(Notice("info", "😀" * 60, f"{n}" + "é😀" * 200)) == Delivery(True)
    assert desktop.send(Notice("info", "Empty", "")) == Delivery(True)
    assert balloon.made == 1 and len(balloon.shown) == 40
    desktop.close()
    desktop.close()
    assert balloon.removed == 1


@pytest.mark.parametrize("error", [Exception("Shell_NotifyIconW failed."), OSError(), ValueError("long")])
def test_what_plyer_raises_on_windows_is_a_refusal(
    balloon: type[FakeBalloon], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balloon, "error", error)
    assert Desktop("win32").send(NOTICE) == Delivery(False, "no notification service", is_refused=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), ZeroDivisionError()])
def test_faults_that_are_not_plyers_are_not_hidden(
    balloon: type[FakeBalloon], error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balloon, "error", error)
    with pytest.raises(type(error)):
        Desktop("win32").send(NOTICE)


# ---- the queue ----


def test_one_notice_a_pump_and_a_second_between_them() -> None:
    clock = SteppedClock(START_MS)
    channel = FakeChannel("Telegram")
    notifier = Notifier((channel,), clock)
    for n in range(3):
        notifier.offer(Notice("info", "t", str(n)))
    notifier.pump()
    notifier.pump()
    clock.sleep(0.99)
    notifier.pump()
    assert [n.text for n in channel.got] == ["0"]
    clock.sleep(0.02)
    notifier.pump()
    assert [n.text for n in channel.got] == ["0", "1"]
    assert notifier.state_text() == "Telegram OK, 2 sent; 1 waiting"


def test_equal_notices_become_one() -> None:
    clock = SteppedClock(START_MS)
    channel = FakeChannel("Telegram")
    notifier = Notifier((channel,), clock)
    for _ in range(100):
        notifier.offer(NOTICE)
    run(notifier, clock, 5)
    assert channel.got == [Notice("warning", "Stop hit", "XBTZAR, -1.2 % (100 times)")]
    assert notifier.state_text() == "Telegram OK, 1 sent"


def test_the_oldest_of_more_than_fifty_are_dropped_and_counted() -> None:
    clock = SteppedClock(START_MS)
    channel = FakeChannel("Telegram")
    notifier = Notifier((channel,), clock)
    for n in range(62):
        notifier.offer(Notice("info", "t", str(n)))
    run(notifier, clock, 120)
    assert [n.text for n in channel.got] == [str(n) for n in range(12, 62)]
    assert notifier.state_text() == "Telegram OK, 50 sent; 12 dropped"


def test_a_notice_goes_to_the_next_channel_while_the_first_is_down() -> None:
    clock = SteppedClock(START_MS)
    first = FakeChannel("Telegram", *[Delivery(False, "no connection")] * 2)
    second = FakeChannel("Desktop")
    notifier = Notifier((first, second), clock)
    notifier.offer(NOTICE)
    notifier.pump()
    notifier.pump()
    assert second.got == [NOTICE] and first.tries == 1
    assert notifier.state_text() == "Telegram failing: no connection, 0 sent; Desktop OK, 1 sent"
    clock.sleep(3)
    notifier.offer(NOTICE)
    run(notifier, clock, 5)
    assert len(second.got) == 2
    notifier.offer(Notice("info", "later", "x"))
    run(notifier, clock, 5)
    assert [n.title for n in first.got] == ["later"]  # the first channel is back


def test_a_wait_that_telegram_asks_for_is_kept() -> None:
    clock = SteppedClock(START_MS)
    channel = FakeChannel("Telegram", Delivery(False, "asked to wait", 40.0))
    notifier = Notifier((channel,), clock)
    notifier.offer(NOTICE)
    run(notifier, clock, 40)
    assert channel.tries == 1
    run(notifier, clock, 1)
    assert channel.got == [NOTICE]


def test_tries_are_bounded_and_grow_apart() -> None:
    clock = SteppedClock(START_MS)
    channel = FakeChannel("Telegram", *[Delivery(False, "no connection")] * 1000)
    notifier = Notifier((channel,), clock)
    notifier.offer(NOTICE)
    run(notifier, clock, 3600)
    assert channel.tries == 8
    assert notifier.state_text() == "Telegram failing: no connection, 0 sent; 1 dropped"
    for n in range(50):
        notifier.offer(Notice("info", "t", str(n)))
    run(notifier, clock, 3600)
    assert channel.tries <= 8 + 3600 // 300 + 1  # five minutes apart by then


def test_a_refused_channel_is_off_after_three_and_the_rest_goes_elsewhere() -> None:
    clock = SteppedClock(START_MS)
    first = FakeChannel("Telegram", *[Delivery(False, "token refused", is_refused=True)] * 9)
    second = FakeChannel("Desktop")
    notifier = Notifier((first, second), clock)
    for n in range(20):
        notifier.offer(Notice("info", "t", str(n)))
    run(notifier, clock, 60)
    assert first.tries == 3
    assert [n.text for n in second.got if n.title == "t"] == [str(n) for n in range(20)]
    assert Notice("error", "Messages failed", "Telegram off: token refused") in second.got
    assert notifier.state_text() == "Telegram off: token refused; Desktop OK, 21 sent"
    assert notifier.trouble.startswith("Telegram off: token refused. Messages go by Desktop. Test it in Settings")


def test_a_success_forgives_earlier_refusals() -> None:
    clock = SteppedClock(START_MS)
    no, yes = Delivery(False, "chat refused", is_refused=True), Delivery(True)
    channel = FakeChannel("Telegram", no, no, yes, no, no, yes)
    notifier = Notifier((channel,), clock)
    notifier.offer(NOTICE)
    notifier.offer(Notice("info", "t", "second"))
    run(notifier, clock, 60)
    assert notifier.state_text() == "Telegram OK, 2 sent"


@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError, AttributeError, ExchangeDown])
def test_an_error_of_a_channel_never_leaves_pump_and_is_told_by_type(kind: type[Exception]) -> None:
    clock = SteppedClock(START_MS)
    channel = FakeChannel("Desktop", *[kind(TOKEN)] * 3)
    notifier = Notifier((channel,), clock)
    notifier.offer(NOTICE)
    run(notifier, clock, 20)
    notifier.close()
    assert notifier.state_text() == f"Desktop off: {kind.__name__}; 1 dropped"
    assert channel.closed == 1


def test_without_channels_notices_go_nowhere() -> None:
    notifier = Notifier((), SteppedClock(START_MS))
    assert notifier.state_text() == "no notices set up"
    notifier.offer(NOTICE)
    notifier.pump()
    assert notifier.state_text() == "no notices set up"


def test_texts_are_cleaned_before_they_leave() -> None:
    clock = SteppedClock(START_MS)
    channel = FakeChannel("Telegram")
    notifier = Notifier((channel,), clock, clean=lambda text: text.replace("CANARY", "***"))
    notifier.offer(Notice("error", "CANARY", "key CANARY"))
    notifier.pump()
    assert channel.got == [Notice("error", "***", "key ***")]


def test_trouble_with_the_exchange_is_told_once_an_hour_per_kind() -> None:
    clock = SteppedClock(START_MS)
    channel = FakeChannel("Telegram")
    notifier = Notifier((channel,), clock)
    for second in range(3599):
        notifier.tell(event("api_error", f"try {second}", pair=""))
        notifier.tell(event("api_retry", f"try {second}", pair=""))
        notifier.pump()
        clock.sleep(1)
    assert [n.title for n in channel.got] == ["Exchange trouble", "Exchange slow, trying again"]
    clock.sleep(1)
    notifier.tell(event("api_error", "still", pair=""))
    run(notifier, clock, 3)
    assert channel.got[-1].text == "See the program for details. (and 3598 more since the last message)"


def test_what_holds_trading_back_is_told_by_its_cause_and_once_an_hour() -> None:
    clock = SteppedClock(START_MS)
    channel = FakeChannel("Telegram")
    notifier = Notifier((channel,), clock)
    for _ in range(5):
        notifier.tell(event("state", "Held back: no network, equity 98,765 ZAR", pair=""))
        notifier.tell(event("state", "Over: no network", pair="", level="info"))
        notifier.tell(event("state", "Held back: clock skew", pair=""))
        run(notifier, clock, 4)
    assert [(n.title, n.text) for n in channel.got] == [
        ("Held back", "no network"), ("Over", "no network"), ("Held back", "clock skew"),
    ]  # fmt: skip


def test_trades_are_not_limited_by_the_hour() -> None:
    clock = SteppedClock(START_MS)
    channel = FakeChannel("Telegram")
    notifier = Notifier((channel,), clock)
    for n in range(10):
        notifier.tell(event("stop", f"-{n}.5 %"))
        notifier.tell(event("tick", "not worth telling", level="info"))
    run(notifier, clock, 20)
    assert len(channel.got) == 10


# ---- what the owner chose for each group ----

GROUPS = ("ENTRIES", "EXITS", "HALTS", "HOLDS", "LIVE", "EXCHANGE", "SUMMARY", "TROUBLE")
KINDS = {"entry": "ENTRIES", "exit": "EXITS", "stop": "EXITS", "close_all": "EXITS", "kill": "HALTS",
         "daily_cap": "HALTS", "weekly_cap": "HALTS", "cooldown": "HALTS", "rearm": "HALTS", "state": "HOLDS",
         "live": "LIVE", "live_left": "LIVE", "gates": "LIVE", "api_error": "EXCHANGE", "api_retry": "EXCHANGE",
         "api_ok": "EXCHANGE", "summary": "SUMMARY", "refused": "TROUBLE", "parity": "TROUBLE"}


def told(choices: dict[str, str], *events: Event) -> tuple[list[Notice], list[Notice]]:
    """What Telegram gets of these events, and what the desktop gets where it is alone."""
    found = []
    for name in ("Telegram", "Desktop"):
        clock, channel = SteppedClock(START_MS), FakeChannel(name)
        notifier = Notifier((channel,), clock, choices=choices)
        for each in events:
            notifier.tell(each)
        run(notifier, clock, 20)
        found.append(channel.got)
    return found[0], found[1]


def test_each_group_has_a_setting_and_safety_cannot_be_off() -> None:
    assert tuple(notice_choices({})) == GROUPS
    safe = {f.name for f in NOTICE_FIELDS if f.range_text == "on or silent"}
    assert safe == {"NOTICE_HALTS", "NOTICE_TROUBLE"}
    assert all("never off" in f.meaning for f in NOTICE_FIELDS if f.name in safe)
    for spec in NOTICE_FIELDS:
        for word in ("on", " Silent "):
            assert notice_choices({f"LUNOBIZ_{spec.name}": word})[spec.name[7:]] == word.strip().lower()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("HALTS", "off", "on or silent"), ("TROUBLE", "OFF", "on or silent"), ("ENTRIES", "loud", "on, silent or off")],
)
def test_a_wrong_choice_names_field_value_and_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        notice_choices({f"LUNOBIZ_NOTICE_{name}": value})
    assert str(caught.value) == f'LUNOBIZ_NOTICE_{name} is "{value}": allowed is {allowed}'


def test_all_wrong_choices_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        notice_choices({f"LUNOBIZ_{f.name}": "loud" for f in NOTICE_FIELDS})
    assert len(caught.value.problems) == len(NOTICE_FIELDS)


def test_the_names_of_the_choices_are_known_and_a_slip_is_not() -> None:
    assert unknown_settings({f"LUNOBIZ_{f.name}": "on" for f in NOTICE_FIELDS}) == []
    assert unknown_settings({"LUNOBIZ_NOTICE_ENTRY": "on"})[0].startswith("LUNOBIZ_NOTICE_ENTRY is not a setting")


@pytest.mark.parametrize(("kind", "group"), KINDS.items())
def test_the_choice_of_its_group_decides_on_an_event(kind: str, group: str) -> None:
    each = event(kind, "moved 1.5 %", level="error")
    assert notice_group(each) == group
    telegram_got, desktop_got = told({group: "on"}, each)
    assert [n.is_silent for n in telegram_got] == [n.is_silent for n in desktop_got] == [False]
    assert telegram_got[0].is_soft == (kind in ("cooldown", "api_ok", "summary"))
    telegram_got, desktop_got = told({group: "silent"}, each)
    assert [n.is_silent for n in telegram_got] == [True] and desktop_got == []
    assert told({group: "off"}, each) == ([], [])
    assert len(told({other: "off" for other in GROUPS if other != group}, each)[0]) == 1


@pytest.mark.parametrize(
    ("cause", "group"),
    [("no network", "HOLDS"), ("clock skew", "HOLDS"), ("order unresolved", "HALTS"), ("key refused", "HALTS"),
     ("double use", "HALTS"), ("weekly loss cap", "HALTS"), ("balance drift", "HOLDS")],
)
def test_a_halt_is_a_halt_whatever_brought_it(cause: str, group: str) -> None:
    assert notice_group(event("state", f"Held back: {cause}")) == group
    assert bool(told({"HOLDS": "off"}, event("state", f"Held back: {cause}"))[0]) == (group == "HALTS")


@pytest.mark.parametrize(
    "each", [event("state", "Over: no network", level="info"), event("api_ok"), event("cooldown"), event("summary")]
)
def test_good_news_make_no_sound_and_show_on_the_desktop_all_the_same(each: Event) -> None:
    transport = FakeTransport()
    (notice,) = told({}, each)[1]
    telegram(transport).send(notice)
    assert transport.sent[0][2]["disable_notification"] == "true"
    telegram(transport).send(told({}, event("entry", level="info"))[0][0])
    assert transport.sent[1][2]["disable_notification"] == "false"


def test_a_silent_notice_never_falls_to_a_channel_that_pops_up_and_never_holds_up_a_loud_one() -> None:
    clock = SteppedClock(START_MS)
    first, second = FakeChannel("Telegram", *[Delivery(False, "no connection")] * 3), FakeChannel("Desktop")
    notifier = Notifier((first, second), clock, choices={"SUMMARY": "silent"})
    notifier.tell(event("summary"))
    notifier.tell(event("kill"))
    run(notifier, clock, 3)
    assert [n.title for n in second.got] == ["Kill switch engaged"]
    run(notifier, clock, 60)
    assert [n.title for n in first.got] == ["Daily summary"] and len(second.got) == 1


def test_silent_notices_are_dropped_when_only_the_desktop_is_left() -> None:
    clock = SteppedClock(START_MS)
    refusals = [Delivery(False, "token refused", is_refused=True)] * 3
    first, second = FakeChannel("Telegram", *refusals), FakeChannel("Desktop")
    notifier = Notifier((first, second), clock, choices={"SUMMARY": "silent"})
    for n in range(3):
        notifier.tell(event("summary", f"{n} %"))
    run(notifier, clock, 60)
    assert [n.title for n in second.got] == ["Messages failed"]
    assert "3 dropped" in notifier.state_text()


def test_that_messages_fail_is_told_by_what_is_left() -> None:
    clock = SteppedClock(START_MS)
    refusals = [Delivery(False, "no notification service", is_refused=True)] * 3
    notifier = Notifier((FakeChannel("Desktop", *refusals),), clock)
    assert notifier.trouble == ""
    notifier.offer(NOTICE)
    run(notifier, clock, 60)
    assert notifier.trouble == ("Desktop off: no notification service. No message reaches you. "
                                "Test it in Settings, under Keys and notifications.")
