"""The forward pass of a decoder, clean or masked, with every edge vector; edge weights."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .families import ACTIVATIONS, FAMILIES, FURTHER, Family, Norm, rotate, softmax
from .graph import KINDS, Bools, Floats, Graph, Weights

NodeEdges = dict[str, Floats]  # edge vectors into one node layer: attn [H, T, T, D], others [T, D]


@dataclass(frozen=True)
class Run:
    """One forward pass over T tokens, clean or masked."""

    logits: Floats  # [T, V]
    alpha: Floats  # [L, H, T, T] attention weights, before any mask on edges
    nodes: list[tuple[int, NodeEdges]]  # (block, edge vectors) by node layer, the last normed (§7)
    window: Bools  # [L, T, T] sources within reach of the block's attention
    causal: Bools  # [T, T] the same without sliding windows
    parallel: bool
    values: Sequence[int]  # of each block: the block whose keys and values its attention reads

    def weights(self, importance: str) -> Weights:
        """Edge weights (METHOD §2) under norm_l1, norm_l2, proximity or cosine.

        NaN where there is no edge: source after target, outside a window, in another document; for
        res_mlp in a parallel model.
        """
        blocks, _, tokens, _ = self.alpha.shape
        result: Weights = {
            "attn": np.full(self.alpha.shape, np.nan),
            **{kind: np.full((blocks, tokens), np.nan) for kind in KINDS[1:]},
        }
        for block, edges in self.nodes:
            for kind, weight in weigh(edges, importance).items():
                result[kind][block] = weight
        result["attn"] = np.where(self.window[:, None], result["attn"], np.nan)
        return result

    def graph(self, importance: str | Weights) -> Graph:
        """The weighted graph under an importance, or with given weights (the random importance)."""
        if isinstance(importance, str):
            importance = self.weights(importance)
        return Graph(importance, self.parallel, self.causal, self.values)


def weigh(edges: NodeEdges, importance: str) -> Weights:
    """Weights of all edges into the nodes of one node layer: attn [H, T, T], others [T].

    A node's vector is the sum of its edges; biases and norm offsets are not edges. If all raw
    weights of a node are 0, so are its weights. A zero vector has cosine 0, weight 0.5.
    """
    node = sum(e.sum((0, 2)) if kind == "attn" else e for kind, e in edges.items())  # [T, D]
    raw: Weights = {}
    for kind, e in edges.items():
        n = np.asarray(node)[:, None] if kind == "attn" else np.asarray(node)
        if importance == "norm_l1":
            raw[kind] = np.abs(e).sum(-1)
        elif importance == "norm_l2":
            raw[kind] = np.sqrt((e**2).sum(-1))
        elif importance == "proximity":
            raw[kind] = np.maximum(0, np.abs(n).sum(-1) - np.abs(n - e).sum(-1))
        elif importance == "cosine":
            lengths = np.sqrt((e**2).sum(-1) * (n**2).sum(-1))
            raw[kind] = (1 + (e * n).sum(-1) / np.where(lengths > 0, lengths, 1)) / 2
        else:
            raise ValueError(f"importance={importance!r}: random weights have to be given")
    if importance == "cosine":
        return raw
    total = sum(w.sum((0, 2)) if kind == "attn" else w for kind, w in raw.items())  # [T]
    total = np.where(np.asarray(total) > 0, total, 1)
    return {kind: w / (total[:, None] if kind == "attn" else total) for kind, w in raw.items()}


class Oracle:
    """A transformers decoder of one of the `FAMILIES`, recomputed in float64."""

    def __init__(self, model: Any) -> None:
        """Copy the weights and the config of a transformers model."""
        self.config = copy.deepcopy(model.config)
        self.config.allow_global_per_layer_attribute_access = True  # may differ by block
        name = self.config.model_type
        if name == "falcon" and self.config.alibi:
            name = "falcon_rw"
        if name == "stablelm" and self.config.use_parallel_residual:
            name = "stablelm_parallel"
        if name == "opt" and not self.config.do_layer_norm_before:
            name = "opt_post"
        self.family = (FAMILIES | FURTHER).get(name, Family())
        self.state: dict[str, Floats] = {
            name: value.detach().double().numpy() for name, value in model.state_dict().items()
        }
        self.heads: int = self.config.num_attention_heads
        self.groups: int = getattr(self.config, "num_key_value_heads", None) or self.heads
        size = getattr(self.config, "head_dim", None)
        self.head_size: int = size or self.config.hidden_size // self.heads
        self.blocks: int = self.config.num_hidden_layers
        self.parallel: bool = (
            getattr(self.config, "use_parallel_residual", False) or self.family.parallel
        )
        self.values = list(range(self.blocks))
        sharing = getattr(self.config, "num_kv_shared_layers", 0)
        for block in range(self.blocks - sharing, self.blocks):
            self.values[block] = max(
                other
                for other in self.values[:block]
                if self._layer_type(other) == self._layer_type(block)
            )
        self.factor: float = getattr(self.config, "residual_multiplier", 1.0)  # on both branches
        if self.config.model_type == "minicpm3":
            self.factor = self.config.scale_depth / math.sqrt(self.blocks)

    def clean(
        self,
        ids: Sequence[int],
        position_ids: Sequence[int] | None = None,
        allowed: Bools | None = None,
    ) -> Run:
        """The plain forward pass of one sequence.

        Args:
            ids: T token ids.
            position_ids: T positions; 0, 1, ... if None.
            allowed: [T target, T source] further restriction of attention (documents in a row).
        """
        return self._run(ids, None, None, position_ids, allowed)

    def masked_logits(
        self,
        ids: Sequence[int],
        keep: Mapping[str, Bools],
        attention: str = "live",
        position_ids: Sequence[int] | None = None,
        allowed: Bools | None = None,
    ) -> Floats:
        """Logits [T, V] with only the kept edges (METHOD §5).

        A dropped edge adds zero. Attention weights are those of the masked stream over all allowed
        sources ("live") or the clean ones ("frozen"), masked after the softmax and not
        renormalised. Values and norms, also those after a branch, are those of the masked stream;
        the output projection's bias is always added.
        """
        alpha = {"live": None, "frozen": self.clean(ids, position_ids, allowed).alpha}[attention]
        return self._run(ids, keep, alpha, position_ids, allowed).logits

    def _run(
        self,
        ids: Sequence[int],
        keep: Mapping[str, Bools] | None,
        frozen: Floats | None,
        position_ids: Sequence[int] | None,
        allowed: Bools | None,
    ) -> Run:
        tokens = len(ids)
        positions = np.arange(tokens) if position_ids is None else np.array(position_ids)
        distance = np.arange(tokens)[:, None] - np.arange(tokens)  # target - source
        causal = (distance >= 0) & (True if allowed is None else allowed)
        alphas, windows, nodes = [], [], []
        x = self._embed(ids, positions)
        for block in range(self.blocks):
            kept = {
                kind: np.ones(()) if keep is None else keep[kind][block][..., None].astype(float)
                for kind in KINDS
            }
            window = causal & (distance < self._window(block))
            alpha, v = self._attention(block, x, positions, window)
            used = alpha if frozen is None else frozen[block]
            sent = self._normed_heads(block, used[..., None] * v[:, None], kept["attn"])
            w_out, b_out = self._linear(block, self.family.out)
            by_head = w_out.reshape(len(w_out), self.heads, -1)
            edges = np.einsum("htsd,ehd->htse", sent, by_head)  # [H, T target, T source, D]
            branch = (kept["attn"] * edges).sum((0, 2)) + b_out
            post = self._norm(block, self.family.post_attn)
            added = self.factor * (post(branch) if post else branch)
            edges = self.factor * (post.linear(edges, branch[:, None]) if post else edges)
            y = kept["res_attn"] * x + added
            if self.parallel:
                m = self.factor * self._mlp(block, x)
                nodes.append((block, {"attn": edges, "res_attn": x, "mlp": m}))
                x = y + kept["mlp"] * m
            else:
                node = {"attn": edges, "res_attn": x}
                y = self._followed(node, y, self._norm(block, self.family.stream_attn))
                nodes.append((block, node))
                m = self.factor * self._mlp(block, y)
                node = {"mlp": m, "res_mlp": y}
                x = kept["res_mlp"] * y + kept["mlp"] * m
                x = self._followed(node, x, self._norm(block, self.family.stream_mlp))
                nodes.append((block, node))
                x = self._leaving(block, x)
            alphas.append(alpha)
            windows.append(window)
        # METHOD §7: at every position
        x = self._followed(nodes[-1][1], x, self._norm(None, self.family.final_norm))
        logits = self._logits(x)
        return Run(
            logits, np.stack(alphas), nodes, np.stack(windows), causal, self.parallel, self.values
        )

    def _embed(self, ids: Sequence[int], positions: NDArray[np.int64]) -> Floats:
        x = self.state[f"{self.family.stem}.{self.family.embedding}.weight"][list(ids)]
        if self.config.model_type == "gpt2":
            x = x + self.state["transformer.wpe.weight"][positions]
        return x * math.sqrt(x.shape[-1]) if self.config.model_type == "gemma3_text" else x

    def _logits(self, x: Floats) -> Floats:
        head = self.family.head
        logits = x @ self.state[f"{head}.weight"].T + self.state.get(f"{head}.bias", 0)
        scaling = getattr(self.config, "logits_scaling", 1)
        logits *= scaling if self.config.model_type == "hyperclovax" else 1 / scaling
        logits *= getattr(self.config, "logit_scale", 1) or 1
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * np.tanh(logits / cap)

    @staticmethod
    def _followed(node: NodeEdges, x: Floats, norm: Norm | None) -> Floats:
        """The norm of a node's stream [T, D], and, in place, its linear part of the edges."""
        if norm is None:
            return x
        for kind, e in node.items():
            node[kind] = norm.linear(e, x[:, None] if kind == "attn" else x)
        return norm(x)

    def _leaving(self, block: int, x: Floats) -> Floats:
        """The input of the next block, from the sum of a block's edges."""
        name = f"{self.family.stem}.{self.family.blocks}.{block}.layer_scalar"
        return np.asarray(x * self.state.get(name, 1))

    def _linear(self, block: int, name: str) -> tuple[Floats, Floats]:
        """Weight [out, in] and bias [out] of a projection of a block."""
        path = f"{self.family.stem}.{self.family.blocks}.{block}.{name}"
        weight = self.state[f"{path}.weight"]
        weight = weight.T if self.config.model_type in ("gpt2", "openai-gpt") else weight
        return weight, self.state.get(f"{path}.bias", np.zeros(len(weight)))

    def _norm(self, block: int | None, name: str | None) -> Norm | None:
        """A norm of a block, or of the decoder if `block` is None; None if the family lacks it."""
        if name is None:
            return None
        inner = "" if block is None else f"{self.family.blocks}.{block}."
        path = f"{self.family.stem}.{inner}{name}"
        weightless = np.ones(self.config.hidden_size) if self.family.weightless else None
        gamma = self.state.get(f"{path}.weight", weightless)
        if gamma is None:
            return None
        gamma = gamma + (1 if self.family.one_plus else 0)
        beta = self.state.get(f"{path}.bias", np.zeros_like(gamma))
        epsilon = getattr(self.config, self.family.epsilon, 1e-5)  # torch's default
        return Norm(gamma, beta, epsilon, self.family.layer_norm)

    def _layer_type(self, block: int) -> str:
        everywhere = "sliding_attention" if self.family.windowed else ""
        types = getattr(self.config, "layer_types", None)
        return everywhere if types is None else str(types[block])

    def _window(self, block: int) -> float:
        """How many positions back attention reaches, including the target itself."""
        if self.config.model_type == "gpt_neo" and self.config.attention_layers[block] == "local":
            return float(self.config.window_size)
        sliding = self._layer_type(block) == "sliding_attention"
        window = getattr(self.config, "sliding_window", None) if sliding else None
        return math.inf if window is None else window

    def _attention(
        self, block: int, x: Floats, positions: NDArray[np.int64], allowed: Bools
    ) -> tuple[Floats, Floats]:
        """Attention weights [H, T, T], and values by query head [H, T, d]."""
        pre = self._norm(block, self.family.pre_attn)
        q, k, v = self._heads_of(block, pre(x) if pre else x)
        if self.config.model_type != "gpt2":
            rope = self.config.rope_parameters
            rope = rope.get(self._layer_type(block), rope)
            if rope["rope_type"] != "default":
                raise ValueError(f"rope_type={rope['rope_type']!r}: the oracle knows 'default'")
            size = int(self.head_size * rope.get("partial_rotary_factor", 1))
            q, k = (rotate(z, positions.astype(float), rope["rope_theta"], size) for z in (q, k))
        k, v = (np.repeat(z, self.heads // self.groups, axis=0) for z in (k, v))
        scale = getattr(self.config, "query_pre_attn_scalar", self.head_size) ** -0.5
        scores = scale * np.einsum("htd,hsd->hts", q, k)
        return softmax(np.where(allowed, scores, -np.inf)), v

    def _normed_heads(self, block: int, sent: Floats, kept: Floats) -> Floats:
        """What heads send [H, T target, T source, d], through a norm over all heads, if any."""
        norm = self._norm(block, self.family.pre_out)
        if norm is None:
            return sent
        heads, tokens, _, size = sent.shape
        output = (kept * sent).sum(2).swapaxes(0, 1).reshape(tokens, -1)  # where the norm is taken
        scale = norm.linear(np.ones_like(output), output).reshape(tokens, heads, size)
        return np.asarray(sent * scale.swapaxes(0, 1)[:, :, None])

    def _heads_of(self, block: int, x: Floats) -> list[Floats]:
        """Queries [H, T, d], keys and values [G, T, d] of the normed stream x [T, D]."""
        parts = [x @ w.T + b for w, b in (self._linear(block, name) for name in self.family.qkv)]
        if self.config.model_type == "gpt2":  # [T, 3 D]
            parts = np.split(parts[0], 3, axis=-1)
        elif self.config.model_type == "gpt_neox":  # [T, H, (q, k, v), d]
            fused = parts[0].reshape(len(x), self.heads, 3, self.head_size)
            parts = [fused[:, :, i].reshape(len(x), -1) for i in range(3)]
        result = []
        for part, name in zip(parts, ("q_norm", "k_norm", None), strict=True):
            norm = self._norm(block, name and f"self_attn.{name}")
            full_width = norm is not None and len(norm.gamma) == part.shape[-1]
            part = norm(part) if norm and full_width else part
            part = part.reshape(len(x), -1, self.head_size).swapaxes(0, 1)
            result.append(norm(part) if norm and not full_width else part)
        return result

    def _mlp(self, block: int, y: Floats) -> Floats:
        """The MLP edge's vectors [T, D], with the norms before and after it."""
        pre, post = (self._norm(block, n) for n in (self.family.pre_mlp, self.family.post_mlp))
        y = pre(y) if pre else y
        act = ACTIVATIONS[getattr(self.config, self.family.activation)]
        *inner, (w_out, b_out) = (self._linear(block, name) for name in self.family.mlp)
        hidden = act(y @ inner[0][0].T + inner[0][1])
        if len(inner) == 2:
            hidden = hidden * (y @ inner[1][0].T + inner[1][1])
        m = hidden @ w_out.T + b_out
        return post(m) if post else m
