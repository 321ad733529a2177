"""The examples in docstrings run as they are printed."""

import doctest
import importlib
from functools import cache
from pathlib import Path

import pytest
import torch

import densitrace
from densitrace import Tracer

ROOT = Path(__file__).parents[1]
PARTS = ("kernels", "tracer", "estimator")
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for part in PARTS
    for path in sorted((ROOT / part).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@cache
def bundled() -> Tracer:
    return Tracer.from_pretrained(ROOT / "examples" / "model", device="cpu")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch, the public names, and a `tracer` of the bundled model at hand."""
    monkeypatch.chdir(ROOT)
    module = importlib.import_module(f"densitrace.{name}")
    public = {known: getattr(densitrace, known) for known in densitrace.__all__}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module):
        example.globs |= public | {"torch": torch}
        text = example.docstring or ""
        if "tracer." in text and "tracer = " not in text:
            example.globs["tracer"] = bundled()
            example.globs["trace"] = bundled().trace("The cat sat on the mat")
        runner.run(example)
    assert runner.failures == 0
