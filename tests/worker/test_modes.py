"""Modes that a task has set on parts of its model are kept: at the start, and after evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from trainrun.marker import hookimpl
from trainrun.worker.modes import begin_training, evaluating

SGD = {"optimizer": {"name": "sgd", "lr": 0.1}}


def samples() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs far from zero: running means that move are seen to."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, generator=generator) + 3, torch.randn(1, generator=generator)) for _ in range(32)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 1)
        self.backbone.requires_grad_(False)
        self.backbone.eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.backbone(inputs))
        return found


class KeepsItself(Net):
    """Holds its backbone in evaluation mode by itself."""

    def train(self, mode: bool = True) -> KeepsItself:
        super().train(mode)
        self.backbone.eval()
        return self


class Frozen:
    model: ClassVar[Callable[[], nn.Module]] = Net
    seen: ClassVar[list[Any]]

    @hookimpl
    def build_model(self) -> nn.Module:
        return type(self).model()

    @hookimpl
    def build_dataset(self) -> Any:
        return samples()

    @hookimpl
    def training_step(self, run: Any, model: nn.Module, batch: Any) -> torch.Tensor:
        norm = run.module.backbone[1]
        self.seen.append((norm.training, run.module.head.training, norm.running_mean.abs().max().item()))
        loss: torch.Tensor = ((model(batch[0]) - batch[1]) ** 2).mean()
        return loss

    @hookimpl
    def evaluation_step(self, model: nn.Module, batch: Any) -> Mapping[str, Any]:
        assert not any(part.training for part in model.modules())
        return {"loss": ((model(batch[0]) - batch[1]) ** 2).mean()}


def frozen(model: Callable[[], nn.Module]) -> Any:
    return type("Task", (Frozen,), {"model": staticmethod(model), "seen": []})


@pytest.mark.parametrize("model", [Net, KeepsItself])
@pytest.mark.parametrize("parallel", [{}, {"strategy": "ddp"}, {"strategy": "fsdp"}], ids=["one", "ddp", "fsdp"])
def test_a_frozen_part_stays_in_evaluation_mode(
    training: Any, model: Callable[[], nn.Module], parallel: dict[str, str]
) -> None:
    task, ranks = frozen(model), 2 if parallel else 1
    tables = {"train": {"steps": 5}, "evaluate": {"every": 2}, "parallel": parallel, **SGD}
    run = training(task, ranks=ranks, report=lambda: task.seen, **tables)
    assert run.reports == [[(False, True, 0.0)] * 5] * ranks
    assert run.warnings == []


def test_a_frozen_part_stays_so_after_a_resume(training: Any) -> None:
    task = frozen(Net)
    first = training(task, train={"steps": 2}, checkpoint={"at_end": True}, **SGD)
    training(task, train={"steps": 4}, checkpoint={"at_end": True}, after=first.paths, **SGD)
    assert task.seen == [(False, True, 0.0)] * 4


def test_a_model_all_in_evaluation_mode_is_trained(training: Any) -> None:
    """Loaders of pretrained models return them so."""
    task = frozen(lambda: Net().eval())
    training(task, train={"steps": 2}, **SGD)
    assert [row[:2] for row in task.seen] == [(True, True)] * 2


def test_a_part_that_trains_in_evaluation_mode_is_named(training: Any) -> None:
    def build() -> nn.Module:
        net = Net()
        net.backbone.requires_grad_(True)
        return net

    run = training(frozen(build), train={"steps": 1}, **SGD)
    (warning,) = run.warnings
    assert "in evaluation mode since build_model" in warning
    assert "backbone" in warning


def test_a_part_that_trains_within_one_in_evaluation_mode_is_trained(training: Any) -> None:
    """As adapters are, in a frozen backbone."""

    def build() -> nn.Module:
        net = Net()
        net.backbone[1].train()
        return net

    task = frozen(build)
    training(task, train={"steps": 4}, evaluate={"every": 2}, **SGD)
    assert [row[:2] for row in task.seen] == [(True, True)] * 4


def test_a_new_head_on_a_model_in_evaluation_mode() -> None:
    """Loaders of pretrained models return them so; a head that is put in is in training mode."""
    net = Net().eval()
    net.head = nn.Linear(8, 1)
    assert begin_training(net) == ["the model itself"]
    assert [part.training for part in net.modules()] == [False, False, False, False, True]


def test_modes_that_change_between_steps_survive_an_evaluation(training: Any) -> None:
    class Changes:
        @hookimpl
        def on_step_start(self, run: Any, step: int) -> None:
            if step == 2:
                run.module.backbone.train()
                run.module.head.eval()

    task = frozen(Net)
    training(task, Changes, train={"steps": 4}, evaluate={"every": 1}, **SGD)
    assert [row[:2] for row in task.seen] == [(False, True), *[(True, False)] * 3]


def test_what_a_module_does_for_evaluation_is_undone(training: Any) -> None:
    """As adapters are, that are merged into the weights in `eval()` and taken out again in `train()`."""

    class Adapter(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> Adapter:
            super().train(mode)
            self.merged = not mode
            return self

    class Merging(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = Adapter(8, 1)

    class Looks:
        seen: ClassVar[list[bool]] = []

        @hookimpl
        def on_step_start(self, run: Any) -> None:
            self.seen.append(run.module.head.merged)

    training(frozen(Merging), Looks, train={"steps": 3}, evaluate={"every": 1}, **SGD)
    assert Looks.seen == [False] * 3


class Raises:
    """Fails in an evaluation hook."""

    modes: ClassVar[list[list[bool]]]

    @hookimpl
    def on_evaluation_end(self, run: Any) -> None:
        run.module.head.train()
        raise ValueError("a test")

    @hookimpl
    def on_step_start(self, run: Any) -> None:
        self.modes.append([part.training for part in run.module.modules()])

    @hookimpl
    def on_exception(self, run: Any) -> None:
        self.on_step_start(run)


def test_modes_are_put_back_when_an_evaluation_fails(training: Any) -> None:
    plugin = type("Raises", (Raises,), {"modes": []})
    with pytest.raises(Exception, match="a test"):
        training(frozen(Net), plugin, train={"steps": 1}, **SGD)
    assert plugin.modes == [[True, False, False, False, True]] * 2


def test_a_compiled_model_keeps_its_modes() -> None:
    """What `train.compile` wraps: the wrapper is no part of the task's model, and in training mode from the start."""
    model = torch.compile(Net(), backend="eager")
    assert begin_training(model) == []
    assert [part.training for part in model._orig_mod.modules()] == [True, False, False, False, True]
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model._orig_mod.modules()] == [True, False, False, False, True]
