"""The memory of a GPU on paper: what is added up, and that passes keep to their limit."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bench_files import bench
from click.testing import CliRunner
from device_models import MEMORY_LIMIT, llama_8b, tiny_llama
from meta_device import Allocated, Flash
from torch.nn.functional import scaled_dot_product_attention


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return bench("estimate_memory")


def test_tensors_count_while_they_live() -> None:
    weight = torch.empty(1000, 1000, device="meta")
    with Allocated([weight]) as allocated:
        states = torch.empty(100, 1000, device="meta")
        product = states @ weight.detach().T[:, :500]
        assert allocated.now == 400_384 + 200_192  # whole blocks of 512 bytes; views are free
        del states
        assert allocated.now == 200_192
        product.add_(1)
        del product
    assert (allocated.now, allocated.peak, allocated.largest) == (0, 600_576, 400_384)


def test_attention_makes_its_output_alone() -> None:
    q, k = (torch.empty(1, heads, 5000, 64, device="meta") for heads in (8, 2))
    with Flash(), Allocated([q, k]) as allocated:
        output = scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
    assert output.shape == q.shape
    assert allocated.peak == q.nbytes


@pytest.mark.parametrize(("length", "rows"), [(512, 8), (8192, 1)])
def test_passes_keep_to_their_limit(script: ModuleType, length: int, rows: int) -> None:
    """The shapes of an 8B Llama, but for fewer blocks and a smaller vocabulary."""
    config = llama_8b()
    config.num_hidden_layers, config.vocab_size = 2, 4096
    found = script.peaks(config, length, rows)
    assert [peak.part for peak in found] == ["importance and cuts", "scan, live", "scan, frozen"]
    for peak in found:
        assert 0.3 < peak.without_maps <= MEMORY_LIMIT, peak
    if length == 8192:  # long enough that nothing of T x T x heads would be as small as states
        assert max(peak.largest for peak in found) < config.num_attention_heads * length**2


def test_the_record(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "CASES", {"tiny": (24,)})
    monkeypatch.setattr(script, "SHAPES", {"tiny": lambda: tiny_llama(96, blocks=2)})
    monkeypatch.setattr(script, "BATCH_TOKENS", 48)
    result = CliRunner().invoke(script.main, ["--out", str(tmp_path / "memory")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "memory.md").read_text()
    assert page.count("| tiny | 24 | 2 |") == 3
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert all(row["maps"] == 2 * 2 * 24**2 for row in rows)
