"""Histograms of gradients and parameters, from real training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trainrun_wandb.watch import _histogram

from trainrun.rundir.files import read_lines
from trainrun.testing import ForkRecipe, Result, RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 9, batch_size = 16, log_every = 2 }
"""


def histograms(result: Result) -> dict[int, dict[str, Any]]:
    lines = read_lines(result.paths.tracker_extra("wandb-watch"))[0]
    return {line["step"]: line["histograms"] for line in lines}


def test_a_histogram_counts_every_finite_value() -> None:
    values = torch.tensor([-1.0, -0.5, 0.0, 0.99, 1.0, float("nan"), float("inf")])
    low, high, *counts = _histogram(values, 4).tolist()
    assert (low, high) == (-1.0, 1.0)
    assert counts == [1.0, 1.0, 1.0, 2.0]
    assert _histogram(torch.full((5,), 3.0), 2).tolist() == [3.0, 3.0, 5.0, 0.0]


def test_looks_at_logged_steps_only(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE + "[plugins.wandb-watch]\nevery = 3\nbins = 8\n")
    found = histograms(result)
    assert list(found) == [2, 6, 9] or list(found) == [2, 6]
    one = next(iter(found[2].values()))
    assert len(one["counts"]) == 8
    assert all(name.startswith("gradients/") for name in found[2])


def test_two_ranks_parameters_and_globs(fork_recipe: ForkRecipe) -> None:
    options = '[plugins.wandb-watch]\nevery = 1\nlog = ["gradients", "parameters"]\nmatch = ["*weight"]\n'
    result = fork_recipe(RECIPE + options)
    found = histograms(result)
    assert list(found)[:4] == [2, 4, 6, 8]
    assert all(name.endswith("weight") and "module." not in name for name in found[4])
    kinds = {name.partition("/")[0] for name in found[4]}
    assert kinds == {"gradients", "parameters"}


@pytest.mark.parametrize("wrong", ["bins = 1", 'log = ["loss"]', "every = 0"])
def test_wrong_options_are_refused(wrong: str, run_recipe: RunRecipe) -> None:
    with pytest.raises(Exception, match=r"bins|log|every"):
        run_recipe(RECIPE + f"[plugins.wandb-watch]\n{wrong}\n")
