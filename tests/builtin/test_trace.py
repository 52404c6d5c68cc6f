from __future__ import annotations

from typing import Any

import pytest
import torch

from trainrun import hookimpl
from trainrun.builtin.trace import Trace, shape
from trainrun.testing import LaunchRecipe, RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 4, batch_size = 16, log_every = 1 }
"""


class Watcher:
    """Has an event, a wrapper and a hook that raises."""

    on_error = "warn"

    @hookimpl
    def on_step_start(self, step: int) -> None: ...

    @hookimpl(wrapper=True)
    def training_step(self, batch: Any) -> Any:
        return (yield)

    @hookimpl
    def on_step_end(self, step: int) -> None:
        raise ValueError("secret-content")

    @hookimpl(background=True)
    def on_log(self, metrics: Any) -> None: ...


def test_order_types_returns_and_errors_of_the_first_steps(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, Trace, Watcher)
    assert result.outcome.ok
    text = result.paths.trace("rank-0").read_text()
    step = [line for line in text.splitlines() if line.startswith("step 1  ") and "on_log" not in line]
    where = [(hook, plugin) for _, hook, plugin, *_ in (line.split("  ") for line in step)]
    assert where[:4] == [
        ("on_step_start", "watcher"),
        ("training_step", "watcher"),
        ("training_step", "task"),
        ("training_step", "watcher"),
    ]
    assert step[1].endswith("(batch: list[2](Tensor[float32, (16, 1, 8, 8)], Tensor[int64, (16,)])) wrapper begins")
    assert step[2].endswith("-> dict[1](Tensor[float32, ()])")
    assert step[3].endswith("wrapper ends -> dict[1](Tensor[float32, ()]), with all that it wraps")
    assert any(line.endswith("(step: int) raised ValueError") for line in step)
    assert "step 2  on_step_start  watcher" in text
    assert "step 3  " not in text
    assert "on_log  watcher" in text  # on a thread of its own
    assert "secret-content" not in text


def test_only_the_hooks_that_are_named(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, Trace, overrides=["plugins.trace.hooks=['build_model']", "plugins.trace.steps=1"])
    (line,) = result.paths.trace("rank-0").read_text().splitlines()
    assert line.startswith("step 0  build_model  task  ")
    assert line.endswith("(run: Run) -> Sequential")


def test_client_and_each_rank_have_a_file(launch_recipe: LaunchRecipe) -> None:
    result = launch_recipe(RECIPE, overrides=['plugins.trace.use="trainrun.builtin.trace:Trace"'])
    assert result.outcome.ok
    client = result.paths.trace("client").read_text().splitlines()
    assert any(line.startswith("start_workers  local  ") for line in client)
    assert len(client) == len([line for line in client if "step " not in line])
    assert sum(line.startswith("on_status  progress") for line in client) <= 20
    for rank in range(2):
        assert "step 2  optimizer_step  providers" in result.paths.trace(f"rank-{rank}").read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ("hunter2", "str"),
        (torch.zeros(2, 3, dtype=torch.bfloat16), "Tensor[bfloat16, (2, 3)]"),
        ({}, "dict[0]"),
        ({"hunter2": 1, "b": "hunter2"}, "dict[2](int, str)"),
        (list(range(9)), "list[9](int, int, int, int, …)"),
        ([[["hunter2"]]], "list[1](list[1](list[1]))"),
    ],
)
def test_shapes_hold_no_contents(value: object, text: str) -> None:
    assert shape(value) == text
