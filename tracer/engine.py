"""The lane loop: clean and masked streams advance through the model together (METHOD §5).

Lane 0 is the clean forward pass. At each block it yields the weights of all edges into the block's
nodes, a rule turns them into cuts, and the other lanes, one a stratum and again one a stratum for
every control, use the cuts at once. Nothing of size T x T x heads is kept: per node layer there
remain the level map (T x T bytes) and the in-degrees.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .. import kernels
from ..kernels import AttentionEdges, Pattern, RandomWeight
from .batch import Batch
from .models import Block, Decoder, LinearNorm
from .nodes import AttentionBranch, Importance, Node, RandomImportance
from .select import Rule

Attention = Literal["live", "frozen"]
Control = Literal["inverse", "random"]
CONTROLS: tuple[str, ...] = get_args(Control)

_CONTROL_STREAM = 1 << 20  # random numbers of the control, apart from those of the importance


@dataclass(frozen=True)
class NodeLevels:
    """What remains of a node layer for the sizes: the levels and numbers of its kept in-edges."""

    layer: int
    side: Tensor  # uint8 [B, T]: most cuts cleared by a side edge
    degrees: dict[str, Tensor]  # int32 [K, B, T] kept in-edges by kind
    attention: Tensor | None = None  # uint8 [B, T, T] level map of the attention edges


@dataclass(frozen=True)
class LaneRun:
    """The outcome of one pass over the model."""

    hidden: Tensor  # [1 + lanes, B, T, D] final-normed states, lane 0 clean
    levels: list[NodeLevels]  # from the embedding up
    windows: list[int | None]  # sliding window of each block


@dataclass(frozen=True)
class Draw:
    """Edges drawn at random: those whose random weight exceeds the cut."""

    cuts: Tensor  # float32 [K, B, T]
    weight: RandomWeight  # of attention edges


@dataclass(frozen=True)
class Selection:
    """What the lanes keep of a node's in-edges."""

    node: Node
    cuts: Tensor  # float32 [K, B, T], +inf at nodes outside the trace
    side: dict[str, Tensor] = field(default_factory=dict)  # bool [lanes, B, T]; empty: all kept
    drawn: Draw | None = None  # attention edges of the random control

    def apply(self, kind: str, vector: Tensor) -> Tensor:
        """Edge vectors [lanes * B, T, D], zero in the lanes that drop the edge."""
        if not self.side:
            return vector
        return vector * self.side[kind].flatten(0, 1)[..., None]


Observer = Callable[[Node, Tensor], None]  # sees each node and its cuts [K, B, T]


