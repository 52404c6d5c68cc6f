from __future__ import annotations

from typing import Any

import pytest
import torch
from trainrun_callbacks.device_memory import DeviceMemory, DeviceMemoryOptions

from trainrun.testing import ForkRecipe

RECIPE = """
task = { use = "digits", channels = 1, hidden = 2 }
train = { steps = 4, batch_size = 16, log_every = 2 }
evaluate.splits = []
"""


def test_on_the_cpu_it_is_that_of_the_process(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE, "device-memory")
    resident, peak = result.series("memory/resident"), result.series("memory/peak")
    assert list(resident) == list(peak) == [2, 4]
    assert all(0.05 < resident[step] <= peak[step] * 1.01 < 50 for step in resident)


@pytest.mark.parametrize("reset", [False, True])
def test_on_a_gpu_it_is_that_of_the_allocator(monkeypatch: pytest.MonkeyPatch, reset: bool) -> None:
    gib = 1024**3
    resets: list[Any] = []
    for name, value in (("memory_allocated", 1), ("memory_reserved", 3), ("max_memory_allocated", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value * gib)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    logged = {}

    class Run:
        device, logs_now = torch.device("cuda"), True

        def log(self, name: str, value: float, reduce: str) -> None:
            assert reduce == "max"
            logged[name] = value

    run: Any = Run()
    DeviceMemory(DeviceMemoryOptions(reset_peak=reset)).on_update_end(run)
    assert logged == {"memory/allocated": 1.0, "memory/reserved": 3.0, "memory/peak": 2.0}
    assert len(resets) == reset
