"""Does the lane loop compute what the model does? Tested once per architecture, or on demand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .batch import batch_of_tensor
from .evaluate import logits
from .models import Decoder
from .select import GivenCuts
from .tracing import Settings, Tracing, not_finite


@dataclass(frozen=True)
class Verification:
    """The difference between the lane loop with every edge kept and the model's own logits."""

    max_difference: float  # largest difference of logits / largest logit
    rounding: float  # the same, of the model itself, with the last bits of its embeddings changed
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.max_difference <= self.tolerance


@torch.inference_mode()
def verify(decoder: Decoder, length: int, seed: int, backend: str) -> Verification:
    """Compare the lane loop, with every edge kept, to the model's own logits: `Tracer.verify`.

    Args:
        length: tokens of the longest row.
        seed: of the tokens.
        backend: of the ops.

    Raises:
        NotFiniteError: logits hold NaN or infinity.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    lengths = (length, max(1, length // 2), max(1, length - 5))
    rows = [
        torch.randint(decoder.vocab_size, (size,), generator=generator, device="cpu")
        for size in lengths
    ]
    own = _own_logits(decoder, rows)
    with _last_bits_changed(decoder):
        rounding = _difference(_own_logits(decoder, rows), own)
    worst = 0.0
    for side in ("right", "left"):
        ids, mask = (
            pad_sequence(tensors, batch_first=True, padding_side=side)
            for tensors in (rows, [torch.ones_like(row) for row in rows])
        )
        batch = batch_of_tensor(ids, mask).to(decoder.device)
        for attention in ("live", "frozen"):
            settings = Settings(attention=attention)
            tracing = Tracing(decoder, settings, backend=backend)
            run = tracing.loop(batch, GivenCuts([-1.0])).run()
            states = run.hidden.to(decoder.device)[:, batch.valid]
            ours = logits(decoder, states).to(own.device)  # of a model over several GPUs
            if not (own + ours).isfinite().all():
                raise not_finite(decoder)
            worst = max(worst, _difference(ours, own))
    # In half precision, roundings of the model and ours differ by a few units each.
    tolerance = max(1e-5, 8 * _eps(decoder.model.dtype), 2 * rounding)
    return Verification(worst, rounding, tolerance)


def _eps(dtype: torch.dtype) -> float:
    """The rounding error of a model; the ops compute in float32, whatever is wider."""
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _difference(logits: Tensor, own: Tensor) -> float:
    return float((logits - own.float()).abs().max() / own.abs().max().clamp(min=1e-30))


def _own_logits(decoder: Decoder, rows: list[Tensor]) -> Tensor:
    """The model's own logits of rows, one after another, [tokens, V].

    Each row alone: some models compute NaN from padded rows.
    """
    found = [
        decoder.model(
            input_ids=row[None],
            attention_mask=torch.ones_like(row[None]),
            position_ids=torch.arange(len(row), device=row.device)[None],
            use_cache=False,
        ).logits[0]
        for row in (row.to(decoder.device) for row in rows)
    ]
    return torch.cat(found)


@contextmanager
def _last_bits_changed(decoder: Decoder) -> Iterator[None]:
    """Change embeddings by a rounding error each, up and down in turns."""

    def changed(module: Any, inputs: Any, embeddings: Tensor) -> Tensor:
        sign = 1 - 2 * (torch.arange(embeddings.shape[-1], device=embeddings.device) % 2)
        wide = embeddings.double() * (1 + _eps(embeddings.dtype) * sign)
        return wide.to(embeddings.dtype)

    hook = decoder.model.get_input_embeddings().register_forward_hook(changed)
    try:
        yield
    finally:
        hook.remove()
