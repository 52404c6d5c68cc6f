"""The short trainings that `trainrun smoke` compares: how each is started, and what its workers have noted."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trainrun.builtin import SMOKE_CHECK
from trainrun.rundir import process
from trainrun.rundir.files import read_json
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import WorkerRecord

if TYPE_CHECKING:
    from trainrun.launch.handle import Launch

_FORKING = "trainrun.worker.forking"
_MEASURE = "trainrun.worker.measuring:Measure"
_NEVER = 2**40  # steps
_LONG = 86_400.0  # seconds for a recipe that never gives up waiting
_FIXED = (
    'launch.backend="local"',
    "launch.nodes=1",
    'train.device="cpu"',
    "train.log_every=1",
    "train.compile=false",
    'train.nonfinite="warn"',
    "data.workers=0",
    f"checkpoint.every={_NEVER}",
    "checkpoint.at_end=false",
    'checkpoint.resume="never"',
    f'plugins.smoke-check.use="{SMOKE_CHECK}"',
    f'plugins.smoke-measure.use="{_MEASURE}"',
)


Plan = Mapping[str, Any]
Start = Callable[[Plan, "Launch", Path], None]


class Way(NamedTuple):
    """One way to train a recipe. ranks: on how many workers. settings: what is set for it, as with `-o`."""

    name: str
    ranks: int
    settings: tuple[str, ...]


class Subject(NamedTuple):
    """What is trained: a recipe with overrides and plugins, in run directories below `folder`."""

    recipe: str
    settings: tuple[str, ...]
    plugins: tuple[str, ...]
    folder: Path


class Update(NamedTuple):
    """One update, of all ranks.

    samples: of each rank, by name; None if they cannot be distinguished.
    """

    step: int
    epoch: int
    loss: float | None
    norm: float | None
    samples: Sequence[Sequence[str]] | None

    @property
    def together(self) -> Counter[str] | None:
        """Return how often each sample occurs on all ranks together."""
        return None if self.samples is None else Counter(name for one in self.samples for name in one)


class Measured(NamedTuple):
    """What a training has noted. problem: why it failed, if it did."""

    updates: Sequence[Update] = ()
    off: Mapping[str, Sequence[str]] = {}
    bound: Sequence[str] = ()
    changed: Sequence[str] = ()
    modes: Sequence[str] = ()
    generators: Sequence[str] = ()
    problem: str | None = None


def measure(subject: Subject, waves: Sequence[Sequence[Way]], start: Start) -> dict[str, Measured]:
    """Train in all ways; return the measured values by their name.

    Those of a wave train at the same time. Raises a TrainrunError if a way's recipe is wrong.

    start: trains by a plan, that of `trainrun.worker.forking`, such as `start_process`.
    """
    launches = {way.name: _prepared(subject, way) for wave in waves for way in wave}
    first = next(iter(launches.values()))
    seconds = first.recipe.launch.timeout or _LONG
    plan = {
        "path": [str(first.resolved.document.path.parent.resolve())] if first.recipe.launch.preload else [],
        "preload": first.recipe.launch.preload,
        "seconds": seconds,
        "waves": [[_job(way, launches[way.name]) for way in wave] for wave in waves],
    }
    output = subject.folder / "measuring.out"
    start(plan, first, output)
    return {way.name: _read(launches[way.name].paths, way.ranks, seconds, output) for wave in waves for way in wave}


def _prepared(subject: Subject, way: Way) -> Launch:
    from trainrun.launch import preflight  # noqa: PLC0415 - help should not pay for it
    from trainrun.launch.prepare import prepare  # noqa: PLC0415
    from trainrun.plugin.resolve import resolve  # noqa: PLC0415
    from trainrun.recipe.model import Recipe  # noqa: PLC0415

    settings = [*subject.settings, *_FIXED, f"launch.workers={way.ranks}", *way.settings]
    resolved = resolve(subject.recipe, settings, subject.plugins)
    resolved.require()
    recipe = Recipe.from_data(resolved.data)
    return prepare(recipe, resolved, preflight.place(recipe), subject.folder / way.name, (), quiet=True)


def _job(way: Way, launch: Launch) -> dict[str, Any]:
    return {"run": str(launch.paths.root), "ranks": way.ranks, "environment": dict(launch.environment)}


def start_process(plan: Plan, first: Launch, output: Path) -> None:
    """Train by a plan in a process of its own. first: one of its runs. output: a file for what it prints itself."""
    from trainrun.launch.agents import environment  # noqa: PLC0415

    command = [*process.PYTHON, "-m", _FORKING, str(os.getpid())]
    try:
        with output.open("ab") as file:
            subprocess.run(
                command,
                input=json.dumps(plan).encode(),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(first),
                check=False,
            )
    finally:
        process.clear(first.paths.root)  # all of them carry the first one's name


def _read(paths: RunPaths, ranks: int, seconds: float, output: Path) -> Measured:
    records = [read_json(paths.worker_record(1, rank)) for rank in range(ranks)]
    problem = _problem([None if one is None else WorkerRecord.from_json(one) for one in records], seconds, output)
    if problem is not None:
        return Measured(problem=problem)
    notes = [read_json(paths.root / "measured" / f"rank-{rank}.json") for rank in range(ranks)]
    noted = [one for one in notes if one is not None]
    if len(noted) < ranks or not (updates := _updates([one["updates"] for one in noted])):
        return Measured(problem="it made no update")
    rest = {key: noted[0][key] for key in ("off", "bound", "changed", "modes", "generators")}
    return Measured(updates, **rest)


def _problem(records: Sequence[WorkerRecord | None], seconds: float, output: Path) -> str | None:
    """Return the report of the worker that failed first.

    Returns None if all have finished.
    """
    errors = [one.error for one in records if one is not None and one.error is not None]
    if errors:
        first = min(errors, key=lambda error: error["monotonic_ns"])
        return f"{first.get('raised', first['type'])}: {first['message'].partition(chr(10))[0]}"
    if all(one is not None and one.phase == "finished" for one in records):
        return None
    if None in records:
        lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"a worker did not begin: {lines[-1] if lines else 'it printed nothing'}"
    return f"a worker died, or did not end in {seconds:g} s"


def _updates(ranks: Sequence[Sequence[Mapping[str, Any]]]) -> list[Update]:
    """Return the updates of all ranks, one by one."""
    found = []
    for parts in zip(*ranks, strict=False):  # a stop may come between the notes of two ranks
        samples = [part["samples"] for part in parts]
        if parts[0]["norm"] is None and parts[0]["loss"] is None:
            break
        told = None if None in samples else samples
        first = parts[0]
        found.append(Update(first["step"], first["epoch"], _number(first["loss"]), _number(first["norm"]), told))
    return found


def _number(value: Any) -> float | None:
    return None if value is None else float(value)  # what is not finite is kept as text
