"""The commands `densitrace scan` and `densitrace status`."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import NotPlannedError
from .cli import Failure, debug_option, example, load_tracer, model_options, usage

if TYPE_CHECKING:
    from .parts import Worker
    from .select import AutoStrata, Rule

# As in `nodes`, which is not imported for its torch: `--help` is to be quick.
IMPORTANCES = ("norm_l1", "norm_l2", "proximity", "cosine", "random")
LOADING = ("device", "dtype", "backend", "offload", "cuda_graphs")  # how the model is loaded
Decorated = Callable[..., Any]


class Numbers(click.ParamType):  # type: ignore[type-arg] # generic from click 8.4 on
    """A parameter of comma-separated numbers."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Parse `"0.1,1e-3"` as (0.1, 0.001)."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0.1,1e-2,1e-3", param, ctx)


def rule_options(command: Decorated) -> Decorated:
    """Add one option per rule; `chosen_rule` reads them."""
    for option in reversed(
        (
            click.option(
                "--strata", type=int, help="This many thresholds, chosen evenly in size.  [12]"
            ),
            click.option("--thresholds", type=Numbers(), help="Keep edges above these weights."),
            click.option(
                "--nucleus", type=Numbers(), help="Keep the heaviest edges up to these sums."
            ),
            click.option(
                "--top-fraction", type=Numbers(), help="Keep these fractions of a node's edges."
            ),
        )
    ):
        command = option(command)
    return command


def weighing_options(command: Decorated) -> Decorated:
    """Add `--importance` and `--attention`."""
    for option in reversed(
        (
            click.option(
                "--importance",
                type=click.Choice(IMPORTANCES),
                default="norm_l1",
                show_default=True,
                help="How an edge is weighed.",
            ),
            click.option(
                "--attention",
                type=click.Choice(("live", "frozen")),
                default="live",
                show_default=True,
                help="live: masked passes compute attention weights anew; frozen: they use the "
                "model's own.",
            ),
        )
    ):
        command = option(command)
    return command


def chosen_rule(options: dict[str, Any]) -> "Rule | AutoStrata":
    """Remove the rules' options from `options`; return the given rule, or DEFAULT_STRATA.

    Raises:
        click.UsageError: several rules, a rule's values are wrong, or --sizes without its scope.
    """
    from .select import DEFAULT_STRATA, AutoStrata, Nucleus, Size, Threshold, TopFraction

    rules: dict[str, Callable[[Any], Rule | AutoStrata]] = {
        "strata": AutoStrata,
        "thresholds": Threshold,
        "nucleus": Nucleus,
        "top_fraction": TopFraction,
        "sizes": Size,
    }
    values = {name: options.pop(name, None) for name in rules}
    given = {name: value for name, value in values.items() if value is not None}
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{names} cannot be combined: one rule selects the edges")
    if "sizes" in given and options["scope"] != "output":
        raise click.UsageError("--sizes orders the edges of one output: it needs --scope output")
    for name, value in given.items():
        with usage(f"--{name.replace('_', '-')}"):
            return rules[name](value)
    return DEFAULT_STRATA


