"""The installed package: built, installed and imported in fresh environments.

Each environment sees the packages of the one that runs the tests, but not its densitrace: the
folder is on the path without its .pth files, so editable installs are not visible.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import densitrace

ROOT = Path(__file__).parents[1]
PARTS = ("kernels", "tracer", "estimator")
BUILT_FROM = ("densitrace", "csrc", *PARTS)
BUILT = shutil.ignore_patterns("build", "*.egg-info", "*.so")
NOT_SOURCES = shutil.ignore_patterns("__pycache__", "*.so", ".*_cache")

LIGHT = """
import importlib.metadata, importlib.util, sys
import densitrace, densitrace._cpu
assert "torch" not in sys.modules and "transformers" not in sys.modules
assert importlib.metadata.version("densitrace") == densitrace.__version__
for module in ("kernels", "tracer.models", "estimator", "errors"):
    assert importlib.util.find_spec(f"densitrace.{module}") is not None, module
found = importlib.util.find_spec("kernels")
print(found and found.origin)
# Who reads a store waits for neither.
import densitrace.estimator.report, densitrace.estimator.page
assert densitrace.open_store
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
TRANSFORMERS = (
    LIGHT
    + """
from transformers.utils import is_kernels_available
assert not is_kernels_available()
"""
)
EVERYTHING = """
import densitrace
for name in densitrace.__all__:
    getattr(densitrace, name)
from densitrace import kernels
assert kernels.backends()["bottleneck"] == "cpu"
print(kernels.__file__)
"""
TRACED_WITHOUT_COMPILER = """
import contextlib, io
import torch
from densitrace import Threshold, Tracer, kernels
from densitrace.errors import BackendError
from tiny_models import tiny_model
assert set(kernels.backends().values()) == {"reference"}
tracer = Tracer(tiny_model("llama"))
with contextlib.redirect_stderr(io.StringIO()) as said:
    for _ in range(2):
        trace = tracer.trace(torch.arange(9), select=Threshold([1e-2, 1e-1]))
assert trace.size.shape == (9, 2) and 0 < trace.size[-1, 0] < trace.size[-1, 1] < 1
try:
    Tracer(tiny_model("llama"), backend="cpu").trace(torch.arange(9), select=Threshold([1e-2]))
except BackendError as error:
    assert "C++ compiler" in str(error)
else:
    raise AssertionError("a backend that is not there was served")
print(said.getvalue())
"""

WITHOUT_COMPILER = {"CC": "false", "CXX": "false"}


