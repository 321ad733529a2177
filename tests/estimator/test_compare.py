"""Stores of models with different tokenizers, word by word and document by document."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from byte_model import byte_model, byte_tokenizer
from made_up_store import make_store
from scipy import stats

from densitrace import InputError, Nucleus, Store, StoreError, Threshold, Tracer, scan
from densitrace.estimator.agreement import agreement
from densitrace.estimator.compare import Level, _differing, compare, spearman, word_values
from densitrace.estimator.density import DensityResult
from densitrace.estimator.features import factor_frame
from densitrace.estimator.frames import token_frame
from densitrace.estimator.intervals import widened
from densitrace.estimator.sections import Subject
from densitrace.estimator.terminal import comparison_tables
from densitrace.estimator.words import word_spans
from densitrace.tracer import layout
from densitrace.tracer.corpus import Document

ROOT = Path(__file__).parents[2]
RULE = Threshold([0.02, 0.1])
EXTRA = {
    "th": "สวัสดีครับ ผมชื่อสมชาย",
    "xx": "cafe\u0301 a\u0302\u0323b 👨‍👩‍👧!🇫🇮🇸🇪 👍🏽 ok",
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """A passage of every language, read by the bundled model and by a model of bytes."""
    folder = tmp_path_factory.mktemp("compare")
    lines = (ROOT / "examples" / "corpus" / "scan.jsonl").read_text(encoding="utf-8").splitlines()
    texts: dict[str, str] = {}
    for record in map(json.loads, lines):
        texts.setdefault(record["lang"], record["text"][:60])
    rows = [{"id": lang, "lang": lang, "text": text} for lang, text in (texts | EXTRA).items()]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tracers = (
        Tracer.from_pretrained(ROOT / "examples" / "model"),
        Tracer(byte_model(), byte_tokenizer(), model_id="bytes"),
    )
    small, byte = (
        scan(tracer, corpus, folder / f"{number}.zarr", select=RULE, context=64)
        for number, tracer in enumerate(tracers)
    )
    return small, byte


def test_every_word_of_every_language_is_aligned(stores: tuple[Store, Store]) -> None:
    found = compare(stores)
    assert found.names == ("examples/model", "bytes")
    assert set(found.lost.values()) == set(found.left_out.values()) == {0}
    documents = stores[0].documents.set_index("id")
    assert found.table["document"].unique().tolist() == documents.index.tolist()
    for name, rows in found.table.groupby("document"):
        text = str(documents["text"][str(name)])
        spans = rows[["start", "end"]].to_numpy()
        np.testing.assert_array_equal(spans, word_spans(text))
        assert rows["text"].tolist() == [text[a:b] for a, b in spans]
        assert "".join(text.split()) == "".join("".join(rows["text"]).split())
        assert (rows["lang"] == name).all()


def test_a_words_density_is_that_of_its_last_token(stores: tuple[Store, Store]) -> None:
    found = compare(stores, measure="density@0.2")
    for store, name in zip(stores, found.names, strict=True):
        tokens = token_frame(store, 0.2)
        ids = store.documents["id"]
        tokens = tokens[tokens["char_end"] > tokens["char_start"]]
        for (_, word), number in zip(found.table.iterrows(), range(len(found.table)), strict=True):
            if number % 11:
                continue
            touching = tokens[
                (tokens["document"].map(ids) == word["document"])
                & (tokens["char_start"] < word["end"])
                & (tokens["char_end"] > word["start"])
            ]
            assert touching["char_end"].max() >= word["end"]
            assert touching["density@0.2"].iloc[-1] == word[name]


@pytest.mark.parametrize("name", ["density@.2", "density@2e-1", "density@0.20"])
def test_a_tolerance_may_be_written_in_any_way(stores: tuple[Store, Store], name: str) -> None:
    found = compare(stores, "document", name)
    assert found.measure == "density@0.2"
    pd.testing.assert_frame_equal(found.table, compare(stores, "document", "density@0.2").table)


def test_mean_over_a_words_tokens() -> None:
    words = np.array([[0, 2], [3, 7], [8, 9], [9, 10]])
    # Tokens: a special one, "ab", " c", "def", two that share one character, none of the last.
    start, end = np.array([0, 0, 2, 4, 8, 8]), np.array([0, 2, 4, 7, 9, 9])
    values = [9.0, 1.0, 2.0, 4.0, 5.0, 7.0]
    last = word_values(words, start, end, values)
    np.testing.assert_array_equal(last, [1, 4, 7, np.nan])
    mean = word_values(words, start, end, values, "mean")
    np.testing.assert_allclose(mean, [1, 3, 6, np.nan])
    nothing = word_values(words, np.array([0]), np.array([0]), [1.0])
    assert np.isnan(nothing).all()


def test_correlations_equal_scipy_and_the_furthest_ranks_disagree_most(
    stores: tuple[Store, Store],
) -> None:
    found = compare(stores, names=["a", "b"])
    row = found.correlations.iloc[0]
    expected = stats.spearmanr(found.table["a"], found.table["b"]).statistic
    assert row["spearman"] == pytest.approx(expected)
    assert row["low"] < row["spearman"] < row["high"]
    half = compare(stores, names=["a", "b"], coverage=0.5).correlations.iloc[0]
    assert row["low"] < half["low"] < half["high"] < row["high"]
    assert (row["rows"], row["documents"]) == (len(found.table), 21)
    ranked = found.scatter("a", "b")
    furthest = found.disagreements("a", "b", most=5)
    largest = (ranked["x_rank"] - ranked["y_rank"]).abs().nlargest(5)
    np.testing.assert_allclose(furthest["apart"].abs(), largest)


def test_documents_are_compared_by_their_means(stores: tuple[Store, Store]) -> None:
    found = compare(stores, "document")
    tokens = token_frame(stores[1])
    means = tokens.groupby("document")["auc_tv"].mean()
    np.testing.assert_allclose(found.table["bytes"], means, rtol=1e-6)
    assert len(found.table) == 21


def test_a_store_against_itself_agrees_fully(stores: tuple[Store, Store]) -> None:
    found = compare([stores[0], stores[0].path])
    assert found.names == ("examples/model", "examples/model (2)")
    assert tuple(found.correlations.loc[0, ["spearman", "low", "high"]]) == pytest.approx((1, 1, 1))


def test_only_documents_with_the_same_text_are_compared(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    documents = stores[0].documents.head(3).copy()
    documents.loc[2, "text"] = "Another text."
    documents[["id", "text"]].to_json(corpus, orient="records", lines=True)
    tracer = Tracer(byte_model(seed=1), byte_tokenizer(), model_id="other")
    other = scan(tracer, corpus, tmp_path / "s", select=RULE, context=64)
    found = compare([*stores, other])
    assert found.table["document"].nunique() == 2
    assert found.left_out == {"examples/model": 19, "bytes": 19, "other": 1}
    assert len(found.correlations) == 3 and found.correlations["low"].isna().all()
    corpus.write_text('{"id": "en", "text": "Nothing in common."}\n')
    alone = scan(tracer, corpus, tmp_path / "t", select=RULE)
    with pytest.raises(StoreError, match="share no document"):
        compare([stores[0], alone])


@pytest.fixture
def halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Store]:
    """A store, and another of the same documents that lacks one part: half of a document."""
    monkeypatch.setattr(layout, "PART_VALUES", 8 * 64 * 2)  # 8 windows a part
    sentences = " ".join(f"{word} b c d e f g h i." for word in ("one", "two", "three") * 20)
    documents = [Document(f"d{n}", f"{n} {sentences}", {}, "") for n in range(3)]
    whole, half = (
        make_store(tmp_path / name, documents, context=64, strata=[0.1, 0.01], model=name)
        for name in ("whole", "half")
    )
    half.open_again(0)  # the first 512 of 601 tokens
    return whole, half


def test_documents_are_compared_only_if_scanned_to_their_end(halves: tuple[Store, Store]) -> None:
    found = compare(halves, "document")
    assert found.table["document"].tolist() == ["d1", "d2"]
    assert found.partial == {"whole": 0, "half": 1}
    assert found.left_out == {"whole": 1, "half": 0}
    np.testing.assert_allclose(found.table["whole"], found.table["half"])
    assert "half: 0 documents that others lack, 1 not scanned" in "".join(
        line for line in comparison_tables(found) if isinstance(line, str)
    )
    words = compare(halves)
    assert words.partial == {"whole": 0, "half": 0} and words.lost["half"] > 0
    subjects = [Subject(s.model_id, s.model_id, DensityResult.from_store(s), s) for s in halves]
    across = agreement(subjects)
    assert across is not None and across.partial == [("half", 1)] and not across.left_out


def test_words_that_no_token_reaches_are_told(stores: tuple[Store, Store]) -> None:
    found = compare(stores, names=["a", "b"])
    lines = comparison_tables(replace(found, lost={"a": 0, "b": 1200}))
    assert [line for line in lines if isinstance(line, str)] == [
        "b: 0 documents that others lack, 0 not scanned to their end, 1,200 words without a token"
    ]


def test_a_label_may_be_called_as_a_model(stores: tuple[Store, Store]) -> None:
    table = compare(stores, "document", names=["lang", "b"]).table
    assert list(table.columns) == ["document", "label_lang", "lang", "b"]
    assert (table["label_lang"] == table["document"]).all()


def test_sentences_of_an_incomplete_store_are_counted_by_position(
    halves: tuple[Store, Store],
) -> None:
    keys = ["document", "position"]
    whole, half = (
        token_frame(store)[keys].join(factor_frame(store)["sentence_position"]) for store in halves
    )
    both = half.merge(whole, on=keys, suffixes=("", "_whole"))
    known = both["sentence_position"].notna()
    assert (both["sentence_position"] == both["sentence_position_whole"])[known].all()
    # Unknown only in the sentence that the missing windows begin.
    assert both["position"][~known].tolist() == list(range(512, 521))


def test_what_differs_besides_the_model_is_told(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    assert compare(stores).differing == () and compare(stores).caution == ""
    corpus = tmp_path / "corpus.jsonl"
    documents = stores[0].documents.head(6)
    documents[["id", "text"]].to_json(corpus, orient="records", lines=True)
    tracer = Tracer(byte_model(), byte_tokenizer(), model_id="bytes")
    rule = Threshold([0.02])
    other = scan(tracer, corpus, tmp_path / "s", select=rule, attention="frozen", context=64)
    found = compare([stores[0], other])
    assert found.differing == ("strata", "attention")
    told = "The stores were scanned with different strata and attention: compare ranks only."
    assert found.caution == told and comparison_tables(found)[-1] == told
    across = agreement([Subject(f"s{n}", f"{n}", DensityResult.from_store(s), s)
                        for n, s in enumerate([stores[0], other])])  # fmt: skip
    assert across is not None and across.caution == told


def test_every_setting_that_may_differ_is_named(stores: tuple[Store, Store]) -> None:
    other = replace(
        stores[0].recipe, importance="cosine", attention="frozen", scope="output", count="causal",
        context=32,
    )  # fmt: skip
    changed = SimpleNamespace(recipe=other, rule=Nucleus([0.5]))
    assert _differing([stores[0], changed]) == (  # type: ignore[list-item]
        "rules", "strata", "importances", "attention", "scopes", "counts", "contexts"
    )  # fmt: skip


def test_a_store_without_a_scanned_part_is_said_to_have_none(
    stores: tuple[Store, Store], halves: tuple[Store, Store]
) -> None:
    for part in halves[1].done_parts():
        halves[1].open_again(part)
    with pytest.raises(StoreError, match="holds no scanned token yet: scan first"):
        compare([*halves])
    with pytest.raises(StoreError, match="holds no scanned token yet: scan first"):
        factor_frame(halves[1])


@pytest.mark.parametrize("level", ["word", "document"])
def test_documents_of_one_id_are_told_apart_by_their_texts(level: Level, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for lang, word in (("en", "cat"), ("de", "Katze")):
        rows = [{"id": i, "lang": lang, "text": f"{word} {i} {word}"} for i in range(3)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (corpus / f"{lang}.jsonl").write_text(lines, encoding="utf-8")
    tracers = (Tracer(byte_model(seed=n), byte_tokenizer(), model_id=f"{n}") for n in (0, 1))
    stores = [
        scan(tracer, corpus, tmp_path / f"{number}.zarr", select=RULE)
        for number, tracer in enumerate(tracers)
    ]
    found = compare(stores, level)
    each = 3 if level == "word" else 1
    assert found.table["document"].tolist() == np.repeat([*"012012"], each).tolist()
    assert found.table["lang"].tolist() == ["de"] * 3 * each + ["en"] * 3 * each
    row = found.correlations.iloc[0]
    assert (row["rows"], row["documents"]) == (6 * each, 6)
    first, second = (found.table[name] for name in found.names)
    expected = spearman(first, second, np.repeat(np.arange(6), each))
    assert tuple(row[["spearman", "low", "high"]]) == pytest.approx(expected)


def test_what_cannot_be_compared_is_refused(stores: tuple[Store, Store]) -> None:
    with pytest.raises(InputError, match="1 stores"):
        compare(stores[:1])
    for one in (stores[0], stores[0].path, str(stores[0].path)):
        with pytest.raises(InputError, match="1 stores"):
            compare(one)  # type: ignore[arg-type]
    for most in (0, -1, 2.5):
        with pytest.raises(InputError, match=f"max_documents={most}"):
            compare(stores, max_documents=most)  # type: ignore[arg-type]
    for seed in (-1, 2.5):
        with pytest.raises(InputError, match=f"seed={seed}"):
            compare(stores, seed=seed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names='ab' is one name"):
        compare(stores, names="ab")
    with pytest.raises(InputError, match=r"0\.1 is no measure"):
        compare(stores, measure=0.1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="level='letter'"):
        compare(stores, "letter")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="different names"):
        compare(stores, names=["a", "a"])
    with pytest.raises(InputError, match="names: text: document, start, end, text are columns"):
        compare(stores, names=["text", "b"])
    with pytest.raises(InputError, match="is no measure"):
        compare(stores, measure="loss")
    found = compare(stores, "document", names=["a", "b"])
    with pytest.raises(InputError, match="'c' is none of the models a, b"):
        found.scatter("a", "c")
    with pytest.raises(InputError, match="most=-1 is below 0"):
        found.disagreements("a", "b", most=-1)


def test_intervals_of_a_correlation_cover_it() -> None:
    """Rows of a document share what moves x and y together; the interval has to know."""
    rng = np.random.default_rng(0)
    documents, rows = 25, 8
    rho = 0.5  # of the sums of two normals, each half shared within a document
    truth = 6 / np.pi * np.arcsin(rho / 2)
    owner = np.repeat(np.arange(documents), rows)
    hits, trials = 0, 200
    for trial in range(trials):
        pair = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=(2, documents * rows))
        whole = pair[0][::rows][owner] * np.sqrt(0.5) + pair[1] * np.sqrt(0.5)
        found = spearman(whole[:, 0], whole[:, 1], owner, n_resamples=199, seed=trial)
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / trials <= 0.97


def test_the_correlation_of_constant_values_is_unknown() -> None:
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3], [0, 1, 2]).value)
    frame = pd.DataFrame({"x": [3, 1, 2, 2], "y": [1, 1, 5, 2]})
    expected = stats.spearmanr(frame["x"], frame["y"]).statistic
    assert spearman(frame["x"], frame["y"], [0, 0, 1, 2]).value == pytest.approx(expected)


def test_the_partial_correlation_takes_out_what_both_owe_to_a_third() -> None:
    rng = np.random.default_rng(3)
    third = rng.integers(0, 40, 3000).astype(float)  # with ties
    x, y = third + rng.normal(scale=8, size=(2, 3000))
    document = np.repeat(np.arange(60), 50)
    assert spearman(x, y, document).low > 0.4
    found = spearman(x, y, document, given=third)
    assert found.low < 0 < found.high
    ranks = stats.rankdata([x, y, third], axis=1)
    residuals = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
    assert found.value == pytest.approx(stats.pearsonr(*residuals).statistic, abs=1e-9)


def test_the_interval_is_that_of_samples_ranked_anew() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 9, (2, 200)).astype(float)
    document = np.repeat(np.arange(20), 10)
    samples = np.random.default_rng(5)
    values = []
    for _ in range(99):
        rows = np.concatenate([np.flatnonzero(document == d) for d in samples.integers(0, 20, 20)])
        values.append(stats.spearmanr(x[rows], y[rows]).statistic)
    outer = widened(0.95, 20)
    expected = np.quantile(values, [(1 - outer) / 2, (1 + outer) / 2])
    found = spearman(x, y, document, n_resamples=99, seed=5)
    assert found[1:] == pytest.approx(tuple(expected), abs=1e-9)
