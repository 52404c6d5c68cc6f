"""The settings of a resumed training: new ones if the recipe or the task changed them, otherwise the checkpoint's.

A setting has changed if optimizer and scheduler are built with another one now than when the checkpoint's training
built them. What training itself has changed since, such as a rate lowered on a plateau, is the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from trainrun.errors import TaskError
from trainrun.worker.built import Built, class_name, copied, filled, put, schedulers
from trainrun.worker.checkpoint.curves import curve, same, scaled
from trainrun.worker.schedule import Schedule

_OWN = f"{Schedule.__module__}.{Schedule.__qualname__}"
_FORMER = "torch.optim.lr_scheduler.LambdaLR"  # what the recipe's schedules were before they recorded their settings
_PLACES = ("base_lrs", "_last_lr", "last_epoch", "_step_count")
_RATES = ("base_lrs", "_last_lr")

# Settings that only the first step of a parameter reads: its state keeps them from then on.
_AT_START = {"Rprop": ("lr",), "Adagrad": ("initial_accumulator_value",), "ASGD": ("lr", "lambd", "alpha")}
# State that a setting needs when it is turned on, and that starts at zero.
_NEEDED = {"amsgrad": "max_exp_avg_sq", "centered": "grad_avg", "momentum": "momentum_buffer"}


class Absent:
    """Stands for a setting that is not there."""


@dataclass(frozen=True)
class Group:
    """The settings of one parameter group: built then and now, before and after the scheduler, and as saved."""

    then: tuple[Mapping[str, Any], Mapping[str, Any]]
    now: tuple[Mapping[str, Any], Mapping[str, Any]]
    saved: Mapping[str, Any]

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """The settings that it is built with otherwise: what each was and is.

        A value is `Absent` if the setting was or is not there.
        """
        was, now = self.then[0], self.now[0]
        pairs = {key: (was.get(key, Absent), now.get(key, Absent)) for key in dict.fromkeys([*was, *now])}
        return {key: pair for key, pair in pairs.items() if not same(*pair)}

    @property
    def rescheduled(self) -> dict[str, tuple[Any, Any]]:
        """The changed settings that the scheduler keeps in the group, such as the `max_lr` of a cycle."""
        own = [
            key for key in self.then[1] if key in self.now[1] and key not in {*self.then[0], *self.now[0], "initial_lr"}
        ]
        pairs = {key: (self.then[1][key], self.now[1][key]) for key in own}
        return {key: pair for key, pair in pairs.items() if not same(*pair)}

    @property
    def values(self) -> dict[str, Any]:
        """What each setting is from now on."""
        found = {}
        for key in dict.fromkeys([*self.saved, *self.now[1]]):
            built = 0 if key in self.then[0] or key in self.now[0] else 1  # the scheduler adds some of its own
            was, now = self.then[built].get(key, Absent), self.now[built].get(key, Absent)
            value = self.saved.get(key, now) if same(was, now) else now
            if key != "names" and value is not Absent:
                found[key] = value
        return found

    @property
    def bases(self) -> tuple[Any, Any]:
        """The base rate then and now."""
        then, now = ({**early, **late} for early, late in (self.then, self.now))
        return then.get("initial_lr", then["lr"]), now.get("initial_lr", now["lr"])

    @property
    def is_cycled(self) -> bool:
        """Whether a changed setting is one that the scheduler sets too, as cycles of momentum do."""
        return any(
            not same(early.get(key), late.get(key)) for early, late in (self.then, self.now) for key in self.changed
        )


@dataclass(frozen=True)
class Changes:
    """What is not as it was when the checkpoint was written.

    groups: the settings of each parameter group. settings: those of the scheduler, as name, was and is. rates: before
    and now, for each group. steps: planned then and now.
    """

    groups: Sequence[Group]
    settings: Sequence[tuple[str, Any, Any]]
    rates: Sequence[tuple[float, float]]
    steps: tuple[int | None, int | None]


def apply(
    optimizer: torch.optim.Optimizer, scheduler: Any, built: Built, saved: Mapping[str, Any], step: int
) -> Changes:
    """Give optimizer and scheduler their settings after `step`.

    saved: the values of the checkpoint. To be called when the groups are those of the checkpoint, and the optimizer has
    its state. Raises TrainingError for a change that cannot be made.
    """
    then = saved.get("built") or built.to_state()
    _require_same_scheduler(scheduler, saved)
    groups = list(_groups(then, built, saved["optimizer"]["groups"]))
    _refuse(optimizer, groups)
    for group, planned in zip(optimizer.param_groups, groups, strict=True):
        for key, value in planned.values.items():
            put(group, key, copied(value))
        _fill(optimizer, group, planned)
    settings = list(_load(scheduler, built, then, saved, groups, step))
    moved = bool(settings) or any(one.rescheduled for one in groups)
    _set_rates(optimizer, scheduler, built, groups, moved=moved, had_one=saved["scheduler"] is not None)
    rates = [
        (float(one.saved["lr"]), float(group["lr"])) for one, group in zip(groups, optimizer.param_groups, strict=True)
    ]
    return Changes(groups, settings, rates, (then["steps"], built.steps))


# --- groups ---


def _groups(then: Mapping[str, Any], built: Built, saved: Sequence[Mapping[str, Any]]) -> Iterator[Group]:
    sides = [list(zip(one["groups"], one["scheduled"], strict=True)) for one in (then, built.to_state())]
    for was, now, one in zip(*sides, saved, strict=True):
        yield Group(was, now, one)


def _refuse(optimizer: torch.optim.Optimizer, groups: Sequence[Group]) -> None:
    keys = next((keys for one in type(optimizer).__mro__ if (keys := _AT_START.get(one.__name__))), ())
    for group in groups:
        for key in keys:
            if key in group.changed:
                raise TaskError(
                    f"optimizer: {key} was {shown(group.changed[key][0])} and is {shown(group.changed[key][1])}, but"
                    f" {type(optimizer).__name__} reads it in its first step only; set it back, or start a new run"
                )


def _fill(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], planned: Group) -> None:
    """Add the state that a setting needs which was turned on."""
    for key, slot in _NEEDED.items():
        was, now = planned.changed.get(key, (None, None))
        if not now or was or (key == "momentum" and not isinstance(optimizer, torch.optim.RMSprop)):
            continue
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if state and slot not in state:
                state[slot] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    if planned.changed.keys() & {"capturable", "fused"}:  # they want the count of steps on the parameter's device
        for parameter in group["params"]:
            steps = optimizer.state.get(parameter, {}).get("step")
            if isinstance(steps, torch.Tensor):
                near = group.get("capturable") or group.get("fused")
                optimizer.state[parameter]["step"] = steps.to(parameter.device if near else "cpu")


# --- the scheduler ---


def _require_same_scheduler(scheduler: Any, saved: Mapping[str, Any]) -> None:
    """Raise TrainingError if the checkpoint's scheduler has another class, or holds others."""
    told, then = saved["scheduler"], saved.get("built")
    kinds, own = [class_name(one) for one in schedulers(scheduler)], isinstance(scheduler, Schedule)
    if then is None:
        theirs = [] if told is None else [told["class"]]
        fits = theirs == kinds[:1] or (own and theirs == [_FORMER])
    else:
        theirs = then["kinds"]
        fits = theirs == kinds or (own and not theirs) or (not kinds and theirs == [_OWN])
    if not fits:
        raise TaskError(
            f"the checkpoint is of another scheduler: {' with '.join(theirs) or 'none'} there,"
            f" {' with '.join(kinds) or 'none'} here; its state does not fit: set the scheduler back, or start"
            " a new run"
        )


