"""DOCTOR: each check says what is and what to do, and never shows a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import lunobiz as lb
from lunobiz import (
    AuditBroken,
    Check,
    DoctorFacts,
    ExchangeDown,
    ExchangeRefused,
    LunobizError,
    MachineFacts,
    RateLimited,
    format_checks,
    has_failed,
    is_ignored_by_git,
    machine_facts,
    run_checks,
)

HALVES = ("READ_KEY_ID", "READ_KEY_SECRET", "LIVE_KEY_ID", "LIVE_KEY_SECRET")
MACHINE = MachineFacts(
    python=(3, 13, 1),
    platform="Linux 6.1 x86_64",
    is_64_bit=True,
    packages=(("numpy", "2.4.6"), ("plyer", "2.1.0")),
    has_tk=True,
    has_display=True,
    free_bytes=50 * 2**30,
)
KEYS = {
    "LUNOBIZ_READ_KEY_ID": "canaryreadid",
    "LUNOBIZ_READ_KEY_SECRET": "CANARYreadsecret",
    "LUNOBIZ_LIVE_KEY_ID": "canaryliveid",
    "LUNOBIZ_LIVE_KEY_SECRET": "CANARYlivesecret",
    "LUNOBIZ_TELEGRAM_TOKEN": "123456789:CANARYtokenCANARYtoken",
    "LUNOBIZ_TELEGRAM_CHAT_ID": "4711",
}


@pytest.fixture
def facts(tmp_path: Path) -> DoctorFacts:
    """A computer on which all is well."""
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in KEYS.items()))
    (tmp_path / ".env").chmod(0o600)
    return DoctorFacts(
        machine=MACHINE,
        home=tmp_path,
        folders=(tmp_path,),
        environ={"PATH": "/bin"},
        open_store=lambda: None,
        read_tickers=lambda: (),
        read_candles=lambda: (),
        skew_ms=lambda: -120.0,
        is_ignored=lambda path: True,
    )


def check(facts: DoctorFacts, name: str) -> Check:
    """The one check of that name."""
    (found,) = (c for c in run_checks(facts) if c.name == name)
    return found


def raising(error: LunobizError) -> Callable[[], object]:
    """A call that fails."""

    def call() -> object:
        raise error

    return call


def env(facts: DoctorFacts, *lines: str) -> DoctorFacts:
    """The same computer with another settings file."""
    (facts.home / ".env").write_text("\n".join(lines) + "\n")
    return facts


def test_all_is_well(facts: DoctorFacts) -> None:
    checks = run_checks(facts)
    assert {c.result for c in checks} <= {"ok", "skip"}
    assert all(c.result == "ok" for c in checks) or os.name == "nt"
    assert not has_failed(checks)
    assert len({c.name for c in checks}) == len(checks) == 18


def test_whatever_is_wrong_has_a_cure(facts: DoctorFacts) -> None:
    worst = replace(
        facts,
        machine=replace(MACHINE, python=(3, 9, 2), packages=(("numpy", ""),), has_tk=False, free_bytes=-1),
        home_doubts=("it is synchronised",),
        open_store=raising(AuditBroken("damaged")),
        read_tickers=raising(ExchangeDown("no answer")),
        read_candles=raising(ExchangeRefused("ErrUnauthorised", "refused")),
        skew_ms=lambda: 9_000.0,
        is_ignored=lambda path: False,
    )
    (facts.home / "KILL").touch()
    env(worst, "LUNOBIZ_RISK_PER_TRADE=7", "LUNOBIZ_READ_KEY_ID=x", "LUNOBIZ_TELEGRAM_CHAT_ID=1")
    checks = run_checks(worst)
    wrong = [c for c in checks if c.result in ("warn", "fail")]
    assert len(wrong) >= 14 and has_failed(checks)
    assert [c.name for c in wrong if not c.cure] == []


@pytest.mark.parametrize(
    ("change", "name", "result", "words"),
    [
        ({"python": (3, 10, 9)}, "Python", "fail", "3.10.9"),
        ({"python": (3, 11, 0)}, "Python", "ok", "3.11.0 on Linux"),
        ({"python": (3, 14, 0)}, "Python", "warn", "3.14.0"),
        ({"is_64_bit": False}, "Python", "warn", "32 bit"),
        ({"packages": (("numpy", "2.0"), ("plyer", ""))}, "Packages", "fail", "numpy 2.0, plyer missing"),
        ({"has_tk": False}, "Window", "fail", "without tkinter"),
        ({"has_display": False}, "Window", "warn", "no display"),
        ({"free_bytes": 2 * 2**30}, "Disk space", "ok", "2.0 GB"),
        ({"free_bytes": 900 * 2**20}, "Disk space", "warn", "0.9 GB"),
        ({"free_bytes": 10 * 2**20}, "Disk space", "fail", "0.0 GB"),
        ({"free_bytes": -1}, "Disk space", "warn", "cannot be read"),
    ],
)
def test_the_machine(
    facts: DoctorFacts, change: dict[str, object], name: str, result: str, words: str
) -> None:
    found = check(replace(facts, machine=replace(MACHINE, **change)), name)  # type: ignore[arg-type]
    assert found.result == result and words in found.text


def test_the_real_machine_is_looked_at(tmp_path: Path) -> None:
    seen = machine_facts(tmp_path, {})
    assert seen.python == sys.version_info[:3]
    assert dict(seen.packages)["numpy"] and dict(seen.packages)["python-dotenv"]
    assert seen.free_bytes > 0
    assert machine_facts(tmp_path / "gone", {}).free_bytes == -1
    if sys.platform.startswith("linux"):
        assert not seen.has_display and machine_facts(tmp_path, {"DISPLAY": ":9"}).has_display


def test_folders(facts: DoctorFacts, tmp_path: Path) -> None:
    assert check(replace(facts, home_doubts=("it is on a network share",)), "Data folder").result == "warn"
    assert check(replace(facts, home=tmp_path / "gone"), "Data folder").result == "fail"
    (tmp_path / "logs").write_text("a file")
    assert check(facts, "Log").result == "fail"
    assert sorted(os.listdir(tmp_path)) == [".env", "logs"]  # the doctor leaves nothing behind


def test_settings_are_judged_field_by_field(facts: DoctorFacts) -> None:
    found = check(env(facts, "LUNOBIZ_MAX_POSITIONS=99", "LUNOBIZ_SLIPPAGE=x"), "Settings")
    assert found.result == "fail"
    assert (
        "LUNOBIZ_MAX_POSITIONS" in found.text and "1 to 8" in found.text and "LUNOBIZ_SLIPPAGE" in found.text
    )
    found = check(env(facts, "LUNOBIZ_EXCHANGE_URL=https://localhost:8443"), "Settings")
    assert (found.result, "TEST EXCHANGE" in found.text) == ("warn", True)


def test_unknown_names_are_told_with_the_nearest_one(facts: DoctorFacts) -> None:
    found = check(env(facts, "LUNOBIZ_READ_KEY_SECERT=CANARYtypo"), ".env")
    assert found.result == "warn" and "did you mean LUNOBIZ_READ_KEY_SECRET?" in found.text
    assert "CANARY" not in format_checks(run_checks(facts))


def test_a_line_that_cannot_be_read_hides_no_other_result(facts: DoctorFacts) -> None:
    checks = run_checks(env(facts, 'LUNOBIZ_READ_KEY_SECRET="CANARYopen'))
    assert next(c for c in checks if c.name == ".env").result == "fail"
    assert {"Settings", "Keys"}.isdisjoint(c.name for c in checks)
    assert "CANARY" not in format_checks(checks)


@pytest.mark.parametrize(
    ("lines", "result", "words"),
    [
        ([], "warn", "read key not set, live key not set"),
        (["LUNOBIZ_READ_KEY_ID=a", "LUNOBIZ_READ_KEY_SECRET=CANARY"], "ok", "read key set, live key not set"),
        (["LUNOBIZ_READ_KEY_ID=a"], "fail", "LUNOBIZ_READ_KEY_SECRET is missing"),
        (
            [f"LUNOBIZ_{part}={value}" for part, value in zip(HALVES, "abac", strict=True)],
            "fail",
            "must be two different keys",
        ),
        (["LUNOBIZ_TELEGRAM_TOKEN=CANARY"], "fail", "LUNOBIZ_TELEGRAM_TOKEN does not look like"),
    ],
)
def test_keys_are_told_by_name(facts: DoctorFacts, lines: list[str], result: str, words: str) -> None:
    found = check(env(facts, *lines), "Keys")
    assert found.result == result and words in found.text and "CANARY" not in found.text


@pytest.mark.skipif(os.name == "nt", reason="rights work otherwise there")
def test_files_that_others_may_read(facts: DoctorFacts) -> None:
    (facts.home / "lunobiz.db").write_bytes(b"")
    (facts.home / "lunobiz.db").chmod(0o640)
    found = check(facts, "File rights")
    assert found.result == "warn" and found.text.endswith("lunobiz.db") and ".env" not in found.text


def test_git_is_asked_for_real(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    path = tmp_path / "sub" / ".env"
    path.parent.mkdir()
    path.touch()
    assert is_ignored_by_git(path) is None
    git("init", "-q")
    assert is_ignored_by_git(path) is False
    (tmp_path / ".gitignore").write_text(".env\n")
    assert is_ignored_by_git(path) is True
    git("add", "--force", "sub/.env")
    assert is_ignored_by_git(path) is False  # ignored too late: it is in the index


def test_a_settings_file_that_git_would_take(facts: DoctorFacts) -> None:
    assert check(replace(facts, is_ignored=lambda path: False), "git").result == "fail"
    assert check(replace(facts, is_ignored=lambda path: None), "git").result == "ok"
    (facts.home / ".env").unlink()
    assert check(replace(facts, is_ignored=lambda path: False), "git").result == "skip"


def test_the_kill_file(facts: DoctorFacts, tmp_path: Path) -> None:
    (tmp_path / "kill.txt").touch()
    found = check(facts, "Kill file")
    assert found.result == "warn" and "kill.txt" in found.text
    gone = tmp_path / "gone"
    assert check(replace(facts, folders=(gone, tmp_path)), "Kill file").result == "fail"


def test_the_database(facts: DoctorFacts) -> None:
    found = check(replace(facts, open_store=raising(AuditBroken("the database is damaged"))), "Database")
    assert (found.result, found.text) == ("fail", "the database is damaged")
    assert check(replace(facts, open_store=None), "Database").result == "skip"


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (ExchangeDown("the exchange cannot be reached"), "warn"),
        (RateLimited(9), "warn"),
        (ExchangeRefused("ErrUnauthorised", "the key was refused"), "fail"),
    ],
)
def test_the_exchange_and_the_key(facts: DoctorFacts, error: LunobizError, result: str) -> None:
    for name, broken in (
        ("Exchange", replace(facts, read_tickers=raising(error))),
        ("Read key works", replace(facts, read_candles=raising(error))),
    ):
        found = check(broken, name)
        assert (found.result, found.text) == (result, str(error)) and found.cure


def test_without_the_network_nothing_is_asked(facts: DoctorFacts) -> None:
    offline = replace(facts, read_tickers=None, read_candles=None, skew_ms=None)
    assert {check(offline, n).result for n in ("Exchange", "Read key works", "Clock")} == {"skip"}
    assert not has_failed(run_checks(offline))


@pytest.mark.parametrize(
    ("skew_ms", "result", "words"),
    [(1_900.0, "ok", "1.9 s away"), (-2_600.0, "warn", "2.6 s away"), (float("nan"), "skip", "not asked")],
)
def test_the_clock(facts: DoctorFacts, skew_ms: float, result: str, words: str) -> None:
    found = check(replace(facts, skew_ms=lambda: skew_ms), "Clock")
    assert found.result == result and words in found.text


def test_the_clock_is_read_after_the_exchange_answered(facts: DoctorFacts) -> None:
    order: list[str] = []

    def skew() -> float:
        order.append("skew")
        return 0.0

    run_checks(
        replace(
            facts,
            read_tickers=lambda: order.append("tickers"),
            read_candles=lambda: order.append("candles"),
            skew_ms=skew,
        )
    )
    assert order == ["tickers", "candles", "skew"]


def test_notices(facts: DoctorFacts) -> None:
    assert check(facts, "Notices").text == "Telegram"
    assert check(env(facts, ""), "Notices").text == "desktop"
    found = check(env(facts, "LUNOBIZ_TELEGRAM_CHAT_ID=4711"), "Notices")
    assert found.result == "warn" and found.text == "LUNOBIZ_TELEGRAM_TOKEN is missing"


def test_live_is_locked_with_its_reasons(facts: DoctorFacts) -> None:
    found = check(replace(facts, live_locks=("no gate row", "no live key")), "LIVE")
    assert (found.result, found.text) == ("ok", "locked: no gate row; no live key")
    assert check(replace(facts, live_locks=()), "LIVE").result == "warn"


def test_only_a_failed_check_is_a_failure() -> None:
    mild = tuple(Check("x", result, "") for result in ("ok", "warn", "skip"))
    assert not has_failed(mild) and not has_failed(())
    assert has_failed((*mild, Check("x", "fail", "")))


def test_the_table_is_aligned_and_a_cure_stands_below() -> None:
    checks = (Check("Python", "ok", "3.13"), Check("Data folder", "fail", "gone", "choose another"))
    assert format_checks(checks).splitlines() == [
        "ok    Python       3.13",
        "fail  Data folder  gone",
        "                   -> choose another",
    ]
    assert format_checks(()) == ""


def test_no_secret_is_in_any_output(facts: DoctorFacts) -> None:
    broken = replace(
        facts,
        read_candles=raising(ExchangeRefused("ErrUnauthorised", "the key was refused")),
        open_store=raising(AuditBroken("damaged")),
    )
    for case in (facts, broken, replace(facts, environ=KEYS), replace(facts, folders=(), environ=KEYS)):
        checks = run_checks(case)
        assert "canary" not in f"{format_checks(checks)}{checks!r}".lower()


def test_the_doctor_tells_of_keys_that_could_be_protected_or_not_opened(facts: DoctorFacts, tmp_path: Path) -> None:
    """Protection here is a mark in front; a file without it is another user's."""
    secret = "s" * 43

    def unlock(data: bytes) -> bytes:
        if not data.startswith(b"!"):
            raise ValueError("not yours")
        return data[1:]

    locking = lb.Protection(lambda data: b"!" + data, unlock)
    given = replace(facts, protection=locking)
    lb.write_env(tmp_path / ".env", {"LUNOBIZ_READ_KEY_ID": "abcdefghijklm", "LUNOBIZ_READ_KEY_SECRET": secret})
    loose = next(c for c in lb.run_checks(given) if c.name == "Keys")
    assert loose.result == "warn" and "readable in .env" in loose.text and secret not in loose.text
    lb.KeyVault(tmp_path, (tmp_path,), locking).move()
    assert next(c for c in lb.run_checks(given) if c.name == "Keys").result == "ok"
    (tmp_path / lb.PROTECTED_FILE).write_bytes(b"?")
    shut = next(c for c in lb.run_checks(given) if c.name == "Keys")
    assert shut.result == "warn" and "cannot be opened" in shut.text


# ---- a folder that the owner looks for ----


def test_a_folder_that_will_do_is_not_made_by_looking_at_it(tmp_path: Path) -> None:
    assert lb.folder_problem(str(tmp_path / "new" / "deep"), {}) == ""
    assert lb.folder_problem(str(tmp_path), {}) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("OneDrive - Work/LunoBiz", "synchronised"), ("Dropbox", "synchronised"), ("file", "cannot be written"),
     ("file/below", "cannot be written")],
)
def test_a_folder_that_will_not_do_is_refused_with_the_reason(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").write_text("x")
    assert words in lb.folder_problem(str(tmp_path / name), {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["", "  ", "LunoBiz", "./here"])
def test_a_folder_is_named_in_full(text: str) -> None:
    assert "whole path" in lb.folder_problem(text, {})


def test_a_full_or_shut_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lb, "disk_usage", lambda path: SimpleNamespace(free=100_000_000))
    assert lb.folder_problem(str(tmp_path), {}) == "only 0.1 GB are free there"
    monkeypatch.setattr(lb, "is_writable", lambda path: False)
    assert "cannot be written" in lb.folder_problem(str(tmp_path), {})
