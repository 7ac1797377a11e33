"""SYSTEM: clocks, folders, the settings file, the kill file, the lock, secrets and the log."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import lunobiz
from lunobiz import (
    Credentials,
    InstanceLock,
    JsonLog,
    KilledByOwner,
    Redactor,
    SettingsError,
    ShowRequest,
    Side,
    SteppedClock,
    SystemClock,
    data_folder,
    drop_env,
    folder_doubts,
    is_killed,
    is_writable,
    kill_file_found,
    names_only,
    private_file,
    program_folder,
    read_env,
    replace_file,
    write_env,
    write_kill_file,
    write_safely,
)

ON_WINDOWS = sys.platform == "win32"
DAY_MS = 86_400_000
NOON = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp() * 1000)
HOME_OF_PROGRAM = str(Path(lunobiz.__file__).parent)


# ---- clocks ----------------------------------------------------------------------------------------


def test_the_system_clock_agrees_with_the_machine() -> None:
    clock = SystemClock()
    assert abs(clock.now_ms() - time.time() * 1000) < 1000
    before = clock.mono_s()
    clock.sleep(0.02)
    clock.sleep(-5)
    assert 0.015 <= clock.mono_s() - before < 2


def test_a_stepped_clock_moves_only_when_told() -> None:
    clock = SteppedClock(1_000)
    assert (clock.now_ms(), clock.mono_s()) == (1_000, 1.0)
    for _ in range(10):
        clock.sleep(0.0004)  # a tenth of these is less than a millisecond
    assert clock.now_ms() == 1_004
    clock.sleep(-1)
    assert clock.now_ms() == 1_004
    clock.set_ms(7_000)
    assert (clock.now_ms(), clock.mono_s()) == (7_000, 7.0)


# ---- folders ---------------------------------------------------------------------------------------


def test_the_argument_wins_over_the_environment_and_is_made(tmp_path: Path) -> None:
    wanted = tmp_path / "mit Leerzeichen é" / "deep"
    assert data_folder(str(wanted), {"LUNOBIZ_HOME": str(tmp_path / "other")}) == wanted.resolve()
    assert wanted.is_dir()
    assert not (tmp_path / "other").exists()
    assert data_folder(None, {"LUNOBIZ_HOME": str(tmp_path / "other")}) == (tmp_path / "other").resolve()
    assert data_folder("  ", {"LUNOBIZ_HOME": str(tmp_path / "other")}) == (tmp_path / "other").resolve()


@pytest.mark.skipif(ON_WINDOWS, reason="folders of other systems")
def test_the_default_folder_of_each_system(tmp_path: Path) -> None:
    choose = lunobiz._default_folder
    program = tmp_path / "program"
    program.mkdir()
    assert choose(program, {"LOCALAPPDATA": "/local"}, "win32") == Path("/local/LunoBiz")
    assert choose(program, {"XDG_DATA_HOME": "/xdg"}, "linux") == Path("/xdg/LunoBiz")
    assert choose(program, {"XDG_DATA_HOME": "not/absolute"}, "linux") == Path.home() / ".local/share/LunoBiz"
    assert choose(program, {}, "darwin") == Path.home() / "Library/Application Support/LunoBiz"
    (program / "portable.txt").touch()
    assert choose(program, {"LOCALAPPDATA": "/local"}, "win32") == program


def test_a_chosen_folder_is_found_again_unless_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, chosen, named = tmp_path / "usual", tmp_path / "chosen é", tmp_path / "named"
    monkeypatch.setattr(lunobiz, "_default_folder", lambda program, env, platform: usual)
    assert data_folder(None, {}) == usual and lunobiz.usual_folder(None, {}) == usual
    chosen.mkdir()
    (usual / "folder.txt").write_text(f"{chosen}\n", encoding="utf-8")
    assert data_folder(None, {}) == chosen and lunobiz.usual_folder(None, {}) == usual
    assert data_folder(str(named), {}) == named and lunobiz.usual_folder(str(named), {}) is None
    assert data_folder(None, {"LUNOBIZ_HOME": str(named)}) == named
    assert lunobiz.usual_folder(None, {"LUNOBIZ_HOME": str(named)}) is None


@pytest.mark.parametrize("text", [b"", b"relative", b"\xff\xfe", b"<gone>", b"/a\0b"])
def test_a_chosen_folder_that_is_gone_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    """A new folder would be empty: positions and the passes of the gates would be forgotten without a word."""
    monkeypatch.setattr(lunobiz, "_default_folder", lambda program, env, platform: tmp_path)
    (tmp_path / "folder.txt").write_bytes(text.replace(b"<gone>", bytes(tmp_path / "gone" / "below")))
    with pytest.raises(SettingsError, match=r"folder\.txt names the data folder .* is not there"):
        data_folder(None, {})
    assert [path.name for path in tmp_path.iterdir()] == ["folder.txt"]


def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for wanted in (tmp_path / "file" / "below", tmp_path / "file", tmp_path / "nul\0byte"):
        with pytest.raises(SettingsError, match="data folder"):
            data_folder(str(wanted), {})


def test_a_folder_without_write_access_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(Path, "touch", refuse)  # rights do not bind the administrator, so they are pretended
    with pytest.raises(SettingsError, match="cannot be written"):
        data_folder(str(tmp_path), {})


@pytest.mark.parametrize(
    ("folder", "env", "words"),
    [
        ("/home/me/OneDrive - Work/LunoBiz", {}, "synchronised"),
        ("/home/me/Dropbox/LunoBiz", {}, "synchronised"),
        ("/home/me/Google Drive/x", {}, "synchronised"),
        ("/home/me/cloud/x", {"OneDriveCommercial": "/home/me/cloud"}, "synchronised"),
        ("//server/share/x", {}, "network"),
    ],
)
def test_synced_and_network_folders_are_doubted(folder: str, env: dict[str, str], words: str) -> None:
    assert any(words in doubt for doubt in folder_doubts(Path(folder), env))


def test_an_ordinary_folder_is_not_doubted() -> None:
    assert folder_doubts(Path("/home/me/LunoBiz"), {"OneDrive": "/home/me/OneDrive", "OneDriveConsumer": ""}) == ()


def test_the_program_folder_is_the_scripts_and_the_exes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert program_folder() == Path(HOME_OF_PROGRAM).resolve()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "LunoBiz.exe"))
    assert program_folder() == tmp_path.resolve()


# ---- files -----------------------------------------------------------------------------------------


def test_replacing_waits_for_a_file_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = os.replace

    def held_twice(source: Path, target: Path) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise PermissionError(13, "held")
        real(source, target)

    waits: list[float] = []
    monkeypatch.setattr(os, "replace", held_twice)
    (tmp_path / "a").write_text("new")
    replace_file(tmp_path / "a", tmp_path / "b", waits.append)
    assert (tmp_path / "b").read_text() == "new"
    assert len(waits) == 2


def test_replacing_gives_up_after_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(source: Path, target: Path) -> None:
        raise PermissionError(13, "held")

    waits: list[float] = []
    monkeypatch.setattr(os, "replace", held)
    with pytest.raises(PermissionError):
        replace_file(tmp_path / "a", tmp_path / "b", waits.append)
    assert len(waits) == 4
    assert sum(waits) == pytest.approx(1.0)


@pytest.mark.skipif(ON_WINDOWS, reason="Windows has other rights")
def test_written_files_are_private(tmp_path: Path) -> None:
    write_safely(tmp_path / "x", b"1")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600
    (tmp_path / "y").touch(mode=0o644)
    private_file(tmp_path / "y")
    assert stat.S_IMODE((tmp_path / "y").stat().st_mode) == 0o600
    private_file(tmp_path / "missing")  # never raises


WINDOWS_FILE = r"C:\Users\me\My Desk\.env"


@pytest.mark.parametrize(("listing", "is_alone"), [
    (r"C:\Users\me\My Desk\.env DESKTOP\me:(F)" "\n\nSuccessfully processed 1 files\n", True),
    (r"C:\Users\me\My Desk\.env DESKTOP\ME:(R,W)" "\r\n\r\n1 Dateien erfolgreich verarbeitet\r\n", True),
    (r"C:\Users\me\My Desk\.env NT AUTHORITY\SYSTEM:(I)(F)" "\n    BUILTIN\\Administrators:(I)(F)\n"
     "    DESKTOP\\me:(I)(F)\n", False),
    (r"C:\Users\me\My Desk\.env Everyone:(F)" "\n    DESKTOP\\me:(F)\n", False),
    (r"C:\Users\me\My Desk\.env DESKTOP\other:(F)" "\n", False),
    (r"C:\Users\me\My Desk\.env: The device does not support this." "\n", False),
    ("", False),
])  # fmt: skip
def test_rights_on_windows_are_the_owners_alone(listing: str, is_alone: bool) -> None:
    """As icacls prints them; what it does not say is not so."""
    assert names_only(listing, WINDOWS_FILE, "me") is is_alone


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "no space")

    write_safely(tmp_path / "x", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_safely(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


# ---- the settings file -----------------------------------------------------------------------------


def env_file(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    """A settings file with this text."""
    folder.mkdir(exist_ok=True)
    path = folder / ".env"
    path.write_bytes(text.encode(encoding))
    return path


def test_the_environment_wins_then_the_first_folder(tmp_path: Path) -> None:
    env_file(tmp_path / "a", "LUNOBIZ_PAIRS=FIRST\nLUNOBIZ_COUNTER=\nOTHER=1\n")
    env_file(tmp_path / "b", "LUNOBIZ_PAIRS=SECOND\nLUNOBIZ_COUNTER=EUR\nLUNOBIZ_SLIPPAGE=0.1\n")
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "none"]
    found = read_env(folders, {"LUNOBIZ_SLIPPAGE": "0.2", "PATH": "/bin", "LUNOBIZ_HOME": "/x"})
    # an empty line of the copied example does not hide what the other file says
    assert found == {
        "LUNOBIZ_PAIRS": "FIRST",
        "LUNOBIZ_COUNTER": "EUR",
        "LUNOBIZ_SLIPPAGE": "0.2",
        "LUNOBIZ_HOME": "/x",
    }


def test_nothing_is_interpolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNOBIZ_A", "leak")
    env_file(tmp_path, "LUNOBIZ_X=${LUNOBIZ_A}\nLUNOBIZ_Y=\"$HOME ${HOME:-x}\"\nLUNOBIZ_Z='${A}'\n")
    found = read_env([tmp_path], {})
    assert found == {"LUNOBIZ_X": "${LUNOBIZ_A}", "LUNOBIZ_Y": "$HOME ${HOME:-x}", "LUNOBIZ_Z": "${A}"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_editors_write_is_read(tmp_path: Path, encoding: str) -> None:
    text = "# a comment\r\nexport LUNOBIZ_A = 'x y'  # why\r\n\r\nLUNOBIZ_B=a#b # c\r\nLUNOBIZ_C=é\r\n"
    env_file(tmp_path, text, encoding)
    assert read_env([tmp_path], {}) == {"LUNOBIZ_A": "x y", "LUNOBIZ_B": "a#b", "LUNOBIZ_C": "é"}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("LUNOBIZ_A=1\n", "utf-16"),
        ("LUNOBIZ_A=1\n", "utf-16-le"),
        ("LUNOBIZ_A=é\n", "latin-1"),
        ("\0\0\0\0", "ascii"),
        ("LUNOBIZ_SECRET='never closed\n", "ascii"),
        ("X=1\nLUNOBIZ_SECRET\n", "ascii"),
    ],
)
def test_a_damaged_settings_file_is_named_and_not_shown(tmp_path: Path, text: str, encoding: str) -> None:
    env_file(tmp_path, text, encoding)
    with pytest.raises(SettingsError) as caught:
        read_env([tmp_path], {})
    assert ".env" in str(caught.value)
    assert "never closed" not in str(caught.value)


def test_lines_of_other_programs_do_not_disturb(tmp_path: Path) -> None:
    env_file(tmp_path, "WEIRD LINE ' here\nFLAG\nLUNOBIZ_A=1\n")
    assert read_env([tmp_path], {}) == {"LUNOBIZ_A": "1"}


BEFORE = """# my settings
export LUNOBIZ_PAIRS=XBTZAR   # the big one

