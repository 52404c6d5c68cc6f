"""Ranks that would train different models: they are brought together, or the run fails in that step and says why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from trainrun.marker import hookimpl
from trainrun.testing.ranks import RankError
from trainrun.worker.loss_graph import depends_on


class Thawing:
    """The first layer is frozen when the model is built; `change` is called at the start of each step."""

    change: ClassVar[Callable[[Any, int], None]]
    sums: ClassVar[list[float]] = []

    @hookimpl
    def on_worker_start(self) -> None:
        self.sums.clear()

    @hookimpl
    def build_model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        model[0].requires_grad_(False)
        return model

    @hookimpl
    def build_optimizer(self, run: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(run.module.parameters(), lr=1e-2)

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        generator = torch.Generator().manual_seed(0)
        rows = [(torch.randn(4, generator=generator), torch.randn(1, generator=generator)) for _ in range(64)]
        return rows if split == "train" else None

    @hookimpl(mutates=True)
    def on_step_start(self, run: Any, step: int) -> None:
        type(self).change(run, step)

    @hookimpl
    def training_step(self, model: nn.Module, batch: Any) -> Any:
        return (model(batch[0]) - batch[1]).square().mean()

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        weight = run.module[0].weight.detach()
        self.sums.append(round(getattr(weight, "full_tensor", lambda: weight)().abs().sum().item(), 5))

    @classmethod
    def report(cls) -> list[float]:
        return list(cls.sums)


def thaw(run: Any, step: int) -> None:
    if step >= 5:
        run.module[0].requires_grad_(True)


def task(change: Callable[[Any, int], None] = lambda run, step: None, **more: Any) -> Any:
    return type("Task", (Thawing,), {"change": staticmethod(change), "sums": [], **more})


TABLES = {"train": {"steps": 10, "batch_size": 8}, "evaluate": {"splits": []}}


def failures(run: Any) -> list[str]:
    """The messages of the ranks that failed, the first to fail first: others may fail because it is gone."""
    errors = [rank for rank in run.ranks if isinstance(rank, RankError)]
    return [error.message for error in sorted(errors, key=lambda error: error.at)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_thawed_layer_is_trained_by_all_ranks_together(training: Any, strategy: str) -> None:
    one = task(thaw)
    alone = training(one, report=one.report, **TABLES).reports[0]
    assert alone[-1] == pytest.approx(7.28082, abs=2e-5)
    both = task(thaw)
    parallel = {"strategy": strategy, "wrap": []} if strategy == "fsdp" else {}
    run = training(both, ranks=2, report=both.report, parallel=parallel, **TABLES)
    assert run.reports[0] == pytest.approx(alone, abs=2e-5)
    assert run.reports[1] == run.reports[0]


def test_frozen_layer_is_left_out_of_the_reduction(training: Any) -> None:
    def freeze(run: Any, step: int) -> None:
        run.module[0].requires_grad_(step < 4)

    one, both = task(freeze), task(freeze)
    alone = training(one, report=one.report, **TABLES).reports[0]
    assert training(both, ranks=2, report=both.report, **TABLES).reports == [pytest.approx(alone, abs=2e-5)] * 2


def test_model_frozen_as_a_whole_cannot_be_thawed(training: Any) -> None:
    def build(self: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).requires_grad_(False)

    def thaw_at_once(run: Any, step: int) -> None:
        run.module.requires_grad_(True)

    messages = failures(training(task(thaw_at_once, build_model=hookimpl(build)), ranks=2, **TABLES))
    assert "no parameter required a gradient when the model was made parallel" in messages[0]


def test_settings_and_communication_hooks_outlive_a_change(training: Any) -> None:
    seen = []

    class Compressed:
        @hookimpl
        def on_train_start(self, run: Any) -> None:
            run.model.register_comm_hook(None, allreduce_hook)

        @hookimpl
        def on_train_end(self, run: Any) -> None:
            model = run.model
            assert isinstance(model, DistributedDataParallel)
            seen.append((model.find_unused_parameters, [hook.__name__ for hook, _ in model._comm_hooks]))

    run = training(
        task(thaw), Compressed, ranks=2, report=lambda: seen, parallel={"find_unused_parameters": True}, **TABLES
    )
    assert run.reports == [[(True, ["allreduce_hook"])]] * 2


def test_change_on_one_rank_is_told_before_the_run_hangs(training: Any) -> None:
    def on_one(run: Any, step: int) -> None:
        if step >= 5 and run.world.rank == 1:
            run.module[0].requires_grad_(True)

    run = training(task(on_one), ranks=2, launch={"workers": 2, "timeout": 4}, **TABLES)
    assert "rank 1: 0.bias, 0.weight began to require gradients" in failures(run)[0]


def test_ranks_that_change_different_parameters_are_told_so(training: Any) -> None:
    def unlike(run: Any, step: int) -> None:
        if step >= 5:
            [run.module[0].weight, run.module[0].bias][run.world.rank].requires_grad_(True)

    messages = failures(training(task(unlike), ranks=2, **TABLES))
    assert "began to require gradients, and other parameters did on rank" in messages[0]


def test_change_within_a_step_is_an_error_in_that_step(training: Any) -> None:
    def late(self: Any, run: Any, model: nn.Module, batch: Any) -> Any:
        if run.step == 3:
            run.module[0].requires_grad_(True)
        return (model(batch[0]) - batch[1]).square().mean()

    messages = failures(training(task(training_step=hookimpl(late)), ranks=2, **TABLES))
    assert messages
    assert "step 3" in messages[0]
    assert "requires_grad of 0.weight, 0.bias was changed" in messages[0]


# --- parameters that come into the model ---


def put_in(where: str, *, trained: bool = True) -> Any:
    """A task that adds adapters, or replaces the head, before a step; ranks draw unlike values for them."""

    def change(run: Any, step: int) -> None:
        if step != 3:
            return
        torch.manual_seed(run.world.rank)
        new = nn.Linear(8, 1)
        if where == "head":
            run.module[2] = new
        else:
            run.module[2].adapter = new
            run.module[2].register_forward_hook(lambda head, given, found: found + head.adapter(given[0]))
        if trained:
            run.optimizer.add_param_group({"params": list(new.parameters())})

    def end(self: Any, run: Any) -> None:
        self.sums.append(round(sum(one.detach().abs().sum().item() for one in run.module.parameters()), 5))

    return task(change, on_step_end=hookimpl(end))


@pytest.mark.parametrize("where", ["head", "adapter"])
def test_parameters_that_come_into_the_model_are_trained_by_all_ranks_together(training: Any, where: str) -> None:
    one, both = put_in(where), put_in(where)
    alone = training(one, report=one.report, **TABLES).reports[0]
    run = training(both, ranks=2, report=both.report, parallel={"check_replicas": 1}, **TABLES)
    assert run.reports == [pytest.approx(alone, abs=5e-5)] * 2


@pytest.mark.parametrize("where", ["head", "adapter"])
def test_parameters_that_come_into_the_model_without_a_group_are_told(training: Any, where: str) -> None:
    one = put_in(where, trained=False)
    (warning,) = training(one, **TABLES).warnings
    assert "in no group of the optimizer, so they are never updated: 2." in warning


def test_parameters_that_come_into_a_sharded_model_are_an_error(training: Any) -> None:
    def build(self: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def change(run: Any, step: int) -> None:
        if step == 3:
            run.module[2] = nn.Linear(8, 1)
            run.optimizer.add_param_group({"params": list(run.module[2].parameters())})

    own = task(change, build_model=hookimpl(build))
    messages = failures(training(own, ranks=2, parallel={"strategy": "fsdp", "wrap": []}, **TABLES))
    assert "2.bias, 2.weight came into the model after it was sharded" in messages[0]


# --- losses ---


def with_step(step: Callable[..., Any]) -> Any:
    return task(training_step=hookimpl(step))


def leaf(self: Any, run: Any, model: nn.Module, batch: Any) -> Any:
    loss = (model(batch[0]) - batch[1]).square().mean()
    return torch.zeros((), requires_grad=True) if run.step == 3 and run.world.rank == run.world.size - 1 else loss


def elsewhere(self: Any, run: Any, model: nn.Module, batch: Any) -> Any:
    loss = (model(batch[0]) - batch[1]).square().mean()
    return torch.ones(3, requires_grad=True).square().sum() if run.step == 3 else loss


def detached(self: Any, run: Any, model: nn.Module, batch: Any) -> Any:
    loss = (model(batch[0]) - batch[1]).square().mean()
    return loss.detach() if run.step == 3 else loss


def without_grad(self: Any, run: Any, model: nn.Module, batch: Any) -> Any:
    with torch.set_grad_enabled(run.step != 3):
        return (model(batch[0]) - batch[1]).square().mean()


def of_a_copy(self: Any, run: Any, model: nn.Module, batch: Any) -> Any:
    called = model if run.step != 3 else copy.deepcopy(run.module)
    return (called(batch[0]) - batch[1]).square().mean()


@pytest.mark.parametrize("step", [leaf, elsewhere, detached, without_grad, of_a_copy])
@pytest.mark.parametrize("ranks", [1, 2])
def test_loss_that_does_not_come_from_the_model(training: Any, step: Any, ranks: int) -> None:
    if ranks == 1:
        with pytest.raises(Exception, match=r"step 3, rank 0: the loss .* does not come from the model"):
            training(with_step(step), **TABLES)
    else:
        messages = failures(training(with_step(step), ranks=2, **TABLES))
        assert messages
        assert "step 3, rank" in messages[0]
        assert "does not come from the model" in messages[0]


def test_loss_of_reentrant_checkpointing_counts_as_the_model_s() -> None:
    layer = nn.Linear(3, 1)
    given = torch.randn(2, 3, requires_grad=True)
    loss = torch.utils.checkpoint.checkpoint(layer, given, use_reentrant=True).sum()
    assert depends_on(loss, frozenset(map(id, layer.parameters())))


def test_loss_that_is_a_parameter_comes_from_the_model() -> None:
    parameter = nn.Parameter(torch.ones(()))
    assert depends_on(parameter, {id(parameter)})
    assert not depends_on(nn.Parameter(torch.ones(())), {id(parameter)})


def test_parameter_of_another_model_counts_only_where_fsdp_replaces_parameters() -> None:
    model = nn.Linear(3, 1)
    loss = nn.Linear(3, 1)(torch.ones(2, 3)).sum()
    assert not depends_on(loss, frozenset(map(id, model.parameters())))
    assert depends_on(loss, frozenset(map(id, model.parameters())), sharded=True)


def test_task_with_a_backward_of_its_own_may_return_any_loss(training: Any) -> None:
    def backward(self: Any, run: Any) -> bool:
        run.model(torch.ones(1, 4)).sum().backward()
        return True

    own = task(training_step=hookimpl(lambda self: torch.zeros(())), backward=hookimpl(backward), report=Thawing.report)
    assert training(own, **TABLES).outcome.state == "finished"


def test_module_called_instead_of_the_model(training: Any) -> None:
    def around(self: Any, run: Any, batch: Any) -> Any:
        return (run.module(batch[0]) - batch[1]).square().mean()

    messages = failures(training(with_step(around), ranks=2, **TABLES))
    assert messages
    assert "step 1, rank" in messages[0]
    assert "did not call the model that it was given" in messages[0]
    assert training(with_step(around), **TABLES).outcome.state == "finished"  # alone it does no harm


# --- parameters that are not used ---


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, given: torch.Tensor, spare: bool) -> torch.Tensor:
        return self.used(given) + (self.spare(given) if spare else 0)


def branching(spare: Callable[[Any], bool]) -> Any:
    def step(self: Any, run: Any, model: nn.Module, batch: Any) -> Any:
        return (model(batch[0], spare(run)) - batch[1]).square().mean()

    built = hookimpl(lambda self: Branches())
    more = {"training_step": hookimpl(step), "on_step_end": hookimpl(lambda self: None), "build_model": built}
    return task(**more)


@pytest.mark.parametrize(
    "spare",
    [lambda run: False, lambda run: run.step != 10, lambda run: run.world.rank == 0],
    ids=["never", "not in the last step", "on one rank"],
)
def test_parameter_that_is_not_used_is_named(training: Any, spare: Any) -> None:
    messages = failures(training(branching(spare), ranks=2, **TABLES))
    assert messages
    assert "spare.weight, spare.bias got no gradient" in messages[0]
    assert "parallel.find_unused_parameters = true" in messages[0]


def test_advice_of_torch_is_followed_by_the_key(training: Any) -> None:
    # With a backward of its own, a task may do what it likes until torch itself finds that a reduction has no end.
    def backward(self: Any, loss: torch.Tensor) -> bool:
        loss.backward()
        return True

    own = type("Task", (branching(lambda run: False),), {"backward": hookimpl(backward)})
    assert "; in the recipe: parallel.find_unused_parameters = true" in failures(training(own, ranks=2, **TABLES))[0]


def test_parameters_that_are_not_used_are_found_if_the_recipe_says_so(training: Any, keeper: Any) -> None:
    table = {"find_unused_parameters": True}
    run = training(
        branching(lambda run: run.world.rank == 0), keeper, ranks=2, report=keeper.report, parallel=table, **TABLES
    )
    assert run.reports[0] == run.reports[1]


# --- parameters that no optimizer has ---


def test_parameters_without_a_group_are_told_when_they_begin_to_need_one(training: Any) -> None:
    def build(self: Any, run: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([one for one in run.module.parameters() if one.requires_grad], lr=0.1)

    run = training(task(thaw, build_optimizer=hookimpl(build)), **TABLES)
    assert len(run.warnings) == 1
    assert "in no group of the optimizer, so they are never updated: 0.weight, 0.bias" in run.warnings[0]
    at_start = training(
        task(build_optimizer=hookimpl(lambda self, run: torch.optim.SGD([run.module[2].bias]))), **TABLES
    )
    assert ["never updated: 2.weight;" in one for one in at_start.warnings] == [True]


class Outside:
    """The loss has a scale that the optimizer trains and the model does not hold."""

    @hookimpl
    def on_worker_start(self) -> None:
        self.scale = nn.Parameter(torch.ones(()))

    @hookimpl
    def build_optimizer(self, run: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([*run.module.parameters(), self.scale], lr=0.1)

    @hookimpl
    def training_step(self, model: nn.Module, batch: Any) -> Any:
        return (self.scale * model(batch[0]) - batch[1]).square().mean()


@pytest.mark.parametrize(("ranks", "strategy", "told"), [(1, "ddp", 0), (2, "ddp", 1), (2, "fsdp", 1), (2, "none", 0)])
def test_parameters_that_the_model_does_not_hold_are_told(training: Any, ranks: int, strategy: str, told: int) -> None:
    scaled = type("Scaled", (Outside, Thawing), {"sums": [], "on_step_start": None})
    parallel = {"strategy": strategy} | ({"wrap": []} if strategy == "fsdp" else {})
    run = training(scaled, ranks=ranks, report=lambda: None, parallel=parallel, **TABLES)
    assert run.reports == [None] * ranks
    assert sum("trains parameters that the model does not hold" in one for one in run.warnings) == told


# --- ranks that hold different values ---


class Drift:
    """From step 3 on, rank 1 changes one element of a parameter by its last bit."""

    @hookimpl(mutates=True)
    def on_step_end(self, run: Any, step: int) -> None:
        if step >= 3 and run.world.rank == 1:
            with torch.no_grad():
                run.module[2].weight[0, 0] = torch.nextafter(run.module[2].weight[0, 0], torch.tensor(9.0))


@pytest.mark.parametrize(
    ("parallel", "checkpoint", "found"),
    [
        ({}, {"every": 4}, "step 4"),
        ({}, {"at_end": True}, "step 10"),
        ({"check_replicas": 3}, {"every": 100}, "step 3"),
        ({"check_replicas": 5}, {"every": 4}, "step 4"),
        ({"check_replicas": "never"}, {"every": 4}, None),
    ],
)
def test_replicas_that_differ(training: Any, parallel: Any, checkpoint: Any, found: str | None) -> None:
    tables = {"parallel": parallel, "checkpoint": {"at_end": False, **checkpoint}}
    run = training(task(), Drift, ranks=2, **tables, **TABLES)
    messages = failures(run)
    if found is None:
        assert messages == []
        return
    assert len(messages) == 2
    assert all(one.startswith(f"{found}: the ranks hold different values of 2.weight;") for one in messages)


def test_replicas_of_any_type_are_compared_by_their_bits() -> None:
    from trainrun.worker.replicas import Replicas
    from trainrun.worker.world import World

    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.float8_e4m3fn):
        model = nn.Module()
        model.weight = nn.Parameter(torch.ones(3).to(dtype), requires_grad=False)
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
        replicas = Replicas(model, optimizer, World(size=2), wait=1, warn=lambda warning: None)
        assert replicas.differences(lambda mine: [mine, mine]) == []
        assert replicas.differences(lambda mine: [mine, mine + torch.tensor([1, 0])]) == ["weight"]
