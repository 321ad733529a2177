"""Files of benches/ as modules: they are scripts, in no package."""

import importlib.util
from pathlib import Path
from types import ModuleType

BENCHES = Path(__file__).parents[1] / "benches"


def bench(name: str) -> ModuleType:
    """The module of benches/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, BENCHES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