OTHER_PROGRAM="keep = me # exactly"
LUNOBIZ_READ_KEY_SECRET='old #secret'  # from March
LUNOBIZ_COUNTER=
FLAG
# the end"""

AFTER = """# my settings
export LUNOBIZ_PAIRS=ETHZAR,XRPZAR   # the big one

OTHER_PROGRAM="keep = me # exactly"
LUNOBIZ_READ_KEY_SECRET=new  # from March
LUNOBIZ_COUNTER=EUR
FLAG
# the end
LUNOBIZ_SLIPPAGE='a b'
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_writing_keeps_comments_and_foreign_lines(tmp_path: Path, newline: str) -> None:
    path = env_file(tmp_path, BEFORE.replace("\n", newline))
    old = path.read_bytes()
    values = {
        "LUNOBIZ_PAIRS": "ETHZAR,XRPZAR",
        "LUNOBIZ_READ_KEY_SECRET": "new",
        "LUNOBIZ_COUNTER": "EUR",
        "LUNOBIZ_SLIPPAGE": "a b",
    }
    write_env(path, values)
    assert path.read_bytes().decode() == AFTER.replace("\n", newline)
    (copy,) = (p for p in tmp_path.iterdir() if p != path)
    assert copy.read_bytes() == old
    today = datetime.now(UTC)
    assert copy.name.startswith(f".env.{today:%Y-%m-}")
    if not ON_WINDOWS:
        assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}


def test_a_first_settings_file_has_no_copy(tmp_path: Path) -> None:
    write_env(tmp_path / ".env", {"LUNOBIZ_COUNTER": "ZAR"})
    assert [p.name for p in tmp_path.iterdir()] == [".env"]
    assert (tmp_path / ".env").read_bytes() == b"LUNOBIZ_COUNTER=ZAR\n"


def test_only_the_newest_copies_stay(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    for day in range(1, 15):
        (tmp_path / f".env.2020-01-{day:02}T000000Z").write_text("old")
    (tmp_path / ".env.example").write_text("not a copy")
    write_env(path, {"LUNOBIZ_A": "1"})
    for value in "234":
        write_env(path, {"LUNOBIZ_A": value})
    copies = sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".env.2"))
    assert len(copies) == 10
    assert sum(not name.startswith(".env.2020") for name in copies) == 3
    assert (tmp_path / ".env.example").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"PATH": "x"},
        {"LUNOBIZ_": "x"},
        {"LUNOBIZ_A\nB": "x"},
        {"LUNOBIZ_A": "x\nLUNOBIZ_ENABLE_LIVE=yes"},
        {"LUNOBIZ_A": "x\0"},
        {"LUNOBIZ_A": "x\ry"},
    ],
)
def test_nothing_can_be_smuggled_into_the_settings_file(tmp_path: Path, values: dict[str, str]) -> None:
    path = env_file(tmp_path, "LUNOBIZ_A=1\n")
    with pytest.raises(SettingsError):
        write_env(path, values)
    assert path.read_bytes() == b"LUNOBIZ_A=1\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_settings_file_that_cannot_be_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "no space")

    path = env_file(tmp_path, "LUNOBIZ_A=1\n")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match="nothing was changed"):
        write_env(path, {"LUNOBIZ_A": "2"})
    assert path.read_bytes() == b"LUNOBIZ_A=1\n"


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=["Cc", "Cs"])).filter(
    str.isprintable
)
LINES = st.sampled_from(
    [
        "# note",
        "",
        "X='a # b'",
        'Y="1\\n2"',
        "LUNOBIZ_A=old # why",
        "export LUNOBIZ_A='ol\\'d'",
        "LUNOBIZ_A= # c",
        "F",
    ]
)


@given(value=PRINTABLE, lines=st.lists(LINES, max_size=6), is_ended=st.booleans())
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, value: str, lines: list[str], is_ended: bool
) -> None:
    folder = tmp_path_factory.mktemp("env")
    path = env_file(folder, "\n".join(lines) + ("\n" if is_ended else ""))
    before = read_env([folder], {})
    write_env(path, {"LUNOBIZ_A": value, "LUNOBIZ_B": "1"})
    expected = {k: v for k, v in before.items() if k != "LUNOBIZ_A"} | {"LUNOBIZ_B": "1"}
    assert read_env([folder], {}) == expected | ({"LUNOBIZ_A": value} if value else {})
    kept = [line for line in lines if "LUNOBIZ" not in line]
    assert [line for line in path.read_text("utf-8").split("\n") if line in kept and line] == [k for k in kept if k]


# ---- the kill file ---------------------------------------------------------------------------------


def test_lines_are_taken_out_and_all_else_stays(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"# top\r\nLUNOBIZ_A=1\r\n\r\nLUNOBIZ_B='two words' # why\r\nOTHER=x\r\n")
    drop_env(path, ["LUNOBIZ_B", "LUNOBIZ_C"])
    assert path.read_bytes() == b"# top\r\nLUNOBIZ_A=1\r\nOTHER=x\r\n"
    assert [p.name for p in tmp_path.iterdir()] == [".env"]  # no copy: it would hold the line
    drop_env(tmp_path / "missing" / ".env", ["LUNOBIZ_A"])


def test_a_folder_is_writable_only_if_our_longest_names_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Ünïcödé – 日本"
    folder.mkdir()
    assert is_writable(folder)
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(lunobiz, "LONGEST_NAME", 300)  # longer than any system takes, as a deep folder's would be
    assert not is_writable(folder)


@pytest.mark.parametrize("name", ["KILL", "kill", "Kill", "KILL.txt", "kill.TXT", "Kill.txt.txt", "KILL.", " kill "])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_kill_file_in_any_form_stops(tmp_path: Path, name: str, is_folder: bool) -> None:
    if ON_WINDOWS and name != name.strip(" ."):
        pytest.skip("Windows takes such a name for the plain one")
    assert not is_killed([tmp_path])
    if is_folder:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).touch()
    assert is_killed([tmp_path])
    assert kill_file_found([tmp_path]) == tmp_path / name


@pytest.mark.parametrize("name", ["KILLED", "skill", "kill.log", "kill2", "to kill", ".killer", "KILL.txt.bak"])
def test_other_names_do_not_stop(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert not is_killed([tmp_path])
    assert kill_file_found([tmp_path]) is None


def test_the_folder_of_the_program_counts_as_well(tmp_path: Path) -> None:
    data, program = tmp_path / "data", tmp_path / "program"
    data.mkdir()
    program.mkdir()
    assert not is_killed([data, program])
    (program / "kill.txt").touch()
    assert is_killed([data, program])
    assert kill_file_found([data, program]) == program / "kill.txt"


def test_any_doubt_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert is_killed([tmp_path, tmp_path / "gone"])
    assert is_killed([tmp_path, tmp_path / "file"])
    assert is_killed([Path("nul\0byte")])
    assert is_killed([])
    assert kill_file_found([tmp_path / "gone"]) == tmp_path / "gone"

    def refuse(folder: Path) -> Sequence[str]:
        raise PermissionError(13, "no")

    monkeypatch.setattr(os, "listdir", refuse)
    assert is_killed([tmp_path])


@pytest.mark.skipif(ON_WINDOWS, reason="links need rights there")
def test_a_link_to_nowhere_named_kill_stops(tmp_path: Path) -> None:
    (tmp_path / "KILL").symlink_to(tmp_path / "nowhere")
    assert is_killed([tmp_path])


def test_the_button_writes_the_kill_file(tmp_path: Path) -> None:
    write_kill_file(tmp_path)
    write_kill_file(tmp_path)
    assert is_killed([tmp_path])


def test_a_kill_file_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(KilledByOwner, match="close the program"):
        write_kill_file(tmp_path)


def test_the_button_makes_a_folder_when_no_file_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", full)
    write_kill_file(tmp_path)
    assert is_killed([tmp_path])


# ---- staying awake ---------------------------------------------------------------------------------

KEEP, LET_GO = 0x80000001, 0x80000000  # ES_CONTINUOUS, the first with ES_SYSTEM_REQUIRED


class Windows:
    """Notes what it was asked; refuses as long as it is told to."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.refuses = False

    def ask(self, state: int) -> int:
        """The state before, or 0 for a refusal."""
        self.asked.append(state)
        return 0 if self.refuses else LET_GO


