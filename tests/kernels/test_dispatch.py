"""Which backend serves an op, with everything built and with the compiled one missing."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import cuda_host
import pytest
import torch

import densitrace
from densitrace import BackendError, kernels
from densitrace.kernels import (
    AttentionEdges,
    GivenWeight,
    Pattern,
    ProximityWeight,
    RandomWeight,
    dispatch,
    reference,
    triton,
)

LOGGER = "densitrace.kernels.dispatch"
MAPS = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Clear what a process caches, before and after each test."""
    for cached in (dispatch.missing, dispatch._warn_of):
        cached.cache_clear()
    yield
    for cached in (dispatch.missing, dispatch._warn_of):
        cached.cache_clear()


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate that densitrace._cuda was not built, as without a CUDA compiler."""
    for name in [name for name in sys.modules if name.startswith("densitrace.kernels.cuda.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "densitrace.kernels.cuda", raising=False)
    monkeypatch.delattr(densitrace, "_cuda", raising=False)
    monkeypatch.setitem(sys.modules, "densitrace._cuda", None)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Simulate that densitrace._cuda was built."""
    monkeypatch.setitem(sys.modules, "densitrace.kernels.cuda", cuda_host.ops)
    return cuda_host.ops


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate that densitrace._cpu was not built: importing it is an ImportError."""
    monkeypatch.delitem(sys.modules, "densitrace.kernels.cpu", raising=False)
    monkeypatch.delattr(densitrace, "_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "densitrace._cpu", None)


def test_auto_takes_the_first_backend_that_has_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """Op by op, in the device's order of preference."""
    first, second = ModuleType("first"), ModuleType("second")
    for module, ops in ((first, ["edge_mass"]), (second, ["edge_mass", "edge_levels"])):
        monkeypatch.setitem(sys.modules, f"densitrace.kernels.{module.__name__}", module)
        for op in ops:
            setattr(module, op, object())
    monkeypatch.setattr(dispatch, "BACKENDS", ("reference", "first", "second"))
    monkeypatch.setattr(dispatch, "PREFERENCE", {"cpu": ("first", "second", "reference")})
    serving = kernels.backends("cpu")
    assert (serving.pop("edge_mass"), serving.pop("edge_levels")) == ("first", "second")
    assert set(serving.values()) == {"reference"}
    assert dispatch.pick(reference.edge_mass, "cpu") is first.edge_mass
    assert dispatch.pick(reference.edge_levels, "cpu") is second.edge_levels
    assert dispatch.pick(reference.bottleneck, "cpu") is reference.bottleneck
    assert dispatch.pick(reference.edge_mass, "meta") is reference.edge_mass


def test_no_warning_when_nothing_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    kernels.bottleneck(*MAPS)
    assert dispatch.missing("cpu") is None
    assert caplog.messages == []


@pytest.mark.usefixtures("no_extension")
def test_auto_falls_back_without_the_extension_and_warns_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert set(kernels.backends("cpu").values()) == {"reference"}
    assert caplog.messages == []  # queried, and answered through the return value
    for _ in range(2):
        assert torch.equal(kernels.bottleneck(*MAPS), MAPS[0])
        kernels.trace_sizes(MAPS[0], torch.zeros(2, 1, 3, dtype=torch.int32))
    (record,) = caplog.records
    assert (record.name, record.levelno) == (LOGGER, logging.WARNING)
    (line,) = record.getMessage().splitlines()
    for text in ("Plain torch serves", "densitrace._cpu", "C++ compiler", "pip install"):
        assert text in line


