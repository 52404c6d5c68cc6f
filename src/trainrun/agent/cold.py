"""Start each worker as a new process, with torchrun itself.

python -m trainrun.agent.cold CLIENT_PID RUN_DIR ATTEMPT WORKERS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trainrun.worker.parent import die_with_parent


def main() -> None:
    """Run torchrun for one attempt on this machine; exits as torchrun does."""
    client, run_dir, attempt, workers = sys.argv[1:5]
    die_with_parent(int(client))
    from torch.distributed import run  # noqa: PLC0415 - after die_with_parent: torch takes seconds to import

    run.main(
        [
            "--nnodes=1",
            f"--nproc-per-node={workers}",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0",  # the agent binds a free port itself: nobody can take it in between
            f"--rdzv-id={Path(run_dir).name}-{attempt}",
            "--max-restarts=0",  # restarts are the client's
            "--module",
            "trainrun.worker.main",
            run_dir,
            attempt,
            str(os.getpid()),
        ]
    )


if __name__ == "__main__":
    main()
