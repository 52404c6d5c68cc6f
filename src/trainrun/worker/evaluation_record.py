"""The metrics of one evaluation: of its batches, of whole splits, and what plugins log meanwhile."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch

from trainrun.errors import TaskError
from trainrun.worker.metrics import Metrics, as_number
from trainrun.worker.session import Session

Rows = list[tuple[str, str, float]]  # the source of a metric, its name, its value


class EvaluationRecord:
    """Gathers the metrics of one evaluation; `values` are equal on all ranks.

    Within its context `run.log` logs into this record, and not into the next log of training.
    """

    def __init__(self, session: Session) -> None:
        self.values: dict[str, float] = {}
        self._session = session
        self._sources: dict[str, str] = {}
        self._earlier: frozenset[str] = frozenset()
        self._warned: set[str] = set()
        self._training = session.state.metrics
        collectives = session.collectives
        self._logged = Metrics(session.state.world.rank, collectives.gather, collectives.gather_objects)

    def __enter__(self) -> Self:
        self._session.state.metrics = self._logged
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.state.metrics = self._training

    def begin_split(self) -> None:
        """Leave what is there out of `of_split`."""
        self._earlier = frozenset(self.values)

    def of_split(self) -> dict[str, float]:
        """The metrics since the last `begin_split`."""
        return {name: value for name, value in self.values.items() if name not in self._earlier}

    def add(self, source: str, metrics: Mapping[str, float]) -> None:
        """Add metrics that are equal on all ranks.

        Raises TrainingError if one has come from another source.
        """
        for name, value in metrics.items():
            other = self._sources.setdefault(name, source)
            if other != source:
                raise TaskError(
                    f"step {self._session.state.step}: the metric {name!r} comes from {other} and from {source};"
                    " give one of them another name"
                )
            self.values[name] = value

    def add_whole_split(self, split: str) -> None:
        """Add what `evaluation_metrics` returns for `split`, and what was logged so far.

        Call it on all ranks alike.
        """
        ask = self._session.hooks.evaluation_metrics
        answers = ask(split) if ask else []
        rows: Rows = [row for plugin, metrics in answers for row in _rows(plugin, split, metrics)]
        self._add_agreed(rows)

    def add_logged(self) -> None:
        """Add what was logged with `run.log` so far. Call it on all ranks alike."""
        self._add_agreed([])

    def _add_agreed(self, rows: Rows) -> None:
        logged = self._logged.reduce(keep=True)
        self._session.warn_partial(self._logged)
        rows = [*rows, *(("run.log", name, value) for name, value in logged.items())]
        gather = self._session.collectives.gather_objects
        if gather is not None:
            ranks: list[Any] = gather(rows)
            self._warn_of_differences(ranks)
            rows = ranks[0]
        for source, name, value in rows:
            self.add(source, {name: value})

    def _warn_of_differences(self, ranks: list[Rows]) -> None:
        """Warn of metrics that a rank has otherwise than rank 0.

        It may have another value or none.
        """
        first, unlike = {name: value for _, name, value in ranks[0]}, dict[str, list[int]]()
        for rank, rows in enumerate(ranks):
            for _, name, value in rows:
                if name not in first or not _equal(value, first[name]):
                    unlike.setdefault(name, []).append(rank)
        for name, where in unlike.items():
            if name not in self._warned:
                self._warned.add(name)
                self._session.warn(
                    f"the metric {name!r} has other values on ranks {', '.join(map(str, where))} than on rank 0, whose"
                    " value is taken; reduce counts over ranks (torch.distributed.all_reduce) before computing it"
                )


def _rows(plugin: str, split: str, metrics: object) -> Rows:
    where = f"evaluation_metrics of {plugin}"
    if not isinstance(metrics, Mapping):
        raise TaskError(f"{where} returned a {type(metrics).__name__}; return a mapping of names to numbers")
    prefix = f"{split}/"
    return [
        (where, name if name.startswith(prefix) else prefix + name, _number(where, name, value))
        for name, value in metrics.items()
    ]


def _number(where: str, name: str, value: object) -> float:
    try:
        # Arrays of NumPy with one number too, and any other object that is one.
        if hasattr(value, "__float__") and not isinstance(value, torch.Tensor | numbers.Complex):
            return float(value)
        return float(as_number(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise TaskError(f"{where}: {name!r} must be one number: {error}") from None


def _equal(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
