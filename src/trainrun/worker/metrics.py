"""Metrics: kept on the device during training, reduced over steps and ranks when they are logged.

Between logs `add` only keeps a reference. At a log the values of this rank go to the host in one transfer. One gather
carries every rank's sums to all; the ranks' lists of names are compared in the same gather. A metric that only some
ranks have logged is reduced over those, with a warning.
"""

from __future__ import annotations

import math
import numbers
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsFloat, get_args

import torch

from trainrun.errors import TrainingError

Reduce = Literal["mean", "sum", "min", "max", "last", "zero"]
REDUCTIONS: tuple[str, ...] = get_args(Reduce)

Value = torch.Tensor | float | int
Gather = Callable[[torch.Tensor], list[torch.Tensor]]
GatherObjects = Callable[[object], list[object]]

_FOLD = 512  # how many values of one metric are kept before they are folded into one
_STEP = "evaluation_step"
_PREDICTIONS = "predictions"  # in what `evaluation_step` returns: for plugins, no metric
_NAMED = 8  # metrics in a warning
_CELLS = 64  # how many metrics one gather has room for; grows on demand, on all ranks alike


def as_number(value: object) -> torch.Tensor | float:
    """Return a real number as a float, or a tensor's as a tensor.

    Numbers of NumPy and fractions are real numbers too. Raises TypeError or ValueError, which say what it is instead.
    """
    if type(value) is float:
        return value
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"expected one number, got a tensor of shape {tuple(value.shape)}")
        if value.is_complex():
            raise TypeError(f"expected a real number, got a tensor of {value.dtype}")
        return value
    if not isinstance(value, numbers.Real):
        kind = "a real number" if isinstance(value, numbers.Complex) else "a number or a tensor"
        raise TypeError(f"expected {kind}, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"expected a number of at most {sys.float_info.max:.3g}, got a larger one") from None


@dataclass(slots=True)
class Series:
    """The values of one metric since the last log, with their weights."""

    reduce: Reduce
    values: list[Value] = field(default_factory=list)
    weights: list[Value] = field(default_factory=list)

    def add(self, value: Value, weight: Value) -> None:
        """Keep one value.

        Tensors must not require gradients, nor be written to afterwards.
        """
        self.values.append(value)
        self.weights.append(weight)
        if len(self.values) >= _FOLD:
            self.values, self.weights = [self.folded()], [self.weight()]

    def take(self) -> tuple[Value, Value]:
        """Return the folded value and the sum of weights; forget them."""
        taken = self.peek()
        self.values, self.weights = [], []
        return taken

    def peek(self) -> tuple[Value, Value]:
        """Return the folded value and the sum of weights."""
        return self.folded(), self.weight()

    def weight(self) -> Value:
        """Return the sum of the weights; a tensor stays on its device."""
        if any(isinstance(weight, torch.Tensor) for weight in self.weights):
            return _stacked(self.weights).sum()
        return math.fsum(self.weights)

    def folded(self) -> Value:
        """Return one value for all; a tensor stays on its device.

        It is the weighted mean, sum, minimum, maximum or last value.
        """
        if len(self.values) == 1 or self.reduce in ("last", "zero"):
            return self.values[-1]
        stacked = _stacked(self.values)
        if self.reduce == "mean":
            weights = _stacked(self.weights).to(stacked.device)
            # The mean over nothing is often nan: a value of weight zero must leave no trace.
            return torch.where(weights > 0, stacked * weights, 0.0).sum() / weights.sum()
        if self.reduce == "sum":
            return stacked.sum()
        return stacked.min() if self.reduce == "min" else stacked.max()


def _stacked(values: Sequence[Value]) -> torch.Tensor:
    """Return all values as one tensor of double precision.

    It is on the device of those that are tensors.
    """
    device = next((value.device for value in values if isinstance(value, torch.Tensor)), None)
    return torch.stack(
        [
            torch.tensor(value, dtype=torch.float64, device=device)
            if not isinstance(value, torch.Tensor)
            else value.reshape(())
            for value in values
        ]
    ).double()


class Metrics:
    """The metrics of one rank, and the way to reduce them with those of the others.

    gather: gathers one float64 host tensor of equal shape from all ranks; gather_objects: any JSON value.
    Both are None for a single worker.
    """

    def __init__(self, rank: int, gather: Gather | None, gather_objects: GatherObjects | None) -> None:
        self._rank = rank
        self._gather = gather
        self._gather_objects = gather_objects
        self._series: dict[str, Series] = {}
        self._cells = _CELLS
        self._partial: dict[str, tuple[int, ...]] = {}  # metrics that only some ranks have logged, and which
        self._busy: tuple[int, ...] = ()  # the ranks that had logged something then

    def add(self, name: str, value: SupportsFloat, reduce: Reduce = "mean", weight: Value = 1.0) -> None:
        """Keep one value until the next log.

        `value` is a number or a tensor with one element, on any device.
        """
        series = self.series(name, reduce)
        try:
            number = as_number(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"run.log({name!r}): {error}") from None
        if isinstance(number, torch.Tensor) and number.requires_grad:
            number = number.detach()
        series.add(number, weight)

    def series(self, name: str, reduce: Reduce = "mean") -> Series:
        """Return the series of the metric `name`.

        With it a value is added many times without looking the metric up.
        """
        series = self._series.get(name)
        if series is None:
            if reduce not in REDUCTIONS:
                raise ValueError(f"run.log({name!r}, reduce={reduce!r}): reduce must be one of {', '.join(REDUCTIONS)}")
            series = self._series[name] = Series(reduce)
        elif series.reduce != reduce:
            raise ValueError(f"run.log({name!r}): reduced by {series.reduce!r} before, now by {reduce!r}")
        return series

    def reduce(self, *, keep: bool = False) -> dict[str, float]:
        """Return the metrics since the last call, reduced over steps and ranks.

        Call it on all ranks alike. keep: they are also part of the next call's. A mean whose weights are all 0 is none,
        and is left out. The result is equal on all ranks, except for metrics with `reduce="zero"`, which only rank 0
        gets.
        """
        mine = {
            name: (series.reduce, *(series.peek() if keep else series.take()))
            for name, series in self._series.items()
            if series.values
        }
        host = _to_host([part for _, value, weight in mine.values() for part in (value, weight)])
        values, weights = dict(zip(mine, host[::2], strict=True)), dict(zip(mine, host[1::2], strict=True))
        reduced = {name: values[name] for name, row in mine.items() if row[0] == "zero" and self._rank == 0}
        rows = [(name, mine[name][0], values[name], weights[name]) for name in sorted(mine) if mine[name][0] != "zero"]
        return self._over_ranks(rows) | reduced

    def take_warnings(self, known: set[str], *, idle: bool = False) -> list[str]:
        """Return a sentence for metrics that only some ranks have logged.

        It is equal on all ranks, and empty afterwards.

        known: the metrics that were warned of before, to which these are added.
        idle: a rank that has logged nothing at all had nothing to log from, as one without a batch of a small split.
        """
        by_ranks: dict[tuple[int, ...], list[str]] = {}
        for name, ranks in self._partial.items():
            if name not in known and not (idle and ranks == self._busy):
                by_ranks.setdefault(ranks, []).append(name)
        known.update(name for names in by_ranks.values() for name in names)
        self._partial = {}
        return [_partial_warning(names, ranks) for ranks, names in by_ranks.items()]

    def state_dict(self) -> dict[str, Any]:
        """Return what was added since the last log.

        For each metric this is its reduction, values (float64) and weights.
        """
        return {
            name: [series.reduce, _stacked(series.values).cpu(), _to_host(series.weights)]
            for name, series in self._series.items()
            if series.values
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what `state_dict` returned."""
        for name, (reduce, values, weights) in state.items():
            series = self.series(name, reduce)
            series.values, series.weights = values.tolist(), list(weights)

    def _over_ranks(self, rows: list[tuple[str, Reduce, float, float]]) -> dict[str, float]:
        if self._gather is None:
            return {name: value for name, reduce, value, weight in rows if _counts(reduce, [(value, weight)])}
        packed = torch.zeros(2 + 2 * self._cells, dtype=torch.float64)
        packed[0], packed[1] = len(rows), _layout(rows)
        if len(rows) <= self._cells:
            packed[2 : 2 + 2 * len(rows)] = torch.tensor(
                [cell for row in rows for cell in row[2:]], dtype=torch.float64
            )
        gathered = [rank.tolist() for rank in self._gather(packed)]
        if any(rank[:2] != gathered[0][:2] for rank in gathered) or gathered[0][0] > self._cells:
            return self._over_unlike_ranks(rows)
        return {
            name: _combine(reduce, pairs)
            for place, (name, reduce, _, _) in enumerate(rows)
            if _counts(reduce, pairs := [(rank[2 + 2 * place], rank[3 + 2 * place]) for rank in gathered])
        }

    def _over_unlike_ranks(self, rows: list[tuple[str, Reduce, float, float]]) -> dict[str, float]:
        """Exchange the names too, because ranks logged different ones.

        Slower, and rare.
        """
        assert self._gather_objects is not None
        found: dict[str, tuple[Reduce, list[tuple[float, float]]]] = {}
        largest, gathered = 0, self._gather_objects(rows)
        logged: dict[str, list[int]] = {}
        for rank, rank_rows in enumerate(gathered):
            assert isinstance(rank_rows, list)
            for name, *_ in rank_rows:
                logged.setdefault(name, []).append(rank)
            largest = max(largest, len(rank_rows))
            for name, reduce, value, weight in rank_rows:
                known, pairs = found.setdefault(name, (reduce, []))
                if known != reduce:
                    raise TrainingError(
                        f"metric {name!r} is reduced by {known!r} on one rank and by {reduce!r} on another"
                    )
                pairs.append((value, weight))
        while self._cells < largest:
            self._cells *= 2
        self._busy = tuple(rank for rank, rank_rows in enumerate(gathered) if rank_rows)
        self._partial.update({name: tuple(ranks) for name, ranks in logged.items() if len(ranks) < len(gathered)})
        return {name: _combine(reduce, pairs) for name, (reduce, pairs) in found.items() if _counts(reduce, pairs)}


def _partial_warning(names: list[str], ranks: tuple[int, ...]) -> str:
    shown = ", ".join(map(repr, names[:_NAMED])) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    which = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
    return (
        f"the metric{'s' if len(names) > 1 else ''} {shown} came from {which} only, and the others are left out of the"
        ' value; log the same names on all ranks, or use reduce="zero" for what only rank 0 knows'
    )


def _layout(rows: list[tuple[str, Reduce, float, float]]) -> float:
    return float(zlib.crc32("\n".join(f"{name} {reduce}" for name, reduce, _, _ in rows).encode()))


def _to_host(values: list[Value]) -> list[float]:
    """Copy values to the host.

    There is one transfer for each device that holds values: usually one in all.
    """
    host: list[float] = [0.0] * len(values)
    by_device: dict[torch.device, list[int]] = {}
    for place, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            by_device.setdefault(value.device, []).append(place)
        else:
            host[place] = float(value)
    for places in by_device.values():
        stacked = torch.stack([torch.as_tensor(values[place]).reshape(()).double() for place in places])
        for place, number in zip(places, stacked.tolist(), strict=True):
            host[place] = number
    return host


def _counts(reduce: Reduce, pairs: list[tuple[float, float]]) -> bool:
    """Return whether there is a result: the mean over nothing is none."""
    return reduce != "mean" or any(weight for _, weight in pairs)


def _combine(reduce: Reduce, pairs: list[tuple[float, float]]) -> float:
    values = [value for value, _ in pairs]
    if reduce == "mean":
        total = math.fsum(weight for _, weight in pairs)
        return sum(value * weight for value, weight in pairs if weight) / total
    if reduce == "sum":
        return sum(values)
    if reduce == "last":
        return values[0]
    if any(math.isnan(value) for value in values):
        return math.nan
    return min(values) if reduce == "min" else max(values)


def weighted(metrics: object, whose: Callable[[str], str] | None = None) -> dict[str, tuple[Value, float | None]]:
    """Read what `evaluation_step` returned: name → value and weight.

    The weight is None if there is none. What it calls predictions is no metric, and left out. whose: says, at the end
    of a message, whose hookimpl it is.
    """

    def wrong(what: str, instead: str) -> TrainingError:
        return TrainingError(f"{_STEP} returned {what}; return {instead}{whose(_STEP) if whose else ''}")

    if not isinstance(metrics, Mapping):
        raise wrong(f"a {type(metrics).__name__}", "a mapping of names to values")
    found: dict[str, tuple[Value, float | None]] = {}
    for name, value in metrics.items():
        if name == _PREDICTIONS:
            continue
        given, weight = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        if not isinstance(given, torch.Tensor | numbers.Real):
            raise wrong(f"{type(given).__name__} as {name!r}", "a number, a tensor or (value, weight)")
        if isinstance(given, torch.Tensor) and given.numel() != 1:
            raise wrong(f"a tensor of shape {tuple(given.shape)} as {name!r}", "one number, or (value, weight)")
        try:
            found[name] = (as_number(given), None if weight is None else float(as_number(weight)))
        except (TypeError, ValueError) as error:
            raise wrong(f"{value!r} as {name!r}", f"what is a real number ({error})") from None
    return found
