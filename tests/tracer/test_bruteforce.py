"""densitrace against the float64 brute force, on every architecture, importance and rule.

An edge that lies within rounding of its cut could fall either way; the seeds are such that none
does, so kept edges and sizes have to be equal.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from numpy.typing import NDArray
from oracles import KINDS, Graph, Kept, Oracle, errors, sizes
from tiny_models import FAMILIES, FURTHER, VARIANTS, VOCABULARY, WINDOW, tiny_model

from densitrace import (
    InputError,
    NotFiniteError,
    Nucleus,
    Size,
    Threshold,
    TopFraction,
    Trace,
    Tracer,
)
from densitrace.tracer.collect import edge_rows
from densitrace.tracer.graph import KINDS as OUR_KINDS
from densitrace.tracer.graph import Geometry
from densitrace.tracer.search import best_first

LENGTH = 9
IMPORTANCES = ("norm_l1", "norm_l2", "proximity", "cosine", "random")
VALUES = {
    "threshold": {"cosine": (0.6, 0.5, 0.4), "random": (0.7, 0.4, 0.1)},
    "nucleus": {},
    "top_fraction": {},
    "size": {},
}
USUAL = {
    "threshold": (0.2, 0.05, 0.01),
    "nucleus": (0.3, 0.75, 0.95),
    "top_fraction": (0.1, 0.3, 0.7),
    "size": (0.05, 0.2, 0.6),
}
RULES = {"threshold": Threshold, "nucleus": Nucleus, "top_fraction": TopFraction, "size": Size}
TOLERANCE = {"norm_l1": 2e-6, "norm_l2": 2e-6, "cosine": 2e-6, "proximity": 5e-5}


@cache
def tracer_of(family: str) -> Tracer:
    return Tracer(tiny_model(family))


@cache
def oracle_of(family: str) -> Oracle:
    return oracles.oracle_of(tiny_model(family))


def tokens(length: int = LENGTH, seed: int = 3) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (length,), generator=generator).tolist()


def traced(family: str, ids: Sequence[int], **options: Any) -> Trace:
    trace = tracer_of(family).trace(list(ids), **options)
    assert isinstance(trace, Trace)
    return trace


def graph_of(family: str, ids: Sequence[int], importance: str, trace: Trace) -> Graph:
    """The oracle's graph; random weights are the package's own, which are the definition."""
    run = oracle_of(family).clean(ids)
    if importance != "random":
        return run.graph(importance)
    missing = {"res_mlp": np.full((len(run.window), len(ids)), np.nan)}
    return run.graph({k: w.astype(float) for k, w in (missing | trace.graph.weights()).items()})


def strata_of(rule: str, importance: str) -> tuple[float, ...]:
    return VALUES[rule].get(importance, USUAL[rule])


def by_our_kinds(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """[4, L] counts in the order of the package's topology."""
    return found[[KINDS.index(kind) for kind in OUR_KINDS]]


def kept_edges(graph: Graph, kept: Kept) -> set[tuple[Any, ...]]:
    """(kind, block, head, source, target) of every edge kept."""
    edges = (edge for node in graph.in_edges.values() for edge in node)
    return {tuple(edge) for edge in edges if kept[edge.kind][edge.place]}


def traced_edges(trace: Trace, output: int, column: int) -> set[tuple[Any, ...]]:
    """The same of a trace, from the table of its loosest stratum."""
    rows = edge_rows(trace.edges(output, stratum=-1))
    return {(e.kind, e.layer, e.head, e.source, e.target) for e in rows if e.stratum <= column}


def assert_errors(
    trace: Trace, suffix: str, row: int, column: int, expected: dict[str, float]
) -> None:
    for measure, value in expected.items():
        ours = trace.errors[measure + suffix][row, column]
        # float32 against float64 through a few blocks; kl and loss also grow with 1 / p.
        np.testing.assert_allclose(ours, value, atol=1e-4, rtol=1e-4, err_msg=measure + suffix)


@pytest.mark.parametrize("importance", IMPORTANCES[:-1])
@pytest.mark.parametrize("family", [*VARIANTS, *FURTHER])
def test_weights(family: str, importance: str) -> None:
    ids = tokens()
    expected = oracle_of(family).clean(ids).weights(importance)
    ours = traced(family, ids, importance=importance, select=Threshold([0.1])).graph.weights()
    for kind, array in ours.items():
        np.testing.assert_allclose(array, expected[kind], atol=TOLERANCE[importance])


def test_small_proximities_of_an_mlp_are_not_rounded_away() -> None:
    """MLPs so small that subtracting them leaves the node's float32 unchanged."""
    model, ids = tiny_model("mistral"), tokens()
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.down_proj.weight.mul_(1e-9)
    expected = oracles.oracle_of(model).clean(ids).weights("proximity")["mlp"]
    assert 1e-11 < expected.max() < 1e-8
    trace = Tracer(model).trace(ids, importance="proximity", select=Threshold([0.1]))
    assert isinstance(trace, Trace)
    np.testing.assert_allclose(trace.graph.weights()["mlp"], expected, atol=1e-13, rtol=1e-4)


