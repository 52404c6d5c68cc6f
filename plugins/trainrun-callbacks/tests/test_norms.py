from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainrun_callbacks.norms import GroupedNorms, Norms, NormsOptions

from trainrun import HookFailed, hookimpl
from trainrun.testing import ForkRecipe, RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 4 }
train = { steps = 4, batch_size = 16, log_every = 2, clip_grad_norm = 0.01 }
evaluate.splits = []
"""
ALL = """
[plugins.norms]
gradients = { total = "*", last = ["10.*", "8.bias"] }
parameters = ["*.weight"]
updates = true
norm_type = %s
"""


class ByHand:
    """Log the same norms, computed one by one."""

    order: float = 2.0

    @hookimpl
    def on_gradients_ready(self, run: Any) -> None:
        self.before = {name: one.detach().clone() for name, one in run.module.named_parameters()}
        gradients = {name: one.grad for name, one in run.module.named_parameters()}
        self.log(run, "gradients", list(gradients.values()))
        self.log(run, "last", [gradients[name] for name in ("8.bias", "10.weight", "10.bias")])
        self.log(run, "weights", [one for name, one in self.before.items() if name.endswith("weight")])

    @hookimpl
    def on_update_end(self, run: Any) -> None:
        changes = [one.detach() - self.before[name] for name, one in run.module.named_parameters()]
        self.log(run, "ratio", changes, self.norm(list(self.before.values())))

    def log(self, run: Any, name: str, tensors: list[torch.Tensor], weight: float = 1.0) -> None:
        run.log(f"hand/{name}", self.norm(tensors) / weight, reduce="last")

    def norm(self, tensors: list[torch.Tensor]) -> float:
        whole = [one.full_tensor() if hasattr(one, "full_tensor") else one for one in tensors]
        return float(torch.linalg.vector_norm(torch.cat([one.flatten() for one in whole]).double(), self.order))


PAIRS = {
    "grad_norm/total": "hand/gradients",
    "grad_norm/last": "hand/last",
    "param_norm/*.weight": "hand/weights",
    "update_ratio/total": "hand/ratio",
}


def by_hand(order: float) -> type[ByHand]:
    return type("ByHand", (ByHand,), {"order": order})


def assert_as_by_hand(result: Any) -> None:
    for name, hand in PAIRS.items():
        assert result.series(name) == pytest.approx(result.series(hand), rel=1e-5)
        assert list(result.series(name)) == [2, 4]
        assert min(result.series(name).values()) > 0


@pytest.mark.parametrize(("said", "order"), [("2.0", 2.0), ("1.0", 1.0), ("3.0", 3.0), ('"inf"', math.inf)])
def test_norms_are_those_computed_by_hand_and_before_clipping(run_recipe: RunRecipe, said: str, order: float) -> None:
    assert_as_by_hand(run_recipe(RECIPE + ALL % said, by_hand(order)))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("said", "order"), [("2.0", 2.0), ('"inf"', math.inf)])
def test_norms_are_over_all_ranks(fork_recipe: ForkRecipe, strategy: str, said: str, order: float) -> None:
    assert_as_by_hand(fork_recipe(RECIPE + ALL % said, by_hand(order), overrides=[f'parallel.strategy="{strategy}"']))


def test_gradients_are_the_default(run_recipe: RunRecipe) -> None:
    (record, *_) = run_recipe(RECIPE, "norms").metrics
    assert {name for name in record if "norm/" in name} == {"grad_norm/total"}
    assert record["grad_norm/total"] > 0


def test_a_pattern_that_fits_nothing_ends_the_run_at_its_start(run_recipe: RunRecipe) -> None:
    with pytest.raises(HookFailed, match=r"norms: gradients: head = \['fc\*'\] fits no trained .* are: 0.weight, 0.b"):
        run_recipe(RECIPE + '[plugins.norms]\ngradients = { head = "fc*" }')


def test_a_value_that_is_not_finite_stays_in_its_group() -> None:
    tensors = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([math.nan])}
    norms = GroupedNorms(tensors, {"good": ("a",), "bad": ("b",), "all": ("*",)}, 2.0)(list(tensors.values()))
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx(
        {"good": 5.0, "bad": math.nan, "all": math.nan}, nan_ok=True
    )


def test_halves_and_empty_shards_count() -> None:
    tensors = {"none": torch.zeros(0), "a": torch.full((4,), 1.0), "half": torch.full((100,), 300.0).half()}
    two = GroupedNorms(tensors, {"all": ("*",)}, 2.0)(list(tensors.values()))
    greatest = GroupedNorms(tensors, {"all": ("*",)}, math.inf)(list(tensors.values()))
    assert two["all"].item() == pytest.approx(math.sqrt(100 * 300**2 + 4))  # more than a half can hold
    assert greatest["all"].item() == 300


class LosesOne:
    """Makes a value of the last weight's gradient NaN, in the shard of rank 0."""

    before = ("norms",)

    @hookimpl
    def on_gradients_ready(self, run: Any) -> None:
        gradient = dict(run.module.named_parameters())["10.weight"].grad
        if run.world.rank == 0 and run.step == 2:
            gradient.to_local().view(-1)[0] = math.nan


