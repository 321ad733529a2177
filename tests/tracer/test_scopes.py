"""All positions at once against one position at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from golden import FAMILIES, LENGTHS, golden, tracer_of
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import VARIANTS, tiny_model

from densitrace import Nucleus, Threshold, TopFraction, Trace, Tracer
from densitrace.tracer.engine import NodeLevels
from densitrace.tracer.graph import KINDS, Geometry
from densitrace.tracer.select import Rule
from densitrace.tracer.sizes import all_traces, output_trace

RULES: list[Rule] = [
    Threshold([0.1, 0.03, 0.01, 0.001]),
    Nucleus([0.3, 0.7, 0.95]),
    TopFraction([0.05, 0.3, 0.8]),
]


def one_by_one(tracer: Tracer, ids: list[int], **options: Any) -> list[Trace]:
    traces = [
        tracer.trace(ids, scope="output", output=position, **options)
        for position in range(len(ids))
    ]
    return [trace for trace in traces if isinstance(trace, Trace)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scopes_agree(family: str, length: str, rule: Rule) -> None:
    """Sizes exactly, whatever the attention; errors to float32 rounding where it is frozen."""
    ids = golden(family, length)["ids"].tolist()
    tracer = tracer_of(family)
    together = tracer.trace(ids, select=rule, attention="frozen")
    assert isinstance(together, Trace)
    for position, alone in enumerate(
        one_by_one(tracer, ids, select=rule, attention="frozen", next_token=None)
    ):
        np.testing.assert_array_equal(alone.topology[0], together.topology[position])
        assert alone.full_edge_count[0] == together.full_edge_count[position]
        np.testing.assert_array_equal(alone.positions, [position])
        for name in ("tv", "kl", "entropy"):
            np.testing.assert_allclose(
                alone.errors[name][0], together.errors[name][position], atol=2e-5, rtol=2e-5
            )


@pytest.mark.parametrize("family", VARIANTS)
def test_sizes_do_not_depend_on_attention(family: str) -> None:
    tracer = Tracer(tiny_model(family))
    ids = list(range(10))
    live, frozen = (
        tracer.trace(ids, select=RULES[0], attention=attention) for attention in ("live", "frozen")
    )
    assert isinstance(live, Trace)
    assert isinstance(frozen, Trace)
    np.testing.assert_array_equal(live.topology, frozen.topology)
    assert not np.allclose(live.errors["tv"], frozen.errors["tv"])


@st.composite
def random_levels(draw: st.DrawFn) -> tuple[list[NodeLevels], int, Geometry]:
    """Levels and in-degrees of a random graph of T tokens, L blocks, H heads and K strata.

    Blocks may read keys and values of earlier ones.
    """
    tokens, blocks, heads, strata = (
        draw(st.integers(1, high), label=name)
        for name, high in (("tokens", 7), ("blocks", 3), ("heads", 3), ("strata", 4))
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1), label="seed"))

    def level(*shape: int) -> torch.Tensor:
        drawn = torch.randint(0, strata + 1, shape, generator=generator)
        # Mostly dropped edges, so that reach ends somewhere.
        return drawn * (torch.rand(shape, generator=generator) < 0.6)

    def degree(levels: torch.Tensor) -> torch.Tensor:
        """int32 [K, 1, T] from levels [edges, T]."""
        kept = [(levels >= strata - k).sum(0) for k in range(strata)]
        return torch.stack(kept)[:, None].int()

    nodes = []
    for block in range(blocks):
        attention = level(heads, tokens, tokens).tril()
        side = level(1, tokens)
        nodes.append(
            NodeLevels(
                block,
                side.to(torch.uint8),
                {
                    "attn": degree(attention.permute(0, 2, 1).flatten(0, 1)),
                    "res_attn": degree(side),
                },
                attention.amax(0)[None].to(torch.uint8),
            )
        )
        dense = level(2, tokens)
        degrees = {"mlp": degree(dense[:1]), "res_mlp": degree(dense[1:])}
        nodes.append(NodeLevels(block, dense.amax(0)[None].to(torch.uint8), degrees))
    values = tuple(draw(st.integers(0, block), label="values") for block in range(blocks))
    return nodes, strata, Geometry(parallel=False, value_blocks=values)


def backward_search(
    nodes: list[NodeLevels], strata: int, geometry: Geometry, output: int
) -> np.ndarray[Any, Any]:
    """[K, 4, L] by walking back from one output at one stratum at a time."""
    counts = np.zeros((strata, len(KINDS), geometry.blocks), dtype=np.int64)
    for k in range(strata):
        reached: list[set[int]] = [set() for _ in range(len(nodes) + 1)]  # by node layer
        reached[-1] = {output}
        for below, node in reversed(list(enumerate(nodes))):
            for token in reached[below + 1]:
                for kind, degrees in node.degrees.items():
                    counts[k, KINDS.index(kind), node.layer] += int(degrees[k, 0, token])
                if node.side[0, token] >= strata - k:
                    reached[below].add(token)
                if node.attention is not None:
                    sources = node.attention[0, token] >= strata - k
                    read = reached[2 * geometry.value_blocks[node.layer]]
                    read |= set(sources.nonzero().flatten().tolist())
    return counts


@given(random_levels())
def test_sizes_on_random_graphs(graph: tuple[list[NodeLevels], int, Geometry]) -> None:
    """Bottlenecks give, for all outputs and strata at once, what a search gives for each."""
    nodes, strata, geometry = graph
    counts = all_traces(nodes, strata, geometry)[0].numpy()
    for output in range(len(counts)):
        expected = backward_search(nodes, strata, geometry, output)
        np.testing.assert_array_equal(counts[output], expected)
    last = output_trace(nodes, strata, geometry)
    np.testing.assert_array_equal(last.counts[0, 0].numpy(), counts[-1])
    assert len(last.gates) == len(nodes)
