"""SUPPORT: a bundle tells what a helper needs, and never a key, an amount or a name of the owner's."""

from __future__ import annotations

import base64
import json
import os
import queue
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lunobiz as lb

ROOT = Path(__file__).parent.parent
NOW = 1_763_812_800_000  # 2025-11-22 12:00:00 UTC
SECRETS = {
    "READ_KEY_ID": "canaryreadid1", "READ_KEY_SECRET": "CANARYreadsecret+/=x",
    "LIVE_KEY_ID": "canaryliveid2", "LIVE_KEY_SECRET": "CANARYlivesecretZ",
    "TELEGRAM_TOKEN": "123456789:CANARYtokenCANARYtokenCANARY", "TELEGRAM_CHAT_ID": "471147114",
}  # fmt: skip
ENV = {f"LUNOBIZ_{name}": value for name, value in SECRETS.items()}


def basic(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


LEAKS = (
    *SECRETS.values(), SECRETS["READ_KEY_SECRET"].upper(), quote(SECRETS["READ_KEY_SECRET"], safe=""),
    basic(f"{SECRETS['READ_KEY_ID']}:{SECRETS['READ_KEY_SECRET']}"), basic(SECRETS["LIVE_KEY_SECRET"]),
    "CANARYlivesec and more", SECRETS["LIVE_KEY_SECRET"].encode().hex(),
)  # fmt: skip


def facts(home: Path, **more: object) -> lb.SupportFacts:
    """An installation with canaries in its settings."""
    given = {"home": home, "env": ENV, "secrets": tuple(lb.private_values(ENV)), "checks": (), "mode": "paper"}
    given |= {"database": home / "lunobiz.db", "code": "abc", "now_ms": NOW, **more}
    return lb.SupportFacts(**given)  # type: ignore[arg-type]


def drafted(home: Path, **more: object) -> dict[str, str]:
    return {file.name: file.text for file in lb.draft_support(facts(home, **more)).files}


def log(home: Path, *lines: object) -> None:
    (home / "logs").mkdir(exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (home / "logs" / "2025-11-22.jsonl").write_text(text, encoding="utf-8")


def audit(home: Path, *texts: str) -> None:
    """A database whose texts were written by a store that knew no secrets."""
    store = lb.Store(home / "lunobiz.db", lb.Redactor())
    store.record_events([lb.Event(NOW + n, "entry", "info", text) for n, text in enumerate(texts)])
    store.close()


# ---- what is in it ----


def test_a_bundle_holds_what_a_helper_needs(tmp_path: Path) -> None:
    audit(tmp_path, "first", "second")
    log(tmp_path, {"t": NOW, "level": "info", "kind": "data", "text": "hello", "market_ms": 5, "cash": "x", "n": 7})
    found = drafted(tmp_path, checks=(lb.Check("Disk", "fail", f"{tmp_path} is full", "make room"),))
    assert list(found) == ["about.txt", "doctor.txt", "settings.txt", "log.jsonl", "folder.txt", "decisions.jsonl",
                           "events.jsonl", "sessions.jsonl", "schema.sql"]  # fmt: skip
    assert f"LunoBiz {lb.__version__}" in found["about.txt"] and "2025-11-22T12:00" in found["about.txt"]
    assert "fail  Disk  [data folder] is full" in found["doctor.txt"]
    assert json.loads(found["log.jsonl"]) == {"t": NOW, "level": "info", "kind": "data", "text": "hello",
                                              "market_ms": 5}  # fmt: skip
    assert [json.loads(line)["text"] for line in found["events.jsonl"].splitlines()] == ["first", "second"]
    assert "CREATE TABLE fills" in found["schema.sql"] and "lunobiz.db" in found["folder.txt"]
    assert "snapshots" not in found and not any("sqlite" in text.lower() for text in found.values())


def test_only_the_last_lines_and_rows_are_told(tmp_path: Path) -> None:
    audit(tmp_path, *(f"event x{n}" for n in range(lb.ROWS_TOLD + 5)))
    log(tmp_path, *({"t": n, "text": "x"} for n in range(lb.LOG_LINES_TOLD + 3)), "torn {", [1])
    found = drafted(tmp_path)
    events = found["events.jsonl"].splitlines()
    assert len(events) == lb.ROWS_TOLD and "event x5" in events[0]
    lines = [json.loads(line)["t"] for line in found["log.jsonl"].splitlines()]
    assert lines == list(range(5, lb.LOG_LINES_TOLD + 3))  # two of the last 2,000 were no lines of ours


def test_a_damaged_database_or_no_log_is_told(tmp_path: Path) -> None:
    (tmp_path / "lunobiz.db").write_bytes(b"SQLite format 3\0 and then nothing")
    found = drafted(tmp_path)
    assert "[data folder]" in found["database-trouble.txt"] and "schema.sql" not in found
    assert found["log.jsonl"] == ""
    assert "events.jsonl" not in drafted(tmp_path / "nowhere")


def test_settings_are_told_by_name_and_secrets_only_as_set() -> None:
    env = ENV | {"LUNOBIZ_MAX_POSITIONS": "2", "LUNOBIZ_PAPER_CASH": "CANARYwrongplace", "LUNOBIZ_REED_KEY": "CANARYx",
                 "LUNOBIZ_HOME": "/home/me"}  # fmt: skip
    told = dict(line.split(None, 1) for line in lb.settings_text(env).splitlines())
    assert told["LUNOBIZ_READ_KEY_SECRET"] == told["LUNOBIZ_TELEGRAM_CHAT_ID"] == told["LUNOBIZ_HOME"] == "set"
    assert told["LUNOBIZ_MAX_POSITIONS"] == "2" and told["LUNOBIZ_DAILY_LOSS_CAP"] == "not set"
    assert told["LUNOBIZ_PAPER_CASH"] == "set, not valid" and "no setting" in told["LUNOBIZ_REED_KEY"]
    assert {"CANARYwrongplace", "CANARYx", *SECRETS.values()} <= set(lb.private_values(env))
    assert "2" not in lb.private_values(env)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("buy 0.031344 ETHZAR at 52,456", "buy # ETHZAR at #"),
        ("equity R102,418.55, -R97.96", "equity #, #"),
        ("3 of 3 places; +3.05% and 12 %", "3 of 3 places; +3.05% and 12 %"),
        ("at 14:00 on 2025-11-22, order o123, main:204", "at 14:00 on 2025-11-22, order o123, main:204"),
        ("XBT +0.500000, 1e-8, 500 ZAR, 1234", "XBT #, #, # ZAR, #"),
    ],
)
def test_amounts_are_hidden_in_texts(text: str, clean: str) -> None:
    assert lb.hide_amounts(text) == clean


