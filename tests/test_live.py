"""LIVE: the ramp, the leash, the reconcile, and every reason not to send. Numbers by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

import lunobiz
from desks import NOW, PAIR, cause, desk, market, moment, order, position
from lines import DOWN, ScriptedLine
from lunobiz import (
    Answer,
    CauseKind,
    Conditions,
    CycleReport,
    Desk,
    ExchangeDown,
    ExchangeRefused,
    Fill,
    LiveDesk,
    LiveSession,
    Market,
    Mode,
    Order,
    OrderKind,
    OrderState,
    Outcome,
    PostAnswer,
    Redactor,
    Regime,
    RoundTrip,
    SentOrder,
    Settings,
    Settlement,
    Side,
    Store,
    ramp_share,
)

D = Decimal
INSTALL = "3fa9c2d1"
ONE = "LB1-3fa9c2d1-000001"
BUY = order(volume=10.0, limit=100.0, state=OrderState.INTENT)
SOUND = Conditions()
UNSURE = Conditions(is_reconciled=False)


class Stand:
    """A LIVE session on a scripted line; the account has 2 AAA and 50,000 ZAR of the owner's."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lunobiz.db"
        self.line = ScriptedLine()
        self.line.hold("AAA", "2")
        self.line.hold("ZAR", "50000", "100")
        self.locks: list[str] = []
        self.is_killed = False
        self.size = 0.6
        self.markets: dict[str, Market] = {PAIR: market()}
        self.settings = Settings()
        self.desk = desk(50_000.0)
        self.store = Store(self.path, Redactor([]), "OFF")
        self.session = self.made()

    def made(self, orders: tuple[Order, ...] = ()) -> LiveSession:
        """A new session on what is on disk."""
        who = LiveDesk(INSTALL, lambda: tuple(self.locks), lambda: self.is_killed, self.settings, self.markets.get,
                       lambda: self.size)
        return LiveSession(self.line, self.store, who, orders)

    def restart(self, *orders: Order) -> LiveSession:
        """The program starts again."""
        self.store.close()
        self.store = Store(self.path, Redactor([]), "OFF")
        self.session = self.made(orders)
        return self.session

    def look(self, base: Conditions = SOUND, **changes: object) -> Conditions:
        """One look of this desk."""
        return self.session.look(base, replace(self.desk, **changes))  # type: ignore[arg-type]

    def place(self, wanted: Order = BUY) -> None:
        """An order decided just now."""
        self.session.executor.place(replace(wanted, created_ms=self.line.now_ms))

    def settle(self) -> Settlement:
        """The executor's word."""
        return self.session.executor.settle(moment(now_ms=self.line.now_ms))

    def owner(self) -> dict[str, Decimal]:
        """What is the owner's."""
        return self.session.reconciler.owner

    def trip(self, number: int) -> RoundTrip:
        """One of many."""
        times = (NOW + number, NOW + number + 1)
        return RoundTrip(PAIR, "momentum", Regime.TRENDING, 3600, *times, 1.0, 100.0, 101.0, 0.8, 0.2, "trend over")

    def record(self, trips: int = 0, fills: tuple[Fill, ...] = (), orders: tuple[Order, ...] = ()) -> None:
        """Write a report with so many round trips and these fills."""
        report = CycleReport(NOW, (), self.desk, Settlement(fills), (), (), (), (), orders,
                             tuple(self.trip(n) for n in range(trips)), (), 50_000.0, 0.0)
        self.store.record(report, Mode.LIVE, self.markets)


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stand]:
    """A fresh session that has not looked yet."""
    made = Stand(tmp_path)
    yield made
    made.store.close()


# ---- how large -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trips", "share"), [(0, 0.0), (9, 0.0), (10, 0.25), (19, 0.25), (20, 0.5), (39, 0.5),
                                              (40, 1.0), (10_000, 1.0)])
def test_the_ramp(trips: int, share: float) -> None:
    assert ramp_share(trips) == share


@pytest.mark.parametrize(("trips", "size", "is_trial"), [(0, 0.6, True), (10, 0.15, False), (20, 0.3, False),
                                                         (40, 0.6, False)])
