from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from trainrun.errors import RecipeError
from trainrun.recipe.optimizers import KEYWORDS, NEEDS_CLOSURE
from trainrun.worker.optim import make_optimizer, make_scheduler, optimizer_classes, unwrapped


def model() -> torch.nn.Module:
    found = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 1))
    found[2].bias.requires_grad_(False)
    return found


def names_of(optimizer: torch.optim.Optimizer, of: torch.nn.Module) -> list[set[str]]:
    known = {id(parameter): name for name, parameter in of.named_parameters()}
    return [{known[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]


def test_the_recipes_table_of_optimizers_is_torchs() -> None:
    classes = optimizer_classes()
    assert set(KEYWORDS) | set(NEEDS_CLOSURE) >= set(classes)
    for name in set(KEYWORDS) & set(classes):
        signature = inspect.signature(classes[name]).parameters
        assert KEYWORDS[name] - {"match"} <= set(signature), name
        assert set(signature) - {"params", "kwargs"} <= KEYWORDS[name], name


@pytest.mark.parametrize("name", ["adamw", "AdamW", "sgd", "rmsprop", "R-Adam", "r_adam"])
def test_optimizers_are_found_in_any_spelling(name: str) -> None:
    optimizer = make_optimizer(model(), name, {"lr": 0.5}, [])
    assert type(optimizer).__name__.lower() == name.lower().replace("-", "").replace("_", "")
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_lists_become_tuples_and_frozen_parameters_stay_out() -> None:
    net = model()
    optimizer = make_optimizer(net, "adam", {"betas": [0.8, 0.9]}, [])
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert names_of(optimizer, net) == [{"0.weight", "0.bias", "1.weight", "1.bias", "2.weight"}]


def test_the_first_group_that_matches_has_a_parameter() -> None:
    net = model()
    groups = [{"match": ["*.bias", "1.*"], "weight_decay": 0.0}, {"match": ["0.*"], "lr": 0.1}]
    optimizer = make_optimizer(net, "adamw", {"lr": 0.5, "weight_decay": 0.2}, groups)
    assert names_of(optimizer, net) == [{"0.bias", "1.weight", "1.bias"}, {"0.weight"}, {"2.weight"}]
    settings = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert settings == [(0.5, 0.0), (0.1, 0.2), (0.5, 0.2)]


def test_groups_may_cover_everything() -> None:
    optimizer = make_optimizer(model(), "sgd", {"lr": 0.1}, [{"match": ["*"], "momentum": 0.9}])
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9]


@pytest.mark.parametrize(
    ("name", "settings", "groups", "message"),
    [
        ("adamm", {}, [], r"optimizer\.name: torch\.optim has no 'adamm'; did you mean 'adam"),
        ("sgd", {"momentun": 0.9}, [], r"optimizer\.momentun: SGD takes no 'momentun'; did you mean 'momentum'\?"),
        ("sgd", {}, [{"match": ["*"], "betas": [0, 1]}], r"optimizer\.groups\[0\]\.betas: SGD takes no 'betas'"),
        ("sgd", {}, [{"match": ["*"]}, {"match": ["0.*"]}], r"groups\[1\]\.match: \['0\.\*'\] matches no parameter"),
        ("sgd", {}, [{"match": ["nothing"]}], r"parameters are called like 0\.weight, 0\.bias"),
        ("sgd", {"lr": -1.0}, [], "SGD refused its settings: Invalid learning rate"),
        ("adam", {"betas": [2.0, 2.0]}, [], "Adam refused its settings"),
    ],
)
def test_wrong_tables_are_named(name: str, settings: Any, groups: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_optimizer(model(), name, settings, groups)


def test_wrappers_do_not_show_in_names_and_a_users_own_module_does() -> None:
    own = torch.nn.Sequential()
    own.add_module("module", torch.nn.Linear(2, 2))
    compiled = torch.compile(own, backend="eager")
    assert unwrapped(compiled) is own  # type: ignore[arg-type]
    optimizer = make_optimizer(compiled, "sgd", {"lr": 1.0}, [{"match": ["module.bias"], "lr": 0.5}])  # type: ignore[arg-type]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]


# --- schedules ---


def rates(name: str, steps: int | None, *, warmup: int = 0, min_lr: float = 0.0, lr: float = 1.0, **kw: float) -> Any:
    """The rate of each update."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make_scheduler(optimizer, name, steps=steps, warmup=warmup, min_lr=min_lr, settings=kw)
    found = []
    for _ in range(steps or 6):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return pytest.approx(found)


def test_each_shape() -> None:
    assert rates("constant", 4) == [1, 1, 1, 1]
    assert rates("linear", 4) == [1, 0.75, 0.5, 0.25]
    assert rates("cosine", 4) == [1, 0.8535533906, 0.5, 0.1464466094]
    assert rates("polynomial", 4, power=2) == [1, 0.5625, 0.25, 0.0625]
    assert rates("polynomial", 4) == rates("linear", 4).expected
    assert rates("exponential", 4, gamma=0.5) == [1, 0.5, 0.25, 0.125]
    assert rates("step", 6, gamma=0.1, step_size=2) == [1, 1, 0.1, 0.1, 0.01, 0.01]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "polynomial", "exponential", "step"])
def test_warm_up_rises_in_a_line_and_then_the_shape_begins(name: str) -> None:
    settings = {"gamma": 0.5, "step_size": 1}
    plain = rates(name, 4, **settings).expected
    assert rates(name, 7, warmup=3, **settings) == [0.25, 0.5, 0.75, *plain]


def test_no_rate_falls_below_the_least() -> None:
    assert rates("linear", 4, min_lr=0.2) == [1, 0.8, 0.6, 0.4]
    assert rates("exponential", 4, gamma=0.5, min_lr=0.3) == [1, 0.5, 0.3, 0.3]
    assert rates("constant", 2, lr=0.1, min_lr=0.5) == [0.1, 0.1], "never above what was asked for"
    assert rates("cosine", 2, lr=0.0, min_lr=0.5) == [0.0, 0.0]


def test_shapes_without_an_end_need_no_number_of_steps() -> None:
    assert rates("exponential", None, gamma=0.5) == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    for name in ("linear", "cosine", "polynomial"):
        with pytest.raises(RecipeError, match=r"needs the number of steps.*set train\.steps"):
            rates(name, None)


def test_a_warm_up_as_long_as_the_run_is_only_that() -> None:
    assert rates("cosine", 3, warmup=5) == [1 / 6, 2 / 6, 3 / 6]


def test_each_group_keeps_its_own_rate() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups)
    scheduler = make_scheduler(optimizer, "linear", steps=2, warmup=0, min_lr=0.1, settings={})
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.55, 0.1])
