"""KEYS: the signing key of an installation, made once, and the owner's keys, protected; shown nowhere."""

from __future__ import annotations

import copy
import pickle
import stat
import sys
from pathlib import Path

import pytest

import lunobiz
from lunobiz import (
    KEY_FILE,
    PROTECTED_FILE,
    Credentials,
    KeyVault,
    Protection,
    Redactor,
    SettingsError,
    read_install,
    signing_key,
    system_protection,
    write_env,
)

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")


def test_a_key_is_made_once_and_stays(tmp_path: Path) -> None:
    first = signing_key(tmp_path)
    assert first and first == signing_key(tmp_path)
    raw = (tmp_path / KEY_FILE).read_bytes()
    assert len(raw) == 32 and first.secret == raw.hex()
    (tmp_path / "other").mkdir()
    assert signing_key(tmp_path / "other") != first
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [KEY_FILE]


@POSIX
def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    key = signing_key(tmp_path)
    path = tmp_path / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert signing_key(tmp_path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", [b"", b"x" * 31, b"x" * 33])
def test_a_damaged_key_locks_and_is_left_alone(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / KEY_FILE).write_bytes(damage)
    assert not signing_key(tmp_path)
    assert (tmp_path / KEY_FILE).read_bytes() == damage


@POSIX
def test_a_key_elsewhere_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x" * 32)
    (tmp_path / KEY_FILE).symlink_to(tmp_path / "real")
    assert not signing_key(tmp_path)
    (tmp_path / "real").unlink()
    assert not signing_key(tmp_path)
    assert not (tmp_path / "real").exists()


def test_a_folder_that_cannot_hold_a_key_gives_none(tmp_path: Path) -> None:
    assert not signing_key(tmp_path / "missing")
    (tmp_path / KEY_FILE).mkdir()
    assert not signing_key(tmp_path)


def test_the_key_hides_itself_and_can_be_redacted(tmp_path: Path) -> None:
    install = read_install(tmp_path)
    secret = install.key.secret
    assert secret not in repr(install) + str(install)
    for leave in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            leave(install.key)
    cleaned = Redactor([install.key]).clean(f"a key {secret} in install.key")
    assert secret not in cleaned and cleaned.endswith("in install.key")


def test_the_code_is_hashed_from_the_programs_own_file(tmp_path: Path) -> None:
    text = Path(lunobiz.__file__).read_text(encoding="utf-8")
    assert read_install(tmp_path).code_hash == lunobiz.code_hash(text) != ""
    pure = lunobiz.pure_source(text)
    assert "class GatePass" in pure and "class Store" not in pure and "class SystemClock" not in pure


def test_a_program_without_its_source_has_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lunobiz, "__file__", str(tmp_path / "gone.py"))
    lunobiz._program_text.cache_clear()
    try:
        assert read_install(tmp_path).code_hash == ""
    finally:
        lunobiz._program_text.cache_clear()
    assert isinstance(read_install(tmp_path).key, Credentials)


# ---- keys that the owner enters --------------------------------------------------------------------

READ = {"LUNOBIZ_READ_KEY_ID": "abcdefghijklm", "LUNOBIZ_READ_KEY_SECRET": "s" * 43}
LIVE = {"LUNOBIZ_LIVE_KEY_ID": "nopqrstuvwxyz", "LUNOBIZ_LIVE_KEY_SECRET": "t" * 43}
MARK = b"locked:"


def turn(data: bytes) -> bytes:
    """A protection good enough for a test: nothing of the text is left readable."""
    return bytes(byte ^ 0x5A for byte in data)


def lock(data: bytes) -> bytes:
    """As Windows locks bytes to a user."""
    return MARK + turn(data)


def unlock(data: bytes) -> bytes:
    """As Windows opens them; another user's do not open."""
    if not data.startswith(MARK):
        raise ValueError("not yours")
    return turn(data.removeprefix(MARK))


LOCKING = Protection(lock, unlock)


def vault_of(home: Path, protection: Protection | None = LOCKING) -> KeyVault:
    """The keys of a data folder, with a folder of the program beside it."""
    (home / "program").mkdir(exist_ok=True)
    return KeyVault(home, (home, home / "program"), protection)


def all_bytes(home: Path) -> bytes:
    """All that stands in the files of a folder."""
    return b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


def test_a_key_that_was_entered_is_kept_protected_and_other_settings_are_not(tmp_path: Path) -> None:
    vault = vault_of(tmp_path)
    vault.save({**READ, "LUNOBIZ_SLIPPAGE": "0.002"})
    assert vault.env({}) == {**READ, "LUNOBIZ_SLIPPAGE": "0.002"}
    assert (tmp_path / ".env").read_text() == "LUNOBIZ_SLIPPAGE=0.002\n"
    assert not any(value.encode() in all_bytes(tmp_path) for value in READ.values())
    vault.save(LIVE)
    assert vault.env({"PATH": "/bin"}) == {**READ, **LIVE, "LUNOBIZ_SLIPPAGE": "0.002"}
    vault.save(dict.fromkeys(READ, ""))  # taken away again
    assert vault.env({}) == {**LIVE, "LUNOBIZ_SLIPPAGE": "0.002"}


