from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.errors import RecipeError
from trainrun.recipe import Document, freeze, read

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

    assert "b.toml:1:1: extends: the recipes extend each other in a cycle: a.toml → b.toml → a.toml" in _error(
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


def test_numbers_beyond_64_bits(write: Write) -> None:
    message = _error(write("[train]\nsteps = 99999999999999999999\n"))

    assert "train.toml:2:1: train.steps: the number does not fit into 64 bits" in message


def test_a_quoted_key_may_have_a_dot(write: Write) -> None:
    path = write('[plugins.web.headers]\n"X.Id" = "a"\n')
    assert read(path).data["plugins"]["web"]["headers"] == {"X.Id": "a"}
    assert read(path, ['plugins.web.headers."X.Id"=b']).data["plugins"]["web"]["headers"] == {"X.Id": "b"}
    assert freeze(read(path).data) == '[plugins.web.headers]\n"X.Id" = "a"\n'


def test_an_override_takes_the_place_of_its_rival(write: Write) -> None:
    path = write("[train]\nsteps = 5\nbatch_size = 2\n")
    assert read(path, ["train.epochs=1"]).data["train"] == {"epochs": 1, "batch_size": 2}
    assert read(path, ["train.steps=9"]).data["train"] == {"steps": 9, "batch_size": 2}
    both = read(path, ["train.epochs=1", "train.steps=9"]).data["train"]
    assert both == {"steps": 9, "epochs": 1, "batch_size": 2}, "who asks for both is told that only one may be set"


def test_overrides_remove_keys_and_tables(write: Write) -> None:
    path = write("[train]\nsteps = 5\nbatch_size = 2\n[plugins.one]\n[plugins.two]\n")
    found = read(path, ["~train.steps", "train.epochs=2", "~plugins.one"]).data
    assert found == {"train": {"batch_size": 2, "epochs": 2}, "plugins": {"two": {}}}
    assert read(path).data["train"]["steps"] == 5, "what was read before is not changed"
    assert read(path, ["~train.steps", "train.steps=3"]).data["train"]["steps"] == 3


@pytest.mark.parametrize(
    ("override", "hint"),
    [("~train.step", "did you mean 'steps'?"), ("~tarin.steps", ""), ("~train.steps.x", ""), ("~nothing", "")],
)
def test_only_a_key_that_is_set_can_be_removed(write: Write, override: str, hint: str) -> None:
    message = _error(write("[train]\nsteps = 5\n"), override)
    assert message.startswith(f"-o #1: {override[1:]}: the recipe does not set this key, so it cannot be removed")
    assert hint in message


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
