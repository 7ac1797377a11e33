"""MAIN: the command line, its exit codes, and what README.md promises."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import lunobiz
from recordings import Shape, market_rows, write_folder
from screen import a_screen  # noqa: F401  (a fixture, `screen`)

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
        (["--self-test"], "needs --json OUT"),
        (["--self-test", "--backtest"], "not allowed with"),
        (["--kinds", "A0"], "belong to --self-test"),
        (["--backtest", "--data", "x", "--json", "y", "--count", "3"], "belong to --self-test"),
        (["--self-test", "--json", "x", "--demo"], "belong to the dashboard"),
        (["--self-test", "--json", "x", "--shard", "3/2"], "such as 1/4"),
        (["--self-test", "--json", "x", "--shard", "0/2"], "such as 1/4"),
        (["--fees", "0.004,0.006"], "belong to --backtest"),
        (["--json", "x"], "belong to --backtest, --gates and --self-test"),
        (["--fees", "0.004,0.006"], "belong to --backtest, --gates and --self-test"),
        (["--replay-check", "--data", "x"], "belong to --backtest, --gates and --self-test"),
        (["--replay-check", "--gates", "--data", "x"], "not allowed with"),
        (["--gates"], "--gates needs --data DIR"),
        (["--gates", "--backtest"], "not allowed with"),
        (["--gates", "--data", "x", "--demo"], "belong to the dashboard, --headless, --replay-check, --export"),
        (["--as-of", "2020-01-01"], "--as-of belongs to --gates"),
        (["--gates", "--data", "x", "--as-of", "tomorrow"], "write a UTC time"),
        (["--cycles", "5"], "belongs to --headless"),
        (["--demo", "--replay", "x"], "not allowed with"),
        (["--demo", "--doctor"], "belong to the dashboard, --headless, --replay-check, --export"),
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


def decided_on(*words: str, **env: str) -> tuple[int, ...]:
    """The decision candles, in seconds, of a session that is started with these words and this environment."""
    return session_of(*words, **env).settings.schedule.timeframes


def session_of(*words: str, **env: str) -> lunobiz.Session:
    """The session of a command line; no test opens it."""
    return lunobiz._session(lunobiz.parser().parse_args(words), ROOT, env)


def test_all_but_the_demo_decide_every_four_hours_unless_the_owner_chose() -> None:
    chosen, empty = {lunobiz.TIMEFRAME_NAME: "900,86400"}, {lunobiz.TIMEFRAME_NAME: " "}
    for words in ((), ("--headless",), ("--replay", "x"), ("--gates", "--data", "x")):
        assert decided_on(*words) == decided_on(*words, **empty) == (14_400,)
        assert decided_on(*words, **chosen) == (900, 86_400)
        assert decided_on(*words, "--timeframe", "1800", **chosen) == (1800,)
    assert decided_on("--demo") == decided_on("--demo", "--headless", **empty) == (3600,)
    assert decided_on("--demo", **chosen) == (900, 86_400)
    assert decided_on("--demo", "--timeframe", "14400", **chosen) == (14_400,)


@pytest.mark.parametrize(("words", "seconds"), [((), 3600), (("--timeframe", "900"), 900)])
def test_the_demo_is_the_same_when_it_is_chosen_in_the_window(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], seconds: int
) -> None:
    """Without a key the window asks; whoever answers "demo" gets what `--demo` gives, lively set and all."""
    shown: list[tuple[lunobiz.Mode, tuple[int, ...]]] = []
    opened: list[lunobiz.Session] = []

    class Window:
        """A window that is answered with "demo" when it asks, and then closed."""

        def __init__(self, worker: object, options: lunobiz.WindowOptions) -> None:
            shown.append((options.mode, options.timeframes))
            self.answer = "demo" if options.asks_first_run else ""

        def run(self) -> str:
            return self.answer

    def worker(open_it: Callable[[object], object]) -> None:
        open_it(lunobiz.ignore_event)

    monkeypatch.setattr(lunobiz, "Dashboard", Window)
    monkeypatch.setattr(lunobiz, "Worker", worker)
    monkeypatch.setattr(lunobiz, "open_engine", lambda session, listen: opened.append(session))
    monkeypatch.setattr(lunobiz, "_hook_faults", lambda log: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert lunobiz.run_window(replace(session_of(*words), home=tmp_path)) == lunobiz.EXIT_OK
    demo = session_of("--demo", *words)
    paper = (seconds,) if words else (14_400,)
    assert shown == [(lunobiz.Mode.PAPER, paper), (lunobiz.Mode.DEMO, (seconds,))]
    assert [s.settings.params for s in opened] == [lunobiz.parameter_sets()[0], lunobiz.StrategyParams()]
    assert opened[1].settings == demo.settings and opened[1].speed == demo.speed


@pytest.fixture
def tenancy(tmp_path: Path) -> Iterator[lunobiz.Tenancy]:
    """A first start in the usual folder."""
    (tmp_path / "usual").mkdir()
    made = lunobiz.Tenancy(replace(session_of(), home=tmp_path / "usual", usual=tmp_path / "usual", env={}))
    yield made
    made.leave()


def test_a_first_run_can_move_and_what_it_saves_goes_to_the_new_folder(
    tenancy: lunobiz.Tenancy, tmp_path: Path
) -> None:
    new, usual = tmp_path / "new" / "deep", tmp_path / "usual"
    assert tenancy.move(str(new)) == "" and tenancy.session.home == new
    assert (usual / "folder.txt").read_text(encoding="utf-8") == str(new)
    assert tenancy.save({"SLIPPAGE": "0.002"}) == ""
    assert (new / ".env").read_text(encoding="utf-8") == "LUNOBIZ_SLIPPAGE=0.002\n"
    assert not (usual / ".env").exists() and not (usual / "lunobiz.db").exists()
    assert not lunobiz.InstanceLock(new / "instance.lock").acquire()  # a second start on it is kept out
    chosen = lunobiz.chosen_session(tenancy.session, "paper")
    assert chosen is not None and chosen.home == new and chosen.settings.costs.slippage == 0.002
    assert tenancy.move(str(new)) == ""


def test_a_folder_with_settings_of_its_own_brings_them(tenancy: lunobiz.Tenancy, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / ".env").write_text("LUNOBIZ_MAX_POSITIONS=2\n", encoding="utf-8")
    assert tenancy.move(str(tmp_path / "old")) == ""
    assert tenancy.session.settings.limits.max_positions == 2


def test_a_move_that_cannot_be_leaves_all_as_it_was(tenancy: lunobiz.Tenancy, tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / ".env").write_text("LUNOBIZ_MAX_POSITIONS=99\n", encoding="utf-8")
    (tmp_path / "used").mkdir()
    other = lunobiz.InstanceLock(tmp_path / "used" / "instance.lock")
    assert other.acquire()
    wanted = {"wrong": "LUNOBIZ_MAX_POSITIONS", "used": "another LunoBiz is running", "OneDrive": "synchronised"}
    for name, words in wanted.items():
        assert words in tenancy.move(str(tmp_path / name))
        assert tenancy.session.home == tmp_path / "usual" and not (tmp_path / "usual" / "folder.txt").exists()
    other.release()
    assert not (tmp_path / "OneDrive").exists()


def test_a_folder_that_was_named_is_not_moved(tmp_path: Path) -> None:
    tenancy = lunobiz.Tenancy(replace(session_of("--home", str(tmp_path)), home=tmp_path, usual=None))
    assert "named at the start" in tenancy.move(str(tmp_path / "new")) and not (tmp_path / "new").exists()


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


def lock_all(trials: Sequence[lunobiz.Trial]) -> list[lunobiz.TrialVerdict]:
    """A judge of the self-test that stops at the first gate, and can be sent to a process."""
    return [lunobiz.TrialVerdict((("G1", "FAIL", 0.5),), 0, 0.0, 0.01) for _ in trials]


def self_test(out: Path, *words: str, judge: lunobiz.Judge = lock_all, **limits: object) -> int:
    """Run the self-test with a judge of ours, as its command does."""
    a = lunobiz.parser().parse_args(["--self-test", "--json", str(out), *words])
    settings = lunobiz.Settings(limits=lunobiz.RiskLimits(**limits))  # type: ignore[arg-type]
    session = lunobiz.Session(lunobiz.Mode.PAPER, settings, out.parent, {}, a.seed, "", 0.0)
    return lunobiz.run_self_test(session, a, judge)


def seeds_of(out: Path) -> list[tuple[str, int]]:
    """Kind and seed of each row of a self-test, in order."""
    return sorted((row["kind"], row["seed"]) for row in lunobiz.read_rows(out))  # type: ignore[misc]


def test_a_self_test_goes_on_where_it_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    words = ("--kinds", "A0,E15", "--fees", "0.004,0.006", "--seed", "100")
    assert self_test(out, *words, "--count", "2") == lunobiz.EXIT_OK
    first = out.read_bytes()
    assert seeds_of(out) == [("A0", 100), ("A0", 101), ("E", 100), ("E", 101)]
    assert "| A0 | 0.40 % / 0.60 % | 2 | 0 |" in capsys.readouterr().out
    assert self_test(out, *words, "--count", "3") == lunobiz.EXIT_OK
    assert out.read_bytes().startswith(first) and len(seeds_of(out)) == 6
    assert "2 of 2 markets" in capsys.readouterr().err
    assert self_test(out, *words, "--count", "3") == lunobiz.EXIT_OK
    assert len(seeds_of(out)) == 6 and capsys.readouterr().err == ""


def test_the_shards_of_a_self_test_are_the_whole(tmp_path: Path) -> None:
    for part in ("1/2", "2/2"):
        out = tmp_path / f"part{part[0]}.jsonl"
        assert self_test(out, "--kinds", "A2,A3", "--count", "3", "--shard", part) == lunobiz.EXIT_OK
    parts = [seeds_of(tmp_path / f"part{part}.jsonl") for part in (1, 2)]
    assert sorted(parts[0] + parts[1]) == [(kind, seed) for kind in ("A2", "A3") for seed in (6, 7, 8)]
    assert {kind for kind, _ in parts[0]} == {kind for kind, _ in parts[1]} == {"A2", "A3"}


def test_rows_of_another_configuration_are_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    self_test(out, "--kinds", "A2", "--count", "1")
    before = out.read_bytes()
    with pytest.raises(lunobiz.DataError, match="another configuration"):
        self_test(out, "--kinds", "A2", "--count", "2", max_positions=1)
    assert out.read_bytes() == before


def test_recorded_candles_are_drawn_from_where_they_are_named(tmp_path: Path) -> None:
    out, names = tmp_path / "rows.jsonl", ("XBT", "ETH", "LTC")
    shapes = {f"{name}USDT": Shape(300.0, 2, 40.0, n) for n, name in enumerate(names)}
    folder = write_folder(tmp_path / "data", {p: market_rows(s, 190.0, 3600) for p, s in shapes.items()}, 3600)
    assert self_test(out, "--kinds", "A1", "--count", "1", "--data", str(folder)) == lunobiz.EXIT_OK
    assert seeds_of(out) == [("A1", 6), ("A1", 6)]  # with fees and without
    with pytest.raises(lunobiz.SettingsError, match="--data DIR"):
        self_test(out, "--kinds", "A0,A1", "--count", "1")
    others = {p: market_rows(s._replace(seed=s.seed + 9), 190.0, 3600) for p, s in shapes.items()}
    with pytest.raises(lunobiz.DataError, match="other candles"):
        self_test(out, "--kinds", "A1", "--count", "1", "--data", str(write_folder(tmp_path / "b", others, 3600)))


def unlock_all(trials: Sequence[lunobiz.Trial]) -> list[lunobiz.TrialVerdict]:
    """A judge that is always wrong."""
    gates = tuple((f"G{n}", "PASS", 0.5) for n in range(1, 7))
    return [lunobiz.TrialVerdict(gates, 199, 0.001, 0.01) for _ in trials]


def test_a_missed_target_is_a_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert self_test(tmp_path / "rows.jsonl", "--kinds", "A5", "--count", "2", judge=unlock_all) == lunobiz.EXIT_NO
    assert "| T3 | the engine looks ahead, no fees | FAIL |" in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, append = tmp_path / "rows.jsonl", lunobiz.append_row

    def interrupted(path: Path, row: dict[str, object]) -> None:
        if len(lunobiz.read_rows(path)) == 3:
            raise KeyboardInterrupt
        append(path, row)

    monkeypatch.setattr(lunobiz, "append_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        self_test(out, "--kinds", "A0", "--count", "50")
    assert len(lunobiz.read_rows(out)) == 3 and "goes on from there" in capsys.readouterr().err


def test_gates_end_in_an_honest_answer_and_count_no_look_at_too_few_days(tmp_path: Path) -> None:
    folder, out, home = recorded(tmp_path / "data"), tmp_path / "gates.json", tmp_path / "home"
    done = start("--gates", "--data", str(folder), "--pairs", "XBTUSDT,ETHUSDT", "--timeframe", "3600", "--fees",
                 "0.001,0.002", "--as-of", "2024-04-01", "--json", str(out), home=home)  # fmt: skip
    assert done.returncode == lunobiz.EXIT_OK, done.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report.keys() >= {"unlocked", "summary", "attempt", "gates", "shown", "windows", "payload_hash"}
    assert report["unlocked"] is False and report["attempt"] == 1
    assert set(report["gates"]) == {f"G{n}" for n in range(10)}
    assert all(g.keys() == {"name", "result", "needed", "actual", "margin", "text"} for g in report["gates"].values())
    assert {g["result"] for g in report["gates"].values()} <= {"PASS", "FAIL", "WAIT"}
    assert all(name in done.stdout for name in report["gates"]) and report["summary"] in done.stdout
    assert "LOCKED" in done.stdout and "never unlock LIVE" in done.stdout
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["Gate", "Result", "Needed", "Actual", "Margin"]
    assert next(line for line in lines if line.startswith("G0")).endswith("  -8 windows")  # of 8 needed
    store = lunobiz.Store(home / "lunobiz.db", lunobiz.Redactor())
    (link,), install = store.links("gate_rows"), lunobiz.read_install(home)
    assert store.links("attempts") == () and lunobiz.is_signed(link, install.key)
    store.close()
    assert not any(install.key.secret in text for text in (done.stdout, done.stderr, out.read_text()))


def test_gates_of_a_missing_folder_exit_4(tmp_path: Path) -> None:
    done = start("--gates", "--data", str(tmp_path / "none"), home=tmp_path)
    assert done.returncode == lunobiz.EXIT_DATA
    assert "none" in done.stderr and "Traceback" not in done.stderr


def is_gone(group: int) -> bool:
    """True once no process of the group runs; the last one is Python's own tracker, which follows its parent."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        table = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
        if not any(row.split()[0] == str(group) and "Z" not in row.split()[1] for row in table.splitlines()):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_ctrl_c_cancels_an_evaluation_and_leaves_no_process(tmp_path: Path) -> None:
    """The signal goes to the whole group, as a terminal sends it."""
    shapes = {"XBTUSDT": Shape(30_000.0, 1, 4000.0, 1), "ETHUSDT": Shape(2_000.0, 2, 50_000.0, 2)}
    data = {pair: market_rows(shape, 1155.0, 3600) for pair, shape in shapes.items()}  # long enough to be busy with
    folder = write_folder(tmp_path / "data", data, 3600)
    command = [sys.executable, str(ROOT / "lunobiz.py"), "--gates", "--data", str(folder), "--home", str(tmp_path),
               "--timeframe", "3600"]  # fmt: skip
    # a shell's background job ignores Ctrl-C, and so would all that it starts
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        signal.signal(signal.SIGINT, before)
        end = time.monotonic() + 60
        while not (tmp_path / lunobiz.KEY_FILE).exists() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == lunobiz.EXIT_NO, (out, err)
    assert "Cancelled" in err and "Traceback" not in err and out == ""
    assert is_gone(running.pid)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("2020-01-01", 1_577_836_800_000), ("2020-01-01T01:00", 1_577_840_400_000), ("1577836800000", 1_577_836_800_000),
     ("2020-01-01T02:00+02:00", 1_577_836_800_000), ("2020-01-01T00:00:00Z", 1_577_836_800_000)],
)  # fmt: skip
def test_a_time_is_utc_unless_it_says_otherwise(text: str, wanted: int) -> None:
    assert lunobiz.parser().parse_args(["--as-of", text]).as_of == wanted


