"""`trainrun new-plugin`: write a distribution with one plugin, ready to install and to publish."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from trainrun import __version__
from trainrun.cli import scaffold
from trainrun.cli.echo import echo

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$name"
version = "0.1.0"
description = "A plugin for trainrun"
readme = "README.md"
license = "MIT"
license-files = ["LICENSE"]
requires-python = ">=3.11"
dependencies = ["trainrun>=$version"]

[project.optional-dependencies]
test = ["pytest>=9"]

# The name on the left is what recipes say.
[project.entry-points."trainrun"]
$name = "$package:$plugin"

[tool.hatch.build]
dev-mode-dirs = ["src"] # an editable install then needs nothing but hatchling

[tool.hatch.build.targets.wheel]
packages = ["src/$package"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

_SOURCE = '''\
"""$plugin, a plugin for trainrun."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trainrun import Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from trainrun import Run


class ${plugin}Options(PluginOptions):
    """The keys of `[plugins.$name]`."""

    every: int = Field(10, ge=1, live=True, description="Steps between two measurements.")


class $plugin:
    """Log how long an update takes as `$name/seconds`, every few steps."""

    Options = ${plugin}Options
    on_error = "disable"  # it only observes: training continues without it

    def __init__(self, options: ${plugin}Options) -> None:
        self._options = options
        self._began = 0.0
        self._measured = 0

    # `trainrun hooks` lists every hook; take any of its arguments, by name.
    @hookimpl
    def on_step_start(self) -> None:
        self._began = perf_counter()

    # On all ranks, as is this hook's default: with reduce="max" the slowest one counts. A hookimpl for rank 0 only says
    # @hookimpl(ranks="zero"), and must not compute with the model then, whose parts may be on other ranks.
    @hookimpl
    def on_update_end(self, run: Run, skipped: str | None) -> None:
        if run.step % self._options.every == 0 and skipped is None:
            run.log("$name/seconds", perf_counter() - self._began, reduce="max")
            self._measured += 1

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self._measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._measured = state["measured"]
'''

_TEST = '''\
from __future__ import annotations

import pydantic
import pytest
from trainrun.testing import LaunchRecipe, RunRecipe

from $package import ${plugin}Options

RECIPE = """
task.use = "digits"
train = { steps = 4, log_every = 1 }

[plugins.$name]
every = 2
"""


def test_measures_every_few_steps(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE)
    assert result.outcome.ok
    assert list(result.series("$name/seconds")) == [2, 4]


def test_runs_with_two_workers(launch_recipe: LaunchRecipe) -> None:
    result = launch_recipe(RECIPE)
    assert result.outcome.ok
    assert list(result.series("$name/seconds")) == [2, 4]


def test_every_must_be_positive() -> None:
    with pytest.raises(pydantic.ValidationError):
        ${plugin}Options(every=0)
'''

_README = """\
# $name

A plugin for trainrun. It logs how long an update takes, every few steps.

```sh
pip install -e '.[test]'
pytest
trainrun plugins
```

Name it in a recipe:

```toml
[plugins.$name]
every = 10
```

`trainrun hooks train.toml` shows in which process and order it runs. `.github/workflows/ci.yml` runs the tests on
GitHub; `LICENSE` is MIT's: name yourself, or choose another one.
"""

_LICENSE = """\
MIT License

Copyright (c) the authors of $name

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

_WORKFLOW = """\
name: ci
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
          cache: pip
          cache-dependency-path: pyproject.toml
      - run: pip install -e '.[test]'
      - run: pytest
"""

_FILES: Mapping[str, str] = {
    ".github/workflows/ci.yml": _WORKFLOW,
    "LICENSE": _LICENSE,
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
    "src/$package/__init__.py": _SOURCE,
    "src/$package/py.typed": "",
    "tests/test_$package.py": _TEST,
}


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--dir",
    "parent",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Parent of the new folder.  [default: current directory]",
)
def command(name: str, parent: Path) -> None:
    """Create the distribution of a new plugin in the folder NAME.

    It has a working plugin with options, its entry point, a test, a README, a licence and a CI workflow.
    """
    package = scaffold.module_of(name, "new-plugin")
    folder = parent / name
    plugin = "".join(part.capitalize() for part in name.split("-"))
    words = {"name": name, "package": package, "plugin": plugin, "version": __version__}
    scaffold.write(folder, _FILES, words, "new-plugin")
    echo(f"Wrote {folder}. Next:\n  pip install -e '{folder}[test]'\n  pytest {folder}\n  trainrun plugins")
