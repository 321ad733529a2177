"""The tuner with a fake clock, compiler and op: which configurations it accepts."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from bench_files import bench
from click.testing import CliRunner
from device_models import tiny_llama
from triton.errors import TritonError
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from densitrace.kernels.triton import configs
from densitrace.kernels.triton.configs import Config, Key

CPU = torch.device("cpu")
START = {"BT": 32, "BS": 32, "num_warps": 4, "num_stages": 2}
OPTIMUM = {"BT": 128, "BS": 64, "num_warps": 8, "num_stages": 3}
KEY = Key("climbed", "32-bit", "64")


def kernel(BT, BS, num_warps, num_stages):  # type: ignore[no-untyped-def]
    """Never compiled: `Device.launch` takes the place of its launches."""


def away(config: Config) -> float:
    """Distance from the optimum, which is also the relative slowdown."""
    steps = {name: abs(value / OPTIMUM[name]) for name, value in config.items()}
    stages = abs(config["num_stages"] - OPTIMUM["num_stages"])
    return stages + sum(max(x, 1 / x) - 1 for name, x in steps.items() if name != "num_stages")


def pinned(width: int, tensor: torch.Tensor) -> Config:
    """A launch's configuration in the table."""
    launched = configs.launch(KEY.op, width, tensor)
    assert launched.pop("enable_fp_fusion") is True
    return launched


@dataclass
class Device:
    """A clock that launches advance, and the outcome of each configuration."""

    cost: Callable[[Config], float] = lambda config: 1 + away(config)
    noise: float = 0.0
    fails: Callable[[Config], bool] = lambda config: False
    spills: Callable[[Config], bool] = lambda config: False
    wrong: Callable[[Config], bool] = lambda config: False
    now: float = 0.0
    random: Random = field(default_factory=lambda: Random(0))
    launched: list[Config] = field(default_factory=list)

    def launch(self, config: Config) -> SimpleNamespace:
        """Takes the place of Triton's compiler and driver."""
        self.launched.append(config)
        if self.fails(config):
            raise TritonError("out of resource: shared memory")
        self.now += self.cost(config) * self.random.uniform(1 - self.noise, 1 + self.noise)
        return SimpleNamespace(n_spills=24 if self.spills(config) else 0)

    def op(self) -> torch.Tensor:
        """Looks up its entry and launches, as the host code of an op does."""
        result = torch.arange(1.0, 1001.0)
        config = pinned(40, result)
        JITFunction(kernel)[(1,)](**config)
        return -result if self.wrong(config) else result


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, on a folder of tables with one entry to tune."""
    table = {KEY.op: {KEY.bits: {KEY.width: START}}}
    (tmp_path / "default.json").write_text(json.dumps(table))
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    monkeypatch.setattr("device_timing.BUDGET_SECONDS", 40.0)  # seconds of the fake clock
    configs._table.cache_clear()
    monkeypatch.setattr(configs, "table_for", lambda device: configs.DEFAULT)
    return bench("tune_gpu")


@pytest.fixture(autouse=True)
def tables_read_again() -> Any:
    """Drop tables cached from a test's folder."""
    yield
    configs._table.cache_clear()
    configs._tuned.cache_clear()


def tuned(tune: ModuleType, device: Device, monkeypatch: pytest.MonkeyPatch) -> Config | None:
    """The configuration that a climb writes, if any."""
    monkeypatch.setattr("device_timing.Clock.mark", lambda _: device.now)
    monkeypatch.setattr(JITFunction, "run", lambda self, grid, warmup, **c: device.launch(c))
    path = configs.FOLDER / "sm_90.json"
    printed: list[str] = []
    before = configs.entry
    tune.tune(CPU, {"case": device.op}, tune.Pins(), set(), lambda _: True, path, printed.append)
    assert configs.entry is before
    assert not list(configs.FOLDER.glob("*.new"))
    if not path.exists():
        return None
    config: Config = configs.read(path)[KEY.op][KEY.bits][KEY.width]
    assert list(config) == list(START)
    return config