def _load(
    scheduler: Any, built: Built, then: Mapping[str, Any], saved: Mapping[str, Any], groups: Sequence[Group], step: int
) -> Iterator[tuple[str, Any, Any]]:
    """Give the scheduler its state; yield the changed settings.

    Each is yielded as name, was and is.
    """
    told = saved["scheduler"]
    if scheduler is None:
        if told is not None:
            yield "name", told["state"].get("name"), "constant"
        return
    if told is None:  # it begins in the middle: one update of the schedule for each step
        bases = [one.now[0]["lr"] if "lr" in one.changed else one.saved["lr"] for one in groups]
        state = {**copied(built.scheduler), "base_lrs": bases, "last_epoch": step, "_step_count": step + 1}
        for group, base in zip(scheduler.optimizer.param_groups, bases, strict=True):
            put(group, "initial_lr", base)
        yield from [("warmup", 0, scheduler.warmup)] if scheduler.warmup else []
        yield from [("name", "constant", scheduler.name)] if scheduler.name != "constant" else []
    elif isinstance(scheduler, Schedule) and told["class"] == _FORMER:
        state = {**copied(built.scheduler), **{key: told["state"][key] for key in _PLACES}}
    else:
        state = _merged(then["scheduler"], copied(built.scheduler), told["state"])
        yield from _differences(then["scheduler"], built.scheduler)
    scheduler.load_state_dict(_typed(state, built.scheduler))


