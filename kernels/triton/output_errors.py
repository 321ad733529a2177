"""Errors of the lanes' next-token distributions: METHOD §6.

Tokens are processed a few at a time with all their lanes, so that the logits held stay within
`logit_bytes`: one product writes them, with a log-sum-exp per tile of the vocabulary, and one sweep
over them makes the sums. A stored logit costs about 12 bytes of traffic; computing it a second time
costs 2 D operations, which takes longer on tensor cores from D of about 1000 on (in float32 from
100 on). Storing also gives every later step the same bits.

The shared nucleus needs no ranking of a lane's tokens: see `shared_nucleus`. Where the candidates
do not decide it, tokens are ranked in full after all others: the host waits once for their number,
and their logits are recomputed, identical to the bit.

Operations: 2 D a logit. Bytes: the unembedding once for all logits held together, and the logits.
Peak memory: `logit_bytes` of logits and the states of the current tokens; at the end RANKED_BYTES
more.
Sums: VECTOR running sums per program, over PART / VECTOR logits each, then a tree, then torch's sum
over V / PART parts. The vocabulary size fixes the order, and a sum takes some 30 roundings.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constants import on_device
from ..results import NUCLEUS_PERCENT, OutputErrors
from . import configs
from .arguments import rows, tile_width
from .tiles import load_rows, product, tanh

# Bounds of `logit_bytes`. The upper one is 2,000 rows of 130,000 logits: few, large launches. The
# lower one is 500 rows, with which the product is not yet bound by reads.
LOGIT_BYTES = 1 << 30
FEW_LOGIT_BYTES = 1 << 28
STATE_BYTES = 8  # logit bytes per byte of states: less than the MLP of a plain forward holds
RANKED_BYTES = 1 << 28  # for tokens that are ranked in full at a time
CANDIDATES = 64  # of the clean ranking; most lanes' rankings differ within these
PART = 8192  # logits summed by a program
VECTOR = 1024  # logits of a step of it
ALIGNED = 16  # rows are padded to a multiple of this and load as vectors; it divides every BV
RANKING_BYTES = 96  # per token of the vocabulary, to rank a row in full
NOWHERE = tl.constexpr(-1e30)  # logit of padding: finite, with probability 0


@triton.jit(do_not_specialize=["count", "tiles"])
def logits_kernel(
    p_states, p_table, p_bias, p_logits, p_lse,
    s_states, s_table, s_logits, scale, softcap, count, vocabulary, tiles,
    D: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    # Logits and their log-sum-exp per tile. Neighbouring programs share a tile of the unembedding.
    i_t, i_v = tl.program_id(0), tl.program_id(1)
    o_t, o_v = i_t * BT + tl.arange(0, BT), i_v * BV + tl.arange(0, BV)
    # [BT, BV]
    b_logits = tl.zeros([BT, BV], tl.float32)
    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        b_states = load_rows(p_states, s_states, o_t, count, o_d, D)
        b_table = load_rows(p_table, s_table, o_v, vocabulary, o_d, D)
        b_logits += product(b_states, tl.trans(b_table.to(b_states.dtype)))
    b_logits *= scale
    m_t, m_v = o_t < count, o_v < vocabulary
    if HAS_BIAS:
        b_logits += tl.load(p_bias + o_v, mask=m_v, other=0.0)[None, :]
    if HAS_SOFTCAP:
        b_logits = softcap * tanh(b_logits / softcap)
    b_logits = tl.where(m_v[None, :], b_logits, NOWHERE)
    p_logits += o_t.to(tl.int64)[:, None] * s_logits + o_v[None, :]
    tl.store(p_logits, b_logits, mask=m_t[:, None] & (o_v < s_logits)[None, :])
    b_top = tl.max(b_logits, 1)
    b_sum = tl.sum(tl.exp(b_logits - b_top[:, None]), 1)
    tl.store(p_lse + o_t.to(tl.int64) * tiles + i_v, b_top + tl.log(b_sum), mask=m_t)


@triton.jit(do_not_specialize=["tokens", "count"])
def distances_kernel(
    p_logits, p_lse, p_least, p_tv, p_kl, p_entropy, p_outsider, p_token,
    s_logits, tokens, count, vocabulary, PART: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Sums of a row (lane, token) over a part of the vocabulary, and its likeliest non-candidate.
    i_row, i_part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_clean = i_row % tokens
    lse, clean_lse = tl.load(p_lse + i_row), tl.load(p_lse + i_clean)
    least = tl.load(p_least + i_clean)
    # [VECTOR]
    b_tv = tl.zeros([VECTOR], tl.float32)
    b_kl = tl.zeros([VECTOR], tl.float32)
    b_entropy = tl.zeros([VECTOR], tl.float32)
    b_best = tl.full([VECTOR], float("-inf"), tl.float32)
    b_token = tl.full([VECTOR], 0, tl.int32) + vocabulary
    for i_v in range(i_part * PART, tl.minimum((i_part + 1) * PART, vocabulary), VECTOR):
        o_v = i_v + tl.arange(0, VECTOR)
        m_v = o_v < s_logits
        b_clean = tl.load(p_logits + i_clean * s_logits + o_v, mask=m_v, other=NOWHERE)
        b_lane = tl.load(p_logits + i_row * s_logits + o_v, mask=m_v, other=NOWHERE)
        b_log_p, b_log_q = b_clean - clean_lse, b_lane - lse
        b_p, b_q = tl.exp(b_log_p), tl.exp(b_log_q)
        b_tv += tl.abs(b_p - b_q)
        b_kl += b_p * (b_log_p - b_log_q)
        b_entropy -= b_q * b_log_q
        # A strict comparison keeps the first of equal logits.
        m_better = (o_v < vocabulary) & (b_clean <= least) & (b_lane > b_best)
        b_best = tl.where(m_better, b_lane, b_best)
        b_token = tl.where(m_better, o_v, b_token)
    best = tl.max(b_best, 0)
    o_row = i_part * count + i_row
    tl.store(p_tv + o_row, tl.sum(b_tv, 0) / 2)
    tl.store(p_kl + o_row, tl.sum(b_kl, 0))
    tl.store(p_entropy + o_row, tl.sum(b_entropy, 0))
    tl.store(p_outsider + o_row, best)
    tl.store(p_token + o_row, tl.min(tl.where(b_best == best, b_token, vocabulary), 0))


class Logits(NamedTuple):
    """Logits of all lanes of N tokens, the clean one first."""

    value: Tensor  # float32 [1 + K, N, V]; the row stride is a multiple of ALIGNED
    lse: Tensor  # float32 [1 + K, N]


class Distances(NamedTuple):
    """Distances of all lanes from the clean one, which comes first: each [1 + K, N]."""

    tv: Tensor
    kl: Tensor
    entropy: Tensor
    outsider: Tensor  # the largest logit of a non-candidate; -inf if there is none
    token: Tensor  # int32, the first token with that logit


def distances(logits: Logits, least: Tensor) -> Distances:
    """Sum over the vocabulary; candidates are tokens whose clean logit exceeds `least` [N]."""
    lanes, tokens, vocabulary = logits.value.shape
    parts, device = triton.cdiv(vocabulary, PART), least.device
    floats = [
        torch.empty(parts, lanes, tokens, dtype=torch.float32, device=device) for _ in range(4)
    ]
    token = torch.empty(parts, lanes, tokens, dtype=torch.int32, device=device)
    distances_kernel[(lanes * tokens, parts)](
        logits.value, logits.lse, least, *floats, token, logits.value.stride(1), tokens,
        lanes * tokens, vocabulary, PART=PART, VECTOR=VECTOR, num_warps=4, num_stages=1,
        **configs.FUSED,
    )  # fmt: skip
    tv, kl, entropy, outsider = floats
    best = outsider.amax(0)
    first = torch.where(outsider == best, token, vocabulary).amin(0)
    return Distances(tv.sum(0), kl.sum(0).clamp(min=0), entropy.sum(0), best, first)


def ranked(logits: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Sort both [..., C] by descending logit; of equal logits the lower token id comes first."""
    token, index = token.sort(-1)
    logits, order = logits.gather(-1, index).sort(stable=True, dim=-1, descending=True)
    return logits, token.gather(-1, order)


