"""LEDGER: attempts on the same unseen days, chains, signatures, and every reason why a stored pass may not hold."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lunobiz
from lunobiz import (
    AttemptRow,
    Credentials,
    DataError,
    Evaluation,
    Gate,
    GateJob,
    GatePass,
    Link,
    LiveFacts,
    Market,
    Mode,
    Series,
    Settings,
    attempt_number,
    canonical,
    linked,
    lock_reasons,
)

DAY_MS = 86_400_000
NOW = 20_000 * DAY_MS
KEY = Credentials("key", "11" * 32)
OTHER_KEY = Credentials("key", "22" * 32)
PAIRS = ("ETHZAR", "XBTZAR")
CODE = "c0de"


# ---- attempts --------------------------------------------------------------------------------------


def look(name: str, first_day: int = 0, days: int = 720, data: str = "d") -> AttemptRow:
    return AttemptRow(name, data, first_day * DAY_MS, (first_day + days) * DAY_MS, 1)


def number(rows: list[AttemptRow], name: str = "me", first_day: int = 0, days: int = 720) -> int:
    return attempt_number(rows, name, first_day * DAY_MS, (first_day + days) * DAY_MS)


@pytest.mark.parametrize(
    ("rows", "first_day", "wanted"),
    [
        ([], 0, 1),
        ([look("me")], 0, 1),  # a repeat
        ([look("me"), look("me"), look("me")], 30, 1),  # the monthly roll of an unchanged configuration
        ([look("a"), look("b")], 0, 3),  # 1 + 1 and this one
        ([look("a"), look("a"), look("b"), look("a")], 0, 3),  # a configuration counts once
        ([look("a"), look("me"), look("b")], 0, 3),  # this one is among them
        ([look("a"), look("b"), look("c"), look("me")], 360, 2),  # 4 x 360/720 = 2: halved
        ([look("a"), look("b")], 90, 3),  # 2 x 630/720 = 1.75 and this one: 2.75
        ([look("a")], 180, 2),  # 540/720 = 0.75 and this one: 1.75
        ([look(name) for name in "abcdefgh"], 361, 1),  # 359 of 720 days: less than half, so other data
        ([look(name) for name in "abcdefgh"], 720, 1),
        ([look("a", 0, 480)], 0, 2),  # 480/720 and this one: 1.67
        ([look("a", 0, 359)], 0, 1),
        ([look("a", -400, 2000)], 0, 2),  # it saw all of them and more
        ([look("a", 0, 240), look("a", 480, 240)], 0, 2),  # 480 of 720 in two looks: 0.67
        ([look("a", 0, 300), look("a", 0, 300), look("a", 100, 200)], 0, 1),  # 300 of 720, seen three times
        ([look("a", data="other file")], 0, 2),  # the days count, not the file they came in
    ],
)
def test_attempts_by_pencil(rows: list[AttemptRow], first_day: int, wanted: int) -> None:
    assert number(rows, first_day=first_day) == wanted


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(-800, 800), st.integers(1, 1000)), max_size=12))
def test_attempts_never_fall_below_one_nor_when_a_look_is_added(spans: list[tuple[str, int, int]]) -> None:
    rows = [look(*span) for span in spans]
    counts = [number(rows[:n]) for n in range(len(rows) + 1)]
    assert counts[0] == 1 and counts == sorted(counts)
    assert counts[-1] <= 1 + len({row.config_hash for row in rows})
    assert number(rows) == number(rows[::-1])


def test_an_empty_span_is_the_first_attempt() -> None:
    assert attempt_number([look("a")], "me", 0, 0) == 1


def test_a_look_is_known_by_what_it_saw_not_by_when() -> None:
    rows = [look("a")]
    assert lunobiz.is_known_look(rows, replace(look("a"), time_ms=99))
    assert not lunobiz.is_known_look(rows, look("a", data="other"))
    assert not lunobiz.is_known_look(rows, look("a", 30))


def test_a_look_that_cannot_be_read_is_not_passed_over() -> None:
    rows = (look("a"), look("b"))
    links = chain(*(canonical(row) for row in rows))
    wanted = tuple(replace(row, time_ms=link.time_ms) for row, link in zip(rows, links, strict=True))
    assert lunobiz.read_attempts(links) == wanted
    for payload in ("", "[]", "{}", canonical({**json.loads(links[0].payload), "unseen_to_ms": None}), "[" * 99_999):
        with pytest.raises(DataError, match="ledger of attempts"):
            lunobiz.read_attempts([*links, linked("", 1, payload)])


# ---- chains ----------------------------------------------------------------------------------------


def chain(*payloads: str) -> tuple[Link, ...]:
    links: list[Link] = []
    for n, payload in enumerate(payloads):
        links.append(linked(links[-1].hash if links else "", NOW + n, payload))
    return tuple(links)


def test_the_hash_of_a_link_by_hand() -> None:
    first = linked("", 7, "x")
    assert first == Link(7, "x", "", hashlib.sha256(b"\n7\nx").hexdigest())
    assert linked(first.hash, 8, "y").hash == hashlib.sha256(f"{first.hash}\n8\ny".encode()).hexdigest()


def test_every_change_of_a_chain_breaks_it() -> None:
    links = chain("a", "b", "c")
    assert lunobiz.is_chain_whole(()) and lunobiz.is_chain_whole(links) and lunobiz.is_chain_whole(links[:2])
    for n, link in enumerate(links):
        for wrong in (link._replace(time_ms=1), link._replace(payload="z"), link._replace(hash="0" * 64),
                      link._replace(prev_hash="0" * 64)):  # fmt: skip
            assert not lunobiz.is_chain_whole([*links[:n], wrong, *links[n + 1 :]])
    assert not lunobiz.is_chain_whole(links[1:])
    assert not lunobiz.is_chain_whole([links[0], links[2]])
    assert not lunobiz.is_chain_whole([links[1], links[0]])


# ---- a pass that holds -----------------------------------------------------------------------------


def market(pair: str) -> Market:
    return Market(pair, pair[:3], "ZAR", 2, 6, 0.001, 1e6, 0.01, 1e9, maker_fee=0.004, taker_fee=0.006)


def series(seed: int = 1) -> Series:
    rng = np.random.default_rng(seed)
    times = (20_000 - 100 + np.arange(100)) * float(DAY_MS)
    prices = rng.uniform(90, 110, 100)
    return lunobiz.series_of(np.column_stack([times, prices, prices + 1, prices - 1, prices, prices]), 86_400)


def settings() -> Settings:
    plain = Settings()
    return replace(plain, schedule=replace(plain.schedule, pairs=PAIRS))


def job(source: str = "luno") -> GateJob:
    candles = tuple((market(pair), series(n)) for n, pair in enumerate(PAIRS))
    return GateJob(candles, settings(), NOW, 1, source=source, is_self_tested=True, self_test_id="T-1")


GATES = tuple(Gate(f"G{n}", f"Gate {n}", "PASS", "> 0", "0.1", 0.1, "It passed.") for n in range(10))


def evaluation() -> Evaluation:
    return Evaluation(GATES, (), (), "UNLOCKED", 1, 0.5, NOW - 720 * DAY_MS, NOW, "{}", "luno")


ATTEMPTS = chain(canonical(look("a")))


def row(changes: Callable[[GatePass], GatePass] = lambda p: p, source: str = "luno") -> Link:
    """A stored pass, signed, with something changed before it was signed."""
    held = changes(lunobiz.gate_pass(job(source), evaluation(), CODE))
    return linked("", NOW, lunobiz.sealed(canonical(held), "", NOW, ATTEMPTS[-1].hash, KEY))


def facts() -> LiveFacts:
    fees = tuple((pair, 0.004, 0.006) for pair in PAIRS)
    hashes = frozenset({ATTEMPTS[-1].hash})
    return LiveFacts(settings(), Mode.PAPER, NOW + DAY_MS, KEY, CODE, fees, is_chain_whole=True, attempt_hashes=hashes)


def limits(**changes: object) -> LiveFacts:
    held = settings()
    return replace(facts(), settings=replace(held, limits=replace(held.limits, **changes)))  # type: ignore[arg-type]


def schedule(**changes: object) -> LiveFacts:
    held = settings()
    return replace(facts(), settings=replace(held, schedule=replace(held.schedule, **changes)))  # type: ignore[arg-type]


def test_a_pass_holds_for_what_it_was_found_for() -> None:
    assert lock_reasons(row(), facts()) == ()
    assert lock_reasons(row(), replace(facts(), now_ms=NOW + 30 * DAY_MS)) == ()
    assert lock_reasons(row(), replace(facts(), mode=Mode.LIVE)) == ()


def test_the_payload_has_all_that_the_pass_was_found_for() -> None:
    held = lunobiz.gate_pass(job(), evaluation(), CODE)
    assert held.data == tuple(
        (pair, lunobiz.series_hash(series(n)), NOW - 100 * DAY_MS, NOW) for n, pair in enumerate(PAIRS)
    )
    assert held.fees == (("ETHZAR", 0.004, 0.006), ("XBTZAR", 0.004, 0.006))
    assert (held.size, held.attempt, held.self_test_id, held.source) == (0.5, 1, "T-1", "luno")
    assert dict(held.limits)["limits.daily_loss_cap"] == 0.03 and dict(held.limits)["gates.worst_day"] == 0.05
    assert held.evaluation_hash == hashlib.sha256(b"{}").hexdigest()
    assert lunobiz.read_pass(canonical(held)) == held


def test_equal_inputs_give_equal_bytes() -> None:
    texts = {canonical(lunobiz.gate_pass(job(), evaluation(), CODE)) for _ in range(3)}
    assert len(texts) == 1
    assert row() == row()


# ---- each reason to lock ---------------------------------------------------------------------------


def test_without_a_row_it_is_locked() -> None:
    assert lock_reasons(None, facts()) == (lunobiz.NO_ROW,)
    assert lunobiz.live_locks((), (), facts()) == (lunobiz.NO_ROW,)


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (lambda: replace(facts(), now_ms=NOW + 31 * DAY_MS), "31 days old; it holds for 30"),
        (lambda: replace(facts(), now_ms=NOW + 30 * DAY_MS + 1), "30 days old"),
        (lambda: replace(facts(), now_ms=NOW + 36 * DAY_MS), "last unseen candle is 36 days old"),
        (lambda: replace(facts(), now_ms=NOW - 1), "clock is earlier"),
        (lambda: replace(facts(), code_hash="other"), "code that decides has changed"),
        (lambda: replace(facts(), code_hash=""), "code that decides has changed"),
        (lambda: replace(facts(), key=OTHER_KEY), "edited, or another installation"),
        (lambda: replace(facts(), key=Credentials()), "signing key"),
        (lambda: replace(facts(), is_chain_whole=False), "chain of evaluations and attempts is broken"),
        (lambda: replace(facts(), attempt_hashes=frozenset()), "lacks the look"),
        (lambda: replace(facts(), mode=Mode.DEMO), "This is DEMO"),
        (lambda: replace(facts(), mode=Mode.REPLAY), "This is REPLAY"),
        (lambda: replace(facts(), mode=Mode.BACKTEST), "This is BACKTEST"),
        (lambda: replace(facts(), settings=replace(settings(), exchange_url="https://x.test")), "TEST EXCHANGE"),
        (lambda: replace(facts(), fees=(("ETHZAR", 0.004, 0.006),)), "fees are not known for XBTZAR"),
        (lambda: replace(facts(), fees=()), "fees are not known for ETHZAR, XBTZAR"),
        (lambda: replace(facts(), fees=(("ETHZAR", 0.0041, 0.006), ("XBTZAR", 0.0, 0.0))), "fees of ETHZAR are higher"),
        (lambda: replace(facts(), fees=(("ETHZAR", 0.0, 0.0), ("XBTZAR", 0.0, 0.0061))), "fees of XBTZAR are higher"),
        (lambda: replace(facts(), fees=(("ETHZAR", 0.0, math.nan), ("XBTZAR", 0.0, 0.0))), "fees of ETHZAR are higher"),
        (lambda: schedule(pairs=("XBTZAR",)), "markets have changed"),
        (lambda: schedule(pairs=(*PAIRS, "XRPZAR")), "markets have changed"),
        (lambda: schedule(pairs=()), "markets have changed"),
        (lambda: schedule(timeframes=(3600,)), "Timeframes, costs or other settings"),
        (lambda: replace(facts(), settings=replace(settings(), costs=lunobiz.Costs(slippage=0.002))), "costs"),
        (lambda: replace(facts(), settings=replace(settings(), params=lunobiz.StrategyParams(atr=25))), "settings"),
    ],
)  # fmt: skip
def test_what_changed_since_locks(now: Callable[[], LiveFacts], says: str) -> None:
    assert says in " ".join(lock_reasons(row(), now()))


def test_one_change_gives_one_sentence() -> None:
    assert lock_reasons(row(), replace(facts(), code_hash="x")) == (
        "The code that decides has changed since the evaluation.",
    )
    assert len(lock_reasons(row(), replace(facts(), now_ms=NOW + 31 * DAY_MS))) == 1
    assert all(reason.endswith(".") for reason in lock_reasons(row(), replace(facts(), mode=Mode.DEMO, fees=())))


def test_a_changed_list_of_strategies_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = row()
    monkeypatch.setattr(lunobiz, "parameter_sets", lambda: (lunobiz.StrategyParams(breakout=77),))
    assert lock_reasons(stored, facts()) == ("The list of strategies has changed since the evaluation.",)


WAYS_LIMITS_LOOSEN = [  # name, looser, tighter, by hand from what each limit means
    ("risk_per_trade", 0.006, 0.004), ("daily_loss_cap", 0.04, 0.02), ("weekly_loss_cap", 0.07, 0.05),
    ("cooldown_hours", 11.0, 13.0), ("max_positions", 4, 2), ("max_exposure", 0.7, 0.5),
    ("max_asset_exposure", 0.3, 0.2), ("max_group_exposure", 0.5, 0.3), ("max_spread", 0.005, 0.003),
    ("min_volume_24h", 0.9e6, 1.1e6), ("min_confidence", 0.5, 0.6), ("min_edge", 1.9, 2.1),
    ("orders_per_minute", 7, 5), ("orders_per_day", 101, 99), ("round_trips_per_day", 11, 9),
    ("price_collar", 0.03, 0.01),
]  # fmt: skip


@pytest.mark.parametrize(("name", "looser", "tighter"), WAYS_LIMITS_LOOSEN)
def test_loosening_a_limit_locks_and_tightening_never_does(name: str, looser: float, tighter: float) -> None:
    assert lock_reasons(row(), limits(**{name: tighter})) == ()
    (reason,) = lock_reasons(row(), limits(**{name: looser}))
    assert f"{looser}" in reason and (name in reason or name.upper() in reason)


def test_each_limit_has_been_looked_at() -> None:
    known = {f"limits.{name}" for name, *_ in WAYS_LIMITS_LOOSEN} | {"limits.daily_cap_action"}
    assert {name for name in lunobiz.limit_values(Settings()) if name.startswith("limits.")} == known
    assert set(lunobiz.TIGHTER) - known == {"gates.max_drawdown", "gates.worst_day", "gates.min_round_trips"}


def test_the_action_at_the_cap_may_only_become_safer() -> None:
    with_hold = row(lambda p: replace(p, limits=tuple(
        (name, "hold" if name == "limits.daily_cap_action" else value) for name, value in p.limits)))  # fmt: skip
    assert lock_reasons(with_hold, facts()) == ()  # hold, then close
    assert "LUNOBIZ_DAILY_CAP_ACTION is hold" in lock_reasons(row(), limits(daily_cap_action="hold"))[0]


@pytest.mark.parametrize(
    ("name", "looser", "tighter"),
    [("max_drawdown", 0.2, 0.1), ("worst_day", 0.06, 0.04), ("min_round_trips", 29, 31)],
)
def test_the_owners_thresholds_may_be_tightened(name: str, looser: float, tighter: float) -> None:
    def now(value: float) -> LiveFacts:
        held = settings()
        return replace(facts(), settings=replace(held, gates=replace(held.gates, **{name: value})))  # type: ignore[arg-type]

    assert lock_reasons(row(), now(tighter)) == ()
    assert len(lock_reasons(row(), now(looser))) == 1


def test_a_limit_without_a_known_direction_may_not_change_at_all() -> None:
    assert lunobiz.is_tightened("limits.new", 1.0, 1.0)
    assert not lunobiz.is_tightened("limits.new", 1.0, 0.9) and not lunobiz.is_tightened("limits.new", 1.0, 1.1)
    assert not lunobiz.is_tightened("limits.max_spread", None, 0.1)
    assert not lunobiz.is_tightened("limits.max_spread", 0.1, None)
    assert not lunobiz.is_tightened("limits.new", None, None)
    assert not lunobiz.is_tightened("limits.max_spread", 0.1, math.nan)
    assert not lunobiz.is_tightened("limits.daily_cap_action", "close", "whatever")


def test_a_limit_left_out_of_the_row_locks() -> None:
    stored = row(lambda p: replace(p, limits=p.limits[1:]))
    assert len(lock_reasons(stored, facts())) == 1
    added = row(lambda p: replace(p, limits=(*p.limits, ("limits.zeal", 1.0))))
    assert "limits.zeal is gone" in lock_reasons(added, facts())[0]


@pytest.mark.parametrize("result", ["FAIL", "WAIT", "", "pass", "PASS "])
@pytest.mark.parametrize("which", range(10))
def test_each_gate_must_pass(which: int, result: str) -> None:
    changed = tuple(replace(g, result=result) if n == which else g for n, g in enumerate(GATES))
    assert lock_reasons(row(lambda p: replace(p, gates=changed)), facts()) == (
        f"1 of 10 gates did not pass: G{which} Gate {which}.",
    )


@pytest.mark.parametrize("which", range(10))
def test_a_gate_that_is_missing_has_not_passed(which: int) -> None:
    fewer = tuple(g for n, g in enumerate(GATES) if n != which)
    assert lock_reasons(row(lambda p: replace(p, gates=fewer)), facts()) == (
        f"1 of 10 gates did not pass: G{which} (missing).",
    )


def test_a_gate_told_twice_counts_as_the_worse() -> None:
    twice = (*GATES, replace(GATES[3], result="FAIL"))
    assert "G3 Gate 3" in lock_reasons(row(lambda p: replace(p, gates=twice)), facts())[0]
    assert len(lock_reasons(row(lambda p: replace(p, gates=())), facts())) == 1


@pytest.mark.parametrize(
    ("source", "says"),
    [("demo", "the demo market"), ("test exchange", "the test exchange"), ("recorded", "recorded or imported"),
     ("", "recorded or imported"), ("LUNO", "recorded or imported"), ("luno ", "recorded or imported")],
)  # fmt: skip
def test_other_data_than_lunos_never_unlocks(source: str, says: str) -> None:
    (reason,) = lock_reasons(row(source=source), facts())
    assert says in reason


@pytest.mark.parametrize(
    "changes",
    [{"size": 0.099}, {"size": 0.0}, {"size": 1.01}, {"size": -1.0}, {"attempt": 0}, {"self_test_id": ""}],
)
def test_a_row_without_size_attempt_or_self_test_locks(changes: dict[str, object]) -> None:
    assert "no safe size" in lock_reasons(row(lambda p: replace(p, **changes)), facts())[0]  # type: ignore[arg-type]


def test_a_row_that_is_too_good_to_be_believed_locks_with_its_own_words() -> None:
    alarm = "ALARM: +2.00% a day is too good"
    assert lock_reasons(row(lambda p: replace(p, alarm=alarm)), facts()) == (alarm,)


def test_a_gate_without_a_margin_has_passed_like_any_other() -> None:
    """G9 has no number of its own."""
    gates = (*GATES[:9], replace(GATES[9], margin=None))
    assert lock_reasons(row(lambda p: replace(p, gates=gates)), facts()) == ()


@pytest.mark.parametrize(
    "changes", [{"unseen_from_ms": 0}, {"unseen_from_ms": NOW}, {"unseen_to_ms": NOW + 2 * DAY_MS}, {"unseen_to_ms": 0}]
)
def test_a_row_without_unseen_days_in_the_past_locks(changes: dict[str, int]) -> None:
    assert "no unseen days" in " ".join(lock_reasons(row(lambda p: replace(p, **changes)), facts()))  # type: ignore[arg-type]


# ---- edited rows -----------------------------------------------------------------------------------


def test_the_signature_by_hand() -> None:
    stored = row()
    seal = lunobiz.read_seal(stored)
    assert seal is not None
    text = json.dumps(["", NOW, ATTEMPTS[-1].hash, seal.payload], separators=(",", ":"))
    assert seal.hmac == hmac.new(b"11" * 32, text.encode(), "sha256").hexdigest() == lunobiz.sign(text, KEY)


def test_a_row_is_signed_for_its_time_and_place() -> None:
    stored = row()
    assert lunobiz.is_signed(stored, KEY) and not lunobiz.is_signed(stored, OTHER_KEY)
    assert not lunobiz.is_signed(stored, Credentials())
    assert lunobiz.FORGED in lock_reasons(linked("", NOW + 1, stored.payload), facts())
    assert lunobiz.FORGED in lock_reasons(linked("ab", NOW, stored.payload), facts())


@given(st.integers(0, 10**6), st.characters(min_codepoint=32, max_codepoint=126))
def test_no_edit_of_a_stored_row_unlocks(place: int, letter: str) -> None:
    """A chain made anew around the edit, as someone with the database would."""
    text = row().payload
    at = place % len(text)
    edited = text[:at] + letter + text[at + 1 :]
    assert bool(lock_reasons(linked("", NOW, edited), facts())) == (edited != text)


def leaves(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to everything inside a JSON value."""
    items = list(value.items()) if isinstance(value, dict) else []
    items = list(enumerate(value)) if isinstance(value, list) else items
    return [found for key, child in items for found in ((*path, key), *leaves(child, (*path, key)))]


