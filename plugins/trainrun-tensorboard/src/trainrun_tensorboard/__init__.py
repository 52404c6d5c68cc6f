"""TensorBoard for trainrun: the plugin `tensorboard`."""

from __future__ import annotations

from trainrun_tensorboard.plugin import TensorBoard, TensorBoardOptions

__all__ = ["TensorBoard", "TensorBoardOptions"]
