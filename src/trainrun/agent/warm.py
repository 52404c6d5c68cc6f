"""The agent of one node, kept for all attempts of a run: it has torch imported once, in a fork server of its own.

Light: it starts the server and has it fork the runner, which runs elastic and to which it hands the client's socket.
Then it waits for the runner's end, which is its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from types import FrameType

from trainrun.rundir import scratch
from trainrun.worker.parent import die_with_parent

# `preload` first: it has the server end with this agent before anything slow is imported.
PRELOADED = ("trainrun.agent.preload", "trainrun.agent.forked")


def main() -> None:
    """Run the agent until the client is gone.

    The arguments are `CLIENT_PID RUN_DIR WORKERS DESCRIPTOR`.
    """
    client, run_dir, workers, descriptor = sys.argv[1:]
    die_with_parent(int(client))
    # A handler, which ends with the program: the server and the workers would inherit SIG_IGN.
    signal.signal(signal.SIGTERM, _take_no_note)
    scratch.adopt()
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    with socket.socket(fileno=int(descriptor)) as channel:
        runner = _start(channel, run_dir, int(workers))
    runner.join()
    _end_as(runner.exitcode or 0)


def _take_no_note(number: int, frame: FrameType | None) -> None:
    """Do nothing: what ends an attempt is sent to the runner."""


def _start(channel: socket.socket, run_dir: str, workers: int) -> ForkServerProcess:
    """Have the runner forked, as soon as the server has imported everything."""
    forkserver.ensure_running()
    from trainrun.agent.runner import serve  # noqa: PLC0415 - while the server imports torch

    key: bytes | None = getattr(forkserver._forkserver, "_forkserver_authkey", None)
    runner = ForkServerProcess(target=serve, args=(channel, run_dir, workers, key))
    try:
        runner.start()
    except (EOFError, ConnectionError):
        sys.exit("trainrun: the fork server died before it could fork anything")
    return runner


def _end_as(code: int) -> None:
    """End as the runner did, by the same signal if any.

    The client reports how its agent ended.
    """
    if code >= 0:
        sys.exit(code)
    if -code != signal.SIGKILL:  # which no process can handle
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
