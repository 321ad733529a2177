"""What can be given to `Tracer.trace` and the views of a trace, and what is refused in one line."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from densitrace import AutoStrata, InputError, Nucleus, Threshold, Trace, Tracer
from densitrace.tracer.batch import PADDING, batch_of_lists, batch_of_tensor
from densitrace.tracer.indices import shown

IDS = [5, 9, 33, 2, 60, 17]
RULE = Threshold([0.1, 0.01])
tensor = torch.tensor


def trace(tracer: Tracer, inputs: Any = IDS, **options: Any) -> Any:
    return tracer.trace(inputs, **{"select": RULE, **options})


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ((5, 9), [[5, 9]]),
        (range(5, 8), [[5, 6, 7]]),
        (np.array([5, 9], dtype=np.uint8), [[5, 9]]),
        ([tensor(5), tensor(9)], [[5, 9]]),
        (np.array([[5, 9], [2, 3]]), [[5, 9], [2, 3]]),
        ([tensor([5, 9]), [2]], [[5, 9], [2]]),
        (pd.Series([5, 9], index=[7, 8]), [[5, 9]]),
        (pd.Series(["a", "b"], index=[7, 8]), [[256, 64], [256, 65]]),
        (pd.Series(["x", "a"])[1:], [[256, 64]]),
    ],
)
def test_inputs(byte_tracer: Tracer, inputs: Any, expected: list[list[int]]) -> None:
    found = trace(byte_tracer, inputs)
    traces = [found] if isinstance(found, Trace) else found
    assert [one.tokens.tolist() for one in traces] == expected


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (None, "inputs=None: a text, a list of texts or token ids"),
        (5, "inputs=5: a text"),
        (iter(IDS), "inputs=<list_iterator object"),
        ({"a", "b"}, "inputs={"),
        (b"The cat", "inputs=b'The cat': a text"),
        ([b"The cat"], "inputs hold b'The cat'"),
        (Path("text"), r"inputs=PosixPath\('text'\): a text"),
        (pd.DataFrame({"text": ["a"]}), r"inputs= *text 0 a: a text"),
        (np.array(5), r"inputs=array\(5\): a text"),
        (np.ones((1, 2, 3), dtype=int), "whose items are not all token ids"),
        (tensor(5), r"input ids have shape \[\]"),
        (tensor([1j]), "dtype torch.complex64"),
        ([2**70, 1], f"inputs hold {2**70}, which is no token id"),
        ([[1], 2], "inputs hold 2; texts or lists"),
        ("a\ud800", r"the text 'a\\ud800' holds half a surrogate pair at 1"),
    ],
)
def test_what_are_no_inputs(byte_tracer: Tracer, inputs: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        trace(byte_tracer, inputs)
    assert "\n" not in str(caught.value)


def test_values_in_messages_fit_in_80_characters() -> None:
    assert shown("x" * 78) == repr("x" * 78)
    assert shown("x" * 79) == f"'{'x' * 76}..."


def test_what_follows_each_token_of_padded_rows() -> None:
    right = batch_of_lists([[1, 2, 3], [4]], [9, 8])
    assert right.next_ids.tolist() == [[2, 3, 9], [8, PADDING, PADDING]]
    left = batch_of_tensor(tensor([[0, 0, 4, 5]]), tensor([[0, 0, 1, 1]]))
    assert left.next_ids.tolist() == [[PADDING, PADDING, 5, PADDING]]
    segments = torch.tensor([[255, 255, 3, 3, 3]], dtype=torch.uint8)
    packed = batch_of_tensor(tensor([[1, 2, 3, 4, 0]]), tensor([[1, 1, 1, 1, 0]]), segments)
    assert packed.next_ids.tolist() == [[2, PADDING, 4, PADDING, PADDING]]


@pytest.mark.parametrize("given", [7, np.int64(7), tensor(7), [7], tensor([7]), np.array([7])])
def test_the_next_token(byte_tracer: Tracer, given: Any) -> None:
    assert np.isfinite(trace(byte_tracer, next_token=given).surprisal[-1])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"next_token": 5.5}, r"next_token holds \[5.5\]"),
        ({"next_token": "a"}, "next_token holds 'a'"),
        ({"next_token": [None]}, r"next_token holds \[None\]"),
        ({"next_token": 2**65}, f"next_token holds {2**65}"),
        ({"scope": "output", "output": "a"}, "output='a' is not a whole number"),
        ({"scope": "output", "output": None}, "output=None is not a whole number"),
        ({"scope": "output", "output": 1.5}, "output=1.5 is not a whole number"),
        ({"seed": None}, "seed=None is not a whole number"),
        ({"seed": 1.5, "importance": "random"}, "seed=1.5 is not a whole number"),
        ({"controls": "random"}, "controls='random': a list is needed"),
        ({"controls": None}, "controls=None: a list is needed"),
        ({"select": 0.1}, r"give Threshold\(\[0.1\]\)"),
        ({"select": [0.1, 0.2]}, r"give Threshold\(\[0.1, 0.2\]\)"),
        ({"inputs": tensor([IDS]), "attention_mask": "abc"}, "attention_mask='abc' is no tensor"),
        (
            {"inputs": tensor([[1, 2]]), "attention_mask": tensor([[0.5, 1]])},
            "attention_mask=.* not whole",
        ),
    ],
)
def test_options_that_cannot_be_used(
    byte_tracer: Tracer, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        trace(byte_tracer, **options)
    assert "\n" not in str(caught.value)


def test_whole_numbers_of_numpy(byte_tracer: Tracer) -> None:
    options: dict[str, Any] = {"importance": "random", "controls": ["random"], "scope": "output"}
    ours = trace(byte_tracer, seed=np.int64(3), output=np.int64(2), **options)
    expected = trace(byte_tracer, seed=3, output=2, **options)
    np.testing.assert_array_equal(ours.errors["tv_random"], expected.errors["tv_random"])
    assert AutoStrata(np.int64(6)) == AutoStrata(6)  # type: ignore[arg-type]
    assert type(AutoStrata(np.int64(6)).n) is int  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"AutoStrata n=6\.0 is not a whole number"):
        AutoStrata(6.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("view", "says"),
    [
        (lambda trace: trace.edges(1.5), "output=1.5 is not a whole number"),
        (lambda trace: trace.edges(-1, "a"), "stratum='a' is not a whole number"),
        (lambda trace: trace.weights(None), "layer=None is not a whole number"),
        (lambda trace: trace.density_at("a"), "eps='a': give a finite error"),
        (lambda trace: trace.density_at(None), "eps=None: give a finite error"),
        (lambda trace: trace.density_at(np.array([0.1, 0.2])), "eps=array"),
    ],
)
def test_views_of_nothing(byte_tracer: Tracer, view: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        view(trace(byte_tracer))


def test_a_trace_equals_itself_alone(byte_tracer: Tracer) -> None:
    found = trace(byte_tracer)
    assert found == found
    assert found != copy.copy(found)
    assert found in {found}


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_nucleus_of_1_is_the_full_graph(backend: str) -> None:
    tracer = Tracer.from_pretrained("examples/model", device="cpu", backend=backend)
    text = "It is a truth universally acknowledged, that a single man in possession of a fortune"
    found = trace(tracer, text, select=Nucleus([0.5, 1]))
    np.testing.assert_array_equal(found.size[:, 1], 1)
    assert (found.size[1:, 0] < 0.5).all()
