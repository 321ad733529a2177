"""Every Python block of the README and docs/ runs, page by page, each page in a fresh folder."""

import re
from pathlib import Path

import pytest

from densitrace.tracer.models import ARCHITECTURES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


def test_links_resolve() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_declared_family_is_listed() -> None:
    page = (ROOT / "docs" / "declare-architecture.md").read_text(encoding="utf-8")
    table = page.partition("## What is declared\n")[2].partition("\n\n")[0]
    declared = ARCHITECTURES.keys() - {"persimmon"}  # from the page's example, if it has run
    assert set(re.findall(r"`([\w-]+)`", table)) - {"model_type"} == declared
