"""The face: what `Tracer.trace` accepts, what a trace gives, and how bad input is refused."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tiny_models import FURTHER, GROUPED, VARIANTS, VOCABULARY, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, BatchEncoding
from transformers.utils import logging as hub_logging

from densitrace import (
    AutoStrata,
    DensitraceError,
    InputError,
    ModelError,
    Nucleus,
    Rule,
    Size,
    Threshold,
    TopFraction,
    Trace,
    Tracer,
    kernels,
)
from densitrace.kernels import dispatch
from densitrace.tracer import random_control
from densitrace.tracer.graph import KINDS
from densitrace.tracer.models import loading
from densitrace.tracer.nodes import IMPORTANCES
from densitrace.tracer.tracing import Settings

IDS = [5, 9, 33, 2, 60, 17, 8, 41]
RULE = Threshold([0.1, 0.01])


@pytest.fixture(scope="module")
def tracer() -> Tracer:
    return Tracer(tiny_model("llama"))


def one(tracer: Tracer, inputs: Any = IDS, **options: Any) -> Trace:
    trace = tracer.trace(inputs, **{"select": RULE, **options})
    assert isinstance(trace, Trace)
    return trace


def many(tracer: Tracer, inputs: Any, **options: Any) -> list[Trace]:
    traces = tracer.trace(inputs, **{"select": RULE, **options})
    assert isinstance(traces, list)
    return traces


def test_arrays(tracer: Tracer) -> None:
    trace = one(tracer, controls=("inverse", "random"), next_token=[3])
    shape = (len(IDS), 2)
    np.testing.assert_array_equal(trace.strata, [0.1, 0.01])
    np.testing.assert_array_equal(trace.tokens, IDS)
    np.testing.assert_array_equal(trace.positions, np.arange(len(IDS)))
    assert trace.size.shape == trace.edge_count.shape == shape
    assert trace.topology.shape == (*shape, len(KINDS), tracer.n_layers)
    np.testing.assert_array_equal(trace.topology.sum((2, 3)), trace.edge_count)
    expected = trace.edge_count / trace.full_edge_count[:, None]
    np.testing.assert_allclose(trace.size, expected, rtol=1e-6)
    names = {
        f"{m}{c}"
        for m in ("tv", "kl", "top1", "nucleus", "loss", "entropy")
        for c in ("", "_inverse", "_random")
    }
    assert set(trace.errors) == names
    for values in trace.errors.values():
        assert values.shape == shape
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
    assert np.isfinite(trace.surprisal).all()
    assert (trace.density_at(0.1) <= 1).all()
    assert (trace.auc_tv >= 0).all()


def test_loss_is_nan_where_no_token_follows(tracer: Tracer) -> None:
    trace = one(tracer)
    assert np.isnan(trace.surprisal[-1])
    assert np.isnan(trace.errors["loss"][-1]).all()
    assert np.isfinite(trace.surprisal[:-1]).all()
    assert np.isfinite(trace.errors["tv"][-1]).all()


def test_forms_of_input_agree(tracer: Tracer) -> None:
    expected = one(tracer)
    for form in (np.array(IDS), torch.tensor(IDS), tuple(IDS)):
        np.testing.assert_array_equal(one(tracer, form).edge_count, expected.edge_count)
    for batch in ([IDS, IDS[:3]], torch.tensor([IDS, IDS])):
        traces = many(tracer, batch)
        np.testing.assert_array_equal(traces[0].edge_count, expected.edge_count)
        assert len(traces) == 2


def test_a_trace_does_not_depend_on_its_batch(tracer: Tracer) -> None:
    """Random control and random importance included: they are drawn by place in the document."""
    options: dict[str, Any] = {
        "controls": ("inverse", "random"),
        "importance": "random",
        "select": Threshold([0.9, 0.5]),
    }
    alone = one(tracer, **options)
    with_others = many(tracer, [IDS[::-1] * 2, IDS, IDS[:2]], **options)[1]
    np.testing.assert_array_equal(alone.topology, with_others.topology)
    for name, values in alone.errors.items():
        np.testing.assert_allclose(values, with_others.errors[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("family", VARIANTS)
def test_stricter_strata_hold_less(family: str) -> None:
    for rule in (
        Threshold([0.3, 0.1, 0.03, 0.01]),
        Nucleus([0.2, 0.5, 0.9]),
        TopFraction([0.1, 0.9]),
    ):
        counts = one(Tracer(tiny_model(family)), select=rule).topology
        assert (np.diff(counts, axis=1) >= 0).all()


@pytest.mark.parametrize("family", VARIANTS)
def test_nothing_kept_and_everything_kept(family: str) -> None:
    tracer = Tracer(tiny_model(family))
    trace = one(tracer, select=Threshold([0.999, 0.0]), controls=("inverse",))
    np.testing.assert_array_equal(trace.edge_count[:, 0], 0)
    np.testing.assert_array_equal(trace.edge_count[:, 1], trace.full_edge_count)
    np.testing.assert_allclose(trace.errors["tv"][:, 1], 0, atol=1e-5)
    # Nothing dropped leaves its complement the residual stream alone; and the other way round.
    np.testing.assert_allclose(trace.errors["tv_inverse"][:, 0], 0, atol=1e-5)
    assert (trace.errors["tv_inverse"][:, 1] > 0).all()


@pytest.mark.parametrize("scope", ["all", "output"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mistral", "gemma4_shared"])
def test_random_control_keeps_as_many_edges(
    family: str, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per block and kind the drawn edges are as many as the trace keeps, in the graph there is."""
    tracer = Tracer(tiny_model(family))
    # From this block on, only nodes of the last token lead to its output.
    alone = 2 if family == "gemma4_shared" else tracer.n_layers - 1
    drawn: dict[tuple[int, str], list[int]] = {}
    original = random_control.draw_edges

    def spy(node: Any, degrees: Any, **context: Any) -> Any:
        attention, side = original(node, degrees, **context)
        eligible = torch.ones(len(IDS), dtype=torch.bool)
        if scope == "output" and node.layer >= alone:
            eligible[:-1] = False
        if attention is not None:
            edges = replace(node.edges, weight=attention.weight)
            above = kernels.edge_weights(edges)[None] > attention.cuts[:, :, None, :, None]
            drawn[node.layer, "attn"] = (above.sum((1, 2, 4)) * eligible).sum(-1).tolist()
        for kind, kept in side.items():
            drawn[node.layer, kind] = (kept.sum(1) * eligible).sum(-1).tolist()
        return attention, side

    monkeypatch.setattr("densitrace.tracer.engine.draw_edges", spy)
    trace = one(tracer, scope=scope, controls=("random",))
    for (layer, kind), counts in drawn.items():
        column = KINDS.index(kind)
        if scope == "output":
            expected = trace.topology[0, :, column, layer].tolist()
        else:
            weights = trace.weights(layer)[kind]
            expected = [int((weights > tau).sum()) for tau in trace.strata]
        assert counts == expected, (layer, kind)
    assert {kind for _, kind in drawn} == {"attn", "mlp"}