def test_the_greatest_of_shards_keeps_a_nan_of_one_rank(fork_recipe: ForkRecipe) -> None:
    table = '[plugins.norms]\nnorm_type = "inf"\neach = ["10.*"]\n'
    recipe = RECIPE.replace("steps = 4", "steps = 2").replace(", clip_grad_norm = 0.01", "")
    (record, *_) = fork_recipe(recipe + table, LosesOne, overrides=['parallel.strategy="fsdp"']).metrics
    assert record["grad_norm/total"] == "nan"
    assert record["grad_norm/10.weight"] == "nan"
    assert math.isfinite(record["grad_norm/10.bias"])


@pytest.mark.parametrize("order", [2.0, math.inf])
def test_each_parameter_may_have_its_own(order: float) -> None:
    tensors = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0]), "c": torch.tensor([2.0])}
    norms = GroupedNorms(tensors, {"total": ("*",)}, order, ("a", "c"))(list(tensors.values()))
    values = torch.tensor([3.0, 4.0, 1.0, 2.0])
    expected = {"a": 5.0 if order == 2 else 4.0, "c": 2.0, "total": torch.linalg.vector_norm(values, order).item()}
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx(expected)


def test_each_is_of_all_that_is_asked_for(run_recipe: RunRecipe) -> None:
    table = '[plugins.norms]\nparameters = true\nupdates = true\neach = ["*.bias"]\n'
    (record, *_) = run_recipe(RECIPE + table).metrics
    for prefix in ("grad_norm", "param_norm", "update_ratio"):
        found = {name for name in record if name.startswith(prefix)}
        assert {f"{prefix}/total", f"{prefix}/10.bias"} <= found
        assert f"{prefix}/10.weight" not in found


@pytest.mark.parametrize(
    ("table", "told"),
    [('each = ["fc*"]', r"each: fc\* = .* fits no trained"), ('gradients = false\neach = ["*"]', "all false; set one")],
)
def test_each_that_gives_nothing_ends_the_run(run_recipe: RunRecipe, table: str, told: str) -> None:
    with pytest.raises(HookFailed, match=told):
        run_recipe(RECIPE + f"[plugins.norms]\n{table}\n")


def test_parameters_that_are_all_zero_have_no_ratio() -> None:
    module = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(module.weight)
    torch.nn.init.zeros_(module.bias)
    logged: dict[str, float] = {}
    log = lambda name, value, reduce: logged.update({name: value.item()})  # noqa: E731
    run: Any = SimpleNamespace(module=module, world=SimpleNamespace(rank=0), logs_now=True, log=log)
    plugin = Norms(NormsOptions(gradients=False, updates=True))
    plugin.on_train_start(run)
    plugin.on_gradients_ready(run)
    torch.nn.init.ones_(module.weight)
    plugin.on_update_end(run)
    assert logged == {"update_ratio/total": 0.0}


def test_no_parameter_with_a_gradient_is_norm_zero() -> None:
    assert GroupedNorms({}, {"all": ("*",)}, 2.0)([])["all"].item() == 0


def test_between_logs_nothing_is_computed() -> None:
    module = torch.nn.Linear(1, 1)
    logged: list[str] = []
    run: Any = SimpleNamespace(
        module=module,
        world=SimpleNamespace(rank=0),
        logs_now=False,
        log=lambda name, value, reduce: logged.append(name),
    )
    plugin = Norms(NormsOptions(updates=True))
    plugin.on_train_start(run)
    for logs in (False, True):
        run.logs_now = logs
        plugin.on_gradients_ready(run)
        plugin.on_update_end(run)
        assert bool(logged) == logs
