"""The page in a real browser: what it shows, hides, recolours and saves, and what it never does."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, Pipe, browser, chromium
from made_up_store import made_up_documents, make_store

from densitrace.estimator.report import write_report
from densitrace.tracer.corpus import Document

pytestmark = pytest.mark.skipif(chromium() is None, reason="there is no Chromium to drive")

OWNED = "document.title='owned'"
ATTACK = (
    f'</script><script>{OWNED}</script></template></p><img src=x onerror="{OWNED}">'
    f'\'"><svg onload={OWNED}> {{{{ 7 * 7 }}}} <!-- <b onclick="{OWNED}">'
)
EVIL = "Evil"


def documents() -> Iterator[Document]:
    for number, document in enumerate(made_up_documents(1200, mean_length=60)):
        labels = {**document.labels, f"who{ATTACK}": "ab"[number % 2] + ATTACK}
        text = f"{EVIL} {ATTACK} {document.text}" if number % 2 else document.text
        yield Document(f"{document.id}{ATTACK}", text, labels, document.source)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two stores whose texts, ids, labels and models try to run a script."""
    folder = tmp_path_factory.mktemp("report")
    stores = [
        make_store(folder / f"{seed}.zarr", documents(), context=64, strata=[0.1, 0.01, 0.001],
                   controls=("inverse", "random"), model=f"model {seed}{ATTACK}", seed=seed)
        for seed in range(2)
    ]  # fmt: skip
    return write_report(stores, folder / "report.html", factors=False, title=f"Title {ATTACK}")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipe]:
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def page(pipe: Pipe, report: Path) -> Iterator[Page]:
    """The page, opened anew; whatever a test does to it, it neither fails nor asks for anything."""
    opened = Page(pipe)
    opened.open(report)
    yield opened
    assert opened.trouble() == []
    assert [url for url in opened.requests() if not url.startswith("blob:")] == [report.as_uri()]
    opened.pipe.call("Target.closeTarget", targetId=opened.target)


def style(page: Page, selector: str, name: str) -> str:
    found: str = page.run(f"getComputedStyle(document.querySelector('{selector}')).{name}")
    return found


def test_trouble_and_requests_would_be_seen(pipe: Pipe, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<img src='nowhere.png'><script>console.error('oh'); missing()</script>")
    opened = Page(pipe)
    opened.open(path)
    assert "nowhere.png" in opened.requests()[-1]
    assert len(opened.trouble()) >= 3


def test_nothing_of_the_corpus_runs(page: Page) -> None:
    page.click("#s1 .later")
    page.click("#tab-across")
    assert page.run("document.title").startswith("Title </script>")
    assert page.run("document.scripts.length") == 1
    assert page.run("document.images.length") == 0
    assert page.run("document.querySelectorAll('[onerror], [onload], [onclick]').length") == 0
    assert page.run("document.querySelector('#tab-s1').textContent") == f"model 0{ATTACK}"
    texts = page.run("[...document.querySelectorAll('#s1 .text')].map(e => e.textContent)")
    assert any(ATTACK in text for text in texts)
    assert "{{ 7 * 7 }}" in page.run("document.querySelector('#s1 figure svg').parentElement"
                                     ".closest('.panel').textContent")  # fmt: skip


def test_the_policy_stops_what_the_page_does_not_hold(pipe: Pipe, report: Path) -> None:
    opened = Page(pipe)
    opened.open(report)
    blocked = opened.run("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'blocked')")
    opened.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/x\">')"
    )
    opened.run(
        "(() => { const s = document.createElement('script'); s.textContent = \"" + OWNED
        + "\"; document.body.append(s); })()"
    )  # fmt: skip
    assert blocked == "blocked" and opened.run("document.title").startswith("Title")
    assert len([line for line in opened.trouble() if "Content Security Policy" in line]) >= 3


def test_hovering_shows_a_tokens_numbers(page: Page) -> None:
    assert page.run("document.getElementById('reading').hidden") is True
    page.point("#s1 .passage:not(.away) .t:nth-of-type(3)")
    assert page.run("document.getElementById('reading').hidden") is False
    numbers = page.run("[...document.querySelectorAll('#reading dd')].map(e => e.textContent)")
    names = page.run("[...document.querySelectorAll('#reading dt')].map(e => e.textContent)")
    token = "document.querySelector('#s1 .passage:not(.away) .t:nth-of-type(3)')"
    assert numbers[:8] == page.run(f"{token}.dataset.n.split('|')")
    assert names[8:] == ["size at stratum 0.01", "error at stratum 0.01"]
    assert numbers[8].endswith("%") and 0 <= float(numbers[9]) <= 1
    page.point("#s1 .passages h2")
    assert page.run("document.getElementById('reading').hidden") is True


