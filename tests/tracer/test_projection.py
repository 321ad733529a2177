"""The output projection as edges are weighed with it."""

import pytest
import torch
from tiny_models import VARIANTS, tiny_model
from torch import nn

from densitrace.tracer.models import Decoder, LinearNorm, architecture_of


def decoder(family: str, device: str, dtype: torch.dtype) -> Decoder:
    model = tiny_model(family)
    nn.Module.to(model, device=device, dtype=dtype)
    return Decoder(model, architecture_of(model.config))


@pytest.mark.parametrize("family", [*VARIANTS, "granite"])
def test_a_root_keeps_lengths(family: str) -> None:
    """Of what the last block sends, through its own norm and the final one."""
    model = decoder(family, "cpu", torch.float32)
    block = model.blocks[-1]
    own = () if block.attention_norm is None else (block.attention_norm,)
    for norms in ((), own, (*own, *model.final_norms)):
        w_o, root = block.folded_w_o(norms), block.folded_root(norms)
        heads, _, width = w_o.shape
        assert root.shape == (heads, width, width)
        v = torch.randn(heads, width, 9, generator=torch.Generator().manual_seed(1))
        expected = (w_o.double() @ v.double()).norm(dim=1)
        torch.testing.assert_close((root @ v).norm(dim=1).double(), expected, atol=0, rtol=1e-5)
    block.forget_weights()
    assert not block._roots


def test_a_root_of_a_matrix_of_low_rank_is_of_numbers() -> None:
    """Though its smallest eigenvalues may be rounded to below 0."""
    block = decoder("llama", "cpu", torch.float32).blocks[0]
    weight = block.projection.get_parameter("weight").detach()
    weight.copy_(weight[:, :1] * weight[:1])
    w_o, root = block.folded_w_o(()), block.folded_root(())
    torch.testing.assert_close(root.norm(dim=(1, 2)), w_o.norm(dim=(1, 2)))


@pytest.mark.parametrize("family", VARIANTS)
def test_a_gpu_multiplies_the_weights_as_they_are(family: str) -> None:
    """No copy in another dtype, of every block of the model; a CPU's ops read float32."""
    for device, dtype in (("meta", torch.bfloat16), ("cpu", torch.float32)):
        w_o = decoder(family, device, torch.bfloat16).blocks[0].w_o
        assert (w_o.dtype, w_o.stride(-1)) == (dtype, 1)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_norm_folds_into_the_matrix_after_it(centred: bool, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    matrix, vectors = torch.randn(5, 7, generator=generator), torch.randn(9, 7, generator=generator)
    norm = LinearNorm(torch.randn(7, generator=generator) if weighted else None, centred, 1e-5)
    torch.testing.assert_close(vectors @ norm.fold_before(matrix).T, norm.fold(vectors) @ matrix.T)