PAYLOAD = canonical(lunobiz.gate_pass(job(), evaluation(), CODE))
PLACES = leaves(json.loads(PAYLOAD))


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@pytest.mark.parametrize("wrong", [None, True, "", "x", -1, 0.5, 1e999, [], {}, "gone"])
def test_nothing_missing_or_of_another_kind_ever_opens(wrong: object) -> None:
    """Everything in a payload, one at a time, left out or made something else; and signed properly."""
    for place in PLACES:
        value = json.loads(PAYLOAD)
        *way, last = place
        inner = value
        for key in way:
            inner = inner[key]
        if wrong == "gone":
            del inner[last]
        elif (isinstance(inner[last], str) and isinstance(wrong, str)) or (is_number(inner[last]) and is_number(wrong)):
            continue  # of the same kind: the tests above
        elif last == "margin" and wrong is None:
            continue  # the one thing that may be unknown
        else:
            inner[last] = wrong
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        assert lock_reasons(signed(text), facts()), (place, wrong)


def signed(payload: str) -> Link:
    """Any text as a properly signed row."""
    return linked("", NOW, lunobiz.sealed(payload, "", NOW, ATTEMPTS[-1].hash, KEY))


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "1", '{"gates":[]}', "[" * 99_999, PAYLOAD + " ", "{" + PAYLOAD]
)
def test_a_payload_that_is_none_locks(text: str) -> None:
    assert lunobiz.read_pass(text) is None
    assert lunobiz.UNREADABLE in lock_reasons(signed(text), facts())
    assert lunobiz.UNREADABLE in lock_reasons(linked("", NOW, text), facts())


