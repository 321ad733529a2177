"""Loads a model and its tokenizer from a folder or a hub id, with one-line errors."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hub_logging

from ...errors import InputError, ModelError, first_line
from .checkpoint import Checkpoint, incomplete
from .offload import OffloadedBlocks, skeleton
from .registry import architecture_of
from .text import auto_model, text_config, text_model

log = logging.getLogger(__name__)

# transformers patches its own functions while it loads a model: two threads at once could leave
# each other's patches in place.
_ONE_AT_A_TIME = Lock()

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)


def load(
    path: str | Path, device: str = "auto", dtype: str | torch.dtype = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a model in evaluation mode onto a device, and its tokenizer if it has one.

    Args:
        path: a local folder or a hub id.
        device: a torch device, or `auto`: a GPU if there is one (the first, or torchrun's
            `LOCAL_RANK`), else the CPU.
        dtype: a torch dtype or its name, or `auto`: as stored.

    Raises:
        ModelError: no model there, weights missing, architecture not declared.
        InputError: an unknown device or dtype.
    """
    name = str(path)
    target, kind = _device(device), _dtype(dtype)
    with _ONE_AT_A_TIME, _one_line(name):
        config = _config(name)
        with _quiet():
            loaded: Any = auto_model(config).from_pretrained(
                name, config=config, dtype=kind, output_loading_info=True, trust_remote_code=False
            )
    whole, info = loaded
    if info["missing_keys"]:
        raise incomplete(name, info["missing_keys"])
    model: Any = text_model(whole)
    stays = _quantised(config) and model.device.type == target.type  # some kinds cannot be moved
    return (model if stays else model.to(target)).eval(), _tokenizer(name)


def _quantised(config: Any) -> bool:
    """Whether the checkpoint is quantised."""
    return getattr(config, "quantization_config", None) is not None


def load_offloaded(
    path: str | Path, device: str = "auto", dtype: str | torch.dtype = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None, OffloadedBlocks]:
    """Load a model larger than memory, whose blocks are read when they run; see `load`.

    Raises:
        ModelError: as `load`; also weights that are quantised or not in safetensors.
        InputError: an unknown device or dtype.
    """
    name = str(path)
    target, kind = _device(device), _dtype(dtype)
    with _ONE_AT_A_TIME, _one_line(name):
        config = _config(name)
        if _quantised(config):
            raise ModelError(f"model {name!r} is quantised: its blocks cannot be read one by one")
        architecture = architecture_of(text_config(config))
        checkpoint = Checkpoint.of(name)
        if not isinstance(kind, torch.dtype):
            kind = config.dtype or checkpoint.dtype
        model = skeleton(config, architecture, checkpoint, target, kind)
    blocks = OffloadedBlocks(model, architecture, checkpoint, target)
    return model, _tokenizer(name), blocks


def _config(name: str) -> Any:
    """Load a model's config and check that its architecture is declared."""
    if Path(name).is_file():
        raise ModelError(f"model {name!r} is a file: give the folder that it is in, or a hub id")
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    architecture_of(text_config(config))
    return config


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn exceptions of libraries during loading into a one-line ModelError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = first_line(error)
        if not Path(name).exists():
            reason = f"there is no such folder, and as a hub id: {reason}"
        raise ModelError(f"model {name!r} cannot be loaded: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bar: showing progress is up to the caller."""
    shown = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hub_logging.enable_progress_bar()


def _tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).exists() for file in _TOKENIZER_FILES):
        log.info("%s has no tokenizer: token ids are the only input", name)
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the tokenizer of {name!r} cannot be loaded: {first_line(error)}"
        ) from error
    return tokenizer


def _device(device: str) -> torch.device:
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        # torchrun starts several processes per machine, each of which sees all devices.
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", rank % torch.cuda.device_count())
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error).partition(". ")[0]  # torch goes on to list all its backends
        if "device string" in reason:  # or all kinds of devices
            raise InputError(
                f"device={device!r} is unknown; use auto, cpu, cuda or cuda:1"
            ) from error
        raise InputError(f"device={device!r} cannot be used: {reason}") from error


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    named = getattr(torch, str(dtype), None)
    if not isinstance(named, torch.dtype):
        raise InputError(f"dtype={dtype!r} is unknown; use auto, float32, bfloat16 or float16")
    return named
