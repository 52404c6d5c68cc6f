"""The built-in implementations of the provider hooks.

They are used if neither the task nor a plugin implements the hook.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset

from trainrun.errors import TaskError
from trainrun.marker import hookimpl
from trainrun.recipe import Recipe
from trainrun.worker import optim, sharding
from trainrun.worker.data import Collate, EvaluationSampler, Plan, Reseeded, SampledLoader, Share, TrainSampler, giving
from trainrun.worker.moving import move
from trainrun.worker.run import Run
from trainrun.worker.world import World


class Defaults:
    """Models, optimizers, loaders and steps by the recipe's tables."""

    @hookimpl
    def parallelize_model(self, run: Run, model: torch.nn.Module, world: World) -> torch.nn.Module:
        table = run.recipe.parallel
        trains = any(parameter.requires_grad for parameter in model.parameters())
        spread = table.strategy if world.size > 1 and trains else "none"
        if spread == "fsdp":
            model = sharding.shard(model, run.device, world, table.wrap)
        if run.recipe.train.compile:
            model = torch.compile(model)  # type: ignore[assignment]
        if spread != "ddp":
            return model
        return DistributedDataParallel(
            model,
            device_ids=[run.device.index] if run.device.type == "cuda" else None,
            find_unused_parameters=table.find_unused_parameters,
        )

    @hookimpl
    def build_optimizer(self, model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        table = recipe.optimizer
        groups = [{"match": group.match, **group.keywords} for group in table.groups]
        return optim.make_optimizer(model, table.name, table.keywords, groups)

    @hookimpl
    def build_scheduler(self, run: Run, optimizer: torch.optim.Optimizer, recipe: Recipe) -> Any:
        table = recipe.scheduler
        if table.name == "constant" and not table.warmup:
            return None
        given = {"power": table.power, "gamma": table.gamma, "step_size": table.step_size}
        settings = {key: float(value) for key, value in given.items() if value is not None}
        return optim.make_scheduler(
            optimizer, table.name, steps=run.total_steps, warmup=table.warmup, min_lr=table.min_lr, settings=settings
        )

    @hookimpl
    def build_dataloader(self, run: Run, dataset: Any, split: str, world: World) -> Iterable[Any] | None:
        if dataset is None:
            return None
        indexed = all(hasattr(dataset, name) for name in ("__getitem__", "__len__"))
        if isinstance(dataset, IterableDataset) or not indexed:
            return _stream(run, dataset, split, world)
        sampler = train_sampler(run.recipe, len(dataset), world) if split == "train" else _evaluation(run, dataset)
        samples = Reseeded(dataset) if run.recipe.data.workers else dataset
        loading = {"collate_fn": Collate(split, dataset), **_loading(run)}
        return SampledLoader(DataLoader(samples, batch_sampler=sampler, **loading), sampler)

    @hookimpl
    def move_batch(self, batch: Any, device: torch.device) -> Any:
        return batch if device.type == "cpu" else move(batch, device)

    @hookimpl
    def backward(self, loss: torch.Tensor, scaler: torch.amp.GradScaler | None) -> bool:
        (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        return True

    @hookimpl
    def clip_gradients(self, model: torch.nn.Module, max_norm: float, grad_norm: torch.Tensor | None) -> torch.Tensor:
        if grad_norm is None:
            return sharding.whole(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm))
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, grad_norm)
        return grad_norm

    @hookimpl
    def optimizer_step(self, run: Run, optimizer: torch.optim.Optimizer) -> bool:
        scaler = run.scaler
        if scaler is None:
            optimizer.step()
            return True
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        return scaler.get_scale() >= before  # the scaler backs off exactly when it found no finite gradients


def micro_batch_size(recipe: Recipe, world: World) -> int:
    """Return the samples of one forward and backward on one worker."""
    return recipe.train.micro_batch_size or max(1, recipe.train.batch_size // world.size)


def train_sampler(recipe: Recipe, length: int, world: World) -> TrainSampler:
    """Return the sampler of the training data by the recipe's tables."""
    return TrainSampler(
        length,
        recipe.train.batch_size,
        micro_batch_size(recipe, world),
        world,
        seed=recipe.run.seed,
        shuffle=recipe.data.shuffle,
        drop_last=recipe.data.drop_last,
    )


def micro_batches(recipe: Recipe, world: World) -> int:
    """Return the number of micro-batches of one update on one worker."""
    return recipe.train.batch_size // (world.size * micro_batch_size(recipe, world)) or 1


def _stream(run: Run, dataset: Any, split: str, world: World) -> DataLoader[Any]:
    """Return the loader of an iterable dataset.

    It yields what the dataset says: samples or batches, all of them or a share.
    """
    recipe = run.recipe
    if not hasattr(dataset, "__iter__"):
        raise TaskError(
            f"build_dataset returned a {type(dataset).__name__} for split {split!r}, which has neither `__len__` and"
            f" `__getitem__` nor `__iter__`; return a dataset that has{run.hooks.whose('build_dataset')}"
        )
    sharded, batched = giving.said(dataset), giving.said(dataset, name="batched")
    train = split == "train"
    size = micro_batch_size(recipe, world) if train else evaluation_size(recipe, world)
    plan = Plan(
        Share(world.rank, world.size, size, micro_batches(recipe, world) if train else 1),
        deals=sharded is False,
        batched=batched,
        drop_last=train and recipe.data.drop_last,
        seed=recipe.run.seed,
        where=f"split {split!r}",
    )
    return DataLoader(giving.items(dataset, plan, Collate(split, dataset)), batch_size=None, **_loading(run))


def evaluation_size(recipe: Recipe, world: World) -> int:
    """Return the samples of a batch that one worker evaluates."""
    return recipe.evaluate.batch_size or micro_batch_size(recipe, world)


def _evaluation(run: Run, dataset: Any) -> EvaluationSampler:
    return EvaluationSampler(len(dataset), evaluation_size(run.recipe, run.world), run.world)


def _loading(run: Run) -> dict[str, Any]:
    table, device = run.recipe.data, run.device
    pin = device.type == "cuda" if table.pin_memory == "auto" else table.pin_memory
    return {
        "num_workers": table.workers,
        "pin_memory": pin,
        # A generator of its own: a DataLoader's iterator draws a number from the global one each time it is made.
        "generator": torch.Generator().manual_seed(run.recipe.run.seed),
    }
