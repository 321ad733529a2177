"""Kernel arguments for an attention pattern and its edges, by the names that kernels use."""

from typing import Any

import torch
import triton
from torch import Tensor

from ..edges import AttentionEdges, CosineWeight, GivenWeight, NormWeight, Pattern, RandomWeight
from . import configs

SMALLEST = 16  # least number of columns of a tile in tl.dot


def tile_width(size: int) -> int:
    """A head size rounded up to the width of a tile: a power of 2, at least SMALLEST."""
    return max(SMALLEST, int(triton.next_power_of_2(size)))


def rows(tensor: Tensor) -> Tensor:
    """The tensor with contiguous rows; other dimensions stay strided, as models lay out heads."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """Strides of a [n, m, rows, columns] tensor: s_NAME_n, s_NAME_m, s_NAME_t."""
    return {f"s_{name}_{axis}": tensor.stride(i) for i, axis in enumerate("nmt")}


def queries_and_keys(pattern: Pattern, prefix: str = "") -> dict[str, Any]:
    """p_q, p_k and their strides; `prefix` distinguishes those of lanes."""
    q, k = rows(pattern.q), rows(pattern.k)
    named = {f"p_{prefix}q": q, f"p_{prefix}k": k}
    return named | strides(f"{prefix}q", q) | strides(f"{prefix}k", k)


def geometry(pattern: Pattern) -> dict[str, Any]:
    """The other arguments of a pattern, except sinks: scalars, segments, compile-time variants.

    `q` stands in for absent segments, which that variant never reads.

    Raises:
        ValueError: the scale is not above 0. Kernels take the largest score before they scale.
    """
    if not pattern.scale > 0:
        raise ValueError(f"scale={pattern.scale} of a pattern of attention is not above 0")
    _, heads, length = pattern.shape
    absent = pattern.q
    segments = pattern.segments
    return {
        "p_segments": absent if segments is None else segments.to(torch.int32).contiguous(),
        "scale": float(pattern.scale),
        "softcap": float(pattern.softcap or 1.0),
        "length": length,
        "HEADS": heads,
        "GROUPS": pattern.k.shape[1],
        "D_K": pattern.q.shape[-1],
        "BD": tile_width(pattern.q.shape[-1]),
        "WINDOW": pattern.window or 0,
        "HAS_SOFTCAP": pattern.softcap is not None,
        "HAS_SEGMENTS": segments is not None,
    }


def sinks(pattern: Pattern) -> dict[str, Any]:
    """The sinks' logits, for the kernels that make a softmax; `q` stands in if there are none."""
    logits = pattern.sinks
    return {
        "p_sinks": pattern.q if logits is None else logits.float().contiguous(),
        "HAS_SINKS": logits is not None,
    }


def _signed(value: int) -> int:
    """The low 32 bits as a signed integer, so that every seed has the same type in a kernel."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def edge_weight(edges: AttentionEdges) -> dict[str, Any]:
    """The arguments of `weights.weight_tile`; `q` stands in for tensors that a kind lacks.

    Raises:
        TypeError: no kernel supports this kind of weight.
    """
    weight, absent = edges.weight, edges.pattern.q
    source: Tensor | None = None
    target: Tensor | None = None
    positions: Tensor | None = None
    given: Tensor | None = None
    sent, seed, stream = absent, 0, 0
    match weight:
        case NormWeight(source, target):
            kind = "norm"
        case CosineWeight(direction, source, v):
            kind, target, sent = "cosine", direction, rows(v)
        case RandomWeight(seed, stream, positions):
            kind = "random"
        case GivenWeight(given):
            kind = "given"
        case _:
            raise TypeError(f"no kernel weighs edges by a {type(weight).__name__}")

    def floats(tensor: Tensor | None) -> Tensor:
        return absent if tensor is None else tensor.float().contiguous()

    return {
        "p_source": floats(source),
        "p_target": floats(target),
        "p_sent": sent,
        "p_positions": absent if positions is None else positions.to(torch.int32).contiguous(),
        "p_given": floats(given),
        "seed": _signed(seed),
        "salt": _signed(stream),  # `stream` is a word of Triton's own at a launch
        "D_SENT": sent.shape[-1],
        "BSENT": tile_width(sent.shape[-1]),
        "KIND": kind,
        "HAS_TARGET": target is not None,
    } | strides("sent", sent)


def weighing_config(
    op: str, pattern: Pattern, weight: dict[str, Any], *values: Tensor
) -> configs.Config:
    """The configuration of a kernel that weighs edges: see `configs.launch`.

    Args:
        op: name of the op in the tables.
        pattern: its attention.
        weight: the arguments of `edge_weight`.
        values: other tensors that it multiplies.
    """
    widest = max(pattern.q.shape[-1], weight["D_SENT"], *(value.shape[-1] for value in values))
    factors = pattern.q, pattern.k, *values
    return configs.launch(op, tile_width(widest), *factors, kind=weight["KIND"])
