"""The whole way from PAPER to real orders: what stands in it, one by one, and that LIVE trades once nothing does."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import lunobiz
from fakes import FakeClock
from lunobiz import HOUR_MS, CauseKind, Credentials, DemoExchange, Event, Mode, OrderKind, Reply, Session, TradingState
from passes import keep_a_choice, keep_a_pass
from recordings import quick_settings

T0 = lunobiz.DEMO_START_MS + 3 * HOUR_MS
PAIRS = ("ETHZAR", "SOLZAR", "XBTZAR")
READ, LIVE = ("readkey1", "S" * 43), ("livekey1", "T" * 43)
ENV = {
    "LUNOBIZ_ENABLE_LIVE": "yes",
    "LUNOBIZ_READ_KEY_ID": READ[0], "LUNOBIZ_READ_KEY_SECRET": READ[1],
    "LUNOBIZ_LIVE_KEY_ID": LIVE[0], "LUNOBIZ_LIVE_KEY_SECRET": LIVE[1],
}  # fmt: skip
QUICK = 0  # a place in the list of sets
BUDGET_H = 14  # hours within which the demo's market gives a signal


class Luno:
    """The built-in exchange in Luno's place: quotes of this second, and which key asked for what."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.exchange = clock, DemoExchange.generated(5, clock)
        self.hosts: set[str] = set()
        self.posts: list[tuple[str, str]] = []  # path, id of the key

    def transport(self, url: str, ca_file: str = "", *more: object) -> Luno:
        """What is opened in place of the network."""
        self.hosts.add(url)
        return self

    def send(
        self, method: str, path: str, params: Sequence[tuple[str, str]] = (), key: Credentials | None = None
    ) -> Reply:
        """One request."""
        if method == "POST":
            assert key is not None
            self.posts.append((path, key.key_id))
        reply = self.exchange.send(method, path, params, key)
        if path != "/api/1/tickers" or reply.status != 200:
            return reply
        answer = json.loads(reply.body)
        for row in answer["tickers"]:
            row["timestamp"] = self.clock.now_ms() - 400
        return reply._replace(body=json.dumps(answer).encode())

    def close(self) -> None:
        """Nothing to let go of."""

    def orders(self, key_id: str) -> int:
        """How many orders this key has sent."""
        return self.posts.count(("/api/1/postorder", key_id))


