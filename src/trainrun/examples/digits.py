"""Read handwritten digits: a task made of functions.

    [task]
    use = "digits"
    channels = 16

The data are 1,797 real images of 8 by 8 pixels, shipped with trainrun: Optical Recognition of Handwritten
Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, licence CC BY 4.0 (data/digits.txt).
Every fifth image is held out for evaluation. A network of two convolutions classifies about 98 % of them correctly
after a few seconds of training.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from trainrun import Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from trainrun import Run

HELD_OUT = 5  # every fifth image is for evaluation

Batch = tuple[torch.Tensor, torch.Tensor]


class Options(PluginOptions):
    """The size of the network."""

    channels: int = Field(
        16, ge=1, le=1024, description="Channels of the first convolution; the second has twice as many."
    )
    hidden: int = Field(128, ge=1, le=65536, description="Width of the hidden layer after the convolutions.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout rate before the hidden layer.")


@hookimpl
def build_model(run: Run) -> nn.Module:
    """Return two convolutions, each with max pooling, then two linear layers.

    The pooling is 2 by 2.
    """
    options = run.options
    channels = options.channels
    return nn.Sequential(
        nn.Conv2d(1, channels, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(options.dropout),
        nn.Linear(8 * channels, options.hidden),
        nn.ReLU(),
        nn.Linear(options.hidden, 10),
    )


@hookimpl
def build_dataset(split: str) -> TensorDataset | None:
    """Return pairs of an image and its digit.

    An image is 1 by 8 by 8, from 0 to 1. There are the splits "train" and "eval".
    """
    if split not in ("train", "eval"):
        return None
    images, labels = read_digits()
    held_out = torch.arange(len(labels)) % HELD_OUT == HELD_OUT - 1
    chosen = held_out if split == "eval" else ~held_out
    return TensorDataset(images[chosen], labels[chosen])


@hookimpl
def training_step(model: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
    """Return the cross-entropy of one micro-batch."""
    images, labels = batch
    return {"loss": functional.cross_entropy(model(images), labels)}


@hookimpl
def evaluation_step(model: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
    """Return cross-entropy and the share of digits read correctly.

    What was read is returned too, for plugins that keep it.
    """
    images, labels = batch
    scores = model(images)
    read = scores.argmax(dim=1)
    correct = (read == labels).float()
    return {"loss": functional.cross_entropy(scores, labels), "accuracy": correct.mean(), "predictions": read}


def read_digits() -> Batch:
    """Return all images, as floats from 0 to 1, and their labels.

    They are in the order of the file.
    """
    packed = files("trainrun.examples").joinpath("data/digits.csv.gz").read_bytes()
    lines = gzip.decompress(packed).decode("ascii").splitlines()
    table = torch.tensor([[int(value) for value in line.split(",")] for line in lines])
    images = table[:, :64].reshape(-1, 1, 8, 8).float() / 16
    return images, table[:, 64].clone()
