"""Training is the same with and without evaluations: random generators and pending metrics."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from trainrun.marker import hookimpl

SGD = {"optimizer": {"name": "sgd", "lr": 0.05}}


def samples() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, generator=generator), torch.randn(1, generator=generator)) for _ in range(32)]


def draw() -> None:
    """Draw from each global generator."""
    random.random()
    torch.randn(3)


class Noise:
    """Training and evaluation both draw random numbers."""

    @hookimpl
    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 1))

    @hookimpl
    def build_dataset(self) -> Any:
        return samples()

    @hookimpl
    def training_step(self, model: nn.Module, batch: Any) -> torch.Tensor:
        random.random()
        loss: torch.Tensor = ((model(batch[0] + 0.01 * random.random()) - batch[1]) ** 2).mean()
        return loss

    @hookimpl
    def evaluation_step(self, model: nn.Module, batch: Any) -> Mapping[str, Any]:
        noise = torch.randn(3)
        return {"loss": ((model(batch[0]) - batch[1]) ** 2).mean(), "noise": noise.mean() + random.random()}


class Drawing:
    """Draws in all hooks of an evaluation, and in what follows it."""

    @hookimpl
    def on_evaluation_start(self) -> None:
        draw()

    @hookimpl
    def on_evaluation_batch_start(self) -> None:
        draw()

    @hookimpl
    def on_evaluation_batch_end(self) -> None:
        draw()

    @hookimpl
    def evaluation_metrics(self) -> None:
        draw()

    @hookimpl
    def on_evaluation_end(self) -> None:
        draw()

    @hookimpl
    def on_evaluated(self) -> None:
        draw()

    @hookimpl
    def on_log(self, metrics: Mapping[str, float]) -> None:
        if "eval/loss" in metrics:
            draw()


def losses(run: Any) -> dict[int, float]:
    for rank in run.ranks:
        assert not isinstance(rank, Exception), rank
    found: dict[int, float] = run.series("train/loss")
    return found


NEVER, OFTEN, SELDOM = {"splits": []}, {"every": 2}, {"every": 3}


def test_the_known_loss(training: Any) -> None:
    seen = [
        losses(training(Noise, train={"steps": 8, "log_every": 8}, evaluate=evaluate, **SGD))[8]
        for evaluate in (NEVER, OFTEN, SELDOM)
    ]
    assert seen[0] == pytest.approx(1.1832149513, abs=1e-10)
    assert seen == [seen[0]] * 3


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("train", [{}, {"precision": "bf16"}, {"precision": "fp16"}], ids=["fp32", "bf16", "fp16"])
def test_losses_are_equal_bit_for_bit(training: Any, ranks: int, train: dict[str, Any]) -> None:
    table = {"steps": 6, **train}
    with_none, with_some = (
        losses(training(Noise, Drawing, ranks=ranks, train=table, evaluate=evaluate, **SGD))
        for evaluate in (NEVER, OFTEN)
    )
    assert with_none == with_some
    assert len(with_none) == 6


def plain(generator: torch.Generator) -> Any:
    return DataLoader(samples(), batch_size=16, shuffle=True)


def with_workers(generator: torch.Generator) -> Any:
    return DataLoader(samples(), batch_size=16, shuffle=True, num_workers=1)


def that_persist(generator: torch.Generator) -> Any:
    return DataLoader(samples(), batch_size=16, shuffle=True, num_workers=1, persistent_workers=True)


def with_shared_generator(generator: torch.Generator) -> Any:
    return DataLoader(samples(), batch_size=16, sampler=RandomSampler(samples(), generator=generator))


@pytest.mark.parametrize("loader", [plain, with_workers, that_persist, with_shared_generator])
def test_loaders_of_the_user_leave_no_trace(training: Any, loader: Callable[[torch.Generator], Any]) -> None:
    """A loader draws its seed, and a sampler its order, from a generator; a training loader may share it."""

    class Task(Noise):
        @hookimpl
        def on_worker_start(self) -> None:
            self.generator = torch.Generator().manual_seed(3)

        @hookimpl
        def build_dataloader(self, split: str) -> Any:
            if split == "train":
                return DataLoader(samples(), batch_size=8, shuffle=True, generator=self.generator)
            return loader(self.generator)

    train = {"steps": 10, "micro_batch_size": 8}
    with_none, with_some = (losses(training(Task, train=train, evaluate=one, **SGD)) for one in (NEVER, OFTEN))
    assert with_none == with_some


def test_evaluations_are_reproducible_by_step(training: Any) -> None:
    """Whatever was evaluated before, and also in a resumed run."""
    checkpoint = {"checkpoint": {"at_end": True}}
    often = training(Noise, train={"steps": 6}, evaluate=OFTEN, **SGD).series("eval/noise")
    seldom = training(Noise, train={"steps": 6}, evaluate=SELDOM, **SGD).series("eval/noise")
    first = training(Noise, train={"steps": 3}, evaluate={"splits": []}, **SGD, **checkpoint)
    resumed = training(Noise, train={"steps": 6}, evaluate=OFTEN, after=first.paths, **SGD, **checkpoint)
    assert often[6] == seldom[6] == resumed.series("eval/noise")[6]
    assert len({*often.values()}) == 3, "each step has its own"


class Jitter(Dataset[Any]):
    """Its samples draw random numbers, as augmentations do."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return torch.full((4,), (index + torch.rand(()).item() + random.random()) / 40), torch.zeros(1)


