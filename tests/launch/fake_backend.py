"""A backend plugin that starts `fake_worker.py`; and a task that is never imported by the client."""

from __future__ import annotations

import sys
from pathlib import Path

from trainrun import PluginOptions, hookimpl
from trainrun.launch.local import start


class Fake:
    @hookimpl
    def start_workers(self, launch):
        if launch.recipe.launch.backend != "fake":
            return None
        return start([sys.executable, str(Path(__file__).with_name("fake_worker.py"))], launch)


class Task:
    @hookimpl
    def build_model(self):
        raise NotImplementedError

    @hookimpl
    def build_dataset(self):
        raise NotImplementedError

    @hookimpl
    def training_step(self):
        raise NotImplementedError

    @hookimpl
    def evaluation_step(self):
        raise NotImplementedError


class Hush:
    class Options(PluginOptions):
        token: str

    def __init__(self, options): ...
