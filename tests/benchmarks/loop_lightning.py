"""The same work through Lightning's Trainer, everything that can be left out left out, with callbacks of five hooks."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from workload import Batch, ClockedBatches, StepTime, build_model, build_optimizer, loss_of

warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Module(LightningModule):
    """The network and its step."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build_model()

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        return loss_of(self.model, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model)


class NoOp(Callback):
    """One observer of five hooks of a step."""

    def on_train_batch_start(self, *arguments: Any, **named: Any) -> None:
        pass

    def on_before_backward(self, *arguments: Any, **named: Any) -> None:
        pass

    def on_after_backward(self, *arguments: Any, **named: Any) -> None:
        pass

    def on_before_optimizer_step(self, *arguments: Any, **named: Any) -> None:
        pass

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        pass


def run(steps: int, plugins: int) -> StepTime:
    batches = ClockedBatches(steps)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=batches.steps,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[NoOp() for _ in range(plugins)],
    )
    trainer.fit(Module(), train_dataloaders=batches)
    return batches.seconds
