from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainrun.doctor.finding import Finding, Settings
from trainrun.launch import preflight
from trainrun.testing import DistributionInstaller

Ask = Callable[..., Finding]

PLUGINS = "trainrun.doctor.plugins:plugins"
RECIPE = "trainrun.doctor.plugins:recipe"

GOOD = """\
from trainrun import hookimpl

@hookimpl
def on_log(metrics):
    pass
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    hooks = ("build_model(device)", "build_dataset(split)", "training_step(batch)")
    marked = "".join(f"\n\n@hookimpl\ndef {hook}: ...\n" for hook in hooks)
    (tmp_path / "task.py").write_text(f"from trainrun import hookimpl\n{marked}")
    path = tmp_path / "train.toml"
    path.write_text('[task]\nuse = "task.py"\n[train]\nsteps = 1\ndevice = "cpu"\n')
    return path


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all: describing the built-in plugins takes as long as importing torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINRUN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def test_installed_plugins(ask: Ask, install: DistributionInstaller) -> None:
    install("fine-dist", {"fine.py": GOOD}, {"fine": "fine"}, version="2.5")
    finding = ask(PLUGINS)
    assert finding.status == "ok", finding
    assert "fine-dist 2.5 (1)" in finding.finding


def test_broken_plugins_are_named_and_do_no_harm(ask: Ask, install: DistributionInstaller) -> None:
    install("bad-dist", {"bad.py": "1 / 0"}, {f"bad-{number}": "bad" for number in range(5)})
    finding = ask(PLUGINS)
    assert finding.status == "warning"
    assert "bad-0 is broken: importing it failed: ZeroDivisionError" in finding.finding
    assert "2 more are broken" in finding.finding
    assert "-p no:bad-0" in str(finding.advice)
    assert len(finding.facts["broken"]) == 5


def test_plugins_and_commands_that_clash(ask: Ask, install: DistributionInstaller) -> None:
    for name in ("one-dist", "two-dist"):
        install(name, {}, {"twice": "fine"})
        install(f"{name}-commands", {}, {"dance": "fine:command"}, group="trainrun.commands")
    finding = ask(PLUGINS)
    assert finding.status == "warning"
    assert "several distributions bring it" in finding.finding
    assert "several distributions bring the command dance: one-dist" in finding.finding


def test_a_good_recipe(ask: Ask, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + '[run]\ndir = "there"\n[launch]\nstart = "cold"\n[data]\nworkers = 3\n')
    finding = ask(RECIPE, recipe=str(recipe))
    assert finding.status == "ok", finding
    found = finding.facts["settings"]
    assert (found["run_dir"], found["start"], found["loader_workers"]) == ("there", "cold", 3)
    assert found["threads"] == "1", "as the workers of a deterministic run get it"
    assert Settings().updated(finding.facts).preload_path == [str(recipe.parent)]


def test_a_recipe_with_problems(ask: Ask, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + '[launch]\ngrece = 1\n[run]\ndir = "there"\n[data]\nwokers = 2\n')
    finding = ask(RECIPE, recipe=str(recipe))
    assert finding.status == "failed"
    assert "train.toml:7" in finding.finding
    assert "(and 1 more)" in finding.finding
    assert finding.facts["settings"]["run_dir"] == "there", "what can be read still counts"


@pytest.mark.parametrize("text", [None, "[task\n"])
def test_a_recipe_that_cannot_be_read(ask: Ask, tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "train.toml").write_text(text)
    finding = ask(RECIPE, recipe=str(tmp_path / "train.toml"))
    assert finding.status == "failed"
    assert "train.toml" in finding.finding


def test_a_recipe_for_another_machine(ask: Ask, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.write_text(recipe.read_text().replace('"cpu"', '"cuda"'))
    monkeypatch.setattr(preflight, "count_gpus", lambda *_: 0)
    finding = ask(RECIPE, recipe=str(recipe))
    assert finding.status == "failed"
    assert "no NVIDIA GPU" in finding.finding
