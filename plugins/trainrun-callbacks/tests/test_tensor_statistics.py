from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from trainrun_callbacks.tensor_statistics import summary

from trainrun import HookFailed, hookimpl
from trainrun.testing import ForkRecipe, RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 4 }
train = { steps = 2, batch_size = 16, log_every = 2 }
evaluate.splits = []

[plugins.tensor-statistics]
parameters = true
gradients = { last = "10.*" }
batches = { images = "0" }
"""


class ByHand:
    """Log the same statistics, the simple way."""

    @hookimpl
    def on_gradients_ready(self, run: Any) -> None:
        named = [(name, self.whole(one), self.whole(one.grad)) for name, one in run.module.named_parameters()]
        self.log(run, "parameters", [one for _, one, _ in named])
        self.log(run, "gradients", [one for name, _, one in named if name.startswith("10.")])

    def whole(self, tensor: Any) -> Any:
        tensor = tensor.detach()
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def log(self, run: Any, what: str, tensors: list[torch.Tensor]) -> None:
        values = torch.cat([one.flatten() for one in tensors]).double()
        found = {"mean": values.mean(), "std": values.std(correction=0), "min": values.min(), "max": values.max()}
        for name, value in found.items():
            run.log(f"hand/{what}/{name}", value, reduce="last")


@pytest.mark.parametrize("strategy", ["none", "ddp", "fsdp"])
def test_statistics_are_those_computed_by_hand(run_recipe: RunRecipe, fork_recipe: ForkRecipe, strategy: str) -> None:
    override = [] if strategy == "none" else [f'parallel.strategy="{strategy}"']
    result = (run_recipe if strategy == "none" else fork_recipe)(RECIPE, ByHand, overrides=override)
    for what, group in (("parameters", "total"), ("gradients", "last")):
        for name in ("mean", "std", "min", "max"):
            found, expected = result.series(f"{what}/{group}/{name}"), result.series(f"hand/{what}/{name}")
            assert found == pytest.approx(expected, rel=1e-5)
        assert result.series(f"{what}/{group}/nonfinite") == {2: 0.0}
    images = {name: result.series(f"batches/images/{name}")[2] for name in ("mean", "std", "min", "max")}
    assert (images["min"], images["max"]) == (0.0, 1.0)
    assert 0 < images["mean"] < images["std"] < 1


def test_values_that_are_not_finite_are_counted_and_left_out() -> None:
    found = summary([torch.tensor([1.0, 3.0, math.nan]), torch.tensor([math.inf, -math.inf, 5.0]), torch.zeros(0)])
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {"mean": 3.0, "std": math.sqrt(8 / 3), "min": 1.0, "max": 5.0, "nonfinite": 0.5}
    )


def test_large_tensors_are_looked_at_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    values[4, 6] = math.nan
    whole = summary([values])
    monkeypatch.setattr("trainrun_callbacks.tensor_statistics._CHUNK", 4)
    for name, value in summary([values]).items():
        torch.testing.assert_close(value, whole[name])


def test_a_pattern_that_fits_nothing_ends_the_run(run_recipe: RunRecipe) -> None:
    with pytest.raises(HookFailed, match=r"gradients: last = \['fc.\*'\] fits nothing; there are: 0.weight"):
        run_recipe(RECIPE.replace("10.*", "fc.*"))


def test_a_batch_without_such_a_tensor_turns_it_off(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE.replace('"0"', '"image*"'))
    (decision,) = [event for event in result.events if event.get("decision") == "disable"]
    assert "batches: images = ['image*'] fits nothing; there are: 0, 1" in decision["reason"]
