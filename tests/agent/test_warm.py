from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun import Outcome
from trainrun.launch.launch import launch
from trainrun.rundir import RunPaths, process, scratch

RECIPE = """
[run]
dir = "{folder}/runs"
[task]
use = "digits"
[launch]
workers = 2
max_restarts = 0
preload = ["{module}"]
[train]
steps = 2
batch_size = 64
device = "cpu"
[evaluate]
splits = []
[plugins.witness]
use = "witness.py:Witness"
"""

WITNESS = """
import gc, json, multiprocessing, os, signal, threading
from pathlib import Path
import torch
from trainrun import hookimpl

HERE = Path(__file__).parent
IMPORTED_IN = os.getpid()

def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

class Witness:
    @hookimpl
    def on_train_start(self, run):
        server = os.getppid()
        agent = parent(server)
        siblings = map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())
        [self.runner] = [pid for pid in siblings if os.getsid(pid) == agent]
        if run.world.rank == 0:
            os.kill(agent, signal.SIGTERM)  # means nothing to it
        told = {
            "agent": agent, "runner": self.runner, "collects": gc.isenabled(),
            "agent_has_torch": "libtorch" in Path(f"/proc/{agent}/maps").read_text(),
            "runner_has_torch": "libtorch" in Path(f"/proc/{self.runner}/maps").read_text(),
            "imported_in": IMPORTED_IN, "parent": os.getppid(), "pid": os.getpid(), "session": os.getsid(0),
            "start_method": multiprocessing.get_start_method(), "threads": os.environ["OMP_NUM_THREADS"],
            "rank": os.environ["RANK"], "mark": os.environ.get("MARK"),
        }
        (HERE / f"told-{run.world.rank}-{run.attempt}.json").write_text(json.dumps(told))

    @hookimpl
    def on_step_end(self, run):
        # Both ranks have told by now: the step's gradients are of both.
        if run.attempt > 1:
            return
        for name in ("SIGKILL", "SIGSTOP"):
            if (HERE / name).exists() and run.world.rank == 0:
                os.kill(self.runner, signal.Signals[name])
        if (HERE / "SIGKILL").exists():
            threading.Event().wait()  # to be ended
        if (HERE / "fail").exists():
            os._exit(3)
"""

Go = Callable[..., Outcome]


@pytest.fixture
def go(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Launch with `module` preloaded, written from `text` where that is given."""
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(tmp_path / "cache"))
    temporary = tmp_path_factory.mktemp("t")  # short: sockets are in it
    monkeypatch.setenv("TMPDIR", str(temporary))

    def launched(module: str, text: str = "", *overrides: str) -> Outcome:
        (tmp_path / "witness.py").write_text(WITNESS)
        if text:
            (tmp_path / f"{module}.py").write_text(text)
        recipe = tmp_path / "train.toml"
        recipe.write_text(RECIPE.format(folder=tmp_path, module=module))
        outcome = launch(recipe, overrides, quiet=True)
        assert process.members(Path(outcome.run)) == []
        # torch makes a folder for its compiler's cache, one for all runs of a user
        assert [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")] == []
        assert left() == []
        return outcome

    return launched


def left() -> list[Path]:
    """What launches of this process have in the temporary folder and in shared memory."""
    folders = Path(tempfile.gettempdir()), Path("/dev/shm")
    return [path for folder in folders for path in folder.glob(f"*{scratch.name()}*")]


def told(folder: Path, attempt: int = 1) -> list[dict[str, object]]:
    return [json.loads((folder / f"told-{rank}-{attempt}.json").read_text()) for rank in (0, 1)]


def test_what_is_preloaded_is_imported_once_in_the_server_and_workers_are_themselves(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", "seen")
    assert go("witness").exit_code == 0
    ranks = told(tmp_path)
    assert {rank["imported_in"] for rank in ranks} == {rank["parent"] for rank in ranks}
    assert [rank["session"] for rank in ranks] == [rank["pid"] for rank in ranks]
    assert {rank["start_method"] for rank in ranks} == {"fork"}  # not the server's: local datasets go to loaders
    assert [rank["rank"] for rank in ranks] == ["0", "1"]
    assert {rank["mark"] for rank in ranks} == {"seen"}
    assert {rank["collects"] for rank in ranks} == {True}
    # The runner was found among the server's children, by the agent's session. Torch is imported once a node.
    assert {rank["runner_has_torch"] for rank in ranks} == {True}
    assert {rank["agent_has_torch"] for rank in ranks} == {False}


@pytest.mark.long
def test_one_server_serves_all_attempts(go: Go, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    outcome = go("witness", "", "launch.max_restarts=1")
    assert outcome.exit_code == 0
    assert "left with exit code 3" in RunPaths(Path(outcome.run)).events.read_text()
    first, second = told(tmp_path, 1), told(tmp_path, 2)
    for name in ("agent", "parent", "runner"):
        assert len({rank[name] for rank in first + second}) == 1, name
    assert not {rank["pid"] for rank in first} & {rank["pid"] for rank in second}


def test_a_runner_that_is_killed_ends_the_attempt_as_its_agent_does(go: Go, tmp_path: Path) -> None:
    (tmp_path / "SIGKILL").touch()
    outcome = go("witness")
    assert outcome.exit_code == 1
    assert "the workers' agent was killed by SIGKILL" in outcome.reason


@pytest.mark.long
def test_a_runner_that_stands_still_is_replaced_with_its_agent(go: Go, tmp_path: Path) -> None:
    for name in ("SIGSTOP", "fail"):
        (tmp_path / name).touch()
    assert go("witness", "", "launch.max_restarts=1").exit_code == 0
    first, second = told(tmp_path, 1), told(tmp_path, 2)
    for name in ("agent", "parent", "runner"):
        assert not {rank[name] for rank in first} & {rank[name] for rank in second}, name


def test_a_server_that_dies_while_it_imports_is_told_of(go: Go) -> None:
    outcome = go("deadly", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert outcome.exit_code == 1
    assert "the workers' agent ended with exit code 1" in outcome.reason
    assert outcome.first_failure is not None
    assert "the fork server died before it could fork anything" in (outcome.first_failure.traceback or "")


def test_a_module_that_makes_forking_unsafe_ends_the_run_by_name(go: Go) -> None:
    outcome = go("unfit", "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()")
    assert outcome.exit_code == 4
    assert "launch.preload: unfit left 1 threads running" in outcome.reason


def test_a_launch_can_be_the_first_process_of_a_container(tmp_path: Path) -> None:
    namespace = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("making a process namespace needs root")
    (tmp_path / "witness.py").write_text(WITNESS)
    (tmp_path / "train.toml").write_text(RECIPE.format(folder=tmp_path, module="witness"))
    command = [*namespace, sys.executable, "-m", "trainrun", "launch", "train.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_other_reasons_not_to_preload_a_module(tmp_path: Path) -> None:
    modules = {
        "leaves": "raise SystemExit(3)",
        "lacks": "import no_such_module",
        "touches": "import torch\ntorch.cuda.is_initialized = lambda: True",
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    script = f"from trainrun.agent import forked\nfor name in {list(modules)}: print(forked.load([name]))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line.split("; ")[0] for line in done.stdout.splitlines()] == [
        "launch.preload: leaves: SystemExit: 3",
        "launch.preload: lacks: ModuleNotFoundError: No module named 'no_such_module'",
        "launch.preload: touches used CUDA, which a forked process cannot use again",
    ]
