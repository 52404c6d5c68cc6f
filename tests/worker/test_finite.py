"""What is not finite is never what a checkpoint keeps, and the last good one stays."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trainrun.checkpoint import choose, scan
from trainrun.errors import TrainingError
from trainrun.marker import hookimpl
from trainrun.worker.checkpoint.finite import Losses, not_finite
from trainrun.worker.checkpoint.reader import read_tensors

BAD = [math.nan, math.inf]


def steps(paths: Any) -> list[int]:
    """The steps of the checkpoints that there are, oldest first."""
    return [one.step for one in reversed(scan(paths.checkpoints))]


class Task:
    """Fit a line with batch normalisation; at `at`, on the rank `on`, `spoil` may change anything."""

    at, on = 3, 0

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return [(torch.full((3,), index / 8), torch.ones(1)) for index in range(32)] if split == "train" else None

    @hookimpl
    def training_step(self, run: Any, model: torch.nn.Module, batch: Any) -> Any:
        loss = (model(batch[0]) - batch[1]).square().mean()
        return self.loss(loss) if run.step == self.at and run.world.rank == self.on else loss

    def loss(self, loss: torch.Tensor) -> Any:
        return loss

    @hookimpl(mutates=True)
    def on_update_end(self, run: Any) -> None:
        if run.step == self.at and run.world.rank == self.on:
            with torch.no_grad():
                self.spoil(run)

    def spoil(self, run: Any) -> None:
        """Nothing."""


class BadLoss(Task):
    def loss(self, loss: torch.Tensor) -> Any:
        return loss * math.nan


class BadWeight(Task):
    """After the update, so that no gradient carries it to the other ranks before the save."""

    at = 4

    def spoil(self, run: Any) -> None:
        weight = next(iter(run.module.parameters()))
        local = weight.to_local() if hasattr(weight, "to_local") else weight
        local.view(-1)[-1] = math.inf


class BadStatistics(Task):
    at = 4

    def spoil(self, run: Any) -> None:
        run.module[1].running_var[1] = math.nan


class BadMoments(Task):
    at = 4

    def spoil(self, run: Any) -> None:
        run.optimizer.state[run.module[2].bias]["exp_avg_sq"].fill_(math.nan)


class BadRate(Task):
    at = 4

    def spoil(self, run: Any) -> None:
        run.optimizer.param_groups[0]["lr"] = math.nan


TABLES: dict[str, Any] = {
    "train": {"steps": 12, "log_every": 100},
    "optimizer": {"name": "adamw", "lr": 0.01},
    "evaluate": {"splits": []},
}
KINDS = [
    (BadLoss, "the training loss, 0.weight"),
    (BadWeight, "0.weight"),
    (BadStatistics, "1.running_var"),
    (BadMoments, "the optimizer's exp_avg_sq of 2.bias"),
    (BadRate, "the optimizer's lr of group 0"),
]


@pytest.mark.parametrize(("task", "named"), KINDS)
@pytest.mark.parametrize("table", [{"every": 2}, {"every": 2, "background": False}])
def test_the_last_good_one_stays_and_the_failure_names_what_is_not_finite(
    task: type, named: str, table: Any, training: Any
) -> None:
    with pytest.raises(TrainingError) as failure:
        training(task, checkpoint=table, **TABLES)
    assert f"the checkpoint of step 4 was not saved, because what it would keep is not finite: {named}" in str(
        failure.value
    )
    assert "the last good checkpoint is step-000002" in str(failure.value)
    assert steps(training.paths) == [2]
    kept = read_tensors(training.paths.checkpoints / "step-000002", "")
    assert not_finite(kept) == []
    assert scan(training.paths.checkpoints)[0].manifest.finite is True


class Stops:
    """Stops after the step that is spoilt."""

    @hookimpl
    def should_stop(self, run: Any) -> str | None:
        return "enough" if run.step == 4 else None


class Votes:
    @hookimpl(ranks="zero")
    def should_checkpoint(self, run: Any) -> str | None:
        return "a good moment" if run.step in (1, 4) else None


class Slow:
    """Steps that take long enough for the clock."""

    @hookimpl
    def on_step_end(self) -> None:
        torch.randn(400, 400) @ torch.randn(400, 400)


@pytest.mark.parametrize(("plugin", "table", "kept"), [(Stops, {"every": 3}, [3]), (Votes, {}, [3])])
def test_at_a_stop_and_by_a_vote(plugin: type, table: Any, kept: list[int], training: Any) -> None:
    with pytest.raises(TrainingError, match=r"not finite: 1\.running_var"):
        training(BadStatistics, plugin, checkpoint={"at_end": plugin is Stops, **table}, **TABLES)
    assert steps(training.paths) == kept


def test_by_the_clock(training: Any) -> None:
    task = type("Task", (BadStatistics,), {"at": 40})
    tables = TABLES | {"train": {"steps": 4000, "log_every": 10000}}
    with pytest.raises(TrainingError, match=r"not finite: 1\.running_var"):
        training(task, Slow, checkpoint={"every": "0.02s", "at_end": False}, **tables)
    assert all(step < 40 for step in steps(training.paths))


def test_at_the_end(training: Any) -> None:
    task = type("Task", (BadStatistics,), {"at": 12})
    with pytest.raises(TrainingError, match=r"the checkpoint of step 12 was not saved.*is step-000010"):
        training(task, checkpoint={"every": 2, "at_end": True}, **TABLES)
    assert steps(training.paths) == [8, 10]


class Hears:
    heard: list[str]

    @hookimpl
    def on_checkpoint_failed(self, checkpoint: str, reason: str) -> None:
        type(self).heard.append(f"{checkpoint[-11:]} {reason}")


@pytest.mark.parametrize("background", [True, False])
def test_a_warning_each_time_and_training_continues(background: bool, training: Any) -> None:
    plugin = type("Hears", (Hears,), {"heard": []})
    tables = TABLES | {"train": {"steps": 12, "log_every": 100, "nonfinite": "warn"}}
    table = {"every": 2, "max_failures": 2, "at_end": True, "background": background}
    trained = training(BadStatistics, plugin, checkpoint=table, **tables)
    assert trained.outcome.state == "finished"
    assert steps(trained.paths) == [2]
    expected = [f"step-{step:06} not finite: 1.running_var" for step in (4, 6, 8, 10, 12)]
    assert plugin.heard == expected
    assert len(trained.warnings) == 5
    assert "the last good checkpoint is step-000002" in trained.warnings[0]
    assert choose(trained.paths.checkpoints).path.name == "step-000002"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("task", [BadLoss, BadWeight])
def test_one_rank_is_enough(strategy: str, task: type, training: Any) -> None:
    if strategy == "ddp" and task is BadWeight:
        pytest.skip("replicas that differ are an error of its own")
    task = type("Task", (task,), {"on": 1, "build_model": _plain})
    tables = TABLES | {"parallel": {"strategy": strategy}}
    with pytest.raises(Exception, match=r"step 4 was not saved.*not finite: .*\(rank") as failure:
        _ = training(task, ranks=2, checkpoint={"every": 2}, **tables).reports
    if strategy == "fsdp" and issubclass(task, BadWeight):
        assert "0.weight (rank 1)" in str(failure.value)
    assert steps(training.paths) == [2]


@hookimpl
def _plain(self: Any) -> torch.nn.Module:
    """Without buffers."""
    del self
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))


class Skips(BadLoss):
    """Leaves out the update of the loss that is not finite: with it the gradients are not finite either."""

    @hookimpl
    def should_skip_update(self, run: Any) -> str | None:
        return "not finite" if run.step == self.at else None


def test_a_loss_whose_update_was_skipped_does_not_count(training: Any) -> None:
    task = type("Task", (Skips,), {"build_model": _plain})
    tables = TABLES | {"train": {"steps": 8, "log_every": 100, "nonfinite": "warn"}}
    trained = training(task, checkpoint={"every": 2, "keep": 9}, **tables)
    assert steps(trained.paths) == [2, 4, 6, 8]


class Finite(BadLoss):
    """The loss is NaN, the gradients are finite: someone has put zeros in their place."""

    @hookimpl(mutates=True)
    def on_gradients_ready(self, model: torch.nn.Module) -> None:
        for one in model.parameters():
            one.grad.nan_to_num_()


def test_a_loss_that_is_not_finite_is_enough_until_the_next_save(training: Any) -> None:
    task = type("Task", (Finite,), {"build_model": _plain})
    tables = TABLES | {"train": {"steps": 8, "log_every": 100, "nonfinite": "warn"}}
    trained = training(task, checkpoint={"every": 2, "keep": 9, "background": False}, **tables)
    assert steps(trained.paths) == [2, 6, 8]
    assert [one for one in trained.warnings if "was not saved" in one] == [
        "the checkpoint of step 4 was not saved, because what it would keep is not finite: the training loss;"
        " the last good checkpoint is step-000002"
    ]


class Keeps:
    """Keeps an average of the weights that is not finite, or what is no weight."""

    state: Any

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        """Nothing."""


BIAS = torch.tensor([1.0, math.nan, 1.0, 1.0])


@pytest.mark.parametrize("state", [{"average": {"0.bias": BIAS}}, {"model": {"module._orig_mod.0.bias": BIAS}}])
def test_averaged_weights_count(state: Any, training: Any) -> None:
    plugin = type("Keeps", (Keeps,), {"state": state})
    with pytest.raises(TrainingError, match=r"step 2 .*not finite: .*0\.bias of the plugin keeps; there is no good"):
        training(Task, plugin, checkpoint={"every": 2}, **TABLES)
    assert steps(training.paths) == []


def test_what_is_no_weight_does_not(training: Any) -> None:
    state = {"lowest": torch.tensor(math.inf), "range": {"0.bias": torch.tensor(math.inf)}, "best": math.inf}
    trained = training(Task, type("Keeps", (Keeps,), {"state": state}), checkpoint={"every": 6}, **TABLES)
    assert steps(trained.paths) == [6, 12]


class Masked(Task):
    @hookimpl
    def build_model(self) -> torch.nn.Module:
        model = torch.nn.Sequential(torch.nn.Linear(3, 1))
        model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
        frozen = torch.nn.Parameter(torch.tensor([math.nan]), requires_grad=False)
        model.register_parameter("frozen", frozen)
        return model


def test_what_was_not_finite_before_training_and_is_not_trained_may_stay_so(training: Any) -> None:
    trained = training(Masked, checkpoint={"every": 4, "at_end": True}, **TABLES)
    assert steps(trained.paths) == [8, 12]
    tables = TABLES | {"train": {"steps": 16}}
    resumed = training(Masked, checkpoint={"every": 4}, after=trained.paths, **tables)
    assert steps(resumed.paths) == [12, 16]


def test_fp16_that_lowers_its_scale_saves(training: Any) -> None:
    """The scaler skips the update of a loss that overflows, and lowers its scale."""
    task = type("Task", (BadLoss,), {"build_model": _plain})
    train = {"steps": 8, "log_every": 100, "precision": "fp16", "nonfinite": "warn"}
    trained = training(task, checkpoint={"every": 2, "keep": 9}, **(TABLES | {"train": train}))
    assert steps(trained.paths) == [2, 4, 6, 8]


# --- the parts ---


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.float8_e5m2]
)
def test_kinds_of_tensors(dtype: torch.dtype, bad: float) -> None:
    good = torch.ones(7, 5).to(dtype)
    spoilt = torch.ones(7, 5)
    spoilt[3, 2] = bad
    assert not_finite({"good": good, "spoilt": spoilt.to(dtype)}) == ["spoilt"]


def test_further_kinds_of_tensors() -> None:
    spoilt = torch.tensor([[0.0, math.nan], [1.0, 0.0]])
    tensors = {
        "whole": torch.arange(4),
        "flags": torch.tensor([True]),
        "none": torch.empty(0),
        "large": torch.full((9,), torch.finfo(torch.float32).max),
        "sparse": spoilt.to_sparse(),
        "imaginary": torch.complex(torch.ones(2), torch.tensor([1.0, math.inf])).conj(),
    }
    assert not_finite(tensors) == ["sparse", "imaginary"]


@pytest.mark.parametrize("number", [1, 3, 700])
@pytest.mark.parametrize(
    ("bad", "weight", "applied", "finite"),
    [
        (math.nan, 1, True, False),
        (-math.inf, 8, True, False),
        (math.nan, torch.tensor(0.0), True, True),
        (math.nan, torch.tensor(2.0), True, False),
        (math.nan, 1, False, True),
    ],
)
def test_losses(number: int, bad: float, weight: Any, applied: bool, finite: bool) -> None:
    losses = Losses()
    losses.add(torch.tensor(bad), weight)
    losses.end_update(applied=applied)
    for _ in range(number - 1):
        losses.add(torch.tensor(3e38), 1)
        losses.end_update(applied=True)
    loss, total = losses.take()
    assert (float(total) > 0 and not math.isfinite(float(loss))) is not finite
    assert losses.take() == (0.0, 0)
