"""Weights & Biases for trainrun: the plugins `wandb` and `wandb-watch`."""

from __future__ import annotations

from trainrun_wandb.plugin import Wandb, WandbOptions
from trainrun_wandb.watch import WandbWatch, WandbWatchOptions

__all__ = ["Wandb", "WandbOptions", "WandbWatch", "WandbWatchOptions"]
