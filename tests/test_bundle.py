"""The packaged program: build.spec makes both forms, which start, trade, test and leave no process behind.

Left out unless asked for with `-m bundle`: a build takes minutes. BUNDLE_DIR names a `dist` folder that was built
already, with `--form both --pack`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import lunobiz as lb
from hand import Hand, ask_to_close, clipboard, spots_of_the_window, windows_of
from recordings import Shape, market_rows, write_folder
from screen import a_screen  # noqa: F401  (a fixture, `screen`)

pytestmark = pytest.mark.bundle
ROOT = Path(__file__).parent.parent
ON_WINDOWS = sys.platform == "win32"
END = ".exe" if ON_WINDOWS else ""
FULL_NAME = f"LunoBiz-{lb.__version__}-{'windows' if ON_WINDOWS else 'linux'}"
ARCHIVE = FULL_NAME + (".zip" if ON_WINDOWS else ".tar.gz")
FOLDER_MB, FILE_MB = 140, 60  # 118 and 46 on Linux; a library that slips in unseen is larger than the difference
FIRST_WINDOW_S = {"folder": 5.0, "file": 10.0}  # loose, for a busy machine: the figure itself is printed (-s)


@pytest.fixture(name="dist", scope="module")
def a_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What build.spec makes in one run: the folder, its archive, the single file, and their checksums."""
    if made := os.environ.get("BUNDLE_DIR"):
        return Path(made).resolve()
    work = tmp_path_factory.mktemp("bundle")
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", "--distpath",
               str(work / "dist"), "--workpath", str(work / "build"), "build.spec", "--", "--form", "both",
               "--pack"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return work / "dist"