def test_the_doctor_tells_why_live_is_locked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lunobiz.Store(tmp_path / "lunobiz.db", lunobiz.Redactor()).close()
    lunobiz.run_doctor(tmp_path, {"LUNOBIZ_EXCHANGE_URL": "https://127.0.0.1:9"})
    assert "no valid gate evaluation" in capsys.readouterr().out  # the test exchange has a database of its own
    done = start("--doctor", home=tmp_path, LUNOBIZ_EXCHANGE_URL="https://127.0.0.1:9")
    assert "locked: " in done.stdout
    assert lunobiz._stored_locks(tmp_path, {}) == (lunobiz.NO_ROW,)


def test_a_test_exchange_has_a_database_of_its_own(tmp_path: Path) -> None:
    """Its candles may never be taken for Luno's."""
    names = {}
    for url in ("", "https://127.0.0.1:9"):
        settings = lunobiz.parse_settings({"LUNOBIZ_EXCHANGE_URL": url})
        for mode in (lunobiz.Mode.PAPER, lunobiz.Mode.DEMO, lunobiz.Mode.REPLAY):
            names[url, mode] = lunobiz.Session(mode, settings, tmp_path, {}, 0, "", 0.0).database.name
    assert names["", lunobiz.Mode.PAPER] == "lunobiz.db"
    assert names["https://127.0.0.1:9", lunobiz.Mode.PAPER] == "test.db"
    assert {name for (_, mode), name in names.items() if mode is lunobiz.Mode.DEMO} == {"demo.db"}


