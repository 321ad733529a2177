"""Ops on a GPU in Triton, one file each; on any device in its interpreter (TRITON_INTERPRET=1)."""

from ..edges import CosineWeight, GivenWeight, NormWeight, RandomWeight
from .attention_stats import attention_stats
from .edge_levels import edge_levels
from .edge_mass import edge_mass
from .lane_attention import lane_attention
from .node_cuts import fraction_cuts, nucleus_cuts
from .output_errors import output_errors
from .source_norms import source_norms
from .tiles import INTERPRETED

__all__ = [
    "attention_stats",
    "edge_levels",
    "edge_mass",
    "fraction_cuts",
    "lane_attention",
    "nucleus_cuts",
    "output_errors",
    "source_norms",
]

DEVICES = ("cuda", "cpu") if INTERPRETED.value else ("cuda",)  # `dispatch` reads these
WEIGHTS = (NormWeight, CosineWeight, RandomWeight, GivenWeight)
