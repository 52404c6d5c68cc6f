"""`trainrun verify-resume`: train straight, train interrupted and resumed, and compare the two bit for bit."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from trainrun.checkpoint import folder_name, plugin_file, read_manifest
from trainrun.cli import options, reporting
from trainrun.cli.columns import columns
from trainrun.cli.echo import answers_only, echo
from trainrun.cli.trails import First, Verdict, blame, compare, joined, not_compared, optimizers, unlike
from trainrun.errors import EnvironmentProblem, Problem, UsageError
from trainrun.rundir.files import read_lines
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.process import PYTHON

if TYPE_CHECKING:
    from trainrun.plugin.resolve import Resolved
    from trainrun.rundir.records import Outcome

NAME = "verify-resume"
TARGET = "trainrun.worker.checkpoint.trail:Trail"

_COMPARE = "trainrun.worker.checkpoint.compare"
_DEADLY = {"KILL", "TERM", "ABRT", "SEGV", "BUS", "FPE", "ILL"}


class Trial(NamedTuple):
    """What is trained. signal: the one that ends a worker; None for a stop that all ranks agree on."""

    recipe: str
    overrides: tuple[str, ...]
    plugins: tuple[str, ...]
    at: int
    steps: int
    signal: int | None
    by_epochs: bool


class Ended(Exception):
    """One of the trainings did not end as it should."""

    def __init__(self, what: str, outcome: Outcome) -> None:
        super().__init__(what)
        self.outcome = outcome


def _signal(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Return the number of a signal: of 9, -9, KILL or SIGKILL."""
    if value is None:
        return None
    name = value.upper().removeprefix("-").removeprefix("SIG")
    numbers = {number.value: number.name.removeprefix("SIG") for number in signal.Signals}
    name = numbers.get(int(name), name) if name.isdecimal() else name
    if name not in _DEADLY:
        raise click.BadParameter(f"expected a signal that ends a process, {', '.join(sorted(_DEADLY))}; got {value!r}")
    return signal.Signals[f"SIG{name}"].value


@click.command(NAME)
@options.recipe
@click.option("--at", type=click.IntRange(min=1), required=True, help="Step after which to interrupt one training.")
@click.option("--steps", type=click.IntRange(min=2), required=True, help="Number of steps of both trainings.")
@click.option(
    "--kill",
    "number",
    metavar="SIGNAL",
    callback=_signal,
    help="Kill a worker with this signal (-9 or KILL) in the step after --at, instead of stopping the run.",
)
@options.override
@options.plugin
@click.option("--keep", is_flag=True, help="Keep the folder with both trainings, and print its path.")
@options.as_json
@options.refresh
@options.traceback
@answers_only
def command(  # noqa: PLR0913 - one for each option
    *,
    recipe: str,
    at: int,
    steps: int,
    number: int | None,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    keep: bool,
    as_json: bool,
    refresh: bool,
) -> None:
    """Check that a resumed run of RECIPE (default: train.toml) is bit for bit the same.

    RECIPE is trained twice in a temporary folder: without interruption, and stopped after step --at and resumed.
    Batches, random numbers, losses, parameters, scheduler, plugin states, the optimizer, and other optimizers of the
    task and of plugins are compared bit for bit.

    Exit codes: 0 all are equal; 1 something differs, and the first difference is reported; 2 the command line or the
    recipe is wrong. If a training fails, its folder is kept, and the exit code is that of `trainrun launch`.
    """
    from trainrun.launch.busy import Busy  # noqa: PLC0415 - help should not pay for it
    from trainrun.plugin.resolve import resolve  # noqa: PLC0415

    if at >= steps:
        raise UsageError(f"--at {at}: must be less than --steps {steps}")
    with Busy() as busy:
        resolved = resolve(recipe, overrides, plugins, refresh=refresh, tell=busy.importing)
    resolved.require()
    by_epochs = resolved.data.get("train", {}).get("epochs") is not None
    trial = Trial(recipe, overrides, plugins, at, steps, number, by_epochs)
    folder = Path(tempfile.mkdtemp(prefix="trainrun-verify-"))
    try:
        with Busy() as busy:
            busy("training straight")
            straight = _straight(trial, folder)
            busy(f"training to step {at}, and resuming")
            runs = straight, _interrupted(trial, folder)
            busy("comparing the two trainings")
            verdicts = [*joined(compare(*runs), list(_checkpoints(runs, steps))), *optimizers(*runs)]
    except Ended as error:
        echo("\n".join(_failure(error)), err=True)
        if as_json:
            code = error.outcome.exit_code or 1
            reporting.print_document(code, [Problem(error.outcome.run, f"{error}: {error.outcome.reason}")])
        raise click.exceptions.Exit(error.outcome.exit_code or 1) from None
    except BaseException:
        shutil.rmtree(folder)
        raise
    answer = (
        _document(trial, verdicts, runs, folder if keep else None)
        if as_json
        else _report(trial, resolved, verdicts, runs)
    )
    echo(answer)
    if keep and not as_json:
        echo(f"the folder is kept: {folder}")
    if not keep:
        shutil.rmtree(folder)
    raise click.exceptions.Exit(0 if blame(verdicts) is None else 1)


# --- the two trainings ---


def _straight(trial: Trial, folder: Path) -> Path:
    return _complete(_launch(trial, folder / "straight", {}), trial, "straight")


