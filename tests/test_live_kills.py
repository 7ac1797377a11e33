"""Real ends of a real process: LIVE over TLS, killed at any moment and started again; starts that race for one folder.

The exchange lives in this process. The child kills itself around a write of its database or around a request, or is
killed by the exchange when a request has arrived, or after some time, whatever it is doing then. Market time is shared
through a file, so that it goes on over a kill.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

import pytest

import lunobiz
from lunobiz import Credentials, HttpTransport, InstanceLock, Params, Redactor, Reply, Store
from sessions import KEY, Run, SharedClock, disagreements, lively_exchange
from tls_exchange import TIMEOUTS_S, TlsExchange

POST, STOP = "/api/1/postorder", "/api/1/stoporder"
WRITES = ("before a write", "inside a write", "after a write")
REQUESTS = ("before a request", "after a request", "before an order", "after an order", "before a cancel",
            "after a cancel")  # fmt: skip
ARRIVALS = ("order arrived", "order carried out", "cancel arrived", "cancel carried out", "any arrived",
            "any carried out")  # fmt: skip
POINTS = (*WRITES, *REQUESTS, *ARRIVALS, "some time")


class Death(NamedTuple):
    """Where a process ends, and at which time of being there."""

    point: str
    count: int
    seconds: float


def end_here() -> None:
    """Gone, as by kill -9 or a power cut: no handler, no clean-up."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


class Fate:
    """Counts the points of a death and ends the process at the right one."""

    def __init__(self, death: Death) -> None:
        self._death, self._left = death, death.count

    def pass_by(self, *points: str) -> None:
        """One of these points is reached."""
        if self._death.point in points:
            self._left -= 1
            if self._left == 0:
                end_here()


class MortalStore(Store):
    """A store in which the process may end around each transaction."""

    fate: Fate

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        fate = getattr(self, "fate", None) or Fate(Death("", 0, 0.0))
        fate.pass_by("before a write")
        with super()._writing():
            yield
            fate.pass_by("inside a write")
        fate.pass_by("after a write")


class MortalTransport(HttpTransport):
    """The program's transport, in which the process may end around each request."""

    fate: Fate

    def send(self, method: str, path: str, params: Params = (), key: Credentials | None = None) -> Reply:
        what = {POST: "an order", STOP: "a cancel"}.get(path, "nothing")
        self.fate.pass_by("before a request", f"before {what}")
        made = super().send(method, path, params, key)
        self.fate.pass_by("after a request", f"after {what}")
        return made


def child(url: str, ca_file: str, clock_file: str, database: str, death: Death, end_ms: int) -> None:
    """A start of the program: LIVE until its end."""
    fate, clock = Fate(death), SharedClock(Path(clock_file))
    transport = MortalTransport(url, ca_file, TIMEOUTS_S)
    transport.fate = fate
    store = MortalStore(Path(database), Redactor([KEY]))
    store.fate = fate
    run = Run(transport, clock, Path(database), store=store, end_ms=end_ms)
    while run.engine.step() is not None:
        run.resolve()
    run.close()


def forks() -> BaseContext:
    """Processes that start quickly from one that has loaded the program; Windows starts them from nothing."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["lunobiz", "test_live_kills"])
    return made


class Killing:
    """One account's life through many processes; every coin is followed to its end."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng, self.folder = random.Random(seed), folder
        self.clock_file, self.database = folder / "clock", folder / "live.db"
        self.clock = SharedClock(self.clock_file)
        self.exchange = lively_exchange(self.clock, 60)
        self.server = TlsExchange(folder / "ca", self.exchange, self.clock)
        self.context = forks()
        self.died: Counter[str] = Counter()

    def death(self, point: str) -> Death:
        """Soon where it is rare, later where it is not."""
        most = {"before a request": 200, "after a request": 200, "any arrived": 200, "any carried out": 200,
                **dict.fromkeys(WRITES, 90)}.get(point, 3)  # fmt: skip
        return Death(point, self.rng.randint(1, most), self.rng.uniform(0.05, 1.5))

    def live_and_die(self, point: str) -> None:
        """One start of the program and its end at a point."""
        death = self.death(point)
        arguments = (self.server.url, self.server.ca_file, str(self.clock_file), str(self.database))
        process = self.context.Process(target=child, args=(*arguments, death, 2**62))  # type: ignore[attr-defined]
        left = [death.count if point in ARRIVALS else -1]

        def watch(phase: str, method: str, path: str) -> None:
            what = {POST: "order", STOP: "cancel"}.get(path, "nothing")
            words = "arrived" if phase == "before" else "carried out"
            if point in (f"{what} {words}", f"any {words}"):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(int(process.pid or 0), getattr(signal, "SIGKILL", signal.SIGTERM))
                    time.sleep(0.02)  # it is gone before its request is carried out

        self.server.watch = watch
        process.start()
        process.join(death.seconds if point == "some time" else 60)
        process.kill()
        process.join(20)
        self.died[point] += 1
        assert process.exitcode not in (0, 1, None), "it ended by itself"  # 1: by an error
        self.check()

    def check(self) -> None:
        """What must hold while nobody looks: each order at the exchange was written before, and none twice."""
        with self.server.lock:
            orders = [o.client_id for o in self.exchange.accounts.orders.values()]
        assert len(orders) == len(set(orders))
        if not self.database.exists():
            assert not orders
            return
        address = f"{self.database.resolve().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as db:
            written = {row[0] for row in db.execute("SELECT client_id FROM sendings")}
        assert set(orders) <= written

    def finish(self) -> list[str]:
        """A last start, in this process, on which everything must agree."""
        self.server.watch = lambda phase, method, path: None
        run = Run(self.server.transport(), self.clock, self.database)
        run.rest(40)
        wrong = disagreements(run, self.exchange)
        run.store.verify()
        run.close()
        return wrong


