"""PD: a year of 5-minute candles of five markets read from the cache; the figure is CPU, the note has the wall."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import market
import numpy as np
from own import lb, tell

ROUNDS, SECONDS = 7, 300
PAIRS = ("AAAZAR", "BBBZAR", "CCCZAR", "DDDZAR", "EEEZAR")


def fill(file: Path, candles: market.Candles) -> None:
    """Write all candles."""
    store = lb.Store(file, lb.Redactor(), "OFF")
    for m, pair in enumerate(PAIRS):
        columns = (candles.opened, candles.open[m], candles.high[m], candles.low[m], candles.close[m],
                   candles.volume[m])
        store.save_rows(pair, SECONDS, np.column_stack(columns).astype(np.float64))
    store.close()


def read(file: Path) -> tuple[float, float]:
    """CPU and wall seconds of reading all candles of a store that was opened just now."""
    store = lb.Store(file, lb.Redactor())
    cpu, wall = time.process_time(), time.perf_counter()
    rows = sum(len(store.candles(pair, SECONDS)) for pair in PAIRS)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    store.close()
    if rows != market.MARKETS * market.CANDLES:
        raise RuntimeError(f"{rows} rows came back")
    return cpu, wall


def main(folder: Path) -> None:
    """Fill once, read several times."""
    candles = market.load(market.saved(folder))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        file = Path(place) / "cache.db"
        fill(file, candles)
        found = [read(file) for _ in range(ROUNDS)]
    cpu, wall = (statistics.median(column) for column in zip(*found, strict=True))
    tell("PD", f"{market.MARKETS * market.CANDLES:,} candles read from the cache, CPU", 0.5, cpu, "s",
         f"{wall:.3f} s by the clock")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
