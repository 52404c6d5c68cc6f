"""What the checks that are on by default cost a step of chargpt on two workers: with them, over without them.

One training switches them off and on again, block by block, so that the two are compared with their neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import paired, show, spread

HERE = Path(__file__).parent
TRAINRUN = Path(sys.executable).parent / "trainrun"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "blocks"
        command = [str(TRAINRUN), "launch", "throughput.toml", "-o", f"run.dir={folder}/runs"]
        command += ["-o", "task.use=chargpt", "-o", f"train.steps={arguments.steps}", "-o", "evaluate.splits=[]"]
        command += ["-o", "plugins.switched.use=switched.py:Switched"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "BLOCKS_FILE": str(report)}
        done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        blocks = json.loads(report.read_text(encoding="utf-8"))
    checked, unchecked = blocks["checked"], blocks["unchecked"]
    ratios = paired(checked, unchecked, lambda mine, base: mine / base)
    rows = [
        ("without checks", spread([1e3 * seconds for seconds in unchecked], 2), ""),
        ("with checks", spread([1e3 * seconds for seconds in checked], 2), spread(ratios, 4)),
    ]
    show((f"chargpt, 2 workers, {len(ratios)} pairs of blocks", "ms a step", "ratio"), rows)


if __name__ == "__main__":
    main()
