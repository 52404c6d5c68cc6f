"""Write down what a run ran in: Python, packages, some variables of the environment, hardware."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainrun import Field, PluginOptions, hookimpl
from trainrun_callbacks import records

if TYPE_CHECKING:
    from trainrun import Launch, Run

_VARIABLES = [
    "CUDA_*",
    "NCCL_*",
    "GLOO_*",
    "OMP_*",
    "MKL_*",
    "TORCH*",
    "PYTORCH_*",
    "PYTHON*",
    "SLURM_*",
    "LANG",
    "LC_*",
]


class EnvironmentOptions(PluginOptions):
    """Which variables are written down."""

    variables: list[str] = Field(
        _VARIABLES,
        description="Names or patterns of variables. Values are not written if the name suggests a secret.",
    )
    packages: bool = Field(True, description="List the installed distributions with their versions.")


class Environment:
    """Write `environment/client.json` when the run is launched, and `environment/attempt-N-node-M.json` on each node.

    Only the chosen environment variables are written; secrets and user names in URLs are replaced.
    """

    Options = EnvironmentOptions
    on_error = "warn"

    def __init__(self, options: EnvironmentOptions) -> None:
        self._options = options

    @hookimpl
    def on_launch_start(self, launch: Launch) -> None:
        records.write_json(records.free(launch.paths.root / "environment" / "client.json"), self._snapshot())

    @hookimpl(ranks="local_zero")
    def on_worker_start(self, run: Run) -> None:
        name = f"attempt-{run.attempt}-node-{run.world.node_rank}.json"
        told = {**self._snapshot(), "host": run.job.host, **_devices()}
        records.write_json(run.paths.root / "environment" / name, told)

    def _snapshot(self) -> dict[str, Any]:
        return {
            "python": {"version": sys.version, "executable": sys.executable, "prefix": sys.prefix},
            "platform": {
                "system": platform.platform(),
                "machine": platform.machine(),
                "libc": " ".join(platform.libc_ver()),
            },
            "hardware": {
                "cpu": _cpu(),
                "cpus": os.cpu_count(),
                "cpus_allowed": len(os.sched_getaffinity(0)),
                "memory": _memory(),
            },
            "variables": chosen(os.environ, self._options.variables),
            "packages": _packages() if self._options.packages else None,
        }


def chosen(variables: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """Return the variables that fit one of the patterns, with secrets replaced."""
    names = sorted(name for name in variables if any(fnmatchcase(name, pattern) for pattern in patterns))
    return {name: records.masked(name, variables[name]) for name in names}


def _packages() -> dict[str, str]:
    found = ((one.metadata["Name"], one.version) for one in metadata.distributions())
    return dict(sorted((str(name), str(version)) for name, version in found if name))


def _cpu() -> str | None:
    return _proc("cpuinfo", "model name")


def _memory() -> str | None:
    return _proc("meminfo", "MemTotal")


def _proc(file: str, key: str) -> str | None:
    try:
        lines = Path("/proc", file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def _devices() -> dict[str, Any]:
    import torch  # noqa: PLC0415 - the client imports this module, and must stay free of it

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(number) for number in range(count)]
    cudnn = torch.backends.cudnn.version() if count else None  # type: ignore[no-untyped-call]
    return {
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn},
        "devices": [{"name": one.name, "memory": one.total_memory} for one in found],
    }
