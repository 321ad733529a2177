"""Which tile sizes, warps and pipeline stages suit the GPU that is here?

    python benches/tune_gpu.py                    # every entry that a problem below reaches
    python benches/tune_gpu.py --op edge_levels --width 128

A hill climb for each entry of kernels/triton/configs: it moves to the best neighbour until none is
better, on the cases of benches/measuring/op_cases.py that use the entry. A neighbour has one
argument halved or doubled, a tile and its warps halved or doubled together, or one pipeline stage
more or less. Before it is timed, in alternation with the current configuration, it must compile,
fit, not spill registers and agree with the current results. Improvements are written to the file of
the GPU's compute capability; without any, no file is touched.
"""

import gc
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from triton.errors import TritonError
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from device_models import device_work, llama_1b, llama_8b, random_model
from device_timing import measure_on
from op_cases import Case, cases, first_blocks, of_kinds
from problems import attention_problem_of, prediction_problem_of
from timing import Quartiles, Run

from densitrace.kernels import dispatch, triton
from densitrace.kernels.triton import configs
from densitrace.kernels.triton.configs import Config, Key, Table

MARGIN = 0.03  # smallest gain of a median that counts, if the rounds agree better than that
STRAY = 1e-3  # share of a result's numbers: rankings and cuts jump at near ties
MISCOUNTED = 1e-5  # share of a result's sum of integers; a missed or repeated tile is far more

# Bounds of each argument; arguments not named here are tile sizes. Products need 16 rows.
BOUNDS = {
    "num_warps": (1, 16), "num_stages": (1, 5), "LANES": (1, 8), "BITS": (4, 9), "BE": (256, 4096),
}  # fmt: skip
TILE_BOUNDS = (16, 512)
COUNTED_UP = ("num_stages", "BITS")  # by one; all others are doubled


