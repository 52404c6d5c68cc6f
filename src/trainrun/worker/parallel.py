"""Process groups and devices: what the ranks of a run need in order to work together."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from copy import copy
from datetime import timedelta

import torch
import torch.distributed as dist

from trainrun.errors import EnvironmentProblem
from trainrun.worker.checkpoint import rng
from trainrun.worker.world import World


def choose_device(asked: str, world: World) -> torch.device:
    """Return this worker's device: a GPU of its own, or the CPU.

    Raises EnvironmentProblem for too few GPUs.
    """
    if asked == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found > world.local_rank:
        return torch.device("cuda", world.local_rank)
    if asked == "cuda":
        raise EnvironmentProblem(
            f'train.device is "cuda", but this machine shows {found} GPUs to {world.local_size} workers; '
            'set train.device = "cpu" or launch.workers to the number of GPUs'
        )
    if found:
        raise EnvironmentProblem(
            f"{world.local_size} workers for {found} GPUs; set launch.workers to {found}, or train.device"
        )
    return torch.device("cpu")


class Collectives:
    """The few collectives that trainrun itself makes, on host tensors.

    With NCCL they use a group of their own. A single worker has no process group unless it runs under torchrun; then no
    call here waits.
    """

    def __init__(self, world: World, device: torch.device, timeout: timedelta) -> None:
        self.world = world
        self._timeout = timeout
        self._group: dist.ProcessGroup | None = None
        if world.size == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
        if dist.get_backend() == "nccl":
            self._group = dist.new_group(backend="gloo", timeout=timeout)
        self.barrier()  # gloo connects lazily: a peer that is missing shows here, not in the middle of a step

    def apart(self) -> Collectives:
        """Return the same ranks on a process group of their own.

        It is for another thread. Call it on all ranks alike.
        """
        other = copy(self)
        if self.world.size > 1:
            other._group = dist.new_group(backend="gloo", timeout=self._timeout)
            other.barrier()  # connects it while all are here
        return other

    def share(self, value: object) -> list[object]:
        """Give a JSON value to all ranks; return the values of all.

        They are in the order of ranks.
        """
        return self._gather_objects(value) if self.world.size > 1 else [value]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world.size > 1:
            dist.barrier(group=self._group)

    @property
    def gather(self) -> Callable[[torch.Tensor], list[torch.Tensor]] | None:
        """A function that gathers a host tensor of equal shape from all ranks.

        None for a single worker.
        """
        return self._gather if self.world.size > 1 else None

    @property
    def gather_objects(self) -> Callable[[object], list[object]] | None:
        """Gather any JSON value from all ranks; None for a single worker."""
        return self._gather_objects if self.world.size > 1 else None

    @property
    def gather_integer(self) -> Callable[[int], list[int]] | None:
        """Gather one integer from all ranks; None for a single worker."""
        return self._gather_integer if self.world.size > 1 else None

    def _gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        rows = [torch.empty_like(tensor) for _ in range(self.world.size)]
        dist.all_gather(rows, tensor, group=self._group)
        return rows

    def _gather_objects(self, value: object) -> list[object]:
        # torch's own object collectives unpickle what peers send, and need NumPy; JSON does for names and numbers.
        data = json.dumps(value).encode()
        longest = max(self._gather_integer(len(data)))
        padded = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8)
        return [json.loads(bytes(row.tolist())) for row in self._gather(padded)]

    def _gather_integer(self, value: int) -> list[int]:
        return [int(row.item()) for row in self._gather(torch.tensor(value))]


def seed_all(seed: int) -> None:
    """Seed Python's, torch's and the devices' random generators.

    NumPy's is seeded if it is imported.
    """
    random.seed(seed)
    rng.seed_numpy(seed)
    torch.manual_seed(seed)


def be_deterministic(*, compiled: bool) -> None:
    """Ask torch for deterministic algorithms; those that have none warn."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it, before its first use
    torch.backends.cudnn.benchmark = False
    if compiled:
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        # The same without informing the compiler, whose import takes longer than that of torch.
        torch.set_deterministic_debug_mode("warn")
