"""Check that all ranks hold the same parameters, bit for bit."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import distributed

from trainrun import Field, PluginOptions, TrainingError, hookimpl

if TYPE_CHECKING:
    from trainrun import Recipe, Run

_CHUNK = 2**20  # elements that are hashed at once
_SHOWN = 5
_FACTOR = 6364136223846793005  # of Knuth's generator MMIX: odd, so that no bit of a number is lost


class ParameterCheckOptions(PluginOptions):
    """How often, and what is compared beside the parameters."""

    every: int = Field(100, ge=1, description="Steps between two comparisons; there is one more at the end.")
    buffers: bool = Field(
        False, description="Compare the buffers too; those of BatchNorm differ between two forwards by nature."
    )
    optimizer: bool = Field(False, description="Compare the tensors of the optimizer's state too.")
    on_difference: Literal["fail", "warn"] = Field("fail", description="Whether the run fails, or is only told about.")


class ParameterCheck:
    """Compare a hash of every parameter over all ranks, and name those that differ.

    Replicas become unlike when something changes the model or its gradients on some ranks only. One worker has nobody
    to compare with.
    """

    Options = ParameterCheckOptions

    def __init__(self, options: ParameterCheckOptions) -> None:
        self._options = options
        self._checked = 0

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> str | None:
        if recipe.parallel.strategy != "fsdp":
            return None
        return 'parallel.strategy = "fsdp" gives each rank other parts, so there is nothing to compare; leave it out'

    @hookimpl(mutates=True)
    def on_step_end(self, run: Run, step: int) -> None:
        if step % self._options.every == 0:
            self._check(run)

    @hookimpl(mutates=True)
    def on_train_end(self, run: Run) -> None:
        if self._checked != run.step:
            self._check(run)

    def _check(self, run: Run) -> None:
        self._checked = run.step
        if run.world.size == 1:
            return
        found = dict(self._tensors(run))
        names = list(found)
        told = zlib.crc32("\n".join(names).encode())
        if _unlike(torch.tensor([len(names), told], device=run.device)):
            self._tell(run, f"tensors at step {run.step}", _apart(_gathered(names, run.device)))
        elif names:
            unlike = _unlike(torch.stack([fingerprint(tensor, run.device) for tensor in found.values()]))
            values = [f"{names[place]}: {_grouped(ranks)}" for place, ranks in unlike]
            self._tell(run, f"values at step {run.step}", values)

    def _tell(self, run: Run, what: str, differences: list[str]) -> None:
        if not differences:
            return
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        message = (
            f"the ranks hold different {what}: {'; '.join(differences[:_SHOWN])}{more}; "
            "something changes the model or its gradients on some ranks only"
        )
        if self._options.on_difference == "fail":
            raise TrainingError(message)
        if run.world.rank == 0:
            run.logger.warning(message, step=run.step)

    def _tensors(self, run: Run) -> Iterator[tuple[str, torch.Tensor]]:
        assert run.module is not None
        yield from run.module.named_parameters()
        if self._options.buffers:
            yield from run.module.named_buffers()
        if self._options.optimizer and run.optimizer is not None:
            names: dict[torch.Tensor, str] = {one: name for name, one in run.module.named_parameters()}
            for one, state in run.optimizer.state.items():
                for key, value in state.items():
                    if isinstance(value, torch.Tensor):
                        yield f"{key} of {names.get(one, 'a parameter')} in the optimizer", value


def fingerprint(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A hash of the tensor's bits as an integer on `device`, computed where the tensor is, without waiting for it."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    flat = flat.clone() if flat.storage_offset() % 4 else flat
    words = flat if len(flat) % 4 else flat.view(torch.int32)
    result = torch.full((), len(flat), dtype=torch.int64, device=tensor.device)
    for chunk in torch.split(words, _CHUNK):
        # Each place has a factor of its own, odd and without a pattern: no single change is missed, and sums of several
        # changes are zero by chance only.
        places = torch.arange(1, len(chunk) + 1, device=tensor.device) * _FACTOR
        factors = ((places >> 29) ^ places) * _FACTOR | 1
        result = result * _FACTOR + (chunk.to(torch.int64) * factors).sum()
    return result.to(device)


def _unlike(mine: torch.Tensor) -> list[tuple[int, list[list[int]]]]:
    """The places at which not all ranks have the same number, and which ranks agree there with one another."""
    everybody = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everybody, mine)
    found = []
    for place, values in enumerate(torch.stack(everybody).T.tolist()):
        if len(set(values)) > 1:
            groups: dict[int, list[int]] = {}
            for rank, value in enumerate(values):
                groups.setdefault(value, []).append(rank)
            found.append((place, list(groups.values())))
    return found


def _gathered(names: Sequence[str], device: torch.device) -> list[list[str]]:
    """The names that each rank has. A collective; as tensors, because objects would need numpy."""
    data = torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8, device=device)
    sizes = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor(len(data), device=device))
    longest = max(int(size) for size in sizes)
    texts = [torch.empty(longest, dtype=torch.uint8, device=device) for _ in sizes]
    distributed.all_gather(texts, torch.nn.functional.pad(data, (0, longest - len(data))))
    pairs = zip(texts, sizes, strict=True)
    return [bytes(text[: int(size)].tolist()).decode().split("\n") if size else [] for text, size in pairs]


def _apart(everybody: Sequence[Sequence[str]]) -> list[str]:
    """Which names are there on some ranks only, or that their order differs."""
    known = dict.fromkeys(name for theirs in everybody for name in theirs)
    found = []
    for name in known:
        having = [str(rank) for rank, theirs in enumerate(everybody) if name in theirs]
        if len(having) < len(everybody):
            found.append(f"{name}: on ranks {', '.join(having)} only")
    return found or ["their order"]


def _grouped(groups: Sequence[Sequence[int]]) -> str:
    """The ranks that agree, and those that do not: `ranks 0, 2 against 1`."""
    return "ranks " + " against ".join(", ".join(map(str, group)) for group in groups)
