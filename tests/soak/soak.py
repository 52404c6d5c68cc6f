"""What the tests do a few times, hundreds of times: launches, kills at random places, resumes, deaths, races.

    SOAK=100 make soak
    python tests/soak/soak.py kills --count 50 --seed 7

SOAK is how many launches and how many kills there are; of those that a run is resumed after there are three times as
many. Prints what was done and each failure, which the seed repeats; ends with 1 if there was one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from trainrun.builtin.fault import Fault, injected, parse
from trainrun.rundir import RunPaths, process
from trainrun.rundir.files import read_json, read_lines

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "tests" / "faults" / "installed" / "faulty_tasks.py"
LONGEST = 180.0  # seconds for one launch without faults
CHAIN = 10  # faults in one run, each at a higher step than the one before
CHAIN_OF_KILLS = 30  # kills in one run of the part `resumes`
FORKS = 1000  # of processes that load data, in one launch
GONE = 2.0  # seconds that processes have to be gone after their client was killed

PLACES = ["step-start", "batch", "forward", "backward", "update"]
KINDS = ["kill", "kill", "kill", "segv", "abort", "leave", "exit", "raise"]
SIGNALS = {"kill": "SIGKILL", "segv": "SIGSEGV", "abort": "SIGABRT"}

RECIPE = f"""\
task = {{ use = "{TASKS}:Task" }}
train = {{ steps = 12, batch_size = 8, device = "cpu", log_every = 1 }}
optimizer = {{ name = "sgd", lr = 0.1 }}
evaluate.splits = []
launch = {{ workers = 2, max_restarts = 0 }}
"""

Failures = Iterator[str]


class Bench:
    """A folder in which launches are made."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self._folder = folder
        self._made = 0
        (folder / "train.toml").write_text(RECIPE)

    def start(self, *settings: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a launch in a folder of its own; answer with that too."""
        self._made += 1
        runs = self._folder / f"runs-{self._made}"
        command = [sys.executable, "-m", "trainrun", "launch", "train.toml", "--dir", str(runs), "--quiet"]
        command += [part for setting in settings for part in ("-o", setting)]
        with (self._folder / "output").open("ab") as output:
            client = subprocess.Popen(command, cwd=self._folder, stdout=output, stderr=output, start_new_session=True)
        return client, runs

    def finish(self, client: subprocess.Popen[bytes], runs: Path, patience: float) -> Failures:
        """Wait for the end; fail where it does not come, or leaves something."""
        try:
            client.wait(patience)
        except subprocess.TimeoutExpired:
            yield f"no end in {patience:g} s: {state(runs)}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(client.pid, signal.SIGKILL)
            client.wait()
        yield from left(runs)


def run_of(runs: Path) -> RunPaths | None:
    found = [path for path in runs.glob("2*") if path.is_dir()]
    return RunPaths(found[0].resolve()) if found else None


def state(runs: Path) -> str:
    """Where a run is, in a few words."""
    paths = run_of(runs)
    if paths is None:
        return "there is no run"
    outcome = read_json(paths.outcome) or {}
    return f"exit {outcome.get('exit_code')}, attempt {outcome.get('attempt')}, {outcome.get('reason')}, {paths.root}"


def left(runs: Path) -> Failures:
    """What of a run is there after its time."""
    paths = run_of(runs)
    deadline = time.monotonic() + GONE
    while paths is not None and (found := process.members(paths.root)):
        if time.monotonic() > deadline:
            process.sweep(paths.root)
            yield f"{len(found)} processes left: {state(runs)}"
            return
        time.sleep(0.02)


# --- what is done ---


def launches(bench: Bench, count: int) -> Failures:
    """Launches in a row, warm and cold in turn, with a task that keeps its model: gloo's destructor may then hang."""
    for number in range(count):
        start = ("warm", "cold")[number % 2]
        client, runs = bench.start(f"launch.start={start}", "task.fault=keeps_model")
        yield from bench.finish(client, runs, LONGEST)
        if client.returncode != 0:
            yield f"launch {number}, {start}: {state(runs)}"
        progress("launches", number + 1, count)
        shutil.rmtree(runs, ignore_errors=True)


def kills(bench: Bench, count: int) -> Failures:
    """Faults of all kinds at random ranks, steps and phases, in runs that go on after each of them."""
    done = 0
    while done < count:
        faults = chain(bench.rng, min(CHAIN, count - done))
        start = bench.rng.choice(["warm", "warm", "cold"])
        table = ['plugins.inject.use="trainrun.builtin.inject:Inject"', f"plugins.inject.faults={json.dumps(faults)}"]
        client, runs = bench.start(*table, f"launch.start={start}", f"launch.max_restarts={len(faults)}")
        yield from bench.finish(client, runs, LONGEST * (1 + len(faults)))
        wrong = list(differing(runs, faults))
        yield from (f"{start}: {one}" for one in wrong)
        done += len(faults)
        progress("kills", done, count)
        if not wrong:
            shutil.rmtree(runs, ignore_errors=True)


def chain(rng: random.Random, length: int) -> list[str]:
    """Faults at steps 1, 2, 3, …, so that every attempt makes progress."""
    return [f"{_kind(rng)}@{step}:{rng.choice(PLACES)}" for step in range(1, length + 1)]


def _kind(rng: random.Random) -> str:
    return f"{rng.choice(KINDS)}:rank{rng.randrange(2)}"


def differing(runs: Path, faults: list[str]) -> Failures:
    """Attempts that did not end by their fault, as their reasons say."""
    paths = run_of(runs)
    outcome = read_json(paths.outcome) if paths else None
    if paths is None or outcome is None or outcome["exit_code"] != 0 or outcome["attempt"] != len(faults) + 1:
        yield f"{faults}: {state(runs)}"
        return
    ends = [event["reason"] for event in read_lines(paths.events)[0] if event["event"] == "attempt_end"]
    for fault, reason in zip(map(parse, faults), ends, strict=False):
        if not all(re.search(rf"{word}\b", reason) for word in words(fault)):
            yield f"{fault.text}: {reason}; {paths.root}"
    if not any(injected(paths.root).iterdir()):
        yield f"{faults}: none came"


def words(fault: Fault) -> list[str]:
    """What the reason must name."""
    what = {"leave": "left with exit code 0", "exit": "SystemExit", "raise": "InjectedFault", **SIGNALS}[fault.kind]
    return [f"rank {fault.rank}", what, f"step {fault.step}"]


def deaths(bench: Bench, count: int) -> Failures:
    """The client is killed at any moment of a launch; nothing may be left."""
    for number in range(count):
        start = ("warm", "cold")[number % 2]
        client, runs = bench.start(f"launch.start={start}", "train.steps=100000", "data.workers=1")
        moment = bench.rng.uniform(0.3, 8)
        with suppress(subprocess.TimeoutExpired):
            client.wait(moment)
        client.kill()
        client.wait()
        yield from (f"killed after {moment:.2f} s, {start}: {one}" for one in left(runs))
        progress("deaths of the client", number + 1, count)
        shutil.rmtree(runs, ignore_errors=True)


def races(_: Bench, count: int) -> Failures:
    """A hundred processes for one run, several times."""
    yield from repeated([sys.executable, "-m", "pytest", "-q", "tests/faults/test_racers.py"], "races", count)


def resumes(bench: Bench, count: int) -> Failures:
    """Kills of workers, agents and clients, in saves too; the end must be that of a run that nobody disturbed."""
    command, done = [sys.executable, "-m", "pytest", "-q", "tests/faults/resume/test_kill_loop.py"], 0
    while done < count:
        kills, seed = min(CHAIN_OF_KILLS, count - done), bench.rng.randrange(10**6)
        given = {"TRAINRUN_KILLS": str(kills), "TRAINRUN_SEED": str(seed)}
        yield from repeated(command, f"resumes, {kills} kills with seed {seed}", 1, given)
        done += kills
        progress("resumes", done, count)


def decisions(_: Bench, count: int) -> Failures:
    """Decisions of all ranks of two nodes, each applied at one step."""
    command = [sys.executable, "tests/soak/decisions.py", "--posts", str(100 * count)]
    yield from repeated(command, "decisions", 1)


def forks(bench: Bench, count: int) -> Failures:
    """Processes that load data, a thousand in a launch: one for each rank and epoch, while checkpoints are written."""
    replaced = 0
    for number in range(count):
        epochs = ["task.samples=8", f"train.steps={FORKS // 2}", "data.workers=1"]
        client, runs = bench.start(*epochs, "checkpoint.every=3", "train.log_every=100", "launch.timeout=120")
        yield from bench.finish(client, runs, 10 * LONGEST)
        if client.returncode != 0:
            yield f"launch {number}: {state(runs)}"
        logs = run_of(runs)
        replaced += sum(log.read_text().count("stood still") for log in logs.logs.glob("*.jsonl")) if logs else 0
        progress("forks", FORKS * (number + 1), FORKS * count)
        shutil.rmtree(runs, ignore_errors=True)
    sys.stdout.write(f"forks: {replaced} of {FORKS * count} stood still and were made again\n")


def repeated(command: list[str], what: str, count: int, given: Mapping[str, str] | None = None) -> Failures:
    """Call a command that ends with 0 when all is well. given: environment variables to add."""
    environment = {**os.environ, **(given or {})}
    for number in range(count):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            yield f"{what}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        progress(what, number + 1, count)


def progress(what: str, done: int, count: int) -> None:
    sys.stderr.write(f"\r{what}: {done} of {count}" + ("\n" if done == count else ""))
    sys.stderr.flush()


# Each with how often it is done for each launch.
PARTS: dict[str, tuple[Callable[[Bench, int], Failures], float]] = {
    "launches": (launches, 1.0),
    "kills": (kills, 1.0),
    "resumes": (resumes, 3.0),
    "deaths": (deaths, 0.2),
    "races": (races, 0.1),
    "forks": (forks, 1.0),
    "decisions": (decisions, 1.0),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all of them, if none is named")
    parser.add_argument("--count", type=int, default=int(os.environ.get("SOAK", "100")))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    sys.stdout.write(f"seed {arguments.seed}\n")
    folder = Path(tempfile.mkdtemp(prefix="trainrun-soak-"))
    failed = 0
    for name in arguments.parts or PARTS:
        part, share = PARTS[name]
        began, count = time.monotonic(), max(1, round(arguments.count * share))
        (folder / name).mkdir()
        failures = list(part(Bench(folder / name, random.Random(f"{arguments.seed} {name}")), count))
        sys.stdout.write(f"{name}: {count} in {time.monotonic() - began:.0f} s, {len(failures)} failed\n")
        sys.stdout.writelines(f"  {failure}\n" for failure in failures)
        sys.stdout.flush()
        failed += len(failures)
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
