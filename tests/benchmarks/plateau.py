"""A scheduler for the plugin `plateau-check`, as a task would bring it."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainrun import hookimpl


class Plateau:
    """Lower the rate when a metric stands still."""

    @hookimpl
    def build_scheduler(self, optimizer: Optimizer) -> ReduceLROnPlateau:
        return ReduceLROnPlateau(optimizer)
