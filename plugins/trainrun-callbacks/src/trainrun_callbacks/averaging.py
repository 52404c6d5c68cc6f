"""What plugins that average the weights have in common: when to average, and evaluating with the average."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainrun import Field, PluginOptions, UsageError, hookimpl

if TYPE_CHECKING:
    from trainrun import Recipe, Run
    from trainrun_callbacks.averages import Averages

PLUGINS = ("ema", "weight-averaging")
_CLAIM = "_trainrun_evaluated_by"  # on the module: which plugin evaluates with its averages


class AveragingOptions(PluginOptions):
    """When to average, and whether the average is kept on the host."""

    every: int = Field(1, ge=1, description="Number of steps between two averagings.")
    start: int = Field(1, ge=1, description="First step whose weights to average.")
    offload: bool = Field(False, description="Keep the average in host memory instead of on the GPU.")
    save: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors$",
        description="Write the averaged weights to this safetensors file in the run directory when training has ended.",
    )


class Averaging(ABC):
    """Averages the trained parameters after updates; a plugin says with what weight, and when to evaluate with it."""

    def __init__(self, options: AveragingOptions, *, evaluates: bool, stays: bool = False) -> None:
        self._when = options
        self._evaluates = evaluates
        self._stays = stays  # in the model, when training has ended
        self._averages: Averages | None = None
        self._saved: Mapping[str, Any] = {}
        self._count = 0  # of the steps that were averaged

    @abstractmethod
    def weight(self) -> float:
        """Return how far the average goes towards the weights of this step.

        Before the first, it has none of its own.
        """

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> str | None:
        names = [name for name, table in recipe.plugins.items() if (table.use or name) in PLUGINS]
        evaluating = [name for name in names if recipe.plugins[name].options.get("evaluate") != "model"]
        running = [name for name in evaluating if recipe.plugins[name].enabled is True]
        return _several(running) if len(running) > 1 else None

    @hookimpl(mutates=True)
    def on_train_start(self, run: Run) -> None:
        from trainrun_callbacks.averages import Averages  # noqa: PLC0415 - the client imports this without torch

        assert run.module is not None
        if self._evaluates:
            self._claim(run)
        named = {name: one for name, one in run.module.named_parameters() if one.requires_grad}
        self._averages = Averages(named, offload=self._when.offload)
        if self._count:
            self._averages.load(self._saved)
            self._saved = {}

    @hookimpl(mutates=True)
    def on_update_end(self, run: Run, skipped: str | None) -> None:
        past = run.step - self._when.start
        if skipped is None and past >= 0 and past % self._when.every == 0:
            assert self._averages is not None
            self._averages.update(self.weight() if self._count else 1.0)
            self._count += 1

    # First at the start and last at the end: all other plugins see the weights that are evaluated.

    @hookimpl(mutates=True, tryfirst=True)
    def on_evaluation_start(self) -> None:
        if self._evaluates and self._count and self._averages is not None and not self._averages.swapped:
            self._averages.swap_in()

    @hookimpl(mutates=True, trylast=True)
    def on_evaluation_end(self) -> None:
        self._restore()

    # An evaluation that is broken off has no end; what follows it then is one of these. First, for the other plugins.

    @hookimpl(mutates=True, tryfirst=True)
    def on_checkpoint_start(self) -> None:
        self._restore()

    @hookimpl(mutates=True, tryfirst=True)
    def on_step_start(self) -> None:
        self._restore()

    @hookimpl(mutates=True, tryfirst=True)
    def on_exception(self) -> None:
        """Restore the weights, for what others then save.

        This is done even if the average was to stay. No other rank is asked.
        """
        self._restore()

    @hookimpl(mutates=True, tryfirst=True)
    def on_train_end(self, run: Run) -> None:
        self._restore()
        if self._averages is None or not self._count or not (self._stays or self._when.save):
            return
        self._averages.swap_in()
        if self._when.save:
            run.save_weights(run.paths.root / self._when.save)
        if not self._stays:
            self._averages.swap_out()

    def state_dict(self) -> dict[str, Any]:
        if not self._count:
            return {"count": 0, "average": {}}
        average = self._saved if self._averages is None or self._saved else self._averages.state()
        return {"count": self._count, "average": dict(average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._count, self._saved = state["count"], state["average"]

    def _restore(self) -> None:
        if self._averages is not None:
            self._averages.swap_out()

    def _claim(self, run: Run) -> None:
        other = getattr(run.module, _CLAIM, run.name)
        if other != run.name:
            raise UsageError(_several([other, run.name]))
        setattr(run.module, _CLAIM, run.name)


def _several(names: list[str]) -> str:
    return f'{" and ".join(names)} would both put their averages into the model; set evaluate = "model" but in one'
