"""Models larger than memory: a block's weights are read when it runs and dropped afterwards.

Embeddings, final norm, unembedding and buffers stay in memory. While a block computes, a thread
reads the next one into the other of two memory regions; after the last block it reads the first
again, for the next pass. The regions are reused because allocating memory takes longer than filling
it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from ..transfer import copied_to_device, marked_used
from .architecture import Architecture
from .checkpoint import Checkpoint, incomplete
from .text import auto_model, name_within, text_model


def skeleton(
    config: Any,
    architecture: Architecture,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """Build a model whose blocks have no weights; everything else is loaded to a device.

    Args:
        config: the transformers config.
        checkpoint: its tensors are renamed as in the model's state dict.

    Raises:
        ModelError: weights are missing or have wrong shapes.
    """
    with torch.device("meta"):
        whole: PreTrainedModel = auto_model(config).from_config(config, dtype=dtype)
    model = text_model(whole)
    buffers = dict(model.named_buffers())
    for name, buffer in buffers.items():
        _put(model, name, torch.empty_like(buffer, device="cpu"))
    model.initialize_weights()  # computes the buffers; parameters are on `meta` and have no data
    stored, within = model.state_dict().keys(), f"{architecture.blocks}."
    for name in buffers:
        comes_and_goes = name in stored and name.startswith(within)
        _put(model, name, model.get_buffer(name).to("meta" if comes_and_goes else device))
    expected = model.state_dict()
    missing = set(checkpoint.rename(expected, _renaming(whole, model, checkpoint)))
    for name, tensor in expected.items():
        if name not in missing and not name.startswith(within):
            _put(model, name, checkpoint.read(name, tensor.dtype).to(device))
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    if missing:
        raise incomplete(checkpoint.model_id, missing)
    model.eval()
    return model


def _renaming(
    whole: PreTrainedModel, model: PreTrainedModel, checkpoint: Checkpoint
) -> Callable[[str], str]:
    """A function from names in the files of `whole` to names in `model`, which is within it.

    Applies transformers' own renaming of checkpoint tensors first.
    """
    steps = get_model_conversion_mapping(whole)
    names = [step for step in steps if isinstance(step, WeightRenaming)]
    if len(names) < len(steps):
        raise checkpoint.unusable("its weights are not stored as they are used")
    prefix, expected = whole.base_model_prefix, whole.state_dict()
    within = name_within(whole, model)
    return lambda name: within(rename_source_key(name, names, [], prefix, expected)[0])


class OffloadedBlocks:
    """Loads the weights of a skeleton's blocks while their modules run, by hooks.

    Do not keep a weight, or a view of it, beyond that: its memory is reused for another block.

    Args:
        model: a `skeleton`.
        architecture: says where the blocks are.
        checkpoint: with tensors named as in the model's state dict.
        device: where the blocks run.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        checkpoint: Checkpoint,
        device: torch.device,
    ) -> None:
        self._checkpoint, self._device = checkpoint, device
        self._blocks = list(model.get_submodule(architecture.blocks).children())
        self._empty = [block.state_dict() for block in self._blocks]  # on `meta`
        self._prefix = f"{architecture.blocks}."
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="densitrace-reader")
        size = max(map(self._room, range(len(self._blocks))))
        pinned = device.type == "cuda"
        self._rooms = [
            torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned) for _ in range(2)
        ]
        self._next_room = 0  # the one that the next read fills; the other has the last block read
        self._coming: tuple[int, Future[dict[str, Tensor]]] | None = None
        self._left: torch.cuda.Event | None = None  # the device's end of the last block
        for index, block in enumerate(self._blocks):
            block.register_forward_pre_hook(partial(self._enter, index))
            block.register_forward_hook(partial(self._leave, index), always_call=True)

    @property
    def largest(self) -> int:
        """Number of elements in the largest block."""
        sizes = (sum(tensor.numel() for tensor in empty.values()) for empty in self._empty)
        return int(max(sizes))

    def value(self, name: str, tensor: Tensor) -> Tensor:
        """The values of a state dict tensor; only between passes, valid until the next call."""
        if not tensor.is_meta:
            return tensor
        return self._checkpoint.read(name, tensor.dtype, self._rooms[self._next_room])

    def _enter(self, index: int, *_: Any) -> None:
        """Give a block its weights, and start reading those of the next one."""
        coming, self._coming = self._coming, None
        if coming is None or coming[0] != index:
            coming = index, self._start(index)
        for name, tensor in marked_used(coming[1].result()).items():
            _put(self._blocks[index], name, tensor)
        following = (index + 1) % len(self._blocks)
        self._coming = following, self._start(following)

    def _leave(self, index: int, *_: Any) -> None:
        for name, tensor in self._empty[index].items():
            _put(self._blocks[index], name, tensor)
        if self._device.type == "cuda":
            self._left = torch.cuda.current_stream(self._device).record_event()

    def _start(self, index: int) -> "Future[dict[str, Tensor]]":
        room, self._next_room = self._rooms[self._next_room], 1 - self._next_room
        return self._reader.submit(self._read, index, room, self._left)

    def _stored(self, index: int) -> Iterator[tuple[str, str, torch.dtype]]:
        """For each tensor of a block: its names in the block and in the model, and its dtype."""
        for name, tensor in self._empty[index].items():
            yield name, f"{self._prefix}{index}.{name}", tensor.dtype

    def _room(self, index: int) -> int:
        return sum(self._checkpoint.room(whole, dtype) for _, whole, dtype in self._stored(index))

    def _read(
        self, index: int, room: Tensor, left: "torch.cuda.Event | None" = None
    ) -> dict[str, Tensor]:
        """Read a block's tensors through a memory region that is no longer in use.

        `left`: the device's end of the block before the one that runs meanwhile.
        """
        tensors = {}
        for name, whole, dtype in self._stored(index):
            tensors[name] = self._checkpoint.read(whole, dtype, room)
            room = room[self._checkpoint.room(whole, dtype) :]
        if left is not None:  # the host may be ahead: keep a third block off the device
            left.synchronize()
        return copied_to_device(tensors, self._device)


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a parameter or buffer by its dotted name."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(owner, leaf, tensor)
