"""JOBS: the processes that evaluate the gates: order, looks counted first, cancel, crashes, signed rows."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

import lunobiz
from lunobiz import (
    CANCELLED,
    BacktestRequest,
    Crew,
    Evaluation,
    Gate,
    GateJob,
    GateRun,
    GatesDone,
    GatesProgress,
    GateTask,
    LunobizError,
    Market,
    Mode,
    Progress,
    Redactor,
    Series,
    Settings,
    Store,
)
from recordings import Shape, market_rows, write_folder

DAY_MS = 86_400_000
FIRST_DAY = 18_000
PATIENCE_S = 60.0
PAIRS = ("ETHZAR", "XBTZAR")


# ---- work that travels to the processes ------------------------------------------------------------


def answer(job: GateJob, **shown: float) -> Evaluation:
    """An evaluation that shows some numbers."""
    gates = tuple(Gate(f"G{n}", "Gate", "FAIL", "", "", None, "") for n in range(10))
    span = lunobiz.unseen_span(job)
    told = json.dumps(shown)
    return Evaluation(gates, tuple(shown.items()), (), "LOCKED.", job.attempts, 0.0, *span, told, job.source)


def square(value: int) -> int:
    """Slower for the first ones, so that later ones overtake them."""
    time.sleep(0.05 if value < 3 else 0.0)
    return value * value


def pid_of(value: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def squares(job: GateJob, on_progress: Progress, crew: Crew) -> Evaluation:
    """Three maps: one in full, one that is left early, one over nothing and one after those."""
    found = list(crew.mapper(square, range(30)))
    first = next(iter(crew.mapper(square, itertools.count(5))))
    nothing = list(crew.mapper(square, ()))
    pids = set(crew.mapper(pid_of, range(12)))
    again = list(crew.mapper(square, range(6, 9)))
    in_order = found == [n * n for n in range(30)] and again == [36, 49, 64]
    return answer(job, in_order=in_order, first=first, nothing=len(nothing), helpers=len(pids - {os.getpid()}))


def two_at_once(job: GateJob, on_progress: Progress, crew: Crew) -> Evaluation:
    """Two maps read in turns."""
    both = list(zip(crew.mapper(square, range(9)), crew.mapper(abs, range(-9, 0)), strict=True))
    return answer(job, in_order=both == [(n * n, 9 - n) for n in range(9)])


def number_of_attempt(job: GateJob, on_progress: Progress, crew: Crew) -> Evaluation:
    return answer(job)


def sleep_long(value: int) -> int:
    time.sleep(PATIENCE_S)
    return value


def endless(job: GateJob, on_progress: Progress, crew: Crew) -> Evaluation:
    on_progress(1, 4)
    time.sleep(0.3)
    on_progress(2, 4)
    list(crew.mapper(sleep_long, range(9)))
    return answer(job)


def die(value: int) -> int:
    if value == 4:
        os._exit(7)
    return value


def helper_dies(job: GateJob, on_progress: Progress, crew: Crew) -> Evaluation:
    list(crew.mapper(die, range(9)))
    return answer(job)


def evaluator_dies(job: GateJob, on_progress: Progress, crew: Crew) -> Evaluation:
    os._exit(7)


def refuse(value: int) -> int:
    raise LunobizError(f"item {value} is bad")


def item_fails(job: GateJob, on_progress: Progress, crew: Crew) -> Evaluation:
    list(crew.mapper(refuse, range(9)))
    return answer(job)


def fault(job: GateJob, on_progress: Progress, crew: Crew) -> Evaluation:
    raise RuntimeError("hunter2")


def touch(job: GateJob, on_progress: Progress, crew: Crew) -> Evaluation:
    """Leaves a trace if it ever runs."""
    Path(job.self_test_id).touch()
    return answer(job)


# ---- the bench -------------------------------------------------------------------------------------


def series(days: int, seed: int) -> Series:
    rng = np.random.default_rng(seed)
    times = (FIRST_DAY + np.arange(days)) * float(DAY_MS)
    prices = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, days)))
    return lunobiz.series_of(np.column_stack([times, prices, prices * 1.01, prices * 0.99, prices, prices]), 86_400)


def market(pair: str) -> Market:
    return Market(pair, pair[:3], "ZAR", 2, 6, 0.001, 1e6, 0.01, 1e9)


def job(days: int = 1_200, **settings: object) -> GateJob:
    plain = Settings()
    schedule = replace(plain.schedule, pairs=PAIRS, timeframes=(86_400,))
    held = replace(plain, schedule=schedule, **settings)  # type: ignore[arg-type]
    return GateJob(tuple((market(p), series(days, n)) for n, p in enumerate(PAIRS)), held, 0, 99, source="luno")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "lunobiz.db", Redactor(), "OFF")
    yield made
    made.close()


def start(store: Store, home: Path, work: lunobiz.Evaluate, source: GateJob | BacktestRequest | None = None) -> GateRun:
    install = lunobiz.read_install(home)
    source = source if source is not None else job()
    settings = source.settings if isinstance(source, GateJob) else Settings()
    return GateRun(GateTask(source, settings, install.code_hash, 1_000, work=work), store, install)


def events(run: GateRun) -> Iterator[GatesProgress | GatesDone]:
    """What a run tells, up to its end."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        yield from run.poll()
        if run.is_done:
            return
        time.sleep(0.005)
    run.end()
    pytest.fail("the evaluation does not end")


