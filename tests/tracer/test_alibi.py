"""Biases on scores as more entries of queries and keys."""

import pytest
import torch

from densitrace.tracer.models.alibi import biased, by_position

EPS = 2.0**-22  # three pieces of 8 bits


@pytest.mark.parametrize("head_size", [64, 96, 128])  # 1 / scale is a power of two, or is not
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [True, False])
def test_biased_scores(head_size: int, dtype: torch.dtype, kept: bool) -> None:
    """A bias in the queries' dtype, or in float32, is added as it is, whatever the scale."""
    torch.manual_seed(0)
    query, key = (torch.randn(2, 3, 50, head_size).to(dtype) for _ in range(2))
    bias = torch.rand(2, 3, 50) * 2000
    bias = bias.to(dtype) if kept else bias
    scale = head_size**-0.5
    wide_query, wide_key = biased(query, key, bias, scale)
    assert wide_query.dtype == wide_key.dtype == dtype
    assert wide_key.shape == (2, 3, 50, wide_query.shape[-1])
    assert head_size < wide_key.shape[-1] <= head_size + 8
    assert wide_key.shape[-1] % 8 == 0
    torch.testing.assert_close(wide_key[..., :head_size], key, rtol=0, atol=0)
    expected = query.double() @ key.double().mT * scale + bias.double()[:, :, None]
    ours = wide_query.double() @ wide_key.double().mT * scale
    torch.testing.assert_close(ours, expected, rtol=0, atol=2000 * EPS)


def test_by_position() -> None:
    """Each token's key has the bias of its place in its document."""
    table = torch.arange(12.0).view(2, 6)  # heads, places
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    found = by_position(table, positions)
    assert found.shape == (2, 2, 5)
    for row, head, column in ((0, 0, 2), (0, 1, 3), (1, 1, 4)):
        assert found[row, head, column] == table[head, positions[row, column]]
