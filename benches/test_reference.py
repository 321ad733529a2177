"""How much faster than the papers' reference is the reference's own question answered?

One output position with 15 thresholds, weights and evaluation included, on a model of the shape
that the reference was timed on; and all positions at once. The reference's seconds were measured on
another 2-core machine (tests/goldens/README.md has the whole table). To compare the machines, look
at the plain forward: it took 0.010 to 0.019 s there, and is timed before every round here.
"""

import pytest
from problems import Work, random_tokens, reference_shaped, thresholds
from pytest_benchmark.fixture import BenchmarkFixture
from timing import measure

STRATA = 15
# One output position: weights, threshold strata and evaluation.
REFERENCE_SECONDS = {16: 0.11 + 0.19 + 0.71, 32: 0.45 + 0.62 + 1.8, 64: 1.4 + 2.6 + 6.4,
                     128: 5.2 + 9.5 + 27}  # fmt: skip


@pytest.mark.parametrize("length", REFERENCE_SECONDS)
@pytest.mark.parametrize("positions", ["one", "all"])
def test_reference(benchmark: BenchmarkFixture, positions: str, length: int) -> None:
    benchmark.group = f"reference T={length}"
    work = Work(reference_shaped(), random_tokens(length), thresholds(STRATA))
    run = work.one_output if positions == "one" else work.scan
    timed = measure(benchmark, run, {"plain forward": work.forward}, "plain forward")
    if timed is None:
        return
    theirs = REFERENCE_SECONDS[length]
    a_position = timed.seconds / (1 if positions == "one" else length)
    benchmark.extra_info["reference s, one position"] = round(theirs, 2)
    benchmark.extra_info["x faster a position"] = round(theirs / a_position)
