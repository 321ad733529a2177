"""What `Tracer.trace` accepts as input, turned into a checked batch."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Set, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .batch import PADDING, Batch, batch_of_lists, batch_of_tensor
from .indices import shown

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
    following = None if next_token is None else _next_ids(next_token)
    if isinstance(inputs, Tensor):
        mask = _companion("attention_mask", attention_mask)
        segments = _companion("segment_ids", segment_ids)
        ids = inputs.cpu()
        if ids.ndim == 1:
            ids = ids[None]
        return batch_of_tensor(ids, mask, segments, following), inputs.ndim == 1
    if attention_mask is not None or segment_ids is not None:
        raise InputError("attention_mask and segment_ids go with a tensor of token ids")
    sequences, single = _sequences(inputs, encode)
    return batch_of_lists(sequences, following), single


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
    if not _is_list(inputs):
        raise InputError(
            f"inputs={shown(inputs)}: a text, a list of texts or token ids, or a tensor is needed"
        )
    items: list[Any] = list(inputs)
    if not items:
        raise InputError("inputs are empty: give at least one text or sequence of token ids")
    single = _is_number(items[0])
    sequences = []
    for item in [items] if single else items:
        if isinstance(item, str):
            sequences.append(encode(item))
        elif _is_list(item):
            sequences.append(_token_ids("inputs hold", item))
        else:
            raise InputError(f"inputs hold {shown(item)}; texts or lists of token ids are needed")
    return sequences, single


def _is_list(value: Any) -> bool:
    """Whether a value holds items in an order: a list, an array, a pandas series.

    Bytes, a set, a mapping, a table and a generator do not, or not items meant as inputs.
    """
    if isinstance(value, bytes | bytearray | memoryview | Set | Mapping) or hasattr(
        value, "columns"
    ):
        return False
    items = isinstance(value, Iterable) and isinstance(value, Sized)
    return items and getattr(value, "ndim", 1) > 0


def _is_number(value: Any) -> bool:
    """Whether a value is one whole number."""
    return isinstance(value, int | np.integer) or (
        isinstance(value, np.ndarray | Tensor) and value.ndim == 0
    )


def _token_ids(holds: str, items: Iterable[Any]) -> list[int]:
    try:
        ids = list(map(operator.index, items))
    except TypeError:
        raise InputError(f"{holds} {shown(items)}, whose items are not all token ids") from None
    for token in ids:
        if not -(1 << 63) <= token < 1 << 63:
            raise InputError(f"{holds} {token}, which is no token id")
    return ids


def _next_ids(given: Any) -> list[int]:
    """The ids that follow the sequences, of one id or several."""
    if _is_list(given):
        return _token_ids("next_token holds", given)
    return _token_ids("next_token holds", [given])


def _companion(name: str, given: Any) -> Tensor | None:
    """An attention mask or segment ids on the host, [B, T]."""
    if given is None:
        return None
    try:
        tensor: Tensor = torch.atleast_2d(torch.as_tensor(given).cpu())
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name}={shown(given)} is no tensor of whole numbers") from None
    if tensor.is_complex() or (tensor != tensor.long()).any():
        raise InputError(f"{name}={shown(given)} holds numbers that are not whole")
    return tensor
