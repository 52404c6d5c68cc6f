"""One worker of the doctor's all-reduce: `python -m trainrun.agent.checkup_worker BACKEND FOLDER SECONDS PARENT`."""

from __future__ import annotations

import os
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from trainrun.doctor.finding import reason
from trainrun.rundir.files import write_json
from trainrun.worker.parent import die_with_parent

_NUMBERS = 256 * 1024  # of 4 bytes: 1 MiB
_TIMES = 20


def forked(backend: str, folder: str, seconds: float) -> None:
    """Run the body of a forked worker."""
    from trainrun.agent import preload  # noqa: PLC0415 - it ties the process that imports it to its parent

    die_with_parent(preload.SERVER_PID)
    run(backend, folder, seconds)


def run(backend: str, folder: str, seconds: float) -> None:
    """Reduce with the others, and write down what came out."""
    rank = os.environ["RANK"]
    try:
        result = _measure(backend, seconds)
    except Exception as error:
        result = {"error": reason(error)}
    write_json(Path(folder) / f"rank-{rank}.json", result)
    if "error" in result:
        raise SystemExit(1)


def _measure(backend: str, seconds: float) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - torch is not yet wanted when this module is imported
    import torch.distributed as dist  # noqa: PLC0415

    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    size, times = dist.get_world_size(), []
    values = torch.empty(_NUMBERS, device=device)
    for _ in range(_TIMES):
        values.fill_(dist.get_rank() + 1.0)
        begun = time.perf_counter()
        dist.all_reduce(values)
        right = bool((values == size * (size + 1) / 2).all().item())  # waits for the device, too
        times.append(time.perf_counter() - begun)
        if not right:
            return {"error": f"the sum of 1 to {size} came out as {values[0].item():g}"}
    dist.barrier()
    dist.destroy_process_group()
    return {"milliseconds": statistics.median(times) * 1000}


if __name__ == "__main__":
    die_with_parent(int(sys.argv[4]))
    run(sys.argv[1], sys.argv[2], float(sys.argv[3]))
