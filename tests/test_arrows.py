"""The import arrows of docs/design.md, checked on the sources without running them."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = {"densitrace": "densitrace"} | {
    part: f"densitrace.{part}" for part in ("kernels", "tracer", "estimator")
}
USERS = ("tests", "benches", "examples")

# What a part may import from densitrace, besides itself and the exceptions.
ARROWS = {
    "kernels": {"densitrace._cpu", "densitrace._cuda"},
    "tracer": {"densitrace.kernels", "densitrace.__version__"},
    "estimator": {"densitrace.tracer", "densitrace.__version__"},
}
TENSORS = {"numpy", "torch", "triton"}  # all third-party imports of kernels/
UNSAFE = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


@dataclass(frozen=True)
class Import:
    """One imported name, such as `densitrace.kernels.edges.Pattern`."""

    name: str
    relative: bool
    for_types: bool  # under `if TYPE_CHECKING`, so never at run time

    def within(self, package: str) -> bool:
        return self.name == package or self.name.startswith(package + ".")


def imports(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import in a module's source, wherever it stands, with relative names resolved."""
    tree = ast.parse(source)
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, relative=False, for_types=node in guarded)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - 1 if is_package else node.level
            above = module.split(".")[: -up or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.level > 0, node in guarded)


def sources(*folders: str) -> list[Path]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path.relative_to(ROOT) for path in paths]


def imports_of(path: Path) -> list[Import]:
    """Imports of a file of the repository, under its import name."""
    part, *rest = path.with_suffix("").parts
    module = ".".join([PARTS.get(part, part), *rest]).removesuffix(".__init__")
    return list(imports((ROOT / path).read_text("utf-8"), module, path.name == "__init__.py"))


def names(imported: list[Import]) -> list[str]:
    return [imported.name for imported in imported]


def test_there_is_something_to_check() -> None:
    assert all(sources(part) for part in (*PARTS, "tests"))
    assert Path("tracer/models/llama.py") in sources("tracer")


def test_imports_are_read_as_python_reads_them() -> None:
    source = """
import os.path, torch as t
from .. import kernels
from ..errors import InputError as Wrong
if TYPE_CHECKING:
    from .models import Decoder
def f():
    from . import graph
"""
    result = list(imports(source, "densitrace.tracer.engine", is_package=False))
    assert {(i.name, i.relative, i.for_types) for i in result} == {
        ("os.path", False, False),
        ("torch", False, False),
        ("densitrace.kernels", True, False),
        ("densitrace.errors.InputError", True, False),
        ("densitrace.tracer.models.Decoder", True, True),
        ("densitrace.tracer.graph", True, False),
    }
    package = imports("from .llama import A\nfrom .. import b", "densitrace.tracer.models", True)
    assert names(list(package)) == ["densitrace.tracer.models.llama.A", "densitrace.tracer.b"]


@pytest.mark.parametrize("part", ARROWS)
def test_parts_import_along_the_arrows(part: str) -> None:
    allowed = {PARTS[part], "densitrace.errors", *ARROWS[part]}
    back = [
        f"{path}: {imported.name}"
        for path in sources(part)
        for imported in imports_of(path)
        if imported.within("densitrace") and not any(map(imported.within, allowed))
    ]
    assert not back


def test_errors_are_a_leaf() -> None:
    assert imports_of(Path("densitrace/errors.py")) == []


@pytest.mark.parametrize("part", PARTS)
def test_packages_import_themselves_relatively(part: str) -> None:
    absolute = [
        f"{path}: {imported.name}"
        for path in sources(part)
        for imported in imports_of(path)
        if not imported.relative and any(map(imported.within, {*PARTS, "densitrace"}))
    ]
    assert not absolute


@pytest.mark.parametrize("folder", USERS)
def test_users_import_densitrace_by_its_name(folder: str) -> None:
    inside = [
        f"{path}: {imported.name}"
        for path in sources(folder)
        for imported in imports_of(path)
        if imported.relative or any(map(imported.within, set(PARTS) - {"densitrace"}))
        if path.parts[1] not in ("oracles", "ptx")  # packages of the tests that import relatively
    ]
    assert not inside


def test_kernels_import_only_tensor_packages() -> None:
    for path in sources("kernels"):
        outside = {i.name.split(".")[0] for i in imports_of(path) if not i.relative}
        assert outside - TENSORS <= sys.stdlib_module_names, path


def test_compiled_code_is_called_in_one_place() -> None:
    callers = {
        path
        for path in sources(*PARTS)
        for imported in imports_of(path)
        if imported.within("densitrace._cpu")
    }
    assert callers == {Path("kernels/cpu.py")}


def test_only_models_import_transformers_models() -> None:
    """Elsewhere its types may be imported for annotations, and `transformers.utils` (logging)."""
    elsewhere = [
        f"{path}: {imported.name}"
        for path in sources(*PARTS)
        if path.parent != Path("tracer/models")
        for imported in imports_of(path)
        if imported.within("transformers") and not imported.for_types
        if not imported.within("transformers.utils")
    ]
    assert not elsewhere
    assert any(i.within("transformers") for i in imports_of(Path("tracer/models/decoder.py")))


def test_only_store_files_import_zarr() -> None:
    knowing = {
        path
        for path in sources(*PARTS)
        for imported in imports_of(path)
        if imported.within("zarr") or imported.within("numcodecs")
    }
    files = ("store.py", "stored_edges.py", "stored_plan.py")
    assert knowing == {Path("tracer") / file for file in files}


@pytest.mark.parametrize("path", sources(*PARTS, *USERS), ids=str)
def test_data_is_never_run_as_code(path: Path) -> None:
    assert not [i.name for i in imports_of(path) if i.name.split(".")[0] in UNSAFE]
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.Call):
            assert not unsafe_options(node), f"{path}:{node.lineno}"


def unsafe_options(call: ast.Call) -> list[str]:
    """Keywords that let data run code, and `torch.load` without `weights_only=True`."""
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    unsafe = [name for name in ("trust_remote_code", "allow_pickle") if given.get(name) == "True"]
    if ast.unparse(call.func) == "torch.load" and given.get("weights_only") != "True":
        unsafe.append("weights_only")
    return unsafe


@pytest.mark.parametrize(
    ("call", "unsafe"),
    [
        ("AutoModel.from_pretrained(m, trust_remote_code=True)", ["trust_remote_code"]),
        ("np.load(f, allow_pickle=True)", ["allow_pickle"]),
        ("np.load(f, allow_pickle=False)", []),
        ("torch.load(f)", ["weights_only"]),
        ("torch.load(f, weights_only=True)", []),
    ],
)
def test_unsafe_options_are_seen(call: str, unsafe: list[str]) -> None:
    expression = ast.parse(call, mode="eval").body
    assert isinstance(expression, ast.Call)
    assert unsafe_options(expression) == unsafe
