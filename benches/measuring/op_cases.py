"""Every op with arguments as in a scan of a model: what is timed on a GPU, and what is tuned."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from problems import LAYER, AttentionProblem, PredictionProblem, thresholds

from densitrace import kernels
from densitrace.kernels import AttentionEdges, NormWeight

BLOCKS = LAYER + 1  # of the models here: what comes after the block looked at costs time alone


def first_blocks(config: Any) -> Any:
    """The config cut to its first blocks: what an op costs does not depend on the others."""
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
        """With its arguments by place and by name."""
        return cls(op, arguments, options)

    @property
    def edges(self) -> AttentionEdges | None:
        """What it is told of edges, if anything."""
        return next((each for each in self.arguments if isinstance(each, AttentionEdges)), None)

    def run(self) -> object:
        """The op once, on the backend that serves it; all of its results, if it gives several.

        What edges keep of work done for them, the next run does again.
        """
        new = (
            replace(x, weight=replace(x.weight)) if isinstance(x, AttentionEdges) else x
            for x in self.arguments
        )
        with torch.inference_mode():
            result = getattr(kernels, self.op)(*new, **self.options)
            return list(result) if isinstance(result, Iterator) else result


def cases(attention: AttentionProblem, prediction: PredictionProblem) -> dict[str, Case]:
    """All ops of a scan, and the cuts of the nucleus rule."""
    edges, node, cuts = attention.edges, attention.node, attention.cuts
    assert isinstance(edges.weight, NormWeight)
    levels = kernels.edge_levels(edges, cuts)
    masses = tuple((k + 1) / (len(cuts) + 1) for k in range(len(cuts)))
    # Proximities of all in-edges sum to about the node's norm.
    near, tau = attention.proximity, torch.tensor(thresholds(len(cuts)).values)
    near_cuts = tau.to(cuts)[:, None, None] * attention.vector.norm(1, dim=-1)
    states = (prediction.hidden, prediction.lanes, prediction.unembedding)
    return {
        "source_norms, L1": Case.of("source_norms", attention.v, attention.w_o, 1),
        "source_norms, L2": Case.of("source_norms", attention.v, attention.root, 2),
        "attention_stats": Case.of(
            "attention_stats", edges.pattern, attention.v, edges.weight.source
        ),
        "edge_mass": Case.of("edge_mass", edges),
        "edge_levels": Case.of("edge_levels", edges, cuts),
        "nucleus_cuts": Case.of("nucleus_cuts", edges, node.side, masses, node.total),
        "lane_attention, live": Case.of(
            "lane_attention", edges, cuts, attention.lanes_v, attention.lanes
        ),
        "lane_attention, frozen": Case.of("lane_attention", edges, cuts, attention.lanes_v, None),
        "bottleneck": Case.of("bottleneck", levels.levels, levels.levels),
        "trace_sizes": Case.of("trace_sizes", levels.levels, levels.degrees),
        "edge_levels, proximity": Case.of("edge_levels", near, near_cuts),
        "edge_mass, proximity": Case.of("edge_mass", near),
        "collect_edges": Case.of("collect_edges", edges, cuts[:1]),
        "output_errors": Case.of("output_errors", *states, next_ids=prediction.next_ids),
    }
