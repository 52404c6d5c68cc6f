"""Keep what filled a GPU when it ran out of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from trainrun import Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from trainrun import Run


class MemorySnapshotOptions(PluginOptions):
    """How much to remember."""

    entries: int = Field(100_000, ge=1, description="Number of allocations and frees to record.")
    stacks: bool = Field(True, description="Also record the source line of each.")


class MemorySnapshot:
    """Record the allocations of a GPU, and write them to `memory/rank-N-step-S.pickle` when it runs out of memory.

    Open the file at pytorch.org/memory_viz. A `….txt` next to it has the allocator's own summary. On a CPU there is
    nothing to record, and the plugin logs that. It never changes the outcome of the run.
    """

    Options = MemorySnapshotOptions
    on_error = "disable"

    def __init__(self, options: MemorySnapshotOptions) -> None:
        self._options = options
        self._records = False

    @hookimpl
    def on_worker_start(self, run: Run) -> None:
        if run.device.type != "cuda":
            run.logger.info("memory-snapshot records nothing: this run trains on the CPU")
            return
        context = "all" if self._options.stacks else None
        torch.cuda.memory._record_memory_history(max_entries=self._options.entries, context=context)
        self._records = True

    @hookimpl
    def on_exception(self, run: Run, error: BaseException) -> None:
        if self._records and ran_out(error):
            folder = run.paths.root / "memory"
            folder.mkdir(exist_ok=True)
            stem = f"rank-{run.world.rank}-step-{run.step}"
            (folder / f"{stem}.txt").write_text(torch.cuda.memory_summary(run.device), encoding="utf-8")
            torch.cuda.memory._dump_snapshot(str(folder / f"{stem}.pickle"))  # type: ignore[no-untyped-call]
            run.logger.error("out of memory: what filled it is in the run directory", file=f"memory/{stem}.pickle")

    @hookimpl
    def on_worker_end(self) -> None:
        if self._records:
            torch.cuda.memory._record_memory_history(enabled=None)


def ran_out(error: BaseException | None) -> bool:
    """Return whether a device has run out of memory.

    The error or what it came from may say so.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
