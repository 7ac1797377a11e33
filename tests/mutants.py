"""Broken designs, each found in some bot that trades real money. The tests of faults must find every one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal

import pytest

import lunobiz
from lunobiz import (
    Amounts,
    Answer,
    Draft,
    LiveExecutor,
    LunoOrders,
    OrderJournal,
    OrderState,
    PostAnswer,
    Reconciled,
    Reconciler,
    SentOrder,
)

Patch = pytest.MonkeyPatch


def blind_retry(patch: Patch) -> None:
    """An order without an answer is sent again under a new id."""
    post = LunoOrders.post

    def again(self: LunoOrders, order: SentOrder) -> PostAnswer:
        told = post(self, order)
        return post(self, replace(order, client_id=order.client_id + "R")) if told.answer is Answer.UNKNOWN else told

    patch.setattr(LunoOrders, "post", again)


def written_after(patch: Patch) -> None:
    """The journal is written when the order has been sent."""
    sending, answer = OrderJournal.write_sending, OrderJournal.write_answer
    held: list[SentOrder] = []

    def later(self: OrderJournal, order: SentOrder) -> None:
        held.append(order)

    def both(self: OrderJournal, order: SentOrder, now_ms: int) -> None:
        if held and held[-1].order_id == order.order_id:
            sending(self, held.pop())
        answer(self, order, now_ms)

    patch.setattr(OrderJournal, "write_sending", later)
    patch.setattr(OrderJournal, "write_answer", both)


def trouble_is_no(patch: Patch) -> None:
    """Any answer but a yes is a refusal."""
    after = lunobiz.after_post

    def rejected(order: SentOrder, told: PostAnswer) -> SentOrder:
        found = after(order, told)
        return replace(found, state=OrderState.REJECTED) if found.state is OrderState.UNKNOWN else found

    patch.setattr(lunobiz, "after_post", rejected)


def server_error_is_no(patch: Patch) -> None:
    """An answer of 500 and above is a refusal; time-outs are looked up."""
    classify = lunobiz.class_of_post

    def refused(status: int, code: str, exchange_id: str) -> Answer:
        return Answer.NOT_SENT if status >= 500 else classify(status, code, exchange_id)

    patch.setattr(lunobiz, "class_of_post", refused)


def three_misses(patch: Patch) -> None:
    """Not found three times is never placed, whatever the time."""

    def absent(order: SentOrder, now_ms: int, is_listed: bool, is_explained: bool) -> bool:
        return order.state is OrderState.UNKNOWN and len(order.misses) >= lunobiz.MISSES_NEEDED

    patch.setattr(lunobiz, "is_absent", absent)


def no_lists(patch: Patch) -> None:
    """Never placed is believed without a look at lists and balances."""

    def absent(self: LiveExecutor, is_explained: bool) -> None:
        now = self._line.exchange_ms()
        for order in [o for o in self._sent.values() if lunobiz.is_absent(o, now, False, True)]:
            self._keep(replace(order, state=OrderState.NOT_PLACED, why="not found"))

    patch.setattr(LiveExecutor, "prove_absent", absent)


def no_deadline(patch: Patch) -> None:
    """The request carries no time after which it must not be carried out."""
    form = lunobiz.order_form

    def timeless(order: SentOrder) -> tuple[tuple[str, str], ...]:
        return tuple(row for row in form(order) if row[0] not in ("timestamp", "ttl"))

    patch.setattr(lunobiz, "order_form", timeless)


def cancel_is_done(patch: Patch) -> None:
    """A cancel that was sent has worked."""
    ask = LiveExecutor._ask_to_end

    def ended(self: LiveExecutor, order_id: str) -> None:
        before = self._ending.get(order_id)
        ask(self, order_id)
        if before != self._ending.get(order_id):
            self._keep(replace(self._sent[order_id], state=OrderState.DONE))

    patch.setattr(LiveExecutor, "_ask_to_end", ended)


def trusting(patch: Patch) -> None:
    """What an answer says of amounts is believed."""
    patch.setattr(lunobiz, "implausible", lambda order, found: "")


def forgetful_of_age(patch: Patch) -> None:
    """Older answers are taken for newer ones."""
    implausible = lunobiz.implausible

    def no_age(order: SentOrder, found: lunobiz.FoundOrder) -> str:
        return implausible(replace(order, filled=Amounts()), found)

    patch.setattr(lunobiz, "implausible", no_age)


def any_order(patch: Patch) -> None:
    """The answer about another order is taken for the one that was asked for."""
    patch.setattr(lunobiz, "mismatch", lambda order, found: "")


def trading_on(patch: Patch) -> None:
    """While the outcome of one order is unknown, others are sent."""
    patch.setattr(LiveExecutor, "_unknown", lambda self, but_for: "")


def wall_clock(patch: Patch) -> None:
    """Deadlines are those of the computer's clock."""
    patch.setattr(LunoOrders, "exchange_ms", lambda self: self._client._clock.now_ms())


def two_protections(patch: Patch) -> None:
    """The new protection is placed at once, the old one taken off in the same breath."""
    protect = lunobiz.protect

    def at_once(draft: Draft, position: lunobiz.Position, view: lunobiz.MarketView) -> None:
        desk, orders = draft.desk, len(draft.cancels)
        protect(draft, position, view)
        if len(draft.cancels) > orders:
            marked, draft.desk = draft.desk, replace(
                desk, orders=tuple(o for o in desk.orders if o not in desk.orders_of(view.pair)))
            protect(draft, position, view)
            draft.desk = replace(draft.desk, orders=tuple(sorted((*marked.orders, *(
                o for o in draft.desk.orders if marked.order(o.order_id) is None)), key=lambda o: o.order_id)))

    patch.setattr(lunobiz, "protect", at_once)


