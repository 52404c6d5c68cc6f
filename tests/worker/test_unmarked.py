"""Checkpoints of versions that did not look whether they are finite: nothing begins from one that is not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainrun.checkpoint import choose, named, read_manifest
from trainrun.checkpoint import finite as client
from trainrun.checkpoint.manifest import to_bytes
from trainrun.errors import BadCheckpoint
from trainrun.marker import hookimpl
from trainrun.rundir import RunPaths
from trainrun.worker.checkpoint import finite
from trainrun.worker.checkpoint.examine import examine
from trainrun.worker.checkpoint.export import export

TABLES: dict[str, Any] = {
    "train": {"steps": 4},
    "optimizer": {"name": "adamw", "lr": 0.01},
    "evaluate": {"splits": []},
    "checkpoint": {"every": 2, "background": False},
}


class Spoils:
    """Spoils something after step 4."""

    where = ""

    @hookimpl(mutates=True)
    def on_update_end(self, run: Any) -> None:
        if run.step == 4 and self.where in ("weight", "moment"):
            weight = next(iter(run.module.parameters()))
            spoilt = weight if self.where == "weight" else run.optimizer.state[weight]["exp_avg"]
            local = spoilt.detach().to_local() if hasattr(spoilt, "to_local") else spoilt.detach()
            local.view(-1)[-1] = math.nan

    def state_dict(self) -> dict[str, Any]:
        return {"average": {"0.bias": torch.tensor([1.0, 1.0, math.nan, 1.0])}} if self.where == "average" else {}

    def load_state_dict(self, state: Any) -> None:
        """Nothing."""


Unmarked = Callable[..., RunPaths]


@pytest.fixture
def looks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at checkpoints in this process: another one would import torch for each."""
    monkeypatch.setattr(client, "_look", lambda folder: [found] if (found := examine(folder)) else [])


@pytest.fixture
def unmarked(training: Any, regression: type, monkeypatch: pytest.MonkeyPatch) -> Unmarked:
    """Train without the look, and take the mark out of all manifests."""

    def make(where: str, **more: Any) -> RunPaths:
        plugin = type("Spoils", (Spoils,), {"where": where})
        with monkeypatch.context() as patch:
            patch.setattr(finite, "unfit", lambda *_: [])
            trained = training(more.pop("task", regression), plugin, **{**TABLES, **more})
            assert isinstance(trained.paths, RunPaths)
            _ = trained.reports
        for folder in trained.paths.checkpoints.glob("step-*"):
            manifest = replace(read_manifest(folder), finite=False)
            (folder / "manifest.json").write_bytes(to_bytes(manifest))
        return trained.paths

    return make


@pytest.mark.usefixtures("looks_here")
@pytest.mark.parametrize(
    ("where", "named_as"), [("weight", "0.weight"), ("moment", "the optimizer's exp_avg of 0.weight")]
)
def test_the_next_older_one_is_chosen(where: str, named_as: str, unmarked: Unmarked) -> None:
    paths = unmarked(where)
    with pytest.raises(BadCheckpoint, match=f"step-000004: this checkpoint is not good: not finite: {named_as}"):
        named(paths.checkpoints / "step-000004")
    assert named(paths.root).name == "step-000002"
    choice = choose(paths.checkpoints)
    assert choice.path is not None
    assert choice.path.name == "step-000002"
    assert [(path.name, reasons) for path, reasons in choice.rejected] == [
        ("bad-step-000004", [f"not finite: {named_as}"])
    ]


def test_averages_that_a_plugin_keeps_count_too(unmarked: Unmarked) -> None:
    paths = unmarked("average")
    assert examine(paths.checkpoints / "step-000004") == "not finite: average/0.bias of the plugin spoils"


def test_of_sharded_ones_too(unmarked: Unmarked) -> None:
    paths = unmarked("weight", ranks=2, parallel={"strategy": "fsdp"}, launch={"workers": 2})
    assert examine(paths.checkpoints / "step-000004") == "not finite: 0.weight"
    assert examine(paths.checkpoints / "step-000002") is None


