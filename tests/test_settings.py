"""SETTINGS: every field at its ends and just outside them, wrong names, absurd wishes, and secrets that stay hidden."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import pprint
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lunobiz
from lunobiz import (
    DURATIONS_S,
    FIELDS,
    PREFIX,
    Costs,
    Credentials,
    Field,
    GateLimits,
    Notices,
    RiskLimits,
    Schedule,
    Settings,
    SettingsError,
    StrategyParams,
    config_hash,
    env_example,
    parse_read_key,
    parse_settings,
    plain_number,
    telegram_token,
    unknown_names,
)

NUMBERS = tuple(f for f in FIELDS if f.kind in ("float", "int"))
SECRET = "nobody-may-see-this"
KEY_ID = "key-id-nobody-may-see"
ODD_TEXT = st.text("0123456789,. -_eE+XBTZARhtps:/yesno\n\t\u0663\u0966\uff12²½ß\u00a0\x00", max_size=30)
EXAMPLE = Path(__file__).resolve().parents[1] / ".env.example"


def named(name: str) -> Field:
    """The field of this name."""
    return next(f for f in FIELDS if f.name == name)


def value_of(settings: Settings, spec: Field) -> object:
    """What a field has set."""
    value: object = settings
    for part in spec.target.split("."):
        value = getattr(value, part)
    return value


def plain(value: float | Decimal) -> str:
    """A number as an owner writes it: no exponent."""
    return f"{Decimal(str(value)).normalize():f}"


def with_field(name: str, text: str) -> dict[str, str]:
    """An environment with one field set, and its companions so that only this field can be wrong."""
    env = {PREFIX + name: text}
    if name == "WEEKLY_LOSS_CAP":
        env[PREFIX + "DAILY_LOSS_CAP"] = "0.005"
    if name == "DAILY_LOSS_CAP":
        env[PREFIX + "WEEKLY_LOSS_CAP"] = "0.10"
    return env


def problems_of(env: Mapping[str, str]) -> tuple[str, ...]:
    """The sentences with which these settings are refused."""
    with pytest.raises(SettingsError) as caught:
        parse_settings(env)
    return caught.value.problems


# --- numbers ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1000000", 1e6),
        ("1,000,000", 1e6),
        ("1 000 000", 1e6),
        ("1,000,000.25", 1_000_000.25),
        ("1 000.5", 1000.5),
        ("0.75", 0.75),
        (" 7 ", 7.0),
        ("-3", -3.0),
        ("-1,000", -1000.0),
        ("007", 7.0),
        ("999999999999.999999999999", 1e12),
    ],
)
def test_a_plain_number_is_read(text: str, value: float) -> None:
    assert plain_number(text) == value


@pytest.mark.parametrize(
    ("text", "hint"),
    [("0,75", "0.75"), ("12,5", "12.5"), ("-0,5", "-0.5"), ("3,14159", "3.14159"), ("1,0000", "1.0000")],
)
def test_a_decimal_comma_is_answered_with_a_point(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"^use a point: {re.escape(hint)}$"):
        plain_number(text)


@pytest.mark.parametrize(("text", "hint"), [("0,005", "0.005"), ("0,750", "0.750"), ("-0,125", "-0.125")])
def test_a_decimal_comma_with_three_decimals_is_no_thousand(text: str, hint: str) -> None:
    """Nobody groups thousands behind a nought: 0,005 is a risk of half a percent, not 5."""
    with pytest.raises(ValueError, match=f"^use a point: {re.escape(hint)}$"):
        plain_number(text)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "nan", "NaN", "inf", "-Infinity", "1_000", "1e5", "0x10", "+5", "5.", ".5", "1.000.000", "1,000 000",
        "1,000,00", "1000,000,000", "1'000", "--1", "1-", "1/2", "5%", "R100", "ten", "1 00", "1000000000000000",
        "0." + "1" * 13, "1\n2", "½", "²",
    ],
)  # fmt: skip
def test_what_is_no_plain_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(write a plain number such as 0\.75|use a point: .*)$"):
        plain_number(text)


@pytest.mark.parametrize(
    "text",
    ["\u0661\u0662", "\u0660.\u0665", "\u0967\u0968", "\uff11\uff12", "1,\u0660\u0660\u0660", "0.\uff10\uff15"],
)
def test_digits_of_other_scripts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="plain number"):
        plain_number(text)


@given(st.integers(-(10**11), 10**11), st.integers(0, 6))
def test_a_number_in_every_spelling_is_the_same(steps: int, scale: int) -> None:
    value = Decimal(steps).scaleb(-scale)
    expected = float(value)
    assert plain_number(f"{value:f}") == expected
    assert plain_number(f"{value:,f}") == expected
    assert plain_number(f"{value:,f}".replace(",", " ")) == expected


@given(ODD_TEXT)
def test_any_text_is_a_plain_ascii_number_or_refused(text: str) -> None:
    try:
        value = plain_number(text)
    except ValueError:
        return
    assert re.fullmatch(r"-?[0-9][0-9, ]*(\.[0-9]+)?", text.strip())
    assert value == float(re.sub("[, ]", "", text.strip()))


# --- each field ---


def test_an_empty_environment_gives_the_defaults() -> None:
    assert parse_settings({}) == Settings()
    assert parse_settings({PREFIX + f.name: "  " for f in FIELDS}) == Settings()
    assert parse_settings({"PATH": "/bin", "LUNO_PAIRS": "x"}) == Settings()


def test_each_default_text_says_what_the_class_has() -> None:
    for spec in FIELDS:
        if spec.target:
            assert lunobiz.read_field(spec, spec.default) == value_of(Settings(), spec), spec.name


def test_the_table_of_the_owners_settings() -> None:
    """The names, defaults and ranges that the owner was promised."""
    promised = {
        "PAPER_CASH": (100_000, 1_000, 1e9), "RISK_PER_TRADE": (0.005, 0.001, 0.02),
        "DAILY_LOSS_CAP": (0.03, 0.005, 0.05), "COOLDOWN_HOURS": (12, 1, 72), "MAX_POSITIONS": (3, 1, 8),
        "MAX_EXPOSURE": (0.60, 0.05, 1), "MAX_ASSET_EXPOSURE": (0.25, 0.05, 1),
        "MAX_GROUP_EXPOSURE": (0.40, 0.05, 1), "MAX_SPREAD": (0.004, 0.0005, 0.02),
        "MIN_VOLUME_24H": (1_000_000, 0, 1e9), "SLIPPAGE": (0.001, 0, 0.02), "ENTRY_TIMEOUT_CANDLES": (1, 1, 24),
        "MIN_CONFIDENCE": (0.55, 0, 1), "MAX_DRAWDOWN_GATE": (0.15, 0.05, 0.30), "WORST_DAY_GATE": (0.05, 0.01, 0.10),
        "MIN_TRADES_GATE": (30, 30, 1000), "TARGET_DAILY_RETURN": (0.03, 0, 0.05),
    }  # fmt: skip
    for name, (default, low, high) in promised.items():
        spec = named(name)
        assert (plain_number(spec.default), spec.low, spec.high) == (default, low, high), name
    assert named("WEEKLY_LOSS_CAP").high == 0.10
    assert {f.name for f in FIELDS if not f.is_in_window} == {"ENABLE_LIVE", "EXCHANGE_URL", "EXCHANGE_CA", "HOME"}


def test_no_name_and_no_target_is_used_twice() -> None:
    names, targets = [f.name for f in FIELDS], [f.target for f in FIELDS if f.target]
    assert len(set(names)) == len(names)
    assert len(set(targets)) == len(targets)


@pytest.mark.parametrize("spec", NUMBERS, ids=lambda f: f.name)
def test_both_ends_of_a_range_are_accepted(spec: Field) -> None:
    for end in (spec.low, spec.high):
        value = value_of(parse_settings(with_field(spec.name, plain(end))), spec)
        assert value == end
        assert type(value) is (int if spec.kind == "int" else float)


@pytest.mark.parametrize("spec", NUMBERS, ids=lambda f: f.name)
def test_just_outside_is_refused_with_name_value_and_range(spec: Field) -> None:
    step = Decimal(1) if spec.kind == "int" else Decimal("0.000001")
    for text in (plain(Decimal(str(spec.low)) - step), plain(Decimal(str(spec.high)) + step), "-1", "99999999999"):
        problems = problems_of(with_field(spec.name, text))
        assert len(problems) == 1
        assert f"{PREFIX}{spec.name} " in problems[0]
        assert f'"{text}"' in problems[0]
        assert spec.range_text in problems[0]


@pytest.mark.parametrize("spec", NUMBERS, ids=lambda f: f.name)
def test_the_range_is_written_so_that_it_can_be_typed(spec: Field) -> None:
    low, high = spec.range_text.split(" to ")
    assert (plain_number(low), plain_number(high)) == (spec.low, spec.high)


@given(st.sampled_from(NUMBERS), st.floats(0, 1))
def test_whatever_lies_in_range_is_accepted(spec: Field, place: float) -> None:
    value = spec.low + (spec.high - spec.low) * place
    text = str(round(value)) if spec.kind == "int" else f"{value:.9f}"
    if spec.low <= float(text) <= spec.high:
        assert value_of(parse_settings(with_field(spec.name, text)), spec) == float(text)


@pytest.mark.parametrize("spec", [f for f in NUMBERS if f.kind == "int"], ids=lambda f: f.name)
def test_a_count_is_whole(spec: Field) -> None:
    (problem,) = problems_of(with_field(spec.name, plain(Decimal(str(spec.low)) + Decimal("0.5"))))
    assert "whole number" in problem
    assert value_of(parse_settings(with_field(spec.name, f"{spec.low:.0f}.0")), spec) == spec.low


@pytest.mark.parametrize("spec", NUMBERS, ids=lambda f: f.name)
@pytest.mark.parametrize("text", ["nan", "inf", "1_000", "ten", "0,75", "\u0663"])
def test_a_number_that_is_none_is_refused_by_name(spec: Field, text: str) -> None:
    (problem,) = problems_of(with_field(spec.name, text))
    assert f'{PREFIX}{spec.name} is "{text}"' in problem


@pytest.mark.parametrize("name", ["ENABLE_LIVE", "ENTRY_TAKER_AFTER_TIMEOUT", "DESKTOP_NOTICES"])
def test_yes_and_no_in_any_case_and_nothing_else(name: str) -> None:
    spec = named(name)
    assert [value_of(parse_settings({PREFIX + name: t}), spec) for t in ("yes", "No", " YES ", "no")] == [
        True, False, True, False,
    ]  # fmt: skip
    for text in ("true", "1", "on", "y", "ja"):
        (problem,) = problems_of({PREFIX + name: text})
        assert "yes or no" in problem


def test_the_action_at_the_daily_cap() -> None:
    name = PREFIX + "DAILY_CAP_ACTION"
    assert parse_settings({name: "Hold"}).limits.daily_cap_action == "hold"
    assert parse_settings({name: "close"}).limits.daily_cap_action == "close"
    assert "close or hold" in problems_of({name: "panic"})[0]


def test_pairs_are_read_in_their_order() -> None:
    assert parse_settings({PREFIX + "PAIRS": " ethzar, XBTZAR ,"}).schedule.pairs == ("ETHZAR", "XBTZAR")


@pytest.mark.parametrize("text", [",", "XBT/ZAR", "XBTZAR;ETHZAR", "ZAR", "XBTZAR ETHZAR", "X" * 8 + "ZAR", "ÄBCZAR"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    (problem,) = problems_of({PREFIX + "PAIRS": text})
    assert f'LUNOBIZ_PAIRS is "{text}"' in problem
    assert "comma list of markets" in problem


def test_a_pair_named_twice_is_refused() -> None:
    assert "named twice" in problems_of({PREFIX + "PAIRS": "XBTZAR,xbtzar"})[0]


def test_pairs_of_another_currency_are_refused_by_name() -> None:
    (problem,) = problems_of({PREFIX + "PAIRS": "XBTZAR,XBTEUR,ETHXBT"})
    assert "XBTEUR, ETHXBT" in problem
    assert "XBTZAR," not in problem
    assert "only ZAR markets" in problem


def test_the_counter_in_any_case() -> None:
    settings = parse_settings({PREFIX + "COUNTER": "eur", PREFIX + "PAIRS": "XBTEUR"})
    assert (settings.schedule.counter, settings.schedule.pairs) == ("EUR", ("XBTEUR",))
    for text in ("R", "EURO5", "12", "ZARZA", "Z R"):
        assert "3 to 4 capital letters" in problems_of({PREFIX + "COUNTER": text})[0]


@given(st.sets(st.sampled_from(DURATIONS_S), min_size=1), st.randoms())
def test_timeframes_come_sorted(chosen: set[int], chance: object) -> None:
    words = [str(s) for s in chosen]
    chance.shuffle(words)  # type: ignore[attr-defined]
    assert parse_settings({PREFIX + "TIMEFRAME_S": " , ".join(words)}).schedule.timeframes == tuple(sorted(chosen))


@pytest.mark.parametrize(
    "text",
    [",", "60", "3600s", "3600;14400", "-3600", "3600.0", "\u0663\u0666\u0660\u0660", "1h", "9" * 5000],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    (problem,) = problems_of({PREFIX + "TIMEFRAME_S": text})
    assert "LUNOBIZ_TIMEFRAME_S" in problem
    assert "300, 900, 1800, 3600, 10800, 14400, 28800, 86400" in problem
    assert len(problem) < 300


def test_a_timeframe_named_twice_is_refused() -> None:
    assert "named twice" in problems_of({PREFIX + "TIMEFRAME_S": "3600,14400,3600"})[0]


def test_a_test_exchange_is_seen_by_its_host() -> None:
    assert not Settings().is_test_exchange
    assert not parse_settings({PREFIX + "EXCHANGE_URL": "https://api.luno.com/"}).is_test_exchange
    other = parse_settings({PREFIX + "EXCHANGE_URL": "https://localhost:8443", PREFIX + "EXCHANGE_CA": " ca.pem "})
    assert other.is_test_exchange
    assert (other.exchange_url, other.exchange_ca) == ("https://localhost:8443", "ca.pem")


def test_the_real_exchange_in_capitals_is_still_the_real_exchange() -> None:
    assert not parse_settings({PREFIX + "EXCHANGE_URL": "https://API.Luno.com"}).is_test_exchange


@pytest.mark.parametrize(
    "text",
    [
        "http://api.luno.com", "api.luno.com", "https://", "https://a/b", "https://a?x=1", "https://u:p@a", "ftp://a",
        "https://a:port", "https://a b", "file:///etc/passwd", "https://a:1234567", "https://a:\u0668\u0660",
    ],
)  # fmt: skip
def test_only_https_to_a_bare_host(text: str) -> None:
    (problem,) = problems_of({PREFIX + "EXCHANGE_URL": text})
    assert "LUNOBIZ_EXCHANGE_URL" in problem
    assert "https://" in problem


# --- across fields, and absurd wishes ---


def test_the_weekly_cap_may_equal_but_not_undercut_the_daily_cap() -> None:
    caps = {PREFIX + "DAILY_LOSS_CAP": "0.04", PREFIX + "WEEKLY_LOSS_CAP": "0.04"}
    assert parse_settings(caps).limits.weekly_loss_cap == 0.04
    (problem,) = problems_of({**caps, PREFIX + "WEEKLY_LOSS_CAP": "0.039"})
    for part in ("LUNOBIZ_WEEKLY_LOSS_CAP", "0.039", "LUNOBIZ_DAILY_LOSS_CAP", "0.04"):
        assert part in problem


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RISK_PER_TRADE", "1"), ("RISK_PER_TRADE", "100"), ("RISK_PER_TRADE", "0"), ("RISK_PER_TRADE", "-0.01"),
        ("DAILY_LOSS_CAP", "0"), ("WEEKLY_LOSS_CAP", "1"), ("MAX_POSITIONS", "0"), ("MAX_EXPOSURE", "1.5"),
        ("MAX_EXPOSURE", "0"), ("PAPER_CASH", "0"), ("PAPER_CASH", "-1"), ("SLIPPAGE", "-0.001"),
        ("MIN_EDGE", "0"), ("STOP_GAP", "0"), ("MAX_SPREAD", "1"), ("MIN_TRADES_GATE", "1"),
        ("MAX_DRAWDOWN_GATE", "1"), ("TARGET_DAILY_RETURN", "0.5"), ("PAIRS", "XBTZAR,XBTZAR"),
        ("TIMEFRAME_S", "0"), ("COOLDOWN_HOURS", "0"), ("MIN_CONFIDENCE", "2"),
    ],
)  # fmt: skip
def test_absurd_wishes_are_refused(name: str, text: str) -> None:
    problems = problems_of(with_field(name, text))
    assert [p for p in problems if p.startswith(f'LUNOBIZ_{name} is "{text}"')] == list(problems)


def test_all_problems_are_told_at_once() -> None:
    problems = problems_of(
        {PREFIX + "RISK_PER_TRADE": "1", PREFIX + "PAIRS": "x", PREFIX + "TIMEFRAME_S": "7", PREFIX + "COUNTER": "!"}
    )
    assert [p.split(" ")[0] for p in problems] == [
        "LUNOBIZ_COUNTER", "LUNOBIZ_PAIRS", "LUNOBIZ_TIMEFRAME_S", "LUNOBIZ_RISK_PER_TRADE",
    ]  # fmt: skip


def test_all_cross_problems_are_told_at_once() -> None:
    problems = problems_of(
        {PREFIX + "DAILY_LOSS_CAP": "0.05", PREFIX + "WEEKLY_LOSS_CAP": "0.01", PREFIX + "COUNTER": "EUR"}
    )
    assert len(problems) == 2


@given(st.dictionaries(st.sampled_from([PREFIX + f.name for f in FIELDS]), ODD_TEXT, max_size=4))
def test_any_environment_is_read_or_refused_in_words(env: dict[str, str]) -> None:
    try:
        settings = parse_settings(env)
    except SettingsError as error:
        assert error.problems
        assert all(p.startswith(PREFIX) for p in error.problems)
    else:
        for spec in NUMBERS:
            value = value_of(settings, spec)
            assert isinstance(value, (int, float))
            assert spec.low <= value <= spec.high


def test_a_long_wrong_value_is_cut_short() -> None:
    (problem,) = problems_of({PREFIX + "MAX_POSITIONS": "x" * 10_000})
    assert len(problem) < 200


# --- names ---


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("LUNOBIZ_RISK_PER_TRAED", "LUNOBIZ_RISK_PER_TRADE"),
        ("LUNOBIZ_MAX_SPREED", "LUNOBIZ_MAX_SPREAD"),
        ("LUNOBIZ_DAILY_CAP", "LUNOBIZ_DAILY_LOSS_CAP"),
        ("LUNOBIZ_TIMEFRAME", "LUNOBIZ_TIMEFRAME_S"),
        ("LUNOBIZ_READKEY_ID", "LUNOBIZ_READ_KEY_ID"),
    ],
)
def test_a_mistyped_name_gets_the_nearest_one(wrong: str, meant: str) -> None:
    assert unknown_names({wrong: "x"}) == [f"{wrong} is not a setting; did you mean {meant}?"]


def test_a_name_like_nothing_gets_no_advice() -> None:
    assert unknown_names({"LUNOBIZ_QQQQQQQQQQQQQQQQQQQQQQQ": ""}) == [
        "LUNOBIZ_QQQQQQQQQQQQQQQQQQQQQQQ is not a setting"
    ]


def test_known_and_foreign_names_raise_no_complaint() -> None:
    assert unknown_names({PREFIX + f.name: "" for f in FIELDS} | {"PATH": "x", "lunobiz_pairs": "x"}) == []


def test_unknown_names_come_in_order_and_without_their_values() -> None:
    told = unknown_names({"LUNOBIZ_ZZZ": SECRET, "LUNOBIZ_AAA": SECRET})
    assert [t.split(" ")[0] for t in told] == ["LUNOBIZ_AAA", "LUNOBIZ_ZZZ"]
    assert SECRET not in " ".join(told)


# --- the example file ---


def test_the_example_in_the_repository_is_the_one_the_program_writes() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") == env_example() + lunobiz.notices_example()


def test_the_example_names_each_setting_once_and_sets_nothing() -> None:
    lines = env_example().splitlines()
    settings = [line for line in lines if line and not line.startswith("#")]
    assert settings == [f"{PREFIX}{f.name}=" for f in FIELDS]
    assert parse_settings(dict(line.split("=", 1) for line in settings)) == Settings()


def test_the_example_explains_each_setting_on_the_line_above() -> None:
    lines = env_example().splitlines()
    for spec in FIELDS:
        above = lines[lines.index(f"{PREFIX}{spec.name}=") - 1]
        assert above.lower().startswith("# " + spec.meaning.lower())
        assert f"Allowed: {spec.range_text}. Default: {spec.default or 'none'}." in above
        assert (f" Unit: {spec.unit}." in above) == bool(spec.unit)
    assert env_example().isascii()
    assert env_example().endswith("=\n")


def test_the_table_for_the_reader_has_a_row_for_each_setting() -> None:
    header, rule, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lunobiz.settings_table().splitlines()
    )
    assert header == ["name", "default", "range", "unit", "meaning"]
    assert set(rule) == {"---"}
    assert rows == [
        [f"`{PREFIX}{f.name}`", f.default or "-", f.range_text, f.unit or "-", f.meaning] for f in FIELDS
    ]  # fmt: skip


# --- secrets ---


@dataclass(frozen=True)
class Holder:
    """Something that carries a key about."""

    key: Credentials


def _logged(key: Credentials) -> str:
    record = logging.LogRecord("x", logging.INFO, "x", 1, "key %s %r", (key, key), None)
    return record.getMessage()


def _traced(key: Credentials) -> str:
    try:
        raise RuntimeError(key)
    except RuntimeError as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        format,
        ascii,
        lambda key: f"{key} {key!r} {key!s:>40}",
        lambda key: "%s %r" % (key, key),  # noqa: UP031 - the old way must be safe too
        lambda key: str([key]) + str({"key": key}) + str((key,)),
        lambda key: str(Holder(key)),
        pprint.pformat,
        lambda key: pprint.pformat(Holder(key)),
        lambda key: json.dumps(key, default=str),
        _logged,
        _traced,
        lambda key: str(SettingsError(str(key))),
    ],
)
def test_no_text_shows_a_credential(show: Callable[[Credentials], str]) -> None:
    text = show(Credentials(KEY_ID, SECRET))
    assert SECRET not in text
    assert KEY_ID not in text


@pytest.mark.parametrize(
    "take",
    [
        lambda key: asdict(key),
        lambda key: astuple(key),
        lambda key: asdict(Holder(key)),
        lambda key: astuple(Holder(key)),
        lambda key: vars(key),
        lambda key: dict(key),
        lambda key: list(key),
        lambda key: key.__getstate__(),
        lambda key: pickle.dumps(key),
        lambda key: pickle.dumps(Holder(key), protocol=0),
        lambda key: copy.copy(key),
        lambda key: copy.deepcopy(Holder(key)),
        lambda key: json.dumps(key),
    ],
)
def test_no_way_of_copying_gives_a_credential_away(take: Callable[[Credentials], object]) -> None:
    try:
        taken = take(Credentials(KEY_ID, SECRET))
    except (TypeError, AttributeError) as error:
        taken = error
    assert SECRET not in f"{taken!r} {taken}"
    assert KEY_ID not in f"{taken!r} {taken}"


def test_credentials_are_true_only_when_whole() -> None:
    assert Credentials("a", "b")
    for half in (Credentials(), Credentials("a"), Credentials("", "b")):
        assert not half
        assert repr(half) == "Credentials(empty)"
    assert repr(Credentials("a", "b")) == "Credentials(set)"


def test_credentials_cannot_be_changed() -> None:
    key = Credentials(KEY_ID, SECRET)
    for name in ("key_id", "secret", "other"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(key, name, "x")
        with pytest.raises((AttributeError, TypeError)):
            delattr(key, name)
    assert key.secret == SECRET
    assert key == Credentials(KEY_ID, SECRET)
    assert key != Credentials(KEY_ID, "other")
    with pytest.raises(TypeError):
        hash(key)


def keys(**parts: str) -> dict[str, str]:
    """An environment with these parts of keys, as in READ_ID."""
    return {PREFIX + name.replace("_", "_KEY_", 1): text for name, text in parts.items()}


def test_a_read_key_is_read_without_its_blanks() -> None:
    key = parse_read_key(keys(READ_ID=" abc ", READ_SECRET=f" {SECRET}\n"))
    assert (key.key_id, key.secret) == ("abc", SECRET)
    assert not parse_read_key({})
    assert not parse_read_key(keys(READ_ID="  ", READ_SECRET=""))
    assert not parse_read_key(keys(LIVE_ID="abc", LIVE_SECRET="def"))


@pytest.mark.parametrize(("part", "missing"), [("READ_ID", "SECRET"), ("READ_SECRET", "ID")])
def test_half_a_key_is_refused(part: str, missing: str) -> None:
    with pytest.raises(SettingsError, match=f"LUNOBIZ_READ_KEY_{missing} is missing") as caught:
        parse_read_key(keys(**{part: SECRET}))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "live", [{"LIVE_ID": "abc"}, {"LIVE_SECRET": SECRET}, {"LIVE_ID": " abc", "LIVE_SECRET": "other"}]
)
def test_the_read_key_and_the_live_key_must_differ(live: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="two different keys") as caught:
        parse_read_key(keys(READ_ID="abc", READ_SECRET=SECRET, **live))
    assert SECRET not in str(caught.value)


def test_two_different_keys_are_fine() -> None:
    assert parse_read_key(keys(READ_ID="abc", READ_SECRET=SECRET, LIVE_ID="xyz", LIVE_SECRET="other"))


@pytest.mark.parametrize(
    ("key_id", "secret"), [("a b", "x"), ("a", "x\ty"), ("a:b", "x"), ("ä", "x"), ("a", "x" * 201)]
)
def test_a_key_with_strange_characters_is_refused_unseen(key_id: str, secret: str) -> None:
    with pytest.raises(SettingsError, match="characters that no Luno key has") as caught:
        parse_read_key(keys(READ_ID=key_id, READ_SECRET=secret))
    assert secret not in str(caught.value).split(" has ")[1].replace("characters", "").split()


def test_a_telegram_token_hides_itself() -> None:
    token = telegram_token({PREFIX + "TELEGRAM_TOKEN": " 123456:" + "Ab_-" * 5 + " "})
    assert token
    assert token.secret == "123456:" + "Ab_-" * 5
    assert "Ab_" not in repr(token)
    assert not telegram_token({})


@pytest.mark.parametrize("text", ["abc", "123456", "bot123456:" + "a" * 20, "123456:short", "123456:a b" + "c" * 20,
                                  "\u0661\u0662\u0663\u0664\u0665\u0666:" + "a" * 20])  # fmt: skip
def test_what_is_no_telegram_token_is_refused_unseen(text: str) -> None:
    with pytest.raises(SettingsError, match="does not look like a bot token") as caught:
        telegram_token({PREFIX + "TELEGRAM_TOKEN": text})
    assert text not in str(caught.value)


def test_settings_hold_no_secret() -> None:
    env = keys(READ_ID=KEY_ID, READ_SECRET=SECRET) | {PREFIX + "TELEGRAM_TOKEN": SECRET}
    assert SECRET not in repr(parse_settings(env))
    secret_names = {"READ_KEY_ID", "READ_KEY_SECRET", "LIVE_KEY_ID", "LIVE_KEY_SECRET", "TELEGRAM_TOKEN"}
    assert set(lunobiz.SECRET_NAMES) == {PREFIX + name for name in secret_names}


# --- the hash of what decides ---


@pytest.mark.parametrize("group", ["limits", "costs", "gates", "params", "schedule"])
def test_whatever_decides_a_trade_is_in_the_hash(group: str) -> None:
    base = Settings()
    part = getattr(base, group)
    hashes = {config_hash(base)}
    changed = [name for name in asdict(part) if name != "target_daily_return"]
    for name in changed:
        value = getattr(part, name)
        other = not value if isinstance(value, bool) else value * 2
        hashes.add(config_hash(replace(base, **{group: replace(part, **{name: other})})))
    assert len(hashes) == len(changed) + 1


def test_wishes_notices_and_hosts_are_not_in_the_hash() -> None:
    base = Settings()
    others = (
        replace(base, notices=Notices(False, "42")),
        replace(base, schedule=replace(base.schedule, target_daily_return=0.01)),
        replace(base, wants_live=True),
        replace(base, exchange_url="https://localhost", exchange_ca="ca.pem"),
    )
    assert {config_hash(s) for s in others} == {config_hash(base)}
    assert re.fullmatch(r"[0-9a-f]{64}", config_hash(base))


def test_the_hash_is_the_same_for_equal_settings() -> None:
    whole = Settings(RiskLimits(), Costs(), Schedule(), GateLimits(), StrategyParams())
    assert config_hash(whole) == config_hash(parse_settings({}))
