"""Whether what a checkpoint keeps is finite: as its manifest says or, for those of older versions, as a look shows."""

from __future__ import annotations

import subprocess
from pathlib import Path

from trainrun.checkpoint.manifest import read_manifest
from trainrun.checkpoint.verify import verify
from trainrun.rundir.process import PYTHON


def problems(folder: Path) -> list[str]:
    """Return every reason not to begin from the checkpoint in `folder`.

    First those of `verify`, then what is not finite.
    """
    reasons = verify(folder)
    return reasons or ([] if read_manifest(folder).finite else _look(folder))


def _look(folder: Path) -> list[str]:
    """Look at the tensors in a process of its own.

    This process does not import torch. If the other one cannot decide, the workers look before they begin.
    """
    # -P: a file called torch.py in the folder that the command is called from must not be imported.
    command = [*PYTHON, "-m", "trainrun.worker.checkpoint.examine", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    found = done.stdout.decode(errors="replace").strip()
    return [found] if done.returncode == 0 and found else []
