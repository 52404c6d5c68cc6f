from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trainrun.checkpoint import FileRecord, Manifest
from trainrun.errors import UsageError
from trainrun.launch.differences import Differences, Present, compare

RECIPE: dict[str, Any] = {"task": {"use": "x", "width": 8}, "train": {"steps": 10, "batch_size": 64}}
VERSIONS = {"python": "3.11.7", "trainrun": "0.1.0", "torch": "2.13.0"}
WATCHES = {"plugin": "monitor", "distribution": "mine", "version": "1.0", "hash": "a" * 64, "acts": ""}
VOTES = {**WATCHES, "plugin": "stopper", "acts": "should_stop"}


def changed(base: Mapping[str, Any], **tables: Mapping[str, Any]) -> dict[str, Any]:
    return {**base, **{name: {**base.get(name, {}), **table} for name, table in tables.items()}}


def compared(
    before: Mapping[str, Any] = RECIPE, now: Mapping[str, Any] = RECIPE, world: int = 2, **about: Any
) -> Differences:
    """What changes from a recipe to another. about: `plugins`, of before and now; other keys of the manifest."""
    old, new = about.pop("plugins", ({}, {}))
    known = {"run": "one", "attempt": 1, "step": 5, "epoch": 1, "samples_seen": 320, "created": 0.0, "world_size": 2}
    manifest = Manifest(recipe=before, plugins=old, versions=VERSIONS, **{**known, **about})
    return compare(manifest, Present(now, new, VERSIONS, world))


def test_nothing_has_changed() -> None:
    found = compared()
    assert found == Differences()
    assert found.to_json() == {}
    assert list(found.notes()) == []
    found.require(Path("here"))


def test_defaults_that_are_written_out_are_no_change() -> None:
    assert compared(now=changed(RECIPE, optimizer={"name": "adamw"}, data={"shuffle": True})) == Differences()


@pytest.mark.parametrize(
    ("tables", "key"),
    [
        ({"optimizer": {"lr": 0.1}}, "optimizer.lr"),
        ({"train": {"batch_size": 32}}, "train.batch_size"),
        ({"train": {"precision": "bf16"}}, "train.precision"),
        ({"task": {"width": 9}}, "task.width"),
        ({"data": {"shuffle": False}}, "data.shuffle"),
        ({"run": {"seed": 1}}, "run.seed"),
        ({"scheduler": {"name": "cosine"}}, "scheduler.name"),
        ({"parallel": {"strategy": "none"}}, "parallel.strategy"),
        ({"providers": {"build_model": "other"}}, "providers.build_model"),
    ],
)
def test_what_changes_the_training_blocks(tables: Any, key: str) -> None:
    found = compared(now=changed(RECIPE, **tables))
    assert found.blocking == (key,)
    assert list(found.recipe) == [key]
    with pytest.raises(UsageError, match="--allow-changes") as caught:
        found.require(Path("runs/one/checkpoints/step-000005"))
    old, new = found.recipe[key]
    assert f"{key}: {'nothing' if old is None else old} → {new}" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "tables",
    [
        {"run": {"name": "other", "dir": "elsewhere", "autoload": True}},
        {"launch": {"workers": 4, "grace": "1m", "max_restarts": 0}},
        {"data": {"workers": 3, "pin_memory": False}},
        {"train": {"log_every": 1, "device": "cpu"}},
        {"evaluate": {"every": 5, "splits": ["eval", "test"]}},
        {"checkpoint": {"every": 5, "keep": 9, "resume": "here"}},
        {"control": {"mode": "frozen"}},
        {"train": {"steps": 20}},
    ],
)
def test_what_leaves_the_training_as_it_is_does_not(tables: Any) -> None:
    found = compared(now=changed(RECIPE, **tables))
    assert found.blocking == ()
    assert len(found.recipe) == sum(map(len, tables.values()))
    assert len(list(found.notes())) == len(found.recipe)


@pytest.mark.parametrize(("name", "blocks"), [("cosine", True), ("linear", True), ("exponential", False)])
def test_another_length_blocks_where_the_learning_rate_depends_on_it(name: str, blocks: bool) -> None:
    table = {"name": name, **({"gamma": 0.9} if name == "exponential" else {})}
    before = changed(RECIPE, scheduler=table)
    assert compared(before, changed(before, train={"steps": 20})).blocking == (("train.steps",) if blocks else ())


def test_secrets_are_neither_compared_nor_shown() -> None:
    before = changed(RECIPE, task={"api_key": "<redacted>"})
    assert compared(before, changed(RECIPE, task={"api_key": "hunter2"})) == Differences()


def test_recipe_of_another_version_is_compared_as_it_stands() -> None:
    found = compared(before={**RECIPE, "gone": {"key": 1}}, now=changed(RECIPE, task={"width": 9}))
    assert {"gone.key", "task.width"} <= set(found.blocking)


