"""Every op in plain torch: the definition that other backends are tested against.

Ops on attention go over blocks of targets, so memory grows as block x T x H. A block's sources end
at its last target, which saves the upper triangle. All arithmetic is float32.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .constants import on_device
from .edges import (
    AttentionEdges,
    CosineWeight,
    EdgeWeight,
    GivenWeight,
    NormWeight,
    Pattern,
    ProximityWeight,
    RandomWeight,
)
from .hashing import hash_uniform
from .results import NUCLEUS_PERCENT, AttentionStats, EdgeLevels, EdgeTable, OutputErrors
from .runs import edges_in, runs

TILE_ELEMENTS = 1 << 21  # float32 entries of a tile: 8 MiB, between cache size and call overhead
TILE_TARGETS = 32  # small, so that a tile wastes little above the diagonal
DEVICE_FACTOR = 8  # how much larger tiles are on a GPU, where launches cost more than that waste


# ---- tiles -----------------------------------------------------------------------------------


def blocks(length: int, elements_per_row: int, most_rows: int | None = None) -> Iterator[slice]:
    """Slices of at most `most_rows` rows, and of TILE_ELEMENTS entries unless one row has more."""
    block = max(1, min(most_rows or length, TILE_ELEMENTS // max(1, elements_per_row)))
    for start in range(0, length, block):
        yield slice(start, min(length, start + block))


def target_blocks(length: int, elements_per_row: int, device: torch.device) -> Iterator[slice]:
    """Slices of targets for tiles of attention."""
    larger = _tile_factor(device)
    return blocks(length, -(-elements_per_row // larger), larger * TILE_TARGETS)


def _tile_factor(device: torch.device) -> int:
    return 1 if device.type == "cpu" else DEVICE_FACTOR


def allowed_tile(pattern: Pattern, rows: slice) -> Tensor:
    """bool [B or 1, 1, rows, sources]: which sources a target may attend to."""
    source = torch.arange(rows.stop, device=pattern.device)
    target = source[rows, None]
    allowed = source <= target
    if pattern.window is not None:
        allowed = allowed & (target - source < pattern.window)
    if pattern.segments is None:
        return allowed[None, None]
    segments = pattern.segments[:, : rows.stop]
    return (allowed & (segments[:, rows, None] == segments[:, None, :]))[:, None]


def score_tile(pattern: Pattern, rows: slice) -> Tensor:
    """float32 [B, H, rows, sources]: attention logits, -inf where there is no edge."""
    batch, heads, _ = pattern.shape
    groups = pattern.k.shape[1]
    # The heads of a group share its keys: fold them into the rows of one product.
    q = pattern.q[:, :, rows].float().reshape(batch, groups, -1, pattern.q.shape[-1])
    k = pattern.k[:, :, : rows.stop].float()
    scores = (q @ k.transpose(-1, -2)).mul_(pattern.scale)
    scores = scores.reshape(batch, heads, rows.stop - rows.start, rows.stop)
    if pattern.softcap is not None:
        scores = scores.div_(pattern.softcap).tanh_().mul_(pattern.softcap)
    return scores.masked_fill_(~allowed_tile(pattern, rows), -torch.inf)


def row_logsumexp(pattern: Pattern, scores: Tensor) -> Tensor:
    """float32 [B, H, rows]: log-sum-exp of each row of scores, including the sink's logit."""
    lse = scores.logsumexp(-1)
    if pattern.sinks is not None:
        lse = torch.logaddexp(lse, pattern.sinks.float()[None, :, None])
    return lse


def alpha_tile(pattern: Pattern, rows: slice) -> Tensor:
    """float32 [B, H, rows, sources]: attention weights, using `pattern.lse` if it is set."""
    scores = score_tile(pattern, rows)
    lse = row_logsumexp(pattern, scores) if pattern.lse is None else pattern.lse[:, :, rows]
    return scores.sub_(lse[..., None]).exp_()


