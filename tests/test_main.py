"""MAIN: the command line, its exit codes, and what README.md promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lunobiz
from recordings import Shape, market_rows, write_folder

ROOT = Path(__file__).parent.parent
KEYS_OF_REPORT = {
    "version", "config_hash", "data", "costs", "metrics", "by_strategy", "by_pair", "by_regime", "by_window",
    "round_trips", "equity_daily",
}  # fmt: skip
KEYS_OF_METRICS = {
    "total_return", "daily_returns", "max_drawdown", "profit_factor", "expectancy", "exposure_time", "trades",
    "fees_paid", "buy_and_hold",
}  # fmt: skip


def recorded(folder: Path) -> Path:
    """Two recorded markets, long enough for some decisions after the history that they need."""
    shapes = {"XBTUSDT": Shape(30_000.0, 1, 40.0, 1), "ETHUSDT": Shape(2_000.0, 2, 500.0, 2)}
    return write_folder(folder, {pair: market_rows(shape, 90.0) for pair, shape in shapes.items()}, 900)


def start(*words: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The program as a process of its own, without a key and without settings of this machine."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LUNOBIZ_")}
    command = [sys.executable, str(ROOT / "lunobiz.py"), *words, "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=clean | env)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        lunobiz.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == f"LunoBiz {lunobiz.__version__}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--backtest"], "needs --data DIR and --json OUT"),
        (["--backtest", "--data", "x"], "needs --data DIR and --json OUT"),
        (["--json", "x"], "belong to --backtest"),
        (["--fees", "0.004,0.006"], "belong to --backtest"),
        (["--cycles", "5"], "belongs to --headless"),
        (["--demo", "--replay", "x"], "not allowed with"),
        (["--demo", "--doctor"], "belong to the dashboard, --headless and --export"),
        (["--headless", "--speed", "5"], "PAPER runs in real time"),
        (["--headless", "--demo", "--cycles", "-1"], "whole number"),
        (["--headless", "--demo", "--speed", "0,5"], "use a point"),
        (["--headless", "--demo", "--speed", "-1"], "allowed is 0"),
        (["--timeframe", "61"], "allowed are 300"),
        (["--timeframe", "1h"], "allowed are 300"),
        (["--backtest", "--data", "x", "--json", "y", "--fees", "0.4,0.6"], "a fee is a fraction"),
        (["--backtest", "--data", "x", "--json", "y", "--fees", "0.4"], "write maker,taker"),
    ],
)
def test_wrong_use_exits_2_and_says_how(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        lunobiz.main(words)
    assert end.value.code == lunobiz.EXIT_USAGE
    assert says in capsys.readouterr().err


def test_wrong_settings_exit_2_and_name_the_field(tmp_path: Path) -> None:
    done = start("--headless", "--demo", "--cycles", "1", home=tmp_path, LUNOBIZ_DAILY_LOSS_CAP="0.5", LUNOBIZ_PAIR="x")
    assert done.returncode == lunobiz.EXIT_USAGE
    assert "LUNOBIZ_DAILY_LOSS_CAP" in done.stderr and "0.005 to 0.05" in done.stderr
    assert "did you mean LUNOBIZ_PAIRS?" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_exchange_that_cannot_be_reached_exits_3(tmp_path: Path) -> None:
    key = {"LUNOBIZ_READ_KEY_ID": "abcdefghijklm", "LUNOBIZ_READ_KEY_SECRET": "x" * 43}
    done = start("--headless", "--cycles", "1", home=tmp_path, LUNOBIZ_EXCHANGE_URL="https://127.0.0.1:9", **key)
    assert done.returncode == lunobiz.EXIT_OUTSIDE
    assert "x" * 43 not in done.stderr + done.stdout and "Traceback" not in done.stderr


def test_a_folder_without_candles_exits_4_and_names_it(tmp_path: Path) -> None:
    done = start("--backtest", "--data", str(tmp_path / "none"), "--json", str(tmp_path / "o.json"), home=tmp_path)
    assert done.returncode == lunobiz.EXIT_DATA
    assert "none" in done.stderr and not (tmp_path / "o.json").exists()


def test_a_damaged_audit_exits_4_and_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo.db").write_bytes(b"not a database" * 100)
    done = start("--headless", "--demo", "--cycles", "1", home=tmp_path)
    assert done.returncode == lunobiz.EXIT_DATA and "demo.db" in done.stderr
    assert (tmp_path / "demo.db").read_bytes() == b"not a database" * 100


def test_headless_lines_are_objects_and_the_last_one_sums_up(tmp_path: Path) -> None:
    done = start("--headless", "--demo", "--cycles", "3", "--seed", "6", home=tmp_path)
    assert done.returncode == lunobiz.EXIT_OK, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["kind"] for line in lines} >= {"cycle", "decision", "event", "end"}
    assert all(isinstance(line["t"], int) for line in lines[:-1])
    assert {line["mode"] for line in lines} == {"demo"}
    assert {"cycles", "fills", "equity", "state"} <= lines[-1].keys()
    assert lines[-1]["cycles"] == 3
    assert lines[-1]["fills"] == sum(line["kind"] == "fill" for line in lines)
    assert sum(line["kind"] == "decision" for line in lines) == 3 * 7  # every market, every candle


def test_live_is_refused_with_its_reason(tmp_path: Path) -> None:
    done = start("--headless", "--demo", "--cycles", "1", home=tmp_path, LUNOBIZ_ENABLE_LIVE="yes")
    assert done.returncode == lunobiz.EXIT_OK
    assert "LIVE is locked" in done.stderr


def test_a_backtest_writes_the_documented_report(tmp_path: Path) -> None:
    folder, out = recorded(tmp_path / "data"), tmp_path / "report.json"
    done = start("--backtest", "--data", str(folder), "--fees", "0.001,0.002", "--json", str(out), home=tmp_path)
    assert done.returncode == lunobiz.EXIT_OK, done.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report.keys() >= KEYS_OF_REPORT
    assert report["metrics"].keys() == KEYS_OF_METRICS
    assert {m["maker"] for m in report["costs"]["markets"].values()} == {0.001}
    assert "NOT CHOSEN" in done.stdout and "NOT CHOSEN" in report["parameters"]


def test_the_doctor_has_a_row_per_check_and_shows_the_folder(tmp_path: Path) -> None:
    secret = "q" * 43
    done = start("--doctor", home=tmp_path, LUNOBIZ_READ_KEY_ID="abcdefghijklm", LUNOBIZ_READ_KEY_SECRET=secret,
                 LUNOBIZ_EXCHANGE_URL="https://127.0.0.1:9")  # fmt: skip
    assert done.returncode == lunobiz.EXIT_OK, done.stdout
    assert str(tmp_path) in done.stdout and secret not in done.stdout + done.stderr
    results = {line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")}
    assert results <= {"ok", "warn", "fail", "skip"} and "ok" in results


def test_the_doctor_fails_on_wrong_settings(tmp_path: Path) -> None:
    done = start("--doctor", home=tmp_path, LUNOBIZ_MAX_POSITIONS="99", LUNOBIZ_EXCHANGE_URL="https://127.0.0.1:9")
    assert done.returncode == lunobiz.EXIT_NO
    assert "LUNOBIZ_MAX_POSITIONS" in done.stdout


def test_an_export_lists_its_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    lunobiz.Store(tmp_path / "lunobiz.db", lunobiz.Redactor()).close()
    done = start("--export", str(out), home=tmp_path)
    assert done.returncode == lunobiz.EXIT_OK, done.stderr
    assert all((out / name).exists() for name in done.stdout.split())
    assert any(name.endswith("decisions.csv") for name in done.stdout.split())


def test_there_is_nothing_to_export_before_the_bot_has_run(tmp_path: Path) -> None:
    done = start("--export", str(tmp_path), home=tmp_path)
    assert done.returncode == lunobiz.EXIT_DATA and "start the bot first" in done.stderr
    assert not (tmp_path / "lunobiz.db").exists()


def test_the_audit_of_the_demo_can_be_exported(tmp_path: Path) -> None:
    start("--headless", "--demo", "--cycles", "2", home=tmp_path)
    done = start("--export", str(tmp_path), "--demo", home=tmp_path)
    assert done.returncode == lunobiz.EXIT_OK, done.stderr
    decisions = next(tmp_path.glob("lunobiz-export-*/decisions.csv")).read_text(encoding="utf-8-sig")
    assert decisions.count("demo") == 2 * 7


def test_an_unforeseen_fault_shows_its_place_and_not_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(argv: object) -> int:
        raise RuntimeError("hunter2-secret")

    monkeypatch.setattr(lunobiz, "run", fault)
    assert lunobiz.main([]) == lunobiz.EXIT_NO
    told = capsys.readouterr().err
    assert "RuntimeError" in told and "hunter2" not in told


def test_the_readme_has_the_settings_the_program_has() -> None:
    assert lunobiz.settings_table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_options_are_the_programs() -> None:
    """Every option in the README's table exists, and every option of the program is in it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Command line") : text.index("Exit codes:")]
    known = {word for action in lunobiz.parser()._actions for word in action.option_strings if word.startswith("--")}
    assert set(re.findall(r"--[a-z]+(?:-[a-z]+)*", table)) | {"--help"} == known


def test_the_readmes_commands_are_one_line_each() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|powershell)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4 and all(block.strip().count("\n") == 0 for block in blocks)
