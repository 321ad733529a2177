"""Test the papers' claims on three small models, with one command.

    python examples/study/run.py --out build/study

Loads the bundled model and its two siblings, or other models; scans the labelled corpus with each,
continuing existing stores; tests the claims of `claims.py`; prints a table and writes `study.json`
and `study.md`. With `--train` the siblings are trained first.
"""

import json
import logging
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from claims import RULE, Finding, Scan, judge_model, judge_pairs, stratum_shares
from numpy.typing import NDArray
from record import claims_json, findings_json, rows_json, terminal_table, write
from rich.console import Console
from safetensors import safe_open
from thresholds import ALL, by_model_and_label, carried_over
from transformers.utils import logging as transformers_logging

import densitrace
from densitrace import AutoStrata, Store, Threshold, Trace, Tracer, scan

log = logging.getLogger("study")

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent
BUNDLED = EXAMPLES / "model"
REFERENCE = HERE / "reference_counts.json"  # for the three models here
CONTROLS = ("random", "inverse")


@dataclass(frozen=True)
class Sibling:
    """A model besides the bundled one: its changes to the bundled model's recipe."""

    name: str
    recipe: tuple[str, ...]  # see `train.py --set`


SIBLINGS = (
    Sibling(
        "wide",
        (
            "family=gpt2",
            "vocab_size=2048",
            "hidden_size=256",
            "intermediate_size=448",
            "layers=3",
            "heads=8",
            "rows=4",
            "stored_as=bfloat16",
        ),
    ),
    Sibling(
        "deep",
        (
            "family=gpt_neox",
            "vocab_size=6144",
            "hidden_size=96",
            "intermediate_size=256",
            "layers=10",
            "heads=4",
            "rows=4",
            "stored_as=bfloat16",
        ),
    ),
)


# ---- models --------------------------------------------------------------------------------------


def train_siblings(folder: Path, out: Path, length: Sequence[str]) -> dict[str, Path]:
    """Train and evaluate the siblings on `folder`, once, with the bundled model's scripts."""
    folders = {}
    for sibling in SIBLINGS:
        model = folders[sibling.name] = out / "models" / sibling.name
        if (model / "evaluation.json").exists():
            continue
        work = out / "training" / sibling.name
        corpus = ["--corpus", str(folder), "--threads", str(torch.get_num_threads())]
        settings = [part for setting in sibling.recipe for part in ("--set", setting)]
        _python("train.py", *corpus, "--out", str(model), "--work", str(work), *settings, *length)
        _python("evaluate.py", *corpus, "--model", str(model))
    return folders


def _python(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(BUNDLED / script), *arguments], check=True)


def count_tokens(folder: Path, tracer: Tracer) -> list[int]:
    """Count every token id in the paragraphs of FOLDER/train/*.txt."""
    counts = np.zeros(tracer.vocab_size, np.int64)
    for path in sorted((folder / "train").glob("*.txt")):
        for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
            ids = tracer.encode(paragraph.strip())[1:]  # without the beginning-of-text token
            counts += np.bincount(ids, minlength=len(counts)) if ids else 0
    if not counts.any():
        raise click.UsageError(f"{folder}: no text in train/*.txt in this folder")
    return [int(count) for count in counts]


def lower_half(tracer: Tracer, length: int) -> NDArray[np.float64]:
    """Share of the full graph's edges in the lower half of the blocks, float64 [length].

    By context length from 1, read off a trace that keeps every edge. Block l of L is in the lower
    half if 2 l < L, as in the store's quartiles.
    """
    trace = tracer.trace([0] * length, select=Threshold([0.0]))
    assert isinstance(trace, Trace)
    edges = trace.topology[:, 0].sum(1)  # [T, L]
    below = 2 * np.arange(edges.shape[1]) < edges.shape[1]
    return np.asarray(edges[:, below].sum(1) / edges.sum(1))


def described(name: str, folder: str, tracer: Tracer, store: Store) -> dict[str, Any]:
    """Describe a model for the record."""
    evaluation = Path(folder) / "evaluation.json"
    return {
        "name": name,
        "architecture": tracer.architecture,
        "blocks": tracer.n_layers,
        "heads": tracer.n_heads,
        "vocabulary": tracer.vocab_size,
        "parameters": parameters(Path(folder)),
        "weights": tracer.weight_hash,
        "tokens": int(store.lengths.sum()),
        "nats": _held_out(json.loads(evaluation.read_text())) if evaluation.exists() else None,
    }


