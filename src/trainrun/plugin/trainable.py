"""Can this recipe train at all? What is missing from task and plugins is known before anything is started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainrun.errors import Problem
from trainrun.plugin.description import METRIC, Description, ImplInfo
from trainrun.plugin.instance import Instance
from trainrun.plugin.targets import is_path, split
from trainrun.recipe.document import Document
from trainrun.recipe.suggest import did_you_mean

Known = Sequence[tuple[Instance, Description]]

_DATA = ("build_dataset", "build_dataloader")
# A plugin with one of these may log metrics of its own for an evaluation.
_MAY_LOG = {"evaluation_metrics", "on_evaluation_start", "on_evaluation_batch_start", "on_evaluation_batch_end"} | {
    "on_evaluation_end",
    "on_evaluated",
}


def untrainable(document: Document, data: Mapping[str, Any], known: Known) -> Iterator[Problem]:
    """Yield what no run of this recipe could do without.

    These are hooks that must be implemented, and metrics that must exist. Nothing is reported if a plugin or the task
    itself cannot be used.

    data: the recipe with all defaults.
    """
    task = next((one for one in known if one[0].role == "task"), None)
    if task is None or not all(description.ok for _, description in known):
        return
    use = str(document.data["task"]["use"])
    given = {impl.hook for _, impl in _own_impls(known)}
    missing = [hook for hook in ("build_model", "training_step") if hook not in given]
    if not given.intersection(_DATA):
        missing.append("build_dataset")
    place = document.locate(("task", "use"))
    if missing and not task[1].impls:
        yield place.problem(*_unmarked(use, task[1]))
    elif missing:
        yield place.problem(
            f"{use} has no {' and no '.join(missing)}, without which nothing can be trained",
            "implement it and mark it with @hookimpl" + _almost(missing, task[1]),
        )
    elif "evaluation_step" not in given and (splits := data.get("evaluate", {}).get("splits")):
        yield document.locate(("evaluate", "splits")).problem(
            f"{use} has no evaluation_step, but evaluate.splits = {_listed(splits)}",
            "implement it, or set evaluate.splits = []",
        )
    yield from _metrics(document, data, known)


def builder(known: Known, hook: str) -> Instance | None:
    """Return the instance that implements the provider `hook`, other than trainrun's own.

    Returns None if there is none.
    """
    return next((instance for instance, impl in _own_impls(known) if impl.hook == hook), None)


def _own_impls(known: Known) -> Iterator[tuple[Instance, ImplInfo]]:
    for instance, description in known:
        if instance.role != "builtin":
            yield from ((instance, impl) for impl in description.impls if not impl.wrapper)


def _unmarked(use: str, task: Description) -> tuple[str, str]:
    file, _ = split(use)
    if task.classes:
        choices = " or ".join(repr(f"{file}:{name}") for name in task.classes)
        return f"{use} has no hooks of its own; those of its class must be named", f"did you mean {choices}?"
    if task.unmarked:
        names = ", ".join(task.unmarked)
        return f"nothing in {use} is marked with @hookimpl", f"put it above {names}"
    what = "file" if is_path(use) and ":" not in Path(use).name else "task"
    return (
        f"nothing in {use} is marked with @hookimpl, so this {what} trains nothing",
        "a task implements at least build_model, build_dataset and training_step",
    )


def _almost(missing: Sequence[str], task: Description) -> str:
    return "".join(f"; {name} is there without @hookimpl" for name in task.unmarked if name in missing)


def _listed(splits: Any) -> str:
    return "[" + ", ".join(f'"{split}"' for split in splits) + "]" if isinstance(splits, list) else str(splits)


# --- metrics that plugins watch ----------------------------------------------------------------


def _metrics(document: Document, data: Mapping[str, Any], known: Known) -> Iterator[Problem]:
    """Yield a problem for each option that names an unknown metric.

    `monitor` is such an option; the metric is one that `evaluation_step` is seen not to return.
    """
    names = _names_of_metrics(known)
    if names is None:
        return
    splits = data.get("evaluate", {}).get("splits", [])
    for instance, description in known:
        tables = data.get("plugins", {}).get(instance.name, {})
        for key in _watched(description):
            value = tables.get(key)
            split_name, slash, metric = value.partition("/") if isinstance(value, str) else ("", "", "")
            if slash and split_name in splits and metric not in names:
                there = [f"{split_name}/{name}" for name in names]
                yield document.locate(("plugins", instance.name, key)).problem(
                    f"plugins.{instance.name}.{key} = {value!r}: there is no such metric",
                    did_you_mean(value, there) or f"there is {', '.join(there)}",
                )


def _names_of_metrics(known: Known) -> tuple[str, ...] | None:
    """Return the metrics of an evaluation.

    Returns None unless all can be read in the source.
    """
    steps = [impl for _, impl in _own_impls(known) if impl.hook == "evaluation_step"]
    watchers = {instance.name for instance, description in known if _watched(description)}
    others = {impl.hook for instance, impl in _own_impls(known) if instance.name not in watchers}
    if len(steps) != 1 or not steps[0].returns or others & _MAY_LOG:
        return None
    return steps[0].returns


def _watched(description: Description) -> list[str]:
    """Return the options that hold the name of a metric."""
    properties = (description.options_schema or {}).get("properties", {})
    return [key for key, option in properties.items() if option.get(METRIC)]
