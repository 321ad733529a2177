"""Blocks read from files when they run: the same results, in the memory of two blocks."""

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from scan_workers import shards
from tiny_models import VARIANTS, tiny_model
from torch import Tensor, nn

from densitrace import (
    InputError,
    ModelError,
    Threshold,
    Trace,
    Tracer,
    open_store,
)
from densitrace.tracer import tracing
from densitrace.tracer.batch import batch_of_lists
from densitrace.tracer.cli import cli
from densitrace.tracer.engine import LaneLoop
from densitrace.tracer.evaluate import Evaluation, evaluate
from densitrace.tracer.models import Decoder, checkpoint, offload
from densitrace.tracer.models.checkpoint import Checkpoint
from densitrace.tracer.nodes import ImportanceName
from densitrace.tracer.tracing import Settings, Tracing
from densitrace.tracer.windows import batches

ROWS = [[5, 9, 33, 2, 60, 17, 8], [7, 7, 1, 30], [12, 50, 41, 9, 3, 2, 6], [3]]
RULE = Threshold([0.6, 0.1, 0.01])
SETTINGS: dict[str, dict[str, Any]] = {
    "live": {"controls": ("inverse", "random")},
    "frozen": {"attention": "frozen", "importance": "cosine"},
    "output": {"scope": "output"},
}
Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A tiny model of a family, saved."""
    saved: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in saved:
            saved[family] = tmp_path_factory.mktemp(family)
            tiny_model(family).save_pretrained(saved[family])
        return saved[family]

    return of


def tracers(path: Path, **options: Any) -> tuple[Tracer, Tracer]:
    """Resident and offloaded."""
    resident = Tracer.from_pretrained(path, device="cpu", **options)
    return resident, Tracer.from_pretrained(path, device="cpu", offload="layers", **options)


def traced(tracer: Tracer, **options: Any) -> list[Trace]:
    traces = tracer.trace(ROWS, select=RULE, **options)
    assert isinstance(traces, list)
    return traces


def assert_same(found: list[Trace], expected: list[Trace]) -> None:
    """To the bit."""
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.topology, theirs.topology)
        np.testing.assert_array_equal(ours.surprisal, theirs.surprisal)
        for name, values in theirs.errors.items():
            np.testing.assert_array_equal(ours.errors[name], values, err_msg=name)


# ---- the same as in memory -----------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", [*VARIANTS, "gemma4_shared"])
def test_traces_as_resident(family: str, settings: str, folder: Folder) -> None:
    resident, offloaded = tracers(folder(family))
    options = SETTINGS[settings]
    assert_same(traced(offloaded, **options), traced(resident, **options))


@pytest.mark.parametrize("family", [*VARIANTS, "gemma4_text"])  # the last has buffers in blocks
def test_same_weights_and_buffers(family: str, folder: Folder) -> None:
    resident, offloaded = tracers(folder(family), dtype="bfloat16")
    assert offloaded.weight_hash == resident.weight_hash
    ours, theirs = (dict(each._decoder.model.named_buffers()) for each in (offloaded, resident))
    assert ours.keys() == theirs.keys()
    for name, buffer in theirs.items():
        found = offloaded._decoder.value(name, ours[name])
        assert found.dtype == buffer.dtype
        torch.testing.assert_close(found, buffer, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "gpt_oss"])
def test_verify(family: str, folder: Folder) -> None:
    """The model's own forward, outside any trace, has its weights too."""
    resident, offloaded = tracers(folder(family))
    assert offloaded.verify().max_difference == resident.verify().max_difference


@pytest.mark.parametrize(("stored", "asked"), [("bfloat16", "float32"), ("float32", "float16")])
def test_converted_when_read(stored: str, asked: str, tmp_path: Path) -> None:
    model: Any = tiny_model("llama")
    model.to(getattr(torch, stored)).save_pretrained(tmp_path)
    resident, offloaded = tracers(tmp_path, dtype=asked)
    assert offloaded._decoder.model.dtype == getattr(torch, asked)
    assert offloaded.weight_hash == resident.weight_hash
    assert_same(traced(offloaded), traced(resident))


def test_as_stored_where_nothing_is_asked(tmp_path: Path) -> None:
    model: Any = tiny_model("llama")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    resident, offloaded = tracers(tmp_path)
    assert offloaded._decoder.model.dtype == torch.bfloat16
    assert offloaded.weight_hash == resident.weight_hash


