"""What the benches run on: the bundled model on the sample corpus, as a whole and op by op.

Speed and memory are measured on the same set-ups.
"""

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from costs import Costs
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from densitrace import Threshold, Tracer
from densitrace.kernels import AttentionEdges, Pattern, ProximityWeight
from densitrace.tracer.batch import batch_of_lists
from densitrace.tracer.cuda_graphs import GraphCache
from densitrace.tracer.engine import LaneRun
from densitrace.tracer.evaluate import evaluate
from densitrace.tracer.models import Decoder
from densitrace.tracer.nodes import AttentionBranch, Node, NormImportance
from densitrace.tracer.sizes import all_traces
from densitrace.tracer.tracing import Measured, Settings, Tracing

EXAMPLES = Path(__file__).parents[2] / "examples"
STRATA = 12
BATCH_TOKENS = 1024  # longer sequences form a batch of one
LAYER = 3  # the block whose attention the ops are measured on, in the middle of the model


def thresholds(strata: int = STRATA) -> Threshold:
    """Thresholds over the range of edge weights, evenly spaced in log, from 1e-4."""
    return Threshold(np.geomspace(1e-4, 0.3, strata))


# ---- models and tokens -----------------------------------------------------------------------


@cache
def bundled() -> Tracer:
    """The bundled model in float32."""
    return Tracer.from_pretrained(EXAMPLES / "model", device="cpu")


def vocabulary() -> int:
    """Vocabulary size of the bundled model."""
    size: int = bundled()._decoder.model.config.vocab_size
    return size


@cache
def corpus() -> list[int]:
    """The sample corpus as one sequence of tokens."""
    lines = (EXAMPLES / "corpus/scan.jsonl").read_text(encoding="utf-8").splitlines()
    return [token for line in lines for token in bundled().encode(json.loads(line)["text"])]


