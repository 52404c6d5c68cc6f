"""What the pages tell a reader to write does what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainrun.testing import HookRecorder, RunRecipe

ROOT = Path(__file__).resolve().parents[2]
FILE = re.compile(r'^```\w+ title="([^"]+)"[^\n]*\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, run_recipe: RunRecipe) -> Path:
    """The kit's own folder: it forgets modules that were imported from there, so each test can bring its own."""
    return tmp_path / "run_recipe"


def write_files(page: Path, folder: Path) -> None:
    for name, text in FILE.findall(page.read_text(encoding="utf-8")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_own_task_learns(folder: Path, run_recipe: RunRecipe) -> None:
    write_files(ROOT / "docs" / "tutorial.md", folder)
    result = run_recipe(folder / "parity.toml", overrides=["train.epochs=2"])
    assert result.outcome.ok
    assert len(result.series("eval/accuracy")) == 2


def test_samples_that_differ_are_padded(folder: Path, run_recipe: RunRecipe) -> None:
    write_files(ROOT / "docs" / "data.md", folder)
    recipe = folder / "names.toml"
    recipe.write_text('task.use = "tasks/names.py"\ntrain = { epochs = 2, batch_size = 8 }\n', encoding="utf-8")
    result = run_recipe(recipe)
    assert result.outcome.step == 8
    assert result.series("eval/length") == {8: 6.0}


@pytest.mark.parametrize(("seconds", "state"), [("1e-9", "stopped"), ("1e9", "finished")])
def test_own_plugin_stops_slow_training(
    seconds: str, state: str, folder: Path, run_recipe: RunRecipe, hook_recorder: type[HookRecorder]
) -> None:
    write_files(ROOT / "docs" / "tutorial.md", folder)
    plugin = ['plugins.patience.use="patience.py:Patience"', f"plugins.patience.seconds={seconds}"]
    result = run_recipe(folder / "parity.toml", hook_recorder, overrides=["train.epochs=2", *plugin])
    assert result.outcome.state == state
    assert ("on_stop_requested" in result.hooks()) == (state == "stopped")


def test_first_plugin_prints(folder: Path, run_recipe: RunRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(ROOT / "docs" / "plugins.md", folder)
    recipe = folder / "train.toml"
    recipe.write_text(
        'task.use = "digits"\ntrain.steps = 40\nplugins.hello = {use = "hello.py:Hello", every = 20}\n',
        encoding="utf-8",
    )
    assert run_recipe(recipe).outcome.ok
    assert re.findall(r"^step (\d+): loss \d+\.\d+$", capsys.readouterr().out, flags=re.MULTILINE) == ["20", "40"]


def test_chosen_provider_wins(folder: Path, run_recipe: RunRecipe) -> None:
    write_files(ROOT / "docs" / "plugins.md", folder)
    (folder / "probe.py").write_text(
        "from trainrun import hookimpl\n\n\nclass Probe:\n    @hookimpl\n    def on_train_start(self, run):\n"
        "        print(type(run.optimizer).__name__)\n",
        encoding="utf-8",
    )
    recipe = folder / "train.toml"
    recipe.write_text(
        'task.use = "digits"\ntrain.steps = 2\nproviders.build_optimizer = "lion"\n[plugins]\n'
        'lion.use = "optimizers.py:Lion"\nplain.use = "optimizers.py:Plain"\nprobe.use = "probe.py:Probe"\n',
        encoding="utf-8",
    )
    assert run_recipe(recipe).outcome.ok


def test_plugin_of_the_readme_leaves_out_spikes(folder: Path, run_recipe: RunRecipe) -> None:
    write_files(ROOT / "README.md", folder)
    (folder / "steps.py").write_text(
        "from trainrun import hookimpl\n\n\nclass Steps:\n    @hookimpl(mutates=True)\n"
        "    def on_backward_end(self, run):\n        for parameter in run.model.parameters():\n"
        "            parameter.grad *= 1e6 if run.step == 3 else 1\n\n    @hookimpl\n"
        "    def on_update_end(self, run, skipped):\n        run.log('skipped', float(skipped is not None))\n",
        encoding="utf-8",
    )
    recipe = folder / "train.toml"
    recipe.write_text(
        'task.use = "digits"\ntrain = {steps = 4, log_every = 1}\n[plugins]\n'
        'spikes = {use = "spikes.py:Spikes"}\nsteps.use = "steps.py:Steps"\n',
        encoding="utf-8",
    )
    assert list(run_recipe(recipe).series("skipped").values()) == [0, 0, 1, 0]
