"""Check once, and early, that the required metrics are logged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from trainrun import Field, PluginOptions, UsageError, hookimpl

if TYPE_CHECKING:
    from trainrun import Recipe, Run

_LOG = "the first log"


class MetricCheckOptions(PluginOptions):
    """Which metrics there must be, and what it means if one is missing."""

    expect: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1, description="Names of metrics, or patterns such as `eval/*` that at least one metric must match."
    )
    on_missing: Literal["fail", "warn"] = Field("fail", description="Fail the run, or only warn.")


class MetricCheck:
    """Check that the first log of training and the first evaluation of each split have the expected metrics.

    A metric whose name starts with an evaluated split is expected in its evaluation, any other in the first log after
    a step. Each is checked once; a resumed run does not check again.
    """

    Options = MetricCheckOptions

    def __init__(self, options: MetricCheckOptions) -> None:
        self._options = options
        self._decided: list[str] = []

    @hookimpl
    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:  # not the log of an evaluation
            self._look(run, _LOG, None, metrics)

    @hookimpl(ranks="zero")
    def on_evaluated(self, run: Run, splits: Sequence[str], metrics: Mapping[str, float]) -> None:
        for split in splits:
            of_split = [name for name in metrics if _split(name, run.recipe) == split]
            self._look(run, f"the first evaluation of {split}", split, of_split)

    def state_dict(self) -> dict[str, Any]:
        return {"decided": list(self._decided)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._decided = list(state["decided"])

    def _look(self, run: Run, where: str, split: str | None, metrics: Iterable[str]) -> None:
        if where in self._decided:
            return
        self._decided.append(where)
        expected = [pattern for pattern in self._options.expect if _split(pattern, run.recipe) == split]
        names = sorted(metrics)
        missing = [pattern for pattern in expected if not any(fnmatchcase(name, pattern) for name in names)]
        if missing:
            self._tell(run, missing, f"{where} has no metric {', '.join(map(repr, missing))}; it has: {_listed(names)}")

    def _tell(self, run: Run, missing: Sequence[str], message: str) -> None:
        if self._options.on_missing == "fail":
            raise UsageError(message)
        run.logger.warning(message, missing=list(missing), step=run.step)


def _split(pattern: str, recipe: Recipe) -> str | None:
    """Return the split whose evaluation is to have the metric, if any."""
    return next((split for split in recipe.evaluate.splits if pattern.startswith(f"{split}/")), None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
