"""Keep an exponential moving average of the weights, and evaluate with it."""

from __future__ import annotations

from typing import Literal

from trainrun import Field
from trainrun_callbacks.averaging import Averaging, AveragingOptions


class EmaOptions(AveragingOptions):
    """How slowly the average follows, and what it is used for."""

    decay: float = Field(0.999, ge=0, lt=1, description="Weight of the old average in each averaging.")
    evaluate: Literal["ema", "model"] = Field(
        "ema", description="Evaluate with the average (`ema`) or with the weights (`model`)."
    )


class Ema(Averaging):
    """Keep an exponential moving average of the trained parameters, and evaluate with it.

    After an update, `average = decay * average + (1 - decay) * weights`; not after skipped updates. The average starts
    with the weights after step `start`. Averaging the iterates of stochastic gradient descent goes back to Polyak and
    Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992); the exponential form is the usual one.
    Buffers, such as the running means of batch normalisation, are the model's own.

    A checkpoint holds the weights in the model and the average in this plugin's state, whenever it is taken.
    """

    Options = EmaOptions

    def __init__(self, options: EmaOptions) -> None:
        super().__init__(options, evaluates=options.evaluate == "ema")
        self._decay = options.decay

    def weight(self) -> float:
        return 1.0 - self._decay
