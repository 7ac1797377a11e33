"""TYPES: rounding against ourselves, exact and approximate numbers, and the small sums of the values."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import lunobiz
from lunobiz import (
    Balance,
    Candle,
    CauseKind,
    Conditions,
    ExitPhase,
    Fill,
    Market,
    MarketView,
    Moment,
    Order,
    OrderKind,
    OrderState,
    Outlook,
    Position,
    Refusal,
    Regime,
    Side,
    Ticker,
    TradingState,
)

T0 = 1_700_006_400_000
SCALES = st.integers(0, 8)
STEPS = st.integers(1, 10**12)
PRICES = st.floats(1e-4, 1e6, allow_nan=False, allow_infinity=False)


def market(price_scale: int = 2, volume_scale: int = 6) -> Market:
    """A market with these scales and no other limits."""
    return Market("XBTZAR", "XBT", "ZAR", price_scale, volume_scale, 1e-8, 1e12, 1e-8, 1e15)


def on_grid(value: float, scale: int) -> bool:
    """True when the float is the one that stands for a number of `scale` decimals."""
    return value == float(f"{value:.{scale}f}")


# --- rounding ---


@pytest.mark.parametrize(
    ("price", "side", "scale", "expected"),
    [
        (100.001, Side.BUY, 2, 100.01),
        (100.009, Side.SELL, 2, 100.0),
        (100.01, Side.BUY, 2, 100.01),
        (100.01, Side.SELL, 2, 100.01),
        (0.29, Side.SELL, 2, 0.29),  # 0.29 * 100 is 28.999999999999996
        (1.1, Side.BUY, 1, 1.1),  # 1.1 * 10 is 11.000000000000002
        (0.1 + 0.2, Side.BUY, 1, 0.3),  # a sum that missed the grid by one binary digit is on it
        (1_234_567.2, Side.BUY, 0, 1_234_568.0),
        (1_234_567.9, Side.SELL, 0, 1_234_567.0),
        (0.00001234, Side.BUY, 6, 0.000013),
    ],
)
def test_a_price_is_rounded_up_to_buy_and_down_to_sell(price: float, side: Side, scale: int, expected: float) -> None:
    assert market(price_scale=scale).round_price(price, side) == expected


@given(PRICES, SCALES)
def test_rounding_is_on_the_grid_against_us_and_never_a_step_off(price: float, scale: int) -> None:
    m = market(scale, scale)
    up, down, volume = m.round_price(price, Side.BUY), m.round_price(price, Side.SELL), m.round_volume(price)
    assert on_grid(up, scale)
    assert on_grid(down, scale)
    assert volume == down
    step = Decimal(1).scaleb(-scale)
    # a price nearer to the grid than this counts as lying on it
    slack = max(step / 10**6, Decimal(math.ulp(price)) * 6)
    assert -slack <= Decimal(repr(up)) - Decimal(price) < step + slack
    assert -slack <= Decimal(price) - Decimal(repr(down)) < step + slack


@given(PRICES, SCALES)
def test_rounding_agrees_with_decimal_away_from_the_grid(price: float, scale: int) -> None:
    step = Decimal(1).scaleb(-scale)
    rest = Decimal(price) % step
    slack = max(step / 10**6, Decimal(math.ulp(price)) * 6)
    if not slack < rest < step - slack:
        return
    m = market(scale)
    assert m.round_price(price, Side.BUY) == float(Decimal(price).quantize(step, ROUND_CEILING))
    assert m.round_price(price, Side.SELL) == float(Decimal(price).quantize(step, ROUND_FLOOR))


@given(STEPS, SCALES)
@example(8_285_750_416, 6)  # 8,285.750416 XRP
@example(7_962_224_174, 8)  # a fee of R79.62224174
def test_what_lies_on_the_grid_stays_where_it_is(steps: int, scale: int) -> None:
    value = float(Decimal(steps).scaleb(-scale))
    m = market(scale, scale)
    assert m.round_price(value, Side.BUY) == value
    assert m.round_price(value, Side.SELL) == value
    assert m.round_volume(value) == value


@given(PRICES, SCALES)
def test_rounding_twice_changes_nothing(price: float, scale: int) -> None:
    m = market(scale, scale)
    for side in Side:
        once = m.round_price(price, side)
        assert m.round_price(once, side) == once


@given(PRICES, PRICES, SCALES)
def test_rounding_keeps_the_order(one: float, two: float, scale: int) -> None:
    m, low, high = market(scale, scale), min(one, two), max(one, two)
    assert m.round_price(low, Side.BUY) <= m.round_price(high, Side.BUY)
    assert m.round_price(low, Side.SELL) <= m.round_price(high, Side.SELL)


@pytest.mark.parametrize(
    ("fee", "expected"), [(0.0, 0.0), (1e-9, 1e-8), (0.123456781, 0.12345679), (0.12345678, 0.12345678), (57.12, 57.12)]
)
def test_a_fee_is_rounded_up(fee: float, expected: float) -> None:
    assert lunobiz.round_fee(fee) == expected


def test_a_rebate_stays_a_rebate_and_shrinks() -> None:
    assert lunobiz.round_fee(-0.123456789) == -0.12345678


@given(STEPS)
@example(7_962_224_174)
def test_a_fee_on_the_exchanges_grid_is_not_raised(steps: int) -> None:
    fee = float(Decimal(steps).scaleb(-lunobiz.FEE_SCALE))
    assert lunobiz.round_fee(fee) == fee


# --- exact and approximate ---


@given(STEPS, SCALES)
def test_exact_and_approx_are_inverse_on_the_grid(steps: int, scale: int) -> None:
    said = Decimal(steps).scaleb(-scale)
    computed = lunobiz.approx(said)
    assert lunobiz.exact(computed, scale) == said
    assert lunobiz.approx(lunobiz.exact(computed, scale)) == computed


def test_exact_has_as_many_decimals_as_the_scale() -> None:
    assert str(lunobiz.exact(0.1, 6)) == "0.100000"
    assert str(lunobiz.exact(1_234_567.0, 0)) == "1234567"


# --- numbers in sentences ---


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_234_567.0, "1,234,567"), (1_234_567.89, "1,234,568"), (12_340.0, "12,340"), (0.1, "0.1"), (100.0, "100"),
        (0.000012345678, "0.0000123457"), (-2.5, "-2.5"), (0.0, "0"), (-0.0, "0"), (9.9999999, "10"),
        (999_999.6, "1,000,000"), (math.nan, "unknown"), (math.inf, "unknown"), (-math.inf, "unknown"),
    ],
)  # fmt: skip
def test_a_number_in_a_sentence(value: float, text: str) -> None:
    assert lunobiz.plain(value) == text


@given(st.floats(1e-6, 1e12), st.sampled_from([1, -1]))
def test_a_number_in_a_sentence_has_six_digits_and_no_exponent(value: float, sign: int) -> None:
    text = lunobiz.plain(sign * value)
    assert "e" not in text.lower()
    assert float(text.replace(",", "")) == pytest.approx(sign * value, rel=5.1e-6)


# --- values ---


def test_a_market_knows_its_name_and_tick() -> None:
    assert market(2).name == "XBT/ZAR"
    assert [market(s).tick for s in range(5)] == [1.0, 0.1, 0.01, 0.001, 0.0001]


def test_a_market_without_an_account_pays_the_entry_tier() -> None:
    assert (market().maker_fee, market().taker_fee, market().model_spread) == (0.004, 0.006, 0.001)


def test_middle_and_spread_of_a_quote() -> None:
    ticker = Ticker("XBTZAR", T0, 99.0, 101.0, 100.0, 5.0)
    assert ticker.mid == 100.0
    assert ticker.spread == 0.02


def test_a_quote_without_prices_has_an_infinite_spread() -> None:
    assert Ticker("XBTZAR", T0, 0.0, 0.0, 0.0, 0.0).spread == math.inf


def test_an_outlook_knows_when_its_candle_closed() -> None:
    assert Outlook("XBTZAR", 3600, T0, 1.0, 1.0, Regime.UNKNOWN, ()).closed_ms == T0 + 3_600_000


def test_a_moment_finds_views_by_pair() -> None:
    view = MarketView(market(), None)
    moment = Moment(T0, (view,))
    assert view.pair == "XBTZAR"
    assert moment.view("XBTZAR") is view
    assert moment.view("ETHZAR") is None
    assert moment.conditions == Conditions()


def an_order(volume: float, filled: float) -> Order:
    """An entry of this volume, so much of it filled."""
    return Order(
        "lb-1", "XBTZAR", Side.BUY, OrderKind.ENTRY, OrderState.OPEN, volume, 100.0, 90.0, T0, 0, "x",
        Regime.TRENDING, 3600, "why", filled,
    )  # fmt: skip


def test_what_remains_of_an_order_is_never_negative() -> None:
    assert an_order(2.0, 0.5).remaining == 1.5
    assert an_order(2.0, 2.0).remaining == 0.0
    assert an_order(2.0, 2.5).remaining == 0.0


def test_the_value_of_a_fill_is_price_times_volume() -> None:
    fill = Fill("f", "o", "XBTZAR", Side.BUY, OrderKind.ENTRY, T0, 250.0, 0.5, 0.0, 0.0, True, "trade")
    assert fill.value == 125.0


def a_position(bought: float, entry_value: float) -> Position:
    """A position of which so much was bought for so much."""
    return Position(
        "XBTZAR", bought, 90.0, 10.0, T0, "x", Regime.TRENDING, 3600, 100.0, 100.0, bought, entry_value, 0.0, 0.006
    )


def test_the_entry_price_is_the_average_paid() -> None:
    assert a_position(4.0, 410.0).entry == 102.5
    assert a_position(0.0, 0.0).entry == 0.0
    assert a_position(1.0, 1.0).phase is ExitPhase.NONE


def test_what_is_reserved_is_not_available() -> None:
    assert Balance("1", "ZAR", Decimal("100.10"), Decimal("0.20")).available == Decimal("99.90")


@pytest.mark.parametrize("value", [market(), Candle(T0, 1, 1, 1, 1, 1), a_position(1.0, 1.0), an_order(1.0, 0.0)])
def test_values_cannot_be_changed(value: object) -> None:
    first = fields(value)[0].name  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        setattr(value, first, 0)


# --- states and causes ---


def test_the_states_in_order_of_severity() -> None:
    order = sorted(TradingState, key=lambda s: s.value, reverse=True)
    assert [s.name for s in order] == ["KILLED", "HALTED", "UNCERTAIN", "COOLDOWN", "REDUCING", "READY"]


def test_each_cause_brings_the_state_that_the_owner_was_told() -> None:
    table = {
        TradingState.REDUCING: {"balance drift", "foreign order", "exchange maintenance"},
        TradingState.UNCERTAIN: {
            "unknown order outcome", "no network", "clock skew", "resumed from sleep", "store trouble",
        },
        TradingState.COOLDOWN: {"daily loss cap"},
        TradingState.HALTED: {"weekly loss cap", "order unresolved", "key refused", "damaged store", "double use"},
        TradingState.KILLED: {"kill switch"},
    }  # fmt: skip
    found: dict[TradingState, set[str]] = {}
    for cause in CauseKind:
        found.setdefault(cause.state, set()).add(cause.words)
    assert found == table


def test_codes_and_words_are_unique() -> None:
    for kinds in (Refusal, CauseKind, lunobiz.Doubt, lunobiz.Action, OrderKind, OrderState, lunobiz.Mode, Regime):
        assert len(kinds.__members__) == len(list(kinds)), f"{kinds.__name__} has two names for one value"


def test_a_timeframe_is_a_duration_the_exchange_has() -> None:
    assert lunobiz.DURATIONS_S == (300, 900, 1800, 3600, 10_800, 14_400, 28_800, 86_400)
    assert (lunobiz.HOUR_MS, lunobiz.DAY_MS, lunobiz.DECISION_DELAY_MS) == (3_600_000, 86_400_000, 5_000)
