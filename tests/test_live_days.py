"""Thirty simulated days of LIVE on a line with faults and crashes: all agrees, and nothing grows for ever."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import NamedTuple

import pytest

from lunobiz import REHEARSED_FAULTS, REHEARSED_PATHS, DemoExchange, Fault, SteppedClock
from sessions import LOOKS_S, Run, disagreements, lively_exchange

LOOKS_A_DAY = 24 * len(LOOKS_S)
FAULT_CHANCE, CRASH_CHANCE = 0.10, 0.003  # of each look


class Life(NamedTuple):
    """What a run over many days came to."""

    orders: int
    faults: int
    crashes: int
    memory: list[int]  # objects that the collector follows, after each day
    database: list[int]
    logs: int


def disturb(exchange: DemoExchange, rng: random.Random) -> int:
    """Sometimes one more fault for a path that has none waiting; how many that were."""
    if rng.random() >= FAULT_CHANCE:
        return 0
    kind, path = rng.choice(REHEARSED_FAULTS), rng.choice(REHEARSED_PATHS)
    wait_s = rng.choice((0.0, 3.0, 8.0, 45.0)) if kind in ("late", "timeout", "timeout_after") else 0.0
    if any(fault.path == path for fault in exchange.faults):
        return 0
    exchange.faults.append(Fault(kind, path, 1, wait_s))
    return 1


def lived(folder: Path, days: int, seed: int) -> Life:
    """So many days; at the end an honest line, on which everything must agree."""
    clock, rng = SteppedClock(0), random.Random(seed)
    exchange = lively_exchange(clock, days + 5)
    run = Run(exchange, clock, folder / "live.db", seed)
    faults, crashes, memory, sizes = 0, 0, [], []
    for look in range(days * LOOKS_A_DAY):
        faults += disturb(exchange, rng)
        run.look()
        run.resolve()
        if rng.random() < CRASH_CHANCE:
            crashes += 1
            run.drop()
            run = Run(exchange, clock, folder / "live.db", seed)
        if look % LOOKS_A_DAY == LOOKS_A_DAY - 1:
            run.events.clear()  # the test's own
            gc.collect()
            memory.append(len(gc.get_objects()))
            sizes.append(run.store.size_bytes())
    exchange.faults.clear()
    run.rest(40)
    wrong = disagreements(run, exchange)
    assert wrong == [], wrong
    posts = [o.client_id for o in exchange.accounts.orders.values()]
    assert len(posts) == len(set(posts))
    run.store.verify()
    logs = sum(f.stat().st_size for f in (folder / "logs").iterdir())
    run.close()
    return Life(len(posts), faults, crashes, memory, sizes, logs)


def assert_bounded(life: Life, days: int) -> None:
    """After the first days memory grows by what orders and their fills take, the database by less than 3 MB a day."""
    settled = max(2, days // 6)
    per_order = 30 * life.orders  # the exchange, which keeps everything, lives in this process as well
    assert life.memory[-1] < life.memory[settled] * 1.10 + per_order
    growth = (life.database[-1] - life.database[settled]) / (days - settled - 1)
    assert growth < 3e6
    assert life.logs < 2e6 * days


def test_four_days(tmp_path: Path) -> None:
    """The first of them."""
    life = lived(tmp_path, 4, 3)
    assert life.orders >= 12 and life.faults >= 20
    assert_bounded(life, 4)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thirty_days(tmp_path: Path, seed: int) -> None:
    """A minute or two each: pytest -m long -k thirty_days"""
    life = lived(tmp_path, 30, seed)
    assert life.orders >= 120 and life.faults >= 250 and life.crashes >= 3
    assert_bounded(life, 30)
