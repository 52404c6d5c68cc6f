"""The light check and pydantic's models are two readings of one definition: they must never disagree."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainrun.recipe import Document, Recipe, base_schema, check, complete, freeze, merge
from trainrun.recipe.plain import json_form
from trainrun.recipe.source import Source
from trainrun.recipe.validator import violations

SCHEMA = base_schema()
UNAVAILABLE = "this version"

RIGHT: dict[str, Any] = {
    "run": {"name": "digits", "dir": "runs", "seed": 0, "deterministic": True, "autoload": False},
    "task": {"use": "x", "hidden": 64},
    "launch": {"backend": "local", "workers": 2, "grace": "30s", "timeout": 600, "max_restarts": 0},
    "data": {"workers": 0, "pin_memory": "auto", "shuffle": True, "drop_last": False},
    "train": {"steps": 3, "batch_size": 64, "micro_batch_size": 8, "clip_grad_norm": 1.0, "precision": "bf16"},
    "evaluate": {"every": "epoch", "splits": ["eval"], "batch_size": 8},
    "optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True, "groups": [{"match": ["*.bias"], "weight_decay": 0}]},
    "scheduler": {"name": "step", "warmup": 3, "min_lr": 0.0, "step_size": 3, "gamma": 0.5},
    "parallel": {"strategy": "fsdp", "wrap": ["blocks.*", "Block"]},
    "checkpoint": {"every": "1h30m", "keep": 2, "resume": "auto"},
    "control": {"mode": "open"},
    "plugins": {"early-stopping": {"use": "x", "enabled": True, "before": ["a"], "queue": 3, "own": 1.5}},
    "providers": {"build_model": "x"},
}

scalars = (
    st.sampled_from(
        [True, False, 0, 1, -1, 2, 3, 64, 2**32, 2**62, 0.0, 0.5, 1.0, -0.5, 1e300, float("nan"), float("inf")]
    )
    | st.sampled_from(["", "auto", "epoch", "10m", "0s", "1h 30m", "3", "true", "a/b", "..", "sgd", "adamw", "cosine"])
    | st.integers(-5, 100)
    | st.floats(-2, 2)
    | st.text(max_size=3)
    | st.dates()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["match", "lr", "x", "use"]), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = [
    ("train", "epochs"),
    ("optimizer", "momentum"),
    ("optimizer", "weight_dcay"),
    ("train", "lr"),
    ("scheduler", "power"),
]
PLACES = [(table,) for table in RIGHT] + [(table, key) for table in RIGHT for key in RIGHT[table]] + KEYS
PLACES += [("optimizer", "groups", 0), ("optimizer", "groups", 0, "match"), ("plugins", "early-stopping", "queue")]
PLACES += [("plugins", "early-stopping", "enabled")]
changes = st.lists(st.tuples(st.sampled_from(PLACES), st.none() | values), max_size=3)


def _changed(edits: list[tuple[tuple[Any, ...], Any]]) -> dict[str, Any]:
    data = copy.deepcopy(RIGHT)
    for key, value in edits:
        table: Any = data
        for part in key[:-1]:
            table = _within(table, part)
        if isinstance(table, dict) and value is None:
            table.pop(key[-1], None)
        elif isinstance(table, dict):
            table[key[-1]] = value
        elif isinstance(table, list) and table and value is not None:
            table[0] = value
    return data


def _within(table: Any, part: Any) -> Any:
    """What is there, where an edit before this one has left something that has parts of this kind."""
    if isinstance(table, dict):
        return table.get(part)
    return table[part] if isinstance(table, list) and isinstance(part, int) and part < len(table) else None


def _shown(value: object) -> str:
    """To compare by: NaN is not equal to itself."""
    return repr(value)


def _document(data: dict[str, Any]) -> Document:
    return Document(Path("train.toml"), data, (Source("train.toml", ""),))


def _model_accepts(data: dict[str, Any]) -> bool:
    try:
        Recipe.from_data(data)
    except pydantic.ValidationError:
        return False
    return True


def test_the_example_is_right() -> None:
    assert check(_document(RIGHT), SCHEMA) == []
    assert _model_accepts(RIGHT)


@settings(max_examples=400, deadline=None)
@given(changes)
def test_the_check_and_the_model_agree(edits: list[tuple[tuple[Any, ...], Any]]) -> None:
    data = _changed(edits)
    found = [problem for problem in check(_document(data), SCHEMA) if UNAVAILABLE not in problem.what]

    assert (not found) == _model_accepts(data), found


@settings(max_examples=100, deadline=None)
@given(changes)
def test_completing_changes_nothing_but_defaults(edits: list[tuple[tuple[Any, ...], Any]]) -> None:
    data = _changed(edits)
    completed = complete(data, SCHEMA)

    assert _shown(complete(completed, SCHEMA)) == _shown(completed)
    if _model_accepts(data):
        assert _shown(Recipe.from_data(completed)) == _shown(Recipe.from_data(data))
        assert completed == {**completed, **_subset(completed, data)}


def _subset(completed: Any, data: Any) -> Any:
    """`completed` cut down to the keys of `data`, so that comparing shows that none was changed."""
    if isinstance(data, dict):
        return {
            key: {**completed[key], **_subset(completed[key], value)} if isinstance(value, dict) else value
            for key, value in data.items()
        }
    return data


class Inner(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    depth: int = 1
    child: Inner | None = None


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    name: str


class Options(pydantic.BaseModel):
    """What plugin authors may write: nested models, unions, tuples, mappings, constraints."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    monitor: str
    patience: int = pydantic.Field(5, ge=1)
    ratio: float = pydantic.Field(0.5, gt=0, lt=1)
    mode: Literal["min", "max", 3] = "max"
    path: Path = Path("x")
    sizes: list[int] = []
    pair: tuple[int, str] = (1, "a")
    weights: dict[str, float] = {}
    inner: Inner = Inner()
    pet: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")] | None = None
    either: int | str | None = None
    tag: str = pydantic.Field("a", pattern=r"^[a-z]+$", max_length=3)
    names: set[str] = set()
    even: int = pydantic.Field(2, multiple_of=2)
    anything: Any = None


