"""What is counted for a shape is what the ops are given and give back on a model of that shape."""

import pytest
import torch
from bench_files import bench
from costs import moved_bytes
from device_models import device_work, random_model
from op_cases import cases
from problems import attention_problem_of, prediction_problem_of
from transformers import LlamaConfig

LENGTH, STRATA = 24, 3
CONFIG = LlamaConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counted_is_what_the_ops_move(dtype: torch.dtype) -> None:
    roofline = bench("roofline")
    work = device_work(random_model(CONFIG, torch.device("cpu"), dtype), LENGTH, STRATA, rows=1)
    with torch.inference_mode():
        found = cases(attention_problem_of(work), prediction_problem_of(work))
    traffic = roofline.Traffic(work.costs, CONFIG.num_key_value_heads, dtype.itemsize)
    for op in (*roofline.IN_BLOCKS, "output_errors"):
        case = found["source_norms, L1" if op == "source_norms" else op]
        moved = moved_bytes(*case.arguments, *case.options.values(), case.run())
        if op == "bottleneck":  # the case gives one map twice, a scan two
            moved += LENGTH**2
        assert traffic.of(op) == moved, op
        counted = work.costs.operations(case.op, case.arguments)
        assert roofline.operations(op, work.costs) == counted, op


def test_the_plain_forward_is_two_operations_a_weight_and_token() -> None:
    roofline = bench("roofline")
    forward, *_ = roofline.rows(CONFIG, LENGTH, STRATA, item=2)
    model = random_model(CONFIG, torch.device("cpu"), torch.float32)
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2) - 96 * 32  # embeddings
    pairs = LENGTH * (LENGTH + 1) // 2
    attention = 4 * 4 * pairs * 2 * 2 * 8  # blocks, heads, QK and PV, 2 operations, head_dim
    assert forward.operations == 2 * LENGTH * weights + attention
    assert forward.bytes == 2 * weights
