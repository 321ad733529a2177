"""What `Tracer.trace` accepts as input, turned into a checked batch."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .batch import PADDING, Batch, batch_of_lists, batch_of_tensor

Inputs = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor


def batch_of_inputs(
    inputs: Inputs,
    encode: Callable[[str], list[int]],
    next_token: int | Sequence[int] | None = None,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> tuple[Batch, bool]:
    """Build a batch on the host from the inputs of `Tracer.trace`.

    Args:
        inputs, next_token, attention_mask, segment_ids: see `Tracer.trace`.
        encode: tokenises a text.

    Returns:
        The batch, and whether the inputs are a single sequence.

    Raises:
        InputError: inputs of another form.
    """
    if isinstance(inputs, Mapping):
        raise InputError(
            "inputs are a mapping, as a tokenizer returns: give its input_ids, and its "
            "attention_mask by name"
        )
    if isinstance(next_token, int):
        next_token = [next_token]
    if isinstance(inputs, Tensor):
        mask, segments = (
            None if given is None else torch.atleast_2d(torch.as_tensor(given).cpu())
            for given in (attention_mask, segment_ids)
        )
        ids = torch.atleast_2d(inputs.cpu())
        return batch_of_tensor(ids, mask, segments, next_token), inputs.ndim == 1
    if attention_mask is not None or segment_ids is not None:
        raise InputError("attention_mask and segment_ids go with a tensor of token ids")
    sequences, single = _sequences(inputs, encode)
    return batch_of_lists(sequences, next_token), single


def check_batch(batch: Batch, vocab_size: int, max_length: int | None, model_id: str) -> None:
    """Check token ids and lengths against the limits of a model.

    Raises:
        InputError: a token id outside the vocabulary, or a document that is too long.
    """
    following = batch.next_ids[batch.next_ids != PADDING]
    ids = torch.cat([batch.ids[batch.valid], following])
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise InputError(
            f"token id {wrong} is outside the vocabulary 0..{vocab_size - 1} of model {model_id!r}"
        )
    longest = int(batch.positions.max()) + 1
    if max_length is not None and longest > max_length:
        raise InputError(
            f"a sequence has {longest} tokens; model {model_id!r} takes {max_length} at most"
        )


def _sequences(
    inputs: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
    encode: Callable[[str], list[int]],
) -> tuple[list[list[int]], bool]:
    """Token ids of each sequence, and whether the inputs are a single sequence."""
    if isinstance(inputs, str):
        return [encode(inputs)], True
    if len(inputs) == 0:
        raise InputError("inputs are empty: give at least one text or sequence of token ids")
    single = isinstance(inputs[0], int | np.integer)
    items: Sequence[Any] = [inputs] if single else inputs
    sequences = []
    for item in items:
        if isinstance(item, str):
            sequences.append(encode(item))
        elif isinstance(item, Sequence | np.ndarray | Tensor):
            sequences.append(_token_ids(item))
        else:
            raise InputError(f"inputs hold {item!r}; texts or lists of token ids are needed")
    return sequences, single


def _token_ids(item: Iterable[Any]) -> list[int]:
    try:
        return list(map(operator.index, item))
    except TypeError:
        raise InputError(f"inputs hold {item!r}, whose items are not all token ids") from None
