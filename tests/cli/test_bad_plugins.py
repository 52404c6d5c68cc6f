"""Plugins that are broken in every way: one clear message through the command line, and what turns them off."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.testing.distribution import DistributionInstaller

Trainrun = Callable[..., "subprocess.CompletedProcess[str]"]

HEAD = "from trainrun import hookimpl\nclass Plugin:\n    @hookimpl\n    "

BROKEN = {
    "import": ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
    "attribute": ("class Other: ...", "bad has no 'Plugin'"),
    "syntax": ("def (", "SyntaxError in"),
    "exit": ("import sys; sys.exit(3)", "it called sys.exit(3)"),
    "end": ("import os; os._exit(0)", "ended the process with exit code 0"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "crashed Python: SIGSEGV"),
    "value": ("Plugin = 3", "a plugin is a class or a module, not an int"),
    "constructor": ("class Plugin:\n    def __init__(self, options): ...", "declares no Options"),
    "hook": (HEAD + "def on_steps_end(self): ...", "there is no hook 'on_steps_end'; did you mean 'on_step_end'?"),
    "argument": (HEAD + "def on_step_end(self, losss): ...", "no argument 'losss'; did you mean 'loss'?"),
    "default": (HEAD + "def on_step_end(self, losss=None): ...", "no argument 'losss'; did you mean 'loss'?"),
    "keyword-only": (HEAD + "def on_step_end(self, *, loss): ...", "'loss' is keyword-only"),
    "keywords": (HEAD + "def on_step_end(self, **all): ...", "it takes ** arguments"),
}

ENTRY = "plugin bad (bad-dist 1.0, entry point bad = bad:Plugin)"
SWITCH = "to run without it: -p no:bad, or enabled = false in [plugins.bad]"


def enable(recipe: Path, tables: str = "[plugins.bad]\n") -> None:
    recipe.write_text(recipe.read_text() + tables)


@pytest.mark.parametrize(("source", "message"), BROKEN.values(), ids=BROKEN)
def test_check_refuses_a_recipe_that_enables_it(
    source: str, message: str, trainrun: Trainrun, install: DistributionInstaller, recipe: Path
) -> None:
    install("bad-dist", {"bad.py": source}, {"bad": "bad:Plugin"})
    enable(recipe)
    done = trainrun("check", "train.toml")
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"{ENTRY}: " in line
    assert message in line
    assert line.endswith(SWITCH)


def test_hooks_and_plugins_live_with_all_of_them_installed(
    trainrun: Trainrun, install: DistributionInstaller, recipe: Path
) -> None:
    modules = {f"bad_{number}.py": source for number, (source, _) in enumerate(BROKEN.values())}
    install("bad-dist", modules, {name: f"bad_{number}:Plugin" for number, name in enumerate(BROKEN)})
    for command in (["plugins"], ["hooks"], ["plugins", "--json"], ["hooks", "--json"]):
        done = trainrun(*command)
        assert (done.returncode, done.stderr) == (0, "")
        for name, (_, message) in BROKEN.items():
            module = f"bad_{list(BROKEN).index(name)}"
            for part in message.replace("bad has", f"{module} has").split("; "):
                assert part in done.stdout
        assert "-p no:segfault" in done.stdout
    assert "Traceback" not in trainrun("plugins").stdout
    ignored = trainrun("check", "train.toml")
    assert ignored.returncode == 0, ignored.stderr


def test_hooks_shows_the_plan_around_a_broken_plugin(
    trainrun: Trainrun, install: DistributionInstaller, recipe: Path
) -> None:
    install("bad-dist", {"bad.py": "import no_such_package"}, {"bad": "bad:Plugin"})
    enable(recipe)
    done = trainrun("hooks", "train.toml")
    assert done.returncode == 4
    assert "bad (broken)" in done.stdout
    assert "build_model" in done.stdout
    assert ENTRY in done.stderr
    document = json.loads(trainrun("hooks", "train.toml", "--json").stdout)
    assert [one["instance"] for one in document["broken"]] == ["bad"]
    assert SWITCH in document["problems"][0]["hint"]


@pytest.mark.parametrize("switch", ["-p no:bad", "-o plugins.bad.enabled=false"])
def test_either_switch_turns_it_off(
    switch: str, trainrun: Trainrun, install: DistributionInstaller, recipe: Path
) -> None:
    install("bad-dist", {"bad.py": "import no_such_package"}, {"bad": "bad:Plugin"})
    enable(recipe)
    done = trainrun("check", "train.toml", *switch.split())
    assert done.returncode == 0, done.stderr


def test_an_endless_import_is_given_up(trainrun: Trainrun, install: DistributionInstaller, recipe: Path) -> None:
    install("bad-dist", {"bad.py": "while True: pass"}, {"bad": "bad:Plugin"})
    enable(recipe)
    trainrun("hooks", "train.toml", "-p", "no:bad")  # the others are described without the short limit
    done = trainrun("check", "train.toml", TRAINRUN_DESCRIBE_TIMEOUT="2")
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert ENTRY in line
    assert "takes longer than the time limit" in line
    assert SWITCH in line


def test_one_name_in_two_distributions_names_both(
    trainrun: Trainrun, install: DistributionInstaller, recipe: Path
) -> None:
    for name in ("one-dist", "two-dist"):
        install(name, {f"{name[:3]}.py": "class Plugin: ..."}, {"same": f"{name[:3]}:Plugin"})
    assert trainrun("check", "train.toml").returncode == 0, "nobody uses the name"
    enable(recipe, "[plugins.same]\n")
    for done in (trainrun("check", "train.toml"), trainrun("plugins")):
        text = done.stderr + done.stdout
        assert "one-dist 1.0, entry point same = one:Plugin; two-dist 1.0, entry point same = two:Plugin" in text
        assert "uninstall one" in text
    assert trainrun("check", "train.toml").returncode == 4
    assert trainrun("check", "train.toml", "-p", "no:same").returncode == 0


@pytest.mark.parametrize(
    ("tables", "messages"),
    [
        ('[plugins.a]\nafter = ["b"]\n[plugins.b]\nafter = ["a"]\n', ["plugin order has a cycle", "a before b"]),
        ("[plugins.a]\n[plugins.b]\n", ["a and b both implement build_model", 'build_model = "a" under [providers]']),
        ("[plugins.c]\nlimit = 0\n", ["plugins.c.limit: expected", "got 0", "    limit = 0"]),
        ('[plugins.c]\nlimit = "3"\n', ["plugins.c.limit: expected", 'got "3"']),
        ("[plugins.c]\nlimt = 3\n", ["plugins.c.limt: unknown key", "did you mean 'limit'?"]),
        ("[plugins.cc]\n", ["plugin 'cc' is not installed"]),
    ],
)
def test_what_the_recipe_gets_wrong_about_plugins(
    tables: str, messages: list[str], trainrun: Trainrun, install: DistributionInstaller, recipe: Path
) -> None:
    source = """
        from trainrun import Field, PluginOptions, hookimpl

        class Model:
            @hookimpl
            def build_model(self): ...

        class Limited:
            class Options(PluginOptions):
                limit: int = Field(3, ge=1)

            def __init__(self, options): ...
    """
    install("good-dist", {"good.py": source}, {"a": "good:Model", "b": "good:Model", "c": "good:Limited"})
    enable(recipe, tables if "after" not in tables else f'{tables}[providers]\nbuild_model = "a"\n')
    done = trainrun("check", "train.toml")
    assert done.returncode == 2
    assert all(message in done.stderr for message in messages), done.stderr
    assert "train.toml:" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(recipe.parent.glob("runs")) == []


OLD = "from trainrun import hookimpl\nclass Plugin:\n    @hookimpl(hookwrapper=True)\n    def on_log(self): yield\n"


def test_an_import_error_has_its_line_and_all_of_it_on_request(
    trainrun: Trainrun, install: DistributionInstaller, recipe: Path
) -> None:
    install("bad-dist", {"bad.py": OLD}, {"bad": "bad:Plugin"})
    enable(recipe)
    done = trainrun("check", "train.toml")
    (line,) = done.stderr.splitlines()
    assert "hookimpl() takes no 'hookwrapper', which is pluggy's old style; use wrapper=True (bad.py:3)" in line
    for command in ("check", "hooks", "launch"):
        done = trainrun(command, "train.toml", "--traceback")
        assert done.returncode == 4
        assert 'bad.py", line 3, in Plugin' in done.stderr
        assert line in done.stderr.splitlines()
    assert 'bad.py", line 3, in Plugin' in trainrun("plugins", "--traceback").stdout
    assert "Traceback" not in trainrun("plugins").stdout


def test_an_error_in_the_task_has_no_switch(trainrun: Trainrun, recipe: Path) -> None:
    (recipe.parent / "broken.py").write_text("import no_such_package\n")
    done = trainrun("check", "train.toml", "-o", "task.use=broken.py")
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert line.endswith("importing it failed: ModuleNotFoundError: No module named 'no_such_package' (broken.py:1)")


@pytest.mark.parametrize(
    ("returned", "code", "message"),
    [
        ("None", 0, ""),
        ("False", 0, ""),
        ("[]", 0, ""),
        ('"no"', 2, "plugin bad: no"),
        ('["one", "two"]', 2, "plugin bad: two"),
        ("True", 4, "plugin bad: check_recipe returned True; return None if nothing is wrong, or"),
        ('""', 4, "plugin bad: check_recipe returned ''; return None"),
        ('["one", 2]', 4, "plugin bad: check_recipe returned a list"),
        ("{}", 4, "plugin bad: check_recipe returned a dict"),
        ("(one for one in ())", 4, "plugin bad: check_recipe returned a generator"),
    ],
)
def test_what_check_recipe_returns(
    returned: str, code: int, message: str, trainrun: Trainrun, install: DistributionInstaller, recipe: Path
) -> None:
    install("bad-dist", {"bad.py": HEAD + f"def check_recipe(self): return {returned}"}, {"bad": "bad:Plugin"})
    enable(recipe, '[plugins.bad]\non_error = "warn"\n')
    done = trainrun("check", "train.toml")
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "bug in trainrun" not in done.stderr
