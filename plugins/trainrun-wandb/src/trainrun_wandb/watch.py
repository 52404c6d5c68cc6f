"""The plugin `wandb-watch`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from trainrun import Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from trainrun import Recipe, Run

_SENDER, _SELF = ("wandb", ":Wandb"), ("wandb-watch", ":WandbWatch")  # what a table names: entry point or class


class WandbWatchOptions(PluginOptions):
    """What to watch, and how often."""

    every: int = Field(100, ge=1, description="Number of steps between two histograms; made at the next logged step.")
    log: list[Literal["gradients", "parameters"]] = Field(["gradients"], description="Tensors to watch.")
    match: list[str] = Field(["*"], description="Globs of parameter names.")
    bins: int = Field(64, ge=2, le=512, description="Number of bins per histogram.")


class WandbWatch:
    """Log histograms of gradients and parameters for the `wandb` plugin, as `gradients/NAME` and `parameters/NAME`.

    They are computed on the device, from what rank 0 holds: whole tensors with DDP, its shards with FSDP2. One transfer
    moves them to the host when the step is logged.
    """

    Options = WandbWatchOptions
    on_error = "disable"

    def __init__(self, options: WandbWatchOptions) -> None:
        self._options = options
        self._last = 0  # the step of the last look
        self._names: list[str] = []
        self._counted: torch.Tensor | None = None

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> str | None:
        """Refuse a recipe that watches without a plugin that sends.

        Nothing would send what is seen. Plugins of `-p` are not known here.
        """
        if recipe.run.autoload or not _has(recipe, _SELF) or _has(recipe, _SENDER):
            return None
        return "nothing would send its histograms; add a table [plugins.wandb], which may be empty"

    @hookimpl(ranks="zero")
    def on_train_start(self, run: Run) -> None:
        """Drop what an earlier attempt left of steps made again.

        Continue behind its last look.
        """
        path = self._path(run)
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith(b"\n") and _step(line) <= run.step]
            self._last = _step(kept[-1]) if kept else 0
            if len(kept) < len(lines):
                scratch = path.with_suffix(".tmp")
                scratch.write_bytes(b"".join(kept))
                scratch.replace(path)

    @hookimpl(ranks="zero")
    def on_gradients_ready(self, run: Run) -> None:
        every = self._options.every
        if not run.logs_now or run.step // every == self._last // every:
            return
        import torch  # noqa: PLC0415 - the client imports this module too

        assert run.module is not None
        found = list(self._tensors(run.module))
        self._last, self._names = run.step, [name for name, _ in found]
        if found:
            self._counted = torch.stack([_histogram(tensor.detach(), self._options.bins) for _, tensor in found])

    @hookimpl
    def on_log(self, run: Run, step: int) -> None:
        if self._counted is None:
            return
        rows = self._counted.tolist()
        self._counted = None
        line = json.dumps({"step": step, "time": time.time(), "histograms": dict(self._rows(rows))})
        path = self._path(run)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _rows(self, rows: list[list[float]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, (low, high, *counts) in zip(self._names, rows, strict=True):
            yield name, {"low": low, "high": high, "counts": counts}

    def _tensors(self, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in model.named_parameters():
            if not any(fnmatchcase(name, glob) for glob in self._options.match):
                continue
            if "gradients" in self._options.log and parameter.grad is not None:
                yield f"gradients/{name}", parameter.grad
            if "parameters" in self._options.log:
                yield f"parameters/{name}", parameter

    def _path(self, run: Run) -> Path:
        return run.paths.tracker_extra(run.name)


def _has(recipe: Recipe, names: tuple[str, str]) -> bool:
    uses = (table.use or name for name, table in recipe.plugins.items() if table.enabled is not False)
    return any(use == names[0] or use.endswith(names[1]) for use in uses)


def _step(line: bytes) -> int:
    return int(json.loads(line)["step"])


def _histogram(tensor: torch.Tensor, bins: int) -> torch.Tensor:
    """Return smallest value, largest value, and counts between them.

    The counts are those of `bins` equal parts. Does not wait for the device. Values that are not finite are left out.
    """
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    values = local.flatten().float()
    finite = values.isfinite()
    values = values.nan_to_num(0.0, 0.0, 0.0)
    low, high = values.aminmax()
    places = ((values - low) / (high - low).clamp_min(1e-30) * bins).long().clamp_(0, bins - 1)
    counts = values.new_zeros(bins).scatter_add_(0, places, finite.to(values.dtype))
    found = values.new_empty(bins + 2)
    found[0], found[1], found[2:] = low, high, counts
    return found