def test_round_trips_of_live_bring_the_size_the_gates_found_safe(
    at: Stand, trips: int, size: float, is_trial: bool
) -> None:
    """0.6 is safe: a quarter of it is 0.15, a half 0.3. Round trips of PAPER do not count."""
    at.record(trips)
    at.store.record(CycleReport(NOW, (), at.desk, Settlement(), (), (), (), (), (), (at.trip(999),) * 50, (), 1.0, 0.0),
                    Mode.PAPER, at.markets)
    found = at.look()
    assert (found.size, found.is_trial) == (pytest.approx(size), is_trial)


# ---- the leash -------------------------------------------------------------------------------------------


def test_locks_of_the_gates_stop_entries(at: Stand) -> None:
    assert at.look().may_enter
    at.locks.append("Evidence is 31 days old.")
    assert not at.look().may_enter and at.session.locks() == ("Evidence is 31 days old.",)


def test_a_fall_beyond_what_the_gates_allow_stops_entries(at: Stand) -> None:
    """The gates allow 15 %: from 100,000 that is down to 85,000."""
    assert at.look(cash=85_001.0, peak_equity=100_000.0).may_enter
    assert not at.look(cash=84_999.0, peak_equity=100_000.0).may_enter
    assert at.session.locks() == ("LIVE has fallen 15.0% from its peak; the gates allow 15%.",)
    assert at.look(cash=100_000.0, peak_equity=0.0).may_enter  # nothing to fall from


def fills_at(count: int, price: float) -> tuple[tuple[Fill, ...], tuple[Order, ...]]:
    """Exits with a limit of 98 that were sold at a price; the bid was 98 / (1 - exit_bound)."""
    orders = tuple(order(OrderKind.EXIT, 1.0, 98.0, order_id=f"LB1-{n:06d}", stop=98.0) for n in range(1, count + 1))
    return tuple(Fill(f"F{o.order_id}", o.order_id, PAIR, Side.SELL, o.kind, NOW, price, 1.0, 0.0, 0.0, False, "")
                 for o in orders), orders


def test_fills_that_cost_more_than_was_tested_stop_entries(at: Stand) -> None:
    """At the limit itself an exit costs its whole bound; 20 fills are needed to tell."""
    fills, orders = fills_at(20, 98.0)
    at.record(0, fills[:19], orders[:19])
    assert at.look().may_enter
    at.line.wait(31)
    at.record(0, fills[19:], orders[19:])
    found = at.look()
    assert not found.may_enter
    assert at.session.locks() == ("The last 20 fills cost more than the stressed test allows.",)


def test_fills_at_the_bid_are_within_what_was_tested(at: Stand) -> None:
    bid = 98.0 / (1 - at.settings.costs.exit_bound)
    fills, orders = fills_at(25, round(bid, 4))
    at.record(0, fills, orders)
    assert at.look().may_enter


# ---- what is in the way ----------------------------------------------------------------------------------


def test_before_the_first_look_nothing_goes(at: Stand) -> None:
    assert at.session.in_the_way() == "not reconciled"
    at.place()
    assert not at.line.posts
    at.look()
    assert at.session.in_the_way() == ""
    at.place(replace(BUY, order_id="LB1-000002"))
    assert len(at.line.posts) == 1
    assert at.line.posts[0].accounts == ("accAAA", "accZAR") and at.line.posts[0].client_id == "LB1-3fa9c2d1-000002"


@pytest.mark.parametrize(("cause", "words"), [
    ("kill", "kill switch"), ("trouble", "not reconciled"), ("key", "the key was refused"),
    ("contradiction", "the exchange contradicts itself"), ("skew", "clock skew"), ("-skew", "clock skew"),
    ("age", "the last reconcile is too old"), ("", ""),
])
def test_each_cause_is_in_the_way_by_itself(at: Stand, cause: str, words: str) -> None:
    at.look(replace(SOUND, skew_ms={"skew": 2_001.0, "-skew": -2_001.0}.get(cause, 2_000.0)))
    at.is_killed = cause == "kill"
    at.session.trouble = "x" if cause == "trouble" else ""
    at.session.executor.key_trouble = "HTTP-401" if cause == "key" else ""
    if cause == "contradiction":
        at.session.executor.contradictions["LB1-000009"] = "x"
    at.line.wait(60.001 if cause == "age" else 60)
    assert at.session.in_the_way() == words
    at.place()
    assert len(at.line.posts) == (not words)


