"""Nothing of size T x T x heads is held: measured, in a process of its own. And what a block held
is given back when it has run.
"""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from tiny_models import VARIANTS, tiny_model

from densitrace import Threshold, Tracer
from densitrace.tracer.engine import Attention

HEADS, LENGTH = 32, 2304
PAIRS = HEADS * LENGTH**2  # one byte for each of them would show

CHILD = f"""
import sys
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from densitrace import Threshold, Tracer

ATTENTION, IMPORTANCE, BACKEND = sys.argv[1:]
SELF = Path("/proc/self")
torch.set_num_threads(2)
torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads={HEADS},
    num_key_value_heads=4, head_dim=4, vocab_size=64, max_position_embeddings={LENGTH},
)
tracer = Tracer(LlamaForCausalLM(config).eval(), backend=BACKEND)

def run(length):
    ids = [i * 7 % 64 for i in range(length)]
    tracer.trace(
        ids, select=Threshold([0.001, 0.1]), importance=IMPORTANCE, attention=ATTENTION
    )

def peak():
    lines = (SELF / "status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

run(16)  # what the very first pass needs is not what is measured
(SELF / "clear_refs").write_text("5")  # the peak is what is held now
before = peak()
run({LENGTH})
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("attention", "importance", "backend"),
    [
        ("live", "norm_l1", "cpu"),
        ("live", "cosine", "cpu"),
        ("live", "proximity", "cpu"),
        ("frozen", "norm_l1", "cpu"),
        ("frozen", "norm_l1", "reference"),
    ],
)
def test_no_tensor_of_all_pairs_and_heads(attention: str, importance: str, backend: str) -> None:
    command = [sys.executable, "-P", "-c", CHILD, attention, importance, backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < PAIRS


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Cycles are not collected by themselves, and stay in `gc.garbage` when they are."""
    gc.collect()
    gc.freeze()  # what is there already is not looked at again
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("attention", ["live", "frozen"])
@pytest.mark.parametrize("family", VARIANTS)
def test_no_tensor_in_a_cycle(family: str, attention: Attention, uncollected: None) -> None:
    """It would take memory until Python comes to collect it."""
    tracer = Tracer(tiny_model(family))
    gc.collect()
    gc.garbage.clear()  # the model's own
    tracer.trace([[5, 9, 33], [7, 7, 1]], select=Threshold([0.1]), attention=attention)
    gc.collect()
    assert not [found for found in gc.garbage if isinstance(found, torch.Tensor)]
