"""Ops in C++ on tensors in main memory: thin calls into `densitrace._cpu`.

The number of threads is torch's, so `torch.set_num_threads` governs these ops too. Queries, keys
and values are passed without a copy if they are float32 or bfloat16; everything else is float32.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _cpu
from .edges import (
    AttentionEdges,
    CosineWeight,
    GivenWeight,
    NormWeight,
    Pattern,
    ProximityWeight,
    RandomWeight,
)
from .hashing import LOW_BITS
from .results import AttentionStats, EdgeLevels, EdgeTable, OutputErrors

LOGIT_BYTES = 1 << 24  # per product with the unembedding: about the size of the shared cache
LOGIT_ROWS = 128  # at least, so that each read of the unembedding serves many rows
TABLE_EDGES = 1 << 21  # of a table: 38 MiB, enough for an ordinary block
DEVICES = ("cpu",)  # `dispatch` reads this
ISA = "auto"  # the instruction set; tests run all of them

_empty = partial(torch.empty, device="cpu")  # torch's default device may be another


def _options() -> tuple[int, str]:
    """The last arguments of every call: number of threads, instruction set."""
    return torch.get_num_threads(), ISA


# ---- arguments ---------------------------------------------------------------------------------


def _rows(tensor: Tensor) -> NDArray[np.float32] | NDArray[np.uint16]:
    """A strided view, bfloat16 as uint16; copied if of another dtype or with strided rows."""
    tensor = tensor.detach()
    if tensor.dtype not in (torch.float32, torch.bfloat16):
        tensor = tensor.float()
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        bits: NDArray[np.uint16] = tensor.view(torch.uint16).numpy()
        return bits
    values: NDArray[np.float32] = tensor.numpy()
    return values


def _floats(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().contiguous().numpy()
    return array


def _optional(tensor: Tensor | None) -> NDArray[np.float32] | None:
    return None if tensor is None else _floats(tensor)


def _integers(tensor: Tensor) -> NDArray[np.int32]:
    array: NDArray[np.int32] = tensor.to(torch.int32).contiguous().numpy()
    return array


def _pattern(pattern: Pattern) -> _cpu.Pattern:
    segments = pattern.segments
    return _cpu.Pattern(
        _rows(pattern.q),
        _rows(pattern.k),
        pattern.scale,
        pattern.window or 0,
        pattern.softcap or 0.0,
        _optional(pattern.sinks),
        None if segments is None else _integers(segments),
        _optional(pattern.lse),
    )


def _edges(edges: AttentionEdges) -> _cpu.Edges:
    pattern, weight = _pattern(edges.pattern), edges.weight
    match weight:
        case NormWeight(source, target):
            return _cpu.Edges.norm(pattern, _floats(source), _optional(target))
        case CosineWeight(direction, source, v):
            return _cpu.Edges.cosine(pattern, _floats(direction), _floats(source), _rows(v))
        case ProximityWeight(node, v, w_o, target):
            return _cpu.Edges.proximity(
                pattern, _floats(node), _rows(v), _floats(w_o), _optional(target)
            )
        case RandomWeight(seed, stream, positions):
            return _cpu.Edges.random(
                pattern, seed & LOW_BITS, stream & LOW_BITS, _integers(positions)
            )
        case GivenWeight(given):
            return _cpu.Edges.given(pattern, _floats(given))


# ---- ops ---------------------------------------------------------------------------------------


def source_norms(v: Tensor, w_o: Tensor, p: int) -> Tensor:
    batch, _, length, _ = v.shape
    norms = _empty(batch, len(w_o), length, dtype=torch.float32)
    _cpu.source_norms(_rows(v), _floats(w_o), p, norms.numpy(), *_options())
    return norms


def attention_stats(pattern: Pattern, v: Tensor, source: Tensor | None) -> AttentionStats:
    batch, heads, length = pattern.shape
    output = _empty(batch, heads, length, v.shape[-1], dtype=torch.float32)
    lse = _empty(batch, heads, length, dtype=torch.float32)
    mass = _empty(batch, length, dtype=torch.float32)
    _cpu.attention_stats(
        _pattern(pattern),
        _rows(v),
        _optional(source),
        output.numpy(),
        lse.numpy(),
        mass.numpy(),
        *_options(),
    )
    return AttentionStats(output, lse, mass)


def edge_mass(edges: AttentionEdges) -> Tensor:
    batch, _, length = edges.pattern.shape
    mass = _empty(batch, length, dtype=torch.float32)
    _cpu.edge_mass(_edges(edges), mass.numpy(), *_options())
    return mass


def edge_weights(edges: AttentionEdges) -> Tensor:
    batch, heads, length = edges.pattern.shape
    weights = _empty(batch, heads, length, length, dtype=torch.float32)
    _cpu.edge_weights(_edges(edges), weights.numpy(), *_options())
    return weights


def nucleus_cuts(
    edges: AttentionEdges | None, side: Tensor, masses: Tensor, total: Tensor
) -> Tensor:
    cuts = _empty(len(masses), *side.shape[1:], dtype=torch.float32)
    _cpu.nucleus_cuts(
        None if edges is None else _edges(edges),
        _floats(side),
        masses.double().numpy(),
        _floats(total),
        cuts.numpy(),
        *_options(),
    )
    return cuts


def fraction_cuts(edges: AttentionEdges | None, side: Tensor, fractions: Tensor) -> Tensor:
    cuts = _empty(len(fractions), *side.shape[1:], dtype=torch.float32)
    _cpu.fraction_cuts(
        None if edges is None else _edges(edges),
        _floats(side),
        fractions.double().numpy(),
        cuts.numpy(),
        *_options(),
    )
    return cuts


def random_cuts(edges: AttentionEdges, eligible: Tensor, counts: Tensor) -> Tensor:
    cuts = _empty(counts.shape, dtype=torch.float32)
    _cpu.random_cuts(
        _edges(edges),
        eligible.to(torch.uint8).contiguous().numpy(),
        counts.long().contiguous().numpy(),
        cuts.numpy(),
        *_options(),
    )
    return cuts


def edge_levels(edges: AttentionEdges, cuts: Tensor) -> EdgeLevels:
    _, batch, length = cuts.shape
    levels = _empty(batch, length, length, dtype=torch.uint8)
    degrees = _empty(cuts.shape, dtype=torch.int32)
    seen, summed = _cpu.edge_levels(
        _edges(edges), _floats(cuts), levels.numpy(), degrees.numpy(), *_options()
    )
    return EdgeLevels(levels, degrees, summed / seen if seen else None)


def lane_attention(
    edges: AttentionEdges,
    cuts: Tensor,
    v: Tensor,
    lanes: Pattern | None,
    invert: bool,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    strata, batch, length = cuts.shape
    heads, width = edges.pattern.shape[1], v.shape[-1]
    # Tokens before heads in memory, as the output projection reads them.
    output = _empty(strata, batch, length, heads, width, dtype=torch.float32).transpose(2, 3)
    own = None
    if lanes is not None:  # lanes share the segments of the clean pattern
        q, k = lanes.q.flatten(0, 1), lanes.k.flatten(0, 1)
        own = _pattern(replace(lanes, q=q, k=k, segments=None, lse=None))
    _cpu.lane_attention(
        _edges(edges),
        _floats(cuts),
        _rows(v.flatten(0, 1)),
        own,
        invert,
        output.numpy(),
        *_options(),
    )
    return output.to(dtype)


def collect_edges(edges: AttentionEdges, cuts: Tensor) -> Iterator[EdgeTable]:
    return _tables(_edges(edges), _floats(cuts), edges.pattern.shape)


def _tables(
    arguments: _cpu.Edges, floats: NDArray[np.float32], shape: tuple[int, int, int]
) -> Iterator[EdgeTable]:
    counts, row = np.empty(shape, dtype=np.int64), 0
    while row < counts.size:
        columns, row = _cpu.collect_edges(arguments, floats, counts, TABLE_EDGES, row, *_options())
        if len(columns[0]):
            yield EdgeTable(*map(torch.from_numpy, columns))
        del columns  # free this table before the next one is made


def bottleneck(reach: Tensor, levels: Tensor) -> Tensor:
    result = torch.empty_like(reach, memory_format=torch.contiguous_format)
    _cpu.bottleneck(
        reach.contiguous().numpy(),
        levels.contiguous().numpy(),
        result.numpy(),
        *_options(),
    )
    return result


def trace_sizes(reach: Tensor, degrees: Tensor) -> Tensor:
    result = _empty(degrees.shape, dtype=torch.int64)
    _cpu.trace_sizes(
        reach.contiguous().numpy(),
        degrees.contiguous().numpy(),
        result.numpy(),
        *_options(),
    )
    return result


def output_errors(
    hidden: Tensor,
    lanes: Tensor,
    unembedding: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    next_ids: Tensor,
) -> OutputErrors:
    strata, tokens, _ = lanes.shape
    vocabulary = len(unembedding)
    errors = OutputErrors.empty(strata, tokens, hidden.device)
    arrays = [getattr(errors, name).numpy() for name in OutputErrors.__dataclass_fields__]
    table = unembedding.float().T
    padded = -(-vocabulary // 16) * 16  # a whole number of vectors
    rows = max(LOGIT_ROWS, LOGIT_BYTES // (4 * padded))
    block = max(1, rows // (1 + strata))
    buffer = _empty((1 + strata) * min(block, tokens), padded, dtype=torch.float32)
    for first in range(0, tokens, block):
        chunk = slice(first, min(tokens, first + block))
        states = torch.cat([hidden[None, chunk], lanes[:, chunk]]).float().flatten(0, 1)
        logits = buffer[: len(states)]
        torch.mm(states, table, out=logits[:, :vocabulary])
        _cpu.output_errors(
            logits.numpy().reshape(1 + strata, -1, padded),
            _optional(bias),
            scale,
            softcap or 0.0,
            next_ids[chunk].contiguous().numpy(),
            vocabulary,
            arrays,
            first,
            *_options(),
        )
    return errors
