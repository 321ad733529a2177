"""Selection rules: each turns the weights of a node's in-edges into cuts (METHOD §3).

Who reads a store needs their values alone: torch, which takes a second to import, comes with cuts.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from .nodes import Node

MAX_STRATA = 255  # levels are stored in eight bits


@dataclass(frozen=True, init=False)
class Rule:
    """A selection rule with one value a stratum, sorted so that the sparsest comes first.

    Raises:
        InputError: values that are no numbers, out of range, repeated, none or more than 255.
    """

    values: tuple[float, ...]
    name: ClassVar[str] = ""
    sparsest: ClassVar[str] = "smallest"  # whether small or large values keep little
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    allows_lower: ClassVar[bool] = False
    allows_upper: ClassVar[bool] = True

    def __init__(self, values: Iterable[float]) -> None:
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{type(self).__name__} takes a list of numbers, not {values!r}"
            ) from error
        for value in numbers:
            self._check(value)
        if len(set(numbers)) < len(numbers):
            repeated = next(value for value in numbers if numbers.count(value) > 1)
            raise InputError(f"{type(self).__name__} value {repeated:g} is given twice")
        if not 1 <= len(numbers) <= MAX_STRATA:
            raise InputError(
                f"{type(self).__name__} has {len(numbers)} values; 1 to {MAX_STRATA} are possible"
            )
        ordered = sorted(numbers, reverse=self.sparsest == "largest")
        object.__setattr__(self, "values", tuple(ordered))

    def _check(self, value: float) -> None:
        inside = self.lower < value < self.upper
        inside |= self.allows_lower and value == self.lower
        inside |= self.allows_upper and value == self.upper
        if not (math.isfinite(value) and inside):
            left, right = "[" if self.allows_lower else "(", "]" if self.allows_upper else ")"
            raise InputError(
                f"{type(self).__name__} value {value:g} is outside "
                f"{left}{self.lower:g}, {self.upper:g}{right}"
            )

    def __len__(self) -> int:
        return len(self.values)

    def cuts(self, node: "Node", backend: str = "auto") -> "Tensor":
        """float32 [K, B, T]: an edge is kept iff its unnormalised weight exceeds the cut."""
        raise InputError(f"{type(self).__name__} has no cut of its own at a node")

    def to_json(self) -> dict[str, Any]:
        """A form that JSON holds and `Rule.from_json` reads."""
        return {"name": self.name, "values": list(self.values)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Rule | AutoStrata":
        """The rule that `to_json` described."""
        if data["name"] == AutoStrata.name:
            return AutoStrata(data["n"])
        rules: tuple[type[Rule], ...] = (Threshold, Nucleus, TopFraction, Size)
        for rule in rules:
            if rule.name == data["name"]:
                return rule(data["values"])
        raise InputError(f"rule {data['name']!r} is unknown")


class Threshold(Rule):
    """Keep an edge iff its normalised weight exceeds tau, 0 <= tau < 1.

    Example:
        >>> Threshold([1e-3, 1e-2]).values
        (0.01, 0.001)
    """

    name = "threshold"
    sparsest = "largest"
    allows_lower, allows_upper = True, False

    def cuts(self, node: "Node", backend: str = "auto") -> "Tensor":
        """tau * Z_t."""
        import torch

        from ..kernels.constants import on_device

        tau = on_device(self.values, torch.float64, node.total.device)
        return (tau[:, None, None] * node.total.double()).float()


class Nucleus(Rule):
    """Keep the fewest of a node's heaviest edges whose weights sum to at least p, 0 < p <= 1.

    Edges that tie with the last one are all kept; the papers' reference cuts such ties by order.
    """

    name = "nucleus"

    def cuts(self, node: "Node", backend: str = "auto") -> "Tensor":
        """Between the edge that crosses p * Z_t and the next lighter one."""
        from .. import kernels

        return kernels.nucleus_cuts(node.edges, node.side, self.values, node.total, backend=backend)


class TopFraction(Rule):
    """Keep ceil(s * n) of a node's n in-edges, the heaviest, 0 < s <= 1.

    An edge that ties with the heaviest one left out is left out too.
    """

    name = "top_fraction"

    def cuts(self, node: "Node", backend: str = "auto") -> "Tensor":
        """Between the lightest edge kept and the heaviest left out."""
        from .. import kernels

        return kernels.fraction_cuts(node.edges, node.side, self.values, backend=backend)


class Size(Rule):
    """The s-Trace: the first int(s * |E_t|) edges of a best-first search from one output.

    It has no cut at a node and needs `scope="output"`; METHOD §4 shows that its strata are
    threshold traces at the output's own thresholds.
    """

    name = "size"


@dataclass(frozen=True)
class GivenCuts(Rule):
    """Cuts that do not depend on the node: how an order over all edges enters the lanes."""

    def __init__(self, cuts: Sequence[float]) -> None:
        object.__setattr__(self, "values", tuple(cuts))

    def cuts(self, node: "Node", backend: str = "auto") -> "Tensor":
        """The same cuts everywhere."""
        import torch

        from ..kernels.constants import on_device

        values = on_device(self.values, torch.float32, node.total.device)
        return values[:, None, None].expand(-1, *node.total.shape).contiguous()


@dataclass(frozen=True)
class AutoStrata:
    """n thresholds chosen on a pilot sample so that mean trace sizes are even in log s.

    The full graph, whose size and error are known to be 1 and 0, is left out as the next step.

    Raises:
        InputError: n outside 1..255.
    """

    n: int
    name: ClassVar[str] = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or not 1 <= self.n <= MAX_STRATA:
            raise InputError(f"AutoStrata n={self.n!r} is not a whole number in 1..{MAX_STRATA}")

    def to_json(self) -> dict[str, Any]:
        """A form that JSON holds and `Rule.from_json` reads."""
        return {"name": self.name, "n": self.n}

    @staticmethod
    def pilot(importance: str, n: int = 12) -> Threshold:
        """The thresholds that a pilot of n strata tries: fine where that importance lives."""
        tried = 48 if n <= 48 else MAX_STRATA - 1
        if importance in ("cosine", "random"):
            return Threshold(np.linspace(0.0, 0.995, tried))
        # Of residual and MLP the heavier has half the weight, so below 0.5 no trace is empty.
        return Threshold(np.concatenate([[0.0], np.geomspace(1e-7, 0.499, tried)]))

    def choose(self, tried: Threshold, sizes: NDArray[np.floating]) -> Threshold:
        """n thresholds between those tried, even in mean log size from sparsest to fullest.

        Args:
            tried: the pilot's thresholds.
            sizes: [tokens, len(tried)] trace sizes of the pilot, none of them zero.
        """
        log_size = np.log10(sizes).mean(0)
        tau = np.array(tried.values)
        growing = np.maximum.accumulate(log_size)
        wanted = np.linspace(growing[0], growing[-1], self.n + 1)[:-1]
        # Interpolating in the order of sizes; in log tau where tau spans decades. The small slope
        # parts equal sizes, so that what lies beyond a run of them is sought beyond its end.
        place = np.arange(len(tau))
        position = np.interp(wanted, growing + 1e-9 * place, place)
        low, high = np.floor(position).astype(int), np.ceil(position).astype(int)
        part = position - low
        decades = (tau[low] > 0) & (tau[high] > 0)
        linear = tau[low] * (1 - part) + tau[high] * part
        with np.errstate(divide="ignore"):
            geometric = np.exp(
                np.log(np.maximum(tau[low], 1e-300)) * (1 - part)
                + np.log(np.maximum(tau[high], 1e-300)) * part
            )
        chosen = np.unique(np.where(decades, geometric, linear))
        different = len(np.unique(growing.round(6)))
        if min(len(chosen), different) < self.n:
            raise InputError(
                f"AutoStrata({self.n}): only {different} different sizes exist on the pilot "
                "sample; ask for fewer strata or give thresholds"
            )
        return Threshold(chosen)


DEFAULT_STRATA = AutoStrata(12)


def checked_rule(select: Rule | AutoStrata) -> Rule | AutoStrata:
    """A rule as it is; InputError where something else was given for one."""
    if not isinstance(select, Rule | AutoStrata):
        raise InputError(f"select={select!r} is no rule: give Threshold({select!r}), say")
    return select
