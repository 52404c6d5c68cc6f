"""Log what the values of parameters, gradients and batches look like."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from trainrun import Field, PluginOptions, UsageError, hookimpl
from trainrun_callbacks.selecting import fits, groups, named_tensors, trained
from trainrun_callbacks.selection import Choice
from trainrun_callbacks.sharded import OverRanks, local

if TYPE_CHECKING:
    from trainrun import Run

Statistic = Literal["mean", "std", "min", "max", "nonfinite"]

_CHUNK = 2**21  # values that are looked at together: some copies of that number in double precision


class TensorStatisticsOptions(PluginOptions):
    """What to look at."""

    parameters: Choice = Field(
        False,
        description="Log statistics of parameters: true for one `total`, shell patterns of names, or a table from names"
        " to log to patterns.",
    )
    gradients: Choice = Field(
        False, description="Log statistics of gradients (reduced, unscaled, before clipping), chosen in the same way."
    )
    batches: Choice = Field(
        False, description="Log statistics of tensors of the batch, by name (`input_ids`) or position (`0`)."
    )
    statistics: list[Statistic] = Field(
        ["mean", "std", "min", "max", "nonfinite"], min_length=1, description="Statistics to log."
    )


class TensorStatistics:
    """Log `WHAT/NAME/STATISTIC`, such as `gradients/total/std`, in logged steps.

    Mean, standard deviation, minimum and maximum are those of the finite values; `nonfinite` is the share of the
    others. Sharded parameters count as a whole. For batches, all ranks count, and the standard deviation is the mean
    over the micro-batches. The host reads nothing before the log.
    """

    Options = TensorStatisticsOptions
    on_error = "disable"

    def __init__(self, options: TensorStatisticsOptions) -> None:
        self._options = options
        self._groups = {what: groups(getattr(options, what)) for what in ("parameters", "gradients", "batches")}
        self._parameters: dict[str, torch.nn.Parameter] = {}
        self._here = False

    @hookimpl(mutates=True)  # ranks that hold shards meet here
    def on_train_start(self, run: Run) -> None:
        assert run.module is not None
        self._parameters = trained(run.module)
        for what in ("parameters", "gradients"):
            _require_matches(what, self._groups[what], self._parameters)
        self._here = run.world.rank == 0 or OverRanks(list(self._parameters.values())).needed

    @hookimpl(mutates=True)
    def on_gradients_ready(self, run: Run) -> None:
        if self._here and run.logs_now:
            gradients = {name: one.grad for name, one in self._parameters.items() if one.grad is not None}
            self._log(run, "gradients", gradients)
            self._log(run, "parameters", {name: one.detach() for name, one in self._parameters.items()})

    @hookimpl
    def on_microbatch_start(self, run: Run, batch: Any) -> None:
        if self._groups["batches"] and run.logs_now:
            tensors = dict(named_tensors(batch))
            _require_matches("batches", self._groups["batches"], tensors)
            self._log(run, "batches", tensors)

    def _log(self, run: Run, what: str, tensors: Mapping[str, Tensor]) -> None:
        for name, patterns in self._groups[what].items():
            found = [tensor for own, tensor in tensors.items() if fits(own, patterns)]
            if not found:
                continue  # parameters without a gradient in this step
            statistics = summary(found)
            for statistic in self._options.statistics:
                reduce = "zero" if what != "batches" else _OF_BATCHES[statistic]
                run.log(f"{what}/{name}/{statistic}", statistics[statistic], reduce=reduce)


def _require_matches(what: str, chosen: Mapping[str, tuple[str, ...]], names: Mapping[str, object]) -> None:
    for group, patterns in chosen.items():
        if not any(fits(name, patterns) for name in names):
            some = ", ".join(list(names)[:5]) or "none"
            raise UsageError(
                f"tensor-statistics: {what}: {group} = {list(patterns)} fits nothing; there are: {some}, …"
            )


_OF_BATCHES: dict[Statistic, Literal["mean", "min", "max"]] = {
    "mean": "mean",
    "std": "mean",
    "min": "min",
    "max": "max",
    "nonfinite": "mean",
}


@torch.no_grad()
def summary(tensors: Iterable[Tensor]) -> dict[Statistic, Tensor]:
    """Return the statistics over all values of the tensors.

    They are scalars on the tensors' device; of shards over those of all ranks.
    """
    whole = list(tensors)
    parts = [_part(local(one)) for one in whole]
    over_ranks = OverRanks(whole)
    sums = over_ranks(torch.stack([sums for sums, _ in parts]), dist.ReduceOp.SUM).sum(dim=0)
    extremes = over_ranks(torch.stack([extremes for _, extremes in parts]), dist.ReduceOp.MAX).amax(dim=0)
    total, squares, finite, count = sums.unbind()
    mean = total / finite
    return {
        "mean": mean,
        "std": (squares / finite - mean.square()).clamp(min=0).sqrt(),
        "min": -extremes[0],
        "max": extremes[1],
        "nonfinite": (count - finite) / count,
    }


def _part(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the statistics of a part.

    These are sum, sum of squares, number of finite values and of all; and the greatest of -values and of values.
    """
    parts = [_of_chunk(chunk) for chunk in torch.split(tensor.detach().flatten(), _CHUNK)]
    sums, extremes = (torch.stack(rows) for rows in zip(*parts, strict=True))
    return sums.sum(dim=0), extremes.amax(dim=0)


def _of_chunk(chunk: Tensor) -> tuple[Tensor, Tensor]:
    values = chunk.double()
    finite = values.isfinite()
    kept = torch.where(finite, values, 0.0)
    count = torch.full((), values.numel(), dtype=torch.float64, device=values.device)
    sums = torch.stack([kept.sum(), kept.square().sum(), finite.sum().double(), count])
    if not values.numel():
        return sums, sums.new_full((2,), -math.inf)
    both = torch.stack([torch.where(finite, -values, -math.inf), torch.where(finite, values, -math.inf)])
    return sums, both.amax(dim=1)
