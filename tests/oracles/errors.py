"""The error of a lane's prediction, and the density of a curve (METHOD §6)."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .graph import Floats

PERCENTS = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)  # masses of the shared nucleus


def log_softmax(logits: Floats) -> Floats:
    """Log probabilities over the last axis, in nats."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def ranked_nucleus(p: Floats, percent: int) -> list[int]:
    """The fewest likeliest tokens with a mass of at least `percent`, in descending order."""
    order = np.argsort(-p, kind="stable")
    short = np.cumsum(p[order]) < percent / 100
    return [int(token) for token in order[: short.sum() + 1]]


def errors(clean: Floats, lane: Floats, next_id: int | None) -> dict[str, float]:
    """Errors of a lane's prediction (METHOD §6), from the logits [V] of one position.

    tv, kl (of the clean from the lane's), top1 (0 or 1), nucleus (percent); for the lane alone loss
    (NaN without a next token) and entropy, in nats.
    """
    log_p, log_q = log_softmax(clean), log_softmax(lane)
    p, q = np.exp(log_p), np.exp(log_q)
    shared = (n for n in PERCENTS if ranked_nucleus(p, n) == ranked_nucleus(q, n))
    return {
        "tv": float(np.abs(p - q).sum() / 2),
        "kl": float((p * (log_p - log_q)).sum()),
        "top1": float(p.argmax() == q.argmax()),
        "nucleus": float(max(shared, default=0)),
        "loss": math.nan if next_id is None else float(-log_q[next_id]),
        "entropy": float(-(q * log_q).sum()),
    }


def density_at(size: Sequence[float], error: Sequence[float], eps: float, full: int) -> float:
    """The smallest relative size with error <= eps on a curve, sparsest stratum first.

    The first stratum with error <= eps, interpolated linearly in log10 of the size between it and
    the stratum before; its own size if it is the first; 1 if no stratum qualifies. A size below one
    edge counts as one edge, 1 / full.
    """
    s = [max(x, 1 / full) for x in size]
    k = next((k for k, e in enumerate(error) if e <= eps), None)
    if k is None:
        return 1.0
    if k == 0:
        return s[0]
    part = (error[k - 1] - eps) / (error[k - 1] - error[k])
    return float(s[k - 1] * (s[k] / s[k - 1]) ** part)


def auc_tv(size: Sequence[float], tv: Sequence[float], full: int) -> float:
    """Trapezoidal area of tv over log10 of the size, ending at (1, 0); no size below one edge."""
    points = [(math.log10(max(s, 1 / full)), e) for s, e in zip(size, tv, strict=True)]
    points.append((0.0, 0.0))
    return sum((s1 - s0) * (e0 + e1) / 2 for (s0, e0), (s1, e1) in pairwise(points))
