"""Samples of different shapes under trainrun's own loader: by the hook, by the dataset, and what is said without."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Mapping
from itertools import chain
from typing import Any, ClassVar

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset

from trainrun.errors import TrainingError
from trainrun.marker import hookimpl
from trainrun.plugin.detached import Detached, Part
from trainrun.rundir.files import read_lines
from trainrun.worker.data import Collate

SAMPLES, STEPS = 14, {"epochs": 1, "batch_size": 4}


class Ragged(Dataset[Any]):
    """Sample n has n + 1 rows of n."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((index + 1, 3), float(index))


class Padding(Ragged):
    def collate_fn(self, samples: list[torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return pad(samples)


def pad(samples: list[torch.Tensor], by: str = "dataset") -> Mapping[str, Any]:
    numbers = torch.stack([sample[0, 0] for sample in samples]).long()
    return {"x": pad_sequence(samples, batch_first=True), "numbers": numbers, "by": by}


def ragged(regression: Any, dataset: Any, loader: Any = None) -> Any:
    class Task(regression):  # type: ignore[misc]
        seen: ClassVar[list[Any]] = []

        @hookimpl
        def build_dataset(self) -> Any:
            return dataset

        @hookimpl
        def build_dataloader(self) -> Any:
            return loader

        @hookimpl
        def training_step(self, model: Any, batch: Any) -> Any:
            self.seen.append(batch["numbers"].tolist())
            return model(batch["x"]).mean()

        @hookimpl
        def evaluation_step(self, batch: Any) -> Any:
            return {"number": batch["numbers"].double().mean(), "samples": len(batch["numbers"])}

        @classmethod
        def report(cls) -> Any:
            return cls.seen

    return Task


class Hook:
    """Pads, in whatever process it is asked."""

    @hookimpl
    def collate(self, samples: list[Any], split: str) -> Any:
        return pad(samples, f"hook for {split}")


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (2, 2)])
@pytest.mark.parametrize("way", ["hook", "dataset"])
def test_each_sample_comes_once_in_batches_of_the_recipe(
    training: Any, regression: Any, way: str, ranks: int, workers: int
) -> None:
    task = ragged(regression, Ragged() if way == "hook" else Padding())
    plugins = [Hook] if way == "hook" else []
    data = {"workers": workers, "shuffle": False}
    run = training(task, *plugins, ranks=ranks, report=task.report, train=STEPS, data=data, evaluate={"batch_size": 3})
    expected = [list(range(start, min(start + 4, SAMPLES))) for start in range(0, SAMPLES, 4)]
    assert [sorted(chain(*update)) for update in zip(*run.reports, strict=True)] == expected
    assert run.series("eval/number") == {4: pytest.approx((SAMPLES - 1) / 2)}


class Adds:
    """A wrapper around whatever makes the batch."""

    @hookimpl(wrapper=True)
    def collate(self, split: str) -> Generator[None, Any, Any]:
        batch = yield
        return {**batch, "by": f"{batch['by']}, wrapped for {split}"}


class Passes:
    @hookimpl
    def collate(self) -> None:
        return None


@pytest.mark.parametrize(("plugins", "by"), [
    ([], "dataset"), ([Passes], "dataset"), ([Hook], "hook for train"), ([Adds], "dataset, wrapped for train"),
    ([Adds, Hook], "hook for train, wrapped for train"),
])  # fmt: skip
def test_the_hook_wins_over_the_dataset(training: Any, regression: Any, plugins: list[Any], by: str) -> None:
    class Task(ragged(regression, Subset(Padding(), range(4)))):  # type: ignore[misc]
        @hookimpl
        def training_step(self, model: Any, batch: Any) -> Any:
            self.seen.append(batch["by"])
            return model(batch["x"]).mean()

    run = training(Task, *plugins, report=Task.report, train=STEPS, evaluate={"splits": []})
    assert run.reports == [[by]]


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_do_not_fit_are_told_of_collate(training: Any, regression: Any, workers: int) -> None:
    first, _ = training(
        ragged(regression, Ragged()), ranks=2, train=STEPS, data={"workers": workers, "shuffle": False}
    ).ranks
    assert "micro-batch 1 after 0 samples of the epoch, dataset indices 0, 1)" in str(first)
    assert "stack expects each tensor to be equal size" in str(first)
    assert "implement the hook `collate`, or give the dataset a `collate_fn`" in str(first)


def test_so_are_those_of_a_split_that_is_evaluated(training: Any, regression: Any) -> None:
    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_dataset(self, split: str) -> Any:
            return Ragged() if split == "eval" else self.points(4)

    with pytest.raises(TrainingError, match=r"split 'eval': batch 1 could not be read.*the hook `collate`"):
        training(Task, train={"steps": 1}, evaluate={"batch_size": 2})