def killed(folder: Path, seed: int, points: Sequence[str]) -> Killing:
    """A life that ends at these points and agrees in the end."""
    made = Killing(folder, seed)
    with made.server:
        for point in points:
            made.live_and_die(point)
        assert made.finish() == []
        posted = [dict(parse_qsl(body.decode()))["client_order_id"] for body in made.server.bodies]
        assert len(posted) == len(set(posted))  # one POST an order, over all lives
    return made


def test_kills_at_every_kind_of_moment_lose_and_double_nothing(tmp_path: Path) -> None:
    """One kill of each kind, in an order drawn from a seed."""
    points = random.Random(3).sample(POINTS, len(POINTS))
    made = killed(tmp_path, 4, points)
    assert made.died.total() == len(POINTS)
    assert len(made.exchange.accounts.orders) >= 3


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_hundreds_of_kills(tmp_path: Path, seed: int) -> None:
    """Twenty lives with 26 kills each, two at each kind of moment but some: pytest -m long -k hundreds_of_kills"""
    rng = random.Random(1_000 + seed)
    points = rng.sample([*POINTS, *rng.sample(POINTS, 10)], 26)
    made = killed(tmp_path, seed, points)
    assert made.died.total() == 26


# ---- starts that race ----------------------------------------------------------------------------------

PROGRAM = Path(lunobiz.__file__)
BUSY = "another LunoBiz is running"


def contender(home: str, gate: str, seconds: float, out: str) -> None:
    """One of many that start at the same moment: takes the lock, opens the audit, works on it, and says how it went."""
    while not Path(gate).exists():
        time.sleep(0.0005)
    lock = InstanceLock(Path(home) / "instance.lock")
    if not lock.acquire():
        Path(out).write_text(BUSY, encoding="ascii")
        return
    store = Store(Path(home) / "lunobiz.db", Redactor([]))
    store.mark_session("opened", os.getpid())
    Path(out).write_text("ran", encoding="ascii")
    time.sleep(seconds)
    if seconds > 5:
        end_here()
    store.mark_session("closed", os.getpid())
    store.close()
    lock.release()


def race(context: BaseContext, folder: Path, home: Path, count: int) -> list[str]:
    """What each of so many starts at the same moment said; the one that runs is killed with its lock held."""
    folder.mkdir()
    gate = folder / "gate"
    outs = [folder / f"{n}.out" for n in range(count)]
    started = [context.Process(target=contender, args=(str(home), str(gate), 60.0, str(out)))  # type: ignore[attr-defined]
               for out in outs]
    for process in started:
        process.start()
    time.sleep(0.15)
    gate.touch()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not all(o.exists() and o.read_text(encoding="ascii") for o in outs):
        time.sleep(0.002)
    for process in started:
        process.kill()
        process.join(10)
    return [out.read_text(encoding="ascii") for out in outs]


def races(tmp_path: Path, rounds: int, count: int) -> None:
    """In every round exactly one runs, though the one before was killed and never let go."""
    context, home = forks(), tmp_path / "home"
    home.mkdir()
    for number in range(rounds):
        told = race(context, tmp_path / f"round{number}", home, count)
        assert sorted(told) == [*[BUSY] * (count - 1), "ran"], number
    store = Store(home / "lunobiz.db", Redactor([]))
    store.verify()
    assert store._fetch("SELECT COUNT(*) FROM sessions WHERE kind = 'opened'", ()) == [(rounds,)]
    store.close()


def test_of_many_starts_at_once_exactly_one_runs(tmp_path: Path) -> None:
    """The first round also makes the database; each later one takes over from a killed program."""
    races(tmp_path, 10, 4)


@pytest.mark.long
def test_two_hundred_races(tmp_path: Path) -> None:
    """Some minutes: pytest -m long -k two_hundred_races"""
    races(tmp_path, 200, 3)


def test_whole_programs_that_start_at_once(tmp_path: Path) -> None:
    """The program itself: one trades, the others name the folder and end with 4; after a kill the next one runs."""
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, str(PROGRAM), "--headless", "--demo", "--speed", "1", "--home", str(home)]
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("LUNOBIZ_")}, "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        started = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
                   for _ in range(3)]
        deadline = time.monotonic() + 60
        while sum(p.poll() is None for p in started) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        running = [p for p in started if p.poll() is None]
        assert len(running) == 1
        for process in started:
            if process is not running[0]:
                assert process.stderr is not None
                words = process.stderr.read().decode()
                assert process.returncode == 4 and BUSY in words and str(home) in words and "Traceback" not in words
        wait_for_audit(home / "demo.db")
        running[0].kill()
        running[0].wait(30)
        for process in started:
            if process.stderr is not None:
                process.stderr.close()
    store = Store(home / "demo.db", Redactor([]))
    store.verify()
    assert store.is_session_open()  # the killed one never closed it
    store.close()


def wait_for_audit(path: Path) -> None:
    """Until a session is open."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(sqlite3.Error), contextlib.closing(
                sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            if db.execute("SELECT COUNT(*) FROM sessions").fetchone()[0]:
                return
        time.sleep(0.05)
    raise AssertionError("no session was opened")
