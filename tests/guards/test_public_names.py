"""The public names are few, are all there, and change on purpose."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys

import pytest

import trainrun

PUBLIC = [
    "Duration",
    "EnvironmentProblem",
    "ExitCode",
    "Field",
    "HookFailed",
    "Launch",
    "Outcome",
    "PluginOptions",
    "PluginProblem",
    "Problem",
    "Recipe",
    "RecipeError",
    "Run",
    "TrainingError",
    "TrainrunError",
    "UsageError",
    "World",
    "__version__",
    "hookimpl",
    "hookspec",
    "launch",
    "read_metrics",
    "resume",
    "runs",
    "status",
]


def test_public_names_are_these() -> None:
    assert trainrun.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_is_there_and_documented(name: str) -> None:
    found = getattr(trainrun, name)
    assert name == "__version__" or found.__doc__
    assert name in dir(trainrun)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'lunch'"):
        trainrun.lunch  # noqa: B018


def test_launch_stays_a_function_when_its_subpackage_is_imported() -> None:
    source = (
        "import trainrun, trainrun.launch.launch; assert callable(trainrun.launch); assert callable(trainrun.launch)"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0


def test_the_package_is_typed() -> None:
    assert importlib.resources.files(trainrun).joinpath("py.typed").is_file()
