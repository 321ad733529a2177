"""Quantised checkpoints, resident: traced as a plain model that computes with the same numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_model import byte_tokenizer
from tiny_models import tiny_model
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, TorchAoConfig

from densitrace import ModelError, Threshold, Trace, Tracer
from densitrace.tracer.models.linear import is_plain, stored
from densitrace.tracer.models.loading import load

IDS = [5, 9, 33, 2, 60, 17, 8, 41, 3, 7]
RULE = Threshold([0.1, 0.03, 0.01])


@pytest.fixture(params=["llama", "olmo2", "gpt_neox", "phi3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of int8 weights."""
    tiny_model(request.param).save_pretrained(tmp_path / "plain")
    how = TorchAoConfig(Int8WeightOnlyConfig())
    model: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=how, dtype=torch.float32
    )
    model.save_pretrained(tmp_path / "int8")
    byte_tokenizer().save_pretrained(tmp_path / "int8")
    return tmp_path / "int8"


def dequantised(folder: Path) -> Tracer:
    """The same numbers in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    quantised = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and not is_plain(module)
    ]
    assert len(quantised) >= 4 * model.config.num_hidden_layers
    for module in quantised:
        weight: Any = module.weight
        module.weight = nn.Parameter(weight.dequantize())
    return Tracer(model)


@pytest.mark.parametrize("attention", ["live", "frozen"])
def test_traces_are_those_of_the_same_numbers_in_float32(folder: Path, attention: Any) -> None:
    ours, plain = Tracer.from_pretrained(folder, device="cpu"), dequantised(folder)
    assert ours.verify().ok
    for importance in ("norm_l1", "proximity"):
        how: dict[str, Any] = {"select": RULE, "attention": attention, "importance": importance}
        mine, theirs = (tracer.trace(IDS, **how) for tracer in (ours, plain))
        assert isinstance(mine, Trace) and isinstance(theirs, Trace)
        np.testing.assert_array_equal(mine.size, theirs.size)
        assert mine.size.min() < 0.5 < mine.size.max()
        for name, values in mine.errors.items():
            np.testing.assert_allclose(values, theirs.errors[name], atol=1e-4, err_msg=name)


def test_the_hash_is_of_the_quantised_numbers(folder: Path) -> None:
    first, again = (Tracer.from_pretrained(folder, device="cpu") for _ in range(2))
    assert first.weight_hash == again.weight_hash != dequantised(folder).weight_hash
    held = stored(first._decoder.blocks[0].projection.get_parameter("weight"))
    next(tensor for tensor in held if tensor.dtype == torch.int8)[0, 0] += 1
    assert first.weight_hash != again.weight_hash


def test_a_scale_that_is_not_finite_is_refused(folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    quantised = next(
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear) and not is_plain(module)
    )
    next(tensor for tensor in stored(quantised) if tensor.dtype == torch.float32).fill_(torch.nan)
    with pytest.raises(ModelError, match="hold NaN or infinity"):
        Tracer(model)


def test_it_goes_to_the_device_asked_for(folder: Path) -> None:
    model, _ = load(folder, device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_it_cannot_be_offloaded(folder: Path) -> None:
    with pytest.raises(ModelError, match="quantised"):
        Tracer.from_pretrained(folder, device="cpu", offload="layers")


@pytest.mark.parametrize(
    "family",
    ["bloom", "codegen", "dbrx", "gpt2", "gpt_bigcode", "gpt_neox", "mpt", "phi3"],
)
def test_values_where_one_projection_gives_them_with_others(family: str) -> None:
    """The same, whether it is asked for all of its outputs or multiplied by some of its rows."""
    block = Tracer(tiny_model(family))._decoder.blocks[0]
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = block.values(states, {})
        for module in block.attention.modules():
            if is_plain(module):  # as a quantised one is not
                module.__class__ = type("Other", (type(module),), {})
        assert not any(map(is_plain, block.attention.modules()))
        torch.testing.assert_close(block.values(states, {}), expected)
