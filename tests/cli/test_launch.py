from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainrun.cli.main import run
from trainrun.errors import EnvironmentProblem
from trainrun.launch import launch as module
from trainrun.rundir import Failure, Outcome, RunPaths, create


@pytest.fixture(autouse=True)
def restore_sigint() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return create(tmp_path / "runs", "digits")


def answer(monkeypatch: pytest.MonkeyPatch, outcome: Outcome | Exception) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []

    def launch(recipe: str, overrides: tuple[str, ...], plugins: tuple[str, ...], **options: object) -> Outcome:
        calls.append((recipe, overrides, plugins, options))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(module, "launch", launch)
    return calls


def test_arguments_are_passed_on(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answer(monkeypatch, Outcome("finished", 0, "done", run=str(paths.root)))
    line = "launch train.toml -o a=1 -o b=2 -p x -p no:y --dir elsewhere --ranks all --refresh --allow-changes"
    assert run(line.split()) == 0
    options = {"dir": Path("elsewhere"), "ranks": "all", "quiet": False, "refresh": True}
    options |= {"allow_changes": True, "trust_checkpoint": False}
    options |= {"node_rank": None, "rdzv_endpoint": None}
    assert calls == [("train.toml", ("a=1", "b=2"), ("x", "no:y"), options)]


@pytest.mark.parametrize(("text", "ranks"), [("zero", "zero"), ("none", "none"), ("0", (0,)), ("2,0,10", (2, 0, 10))])
def test_ranks(paths: RunPaths, monkeypatch: pytest.MonkeyPatch, text: str, ranks: object) -> None:
    [*_, options] = called_with(paths, monkeypatch, text)
    assert options["ranks"] == ranks


@pytest.mark.parametrize("text", ["", "one", "0,", "-1", "0 1", "²", "12345678901"])
def test_ranks_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["launch", "train.toml", f"--ranks={text}"]) == 2
    assert f"expected zero, all, none or ranks such as 0,2, got {text!r}" in capsys.readouterr().err


def called_with(paths: RunPaths, monkeypatch: pytest.MonkeyPatch, ranks: str) -> tuple[Any, ...]:
    calls = answer(monkeypatch, Outcome("finished", 0, "done", run=str(paths.root)))
    assert run(["launch", "train.toml", "--ranks", ranks]) == 0
    return calls[0]


def test_the_number_of_nodes_is_an_override_and_the_place_of_this_one_is_passed_on(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = answer(monkeypatch, Outcome("finished", 0, "done", run=str(paths.root)))
    nodes = ["--nodes", "2", "--node-rank", "1", "--rdzv-endpoint", "node0:29400"]
    assert run(["launch", "train.toml", "-o", "a=1", *nodes]) == 0
    (_, overrides, _, options) = calls[0]
    assert overrides == ("a=1", "launch.nodes=2")
    assert (options["node_rank"], options["rdzv_endpoint"]) == (1, "node0:29400")


def test_answer_is_on_stdout_and_the_trace_is_not(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = Failure(rank=1, message="no", kind="error", traceback="Traceback of rank 1", log="rank-1.out")
    answer(monkeypatch, Outcome("failed", 1, "rank 1 raised", first_failure=failure, run=str(paths.root)))
    assert run(["launch", "train.toml"]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == "failed: rank 1 raised"
    assert shown.out.splitlines()[-1].startswith("details: trainrun why ")
    assert shown.err == "Traceback of rank 1\n"


@pytest.mark.parametrize("code", [0, 1, 4, 130, 143])
def test_exit_code_is_the_outcomes(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    outcome = Outcome("finished", code, "done", run=str(paths.root))
    answer(monkeypatch, outcome)
    assert run(["launch", "train.toml", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"version": 1, **outcome.to_json()}


def test_problem_before_the_launch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer(monkeypatch, EnvironmentProblem("train.device: no GPU"))
    assert run(["launch", "train.toml"]) == 4
    assert capsys.readouterr().err == "error: train.device: no GPU\n"


def test_recipe_of_this_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.toml").write_text("[train]\nstepz = 1\n")
    for command in (["launch"], ["check"], ["smoke"], ["verify-resume", "--at", "1", "--steps", "2"]):
        assert run(command) == 2
        assert "train.toml:2:1: train.stepz: unknown key" in capsys.readouterr().err


def test_missing_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["launch"], ["check"], ["smoke"], ["verify-resume", "--at", "1", "--steps", "2"]):
        assert run(command) == 2
        assert "no recipe is given, and there is no train.toml in this folder" in capsys.readouterr().err
    assert run(["launch", "nowhere.toml"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere.toml: no such file")


# --- dry run and trace ---


@pytest.fixture
def here(recipe: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(recipe.parent)
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(shared_cache))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return recipe.parent


def test_dry_run_shows_the_launch_and_creates_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    assert run(["launch", "--dry-run", "-o", "launch.workers=2", "-o", "run.name=trial"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "would start: 2 workers (backend local, start warm, device auto)"
    assert re.fullmatch(r"run directory: runs/\d{4}-\d\d-\d\d-trial-…", out[1])
    assert out[2].startswith("environment of the workers: OMP_NUM_THREADS=")
    assert any(line.startswith("training_step  worker provider") for line in out)
    assert out[-1] == "dry run: nothing was created or started"

    assert run(["launch", "--dry-run", "--json", "--dir", "elsewhere", "-o", "launch.workers=1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["dry_run"], document["workers"], document["checkpoint"]) == (True, 1, None)
    assert document["run_dir"].startswith("elsewhere/")
    assert document["environment"].keys() == {"OMP_NUM_THREADS"}
    assert "training_step" in [hook["hook"] for hook in document["hooks"]]
    assert sorted(path for path in here.rglob("*") if "__pycache__" not in path.parts) == before


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["-o", "train.stepz=1"], 2, "train.stepz: unknown key"),
        (["-o", "checkpoint.resume=nowhere"], 4, "nowhere"),
        (["--nodes", "2"], 2, "give each node its rank and the address of node 0"),
        (["--trace", "on_stepend"], 2, "--trace: no hook is called 'on_stepend'; did you mean 'on_step_end'?"),
    ],
)
def test_dry_run_finds_what_a_launch_would(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, what: str
) -> None:
    assert run(["launch", "--dry-run", *arguments]) == code
    assert what in capsys.readouterr().err


def test_trace_is_a_plugin_of_the_launch(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["launch", "--dry-run", "--json", "--trace", "on_step_end", "--trace", "build_model"]) == 0
    (found,) = [one for one in json.loads(capsys.readouterr().out)["instances"] if one["name"] == "launch-trace"]
    assert found["options"]["hooks"] == ["on_step_end", "build_model"]
