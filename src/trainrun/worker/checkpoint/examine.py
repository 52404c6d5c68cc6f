"""`python -m trainrun.worker.checkpoint.examine CHECKPOINT`: print what is not finite in it, and nothing if all is.

For checkpoints of versions that did not look before they saved. Without the model it is not known what was not finite
before training. A buffer or a frozen parameter may hold -inf, as attention masks do, but no NaN and no inf.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from trainrun.checkpoint import layout
from trainrun.errors import BadCheckpoint
from trainrun.worker.checkpoint import finite, reader
from trainrun.worker.checkpoint.capture import MODEL, OPTIMIZER

_AT_ONCE = 2**30  # bytes of tensors that are read together


def examine(checkpoint: Path) -> str | None:
    """Describe what in a checkpoint must be finite and is not.

    Returns None if all is. Raises BadCheckpoint.
    """
    training = reader.read_values(checkpoint / layout.TRAINING)
    source = reader.Tensors(checkpoint)
    weights = {name.removeprefix(MODEL): one.size for name, one in source.stored.items() if name.startswith(MODEL)}
    none: frozenset[str] = frozenset()
    found = []
    for tensors in _portions(source):
        wanted = {name: one for name, one in tensors.items() if finite.must_be_finite(name, one.shape, weights, none)}
        found += spoilt(wanted, training)
    found += finite.rates(training)
    plugins = {
        owner[0]: reader.read_values(path)
        for path in sorted((checkpoint / layout.PLUGINS).glob("*.pt"))
        if (owner := layout.plugin_of(path.name)) is not None
    }
    found += spoilt(dict(finite.kept_weights(plugins, weights, none)), training)
    return finite.NOT_FINITE + finite.describe(found) if found else None


def weights_of(checkpoint: Path, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return which of the model's tensors are not finite and must be.

    The tensors are read from `checkpoint`.
    """
    training = reader.read_values(checkpoint / layout.TRAINING)
    return spoilt({MODEL + name: tensor for name, tensor in tensors.items()}, training)


def spoilt(tensors: Mapping[str, torch.Tensor], training: Any) -> list[str]:
    """Return the names of tensors that are not finite.

    Of what is not trained, only those with a NaN or an infinity count.
    """
    trained = {name for group in training["optimizer"]["groups"] for name in group["names"]}

    def may_mask(name: str) -> bool:
        return not name.startswith(OPTIMIZER) and finite.plain(name.rpartition("/")[2].rstrip("'")) not in trained

    return [name for name in finite.not_finite(tensors) if not may_mask(name) or _beyond_mask(tensors[name])]


def _beyond_mask(tensor: torch.Tensor) -> bool:
    return bool((~(tensor.isfinite() | (tensor == -math.inf))).any())


def _portions(source: reader.Tensors) -> Iterator[dict[str, torch.Tensor]]:
    """Read all tensors, some at a time."""
    portion: dict[str, torch.Tensor] = {}
    for name, one in source.stored.items():
        portion[name] = torch.empty(one.size, dtype=one.properties.dtype)
        if sum(tensor.nbytes for tensor in portion.values()) >= _AT_ONCE:
            source.read(portion)
            yield portion
            portion = {}
    source.read(portion)
    yield portion


def main(checkpoint: str) -> int:
    """Run the process; return 0 if the checkpoint could be examined."""
    try:
        found = examine(Path(checkpoint))
    except (BadCheckpoint, KeyError, TypeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if found is not None:
        sys.stdout.write(f"{found}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
