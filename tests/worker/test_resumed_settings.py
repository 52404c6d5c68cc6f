"""What optimizer and scheduler work with after a resume: new settings hold from the first step, the others stay."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch.optim import lr_scheduler

from trainrun import hookimpl
from trainrun.errors import TrainingError
from trainrun.rundir import RunPaths
from trainrun.rundir.files import read_lines
from trainrun.worker import setup
from trainrun.worker.checkpoint import capture, restore
from trainrun.worker.parallel import seed_all

FIRST, LAST = 4, 8
ADAM = {"name": "adamw", "lr": 0.01}
GROUPS = [{"match": ["*.bias"], "weight_decay": 0.0, "lr": 0.02}]

Trainer = Callable[..., Any]
Settings = dict[str, Any]


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Seen:
    """Write down with which settings each update is made."""

    updates: ClassVar[list[list[Settings]]] = []

    @hookimpl
    def on_train_start(self) -> None:
        type(self).updates = []

    @hookimpl
    def on_gradients_clipped(self, run: Any) -> None:
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in run.optimizer.param_groups
        ]
        self.updates.append(
            [{key: float(value) if key == "lr" else value for key, value in one.items()} for one in groups]
        )

    @classmethod
    def report(cls) -> list[list[Settings]]:
        return cls.updates


class Stop:
    """End the first attempt after a few steps."""

    @hookimpl
    def should_stop(self, run: Any) -> str | None:
        return "far enough" if run.step == FIRST else None


def recipe(**tables: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "train": {"steps": LAST},
        "evaluate": {"splits": []},
        "checkpoint": {"every": FIRST, "at_end": True},
        "optimizer": ADAM,
    }
    return {**base, **tables}


class Resumed:
    """Trains by one recipe up to step 4, and by another one from there on."""

    def __init__(self, training: Trainer, task: Any) -> None:
        self.training = training
        self.task = task

    def __call__(
        self, before: Mapping[str, Any], now: Mapping[str, Any], *plugins: Any, ranks: int = 1, then_task: Any = None
    ) -> list[list[Settings]]:
        """Return the settings of each group at each step after the resume: equal on all ranks."""
        first = self.training(self.task, Stop, Seen, *plugins, ranks=ranks, **recipe(**before))
        self.paths: RunPaths = first.paths
        second = self.training(
            then_task or self.task, Seen, *plugins, ranks=ranks, after=first.paths, report=Seen.report, **recipe(**now)
        )
        for one in second.reports[1:]:
            assert one == second.reports[0]
        found: list[list[Settings]] = second.reports[0]
        return found

    @property
    def warnings(self) -> list[str]:
        return [event["reason"] for event in read_lines(self.paths.events)[0] if event["event"] == "warning"]


@pytest.fixture
def resumed(training: Trainer, regression: type) -> Resumed:
    return Resumed(training, regression)


def rates(updates: list[list[Settings]], group: int = 0) -> list[float]:
    return [update[group]["lr"] for update in updates]


def cosine(base: float, done: int, steps: int) -> float:
    return base * 0.5 * (1 + math.cos(math.pi * done / steps))


def each(*values: Any) -> list[Any]:
    return [pytest.approx(value, rel=1e-9) for value in values]


STEPS = range(FIRST, LAST)  # updates done before each update after the resume
SPREADS = [(1, "none"), (2, "ddp"), (2, "fsdp")]


# --- the recipe's own tables ---


@pytest.mark.parametrize(("ranks", "strategy"), SPREADS)
@pytest.mark.parametrize(
    ("scheduler", "factor"),
    [
        ({}, lambda done: 1.0),
        ({"name": "cosine"}, lambda done: cosine(1, done, LAST)),
        ({"name": "step", "step_size": 3, "gamma": 0.1}, lambda done: 0.1 ** (done // 3)),
        ({"name": "linear", "warmup": 6}, lambda done: (done + 1) / 7 if done < 6 else 1 - (done - 6) / 2),
    ],
    ids=["constant", "cosine", "step", "linear"],
)
def test_changed_settings_hold_from_the_first_step_in_each_group(
    scheduler: Settings, factor: Callable[[int], float], ranks: int, strategy: str, resumed: Resumed
) -> None:
    tables = {"scheduler": scheduler, "parallel": {"strategy": strategy}}
    changed = {**ADAM, "lr": 1e-4, "weight_decay": 0.5, "betas": [0.8, 0.9], "groups": [{**GROUPS[0], "lr": 2e-3}]}
    updates = resumed(
        {"optimizer": {**ADAM, "groups": GROUPS}, **tables}, {"optimizer": changed, **tables}, ranks=ranks
    )
    assert rates(updates, 0) == each(*(2e-3 * factor(done) for done in STEPS))
    assert rates(updates, 1) == each(*(1e-4 * factor(done) for done in STEPS))
    assert [[group["weight_decay"] for group in update] for update in updates] == [[0.0, 0.5]] * len(STEPS)
    assert {group["betas"] for update in updates for group in update} == {(0.8, 0.9)}
    assert "optimizer: weight_decay of group 1 was 0.01 and is 0.5" in resumed.warnings
    assert "optimizer: betas was (0.9, 0.999) and is (0.8, 0.9)" in "\n".join(resumed.warnings)


def test_what_did_not_change_is_the_checkpoints(resumed: Resumed) -> None:
    class Halves:
        """Halve the rate at step 3, and change a beta, as a plugin may."""

        @hookimpl(mutates=True)
        def on_step_end(self, run: Any, step: int) -> None:
            if step == 3:
                for group in run.optimizer.param_groups:
                    group["lr"], group["betas"] = group["lr"] / 2, (0.7, 0.999)

    updates = resumed({}, {"optimizer": {**ADAM, "weight_decay": 0.3}}, Halves)
    assert rates(updates) == [0.005] * len(STEPS)
    assert {update[0]["betas"] for update in updates} == {(0.7, 0.999)}
    assert {update[0]["weight_decay"] for update in updates} == {0.3}
    assert resumed.warnings == ["optimizer: weight_decay was 0.01 and is 0.3"]


def test_nothing_is_told_where_nothing_changed(resumed: Resumed) -> None:
    updates = resumed({"scheduler": {"name": "cosine"}}, {"scheduler": {"name": "cosine"}})
    assert rates(updates) == each(*(cosine(0.01, done, LAST) for done in STEPS))
    assert resumed.warnings == []


def test_weights_are_those_of_plain_torch(training: Trainer, regression: Any, keeper: Any) -> None:
    """From the saved weights and moments on, in a loop by hand with the new settings."""
    tables = {"scheduler": {"name": "cosine"}, "train": {"steps": LAST, "batch_size": 20}, "data": {"shuffle": False}}
    first = training(regression, Stop, keeper, report=keeper.report, **recipe(**tables))
    seed_all(0)  # as the worker does before it builds the model
    model = regression().build_model()
    inputs, targets = (torch.stack(side) for side in zip(*regression.points(20), strict=True))

    def train(optimizer: torch.optim.Optimizer, base: float, steps: range) -> None:
        for done in steps:
            optimizer.param_groups[0]["lr"] = cosine(base, done, LAST)
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(optimizer, 0.01, range(FIRST))
    assert [one.detach().flatten().tolist() for one in model.parameters()] == first.reports[0]
    optimizer.param_groups[0] |= {"weight_decay": 0.5, "betas": (0.8, 0.9)}
    train(optimizer, 1e-3, range(FIRST, LAST))
    changed = {**ADAM, "lr": 1e-3, "weight_decay": 0.5, "betas": [0.8, 0.9]}
    second = training(
        regression, keeper, after=first.paths, report=keeper.report, **recipe(**tables, optimizer=changed)
    )
    for one, other in zip(model.parameters(), second.reports[0], strict=True):
        torch.testing.assert_close(one.detach().flatten(), torch.tensor(other), rtol=1e-6, atol=1e-7)


# --- the schedule ---


@pytest.mark.parametrize(
    ("change", "told", "expected"),
    [
        ({"name": "linear"}, "scheduler: name was cosine and is linear", lambda done: 1 - done / LAST),
        ({"min_lr": 0.005}, "scheduler: min_lr was 0.0 and is 0.005", lambda done: 0.5 + cosine(0.5, done, LAST)),
        ({"warmup": 6}, "scheduler: warmup was 0 and is 6", lambda d: (d + 1) / 7 if d < 6 else cosine(1, d - 6, 2)),
        ({"name": "exponential", "gamma": 0.5}, "scheduler: gamma was 0.1 and is 0.5", lambda done: 0.5**done),
        ({"name": "constant"}, "scheduler: name was cosine and is constant", lambda done: 1.0),
        ({"name": "constant", "warmup": 6}, "scheduler: warmup was 0 and is 6", lambda d: min(1.0, (d + 1) / 7)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_changed_schedule_holds_from_the_first_step(
    change: Settings, told: str, expected: Callable[[int], float], resumed: Resumed
) -> None:
    updates = resumed({"scheduler": {"name": "cosine"}}, {"scheduler": {"name": "cosine", **change}})
    assert rates(updates) == each(*(0.01 * expected(done) for done in STEPS))
    assert told in "\n".join(resumed.warnings)
    goes = f"at step {FIRST + 1} the rate goes from 0.005 to {0.01 * expected(FIRST):.6g}"
    assert resumed.warnings[-1].endswith(goes) or expected(FIRST) == 0.5


@pytest.mark.parametrize("name", ["cosine", "constant"])
def test_a_schedule_begins_in_the_middle_where_there_was_none(name: str, resumed: Resumed) -> None:
    updates = resumed({}, {"scheduler": {"name": name, "warmup": 5}, "optimizer": {**ADAM, "lr": 0.1}})
    factors = [5 / 6, 1.0, *([cosine(1, 1, 3), cosine(1, 2, 3)] if name == "cosine" else [1.0, 1.0])]
    assert rates(updates) == each(*(0.1 * factor for factor in factors))


def test_a_new_rate_and_no_schedule_any_more(resumed: Resumed) -> None:
    updates = resumed({"scheduler": {"name": "cosine"}}, {"optimizer": {**ADAM, "lr": 0.3}})
    assert rates(updates) == [0.3] * len(STEPS)
    assert "initial_lr" not in updates[0][0]


@pytest.mark.parametrize("steps", [16, 6])
def test_another_length_says_how_the_curve_continues(steps: int, resumed: Resumed) -> None:
    tables = {"scheduler": {"name": "cosine"}}
    updates = resumed(tables, {**tables, "train": {"steps": steps}})
    assert rates(updates) == each(*(cosine(0.01, done, steps) for done in range(FIRST, steps)))
    assert resumed.warnings == [
        f"train.steps was 8 and is {steps}: the cosine schedule is now that of {steps} steps;"
        f" at step 5 the rate goes from 0.005 to {cosine(0.01, FIRST, steps):.6g}"
    ]


def test_another_number_of_epochs_is_another_length(resumed: Resumed) -> None:
    tables = {"scheduler": {"name": "linear"}}
    updates = resumed({**tables, "train": {"epochs": 3}}, {**tables, "train": {"epochs": 4}})
    assert rates(updates) == each(*(0.01 * (1 - done / 12) for done in range(FIRST, 12)))
    assert resumed.warnings[0].startswith("the number of steps was 9 and is 12: the linear schedule is now that of 12")


def test_a_length_that_the_curve_does_not_depend_on_is_no_news(resumed: Resumed) -> None:
    tables = {"scheduler": {"name": "exponential", "gamma": 0.5}}
    updates = resumed(tables, {**tables, "train": {"steps": 10}})
    assert rates(updates) == each(*(0.01 * 0.5**done for done in range(FIRST, 10)))
    assert resumed.warnings == []


# --- a task's own ---


def own_task(regression: Any, schedule: Callable[..., Any] | None = None, **settings: Any) -> Any:
    """A task that builds its optimizer and scheduler itself, with the settings at hand."""

    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
            weights, biases = ([p for p in model.parameters() if p.dim() == dim] for dim in (2, 1))
            groups = [{"params": weights}, {"params": biases, "lr": settings.get("bias_lr", 0.1)}]
            keywords = {key: value for key, value in settings.items() if key not in ("bias_lr", "schedule")}
            return torch.optim.SGD(groups, **{"lr": 0.4, **keywords})

        @hookimpl
        def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
            return schedule(optimizer) if schedule is not None else None

    return Task


def straight(schedule: Callable[..., Any], **settings: Any) -> list[list[float]]:
    """The rates of plain torch, trained from the beginning with these settings."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": settings.pop("bias_lr", 0.1)}]
    optimizer = torch.optim.SGD(groups, **{"lr": 0.4, **settings})
    scheduler, found = schedule(optimizer), []
    for _ in range(LAST):
        found.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


