"""Scale the gradients of parameters that are used several times."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from trainrun import Field, PluginOptions, UsageError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from trainrun import Recipe, Run


class Scaled(PluginOptions):
    """Some parameters, and a factor."""

    match: list[str] = Field(min_length=1, description="Globs of parameter names.")
    factor: float = Field(ge=0, description="Factor for the gradients of these parameters.")


class SharedGradientsOptions(PluginOptions):
    """Which gradients to scale."""

    groups: list[Scaled] = Field(min_length=1, description="Groups of parameters, each with a factor.")


class SharedGradients:
    """Multiply gradients by a factor per group of parameters, in every backward.

    A parameter that is used n times in a forward gets the sum of n gradients; with the factor 1/n it gets their mean.
    The first group that matches any of a parameter's names applies. The gradient is multiplied as it arrives, before it
    is added to those of earlier micro-batches and reduced over ranks.
    """

    Options = SharedGradientsOptions

    def __init__(self, options: SharedGradientsOptions) -> None:
        self._groups = options.groups
        self._handles: list[Any] = []

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> str | None:
        return _NOT_SHARDED if recipe.parallel.strategy == "fsdp" else None

    @hookimpl(mutates=True)
    def on_train_start(self, run: Run) -> None:
        assert run.module is not None
        named = list(run.module.named_parameters(remove_duplicate=False))
        if any(hasattr(one, "full_tensor") for _, one in named):
            raise UsageError(_NOT_SHARDED)
        self._require_matches([name for name, _ in named])
        factors: dict[torch.Tensor, float] = {}
        for group in self._groups:
            for name, one in named:
                if one.requires_grad and any(fnmatchcase(name, pattern) for pattern in group.match):
                    factors.setdefault(one, group.factor)
        self._handles = [_hook(one, factor) for one, factor in factors.items()]

    @hookimpl(mutates=True)
    def on_train_end(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _require_matches(self, names: Iterable[str]) -> None:
        names = list(names)
        for pattern in (pattern for group in self._groups for pattern in group.match):
            if not any(fnmatchcase(name, pattern) for name in names):
                shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
                raise UsageError(f"match: {pattern!r} matches no parameter; there are {shown}")


_SHOWN = 20
_NOT_SHARDED = (
    'parallel.strategy = "fsdp": gradients of sharded parameters arrive in parts, too late to'
    ' be scaled; use "ddp", or scale within the model'
)


def _hook(parameter: torch.Tensor, factor: float) -> Any:
    return parameter.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
