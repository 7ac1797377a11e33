"""The works that are measured, and the rules that every peer follows.

Rules. `top` of a candle is the highest high of the N candles before it, `floor` the lowest low of the M candles
before it, `range` Wilder's average of 14 true ranges up to it. The first 200 candles give no signal.

What happens in candle t, in this order:
1. At its open: a sale that waits is done at the open; after the sales, a purchase that waits is done at the open.
2. Inside it: what is held (bought just now included) is sold at the worse of open and stop if the low reaches the
   stop.
3. At its close: what is held waits to be sold if the close is below `floor`. What is not held (also if it was sold
   in this candle) waits to be bought if the close is above `top`; its stop is close - K x range and stays there.
Each purchase and each sale pays 0.1 % of its value. What is held at the end counts at the last close.

A   One market, N 20, M 10, K 2, one unit each time, 1,000,000 in cash.
B   A for 100 sets of N, M, K.
C   Five markets, one account of 1,000,000. At the signal the volume is the smaller of 1 % of equity / (K x range) and
    32 % of equity / close; at the purchase, what the cash pays for. At most 3 places: held, or waiting to be bought;
    markets are served in their order. Equity is counted at every close. A UTC day starts with the equity of the
    close before it; once equity is 3 % below that, everything held waits to be sold and nothing is bought that day.
PF  C for 100 sets.
D   C with three strategies: a breakout of `top` in a trend, a wide candle that closes high, and a fall below two
    deviations of 20 closes where there is no trend. Their exits are `floor`, a close below and a close above the
    average of 20. The strongest wishes of a candle are served first. Thin candles are passed over, which stands for
    a filter of spreads. Purchases and sales cost 0.05 % of slippage more.
WF  D for 100 sets over the year, cut into 20 windows of 60 days of training and the 15 days after them; in each the
    set with the best training Sharpe is chosen, and the 15 days that it did not see are joined.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WORKS = ("A", "B", "C", "PF", "D", "WF")
FEE, CASH, WARM_UP, RANGE_CANDLES = 0.001, 1_000_000.0, 200, 14
RISK, LARGEST, PLACES, DAY_CAP, SLIPPAGE = 0.01, 0.32, 3, 0.03, 0.0005
CANDLES_A_DAY, WINDOWS, TRAINING_DAYS, UNSEEN_DAYS = 288, 20, 60, 15


class Rule(NamedTuple):
    """One parameter set: candles of the entry and exit channel, and the stop in ranges."""

    entry: int
    leave: int
    stop: float


USUAL = Rule(20, 10, 2.0)
GRID = ((10, 15, 20, 30, 40), (5, 8, 10, 15, 20), (1.5, 2.0, 2.5, 3.0))
RULES = tuple(itertools.starmap(Rule, itertools.product(*GRID)))


class Outcome(NamedTuple):
    """What a run came to: round trips or purchases, and profit in counter."""

    round_trips: int
    profit: float


def some_rules(count: int) -> tuple[Rule, ...]:
    """This many of the sets, spread evenly over all of them."""
    return tuple(RULES[i * len(RULES) // count] for i in range(count))


def joined(daily: Sequence[np.ndarray]) -> float:
    """Growth of the joined unseen windows, from the daily returns of a yearly run of each set."""
    returns, total = np.array(daily), 1.0
    for number in range(WINDOWS):
        start = number * UNSEEN_DAYS
        middle = start + TRAINING_DAYS
        training = returns[:, start:middle]
        spread = training.std(axis=1)
        sharpe = np.divide(training.mean(axis=1), spread, out=np.full(len(returns), -np.inf), where=spread > 0)
        total *= float(np.prod(1.0 + returns[int(sharpe.argmax()), middle : middle + UNSEEN_DAYS]))
    return total - 1.0
