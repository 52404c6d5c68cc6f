"""The client's side of a tracker: vetoes before a launch, a process during it, and its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import pydantic

from trainrun.builtin import SMOKE_CHECK
from trainrun.errors import EnvironmentProblem
from trainrun.marker import hookimpl
from trainrun.plugin.instance import Instance
from trainrun.rundir.create import as_argument
from trainrun.rundir.files import append_line
from trainrun.rundir.paths import RunPaths
from trainrun.tracking.tracker import Tracker, TrackerOptions

if TYPE_CHECKING:
    from trainrun.launch.handle import Launch
    from trainrun.recipe import Recipe
    from trainrun.rundir.records import Outcome
    from trainrun.tracking.delivery import TrackerProcess

# What `trainrun smoke` and `verify-resume` add to a run: nothing of such a trial belongs on a server.
_TRIALS = frozenset({SMOKE_CHECK, "trainrun.worker.checkpoint.trail:Trail"})
_SPOOL = "metrics"  # the built-in plugin that writes what is sent


class TrackerPlugin:
    """The base of tracker plugins: a subclass says how its tracker is made, and what it needs.

    Everything runs in the client and in a process next to it. So training knows nothing of the tracker, and the client
    imports nothing of its package.
    """

    Options: ClassVar[type[TrackerOptions]] = TrackerOptions
    on_error = "disable"
    plugin: ClassVar[str]
    """The name of the entry point."""
    needs: ClassVar[Mapping[str, str]] = {}
    """Modules that must be there, and the distributions that bring them."""

    def __init__(self, options: TrackerOptions) -> None:
        self.options: Any = options
        self._process: TrackerProcess | None = None

    def make_tracker(self, name: str, paths: RunPaths) -> Tracker:
        """Return the tracker of instance `name`, for the run in `paths`.

        Called in the tracker's process.
        """
        raise NotImplementedError

    @property
    def is_on(self) -> bool:
        """Whether there is anything to send to."""
        return True

    @classmethod
    def place(cls, options: Any, recipe: Recipe) -> str | None:
        """Describe the destination of an instance with these options.

        Two must not say the same. None: it never clashes. `options` is an `Options` of the same class. What they leave
        out is said as what it comes to, by `recipe`.
        """
        del options, recipe
        return None

    # --- before a launch ---

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> list[str]:
        """Refuse what would come to nothing.

        That is a missing package, or two instances that write to one place.
        """
        return [*self._missing(), *self._clashes(recipe), *self._without_spool(recipe)]

    def _missing(self) -> Iterator[str]:
        for module, distribution in self.needs.items():
            if find_spec(module) is None:
                yield f"the package {module} is not installed; pip install {distribution}"

    def _clashes(self, recipe: Recipe) -> Iterator[str]:
        place = self.place(self.options, recipe)
        names = [name for name, options in self._instances(recipe) if self.place(options, recipe) == place]
        if place is not None and len(names) > 1:
            yield f"{' and '.join(names)} would both write to {place}; give each a place of its own, or leave out one"

    def _instances(self, recipe: Recipe) -> Iterator[tuple[str, TrackerOptions]]:
        """Yield name and options of all instances that are certainly on.

        They are instances of this plugin.
        """
        for name, table in recipe.plugins.items():
            use = table.use or name
            if table.enabled is True and (use == self.plugin or use.endswith(f":{type(self).__qualname__}")):
                try:
                    yield name, self.Options.from_table(table.options)
                except pydantic.ValidationError:
                    continue  # reported elsewhere, by file, line and column

    def _without_spool(self, recipe: Recipe) -> Iterator[str]:
        table = recipe.plugins.get(_SPOOL)
        if table is not None and table.enabled is False:
            yield f"it sends what the built-in plugin {_SPOOL} writes, and that is turned off; leave it on"

    # --- the launch ---

    @hookimpl
    def on_launch_start(self, launch: Launch) -> None:
        """Start the tracker's process."""
        from trainrun.tracking.delivery import TrackerProcess  # noqa: PLC0415 - it imports this module
        from trainrun.tracking.process import Order  # noqa: PLC0415

        if not self.is_on or any(instance.target in _TRIALS for instance in launch.resolved.instances):
            return
        if not any(instance.name == _SPOOL for instance in launch.resolved.instances):
            raise EnvironmentProblem(f"the built-in plugin {_SPOOL} is turned off, so that there is nothing to send")
        options, resumed = self.options, launch.attempt > 0
        order = Order(str(launch.paths.root), self._own(launch), resumed, options.interval, options.deadline)
        self._process = TrackerProcess(launch.paths, order)

    @hookimpl
    def on_completed(self, outcome: Outcome, launch: Launch | None) -> None:
        """Have the rest sent, and how the run ended. All trackers do so at once."""
        if self._process is not None and launch is not None:
            self._process.end(outcome)

    @hookimpl
    def on_launch_end(self, launch: Launch, outcome: Outcome) -> None:
        """Wait for that, and say so if it did not succeed."""
        if self._process is None:
            return
        self._process.end(outcome)
        delivery = self._process.join()
        if not delivery.complete:
            reason = f"{delivery.name}: {delivery}; trainrun sync {as_argument(launch.paths)} sends the rest"
            append_line(launch.paths.events, {"event": "warning", "time": time.time(), "reason": reason})

    def _own(self, launch: Launch) -> Instance:
        """Return this very instance.

        Two of one plugin always differ in their options, otherwise `check_recipe` has refused.
        """
        for instance in launch.resolved.instances:
            mine = instance.plugin == self.plugin or instance.target.endswith(f":{type(self).__qualname__}")
            if mine and self.Options.from_table(instance.options) == self.options:
                return instance
        raise EnvironmentProblem(f"no instance of {self.plugin} in this run has these options")
