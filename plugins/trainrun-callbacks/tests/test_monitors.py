"""All monitors together: none of them reads a tensor between logs, and they work side by side in a real launch."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from trainrun_callbacks.predictions import read_predictions

from trainrun import hookimpl
from trainrun.testing import ForkRecipe, LaunchRecipe, Result, RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 4 }
optimizer = { name = "sgd", lr = 0.01 }
train = { steps = 6, batch_size = 64, micro_batch_size = 16, log_every = 3 }
evaluate = { every = 6, batch_size = 100 }
"""
MONITORS = """
[plugins.norms]
parameters = { head = "10.*" }
updates = true

[plugins.learning-rate-monitor]
momentum = true
weight_decay = true

[plugins.epoch-progress]

[plugins.epoch-timer]

[plugins.phase-timer]

[plugins.throughput]
tokens = "1"
flops = true
peak_flops = 1e9

[plugins.device-memory]

[plugins.system-monitor]
seconds = 0.1

[plugins.heartbeat]
steps = 2

[plugins.tensor-statistics]
parameters = true
gradients = true
batches = ["0"]

[plugins.metrics-table]

[plugins.memory-snapshot]

[plugins.activations]
modules = ["0"]
steps = [2]
evaluation_batches = 1

[plugins.predictions]
batch = ["1"]

[plugins.debug-mode]
always = true
anomalies = false

[plugins.profiler]
wait = 0
warmup = 1
active = 1
"""
READS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__", "to")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that have read a tensor on the training thread."""
    found: list[str] = []

    def counting(name: str) -> Any:
        function = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor, *arguments: Any, **settings: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                found.append(name)
            return function(tensor, *arguments, **settings)

        return read

    for name in READS[:-1]:
        monkeypatch.setattr(torch.Tensor, name, counting(name))
    monkeypatch.setattr(torch.Tensor, "to", counting_to(found))
    return found


def counting_to(found: list[str]) -> Any:
    """`Tensor.to`, which counts where it is asked for the host by its name."""
    function = torch.Tensor.to

    def to(tensor: torch.Tensor, *arguments: Any, **settings: Any) -> Any:
        asked = [one for one in (*arguments[:1], settings.get("device")) if isinstance(one, str)]
        if "cpu" in asked and threading.current_thread() is threading.main_thread():
            found.append("to")
        return function(tensor, *arguments, **settings)

    return to


def test_a_transfer_to_the_host_by_its_name_is_a_read(reads: list[str]) -> None:
    one = torch.zeros(())
    one.to("cpu")
    one.to(device="cpu")
    one.to(torch.float64)
    one.to(one.device)
    assert reads == ["to", "to"]


class Strict:
    """Makes it an error to wait for the GPU within a step that is not logged."""

    def __init__(self) -> None:
        self.steps = 0

    @hookimpl(tryfirst=True)
    def on_step_start(self, run: Any) -> None:
        if run.step > 1 and not run.logs_now:  # the first step counts operations, and says what is in the batch
            torch.cuda.set_sync_debug_mode("error")

    @hookimpl(trylast=True)
    def on_step_end(self, run: Any) -> None:
        self.steps += torch.cuda.get_sync_debug_mode() == 2
        torch.cuda.set_sync_debug_mode("default")
        run.log("strict/steps", self.steps, reduce="last")

    @hookimpl
    def on_worker_end(self) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="torch.cuda.set_sync_debug_mode sees waits for a GPU, and here is none; reads of tensors are counted on the"
    " CPU too",
)
def test_on_a_gpu_nothing_waits_for_it_between_logs(run_recipe: RunRecipe) -> None:
    # Those two read on threads, to which the mode applies too, and at the end of a recording.
    without = ["plugins.activations.enabled=false", "plugins.profiler.enabled=false"]
    result = run_recipe(RECIPE + MONITORS, Strict, overrides=["train.device=cuda", *without])
    assert result.outcome.ok, result.outcome.reason
    assert [event for event in result.events if event.get("decision") == "disable"] == []
    assert result.series("strict/steps")[6] == 3  # 2, 4 and 5


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_monitors_read_nothing_beyond_the_one_transfer_of_a_log(
    fork_recipe: ForkRecipe, reads: list[str], strategy: str
) -> None:
    def count(recipe: str) -> list[dict[str, int]]:
        reads.clear()
        overrides = [f'parallel.strategy="{strategy}"']
        result = fork_recipe(recipe, report=lambda: {name: reads.count(name) for name in READS}, overrides=overrides)
        assert [event for event in result.events if event.get("decision") == "disable"] == []
        return list(result.reports)

    without = count(RECIPE)
    assert without[0]["tolist"] > 0  # what trainrun itself reads is counted
    found = count(RECIPE + MONITORS)
    # Rank 0 logs what others do not, such as learning rates: names are compared by a gather that was there before.
    assert found == without


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, trainrun_cache: Path) -> Result:
    """One launch with two real workers, which all tests below look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINRUN_CACHE_DIR", str(trainrun_cache))
        return LaunchRecipe(tmp_path_factory.mktemp("monitors"))(RECIPE + MONITORS)


def test_the_launch_ends_well_with_all_of_them(launched: Result) -> None:
    assert launched.outcome.ok, launched.outcome.reason
    assert [event for event in launched.events if event.get("decision") == "disable"] == []


METRICS = [
    "grad_norm/total",
    "param_norm/head",
    "update_ratio/total",
    "lr/0",
    "momentum/0",
    "weight_decay/0",
    "epoch",
    "phase/forward/p50",
    "phase/step/p95",
    "throughput/samples",
    "throughput/tokens",
    "throughput/mfu",
    "memory/resident",
    "heartbeat/longest_step",
    "parameters/total/mean",
    "gradients/total/std",
    "batches/0/max",
]


@pytest.mark.parametrize("name", METRICS)
def test_each_monitor_logs_at_both_logs(launched: Result, name: str) -> None:
    assert list(launched.series(name)) == [3, 6]


def test_times_and_the_machine_are_logged(launched: Result) -> None:
    assert launched.series("system/memory_percent")
    assert launched.series("phase/slowest_rank")[6] in (0, 1)
    assert launched.series("phase/evaluation/eval")


def test_files_are_in_the_run_directory(launched: Result) -> None:
    root = launched.paths.root
    for rank in (0, 1):
        assert (root / "profiles" / f"rank-{rank}-step-2.json.gz").exists()
        assert (root / "activations" / "step-2" / f"rank-{rank}.pt").exists()
        assert (root / "activations" / "eval-step-6" / f"rank-{rank}-batch-0.pt").exists()
    assert (root / "metrics.txt").read_text().startswith("    step")
    assert '"heartbeat"' in launched.paths.rank_log(0).read_text()


def test_predictions_are_those_that_were_judged(launched: Result) -> None:
    found = list(read_predictions(launched.paths.root / "predictions" / "eval-step-6"))
    right = [one["predictions"].item() == one["batch"]["1"].item() for one in found]
    assert len(right) == 359
    assert sum(right) / len(right) == pytest.approx(launched.series("eval/accuracy")[6])
