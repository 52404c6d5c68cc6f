from __future__ import annotations

import inspect

import pydantic
import pytest

from trainrun.recipe import Recipe
from trainrun.recipe.optimizers import KEYWORDS, NEEDS_CLOSURE

DATA = {"task": {"use": "x", "hidden": 3}, "train": {"steps": 1}}


def test_the_typed_recipe() -> None:
    recipe = Recipe.from_data({**DATA, "launch": {"grace": "1m30s"}, "plugins": {"a": {"use": "b", "x": 1}}})

    assert recipe.launch.grace == 90.0
    assert recipe.task.options == {"hidden": 3}
    assert recipe.plugins["a"].options == {"x": 1}
    assert recipe.evaluate.splits == ["eval"]
    assert recipe.launch.start == "warm"


def test_it_cannot_be_changed() -> None:
    recipe = Recipe.from_data(DATA)

    with pytest.raises(pydantic.ValidationError):
        recipe.train.steps = 3


def test_the_rules_hold_for_the_model_too() -> None:
    with pytest.raises(pydantic.ValidationError, match=r"train\.epochs: steps and epochs are both set"):
        Recipe.from_data({**DATA, "train": {"steps": 1, "epochs": 1}})


def test_optimizer_keywords_are_what_the_recipe_sets() -> None:
    groups = [{"match": ["*.bias"], "weight_decay": 0.0}]
    recipe = Recipe.from_data({**DATA, "optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True, "groups": groups}})

    assert recipe.optimizer.keywords == {"lr": 0.1, "nesterov": True}
    assert recipe.optimizer.groups[0].keywords == {"weight_decay": 0.0}


def test_the_table_of_optimizers_is_torchs() -> None:
    import torch

    classes = {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    assert KEYWORDS.keys() | NEEDS_CLOSURE == classes.keys()
    for name, keywords in KEYWORDS.items():
        assert keywords == inspect.signature(classes[name]).parameters.keys() - {"params"}, name