def test_more_than_a_pass_is_no_pass() -> None:
    value = json.loads(PAYLOAD) | {"unlocked": True}
    assert lunobiz.read_pass(canonical(value)) is None


# ---- which row counts ------------------------------------------------------------------------------


def stored_after(
    links: tuple[Link, ...], source: str, result: str = "PASS", key: Credentials = KEY
) -> tuple[Link, ...]:
    """The rows with one more."""
    gates = tuple(replace(g, result=result) for g in GATES)
    held = replace(lunobiz.gate_pass(job(source), evaluation(), CODE), gates=gates)
    before = links[-1].hash if links else ""
    time_ms = NOW + len(links)
    return (*links, linked(before, time_ms, lunobiz.sealed(canonical(held), before, time_ms, ATTEMPTS[-1].hash, key)))


def test_the_newest_row_of_luno_counts() -> None:
    passed = stored_after((), "luno")
    assert lunobiz.live_locks(passed, ATTEMPTS, facts()) == ()
    failed = stored_after(passed, "luno", "FAIL")
    assert "10 of 10 gates" in lunobiz.live_locks(failed, ATTEMPTS, facts())[0]
    assert lunobiz.live_locks(stored_after(failed, "luno"), ATTEMPTS, facts()) == ()


def test_a_study_of_files_neither_unlocks_nor_locks() -> None:
    only = stored_after((), "recorded")
    assert "recorded or imported" in lunobiz.live_locks(only, ATTEMPTS, facts())[0]
    assert lunobiz.live_locks(stored_after(stored_after((), "luno"), "recorded", "FAIL"), ATTEMPTS, facts()) == ()
    over = stored_after(stored_after((), "luno", "FAIL"), "recorded")
    assert "10 of 10 gates" in lunobiz.live_locks(over, ATTEMPTS, facts())[0]