def weighted_values(alpha: Tensor, v: Tensor) -> Tensor:
    """float32 [..., H, rows, d]: alpha [..., H, rows, S] times values [..., G, >= S, d]."""
    *lead, heads, rows, sources = alpha.shape
    groups, width = v.shape[-3], v.shape[-1]
    folded = alpha.reshape(*lead, groups, heads // groups * rows, sources)
    return (folded @ v[..., :sources, :].float()).reshape(*lead, heads, rows, width)


def head_values(v: Tensor, head: int, heads: int) -> Tensor:
    """[B, T, d]: the values of the group that query head `head` belongs to."""
    return v[:, head * v.shape[1] // heads]


# ---- edge weights ----------------------------------------------------------------------------


def weight_tile(
    edges: AttentionEdges, rows: slice, alpha: Tensor | None = None, first_head: int = 0
) -> Tensor:
    """float32 [B, H, rows, sources]: unnormalised importance, -inf where there is no edge.

    `first_head` is the index in the model of the first head of `edges`.
    """
    weight, pattern = edges.weight, edges.pattern
    if alpha is None and not isinstance(weight, RandomWeight | GivenWeight):
        alpha = alpha_tile(pattern, rows)
    tile = _finite_weight_tile(weight, pattern, rows, alpha, first_head)
    return tile.masked_fill(~allowed_tile(pattern, rows), -torch.inf)


def _finite_weight_tile(
    weight: EdgeWeight, pattern: Pattern, rows: slice, alpha: Tensor | None, first_head: int
) -> Tensor:
    match weight, alpha:
        case NormWeight(source, target), Tensor():
            scaled = alpha * source[:, :, None, : rows.stop]
            return scaled if target is None else scaled * target[:, None, rows, None]
        case CosineWeight(), Tensor():
            return _cosine_tile(weight, pattern, rows, alpha)
        case ProximityWeight(), Tensor():
            return _proximity_tile(weight, rows, alpha)
        case RandomWeight(), _:
            return _random_tile(weight, pattern, rows, first_head)
        case GivenWeight(given), _:
            return given[:, :, rows, : rows.stop]
        case _:
            raise TypeError(f"an edge weight cannot be a {type(weight).__name__}")


def _cosine_tile(weight: CosineWeight, pattern: Pattern, rows: slice, alpha: Tensor) -> Tensor:
    batch = len(pattern.q)
    groups = weight.v.shape[1]
    direction = weight.direction[:, :, rows].reshape(batch, groups, -1, weight.v.shape[-1])
    inner = (direction @ weight.v[:, :, : rows.stop].float().transpose(-1, -2)).reshape(alpha.shape)
    cosine = (inner * weight.source[:, :, None, : rows.stop]).clamp(-1, 1)
    return torch.where(alpha > 0, (1 + cosine) / 2, 0.5)


def _proximity_tile(weight: ProximityWeight, rows: slice, alpha: Tensor) -> Tensor:
    batch, heads, _, sources = alpha.shape
    out = torch.empty_like(alpha)
    if weight.target is not None:
        alpha = alpha * weight.target[:, None, rows, None]
    node = weight.node[:, rows]
    for head in range(heads):
        u = head_values(weight.v, head, heads)[:, :sources].float() @ weight.w_o[head].float().T
        for part in blocks(node.shape[1], batch * sources * u.shape[-1]):
            here = slice(rows.start + part.stop)  # later sources lie above the diagonal
            edge = alpha[:, head, part, here, None] * u[:, None, here]  # [B, part, S, D]
            n = node[:, part, None]
            # |n| - |n - e| without the difference, in which a small e would be lost.
            along = torch.where(n < 0, -edge, edge)
            twice = 2 * n.abs() + (n - n)  # n - n: 0, or NaN
            out[:, head, part, here] = torch.minimum(along, twice - along).sum(-1)
    return out.clamp_(min=0)


def _random_tile(weight: RandomWeight, pattern: Pattern, rows: slice, first_head: int) -> Tensor:
    _, heads, _ = pattern.shape
    head = torch.arange(1, heads + 1, device=pattern.device)[None, :, None, None] + first_head
    target = weight.positions[:, None, rows, None]
    source = weight.positions[:, None, None, : rows.stop]
    return hash_uniform(weight.seed, weight.stream, head, target, source)


# ---- ops -------------------------------------------------------------------------------------


def product(left: Tensor, right: Tensor) -> Tensor:
    return left.float() @ right.float()


def source_norms(v: Tensor, w_o: Tensor, p: int) -> Tensor:
    batch, _, length, _ = v.shape
    heads = w_o.shape[0]
    norms = torch.empty(batch, heads, length, dtype=torch.float32, device=v.device)
    for head in range(heads):
        values = head_values(v, head, heads).float()
        for rows in blocks(length, batch * w_o.shape[1]):
            norms[:, head, rows] = (values[:, rows] @ w_o[head].float().T).norm(p, -1)
    return norms


def attention_stats(pattern: Pattern, v: Tensor, source: Tensor | None) -> AttentionStats:
    batch, heads, length = pattern.shape
    output = torch.empty(batch, heads, length, v.shape[-1], dtype=torch.float32, device=v.device)
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=v.device)
    mass = torch.zeros(batch, length, dtype=torch.float32, device=v.device)
    for rows in target_blocks(length, batch * heads * length, v.device):
        scores = score_tile(pattern, rows)
        lse[:, :, rows] = row_logsumexp(pattern, scores)
        alpha = scores.sub_(lse[:, :, rows, None]).exp_()
        output[:, :, rows] = weighted_values(alpha, v)
        if source is not None:
            mass[:, rows] = (alpha @ source[:, :, : rows.stop, None]).sum((1, 3))
    return AttentionStats(output, lse, mass)


def edge_mass(edges: AttentionEdges) -> Tensor:
    batch, heads, length = edges.pattern.shape
    mass = torch.empty(batch, length, dtype=torch.float32, device=edges.pattern.device)
    for rows in target_blocks(length, batch * heads * length, edges.pattern.device):
        mass[:, rows] = weight_tile(edges, rows).clamp_(min=0).sum((1, 3))
    return mass


def edge_weights(edges: AttentionEdges) -> Tensor:
    batch, heads, length = edges.pattern.shape
    weights = torch.full(
        (batch, heads, length, length), torch.nan, dtype=torch.float32, device=edges.pattern.device
    )
    for rows in target_blocks(length, batch * heads * length, edges.pattern.device):
        tile = weight_tile(edges, rows)
        weights[:, :, rows, : rows.stop] = tile.masked_fill(tile == -torch.inf, torch.nan)
    return weights


def _node_blocks(edges: AttentionEdges | None, side: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of targets with the weights of all their in-edges in descending order, -inf last.

    Yields (rows, float32 [B, rows, H * S + E]).
    """
    _, batch, length = side.shape
    heads = 0 if edges is None else edges.pattern.shape[1]
    for rows in target_blocks(length, batch * (heads * length + len(side)), side.device):
        values = side[:, :, rows].permute(1, 2, 0)
        if edges is not None:
            tile = weight_tile(edges, rows).transpose(1, 2).flatten(2)
            values = torch.cat([tile, values], -1)
        yield rows, values.contiguous().sort(-1, descending=True).values


def _between(ordered: Tensor, kept: Tensor) -> Tensor:
    """A cut [..., K] that keeps the first `kept` [..., K] of each descending row.

    It lies half-way to the next weight, so that recomputing a weight in another order of summation
    cannot move it across; it is -1 where all are kept.
    """
    last = ordered.gather(-1, (kept - 1).clamp(min=0))
    following = ordered.gather(-1, kept.clamp(max=ordered.shape[-1] - 1))
    none_left = (kept >= ordered.shape[-1]) | (following == -torch.inf)
    cut = torch.where(none_left, -torch.ones_like(last), (last + following) / 2)
    # The midpoint can round up to `last`, which must stay above the cut.
    return torch.where((cut >= last) & (last > following), following, cut)


def nucleus_cuts(
    edges: AttentionEdges | None, side: Tensor, masses: Tensor, total: Tensor
) -> Tensor:
    _, batch, length = side.shape
    cuts = torch.empty(len(masses), batch, length, dtype=torch.float32, device=side.device)
    for rows, ordered in _node_blocks(edges, side):
        running = ordered.clamp(min=0).double().cumsum(-1)
        wanted = (masses.double()[:, None, None] * total[:, rows].double()).permute(1, 2, 0)
        # Index of the edge whose running sum reaches the wanted mass
        crossing = torch.searchsorted(running, wanted.contiguous())
        value = ordered.gather(-1, crossing.clamp(max=ordered.shape[-1] - 1))
        positive = (ordered > 0).sum(-1, keepdim=True)
        # Ties with the crossing edge stay; an edge of weight 0 adds nothing and is left out.
        tied = torch.searchsorted(-ordered, -value.contiguous(), right=True)
        cut = _between(ordered, torch.minimum(tied, positive))
        cuts[:, :, rows] = torch.where(positive > 0, cut.clamp(min=0), 0.0).permute(2, 0, 1)
    return cuts


def fraction_cuts(edges: AttentionEdges | None, side: Tensor, fractions: Tensor) -> Tensor:
    _, batch, length = side.shape
    cuts = torch.empty(len(fractions), batch, length, dtype=torch.float32, device=side.device)
    for rows, ordered in _node_blocks(edges, side):
        degree = (ordered > -torch.inf).sum(-1, keepdim=True)
        kept = (fractions.double() * degree - 1e-9).ceil().long().clamp(min=1)
        cuts[:, :, rows] = _between(ordered, torch.minimum(kept, degree)).permute(2, 0, 1)
    return cuts


def random_cuts(edges: AttentionEdges, eligible: Tensor, counts: Tensor) -> Tensor:
    """Two histogram sweeps over the 24-bit weights: of the upper 12 bits, then of the lower."""
    device = edges.pattern.device
    batch, heads, length = edges.pattern.shape
    half = 1 << 12

    def sweep(prefix: Tensor | None) -> Tensor:
        """int64 [K or 1, B, half]: counts by upper bits, or by lower bits given upper ones."""
        rows_of = 1 if prefix is None else len(prefix)
        histogram = torch.zeros(rows_of, batch, half, dtype=torch.int64, device=device)
        for rows in target_blocks(length, batch * heads * length, device):
            tile = weight_tile(edges, rows)
            is_edge = ((tile >= 0) & eligible[:, None, rows, None]).flatten(1)  # [B, H * n * S]
            bits = (tile.clamp(min=0) * 2.0**24).long().flatten(1)
            upper, lower = bits >> 12, bits & (half - 1)
            # Edges that do not count add 0: boolean indexing would make the host wait.
            for k in range(rows_of):
                if prefix is None:
                    histogram[k].scatter_add_(1, upper, is_edge.long())
                else:
                    under = is_edge & (upper == prefix[k, :, None])
                    histogram[k].scatter_add_(1, lower, under.long())
        return histogram

    def descend(histogram: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The bin of the wanted-th largest value, and the number of values above that bin."""
        above = histogram.flip(-1).cumsum(-1)  # counts from the top
        index = torch.searchsorted(above, wanted[..., None]).squeeze(-1).clamp(max=half - 1)
        before = above.gather(-1, (index - 1).clamp(min=0)[..., None]).squeeze(-1)
        return half - 1 - index, torch.where(index > 0, before, 0)

    wanted = counts.long()
    upper, above = descend(sweep(None).expand(len(counts), -1, -1).contiguous(), wanted)
    lower, _ = descend(sweep(upper), wanted - above)
    # One step of 2^-24 below the wanted-th largest weight, which is thus kept.
    cut = ((upper << 12 | lower) - 1).float() * 2.0**-24
    return torch.where(wanted > 0, cut, torch.inf)


def edge_levels(edges: AttentionEdges, cuts: Tensor) -> EdgeLevels:
    strata, batch, length = cuts.shape
    heads = edges.pattern.shape[1]
    levels = torch.zeros(batch, length, length, dtype=torch.uint8, device=cuts.device)
    degrees = torch.empty(strata, batch, length, dtype=torch.int32, device=cuts.device)
    for rows in target_blocks(length, batch * heads * length, cuts.device):
        tile = weight_tile(edges, rows)
        highest = tile.amax(1)  # the heaviest head has the highest level
        level = levels[:, rows, : rows.stop]
        for k in range(strata):
            cut = cuts[k, :, rows, None]
            degrees[k, :, rows] = (tile > cut[:, None]).sum((1, 3), dtype=torch.int32)
            level += highest > cut
    return EdgeLevels(levels, degrees)


def lane_attention(
    edges: AttentionEdges,
    cuts: Tensor,
    v: Tensor,
    lanes: Pattern | None,
    invert: bool,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    strata, batch, length = cuts.shape
    heads, width = edges.pattern.shape[1], v.shape[-1]
    output = torch.empty(strata, batch, heads, length, width, dtype=dtype, device=v.device)
    for rows in target_blocks(length, batch * heads * length * 2, v.device):
        alpha = alpha_tile(edges.pattern, rows)
        weight = weight_tile(edges, rows, alpha)
        for k in range(strata):
            if lanes is not None:
                lane = replace(lanes, q=lanes.q[k], k=lanes.k[k])
                alpha = alpha_tile(lane, rows)
            kept = (weight > cuts[k, :, None, rows, None]) != invert
            output[k, :, :, rows] = weighted_values(alpha * kept, v[k])
    return output


def collect_edges(edges: AttentionEdges, cuts: Tensor) -> Iterator[EdgeTable]:
    shape, groups = edges.pattern.shape, edges.pattern.k.shape[1]
    for run in runs(shape, groups, TILE_ELEMENTS * _tile_factor(edges.pattern.device)):
        tile = weight_tile(edges_in(edges, run), run.rows, first_head=run.heads.start)
        here = cuts[:, run.sequences, run.rows]
        kept = (tile > here[-1, :, None, :, None]).nonzero().unbind(-1)
        sequence, head, target, source = kept
        if not len(source):
            continue
        weight = tile[kept]
        stratum = torch.zeros_like(source, dtype=torch.uint8)
        for cut in here:
            stratum += weight <= cut[sequence, target]
        sequence, head = sequence + run.sequences.start, head + run.heads.start
        yield EdgeTable.of(sequence, head, source, target + run.rows.start, weight, stratum)


def bottleneck(reach: Tensor, levels: Tensor) -> Tensor:
    result = torch.zeros_like(reach)
    for j in range(reach.shape[-1]):
        path = torch.minimum(reach[:, j:, j, None], levels[:, None, j, : j + 1])
        result[:, j:, : j + 1] = torch.maximum(result[:, j:, : j + 1], path)
    return result


def trace_sizes(reach: Tensor, degrees: Tensor) -> Tensor:
    strata = len(degrees)
    sizes = torch.empty(degrees.shape, dtype=torch.int64, device=degrees.device)
    reach = reach.tril()
    for k in range(strata):
        reached = reach >= strata - k
        # float64 is exact below 2^53, and torch has no integer matrix product on a GPU.
        sizes[k] = (reached.double() @ degrees[k].double()[..., None]).squeeze(-1).long()
    return sizes


def output_errors(
    hidden: Tensor,
    lanes: Tensor,
    unembedding: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    next_ids: Tensor,
) -> OutputErrors:
    strata, tokens, _ = lanes.shape
    errors = OutputErrors.empty(strata, tokens, hidden.device)
    table = unembedding.float()

    def log_probabilities(states: Tensor) -> Tensor:
        logits = (states.float() @ table.T).mul_(scale)
        if bias is not None:
            logits += bias.float()
        if softcap is not None:
            logits = logits.div_(softcap).tanh_().mul_(softcap)
        return logits.log_softmax(-1)

    for rows in blocks(tokens, 4 * len(table)):
        clean = log_probabilities(hidden[rows])
        p = clean.exp()
        ranking = ranked(p)
        following = next_ids[rows, None]
        errors.clean_loss[rows] = _loss(clean, following)
        errors.clean_entropy[rows] = _entropy(clean, p)
        for k in range(strata):
            lane = log_probabilities(lanes[k, rows])
            q = lane.exp()
            errors.tv[k, rows] = (p - q).abs().sum(-1) / 2
            errors.kl[k, rows] = (p * (clean - lane)).sum(-1).clamp(min=0)
            lane_ranking = ranked(q)
            errors.top1[k, rows] = (ranking.token[:, 0] == lane_ranking.token[:, 0]).float()
            errors.nucleus[k, rows] = shared_nucleus(p, q, ranking, lane_ranking)
            errors.loss[k, rows] = _loss(lane, following)
            errors.entropy[k, rows] = _entropy(lane, q)
    return errors


def _loss(log_p: Tensor, following: Tensor) -> Tensor:
    """-log p of the next token; NaN where there is none (id -1)."""
    loss = -log_p.gather(-1, following.clamp(min=0))
    return loss.masked_fill(following < 0, torch.nan).squeeze(-1)


def _entropy(log_p: Tensor, p: Tensor) -> Tensor:
    return -(p * log_p).sum(-1)


class Ranking(NamedTuple):
    """The likeliest tokens of M predictions, in descending order."""

    mass: Tensor  # float32 [M, C]
    token: Tensor  # int64 [M, C]


def ranked(p: Tensor, candidates: int = 64) -> Ranking:
    """The `candidates` likeliest tokens of probabilities [M, V]."""
    return Ranking(*p.topk(min(candidates, p.shape[-1])))


def shared_nucleus(p: Tensor, q: Tensor, p_top: Ranking, q_top: Ranking) -> Tensor:
    """Largest mass in percent whose ranked nucleus (smallest prefix that holds it) is the same.

    Most rankings differ within the candidates; the others are ranked in full.

    Args:
        p, q: float32 [M, V] probabilities.
        p_top, q_top: their likeliest tokens, equally many.

    Returns:
        float32 [M], one of `NUCLEUS_PERCENT`, or 0.
    """
    vocabulary, width = p.shape[-1], p_top.token.shape[-1]
    agreeing = (p_top.token == q_top.token).cumprod(-1).sum(-1, keepdim=True)
    percent = on_device(NUCLEUS_PERCENT, torch.float64, p.device)
    wanted = (percent / 100).expand(len(p), -1).contiguous()
    p_length = torch.searchsorted(p_top.mass.double().cumsum(-1), wanted) + 1
    q_length = torch.searchsorted(q_top.mass.double().cumsum(-1), wanted) + 1
    same = (p_length == q_length) & (p_length <= agreeing)
    shared = (same * percent).amax(-1).float()
    undecided = agreeing.squeeze(-1) == width
    if width < vocabulary and undecided.any():
        rest = p[undecided], q[undecided]
        tops = [ranked(part, vocabulary) for part in rest]
        shared[undecided] = shared_nucleus(*rest, *tops)
    return shared
