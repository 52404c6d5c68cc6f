"""Callbacks for trainrun: `early-stopping`, `learning-rate-monitor` and `epoch-timer`."""

from __future__ import annotations

from trainrun_callbacks.early_stopping import EarlyStopping, EarlyStoppingOptions
from trainrun_callbacks.epoch_timer import EpochTimer
from trainrun_callbacks.learning_rate import LearningRateMonitor, LearningRateMonitorOptions

__all__ = [
    "EarlyStopping",
    "EarlyStoppingOptions",
    "EpochTimer",
    "LearningRateMonitor",
    "LearningRateMonitorOptions",
]
