"""What the page says that only stores know: parts of traces, factors, strata, other models."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import made_up_store
import numpy as np
import pandas as pd
import pytest
from byte_model import byte_model, byte_tokenizer
from click.testing import CliRunner
from made_up_store import made_up_documents, make_store
from matplotlib.figure import Figure
from scipy import stats

from densitrace import (
    DensitraceError,
    DensityEstimator,
    InputError,
    Store,
    StoreError,
    Threshold,
    Tracer,
    scan,
)
from densitrace.estimator import factor_sample, sections
from densitrace.estimator import passages as texts
from densitrace.estimator.agreement import agreement
from densitrace.estimator.cli import report
from densitrace.estimator.compare import Level, compare, rank_correlations
from densitrace.estimator.density import DensityResult
from densitrace.estimator.exhibits import Exhibit, named_apart, save_exhibits
from densitrace.estimator.factor_plots import beeswarm_figure
from densitrace.estimator.features import own_frequency
from densitrace.estimator.intervals import MIN_DOCUMENTS, Interval
from densitrace.estimator.page import threshold
from densitrace.estimator.plots import LIGHT, percent
from densitrace.estimator.relation_plots import correlation_text
from densitrace.estimator.relations import RELATIONS, counts, medians, relations
from densitrace.estimator.report import render_report, write_report
from densitrace.estimator.sections import Section, Subject, begin, section, with_factors
from densitrace.estimator.separate_process import explainer
from densitrace.estimator.summaries import trace_parts
from densitrace.estimator.thresholds import threshold_at, threshold_table
from densitrace.tracer import layout
from densitrace.tracer.corpus import Document

STYLE = Path(sections.__file__).parent / "templates" / "report.css"
STRATA = [0.1, 0.03, 0.01, 0.003, 0.001]


def make(path: Path, seed: int = 0, tokens: int = 1500, **options: Any) -> Store:
    documents = made_up_documents(tokens, mean_length=70)
    return make_store(path, documents, context=64, strata=STRATA, seed=seed, **options)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    folder = tmp_path_factory.mktemp("stores")
    return make(folder / "a.zarr", controls=("random",)), make(folder / "b.zarr", seed=1)


@pytest.fixture(scope="module")
def result(stores: tuple[Store, Store]) -> DensityResult:
    return DensityEstimator.from_store(stores[0])


def explained(subject: Subject) -> Section:
    with explainer(separate_process=False) as explaining:
        return with_factors(section(subject), begin(explaining, subject))


def test_every_figure_of_the_page_is_written_with_its_data(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    folder = tmp_path / "figures"
    page = tmp_path / "page.html"
    options = ["--figures", str(folder), "--no-factors", "--by", "lang"]
    arguments = [str(stores[0].path), "--out", str(page), *options]
    done = CliRunner().invoke(report, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and str(folder) in done.stdout
    html = page.read_text(encoding="utf-8")
    names = set(re.findall(r'data-name="([^"]+)"', html))
    assert {"s1-curve", "s1-topology", "s1-relations-auc", "s1-by-lang-density"} <= names
    assert "s1-shap-beeswarm" not in names
    files = {path.name for path in folder.iterdir()}
    assert files == {f"{name}{end}" for name in names for end in (".svg", ".png", ".csv")}
    for name in names:
        drawing = (folder / f"{name}.svg").read_text(encoding="utf-8")
        ElementTree.fromstring(drawing)
        assert LIGHT.paper in drawing and "var(" not in drawing and "#040404" not in drawing
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(pd.read_csv(folder / f"{name}.csv"))


def test_labels_that_look_alike_have_files_of_their_own(tmp_path: Path) -> None:
    documents = [
        Document(f"d{n}", each.text, dict.fromkeys(["lang", "Lang"], ("a\x07b", "")[n % 2]), "")
        for n, each in enumerate(made_up_documents(400, mean_length=30))
    ]
    store = make_store(tmp_path / "s.zarr", documents, context=64, strata=[0.1, 0.01])
    page = tmp_path / "page.html"
    write_report(store, page, names=["A\x1bB"], figures=tmp_path, factors=False)
    html = page.read_text(encoding="utf-8")
    names = re.findall(r'data-name="([^"]+)"', html)
    assert len(set(names)) == len(names) == len(list(tmp_path.glob("*.csv")))
    assert {"s1-by-lang-auc", "s1-by-lang-auc-2"} <= {*names}
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(set(ids)) == len(ids)
    drawings = [path.read_text(encoding="utf-8") for path in tmp_path.glob("*.svg")]
    on_page = re.findall("<svg .*?</svg>", html, flags=re.DOTALL)
    assert len(on_page) == len(drawings) == len(names)
    for drawing in [*drawings, *on_page]:
        ElementTree.fromstring(drawing.replace("xlink:href", "href"))
    labelled = next(drawing for drawing in drawings if ">ab (" in drawing)
    assert ">(none) (" in labelled
    assert html.count('<th scope="row">(none)</th>') == 2 * 2  # densities and thresholds


def test_names_that_are_taken_are_numbered() -> None:
    names = ["across-a-b", "across-a-b-2", "across-a-b", "across-a-b"]
    exhibits = [Exhibit(name, "", pd.DataFrame(), lambda _: Figure()) for name in names]
    assert [exhibit.name for exhibit in named_apart(exhibits)] == [
        "across-a-b", "across-a-b-2", "across-a-b-3", "across-a-b-4"
    ]  # fmt: skip


def test_the_data_of_a_figure_keeps_a_named_index() -> None:
    data = pd.DataFrame({"size": [0.5, 1 / 3]}, pd.Index(["law", "drama"], name="domain"))
    exhibit = Exhibit("name", "", data, lambda _: Figure())
    assert exhibit.csv == "domain,size\nlaw,0.5\ndrama,0.333333\n"
    assert replace(exhibit, data=data.reset_index(drop=True)).csv == "size\n0.5\n0.333333\n"


def test_figures_that_stand_alone_have_the_light_pages_colours() -> None:
    found = dict(re.findall(r"--(\w+): light-dark\((#\w+),", STYLE.read_text(encoding="utf-8")))
    for name in ("ink", "muted", "grid", "accent", "second", "paper"):
        assert getattr(LIGHT, name) == found[name]


def test_correlations_equal_scipys(result: DensityResult) -> None:
    found = relations(result)
    tokens = result.tokens
    assert found.sample == f"all {len(tokens):,} tokens"
    frequency = tokens["token"].map(tokens["token"].value_counts())
    for name, x in (("model_entropy", tokens["model_entropy"]), ("context", tokens["context"]),
                    ("frequency", frequency)):  # fmt: skip
        for measure in (*result.measures, "edges", "edges_per_token"):
            expected = stats.spearmanr(x, tokens[measure]).statistic
            interval = found.correlations[name, measure]
            assert interval.value == pytest.approx(expected, abs=1e-9)
            assert interval.low <= interval.value <= interval.high
    # As the store was made: rarer and less predictable tokens are denser, later ones sparser.
    signs = {relation.name: found.correlations[relation.name, "density@0.1"].value
             for relation in RELATIONS}  # fmt: skip
    assert signs["model_entropy"] > 0 > max(signs["frequency"], signs["context"])


def test_quartiles_of_a_control_are_its_own(
    stores: tuple[Store, Store], result: DensityResult
) -> None:
    store = stores[0]
    random = result.strata[result.strata["lane"] == "random"]
    for name, array in (("size", store.size), ("tv", store.array("tv_random"))):
        values = array[:][store.token[:] >= 0].astype(np.float64)
        np.testing.assert_allclose(random[f"{name}_q25"], np.percentile(values, 25, axis=0))


def test_correlations_of_a_sample_keep_each_tokens_document(
    result: DensityResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densitrace.estimator.relations.MOST_TOKENS", 200)
    drawn: list[tuple[pd.DataFrame, Any]] = []

    def recorded(columns: pd.DataFrame, document: Any, *rest: Any, **options: Any) -> Any:
        drawn.append((columns, document))
        return rank_correlations(columns, document, *rest, **options)

    monkeypatch.setattr("densitrace.estimator.relations.rank_correlations", recorded)
    assert relations(result).sample == f"a sample of 200 of {len(result.tokens):,} tokens"
    ((columns, document),) = drawn
    assert document.tolist() == result.tokens["document"][columns.index].tolist()


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((-0.5, -0.61, 0.4), "ρ = −0.50 (−0.61 to +0.40)"),
        ((0.25, np.nan, np.nan), "ρ = +0.25"),
        ((np.nan, np.nan, np.nan), "ρ: one side is constant"),
    ],
)
def test_titles_of_correlations(interval: tuple[float, float, float], text: str) -> None:
    assert correlation_text(Interval(*interval)) == text


def make_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> Store:
    """A store of made-up curves that have been changed."""
    curves = made_up_store._curves
    monkeypatch.setattr(made_up_store, "_curves", lambda *arguments: change(curves(*arguments)))
    return make(path, tokens=300)


def test_a_trace_of_the_whole_graph_reaches_any_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(made: dict[str, Any]) -> dict[str, Any]:
        return {**made, "size": np.ones_like(made["size"]), "tv": np.zeros_like(made["tv"])}

    store = make_changed(tmp_path / "s.zarr", monkeypatch, whole)
    result = DensityResult.from_store(store)
    assert (result.tokens[result.density] == 1).all() and result.tokens["reached"].all()
    parts = section(Subject("s1", "a", result, store)).parts
    assert parts["unreached"] == "0%" and "missing" not in parts["topology"]


def test_what_no_trace_reaches_is_counted(
    stores: tuple[Store, Store], result: DensityResult
) -> None:
    reached = (stores[0].tv[:].min(-1) <= 0.1)[stores[0].token[:] >= 0]
    assert 0 < reached.mean() < 1
    found = section(Subject("s1", "a", result, stores[0]))
    assert found.parts["unreached"] == percent(1 - reached.mean())
    never = section(Subject("s1", "a", DensityResult.from_store(stores[0], eps=0.0), stores[0]))
    assert never.parts["topology"]["missing"] == "No trace of the scan is within an error of 0."


def test_only_densities_are_drawn_as_shares(
    stores: tuple[Store, Store], result: DensityResult
) -> None:
    exhibits = section(Subject("s1", "a", result, stores[0])).exhibits
    for only in ("density", "auc"):
        (axes,) = exhibits[f"by/domain/{only}"].draw(LIGHT).axes
        assert axes.xaxis.get_major_formatter()(0.5).endswith("%") == (only == "density")
        measure = {"density": "density@0.1", "auc": "auc_tv"}[only]
        summary = result.summary("domain").sort_values(measure, ascending=False)
        rows = [text.get_text().split()[0] for text in axes.get_yticklabels()]
        assert rows == summary.index.tolist()


def test_an_error_equal_to_the_tolerance_is_within_it(stores: tuple[Store, Store]) -> None:
    least = stores[0].tv[:].min(-1)[stores[0].token[:] >= 0]
    tokens = DensityResult.from_store(stores[0], eps=float(least[7])).tokens
    assert tokens["reached"].tolist() == (least <= least[7]).tolist()


def test_labels_and_names_are_checked_before_tokens_are_read(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "by_runs", lambda *_: pytest.fail("tokens are read"))
    with pytest.raises(InputError, match="by='author': the labels are domain, lang"):
        render_report(stores, by=["domain", "author"])
    with pytest.raises(InputError, match="by='domain' is one name: give a list of them"):
        render_report(stores, by="domain")
    with pytest.raises(InputError, match=r"eps='0\.1': give a finite error"):
        render_report(stores, eps="0.1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 different names"):
        render_report(stores, names=["one"])


def test_a_label_asked_for_twice_is_shown_once(stores: tuple[Store, Store]) -> None:
    page = render_report(stores[0], by=["lang", "lang"], factors=False)
    assert page.count("<h2>Density by lang</h2>") == 1


def test_counts_and_medians_lose_no_point() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.lognormal(size=5000), rng.normal(size=5000)
    cells = counts(x, y, (True, False))
    assert cells["points"].sum() == 5000
    row = cells.sort_values("points").iloc[-1]
    inside = (x >= row["x_low"]) & (x < row["x_high"]) & (y >= row["y_low"]) & (y < row["y_high"])
    assert row["points"] == inside.sum()
    assert counts(np.array([1.0, np.nan, 0.0]), np.ones(3), (True, False))["points"].sum() == 1
    across, up = medians(x, np.column_stack([3 * x, -x]), log=True)
    # Of an even number of points a median lies between two, here in the logarithm.
    np.testing.assert_allclose(up, np.outer(across, [3, -1]), rtol=1e-4)
    assert len(across) > 5
    middle, _ = medians(np.repeat([1.0, 5.0, 9.0], [19, 20, 21]), np.ones((60, 1)), log=False)
    assert middle.tolist() == [5, 9]
    x, y = np.repeat([0.0, 10.0, 100.0], 20), np.ones((60, 1))
    np.testing.assert_allclose(medians(x, y, log=True)[0], [10, 100])
    assert not len(medians(np.ones(5), np.ones((5, 1)), log=False)[0])


def test_thresholds_by_label_equal_their_documents_curves(stores: tuple[Store, Store]) -> None:
    store = stores[0]
    result = DensityResult.from_store(store, eps=0.2)
    table = threshold_table(result, "domain")
    assert table is not None
    errors = result.errors.to_numpy()
    inside = store.token[:] >= 0
    first = store.tv[:][inside & (store.document[:] == 0)[:, None]].mean(0)
    np.testing.assert_allclose(errors[0], first, rtol=1e-5)
    tau = store.strata[::-1]
    law = (store.documents["domain"] == "law").to_numpy()
    assert table.index[0] == "(all)" and table["documents"]["law"] == law.sum()
    expected = threshold_at(tau, errors[law].mean(0)[::-1], 0.2)
    assert table["threshold"]["law"] == pytest.approx(expected)
    assert table["error_of_all"]["(all)"] == pytest.approx(0.2)


def test_a_document_with_an_unknown_error_is_left_out(result: DensityResult) -> None:
    errors = result.errors.copy()
    errors.iloc[0, 1] = np.nan
    unknown = threshold_table(replace(result, errors=errors), "domain")
    without = threshold_table(replace(result, errors=result.errors.drop(errors.index[0])), "domain")
    assert unknown is not None and without is not None
    pd.testing.assert_frame_equal(unknown, without)
    assert unknown["documents"]["(all)"] == len(errors) - 1


def test_a_value_called_as_the_row_of_all_has_a_row_of_its_own(result: DensityResult) -> None:
    called = result.documents["domain"].replace({"law": "(all)", "drama": ""})
    documents = result.documents.assign(domain=called)
    renamed = threshold_table(replace(result, documents=documents), "domain")
    table = threshold_table(result, "domain")
    assert renamed is not None and table is not None
    assert renamed.index.tolist() == ["(all)", "", "(all)", "fiction", "letters", "speech"]
    np.testing.assert_array_equal(renamed.iloc[0], table.loc["(all)"])
    np.testing.assert_array_equal(renamed.iloc[2], table.loc["law"])


def test_a_threshold_beyond_the_largest_is_a_bound(stores: tuple[Store, Store]) -> None:
    result = DensityResult.from_store(stores[0], eps=0.99)
    table = threshold_table(result, "domain")
    assert table is not None and (table["threshold"] == 0.1).all()
    rows = section(Subject("s1", "a", result, stores[0])).parts["thresholds"]
    assert rows[0]["largest"] == 0.1
    assert threshold(0.1, 0.1) == "≥ 0.10" and threshold(0.012, 0.1) == "0.012"
    assert threshold(np.nan, 0.1) == "–"


@pytest.mark.parametrize("strata", [[0.2, 0.0], [0.0], [0.9]])
def test_a_threshold_of_0_or_none_has_an_error(strata: list[float], tmp_path: Path) -> None:
    tracer = Tracer(byte_model(), byte_tokenizer())
    corpus = tmp_path / "corpus.jsonl"
    made_up = made_up_documents(300, mean_length=40)
    rows = ({"text": document.text, **document.labels} for document in made_up)
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    store = scan(tracer, corpus, tmp_path / "s.zarr", select=Threshold(strata))
    table = threshold_table(DensityResult.from_store(store), "domain")
    assert table is not None
    if 0 in strata:
        assert (table["threshold"] == 0).all() and (table["error_of_all"] < 1e-3).all()
    else:
        assert table[["threshold", "error_of_all"]].isna().all(axis=None)
        result = DensityResult.from_store(store)
        assert section(Subject("s1", "a", result, store)).parts["thresholds"] == []
        empty = trace_parts(store, stratum=0)  # no edge is left of many traces
        assert (store.size[:] == 0).any() and empty.notna().all(axis=None)
    render_report(store, factors=False)


def test_passages_hold_sizes_and_errors_of_their_tokens(
    stores: tuple[Store, Store], result: DensityResult
) -> None:
    store, document = stores[0], 3
    rows = result.tokens[result.tokens["document"] == document]
    packed = np.frombuffer(base64.b64decode(texts.cell_curves(store, rows)), "<u2")
    values = packed.reshape(len(rows), len(STRATA), 2).astype(np.float64)
    place = rows["window"].to_numpy(), rows["context"].to_numpy() - 1
    np.testing.assert_allclose(
        10 ** (-values[..., 0] / texts.DECADES), store.size[:][place], rtol=2e-4
    )
    np.testing.assert_allclose(values[..., 1] / 65535, store.tv[:][place], atol=1e-5)


def test_a_rule_of_many_strata_shows_some(tmp_path: Path) -> None:
    strata = np.geomspace(0.1, 1e-4, 40)
    store = make_store(tmp_path / "s.zarr", made_up_documents(100), context=64, strata=strata)
    shown = texts.shown_strata(store)
    assert len(shown) == texts.MOST_STRATA and (shown[0][0], shown[-1][0]) == (0, 39)


def test_topology_of_a_sample_is_close_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "PART_VALUES", 8 * 64 * len(STRATA))  # 8 windows a part
    store = make(tmp_path / "s.zarr")
    assert store.n_parts > 3
    whole, some = trace_parts(store), trace_parts(store, max_tokens=750)
    assert 0 < some["tokens"].max() < whole["tokens"].max()
    np.testing.assert_allclose(some["share"], whole["share"], atol=0.02)
    assert 0 < trace_parts(store, max_tokens=1)["tokens"].max() < some["tokens"].max()


def test_traces_of_tokens_without_an_error_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(made: dict[str, Any]) -> dict[str, Any]:
        made["tv"][:, 5, 0] = np.nan
        return made

    store = make_changed(tmp_path / "s.zarr", monkeypatch, broken)
    known = np.isfinite(store.tv[:]).all(-1)[store.token[:] >= 0].sum()
    assert (trace_parts(store, stratum=2)["tokens"] == known).all()


def test_factors_and_whether_they_are_a_finding_are_told(
    stores: tuple[Store, Store], result: DensityResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factor_sample, "SHUFFLES", 1)
    monkeypatch.setattr(factor_sample, "TOKENS", 1200)
    found = explained(Subject("s1", "a", result, stores[0]))
    factors = found.parts["factors"]["summary"]
    assert factors.finding and factors.r2 > 0.1
    assert {"context", "domain", "log_frequency"} <= set(factors.factors.index[:5])
    told = f"{factors.tokens:,} of {len(result.tokens):,} tokens"
    assert found.parts["factors"]["sample"] == told
    points = found.exhibits["swarm"].data
    assert list(points) == ["factor", "value", "shap", "rank"]
    ranked = set(points["factor"][points["rank"].notna()])
    assert "context" in ranked and "domain" not in ranked
    np.testing.assert_array_equal(
        found.exhibits["importance"].data["mean_abs"], factors.factors["mean_abs"]
    )


def test_a_sample_of_documents_has_the_whole_stores_frequencies(
    stores: tuple[Store, Store], result: DensityResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factor_sample, "POOL", 1)
    sample = factor_sample.factor_sample(stores[0], result)
    assert sample is not None and sample.document.nunique() == MIN_DOCUMENTS
    inside = result.tokens["document"].isin(sample.document.unique())
    frequency = own_frequency(result.tokens["token"].to_numpy())[inside]
    np.testing.assert_array_equal(sample.factors["log_frequency"], frequency)


def test_a_swarm_shows_every_point_in_the_colour_of_its_rank() -> None:
    ranks = [0.1, 0.2, 0.3, 0.5, 0.6, 0.8, 0.9, 1.0, np.nan]
    points = pd.DataFrame({"factor": "context", "value": 1, "shap": ranks, "rank": ranks})
    points["shap"] = np.arange(9.0)
    axes = beeswarm_figure(points, "nats").axes[0]
    shown = {
        str(dots.get_label()): np.asarray(dots.get_offsets())[:, 0].tolist()
        for dots in axes.collections
    }
    assert shown == {
        "lowest values": [0, 1], "low values": [2, 3], "high values": [4, 5],
        "highest values": [6, 7], "categories": [8],
    }  # fmt: skip


def test_factors_explained_in_another_process_are_the_same(stores: tuple[Store, Store]) -> None:
    page = render_report(stores[0], separate_process=True)
    assert "shap-beeswarm" in page
    assert page == render_report(stores[0])


def test_the_death_of_the_explaining_process_is_one_line() -> None:
    message = "explains densities by factors died"
    with pytest.raises(DensitraceError, match=message), explainer(separate_process=True) as process:
        process.submit(os._exit, 1).result()


def test_the_explaining_process_ends_with_the_other_one() -> None:
    code = (
        "import os\n"
        "from densitrace.estimator.separate_process import explainer\n"
        "with explainer(separate_process=True) as process:\n"
        "    process.submit(int).result()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    # Waits for all that hold the pipe.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -9, done.stderr


def test_an_interrupt_of_the_explaining_process_is_silent(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with explainer(separate_process=True) as process:
        os.kill(process.submit(os.getpid).result(), signal.SIGINT)
        with pytest.raises(BrokenProcessPool):
            process.submit(time.sleep, 9).result()
    assert capfd.readouterr().err == ""


def test_a_script_without_a_guard_is_told(stores: tuple[Store, Store], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from densitrace.estimator.report import render_report\n"
        f"render_report({str(stores[0].path)!r}, separate_process=True)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "DensitraceError: the process that" in last and '__name__ == "__main__"' in last


def test_the_page_of_the_demo_tells_r2_and_whether_it_is_a_finding(demo_run: Any) -> None:
    page = (demo_run.folder / "report.html").read_text(encoding="utf-8")
    assert re.search(r"<b>R² = [+−]\d\.\d\d</b>.* <b>(A|No) finding</b>", page)
    assert 'data-name="s1-shap-beeswarm"' in page and 'data-name="s1-topology"' in page


def test_too_little_to_explain_is_said(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", tokens=150)
    found = explained(Subject("s1", "a", DensityEstimator.from_store(store), store))
    assert found.parts["factors"]["missing"].startswith("Too little to explain: 150 tokens")
    assert "swarm" not in found.exhibits


def test_models_are_compared_by_words_and_documents(stores: tuple[Store, Store]) -> None:
    subjects = [
        Subject(f"s{i}", f"{i}", DensityEstimator.from_store(store), store)
        for i, store in enumerate(stores)
    ]
    found = agreement(subjects)
    assert found is not None and not found.missing
    (pair,) = found.pairs
    assert pair.names == ("0", "1")
    levels: tuple[Level, ...] = ("word", "document")
    for level, (name, row) in zip(levels, pair.correlations, strict=True):
        expected = compare(stores, level, names=pair.names).correlations.iloc[0]
        assert name == f"{level}s" and row["spearman"] == pytest.approx(expected["spearman"])
    words, dots = pair.figure.draw(LIGHT).axes
    for axes in (words, dots):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("auc_tv, 0", "auc_tv, 1")
    table = compare(stores, "document", names=pair.names).table
    np.testing.assert_allclose(np.asarray(dots.collections[0].get_offsets()), table[["0", "1"]])
    assert 0 < len(pair.furthest) <= 12
    cells = pair.figure.data.loc["words"]
    assert cells["points"].sum() == pair.correlations[0][1]["rows"]


def test_words_of_some_documents_and_all_documents_are_compared(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densitrace.estimator.agreement.MOST_DOCUMENTS", 3)
    found = agreement(
        [Subject(f"s{i}", f"{i}", DensityEstimator.from_store(s), s) for i, s in enumerate(stores)]
    )
    assert found is not None
    compared = [int(row["documents"]) for _, row in found.pairs[0].correlations]
    assert compared == [3, len(stores[0].documents)]


def test_models_without_a_common_document_are_said_to_have_none(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    def others() -> Iterator[Document]:
        for document in made_up_documents(300, mean_length=60, seed=9):
            yield Document(f"other {document.id}", document.text, document.labels, "")

    other = make_store(tmp_path / "o.zarr", others(), context=64, strata=STRATA)
    subjects = [
        Subject(f"s{i}", f"{i}", DensityEstimator.from_store(store), store)
        for i, store in enumerate([stores[0], other])
    ]
    found = agreement(subjects)
    assert found is not None and found.missing.startswith("the stores share no document")
    assert agreement(subjects[:1]) is None


def test_labels_may_be_called_as_columns_are(tmp_path: Path) -> None:
    taken = ["document", "position", "regime", "char_start", "density@0.1", "auc_tv", "lane"]
    taken += ["stratum", "size_q50", "document_auc_tv", "row", "doc"]
    free = ["relations", "", "kind", "tokens", "x"]
    documents = [
        Document(each.id, each.text, dict.fromkeys(taken + free, each.labels["domain"]), "")
        for each in made_up_documents(1500, mean_length=70)
    ]
    store = make_store(tmp_path / "s.zarr", documents, context=64, strata=STRATA)
    result = DensityResult.from_store(store)
    names = dict(zip(store.labels, result.labels, strict=True))
    assert names == {name: f"label_{name}" for name in taken} | {name: name for name in free}
    frame, data = result.to_pandas(), result.to_xarray()
    domains = [document.labels[""] for document in documents]
    for name in result.labels:
        assert frame[name].tolist() == frame["document"].map(dict(enumerate(domains))).tolist()
        assert data[name].values.tolist() == domains
        assert result.summary(name).index.name == name
    for name, shown in {"kind": "label_kind", "tokens": "label_tokens", "": ""}.items():
        parts = trace_parts(store, by=name)
        assert parts.index.names == [shown, "kind", "quartile"] and len(parts) == 16 * 5
    furthest = compare([store, store]).disagreements("made-up/model", "made-up/model (2)")
    assert {"label_document", "label_x", "lane", ""} <= {*furthest}
    page = render_report([store, store], by=["label_lane", "relations", ""], factors=False)
    assert "Density by label_lane" in page and 'data-name="s1-by-relations-auc"' in page
    with pytest.raises(InputError, match="by='lane': the labels are label_document, "):
        render_report(store, by=["lane"])


def test_what_cannot_be_done_is_refused(stores: tuple[Store, Store], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no store"):
        render_report([])
    with pytest.raises(InputError, match="2 different names"):
        render_report(stores, names=["one", "one"])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write figures"):
        save_exhibits([], tmp_path / "file")