def test_and_those_of_a_loader_of_the_task(training: Any, regression: Any) -> None:
    task = ragged(regression, Ragged(), DataLoader(Ragged(), batch_size=2))
    with pytest.raises(TrainingError, match=r"batch 1 of epoch 1.*equal size.*; give the DataLoader a collate_fn"):
        training(task, train=STEPS, evaluate={"splits": []})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_hook_that_raises_is_named_with_the_samples(training: Any, regression: Any, workers: int) -> None:
    class Breaks:
        @hookimpl
        def collate(self, samples: list[Any]) -> Any:
            raise OSError("no space")

    first, _ = training(
        ragged(regression, Ragged()), Breaks, ranks=2, train=STEPS, data={"workers": workers, "shuffle": False}
    ).ranks
    assert "plugin 'breaks' raised OSError in collate: no space" in str(first)
    assert "dataset indices 0, 1)" in str(first)


def test_it_is_said_that_an_own_loader_does_not_ask_the_hook(training: Any, regression: Any) -> None:
    task = ragged(regression, Padding(), DataLoader(Padding(), batch_size=2, collate_fn=pad))
    for plugins, told in ([Hook], ["train", "eval"]), ([Adds], []), ([], []):
        run = training(task, *plugins, train={"steps": 1})
        events = read_lines(run.paths.events)[0]
        warnings = [event["reason"] for event in events if event["event"] == "warning"]
        assert [f"the hook collate is not called for split {split!r}" in line for split, line in zip(
            told, warnings, strict=True)] == [True] * len(told)  # fmt: skip


def test_position_and_another_number_of_ranks_stay_exact(training: Any, regression: Any) -> None:
    task = ragged(regression, Ragged())
    keep = {"checkpoint": {"at_end": True}, "evaluate": {"splits": []}}

    def report() -> Any:
        seen, task.seen[:] = list(task.seen), []
        return seen

    whole = training(task, Hook, report=report, train={"steps": 7, "batch_size": 4}, **keep).reports
    first = training(task, Hook, report=report, train={"steps": 2, "batch_size": 4}, **keep)
    second = training(
        task, Hook, ranks=2, report=report, train={"steps": 7, "batch_size": 4}, after=first.paths, **keep
    ).reports
    resumed = [list(chain(*update)) for update in zip(*second, strict=True)]
    assert first.reports[0] + resumed == whole[0]


# --- the hook by itself ---


def part(function: Callable[..., Any], *, wrapper: bool = False, arguments: tuple[str, ...] = ("samples",)) -> Part:
    return Part(function, arguments, wrapper, "mine", "")


def detached(*parts: Part) -> Detached:
    return Detached("collate", parts)


def call(hook: Detached) -> Any:
    return hook(lambda: "default", samples=[1, 2], split="train")


def twice(samples: Any) -> Any:
    yield
    yield


def never(samples: Any) -> Any:
    yield from ()


def mends(samples: Any) -> Any:
    try:
        return (yield)
    except TrainingError as error:
        return f"mended {error}"


def breaks(samples: Any) -> Any:
    raise ValueError("broken")


def test_a_hook_without_its_dispatcher() -> None:
    assert call(detached(part(lambda samples: None))) == "default"
    assert call(detached(part(lambda samples: None), part(sum))) == 3
    assert call(detached(part(lambda split: split, arguments=("split",)), part(sum))) == "train"
    message = "plugin 'mine' raised ValueError in collate: broken"
    assert call(detached(part(mends, wrapper=True), part(breaks))) == f"mended {message}"
    with pytest.raises(TrainingError, match=message):
        call(detached(part(breaks)))
    for wrapper in twice, never:
        with pytest.raises(TrainingError, match="must yield exactly once"):
            call(detached(part(wrapper, wrapper=True), part(sum)))


def test_it_can_be_sent_to_another_process() -> None:
    hook = pickle.loads(pickle.dumps(detached(part(sum))))
    assert call(hook) == 3
    collate = Collate("train", Padding())
    collate.hook = hook
    assert pickle.loads(pickle.dumps(collate))([1, 2]) == 3


def test_processes_that_are_not_forked(training: Any, regression: Any) -> None:
    class Spawned(regression):  # type: ignore[misc]
        @hookimpl(wrapper=True)
        def build_dataloader(self) -> Generator[None, Any, Any]:
            loader = yield
            loader.loader.multiprocessing_context = "spawn"
            return loader

    class Local:
        @hookimpl
        def collate(self, samples: list[Any]) -> Any:
            return None

    with pytest.raises(TrainingError, match=r"the hook `collate` cannot be sent to the loader's processes.*'spawn'"):
        training(Spawned, Local, train={"steps": 1}, data={"workers": 1}, evaluate={"splits": []})
