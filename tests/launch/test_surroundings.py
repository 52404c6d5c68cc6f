"""A launch does not depend on the folder that it is made in, nor on the length of TMPDIR."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from multiprocessing import process
from pathlib import Path

import pytest

from trainrun.errors import EnvironmentProblem
from trainrun.rundir import scratch
from trainrun.worker import sockets

TASK = """
import json, os, tempfile
from multiprocessing import util
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neighbour
from trainrun import hookimpl
from trainrun.tracking import Opened, TrackerPlugin

HERE = Path(__file__).parent

@hookimpl
def build_model(run):
    return nn.Linear(4, 1)

@hookimpl
def build_dataset(run, split):
    return TensorDataset(torch.ones(8, 4))

@hookimpl
def build_dataloader(run, dataset, split):
    # A batch goes from one process to the other through a socket of multiprocessing.
    return DataLoader(dataset, 4, num_workers=1)

@hookimpl
def training_step(model, batch):
    return model(batch[0]).square().mean()

@hookimpl
def on_train_start(run):
    told = {"temporary": tempfile.gettempdir(), "sockets": util.get_temp_dir(), "neighbour": neighbour.NAME}
    (HERE / "told.json").write_text(json.dumps(told))

class Lines:
    whole_steps = False
    def open(self, facts, mark):
        return Opened(mark={})
    def send(self, records):
        with open(HERE / "sent.txt", "a") as file:
            file.writelines(f"{record.step}\\n" for record in records)
        return {}
    def finish(self, ending): ...
    def close(self): ...

class ToLines(TrackerPlugin):
    plugin = "to-lines"
    def make_tracker(self, name, paths):
        return Lines()
"""
RECIPE = """
[task]
use = "task.py"
[launch]
workers = 1
max_restarts = 0
start = "{start}"
[train]
steps = 2
batch_size = 4
log_every = 1
device = "cpu"
[evaluate]
splits = []
[plugins.lines]
use = "task.py:ToLines"
"""
# What Python, torch and trainrun import, and what no file of the working folder may stand for.
SHADOWS = ("types", "queue", "random", "json", "socket", "tempfile", "torch", "pydantic", "structlog", "trainrun")


@pytest.fixture
def surroundings(tmp_path: Path) -> tuple[Path, Path]:
    """A working folder with files that are called as modules, and a TMPDIR that is too long for sockets."""
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "neighbour.py").write_text("NAME = 'beside the task'\n")
    working, temporary = tmp_path / "working", tmp_path / ("t" * 100)
    working.mkdir()
    temporary.mkdir()
    for name in SHADOWS:
        (working / f"{name}.py").write_text("raise SystemExit('this file was imported')\n")
    return working, temporary


@pytest.mark.parametrize("start", ["warm", pytest.param("cold", marks=pytest.mark.long)])
def test_modules_in_the_working_folder_and_a_long_tmpdir(surroundings: tuple[Path, Path], start: str) -> None:
    working, temporary = surroundings
    folder = working.parent
    (folder / "train.toml").write_text(RECIPE.format(start=start))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainrun", "launch", "../train.toml", "--json"],
        cwd=working,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "finished"
    told = json.loads((folder / "told.json").read_text())
    assert (told["temporary"], told["neighbour"]) == (str(temporary), "beside the task")
    assert Path(told["sockets"]).parent != temporary
    assert not Path(told["sockets"]).exists()
    assert (folder / "sent.txt").read_text().split() == ["1", "2"]


@pytest.fixture
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**process.current_process()._config, "tempdir": None}  # type: ignore[attr-defined]
    monkeypatch.setattr(process.current_process(), "_config", config)


@pytest.mark.usefixtures("no_folder")
def test_room_is_made_only_if_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/t" * 37)
    assert sockets.make_room() is None  # 74 bytes and the 32 of multiprocessing fit
    monkeypatch.setattr(tempfile, "tempdir", "/t" * 38)
    made = sockets.make_room()
    assert made is not None
    assert tempfile.gettempdir() == "/t" * 38
    assert sockets.make_room() is None  # it is there


@pytest.mark.usefixtures("no_folder")
def test_without_another_folder_tmpdir_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/t" * 50)
    monkeypatch.setattr(scratch, "_SHORT", (str(tmp_path / "missing"),))
    with pytest.raises(EnvironmentProblem, match=r"TMPDIR=(/t){50} is too long .* at most 75 bytes"):
        sockets.make_room()
