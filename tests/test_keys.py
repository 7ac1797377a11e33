"""KEYS: the signing key of an installation, made once, private, and shown nowhere."""

from __future__ import annotations

import copy
import pickle
import stat
import sys
from pathlib import Path

import pytest

import lunobiz
from lunobiz import KEY_FILE, Credentials, Redactor, read_install, signing_key

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
    assert read_install(tmp_path).code_hash == ""
    assert isinstance(read_install(tmp_path).key, Credentials)
