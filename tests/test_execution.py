"""EXECUTION: one POST to an order, nothing forgotten over a restart, and only a look-up ends one. Numbers by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from desks import NOW, PAIR, desk, market, moment, order, protection
from lines import DOWN, ScriptedLine
from lunobiz import (
    Amounts,
    Answer,
    AuditBroken,
    Conditions,
    ExchangeRefused,
    Holding,
    LiveDoor,
    LiveExecutor,
    Market,
    Mode,
    Order,
    OrderJournal,
    OrderKind,
    OrderState,
    Outcome,
    OutcomeUnknown,
    PostAnswer,
    Reconciler,
    Redactor,
    SentOrder,
    Settlement,
    Side,
    StatementRow,
    Store,
    book_fill,
    equity,
)

D = Decimal
INSTALL = "3fa9c2d1"
ONE, TWO = "LB1-3fa9c2d1-000001", "LB1-3fa9c2d1-000002"
BUY = order(volume=10.0, limit=100.0, state=OrderState.INTENT)
BLIND = Conditions(has_network=False)


class Desk:
    """An executor with its line and its journal on disk; `restart` throws away all that is in memory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lunobiz.db"
        self.line = ScriptedLine()
        self.way: list[str] = []  # what is in the way, one answer after the other; then nothing
        self.markets: dict[str, Market] = {PAIR: market(), "BBBZAR": market("BBB")}
        self.store = Store(self.path, Redactor([]), "OFF")
        self.executor = self.made()

    def made(self, orders: tuple[Order, ...] = ()) -> LiveExecutor:
        """A new executor on what the journal has."""
        door = LiveDoor(INSTALL, self.markets.get, lambda pair: (f"acc{pair[:3]}", "accZAR"),
                        lambda: self.way.pop(0) if self.way else "")
        return LiveExecutor(self.line, OrderJournal(self.store), door, orders)

    def restart(self, *orders: Order) -> LiveExecutor:
        """The program is gone and starts again; `orders` are those of the desk that was written last."""
        self.store.close()
        self.store = Store(self.path, Redactor([]), "OFF")
        self.executor = self.made(orders)
        return self.executor

    def settle(self, **conditions: bool) -> Settlement:
        """One settle at the exchange's time."""
        when = moment(now_ms=self.line.now_ms, conditions=Conditions(**conditions))
        return self.executor.settle(when)

    def sent(self, order_id: str = "LB1-000001") -> SentOrder:
        """The order as the executor knows it."""
        return self.executor.sent[order_id]

    def journal(self) -> dict[str, SentOrder]:
        """The orders as the disk has them."""
        return OrderJournal(self.store).orders()

    def rows(self, table: str) -> int:
        """How many rows a table has."""
        return len(self.store.rows_of(table, Mode.LIVE))


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Desk]:
    """A fresh desk."""
    made = Desk(tmp_path)
    yield made
    made.store.close()


def second(**changes: object) -> Order:
    """Another order, in another market."""
    return replace(BUY, order_id="LB1-000002", pair="BBBZAR", **changes)  # type: ignore[arg-type]


# ---- placing ---------------------------------------------------------------------------------------------


def test_an_order_is_written_then_sent_once_then_heard_of(at: Desk) -> None:
    written: list[int] = []
    honest = at.line.post
    at.line.post = lambda o: (written.append(at.rows("sendings")), honest(o))[1]  # type: ignore[method-assign]
    at.executor.place(BUY)
    assert written == [1] and at.rows("answers") == 1 and len(at.line.posts) == 1
    assert at.line.posts[0] == SentOrder("LB1-000001", ONE, PAIR, Side.BUY, OrderKind.ENTRY, D("100.00"), D("10.0000"),
                                         D("0"), NOW, ("accAAA", "accZAR"), ("AAA", "ZAR"))
    assert (at.sent().state, at.sent().exchange_id) == (OrderState.OPEN, "BX0001")
    told = at.settle()
    assert told == Settlement((), (Outcome("LB1-000001", OrderState.OPEN, "at the exchange"),))
    assert at.settle() == Settlement() and len(at.line.posts) == 1


def test_the_same_order_never_goes_out_again(at: Desk) -> None:
    at.executor.place(BUY)
    with pytest.raises(OutcomeUnknown):
        at.executor.place(BUY)
    at.restart(BUY)
    with pytest.raises(OutcomeUnknown):
        at.executor.place(BUY)
    assert len(at.line.posts) == 1


@pytest.mark.parametrize("words", ["kill switch", "not reconciled"])
def test_what_is_in_the_way_keeps_an_order_from_being_written(at: Desk, words: str) -> None:
    at.way = [words]
    at.executor.place(BUY)
    assert not at.line.posts and not at.rows("sendings")
    assert at.settle().outcomes == (Outcome("LB1-000001", OrderState.REJECTED, f"not sent: {words}"),)


def test_a_kill_between_writing_and_sending_stops_the_order(at: Desk) -> None:
    at.way = ["", "kill switch"]
    at.executor.place(BUY)
    assert not at.line.posts and at.rows("sendings") == 1
    assert (at.sent().state, at.sent().why) == (OrderState.REJECTED, "not sent: kill switch")
    assert at.settle().outcomes == (Outcome("LB1-000001", OrderState.REJECTED, "not sent: kill switch"),)
    assert at.restart(BUY).sent["LB1-000001"].state is OrderState.REJECTED


