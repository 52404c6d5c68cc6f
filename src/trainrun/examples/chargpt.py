"""A small GPT that learns to write Python, one byte at a time: a task made as a class.

    [task]
    use = "chargpt"
    layers = 4
    width = 128

The text is the source of Python's own standard library, read from the folder of this Python: nothing is downloaded. The
last tenth of it is held out. At the end of training rank 0 prints a sample of what the model writes. `chargpt.toml`,
next to this file, trains for about a minute on two cores.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from pydantic import model_validator
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from trainrun import EnvironmentProblem, Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from trainrun import Run

BYTES = 256
TRAIN_SHARE = 0.9

Batch = tuple[torch.Tensor, torch.Tensor]


class ChargptOptions(PluginOptions):
    """The size of the model and of its text, and what it writes at the end."""

    layers: int = Field(2, ge=1, description="Transformer blocks.")
    heads: int = Field(4, ge=1, description="Attention heads per block; they divide `width` evenly.")
    width: int = Field(64, ge=1, description="Width of the model.")
    context: int = Field(64, ge=2, description="Length of the context in bytes.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate in training.")
    size: int = Field(1_000_000, ge=1000, description="Bytes of source text to use, at most.")
    sample_length: int = Field(
        300, ge=0, description="Bytes of sample text to generate at the end of training; 0 generates none."
    )
    prompt: str = Field("def ", min_length=1, description="Prompt of the sample text.")
    temperature: float = Field(0.8, ge=0, description="Sampling temperature; 0 always takes the likeliest byte.")

    @model_validator(mode="after")
    def _heads_share_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class CharGPT:
    """Predict the next byte of Python source."""

    Options = ChargptOptions

    def __init__(self, options: ChargptOptions) -> None:
        self._options = options
        self._model: GPT | None = None
        self._loss_sum: torch.Tensor | float = 0.0  # over the bytes of the split that is evaluated, on this rank
        self._bytes = 0

    @hookimpl
    def build_model(self) -> GPT:
        self._model = GPT(self._options)
        return self._model

    @hookimpl
    def build_dataset(self, split: str) -> Windows | None:
        if split not in ("train", "eval"):
            return None
        text = standard_library(self._options.size)
        cut = int(len(text) * TRAIN_SHARE)
        return Windows(text[:cut] if split == "train" else text[cut:], self._options.context)

    @hookimpl
    def training_step(self, model: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor | int]:
        # A mean over bytes, not over windows: the weight says how many.
        given, wanted = batch
        return {"loss": _cross_entropy(model(given), wanted), "weight": wanted.numel()}

    @hookimpl
    def evaluation_step(self, model: nn.Module, batch: Batch) -> Mapping[str, tuple[torch.Tensor, int]]:
        # Likewise, as pairs of a mean and its weight.
        given, wanted = batch
        scores = model(given)
        right = (scores.argmax(dim=-1) == wanted).float().mean()
        return {"loss": (_cross_entropy(scores, wanted), wanted.numel()), "accuracy": (right, wanted.numel())}

    @hookimpl
    def on_evaluation_start(self) -> None:
        self._loss_sum, self._bytes = 0.0, 0

    @hookimpl
    def on_evaluation_batch_end(self, size: int, outputs: Mapping[str, tuple[torch.Tensor, int]]) -> None:
        if size:  # not a batch that only fills up
            loss, count = outputs["loss"]
            self._loss_sum, self._bytes = self._loss_sum + loss.double() * count, self._bytes + count

    @hookimpl
    def evaluation_metrics(self, run: Run) -> Mapping[str, torch.Tensor]:
        # Not a mean over batches: the exponential of the mean over all bytes, on all ranks.
        sums = torch.tensor([float(self._loss_sum), self._bytes], dtype=torch.float64, device=run.device)
        if run.world.size > 1:
            torch.distributed.all_reduce(sums)
        return {"perplexity": (sums[0] / sums[1]).exp()}

    @hookimpl(ranks="zero")
    def on_train_end(self, run: Run) -> None:
        options = self._options
        if self._model is not None and options.sample_length:
            # The bare model: one rank alone must not call the parallel one.
            generator = torch.Generator(run.device).manual_seed(run.recipe.run.seed)
            text = write(self._model, options.prompt, options.sample_length, options.temperature, generator)
            print(f"--- sample ---\n{text}\n--------------", flush=True)  # noqa: T201 - the sample is the product


class Windows(Dataset[Batch]):
    """A text cut into windows of `context` bytes, each with the bytes that come next. Every byte is asked for once."""

    def __init__(self, text: bytes, context: int) -> None:
        self._text = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self._context = context

    def __len__(self) -> int:
        return (len(self._text) - 1) // self._context

    def __getitem__(self, index: int) -> Batch:
        start = index * self._context
        window = self._text[start : start + self._context + 1].long()
        return window[:-1], window[1:]


class Block(nn.Module):
    """Attention over what came before, then a small network; each adds to its input."""

    def __init__(self, options: ChargptOptions) -> None:
        super().__init__()
        width = options.width
        self.heads = options.heads
        self.dropout = options.dropout
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.joined = nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(options.dropout),
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self._attend(self.attention_norm(hidden))
        added: torch.Tensor = self.network(hidden)
        return hidden + added

    def _attend(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, length, width = hidden.shape
        split = self.attention(hidden).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        joined = self.joined(seen.transpose(1, 2).reshape(batch, length, width))
        return functional.dropout(joined, self.dropout, self.training)


class GPT(nn.Module):
    """A decoder-only transformer over bytes: (batch, length) of bytes to (batch, length, 256) scores of the next."""

    def __init__(self, options: ChargptOptions) -> None:
        super().__init__()
        self.context = options.context
        self.tokens = nn.Embedding(BYTES, options.width)
        self.places = nn.Embedding(options.context, options.width)
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.Sequential(*(Block(options) for _ in range(options.layers)))
        self.norm = nn.LayerNorm(options.width)
        self.apply(_start_small)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        places = torch.arange(given.shape[1], device=given.device)
        hidden = self.dropout(self.tokens(given) + self.places(places))
        hidden = self.norm(self.blocks(hidden))
        # The embedding also produces the output: half the parameters, and better for small models.
        return functional.linear(hidden, self.tokens.weight)


@torch.no_grad()
def write(model: GPT, prompt: str, length: int, temperature: float, generator: torch.Generator) -> str:
    """Return `prompt` and the bytes that `model` writes after it, as text.

    length: the number of these bytes.
    """
    was_training = model.training
    model.eval()
    device = model.tokens.weight.device
    text = torch.tensor([list(prompt.encode())], device=device)
    for _ in range(length):
        scores = model(text[:, -model.context :])[:, -1]
        text = torch.cat([text, _choose(scores, temperature, generator)], dim=1)
    model.train(was_training)
    return bytes(text[0].tolist()).decode(errors="replace")


def standard_library(size: int) -> bytes:
    """Return the first `size` bytes of the standard library's modules.

    The modules are in the order of their names.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    text = bytearray()
    for path in sorted(folder.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= size:
            break
    if not text:
        raise EnvironmentProblem(f"chargpt: {folder} holds no Python source to learn from")
    return bytes(text[:size])


def _cross_entropy(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(scores.flatten(0, 1), wanted.flatten())


def _choose(scores: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    if temperature == 0:
        return scores.argmax(dim=-1, keepdim=True)
    chances = (scores.float() / temperature).softmax(dim=-1)
    return torch.multinomial(chances, 1, generator=generator)


def _start_small(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
