from __future__ import annotations

import importlib
import os
import subprocess
import sys

from trainrun.plugin.discovery import discover
from trainrun.testing import DistributionInstaller, RunRecipe

PLUGIN = """
    from trainrun import hookimpl

    class Watcher:
        @hookimpl
        def on_update_end(self, run):
            run.log("watched", run.step, reduce="last")
"""
RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 2, batch_size = 16, log_every = 1 }
plugins.watcher-of-steps = {}
"""


def test_it_is_found_and_imported(install_distribution: DistributionInstaller) -> None:
    install_distribution("watchers", {"watchers/__init__.py": PLUGIN}, {"watcher": "watchers:Watcher"}, version="2.5")
    (entry,) = discover().plugins["watcher"]
    assert (entry.distribution, entry.version, entry.value) == ("watchers", "2.5", "watchers:Watcher")
    assert importlib.import_module("watchers").Watcher


def test_other_processes_find_it_too(install_distribution: DistributionInstaller) -> None:
    install_distribution("one", {"module_one.py": ""}, {})
    install_distribution("two", {"module_two.py": ""}, {})
    subprocess.run([sys.executable, "-c", "import module_one, module_two"], check=True)


def test_a_recipe_can_name_it(install_distribution: DistributionInstaller, run_recipe: RunRecipe) -> None:
    install_distribution("watchers", {"watchers.py": PLUGIN}, {"watcher-of-steps": "watchers:Watcher"})
    assert run_recipe(RECIPE).series("watched") == {1: 1, 2: 2}


def test_removing_it_forgets_its_modules(install_distribution: DistributionInstaller) -> None:
    site = install_distribution("one", {"module_one.py": "value = 1"}, {})
    importlib.import_module("module_one")
    assert str(site) in os.environ["PYTHONPATH"]
    install_distribution.remove()
    assert "module_one" not in sys.modules


def test_nothing_of_other_tests_is_left() -> None:
    assert "watcher" not in discover().plugins
    assert "watchers" not in sys.modules
