from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli

from trainrun.cli import reporting
from trainrun.cli.main import run
from trainrun.errors import Problem

RECIPE = """\
extends = "base.toml"
[run]
name = "digits"
[train]
steps = 5
[plugins.early-stopping]
monitor = "eval/accuracy"
api_key = "hunter2"
"""
BASE = '[task]\nuse = "trainrun.examples.digits"\n[train]\nsteps = 3\nlog_every = 1\n[control]\nmode = "frozen"\n'

VETO = """\
from trainrun import hookimpl

@hookimpl
def check_recipe(recipe):
    return f"no run may be called {recipe.run.name}" if recipe.run.name == "forbidden" else None
"""

Call = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def call(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Carry out a `trainrun` command line in a folder with a recipe; answer with exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(shared_cache))
    monkeypatch.setenv("NO_COLOR", "1")
    Path("base.toml").write_text(BASE)
    Path("train.toml").write_text(RECIPE.replace('api_key = "hunter2"\n', ""))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_right_recipe_is_said_to_be_right(call: Call) -> None:
    code, out, err = call("check", "train.toml")

    assert (code, out) == (0, "train.toml: ok · task trainrun.examples.digits · plugins early-stopping\n")
    assert err == "note: base.toml:7:1: control.mode: has no effect: live control is not part of this version\n"


def test_all_problems_are_shown(call: Call) -> None:
    code, out, err = call("check", "train.toml", "-o", "train.stepz=1", "-o", "plugins.early-stopping.patience=-1")

    assert (code, out) == (2, "")
    assert "-o #1: train.stepz: unknown key; did you mean 'steps'?" in err
    assert "-o #2: plugins.early-stopping.patience: expected a positive integer, got -1" in err


def test_print_shows_the_recipe_with_its_defaults(call: Call) -> None:
    code, out, _ = call("check", "train.toml", "--print", "-o", "optimizer.lr=0.5")
    printed = tomli.loads(out)

    assert code == 0
    assert printed["train"]["steps"] == 5
    assert printed["train"]["log_every"] == 1
    assert printed["optimizer"] == {"name": "adamw", "groups": [], "lr": 0.5}
    assert printed["plugins"]["early-stopping"]["monitor"] == "eval/accuracy"
    assert "extends" not in printed


def test_what_is_printed_is_a_right_recipe(call: Call) -> None:
    Path("printed.toml").write_text(call("check", "train.toml", "--print")[1])

    assert call("check", "printed.toml")[0] == 0


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (
            "train.steps",
            "train.steps = 9\n  set at -o #1\n  overrides 5 at train.toml:5:1\n  overrides 3 at base.toml:4:1\n",
        ),
        ("train.log_every", "train.log_every = 1\n  set at base.toml:5:1\n"),
        ("train.batch_size", "train.batch_size = 64\n  default of trainrun\n"),
        ("plugins.early-stopping.mode", 'plugins.early-stopping.mode = "min"\n  default of plugin early-stopping\n'),
        ("task.hidden", "default of the task\n"),
    ],
)
def test_why_tells_where_a_value_comes_from(call: Call, key: str, text: str) -> None:
    code, out, _ = call("check", "train.toml", "-o", "train.steps=9", "--why", key)

    assert code == 0
    assert out.endswith(text)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.stepz", "--why: train.stepz is not set and has no default; did you mean 'train.steps'?"),
        ("train.epochs", "--why: train.epochs is not set and has no default"),
        ("no such key", "--why: not a key: 'no such key'"),
    ],
)
def test_why_asks_for_a_key_that_is_there(call: Call, key: str, message: str) -> None:
    code, out, err = call("check", "train.toml", "--why", key)

    assert (code, out) == (2, "")
    assert message in err


def test_json(call: Call) -> None:
    code, out, err = call("check", "train.toml", "--json")
    document = json.loads(out)

    assert (code, err) == (0, "")
    assert (document["version"], document["ok"], document["problems"]) == (1, True, [])
    assert document["resolved"]["train"]["steps"] == 5


def test_json_of_a_wrong_recipe(call: Call) -> None:
    code, out, err = call("check", "train.toml", "--json", "-o", "train.stepz=1")

    assert (code, err) == (2, "")
    assert json.loads(out)["problems"] == [
        {"where": "-o #1", "what": "train.stepz: unknown key", "hint": "did you mean 'steps'?"}
    ]


def test_secrets_are_in_no_answer(call: Call) -> None:
    Path("train.toml").write_text(RECIPE + "[task]\ntoken = 'hunter2'\n")

    for arguments in ([], ["--json"], ["--print"], ["--why", "task.token"]):
        code, out, err = call("check", "train.toml", *arguments)
        assert code == 2
        assert "hunter2" not in out + err


