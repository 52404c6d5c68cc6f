"""The beginning of a forked worker. Light, because the agent imports it too, to send the function by name."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Mapping

from trainrun.worker.parent import die_with_parent

_ELASTIC = ("RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_", "LOCAL_", "GROUP_", "ROLE_")


def run(run_dir: str, attempt: int, environment: Mapping[str, str]) -> None:
    """Run the body of a forked worker; never return.

    environment: all of the client's, for this attempt: the fork server's own dates from its start. What elastic has put
    there for this rank stays.
    """
    # Loaded already here, and never in the agent, which imports this module too: they would tie it to the wrong parent.
    from trainrun.agent.forked import PROBLEM  # noqa: PLC0415
    from trainrun.agent.preload import SERVER_PID  # noqa: PLC0415
    from trainrun.worker.main import run_worker  # noqa: PLC0415

    gc.enable()
    os.setsid()
    die_with_parent(SERVER_PID)
    for name in set(os.environ) - set(environment):
        if not name.startswith(_ELASTIC):
            del os.environ[name]
    os.environ.update({name: value for name, value in environment.items() if not name.startswith(_ELASTIC)})
    # Not the "forkserver" that this process was made with: a data set that is defined in a function could not be sent
    # to a data loader's process.
    multiprocessing.set_start_method(None, force=True)
    run_worker(run_dir, attempt, PROBLEM)
