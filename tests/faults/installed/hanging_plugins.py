"""Plugins that do not come back, each in another way, and one that is only slow."""

import os
import re
import signal
import time

from trainrun import Field, PluginOptions, hookimpl


class Hanging:
    class Options(PluginOptions):
        rank: int = Field(1, description="The rank that it strikes.")
        at: int = Field(3, description="The step from which on it does.")
        seconds: float = Field(0.1, description="How long the slow one takes.")

    def __init__(self, options):
        self.options = options

    @hookimpl(ranks="all")
    def on_step_start(self, run, step):
        if run.world.rank == self.options.rank and step >= self.options.at:
            self.strike()


class Sleepy(Hanging):
    def strike(self):
        while True:
            time.sleep(3600)


class Spinning(Hanging):
    def strike(self):
        while True:
            pass


class Holding(Hanging):
    """The interpreter's lock is not given to any other thread meanwhile."""

    def strike(self):
        re.match(r"(a|a)*$", "a" * 64 + "b")


class Stopped(Hanging):
    """Stands still outside of its own doing, as by SIGSTOP from a terminal."""

    def strike(self):
        os.kill(os.getpid(), signal.SIGSTOP)


class Killer(Hanging):
    def strike(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Slow(Hanging):
    def strike(self):
        time.sleep(self.options.seconds)


class Crashing(Hanging):
    def strike(self):
        os.kill(os.getpid(), signal.SIGSEGV)
