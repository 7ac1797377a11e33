"""The security points of LIVE: where each is tested, and the tests of those that had none.

S01 secrets in any output     here (LIVE, echoed keys); test_line: no_secret_is_in_anything_the_program_writes;
                              test_store: no_secret_reaches_the_file; test_doctor: no_secret_is_in_any_output
S02 texts of exceptions       test_http: an_answer_that_repeats_the_key_stays_out_of_sight, a_strange_secret_neither_...
S03 tracebacks                here (hooks; no capture_locals, no faulthandler); test_main: an_unforeseen_fault_shows_...
S04 redactor                  test_system: loaded_secrets_..., unknown_secrets_..., no_secret_is_left_whatever_...
S05 secrets in memory         test_settings: no_text_shows_a_credential, no_way_of_copying_gives_a_credential_away
S06 redirects                 test_http: a_redirect_is_not_followed; test_live_tls: trouble_with_the_post_of_an_order
S07 TLS                       test_http: a_bad_certificate_..., an_old_tls_is_refused; test_structure: FORBIDDEN_TEXTS
S08 environment               test_http: the_environment_has_no_say
S09 base64, strange keys      test_settings: a_key_with_strange_characters_...; here (a long key is one header line)
S10 Telegram's token          test_notify: the_token_is_in_no_text_whatever_telegram_says
S11 what Telegram is told     test_notify: the_default_text_holds_event_pair_and_percent_only; here (it only ever posts)
S12 desktop notices           test_notify: texts_are_cleaned_before_they_leave, the_default_text_...
S13 formulas in CSV           test_files: cells_that_a_spreadsheet_would_run_..., no_cell_starts_like_a_formula_...
S14 lines of the log          test_system: a_line_is_one_json_object_without_secrets; here (control characters)
S15 paths                     here (what the exchange says names no file); test_http: no_path_leads_to_another_host
S16 rights of files           here (LIVE refuses open ones); test_system: written_files_are_private;
                              test_store, test_keys: only_the_owner_can_read_it
S17 .env                      here (LIVE refuses an open or unignored one); test_system: nothing_is_interpolated;
                              test_doctor: a_settings_file_that_git_would_take
S18 rights of the key         test_luno, test_live (key_trouble: it must trade and read; no endpoint tells the rest)
S19 two keys                  test_settings: the_read_key_and_the_live_key_must_differ; here (PAPER reads no live key)
S20 SQL                       test_structure: no texts built in execute (planted faults)
S21 remote text in the window here (what the exchange says is not repeated, long ids are refused); test_luno:
                              nothing_the_exchange_says_is_repeated
S22 no dynamic code           test_structure: FORBIDDEN_LIBRARIES and the planted faults
S23 supply                    here (each library has a least and a greatest version); test_ledger: the hash of the code
S24 forged unlock             test_ledger: no_edit_of_a_stored_row_unlocks, a_row_is_signed_for_its_time_and_place
S25 an attacker as the user   out of scope, said in the README
S26 exports                   test_files: an_export_holds_every_row_...; test_line exports beside a secret
S27 fixtures                  here (no long random text in a test but the invented ones)
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import lunobiz
from fakes import FakeClock, FakeTransport, reply
from lunobiz import (
    Credentials,
    ExchangeDown,
    ExchangeRefused,
    JsonLog,
    LunoClient,
    LunoOrders,
    Mode,
    RateLimit,
    Redactor,
    Reply,
    Session,
    Settings,
    SteppedClock,
    SystemClock,
)
from sessions import KEY, Run, lively_exchange
from test_line import forms

PROGRAM = Path(lunobiz.__file__)
SOURCE = PROGRAM.read_text(encoding="utf-8")
POSIX = pytest.mark.skipif(os.name != "posix", reason="Windows keeps rights in the folder")


# ---- S01: a LIVE session whose exchange repeats the key ----------------------------------------------------


class Echo:
    """The built-in exchange; every fourth answer is an error that repeats the caller's key in several forms."""

    def __init__(self, exchange: lunobiz.DemoExchange) -> None:
        self.exchange, self.count, self.is_on = exchange, 0, False

    def send(self, method: str, path: str, params: lunobiz.Params = (), key: Credentials | None = None) -> Reply:
        self.count += 1
        made = self.exchange.send(method, path, params, key)
        if key is None or not self.is_on or self.count % 4:
            return made
        both = f"{key.key_id}:{key.secret}"
        words = f"bad key {both} Basic {base64.b64encode(both.encode()).decode()}"
        body = {"error": words, "error_code": random.Random(self.count).choice(["ErrInternal", words, "ErrNope"]),
                "order_id": key.secret, "headers": [words]}
        return Reply(random.Random(self.count).choice([400, 500, 429, 409, 200]), made.headers,
                     json.dumps(body).encode())

    def close(self) -> None:
        """Nothing to let go of."""


