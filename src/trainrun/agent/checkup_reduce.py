"""All-reduce between real workers, started the way that a launch starts them. Run by `trainrun.doctor`."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any

from trainrun.agent.checkup_worker import forked
from trainrun.doctor.examine import GLOO_HINT, NCCL_HINT
from trainrun.doctor.finding import Context, Finding, Verdict, reason, skipped
from trainrun.rundir.files import read_json
from trainrun.worker.sockets import make_room

# The first one ties the fork server to this process before anything slow is imported.
_PRELOADED = ("trainrun.agent.preload", "trainrun.agent.checkup_worker", "torch", "torch.distributed")

_PATIENCE = 0.5  # of the time limit, for the collectives: their own complaint says more than that of the doctor
_HINTS = {"gloo": GLOO_HINT, "nccl": NCCL_HINT}


def gloo(context: Context) -> Iterator[Finding]:
    """Reduce between CPU workers."""
    yield _reduce(context, "gloo", context.settings.workers)


def nccl(context: Context) -> Iterator[Finding]:
    """Reduce between as many GPU workers as there are GPUs, if any."""
    gpus = context.settings.gpus
    yield (
        _reduce(context, "nccl", min(gpus, context.settings.workers))
        if gpus
        else skipped("nccl", "not applicable: no GPU")
    )


def _reduce(context: Context, backend: str, workers: int) -> Finding:
    verdict = Verdict(backend)
    context.doing("making a temporary folder")
    make_room()
    folder = Path(util.get_temp_dir())  # multiprocessing's own, which it removes at its end
    context.made(str(folder))
    context.doing(f"all-reduce between {workers} workers")
    begun, error = time.perf_counter(), None
    try:
        _start(context, backend, workers, folder)
    except Exception as raised:
        error = raised
    seconds = time.perf_counter() - begun
    results = [read_json(folder / f"rank-{rank}.json") or {} for rank in range(workers)]
    _judge(verdict, results, error, backend)
    times = [float(result["milliseconds"]) for result in results if "milliseconds" in result]
    if len(times) == workers:
        start = context.settings.start
        verdict.say(f"{workers} {start} workers, 1 MiB all-reduced in {max(times):.2f} ms, {seconds:.1f} s in all")
    middle = round(statistics.fmean(times), 4) if times else None
    return verdict.finding(workers=workers, start=context.settings.start, milliseconds=middle)


def _judge(verdict: Verdict, results: list[dict[str, Any]], error: Exception | None, backend: str) -> None:
    told = [f"worker {rank}: {result['error']}" for rank, result in enumerate(results) if result.get("error")]
    silent = [str(rank) for rank, result in enumerate(results) if not result]
    if told:
        verdict.fail(told[0], _HINTS[backend])
    elif error is not None:
        verdict.fail(f"the workers did not end well: {reason(error)}", _HINTS[backend])
    elif silent:
        verdict.fail(f"workers {', '.join(silent)} said nothing", _HINTS[backend])


def _start(context: Context, backend: str, workers: int, folder: Path) -> None:
    """Start workers as `trainrun.agent` does.

    It uses elastic's agent, and a fork server or new processes.
    """
    warm = context.settings.start != "cold"
    if warm:
        multiprocessing.set_start_method("forkserver")
        multiprocessing.set_forkserver_preload(list(_PRELOADED))
        forkserver.ensure_running()  # before torch is imported here: the two imports overlap
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs  # noqa: PLC0415
    from torch.distributed.launcher import api  # noqa: PLC0415

    config = api.LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=workers,
        run_id=f"doctor-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.05,
        start_method="forkserver" if warm else "spawn",
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )
    seconds = context.settings.timeout * _PATIENCE
    if warm:
        api.elastic_launch(config, forked)(backend, str(folder), seconds)
    else:
        command = ("-P", "-m", "trainrun.agent.checkup_worker", backend, str(folder), str(seconds), str(os.getpid()))
        api.elastic_launch(config, sys.executable)(*command)