def passages(length: int) -> list[list[int]]:
    """A batch of passages of one length from the sample corpus: `BATCH_TOKENS`, or one passage."""
    stream = corpus()
    rows = max(1, BATCH_TOKENS // length)
    return [stream[row * length : (row + 1) * length] for row in range(rows)]


@cache
def reference_shaped() -> LlamaForCausalLM:
    """A randomly initialised model of the shape on which the papers' reference was timed."""
    config = LlamaConfig(
        hidden_size=256, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8,
        intermediate_size=688, vocab_size=4096, max_position_embeddings=1024,
    )  # fmt: skip
    torch.manual_seed(0)
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return model


def random_tokens(length: int) -> list[list[int]]:
    """One random row, for models with random weights."""
    generator = torch.Generator().manual_seed(length)
    drawn: list[list[int]] = torch.randint(4096, (1, length), generator=generator).tolist()
    return drawn


# ---- passes over a model ---------------------------------------------------------------------


class Work:
    """The passes over one batch of a model."""

    def __init__(
        self,
        model: Decoder | Tracer | PreTrainedModel,
        sequences: Sequence[Sequence[int]],
        rule: Threshold,
        **settings: Any,
    ) -> None:
        if isinstance(model, PreTrainedModel):
            model = Tracer(model)
        decoder = model._decoder if isinstance(model, Tracer) else model
        self.model: Any = decoder.model
        device = decoder.device
        self.ids = torch.tensor(sequences, device=device)
        self.batch = batch_of_lists(sequences)
        self.rule = rule
        self.tracing = Tracing(decoder, Settings(**settings))

    @property
    def costs(self) -> Costs:
        """Operations of each op on one sequence of the batch."""
        config = self.model.config
        return Costs(
            heads=config.num_attention_heads,
            length=self.ids.shape[1],
            width=config.head_dim,
            hidden=config.hidden_size,
            strata=len(self.rule),
            vocabulary=config.vocab_size,
        )

    def forward(self) -> object:
        """The plain forward pass, with transformers' default attention (SDPA)."""
        with torch.inference_mode():
            return self.model(self.ids, use_cache=False).logits

    def without_unembedding(self) -> object:
        """The plain forward pass up to the final norm: all that importance and sizes need."""
        with torch.inference_mode():
            return self.model.base_model(self.ids, use_cache=False).last_hidden_state

    def forward_of_all_lanes(self) -> object:
        """The plain forward pass, to the final norm, of as many rows as a scan runs: K + 1 per row.

        Then the logits of one row each. A scan streams over the vocabulary and never holds all
        logits; those of K + 1 times as many rows would dwarf everything else.
        """
        rows = len(self.ids)
        with torch.inference_mode():
            ids = self.ids.repeat(len(self.rule) + 1, 1)
            states = self.model.base_model(ids, use_cache=False).last_hidden_state
            return self.model.get_output_embeddings()(states[:rows])

    def sizes(self) -> object:
        """Importance and sizes, without masked lanes."""
        return self.tracing.sizes(self.batch, self.rule)

    def scan(self) -> Measured:
        """Sizes and errors of every output position."""
        return self.tracing.all_outputs(self.batch, self.rule)

    def replayed(self) -> "Work":
        """The same passes, with scans of all outputs replayed as a CUDA graph from the third on."""
        other = copy(self)
        other.tracing = replace(self.tracing, graphs=GraphCache())
        return other

    def afresh(self) -> "Work":
        """The same passes with nothing cached, such as float32 projections."""
        other = copy(self)
        other.tracing = replace(self.tracing, decoder=Tracer(self.model)._decoder)
        return other

    def clean_lane(self) -> LaneRun:
        """Importance, cuts and levels, without the sizes that follow from the levels."""
        return self.tracing.loop(self.batch, self.rule, masked_lanes=False).run()

    def sizes_of(self, run: LaneRun) -> object:
        """Sizes from the levels of a pass."""
        geometry = self.tracing.decoder.geometry
        with torch.inference_mode():
            return all_traces(run.levels, len(self.rule), geometry, self.tracing.backend)

    def lanes(self) -> object:
        """A scan without its sizes: errors of every output position."""
        hidden = self.tracing.loop(self.batch, self.rule).run().hidden.flatten(1, 2)
        with torch.inference_mode():
            return evaluate(self.tracing.decoder, hidden, self.batch.next_ids.flatten(), ())

    def one_output(self) -> object:
        """Sizes and errors of the last position alone."""
        return self.tracing.one_output(self.batch, self.rule)


def bundled_work(length: int, strata: int = STRATA, **settings: Any) -> Work:
    """Passes over the bundled model and a batch of the sample corpus."""
    return Work(bundled(), passages(length), thresholds(strata), **settings)


# ---- inputs of the ops -----------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionProblem:
    """An attention node of a model on one row of tokens, with masked lanes of it."""

    node: Node
    edges: AttentionEdges  # the node's, on the clean pattern
    v: Tensor  # [1, G, T, d] clean values
    w_o: Tensor  # [H, D, d]
    root: Tensor  # [H, d, d] roots of the Gram matrices of `w_o`
    vector: Tensor  # [1, T, D] sum of the node's in-edges
    cuts: Tensor  # [K, 1, T]
    lanes: Pattern  # all lanes: q [K, 1, H, T, d], k [K, 1, G, T, d]
    lanes_v: Tensor  # [K, 1, G, T, d]

    @property
    def proximity(self) -> AttentionEdges:
        """The same edges under proximity, which costs more than attention itself."""
        return AttentionEdges(self.edges.pattern, ProximityWeight(self.vector, self.v, self.w_o))


class Witness:
    """`norm_l1` that also keeps the attention problem of block `LAYER`."""

    def __init__(self, rule: Threshold | None = None) -> None:
        self.rule = rule or thresholds()
        self.inner = NormImportance(1)
        self.seen: list[AttentionProblem] = []

    def attention_node(
        self, layer: int, branch: AttentionBranch, kinds: Sequence[str], side: Sequence[Tensor]
    ) -> tuple[Node, Tensor]:
        """The node under `norm_l1`."""
        node, output = self.inner.attention_node(layer, branch, kinds, side)
        if layer == LAYER:
            self.seen.append(_attention_problem(branch, node, side[0], output, self.rule))
        return node, output

    def mlp_node(self, layer: int, kinds: Sequence[str], side: Sequence[Tensor]) -> Node:
        """The node under `norm_l1`."""
        return self.inner.mlp_node(layer, kinds, side)


def _attention_problem(
    branch: AttentionBranch, node: Node, residual: Tensor, output: Tensor, rule: Threshold
) -> AttentionProblem:
    assert node.edges is not None  # this is an attention node
    pattern = node.edges.pattern
    w_o = branch.block.folded_w_o(branch.norms)

    def in_every_lane(clean: Tensor) -> Tensor:
        # The values in a lane do not affect an op's time: cuts and clean weights decide what is
        # kept.
        return torch.stack([clean] * len(rule))

    return AttentionProblem(
        node=node,
        edges=node.edges,
        v=branch.v,
        w_o=w_o,
        root=branch.block.folded_root(branch.norms),
        vector=residual + torch.einsum("bhtd,hed->bte", output, w_o.float()),
        # A threshold rule on a trained model and real text: as much is empty, and skipped, as in a
        # scan.
        cuts=rule.cuts(node),
        lanes=replace(pattern, q=in_every_lane(pattern.q), k=in_every_lane(pattern.k), lse=None),
        lanes_v=in_every_lane(branch.v),
    )


@cache
def attention_problem(length: int) -> AttentionProblem:
    """The attention problem of the bundled model on one row of `length` tokens."""
    return attention_problem_of(Work(bundled(), passages(length)[:1], thresholds()))


def attention_problem_of(work: Work) -> AttentionProblem:
    """The attention problem of a model's block `LAYER`."""
    witness = Witness(work.rule)
    work.tracing.loop(work.batch, work.rule, witness, masked_lanes=False).run()
    return witness.seen[0]


@dataclass(frozen=True)
class PredictionProblem:
    """Final-normed states of a scan, and the tokens that followed."""

    hidden: Tensor  # [M, D] clean lane
    lanes: Tensor  # [K, M, D]
    unembedding: Tensor  # [V, D]
    next_ids: Tensor  # [M]


@cache
def prediction_problem(length: int) -> PredictionProblem:
    """The prediction problem of the bundled model on one row of `length` tokens."""
    return prediction_problem_of(Work(bundled(), passages(length)[:1], thresholds()))


def prediction_problem_of(work: Work) -> PredictionProblem:
    """The prediction problem of a model whose unembedding has no bias."""
    hidden = work.tracing.loop(work.batch, work.rule).run().hidden.flatten(1, 2)
    unembedding, _ = work.tracing.decoder.unembedding
    following = work.batch.next_ids.flatten().to(hidden.device)
    return PredictionProblem(hidden[0], hidden[1:], unembedding, following)