OPTIONS = Options.model_json_schema()
option_values = values | st.sampled_from(
    [
        {"depth": 1, "child": {"depth": 2}},
        {"depth": 1, "child": {"depth": "2"}},
        {"kind": "cat", "lives": 9},
        {"kind": "cat", "name": "x"},
        {"kind": "dog", "name": "x"},
        {"kind": "bird"},
        [1, "a"],
        [1, 2],
        [1, "a", 3],
        {"a": 1.5, "b": 2},
        {"a": "1"},
        ["a", "b"],
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from([*Options.model_fields, "typo"]), option_values, max_size=4))
def test_the_check_and_a_plugins_model_agree(table: dict[str, Any]) -> None:
    merged = merge(SCHEMA, None, {"p": OPTIONS})
    data = {"task": {"use": "x"}, "train": {"steps": 1}, "plugins": {"p": table}}
    try:
        Options.model_validate_json(json.dumps(json_form(table)))
        accepted = True
    except pydantic.ValidationError:
        accepted = False

    assert (not list(violations(merged, json_form(data)))) == accepted


@pytest.mark.parametrize("pattern", [r"^(?!no).*$", r"^[a-z]+$"])
def test_patterns_that_only_python_knows(pattern: str) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": pattern}}}

    assert list(violations(schema, {"x": "yes"})) == []
    assert [found.kind for found in violations(schema, {"x": "no" if "no" in pattern else "N"})] == [
        "string_pattern_mismatch"
    ]


def test_a_frozen_recipe_is_the_same_recipe() -> None:
    completed = complete(RIGHT, SCHEMA)
    again = Source("recipe.toml", freeze(completed)).data

    assert again == completed
    assert Recipe.from_data(again) == Recipe.from_data(RIGHT)
