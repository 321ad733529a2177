"""`densitrace demo` and `densitrace report`, run for real on a few documents."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result
from rich.console import Console

from densitrace import (
    DensityEstimator,
    InputError,
    StoreError,
    Threshold,
    Trace,
    Tracer,
    open_store,
    scan,
)
from densitrace.estimator.cli import bundled, demo, report
from densitrace.estimator.report import render_report
from densitrace.tracer import layout
from densitrace.tracer.curve import auc_tv, density_at
from densitrace.tracer.progress import Meter
from densitrace.tracer.run import Limits
from densitrace.tracer.summary import print_summary

MODEL = Path(__file__).parents[2] / "examples" / "model"


def invoke(command: Any, *arguments: object) -> Result:
    """Run a command; what it raises is left to the test, as the console group leaves it to one."""
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


def test_the_demo_leaves_a_complete_store_and_a_page(demo_run: Any) -> None:
    store = open_store(demo_run.folder / "traces.zarr")
    assert store.complete and store.recipe.context == 256
    assert len(store.rule.values) == 12
    texts = [json.loads(line)["text"] for line in demo_run.corpus.read_text().splitlines()]
    assert store.documents["text"].tolist() == texts
    page = (demo_run.folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    for document in store.documents["id"]:
        assert document in page


def test_the_demo_prints_densities_by_label_and_tokens_in_context(demo_run: Any) -> None:
    result = DensityEstimator.from_store(demo_run.folder / "traces.zarr")
    for title in ("Density by domain", "Density by lang", "Densest tokens", "Sparsest tokens"):
        assert title in demo_run.output
    for value, row in result.summary("domain").iterrows():
        line = re.search(rf"^{value} .*$", demo_run.output, re.MULTILINE)
        assert line is not None and f"{row['auc_tv']:.3f}" in line[0]
    for name in ("traces.zarr", "report.html"):
        assert str(demo_run.folder / name) in demo_run.output
    tables = demo_run.output.split("store:")[0]
    assert max(map(len, tables.splitlines())) <= 80


def test_token_rows_equal_the_store_read_token_by_token(demo_run: Any) -> None:
    store = open_store(demo_run.folder / "traces.zarr")
    result = DensityEstimator.from_store(store)
    assert DensityEstimator.from_store(store, 0.2).density == "density@0.2"
    arrays = {
        name: np.asarray(store.array(name)[:])
        for name in ("token", "document", "position", "char_start", "full_edge_count", "size", "tv")
    }
    rows = iter(result.tokens.itertuples(index=False, name=None))
    columns = list(result.tokens.columns)
    for window, ids in enumerate(arrays["token"]):
        for column, token in enumerate(ids):
            if token < 0:
                continue
            row = dict(zip(columns, next(rows), strict=True))
            full = int(arrays["full_edge_count"][window, column])
            size = arrays["size"][window, column].astype(np.float64)
            tv = arrays["tv"][window, column]
            assert row["token"] == token and row["context"] == column + 1
            assert row["document"] == arrays["document"][window]
            assert row["char_start"] == arrays["char_start"][window, column]
            assert row["density@0.1"] == pytest.approx(float(density_at(size, tv, 0.1, full)))
            assert row["auc_tv"] == pytest.approx(float(auc_tv(size, tv, full)))
            assert row["edges"] == pytest.approx(row["density@0.1"] * full)
            assert row["edges_per_token"] == pytest.approx(row["edges"] / (column + 1))
    assert next(rows, None) is None
    dense = result.tokens["regime"] == "dense"
    assert (result.tokens.loc[dense, "density@0.1"] > result.tokens["density@0.1"].median()).all()
    assert abs(dense.mean() - 0.5) < 0.05


def test_stratum_quartiles_equal_numpy(demo_run: Any) -> None:
    store = open_store(demo_run.folder / "traces.zarr")
    strata = DensityEstimator.from_store(store).strata
    scored = np.asarray(store.array("token")[:]) >= 0
    for name in ("size", "tv"):
        values = np.asarray(store.array(name)[:])[scored].astype(np.float64)
        for q in (25, 50, 75):
            np.testing.assert_allclose(strata[f"{name}_q{q}"], np.percentile(values, q, axis=0))


def test_a_second_demo_finds_the_store_complete_and_writes_the_same_page(demo_run: Any) -> None:
    page, store = demo_run.folder / "report.html", demo_run.folder / "traces.zarr"
    before, stamps = page.read_text(), [f.stat().st_mtime_ns for f in sorted(store.rglob("*"))]
    again = invoke(demo, "--corpus", demo_run.corpus, "--out", demo_run.folder)
    assert again.stdout == demo_run.output
    assert page.read_text() == before
    assert [f.stat().st_mtime_ns for f in sorted(store.rglob("*"))] == stamps


def test_a_demo_over_another_scan_refuses_and_changes_nothing(
    demo_run: Any, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "Something else."}\n')
    page = (demo_run.folder / "report.html").read_text()
    with pytest.raises(StoreError, match=r"corpus is .* there, .* here"):
        invoke(demo, "--corpus", other, "--out", demo_run.folder)
    assert (demo_run.folder / "report.html").read_text() == page


def test_report_writes_the_page_that_is_asked_for(demo_run: Any, tmp_path: Path) -> None:
    page = tmp_path / "folder" / "page.html"
    store = demo_run.folder / "traces.zarr"
    options = ("--by", "source", "--eps", "0.2", "--title", "Five documents")
    result = invoke(report, store, "--out", page, *options)
    assert result.exit_code == 0 and str(page) in result.output
    text = page.read_text(encoding="utf-8")
    for expected in ("<h1>Five documents</h1>", "Density by source", "density@0.2"):
        assert expected in text
    assert "Density by domain" not in text


def test_report_refuses_what_it_cannot_do(demo_run: Any, tmp_path: Path) -> None:
    store = demo_run.folder / "traces.zarr"
    page = tmp_path / "page.html"
    with pytest.raises(StoreError, match="does not exist"):
        invoke(report, tmp_path / "nothing.zarr", "--out", page)
    with pytest.raises(InputError, match="by='author': the labels are domain, lang, source"):
        invoke(report, store, "--out", page, "--by", "author")
    refused = invoke(report, store, "--out", page, "--eps", "-1")
    assert refused.exit_code == 2
    assert "'--eps': -1.0 is not in the range 0<=x<=1" in refused.stderr
    assert not page.exists()


def test_demo_data_that_is_not_there_is_told_in_one_line() -> None:
    with pytest.raises(InputError, match=r"run the demo in a clone .* or give --corpus") as caught:
        bundled(Path("examples/nowhere.jsonl"), "--corpus")
    assert "\n" not in str(caught.value)


def test_demo_data_of_the_current_folder_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (bundled(Path("examples/model"), "--model") / "config.json").exists()
    (tmp_path / "examples" / "model").mkdir(parents=True)
    assert bundled(Path("examples/model"), "--model") == Path("examples/model")


def test_the_estimator_reads_texts_as_a_scan_would(tmp_path: Path) -> None:
    texts: list[Any] = ["The cat sat on the mat.", "", "In the beginning\nthere was 字."]
    texts += ["half \ud83d", None, b"bytes"]
    estimator = DensityEstimator(
        Tracer.from_pretrained(MODEL), select=Threshold([0.05, 0.005]), controls=("inverse",)
    )
    result = estimator.estimate(iter(texts))
    assert result.documents["text"].tolist() == [texts[0], texts[2]]
    assert result.documents["id"].tolist() == ["0", "2"]
    assert result.summary()["tokens"].item() == len(result.to_pandas())
    assert set(result.strata["lane"]) == {"trace", "inverse"}
    trace = estimator.tracer.trace(texts[0], select=estimator.select)
    assert isinstance(trace, Trace)
    mine = result.tokens[result.tokens["document"] == 0]
    np.testing.assert_allclose(mine["density@0.1"], trace.density_at(0.1), atol=1e-4)
    np.testing.assert_allclose(mine["auc_tv"], trace.auc_tv, atol=1e-3)


def test_the_estimator_has_its_own_context_and_tolerance() -> None:
    tracer = Tracer.from_pretrained(MODEL)
    estimator = DensityEstimator(tracer, select=Threshold([0.05]), context=4, eps=0.3)
    result = estimator.estimate(["The cat sat on the mat."])
    assert result.tokens["context"].max() == 4 < len(result.tokens)
    assert (result.eps, result.density) == (0.3, "density@0.3")


def test_the_estimator_shares_its_scan_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever rank of torchrun calls it: it would wait for a plan that nobody makes."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tracer = Tracer.from_pretrained(MODEL)
    options: dict[str, Any] = {
        "select": Threshold([0.05]),
        "limits": Limits(seconds=60),
    }  # of that wait
    assert len(DensityEstimator(tracer, **options).estimate(["The cat sat."]).documents) == 1


def test_of_a_scan_that_was_stopped_the_finished_parts_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "PART_VALUES", 1)  # one window a part
    corpus, path = tmp_path / "corpus.jsonl", tmp_path / "traces.zarr"
    corpus.write_text('{"text": "One text."}\n{"text": "And another."}\n')
    whole = scan(Tracer.from_pretrained(MODEL), corpus, path, select=Threshold([0.05]))
    tokens = DensityEstimator.from_store(whole).tokens
    done = zarr.open_group(path, mode="r+")["part_done"]
    assert isinstance(done, zarr.Array) and done.shape == (2,)
    done[1] = 0
    half = DensityEstimator.from_store(path)
    assert half.settings["incomplete"] == "1 of 2 parts scanned"
    assert half.documents["text"].tolist() == ["One text."]
    assert half.tokens["token"].tolist() == tokens["token"][tokens["document"] == 0].tolist()
    assert "1 of 2 parts scanned" in render_report(half)
    done[0] = 0
    with pytest.raises(StoreError, match="no scanned token yet"):
        DensityEstimator.from_store(path)


@pytest.mark.parametrize("done", [0, 1])
def test_the_summary_of_a_scan_has_a_mean_curve_once_a_part_is_done(
    done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "PART_VALUES", 1)  # one window a part
    corpus, path = tmp_path / "corpus.jsonl", tmp_path / "traces.zarr"
    corpus.write_text('{"text": "One text."}\n{"text": "And another."}\n')
    limits = Limits(max_parts=done)
    tracer = Tracer.from_pretrained(MODEL)
    store = scan(tracer, corpus, path, select=Threshold([0.05]), limits=limits)
    console = Console(width=100)
    with console.capture() as capture:
        print_summary(store, Meter(), console)
    assert f"{done} of 2 done" in capture.get() and "nan" not in capture.get()
    assert ("mean curve" in capture.get()) == bool(done)


def test_the_estimator_refuses_what_is_not_a_list_of_texts() -> None:
    estimator = DensityEstimator(Tracer.from_pretrained(MODEL))
    with pytest.raises(InputError, match="texts is one string"):
        estimator.estimate("one text")
    with pytest.raises(InputError, match="texts=None: give a list of texts"):
        estimator.estimate(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="texts is empty"):
        estimator.estimate([])
