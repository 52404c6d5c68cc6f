"""Running a recipe in a test: in the test's own process, on ranks forked from it, or with real workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainrun.checkpoint import choose
from trainrun.errors import ExitCode, TrainrunError
from trainrun.launch.handle import Launch
from trainrun.launch.launch import launch
from trainrun.launch.manifest import write_manifest
from trainrun.launch.preflight import Placement
from trainrun.launch.prepare import prepare
from trainrun.plugin.resolve import resolve
from trainrun.recipe import Recipe
from trainrun.recipe.freeze import toml_value
from trainrun.rundir import Outcome, RunPaths
from trainrun.rundir.files import write_json
from trainrun.testing.ranks import ForkedRanks, RankError
from trainrun.testing.result import Result
from trainrun.testing.targets import LivePlugins, importable_target, plugin_name, unload
from trainrun.worker.main import train
from trainrun.worker.signals import Inbox, user_signals
from trainrun.worker.ties import Ties
from trainrun.worker.world import World

if TYPE_CHECKING:
    import pytest

RecipeLike = str | Mapping[str, Any] | Path


_SAVES_NOTHING = "checkpoint.at_end=false"


class RunRecipe:
    """Trains in the test's own process, as the only rank and without a client, so that a debugger sees everything.

    Client hooks are not called. Files are below `folder`.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._prepared = Prepared(folder / "run_recipe", monkeypatch)

    def __call__(
        self,
        recipe: RecipeLike,
        *plugins: object,
        task: object | None = None,
        overrides: Sequence[str] = (),
        fails: bool = False,
    ) -> Result:
        """Run `recipe` and return the result.

        recipe: TOML text, a plain dict, or the path of a recipe.
        plugins: what to enable beyond the recipe: names of installed plugins, or classes, modules and instances,
            also from within the test. StepCounter is called `step-counter`, and gets the options of that table.
        task: stands in for the recipe's task; a class, module or instance, or what the recipe could name.
        overrides: as with `-o`. Without `checkpoint.at_end=true` among them nothing is saved at the end.
        fails: expect it to fail, and put what it raises into the result; otherwise that is raised here.
        """
        paths = self._prepared(recipe, plugins, task, overrides, Placement(1, {})).paths
        try:
            outcome = train(paths)
        except Exception as error:
            if not fails:
                raise
            return Result(_failed(error), paths, error)
        return _as_expected(Result(outcome, paths), fails=fails)

    def close(self) -> None:
        """Forget what was loaded."""
        self._prepared.close()


class ForkRecipe:
    """Trains on ranks that are forked from the test's own process: several of them, in milliseconds.

    Client hooks are not called, and what a plugin keeps in memory stays in its rank. A signal that a rank sends itself
    is taken as a worker would take it: `os.kill(os.getpid(), signal.SIGTERM)` stops the run. Files are below `folder`.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._prepared = Prepared(folder / "fork_recipe", monkeypatch)
        self._ranks = ForkedRanks(folder)

    def __call__(
        self,
        recipe: RecipeLike,
        *plugins: object,
        task: object | None = None,
        overrides: Sequence[str] = (),
        workers: int = 2,
        after: Result | None = None,
        report: Callable[[], Any] = lambda: None,
        fails: bool = False,
    ) -> Result:
        """Run `recipe` on `workers` ranks of one node, and return the result.

        after: the result of a run to resume in another attempt, from its newest good checkpoint.
        report: called on each rank after training; what it returns, pickled, is in the result's `reports`.
        fails: expect it to fail, and put the `RankError` of a rank into the result; otherwise that is raised here.
        The other arguments are those of `RunRecipe`.
        """
        launch = self._prepared(recipe, plugins, task, overrides, Placement(workers, {}))
        attempt, paths = 1, launch.paths
        if after is not None:
            attempt, paths = next_attempt(after.paths), after.paths
            write_manifest(replace(launch, paths=paths))

        def job(rank: int) -> tuple[Outcome, Any]:
            world = World(rank, rank, 0, workers, workers, 1)
            inbox = Inbox(users=user_signals(launch.recipe.launch))
            inbox.install()
            return train(paths, world=world, attempt=attempt, ties=Ties(inbox=inbox)), report()

        answers = self._ranks(job, workers)
        errors = [answer for answer in answers if isinstance(answer, RankError)]
        if errors:
            first = min(errors, key=lambda error: error.at)  # the others' are consequences of it
            if not fails:
                raise first
            return Result(_failed(first), paths, first)
        reports = [report for _, report in answers]
        return _as_expected(Result(answers[0][0], paths, reports=reports), fails=fails)

    def close(self) -> None:
        """Forget what was loaded."""
        self._prepared.close()


class Prepared:
    """Does what a client does before it starts workers: resolves a recipe and writes it into a run directory.

    Plugins may be classes and instances of the test's own, which only this process and its forks know.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._folder.mkdir()
        self._monkeypatch = monkeypatch
        self._live = LivePlugins(self._folder, monkeypatch)

    def __call__(
        self,
        recipe: RecipeLike,
        plugins: Sequence[object],
        task: object | None,
        overrides: Sequence[str],
        placement: Placement,
    ) -> Launch:
        names, settings = enabling(plugins, task, self._live.target)
        path = write_recipe(self._folder, recipe)
        settings += [f"launch.workers={placement.workers}", "train.device=cpu", _SAVES_NOTHING, *overrides]
        resolved = resolve(path, settings, names)
        resolved.require()
        typed = Recipe.from_data(resolved.data)
        launch = prepare(typed, resolved, placement, self._folder / "runs", (), quiet=True)
        for variable, value in launch.environment.items():
            self._monkeypatch.setenv(variable, value)
        return launch

    def close(self) -> None:
        """Forget what was loaded."""
        unload(self._folder)