class WorkerOf(click.ParamType):  # type: ignore[type-arg] # as above
    """A parameter `I/N`: worker I of N."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> "Worker":
        """Parse `"1/4"` as Worker(1, 4)."""
        from .parts import Worker

        if isinstance(value, Worker):
            return value
        index, _, count = str(value).partition("/")
        try:
            return Worker(int(index), int(count))
        except ValueError as error:  # InputError is one
            self.fail(f"{value!r} is not I/N with 0 <= I < N ({error})", param, ctx)


def _check_usage(
    corpus: str, engine: str, workers: int, worker: "Worker", options: Mapping[str, Any]
) -> None:
    """Raise click.UsageError or InputError for options of `scan` that do not go together."""
    from .corpus import check_alone
    from .scan import kept_stratum

    if engine == "here" and workers > 1:
        raise click.UsageError("--workers needs --engine ray; without Ray, start more processes")
    with usage("--edges"):
        kept_stratum(options["edges"], options["select"])
    check_alone(corpus, alone=engine == "here" and worker.count == 1)


# ---- commands ------------------------------------------------------------------------------------


@click.command(
    short_help="Trace every token of a corpus into a store.",
    epilog=example("scan corpus.jsonl --model MODEL --out traces.zarr"),
)
@click.argument("corpus")
@model_options
@click.option("--out", required=True, help="Folder or URL of the store.")
@rule_options
@click.option("--sizes", type=Numbers(), help="Keep these fractions of all edges (--scope output).")
@weighing_options
@click.option(
    "--scope",
    type=click.Choice(("all", "output")),
    default="all",
    show_default=True,
    help="output: every position on its own, at two passes each.",
)
@click.option(
    "--count",
    type=click.Choice(("window", "causal")),
    default="window",
    show_default=True,
    help="causal: edges outside a sliding window count in the full graph.",
)
@click.option(
    "--controls",
    type=click.Choice(("inverse", "random")),
    multiple=True,
    help="Also trace this control; may be repeated.",
)
@click.option(
    "--edges",
    type=int,
    metavar="STRATUM",
    help="Also store the edges that this stratum keeps: 0 the sparsest, -1 the densest.",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Tokens of a window, at most.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the pilot sample and of what is random.",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    help="Tokens that run together; bounds memory.  [as the store was planned; 1024]",
)
@click.option("--text-field", default="text", show_default=True, help="The field with the text.")
@click.option(
    "--label-field",
    "label_fields",
    multiple=True,
    help="Keep this field as a label; may be repeated.  [all that hold strings or whole numbers]",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(("auto", "txt", "jsonl", "parquet")),
    default="auto",
    show_default=True,
    help="Of a single file or standard input.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing store.")
@click.option("--cuda-graphs", is_flag=True, help="On a GPU, replay passes of a shape seen before.")
@click.option(
    "--worker",
    type=WorkerOf(),
    help="I/N: this is process I of N that share the scan, 0/N the first.  [torchrun's or Slurm's]",
)
@click.option(
    "--engine",
    type=click.Choice(("here", "ray")),
    default="here",
    show_default=True,
    help="ray: --workers processes of a Ray cluster.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes of --engine ray.",
)
@click.option(
    "--lease",
    "lease_seconds",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    help="Seconds without progress after which a worker's part is taken over.",
)
@click.option("--max-parts", type=click.IntRange(min=1), help="Stop after this many parts.")
@click.option(
    "--time-limit", type=click.FloatRange(min=0), help="Begin no part after this many minutes."
)
@click.option(
    "--log", "log_file", type=click.Path(path_type=Path), help="Append a JSON line per part."
)
@debug_option
def scan(
    corpus: str,
    model: str,
    out: str,
    engine: str,
    workers: int,
    worker: "Worker | None",
    max_parts: int | None,
    time_limit: float | None,
    log_file: Path | None,
    **options: Any,
) -> None:
    """Trace every token of CORPUS into a store; the same command continues one that was stopped.

    CORPUS is a .txt, .jsonl or .parquet file, a folder of them, or - for standard input. The store
    is a folder or a URL (s3://bucket/name, gs://, az://). Processes that run the same command share
    the work. SIGTERM abandons the current part and keeps those that are done.
    """
    from rich.console import Console

    from .parts import Worker
    from .progress import default_reporter
    from .run import Limits
    from .scan import scan as run
    from .scan_log import json_log
    from .signals import stop_signals
    from .summary import print_summary

    options["select"] = chosen_rule(options)
    options["label_fields"] = options["label_fields"] or None
    loading = {name: options.pop(name) for name in LOADING}
    worker = worker or Worker.of_environment()
    _check_usage(corpus, engine, workers, worker, options)
    seconds = None if time_limit is None else 60 * time_limit
    limits: dict[str, Any] = {"max_parts": max_parts, "seconds": seconds}
    options["progress"] = reporter = default_reporter()
    if engine == "ray":
        from .ray_engine import scan_with_ray, start_ray

        start_ray()  # sets signal handlers, which ours then replace
    with stop_signals() as stop, ExitStack() as logged:
        with usage("--log"):
            logged.enter_context(json_log(log_file))
        try:
            if engine == "ray":
                store = scan_with_ray(
                    {"path": model, **loading},
                    corpus,
                    out,
                    workers=workers,
                    limits=limits,
                    should_stop=stop.is_set,
                    log_file=log_file,
                    **options,
                )
            else:
                stops = Limits(should_stop=stop.is_set, **limits)
                tracer = load_tracer(model, **loading)
                store = run(tracer, corpus, out, worker=worker, limits=stops, **options)
        except NotPlannedError as error:
            if stop.is_set():
                raise
            click.echo(error)  # the time limit ended the wait: no failure, as between two parts
            return
    print_summary(store, reporter, Console())
    if stop.is_set():
        raise Failure(
            "stopped by a signal; finished parts are kept, run the same command to continue"
        )


@click.command(short_help="Show the progress of a scan.", epilog=example("status traces.zarr"))
@click.argument("store")
@click.option(
    "--repair",
    is_flag=True,
    help="Check every part; the next scan redoes those that are damaged.",
)
@click.option("--check", is_flag=True, help="Exit with status 1 unless every part is done.")
@debug_option
def status(store: str, repair: bool, check: bool) -> None:
    """Show the progress of the scan of STORE: parts done, failed, and being traced by whom."""
    from rich.console import Console

    from .storage import storage_of
    from .store import open_store_in
    from .summary import print_status

    opened = open_store_in(storage_of(store), to_write=repair)
    damaged = {}
    if repair:
        reason = opened.plan_damage()
        if reason is not None:
            raise Failure(f"the plan is damaged: {reason}; scan again with --overwrite")
        for part, reason in opened.damage():
            opened.open_again(part)
            damaged[part] = reason
    print_status(opened, damaged, Console())
    remaining = opened.n_parts - len(opened.done_parts())
    if check and remaining:
        raise Failure(f"{remaining:,} of {opened.n_parts:,} parts are not done")
