"""The commands of the estimator: `trace`, `report`, `demo`, `explain` and `compare`."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from rich.console import Console
from rich.table import Table

from ..errors import InputError, StoreError
from ..tracer.cli import debug_option, example, load_tracer, model_options
from ..tracer.scan_cli import chosen_rule, rule_options, weighing_options

if TYPE_CHECKING:
    import pandas as pd

MODEL, CORPUS = Path("examples/model"), Path("examples/corpus/scan.jsonl")

eps_option = click.option(
    "--eps",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="The total variation that density@EPS tolerates.",
)


@click.command(
    short_help="Show how dense each token of a text is.",
    epilog=example('trace "The cat sat on the mat." --model MODEL'),
)
@click.argument("text")
@model_options
@rule_options
@weighing_options
@eps_option
@click.option("--csv", type=click.Path(path_type=Path), help="Also write the table to a file.")
@debug_option
def trace(
    text: str,
    model: str,
    device: str,
    dtype: str,
    backend: str,
    offload: Literal["layers"] | None,
    importance: Any,
    attention: Any,
    eps: float,
    csv: Path | None,
    **rules: Any,
) -> None:
    """Show how dense each token of TEXT is, all in one pass; - reads standard input.

    A row has the density of the prediction made after its token, and the surprisal (in nats) of the
    token itself.
    """
    from .frames import trace_frame
    from .terminal import trace_table

    rule = chosen_rule({"scope": "all", **rules})
    text = sys.stdin.read() if text == "-" else text
    tracer = load_tracer(model, device, dtype, backend, offload=offload)
    found = tracer.trace(text, importance=importance, attention=attention, select=rule)
    assert not isinstance(found, list)  # of a single text
    tokens = trace_frame(found, tracer.texts(found.tokens), eps)
    _show([trace_table(tokens, eps)])
    if csv is not None:
        _write(tokens, csv)


@click.command(
    short_help="Write one self-contained HTML page about stores.",
    epilog=example("report small.zarr large.zarr --out density.html --figures figures"),
)
@click.argument("stores", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page to write.",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    help="A folder for every figure as SVG and PNG and its data as CSV.",
)
@click.option("--by", "labels", multiple=True, help="A label to show densities by; repeatable.")
@eps_option
@click.option(
    "--factors/--no-factors",
    default=True,
    show_default=True,
    help="Explain densities by factors (SHAP): some seconds a store.",
)
@click.option("--name", "names", multiple=True, help="A model's name; once for each store.")
@click.option("--title", help="The page's heading.")
@debug_option
def report(
    stores: tuple[str, ...],
    out: Path,
    figures: Path | None,
    labels: tuple[str, ...],
    eps: float,
    factors: bool,
    names: tuple[str, ...],
    title: str | None,
) -> None:
    """Write one self-contained HTML page about STORES, and how far their models agree.

    A store is a folder or a URL (s3://bucket/name, gs://, az://).
    """
    from .report import write_report  # imported late: --help should not wait for pandas

    page = write_report(
        stores,
        out,
        figures=figures,
        by=labels or None,
        title=title,
        names=names or None,
        eps=eps,
        factors=factors,
        separate_process=True,
    )
    Console().print(f"report: {page}", highlight=False, soft_wrap=True, markup=False)
    if figures is not None:
        Console().print(f"figures: {figures}", highlight=False, soft_wrap=True, markup=False)


@click.command(
    short_help="Scan a small corpus and show what is dense.", epilog=example("demo --out demo")
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="The folder for traces.zarr and report.html.",
)
@click.option("--model", help="A model folder or hub id.  [default: the bundled examples/model]")
@click.option(
    "--corpus",
    type=click.Path(path_type=Path),
    help="What to scan.  [default: the bundled examples/corpus/scan.jsonl]",
)
@debug_option
def demo(out: Path, model: str | None, corpus: Path | None) -> None:
    """Scan a small labelled corpus with a small model and show what is dense."""
    from ..tracer.scan import scan
    from .density import DensityEstimator
    from .report import write_report
    from .sections import default_labels
    from .terminal import label_table, token_table

    source = corpus or bundled(CORPUS, "--corpus")
    tracer = load_tracer(model or str(bundled(MODEL, "--model")), "auto", "auto", "auto")
    # 256 tokens: the length of text that the bundled model was trained on.
    store = scan(tracer, source, out / "traces.zarr", context=256)
    result = DensityEstimator.from_store(store)
    console = Console()
    for label in default_labels(result):
        console.print(label_table(result, label), "")
    for densest in (True, False):
        console.print(token_table(result, densest), "")
    page = write_report(store, out / "report.html", separate_process=True)
    for name, path in (("store", out / "traces.zarr"), ("report", page)):
        console.print(f"{name + ':':8}{path}", highlight=False, soft_wrap=True, markup=False)


@click.command(
    short_help="Show which factors go with density.",
    epilog=example("explain traces.zarr --target density@0.1 --by domain"),
)
@click.argument("store")
@click.option("--target", default="auc_tv", show_default=True, help="auc_tv or density@EPS.")
@click.option(
    "--by", "labels", multiple=True, help="A label whose values are compared; repeatable."
)
@click.option("--leave-out", multiple=True, help="A factor not to use; repeatable.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Explain a sample of at most this many tokens.",
)
@click.option(
    "--shuffles",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Fits to shuffled densities, which tell a finding from noise.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@debug_option
def explain(
    store: str,
    target: str,
    labels: tuple[str, ...],
    leave_out: tuple[str, ...],
    max_tokens: int,
    shuffles: int,
    seed: int,
) -> None:
    """Show which factors go with the density of STORE's tokens; a folder or a URL."""
    from ..tracer.store import open_store
    from .explain import explain_factors
    from .terminal import factor_tables

    explanation = explain_factors(
        open_store(store),
        target,
        by=labels or None,
        leave_out=leave_out,
        max_tokens=max_tokens,
        shuffles=shuffles,
        seed=seed,
    )
    _show(factor_tables(explanation))


@click.command(
    short_help="Compare what several models find dense.",
    epilog=example("compare small.zarr large.zarr --level document"),
)
@click.argument("stores", nargs=-1, required=True)
@click.option(
    "--level",
    type=click.Choice(("word", "document")),
    default="word",
    show_default=True,
    help="What is compared.",
)
@click.option("--measure", default="auc_tv", show_default=True, help="auc_tv or density@EPS.")
@click.option(
    "--within",
    type=click.Choice(("last", "mean")),
    default="last",
    show_default=True,
    help="A word's density: of its last token, or the mean over its tokens.",
)
@click.option("--csv", type=click.Path(path_type=Path), help="Write the densities side by side.")
@debug_option
def compare(
    stores: tuple[str, ...],
    level: Literal["word", "document"],
    measure: str,
    within: Literal["last", "mean"],
    csv: Path | None,
) -> None:
    """Compare what the models of STORES, folders or URLs, find dense in the same texts."""
    from .compare import compare as run
    from .terminal import comparison_tables

    comparison = run(stores, level, measure, within=within)
    _show(comparison_tables(comparison))
    if csv is not None:
        _write(comparison.table, csv)


def _write(table: "pd.DataFrame", csv: Path) -> None:
    try:
        csv.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(csv, index=False)
    except OSError as error:
        raise StoreError(f"cannot write the table {csv}: {error.strerror}") from error


def _show(parts: Iterable[Table | str]) -> None:
    console = Console()
    for part in parts:
        console.print(part, highlight=False, markup=False)
        console.print()


def bundled(path: Path, option: str) -> Path:
    """Path of the demo's model or corpus: under the current folder, else in this clone.

    Raises:
        InputError: it is in neither; an installed package does not include it.
    """
    for root in (Path(), Path(__file__).resolve().parents[1]):
        if (root / path).exists():
            return root / path
    raise InputError(
        f"{path} is not here: run the demo in a clone of the repository, or give {option}"
    )
