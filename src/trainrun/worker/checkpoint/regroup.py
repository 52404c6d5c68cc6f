"""The parameter groups of a checkpoint, before any state is loaded: training may have added some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from trainrun.worker.built import copied
from trainrun.worker.checkpoint import capture

if TYPE_CHECKING:
    from trainrun.worker.state import State

SavedGroup = Mapping[str, Any]
Fire = Callable[[Sequence[SavedGroup]], None]


def rebuild(state: State, saved: Mapping[str, Any], fire: Fire | None) -> None:
    """Let plugins add the checkpoint's missing groups.

    Then mark what is trained.

    fire: calls the hook with the saved groups. A setting that a plugin leaves out is the one that the group was first
    added with, and not the optimizer's default.
    """
    optimizer, model, built = state.optimizer, state.model, state.built
    assert optimizer is not None
    assert model is not None
    groups = saved_groups(saved)
    if fire is not None:
        with _given(optimizer) as given:
            fire(groups)
        for group, told, keys in zip(optimizer.param_groups[built.count :], groups[built.count :], given, strict=False):
            group.update({key: copied(value) for key, value in told["settings"].items() if key not in keys})
    built.notice(optimizer, state.scheduler)
    _require_grad(capture.unwrapped(model), built.trains, saved)


def saved_groups(saved: Mapping[str, Any]) -> list[SavedGroup]:
    """Return the parameters' `names` and the `settings` of each saved group.

    The settings are those that the group was built or added with.
    """
    groups, built = saved["optimizer"]["groups"], saved.get("built")
    before = [{**one, "lr": one.get("initial_lr", one["lr"])} for one in groups] if built is None else built["groups"]
    return [
        {"names": list(one["names"]), "settings": {key: value for key, value in old.items() if key not in _PLACES}}
        for one, old in zip(groups, before, strict=True)
    ]


_PLACES = ("names", "param_names", "initial_lr")


@contextmanager
def _given(optimizer: torch.optim.Optimizer) -> Iterator[list[set[str]]]:
    """Collect which settings each group is added with.

    Torch fills in defaults for the others.
    """
    found: list[set[str]] = []
    add = optimizer.add_param_group

    def noted(param_group: dict[str, Any]) -> None:
        keys = set(param_group)
        add(param_group)
        found.append(keys)

    optimizer.add_param_group = noted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        del optimizer.add_param_group


def _require_grad(model: torch.nn.Module, built: Sequence[str], saved: Mapping[str, Any]) -> None:
    """Freeze and unfreeze parameters as training had done.

    Those that are built otherwise now are left alone.
    """
    then = saved.get("built")
    if then is None:
        return
    before, now = set(then["trains"]), set(built)
    trained = set(saved["trains"])
    for full_name, parameter in model.named_parameters():
        name = full_name.replace("_orig_mod.", "")
        if (name in before) == (name in now) and parameter.requires_grad != (name in trained):
            parameter.requires_grad_(name in trained)