def test_a_study_that_we_did_not_sign_hides_nothing() -> None:
    forged = stored_after(stored_after((), "luno"), "recorded", key=OTHER_KEY)
    assert lunobiz.FORGED in lunobiz.live_locks(forged, ATTEMPTS, facts())


@pytest.mark.parametrize(("size", "share"), [(0.5, 0.5), (1.0, 1.0), (1.01, 0.0), (0.0, 0.0), (-0.5, 0.0)])
def test_live_trades_the_share_that_the_pass_found_safe(size: float, share: float) -> None:
    """More than all, or less than nothing, is no share."""
    assert lunobiz.safe_share((row(lambda p: replace(p, size=size)),), KEY) == share


def test_without_a_pass_that_we_signed_there_is_no_share() -> None:
    assert lunobiz.safe_share((), KEY) == 0.0
    assert lunobiz.safe_share((row(),), OTHER_KEY) == 0.0
    assert lunobiz.safe_share((row(),), Credentials()) == 0.0
    assert lunobiz.safe_share((signed("{}"),), KEY) == 0.0
    assert lunobiz.safe_share((linked("", NOW, "{}"),), KEY) == 0.0


def test_the_share_is_that_of_the_row_that_counts() -> None:
    """A study of files after it, of a quarter, changes nothing; one that somebody else signed takes it away."""
    passed = stored_after((), "luno")
    held, before = replace(lunobiz.gate_pass(job("recorded"), evaluation(), CODE), size=0.25), passed[-1].hash
    sealed = lunobiz.sealed(canonical(held), before, NOW + 1, ATTEMPTS[-1].hash, KEY)
    assert lunobiz.safe_share((*passed, linked(before, NOW + 1, sealed)), KEY) == 0.5
    assert lunobiz.safe_share(stored_after(passed, "recorded", key=OTHER_KEY), KEY) == 0.0


