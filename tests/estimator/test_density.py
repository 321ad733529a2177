"""Means, intervals and tidy frames against pandas, scipy and simulation."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from densitrace.errors import InputError
from densitrace.estimator.density import DensityResult
from densitrace.estimator.frames import group_means, label_names
from densitrace.estimator.intervals import (
    MIN_DOCUMENTS,
    cluster_interval,
    interval_of_means,
    mean_interval,
    mean_intervals,
)
from densitrace.estimator.plots import LIGHT

MakeResult = Callable[..., DensityResult]

DOCUMENTS = [
    {"id": f"{domain}-{i}", "domain": domain, "lang": "en", "text": "some words " * (1 + i)}
    for domain in ("drama", "law", "speech")
    for i in range(6)
]


@pytest.mark.parametrize("n", [8, 30])
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_nominal_95_percent_intervals_cover_the_mean(n: int, shape: str) -> None:
    rng = np.random.default_rng(n)
    draws = rng.normal(size=(300, n)) if shape == "normal" else rng.gamma(4.0, size=(300, n))
    truth = 0.0 if shape == "normal" else 4.0
    hits = 0
    for i, sample in enumerate(draws):
        _, low, high = mean_interval(sample, n_resamples=1500, seed=i)
        hits += low <= truth <= high
    assert 0.90 <= hits / len(draws) <= 0.97


def test_the_interval_of_many_values_is_the_plain_percentile_interval() -> None:
    values = np.random.default_rng(0).exponential(size=3000)
    found = mean_interval(values)
    plain = stats.bootstrap(
        (values,), np.mean, method="percentile", batch=500, rng=np.random.default_rng(0)
    ).confidence_interval
    width = plain.high - plain.low
    assert found.low == pytest.approx(plain.low, abs=0.03 * width)
    assert found.high == pytest.approx(plain.high, abs=0.03 * width)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).random(20)
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    assert mean_interval(values, seed=5) != mean_interval(values, seed=6)


@pytest.mark.parametrize(
    "arguments", [{"level": 1.0}, {"n_resamples": 0}, {"n_resamples": 9.5}, {"seed": -1}]
)
def test_impossible_resampling_is_refused(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(InputError, match=f"{name}="):
        mean_interval(np.arange(9.0), **arguments)
    with pytest.raises(InputError, match=f"{name}="):
        cluster_interval(lambda drawn: float(drawn.mean()), 9, **arguments)


def test_a_higher_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(2).random(20)
    narrow, wide = mean_interval(values, 0.8), mean_interval(values, 0.99)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_few_values_have_a_mean_and_no_interval() -> None:
    found = mean_interval([1.0] * (MIN_DOCUMENTS - 2) + [math.nan, 2.0])
    assert found.value == pytest.approx((MIN_DOCUMENTS - 2 + 2) / (MIN_DOCUMENTS - 1))
    assert math.isnan(found.low) and math.isnan(found.high)
    assert all(map(math.isnan, mean_interval([])))


def test_the_fewest_documents_of_an_interval() -> None:
    values = np.random.default_rng(3).random(MIN_DOCUMENTS)
    for found in (
        mean_interval(values),
        interval_of_means(lambda means: means[..., 0], values[:, None]),
        cluster_interval(lambda drawn: float(values[drawn].mean()), MIN_DOCUMENTS),
    ):
        assert found.low < found.value < found.high


def test_each_column_leaves_out_its_own_missing_values() -> None:
    values = np.random.default_rng(4).random((9, 2))
    values[0, 0] = values[3, 1] = math.nan
    for column, found in zip(values.T, mean_intervals(values), strict=True):
        assert found == mean_interval(column[~np.isnan(column)])


def test_samples_without_a_value_are_left_out() -> None:
    found = cluster_interval(lambda drawn: math.nan if 0 in drawn[1:] else 1.0, 8)
    assert found == (1, 1, 1)
    never = cluster_interval(lambda drawn: math.nan, 8)
    assert all(map(math.isnan, never))


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_an_impossible_level_is_refused(level: float) -> None:
    with pytest.raises(InputError, match="level"):
        mean_interval([1.0, 2.0], level)


def test_a_label_is_the_mean_of_its_documents_not_of_its_tokens() -> None:
    # One document of a thousand tokens at 1 and four of one token at 0.
    tokens = pd.DataFrame(
        {"document": [0] * 1000 + [1, 2, 3, 4], "m": [1.0] * 1000 + [0.0] * 4, "label": "a"}
    )
    row = group_means(tokens, "label", ["m"]).loc["a"]
    assert (row["documents"], row["tokens"]) == (5, 1004)
    assert row["m"] == pytest.approx(0.2)
    assert row["m_low"] == 0.0 and row["m_high"] > 0.5


def test_group_means_equal_pandas_in_two_steps(make_result: MakeResult) -> None:
    frame = make_result(DOCUMENTS).to_pandas()
    found = group_means(frame, "domain", ["auc_tv", "edges"])
    for domain, part in frame.groupby("domain"):
        per_document = [rows["edges"].mean() for _, rows in part.groupby("document")]
        assert found.loc[str(domain), "edges"] == pytest.approx(np.mean(per_document))
        assert (found["edges_low"] < found["edges"])[str(domain)]
    assert found["auc_tv"].is_monotonic_decreasing


def test_summary_has_one_row_without_a_label_and_one_per_value_with_it(
    make_result: MakeResult,
) -> None:
    result = make_result(DOCUMENTS)
    assert len(result.summary()) == 1
    assert result.summary()["tokens"].item() == len(result.tokens)
    assert sorted(result.summary("domain").index) == ["drama", "law", "speech"]
    for by in (None, "lang", "regime"):
        half, most = (result.summary(by, level).iloc[0] for level in (0.5, 0.99))
        assert most["auc_tv_low"] < half["auc_tv_low"] < half["auc_tv_high"] < most["auc_tv_high"]
    assert result.summary("regime").loc["dense", "dense"] == 1.0
    by_density = result.summary("density@0.1")
    assert by_density["density@0.1"].tolist() == by_density.index.tolist()
    assert by_density.index.is_monotonic_decreasing
    for wrong in ("author", ["domain"]):
        with pytest.raises(InputError, match="by="):
            result.summary(wrong)  # type: ignore[arg-type]


def test_by_position_gathers_octaves_of_context(make_result: MakeResult) -> None:
    result = make_result(DOCUMENTS)
    found = result.by_position()
    context = result.tokens["context"]
    for first, row in found.iterrows():
        inside = (context >= int(str(first))) & (context < 2 * int(str(first)))
        assert row["tokens"] == inside.sum()
        assert row["last"] == context[inside].max()
    assert found["tokens"].sum() == len(context)
    assert found["edges"].is_monotonic_increasing


@pytest.mark.parametrize("measure", [None, "density@.1", "auc_tv"])
def test_documents_are_plotted_by_label(make_result: MakeResult, measure: str | None) -> None:
    result = make_result(DOCUMENTS)
    name = "auc_tv" if measure == "auc_tv" else "density@0.1"
    axes = result.plot("domain", measure).axes[0]
    summary = result.summary("domain").sort_values(name, ascending=False)
    assert axes.get_xlabel() == name
    assert axes.xaxis.get_major_formatter()(0.5).endswith("%") == (name == "density@0.1")
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        f"{value} (6)" for value in summary.index
    ]
    means = next(line for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_allclose(np.asarray(means.get_xdata()), summary[name])
    dots = np.asarray(axes.collections[0].get_offsets())[:, 0]
    np.testing.assert_allclose(np.sort(dots), result.documents[name].sort_values())


def test_of_many_documents_evenly_spread_ones_are_plotted(
    make_result: MakeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densitrace.estimator.plots.MOST_DOTS", 4)
    result = make_result(DOCUMENTS)
    dots = np.asarray(result.plot("domain").axes[0].collections[0].get_offsets())[:, 0]
    means = result.documents["density@0.1"].to_numpy().reshape(3, 6)
    np.testing.assert_allclose(np.sort(dots), np.sort(means[:, ::2].ravel()))


@pytest.mark.parametrize("measure", ["density@0.1", "auc_tv"])
def test_tokens_are_plotted_without_a_label(
    make_result: MakeResult, measure: str, tmp_path: Path
) -> None:
    figure = make_result(DOCUMENTS).plot(measure=measure)
    assert [axes.get_ylabel() for axes in figure.axes] == [measure, "", ""]
    assert all(axes.get_title("left").startswith("ρ = ") for axes in figure.axes)
    figure.savefig(tmp_path / "tokens.png")
    assert matplotlib.colors.same_color(figure.get_facecolor(), LIGHT.paper)
    make_result([{"id": "one", "text": "a"}]).plot(measure=measure).savefig(tmp_path / "one.svg")


def test_what_cannot_be_plotted_is_refused(make_result: MakeResult) -> None:
    result = make_result(DOCUMENTS)
    with pytest.raises(InputError, match="by='author': the labels are domain, lang"):
        result.plot("author")
    for measure in ("density@0.2", "loss"):
        with pytest.raises(InputError, match=measure):
            result.plot(measure=measure)


def test_labels_never_share_a_column() -> None:
    names = label_names(["position", "label_position", "lang"], ["position"])
    assert list(names.values()) == ["label_position", "label_label_position", "lang"]


def test_to_pandas_carries_the_labels_of_each_document(make_result: MakeResult) -> None:
    result = make_result(DOCUMENTS)
    frame = result.to_pandas()
    assert len(frame) == len(result.tokens)
    assert (frame["domain"] == frame["document"].map(result.documents["domain"])).all()
