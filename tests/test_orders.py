"""ORDERS: what an answer means, when an outcome is certain, and what of an answer cannot be. All numbers by hand."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lunobiz
from desks import market, order, protection
from lunobiz import (
    Amounts,
    Answer,
    ContradictedOrder,
    FoundOrder,
    OrderKind,
    OrderState,
    PostAnswer,
    SentOrder,
    Side,
    after_found,
    after_missing,
    after_post,
    booked_change,
    class_of_post,
    client_id,
    fill_since,
    implausible,
    is_absent,
    is_unresolved,
    mismatch,
    order_form,
    written,
)

D = Decimal
T0 = 1_767_225_600_000
INSTALL = "3fa9c2d1"


def sent(side: Side = Side.BUY, kind: OrderKind = OrderKind.ENTRY, **changes: object) -> SentOrder:
    """Ten AAA at 100, sent at T0."""
    stop = D("101.00") if kind is OrderKind.PROTECTION else D("0")
    plain = SentOrder("LB1-000007", "LB1-3fa9c2d1-000007", "AAAZAR", side, kind, D("100.00"), D("10.0000"), stop, T0,
                      assets=("AAA", "ZAR"))
    return replace(plain, **changes)  # type: ignore[arg-type]


def amounts(base: str = "0", counter: str = "0", fee_base: str = "0", fee_counter: str = "0") -> Amounts:
    """What was traded."""
    return Amounts(D(base), D(counter), D(fee_base), D(fee_counter))


def found(of: SentOrder | None = None, status: str = "PENDING", traded: Amounts | None = None,
          **changes: object) -> FoundOrder:
    """The order as an honest exchange shows it."""
    of = of or sent()
    plain = FoundOrder(of.exchange_id or "BX1", of.client_id, of.pair, of.side, of.price, of.volume, of.stop, status,
                       traded or Amounts(), T0 + 40)
    return plain._replace(**changes)


# ---- what an answer means --------------------------------------------------------------------------------

LISTED = (  # section 3.1 of the notes on Luno's API: the codes that say that an order was not taken
    "ErrInsufficientBalance", "ErrInsufficientFunds", "ErrVolumeTooLow", "ErrVolumeTooHigh", "ErrPriceTooLow",
    "ErrPriceTooHigh", "ErrPriceDenominationNotAllowed", "ErrVolumeDenominationNotAllowed",
    "ErrCounterDenominationNotAllowed", "ErrValueTooHigh", "ErrInvalidPrice", "ErrInvalidVolume",
    "ErrInvalidBaseVolume", "ErrInvalidCounterVolume", "ErrInvalidOrderSide", "ErrInvalidMarketPair",
    "ErrInvalidParameters", "ErrInvalidArguments", "ErrInvalidAccount", "ErrInvalidAccountID", "ErrInvalidValue",
    "ErrInvalidStopPrice", "ErrInvalidStopDirection", "ErrStopPriceTooHigh", "ErrStopPriceTooLow",
    "ErrNoTradesToInferStopDirection", "ErrPostOnlyMode", "ErrPostOnlyNotAllowed", "ErrNotEnoughLiquidity",
    "ErrCannotTradeWhileQuoteActive", "ErrInvalidClientOrderId", "ErrMarketUnavailable", "ErrUnderMaintenance",
    "ErrMarketNotAllowed", "ErrUserNotVerifiedForCurrency", "ErrAmountTooBig", "ErrAmountTooSmall",
)
NOT_LISTED = ("ErrDeadlineExceeded", "ErrInternal", "ErrTooManyRequests", "ErrOrderNotFound", "ErrNotFound", "ErrNew",
              "ErrUnreadable", "ErrUpdateRequired", "ErrIdempotencyKeyConflict", "")


@pytest.mark.parametrize("code", LISTED)
@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_listed_code_with_a_4xx_is_a_refusal(code: str, status: int) -> None:
    assert class_of_post(status, code, "") is Answer.REFUSED


@pytest.mark.parametrize("code", LISTED)
@pytest.mark.parametrize("status", [200, 302, 429, 500, 502, 503])
def test_a_listed_code_with_another_status_says_nothing_for_certain(code: str, status: int) -> None:
    assert class_of_post(status, code, "") is Answer.UNKNOWN


@pytest.mark.parametrize("code", NOT_LISTED)
@pytest.mark.parametrize("status", [400, 404, 408, 422, 429, 500, 502, 503, 504, 301, 307])
def test_a_code_that_is_not_listed_is_unknown_whatever_the_status(code: str, status: int) -> None:
    assert class_of_post(status, code, "") is Answer.UNKNOWN
    assert class_of_post(status, code, "BX1") is Answer.UNKNOWN


TABLE = (
    (200, "", "BX1", Answer.ACCEPTED),
    (201, "", "BX1", Answer.ACCEPTED),
    (200, "", "", Answer.UNKNOWN),  # no id
    (200, "ErrInternal", "BX1", Answer.UNKNOWN),  # a code in a good answer is still an error
    (199, "", "BX1", Answer.UNKNOWN),
    (300, "", "BX1", Answer.UNKNOWN),
    (409, "", "", Answer.EXISTS),
    (409, "ErrDuplicateClientOrderID", "", Answer.EXISTS),
    (400, "ErrDuplicateClientOrderID", "", Answer.EXISTS),
    (400, "ErrOrderCanceled", "", Answer.CANCELLED),
    (401, "", "", Answer.KEY),
    (401, "ErrInvalidArguments", "", Answer.KEY),
    (403, "", "", Answer.KEY),
    (403, "ErrInsufficientPerms", "", Answer.KEY),
    (400, "ErrUnauthorised", "", Answer.KEY),
    (400, "ErrApiKeyRevoked", "", Answer.KEY),
    (500, "ErrAPIKeyNotFound", "", Answer.KEY),
    (429, "", "", Answer.UNKNOWN),
)


@pytest.mark.parametrize(("status", "code", "exchange_id", "meant"), TABLE)
def test_the_table_of_answers(status: int, code: str, exchange_id: str, meant: Answer) -> None:
    assert class_of_post(status, code, exchange_id) is meant


def test_every_class_of_answer_is_given() -> None:
    """What was never sent has no answer to be classed: that one the line gives by itself."""
    given_here = {class_of_post(400, code, "") for code in LISTED} | {class_of_post(*row[:3]) for row in TABLE}
    assert set(Answer) - given_here == {Answer.NOT_SENT}


@given(st.integers(100, 599), st.from_regex(r"(Err[A-Za-z]{1,20})?", fullmatch=True), st.sampled_from(["", "BX1"]))
def test_only_a_clean_2xx_is_accepted_and_only_a_4xx_refused(status: int, code: str, exchange_id: str) -> None:
    meant = class_of_post(status, code, exchange_id)
    assert (meant is Answer.ACCEPTED) == (200 <= status < 300 and not code and bool(exchange_id))
    if meant is Answer.REFUSED:
        assert 400 <= status < 500 and code


# ---- what is sent ----------------------------------------------------------------------------------------

TAIL = (("timestamp", "1767225600000"), ("ttl", "5000"), ("client_order_id", "LB1-3fa9c2d1-000007"))


@pytest.mark.parametrize(("side", "kind", "fields"), [
    (Side.BUY, OrderKind.ENTRY, (("post_only", "true"), ("time_in_force", "GTC"))),
    (Side.BUY, OrderKind.TAKER_ENTRY, (("time_in_force", "IOC"),)),
    (Side.SELL, OrderKind.EXIT, (("time_in_force", "IOC"),)),
    (Side.SELL, OrderKind.PROTECTION,
     (("stop_price", "101.00"), ("stop_direction", "BELOW"), ("time_in_force", "GTC"))),
])
def test_the_form_of_each_kind(side: Side, kind: OrderKind, fields: tuple[tuple[str, str], ...]) -> None:
    """A post-only order rests, a taking one is gone at once, a stop waits for a fall."""
    word = "BID" if side is Side.BUY else "ASK"
    head = (("pair", "AAAZAR"), ("type", word), ("volume", "10.0000"), ("price", "100.00"))
    assert order_form(sent(side, kind)) == (*head, *fields, *TAIL)


def test_accounts_are_named_where_they_are_known() -> None:
    form = order_form(sent(accounts=("3706266844366961196", "")))
    assert ("base_account_id", "3706266844366961196") in form and "counter_account_id" not in dict(form)
    both = dict(order_form(sent(accounts=("11", "22"))))
    assert (both["base_account_id"], both["counter_account_id"]) == ("11", "22")


def test_numbers_are_never_in_scientific_notation() -> None:
    form = dict(order_form(sent(price=D("1E-7"), volume=D("1E+3"))))
    assert (form["price"], form["volume"]) == ("0.0000001", "1000")


def test_ids() -> None:
    """Prefix, installation and number; of the characters that the exchange allows."""
    assert client_id(INSTALL, "LB1-000007") == "LB1-3fa9c2d1-000007"
    assert client_id(INSTALL, "LB1-000007") != client_id("00000000", "LB1-000007")
    assert set(client_id(INSTALL, "LB1-1234567")) <= set("0123456789abcdefghijklmnopqrstuvwxyzLB-")


def test_an_order_is_written_on_the_grid_of_its_market() -> None:
    """0.1 + 0.2 is not 0.3 in binary: what is written is what was meant."""
    told = order(volume=0.1 + 0.2, limit=99.9, stop=95.0)
    exact = written(told, market(), INSTALL, T0, ("1", "2"))
    assert (exact.volume, exact.price, exact.stop) == (D("0.3000"), D("99.90"), D("0"))
    assert (str(exact.volume), str(exact.price)) == ("0.3000", "99.90")
    assert (exact.state, exact.client_id, exact.sent_ms) == (OrderState.INTENT, "LB1-3fa9c2d1-000001", T0)
    assert (exact.accounts, exact.assets, exact.exchange_id) == (("1", "2"), ("AAA", "ZAR"), "")
    stop = written(protection(10.0, 95.0), market(), INSTALL, T0, ("", ""))
    assert (stop.side, stop.price, stop.stop) == (Side.SELL, D("94.05"), D("95.00"))
    assert stop.deadline_ms == T0 + 5_000


# ---- after the answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("told", "state", "refused", "why"), [
    (PostAnswer(Answer.ACCEPTED, "BX1"), OrderState.OPEN, "", "accepted"),
    (PostAnswer(Answer.NOT_SENT), OrderState.REJECTED, "", "not sent: the exchange could not be reached"),
    (PostAnswer(Answer.EXISTS, "", "ErrDuplicateClientOrderID"), OrderState.UNKNOWN, "",
     "exists already, ErrDuplicateClientOrderID"),
    (PostAnswer(Answer.REFUSED, "", "ErrPriceTooLow"), OrderState.UNKNOWN, "ErrPriceTooLow", "refused, ErrPriceTooLow"),
    (PostAnswer(Answer.CANCELLED, "", "ErrOrderCanceled"), OrderState.UNKNOWN, "ErrOrderCanceled",
     "post-only cancelled, ErrOrderCanceled"),
    (PostAnswer(Answer.KEY, "", ""), OrderState.UNKNOWN, "", "key refused"),
    (PostAnswer(Answer.UNKNOWN, "", "ErrInternal"), OrderState.UNKNOWN, "", "no clear answer, ErrInternal"),
    (PostAnswer(Answer.UNKNOWN, "BX1", ""), OrderState.UNKNOWN, "", "no clear answer"),
])
def test_after_the_post(told: PostAnswer, state: OrderState, refused: str, why: str) -> None:
    """A refusal counts only once a look-up has confirmed it; an unclear answer gives no id to rely on."""
    after = after_post(sent(), told)
    assert (after.state, after.refused, after.why) == (state, refused, why)
    assert after.exchange_id == ("BX1" if state is OrderState.OPEN else "")
    assert after.is_final == (state is OrderState.REJECTED)


def test_found_resting_filled_and_ended() -> None:
    asked = after_post(sent(), PostAnswer(Answer.UNKNOWN))
    resting = after_found(replace(asked, misses=(T0 + 1,), refused="ErrOrderCanceled"), found())
    assert (resting.state, resting.exchange_id, resting.misses, resting.refused) == (OrderState.OPEN, "BX1", (), "")
    assert resting.why == "at the exchange" and not resting.is_final
    part = amounts("4", "400")
    filling = after_found(resting, found(traded=part))
    assert (filling.state, filling.filled) == (OrderState.OPEN, part)
    ended = after_found(filling, found(status="COMPLETE", traded=part))
    assert (ended.state, ended.why) == (OrderState.DONE, "ended with 6.0000 not filled")
    whole = after_found(filling, found(status="COMPLETE", traded=amounts("10", "1000")))
    assert (whole.state, whole.why, whole.is_final) == (OrderState.DONE, "filled", True)
    nothing = after_found(resting, found(status="COMPLETE"))
    assert (nothing.state, nothing.filled, nothing.why) == (OrderState.DONE, Amounts(), "ended with 10.0000 not filled")


def test_every_state_of_an_order_is_reached() -> None:
    """That it never came to be is for the proofs to say, which EXECUTION puts together."""
    at = sent()
    after = [after_post(at, PostAnswer(answer)) for answer in Answer]
    after += [at, after_found(at, found()), after_found(at, found(status="COMPLETE"))]
    assert set(OrderState) - {order.state for order in after} == {OrderState.NOT_PLACED}


def test_a_stop_that_stands_in_the_book_was_triggered() -> None:
    stop = sent(Side.SELL, OrderKind.PROTECTION, state=OrderState.OPEN, exchange_id="BX1")
    assert not after_found(stop, found(stop, "AWAITING")).is_triggered
    hit = after_found(stop, found(stop, "PENDING"))
    assert hit.is_triggered and after_found(hit, found(stop, "COMPLETE")).is_triggered
    entry = sent(state=OrderState.OPEN, exchange_id="BX1")
    assert not after_found(entry, found(entry)).is_triggered


# ---- what of an answer cannot be -------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "name"), [
    ({"client_id": "LB1-3fa9c2d1-000008"}, "id"),
    ({"pair": "BBBZAR"}, "market"),
    ({"side": Side.SELL}, "side"),
    ({"price": D("100.01")}, "price"),
    ({"volume": D("10.0001")}, "volume"),
    ({"stop": D("95")}, "stop"),
    ({"exchange_id": "BX2"}, "exchange's id"),
])
def test_another_order_is_not_believed(change: dict[str, object], name: str) -> None:
    known = sent(exchange_id="BX1")
    assert mismatch(known, found(known)) == ""
    other = found(known, **change)
    assert mismatch(known, other) == name
    with pytest.raises(ContradictedOrder, match=f"order LB1-000007 cannot be: {name}$"):
        after_found(known, other)


def test_numbers_are_compared_by_worth_and_a_first_id_is_taken_over() -> None:
    same = found(price=D("100"), volume=D("10"), stop=D("0.00"), exchange_id="BX77")
    assert mismatch(sent(), same) == "" and after_found(sent(), same).exchange_id == "BX77"


BUY_4 = amounts("4", "400")
# of 4 bought at up to 100: up to 400 counter; fees at most 5 %, which is 0.2 base or 20 counter, of either sign
@pytest.mark.parametrize(("side", "traded", "name"), [
    (Side.BUY, amounts("10", "1000"), ""),
    (Side.BUY, amounts("10.0001", "1000"), "filled volume"),
    (Side.BUY, amounts("4", "400"), ""),
    (Side.BUY, amounts("4", "399.5"), ""),  # better than the limit
    (Side.BUY, amounts("4", "400.01"), "value at the limit"),
    (Side.BUY, amounts("0", "1"), "value at the limit"),
    (Side.SELL, amounts("4", "400.01"), ""),
    (Side.SELL, amounts("4", "399.99"), "value at the limit"),
    (Side.SELL, amounts("4", "0"), "value at the limit"),
    (Side.BUY, amounts("4", "200"), ""),  # half the limit, 4 x 50, is still believed
    (Side.BUY, amounts("4", "199.99"), "value at the limit"),
    (Side.SELL, amounts("4", "800"), ""),  # and twice the limit of a sale
    (Side.SELL, amounts("4", "800.01"), "value at the limit"),
    (Side.BUY, amounts("4", "400", "0.2"), ""),
    (Side.BUY, amounts("4", "400", "0.20000001"), "fee in base"),
    (Side.BUY, amounts("4", "400", "-0.2"), ""),
    (Side.BUY, amounts("4", "400", "-0.20000001"), "fee in base"),
    (Side.BUY, amounts("4", "400", "0", "20"), ""),
    (Side.BUY, amounts("4", "400", "0", "20.01"), "fee in counter"),
    (Side.BUY, amounts("4", "400", "0", "-20.01"), "fee in counter"),
    (Side.BUY, amounts("0", "0", "0.1"), "fee in base"),
    (Side.SELL, amounts("4", "420", "0", "21"), ""),
])
def test_amounts_that_cannot_be(side: Side, traded: Amounts, name: str) -> None:
    of = sent(side, OrderKind.EXIT)
    assert implausible(of, found(of, traded=traded)) == name


def test_a_negative_fill_cannot_be() -> None:
    assert implausible(sent(), found(traded=amounts("-1", "-100"))) == "filled volume"


def test_an_older_answer_is_not_believed() -> None:
    known = sent(filled=amounts("4", "400"))
    assert implausible(known, found(traded=amounts("3", "300"))) == "older than what is known"
    assert implausible(known, found(traded=amounts("5", "399"))) == "older than what is known"
    assert implausible(known, found(traded=amounts("4", "400"))) == ""
    with pytest.raises(ContradictedOrder, match="older"):
        after_found(known, found(traded=Amounts()))


@given(st.integers(0, 100_000), st.integers(1, 1_000_000))
def test_what_an_honest_exchange_fills_is_always_believed(lots: int, ticks: int) -> None:
    """Any part at any price from half the limit to the limit, the counter exact or cut to eight decimals."""
    base, price = D(lots) / 10_000, D(ticks) / 100
    of = sent(price=price)
    for better in (price, max(price / 2, price - D("0.37"))):
        counter = base * better
        for told in (counter, counter.quantize(D("0.00000001"))):
            assert implausible(of, found(of, traded=Amounts(base, told, base * D("0.006")))) == ""


# ---- not found -------------------------------------------------------------------------------------------


def test_a_refusal_is_confirmed_by_one_look() -> None:
    refused = after_post(sent(), PostAnswer(Answer.REFUSED, "", "ErrVolumeTooLow"))
    gone = after_missing(refused, T0 + 100)
    assert (gone.state, gone.why) == (OrderState.REJECTED, "refused by the exchange, ErrVolumeTooLow")
    assert gone.refused == "ErrVolumeTooLow" and gone.is_final


def test_misses_count_only_with_five_seconds_between() -> None:
    at = after_post(sent(), PostAnswer(Answer.UNKNOWN))
    for seconds in (6, 10.999, 11, 15, 16, 21):
        at = after_missing(at, T0 + round(seconds * 1000))
    assert at.misses == tuple(T0 + s * 1000 for s in (6, 11, 16, 21))
    assert at.state is OrderState.UNKNOWN


def test_only_so_many_misses_are_kept_and_the_newest() -> None:
    at = after_post(sent(), PostAnswer(Answer.UNKNOWN))
    for n in range(30):
        at = after_missing(at, T0 + n * 5_000)
    assert at.misses == tuple(T0 + n * 5_000 for n in range(20, 30))


@pytest.mark.parametrize("known", [(), (6,)])
def test_misses_of_a_clock_that_was_ahead_are_forgotten(known: tuple[int, ...]) -> None:
    """Noted at 100 s, when it was 8 s: only what was noted until now counts, and 8 s is too near to 6 s to be one."""
    ahead = lost(*known, 100.0)
    expected = known or (8,)
    assert after_missing(ahead, T0 + 8_000).misses == tuple(T0 + s * 1000 for s in expected)


def lost(*seconds: float, **changes: object) -> SentOrder:
    """An unknown order that was not found at these seconds after it was sent."""
    misses = tuple(T0 + round(s * 1000) for s in seconds)
    return replace(sent(state=OrderState.UNKNOWN, misses=misses), **changes)  # type: ignore[arg-type]


PROOF = (6.0, 11.0, 16.0)  # the deadline is 5 s after sending, so proofs begin later; 65 s is the end of all waiting


@pytest.mark.parametrize(("of", "at_s", "is_listed", "is_explained", "answer"), [
    (lost(*PROOF), 65.001, False, True, True),
    (lost(*PROOF), 65.0, False, True, False),  # too early
    (lost(6.0, 11.0), 70.0, False, True, False),  # two misses
    (lost(5.0, 11.0, 16.0), 70.0, False, True, False),  # one came when the order could still have arrived
    (lost(5.001, 11.0, 16.0), 70.0, False, True, True),
    (lost(*PROOF), 70.0, True, True, False),  # it stands in a list
    (lost(*PROOF), 70.0, False, False, False),  # the balances need it
    (lost(*PROOF, exchange_id="BX1"), 70.0, False, True, False),  # it was acknowledged
    (lost(*PROOF, state=OrderState.OPEN), 70.0, False, True, False),
    (lost(*PROOF, state=OrderState.INTENT), 70.0, False, True, False),
])
def test_absence_needs_all_four_proofs(
    of: SentOrder, at_s: float, is_listed: bool, is_explained: bool, answer: bool
) -> None:
    assert is_absent(of, T0 + round(at_s * 1000), is_listed, is_explained) is answer


def test_an_acknowledged_order_never_vanishes() -> None:
    open_one = sent(state=OrderState.OPEN, exchange_id="BX1", why="at the exchange")
    at = open_one
    for n in range(1, 200):
        at = after_missing(at, T0 + n * 60_000)
    assert at.state is OrderState.OPEN and not is_absent(at, T0 + 10**8, False, True)
    assert after_found(at, found(at)).why == "at the exchange"


def test_ten_minutes_of_not_knowing_are_too_long() -> None:
    unknown = lost(6.0)
    assert not is_unresolved(unknown, T0 + 600_000) and is_unresolved(unknown, T0 + 600_001)
    for state in (OrderState.OPEN, OrderState.DONE, OrderState.REJECTED, OrderState.NOT_PLACED):
        assert not is_unresolved(sent(state=state), T0 + 10**9)


def test_an_acknowledged_order_that_is_not_found_has_ten_minutes_from_then_on() -> None:
    """One that has rested for hours must not halt the desk at the first stale answer."""
    hours = T0 + 3 * 3_600_000
    missing = after_missing(sent(state=OrderState.OPEN, exchange_id="BX1"), hours)
    assert not is_unresolved(missing, hours) and not is_unresolved(missing, hours + 600_000)
    for minute in range(1, 12):
        missing = after_missing(missing, hours + minute * 60_000)
    assert is_unresolved(missing, hours + 600_001)
    assert not is_unresolved(after_found(missing, found(missing)), hours + 700_000)


# ---- what the desk is told -------------------------------------------------------------------------------


def test_nothing_new_is_no_fill() -> None:
    assert fill_since(sent(), T0) is None
    same = amounts("4", "400", "0.016")
    assert fill_since(sent(filled=same, booked=same), T0) is None


def test_a_first_fill_with_its_fee_in_base() -> None:
    """4 for 399.6 is 99.90 each; 0.4 % of 4 is 0.016."""
    told = fill_since(sent(filled=amounts("4", "399.6", "0.016"), exchange_id="BX1"), T0 + 5)
    assert told is not None
    assert (told.price, told.volume, told.fee_base, told.fee_counter) == (99.9, 4.0, 0.016, 0.0)
    assert (told.order_id, told.pair, told.side, told.kind) == ("LB1-000007", "AAAZAR", Side.BUY, OrderKind.ENTRY)
    assert (told.fill_id, told.time_ms, told.evidence) == ("LB1-000007@4", T0 + 5, "order BX1")
    assert told.is_maker and abs(told.value - 399.6) < 1e-9


def test_a_second_fill_is_the_difference_at_its_own_average() -> None:
    """After 4 for 400: 6 more for 594, so 99 each, and a fee of 2.376 (0.4 %) in counter."""
    of = sent(Side.SELL, OrderKind.EXIT, price=D("98.00"), booked=amounts("4", "400", "0", "1.6"),
              filled=amounts("10", "994", "0", "3.976"))
    told = fill_since(of, T0)
    assert told is not None
    assert (told.price, told.volume, told.fee_counter, told.fee_base) == (99.0, 6.0, 2.376, 0.0)
    assert told.fill_id == "LB1-000007@10" and not told.is_maker


def test_a_fee_that_comes_later_is_told_as_one_of_its_own() -> None:
    """Its id differs from that of the fill before, which has the same volume."""
    first = sent(filled=amounts("4", "400"))
    before = fill_since(first, T0)
    told = fill_since(replace(first, booked=first.filled, filled=amounts("4", "400", "0", "1.6")), T0)
    assert before is not None and told is not None
    assert (told.volume, told.price, told.fee_counter) == (0.0, 100.0, 1.6)
    assert told.fill_id != before.fill_id
    in_base = fill_since(replace(first, booked=first.filled, filled=amounts("4", "400", "0.016")), T0)
    assert in_base is not None and in_base.fill_id not in (told.fill_id, before.fill_id)
    assert (in_base.volume, in_base.price, in_base.fee_base, in_base.fee_counter) == (0.0, 100.0, 0.016, 0.0)


@given(st.lists(st.tuples(st.integers(1, 30_000), st.integers(9_000, 10_000)), min_size=1, max_size=12))
def test_many_parts_add_up_exactly(parts: list[tuple[int, int]]) -> None:
    """Whatever the parts, each fill is exact to a step, and ids never repeat."""
    of = sent(volume=D("100"))
    total, ids, volume, value, fees = Amounts(), [], 0.0, 0.0, 0.0
    for lots, ticks in parts:
        base, price = D(lots) / 10_000, D(ticks) / 100
        total = Amounts(total.base + base, total.counter + base * price, total.fee_base + base * D("0.004"), D("0"))
        of = replace(of, filled=total)
        told = fill_since(of, T0)
        assert told is not None
        of = replace(of, booked=of.filled)
        ids.append(told.fill_id)
        volume, value, fees = volume + told.volume, value + told.value, fees + told.fee_base
    assert len(set(ids)) == len(parts)
    assert abs(volume - float(total.base)) < 1e-8
    assert abs(value - float(total.counter)) < 1e-6
    assert abs(fees - float(total.fee_base)) < 1e-8


# ---- what the orders have changed ------------------------------------------------------------------------


def test_change_of_the_account_with_fees_in_either_currency() -> None:
    """Bought 4 for 400, fee 0.016 AAA; sold 1 for 101, fee 0.61 ZAR; sold 1 for 102, fee 0.006 AAA on top;
    bought 2 for 50 with 0.2 ZAR on top in another market.
    AAA: 4 - 0.016 - 1 - 1 - 0.006 = 1.978. BBB: 2. ZAR: -400 + 101 - 0.61 + 102 - 50 - 0.2 = -247.81.
    """
    orders = (
        sent(filled=amounts("4", "400", "0.016")),
        sent(Side.SELL, OrderKind.EXIT, filled=amounts("1", "101", "0", "0.61")),
        sent(Side.SELL, OrderKind.EXIT, filled=amounts("1", "102", "0.006")),
        sent(pair="BBBZAR", assets=("BBB", "ZAR"), filled=amounts("2", "50", "0", "0.2")),
    )
    assert booked_change(orders) == {"AAA": D("1.978"), "BBB": D("2"), "ZAR": D("-247.81")}


def test_a_rebate_and_a_market_in_another_coin() -> None:
    """A maker may be paid: 1 AAA bought for 0.5 BBB with 0.0001 BBB given back."""
    of = sent(pair="AAABBB", assets=("AAA", "BBB"), filled=amounts("1", "0.5", "0", "-0.0001"))
    assert booked_change([of]) == {"AAA": D("1"), "BBB": D("-0.4999")}
    assert booked_change([]) == {}


def test_difference_of_amounts() -> None:
    assert amounts("5", "500", "0.02", "1").minus(amounts("2", "200", "0.008", "0.4")) == amounts(
        "3", "300", "0.012", "0.6")
    assert lunobiz.ZERO == 0