def test_a_row_without_a_seal_is_nobodys_study() -> None:
    """It hides the pass before it, and locks."""
    passed = stored_after((), "luno")
    broken = (*passed, linked(passed[-1].hash, NOW + 1, "{}"))
    assert lunobiz.safe_share(broken, KEY) == 0.0
    assert lunobiz.UNREADABLE in lunobiz.live_locks(broken, ATTEMPTS, facts())


def test_a_broken_chain_of_either_kind_locks() -> None:
    rows = stored_after(stored_after((), "luno", "FAIL"), "luno")
    assert lunobiz.live_locks(rows, ATTEMPTS, facts()) == ()
    assert lunobiz.BROKEN in lunobiz.live_locks(rows[1:], ATTEMPTS, facts())
    assert lunobiz.BROKEN in lunobiz.live_locks(rows, (ATTEMPTS[0]._replace(payload="{}"),), facts())
    assert lunobiz.CUT_OFF in lunobiz.live_locks(rows, (), facts())


# ---- what the owner is asked ------------------------------------------------------------------------


def test_the_words_before_live_name_the_limits_in_force() -> None:
    """The plain limits: half a per cent a trade, 3 % a day, 6 % a week, 60 % in all, 25 % in one asset."""
    assert lunobiz.live_words(settings(), 10) == (
        ("Markets", "ETHZAR, XBTZAR"), ("Counter", "ZAR"), ("Risk per trade", "0.50% of equity"),
        ("Loss caps", "3.0% a day, 6.0% a week"), ("Exposure", "60% in all, 25% in one asset, 3 positions"),
        ("First orders", "the smallest Luno takes, for 10 round trips; then larger step by step"),
    )  # fmt: skip