def shared_mass(log_p: Tensor, log_q: Tensor, agreeing: Tensor) -> Tensor:
    """The largest mass, in percent, that the same leading tokens hold for both; 0 for none.

    Args:
        log_p, log_q: [..., C] log-probabilities of the same tokens, in the clean order.
        agreeing: int [...], how many of these tokens come first in the lane's order too.
    """
    percent = on_device(NUCLEUS_PERCENT, torch.float64, log_p.device)
    wanted = _fixed(percent / 100).expand(*log_p.shape[:-1], -1).contiguous()
    p_length, q_length = (
        torch.searchsorted(_fixed(log.exp()).cumsum(-1), wanted) + 1 for log in (log_p, log_q)
    )
    same = (p_length == q_length) & (p_length <= agreeing[..., None])
    return (same * percent).amax(-1).float()


def _fixed(mass: Tensor) -> Tensor:
    """Masses in units of 2^-60: whole numbers add up the same in every order.

    torch refuses to add floats up if it is to be deterministic.
    """
    return (mass.double() * 2**60).long()


def agreement(candidate: Tensor, token: Tensor, lane: Tensor, distance: Distances) -> Tensor:
    """int64 [K, N]: how many first tokens of the clean ranking come first in a lane's too.

    It suffices to rank the candidates and the likeliest outsider of the lane.

    Args:
        candidate: bool [N, C], True for the first few tokens of each row.
        token: int64 [N, C], the clean ranking.
        lane: float32 [K, N, C], the lanes' logits of these tokens.
        distance: the lanes' likeliest outsiders.
    """
    tokens = token.expand(lane.shape)  # the last, no candidates, rank no higher than the outsider
    _, order = ranked(
        torch.cat([lane, distance.outsider[1:, :, None]], -1),
        torch.cat([tokens, distance.token[1:, :, None]], -1),
    )
    return ((order[..., :-1] == tokens) & candidate).cumprod(-1).sum(-1)


