"""What the `run` handle tells plugins about where training is."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from trainrun.builtin import SMOKE_CHECK
from trainrun.marker import hookimpl
from trainrun.testing import RunRecipe


class Watcher:
    """Notes what `run` says in each step."""

    seen: ClassVar[list[tuple[int, bool, float | None]]]

    @hookimpl
    def on_step_start(self, run: Any, step: int) -> None:
        self.told = run.logs_now

    @hookimpl
    def on_update_end(self, run: Any) -> None:
        assert run.logs_now == self.told
        self.seen.append((run.step, run.logs_now, run.epoch_progress))

    @classmethod
    def report(cls) -> list[tuple[int, bool, float | None]]:
        return cls.seen


@pytest.fixture
def watcher() -> type[Watcher]:
    return type("Watcher", (Watcher,), {"seen": []})


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_that_is_logged_knows_it(training: Any, regression: Any, watcher: Any, ranks: int) -> None:
    run = training(regression, watcher, report=watcher.report, ranks=ranks, train={"steps": 5, "log_every": 2})
    assert [[step for step, logs, _ in seen if logs] for seen in run.reports] == [[2, 4, 5]] * ranks
    assert [record["step"] for record in run.metrics if "train/loss" in record] == [2, 4, 5]


@pytest.mark.parametrize("ranks", [1, 2])
def test_progress_counts_samples_also_in_uneven_updates(
    training: Any, regression: Any, watcher: Any, ranks: int
) -> None:
    """20 samples in updates of 8, 8 and 4."""
    tables = {"train": {"steps": 4, "micro_batch_size": 2}}
    run = training(regression, watcher, report=watcher.report, ranks=ranks, **tables)
    assert [[progress for _, _, progress in seen] for seen in run.reports] == [[0.4, 0.8, 1.0, 0.4]] * ranks


def test_progress_goes_on_after_a_resume(training: Any, regression: Any, watcher: Any) -> None:
    before = training(regression, train={"steps": 2}, checkpoint={"at_end": True})
    run = training(regression, watcher, report=watcher.report, after=before.paths, train={"steps": 4})
    assert run.reports == [[(3, True, 1.0), (4, True, 0.4)]]


class Batches(list[Any]):
    """A loader of a plugin's own, of batches that are there."""


class Endless:
    """One without a length."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Any:
        return iter(self._batches)


@pytest.mark.parametrize(("loader", "progress"), [(Batches, [0.5, 1.0, 0.5]), (Endless, [None, None, None])])
def test_progress_over_a_foreign_loader(
    training: Any, regression: Any, watcher: Any, loader: Any, progress: list[float | None]
) -> None:
    class Own(regression):  # type: ignore[misc]
        @hookimpl
        def build_dataloader(self, dataset: Any, split: str) -> Any:
            rows = [tuple(part.unsqueeze(0) for part in row) for row in self.points(2)]
            return loader(rows) if split == "train" else None

    run = training(Own, watcher, report=watcher.report, train={"steps": 3, "batch_size": 1})
    assert [told for _, _, told in run.reports[0]] == progress


class SmokeWatcher:
    """Keeps whether the run is a smoke test."""

    @hookimpl
    def on_train_start(self, run: Any) -> None:
        run.log("smoke", run.smoke)


@pytest.mark.parametrize("smoke", [False, True])
def test_a_smoke_test_knows_it(run_recipe: RunRecipe, smoke: bool) -> None:
    recipe = "task = { use = 'digits', channels = 1, hidden = 2 }\ntrain = { steps = 1 }\nevaluate.splits = []\n"
    check = f"[plugins.smoke-check]\nuse = '{SMOKE_CHECK}'\n" if smoke else ""
    assert run_recipe(recipe + check, SmokeWatcher).series("smoke") == {1: smoke}


class Names:
    """Notes the names of the parameters of the bare model, and of the parallel one."""

    @hookimpl
    def on_train_start(self, run: Any) -> None:
        type(self).found = [[name for name, _ in model.named_parameters()] for model in (run.module, run.model)]

    @classmethod
    def report(cls) -> Any:
        return cls.found

    found: ClassVar[list[list[str]]]


def test_the_module_is_the_model_out_of_its_wrappers(training: Any, regression: Any) -> None:
    (alone,) = training(regression, Names, report=Names.report, train={"steps": 1}).reports
    (bare, parallel), _ = training(regression, Names, report=Names.report, ranks=2, train={"steps": 1}).reports
    assert alone[0] == bare == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert parallel == [f"module.{name}" for name in bare]
