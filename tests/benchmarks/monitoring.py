"""Tokens a second of chargpt on two workers: with all monitors, over none; and what each plugin costs a step.

`--write` leaves the costs, by the ledger that every run keeps, where the gallery finds them (docs/costs.json).
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median

from measure import interleave, paired, show, spread

from trainrun.builtin import BUILTINS

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
COSTS = HERE.parents[1] / "docs" / "costs.json"
TRAINING = {"task", "providers", "plateau"}  # what they take is the training itself
# Once a run, not in each step.
ONCE = {"on_worker_start", "on_train_start", "on_train_end", "on_worker_end", "on_completed", "on_resume"}


def run(recipe: str, *plugins: str) -> tuple[float, Mapping[str, float]]:
    """Tokens a second, and each plugin's microseconds a step on rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "rate"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "THROUGHPUT_FILE": str(report)}
        command = [str(BIN / "trainrun"), "launch", recipe, "-o", f"run.dir={folder}/runs"]
        command += [part for name in plugins for part in ("-p", name)]
        done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        (status,) = Path(folder).glob("runs/2*/status.json")
        return float(report.read_text(encoding="utf-8")), costs(json.loads(status.read_text(encoding="utf-8")))


def costs(status: Mapping[str, object]) -> Mapping[str, float]:
    """Microseconds a step by plugin, of the hooks that are called while it trains."""
    rows, steps = status["cost"], status["step"]
    assert isinstance(rows, list)
    assert isinstance(steps, int)
    found: dict[str, float] = {}
    for row in rows:
        each_step = 0.0 if row["hook"] in ONCE else 1e6 * row["total_seconds"] / steps
        found[row["instance"]] = found.get(row["instance"], 0.0) + each_step
    return found


def compare(rounds: int) -> dict[str, list[float]]:
    """Print what the monitors cost altogether and each; answers with each one's microseconds a step by run."""
    trials = {"no monitors": partial(run, "throughput.toml"), "all monitors": partial(run, "monitoring.toml")}
    found = interleave(trials, rounds)
    rates = {name: [rate for rate, _ in runs] for name, runs in found.items()}
    ratios = {name: paired(values, rates["no monitors"], operator.truediv) for name, values in rates.items()}
    show(
        ("chargpt, 2 workers", "tokens/s", "ratio"),
        [(name, spread(values, 0), spread(ratios[name], 3)) for name, values in rates.items()],
    )
    return by_plugin([costs for _, costs in found["all monitors"]])


def by_plugin(measured: list[Mapping[str, float]]) -> dict[str, list[float]]:
    """Each plugin's costs, by run; printed too."""
    names = [name for name in measured[0] if name not in TRAINING]
    values = {name: [one.get(name, 0.0) for one in measured] for name in names}
    show(("plugin", "µs a step on rank 0"), [(name, spread(values[name], 1)) for name in names])
    return values


def write(values: Mapping[str, list[float]]) -> None:
    """Put the medians where the gallery finds them, beside those of plugins that were not measured now."""
    kept = json.loads(COSTS.read_text(encoding="utf-8"))["plugins"] if COSTS.exists() else {}
    about = (
        "chargpt of 4 layers and width 128 on two CPU workers, 80 steps logged every 10, those of others.toml with two"
        f" evaluations and checkpoints, torch on {os.cpu_count()} cores of {platform.machine()}; medians"
    )
    plugins = kept | {name: round(median(each), 1) for name, each in values.items()}
    content = {"about": about, "plugins": dict(sorted(plugins.items()))}
    COSTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", choices=("monitors", "others"))
    parser.add_argument("--write", action="store_true", help="write docs/costs.json")
    arguments = parser.parse_args()

    values: dict[str, list[float]] = {}
    if arguments.only != "others":
        values |= compare(arguments.rounds)
    if arguments.only != "monitors":
        others = by_plugin([run("others.toml", "wandb-watch")[1] for _ in range(arguments.rounds)])
        values |= {name: each for name, each in others.items() if name not in dict(BUILTINS)}
    if arguments.write:
        write(values)


if __name__ == "__main__":
    main()