# ---- hashes ----------------------------------------------------------------------------------------


def test_the_code_is_what_stands_above_system() -> None:
    program = "a = 1\n# ===\n# SYSTEM | the machine\n# shell\nb = 2\n"
    assert lunobiz.pure_source(program) == "a = 1\n# ==="
    assert lunobiz.code_hash(program) == hashlib.sha256(b"a = 1\n# ===").hexdigest()
    assert lunobiz.code_hash(program) == lunobiz.code_hash(program.replace("\n", "\r\n"))
    assert lunobiz.code_hash(program) == lunobiz.code_hash(program.replace("b = 2", "b = 3"))
    assert lunobiz.code_hash(program) != lunobiz.code_hash(program.replace("a = 1", "a = 2"))
    assert lunobiz.code_hash("a = 1\n") == "" == lunobiz.code_hash(program + program)


def test_a_hash_of_candles_covers_every_number() -> None:
    held = series()
    whole = lunobiz.series_hash(held)
    assert whole == lunobiz.series_hash(series()) != lunobiz.series_hash(held.part(0, 99))
    for name in ("opened", "open", "high", "low", "close", "volume"):
        column = getattr(held, name).copy()
        column[50] += 1
        assert lunobiz.series_hash(replace(held, **{name: column})) != whole
    assert lunobiz.series_hash(replace(held, seconds=60)) != whole


