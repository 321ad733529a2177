"""Factors against their definitions, written out token by token."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_store import made_up_documents, make_store

from densitrace import InputError, Store, Threshold, Tracer, open_store, scan
from densitrace.estimator.features import (
    FACTORS,
    factor_frame,
    factor_table,
    frequency_bands,
    is_category,
    with_columns,
)
from densitrace.estimator.frames import token_frame


@pytest.fixture(scope="module")
def store(demo_run: Any) -> Store:
    return open_store(demo_run.folder / "traces.zarr")


def test_rows_are_those_of_the_token_frame_and_columns_are_declared(store: Store) -> None:
    frame = factor_frame(store)
    assert frame.index.equals(token_frame(store).index)
    declared = {f.name: f for f in FACTORS if f.name != "log_reference_frequency"}
    assert list(frame.columns) == [*declared, *store.labels]
    for name, factor in declared.items():
        assert is_category(frame[name]) == (factor.kind == "category"), name
        assert is_category(frame[name]) or frame[name].dtype == np.float64


def test_frequency_leaves_out_the_occurrence_itself(store: Store) -> None:
    ids = token_frame(store)["token"].tolist()
    found = factor_frame(store)["log_frequency"].tolist()
    for row in range(0, len(ids), 7):
        others = ids[:row] + ids[row + 1 :]
        count = others.count(ids[row]) or 0.5
        assert found[row] == pytest.approx(math.log10(1e6 * count / len(others)))


def test_reference_counts_by_mapping_and_by_array_agree(store: Store) -> None:
    tokens = token_frame(store)["token"]
    table = np.arange(4096.0)
    mapping = dict(enumerate(table.tolist()))
    column = "log_reference_frequency"
    by_array = factor_frame(store, table)[column]
    expected = np.log10(1e6 * np.maximum(tokens, 0.5) / table.sum())
    np.testing.assert_allclose(by_array, expected)
    pd.testing.assert_series_equal(by_array, factor_frame(store, mapping)[column])


def test_surprisal_is_of_the_token_itself_and_of_the_next(store: Store) -> None:
    tokens, frame = token_frame(store), factor_frame(store)
    for rows in tokens.groupby("window").indices.values():
        own, following = (frame[f"surprisal_{which}"].to_numpy()[rows] for which in ("own", "next"))
        assert np.isnan(own[0])
        np.testing.assert_array_equal(own[1:], following[:-1])
        np.testing.assert_array_equal(following, tokens["surprisal"].to_numpy()[rows])


def test_nothing_predicts_the_first_token_of_a_later_window(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", made_up_documents(200), context=16, strata=[0.1, 0.01])
    tokens, own = token_frame(store), factor_frame(store)["surprisal_own"]
    assert (tokens["window"] > tokens["document"]).any()
    assert (own.isna() == (tokens["context"] == 1)).all()


def test_repetition_looks_back_within_the_window(store: Store) -> None:
    tokens, frame = token_frame(store), factor_frame(store)
    for rows in tokens.groupby("window").indices.values():
        ids = tokens["token"].to_numpy()[rows].tolist()
        for place, token in enumerate(ids):
            before = [back for back in range(1, place + 1) if ids[place - back] == token]
            row = frame.iloc[rows[place]]
            assert row["repeated"] == ("yes" if before else "no")
            distance = row["repeat_distance"]
            assert distance == before[0] if before else np.isnan(distance)


def test_text_factors_of_many_scripts(tmp_path: Path) -> None:
    model = Path(__file__).parents[2] / "examples" / "model"
    text = "Unknowingly 42!\n字猫。 naïve"
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(pd.Series({"text": text}).to_json() + "\n")
    store = scan(Tracer.from_pretrained(model), corpus, tmp_path / "s", select=Threshold([0.1]))
    tokens, frame = token_frame(store), factor_frame(store)
    spans = zip(tokens["char_start"], tokens["char_end"], strict=True)
    frame["text"] = [text[a:b] for a, b in spans]
    first = frame.iloc[0]
    assert (first["token_length"], first["word_place"], first["script"]) == (0, "none", "none")
    by_text = {row["text"].strip(): row for row in frame.to_dict("records")}
    assert by_text["!"]["character_class"] == "punctuation"
    assert by_text["!"]["word_place"] == "initial"
    for character in "字猫":
        pieces = frame[frame["text"] == character]  # one character, one or more byte tokens
        assert pieces["script"].tolist() == ["cjk"] * len(pieces)
        places = ["initial"] + ["continuation"] * (len(pieces) - 1)
        assert pieces["word_place"].tolist() == places
    long = frame[frame["text"].map(lambda t: bool(t) and t in "Unknowingly")]
    assert long["word_place"].tolist() == ["initial"] + ["continuation"] * (len(long) - 1)
    assert (long["token_length"] == long["text"].str.len()).all()
    # Sentences begin after the line break and after the ideographic full stop.
    begins = frame.loc[frame["sentence_position"] == 0, "text"].str.strip().tolist()
    assert begins[:3] == ["", "U", "字"]  # the first is the beginning-of-text token
    assert len(begins) == 4 and "naïve".startswith(begins[3] or "-")
    assert frame["position"].tolist() == list(range(len(frame)))


def test_users_add_columns(store: Store) -> None:
    tokens = token_frame(store)
    given: dict[str, Any] = {
        "octave": lambda f: np.floor(np.log2(f["context"])),
        "next_octave": lambda f: f["octave"] + 1,
        "capital": lambda f: f["text"].str.strip().str[:1].str.isupper(),
        "id": tokens["token"],
        "parity": np.where(tokens["token"] % 2, "odd", "even"),
    }
    frame = factor_frame(store, factors=given)
    assert frame["octave"].dtype == np.float64
    assert [is_category(frame[name]) for name in given] == [False, False, True, False, True]
    table = factor_table(frame)
    assert table.loc["parity", "description"] == "given by the user"
    assert table.loc["domain", "description"] == "label of the token's document"
    assert table.loc["domain", "kind"] == "category"
    assert "text" not in frame


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"context": [1.0, 2.0]}, "there already"),
        ({"text": [1.0, 2.0]}, "there already"),
        ({"mine": [1.0]}, "1 values for 2 tokens"),
        ({"mine": pd.Series([1.0, 2.0], [5, 6])}, "another index"),
    ],
)
def test_columns_that_do_not_fit_are_refused(factors: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_columns(pd.DataFrame({"context": [1.0, 2.0]}), factors)


@pytest.mark.parametrize("counts", [[1.0, 2.0], np.full(4096, -1.0), {0: 0.0}, {0: -1.0, 1: 2.0}])
def test_counts_that_cannot_be_are_refused(store: Store, counts: Any) -> None:
    with pytest.raises(InputError, match="reference_counts"):
        factor_frame(store, counts)


def test_counts_for_all_ids_but_the_highest_are_refused(store: Store) -> None:
    highest = int(token_frame(store)["token"].max())
    with pytest.raises(InputError, match=f"but token id {highest} occurs"):
        factor_frame(store, np.ones(highest))
    assert factor_frame(store, np.ones(highest + 1))["log_reference_frequency"].nunique() == 1


def test_frequency_bands_are_decades() -> None:
    bands = frequency_bands([0.2, -1.5, 1.0, 3.7, 3.2])
    assert bands.tolist() == ["< 10", "< 10", "10 to 100", *["1,000 to 10,000"] * 2]
    assert list(bands.cat.categories) == ["< 10", "10 to 100", "100 to 1,000", "1,000 to 10,000"]
