from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trainrun import UsageError
from trainrun.cli.checks import CHECKS
from trainrun.cli.smoke import command
from trainrun.testing import DistributionInstaller

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 1000, batch_size = 16 }
launch.workers = 5
"""

DRIFTER = """
import torch
from trainrun import hookimpl

class Drifter:
    @hookimpl
    def on_update_end(self, run):
        with torch.no_grad():
            for name, parameter in run.model.named_parameters():
                if name.endswith("10.bias"):
                    parameter += run.world.rank
"""

WATCHER = """
from trainrun import hookimpl

class Watcher:
    @hookimpl
    def on_train_start(self): ...

    @hookimpl
    def on_resume(self): ...

    @hookimpl
    def on_exception(self): ...

class Forgetful:
    def state_dict(self):
        return {"seen": 1}

    def load_state_dict(self, state):
        raise KeyError("count")

class Broken:
    @hookimpl
    def on_train_start(self):
        raise ValueError("no")

class Survivor:
    on_error = "disable"

    @hookimpl
    def on_step_end(self): ...

    @hookimpl
    def on_resume(self): ...

    @hookimpl
    def should_stop(self): ...

    @hookimpl
    def on_attempt_start(self): ...
"""


SUMMED = """
import torch
from trainrun import hookimpl

@hookimpl
def build_model():
    return torch.nn.Linear(3, 1)

@hookimpl
def build_dataset(split):
    return list(torch.randn(45, 3, generator=torch.Generator().manual_seed(1))) if split == "train" else None

@hookimpl
def training_step(model, batch):
    return model(batch).square().sum()

@hookimpl
def evaluation_step():
    return {}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainrun_cache: Path) -> Path:
    """Where smoke makes its temporary folders."""
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(trainrun_cache))
    found = tmp_path / "temporary"
    found.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(found))
    return found


@pytest.fixture
def survivor(install_distribution: DistributionInstaller) -> None:
    install_distribution("watchers", {"watchers.py": WATCHER}, {"survivor": "watchers:Survivor"})


def smoke(tmp_path: Path, recipe: str = RECIPE, *arguments: str) -> Result:
    path = tmp_path / "train.toml"
    path.write_text(recipe)
    return CliRunner().invoke(command, [str(path), *arguments])


def test_a_good_recipe_leaves_nothing_behind(
    tmp_path: Path, folder: Path, install_distribution: DistributionInstaller
) -> None:
    install_distribution("watchers", {"watchers.py": WATCHER}, {"watcher": "watchers:Watcher"})
    result = smoke(tmp_path, RECIPE + "plugins.watcher = {}")
    assert result.exit_code == 0
    checks, lines = result.stdout.splitlines()[:4], result.stdout.splitlines()[4:]
    assert [line.partition(": ")[2].partition(": ")[0] for line in checks] == list(CHECKS)
    assert {line.partition(": ")[0] for line in checks} == {"ok"}
    assert all("dropout off (7 (Dropout))" in line for line in checks[:2])
    assert lines[0] == "ok: 4 steps on 2 CPU workers; parameters identical on all workers"
    assert lines[1] == "ok: 2 more steps from their checkpoint, with new workers"
    assert "build_model 2" in lines[2]
    assert "training_step 6" in lines[2]
    assert lines[3:] == ["watcher: on_resume 1, on_train_start 2", "  not called: on_exception"]
    assert list(folder.iterdir()) == []


@pytest.mark.long
def test_a_recipe_that_counts_epochs_is_stopped(tmp_path: Path, folder: Path) -> None:
    result = smoke(tmp_path, RECIPE.replace("steps = 1000", "epochs = 9"), "--steps", "3")
    assert result.exit_code == 0
    assert result.stdout.count("\nok: ") == 5
    assert "\nok: 3 steps" in result.stdout


def test_a_failed_check_is_an_exit_code_and_keeps_the_folder(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "summed.py").write_text(SUMMED)
    recipe = RECIPE.replace('use = "digits", channels = 2, hidden = 8', 'use = "summed.py"').replace("16", "15")
    skipped = [part for name in ("ranks", "evaluation", "data") for part in ("--skip", name)]
    result = smoke(tmp_path, recipe, "--steps", "1", *skipped)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert re.match(
        r"failed: micro-batches: train/loss \S+ in micro-batches of 7, \S+ whole \(14\); see docs/", lines[0]
    )
    assert lines[1] == "not compared: ranks: because it is left out by --skip"
    assert lines[4] == "ok: 1 step on 1 CPU worker; 2 cannot share train.batch_size = 15"
    assert lines[-1].startswith("the folder is kept: ")
    kept = Path(lines[-1].partition(": ")[2])
    assert kept.is_relative_to(folder)
    assert {"micro-batches", "whole"} <= {path.name for path in kept.iterdir()}


def test_parameters_that_differ_fail_and_are_named(
    tmp_path: Path, folder: Path, install_distribution: DistributionInstaller
) -> None:
    install_distribution("drift", {"drift.py": DRIFTER}, {"drifter": "drift:Drifter"})
    result = smoke(tmp_path, RECIPE, "-p", "drifter", "--steps", "2")
    assert result.exit_code == 1
    assert "different values of 10.bias;" in result.stdout
    assert "drifter: on_update_end 2" in result.stdout


