from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainrun_callbacks import system_probe
from trainrun_callbacks.sampling import Ticker
from trainrun_callbacks.system_monitor import SystemMonitor, SystemMonitorOptions
from trainrun_callbacks.system_probe import Probe

from trainrun.testing import ForkRecipe

RECIPE = """
task = { use = "digits", channels = 1, hidden = 2 }
train = { steps = 40, batch_size = 16, log_every = 20 }
evaluate.splits = []

[plugins.system-monitor]
seconds = 0.1
"""


def test_the_machine_is_in_the_log(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE)
    last = result.metrics[-1]
    assert 0 < last["system/memory_percent"] <= 100
    assert last["system/process_gib"] < last["system/memory_gib"]
    assert last["system/disk_free_gib"] > 0


def test_rates_are_those_since_the_sample_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = iter([10 * 1024**2, 30 * 1024**2])
    times = iter([100.0, 104.0])
    counters = lambda: SimpleNamespace(bytes_sent=next(sent), bytes_recv=0)  # noqa: E731
    monkeypatch.setattr("trainrun_callbacks.system_probe.psutil.net_io_counters", counters)
    monkeypatch.setattr("trainrun_callbacks.system_probe.time.monotonic", lambda: next(times))
    probe = Probe(tmp_path, gpus=False)
    assert "sent_mib_per_second" not in probe.sample()
    second = probe.sample()
    assert (second["sent_mib_per_second"], second["received_mib_per_second"]) == (5.0, 0.0)


def test_the_load_of_processors_is_since_the_sample_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([0.0, 62.5])
    monkeypatch.setattr("trainrun_callbacks.system_probe.psutil.cpu_percent", lambda: next(loads))
    probe = Probe(tmp_path, gpus=False)
    assert "cpu_percent" not in probe.sample()  # which psutil answers with 0
    assert probe.sample()["cpu_percent"] == 62.5


class NVMLError(Exception):
    pass


class NotSupported(NVMLError):
    pass


def refuse(*_: Any) -> None:
    raise NotSupported


def stand_in(**functions: Any) -> Any:
    nothing = SimpleNamespace(
        NVMLError=NVMLError, NVMLError_NotSupported=NotSupported, NVML_TEMPERATURE_GPU=0, nvmlInit=lambda: None
    )
    for name, function in functions.items():
        setattr(nothing, f"nvml{name}", function)
    return nothing


def test_gpus_say_what_they_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = stand_in(
        DeviceGetCount=lambda: 1,
        DeviceGetHandleByIndex=lambda index: index,
        DeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=1, total=4),
        DeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=80),
        DeviceGetTemperature=refuse,
        DeviceGetPowerUsage=lambda handle: 250_000,
    )
    monkeypatch.setattr(system_probe, "pynvml", nvml)
    found = Probe(tmp_path, gpus="auto").sample()
    gpu = {name: value for name, value in found.items() if name.startswith("gpu")}
    assert gpu == {"gpu0/percent": 80.0, "gpu0/memory_percent": 25.0, "gpu0/watts": 250.0}


def test_a_gpu_that_does_not_tell_its_memory_tells_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = stand_in(
        DeviceGetCount=lambda: 1,
        DeviceGetHandleByIndex=lambda index: index,
        DeviceGetMemoryInfo=refuse,
        DeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=80),
        DeviceGetTemperature=refuse,
        DeviceGetPowerUsage=refuse,
    )
    monkeypatch.setattr(system_probe, "pynvml", nvml)
    found = Probe(tmp_path, gpus="auto").sample()
    assert [name for name in found if name.startswith("gpu")] == ["gpu0/percent"]


def test_a_machine_without_gpus_is_an_error_only_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver() -> None:
        raise NVMLError("Driver Not Loaded")

    nvml = stand_in()
    nvml.nvmlInit = no_driver
    monkeypatch.setattr(system_probe, "pynvml", nvml)
    assert "gpu0/percent" not in Probe(tmp_path, gpus="auto").sample()
    with pytest.raises(NVMLError, match="Driver Not Loaded"):
        Probe(tmp_path, gpus=True)


def test_what_is_not_installed_vetoes_the_launch_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe: Any = None
    assert SystemMonitor(SystemMonitorOptions()).check_recipe(recipe) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert SystemMonitor(SystemMonitorOptions(gpus=True)).check_recipe(recipe) == [
        "psutil is not installed; run: pip install 'trainrun-callbacks[system]'",
        "nvidia-ml-py is not installed; run: pip install 'trainrun-callbacks[nvidia]'",
    ]


def test_other_machines_have_names_of_their_own() -> None:
    logged: dict[str, str] = {}
    run: Any = SimpleNamespace(
        logs_now=True,
        world=SimpleNamespace(node_rank=1),
        paths=SimpleNamespace(root=Path.cwd()),
        log=lambda name, value, reduce: logged.update({name: reduce}),
    )
    plugin = SystemMonitor(SystemMonitorOptions(seconds=60))
    plugin.on_train_start(run)
    plugin.on_worker_end()  # after the first sample
    plugin.on_update_end(run)
    assert logged["system/node1/memory_percent"] == "last"


def test_a_call_that_hangs_ends_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainrun_callbacks.sampling._ENDING", 0.05)
    begun, answer = threading.Event(), threading.Event()

    def hangs() -> None:
        begun.set()
        answer.wait()

    ticker = Ticker("hangs", 60, hangs)
    ticker.start()
    assert begun.wait(10)
    ticker.stop()
    (thread,) = [one for one in threading.enumerate() if one.name == "hangs"]
    assert thread.daemon
    answer.set()


def test_an_error_on_the_thread_is_raised_where_the_policy_applies() -> None:
    def broken() -> None:
        raise OSError("no such disk")

    ticker = Ticker("broken", 60, broken)
    ticker.start()
    ticker.stop()
    with pytest.raises(OSError, match="no such disk"):
        ticker.raise_error()
    ticker.raise_error()