def test_seeds(tracer: Tracer) -> None:
    def tv(seed: int) -> np.ndarray[Any, Any]:
        return one(tracer, controls=("random",), seed=seed).errors["tv_random"]

    np.testing.assert_array_equal(tv(1), tv(1))
    assert not np.array_equal(tv(1), tv(2))


def test_the_random_control_draws_others_than_the_random_importance_keeps(tracer: Tracer) -> None:
    options: dict[str, Any] = {"importance": "random", "controls": ("random",), "seed": 9}
    trace = one(tracer, select=Threshold([0.05]), **options)
    for layer in range(tracer.n_layers):  # a control keeps all residuals
        weights = trace.weights(layer)
        assert min(weights["res_attn"].min(), weights["res_mlp"].min()) > 0.05
    assert not np.allclose(trace.errors["tv"], trace.errors["tv_random"])


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma4_shared"])
def test_exports(family: str) -> None:
    tracer = Tracer(tiny_model(family))
    trace = one(tracer)
    table = trace.edges(output=5, stratum=1)
    assert len(table) == trace.edge_count[5, 1]
    assert (table.stratum == 0).sum() == trace.edge_count[5, 0]
    graph = trace.to_networkx(output=5, stratum=1)
    assert graph.number_of_edges() == len(table)
    halves = 1 if trace.geometry.parallel else 2
    top = (tracer.n_layers * halves, 5)
    reaching = nx.ancestors(graph, top) | {top}
    assert set(graph.nodes) == reaching
    matrix = trace.to_coo(output=5, stratum=1)
    size = (tracer.n_layers * halves + 1) * len(IDS)
    assert matrix.shape == (size, size)
    assert matrix.nnz == len(table)
    np.testing.assert_allclose(matrix.sum(), table.weight.sum(), rtol=1e-5)
    assert (matrix.row > matrix.col).all()


