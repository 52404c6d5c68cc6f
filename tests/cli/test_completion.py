from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from trainrun.builtin.fault import KINDS
from trainrun.checkpoint import folder_name
from trainrun.cli import completing
from trainrun.cli.main import COMMANDS, cli, run
from trainrun.rundir import create

SCRIPT = """
source <(trainrun completion bash)
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_trainrun_completion trainrun
printf "%s\\n" "${COMPREPLY[@]}"
"""

PLUGIN = """
from trainrun import Field, PluginOptions, hookimpl

class Noisy:
    class Options(PluginOptions):
        volume: int = Field(3, description="How loud.")

    def __init__(self, options): ...

    @hookimpl
    def on_step_end(self): ...
"""

Shell = Callable[..., list[str]]
Find = Callable[..., list[str]]


@pytest.fixture
def here(recipe: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe that has a plugin of its own, and two runs, one of them with checkpoints."""
    monkeypatch.chdir(recipe.parent)
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(shared_cache))
    Path("noisy.py").write_text(PLUGIN)
    with recipe.open("a") as file:
        file.write("[plugins.noisy]\nuse = 'noisy.py:Noisy'\n")
    for name in ("older", "newer"):
        paths = create(Path("runs"), name)
        for step in (50, 100, 1000):
            (paths.checkpoints / folder_name(step)).mkdir(parents=True)
    os.utime("runs/latest", follow_symlinks=False)
    return recipe.parent


@pytest.fixture
def find(here: Path, monkeypatch: pytest.MonkeyPatch) -> Find:
    """Ask by click's protocol, in this process."""

    def find(*words: str, shell: str = "zsh") -> list[str]:
        kind = get_completion_class(shell)
        assert kind is not None
        asked = kind(cli, {}, "trainrun", "_TRAINRUN_COMPLETE")
        return [item.value for item in asked.get_completions(list(words[:-1]), words[-1])]

    return find


def ids() -> list[str]:
    return sorted(
        (path.name for path in Path("runs").iterdir() if not path.is_symlink()), key=lambda name: "older" in name
    )


def test_bash_completes(here: Path, tmp_path: Path) -> None:
    """A real bash: commands, run ids, keys of the recipe and its plugin, faults, and files for a recipe."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "trainrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m trainrun "$@"\n')
    (bin_folder / "trainrun").chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    run(["check", "train.toml"])  # what the cache does not know is not imported for a completion

    def complete(*words: str) -> list[str]:
        command = ["bash", "--norc", "-c", SCRIPT, "bash", "trainrun", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
        assert "Traceback" not in done.stderr
        return [line for line in done.stdout.splitlines() if line]

    assert complete("verify") == ["verify-resume"]
    assert complete("status", "") == [*ids(), "latest"]
    assert complete("launch", "train.toml", "-o", "plugins.noisy.v") == ["plugins.noisy.volume="]
    assert complete("smoke", "--inject", "na") == ["nan@"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(find: Find, shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_TRAINRUN_COMPLETE={shell}_complete" in script
    assert find("verify", shell=shell) == ["verify-resume"]
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True, timeout=60)


def test_bash_leaves_no_space_after_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "bash"]) == 0
    assert "compopt -o nospace" in capsys.readouterr().out


def test_commands_are_completed_without_importing_them(find: Find) -> None:
    assert set(COMMANDS) <= set(find(""))
    script = "import sys; from trainrun.cli.main import cli, COMMANDS; import click\n"
    script += "cli.shell_complete(click.Context(cli), '')\n"
    script += "sys.exit(bool({module for module, _ in COMMANDS.values()} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ["status", ""],
        ["resume", "latest", "--from", ""],
        ["launch", "-o", "opt"],
        ["launch", "-p", ""],
        ["hooks", "--hook", ""],
    ],
    ids=" ".join,
)
def test_completing_imports_no_torch(here: Path, words: Sequence[str]) -> None:
    script = (
        "import sys; from trainrun.cli.main import run, cli\n"
        "from click.shell_completion import ZshComplete\n"
        "ZshComplete(cli, {}, 'trainrun', 'X').get_completions(sys.argv[1:-1], sys.argv[-1])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, *words], check=False).returncode == 0


def test_runs(find: Find) -> None:
    newer, older = ids()
    assert find("status", "") == [newer, older, "latest"]
    assert find("status", "older") == [older]
    assert find("status", "--dir", "nowhere", "") == ["latest"]
    assert find("status", "./x") == ["./x"]


def test_steps(find: Find) -> None:
    assert find("resume", "latest", "--from", "") == ["1000", "100", "50"]
    assert find("checkpoints", "older", "--step", "1") == ["1000", "100"]
    assert find("resume", "nothing", "--from", "") == []


def test_plugins_hooks_and_faults(find: Find) -> None:
    assert find("launch", "-p", "early") == ["early-stopping"]
    assert find("launch", "-p", "no:early") == ["no:early-stopping"]
    assert find("hooks", "--hook", "on_train") == ["on_train_start", "on_train_end"]
    assert [one.rstrip("@:") for one in find("smoke", "--inject", "")] == list(KINDS)
    assert find("smoke", "--inject", "sigterm@3,oo") == ["sigterm@3,oom:"]


def test_keys(find: Find) -> None:
    assert run(["check", "train.toml"]) == 0
    assert find("launch", "-o", "optimizer.l") == ["optimizer.lr="]
    assert find("launch", "-o", "~train.st") == ["~train.steps"]
    assert find("check", "train.toml", "-o", "plugins.noisy.vol") == ["plugins.noisy.volume="]
    assert find("launch", "-o", "train.steps=3") == []
    Path("other.toml").write_text('[task]\nuse = "digits"\n[plugins.loud]\nuse = "noisy.py:Noisy"\n')
    assert run(["check", "other.toml"]) == 2  # it has no end, which does not matter here
    assert find("launch", "other.toml", "-o", "plugins.loud.vol") == ["plugins.loud.volume="]
    assert find("launch", "nowhere.toml", "-o", "train.micro") == ["train.micro_batch_size="]


def test_every_key_of_the_documentation(find: Find) -> None:
    from trainrun.recipe.schema import base_schema

    keys = list(completing.keys_of(base_schema()))
    assert {"run.name", "task.use", "train.steps", "optimizer.lr", "checkpoint.every", "launch.workers"} <= set(keys)
    assert len(keys) == len(set(keys))
