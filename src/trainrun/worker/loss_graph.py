"""Whether a loss comes from the model, before its backward.

One worker would train on a loss that does not, in silence. It puts several out of step: this rank's backward ends
without the gradient reduction that the others wait in.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction

_LEAF = "AccumulateGrad"


def depends_on(loss: torch.Tensor, parameters: Container[int], *, sharded: bool = False) -> bool:
    """Return whether a backward of `loss` reaches a parameter.

    parameters: the `id` of each that may be trained. The search ends at the first one, in practice after a few nodes. A
    node written in Python may hide parameters, so that it counts as one. Reentrant activation checkpointing and
    compiled models have such nodes.
    sharded: every `nn.Parameter` counts too, because FSDP puts others in the place of those that it shards.
    """
    if loss.grad_fn is None:
        return loss.requires_grad and id(loss) in parameters
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            return True
        if node.name().endswith(_LEAF):
            variable = node.variable
            if id(variable) in parameters or (sharded and isinstance(variable, torch.nn.Parameter)):
                return True
        waiting.extend(after for after, _ in node.next_functions)
    return False


def explain(loss: torch.Tensor) -> str:
    """Explain why a backward of `loss` reaches no parameter.

    What to return instead is said too.
    """
    how = "its graph holds no parameter of the model" if loss.requires_grad else "it requires no gradient"
    return (
        f"the loss that training_step returned does not come from the model: {how}; return a loss computed from"
        " model(...), without detach, item or no_grad (for a batch that must not count:"
        ' {"loss": loss, "weight": 0})'
    )
