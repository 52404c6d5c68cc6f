"""Batches are moved whole: `meta` stands for a device here, because every machine has it."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from trainrun.errors import TrainingError
from trainrun.worker.moving import move

META = torch.device("meta")
ONE = torch.zeros(2, 3)


class Encoding(UserDict[str, Any]):
    """As transformers' BatchEncoding: takes a device only, and moves itself."""

    def to(self, device: Any) -> Encoding:
        self.data = {key: value.to(device) for key, value in self.data.items()}
        return self


class InPlace:
    """Moves itself, and returns nothing."""

    def __init__(self) -> None:
        self.x = ONE
        self.told: dict[str, Any] = {}

    def to(self, device: Any, **options: Any) -> None:
        self.x, self.told = self.x.to(device), options


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass(frozen=True, slots=True)
class Frozen:
    x: Any
    name: str = "a"


@dataclass
class Open:
    x: Any
    length: int = field(init=False, default=3)

    def __post_init__(self) -> None:
        assert not isinstance(self.x, str)


class Rows(list[Any]):
    label = "rows"


class Fixed(Mapping[str, Any]):
    """Can be read only, and is not made of a dict."""

    def __init__(self, x: Any, y: Any) -> None:
        self._items = {"x": x, "y": y}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Frozen | Open | InPlace):
        value = [value.x]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize("batch", [
    ONE, [ONE, ONE], (ONE, "a"), {"x": ONE}, {"x": {"y": [ONE, (ONE,)]}}, Pair(ONE, 1), Rows([ONE]), Frozen(ONE),
    Open(ONE), UserDict(x=ONE), OrderedDict(x=ONE), defaultdict(list, x=ONE), MappingProxyType({"x": ONE}),
    Encoding(x=ONE), InPlace(), {"nested": Encoding(x=ONE), "of": [Pair(Open(ONE), Frozen(UserDict(x=ONE)))]},
], ids=lambda batch: type(batch).__name__)  # fmt: skip
def test_all_tensors_are_moved_and_the_type_is_kept(batch: Any) -> None:
    moved = move(batch, META)
    assert type(moved) is type(batch)
    found = leaves(moved)
    assert any(isinstance(leaf, torch.Tensor) for leaf in found)
    assert all(leaf.device == META for leaf in found if isinstance(leaf, torch.Tensor))


def test_what_else_a_container_holds_is_kept() -> None:
    counts = defaultdict(lambda: 7, x=ONE)
    moved = move(counts, META)
    assert moved["other"] == 7
    assert counts["x"].device.type == "cpu", "the batch itself is left alone"
    assert list(move(OrderedDict(b=ONE, a=ONE), META)) == ["b", "a"]
    rows = Rows([ONE])
    rows.label = "mine"
    assert move(rows, META).label == "mine"
    assert move(Open(ONE), META).length == 3
    assert move(Frozen(ONE, "b"), META).name == "b"
    assert type(move({"x": Pair(ONE, None)}, META)["x"]) is Pair


def test_packed_sequences_are_moved_with_their_order() -> None:
    packed = move({"x": pack_sequence([torch.zeros(3), torch.zeros(2)])}, META)["x"]
    assert packed.data.device == META
    assert packed.batch_sizes.tolist() == [2, 2, 1]


def test_who_can_is_told_not_to_wait() -> None:
    batch = InPlace()
    assert move(batch, META) is batch
    assert batch.told == {"non_blocking": True}


@pytest.mark.parametrize("batch", [
    None, 3, "text", b"x", object(), ["a", "b"], ("a",), UserDict(a=1), Fixed(1, 2), torch.Size((2,)), Open, Frozen(1),
    range(3), {1, 2}, MappingProxyType({"a": 1}),
])  # fmt: skip
def test_what_holds_no_tensor_stays_what_it_is(batch: Any) -> None:
    assert move(batch, META) is batch


def test_what_cannot_be_made_again_is_named() -> None:
    with pytest.raises(TrainingError, match=r"move_batch: a Fixed cannot be made of a dict .*method `to\(device\)`"):
        move(Fixed(ONE, 1), META)
