"""One batch under one set of settings: which passes over the model answer which question."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, ModelError
from .batch import Batch
from .collect import DenseWeights, EdgeCollector, Weights, edge_rows
from .engine import CONTROLS, Attention, LaneLoop, LaneRun, Observer
from .evaluate import Evaluation, evaluate
from .graph import Count, full_edge_counts
from .models import Decoder
from .nodes import IMPORTANCES, GivenImportance, Importance, importance
from .search import ranks
from .select import GivenCuts, Rule, Size
from .sizes import all_traces, output_trace

Scope = Literal["all", "output"]

DENSE_BYTES = 1 << 32  # dense weights beyond this are refused
ORDERED_EDGES = 1 << 24  # float32 holds every rank below this


@dataclass(frozen=True)
class Settings:
    """How edges are weighed and lanes run.

    Raises:
        InputError: a value that is not one of those possible.
    """

    importance: str = "norm_l1"
    attention: Attention = "live"
    scope: Scope = "all"
    controls: tuple[str, ...] = ()
    count: Count = "window"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, possible in (
            ("importance", IMPORTANCES),
            ("attention", get_args(Attention)),
            ("scope", get_args(Scope)),
            ("count", get_args(Count)),
        ):
            if getattr(self, name) not in possible:
                raise InputError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of "
                    f"{', '.join(possible)}"
                )
        for control in self.controls:
            if control not in CONTROLS or self.controls.count(control) > 1:
                raise InputError(
                    f"controls={list(self.controls)!r}: each of {', '.join(CONTROLS)} once at most"
                )


@dataclass(frozen=True)
class Measured:
    """What a batch showed: R output positions a row, K strata."""

    counts: Tensor  # int64 [B, R, K, 4 kinds, L]
    full: NDArray[np.int64]  # [B, R]
    evaluation: Evaluation  # of the `scored` positions, in row-major order
    scored: Tensor  # bool [B, R]: not padding


@dataclass(frozen=True)
class Tracing:
    """The passes over one decoder under one set of settings."""

    decoder: Decoder
    settings: Settings
    backend: str = "auto"

    def loop(
        self,
        batch: Batch,
        rule: Rule,
        weigh: Importance | None = None,
        *,
        masked_lanes: bool = True,
        gates: Sequence[Tensor] | None = None,
        observers: Sequence[Observer] = (),
    ) -> LaneLoop:
        """A lane loop; `weigh` replaces the importance that the settings name."""
        chosen = self.settings
        return LaneLoop(
            self.decoder,
            batch,
            weigh or importance(chosen.importance, chosen.seed, batch.positions, self.backend),
            rule,
            attention=chosen.attention,
            controls=chosen.controls if masked_lanes else (),
            masked_lanes=masked_lanes,
            gates=gates,
            output_only=gates is not None,
            seed=chosen.seed,
            backend=self.backend,
            observers=observers,
        )

    # ---- sizes and errors --------------------------------------------------------------------

    def all_outputs(self, batch: Batch, rule: Rule) -> Measured:
        """Every position of every row, in one pass over the model."""
        run = self.loop(batch, rule).run()
        counts = all_traces(run.levels, len(rule), len(self.decoder.blocks), self.backend)
        return self._measured(run, counts, batch, batch.valid, batch.positions)

    def one_output(self, row: Batch, rule: Rule) -> Measured:
        """The last position of one row, in two passes: its trace, then the lanes inside it."""
        weigh, rule = self._as_cuts(row, rule)
        levels = self.loop(row, rule, weigh, masked_lanes=False).run().levels
        trace = output_trace(levels, len(rule), len(self.decoder.blocks))
        run = self.loop(row, rule, weigh, gates=trace.gates).run()
        last = torch.zeros_like(row.valid)
        last[:, -1] = True
        return self._measured(run, trace.counts, row, last, row.positions[:, -1:])

    def sizes(self, batch: Batch, rule: Rule) -> tuple[Tensor, NDArray[np.int64]]:
        """Edge counts int64 [B, T, K] and full counts [B, T], without masked lanes."""
        run = self.loop(batch, rule, masked_lanes=False).run()
        counts = all_traces(run.levels, len(rule), len(self.decoder.blocks), self.backend)
        return counts.sum((-2, -1)), self._full(batch.positions, run.windows)

    def _measured(
        self, run: LaneRun, counts: Tensor, batch: Batch, scored: Tensor, positions: Tensor
    ) -> Measured:
        hidden = run.hidden[:, scored]
        if not torch.isfinite(hidden[0]).all():
            raise ModelError(
                "the model's output holds NaN or infinity on this input: its weights or its "
                f"dtype ({hidden.dtype}) do not allow it to be traced"
            )
        evaluation = evaluate(
            self.decoder, hidden, batch.next_ids[scored], self.settings.controls, self.backend
        )
        full = self._full(positions, run.windows)
        outputs = scored if counts.shape[1] == scored.shape[1] else scored[:, -1:]
        return Measured(counts, full, evaluation, outputs)

    def _full(self, positions: Tensor, windows: Sequence[int | None]) -> NDArray[np.int64]:
        """|E| of outputs at these positions of their documents."""
        place = positions.cpu().numpy()
        table = full_edge_counts(
            int(place.max()) + 1,
            self.decoder.heads,
            windows,
            self.decoder.parallel,
            self.settings.count,
        )
        return np.asarray(table[place])

    # ---- the s-Trace -------------------------------------------------------------------------

    def _as_cuts(self, row: Batch, rule: Rule) -> tuple[Importance | None, Rule]:
        """A `Size` rule as weights (the search's order) and cuts; other rules as they are."""
        if not isinstance(rule, Size):
            return None, rule
        weights, windows = self._dense(row)
        order, taken = ranks(weights, self.decoder.parallel, row.ids.shape[1] - 1)
        if taken >= ORDERED_EDGES:
            raise InputError(
                f"Size orders {taken} edges one by one, {ORDERED_EDGES} at most; use Threshold, "
                "whose strata are the same traces"
            )
        full = int(self._full(row.positions[:, -1:], windows)[0, 0])
        tensors = {
            kind: torch.from_numpy(array).to(row.ids.device) for kind, array in order.items()
        }
        cuts = [taken - int(size * full) for size in rule.values]
        return GivenImportance(tensors, self.backend), GivenCuts(cuts)

    # ---- the graph written out ---------------------------------------------------------------

    def weights(self, row: Batch) -> Weights:
        """Normalised weights of one row, NaN where no edge: attn [L, H, T, T], others [L, T]."""
        return self._dense(row)[0]

    def _dense(self, row: Batch) -> tuple[Weights, list[int | None]]:
        layers, length = len(self.decoder.blocks), row.ids.shape[1]
        needed = 4 * layers * self.decoder.heads * length**2
        if needed > DENSE_BYTES:
            raise InputError(
                f"the weights of all edges of {length} tokens would take {needed / 2**30:.1f} GiB; "
                "they are for short sequences"
            )
        dense = DenseWeights(self.backend)
        nothing = GivenCuts([torch.inf])
        run = self.loop(row, nothing, masked_lanes=False, observers=(dense,)).run()
        return dense.by_kind(), run.windows

    def edges(self, row: Batch, rule: Rule, stratum: int) -> pd.DataFrame:
        """The trace of the last position of one row at one stratum, as a table."""
        weigh, cuts = self._as_cuts(row, rule)
        levels = self.loop(row, cuts, weigh, masked_lanes=False).run().levels
        gates = output_trace(levels, len(cuts), len(self.decoder.blocks)).gates
        collector = EdgeCollector(gates, stratum, self.backend)
        self.loop(row, cuts, weigh, masked_lanes=False, observers=(collector,)).run()
        table = collector.table()
        return table if weigh is None else _with_weights(table, self.weights(row))


def _with_weights(table: pd.DataFrame, weights: Weights) -> pd.DataFrame:
    """The table with the edges' own weights in place of their ranks."""
    own = [
        weights["attn"][edge.layer, edge.head, edge.target, edge.source]
        if edge.kind == "attn"
        else weights[edge.kind][edge.layer, edge.target]
        for edge in edge_rows(table)
    ]
    return table.assign(weight=np.array(own, dtype=np.float32))


@dataclass(frozen=True)
class RowGraph:
    """The graph of one row of a batch, computed again whenever it is asked for."""

    tracing: Tracing
    batch: Batch  # one row, padding removed
    rule: Rule

    def weights(self) -> Weights:
        """See `Trace.weights`."""
        return self.tracing.weights(self.batch)

    def edges(self, output: int, stratum: int) -> pd.DataFrame:
        """See `Trace.edges`."""
        length = self.batch.ids.shape[1]
        if not -length <= output < length:
            raise InputError(f"output={output} is outside the {length} tokens of the sequence")
        if not -len(self.rule) <= stratum < len(self.rule):
            raise InputError(f"stratum={stratum} is outside the {len(self.rule)} strata")
        index = output % length
        first = index - int(self.batch.positions[0, index])  # where the output's document starts
        row = self.batch.row(0, index + 1)
        table = self.tracing.edges(row, self.rule, stratum % len(self.rule))
        return table.assign(source=table.source + first, target=table.target + first)


def without_padding(batch: Batch, index: int) -> Batch:
    """One row of a batch, padding removed."""
    keep = batch.valid[index]
    return replace(
        batch,
        **{name: getattr(batch, name)[index][keep][None] for name in vars(batch)},
    )
