"""Histograms of gradients and parameters, from real training."""

from __future__ import annotations

import json
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest
import torch
from trainrun_wandb import WandbWatch
from trainrun_wandb.histograms import Histograms
from trainrun_wandb.watch import WandbWatchOptions, _histogram

from trainrun import Recipe, RecipeError
from trainrun.rundir.files import read_lines
from trainrun.testing import ForkRecipe, Result, RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 10, batch_size = 16, log_every = 2 }
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
    """At 3, 6 and 9, or the next that is logged: 4, 6, 10 and not 7, 10, 13 from the look at 4 on."""
    result = run_recipe(RECIPE + "[plugins.wandb-watch]\nevery = 3\nbins = 8\n")
    found = histograms(result)
    assert list(found) == [4, 6, 10]
    one = next(iter(found[4].values()))
    assert len(one["counts"]) == 8
    assert all(name.startswith("gradients/") for name in found[4])


def test_two_ranks_parameters_and_globs(fork_recipe: ForkRecipe) -> None:
    options = '[plugins.wandb-watch]\nevery = 1\nlog = ["gradients", "parameters"]\nmatch = ["*weight"]\n'
    result = fork_recipe(RECIPE + options)
    found = histograms(result)
    assert list(found) == [2, 4, 6, 8, 10]
    assert all(name.endswith("weight") and "module." not in name for name in found[4])
    kinds = {name.partition("/")[0] for name in found[4]}
    assert kinds == {"gradients", "parameters"}


def test_a_resume_goes_on_behind_the_last_look(fork_recipe: ForkRecipe) -> None:
    recipe = RECIPE + "[plugins.wandb-watch]\nevery = 4\n"
    first = fork_recipe(recipe, overrides=["train.steps=5", "checkpoint.at_end=true"])
    assert list(histograms(first)) == [4]
    assert list(histograms(fork_recipe(recipe, after=first))) == [4, 8]  # and not 6 once more for 4


@pytest.mark.parametrize("wrong", ["bins = 1", 'log = ["loss"]', "every = 0"])
def test_wrong_options_are_refused(wrong: str, run_recipe: RunRecipe) -> None:
    with pytest.raises(RecipeError, match=rf"plugins\.wandb-watch\.{wrong.split(maxsplit=1)[0]}"):
        run_recipe(RECIPE + f"[plugins.wandb-watch]\n{wrong}\n")


@pytest.mark.parametrize(
    ("tables", "refused"),
    [
        ({"wandb-watch": {}}, True),
        ({"watch": {"use": "trainrun_wandb:WandbWatch"}}, True),
        ({"wandb-watch": {}, "wandb": {"enabled": False}}, True),
        ({"wandb-watch": {}, "wandb": {"mode": "offline"}}, False),
        ({"wandb-watch": {}, "mine": {"use": "wandb"}}, False),
        ({"wandb-watch": {}, "mine": {"use": "trainrun_wandb:Wandb"}}, False),
        ({}, False),  # both may have come with -p
    ],
)
def test_watching_without_wandb_is_refused(tables: dict[str, Any], refused: bool) -> None:
    recipe = Recipe.from_data({"task": {"use": "digits"}, "train": {"steps": 1}, "plugins": tables})
    problem = WandbWatch(WandbWatchOptions()).check_recipe(recipe)
    said = "nothing would send its histograms; add a table [plugins.wandb], which may be empty"
    assert problem == (said if refused else None)


def test_a_file_that_is_replaced_is_read_anew_and_the_old_one_closed(tmp_path: Path) -> None:
    path = tmp_path / "watch.jsonl"
    histograms = Histograms(tmp_path)

    def read(step: int) -> BufferedReader:
        scratch = tmp_path / "scratch"
        scratch.write_text(json.dumps({"step": step, "histograms": {}}) + "\n")
        scratch.replace(path)
        assert histograms._of(path, step) == {}
        return histograms._files[path]

    first, second = read(1), read(2)
    assert first is not second
    assert (first.closed, second.closed) == (True, False)
    histograms.close()
