"""A model that changes, or is no plain one: traced as it is at each call, and left as it was."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from densitrace import ModelError, Nucleus, Size, Threshold, TopFraction, Trace, Tracer
from densitrace.tracer.cuda_graphs import GraphCache
from densitrace.tracer.models.state import contents, settings

IDS = [5, 9, 33, 2, 60, 17, 8, 41, 3, 7]
RULE = Threshold([0.1, 0.03, 0.01])
IMPORTANCES = ["norm_l1", "norm_l2", "proximity"]


def traced(tracer: Tracer, ids: list[int] = IDS, **options: Any) -> Trace:
    found = tracer.trace(ids, **{"select": RULE, **options})
    assert isinstance(found, Trace)
    return found


def assert_same(ours: Trace, expected: Trace, atol: float = 0) -> None:
    np.testing.assert_array_equal(ours.edge_count, expected.edge_count)
    np.testing.assert_allclose(ours.surprisal, expected.surprisal, rtol=0, atol=atol)
    for name, values in expected.errors.items():
        np.testing.assert_allclose(ours.errors[name], values, rtol=0, atol=atol, err_msg=name)


def projections(model: PreTrainedModel) -> list[nn.Linear]:
    """The output projections of a Llama's attention."""
    layers: Any = model.get_submodule("model.layers")
    return [layer.self_attn.o_proj for layer in layers]


def fresh(model: PreTrainedModel) -> Tracer:
    """A tracer that has derived nothing yet."""
    return Tracer(copy.deepcopy(model))


# ---- threads -------------------------------------------------------------------------------------


def test_threads_take_turns() -> None:
    model = tiny_model("llama").eval()
    tracers = [Tracer(model), Tracer(model)]
    rows = [[(3 * row + 7 * column) % 64 for column in range(12 + row)] for row in range(12)]
    alone = [traced(tracers[0], row) for row in rows]
    ids, implementation = torch.tensor([IDS]), model.config._attn_implementation
    with torch.no_grad():
        before = model(ids).logits
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: traced(tracers[i % 2], rows[i]), range(len(rows))))
    for ours, expected in zip(together, alone, strict=True):
        assert_same(ours, expected)
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.config._attn_implementation == implementation
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


def test_each_thread_has_its_own_heartbeat() -> None:
    tracer, beats = Tracer(tiny_model("llama")), {0: 0, 1: 0}

    def run(thread: int) -> None:
        def beat() -> None:
            beats[thread] += 1

        with tracer.with_heartbeat(beat):
            traced(tracer)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, beats))
    assert beats[0] == beats[1] > 0


def test_a_used_tracer_can_be_copied() -> None:
    tracer = Tracer(tiny_model("llama"))
    before = traced(tracer)
    assert_same(traced(copy.deepcopy(tracer)), before)


# ---- weights -------------------------------------------------------------------------------------


