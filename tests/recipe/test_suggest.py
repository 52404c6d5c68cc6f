from __future__ import annotations

import pytest

from trainrun.recipe import suggest


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("weight_dcay", "weight_decay"),
        ("step", "steps"),
        ("steps", "steps"),
        ("Batch-Size", "batch_size"),
        ("bacth_size", "batch_size"),
        ("lrr", "lr"),
        ("completely", None),
        ("x", None),
        ("", None),
        ("le" * 5000, None),
    ],
)
def test_only_near_words_are_suggested(word: str, expected: str | None) -> None:
    assert suggest(word, ["lr", "weight_decay", "steps", "batch_size", "epochs"]) == expected


def test_the_nearest_of_several_wins() -> None:
    assert suggest("workes", ["works", "workers", "worker"]) in {"works", "workers"}
    assert suggest("worker", ["workers", "worker"]) == "worker"