def neighbours(config: Config) -> Iterator[Config]:
    """Configurations one step away, in a fixed order."""
    for name, value in config.items():
        less, more = (value - 1, value + 1) if name in COUNTED_UP else (value // 2, value * 2)
        changes = [{name: less}, {name: more}]
        if name not in BOUNDS:  # a tile: together with its warps, the work of a warp stays the same
            warps = config["num_warps"]
            changes += [{name: less, "num_warps": warps // 2}, {name: more, "num_warps": warps * 2}]
        for change in changes:
            if all(within(*argument) for argument in change.items()):
                yield config | change


def within(name: str, value: int) -> bool:
    """Whether an argument may have a value."""
    least, most = BOUNDS.get(name, TILE_BOUNDS)
    return least <= value <= most


# ---- correctness before speed ----------------------------------------------------------------


def tensors_of(result: object) -> list[Tensor]:
    """All tensors of a result in order, also inside dataclasses and sequences."""
    if isinstance(result, Tensor):
        return [result]
    parts: list[object] = []
    if is_dataclass(result):
        parts = [getattr(result, entry.name) for entry in fields(result)]
    elif isinstance(result, list | tuple):
        parts = list(result)
    return [tensor for part in parts for tensor in tensors_of(part)]


def agree(expected: Tensor, actual: Tensor, ratio: float) -> bool:
    """Whether two results are equal up to the order of sums and its effect on near ties.

    Args:
        ratio: largest difference of a float, relative to the largest entry.
    """
    if not expected.is_floating_point():
        wrong = (expected.long() - actual.long()).abs().sum()
        return bool(wrong <= MISCOUNTED * expected.long().abs().sum())
    finite = expected.isfinite()
    if not torch.equal(finite, actual.isfinite()):
        return False
    largest = expected.where(finite, 0).abs().amax() if expected.numel() else 0
    off = (expected - actual).abs() > ratio * largest
    return bool((off & finite).sum() <= STRAY * off.numel())


@contextmanager
def launches() -> Iterator[list[Any]]:
    """The compiled kernels launched while the context is open."""
    launched: list[Any] = []
    run = JITFunction.run

    def noted(self: JITFunction, *args: Any, **kwargs: Any) -> Any:
        launched.append(run(self, *args, **kwargs))
        return launched[-1]

    JITFunction.run = noted
    try:
        yield launched
    finally:
        JITFunction.run = run


# ---- an entry on trial -----------------------------------------------------------------------


@dataclass
class Pins:
    """Configurations used while tuning: those found so far, else the pinned ones."""

    known: dict[Key, Config] = field(default_factory=dict)
    asked: set[Key] = field(default_factory=set)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Make kernels look up these configurations while the context is open."""
        pinned = configs.entry

        def entry(key: Key, table: str) -> Config:
            self.asked.add(key)
            if key not in self.known:
                self.known[key] = pinned(key, table)
            return dict(self.known[key])

        configs.entry = entry
        try:
            yield
        finally:
            configs.entry = pinned

    def keys_of(self, run: Run) -> set[Key]:
        """The entries that a run looks up."""
        self.asked.clear()
        run()
        return set(self.asked)


@dataclass
class Trial:
    """One entry, and the runs that judge it."""

    device: torch.device
    pins: Pins
    key: Key
    runs: list[Run]

    def under(self, config: Config) -> list[Tensor]:
        """Results of the runs under a configuration."""
        self.pins.known[self.key] = config
        return [tensor for run in self.runs for tensor in tensors_of(run())]

    def fault(self, config: Config, expected: list[Tensor]) -> str | None:
        """Why a configuration is unusable, or None."""
        try:
            with launches() as launched:
                results = self.under(config)
        except torch.AcceleratorError:  # this process cannot use the device any more
            raise
        except (TritonError, RuntimeError) as error:  # compiler passes raise the latter
            return f"does not run: {type(error).__name__}"
        if max(kernel.n_spills for kernel in launched):
            return "spills"
        ratio = 2.0**-8 if self.key.bits == "16-bit" else 2e-5  # the tolerances of the ops' tests
        same = all(agree(*pair, ratio) for pair in zip(expected, results, strict=True))
        return None if same else "wrong"

    def over(self, config: Config, present: Config) -> Quartiles:
        """A configuration's time over the present one's, round by round."""
        runs = {
            name: partial(self.under, candidate)
            for name, candidate in (("", config), ("p", present))
        }
        return measure_on(self.device, runs[""], {"p": runs["p"]}, launched=True).over("p")


def better(ratio: Quartiles) -> bool:
    """Whether the median gains more than the spread of the rounds."""
    return 1 - ratio.median > max(MARGIN, ratio.q3 - ratio.q1)


def climb(trial: Trial, start: Config, say: Callable[[str], None]) -> Config:
    """Climb from a configuration to one without a better neighbour."""
    present, seen = start, [start]
    expected = trial.under(start)
    while True:
        best: tuple[float, Config] | None = None
        for config in neighbours(present):
            if config in seen:
                continue
            seen.append(config)
            fault = trial.fault(config, expected)
            if fault is None:
                ratio = trial.over(config, present)
                if better(ratio) and (best is None or ratio.median < best[0]):
                    best = ratio.median, config
            say(f"  {json.dumps(config)}: {fault or f'x {ratio.median:.3f}'}")
        # The best of many was also lucky: it must win a second time.
        if best is None or not better(trial.over(best[1], present)):
            trial.pins.known[trial.key] = present
            return present
        present = best[1]


# ---- the file --------------------------------------------------------------------------------


def text(table: Table) -> str:
    """A table as JSON with one line per entry: ops and bits by name, widths by size."""
    ops = []
    for op in sorted(table):
        kinds = []
        for bits in sorted(table[op]):
            entries = sorted(table[op][bits].items(), key=lambda entry: int(entry[0]))
            lines = [f'      "{width}": {json.dumps(config)}' for width, config in entries]
            kinds.append(f'    "{bits}": {{\n' + ",\n".join(lines) + "\n    }")
        ops.append(f'  "{op}": {{\n' + ",\n".join(kinds) + "\n  }")
    return "{\n" + ",\n".join(ops) + "\n}\n"


def write(path: Path, key: Key, config: Config) -> None:
    """Write an entry to a file atomically, creating the file if needed."""
    table = configs.read(path) if path.is_file() else {}
    table.setdefault(key.op, {}).setdefault(key.bits, {})[key.width] = config
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text(table), encoding="utf-8")
    temporary.replace(path)


def tune(
    device: torch.device,
    runs: Mapping[str, Run],
    pins: Pins,
    done: set[Key],
    wanted: Callable[[Key], bool],
    path: Path,
    say: Callable[[str], None],
) -> None:
    """Tune the entries that the runs look up, except those `done`; write each when it is found."""
    with pins.in_place():
        using = {name: pins.keys_of(run) for name, run in runs.items()}
        for key in sorted(set().union(*using.values()) - done):
            done.add(key)
            if not wanted(key):
                continue
            names = [name for name, keys in using.items() if key in keys]
            start = pins.known[key]
            say(f"{' '.join(key)}, by {'; '.join(names)}: {json.dumps(start)}")
            best = climb(Trial(device, pins, key, [runs[name] for name in names]), start, say)
            if best != start:
                write(path, key, best)
                say(f"  wrote {json.dumps(best)}")


# ---- on the GPU ------------------------------------------------------------------------------


def wide(width: int) -> Any:
    """Llama-3.1-8B with fewer heads, each wider."""
    config = llama_8b()
    config.head_dim, config.num_attention_heads = width, 4096 // width
    config.num_key_value_heads = 1024 // width
    return config


MODELS: Mapping[int, Callable[[], Any]] = {
    64: llama_1b, 128: llama_8b, 256: partial(wide, 256), 512: partial(wide, 512)
}  # fmt: skip
LENGTHS = {12: 2048, 64: 512, 255: 512}  # tokens by strata: lanes hold all queries


def problems(width: int, device: torch.device) -> Iterator[dict[str, Case]]:
    """The cases of a head width, in each dtype and number of strata."""
    for dtype in (torch.bfloat16, torch.float32):
        model = random_model(first_blocks(MODELS[width]()), device, dtype)
        for strata, length in LENGTHS.items():
            work = device_work(model, length, strata, rows=1)
            with torch.inference_mode():
                attention = attention_problem_of(work)
                group = cases(attention, prediction_problem_of(work)) | of_kinds(attention)
            yield {f"{name} ({length} tokens, {strata} strata)": group[name] for name in group}
            del work, attention, group
            gc.collect()
            torch.cuda.empty_cache()


def served(group: Mapping[str, Case]) -> dict[str, Run]:
    """The cases that Triton has kernels for, run on these kernels whatever `auto` would choose."""
    return {
        name: replace(case, options=case.options | {"backend": "triton"}).run
        for name, case in group.items()
        if dispatch.has(triton, case.op, case.edges)
    }


@click.command()
@click.option("--op", "ops", multiple=True, help="entries of this op alone; repeatable")
@click.option(
    "--width", "widths", multiple=True, type=click.Choice([str(width) for width in MODELS]),
    default=[str(width) for width in MODELS], help="of the heads of the problems; repeatable",
)  # fmt: skip
def main(ops: tuple[str, ...], widths: tuple[str, ...]) -> None:
    """Tune the entries for the GPU that is here, and write those that got better."""
    if not torch.cuda.is_available():
        raise click.ClickException("no GPU that torch can use: nothing was tuned")
    listed = configs.all_keys()
    unknown = set(ops) - {key.op for key in listed}
    if unknown:
        raise click.BadParameter(f"no entries of {', '.join(sorted(unknown))}", param_hint="--op")
    device = torch.device("cuda", torch.cuda.current_device())
    path = configs.FOLDER / f"{configs.capability(device)}.json"
    pins, done = Pins(), set[Key]()
    for width in widths:
        for group in problems(int(width), device):
            runs = served(group)
            tune(device, runs, pins, done, lambda key: not ops or key.op in ops, path, click.echo)
    for key in listed:
        if key not in done and (not ops or key.op in ops):
            click.echo(f"{' '.join(key)}: no problem looks it up; left as it is")


if __name__ == "__main__":
    main()