def ablate(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for projection in projections(model):
            projection.weight[:, :8] = 0


def ablate_data(model: PreTrainedModel) -> None:
    """An edit that torch's version counters miss."""
    for projection in projections(model):
        projection.weight.data[:, :8] = 0


def load(model: PreTrainedModel) -> None:
    other = {name: tensor.flip(0) for name, tensor in model.state_dict().items()}
    model.load_state_dict(other)


def other_final_norm(model: PreTrainedModel) -> None:
    model.get_submodule("model.norm").get_parameter("weight").data.neg_().add_(3)


def replaced(model: PreTrainedModel) -> None:
    for projection in projections(model):
        projection.weight = nn.Parameter(projection.weight.detach().roll(1, 1))


def half_precision(model: Any) -> None:
    model.to(torch.bfloat16)


@pytest.mark.parametrize(
    "change", [ablate, ablate_data, load, other_final_norm, replaced, half_precision]
)
def test_changed_weights_are_traced_and_hashed(change: Callable[[PreTrainedModel], None]) -> None:
    model = tiny_model("llama")
    tracer = Tracer(model)
    first, hashed = [traced(tracer, importance=name) for name in IMPORTANCES], tracer.weight_hash
    change(model)
    anew = fresh(model)
    for name, before in zip(IMPORTANCES, first, strict=True):
        after = traced(tracer, importance=name)
        assert_same(after, traced(anew, importance=name))
        assert not np.array_equal(after.errors["tv"], before.errors["tv"])
    weights = first[0].weights(0)["attn"]  # recomputed with the weights of now
    np.testing.assert_array_equal(weights, traced(anew).weights(0)["attn"])
    assert tracer.verify().ok
    assert tracer.weight_hash == anew.weight_hash != hashed


@pytest.mark.parametrize(
    ("family", "norm"),
    [
        ("olmo2", "post_attention_layernorm"),
        ("bitnet", "attn_sub_norm"),
        ("openai-gpt", "ln_1"),
        ("opt_post", "final_layer_norm"),
    ],
)
def test_a_norm_of_attention_edges_that_changes(family: str, norm: str) -> None:
    model = tiny_model(family)
    tracer = Tracer(model)
    traced(tracer)
    for name, module in model.named_modules():
        if name.endswith(norm):
            weight = module.get_parameter("weight").detach()
            module.weight = nn.Parameter(weight * torch.linspace(0.1, 4, len(weight)))
    assert_same(traced(tracer), traced(fresh(model)))


def test_unchanged_weights_are_derived_and_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = Tracer(tiny_model("llama"))
    traced(tracer)
    block = tracer._decoder.blocks[0]
    kept, hashed = block.w_o, tracer.weight_hash
    traced(tracer, [1, 2, 3])
    tracer.verify()
    assert block.w_o is kept
    monkeypatch.setattr("densitrace.tracer.fingerprints.weight_hash", None)  # not called
    assert tracer.weight_hash == hashed


def test_the_hash_is_of_names_and_numbers() -> None:
    """Not of the order of modules, nor of how numbers are laid out in memory."""
    model: Any = tiny_model("llama")
    hashed = Tracer(model).weight_hash
    inner, norm = model.model, model.model.norm
    inner._modules["embed_tokens"] = inner._modules.pop("embed_tokens")
    norm.weight = nn.Parameter(torch.stack([norm.weight.detach()] * 2, -1)[:, 0])
    assert not norm.weight.is_contiguous()
    assert Tracer(model).weight_hash == hashed


@pytest.mark.parametrize(
    ("held", "edit"),
    [
        (["a"], lambda held: held.append("b")),
        ({"a"}, lambda held: held.add("b")),
        ({"a": 1}, lambda held: held.update(a=2)),
        ({"a": ["b"]}, lambda held: held["a"].clear()),
    ],
)
def test_edits_within_an_attribute_are_seen(held: Any, edit: Callable[[Any], None]) -> None:
    module = nn.Linear(2, 2)
    module.active = held
    before = settings(module)
    assert settings(module) == before
    edit(held)
    assert settings(module) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
@pytest.mark.parametrize("shape", [(), (3,), (3, 5), (131, 257)])
def test_a_checksum_sees_places(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.5).relu().to(dtype)
    known = contents([tensor])
    elsewhere = torch.empty(1 + tensor.numel(), dtype=dtype)[1:].view(shape).copy_(tensor)
    assert contents([elsewhere]) == known
    assert contents([tensor, tensor]) == known * 2
    if tensor.ndim:
        assert contents([tensor[None]]) != known
    for dim in range(tensor.ndim):
        assert contents([tensor.roll(1, dim)]) != known
    edited = tensor.clone()
    edited.view(-1)[-1] = edited.view(-1)[-1] == 0
    assert contents([edited]) != known


def test_graphs_of_other_weights_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(run: Callable[[], dict[str, Tensor]], _: torch.device) -> Any:
        outputs = run()
        return lambda: outputs  # a replay that sees no change

    model = tiny_model("llama")
    tracer = Tracer(model)
    monkeypatch.setattr(tracer, "_graphs", GraphCache(capture))
    for _ in range(3):
        traced(tracer)
    for change in (ablate_data, replaced, head_hooks, mlp_hooks):
        change(model)
        expected = traced(fresh(model))
        for _ in range(3):
            assert_same(traced(tracer), expected)


# ---- modes ---------------------------------------------------------------------------------------


def test_dropout_is_off_while_tracing_and_the_mode_stays() -> None:
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    expected = traced(fresh(model.eval()))
    model.train()
    frozen = model.get_submodule("transformer.h.0").eval()
    tracer, modes = Tracer(model), [module.training for module in model.modules()]
    assert_same(traced(tracer), expected)
    assert tracer.verify().ok
    assert [module.training for module in model.modules()] == modes
    assert model.training
    assert not frozen.training


@pytest.mark.parametrize("part", ["model", "model.layers.1", "model.layers.1.self_attn", "whole"])
def test_compiled_modules_run_as_they_are(part: str) -> None:
    model: Any = tiny_model("llama")
    expected = Tracer(copy.deepcopy(model))
    if part == "whole":
        model = torch.compile(model, backend="eager")
    else:
        model.get_submodule(part).compile(backend="eager")
    tracer = Tracer(model)
    assert_same(traced(tracer), traced(expected))
    assert tracer.verify().ok
    assert tracer.weight_hash == expected.weight_hash


def test_autocast_is_off_while_tracing() -> None:
    """In a training loop, say: results are in the model's own dtype."""
    tracer = Tracer(tiny_model("llama"))
    expected = traced(tracer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(traced(tracer), expected)
        assert tracer.verify().ok
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        ("llama", "return_dict", False),
        ("bloom", "output_attentions", True),
        ("falcon", "output_attentions", True),
        ("gpt_neo", "output_attentions", True),
        ("gpt_neo", "output_hidden_states", True),
    ],
)
def test_a_config_with_other_outputs(family: str, name: str, value: bool) -> None:
    model = tiny_model(family)
    expected = traced(fresh(model))
    setattr(model.config, name, value)
    tracer = Tracer(model)
    assert_same(traced(tracer), expected)
    assert tracer.verify().ok
    assert getattr(model.config, name) is value


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_default_dtype_of_float64(backend: str) -> None:
    model = tiny_model("llama")
    expected = [traced(Tracer(model, backend=backend), importance=name) for name in IMPORTANCES]
    torch.set_default_dtype(torch.float64)
    try:
        found = [
            traced(Tracer(model, backend=backend), importance=name, controls=("random",))
            for name in IMPORTANCES
        ]
        assert Tracer(model, backend=backend).verify().ok
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, other in zip(found, expected, strict=True):
        assert_same(ours, other)