class Squares(lr_scheduler.LRScheduler):
    """A schedule of the task's own in closed form."""

    def get_lr(self) -> list[Any]:
        return [base / (1 + self.last_epoch) ** 2 for base in self.base_lrs]


class Wrapped:
    """A schedule within an object that only has what trainrun needs."""

    def __init__(self, scheduler: Any) -> None:
        self.inner = scheduler

    def step(self) -> None:
        self.inner.step()

    def state_dict(self) -> Settings:
        return dict(self.inner.state_dict())

    def load_state_dict(self, state: Settings) -> None:
        self.inner.load_state_dict(state)


def sequence(optimizer: Any, warm: int = 2, total: int = 8) -> Any:
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, warm), lr_scheduler.CosineAnnealingLR(optimizer, total - warm)]
    return lr_scheduler.SequentialLR(optimizer, parts, [warm])


def chain(optimizer: Any, gamma: float = 0.9) -> Any:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 6), lr_scheduler.ExponentialLR(optimizer, gamma)]
    return lr_scheduler.ChainedScheduler(parts, optimizer)


SCHEDULES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "StepLR": (lambda o: lr_scheduler.StepLR(o, 3, 0.5), lambda o: lr_scheduler.StepLR(o, 2, 0.1)),
    "MultiStepLR": (lambda o: lr_scheduler.MultiStepLR(o, [2, 6]), lambda o: lr_scheduler.MultiStepLR(o, [3, 5, 6])),
    "ExponentialLR": (lambda o: lr_scheduler.ExponentialLR(o, 0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.5)),
    "CosineAnnealingLR": (
        lambda o: lr_scheduler.CosineAnnealingLR(o, 8, 0.01),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 16, 0.03),
    ),
    "PolynomialLR": (lambda o: lr_scheduler.PolynomialLR(o, 9), lambda o: lr_scheduler.PolynomialLR(o, 12, 2.0)),
    "LambdaLR": (lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.9**n),) * 2,
    "OneCycleLR": (
        lambda o: lr_scheduler.OneCycleLR(o, 0.5, 10, cycle_momentum=False),
        lambda o: lr_scheduler.OneCycleLR(o, 0.7, 12, cycle_momentum=False),
    ),
    "CyclicLR": (
        lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.4, 3, cycle_momentum=False),
        lambda o: lr_scheduler.CyclicLR(o, 0.2, 0.4, 5, cycle_momentum=False),
    ),
    "WarmRestarts": (
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2, 0.01),
    ),
    "SequentialLR": (sequence, lambda o: sequence(o, warm=3, total=12)),
    "ChainedScheduler": (chain, lambda o: chain(o, gamma=0.5)),
    "own": (Squares, Squares),
    "wrapped": (
        lambda o: Wrapped(lr_scheduler.CosineAnnealingLR(o, 8, 0.01)),
        lambda o: Wrapped(lr_scheduler.CosineAnnealingLR(o, 8, 0.02)),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_of_the_task_is_as_if_trained_with_the_new_settings(
    name: str, training: Trainer, regression: Any
) -> None:
    before, now = SCHEDULES[name]
    resumed = Resumed(training, own_task(regression, before))
    updates = resumed({}, {}, then_task=own_task(regression, now, lr=0.04, bias_lr=0.2, weight_decay=0.1))
    expected = straight(now, lr=0.04, bias_lr=0.2)[FIRST:]
    assert [[group["lr"] for group in update] for update in updates] == [each(*row) for row in expected]
    assert [[group["weight_decay"] for group in update] for update in updates] == [[0.1, 0.1]] * len(STEPS)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_of_the_task_continues_where_nothing_changed(name: str, training: Trainer, regression: Any) -> None:
    before, _ = SCHEDULES[name]
    resumed = Resumed(training, own_task(regression, before))
    updates = resumed({}, {})
    assert [[group["lr"] for group in update] for update in updates] == straight(before)[FIRST:]
    assert resumed.warnings == []


def test_cycle_of_momentum_follows_new_settings(training: Trainer, regression: Any) -> None:
    def cycle(peak: float) -> Callable[[Any], Any]:
        return lambda o: lr_scheduler.OneCycleLR(o, 0.5, 10, max_momentum=peak, base_momentum=0.5)

    resumed = Resumed(training, own_task(regression, cycle(0.9), momentum=0.9))
    updates = resumed({}, {}, then_task=own_task(regression, cycle(0.8), momentum=0.9))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4, momentum=0.9)
    scheduler, expected = cycle(0.8)(optimizer), []
    for _ in range(LAST):
        expected.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    assert [update[0]["momentum"] for update in updates] == each(*expected[FIRST:])