class Nucleus(NamedTuple):
    """Agreement with the clean prediction: each [K, N]."""

    top1: Tensor  # float32, 1 where the likeliest token is the same
    percent: Tensor  # float32, the largest shared mass
    undecided: Tensor  # bool, where these depend on tokens that are no candidates


def shared_nucleus(logits: Logits, distance: Distances, top: Tensor, least: Tensor) -> Nucleus:
    """Compare the likeliest token and the largest shared mass, as far as candidates decide them.

    Args:
        distance: the distances of the same logits.
        top: int64 [N, C], the likeliest tokens of the clean prediction.
        least: float32 [N]; tokens whose clean logit exceeds it are candidates. It is the logit of
            the last of `top`, whose ties may be missing there, so these are not candidates.
    """
    strata, vocabulary = len(distance.tv) - 1, logits.value.shape[-1]
    clean, token = ranked(logits.value[0].gather(-1, top), top)
    lane = logits.value[1:].gather(-1, token.expand(strata, -1, -1))
    candidate = clean > least[:, None]
    agreeing = agreement(candidate, token, lane, distance)
    log_p = (clean - logits.lse[0, :, None]).expand(lane.shape)
    percent = shared_mass(log_p, lane - logits.lse[1:, :, None], agreeing)
    same = distance.tv[1:] == 0
    percent.masked_fill_(same, NUCLEUS_PERCENT[-1])
    known = candidate.sum(-1)
    undecided = (agreeing == known) & (percent < NUCLEUS_PERCENT[-1]) & (known < vocabulary)
    return Nucleus(((agreeing > 0) | same).float(), percent, undecided)


def full_rankings(logits: Logits) -> tuple[Tensor, Tensor]:
    """Whether the likeliest token is the same, and the largest shared mass: float32 [N] each.

    Ranks all tokens of the clean and of one other lane: for tokens that candidates do not decide.
    """
    clean, order = logits.value[0].sort(stable=True, dim=-1, descending=True)
    same = order == logits.value[1].sort(stable=True, dim=-1, descending=True).indices
    agreeing = same.cumprod(-1).sum(-1)
    log_p = clean - logits.lse[0, :, None]
    log_q = logits.value[1].gather(-1, order) - logits.lse[1, :, None]
    return (agreeing > 0).float(), shared_mass(log_p, log_q, agreeing)


class Unembedding(NamedTuple):
    """Everything that turns final states into logits."""

    table: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    scale: float
    softcap: float | None


def product_type(states: Tensor, head: Unembedding) -> torch.dtype:
    """The dtype in which states and unembedding are multiplied."""
    return torch.promote_types(states.dtype, head.table.dtype)


def product_config(states: Tensor, head: Unembedding) -> configs.Config:
    """Tile sizes of the product of states [..., D] with the unembedding."""
    like = states.new_empty(0, dtype=product_type(states, head))
    return configs.launch("output_errors", tile_width(states.shape[-1]), like)