@pytest.mark.parametrize("processes", [0, 1])
def test_draws_of_the_data_are_reproducible_by_step(training: Any, processes: int) -> None:
    class Task(Noise):
        @hookimpl
        def build_dataset(self) -> Any:
            return Jitter()

        @hookimpl
        def evaluation_step(self, batch: Any) -> Mapping[str, Any]:
            return {"mean": batch[0].mean()}

    def means(steps: int, evaluate: Any, **more: Any) -> dict[int, float]:
        run = training(Task, ranks=2, train={"steps": steps}, data={"workers": processes}, evaluate=evaluate, **more)
        assert losses(run)
        return dict(run.series("eval/mean"))

    checkpoint = {"checkpoint": {"at_end": True}}
    often, seldom = means(6, OFTEN), means(6, SELDOM)
    means(3, NEVER, **checkpoint)
    resumed = means(6, OFTEN, after=training.paths, **checkpoint)
    assert often[6] == seldom[6] == resumed[6]
    assert often[4] == resumed[4]


def test_generators_are_put_back_when_an_evaluation_fails(training: Any) -> None:
    class Failing:
        states: ClassVar[list[Any]] = []

        @hookimpl
        def on_step_end(self) -> None:
            self.states.append((random.getstate(), torch.get_rng_state()))

        @hookimpl
        def on_evaluation_batch_end(self) -> None:
            draw()
            raise ValueError("a test")

        @hookimpl
        def on_exception(self) -> None:
            self.states.append((random.getstate(), torch.get_rng_state()))

    with pytest.raises(Exception, match="a test"):
        training(Noise, Failing, train={"steps": 1}, **SGD)
    (python, own), (python_then, own_then) = Failing.states
    assert python == python_then
    assert torch.equal(own, own_then)


class Stops:
    """Ends training at the first batch of the evaluation of step 2, as a scheduler does."""

    @hookimpl
    def on_evaluation_batch_start(self, run: Any, index: int) -> None:
        draw()
        if run.step == 2 and run.attempt == 1 and index == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_within_an_evaluation(training: Any, inbox: Any) -> None:
    tables = {"train": {"steps": 5}, "evaluate": {"every": 2, "batch_size": 4}, "checkpoint": {"at_end": True}, **SGD}
    straight = training(Noise, Stops, **tables | {"evaluate": NEVER})
    first = training(Noise, Stops, ties=inbox, **tables)
    assert first.outcome.step == 2
    assert first.series("eval/loss") == {}, "it was broken off"
    second = training(Noise, Stops, after=first.paths, **tables)
    assert losses(second) == losses(straight)


def test_pending_metrics_are_neither_flushed_nor_mixed(training: Any) -> None:
    run = training(Noise, train={"steps": 4, "log_every": 4}, evaluate={"every": 3}, **SGD)
    assert list(run.series("train/loss")) == [4]
    assert [sorted(record) for record in run.metrics if "eval/loss" in record] == [
        ["eval/loss", "eval/noise", "step", "time"]
    ] * 2