def test_a_kill_file_is_asked_for_again_right_before_the_post(at: Stand) -> None:
    at.look()
    write = lunobiz.OrderJournal.write_sending

    def killed(journal: lunobiz.OrderJournal, sending: SentOrder) -> None:
        write(journal, sending)
        at.is_killed = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lunobiz.OrderJournal, "write_sending", killed)
        at.place()
    assert not at.line.posts
    assert at.settle().outcomes == (Outcome("LB1-000001", OrderState.REJECTED, "not sent: kill switch"),)


# ---- looking ---------------------------------------------------------------------------------------------


def test_a_sound_look(at: Stand) -> None:
    found = at.look()
    assert found == Conditions(size=0.6, is_trial=True)
    assert at.session.cash() == D(49_900)


def test_a_reconcile_every_thirty_seconds_or_when_in_doubt(at: Stand) -> None:
    at.look()
    first = at.session.reconciler.last.at_ms
    at.line.wait(29.999)
    assert at.look().reconcile_age_ms == pytest.approx(29_999) and at.session.reconciler.last.at_ms == first
    at.line.wait(0.001)
    at.look()
    assert at.session.reconciler.last.at_ms == first + 30_000
    at.line.wait(1)
    assert not at.look(UNSURE).is_reconciled
    assert at.session.reconciler.last.at_ms == first + 31_000
    at.line.wait(40)
    assert at.look(replace(SOUND, has_network=False)).reconcile_age_ms == 40_000


@pytest.mark.parametrize("trouble", [DOWN, ExchangeRefused("ErrInvalidArguments", "no")])
def test_a_reconcile_that_fails_is_tried_at_each_look(at: Stand, trouble: Exception) -> None:
    at.line.trouble = trouble
    found = at.look()
    assert not found.is_reconciled and not found.is_key_refused and at.session.in_the_way() == "not reconciled"
    at.line.trouble = None
    found = at.look()
    assert found.is_reconciled and at.session.in_the_way() == ""


def test_trouble_or_a_cause_asks_for_a_reconcile_before_its_time(at: Stand) -> None:
    """Both end only after a comparison that was clean."""
    at.look()
    at.line.wait(1)
    at.line.trouble = DOWN
    assert at.look(UNSURE).is_reconciled is False
    at.line.trouble = None
    at.line.wait(1)
    assert at.look().is_reconciled and at.session.reconciler.last.at_ms == NOW + 2_000
    at.line.wait(1)
    at.look()
    assert at.session.reconciler.last.at_ms == NOW + 2_000
    at.look(causes=(cause(CauseKind.MAINTENANCE),))
    assert at.session.reconciler.last.at_ms == NOW + 3_000


def test_a_key_refused_by_the_reconcile_halts_until_the_owner_says_so(at: Stand) -> None:
    at.line.trouble = ExchangeRefused("ErrApiKeyRevoked", "no")
    assert at.look().is_key_refused
    at.line.trouble = None
    assert at.look().is_key_refused and at.session.in_the_way() == "the key was refused"
    at.session.accept()
    assert not at.look().is_key_refused and at.session.in_the_way() == ""


def test_a_line_that_fails_while_absence_is_proved_is_no_end_of_the_session(at: Stand) -> None:
    at.look()
    at.line.answers.append(PostAnswer(Answer.UNKNOWN))
    at.place()
    for _ in range(3):
        at.line.wait(6)
        at.settle()
    at.line.wait(48)
    at.look()
    for trouble in (DOWN, ExchangeRefused("ErrInternal", "no")):
        honest = at.line.open_orders
        at.session.executor._sent["LB1-000001"] = replace(at.session.executor.sent["LB1-000001"],
                                                          state=OrderState.UNKNOWN)

        def broken(trouble: Exception = trouble) -> tuple[lunobiz.FoundOrder, ...]:
            raise trouble

        at.line.open_orders = broken  # type: ignore[method-assign]
        at.line.wait(31)  # absence is proved by a comparison made just before, so when the next one is due
        found = at.look()
        assert at.session.executor.sent["LB1-000001"].state is OrderState.UNKNOWN
        assert not found.is_reconciled
        at.line.open_orders = honest  # type: ignore[method-assign]
    at.look()
    assert at.session.executor.sent["LB1-000001"].state is OrderState.NOT_PLACED


