"""The least work of an op: arithmetic operations, and bytes to and from main memory."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from densitrace.kernels import ProximityWeight


@dataclass(frozen=True)
class Costs:
    """Operations of each op on one problem, as the ledger defines them.

    - A multiply-add counts as 2; a minimum, a maximum, an absolute value and a comparison with a
      sum count as 1 each.
    - Attention is causal: a head has T (T + 1) / 2 pairs of target and source. For each pair, a
      product of scores (QK) takes 2 d operations, and one of values (PV) as many. Only these count,
      not exponentials, comparisons with cuts, selection or sums of masses: ops with more of those
      than of products reach a smaller share of the product rate.
    - Live lanes: one QK and one PV per lane, and one shared clean QK. Frozen lanes: one PV per lane
      and the clean QK. Work that cuts allow to skip counts as done, so a share may exceed 1.
    - Rows of `torch` itself count what they do: causal SDPA a QK and a PV for each of its rows, a
      matrix product all of its entries.
    - Bytes: every input tensor read once and every output written once.
    """

    heads: int
    length: int  # T
    width: int  # d, the same for queries, keys and values
    hidden: int  # D
    strata: int  # K
    vocabulary: int  # V

    @property
    def product(self) -> int:
        """One causal product of all heads: QK or PV."""
        return self.heads * self.length * (self.length + 1) * self.width

    def source_norms(self, p: int) -> int:
        """L1: project each value, D sums. L2: multiply each value by a d x d root, d sums."""
        sources = self.length * self.heads
        return sources * (self.hidden if p == 1 else self.width) * (2 * self.width + 2)

    def lane_attention(self, live: bool) -> int:
        """One clean QK; a QK (if live) and a PV per lane."""
        return self.product * (1 + self.strata * (2 if live else 1))

    def proximity(self) -> int:
        """The scores, u = W_O v of each source, and 4 operations per entry of every edge.

        An op that uses a bound to decide which edges need no sum does less.
        """
        pairs = self.heads * self.length * (self.length + 1) // 2
        projections = 2 * self.heads * self.length * self.width * self.hidden
        return self.product + projections + 4 * self.hidden * pairs

    def proximity_products(self) -> int:
        """The work that no bound saves, all of it products.

        The scores, u, W_O^T times each target's signs, and that times each value. The sums of
        undecided edges come on top.
        """
        projections = 4 * self.heads * self.length * self.width * self.hidden
        return 2 * self.product + projections

    def bottleneck(self) -> int:
        """A minimum and a maximum for each path i <= j <= t."""
        return self.length * (self.length + 1) * (self.length + 2) // 3

    def trace_sizes(self) -> int:
        """One addition per stratum, output and node."""
        return self.strata * self.length * (self.length + 1) // 2

    @staticmethod
    def are_products(op: str) -> bool:
        """Whether an op's operations are matrix products, not work of the vector units."""
        return op not in ("bottleneck", "trace_sizes")

    def operations(self, op: str, arguments: Sequence[Any]) -> int:
        """Operations of one call on one sequence; arguments as `kernels.reference` takes them."""
        match op:
            case "source_norms":
                return self.source_norms(arguments[2])
            case "attention_stats":
                return 2 * self.product
            case "edge_levels" | "edge_mass" if isinstance(arguments[0].weight, ProximityWeight):
                return self.proximity_products()
            case "edge_levels" | "nucleus_cuts" | "fraction_cuts" | "edge_mass" | "collect_edges":
                return self.product
            case "lane_attention":
                lanes = replace(self, strata=len(arguments[1]))  # the lanes of this call
                return lanes.lane_attention(live=arguments[3] is not None)
            case "product":
                return 2 * self.length * int(arguments[1].numel())
            case "bottleneck" | "trace_sizes" | "output_errors":
                return int(getattr(self, op)())
        raise KeyError(op)

    def output_errors(self) -> int:
        """The logits of all lanes and of the clean pass."""
        return 2 * (self.strata + 1) * self.length * self.hidden * self.vocabulary


def moved_bytes(*values: object) -> int:
    """Bytes of all tensors in arguments and results, also in dataclasses and lists; each once."""
    sizes: dict[int, int] = {}

    def visit(value: object) -> None:
        if isinstance(value, Tensor):
            sizes[value.data_ptr() or id(value)] = value.nbytes  # empty tensors have no address
        elif isinstance(value, list):
            for item in value:
                visit(item)
        elif is_dataclass(value):
            for field in fields(value):
                visit(getattr(value, field.name))

    for value in values:
        visit(value)
    return sum(sizes.values())
