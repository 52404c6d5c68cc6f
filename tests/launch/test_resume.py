"""Going on with a run, with fake workers: what the client decides, refuses, keeps and tells."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli

from trainrun.cli.main import run as command_line
from trainrun.errors import BadCheckpoint, EnvironmentProblem, RecipeError, UsageError
from trainrun.launch.launch import launch
from trainrun.launch.resume import resume
from trainrun.rundir import Outcome, RunPaths
from trainrun.rundir.files import read_json, read_lines
from trainrun.rundir.lease import Lease
from trainrun.rundir.process import members

Write = Callable[..., Path]


class Runs:
    """A folder of runs, and what is done with the one in it."""

    def __init__(self, recipe: Path, write: Write, plan: Callable[[dict[str, str]], None]) -> None:
        self.recipe = recipe
        self.base = recipe.parent / "runs"
        self._write = write
        self._plan = plan
        self.paths = RunPaths(Path())

    def launch(self, *overrides: str, plan: dict[str, str] | None = None, **options: Any) -> Outcome:
        self._plan(plan or {"0": "begun"})
        outcome = launch(self.recipe, ["launch.workers=1", *overrides], quiet=True, **options)
        self.paths = RunPaths(Path(outcome.run))
        return outcome

    def resume(self, *overrides: str, plan: dict[str, str] | None = None, **options: Any) -> Outcome:
        self._plan(plan or {"0": "begun"})
        outcome = resume("latest", overrides, dir=self.base, **options)
        assert outcome.run == str(self.paths.root)
        assert members(self.paths.root) == []
        return outcome

    def save(self, step: int, **changes: Any) -> Path:
        """A checkpoint that the run might have written."""
        known = read_json(self.paths.manifest) or {}
        recipe = tomli.loads(self.paths.recipe.read_text())
        about = {"world_size": 1, "recipe": recipe, "plugins": known["plugins"], "versions": known["versions"]}
        return self._write(self.paths.checkpoints, step, **{**about, **changes})

    @property
    def starts(self) -> list[str | None]:
        """The checkpoint that each attempt started from, as its worker saw it."""
        found = [line["started from"] for line in read_lines(self.paths.metrics)[0] if "started from" in line]
        return [None if path is None else Path(path).name for path in found]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_lines(self.paths.events)[0] if event["event"] == kind]


@pytest.fixture(autouse=True)
def restore_sigint() -> Iterator[None]:
    """The command line ignores it while it leaves."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def runs(recipe: Path, write_checkpoint: Write, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(recipe, write_checkpoint, lambda plan: monkeypatch.setenv("FAKE", json.dumps(plan)))


@pytest.fixture
def failed(runs: Runs) -> Runs:
    """A run that failed after step 5 was saved."""
    assert runs.launch(plan={"0": "raise:no"}).exit_code == 1
    runs.save(5)
    return runs


def test_run_goes_on_in_its_own_directory(failed: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_text() for path in (failed.paths.recipe, failed.paths.manifest, failed.paths.outcome)}
    outcome = failed.resume()
    assert (outcome.state, outcome.exit_code, outcome.attempt) == ("finished", 0, 2)
    assert failed.starts == ["step-000005"]
    assert "resuming from step 5 (checkpoints/step-000005)" in capsys.readouterr().err
    for path, text in before.items():
        assert path.with_name(f"{path.stem}-1{path.suffix}").read_text() == text
    assert Outcome.from_json(read_json(failed.paths.outcome) or {}) == outcome
    assert failed.paths.recipe.read_text() == before[failed.paths.recipe]
    assert (failed.paths.root / "source-1").is_dir()
    assert {path.name for path in failed.paths.source.rglob("*.py")} >= {"fake_backend.py"}
    kinds = [event["event"] for event in read_lines(failed.paths.events)[0]]
    assert kinds == ["attempt_start", "attempt_end", "outcome", "attempt_start", "resume", "attempt_end", "outcome"]


def test_attempts_of_a_resumed_run_fall_back_to_what_it_has(failed: Runs) -> None:
    outcome = failed.resume("launch.max_restarts=1", plan={"0": "raise:again"})
    assert (outcome.exit_code, outcome.attempt) == (1, 3)
    assert [Path(event["checkpoint"]).name for event in failed.events("resume")] == ["step-000005", "step-000005"]
    assert [event["attempt"] for event in failed.events("resume")] == [2, 3]


def test_run_that_died_without_an_outcome(failed: Runs) -> None:
    failed.paths.outcome.unlink()
    assert failed.resume().ok
    assert failed.starts == ["step-000005"]