class Desk:
    """An installation with everything LIVE asks for but a pass of the gates."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
        home.mkdir()
        self.env = {name: text for name, text in {**ENV, **changes}.items() if text}
        (home / ".env").write_text("".join(f"{n}={t}\n" for n, t in self.env.items()), encoding="utf-8")
        (home / ".env").chmod(0o600)
        self.clock = FakeClock(T0 + 50 * 60_000)
        self.luno, self.told = Luno(self.clock), list[Event]()
        monkeypatch.setattr(lunobiz, "HttpTransport", self.luno.transport)
        monkeypatch.setattr(lunobiz, "SystemClock", lambda: self.clock)
        enabled = lunobiz.parse_settings(self.env).wants_live
        settings = replace(quick_settings(pairs=PAIRS), wants_live=enabled)
        self.session = Session(Mode.PAPER, settings, home, self.env, 1, "", 0.0, "OFF")
        self.open(lambda listen: lunobiz.open_engine(self.session, listen))

    def open(self, way: lunobiz.OpenEngine) -> None:
        """A session, its history loaded."""
        self.engine, self.options = way(self.told.append)
        while self.engine.load(self.clock.now_ms()) is not None:
            pass

    def allow(self) -> None:
        """An evaluation of just these settings has passed, and training has chosen the set that trades."""
        keep_a_pass(self.engine, self.clock.now_ms())
        keep_a_choice(self.engine, self.clock.now_ms(), QUICK)

    def offer(self) -> lunobiz.LiveOffer:
        """What the dialog would show."""
        assert self.options.offer_live is not None
        return self.options.offer_live(self.engine)

    def go_live(self) -> None:
        """What the worker does once the word was typed."""
        way = self.options.open_live
        assert way is not None
        self.engine.close()
        self.open(way)

    def tick(self, seconds: int) -> None:
        """So many seconds, one at a time."""
        for _ in range(seconds):
            self.clock.advance(1)
            self.engine.step()

    def hours(self, is_over: Callable[[], bool]) -> bool:
        """Decide hour after hour until that is so; what lies between is slept over."""
        for _ in range(BUDGET_H):
            next_ms = (self.clock.now_ms() // HOUR_MS + 1) * HOUR_MS
            self.clock.advance((next_ms - 60_000 - self.clock.now_ms()) / 1000)
            self.tick(90)
            if is_over():
                return True
        return False


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """PAPER has run for a while, and an evaluation of just these settings has passed."""
    made = Desk(tmp_path / "home", monkeypatch)
    made.tick(30)
    made.allow()
    return made


def test_with_all_of_it_live_opens_and_its_orders_are_real_protected_and_of_the_live_key(desk: Desk) -> None:
    offer = desk.offer()
    assert offer.problems == () and offer.promises == lunobiz.PROMISES
    facts = dict(offer.facts)
    assert facts["Cash at Luno"] == "R100,000.00" and facts["Risk per trade"] == "0.50% of equity"
    assert facts["Equity"] == "begins with that cash"
    assert facts["Gate run"].endswith("of 2026-01-05, holds to 2026-02-04; 50% of the tested size")
    assert desk.luno.orders(READ[0]) == desk.luno.orders(LIVE[0]) == 0
    desk.go_live()
    assert desk.engine.parts.mode is Mode.LIVE and desk.engine.parts.live is not None
    desk.tick(60)
    assert desk.engine.desk.state is TradingState.READY and desk.engine.desk.cash == pytest.approx(100_000)
    assert desk.hours(lambda: desk.luno.orders(LIVE[0]) > 0), "no signal in three days"
    first = desk.engine.desk.orders[0]
    assert first.kind is OrderKind.ENTRY
    market = desk.engine.parts.feed.markets[first.pair]
    assert market.min_volume <= first.volume <= 2.1 * market.min_volume  # so that a half of it can still be sold
    assert desk.hours(lambda: any(o.kind is OrderKind.PROTECTION for o in desk.engine.desk.orders))
    assert desk.luno.orders(READ[0]) == 0  # the read-only key has sent nothing
    assert desk.luno.hosts == {"https://api.luno.com"}
    desk.engine.close()
    desk.open(lambda listen: lunobiz.open_engine(desk.session, listen))  # the program starts again
    assert desk.engine.parts.mode is Mode.PAPER and desk.engine.parts.live is None
    assert any(e.kind == "live_left" and "until LIVE is confirmed again" in e.text for e in desk.told)
    assert dict(desk.offer().facts)["Equity"].endswith("when LIVE was left")


@pytest.mark.parametrize(("changes", "says"), [
    ({"LUNOBIZ_ENABLE_LIVE": ""}, "LUNOBIZ_ENABLE_LIVE is not yes in the .env file."),
    ({"LUNOBIZ_LIVE_KEY_ID": "", "LUNOBIZ_LIVE_KEY_SECRET": ""},
     "LUNOBIZ_LIVE_KEY_ID and LUNOBIZ_LIVE_KEY_SECRET are not set: LIVE needs a key of its own."),
])
def test_what_env_lacks_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], says: str
) -> None:
    desk = Desk(tmp_path / "home", monkeypatch, **changes)
    desk.tick(30)
    desk.allow()
    assert desk.offer().problems == (says,)
    assert desk.luno.posts == []


def test_without_a_pass_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path / "home", monkeypatch)
    desk.tick(30)
    assert desk.offer().problems == (lunobiz.NO_ROW, lunobiz.NO_CHOICE)
    keep_a_pass(desk.engine, desk.clock.now_ms(), gates=())
    assert "10 of 10 gates did not pass" in desk.offer().problems[0]
    assert desk.luno.posts == []


def test_a_key_that_may_not_trade_locks(desk: Desk) -> None:
    desk.luno.exchange.can_trade = False
    problems = desk.offer().problems
    assert len(problems) == 1 and "may not place orders" in problems[0]


def test_a_clock_that_disagrees_locks(desk: Desk) -> None:
    desk.luno.exchange.skew_ms = 9_000
    (problem,) = desk.offer().problems
    assert re.fullmatch(r"This computer's clock is \+(8|9)\.\d s off Luno's: set it right\.", problem)


@pytest.mark.parametrize("kind", [CauseKind.KILL, CauseKind.WEEKLY_CAP])
def test_a_halt_of_paper_locks(desk: Desk, kind: CauseKind) -> None:
    held = desk.engine.desk
    desk.engine.desk = replace(held, causes=(*held.causes, lunobiz.Cause(kind, desk.clock.now_ms(), 0, "as it is")))
    assert len(desk.offer().problems) == 1
    assert desk.offer().problems[0].startswith(f"PAPER is {desk.engine.desk.state.name}: {kind.words}")


def test_a_pass_that_ends_while_live_runs_lets_nothing_in_any_more(desk: Desk) -> None:
    """A later evaluation that failed counts at once, and the audit says so of every signal."""
    desk.go_live()
    desk.tick(60)
    keep_a_pass(desk.engine, desk.clock.now_ms(), gates=())
    assert not desk.hours(lambda: desk.luno.orders(LIVE[0]) > 0)
    with sqlite3.connect(desk.session.database) as db:
        found = db.execute("SELECT why FROM decisions WHERE mode = 'live' AND action = 'reject'").fetchall()
    assert found and all(str(row[0]).startswith("LIVE is locked again: no new entries.") for row in found)


def resting(desk: Desk) -> list[str]:
    """Entries of the bot that rest at the exchange."""
    return [o.status for o in desk.luno.exchange.accounts.orders.values() if o.is_buy and o.status != "COMPLETE"]


def wished(desk: Desk) -> None:
    """LIVE with an entry that rests at the exchange, and fills by nothing but time."""
    desk.go_live()
    assert desk.hours(lambda: bool(resting(desk))), "no signal within the budget"


def test_an_entry_is_ended_when_the_gates_lock_again(desk: Desk) -> None:
    wished(desk)
    keep_a_pass(desk.engine, desk.clock.now_ms(), gates=())
    desk.tick(25)
    assert resting(desk) == [] and not any(o.kind is OrderKind.ENTRY for o in desk.engine.desk.orders)


def test_when_live_is_stopped_or_left_no_wish_to_buy_stays_at_luno(desk: Desk) -> None:
    wished(desk)
    lunobiz.call_off_entries(desk.engine, desk.clock)
    assert resting(desk) == [] and not any(o.kind is OrderKind.ENTRY for o in desk.engine.desk.orders)
    assert not any(e.kind == "live_left" for e in desk.told)
    posts = desk.luno.orders(LIVE[0])
    assert not desk.hours(lambda: desk.luno.orders(LIVE[0]) > posts and bool(resting(desk)))  # barred until started


def test_an_entry_that_luno_does_not_end_in_time_is_named(desk: Desk) -> None:
    wished(desk)
    desk.luno.exchange.faults.append(lunobiz.Fault("down", "/api/", 1_000))
    began_s = desk.clock.mono_s()
    lunobiz.call_off_entries(desk.engine, desk.clock)
    assert lunobiz.CALL_OFF_S <= desk.clock.mono_s() - began_s < 60
    (told,) = [e for e in desk.told if e.kind == "live_left"]
    assert told.level == "error" and "may still rest at Luno" in told.text and resting(desk)


def test_answers_without_a_time_lock(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A skew of 0 that nobody has measured is no clock that agrees."""
    plain = desk.luno.exchange._made
    monkeypatch.setattr(desk.luno.exchange, "_made", lambda *parts: plain(*parts)._replace(headers={}))
    assert desk.offer().problems == (lunobiz.NO_TIME,)
    way = desk.options.open_live
    assert way is not None
    with pytest.raises(lunobiz.ExchangeDown, match="do not tell its time"):
        way(desk.told.append)


