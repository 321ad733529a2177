"""The GPUs here: whether the compiled module can run on them, and where its kernels are queued."""

import torch

from ... import _cuda

OLDEST = (8, 0)  # the lowest compute capability that setup.py compiles for


def unfit() -> str | None:
    """Why the build does not fit the driver or any GPU here; None if it does, or there is none."""
    if not torch.cuda.is_available():
        return None
    if error := _cuda.driver_error():
        return error
    count = torch.cuda.device_count()
    newest = max(map(torch.cuda.get_device_capability, range(count)), default=OLDEST)
    if newest >= OLDEST:
        return None
    return f"it needs compute capability 8.0; the newest GPU here has {newest[0]}.{newest[1]}"


def device_and_stream(device: torch.device) -> tuple[int, int]:
    """A device's index and the address of torch's current stream, for the compiled module."""
    if device.type != _cuda.DEVICE:
        raise ValueError(f"tensors are on {device}; backend='cuda' wants them on a GPU")
    if device.type != "cuda":
        return 0, 0
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream
