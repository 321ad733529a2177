"""Counts of the work that the warps of a launch are given."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .program import Instruction

WARP, BANKS, SECTOR = 32, 32, 32  # lanes, banks of 4 bytes, bytes
TURN = 128  # bytes of shared memory served per turn, at most


@dataclass
class Counts:
    """Counts of one or several launches."""

    issued: Counter[str] = field(default_factory=Counter)  # warp instructions, by name
    # Operations of the matrix units by operand type: a multiply-add counts as two.
    multiplied: Counter[str] = field(default_factory=Counter)
    sectors: int = 0  # 32-byte sectors of global memory requested by warps
    turns: int = 0  # of shared memory: one per 128 bytes without bank conflicts
    least: int = 0  # turns without any bank conflict

    def issue(self, it: Instruction, who: NDArray[np.int64]) -> None:
        """Count an instruction for the warps of these threads."""
        self.issued[it.name] += len(np.unique(who // WARP))

    def access(
        self, space: str, who: NDArray[np.int64], at: NDArray[Any], size: int, changes: bool
    ) -> None:
        """Count an access. `changes`: lanes on one word are served one after another (atomics)."""
        if space == "shared":
            self._shared(who, at.astype(np.int64), size, changes)
        else:
            self.sectors += _distinct(who // WARP, at.astype(np.int64) // SECTOR)

    def _shared(
        self, who: NDArray[np.int64], at: NDArray[np.int64], size: int, changes: bool
    ) -> None:
        together = min(WARP, max(1, TURN // max(size, 4)))  # lanes served at once
        group = who // together
        count = max(1, size // 4)
        word = (at[:, None] // 4 + np.arange(count)).ravel()
        pairs = np.stack([np.repeat(group, count), word])
        if not changes:  # lanes on the same word are served together
            pairs = np.unique(pairs, axis=1)
        meeting = np.unique(np.stack([pairs[0], pairs[1] % BANKS]), axis=1, return_counts=True)
        (groups, _), most = meeting
        order = np.flatnonzero(np.diff(groups, prepend=-1))
        self.turns += int(np.maximum.reduceat(most, order).sum())
        self.least += len(order)


def _distinct(group: NDArray[np.int64], number: NDArray[np.int64]) -> int:
    return int(np.unique(np.stack([group, number]), axis=1).shape[1])
