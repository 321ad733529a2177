"""The lane loop: clean and masked streams advance through the model together (METHOD §5).

Lane 0 is the clean forward pass. At each block it yields the weights of all edges into the block's
nodes, a rule turns them into cuts, and the masked lanes use the cuts at once: one lane per stratum,
and again one per stratum for each control. With frozen attention only the clean lane has queries
and keys. On a CPU, MLP branches are computed only for the tokens that keep them. On a GPU this
would make the host wait for the mask, so they are computed for all tokens and masked afterwards;
nothing of ours in the loop synchronises (transformers' own blocks of DBRX, Aria and newer Falcons
do). No tensor of size T x T x heads is kept: what remains of a node layer is the level map (T x T
bytes) and the in-degrees.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import kernels
from ..kernels import AttentionEdges, Pattern
from .batch import Batch, BatchPart
from .models import Block, Decoder, LinearNorm, call_on, gather_shared, part_of_call
from .nodes import AttentionBranch, Importance, Node, of_part
from .random_control import Draw, draw_edges
from .select import Rule

Attention = Literal["live", "frozen"]
Control = Literal["inverse", "random"]
CONTROLS: tuple[str, ...] = get_args(Control)

LANE_ROWS = 8192  # rows of masked lanes that attend together on a CPU: bounds memory
FEWEST_LANES = 4  # minimum despite LANE_ROWS: clean weights are recomputed per group of lanes
MLP_ROWS = 512  # rows per MLP call on a CPU: intermediate results stay in the cache
DEVICE_MLP_ROWS = 8192  # rows per MLP call on a GPU: fewer would not fill it


@dataclass(frozen=True)
class NodeLevels:
    """Levels and in-degrees of a node layer: all that computing sizes needs of it."""

    layer: int  # block
    side: Tensor  # uint8 [B, T]: highest level of a side edge
    degrees: dict[str, Tensor]  # int32 [K, B, T] kept in-edges, by kind
    attention: Tensor | None = None  # uint8 [B, T, T] level map of the attention edges

    @classmethod
    def of_parts(cls, parts: Sequence["NodeLevels"], columns: int) -> "NodeLevels":
        """Join the node layers of a batch's parts, in order, padded with 0 to `columns`."""

        def wide(tensor: Tensor) -> Tensor:
            return pad(tensor, (0, columns - tensor.shape[-1]))

        maps = [part.attention for part in parts if part.attention is not None]
        square = [pad(wide(levels), (0, 0, 0, columns - levels.shape[-1])) for levels in maps]
        degrees = {
            kind: torch.cat([wide(part.degrees[kind]) for part in parts], 1)
            for kind in parts[0].degrees
        }
        return cls(
            layer=parts[0].layer,
            side=torch.cat([wide(part.side) for part in parts]),
            degrees=degrees,
            attention=torch.cat(square) if square else None,
        )


@dataclass(frozen=True)
class LaneRun:
    """The result of one pass over the model."""

    hidden: Tensor  # [lanes, B, T, D] states that the unembedding reads, lane 0 clean
    levels: list[NodeLevels]  # from the embedding up
    attention_windows: list[int | None]  # sliding window of each block


@dataclass(frozen=True)
class Selection:
    """Which in-edges of a node each lane keeps."""

    node: Node
    cuts: Tensor  # float32 [K, B, T], +inf at nodes outside the trace
    side: dict[str, Tensor] = field(default_factory=dict)  # bool [masked lanes, B, T] by kind
    drawn: Draw | None = None  # attention edges of the random control

    def rows(self, kind: str) -> Tensor:
        """bool [masked lanes * B * T]: which rows of the masked lanes keep this side edge."""
        return self.side[kind].flatten()


@dataclass(frozen=True)
class LaneSpan:
    """A run of masked lanes of one group that are computed together."""

    group: str  # "trace", or a control
    strata: slice
    offset: int  # masked lanes before the group
    batch: int

    @property
    def lanes(self) -> slice:
        """Indices among the masked lanes."""
        return slice(self.offset + self.strata.start, self.offset + self.strata.stop)

    @property
    def rows(self) -> slice:
        """Rows in the batch of all lanes, which starts with the clean lane."""
        lanes = self.lanes
        return slice((1 + lanes.start) * self.batch, (1 + lanes.stop) * self.batch)


