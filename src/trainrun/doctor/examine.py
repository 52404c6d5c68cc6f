"""All checks in their order, each with what those before it have found out."""

from __future__ import annotations

from collections.abc import Iterator

from trainrun.doctor.examiner import Examination, Examiner, unexamined
from trainrun.doctor.finding import Finding, Settings

GLOO_HINT = "see `host name` and `shared memory`; GLOO_SOCKET_IFNAME=lo forces the loopback interface"
NCCL_HINT = "NCCL_DEBUG=INFO shows why; see `devices` and `shared memory`, and compare the driver with torch's CUDA"

_SOFTWARE = (
    Examination(("python",), "trainrun.doctor.packages:python"),
    Examination(("packages",), "trainrun.doctor.packages:packages"),
    Examination(("plugins",), "trainrun.doctor.plugins:plugins"),
)
_RECIPE = (Examination(("recipe",), "trainrun.doctor.plugins:recipe"),)
_MACHINE = (
    Examination(("run directory",), "trainrun.doctor.storage:run_directory"),
    Examination(("temporary directory",), "trainrun.doctor.storage:temporary"),
    Examination(("shared memory",), "trainrun.doctor.storage:shared_memory"),
    Examination(("cache",), "trainrun.doctor.storage:cache"),
    Examination(("ports",), "trainrun.doctor.network:ports"),
    Examination(("host name",), "trainrun.doctor.network:host_name"),
    Examination(("proxy",), "trainrun.doctor.network:proxy"),
    Examination(("limits",), "trainrun.doctor.limits:limits"),
    Examination(("processors",), "trainrun.doctor.limits:processors"),
    Examination(("memory",), "trainrun.doctor.limits:memory"),
    Examination(("processes",), "trainrun.doctor.processes:check"),
)
_TORCH = (
    Examination(("torch", "fork safety", "devices"), "trainrun.agent.checkup_imports:check", fresh=True),
    Examination(("gloo",), "trainrun.agent.checkup_reduce:gloo", fresh=True, needs=("torch", "ports"), hint=GLOO_HINT),
    Examination(("nccl",), "trainrun.agent.checkup_reduce:nccl", fresh=True, needs=("torch", "ports"), hint=NCCL_HINT),
)


def examine(settings: Settings) -> Iterator[Finding]:
    """Run every check, those of the recipe only if there is one.

    Findings come as they are made.
    """
    examinations = [*_SOFTWARE, *(_RECIPE if settings.recipe else ()), *_MACHINE, *_TORCH]
    failed: list[str] = []
    with Examiner() as examiner:
        for one in examinations:
            causes = [name for name in failed if name in one.needs]
            for finding in unexamined(one.names, causes[0]) if causes else examiner.findings(one, settings):
                settings = settings.updated(finding.facts)
                if finding.status == "failed":
                    failed.append(finding.check)
                yield finding