def test_arrow_keys_show_a_tokens_numbers(page: Page) -> None:
    page.run("document.querySelector('#s1 .passage:not(.away) .text').focus()")
    page.press("ArrowRight")
    page.press("ArrowRight")
    on = "[...document.querySelectorAll('.t.on')].map(e => e.dataset.n)"
    second = page.run("document.querySelectorAll('#s1 .passage:not(.away) .t')[1].dataset.n")
    assert page.run(on) == [second]
    assert page.run("document.querySelector('#reading dd').textContent") == second.split("|")[0]
    page.press("Escape")
    assert page.run(on) == [] and page.run("document.getElementById('reading').hidden")


def test_every_control_is_reached_by_tab_and_shows_that_it_is(page: Page) -> None:
    reached, names = [], []
    active = "document.activeElement"
    for _ in range(80):
        page.press("Tab")
        if page.run(f"{active} === document.body"):
            break
        reached.append(page.run(f"{active}.tagName + '.' + {active}.className + '#' + {active}.id"))
        names.append(
            page.run(
                f"({active}.ariaLabel || {active}.labels?.[0]?.textContent || {active}.textContent)"
            ).strip()
        )
        assert page.run(f"{active}.matches(':focus-visible')")
        assert page.run(f"getComputedStyle({active}).outlineStyle") != "none", reached[-1]
    for part in (
        "INPUT",
        "#theme",
        "#tab-s1",
        ".colour",
        ".stratum",
        ".search",
        ".choice",
        ".text",
    ):
        assert any(part in each for each in reached), part
    assert all(names), list(zip(reached, names, strict=True))


def test_a_stratum_and_its_measures_recolour_passages(page: Page) -> None:
    shown = "[...document.querySelectorAll('#s1 .passage:not(.away) .t')]"
    colours = f"{shown}.map(e => getComputedStyle(e).backgroundColor)"
    seen = [page.run(colours)]
    choose = (
        "(() => {{ const e = document.querySelector('#s1 .{0}'); e.value = '{1}';"
        "e.dispatchEvent(new Event('change')); }})()"
    )
    for name, value in (
        ("colour", "auc"), ("colour", "size"), ("stratum", "0.1"), ("colour", "tv"),
        ("stratum", "0.001"),
    ):  # fmt: skip
        page.run(choose.format(name, value))
        seen.append(page.run(colours))
    assert len({str(each) for each in seen}) == len(seen)
    assert page.run("document.querySelector('#s1 .at-stratum').hidden") is False
    legend = page.run("document.querySelector('#s1 .at-stratum').ariaLabel")
    assert legend.startswith("Colour scale of the error at stratum 0.001")
    # A token of more error is never coloured as one of less.
    page.run(choose.format("stratum", "0.01"))
    pairs = []
    for number in range(6):
        page.point(f"#s1 .passage:not(.away) .t:nth-of-type({number + 1})")
        error = page.run("[...document.querySelectorAll('#reading dd')].at(-1).textContent")
        pairs.append(
            (float(error), page.run(f"Number({shown}[{number}].style.getPropertyValue('--s'))"))
        )
    places = [place for _, place in sorted(pairs)]
    assert places == sorted(places)
    page.click("input[value=auc]")
    assert page.run(colours) == seen[1]


def test_the_measure_changes_figures_and_tables(page: Page) -> None:
    visible = "[...document.querySelectorAll('#s1 .exhibit')].filter(e => e.checkVisibility())"
    names = f"{visible}.map(e => e.dataset.name)"
    density = page.run(names)
    page.click("input[value=auc]")
    auc = page.run(names)
    assert "s1-by-domain-density" in density and "s1-by-domain-auc" not in density
    assert "s1-by-domain-auc" in auc and "s1-by-domain-density" not in auc


def test_search_finds_passages_and_marks_tokens(page: Page) -> None:
    page.run("document.querySelector('#s1 .search').focus()")
    page.type(EVIL.upper())
    options = "[...document.querySelector('#s1 .choice').options]"
    texts = page.run("[...document.querySelectorAll('#s1 .text')].map(e => e.textContent)")
    enabled = page.run(f"{options}.map(o => !o.disabled)")
    assert enabled == [EVIL in text for text in texts]
    assert 0 < sum(enabled) < len(enabled)
    n = sum(enabled)
    found = page.run("document.querySelector('#s1 .hits').textContent")
    assert found == f"{n} place{'s' * (n > 1)} in {n} passage{'s' * (n > 1)}"
    assert EVIL in page.run("document.querySelector('#s1 .passage:not(.away) .text').textContent")
    hits = page.run("[...document.querySelectorAll('#s1 .t.hit')].map(e => e.textContent)")
    assert len(hits) == n and all(EVIL in hit for hit in hits)
    before = page.run("document.querySelector('#s1 .choice').selectedIndex")
    page.press("Enter")
    after = page.run("document.querySelector('#s1 .choice').selectedIndex")
    assert enabled[after] and (after != before or n == 1)
    page.type("nothing like it")
    assert page.run("document.querySelector('#s1 .hits').textContent") == "nowhere"