def test_what_the_executor_finds_becomes_a_condition(at: Stand) -> None:
    at.look()
    at.line.answers.append(PostAnswer(Answer.KEY, "", "ErrInsufficientPerms"))
    at.place()
    assert at.look().is_key_refused
    at.line.wait(600.001)
    assert at.look().is_unresolved
    at.session.executor.contradictions["LB1-000001"] = "x"
    at.line.finds.append(DOWN)
    assert at.look().is_contradicted


def test_drift_foreign_and_double_use_become_conditions(at: Stand) -> None:
    at.look()
    at.line.hold("ZAR", "40000")
    at.line.accept(SentOrder("", "", "BBBZAR", Side.SELL, OrderKind.EXIT, D(5), D(1), D(0), NOW), client_id="mine")
    at.line.accept(SentOrder("", "", "BBBZAR", Side.SELL, OrderKind.EXIT, D(5), D(1), D(0), NOW),
                   client_id="LB1-00000000-000001")
    first = at.look(UNSURE)
    assert (first.is_drifting, first.has_foreign, first.is_double_used) == (False, True, True)
    assert at.look(UNSURE).is_drifting


def test_an_unknown_order_is_not_proved_absent_while_coins_are_not_explained(at: Stand) -> None:
    """It was filled, and neither look-ups nor lists show it yet; one differing look is enough to wait."""
    at.look()
    at.line.answers.append(PostAnswer(Answer.UNKNOWN))
    at.line.takes = True
    at.place()
    at.line.hidden.add(ONE)
    at.line.unlisted.add(ONE)
    for _ in range(3):
        at.line.wait(6)
        at.settle()
    at.line.wait(50)
    at.line.hold("AAA", "12")
    at.line.hold("ZAR", "49000")
    at.look()
    assert at.session.executor.sent["LB1-000001"].state is OrderState.UNKNOWN
    at.line.hold("AAA", "2")
    at.line.hold("ZAR", "50000", "100")
    at.line.wait(31)
    at.look()
    assert at.session.executor.sent["LB1-000001"].state is OrderState.NOT_PLACED


def test_absence_is_not_proved_by_balances_that_were_read_long_ago(at: Stand) -> None:
    at.look()
    at.line.answers.append(PostAnswer(Answer.UNKNOWN))
    at.place()
    for _ in range(3):
        at.line.wait(6)
        at.settle()
    at.line.wait(120)
    at.look(replace(SOUND, has_network=False))
    assert at.session.executor.sent["LB1-000001"].state is OrderState.UNKNOWN
    at.look()
    assert at.session.executor.sent["LB1-000001"].state is OrderState.NOT_PLACED


# ---- what is told of it --------------------------------------------------------------------------------------


def found(at: Stand) -> dict[str, lunobiz.Banner]:
    """The findings by their keys."""
    banners = tuple(at.session.findings())
    assert all(b.level == "warning" for b in banners)
    return {b.key: b for b in banners}


def test_a_sound_account_has_no_findings(at: Stand) -> None:
    assert found(at) == {}  # nor one that was not looked at
    at.look()
    assert found(at) == {}


def test_a_drift_is_told_with_its_number_and_can_be_resolved(at: Stand) -> None:
    """50,000 were there, 40,000 are: after the owner's word they are all his, and nothing is told any more."""
    at.look()
    at.line.hold("ZAR", "40000")
    at.look(UNSURE)
    at.look(UNSURE)
    (told,) = found(at).values()
    assert (told.key, told.action) == ("drift", "resolve")
    assert told.text.startswith("The account does not add up: ZAR ") and "10000" in told.text
    assert told.text.endswith("resolve it: from then on it counts as yours.")
    at.session.accept()
    assert found(at) == {}
    at.look(UNSURE)
    at.look(UNSURE)
    assert found(at) == {}


