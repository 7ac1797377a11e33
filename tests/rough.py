"""Markets and settings drawn from a seed, as rough as candles get, for comparing the lanes with the cycle."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lunobiz import Candles, Floats, Market, Settings, StrategyParams, series_of
from recordings import DAY_MS, QUICK, START_MS, Shape, market_rows

HOUR_MS = 3_600_000
DAYS = 92  # 63 for the memories, the rest to trade
SETS = (
    QUICK,
    replace(QUICK, breakout=18, stop_atr=1.0, trail_atr=1.0, max_holding=20, atr=24),
    replace(QUICK, breakout=48, exit_channel=24, stop_atr=3.0, trail_atr=4.0, reversion_z=1.2, max_holding=100),
)


class Scene(NamedTuple):
    """Candles with the settings and the time to run them."""

    candles: Candles
    settings: Settings
    start_ms: int
    end_ms: int

    def under(self, params: StrategyParams) -> Settings:
        """The settings with another parameter set."""
        return replace(self.settings, params=params)


def roughen(rng: np.random.Generator, rows: Floats) -> Floats:
    """Opens far from the close before, at times a jump, silent stretches and thin candles."""
    rows, count = rows.copy(), len(rows)
    for at in rng.integers(1, count, size=max(1, count // 150)):
        rows[at:, 1:5] = np.round(rows[at:, 1:5] * np.exp(rng.choice([-1, 1]) * rng.uniform(0.02, 0.10)), 2)
    if rng.random() < 0.4:
        jump = int(rng.integers(count // 2, count))
        rows[jump:, 1:5] = np.round(rows[jump:, 1:5] * rng.choice([0.7, 1.3]), 2)
    quiet = int(rng.integers(0, count - 60))
    rows[quiet : quiet + int(rng.integers(3, 40)), 5] = 0
    is_thin = rng.random(count) < 0.1
    rows[is_thin, 5] *= rng.uniform(0, 0.02, size=int(is_thin.sum()))
    rows[:, 5] = np.round(rows[:, 5], 6)
    return rows


def with_holes(rng: np.random.Generator, rows: Floats) -> Floats:
    """Some candles left out, one or many in a row."""
    keep = np.ones(len(rows), dtype=bool)
    for _ in range(int(rng.integers(0, 6))):
        at = int(rng.integers(1, len(rows) - 60))
        keep[at : at + int(rng.choice([1, 1, 2, 3, 30]))] = False
    return rows[keep]


def rough_rows(rng: np.random.Generator, seconds: int, days: int = DAYS) -> Floats:
    """One market's candles; some have holes, are listed late or end early."""
    price, volume = float(rng.choice([30.0, 1000.0, 250_000.0])), float(rng.choice([3.0, 50.0, 5000.0]))
    rows = roughen(rng, market_rows(Shape(price, 2, volume, int(rng.integers(10**9))), days, seconds))
    if rng.random() < 0.6:
        rows = with_holes(rng, rows)
    if rng.random() < 0.2:
        rows = rows[int(rng.integers(0, len(rows) // 2)) :]
    if rng.random() < 0.2:
        rows = rows[: int(rng.integers(len(rows) * 3 // 4, len(rows)))]
    return rows


def rough_market(rng: np.random.Generator, number: int) -> Market:
    """A market whose lots, least volume and fees are drawn."""
    lots, least = int(rng.choice([2, 4, 6])), float(rng.choice([0.0001, 0.01, 0.1]))
    spread, fee = float(rng.choice([0.001, 0.003])), float(rng.choice([0, 0.001, 0.004]))
    return Market(f"M{number}ZAR", f"M{number}", "ZAR", 2, lots, least, 1e6, 0.01, 1e9, model_spread=spread,
                  maker_fee=fee)  # fmt: skip


def rough_settings(rng: np.random.Generator, seconds: int) -> Settings:
    """Limits that let much happen, or that bite at once."""
    plain = Settings()
    limits = replace(
        plain.limits, min_confidence=0.3, min_edge=float(rng.choice([0.3, 1.0])),
        max_positions=int(rng.choice([1, 2, 3, 8])), daily_loss_cap=float(rng.choice([0.005, 0.01, 0.03])),
        weekly_loss_cap=float(rng.choice([0.005, 0.01, 0.02, 0.06])),
        cooldown_hours=float(rng.choice([1, 5, 12, 30])), daily_cap_action=str(rng.choice(["close", "hold"])),
        max_spread=0.006, min_volume_24h=float(rng.choice([0, 100.0])),
        risk_per_trade=float(rng.choice([0.005, 0.02])), orders_per_day=int(rng.choice([100, 4])),
        orders_per_minute=int(rng.choice([6, 1])), max_exposure=float(rng.choice([0.6, 1.0])),
    )  # fmt: skip
    costs = replace(
        plain.costs, slippage=float(rng.choice([0, 0.001, 0.01])), stop_gap=float(rng.choice([0.001, 0.01])),
        exit_bound=float(rng.choice([0.02, 0.005])),
    )  # fmt: skip
    timing = replace(
        plain.schedule, timeframes=(seconds,), entry_timeout_candles=int(rng.integers(1, 4)),
        paper_cash=float(rng.choice([1e3, 1e5, 1e7])),
    )  # fmt: skip
    return replace(plain, limits=limits, costs=costs, schedule=timing)


def scene(seed: int, **limits: object) -> Scene:
    """One to three rough markets, hourly or of four hours, under settings drawn from the same seed."""
    rng = np.random.default_rng(seed)
    seconds = int(rng.choice([3600, 3600, 14_400]))
    candles = []
    for number in range(int(rng.integers(1, 4))):
        rows = rough_rows(rng, seconds)
        candles.append((rough_market(rng, number), series_of(rows, seconds)))
    settings = rough_settings(rng, seconds)
    settings = replace(settings, limits=replace(settings.limits, **limits))  # type: ignore[arg-type]
    start_ms = START_MS + 63 * DAY_MS + int(rng.integers(0, 2)) * int(rng.integers(0, 24)) * HOUR_MS
    return Scene(tuple(candles), settings, start_ms, START_MS + DAYS * DAY_MS)
