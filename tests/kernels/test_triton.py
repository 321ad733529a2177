"""Guarantees of the Triton ops beyond their contracts, at any size and tiling."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from attention_problem import (
    Problem,
    Shape,
    assert_errors_agree,
    assert_rankings_of_ties,
    errors_of,
)
from host_waits import HostWaits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from densitrace import kernels


@pytest.fixture(autouse=True)
def _matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal rows of a product's left factor give equal rows, as on a GPU.

    The interpreter multiplies by NumPy's BLAS, which on some CPUs sums rows in different orders.
    """

    def dot(self: Any, left: TensorHandle, right: TensorHandle, into: TensorHandle, *_: Any) -> Any:
        summed = np.einsum("ij,jk->ik", left.data, right.data) + into.data
        return TensorHandle(summed, into.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


@contextmanager
def small_blocks(vocabulary: int, candidates: int) -> Iterator[None]:
    """Process one or two tokens at a time, and the vocabulary in several parts."""
    module = import_module("densitrace.kernels.triton.output_errors")  # the op shadows its module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LOGIT_BYTES", 4 * 4 * 2 * (vocabulary + 16))
        patch.setattr(module, "CANDIDATES", candidates)
        patch.setattr(module, "PART", 64)
        patch.setattr(module, "VECTOR", 32)
        yield


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 5),
    hidden=st.integers(1, 70),
    vocabulary=st.integers(2, 200),
    noise=st.sampled_from([1e-4, 1e-2, 0.3, 3.0]),
    candidates=st.sampled_from([1, 5, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_errors_agree_with_the_definition(
    seed: int,
    length: int,
    hidden: int,
    vocabulary: int,
    noise: float,
    candidates: int,
    dtype: torch.dtype,
    poisoned: None,
) -> None:
    problem = Problem(Shape(batch=1, length=length, hidden=hidden, dtype=dtype), seed)
    with small_blocks(vocabulary, candidates):
        ours = errors_of(problem, vocabulary, "triton", noise)
    assert not ours.tv[2].any()
    assert_errors_agree(ours, errors_of(problem, vocabulary, "reference", noise))


@pytest.mark.parametrize("candidates", [1, 5, 64])
def test_rankings_among_equal_logits(candidates: int, poisoned: None) -> None:
    """Among equal logits the first token ranks first, both as a candidate and in a full ranking."""
    with small_blocks(157, candidates):
        assert_rankings_of_ties("triton", vocabulary=157)


@pytest.mark.parametrize("other", [21, 40, 72])  # of the same step, of the next, of another part
def test_the_first_of_the_likeliest_outsiders(other: int, poisoned: None) -> None:
    """Two tie with the clean favourite, token 20, in the lane: the one before it comes first."""
    logits = torch.zeros(2, 128)
    logits[:, 16:21] = torch.arange(1.0, 6.0)
    logits[1, [8, other]] = 5.0
    clean, lane = logits.split(1)
    with small_blocks(128, 5):
        actual = kernels.output_errors(
            clean, lane[None], torch.eye(128), next_ids=torch.tensor([0]), backend="triton"
        )
    assert not actual.top1.any() and not actual.nucleus.any()


@pytest.mark.parametrize("wider", ["states", "unembedding"])
def test_states_and_unembedding_of_two_dtypes(wider: str, poisoned: None) -> None:
    """Neither is rounded to the narrower one."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 5, 33, generator=generator)
    table = torch.randn(40, 33, generator=generator)
    if wider == "states":
        table = table.bfloat16()
    else:
        states = states.bfloat16()
    ours, theirs = (
        vars(kernels.output_errors(states[0], states[1:], table, next_ids=ids, backend=backend))
        for ids in [torch.arange(5)]
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(ours, theirs)


def test_lanes_equal_to_the_clean_one_have_no_error(poisoned: None) -> None:
    """Whatever row of a tile a lane falls into."""
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(7, 75, generator=generator).bfloat16()
    table = torch.randn(301, 75, generator=generator).bfloat16()
    actual = kernels.output_errors(
        states, states.repeat(20, 1, 1), table, next_ids=torch.arange(7), backend="triton"
    )
    assert not actual.tv.any() and not actual.kl.any()
    assert (actual.nucleus == 99).all() and actual.top1.all()
    assert torch.equal(actual.loss, actual.clean_loss.expand(20, -1))
    assert torch.equal(actual.entropy, actual.clean_entropy.expand(20, -1))


@pytest.mark.parametrize("tokens", [1, 6])
def test_the_host_waits_once(tokens: int, poisoned: None) -> None:
    """For any number of token blocks: once, for what remains to be ranked in full."""
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(tokens, 9, generator=generator)
    lanes = states + 1e-3 * torch.randn(3, tokens, 9, generator=generator)
    table, ids = torch.randn(157, 9, generator=generator), torch.arange(tokens)

    def errors() -> kernels.OutputErrors:
        return kernels.output_errors(states, lanes, table, next_ids=ids, backend="triton")

    with small_blocks(157, 5):
        errors()  # copies constants
        with HostWaits() as waits:
            errors()
    assert waits.found == {"nonzero": 1}


def test_rows_fill_whole_tiles() -> None:
    module = import_module("densitrace.kernels.triton.output_errors")
    lanes, table = torch.empty(12, 2048, 4096, device="meta").bfloat16(), torch.empty(128256, 1)
    head = module.Unembedding(table.bfloat16(), None, 1.0, None)
    rows = module.rows_at_once(lanes, 128256, head)
    tile = module.product_config(lanes, head)["BT"]
    assert rows % tile == 0
    assert rows * 4 * 128256 <= module.logit_bytes(13 * 2048 * 4096 * 2) == 1 << 30
    assert (rows + tile) * 4 * 128256 > 1 << 30