def test_orders_of_others_and_with_our_mark_are_told_apart(at: Stand) -> None:
    at.look()
    for client in ("mine", "LB1-00000000-000001"):
        at.line.accept(SentOrder("", "", "BBBZAR", Side.SELL, OrderKind.EXIT, D(5), D(1), D(0), NOW), client_id=client)
    at.look(UNSURE)
    banners = found(at)
    assert {key: (b.text, b.action) for key, b in banners.items()} == {
        "foreign": ("Open orders at Luno that are not the bot's: sell 1 BBBZAR. No entries while they are there.", ""),
        "double": ("Orders with this bot's mark that it did not send: LB1-00000000-000001. Is a second copy using the"
                   " key?", ""),
    }
    at.line.there.clear()
    at.look(UNSURE)
    assert found(at) == {}


def test_orders_the_journal_lacks_are_told_until_the_owner_has_looked(at: Stand) -> None:
    at.line.accept(SentOrder("", "", PAIR, Side.BUY, OrderKind.ENTRY, D(100), D(10), D(0), NOW), client_id=ONE)
    at.line.end(ONE)
    at.look()
    (told,) = found(at).values()
    assert (told.key, told.text) == ("lost", f"Orders at Luno that the audit does not have: {ONE}. Was an older"
                                             " database restored? Look at the account.")
    at.session.accept()
    assert found(at) == {}


def test_a_refused_key_and_a_contradiction_are_told(at: Stand) -> None:
    at.look()
    at.line.answers.append(PostAnswer(Answer.KEY, "", "ErrInsufficientPerms"))
    at.place()
    at.session.executor.contradictions |= {"LB1-2": "b, then a", "LB1-1": "a, then b", "LB1-3": "c"}
    told = {key: b.text for key, b in found(at).items()}
    assert told == {
        "key": "Luno refuses the key (ErrInsufficientPerms). It is not tried again until you resolve this.",
        "said": "What Luno says of an order cannot be: a, then b, b, then a.",
    }
    at.session.executor.contradictions.clear()
    at.session.accept()
    assert found(at) == {}


def test_the_leash_is_told_and_locks_of_the_gates_are_not(at: Stand) -> None:
    """They have their own place."""
    at.locks.append("Evidence is 31 days old.")
    at.look(cash=84_999.0, peak_equity=100_000.0)
    (told,) = found(at).values()
    assert (told.key, told.text) == (
        "leash", "LIVE has fallen 15.0% from its peak; the gates allow 15%. No new entries.")
    at.look(cash=90_000.0, peak_equity=100_000.0)
    assert found(at) == {}


# ---- what is the owner's ---------------------------------------------------------------------------------


def test_the_first_stock_is_kept_over_a_restart(at: Stand) -> None:
    """What the owner had then stays his; a deposit made meanwhile is a drift."""
    at.look()
    assert at.owner() == {"AAA": D(2), "ZAR": D(50_000)}
    at.line.hold("ZAR", "60000")
    at.restart()
    at.look()
    assert at.owner() == {"AAA": D(2), "ZAR": D(50_000)}
    assert at.look(UNSURE).is_drifting and at.session.reconciler.last.drift.startswith("ZAR +10000 ")


def test_accounts_that_were_chosen_are_kept_over_a_restart(at: Stand) -> None:
    at.look()
    at.line.held = {"new": ("AAA", D(9), D(0)), **at.line.held}  # another account comes first now
    at.restart()
    at.look()
    assert at.session.reconciler.accounts["AAA"] == "accAAA"
    assert not at.look(UNSURE).is_drifting


def test_what_nothing_explains_is_the_owners_once_he_has_said_so_and_only_once(at: Stand) -> None:
    """10,000 came in, and 5 of a coin that was never there: both are his, however often he says it."""
    at.look()
    at.line.hold("ZAR", "60000")
    at.line.hold("XYZ", "5")
    at.look(UNSURE)
    assert at.look(UNSURE).is_drifting
    at.session.accept()
    at.session.accept()
    assert at.owner() == {"AAA": D(2), "ZAR": D(60_000), "XYZ": D(5)}
    assert not at.look(UNSURE).is_drifting
    at.restart()
    assert not at.look().is_drifting and not at.look(UNSURE).is_drifting
    assert at.owner()["ZAR"] == D(60_000)


