"""The page: complete, self-contained, and deaf to what a corpus tells it to do."""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from densitrace.errors import InputError, StoreError
from densitrace.estimator import passages as texts
from densitrace.estimator.density import DensityResult
from densitrace.estimator.page import count
from densitrace.estimator.plots import curve_figure, percent, percent_axis, shorten, to_svg
from densitrace.estimator.report import render_report, write_report
from densitrace.estimator.sections import default_labels, facts, headline

MakeResult = Callable[..., DensityResult]

ATTACK = "<script>alert(1)</script>"
DOCUMENTS = [
    {
        "id": f"{domain}-{lang}-{i}",
        "domain": domain,
        "lang": lang,
        "text": f"A passage of {domain}, number {i}: the cat & the dog <sat>.\nSecond line.",
    }
    for domain, lang, n in (("law", "en", 6), ("law", "ja", 1), ("drama", "en", 6))
    for i in range(n)
]


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, and the text that is shown."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.shown: list[str] = []
        self._inside: str | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside is None:
            self.shown.append(data)

    @property
    def text(self) -> str:
        """All shown text."""
        return "".join(self.shown)


def test_every_number_of_the_summary_is_on_the_page(make_result: MakeResult) -> None:
    result = make_result(DOCUMENTS)
    text = Page(render_report(result)).text
    for label in ("domain", "lang"):
        for value, row in result.summary(label).iterrows():
            assert str(value) in text
            for measure, form in ((result.density, percent), ("auc_tv", "{:.3f}".format)):
                assert form(row[measure]) in text
                if row["documents"] >= 5:
                    assert f"{form(row[f'{measure}_low'])}–{form(row[f'{measure}_high'])}" in text
    assert percent(result.tokens[result.density].median()) in text
    assert f"{len(result.tokens):,} tokens in {len(DOCUMENTS)} documents" in text
    for fact in ("made-up-model", "live", "0.1, 0.01, 0.001"):
        assert fact in text


def test_the_page_refers_to_nothing_outside_itself(make_result: MakeResult) -> None:
    page = render_report(make_result(DOCUMENTS, controls=("inverse", "random")))
    assert not re.search(r"https?:|//[a-z]", page.split("</head>")[1])
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    for tag, attributes in Page(page).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img", "form")
        for name in ("src", "srcset", "action", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)


def test_only_the_pages_own_script_may_run(make_result: MakeResult) -> None:
    parsed = Page(render_report(make_result(DOCUMENTS)))
    assert len(parsed.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[0].encode()).digest()).decode()
    policies = [a["content"] for _, a in parsed.elements if "http-equiv" in a]
    styles, scripts = "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'"
    assert policies == [f"default-src 'none'; img-src blob:; {styles}; {scripts}"]
    assert not any(n.startswith("on") for _, attributes in parsed.elements for n in attributes)


@pytest.mark.parametrize("where", ["id", "domain", "lang", "text"])
def test_script_in_the_corpus_is_shown_and_not_run(make_result: MakeResult, where: str) -> None:
    attack = f'{ATTACK}"><img src=x onerror=alert(1)> $\\frac$ {{{{ 7 * 7 }}}}'
    documents = [{**d, where: f"{d[where]}{attack}"} for d in DOCUMENTS]
    page = render_report(make_result(documents), title=f"Title {ATTACK}")
    parsed = Page(page)
    assert len(parsed.scripts) == 1 and "alert" not in parsed.scripts[0]
    assert not any(tag == "img" for tag, _ in parsed.elements)
    assert f"Title {ATTACK}" in parsed.text
    assert ATTACK in parsed.text if where != "text" else "{{ 7 * 7 }}" in parsed.text