def test_number_of_workers_is_told_and_does_not_block() -> None:
    found = compared(world=1)
    assert found.blocking == ()
    assert found.to_json() == {"world": [2, 1]}
    assert "2 → 1; each sample is still seen exactly once" in next(found.notes())


def test_versions_are_told_and_do_not_block() -> None:
    manifest = Manifest(
        run="one",
        attempt=1,
        step=5,
        epoch=1,
        samples_seen=320,
        created=0.0,
        world_size=2,
        recipe=RECIPE,
        versions={**VERSIONS, "torch": "2.12.0"},
    )
    found = compare(manifest, Present(RECIPE, {}, VERSIONS, 2))
    assert found.blocking == ()
    assert found.to_json() == {"versions": {"torch": ["2.12.0", "2.13.0"]}}


# --- plugins ---


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"one": WATCHES}),
        ({"one": WATCHES}, {}),
        ({"one": WATCHES}, {"one": {**WATCHES, "version": "2.0"}}),
        ({"one": WATCHES}, {"one": {**WATCHES, "hash": "b" * 64}}),
    ],
)
def test_plugins_that_only_watch_may_come_go_and_change(old: Any, new: Any) -> None:
    found = compared(plugins=(old, new))
    assert list(found.plugins) == ["one"]
    assert found.blocking == ()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"one": VOTES}),
        ({"one": VOTES}, {}),
        ({"one": VOTES}, {"one": {**VOTES, "version": "2.0"}}),
        ({"one": {key: value for key, value in VOTES.items() if key != "acts"}}, {}),
    ],
)
def test_plugins_that_take_part_block(old: Any, new: Any) -> None:
    found = compared(plugins=(old, new))
    assert found.blocking == ("plugin one",)
    with pytest.raises(UsageError, match="plugin one: "):
        found.require(Path("here"))


def test_plugin_whose_state_is_in_the_checkpoint_blocks_when_it_is_gone() -> None:
    files = {"plugins/one.pt": FileRecord(1, "0" * 64)}
    assert compared(plugins=({"one": WATCHES}, {}), files=files).blocking == ("plugin one",)


def test_options_of_a_plugin_count_as_the_plugin_does() -> None:
    before = {**RECIPE, "plugins": {"one": {"every": 1}, "two": {"patience": 3}}}
    now = {**RECIPE, "plugins": {"one": {"every": 2}, "two": {"patience": 4}}}
    both = {"one": WATCHES, "two": VOTES}
    found = compared(before, now, plugins=(both, both))
    assert found.blocking == ("plugins.two.patience",)
    assert set(found.recipe) == {"plugins.one.every", "plugins.two.patience"}


def test_options_of_a_plugin_that_is_new_or_off_are_not_told_one_by_one() -> None:
    now = {**RECIPE, "plugins": {"one": {"every": 2}, "two": {"enabled": False}}}
    found = compared(now=now, plugins=({}, {"one": WATCHES}))
    assert (found.recipe, found.blocking) == ({}, ())


def test_file_of_the_users_own_is_the_same_wherever_it_lies() -> None:
    task = {"plugin": "/a/task.py:Task", "distribution": "", "version": "", "hash": "a" * 64, "acts": "build_model"}
    moved, edited = {**task, "plugin": "/b/task.py:Task"}, {**task, "hash": "b" * 64}
    assert compared(plugins=({"task": task}, {"task": moved})) == Differences()
    assert compared(plugins=({"task": task}, {"task": edited})).blocking == ("plugin task",)


# --- what cannot be changed ---


@pytest.mark.parametrize(("name", "same"), [("AdamW", True), ("adam_w", True), ("sgd", False)])
def test_another_optimizer_is_refused_whatever_is_allowed(name: str, same: bool) -> None:
    found = compared(now=changed(RECIPE, optimizer={"name": name}))
    if same:
        assert found == Differences()
        return
    assert found.impossible == ("optimizer.name",)
    with pytest.raises(UsageError, match=r"optimizer\.name: adamw → sgd"):
        found.require(Path("here"), allow=True)


def test_name_of_the_optimizer_that_the_task_builds_itself_can_change() -> None:
    task = {**VOTES, "acts": "build_model, build_optimizer"}
    found = compared(now=changed(RECIPE, optimizer={"name": "sgd"}), plugins=({"task": task}, {"task": task}))
    assert (found.impossible, found.blocking) == ((), ("optimizer.name",))
    found.require(Path("here"), allow=True)


def test_another_length_blocks_where_the_task_builds_the_schedule() -> None:
    task = {**VOTES, "acts": "build_scheduler, build_model"}
    found = compared(now=changed(RECIPE, train={"steps": 20}), plugins=({"task": task}, {"task": task}))
    assert found.blocking == ("train.steps",)
