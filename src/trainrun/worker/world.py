"""The place of this worker among the others."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """The ranks of a run. `rank` counts over all nodes, `local_rank` within this node; sizes likewise."""

    rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    size: int = 1
    local_size: int = 1
    nodes: int = 1

    @property
    def classes(self) -> frozenset[str]:
        """The values of `ranks` in hookspecs and hookimpls that include this worker."""
        found = {"all"}
        if self.local_rank == 0:
            found.add("local_zero")
        if self.rank == 0:
            found.add("zero")
        return frozenset(found)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> World:
        """Read what torchrun says of this worker."""
        size, local_size = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        return cls(
            rank=int(environment["RANK"]),
            local_rank=int(environment["LOCAL_RANK"]),
            node_rank=int(environment["GROUP_RANK"]),
            size=size,
            local_size=local_size,
            nodes=int(environment.get("GROUP_WORLD_SIZE", size // local_size)),  # nodes may differ in workers
        )


@dataclass(frozen=True)
class Job:
    """The worker's host, and the scheduler and its job id if there is one."""

    host: str
    scheduler: str | None = None
    job_id: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Job:
        """Recognise a Slurm job by its environment.

        Any other job has no scheduler.
        """
        job_id = environment.get("SLURM_JOB_ID")
        return cls(socket.gethostname(), "slurm" if job_id else None, job_id)