def test_the_system_is_asked_to_stay_awake_only_where_that_changes() -> None:
    windows = Windows()
    awake = lunobiz.KeepAwake(windows.ask)
    for is_wanted in (False, False, True, True, True, False, False, True):
        awake.hold(is_wanted)
        assert awake.is_held is is_wanted
    assert windows.asked == [KEEP, LET_GO, KEEP]


def test_a_refusal_is_no_answer_and_it_is_asked_again() -> None:
    windows = Windows()
    awake = lunobiz.KeepAwake(windows.ask)
    windows.refuses = True
    for _ in range(3):
        awake.hold(True)
        assert not awake.is_held
    awake.hold(False)  # nothing is held, so there is nothing to let go
    windows.refuses = False
    awake.hold(True)
    assert windows.asked == [KEEP] * 4
    windows.refuses = True
    awake.hold(False)
    awake.hold(False)
    assert windows.asked[4:] == [LET_GO, LET_GO]
    assert awake.is_held


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has something to ask")
def test_other_systems_are_left_alone() -> None:
    awake = lunobiz.KeepAwake()
    awake.hold(True)
    assert not awake.is_held


# ---- one program per folder ------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from lunobiz import InstanceLock
lock = InstanceLock(Path(sys.argv[1]))
print("got" if lock.acquire() else "no", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of the folder."""
    env = os.environ | {"PYTHONPATH": HOME_OF_PROGRAM}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "instance.lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "got\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_program_is_refused_until_the_first_dies(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    lock = InstanceLock(tmp_path / "instance.lock")
    assert not lock.acquire()
    assert not lock.acquire()
    if ON_WINDOWS:
        holder.kill()
    else:
        holder.send_signal(signal.SIGKILL)
    holder.wait()
    deadline = time.monotonic() + 5  # Windows frees the lock a moment after the process is gone
    while not (has_lock := lock.acquire()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert has_lock
    lock.release()


def test_the_lock_goes_round_in_one_process(tmp_path: Path) -> None:
    first, second = InstanceLock(tmp_path / "l"), InstanceLock(tmp_path / "l")
    assert first.acquire()
    assert first.acquire()
    assert not second.acquire()
    first.release()
    first.release()
    assert second.acquire()
    second.release()
    assert InstanceLock(tmp_path / "other").acquire()


def test_a_lock_that_cannot_be_opened_is_no_second_program(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="rights"):
        InstanceLock(tmp_path / "missing" / "l").acquire()


# ---- a second start --------------------------------------------------------------------------------


def test_a_request_to_be_shown_is_taken_once(tmp_path: Path) -> None:
    window, second = ShowRequest(tmp_path), ShowRequest(tmp_path)
    assert not window.take() and not second.is_waiting
    assert second.ask() and second.ask() and second.is_waiting
    assert window.take()
    assert not window.take() and not second.is_waiting


def test_a_request_that_cannot_be_left_or_removed_is_none(tmp_path: Path) -> None:
    assert not ShowRequest(tmp_path / "missing").ask()
    (tmp_path / "show.request").mkdir()
    assert not ShowRequest(tmp_path).take()


# ---- secrets ---------------------------------------------------------------------------------------

LUNO_SECRET = "Zx81kQpL0aBcDeFgHiJkLmNoPqRsTuVwXyZ-_123456"  # the shape of Luno's: 43 of A-Z a-z 0-9 - _
KEY = Credentials("d5gtn3zq7x5kp", LUNO_SECRET)
TOKEN = Credentials("telegram", "123456789:AAE-canary_canary_canary_canary_canary")


def leaks(text: str, *secrets: str) -> list[str]:
    """What of the secrets a text still gives away, in the encodings in which they leak."""
    forms = []
    for secret in secrets:
        half = len(secret) // 2
        forms += [
            secret,
            quote(secret, safe=""),
            json.dumps(secret)[1:-1],
            base64.b64encode(secret.encode()).decode(),
        ]
        forms += [part for part in (secret[:half], secret[half:]) if len(part) >= 8]
    forms += [base64.b64encode(f"{a}:{b}".encode()).decode() for a in secrets for b in secrets if a != b]
    return [form for form in forms if form.rstrip("=") in text]


@pytest.mark.parametrize(
    "text",
    [
        f"key {KEY.key_id} refused",
        f"GET https://{KEY.key_id}:{KEY.secret}@api.luno.com/x",
        "Authorization: Basic " + base64.b64encode(f"{KEY.key_id}:{KEY.secret}".encode()).decode(),
        str({"Authorization": "Basic " + base64.b64encode(f"{KEY.key_id}:{KEY.secret}".encode()).decode()}),
        f"/bot{TOKEN.secret}/sendMessage failed",
        "/bot" + quote(TOKEN.secret, safe="") + "/sendMessage failed",
        f"first half {KEY.secret[:21]} and second half {KEY.secret[21:]}",
        KEY.secret.upper(),
        KEY.secret * 3,
        json.dumps({"secret": KEY.secret, "n": [KEY.key_id]}),
    ],
)
def test_loaded_secrets_are_taken_out(text: str) -> None:
    cleaned = Redactor([KEY, TOKEN]).clean(text)
    assert leaks(cleaned.casefold(), *(s.casefold() for s in (KEY.key_id, KEY.secret, TOKEN.secret))) == []
    assert leaks(cleaned, KEY.key_id, KEY.secret, TOKEN.secret) == []
    assert "***" in cleaned


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        (f"it was {LUNO_SECRET}.", LUNO_SECRET),
        ("authorization=Basic c2hvcnQ=", "c2hvcnQ"),
        ("Proxy-Authorization: Bearer abc.def", "abc.def"),
        ("sent Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "QWxhZGRpbjpvcGVu"),
        ("url /bot987654321:AAxyz_abcdefghijk/getMe", "AAxyz_abcdefghijk"),
        ("token 987654321:AAxyz_abcdefghijklmnopqrstuvwxyz0", "AAxyz_abcdefghijk"),
        ("https://user:hunter2@host/", "hunter2"),
        ("LUNOBIZ_READ_KEY_SECRET=hunter2", "hunter2"),
        ('{"api_key_secret": "hunter2"}', "hunter2"),
        ("LUNOBIZ_TELEGRAM_TOKEN='hunter2'", "hunter2"),
    ],
)
def test_unknown_secrets_are_taken_out_by_their_shape(text: str, gone: str) -> None:
    cleaned = Redactor([]).clean(text)
    assert gone not in cleaned
    assert "***" in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "",
        "BUY 0.5 XBTZAR at 1,234,567 (stop 1,200,000)",
        "order LB1-0a1b2c3d-000017@1767225900000 is open",
        "LUNOBIZ_READ_KEY_SECRET is missing: a key needs both its id and its secret",
        "basic settings and authorization by the owner; the telegram channel is off",
        "https://www.luno.com/en/developers/api#operation/getTicker",
        "a" * 64,  # a hash has 64
        "2026-03-01T12:00:00.000Z é – ≤ 日本",
    ],
)
def test_ordinary_texts_stay(text: str) -> None:
    assert Redactor([KEY, TOKEN]).clean(text) == text


SECRETS = st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4, max_size=50), max_size=4)


@given(secrets=SECRETS, data=st.data())
@hypothesis_settings(max_examples=100)
def test_no_secret_is_left_whatever_it_is_wrapped_in(secrets: list[str], data: st.DataObject) -> None:
    pieces = [
        *secrets,
        *(quote(s, safe="") for s in secrets),
        *(base64.b64encode(f"{a}:{b}".encode()).decode() for a in secrets for b in secrets if a != b),
        *(s[: len(s) // 2] for s in secrets),
        *(json.dumps(s) for s in secrets),
    ]
    filler = st.text(max_size=8) | st.sampled_from(["***", "Basic ", "://", ":", "=", "bot"])
    text = "".join(data.draw(st.lists(st.sampled_from(pieces) | filler if pieces else filler, max_size=8)))
    redactor = Redactor(secrets)
    cleaned = redactor.clean(text)
    assert leaks(cleaned, *secrets) == []
    assert redactor.clean(cleaned) == cleaned
    assert redactor.clean_value({"a": [text, {text: text}]}) == {"a": [cleaned, {cleaned: cleaned}]}


@given(text=st.text(max_size=200))
def test_cleaning_without_secrets_never_fails(text: str) -> None:
    Redactor([]).clean(text)
    Redactor([""]).clean(text)


def test_values_become_plain_and_clean() -> None:
    value = {
        "secret": [LUNO_SECRET, 1.5, float("nan"), None, True],
        "d": Decimal("1.10"),
        "p": Path("x"),
        "e": Side.BUY,
        "o": KEY,
        7: object(),
    }
    assert Redactor([KEY]).clean_value(value) == {
        "secret": ["***", 1.5, "nan", None, True],
        "d": "1.10",
        "p": "x",
        "e": "BUY",
        "o": "Credentials",
        "7": "object",
    }


# ---- the log ---------------------------------------------------------------------------------------


def log_lines(folder: Path, name: str) -> list[dict[str, object]]:
    """The lines of a log file; each must be JSON of its own."""
    return [json.loads(line) for line in (folder / "logs" / name).read_text("ascii").splitlines()]


def test_a_line_is_one_json_object_without_secrets(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "logs", Redactor([KEY]), SteppedClock(NOON))
    log.write("info", "fill", f"bought\n{LUNO_SECRET}\u2028\x00é", pair="XBTZAR", price=1.5, t=3, raw=object())
    log.close()
    (row,) = log_lines(tmp_path, "2026-03-01.jsonl")
    assert row == {
        "t": NOON,
        "level": "info",
        "kind": "fill",
        "text": "bought\n***\u2028\x00é",
        "pair": "XBTZAR",
        "price": 1.5,
        "raw": "object",
    }
    assert log.failures == 0
    if not ON_WINDOWS:
        assert stat.S_IMODE((tmp_path / "logs" / "2026-03-01.jsonl").stat().st_mode) == 0o600


def test_each_day_has_its_file_and_old_ones_go(tmp_path: Path) -> None:
    clock = SteppedClock(NOON)
    log = JsonLog(tmp_path / "logs", Redactor([]), clock)
    for _ in range(35):
        log.write("info", "tick", "x")
        clock.sleep(86_400)
    log.close()
    (tmp_path / "logs" / "notes.txt").touch()
    names = sorted(p.name for p in (tmp_path / "logs").glob("*.jsonl"))
    assert len(names) == 30
    assert (names[0], names[-1]) == ("2026-03-06.jsonl", "2026-04-04.jsonl")
    log.write("info", "tick", "y")
    log.close()
    assert (tmp_path / "logs" / "notes.txt").exists()


def test_a_file_has_a_size_and_a_day_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lunobiz, "LOG_BYTES", 1_000)
    log = JsonLog(tmp_path / "logs", Redactor([]), SteppedClock(NOON))
    for number in range(200):
        log.write("info", "n", str(number))
    log.close()
    files = sorted((tmp_path / "logs").iterdir())
    assert [f.name for f in files] == ["2026-03-01-2.jsonl", *(f"2026-03-01-{n}.jsonl" for n in range(3, 10)),
                                       "2026-03-01.jsonl"]  # fmt: skip
    assert all(f.stat().st_size <= 1_000 for f in files)
    kept = sum(len(f.read_bytes().splitlines()) for f in files)
    assert kept + log.failures == 200
    assert log.failures > 0


def test_the_log_goes_on_in_its_file_and_mends_a_torn_line(tmp_path: Path) -> None:
    clock = SteppedClock(NOON)
    first = JsonLog(tmp_path / "logs", Redactor([]), clock)
    first.write("info", "a", "1")
    first.close()
    with (tmp_path / "logs" / "2026-03-01.jsonl").open("ab") as stream:
        stream.write(b'{"kind": "to')
    second = JsonLog(tmp_path / "logs", Redactor([]), clock)
    second.write("info", "b", "2")
    second.close()
    lines = (tmp_path / "logs" / "2026-03-01.jsonl").read_text().splitlines()
    assert [json.loads(lines[0])["kind"], lines[1], json.loads(lines[2])["kind"]] == [
        "a",
        '{"kind": "to',
        "b",
    ]


def test_a_huge_line_is_cut_after_it_was_cleaned(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "logs", Redactor([KEY]), SteppedClock(NOON))
    log.write("info", "big", "x" * 380 + LUNO_SECRET * 500, more="y" * 10_000)
    log.close()
    (row,) = log_lines(tmp_path, "2026-03-01.jsonl")
    assert str(row["text"]).startswith("x" * 380 + "***")
    assert len(str(row["text"])) == 400
    assert "more" not in row


class BrokenClock(SteppedClock):
    """A clock far outside the calendar."""

    def now_ms(self) -> int:
        return 10**20


def test_trouble_is_counted_and_never_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop: list[object] = []
    loop.append(loop)
    (tmp_path / "logs").write_text("a file where the folder should be")
    log = JsonLog(tmp_path / "logs", Redactor([]), SteppedClock(NOON))
    log.write("info", "a", "x")
    log.write("info", "a", "x", deep=loop)
    assert log.failures == 2
    (tmp_path / "logs").unlink()
    log.write("info", "a", "x")
    assert log.failures == 2  # it works again by itself

    def full(handle: int, data: bytes) -> int:
        return 3

    monkeypatch.setattr(os, "write", full)
    log.write("info", "b", "half")
    monkeypatch.undo()
    assert log.failures == 3
    broken = JsonLog(tmp_path / "logs", Redactor([]), BrokenClock(0))
    broken.write("info", "a", "x")
    assert broken.failures == 1
    log.close()
    log.close()


def test_the_log_is_cheap(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "logs", Redactor([KEY, TOKEN]), SteppedClock(NOON))
    started = time.process_time()
    for number in range(1_000):
        log.write("info", "cycle", "nothing to do in this cycle", number=number, pair="XBTZAR")
    assert time.process_time() - started < 1.0  # a millisecond each would still be no burden
    log.close()
