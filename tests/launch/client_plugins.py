"""Plugins with client hooks, for the tests of the launch."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from trainrun import PluginOptions, hookimpl


class Options(PluginOptions):
    log: str
    fail_in: str = ""
    interrupt_in: str = ""
    presses: int = 1
    slow_in: str = ""


class Recorder:
    """Writes each client hook it sees to a file, and raises in the one that it is told to raise in."""

    Options = Options
    poll_interval = 0.01

    def __init__(self, options: Options) -> None:
        self._options = options

    def _note(self, hook: str, **values: object) -> None:
        with Path(self._options.log).open("a") as file:
            file.write(json.dumps({"hook": hook, "pid": os.getpid(), **values}) + "\n")
        if hook == self._options.interrupt_in:
            for _ in range(self._options.presses):
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60 if self._options.presses > 1 else 0)
        if hook == self._options.slow_in:
            time.sleep(0.5)
        if hook == self._options.fail_in:
            raise ValueError(f"raised on purpose in {hook}")

    @hookimpl
    def check_recipe(self, recipe):
        self._note("check_recipe", steps=recipe.train.steps)
        return ["no thirteen", "really not"] if recipe.train.steps == 13 else None

    @hookimpl
    def on_package_start(self, launch):
        self._note("on_package_start")

    @hookimpl
    def on_package_end(self, launch, snapshot):
        self._note("on_package_end", files=sorted(path.name for path in Path(snapshot).rglob("*.py")))

    @hookimpl
    def on_launch_start(self, launch):
        self._note("on_launch_start", run_id=launch.run_id, frozen=launch.paths.recipe.exists())

    @hookimpl
    def on_attempt_start(self, attempt):
        self._note("on_attempt_start", attempt=attempt)

    @hookimpl
    def on_status(self, status, previous):
        if status != previous:
            self._note("on_status", step=status["step"])

    @hookimpl
    def on_attempt_end(self, attempt, outcome):
        self._note("on_attempt_end", attempt=attempt, state=outcome.state)

    @hookimpl
    def on_completed(self, outcome, locus):
        self._note("on_completed", locus=locus, state=outcome.state)

    @hookimpl
    def on_launch_end(self, launch, outcome):
        self._note("on_launch_end", state=outcome.state, written=launch.paths.outcome.exists())


class Lasting(Recorder):
    """The same, as an observer that is turned off when it raises."""

    on_error = "disable"
