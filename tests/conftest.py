"""What all tests share: reproducible hypothesis, poisoned memory, device tests where one is."""

from collections.abc import Iterator

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile(
    "densitrace", deadline=None, derandomize=True, max_examples=25, print_blob=True
)
hypothesis.settings.load_profile("densitrace")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need a GPU are not collected where there is none."""
    if torch.cuda.is_available():
        return
    needing = [item for item in items if item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=needing)
    items[:] = [item for item in items if item not in needing]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.empty filled with NaN (or -1), so that an element nobody wrote is seen."""
    empty = torch.empty

    def filled(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = empty(*args, **kwargs)  # type: ignore[call-overload]
        if tensor.is_floating_point():
            return tensor.fill_(torch.nan)
        signed = tensor.dtype.is_signed
        return tensor.fill_(-1 if signed else 255) if tensor.dtype != torch.bool else tensor

    monkeypatch.setattr(torch, "empty", filled)
    yield
