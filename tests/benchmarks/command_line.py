"""How long the reading commands take, over the imports that they cannot do without.

The ratio of `trainrun COMMAND` to `python -c "import click, pluggy, tomli, pydantic"`, interleaved, descriptions
cached. Run it in the venv that trainrun is installed in.
"""

from __future__ import annotations

import argparse
import operator
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measure import interleave, paired, show, spread

ROOT = Path(__file__).resolve().parents[2]
BASELINE = "imports alone"
COMMANDS = (["--help"], ["hooks"], ["hooks", "train.toml"], ["plugins"], ["check", "train.toml"])


# Compiled modules are kept, as where trainrun is installed for use; some containers turn that off.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()

    script = str(Path(sys.executable).with_name("trainrun"))
    trials: dict[str, Callable[[], float]] = {
        BASELINE: partial(timed, [sys.executable, "-c", "import click, pluggy, tomli, pydantic"]),
    }
    for words in COMMANDS:
        trials[f"trainrun {' '.join(words)}"] = partial(timed, [script, *words])
    for trial in trials.values():
        trial()  # fills the descriptions' cache and the disk's
    found = interleave(trials, arguments.rounds)

    rows = []
    for name, seconds in found.items():
        ratio = paired(seconds, found[BASELINE], operator.truediv)
        rows.append((name, spread([value * 1e3 for value in seconds], 0), spread(ratio, 2)))
    show(("command", "ms", "ratio"), rows)


if __name__ == "__main__":
    main()
