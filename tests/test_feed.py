"""Candles and quotes as an exchange really sends them: in pages, twice, late, broken, or not at all."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lunobiz
from candles import HOURLY
from fakes import FakeClock
from lunobiz import (
    DAY_MS,
    DEMO_START_MS,
    HOUR_MS,
    Conditions,
    Credentials,
    DemoExchange,
    Desk,
    Doubt,
    ExchangeDown,
    ExchangeRefused,
    Feed,
    LunoClient,
    Market,
    MarketView,
    Mode,
    Moment,
    RateLimit,
    Redactor,
    Reply,
    Settings,
    Settlement,
    Side,
    Store,
    decide,
)
from recordings import Shape, market_rows, quick_settings

KEY = Credentials("cnz2yjswbv3jd", "not-a-real-secret")
CANDLES, TICKERS, MARKETS = "/api/exchange/1/candles", "/api/1/tickers", "/api/exchange/1/markets"
BOOK, FEES = "/api/1/orderbook_top", "/api/1/fee_info"
PAIRS = ("ETHZAR", "SOLZAR", "XBTZAR")
T0 = DEMO_START_MS + 3 * HOUR_MS
Params = dict[str, str]
Row = dict[str, object]


class Wire:
    """The way to the demo exchange: it writes down what is asked, may break, and may change candles on the way."""

    def __init__(self, exchange: DemoExchange) -> None:
        self.exchange = exchange
        self.seen: list[tuple[str, Params]] = []
        self.trouble: Callable[[str, Params], Exception | None] = lambda path, params: None
        self.edit: Callable[[Params, list[Row]], list[Row]] = lambda params, rows: rows

    def send(
        self, method: str, path: str, params: Sequence[tuple[str, str]] = (), key: Credentials | None = None
    ) -> Reply:
        """One request."""
        asked = dict(params)
        self.seen.append((path, asked))
        error = self.trouble(path, asked)
        if error is not None:
            raise error
        reply = self.exchange.send(method, path, params, key)
        if path != CANDLES or reply.status != 200:
            return reply
        answer = json.loads(reply.body)
        answer["candles"] = self.edit(asked, answer["candles"])
        return reply._replace(body=json.dumps(answer).encode())

    def close(self) -> None:
        """Nothing to let go of."""

    def count(self, path: str, **params: str) -> int:
        """How often a path was asked for with these parameters."""
        return sum(p == path and params.items() <= asked.items() for p, asked in self.seen)


class Desktop:
    """A feed with its exchange, clock and cache."""

    def __init__(
        self, folder: Path, exchange: DemoExchange | None = None, settings: Settings | None = None,
        key: Credentials = KEY,
    ) -> None:  # fmt: skip
        self.clock = FakeClock(T0 + 30 * 60_000)
        self.wire = Wire(exchange or DemoExchange.generated(5, self.clock))
        self.settings = settings or with_pairs(PAIRS)
        self.store = Store(folder / "feed.db", Redactor(()), "OFF")
        self.key = key
        self.start()

    def start(self) -> None:
        """A new feed, as after a restart; the cache stays."""
        limit = RateLimit(self.clock)
        self.client = LunoClient(self.wire, self.key, limit, self.clock, random.Random(1))
        self.feed = Feed(self.client, self.store, self.settings)

    def load(self) -> list[lunobiz.LoadState]:
        """All of the history."""
        states = []
        while (state := self.feed.load_page(self.clock.now_ms())) is not None:
            states.append(state)
        return states

    def at(self, time_ms: int, due: tuple[int, ...] = (), wanted: frozenset[str] = frozenset()) -> Moment:
        """The moment at a time of the clock."""
        self.clock.advance((time_ms - self.clock.now_ms()) / 1000)
        return self.feed.moment(time_ms, due, Conditions(), wanted)

    def hour(self, number: int = 1, wanted: frozenset[str] = frozenset()) -> Moment:
        """The decision so many hours after the start."""
        return self.at(T0 + number * HOUR_MS + 5000, (3600,), wanted)


def with_pairs(pairs: tuple[str, ...], **schedule: object) -> Settings:
    """Quick settings for these markets."""
    return quick_settings(pairs=pairs, **schedule)


@pytest.fixture
def desktop(tmp_path: Path) -> Iterator[Desktop]:
    found = Desktop(tmp_path)
    yield found
    found.store.close()


def view_of(moment: Moment, pair: str) -> MarketView:
    found = moment.view(pair)
    assert found is not None
    return found


def rows_decided(moment: Moment) -> dict[str, tuple[str, str]]:
    """Code and sentence of each market's decision."""
    found = decide(Desk(100_000.0), moment, Settlement(), HOURLY)
    return {d.pair: (d.code, d.why) for d in found.decisions}


