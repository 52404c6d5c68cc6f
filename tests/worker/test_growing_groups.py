"""Parameter groups that training adds: they take part in the schedule, and a resume adds them again."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch.optim import lr_scheduler

from trainrun import hookimpl
from trainrun.errors import TrainingError
from trainrun.rundir import RunPaths
from trainrun.rundir.files import read_lines
from trainrun.worker.checkpoint.reader import read_tensors, read_values

GROWS, STOP, LAST = 3, 5, 8

Trainer = Callable[..., Any]


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Stop:
    """End the first attempt two steps after its groups have grown."""

    @hookimpl
    def should_stop(self, run: Any) -> str | None:
        return "far enough" if run.step == STOP and run.attempt == 1 else None


class Rates:
    """Write down the rates with which updates are made."""

    seen: ClassVar[list[list[float]]] = []

    @hookimpl
    def on_train_start(self) -> None:
        type(self).seen = []

    @hookimpl
    def on_gradients_clipped(self, run: Any) -> None:
        self.seen.append([float(group["lr"]) for group in run.optimizer.param_groups])

    @classmethod
    def report(cls) -> list[list[float]]:
        return cls.seen


def unfreezing(regression: Any, rebuild: str = "again", **head: Any) -> Any:
    """A task whose first layer is frozen until a step. rebuild: how the hook adds its group at a resume."""
    head = head or {"lr": 0.05}

    class Task(regression):  # type: ignore[misc]
        described: ClassVar[list[Any]] = []

        @hookimpl
        def build_model(self) -> torch.nn.Module:
            model = super().build_model()
            model[0].requires_grad_(False)
            return model  # type: ignore[no-any-return]

        def grow(self, run: Any) -> None:
            run.module[0].requires_grad_(True)
            run.optimizer.add_param_group({"params": list(run.module[0].parameters()), **head})

        @hookimpl(mutates=True)
        def on_step_end(self, run: Any, step: int) -> None:
            if step == GROWS:
                self.grow(run)

        @hookimpl(mutates=True)
        def on_resume_start(self, run: Any, checkpoint: str, groups: Sequence[Mapping[str, Any]]) -> None:
            type(self).described = [dict(group) for group in groups]
            assert checkpoint.endswith(f"step-{run.step or STOP:06}")
            named = dict(run.module.named_parameters())
            for group in groups[len(run.optimizer.param_groups) :]:
                if rebuild == "again":
                    self.grow(run)
                elif rebuild == "by names":
                    run.optimizer.add_param_group({"params": [named[name] for name in group["names"]]})
                elif rebuild == "by settings":
                    parameters = [named[name] for name in group["names"]]
                    run.optimizer.add_param_group({"params": parameters, **group["settings"]})

    return Task


def recipe(**tables: Any) -> dict[str, Any]:
    base = {"train": {"steps": LAST}, "checkpoint": {"every": STOP, "at_end": True, "keep": 9}}
    return {**base, "optimizer": {"name": "adamw", "lr": 0.01}, "evaluate": {"splits": []}, **tables}


def contents(paths: RunPaths) -> tuple[Any, Any]:
    folder = paths.checkpoints / f"step-{LAST:06}"
    return read_tensors(folder, ""), read_values(folder / "training.pt")


def require_same(one: RunPaths, other: RunPaths) -> None:
    (tensors, values), (others, other_values) = contents(one), contents(other)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in tensors.items())
    for name in ("optimizer", "scheduler", "built", "trains", "place"):
        assert values[name] == other_values[name], name


def warnings(paths: RunPaths) -> list[str]:
    return [event["reason"] for event in read_lines(paths.events)[0] if event["event"] == "warning"]


SCHEDULES: dict[str, dict[str, Any]] = {"constant": {}, "cosine": {"name": "cosine", "warmup": 2, "min_lr": 0.001}}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("rebuild", "ranks", "strategy"),
    [("again", 1, "none"), ("by names", 1, "none"), ("by settings", 1, "none"), ("by names", 2, "fsdp")],
)
def test_resumed_is_bit_for_bit_what_training_straight_is(
    schedule: str, rebuild: str, ranks: int, strategy: str, training: Trainer, regression: Any
) -> None:
    task = unfreezing(regression, rebuild)
    tables = recipe(scheduler=SCHEDULES[schedule], parallel={"strategy": strategy})
    whole = training(task, Rates, ranks=ranks, report=Rates.report, **tables)
    first = training(task, Stop, Rates, ranks=ranks, **tables)
    second = training(task, Stop, Rates, ranks=ranks, after=first.paths, report=Rates.report, **tables)
    assert second.outcome.state == "finished"
    require_same(second.paths, whole.paths)
    assert second.reports[0] == whole.reports[0][STOP:]
    assert warnings(second.paths) == []


def test_group_that_is_added_follows_the_schedule_from_its_first_step(training: Trainer, regression: Any) -> None:
    found = training(
        unfreezing(regression), Rates, report=Rates.report, **recipe(scheduler={"name": "cosine"})
    ).reports[0]
    factors = [0.5 * (1 + math.cos(math.pi * done / LAST)) for done in range(LAST)]
    assert [rates[0] for rates in found] == pytest.approx([0.01 * factor for factor in factors])
    assert [rates[1:] for rates in found[:GROWS]] == [[]] * GROWS
    assert [rates[1] for rates in found[GROWS:]] == pytest.approx([0.05 * factor for factor in factors[GROWS:]])


def test_groups_are_described_with_names_and_settings(training: Trainer, regression: Any) -> None:
    task = unfreezing(regression, lr=0.05, weight_decay=0.3)
    first = training(task, Stop, **recipe(scheduler={"name": "cosine"}))
    training(task, Stop, after=first.paths, **recipe(scheduler={"name": "cosine"}))
    built, added = task.described
    assert built["names"] == ["2.weight", "2.bias"]
    assert added["names"] == ["0.weight", "0.bias"]
    assert {key: added["settings"][key] for key in ("lr", "weight_decay")} == {"lr": 0.05, "weight_decay": 0.3}
    assert not {"initial_lr", "params", "names"} & added["settings"].keys()


def test_changed_setting_of_an_added_group_holds(training: Trainer, regression: Any) -> None:
    tables = recipe(scheduler={"name": "cosine"})
    first = training(unfreezing(regression, lr=0.05), Stop, **tables)
    second = training(unfreezing(regression, lr=0.2), Stop, Rates, after=first.paths, report=Rates.report, **tables)
    factors = [0.5 * (1 + math.cos(math.pi * done / LAST)) for done in range(STOP, LAST)]
    assert [rates[1] for rates in second.reports[0]] == pytest.approx([0.2 * factor for factor in factors])
    assert [rates[0] for rates in second.reports[0]] == pytest.approx([0.01 * factor for factor in factors])
    assert "optimizer: lr of group 1 was 0.05 and is 0.2" in warnings(second.paths)[0]


def test_error_names_the_hook_and_what_is_missing(training: Trainer, regression: Any) -> None:
    first = training(unfreezing(regression), Stop, **recipe())
    with pytest.raises(TrainingError, match="other groups of parameters") as raised:
        training(unfreezing(regression, "not at all"), after=first.paths, **recipe())
    message = str(raised.value)
    assert "2 groups there, 1 here: group 1 (0.weight, 0.bias) is missing here" in message
    assert "on_resume_start" in message


def test_hook_comes_before_anything_is_loaded(training: Trainer, regression: Any) -> None:
    class Looks:
        seen: ClassVar[list[Any]] = []

        @hookimpl
        def on_resume_start(self, run: Any) -> None:
            self.seen.append(("start", run.step, len(run.optimizer.state)))

        @hookimpl
        def on_resume(self, run: Any) -> None:
            self.seen.append(("end", run.step, len(run.optimizer.state)))

    first = training(regression, Stop, Looks, **recipe())
    assert Looks.seen == []
    training(regression, Looks, after=first.paths, **recipe())
    assert Looks.seen == [("start", 0, 0), ("end", STOP, 4)]


@pytest.mark.parametrize(
    ("groups", "what"),
    [
        ([{"match": ["0.*"], "lr": 1.0}], "1 groups there, 2 here: group 1"),
        ([{"match": ["*"], "lr": 0.1}], None),
    ],
)
def test_groups_of_the_recipe_that_have_changed(
    groups: Any, what: str | None, training: Trainer, regression: Any
) -> None:
    first = training(regression, Stop, **recipe())
    tables = recipe(optimizer={"name": "adamw", "lr": 0.01, "groups": groups})
    if what is None:  # the same parameters in one group: only its rate is another
        assert training(regression, after=first.paths, **tables).outcome.state == "finished"
        return
    with pytest.raises(TrainingError, match="other groups of parameters") as raised:
        training(regression, after=first.paths, **tables)
    assert "group 0 has no 2.weight, 2.bias here" in str(raised.value) or what in str(raised.value)


def test_parameters_that_were_unfrozen_without_a_group_are_so_again(training: Trainer, regression: Any) -> None:
    class Task(regression):  # type: ignore[misc]
        """Its optimizer has all parameters from the beginning; some are frozen at first, and one is in the end."""

        flags: ClassVar[list[bool]] = []

        @hookimpl
        def build_model(self) -> torch.nn.Module:
            model = super().build_model()
            model[0].requires_grad_(False)
            return model  # type: ignore[no-any-return]

        @hookimpl
        def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD(model.parameters(), lr=0.01)

        @hookimpl(mutates=True)
        def on_step_end(self, run: Any, step: int) -> None:
            if step == GROWS:
                run.module[0].weight.requires_grad_(True)
                run.module[2].bias.requires_grad_(False)

        @hookimpl
        def on_train_end(self, run: Any) -> None:
            type(self).flags = [parameter.requires_grad for parameter in run.module.parameters()]

    whole = training(Task, **recipe())
    assert Task.flags == [True, False, True, False]
    first = training(Task, Stop, **recipe())
    second = training(Task, Stop, after=first.paths, **recipe())
    assert Task.flags == [True, False, True, False]
    require_same(second.paths, whole.paths)

    class Thawed(Task):
        """Built otherwise now: what the task changes itself is not undone."""

        @hookimpl
        def build_model(self) -> torch.nn.Module:
            model = super().build_model()
            model[0].bias.requires_grad_(True)
            return model

    first = training(Task, Stop, **recipe())
    training(Thawed, Stop, after=first.paths, **recipe())
    assert Thawed.flags == [True, True, True, False]


def with_scheduler(task: Any, schedule: Callable[..., Any]) -> Any:
    class Scheduled(task):  # type: ignore[misc]
        @hookimpl
        def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
            return schedule(optimizer)

    return Scheduled


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: lr_scheduler.CosineAnnealingLR(o, LAST),
        lambda o: lr_scheduler.LambdaLR(o, lambda done: 0.9**done),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.5, 1.0, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
        ),
    ],
    ids=["StepLR", "CosineAnnealingLR", "LambdaLR", "SequentialLR"],
)
def test_schedulers_of_torch_take_the_group_in(schedule: Any, training: Trainer, regression: Any) -> None:
    task = with_scheduler(unfreezing(regression, "by names"), schedule)
    whole = training(task, **recipe())
    first = training(task, Stop, **recipe())
    second = training(task, Stop, after=first.paths, **recipe())
    require_same(second.paths, whole.paths)


def test_schedule_with_a_function_for_each_group_asks_for_one_more(training: Trainer, regression: Any) -> None:
    class Task(unfreezing(regression)):  # type: ignore[misc]
        @hookimpl
        def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
            weight, bias = (parameter for parameter in model.parameters() if parameter.requires_grad)
            return torch.optim.SGD([{"params": [weight]}, {"params": [bias]}], lr=0.1)

        @hookimpl
        def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
            return lr_scheduler.LambdaLR(optimizer, [lambda done: 0.9**done, lambda done: 0.8**done])

    with pytest.raises(TrainingError, match=r"1 parameter groups were added, .* append to its lr_lambdas"):
        training(Task, **recipe())