class Metric:
    """A `ReduceLROnPlateau` that is given a loss that never falls, once an update."""

    def __init__(self, optimizer: Any, **settings: Any) -> None:
        self.inner = lr_scheduler.ReduceLROnPlateau(optimizer, **settings)

    def step(self) -> None:
        self.inner.step(1.0)

    def state_dict(self) -> Settings:
        return dict(self.inner.state_dict())

    def load_state_dict(self, state: Settings) -> None:
        self.inner.load_state_dict(state)


def test_rate_that_a_plateau_has_lowered_stays_and_follows_a_new_base(training: Trainer, regression: Any) -> None:
    def plateau(**settings: Any) -> Callable[[Any], Any]:
        return lambda optimizer: Metric(optimizer, **{"factor": 0.5, "patience": 1, **settings})

    # The first metric is the best one; two worse ones lower the rate, at the third update and every second after it.
    resumed = Resumed(training, own_task(regression, plateau()))
    assert rates(resumed({}, {})) == [0.2, 0.1, 0.1, 0.05]
    assert resumed.warnings == []
    updates = resumed({}, {}, then_task=own_task(regression, plateau(), lr=0.04))
    assert rates(updates, 0) == each(0.02, 0.01, 0.01, 0.005)
    assert rates(updates, 1) == each(0.05, 0.025, 0.025, 0.0125)
    assert resumed.warnings == [
        "optimizer: lr of group 0 was 0.4 and is 0.04; at step 5 the rate of group 0 goes from 0.2 to 0.02"
    ]
    updates = resumed({}, {}, then_task=own_task(regression, plateau(patience=9, min_lr=0.001)))
    assert rates(updates) == [0.2] * len(STEPS)
    assert "Metric: patience was 1 and is 9" in resumed.warnings


