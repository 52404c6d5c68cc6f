"""The state of model, optimizer, scheduler and scaler, by names that do not depend on how the model was wrapped.

torch's own `get_optimizer_state_dict` makes an optimizer without state take a step first, and loads by a template
that has no moments yet; both lose something. Here a name is looked up for each parameter, and what the optimizer
holds for it is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from trainrun.errors import TaskError, TrainingError
from trainrun.plugin.state import unfit
from trainrun.worker.built import class_name, trainable
from trainrun.worker.state import State

MODEL, OPTIMIZER = "model/", "optimizer/"

_COMPILED = "_orig_mod."  # what torch.compile puts into names


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Return the module that `build_model` made, without its wrappers."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, torch.nn.Module):
            return model
        model = inner


def model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and persistent buffers by name.

    They share memory with the model.
    """
    state = unwrapped(model).state_dict()
    return {name.replace(_COMPILED, ""): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def parameter_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[torch.Tensor, str]:
    """Return the name of every parameter that the optimizer updates."""
    named: dict[torch.Tensor, str] = {
        parameter: name.replace(_COMPILED, "") for name, parameter in unwrapped(model).named_parameters()
    }
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            named.setdefault(parameter, f"group-{number}-{place}")  # not of the model: by its place
    return named


def tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return all that is saved by name.

    These are the model's tensors, and those that the optimizer keeps for each parameter.
    """
    found = {MODEL + name: value for name, value in model_tensors(model).items()}
    names = parameter_names(model, optimizer)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                found[f"{OPTIMIZER}{names[parameter]}/{key}"] = value
    return found


def values(state: State) -> dict[str, Any]:
    """Return the training's other state that is equal on all ranks.

    It consists of plain values and small tensors. Raises TrainingError if the model or the scheduler holds anything of
    another kind.
    """
    assert state.model is not None
    assert state.optimizer is not None
    state.built.notice(state.optimizer, state.scheduler)
    found = {
        "model": _extra(state.model),
        "optimizer": _optimizer(state.model, state.optimizer),
        "scheduler": None if state.scheduler is None else _named(state.scheduler, state.scheduler.state_dict()),
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
        "built": state.built.to_state(),
        "trains": trainable(unwrapped(state.model)),
    }
    for part in ("model", "optimizer", "scheduler", "built"):
        if wrong := unfit(found[part], torch.is_tensor, part):
            raise TrainingError(f"{wrong}; a checkpoint holds plain values and tensors only")
    return found


def _extra(model: torch.nn.Module) -> dict[str, Any]:
    """Return what `get_extra_state` of the model's modules returned, tensors left out."""
    state = unwrapped(model).state_dict()
    return {name.replace(_COMPILED, ""): value for name, value in state.items() if not isinstance(value, torch.Tensor)}


def _optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    names = parameter_names(model, optimizer)
    groups = [
        {**{key: value for key, value in group.items() if key != "params"}, "names": _of(group, names)}
        for group in optimizer.param_groups
    ]
    plain: dict[str, dict[str, Any]] = {}
    on_host: set[str] = set()
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if not isinstance(value, torch.Tensor):
                plain.setdefault(names[parameter], {})[key] = value
            elif value.device.type == "cpu":
                on_host.add(key)
    return {"class": class_name(optimizer), "groups": groups, "plain": plain, "on_host": sorted(on_host)}


def _of(group: Mapping[str, Any], names: Mapping[torch.Tensor, str]) -> list[str]:
    return [names[parameter] for parameter in group["params"]]


def _named(scheduler: object, state: dict[str, Any]) -> dict[str, Any]:
    return {"class": class_name(scheduler), "state": state}


# --- putting it back ---


def require_same_model(model: torch.nn.Module, stored: Mapping[str, torch.Size]) -> None:
    """Raise TrainingError if a checkpoint's tensors are not those of the model.

    The message has every name.
    """
    mine = {name: value.shape for name, value in model_tensors(model).items()}
    theirs = {name.removeprefix(MODEL): size for name, size in stored.items() if name.startswith(MODEL)}
    wrong = [f"{name}: not in the checkpoint" for name in mine if name not in theirs]
    wrong += [f"{name}: in the checkpoint, not in the model" for name in theirs if name not in mine]
    wrong += [
        f"{name}: {tuple(theirs[name])} in the checkpoint, {tuple(size)} in the model"
        for name, size in mine.items()
        if name in theirs and theirs[name] != size
    ]
    if wrong:
        shown = "; ".join(wrong[:_SHOWN]) + (f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        raise TaskError(f"the checkpoint is of another model: {shown}")


def optimizer_places(
    state: State, saved: Mapping[str, Any], stored: Mapping[str, tuple[torch.Size, torch.dtype]]
) -> tuple[dict[str, torch.Tensor], Callable[[], None]]:
    """Return empty tensors for the optimizer's state, and a function.

    Once the tensors are filled from the checkpoint, the function gives them to the optimizer.

    saved: the `values` of the checkpoint. Raises TrainingError if it is of another optimizer.
    """
    assert state.model is not None
    assert state.optimizer is not None
    optimizer, told = state.optimizer, saved["optimizer"]
    names = parameter_names(state.model, optimizer)
    _require_same_optimizer(optimizer, names, told)
    parameters = {name: parameter for parameter, name in names.items()}
    found: dict[str, torch.Tensor] = {}
    slots: list[tuple[torch.Tensor, str, torch.Tensor]] = []
    for name, (size, dtype) in stored.items():
        if name.startswith(OPTIMIZER):
            parameter, key = name.removeprefix(OPTIMIZER).rsplit("/", 1)
            place = _place(parameters[parameter], size, dtype, on_host=key in told["on_host"])
            found[name] = place
            slots.append((parameters[parameter], key, place))

    def give() -> None:
        optimizer.state.clear()
        for parameter, key, place in slots:
            optimizer.state[parameter][key] = place
        for name, plain in told["plain"].items():
            optimizer.state[parameters[name]].update(plain)

    return found, give


def give_extra(model: torch.nn.Module, saved: Mapping[str, Any]) -> None:
    """Give the modules what their `get_extra_state` returned.

    Raises TrainingError if the modules are others.
    """
    if not saved and not _extra(model):
        return
    bare = unwrapped(model)
    names = {name.replace(_COMPILED, ""): name for name in bare.state_dict()}
    if unknown := [name for name in saved if name not in names]:
        raise TaskError(f"the checkpoint is of another model: {', '.join(unknown)}: in the checkpoint only")
    bare.load_state_dict({names[name]: value for name, value in saved.items()}, strict=False)


_SHOWN = 10


def _place(parameter: torch.Tensor, size: torch.Size, dtype: torch.dtype, *, on_host: bool) -> torch.Tensor:
    if isinstance(parameter, DTensor) and size == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(size, dtype=dtype, device="cpu" if on_host else parameter.device)


def _require_same_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str], told: Mapping[str, Any]
) -> None:
    if told["class"] != class_name(optimizer):
        raise TaskError(
            f"the checkpoint is of another optimizer: {told['class']} there, {class_name(optimizer)} here; its state"
            " does not fit: set the optimizer back, or start a new run"
        )
    mine, theirs = [_of(group, names) for group in optimizer.param_groups], [one["names"] for one in told["groups"]]
    if mine != theirs:
        raise TaskError(
            f"the checkpoint's optimizer has other groups of parameters: {_unlike(mine, theirs)}; set optimizer.groups"
            " back, or add the groups that training had added in the hook on_resume_start"
        )


def _unlike(mine: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> str:
    """Describe the first group that differs.

    The parameters that one side lacks are named.
    """
    for place, (here, there) in enumerate(zip_longest(mine, theirs)):
        if there is None:
            return f"{len(theirs)} groups there, {len(mine)} here: group {place} ({_listed(here)}) is not in it"
        if here is None:
            return f"{len(theirs)} groups there, {len(mine)} here: group {place} ({_listed(there)}) is missing here"
        if missing := [name for name in there if name not in here]:
            return f"group {place} has no {_listed(missing)} here"
        if added := [name for name in here if name not in there]:
            return f"group {place} has {_listed(added)} here, and not there"
        if list(here) != list(there):
            return f"group {place} has its parameters in another order"
    return "they are in another order"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
