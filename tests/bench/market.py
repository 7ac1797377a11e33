"""Candles for the benchmarks: five generated markets, a year of 5 minutes each, always the same.

Log prices walk in six steps a candle. Steps share a common part, their size swells and fades over hours and with the
time of day, and stretches with a drift up or down alternate with stretches that have none.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

SEED, MARKETS, CANDLES, STEPS, CANDLE_MS = 41, 5, 105_120, 6, 300_000
START_MS = 1_735_689_600_000  # 2025-01-01 00:00 UTC
YEARLY, COMMON, LEVEL = 0.65, 0.6, 1000.0


class Candles(NamedTuple):
    """Starts in ms, and prices and volumes as (markets, candles)."""

    opened: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray

    @property
    def days(self) -> np.ndarray:
        """The UTC day of each candle."""
        return self.opened // 86_400_000


def swell(rng: np.random.Generator, keep: float, push: float, count: int) -> np.ndarray:
    """A level that is pushed about and returns to zero."""
    found, level = np.empty(count), 0.0
    for row, move in enumerate(rng.normal(0.0, push, count).tolist()):
        level = keep * level + move
        found[row] = level
    return found


def _drift(rng: np.random.Generator, count: int) -> np.ndarray:
    """Stretches of a few hundred candles: a quarter climb, a quarter fall, half do neither."""
    found, row = np.zeros(count), 0
    while row < count:
        length = 60 + int(rng.exponential(400.0))
        found[row : row + length] = rng.choice((1.0, -1.0, 0.0, 0.0)) * rng.uniform(0.03, 0.12)
        row += length
    return found


def _market(rng: np.random.Generator, common: np.ndarray, heat: np.ndarray) -> tuple[np.ndarray, ...]:
    """Open, high, low, close and volume of one market."""
    count = len(heat)
    size = YEARLY / np.sqrt(count) * np.exp(0.6 * heat + 0.6 * swell(rng, 0.995, 0.04, count) - 0.35)
    own = rng.standard_t(5, (count, STEPS)) / np.sqrt(5 / 3)
    moves = (COMMON * common + np.sqrt(1 - COMMON**2) * own) / np.sqrt(STEPS) + _drift(rng, count)[:, None] / STEPS
    path = np.cumsum(size[:, None] * moves).reshape(count, STEPS)
    path -= np.linspace(0.0, 0.9 * path[-1, -1], count)[:, None]  # stays near its level, so that sizes stay alike
    first = np.concatenate(([0.0], path[:-1, -1])) + rng.normal(0.0, 0.05, count) * size
    high, low = np.maximum(first, path.max(axis=1)), np.minimum(first, path.min(axis=1))
    prices = (np.round(LEVEL * np.exp(x), 2) for x in (first, high, low, path[:, -1]))
    return (*prices, np.round(20_000.0 * np.exp(0.8 * rng.standard_normal(count) + heat), 4))


def generate(markets: int = MARKETS, candles: int = CANDLES, seed: int = SEED) -> Candles:
    """The candles of this seed."""
    rng = np.random.default_rng(seed)
    time_of_day = 0.25 * np.sin(np.arange(candles) * (2 * np.pi / 288))
    heat = swell(rng, 0.997, 0.06, candles) + time_of_day
    common = rng.standard_normal((candles, STEPS))
    columns = zip(*(_market(rng, common, heat) for _ in range(markets)), strict=True)
    opened = START_MS + np.arange(candles, dtype=np.int64) * CANDLE_MS
    return Candles(opened, *(np.array(column) for column in columns))


def saved(folder: Path) -> Path:
    """The file of the usual candles, generated if it is not there."""
    file = folder / f"candles-{SEED}-{MARKETS}x{CANDLES}.npz"
    if not file.exists():
        fresh = file.with_name("new-" + file.name)
        np.savez(fresh, **generate()._asdict())
        fresh.replace(file)
    return file


def load(file: Path) -> Candles:
    """Candles from a file."""
    with np.load(file) as table:
        return Candles(*(table[name] for name in Candles._fields))