def test_run_without_a_checkpoint_starts_over_and_says_so(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.launch(plan={"0": "raise:no"})
    assert runs.resume().ok
    assert runs.starts == [None]
    assert "starting at step 0: there is no checkpoint yet" in capsys.readouterr().err


def test_overrides_on_top_of_what_the_run_was_launched_with(failed: Runs) -> None:
    failed.resume("train.log_every=3", plan={"0": "raise:no"})
    failed.resume("launch.grace=9")
    text = failed.paths.recipe.read_text()
    assert "log_every = 3" in text
    assert "grace = 9" in text
    assert "workers = 1" in text


def test_changes_of_the_training_are_refused_before_anything_is_touched(failed: Runs) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in failed.paths.root.iterdir() if path.is_file()}
    with pytest.raises(UsageError) as caught:
        failed.resume("optimizer.lr=0.5", "train.clip_grad_norm=1.0")
    assert "optimizer.lr: nothing → 0.5" in str(caught.value)
    assert "train.clip_grad_norm: nothing → 1.0" in str(caught.value)
    assert "--allow-changes" in str(caught.value)
    assert {path.name: path.stat().st_mtime_ns for path in failed.paths.root.iterdir() if path.is_file()} == before
    assert failed.resume("optimizer.lr=0.5", allow_changes=True).ok
    assert failed.events("resume")[0]["differences"] == {"recipe": {"optimizer.lr": [None, 0.5]}}


def test_plugins_of_the_command_line_are_those_of_the_launch(runs: Runs) -> None:
    runs.launch(plan={"0": "raise:no"}, plugins=["no:progress"])
    assert "progress" not in (read_json(runs.paths.manifest) or {})["plugins"]
    runs.resume(plan={"0": "raise:no"})
    assert "progress" not in (read_json(runs.paths.manifest) or {})["plugins"]
    runs.resume(plugins=["progress"])
    manifest = read_json(runs.paths.manifest) or {}
    assert "progress" in manifest["plugins"]
    assert manifest["switches"] == ["progress"]