def test_weights_of_a_node_sum_to_one(tracer: Tracer) -> None:
    for importance in ("norm_l1", "norm_l2", "proximity"):
        trace = one(tracer, importance=importance)
        for layer in range(tracer.n_layers):
            found = trace.weights(layer)
            into_attention = np.nansum(found["attn"], (0, 2)) + found["res_attn"]
            np.testing.assert_allclose(into_attention, 1, atol=1e-5)
            np.testing.assert_allclose(found["mlp"] + found["res_mlp"], 1, atol=1e-5)


def test_edges_of_a_node_without_any_weight_are_told_from_no_edges() -> None:
    model = tiny_model("mistral")
    with torch.no_grad():
        model.get_input_embeddings().get_parameter("weight")[5] = 0
    into_first = one(Tracer(model)).weights(0)["attn"][:, 0]
    assert (into_first[:, 0] == 0).all()
    assert np.isnan(into_first[:, 1:]).all()


def test_the_cosine_of_a_vector_of_zeros_is_zero() -> None:
    model = tiny_model("mistral")
    with torch.no_grad():
        model.get_input_embeddings().get_parameter("weight")[5] = 0
    weights = one(Tracer(model), importance="cosine").weights(0)
    assert (weights["attn"][:, 0, 0] == 0.5).all()
    assert weights["res_attn"][0] == 0.5


def test_auto_strata(tracer: Tracer) -> None:
    """Strata are even in mean log size, and the last is a step short of the full graph."""
    trace = one(tracer, list(range(40)), select=AutoStrata(6))
    log_size = np.log10(trace.size).mean(0)
    steps = np.diff([*log_size, 0])
    assert len(trace.strata) == 6
    assert isinstance(trace.rule, Threshold)
    # Thresholds are interpolated between those tried, so steps differ by 3% of their mean at most.
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.1)
    again = tracer.choose_strata(AutoStrata(6), [list(range(40))], importance="norm_l1")
    assert again == trace.rule
    assert tracer.choose_strata(RULE, [IDS]) is RULE


def test_auto_strata_pass_over_a_run_of_equal_sizes() -> None:
    """Thresholds between which no weight lies give one size: one stratum for all of them."""

    def log_size(tau: NDArray[np.floating]) -> NDArray[np.floating]:
        # -2 to -1 over decades, equal down to 10^-5.05, then full within less than half a decade.
        return np.asarray(np.interp(np.log10(tau + 1e-9), [-5.4, -5.05, -2, -0.3], [0, -1, -1, -2]))

    tried = AutoStrata.pilot("norm_l1")
    chosen = AutoStrata(8).choose(tried, 10.0 ** log_size(np.array(tried.values))[None])
    steps = np.diff([*log_size(np.array(chosen.values)), 0])
    np.testing.assert_allclose(steps, 0.25, atol=0.06)
    with pytest.raises(InputError, match="only 1 different sizes"):
        AutoStrata(2).choose(tried, np.full((3, len(tried)), 0.5))


@pytest.mark.parametrize(
    "rule", [RULE, Nucleus([0.5, 0.1]), TopFraction([1.0, 0.5]), Size([0.2]), AutoStrata(3)]
)
def test_rules_survive_json(rule: Rule | AutoStrata) -> None:
    assert Rule.from_json(rule.to_json()) == rule


def test_rules_are_sorted() -> None:
    assert Threshold([0.001, 0.1]).values == (0.1, 0.001)
    assert Nucleus([0.9, 0.1]).values == (0.1, 0.9)
    assert TopFraction([1, 0.1]).values == (0.1, 1.0)