@pytest.mark.parametrize("protection", [LOCKING, None], ids=["protected", "plain"])
def test_a_key_that_was_removed_is_in_no_file_any_more(tmp_path: Path, protection: Protection | None) -> None:
    vault = vault_of(tmp_path, protection)
    write_env(tmp_path / ".env", LIVE)  # by hand, as before it could be entered
    write_env(tmp_path / ".env", {"LUNOBIZ_COUNTER": "ZAR"})  # a dated copy with the key in it
    write_env(tmp_path / "program" / ".env", LIVE)
    vault.save(READ | LIVE)
    vault.save({**dict.fromkeys(LIVE, ""), "LUNOBIZ_SLIPPAGE": "0.002"})
    assert vault.env({}) == {**READ, "LUNOBIZ_COUNTER": "ZAR", "LUNOBIZ_SLIPPAGE": "0.002"}
    vault.save(dict.fromkeys(READ, ""))
    left = all_bytes(tmp_path)
    assert not any(turn(lock(v.encode())) in left or v.encode() in left for v in (READ | LIVE).values())
    if protection is not None:
        assert unlock((tmp_path / PROTECTED_FILE).read_bytes()) == b"{}"


def test_without_protection_a_key_goes_into_the_settings_file(tmp_path: Path) -> None:
    vault = vault_of(tmp_path, None)
    vault.save(READ)
    assert vault.env({}) == READ and not (tmp_path / PROTECTED_FILE).exists()
    assert vault.movable() == () and vault.move() == ()
    assert READ["LUNOBIZ_READ_KEY_ID"] in (tmp_path / ".env").read_text()
    if sys.platform != "win32":
        assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600


def test_the_settings_file_comes_first_and_a_key_is_never_half_of_each(tmp_path: Path) -> None:
    vault = vault_of(tmp_path)
    vault.save(READ | LIVE)
    (tmp_path / ".env").write_text("LUNOBIZ_READ_KEY_ID=other\n")
    assert vault.env({}) == {"LUNOBIZ_READ_KEY_ID": "other", **LIVE}
    assert vault.env({"LUNOBIZ_LIVE_KEY_SECRET": "x"}) == {
        "LUNOBIZ_READ_KEY_ID": "other", "LUNOBIZ_LIVE_KEY_SECRET": "x"}  # fmt: skip
    vault.save(READ)  # what is entered later replaces it
    assert vault.env({}) == READ | LIVE


def test_keys_move_out_of_every_settings_file_and_of_its_dated_copies(tmp_path: Path) -> None:
    vault = vault_of(tmp_path)
    write_env(tmp_path / ".env", {**READ, "LUNOBIZ_COUNTER": "ZAR"})
    write_env(tmp_path / ".env", {"LUNOBIZ_COUNTER": "USDC"})  # leaves a dated copy with the key in it
    (tmp_path / "program" / ".env").write_text("# mine\nexport LUNOBIZ_TELEGRAM_TOKEN='1:abcdefgh'  # bot\nOTHER=1\n")
    before = vault.env({})
    assert vault.movable() == tuple(sorted([*READ, "LUNOBIZ_TELEGRAM_TOKEN"]))
    assert vault.move() == tuple(sorted([*READ, "LUNOBIZ_TELEGRAM_TOKEN"]))
    assert vault.env({}) == before
    assert vault.movable() == () and vault.move() == ()
    left = all_bytes(tmp_path)
    assert not any(value.encode() in left for value in (*READ.values(), "1:abcdefgh"))
    assert (tmp_path / ".env").read_text() == "LUNOBIZ_COUNTER=USDC\n"
    assert (tmp_path / "program" / ".env").read_text() == "# mine\nOTHER=1\n"
    assert [p.read_text() for p in tmp_path.glob(".env.*")] == ["LUNOBIZ_COUNTER=ZAR\n"]


def test_keys_stay_where_they_are_when_they_cannot_be_protected_and_read_back(tmp_path: Path) -> None:
    def refuse(data: bytes) -> bytes:
        raise ValueError("no")

    write_env(tmp_path / ".env", READ)
    before = (tmp_path / ".env").read_bytes()
    for broken in (Protection(refuse, unlock), Protection(lock, refuse), Protection(lambda data: lock(b"{}"), unlock)):
        with pytest.raises(SettingsError) as told:
            vault_of(tmp_path, broken).move()
        assert (tmp_path / ".env").read_bytes() == before
        assert not any(value in str(told.value) for value in READ.values())
        (tmp_path / PROTECTED_FILE).unlink(missing_ok=True)


@pytest.mark.parametrize("damage", [b"", b"another computer's", lock(b"[1]"), lock(b"{"), lock(b'{"A": 1}')])
def test_a_file_that_cannot_be_opened_is_told_and_stops_nothing(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / PROTECTED_FILE).write_bytes(damage)
    vault = vault_of(tmp_path)
    assert vault.env({"LUNOBIZ_HOME": "x"}) == {"LUNOBIZ_HOME": "x"}
    assert bool(vault.trouble) == (damage not in (lock(b"[1]"), lock(b'{"A": 1}')))
    vault.save(READ)
    assert vault.env({}) == READ and vault.trouble == ""


def test_no_text_shows_a_protected_key(tmp_path: Path) -> None:
    vault = vault_of(tmp_path)
    vault.save(READ)
    write_env(tmp_path / ".env", LIVE)
    assert lunobiz.protect_keys(vault).startswith("Windows protects the keys now; 2 lines were removed")
    assert not any(value in repr(vault) + vault.trouble for value in (READ | LIVE).values())


@pytest.mark.skipif(sys.platform != "win32", reason="Windows' own protection")
def test_windows_opens_what_it_has_locked_and_nothing_else(tmp_path: Path) -> None:
    own = system_protection()
    assert own is not None
    raw = own.protect(b"a key" * 100)
    assert b"a key" not in raw and own.unprotect(raw) == b"a key" * 100
    for damage in (b"", b"nonsense", raw[:-9] + bytes(9)):
        with pytest.raises(ValueError):
            own.unprotect(damage)
    vault = vault_of(tmp_path, own)
    vault.save(READ | LIVE)
    assert vault.env({}) == READ | LIVE