def test_a_checkpoint_is_of_the_dtype_of_its_numbers_with_fractions(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2, dtype=torch.int64), "b": torch.ones(2, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert next(iter(Checkpoint.of(str(tmp_path)).stored)) == "a"
    assert Checkpoint.of(str(tmp_path)).dtype == torch.bfloat16


def test_weights_read_between_passes(folder: Folder) -> None:
    """The first block was read already, for the next pass."""
    resident, offloaded = tracers(folder("llama"))
    expected = traced(resident)
    assert_same(traced(offloaded), expected)
    assert offloaded.weight_hash == resident.weight_hash
    assert_same(traced(offloaded), expected)


def test_several_files(tmp_path: Path) -> None:
    tiny_model("qwen3").save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    resident, offloaded = tracers(tmp_path)
    assert offloaded.weight_hash == resident.weight_hash
    assert_same(traced(offloaded), traced(resident))


def test_files_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is asked for by its name; one that the hub lacks is an OSError."""
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")

    def cached(model_id: str, name: str) -> str:
        if not (tmp_path / name).exists():
            raise OSError(f"{model_id} has no {name}")
        return str(tmp_path / name)

    monkeypatch.setattr(checkpoint, "cached_file", cached)
    assert Checkpoint.of("someone/llama").stored == Checkpoint.of(str(tmp_path)).stored


def test_names_without_prefix(tmp_path: Path) -> None:
    """As in the first checkpoints of GPT-2."""
    tiny_model("gpt2").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    bare = {name.removeprefix("transformer."): held for name, held in load_file(file).items()}
    save_file(bare, file, {"format": "pt"})
    resident, offloaded = tracers(tmp_path)
    assert offloaded.weight_hash == resident.weight_hash
    assert_same(traced(offloaded), traced(resident))


def test_tied_embeddings_are_one_tensor(folder: Folder) -> None:
    model = tracers(folder("gpt2"))[1]._decoder.model
    embedding = model.get_input_embeddings().get_parameter("weight")
    assert model.get_output_embeddings().get_parameter("weight") is embedding


# ---- what is in memory ---------------------------------------------------------------------------


class Alive:
    """Which blocks have weights in memory: tensors that were read, and parameters made of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        self._held: list[tuple[int, weakref.ref[Tensor]]] = []
        read, put = Checkpoint.read, offload._put

        def watched_read(files: Checkpoint, name: str, *how: Any) -> Tensor:
            tensor = read(files, name, *how)
            self._note(int(name.split(".")[2]), tensor)
            return tensor

        def watched_put(module: nn.Module, name: str, tensor: Tensor) -> None:
            index = [known for known, held in self._held if held() is tensor]
            put(module, name, tensor)
            if index:
                self._note(index[0], module.get_parameter(name))

        monkeypatch.setattr(Checkpoint, "read", watched_read)
        monkeypatch.setattr(offload, "_put", watched_put)

    def _note(self, block: int, tensor: Tensor) -> None:
        self._held.append((block, weakref.ref(tensor)))
        self.most = max(self.most, len(self.blocks()))

    def blocks(self) -> set[int]:
        return {block for block, held in self._held if held() is not None}


@pytest.mark.parametrize("family", ["gemma3", "gpt_neox"])
def test_two_blocks_at_most(family: str, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = tracers(folder(family))[1]
    alive = Alive(monkeypatch)
    for options in SETTINGS.values():
        traced(tracer, **options)
    tracer.verify()
    assert alive.most == 2
    blocks = tracer._decoder.offloaded
    assert blocks is not None
    assert blocks._coming is not None
    blocks._coming[1].result()
    assert alive.blocks() == {0}  # what the next pass begins with
    for block in tracer._decoder.blocks:
        assert not {"w_o", "attention_norm"} & vars(block).keys()
        assert not block._folded and not block._roots
        assert all(parameter.is_meta for parameter in block.module.parameters())


def test_a_pass_that_breaks_off(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its block is dropped, and the next pass begins at the first block all the same."""
    resident, tracer = tracers(folder("llama"))

    def broken(loop: LaneLoop, *_: Any) -> Tensor:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(LaneLoop, "_mlp", broken)
        with pytest.raises(MemoryError):
            traced(tracer)
    block = tracer._decoder.blocks[0]
    assert all(parameter.is_meta for parameter in block.module.parameters())
    assert "w_o" not in vars(block)  # nor is what was derived from them kept
    assert_same(traced(tracer), traced(resident))


# A block is 16 MiB, the model 16 of them: loaded whole, it takes more than twice what is granted.
CHILD = """
import sys
from pathlib import Path
import numpy as np
import resource
import torch
from densitrace import Threshold, Tracer

folder, offload, granted = sys.argv[1:]
torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)  # what a first product takes
lines = Path("/proc/self/status").read_text().splitlines()
held = 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmData")))
if int(granted):
    resource.setrlimit(resource.RLIMIT_DATA, (held + (int(granted) << 20),) * 2)
tracer = Tracer.from_pretrained(folder, device="cpu", offload=offload or None)
found = tracer.trace([5, 9, 33, 2, 60, 17], select=Threshold([0.1, 0.01]))
print(found.errors["tv"].tobytes().hex(), found.topology.sum())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds mappings on Linux alone")
def test_model_larger_than_memory(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=16, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=64, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)

    def run(offload: str, mebibytes: int) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-P", "-c", CHILD, str(tmp_path), offload, str(mebibytes)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    whole, offloaded, refused = run("", 0), run("layers", 112), run("", 112)
    assert whole.returncode == 0, whole.stderr
    assert offloaded.returncode == 0, offloaded.stderr
    assert offloaded.stdout == whole.stdout
    assert refused.returncode != 0
    assert "annot allocate memory" in refused.stderr


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3"])
def test_rows_of_many_lengths_are_as_in_batches_of_their_own(family: str, folder: Folder) -> None:
    """One reading of the blocks serves them all, and each has the bits of a resident scan."""
    resident, offloaded = tracers(folder(family))
    generator = torch.Generator().manual_seed(0)
    lengths = np.sort(np.array([1, 2, 3, 3, 5, 8, 8, 9, 12, 12, 12, 12]))[::-1].astype(np.int32)
    rows = [torch.randint(64, (length,), generator=generator).tolist() for length in lengths]
    following = list(range(len(rows)))
    settings = Settings(controls=("inverse", "random"))

    def batch(group: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        return [rows[row] for row in group], [following[row] for row in group]

    groups = batches(lengths, 24)
    assert len(groups) > 5
    alone = resident.trace_batches(map(batch, groups), RULE, settings, 24)
    together = offloaded.trace_batches([batch(range(len(rows)))], RULE, settings, 24)
    for found, expected in zip(chain(*together), chain(*alone), strict=True):
        assert_same([found], [expected])


# ---- some rows at a time -------------------------------------------------------------------------


@pytest.mark.parametrize("importance", ["norm_l1", "random"])
@pytest.mark.parametrize("attention", ["live", "frozen"])
@pytest.mark.parametrize("family", [*VARIANTS, "gemma4_shared"])
def test_some_rows_at_once(family: str, attention: Any, importance: ImportanceName) -> None:
    """Products of fewer rows: the same to rounding."""
    decoder = Tracer(tiny_model(family))._decoder
    settings = Settings(importance, attention, controls=("inverse", "random"))
    batch = batch_of_lists(ROWS)
    whole = Tracing(decoder, settings).all_outputs(batch, RULE).results()
    for tokens in (1, 14, 21):  # one row, two rows, three and one
        some = Tracing(decoder, settings, tokens_at_once=tokens).all_outputs(batch, RULE).results()
        np.testing.assert_array_equal(some.topology, whole.topology)
        np.testing.assert_array_equal(some.full, whole.full)
        for name, values in whole.errors.items():
            if not name.startswith("nucleus"):  # counts tokens: one at the brink counts or doesn't
                np.testing.assert_allclose(some.errors[name], values, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_some_rows_at_once_as_resident(family: str, folder: Folder) -> None:
    """The same rows at a time: the same bits, wherever the weights come from."""
    resident, offloaded = tracers(folder(family))
    given = [(ROWS, [1, 2, 3, 4]), (ROWS[:3], [-1, 5, 6])]
    ours, theirs = (
        list(each.trace_batches(given, RULE, Settings(), tokens_at_once=14))
        for each in (offloaded, resident)
    )
    for found, expected in zip(ours, theirs, strict=True):
        assert_same(found, expected)


def test_gated_rows(folder: Folder) -> None:
    """`gates` belong to a node layer: those of later blocks are found under some rows too."""
    decoder = Tracer(tiny_model("llama"))._decoder
    rows = [row for row in ROWS if len(row) == 7]  # a gated pass is of what their last tokens reach
    batch = batch_of_lists([*rows, *(row[::-1] for row in rows)])
    layers = 2 * len(decoder.blocks)
    torch.manual_seed(0)
    gates = [torch.rand(len(RULE), *batch.ids.shape) < 0.7 for _ in range(layers)]
    whole, some = (
        Tracing(decoder, Settings(), tokens_at_once=tokens).loop(batch, RULE, gates=gates).run()
        for tokens in (None, 7)
    )
    torch.testing.assert_close(some.hidden, whole.hidden, atol=2e-5, rtol=2e-5)
    assert some.attention_windows == whole.attention_windows


def test_outputs_are_measured_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that one reading serves may take the unembedding longer than a scan may be silent."""
    decoder, tokens = Tracer(tiny_model("llama"))._decoder, []

    def noted(decoder: Decoder, hidden: Tensor, *others: Any) -> Evaluation:
        tokens.append(hidden.shape[1])
        return evaluate(decoder, hidden, *others)

    monkeypatch.setattr(tracing, "evaluate", noted)
    Tracing(decoder, Settings(), tokens_at_once=14).all_outputs(batch_of_lists(ROWS), RULE)
    assert tokens == [len(row) for row in ROWS]  # with at most 5% of padding each is a part


def test_one_reading_serves_more_than_one_batch(byte_folder: Path) -> None:
    resident, offloaded = tracers(byte_folder)
    blocks = offloaded._decoder.offloaded
    assert blocks is not None
    block = offloaded._decoder.model.model.layers[0]
    assert blocks.largest == sum(parameter.numel() for parameter in block.parameters())
    assert resident.tokens_per_weight_read(RULE, Settings(), 8) == 8
    # 4 lanes of width 16: a token takes 64 numbers, a block 2 * 16 * 16 + 2 * 16 * 8 + ...
    expected = 2 * blocks.largest // 64
    assert offloaded.tokens_per_weight_read(RULE, Settings(), 8) == expected > 8
    assert offloaded.tokens_per_weight_read(RULE, Settings(), 10**6) == 10**6


# ---- on the command line -------------------------------------------------------------------------


def test_scan_and_verify(byte_folder: Path, corpus: Path, tmp_path: Path) -> None:
    stores = []
    for name, options in (("resident", ()), ("offloaded", ("--offload", "layers"))):
        out = tmp_path / name
        args = ["scan", str(corpus), "--model", str(byte_folder), "--out", str(out)]
        args += ["--thresholds", "0.1,0.01", "--context", "16", "--batch-tokens", "32", *options]
        result = CliRunner().invoke(cli, args)
        assert result.exit_code == 0, result.stderr
        stores.append(open_store(out))
    resident, offloaded = stores
    assert len(set(resident.lengths.tolist())) > 2
    assert shards(tmp_path / "offloaded") == shards(tmp_path / "resident")  # to the bit
    assert offloaded.recipe == resident.recipe  # so that both kinds of workers may share a store
    args = ["verify", "--model", str(byte_folder), "--offload", "layers"]
    assert CliRunner().invoke(cli, args).exit_code == 0


# ---- what cannot be used -------------------------------------------------------------------------


def refusal(path: Path, **options: Any) -> str:
    """The one line that refuses a model."""
    with pytest.raises(ModelError) as raised:
        Tracer.from_pretrained(path, device="cpu", offload="layers", **options)
    line = str(raised.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_missing_tensor(name: str, tmp_path: Path) -> None:
    """In the words that resident loading has for it."""
    tiny_model("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError) as raised:
        Tracer.from_pretrained(tmp_path, device="cpu")
    assert refusal(tmp_path) == str(raised.value)
    assert name in str(raised.value)


def test_tensor_of_another_shape(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"model.norm.weight": torch.ones(7)}, file, {"format": "pt"})
    assert "model.norm.weight has shape [7], [32] is needed" in refusal(tmp_path)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.2.mlp.up_proj.weight")[3, 4] = torch.nan
    model.save_pretrained(tmp_path)
    assert "model.layers.2.mlp.up_proj.weight" in refusal(tmp_path)


def test_no_pickle_is_read(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "safetensors" in refusal(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    assert gone.name in refusal(tmp_path)


def test_truncated_file(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors cannot be read" in refusal(tmp_path)


def test_file_that_goes_away(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    tracer = tracers(tmp_path)[1]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        traced(tracer)


def test_experts_stored_one_by_one(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    assert "not stored as they are used" in refusal(tmp_path)


def test_quantised(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "quantised" in refusal(tmp_path)


def test_unknown_way(folder: Folder) -> None:
    with pytest.raises(InputError, match="offload='rows'"):
        Tracer.from_pretrained(folder("llama"), offload="rows")  # type: ignore[arg-type]


def test_no_cuda_graphs(folder: Folder) -> None:
    with pytest.raises(InputError, match="cuda_graphs"):
        Tracer.from_pretrained(folder("llama"), device="cpu", offload="layers", cuda_graphs=True)


def test_a_copy_waits_for_the_block_before_the_one_that_runs(folder: Folder) -> None:
    """As it was when the read was asked for: the host may leave further blocks meanwhile."""

    class Event:
        waited = False

        def synchronize(self) -> None:
            self.waited = True

    offloaded = Tracer.from_pretrained(folder("llama"), offload="layers")._decoder.offloaded
    assert offloaded is not None
    before, running = Event(), Event()
    busy = threading.Event()
    offloaded._reader.submit(busy.wait)
    vars(offloaded)["_left"] = before
    coming = offloaded._start(1)
    vars(offloaded)["_left"] = running
    busy.set()
    coming.result()
    assert before.waited
    assert not running.waited
