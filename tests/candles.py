"""Candles for tests: tables from short text, and hourly series of a known character."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

import lunobiz
from lunobiz import Floats, Schedule, Series, Settings

HOUR_S = 3600
DAY_S = 86_400
START_MS = 1_700_006_400_000  # 2023-11-15 00:00 UTC, the start of a day
HOURLY = Settings(schedule=Schedule(timeframes=(HOUR_S,)))  # for tests about hourly candles, whatever the default
_LINE = re.compile(r"(?:(?P<at>-?[\d.]+):)?(?P<values>[^#|]*)")


def table(text: str, seconds: int = HOUR_S, start_ms: int = START_MS) -> Floats:
    """Rows of opened_ms, open, high, low, close, volume from lines of `open high low close volume  # remark`.

    A line may start with the number of its candle and a colon, as in `3: 10 12 9 11 1`; otherwise it follows the
    one before. `3.5:` lies between two candles.
    """
    rows, number = [], -1.0
    for line in (raw.strip() for raw in text.strip().splitlines()):
        found = _LINE.match(line)
        assert found is not None
        values = [float(word) for word in found["values"].split()]
        if not values:
            continue
        assert len(values) == 5, f"five numbers are needed: {line}"
        number = float(found["at"]) if found["at"] else number + 1
        rows.append([start_ms + number * seconds * 1000, *values])
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


def series_from(text: str, seconds: int = HOUR_S, start_ms: int = START_MS) -> Series:
    """A Series from the text that `table` reads."""
    return lunobiz.series_of(table(text, seconds, start_ms), seconds)


def series(
    closes: Sequence[float] | Floats,
    highs: Sequence[float] | Floats | None = None,
    lows: Sequence[float] | Floats | None = None,
    volumes: Sequence[float] | Floats | None = None,
    seconds: int = HOUR_S,
    start_ms: int = START_MS,
) -> Series:
    """A Series from closes; opens are the closes before, highs and lows lie one percent around unless given."""
    close = np.array(closes, dtype=np.float64)
    opens = np.concatenate((close[:1], close[:-1]))
    top, bottom = np.maximum(opens, close), np.minimum(opens, close)
    return Series(
        seconds,
        start_ms + np.arange(len(close), dtype=np.int64) * seconds * 1000,
        opens,
        top * 1.01 if highs is None else np.array(highs, dtype=np.float64),
        bottom * 0.99 if lows is None else np.array(lows, dtype=np.float64),
        close,
        np.ones(len(close)) if volumes is None else np.array(volumes, dtype=np.float64),
    )


def rows_of(whole: Series) -> Floats:
    """A Series as the (n, 6) table it was made from."""
    columns = (whole.opened.astype(np.float64), whole.open, whole.high, whole.low, whole.close, whole.volume)
    return np.column_stack(columns)


def _walked(steps: Floats, seed: int, start: float, seconds: int, start_ms: int) -> Series:
    """Candles whose closes walk by log steps, with wicks and volumes of their own."""
    rng = np.random.default_rng(seed + 1_000_000)
    closes = start * np.exp(np.cumsum(steps))
    opens = np.concatenate(([start], closes[:-1]))
    wick = float(np.std(steps)) * 0.5 + 1e-6
    highs = np.maximum(opens, closes) * np.exp(np.abs(rng.normal(0.0, wick, len(steps))))
    lows = np.minimum(opens, closes) * np.exp(-np.abs(rng.normal(0.0, wick, len(steps))))
    times = start_ms + np.arange(len(steps), dtype=np.int64) * seconds * 1000
    return Series(seconds, times, opens, highs, lows, closes, rng.uniform(0.5, 2.0, len(steps)))


def random_walk(
    count: int, seed: int = 1, sigma: float = 0.01, seconds: int = HOUR_S, start: float = 1000.0
) -> Series:
    """Closes that go nowhere in particular."""
    steps = np.random.default_rng(seed).normal(0.0, sigma, count)
    return _walked(steps, seed, start, seconds, START_MS)


def trending(count: int, seed: int = 1, drift: float = 0.002, sigma: float = 0.002) -> Series:
    """Hourly closes that climb steadily; a negative drift falls."""
    steps = np.random.default_rng(seed).normal(drift, sigma, count)
    return _walked(steps, seed, 1000.0, HOUR_S, START_MS)


def ranging(count: int, seed: int = 1, width: float = 0.01) -> Series:
    """Hourly closes scattered about one level, each without regard to the one before."""
    places = np.random.default_rng(seed).normal(0.0, width, count)
    return _walked(np.diff(places, prepend=0.0), seed, 1000.0, HOUR_S, START_MS)


def wild(count: int, seed: int = 1, calm: float = 0.001, factor: float = 12.0, last: int = 24) -> Series:
    """A calm random walk whose last hours swing many times as far as all before."""
    steps = np.random.default_rng(seed).normal(0.0, calm, count)
    steps[-last:] *= factor
    return _walked(steps, seed, 1000.0, HOUR_S, START_MS)
