"""Refuse optimizers and schedulers that would train wrong, or resume wrong, right when they are built."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainrun.errors import TaskError
from trainrun.plugin.instance import Instance
from trainrun.worker.built import class_name, is_scheduler

_STATE = ("state_dict", "load_state_dict")
_TORCH = "torch.optim."


def require_optimizer(optimizer: object, provider: Instance | None) -> None:
    """Raise TrainingError unless `optimizer` is one plain optimizer.

    A checkpoint must hold its state completely.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TaskError(
            f"build_optimizer of {_named(provider)} returned {_shown(optimizer)}; return one torch.optim.Optimizer,"
            " with a parameter group for each part of the model: several optimizers are not supported"
        )
    if held := next(_held(optimizer), None):
        raise TaskError(
            f"build_optimizer of {_named(provider)} returned {_shown(optimizer)}, which holds another optimizer"
            f" ({held}), and a checkpoint has no place for the state of that; return one torch.optim.Optimizer with"
            " parameter groups"
        )
    if own := [name for name in _STATE if _overrides(optimizer, name)]:
        raise TaskError(
            f"build_optimizer of {_named(provider)} returned {_shown(optimizer)}, which has its own"
            f" {' and '.join(own)}; checkpoints hold param_groups and state, and never call it: return an optimizer"
            " that keeps everything there"
        )


def require_scheduler(scheduler: object, optimizer: torch.optim.Optimizer, provider: Instance | None) -> None:
    """Raise TrainingError unless `scheduler` is None or a usable scheduler.

    A usable scheduler can be stepped after each update, saved and loaded.
    """
    if scheduler is None:
        return
    start = f"build_scheduler of {_named(provider)} returned {_shown(scheduler)}"
    if not is_scheduler(scheduler):
        raise TaskError(
            f"{start}, which does not have step, state_dict and load_state_dict; return one scheduler of"
            " torch.optim.lr_scheduler, or an object with these three methods"
        )
    if _wants_more(scheduler):
        hint = "turn on the plugin plateau-check" if isinstance(scheduler, ReduceLROnPlateau) else "wrap it in a class"
        raise TaskError(
            f"{start}, whose step takes more than trainrun gives it after each update; {hint}, which steps it with"
            " a metric"
        )
    steps = getattr(scheduler, "optimizer", optimizer)
    if isinstance(steps, torch.optim.Optimizer) and steps is not optimizer:
        raise TaskError(f"{start}, which sets the rates of another optimizer than build_optimizer returned")


def _named(provider: Instance | None) -> str:
    if provider is None or provider.role == "builtin":
        return "trainrun"
    return f"the task ({provider.target})" if provider.role == "task" else f"the plugin {provider.name!r}"


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(type(one).__name__ for one in value) or 'nothing'}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(f'{key}: {type(one).__name__}' for key, one in value.items()) or 'nothing'}"
    return "None" if value is None else f"a {class_name(value)}"


def _held(optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """Yield the attributes that are optimizers, or that hold some."""
    for name, value in vars(optimizer).items():
        for one in _items(value):
            if isinstance(one, torch.optim.Optimizer) and one is not optimizer:
                yield f"{name}: {type(one).__name__}"


def _items(value: Any) -> Iterator[Any]:
    """Yield what lists and dicts hold, also within one another."""
    if isinstance(value, list | tuple | set | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _items(one)
    else:
        yield value


def _overrides(optimizer: torch.optim.Optimizer, name: str) -> bool:
    if name in vars(optimizer):
        return True
    owner = next(one for one in type(optimizer).__mro__ if name in vars(one))
    return not f"{owner.__module__}.".startswith(_TORCH)


def _wants_more(scheduler: Any) -> bool:
    """Return whether `step` cannot be called without arguments."""
    try:
        inspect.signature(scheduler.step).bind()
    except TypeError:
        return True
    except ValueError:  # a function in C without a signature
        return False
    return False