def test_passages_hold_their_text_with_every_token_coloured(make_result: MakeResult) -> None:
    result = make_result(DOCUMENTS)
    both = texts.scales(result)
    for number, document in enumerate(DOCUMENTS):
        shown = texts.passage(result, number, both)
        assert "".join(cell.text for cell in shown.cells) == document["text"]
        rows = result.tokens[result.tokens["document"] == number]
        assert len([c for c in shown.cells if c.numbers]) == len(rows)
        first = shown.cells[0].numbers
        assert first is not None and len(first.split("|")) == len(texts.FIELDS)
        assert first.startswith(percent(rows.iloc[0][result.density]) + "|")


def test_tokens_that_share_a_character_share_a_cell(make_result: MakeResult) -> None:
    result = make_result([{"id": "a", "text": "é字x"}, {"id": "b", "text": "some other text"}])
    rows = result.tokens.iloc[[0] * 5].copy()
    # A special token without text, é in two pieces, 字 not scored, x.
    rows["char_start"], rows["char_end"] = [0, 0, 0, 2, 3], [0, 1, 1, 3, 3]
    rows[result.density] = [1.0, 0.1, 0.3, 0.5, 1.0]
    cells = texts.cut_into_cells("é字x", rows, result.density, texts.scales(result))
    assert [(c.text, c.numbers is None) for c in cells] == [
        ("é", False), ("字", True), ("x", False)
    ]  # fmt: skip
    values = (cells[0].numbers or "").split("|")
    assert values[0] == "20%" and values[-1] == "2"
    unknown = texts.cut_into_cells(
        "é字x", rows.assign(surprisal=np.nan), result.density, texts.scales(result)
    )
    assert (unknown[0].numbers or "").split("|")[4] == "–"


def test_colours_rise_with_the_measure_and_stay_on_the_ramp(make_result: MakeResult) -> None:
    result = make_result(DOCUMENTS)
    for scale, measure in zip(texts.scales(result), result.measures, strict=True):
        places = scale.position(result.tokens[measure].sort_values())
        assert (np.diff(places) >= 0).all()
        assert places[0] == 0 and places[-1] == 100
    wide = texts.Scale.of(pd.Series(np.arange(101.0), name="m"), log=False)
    assert (wide.low, wide.high) == pytest.approx((2, 98))
    constant = texts.Scale.of(pd.Series([0.5, 0.5], name="m"), log=True)
    assert constant.position([0.5]).tolist() == [50]


def test_a_long_document_shows_its_beginning(
    make_result: MakeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "MOST_TOKENS", 3)
    result = make_result(DOCUMENTS)
    shown = texts.passage(result, 0, texts.scales(result))
    assert shown.cut and "".join(c.text for c in shown.cells) == DOCUMENTS[0]["text"][:6]


def test_text_without_known_spans_is_shown_uncoloured(make_result: MakeResult) -> None:
    result = make_result(DOCUMENTS)
    rows = result.tokens[result.tokens["document"] == 0].assign(char_start=-1, char_end=-1)
    text = DOCUMENTS[0]["text"]
    cells = texts.cut_into_cells(text, rows, result.density, texts.scales(result))
    assert cells == (texts.Cell(text),)


@pytest.mark.parametrize("densest", [True, False])
def test_extremes_are_the_ends_of_the_ranking(densest: bool, make_result: MakeResult) -> None:
    result = make_result(DOCUMENTS)
    fit = result.tokens[result.tokens["context"] >= texts.enough_context(result)]
    by_document = fit.groupby("document")[result.density]
    best = (by_document.max() if densest else by_document.min()).sort_values(ascending=not densest)
    found = texts.extremes(result, result.density, densest, texts.scales(result), most=5)
    assert [f.value for f in found] == [percent(v) for v in best.head(5)]
    assert [f.document for f in found] == [DOCUMENTS[i]["id"] for i in best.index[:5]]
    for token in found:
        text = next(d["text"] for d in DOCUMENTS if d["id"] == token.document)
        assert f"{token.before}{token.token}{token.after}" in text.replace("\n", " ⏎ ")
        assert token.before or text.startswith(token.token)