def test_a_fill_is_the_bots_and_no_drift(at: Stand) -> None:
    """10 for 1,000 with a fee of 0.04 AAA: 11.96 AAA and 49,000 ZAR are there."""
    at.look()
    at.place()
    at.line.fill(ONE, "10", "100", "0.04")
    at.line.settle_accounts({"AAA": "2", "ZAR": "50000"})
    found = at.look(UNSURE)
    assert at.line.held["accAAA"][1] == D("11.96") and not found.is_drifting
    assert [h.unexplained for h in at.session.reconciler.last.holdings] == [D(0), D(0)]
    at.restart(replace(BUY, state=OrderState.OPEN))
    at.look()
    assert not at.look(UNSURE).is_drifting and at.owner() == {"AAA": D(2), "ZAR": D(50_000)}


# ---- what others have sold -------------------------------------------------------------------------------


def holding(at: Stand, **changes: object) -> Desk:
    """The bot has bought 10 AAA at 100 with a fee of 0.04 AAA: it has 9.96 of the 11.96 that are there."""
    at.look()
    at.place()
    at.line.fill(ONE, "10", "100", "0.04")
    at.line.settle_accounts({"AAA": "2", "ZAR": "50000"})
    at.store.record(CycleReport(NOW, (), at.desk, at.settle(), (), (), (), (), (BUY,), (), (), 50_000.0, 0.0),
                    Mode.LIVE, at.markets)
    at.look(UNSURE)
    at.desk = desk(49_000.0, positions=(position(9.96),), **changes)
    return at.desk


def moved(at: Stand, **totals: str) -> None:
    """The owner has changed his account, and the bot has seen it twice."""
    for asset, total in totals.items():
        at.line.hold(asset, total)
    at.look(UNSURE)
    assert "compared once more" in at.session.accept()
    at.look(UNSURE)


def accepted(at: Stand) -> tuple[str, ...]:
    """The owner's word, and what it takes from the desk."""
    assert at.session.accept() == ""
    acts = at.session.owed(at.desk)
    assert at.session.owed(at.desk) == ()  # told once
    return acts


def test_of_coins_that_the_owner_sold_his_own_were_the_first(at: Stand) -> None:
    """5 AAA sold by hand: 2 were his, 3 the bot's. The rest is the bot's, and nothing is amiss after that."""
    held = holding(at)
    moved(at, AAA="6.96", ZAR="49500")
    (act,) = accepted(at)
    assert act.startswith("gone AAAZAR ") and float(act.split()[2]) == pytest.approx(3.0)
    assert at.owner() == {"AAA": D(0), "ZAR": D(50_500)}
    at.desk = lunobiz.owner_act(held, act)
    assert [p.volume for p in at.desk.positions] == [pytest.approx(6.96)]
    for _ in range(2):
        at.look(UNSURE)
        assert not at.session.reconciler.last.drift
        assert [(h.bot, h.owner, h.unexplained) for h in at.session.reconciler.last.holdings] == [
            (D("6.96"), D(0), D(0)), (D(-1000), D(50_500), D(0))]
        assert accepted(at) == ()  # said again, it changes nothing
        at.restart()
    assert at.session.reconciler.gone == {}  # it is read with the first look
    at.look()
    assert at.session.reconciler.gone == {"AAA": D(3), "ZAR": D(0)}


@pytest.mark.parametrize("is_listed", [True, False])
def test_what_was_too_small_to_sell_is_gone_with_the_rest(at: Stand, is_listed: bool) -> None:
    """9.9 in the position and 0.06 beside it: of 9.96 there are 6.96 left, also if the market is listed no more."""
    holding(at)
    at.desk = desk(49_000.0, positions=(position(9.9),), dust=((PAIR, 0.06),))
    moved(at, AAA="6.96", ZAR="49500")
    if not is_listed:
        at.markets.clear()
    (act,) = accepted(at)
    assert float(act.removeprefix("gone AAAZAR ")) == pytest.approx(3.0)
    at.desk = lunobiz.owner_act(at.desk, act)
    assert [p.volume for p in at.desk.positions] == [pytest.approx(6.96)] and at.desk.dust == ()