# ---- paging and cache ------------------------------------------------------


def test_history_comes_in_pages_and_only_what_is_missing_comes_again(desktop: Desktop) -> None:
    states = desktop.load()
    assert [s.done for s in states] == [0, 0, 1, 1, 2, 2], "70 days of hours are two pages each"
    assert {s.total for s in states} == {3}
    assert all("ZAR" in s.words for s in states)
    asked = [params for path, params in desktop.wire.seen if path == CANDLES]
    assert Counter(a["pair"] for a in asked) == dict.fromkeys(PAIRS, 2)
    assert int(asked[0]["since"]) <= T0 - 62 * DAY_MS
    first = {pair: desktop.store.candles(pair, 3600) for pair in PAIRS}
    assert all(len(rows) >= 69 * 24 and rows[-1, 0] == T0 - HOUR_MS for rows in first.values())

    desktop.wire.seen.clear()
    desktop.clock.advance(3 * 3600)
    desktop.start()
    assert len(desktop.load()) == 3
    asked = [params for path, params in desktop.wire.seen if path == CANDLES]
    assert [(a["pair"], int(a["since"])) for a in asked] == [(pair, T0) for pair in PAIRS]
    for pair in PAIRS:
        rows = desktop.store.candles(pair, 3600)
        assert np.array_equal(rows[:-3], first[pair])
        assert list(np.diff(rows[:, 0])) == [HOUR_MS] * (len(rows) - 1)
    moment = desktop.hour(4)
    assert all(len(v.outlooks) == 1 and not v.outlooks[0].findings for v in moment.views)


def test_a_page_that_fails_is_asked_for_again_and_nothing_is_lost(desktop: Desktop) -> None:
    failures = iter([None, None, *[ExchangeDown("gone")] * 4])
    desktop.wire.trouble = lambda path, params: next(failures, None) if path == CANDLES else None
    states: list[object] = []
    for _ in range(30):
        try:
            states.append(desktop.feed.load_page(desktop.clock.now_ms()))
        except ExchangeDown:
            states.append("down")
        if states[-1] is None:
            break
    assert "down" in states
    assert states[-1] is None
    assert all(np.diff(desktop.store.candles(pair, 3600)[:, 0]).max() == HOUR_MS for pair in PAIRS)


def test_another_set_reads_as_far_back_as_it_needs(desktop: Desktop) -> None:
    """Readings keep only the candles of their own set; a slower one, taken over later, must not miss any."""
    desktop.load()
    desktop.hour(1)
    slow = replace(lunobiz.StrategyParams(), breakout=900, reversion=700)
    desktop.feed.use(slow)
    for (pair, seconds), table in desktop.feed._tables.items():
        whole = lunobiz.series_of(desktop.feed._tracks[(pair, seconds)].rows, seconds)
        alone = lunobiz.outlook_at(lunobiz.signal_table(pair, whole, slow), len(whole) - 1)
        assert np.isfinite(alone.setups[0].strength)
        assert lunobiz.canonical(lunobiz.outlook_at(table, len(table.series) - 1)) == lunobiz.canonical(alone)


