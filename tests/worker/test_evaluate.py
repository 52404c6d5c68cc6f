from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest
import torch

from trainrun.errors import TrainingError
from trainrun.marker import hookimpl
from trainrun.rundir.files import read_lines

FROZEN = {"train": {"steps": 1}, "optimizer": {"name": "sgd", "lr": 0.0}}


def task_with(regression: Any, samples: int) -> Any:
    """Its evaluation gives a mean over samples, and one over something else: the positive inputs."""

    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_dataset(self, split: str) -> Any:
            return {"train": self.points(4), "eval": self.points(samples, seed=2), "more": self.points(3, seed=3)}[
                split
            ]

        @hookimpl
        def evaluation_step(self, model: torch.nn.Module, batch: Any) -> Mapping[str, Any]:
            inputs, targets = batch
            assert not model.training
            assert not torch.is_grad_enabled()
            positive = inputs[inputs > 0]
            mean = positive.mean() if positive.numel() else float("nan")
            return {"error": (model(inputs) - targets).abs().mean(), "positive": (mean, positive.numel())}

    return Task


def plain(task: Any, samples: int, seed: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = task().build_model()
    inputs, targets = (torch.stack(column) for column in zip(*task.points(samples, seed=seed), strict=True))
    with torch.no_grad():
        return {
            "error": (model(inputs) - targets).abs().mean().item(),
            "positive": inputs[inputs > 0].mean().item(),
        }


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("samples", "batch"), [(7, 2), (5, 4), (1, 3)])
def test_means_are_over_samples_however_they_are_shared(
    training: Any, regression: Any, ranks: int, samples: int, batch: int
) -> None:
    task = task_with(regression, samples)
    run = training(task, ranks=ranks, evaluate={"batch_size": batch, "splits": ["eval", "more"]}, **FROZEN)
    assert not isinstance(run.ranks[-1], Exception), run.ranks
    for split, expected in {"eval": plain(task, samples, 2), "more": plain(task, 3, 3)}.items():
        for name, value in expected.items():
            assert run.series(f"{split}/{name}") == {1: pytest.approx(value, rel=1e-5)}


class Ends:
    """Keeps what `on_evaluation_end` and `on_log` are given."""

    ends: ClassVar[list[Any]] = []
    logs: ClassVar[list[Any]] = []

    @hookimpl
    def on_evaluation_end(self, split: str, metrics: Any) -> None:
        self.ends.append((split, metrics))

    @hookimpl(ranks="all")
    def on_log(self, metrics: Any) -> None:
        if any(name.startswith("eval") for name in metrics):
            self.logs.append(metrics)


def test_all_ranks_are_told_the_same_metrics(training: Any, regression: Any) -> None:
    run = training(task_with(regression, 5), Ends, ranks=2, report=lambda: (Ends.ends, Ends.logs), **FROZEN)
    first, second = run.reports
    assert first == second
    ((split, metrics),), (logged,) = first
    assert split == "eval"
    assert logged == metrics
    assert set(metrics) == {"eval/error", "eval/positive"}


def test_each_modules_mode_is_as_before(training: Any, regression: Any) -> None:
    class Freezer:
        seen: ClassVar[list[Any]] = []

        @hookimpl
        def on_train_start(self, run: Any) -> None:
            run.model[1].eval()

        @hookimpl
        def on_step_start(self, run: Any) -> None:
            self.seen.append([module.training for module in run.model.modules()])

    training(regression, Freezer, train={"steps": 2}, evaluate={"every": 1})
    assert Freezer.seen == [[True, True, False, True]] * 2


def test_splits_without_data_are_left_out(training: Any, regression: Any) -> None:
    run = training(regression, train={"steps": 1}, evaluate={"splits": ["eval", "test"]})
    assert [name for name in run.metrics[-1] if "/" in name] == ["eval/error"]


@pytest.mark.parametrize(("answer", "message"), [
    (None, "evaluation_step returned None for split 'eval'"),
    (torch.zeros(()), "returned a Tensor; return a mapping of names to values; evaluation_step is that of task "),
    ({"error": "high"}, "evaluation_step returned str as 'error'; return a number, a tensor"),
    ({"error": torch.zeros(3)}, r"returned a tensor of shape \(3,\) as 'error'; return one number"),
])  # fmt: skip
def test_wrong_answers(training: Any, regression: Any, answer: Any, message: str) -> None:
    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def evaluation_step(self) -> Any:
            return answer

    with pytest.raises(TrainingError, match=message):
        training(Task, train={"steps": 1})


def test_a_split_that_is_empty(training: Any, regression: Any) -> None:
    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_dataset(self, split: str) -> Any:
            return [] if split == "eval" else self.points(4)

    with pytest.raises(Exception, match="a split to evaluate has no samples"):
        training(Task, train={"steps": 1})