def test_a_look_names_what_is_tried() -> None:
    span = (NOW - 720 * DAY_MS, NOW)
    first = lunobiz.look_of(job(), CODE, span, 5)
    assert (first.unseen_from_ms, first.unseen_to_ms, first.time_ms) == (*span, 5)
    assert lunobiz.look_of(job(), "other", span, 5).config_hash != first.config_hash
    other = replace(job(), settings=limits(max_positions=2).settings)
    assert lunobiz.look_of(other, CODE, span, 5).config_hash != first.config_hash
    wish = replace(job(), settings=schedule(target_daily_return=0.01).settings)
    assert lunobiz.look_of(wish, CODE, span, 5) == first
    sets = replace(job(), sets=(lunobiz.StrategyParams(),))
    assert lunobiz.look_of(sets, CODE, span, 5).config_hash != first.config_hash
    files = replace(job(), hashes=(("ETHZAR", "aa"), ("XBTZAR", "bb")))
    assert lunobiz.look_of(files, CODE, span, 5).data_hash != first.data_hash


# ---- the self-test's own key --------------------------------------------------------------------------------


PROGRAM = "head\n# ERRORS | what\n# GATES | why\ncode\n# LEDGER | later\nledger\n# SYSTEM | shell\n"


def test_the_method_is_the_code_up_to_the_gates_and_the_list_of_sets() -> None:
    sets = lunobiz.parameter_sets()
    method = lunobiz.method_hash(PROGRAM, sets)
    assert len(method) == 64
    assert method == lunobiz.method_hash(PROGRAM.replace("ledger", "other"), sets)  # below the gates
    assert method == lunobiz.method_hash(PROGRAM.replace("\n", "\r\n"), sets)
    assert method == lunobiz.method_hash(PROGRAM.replace("head", "map of sections"), sets)
    assert method != lunobiz.method_hash(PROGRAM.replace("code", "coda"), sets)
    assert method != lunobiz.method_hash(PROGRAM, sets[:-1])
    assert lunobiz.method_hash("no such section", sets) == ""


def test_the_program_tells_its_own_method() -> None:
    assert lunobiz.method_hash(lunobiz.program_source(), lunobiz.parameter_sets())


# ---- what PAPER counts for G8 ----------------------------------------------------------------------

DAY = 20_000
TWO = lunobiz.Schedule(pairs=PAIRS, timeframes=(14_400,))  # six candles a day each


def mark(days: float, configuration: str = "mine") -> lunobiz.PaperMark:
    return lunobiz.PaperMark(round((DAY + days) * DAY_MS), configuration)


def day_facts(days: int, *marks: lunobiz.PaperMark, **changes: object) -> lunobiz.PaperFacts:
    """Whole days of PAPER that earned 1/1024 each, from DAY on, with one fill at its limit on the first of them."""
    decided = {(pair, 14_400, DAY + n): 6 for pair in PAIRS for n in range(days)}
    facts = lunobiz.PaperFacts(marks or (mark(-0.5),), decided, {DAY + n: 1 / 1024 for n in range(days)},
                               (paper_fill(),))  # fmt: skip
    return facts._replace(**changes)  # type: ignore[arg-type]


def paper_fill(kind: str = "entry", price: float = 100.0, **changes: object) -> lunobiz.PaperFill:
    side = lunobiz.Side.BUY if "entry" in kind else lunobiz.Side.SELL
    fill = lunobiz.PaperFill(DAY * DAY_MS + 5, lunobiz.OrderKind(kind), side, price, 2.0, 100.0, 95.0)
    return fill._replace(**changes)  # type: ignore[arg-type]


def counted(facts: lunobiz.PaperFacts, paper_days: int = 60) -> lunobiz.PaperRecord:
    gates = lunobiz.GateLimits(paper_days=paper_days)
    return lunobiz.paper_days(facts, Settings(schedule=TWO, gates=gates), "mine")


