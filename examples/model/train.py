"""Train a small model from scratch: its tokenizer and weights, as a folder for transformers.

    python examples/model/train.py --corpus FOLDER --minutes 70

The defaults train the bundled model; `--set NAME=VALUE` changes a field of `Recipe`.

FOLDER holds `train/<domain>-<lang>.txt`, paragraphs with a blank line between them. The work folder
keeps a checkpoint, from which the same command continues an interrupted run. The learning rate
follows the share of the time (or of `--steps`) used, so that a run decays it fully on a busy
machine, too.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import click
import torch
from passages import BOS, Sampler, make_stream, read_corpus, sampling_weights, train_tokenizer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

log = logging.getLogger("train")

HERE = Path(__file__).resolve().parent
CHECKPOINT = "checkpoint.safetensors"  # in the work folder


@dataclass(frozen=True)
class Recipe:
    """The settings that determine the model; a checkpoint continues only under the same recipe."""

    seed: int = 0
    family: str = "llama"  # or "gpt2", "gpt_neox"
    vocab_size: int = 4096
    hidden_size: int = 192
    intermediate_size: int = 416
    layers: int = 6
    heads: int = 6
    key_value_heads: int = 2  # for Llama; the other families have as many as heads
    row_length: int = 256
    rows: int = 8  # per step
    learning_rate: float = 2.5e-3
    warmup_share: float = 0.02  # of the run
    weight_decay: float = 0.1
    gradient_norm: float = 1.0
    balance: float = 0.85  # a source's share in training is its size to this power
    tokenizer_balance: float = 0.6  # the same for the text that the tokenizer is trained on
    stored_as: str = "float32"  # dtype of the finished model's weights


@dataclass
class State:
    """The progress of a run."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training, without interruptions
    loss: float = math.nan  # running mean, nats


def llama(recipe: Recipe, bos: int) -> PreTrainedModel:
    """RMSNorm, rotary positions, gated MLP, grouped heads."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.key_value_heads,
            max_position_embeddings=recipe.row_length,
            tie_word_embeddings=True,
            bos_token_id=bos,
            eos_token_id=bos,
            pad_token_id=None,
            use_cache=True,
        )
    )


def gpt2(recipe: Recipe, bos: int) -> PreTrainedModel:
    """LayerNorm, learned positions, plain MLP, biases."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=recipe.vocab_size,
            n_embd=recipe.hidden_size,
            n_inner=recipe.intermediate_size,
            n_layer=recipe.layers,
            n_head=recipe.heads,
            n_positions=recipe.row_length,
            resid_pdrop=0.0,  # no dropout: no text is seen often enough to overfit
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=bos,
            eos_token_id=bos,
        )
    )


def gpt_neox(recipe: Recipe, bos: int) -> PreTrainedModel:
    """LayerNorm, rotary positions, attention and MLP in parallel."""
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=recipe.row_length,
            tie_word_embeddings=True,
            bos_token_id=bos,
            eos_token_id=bos,
        )
    )


FAMILIES: dict[str, Callable[[Recipe, int], PreTrainedModel]] = {
    "llama": llama,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
}


def build_model(recipe: Recipe, bos: int) -> PreTrainedModel:
    """Return a model with fresh weights, drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return FAMILIES[recipe.family](recipe, bos)


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.99),
        fused=True,
    )


def learning_rate(recipe: Recipe, used: float) -> float:
    """Learning rate after the share `used` (0 to 1) of the run: warm-up, then a cosine."""
    if used < recipe.warmup_share:
        return recipe.learning_rate * max(used / recipe.warmup_share, 0.01)
    phase = (used - recipe.warmup_share) / (1 - recipe.warmup_share)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(phase, 1.0)))


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.AdamW, recipe: Recipe, state: State
) -> None:
    """Write weights, optimizer state and progress atomically to one safetensors file."""
    tensors: dict[str, Tensor] = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    for i, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": value for key, value in entry.items()}
    metadata = {"recipe": json.dumps(asdict(recipe)), "state": json.dumps(asdict(state))}
    new = path.with_suffix(".new")
    save_file(tensors, new, metadata=metadata)
    new.replace(path)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.AdamW, recipe: Recipe
) -> State:
    """Load what `save_checkpoint` wrote into `model` and `optimizer`.

    Raises click.ClickException if the checkpoint was made under another recipe.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        made_by, wanted = json.loads(metadata["recipe"]), asdict(recipe)
        if made_by != wanted:
            differ = ", ".join(k for k in wanted if made_by.get(k) != wanted[k])
            raise click.ClickException(
                f"{path} was made with another {differ}; name another --work or delete it"
            )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"model.{name}"))
        for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = file.get_tensor(key)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return State(**json.loads(metadata["state"]))


