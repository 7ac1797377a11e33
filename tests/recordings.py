"""Recorded markets for tests: candles with legs of every kind, with gaps and silence, and the folders they lie in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

import lunobiz
from candles import HOURLY
from lunobiz import Floats, Settings, StrategyParams

DAY_MS = 86_400_000
START_MS = 1_704_067_200_000  # Monday 2024-01-01 00:00 UTC

# quick to enter and to leave, so that few days bring many trades
QUICK = StrategyParams(
    breakout=24, exit_channel=12, atr=12, stop_atr=2.0, trail_atr=2.5, squeeze=36, expansion=1.4, reversion=24,
    reversion_z=1.5, max_holding=36, trend_efficiency=0.25,
)  # fmt: skip
# reach of a leg and its noise an hour
LEGS = ((0.06, 0.006), (0.0, 0.006), (-0.04, 0.008), (0.10, 0.012), (0.0, 0.004), (-0.08, 0.020))


class Shape(NamedTuple):
    """One generated market: where its price starts, how much is traded, and which of its candles are missing."""

    price: float
    digits: int
    volume: float
    seed: int
    missing: tuple[tuple[float, float], ...] = ()  # days from and to
    silent: tuple[float, float] = (0.0, 0.0)
    days: tuple[float, float] = (0.0, 1e9)


def market_rows(shape: Shape, days: float, seconds: int = 900, start_ms: int = START_MS) -> Floats:
    """Candles of trends up and down, of ranges and of storms, each a day or a few long."""
    rng = np.random.default_rng(shape.seed)
    count, hourly = round(days * 86_400 / seconds), 3600 / seconds
    plan, noise = np.empty(0), np.empty(0)
    while len(plan) < count:
        reach, wild = LEGS[int(rng.integers(len(LEGS)))]
        steps = round(float(rng.uniform(18, 72)) * hourly)
        plan = np.append(plan, np.full(steps, reach * float(rng.uniform(0.6, 1.6)) / steps))
        noise = np.append(noise, np.full(steps, wild / np.sqrt(hourly)))
    swing = noise[:count] * rng.standard_t(5, count)
    drift, pull = np.cumsum(plan[:count]), np.empty(count)
    place = 0.0
    for row in range(count):  # what is not trend is pulled back, so that ranges are ranges
        place = place * (1 - 0.03 / hourly) + swing[row]
        pull[row] = place
    log = np.log(shape.price) + drift - drift[-1] * np.linspace(0, 1, count) + pull
    close = np.round(np.exp(log), shape.digits)
    opened = np.concatenate((close[:1], close[:-1]))
    wick = noise[:count] * np.abs(rng.standard_normal((2, count))) * 0.6
    high = np.maximum(np.maximum(opened, close), np.round(np.maximum(opened, close) * (1 + wick[0]), shape.digits))
    low = np.minimum(np.minimum(opened, close), np.round(np.minimum(opened, close) * (1 - wick[1]), shape.digits))
    volume = np.round(shape.volume * np.exp(0.6 * rng.standard_normal(count)), 6)
    at = np.arange(count) * seconds / 86_400
    is_silent = (at >= shape.silent[0]) & (at < shape.silent[1])
    volume[is_silent] = 0.0
    times = start_ms + np.arange(count) * seconds * 1000.0
    rows = np.column_stack((times, opened, high, low, close, volume))
    rows[is_silent, 1:5] = close[is_silent][:1].mean() if is_silent.any() else 0.0
    keep = (at >= shape.days[0]) & (at < shape.days[1])
    for first, last in shape.missing:
        keep &= ~((at >= first) & (at < last))
    return rows[keep]


def write_rows(folder: Path, pair: str, rows: Floats, seconds: int) -> None:
    """One market's candles as the file that people record."""
    lines = (f"{int(r[0])}," + ",".join(repr(float(v)) for v in r[1:]) for r in rows)
    text = "timestamp,open,high,low,close,volume\n" + "\n".join(lines) + "\n"
    (folder / f"{pair}_{seconds}.csv").write_text(text, encoding="ascii")


def write_folder(
    folder: Path, data: Mapping[str, Floats], seconds: int, says: Mapping[str, Mapping[str, float]] | None = None
) -> Path:
    """A folder of recorded candles, with a markets.json if there is something to say."""
    folder.mkdir(parents=True, exist_ok=True)
    for pair, rows in data.items():
        write_rows(folder, pair, rows, seconds)
    if says:
        (folder / "markets.json").write_text(json.dumps(says), encoding="ascii")
    return folder


def quick_settings(**schedule: object) -> Settings:
    """Settings under which a few weeks bring dozens of trades; hourly candles unless `schedule` says otherwise."""
    plain = HOURLY
    limits = dataclasses.replace(
        plain.limits, min_confidence=0.3, min_edge=1.0, max_positions=4, daily_loss_cap=0.02, max_spread=0.006,
    )  # fmt: skip
    timing = dataclasses.replace(plain.schedule, **{"timeframes": (3600,), **schedule})  # type: ignore[arg-type]
    return dataclasses.replace(plain, limits=limits, params=QUICK, schedule=timing)


def lines(values: Iterable[object]) -> list[str]:
    """The canonical text of each value: what "byte for byte" is about."""
    return [lunobiz.canonical(v) for v in values]
