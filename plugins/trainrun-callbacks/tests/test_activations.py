from __future__ import annotations

from typing import Any

import pytest
import torch

from trainrun import HookFailed, RecipeError, hookimpl
from trainrun.testing import ForkRecipe, LaunchRecipe, RunRecipe

RECIPE = """
task = { use = "digits", channels = 1, hidden = 2, dropout = 0.0 }
train = { steps = 4, batch_size = 16, micro_batch_size = 4 }
evaluate = { every = 4, batch_size = 100 }

[plugins.activations]
modules = ["8", "1*"]
steps = [2]
evaluation_batches = 1
"""


def files(result: Any) -> list[str]:
    folder = result.paths.root / "activations"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class Watcher:
    """Keeps what the model makes of the first batch of step 2."""

    before = ("activations",)

    @hookimpl
    def on_microbatch_start(self, run: Any, batch: Any, microbatch: int) -> None:
        if run.step == 2 and microbatch == 0:
            torch.save(run.module(batch[0]).detach(), run.paths.root / f"seen-{run.world.rank}.pt")


def test_outputs_of_chosen_modules_steps_and_batches_are_kept(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE, Watcher)
    assert files(result) == [
        "eval-step-4/rank-0-batch-0.pt",
        "eval-step-4/rank-1-batch-0.pt",
        "step-2/rank-0.pt",
        "step-2/rank-1.pt",
    ]
    for rank in (0, 1):
        found = torch.load(result.paths.root / "activations" / "step-2" / f"rank-{rank}.pt")
        scores = torch.load(result.paths.root / f"seen-{rank}.pt")
        assert set(found) == {"1", "8", "10"}
        assert [len(calls) for calls in found.values()] == [1, 1, 1]
        torch.testing.assert_close(found["10"][0], scores)
        assert not found["8"][0].requires_grad
    evaluated = torch.load(result.paths.root / "activations" / "eval-step-4" / "rank-0-batch-0.pt")
    assert evaluated["10"][0].shape == (100, 10)


def test_inputs_may_be_kept_too(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, Watcher, overrides=["plugins.activations.inputs=true"])
    found = torch.load(result.paths.root / "activations" / "step-2" / "rank-0.pt")
    (given,) = found["10"][0]["inputs"]
    assert given.shape == (4, 2)
    assert found["10"][0]["output"].shape == (4, 10)


def test_what_cannot_be_kept_turns_it_off_and_not_the_forward(
    run_recipe: RunRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(value: Any) -> Any:
        raise MemoryError("no room for a copy")

    monkeypatch.setattr("trainrun_callbacks.writing.kept", full)
    result = run_recipe(RECIPE)
    (decision,) = [event for event in result.events if event.get("decision") == "disable"]
    assert decision["hook"] == "on_forward_end"
    assert "no room for a copy" in decision["reason"]
    assert not (result.paths.root / "activations").exists()


def test_at_the_greatest_size_it_stops_and_says_so(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, overrides=["plugins.activations.max_mib=0.003"])
    assert files(result) == ["step-2/rank-0.pt"]
    assert "activations are no longer kept: max_mib is reached" in result.paths.rank_log(0).read_text()


def test_a_pattern_that_fits_nothing_names_modules(run_recipe: RunRecipe) -> None:
    with pytest.raises(HookFailed, match=r"'blocks.\*' fits no module; there are: 0, 1, 2, 3, 4"):
        run_recipe(RECIPE.replace('"8"', '"blocks.*"'), overrides=["plugins.activations.on_error='fail'"])


@pytest.mark.parametrize(
    ("override", "told"),
    [("plugins.activations.steps=[]", "nothing is kept; set steps"), ("train.compile=true", "code cannot be hooked")],
)
def test_what_cannot_be_vetoes_the_launch(launch_recipe: LaunchRecipe, override: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        launch_recipe(RECIPE, overrides=["plugins.activations.evaluation_batches=0", override])