@dataclass(frozen=True)
class Environment:
    """A virtual environment with densitrace installed, and the checkout it came from."""

    folder: Path
    checkout: Path

    @property
    def packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "lib" / version / "site-packages"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, command: Sequence[str | Path], cwd: Path, *path: Path) -> str:
        """Output of a program of this environment, with `path` before its packages."""
        clean = {name: value for name, value in os.environ.items() if "PYTHON" not in name}
        done = subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=cwd,
            env=clean | {"PYTHONPATH": os.pathsep.join(map(str, path)), "COLUMNS": "80"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def pip(*arguments: str | Path, python: Path | None = None, **settings: str) -> None:
    """Run pip without an index: everything needed is already here. `settings`: environment."""
    target = [] if python is None else ["--python", str(python)]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", *target, *map(str, arguments), *offline, "--quiet"]
    subprocess.run(command, check=True, env=os.environ | settings)


def new_environment(folder: Path, checkout: Path) -> Environment:
    """Create an environment without densitrace; see above for what it sees."""
    made = Environment(folder / "venv", checkout)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made.folder], check=True)
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (made.packages / "outer.pth").write_text("\n".join(outer))
    return made


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that nothing is built in the repository."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in BUILT_FROM:
        shutil.copytree(ROOT / name, folder / name, ignore=NOT_SOURCES)
    for path in ROOT.iterdir():
        if path.is_file() and path.suffix in (".md", ".py", ".toml", ".in", ".txt", ""):
            shutil.copy2(path, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", checkout, "--wheel-dir", folder)
    (built,) = folder.glob("densitrace-*.whl")
    return built


@pytest.fixture(scope="session", params=["wheel", "folder", "editable"])
def environment(
    request: pytest.FixtureRequest,
    wheel: Path,
    checkout: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Environment:
    """densitrace installed from the wheel, by `pip install .` and by `pip install -e .`."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param != "editable":
        installed = new_environment(folder, checkout)
        pip("install", wheel if request.param == "wheel" else checkout, python=installed.python)
        return installed
    # It builds into its checkout, which would hide a module missing from the other two.
    checkout = shutil.copytree(checkout, folder / "checkout")
    installed = new_environment(folder, checkout)
    pip("install", "--editable", checkout, python=installed.python, **WITHOUT_COMPILER)
    # An editable build compiles everything anew: the wheel's modules go where it would put them.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(checkout, [name for name in archive.namelist() if ".cpython" in name])
    return installed


@pytest.fixture(scope="session")
def other_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another package called `kernels`, too old for transformers to use."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "kernels").mkdir()
    (folder / "kernels" / "__init__.py").write_text("OTHER = True\n")
    (folder / "kernels-0.0.1.dist-info").mkdir()
    (folder / "kernels-0.0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: kernels\nVersion: 0.0.1\n"
    )
    return folder


def test_wheel_holds_every_source_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(ROOT) for path in (ROOT / "densitrace").glob("*.py*")}
    sources |= {
        Path("densitrace", path.relative_to(ROOT))
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if path.is_file() and not any(".pyc" in p or p.startswith(".") for p in path.parts)
    }
    sources |= {Path("densitrace", name) for name in ("py.typed", "_cpu.pyi", "_cuda.pyi")}
    compiled = {name for name in held if ".cpython" in name}
    built = ["_cpu", "_cuda"] if shutil.which("nvcc") else ["_cpu"]
    assert sorted(Path(name).name.partition(".")[0] for name in compiled) == built
    assert held - compiled == {path.as_posix() for path in sources}


def test_import_from_anywhere(environment: Environment, tmp_path: Path) -> None:
    assert environment.run(["python", "-c", LIGHT], tmp_path) == "None"


def test_import_from_the_root(environment: Environment, other_kernels: Path) -> None:
    """There `kernels` is not the folder kernels/ but the package of that name, if there is one."""
    root = environment.checkout
    other = str(other_kernels / "kernels" / "__init__.py")
    assert environment.run(["python", "-c", TRANSFORMERS], root) == "None"
    assert environment.run(["python", "-c", TRANSFORMERS], root, other_kernels) == other


@pytest.mark.parametrize("environment", ["folder"], indirect=True)
def test_every_public_name_from_the_root(environment: Environment) -> None:
    """The installed package runs, not the sources in the root."""
    kernels = environment.run(["python", "-c", EVERYTHING], environment.checkout)
    assert kernels == str(environment.packages / "densitrace" / "kernels" / "__init__.py")


def test_command_and_module_are_the_same(environment: Environment, tmp_path: Path) -> None:
    version = environment.run(["densitrace", "--version"], tmp_path)
    assert densitrace.__version__ in version
    module = ["python", "-m", "densitrace", "--version"]
    assert environment.run(module, environment.checkout) == version


@pytest.mark.parametrize("options", [[], ["--editable"]], ids=["folder", "editable"])
def test_without_a_compiler(options: list[str], checkout: Path, tmp_path: Path) -> None:
    """It installs, warns once that plain torch serves, and traces."""
    fresh = shutil.copytree(checkout, tmp_path / "checkout", ignore=BUILT)
    bare = new_environment(tmp_path, fresh)
    pip("install", *options, fresh, python=bare.python, **WITHOUT_COMPILER)
    assert not [*tmp_path.rglob("_c*.so")]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy2(ROOT / "tests" / "tiny_models.py", elsewhere)
    (said,) = bare.run(["python", "-c", TRACED_WITHOUT_COMPILER], elsewhere).splitlines()
    assert said.startswith("Plain torch serves the compiled ops, slower: ")
    *table, last = bare.run(["densitrace", "info"], elsewhere).splitlines()
    assert said.endswith(last)
    assert [line.split()[3] for line in table if "bottleneck" in line] == ["reference"]


def test_public_names() -> None:
    assert set(densitrace.__all__) <= set(dir(densitrace))
    for name in set(densitrace.__all__) - {"__version__"}:
        home = densitrace._HOME[name]
        assert getattr(densitrace, name).__module__ == f"densitrace{home}", name
    with pytest.raises(AttributeError, match="'densitrace' has no attribute 'Tracre'"):
        _ = densitrace.Tracre