@pytest.mark.usefixtures("no_extension")
def test_no_warning_when_the_extension_would_not_serve(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kernels.bottleneck(*MAPS, backend="reference")
    dispatch.pick(reference.bottleneck, "meta")
    assert caplog.messages == []


@pytest.mark.usefixtures("no_extension")
def test_a_missing_extension_requested_by_name_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        with pytest.raises(BackendError, match=r"'cpu' is not built here: .*densitrace\._cpu"):
            kernels.bottleneck(*MAPS, backend="cpu")
    assert caplog.messages == []


def test_why_a_backend_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> ModuleType:
        raise ImportError("cannot load _cpu.so:\n    no such symbol")

    monkeypatch.setattr(dispatch, "import_module", failing)
    reason = dispatch.missing("cpu")
    assert reason is not None
    assert "is not built here: cannot load _cpu.so: no such symbol; install a C++" in reason


def test_a_backend_never_falls_back() -> None:
    with pytest.raises(BackendError, match="backend='fast' is unknown; choose auto or one of ref"):
        kernels.bottleneck(*MAPS, backend="fast")
    with pytest.raises(BackendError, match="backend='cpu' has no no_such_op; choose auto or ref"):
        dispatch.serving("no_such_op", "cpu", "cpu")


def edges_of(weight: kernels.EdgeWeight) -> AttentionEdges:
    return AttentionEdges(Pattern(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 1.0), weight)


PROXIMITY = edges_of(
    ProximityWeight(torch.zeros(1, 3, 4), torch.zeros(1, 1, 3, 2), torch.zeros(1, 4, 2))
)
GIVEN = edges_of(GivenWeight(torch.zeros(1, 1, 3, 3)))
RANDOM = edges_of(RandomWeight(0, 0, torch.zeros(1, 3, dtype=torch.int32)))


@pytest.mark.usefixtures("no_cuda")
def test_auto_skips_backends_without_the_edge_weight() -> None:
    for edges in (GIVEN, RANDOM, None):
        assert dispatch.pick(reference.edge_levels, "cuda", "auto", edges) is triton.edge_levels
    found = dispatch.pick(reference.edge_levels, "cuda", "auto", PROXIMITY)
    assert found is reference.edge_levels
    assert dispatch.serving("edge_levels", "cpu", "auto", PROXIMITY) == "cpu"  # takes all


def test_cuda_serves_what_triton_lacks(cuda: Any) -> None:
    for op in ("bottleneck", "trace_sizes"):
        assert dispatch.serving(op, "cuda") == "cuda"
    assert dispatch.pick(reference.bottleneck, "cuda") is cuda.bottleneck
    for op in ("edge_levels", "edge_mass"):
        assert dispatch.serving(op, "cuda", "auto", PROXIMITY) == "cuda"
        assert dispatch.serving(op, "cuda", "auto", GIVEN) == "triton"
    assert dispatch.serving("collect_edges", "cuda", "auto", GIVEN) == "cuda"
    assert dispatch.serving("collect_edges", "cuda", "auto", RANDOM) == "reference"
    with pytest.raises(BackendError, match="'cuda' has no edge_levels for GivenWeight"):
        dispatch.serving("edge_levels", "cuda", "cuda", GIVEN)


@pytest.mark.usefixtures("no_cuda")
def test_a_missing_cuda_build_only_matters_on_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    kernels.bottleneck(*MAPS)
    assert caplog.messages == []
    for _ in range(2):
        assert dispatch.pick(reference.bottleneck, "cuda") is reference.bottleneck
    (line,) = caplog.messages
    assert "backend='cuda' is not built here" in line and "nvcc" in line


def test_an_edge_weight_unknown_to_the_requested_backend_is_an_error() -> None:
    cuts = torch.zeros(1, 1, 3)
    with pytest.raises(BackendError) as error:
        kernels.edge_levels(PROXIMITY, cuts, backend="triton")
    assert str(error.value) == (
        "backend='triton' has no edge_levels for ProximityWeight; choose auto or reference"
    )
    for op, backend in (("edge_mass", "triton"), ("lane_attention", "triton")):
        with pytest.raises(BackendError, match=f"no {op} for ProximityWeight"):
            dispatch.serving(op, "cuda", backend, PROXIMITY)


@pytest.mark.parametrize(
    ("capabilities", "found"), [([(7, 5), (7, 0)], "7.5"), ([(7, 5), (8, 0)], ""), ([], "")]
)
def test_cuda_needs_a_gpu_that_it_is_compiled_for(
    capabilities: list[tuple[int, int]], found: str, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    expected = (
        "backend='cuda' cannot run here: it needs compute capability 8.0; the newest GPU here has "
        + found
    )
    assert dispatch.missing("cuda") == (expected if found else None)


def test_cuda_needs_a_driver_as_new_as_its_runtime(
    cuda: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`auto` takes the next backend and says why."""
    reason = "CUDA driver version is insufficient for CUDA runtime version"
    monkeypatch.setattr(cuda_host.extension, "driver_error", lambda: reason, raising=False)
    assert dispatch.missing("cuda") is None  # without a GPU the driver is not asked
    dispatch.missing.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dispatch.pick(reference.bottleneck, "cuda") is reference.bottleneck
    (line,) = caplog.messages
    assert line.endswith(f"backend='cuda' cannot run here: {reason}")


def test_an_op_runs_on_the_gpu_of_its_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever was current before: a model's layers may be on several GPUs."""
    current = [0]

    @contextmanager
    def guard(device: torch.device) -> Iterator[None]:
        current.append(device.index)
        yield
        current.pop()

    def where(reach: torch.Tensor, levels: torch.Tensor) -> int:
        return current[-1]

    def in_turn(reach: torch.Tensor, levels: torch.Tensor) -> Iterator[int]:
        for _ in range(3):
            yield current[-1]

    bottleneck, trace_sizes = reference.bottleneck, reference.trace_sizes
    monkeypatch.setattr(torch.cuda, "device", guard)
    monkeypatch.setattr(reference, "bottleneck", where)
    monkeypatch.setattr(reference, "trace_sizes", in_turn)
    for device, index in (("cuda:1", 1), ("cuda:0", 0), ("cuda", 0), ("cpu", 0)):
        assert dispatch.pick(bottleneck, torch.device(device), "reference")(*MAPS) == index
        assert current == [0]
        results: Any = dispatch.pick(trace_sizes, torch.device(device), "reference")(*MAPS)
        for found in results:
            assert (found, current) == (index, [0])


def test_no_op_takes_more_than_255_strata() -> None:
    """On any backend: levels would wrap around."""
    token = torch.zeros(1, 1, 2, 1)
    weight = GivenWeight(torch.ones(1, 1, 2, 2))
    edges = AttentionEdges(kernels.Pattern(token, token, 1.0), weight)
    cuts = torch.zeros(256, 1, 2)
    reach, degrees = torch.zeros(1, 2, 2, dtype=torch.uint8), cuts.int()
    calls: list[Callable[[], object]] = [
        lambda: kernels.edge_levels(edges, cuts),
        lambda: kernels.collect_edges(edges, cuts),
        lambda: kernels.trace_sizes(reach, degrees),
        lambda: kernels.nucleus_cuts(None, cuts, [0.5] * 256, cuts[0]),
        lambda: kernels.fraction_cuts(None, cuts, [0.5] * 256),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="256 strata, but eight-bit levels hold at most 255"):
            call()
    assert kernels.edge_levels(edges, cuts[:255]).levels.max() == 255
