"""Token explanations against Shapley's formula, written out over all sets of tokens."""

import logging
from itertools import combinations, pairwise
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shap
from byte_model import byte_model, byte_tokenizer
from numpy.typing import NDArray

from densitrace import AutoStrata, InputError, Threshold, Trace, Tracer
from densitrace.estimator.explain_tokens import MAX_SEQUENCES, REMOVED, cost, explain_tokens

MODEL = Path(__file__).parents[2] / "examples" / "model"
RULE = Threshold([0.02, 0.1])
IDS = [17, 4, 99, 250, 17, 31]
MASK = 1000


def weighted(sequences: list[list[int]]) -> NDArray[np.float64]:
    """A function of ids with interactions of every order, that depends on places and length."""
    return np.array(
        [
            np.sin(sum((place + 1) * token for place, token in enumerate(ids)))
            + len(ids) * np.cos(ids[-1])
            for ids in sequences
        ]
    )


def masked(ids: list[int], shown: frozenset[int], mask: int) -> list[int]:
    changed = [token if place in shown else mask for place, token in enumerate(ids)]
    return [token for token in changed if token != REMOVED]


def shapley(model: Any, ids: list[int], mask: int, players: list[int]) -> NDArray[np.float64]:
    """The definition: the mean, over set sizes, of what a player adds to sets of that size."""
    fixed = frozenset(range(len(ids))) - set(players)
    sets = [
        fixed.union(chosen)
        for size in range(len(players) + 1)
        for chosen in combinations(players, size)
    ]
    worth = dict(zip(sets, model([masked(ids, s, mask) for s in sets]), strict=True))
    values = np.zeros(len(ids))
    for player in players:
        for without in (s for s in sets if player not in s):
            size, others = len(without - fixed), len(players) - 1
            added = worth[without | {player}] - worth[without]
            values[player] += added / len(players) / comb(others, size)
    return values


@pytest.fixture(scope="module")
def tracer() -> Tracer:
    return Tracer.from_pretrained(MODEL)


def test_eight_tokens_have_exact_shapley_values() -> None:
    ids = [*IDS, 8, 13]
    found = explain_tokens(weighted, ids, mask=MASK)
    assert isinstance(found, shap.Explanation)
    expected = shapley(weighted, ids, MASK, list(range(8)))
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.base_values == pytest.approx(weighted([[MASK] * 8])[0])
    assert found.base_values + found.values.sum() == pytest.approx(weighted([ids])[0])


def test_removed_tokens_have_exact_shapley_values_and_the_last_stays() -> None:
    found = explain_tokens(weighted, IDS, mask="remove")
    expected = shapley(weighted, IDS, REMOVED, list(range(len(IDS) - 1)))
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.values[-1] == 0
    assert found.base_values == pytest.approx(weighted([IDS[-1:]])[0])


def test_the_mask_itself_explains_nothing_and_later_tokens_are_cut_off() -> None:
    found = explain_tokens(weighted, [5, MASK, 7, 3, 3], position=2, mask=MASK)
    np.testing.assert_allclose(found.values, shapley(weighted, [5, MASK, 7], MASK, [0, 2]))
    assert found.values[1] == 0
    nothing = explain_tokens(weighted, [MASK, MASK], mask=MASK)
    assert nothing.values.tolist() == [0, 0]
    assert nothing.base_values == weighted([[MASK, MASK]])[0]


def test_a_mask_may_be_a_number_of_numpy() -> None:
    found = explain_tokens(weighted, IDS, mask=np.int32(MASK))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.values, explain_tokens(weighted, IDS, mask=MASK).values)


def test_many_tokens_add_up_and_pairs_are_exact() -> None:
    def pairs(sequences: list[list[int]]) -> NDArray[np.float64]:
        return np.array([sum(a * b for a, b in pairwise(s)) for s in sequences])

    ids = list(range(1, 15))
    state: Any = np.random.get_state()  # noqa: NPY002
    before = state[1].copy()
    found = explain_tokens(pairs, ids, mask=0)
    after: Any = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(before, after[1])
    # Orders taken forwards and backwards are exact where tokens act in pairs: half each.
    halves = [sum(ids[p] * ids[q] for q in (p - 1, p + 1) if 0 <= q < 14) / 2 for p in range(14)]
    np.testing.assert_allclose(found.values, halves)
    again = explain_tokens(pairs, ids, mask=0)
    np.testing.assert_array_equal(found.values, again.values)


def test_the_seed_chooses_the_orders() -> None:
    ids = list(range(12))
    first, second, again = (
        explain_tokens(weighted, ids, mask=MASK, seed=seed).values for seed in (0, 1, 1)
    )
    np.testing.assert_array_equal(second, again)
    assert not np.array_equal(first, second)