@pytest.mark.parametrize(
    ("rule", "values", "message"),
    [
        (Threshold, [], "0 values"),
        (Threshold, [0.1, 0.1], "0.1 is given twice"),
        (Threshold, [1.0], "1 is outside [0, 1)"),
        (Threshold, [-0.1], "outside"),
        (Threshold, [float("nan")], "nan is outside"),
        (Threshold, np.linspace(0, 0.9, 256), "256 values; 1 to 255"),
        (Threshold, ["x"], "list of numbers"),
        (Threshold, 0.1, "list of numbers"),
        (Nucleus, [0.0], "0 is outside (0, 1]"),
        (Nucleus, [1.1], "outside"),
        (TopFraction, [0.0], "outside"),
        (Size, [2.0], "outside"),
    ],
)
def test_impossible_rules(rule: type[Rule], values: Sequence[float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        rule(values)
    assert message in str(caught.value)
    assert rule.__name__ in str(caught.value)


@pytest.mark.parametrize("n", [0, 256, 1.5, "3", True])
def test_impossible_auto_strata(n: Any) -> None:
    with pytest.raises(InputError, match="AutoStrata n="):
        AutoStrata(n)


def test_fewer_sizes_than_strata() -> None:
    sizes = np.array([[0.1, 0.1, 0.5, 0.5]])
    with pytest.raises(InputError, match=r"AutoStrata\(3\): only 2 different sizes"):
        AutoStrata(3).choose(Threshold([0.4, 0.3, 0.2, 0.1]), sizes)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([], {}, "inputs are empty"),
        ([[]], {}, "empty sequence"),
        ([[1], []], {}, "empty sequence"),
        ([VOCABULARY], {}, f"token id {VOCABULARY} is outside the vocabulary 0..63"),
        ([3, -1], {}, "token id -1"),
        ("text", {}, "no tokenizer"),
        ([1.5], {}, "texts or lists of token ids"),
        ([[1.5]], {}, "not all token ids"),
        ({"input_ids": [IDS]}, {}, "a mapping"),
        (BatchEncoding({"input_ids": [IDS]}), {}, "a mapping"),
        (IDS, {"select": [0.1, 0.2]}, "give Threshold([0.1, 0.2])"),
        (torch.tensor([[0.5]]), {}, "whole numbers"),
        (torch.zeros(1, 0, dtype=torch.long), {}, "T >= 1"),
        (torch.zeros(1, 2, 3, dtype=torch.long), {}, "[B, T]"),
        (IDS, {"importance": "magic"}, "importance='magic'"),
        (IDS, {"attention": "cold"}, "attention='cold'"),
        (IDS, {"scope": "some"}, "scope='some'"),
        (IDS, {"count": "none"}, "count='none'"),
        (IDS, {"controls": ("upside",)}, "controls=['upside']"),
        (IDS, {"controls": ("random", "random")}, "once at most"),
        (IDS, {"select": Size([0.5])}, "scope='output'"),
        (IDS, {"scope": "output", "output": 8}, "output=8 is outside the 8 tokens"),
        (IDS, {"next_token": [1, 2]}, "next_token has 2 entries"),
        (IDS, {"next_token": [99]}, "token id 99"),
        (IDS, {"attention_mask": torch.ones(1, 8)}, "go with a tensor"),
        (torch.tensor([IDS]), {"attention_mask": torch.ones(1, 7)}, "attention_mask has shape"),
        (torch.tensor([IDS]), {"attention_mask": torch.zeros(1, 8)}, "only padding"),
        (torch.tensor([IDS]), {"segment_ids": torch.arange(8)[None] % 2}, "each must be one run"),
        (
            torch.tensor([IDS]),
            {"attention_mask": torch.arange(8)[None] % 2},
            "attention_mask has padding between tokens",
        ),
    ],
)
def test_impossible_input(
    tracer: Tracer, inputs: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        tracer.trace(inputs, **{"select": RULE, **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.choose_strata(AutoStrata(3), [[1, VOCABULARY]]), "outside the vocabulary"),
        (lambda t: t.choose_strata(AutoStrata(3), ["text"]), "no tokenizer"),
        (lambda t: t.choose_strata(AutoStrata(3), []), "at least one window"),
        (lambda t: t.choose_strata(AutoStrata(3), [[]]), "empty sequence"),
        (lambda t: t.observe([IDS], AutoStrata(3), Settings(), print), "AutoStrata has no cuts"),
        (lambda t: t.observe([IDS], Size([0.1]), Settings(), print), "a Threshold, Nucleus or Top"),
        (lambda t: t.observe([IDS], None, Settings(), print), "select=None is not a rule"),
        (lambda t: [*t.trace_batches([([IDS], [3])], AutoStrata(3), Settings())], "has no cuts"),
        (
            lambda t: [*t.trace_batches([([IDS], [3])], RULE, Settings(scope="output"))],
            "scope='output': batches are traced with scope='all'",
        ),
    ],
)
def test_impossible_streams(tracer: Tracer, call: Callable[[Tracer], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(tracer)


def test_ids_without_a_logit() -> None:
    """Llama 3.2 Vision's table of embeddings has more rows than its unembedding."""
    model = tiny_model("llama")
    model.set_input_embeddings(torch.nn.Embedding(VOCABULARY + 8, 32))
    with pytest.raises(InputError, match=r"token id 64 is outside the vocabulary 0\.\.63"):
        Tracer(model).trace([5, 64], select=Threshold([0.1]))


def test_too_long_for_learned_positions() -> None:
    tracer = Tracer(tiny_model("gpt2"))
    with pytest.raises(InputError, match=r"has 65 tokens; model .* takes 64 at most"):
        one(tracer, [1] * 65)
    # Two documents in a row have positions of their own.
    row, segments = torch.ones(1, 80, dtype=torch.long), torch.arange(80)[None] // 40
    assert len(many(tracer, row, segment_ids=segments)[0].tokens) == 80


@pytest.mark.parametrize(
    ("family", "longest"),
    [
        *((family, 64) for family in ("biogpt", "ctrl", "gpt2", "gpt_neo", "opt")),
        ("llama4_text", 8191),  # beyond it, temperatures are tuned
        ("xglm", None),
    ],
)
def test_the_longest_sequence(family: str, longest: int | None) -> None:
    assert Tracer(tiny_model(family)).max_length == longest


def test_padding_is_no_input() -> None:
    """Neither its ids nor its length count."""
    tracer = Tracer(tiny_model("gpt2"))
    expected = one(tracer)
    for columns in (slice(0, 8), slice(-8, None)):
        ids, mask = torch.full((1, 100), -100), np.zeros((1, 100))
        ids[0, columns], mask[0, columns] = torch.tensor(IDS), 1
        trace = many(tracer, ids, attention_mask=mask)[0]
        np.testing.assert_array_equal(trace.topology, expected.topology)
        np.testing.assert_allclose(trace.errors["tv"], expected.errors["tv"], atol=1e-5)


def test_one_next_token(tracer: Tracer) -> None:
    np.testing.assert_array_equal(
        one(tracer, next_token=3).errors["loss"], one(tracer, next_token=[3]).errors["loss"]
    )


def test_a_model_of_float64(tracer: Tracer) -> None:
    double = Tracer(tiny_model("llama").double())
    assert double.verify().ok
    np.testing.assert_array_equal(one(double).topology, one(tracer).topology)


def test_a_copy_holds_no_model(tracer: Tracer) -> None:
    """Nor does what is sent to another process."""
    trace = one(tracer)
    sent = copy.copy(trace)
    np.testing.assert_array_equal(sent.size, trace.size)
    for ask in (lambda: sent.edges(), lambda: sent.weights(0)):
        with pytest.raises(InputError, match="trace the input again"):
            ask()
    with pytest.raises(InputError, match="layer=3 is outside the 3 blocks"):
        trace.weights(3)


def test_as_many_strata_as_there_may_be(tracer: Tracer) -> None:
    """More than a pilot of few tries; on many tokens."""
    ids = torch.arange(3 * 60).remainder(VOCABULARY).view(3, 60)
    assert many(tracer, ids, select=AutoStrata(100))[0].size.shape == (60, 100)


@pytest.mark.parametrize(("output", "stratum"), [(8, 0), (-9, 0), (0, 2), (0, -3)])
def test_edges_out_of_range(tracer: Tracer, output: int, stratum: int) -> None:
    with pytest.raises(InputError, match="is outside"):
        one(tracer).edges(output, stratum)


def test_weights_too_large_to_write_out(tracer: Tracer) -> None:
    with pytest.raises(InputError, match=r"would take 17\.9 GiB"):
        one(tracer, [1] * 20000, scope="output", output=0).weights(0)


def test_bad_models(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"NaN or infinity, first in model.layers.1.mlp.up_proj"):
        Tracer(model)
    with pytest.raises(ModelError, match="cannot be loaded: there is no such folder, and as a hub"):
        Tracer.from_pretrained(tmp_path / "nothing")
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        Tracer.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a file: give the folder"):
        Tracer.from_pretrained(tmp_path / "config.json")
    with pytest.raises(InputError, match="device='abacus' is unknown; use auto, cpu, cuda"):
        Tracer.from_pretrained(tmp_path, device="abacus")
    with pytest.raises(InputError, match=r"device='vulkan' cannot be used: .* 'Vulkan' backend$"):
        Tracer.from_pretrained(tmp_path, device="vulkan")
    for dtype in ("float7", None):
        with pytest.raises(InputError, match=f"dtype={dtype!r} is unknown"):
            Tracer.from_pretrained(tmp_path, dtype=dtype)  # type: ignore[arg-type]


def test_undeclared_architecture(tmp_path: Path) -> None:
    from transformers import MambaConfig

    MambaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model_type='mamba' .*declare-architecture"):
        Tracer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "setting"),
    [
        ("cohere2_moe", {"rms_norm_eps": 1e-5}),
        ("falcon", {"alibi": True, "new_decoder_architecture": False, "multi_query": True}),
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
        ("gemma2", {"use_bidirectional_attention": True}),
        ("gemma4_text", {"num_kv_shared_layers": 3}),
        ("gemma4_text", {"use_bidirectional_attention": "all"}),
        ("granitemoehybrid", {"layer_types": ["attention", "mamba", "attention"]}),
        ("phimoe", {"sliding_window": 5}),
        ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 1}),
        ("gpt_bigcode", {"add_cross_attention": True, "multi_query": False}),
        ("xglm", {"add_cross_attention": True}),
    ],
)
def test_what_a_family_cannot_have(model_type: str, setting: dict[str, Any]) -> None:
    settings = {**GROUPED, "num_hidden_layers": 3, **FURTHER[model_type], **setting}
    config = AutoConfig.for_model(model_type, **settings)
    with pytest.raises(ModelError, match=f"this {model_type} model .*{next(iter(setting))}="):
        Tracer(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    "setting",
    [
        {"multi_query": True, "num_kv_heads": None},
        {"multi_query": False},
        {"multi_query": False, "parallel_attn": False},
        {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    ],
)
def test_wirings_of_falcon(setting: dict[str, Any]) -> None:
    """The one of the largest models is among the families."""
    plain = {"num_hidden_layers": 3, "new_decoder_architecture": False, "num_kv_heads": 4}
    settings = {**GROUPED, **FURTHER["falcon"], **plain, **setting}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", **settings))
    before = model.config._attn_implementation
    assert Tracer(model).verify().ok
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("model_type", "setting"),
    [
        ("gpt_bigcode", {"multi_query": False, "num_key_value_heads": 4}),
        ("granitemoehybrid", {"num_local_experts": 0, "position_embedding_type": None}),
        ("granitemoeshared", {"shared_intermediate_size": 0}),
        ("hyperclovax", {"use_post_norm": False}),
        ("opt", {"_remove_final_layer_norm": True}),
        ("opt", {"layer_norm_elementwise_affine": False}),
        ("opt", {"word_embed_proj_dim": 16}),
        ("opt", {"do_layer_norm_before": False}),
        ("gemma4_text", {"enable_moe_block": False, "attention_k_eq_v": False}),
        ("phimoe", {"sliding_window": 64}),  # as long as the longest sequence
    ],
)
def test_other_wirings(model_type: str, setting: dict[str, Any]) -> None:
    """What a family's config may say besides that of the tiny model."""
    settings = {**GROUPED, "num_hidden_layers": 3, **FURTHER[model_type], **setting}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    assert Tracer(model).verify().ok


