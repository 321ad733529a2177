"""Shared by all tests: reproducible hypothesis, poisoned memory, GPU tests only with a GPU."""

import os
from typing import Any

import hypothesis
import pytest
import torch

import densitrace

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are first imported

hypothesis.settings.register_profile(
    "densitrace", deadline=None, derandomize=True, max_examples=25, print_blob=True
)
hypothesis.settings.register_profile(  # for slow runs: --hypothesis-profile=few
    "few", hypothesis.settings.get_profile("densitrace"), max_examples=5
)
hypothesis.settings.load_profile("densitrace")


def pytest_report_header() -> str:
    """Versions. Importing the package first keeps kernels/ from shadowing another `kernels`."""
    return f"densitrace {densitrace.__version__}, torch {torch.__version__}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that need a GPU if there is none."""
    if torch.cuda.is_available():
        return
    needing = [item for item in items if item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=needing)
    items[:] = [item for item in items if item not in needing]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill torch.empty with NaN, or the largest integer, to expose unwritten elements."""
    with torch.device("cpu"):  # in the first such context torch notes its constructors for all
        torch.empty(0)
    empty = torch.empty

    def filled(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor: torch.Tensor = empty(*args, **kwargs)
        floating = tensor.is_floating_point()
        tensor.fill_(torch.nan if floating else torch.iinfo(tensor.dtype).max)
        return tensor

    monkeypatch.setattr(torch, "empty", filled)
