"""However a tensor is cut into blocks, they make it up; and without one of them, or with one twice, they do not."""

from __future__ import annotations

import pickle
import random
from itertools import pairwise, product

import pytest

from trainrun.checkpoint import pickles
from trainrun.checkpoint.index import Chunk, _uncovered

SEEDS = range(50)


def grid(rng: random.Random) -> tuple[list[int], list[Chunk]]:
    """A tensor of up to three dimensions, each cut at random places."""
    size = [rng.randrange(1, 9) for _ in range(rng.randrange(4))]
    cuts = [sorted({0, length, *rng.sample(range(length + 1), rng.randrange(min(4, length)))}) for length in size]
    blocks = product(*(pairwise(of_one) for of_one in cuts))
    return size, [
        Chunk(tuple(start for start, _ in block), tuple(end - start for start, end in block), None) for block in blocks
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_cut_in_any_way(seed: int) -> None:
    rng = random.Random(seed)
    size, chunks = grid(rng)
    rng.shuffle(chunks)
    empty = Chunk(tuple(size), (0,) * len(size), None)
    assert _uncovered(size, chunks) is None
    assert _uncovered(size, chunks + [empty] * bool(size)) is None
    assert _uncovered(size, chunks[1:]) is not None
    assert _uncovered(size, [*chunks, chunks[-1]]) is not None
    if len(chunks) > 1:
        assert _uncovered(size, [chunks[1], *chunks[1:]]) is not None


def test_columns_that_are_cut_differently() -> None:
    halves = [Chunk((0, 0), (2, 2), None), Chunk((2, 0), (2, 2), None), Chunk((0, 2), (4, 1), None)]
    assert _uncovered((4, 3), halves) is None
    assert _uncovered((4, 3), [halves[0], halves[0], halves[2]]) == "its parts overlap, or leave gaps"


def test_many_blocks_take_little_time() -> None:
    chunks = [Chunk((row, column), (1, 1), None) for row in range(200) for column in range(200)]
    assert _uncovered((200, 200), chunks) is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x80\x04}(\x8c\x01aK\x01\x8c\x01aK\x02u.", "the key 'a' twice"),
        (b"\x80\x04}((K\x01(tttK\x02s.", "a key that is a tuple"),
        (b"\x80\x04cos\nsystem\n.", r"names 'os\.system'"),
        (b"\x80\x04Nr\xff\xff\xff\xff.", "remembers more"),
    ],
)
def test_pickles_that_no_checkpoint_needs(data: bytes, why: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=why):
        pickles.load(data, lambda _: False)


def test_what_is_named_is_not_called() -> None:
    made = pickles.load(pickle.dumps(random.Random), lambda _: True)
    assert made == pickles.Name("random", "Random")
    called = pickles.load(b"cos\nsystem\n(Vfalse\ntR.", lambda _: True)
    assert (called.maker, called.arguments) == (pickles.Name("os", "system"), ("false",))