@pytest.mark.parametrize(("late_s", "goes"), [(15.0, True), (15.001, False), (-15.0, True), (-15.001, False)])
def test_a_stale_decision_is_not_sent(at: Desk, late_s: float, goes: bool) -> None:
    at.line.wait(late_s)
    at.executor.place(BUY)
    assert len(at.line.posts) == goes
    if not goes:
        assert at.settle().outcomes[0].why == "not sent: it was decided more than 15 s ago"


def test_a_decision_that_grows_stale_while_it_is_written_is_not_sent(at: Desk) -> None:
    write = OrderJournal.write_sending

    def slow(journal: OrderJournal, sending: SentOrder) -> None:
        write(journal, sending)
        at.line.wait(16)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OrderJournal, "write_sending", slow)
        at.executor.place(BUY)
    assert not at.line.posts and at.sent().state is OrderState.REJECTED


def test_a_market_that_is_not_known(at: Desk) -> None:
    at.markets.clear()
    at.executor.place(BUY)
    assert not at.line.posts and at.settle().outcomes[0].why == "not sent: the market is not known"


def test_an_order_that_cannot_be_written_is_not_sent(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Store, table: str, row: object) -> None:
        raise AuditBroken("disk full")

    monkeypatch.setattr(Store, "write_journal", full)
    with pytest.raises(AuditBroken):
        at.executor.place(BUY)
    assert not at.line.posts


