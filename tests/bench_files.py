"""Import files that belong to no package: scripts of benches/, or tests that other tests reuse."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def module_at(path: Path) -> ModuleType:
    """Load a file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bench(name: str) -> ModuleType:
    """Load benches/NAME.py as a module."""
    return module_at(ROOT / "benches" / f"{name}.py")
