"""Errors of the masked lanes' predictions against the clean lane's (METHOD §6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from .layout import ERRORS
from .models import Decoder


@dataclass(frozen=True)
class Evaluation:
    """Errors of M tokens, by measure and lane group."""

    errors: dict[str, Tensor]  # float32 [M, K]; `tv`, ..., for controls `tv_inverse`, ...
    surprisal: Tensor  # float32 [M], nats; NaN where no token follows
    model_entropy: Tensor  # float32 [M], nats


def evaluate(
    decoder: Decoder,
    hidden: Tensor,
    next_ids: Tensor,
    controls: Sequence[str],
    backend: str = "auto",
) -> Evaluation:
    """Compare the masked lanes with the clean one.

    Args:
        decoder: the model, whose unembedding is used.
        hidden: [1 + K * (1 + controls), M, D] states that the unembedding reads, clean lane first.
        next_ids: int64 [M], -1 where no token follows.
        controls: names of the control lanes, in order.
        backend: of the ops.
    """
    weight, bias = decoder.unembedding
    hidden, next_ids = hidden.to(weight.device), next_ids.to(weight.device)
    result = kernels.output_errors(
        hidden[0],
        hidden[1:],
        weight,
        bias,
        scale=decoder.logit_scale,
        softcap=decoder.logit_softcap,
        next_ids=next_ids,
        backend=backend,
    )
    errors = {}
    groups = ("", *(f"_{control}" for control in controls))
    for measure in ERRORS:
        by_group = getattr(result, measure).unflatten(0, (len(groups), -1))
        for group, values in zip(groups, by_group, strict=True):
            errors[measure + group] = values.T
    return Evaluation(errors, result.clean_loss, result.clean_entropy)


def logits(decoder: Decoder, hidden: Tensor) -> Tensor:
    """float32 [..., V]: logits of states [..., D] that the unembedding reads; on its device."""
    weight, bias = decoder.unembedding
    result = torch.nn.functional.linear(
        hidden.to(weight.device).float(), weight.float(), None if bias is None else bias.float()
    )
    result = result * decoder.logit_scale
    if decoder.logit_softcap is not None:
        result = torch.tanh(result / decoder.logit_softcap) * decoder.logit_softcap
    return result