def test_a_result_that_cannot_be_written_stops_all_and_is_unknown_after(
    at: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write_journal

    def half(self: Store, table: str, row: tuple[object, ...]) -> None:
        if table == "answers":
            raise AuditBroken("disk full")
        write(self, table, row)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_journal", half)
        with pytest.raises(AuditBroken):
            at.executor.place(BUY)
    assert len(at.line.posts) == 1
    assert at.restart(BUY).sent["LB1-000001"].state is OrderState.UNKNOWN
    at.settle()
    assert at.sent().state is OrderState.OPEN and len(at.line.posts) == 1


# ---- answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [Answer.UNKNOWN, Answer.EXISTS])
@pytest.mark.parametrize("is_there", [True, False])
def test_an_unclear_answer_is_unknown_until_a_look_up_finds_it(at: Desk, answer: Answer, is_there: bool) -> None:
    at.line.answers.append(PostAnswer(answer))
    at.line.takes = is_there
    at.executor.place(BUY)
    assert at.sent().state is OrderState.UNKNOWN and not at.sent().exchange_id
    told = at.settle()
    assert told.outcomes[0].state is (OrderState.OPEN if is_there else OrderState.UNKNOWN)
    assert len(at.line.posts) == 1


@pytest.mark.parametrize("is_there", [True, False])
def test_an_order_whose_key_was_refused_is_looked_up_once(at: Desk, is_there: bool) -> None:
    """A key that may not trade may still read; more than that one look could lock the owner out."""
    at.line.answers.append(PostAnswer(Answer.KEY, "", "ErrInsufficientPerms"))
    at.line.takes = is_there
    at.executor.place(BUY)
    told = at.settle()
    assert told.outcomes[0].state is (OrderState.OPEN if is_there else OrderState.UNKNOWN)
    at.line.wait(60)
    at.settle()
    assert at.executor.key_trouble == "ErrInsufficientPerms"
    assert (len(at.line.posts), len(at.line.looks)) == (1, 1)


def test_an_unknown_order_blocks_all_others(at: Desk) -> None:
    at.line.answers.append(PostAnswer(Answer.UNKNOWN))
    at.executor.place(BUY)
    at.executor.place(second())
    at.executor.place(protection(order_id="LB1-000003", state=OrderState.INTENT))  # no exit either
    assert len(at.line.posts) == 1
    outcomes = {o.order_id: o.why for o in at.settle().outcomes}
    assert outcomes["LB1-000002"] == outcomes["LB1-000003"] == "not sent: the outcome of LB1-000001 is unknown"
    at.line.accept(at.sent())
    at.settle()
    at.executor.place(replace(second(), order_id="LB1-000004", created_ms=at.line.now_ms))
    assert len(at.line.posts) == 2


def test_not_sent_is_over_at_once_and_blocks_nothing(at: Desk) -> None:
    at.line.answers.append(PostAnswer(Answer.NOT_SENT))
    at.executor.place(BUY)
    at.executor.place(second())
    assert [o.order_id for o in at.line.posts] == ["LB1-000001", "LB1-000002"]
    told = {o.order_id: o for o in at.settle().outcomes}
    assert told["LB1-000001"].state is OrderState.REJECTED and "could not be reached" in told["LB1-000001"].why
    assert at.line.looks == ["LB1-000002"]  # what was never sent needs no look-up


def test_a_refusal_is_confirmed_by_one_look_up_at_once(at: Desk) -> None:
    at.line.answers.append(PostAnswer(Answer.REFUSED, "", "ErrInsufficientFunds"))
    at.executor.place(BUY)
    assert at.line.looks == ["LB1-000001"]
    assert (at.sent().state, at.sent().why) == (OrderState.REJECTED, "refused by the exchange, ErrInsufficientFunds")
    assert at.journal()["LB1-000001"].state is OrderState.REJECTED
    at.executor.place(second())
    assert len(at.line.posts) == 2


def test_a_refusal_that_cannot_be_confirmed_stays_unknown_and_is_confirmed_after_a_restart(at: Desk) -> None:
    at.line.answers.append(PostAnswer(Answer.REFUSED, "", "ErrPriceTooLow"))
    at.line.finds.append(DOWN)
    at.executor.place(BUY)
    assert at.sent().state is OrderState.UNKNOWN
    assert at.restart(BUY).sent["LB1-000001"].refused == "ErrPriceTooLow"
    told = at.settle()
    why = "refused by the exchange, ErrPriceTooLow"
    assert told.outcomes == (Outcome("LB1-000001", OrderState.REJECTED, why, False, "ErrPriceTooLow"),)


def test_a_refused_order_that_is_there_is_there(at: Desk) -> None:
    """The answer was wrong; the order is what the look-up says."""
    at.line.answers.append(PostAnswer(Answer.REFUSED, "", "ErrPriceTooLow"))
    at.line.takes = True
    at.executor.place(BUY)
    assert (at.sent().state, at.sent().refused, at.sent().exchange_id) == (OrderState.OPEN, "", "BX0001")


def test_a_post_only_order_that_was_cancelled_may_be_told_in_two_forms(at: Desk) -> None:
    """As an error, the order there or not, or as an accepted order that is over with nothing filled."""
    at.line.answers += [PostAnswer(Answer.CANCELLED, "", "ErrOrderCanceled"), None]
    at.executor.place(BUY)
    assert at.sent().why == "refused by the exchange, ErrOrderCanceled"
    at.executor.place(second())
    at.line.end(TWO)
    told = {o.order_id: o for o in at.settle().outcomes}
    assert told["LB1-000001"].state is OrderState.REJECTED
    assert (told["LB1-000002"].state, told["LB1-000002"].why) == (OrderState.DONE, "ended with 10.0000 not filled")
    at.line.answers.append(PostAnswer(Answer.CANCELLED, "", "ErrOrderCanceled"))
    at.line.takes = True
    post = at.line.post

    def and_over(sending: SentOrder) -> PostAnswer:
        answer = post(sending)
        at.line.end(sending.client_id)
        return answer

    at.line.post = and_over  # type: ignore[method-assign]
    at.executor.place(replace(BUY, order_id="LB1-000003"))
    assert (at.sent("LB1-000003").state, at.sent("LB1-000003").filled) == (OrderState.DONE, Amounts())
    assert not at.settle().fills


def test_a_refused_key_is_told_by_post_look_up_and_cancel(at: Desk) -> None:
    at.line.answers.append(PostAnswer(Answer.KEY))
    at.executor.place(BUY)
    assert at.executor.key_trouble == "HTTP"
    for trouble, code in ((ExchangeRefused("ErrApiKeyRevoked", "no"), "ErrApiKeyRevoked"),
                          (ExchangeRefused("ErrInvalidArguments", "no"), "")):
        at.executor.key_trouble = ""
        at.line.finds.append(trouble)
        at.settle()
        assert at.executor.key_trouble == code
    at.line.accept(at.sent())
    at.settle()
    at.line.codes.append("HTTP-401")
    at.executor.cancel(BUY)
    assert at.executor.key_trouble == "HTTP-401"


def test_a_key_that_is_refused_is_not_tried_again_with_another_order(at: Desk) -> None:
    """Neither a look-up nor a cancel: each try could lock the owner out."""
    at.executor.place(BUY)
    at.executor.place(second())
    at.line.finds.append(ExchangeRefused("ErrApiKeyRevoked", "no"))
    at.settle()
    assert at.line.looks == ["LB1-000001"]
    at.executor.cancel(BUY)
    at.settle()
    assert not at.line.cancels and at.line.looks == ["LB1-000001"]


def test_the_first_code_of_a_refused_key_is_kept(at: Desk) -> None:
    """What came first is what the owner has to mend."""
    at.line.answers += [PostAnswer(Answer.KEY, "", code) for code in ("ErrInsufficientPerms", "ErrUnauthorised")]
    at.line.takes = True
    at.executor.place(BUY)
    assert at.executor.key_trouble == "ErrInsufficientPerms" and at.sent().state is OrderState.OPEN
    at.line.finds.append(ExchangeRefused("ErrApiKeyRevoked", "no"))
    at.executor.place(second())
    assert at.executor.key_trouble == "ErrInsufficientPerms" and len(at.line.posts) == 2


# ---- fills -----------------------------------------------------------------------------------------------


def test_partial_fills_are_told_once_each_with_the_exact_ledger(at: Desk) -> None:
    """4 at 100 with 0.016 AAA, then 6 at 99.9 with 0.024 AAA: 10 for 999.4, fees 0.040."""
    at.executor.place(BUY)
    at.line.fill(ONE, "4", "100", "0.016")
    first = at.settle()
    assert [(f.volume, f.price, f.fee_base) for f in first.fills] == [(4.0, 100.0, 0.016)]
    assert (first.ledger[0].base, first.ledger[0].counter, first.ledger[0].fee_base) == (D("4"), D("400"), D("0.016"))
    assert at.settle() == Settlement()
    at.line.fill(ONE, "6", "99.9", "0.024")
    last = at.settle()
    assert [(f.volume, f.price, f.fee_base) for f in last.fills] == [(6.0, 99.9, 0.024)]
    row = last.ledger[0]
    assert (row.base, row.counter, row.fee_base, row.fee_counter) == (D("10"), D("999.4"), D("0.040"), D("0"))
    assert last.outcomes == (Outcome("LB1-000001", OrderState.DONE, "filled"),)
    looks = len(at.line.looks)
    assert at.settle() == Settlement() and len(at.line.looks) == looks  # what is over is not looked up again


def test_an_order_that_ends_partly_filled_tells_the_fill_and_the_end_together(at: Desk) -> None:
    at.executor.place(replace(BUY, kind=OrderKind.TAKER_ENTRY))
    at.line.fill(ONE, "2.5", "99", "0.015", status="COMPLETE")
    told = at.settle()
    assert [(f.volume, f.is_maker) for f in told.fills] == [(2.5, False)]
    assert told.outcomes == (Outcome("LB1-000001", OrderState.DONE, "ended with 7.5000 not filled"),)


PARTS = st.lists(st.tuples(st.integers(1, 9_000), st.integers(9_500, 10_000), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=25)
@given(buys=PARTS, sales=PARTS)
def test_the_float_desk_agrees_with_the_exact_ledger_to_one_step(
    buys: list[tuple[int, int, bool]], sales: list[tuple[int, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Buys in parts with fees in base or counter, then sales in parts with fees in counter: a step is 10^-8."""
    at = Desk(tmp_path_factory.mktemp("e"))
    book = desk(1_000_000.0)

    def run(wanted: Order, client: str, parts: list[tuple[int, int, bool]], has_base_fee: bool) -> None:
        nonlocal book
        book = replace(book, orders=(wanted,))
        at.executor.place(replace(wanted, created_ms=at.line.now_ms))
        left = at.line.there[client].volume
        for lots, ticks, is_in_base in parts:
            part, price = min(left, D(lots) / 10_000), D(ticks) / 100
            left -= part
            if part:
                fee = (part * D("0.006")).quantize(D("0.00000001"))
                fee_counter = (part * price * D("0.006")).quantize(D("0.00000001"))
                is_base = is_in_base and has_base_fee
                at.line.fill(client, str(part), str(price), str(fee) if is_base else "0",
                             "0" if is_base else str(fee_counter))
            for told in at.settle().fills:
                book, _ = book_fill(book, told, next(o for o in book.orders if o.order_id == wanted.order_id))

    run(replace(BUY, limit=100.0), ONE, buys, True)
    bought = at.line.there[ONE].amounts
    held = book.positions[0].volume
    assert abs(held - float(bought.base - bought.fee_base)) < 1e-8
    sell = order(OrderKind.EXIT, round(held - 0.00005, 4), 95.0, order_id="LB1-000002", state=OrderState.INTENT)
    if sell.volume >= 0.0001:
        run(sell, TWO, sales, False)
    cash = D(1_000_000)
    coins = D(0)
    for row in at.journal().values():
        sign = 1 if row.side is Side.BUY else -1
        cash -= sign * row.filled.counter + row.filled.fee_counter
        coins += sign * row.filled.base - row.filled.fee_base
    assert abs(book.cash - float(cash)) < 1e-7 and equity(book) > 0
    assert abs(sum(p.volume for p in book.positions) + sum(v for _, v in book.dust) - float(coins)) < 1e-8
    at.store.close()


# ---- over a restart --------------------------------------------------------------------------------------


def test_the_journal_gives_back_every_order_as_it_was(at: Desk) -> None:
    """Each state, each kind; what is in memory only, the misses, may be lost."""
    stop = protection(5.0, 95.0, order_id="LB1-000002", state=OrderState.INTENT)
    at.executor.place(BUY)
    at.line.fill(ONE, "4", "100", "0.016")
    at.settle()
    at.executor.place(stop)
    at.line.there[TWO] = at.line.there[TWO]._replace(status="PENDING")
    at.settle()
    at.line.answers.append(PostAnswer(Answer.REFUSED, "", "ErrVolumeTooLow"))
    at.executor.place(replace(BUY, order_id="LB1-000003"))
    at.line.answers.append(PostAnswer(Answer.NOT_SENT))
    at.executor.place(replace(BUY, order_id="LB1-000004"))
    at.line.answers.append(PostAnswer(Answer.UNKNOWN, "", "ErrInternal"))
    at.executor.place(replace(BUY, order_id="LB1-000005"))
    states = [o.state for o in at.executor.sent.values()]
    assert states == [OrderState.OPEN, OrderState.OPEN, OrderState.REJECTED, OrderState.REJECTED, OrderState.UNKNOWN]
    assert at.sent("LB1-000002").is_triggered
    before = {i: replace(o, booked=Amounts(), misses=()) for i, o in at.executor.sent.items()}
    assert at.journal() == before  # the ledger is written with the desk's report, which was not part of this


def test_an_order_that_was_written_and_perhaps_sent_is_unknown_after_a_restart(at: Desk) -> None:
    for is_there in (False, True):
        wanted = replace(BUY, order_id=f"LB1-00000{1 + is_there}", created_ms=at.line.now_ms)
        at.line.answers.append(KeyboardInterrupt())
        at.line.takes = is_there
        with pytest.raises(KeyboardInterrupt):
            at.executor.place(wanted)
        at.restart(wanted)
        assert (at.sent(wanted.order_id).state, at.sent(wanted.order_id).why) == (
            OrderState.UNKNOWN, "the program ended before the answer was written")
        if is_there:
            assert at.settle().outcomes[-1].state is OrderState.OPEN
        else:
            at.line.wait(66)
            for _ in range(3):
                at.settle()
                at.line.wait(5)
            at.executor.prove_absent(True)
            assert at.settle().outcomes[-1].state is OrderState.NOT_PLACED
    assert len(at.line.posts) == 2


def test_an_order_decided_and_never_written_is_told_as_not_sent(at: Desk) -> None:
    at.restart(BUY)
    assert at.settle().outcomes == (
        Outcome("LB1-000001", OrderState.REJECTED, "not sent: the program had ended before"),)
    assert not at.line.posts


def test_a_fill_that_was_heard_and_not_booked_is_told_after_a_restart_and_only_then(at: Desk) -> None:
    at.executor.place(BUY)
    at.line.fill(ONE, "10", "100", "0.04")
    at.settle()  # the report with this fill was never written
    at.restart(BUY)
    told = at.settle()
    assert [f.volume for f in told.fills] == [10.0] and told.outcomes[0].state is OrderState.DONE
    at.store.write_journal("ledger", (NOW, Mode.LIVE.value, "LB1-000001", "10", "1000", "0.04", "0"))
    at.restart(replace(BUY, state=OrderState.DONE))
    assert at.settle() == Settlement()


def test_a_part_that_was_booked_is_not_told_again(at: Desk) -> None:
    at.executor.place(BUY)
    at.line.fill(ONE, "4", "100", "0.016")
    at.settle()
    at.store.write_journal("ledger", (NOW, Mode.LIVE.value, "LB1-000001", "4", "400", "0.016", "0"))
    at.restart(replace(BUY, state=OrderState.OPEN, filled=4.0))
    at.line.fill(ONE, "1", "99", "0.004")
    told = at.settle()
    assert [(f.volume, f.price, f.fee_base) for f in told.fills] == [(1.0, 99.0, 0.004)]


def test_a_cancel_goes_on_after_a_restart(at: Desk) -> None:
    at.executor.place(BUY)
    at.restart(replace(BUY, state=OrderState.OPEN, is_cancelling=True))
    at.settle()
    assert at.line.cancels == ["BX0001"]


# ---- ending ----------------------------------------------------------------------------------------------


def test_only_a_look_up_ends_an_order_and_it_is_asked_again_every_ten_seconds(at: Desk) -> None:
    at.executor.place(BUY)
    at.settle()
    at.executor.cancel(BUY)
    assert at.line.cancels == ["BX0001"] and not at.settle().outcomes
    at.line.wait(9.999)
    at.settle()
    assert len(at.line.cancels) == 1
    at.line.wait(0.001)
    at.line.fill(ONE, "3", "100", "0.012")  # it was filled while it was asked to end
    assert [f.volume for f in at.settle().fills] == [3.0]
    assert len(at.line.cancels) == 2
    at.line.end(ONE)
    told = at.settle()
    assert told.outcomes == (Outcome("LB1-000001", OrderState.DONE, "ended with 7.0000 not filled"),)
    at.line.wait(60)
    at.settle()
    assert len(at.line.cancels) == 2


@pytest.mark.parametrize("answer", [DOWN, "ErrCannotStopUnknownOrNonPendingOrder", "HTTP-500"])
def test_a_cancel_that_fails_ends_nothing(at: Desk, answer: str | BaseException) -> None:
    at.executor.place(BUY)
    at.line.codes.append(answer)
    at.executor.cancel(BUY)
    assert at.sent().state is OrderState.OPEN and at.settle().outcomes[0].state is OrderState.OPEN
    assert not at.executor.key_trouble
    at.line.ends_at_once = True
    at.line.wait(10)
    at.settle()
    assert at.settle().outcomes[0].state is OrderState.DONE


def test_an_unknown_order_is_asked_to_end_once_it_is_found(at: Desk) -> None:
    at.line.answers.append(PostAnswer(Answer.UNKNOWN))
    at.executor.place(BUY)
    at.executor.cancel(BUY)
    at.settle()
    assert not at.line.cancels  # it has no number yet
    at.line.accept(at.sent())
    at.settle()
    assert at.line.cancels == ["BX0001"]


def test_what_was_never_sent_is_not_asked_to_end(at: Desk) -> None:
    """An entry that was decided and called off, and the program ended before it was written."""
    at.restart(replace(BUY, is_cancelling=True))
    told = at.settle()
    assert told.outcomes == (Outcome("LB1-000001", OrderState.REJECTED, "not sent: the program had ended before"),)
    assert not at.line.log and not at.line.cancels


@pytest.mark.parametrize("kind", [OrderKind.PROTECTION, OrderKind.ENTRY])
@pytest.mark.parametrize("trouble", ["kill switch", "unknown"])
def test_a_protection_stays_while_what_is_to_follow_it_could_not_be_sent(
    at: Desk, kind: OrderKind, trouble: str
) -> None:
    """It is taken off once nothing is in the way any more; an entry is taken off whatever there is."""
    resting = BUY if kind is OrderKind.ENTRY else protection(state=OrderState.INTENT)
    at.executor.place(resting)
    if trouble == "unknown":
        at.line.answers.append(PostAnswer(Answer.UNKNOWN))
        at.executor.place(second())
    at.way = [trouble] if trouble == "kill switch" else []
    at.executor.cancel(resting)
    assert at.line.cancels == ([] if kind is OrderKind.PROTECTION else ["BX0001"])
    if trouble == "unknown":
        at.line.accept(at.sent("LB1-000002"))
    at.way = []
    at.settle()
    assert at.line.cancels == ["BX0001"]


def test_without_a_network_nobody_asks(at: Desk) -> None:
    at.executor.place(BUY)
    at.executor.cancel(BUY)
    at.line.log.clear()
    at.line.wait(60)
    told = at.settle(has_network=False)
    assert not at.line.log and len(at.line.cancels) == 1
    assert told.outcomes == (Outcome("LB1-000001", OrderState.OPEN, "accepted"),)  # what was heard before is told


# ---- proofs ----------------------------------------------------------------------------------------------


def vanished(at: Desk, misses: int = 3, spacing_s: float = 5.0, first_s: float = 6.0, until_s: float = 66.0) -> None:
    """An order whose answer was lost, not found so many times, until so many seconds after it was sent."""
    at.line.answers.append(PostAnswer(Answer.UNKNOWN))
    at.executor.place(BUY)
    at.line.wait(first_s)
    for n in range(misses):
        at.settle()
        at.line.wait(spacing_s if n < misses - 1 else 0)
    at.line.now_ms = NOW + round(until_s * 1000)


def test_four_proofs_end_an_unknown_order(at: Desk) -> None:
    vanished(at)
    at.executor.prove_absent(True)
    assert (at.sent().state, at.sent().why) == (OrderState.NOT_PLACED, "it never reached the exchange")
    assert at.journal()["LB1-000001"].state is OrderState.NOT_PLACED
    told = at.settle()
    assert told.outcomes[-1].state is OrderState.NOT_PLACED and len(at.line.posts) == 1
    at.executor.place(replace(second(), created_ms=at.line.now_ms))
    assert len(at.line.posts) == 2


@pytest.mark.parametrize("missing", ["time", "misses", "spacing", "balances", "open list", "closed list", "lists"])
def test_with_one_proof_missing_it_stays_unknown(at: Desk, missing: str) -> None:
    if missing == "misses":
        vanished(at, misses=2)
    elif missing == "spacing":
        vanished(at, misses=4, spacing_s=2.0)  # at 6, 8, 10 and 12 s: two of them 5 s apart
    else:
        vanished(at, until_s=65.0 if missing == "time" else 66.0)
    if missing.endswith("list"):
        at.line.accept(at.sent())
        at.line.hidden.add(ONE)
        if missing == "closed list":
            at.line.end(ONE)
    if missing == "lists":
        at.line.trouble = DOWN
        with pytest.raises(type(DOWN)):
            at.executor.prove_absent(True)
    else:
        at.executor.prove_absent(missing != "balances")
    assert at.sent().state is OrderState.UNKNOWN


def test_a_line_that_is_down_is_no_miss(at: Desk) -> None:
    at.line.answers.append(PostAnswer(Answer.UNKNOWN))
    at.executor.place(BUY)
    at.line.wait(6)
    for _ in range(5):
        at.line.finds.append(DOWN)
        at.settle()
        at.line.wait(20)
    assert not at.sent().misses
    at.executor.prove_absent(True)
    assert at.sent().state is OrderState.UNKNOWN


def test_misses_before_a_restart_do_not_count_after_it(at: Desk) -> None:
    vanished(at)
    at.restart(BUY)
    at.executor.prove_absent(True)
    assert at.sent().state is OrderState.UNKNOWN


def test_lists_are_not_asked_for_nothing(at: Desk) -> None:
    at.executor.place(BUY)
    at.line.log.clear()
    at.executor.prove_absent(True)
    assert not at.line.log


def test_an_order_unknown_for_ten_minutes_is_unresolved(at: Desk) -> None:
    vanished(at, until_s=600.0)
    assert not at.executor.unresolved()
    at.line.wait(0.001)
    assert [o.order_id for o in at.executor.unresolved()] == ["LB1-000001"]


# ---- contradictions --------------------------------------------------------------------------------------


def broken(found: object, name: str) -> object:
    """The order with one thing that cannot be."""
    changes = {"more than asked": {"amounts": Amounts(D("10.0001"), D("1000"))}, "price": {"price": D("99")},
               "older": {"amounts": Amounts(D("1"), D("100"))}, "another": {"client_id": TWO}}
    return found._replace(**changes[name])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["more than asked", "price", "older", "another"])
def test_a_contradiction_is_not_believed_and_ends_with_an_honest_answer(at: Desk, name: str) -> None:
    at.executor.place(BUY)
    at.line.fill(ONE, "4", "100")
    at.settle()
    before, rows = at.sent(), at.rows("answers")
    at.line.finds.append(broken(at.line.there[ONE], name))  # type: ignore[arg-type]
    assert at.settle() == Settlement()
    assert at.sent() == before and at.rows("answers") == rows
    assert list(at.executor.contradictions) == ["LB1-000001"]
    assert "LB1-000001 cannot be" in at.executor.contradictions["LB1-000001"]
    at.settle()
    assert not at.executor.contradictions


def test_an_order_last_spoken_of_in_contradictions_is_not_taken_for_never_placed(at: Desk) -> None:
    """Three times there is no such order, then one with another's id: the next honest answer decides."""
    vanished(at)
    at.line.accept(at.sent())
    at.line.finds.append(broken(at.line.there.pop(ONE), "another"))  # type: ignore[arg-type]
    at.settle()
    assert list(at.executor.contradictions) == ["LB1-000001"]
    at.executor.prove_absent(True)
    assert at.sent().state is OrderState.UNKNOWN
    at.settle()
    at.executor.prove_absent(True)
    assert at.sent().state is OrderState.NOT_PLACED and not at.executor.contradictions


def test_an_acknowledged_order_that_is_gone_is_a_contradiction_until_it_is_back(at: Desk) -> None:
    at.executor.place(BUY)
    at.settle()
    at.line.hidden.add(ONE)
    at.line.wait(3600)
    at.settle()
    assert at.sent().state is OrderState.OPEN and at.executor.contradictions and not at.executor.unresolved()
    at.line.wait(601)
    assert at.executor.unresolved()
    at.line.hidden.clear()
    at.settle()
    assert not at.executor.contradictions and not at.executor.unresolved()


# ---- reconcile -------------------------------------------------------------------------------------------


def reconciler(at: Desk) -> Reconciler:
    """On the executor of this desk."""
    return Reconciler(at.line, at.executor)


def test_three_columns(at: Desk) -> None:
    """The owner had 2 AAA and 5,000 ZAR; the bot bought 4 for 400 and paid 0.016 AAA: 5.984 and 4,600."""
    at.line.hold("AAA", "2")
    at.line.hold("ZAR", "5000", "100")
    look = reconciler(at)
    look.begin(None)
    assert look.owner == {"AAA": D(2), "ZAR": D(5000)} and look.available == {"AAA": D(2), "ZAR": D(4900)}
    at.executor.place(BUY)
    at.line.fill(ONE, "4", "100", "0.016")
    at.line.settle_accounts({"AAA": "2", "ZAR": "5000"})
    found = look.run()  # looks the order up by itself
    assert found.holdings == (Holding("AAA", D("3.984"), D(2), D(0)), Holding("ZAR", D(-400), D(5000), D(0)))
    assert (found.drift, found.foreign, found.double_use, found.at_ms) == ("", "", "", NOW)


def test_what_was_there_is_the_owners_even_after_the_bot_has_traded(at: Desk) -> None:
    """With 5.984 AAA and an order that explains 3.984, the owner has 2."""
    at.executor.place(BUY)
    at.line.fill(ONE, "4", "100", "0.016")
    at.executor.refresh()
    at.line.settle_accounts({"AAA": "2", "ZAR": "5000"})
    look = reconciler(at)
    look.begin(None)
    assert look.owner == {"AAA": D(2), "ZAR": D(5000)}
    kept = reconciler(at)
    kept.begin({"AAA": D(1), "ZAR": D(5000)})
    assert kept.run().holdings[0].unexplained == D(1)


def test_drift_needs_two_looks_and_ends_with_one(at: Desk) -> None:
    """The exchange's answers are not all of one moment; what differs only once is none."""
    at.line.hold("AAA", "2")
    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin(None)
    at.line.hold("ZAR", "4000")
    assert look.run().drift == "" and look.last.holdings[1].unexplained == D(-1000)
    at.line.hold("ZAR", "5000")
    assert look.run().drift == ""
    at.line.hold("ZAR", "4000")
    look.run()
    at.line.hold("AAA", "2.5")
    unsaid = "(no entry of the statement says so)"
    assert look.run().drift == f"ZAR -1000 {unsaid}"
    assert look.run().drift == f"AAA +0.5 {unsaid}, ZAR -1000 {unsaid}"
    at.line.hold("ZAR", "5000")
    assert look.run().drift == f"AAA +0.5 {unsaid}"


def test_a_drift_is_named_by_the_statement(at: Desk) -> None:
    """2025-01-29 10:40 UTC is 1,738,147,200 s; the entry of another amount says nothing of it."""
    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin(None)
    at.line.hold("ZAR", "5500")
    at.line.entries["accZAR"] = (StatementRow(1_738_147_200_000, "FEE", D(7)),)
    look.run()
    assert look.run().drift == "ZAR +500 (no entry of the statement says so)"
    at.line.entries["accZAR"] = (StatementRow(1_738_147_200_000, "TRANSFER", D(500)),)
    assert look.run().drift == "ZAR +500 (transfer of 2025-01-29 10:40 UTC)"


def test_a_drift_whose_entry_was_found_is_not_looked_up_again(at: Desk) -> None:
    """Nor is one in an asset of which no account was ever seen."""
    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin({"ZAR": D(4500), "XYZ": D(1)})
    at.line.entries["accZAR"] = (StatementRow(1_738_147_200_000, "TRANSFER", D(500)),)
    asked: list[str] = []
    honest = at.line.statement

    def noted(account_id: str) -> tuple[StatementRow, ...]:
        asked.append(account_id)
        return honest(account_id)

    at.line.statement = noted  # type: ignore[method-assign]
    for _ in range(4):
        look.run()
    assert look.last.drift == "XYZ -1 (no entry of the statement says so), ZAR +500 (transfer of 2025-01-29 10:40 UTC)"
    assert asked == ["accZAR"]


@pytest.mark.parametrize("trouble", [DOWN, ExchangeRefused("ErrInternal", "no")])
def test_a_drift_is_told_even_if_the_statement_cannot_be_read(at: Desk, trouble: Exception) -> None:
    def silent(account_id: str) -> tuple[StatementRow, ...]:
        raise trouble

    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin({"ZAR": D(4500)})
    honest = at.line.statement
    at.line.statement = silent  # type: ignore[method-assign]
    look.run()
    assert look.run().drift == "ZAR +500 (its statement cannot be read)"
    at.line.entries["accZAR"] = (StatementRow(1_738_147_200_000, "TRANSFER", D(500)),)
    at.line.statement = honest  # type: ignore[method-assign]
    assert look.run().drift == "ZAR +500 (transfer of 2025-01-29 10:40 UTC)"


def test_a_key_that_is_refused_for_the_statement_ends_the_reconcile(at: Desk) -> None:
    def refused(account_id: str) -> tuple[StatementRow, ...]:
        raise ExchangeRefused("ErrApiKeyRevoked", "no")

    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin({"ZAR": D(4500)})
    look.run()
    at.line.statement = refused  # type: ignore[method-assign]
    at.line.log.clear()
    with pytest.raises(ExchangeRefused, match="ErrApiKeyRevoked"):
        look.run()
    assert at.line.log == []  # nothing was asked after it


def test_a_key_that_a_reconcile_finds_refused_ends_it_at_once(at: Desk) -> None:
    """Not one call more, neither for balances nor for the words of a drift."""
    at.line.hold("AAA", "0")
    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin(None)
    at.executor.place(BUY)
    at.line.finds.append(ExchangeRefused("ErrApiKeyRevoked", "no"))
    at.line.log.clear()
    with pytest.raises(ExchangeRefused):
        look.run()
    assert at.line.log == ["find"]


def test_what_is_held_back_beyond_the_open_orders_explains_nothing(at: Desk) -> None:
    """A bid of 10 at 100 holds R1,000 back and its fee; R250 more, seen while no order was unknown, are the owner's."""
    at.line.hold("AAA", "0")
    at.line.hold("ZAR", "5000", "250")
    look = reconciler(at)
    look.begin(None)
    assert look.run().is_explained
    at.executor.place(BUY)
    at.line.hold("ZAR", "5000", "1256")
    assert look.run().is_explained
    at.line.unlisted.add(ONE)
    at.line.answers.append(PostAnswer(Answer.UNKNOWN))
    at.executor.place(replace(BUY, order_id="LB1-000002"))
    assert not look.run().is_explained  # R1,256 held back and nothing listed needs it
    at.line.hold("ZAR", "5000", "250")
    assert look.run().is_explained


def test_the_smallest_step_is_a_drift(at: Desk) -> None:
    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin(None)
    at.line.hold("ZAR", "4999.99999999")
    look.run()
    assert look.run().drift == "ZAR -0.00000001 (no entry of the statement says so)"


def test_an_asset_that_is_gone_from_the_list_is_a_drift(at: Desk) -> None:
    """A balance that is not shown is none, and the bot's coins were there."""
    at.line.hold("AAA", "2")
    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin(None)
    del at.line.held["accAAA"]
    look.run()
    assert look.run().drift == "AAA -2 (no entry of the statement says so)"
    assert look.last.holdings[0] == Holding("AAA", D(0), D(2), D(-2))


def test_orders_of_others_and_of_another_copy_of_this_program(at: Desk) -> None:
    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin(None)
    at.executor.place(BUY)
    assert (look.run().foreign, look.last.double_use) == ("", "")
    by_hand = SentOrder("", "", "BBBZAR", Side.SELL, OrderKind.EXIT, D("5"), D("1.5000"), D("0"), NOW)
    at.line.accept(by_hand, client_id="my-own")
    assert (look.run().foreign, look.last.double_use) == ("sell 1.5000 BBBZAR", "")
    at.line.accept(by_hand, client_id="LB1-00000000-000001")
    assert (look.run().foreign, look.last.double_use) == ("sell 1.5000 BBBZAR", "LB1-00000000-000001")
    at.line.accept(by_hand, client_id="LB1-3fa9c2d1-000099")  # of this copy, and not in its journal
    assert look.run().double_use == "LB1-00000000-000001, LB1-3fa9c2d1-000099"
    for client in list(at.line.there):
        at.line.end(client)
    assert (look.run().foreign, look.last.double_use) == ("", "")


def test_an_order_taken_for_never_placed_that_shows_up_is_a_double_use(at: Desk) -> None:
    """All four proofs were there, and the exchange has it after all: nothing may be traded on that."""
    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin(None)
    vanished(at)
    at.executor.prove_absent(True)
    assert look.run().double_use == ""
    at.line.accept(at.sent())
    assert (look.run().double_use, at.sent().state) == (ONE, OrderState.NOT_PLACED)


def test_an_order_of_others_in_a_market_without_our_accounts_needs_nothing_of_ours(at: Desk) -> None:
    """2 AAA on sale for euros: the 2 held back are the owner's, and more held back is explained by nothing."""
    at.line.hold("AAA", "2", "2")
    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin(None)
    by_hand = SentOrder("", "", "AAAEUR", Side.SELL, OrderKind.EXIT, D("5"), D("2"), D("0"), NOW)
    at.line.accept(by_hand, client_id="my-own")
    assert look.run().is_explained and look.last.foreign == "sell 2 AAAEUR"
    at.line.answers.append(PostAnswer(Answer.UNKNOWN))
    at.executor.place(BUY)
    assert look.run().is_explained
    at.line.hold("ZAR", "5000", "1000")
    assert not look.run().is_explained


def test_of_two_accounts_in_one_asset_the_first_is_used_and_kept(at: Desk) -> None:
    at.line.hold("AAA", "2", account="11")
    at.line.hold("AAA", "7", account="12")  # savings
    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin(None)
    assert look.owner["AAA"] == D(2) and look.accounts == {"AAA": "11", "ZAR": "accZAR"}
    at.line.held = dict(reversed(at.line.held.items()))  # the list comes in another order
    assert look.run().holdings[0] == Holding("AAA", D(0), D(2), D(0))
    at.line.hold("AAA", "9", account="12")
    look.run()
    assert look.run().drift == ""


def test_a_market_that_is_gone_does_not_stop_the_reconcile(at: Desk) -> None:
    """What was traded there still explains its coins."""
    at.executor.place(BUY)
    at.line.fill(ONE, "10", "100")
    at.line.settle_accounts({"ZAR": "5000"})
    at.settle()
    at.markets.clear()
    at.restart(replace(BUY, state=OrderState.DONE))
    look = reconciler(at)
    look.begin({"ZAR": D(5000)})
    assert [h.unexplained for h in look.run().holdings] == [D(0), D(0)]


def test_a_reconcile_without_an_answer_raises_and_keeps_the_last(at: Desk) -> None:
    at.line.hold("ZAR", "5000")
    look = reconciler(at)
    look.begin(None)
    last = look.run()
    at.line.trouble = DOWN
    with pytest.raises(type(DOWN)):
        look.run()
    assert look.last == last
