"""Look for gradients and parameters that are not finite, or are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainrun import Field, PluginOptions, TrainingError, hookimpl

if TYPE_CHECKING:
    import torch

    from trainrun import Recipe, Run


class FiniteCheckOptions(PluginOptions):
    """What to look at, and what to do about what is found."""

    action: Literal["fail", "skip", "warn"] = Field(
        "fail", description="Fail the run, skip the update, or warn at the next log."
    )
    gradients: bool = Field(True, description="Check the gradients of each update.")
    parameters: bool = Field(False, description="Also check the parameters, before each update.")
    missing: bool = Field(True, description="Check the first update for trained parameters without a gradient.")


class FiniteCheck:
    """Find gradients and parameters that are not finite, and name them.

    Gradients are checked once per update, after reduction and unscaling and before clipping, in one pass. `"fail"` and
    `"skip"` read the result before each update, and all ranks act alike; `"warn"` accumulates on the device and reads
    at the next log. Skipping cannot repair parameters: if they are not finite, the run fails unless the action is
    `"warn"`. Missing gradients cause a warning unless the action is `"fail"`.
    """

    Options = FiniteCheckOptions

    def __init__(self, options: FiniteCheckOptions) -> None:
        self._options = options
        self._first = True
        self._found: dict[str, dict[tuple[str, ...], torch.Tensor]] = {"gradients": {}, "parameters": {}}
        self._reports = True  # every rank would say the same if gradients are whole

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> str | None:
        if recipe.train.precision == "fp16" and self._options.gradients and self._options.action == "fail":
            return (
                "under fp16 gradients overflow now and then, until the loss scale fits, and such updates are skipped;"
                ' set action = "warn"'
            )
        return None

    @hookimpl(mutates=True)
    def on_gradients_ready(self, run: Run, model: torch.nn.Module) -> None:
        if self._first and self._options.missing:
            self._find_missing(run)
        self._first = False
        if self._options.gradients:
            self._look("gradients", run, model)
        if self._options.parameters:
            self._look("parameters", run, model)
        if self._options.action == "fail":
            self._fail_on("gradients")
        if self._options.action != "warn":
            self._fail_on("parameters")

    @hookimpl(mutates=True)
    def should_skip_update(self) -> str | None:
        if self._options.action != "skip":
            return None
        names = self._take("gradients")
        return f"gradients that are not finite: {_listed(names)}" if names else None

    @hookimpl(ranks="all")
    def on_log(self, run: Run, step: int) -> None:
        for what in self._found:
            names = self._take(what) if self._reports else []
            if names:
                run.logger.warning(f"{what} that were not finite since the last log", parameters=names, step=step)

    def _find_missing(self, run: Run) -> None:
        assert run.module is not None
        trained = [(name, one) for name, one in run.module.named_parameters() if one.requires_grad]
        names = [name for name, one in trained if one.grad is None]
        if not names:
            return
        what = f"the first update has no gradient for {_listed(names)}; let them take part in the loss, or freeze them"
        if self._options.action == "fail":
            raise TrainingError(what)
        run.logger.warning(what)

    def _look(self, what: str, run: Run, model: torch.nn.Module) -> None:
        from trainrun_callbacks import reductions  # noqa: PLC0415 - the client imports this without torch

        assert run.module is not None
        named = [(name, one if what == "parameters" else one.grad) for name, one in run.module.named_parameters()]
        there = {name: one.detach() for name, one in named if one is not None and one.is_floating_point()}
        if not there:
            return
        flags = reductions.not_finite(list(there.values()))
        alike = reductions.same_everywhere(model)
        if self._options.action != "warn" and not alike:
            flags = reductions.of_any_rank(flags)
        self._reports = run.world.rank == 0 or not alike
        found, names = self._found[what], tuple(there)
        found[names] = found[names] | flags if names in found else flags

    def _take(self, what: str) -> list[str]:
        """Return the parameters that were found since the last call.

        Waits for the device.
        """
        found, self._found[what] = self._found[what], {}
        rows = [(names, flags.tolist()) for names, flags in found.items()]
        return [name for names, flags in rows for name, bad in zip(names, flags, strict=True) if bad]

    def _fail_on(self, what: str) -> None:
        if names := self._take(what):
            raise TrainingError(
                f"{what} that are not finite: {_listed(names)}; lower the learning rate or check the data"
            )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
