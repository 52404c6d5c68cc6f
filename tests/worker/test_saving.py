"""When checkpoints are saved, and what training is told of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from trainrun.checkpoint import scan
from trainrun.marker import hookimpl
from trainrun.recipe.model import CheckpointTable
from trainrun.rundir.files import read_lines
from trainrun.worker.checkpoint.reader import read_tensors


def steps(trained: Any) -> list[int]:
    """The steps of the checkpoints that there are, oldest first."""
    return [one.step for one in reversed(scan(trained.paths.checkpoints))]


def warnings(trained: Any) -> list[str]:
    return [event["reason"] for event in read_lines(trained.paths.events)[0] if event["event"] == "warning"]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("table", "kept"),
    [
        ({}, [10]),
        ({"every": "never"}, [10]),
        ({"every": "never", "at_end": False}, []),
        ({"at_end": False}, []),
        ({"every": 4}, [8, 10]),
        ({"every": 4, "at_end": False, "background": False}, [4, 8]),
        ({"every": 2, "keep": 3}, [6, 8, 10]),
        ({"every": 5, "at_end": False}, [5, 10]),
    ],
)
def test_steps(training: Any, regression: Any, table: Any, kept: list[int], ranks: int) -> None:
    trained = training(regression, ranks=ranks, train={"steps": 10}, checkpoint=table)
    assert steps(trained) == kept
    assert all(event["decision"] == "saved" for event in trained.saves)


class Slow:
    """Steps that take long enough for the clock."""

    @hookimpl
    def on_step_end(self) -> None:
        torch.randn(400, 400) @ torch.randn(400, 400)


@pytest.mark.parametrize("ranks", [1, 2])
def test_by_the_clock(training: Any, regression: Any, ranks: int) -> None:
    table = {"every": "0.03s", "keep": 100, "at_end": False}
    trained = training(regression, Slow, ranks=ranks, train={"steps": 120}, checkpoint=table)
    wishes = [event for event in trained.saves if event["decision"] == "saved"]
    assert len(wishes) == len(steps(trained)) > 1
    assert warnings(trained) == []


def test_each_quarter_of_an_hour_if_the_recipe_does_not_say() -> None:
    assert CheckpointTable().every == "15m"


class WantsEvaluated:
    """Asks for an evaluation at one step, and for a checkpoint of everything that is evaluated."""

    @hookimpl(ranks="zero")
    def should_evaluate(self, run: Any) -> str | None:
        return "to see" if run.step == 3 else None

    @hookimpl(ranks="zero")
    def on_evaluation_end(self, run: Any, metrics: Any) -> None:
        run.request_checkpoint(f"{run.step}")


@pytest.mark.parametrize(
    ("ranks", "every", "saved"),
    [(2, 2, [2, 4, 6, 8, 9]), (1, "epoch", [3, 6, 9]), (2, "epoch", [3, 6, 9]), (2, None, [4, 9])],
)
@pytest.mark.parametrize("at_end", [True, False])
def test_what_an_evaluation_asks_for_is_saved_with_the_weights_that_it_saw(
    training: Any, regression: Any, ranks: int, every: Any, saved: list[int], at_end: bool
) -> None:
    """An epoch of 20 samples has three steps of 8; what was voted after step 3 is evaluated before step 5."""
    tables = {"train": {"steps": 9}, "evaluate": {} if every is None else {"every": every}}
    checkpoint = {"keep": 100, "at_end": at_end}
    trained = training(regression, WantsEvaluated, ranks=ranks, checkpoint=checkpoint, **tables)
    found = [one.manifest for one in scan(trained.paths.checkpoints)]
    assert [one.step for one in reversed(found)] == saved
    early = [one for one in found if one.step < 9]  # the last one is saved in any case
    assert [one.reason for one in early] == [f"wants-evaluated: {one.step}" for one in early]
    assert all(one.metrics for one in found)


@pytest.mark.parametrize("every", ["epoch", None])
def test_what_was_saved_after_such_an_evaluation_goes_on_bit_for_bit(
    training: Any, regression: Any, every: Any
) -> None:
    tables = {"train": {"steps": 9}, "evaluate": {} if every is None else {"every": every}}
    tables["checkpoint"] = {"keep": 100, "at_end": True}
    trained = training(regression, WantsEvaluated, **tables)
    first, *later = steps(trained)
    whole = read_tensors(trained.paths.checkpoints / "step-000009", "")
    for step in later:
        shutil.rmtree(trained.paths.checkpoints / f"step-{step:06}")
    resumed = training(regression, WantsEvaluated, after=trained.paths, **tables)
    assert steps(resumed) == [first, *later]
    found = read_tensors(resumed.paths.checkpoints / "step-000009", "")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


class Asks:
    """Wants a checkpoint at step 3, on one rank."""

    @hookimpl(ranks="zero")
    def should_checkpoint(self, run: Any) -> str | None:
        return "a good moment" if run.step == 3 else None


def test_a_vote_is_enough(training: Any, regression: Any) -> None:
    trained = training(regression, Asks, ranks=2, train={"steps": 10})
    assert steps(trained) == [5]
    assert scan(trained.paths.checkpoints)[0].manifest.reason == "asks: a good moment"


class Watches:
    seen: list[tuple[str, str, int]]

    @hookimpl
    def on_checkpoint_start(self, run: Any, checkpoint: str) -> None:
        type(self).seen.append(("start", checkpoint[-11:], run.step))

    @hookimpl
    def on_checkpoint_saved(self, run: Any, checkpoint: str) -> None:
        type(self).seen.append(("saved", checkpoint[-11:], run.step))

    @classmethod
    def report(cls) -> list[tuple[str, str, int]]:
        return cls.seen


def test_hooks_fire_on_all_ranks_at_the_same_steps(training: Any, regression: Any) -> None:
    plugin = type("Watches", (Watches,), {"seen": []})
    trained = training(
        regression, plugin, ranks=2, report=plugin.report, train={"steps": 9}, checkpoint={"every": 3, "at_end": True}
    )
    first, second = trained.reports
    assert first == second
    assert [name for kind, name, _ in first if kind == "start"] == ["step-000003", "step-000006", "step-000009"]
    assert [name for kind, name, _ in first if kind == "saved"] == ["step-000003", "step-000006", "step-000009"]


class Stream(torch.utils.data.IterableDataset[Any]):
    """Batches in order; it cannot say where it is."""

    batched = True

    def __iter__(self) -> Iterator[Any]:
        for _ in range(20):
            yield torch.randn(4, 3), torch.randn(4, 1)


@pytest.mark.parametrize(
    ("table", "told"),
    [({"every": "never", "at_end": True}, 1), ({"at_end": False}, 1), ({"every": "never", "at_end": False}, 0)],
)
def test_a_loader_that_cannot_be_placed_is_named_before_the_first_step(
    training: Any, regression: Any, table: Any, told: int
) -> None:
    task = type("Task", (regression,), {"build_dataset": hookimpl(lambda self, split: Stream())})
    trained = training(task, train={"steps": 3}, evaluate={"splits": []}, checkpoint=table)
    found = [event for event in read_lines(trained.paths.events)[0] if event["event"] == "warning"]
    assert len(found) == told
    for event in found:
        assert event["step"] == 0
        assert "DataLoader over Stream" in event["reason"]


def test_a_save_that_takes_longer_than_the_grace_is_told_once(training: Any, regression: Any) -> None:
    trained = training(
        regression, train={"steps": 8}, launch={"workers": 1, "grace": 0.001}, checkpoint={"every": 2, "at_end": True}
    )
    (told,) = warnings(trained)
    assert "longer than launch.grace (0.001 s)" in told
