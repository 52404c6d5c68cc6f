from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from trainrun.worker.data.rows import row_digests

Pair = namedtuple("Pair", "x y")


@dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor


X, Y = torch.arange(12.0).reshape(4, 3), torch.arange(4)


@pytest.mark.parametrize(
    "made",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: {"x": x, "y": y, "temperature": torch.tensor(1.0)},
        lambda x, y: UserDict(x=x, y=y),
        Pair,
        Record,
        lambda x, y: {"x": x, "names": [str(int(value)) for value in y]},
    ],
)
def test_each_row_has_a_name_however_batches_are_cut(made: Any) -> None:
    whole = row_digests(made(X, Y))
    halves = [row_digests(made(X[part], Y[part])) for part in (slice(0, 2), slice(2, 4))]
    assert whole is not None
    assert len(set(whole)) == 4
    assert whole == [*(halves[0] or []), *(halves[1] or [])]


def test_a_part_that_differs_makes_another_name() -> None:
    one, other = row_digests((X, Y)), row_digests((X, Y + torch.tensor([0, 0, 0, 1])))
    assert one is not None
    assert other is not None
    assert [a == b for a, b in zip(one, other, strict=True)] == [True, True, True, False]


def test_a_batch_without_rows_has_one_name() -> None:
    assert row_digests(torch.tensor(1.0)) == row_digests(torch.tensor(1.0)) != row_digests(torch.tensor(2.0))


def test_a_batch_that_cannot_be_read_has_no_name() -> None:
    assert row_digests(object()) is None
    assert row_digests([object(), object()]) is None