def finish(run: GateRun) -> GatesDone:
    done = list(events(run))[-1]
    assert isinstance(done, GatesDone)
    assert run.is_done and list(run.poll()) == []
    assert not any(process.is_alive() for process in (*run._helpers, run._child._process))
    return done


def shown(done: GatesDone) -> dict[str, float]:
    assert not done.problem
    found = json.loads(done.payload)["shown"]
    assert isinstance(found, dict)
    return found


# ---- the crew --------------------------------------------------------------------------------------


def test_results_come_in_order_from_several_processes(store: Store, tmp_path: Path) -> None:
    found = shown(finish(start(store, tmp_path, squares)))
    assert found == {"in_order": 1, "first": 25, "nothing": 0, "helpers": lunobiz.helper_count()}


def test_two_maps_may_be_read_in_turns(store: Store, tmp_path: Path) -> None:
    assert shown(finish(start(store, tmp_path, two_at_once)))["in_order"]


def test_there_is_a_helper_for_each_core_up_to_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, wanted in ((None, 1), (1, 1), (2, 2), (5, 5), (8, 8), (64, 8)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert lunobiz.helper_count() == wanted


# ---- attempts --------------------------------------------------------------------------------------


def test_the_look_is_in_the_ledger_before_the_work_begins(store: Store, tmp_path: Path) -> None:
    run = start(store, tmp_path, endless)
    told = events(run)
    assert store.links("attempts") == ()
    assert next(e for e in told if isinstance(e, GatesProgress) and e.done == 1)
    (link,) = store.links("attempts")
    (look,) = lunobiz.read_attempts([link])
    # 1,200 days from FIRST_DAY on: the last 12 x 60 of them are unseen
    assert (look.unseen_from_ms, look.unseen_to_ms) == ((FIRST_DAY + 480) * DAY_MS, (FIRST_DAY + 1_200) * DAY_MS)
    done = run.cancel()
    assert done is not None
    assert (done.payload, done.problem) == ("", CANCELLED) and "stays an attempt" in done.note
    assert list(told) == [] and run.cancel() is None, "one answer is enough"
    assert store.links("attempts") == (link,) and store.links("gate_rows") == ()


def test_a_crash_after_the_look_counts_as_well(store: Store, tmp_path: Path) -> None:
    done = finish(start(store, tmp_path, evaluator_dies))
    assert done.problem == "The evaluation ended early (code 7)." and "stays an attempt" in done.note
    assert len(store.links("attempts")) == 1


def test_each_configuration_counts_once_and_the_ledger_gives_the_number(store: Store, tmp_path: Path) -> None:
    other = job(limits=lunobiz.RiskLimits(max_positions=1))
    numbers = [
        json.loads(finish(start(store, tmp_path, number_of_attempt, source)).payload)["attempt"]
        for source in (job(), other, job())
    ]
    assert numbers == [1, 2, 2]
    assert len(store.links("attempts")) == 2 and len(store.links("gate_rows")) == 3
    store.verify()


def test_days_that_are_too_few_are_no_look(store: Store, tmp_path: Path) -> None:
    done = finish(start(store, tmp_path, number_of_attempt, job(600)))
    assert json.loads(done.payload)["attempt"] == 1
    assert store.links("attempts") == () and len(store.links("gate_rows")) == 1


def test_without_a_whole_ledger_nothing_is_looked_at(store: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    good = json.dumps({"config_hash": "a", "data_hash": "b", "unseen_from_ms": 0, "unseen_to_ms": 1})
    for payload, row_hash in (("{}", None), (good, "made up")):
        store._db.execute("DROP TRIGGER attempts_grow")
        store._db.execute("DELETE FROM attempts")
        store._db.execute("CREATE TRIGGER attempts_grow BEFORE DELETE ON attempts BEGIN SELECT RAISE(ABORT, ''); END")
        link = lunobiz.linked("", 1, payload)
        store._db.execute("INSERT INTO attempts VALUES (NULL, ?, ?, ?, ?)", link._replace(hash=row_hash or link.hash))
        done = finish(start(store, tmp_path, touch, replace(job(), self_test_id=str(trace))))
        assert not done.payload and "damaged" in done.problem
        assert not trace.exists() and store.links("gate_rows") == ()


# ---- the end ---------------------------------------------------------------------------------------


def test_cancel_answers_without_waiting_and_leaves_no_process(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(store, tmp_path, endless)
    told = events(run)
    assert next(e for e in told if isinstance(e, GatesProgress) and e.done == 2)
    time.sleep(0.3)

    def wait(*what: object) -> None:
        raise AssertionError("cancel waits for nothing")

    with monkeypatch.context() as patch:
        for name in ("join", "is_alive"):
            patch.setattr(BaseProcess, name, wait)
        patch.setattr(lunobiz.Child, "poll", wait)
        patch.setattr(time, "sleep", wait)
        done = run.cancel()
    assert done is not None and done.problem == CANCELLED
    assert list(told) == [] and run.is_done
    assert not any(process.is_alive() for process in (*run._helpers, run._child._process))


def test_cancel_at_once_is_no_attempt(store: Store, tmp_path: Path) -> None:
    run = start(store, tmp_path, endless)
    assert run.cancel() == GatesDone("", CANCELLED)
    assert list(events(run)) == [] and store.links("attempts") == ()


def test_a_look_that_comes_after_the_cancel_is_not_counted(store: Store, tmp_path: Path) -> None:
    """The worker reads the message of the process while the window cancels."""
    run = start(store, tmp_path, endless)
    look = lunobiz.look_of(job(), "code", (1, 2), 1_000)
    assert run.cancel() == GatesDone("", CANCELLED)
    assert list(run._hear(look)) == [] and store.links("attempts") == ()
    run.end()


def test_a_result_that_comes_after_the_cancel_is_not_kept(store: Store, tmp_path: Path) -> None:
    run = start(store, tmp_path, endless)
    run.cancel()
    held = lunobiz.gate_pass(job(), answer(job()), "code")
    assert list(run._hear((held, {}))) == [] and store.links("gate_rows") == ()
    assert list(run._hear(lunobiz.Failed("late"))) == []
    run.end()


def test_a_lost_helper_is_told_in_words(store: Store, tmp_path: Path) -> None:
    done = finish(start(store, tmp_path, helper_dies))
    assert done.problem == lunobiz.HELPER_LOST


def test_trouble_with_an_item_is_told(store: Store, tmp_path: Path) -> None:
    assert finish(start(store, tmp_path, item_fails)).problem == "item 0 is bad"


def test_an_unforeseen_fault_is_told_without_its_text(store: Store, tmp_path: Path) -> None:
    done = finish(start(store, tmp_path, fault))
    assert done.problem == "The evaluation ended early (code 1)." and "hunter2" not in done.note


def test_a_missing_folder_is_named(store: Store, tmp_path: Path) -> None:
    request = BacktestRequest("folder", str(tmp_path / "nowhere"))
    done = finish(start(store, tmp_path, number_of_attempt, request))
    assert "nowhere" in done.problem and not done.note and store.links("attempts") == ()


# ---- what is kept ----------------------------------------------------------------------------------


def test_the_row_is_signed_and_names_what_was_evaluated(store: Store, tmp_path: Path) -> None:
    done = finish(start(store, tmp_path, number_of_attempt))
    (link,), install = store.links("gate_rows"), lunobiz.read_install(tmp_path)
    assert lunobiz.is_signed(link, install.key) and link.time_ms == done.time_ms
    seal = lunobiz.read_seal(link)
    assert seal is not None and seal.attempts_hash == store.links("attempts")[-1].hash
    held = lunobiz.read_pass(seal.payload)
    assert held is not None and held.source == "luno" and held.code_hash == install.code_hash
    assert [(pair, first, last) for pair, _, first, last in held.data] == [
        (pair, FIRST_DAY * DAY_MS, (FIRST_DAY + 1_200) * DAY_MS) for pair in PAIRS
    ]
    facts = lunobiz.LiveFacts(job().settings, Mode.PAPER, done.time_ms, install.key, install.code_hash)
    assert lunobiz.live_locks(store.links("gate_rows"), store.links("attempts"), facts)[0].startswith("10 of 10 gates")
    (run,) = store.table("metrics")
    assert run["name"] == "gates" and json.loads(str(run["payload"])) == json.loads(done.payload)


def test_equal_inputs_give_equal_payloads(store: Store, tmp_path: Path) -> None:
    for _ in range(2):
        finish(start(store, tmp_path, number_of_attempt))
    seals = [lunobiz.read_seal(link) for link in store.links("gate_rows")]
    assert len({seal.payload for seal in seals if seal is not None}) == 1


def test_a_folder_is_recorded_data_whatever_the_mode(store: Store, tmp_path: Path) -> None:
    rows = {p: market_rows(Shape(1_000.0, 2, 40.0, n), 90.0, 3600) for n, p in enumerate(PAIRS)}
    request = BacktestRequest("folder", str(write_folder(tmp_path / "data", rows, 3600)))
    done = finish(start(store, tmp_path, number_of_attempt, request))
    assert done.payload
    seal = lunobiz.read_seal(store.links("gate_rows")[0])
    held = lunobiz.read_pass(seal.payload) if seal is not None else None
    assert held is not None and held.source == "recorded"


def test_an_export_holds_the_attempts_and_the_rows_of_the_gates_without_their_signature(
    store: Store, tmp_path: Path
) -> None:
    """The attempts can be checked link by link; of a row that was edited nothing is told but that it is there."""
    finish(start(store, tmp_path, number_of_attempt))
    store.add_link("gate_rows", 2_000, lambda before: "edited, no JSON")
    lunobiz.export_audit(store, tmp_path / "export", 1_700_000_000_000)
    (home,) = (tmp_path / "export").iterdir()
    told = {name: [json.loads(line) for line in (home / f"{name}.jsonl").read_text().splitlines()]
            for name in ("gate_rows", "attempts")}  # fmt: skip
    (look,), (attempt,) = store.links("attempts"), told["attempts"]
    assert lunobiz.linked(attempt["prev_hash"], attempt["time_ms"], attempt["payload"]) == look
    link, edited = store.links("gate_rows")
    seal, (row, broken) = lunobiz.read_seal(link), told["gate_rows"]
    assert seal is not None and len(seal.hmac) >= 32
    assert (row["payload"], row["attempts_hash"], row["hash"]) == (seal.payload, look.hash, link.hash)
    assert (broken["payload"], broken["hash"]) == ("", edited.hash)
    texts = [path.read_text(encoding="utf-8") for path in home.iterdir()]
    assert not [text for text in texts if seal.hmac in text]
    assert {"gate_rows.csv", "attempts.csv"} <= {path.name for path in home.iterdir()}


def test_the_key_is_in_no_file_but_its_own(store: Store, tmp_path: Path) -> None:
    finish(start(store, tmp_path, number_of_attempt))
    lunobiz.export_audit(store, tmp_path / "export", 1_700_000_000_000)
    raw = (tmp_path / lunobiz.KEY_FILE).read_bytes()
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != lunobiz.KEY_FILE]
    assert len(files) > 10
    assert not [p for p in files for form in (raw, raw.hex().encode()) if form in p.read_bytes()]


@pytest.mark.parametrize(
    ("mode", "url", "wanted"),
    [(Mode.PAPER, "", "luno"), (Mode.LIVE, "", "luno"), (Mode.DEMO, "", "demo"), (Mode.REPLAY, "", "recorded"),
     (Mode.BACKTEST, "", "recorded"), (Mode.PAPER, "https://x.test", "test exchange"),
     (Mode.DEMO, "https://x.test", "test exchange")],
)  # fmt: skip
def test_where_cached_candles_came_from(mode: Mode, url: str, wanted: str) -> None:
    settings = replace(Settings(), exchange_url=url) if url else Settings()
    assert lunobiz.data_source(mode, settings) == wanted


def test_only_the_measured_method_counts_as_self_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lunobiz.GateJob((), lunobiz.Settings())
    source = lunobiz.program_source()
    monkeypatch.setattr(lunobiz, "SELF_TESTED", lunobiz.SelfTested("", "rows"))
    assert not lunobiz.with_self_test(plain, source).is_self_tested
    assert not lunobiz.with_self_test(plain, "no program").is_self_tested  # two unknowns are not equal
    monkeypatch.setattr(lunobiz, "SELF_TESTED", lunobiz.SelfTested(lunobiz.method_hash(source, plain.sets), "rows"))
    known = lunobiz.with_self_test(plain, source)
    assert known.is_self_tested and known.self_test_id == "rows"
    edited = lunobiz.with_self_test(replace(plain, is_self_tested=True, self_test_id="x"),
                                    source.replace("# GATES |", "# more\n# GATES |"))
    assert not edited.is_self_tested and edited.self_test_id == ""
    assert not lunobiz.with_self_test(replace(plain, sets=plain.sets[:1]), source).is_self_tested
