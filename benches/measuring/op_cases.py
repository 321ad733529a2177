"""Every op with arguments as in a scan of a model, for timing and tuning on a GPU."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from problems import LAYER, AttentionProblem, PredictionProblem, thresholds
from torch import Tensor

from densitrace import kernels
from densitrace.kernels import (
    AttentionEdges,
    CosineWeight,
    EdgeWeight,
    GivenWeight,
    NormWeight,
    RandomWeight,
)

BLOCKS = LAYER + 1  # blocks after the one looked at would only cost time


def first_blocks(config: Any) -> Any:
    """Cut a config to its first blocks: the cost of an op does not depend on the others."""
    config.num_hidden_layers = BLOCKS
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:BLOCKS]
    return config


@dataclass(frozen=True)
class Case:
    """An op with its arguments, as `kernels` takes them."""

    op: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @classmethod
    def of(cls, op: str, *arguments: Any, **options: Any) -> "Case":
        """Build a case from positional and named arguments."""
        return cls(op, arguments, options)

    @property
    def edges(self) -> AttentionEdges | None:
        """The edges among the arguments, if any."""
        return next((value for value in self.arguments if isinstance(value, AttentionEdges)), None)

    def run(self) -> object:
        """Run the op once on the backend that serves it; an iterator is read to its end.

        Edge weights are copied first, so that work cached on them is done again every time.
        """
        new = (
            replace(x, weight=replace(x.weight)) if isinstance(x, AttentionEdges) else x
            for x in self.arguments
        )
        with torch.inference_mode():
            result = getattr(kernels, self.op)(*new, **self.options)
            return list(result) if isinstance(result, Iterator) else result


def shares_of(cuts: Tensor) -> tuple[float, ...]:
    """Shares of a node for a rule with as many strata as cuts."""
    return tuple((k + 1) / (len(cuts) + 1) for k in range(len(cuts)))


def of_edges(
    attention: AttentionProblem, edges: AttentionEdges, cuts: Tensor, node_cuts: Case
) -> dict[str, Case]:
    """The ops of a scan on edges; `node_cuts` is that of the nodes that they enter."""
    return {
        "edge_mass": Case.of("edge_mass", edges),
        "edge_levels": Case.of("edge_levels", edges, cuts),
        node_cuts.op: node_cuts,
        "lane_attention, live": Case.of(
            "lane_attention", edges, cuts, attention.lanes_v, attention.lanes
        ),
        "lane_attention, frozen": Case.of("lane_attention", edges, cuts, attention.lanes_v, None),
    }


def cases(attention: AttentionProblem, prediction: PredictionProblem) -> dict[str, Case]:
    """All ops of a scan, and the cuts of the nucleus rule."""
    edges, node, cuts = attention.edges, attention.node, attention.cuts
    assert isinstance(edges.weight, NormWeight)
    levels = kernels.edge_levels(edges, cuts)
    nucleus = Case.of("nucleus_cuts", edges, node.side, shares_of(cuts), node.total)
    # Proximities of all in-edges sum to about the norm of the node's vector.
    near, tau = attention.proximity, torch.tensor(thresholds(len(cuts)).values)
    near_cuts = tau.to(cuts)[:, None, None] * attention.vector.norm(1, dim=-1)
    states = (prediction.hidden, prediction.lanes, prediction.unembedding)
    return {
        "source_norms, L1": Case.of("source_norms", attention.v, attention.w_o, 1),
        "source_norms, L2": Case.of("source_norms", attention.v, attention.root, 2),
        "attention_stats": Case.of(
            "attention_stats", edges.pattern, attention.v, edges.weight.source
        ),
        **of_edges(attention, edges, cuts, nucleus),
        "bottleneck": Case.of("bottleneck", levels.levels, levels.levels),
        "trace_sizes": Case.of("trace_sizes", levels.levels, levels.degrees),
        "edge_levels, proximity": Case.of("edge_levels", near, near_cuts),
        "edge_mass, proximity": Case.of("edge_mass", near),
        "collect_edges": Case.of("collect_edges", edges, cuts[:1]),
        "output_errors": Case.of("output_errors", *states, next_ids=prediction.next_ids),
    }


def of_kinds(attention: AttentionProblem) -> dict[str, Case]:
    """The ops that take edges of any kind of weight, with every kind but norms."""
    pattern, node, v = attention.edges.pattern, attention.node, attention.v
    batch, heads, length = pattern.shape
    uniform = torch.rand(batch, heads, length, length, device=v.device)
    weights: dict[str, EdgeWeight] = {
        "cosine": CosineWeight(
            torch.randn(batch, heads, length, v.shape[-1], device=v.device),
            torch.full(pattern.shape, 0.1, device=v.device),
            v,
        ),
        "random": RandomWeight(0, 0, torch.arange(length, device=v.device).expand(batch, -1)),
        "given": GivenWeight(uniform),
    }
    shares = shares_of(attention.cuts)
    cuts = 1 - torch.tensor(shares, device=v.device)[:, None, None].expand_as(attention.cuts)
    found: dict[str, Case] = {}
    for kind, weight in weights.items():
        edges = AttentionEdges(pattern, weight)
        fraction = Case.of("fraction_cuts", edges, node.side, shares)
        group = of_edges(attention, edges, cuts, fraction)
        found |= {f"{name}, {kind}": case for name, case in group.items()}
    return found