def test_finds_the_optimum(tune: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuned(tune, Device(noise=0.01), monkeypatch) == OPTIMUM


@pytest.mark.parametrize("table", configs.available())
def test_every_argument_can_be_tuned(table: str) -> None:
    neighbours = bench("tune_gpu").neighbours
    for key in configs.all_keys(table):
        config = dict(configs._table(table)[key.op][key.bits][key.width])
        steps = [dict(step.items() - config.items()) for step in neighbours(config)]
        assert {name for changed in steps for name in changed} == set(config), key
        for changed in steps:
            more = [value > config[name] for name, value in changed.items()]
            assert len(changed) == 1 or (
                "num_warps" in changed and more in ([True] * 2, [False] * 2)
            )
        assert len({len(changed) for changed in steps}) == 2, key


@pytest.mark.parametrize("fault", ["fails", "spills", "wrong"])
def test_never_takes_a_faulty_configuration(
    fault: str, tune: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest are faulty: the best of the others is taken, and no faulty one is timed."""
    device = Device(**{fault: lambda config: config["BT"] > 64})  # type: ignore[arg-type]
    assert tuned(tune, device, monkeypatch) == OPTIMUM | {"BT": 64}
    faulty = [config for config in device.launched if config["BT"] > 64]
    assert faulty
    assert all(faulty.count(config) == 1 for config in faulty)


@pytest.mark.parametrize(
    "device",
    [
        Device(cost=lambda config: 1.0),
        Device(cost=lambda config: 1.0 if config == START else 0.98),
        Device(cost=lambda config: 1.0 if config == START else 0.9, noise=0.3),
    ],
    ids=["equal", "within the margin", "within noise"],
)
def test_no_file_is_touched_without_an_improvement(
    device: Device, tune: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuned(tune, device, monkeypatch) is None
    assert len(device.launched) > 8


def test_an_existing_file_keeps_its_entries(
    tune: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = configs.FOLDER / "sm_90.json"
    other = {"other": {"16-bit": {"128": {"BT": 16}, "64": {"BT": 32}}}}
    path.write_text(json.dumps(other))
    assert tuned(tune, Device(), monkeypatch) == OPTIMUM
    assert configs.read(path) == other | {KEY.op: {KEY.bits: {KEY.width: OPTIMUM}}}
    first = path.read_text()
    assert first.index('"64": {"BT": 32}') < first.index('"128": {"BT": 16}')
    tune.write(path, KEY, OPTIMUM)
    assert path.read_text() == first


def test_a_lost_device_ends_the_climb(tune: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its later errors would look like faults of configurations; pinned entries stay pinned."""

    def lost(config: Config) -> bool:
        if config != START:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        return False

    with pytest.raises(torch.AcceleratorError):
        tuned(tune, Device(fails=lost), monkeypatch)
    assert pinned(40, torch.zeros(1)) == START
    assert not (configs.FOLDER / "sm_90.json").exists()


def test_results_agree_but_for_rounding(tune: ModuleType) -> None:
    floats = torch.linspace(-1, 1, 4096)
    counts = torch.full((4096,), 1000)
    assert tune.agree(floats, floats + 1e-6, 2e-5)
    assert tune.agree(counts, counts + (torch.arange(4096) == 7), 2e-5)
    assert not tune.agree(counts, counts + (torch.arange(4096) < 64), 2e-5)
    assert not tune.agree(floats, floats.where(torch.arange(4096) >= 64, 0), 2e-5)
    assert not tune.agree(floats, floats.where(torch.arange(4096) != 7, torch.nan), 2e-5)


def test_a_device_table_overrides_the_default(
    tune: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {KEY.op: {"32-bit": {"64": START, "128": START}, "16-bit": {"64": START}}}
    (configs.FOLDER / "default.json").write_text(json.dumps(table))
    tune.write(configs.FOLDER / "sm_90.json", KEY, OPTIMUM)
    assert configs.available() == ["default", "sm_90"]
    monkeypatch.setattr(configs, "table_for", lambda device: "sm_90")
    launched = [pinned(width, torch.zeros(1)) for width in (33, 65)]
    assert launched == [OPTIMUM, START]
    assert pinned(64, torch.zeros(1).half()) == START
    assert configs.widths(KEY.op, torch.float32, "sm_90") == [64, 128]


def test_a_launch_does_not_query_the_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A device's capability does not change: the driver and the folder are queried once."""
    asked: list[torch.device] = []
    (tmp_path / "sm_90.json").write_text("{}")
    monkeypatch.setattr(configs, "FOLDER", tmp_path)

    def capability(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return 9, 0

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    devices = [torch.device("cuda", index) for index in (0, 1)]
    assert [configs.table_for(device) for device in devices * 3] == ["sm_90"] * 6
    assert asked == devices


def test_without_a_gpu_it_fails_with_a_message(
    tune: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(tune.main)
    assert result.exit_code == 1
    assert "no GPU" in result.output


def test_problems_reach_the_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model and few tokens; kernels are looked up but not run."""
    tune = bench("tune_gpu")
    config = tiny_llama(300, blocks=5)
    monkeypatch.setattr(tune, "MODELS", {64: lambda: config})
    monkeypatch.setattr(tune, "LENGTHS", dict.fromkeys(tune.LENGTHS, 6))
    pins = tune.Pins()
    for cases in tune.problems(64, CPU):
        with monkeypatch.context() as patch, pins.in_place():
            patch.setattr(InterpretedFunction, "__getitem__", lambda *_: lambda *_, **__: None)
            patch.setattr(torch, "empty", torch.zeros)
            for run in tune.served(cases).values():
                run()
    listed = {(key.op, key.bits) for key in configs.all_keys()}
    asked = {(key.op, key.bits) for key in pins.asked}
    # On a CPU the projection is float32, so its product with bfloat16 values is split in two.
    assert asked | {("source_norms", "16-bit")} == listed
    assert {key.width for key in pins.asked if key.op == "row_cuts"} == {"16", "64", "256"}
