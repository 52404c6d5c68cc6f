"""A loss with a weight: its gradient is the mean over all units of an update, however the update is cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from trainrun.marker import hookimpl

IGNORED = -100
CUTS = [
    {"ranks": 1},
    {"ranks": 1, "micro": 2},
    {"ranks": 1, "micro": 4},
    {"ranks": 2},
    {"ranks": 2, "micro": 1},
    {"ranks": 2, "micro": 2},
    {"ranks": 2, "micro": 2, "strategy": "fsdp"},
    {"ranks": 2, "strategy": "fsdp"},
]


class Tokens:
    """Predict tokens, of which some are not to be counted: 1, 5, 0 of 6 in a sample, by its place in the data."""

    kept: ClassVar[tuple[int, ...]] = (1, 1, 1, 1, 6, 6, 6, 6)

    @hookimpl
    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 10))

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        generator = torch.Generator().manual_seed(3)
        samples = []
        for kept in self.kept if split == "train" else ():
            given, wanted = (torch.randint(10, (6,), generator=generator) for _ in range(2))
            wanted[kept:] = IGNORED
            samples.append((given, wanted))
        return samples or None

    @hookimpl
    def training_step(self, model: nn.Module, batch: Any) -> Mapping[str, Any]:
        given, wanted = batch
        loss = functional.cross_entropy(model(given.flatten()), wanted.flatten(), ignore_index=IGNORED)
        return {"loss": loss, "weight": (wanted != IGNORED).sum(), "twice": 2 * loss.detach()}


class Norms:
    """Keep the norm of the gradients of each update, and the parameters at the end."""

    norms: ClassVar[list[float]] = []
    sums: ClassVar[list[float]] = []

    @hookimpl
    def on_worker_start(self) -> None:
        self.norms.clear()
        self.sums.clear()

    @hookimpl
    def on_gradients_ready(self, grad_norm: torch.Tensor) -> None:
        self.norms.append(grad_norm.item())

    @hookimpl
    def on_train_end(self, run: Any) -> None:
        parameters = [getattr(one, "full_tensor", lambda one=one: one)() for one in run.module.parameters()]
        self.sums.append(sum(one.detach().abs().sum().item() for one in parameters))

    @classmethod
    def report(cls) -> tuple[list[float], list[float]]:
        return list(cls.norms), list(cls.sums)


def cut(
    training: Any, task: Any, *, ranks: int = 1, micro: int | None = None, strategy: str = "ddp", **more: Any
) -> Any:
    table = {"steps": 1, "batch_size": 8} | more.pop("train", {})
    if micro is not None:
        table["micro_batch_size"] = micro
    tables = {"data": {"shuffle": False}, "optimizer": {"name": "sgd", "lr": 1.0}, "parallel": {"strategy": strategy}}
    run = training(task, Norms, ranks=ranks, report=Norms.report, train=table, **tables | more)
    norms, sums = run.reports[0]
    losses = {name: list(run.series(f"train/{name}").values()) for name in ("loss", "twice")}
    return losses["loss"], norms, sums, losses["twice"]


@pytest.mark.parametrize("how", CUTS, ids=str)
def test_mean_over_tokens(training: Any, how: dict[str, Any]) -> None:
    losses, norms, sums, twice = cut(training, Tokens, **how)
    whole = cut(training, Tokens)
    assert losses == pytest.approx([2.47940], abs=5e-6)
    assert sums == pytest.approx([141.30704], abs=2e-5)
    assert losses == pytest.approx(whole[0], abs=1e-6)
    assert norms == pytest.approx(whole[1], abs=1e-6)
    assert twice == pytest.approx([2 * loss for loss in losses], abs=1e-6)


@pytest.mark.parametrize("how", CUTS[3:], ids=str)
def test_rank_without_a_token(training: Any, how: dict[str, Any]) -> None:
    # The mean over no token is nan, on the second rank only: it must leave no trace.
    task = type("Task", (Tokens,), {"kept": (6, 2, 3, 1, 0, 0, 0, 0)})
    losses, norms, sums, _ = cut(training, task, **how)
    whole = cut(training, task)
    assert [losses, norms] == [pytest.approx(one, abs=1e-6) for one in whole[:2]]
    assert sums == pytest.approx(whole[2], abs=2e-5)
    assert all(map(torch.isfinite, map(torch.tensor, [*losses, *norms, *sums])))


@pytest.mark.parametrize("ranks", [1, 2])
def test_update_without_a_token_changes_nothing(training: Any, ranks: int) -> None:
    task = type("Task", (Tokens,), {"kept": (0,) * 8})
    for micro in (None, 2):
        losses, norms, sums, twice = cut(training, task, ranks=ranks, micro=micro)
        assert losses == twice == []  # the mean over nothing is no reason to fail
        assert norms == [0.0]
        assert sums == [pytest.approx(142.21, abs=2)]


@pytest.mark.parametrize("how", [{"ranks": 1, "micro": 2}, {"ranks": 2, "micro": 2}, {"ranks": 2}], ids=str)
def test_precision_fp16_with_a_scaler(training: Any, how: dict[str, Any]) -> None:
    found = cut(training, Tokens, **how, train={"precision": "fp16", "steps": 3})
    whole = cut(training, Tokens, train={"precision": "fp16", "steps": 3})
    assert found[0] == pytest.approx(whole[0], abs=2e-3)
    assert found[1] == pytest.approx(whole[1], rel=5e-3)


@pytest.mark.parametrize("weight", [3, 3.0, torch.tensor(3), torch.tensor([3.0]), torch.tensor(3, dtype=torch.uint8)])
def test_equal_weights_are_the_plain_mean(training: Any, regression: Any, keeper: Any, weight: Any) -> None:
    class Weighted(regression):
        @hookimpl
        def training_step(self, model: nn.Module, batch: Any) -> Any:
            return {"loss": super().training_step(model, batch), "weight": weight}

    table = {"train": {"steps": 2, "batch_size": 8, "micro_batch_size": 4}}
    plain = training(regression, keeper, report=keeper.report, **table).reports
    found = training(Weighted, keeper, report=keeper.report, **table).reports
    for mine, theirs in zip(found[0], plain[0], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-1, "the weight -1"),
        (float("nan"), "the weight nan"),
        (float("inf"), "the weight inf"),
        ("many", "the weight 'many'"),
        (torch.ones(2), r"a weight of shape \(2,\)"),
        (1j, "the weight 1j"),
    ],
)
def test_wrong_weights_are_refused(training: Any, regression: Any, weight: Any, message: str) -> None:
    class Weighted(regression):
        @hookimpl
        def training_step(self, model: nn.Module, batch: Any) -> Any:
            return {"loss": super().training_step(model, batch), "weight": weight}

    with pytest.raises(Exception, match=message):
        training(Weighted, train={"steps": 1})


def test_weight_must_come_always_or_never(training: Any, regression: Any) -> None:
    class Weighted(regression):
        @hookimpl
        def training_step(self, run: Any, model: nn.Module, batch: Any) -> Any:
            loss = super().training_step(model, batch)
            return {"loss": loss, "weight": 2} if run.step != 2 else {"loss": loss}

    with pytest.raises(Exception, match="return it always"):
        training(Weighted, train={"steps": 3})


def test_weight_must_come_on_all_ranks(training: Any, regression: Any) -> None:
    class Weighted(regression):
        @hookimpl
        def training_step(self, run: Any, model: nn.Module, batch: Any) -> Any:
            loss = super().training_step(model, batch)
            return {"loss": loss, "weight": 2} if run.world.rank else loss

    run = training(Weighted, ranks=2, train={"steps": 3})
    assert all("return it always" in rank.message for rank in run.ranks)


# --- custom loaders ---


class Loaded(Tokens):
    """Rows of a custom loader, in batches of sizes that differ; the loss is the mean over rows."""

    sizes: ClassVar[tuple[int, ...]] = (4, 4, 1)

    @hookimpl
    def build_model(self) -> nn.Module:
        torch.manual_seed(5)
        return nn.Linear(4, 1)

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        generator = torch.Generator().manual_seed(3)
        rows = [(torch.randn(4, generator=generator), torch.randn(1, generator=generator)) for _ in range(9)]
        return rows if split == "train" else None

    @hookimpl
    def training_step(self, model: nn.Module, batch: Any) -> Any:
        return {"loss": (model(batch[0]) - batch[1]).square().mean(), "twice": torch.zeros(())}


def own_batches(sizes: tuple[tuple[int, ...], ...], *, sized: bool = True) -> Any:
    """A task whose rank r gets batches of sizes[r] rows: all rows in order, rank by rank."""

    class Batched(Loaded):
        @hookimpl
        def build_dataloader(self, run: Any, dataset: Any) -> Any:
            if dataset is None:
                return None
            first = sum(map(sum, sizes[: run.world.rank]))
            batches = []
            for size in sizes[run.world.rank]:
                rows = dataset[first : first + size]
                batches.append([torch.stack(column) for column in zip(*rows, strict=True)])
                first += size
            return batches if sized else Unsized(batches)

    return Batched


class Unsized:
    """Batches without a length."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("sizes", [((4, 4, 1),), ((2, 7),), ((4, 3), (2,)), ((1,), (8,)), ((3, 1, 1), (4,))], ids=str)
