"""How fast to trade: what the strategies keep after Luno's costs, by channel length, timeframe and kind of entry.

    python tests/bench/study.py [FOLDER ...]

Made markets (three pairs, 4-hour bars, 1,150 days each) without an edge and with a planted one, and the folders of
recorded candles that are named. All sets run side by side in LANES; nothing here is chosen, and nothing is tuned on
recorded candles: the list of sets follows from the made markets alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import lunobiz as lb

MARKETS = 24
FIRST_SEED = 500_000
CHANNELS_H = (48, 120, 240, 480)
ENTRY_TIER, ALL_TAKER = (0.004, 0.006), (0.006, 0.006)


def paced(hours: int, **changes: float) -> lb.StrategyParams:
    """The first set of the list with another channel."""
    return replace(lb.parameter_sets()[0], breakout=hours, exit_channel=min(240, hours), **changes)


def only(name: str) -> lb.StrategyParams:
    """The first set, strategies at their usual thresholds, all but one switched off."""
    off = {"breakout": 10**4, "expansion": 99.0, "reversion_z": 99.0}
    on = {"momentum": {"breakout": 480}, "expansion": {"expansion": 2.0}, "reversion": {"reversion_z": 2.0}}[name]
    return replace(lb.parameter_sets()[0], **{**off, **on})


SETS = {
    **{f"list's first set, channel {hours} h": paced(hours) for hours in CHANNELS_H},
    "momentum alone, 480 h": only("momentum"),
    "expansion alone, 2 x": only("expansion"),
    "reversion alone, 2 deviations": only("reversion"),
}


def with_fees(candles: lb.Candles, fees: tuple[float, float]) -> lb.Candles:
    """The same markets at these fees."""
    return tuple((lb.with_fees(market, *fees, "study"), series) for market, series in candles)


def figures(runs: Sequence[lb.Candles], settings: lb.Settings) -> list[tuple[float, float, float]]:
    """Pooled yearly Sharpe ratio, return a year and round trips a year of each set, after the warm-up."""
    first = max(int(s.opened[0]) for _, s in runs[0]) + lb.HISTORY_DAYS * lb.DAY_MS
    first, last = -(-first // lb.DAY_MS) * lb.DAY_MS, max(int(s.closed[-1]) for _, s in runs[0])
    table = lb.lane_table(lb.LaneJob(tuple(runs), settings, tuple(SETS.values()), first, last))
    result = lb.run_lanes(table, lb.Lanes(table, settings))
    assert result is not None
    returns = lb.day_returns(result.equity, result.start)
    years = len(result.days) / 365
    found = []
    for lane in range(len(SETS)):
        pooled = returns[:, :, lane].ravel()
        spread = pooled.std()
        growth = float(np.mean(result.equity[-1, :, lane] / result.start - 1)) / years
        found.append((float(pooled.mean() / spread * np.sqrt(365)) if spread else 0.0, growth,
                      float(result.round_trips[:, :, lane].sum(axis=0).mean()) / years))
    return found


def show(title: str, columns: Iterable[tuple[str, list[tuple[float, float, float]]]]) -> None:
    """A table: a row per set, Sharpe ratio / return a year / round trips a year per column."""
    named = list(columns)
    print(f"\n{title}\n\n| set | " + " | ".join(name for name, _ in named) + " |\n|---|" + "---|" * len(named))
    for row, name in enumerate(SETS):
        cells = (f"{ratio:+.2f} / {growth:+.1%} / {trips:.0f}" for ratio, growth, trips in (c[row] for _, c in named))
        print(f"| {name} | " + " | ".join(cells) + " |")


def made(word: str, seconds: int, fees: tuple[float, float]) -> list[tuple[float, float, float]]:
    """Figures on made markets of one kind."""
    kind, strength = lb.kind_of(word)
    settings = lb.Settings(schedule=lb.Schedule(timeframes=(seconds,)))
    cases = [lb.TrialCase(kind, FIRST_SEED + seed, strength) for seed in range(MARKETS)]
    return figures([lb.decision_candles(with_fees(lb.self_market(c), fees), settings) for c in cases], settings)


def recorded(folder: str, seconds: int) -> list[tuple[float, float, float]]:
    """Figures on recorded candles at the entry tier."""
    found = lb.read_folder(Path(folder))
    settings = lb.folder_settings(lb.Settings(), found, (seconds,))
    return figures([lb.decision_candles(lb.folder_job(settings, found).candles, settings)], settings)


def main() -> None:
    """Print all tables; cells are Sharpe ratio / return a year / round trips a year, after all costs."""
    show("Made markets at the entry tier, post-only entries", [
        (f"{word} {'no edge' if word == 'A0' else 'planted edge'}, {hours} h candles",
         made(word, hours * 3600, ENTRY_TIER)) for word in ("A0", "E12") for hours in (4, 24)])
    show("The same, 4 h candles, if entries paid the taker fee", [
        (f"{word}, taker entries", made(word, 14_400, ALL_TAKER)) for word in ("A0", "E12")])
    for folder in sys.argv[1:]:
        show(f"Recorded: {Path(folder).name}", [(f"{hours} h candles", recorded(folder, hours * 3600))
                                                for hours in (1, 4, 24)])


if __name__ == "__main__":
    main()
