"""The modules of a model whose parameters are gathered together when it is sharded."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

_LISTS = (nn.ModuleList, nn.Sequential)


def find(model: nn.Module) -> list[nn.Module]:
    """Return the children of the model's lists (ModuleList, Sequential) that have parameters.

    Of nested lists the longest counts: the layers of a backbone, not the backbone next to its head.
    """
    found: list[nn.Module] = []
    for blocks in _lists(model):
        for block in blocks:
            deeper = any(len(inner) > len(blocks) for inner in _lists(block))
            without_forward = isinstance(block, nn.ModuleList | nn.ModuleDict)
            found += find(block) if deeper or without_forward else [block]
    return list(dict.fromkeys(found))


def _lists(module: nn.Module) -> list[list[nn.Module]]:
    """Return the outermost lists in `module` as their children that have parameters.

    `module` itself may be one of the lists.
    """
    if isinstance(module, _LISTS):
        return [[child for child in module if any(True for _ in child.parameters())]]
    return [found for child in module.children() for found in _lists(child)]


def fits(pattern: str, name: str, module: nn.Module) -> bool:
    """Return whether a shell pattern fits a module's class or name.

    A name is compared part by part: `blocks.*` fits `blocks.0` alone.
    """
    parts, patterns = name.split("."), pattern.split(".")
    named = len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
    return named or fnmatchcase(type(module).__name__, pattern)


def tied(model: nn.Module, groups: Sequence[nn.Module]) -> set[nn.Module]:
    """Return those of `groups` that share a parameter with another one.

    The model may be among them. A module's parameters belong to the innermost of `groups` around it, or to the model.
    """
    owners: dict[nn.Parameter, set[nn.Module]] = {}
    seen: set[tuple[nn.Module, nn.Module]] = set()

    def visit(module: nn.Module, group: nn.Module) -> None:
        group = module if module in groups else group
        if (module, group) in seen:
            return
        seen.add((module, group))
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(group)
        for child in module.children():
            visit(child, group)

    visit(model, model)
    return {group for sharing in owners.values() if len(sharing) > 1 for group in sharing}
