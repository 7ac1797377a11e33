"""ERRORS: what can go wrong, as types a caller can act on and texts an owner can read."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

import lunobiz
from lunobiz import (
    AuditBroken,
    ContradictedOrder,
    DataError,
    ExchangeDown,
    ExchangeRefused,
    KilledByOwner,
    LunobizError,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    SettingsError,
)

ALL = (
    SettingsError("A is wrong", "B is wrong"),
    ExchangeDown("no answer within 10 s"),
    RateLimited(2.6),
    NotSent("no connection"),
    ContradictedOrder("order 1 cannot be"),
    ExchangeRefused("ErrInsufficientBalance", "not enough ZAR"),
    OutcomeUnknown("lb-42"),
    AuditBroken("disk full"),
    KilledByOwner("KILL is there"),
    DataError("XBTZAR.csv, line 7: no price"),
)


@pytest.mark.parametrize("error", ALL, ids=lambda e: type(e).__name__)
def test_every_trouble_is_one_family(error: LunobizError) -> None:
    assert isinstance(error, LunobizError)
    assert not isinstance(error, (OSError, ValueError))  # a broad library catch must not swallow ours


def test_the_family_is_whole() -> None:
    family = {
        value
        for value in vars(lunobiz).values()
        if inspect.isclass(value) and issubclass(value, LunobizError) and value is not LunobizError
    }
    assert family == {type(error) for error in ALL}
    assert all((error.__doc__ or "").strip() for error in family)


def test_kinds_of_outage() -> None:
    """Whoever can go on after an outage can go on after these."""
    kinds = [ExchangeDown, RateLimited, NotSent, ContradictedOrder]
    assert [type(e) for e in ALL if isinstance(e, ExchangeDown)] == kinds


def test_settings_error_keeps_each_problem_and_says_them_all() -> None:
    error = SettingsError("LUNOBIZ_A is 3", "LUNOBIZ_B is empty")
    assert error.problems == ("LUNOBIZ_A is 3", "LUNOBIZ_B is empty")
    assert str(error) == "LUNOBIZ_A is 3; LUNOBIZ_B is empty"


def test_rate_limit_says_how_long() -> None:
    error = RateLimited(2.6)
    assert error.wait_s == 2.6
    assert str(error) == "rate limit reached, waiting 3 s"


def test_refusal_shows_the_code() -> None:
    error = ExchangeRefused("ErrInsufficientBalance", "not enough ZAR")
    assert error.code == "ErrInsufficientBalance"
    assert str(error) == "not enough ZAR (ErrInsufficientBalance)"


def test_unknown_outcome_names_the_order() -> None:
    error = OutcomeUnknown("lb-42")
    assert error.order_id == "lb-42"
    assert str(error) == "the outcome of order lb-42 is unknown"


@pytest.mark.parametrize("error", ALL, ids=lambda e: type(e).__name__)
def test_an_error_survives_the_way_out_of_a_process(error: LunobizError) -> None:
    """A pool that cannot unpickle the error of a child breaks, and tells something else."""
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own bytes
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert vars(back) == vars(error)
