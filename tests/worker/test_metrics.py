from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainrun.errors import TrainingError
from trainrun.worker.metrics import Metrics, weighted

VALUES = {"mean": 2.5, "sum": 10.0, "min": 1.0, "max": 4.0, "last": 3.0, "zero": 3.0}


def alone() -> Metrics:
    return Metrics(0, None, None)


@pytest.mark.parametrize(("reduce", "expected"), VALUES.items())
@pytest.mark.parametrize("make", [float, torch.tensor, lambda value: torch.tensor([value])])
def test_each_reduction_over_steps(reduce: Any, expected: float, make: Callable[[float], Any]) -> None:
    metrics = alone()
    for value in (1.0, 4.0, 2.0, 3.0):
        metrics.add("m", make(value), reduce)
    assert metrics.reduce() == {"m": expected}
    assert metrics.reduce() == {}, "reducing forgets"


def test_means_are_weighted() -> None:
    metrics = alone()
    metrics.add("m", torch.tensor(1.0), weight=3)
    metrics.add("m", 5.0, weight=1)
    assert metrics.reduce() == {"m": 2.0}


@settings(deadline=None, max_examples=10)
@given(st.sampled_from(sorted(VALUES)), st.lists(st.integers(-1000, 1000), min_size=513, max_size=1400), st.booleans())
def test_folding_many_values_changes_nothing(reduce: Any, values: list[int], tensors: bool) -> None:
    metrics = alone()
    for place, value in enumerate(values):
        metrics.add("m", torch.tensor(float(value)) if tensors else value, reduce, weight=1 + place % 3)
    weights = [1 + place % 3 for place in range(len(values))]
    mean = sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
    expected = {"mean": mean, "sum": sum(values), "min": min(values), "max": max(values)}.get(reduce, values[-1])
    assert metrics.reduce()["m"] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_memory_does_not_grow_with_the_steps() -> None:
    metrics = alone()
    for _ in range(2000):
        metrics.add("m", torch.tensor(1.0))
    assert len(metrics.series("m").values) < 512


def test_numbers_and_tensors_of_any_type_mix_without_loss() -> None:
    metrics = alone()
    for value in (torch.tensor(1), 0.5, torch.tensor([2.5], dtype=torch.float16), 100_000, True):
        metrics.add("m", value, "sum")
    assert metrics.reduce() == {"m": 1 + 0.5 + 2.5 + 100_000 + 1}


def test_numbers_keep_their_precision() -> None:
    metrics = alone()
    for value in (2.0**24 + 1, 0.1):
        metrics.add("m", value, "sum")
    assert metrics.reduce() == {"m": 2.0**24 + 1.1}


@pytest.mark.parametrize("reduce", ["mean", "sum", "min", "max"])
def test_nan_is_not_lost(reduce: Any) -> None:
    metrics = alone()
    for value in (1.0, math.nan, 2.0):
        metrics.add("numbers", value, reduce)
        metrics.add("tensors", torch.tensor(value), reduce)
    assert all(math.isnan(value) for value in metrics.reduce().values())


def test_gradients_are_not_kept() -> None:
    metrics = alone()
    metrics.add("m", torch.ones((), requires_grad=True) * 2)
    (value,) = metrics.series("m").values
    assert not value.requires_grad


def test_wrong_values_are_refused() -> None:
    metrics = alone()
    with pytest.raises(ValueError, match=r"run\.log\('m'\): expected one number, got a tensor of shape \(2,\)"):
        metrics.add("m", torch.zeros(2))
    with pytest.raises(TypeError, match="expected a number or a tensor, got str"):
        metrics.add("m", "1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduce must be one of mean, sum"):
        metrics.add("other", 1.0, "median")  # type: ignore[arg-type]
    metrics.add("n", 1.0, "sum")
    with pytest.raises(ValueError, match="reduced by 'sum' before, now by 'mean'"):
        metrics.add("n", 1.0)


