"""Keep what modules compute, in a few chosen steps and evaluation batches."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from trainrun import Field, PluginOptions, UsageError, hookimpl

if TYPE_CHECKING:
    from torch import nn

    from trainrun import Recipe, Run
    from trainrun_callbacks.writing import FileWriter

_MIB = 1024**2

Pattern = Annotated[str, Field(min_length=1)]
Step = Annotated[int, Field(ge=1)]


class ActivationsOptions(PluginOptions):
    """Of which modules, and when."""

    modules: list[Pattern] = Field(min_length=1, description="Shell patterns of module names, such as `blocks.*`.")
    steps: list[Step] = Field([], description="Steps whose first micro-batch to write.")
    evaluation_batches: int = Field(0, ge=0, description="Number of batches per evaluation and rank to write.")
    inputs: bool = Field(False, description="Also write the inputs of the modules.")
    max_mib: float = Field(1024.0, gt=0, description="MiB that each rank writes at most; it logs when it stops there.")


class Activations:
    """Write the outputs of modules to `activations/` in the run directory, one file per rank and batch.

    `step-S/rank-N.pt` holds the outputs of a training step, `SPLIT-step-S/rank-N-batch-I.pt` those of an evaluation
    batch: for each module a list, with one entry per call. Read them with `torch.load`. Modules have hooks only while
    outputs are recorded, and a thread writes the files.
    """

    Options = ActivationsOptions
    on_error = "disable"

    def __init__(self, options: ActivationsOptions) -> None:
        self._options = options
        self._modules: dict[str, nn.Module] = {}
        self._handles: list[Any] = []
        self._found: dict[str, Any] = {}
        self._writer: FileWriter | None = None
        self._written = 0
        self._error: Exception | None = None

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> list[str]:
        problems = []
        if not (self._options.steps or self._options.evaluation_batches):
            problems.append("nothing is kept; set steps or evaluation_batches")
        if recipe.train.compile:
            problems.append("modules within compiled code cannot be hooked; set train.compile = false")
        return problems

    @hookimpl
    def on_train_start(self, run: Run) -> None:
        from trainrun_callbacks.writing import FileWriter  # noqa: PLC0415 - the client must stay free of torch

        assert run.module is not None
        named = {name: module for name, module in run.module.named_modules() if name}
        for pattern in self._options.modules:
            fitting = {name: module for name, module in named.items() if fnmatchcase(name, pattern)}
            if not fitting:
                some = ", ".join(list(named)[:5]) or "none"
                raise UsageError(f"activations: {pattern!r} fits no module; there are: {some}, …")
            self._modules |= fitting
        self._writer = FileWriter("activations")

    @hookimpl
    def on_microbatch_start(self, run: Run, microbatch: int) -> None:
        if microbatch == 0 and run.step in self._options.steps:
            self._begin()

    @hookimpl
    def on_forward_end(self, run: Run) -> None:
        if self._handles:
            self._end(run, f"step-{run.step}/rank-{run.world.rank}.pt")

    @hookimpl
    def on_evaluation_batch_start(self, index: int, size: int) -> None:
        if size and index < self._options.evaluation_batches:
            self._begin()

    @hookimpl
    def on_evaluation_batch_end(self, run: Run, index: int, split: str) -> None:
        if self._handles:
            self._end(run, f"{split}-step-{run.step}/rank-{run.world.rank}-batch-{index}.pt")

    @hookimpl
    def on_train_end(self) -> None:
        if self._writer is not None:
            self._writer.finish()

    @hookimpl
    def on_worker_end(self) -> None:
        self._unhook()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _begin(self) -> None:
        self._unhook()
        if self._writer is not None:
            for name, module in self._modules.items():
                self._handles.append(module.register_forward_hook(partial(self._keep, name)))

    def _keep(self, name: str, module: nn.Module, given: Any, output: Any) -> None:
        from trainrun_callbacks.writing import kept  # noqa: PLC0415

        del module
        try:
            call = {"inputs": kept(given), "output": kept(output)} if self._options.inputs else kept(output)
            self._found.setdefault(name, []).append(call)
        except Exception as error:  # within the forward; raised under the plugin's policy
            self._error = self._error or error

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _end(self, run: Run, name: str) -> None:
        from trainrun_callbacks.writing import save, size_of  # noqa: PLC0415

        self._unhook()
        found, self._found = self._found, {}
        error, self._error = self._error, None
        if error is not None:
            raise error
        assert self._writer is not None
        self._written += size_of(found)
        if self._written > self._options.max_mib * _MIB:
            run.logger.warning("activations are no longer kept: max_mib is reached", max_mib=self._options.max_mib)
            self._writer.finish()
            self._writer.close()
            self._writer = None
            return
        self._writer.put(partial(save, run.paths.root / "activations" / name, found))
