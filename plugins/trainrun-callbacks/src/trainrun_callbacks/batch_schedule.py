"""Change the batch size from epoch to epoch, by accumulating more or fewer micro-batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainrun import Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from trainrun import Recipe


class BatchScheduleOptions(PluginOptions):
    """Batch sizes by epoch."""

    schedule: dict[str, int] = Field(
        min_length=1, description="Samples per update, over all workers, for each epoch at which the size changes."
    )


class BatchSchedule:
    """Change the batch size by epoch: `{ "1" = 64, "5" = 128 }` means 64 samples up to epoch 4, then 128.

    The size of a micro-batch stays the same; an update uses more of them. Before the first epoch of the schedule,
    `train.batch_size` applies. Each sample is still used once per epoch.
    """

    Options = BatchScheduleOptions

    def __init__(self, options: BatchScheduleOptions) -> None:
        self._schedule = options.schedule

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> list[str]:
        wrong = [key for key in self._schedule if not (key.isdecimal() and int(key) >= 1)]
        problems = [f"schedule: {key!r} is no epoch; epochs are counted from 1" for key in wrong]
        unit = recipe.train.micro_batch_size or 1
        if isinstance(recipe.launch.workers, int):
            workers = recipe.launch.workers * recipe.launch.nodes
            unit = workers * (recipe.train.micro_batch_size or recipe.train.batch_size // workers)
        for epoch, size in self._schedule.items():
            if size < 1 or size % max(1, unit):
                problems.append(
                    f"schedule: {size} samples from epoch {epoch} on cannot be cut into micro-batches;"
                    f" take a multiple of {unit} (workers times micro_batch_size)"
                )
        return problems

    @hookimpl
    def choose_batch_size(self, epoch: int) -> int | None:
        begun = [first for first in self._schedule if int(first) <= epoch]
        return self._schedule[max(begun, key=int)] if begun else None
