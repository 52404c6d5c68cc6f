"""Check that all ranks hold the same parameters, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from trainrun import Field, PluginOptions, TrainingError, hookimpl

if TYPE_CHECKING:
    import torch

    from trainrun import Recipe, Run

_SHOWN = 5


class ParameterCheckOptions(PluginOptions):
    """How often, and what is compared besides the parameters."""

    every: int = Field(100, ge=1, description="Number of steps between two comparisons; the end of training adds one.")
    buffers: bool = Field(
        False, description="Also compare buffers; those of BatchNorm differ between ranks after a forward."
    )
    optimizer: bool = Field(False, description="Also compare the tensors of the optimizer state.")
    on_difference: Literal["fail", "warn"] = Field("fail", description="Fail the run, or only warn.")


class ParameterCheck:
    """Compare a hash of every parameter over all ranks, and name those that differ.

    Replicas diverge when something changes the model or its gradients on some ranks only. With one worker there is
    nothing to compare.
    """

    Options = ParameterCheckOptions

    def __init__(self, options: ParameterCheckOptions) -> None:
        self._options = options
        self._checked = 0

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> str | None:
        if recipe.parallel.strategy != "fsdp":
            return None
        return 'parallel.strategy = "fsdp" gives each rank other parts, so there is nothing to compare; leave it out'

    @hookimpl(mutates=True)
    def on_step_end(self, run: Run, step: int) -> None:
        if step % self._options.every == 0:
            self._check(run)

    @hookimpl(mutates=True)
    def on_train_end(self, run: Run) -> None:
        if self._checked != run.step:
            self._check(run)

    def _check(self, run: Run) -> None:
        self._checked = run.step
        if run.world.size == 1:
            return
        from trainrun_callbacks import comparing  # noqa: PLC0415 - the client imports this without torch

        what, differences = comparing.compare(dict(self._tensors(run)), run.device)
        if differences:
            self._tell(run, f"{what} at step {run.step}", differences)

    def _tell(self, run: Run, what: str, differences: list[str]) -> None:
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        message = (
            f"the ranks hold different {what}: {'; '.join(differences[:_SHOWN])}{more}; "
            "something changes the model or its gradients on some ranks only"
        )
        if self._options.on_difference == "fail":
            raise TrainingError(message)
        if run.world.rank == 0:
            run.logger.warning(message, step=run.step)

    def _tensors(self, run: Run) -> Iterator[tuple[str, torch.Tensor]]:
        assert run.module is not None
        yield from run.module.named_parameters()
        if self._options.buffers:
            yield from run.module.named_buffers()
        if self._options.optimizer and run.optimizer is not None:
            from torch import Tensor  # noqa: PLC0415

            names: dict[torch.Tensor, str] = {one: name for name, one in run.module.named_parameters()}
            for one, state in run.optimizer.state.items():
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        yield f"{key} of {names.get(one, 'a parameter')} in the optimizer", value
