"""Weights of attention edges, a tile of targets at a time: csrc/cuda/weigh.cu."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ... import _cuda
from ..edges import AttentionEdges, GivenWeight, NormWeight, Pattern, ProximityWeight
from .arguments import address, floats
from .device import device_and_stream
from .products import product, split_factors
from .tiles import Tile, tiles


class Weighing:
    """Weights of attention edges, tile by tile. Keeps the tensors alive that the kernels read."""

    def __init__(self, edges: AttentionEdges) -> None:
        pattern = edges.pattern
        self.batch, self.heads, self.length = pattern.shape
        self.groups, self.device = pattern.k.shape[1], pattern.device
        self.where = device_and_stream(self.device)
        self.tensors: list[Tensor] = []
        # `_logsumexp` weighs by scores, which need no lse; everything later reads this one.
        self.lse = pattern.lse if pattern.lse is not None else self._logsumexp(pattern)
        self.pattern = self._pattern(replace(pattern, lse=self.lse))
        self.weights = self._weights(edges)

    def weigh(self, tile: Tile, share: Tensor | None = None) -> Tensor:
        """Weights of a tile, float32; for proximity upper bounds, and alpha / rho into `share`."""
        return self._weigh(self.pattern, self.weights, tile, share)

    def _weigh(
        self, pattern: "_cuda.Pattern", weights: "_cuda.Weights", tile: Tile, share: Tensor | None
    ) -> Tensor:
        weight = torch.empty(tile.shape, dtype=torch.float32, device=self.device)
        into = 0 if share is None else share.data_ptr()
        _cuda.weigh(pattern, weights, tile.compiled, weight.data_ptr(), into, *self.where)
        return weight

    def _logsumexp(self, pattern: Pattern) -> Tensor:
        lse = torch.empty(pattern.shape, dtype=torch.float32, device=self.device)
        compiled = self._pattern(replace(pattern, lse=lse))
        for tile in tiles(self.batch, 0, self.heads, self.length):
            scores = self._weigh(compiled, _cuda.Weights.scores(), tile, None)
            source = torch.arange(tile.rows.stop, device=self.device)
            beyond = source > source[tile.rows, None]  # above the diagonal: may be unwritten
            lse[:, :, tile.rows] = scores.masked_fill_(beyond, -torch.inf).logsumexp(-1)
        if pattern.sinks is not None:
            lse = torch.logaddexp(lse, pattern.sinks.float()[None, :, None])
        return lse

    def address(self, name: str, tensor: Tensor | None, *shape: int) -> int:
        """Address of a float32 copy that lives as long as this object; 0 for None."""
        if tensor is None:
            return 0
        self.tensors.append(floats(tensor))
        return address(name, self.tensors[-1], torch.float32, *shape, on=self.device)

    def factors(self, left: Tensor, right: Tensor) -> tuple[int, int, int]:
        """Addresses of [B, H, T, d] and [B, G, T, d] as bfloat16 for weigh.cu, and their new d.

        The kernel reads 16 bytes at a time, so rows are padded with zeros to a multiple of 8 and
        start at multiples of 16 bytes.
        """
        left, right = split_factors(left, right, -1)
        depth = left.shape[-1] + -left.shape[-1] % 8
        return (
            self._factor(left, self.heads, depth),
            self._factor(right, self.groups, depth),
            depth,
        )

    def _factor(self, tensor: Tensor, heads: int, depth: int) -> int:
        if tensor.shape[-1] < depth:
            tensor = pad(tensor, (0, depth - tensor.shape[-1]))
        tensor = tensor.contiguous()
        self.tensors.append(tensor if tensor.data_ptr() % 16 == 0 else tensor.clone())
        shape = (self.batch, heads, self.length, depth)
        return address("a factor", self.tensors[-1], torch.bfloat16, *shape, on=self.device)

    def _pattern(self, pattern: Pattern) -> "_cuda.Pattern":
        q, k, depth = self.factors(pattern.q, pattern.k)
        segments = 0
        if pattern.segments is not None:
            self.tensors.append(pattern.segments.to(torch.int32).contiguous())
            shape = (self.batch, self.length)
            segments = address("segments", self.tensors[-1], torch.int32, *shape, on=self.device)
        return _cuda.Pattern(
            q,
            k,
            self.address("lse", pattern.lse, *pattern.shape),
            segments,
            self.batch,
            self.heads,
            self.groups,
            self.length,
            depth,
            pattern.window or 0,
            pattern.scale,
            pattern.softcap or 0.0,
        )

    def _weights(self, edges: AttentionEdges) -> "_cuda.Weights":
        shape = edges.pattern.shape
        targets = (self.batch, self.length)
        match edges.weight:
            case NormWeight(source, target):
                return _cuda.Weights.norm(
                    self.address("source", source, *shape),
                    self.address("target", target, *targets),
                )
            case GivenWeight(given):
                return _cuda.Weights.given(
                    self.address("weight", given, *shape, self.length),
                )
            case ProximityWeight(node, v, w_o, target):
                along, values, depth = self.factors(_along(node, w_o), v)
                return _cuda.Weights.proximity(
                    along, values, self.address("target", target, *targets), depth
                )
        raise TypeError(f"no kernel weighs edges by a {type(edges.weight).__name__}")


def _along(node: Tensor, w_o: Tensor) -> Tensor:
    """float32 [B, H, T, d_v]: W_O^T sign(n), whose product with v_s bounds what s adds to t.

    An entry 0 counts as positive, as in csrc/cuda/proximity.cu. A NaN or infinite entry gives NaN.
    """
    heads, hidden, width = w_o.shape
    signs = torch.where(node < 0, -1.0, 1.0).add_(node - node)  # node - node: 0, or NaN
    every = w_o.transpose(0, 1).reshape(hidden, heads * width)
    along = product(signs.bfloat16().flatten(0, 1), every)
    return along.view(*node.shape[:2], heads, width).transpose(1, 2)
