"""`parallel.strategy = "fsdp"` on two ranks, beside one worker and DDP."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.distributed.fsdp  # once here, so that the forked ranks need not
from torch import nn

from trainrun.marker import hookimpl
from trainrun.worker.sharding import whole

SHARDED = {"strategy": "fsdp"}
IN_ORDER = {"shuffle": False}

TABLES: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro-batches": {"micro_batch_size": 2},
    "clipping": {"clip_grad_norm": 0.3},
    "both": {"micro_batch_size": 2, "clip_grad_norm": 0.3},
    "bf16": {"precision": "bf16", "micro_batch_size": 4},
    "compiled": {"compile": True},
}


class Keeper:
    """Keeps what the model and the optimizer hold at the end, whole."""

    kept: dict[str, Any]

    @hookimpl
    def on_train_end(self, run: Any) -> None:
        model, state = run.model, run.optimizer.state
        parameters = dict(model.named_parameters())
        Keeper.kept = {
            "parameters": {
                name: whole(parameter.detach()).flatten().tolist() for name, parameter in parameters.items()
            },
            "kinds": {type(parameter).__name__ for parameter in parameters.values()},
            "saved": {type(value).__name__ for value in model.state_dict().values()},
            "optimizer": {
                (key, type(value).__name__) for parameter in state.values() for key, value in parameter.items()
            },
            "buffers": {name: buffer.tolist() for name, buffer in model.named_buffers()},
        }

    @staticmethod
    def report() -> Any:
        return Keeper.kept


@pytest.fixture
def shard(training: Any) -> Any:
    """Train sharded over two ranks; answers the training."""

    def run(task: Any, *plugins: Any, **tables: Any) -> Any:
        wrap = {"wrap": tables.pop("wrap")} if "wrap" in tables else {}
        return training(
            task, Keeper, *plugins, ranks=2, report=Keeper.report, **{"parallel": {**SHARDED, **wrap}, **tables}
        )

    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_it_trains_as_one_worker_and_as_ddp(
    training: Any, regression: Any, table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))

    def run(strategy: str, ranks: int) -> Any:
        tables = {"train": {"steps": 7, **table}, "parallel": {"strategy": strategy}}
        return training(regression, Keeper, ranks=ranks, report=Keeper.report, **tables)

    alone, replicated, sharded = run("none", 1), run("ddp", 2), run("fsdp", 2)
    rel = 2e-2 if "precision" in table else 1e-5
    for series in ("train/loss", "train/grad_norm", "eval/error"):
        expected = alone.series(series)
        assert sharded.series(series) == pytest.approx(expected, rel=rel)
        assert replicated.series(series) == pytest.approx(expected, rel=rel)
    assert bool(sharded.series("train/grad_norm")) == ("clip_grad_norm" in table)
    first, second = sharded.reports
    assert first == second
    for (_, mine), (_, theirs) in zip(first["parameters"].items(), alone.reports[0]["parameters"].items(), strict=True):
        assert mine == pytest.approx(theirs, rel=rel, abs=1e-3 if "precision" in table else 1e-6)


def test_parameters_and_optimizer_state_are_shards_under_their_own_names(shard: Any, regression: Any) -> None:
    groups = [{"match": ["*.bias"], "weight_decay": 0.0}]
    run = shard(regression, train={"steps": 2}, optimizer={"name": "adamw", "lr": 0.01, "groups": groups})
    for report in run.reports:
        assert list(report["parameters"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        assert (report["kinds"], report["saved"]) == ({"DTensor"}, {"DTensor"})  # after an evaluation, too
        assert report["optimizer"] == {("step", "Tensor"), ("exp_avg", "DTensor"), ("exp_avg_sq", "DTensor")}


def test_a_single_worker_is_not_sharded(training: Any, regression: Any) -> None:
    run = training(regression, Keeper, report=Keeper.report, train={"steps": 1}, parallel=SHARDED)
    assert run.reports[0]["kinds"] == {"Parameter"}


class Stopper:
    @hookimpl
    def should_stop(self, run: Any) -> str | None:
        return "enough" if (run.world.rank, run.step) == (1, 3) else None


def test_a_stop_that_one_rank_votes_for_is_applied_by_all_at_one_step(shard: Any, regression: Any) -> None:
    run = shard(regression, Stopper, train={"steps": 50})
    assert [(outcome.state, outcome.step) for outcome, _ in run.ranks] == [(run.outcome.state, 4)] * 2
    assert [(decision["decision"], decision["posted"]) for decision in run.decisions] == [("stop", 3)]


class Norms:
    """What hooks are given as the norm, and a wish to skip that hangs on it."""

    seen: list[Any]

    def __init__(self) -> None:
        Norms.seen = []

    @hookimpl
    def on_gradients_ready(self, model: nn.Module, grad_norm: torch.Tensor) -> None:
        Norms.seen.append((type(grad_norm).__name__, grad_norm.ndim, grad_norm.item()))

    @hookimpl
    def should_skip_update(self, run: Any, grad_norm: torch.Tensor) -> str | None:
        return "too steep" if run.step == 2 and bool(grad_norm > 0) else None

    @hookimpl(ranks="zero")
    def on_gradients_clipped(self, grad_norm: torch.Tensor) -> None:
        Norms.seen.append(("clipped", grad_norm.item()))


@pytest.mark.parametrize("train", [{}, {"clip_grad_norm": 0.1}], ids=["", "clipping"])
def test_hooks_get_the_norm_over_all_ranks_as_a_plain_scalar(
    training: Any, regression: Any, train: dict[str, Any]
) -> None:
    def norms(strategy: str) -> Any:
        tables = {"train": {"steps": 3, **train}, "parallel": {"strategy": strategy}}
        return training(regression, Norms, ranks=2, report=lambda: Norms.seen, **tables)

    sharded, replicated = norms("fsdp"), norms("ddp")
    ours, theirs = ([values for kind, *_, values in run.reports[0]] for run in (sharded, replicated))
    assert ours == pytest.approx(theirs, rel=1e-5)
    zero, one = sharded.reports
    assert [seen for seen in zero if seen[0] != "clipped"] == one
    assert {seen[:2] for seen in one} == {("Tensor", 0)}
    assert [decision["step"] for decision in sharded.decisions if decision["decision"] == "skip"] == [2]


def test_gradients_that_are_not_finite_on_one_rank_keep_all_from_stepping(training: Any, regression: Any) -> None:
    class Halved(regression):  # type: ignore[misc, valid-type]
        @hookimpl
        def training_step(self, model: nn.Module, batch: Any) -> Any:
            loss = super().training_step(model, batch)
            return loss * float("inf") if torch.distributed.get_rank() == 1 else loss

    train = {"steps": 2, "precision": "fp16", "nonfinite": "warn"}
    skipped = training(Halved, Keeper, ranks=2, report=Keeper.report, train=train, parallel=SHARDED)
    start = training(regression, Keeper, ranks=2, report=Keeper.report, train={"steps": 1}, parallel=SHARDED,
                     optimizer={"name": "sgd", "lr": 0.0})  # fmt: skip
    for report in skipped.reports:
        assert report["parameters"] == start.reports[0]["parameters"]


# --- models ---


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.norm(self.network(inputs))  # type: ignore[no-any-return]


class Deep(nn.Module):
    """Blocks between two layers that share their weight; the first one is frozen in part."""

    def __init__(self, *, tied: bool = True, frozen: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.last = nn.Linear(3, 3)
        self.head = nn.Linear(3, 1)
        if tied:
            self.last.weight = self.first.weight
        if frozen:
            self.first.bias.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.last(hidden))  # type: ignore[no-any-return]


def with_model(task: Any, make: Any) -> Any:
    class WithModel(task):  # type: ignore[misc]
        @hookimpl
        def build_model(self) -> nn.Module:
            return make()

    return WithModel


@pytest.mark.parametrize("wrap", [None, [], ["Block"], ["blocks.*", "head"], ["blocks.*.network"]], ids=str)
def test_deep_models_with_tied_frozen_and_running_parts(
    training: Any, regression: Any, shard: Any, wrap: list[str] | None
) -> None:
    task = with_model(regression, Deep)
    tables = {"train": {"steps": 4, "micro_batch_size": 2}, "optimizer": {"name": "adamw", "lr": 0.01}}
    sharded = shard(task, **tables, **({} if wrap is None else {"wrap": wrap}))
    replicated = training(task, Keeper, ranks=2, report=Keeper.report, **tables)
    expected = {name.removeprefix("module."): value for name, value in replicated.reports[0]["parameters"].items()}
    for series in ("train/loss", "eval/error"):
        assert sharded.series(series) == pytest.approx(replicated.series(series), rel=1e-4)
    first, second = sharded.reports
    assert first == second  # the running means, too: they are rank 0's
    assert first["buffers"] == {
        name.removeprefix("module."): pytest.approx(value, rel=1e-3, abs=1e-6)
        for name, value in replicated.reports[0]["buffers"].items()
    }
    assert "last.weight" not in expected
    for name, values in first["parameters"].items():
        assert values == pytest.approx(expected[name], rel=1e-3, abs=1e-5)


def test_a_parameter_without_a_dimension_cannot_be_cut(shard: Any, regression: Any) -> None:
    task = with_model(regression, lambda: nn.ParameterDict({"scale": nn.Parameter(torch.ones(()))}))
    run = shard(task, train={"steps": 1})
    message = "TaskError in parallelize_model: the parameters scale have no dimension"
    assert [message in error.message for error in run.ranks] == [True, True]


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (
            ["Blok"],
            "RecipeError in parallelize_model: recipe: parallel.wrap: 'Blok' fits no module by name or class",
        ),
        (["blocks"], "parallel.wrap: blocks is a ModuleList, which has no forward; name what it holds: 'blocks.*'"),
        (["first"], "parallel.wrap: first share parameters with modules outside"),
    ],
)
def test_wraps_that_cannot_be(shard: Any, regression: Any, wrap: list[str], message: str) -> None:
    run = shard(with_model(regression, Deep), train={"steps": 1}, wrap=wrap)
    assert [message in error.message for error in run.ranks] == [True, True]


class Frozen(nn.Module):
    """Nothing to train in the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1).requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [Frozen, nn.Identity])
def test_models_with_nothing_to_train_are_not_sharded(shard: Any, regression: Any, make: Any) -> None:
    class Task(with_model(regression, make)):  # type: ignore[misc]
        @hookimpl
        def build_optimizer(self) -> torch.optim.Optimizer:
            self.own = nn.Parameter(torch.zeros(1))
            return torch.optim.SGD([self.own], lr=0.1)

        @hookimpl
        def training_step(self, model: nn.Module, batch: Any) -> Any:
            return (model(batch[0]).mean() - self.own).square().mean()

        @hookimpl
        def evaluation_step(self, model: nn.Module, batch: Any) -> Mapping[str, Any]:
            return {"error": model(batch[0]).mean()}

    run = shard(Task, train={"steps": 2})
    assert [report["kinds"] - {"Parameter"} for report in run.reports] == [set()] * 2