def test_a_mask_is_none(unmarked: Unmarked, regression: Any) -> None:
    class Masked(regression):  # type: ignore[misc]
        fill = -math.inf

        @hookimpl
        def build_model(self) -> torch.nn.Module:
            model: torch.nn.Module = super().build_model()
            model.register_buffer("mask", torch.full((3, 3), self.fill).triu(1))
            return model

    assert examine(unmarked("", task=Masked).checkpoints / "step-000004") is None
    spoilt = unmarked("", task=type("Task", (Masked,), {"fill": math.nan})).checkpoints / "step-000004"
    assert examine(spoilt) == "not finite: mask"


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_workers_look_if_the_client_could_not(
    ranks: int, unmarked: Unmarked, training: Any, regression: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    parallel = {"parallel": {"strategy": "fsdp" if ranks > 1 else "ddp"}, "launch": {"workers": ranks}}
    paths = unmarked("weight", ranks=ranks, **parallel)
    monkeypatch.setattr(client, "_look", lambda folder: [])
    with pytest.raises(Exception, match=r"step-000004: this checkpoint is not good: .*not finite: 0\.weight"):
        _ = training(regression, ranks=ranks, after=paths, **TABLES, **parallel).reports


@pytest.mark.usefixtures("looks_here")
def test_a_finite_one_is_as_good_as_one_that_is_marked(unmarked: Unmarked, training: Any, regression: type) -> None:
    paths = unmarked("")
    assert choose(paths.checkpoints).rejected == []
    resumed = training(regression, after=paths, **(TABLES | {"train": {"steps": 6}}))
    assert resumed.outcome.step == 6
    assert read_manifest(paths.checkpoints / "step-000006").finite


def test_what_is_exported_is_finite(unmarked: Unmarked, tmp_path: Path) -> None:
    paths = unmarked("weight")
    with pytest.raises(BadCheckpoint, match=r"step-000004: its weights are not finite: 0\.weight; export an older"):
        export(paths.checkpoints / "step-000004", tmp_path / "w.safetensors")
    command = [sys.executable, "-m", "trainrun", "checkpoints", str(paths.root)]
    done = subprocess.run([*command, "--export", str(tmp_path / "w.safetensors")], capture_output=True, check=True)
    assert b"the weights of step-000002" in done.stdout
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "w.safetensors").values())
    shown = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert shown.count("good, if its weights are finite") == 2
    looked = subprocess.run([*command, "--verify", "--json"], capture_output=True, check=False)  # in processes
    assert looked.returncode == 1
    rows = json.loads(looked.stdout)["checkpoints"]
    assert [(row["good"], row["problem"], row["finite"]) for row in rows] == [
        (False, "not finite: 0.weight", False),
        (True, None, False),
    ]


class Writes:
    """Writes weights to the same file at each step."""

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        run.save_weights(run.paths.root / "weights.safetensors")
        run.save_weights(run.paths.root / f"own-{run.step}.safetensors", local=True)


def test_weights_that_are_not_finite_replace_no_file(training: Any, regression: type) -> None:
    plugin = type("Spoils", (Spoils,), {"where": "weight"})
    tables = TABLES | {"checkpoint": {"every": "never", "at_end": False}}
    train = {"steps": 5, "nonfinite": "warn"}
    trained = training(regression, plugin, Writes, **(tables | {"train": train}))
    kept = load_file(trained.paths.root / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert any(
        "weights.safetensors was not written, because weights are not finite: 0.weight" in one["reason"]
        for one in trained.decisions
    )
    assert load_file(trained.paths.root / "own-4.safetensors")["0.weight"].isnan().any()
    with pytest.raises(Exception, match=r"step 4: weights\.safetensors was not written"):
        training(regression, plugin, Writes, **tables)