class Scalar:
    """A scalar as NumPy has them, which is not installed here: no float, but registered as a real number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value


numbers.Real.register(Scalar)
TENSORS = [torch.tensor(2), torch.tensor([[2.0]]), torch.tensor(2, dtype=torch.bfloat16)]


@pytest.mark.parametrize("value", [True, 2, 2.0, Scalar(2.0), Fraction(4, 2), *TENSORS])
def test_whatever_is_a_real_number_is_taken(value: Any) -> None:
    metrics, expected = alone(), 1.0 if value is True else 2.0
    metrics.add("m", value)
    assert metrics.reduce() == {"m": expected}
    (taken, weight) = weighted({"m": (value, value)})["m"]
    assert (float(taken), weight) == (expected, expected)
    assert weighted({"m": value})["m"][1] is None


@pytest.mark.parametrize(
    ("value", "kind", "what"),
    [
        (1j, TypeError, "expected a real number, got complex"),
        (torch.tensor(1j), TypeError, "expected a real number, got a tensor of torch.complex64"),
        (10**400, ValueError, r"expected a number of at most 1.8e\+308, got a larger one"),
        (Fraction(10**400, 3), ValueError, ".*got a larger one"),
        (Decimal(1), TypeError, "expected a number or a tensor, got Decimal"),
    ],
)
def test_what_is_no_real_number_is_refused_by_name(value: Any, kind: type[Exception], what: str) -> None:
    with pytest.raises(kind, match=rf"run\.log\('m'\): {what}"):
        alone().add("m", value)
    with pytest.raises(TrainingError, match=r"evaluation_step returned .* as 'm'"):
        weighted({"m": value})
    with pytest.raises(TrainingError, match=r"evaluation_step returned .* as 'm'"):
        weighted({"m": (1.0, value)})


def test_a_refused_value_leaves_the_others() -> None:
    metrics = alone()
    metrics.add("m", 1.0)
    with pytest.raises(TypeError):
        metrics.add("m", None)  # type: ignore[arg-type]
    assert metrics.reduce() == {"m": 1.0}


def test_all_metrics_go_to_the_host_in_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = alone()
    for name in "abc":
        for step in range(3):
            metrics.add(name, torch.tensor(float(step)))
    transfers = []
    for reader in ("item", "tolist", "__float__", "cpu", "numpy"):
        original = getattr(torch.Tensor, reader)

        def counting(tensor: torch.Tensor, *args: Any, original: Any = original) -> Any:
            transfers.append(tensor.shape)
            return original(tensor, *args)

        monkeypatch.setattr(torch.Tensor, reader, counting)
    assert metrics.reduce() == dict.fromkeys("abc", 1.0)
    assert transfers == [torch.Size([3])]


# --- over ranks: every gather is answered with what all ranks would have sent ---


def over_ranks(*adds: Callable[[Metrics], None]) -> list[dict[str, float]]:
    """Reduce on as many ranks as there are arguments, each of which adds its rank's values."""
    ranks = [Metrics(rank, None, None) for rank in range(len(adds))]
    for metrics, add in zip(ranks, adds, strict=True):
        add(metrics)
    return reduced(ranks)