def test_the_doctor_has_a_row_per_check_and_shows_the_folder(tmp_path: Path) -> None:
    secret = "q" * 43
    done = start("--doctor", home=tmp_path, LUNOBIZ_READ_KEY_ID="abcdefghijklm", LUNOBIZ_READ_KEY_SECRET=secret,
                 LUNOBIZ_EXCHANGE_URL="https://127.0.0.1:9")  # fmt: skip
    assert done.returncode == lunobiz.EXIT_OK, done.stdout
    assert str(tmp_path) in done.stdout and secret not in done.stdout + done.stderr
    results = {line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")}
    assert results <= {"ok", "warn", "fail", "skip"} and "ok" in results


def test_the_doctor_leaves_no_database_behind(tmp_path: Path) -> None:
    done = start("--doctor", home=tmp_path, LUNOBIZ_EXCHANGE_URL="https://127.0.0.1:9")
    assert "skip  Database        none yet" in done.stdout
    assert not (tmp_path / "lunobiz.db").exists()
    done = start("--export", str(tmp_path), home=tmp_path)  # there is nothing to export, and it says so
    assert (done.returncode, "start the bot first" in done.stderr) == (lunobiz.EXIT_DATA, True)


@pytest.mark.skipif(os.name == "nt", reason="there is always a screen")
def test_without_a_screen_the_window_says_so(tmp_path: Path) -> None:
    done = start("--demo", home=tmp_path, DISPLAY="")
    assert done.returncode == lunobiz.EXIT_USAGE
    assert "no screen to open a window on" in done.stderr and "--headless" in done.stderr


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


def wait_for(is_so: Callable[[], bool], seconds: float = 30.0) -> bool:
    """True once something holds; False if it never did."""
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.1)
    return is_so()


