"""Average the weights of many steps with equal weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainrun import Field, hookimpl
from trainrun_callbacks.averaging import Averaging, AveragingOptions

if TYPE_CHECKING:
    from trainrun import Run


class WeightAveragingOptions(AveragingOptions):
    """Which steps to average, and what the average is used for."""

    start: int = Field(ge=1, description="First step whose weights to average, late in the training.")
    evaluate: Literal["average", "model"] = Field(
        "average", description="From `start` on, evaluate with the average (`average`) or with the weights (`model`)."
    )
    finish: bool = Field(True, description="Put the average into the model at the end of training.")


class WeightAveraging(Averaging):
    """Average the weights of every `every`-th step from `start` on, with equal weights.

    This is stochastic weight averaging: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
    Generalization" (2018). Steps whose update was skipped do not count. With `finish` the average is in the model when
    `on_completed` and `on_worker_end` fire. This is after the last checkpoint: a checkpoint holds the weights in
    the model and the average in this plugin's state, so that training can resume from it.

    The running statistics of batch normalisation are those of the weights, not of the average; a warning reports this.
    """

    Options = WeightAveragingOptions

    def __init__(self, options: WeightAveragingOptions) -> None:
        super().__init__(options, evaluates=options.evaluate == "average", stays=options.finish)

    @hookimpl(mutates=True)
    def on_train_start(self, run: Run) -> None:
        super().on_train_start(run)
        assert run.module is not None
        normed = [name for name, one in run.module.named_modules() if getattr(one, "running_mean", None) is not None]
        if normed:
            run.logger.warning(
                "the model has batch normalisation: evaluated with averaged weights, it uses the running statistics of"
                " the weights that are trained, which may fit badly",
                modules=normed[:5],
            )

    def weight(self) -> float:
        return 1.0 / (self._count + 1)