@pytest.mark.parametrize("model_type", ["deepseek_v32", "glm_moe_dsa"])
def test_texts_longer_than_the_keys_that_are_chosen(model_type: str) -> None:
    settings = {**GROUPED, "num_hidden_layers": 3, **FURTHER[model_type], "index_topk": 6}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    tracer = Tracer(model)
    assert tracer.verify().ok  # up to six tokens
    with pytest.raises(InputError, match="a sequence has 7 tokens; model 'unnamed' takes 6"):
        tracer.trace(list(range(7)))


def test_incomplete_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_model("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, model.layers.0.mlp.up_proj"):
        Tracer.from_pretrained(tmp_path)


def test_overflow_is_reported() -> None:
    """Finite weights whose products are not: no silent NaN in a trace."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e38)
    with pytest.raises(ModelError, match="NaN or infinity on this input"):
        one(Tracer(model))


def test_the_model_is_left_as_it_was() -> None:
    model: Any = tiny_model("gpt_neox")
    before = model.config._attn_implementation
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        expected = model(ids).logits
        one(Tracer(model))
        with pytest.raises(DensitraceError):
            one(Tracer(model), [VOCABULARY])
        np.testing.assert_array_equal(model(ids).logits, expected)
    assert model.config._attn_implementation == before
    assert all("forward" not in block.__dict__ for block in model.gpt_neox.layers)


@pytest.mark.parametrize("family", ["codegen", "falcon", "gpt_neo", "gptj"])
def test_modules_that_compute_attention_themselves_in_16_bits(family: str, tmp_path: Path) -> None:
    """Buffers of a checkpoint stay float32, and so do CodeGen's rotated queries and keys."""
    tiny_model(family).save_pretrained(tmp_path)
    tracer = Tracer.from_pretrained(tmp_path, device="cpu", dtype="bfloat16")
    assert tracer.verify().ok


