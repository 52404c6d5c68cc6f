"""What the `run` handle tells plugins about where training is."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from trainrun.builtin import SMOKE_CHECK
from trainrun.errors import HookFailed
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


class Asks:
    """Asks for a stop for a reason that is none."""

    reason: Any = True

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        run.request_stop(self.reason)


@pytest.mark.parametrize(("reason", "told"), [(True, "True"), ("", "''"), (None, "None"), (3, "3")])
def test_a_request_needs_a_reason(training: Any, regression: Any, reason: Any, told: str) -> None:
    asks = type("Asks", (Asks,), {"reason": reason})
    with pytest.raises(HookFailed, match=f"raised TypeError in on_step_end: run.request_stop was called with {told};"):
        training(regression, asks, train={"steps": 2})


class Spoils:
    """Empties every mapping that it is given."""

    seen: ClassVar[list[tuple[str, list[str]]]] = []

    def spoil(self, hook: str, mapping: dict[str, Any]) -> None:
        self.seen.append((hook, sorted(mapping)))
        mapping.clear()

    @hookimpl
    def on_step_end(self, metrics: Any) -> None:
        self.spoil("on_step_end", metrics)

    @hookimpl
    def on_log(self, metrics: Any) -> None:
        self.spoil("on_log", metrics)

    @hookimpl
    def on_evaluation_end(self, metrics: Any) -> None:
        self.spoil("on_evaluation_end", metrics)

    @hookimpl
    def on_evaluated(self, metrics: Any) -> None:
        self.spoil("on_evaluated", metrics)


def test_a_plugin_that_changes_its_metrics_changes_them_for_no_other(training: Any, regression: Any) -> None:
    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def training_step(self, model: Any, batch: Any) -> Any:
            loss = model(batch[0]).square().mean()
            return {"loss": loss, "part": loss.detach()}

    seen: list[tuple[str, list[str]]] = []
    first, second = (type(name, (Spoils,), {"seen": seen}) for name in ("First", "Second"))
    run = training(Task, first, second, train={"steps": 1})
    hooks = ["on_log", "on_step_end", "on_evaluation_end", "on_evaluated", "on_log"]
    assert [hook for hook, _ in seen[::2]] == [hook for hook, _ in seen[1::2]] == hooks
    assert seen[::2] == seen[1::2]
    assert all(names for _, names in seen)
    assert "eval/error" in seen[-1][1]
    assert run.metrics[-1]["eval/error"] > 0
