"""What `trainrun smoke` adds to a run: it ends early, and all ranks must have come to the same parameters."""

from __future__ import annotations

import ctypes
import hashlib
from typing import TYPE_CHECKING

import torch
from torch import distributed

from trainrun import Field, PluginOptions, TrainingError, hookimpl

if TYPE_CHECKING:
    from trainrun.worker.run import Run


class SmokeCheck:
    """Compare the parameters of all ranks at the end, and end training after a few steps."""

    class Options(PluginOptions):
        """What `trainrun smoke` sets."""

        steps: int | None = Field(
            None, ge=1, description="Vote to stop after this many steps; at once if there is an evaluation then."
        )
        pause: int | None = Field(
            None, ge=1, description="The same in the first attempt, so that a second one resumes from its checkpoint."
        )

    def __init__(self, options: Options) -> None:
        self._options = options

    @hookimpl
    def should_stop(self, run: Run) -> str | None:
        pause = self._options.pause if run.attempt == 1 else None
        due = [steps for steps in (pause, self._options.steps) if steps is not None and run.step >= steps]
        return f"smoke: {due[0]} steps are enough" if due else None

    @hookimpl(mutates=True)  # its collective needs all ranks: an error on one of them must end the run
    def on_train_end(self, run: Run) -> None:
        replicated = run.world.size > 1 and run.recipe.parallel.strategy == "ddp"
        if run.model is not None and replicated:
            differing = different_parameters(run.model)
            if differing:
                raise TrainingError(
                    f"the ranks have come to different values of {', '.join(differing)}; "
                    "something changes the model or its gradients on some ranks only"
                )


def different_parameters(model: torch.nn.Module) -> list[str]:
    """Return the names of the parameters whose bytes differ between ranks.

    Call it on all ranks alike.
    """
    parameters = dict(model.named_parameters())
    mine = torch.tensor([_digest(parameter) for parameter in parameters.values()], dtype=torch.int64)
    everybody = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everybody, mine)
    same = torch.stack(everybody).eq(mine).all(dim=0).tolist()
    return [name.removeprefix("module.") for name, equal in zip(parameters, same, strict=True) if not equal]


def _digest(tensor: torch.Tensor) -> int:
    host = tensor.detach().cpu().contiguous()
    # By address, because a tensor shows its bytes to Python only through NumPy.
    content = ctypes.string_at(host.data_ptr(), host.nbytes)
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)
