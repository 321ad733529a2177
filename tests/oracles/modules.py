"""The oracle of further families, which uses the model's own attention and MLP modules.

Attention weights (with their rotary embeddings, query/key norms, windows, soft-caps and sinks) and
MLP branches come from a float64 copy of the model with transformers' eager attention (whose softmax
most families compute in float32). Norms, values, edges, masks on edges and the head are computed
from the weights, as in the other oracle.
"""

import copy
import inspect
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.modeling_utils import local_torch_dtype
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from .decoder import Oracle
from .families import ACTIVATIONS, FAMILIES
from .graph import Bools, Floats

_WITH_SINKS = "eager_with_sinks"  # returns weights with the sinks' share already taken
AttentionInterface.register(_WITH_SINKS, eager_attention_forward)
AttentionMaskInterface.register(_WITH_SINKS, eager_mask)


class ModulesOracle(Oracle):
    """A decoder of a family outside `FAMILIES`: one of `FURTHER`, else wired like Llama."""

    def __init__(self, model: Any) -> None:
        """Copy the model."""
        super().__init__(model)
        self.model: Any = copy.deepcopy(model).double()
        with_sinks = self.config.model_type in ("flint", "granite_swa", "granitemoe_swa")
        # Falcon accepts no other name.
        self.model.config._attn_implementation = _WITH_SINKS if with_sinks else "eager"
        self.model.config._experts_implementation = "eager"  # no grouped float64 products in torch
        self.model.config.output_attentions = self.config.model_type == "openai-gpt"
        blocks = f"{self.family.stem}.{self.family.blocks}"
        self.modules: list[Any] = list(self.model.get_submodule(blocks))
        self.calls: list[dict[str, Any]] = []  # keyword arguments by block
        for module in self.modules:
            module.register_forward_pre_hook(self._see, with_kwargs=True)
        self.states = torch.empty(0)
        self.own_values: dict[int, Floats] = {}  # by block, of the forward pass that runs

    def _see(self, module: Any, args: tuple[Any, ...], call: dict[str, Any]) -> None:
        names = list(inspect.signature(module.forward).parameters)[1 : len(args)]
        call = dict(zip(names, args[1:], strict=True)) | call
        if not self.calls:
            self.states = args[0]
        if call.get("alibi") is not None and self.config.model_type == "falcon":
            call["alibi"] = torch.zeros_like(call["alibi"])  # already in the mask
        self.calls.append(call)

    def _embed(self, ids: Any, positions: NDArray[np.int64]) -> Floats:
        """The input of the model's first block; records the keyword arguments of all blocks."""
        self.calls = []
        with torch.inference_mode(), local_torch_dtype(torch.float64):
            self.model(
                input_ids=torch.tensor([ids]),
                position_ids=torch.from_numpy(positions)[None],
                use_cache=False,
            )
        return np.asarray(self.states[0].numpy())

    def _attention(
        self, block: int, x: Floats, positions: NDArray[np.int64], allowed: Bools
    ) -> tuple[Floats, Floats]:
        pre = self._norm(block, self.family.pre_attn)
        x = pre(x) if pre else x
        with torch.inference_mode(), local_torch_dtype(torch.float64):
            states = torch.from_numpy(x)[None]
            attention = self.modules[block].get_submodule(self.family.attention)
            names = {
                "bloom": ("hidden_states", "residual"),
                "ctrl": ("v", "k", "q"),
                "openai-gpt": ("x",),
            }.get(self.config.model_type, ("hidden_states",))
            outputs = attention(**self.calls[block] | dict.fromkeys(names, states))
        alpha = np.asarray(outputs[1][0].numpy())
        assert not alpha[:, ~allowed].any()
        size = self._linear(block, self.family.out)[0].shape[1] // self.heads
        if self.values[block] == block:
            self.own_values[block] = self._values(block, x)
        v = self.own_values[self.values[block]].reshape(len(x), -1, size).swapaxes(0, 1)
        return alpha, np.repeat(v, self.heads // len(v), axis=0)

    def _logits(self, x: Floats) -> Floats:
        if self.family.before_head is not None:
            with torch.inference_mode():
                layer = self.model.get_submodule(self.family.before_head)
                x = np.asarray(layer(torch.from_numpy(x)).numpy())
        return super()._logits(x)

    def _values(self, block: int, x: Floats) -> Floats:
        """Values [T, G * d_v] of the normed stream x [T, D]."""
        if hasattr(self.config, "kv_lora_rank"):  # keys and values from a latent vector
            weight, bias = self._linear(block, "self_attn.kv_a_proj_with_mqa")
            norm = self._norm(block, "self_attn.kv_a_layernorm")
            assert norm
            latent = norm((x @ weight.T + bias)[:, : self.config.kv_lora_rank])
            both = latent @ self._linear(block, "self_attn.kv_b_proj")[0].T
            return both.reshape(len(x), self.heads, -1)[..., self.config.qk_nope_head_dim :]
        if self.config.model_type == "codegen":  # four parts, each with queries, values and keys
            weight, _ = self._linear(block, "attn.qkv_proj")
            return x @ weight.reshape(4, 3, -1, len(weight.T))[:, 1].reshape(-1, len(weight.T)).T
        if self.config.model_type in ("bloom", "falcon"):  # queries, key and value of each group
            weight, bias = self._linear(block, "self_attention.query_key_value")
            groups = getattr(self.config, "num_kv_heads", self.heads)
            grouped = (x @ weight.T + bias).reshape(len(x), groups, -1)
            return grouped[..., -self.head_size :]
        if self.config.model_type == "gemma4_text":  # maybe the keys' projection
            module = self.modules[block].self_attn
            name = "self_attn.k_proj" if module.v_proj is None else "self_attn.v_proj"
            weight, bias = self._linear(block, name)
            v = (x @ weight.T + bias).reshape(len(x), -1, module.head_dim)
            v = v / np.sqrt((v**2).mean(-1, keepdims=True) + self.config.rms_norm_eps)
            return np.asarray(v)
        weight, bias = self._linear(block, self.family.qkv[-1])
        v = x @ weight.T + bias
        if not self.family.qkv[-1].endswith(".v_proj"):  # values come last in a fused projection
            v = v[:, -self.groups * self.head_size :]
        v = v * (getattr(self.config, "attention_value_scale", None) or 1)
        bound = getattr(getattr(self.config, "attn_config", self.config), "clip_qkv", None)
        return v if bound is None else v.clip(-bound, bound)

    def _mlp(self, block: int, y: Floats) -> Floats:
        if "fc1" in self.family.mlp:  # these are in the block itself
            return super()._mlp(block, y)
        if self.config.model_type == "gemma4_text":
            return self._all_but_attention(block, y)
        pre, post = (self._norm(block, n) for n in (self.family.pre_mlp, self.family.post_mlp))
        states = torch.from_numpy(pre(y) if pre else y)[None]
        # The older ones add a residual argument.
        residual = [torch.zeros(())] if self.config.model_type in ("bloom", "mpt") else []
        m = np.zeros_like(y)
        for name in {name.partition(".")[0] for name in self.family.mlp}:
            with torch.inference_mode():
                part = self.modules[block].get_submodule(name)(states, *residual)
            m += (part[0] if isinstance(part, tuple) else part).reshape(y.shape).numpy()
        return post(m) if post else m

    def _leaving(self, block: int, x: Floats) -> Floats:
        own = self.calls[block].get("per_layer_input")
        if own is not None:
            gate = ACTIVATIONS["gelu_pytorch_tanh"](
                x @ self._linear(block, "per_layer_input_gate")[0].T
            )
            norm = self._norm(block, "post_per_layer_input_norm")
            assert norm
            x = x + norm((gate * own[0].numpy()) @ self._linear(block, "per_layer_projection")[0].T)
        return super()._leaving(block, x)

    def _all_but_attention(self, block: int, y: Floats) -> Floats:
        """What a block adds to states y if its attention returns zero."""

        def nothing(*_: Any, hidden_states: Any, **__: Any) -> tuple[Any, None]:
            return torch.zeros_like(hidden_states), None

        module, states = self.modules[block], torch.from_numpy(y)[None]
        with (
            torch.inference_mode(),
            mock.patch.object(module.self_attn, "forward", nothing),
            mock.patch.object(module, "hidden_size_per_layer_input", 0),  # see `_leaving`
        ):
            left = module.forward(states, **self.calls[block])
        return np.asarray((left / module.layer_scalar - states)[0].numpy())


def oracle_of(model: Any) -> Oracle:
    """The oracle that shares least with the model."""
    return (Oracle if model.config.model_type in FAMILIES else ModulesOracle)(model)
