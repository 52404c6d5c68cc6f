"""What a checkpoint's manifest says of the training data, so that a resumed run notices when it is other data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def fingerprint(dataset: Any) -> dict[str, Any]:
    """Return the dataset's class and its number of samples: `{"type", "length"}`.

    The length is None if the dataset has none.
    """
    kind = type(dataset)
    return {"type": f"{kind.__module__}.{kind.__qualname__}", "length": length_of(dataset)}


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Return how the data differs from the checkpoint's, or None.

    It is a sentence. Takes two fingerprints.
    """
    changes = [
        f"{what} was {old[key]} and is {new.get(key)}"
        for key, what in (("type", "its class"), ("length", "its number of samples"))
        if key in old and old[key] != new.get(key)
    ]
    if not changes:
        return None
    return (
        f"the training data is not that of the checkpoint: {' and '.join(changes)}; "
        "samples of the epoch may come twice or not at all"
    )


def length_of(sized: Any) -> int | None:
    """Return the length of an object; None if it is unknown."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):  # an iterable, or a loader or sampler over one, without a length
        return None
