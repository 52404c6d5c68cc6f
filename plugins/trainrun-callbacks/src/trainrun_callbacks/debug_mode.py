"""Look closer while a recipe is being tried."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from trainrun import Field, PluginOptions, hookimpl
from trainrun_callbacks.selecting import named_tensors

if TYPE_CHECKING:
    from trainrun import Run


_NOTHING = object()


class DebugModeOptions(PluginOptions):
    """What to do, and whether also outside of smoke tests."""

    always: bool = Field(False, description="Also run outside of `trainrun smoke`.")
    anomalies: bool = Field(
        True, description="Name the forward operation whose gradient is NaN or fails (autograd anomaly detection)."
    )
    attribute: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*$",
        description="Set this attribute to true, until training ends, on each module that has it or whose class"
        " has it.",
    )
    shapes: bool = Field(True, description="Log the shapes of the first training batch.")


class DebugMode:
    """In `trainrun smoke`: detect anomalies in autograd, set a flag on the model's modules, log the first batch.

    In other runs it does nothing, unless `always = true`. Anomaly detection makes a step several times slower.
    """

    Options = DebugModeOptions

    def __init__(self, options: DebugModeOptions) -> None:
        self._options = options
        self._on = False
        self._batch_told = False
        self._before: list[tuple[torch.nn.Module, dict[str, Any]]] = []
        self._detected: tuple[bool, bool] | None = None

    @hookimpl(mutates=True)
    def on_train_start(self, run: Run) -> None:
        self._on = self._options.always or run.smoke
        if not self._on:
            return
        if self._options.anomalies:
            self._detected = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
            torch.autograd.set_detect_anomaly(True)
        if self._options.attribute is not None and run.model is not None:
            self._set(run, self._options.attribute, run.model)

    @hookimpl
    def on_microbatch_start(self, run: Run, batch: Any) -> None:
        if self._on and self._options.shapes and not self._batch_told:
            self._batch_told = True
            run.logger.info("the first batch", tensors=described(batch))

    @hookimpl
    def on_worker_end(self) -> None:
        if self._detected is not None:
            torch.autograd.set_detect_anomaly(*self._detected)
            self._detected = None
        for module, own in self._before:
            delattr(module, str(self._options.attribute))
            vars(module).update(own)
        self._before = []

    def _set(self, run: Run, name: str, model: torch.nn.Module) -> None:
        for module in model.modules():
            if _has_value(module, name):
                self._before.append((module, {name: vars(module)[name]} if name in vars(module) else {}))
                setattr(module, name, True)
        run.logger.info("debug flag set", attribute=name, modules=len(self._before))


def _has_value(module: torch.nn.Module, name: str) -> bool:
    """Return whether the module, or its class, has such an attribute.

    It must be no method or property.
    """
    found = inspect.getattr_static(module, name, _NOTHING)
    return found is not _NOTHING and not callable(found) and not hasattr(found, "__get__")


def described(batch: Any) -> dict[str, str]:
    """Describe the tensors of a batch by name.

    The description has type, shape and device of each.
    """
    return {
        name: f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
        for name, tensor in named_tensors(batch)
    }
