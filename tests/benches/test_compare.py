"""Comparing two records of the ledger: which rows moved, which did not, and unreadable records."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

BENCHES = Path(__file__).resolve().parents[2] / "benches"
Quartiles = tuple[float, float, float]


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHES)
    monkeypatch.setenv("COLUMNS", "120")
    return importlib.import_module("compare")


def write(
    path: Path, rows: dict[str, Quartiles | None], day: int = 1, threads: int = 2, to: str = "SDPA"
) -> Path:
    """Write a record with rows of the given ratios; None for a row without one."""
    benchmarks: list[dict[str, Any]] = []
    for name, ratio in rows.items():
        noted: dict[str, Any] = {"tokens/s": 7}
        if ratio is not None:
            noted["ratio"] = {"to": to, **dict(zip(("q1", "median", "q3"), ratio, strict=True))}
        benchmarks.append({"fullname": f"benches/test_a.py::{name}", "extra_info": noted})
    record = {
        "machine_info": {"processor": "Abacus", "threads": threads},
        "datetime": f"2026-11-{day:02}T10:00:00+00:00",
        "benchmarks": benchmarks,
    }
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def run(compare: ModuleType, *paths: Path) -> Result:
    return CliRunner().invoke(compare.main, [str(path) for path in paths])


def movements_of(compare: ModuleType, old: Path, new: Path) -> list[tuple[str, bool]]:
    """Rows in order of their change, and whether they moved."""
    rows = compare.movements(compare.read(old), compare.read(new))
    return [(row.name.removeprefix("test_a.py::"), row.moved) for row in rows]


def test_rows_move_up_and_down_and_stay(compare: ModuleType, tmp_path: Path) -> None:
    old = write(
        tmp_path / "old.json",
        {"up": (1.9, 2, 2.1), "down": (7.9, 8, 8.1), "noisy": (2, 3, 4), "still": (5, 5, 5)},
    )
    new = write(
        tmp_path / "new.json",
        {"up": (2.9, 3, 3.1), "down": (1.9, 2, 2.1), "noisy": (3, 4, 5), "still": (5, 5.1, 5.2)},
    )
    assert movements_of(compare, old, new) == [
        ("down", True), ("up", True), ("noisy", False), ("still", False),
    ]  # fmt: skip
    shown = run(compare, old, new)
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert lines[0] == "old: old.json, new: new.json"
    assert lines[2].split()[:1] == ["test_a.py::down"] and "down -75%" in lines[2]
    assert lines[3].split()[:1] == ["test_a.py::up"] and "up +50%" in lines[3]
    assert lines[4] == "2 of 4 rows moved, the others within noise"


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        ((1, 1, 1), (1.02, 1.02, 1.02), False),  # below the floor, though neither has any spread
        ((1, 1, 1), (1.04, 1.04, 1.04), True),
        ((0.95, 1, 1.05), (1.1, 1.15, 1.2), False),  # within the sum of the spreads: 0.14 < 0.19
        ((0.95, 1, 1.05), (1.2, 1.25, 1.3), True),  # 0.22 > 0.18
        ((1.2, 1.25, 1.3), (0.95, 1, 1.05), True),  # the same the other way round
    ],
)
def test_noise_is_both_spreads_or_the_floor(
    compare: ModuleType, tmp_path: Path, old: Quartiles, new: Quartiles, moved: bool
) -> None:
    records = [
        write(tmp_path / f"{name}.json", {"row": ratio})
        for name, ratio in {"old": old, "new": new}.items()
    ]
    assert movements_of(compare, records[0], records[1]) == [("row", moved)]


def test_rows_without_counterpart_are_named(compare: ModuleType, tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", {"both": (1, 1, 1), "gone[8]": (1, 1, 1), "bare": None})
    new = write(tmp_path / "new.json", {"both": (1, 1, 1), "added[9]": (1, 1, 1)})
    shown = run(compare, old, new)
    assert shown.exit_code == 0
    assert shown.output.splitlines()[1:] == [
        "0 of 1 rows moved, the others within noise",
        "only in the old one: test_a.py::gone[8] (x SDPA)",
        "without a ratio in the old one: 1 rows",
        "only in the new one: test_a.py::added[9] (x SDPA)",
    ]


def test_ratios_to_other_baselines_are_other_rows(compare: ModuleType, tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", {"row": (1, 1, 1)})
    new = write(tmp_path / "new.json", {"row": (9, 9, 9)}, to="plain forward")
    assert movements_of(compare, old, new) == []


def test_the_newest_record_is_compared_with_the_previous_of_its_machine(
    compare: ModuleType, tmp_path: Path
) -> None:
    rows: dict[str, Quartiles | None] = {"row": (1, 1, 1)}
    write(tmp_path / "z.json", rows, day=1)
    write(tmp_path / "a.json", rows, day=2)
    write(tmp_path / "m.json", rows, day=3, threads=64)
    write(tmp_path / "b.json", rows, day=4)
    (tmp_path / "other.json").write_text('{"strata": []}', encoding="utf-8")
    old, new = compare.latest(tmp_path)
    assert (old.path.name, new.path.name) == ("a.json", "b.json")


def test_the_first_record_of_a_machine_has_nothing_before_it(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    assert _only_line(run(compare)).endswith("no record; `make bench` writes one")
    write(tmp_path / "a.json", {}, day=1, threads=4)
    write(tmp_path / "b.json", {}, day=2)
    assert "no earlier record of this machine" in _only_line(run(compare))


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"benchmarks": []}'])
def test_unreadable_records_are_reported_in_one_line(
    compare: ModuleType, tmp_path: Path, content: str | None
) -> None:
    good = write(tmp_path / "good.json", {"row": (1, 1, 1)})
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content, encoding="utf-8")
    assert "bad.json" in _only_line(run(compare, good, bad))


def test_a_zero_ratio_is_refused(compare: ModuleType, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.json", {"row": (0, 0, 0)})
    assert "is no ratio" in _only_line(run(compare, bad, bad))


@pytest.mark.parametrize("number", [1, 3])
def test_records_that_are_not_two_are_refused(
    number: int, compare: ModuleType, tmp_path: Path
) -> None:
    good = write(tmp_path / "good.json", {"row": (1, 1, 1)})
    assert f"{number} record given" in _only_line(run(compare, *[good] * number))


def _only_line(result: Result) -> str:
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    return line


def test_the_committed_records_can_be_read(compare: ModuleType) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in compare.RESULTS.glob("*.json")}
    records = [path for path, text in texts.items() if '"benchmarks"' in text]
    assert records
    for path in records:
        assert compare.read(path).machine[1] > 0
