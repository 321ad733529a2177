"""Products of float32 precision on the matrix units, of factors split into bfloat16 pieces."""

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor) -> Tensor:
    """float32 [..., n, m] from [..., n, d] and [..., d, m], as precise as float32.

    One bfloat16 product on the matrix units (cuBLAS), independent of torch's TF32 settings.
    """
    left, right = split_factors(left, right, -2)
    multiply = torch.mm if left.dim() == 2 else torch.bmm
    if left.is_cpu:  # out_dtype exists on GPUs only
        return multiply(left.float(), right.float())
    return multiply(left, right, out_dtype=torch.float32)


def split_factors(left: Tensor, right: Tensor, inner: int) -> tuple[Tensor, Tensor]:
    """Two factors as bfloat16, whose product with float32 sums is as precise as float32.

    Each factor is split into bfloat16 pieces whose products are exact. The pieces are concatenated
    along the inner dimension, the last of `left` and dimension `inner` of `right`.
    """
    lefts, rights = _pieces(left), _pieces(right)
    # The smallest products come first; those left out are below the rounding of float32.
    pairs = [(i, j) for i in range(len(lefts)) for j in range(len(rights)) if i + j < 3]
    pairs.sort(key=sum, reverse=True)
    if len(pairs) == 1:
        return lefts[0], rights[0]
    return (
        torch.cat([lefts[i] for i, _ in pairs], -1),
        torch.cat([rights[j] for _, j in pairs], inner),
    )


def _pieces(tensor: Tensor) -> list[Tensor]:
    """Split a tensor into a sum of one, two or three bfloat16 tensors, of 8 bits each."""
    pieces, rest = [tensor.bfloat16()], tensor
    for _ in range({torch.bfloat16: 0, torch.float16: 1}.get(tensor.dtype, 2)):
        rest = rest.float() - pieces[-1]
        pieces.append(rest.bfloat16())
    return pieces
