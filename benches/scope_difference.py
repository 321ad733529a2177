"""How much do errors differ between `scope="all"` and `scope="output"` under live attention?

    python benches/scope_difference.py --outputs 120 --out benches/results/scopes

Sizes are equal, and so are frozen errors (tests/tracer/test_scopes.py). With live attention, tokens
outside an output's trace present different keys to the softmax in the two scopes. This measures the
effect on the bundled model, stratum by stratum.
"""

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import track
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from ledger import table, write_record

from densitrace import AutoStrata, Trace, Tracer

ROOT = Path(__file__).parents[1]


def outputs(tracer: Tracer, wanted: int, seed: int) -> list[list[int]]:
    """Windows that end at a random token of a random passage, 16 to 128 tokens long."""
    generator = np.random.default_rng(seed)
    lines = (ROOT / "examples/corpus/scan.jsonl").read_text(encoding="utf-8").splitlines()
    passages = [tracer.encode(json.loads(line)["text"])[:128] for line in lines]
    passages = [passage for passage in passages if len(passage) > 16]
    chosen = generator.choice(len(passages), wanted)
    return [passages[i][: int(generator.integers(16, len(passages[i])))] for i in chosen]


def curves(tracer: Tracer, windows: list[list[int]], strata: int) -> dict[str, Any]:
    """Errors of each window's last token in both scopes: tv [outputs, K], auc [outputs]."""
    rule = tracer.choose_strata(AutoStrata(strata), windows)
    results: dict[str, list[Any]] = {"all": [], "output": [], "auc_all": [], "auc_output": []}
    for window in track(windows, description="outputs"):
        for scope in ("all", "output"):
            trace = tracer.trace(window, select=rule, scope=scope)
            assert isinstance(trace, Trace)
            results[scope].append(trace.errors["tv"][-1])
            results[f"auc_{scope}"].append(trace.auc_tv[-1])
            size = trace.size[-1]
        results.setdefault("size", []).append(size)
    return {"rule": rule.values, **{name: np.array(values) for name, values in results.items()}}


@click.command()
@click.option("--outputs", "wanted", default=120, show_default=True)
@click.option("--strata", default=14, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def main(wanted: int, strata: int, seed: int, out: Path) -> None:
    """Measure, and write OUT.json and OUT.md."""
    tracer = Tracer.from_pretrained(ROOT / "examples/model", device="cpu")
    results = curves(tracer, outputs(tracer, wanted, seed), strata)
    difference = results["all"] - results["output"]
    rank = float(spearmanr(results["auc_all"], results["auc_output"]).statistic)
    columns = {
        "threshold": results["rule"],
        "mean size": results["size"].mean(0).tolist(),
        "mean TV, all": results["all"].mean(0).tolist(),
        "mean TV, output": results["output"].mean(0).tolist(),
        "mean absolute difference": np.abs(difference).mean(0).tolist(),
        "largest": np.abs(difference).max(0).tolist(),
    }
    command = f"python benches/scope_difference.py --outputs {wanted} --strata {strata}"
    record = {
        "date": str(date.today()),
        "command": command,
        "outputs": wanted,
        "spearman of auc_tv": rank,
        "strata": columns,
    }
    rows = ([f"{value:.3g}" for value in row] for row in zip(*columns.values(), strict=True))
    page = [
        f"# Errors in the two scopes, live attention, {date.today()}",
        "",
        f"`{command}`, bundled model, {wanted} outputs. "
        f"Rank correlation (Spearman) of auc_tv: {rank:.3f}.",
        "",
        *table(columns, rows),
    ]
    write_record(out, record, "\n".join(page) + "\n")


if __name__ == "__main__":
    main()
