"""Metrics of whole splits: by `evaluation_metrics`, and by what is logged during an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from trainrun_callbacks.best_checkpoint import BestCheckpoint
from trainrun_callbacks.early_stopping import EarlyStopping

from trainrun.checkpoint.manifest import read_manifest
from trainrun.marker import hookimpl

TABLES = {"train": {"steps": 4}, "evaluate": {"every": 2, "batch_size": 2}}


class Counts:
    """Counts samples over batches and ranks: 7 in the whole split, whatever each rank has."""

    @hookimpl
    def on_evaluation_start(self) -> None:
        self.count = torch.zeros(())

    @hookimpl
    def on_evaluation_batch_end(self, size: int) -> None:
        self.count += size

    def reduced(self, run: Any) -> torch.Tensor:
        if run.world.size > 1:
            torch.distributed.all_reduce(self.count)
        return self.count


class Whole(Counts):
    @hookimpl
    def evaluation_metrics(self, run: Any, split: str) -> Mapping[str, Any]:
        return {"count": self.reduced(run) + run.step, "eval/split": len(split)}


class Logs(Counts):
    """Logs in the last hook of the split."""

    @hookimpl
    def on_evaluation_end(self, run: Any) -> None:
        run.log("eval/f1", self.reduced(run) + run.step, reduce="last")


class Watches:
    seen: ClassVar[list[Any]]

    @hookimpl
    def on_evaluation_end(self, split: str, metrics: Mapping[str, float]) -> None:
        self.seen.append(("end", split, metrics))

    @hookimpl
    def on_evaluated(self, step: int, splits: Any, metrics: Mapping[str, float]) -> None:
        self.seen.append((step, list(splits), metrics))


def watches() -> Any:
    return type("Watches", (Watches,), {"seen": []})


@pytest.mark.parametrize("ranks", [1, 2])
def test_metrics_of_a_whole_split(training: Any, regression: Any, ranks: int) -> None:
    plugin = watches()
    run = training(regression, Whole, plugin, ranks=ranks, report=lambda: plugin.seen, **TABLES)
    assert run.series("eval/count") == {2: 9.0, 4: 11.0}
    assert run.series("eval/split") == {2: 4.0, 4: 4.0}
    for end, complete in zip(run.reports[0][::2], run.reports[0][1::2], strict=True):
        assert end[2] == complete[2]
        assert set(end[2]) == {"eval/error", "eval/count", "eval/split"}
    assert [row[:2] for row in run.reports[0][1::2]] == [(2, ["eval"]), (4, ["eval"])]
    assert run.reports == [run.reports[0]] * ranks
    assert run.warnings == []


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("weights_only", [False, True])
def test_what_is_logged_at_the_end_of_a_split_can_be_monitored(
    training: Any, regression: Any, order: str, weights_only: bool
) -> None:
    """In the record of its step, on all ranks, whatever the order of the plugins."""
    options = {"monitor": "eval/f1", "mode": "max", "weights_only": weights_only}
    plugins = [Logs, BestCheckpoint] if order == "before" else [BestCheckpoint, Logs]
    run = training(regression, *plugins, ranks=2, tables={"best-checkpoint": {"options": options}}, **TABLES)
    assert run.series("eval/f1") == {2: 9.0, 4: 11.0}
    assert [sorted(record) for record in run.metrics if "eval/f1" in record] == [
        ["eval/error", "eval/f1", "step", "time"]
    ] * 2
    assert not any("eval/f1" in record and "train/loss" in record for record in run.metrics)
    if weights_only:
        folder = run.paths.root / "weights"
        assert sorted(path.name for path in folder.iterdir()) == ["best-step-000004.safetensors", "best.safetensors"]
    else:
        reasons = [row["reason"] for row in run.decisions if row["decision"] == "checkpoint"]
        assert reasons == [
            "eval/f1 is 9 at step 2, the best so far",
            "eval/f1 is 11 at step 4, the best so far",
        ]
        assert read_manifest(run.paths.checkpoints / "best").metrics["eval/f1"] == 11.0


def test_early_stopping_sees_it(training: Any, regression: Any) -> None:
    options = {"monitor": "eval/f1", "mode": "max", "threshold": 9.0}
    tables = TABLES | {"train": {"steps": 9}}
    run = training(regression, EarlyStopping, Logs, tables={"early-stopping": {"options": options}}, **tables)
    assert [row["reason"] for row in run.decisions if row["decision"] == "stop"] == [
        "eval/f1 is 9, as good as the threshold 9"
    ]
    assert run.outcome.step < 9


class LogsEverywhere:
    """Values of each kind of reduction, in all hooks of an evaluation."""

    @hookimpl
    def on_evaluation_start(self, run: Any) -> None:
        run.log("eval/sum", 1.0, reduce="sum")

    @hookimpl
    def on_evaluation_batch_end(self, run: Any, index: int) -> None:
        run.log("eval/mean", float(index))
        run.log("eval/largest", index + run.world.rank, reduce="max")

    @hookimpl
    def evaluation_metrics(self, run: Any) -> None:
        run.log("eval/sum", 1.0, reduce="sum")

    @hookimpl
    def on_evaluation_end(self, run: Any) -> None:
        run.log("eval/sum", 1.0, reduce="sum")
        if run.world.rank == 0:
            run.log("eval/mine", 3.0, reduce="zero")

    @hookimpl
    def on_evaluated(self, run: Any) -> None:
        run.log("eval/sum", 1.0, reduce="sum")
        run.log("late", run.step, reduce="last")


def test_each_metric_is_reduced_as_it_was_logged(training: Any, regression: Any) -> None:
    plugin = watches()
    run = training(regression, LogsEverywhere, plugin, ranks=2, report=lambda: plugin.seen, **TABLES)
    assert run.series("eval/sum") == {2: 8.0, 4: 8.0}
    assert run.series("eval/mean") == {2: 0.5, 4: 0.5}
    assert run.series("eval/largest") == {2: 2.0, 4: 2.0}
    assert run.series("late") == {2: 2.0, 4: 4.0}
    first, second = run.reports
    assert first == second
    end, complete = first[0][2], first[1][2]
    assert end["eval/sum"] == 4.0
    assert complete["eval/sum"] == 6.0
    assert complete["eval/mine"] == 3.0, "also on the rank that did not log it"


def test_what_training_has_logged_waits_for_its_own_log(training: Any, regression: Any) -> None:
    class Logging:
        @hookimpl
        def on_step_start(self, run: Any, step: int) -> None:
            run.log("train/steps", 1.0, reduce="sum")

        @hookimpl
        def on_evaluation_batch_end(self, run: Any) -> None:
            run.log("train/steps", 100.0, reduce="max")

    run = training(regression, Logging, **TABLES | {"train": {"steps": 4, "log_every": 3}})
    assert [record["train/steps"] for record in run.metrics if "eval/error" in record] == [100.0, 100.0]
    assert [record["train/steps"] for record in run.metrics if "train/loss" in record] == [3.0, 1.0]


class Differs:
    @hookimpl
    def evaluation_metrics(self, run: Any) -> Mapping[str, float]:
        return {"f1": 0.5 + run.world.rank, "same": float("nan"), **({"one": 1.0} if run.world.rank == 0 else {})}


def test_ranks_that_differ_are_named(training: Any, regression: Any) -> None:
    plugin = watches()
    run = training(regression, Differs, plugin, ranks=2, report=lambda: plugin.seen, **TABLES)
    assert run.series("eval/f1") == {2: 0.5, 4: 0.5}
    assert run.series("eval/one") == {2: 1.0, 4: 1.0}
    assert [report[1][2]["eval/f1"] for report in run.reports] == [0.5, 0.5]
    assert len(run.warnings) == 2, "once an evaluation"
    assert "the metric 'eval/f1' has other values on ranks 1 than on rank 0" in run.warnings[0]


class One:
    @hookimpl
    def evaluation_metrics(self) -> Mapping[str, float]:
        return {"f1": 0.5}


class Two(One):
    pass


class Error:
    @hookimpl
    def evaluation_metrics(self) -> Mapping[str, float]:
        return {"error": 0.5}


class LogsF1:
    @hookimpl
    def on_evaluation_end(self, run: Any) -> None:
        run.log("eval/f1", 0.5)


@pytest.mark.parametrize(("plugins", "sources"), [
    ([One, Two], "evaluation_metrics of one and from evaluation_metrics of two"),
    ([Error], "evaluation_step and from evaluation_metrics of error"),
    ([One, LogsF1], "evaluation_metrics of one and from run.log"),
])  # fmt: skip
def test_a_name_that_comes_from_two_places(training: Any, regression: Any, plugins: Any, sources: str) -> None:
    with pytest.raises(Exception, match=f"step 2: the metric 'eval/(f1|error)' comes from {sources}"):
        training(regression, *plugins, **TABLES)


@pytest.mark.parametrize(("answer", "message"), [
    (0.5, "returned a float; return a mapping"),
    ({"f1": "high"}, "'f1' must be one number: expected a number or a tensor, got str"),
    ({"f1": torch.zeros(2)}, r"'f1' must be one number: expected one number, got a tensor of shape \(2,\)"),
    ({"f1": 1j}, "'f1' must be one number: expected a real number, got complex"),
    ({"f1": 10**400}, "'f1' must be one number: "),
])  # fmt: skip
def test_wrong_results(training: Any, regression: Any, answer: Any, message: str) -> None:
    class Wrong:
        @hookimpl
        def evaluation_metrics(self) -> Any:
            return answer

    with pytest.raises(Exception, match=f"evaluation_metrics of wrong:? {message}"):
        training(regression, Wrong, **TABLES)
