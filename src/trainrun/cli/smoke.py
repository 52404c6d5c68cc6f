"""`trainrun smoke`: CI's command. A few steps with everything on, on two CPU workers."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from trainrun.builtin import SMOKE_CHECK
from trainrun.cli import completing, options
from trainrun.cli.checks import CHECKS, run_checks
from trainrun.cli.echo import answers_only, echo
from trainrun.cli.measuring import Subject
from trainrun.errors import ExitCode
from trainrun.rundir.secrets import scrub_all

if TYPE_CHECKING:
    from trainrun.builtin.fault import Fault
    from trainrun.plugin.resolve import Resolved
    from trainrun.rundir.records import Outcome

_WORKERS = 2

Trial = tuple[str, Sequence[str], Sequence[str], Path]

_MORE = 2  # steps after resuming from the checkpoint
_SETTLE = 10  # steps after the last fault, for what all ranks must agree on
_CHECK = "smoke-check"
_FIXED = (
    'launch.backend="local"',
    "launch.nodes=1",
    'train.device="cpu"',
    "train.log_every=1",
    "checkpoint.at_end=true",
    'checkpoint.resume="auto"',
    f'plugins.{_CHECK}.use="{SMOKE_CHECK}"',
)


@click.command("smoke")
@options.recipe
@options.override
@options.plugin
@click.option("--steps", type=click.IntRange(min=1), default=4, show_default=True, help="Number of steps.")
@click.option(
    "--inject",
    multiple=True,
    metavar="FAULT[,FAULT…]",
    shell_complete=completing.faults,
    help="Instead, launch once per fault, such as sigterm@3, kill:rank1@5, nan@2 or raise:PLUGIN.HOOK, and check "
    "that each ends as expected.",
)
@click.option(
    "--skip",
    multiple=True,
    type=click.Choice(CHECKS),
    help="Skip a check that the recipe cannot pass, such as micro-batches if a loss compares the samples of a "
    "batch with each other. May be repeated.",
)
@options.as_json
@options.refresh
@options.traceback
@answers_only
def command(
    *,
    recipe: str,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    steps: int,
    inject: tuple[str, ...],
    skip: tuple[str, ...],
    as_json: bool,
    refresh: bool,
) -> None:
    """Run a few steps of RECIPE with every feature enabled.

    RECIPE (default: train.toml) runs on 2 CPU workers, with evaluation, a checkpoint and all its plugins. New workers
    then resume from the checkpoint for 2 more steps. After each of these runs, both workers must have equal parameters.

    Short trainings are then compared: an update made whole, in micro-batches and on two ranks; training with and
    without an evaluation; the samples of two ranks. Each check prints "ok", "failed", or "not compared" with the
    reason; docs/correctness.md explains them.

    The folder of the runs is temporary, and kept only after a failure. Exit codes are those of `trainrun launch`, and 1
    if a check failed. With --inject, 0 means that all faults ended as expected, and 1 that one did not. --json prints
    one document with the outcomes, the checks and the called hooks, or the faults with what was expected and seen.
    """
    from trainrun.launch.busy import Busy  # noqa: PLC0415 - help should not pay for it
    from trainrun.plugin.resolve import resolve  # noqa: PLC0415

    faults = _faults(inject)
    steps = max([steps, *(fault.step + _SETTLE for fault in faults)])
    settings = [*_FIXED, f"evaluate.every={steps if steps % 2 else steps // 2}", f"launch.workers={_WORKERS}"]
    settings += ["checkpoint.every=1"] if any(fault.strikes_save for fault in faults) else []
    with Busy() as busy:
        resolved = resolve(recipe, [*settings, *overrides], plugins, refresh=refresh, tell=busy.importing)
    if not _shareable(resolved.data.get("train", {})):
        settings += ["launch.workers=1"]
        resolved = resolve(recipe, [*settings, *overrides], plugins)
    pause = [] if faults else [f"plugins.{_CHECK}.pause={steps}"]
    settings += [_limit(resolved, steps if faults else steps + _MORE), *pause, *overrides]
    folder = Path(tempfile.mkdtemp(prefix="trainrun-smoke-"))
    answer = Answer(recipe, as_json=as_json)
    try:
        trial = (recipe, settings, plugins, folder)
        code = _prove(trial, resolved, faults, answer) if faults else _try(trial, resolved, (overrides, skip), answer)
    except BaseException:
        _remove_unused(folder)
        raise
    if code == 0:
        shutil.rmtree(folder)
    answer.end(code, folder)
    raise click.exceptions.Exit(code)


class Answer:
    """What the command prints: lines as they come, or one JSON document at the end."""

    def __init__(self, recipe: str, *, as_json: bool) -> None:
        self._as_json = as_json
        self.document: dict[str, Any] = {"version": options.JSON_VERSION, "recipe": recipe}

    def show(self, lines: Iterable[str]) -> None:
        """Print lines, unless a document is asked for."""
        if not self._as_json:
            echo("\n".join(lines))

    def end(self, code: int, folder: Path) -> None:
        """Print the document, if one is asked for. folder: kept unless all was well."""
        if self._as_json:
            kept = None if code == 0 else str(folder)
            ended = {"ok": code == 0, "exit_code": code, "folder": kept}
            echo(json.dumps(scrub_all({**self.document, **ended}), indent=2))


def _shareable(train: Mapping[str, Any]) -> bool:
    """Return whether two workers can share an update.

    They share it in the recipe's own micro-batches.
    """
    batch, micro = train.get("batch_size"), train.get("micro_batch_size") or 1
    if not isinstance(batch, int) or not isinstance(micro, int):
        return True  # which is wrong in another way, and has its own message
    return batch % (_WORKERS * micro) == 0


def _try(trial: Trial, resolved: Resolved, asked: tuple[tuple[str, ...], tuple[str, ...]], answer: Answer) -> int:
    """Launch, resume and check. asked: the overrides, and the checks that are left out."""
    from trainrun.launch.busy import Busy, during  # noqa: PLC0415
    from trainrun.launch.launch import launch  # noqa: PLC0415
    from trainrun.launch.resume import resume  # noqa: PLC0415

    recipe, settings, plugins, folder = trial
    answer.document["checks"] = []
    with Busy() as busy:
        busy("training a few steps")
        outcome = launch(recipe, ["launch.max_restarts=0", *settings], plugins, dir=folder, quiet=True)
        outcomes, costs = [outcome], [_cost(outcome)]
        if outcome.ok:
            busy("resuming from their checkpoint")
            outcomes.append(resume(outcome.run, quiet=True))
            costs.append(_cost(outcomes[-1]))
    code = outcomes[-1].exit_code
    if outcomes[-1].ok:
        subject = Subject(recipe, asked[0], tuple(plugins), folder)
        for line in during("comparing short trainings", run_checks(subject, resolved.data, asked[1])):
            answer.show([str(line)])
            answer.document["checks"].append(line._asdict())
            code = int(ExitCode.TRAINING_FAILED) if line.status == "failed" else code
    called = list(exercised(resolved, [row for cost in costs for row in cost]))
    answer.document["outcomes"] = [one.to_json() for one in outcomes]
    answer.document["hooks"] = [one._asdict() for one in called]
    answer.show([*_report(outcomes, resolved), *(line for one in called for line in one.lines())])
    if outcomes[-1].ok and code:
        answer.show([f"the folder is kept: {folder}"])
    return code


def _cost(outcome: Outcome) -> list[dict[str, Any]]:
    """Return what hooks have cost in the attempt that ended last."""
    from trainrun.rundir.files import read_json  # noqa: PLC0415
    from trainrun.rundir.paths import RunPaths  # noqa: PLC0415

    return list((read_json(RunPaths(Path(outcome.run)).status) or {}).get("cost") or [])


def _faults(inject: Sequence[str]) -> Sequence[Fault]:
    if not inject:
        return ()
    from trainrun.builtin.fault import parse_all  # noqa: PLC0415

    return parse_all(inject)


def _prove(trial: Trial, resolved: Resolved, faults: Sequence[Fault], answer: Answer) -> int:
    from trainrun.cli import expecting, proving  # noqa: PLC0415
    from trainrun.launch.busy import during  # noqa: PLC0415

    resolved.require()
    expecting.check(faults, resolved)
    answer.document["faults"] = []
    wrong, width = 0, max(len(fault.text) for fault in faults)
    for proved in during("injecting a fault", proving.prove(proving.Trial(*trial), resolved, faults)):
        wrong += not proved.well
        answer.show(proved.lines(width))
        answer.document["faults"].append(proved.to_json())
    if wrong:
        answer.show([f"{wrong} of {_faults_of(len(faults))} did not end as expected; the folders are kept: {trial[3]}"])
        return 1
    answer.show([f"ok: {_faults_of(len(faults))}, ended as expected"])
    return 0


def _limit(resolved: Resolved, steps: int) -> str:
    """Return the override that limits the steps.

    A recipe that counts epochs cannot count steps too: there the check votes to stop.
    """
    by_epochs = resolved.data.get("train", {}).get("epochs") is not None
    return f"plugins.{_CHECK}.steps={steps}" if by_epochs else f"train.steps={steps}"


def _remove_unused(folder: Path) -> None:
    """Remove the folder if nothing was started: it holds nothing to look at."""
    if not any(folder.iterdir()):
        folder.rmdir()


def _report(outcomes: Sequence[Outcome], resolved: Resolved) -> Iterator[str]:
    """Describe how the launch and its resume ended.

    The resume is that from its checkpoint, if there was one.
    """
    from trainrun.launch import closing  # noqa: PLC0415
    from trainrun.rundir.paths import RunPaths  # noqa: PLC0415

    first, last = outcomes[0], outcomes[-1]
    if not last.ok:
        yield from filter(None, [closing.trace(last)])
        if last is not first:
            yield f"{first.step} steps succeeded; resuming from their checkpoint failed:"
        yield from closing.lines(last)
        yield f"the folder is kept: {last.run}"
        return
    if resolved.data["launch"]["workers"] == 1:
        batch = resolved.data["train"]["batch_size"]
        yield f"ok: {_steps(first.step)} on 1 CPU worker; {_WORKERS} cannot share train.batch_size = {batch}"
    else:
        yield f"ok: {_steps(first.step)} on {_WORKERS} CPU workers; parameters identical on all workers"
    yield f"ok: {last.step - first.step} more steps from their checkpoint, with new workers"
    yield from closing.faults(RunPaths(Path(last.run)))


def _faults_of(number: int) -> str:
    return f"{number} fault" + "s" * (number != 1)


def _steps(number: int) -> str:
    return f"{number} step" + "s" * (number != 1)


class Exercised(NamedTuple):
    """Which hooks of the task or of a plugin rank 0 called, how often, and which never."""

    instance: str
    called: Mapping[str, int]
    not_called: Sequence[str]

    def lines(self) -> Iterator[str]:
        """Yield what is shown of it."""
        counts = [f"{hook} {calls}" for hook, calls in self.called.items()]
        yield f"{self.instance}: {', '.join(counts) or 'no hook was called'}"
        if self.not_called:
            yield f"  not called: {', '.join(self.not_called)}"


def exercised(resolved: Resolved, cost: Sequence[Mapping[str, Any]]) -> Iterator[Exercised]:
    """Yield which of their hooks were called, for the task and each plugin."""
    called: Counter[tuple[str, str]] = Counter()
    for row in cost:
        called[row["instance"], row["hook"]] += row["calls"]
    for instance in resolved.instances:
        if instance.role == "builtin" or instance.name == _CHECK:
            continue
        impls = resolved.descriptions[instance.target].impls
        hooks = [impl.hook for impl in impls if resolved.specs[impl.hook].locus != "client"]
        counts = {hook: called[instance.name, hook] for hook in hooks if called[instance.name, hook]}
        yield Exercised(instance.name, counts, [hook for hook in hooks if hook not in counts])
