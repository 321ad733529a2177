"""Batches of token sequences for `Tracer.trace`."""

from collections.abc import Sequence

import numpy as np

from ..tracer.windows import consecutive_batches

BATCH_TOKENS = 4096  # tokens of a batch at most, padding included


def batches(sequences: Sequence[list[int]]) -> list[list[list[int]]]:
    """Split sequences, in their order, into batches of at most `BATCH_TOKENS` tokens.

    Args:
        sequences: token ids; a longer sequence than a batch is a batch by itself.

    Example:
        >>> [len(batch) for batch in batches([[1] * 2000, [2] * 2000, [3] * 2000])]
        [2, 1]
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    return [
        list(sequences[run]) for run in consecutive_batches(lengths, BATCH_TOKENS, padding=np.inf)
    ]