def test_light_and_dark_follow_the_system_and_the_button(page: Page) -> None:
    light = style(page, "body", "backgroundColor")
    page.prefer(color_scheme="dark")
    dark = style(page, "body", "backgroundColor")
    assert light != dark
    assert page.run("document.getElementById('theme').ariaPressed") == "true"
    page.click("#theme")
    assert style(page, "body", "backgroundColor") == light
    page.prefer(color_scheme="light")
    page.click("#theme")
    assert style(page, "body", "backgroundColor") == dark
    # Print is always on light paper, and shows every model.
    page.call("Emulation.setEmulatedMedia", media="print")
    assert style(page, "body", "backgroundColor") == light
    assert page.run("document.getElementById('s2').checkVisibility()") is True
    assert page.run("document.getElementById('theme').checkVisibility()") is False


def test_tables_fit_on_printed_paper(pipe: Pipe, report: Path) -> None:
    opened = Page(pipe, width=670)  # A4 between its margins
    opened.open(report)
    opened.call("Emulation.setEmulatedMedia", media="print")
    widths = opened.run(
        "(() => { const e = [...document.querySelectorAll('#s1 .scroll')].find(e =>"
        "e.textContent.includes('Rank correlations')); return [e.scrollWidth, e.clientWidth]; })()"
    )
    assert widths[0] == widths[1]


def test_tabs_show_one_model_at_a_time(page: Page) -> None:
    shown = (
        "[...document.querySelectorAll('.panel')].filter(e => e.checkVisibility()).map(e => e.id)"
    )
    assert page.run(shown) == ["s1"]
    page.click("#tab-s2")
    assert page.run(shown) == ["s2"]
    page.press("ArrowRight")
    assert page.run(shown) == ["across"]
    assert page.run("document.activeElement.id") == "tab-across"
    assert page.run("document.getElementById('tab-across').ariaSelected") == "true"
    assert "Spearman" in page.run("document.getElementById('across').innerText")


@pytest.mark.parametrize("width", [1000, 390])
def test_nothing_is_wider_than_the_window(pipe: Pipe, report: Path, width: int) -> None:
    opened = Page(pipe, width=width)
    opened.open(report)
    assert opened.run("document.documentElement.scrollWidth") <= width


def test_figures_are_saved_as_svg_png_and_csv(page: Page, tmp_path: Path) -> None:
    page.pipe.call(
        "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path),
        eventsEnabled=True,
    )  # fmt: skip
    page.prefer(color_scheme="dark")
    for kind in ("svg", "png", "csv"):
        before = len(page.pipe.events)
        page.click(f"#s1 .exhibit[data-name='s1-curve'] [data-save={kind}]")
        begun = page.pipe.wait("Browser.downloadWillBegin", after=before)["params"]
        assert begun["suggestedFilename"] == f"s1-curve.{kind}"
        page.pipe.wait(
            "Browser.downloadProgress", lambda e: e["params"]["state"] == "completed", before
        )
    drawing = (tmp_path / "s1-curve.svg").read_text(encoding="utf-8")
    assert drawing.startswith("<svg") and 'xmlns="http://www.w3.org/2000/svg"' in drawing
    assert "var(" not in drawing and "total variation" in drawing
    rows: list[Any] = list(csv.DictReader(io.StringIO((tmp_path / "s1-curve.csv").read_text())))
    assert {row["lane"] for row in rows} == {"trace", "inverse", "random"}
    assert len(rows) == 9 and all(0 <= float(row["tv_q50"]) <= 1 for row in rows)
    _same_picture(page, tmp_path)


def _same_picture(page: Page, folder: Path) -> None:
    """The PNG is the SVG at three times its size, on the paper of the page."""
    image = (folder / "s1-curve.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    width, height = (int.from_bytes(image[i : i + 4], "big") for i in (16, 20))
    box = page.run("(() => { const b = document.querySelector('#s1 .exhibit svg').viewBox.baseVal;"
                   "return [b.width, b.height]; })()")  # fmt: skip
    assert (width, height) == tuple(int(3 * side) for side in box)
    assert len(image) > 5000  # something is drawn
