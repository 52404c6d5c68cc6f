"""Start each worker as a new process, with torchrun itself.

python -m trainrun.agent.cold CLIENT_PID RUN_DIR ATTEMPT WORKERS [SEAT DESCRIPTOR]

With several nodes SEAT is a JSON object, and node 0 writes the port of its store into the pipe DESCRIPTOR.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from trainrun.agent.meeting import Meeting, meeting
from trainrun.rundir import scratch
from trainrun.rundir.process import PYTHON
from trainrun.worker.parent import die_with_parent


def main() -> None:
    """Run torchrun for one attempt on this machine; exits as torchrun does."""
    client, run_dir, attempt, workers, *others = sys.argv[1:]
    die_with_parent(int(client))
    scratch.adopt()
    with meeting(json.loads(others[0]) if others else None) as place:
        if place.told:
            os.write(int(others[1]), str(place.port).encode())
        if others:
            os.close(int(others[1]))
        _run(place, run_dir, attempt, workers)


def _run(place: Meeting, run_dir: str, attempt: str, workers: str) -> None:
    from torch.distributed import run  # noqa: PLC0415 - after die_with_parent: torch takes seconds to import

    run.main(
        [
            f"--nnodes={place.nodes}",
            f"--node-rank={place.configs.get('rank', 0)}",
            f"--nproc-per-node={workers}",
            f"--rdzv-backend={place.backend}",
            f"--rdzv-endpoint={place.endpoint}",
            *([f"--rdzv-conf=timeout={place.configs['timeout']}"] if place.configs else []),
            f"--rdzv-id={Path(run_dir).name}-{attempt}",
            *([f"--log-dir={os.environ[scratch.VARIABLE]}"] if scratch.VARIABLE in os.environ else []),
            "--max-restarts=0",  # restarts are the client's
            # Not as its --module, which would have Python look for modules in the working folder first.
            "--no-python",
            *(*PYTHON, "-u", "-m", "trainrun.worker.main"),
            run_dir,
            attempt,
            str(os.getpid()),
        ]
    )


if __name__ == "__main__":
    main()
