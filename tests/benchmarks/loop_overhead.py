"""What a step costs beyond the work itself: trainrun, Ignite and Lightning over a loop written by hand.

One process, one thread, 3,000 steps a trial, trials interleaved. Each is run with no plugins and with ten that
implement five per-step hooks as no-ops. `make bench` runs it in the venv that has the peers.
"""

from __future__ import annotations

import argparse
import operator
from collections.abc import Callable, Sequence
from functools import partial

import loop_hand
import loop_ignite
import loop_lightning
import loop_trainrun
import torch
from measure import interleave, paired, show, spread
from workload import StepTime

LOOPS = {"trainrun": loop_trainrun.run, "ignite": loop_ignite.run, "lightning": loop_lightning.run}
PLUGINS = (0, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", choices=sorted(LOOPS), nargs="*", default=list(LOOPS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    trials: dict[str, Callable[[], StepTime]] = {"hand-written": partial(loop_hand.run, arguments.steps)}
    for name in arguments.only:
        for plugins in PLUGINS:
            trials[f"{name}, {plugins} plugins"] = partial(LOOPS[name], arguments.steps, plugins)
    found = interleave(trials, arguments.rounds)

    base = found["hand-written"]
    header = ("loop", "median step, µs", "over hand-written", "processor time, µs", "over hand-written", "ratio")
    show(header, [row(name, times, base) for name, times in found.items()])


def row(name: str, times: Sequence[StepTime], base: Sequence[StepTime]) -> tuple[str, ...]:
    """Overheads and ratio are each over the hand-written loop of the same round; the ratio is of processor time."""
    wall, wall_base = [time.wall * 1e6 for time in times], [time.wall * 1e6 for time in base]
    cpu, cpu_base = [time.cpu * 1e6 for time in times], [time.cpu * 1e6 for time in base]
    return (
        name,
        spread(wall),
        spread(paired(wall, wall_base, operator.sub)),
        spread(cpu),
        spread(paired(cpu, cpu_base, operator.sub)),
        spread(paired(cpu, cpu_base, operator.truediv), 3),
    )


if __name__ == "__main__":
    main()
