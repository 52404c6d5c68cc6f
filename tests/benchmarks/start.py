"""How fast workers start and start again, and what they weigh: `trainrun launch` beside `torchrun script.py`.

Seconds from the command to the first optimizer step; seconds from the SIGKILL of one worker to the first step of the
next attempt, without a checkpoint; and the proportional set size of everything below the command.
"""

from __future__ import annotations

import argparse
import operator
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from measure import interleave, paired, show, spread

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
ENDLESS = 1_000_000
PATIENCE = 120.0  # seconds for anything to happen
STUCK = 30.0  # seconds after which a restart has failed


class Step(NamedTuple):
    """One step that a rank has made, and when."""

    at: float
    rank: int
    step: int
    pid: int


class Job:
    """A training that goes on until it is ended."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._clock, self._output = folder / "clock", folder / "output"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CLOCK_FILE": str(self._clock)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.started = time.monotonic()
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=HERE, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def steps(self) -> list[Step]:
        """All steps so far."""
        if not self._clock.exists():
            return []
        lines = self._clock.read_text().split("\n")[:-1]
        return [
            Step(float(at), int(rank), int(step), int(pid)) for at, rank, step, pid in (line.split() for line in lines)
        ]

    def find(self, condition: Callable[[Step], bool], seconds: float) -> Step | None:
        """The first step that meets the condition, as soon as there is one; None if there is none in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := [step for step in self.steps() if condition(step)]:
                return found[0]
            time.sleep(0.01)
        return None

    def wait(self, condition: Callable[[Step], bool]) -> Step:
        """The same, where it has to come."""
        if found := self.find(condition, PATIENCE):
            return found
        shown = self._output.read_text(errors="replace")[-2000:]
        sys.exit(f"waited in vain for a step of {self.process.args}, exit code {self.process.poll()}:\n{shown}")

    def tree(self) -> list[int]:
        """The pids of the command and everything that it has started."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def end(self) -> None:
        """End it and wait until it is gone. Children that have a session of their own die with their parents."""
        members = self.tree()
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


@contextmanager
def job(kind: str, workers: int) -> Iterator[Job]:
    """Start the training in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        settings = [f"train.steps={ENDLESS}", f"launch.workers={workers}", f'run.dir="{folder}/runs"']
        commands = {
            "torchrun": [*torchrun, "--max-restarts=5", "bare_digits.py", str(ENDLESS)],
            "trainrun": [str(BIN / "trainrun"), "launch", "start.toml", *(a for s in settings for a in ("-o", s))],
        }
        commands["cold"] = [*commands["trainrun"], "-o", 'launch.start="cold"']
        running = Job(commands[kind], Path(folder))
        try:
            yield running
        finally:
            running.end()


def first_step(kind: str, workers: int) -> float:
    """Seconds from the command to the first optimizer step."""
    with job(kind, workers) as running:
        return running.wait(lambda _: True).at - running.started


def restart(kind: str, workers: int) -> float:
    """Seconds from the SIGKILL of one worker to the first step of the next attempt.

    torchrun's next attempt sometimes finds the addresses of the one before in its store, and fails; it is then measured
    anew, and that is said.
    """
    while (seconds := _restart(kind, workers)) is None:
        print(f"{kind}: no step within {STUCK:g} s after the restart; measured anew")  # noqa: T201
    return seconds


def _restart(kind: str, workers: int) -> float | None:
    with job(kind, workers) as running:
        victim = running.wait(lambda step: step.rank == workers - 1 and step.step >= 20)
        killed = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        again = running.find(lambda step: step.step == 1 and step.at > killed, STUCK)
        return again.at - killed if again else None


def memory(kind: str, workers: int) -> float:
    """MiB that agent, fork server and workers share out: their proportional set sizes while they train."""
    with job(kind, workers) as running:
        running.wait(lambda step: step.step == 50)
        # The client is left out on our side, and has no counterpart on the other, where the command is the agent.
        members = [pid for pid in running.tree() if kind == "torchrun" or pid != running.process.pid]
        return sum(map(_share, members)) / 1024


def _share(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def compare(title: str, measure: Callable[[str, int], float], workers: int, rounds: int, digits: int = 2) -> None:
    """Print one table."""
    kinds = ("torchrun", "trainrun", "cold")
    found = interleave({kind: partial(measure, kind, workers) for kind in kinds}, rounds)
    ratios = {kind: paired(values, found["torchrun"], operator.truediv) for kind, values in found.items()}
    show(
        (f"{title}, {workers} workers", "", "ratio"),
        [(kind, spread(values, digits), spread(ratios[kind], 2)) for kind, values in found.items()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("first", "restart", "memory"))
    arguments = parser.parse_args()
    first_step("trainrun", 1)  # plugins and task are described once, whatever is measured then
    if arguments.only in (None, "first"):
        for workers in (1, 2, 4):
            compare("command to first step, s", first_step, workers, arguments.rounds)
    if arguments.only in (None, "restart"):
        compare("SIGKILL to first step again, s", restart, 2, arguments.rounds)
    if arguments.only in (None, "memory"):
        compare("memory (PSS), MiB", memory, 4, max(1, arguments.rounds // 2), 0)


if __name__ == "__main__":
    main()
