from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainrun_callbacks.memory_snapshot import MemorySnapshot, MemorySnapshotOptions, ran_out

from trainrun import hookimpl
from trainrun.testing import RunRecipe

RECIPE = """
task = { use = "digits", channels = 1, hidden = 2 }
train = { steps = 2, batch_size = 16 }
evaluate.splits = []
"""


class OutOfMemory:
    """Has no memory left at the second step."""

    @hookimpl
    def on_step_start(self, step: int) -> None:
        if step == 2:
            raise torch.OutOfMemoryError("none left")


def test_on_the_cpu_it_says_that_there_is_nothing_to_record(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, "memory-snapshot", OutOfMemory, fails=True)
    lines = [json.loads(line) for line in result.paths.rank_log(0).read_text().splitlines()]
    assert "memory-snapshot records nothing: this run trains on the CPU" in [line["event"] for line in lines]
    assert ran_out(result.error)
    assert not (result.paths.root / "memory").exists()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch's allocator is asked for."""
    asked: list[Any] = []
    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", lambda **settings: asked.append(settings))
    monkeypatch.setattr(memory, "_dump_snapshot", lambda path: Path(path).write_bytes(b"snapshot"))
    monkeypatch.setattr(torch.cuda, "memory_summary", lambda device: "summary")
    return asked


def fake_run(folder: Path) -> Any:
    logger = SimpleNamespace(info=lambda event, **rest: None, error=lambda event, **rest: None)
    return SimpleNamespace(
        device=torch.device("cuda"),
        paths=SimpleNamespace(root=folder),
        world=SimpleNamespace(rank=1),
        step=7,
        logger=logger,
    )


@pytest.mark.parametrize("stacks", [True, False])
def test_what_filled_the_gpu_is_kept(tmp_path: Path, gpu: list[Any], stacks: bool) -> None:
    plugin, run = MemorySnapshot(MemorySnapshotOptions(entries=5, stacks=stacks)), fake_run(tmp_path)
    plugin.on_worker_start(run)
    plugin.on_exception(run, RuntimeError("another"))
    assert list(tmp_path.iterdir()) == []
    plugin.on_exception(run, torch.OutOfMemoryError("none left"))
    plugin.on_worker_end()
    assert (tmp_path / "memory" / "rank-1-step-7.pickle").read_bytes() == b"snapshot"
    assert (tmp_path / "memory" / "rank-1-step-7.txt").read_text() == "summary"
    assert gpu == [{"max_entries": 5, "context": "all" if stacks else None}, {"enabled": None}]


def test_an_error_that_came_from_it_counts() -> None:
    outer = RuntimeError("a hook failed")
    outer.__cause__ = torch.OutOfMemoryError("none left")
    assert ran_out(outer)
    assert not ran_out(RuntimeError("another"))
    outer.__cause__ = outer
    assert not ran_out(outer)
