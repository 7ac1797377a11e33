"""A generated market: any of its days can be made again, the same, and few of them are held."""

from __future__ import annotations

import numpy as np
import pytest

from lunobiz import BLOCK_STEPS, BLOCKS_HELD, DEMO_FINEST_S, DEMO_FIRST_MS, DEMO_PROFILES, Floats, SeededRows

STEP_MS = DEMO_FINEST_S * 1000


def one_after_the_other(seed: int, number: int, blocks: int) -> Floats:
    """The first rows of a market, asked for in their order."""
    market = SeededRows(seed, number)
    return np.concatenate([market.span(n * BLOCK_STEPS, (n + 1) * BLOCK_STEPS) for n in range(blocks)])


@pytest.mark.parametrize("number", range(len(DEMO_PROFILES)))
def test_what_was_let_go_is_made_again_the_same(number: int) -> None:
    whole, market = one_after_the_other(3, number, 8), SeededRows(3, number)
    cuts = ((6, 7), (0, 1), (7, 8), (1, 4), (0, 8), (5, 5), (2, 3))
    for first, end in ((a * BLOCK_STEPS + 17, b * BLOCK_STEPS - 5) for a, b in cuts):
        assert np.array_equal(market.span(first, end), whole[first : max(first, end)])


def test_a_market_that_is_asked_late_is_the_one_that_was_asked_early() -> None:
    late = SeededRows(5, 1).span(9 * BLOCK_STEPS, 10 * BLOCK_STEPS)
    assert np.array_equal(late, one_after_the_other(5, 1, 10)[9 * BLOCK_STEPS :])


def test_few_blocks_are_held_and_those_that_were_used_last() -> None:
    market = SeededRows(3, 0)
    for row in range(0, 12 * BLOCK_STEPS, BLOCK_STEPS // 2):
        market.span(max(0, row - 288), row + 1)
        assert len(market._held) <= BLOCKS_HELD
    market.span(0, 10)
    assert set(market._held) == {0, 10, 11}


def test_rows_follow_each_other_without_a_hole_from_block_to_block() -> None:
    rows = one_after_the_other(6, 2, 3)
    assert np.array_equal(rows[:, 0], DEMO_FIRST_MS + np.arange(len(rows)) * STEP_MS)
    assert np.array_equal(rows[1:, 1], rows[:-1, 4])  # each opens where the one before closed


def test_a_row_is_found_by_its_time() -> None:
    market = SeededRows(6, 2)
    assert [market.at(DEMO_FIRST_MS + n) for n in (-STEP_MS, 0, 1, STEP_MS, STEP_MS + 1)] == [0, 0, 1, 1, 2]
    assert market.span(4, 4).shape == market.span(4, 2).shape == (0, 8)