@pytest.mark.parametrize(("evaluate", "train", "expected"), [
    ({"every": 2}, {"steps": 5}, [2, 4, 5]),
    ({"every": 2}, {"steps": 4}, [2, 4]),
    ({"every": "epoch"}, {"epochs": 2}, [3, 6]),
    ({"every": "epoch"}, {"steps": 4}, [3, 4]),
    ({}, {"steps": 4}, [4]),
    ({}, {"epochs": 2}, [6]),
])  # fmt: skip
def test_when_evaluations_come(training: Any, regression: Any, evaluate: Any, train: Any, expected: list[int]) -> None:
    run = training(regression, evaluate=evaluate, train={"log_every": 100, **train})
    assert list(run.series("eval/error")) == expected
    assert run.outcome.step == expected[-1]


class Predicting:
    """Keeps what evaluation batches predict, and how many of their samples count."""

    seen: ClassVar[list[tuple[int, int, list[float]]]]

    @hookimpl
    def on_evaluation_batch_start(self, index: int, size: int) -> None:
        self.begun = index, size

    @hookimpl
    def on_evaluation_batch_end(self, index: int, size: int, outputs: Mapping[str, Any]) -> None:
        assert self.begun == (index, size)
        self.seen.append((index, size, outputs["predictions"].flatten().tolist()))

    @classmethod
    def report(cls) -> list[tuple[int, int, list[float]]]:
        return cls.seen


def test_predictions_are_no_metric_and_padding_is_told(training: Any, regression: Any) -> None:
    """Rank 0 has the samples 0, 2 and 4, rank 1 has 1 and 3 and then repeats one."""

    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_dataset(self, split: str) -> Any:
            return self.points(4) if split == "train" else self.points(5, seed=2)

        @hookimpl
        def evaluation_step(self, model: torch.nn.Module, batch: Any) -> Mapping[str, Any]:
            return {"error": torch.zeros(()), "predictions": batch[0][:, 0]}

    plugin = type("Predicting", (Predicting,), {"seen": []})
    run = training(Task, plugin, report=plugin.report, ranks=2, evaluate={"batch_size": 2}, **FROZEN)
    inputs = [row[0].item() for row, _ in regression.points(5, seed=2)]
    assert run.reports == [
        [(0, 2, [inputs[0], inputs[2]]), (1, 1, [inputs[4]])],
        [(0, 2, [inputs[1], inputs[3]]), (1, 0, [inputs[0]])],
    ]
    assert run.series("eval/error") == {1: 0.0}
    assert run.series("eval/predictions") == {}


class Record(NamedTuple):
    x: Any
    y: Any


BATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "UserDict": lambda x, y: UserDict(x=x, y=y),
    "a value without dimensions": lambda x, y: {"temperature": torch.tensor(1.0), "x": x, "y": y},
    "named tuple": Record,
    "namespace": lambda x, y: SimpleNamespace(x=x, y=y, batch_size=len(x)),
    "texts": lambda x, y: {"names": [str(row) for row in x], "y": y},
}


def own_batches(regression: Any, make: Callable[[Any, Any], Any], **answers: Any) -> Any:
    """A task whose own loader evaluates the samples 0 to 4 in batches of four and one."""

    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_dataloader(self, split: str) -> Any:
            rows = torch.arange(5.0).reshape(5, 1)
            batches = [make(torch.zeros(size, 3), part) for part in rows.split(4) if (size := len(part))]
            return batches if split == "eval" else None

        @hookimpl
        def evaluation_step(self, batch: Any) -> Mapping[str, Any]:
            found = {"mean": self.value(batch)}
            return found | {name: weigh(self.value(batch)) for name, weigh in answers.items()}

        @staticmethod
        def value(batch: Any) -> Any:
            return (batch["y"] if isinstance(batch, Mapping) else batch.y).mean()

    return Task


@pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_batches_of_own_loaders_count_by_their_size(training: Any, regression: Any, make: Any, ranks: int) -> None:
    run = training(own_batches(regression, make), ranks=ranks, **FROZEN)
    assert not isinstance(run.ranks[-1], Exception), run.ranks
    assert run.series("eval/mean") == {1: 2.0}
    assert warnings_of(run) == []


def test_batches_of_unknown_size_count_alike_and_a_warning_says_so_once(training: Any, regression: Any) -> None:
    task = own_batches(
        regression,
        lambda x, y: {"x": x, "y": y, "mask": torch.zeros(7)},
        weighted=lambda value: (value, 4 if value < 4 else 1),
    )
    run = training(task, train={"steps": 2}, optimizer={"name": "sgd", "lr": 0.0}, evaluate={"every": 1})
    assert run.series("eval/mean") == dict.fromkeys((1, 2), (1.5 + 4.0) / 2)
    assert run.series("eval/weighted") == dict.fromkeys((1, 2), 2.0)
    (warning,) = warnings_of(run)
    assert warning.startswith("split 'eval': the number of samples in a batch, a dict, is not known")
    assert "x (4, 3), y (4, 1), mask (7,)" in warning
    assert "evaluation_step may return (value, weight)" in warning


def warnings_of(run: Any) -> list[str]:
    return [event["reason"] for event in read_lines(run.paths.events)[0] if event["event"] == "warning"]