def test_the_cost_is_told_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    traced: list[list[int]] = []

    def counted(sequences: list[list[int]]) -> NDArray[np.float64]:
        traced.extend(sequences)
        return weighted(sequences)

    for length in (4, 8, 9, 30):
        traced.clear()
        with caplog.at_level(logging.INFO, "densitrace"):
            explain_tokens(counted, list(range(length)), mask=MASK)
        price = cost(length)
        assert price.sequences <= MAX_SEQUENCES and price.exact == (length <= 8)
        assert len(traced) <= price.sequences
        assert len({tuple(ids) for ids in traced}) == len(traced)
        assert sum(map(len, traced)) <= price.tokens
        assert str(price) in caplog.text
    with pytest.raises(InputError, match="2 tokens need at least 4 sequences"):
        cost(2, max_sequences=3)
    with pytest.raises(InputError, match="30 tokens need at least 61 sequences"):
        cost(30, max_sequences=60)


def test_a_tracer_is_explained_exactly(tracer: Tracer) -> None:
    ids = tracer.encode("The cat sat")[:6]
    found = explain_tokens(tracer, ids, select=RULE, target="auc_tv")

    def density(sequences: list[list[int]]) -> NDArray[np.float64]:
        traces = tracer.trace(sequences, select=RULE)
        assert isinstance(traces, list)
        return np.array([trace.auc_tv[-1] for trace in traces])

    assert tracer.tokenizer is not None
    neutral = tracer.tokenizer.eos_token_id  # it has no pad token
    assert ids[0] == neutral and found.values[0] == 0
    expected = shapley(density, ids, neutral, list(range(1, len(ids))))
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    assert found.base_values + found.values.sum() == pytest.approx(density([ids])[0], abs=1e-6)
    assert "".join(found.data[1:]) == tracer.tokenizer.decode(ids[1:])


def test_thresholds_are_chosen_for_the_importance_explained(tracer: Tracer) -> None:
    text, importance = "The cat", "cosine"
    rule = tracer.choose_strata(AutoStrata(2), [tracer.encode(text)], importance="cosine")
    found, expected = (
        explain_tokens(tracer, text, select=s, importance=importance, target="size", stratum=0)
        for s in (AutoStrata(2), rule)
    )
    np.testing.assert_array_equal(found.values, expected.values)


@pytest.mark.parametrize("target", ["size", "edges", "tv", "density@0.2"])
def test_targets_add_up_to_what_a_trace_says(tracer: Tracer, target: str) -> None:
    text = "The cat"
    stratum = None if "@" in target else 1
    found = explain_tokens(tracer, text, select=RULE, target=target, stratum=stratum)
    trace = tracer.trace(text, select=RULE)
    assert isinstance(trace, Trace)
    value = {
        "size": trace.size[-1, 1],
        "edges": trace.edge_count[-1, 1],
        "tv": trace.errors["tv"][-1, 1],
        "density@0.2": np.log10(trace.density_at(0.2)[-1]),
    }[target]
    assert found.base_values + found.values.sum() == pytest.approx(float(value), rel=1e-5)


def test_random_weights_have_the_seed_given(tracer: Tracer) -> None:
    options: dict[str, Any] = {"select": Threshold([0.5]), "importance": "random", "seed": 3}
    found = explain_tokens(tracer, "The cat", target="size", stratum=0, **options)
    trace = tracer.trace("The cat", **options)
    assert isinstance(trace, Trace)
    assert found.base_values + found.values.sum() == pytest.approx(float(trace.size[-1, 0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position": 99}, "position=99"),
        ({"position": 1.5}, r"position=1\.5 is not a whole number"),
        ({"target": "loss"}, "'loss' is no measure"),
        ({"target": "tv"}, "stratum=None"),
        ({"target": "tv", "stratum": 2}, "stratum=2"),
        ({"target": "tv", "stratum": 1.5}, r"stratum=1\.5 is not a whole number"),
        ({"stratum": 0}, "stratum=0"),
        ({"mask": "zero"}, "mask='zero'"),
        ({"max_sequences": 3}, "max_sequences=3"),
        ({"max_sequences": None}, "max_sequences=None is not a whole number"),
        ({"seed": -1}, "seed=-1 is below 0"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    tracer: Tracer, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        explain_tokens(tracer, "The cat sat", **{"select": RULE, **arguments})


def test_the_neutral_token_is_the_pad_token_where_there_is_one() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "!", "eos_token": "?"})
    tracer = Tracer(byte_model(), tokenizer)
    arguments: dict[str, Any] = {"select": RULE, "target": "size", "stratum": 1}
    found = explain_tokens(tracer, "abc", **arguments)
    as_pad, as_eos = (
        explain_tokens(tracer, "abc", mask=mask, **arguments)
        for mask in (tokenizer.pad_token_id, tokenizer.eos_token_id)
    )
    np.testing.assert_array_equal(found.values, as_pad.values)
    assert not np.array_equal(found.values, as_eos.values)


def test_a_callable_has_no_tokenizer() -> None:
    with pytest.raises(InputError, match="token ids instead of text"):
        explain_tokens(weighted, "text")
    with pytest.raises(InputError, match="give mask=ID"):
        explain_tokens(weighted, IDS)
    with pytest.raises(InputError, match=r"shape \(1,\)"):
        explain_tokens(lambda _: [1.0], IDS, mask=MASK)