def test_length_that_a_schedule_of_the_task_does_not_follow_is_told(training: Trainer, regression: Any) -> None:
    task = own_task(regression, lambda o: lr_scheduler.CosineAnnealingLR(o, 8))
    resumed = Resumed(training, task)
    resumed({}, {"train": {"steps": 10}})
    assert resumed.warnings == [
        "train.steps was 8 and is 10: the CosineAnnealingLR has the same settings as before, so it continues as it was"
    ]


# --- kinds of values ---


def test_rate_that_is_a_tensor_stays_the_same_tensor(training: Trainer, regression: Any) -> None:
    def task(lr: float) -> Any:
        class Task(regression):  # type: ignore[misc]
            @hookimpl
            def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
                self.rate = torch.tensor(lr)
                return torch.optim.AdamW(model.parameters(), lr=self.rate)

            @hookimpl
            def on_train_start(self, run: Any) -> None:
                assert run.optimizer.param_groups[0]["lr"] is self.rate

        return Task

    resumed = Resumed(training, task(0.01))
    tables = {"scheduler": {"name": "cosine"}}
    updates = resumed(tables, tables, then_task=task(0.002))
    assert rates(updates) == [pytest.approx(cosine(0.002, done, LAST), rel=1e-6) for done in STEPS]
    assert resumed.warnings[0].startswith("optimizer: lr was 0.01 and is 0.002; at step 5 the rate goes from 0.005 to")


