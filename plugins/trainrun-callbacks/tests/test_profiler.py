from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from trainrun_callbacks.profiler import Profiler, ProfilerOptions

from trainrun import hookimpl
from trainrun.testing import ForkRecipe, RunRecipe

RECIPE = """
task = { use = "digits", channels = 1, hidden = 2 }
train = { steps = 8, batch_size = 16, log_every = 2 }
evaluate.splits = []

[plugins.profiler]
wait = 1
warmup = 1
active = 2
"""


def traces(result: Any) -> list[str]:
    return sorted(path.name for path in (result.paths.root / "profiles").glob("*"))


def names(path: Path) -> set[str]:
    return {event.get("name", "") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}


def test_each_rank_writes_a_trace_of_the_chosen_steps(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE)
    assert traces(result) == ["rank-0-step-4.json.gz", "rank-1-step-4.json.gz"]
    found = names(result.paths.root / "profiles" / "rank-1-step-4.json.gz")
    assert any("convolution" in name for name in found)
    assert {"ProfilerStep#2", "ProfilerStep#3"} <= found


def test_one_rank_may_record_twice(fork_recipe: ForkRecipe) -> None:
    overrides = ["plugins.profiler.ranks=[1]", "plugins.profiler.repeat=2"]
    assert traces(fork_recipe(RECIPE, overrides=overrides)) == ["rank-1-step-4.json.gz", "rank-1-step-8.json.gz"]


def test_training_that_ends_first_leaves_what_there_is(run_recipe: RunRecipe) -> None:
    assert traces(run_recipe(RECIPE, overrides=["train.steps=3"])) == ["rank-0-step-3.json.gz"]


def test_on_a_gpu_a_failure_does_not_wait_for_it() -> None:
    told: list[str] = []
    logger = SimpleNamespace(warning=lambda event, **rest: told.append(event))
    run: Any = SimpleNamespace(step=3, device=torch.device("cuda"), logger=logger)
    plugin: Any = Profiler(ProfilerOptions())
    plugin.on_exception(run)
    assert told == []
    plugin._profile = SimpleNamespace()  # which cannot be stopped
    plugin.on_exception(run)
    assert told == ["the trace of these steps is lost: training failed"]


class Fails:
    """Fails in step 3."""

    @hookimpl
    def on_update_end(self, run: Any) -> None:
        if run.step == 3:
            raise RuntimeError("lost")


def test_on_the_cpu_a_failure_leaves_what_there_is(run_recipe: RunRecipe) -> None:
    assert traces(run_recipe(RECIPE, Fails, fails=True)) == ["rank-0-step-3.json.gz"]


class Asks:
    """Asks for a profile at step 1, on the rank that is slow to see it."""

    @hookimpl
    def on_step_start(self, run: Any, step: int) -> None:
        if step == 1 and run.world.rank == run.world.size - 1:
            (run.paths.root / "profile").touch()


def test_on_demand_all_ranks_begin_at_one_step(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE, Asks, overrides=["plugins.profiler.on_demand=true"])
    # Seen at the log of step 2; step 3 warms up, steps 4 and 5 are recorded.
    assert traces(result) == ["rank-0-step-5.json.gz", "rank-1-step-5.json.gz"]
    assert not (result.paths.root / "profile").exists()


def test_on_demand_nothing_is_recorded_unasked(run_recipe: RunRecipe) -> None:
    assert traces(run_recipe(RECIPE, overrides=["plugins.profiler.on_demand=true"])) == []