class _Sent(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


def reduced(ranks: list[Metrics]) -> list[dict[str, float]]:
    """Run `reduce` on a copy of each rank up to a gather, to learn what it sends there; then give it all answers."""

    def attempt(metrics: Metrics, answers: list[Any]) -> tuple[str, Any]:
        given = iter(answers)

        def gather(value: Any) -> Any:
            try:
                return next(given)
            except StopIteration:
                raise _Sent(value) from None

        trial = copy.deepcopy(metrics)
        trial._gather, trial._gather_objects = gather, gather
        try:
            found = trial.reduce()
        except _Sent as sent:
            return "sent", sent.value
        metrics.__dict__.update({**trial.__dict__, "_gather": None, "_gather_objects": None})
        return "done", found

    answers: list[Any] = []
    while True:
        steps = [attempt(metrics, answers) for metrics in ranks]
        assert len({kind for kind, _ in steps}) == 1, "ranks disagree on the number of gathers"
        if steps[0][0] == "done":
            return [found for _, found in steps]
        answers.append([value for _, value in steps])


@pytest.mark.parametrize(
    ("reduce", "expected"), [("mean", 3.0), ("sum", 9.0), ("min", 1.0), ("max", 5.0), ("last", 3.0)]
)
def test_each_reduction_over_ranks(reduce: Any, expected: float) -> None:
    def first(metrics: Metrics) -> None:
        metrics.add("m", 1.0, reduce)
        metrics.add("m", torch.tensor(3.0), reduce)

    def second(metrics: Metrics) -> None:
        metrics.add("m", 5.0, reduce)

    assert over_ranks(first, second) == [{"m": expected}] * 2


def test_zero_is_rank_zeros_alone() -> None:
    def both(metrics: Metrics) -> None:
        metrics.add("m", float(metrics._rank), "zero")
        metrics.add("n", 1.0)

    assert over_ranks(both, both) == [{"m": 0.0, "n": 1.0}, {"n": 1.0}]


def test_ranks_may_log_unlike_names() -> None:
    def first(metrics: Metrics) -> None:
        metrics.add("a", 1.0)
        metrics.add("both", 1.0, weight=1)

    def second(metrics: Metrics) -> None:
        metrics.add("b", 2.0, "max")
        metrics.add("both", 4.0, weight=2)

    assert over_ranks(first, second, lambda _: None) == [{"a": 1.0, "b": 2.0, "both": 3.0}] * 3


def test_names_of_some_ranks_are_warned_of_once() -> None:
    ranks, known = [Metrics(rank, None, None) for rank in range(3)], [set[str](), set[str](), set[str]()]
    for round_ in range(2):
        for metrics in ranks[:2]:
            metrics.add("both", 1.0)
        for name in ("a", "b"):
            ranks[1].add(name, 1.0)
        reduced(ranks)  # the last rank logs nothing at all, as one that has no batch of a split
        warnings = [metrics.take_warnings(seen, idle=True) for metrics, seen in zip(ranks, known, strict=True)]
        assert warnings[0] == warnings[1] == warnings[2]
        assert len(warnings[0]) == (0 if round_ else 1)
        if not round_:
            assert warnings[0][0].startswith("the metrics 'a', 'b' came from rank 1 only")


def test_one_name_reduced_in_two_ways_is_an_error() -> None:
    with pytest.raises(TrainingError, match="'m' is reduced by 'sum' on one rank and by 'max' on another"):
        over_ranks(lambda metrics: metrics.add("m", 1.0, "sum"), lambda metrics: metrics.add("m", 1.0, "max"))


def test_more_names_than_a_gather_has_room_for() -> None:
    ranks = [Metrics(rank, None, None) for rank in range(2)]
    for round_ in range(2):  # the second time there is room for all
        for metrics in ranks:
            for name in range(150):
                metrics.add(f"m{name:03}", float(name + metrics._rank))
        expected = {f"m{name:03}": name + 0.5 for name in range(150)}
        assert reduced(ranks) == [expected] * 2, round_
    assert {metrics._cells for metrics in ranks} == {256}


def test_nan_and_infinity_travel() -> None:
    def first(metrics: Metrics) -> None:
        metrics.add("least", math.nan, "min")
        metrics.add("mean", math.inf)

    def second(metrics: Metrics) -> None:
        metrics.add("least", 1.0, "min")
        metrics.add("mean", 1.0)

    for found in over_ranks(first, second):
        assert math.isnan(found["least"])
        assert found["mean"] == math.inf


# --- what evaluation_step answers ---


def test_values_with_and_without_weights() -> None:
    value = torch.tensor(1.0)
    assert weighted({"a": value, "b": (2.0, torch.tensor(3))}) == {"a": (value, None), "b": (2.0, 3.0)}
    with pytest.raises(TrainingError, match="evaluation_step returned str as 'a'; return a number, a tensor or"):
        weighted({"a": "high"})


def test_an_answer_that_is_no_mapping_is_named() -> None:
    with pytest.raises(TrainingError, match="evaluation_step returned a Tensor"):
        weighted(torch.zeros(()))


def test_reduce_can_keep_what_it_has_read() -> None:
    metrics = Metrics(0, None, None)
    metrics.add("x", 1.0)
    assert metrics.reduce(keep=True) == {"x": 1.0}
    metrics.add("x", 4.0)
    assert metrics.reduce() == {"x": 2.5}
    assert metrics.reduce() == {}
