"""A link to the newest checkpoint, and checkpoints by time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from trainrun import Duration, Field, PluginOptions, hookimpl
from trainrun_callbacks.links import LINK_NAME, point, problem

if TYPE_CHECKING:
    from trainrun import Run

_CHECKPOINT = re.compile(r"step-([0-9]+)")


class LastCheckpointOptions(PluginOptions):
    """What the link is called, and when to save."""

    link: str = Field("last", pattern=LINK_NAME, max_length=64, description="Name of the link.")
    every: Duration | None = Field(
        None,
        description="Training time between two checkpoints that this plugin requests, such as `10m`; by default, none.",
    )


class LastCheckpoint:
    """Link to the newest checkpoint, and request one whenever `every` has passed.

    Rank 0 measures the time and requests the checkpoint by a vote. The elapsed time is saved in the checkpoint, and a
    resumed attempt continues from it. The link points to any newest checkpoint, also one that another plugin requested.
    """

    Options = LastCheckpointOptions

    def __init__(self, options: LastCheckpointOptions, clock: Callable[[], float] = monotonic) -> None:
        self._options = options
        self._clock = clock
        self._before = 0.0  # seconds since the last vote, in earlier attempts
        self._since: float | None = None

    @hookimpl
    def check_recipe(self) -> list[str]:
        nothing = "every = 0: expected a time between two checkpoints; leave it out for none"
        return [text for text in (nothing if self._options.every == 0 else None, problem(self._options.link)) if text]

    @hookimpl(ranks="zero")
    def on_train_start(self, run: Run) -> None:
        """Begin to count; repair the link.

        The link may lead to a checkpoint that was put aside since.
        """
        self._since = self._clock()
        self._point(run, _newest(run.paths.checkpoints, run.step))

    @hookimpl(ranks="zero")
    def should_checkpoint(self) -> str | None:
        every = self._options.every
        if every is None or self._elapsed() < every:
            return None
        self._before, self._since = 0.0, self._clock()
        return f"every = {every:g} s"

    @hookimpl(ranks="zero")
    def on_checkpoint_saved(self, run: Run, checkpoint: str) -> None:
        self._point(run, Path(checkpoint).name)

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self._elapsed()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._before = state["elapsed"]

    def _point(self, run: Run, target: str | None) -> None:
        """Update the link, or remove it.

        If that fails, the next save tries it again.
        """
        link = run.paths.checkpoints / self._options.link
        try:
            if target is not None:
                point(link, target)
            elif link.is_symlink():
                link.unlink()
        except OSError as error:
            run.logger.warning("the link to the newest checkpoint was not made", link=link.name, reason=str(error))

    def _elapsed(self) -> float:
        return self._before + (0.0 if self._since is None else self._clock() - self._since)


def _newest(folder: Path, limit: int) -> str | None:
    """Return the name of the newest checkpoint up to that step.

    A folder of any other name is not a checkpoint.
    """
    found = [(path.name, _CHECKPOINT.fullmatch(path.name)) for path in folder.glob("step-*")]
    older = {int(match[1]): name for name, match in found if match and int(match[1]) <= limit}
    return older[max(older)] if older else None
