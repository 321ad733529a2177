"""Summaries of stores against the same numbers taken one by one, and the faces that lead there."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import densitrace
from densitrace import (
    DensityEstimator,
    FactorExplanation,
    InputError,
    Store,
    StoreError,
    Threshold,
    Tracer,
    open_store,
)
from densitrace.estimator.explain_tokens import explain_tokens
from densitrace.estimator.features import factor_frame, frequency_bands
from densitrace.estimator.frames import token_frame
from densitrace.estimator.summaries import by_frequency, trace_parts

KINDS = ["attention", "residual-attention", "mlp", "residual-mlp"]


@pytest.fixture(scope="module")
def store(demo_run: Any) -> Store:
    return open_store(demo_run.folder / "traces.zarr")


def test_traces_at_a_stratum_are_taken_apart(store: Store) -> None:
    found = trace_parts(store, stratum=3)
    assert found.index.tolist() == [(kind, q) for kind in KINDS for q in (1, 2, 3, 4)]
    tokens = token_frame(store)
    inside = np.asarray(store.token[:]) >= 0
    edges = np.asarray(store.topology[:])[inside][:, 3].astype(float)
    for number, kind in enumerate(KINDS):
        for quartile in range(4):
            part = tokens.assign(
                edges=edges[:, number, quartile],
                size=edges[:, number, quartile] / tokens["full_edges"],
                share=edges[:, number, quartile] / edges.sum((1, 2)),
                edges_per_token=edges[:, number, quartile] / tokens["context"],
            )
            row: Any = found.loc[(kind, quartile + 1)]
            for measure in ("edges", "size", "share", "edges_per_token"):
                means = part.groupby("document")[measure].mean()
                assert row[measure] == pytest.approx(means.mean()), measure
                assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]
    assert found["share"].sum() == pytest.approx(1)
    assert (found["tokens"] == len(tokens)).all()


def test_the_default_is_each_tokens_sparsest_trace_within_the_error(store: Store) -> None:
    found = trace_parts(store, eps=0.3)
    tv, inside = np.asarray(store.tv[:]), np.asarray(store.token[:]) >= 0
    met = inside & (tv <= 0.3).any(-1)
    first = np.argmax(tv <= 0.3, axis=-1)
    sizes = np.take_along_axis(np.asarray(store.size[:]), first[..., None], -1)[..., 0]
    owner = np.repeat(np.asarray(store.document[:])[:, None], tv.shape[1], 1)
    means = [sizes[met & (owner == d)].mean() for d in np.unique(owner[met])]
    assert found["size"].sum() == pytest.approx(np.mean(means), rel=1e-5)
    assert (found["tokens"] == met.sum()).all()


def test_parts_by_label(store: Store) -> None:
    found = trace_parts(store, stratum=-1, by="domain")
    assert found.index.names == ["domain", "kind", "quartile"]
    assert found["share"].groupby("domain").sum().tolist() == pytest.approx([1, 1, 1])
    assert found.index.get_level_values("domain").is_monotonic_increasing
    drama = found.loc["drama"]
    assert drama.index.tolist() == [(kind, q) for kind in KINDS for q in (1, 2, 3, 4)]
    with pytest.raises(InputError, match="by='author'"):
        trace_parts(store, by="author")
    with pytest.raises(InputError, match="stratum=12 is outside the 12 strata of the store"):
        trace_parts(store, stratum=12)
    with pytest.raises(InputError, match=r"stratum=1\.5 is not a whole number"):
        trace_parts(store, stratum=1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="eps=nan: give a finite error"):
        trace_parts(store, eps=float("nan"))


@pytest.mark.parametrize("array", ["topology", "tv"])
def test_missing_files_are_no_empty_traces(store: Store, array: str, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "s")
    next((tmp_path / "s" / array).glob("c.*")).unlink()
    with pytest.raises(StoreError, match=f"array '{array}', is damaged: part 0 is missing"):
        trace_parts(open_store(tmp_path / "s"))


def test_densities_by_frequency(store: Store) -> None:
    found = by_frequency(store, 0.2)
    tokens = token_frame(store, 0.2)
    bands = frequency_bands(factor_frame(store)["log_frequency"])
    assert found["tokens"].to_dict() == bands.value_counts().loc[found.index].to_dict()
    assert found.index.tolist() == [band for band in bands.cat.categories if (bands == band).any()]
    for band, row in found.iterrows():
        means = tokens[bands == band].groupby("document")["density@0.2"].mean()
        assert row["density@0.2"] == pytest.approx(means.mean())


def test_a_lower_level_gives_narrower_intervals(store: Store) -> None:
    narrow, wide = (by_frequency(store, level=n)["auc_tv_low"].dropna() for n in (0.5, 0.99))
    assert len(narrow) and (narrow > wide).all()
    narrow, wide = (trace_parts(store, stratum=3, level=n)["share_low"] for n in (0.5, 0.99))
    assert (narrow > wide).all()


def test_a_result_as_an_xarray_dataset(store: Store) -> None:
    result = DensityEstimator.from_store(store)
    data = result.to_xarray()
    assert dict(data.sizes) == {
        "row": len(result.tokens),
        "doc": len(result.documents),
        "lane": 1,
        "stratum": 12,
    }
    np.testing.assert_array_equal(data["auc_tv"], result.tokens["auc_tv"])
    domains = data["domain"].sel(doc=data["document"])
    np.testing.assert_array_equal(domains, result.to_pandas()["domain"])
    np.testing.assert_array_equal(data["document_auc_tv"], result.documents["auc_tv"])
    first = result.strata.iloc[0]
    assert float(data["tv_q50"].sel(lane="trace", stratum=first["stratum"])) == first["tv_q50"]
    assert data.attrs["eps"] == 0.1 and "examples/model" in data.attrs["settings"]


def test_the_estimator_leads_to_explanations_and_summaries(store: Store) -> None:
    found = DensityEstimator.explain_factors(store.path, shuffles=1)
    assert isinstance(found, FactorExplanation)
    assert "context" in found.factors.index
    assert len(DensityEstimator.trace_parts(store.path)) == 16
    assert DensityEstimator.by_frequency(store).index.name == "per_million"


def test_the_estimator_explains_tokens_with_its_own_options() -> None:
    tracer = Tracer.from_pretrained(Path(__file__).parents[2] / "examples" / "model")
    rule = Threshold([0.02])
    shared: dict[str, Any] = {"importance": "random", "attention": "frozen", "seed": 3}
    estimator = DensityEstimator(tracer, select=rule, controls=("inverse",), **shared)
    found = estimator.explain_tokens("The cat", target="tv", stratum=0)
    expected = explain_tokens(tracer, "The cat", select=rule, target="tv", stratum=0, **shared)
    np.testing.assert_array_equal(found.values, expected.values)


def test_public_names_of_the_analysis() -> None:
    assert {"Comparison", "FactorExplanation", "TargetError", "compare"} <= set(densitrace.__all__)
