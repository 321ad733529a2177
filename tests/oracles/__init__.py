"""The definitions, computed by brute force: the standard that all of densitrace is tested against.

Plain NumPy in float64, from a transformers model's weights and config alone; shares no code with
the package. (`ModulesOracle` uses the model's own modules inside a branch.) Every edge vector is
materialised ([H, T, T, D] per block), every graph is a list of edges, every search follows them one
by one. For tiny models and a few tokens. "METHOD" is docs/method.md.

    oracle = Oracle(model)
    run = oracle.clean(ids)                              # logits [T, V], edge vectors
    graph = run.graph("norm_l1")                         # weights, METHOD §2
    kept = graph.keep("threshold", 0.01)                 # METHOD §3
    trace = graph.reach(kept, output=-1)                 # METHOD §4
    lane = oracle.masked_logits(ids, kept)               # METHOD §5
    errors(run.logits[-1], lane[-1], next_id)            # METHOD §6

Arrays by edge kind: attn [L, H, T target, T source]; res_attn, mlp, res_mlp [L, T].
"""

from .decoder import Oracle, Run, weigh
from .errors import auc_tv, density_at, errors, log_softmax, ranked_nucleus
from .families import FAMILIES
from .graph import KINDS, Bools, Edge, Floats, Graph, Kept, Weights, sizes
from .modules import ModulesOracle, oracle_of

__all__ = [
    "FAMILIES",
    "KINDS",
    "Bools",
    "Edge",
    "Floats",
    "Graph",
    "Kept",
    "ModulesOracle",
    "Oracle",
    "Run",
    "Weights",
    "auc_tv",
    "density_at",
    "errors",
    "log_softmax",
    "oracle_of",
    "ranked_nucleus",
    "sizes",
    "weigh",
]