def test_key_of_a_groups_own_that_is_gone(training: Trainer, regression: Any) -> None:
    def task(**extra: Any) -> Any:
        class Task(regression):  # type: ignore[misc]
            @hookimpl
            def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
                return torch.optim.SGD([{"params": list(model.parameters()), **extra}], lr=0.1)

        return Task

    resumed = Resumed(training, task(role="head", scale=2))
    updates = resumed({}, {}, then_task=task(scale=3))
    assert updates[0][0]["scale"] == 3
    assert resumed.warnings == [
        "optimizer: role was head and is not set",
        "optimizer: scale was 2 and is 3",
    ]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"name": "adamw"}, {"amsgrad": True}),
        ({"name": "rmsprop"}, {"centered": True, "momentum": 0.9}),
        ({"name": "sgd"}, {"momentum": 0.9}),
        ({"name": "sgd", "momentum": 0.9}, {"momentum": 0.0}),
    ],
)
def test_setting_that_needs_more_state_can_be_turned_on(before: Settings, now: Settings, resumed: Resumed) -> None:
    updates = resumed({"optimizer": {"lr": 0.01, **before}}, {"optimizer": {"lr": 0.01, **before, **now}})
    assert len(updates) == len(STEPS)
    assert {key: updates[0][0][key] for key in now} == now


