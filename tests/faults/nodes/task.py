"""A task that learns next to nothing, slowly enough to be disturbed."""

from __future__ import annotations

import time

import torch

from trainrun import hookimpl


class Task:
    @hookimpl
    def build_model(self):
        return torch.nn.Linear(4, 2)

    @hookimpl
    def build_dataset(self, split):
        return torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randn(64, 2)) if split == "train" else None

    @hookimpl
    def training_step(self, model, batch):
        time.sleep(0.05)
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])