def test_no_secret_is_in_anything_that_live_writes(tmp_path: Path) -> None:
    """Database, its WAL, log, events, findings: none has the key in any form."""
    clock = SteppedClock(0)
    echo = Echo(lively_exchange(clock, skipped_h=340))
    run = Run(echo, clock, tmp_path / "live.db")
    echo.is_on = True
    for _ in range(80):
        run.look()
        run.resolve()
    told = " ".join(e.text for e in run.events) + repr(run.live.executor.sent) + repr(list(run.live.findings()))
    assert len(run.sent) >= 3 and run.events
    (tmp_path / "told.txt").write_text(told, encoding="utf-8")
    wanted = {form for text in (KEY.key_id, KEY.secret, f"{KEY.key_id}:{KEY.secret}") for form in forms(text)}
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) >= 4  # the log among them
    assert [f"{p.name}: {form!r}" for p in files for form in wanted if form in p.read_bytes()] == []
    run.drop()


# ---- S03: tracebacks -----------------------------------------------------------------------------------------


def test_no_traceback_shows_what_variables_held() -> None:
    """Neither tool that would is used anywhere, and no traceback is formatted with its texts."""
    for word in ("capture_locals", "faulthandler", "format_exc", "print_exc", "format_exception"):
        assert word not in SOURCE, word


def test_what_escapes_is_told_by_kind_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the main thread and in any other."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    log = JsonLog(tmp_path, Redactor([]), SystemClock())  # which knows no secret: the text itself must not come
    lunobiz._hook_faults(log)

    def fail() -> None:
        raise RuntimeError(f"a secret {KEY.secret}")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    try:
        fail()
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    log.close()
    text = "".join(p.read_text(encoding="utf-8") for p in tmp_path.iterdir())
    assert text.count("internal fault RuntimeError") == 2 and "a secret" not in text


# ---- S09, S11, S14, S15, S21 -----------------------------------------------------------------------------------


def test_a_long_key_is_one_line_of_the_header() -> None:
    """`encodebytes` would break it after 76 characters, and what follows would be a header of its own."""
    assert "encodebytes" not in SOURCE and "base64.b64encode(" in SOURCE
    packed = base64.b64encode(f"{KEY.key_id}:{'x' * 300}".encode()).decode()
    assert "\n" not in packed and len(packed) > 400


def test_telegram_is_only_written_to() -> None:
    """No updates are asked for, so nobody can command the program by a message."""
    assert "getUpdates" not in SOURCE and "setWebhook" not in SOURCE
    assert set(re.findall(r'"/?(send[A-Z]\w+)"|/(send[A-Z]\w+)', SOURCE)) <= {("sendMessage", ""), ("", "sendMessage")}


def test_what_is_logged_stays_on_its_line(tmp_path: Path) -> None:
    """Line breaks of every kind, NUL, the bell and colours of a terminal."""
    log = JsonLog(tmp_path, Redactor([]), SystemClock())
    nasty = 'a\nb\r\n{"level": "info"}\u2028c\u2029d\x85e\x00f\x1b[31mg\x07'
    log.write("info", nasty, nasty, detail=nasty)
    log.close()
    raw = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert raw.count(b"\n") == 1 and raw.endswith(b"\n")
    assert all(32 <= byte < 127 for byte in raw[:-1])
    assert json.loads(raw)["text"] == nasty


NAMES = ("../../etc/passwd", "CON", "NUL.txt", r"\\host\share", "C:\\Windows", "a/b", "A" * 500, "AAA ZAR", "<b>X</b>",
         "AAAZAR\n", "\x1b[31mXBT")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_name_of_the_exchange_is_a_path_or_a_markup(name: str) -> None:
    """Pairs, assets, accounts and ids of orders are plain and short, or the answer is none."""
    clock = FakeClock(1_710_000_000_000)

    def client(body: object) -> LunoClient:
        return LunoClient(FakeTransport(reply(body), clock=clock), KEY, RateLimit(clock), clock, random.Random(1))

    calls: list[Callable[[], object]] = [
        lambda: LunoOrders(client({"balance": [{"account_id": name, "asset": "ZAR", "balance": "1", "reserved": "0"}]})
                           ).balances(),
        lambda: LunoOrders(client({"orders": [{"order_id": name}]})).open_orders(),
        lambda: client({"tickers": [{"pair": name, "timestamp": 1_710_000_000_000, "bid": "1", "ask": "2",
                                     "last_trade": "1", "rolling_24_hour_volume": "1", "status": "ACTIVE"}]}).tickers(),
    ]
    for call in calls if name not in ("CON",) else calls[2:]:  # CON alone is a word like any other account
        with pytest.raises((ExchangeDown, ExchangeRefused)) as told:
            call()
        assert name not in str(told.value)
    assert LunoOrders(client({"error": name, "error_code": name})).cancel("BX1") == "ErrUnreadable"


