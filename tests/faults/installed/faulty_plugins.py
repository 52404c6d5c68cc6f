"""Plugins that raise, each in another kind of hook. None of them imports torch."""

import subprocess
import sys
import threading

from trainrun import Field, PluginOptions, hookimpl


class Options(PluginOptions):
    rank: int = Field(-1, description="The only rank that goes wrong; -1: all of them.")
    at: int = Field(3, description="The step at which it goes wrong.")
    ends: bool = Field(False, description="Leave by sys.exit(0) in place of raising.")


class Faulty:
    Options = Options

    def __init__(self, options):
        self.options = options

    def note(self, run):
        """Write the call down where the test finds it."""
        with (run.paths.root / f"calls-{run.name}").open("a") as file:
            file.write(f"{run.world.rank} {run.step}\n")

    def go_wrong(self, run):
        self.note(run)
        if self.options.rank in (-1, run.world.rank) and run.step >= self.options.at:
            if self.options.ends:
                sys.exit(0)
            raise ValueError("the plugin's mistake")


class Event(Faulty):
    @hookimpl
    def on_step_end(self, run):
        self.go_wrong(run)


class Changes(Faulty):
    @hookimpl(mutates=True)
    def on_gradients_ready(self, run):
        self.go_wrong(run)


class Provides(Faulty):
    @hookimpl
    def move_batch(self, run):
        self.go_wrong(run)


class Votes(Faulty):
    @hookimpl
    def should_stop(self, run):
        self.go_wrong(run)


class Wraps(Faulty):
    @hookimpl(wrapper=True)
    def on_step_start(self, run):
        yield
        self.go_wrong(run)


class Observes(Faulty):
    @hookimpl(background=True, ranks="all")
    def on_log(self, run):
        self.go_wrong(run)


class Hangs(Faulty):
    @hookimpl(background=True)
    def on_log(self, run):
        self.note(run)
        threading.Event().wait()


class Keeps(Faulty):
    """Its state cannot be kept."""

    @hookimpl
    def on_step_end(self, run):
        self.note(run)

    def state_dict(self):
        return {"best": 1.0, "inner": {"callback": [1, lambda: None]}}


class Forgets(Faulty):
    def state_dict(self):
        raise ValueError("the plugin's mistake")

    @hookimpl
    def on_step_end(self):
        pass


class Ends(Faulty):
    """Raises when the run is nearly over."""

    @hookimpl
    def on_worker_end(self, run):
        self.go_wrong(run)

    @hookimpl
    def on_exception(self, run):
        self.go_wrong(run)


class Starts(Faulty):
    """Raises in the client, before the workers are started."""

    @hookimpl
    def on_attempt_start(self, launch):
        raise ValueError("the plugin's mistake")


class Watches(Faulty):
    """Raises in the client, while the workers run, each time."""

    poll_interval = 0.05

    @hookimpl
    def on_status(self, launch):
        with (launch.paths.root / "calls-watches").open("a") as file:
            file.write("0 0\n")
        raise ValueError("the plugin's mistake")


class Checks(Faulty):
    """Raises before anything is created."""

    @hookimpl
    def check_recipe(self):
        raise ValueError("the plugin's mistake")


class Spawns(Faulty):
    """Leaves a child on each rank, and a grandchild in a session of its own that nobody waits for."""

    @hookimpl
    def on_worker_start(self):
        subprocess.Popen(["sleep", "1000"])
        subprocess.run(["setsid", "--fork", "sleep", "1000"], check=True)
