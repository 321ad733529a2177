"""ALiBi: score biases per head and key, as additional entries of queries and keys.

A score's bias is linear in the distance between its two tokens. Softmax ignores terms that all
scores of a row share, so a bias by the key's position is enough, and a number per key is one more
product in the score: kernels need no support for it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

_PIECES = 3  # 8-bit mantissas (bfloat16) that add up to a 24-bit one (float32)
_ALIGNED = 8  # head sizes are padded to a multiple of this


def biased(query: Tensor, key: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Extend queries and keys so that their scaled product includes a bias.

    1 / scale and the bias are split into sums of numbers of the queries' dtype, so that in 16 bits
    the bias loses no precision beyond the model's own rounding.

    Args:
        query, key: [N, H, T, d], of the same dtype.
        bias: [N, H, T], by key.
        scale: factor on the product.

    Returns:
        Query and key [N, H, T, d + a few].
    """
    ones = _pieces(torch.tensor(1 / scale, dtype=torch.float64, device="cpu"), key.dtype)
    biases = _pieces(bias, key.dtype)
    pairs = [
        (one, b) for i, one in enumerate(ones) for j, b in enumerate(biases) if i + j < _PIECES
    ]
    more = (0, -(key.shape[-1] + len(pairs)) % _ALIGNED)
    entries = [query.new_full(query.shape[:-1], float(one)) for one, _ in pairs]
    wide_query = torch.cat([query, torch.stack(entries, -1)], -1)
    wide_key = torch.cat([key, torch.stack([b for _, b in pairs], -1)], -1)
    return pad(wide_query, more), pad(wide_key, more)


def _pieces(numbers: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Split numbers into summands of a dtype; one piece if it represents them exactly."""
    pieces = [numbers.to(dtype)]
    if dtype.itemsize < min(numbers.dtype.itemsize, 4):
        for _ in range(_PIECES - 1):
            numbers = numbers - pieces[-1]
            pieces.append(numbers.to(dtype))
    return pieces


def by_position(table: Tensor, positions: Tensor) -> Tensor:
    """Look up biases [N, H, T] of keys at positions [N, T] in a table by position [H, T]."""
    return table[:, positions].transpose(0, 1)


def key_bias(
    build: Callable[[Tensor, int, torch.dtype], Tensor],
    heads: int,
    positions: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """[N, H, T]: the biases of keys at positions [N, T], from a family's `build_alibi_tensor`."""
    table = build(torch.ones_like(positions[:1]), heads, dtype)
    return by_position(table[:, 0], positions)
