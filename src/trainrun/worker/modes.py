"""Which parts of a model are in training mode, and which in evaluation mode: as the task has set them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainrun.worker.optim import unwrapped
from trainrun.worker.replicas import listed


def begin_training(model: torch.nn.Module) -> list[str]:
    """Put `model` into training mode, except for parts in evaluation mode.

    The task has put these into it. A part in training mode within one in evaluation mode, such as an adapter in a
    frozen backbone, stays so too. A model that is in evaluation mode as a whole, as loaders of pretrained models return
    it, is trained as a whole. Returns the names of the parts that stay in evaluation mode and have parts themselves and
    parameters to train.
    """
    module = unwrapped(model)
    before = [(part, part.training) for part in module.modules()]
    kept = [part for part, training in before if not training]
    model.train()
    if len(kept) == len(before):
        return []
    if kept:
        _restore(before)
    inside = {id(inner) for part in kept for inner in part.modules() if inner is not part}
    names = {id(part): name or "the model itself" for name, part in module.named_modules()}
    return [names[id(part)] for part in kept if id(part) not in inside and _is_trained(part)]


def explain(kept: list[str]) -> str:
    """Explain that parts stay in evaluation mode although they are trained.

    The text says what to do if that is not meant.
    """
    return (
        f"in evaluation mode since build_model, although with parameters to train: {listed(kept)}; kept so. If dropout"
        " and batch norm in there are to train too, call train() on it in build_model"
    )


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode for the body.

    Each part then has its own mode again, also after an exception.
    """
    before = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        yield
    finally:
        _restore(before)


def _restore(before: list[tuple[torch.nn.Module, bool]]) -> None:
    """Restore each part's mode; parents come first.

    If the mode has changed this is done by `train`, because a module may do more in it than set the mode. For example,
    adapters that are merged into weights for evaluation are taken out again. Then one by one, because `train` sets
    inner modules too.
    """
    try:
        for part, training in before:
            if part.training != training:
                part.train(training)
    finally:
        for part, training in before:
            part.training = training


def _is_trained(part: torch.nn.Module) -> bool:
    return any(part.children()) and any(parameter.requires_grad for parameter in part.parameters())
