"""What a checkpoint's manifest says of the training data, so that a resumed run notices when it is other data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def fingerprint(dataset: Any) -> dict[str, Any]:
    """The dataset's class and its number of samples, None where it has no length: `{"type", "length"}`."""
    kind = type(dataset)
    return {"type": f"{kind.__module__}.{kind.__qualname__}", "length": length_of(dataset)}


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """A sentence on how the data differs from that of the checkpoint, or None. Takes two fingerprints."""
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
    """Its length; None where it does not know it."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):  # an iterable, or a loader or sampler over one, without a length
        return None
