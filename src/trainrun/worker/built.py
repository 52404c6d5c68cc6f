"""The settings that optimizer and scheduler were built with.

A resume compares them with the recipe, to find what has changed since.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, MultiplicativeLR

from trainrun.errors import TaskError
from trainrun.worker.schedule import Schedule

Settings = dict[str, Any]


class Built:
    """The settings of each parameter group, and the state of the scheduler, as they were built or added.

    groups: before the scheduler was built. scheduled: after that, or when the group was first used. scheduler: its
    state, None if there is none. steps: the number of steps that was planned. trains: the parameters that required
    gradients.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.groups = list(settings(optimizer))
        self.scheduled: list[Settings] = []
        self.scheduler: Any = None
        self.kinds: list[str] = []
        self.steps: int | None = None
        self.trains: list[str] = []
        self.first = len(self.groups)

    @property
    def count(self) -> int:
        """The number of known groups; `add_param_group` adds more."""
        return len(self.groups)

    def complete(
        self, optimizer: torch.optim.Optimizer, scheduler: Any, steps: int | None, model: torch.nn.Module
    ) -> None:
        """Record the rest, once the scheduler is built."""
        self.scheduled = list(settings(optimizer))
        self.scheduler = None if scheduler is None else copied(scheduler.state_dict())
        self.kinds = [class_name(one) for one in schedulers(scheduler)]
        self.steps = steps
        self.trains = trainable(model)

    def notice(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Record groups that were added since.

        They take part in the schedule from now on.
        """
        if len(optimizer.param_groups) == self.count:
            return
        self.groups += list(settings(optimizer))[self.count :]
        for one in schedulers(scheduler):
            join(one, optimizer)
        new = zip(list(settings(optimizer))[len(self.scheduled) :], self.groups[len(self.scheduled) :], strict=True)
        self.scheduled += [{**late, "lr": early["lr"]} for late, early in new]  # not the current position of it
        if scheduler is not None:
            self.scheduler = _extended(self.scheduler, copied(scheduler.state_dict()))

    def to_state(self) -> dict[str, Any]:
        """Return plain values and small tensors for a checkpoint."""
        return {
            "groups": self.groups,
            "scheduled": self.scheduled,
            "scheduler": self.scheduler,
            "kinds": self.kinds,
            "steps": self.steps,
            "trains": self.trains,
        }


def settings(optimizer: torch.optim.Optimizer) -> Iterator[Settings]:
    """Yield a copy of each group's settings."""
    for group in optimizer.param_groups:
        yield {key: copied(value) for key, value in group.items() if key not in ("params", "param_names")}


def copied(value: Any) -> Any:
    """Copy plain values and tensors.

    Any other object is kept, for the checkpoint to refuse.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return filled(value, {key: copied(item) for key, item in value.items()})
    return type(value)(map(copied, value)) if type(value) in (list, tuple) else value


def filled(like: dict[Any, Any], items: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a dict of the type of `like` that holds `items`.

    If `like` is a `Counter`, the result is one too.
    """
    found = copy.copy(like)
    found.clear()
    for key, item in items.items():
        found[key] = item
    return found


def trainable(model: torch.nn.Module) -> list[str]:
    """Return the names of the parameters that require gradients. model: out of its wrappers."""
    return [name.replace("_orig_mod.", "") for name, one in model.named_parameters() if one.requires_grad]


def class_name(value: object) -> str:
    """Return the full name of the class of `value`."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def schedulers(scheduler: Any) -> list[Any]:
    """Return a scheduler and those that it holds; none for None.

    A `SequentialLR`, for example, holds its parts.
    """
    found = [] if scheduler is None else [scheduler]
    for holder in found:
        for value in vars(holder).values() if hasattr(holder, "__dict__") else ():
            parts = value if isinstance(value, list | tuple) else (value,)
            found += [one for one in parts if is_scheduler(one) and not any(one is other for other in found)]
    return found


def is_scheduler(value: object) -> bool:
    """Return whether `value` has what trainrun needs of a scheduler."""
    if isinstance(value, type | torch.optim.Optimizer | torch.amp.GradScaler):
        return False
    return all(callable(getattr(value, name, None)) for name in ("step", "state_dict", "load_state_dict"))


def join(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Let the groups that were added to `optimizer` take part in `scheduler`.

    The rate with which a group was added is its base rate. The recipe's own schedules set the rate at once; those of
    torch continue from the rate that the group has. Raises TrainingError if each group has a function of its own.
    """
    rates = getattr(scheduler, "base_lrs", None)
    if not isinstance(rates, list):
        return
    for group in optimizer.param_groups[len(rates) :]:
        group.setdefault("initial_lr", copied(group["lr"]))
        rates.append(group["initial_lr"])
        if isinstance(scheduler, Schedule):
            put(group, "lr", scheduler.get_lr()[-1])
    if isinstance(scheduler, LambdaLR | MultiplicativeLR):
        functions: list[Any] = scheduler.lr_lambdas
        missing = len(optimizer.param_groups) - len(functions)
        if missing > 0 and any(one is not functions[0] for one in functions):
            raise TaskError(
                f"{missing} parameter groups were added, and the {type(scheduler).__name__} has a function for each of"
                f" the {len(functions)} others; append to its lr_lambdas when you call add_param_group"
            )
        functions.extend(functions[:1] * missing)


def put(table: dict[str, Any], key: str, value: Any) -> None:
    """Set `table[key]`.

    A tensor stays the same one, as compiled and captured steps hold it. Numbers stay numbers.
    """
    present = table.get(key)
    if isinstance(present, torch.Tensor) and isinstance(value, int | float | torch.Tensor):
        present.fill_(value)
    elif isinstance(value, torch.Tensor) and isinstance(present, float):
        table[key] = float(value)
    else:
        table[key] = tuple(value) if isinstance(present, tuple) and isinstance(value, list) else value


def _extended(before: Any, now: Any) -> Any:
    """Return `before`, extended by what lists have gained at their ends since.

    Base rates, for example, gain an element for each new group.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return {key: _extended(value, now.get(key)) for key, value in before.items()}
    if isinstance(before, list) and isinstance(now, list):
        pairs = zip(before, now, strict=False)
        return [*(_extended(old, new) for old, new in pairs), *before[len(now) :], *now[len(before) :]]
    return before