def test_plugins_may_veto(call: Call) -> None:
    Path("veto.py").write_text(VETO)
    arguments = ["check", "train.toml", "-o", "plugins.veto.use=veto.py"]

    assert call(*arguments)[0] == 0

    code, _, err = call(*arguments, "-o", "run.name=forbidden")
    assert code == 2
    assert err.endswith("error: plugin veto: no run may be called forbidden\n")


# --- several recipes, and other formats ---


@pytest.fixture
def recipes(call: Call) -> list[str]:
    """A right recipe, one with two mistakes and a name to escape, and one whose plugin is broken."""
    Path("a,b.toml").write_text(
        BASE.replace("steps = 3", "steps = 3\nstepz = 3").replace("log_every = 1", "log_every=-1")
    )
    Path("broken.py").write_text("raise RuntimeError('50% of\\nthe lines')\n")
    Path("broken.toml").write_text(BASE + '[plugins.broken]\nuse = "broken.py"\n')
    return ["train.toml", "a,b.toml", "broken.toml"]


def test_all_of_several_recipes_are_checked(call: Call, recipes: list[str]) -> None:
    code, out, err = call("check", *recipes)
    assert (code, out.count("\n")) == (2, 1)  # the first failing one's, not the worst
    assert out.startswith("train.toml: ok")
    assert "error: a,b.toml:5:1: train.stepz: unknown key" in err
    assert "error: plugin broken (" in err
    assert call("check", *reversed(recipes))[0] == 4
    assert call("check", "train.toml", "train.toml")[0] == 0


def test_json_of_several_recipes(call: Call, recipes: list[str]) -> None:
    code, out, err = call("check", "--format", "json", *recipes)
    document = json.loads(out)
    assert (code, err) == (2, "")
    assert (document["version"], document["ok"]) == (1, False)
    assert [one["recipe"] for one in document["recipes"]] == recipes
    assert [one["ok"] for one in document["recipes"]] == [True, False, False]


def test_annotations_of_github(call: Call, recipes: list[str]) -> None:
    code, out, err = call("check", "--format", "github", *recipes)
    lines = out.splitlines()
    assert (code, err) == (2, "")
    assert lines[0] == (
        "::notice file=base.toml,line=7,col=1::control.mode: has no effect: live control is not part of this version"
    )
    assert lines[1].startswith("train.toml: ok")
    assert lines[2] == "::error file=a%2Cb.toml,line=5,col=1::train.stepz: unknown key; did you mean 'steps'?"
    assert lines[3].startswith("::error file=a%2Cb.toml,line=6,col=1::train.log_every: expected a positive integer")
    assert lines[4].startswith("::error file=broken.toml::plugin broken (")
    assert "RuntimeError: 50%25 of" in lines[4]


def test_annotation_is_one_line() -> None:
    shown = reporting.annotation("error", "a:b.toml", Problem("-o #1", "50%\r\nof it", "try, again"))
    assert shown == "::error file=a%3Ab.toml::-o #1: 50%25%0D%0Aof it; try, again"


def test_annotations_name_files_relative_to_the_checkout(call: Call, recipes: list[str]) -> None:
    out = call("check", "--format", "github", str(Path("a,b.toml").resolve()))[1]
    assert out.startswith("::error file=a%2Cb.toml,line=5,col=1::")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--json", "--format", "github"], "--json and --format github: use one of them"),
        (["--print", "base.toml"], "--print takes one recipe, got 2"),
        (["--why", "train.steps", "base.toml"], "--why takes one recipe, got 2"),
    ],
)
def test_options_that_do_not_fit(call: Call, arguments: list[str], what: str) -> None:
    code, _, err = call("check", "train.toml", *arguments)
    assert (code, what in err) == (2, True)


def test_the_hook_of_pre_commit_checks_recipes(call: Call, recipes: list[str]) -> None:
    lines = (ROOT / ".pre-commit-hooks.yaml").read_text().removeprefix("- ").splitlines()
    hook = dict(line.strip().split(": ", 1) for line in lines)
    program, *arguments = hook["entry"].split()
    assert (program, hook["language"]) == ("trainrun", "system")
    matching = [
        name for name in ("train.toml", "recipes/train-big.toml", "pyproject.toml") if re.search(hook["files"], name)
    ]
    assert matching == ["train.toml", "recipes/train-big.toml"]
    assert call(*arguments, *recipes)[0] == 2  # pre-commit appends the files
