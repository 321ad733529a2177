"""Runs the passes over the model that answer a question about a batch, and gathers the results."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, NotFiniteError
from . import layout
from .batch import Batch, BatchPart
from .collect import DenseWeights, EdgeCollector, Weights, edge_rows
from .cuda_graphs import GraphCache
from .engine import CONTROLS, Attention, LaneLoop, LaneRun, Observer
from .evaluate import evaluate
from .graph import Count, full_edge_counts, most_edges
from .indices import from_start, whole
from .models import Decoder
from .nodes import IMPORTANCES, GivenImportance, Importance, ImportanceName, importance
from .search import ranks
from .select import GivenCuts, Rule, Size
from .sizes import all_traces, by_quartile, output_trace
from .transfer import Departure, to_device
from .windows import consecutive_batches

Scope = Literal["all", "output"]

DENSE_BYTES = 1 << 32  # largest tensor of dense weights that is computed
ORDERED_EDGES = 1 << 24  # float32 represents every rank below this exactly


@dataclass(frozen=True)
class Settings:
    """How edges are weighed and lanes run; see `Tracer.trace`.

    Raises:
        InputError: a value that is not one of the allowed ones.
    """

    importance: ImportanceName = "norm_l1"
    attention: Attention = "live"
    scope: Scope = "all"
    controls: Sequence[str] = ()  # kept as a tuple in the order of CONTROLS
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
        if isinstance(self.controls, str) or not isinstance(self.controls, Iterable):
            raise InputError(
                f"controls={self.controls!r}: a list is needed, as controls=['random']"
            )
        given = list(self.controls)
        if any(control not in CONTROLS or given.count(control) > 1 for control in given):
            raise InputError(f"controls={given!r}: each of {', '.join(CONTROLS)} once at most")
        # The order of lanes in a batch can change the last bits of their sums.
        object.__setattr__(self, "controls", tuple(sorted(given, key=CONTROLS.index)))
        object.__setattr__(self, "seed", whole("seed", self.seed))


@dataclass(frozen=True)
class Results:
    """Results of a batch on the host: R output positions a row, M of them not padding, K strata.

    Packed results (see `Tracing`) have the dtypes of a store, and depth quartiles for blocks.
    """

    topology: NDArray[Any]  # int64 [M, K, 4 kinds, L], in row-major order of `scored`
    full: NDArray[np.int64]  # [B, R] edges of the full graph
    scored: NDArray[np.bool_]  # [B, R]: which outputs are not padding
    surprisal: NDArray[np.float32]  # [M] nats
    model_entropy: NDArray[np.float32]  # [M] nats
    errors: dict[str, NDArray[Any]]  # float32 [M, K]


def not_finite(decoder: Decoder) -> NotFiniteError:
    """The error of a model whose output holds NaN or infinity."""
    return NotFiniteError(
        "the model's output holds NaN or infinity on this input: its weights or its dtype "
        f"({decoder.model.dtype}) do not allow it to be traced"
    )


@dataclass(frozen=True)
class Measured:
    """The results of a batch, possibly still being computed and copied to the host."""

    tracing: "Tracing"
    positions: NDArray[np.int64]  # [B, R] positions of the outputs in their documents
    scored: NDArray[np.bool_]  # [B, R]
    leaving: Departure

    def results(self) -> Results:
        """Wait for the results.

        Raises:
            NotFiniteError: the model's output is not finite.
        """
        arrays = self.leaving.arrays()
        if not arrays.pop("finite"):
            raise not_finite(self.tracing.decoder)
        windows = [int(window) or None for window in arrays.pop("attention_windows")]
        return Results(
            topology=arrays.pop("topology"),
            full=self.tracing.full_edges(self.positions, windows),
            scored=self.scored,
            surprisal=arrays.pop("surprisal"),
            model_entropy=arrays.pop("model_entropy"),
            errors=arrays,
        )


@dataclass(frozen=True)
class Pass:
    """A pass over the model whose outputs are not yet measured; possibly still running."""

    batch: Batch  # on the host
    parts: Sequence[BatchPart]
    outcome: Mapping[str, Tensor]
    following: Tensor  # int64 [M] ids after the scored outputs


@dataclass(frozen=True)
class Tracing:
    """The passes over one decoder under one set of settings; batches are on the host.

    `graphs` caches CUDA graphs of passes over all outputs, from token ids to sizes and final
    states. Passes with the random control run eagerly: capturing it is untested. `tokens_at_once`
    bounds the tokens (times lanes) inside a block at a time, but at least one row runs. `packed`
    copies to the host only what a store holds.
    """

    decoder: Decoder
    settings: Settings
    backend: str = "auto"
    graphs: GraphCache | None = None
    tokens_at_once: int | None = None
    packed: bool = False

    def refresh(self) -> None:
        """Drop what was derived from weights that have changed; before the passes of a call."""
        with self.decoder.session():
            state = self.decoder.refresh()
            if self.graphs is not None:
                self.graphs.only_for((state, self.decoder.wiring()))

    def loop(
        self,
        batch: Batch,
        rule: Rule,
        weigh: Importance | None = None,
        *,
        masked_lanes: bool = True,
        gates: Sequence[Tensor] | None = None,
        observers: Sequence[Observer] = (),
        parts: Sequence[BatchPart] | None = None,
    ) -> LaneLoop:
        """Set up a lane loop.

        Args:
            batch: on the host, unless `parts` are given.
            rule: a rule with cuts.
            weigh: replaces the importance named in the settings.
            masked_lanes, gates, observers: see `LaneLoop`.
            parts: of the batch; by default computed from `tokens_at_once`.
        """
        settings = self.settings
        parts = self._parts(batch) if parts is None else parts
        batch = batch.to(self.decoder.device)
        if weigh is None:
            weigh = importance(settings.importance, settings.seed, batch.positions, self.backend)
        return LaneLoop(
            decoder=self.decoder,
            batch=batch,
            importance=weigh,
            rule=rule,
            attention=settings.attention,
            controls=settings.controls if masked_lanes else (),
            masked_lanes=masked_lanes,
            gates=gates,
            output_only=gates is not None,
            seed=settings.seed,
            backend=self.backend,
            observers=observers,
            parts=parts,
        )

    def _parts(self, batch: Batch) -> Sequence[BatchPart]:
        """Divide a batch on the host into parts that run through a block one after another.

        Rows are grouped as a scan groups windows, each part with its own padding, so that results
        are bit for bit those of a separate batch.
        """
        if self.tokens_at_once is None:
            return ()
        lengths = batch.lengths
        return [
            BatchPart(rows, int(lengths[rows].max()))
            for rows in consecutive_batches(lengths, self.tokens_at_once)
        ]

    # ---- sizes and errors --------------------------------------------------------------------

    def all_outputs(self, batch: Batch, rule: Rule) -> Measured:
        """Measure every position of every row in one pass over the model."""
        return self.measured(self.start(batch, rule))

    def start(self, batch: Batch, rule: Rule, observers: Sequence[Observer] = ()) -> Pass:
        """Queue a pass over the model for all outputs of a batch; does not wait for a GPU."""
        inputs = self._on_device(batch.tensors | _outputs(batch, batch.valid))
        parts = self._parts(batch)

        def one_pass(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            run = self.loop(
                batch.with_tensors(inputs), rule, observers=observers, parts=parts
            ).run()
            counts = all_traces(run.levels, len(rule), self.decoder.geometry, self.backend)
            outputs = inputs["output"].to(counts.device)
            return _outcome(run, counts.flatten(0, 1).index_select(0, outputs), inputs)

        if observers and self.graphs is not None:
            raise InputError("cuda_graphs cannot be combined with observers")
        if self.graphs is None or "random" in self.settings.controls:
            outcome = one_pass(inputs)
        else:
            shapes = tuple(tensor.shape for tensor in inputs.values())
            extents = tuple((part.rows.start, part.rows.stop, part.columns) for part in parts)
            outcome = self.graphs((shapes, extents, self.settings, rule), one_pass, inputs)
        return Pass(batch, parts, outcome, inputs["following"])

    def measured(self, started: Pass) -> Measured:
        """Measure the outputs of a pass; waits for a GPU that still runs it."""
        batch, scored = started.batch, started.batch.valid
        sizes = [int(scored[part.rows].sum()) for part in started.parts]
        tensors = self._measure(started.outcome, started.following, sizes)
        if self.packed:
            tensors = self._packed(tensors, batch.ids.shape[1])
        return Measured(
            tracing=self,
            positions=batch.positions.numpy(),
            scored=scored.numpy(),
            leaving=Departure(tensors),
        )

    def one_output(self, row: Batch, rule: Rule) -> Measured:
        """Measure the last position of one row in two passes: its trace, then lanes within it."""
        weigh, rule = self._as_cuts(row, rule)
        scored = torch.zeros_like(row.valid)
        scored[:, -1] = True
        inputs = self._on_device(_outputs(row, scored))
        levels = self.loop(row, rule, weigh, masked_lanes=False).run().levels
        trace = output_trace(levels, len(rule), self.decoder.geometry)
        run = self.loop(row, rule, weigh, gates=trace.gates).run()
        outcome = _outcome(run, trace.counts.flatten(0, 1), inputs)
        tensors = self._measure(outcome, inputs["following"])
        return Measured(
            tracing=self,
            positions=row.positions[:, -1:].numpy(),
            scored=scored[:, -1:].numpy(),
            leaving=Departure(tensors),
        )

    def observe(self, batch: Batch, rule: Rule, observer: Observer) -> None:
        """Run the clean lane alone and pass its nodes to an observer."""
        self.loop(batch, rule, masked_lanes=False, observers=(observer,)).run()

    def sizes(self, batch: Batch, rule: Rule) -> tuple[Tensor, NDArray[np.int64]]:
        """Trace sizes int64 [B, T, K] and full edge counts [B, T], from the clean lane alone."""
        run = self.loop(batch, rule, masked_lanes=False).run()
        counts = all_traces(run.levels, len(rule), self.decoder.geometry, self.backend)
        return counts.sum((-2, -1)), self.full_edges(batch.positions.numpy(), run.attention_windows)

    @torch.inference_mode()
    def _measure(
        self, outcome: Mapping[str, Tensor], following: Tensor, sizes: Sequence[int] = ()
    ) -> dict[str, Tensor]:
        """The device tensors of `Results` for the M scored outputs.

        Args:
            sizes: how many outputs to evaluate at a time; all at once by default.
        """
        hidden, controls = outcome["hidden"], self.settings.controls
        at_once = list(sizes) or [len(following)]
        parts = []
        for states, ids in zip(hidden.split(at_once, 1), following.split(at_once), strict=True):
            self.decoder.heartbeat()
            parts.append(evaluate(self.decoder, states, ids, controls, self.backend))
        return {
            "topology": outcome["topology"],
            "finite": torch.isfinite(hidden[0]).all(),
            "attention_windows": outcome["attention_windows"],
            "surprisal": torch.cat([part.surprisal for part in parts]),
            "model_entropy": torch.cat([part.model_entropy for part in parts]),
            **{name: torch.cat([part.errors[name] for part in parts]) for name in parts[0].errors},
        }

    @torch.inference_mode()
    def _packed(self, tensors: dict[str, Tensor], length: int) -> dict[str, Tensor]:
        """Convert results to the dtypes of a store, topology by depth quartile.

        Curves stay float32, as in a store, so that packing rounds nothing.
        """
        largest = most_edges(length, self.decoder.heads, len(self.decoder.blocks))
        arrays = layout.window_arrays(self.settings.controls, largest)
        types = {array.name: getattr(torch, array.dtype) for array in arrays}
        # A store has unsigned counts, which torch barely supports.
        types["topology"] = torch.int32 if largest < 1 << 31 else torch.int64
        quartiles = {"topology": by_quartile(tensors["topology"])}
        return {
            name: tensor.to(types.get(name, tensor.dtype))
            for name, tensor in (tensors | quartiles).items()
        }

    def _on_device(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: to_device(tensor, self.decoder.device) for name, tensor in tensors.items()}

    def full_edges(
        self, positions: NDArray[np.int64], windows: Sequence[int | None]
    ) -> NDArray[np.int64]:
        """|E| of outputs at these positions in their documents, given each block's window."""
        table = full_edge_counts(
            length=int(positions.max()) + 1,
            heads=self.decoder.heads,
            windows=windows,
            geometry=self.decoder.geometry,
            count=self.settings.count,
        )
        return np.asarray(table[positions])

    # ---- the s-Trace -------------------------------------------------------------------------

    def _as_cuts(self, row: Batch, rule: Rule) -> tuple[Importance | None, Rule]:
        """Turn a `Size` rule into weights (ranks of the search) and cuts; others are unchanged."""
        if not isinstance(rule, Size):
            return None, rule
        weights, windows = self._dense(row)
        order, taken = ranks(weights, self.decoder.geometry, row.ids.shape[1] - 1)
        if taken >= ORDERED_EDGES:
            raise InputError(
                f"Size orders {taken} edges one by one, {ORDERED_EDGES} at most; use Threshold, "
                "whose strata are the same traces"
            )
        full = int(self.full_edges(row.positions[:, -1:].numpy(), windows)[0, 0])
        tensors = {
            kind: torch.from_numpy(array).to(self.decoder.device) for kind, array in order.items()
        }
        cuts = [taken - int(size * full) for size in rule.values]
        return GivenImportance(tensors, self.backend), GivenCuts(cuts)

    # ---- the graph written out ---------------------------------------------------------------

    def weights(self, row: Batch) -> Weights:
        """Normalised weights of one row: attn [L, H, T, T], others [L, T]; NaN where no edge."""
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
        return dense.by_kind(), run.attention_windows

    def edges(self, row: Batch, rule: Rule, stratum: int) -> pd.DataFrame:
        """The trace of the last position of one row at one stratum, as a table."""
        weigh, cuts = self._as_cuts(row, rule)
        levels = self.loop(row, cuts, weigh, masked_lanes=False).run().levels
        gates = output_trace(levels, len(cuts), self.decoder.geometry).gates
        collector = EdgeCollector(gates, stratum, self.backend)
        self.loop(row, cuts, weigh, masked_lanes=False, observers=(collector,)).run()
        table = collector.table()
        return table if weigh is None else _with_weights(table, self.weights(row))