def test_twelve_days_of_paper_are_twelve_days_and_their_sum() -> None:
    assert counted(day_facts(12)) == lunobiz.PaperRecord(12, 12 / 1024, True)


def test_only_whole_days_of_this_configuration_count() -> None:
    """Days 0 to 9: mine from noon of 2, another from 5.0 on, mine again at 6.25, not chosen at 8.5."""
    marks = (mark(-1, "other"), mark(2.5), mark(5, "other"), mark(6.25), mark(8.5, ""))
    assert counted(day_facts(10, *marks)).days == 3  # 3, 4 and 7
    again = (mark(-1), mark(1.5), mark(4.0))  # restarts change nothing
    assert counted(day_facts(10, *again)).days == 10
    assert counted(day_facts(10, mark(0.1))).days == 9
    assert lunobiz.paper_days(day_facts(10, mark(-1, "")), Settings(schedule=TWO), "").days == 0


def test_a_bad_day_cannot_be_dropped_by_stopping_the_bot() -> None:
    """Of four days the second has half its decisions: its loss counts, its gain does not; before the first nothing."""
    facts = day_facts(4)
    facts = facts._replace(decided={**facts.decided, ("XBTZAR", 14_400, DAY + 1): 3})
    earned = {DAY - 1: -0.5, DAY: 0.125, DAY + 2: 0.25, DAY + 3: 0.125}
    lost = counted(facts._replace(results={**earned, DAY + 1: -0.375}))
    assert (lost.days, lost.total) == (3, 0.125)  # 0.125 - 0.375 + 0.25 + 0.125
    won = counted(facts._replace(results={**earned, DAY + 1: 0.375}))
    assert (won.days, won.total) == (3, 0.5)
    newest = counted(facts._replace(results={**earned, DAY + 1: -0.375}), 2)
    assert (newest.days, newest.total) == (2, 0.375)  # days 2 and 3; what was lost before them is over


def test_a_day_with_too_few_decisions_in_one_market_does_not_count() -> None:
    """5 of 6 are 83 %; of 24, 23 are 96 % and 22 are 92 %."""
    facts = day_facts(3)
    assert counted(facts._replace(decided={**facts.decided, ("XBTZAR", 14_400, DAY + 1): 5})).days == 2
    hourly = lunobiz.Schedule(pairs=PAIRS, timeframes=(3600,))
    for rows, share in ((24, 1.0), (23, 23 / 24), (22, 22 / 24)):
        decided = {("ETHZAR", 3600, DAY): 24, ("XBTZAR", 3600, DAY): rows}
        assert lunobiz.processed_share(decided, hourly, DAY) == pytest.approx(share)
    both = lunobiz.Schedule(pairs=PAIRS, timeframes=(14_400, 3600))
    assert lunobiz.processed_share(facts.decided, both, DAY) == 0
    assert counted(day_facts(3, results={DAY: 0.5, DAY + 2: 0.25})) == lunobiz.PaperRecord(2, 0.75, True)


def test_no_more_days_are_summed_than_are_asked_for() -> None:
    facts = day_facts(5, results={DAY + n: 1.0 * 2**n for n in range(5)})
    assert counted(facts, 3) == lunobiz.PaperRecord(3, 4.0 + 8 + 16, False)  # the only fill was before them


@pytest.mark.parametrize(
    ("fill", "wanted"),
    [
        (paper_fill(price=100.1), 0.001),  # beyond its own limit
        (paper_fill(price=99.0), -0.01),
        (paper_fill("taker entry", 100.0 / 1.002), -0.001),  # at the ask that the limit tells, 0.1 % were assumed
        (paper_fill("protection", 94.05), 0.01 - 0.001),
        (paper_fill("exit", 100.0, limit=98.0), -0.001),  # at the bid 100, the limit lies 2 % below
        (paper_fill("exit", 99.5, limit=98.0), 0.005 - 0.001),
    ],
)
def test_what_a_fill_cost_beyond_what_is_assumed(fill: lunobiz.PaperFill, wanted: float) -> None:
    assert lunobiz.excess_cost(fill, lunobiz.Costs()) == pytest.approx(wanted)


def test_costs_are_weighed_by_value_and_unknown_is_not_within() -> None:
    costs = lunobiz.Costs()
    assert not lunobiz.is_within_costs((), costs)
    assert not lunobiz.is_within_costs([paper_fill(limit=0.0)], costs), "its order is not known"
    free, dear = paper_fill(), paper_fill("protection", 94.05)  # 0.9 % of 94.05 x 2
    assert lunobiz.is_within_costs([free._replace(volume=20.0), dear], costs)  # 0.0169 / 21.9 = 0.08 %
    assert not lunobiz.is_within_costs([free, dear], costs)  # 0.44 %
    assert lunobiz.is_within_costs([free, dear], replace(costs, slippage=0.005))  # (0 + 0.5 % x 1.88) / 3.88 = 0.24 %
