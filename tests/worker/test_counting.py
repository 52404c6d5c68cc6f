from __future__ import annotations

import warnings
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import default_collate

from trainrun.worker.data import EVALUATION_WEIGHT, SampleCounter, batch_size
from trainrun.worker.data.counting import describe

X, Y, ONE = torch.zeros(4, 3), torch.zeros(4, 1), torch.tensor(1.0)
IMAGES = [torch.zeros(3, 8 + number, 9) for number in range(4)]
BOXES = [{"boxes": torch.zeros(number + 1, 4), "label": torch.tensor(1)} for number in range(4)]

Pair = namedtuple("Pair", "x y")


class Typed(NamedTuple):
    x: Any
    scale: Any = ONE


@dataclass
class Fields:
    x: Any
    y: Any = None


class Sized:
    def __len__(self) -> int:
        return 4


class Graphs:
    """As torch_geometric's: its `__len__` is the number of its attributes."""

    def __init__(self, **parts: Any) -> None:
        self._parts = parts

    def keys(self) -> list[str]:
        return list(self._parts)

    def __getitem__(self, key: str) -> Any:
        return self._parts[key]

    def __len__(self) -> int:
        return len(self._parts)


class GraphBatch(Graphs):
    num_graphs = 4


class TensorDict(UserDict[str, Any]):
    batch_size = torch.Size((4, 2))


class Array:
    """As NumPy's."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]


@pytest.mark.parametrize("batch", [
    X, [X, Y], (X, Y), [X], Array(4, 2), Sized(), TensorDict(x=torch.zeros(4, 2, 3)), GraphBatch(x=torch.zeros(37, 2)),
    {"x": X, "y": Y}, UserDict(x=X, y=Y), OrderedDict(x=X), defaultdict(list, x=X), Pair(X, Y), Typed(X), Fields(X, Y),
    {"temperature": ONE, "x": X, "y": Y}, UserDict(temperature=ONE, x=X), Fields(ONE, X), [ONE, X], [0.5, X, "a", None],
    {"x": X, "scale": Array(), "epoch": 3, "size": X.shape, "names": "abc", "none": None, "extra": []},
    X.to_sparse(), pack_sequence(IMAGES[:1] * 4), {"x": pack_sequence(IMAGES[:1] * 4), "y": Y},
    {"text": ["a", "b", "c", "d"], "x": X}, [X, ("a", "b", "c", "d")], ["a", "b", "c", "d"], [ONE] * 4, [1, 2, 3, 4],
    {"images": IMAGES, "labels": Y}, [IMAGES, Y], {"images": IMAGES[:1] * 4, "labels": Y}, [{"text": "a", "y": 1}] * 4,
    [[X, X], Y], {"pair": [X, X], "y": Y}, [X, {"y": Y}], {"outer": {"x": X, "inner": Pair(X, [Y])}},
    {"x": X, "b": BOXES},
])  # fmt: skip
def test_four(batch: Any) -> None:
    assert batch_size(batch) == 4


@pytest.mark.parametrize("batch", [
    None, 3, "abcd", b"abcd", ONE, [], {}, X.shape, object(), Array(), {"x": ONE, "text": "abcd"}, Graphs,
    {"x": X, "y": torch.zeros(7)}, [X, torch.zeros(7)], Pair(X, torch.zeros(7)), Fields(X, torch.zeros(7)),
    UserDict(x=X, y=torch.zeros(7)), {"x": X, "names": ["a", "b"]}, {"x": X, "sized": Sized(), "y": torch.zeros(7)},
    Graphs(x=torch.zeros(37, 2), edges=torch.zeros(2, 80)), [torch.zeros(4), torch.zeros(7)],
    {"images": IMAGES}, BOXES, [IMAGES, BOXES], [[X, X], [X, X]], [{"x": torch.zeros(3, 2)}] * 4,
])  # fmt: skip
def test_not_known(batch: Any) -> None:
    assert batch_size(batch) is None


rows = st.integers(1, 6)
samples = st.recursive(
    st.sampled_from([torch.zeros(2), torch.zeros(1, 3), ONE, 1.5, 2, "text"]),
    lambda part: (
        st.dictionaries(st.sampled_from("abc"), part, min_size=1, max_size=3)
        | st.tuples(part)
        | st.tuples(part, part).map(lambda both: Pair(*both))
    ),
    max_leaves=6,
)


@given(samples, rows)
def test_what_default_collate_has_made_is_counted(sample: Any, number: int) -> None:
    batch = default_collate([sample] * number)
    assert batch_size(batch) in (number, None)
    assert batch_size({"batch": batch, "of": torch.zeros(number)}) == number
    if not isinstance(sample, tuple):
        assert batch_size([batch, torch.zeros(number)]) == number


def test_nested_tensors_count_their_tensors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that they are a prototype
        for layout in (torch.jagged, torch.strided):
            parts = [torch.zeros(length, 2) for length in (5, 2, 7, 1)]
            batch = {"x": torch.nested.nested_tensor(parts, layout=layout), "y": Y}
            assert batch_size(batch) == 4
            assert batch_size({**batch, "z": torch.zeros(5)}) is None
            assert describe(batch) == "x of length 4, y (4, 1)"


def test_one_warning_names_the_parts_and_the_way_out() -> None:
    said: list[str] = []
    counter = SampleCounter("split 'eval'", EVALUATION_WEIGHT, said.append)
    assert counter.count([X, Y]) == 4
    assert not said
    assert [counter.count({"x": X, "inner": [torch.zeros(7), ["a"]]}) for _ in range(3)] == [None] * 3
    (warning,) = said
    assert warning == (
        "split 'eval': the number of samples in a batch, a dict, is not known: its parts have no one number of rows in"
        " common (x (4, 3), inner[0] (7,), inner[1] of length 1); such batches all have the same weight."
        " evaluation_step may return (value, weight) for a metric, and that counts instead"
    )


def test_a_batch_without_rows_is_named_by_its_type() -> None:
    said: list[str] = []
    SampleCounter("training", EVALUATION_WEIGHT, said.append).count({"text": "abc"})
    assert "a dict, is not known: no part of it has rows; such batches" in said[0]
