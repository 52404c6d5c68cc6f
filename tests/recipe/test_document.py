from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.errors import RecipeError
from trainrun.recipe import Document, read

Write = Callable[..., Path]


def _error(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(path, overrides)
    return str(caught.value)


def test_an_empty_file_is_an_empty_document(write: Write) -> None:
    assert read(write("")).data == {}


def test_extends_merges_tables_and_replaces_lists(write: Write) -> None:
    write('[run]\nname = "a"\nseed = 1\n[evaluate]\nsplits = ["a", "b"]\n', "configs/base.toml")
    path = write('extends = "configs/base.toml"\n[run]\nseed = 2\n[evaluate]\nsplits = ["c"]\n')

    assert read(path).data == {"run": {"name": "a", "seed": 2}, "evaluate": {"splits": ["c"]}}


def test_extends_is_relative_to_the_file_that_says_it(write: Write) -> None:
    write("[run]\nseed = 1\n", "configs/deep/root.toml")
    write('extends = "deep/root.toml"\n', "configs/base.toml")
    document = read(write('extends = "configs/base.toml"\n'))

    assert document.data == {"run": {"seed": 1}}
    assert str(document.locate(("run", "seed"))) == "configs/deep/root.toml:2:1"


def test_recipes_that_extend_each_other(write: Write) -> None:
    write('extends = "b.toml"\n', "a.toml")
    write('extends = "./a.toml"\n', "b.toml")

    assert "b.toml:1:1: extends: recipes extend each other in a circle: a.toml → b.toml → a.toml" in _error(
        Path("a.toml")
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("extends = 3", "train.toml:1:1: extends: expected the path of a recipe"),
        ('extends = "nope.toml"', "train.toml:1:1: extends: no such file: nope.toml"),
        ('extends = "."', ".: is a directory"),
        ('extends = "a\\u0000b"', "train.toml:1:1: extends: expected the path of a recipe"),
    ],
)
def test_extends_that_leads_nowhere(write: Write, line: str, message: str) -> None:
    assert _error(write(line)).startswith(message)


def test_overrides_win_over_files_and_later_ones_over_earlier(document: Callable[..., Document]) -> None:
    found = document("[optimizer]\nlr = 1.0\nname = 'sgd'\n", "optimizer.lr=2.0", "optimizer.lr=3e-3", "run.name=word")

    assert found.data == {"optimizer": {"lr": 3e-3, "name": "sgd"}, "run": {"name": "word"}}
    assert str(found.locate(("optimizer", "lr"))) == "-o #2"
    assert str(found.locate(("optimizer", "name"))) == "train.toml:3:1"


def test_origin_names_everything_that_was_overridden(write: Write) -> None:
    write("[run]\nseed = 1\n", "base.toml")
    origin = read(write('extends = "base.toml"\n[run]\nseed = 2\n'), ["run.seed=3"]).origin(("run", "seed"))

    assert origin is not None
    assert (str(origin.location), origin.value) == ("-o #1", 3)
    assert [(str(below.location), below.value) for below in origin.overrode] == [
        ("train.toml:3:1", 2),
        ("base.toml:2:1", 1),
    ]


def test_a_key_that_nobody_set_has_no_origin(document: Callable[..., Document]) -> None:
    assert document("").origin(("run", "seed")) is None


def test_quoted_keys_with_dots_and_numbers_beyond_64_bits(write: Write) -> None:
    message = _error(write('[train]\nsteps = 99999999999999999999\n"optimizer.lr" = 1\n'))

    assert "train.toml:2:1: train.steps: the number does not fit into 64 bits" in message
    assert 'train.toml:3:1: train."optimizer.lr": a quoted key with a dot in it' in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "[" * 20_000, "train.toml: is nested too deeply; no recipe needs more than a few levels"),
        ("a." * 5000 + "b = 1", "train.toml: is nested too deeply; no recipe needs more than a few levels"),
        ("x = " + "9" * 5000, "train.toml: holds a number with thousands of digits; integers have 64 bits"),
    ],
)
def test_bombs(write: Write, text: str, message: str) -> None:
    assert _error(write(text)) == message