def test_paths_start_at_the_folder_of_the_recipe(runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (runs.recipe.parent / "mine.py").write_text(Path(__file__).with_name("fake_backend.py").read_text())
    runs.launch("task.use=mine.py:Task", plan={"0": "raise:no"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert runs.resume().ok


# --- nothing to do, or not to be done ---


def test_run_that_has_made_all_its_steps_is_left_as_it_is(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.launch()
    runs.save(10)
    before = {path.name: path.read_bytes() for path in runs.paths.root.iterdir() if path.is_file()}
    outcome = runs.resume()
    assert (outcome.state, outcome.exit_code, outcome.step) == ("finished", 0, 10)
    assert outcome.reason == "10/10 steps (checkpoints/step-000010); there is nothing to do"
    assert {path.name: path.read_bytes() for path in runs.paths.root.iterdir() if path.is_file()} == before
    assert runs.starts == [None]
    assert command_line(["resume", "--dir", str(runs.base)]) == 0
    assert "there is nothing to do" in capsys.readouterr().out


def test_finished_run_goes_on_when_more_steps_are_asked_for(runs: Runs) -> None:
    runs.launch()
    runs.save(10)
    assert runs.resume("train.steps=20").ok
    assert runs.starts == [None, "step-000010"]


def test_run_that_goes_on_elsewhere_is_refused(failed: Runs) -> None:
    lease = Lease.acquire(failed.paths)
    try:
        with pytest.raises(UsageError, match="owned by"):
            failed.resume()
    finally:
        lease.release()
    assert failed.resume().ok


def test_only_bad_checkpoints(failed: Runs, damage: Callable[[Path], None]) -> None:
    damage(failed.paths.checkpoints / "step-000005")
    with pytest.raises(BadCheckpoint, match="none of the checkpoints is good"):
        failed.resume()
    assert (read_json(failed.paths.outcome) or {})["exit_code"] == 1, "the outcome before is still there"
    assert command_line(["resume", "--dir", str(failed.base)]) == 4


def test_damaged_checkpoint_is_left_out(failed: Runs, damage: Callable[[Path], None]) -> None:
    damage(failed.save(7))
    assert failed.resume().ok
    assert failed.starts == ["step-000005"]
    assert len(failed.events("quarantine")) == 1
    assert (failed.paths.checkpoints / "bad-step-000007").is_dir()


def test_never_is_no_way_to_go_on(runs: Runs) -> None:
    runs.launch("checkpoint.resume=never", plan={"0": "raise:no"})
    runs.save(5)
    with pytest.raises(UsageError, match=r"-o checkpoint.resume=auto"):
        runs.resume()
    assert runs.resume("checkpoint.resume=never").ok
    assert runs.starts == [None]
    assert (runs.paths.checkpoints / "superseded-step-000005").is_dir()


def test_run_that_does_not_exist_or_is_none(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run 'nowhere'"):
        resume("nowhere", dir=tmp_path)
    runs.launch()
    runs.paths.manifest.unlink()
    with pytest.raises(EnvironmentProblem, match=r"manifest.json: missing"):
        runs.resume()


# --- from where ---


def test_from_a_step_of_the_run_puts_newer_ones_aside(failed: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    failed.save(7)
    assert failed.resume(start=5).ok
    assert failed.starts == ["step-000005"]
    assert (failed.paths.checkpoints / "superseded-step-000007").is_dir()
    assert "a newer checkpoint is moved aside as checkpoints/superseded-step-000007" in capsys.readouterr().err


def test_from_a_step_that_is_not_there(failed: Runs) -> None:
    failed.save(7)
    with pytest.raises(UsageError, match=r"--from 6: .* has no checkpoint of this step; there are: 7, 5"):
        failed.resume(start=6)


def test_from_a_bad_checkpoint_is_refused_and_nothing_renamed(failed: Runs, damage: Callable[[Path], None]) -> None:
    failed.save(7)
    damage(failed.paths.checkpoints / "step-000005")
    with pytest.raises(BadCheckpoint, match="not good"):
        failed.resume(start=5)
    assert sorted(path.name for path in failed.paths.checkpoints.iterdir()) == ["step-000005", "step-000007"]


@pytest.fixture
def other(failed: Runs, write_checkpoint: Write, tmp_path: Path) -> Path:
    """A checkpoint of another run that was trained alike."""
    about = read_json(failed.paths.manifest) or {}
    recipe = tomli.loads(failed.paths.recipe.read_text())
    known = {"recipe": recipe, "plugins": about["plugins"], "versions": about["versions"], "world_size": 1}
    return write_checkpoint(tmp_path / "other" / "checkpoints", 3, **known)


def test_from_a_checkpoint_of_another_run(failed: Runs, other: Path) -> None:
    assert failed.resume(start=other, plan={"0": "raise:no"}).exit_code == 1
    assert (failed.paths.checkpoints / "superseded-step-000005").is_dir(), "it is not of this line"
    assert failed.resume().ok
    assert failed.starts == ["step-000003"]


def test_launch_from_a_checkpoint(failed: Runs, other: Path) -> None:
    outcome = failed.launch(f"checkpoint.resume={other}", "launch.max_restarts=1", plan={"0": "raise:no"})
    assert outcome.attempt == 2
    assert [event["checkpoint"] for event in failed.events("resume")] == [str(other)] * 2
    failed.save(4)
    assert failed.resume().ok
    assert failed.starts == ["step-000004"]


def test_launch_from_the_checkpoint_of_another_training(failed: Runs, other: Path) -> None:
    with pytest.raises(UsageError, match=r"train.batch_size: 64 → 32"):
        failed.launch(f"checkpoint.resume={other}", "train.batch_size=32")
    assert len(list(failed.base.glob("2*"))) == 1, "nothing was made"
    assert failed.launch(f"checkpoint.resume={other}", "train.batch_size=32", allow_changes=True).ok


def test_launch_from_a_checkpoint_that_is_not_good_or_not_to_be_trusted(
    failed: Runs, other: Path, damage: Callable[[Path], None]
) -> None:
    other.chmod(0o777)
    with pytest.raises(BadCheckpoint, match="--trust-checkpoint"):
        failed.launch(f"checkpoint.resume={other}")
    assert failed.launch(f"checkpoint.resume={other}", trust_checkpoint=True).ok
    assert len(failed.events("trusted")) == 1
    damage(other)
    with pytest.raises(BadCheckpoint, match="not good"):
        failed.launch(f"checkpoint.resume={other}", trust_checkpoint=True)


# --- secrets ---


def test_secrets_come_from_the_recipe_or_are_asked_for(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "keyed.py").write_text(KEYED)
    text = runs.recipe.read_text()
    runs.recipe.write_text(text + '[plugins.keyed]\nuse = "keyed.py:Keyed"\napi_key = "hunter2"\n')
    runs.launch(plan={"0": "raise:no"})
    assert "hunter2" not in runs.paths.recipe.read_text()
    assert runs.resume(plan={"0": "raise:no"}).exit_code == 1
    assert (tmp_path / "told").read_text() == "hunter2 hunter2 "
    runs.recipe.write_text(text)
    with pytest.raises(RecipeError, match=r"plugins.keyed.api_key: it is a secret.*-o plugins.keyed.api_key=…"):
        runs.resume()
    assert runs.resume("plugins.keyed.api_key=hunter3").ok
    assert (tmp_path / "told").read_text() == "hunter2 hunter2 hunter3 "
    texts = [path.read_bytes() for path in runs.paths.root.rglob("*") if path.is_file()]
    assert not any(b"hunter" in text for text in texts)


KEYED = """
from pathlib import Path
from trainrun import PluginOptions, hookimpl

class Options(PluginOptions):
    api_key: str

class Keyed:
    Options = Options

    def __init__(self, options):
        self.key = options.api_key

    @hookimpl
    def on_launch_start(self, launch):
        with Path(__file__).with_name("told").open("a") as file:
            file.write(self.key + " ")
"""
