"""CUDA graphs of passes over the model whose shapes come again.

A graph replays all kernels of a pass at once, where the host would launch thousands. The first pass
of a shape runs as it is (kernels are compiled, constants copied), the second is captured. Nothing
on the host may depend on what a captured pass computes: whose passes are replayed ends them before
they are measured.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import constants

Tensors = Mapping[str, Tensor]
Pass = Callable[[Tensors], dict[str, Tensor]]
Run = Callable[[], dict[str, Tensor]]
Capture = Callable[[Run, torch.device], Run]

MOST_GRAPHS = 4  # each keeps what its pass holds at its peak

log = logging.getLogger(__name__)


def captured(run: Run, device: torch.device) -> Run:
    """A CUDA graph of what `run` does on a GPU: what replays it, into the same tensors every time.

    Raises:
        RuntimeError: `run` does what no graph holds; the GPU's current stream is as it was.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        before = torch.cuda.current_stream()
        try:
            # Other threads go on with what this one may not do meanwhile. The stream is of this
            # GPU: torch's own for captures is of whichever GPU the first was on.
            with torch.cuda.graph(
                graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"
            ):
                outputs = run()
        finally:
            # Where a capture has failed, ending it raises too, before torch leaves its stream.
            torch.cuda.set_stream(before)

    def replay() -> dict[str, Tensor]:
        graph.replay()
        return outputs

    return replay


class Graph(NamedTuple):
    """A captured pass, and the tensors whose addresses it holds."""

    inputs: Tensors
    replay: Run
    constants: list[Tensor]


@dataclass
class Replays:
    """The graphs of the shapes that were last seen.

    Example:
        >>> replays = Replays()
        >>> outputs = replays(("scan", ids.shape), run, {"ids": ids})  # doctest: +SKIP
    """

    capture: Capture = captured
    _seen: set[Hashable] = field(default_factory=set)
    _refused: set[Hashable] = field(default_factory=set)
    _graphs: "OrderedDict[Hashable, Graph]" = field(default_factory=OrderedDict)

    def __call__(self, key: Hashable, run: Pass, inputs: Tensors) -> dict[str, Tensor]:
        """What `run` gives of the inputs.

        Args:
            key: equal where `run` does the same to inputs of the same shapes.
            run: a pass that nothing on the host depends on.
            inputs: all on one device, which is all that the pass uses.
        """
        if key not in self._graphs:
            if key in self._refused or key not in self._seen:
                self._seen.add(key)
                return run(inputs)
            try:
                self._capture(key, run, inputs)
            except RuntimeError as error:  # what torch raises where an operation can't be captured
                log.info("Passes of %s run without a CUDA graph: %s", key, error)
                self._refused.add(key)
                return run(inputs)
        self._graphs.move_to_end(key)
        graph = self._graphs[key]
        for name, tensor in graph.inputs.items():
            tensor.copy_(inputs[name])
        # Copied: the next replay writes to the same tensors while these may still be leaving.
        return {name: tensor.clone() for name, tensor in graph.replay().items()}

    def _capture(self, key: Hashable, run: Pass, inputs: Tensors) -> None:
        while len(self._graphs) >= MOST_GRAPHS:
            self._graphs.popitem(last=False)
        held = {name: tensor.clone() for name, tensor in inputs.items()}
        (device,) = {tensor.device for tensor in held.values()}
        with constants.used() as used:
            replay = self.capture(lambda: run(held), device)
        self._graphs[key] = Graph(held, replay, used)
