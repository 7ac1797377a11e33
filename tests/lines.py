"""A line to an exchange for tests of real orders: honest by itself, and as bad as a test tells it to be."""

from __future__ import annotations

from collections import deque
from decimal import Decimal

from desks import NOW
from lunobiz import Amounts, Answer, Balance, ExchangeDown, FoundOrder, PostAnswer, SentOrder, Side, StatementRow

D = Decimal


class ScriptedLine:
    """Takes orders in, fills them when told, and answers by script where there is one.

    `answers` are given to POSTs instead of the honest one (None: honest); an order is taken in only by an honest one
    or where `takes` says so. `finds` are given to look-ups in the same way. What is an exception is raised.
    """

    def __init__(self, now_ms: int = NOW) -> None:
        self.now_ms = now_ms
        self.answers: deque[PostAnswer | BaseException | None] = deque()
        self.finds: deque[FoundOrder | BaseException | None] = deque()
        self.codes: deque[str | BaseException] = deque()  # of cancels
        self.takes = False
        self.ends_at_once = False
        self.there: dict[str, FoundOrder] = {}
        self.posts: list[SentOrder] = []
        self.cancels: list[str] = []
        self.looks: list[str] = []
        self.hidden: set[str] = set()  # client ids that look-ups do not find
        self.unlisted: set[str] = set()  # client ids that stand in no list
        self.held: dict[str, tuple[str, Decimal, Decimal]] = {}  # account id: asset, total, reserved
        self.entries: dict[str, tuple[StatementRow, ...]] = {}  # by account, the newest first
        self.trouble: Exception | None = None  # of lists and balances
        self.log: list[str] = []

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now_ms += round(seconds * 1000)

    def exchange_ms(self) -> int:
        """The exchange's time."""
        return self.now_ms

    def post(self, order: SentOrder) -> PostAnswer:
        """The one POST."""
        self.posts.append(order)
        self.log.append("post")
        scripted = self.answers.popleft() if self.answers else None
        if scripted is None or self.takes:
            self.accept(order)
        if isinstance(scripted, BaseException):
            raise scripted
        return scripted or PostAnswer(Answer.ACCEPTED, self.there[order.client_id].exchange_id)

    def accept(self, order: SentOrder, client_id: str = "") -> None:
        """Put an order into the book."""
        client = client_id or order.client_id
        status = "AWAITING" if order.stop else "PENDING"
        self.there[client] = FoundOrder(f"BX{len(self.there) + 1:04d}", client, order.pair, order.side, order.price,
                                        order.volume, order.stop, status, Amounts(), self.now_ms)

    def fill(self, client_id: str, base: str, price: str, fee_base: str = "0", fee_counter: str = "0",
             status: str = "") -> None:
        """Trade a part of an order; it is over when nothing is left."""
        order, part = self.there[client_id], D(base)
        before = order.amounts
        now = Amounts(before.base + part, before.counter + part * D(price), before.fee_base + D(fee_base),
                      before.fee_counter + D(fee_counter))
        over = "COMPLETE" if now.base == order.volume else "PENDING"
        self.there[client_id] = order._replace(amounts=now, status=status or over)

    def end(self, client_id: str) -> None:
        """Take an order off the book."""
        self.there[client_id] = self.there[client_id]._replace(status="COMPLETE")

    def cancel(self, exchange_id: str) -> str:
        """Asks for an order's end; it ends if `ends_at_once`."""
        self.cancels.append(exchange_id)
        scripted = self.codes.popleft() if self.codes else ""
        if isinstance(scripted, BaseException):
            raise scripted
        if self.ends_at_once and not scripted:
            self.end(next(c for c, o in self.there.items() if o.exchange_id == exchange_id))
        return scripted

    def find(self, order: SentOrder) -> FoundOrder | None:
        """The order as it is, or what the script says."""
        self.looks.append(order.order_id)
        self.log.append("find")
        if self.finds:
            scripted = self.finds.popleft()
            if isinstance(scripted, BaseException):
                raise scripted
            return scripted
        return None if order.client_id in self.hidden else self.there.get(order.client_id)

    def open_orders(self) -> tuple[FoundOrder, ...]:
        """What is not complete."""
        self.log.append("open")
        return self._listed(is_complete=False)

    def closed_orders(self, since_ms: int) -> tuple[FoundOrder, ...]:
        """What is complete."""
        self.log.append("closed")
        return tuple(o for o in self._listed(is_complete=True) if o.created_ms >= since_ms)

    def _listed(self, is_complete: bool) -> tuple[FoundOrder, ...]:
        if self.trouble is not None:
            raise self.trouble
        return tuple(o for c, o in self.there.items() if (o.status == "COMPLETE") == is_complete
                     and c not in self.unlisted)

    def statement(self, account_id: str) -> tuple[StatementRow, ...]:
        """What a test put there."""
        if self.trouble is not None:
            raise self.trouble
        return self.entries.get(account_id, ())

    def balances(self) -> tuple[Balance, ...]:
        """What the accounts hold."""
        if self.trouble is not None:
            raise self.trouble
        return tuple(Balance(account, *row) for account, row in self.held.items())

    def hold(self, asset: str, total: str, reserved: str = "0", account: str = "") -> None:
        """Set an account."""
        self.held[account or f"acc{asset}"] = (asset, D(total), D(reserved))

    def settle_accounts(self, start: dict[str, str]) -> None:
        """Accounts as the orders have left them, from what was there at the start."""
        totals = {asset: D(n) for asset, n in start.items()}
        for order in self.there.values():
            sign = 1 if order.side is Side.BUY else -1
            base, counter = order.pair[:3], order.pair[3:]
            amounts = order.amounts
            totals[base] = totals.get(base, D(0)) + sign * amounts.base - amounts.fee_base
            totals[counter] = totals.get(counter, D(0)) - sign * amounts.counter - amounts.fee_counter
        for asset, total in totals.items():
            self.hold(asset, str(total))


DOWN = ExchangeDown("the exchange did not answer")
