from __future__ import annotations

import random

import pytest

from trainrun.cli.twice import seen_twice


def names(numbers: range | list[int]) -> list[str]:
    return [str(number) for number in numbers]


def test_samples_that_only_one_rank_sees_are_well() -> None:
    assert seen_twice(names(range(8)), names(range(8, 16))) == (
        "ok",
        "8 and 8 samples of the first updates on 2 ranks, and none on both",
    )


@pytest.mark.parametrize("count", [3, 64])
def test_the_same_samples_in_the_same_order_fail(count: int) -> None:
    status, text = seen_twice(names(range(count)), names(range(count)))
    assert status == "failed"
    assert f"{count} of {count} different samples are on both ranks, in the same order" in text


def test_the_same_samples_in_another_order_fail() -> None:
    status, text = seen_twice(names(range(20)), names(range(19, -1, -1)))
    assert status == "failed"
    assert "in the same order" not in text


@pytest.mark.parametrize("kinds", [1, 2, 16])
def test_samples_of_few_kinds_prove_nothing(kinds: int) -> None:
    draw = random.Random(kinds)
    one, other = ([draw.randrange(kinds) for _ in range(64)] for _ in range(2))
    assert seen_twice(names(one), names(other))[0] == "not compared"


def test_a_data_set_with_every_sample_twice_is_well() -> None:
    order = [*range(100), *range(100)]
    random.Random(0).shuffle(order)
    assert seen_twice(names(order[:64]), names(order[64:128]))[0] == "ok"


def test_two_equal_samples_are_too_few_to_tell() -> None:
    assert seen_twice(["a", "b"], ["a", "b"])[0] == "not compared"
