from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainrun_callbacks.environment import Environment, EnvironmentOptions, chosen

from trainrun.testing import RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 1, batch_size = 16 }
evaluate = { splits = [] }
"""


def test_only_chosen_variables_and_no_secrets() -> None:
    variables = {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "NCCL_API_KEY": "hunter2",
        "TORCH_TOKEN": "hunter2",
        "PYTHON_DB": "postgres://me:hunter2@host/db",
        "HOME": "hunter2",
    }
    assert chosen(variables, EnvironmentOptions().variables) == {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "NCCL_API_KEY": "<redacted>",
        "PYTHON_DB": "postgres://<redacted>@host/db",
        "TORCH_TOKEN": "<redacted>",
    }


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "Password", "GH_TOKEN", "X_AUTH", "SESSION_ID", "SENTRY_DSN"]
)
def test_secrets_are_never_written_even_where_asked_for(name: str) -> None:
    assert chosen({name: "hunter2"}, ["*"]) == {name: "<redacted>"}


def test_the_client_writes_what_it_runs_in(tmp_path: Path) -> None:
    launch: Any = SimpleNamespace(paths=SimpleNamespace(root=tmp_path))
    plugin = Environment(EnvironmentOptions(packages=False))
    plugin.on_launch_start(launch)
    plugin.on_launch_start(launch)
    assert sorted(path.name for path in (tmp_path / "environment").iterdir()) == ["client-2.json", "client.json"]
    file = tmp_path / "environment" / "client.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    told = json.loads(file.read_text(encoding="utf-8"))
    assert told["python"]["version"].startswith("3.")
    assert told["hardware"]["cpus_allowed"] >= 1
    assert told["packages"] is None


def test_each_node_writes_its_own(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, "environment")
    told = json.loads((result.paths.root / "environment" / "attempt-1-node-0.json").read_text(encoding="utf-8"))
    assert told["torch"]["version"]
    assert told["packages"]["trainrun"]
    assert told["host"]
