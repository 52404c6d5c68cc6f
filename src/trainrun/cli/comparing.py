"""How two trainings of `trainrun smoke` are compared, and the words for how they differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from trainrun.cli.measuring import Measured, Update

_ZERO = 1e-9  # what is smaller is rounding
_SAME = 1e-6  # of losses that both are shown to have
_FEW = 5  # names that are listed
_NAMES = {"python": "Python's", "torch": "torch's", "numpy": "NumPy's", "cuda": "the device's"}

Pair = tuple[Update, Update]


class Tolerance(NamedTuple):
    """How far two values of the same update may be apart, relative to them."""

    loss: float
    norm: float


# Sums in another order. With fp32 losses and norms of the examples are 1.6e-7 apart at most, but the sum in a gradient
# may cancel. With half precision norms are up to 5e-4 apart, and a loss that itself is rounded to it by 2^-9 or 2^-12.
TOLERANCES = {"fp32": Tolerance(1e-5, 1e-4), "bf16": Tolerance(5e-3, 5e-3), "fp16": Tolerance(2e-3, 2e-3)}


def alike(one: Measured, other: Measured) -> list[Pair]:
    """Return the updates that both have made of the same samples."""
    pairs = zip(one.updates, other.updates, strict=False)
    return [(a, b) for a, b in pairs if a.together is not None and a.together == b.together]


def close(pair: Pair, tolerance: Tolerance) -> bool:
    """Return whether loss and gradient norm are equal but for rounding."""
    return all(_near(one, other, limit) for (one, other), limit in zip(_values(pair), tolerance, strict=True))


def equal(pair: Pair) -> bool:
    """Return whether loss and gradient norm are equal, bit for bit."""
    return all(one == other or (_isnan(one) and _isnan(other)) for one, other in _values(pair))


def shown(pair: Pair, how: str, other: str) -> str:
    """Name what differs, with both values. how, other: how each of the two was trained."""
    (loss, loss_2), (norm, norm_2) = _values(pair)
    if _near(loss, loss_2, _SAME) and not _near(norm, norm_2, _SAME):
        return f"gradient norm {figure(norm_2, norm)} {other}, {figure(norm, norm_2)} {how}"
    return f"train/loss {figure(loss_2, loss)} {other}, {figure(loss, loss_2)} {how}"


def figure(value: float | None, than: float | None = None) -> str:
    """Return a number with six digits, or more if needed.

    They are as many as distinguish it from `than`.
    """
    if value is None:
        return "missing"
    digits = next((n for n in range(6, 17) if than is None or f"{value:.{n}g}" != f"{than:.{n}g}"), 17)
    return f"{value:.{digits}g}"


def problems(trainings: Mapping[str, Measured]) -> str | None:
    """Return a sentence on the first training that failed.

    Returns None if none has.

    trainings: by how they were made.
    """
    for how, one in trainings.items():
        if one.problem is not None:
            return f"because training {how} did not work: {one.problem}"
    return None


def unlike_data(one: Measured, other: Measured, how: tuple[str, str]) -> str:
    """Say why no update was made of the same samples twice."""
    first, second = one.updates[0].together, other.updates[0].together
    if first is None or second is None:
        return UNTOLD
    counts = f"{first.total()} {how[0]}, {second.total()} {how[1]}"
    if first.total() != second.total():
        return f"because the train loader of the task or a plugin gives other samples then: {counts}"
    return (
        f"because the samples are not the same ({counts}): the data set draws random numbers, or the train loader"
        " gives other samples then"
    )


UNTOLD = "because the samples in a batch of the train loader cannot be distinguished"


def without(measured: Measured) -> str:
    """Say what was turned off in the model, and which modules that are."""
    if not measured.off:
        return ""
    parts = [f"{kind} off ({listed(names)})" for kind, names in measured.off.items()]
    return f", with {' and '.join(parts)}, for which they are not the same"


def listed(names: Sequence[str]) -> str:
    """Name a few of them, and how many more there are."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def changes(plain: Measured, evaluated: Measured) -> Iterator[tuple[str, str]]:
    """Yield what an evaluation has changed, as a kind and words.

    What changed without one too is left out.
    """
    for kind, verb in (("changed", "changes"), ("modes", "leaves another mode in"), ("generators", "moves")):
        old, new = getattr(plain, kind), getattr(evaluated, kind)
        names = [name for name in new if name not in old]
        if kind == "generators":
            names = [f"{_NAMES.get(name, name)} random generator" for name in names]
        if names:
            yield kind, f"{verb} {listed(names)}"


def _values(pair: Pair) -> tuple[tuple[float | None, float | None], tuple[float | None, float | None]]:
    one, other = pair
    return (one.loss, other.loss), (one.norm, other.norm)


def _near(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=_ZERO) or (_isnan(one) and _isnan(other))


def _isnan(value: float | None) -> bool:
    return value is not None and math.isnan(value)
