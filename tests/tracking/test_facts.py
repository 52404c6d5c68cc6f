from __future__ import annotations

import pytest

from trainrun import EnvironmentProblem
from trainrun.rundir.paths import RunPaths
from trainrun.tracking import RunFacts
from trainrun.tracking.facts import flatten


def test_parameters_are_the_recipe_with_dotted_keys(paths: RunPaths) -> None:
    facts = RunFacts.read(paths)
    assert (facts.id, facts.name) == ("one", "digits")
    assert facts.parameters == {
        "run.name": "digits",
        "task.use": "digits",
        "train.steps": 8,
        "train.batch_size": 16,
        "optimizer.name": "adamw",
        "optimizer.lr": 0.1,
        "optimizer.betas": "0.9, 0.99",
        "plugins.chat.token": "<redacted>",
    }


def test_nested_lists_are_numbered() -> None:
    groups = [{"match": "*.bias", "lr": 1}, {"match": "*"}]
    assert flatten({"o": {"groups": groups, "none": None, "empty": []}}) == {
        "o.groups[0].match": "*.bias",
        "o.groups[0].lr": 1,
        "o.groups[1].match": "*",
        "o.empty": "",
    }


def test_a_run_without_a_recipe_is_an_error(paths: RunPaths) -> None:
    paths.recipe.unlink()
    with pytest.raises(EnvironmentProblem, match=r"recipe\.toml: cannot be read"):
        RunFacts.read(paths)
