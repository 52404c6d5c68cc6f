"""The default optimizer and learning-rate scheduler: any of `torch.optim` by name, and the common schedules."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from trainrun.errors import Problem, RecipeError
from trainrun.recipe import suggest
from trainrun.worker import sharding
from trainrun.worker.schedule import TO_ZERO, Schedule


def optimizer_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Return every optimizer of `torch.optim` by its name in lower case."""
    found = (value for value in vars(torch.optim).values() if inspect.isclass(value))
    return {
        value.__name__.lower(): value
        for value in found
        if issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }


def make_optimizer(
    model: torch.nn.Module, name: str, settings: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> torch.optim.Optimizer:
    """Build the optimizer called `name` for all parameters to train.

    These are the parameters of `model` that require gradients. settings: keyword arguments of the class. groups: each
    holds `match`, glob patterns of parameter names, and the settings that differ for the parameters that match. The
    first group that matches a parameter has it.

    Raises RecipeError for unknown names, settings that the class does not take, and patterns that match nothing.
    """
    classes = optimizer_classes()
    kind = classes.get(name.lower().replace("-", "").replace("_", ""))
    if kind is None:
        guess = suggest(name.lower(), classes)
        raise _error("optimizer.name", f"torch.optim has no {name!r}", guess and f"did you mean {guess!r}?")
    known = inspect.signature(kind).parameters
    for table, place in [
        (settings, "optimizer"),
        *((group, f"optimizer.groups[{i}]") for i, group in enumerate(groups)),
    ]:
        for key in table:
            if key not in known and key != "match":
                guess = suggest(key, known)
                raise _error(
                    f"{place}.{key}", f"{kind.__name__} takes no {key!r}", guess and f"did you mean {guess!r}?"
                )
    if "foreach" in known and "fused" not in settings and sharding.shards(model):
        # Torch chooses its batched kernels by itself for plain tensors only; without them a step takes five times as
        # long, as each operation on a DTensor costs tens of microseconds.
        settings = {"foreach": True, **settings}
    try:
        return kind(_grouped(model, groups), **{key: _tupled(value) for key, value in settings.items()})
    except (TypeError, ValueError) as error:
        raise _error("optimizer", f"{kind.__name__} refused its settings: {error}", None) from error


def _grouped(model: torch.nn.Module, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    named = [(name, p) for name, p in unwrapped(model).named_parameters() if p.requires_grad]
    members: list[list[torch.nn.Parameter]] = [[] for _ in range(len(groups) + 1)]
    for name, parameter in named:
        place = next((i for i, group in enumerate(groups) if _matches(name, group)), len(groups))
        members[place].append(parameter)
    for i, group in enumerate(groups):
        if not members[i]:
            raise _error(
                f"optimizer.groups[{i}].match",
                f"{group['match']} matches no parameter that an earlier group has left",
                f"parameters are called like {', '.join(name for name, _ in named[:3])}",
            )
    tables: list[Mapping[str, Any]] = [*groups, {}]
    return [
        {"params": parameters, **{key: _tupled(value) for key, value in table.items() if key != "match"}}
        for parameters, table in zip(members, tables, strict=True)
        if parameters
    ]


def _tupled(value: Any) -> Any:
    """Return TOML's lists as the tuples that optimizers take, such as `betas`."""
    return tuple(value) if isinstance(value, list) else value


def _matches(name: str, group: Mapping[str, Any]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in group["match"])


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Return the user's own module, without DDP and `torch.compile`.

    Its parameters have the names that the user knows.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, torch.nn.Module) else model


def make_scheduler(
    optimizer: torch.optim.Optimizer,
    name: str,
    *,
    steps: int | None,
    warmup: int,
    min_lr: float,
    settings: Mapping[str, float],
) -> Schedule:
    """Build the schedule called `name` over `steps` updates.

    The first `warmup` of them rise in a line. steps: None if it cannot be known, which shapes that end at zero need.
    Raises RecipeError then. min_lr: no rate goes below it once warm. settings: what the shape itself takes (`gamma`,
    `step_size`, `power`).
    """
    if steps is None and name in TO_ZERO:
        raise _error(
            "scheduler.name",
            f"{name!r} needs the number of steps, which a loader without length hides",
            "set train.steps",
        )
    return Schedule(optimizer, name, steps=steps, warmup=warmup, min_lr=min_lr, settings=settings)


def _error(key: str, what: str, hint: str | None) -> RecipeError:
    return RecipeError([Problem(f"recipe: {key}", what, hint)])