def test_his_own_coins_are_his_to_sell(at: Stand) -> None:
    holding(at)
    moved(at, AAA="9.96", ZAR="49200")
    assert accepted(at) == ()
    assert at.owner() == {"AAA": D(0), "ZAR": D(50_200)}


def test_what_an_order_sold_that_the_journal_lacks_was_the_bots(at: Stand) -> None:
    """An older database was put back: since it was copied the bot has sold its 9.96; the owner has his 2 as before."""
    held = holding(at)
    at.line.accept(SentOrder("", "", PAIR, Side.SELL, OrderKind.EXIT, D(100), D("9.96"), D(0), NOW),
                   client_id="LB1-3fa9c2d1-000009")
    at.line.fill("LB1-3fa9c2d1-000009", "9.96", "100")
    at.restart()
    moved(at, AAA="2", ZAR="49996")
    assert at.session.lost == ("LB1-3fa9c2d1-000009",)
    acts = accepted(at)
    assert [act.rsplit(" ", 1)[0] for act in acts] == ["gone AAAZAR"]
    at.desk = lunobiz.owner_act(held, acts[0])
    assert at.desk.positions == () and at.desk.dust == ()
    assert at.owner() == {"AAA": D(2), "ZAR": D("50996")}


def test_a_crash_before_the_desk_was_written_tells_the_act_again(at: Stand) -> None:
    held = holding(at)
    moved(at, AAA="6.96", ZAR="49500")
    acts = accepted(at)
    at.restart()
    assert at.session.owed(held) == ()  # it is not known yet
    at.look()
    assert at.session.owed(held) == acts != ()
    at.restart()
    at.look()
    assert at.session.owed(lunobiz.owner_act(held, acts[0])) == ()


def test_what_an_open_order_of_the_bot_sells_is_not_given_away(at: Stand) -> None:
    """Its protection sells 9 of the 9.96; the account cannot lack them, whatever it says."""
    held = holding(at)
    at.place(order(OrderKind.PROTECTION, 9.0, 94.0, order_id="LB1-000002", side=Side.SELL, stop=95.0,
                   state=OrderState.INTENT))
    moved(at, AAA="1", ZAR="49500")
    (act,) = accepted(at)
    assert float(act.split()[2]) == pytest.approx(0.96)
    at.desk = lunobiz.owner_act(held, act)
    moved(at)
    assert at.session.reconciler.last.drift.startswith("AAA -8.0000 ")  # 9 are on sale, 1 is there: said once more
    at.line.end("LB1-3fa9c2d1-000002")
    at.look(UNSURE)
    (act,) = accepted(at)
    assert float(act.split()[2]) == pytest.approx(8.0) and at.owner()["AAA"] == 0


@pytest.mark.parametrize(("base", "counter", "is_late"), [
    ("12", "49000", True),  # all of it
    ("5", "49700", True),  # a part
    ("2", "49000", False),  # money alone was taken out
    ("12", "50000", False),  # coins alone came in
    ("12.6", "49000", False),  # more than the order can have bought
])  # fmt: skip
def test_what_may_be_an_open_orders_fill_is_not_given_away(at: Stand, base: str, counter: str, is_late: bool) -> None:
    """Luno can show an order as it was some minutes ago: until then the owner cannot take its coins for his own."""
    at.look()
    at.place()
    at.look()
    at.line.hold("AAA", base)
    at.line.hold("ZAR", counter)
    at.look(UNSURE)
    at.look(UNSURE)
    assert at.session.accept() == (
        "It may be order LB1-000001, whose fill Luno does not show yet: try again in some minutes" if is_late else "")
    at.line.wait(601)
    at.look(UNSURE)
    at.look(UNSURE)
    assert at.session.accept() == ""