@given(st.decimals(10, 10**9, places=4), st.sampled_from(["{} ZAR", "cash {}", "R{}", "is {}.", "({})", "{}, x"]))
def test_no_amount_stays(amount: object, words: str) -> None:
    for text in (f"{amount:,}", f"{amount}"):
        assert text not in lb.hide_amounts(words.format(text))
        assert not any(c.isdigit() for c in lb.hide_amounts(words.format(text)))


# ---- secrets ----


@pytest.mark.parametrize("leak", LEAKS)
def test_no_secret_of_log_audit_or_doctor_gets_in(tmp_path: Path, leak: str) -> None:
    log(tmp_path, {"t": NOW, "text": f"before {leak} after", "kind": leak})
    audit(tmp_path, f"told {leak}")
    check = lb.Check("Settings", "fail", f"is {leak}", leak)
    draft = lb.draft_support(facts(tmp_path, checks=(check,), env=ENV | {"LUNOBIZ_X": leak}))
    secrets = tuple(lb.private_values(ENV))
    if leak == SECRETS["LIVE_KEY_SECRET"].encode().hex():  # the redactor does not know this form; the last look does
        with pytest.raises(lb.DataError, match="a secret was found"):
            lb.write_support(tmp_path / "s.zip", draft, secrets)
        return
    assert not any(leak.casefold() in file.text.casefold() for file in draft.files)
    lb.write_support(tmp_path / "s.zip", draft, secrets)
    assert not lb.has_secret(tmp_path / "s.zip", secrets)


def forms(secret: str) -> list[bytes]:
    """A secret as it may stand in a file, base64 at each of its three places in a longer text."""
    data = secret.encode()
    inner = [base64.b64encode(b"id:"[:n] + data + b"tail") for n in range(3)]
    urls = [base64.urlsafe_b64encode(b"id:"[:n] + data + b"tail") for n in range(3)]
    return [data, data.upper(), data.hex().encode(), quote(secret, safe="").encode(), secret.encode("utf-16-le"),
            data[: len(data) // 2], data[len(data) // 2 :], json.dumps(secret).encode(), *inner, *urls]  # fmt: skip


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=48), st.integers(0, 13))
def test_the_last_look_finds_every_form(tmp_path_factory: pytest.TempPathFactory, secret: str, number: int) -> None:
    path = tmp_path_factory.mktemp("zip") / "s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("a.txt", b"before " + forms(secret)[number] + b" after")
    assert lb.has_secret(path, ("other-secret-0", secret))


