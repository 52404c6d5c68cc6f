"""Several short trainings of `trainrun smoke`, in workers that are forked from one process that has torch loaded.

`python -m trainrun.worker.forking PARENT` reads its plan from stdin:

    {"path": [FOLDER, …], "preload": [MODULE, …], "seconds": 600,
     "waves": [[{"run": RUN_DIR, "ranks": 1, "environment": {…}}, …], …]}

The trainings of a wave run at the same time, each on as many workers as it has ranks, from their run directories alone.
How each ended is in its workers' records.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

import torch._dynamo  # noqa: F401 - each worker would import it, with its first optimizer
import torch.distributed as dist

from trainrun.builtin import BUILTINS
from trainrun.plugin.targets import see_working_folder
from trainrun.worker.main import run_worker
from trainrun.worker.parent import die_with_parent

_STORE = "store"

Job = Mapping[str, Any]


def main() -> None:
    """Make all trainings of the plan, wave by wave."""
    die_with_parent(int(sys.argv[1]))
    plan = json.load(sys.stdin)
    gc.collect()
    gc.freeze()  # so that workers do not copy pages only to look for garbage in them
    sys.path[:0] = [folder for folder in plan["path"] if folder not in sys.path]
    if plan["preload"]:
        see_working_folder()
    for name in [*(target.partition(":")[0] for _, target in BUILTINS), *plan["preload"]]:
        importlib.import_module(name)
    run(plan)


def run(plan: Mapping[str, Any]) -> None:
    """Run the waves of a plan one after the other.

    This process must have one thread only.
    """
    for jobs in plan["waves"]:
        run_wave(jobs, plan["seconds"])


def run_wave(jobs: Sequence[Job], seconds: float) -> None:
    """Run the workers of some trainings and wait for their ends.

    What is left after `seconds` is killed. The first worker that fails ends the others of its training, which would
    wait for it.
    """
    workers: dict[int, tuple[int, Job]] = {}
    for job in jobs:
        for rank in range(job["ranks"]):
            pid = _fork(job, rank, seconds)
            workers[os.pidfd_open(pid)] = pid, job
    deadline = time.monotonic() + seconds
    while workers and (left := deadline - time.monotonic()) > 0:
        for descriptor in wait(list(workers), left):
            assert isinstance(descriptor, int)
            pid, job = workers.pop(descriptor)
            if _end(pid, descriptor):
                for peer, same in workers.values():
                    if same is job:
                        os.kill(peer, signal.SIGKILL)
    for descriptor, (pid, _) in workers.items():
        os.kill(pid, signal.SIGKILL)
        _end(pid, descriptor)


def _fork(job: Job, rank: int, seconds: float) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_worker(job, rank, parent, seconds)
    return pid


def _be_worker(job: Job, rank: int, parent: int, seconds: float) -> NoReturn:
    try:
        os.setsid()
        die_with_parent(parent)
        ranks, store = job["ranks"], Path(job["run"]) / _STORE
        places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ.update(job["environment"] | {name: str(value) for name, value in places.items()})
        if ranks > 1:
            patience = timedelta(seconds=seconds)
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=patience
            )
        run_worker(job["run"], 1)
    except BaseException:  # the process door: this must not return into the parent's loop
        traceback.print_exc()
    finally:
        os._exit(1)


def _end(pid: int, descriptor: int) -> bool:
    """Wait for a worker's end; return whether it failed.

    It has ended or was killed. Nothing that it started is left.
    """
    wait([descriptor])
    with suppress(ProcessLookupError):  # while its number is still taken: loader processes outlive it by seconds
        os.killpg(pid, signal.SIGKILL)
    os.close(descriptor)
    return os.waitpid(pid, 0)[1] != 0


if __name__ == "__main__":
    main()
