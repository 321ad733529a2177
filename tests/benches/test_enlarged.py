"""A tiled-up model computes the same as the small one."""

from typing import Any

import numpy as np
import pytest
import torch
from device_models import random_model, tiny_llama
from enlarged import LIKE_8B, Enlargement, enlarged
from problems import bundled
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from densitrace import Threshold, Trace, Tracer
from densitrace.tracer.nodes import ImportanceName

CPU = torch.device("cpu")
IDS = torch.randint(96, (2, 19), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small() -> LlamaForCausalLM:
    config = tiny_llama(96, blocks=3)
    model = random_model(config, CPU, torch.float32)
    assert isinstance(model, LlamaForCausalLM)
    return model


@pytest.mark.parametrize(
    "by",
    [
        Enlargement(),
        Enlargement(hidden=3),
        Enlargement(heads=2),
        Enlargement(head_dim=4),
        Enlargement(inner=3),
        Enlargement(hidden=3, heads=3, head_dim=2, inner=5),
    ],
)
@torch.no_grad()
def test_logits_are_the_same(small: LlamaForCausalLM, by: Enlargement) -> None:
    large = enlarged(small, by, CPU, torch.float32)
    torch.testing.assert_close(large(IDS).logits, small(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("importance", ["norm_l1", "proximity"])
def test_traces_are_the_same(small: LlamaForCausalLM, importance: ImportanceName) -> None:
    """With the same number of heads each edge keeps its weight."""
    large = enlarged(small, Enlargement(hidden=2, head_dim=2, inner=3), CPU, torch.float32)
    counts = []
    for model in (small, large):
        rule, ids = Threshold([0.1, 0.01]), IDS[0].tolist()
        traced = Tracer(model).trace(ids, select=rule, importance=importance)
        assert isinstance(traced, Trace)
        counts.append(traced.edge_count)
    np.testing.assert_array_equal(counts[0], counts[1])


def test_weights_are_tiled_where_the_model_is_made(small: LlamaForCausalLM) -> None:
    """With a meta device as the target: nothing large is created on the CPU."""
    made: list[torch.device] = []

    class Made(TorchDispatchMode):
        def __init__(self) -> None:
            TorchDispatchMode.__init__(self)

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.numel() > 32 * 96:
                made.append(result.device)
            return result

    with Made():
        large = enlarged(small, Enlargement(hidden=3, heads=2), torch.device("meta"))
    assert {parameter.device.type for parameter in large.parameters()} == {"meta"}
    assert {device.type for device in made} == {"meta"}


@torch.no_grad()
def test_repeated_blocks_add_the_same_in_total(small: LlamaForCausalLM) -> None:
    """Holds where a block does not see its own contribution, as in the first."""
    large = enlarged(small, Enlargement(blocks=2), CPU, torch.float32)
    assert large.config.num_hidden_layers == 6
    first, again = large.model.layers[:2]
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    inner = small.model.layers[0].mlp.down_proj.weight
    torch.testing.assert_close(2 * first.mlp.down_proj.weight, inner)


def test_the_bundled_model_becomes_one_of_six_billion_weights() -> None:
    small = bundled()._decoder.model.config
    assert isinstance(small, LlamaConfig)
    config = LIKE_8B.config(small)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert 6e9 < sum(parameter.numel() for parameter in model.parameters()) < 7e9
    assert config.head_dim == 128
