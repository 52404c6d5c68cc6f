"""Standard output holds a command's answer only, whatever plugins and their children print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainrun.cli.main import run
from trainrun.rundir import RunPaths
from trainrun.rundir.create import run_ids
from trainrun.testing.distribution import DistributionInstaller

from .conftest import Trainrun

NOISY = r"""
import atexit, os, subprocess, sys
from trainrun import hookimpl

print("print at import")
os.write(1, b"descriptor at import\n")
os.system("echo child at import")
atexit.register(print, "print at exit")

class Noisy:
    @hookimpl
    def check_recipe(self, recipe):
        print("print in hook")
        print("no end of line", end="", file=sys.__stdout__, flush=True)
        os.write(1, b"\xff\n")
        subprocess.run(["echo", "child in hook"])

    @hookimpl
    def on_launch_start(self, launch):
        print("print in launch")
        print(os.environ["GREETING_TOKEN"])
        os.system("echo child in launch; sleep 60 2>&- & echo $! > sleeper")
        raise RuntimeError("no workers for this one")
"""
AT_IMPORT = ["print at import", "descriptor at import", "child at import"]
IN_HOOK = ["print in hook", "no end of line\ufffd", "child in hook"]


@pytest.fixture
def noisy(recipe: Path) -> Path:
    (recipe.parent / "noisy.py").write_text(NOISY)
    recipe.write_text(recipe.read_text() + '[plugins.noisy]\nuse = "noisy.py:Noisy"\n')
    return recipe


def test_check(noisy: Path, trainrun: Trainrun) -> None:
    done = trainrun("check", noisy.name, "--json")
    assert json.loads(done.stdout)["ok"] is True
    said = [line for line in done.stderr.splitlines() if line in {*AT_IMPORT, *IN_HOOK, "print at exit"}]
    assert said == [*AT_IMPORT, *IN_HOOK, "print at exit"]
    printed = trainrun("check", noisy.name, "--print").stdout
    assert printed.startswith("[run]\n")
    assert "print" not in printed.partition("[plugins")[0]


def test_launch_keeps_it_in_the_run(noisy: Path, trainrun: Trainrun) -> None:
    done = trainrun("launch", noisy.name, "--json", GREETING_TOKEN="welcome")
    sleeper = int((noisy.parent / "sleeper").read_text())
    subprocess.run(["kill", "-9", str(sleeper)], check=True)
    outcome = json.loads(done.stdout)
    assert (outcome["state"], done.returncode) == ("failed", outcome["exit_code"])
    # In the order of the hooks, although Python keeps lines back when it writes into a pipe.
    kept = RunPaths(Path(outcome["run"])).client_output.read_text().splitlines()
    assert kept == [*AT_IMPORT, *IN_HOOK, "print in launch", "welcome", "child in launch"]
    assert set(kept) <= set(done.stderr.splitlines())


@pytest.mark.long
def test_without_json_the_last_lines_are_the_answer(noisy: Path, trainrun: Trainrun) -> None:
    done = trainrun("launch", noisy.name, GREETING_TOKEN="welcome")
    subprocess.run(["kill", "-9", (noisy.parent / "sleeper").read_text().strip()], check=True)
    assert done.stdout.startswith("failed: ")
    assert not {*AT_IMPORT, *IN_HOOK, "print in launch"} & set(done.stdout.splitlines())


def test_reader_that_goes_away_is_no_error(noisy: Path) -> None:
    command = [sys.executable, "-m", "trainrun", "check", noisy.name, "--json"]
    with subprocess.Popen(command, cwd=noisy.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.close()
        said = started.stderr.read().decode()
    assert (started.returncode, "Traceback" in said) == (0, False)


def test_help_goes_to_standard_output(noisy: Path, trainrun: Trainrun) -> None:
    done = trainrun("check", "--help")
    assert done.stdout.startswith("Usage: trainrun check")


def test_within_a_process_streams_and_descriptors_are_given_back(
    noisy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, descriptor = sys.stdout, os.fstat(1)
    assert run(["check", str(noisy)]) == 0
    assert (sys.stdout, os.fstat(1)) == (before, descriptor)
    said = capsys.readouterr()
    assert said.out == f"{noisy}: ok · task tasks/nothing.py · plugins noisy\n"
    assert "print in hook\n" in said.err


def test_installed_command_keeps_its_standard_output(install: DistributionInstaller, trainrun: Trainrun) -> None:
    source = "import click\n@click.command()\ndef greet(): print('hello')\n"
    install("greeting", {"greeting.py": source}, {"greet": "greeting:greet"}, group="trainrun.commands")
    assert trainrun("greet").stdout == "hello\n"


def test_no_run_is_made_for_a_check(noisy: Path, trainrun: Trainrun) -> None:
    assert trainrun("check", noisy.name).returncode == 0
    assert run_ids(noisy.parent / "runs") == []