@pytest.fixture(name="program", params=["folder", "file"])
def a_program(dist: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """Each form with its name."""
    path = dist / "LunoBiz" / f"LunoBiz{END}" if request.param == "folder" else dist / f"{FULL_NAME}{END}"
    return str(request.param), path


def start(program: Path, *words: str, home: Path) -> subprocess.Popen[str]:
    """The packaged program as a group of its own, without settings and Python of this machine."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LUNOBIZ_", "PYTHON", "VIRTUAL_ENV"))}
    return subprocess.Popen([str(program), *words, "--home", str(home)], stdin=subprocess.DEVNULL, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean, cwd=home.parent,
                            start_new_session=True)  # fmt: skip


def until(is_so: Callable[[], bool], seconds: float) -> bool:
    """True once something holds; False if it never did."""
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.02)
    return is_so()


def is_gone(group: int) -> bool:
    """True if no process of the group runs; on Windows there are no groups, and only the program itself was asked."""
    if ON_WINDOWS:
        return True
    table = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return not any(row.split()[0] == str(group) and "Z" not in row.split()[1] for row in table.splitlines())


def ended(process: subprocess.Popen[str], seconds: float = 300) -> str:
    """What a program that ended well has printed; no process of it is left."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == lb.EXIT_OK, err
    assert until(lambda: is_gone(process.pid), 10)
    return out


@contextmanager
def stopped_at_last(process: subprocess.Popen[str]) -> Iterator[None]:
    """Ends the program whatever the test found."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def megabytes(path: Path) -> float:
    """The size of a file, or of all files in a folder, links not followed."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
    return sum(p.stat().st_size for p in files) / 1e6


def test_each_file_that_is_handed_out_has_its_checksum(dist: Path) -> None:
    for name in (ARCHIVE, FULL_NAME + END):
        digest = hashlib.sha256((dist / name).read_bytes()).hexdigest()
        assert (dist / f"{name}.sha256").read_bytes() == f"{digest}  {name}\n".encode()


def test_the_sizes_stay_what_they_were(dist: Path) -> None:
    folder, single, packed = (megabytes(dist / name) for name in ("LunoBiz", FULL_NAME + END, ARCHIVE))
    print(f"folder {folder:.1f} MB, one file {single:.1f} MB, archive {packed:.1f} MB")
    assert folder < FOLDER_MB and single < FILE_MB and packed < FILE_MB


def test_it_brings_what_it_needs_and_nothing_of_the_tests(dist: Path) -> None:
    names = {p.relative_to(dist / "LunoBiz").as_posix() for p in (dist / "LunoBiz").rglob("*")}
    for wanted in ("lunobiz.py", ".env.example", "certifi/cacert.pem", "ttkbootstrap/assets"):
        assert f"_internal/{wanted}" in names, wanted
    assert not [n for n in names if n.split("/")[1:2] in (["pytest"], ["hypothesis"], ["mypy"], ["pandas"])]


def test_it_trades_the_demo_without_a_window(program: tuple[str, Path], tmp_path: Path) -> None:
    home = tmp_path / "Ünïcödé – 日本"
    out = ended(start(program[1], "--headless", "--demo", "--cycles", "3", "--seed", "6", home=home))
    assert (home / "demo.db").exists()
    if out or not ON_WINDOWS:  # a program without a console may have no stdout there
        assert json.loads(out.splitlines()[-1])["cycles"] == 3


def test_it_tests_recorded_candles_and_evaluates_gates_in_processes_of_its_own(
    program: tuple[str, Path], tmp_path: Path
) -> None:
    """The gates run in spawned processes, which a packaged program must start from itself."""
    shapes = {"XBTUSDT": Shape(30_000.0, 1, 40.0, 1), "ETHUSDT": Shape(2_000.0, 2, 500.0, 2)}
    folder = write_folder(tmp_path / "data", {p: market_rows(s, 90.0) for p, s in shapes.items()}, 900)
    out, home = tmp_path / "out.json", tmp_path / "home"
    ended(start(program[1], "--backtest", "--data", str(folder), "--json", str(out), home=home))
    assert json.loads(out.read_text(encoding="utf-8"))["metrics"].keys() >= {"total_return", "trades"}
    ended(start(program[1], "--gates", "--data", str(folder), "--timeframe", "3600", "--json", str(out), home=home))
    assert json.loads(out.read_text(encoding="utf-8"))["unlocked"] is False
    done = ended(start(program[1], "--version", home=home))
    assert lb.__version__ in done or ON_WINDOWS


def decisions(home: Path) -> int:
    """How many decisions the demo on this folder has written."""
    if not (home / "demo.db").exists():
        return 0
    with closing(sqlite3.connect((home / "demo.db").as_uri() + "?mode=ro", uri=True, timeout=5)) as database:
        try:
            return int(database.execute("SELECT count(*) FROM decisions").fetchone()[0])
        except sqlite3.OperationalError:  # its tables are not made yet
            return 0


def window_of(home: Path) -> str:
    """The number of the visible window of LunoBiz; "" while there is none."""
    return (windows_of("LunoBiz") or [""])[0]


def stands_still(home: Path, seconds: float = 3.0) -> bool:
    """True if no decision is written for so long; what was on its way has two seconds before."""
    time.sleep(2)
    before = decisions(home)
    time.sleep(seconds)
    return decisions(home) == before


def backtest_of(home: Path) -> dict[str, object]:
    """The newest backtest in the audit of the demo; empty while there is none."""
    with closing(sqlite3.connect((home / "demo.db").as_uri() + "?mode=ro", uri=True, timeout=5)) as database:
        query = "SELECT payload FROM metrics WHERE name = 'backtest' ORDER BY rowid DESC LIMIT 1"
        row = database.execute(query).fetchone()
    found: dict[str, object] = json.loads(row[0]) if row else {}
    return found


@pytest.mark.skipif(ON_WINDOWS or shutil.which("xdotool") is None, reason="keys are pressed with xdotool")
def test_its_window_starts_and_stops_the_bot_and_leaves_nothing_behind(
    screen: None, program: tuple[str, Path], tmp_path: Path
) -> None:
    form, path = program
    home, begun = tmp_path / "home", time.monotonic()
    assert window_of(home) == "", "another LunoBiz is on this screen"
    process = start(path, "--demo", "--speed", "7200", home=home)
    with stopped_at_last(process):
        assert until(lambda: bool(window_of(home)), 60)
        took = time.monotonic() - begun
        print(f"{form}: first window after {took:.2f} s")
        assert took < FIRST_WINDOW_S[form]
        hand = Hand(window_of(home), {})
        assert until(lambda: decisions(home) > 0, 60)
        hand.press("F5")  # the demo runs at once: this stops it
        assert stands_still(home)
        before = decisions(home)
        hand.press("F5")
        assert until(lambda: decisions(home) > before, 30)
        second = start(path, "--demo", home=home)
        assert "brought to the front" in ended(second, 60)
        os.kill(process.pid, signal.SIGTERM)
        ended(process, 60)
    with closing(sqlite3.connect(home / "demo.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.skipif(ON_WINDOWS or shutil.which("xdotool") is None, reason="the mouse is moved with xdotool")
def test_its_window_is_clicked_through_start_backtest_stop_and_close(
    screen: None, program: tuple[str, Path], tmp_path: Path
) -> None:
    rows = {"XBTUSDT": market_rows(Shape(30_000.0, 1, 40.0, 1), 120.0, 3600)}
    folder, home = write_folder(tmp_path / "data", rows, 3600), tmp_path / "home"
    assert window_of(home) == "", "another LunoBiz is on this screen"
    spots = spots_of_the_window(tmp_path)
    process = start(program[1], "--demo", "--speed", "1800", home=home)
    with stopped_at_last(process):
        assert until(lambda: bool(window_of(home)) and decisions(home) > 0, 90)
        hand = Hand(window_of(home), spots)
        hand.click("start")  # the demo runs at once: this stops it
        assert stands_still(home)
        before = decisions(home)
        hand.click("start")
        assert until(lambda: decisions(home) > before, 30)
        hand.click("backtest tab")
        hand.click("folder")
        hand.write(str(folder))
        hand.click("run")
        assert until(lambda: bool(backtest_of(home)), 120)
        values = backtest_of(home)
        metrics, target = lb.group_in(values, "metrics"), lb.number_in(values, "target_daily_return") or 0.0
        shown = ["\t".join(row.cells) for row in lb.metrics_rows(metrics, lb.text_in(values, "counter"), target)]
        time.sleep(1)
        hand.click("result")
        hand.press("ctrl+c")
        assert clipboard() in shown
        hand.click("dashboard tab")
        hand.click("start")
        assert stands_still(home)
        ask_to_close(hand.window)
        ended(process, 60)