def test_a_clean_bundle_is_written_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "s.zip"
    lb.write_support(path, lb.draft_support(facts(tmp_path)), tuple(SECRETS.values()))
    with zipfile.ZipFile(path) as bundle:
        assert bundle.testzip() is None and "doctor.txt" in bundle.namelist()
    assert os.name == "nt" or path.stat().st_mode & 0o077 == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.zip"]


@pytest.mark.parametrize("name", ["a.txt", SECRETS["LIVE_KEY_ID"]])
def test_a_bundle_with_a_secret_is_deleted(tmp_path: Path, name: str) -> None:
    """As if the redactor had failed; an older bundle under the name stays as it was."""
    path = tmp_path / "s.zip"
    path.write_bytes(b"older")
    draft = lb.SupportDraft((lb.SupportFile(name, f"x{SECRETS['LIVE_KEY_ID']}x"),))
    with pytest.raises(lb.DataError, match="was deleted: a secret was found"):
        lb.write_support(path, draft, tuple(SECRETS.values()))
    assert [p.name for p in tmp_path.iterdir()] == ["s.zip"] and path.read_bytes() == b"older"


def test_a_bundle_that_cannot_be_read_back_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(path: Path, data: bytes) -> None:
        path.write_bytes(data[:50])

    monkeypatch.setattr(lb, "write_safely", damaged)
    with pytest.raises(lb.DataError):
        lb.write_support(tmp_path / "s.zip", lb.draft_support(facts(tmp_path)), ())
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(lb.DataError, match="choose another place"):
        lb.write_support(tmp_path / "no" / "s.zip", lb.draft_support(facts(tmp_path)), ())


# ---- from the command line and the worker's process ----


def test_the_command_line_writes_a_bundle_even_with_wrong_settings(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    wrong = ENV | {"LUNOBIZ_MAX_POSITIONS": "CANARYpositions", "LUNOBIZ_EXCHANGE_URL": "https://127.0.0.1:9"}
    (home / ".env").write_text("".join(f"{k}='{v}'\n" for k, v in wrong.items()))
    log(home, *({"t": NOW, "text": f"x {leak}"} for leak in LEAKS[:-1]))
    out = tmp_path / "s.zip"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LUNOBIZ_")}
    command = [sys.executable, str(ROOT / "lunobiz.py"), "--support", str(out), "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=clean)
    assert done.returncode == lb.EXIT_OK, done.stderr
    with zipfile.ZipFile(out) as bundle:
        texts = {name: bundle.read(name).decode() for name in bundle.namelist()}
    assert "doctor.txt: " in done.stdout and "fail  Settings" in texts["doctor.txt"]
    told = "\n".join((done.stdout, done.stderr, *texts.values())).casefold()
    assert "canary" not in told and "47114711" not in told


class Pipe:
    """Keeps what a process would send."""

    def __init__(self) -> None:
        self.sent: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.is_closed = False

    def send(self, obj: object) -> None:
        self.sent.put(obj)

    def close(self) -> None:
        self.is_closed = True


def test_the_process_gathers_first_and_writes_what_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lb, "doctor_checks", lambda home, env: ())
    (tmp_path / ".env").write_text("LUNOBIZ_READ_KEY_SECRET=CANARYreadsecret\n")
    pipe = Pipe()
    lb.support_child(tmp_path, "lunobiz.db", lb.Mode.PAPER, lb.AskSupport(), pipe)
    draft = pipe.sent.get_nowait()
    assert isinstance(draft, lb.SupportDraft) and pipe.is_closed and not (tmp_path / "s.zip").exists()
    out = str(tmp_path / "s.zip")
    lb.support_child(tmp_path, "lunobiz.db", lb.Mode.PAPER, lb.SaveSupport(out, draft), pipe)
    assert pipe.sent.get_nowait() == lb.Note("info", f"The support bundle is in {out}", is_passing=True)
    bad = lb.SaveSupport(out, lb.SupportDraft((lb.SupportFile("a", "CANARYreadsecret"),)))
    lb.support_child(tmp_path, "lunobiz.db", lb.Mode.PAPER, bad, pipe)
    note = pipe.sent.get_nowait()
    assert isinstance(note, lb.Note) and note.level == "error" and "was deleted" in note.text


def test_the_signing_key_is_a_secret_too(tmp_path: Path) -> None:
    (tmp_path / "install.key").write_bytes(bytes(range(32)))
    assert lb._loaded_secrets(tmp_path, {}) == (bytes(range(32)).hex(),)
