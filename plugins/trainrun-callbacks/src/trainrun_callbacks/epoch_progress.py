"""Log the epoch as a fraction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainrun import hookimpl

if TYPE_CHECKING:
    from trainrun import Run


class EpochProgress:
    """Log `epoch`: 2.25 after a quarter of the third epoch's training data.

    It counts the data that updates have used, over all ranks. So it is right with several micro-batches per update, at
    uneven ends of epochs, and after a resume. It logs nothing if the loader has no length.
    """

    on_error = "disable"

    @hookimpl(ranks="zero")
    def on_update_end(self, run: Run) -> None:
        if run.logs_now and (progress := run.epoch_progress) is not None:
            run.log("epoch", run.epoch - 1 + progress, reduce="zero")
