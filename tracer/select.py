"""Selection rules: each turns the weights of a node's in-edges into cuts (METHOD §3).

torch is imported only in `cuts`: reading a store needs the rules' values, but not a second of
import time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .indices import shown, whole

if TYPE_CHECKING:
    from torch import Tensor

    from .nodes import ImportanceName, Node

MAX_STRATA = 255  # levels are stored in eight bits


@dataclass(frozen=True, init=False)
class Rule:
    """A selection rule with one value per stratum, sorted so that the sparsest comes first.

    Args:
        values: 1 to 255 different numbers within the rule's range.

    Raises:
        InputError: values that are not numbers, out of range, repeated, none or more than 255.
    """

    values: tuple[float, ...]
    name: ClassVar[str] = ""
    sparsest: ClassVar[str] = "smallest"  # which values keep the fewest edges: or "largest"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    allows_lower: ClassVar[bool] = False
    allows_upper: ClassVar[bool] = True

    def __init__(self, values: Iterable[float]) -> None:
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{type(self).__name__} takes a list of numbers, not {shown(values)}"
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
        if not inside:
            left, right = "[" if self.allows_lower else "(", "]" if self.allows_upper else ")"
            raise InputError(
                f"{type(self).__name__} value {value:g} is outside "
                f"{left}{self.lower:g}, {self.upper:g}{right}"
            )

    def __len__(self) -> int:
        return len(self.values)

    def cuts(self, node: "Node", backend: str = "auto") -> "Tensor":
        """Compute the cuts of a node.

        Args:
            node: the weights of its in-edges.
            backend: of the ops, see `densitrace info`.

        Returns:
            float32 [K, B, T]: an edge is kept iff its unnormalised weight exceeds the cut.

        Raises:
            InputError: the rule has no cuts (`Size`).
        """
        raise InputError(f"{type(self).__name__} has no cuts at nodes")

    def to_json(self) -> dict[str, Any]:
        """A form that JSON holds and `Rule.from_json` reads."""
        return {"name": self.name, "values": list(self.values)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Rule | AutoStrata":
        """Rebuild a rule from the output of `to_json`.

        Raises:
            InputError: the rule's name is unknown.
        """
        if data["name"] == AutoStrata.name:
            return AutoStrata(data["n"])
        rules: tuple[type[Rule], ...] = (Threshold, Nucleus, TopFraction, Size)
        for rule in rules:
            if rule.name == data["name"]:
                return rule(data["values"])
        raise InputError(f"rule {data['name']!r} is unknown")


class Threshold(Rule):
    """Keep an edge iff its normalised weight exceeds tau.

    Args:
        values: thresholds tau, 0 <= tau < 1, one per stratum.

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
    """Keep the fewest heaviest in-edges of a node whose normalised weights sum to at least p.

    Edges that tie with the last one are all kept; the papers' reference cuts such ties by order.
    p = 1 keeps every edge of positive weight.

    Args:
        values: shares p, 0 < p <= 1, one per stratum.

    Example:
        >>> Nucleus([0.9, 0.5]).values
        (0.5, 0.9)
    """

    name = "nucleus"

    def cuts(self, node: "Node", backend: str = "auto") -> "Tensor":
        """A value between the edge that reaches p * Z_t and the next lighter one."""
        from .. import kernels

        cuts = kernels.nucleus_cuts(node.edges, node.side, self.values, node.total, backend=backend)
        if self.values[-1] == 1:  # sums in floating point reach the total before the last edge
            cuts[-1].clamp_(max=0)
        return cuts


class TopFraction(Rule):
    """Keep the ceil(s * n) heaviest of a node's n in-edges.

    Edges that tie with the heaviest dropped one are dropped too.

    Args:
        values: fractions s, 0 < s <= 1, one per stratum.

    Example:
        >>> TopFraction([0.5, 0.1]).values
        (0.1, 0.5)
    """

    name = "top_fraction"

    def cuts(self, node: "Node", backend: str = "auto") -> "Tensor":
        """A value between the lightest kept edge and the heaviest dropped one."""
        from .. import kernels

        return kernels.fraction_cuts(node.edges, node.side, self.values, backend=backend)


class Size(Rule):
    """The s-Trace: the first int(s * |E_t|) edges of a best-first search from one output.

    Has no cut at a node and needs `scope="output"`; METHOD §4 shows that its strata are threshold
    traces at the output's own thresholds.

    Args:
        values: sizes s, 0 < s <= 1, one per stratum.

    Example:
        >>> Size([0.5, 0.1]).values
        (0.1, 0.5)
    """

    name = "size"


