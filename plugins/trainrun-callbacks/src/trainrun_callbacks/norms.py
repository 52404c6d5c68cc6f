"""Log norms of gradients, parameters and updates: one pass over the tensors, in the steps that are logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from trainrun import Field, PluginOptions, UsageError, hookimpl
from trainrun_callbacks.selecting import fits, groups, trained
from trainrun_callbacks.selection import Choice
from trainrun_callbacks.sharded import OverRanks, local

if TYPE_CHECKING:
    from trainrun import Run

Pattern = Annotated[str, Field(min_length=1)]

_HALVES = (torch.float16, torch.bfloat16)


class NormsOptions(PluginOptions):
    """Of what to log norms."""

    gradients: Choice = Field(
        True,
        description="Log norms of gradients: true for one `total`, shell patterns of parameter names, or a table from"
        ' names to log to patterns, such as { all = "*", head = "fc*" }.',
    )
    parameters: Choice = Field(False, description="Log norms of parameters before the update, chosen in the same way.")
    updates: Choice = Field(
        False,
        description="Log norms of updates, divided by those of the parameters, chosen in the same way. Copies the"
        " parameters in each logged step.",
    )
    each: list[Pattern] = Field(
        [],
        description="Shell patterns of parameters that also get their own metrics, for each of the three that is"
        " enabled.",
    )
    norm_type: Annotated[float, Field(gt=0)] | Literal["inf"] = Field(
        2.0, description='Order p of the p-norm, or "inf".'
    )


class Norms:
    """Log `grad_norm/NAME`, `param_norm/NAME` and `update_ratio/NAME` in logged steps.

    NAME is that of a group, or with `each` that of a parameter. Gradients are measured before clipping, reduced over
    ranks, and without the loss scale of fp16. Sharded parameters count as a whole. The host reads nothing before the
    log.
    """

    Options = NormsOptions
    on_error = "disable"

    def __init__(self, options: NormsOptions) -> None:
        self._options = options
        self._order = math.inf if options.norm_type == "inf" else float(options.norm_type)
        self._groups = {what: groups(getattr(options, what)) for what in ("gradients", "parameters", "updates")}
        self._parameters: dict[str, torch.nn.Parameter] = {}
        self._passes: dict[str, tuple[tuple[str, ...], GroupedNorms]] = {}
        self._before: list[Tensor] = []
        self._here = False

    @hookimpl(mutates=True)  # ranks that hold shards meet here
    def on_train_start(self, run: Run) -> None:
        assert run.module is not None
        # Halves last, whose norms are computed in another precision than their own.
        everything = sorted(trained(run.module).items(), key=lambda item: item[1].dtype in _HALVES)
        self._parameters = dict(everything)
        self._require_matches()
        self._here = run.world.rank == 0 or OverRanks(list(self._parameters.values())).needed

    @hookimpl(mutates=True)
    def on_gradients_ready(self, run: Run) -> None:
        if not (self._here and run.logs_now):
            return
        gradients = {name: one.grad for name, one in self._parameters.items() if one.grad is not None}
        self._log(run, "grad_norm", self._norms("gradients", gradients))
        self._log(run, "param_norm", self._norms("parameters", self._parameters))
        if self._groups["updates"]:
            self._before = [local(one.detach()).clone() for one in self._parameters.values()]

    @hookimpl(mutates=True)
    def on_update_end(self, run: Run) -> None:
        if not self._before:
            return
        before, self._before = self._before, []
        weights = self._norms("updates", self._parameters, before)
        torch._foreach_sub_(before, [local(one.detach()) for one in self._parameters.values()])
        changes = self._norms("updates", self._parameters, before)
        self._log(run, "update_ratio", {name: _ratio(norm, weights[name]) for name, norm in changes.items()})

    def _norms(
        self, what: str, tensors: Mapping[str, Tensor], parts: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the norms of `tensors` by name.

        parts: what this rank holds of `tensors`, if it is not what they hold now.
        """
        if not self._groups[what]:
            return {}
        names, norms = self._passes.get(what, ((), None))
        if norms is None or names != tuple(tensors):  # others have a gradient than at the log before
            norms = GroupedNorms(tensors, self._groups[what], self._order, tuple(self._options.each))
            self._passes[what] = tuple(tensors), norms
        return norms([local(one) for one in tensors.values()] if parts is None else parts)

    def _log(self, run: Run, prefix: str, norms: Mapping[str, Tensor]) -> None:
        for name, norm in norms.items():
            run.log(f"{prefix}/{name}", norm, reduce="zero")

    def _require_matches(self) -> None:
        if self._options.each and not any(self._groups.values()):
            raise UsageError("norms: each is set, but gradients, parameters and updates are all false; set one")
        wanted = self._groups | {"each": {pattern: (pattern,) for pattern in self._options.each}}
        for what, chosen in wanted.items():
            for name, patterns in chosen.items():
                if not any(fits(parameter, patterns) for parameter in self._parameters):
                    some = ", ".join(list(self._parameters)[:5]) or "none"
                    raise UsageError(
                        f"norms: {what}: {name} = {list(patterns)} fits no trained parameter; there are: {some}, …"
                    )


