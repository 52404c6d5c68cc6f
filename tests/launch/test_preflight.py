from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainrun.errors import EnvironmentProblem
from trainrun.launch.preflight import count_gpus, place, threads
from trainrun.recipe import Recipe


def recipe(**tables: Any) -> Recipe:
    return Recipe.from_data({"task": {"use": "x"}, "train": {"steps": 1, **tables.pop("train", {})}, **tables})


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "null"):
        (tmp_path / name).touch()
    return tmp_path


def test_gpus_are_counted(devices: Path, tmp_path: Path) -> None:
    assert count_gpus(devices, {}) == 2
    assert count_gpus(devices, {"CUDA_VISIBLE_DEVICES": "1"}) == 1
    assert count_gpus(devices, {"CUDA_VISIBLE_DEVICES": ""}) == 0
    assert count_gpus(devices, {"CUDA_VISIBLE_DEVICES": "-1"}) == 0
    assert count_gpus(tmp_path / "none", {}) == 0


def test_auto_is_one_worker_a_gpu_or_one(devices: Path, tmp_path: Path) -> None:
    assert place(recipe(), devices, {}).workers == 2
    assert place(recipe(), tmp_path / "none", {}).workers == 1
    assert place(recipe(train={"device": "cpu"}), devices, {}).workers == 1
    assert place(recipe(launch={"workers": 3}, train={"batch_size": 66}), tmp_path / "none", {}).workers == 3


def test_missing_gpus(devices: Path, tmp_path: Path) -> None:
    cuda = {"device": "cuda", "batch_size": 66}
    with pytest.raises(EnvironmentProblem, match=r'train\.device: "cuda" is asked for'):
        place(recipe(train=cuda), tmp_path / "none", {})
    with pytest.raises(EnvironmentProblem, match="3 workers on CUDA need 3 GPUs, and 2 can be seen"):
        place(recipe(train=cuda, launch={"workers": 3}), devices, {})
    assert place(recipe(train=cuda, launch={"workers": 2}), devices, {}).workers == 2


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    free = recipe(run={"deterministic": False})
    assert threads(free, 2, {}) == "4"
    assert threads(free, 20, {}) == "1"
    assert threads(recipe(run={"deterministic": True}), 1, {}) == "1"
    assert threads(recipe(run={"deterministic": True}), 1, {"OMP_NUM_THREADS": "3"}) == "3"
