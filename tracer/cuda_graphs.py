"""CUDA graphs of passes over the model that repeat with the same shapes.

A graph launches all kernels of a pass at once, where the host would launch thousands. The first
pass of a shape runs eagerly (kernels are compiled, constants copied); the second is captured. The
host must not depend on values that a captured pass computes, so a captured pass ends before the
measurements.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels import constants

Tensors = Mapping[str, Tensor]
Pass = Callable[[Tensors], dict[str, Tensor]]
Run = Callable[[], dict[str, Tensor]]
Capture = Callable[[Run, torch.device], Run]

MOST_GRAPHS = 4  # each holds the peak memory of its pass
STALE_PASSES = 64  # a graph that none of the last passes replayed makes room for another

log = logging.getLogger(__name__)


def captured(run: Run, device: torch.device) -> Run:
    """Capture `run` as a CUDA graph.

    Returns:
        A function that replays the graph; it writes to the same tensors every time.

    Raises:
        RuntimeError: `run` cannot be captured; the GPU's current stream is restored.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        before = torch.cuda.current_stream()
        try:
            # "thread_local": other threads may call what is forbidden during a capture. The stream
            # is created on this GPU: torch's default capture stream is on the GPU of the first
            # capture.
            with torch.cuda.graph(
                graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"
            ):
                outputs = run()
        finally:
            # After a failed capture, ending it raises too, before torch restores the stream.
            torch.cuda.set_stream(before)

    def replay() -> dict[str, Tensor]:
        graph.replay()
        return outputs

    return replay


@dataclass
class Graph:
    """A captured pass and the tensors whose addresses it reads."""

    inputs: Tensors
    replay: Run
    constants: list[Tensor]
    last: int = 0  # number of the pass that last replayed it


@dataclass
class GraphCache:
    """A cache of CUDA graphs by shape.

    If it is full, passes of further shapes run eagerly until the graph used longest ago is stale:
    capturing takes longer than running, so graphs of shapes that take turns must not be replaced.
    After a failed capture no other is tried: torch keeps the memory that it took.

    Example:
        >>> graphs = GraphCache()
        >>> outputs = graphs(("scan", ids.shape), run, {"ids": ids})  # doctest: +SKIP
    """

    capture: Capture = captured
    _seen: set[Hashable] = field(default_factory=set)
    _graphs: "OrderedDict[Hashable, Graph]" = field(default_factory=OrderedDict)
    _model: Hashable = None
    _passes: int = 0
    _failed: bool = False

    def __call__(self, key: Hashable, run: Pass, inputs: Tensors) -> dict[str, Tensor]:
        """Run a pass, or replay its graph.

        Args:
            key: must differ whenever shapes, or what `run` does to them, differ.
            run: a pass whose host code does not depend on computed values.
            inputs: all on one device; the pass uses no other.

        Returns:
            The outputs of `run` for these inputs.
        """
        self._passes += 1
        if key not in self._graphs:
            if self._failed or key not in self._seen or not self._has_room():
                self._seen.add(key)
                return run(inputs)
            try:
                self._capture(key, run, inputs)
            except RuntimeError as error:  # raised by torch if an operation cannot be captured
                log.info("Further passes run without a CUDA graph, as those of %s: %s", key, error)
                self._failed = True
                return run(inputs)
        self._graphs.move_to_end(key)
        graph = self._graphs[key]
        graph.last = self._passes
        for name, tensor in graph.inputs.items():
            tensor.copy_(inputs[name])
        # Clone: the next replay may overwrite these tensors while they are still being copied out.
        return {name: tensor.clone() for name, tensor in graph.replay().items()}

    def only_for(self, model: Hashable) -> None:
        """Drop all graphs, unless they were captured in this state of the model."""
        if model != self._model:
            self._seen.clear()
            self._graphs.clear()
            self._model, self._failed = model, False

    def _has_room(self) -> bool:
        """Whether a graph may be added; drops a stale one if there is no room otherwise."""
        if len(self._graphs) >= MOST_GRAPHS:
            oldest, graph = next(iter(self._graphs.items()))
            if self._passes - graph.last <= STALE_PASSES:
                return False
            del self._graphs[oldest]
        return True

    def _capture(self, key: Hashable, run: Pass, inputs: Tensors) -> None:
        captured_inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        (device,) = {tensor.device for tensor in captured_inputs.values()}
        with constants.used() as used:
            replay = self.capture(lambda: run(captured_inputs), device)
        self._graphs[key] = Graph(captured_inputs, replay, used)