@dataclass(frozen=True)
class GivenCuts(Rule):
    """The same given cuts at every node: how the s-Trace's order of edges enters the lanes."""

    def __init__(self, cuts: Sequence[float]) -> None:
        object.__setattr__(self, "values", tuple(cuts))

    def cuts(self, node: "Node", backend: str = "auto") -> "Tensor":
        """The given cuts at every token."""
        import torch

        from ..kernels.constants import on_device

        values = on_device(self.values, torch.float32, node.total.device)
        return values[:, None, None].expand(-1, *node.total.shape).contiguous()


@dataclass(frozen=True)
class AutoStrata:
    """Choose n thresholds on a pilot sample so that mean trace sizes are evenly spaced in log s.

    The full graph would be the next step; it is left out, as its size is 1 and its error 0.

    Args:
        n: number of strata, 1 to 255.

    Raises:
        InputError: n outside 1..255.

    Example:
        >>> AutoStrata(6)
        AutoStrata(n=6)
    """

    n: int
    name: ClassVar[str] = "auto"

    def __post_init__(self) -> None:
        n = whole("AutoStrata n", self.n)
        if isinstance(self.n, bool) or not 1 <= n <= MAX_STRATA:
            raise InputError(f"AutoStrata n={self.n!r} is not a whole number in 1..{MAX_STRATA}")
        object.__setattr__(self, "n", n)

    def to_json(self) -> dict[str, Any]:
        """A form that JSON holds and `Rule.from_json` reads."""
        return {"name": self.name, "n": self.n}

    @staticmethod
    def pilot(importance: "ImportanceName", n: int = 12) -> Threshold:
        """The thresholds that a pilot for n strata tries, dense where the importance's weights lie.

        Args:
            importance: norm_l1, norm_l2, proximity, cosine or random.
            n: number of strata to choose later.
        """
        tried = 48 if n <= 48 else MAX_STRATA - 1
        if importance in ("cosine", "random"):
            return Threshold(np.linspace(0.0, 0.995, tried))
        # The heavier of residual and MLP has at least half the weight: below 0.5 no trace is empty.
        return Threshold(np.concatenate([[0.0], np.geomspace(1e-7, 0.499, tried)]))

    def choose(self, tried: Threshold, sizes: NDArray[np.floating]) -> Threshold:
        """Choose n thresholds between those tried, evenly spaced in mean log size.

        Args:
            tried: the pilot's thresholds.
            sizes: [tokens, len(tried)] trace sizes of the pilot, all above zero.

        Returns:
            A rule with n thresholds.

        Raises:
            InputError: the pilot shows fewer than n different sizes.
        """
        log_size = np.log10(sizes).mean(0)
        tau = np.array(tried.values)
        growing = np.maximum.accumulate(log_size)
        wanted = np.linspace(growing[0], growing[-1], self.n + 1)[:-1]
        # Interpolate over the sorted sizes, in log tau where both neighbours are positive. The
        # small slope separates equal sizes, so that interpolation beyond a plateau starts at its
        # end.
        index = np.arange(len(tau))
        position = np.interp(wanted, growing + 1e-9 * index, index)
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
    """Return the rule unchanged; raises InputError if it is not a rule."""
    if not isinstance(select, Rule | AutoStrata):
        values = [select] if isinstance(select, int | float) else select
        example = f"Threshold({values if isinstance(values, list | tuple) else [0.1]})"
        raise InputError(f"select={shown(select)} is not a rule: give {example}, for example")
    return select


def check_scope(select: Rule | AutoStrata, scope: str) -> None:
    """Raise InputError for a `Size` rule unless `scope` is "output"."""
    if isinstance(select, Size) and scope != "output":
        raise InputError("Size orders the edges of one output: it needs scope='output'")


def rule_with_cuts(rule: Rule | AutoStrata) -> Rule:
    """Return the rule unchanged; raises InputError if it has no cuts at nodes."""
    if isinstance(checked_rule(rule), Size | AutoStrata):
        raise InputError(
            f"{type(rule).__name__} has no cuts at nodes: a Threshold, Nucleus or TopFraction is "
            "needed"
        )
    assert isinstance(rule, Rule)
    return rule
