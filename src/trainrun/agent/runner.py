"""The process that runs elastic: a fork of the fork server, which has imported torch already, kept for all attempts.

It communicates with the client over a socket. First it identifies itself: `{"runner": PID, "started": start time}`.
Then the client sends one JSON line for each attempt: `{"attempt": 1, "environment": {…}}`. When elastic has seen the
attempt's workers end the reply is `{"attempt": 1, "code": 1, "ends": {PID: exit code, …}}`. The end of the socket is
that of the runner, and of the agent, which waits for it. With several nodes the line has a `seat` too, and node 0's
runner replies `{"attempt": 1, "port": 40123}` at once.

Light until it is used: the agent imports it too, to send the function by name.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from trainrun.agent.meeting import Meeting, meeting
from trainrun.rundir import scratch
from trainrun.worker.parent import die_with_parent


def serve(channel: socket.socket, run_dir: str, workers: int, key: bytes | None) -> None:
    """Serve attempts until the client is gone.

    key: what the fork server asks of connecting processes, from Python 3.14 on.
    """
    # Loaded already here, and never in the agent, which imports this module too: they would tie it to the wrong parent.
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415

    from trainrun.agent.preload import SERVER_PID  # noqa: PLC0415
    from trainrun.rundir.process import start_time  # noqa: PLC0415

    gc.enable()
    die_with_parent(SERVER_PID)
    _share_server(key)
    signal.signal(signal.SIGTERM, _give_up)
    with channel, channel.makefile("rw", encoding="utf-8") as lines:
        _tell(lines, runner=os.getpid(), started=start_time(os.getpid()))
        while True:
            with suppress(SignalException):  # one that came just after the attempt that it was to end
                if not (line := lines.readline()):
                    return
                _answer(lines, json.loads(line), Path(run_dir), workers)


def _share_server(key: bytes | None) -> None:
    """Have the workers forked by the server that this process comes from.

    Python would start another one. A process that the server has forked knows its address, but has no pid of it to look
    whether it runs. It does as long as this process does, which dies with it.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_address is None or server._forkserver_alive_fd is None:
        raise RuntimeError("multiprocessing has no address of the fork server of this process")
    server.ensure_running = _do_nothing
    if key is not None:
        server._forkserver_authkey = key


def _do_nothing() -> None:
    """Do nothing: the server runs."""


def _give_up(number: int, frame: FrameType | None) -> None:
    """Stop waiting for other nodes.

    Elastic does so too, but only from its first worker on.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415

    del frame
    raise SignalException("the client gave up the attempt", signal.Signals(number))


def _answer(lines: TextIO, command: Mapping[str, Any], run_dir: Path, workers: int) -> None:
    kept: list[ForkServerProcess] = []
    # Elastic reports the first failure only. Its processes are kept to know how each of them ended.
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
    """Run one worker group until elastic has seen its end.

    It also ends if the client sends SIGTERM because it has seen the end.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs  # noqa: PLC0415
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
        logs_specs=DefaultLogsSpecs(log_dir=os.environ.get(scratch.VARIABLE)),
    )
    try:
        api.elastic_launch(config, run)(str(run_dir), command["attempt"], command["environment"])
    except (ChildFailedError, SignalException):
        return 1
    return 0
