"""`trainrun verify-resume` as its user calls it. What it compares is tested in tests/worker without launches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trainrun import UsageError
from trainrun.cli.verify_resume import command

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 1000, batch_size = 16 }
evaluate.every = 3
launch.workers = 2
run.deterministic = true
"""

COUNTER = """
from trainrun import hookimpl

class Counter:
    seen = 0

    @hookimpl(mutates=True)
    def on_gradients_ready(self, model):
        self.seen += 1
        for parameter in model.parameters():
            parameter.grad *= self.seen
"""

COMPONENTS = ["batches", "rng", "losses", "position", "parameters", "optimizer", "scheduler", "scaler", "plugins"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainrun_cache: Path) -> Path:
    """Where the command makes its temporary folders."""
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(trainrun_cache))
    found = tmp_path / "temporary"
    found.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(found))
    return found


def verify(tmp_path: Path, *arguments: str, recipe: str = RECIPE) -> Result:
    path = tmp_path / "train.toml"
    path.write_text(recipe)
    (tmp_path / "counter.py").write_text(COUNTER)
    return CliRunner().invoke(command, [str(path), *arguments])


def test_killed_and_resumed_is_the_same(tmp_path: Path, folder: Path) -> None:
    result = verify(tmp_path, "--at", "2", "--steps", "5", "--kill", "-9")
    assert result.exit_code == 0, result.output
    *rows, last = result.stdout.splitlines()
    assert [row.split() for row in rows] == [[name, "equal"] for name in COMPONENTS]
    assert last == "ok: killed by SIGKILL after step 2 and resumed, it is the same at step 5, bit for bit"
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_stopped_and_resumed_is_the_same(tmp_path: Path, folder: Path) -> None:
    result = verify(tmp_path, "--at", "2", "--steps", "5", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {one["name"]: one["equal"] for one in document["components"]} == dict.fromkeys(COMPONENTS, True)
    assert (document["version"], document["equal"], document["first"], document["folder"]) == (1, True, None, None)
    assert (document["at"], document["steps"], document["signal"]) == (2, 5, None)


@pytest.mark.long
def test_recipe_that_counts_epochs(tmp_path: Path, folder: Path) -> None:
    recipe = RECIPE.replace("steps = 1000", "epochs = 2")
    result = verify(tmp_path, "--at", "2", "--steps", "5", "--kill", "SIGTERM", recipe=recipe)
    assert result.exit_code == 0, result.output
    assert "ok: killed by SIGTERM after step 2 and resumed" in result.stdout


@pytest.mark.long
def test_killed_with_a_plugin_that_saves_no_state(tmp_path: Path, folder: Path) -> None:
    counter = ["-o", 'plugins.counter.use="counter.py:Counter"']
    result = verify(tmp_path, "--at", "2", "--steps", "5", "--kill", "-9", *counter, "--keep")
    assert result.exit_code == 1, result.output
    found = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()[: len(COMPONENTS)]}
    assert [name for name in COMPONENTS if found[name] == "DIFFERENT"] == ["losses", "parameters", "optimizer"]
    assert "different: first in losses: loss of micro-batch 0, step 4, rank 0:" in result.stdout
    assert "these save no state: task, counter;" in result.stdout
    (kept,) = folder.iterdir()
    assert result.stdout.splitlines()[-1] == f"the folder is kept: {kept}"
    assert len(list(kept.glob("*/2*/checkpoints/step-000005"))) == 2
    events = [json.loads(line) for line in next(kept.glob("interrupted/2*/events.jsonl")).read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "resume"] == [2]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--at", "5", "--steps", "5"], "--at 5: must be less than --steps 5"),
        (["--at", "6", "--steps", "5"], "--at 6: must be less than --steps 5"),
    ],
)
def test_step_that_comes_too_late_starts_nothing(tmp_path: Path, folder: Path, arguments: list[str], what: str) -> None:
    result = verify(tmp_path, *arguments)
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == what
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--steps", "5"], "Missing option '--at'"),
        (["--at", "5"], "Missing option '--steps'"),
        (["--at", "0", "--steps", "5"], "'--at': 0 is not in the range"),
        (["--at", "2", "--steps", "5", "--kill", "-19"], "expected a signal that ends a process"),
        (["--at", "2", "--steps", "5", "--kill", "hup"], "got 'hup'"),
    ],
)
def test_wrong_command_line(tmp_path: Path, folder: Path, arguments: list[str], what: str) -> None:
    result = verify(tmp_path, *arguments)
    assert result.exit_code == 2
    assert what in result.output
    assert list(folder.iterdir()) == []


@pytest.mark.long
def test_training_that_fails_is_shown(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from trainrun import hookimpl\n\n@hookimpl\ndef on_train_start():\n    1 / 0\n"
    )
    result = verify(tmp_path, "--at", "2", "--steps", "5", "-o", 'plugins.broken.use="broken.py"')
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    assert "the straight training failed" in result.stderr
    assert result.stdout == ""
    (outcome,) = folder.glob("*/straight/2*/outcome.json")
    asked = verify(tmp_path, "--at", "2", "--steps", "5", "--json", "-o", 'plugins.broken.use="broken.py"')
    document = json.loads(asked.stdout)
    assert (asked.exit_code, document["ok"], document["exit_code"]) == (1, False, 1)
    assert document["problems"][0]["what"].startswith("the straight training failed: ")
    assert document["problems"][0]["where"] != str(outcome.parent)