def export(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stored_as: str
) -> None:
    """Write the folder that `from_pretrained` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    deepcopy(model).to(getattr(torch, stored_as)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Reporter:
    """A progress line on a terminal; elsewhere a log line every minute."""

    def __init__(self, console: Console) -> None:
        columns = (BarColumn(), TextColumn("{task.description}"))
        self.line = Progress(*columns, console=console) if console.is_terminal else None
        self._task = self.line.add_task("", total=1.0) if self.line else None
        self._every = 2.0 if self.line else 60.0  # seconds
        self._last: tuple[float, int] | None = None  # time and tokens of the last report

    def update(self, state: State, used: float) -> None:
        """Report one more step; `used` is the share of the run that is over."""
        now = time.monotonic()
        if self._last is None:  # after the first step, which compiles the model
            self._last = (now, state.tokens)
            return
        then, tokens = self._last
        if now - then < self._every:
            return
        self._last = (now, state.tokens)
        speed = (state.tokens - tokens) / (now - then)
        left = state.seconds * (1 - used) / used
        text = (
            f"step {state.step}  loss {state.loss:.3f}  {speed:.0f} tokens/s"
            f"  {left / 60:.1f} min left"
        )
        if self.line is not None and self._task is not None:
            self.line.update(self._task, completed=used, description=text)
        else:
            log.info("%s  (%.1fM tokens)", text, state.tokens / 1e6)


def train(
    model: PreTrainedModel,
    optimizer: torch.optim.AdamW,
    sampler: Sampler,
    recipe: Recipe,
    state: State,
    used: Callable[[State], float],
    compiled: bool,
) -> Iterator[None]:
    """Train the model, updating `state`, until `used(state)` reaches 1; yield after every step."""
    model.train()

    def next_token_loss(ids: Tensor) -> Tensor:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # [B, T-1, V]
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    loss_of = torch.compile(next_token_loss) if compiled else next_token_loss
    started = time.monotonic() - state.seconds
    while (share := used(state)) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, share)
        ids = torch.from_numpy(sampler.batch(state.step, recipe.rows))  # [B, T]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += ids.numel()
        state.seconds = time.monotonic() - started
        value = loss.item()
        state.loss = value if state.step == 1 else 0.99 * state.loss + 0.01 * value
        yield


def used_share(minutes: float, steps: int | None) -> Callable[[State], float]:
    """Return the clock of a run: the share of `steps` that is done, or of `minutes` without it."""
    if steps is not None:
        return lambda state: state.step / steps
    return lambda state: state.seconds / (60 * minutes)


def prepare(corpus: Path, recipe: Recipe) -> tuple[PreTrainedTokenizerFast, Sampler]:
    """Read the corpus, train the tokenizer and set up the rows."""
    sources = read_corpus(corpus, recipe.seed)
    tokenizer = train_tokenizer(sources, recipe.vocab_size, recipe.tokenizer_balance)
    streams = [make_stream(source, tokenizer) for source in sources]
    sizes = [len(stream.tokens) for stream in streams]
    log.info("%.2fM training tokens in %d sources", sum(sizes) / 1e6, len(sizes))
    weights = sampling_weights(sizes, recipe.balance)
    (bos,) = tokenizer.encode(BOS, add_special_tokens=False)
    return tokenizer, Sampler(streams, weights, bos, recipe.seed, recipe.row_length)


@dataclass(frozen=True)
class Length:
    """The length of a run, and how it runs."""

    minutes: float = 70.0
    steps: int | None = None  # instead of minutes
    checkpoint_minutes: float = 3.0
    compiled: bool = True


def run(corpus: Path, out: Path, work: Path, recipe: Recipe, length: Length) -> None:
    """Train a model on `corpus`, or continue the run in `work`, and write it to `out`.

    Raises FileNotFoundError if the corpus has no text, click.ClickException if `work` holds a run
    of another recipe.
    """
    tokenizer, sampler = prepare(corpus, recipe)
    model = build_model(recipe, sampler.bos)
    model.set_attn_implementation("eager")  # for short rows faster than fused attention on a CPU
    optimizer = build_optimizer(model, recipe)
    state, checkpoint = State(), work / CHECKPOINT
    work.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, model, optimizer, recipe)
        log.info("continuing at step %d after %.1f minutes", state.step, state.seconds / 60)
    used, saved = used_share(length.minutes, length.steps), time.monotonic()
    reporter = Reporter(Console(stderr=True))
    with reporter.line or nullcontext():
        for _ in train(model, optimizer, sampler, recipe, state, used, length.compiled):
            reporter.update(state, used(state))
            if time.monotonic() - saved >= 60 * length.checkpoint_minutes:
                save_checkpoint(checkpoint, model, optimizer, recipe, state)
                export(work / "model", model, tokenizer, recipe.stored_as)
                saved = time.monotonic()
    save_checkpoint(checkpoint, model, optimizer, recipe, state)
    export(out, model, tokenizer, recipe.stored_as)
    record = {"recipe": asdict(recipe), "run": asdict(state)}
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    log.info("%d steps, %.1fM tokens, loss %.3f", state.step, state.tokens / 1e6, state.loss)


def changed(recipe: Recipe, settings: tuple[str, ...]) -> Recipe:
    """Return the recipe with fields changed by NAME=VALUE settings."""
    types = {field.name: type(getattr(recipe, field.name)) for field in fields(recipe)}
    values = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in types:
            raise click.BadParameter(f"{name!r} is none of {', '.join(types)}")
        try:
            values[name] = types[name](value)
        except ValueError as error:
            raise click.BadParameter(f"{setting}: {error}") from error
    result = replace(recipe, **values)
    if result.family not in FAMILIES:
        raise click.BadParameter(f"family={result.family}: choose {', '.join(FAMILIES)}")
    return result


@click.command(context_settings={"show_default": True})
@click.option(
    "--corpus",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder with train/*.txt.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE,
    help="Folder for the finished model.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/model"),
    help="Folder for the checkpoint and the model so far.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=70.0,
    help="Length of the run.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=None,
    help="Length in steps instead; such a run can be repeated exactly.",
)
@click.option("--seed", type=click.IntRange(min=0), default=Recipe.seed)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a field of the recipe: family=gpt2, layers=3, vocab_size=2048, ...",
)
@click.option("--threads", type=click.IntRange(min=1), default=2)
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0),
    default=3.0,
    help="Time between checkpoints.",
)
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=True,
    help="Fuse the model's small operations: half as fast again, needs a C++ compiler.",
)
def main(
    corpus: Path,
    out: Path,
    work: Path,
    minutes: float,
    steps: int | None,
    seed: int,
    settings: tuple[str, ...],
    threads: int,
    checkpoint_minutes: float,
    compiled: bool,
) -> None:
    """Train a small model on CORPUS and write it, with its tokenizer, to OUT."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    recipe = changed(Recipe(seed=seed), settings)
    try:
        run(corpus, out, work, recipe, Length(minutes, steps, checkpoint_minutes, compiled))
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
