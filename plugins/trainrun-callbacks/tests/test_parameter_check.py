from __future__ import annotations

from typing import Any

import pytest
import torch
from trainrun_callbacks.comparing import fingerprint
from trainrun_callbacks.parameter_check import ParameterCheck, ParameterCheckOptions

from trainrun import Recipe, hookimpl
from trainrun.testing import ForkRecipe, RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 6, batch_size = 24, log_every = 4 }
evaluate = { splits = [] }
optimizer = { name = "adamw", lr = 0.001 }

[plugins.parameter-check]
every = 2
"""


class Drifts:
    """Changes one number of one parameter on rank 1, in step 3."""

    @hookimpl(mutates=True)
    def on_update_end(self, run: Any) -> None:
        if run.step == 3 and run.world.rank == 1:
            with torch.no_grad():
                dict(run.module.named_parameters())["0.weight"].view(-1)[0] += 1e-6


class DriftsInside:
    """Changes a moment of the optimizer on the last rank, in the last step."""

    @hookimpl(mutates=True)
    def on_update_end(self, run: Any) -> None:
        if run.step == 6 and run.world.rank == run.world.size - 1:
            parameter = run.optimizer.param_groups[0]["params"][0]
            run.optimizer.state[parameter]["exp_avg"].view(-1)[0] += 1.0


def test_replicas_are_alike(fork_recipe: ForkRecipe) -> None:
    overrides = ["plugins.parameter-check.optimizer=true", "plugins.parameter-check.buffers=true"]
    assert fork_recipe(RECIPE, overrides=overrides).outcome.step == 6


def test_what_differs_is_named_with_its_ranks(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE, Drifts, workers=3, fails=True)
    assert "the ranks hold different values at step 4: " in str(result.error)
    assert "0.weight: ranks 0, 2 against 1" in str(result.error)


def test_the_end_is_checked_too_and_the_optimizer_where_asked_for(fork_recipe: ForkRecipe) -> None:
    overrides = ["plugins.parameter-check.every=100"]
    assert fork_recipe(RECIPE, DriftsInside, overrides=overrides).outcome.step == 6
    overrides += ["plugins.parameter-check.optimizer=true"]
    result = fork_recipe(RECIPE, DriftsInside, overrides=overrides, fails=True)
    assert "exp_avg of 0.weight in the optimizer: ranks 0 against 1" in str(result.error)


class Forgets:
    """Has the optimizer of rank 1 forget what it knows of one parameter."""

    @hookimpl(mutates=True)
    def on_update_end(self, run: Any) -> None:
        if run.step == 2 and run.world.rank == 1:
            del run.optimizer.state[run.optimizer.param_groups[0]["params"][0]]


def test_tensors_that_some_ranks_do_not_have_are_named(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE, Forgets, overrides=["plugins.parameter-check.optimizer=true"], fails=True)
    assert "the ranks hold different tensors at step 2: " in str(result.error)
    assert "exp_avg of 0.weight in the optimizer: on ranks 0 only" in str(result.error)


def test_a_warning_does_not_end_the_run(fork_recipe: ForkRecipe) -> None:
    overrides = ['plugins.parameter-check.on_difference="warn"']
    result = fork_recipe(RECIPE, Drifts, overrides=overrides)
    assert result.outcome.step == 6
    assert result.paths.rank_log(0).read_text().count("hold different values") == 2
    assert not result.paths.rank_log(1).exists()


def test_one_worker_has_nobody_to_compare_with(run_recipe: RunRecipe) -> None:
    assert run_recipe(RECIPE, Drifts).outcome.step == 6


def test_parts_cannot_be_compared() -> None:
    plugin = ParameterCheck(ParameterCheckOptions())
    data: dict[str, Any] = {"task": {"use": "digits"}, "train": {"steps": 1}}
    assert plugin.check_recipe(Recipe.from_data(data)) is None
    veto = plugin.check_recipe(Recipe.from_data({**data, "parallel": {"strategy": "fsdp"}}))
    assert veto is not None
    assert "nothing to compare" in veto


CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]


def hashed(tensor: torch.Tensor) -> int:
    return int(fingerprint(tensor, CPU))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_bits_have_equal_fingerprints(dtype: torch.dtype) -> None:
    tensor = torch.randn(7, 5).to(dtype)
    assert hashed(tensor) == hashed(tensor.clone()) == hashed(tensor.T.contiguous().T)
    assert hashed(tensor.view(-1)[1:]) == hashed(tensor.view(-1)[1:].clone())
    assert hashed(torch.empty(0, dtype=dtype)) == hashed(torch.empty(0, dtype=dtype))
    assert hashed(tensor[0, 0]) == hashed(tensor[0, 0].clone())


def test_any_small_change_shows() -> None:
    tensor = torch.randn(3 * 2**20 + 5)
    seen = {hashed(tensor)}
    for place in (0, 1, 2**20 - 1, 2**20, len(tensor) - 1):
        other = tensor.clone()
        other[place] = torch.nextafter(other[place], torch.tensor(torch.inf))
        seen.add(hashed(other))
    swapped = tensor.clone()
    swapped[[0, 2**20]] = swapped[[2**20, 0]]
    seen.add(hashed(swapped))
    assert len(seen) == 7


def test_changes_of_single_bits_do_not_make_up_for_one_another() -> None:
    """What a plain weighted sum would miss: +3 at the first place and -1 at the second."""
    tensor = torch.arange(100, dtype=torch.int32)
    other = tensor.clone()
    other[0] += 3
    other[1] -= 1
    assert hashed(tensor) != hashed(other)
    assert hashed(torch.tensor([0.0])) != hashed(torch.tensor([-0.0]))