def test_what_may_be_a_late_fill_waits_ten_minutes_after_a_clock_that_was_ahead_too(at: Stand) -> None:
    """Found when the clock was two hours ahead, the difference must not wait for two hours once it is right."""
    at.look()
    at.place()
    at.look()
    at.line.hold("AAA", "12")
    at.line.hold("ZAR", "49000")
    at.line.wait(7_200)
    at.look(UNSURE)
    at.line.now_ms -= 7_200_000
    at.look(UNSURE)
    assert at.session.accept().startswith("It may be order LB1-000001")
    at.line.wait(601)
    at.look(UNSURE)
    assert at.session.accept() == ""


def test_money_that_was_taken_out_is_not_traded_with(at: Stand) -> None:
    """45,000 of 50,000 withdrawn: the desk's cash is 5,000, and the day goes on at the same share of its cap."""
    at.look()
    moved(at, ZAR="5000")
    fallen = replace(at.desk, day_start_equity=51_000.0, week_start_equity=52_000.0, peak_equity=60_000.0)
    at.desk = fallen
    (act,) = accepted(at)
    assert act == "gone cash 45000.0"
    after = lunobiz.owner_act(fallen, act)
    assert (after.cash, after.day_start_equity, after.week_start_equity, after.peak_equity) == (
        5_000.0, pytest.approx(5_100.0), pytest.approx(5_200.0), pytest.approx(6_000.0))


def test_a_difference_seen_once_is_nobodys_yet(at: Stand) -> None:
    """The balances may be from before a fill: what was seen once is compared again before it is believed."""
    holding(at)
    at.line.hold("AAA", "6.96")
    at.look(UNSURE)
    assert "compared once more" in at.session.accept() and at.session.owed(at.desk) == ()
    assert at.owner() == {"AAA": D(2), "ZAR": D(50_000)}


def test_a_market_that_is_not_listed_any_more_is_no_trouble(at: Stand) -> None:
    at.look()
    at.place()
    at.line.fill(ONE, "10", "100", "0.04")
    at.line.settle_accounts({"AAA": "2", "ZAR": "50000"})
    at.settle()
    at.markets.clear()
    assert at.look(UNSURE).is_reconciled is False and at.session.trouble == ""


def test_orders_of_this_installation_that_the_journal_lacks_are_a_double_use(at: Stand) -> None:
    """A database from before: the exchange knows an order of ours that it does not have."""
    at.line.accept(SentOrder("", "", PAIR, Side.BUY, OrderKind.ENTRY, D(100), D(10), D(0), NOW), client_id=ONE)
    at.line.end(ONE)
    assert at.look().is_double_used and at.session.lost == (ONE,)
    at.session.accept()
    assert not at.look().is_double_used


def test_closed_orders_of_others_are_not_lost_ones(at: Stand) -> None:
    for client in ("mine", "LB1-00000000-000001"):
        at.line.accept(SentOrder("", "", PAIR, Side.BUY, OrderKind.ENTRY, D(100), D(10), D(0), NOW), client_id=client)
        at.line.end(client)
    assert not at.look().is_double_used and at.session.lost == ()


def test_after_an_order_of_ours_that_we_do_not_know_numbers_go_on_under_another_name(at: Stand) -> None:
    """It rests at the exchange with number 9 of this installation: ours may not come to the same id."""
    at.look()
    at.line.accept(SentOrder("", "", PAIR, Side.BUY, OrderKind.ENTRY, D(100), D(10), D(0), NOW),
                   client_id="LB1-3fa9c2d1-000009")
    assert at.look(UNSURE).is_double_used and at.session.lost == ()
    at.line.end("LB1-3fa9c2d1-000009")
    assert at.session.accept() == ""
    assert not at.look().is_double_used
    at.place()
    assert at.line.posts[0].client_id == f"LB1-3fa9c2d1.{NOW // 1000}-000001"
    at.restart()
    at.look()
    assert at.session.executor.name == f"3fa9c2d1.{NOW // 1000}"


def test_nothing_is_kept_of_a_stock_that_could_not_be_taken(at: Stand) -> None:
    at.line.trouble = DOWN
    with pytest.raises(ExchangeDown):
        at.session.begin()
    assert not at.store.results("baseline", 1)
    at.line.trouble = None
    at.session.begin()
    assert len(at.store.results("baseline", 1)) == 1


def test_the_desk_is_only_read(at: Stand) -> None:
    before: Desk = at.desk
    at.look()
    assert at.desk == before