def _with_weights(table: pd.DataFrame, weights: Weights) -> pd.DataFrame:
    """Replace the ranks in a table by the edges' own weights."""
    own = [
        weights["attn"][edge.layer, edge.head, edge.target, edge.source]
        if edge.kind == "attn"
        else weights[edge.kind][edge.layer, edge.target]
        for edge in edge_rows(table)
    ]
    return table.assign(weight=np.array(own, dtype=np.float32))


@dataclass(frozen=True)
class RowGraph:
    """The graph of one row of a batch, recomputed with the weights of the model at each call."""

    tracing: Tracing
    batch: Batch  # one row, padding removed
    rule: Rule

    def weights(self) -> Weights:
        """See `Trace.weights`."""
        with self.tracing.decoder.session():
            self.tracing.refresh()
            return self.tracing.weights(self.batch)

    def edges(self, output: int, stratum: int) -> pd.DataFrame:
        """See `Trace.edges`."""
        index = from_start("output", output, self.batch.ids.shape[1], "tokens of the sequence")
        column = from_start("stratum", stratum, len(self.rule), "strata")
        first = index - int(self.batch.positions[0, index])  # where the output's document starts
        row = self.batch.row(0, index + 1)
        with self.tracing.decoder.session():
            self.tracing.refresh()
            table = self.tracing.edges(row, self.rule, column)
        return table.assign(source=table.source + first, target=table.target + first)


def without_padding(batch: Batch, index: int) -> Batch:
    """One row of a batch without its padding."""
    keep = batch.valid[index]
    return batch.map(lambda tensor: tensor[index][keep][None])


def _outputs(batch: Batch, scored: Tensor) -> dict[str, Tensor]:
    """For the M scored outputs of [B, T]: flat indices, and the ids of the following tokens."""
    output = scored.flatten().nonzero().squeeze(-1)
    return {"output": output, "following": batch.next_ids.flatten()[output]}


@torch.inference_mode()
def _outcome(run: LaneRun, topology: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a pass that are measured: of the M scored outputs, and blocks' windows."""
    return {
        "topology": topology,
        "hidden": run.hidden.flatten(1, 2).index_select(1, inputs["output"]),
        "attention_windows": torch.tensor(
            [window or 0 for window in run.attention_windows], device="cpu"
        ),
    }
