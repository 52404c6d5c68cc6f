from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.cli.main import run
from trainrun.plugin.specs import own_specs
from trainrun.testing.distribution import DistributionInstaller

Trainrun = Callable[..., "subprocess.CompletedProcess[str]"]

WATCHERS = """
    from trainrun import hookimpl, hookspec

    class Specs:
        @hookspec(locus="worker", kind="event", ranks="zero")
        def on_counted(self, run):
            '''The counter has counted.'''

    class Counter:
        hookspecs = Specs

        @hookimpl(ranks="zero")
        def on_step_end(self, step): ...

    class Watcher:
        after = "counter"
        on_error = "disable"

        @hookimpl
        def on_step_end(self, step): ...

        @hookimpl(specname="on_counted")
        def counted(self): ...

        def on_log(self): ...
"""


@pytest.fixture(autouse=True)
def watchers(install: DistributionInstaller) -> Path:
    entries = {"watcher": "watchers:Watcher", "counter": "watchers:Counter"}
    return install("watch-dist", {"watchers.py": WATCHERS}, entries)


def test_lists_every_hook_with_locus_kind_and_ranks(trainrun: Trainrun) -> None:
    done = trainrun("hooks")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines() if line]
    table = {cells[0]: cells[1:4] for cells in lines}
    for spec in own_specs():
        assert table[spec.hook] == [spec.locus, spec.kind, spec.ranks or "-"]
    assert table["on_counted"] == ["worker", "event", "zero"], "hooks of installed plugins are there too"


def test_shows_who_runs_where_and_why(trainrun: Trainrun, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "[plugins.watcher]\n[plugins.counter]\n")
    done = trainrun("hooks", "train.toml")
    assert done.returncode == 0, done.stderr
    title, first, second, *_ = done.stdout.partition("\non_step_end")[2].splitlines()
    assert title == "  worker event, ranks all"
    for line, name, rest in (
        (first, "watcher", ["ranks all", "on error: disable", "recipe order, after counter, in reverse"]),
        (second, "counter", ["ranks zero", "on error: fail", "recipe order, in reverse"]),
    ):
        assert name in line
        assert all(part in line for part in [*rest, "watch-dist 1.0", "watchers.py:"])
    assert "watcher on_log" not in done.stdout
    assert "on_log is not marked with @hookimpl" in done.stderr


def test_says_what_is_installed_and_not_enabled(trainrun: Trainrun, recipe: Path) -> None:
    (line,) = [line for line in trainrun("hooks", "train.toml").stdout.splitlines() if line.startswith("Installed")]
    assert "watcher" in line
    assert "digits" not in line, "examples are tasks"


def test_shows_the_winner_of_a_provider(trainrun: Trainrun, recipe: Path) -> None:
    title, line, *_ = trainrun("hooks", "train.toml").stdout.partition("\nbuild_model")[2].splitlines()
    assert title.endswith("ranks all")
    assert "tasks/nothing.py" in line
    assert "wins" in line


def test_json_is_one_versioned_document(trainrun: Trainrun, recipe: Path) -> None:
    document = json.loads(trainrun("hooks", "train.toml", "--json", "-p", "counter").stdout)
    assert document["version"] == 1
    assert [one["name"] for one in document["instances"]][-2:] == ["task", "counter"]
    (hook,) = [one for one in document["hooks"] if one["hook"] == "on_step_end"]
    (entry,) = hook["implementations"]
    assert entry["instance"] == "counter"
    assert entry["reason"] == "-p #1, in reverse"


def test_one_hook_with_its_manual(trainrun: Trainrun, recipe: Path) -> None:
    for arguments in (["hooks", "--hook", "on_step_end"], ["hooks", "train.toml", "--hook", "on_step_end"]):
        text = trainrun(*arguments).stdout
        assert "arguments: run, step, epoch, loss, metrics" in text
        assert "Called when an update is complete" in text
        assert "on_step_start" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hook", "on_step_end", "--hook", "on_steps_end"], "did you mean 'on_step_end'?"),
        (["-p", "watcher"], "give its path"),
        (["missing.toml"], "missing.toml"),
        (["train.toml", "-p", "wacther"], "-p #1: plugin 'wacther' is not installed; did you mean 'watcher'?"),
        (["train.toml", "-o", "train.stepps=3"], "did you mean 'steps'?"),
    ],
)
def test_wrong_use_is_explained(trainrun: Trainrun, recipe: Path, arguments: list[str], message: str) -> None:
    done = trainrun("hooks", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_several_hooks_with_their_manuals(trainrun: Trainrun, recipe: Path) -> None:
    arguments = ["hooks", "train.toml", "--hook", "on_step_end", "--hook", "on_log"]
    text = trainrun(*arguments).stdout
    assert text.index("Called when an update is complete") < text.index("Called when metrics are on the host")
    document = json.loads(trainrun(*arguments, "--json").stdout)
    assert {one["hook"] for one in document["hooks"]} == {"on_step_end", "on_log"}


@pytest.mark.parametrize("width", [60, 80, None])
def test_manuals_fill_the_terminal(
    width: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainrun.cli.hooks.terminal_width", lambda: width)
    assert run(["hooks", "--hook", "should_skip_update"]) == 0
    manual = capsys.readouterr().out.split("\n\n", 1)[1]
    (doc,) = [spec.doc for spec in own_specs() if spec.hook == "should_skip_update"]
    assert manual.split() == doc.split()
    assert max(map(len, manual.splitlines())) <= (width or 120)
    assert run(["hooks"]) == 0
    longest = max(map(len, capsys.readouterr().out.splitlines()[: len(own_specs())]))
    assert longest <= width if width else longest > 120