@pytest.mark.parametrize("family", ["llama", "bloom"])
@pytest.mark.parametrize(
    "options",
    [
        *({"importance": name} for name in ("norm_l1", "norm_l2", "proximity", "cosine", "random")),
        {"select": Nucleus([0.5])},
        {"select": TopFraction([0.5])},
        {"select": Size([0.5]), "scope": "output"},
        {"attention": "frozen", "controls": ("inverse", "random")},
    ],
)
def test_another_default_device(family: str, options: dict[str, Any]) -> None:
    """Nothing on `meta` can be read: every tensor that a trace needs is made where it belongs."""
    tracer = Tracer(tiny_model(family))
    expected = traced(tracer, **options)
    with torch.device("meta"):
        found = traced(tracer, **options)
        edges = found.edges(output=-1, stratum=0)
        assert tracer.verify().ok
    assert_same(found, expected)
    assert edges.equals(expected.edges(output=-1, stratum=0))


# ---- projections that are no plain ones ----------------------------------------------------------


def ablating(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    states = inputs[0].clone()
    states[..., :8] = 0
    return (states,)


def head_hooks(model: PreTrainedModel) -> None:
    for projection in projections(model):
        projection.register_forward_pre_hook(ablating)


def mlp_hooks(model: PreTrainedModel) -> None:
    for layer in (0, 1):
        mlp = model.get_submodule(f"model.layers.{layer}.mlp")
        mlp.register_forward_hook(lambda module, states, branch: 0.5 * branch)


def test_hooks_on_the_output_projection_count() -> None:
    model = tiny_model("llama")
    ablated = copy.deepcopy(model)
    ablate(ablated)
    tracer = Tracer(model)
    plain = traced(tracer)
    handles = [projection.register_forward_pre_hook(ablating) for projection in projections(model)]
    assert_same(traced(tracer), traced(Tracer(ablated)), atol=1e-5)
    assert tracer.verify().ok
    for handle in handles:
        handle.remove()
    assert_same(traced(tracer), plain)


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 1.5


def prune_some(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", 0.3)


@pytest.mark.parametrize(
    "wrap",
    [prune_some, lambda module: parametrize.register_parametrization(module, "weight", Scaled())],
    ids=["pruned", "parametrised"],
)
@pytest.mark.parametrize("path", ["model.layers.1.self_attn.o_proj", "model.norm", "lm_head"])
def test_computed_weights(path: str, wrap: Callable[[nn.Module], Any]) -> None:
    model = tiny_model("llama")
    plain = copy.deepcopy(model)
    module: Any = model.get_submodule(path)
    wrap(module)
    with torch.no_grad():
        plain.get_submodule(path).get_parameter("weight").copy_(module.weight)
    tracer = Tracer(model)
    for name in IMPORTANCES:
        expected = traced(Tracer(plain), importance=name)
        assert_same(traced(tracer, importance=name), expected, atol=1e-5)
    assert tracer.verify().ok


def test_what_an_unembedding_is_computed_from_changes() -> None:
    model: Any = tiny_model("llama")
    parametrize.register_parametrization(model.lm_head, "weight", Scaled())
    tracer = Tracer(model)
    traced(tracer)
    model.lm_head.parametrizations.weight.original.data[:, :8] = 0
    assert_same(traced(tracer), traced(fresh(model)))


class Adapter(nn.Module):
    """As of PEFT: a module beside a projection, that can be switched off."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.in_features, self.off = base, base.in_features, False
        self.added = nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        base: Tensor = self.base_layer(states)
        return base if self.off else base + self.added(states)


def test_an_adapter_that_is_switched_off() -> None:
    model = tiny_model("llama")
    plain = traced(fresh(model))
    adapters = [Adapter(projection) for projection in projections(model)]
    layers: Any = model.get_submodule("model.layers")
    for layer, adapter in zip(layers, adapters, strict=True):
        layer.self_attn.o_proj = adapter
    tracer = Tracer(model)
    on = traced(tracer)
    for adapter in adapters:
        adapter.off = True
    off = traced(tracer)
    assert_same(off, plain, atol=1e-5)
    assert not np.array_equal(on.edge_count, off.edge_count)


# ---- what is no causal language model ------------------------------------------------------------


class Peft(nn.Module):
    def get_base_model(self) -> None:
        """As of PEFT."""


def meta() -> PreTrainedModel:
    with torch.device("meta"):
        return tiny_model("llama")


def bare_projection() -> PreTrainedModel:
    model = tiny_model("llama")
    layer: Any = model.get_submodule("model.layers.0")
    layer.self_attn.o_proj = nn.Sequential(layer.self_attn.o_proj)
    return model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: "examples/model", r"Tracer\.from_pretrained\('examples/model'\)"),
        (lambda: nn.Linear(2, 2), "Linear is no causal language model"),
        (Peft, r"Peft wraps the model: give its get_base_model\(\)"),
        (lambda: nn.DataParallel(tiny_model("llama")), r"DataParallel .*its \.module"),
        (lambda: tiny_model("llama").base_model, "LlamaModel has no unembedding"),
        (
            partial(LlamaForSequenceClassification, LlamaConfig(vocab_size=8, hidden_size=32)),
            "LlamaForSequenceClassification has no unembedding",
        ),
        (meta, "not in memory, first model.embed_tokens.weight"),
        (bare_projection, "Sequential cannot be traced: it has no in_features"),
    ],
)
def test_what_cannot_be_traced(model: Callable[[], Any], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        Tracer(model())
    assert "\n" not in str(caught.value)


def test_a_loaded_model_is_no_path() -> None:
    model: Any = tiny_model("llama")
    with pytest.raises(ModelError, match=r"^a LlamaForCausalLM is no folder .* Tracer\(model\)"):
        Tracer.from_pretrained(model)