def logits_of(states: Tensor, head: Unembedding, buffer: Tensor) -> Logits:
    """Compute logits of states [1 + K, N, D] into the first rows of a float32 buffer."""
    lanes, tokens, hidden = states.shape
    vocabulary, count = len(head.table), lanes * tokens
    states = states.to(product_type(states, head))
    config = product_config(states, head)
    tiles = triton.cdiv(vocabulary, config["BV"])
    lse = torch.empty(lanes, tokens, tiles, dtype=torch.float32, device=states.device)
    logits_kernel[(triton.cdiv(count, config["BT"]), tiles)](
        p_states=states,
        p_table=head.table,
        p_bias=lse if head.bias is None else head.bias.float().contiguous(),
        p_logits=buffer,
        p_lse=lse,
        s_states=hidden,
        s_table=head.table.stride(0),
        s_logits=buffer.stride(0),
        scale=float(head.scale),
        softcap=float(head.softcap or 1.0),
        count=count,
        vocabulary=vocabulary,
        tiles=tiles,
        D=hidden,
        HAS_BIAS=head.bias is not None,
        HAS_SOFTCAP=head.softcap is not None,
        **config,
    )
    value = buffer[:count].view(lanes, tokens, -1)[..., :vocabulary]
    return Logits(value, lse.logsumexp(-1))


def losses(logits: Logits, following: Tensor) -> Tensor:
    """float32 [1 + K, N]: -log p of the next tokens; NaN where there is none (id -1)."""
    token = following.clamp(min=0).expand(logits.lse.shape)[..., None]
    loss = logits.lse - logits.value.gather(-1, token).squeeze(-1)
    return loss.masked_fill(following < 0, torch.nan)


def logit_bytes(states: int) -> int:
    """Bytes of logits that may be held, given the bytes of all states of the op.

    Growing with the states, so that the op never dominates the peak memory of a short pass.
    """
    return min(LOGIT_BYTES, max(FEW_LOGIT_BYTES, STATE_BYTES * states))


def rows_at_once(states: Tensor, padded: int, head: Unembedding) -> int:
    """Rows of logits held together: a whole number of product tiles, if one fits."""
    lanes, tokens, hidden = states.shape
    most = logit_bytes((1 + lanes) * tokens * hidden * states.itemsize) // (4 * padded)
    tile = product_config(states, head)["BT"]
    return max(1, most if most < tile else most // tile * tile)


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
    vocabulary = len(unembedding)
    errors = OutputErrors.empty(strata, tokens, hidden.device)
    undecided: list[Tensor] = []
    head = Unembedding(rows(unembedding), bias, scale, softcap)
    padded = triton.cdiv(vocabulary, ALIGNED) * ALIGNED
    block = max(1, min(tokens, rows_at_once(lanes, padded, head) // (1 + strata)))
    buffer = torch.empty((1 + strata) * block, padded, dtype=torch.float32, device=hidden.device)
    for first in range(0, tokens, block):
        chunk = slice(first, min(tokens, first + block))
        logits = logits_of(torch.cat([hidden[None, chunk], lanes[:, chunk]]), head, buffer)
        top = logits.value[0].topk(min(CANDIDATES, vocabulary))
        least = top.values[:, -1]
        if vocabulary <= CANDIDATES:
            least = torch.full_like(least, -torch.inf)
        distance = distances(logits, least.contiguous())
        errors.tv[:, chunk] = distance.tv[1:]
        errors.kl[:, chunk] = distance.kl[1:]
        errors.entropy[:, chunk] = distance.entropy[1:]
        errors.clean_entropy[chunk] = distance.entropy[0]
        nucleus = shared_nucleus(logits, distance, top.indices, least)
        errors.top1[:, chunk], errors.nucleus[:, chunk] = nucleus.top1, nucleus.percent
        undecided.append(nucleus.undecided)
        loss = losses(logits, next_ids[chunk])
        errors.loss[:, chunk], errors.clean_loss[chunk] = loss[1:], loss[0]
    pairs = min(len(buffer) // 2, max(1, RANKED_BYTES // (RANKING_BYTES * vocabulary)))
    left = torch.cat(undecided, 1).nonzero()
    for batch in left.split(pairs) if len(left) else ():
        k, n = batch.T
        logits = logits_of(torch.stack([hidden[n], lanes[k, n]]), head, buffer)
        errors.top1[k, n], errors.nucleus[k, n] = full_rankings(logits)
    return errors
