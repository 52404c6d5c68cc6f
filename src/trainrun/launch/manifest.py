"""What runs, written down before it runs: recipe, plugins, versions, code."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from trainrun.launch.differences import plugins
from trainrun.launch.handle import Launch
from trainrun.plugin.instance import Instance
from trainrun.recipe.freeze import freeze
from trainrun.rundir.files import write_atomic, write_json
from trainrun.rundir.process import RUN_DIR_VARIABLE

VERSION = 1

_GIT = 5.0  # seconds that one git command may take


def write_manifest(launch: Launch) -> None:
    """Freeze the recipe and write `manifest.json`. Secrets go into neither."""
    write_atomic(launch.paths.recipe, freeze(launch.resolved.data, launch.resolved.schema))
    write_json(launch.paths.manifest, manifest(launch))


def write_command(launch: Launch) -> None:
    """Write how the run was launched, before anything that takes time.

    A run that is killed then can be started anew.
    """
    write_json(launch.paths.manifest, command(launch))


def command(launch: Launch) -> dict[str, Any]:
    """The part of `manifest.json` that says how the run was launched."""
    return {
        "version": VERSION,
        "run_id": launch.run_id,
        "created": time.time(),
        "recipe": str(Path(launch.resolved.document.path).resolve()),
        "switches": list(launch.switches),
        "argv": [launch.resolved.mask(argument) for argument in launch.argv],
        "directory": os.getcwd(),  # noqa: PTH109 - as the user sees it
    }


def manifest(launch: Launch) -> dict[str, Any]:
    """Return the content of `manifest.json`."""
    return {
        **command(launch),
        "workers": launch.workers,
        "environment": {name: value for name, value in launch.environment.items() if name == "OMP_NUM_THREADS"},
        "instances": launch.resolved.shown_instances,
        "plugins": plugins(launch.resolved),
        "plugin_set": plugin_set(launch.resolved.instances),
        "versions": versions(),
        "git": git(Path(launch.resolved.document.path).resolve().parent),
    }


def plugin_set(instances: tuple[Instance, ...]) -> str:
    """Return a hash of which plugins run, in which version and order."""
    what = [[one.name, one.role, one.target, one.distribution, one.version] for one in instances]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def versions() -> dict[str, str | None]:
    """Return the versions that matter for a result."""
    return {"python": platform.python_version(), "trainrun": _version("trainrun"), "torch": _version("torch")}


def git(folder: Path) -> dict[str, Any] | None:
    """Return the commit of a repository and whether it has changes.

    It is the repository that holds `folder`. Returns None outside of a repository.
    """
    commit = _run_git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _run_git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _run_git(folder: Path, *arguments: str) -> str | None:
    # Without the run's variable, so that a sweep never takes git for one of the run's processes.
    environment = {name: value for name, value in os.environ.items() if name != RUN_DIR_VARIABLE}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT,
            check=True,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
