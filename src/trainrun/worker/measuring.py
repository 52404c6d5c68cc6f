"""What `trainrun smoke` adds to the short trainings that it compares: each rank notes what its updates were made of.

A JSON file for each rank, `measured/rank-N.json` in the run directory:

    {"updates": [{"step": 1, "epoch": 1, "loss": 2.3, "norm": 0.7, "samples": ["9f86d081884c7d65"]}],
     "off": {"dropout": ["7 (Dropout)"]}, "bound": [], "changed": [], "modes": [], "generators": []}

Losses are those of all ranks, on rank 0 only.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from trainrun import Field, PluginOptions, hookimpl
from trainrun.rundir.files import write_json
from trainrun.worker.checkpoint import rng
from trainrun.worker.checkpoint.trail import digest
from trainrun.worker.data.rows import row_digests

if TYPE_CHECKING:
    from trainrun.worker.run import Run

_FOLDER = "measured"
_OTHER_SEED = 1_000_003  # added to the run's


class _Seen(NamedTuple):
    """What an evaluation must leave as it was, by name."""

    state: dict[str, str]
    modes: dict[str, bool]
    generators: dict[str, str]


class Measure:
    """Note loss, gradient norm and samples of each update, and what changes between two of them."""

    class Options(PluginOptions):
        """What `trainrun smoke` sets."""

        still: bool = Field(
            False,
            description="Disable dropout and batch norm, and skip updates, so that each starts from the first weights.",
        )
        other_seed: bool = Field(False, description="Draw other random numbers from the first step on.")
        watch: bool = Field(
            False,
            description="Check that weights, modes and generators stay the same between two steps.",
        )

    def __init__(self, options: Options) -> None:
        self._options = options
        self._updates: list[dict[str, Any]] = []
        self._samples: list[str] | None = []
        self._fetched: list[str] | None = []
        self._off: dict[str, list[str]] = {}
        self._bound: list[str] = []
        self._before: _Seen | None = None
        self._changes: dict[str, list[str]] = {"changed": [], "modes": [], "generators": []}

    @hookimpl(trylast=True, mutates=True)
    def on_train_start(self, run: Run) -> None:
        if self._options.other_seed:
            seed = run.recipe.run.seed + _OTHER_SEED + run.world.rank
            random.seed(seed)
            torch.manual_seed(seed)
            if (numpy := sys.modules.get("numpy")) is not None:
                numpy.random.seed(seed % 2**32)

    @hookimpl(tryfirst=True)
    def on_step_start(self, run: Run, step: int, epoch: int) -> None:
        assert run.module is not None
        if self._before is not None:
            self._compare(self._before, _look(run))
            self._write(run)
        if self._options.still:
            self._hold_still(run.module)
        self._updates.append({"step": step, "epoch": epoch, "loss": None, "norm": None, "samples": None})
        self._samples = []

    @hookimpl(tryfirst=True)
    def on_batch_fetched(self, batch: Any) -> None:
        self._fetched = row_digests(batch)

    @hookimpl
    def on_microbatch_start(self, size: int) -> None:
        if size:  # padding does not count
            known = self._samples is not None and self._fetched is not None
            self._samples = [*(self._samples or []), *(self._fetched or [])] if known else None

    @hookimpl
    def on_gradients_ready(self, grad_norm: torch.Tensor) -> None:
        self._updates[-1]["norm"] = float(grad_norm)
        self._updates[-1]["samples"] = self._samples

    @hookimpl
    def should_skip_update(self) -> str | None:
        return "each update is measured with the first weights" if self._options.still else None

    @hookimpl
    def on_log(self, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            self._updates[-1]["loss"] = metrics["train/loss"]

    @hookimpl(trylast=True)
    def on_step_end(self, run: Run) -> None:
        self._write(run)
        self._before = _look(run) if self._options.watch else None

    def _hold_still(self, module: nn.Module) -> None:
        """Put the parts that must not vary into evaluation mode.

        These make an update depend on chance, or on how it is cut.
        """
        for name, part in module.named_modules():
            if not part.training or (kind := _kind(part)) is None:
                continue
            named = f"{name or 'the model'} ({type(part).__name__})"
            if kind == "batch norm" and getattr(part, "running_mean", None) is None:
                if named not in self._bound:  # it has no other statistics than those of the batch
                    self._bound.append(named)
                continue
            part.training = False
            if named not in self._off.setdefault(kind, []):
                self._off[kind].append(named)

    def _compare(self, before: _Seen, now: _Seen) -> None:
        found = {
            "changed": _unlike(before.state, now.state),
            "modes": _unlike(before.modes, now.modes),
            "generators": _unlike(before.generators, now.generators),
        }
        for key, names in found.items():
            self._changes[key] += [name for name in names if name not in self._changes[key]]

    def _write(self, run: Run) -> None:
        path = file(run.paths.root, run.world.rank)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"updates": self._updates, "off": self._off, "bound": self._bound, **self._changes})


def file(root: Path, rank: int) -> Path:
    """Return the path of one rank's measurements."""
    return root / _FOLDER / f"rank-{rank}.json"


def _kind(part: nn.Module) -> str | None:
    if isinstance(part, _BatchNorm):
        return "batch norm"
    if isinstance(part, _DropoutNd) or "drop" in type(part).__name__.lower():
        rate = getattr(part, "p", None)
        return None if isinstance(rate, int | float) and rate == 0 else "dropout"
    if isinstance(part, nn.MultiheadAttention | nn.RNNBase) and part.dropout:
        return "dropout"
    return "random slopes" if isinstance(part, nn.RReLU) else None


def _unlike(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def _look(run: Run) -> _Seen:
    assert run.module is not None
    modes = {name or "the model": part.training for name, part in run.module.named_modules()}
    generators = {name: digest(state) for name, state in rng.state(run.device).items()}
    return _Seen(dict(_tensors(run.module)), modes, generators)


def _tensors(module: nn.Module) -> Iterator[tuple[str, str]]:
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            yield name, digest(value)