@pytest.mark.parametrize(
    ("before", "now", "key"),
    [
        ({"name": "rprop"}, {"lr": 0.02}, "lr"),
        ({"name": "adagrad"}, {"initial_accumulator_value": 0.5}, "initial_accumulator_value"),
        ({"name": "asgd"}, {"lambd": 0.5}, "lambd"),
    ],
)
def test_setting_that_only_the_first_step_reads_is_refused(
    before: Settings, now: Settings, key: str, resumed: Resumed
) -> None:
    with pytest.raises(TrainingError, match=f"optimizer: {key} was .* reads it in its first step only"):
        resumed({"optimizer": {"lr": 0.01, **before}}, {"optimizer": {"lr": 0.01, **before, **now}})


# --- what cannot be changed ---


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (lambda o: lr_scheduler.StepLR(o, 3), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
        (lambda o: lr_scheduler.StepLR(o, 3), None),
        (None, lambda o: lr_scheduler.StepLR(o, 3)),
        (sequence, lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o), lr_scheduler.StepLR(o, 9)], [2])),
    ],
)
def test_scheduler_of_another_class_is_refused_by_name(
    before: Any, now: Any, training: Trainer, regression: Any
) -> None:
    resumed = Resumed(training, own_task(regression, before))
    with pytest.raises(TrainingError, match=r"another scheduler: .*(StepLR|CosineAnnealingLR|none) there, .* here"):
        resumed({}, {}, then_task=own_task(regression, now))


# --- other keys ---


class Draws:
    """Write down the sizes of micro-batches and a random number a step."""

    seen: ClassVar[list[tuple[int, float]]] = []

    @hookimpl
    def on_train_start(self) -> None:
        type(self).seen = []

    @hookimpl
    def on_microbatch_start(self, batch: Any) -> None:
        self.seen.append((len(batch[0]), float(torch.rand(()))))

    @classmethod
    def report(cls) -> list[tuple[int, float]]:
        return cls.seen


def test_changed_seed_and_batch_size_hold_from_the_first_step(
    training: Trainer, regression: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client tells of the change: random numbers are drawn anew if the seed is another."""
    first = training(regression, Stop, Draws, report=Draws.report, **recipe())
    straight = training(regression, Draws, report=Draws.report, **recipe()).reports[0]
    differences = {"recipe": {"run.seed": [0, 7]}}
    with monkeypatch.context() as patch:
        patch.setattr(setup, "find", lambda *given: replace(restore.find(*given), differences=differences))
        tables = recipe(run={"seed": 7}, train={"steps": 6, "batch_size": 4})
        second = training(regression, Draws, after=first.paths, report=Draws.report, **tables).reports[0]
    generator = torch.Generator().manual_seed((7 + 1 + FIRST * 1_000_003) % 2**63)
    assert second == [(4, float(torch.rand((), generator=generator))) for _ in range(FIRST, 6)]
    assert [number for _, number in second] != [number for _, number in straight[FIRST:6]]


# --- checkpoints of before ---


@pytest.mark.parametrize("changed", [False, True])
def test_checkpoint_that_does_not_say_what_it_was_built_with(
    changed: bool, training: Trainer, regression: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an older trainrun wrote is loaded, and what cannot be compared is told."""
    values, differences = capture.values, {"recipe": {"optimizer.lr": [0.01, 0.5], "train.log_every": [1, 2]}}

    def older(state: Any) -> Settings:
        found = {key: value for key, value in values(state).items() if key not in ("built", "trains")}
        kept = {key: found["scheduler"]["state"][key] for key in ("base_lrs", "last_epoch", "_step_count", "_last_lr")}
        former = {"class": "torch.optim.lr_scheduler.LambdaLR", "state": {**kept, "lr_lambdas": [None]}}
        return {**found, "scheduler": former}

    tables = {"scheduler": {"name": "cosine"}}
    with monkeypatch.context() as patch:
        patch.setattr(capture, "values", older)
        first = training(regression, Stop, Seen, **recipe(**tables))
    if changed:
        monkeypatch.setattr(setup, "find", lambda *given: replace(restore.find(*given), differences=differences))
        tables["optimizer"] = {**ADAM, "lr": 0.5}
    second = training(regression, Seen, after=first.paths, report=Seen.report, **recipe(**tables))
    assert rates(second.reports[0]) == each(*(cosine(0.01, done, LAST) for done in STEPS))
    told = [event["reason"] for event in read_lines(first.paths.events)[0] if event["event"] == "warning"]
    assert len(told) == changed
    assert all(one.endswith("these changes do not reach them: optimizer.lr") for one in told)
