"""The study's record: JSON for programs, Markdown for readers, tables for the terminal."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from claims import CLAIMS, Finding, standing
from rich.table import Table

Record = dict[str, Any]


def findings_json(findings: Sequence[Finding]) -> list[Record]:
    """One object per finding; missing numbers are null."""
    return [
        {
            "claim": finding.claim,
            "subject": finding.subject,
            "what": finding.what,
            "main": finding.main,
            **{
                name: None if value != value else float(value)
                for name, value in finding.effect._asdict().items()
            },
            "verdict": finding.verdict,
        }
        for finding in findings
    ]


def claims_json(findings: Sequence[Finding]) -> list[Record]:
    """One object per claim, with its standing over all subjects."""
    return [
        {
            "claim": claim.name,
            "text": claim.text,
            "effect": claim.effect,
            "least": claim.least,
            "standing": standing([f for f in findings if f.claim == claim.name]),
        }
        for claim in CLAIMS.values()
    ]


def write(record: Record, out: Path) -> None:
    """Write OUT/study.json and OUT/study.md."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (out / "study.json").write_text(text + "\n", encoding="utf-8")
    (out / "study.md").write_text(page(record), encoding="utf-8")


def terminal_table(record: Record) -> Table:
    """The lines that decide the claims."""
    table = Table(title="The claims, here", show_lines=False)
    for column in ("claim", "model", "effect"):
        table.add_column(column)
    table.add_column("95% interval")
    table.add_column("verdict")
    style = {"holds": "green", "fails": "red", "undecided": "yellow"}
    for claim in record["claims"]:
        rows = [f for f in record["findings"] if f["main"] and f["claim"] == claim["claim"]]
        for number, row in enumerate(rows):
            colour = style[row["verdict"]]
            table.add_row(
                claim["text"] if number == 0 else "",
                row["subject"],
                _number(row["value"]),
                _interval(row),
                f"[{colour}]{row['verdict']}[/]",
                end_section=number == len(rows) - 1,
            )
    return table


# ---- Markdown ------------------------------------------------------------------------------------


def page(record: Record) -> str:
    """The record as Markdown."""
    sections = [_head(record), _models(record["models"]), _overview(record)]
    sections += [_claim(claim, record["findings"]) for claim in record["claims"]]
    sections += [_topology(record["topology"]), _thresholds(record)]
    return "\n".join(line for section in sections if section for line in [*section, ""])


def _head(record: Record) -> list[str]:
    machine, settings = record["machine"], record["settings"]
    return [
        f"# The papers' claims on small models, {record['date']}",
        "",
        f"`{record['command']}`",
        "",
        f"{record['corpus']['documents']} documents of `{record['corpus']['name']}`; "
        + ", ".join(f"{name} {value}" for name, value in settings.items())
        + f". {machine['processor']}, {machine['threads']} thread(s), torch {machine['torch']}, "
        f"densitrace {machine['densitrace']}.",
        "",
        f"**The rule, set before anything was measured.** {record['rule']} "
        "Intervals resample documents. Each is a 95% interval on its own; nothing is corrected for "
        "the number of lines.",
    ]


def _models(models: Sequence[Record]) -> list[str]:
    rows = [
        [
            model["name"],
            model["architecture"],
            str(model["blocks"]),
            str(model["heads"]),
            f"{model['vocabulary']:,}",
            "" if model["parameters"] is None else f"{model['parameters'] / 1e6:.1f}M",
            f"{model['tokens']:,}",
            *(
                "" if model["nats"] is None else f"{model['nats'][name]:.2f}"
                for name in ("model", "bigram", "unigram")
            ),
        ]
        for model in models
    ]
    columns = ["model", "architecture", "blocks", "heads", "vocabulary", "parameters"]
    columns += ["tokens traced", "nats a token", "bigram", "unigram"]
    return [
        "## Models",
        "",
        *_table(columns, rows),
        "",
        "Nats a token on the scanned texts, which none was trained on; models with other "
        "tokenizers have other tokens, so compare each with its own bigram and unigram.",
    ]


def _overview(record: Record) -> list[str]:
    rows = []
    for claim in record["claims"]:
        main = [f for f in record["findings"] if f["main"] and f["claim"] == claim["claim"]]
        shown = "; ".join(f"{f['subject']} {_number(f['value'])} {_interval(f)}" for f in main)
        rows.append([claim["text"], f"{claim['least']:+g}", shown, f"**{claim['standing']}**"])
    columns = ["claim", "least effect", "effect and 95% interval", "here"]
    return ["## Overview", "", *_table(columns, rows)]


def _claim(claim: Record, findings: Sequence[Record]) -> list[str]:
    rows = [
        [
            f["subject"],
            f"**{f['what']}**" if f["main"] else f["what"],
            _number(f["value"]),
            _interval(f),
            f["verdict"],
        ]
        for f in findings
        if f["claim"] == claim["claim"]
    ]
    return [
        f"## {claim['text']}",
        "",
        f"Effect: {claim['effect']}; least {claim['least']:+g}. **Here: {claim['standing']}**; "
        "the lines in bold decide, the others stand beside them.",
        "",
        *_table(["model", "what", "effect", "95% interval", "verdict"], rows),
    ]


def _topology(rows: Sequence[Record]) -> list[str]:
    shown = [
        [
            row["model"],
            f"{row['threshold']:.2g}",
            *(f"{row[name]:.3g}" for name in ("size", "tv", "lower_half", "attention")),
        ]
        for row in rows
    ]
    columns = ["model", "threshold", "size", "total variation", "in the lower half", "attention"]
    return [
        "## What traces consist of, stratum by stratum",
        "",
        "Means over documents: relative size, total variation, share of the trace's edges in the "
        "lower half of the blocks, share that is attention.",
        "",
        *_table(columns, shown),
    ]


def _thresholds(record: Record) -> list[str]:
    if not record["thresholds"]:
        return []
    eps = record["settings"]["eps"]
    chosen = [
        [
            row["model"],
            row["value"],
            str(row["documents"]),
            f"{row['threshold']:.3g}",
            f"{_plain(row['low'])} to {_plain(row['high'])}",
            f"{row['size']:.3g}",
            f"{row['error_of_all']:.3g}",
        ]
        for row in record["thresholds"]
    ]
    carried = [
        [
            row["chosen_for"],
            row["used_on"],
            f"{row['threshold']:.3g}",
            f"{row['error']:.3g}",
            f"{_plain(row['low'])} to {_plain(row['high'])}",
        ]
        for row in record["carried"]
    ]
    columns = ["model", record["label"], "documents", "threshold", "95% interval", "size"]
    return [
        "## How stable is an automatic threshold?",
        "",
        f"The threshold that TargetError({eps:g}) chooses for each model and {record['label']}, "
        "and the error that the threshold of all would have there.",
        "",
        *_table([*columns, "error at the threshold of all"], chosen),
        "",
        "The threshold chosen for one model, used on another, over all documents:",
        "",
        *_table(["chosen for", "used on", "threshold", "error", "95% interval"], carried),
    ]


def rows_json(table: pd.DataFrame) -> list[Record]:
    """Convert a frame to a list of objects; missing numbers are null."""
    rows: list[Record] = json.loads(table.to_json(orient="records", double_precision=15))
    return rows


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:+.3f}"


def _plain(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _interval(row: Record) -> str:
    return f"[{_number(row['low'])}, {_number(row['high'])}]"
