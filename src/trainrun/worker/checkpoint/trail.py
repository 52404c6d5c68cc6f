"""What `trainrun verify-resume` adds to a run: a trail of batches, random numbers and losses, and an interruption.

One JSON line a step and rank, in `trail/rank-N.jsonl` of the run directory:

    {"attempt": 1, "step": 5, "batches": ["9f86d081884c7d65"], "rng": {"torch": "…"}, "losses": [0.693]}

At the end of training the state of every optimizer that is not the run's own, in `trail/optimizers-N.json`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from trainrun import Field, PluginOptions, hookimpl
from trainrun.rundir.files import append_line, write_json
from trainrun.worker.checkpoint import rng
from trainrun.worker.checkpoint.held import Before, held, present

if TYPE_CHECKING:
    from trainrun.worker.run import Run

FOLDER = "trail"

_DIGITS = 16  # of a SHA-256: 64 bits are enough to distinguish two batches
_DEEPEST = 32  # levels of nesting in a batch that are looked at


class Trail:
    """Write down what each step works on, and end the first attempt at its interruption."""

    class Options(PluginOptions):
        """What `trainrun verify-resume` sets."""

        last: int | None = Field(None, ge=1, description="Vote to stop after this step if no other end is set.")
        stop_at: int | None = Field(None, ge=1, description="In the first attempt, vote to stop after this step.")
        kill_at: int | None = Field(None, ge=1, description="In the first attempt, the step that `signal` ends.")
        signal: int = Field(9, ge=1, description="The number of the signal that the last rank gets.")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._batches: list[str] = []
        self._losses: list[float] = []
        self._rng: dict[str, str] = {}
        self._before: Before = Before()

    @hookimpl(tryfirst=True)
    def on_worker_start(self) -> None:
        self._before = present(digest)

    @hookimpl
    def on_batch_fetched(self, batch: Any) -> None:
        self._batches.append(digest(batch))

    @hookimpl(trylast=True)
    def on_microbatch_start(self, run: Run, microbatch: int) -> None:
        if microbatch == 0:
            self._rng = {name: digest(state) for name, state in rng.state(run.device).items()}

    @hookimpl
    def on_forward_end(self, loss: torch.Tensor) -> None:
        self._losses.append(float(loss.detach()))

    @hookimpl(trylast=True)
    def on_update_end(self, run: Run) -> None:
        last = run.world.rank == run.world.size - 1
        if run.attempt == 1 and run.step == self._options.kill_at and last:
            os.kill(os.getpid(), self._options.signal)

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        path = file(run.paths.root, run.world.rank)
        path.parent.mkdir(exist_ok=True)
        told = {"batches": self._batches, "rng": self._rng, "losses": self._losses}
        append_line(path, {"attempt": run.attempt, "step": run.step, **told})
        self._batches, self._losses = [], []

    @hookimpl(trylast=True)
    def on_train_end(self, run: Run) -> None:
        roots = {member.instance.name: member.plugin for member in run.hooks.members if member.plugin is not self}
        roots |= {"model": run.module, "scheduler": run.scheduler}
        found = held(roots, run.optimizer, self._before, digest)
        write_json(others(run.paths.root, run.world.rank), {name: one._asdict() for name, one in found.items()})

    @hookimpl
    def should_stop(self, run: Run) -> str | None:
        first = self._options.stop_at if run.attempt == 1 else None
        due = [step for step in (first, self._options.last) if step is not None and run.step >= step]
        return f"verify-resume: step {due[0]} is made" if due else None


def file(root: Path, rank: int) -> Path:
    """Return the path of the trail of one rank."""
    return root / FOLDER / f"rank-{rank}.jsonl"


def others(root: Path, rank: int) -> Path:
    """Return the path of the other optimizers of one rank."""
    return root / FOLDER / f"optimizers-{rank}.json"


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def digest(value: Any) -> str:
    """Return a name for the contents.

    Contents are tensors, arrays and plain values in mappings, lists, tuples and dataclasses. Of other objects only the
    type counts.
    """
    found = hashlib.sha256()
    _feed(found, value, 0)
    return found.hexdigest()[:_DIGITS]


def _feed(found: _Hash, value: Any, depth: int) -> None:
    found.update(f"{type(value).__name__}(".encode())
    if depth == _DEEPEST:
        return
    if isinstance(value, torch.Tensor):
        found.update(f"{value.dtype} {tuple(value.shape)}".encode() + content(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _feed(found, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, depth + 1)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            found.update(f"{key!r}:".encode())
            _feed(found, item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(found, item, depth + 1)
    elif isinstance(value, bool | int | float | complex | str | bytes | None):
        found.update(repr(value).encode())
    elif hasattr(value, "tobytes"):  # NumPy's arrays and numbers
        found.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
    found.update(b")")


def content(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor, in the order of its elements."""
    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    host = dense.cpu().contiguous()
    # By address, because a tensor shows its bytes to Python only through NumPy.
    return ctypes.string_at(host.data_ptr(), host.nbytes) if host.nbytes else b""