def test_a_module_that_computes_attention_itself_is_left_as_it_was() -> None:
    model: Any = tiny_model("gptj")
    one(Tracer(model))
    with pytest.raises(DensitraceError):
        one(Tracer(model), [VOCABULARY])
    assert all("_attn" not in block.attn.__dict__ for block in model.transformer.h)


def test_reference_backend_agrees() -> None:
    """The plain-torch definition of every op, asked for by name, gives the same traces."""
    model = tiny_model("gemma3")
    auto, plain = (one(Tracer(model, backend=backend)) for backend in ("auto", "reference"))
    np.testing.assert_array_equal(auto.topology, plain.topology)
    with pytest.raises(DensitraceError, match=r"backend='abacus'"):
        one(Tracer(model, backend="abacus"))


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_op_runs_on_the_backend_asked_for(
    importance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = dispatch.serving

    def asked(op: str, device: Any, backend: str = "auto", edges: Any = None) -> str:
        assert backend == "reference" or op in kernels.WITHOUT_BACKENDS, op
        return serving(op, device, backend, edges)

    monkeypatch.setattr(dispatch, "serving", asked)
    tracer = Tracer(tiny_model("llama"), backend="reference")
    for select in (RULE, Nucleus([0.5]), TopFraction([0.5])):
        trace = one(tracer, importance=importance, select=select, controls=("inverse", "random"))
    assert set(trace.weights(0)) == set(KINDS)
    assert len(trace.edges()) == trace.edge_count[-1, 0]
    frozen = one(
        tracer, importance=importance, attention="frozen", scope="output", select=Size([0.5])
    )
    assert frozen.size.shape == (1, 1)
    assert tracer.verify().ok


@pytest.mark.parametrize("family", [*VARIANTS, "phi"])  # whose unembedding has a bias
def test_bfloat16(family: str) -> None:
    """A model in bfloat16 traces, near its float32 self, and verifies within its own rounding."""
    exact = one(Tracer(tiny_model(family)))
    tracer = Tracer(tiny_model(family).bfloat16())
    assert tracer.verify().ok
    rounded = one(tracer)
    assert np.abs(rounded.size - exact.size).mean() < 0.02
    assert np.abs(rounded.errors["tv"] - exact.errors["tv"]).mean() < 0.05


def test_models_that_threads_load_at_once(byte_folder: Path) -> None:
    """transformers' own functions are what they were: tied weights are still tied."""
    before = transformers.PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: Tracer.from_pretrained(byte_folder, device="cpu"), range(16)))
    assert transformers.PreTrainedModel.tie_weights is before


@pytest.mark.parametrize("shown", [True, False])
def test_loading_leaves_the_progress_bar_as_it_was(byte_folder: Path, shown: bool) -> None:
    bar: Any = hub_logging
    before = bar.is_progress_bar_enabled()
    try:
        (bar.enable_progress_bar if shown else bar.disable_progress_bar)()
        Tracer.from_pretrained(byte_folder, device="cpu")
        assert bar.is_progress_bar_enabled() == shown
    finally:
        (bar.enable_progress_bar if before else bar.disable_progress_bar)()


@pytest.mark.parametrize(("rank", "index"), [(None, 0), ("0", 0), ("3", 3), ("5", 1)])
def test_each_rank_of_torchrun_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, index: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert loading._device("auto") == torch.device("cuda", index)