# ---- S16, S17: files with secrets ------------------------------------------------------------------------------


def problems(session: Session) -> list[str]:
    """What stands between this session and LIVE, as far as this computer can tell."""
    paper = replace(session, mode=Mode.DEMO)
    engine, _ = lunobiz.open_engine(paper, lunobiz.ignore_event)
    found = list(lunobiz._live_problems(session, engine))
    engine.close()
    return found


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """A folder with a .env of its own that only the owner can read."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".env").write_text("LUNOBIZ_ENABLE_LIVE=yes\n", encoding="utf-8")
    (home / ".env").chmod(0o600)
    return Session(Mode.LIVE, Settings(), home, {}, 1, "", 0.0, "OFF")


@POSIX
@pytest.mark.parametrize("rights", [0o644, 0o640, 0o604, 0o666])
def test_live_is_refused_while_others_can_read_the_secrets(session: Session, rights: int) -> None:
    path = session.home / ".env"
    assert not [p for p in problems(session) if ".env can be read" in p]
    path.chmod(rights)
    assert f"{path} can be read by others on this computer: chmod 600 it." in problems(session)


def test_live_is_refused_while_git_would_take_the_secrets(session: Session) -> None:
    """A work tree that does not ignore .env publishes the keys with the next commit."""
    said = f"{session.home / '.env'} is not ignored by git: add it to .gitignore."
    assert said not in problems(session)
    subprocess.run(["git", "init", "-q", str(session.home)], check=True)
    assert said in problems(session)
    (session.home / ".gitignore").write_text(".env\n", encoding="utf-8")
    assert said not in problems(session)


# ---- S19, S23, S27 ---------------------------------------------------------------------------------------------


def test_only_live_reads_the_live_key() -> None:
    """The one place that opens a line with it asks for the mode first; the other two only say whether it is there."""
    uses = [line.strip() for line in SOURCE.splitlines() if "parse_live_key(" in line and not line.startswith("def ")]
    assert "key = parse_live_key(session.env) if session.mode is Mode.LIVE else parse_read_key(session.env)" in uses
    keyed = [line for line in uses if line.startswith("key = ")]
    assert len(keyed) == 1


def test_every_library_has_a_least_and_a_greatest_version() -> None:
    lines = [line for line in (PROGRAM.parent / "requirements.txt").read_text(encoding="utf-8").splitlines()
             if line and not line.startswith("#")]
    assert len(lines) >= 7
    assert [line for line in lines if not re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+( ;.*)?", line)] == []


def test_no_real_key_is_in_any_file_of_the_project() -> None:
    """Luno's secrets are 43 characters, Telegram's tokens have a colon; every one here says that it is invented."""
    shape = re.compile(r"(?<![\w+/=-])(?=[\w-]*\d)(?=[\w-]*[a-z])(?=[\w-]*[A-Z])[\w-]{43}(?![\w+/=-])"
                       r"|\b\d{8,10}:[\w-]{35}\b", re.ASCII)
    listed = subprocess.run(["git", "-C", str(PROGRAM.parent), "ls-files"], capture_output=True, text=True, check=False)
    names = listed.stdout.split() or [str(p.relative_to(PROGRAM.parent)) for p in PROGRAM.parent.glob("tests/*.py")]
    found = {}
    for name in names:
        path = PROGRAM.parent / name
        if path.suffix in (".py", ".md", ".txt", ".toml", ".yml", ".example") and path.is_file():
            for match in shape.findall(path.read_text(encoding="utf-8")):
                if is_random(match):
                    found.setdefault(match, name)
    assert found == {}


INVENTED = ("canary", "secret", "s3cret", "aBcDeFg", "abcdef", "0123456", "123456", "test", "fake", "LiveKey")


def is_random(text: str) -> bool:
    """False for what reads as a name, or as invented by its own words."""
    is_name = text.count("_") >= 3 or text.count("-") >= 4
    return not is_name and not any(word.lower() in text.lower() for word in INVENTED)
