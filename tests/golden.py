"""The golden models and arrays of tests/goldens; see the README there."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densitrace import Nucleus, Rule, Size, Threshold, Trace, Tracer

GOLDENS = Path(__file__).parent / "goldens"
FAMILIES = ("mistral", "qwen2", "qwen3", "olmo2", "gemma3")
LENGTHS = ("T08", "T16")
RULES: dict[str, type[Rule]] = {"threshold": Threshold, "nucleus": Nucleus, "size": Size}
CUT_RULES = ("threshold", "nucleus")  # rules that need no search


@cache
def tracer_of(family: str) -> Tracer:
    return Tracer.from_pretrained(GOLDENS / family, device="cpu")


@cache
def golden(family: str, length: str) -> dict[str, NDArray[Any]]:
    with np.load(GOLDENS / family / f"{length}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def golden_trace(
    tracer: Tracer, arrays: dict[str, NDArray[Any]], rule: str = "threshold", **options: Any
) -> Trace:
    """Trace a golden sequence under the strata of its arrays for the importance `norm_l1`."""
    select = RULES[rule](arrays[f"s.norm_l1.{rule}.tau"])
    following = [int(arrays["next_id"])]
    trace = tracer.trace(arrays["ids"].tolist(), select=select, next_token=following, **options)
    assert isinstance(trace, Trace)
    return trace


def assert_golden(trace: Trace, arrays: dict[str, NDArray[Any]], rule: str) -> None:
    """Check sizes and errors of one output's traces and of their inverse (controls=("inverse",)).

    The size of the last stratum is left out: the reference defines it as the whole graph.
    """
    sizes = arrays[f"s.norm_l1.{rule}.raw_size"]
    np.testing.assert_array_equal(trace.edge_count[0, :-1], sizes[:-1])
    for ours, theirs in (("", "only"), ("_inverse", "inv")):
        for measure, name in (("tv", "tv"), ("loss", "loss"), ("entropy", "ent")):
            expected = arrays[f"e.norm_l1.{rule}.{name}_{theirs}"]
            np.testing.assert_allclose(
                trace.errors[measure + ours][0], expected, atol=1e-4, err_msg=measure + ours
            )
