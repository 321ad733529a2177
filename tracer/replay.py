"""CUDA graphs of passes over the model whose shapes come again.

A graph replays all kernels of a pass at once, where the host would launch thousands. The first pass
of a shape runs as it is (kernels are compiled, constants copied), the second is captured.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Pass = Callable[[Tensors], dict[str, Tensor]]

MOST_GRAPHS = 4  # each keeps what its pass holds at its peak

log = logging.getLogger(__name__)


def captured(run: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
    """A CUDA graph of `run`: what replays it, into the same tensors every time."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()

    def replay() -> dict[str, Tensor]:
        graph.replay()
        return outputs

    return replay


@dataclass
class Replays:
    """The graphs of the shapes that were last seen.

    Example:
        >>> replays = Replays()
        >>> outputs = replays(("scan", ids.shape), run, {"ids": ids})  # doctest: +SKIP
    """

    capture: Callable[[Callable[[], dict[str, Tensor]]], Callable[[], dict[str, Tensor]]] = captured
    _seen: set[Hashable] = field(default_factory=set)
    _refused: set[Hashable] = field(default_factory=set)
    _graphs: "OrderedDict[Hashable, tuple[Tensors, Callable[[], dict[str, Tensor]]]]" = field(
        default_factory=OrderedDict
    )

    def __call__(self, key: Hashable, run: Pass, inputs: Tensors) -> dict[str, Tensor]:
        """What `run` gives of the inputs.

        Args:
            key: equal where `run` does the same to inputs of the same shapes.
            run: a pass that nothing on the host depends on.
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
        held, replay = self._graphs[key]
        for name, tensor in held.items():
            tensor.copy_(inputs[name])
        # Copied: the next replay writes to the same tensors while these may still be leaving.
        return {name: tensor.clone() for name, tensor in replay().items()}

    def _capture(self, key: Hashable, run: Pass, inputs: Tensors) -> None:
        while len(self._graphs) >= MOST_GRAPHS:
            self._graphs.popitem(last=False)
        held = {name: tensor.clone() for name, tensor in inputs.items()}
        self._graphs[key] = held, self.capture(lambda: run(held))