def test_batches_of_a_custom_loader_count_by_their_size(training: Any, sizes: Any, sized: bool) -> None:
    table = {"epochs": 1, "batch_size": 12, "micro_batch_size": 12 // (len(sizes) * max(map(len, sizes)))}
    tables = {"train": table, "data": {"shuffle": False}, "evaluate": {"splits": []}}
    run = training(own_batches(sizes, sized=sized), Norms, ranks=len(sizes), report=Norms.report, **tables)
    assert run.reports[0][0] == pytest.approx([0.921882], abs=1e-6)
    whole = training(Loaded, Norms, report=Norms.report, train={"epochs": 1, "batch_size": 12}, data={"shuffle": False})
    assert whole.reports[0][0] == pytest.approx([0.921882], abs=1e-6)
    assert list(run.series("train/loss").values()) == pytest.approx(list(whole.series("train/loss").values()), abs=1e-6)


def test_last_batch_of_torch_loader_counts_by_its_size(training: Any) -> None:
    class Stock(Loaded):
        @hookimpl
        def build_dataloader(self, dataset: Any) -> Any:
            return dataset and DataLoader(dataset, batch_size=4)

    table = {"epochs": 1, "batch_size": 12, "micro_batch_size": 4}
    run = training(Stock, Norms, report=Norms.report, train=table, evaluate={"splits": []})
    assert run.reports[0][0] == pytest.approx([0.921882], abs=1e-6)


def test_samples_seen_of_a_custom_loader_are_those_it_gave(training: Any) -> None:
    seen = []

    class Watch:
        @hookimpl
        def on_update_end(self, run: Any) -> None:
            seen.append(run.samples_seen)

    training(own_batches(((4, 4, 1),)), Watch, train={"epochs": 2, "batch_size": 4}, evaluate={"splits": []})
    assert seen == [4, 8, 9, 13, 17, 18]


class Opaque:
    """A batch that does not tell how many samples it holds."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows


@pytest.mark.parametrize("weighted", [False, True])
def test_unknown_sizes_are_told_once_unless_losses_have_weights(training: Any, weighted: bool) -> None:
    class Hidden(own_batches(((4, 4, 1),))):
        @hookimpl
        def build_dataloader(self, run: Any, dataset: Any) -> Any:
            batches = super().build_dataloader(run, dataset)
            return batches and [Opaque(batch) for batch in batches]

        @hookimpl
        def training_step(self, model: nn.Module, batch: Any) -> Any:
            loss = (model(batch.rows[0]) - batch.rows[1]).square().mean()
            return {"loss": loss, "weight": len(batch.rows[0])} if weighted else loss

    run = training(Hidden, train={"epochs": 2, "batch_size": 12, "micro_batch_size": 4}, evaluate={"splits": []})
    assert len(run.warnings) == (not weighted)
    assert all('{"loss": mean, "weight": units}' in warning for warning in run.warnings)


# --- any cut of any data ---


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kept=st.lists(st.integers(0, 6), min_size=2, max_size=9),
    batch=st.integers(1, 9),
    micro=st.integers(1, 5),
    ranks=st.sampled_from([1, 1, 1, 2]),
    weighted=st.booleans(),
)
def test_gradients_are_those_of_one_process_on_the_whole_batch(
    training: Any, kept: list[int], batch: int, micro: int, ranks: int, weighted: bool
) -> None:
    class Task(Tokens):
        @hookimpl
        def training_step(self, model: nn.Module, batch: Any) -> Any:
            found = super().training_step(model, batch)
            if weighted:
                return found
            scores = model(batch[0])  # a mean over samples
            return {"loss": scores.square().mean(), "twice": found["twice"].nan_to_num()}

    Task.kept = tuple(kept)
    share = max(1, batch // (ranks * micro))
    size = share * ranks * micro
    table = {"epochs": 1, "batch_size": size, "nonfinite": "warn"}
    more = {"evaluate": {"splits": []}, "optimizer": {"name": "sgd", "lr": 0.1}}
    whole = cut_epoch(training, Task, ranks=1, table=table, **more)
    found = cut_epoch(training, Task, ranks=ranks, table=table | {"micro_batch_size": micro}, **more)
    assert found == pytest.approx(whole, abs=1e-6)


def cut_epoch(training: Any, task: Any, *, ranks: int, table: dict[str, Any], **more: Any) -> list[float]:
    run = training(task, Norms, ranks=ranks, report=Norms.report, train=table, data={"shuffle": False}, **more)
    return list(run.reports[0][0])