def has_begun(home: Path) -> bool:
    """True once a demo on this folder has written its log."""
    return any((home / "logs").glob("*.jsonl"))


def test_a_second_start_shows_the_first_window_and_ends(screen: None, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "lunobiz.py"), "--demo", "--home", str(tmp_path)]
    told, nothing = tmp_path / "told.txt", subprocess.DEVNULL
    with told.open("wb") as errors, subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=errors) as first:
        try:
            assert wait_for(lambda: has_begun(tmp_path))
            time.sleep(1.0)  # a request of earlier is thrown away just before the window is there
            second = start("--demo", home=tmp_path)
            assert (second.returncode, second.stderr) == (lunobiz.EXIT_OK, "")
            assert "brought to the front" in second.stdout
            third = start("--headless", "--demo", "--cycles", "1", home=tmp_path)
            assert third.returncode == lunobiz.EXIT_DATA and "another LunoBiz is running" in third.stderr
        finally:
            first.terminate()
        assert first.wait(30) == (1 if sys.platform == "win32" else lunobiz.EXIT_OK)  # there it is ended by force
    assert told.read_text(encoding="utf-8") == ""


def test_where_nobody_answers_a_second_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lunobiz, "SHOW_WAIT_S", 0.2)
    holder = lunobiz.InstanceLock(tmp_path / "instance.lock")
    assert holder.acquire()
    with pytest.raises(lunobiz.AuditBroken, match="another LunoBiz"):
        lunobiz.run(["--demo", "--home", str(tmp_path)])
    assert not lunobiz.ShowRequest(tmp_path).is_waiting
    holder.release()


def test_the_readme_has_the_settings_the_program_has() -> None:
    table = f"{lunobiz.settings_table()}\n{lunobiz.notices_table()}\n\n"
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_options_are_the_programs() -> None:
    """Every option in the README's table exists, and every option of the program is in it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Command line") : text.index("Exit codes:")]
    known = {word for action in lunobiz.parser()._actions for word in action.option_strings if word.startswith("--")}
    assert set(re.findall(r"--[a-z]+(?:-[a-z]+)*", table)) | {"--help"} == known


def test_the_readmes_commands_are_one_line_each() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|powershell)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 6 and all(block.strip().count("\n") == 0 for block in blocks)