def _merged(then: Any, now: Any, saved: Any) -> Any:
    """Return `saved`, but for what is built otherwise now."""
    if same(then, now):
        return saved
    if all(isinstance(one, dict) and all(isinstance(key, str) for key in one) for one in (then, now, saved)):
        sides = {key: [one.get(key, Absent) for one in (then, now, saved)] for key in dict.fromkeys([*saved, *now])}
        found = {key: _merged(*three) for key, three in sides.items()}
        return {key: value for key, value in found.items() if value is not Absent}
    if all(isinstance(one, list) for one in (then, now, saved)) and len(then) == len(now) <= len(saved):
        return [*map(_merged, then, now, saved), *saved[len(now) :]]
    return now


def _typed(value: Any, like: Any) -> Any:
    """Return `value` with the types of dicts that `like` has.

    A checkpoint holds plain dicts.
    """
    if isinstance(value, dict) and isinstance(like, dict):
        return filled(like, {key: _typed(item, like.get(key)) for key, item in value.items()})
    if isinstance(value, list) and isinstance(like, list):
        return [_typed(*pair) for pair in zip_longest(value, like[: len(value)])]
    return value


def _differences(then: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if name in _RATES or same(then, now):
        return
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            yield from _differences(then.get(key, Absent), now.get(key, Absent), str(key))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for one, other in zip(then, now, strict=True):
            yield from _differences(one, other, name)
    else:
        yield name, then, now


def _set_rates(
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    built: Built,
    groups: Sequence[Group],
    *,
    moved: bool,
    had_one: bool,
) -> None:
    """Give each group its rate.

    The rate follows the schedule as it is now if that, or the group's own rate, has changed.
    """
    if scheduler is None:
        for group, planned in zip(optimizer.param_groups, groups, strict=True):
            if had_one and "lr" not in planned.changed:
                put(group, "lr", planned.saved["initial_lr"])
        return
    changed = [moved or "lr" in one.changed for one in groups]
    for group, planned in zip(optimizer.param_groups, groups, strict=True):
        put(group, "lr", planned.saved["lr"])
    if not any(changed) and not any(one.is_cycled for one in groups):
        return
    rates = curve(scheduler)
    for place, (group, planned) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        rate = planned.saved["lr"]
        follows = rates is not None and (isinstance(scheduler, Schedule) or place < built.first)
        if changed[place] and follows and rates is not None:
            rate = rates[place]
        elif "lr" in planned.changed:
            rate = scaled(rate, *planned.bases)
        put(group, "lr", rate)
    for one in schedulers(scheduler):
        if isinstance(getattr(one, "_last_lr", None), list):
            one._last_lr = [copied(group["lr"]) for group in optimizer.param_groups]


def shown(value: Any) -> str:
    """Return a setting in words."""
    if value is Absent:
        return "not set"
    return f"{float(value):.6g}" if isinstance(value, torch.Tensor) and value.numel() == 1 else str(value)
