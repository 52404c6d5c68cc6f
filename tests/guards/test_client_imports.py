"""The commands that only read are light: no torch, and none of what costs a tenth of a second to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainrun.plugin.specs import own_specs

PROBE = """
import json, sys
from trainrun.cli.main import cli
try:
    cli(args=sys.argv[1:], prog_name="trainrun", standalone_mode=False)
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "rich", "structlog", "pydantic.main", "email.parser", "asyncio", "multiprocessing", "trainrun.worker"}
sys.stderr.write("\\n" + json.dumps(sorted(heavy & set(sys.modules))))
"""

COMMANDS = [["--help"], ["ps"], ["hooks"], ["hooks", "train.toml"], ["plugins"], ["check", "train.toml"]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def loaded(arguments: list[str], root: Path, cache: Path) -> list[str]:
    environment = {**os.environ, "TRAINRUN_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", PROBE, *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_reading_commands_are_light(arguments: list[str], root: Path, cache: Path) -> None:
    loaded(arguments, root, cache)  # the first call may describe, in a process of its own
    assert loaded(arguments, root, cache) == []


def test_launching_side_does_not_import_torch(root: Path) -> None:
    source = "import sys, trainrun.launch.launch, trainrun.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], cwd=root, check=False).returncode == 0


def test_package_itself_is_lazy() -> None:
    source = "import sys, trainrun; sys.exit(bool({'torch', 'pydantic', 'click', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0


LOADING = """
import importlib, sys
for target in sys.argv[1:]:
    importlib.import_module(target.partition(":")[0])
    if "torch" in sys.modules:
        sys.exit(f"{target} imports torch")
"""


def test_own_plugins_with_hooks_of_the_client_do_not_import_torch() -> None:
    command = [sys.executable, "-m", "trainrun", "plugins", "--json"]
    listed = json.loads(subprocess.check_output(command, timeout=120))["plugins"]
    of_client = {spec.hook for spec in own_specs() if spec.locus != "worker"}
    own = [one for one in listed if (one["distribution"] or "").startswith("trainrun-")]
    targets = [one["target"] for one in own if of_client & set(one["hooks"])]
    assert len(targets) > 10
    done = subprocess.run([sys.executable, "-c", LOADING, *targets], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