@pytest.mark.long
def test_a_failure_keeps_its_folder_and_names_it(
    tmp_path: Path, folder: Path, install_distribution: DistributionInstaller
) -> None:
    install_distribution("broken", {"broken.py": WATCHER}, {"broken": "broken:Broken"})
    result = smoke(tmp_path, RECIPE, "-p", "broken")
    assert result.exit_code == 1
    assert "ValueError" in result.stdout
    (kept,) = (line.removeprefix("the folder is kept: ") for line in result.stdout.splitlines() if "is kept" in line)
    assert Path(kept).is_relative_to(folder)
    assert (Path(kept) / "outcome.json").is_file()


@pytest.mark.long
def test_plugin_that_does_not_take_its_state_back_fails(
    tmp_path: Path, folder: Path, install_distribution: DistributionInstaller
) -> None:
    install_distribution("watchers", {"watchers.py": WATCHER}, {"forgetful": "watchers:Forgetful"})
    result = smoke(tmp_path, RECIPE, "-p", "forgetful", "--steps", "2")
    assert result.exit_code == 1
    assert "2 steps succeeded; resuming from their checkpoint failed:" in result.stdout
    assert "plugin 'forgetful'" in result.stdout
    assert "load_state_dict" in result.stdout
    (kept,) = (line.removeprefix("the folder is kept: ") for line in result.stdout.splitlines() if "is kept" in line)
    assert [path.name for path in (Path(kept) / "checkpoints").iterdir()] == ["step-000002"]


def test_a_wrong_recipe_starts_nothing(tmp_path: Path, folder: Path) -> None:
    result = smoke(tmp_path, RECIPE + "plugins.no-such-thing = {}")
    assert "no-such-thing" in str(result.exception)
    assert list(folder.iterdir()) == []


# --- with faults ---


def test_faults_that_end_as_they_have_to(tmp_path: Path, folder: Path, survivor: None) -> None:
    faults = "sigterm@3,kill:rank1@2:backward,raise:survivor.on_step_end@2"
    result = smoke(tmp_path, RECIPE, "-p", "survivor", "--inject", faults)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:2] for line in lines[:-1:2]] == [["ok", fault] for fault in faults.split(",")]
    assert "exit 0, 2 attempts, rank 1 was killed by SIGKILL" in result.stdout
    assert "exit 0, disable" in result.stdout
    assert lines[-1] == ["ok:", "3", "faults,", "ended", "as", "expected"]
    assert list(folder.iterdir()) == []


@pytest.mark.long
def test_fault_that_does_not_come(tmp_path: Path, folder: Path, survivor: None) -> None:
    result = smoke(tmp_path, RECIPE, "-p", "survivor", "--inject", "raise:survivor.on_resume")
    assert result.exit_code == 1
    expected, seen, last = result.stdout.splitlines()
    assert expected.split() == ["WRONG", "raise:survivor.on_resume", "expected", "exit", "0,", "disable"]
    assert seen.split()[:5] == ["seen", "the", "fault", "did", "not"]
    assert last.startswith("1 of 1 fault did not end as expected; the folders are kept: ")
    assert list(Path(last.rpartition(" ")[2]).glob("*/2*/outcome.json"))


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("sigterm@3,kil:rank1@5", "there is no kind 'kil'; did you mean 'kill'?"),
        ("kill:rank2@5", "there is no rank 2, launch.workers is 2"),
        ("raise:survivour.on_step_end", "no plugin is called 'survivour'; did you mean 'survivor'?"),
        ("raise:survivor.on_step_start", "survivor implements on_attempt_start, on_resume, on_step_end, should_stop"),
    ],
)
def test_wrong_fault_starts_nothing(tmp_path: Path, folder: Path, survivor: None, fault: str, what: str) -> None:
    result = smoke(tmp_path, RECIPE, "-p", "survivor", "--inject", fault)
    assert isinstance(result.exception, UsageError)
    assert what in str(result.exception)
    assert list(folder.iterdir()) == []


# --- as JSON ---


def test_document_of_launches_checks_and_hooks(tmp_path: Path, folder: Path) -> None:
    skipped = [part for name in CHECKS for part in ("--skip", name)]
    result = smoke(tmp_path, RECIPE, "--json", "--steps", "1", *skipped)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["version"], document["ok"], document["exit_code"], document["folder"]) == (1, True, 0, None)
    assert [(one["state"], one["step"]) for one in document["outcomes"]] == [("stopped", 1), ("finished", 3)]
    assert [(one["check"], one["status"]) for one in document["checks"]] == [(name, "not compared") for name in CHECKS]
    (task,) = document["hooks"]
    assert (task["instance"], task["called"]["build_model"]) == ("task", 2)
    assert task["not_called"] == []


def test_document_of_faults(tmp_path: Path, folder: Path) -> None:
    result = smoke(tmp_path, RECIPE, "--json", "--inject", "nan@2")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    (fault,) = document["faults"]
    assert (document["ok"], fault["fault"], fault["ok"]) == (True, "nan@2", True)
    assert fault["expected"] == {"codes": [1], "attempts": 1, "words": ["train/loss is nan"], "decision": None}
    assert (fault["seen"]["code"], fault["seen"]["fired"], fault["seen"]["left"]) == (1, True, 0)
    assert "train/loss is nan at step 2" in fault["seen"]["reason"]
    assert list(folder.iterdir()) == []