def next_attempt(paths: RunPaths) -> int:
    """Number an attempt that resumes, and choose its checkpoint.

    A client does the same.
    """
    attempt = next(number for number in itertools.count(2) if not paths.attempt(number).exists())
    paths.attempt(attempt).mkdir(parents=True)
    checkpoint = choose(paths.checkpoints).path
    write_json(paths.start(attempt), {"checkpoint": None if checkpoint is None else str(checkpoint)})
    return attempt


class LaunchRecipe:
    """Trains with two real workers, exactly as `trainrun launch` does. Files are below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "launch_recipe"
        self._folder.mkdir()

    def __call__(
        self,
        recipe: RecipeLike,
        *plugins: object,
        task: object | None = None,
        overrides: Sequence[str] = (),
        workers: int = 2,
    ) -> Result:
        """Launch `recipe`, wait for its end, and return the result.

        A run that failed says so in its `outcome`. The arguments are those of `RunRecipe`, but workers must be able to
        import what is passed: classes and modules from files, no instances. Raises what `trainrun.launch` raises before
        anything is started.
        """
        names, settings = enabling(plugins, task, importable_target)
        path = write_recipe(self._folder, recipe)
        fixed = [f"launch.workers={workers}", "train.device=cpu", "launch.max_restarts=0", _SAVES_NOTHING]
        settings = [*settings, *fixed, *overrides]
        outcome = launch(path, settings, names, dir=self._folder / "runs", quiet=True)
        return Result(outcome, RunPaths(Path(outcome.run)))


def write_recipe(folder: Path, recipe: RecipeLike) -> Path:
    """Return the path of the recipe.

    Text and dicts are written into `folder`.
    """
    if isinstance(recipe, Path):
        return recipe
    text = recipe if isinstance(recipe, str) else "".join(_lines(recipe))
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def enabling(
    plugins: Iterable[object], task: object | None, target: Callable[[object], str]
) -> tuple[list[str], list[str]]:
    """Return what enables the plugins of a call.

    These are names as for `-p`, and overrides as for `-o`.
    """
    names = [plugin for plugin in plugins if isinstance(plugin, str)]
    own = [plugin for plugin in plugins if not isinstance(plugin, str)]
    settings = [f"plugins.{plugin_name(plugin)}.use={toml_value(target(plugin))}" for plugin in own]
    if task is not None:
        settings.append(f"task.use={toml_value(task if isinstance(task, str) else target(task))}")
    return names, settings


def _lines(recipe: Mapping[str, Any]) -> Iterable[str]:
    return (f"{toml_value(key)} = {toml_value(value)}\n" for key, value in recipe.items())


def _as_expected(result: Result, *, fails: bool) -> Result:
    outcome = result.outcome
    assert not fails, f"the run was expected to fail, and it {outcome.state}: {outcome.reason}"
    return result


def _failed(error: Exception) -> Outcome:
    code = error.exit_code if isinstance(error, TrainrunError) else ExitCode.TRAINING_FAILED
    return Outcome("failed", code, f"{type(error).__name__}: {error}")
