"""What one key says about another: the rules that types and ranges cannot express.

They read plain data with its defaults filled in, so that the light check of the command line and the
pydantic model share them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from trainrun.recipe.optimizers import KEYWORDS, NEEDS_CLOSURE, NOT_SHARDED
from trainrun.recipe.plain import Key
from trainrun.recipe.suggest import did_you_mean

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DECAYS = {"power": ("polynomial",), "gamma": ("exponential", "step"), "step_size": ("step",)}


class Broken(NamedTuple):
    """One broken rule: the key to point at, what is wrong, what to do."""

    key: Key
    what: str
    hint: str | None = None


Rule = Callable[[Mapping[str, Any]], Iterator[Broken]]


def broken(data: Mapping[str, Any], wrong: Collection[Key] = ()) -> list[Broken]:
    """Return every rule that `data` breaks.

    Rules that read one of the keys in `wrong` are left out.
    """
    return [found for reads, rule in _RULES if not _touch(reads, wrong) for found in rule(data)]


def _touch(reads: tuple[Key, ...], wrong: Collection[Key]) -> bool:
    return any(key[: len(read)] == read[: len(key)] for read in reads for key in wrong)


def _length(data: Mapping[str, Any]) -> Iterator[Broken]:
    train = data.get("train", {})
    if "steps" in train and "epochs" in train:
        yield Broken(("train", "epochs"), "steps and epochs are both set", "keep one of the two")
    if "steps" not in train and "epochs" not in train:
        yield Broken(("train",), "the length of training is not set", "set train.steps or train.epochs")


def _batches(data: Mapping[str, Any]) -> Iterator[Broken]:
    train, launch = data.get("train", {}), data.get("launch", {})
    batch, micro = train.get("batch_size"), train.get("micro_batch_size")
    if batch is None or not isinstance(launch.get("workers"), int):
        return
    workers = launch["workers"] * launch.get("nodes", 1)
    share, rest = divmod(batch, workers)
    if rest:
        hint = f"take a multiple of {workers}, such as {max(share, 1) * workers}"
        yield Broken(("train", "batch_size"), f"{batch} samples cannot be shared by {workers} workers", hint)
    elif micro is not None and share % micro:
        what = f"each worker's {share} samples cannot be cut into micro-batches of {micro}"
        yield Broken(("train", "micro_batch_size"), what, f"take a divisor of {share}")


def _splits(data: Mapping[str, Any]) -> Iterator[Broken]:
    splits = data.get("evaluate", {}).get("splits")
    if isinstance(splits, list) and "train" in splits:
        hint = "give the training samples that are to be evaluated a split of their own, such as 'train-part'"
        yield Broken(("evaluate", "splits"), "'train' names what is trained on", hint)


def _optimizer(data: Mapping[str, Any]) -> Iterator[Broken]:
    table, name = data.get("optimizer", {}), _optimizer_name(data)
    if name in NEEDS_CLOSURE:
        yield Broken(
            ("optimizer", "name"), f"{name} evaluates the loss several times an update", "take another optimizer"
        )
        return
    if name not in KEYWORDS:
        hint = did_you_mean(name, KEYWORDS)
        if hint:
            yield Broken(("optimizer", "name"), f"unknown optimizer {table.get('name')!r}", hint)
        return
    yield from _keywords(name, ("optimizer",), table, {"name", "groups"})
    groups = table.get("groups")
    for index, group in enumerate(groups if isinstance(groups, list) else ()):
        if isinstance(group, Mapping):
            yield from _keywords(name, ("optimizer", "groups", index), group, {"match"})


def _optimizer_name(data: Mapping[str, Any]) -> str:
    return str(data.get("optimizer", {}).get("name", "")).lower().replace("_", "").replace("-", "")


def _keywords(name: str, table: Key, values: Mapping[str, Any], own: set[str]) -> Iterator[Broken]:
    known = KEYWORDS[name] | own
    for key in values.keys() - known:
        elsewhere = any(key in keywords for keywords in KEYWORDS.values())
        what = f"{name} has no such setting" if elsewhere else "unknown key"
        yield Broken((*table, key), what, did_you_mean(key, sorted(known)))


def _scheduler(data: Mapping[str, Any]) -> Iterator[Broken]:
    table = data.get("scheduler", {})
    name = table.get("name")
    for key, names in _DECAYS.items():
        if key in table and name not in names:
            yield Broken(
                ("scheduler", key), f"the {name} scheduler has no {key}", f"it belongs to {' and '.join(names)}"
            )
    if name == "exponential" and "gamma" not in table:
        yield Broken(("scheduler",), "the exponential scheduler needs gamma", "the factor of each step, such as 0.999")
    if name == "step" and "step_size" not in table:
        yield Broken(("scheduler",), "the step scheduler needs step_size", "the steps between two decays")


def _parallel(data: Mapping[str, Any]) -> Iterator[Broken]:
    table = data.get("parallel", {})
    strategy = table.get("strategy")
    if strategy != "fsdp":
        if "wrap" in table:
            yield Broken(("parallel", "wrap"), f"the strategy {strategy} has no wrap", "it belongs to fsdp")
        return
    name = _optimizer_name(data)
    if name in NOT_SHARDED:
        yield Broken(("parallel", "strategy"), f"torch's {name} cannot update shards", "take ddp or another optimizer")


def _instances(data: Mapping[str, Any]) -> Iterator[Broken]:
    for name in data.get("plugins", {}):
        if not _INSTANCE.fullmatch(name):
            yield Broken(("plugins", name), "not a name for a plugin", "use letters, digits, - and _")


_RULES: tuple[tuple[tuple[Key, ...], Rule], ...] = (
    ((("train", "steps"), ("train", "epochs")), _length),
    ((("train", "batch_size"), ("train", "micro_batch_size"), ("launch", "workers"), ("launch", "nodes")), _batches),
    ((("evaluate", "splits"),), _splits),
    ((("optimizer", "name"),), _optimizer),
    ((("scheduler", "name"),), _scheduler),
    ((("parallel", "strategy"), ("parallel", "wrap"), ("optimizer", "name")), _parallel),
    ((("plugins",),), _instances),
)
