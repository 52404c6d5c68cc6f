"""Callbacks for trainrun. Each plugin is in a module of its own, and imported when it is first used.

The client imports plugins that have a say in whether a recipe is right, and must stay free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainrun_callbacks.early_stopping import EarlyStopping, EarlyStoppingOptions
    from trainrun_callbacks.epoch_timer import EpochTimer
    from trainrun_callbacks.learning_rate import LearningRateMonitor, LearningRateMonitorOptions

_HOMES = {
    "EarlyStopping": "early_stopping",
    "EarlyStoppingOptions": "early_stopping",
    "EpochTimer": "epoch_timer",
    "LearningRateMonitor": "learning_rate",
    "LearningRateMonitorOptions": "learning_rate",
}

__all__ = [
    "EarlyStopping",
    "EarlyStoppingOptions",
    "EpochTimer",
    "LearningRateMonitor",
    "LearningRateMonitorOptions",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