def _interrupted(trial: Trial, folder: Path) -> Path:
    from trainrun.launch.resume import resume  # noqa: PLC0415

    told = {"stop_at": trial.at} if trial.signal is None else {"kill_at": trial.at + 1, "signal": trial.signal}
    outcome, what = _launch(trial, folder / "interrupted", told)
    if outcome.step < trial.steps and outcome.state in {"stopped", "terminated"}:
        outcome = resume(outcome.run, quiet=True)
    root = _complete((outcome, what), trial, "interrupted")
    starts = [event["step"] for event in read_lines(RunPaths(root).events)[0] if event.get("event") == "resume"]
    if not starts or not trial.at <= starts[0] < trial.steps:
        raise Ended(f"the training did not resume from the checkpoint of step {trial.at}, but from {starts}", outcome)
    return root


def _launch(trial: Trial, base: Path, told: Mapping[str, int]) -> tuple[Outcome, str]:
    from trainrun.launch.launch import launch  # noqa: PLC0415

    began = time.monotonic()
    base.mkdir()
    outcome = launch(trial.recipe, [*trial.overrides, *_settings(trial, told)], trial.plugins, dir=base, quiet=True)
    return outcome, f"{base.name}: {time.monotonic() - began:.1f} s"


def _settings(trial: Trial, told: Mapping[str, int]) -> Iterator[str]:
    """Yield what is set for both trainings.

    The rest, evaluations among it, is as the recipe says.
    """
    # At a checkpoint all decisions are applied, so that a vote to stop takes effect at that very step.
    every = math.gcd(trial.at, trial.steps) if trial.by_epochs else trial.at
    yield f"checkpoint.every={every}"
    yield "checkpoint.at_end=true"
    yield f"checkpoint.background={'true' if trial.signal is None else 'false'}"  # a kill must not come before its end
    yield 'checkpoint.resume="auto"'
    yield "train.log_every=1"
    yield f"launch.max_restarts={0 if trial.signal is None else 1}"
    yield f'plugins.{NAME}.use="{TARGET}"'
    yield f"plugins.{NAME}.last={trial.steps}" if trial.by_epochs else f"train.steps={trial.steps}"
    yield from (f"plugins.{NAME}.{key}={value}" for key, value in told.items())


def _complete(ended: tuple[Outcome, str], trial: Trial, what: str) -> Path:
    outcome = ended[0]
    if not outcome.ok:
        raise Ended(f"the {what} training failed", outcome)
    if outcome.step != trial.steps:
        raise UsageError(f"--steps {trial.steps}: the {what} training was over after step {outcome.step}")
    return Path(outcome.run)


def _failure(error: Ended) -> Iterator[str]:
    from trainrun.launch import closing  # noqa: PLC0415

    yield from filter(None, [closing.trace(error.outcome)])
    yield str(error)
    yield from closing.lines(error.outcome)


# --- the comparison ---


def _checkpoints(runs: Sequence[Path], steps: int) -> Iterator[Verdict]:
    paths = [str(RunPaths(run).checkpoints / folder_name(steps)) for run in runs]
    done = subprocess.run([*PYTHON, "-m", _COMPARE, *paths], capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise EnvironmentProblem(f"the checkpoints cannot be compared: {last[0]}")
    for component in json.loads(done.stdout):
        first = component["first"]
        yield Verdict(component["name"], first and First(first["name"], tuple(first["values"]), first["rank"]))


def _report(trial: Trial, resolved: Resolved, verdicts: Sequence[Verdict], runs: Sequence[Path]) -> str:
    rows = [(one.name, "equal" if one.first is None else "DIFFERENT", str(one.first or "")) for one in verdicts]
    return "\n".join([*columns(rows), *_summary(trial, resolved, verdicts, runs)])


def _summary(trial: Trial, resolved: Resolved, verdicts: Sequence[Verdict], runs: Sequence[Path]) -> Iterator[str]:
    if names := unlike(*runs):
        yield f"note: these metrics differ too, and do not count: {', '.join(names)}"
    how = "stopped" if trial.signal is None else f"killed by {signal.Signals(trial.signal).name}"
    unseen = not_compared(*runs)
    if unseen:
        yield f"not compared: {', '.join(unseen)}"
    wrong = blame(verdicts)
    if wrong is None:
        but = ", except for what was not compared" if unseen else ""
        yield f"ok: {how} after step {trial.at} and resumed, it is the same at step {trial.steps}, bit for bit{but}"
        return
    yield f"different: first in {wrong.name}: {wrong.first}"
    if wrong.first is not None and wrong.first.step is not None and wrong.first.step <= trial.at:
        yield "that is before the interruption: this recipe does not train the same way twice; see run.deterministic"
    if stateless := list(_stateless(resolved, runs[0], trial.steps)):
        yield f"these save no state: {', '.join(stateless)}; what they keep between steps is lost (state_dict)"


def _stateless(resolved: Resolved, run: Path, steps: int) -> Iterator[str]:
    """Yield the task and the plugins that have nothing in the checkpoint."""
    files = read_manifest(RunPaths(run).checkpoints / folder_name(steps)).files
    for instance in resolved.instances:
        if instance.role != "builtin" and plugin_file(instance.name) not in files:
            yield instance.name


def _document(trial: Trial, verdicts: Sequence[Verdict], runs: Sequence[Path], kept: Path | None) -> str:
    wrong = blame(verdicts)
    found: dict[str, Any] = {
        "version": options.JSON_VERSION,
        "equal": wrong is None,
        "first": wrong and wrong.to_json(),
        "at": trial.at,
        "steps": trial.steps,
        "signal": trial.signal,
        "components": [verdict.to_json() for verdict in verdicts],
        "not_compared": not_compared(*runs),
        "folder": kept and str(kept),
    }
    return json.dumps(found, indent=2)
