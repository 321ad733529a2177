"""`Tracer`: a model with its tokenizer, the public entry point of the engine."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, ModelError
from .batch import Batch
from .clock import Clock, Stopwatch
from .cuda_graphs import GraphCache
from .engine import Attention, Observer
from .fingerprints import WeightHash, config_hash, tokenizer_hash
from .graph import Count
from .indices import from_start, shown, whole
from .inputs import Inputs, batch_of_inputs, check_batch
from .models import (
    Decoder,
    OffloadedBlocks,
    architecture_of,
    causal_model,
    load,
    load_offloaded,
    stored,
    text_model,
)
from .nodes import ImportanceName
from .select import (
    DEFAULT_STRATA,
    AutoStrata,
    Rule,
    check_scope,
    checked_rule,
    rule_with_cuts,
)
from .trace import Trace
from .tracing import (
    Measured,
    Pass,
    RowGraph,
    Scope,
    Settings,
    Tracing,
    without_padding,
)
from .verification import Verification, verify
from .windows import spread

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PILOT_TOKENS = 2048  # enough for the mean log size of each threshold to settle


class Tracer:
    """Traces a causal language model.

    Args:
        model: a transformers model of a declared architecture. Of a multimodal model, the language
            model within is traced. It is traced as it is at each call: with the weights, adapters
            and hooks of then, but always in evaluation mode, without autocast or `torch.compile`.
            It is left as it was. Calls from several threads run one after another; other uses of
            the model in the meantime must wait.
        tokenizer: its tokenizer; None if inputs are token ids only.
        model_id: name of the model in stores and reports.
        backend: of the ops, see `densitrace info`.
        cuda_graphs: on a GPU, replay passes over batches of a shape seen before as CUDA graphs.
            Pays off where launching kernels takes longer than running them, at a cost in memory.
            Passes with the random control are not replayed.
        offloaded: the blocks of a model loaded with `offload`; see `from_pretrained`.

    Attributes:
        architecture: name of the model's declaration.
        n_layers: number of blocks.
        n_heads: query heads of a block.
        geometry: which node layers the edges of each block connect.

    Raises:
        ModelError: not a causal language model, an undeclared architecture, or weights that are not
            in memory or hold NaN or infinity.
        InputError: CUDA graphs with an offloaded model or one spread over several GPUs.

    Example:
        >>> tracer = Tracer.from_pretrained("examples/model")
        >>> trace = tracer.trace("The cat sat on the mat", select=Threshold([1e-3, 1e-2]))
        >>> trace.size.shape
        (8, 2)
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        model_id: str | None = None,
        backend: str = "auto",
        cuda_graphs: bool = False,
        offloaded: OffloadedBlocks | None = None,
    ) -> None:
        if cuda_graphs and offloaded is not None:
            raise InputError("cuda_graphs need weights that stay in place: not an offloaded model")
        whole = causal_model(model)
        model = text_model(whole)
        architecture = architecture_of(model.config)
        self._decoder = Decoder(model, architecture, offloaded)
        if cuda_graphs and len({block.device for block in self._decoder.blocks}) > 1:
            raise InputError("cuda_graphs need a model on one GPU: this one is spread over several")
        for name, parameter in model.named_parameters():
            if parameter.is_meta and offloaded is None:
                raise ModelError(
                    f"weights of the model are not in memory, first {name}: load all of them, or "
                    "use Tracer.from_pretrained with offload='layers'"
                )
            if not all(map(_finite, stored(self._decoder.value(name, parameter)))):
                raise ModelError(f"weights of the model hold NaN or infinity, first in {name}")
        self.tokenizer = tokenizer
        self.model_id = model_id or str(getattr(whole.config, "name_or_path", "")) or "unnamed"
        self.architecture = architecture.name
        self.backend = backend
        self._watch = Stopwatch(Clock(self.device))
        self._graphs = GraphCache() if cuda_graphs and self.device.type == "cuda" else None
        self.n_layers = len(self._decoder.blocks)
        self.n_heads = self._decoder.heads
        self.geometry = self._decoder.geometry
        self._weight_hash = WeightHash()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        backend: str = "auto",
        cuda_graphs: bool = False,
        offload: Literal["layers"] | None = None,
    ) -> "Tracer":
        """Load a model and its tokenizer from a local folder or a hub id.

        Args:
            path: folder or hub id. Code in it is never run.
            device: a torch device, or `auto`: a GPU if there is one (the first, or torchrun's
                `LOCAL_RANK`), else the CPU.
            dtype: a torch dtype or its name, or `auto`: as stored.
            backend, cuda_graphs: see `Tracer`.
            offload: "layers" for a model larger than memory: each block is read from safetensors
                files when it runs, at most two are in memory, and every batch reads the model once.

        Raises:
            ModelError: no model there, weights missing or not finite, architecture not declared;
                with `offload`, weights that are quantised or not in safetensors.
            InputError: an unknown device, dtype or `offload`.

        Example:
            >>> Tracer.from_pretrained("examples/model", dtype="bfloat16").n_heads
            6
        """
        if not isinstance(path, str | Path):
            kind = type(path).__name__
            raise ModelError(f"a {kind} is no folder or hub id: Tracer(model) takes a loaded model")
        if offload not in (None, "layers"):
            raise InputError(f"offload={offload!r} is unknown; choose layers, or None")
        offloaded = None
        if offload is None:
            model, tokenizer = load(path, device, dtype)
        else:
            model, tokenizer, offloaded = load_offloaded(path, device, dtype)
        folder = Path(path)
        model_id = "/".join(folder.resolve().parts[-2:]) if folder.is_dir() else str(path)
        return cls(
            model,
            tokenizer,
            model_id=model_id,
            backend=backend,
            cuda_graphs=cuda_graphs,
            offloaded=offloaded,
        )

    @property
    def device(self) -> torch.device:
        """The device that token ids go to."""
        return self._decoder.device

    @property
    def offloaded(self) -> bool:
        """Whether blocks are read from files when they run."""
        return self._decoder.offloaded is not None

    @property
    def max_length(self) -> int | None:
        """The most tokens a sequence may have; None if there is no limit."""
        return self._decoder.max_length

    @property
    def vocab_size(self) -> int:
        """The exclusive upper bound of token ids."""
        return self._decoder.vocab_size

    @property
    def weight_hash(self) -> str:
        """SHA-256 in hex of the names, dtypes, shapes and bytes of all weights."""
        with self._decoder.session():
            return self._weight_hash.of(self._decoder)

    @cached_property
    def tokenizer_hash(self) -> str:
        """SHA-256 in hex of the tokenizer's vocabulary and rules; empty without a tokenizer."""
        return tokenizer_hash(self.tokenizer)

    @property
    def config_hash(self) -> str:
        """SHA-256 in hex of the config entries that affect what the model computes."""
        with self._decoder.session():
            return config_hash(self._decoder.model.config)

    def encode(self, text: str) -> list[int]:
        """Tokenise a text, with the special tokens that the tokenizer adds.

        Raises:
            InputError: the tracer has no tokenizer, or the text is not Unicode.
        """
        if self.tokenizer is None:
            raise InputError(
                f"model {self.model_id!r} has no tokenizer: give token ids instead of text"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text {shown(text)} holds half a surrogate pair at {error.start}: not Unicode"
            ) from None
        ids: list[int] = self.tokenizer.encode(text)
        return ids

    def texts(self, ids: Iterable[int]) -> list[str]:
        """Decode tokens one by one; without a tokenizer, their numbers.

        Example:
            >>> tracer.texts(tracer.encode("The cat sat"))
            ['<|bos|>', 'The', ' c', 'at', ' sat']
        """
        if self.tokenizer is None:
            return [str(token) for token in ids]
        return [str(self.tokenizer.decode([int(token)])) for token in ids]

    # ---- tracing -----------------------------------------------------------------------------

    def trace(
        self,
        inputs: Inputs,
        *,
        importance: ImportanceName = "norm_l1",
        select: Rule | AutoStrata = DEFAULT_STRATA,
        attention: Attention = "live",
        scope: Scope = "all",
        output: int = -1,
        controls: Sequence[str] = (),
        count: Count = "window",
        seed: int = 0,
        next_token: int | Sequence[int] | None = None,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> "Trace | list[Trace]":
        """Trace one sequence or a batch: sizes, errors and topology of every token and stratum.

        Args:
            inputs: a text, texts, token ids, lists of token ids, or an integer tensor [T] or
                [B, T]. All sequences run as one batch.
            importance: norm_l1, norm_l2, proximity, cosine or random (METHOD §2).
            select: a rule (METHOD §3); AutoStrata chooses its thresholds on these inputs.
            attention: "live" recomputes attention weights in the masked streams, "frozen" keeps
                the clean ones (METHOD §5).
            scope: "all" answers all positions in one pass; "output" keeps only the ancestors of
                one position, in two passes.
            output: that position, or from the end; used with scope="output" only.
            controls: any of "inverse", "random" (METHOD §5).
            count: whether edges outside a sliding window count in the full graph ("causal", as in
                the papers' reference) or not ("window"). No trace holds any; the reference's
                traces of `Size` hold them last.
            seed: for everything random.
            next_token: the id that follows each sequence, for the loss of its last token; a single
                id for a single sequence.
            attention_mask: [B, T], 0 on padding; for tensor input.
            segment_ids: [B, T], which document of the row a token is in; for tensor input.

        Returns:
            A Trace for one sequence, a list of traces otherwise.

        Raises:
            InputError: an unusable argument; the message says which and why.
            NotFiniteError: the model's output is not finite on this input.

        Example:
            >>> tracer.trace("The cat sat on the mat", select=Threshold([1e-3, 1e-2])).size.shape
            (8, 2)
        """
        checked_rule(select)
        settings = Settings(
            importance=importance,
            attention=attention,
            scope=scope,
            controls=controls,
            count=count,
            seed=seed,
        )
        batch, single = self._batch(inputs, next_token, attention_mask, segment_ids)
        check_scope(select, scope)
        with self._decoder.session():
            tracing = self._tracing(settings)
            rule = self._with_strata(select, tracing, batch)
            if scope == "output":
                traces = self._trace_one_output(tracing, batch, rule, output)
            else:
                with self._watch.running():
                    measured = tracing.all_outputs(batch, rule)
                traces = self._traces(batch, rule, measured)
        return traces[0] if single else traces

    def trace_batches(
        self,
        batches: Iterable[tuple[Sequence[Sequence[int]], Sequence[int]]],
        rule: Rule,
        settings: Settings,
        tokens_at_once: int | None = None,
        observers: Sequence[Observer] = (),
        packed: bool = False,
    ) -> Iterator[list[Trace]]:
        """Trace all outputs of a stream of batches.

        On a GPU, a batch runs while the results of the one before it are copied to the host and
        the one after it is prepared.

        Args:
            batches: token ids of each row, and the id that follows each row, -1 where none does.
            rule: a rule with cuts (not `Size`).
            settings: see `trace`; scope="all".
            tokens_at_once: most tokens (times lanes) of a batch inside a block at a time, in rows
                of similar length, but at least one row; all of them by default.
            observers: one per batch, or none; not with `cuda_graphs`.
            packed: copy to the host only what a store holds, in its dtypes, with the topology by
                depth quartile instead of block. For `scan`; such traces have no `to_coo`.

        Yields:
            The traces of a batch, in order.

        Raises:
            InputError, NotFiniteError: as `trace`.
        """
        rule_with_cuts(rule)
        if settings.scope != "all":
            raise InputError(f"scope={settings.scope!r}: batches are traced with scope='all'")
        tracing = replace(self._tracing(settings, tokens_at_once), packed=packed)

        def measured(started: Pass) -> tuple[Batch, Measured]:
            with self._decoder.session(), self._watch.running():
                return started.batch, tracing.measured(started)

        started: Pass | None = None
        before: tuple[Batch, Measured] | None = None
        for number, (sequences, following) in enumerate(batches):
            # Measuring waits for the GPU, so the host's work is done while a pass is running: it
            # prepares a batch during the pass before, and makes traces during the pass after.
            batch, _ = self._batch(sequences, following)
            if started is not None:
                before, started = measured(started), None  # its states would take memory
            with self._decoder.session(), self._watch.running():
                started = tracing.start(batch, rule, observers[number : number + 1])
            if before is not None:
                yield self._traces(before[0], rule, before[1])
        if started is not None:
            before = measured(started)
            yield self._traces(before[0], rule, before[1])

    def observe(
        self,
        sequences: Sequence[Sequence[int]],
        rule: Rule,
        settings: Settings,
        observer: Observer,
        tokens_at_once: int | None = None,
    ) -> None:
        """Run a batch through the clean lane alone; `observer` is called with nodes and cuts.

        Raises:
            InputError: unusable token ids, or a rule without cuts (`Size`, `AutoStrata`).
        """
        rule_with_cuts(rule)
        batch, _ = self._batch(sequences, None)
        with self._decoder.session(), self._watch.running():
            self._tracing(settings, tokens_at_once).observe(batch, rule, observer)

    def with_heartbeat(self, beat: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `beat` regularly, several times per block, while the context is open.

        On a GPU the calls come as work is queued, and none during replayed passes. An exception
        from `beat` ends the pass.
        """
        return self._decoder.with_heartbeat(beat)

    def device_seconds(self) -> float:
        """Seconds that the device has spent on tracing passes so far; waits for running passes.

        On a GPU measured from the start of a pass to its end, by events on the current stream.
        """
        with self._decoder.session():
            return self._watch.seconds()

    @property
    def cuda_graphs(self) -> bool:
        """Whether passes of a shape seen before are replayed as CUDA graphs."""
        return self._graphs is not None

    def tokens_per_weight_read(self, rule: Rule, settings: Settings, tokens_at_once: int) -> int:
        """How many tokens should run through a block before the next block is read.

        `tokens_at_once`, unless blocks are read from files: then as many tokens as have lane states
        that fill the memory of two blocks, so that one read of the weights serves them all.
        """
        offloaded = self._decoder.offloaded
        if offloaded is None:
            return tokens_at_once
        lanes = 1 + len(rule) * (1 + len(settings.controls))
        hidden = self._decoder.unembedding[0].shape[1]
        return max(tokens_at_once, 2 * offloaded.largest // (lanes * hidden))

    def choose_strata(
        self,
        select: Rule | AutoStrata,
        windows: Sequence[Sequence[int]],
        *,
        importance: ImportanceName = "norm_l1",
        count: Count = "window",
        seed: int = 0,
    ) -> Rule:
        """Choose the thresholds of an AutoStrata on a pilot sample; other rules are unchanged.

        The pilot runs the clean lane alone, on evenly spaced windows of about 2048 tokens in total.

        Args:
            select: the rule.
            windows: token ids of the windows to sample from.
            importance, count, seed: see `trace`.

        Returns:
            A rule with cuts.

        Raises:
            InputError: no windows, or too few different sizes on the pilot sample.
        """
        if isinstance(select, Rule):
            return select
        checked_rule(select)
        if not windows:
            raise InputError("AutoStrata needs at least one window to try thresholds on")
        pilot = spread(np.array([len(window) for window in windows]), PILOT_TOKENS)
        sample = [windows[index] for index in pilot]
        return self.choose_strata_from_windows(
            select, sample, importance=importance, count=count, seed=seed
        )

    def choose_strata_from_windows(
        self,
        select: AutoStrata,
        windows: Sequence[Sequence[int]],
        *,
        importance: ImportanceName,
        count: Count,
        seed: int,
    ) -> Rule:
        """`choose_strata` on all of the given windows, without sampling."""
        settings = Settings(importance=importance, count=count, seed=seed)
        batches = [self._batch([window], None)[0] for window in windows]
        with self._decoder.session():
            return self._pilot(select, self._tracing(settings), batches)

    def _with_strata(self, select: Rule | AutoStrata, tracing: Tracing, batch: Batch) -> Rule:
        return select if isinstance(select, Rule) else self._pilot(select, tracing, [batch])

    def _pilot(self, select: AutoStrata, tracing: Tracing, batches: Sequence[Batch]) -> Rule:
        tried = select.pilot(tracing.settings.importance, select.n)
        sizes = []
        for batch in batches:
            counts, full = tracing.sizes(batch, tried)
            valid = batch.valid.numpy(force=True)
            at_least_one = np.maximum(counts.numpy(force=True), 1)
            sizes.append((at_least_one / full[..., None])[valid])
        return select.choose(tried, np.concatenate(sizes))

    def _tracing(self, settings: Settings, tokens_at_once: int | None = None) -> Tracing:
        tracing = Tracing(
            self._decoder,
            settings,
            backend=self.backend,
            graphs=self._graphs,
            tokens_at_once=tokens_at_once,
        )
        tracing.refresh()
        return tracing

    def _trace_one_output(
        self, tracing: Tracing, batch: Batch, rule: Rule, output: int
    ) -> list[Trace]:
        traces = []
        for index in range(len(batch.ids)):
            row = without_padding(batch, index)
            position = from_start("output", output, row.ids.shape[1], f"tokens of row {index}")
            with self._watch.running():
                measured = tracing.one_output(row.row(0, position + 1), rule)
            traces += self._traces(row, rule, measured, [position])
        return traces

    def _traces(
        self, batch: Batch, rule: Rule, measured: Measured, outputs: Sequence[int] | None = None
    ) -> list[Trace]:
        """One trace per row; `outputs` are the positions traced, by default all."""
        results = measured.results()
        ends = np.cumsum(results.scored.sum(1))  # where each row's scored outputs end
        traces = []
        for index, end in enumerate(ends):
            row = without_padding(batch, index)
            scored = results.scored[index]
            run = slice(end - scored.sum(), end)
            topology, full = results.topology[run], results.full[index][scored]
            edge_count = topology.sum((-2, -1), dtype=np.int64)
            traces.append(
                Trace(
                    tokens=row.ids[0].numpy(),
                    positions=np.arange(row.ids.shape[1]) if outputs is None else np.array(outputs),
                    rule=rule,
                    size=(edge_count / full[:, None]).astype(np.float32),
                    edge_count=edge_count,
                    full_edge_count=full,
                    errors={name: values[run] for name, values in results.errors.items()},
                    surprisal=results.surprisal[run],
                    model_entropy=results.model_entropy[run],
                    topology=topology,
                    geometry=self.geometry,
                    graph=RowGraph(measured.tracing, row, rule),
                )
            )
        return traces

    def _batch(
        self,
        inputs: Inputs,
        next_token: int | Sequence[int] | None,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Batch, bool]:
        """Check the inputs; returns a batch on the host, and whether it is a single sequence."""
        batch, single = batch_of_inputs(
            inputs, self.encode, next_token, attention_mask, segment_ids
        )
        check_batch(batch, self.vocab_size, self.max_length, self.model_id)
        return batch, single

    # ---- verification ------------------------------------------------------------------------

    def verify(self, length: int = 24, seed: int = 0) -> Verification:
        """Compare the lane loop, with every edge kept, to the model's own logits.

        Runs seeded random tokens as a plain row and as right- and left-padded rows, with live and
        frozen attention; the model itself runs each row without padding.

        Args:
            length: tokens of the longest row, at most as many as the model takes.
            seed: of the tokens.

        Returns:
            The largest difference of logits over the largest logit. Its tolerance is 1e-5 in
            float32 and 8 machine epsilons in half precision, or twice the difference that rounding
            errors of the embeddings make to the model's own logits, if that is more: in a deep
            model, or for tokens on the boundary between two experts.

        Raises:
            InputError: `length` or `seed` is no whole number, or `length` below 1.
            NotFiniteError: logits hold NaN or infinity.

        Example:
            >>> tracer.verify().ok
            True
        """
        length, seed = whole("length", length), whole("seed", seed)
        if length < 1:
            raise InputError(f"length={length}: a row needs at least one token")
        with self._decoder.session():
            self._decoder.refresh()
            return verify(self._decoder, min(length, self.max_length or length), seed, self.backend)


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, computed without a temporary of the tensor's size."""
    if not tensor.is_floating_point():
        return True
    if tensor.dtype.itemsize == 1:  # few operations support float8
        return bool(tensor.float().isfinite().all())
    return bool(torch.stack(tensor.aminmax()).isfinite().all())