def test_tokens_without_text_are_not_ranked(make_result: MakeResult) -> None:
    result = make_result(DOCUMENTS)
    densest = result.tokens[result.density].nlargest(3).index
    tokens = result.tokens.copy()
    tokens.loc[densest, ["char_start", "char_end"]] = -1
    tokens.loc[densest, "context"] = 100
    changed = replace(result, tokens=tokens)
    found = texts.extremes(changed, result.density, True, texts.scales(result))
    assert len(found) == len(DOCUMENTS) - 1 and all(token.token for token in found)


def test_scripts_that_run_from_right_to_left_are_marked(make_result: MakeResult) -> None:
    result = make_result(
        [
            {"id": "he", "text": "שלום עולם, שלום"},
            {"id": "ar", "text": "مرحبا بالعالم، مرحبا"},
            {"id": "en", "text": "hello world, hello"},
        ]
    )
    found = texts.extremes(result, result.density, True, texts.scales(result))
    marked = {token.document: token.rtl for token in found}
    assert marked == {"he": True, "ar": True, "en": False}


def test_every_label_combination_and_both_ends_have_a_passage(make_result: MakeResult) -> None:
    result = make_result(DOCUMENTS)
    chosen = texts.choose_documents(result, ["domain", "lang"])
    assert len(chosen) == len(set(chosen))
    shown = {(DOCUMENTS[i]["domain"], DOCUMENTS[i]["lang"]) for i in chosen}
    assert shown == {("law", "en"), ("law", "ja"), ("drama", "en")}
    means = result.documents[result.density]
    assert {means.idxmax(), means.idxmin()} <= set(chosen)
    law = result.documents[[d["domain"] == "law" and d["lang"] == "en" for d in DOCUMENTS]]
    assert law[result.density].sort_values(ascending=False).index[3] in chosen
    assert len(texts.choose_documents(result, ["domain", "lang"], most=2)) == 2
    first, *_ = texts.choose_documents(result, ["domain", "lang"], most=3)
    assert DOCUMENTS[first]["lang"] == "en"  # of the more frequent combinations


def test_documents_of_one_id_have_passages_of_their_own(make_result: MakeResult) -> None:
    result = make_result([{"id": f"{i % 3}", "text": f"text {i}"} for i in range(6)])
    assert sorted(texts.choose_documents(result, [])) == [0, 1, 2, 3, 4, 5]


def test_a_passage_names_the_labels_that_its_id_does_not_hold(make_result: MakeResult) -> None:
    result = make_result(
        [
            {"id": "sentence-1", "lang": "en", "domain": "", "text": "one"},
            {"id": "law-zh-Hant_2", "lang": "zh-Hant", "domain": "law", "text": "two"},
        ]
    )
    assert [texts.document_name(result, n) for n in (0, 1)] == ["sentence-1 · en", "law-zh-Hant_2"]


@pytest.mark.parametrize(
    ("lang", "shown"), [("en", "en"), ("zh-Hant", "zh-Hant"), ("en of 1600", ""), ("English", "")]
)
def test_only_a_language_tag_names_a_passages_language(
    lang: str, shown: str, make_result: MakeResult
) -> None:
    result = make_result([{"id": "a", "lang": lang, "text": "some words"}])
    assert texts.passage(result, 0, texts.scales(result)).lang == shown


def test_labels_with_one_value_or_too_many_are_left_out(make_result: MakeResult) -> None:
    documents = [{"id": f"d{i}", "text": "words", "same": "x", "own": str(i), "two": str(i % 2)}
                 for i in range(50)]  # fmt: skip
    assert default_labels(make_result(documents)) == ["two"]


def test_a_corpus_without_labels_has_a_page_too(make_result: MakeResult) -> None:
    page = Page(render_report(make_result([{"id": "only", "text": "one short text of its own"}])))
    assert "one short text" in page.text
    assert "Density by" not in page.text


