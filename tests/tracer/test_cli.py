"""The command line: what it prints, writes and returns."""

import io
import logging
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from densitrace import InputError, Nucleus, Threshold, TopFraction, Tracer, open_store, scan
from densitrace.tracer import cli


def run(*args: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli.cli, [str(arg) for arg in args], input=stdin)


def line(result: Result) -> str:
    """The one line on standard error."""
    text = result.stderr
    assert text.count("\n") == 1
    assert text.startswith("densitrace: ")
    return text


@pytest.mark.parametrize("command", ["scan", "verify", "info"])
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: densitrace {command}" in result.output
    assert "--debug" in result.output


def test_help_of_all() -> None:
    assert run().output == run("--help").output
    for command in ("scan", "verify", "info"):
        assert f"\n  {command} " in run().output
    assert "...\n" not in run().output.partition("Commands:")[2]  # no description is cut


def test_python_m() -> None:
    command = [sys.executable, "-m", "densitrace", "scan"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "densitrace: Missing argument 'CORPUS'.\n"


def test_a_terminal_that_lacks_characters(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(byte_tracer, corpus, tmp_path / "字.zarr", select=Threshold([0.1]))
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["densitrace", "status", str(tmp_path / "字.zarr")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    sys.stdout.flush()
    assert ended.value.code == 0
    assert b"?.zarr" in shown.getvalue()


def test_scan(byte_folder: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "s.zarr"
    result = run("scan", corpus, "--model", byte_folder, "--out", out, "--strata", 3)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    store = open_store(out)
    assert store.complete
    means = store.stratum_means()
    for text in (f"{store.attributes['tokens']}", f"{means['tv'][0]:.3f}", "tokens/s", "threshold"):
        assert text in result.output
    again = run("scan", corpus, "--model", byte_folder, "--out", out, "--strata", 3)
    assert again.exit_code == 0
    assert "nothing to do" in again.output


@pytest.mark.parametrize(
    ("option", "values", "rule"),
    [
        ("--thresholds", "0.1, 1e-3", Threshold([0.1, 1e-3])),
        ("--nucleus", "0.5,0.9", Nucleus([0.5, 0.9])),
        ("--top-fraction", "0.25", TopFraction([0.25])),
    ],
)
def test_rules(
    byte_folder: Path, corpus: Path, tmp_path: Path, option: str, values: str, rule: Threshold
) -> None:
    result = run("scan", corpus, "--model", byte_folder, "--out", tmp_path / "s", option, values)
    assert result.exit_code == 0, result.stderr
    assert open_store(tmp_path / "s").rule == rule


def test_options_reach_the_store(byte_folder: Path, corpus: Path, tmp_path: Path) -> None:
    flags = "--importance norm_l2 --attention frozen --count causal --controls random --seed 5"
    flags += " --context 8 --label-field lang --thresholds 0.1 --batch-tokens 16"
    result = run("scan", corpus, "--model", byte_folder, "--out", tmp_path / "s", *flags.split())
    assert result.exit_code == 0, result.stderr
    store = open_store(tmp_path / "s")
    names = ("importance", "attention", "count", "seed", "context")
    assert [store.attributes[name] for name in names] == ["norm_l2", "frozen", "causal", 5, 8]
    assert store.controls == ("random",)
    assert store.labels == ("lang",)
    assert store.tv_random.shape == store.tv.shape


@pytest.mark.parametrize("text", ['{"body": "from a pipe"}\n', "from a pipe"])
def test_standard_input(byte_folder: Path, tmp_path: Path, text: str) -> None:
    options = ("--thresholds", "0.1", "--text-field", "body")
    result = run("scan", "-", "--model", byte_folder, "--out", tmp_path / "s", *options, stdin=text)
    assert result.exit_code == 0, result.stderr
    assert open_store(tmp_path / "s").documents["text"].tolist() == ["from a pipe"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_log_that_cannot_be_written(byte_folder: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    result = run("scan", corpus, "--model", byte_folder, "--out", out, "--log", "/dev/full")
    assert result.exit_code == 0
    assert line(result) == (
        "densitrace: log '/dev/full' cannot be written: No space left on device; the scan goes on "
        "without it\n"
    )
    assert open_store(out).complete


def test_a_log_that_cannot_be_opened(byte_folder: Path, corpus: Path, tmp_path: Path) -> None:
    log = tmp_path / "nowhere" / "log"
    result = run("scan", corpus, "--model", byte_folder, "--out", tmp_path / "s", "--log", log)
    assert result.exit_code == 2
    assert f"--log: {str(log)!r} cannot be written: No such file or directory" in line(result)


def test_status_says_by_its_own_whether_parts_are_left(
    byte_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    command = ("scan", corpus, "--model", byte_folder, "--out", tmp_path / "s")
    run(*command, "--time-limit", 0)
    assert run("status", tmp_path / "s").exit_code == 0
    result = run("status", tmp_path / "s", "--check")
    assert result.exit_code == 1
    assert line(result) == "densitrace: 1 of 1 parts are not done\n"
    run(*command)
    assert run("status", tmp_path / "s", "--check").exit_code == 0


def test_a_worker_out_of_its_time_before_there_is_a_plan(
    byte_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    """As one between two parts: it has not failed, and the same command goes on."""
    command = ("scan", corpus, "--model", byte_folder, "--out", tmp_path / "s", "--worker", "1/2")
    result = run(*command, "--time-limit", 0)
    assert result.exit_code == 0, result.stderr
    assert "is not planned yet" in result.stdout
    assert run("status", tmp_path / "s", "--check").exit_code == 1


@pytest.mark.parametrize("sharing", [("--worker", "0/2"), ("--engine", "ray")])
def test_standard_input_is_not_shared(tmp_path: Path, sharing: tuple[str, str]) -> None:
    command = ("scan", "-", "--model", "m", "--out", tmp_path / "s", *sharing)
    result = run(*command, stdin="a text")
    assert result.exit_code == 2
    assert "can be read by one process alone" in line(result)


def test_verify(byte_folder: Path) -> None:
    result = run("verify", "--model", byte_folder)
    assert result.exit_code == 0
    assert "(llama): largest difference of logits" in result.output


def test_verify_tells_a_difference(byte_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Tracer.from_pretrained(byte_folder).verify()
    wrong = replace(found, max_difference=0.5)
    monkeypatch.setattr(Tracer, "verify", lambda _: wrong)
    result = run("verify", "--model", byte_folder)
    assert result.exit_code == 1
    assert "largest difference of logits 5.00e-01" in line(result)


def test_info() -> None:
    result = run("info")
    assert result.exit_code == 0
    for name in ("densitrace", "torch", "device cpu", "lane_attention", "gemma3_text", "gpt2"):
        assert name in result.output


# ---- commands of other parts ---------------------------------------------------------------------


@click.command()
def fine() -> None:
    """A command of another part."""
    click.echo("it ran")


@click.command()
@cli.debug_option
def broken() -> None:
    """A command with a mistake in it."""
    raise ZeroDivisionError("by zero\nand more")


@click.command()
@cli.debug_option
def refused() -> None:
    """A command that is asked for what cannot be."""
    raise InputError("by='author': there is no such label")


@click.command()
def interrupted() -> None:
    """A command that the user stops."""
    raise KeyboardInterrupt


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands above, as entry points."""
    group = EntryPoints(
        EntryPoint(name, f"{__name__}:{name}", cli.COMMANDS)
        for name in ("fine", "broken", "refused", "interrupted")
    )
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: group)


@pytest.mark.usefixtures("extra")
def test_commands_of_entry_points() -> None:
    assert "A command of another part." in run("--help").output
    assert run("fine").output == "it ran\n"
    assert run("verify", "--help").exit_code == 0  # one that is no entry point


@pytest.mark.usefixtures("extra")
def test_a_mistake_is_one_line_unless_asked() -> None:
    result = run("broken")
    assert result.exit_code == 1
    expected = "densitrace: unexpected ZeroDivisionError: by zero (--debug shows where)\n"
    assert line(result) == expected
    result = run("broken", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.endswith(expected)


@pytest.mark.usefixtures("extra")
def test_what_cannot_be_asked_is_wrong_usage() -> None:
    result = run("refused")
    assert result.exit_code == 2
    assert line(result) == "densitrace: by='author': there is no such label\n"
    assert "Traceback" in run("refused", "--debug").stderr


@pytest.mark.usefixtures("extra")
def test_interrupt() -> None:
    result = run("interrupted")
    assert result.exit_code == 130
    assert "what was finished is kept" in line(result)


# ---- progress ------------------------------------------------------------------------------------


def test_a_log_file_leaves_the_logger_as_it_was(tmp_path: Path) -> None:
    from densitrace.tracer.scan_log import json_log

    logger = logging.getLogger("densitrace")
    before = (list(logger.handlers), logger.level)
    with json_log(tmp_path / "log"):
        assert (len(logger.handlers), logger.level) == (len(before[0]) + 1, logging.INFO)
    assert (list(logger.handlers), logger.level) == before


def test_a_bar_on_a_terminal_and_nothing_elsewhere() -> None:
    from densitrace.tracer.progress import Bar, Meter, default_reporter

    stream = io.StringIO()
    bar = Bar(Console(file=stream, force_terminal=True, width=100))
    bar.begin("reading", None)
    bar.advance(7)
    bar.end()
    bar.begin("tracing", 100, done=40)
    assert [task.description for task in bar._progress.tasks] == ["tracing"]
    bar.advance(10)
    assert (bar.tokens, bar.seconds) == (10, 0.0)
    bar.parts(1, 4, failed=0, tokens=30)  # another part is under way
    assert bar._progress.tasks[0].completed == 50
    bar.parts(3, 4, failed=1, tokens=80)  # others are, too
    assert bar._progress.tasks[0].completed == 80
    assert bar._progress.tasks[0].fields["parts"] == "3/4 parts, 1 failed"
    bar.end()
    assert bar.seconds > 0
    assert "tracing" in stream.getvalue()
    assert "80%" in stream.getvalue()
    assert type(default_reporter()) is Meter  # a test's standard error is no terminal


def test_a_meter_measures_one_phase(corpus: Path, byte_tracer: Tracer, tmp_path: Path) -> None:
    from densitrace import scan
    from densitrace.tracer.progress import Meter

    meter = Meter()
    store = scan(byte_tracer, corpus, tmp_path / "s", select=Threshold([0.1]), progress=meter)
    assert meter.tokens == np.count_nonzero(store.token[:] >= 0)
    assert meter.seconds > 0
