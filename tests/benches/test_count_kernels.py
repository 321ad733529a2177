"""The counts of kernels are recorded, for a few tokens and one kernel of each compiler."""

import json
import shutil
from pathlib import Path

import pytest
from without_interpreter import lines_of

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler")


def test_record(tmp_path: Path) -> None:
    ops = ["edge_mass", "trace_sizes"]
    chosen = [word for op in ops for word in ("--op", op)]
    out = tmp_path / "counts"
    lines_of("../benches/count_kernels.py", "--length", "17", *chosen, "--out", str(out))
    products, sums = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [products["op"], sums["op"]] == ops
    # A tile has more than 17 tokens and is multiplied whole.
    assert products["multiplied"]["bf16"] >= products["needed"] > 0
    assert not sums["multiplied"]
    for row in (products, sums):
        assert row["turns"] >= row["least"] > 0
        assert sum(row["issued"].values()) > 0 < row["sectors"]
    page = out.with_suffix(".md").read_text()
    assert "Counted, not timed" in page
    assert all(f"\n| {row['op']} | `{row['kernel']}` |" in page for row in (products, sums))