def test_figures_keep_their_text_and_take_the_pages_colours() -> None:
    figure = Figure()
    figure.subplots().set_title("cost in $ <b> 字")
    svg = to_svg(figure, "name", 'say "what"')
    assert svg.startswith("<svg ") and "<metadata" not in svg and "http" not in svg
    assert "cost in $ &lt;b&gt; 字" in svg
    assert 'aria-label="say &quot;what&quot;"' in svg
    assert "var(--sans)" in svg and "DejaVu" not in svg
    assert to_svg(figure, "name", "x") == to_svg(figure, "name", "x")


def test_the_curve_is_the_median_within_the_middle_half(make_result: MakeResult) -> None:
    strata = make_result(DOCUMENTS, controls=("random",)).strata
    (axes,) = curve_figure(strata, 0.1).axes
    trace, random = (strata[strata["lane"] == lane] for lane in ("trace", "random"))
    lines = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert lines["trace"] == [*trace["tv_q50"], 0]
    assert lines["random"] == random["tv_q50"].tolist()
    x, y = np.asarray(axes.collections[0].get_paths()[0].vertices).T
    ends = y[np.isclose(x, trace["size_q50"].iloc[0])]
    expected = trace["tv_q25"].iloc[0], trace["tv_q75"].iloc[0]
    assert (ends.min(), ends.max()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0%"), (1.0, "100%"), (0.123, "12%"), (0.0456, "4.6%"), (0.000123, "0.012%")],
)
def test_percent_keeps_two_digits(value: float, text: str) -> None:
    assert percent(value) == text


def test_a_long_text_is_cut_to_its_length() -> None:
    assert [shorten("a" * n, 4) for n in (3, 4, 5)] == ["aaa", "aaaa", "aaa…"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0%"), (0.0125, "1.25%"), (0.3, "30%"), (1.0, "100%"), (1e-4, "0.01%")],
)
def test_ticks_of_shares_are_exact(value: float, text: str) -> None:
    assert percent_axis(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (1 - 1e-7, "1"),
        (np.nan, "nan"),
        (12.34, "12.3"),
        (49.98, "50.0"),
        (99.97, "100"),
        (1234.5, "1,234"),
    ],
)
def test_a_count_has_decimals_if_it_is_a_small_mean(value: float, text: str) -> None:
    assert count(value) == text


def test_the_scale_of_shares_ends_at_the_whole() -> None:
    assert texts.Scale("density@0.1", 0.01, 1.0, log=True).ticks == ("≤ 1.0%", "10%", "100%")
    assert texts.Scale("auc_tv", 0.5, 1.0, log=False).ticks == ("≤ 0.50", "0.75", "≥ 1.00")


def test_the_headline_compares_values_with_enough_documents(make_result: MakeResult) -> None:
    result = make_result(DOCUMENTS)
    lang, domain = (result.summary(label) for label in ("lang", "domain"))
    assert (lang["documents"] < 5).any()
    assert not any("over that of" in text for _, text in headline(result, {"lang": lang}))
    (found,) = (line for line in headline(result, {"domain": domain}) if "over that of" in line[1])
    top, bottom = domain[result.density]
    assert found[0] == f"{top / bottom:.1f}×" and top > bottom
    assert f"of {domain.index[0]} over that of {domain.index[1]}: {percent(top)}" in found[1]


def test_settings_are_words(make_result: MakeResult) -> None:
    settings: dict[str, Any] = {
        "controls": [],
        "edges": None,
        "parallel": False,
        "rule": {"values": [0.1, 1e-5]},
    }
    shown = dict(facts(replace(make_result(DOCUMENTS), settings=settings)))
    assert shown == {
        "controls": "none", "edges": "none", "parallel": "no", "rule values": "0.1, 1e-05"
    }  # fmt: skip


def test_an_unknown_label_is_refused(make_result: MakeResult) -> None:
    with pytest.raises(InputError, match="by='author'"):
        render_report(make_result(DOCUMENTS), by=["author"])


def test_a_page_that_cannot_be_written_says_so(make_result: MakeResult, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write the report"):
        write_report(make_result(DOCUMENTS), tmp_path / "file" / "report.html")
    assert (tmp_path / "file").read_text() == "in the way"
