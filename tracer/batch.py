"""Padded batches of token ids, with the documents of each row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .transfer import to_device

PADDING = -1  # segment of padding tokens, and the next id of a document's last token


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens; a row holds one or several documents, padded on either side."""

    ids: Tensor  # int64 [B, T]
    segments: Tensor  # int32 [B, T]: documents numbered within the row, PADDING on padding
    positions: Tensor  # int64 [B, T]: position within the document
    next_ids: Tensor  # int64 [B, T]: the following token, PADDING where there is none
    documents: int = 1  # the most in any row

    @property
    def valid(self) -> Tensor:
        """bool [B, T]: which tokens are not padding."""
        return self.segments != PADDING

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return self.map(lambda tensor: to_device(tensor, device))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply a function to every tensor of the batch."""
        return self.with_tensors({name: change(tensor) for name, tensor in self.tensors.items()})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The batch's tensors by field name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def with_tensors(self, tensors: Mapping[str, Any]) -> "Batch":
        """Replace the batch's tensors by those of the same name; other names are ignored."""
        return replace(self, **{name: tensors[name] for name in self.tensors})

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [B]: columns of each row up to its last token; synchronises with the device."""
        columns = torch.arange(1, self.ids.shape[1] + 1, device=self.ids.device)
        lengths: NDArray[np.int64] = (columns * self.valid).amax(1).numpy(force=True)
        return lengths

    def part(self, part: "BatchPart") -> "Batch":
        """Slice out some rows, without the trailing padding that they share."""
        return self.map(lambda tensor: tensor[part.rows, : part.columns])

    def row(self, index: int, end: int) -> "Batch":
        """A one-row batch: the tokens before column `end` that belong to its last document."""
        keep = self.segments[index, :end] == self.segments[index, end - 1]
        return self.map(lambda tensor: tensor[index, :end][keep][None])


@dataclass(frozen=True)
class BatchPart:
    """Rows of a batch, cut at the column where the longest of them ends."""

    rows: slice
    columns: int


def batch_of_lists(
    sequences: Sequence[Sequence[int]], next_tokens: Sequence[int] | None = None
) -> Batch:
    """Build a right-padded batch with one document a row.

    Args:
        sequences: token ids of each row, at least one.
        next_tokens: the token that follows each sequence; PADDING where unknown.

    Raises:
        InputError: no sequence, or an empty one.
    """
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise InputError("inputs hold an empty sequence: every text needs at least one token")
    length = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), length, dtype=torch.int64, device="cpu")
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.int64, device="cpu")
        mask[row, : len(sequence)] = True
    return batch_of_tensor(ids, mask, None, next_tokens)


def batch_of_tensor(
    ids: Tensor,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    next_tokens: Sequence[int] | None = None,
) -> Batch:
    """Build a batch from token ids [B, T], padded on either side.

    Args:
        ids: integer [B, T].
        attention_mask: [B, T], 0 on padding.
        segment_ids: [B, T], the document of each token; each document is one contiguous run.
        next_tokens: the token that follows each row; PADDING where unknown.

    Raises:
        InputError: shapes that differ, rows without tokens, documents that are not contiguous.
    """
    if ids.ndim != 2 or ids.shape[1] == 0 or ids.is_floating_point() or ids.is_complex():
        raise InputError(
            f"input ids have shape {list(ids.shape)} and dtype {ids.dtype}; "
            "whole numbers [B, T] with T >= 1 are needed"
        )
    ids = ids.long()
    for name, other in (("attention_mask", attention_mask), ("segment_ids", segment_ids)):
        if other is not None and other.shape != ids.shape:
            raise InputError(
                f"{name} has shape {list(other.shape)}, the input ids {list(ids.shape)}"
            )
    segments = torch.zeros_like(ids) if segment_ids is None else segment_ids.to(ids)
    if attention_mask is not None:
        segments = segments.masked_fill(attention_mask.to(ids) == 0, PADDING)
    if (segments == PADDING).all(1).any():
        raise InputError("inputs hold a row with only padding: every row needs a token")
    positions, starts = _positions(segments)
    _check_runs(segments, starts, only_mask=segment_ids is None)
    padding = segments == PADDING
    # Number the documents in order; give padding id 0 and position 0.
    segments = ((starts & ~padding).cumsum(1) - 1).masked_fill(padding, PADDING)
    ids, positions = ids.masked_fill(padding, 0), positions.masked_fill(padding, 0)
    next_ids = torch.full_like(ids, PADDING)
    continues = segments[:, 1:] == segments[:, :-1]
    next_ids[:, :-1] = torch.where(continues, ids[:, 1:], PADDING)
    if next_tokens is not None:
        if len(next_tokens) != len(ids):
            raise InputError(f"next_token has {len(next_tokens)} entries for {len(ids)} sequences")
        rows, columns = (torch.arange(size, device=ids.device) for size in ids.shape)
        following = torch.as_tensor(next_tokens, dtype=torch.int64, device=ids.device)
        next_ids[rows, (columns * ~padding).argmax(1)] = following
    next_ids = next_ids.masked_fill(padding, PADDING)
    return Batch(
        ids=ids,
        segments=segments.int(),
        positions=positions,
        next_ids=next_ids,
        documents=int(segments.max()) + 1,
    )


def _positions(segments: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [B, T] position within the run of equal segments; bool [B, T] where runs start."""
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    first = torch.where(starts, index, 0).cummax(1).values
    return index - first, starts


def _check_runs(segments: Tensor, starts: Tensor, only_mask: bool) -> None:
    for row, start in zip(segments.tolist(), starts.tolist(), strict=True):
        heads = [segment for segment, first in zip(row, start, strict=True) if first]
        documents = [segment for segment in heads if segment != PADDING]
        if len(set(documents)) < len(documents):
            raise InputError(
                "attention_mask has padding between tokens: it must be before or after them"
                if only_mask
                else "segment_ids return to an earlier segment: each must be one run"
            )