def exit_at_once(patch: Patch) -> None:
    """The exit does not wait for the protection to be off."""

    def hasty(draft: Draft, position: lunobiz.Position, view: lunobiz.MarketView) -> None:
        why = position.exit_why or lunobiz.exit_reason(draft, position, view)
        if not why or draft.desk.orders_of(view.pair, lunobiz.OrderKind.EXIT) or not lunobiz.may_reduce(draft.desk):
            return
        position = replace(position, phase=lunobiz.ExitPhase.EXITING, exit_why=why)
        verdict = lunobiz.sale(draft, position, view)
        if verdict.refusal is None:
            for order in draft.desk.orders_of(view.pair):
                draft.cancel(order)
            draft.desk = lunobiz.put_position(draft.desk, position)
            lunobiz.send(draft, verdict, position)

    patch.setattr(lunobiz, "leave", hasty)


def booked_in_memory(patch: Patch) -> None:
    """What the desk has been told is not written down: after a crash it is told again."""
    settle = LiveExecutor.settle
    patch.setattr(LiveExecutor, "settle", lambda self, moment: replace(settle(self, moment), ledger=()))


def booked_on_sight(patch: Patch) -> None:
    """A fill that was written down counts as told: after a crash the desk never hears of it."""
    orders = OrderJournal.orders

    def told(self: OrderJournal) -> dict[str, SentOrder]:
        return {name: replace(o, booked=o.filled) for name, o in orders(self).items()}

    patch.setattr(OrderJournal, "orders", told)


def one_look_at_the_file(patch: Patch) -> None:
    """The kill file is looked at when the order is written, not again when it is sent."""
    look, place = LiveExecutor._in_the_way, LiveExecutor.place
    seen: dict[str, str] = {}

    def first(self: LiveExecutor, order: lunobiz.Order) -> str:
        return seen.setdefault(order.order_id, look(self, order))

    def fresh(self: LiveExecutor, order: lunobiz.Order) -> None:
        seen.clear()
        place(self, order)

    patch.setattr(LiveExecutor, "_in_the_way", first)
    patch.setattr(LiveExecutor, "place", fresh)


def forgotten_at_start(patch: Patch) -> None:
    """An order of which nothing was heard before a crash is taken for not sent."""
    sent = lunobiz._sent_of
    patch.setattr(lunobiz, "_sent_of", lambda row: replace(sent(row), state=OrderState.REJECTED))


def gone_is_cancelled(patch: Patch) -> None:
    """An order that the exchange does not find is taken for cancelled."""
    after = lunobiz.after_missing

    def ended(order: SentOrder, now_ms: int) -> SentOrder:
        return replace(order, state=OrderState.DONE) if order.exchange_id else after(order, now_ms)

    patch.setattr(lunobiz, "after_missing", ended)


def duplicate_is_no(patch: Patch) -> None:
    """The answer that an id was used before is a refusal."""
    classify = lunobiz.class_of_post

    def refused(status: int, code: str, exchange_id: str) -> Answer:
        told = classify(status, code, exchange_id)
        return Answer.NOT_SENT if told is Answer.EXISTS else told

    patch.setattr(lunobiz, "class_of_post", refused)


def refusal_is_final(patch: Patch) -> None:
    """A refusal is believed without a look-up."""
    after = lunobiz.after_post

    def final(order: SentOrder, told: PostAnswer) -> SentOrder:
        found = after(order, told)
        return replace(found, state=OrderState.REJECTED, refused="") if found.refused else found

    patch.setattr(lunobiz, "after_post", final)


def counts_its_intents(patch: Patch) -> None:
    """An order that ended is taken for filled as it was meant."""
    after = lunobiz.after_found

    def whole(order: SentOrder, found: lunobiz.FoundOrder) -> SentOrder:
        told = after(order, found)
        amounts = Amounts(order.volume, order.volume * order.price, Decimal(0), Decimal(0))
        return replace(told, filled=amounts) if told.state is OrderState.DONE and told.filled.base else told

    patch.setattr(lunobiz, "after_found", whole)


def ready_by_itself(patch: Patch) -> None:
    """Trouble is over when the next call works, without a look at the account."""

    def easy(self: lunobiz.LiveSession, base: lunobiz.Conditions, desk: lunobiz.Desk) -> lunobiz.Conditions:
        return look(self, base, replace(desk, causes=()))

    look = lunobiz.LiveSession.look
    patch.setattr(lunobiz.LiveSession, "look", easy)


def deaf_to_strangers(patch: Patch) -> None:
    """Orders that nobody here has sent are nobody's business."""
    run = Reconciler.run

    def alone(self: Reconciler) -> Reconciled:
        self.last = run(self)._replace(foreign="", double_use="")
        return self.last

    patch.setattr(Reconciler, "run", alone)


def heedless_of_locks(patch: Patch) -> None:
    """What the gates say is shown, and entries are made all the same."""
    patch.setattr(lunobiz.LiveSession, "locks", lambda self: ())


MUTANTS: Mapping[str, Callable[[Patch], None]] = {
    f.__name__: f for f in (
        blind_retry, written_after, trouble_is_no, server_error_is_no, three_misses, no_lists, no_deadline,
        cancel_is_done, trusting, forgetful_of_age, any_order, trading_on, wall_clock, two_protections, exit_at_once,
        booked_in_memory, booked_on_sight, one_look_at_the_file, forgotten_at_start, gone_is_cancelled,
        duplicate_is_no, refusal_is_final, counts_its_intents, ready_by_itself, deaf_to_strangers,
        heedless_of_locks,
    )
}
