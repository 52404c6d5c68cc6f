"""Start workers by forking them from a process that has imported torch already.

The agent of one node, kept for all attempts of a run. It speaks with the client over a socket: the client sends one
JSON line for each attempt (`{"attempt": 1, "environment": {…}}`), and when elastic has seen the attempt's workers end
the agent answers `{"attempt": 1, "code": 1, "ends": {PID: exit code, …}}`. The end of the socket is that of the agent.
With several nodes the line has a `seat` too, and node 0's agent answers `{"attempt": 1, "port": 40123}` at once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TextIO

from trainrun.agent.meeting import Meeting, meeting
from trainrun.worker.parent import die_with_parent

# `preload` first: it has the server end with this agent before anything slow is imported.
PRELOADED = ("trainrun.agent.preload", "trainrun.agent.forked")

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main() -> None:
    """Serve attempts until the client is gone: `CLIENT_PID RUN_DIR WORKERS DESCRIPTOR` are the arguments."""
    client, run_dir, workers, descriptor = sys.argv[1:]
    die_with_parent(int(client))
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()  # before torch is imported here: the two imports overlap
    # Torch's own way to write a traceback into a log imports its compiler first: a second or two, when a worker failed.
    os.environ.setdefault("TORCH_LOGS_FORMAT", _LOG_FORMAT)
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415

    with socket.socket(fileno=int(descriptor)) as channel, channel.makefile("rw", encoding="utf-8") as lines:
        while True:
            with suppress(SignalException):  # one that came just after the attempt that it was to end
                if not (line := lines.readline()):
                    return
                _answer(lines, json.loads(line), Path(run_dir), int(workers))


def _answer(lines: TextIO, command: Mapping[str, Any], run_dir: Path, workers: int) -> None:
    kept: list[ForkServerProcess] = []
    # Elastic tells of the first failure only. Its processes are kept to know how each of them ended.
    multiprocessing.get_context("forkserver").Process = partial(_keep, kept)  # type: ignore[assignment, misc]
    with meeting(command.get("seat")) as place:
        if place.told:
            _tell(lines, attempt=command["attempt"], port=place.port)
        code = _attempt(run_dir, workers, command, place)
    ends = {worker.pid: worker.exitcode for worker in kept}
    _tell(lines, attempt=command["attempt"], code=code, ends=ends)


def _tell(lines: TextIO, **answer: Any) -> None:
    lines.write(json.dumps(answer) + "\n")
    lines.flush()


def _keep(kept: list[ForkServerProcess], *arguments: Any, **keywords: Any) -> ForkServerProcess:
    kept.append(ForkServerProcess(*arguments, **keywords))
    return kept[-1]


def _attempt(run_dir: Path, workers: int, command: Mapping[str, Any], place: Meeting) -> int:
    """Run one worker group until elastic has seen its end, or the client sends SIGTERM because it has seen it."""
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher import api  # noqa: PLC0415

    from trainrun.agent.entry import run  # noqa: PLC0415

    config = api.LaunchConfig(
        min_nodes=place.nodes,
        max_nodes=place.nodes,
        nproc_per_node=workers,
        run_id=f"{run_dir.name}-{command['attempt']}",
        rdzv_backend=place.backend,
        rdzv_endpoint=place.endpoint,
        rdzv_configs=place.configs,
        max_restarts=0,  # restarts are the client's
        monitor_interval=0.05,
        start_method="forkserver",
    )
    try:
        api.elastic_launch(config, run)(str(run_dir), command["attempt"], command["environment"])
    except (ChildFailedError, SignalException):
        return 1
    return 0
