"""Positions are found by bisecting; a brute-force search over all prefixes must agree."""

from __future__ import annotations

from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from trainrun.errors import RecipeError
from trainrun.recipe.freeze import freeze
from trainrun.recipe.plain import Key, lookup
from trainrun.recipe.source import Source

TEXT = """\
# a comment, lr = 1
extends = "base.toml"

[run]
name = "digits"   # name = 2

[optimizer]
name = "adamw"
betas = [
  0.9,
  ["a"],
  # comment
]
[[optimizer.groups]]
match = ["*.bias"]
[[optimizer.groups]]
match = ["b"]
text = \"\"\"
[run]
fake = 1
\"\"\"
weight_decay = 0.0
[plugins]
"early-stopping".patience = 3
x = { use = "a", 'before' = [], deep = { lr = 1 } }
"""


@pytest.mark.parametrize(
    ("key", "line", "column"),
    [
        (("extends",), 2, 1),
        (("run",), 4, 2),
        (("run", "name"), 5, 1),
        (("optimizer",), 7, 2),
        (("optimizer", "betas"), 9, 1),
        (("optimizer", "betas", 1), 9, 1),
        (("optimizer", "groups", 0, "match"), 15, 1),
        (("optimizer", "groups", 1), 16, 13),
        (("optimizer", "groups", 1, "match"), 17, 1),
        (("optimizer", "groups", 1, "text"), 18, 1),
        (("optimizer", "groups", 1, "weight_decay"), 22, 1),
        (("plugins", "early-stopping", "patience"), 24, 18),
        (("plugins", "early-stopping"), 24, 1),
        (("plugins", "x", "before"), 25, 18),
        (("plugins", "x", "deep", "lr"), 25, 42),
    ],
)
def test_where_a_key_is(key: Key, line: int, column: int) -> None:
    place = Source("train.toml", TEXT).locate(key)

    assert (place.line, place.column) == (line, column)
    assert str(place) == f"train.toml:{line}:{column}"


def test_a_key_that_is_not_there_is_placed_at_its_table() -> None:
    source = Source("train.toml", TEXT)

    assert source.locate(("run", "seed")) == source.locate(("run",))
    assert str(source.locate(("launch", "workers"))) == "train.toml"


def test_windows_line_ends() -> None:
    place = Source("a.toml", "[run]\r\nname = 3\r\n").locate(("run", "name"))

    assert (place.line, place.text) == (2, "name = 3")


def test_long_lines_are_shown_around_the_key() -> None:
    text = "x = {" + ", ".join(f"key{number} = 1" for number in range(2000)) + "}\n"
    problem = Source("a.toml", text).locate(("x", "key1500")).problem("wrong")

    assert problem.source is not None
    assert problem.column is not None
    assert problem.source[problem.column - 1 :].startswith("key1500")
    assert len(problem.source) <= 100


def test_a_secret_in_the_line_is_not_shown() -> None:
    problem = Source("a.toml", 'api_key = "hunter2"\n').locate(("api_key",)).problem("wrong")

    assert "hunter2" not in str(problem)


def test_a_huge_multi_line_value_costs_bounded_time() -> None:
    text = "x = [\n" + "[ 1 ]\n,\n" * 50_000 + "]\ny = 1\n"
    place = Source("a.toml", text).locate(("y",))

    assert place.line in {100_003, None}


def test_syntax_errors_are_placed_and_shown() -> None:
    with pytest.raises(RecipeError) as caught:
        Source("a.toml", "a = 1\nb = = 2\n")

    assert str(caught.value) == "a.toml:2:5: not valid TOML: invalid value\n    b = = 2\n        ^"


names = st.sampled_from(["a", "b", "lr", "x-1", "name", "q q"])
values = st.recursive(
    st.integers(0, 9) | st.text("ab\n[]=\"'#", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def _keys(data: Any, key: Key = ()) -> list[Key]:
    if not isinstance(data, dict):
        return [key]
    return [key, *(found for name, inner in data.items() for found in _keys(inner, (*key, name)))][key == () :]


@given(st.dictionaries(names, values, max_size=4))
def test_bisecting_finds_the_line_that_a_search_through_all_prefixes_finds(data: dict[str, Any]) -> None:
    text = freeze(data)
    source = Source("a.toml", text)
    lines = text.split("\n")
    for key in _keys(data):
        found = [count for count in range(len(lines) + 1) if _holds("\n".join(lines[:count]), key)]
        assert source.locate(key).line == found[0]


def _holds(text: str, key: Key) -> bool:
    try:
        return lookup(tomli.loads(text), key)[0]
    except tomli.TOMLDecodeError:
        return False
