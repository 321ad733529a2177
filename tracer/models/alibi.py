"""ALiBi: biases on scores, one a head and key, as more entries of queries and keys.

A score's bias is linear in the distance between its two tokens. As softmax takes no notice of what
all scores of a row have in common, the key's position alone will do, and a number of the key is one
more product: no kernel has to know of it.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

_PIECES = 3  # numbers of 8 bits that make one of 24
_ALIGNED = 8  # entries of a head are a multiple of it


def biased(query: Tensor, key: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Queries and keys whose scaled product has a bias added to it.

    1 / scale and the bias are each written as sums of numbers of the queries' dtype, so that in 16
    bits a bias loses no more than the model's own rounding took of it.

    Args:
        query, key: [N, H, T, d], of one dtype.
        bias: [N, H, T], by key.
        scale: of the product.

    Returns:
        Both [N, H, T, d + a few].
    """
    ones = _pieces(torch.tensor(1 / scale, dtype=torch.float64), key.dtype)
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
    """What sums up to numbers, in a dtype: one piece where it holds them as they are."""
    pieces = [numbers.to(dtype)]
    if dtype.itemsize < min(numbers.dtype.itemsize, 4):
        for _ in range(_PIECES - 1):
            numbers = numbers - pieces[-1]
            pieces.append(numbers.to(dtype))
    return pieces


def by_position(table: Tensor, positions: Tensor) -> Tensor:
    """[N, H, T]: the biases of keys at positions [N, T], of those of positions 0, 1, ... [H, T]."""
    return table[:, positions].transpose(0, 1)
