"""The command line: the group, options shared by its commands, `verify` and `info`.

`scan_cli.py` and other parts add commands through the entry-point group `densitrace.commands`.
Every failure prints one line on standard error; `--debug` prints the traceback before it.
"""

import io
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import click

from ..errors import DensitraceError, InputError, first_line

if TYPE_CHECKING:
    from .tracer import Tracer

COMMANDS = "densitrace.commands"  # entry points: name -> a click command


class Failure(click.ClickException):
    """A command failed; the message is one line."""

    exit_code = 1


class Interrupted(Failure):
    """Stopped by the user."""

    exit_code = 130


class Commands(click.Group):
    """A group of its own commands and those of entry points; reports every failure in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, sorted."""
        return sorted({*super().list_commands(ctx), *self._entry_points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command of this group, or load one from its entry point."""
        own = super().get_command(ctx, cmd_name)
        entry = self._entry_points().get(cmd_name)
        if own is not None or entry is None:
            return own
        loaded = entry.load()
        assert isinstance(loaded, click.Command)  # the contract of the entry-point group
        return loaded

    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        return {entry.name: entry for entry in metadata.entry_points(group=COMMANDS)}

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, turning what it raises into a usage error or a `Failure`."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted; what was finished is kept") from error
        except Exception as error:  # the outermost frame: a user gets one line, never a traceback
            if ctx.meta.get("debug"):
                traceback.print_exc()
            if isinstance(error, InputError):
                raise click.UsageError(str(error)) from error
            raise Failure(_describe(error)) from error

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command and exit; usage errors are printed as one line, too."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.ClickException as error:
            line = " ".join(error.format_message().split())
            click.echo(f"densitrace: {line}", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("densitrace: interrupted", err=True)
            sys.exit(Interrupted.exit_code)
        sys.exit(code if isinstance(code, int) else 0)


def _describe(error: Exception) -> str:
    """Describe an exception in one line, for the user."""
    if isinstance(error, DensitraceError):
        return str(error)
    if isinstance(error, OSError):
        file = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{file}"
    first = first_line(error)
    if "out of memory" in first.lower() or isinstance(error, MemoryError):
        return "out of memory; try a smaller --batch-tokens or --context"
    return f"unexpected {type(error).__name__}: {first} (--debug shows where)"


@contextmanager
def usage(option: str) -> Iterator[None]:
    """Turn an InputError into a usage error (exit status 2) that names the option."""
    try:
        yield
    except InputError as error:
        raise click.UsageError(f"{option}: {error}") from error


def example(line: str) -> str:
    """Return the epilog of a command's help: an example call."""
    return f"Example: densitrace {line}"


@click.group(
    cls=Commands,
    invoke_without_command=True,
    epilog=example("scan corpus.jsonl --model MODEL --out traces.zarr"),
)
@click.version_option(package_name="densitrace")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Which tokens does a language model compute densely, and which sparsely?"""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the `densitrace` command (its entry point)."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # text of a corpus, on a terminal that lacks it
        sys.stdout.reconfigure(errors="replace")
    cli(prog_name="densitrace")


# ---- options that commands share -----------------------------------------------------------------

Decorated = Callable[..., Any]


def debug_option(command: Decorated) -> Decorated:
    """Add `--debug`: print the traceback of a failure."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta["debug"] = value

    return click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Show the traceback of a failure.",
    )(command)


def model_options(command: Decorated) -> Decorated:
    """Add `--model`, `--device`, `--dtype`, `--backend` and `--offload`."""
    for option in reversed(
        (
            click.option("--model", required=True, help="Folder or hub id of the model."),
            click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1."),
            click.option("--dtype", default="auto", show_default=True, help="auto: as stored."),
            click.option(
                "--backend", default="auto", show_default=True, help="Of the ops; see info."
            ),
            click.option(
                "--offload",
                type=click.Choice(("layers",)),
                help="Models larger than memory: read each block from its files when it runs.",
            ),
        )
    ):
        command = option(command)
    return command


def load_tracer(model: str, device: str, dtype: str, backend: str, **options: Any) -> "Tracer":
    """Load the tracer that these options name."""
    from transformers.utils import logging

    from .tracer import Tracer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return Tracer.from_pretrained(model, device=device, dtype=dtype, backend=backend, **options)


# ---- commands ------------------------------------------------------------------------------------


@cli.command(
    short_help="Check the lane loop against the model's own logits.",
    epilog=example("verify --model path/to/model"),
)
@model_options
@debug_option
def verify(
    model: str, device: str, dtype: str, backend: str, offload: Literal["layers"] | None
) -> None:
    """Check that the lane loop with every edge kept gives the model's own logits."""
    tracer = load_tracer(model, device, dtype, backend, offload=offload)
    result = tracer.verify()
    line = (
        f"{tracer.model_id} ({tracer.architecture}): largest difference of logits "
        f"{result.max_difference:.2e} of the largest logit, tolerance {result.tolerance:.2e}; "
        f"rounding errors of the embeddings change the model's own by {result.rounding:.2e}"
    )
    if not result.ok:
        raise Failure(line)
    click.echo(line)


@cli.command(
    short_help="Show versions, devices, backends and architectures.", epilog=example("info")
)
@debug_option
def info() -> None:
    """Show versions, devices, which backend serves each op, and the declared architectures."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from ..kernels import backends
    from ..kernels.dispatch import missing
    from .models import ARCHITECTURES
    from .stored_plan import versions

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, version in versions().items():
        table.add_row(name, version)
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices:
        gpu = torch.cuda.get_device_name(device) if device != "cpu" else ""
        threads = f"threads: {torch.get_num_threads()}" if device == "cpu" else gpu
        table.add_row(f"device {device}", threads)
        for op, backend in backends(device).items():
            table.add_row(f"  {op}", backend)
    table.add_row("architectures", ", ".join(sorted(ARCHITECTURES)))
    Console().print(table)
    if reason := missing("cpu"):
        click.echo(reason)


if __name__ == "__main__":
    main()