def test_the_ramp_begins_anew_with_other_rules(desk: Desk) -> None:
    """Twelve round trips by other rules make no order larger; twelve by these are a step, and the dialog says so."""
    store, key = desk.engine.parts.store, desk.engine.parts.install.key
    early = desk.clock.now_ms() - 5_000
    since = lunobiz.same_rules_ms(store.links("gate_rows"), key)
    assert since == desk.clock.now_ms() and lunobiz.same_rules_ms((), key) == 0
    keep_a_pass(desk.engine, desk.clock.now_ms() + 9, strategies_hash="other")
    assert lunobiz.same_rules_ms(store.links("gate_rows"), key) == since + 9
    keep_a_pass(desk.engine, desk.clock.now_ms() + 99)
    assert lunobiz.same_rules_ms(store.links("gate_rows"), key) == since
    with sqlite3.connect(desk.session.database) as db:
        names = [str(row[1]) for row in db.execute("PRAGMA table_info(trades)")]
        for closed_ms in [early] * 12 + [since + 1] * 12:
            row = dict.fromkeys(names, 0) | {"mode": "live", "pair": "XBTZAR", "closed_ms": closed_ms}
            row.pop("rowid", None)
            marks = ", ".join("?" * len(row))
            db.execute(f"INSERT INTO trades ({', '.join(row)}) VALUES ({marks})", list(row.values()))
    assert lunobiz.count_trips(store, since) == 12 and lunobiz.count_trips(store, 0) == 24
    says = "25% of the size that the gates found safe, after 12 round trips by these rules"
    assert dict(desk.offer().facts)["Orders"] == says


def test_a_program_file_that_was_replaced_is_not_taken_for_the_code_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lunobiz.program_source()
    other = tmp_path / "lunobiz.py"
    other.write_text("# another version\n", encoding="utf-8")
    monkeypatch.setattr(lunobiz, "__file__", str(other))
    assert lunobiz.program_source() == before
    with pytest.raises(lunobiz.DataError, match="has changed since the program was started"):
        lunobiz.require_code("0" * 64)
    lunobiz.require_code(lunobiz.code_hash(before))
