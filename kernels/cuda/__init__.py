"""Ops on a GPU in CUDA C++: thin calls into `densitrace._cuda`, one file for each in csrc/cuda.

Each op is queued on torch's current stream of the tensors' device. Weights are float32 and computed
for a tile of targets at a time, by products on the matrix units.
"""

from ..edges import GivenWeight, NormWeight, ProximityWeight
from .bottleneck import bottleneck, trace_sizes
from .collect_edges import collect_edges
from .device import unfit
from .node_cuts import fraction_cuts, nucleus_cuts
from .products import product
from .proximity import edge_levels, edge_mass

__all__ = [
    "bottleneck",
    "collect_edges",
    "edge_levels",
    "edge_mass",
    "fraction_cuts",
    "nucleus_cuts",
    "product",
    "trace_sizes",
    "unfit",
]

WEIGHTS = {  # for other kinds `dispatch` picks another backend
    "collect_edges": (NormWeight, GivenWeight),
    "edge_levels": (ProximityWeight,),
    "edge_mass": (ProximityWeight,),
    "fraction_cuts": (NormWeight, GivenWeight, ProximityWeight),
    "nucleus_cuts": (NormWeight, GivenWeight, ProximityWeight),
}