Observer = Callable[[Node, Tensor], None]  # called with each node layer and its cuts [K, B, T]


@dataclass
class LaneLoop:
    """One pass over the model for one batch.

    `gates` (for `scope="output"`) says for each node layer, from the embedding up, which strata's
    traces a node is in: bool [K, B, T]. A node outside a trace keeps nothing.

    `parts` bounds the memory of a block: the parts of the batch run through it one after another,
    each with all its lanes. Observers are then called for each part separately.
    """

    decoder: Decoder
    batch: Batch
    importance: Importance
    rule: Rule
    attention: Attention = "live"
    controls: Sequence[str] = ()
    masked_lanes: bool = True  # False: the clean lane alone, for weights, levels and sizes
    gates: Sequence[Tensor] | None = None
    output_only: bool = False  # only nodes that can lead to the last token's are in the graph
    seed: int = 0
    backend: str = "auto"
    observers: Sequence[Observer] = ()
    parts: Sequence[BatchPart] = ()
    _levels: list[NodeLevels] = field(default_factory=list, init=False)
    _attention_windows: list[int | None] = field(default_factory=list, init=False)

    @property
    def lanes(self) -> int:
        """Number of lanes, including the clean one."""
        return 1 + (len(self.rule) * (1 + len(self.controls)) if self.masked_lanes else 0)

    @property
    def host_reads(self) -> bool:
        """Whether the host may read computed values: on a CPU, where this does not synchronise."""
        return self.batch.ids.device.type == "cpu"

    @torch.inference_mode()
    def run(self) -> LaneRun:
        """Run the model once."""
        self._levels, self._attention_windows = [], []
        batch = self.batch
        states = self.decoder.hidden_states(
            batch.ids.repeat(self.lanes, 1),
            batch.positions.repeat(self.lanes, 1),
            batch.valid.long().repeat(self.lanes, 1),
            self._run_block,
        )
        self.batch = batch
        hidden = states.unflatten(0, (self.lanes, -1)).to(batch.ids.device)
        return LaneRun(
            hidden=hidden, levels=self._levels, attention_windows=self._attention_windows
        )

    # ---- one block ---------------------------------------------------------------------------

    def _run_block(self, layer: int, hidden: Tensor, call: dict[str, Any]) -> Tensor:
        block = self.decoder.blocks[layer]
        # A model may be spread over several devices: move inputs to the block's.
        self.batch = self.batch.to(block.device)
        hidden, call = hidden.to(block.device), call_on(call, block.device)
        if len(self.parts) <= 1:
            return self._block(layer, block, hidden, call)
        # [lanes, B] row of each lane of each sequence
        rows = torch.arange(len(hidden), device=hidden.device).unflatten(0, (self.lanes, -1))
        passes = []
        for part in self.parts:
            loop, index = self._of_part(part), rows[:, part.rows].flatten()
            part_call = part_of_call(call, hidden, index, part.columns)
            states = hidden[index, : part.columns]
            # In place: a block's input is not read again.
            hidden[index, : part.columns] = loop._block(layer, block, states, part_call)
            gather_shared(block.writes, call, part_call, hidden, index, part.columns)
            passes.append(loop)
        levels = zip(*(loop._levels for loop in passes), strict=True)
        self._levels += [NodeLevels.of_parts(node, hidden.shape[1]) for node in levels]
        self._attention_windows += passes[0]._attention_windows
        return hidden

    def _of_part(self, part: BatchPart) -> "LaneLoop":
        """A loop over one part of the batch, starting at the next node layer."""
        gates = self.gates
        if gates is not None:
            gates = [gate[:, part.rows, : part.columns] for gate in gates[len(self._levels) :]]
        importance, batch = of_part(self.importance, part), self.batch.part(part)
        return replace(self, batch=batch, importance=importance, gates=gates, parts=())

    def _block(self, layer: int, block: Block, hidden: Tensor, call: dict[str, Any]) -> Tensor:
        if self.decoder.geometry.parallel:
            return self._parallel_block(layer, block, hidden, call)
        return self._sequential_block(layer, block, hidden, call)

    def _sequential_block(
        self, layer: int, block: Block, hidden: Tensor, call: dict[str, Any]
    ) -> Tensor:
        after_attention, after_mlp = block.stream_norms
        side = _folded((self._clean(hidden),), after_attention)
        states = self._attend(layer, block, hidden, call, {"res_attn": side[0]}, after_attention)[1]
        states = block.stream_after_attention(states)
        clean = self._clean(states)
        branch = self._mlp(block, clean)
        side = _folded((clean, branch), (*after_mlp, *self._final(layer)))
        keep = self._select(self.importance.mlp_node(layer, ("res_mlp", "mlp"), side))
        clean += branch
        if self.masked_lanes:
            rows = self._masked(states)
            residual, mlp = keep.rows("res_mlp"), keep.rows("mlp")
            rows.masked_fill_(~(residual | mlp)[:, None], 0)
            for index in self._mlp_rows(mlp):
                before = rows[index]
                branch = self._kept_mlp(block, before, mlp[index])
                torch.addcmul(branch, before, residual[index, None], out=before)
                _put(rows, index, before)
        return block.stream_after_mlp(states)

    def _parallel_block(
        self, layer: int, block: Block, hidden: Tensor, call: dict[str, Any]
    ) -> Tensor:
        clean = self._clean(hidden)
        branch = self._mlp(block, clean)
        final = self._final(layer)
        side = dict(zip(("res_attn", "mlp"), _folded((clean, branch), final), strict=True))
        keep, states = self._attend(layer, block, hidden, call, side, final)
        self._clean(states).add_(branch)
        if self.masked_lanes:
            before, rows = self._masked(hidden), self._masked(states)
            mlp = keep.rows("mlp")
            for index in self._mlp_rows(mlp):
                branch = self._kept_mlp(block, before[index], mlp[index])
                _put(rows, index, rows[index].add_(branch))
        return states

    def _attend(
        self,
        layer: int,
        block: Block,
        hidden: Tensor,
        call: dict[str, Any],
        side: dict[str, Tensor],
        following: tuple[LinearNorm, ...],
    ) -> tuple[Selection, Tensor]:
        """The attention half of a block.

        Args:
            side: the clean lane's side edge vectors [B, T, D] into the attention node, by kind.
            following: norms that follow the node; they are folded into `side` already.

        Returns:
            What the lanes keep of the attention node, and a new tensor of their states
            [lanes * B, T, D]: attention branch plus the residual where kept.
        """
        selected: list[Selection] = []
        norms = () if block.attention_norm is None else (block.attention_norm,)

        def attend(pattern: Pattern, value: Tensor) -> Tensor:
            clean = replace(pattern, segments=self.batch.segments)
            branch = AttentionBranch(block, clean, v=value, norms=(*norms, *following))
            node, output = self.importance.attention_node(
                layer, branch, tuple(side), list(side.values())
            )
            self._attention_windows.append(pattern.window)
            selected.append(self._select(node))
            return output

        states = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        clean = self._clean(hidden)
        rows = slice(len(self.batch.ids))
        clean_call = part_of_call(call, hidden, rows)
        torch.add(clean, block.attend(clean, clean_call, attend), out=self._clean(states))
        gather_shared(block.writes, call, clean_call, hidden, rows)
        keep = selected[0]
        for span in self._lane_spans():
            span_call = part_of_call(call, hidden, span.rows)
            branch = self._lane_branch(block, keep, span, hidden[span.rows], span_call)
            gather_shared(block.writes, call, span_call, hidden, span.rows)
            kept = keep.side["res_attn"][span.lanes].flatten(0, 1)[..., None]
            torch.addcmul(branch, hidden[span.rows], kept, out=states[span.rows])
        return keep, states

    def _lane_branch(
        self, block: Block, keep: Selection, span: LaneSpan, hidden: Tensor, call: dict[str, Any]
    ) -> Tensor:
        """The attention branch [n * B, T, D] of n masked lanes, from states of that shape.

        Frozen lanes reuse the clean attention weights: they compute values but no queries or keys.
        """

        def by_lane(tensor: Tensor) -> Tensor:
            return tensor.view(-1, len(self.batch.ids), *tensor.shape[1:])

        def attend(pattern: Pattern, value: Tensor) -> Tensor:
            q, k = by_lane(pattern.q), by_lane(pattern.k)
            live = replace(pattern, q=q, k=k, segments=self.batch.segments)
            return self._lane_attention(keep, span, by_lane(value), live).flatten(0, 1)

        if self.attention == "live":
            return block.attend(hidden, call, attend)
        values = block.values(hidden, call)
        block.share_values(values, call)
        output = self._lane_attention(keep, span, by_lane(values), None)
        return block.attention_branch(output.flatten(0, 1))

    def _lane_attention(
        self, keep: Selection, span: LaneSpan, value: Tensor, live: Pattern | None
    ) -> Tensor:
        """Attention output [n, B, H, T, d_v] of n masked lanes."""
        edges, cuts = keep.node.edges, keep.cuts
        assert edges is not None  # only called for attention nodes
        if span.group == "random":
            assert keep.drawn is not None  # always drawn when this control is on
            # The kept edges are drawn at random; frozen attention is still the clean lane's.
            edges, cuts = AttentionEdges(edges.pattern, keep.drawn.weight), keep.drawn.cuts
        return kernels.lane_attention(
            edges,
            cuts[span.strata],
            value,
            live,
            invert=span.group == "inverse",
            dtype=value.dtype,  # what the projection expects
            backend=self.backend,
        )

    # ---- lanes and rows ----------------------------------------------------------------------

    def _lane_spans(self) -> Iterator[LaneSpan]:
        """The masked lanes: on a CPU a bounded number at a time, on a GPU group by group."""
        if not self.masked_lanes:
            return
        strata, batch = len(self.rule), len(self.batch.ids)
        at_once = strata
        if self.host_reads:
            at_once = max(FEWEST_LANES, LANE_ROWS // self.batch.ids.numel())
        for number, group in enumerate(("trace", *self.controls)):
            for first in range(0, strata, at_once):
                self.decoder.heartbeat()
                end = min(strata, first + at_once)
                run = slice(first, end)
                yield LaneSpan(group, strata=run, offset=number * strata, batch=batch)

    def _clean(self, states: Tensor) -> Tensor:
        """The clean lane [B, T, D] of states [lanes * B, T, D]."""
        return states[: len(self.batch.ids)]

    def _masked(self, states: Tensor) -> Tensor:
        """A view [masked lanes * B * T, D] of the masked lanes' states."""
        return states[len(self.batch.ids) :].view(-1, states.shape[-1])

    def _final(self, layer: int) -> tuple[LinearNorm, ...]:
        """The final norm if it follows this block's last node (METHOD §7)."""
        return self.decoder.final_norms if self._is_last(layer) else ()

    def _is_last(self, layer: int) -> bool:
        return layer == len(self.decoder.blocks) - 1

    # ---- MLP branches ------------------------------------------------------------------------

    def _mlp(self, block: Block, states: Tensor) -> Tensor:
        """The MLP branch of states [B, T, D], a bounded number of rows at a time."""
        branch = torch.empty_like(states, memory_format=torch.contiguous_format)
        rows, before = branch.view(-1, branch.shape[-1]), states.flatten(0, 1)
        at_once = MLP_ROWS if self.host_reads else DEVICE_MLP_ROWS
        for chunk in _all_rows(len(rows), at_once):
            self.decoder.heartbeat()
            rows[chunk] = block.mlp(before[chunk])
        return branch

    def _mlp_rows(self, kept: Tensor) -> Iterator[slice | Tensor]:
        """Rows of the masked lanes to run an MLP on: on a CPU those kept, on a GPU all.

        On a GPU the host would have to wait for the mask, and norm importances drop few rows.
        """
        chunks = _kept_rows(kept) if self.host_reads else _all_rows(len(kept), DEVICE_MLP_ROWS)
        for chunk in chunks:
            self.decoder.heartbeat()
            yield chunk

    def _kept_mlp(self, block: Block, rows: Tensor, kept: Tensor) -> Tensor:
        """The MLP branch [n, D] of rows [n, D], zero where a mask [n] drops it."""
        branch = block.mlp(rows)
        # Fill rather than multiply: the branch of a dropped row may be infinite.
        return branch if self.host_reads else branch.masked_fill_(~kept[:, None], 0)

    # ---- selection ---------------------------------------------------------------------------

    def _select(self, node: Node) -> Selection:
        """Compute a node's cuts, record its levels, and decide what each lane keeps."""
        cuts = self.rule.cuts(node, self.backend)
        for observe in self.observers:
            observe(node, cuts)
        above = node.side[:, None] > cuts  # [E, K, B, T]
        degrees = dict(zip(node.kinds, above.int(), strict=True))
        attention = None
        if node.edges is not None:
            level_map = kernels.edge_levels(node.edges, cuts, backend=self.backend)
            attention, degrees["attn"] = level_map.levels, level_map.degrees
        side_level = above.sum(1).amax(0).to(torch.uint8)
        index = len(self._levels)
        self._levels.append(
            NodeLevels(layer=node.layer, side=side_level, degrees=degrees, attention=attention)
        )
        if not self.masked_lanes:
            return Selection(node, cuts)
        inside = None
        if self.gates is not None:
            inside = self.gates[index].to(cuts.device)
            cuts = cuts.masked_fill(~inside, torch.inf)
        eligible = self._eligible(node.layer)
        drawn: Draw | None = None
        drawn_side: dict[str, Tensor] = {}
        if "random" in self.controls:
            drawn, drawn_side = draw_edges(
                node,
                degrees,
                inside=inside,
                eligible=eligible,
                batch=self.batch,
                seed=self.seed,
                backend=self.backend,
            )
        keep = {
            kind: self._side_keep(kind, side > cuts, drawn_side)
            for kind, side in zip(node.kinds, node.side, strict=True)
        }
        if "mlp" in keep:
            keep["mlp"] &= eligible  # skip MLPs whose output is never read
        return Selection(node, cuts, side=keep, drawn=drawn)

    def _side_keep(self, kind: str, above: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """bool [masked lanes, B, T]: where a side edge is kept; controls keep all residuals."""
        keep = [above]
        for control in self.controls:
            if kind.startswith("res_"):
                keep.append(torch.ones_like(above))
            else:
                keep.append(~above if control == "inverse" else drawn[kind])
        return torch.cat(keep)

    def _eligible(self, layer: int) -> Tensor:
        """bool [B, T]: tokens whose nodes in this block are in the graph."""
        eligible = self.batch.valid
        if self.output_only and self.decoder.geometry.output_alone(layer):
            eligible = eligible.clone()
            eligible[:, :-1] = False
        return eligible


def _folded(vectors: tuple[Tensor, ...], norms: tuple[LinearNorm, ...]) -> list[Tensor]:
    """Edge vectors [..., D] into a node, with the norms that follow it folded in."""
    folded = list(vectors)
    for norm in norms:
        folded = [norm.fold(vector) for vector in folded]
    return folded


def _kept_rows(kept: Tensor) -> Iterator[slice | Tensor]:
    """The rows that a mask [rows] keeps, a bounded number at a time.

    Contiguous rows are yielded as a slice, which needs no gather.
    """
    index = kept.nonzero().squeeze(-1)  # synchronises on a GPU
    for start in range(0, len(index), MLP_ROWS):
        chunk = index[start : start + MLP_ROWS]
        first, last = int(chunk[0]), int(chunk[-1])
        yield slice(first, last + 1) if last - first + 1 == len(chunk) else chunk


def _put(rows: Tensor, index: slice | Tensor, values: Tensor) -> None:
    """Write back values read as `rows[index]`; a slice is a view and needs no copy."""
    if not isinstance(index, slice):
        rows[index] = values


def _all_rows(rows: int, at_once: int) -> Iterator[slice]:
    """All rows, a bounded number at a time."""
    return (slice(start, min(rows, start + at_once)) for start in range(0, rows, at_once))