class GroupedNorms:
    """The norms of groups of tensors, which are chosen by name, in one pass over all of them.

    each: patterns of those whose own norms are wanted too, by their names.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        chosen: Mapping[str, tuple[str, ...]],
        order: float,
        each: tuple[str, ...] = (),
    ) -> None:
        self._order = order
        self._names = list(chosen)
        self._alone = {name: place for place, name in enumerate(tensors) if fits(name, each)}
        self._over_ranks = OverRanks(list(tensors.values()))
        self._halves = [one.dtype in _HALVES for one in tensors.values()].count(True)
        rows = [[fits(name, patterns) for name in tensors] for patterns in chosen.values()]
        device = next((one.device for one in tensors.values()), torch.device("cpu"))
        self._members = torch.tensor(rows, dtype=torch.bool).reshape(len(chosen), len(tensors)).to(device)

    @torch.no_grad()
    def __call__(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the norms by name.

        parts: what this rank holds of each tensor, in the order of the names; those of half precision last.
        """
        if not parts:
            return {name: torch.zeros(()) for name in self._names}
        norms = self._each(parts)
        finite = math.isfinite(self._order)
        powers = self._over_ranks(norms**self._order, dist.ReduceOp.SUM) if finite else self._greatest(norms)
        # Not a product with zeros and ones, which would carry a NaN into every group.
        mine = torch.where(self._members, powers, 0.0)
        totals = mine.sum(dim=1) ** (1 / self._order) if finite else mine.amax(dim=1)
        found = dict(zip(self._names, totals.unbind(), strict=True))
        whole = powers ** (1 / self._order) if finite else powers
        return {name: whole[place] for name, place in self._alone.items()} | found

    def _greatest(self, norms: Tensor) -> Tensor:
        """Return the greatest norms of all ranks.

        Which of a NaN and a number is the greater is not defined there, so they part.
        """
        rows = torch.stack([norms.nan_to_num(nan=0.0, posinf=math.inf), norms.isnan().double()], dim=1)
        greatest, unknown = self._over_ranks(rows, dist.ReduceOp.MAX).unbind(dim=1)
        return torch.where(unknown > 0, math.nan, greatest)

    def _each(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the norm of each part, as one vector."""
        full = [_not_empty(part) for part in parts]
        cut = len(full) - self._halves
        norms = list(torch._foreach_norm(full[:cut], self._order)) if cut else []
        if self._halves:
            norms += torch._foreach_norm(full[cut:], self._order, dtype=torch.float32)
        return torch.stack([norm.to(full[0].device) for norm in norms]).double()  # whose squares do not overflow


def _ratio(change: Tensor, weight: Tensor) -> Tensor:
    """Return the ratio; 0 if there is nothing to divide by."""
    return torch.where(weight == 0, 0.0, change / weight)


def _not_empty(part: Tensor) -> Tensor:
    """Return the part, or a zero if it is empty.

    A rank may hold nothing of a tensor; the greatest of no values is not defined.
    """
    return part if part.numel() else part.new_zeros(1)
