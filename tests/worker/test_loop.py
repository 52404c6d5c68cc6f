"""What is trained: the loop against hand-written ones, on one rank and on two."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import pytest
import torch

from trainrun.marker import hookimpl

STEPS = {"steps": 7, "batch_size": 8}
IN_ORDER = {"shuffle": False}


def by_hand(task: Any, steps: int, batch_size: int, clip: float | None = None, gamma: float | None = None) -> Any:
    """The plain loop over the samples in order; the last batch of an epoch may be smaller."""
    torch.manual_seed(0)
    model = task().build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma) if gamma else None
    data, losses, position = task.points(task.samples), [], 0
    for _ in range(steps):
        rows = data[position : position + batch_size]
        position = position + batch_size if position + batch_size < len(data) else 0
        loss = task().training_step(model, [torch.stack(column) for column in zip(*rows, strict=True)])
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler:
            scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return [parameter.flatten().tolist() for parameter in model.parameters()], losses


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=tolerance, atol=tolerance)


def test_one_rank_is_the_plain_loop_bit_for_bit(training: Any, regression: Any, keeper: Any) -> None:
    run = training(regression, keeper, report=keeper.report, train=STEPS, data=IN_ORDER)
    parameters, losses = by_hand(regression, 7, 8)
    assert run.reports == [parameters]
    assert list(run.series("train/loss").values()) == losses
    assert (run.outcome.state, run.outcome.step, run.outcome.exit_code) == ("finished", 7, 0)


def test_clipping_and_schedule_are_the_plain_ones_too(training: Any, regression: Any, keeper: Any) -> None:
    tables = {"train": {**STEPS, "clip_grad_norm": 0.5}, "scheduler": {"name": "exponential", "gamma": 0.9}}
    run = training(regression, keeper, report=keeper.report, data=IN_ORDER, **tables)
    assert run.reports == [by_hand(regression, 7, 8, clip=0.5, gamma=0.9)[0]]
    assert min(run.series("train/grad_norm").values()) > 0


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_equals_the_whole_batch(training: Any, regression: Any, keeper: Any, micro: int) -> None:
    # 20 samples in batches of 8: the last update of each epoch has 4, which micro-batches weight by samples.
    run = training(regression, keeper, report=keeper.report, train={**STEPS, "micro_batch_size": micro}, data=IN_ORDER)
    parameters, losses = by_hand(regression, 7, 8)
    close(run.reports[0], parameters)
    close([list(run.series("train/loss").values())], [losses])


@pytest.mark.parametrize(
    "tables",
    [
        {"train": STEPS},
        {"train": {**STEPS, "micro_batch_size": 2}},
        {"train": {**STEPS, "clip_grad_norm": 0.3}, "scheduler": {"name": "cosine", "warmup": 2}},
        {"train": {"epochs": 2, "batch_size": 8, "micro_batch_size": 3}, "launch": {"workers": "auto"}},
    ],
)
def test_two_ranks_equal_one_with_the_same_batches(training: Any, regression: Any, keeper: Any, tables: Any) -> None:
    # 21 samples: the last update of an epoch has 5, three on rank 0 and two on rank 1.
    regression = type("Task", (regression,), {"samples": 21})
    one = training(regression, keeper, report=keeper.report, **tables)
    two = training(regression, keeper, report=keeper.report, ranks=2, **tables)
    assert two.reports[0] == two.reports[1], "replicas drifted"
    close(two.reports[0], one.reports[0])
    close([list(two.series("train/loss").values())], [list(one.series("train/loss").values())])
    assert two.series("eval/error") == pytest.approx(one.series("eval/error"))


def test_two_ranks_equal_the_plain_loop(training: Any, regression: Any, keeper: Any) -> None:
    run = training(regression, keeper, report=keeper.report, ranks=2, train=STEPS, data=IN_ORDER)
    close(run.reports[0], by_hand(regression, 7, 8)[0])


def test_a_last_update_that_leaves_a_rank_without_samples(training: Any, regression: Any, keeper: Any) -> None:
    regression = type("Task", (regression,), {"samples": 17})
    run = training(regression, keeper, report=keeper.report, ranks=2, train=STEPS, data=IN_ORDER)
    assert run.reports[0] == run.reports[1]
    parameters, losses = by_hand(regression, 7, 8)
    close(run.reports[0], parameters)
    close([list(run.series("train/loss").values())], [losses])


class Types:
    """Notes the type of what the model answers, and the loss scale."""

    seen: list[Any]

    @hookimpl
    def on_train_start(self) -> None:
        type(self).seen = []

    @hookimpl
    def on_forward_end(self, run: Any, outputs: Any) -> None:
        self.seen.append((outputs["prediction"].dtype, run.scaler.get_scale() if run.scaler else None))

    @classmethod
    def report(cls) -> Any:
        return [(str(dtype), scale) for dtype, scale in cls.seen]


def half(regression: Any) -> Any:
    class Half(regression):  # type: ignore[misc]
        @hookimpl
        def training_step(self, model: Any, batch: Any) -> Any:
            inputs, targets = batch
            prediction = model(inputs)
            return {"loss": (prediction.float() - targets).square().mean(), "prediction": prediction}

    return Half


def test_bf16_runs_the_forward_under_autocast(training: Any, regression: Any, keeper: Any) -> None:
    task = half(regression)
    run = training(
        task,
        keeper,
        Types,
        report=lambda: (keeper.report(), Types.report()),
        train={**STEPS, "precision": "bf16"},
        data=IN_ORDER,
    )
    parameters, types = run.reports[0]
    assert set(types) == {("torch.bfloat16", None)}
    close(parameters, by_hand(regression, 7, 8)[0], tolerance=0.05)


def test_fp16_is_the_plain_loop_with_a_scaler(training: Any, regression: Any, keeper: Any) -> None:
    task = half(regression)
    run = training(
        task,
        keeper,
        report=keeper.report,
        data=IN_ORDER,
        train={"steps": 4, "batch_size": 20, "precision": "fp16", "clip_grad_norm": 1.0},
    )
    torch.manual_seed(0)
    model = task().build_model()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    batch = [torch.stack(column) for column in zip(*task.points(20), strict=True)]
    for _ in range(4):
        with torch.autocast("cpu", torch.float16):
            loss = task().training_step(model, batch)["loss"]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert run.reports[0] == [parameter.flatten().tolist() for parameter in model.parameters()]


def test_fp16_leaves_an_update_out_where_gradients_overflow(training: Any, regression: Any) -> None:
    class Overflow(half(regression)):  # type: ignore[misc]
        @hookimpl
        def backward(self, run: Any, loss: Any, scaler: Any) -> bool:
            scaler.scale(loss * (float("inf") if run.step == 2 else 1e-3)).backward()
            return True

    class Watch:
        seen: ClassVar[list[Any]] = []

        @hookimpl
        def on_update_end(self, run: Any, skipped: Any) -> None:
            weights = next(run.model.parameters()).flatten().tolist()
            self.seen.append((skipped, run.scheduler.last_epoch, weights, run.scaler.get_scale()))

    training(Overflow, Watch, train={"steps": 3, "precision": "fp16"}, scheduler={"name": "linear"})
    (_, _, before, scale), (skipped, scheduled, weights, lowered), (after, moved, changed, _) = Watch.seen
    assert "not finite" in skipped
    assert (scheduled, weights) == (1, before)
    assert lowered == scale / 2
    assert (after, moved) == (None, 2)
    assert changed != weights


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_models_train_alike(
    training: Any, regression: Any, keeper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The compiler's own work takes a minute; without it the model is wrapped and traced all the same.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    tables = {"data": IN_ORDER, "optimizer": {"name": "sgd", "lr": 0.1, "groups": [{"match": ["0.bias"], "lr": 0.2}]}}
    train = {"steps": 3, "batch_size": 10}
    plain = training(regression, keeper, report=keeper.report, train=train, **tables)
    compiled = training(regression, keeper, report=keeper.report, train={**train, "compile": True}, **tables)
    close(compiled.reports[0], plain.reports[0])
    assert compiled.series("eval/error") == pytest.approx(plain.series("eval/error"))