def test_random_weights_are_uniform_and_seeded() -> None:
    ids = tokens(32)
    options: dict[str, Any] = {"importance": "random", "select": Threshold([0.5])}
    first, again, other = (
        traced("llama", ids, seed=seed, **options).graph.weights()["attn"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    drawn = first[~np.isnan(first)]
    assert not np.array_equal(drawn, other[~np.isnan(other)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    # 6336 draws: means of the whole and of octiles within four standard errors.
    assert abs(drawn.mean() - 0.5) < 4 * (1 / 12 / len(drawn)) ** 0.5
    octiles = np.histogram(drawn, bins=8, range=(0, 1))[0] / len(drawn)
    assert np.abs(octiles - 1 / 8).max() < 4 * (7 / 64 / len(drawn)) ** 0.5


@pytest.mark.parametrize(
    ("family", "importance", "rule"),
    [
        *product(VARIANTS, IMPORTANCES, ["threshold", "nucleus", "top_fraction"]),
        *product(FURTHER, ["norm_l1"], ["threshold"]),
    ],
)
def test_all_outputs(family: str, importance: str, rule: str) -> None:
    ids = tokens()
    values = strata_of(rule, importance)
    trace = traced(family, ids, importance=importance, select=RULES[rule](values), next_token=[5])
    graph = graph_of(family, ids, importance, trace)
    clean = oracle_of(family).clean(ids).logits
    following = [*ids[1:], 5]
    for column, value in enumerate(trace.strata):
        assert value in values
        keep = graph.keep(rule, value)
        lane = oracle_of(family).masked_logits(ids, keep)
        for t in range(LENGTH):
            assert trace.full_edge_count[t] == graph.full_size(t)
            expected = by_our_kinds(sizes(graph.reach(keep, t)))
            np.testing.assert_array_equal(trace.topology[t, column], expected)
            assert_errors(trace, "", t, column, errors(clean[t], lane[t], following[t]))
        last = kept_edges(graph, graph.reach(keep, -1))
        assert traced_edges(trace, -1, column) == last


@pytest.mark.parametrize("attention", ["live", "frozen"])
@pytest.mark.parametrize(
    ("family", "rule"),
    [*product(VARIANTS, RULES), *product(FURTHER, ["threshold"]), ("gemma4_shared", "size")],
)
def test_one_output(family: str, rule: str, attention: str) -> None:
    ids = tokens()
    trace = traced(
        family,
        ids,
        select=RULES[rule](USUAL[rule]),
        scope="output",
        output=LENGTH - 2,
        attention=attention,
        controls=("inverse",),
    )
    seen = ids[: LENGTH - 1]
    graph = oracle_of(family).clean(seen).graph("norm_l1")
    clean = oracle_of(family).clean(seen).logits[-1]
    for column, value in enumerate(trace.strata):
        kept = graph.reach(graph.keep(rule, value, output=-1), -1)
        theirs = kept_edges(graph, kept)
        assert traced_edges(trace, LENGTH - 2, column) == theirs
        assert trace.edge_count[0, column] == len(theirs)
        for suffix, keep in (("", kept), ("_inverse", graph.inverse(kept))):
            lane = oracle_of(family).masked_logits(seen, keep, attention)[-1]
            expected = errors(clean, lane, ids[LENGTH - 1])
            assert_errors(trace, suffix, 0, column, expected)


@pytest.mark.parametrize("importance", IMPORTANCES[1:])
@pytest.mark.parametrize("family", VARIANTS)
def test_search_of_every_importance(family: str, importance: str) -> None:
    """The s-Trace of the last token: which edges, and what they predict."""
    ids = tokens()
    trace = traced(family, ids, importance=importance, select=Size(USUAL["size"]), scope="output")
    graph = graph_of(family, ids, importance, trace)
    clean = oracle_of(family).clean(ids).logits[-1]
    for column, value in enumerate(trace.strata):
        kept = graph.reach(graph.keep("size", value, output=-1), -1)
        assert traced_edges(trace, -1, column) == kept_edges(graph, kept)
        lane = oracle_of(family).masked_logits(ids, kept)[-1]
        assert_errors(trace, "", 0, column, errors(clean, lane, None))


def test_equal_edges_are_searched_in_order_of_discovery() -> None:
    side = np.full((2, 1), 0.5, dtype=np.float32)
    weights = {"attn": side[..., None, None], "res_attn": side, "mlp": side}
    found = [
        (kind, layer)
        for kind, layer, *_ in best_first(weights, Geometry.of_blocks(2, parallel=True), output=0)
    ]
    assert found == [(kind, layer) for layer in (1, 0) for kind in ("res_attn", "mlp", "attn")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 2, WINDOW + 2])
def test_short_sequences(family: str, length: int) -> None:
    """One token alone, two, and a window just exceeded."""
    ids = tokens(length)
    trace = traced(family, ids, select=Threshold([0.3, 0.02]))
    graph = oracle_of(family).clean(ids).graph("norm_l1")
    for t in range(length):
        for column, value in enumerate(trace.strata):
            kept = graph.reach(graph.keep("threshold", value), t)
            np.testing.assert_array_equal(trace.topology[t, column], by_our_kinds(sizes(kept)))


@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER])
def test_padding_and_documents_change_nothing(family: str) -> None:
    """Padded left or right, alone or two in a row: a document's trace is its own."""
    first, second = tokens(7, seed=1), tokens(5, seed=2)
    options: dict[str, Any] = {
        "select": Threshold([0.2, 0.01]),
        "controls": ("inverse", "random"),
    }
    expected = [traced(family, ids, **options) for ids in (first, second)]

    ids = torch.zeros(2, 9, dtype=torch.long)
    mask = torch.zeros_like(ids)
    ids[0, :7], ids[1, -5:] = torch.tensor(first), torch.tensor(second)
    mask[0, :7], mask[1, -5:] = 1, 1
    padded = tracer_of(family).trace(ids, attention_mask=mask, **options)
    assert isinstance(padded, list)

    row = torch.tensor([first + second])
    segments = torch.tensor([[0] * 7 + [1] * 5])
    packed = tracer_of(family).trace(row[0], segment_ids=segments[0], **options)
    assert isinstance(packed, Trace)

    for ours, alone in zip(padded, expected, strict=True):
        np.testing.assert_array_equal(ours.tokens, alone.tokens)
        assert_same(ours, alone, slice(None))
    for run, alone in zip((slice(0, 7), slice(7, 12)), expected, strict=True):
        assert_same(packed, alone, run)
    edges = packed.edges(output=11, stratum=1)
    assert edges.source.min() >= 7
    np.testing.assert_array_equal(edges.source - 7, expected[1].edges(stratum=1).source)


def assert_same(ours: Trace, alone: Trace, run: slice) -> None:
    np.testing.assert_array_equal(ours.topology[run], alone.topology)
    np.testing.assert_array_equal(ours.full_edge_count[run], alone.full_edge_count)
    for name, expected in alone.errors.items():
        np.testing.assert_allclose(ours.errors[name][run], expected, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(ours.surprisal[run], alone.surprisal, atol=1e-4)


@pytest.mark.parametrize("family", [*VARIANTS, *FURTHER])
def test_verify(family: str) -> None:
    """The lane loop with every edge kept gives the model's own logits, padded rows included."""
    verification = tracer_of(family).verify()
    assert verification.ok
    assert 0 < verification.max_difference <= 1e-5
    assert 0 < verification.rounding <= 1e-5
    assert verification.tolerance == max(1e-5, 2 * verification.rounding)


def test_verify_allows_what_rounding_does_to_a_model() -> None:
    """Attention so sharp that the last bit of an embedding changes logits by more than 1e-5."""
    model = tiny_model("llama")
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.q_proj.weight.mul_(10)
    verification = Tracer(model).verify()
    assert 1e-5 < 2 * verification.rounding == verification.tolerance
    assert verification.ok


def test_verify_of_models_with_few_positions() -> None:
    verification = Tracer(tiny_model("gpt2")).verify(length=100)  # of 64 positions
    assert verification.ok


def test_verify_sees_what_is_no_number() -> None:
    """Logits that overflow in half precision are no agreement."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(3e4)
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        Tracer(model.half()).verify()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length=0: a row needs at least one token"),
        ({"length": 1.5}, "length=1.5 is not a whole number"),
        ({"seed": "x"}, "seed='x' is not a whole number"),
    ],
)
def test_verify_takes_whole_numbers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tracer_of("llama").verify(**options)


def test_verify_takes_any_seed() -> None:
    assert tracer_of("llama").verify(seed=2**70).ok


def test_verify_sees_a_fault() -> None:
    """A block whose MLP is not what the declaration says does not pass."""
    model = tiny_model("llama")
    tracer = Tracer(model)
    block = tracer._decoder.blocks[1]
    block._before_mlp = block._before_attention
    assert not tracer.verify().ok


def test_verify_sees_a_fault_of_frozen_lanes() -> None:
    tracer = Tracer(tiny_model("llama"))
    block = tracer._decoder.blocks[1]
    values = block._values
    block._values = lambda attention, states: 2 * values(attention, states)
    assert not tracer.verify().ok


def test_verify_sees_a_fault_of_rows_padded_on_the_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that count the padding."""
    tracer = Tracer(tiny_model("gpt2"))
    states = tracer._decoder.hidden_states

    def shifted(ids: Any, positions: Any, mask: Any, run_block: Any) -> Any:
        return states(ids, torch.arange(ids.shape[1]).expand_as(ids), mask, run_block)

    monkeypatch.setattr(tracer._decoder, "hidden_states", shifted)
    assert not tracer.verify().ok


def test_verify_sees_that_the_model_itself_gives_no_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(decoder: Any, rows: Any) -> Any:
        return torch.full((sum(map(len, rows)), decoder.vocab_size), torch.nan)

    monkeypatch.setattr("densitrace.tracer.verification._own_logits", nowhere)
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        tracer_of("llama").verify()
