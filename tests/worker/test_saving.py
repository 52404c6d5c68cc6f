"""When checkpoints are saved, and what training is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from trainrun.checkpoint import scan
from trainrun.marker import hookimpl
from trainrun.rundir.files import read_lines


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

    def __iter__(self) -> Iterator[Any]:
        for _ in range(20):
            yield torch.randn(4, 3), torch.randn(4, 1)


@pytest.mark.parametrize(("at_end", "told"), [(True, 1), (False, 0)])
def test_a_loader_that_cannot_be_placed_is_named_before_the_first_step(
    training: Any, regression: Any, at_end: bool, told: int
) -> None:
    task = type("Task", (regression,), {"build_dataset": hookimpl(lambda self, split: Stream())})
    trained = training(task, train={"steps": 3}, evaluate={"splits": []}, checkpoint={"at_end": at_end})
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