@dataclass
class LaneLoop:
    """One pass over the model for one batch.

    `gates`, where given, holds for each node layer (from the embedding up) which strata's traces a
    node is in, bool [K, B, T]: `scope="output"`. A node outside keeps nothing.
    """

    decoder: Decoder
    batch: Batch
    importance: Importance
    rule: Rule
    attention: Attention = "live"
    controls: Sequence[str] = ()
    masked_lanes: bool = True  # False: the clean lane alone, for weights, levels and sizes
    gates: Sequence[Tensor] | None = None
    output_only: bool = False  # of the last block, only the last token's nodes are in the graph
    seed: int = 0
    backend: str = "auto"
    observers: Sequence[Observer] = ()
    _levels: list[NodeLevels] = field(default_factory=list, init=False)
    _windows: list[int | None] = field(default_factory=list, init=False)

    @property
    def lanes(self) -> int:
        """Streams in the batch, the clean one included."""
        return 1 + (len(self.rule) * (1 + len(self.controls)) if self.masked_lanes else 0)

    @torch.inference_mode()
    def run(self) -> LaneRun:
        """Run the model once."""
        self._levels, self._windows = [], []
        batch = self.batch
        states = self.decoder.hidden_states(
            batch.ids.repeat(self.lanes, 1),
            batch.positions.repeat(self.lanes, 1),
            batch.valid.long().repeat(self.lanes, 1),
            self._run_block,
        )
        return LaneRun(states.unflatten(0, (self.lanes, -1)), self._levels, self._windows)

    # ---- one block ---------------------------------------------------------------------------

    def _run_block(self, layer: int, hidden: Tensor, call: dict[str, Any]) -> Tensor:
        block = self.decoder.blocks[layer]
        if self.decoder.parallel:
            return self._parallel_block(layer, block, hidden, call)
        return self._sequential_block(layer, block, hidden, call)

    def _sequential_block(
        self, layer: int, block: Block, hidden: Tensor, call: dict[str, Any]
    ) -> Tensor:
        keep, attention = self._attend(layer, block, hidden, call, ("res_attn",), (hidden,), ())
        states = keep.apply("res_attn", hidden) + attention
        branch = block.mlp(states)
        final = (self.decoder.final_norm,) if self._is_last(layer) else ()
        side = [self._folded(vector, final) for vector in (states, branch)]
        node = self.importance.mlp_node(layer, ("res_mlp", "mlp"), side)
        keep = self._select(node)
        return keep.apply("res_mlp", states) + keep.apply("mlp", branch)

    def _parallel_block(
        self, layer: int, block: Block, hidden: Tensor, call: dict[str, Any]
    ) -> Tensor:
        branch = block.mlp(hidden)
        final = (self.decoder.final_norm,) if self._is_last(layer) else ()
        keep, attention = self._attend(
            layer, block, hidden, call, ("res_attn", "mlp"), (hidden, branch), final
        )
        return keep.apply("res_attn", hidden) + attention + keep.apply("mlp", branch)

    def _attend(
        self,
        layer: int,
        block: Block,
        hidden: Tensor,
        call: dict[str, Any],
        kinds: tuple[str, ...],
        side: tuple[Tensor, ...],
        final: tuple[LinearNorm, ...],
    ) -> tuple[Selection, Tensor]:
        """What the lanes keep of the attention node, and their attention branch."""
        norms = final if block.attention_norm is None else (block.attention_norm, *final)
        selected: list[Selection] = []

        def attend(pattern: Pattern, value: Tensor) -> Tensor:
            lanes = _split(pattern, value, self.lanes)
            clean = replace(pattern, q=lanes.q[0], k=lanes.k[0], segments=self.batch.segments)
            branch = AttentionBranch(block, clean, lanes.v[0], norms)
            folded = [self._folded(vector, final) for vector in side]
            node, output = self.importance.attention_node(layer, branch, kinds, folded)
            self._windows.append(pattern.window)
            keep = self._select(node)
            selected.append(keep)
            outputs = [output[None], *self._lane_outputs(keep, clean, lanes)]
            return torch.cat(outputs).flatten(0, 1)

        branch = block.attend(hidden, call, attend)
        return selected[0], branch

    def _folded(self, vector: Tensor, norms: tuple[LinearNorm, ...]) -> Tensor:
        """The clean lane of an edge vector [B, T, D], seen through linearised norms."""
        clean: Tensor = vector.unflatten(0, (self.lanes, -1))[0]
        for norm in norms:
            clean = norm.fold(clean)
        return clean

    def _is_last(self, layer: int) -> bool:
        return layer == len(self.decoder.blocks) - 1

    # ---- selection ---------------------------------------------------------------------------

    def _select(self, node: Node) -> Selection:
        """Cuts of a node, its levels for the sizes, and what each lane keeps of it."""
        cuts = self.rule.cuts(node, self.backend)
        for observe in self.observers:
            observe(node, cuts)
        above = node.side[:, None] > cuts  # [E, K, B, T]
        degrees = dict(zip(node.kinds, above.int(), strict=True))
        attention = None
        if node.edges is not None:
            found = kernels.edge_levels(node.edges, cuts, backend=self.backend)
            attention, degrees["attn"] = found.levels, found.degrees
        side_level = above.sum(1).amax(0).to(torch.uint8)
        index = len(self._levels)
        self._levels.append(NodeLevels(node.layer, side_level, degrees, attention))
        if not self.masked_lanes:
            return Selection(node, cuts)
        inside = None
        if self.gates is not None:
            inside = self.gates[index]
            cuts = cuts.masked_fill(~inside, torch.inf)
        drawn, dense = self._draws(node, degrees, inside)
        keep = {
            kind: self._side_keep(kind, node.side[e] > cuts, dense)
            for e, kind in enumerate(node.kinds)
        }
        return Selection(node, cuts, keep, drawn)

    def _side_keep(self, kind: str, above: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """bool [lanes, B, T]: which lanes keep this side edge; controls keep every residual."""
        keep = [torch.ones_like(above[:1]), above]
        for control in self.controls:
            if kind.startswith("res_"):
                keep.append(torch.ones_like(above))
            else:
                keep.append(~above if control == "inverse" else drawn[kind])
        return torch.cat(keep)

    def _draws(
        self, node: Node, degrees: dict[str, Tensor], inside: Tensor | None
    ) -> tuple[Draw | None, dict[str, Tensor]]:
        """As many edges of each kind as the trace keeps in this block, drawn at random.

        Returns:
            The attention edges drawn, and of side edges bool [K, B, T] by kind.
        """
        if "random" not in self.controls:
            return None, {}
        eligible = self.batch.valid
        if self.output_only and self._is_last(node.layer):
            eligible = eligible.clone()
            eligible[:, :-1] = False
        control = RandomImportance(self.seed ^ _CONTROL_STREAM, self.batch.positions, self.backend)
        counts = {
            kind: (degree * eligible * (1 if inside is None else inside)).sum(-1)  # [K, B]
            for kind, degree in degrees.items()
        }
        attention = None
        if node.edges is not None:
            edges = control.edges(node.layer, node.edges.pattern)
            cuts = kernels.random_cuts(edges, eligible, counts["attn"], backend=self.backend)
            spread = cuts[..., None].expand(-1, -1, eligible.shape[1]).contiguous()
            attention = Draw(spread, control.weight(node.layer))
        side = {}
        if "mlp" in counts:
            weight = control.side(node.layer, "mlp").masked_fill(~eligible, -1.0)
            # The place of each token's edge when the heaviest comes first.
            place = weight.argsort(-1, descending=True).argsort(-1)
            side["mlp"] = place < counts["mlp"][..., None]
        return attention, side

    def _lane_outputs(self, keep: Selection, clean: Pattern, lanes: "Lanes") -> list[Tensor]:
        """Attention outputs [K, B, H, T, d_v] of each group of masked lanes."""
        if not self.masked_lanes:
            return []
        edges = keep.node.edges
        assert edges is not None  # called with attention nodes alone
        strata = len(self.rule)
        outputs = []
        for number, group in enumerate(("trace", *self.controls)):
            run = slice(1 + number * strata, 1 + (number + 1) * strata)
            live = replace(clean, q=lanes.q[run], k=lanes.k[run])
            chosen, cuts = edges, keep.cuts
            if group == "random":
                assert keep.drawn is not None  # drawn with every selection of this control
                # Which edges flow is drawn; along what attention they flow is still the clean's.
                chosen = AttentionEdges(edges.pattern, keep.drawn.weight)
                cuts = keep.drawn.cuts
            outputs.append(
                kernels.lane_attention(
                    chosen,
                    cuts,
                    lanes.v[run],
                    live if self.attention == "live" else None,
                    invert=group == "inverse",
                    backend=self.backend,
                )
            )
        return outputs


@dataclass(frozen=True)
class Lanes:
    """Queries, keys and values with the lanes apart."""

    q: Tensor  # [lanes, B, H, T, d_k]
    k: Tensor  # [lanes, B, G, T, d_k]
    v: Tensor  # [lanes, B, G, T, d_v]


def _split(pattern: Pattern, value: Tensor, lanes: int) -> Lanes:
    return Lanes(*(tensor.unflatten(0, (lanes, -1)) for tensor in (pattern.q, pattern.k, value)))
