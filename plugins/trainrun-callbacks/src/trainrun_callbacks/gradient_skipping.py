"""Leave out updates whose gradients are too large or not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from trainrun import Field, PluginOptions, TrainingError, hookimpl

if TYPE_CHECKING:
    import torch

    from trainrun import Run


_SHARED = 2.0  # the norm that trainrun computes, once for all who ask


class GradientSkippingOptions(PluginOptions):
    """Which updates are left out."""

    threshold: float | None = Field(None, gt=0, description="Skip updates whose gradients have a larger norm.")
    norm_type: Annotated[float, Field(gt=0)] | Literal["inf"] = Field(
        2.0, description='Order p of the p-norm; `"inf"` is the largest absolute value.'
    )
    start: int = Field(100, ge=1, description="First step to which `threshold` applies; early norms are large.")
    non_finite: bool = Field(True, description="Skip updates whose norm is NaN or infinite, from step 1 on.")
    max_in_a_row: int = Field(100, ge=1, description="Fail the run after this many skipped updates in a row.")


class GradientSkipping:
    """Skip an update if the norm of its gradients is above `threshold` or not finite.

    The norm is that of all gradients over all ranks, unscaled and before clipping, so that all ranks decide alike. If
    ranks have different gradients (`parallel.strategy = "none"`), all ranks skip if one of them would. `threshold`
    does not apply to NaN and infinity: with `non_finite = false` such updates are not skipped. A skipped update leaves
    model, optimizer and scheduler unchanged, and counts as a step.
    """

    Options = GradientSkippingOptions

    def __init__(self, options: GradientSkippingOptions) -> None:
        self._options = options
        self._skipped = 0
        self._in_a_row = 0

    @hookimpl
    def check_recipe(self) -> str | None:
        if self._options.threshold is None and not self._options.non_finite:
            return "without threshold and with non_finite = false it skips nothing; set threshold"
        return None

    @hookimpl(mutates=True)
    def should_skip_update(self, run: Run, model: torch.nn.Module, grad_norm: torch.Tensor) -> str | None:
        norm = grad_norm if self._options.norm_type == _SHARED else _norm(model, float(self._options.norm_type))
        reason = _agreed(self._judge(float(norm), run.step), run, model)
        self._in_a_row = 0 if reason is None else self._in_a_row + 1
        self._skipped += reason is not None
        run.log("train/skipped", self._skipped, reduce="zero")
        if self._in_a_row >= self._options.max_in_a_row:
            raise TrainingError(
                f"{self._in_a_row} updates in a row were skipped (max_in_a_row), the last because {reason};"
                " lower the learning rate, raise threshold, or look at the data"
            )
        return reason

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self._skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._skipped, self._in_a_row = state["skipped"], state["in_a_row"]

    def _judge(self, norm: float, step: int) -> str | None:
        if not math.isfinite(norm):
            return f"the norm of the gradients is {norm}" if self._options.non_finite else None
        threshold = self._options.threshold
        if threshold is None or step < self._options.start or norm <= threshold:
            return None
        return f"the norm of the gradients is {norm:.4g}, above {threshold:g}"


def _agreed(reason: str | None, run: Run, model: torch.nn.Module) -> str | None:
    """Return the reason to skip on which all ranks agree.

    If each rank may have gradients of its own, all skip what one of them skips. A collective in that case.
    """
    import torch  # noqa: PLC0415 - the client imports this module, and must stay free of it

    from trainrun_callbacks.reductions import of_any_rank, same_everywhere  # noqa: PLC0415

    if same_everywhere(model) or not of_any_rank(torch.tensor(reason is not None, device=run.device)):
        return reason
    return reason or "another rank skips the update for its gradients"


def _norm(model: torch.nn.Module, kind: float) -> torch.Tensor:
    from trainrun_callbacks.reductions import total_norm  # noqa: PLC0415 - the client imports this without torch

    return total_norm(model, kind)
