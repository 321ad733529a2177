"""Operations of the ops, counted one by one on a small problem."""

from itertools import combinations_with_replacement

import pytest
from costs import Costs

HEADS, LENGTH, WIDTH, HIDDEN, STRATA, VOCABULARY = 2, 5, 3, 4, 6, 7
COSTS = Costs(HEADS, LENGTH, WIDTH, HIDDEN, STRATA, VOCABULARY)
PAIRS = len(list(combinations_with_replacement(range(LENGTH), 2)))  # of target and source
PATHS = len(list(combinations_with_replacement(range(LENGTH), 3)))
SCORES = 2 * WIDTH * HEADS * PAIRS  # multiply-adds of a query and a key
SENT = 2 * WIDTH * HIDDEN * HEADS * LENGTH  # of the output projection and a value


def test_products_of_attention() -> None:
    assert COSTS.product == SCORES
    assert COSTS.lane_attention(live=False) == SCORES + STRATA * SCORES
    assert COSTS.lane_attention(live=True) == SCORES + STRATA * 2 * SCORES


@pytest.mark.parametrize(("p", "rows"), [(1, HIDDEN), (2, WIDTH)])
def test_norms_of_sources(p: int, rows: int) -> None:
    of_a_row = 2 * WIDTH + 2  # its product with a value; its size, added
    assert COSTS.source_norms(p) == HEADS * LENGTH * rows * of_a_row


def test_proximity_with_and_without_the_sums_that_a_bound_saves() -> None:
    assert COSTS.proximity() == SCORES + SENT + 4 * HIDDEN * HEADS * PAIRS
    assert COSTS.proximity_products() == 2 * SCORES + 2 * SENT


def test_what_is_no_product() -> None:
    assert COSTS.bottleneck() == 2 * PATHS
    assert COSTS.trace_sizes() == STRATA * PAIRS


def test_logits_of_all_lanes_and_the_clean_pass() -> None:
    assert COSTS.output_errors() == 2 * HIDDEN * VOCABULARY * LENGTH * (STRATA + 1)
