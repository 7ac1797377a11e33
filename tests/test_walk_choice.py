"""WALK, the choice of now: what PAPER trades is what the walk-forward would have chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest

import lunobiz
from lunobiz import (
    CASH,
    Candles,
    Choice,
    GateJob,
    GateLimits,
    MarketModel,
    RiskLimits,
    Schedule,
    Settings,
    StrategyParams,
    TrialCase,
    self_market,
)

DAY_MS = 86_400_000
FEES = (0.0004, 0.0006)
LIMITS = GateLimits(warm_up_days=70, train_days=120, embargo_days=5, test_days=30, windows=1, min_windows=1)
DAYS = 230


# quick sets, so that a short training has round trips to choose by
SETS = tuple(StrategyParams(breakout=hours, exit_channel=24, stop_atr=2.0, trail_atr=3.0, squeeze=96, reversion=24,
                            max_holding=96, trend_efficiency=0.1) for hours in (24, 36, 48))  # fmt: skip


def settings(limits: GateLimits = LIMITS) -> Settings:
    return Settings(gates=limits, schedule=Schedule(pairs=lunobiz.TRIAL_PAIRS, timeframes=(14_400,)),
                    limits=RiskLimits(min_edge=0.5, min_confidence=0.3))  # fmt: skip


def made(kind: str = "E", seed: int = 1, strength: float = 0.6) -> Candles:
    """Three markets of 230 days."""
    return self_market(TrialCase(kind, seed, strength, FEES, MarketModel(days=DAYS, unseen_days=80)))


@pytest.mark.parametrize(("kind", "seed"), [("E", 1), ("E", 2), ("A0", 1), ("A0", 2), ("A0", 4)])
def test_the_current_choice_is_that_of_a_window_whose_training_ends_that_day(kind: str, seed: int) -> None:
    """The choice is asked for in the middle of the day after the training; the candles go on long after it."""
    candles, wanted = made(kind, seed), settings()
    (window,) = lunobiz.windows_of(candles, LIMITS)
    tested = lunobiz.walk_real(GateJob(candles, wanted, sets=SETS), (window,))
    assert tested is not None
    (told,) = tested.unseen.windows
    choice = lunobiz.current_choice(candles, wanted, SETS, window.train_to_ms + DAY_MS // 2)
    assert told.train_sharpe != 0
    assert choice == Choice(told.chosen, told.train_sharpe, window.train_from_ms, window.train_to_ms)


def test_candles_after_the_last_whole_day_change_nothing() -> None:
    candles, now_ms = made(), lunobiz.span_of(s for _, s in made())[1] - 20 * DAY_MS
    known = tuple((m, lunobiz.closed_only(s, now_ms)) for m, s in candles)
    whole, cut = (lunobiz.current_choice(c, settings(), SETS, now_ms) for c in (candles, known))
    assert whole == cut
    assert whole.chosen is not None


def test_no_set_that_earned_its_costs_is_cash() -> None:
    """With fees of 5 % a side nothing can earn."""
    dear = tuple((replace(m, maker_fee=0.05, taker_fee=0.05), s) for m, s in made("A0"))
    now_ms = lunobiz.span_of(s for _, s in dear)[1]
    assert lunobiz.current_choice(dear, settings(), SETS, now_ms).chosen == CASH


def test_too_little_history_tells_how_many_days_are_missing() -> None:
    """190 days are needed; the markets have days 0 to 229, listed from START_MS on."""
    candles = made()
    first = lunobiz.span_of(s for _, s in candles)[0]
    for days, missing in ((190, 0), (189, 1), (62, 128), (0, 190)):
        found = lunobiz.current_choice(candles, settings(), SETS, first + days * DAY_MS + 1)
        assert (found.missing_days, found.chosen is None) == (missing, missing > 0)
    late = first + (DAYS + 3) * DAY_MS  # the last three days have not come
    assert lunobiz.current_choice(candles, settings(), SETS, late).missing_days == 3
    assert lunobiz.current_choice((), settings(), SETS, late).missing_days == 190


def test_one_market_with_the_whole_history_is_enough_as_it_is_for_the_windows() -> None:
    candles = made()
    short = ((candles[0][0], candles[0][1]), (candles[1][0], candles[1][1].part(600, len(candles[1][1]))))
    last = lunobiz.span_of(s for _, s in candles)[1]
    assert lunobiz.missing_days(short, LIMITS, last) == 0
    assert lunobiz.missing_days(short[1:], LIMITS, last) == 60  # 600 candles of 4 h are 100 days; 130 are left of 190