def test_what_was_fetched_before_trouble_is_kept(desktop: Desktop, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction for all markets; a key that is refused in the midst ends the look, not what was read."""
    written: list[list[str]] = []
    save = desktop.store.save_news

    def noted(news: Sequence[tuple[str, int, Sequence[lunobiz.Candle]]]) -> tuple[int, ...]:
        written.append([pair for pair, *_ in news])
        return save(news)

    desktop.load()
    monkeypatch.setattr(desktop.store, "save_news", noted)
    desktop.hour(1)
    assert written == [list(PAIRS)]
    refused = ExchangeRefused(sorted(lunobiz.KEY_CODES)[0], "no")
    last = PAIRS[-1]
    desktop.wire.trouble = lambda path, params: refused if path == CANDLES and params["pair"] == last else None
    with pytest.raises(ExchangeRefused):
        desktop.hour(2)
    assert written[1:] == [list(PAIRS[:-1])]
    desktop.wire.trouble = lambda path, params: None
    assert [len(v.outlooks) for v in desktop.hour(2).views] == [1] * len(PAIRS)
    assert written[2:] == [[last]]
    assert len({len(desktop.store.candles(pair, 3600)) for pair in PAIRS}) == 1


def test_a_closed_candle_that_comes_differently_later_is_counted_not_believed(desktop: Desktop) -> None:
    desktop.load()
    before = desktop.store.candles("XBTZAR", 3600)
    changed = [replace(c, volume=c.volume + 1) for c in desktop.client.candles("XBTZAR", int(before[-3, 0]), 3600)[:3]]
    assert desktop.store.save_candles("XBTZAR", 3600, changed) == 3
    assert np.array_equal(desktop.store.candles("XBTZAR", 3600), before)


def test_old_candles_are_forgotten_and_the_present_is_not(desktop: Desktop) -> None:
    desktop.load()
    moment = desktop.hour(1)
    assert all(v.outlooks[0].closed_ms == T0 + HOUR_MS for v in moment.views)
    assert all(r.rows >= 62 * 24 for r in desktop.feed.reports().values())


# ---- what may be believed --------------------------------------------------


def test_the_candle_in_progress_is_never_used(desktop: Desktop) -> None:
    """The exchange sends it with every page; its numbers still change."""
    running: list[int] = []

    def note(params: Params, rows: list[Row]) -> list[Row]:
        opened = int(str(rows[-1]["timestamp"])) if rows else 0
        if opened + HOUR_MS > desktop.clock.now_ms():
            running.append(opened)
        return rows

    desktop.wire.edit = note
    desktop.load()
    for number in (1, 2, 3):
        desktop.at(T0 + number * HOUR_MS - 1_000_000)
        moment = desktop.hour(number)
        closed = T0 + number * HOUR_MS
        for view in moment.views:
            assert [o.closed_ms for o in view.outlooks] == [closed]
            assert view.bar is not None
            assert view.bar.opened_ms == closed - HOUR_MS
            assert desktop.store.candles(view.pair, 3600)[-1, 0] == closed - HOUR_MS
    assert len(running) >= 9
    desktop.clock.advance(10 * 3600)
    for pair in PAIRS:  # what was kept is what the candles were in the end
        kept = desktop.store.candles(pair, 3600)[-3:]
        final = desktop.client.candles(pair, int(kept[0, 0]), 3600)[:3]
        assert [tuple(r) for r in kept] == [(c.opened_ms, c.open, c.high, c.low, c.close, c.volume) for c in final]


def broken(params: Params, rows: list[Row]) -> list[Row]:
    """A page of candles twice, out of order, from the future, and of kinds that cannot be."""
    if params["pair"] != "SOLZAR" or len(rows) < 30:
        return rows
    future = dict(rows[-1], timestamp=T0 + 40 * HOUR_MS)
    inverted = dict(rows[9], high=rows[9]["low"], low=rows[9]["high"])
    negative = dict(rows[12], volume="-1.00")
    between = dict(rows[13], timestamp=int(str(rows[13]["timestamp"])) + 1000)
    return [*rows[:9], inverted, rows[10], rows[10], negative, between, *reversed(rows[14:17]), *rows[17:], future]


def test_broken_candles_are_counted_and_left_out(desktop: Desktop) -> None:
    desktop.wire.edit = broken
    desktop.load()
    report = desktop.feed.reports()["SOLZAR"]
    pages = 2
    assert (report.impossible, report.duplicates, report.future) == (3 * pages, pages, pages)
    assert report.disordered >= pages
    assert report.missing == 4 * pages, "three that cannot be, and one whose place another took"
    clean = desktop.feed.reports()["XBTZAR"]
    assert (clean.impossible, clean.duplicates, clean.future, clean.disordered, clean.missing) == (0, 0, 0, 0, 0)
    kept = desktop.store.candles("SOLZAR", 3600)
    assert (np.diff(kept[:, 0]) > 0).all()
    assert kept[-1, 0] == T0 - HOUR_MS
    assert (kept[:, 2] >= kept[:, 3]).all()


def test_a_hole_keeps_only_its_market_out(desktop: Desktop) -> None:
    gone = T0 - 5 * HOUR_MS
    desktop.wire.edit = lambda params, rows: [
        r for r in rows if params["pair"] != "ETHZAR" or int(str(r["timestamp"])) != gone
    ]
    desktop.load()
    rows = rows_decided(desktop.hour(1))
    assert rows["ETHZAR"][0] == "gap"
    assert {code for pair, (code, _) in rows.items() if pair != "ETHZAR"}.isdisjoint({"gap", "S4-doubt"})


def test_a_candle_that_has_not_arrived_in_time_is_named_and_caught_up_with(desktop: Desktop) -> None:
    desktop.load()
    late = T0
    desktop.wire.edit = lambda params, rows: [r for r in rows if int(str(r["timestamp"])) < late]
    moment = desktop.hour(1)
    assert {why for _, why in rows_decided(moment).values()} == {
        "No decision: candles stale, the candle has not arrived"
    }
    assert [v.bar for v in moment.views] == [None] * 3
    desktop.wire.edit = lambda params, rows: rows
    moment = desktop.hour(2)
    assert all(o.closed_ms == T0 + 2 * HOUR_MS and not o.findings for v in moment.views for o in v.outlooks)
    assert all(np.diff(desktop.store.candles(p, 3600)[:, 0]).max() == HOUR_MS for p in PAIRS)


# ---- markets, fees ---------------------------------------------------------


def test_a_market_that_is_not_listed_is_shown_and_never_traded(desktop: Desktop) -> None:
    desktop.wire.exchange.statuses["SOLZAR"] = "DELISTED"
    states = desktop.load()
    assert not desktop.wire.count(CANDLES, pair="SOLZAR")
    assert len(states) == 4
    rows = rows_decided(desktop.hour(1))
    assert rows["SOLZAR"] == ("not_active", "No decision: market not active, Luno says NOT LISTED")
    assert "not_active" not in {code for pair, (code, _) in rows.items() if pair != "SOLZAR"}
    assert [kind for kind, _, _ in desktop.feed.events] == ["market"]
    assert "SOLZAR" in desktop.feed.events[0][2]
    desktop.hour(3)
    assert len(desktop.feed.events) == 1, "told once, not with every refresh"
    desktop.wire.exchange.statuses["SOLZAR"] = "ACTIVE"
    desktop.hour(5)
    assert desktop.feed.markets["SOLZAR"].status == "ACTIVE"
    assert rows_decided(desktop.hour(6))["SOLZAR"][0] != "not_active"


def test_an_exchange_that_refuses_unknown_markets_is_not_asked_for_them(desktop: Desktop) -> None:
    """One wrong name in the settings must not cost the quotes of all others."""
    honest = desktop.wire.exchange.send

    def send(
        method: str, path: str, params: Sequence[tuple[str, str]] = (), key: Credentials | None = None
    ) -> Reply:
        if path in (TICKERS, MARKETS) and ("pair", "NOPEZAR") in params:
            return Reply(400, {}, b'{"error": "unknown", "error_code": "ErrInvalidMarketPair"}')
        return honest(method, path, params, key)

    desktop.wire.exchange.send = send  # type: ignore[method-assign]
    desktop.settings = with_pairs(("NOPEZAR", "XBTZAR"))
    desktop.start()
    desktop.load()
    rows = rows_decided(desktop.hour(1))
    assert rows["NOPEZAR"][0] == "not_active"
    assert rows["XBTZAR"][0] != "not_active"


@pytest.mark.parametrize("status", ["SUSPENDED", "POST_ONLY", "UNKNOWN"])
def test_a_market_that_is_not_active_is_that_markets_doubt(desktop: Desktop, status: str) -> None:
    desktop.load()
    desktop.wire.exchange.statuses["ETHZAR"] = status
    moment = desktop.hour(1)
    assert [f.doubt for f in view_of(moment, "ETHZAR").findings] == [Doubt.NOT_ACTIVE]
    assert view_of(moment, "XBTZAR").findings == ()


def recorded(desktop_clock: FakeClock, maker: float, taker: float) -> DemoExchange:
    """One recorded market whose account pays these fees."""
    rows = market_rows(Shape(900.0, 2, 3000.0, 5), 76, 3600, T0 // DAY_MS * DAY_MS - 72 * DAY_MS)
    market = Market("AAAZAR", "AAA", "ZAR", 2, 4, 0.001, 1e6, 0.01, 1e6, maker_fee=maker, taker_fee=taker)
    return DemoExchange.recorded({"AAAZAR": rows}, 3600, {"AAAZAR": market}, desktop_clock)


def test_the_accounts_own_fees_are_used_once_a_day(tmp_path: Path) -> None:
    desktop = Desktop(tmp_path, settings=with_pairs(("AAAZAR",)))
    desktop.wire.exchange = recorded(desktop.clock, 0.0012, 0.0034)
    desktop.load()
    market = view_of(desktop.hour(1), "AAAZAR").market
    assert (market.maker_fee, market.taker_fee, market.fee_source) == (0.0012, 0.0034, "account")
    for number in (2, 3, 4):
        desktop.hour(number)
    assert desktop.wire.count(FEES) == 1
    for number in range(20, 26):
        desktop.hour(number)
    assert desktop.wire.count(FEES) == 2, "the tier may change over night"
    desktop.store.close()


def test_without_a_key_the_entry_tier_is_assumed_and_no_candles_are_to_be_had(tmp_path: Path) -> None:
    desktop = Desktop(tmp_path, settings=with_pairs(("AAAZAR",)), key=Credentials())
    desktop.wire.exchange = recorded(desktop.clock, 0.0012, 0.0034)
    with pytest.raises(ExchangeRefused, match="key"):
        desktop.load()
    market = desktop.feed.markets["AAAZAR"]
    assert (market.maker_fee, market.taker_fee, market.fee_source) == (0.004, 0.006, "entry tier")
    assert not desktop.wire.count(FEES)
    desktop.store.close()


def test_scales_and_minimums_are_read_again_every_hour(desktop: Desktop) -> None:
    desktop.load()
    start_ms = desktop.clock.now_ms()
    assert desktop.wire.count(MARKETS) == 1
    for minute in range(1, 181):
        desktop.at(start_ms + minute * 60_000)
        assert desktop.wire.count(MARKETS) == 1 + minute // 60


# ---- calls -----------------------------------------------------------------


def test_a_quote_is_one_call_and_a_decision_one_more_per_market(desktop: Desktop) -> None:
    desktop.load()
    desktop.hour(1)
    for number in range(2, 8):
        desktop.wire.seen.clear()
        desktop.at(T0 + number * HOUR_MS - 600_000)
        quiet = Counter(path for path, _ in desktop.wire.seen if path != MARKETS)
        assert quiet == {TICKERS: 1}
        desktop.wire.seen.clear()
        moment = desktop.hour(number)
        calls = Counter(path for path, _ in desktop.wire.seen if path != MARKETS)
        candidates = {v.pair for v in moment.views for o in v.outlooks for s in o.setups if s.is_entry}
        assert calls == Counter({TICKERS: 1, CANDLES: 3, BOOK: len(candidates)})


def test_books_are_fetched_for_candidates_and_held_markets_only(desktop: Desktop) -> None:
    desktop.load()
    candidates: set[str] = set()
    for number in range(1, 48):
        desktop.wire.seen.clear()
        wanted = frozenset({"XBTZAR"}) if number % 2 else frozenset[str]()
        moment = desktop.hour(number, wanted)
        hot = {v.pair for v in moment.views for o in v.outlooks for s in o.setups if s.is_entry}
        asked = [params["pair"] for path, params in desktop.wire.seen if path == BOOK]
        assert sorted(asked) == sorted(hot | wanted)
        assert {v.pair for v in moment.views if v.book is not None} == hot | wanted
        candidates |= hot
        desktop.wire.seen.clear()
        desktop.at(T0 + number * HOUR_MS + 15_000, (), wanted)
        assert desktop.wire.count(BOOK) == len(wanted), "an entry is considered at the close only"
    assert candidates, "nobody wanted in: choose another seed"


def test_a_book_that_cannot_be_had_is_no_book(desktop: Desktop) -> None:
    desktop.load()
    desktop.wire.trouble = lambda path, params: ExchangeDown("gone") if path == BOOK else None
    moment = desktop.hour(1, frozenset(PAIRS))
    assert [v.book for v in moment.views] == [None] * 3
    assert all(v.outlooks and not v.findings for v in moment.views)


# ---- trouble of one market, trouble of all ---------------------------------


@pytest.mark.parametrize("trouble", [ExchangeDown("gone"), ExchangeRefused("ErrInvalidMarketPair", "no")])
def test_candles_that_fail_are_that_markets_doubt_only(desktop: Desktop, trouble: Exception) -> None:
    desktop.load()
    desktop.hour(1)
    desktop.wire.trouble = lambda path, params: trouble if path == CANDLES and params["pair"] == "ETHZAR" else None
    moment = desktop.hour(2)
    assert [f.doubt for f in view_of(moment, "ETHZAR").findings] == [Doubt.NO_CANDLES]
    assert view_of(moment, "ETHZAR").outlooks == ()
    assert view_of(moment, "ETHZAR").ticker is not None, "it can still be left"
    for pair in ("SOLZAR", "XBTZAR"):
        assert view_of(moment, pair).findings == ()
        assert view_of(moment, pair).outlooks
    assert rows_decided(moment)["ETHZAR"][0] == "no_candles"
    desktop.wire.trouble = lambda path, params: None
    moment = desktop.hour(3)
    assert view_of(moment, "ETHZAR").findings == ()
    assert view_of(moment, "ETHZAR").outlooks[0].findings == (), "the hour that was missed was fetched as well"


def test_candles_that_fail_for_long_make_the_market_stale(desktop: Desktop) -> None:
    desktop.load()
    desktop.hour(1)
    desktop.wire.edit = lambda params, rows: [] if params["pair"] == "ETHZAR" else rows
    kinds = [{f.doubt for f in view_of(desktop.hour(n), "ETHZAR").findings} for n in (2, 3, 4, 5)]
    assert kinds == [set(), set(), {Doubt.STALE_CANDLES}, {Doubt.STALE_CANDLES}]
    between = desktop.at(T0 + 5 * HOUR_MS + 25_000)
    assert Doubt.STALE_CANDLES in {f.doubt for f in view_of(between, "ETHZAR").findings}


def test_quotes_that_fail_are_everybodys_trouble(desktop: Desktop) -> None:
    desktop.load()
    desktop.hour(1)
    desktop.wire.trouble = lambda path, params: ExchangeDown("gone") if path == TICKERS else None
    with pytest.raises(ExchangeDown):
        desktop.hour(2)
    blind = desktop.feed.blind_moment(T0 + 2 * HOUR_MS + 5000, (3600,), Conditions(has_network=False), "gone")
    assert [v.pair for v in blind.views] == list(PAIRS)
    assert all((v.ticker, v.bar, v.book, v.outlooks) == (None, None, None, ()) for v in blind.views)
    rows = rows_decided(blind)
    assert {code for code, _ in rows.values()} == {"no_quote"}
    assert all("gone" in why for _, why in rows.values())
    desktop.wire.trouble = lambda path, params: None
    assert all(v.outlooks and v.ticker for v in desktop.hour(3).views)


def test_a_quote_that_is_missing_from_the_list_is_that_markets_doubt(desktop: Desktop) -> None:
    desktop.load()
    desktop.hour(1)
    honest = desktop.client.tickers
    desktop.client.tickers = lambda pairs=(): tuple(t for t in honest(pairs) if t.pair != "XBTZAR")  # type: ignore[method-assign]
    moment = desktop.hour(2, frozenset({"XBTZAR"}))
    assert view_of(moment, "XBTZAR").ticker is None
    assert view_of(moment, "XBTZAR").book is None
    assert [f.doubt for f in view_of(moment, "XBTZAR").findings] == [Doubt.NO_QUOTE]
    assert view_of(moment, "ETHZAR").findings == ()


def test_two_timeframes_have_their_own_candles(tmp_path: Path) -> None:
    desktop = Desktop(tmp_path, settings=with_pairs(("ETHZAR", "XBTZAR"), timeframes=(3600, 14400)))
    assert {s.total for s in desktop.load()} == {4}
    moment = desktop.hour(1)  # four o'clock
    assert (T0 + HOUR_MS) % (4 * HOUR_MS) == 0
    moment = desktop.feed.moment(moment.now_ms, (3600, 14400), Conditions(), frozenset())
    for view in moment.views:
        assert [(o.timeframe_s, o.closed_ms) for o in view.outlooks] == [(3600, T0 + HOUR_MS), (14400, T0 + HOUR_MS)]
        assert view.bar is not None
        assert view.bar.opened_ms == T0, "the finest candle is the evidence"
    desktop.store.close()


def test_a_stepped_feed_keeps_no_candles_and_reads_the_finest_as_evidence(tmp_path: Path) -> None:
    desktop = Desktop(tmp_path)
    desktop.feed = Feed(desktop.client, desktop.store, desktop.settings, 300)
    desktop.load()
    assert desktop.store.candle_count("XBTZAR", 3600) == 0
    for step in range(1, 5):
        closed = T0 + HOUR_MS + step * 300_000
        moment = desktop.at(closed + 5000, (), frozenset({"XBTZAR"}))
        view = view_of(moment, "XBTZAR")
        assert view.bar is not None
        assert view.bar.opened_ms == closed - 300_000
    desktop.wire.edit = lambda params, rows: []
    view = view_of(desktop.at(T0 + HOUR_MS + 5 * 300_000 + 5000, (), frozenset({"XBTZAR"})), "XBTZAR")
    assert view.bar is None, "an older bar is no evidence"
    desktop.store.close()


def test_the_feed_is_what_the_paper_desk_trades_on(desktop: Desktop) -> None:
    """One entry of the demo market from its page of candles to an order at the bid, within the scales it was told."""
    desktop.load()
    for number in range(1, 72):
        moment = desktop.hour(number)
        report = decide(Desk(100_000.0), moment, Settlement(), desktop.settings)
        for order in report.orders:
            view = view_of(moment, order.pair)
            assert view.ticker is not None
            assert (order.side, order.limit) == (Side.BUY, view.ticker.bid)
            assert order.volume >= view.market.min_volume
            assert report.decisions[0].time_ms == T0 + number * HOUR_MS + 5000
            desktop.store.record(report, Mode.PAPER, desktop.feed.markets)
            return
    pytest.fail("nobody wanted in: choose another seed")


# ---- older history, for the choice of a set --------------------------------


def test_older_history_comes_page_by_page_and_only_once(desktop: Desktop) -> None:
    """The demo has candles from 80 days before its start; 30, the memory and one more are asked for."""
    gates = replace(desktop.settings.gates, train_days=30, warm_up_days=10)
    desktop.settings = replace(desktop.settings, gates=gates)
    desktop.start()
    desktop.load()
    first = {pair: desktop.store.candles(pair, 3600)[0, 0] for pair in PAIRS}
    desktop.wire.seen.clear()
    pages = 0
    while desktop.feed.history_page(desktop.clock.now_ms()):
        pages += 1
        assert desktop.wire.count(CANDLES) == pages, "one request a page"
    since = T0 // DAY_MS * DAY_MS - (30 + lunobiz.memory_days(3600) + 1) * DAY_MS
    assert pages == len(PAIRS)
    for pair in PAIRS:
        rows = desktop.store.candles(pair, 3600)
        assert rows[0, 0] < first[pair] and rows[0, 0] >= since
        assert list(np.diff(rows[:, 0])) == [HOUR_MS] * (len(rows) - 1)
    assert not desktop.feed.history_page(desktop.clock.now_ms() + 20 * DAY_MS)


def rows_at(*numbers: int) -> lunobiz.Floats:
    """Flat candles opened in these hours."""
    return np.array([[n * HOUR_MS, 1, 1, 1, 1, 1] for n in numbers], dtype=np.float64)


class Sparse:
    """A client whose market has these hours only, at most 1,000 a page, and notes from when it was asked."""

    def __init__(self, *hours: int) -> None:
        self.hours, self.asked = sorted(hours), list[int]()

    def candles(self, pair: str, since_ms: int, duration_s: int) -> tuple[lunobiz.Candle, ...]:
        assert duration_s == 3600
        self.asked.append(since_ms // HOUR_MS)
        found = [n for n in self.hours if n * HOUR_MS >= since_ms][:1000]
        return tuple(lunobiz.Candle(n * HOUR_MS, 1.0, 1.0, 1.0, 1.0, 1.0) for n in found)


def history(desktop: Desktop, client: Sparse, days: int, now_hour: int) -> lunobiz.History:
    """The last days up to this hour, of one market."""
    wanted = lunobiz.Wanted(("XBTZAR",), 3600, days)
    now_ms = now_hour * HOUR_MS + 10_000
    return lunobiz.History(client, desktop.store, wanted, now_ms, desktop.feed._known)  # type: ignore[arg-type]


def load(history: lunobiz.History, now_hour: int) -> list[lunobiz.LoadState]:
    """All pages."""
    states: list[lunobiz.LoadState] = []
    while (state := history.load_page(now_hour * HOUR_MS + 10_000)) is not None:
        states.append(state)
    return states


def hours_of(desktop: Desktop) -> list[int]:
    return [int(t) // HOUR_MS for t in desktop.store.candles("XBTZAR", 3600)[:, 0]]


def test_pages_go_down_from_now_and_their_number_is_known_before(desktop: Desktop) -> None:
    """100 days before midnight of day 110, 6 hours old: 2,406 hours are three pages, the oldest of 406."""
    client, now = Sparse(*range(3000)), 110 * 24 + 6
    states = load(history(desktop, client, 100, now), now)
    assert [(s.done, s.total) for s in states] == [(0, 3), (1, 3), (2, 3)]
    assert "XBTZAR" in states[0].words
    assert client.asked == [now - 1000, now - 2000, 240]
    assert hours_of(desktop) == list(range(240, now)), "the hour that is not over is left out"


def test_an_interrupted_fetch_goes_on_below_what_it_has(desktop: Desktop) -> None:
    client, now = Sparse(*range(3000)), 110 * 24 + 6
    broken = history(desktop, client, 100, now)
    assert broken.load_page(now * HOUR_MS) is not None
    desktop.start()  # a new session knows only the cache
    client.asked.clear()
    assert [(s.done, s.total) for s in load(history(desktop, client, 100, now), now)] == [(0, 2), (1, 2)]
    assert client.asked == [now - 2000, 240] and hours_of(desktop) == list(range(240, now))


def test_what_the_exchange_has_not_is_asked_for_once(desktop: Desktop) -> None:
    """Listed at hour 1,500, with two hours missing at 2,000: no page is asked for twice, not by a later evaluation."""
    client, now = Sparse(*range(1500, 2000), *range(2002, 3000)), 110 * 24 + 6
    assert len(load(history(desktop, client, 100, now), now)) == 3
    assert hours_of(desktop) == [*range(1500, 2000), *range(2002, now)]
    client.asked.clear()
    assert load(history(desktop, client, 100, now), now) == [] and client.asked == []
    later = now + 48
    assert len(load(history(desktop, client, 102, later), later)) == 1  # the two days since
    assert client.asked == [later - 1000] and hours_of(desktop)[-1] == later - 1
    assert len(load(history(desktop, client, 110, later), later)) == 1  # 8 days more at the old end
    assert client.asked == [later - 1000, 48]


def test_a_hole_in_the_cache_is_filled_from_above(desktop: Desktop) -> None:
    """Kept are 1,000 to 1,999 and 2,100 on: one page, from 1,100 to 2,099, and then one below 1,000."""
    desktop.store.save_rows("XBTZAR", 3600, rows_at(*range(1000, 2000), *range(2100, 110 * 24)))
    client, now = Sparse(*range(3000)), 110 * 24
    assert [s.total for s in load(history(desktop, client, 100, now), now)] == [2, 2]
    assert client.asked == [1100, 240] and hours_of(desktop) == list(range(240, now))


def test_only_markets_that_are_listed_and_asked_for_are_fetched(desktop: Desktop) -> None:
    found = desktop.feed.history(3600, 10, T0, ("XBTZAR", "NOTZAR"))
    assert found._wanted.pairs == ("XBTZAR",)
    assert desktop.feed.history(3600, 10, T0)._wanted.pairs == PAIRS


def test_days_of_history_by_pencil() -> None:
    """Hourly the strategies remember 62 days: 365 + 62 + 1, and 5 + 12 x 60 more."""
    gates = lunobiz.GateLimits()
    assert lunobiz.memory_days(3600) == 62
    assert (lunobiz.choice_days(gates, 3600), lunobiz.evaluation_days(gates, 3600)) == (428, 428 + 725)