def parameters(folder: Path) -> int | None:
    """Count parameters in a local folder's safetensors, tied ones once; None without such files."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            total += sum(math.prod(file.get_slice(k).get_shape()) for k in file.keys())  # noqa: SIM118
    return total or None


def _held_out(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Nats per token of the model, bigram and unigram, on all scanned passages."""
    groups = evaluation["scan"].values()
    tokens = sum(group["tokens"] for group in groups)
    return {
        name: sum(group["tokens"] * group["nats_per_token"][name] for group in groups) / tokens
        for name in ("model", "bigram", "unigram")
    }


def machine() -> dict[str, Any]:
    """Describe the machine and the software."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "processor": next(names, platform.processor() or "unknown processor"),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "densitrace": densitrace.__version__,
    }


# ---- tables --------------------------------------------------------------------------------------


def topology(name: str, store: Store) -> list[dict[str, Any]]:
    """The traces' size, error, and shares of lower half and attention, by stratum.

    Means over documents; tokens whose trace has no edge are left out of the shares.
    """
    shares = stratum_shares(store).groupby(["stratum", "document"]).mean().groupby("stratum").mean()
    return [
        {"model": name, "threshold": float(value), **{str(k): v for k, v in row.items()}}
        for value, row in zip(store.strata, shares.to_dict("records"), strict=True)
    ]


def threshold_tables(
    tracers: Mapping[str, Tracer], stores: Mapping[str, Store], label: str, pilot: int, **more: Any
) -> dict[str, Any]:
    """Both tables of `thresholds.py` as JSON; empty without a pilot or without the label."""
    if not pilot or any(label not in store.labels for store in stores.values()):
        return {"thresholds": [], "carried": []}
    chosen = by_model_and_label(tracers, stores, label, most=pilot, **more)
    of_all = {str(name): float(v) for name, v in chosen["threshold"].xs(ALL, level=1).items()}
    carried = carried_over(of_all, stores, more["seed"])
    table = chosen.rename_axis(["model", "value"]).reset_index()
    return {"thresholds": rows_json(table), "carried": rows_json(carried)}


# ---- the study -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """The settings that determine the numbers, besides models and texts."""

    strata: int
    context: int
    controls: str
    eps: float
    resamples: int
    seed: int


def scan_all(
    folders: Mapping[str, str], corpus: Path, out: Path, settings: Settings, device: str
) -> tuple[dict[str, Tracer], dict[str, Store]]:
    """Load every model and scan with it, continuing existing stores."""
    tracers, stores = {}, {}
    for name, folder in folders.items():
        log.info("scanning with %s", name)
        tracers[name] = Tracer.from_pretrained(folder, device, "float32")
        stores[name] = scan(
            tracers[name],
            corpus,
            out / f"{name}.zarr",
            select=AutoStrata(settings.strata),
            context=settings.context,
            controls=CONTROLS if settings.controls == "both" else CONTROLS[:1],
            seed=settings.seed,
        )
    return tracers, stores


def judged(
    tracers: Mapping[str, Tracer],
    stores: Mapping[str, Store],
    counts: Mapping[str, Sequence[int]],
    settings: Settings,
) -> list[Finding]:
    """Test every claim for every model and every pair."""
    scans = [
        Scan(
            name=name,
            store=store,
            lower_half=lower_half(tracers[name], store.token.shape[1]),
            reference=counts.get(name),
            eps=settings.eps,
            resamples=settings.resamples,
            seed=settings.seed,
        )
        for name, store in stores.items()
    ]
    log.info("judging")
    return [finding for s in scans for finding in judge_model(s)] + judge_pairs(scans)


# ---- the command ---------------------------------------------------------------------------------


def chosen_models(
    given: Sequence[str], train: bool, training_corpus: Path | None, out: Path, length: list[str]
) -> dict[str, str]:
    """Map the names of the models to folders or hub ids."""
    if given and train:
        raise click.UsageError("--model and --train exclude one another")
    if train and training_corpus is None:
        raise click.UsageError("--train needs --training-corpus")
    if given:
        pairs = [text.partition("=") for text in given]
        if len({name for name, _, _ in pairs}) < max(2, len(pairs)) or not all(
            name and path for name, _, path in pairs
        ):
            raise click.UsageError("--model: give two or more, each as NAME=FOLDER")
        return {name: path for name, _, path in pairs}
    if train and training_corpus is not None:
        siblings = train_siblings(training_corpus, out, length)
    else:
        siblings = {sibling.name: HERE / "models" / sibling.name for sibling in SIBLINGS}
    return {"bundled": str(BUNDLED), **{name: str(path) for name, path in siblings.items()}}


def references(
    tracers: Mapping[str, Tracer], training_corpus: Path | None, ours: bool, out: Path
) -> dict[str, list[int]]:
    """Reference counts by model: counted in a corpus, or those stored for the models here."""
    if training_corpus is not None:
        counts = {name: count_tokens(training_corpus, tracer) for name, tracer in tracers.items()}
        (out / REFERENCE.name).write_text(json.dumps(counts) + "\n", encoding="utf-8")
        return counts
    if not ours:
        return {}
    stored: dict[str, list[int]] = json.loads(REFERENCE.read_text(encoding="utf-8"))
    return stored


@click.command(context_settings={"show_default": True})
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for stores and record; existing stores are continued.",
)
@click.option(
    "--corpus",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=EXAMPLES / "corpus" / "scan.jsonl",
    show_default="examples/corpus/scan.jsonl",
    help="Labelled texts to scan.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME=FOLDER",
    help="Study these models instead; two or more.",
)
@click.option("--train", is_flag=True, help="Train the two siblings first, into OUT/models.")
@click.option(
    "--training-corpus",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with train/*.txt: to train on, and for the tokens' reference frequency.",
)
@click.option("--minutes", type=float, default=14.0, help="Length of training of each sibling.")
@click.option("--steps", type=click.IntRange(min=1), help="Length of training in steps instead.")
@click.option("--strata", type=click.IntRange(min=2), default=12)
@click.option("--context", type=click.IntRange(min=2), default=256, help="Tokens of a window.")
@click.option("--controls", type=click.Choice(("random", "both")), default="random")
@click.option("--eps", type=click.FloatRange(0, 1), default=0.1, help="Tolerated total variation.")
@click.option(
    "--resamples", type=click.IntRange(min=19), default=999, help="Samples for an interval."
)
@click.option("--label", default="domain", help="The label whose values get their own thresholds.")
@click.option(
    "--pilot",
    type=click.IntRange(min=0),
    default=6,
    help="Documents of a value for the report on thresholds; 0 leaves it out.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0)
@click.option("--threads", type=click.IntRange(min=1), default=1)
@click.option("--device", default="cpu")
def main(
    out: Path,
    corpus: Path,
    models: tuple[str, ...],
    train: bool,
    training_corpus: Path | None,
    minutes: float,
    steps: int | None,
    strata: int,
    context: int,
    controls: str,
    eps: float,
    resamples: int,
    label: str,
    pilot: int,
    seed: int,
    threads: int,
    device: str,
) -> None:
    """Scan CORPUS with every model, judge the papers' claims, write OUT/study.md and .json."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    length = ["--minutes", str(minutes)] if steps is None else ["--steps", str(steps)]
    folders = chosen_models(models, train, training_corpus, out, length)
    settings = Settings(strata, context, controls, eps, resamples, seed)
    tracers, stores = scan_all(folders, corpus, out, settings, device)
    counts = references(tracers, training_corpus, not models, out)
    findings = judged(tracers, stores, counts, settings)
    log.info("choosing thresholds")
    options = {"eps": eps, "context": context, "seed": seed}
    record = {
        "date": str(date.today()),
        "command": f"python examples/study/run.py {shlex.join(sys.argv[1:])}",
        "machine": machine(),
        "settings": asdict(settings),
        "corpus": {"name": corpus.name, "documents": len(stores[next(iter(stores))].documents)},
        "models": [described(n, folders[n], tracers[n], stores[n]) for n in folders],
        "rule": RULE,
        "claims": claims_json(findings),
        "findings": findings_json(findings),
        "topology": [row for name, store in stores.items() for row in topology(name, store)],
        "label": label,
        **threshold_tables(tracers, stores, label, pilot, **options),
    }
    write(record, out)
    console = Console()
    console.print(terminal_table(record))
    console.print(f"wrote {out / 'study.md'} and study.json")


if __name__ == "__main__":
    main()
