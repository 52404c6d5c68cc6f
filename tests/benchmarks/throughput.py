"""Tokens a second of chargpt on two workers: through trainrun, over a bare torchrun script of the same work."""

from __future__ import annotations

import argparse
import operator
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from measure import interleave, paired, show, spread

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
WORKERS = 2


def rate(command: list[str]) -> float:
    """Run a training that writes its tokens a second."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "rate"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "THROUGHPUT_FILE": str(report),
        }
        command = [*command, *(("-o", f"run.dir={folder}/runs") if "launch" in command else ())]
        done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        return float(report.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORKERS}"]
    found = interleave(
        {
            "torchrun": partial(rate, [*torchrun, "bare_chargpt.py"]),
            "trainrun": partial(rate, [str(BIN / "trainrun"), "launch", "throughput.toml"]),
        },
        arguments.rounds,
    )
    ratios = {name: paired(rates, found["torchrun"], operator.truediv) for name, rates in found.items()}
    rows = [(name, spread(rates, 0), spread(ratios[name], 3)) for name, rates in found.items()]
    show(("chargpt, 2 workers", "tokens/s", "ratio"), rows)


if __name__ == "__main__":
    main()
