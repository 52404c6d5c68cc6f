from __future__ import annotations

from typing import Any

import pytest

from trainrun.errors import RecipeError
from trainrun.recipe.overrides import parse_overrides


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("optimizer.lr=1e-3", {"optimizer": {"lr": 1e-3}}),
        ("optimizer.lr = 1e-3", {"optimizer": {"lr": 1e-3}}),
        ("run.name=digits", {"run": {"name": "digits"}}),
        ("run.name='digits'", {"run": {"name": "digits"}}),
        ("run.autoload=true", {"run": {"autoload": True}}),
        ("evaluate.splits=['a', 'b']", {"evaluate": {"splits": ["a", "b"]}}),
        ("task.use=tasks/digits.py:Digits", {"task": {"use": "tasks/digits.py:Digits"}}),
        ("plugins.early-stopping.patience=3", {"plugins": {"early-stopping": {"patience": 3}}}),
        ('plugins."a=b".x=1', {"plugins": {"a=b": {"x": 1}}}),
        ("optimizer={lr = 1, name = 'sgd'}", {"optimizer": {"lr": 1, "name": "sgd"}}),
        ('run.name=""', {"run": {"name": ""}}),
        ("plugins.x.s=baz=qux", {"plugins": {"x": {"s": "baz=qux"}}}),
        ("run.name=two words", {"run": {"name": "two words"}}),
        ("run.name=a#b", {"run": {"name": "a#b"}}),
        ("checkpoint.every=10m", {"checkpoint": {"every": "10m"}}),
        ("task.url=https://host:80/a?b=c&d=[1]", {"task": {"url": "https://host:80/a?b=c&d=[1]"}}),
        ("run.name=~tilde", {"run": {"name": "~tilde"}}),
        ('plugins.web.headers."X.Id"=1', {"plugins": {"web": {"headers": {"X.Id": 1}}}}),
    ],
)
def test_values_are_toml_and_bare_words_are_strings(text: str, data: dict[str, Any]) -> None:
    assert [override.data for override in parse_overrides([text], 0)] == [data]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr", "expected KEY=VALUE or ~KEY, got 'optimizer.lr'"),
        ("", "expected KEY=VALUE or ~KEY, got ''"),
        ("~", "not a key: ''"),
        ("=3", "not a key: ''"),
        ("a b=3", "not a key: 'a b'"),
        ("[a]=3", "not a key: '[a]'"),
        ("a\n=3", "not a key: 'a\\n'"),
        ("run.name=", "run.name: no value given"),
        ("run.seed=1\nrun.name=2", "run.seed: the value has a line break"),
        ("run.seed=[1", "run.seed: '[1' begins like a TOML list, table or string and is none"),
        ("run.seed=" + "[" * 5000, "run.seed: '[[["),
        ("extends=b.toml", "extends: cannot be overridden"),
    ],
)
def test_what_is_no_override(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_overrides(["run.seed=1", text], 0)

    assert str(caught.value).startswith(f"-o #2: {message}")


def test_all_wrong_overrides_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_overrides(["a", "run.seed=1", "b"], 0)

    assert [problem.where for problem in caught.value.problems] == ["-o #1", "-o #3"]


def test_a_secret_is_not_repeated() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_overrides(["plugins.wandb.api_key=[hunter 2"], 0)

    assert "hunter" not in str(caught.value)


def test_a_key_that_is_removed() -> None:
    (override,) = parse_overrides(["~plugins.early-stopping.patience"], 0)
    assert (override.data, override.removes) == ({}, ("plugins", "early-stopping", "patience"))
