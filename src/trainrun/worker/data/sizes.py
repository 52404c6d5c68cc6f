"""The batch size of each epoch, if a plugin chooses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from trainrun.errors import TaskError, shown


class BatchSizes:
    """What `choose_batch_size` returns for each epoch, asked once an epoch and compared over ranks.

    ask: the hook. default: the size if it returns None. unit: what every size must be a multiple of, the samples of
    one micro-batch on each rank. gather: gathers a JSON value from all ranks; None for a single worker.
    whose: says, at the end of a message, whose hookimpl it is.
    """

    def __init__(
        self,
        ask: Callable[[int], Any],
        default: int,
        unit: int,
        gather: Callable[[object], list[object]] | None,
        whose: str = "",
    ) -> None:
        self._ask = ask
        self._default = default
        self._unit = unit
        self._gather = gather
        self._whose = whose
        self._known: dict[int, int] = {}

    def of(self, epochs: Iterable[int]) -> list[int]:
        """Return the sizes of these epochs. Call it on all ranks alike.

        Raises TrainingError for a size that cannot be, and if ranks have other sizes than rank 0.
        """
        wanted = list(epochs)
        new = [epoch for epoch in wanted if epoch not in self._known]
        if new:
            sizes = [self._checked(self._ask(epoch), epoch) for epoch in new]
            self._require_alike(new, sizes)
            self._known |= zip(new, sizes, strict=True)
        return [self._known[epoch] for epoch in wanted]

    def _checked(self, answer: object, epoch: int) -> int:
        if answer is None:
            return self._default
        if not isinstance(answer, int) or isinstance(answer, bool) or answer < 1 or answer % self._unit:
            raise TaskError(
                f"choose_batch_size returned {shown(answer)} for epoch {epoch}; return a multiple of {self._unit},"
                f" the samples of one micro-batch on every worker, or None{self._whose}"
            )
        return answer

    def _require_alike(self, epochs: list[int], mine: list[int]) -> None:
        for rank, theirs in enumerate(self._gather(mine) if self._gather else []):
            if theirs != mine:
                raise TaskError(
                    f"choose_batch_size returned {mine} for the epochs {epochs} here and {theirs} on rank {rank};"
                    f" return the same on all ranks{self._whose}"
                )
