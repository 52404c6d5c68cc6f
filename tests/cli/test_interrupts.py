"""Signals in the first moments of a command: real ones, at chosen events of the interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainrun import interrupts
from trainrun.errors import ExitCode

Call = Callable[..., subprocess.CompletedProcess[str]]

# Sends a signal to its own process at an audit event: an import, a file that is opened, a process that is started.
# Counted from the first instruction after which the command handles signals, which is the import of the command line.
SITE = """
import os, sys
at = os.environ.pop("SIGNAL_AT", None)
if at is not None:
    number, moment = map(int, at.split(":"))
    def watch(event, arguments, seen=[0]):
        if seen[0] or (event == "import" and arguments[0] == "trainrun.cli.main"):
            seen[0] += 1
            if seen[0] == moment:
                os.kill(os.getpid(), number)
            if moment == 0 and event == "subprocess.Popen":
                with open(os.environ["COUNTED"], "a") as file:
                    file.write(f"{seen[0]} {arguments[0]}\\n")
    sys.addaudithook(watch)
"""
ROOT = Path(__file__).resolve().parents[2]
RIGHT = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(SITE)
    return folder


@pytest.fixture(scope="module")
def call(site: Path) -> Call:
    """Run `trainrun` with a signal at a moment; with the moment 0, note when processes are started, and send none."""
    recipe = ROOT / "train.toml"
    environment = {**os.environ, "TRAINRUN_CACHE_DIR": str(site / "cache"), "COUNTED": str(site / "counted")}

    def run(
        command: str, *arguments: str, at: int, number: int = 1, cwd: Path = site
    ) -> subprocess.CompletedProcess[str]:
        given = [] if command == "resume" else [str(recipe)]
        return subprocess.run(
            [sys.executable, "-m", "trainrun", command, *given, *arguments],
            env={**environment, "PYTHONPATH": str(site), "SIGNAL_AT": f"{int(number)}:{at}"},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )

    return run


def started(folder: Path, name: str) -> int:
    """The moment at which the command that was run last started the program `name`."""
    lines = (line.split() for line in reversed((folder / "counted").read_text().splitlines()))
    return next(int(moment) for moment, program in lines if Path(program).name.startswith(name))


def ends(call: Call, *arguments: str, until: int, cwd: Path) -> list[tuple[signal.Signals, int, int, str]]:
    """Signal, moment, exit code and output, of one call for each of some moments."""
    cases = [(number, 1 + until * place // (len(RIGHT) - 1)) for place, number in enumerate(RIGHT)]

    def one(case: tuple[signal.Signals, int]) -> tuple[signal.Signals, int, int, str]:
        done = call(*arguments, at=case[1], number=case[0], cwd=cwd)
        return *case, done.returncode, done.stdout + done.stderr

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, cases))


def test_commands_end_with_the_right_code_from_the_first_instruction_on(call: Call, site: Path, tmp_path: Path) -> None:
    assert call("check", at=0, cwd=tmp_path).returncode == 0  # it describes the plugins: the others have less to do
    made = call("launch", "-o", "train.steps=2", at=0, cwd=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    until = started(site, "git")  # for the manifest, when the run's folder has just been made
    run = (tmp_path / "runs/latest").resolve().name
    commands = {"launch": until * 3 // 4, "check": until // 3, "smoke": until // 3}
    for command, last in commands.items():
        for number, moment, code, output in ends(call, command, "-o", "train.steps=2", until=last, cwd=tmp_path):
            saved = "\ncheckpoint: " in output and number != signal.SIGINT  # workers were faster: nothing is lost
            assert code == (75 if saved else RIGHT[number]), f"{command}: {number.name} at {moment}: {output}"
            assert "Traceback" not in output
    for number, moment, code, output in ends(call, "resume", run, until=until // 3, cwd=tmp_path):
        # It has a checkpoint: a stop loses nothing.
        assert code == (130 if number == signal.SIGINT else 75), f"resume: {number.name} at {moment}: {output}"
        assert "Traceback" not in output
    for run in (tmp_path / "runs").iterdir():
        assert (run / "outcome.json").exists()


def test_an_interrupt_that_python_turns_into_another_error_is_no_bug(tmp_path: Path) -> None:
    """A class that is being created makes a RuntimeError of it; a callback of a weak reference drops it."""
    for body in (BECOMES_ANOTHER, IS_DROPPED):
        (tmp_path / "task.py").write_text(body)
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 143, done.stdout + done.stderr
        assert "a bug in trainrun" not in done.stderr


BECOMES_ANOTHER = """
import os, signal
class Field:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGTERM)
class Task:
    field = Field()
"""
IS_DROPPED = """
import os, signal, weakref
class Thing: pass
thing = Thing()
kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
del thing
"""
PROGRAM = """
import click
from trainrun import interrupts
from trainrun.cli import main as module
interrupts.install()
@click.command("ps")
def command():
    import task
module.COMMANDS["ps"] = ("fake", "")
import types
sys.modules["fake"] = types.SimpleNamespace(command=command)
module.main(["ps"])
"""


@pytest.fixture
def restored() -> Iterator[None]:
    numbers = (*RIGHT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("restored")
def test_a_signal_is_noted_until_it_may_interrupt() -> None:
    handler = interrupts.install()
    assert interrupts.current() is handler
    os.kill(os.getpid(), signal.SIGHUP)
    assert not handler.pending
    with pytest.raises(KeyboardInterrupt):
        handler.arm(ExitCode.RESUMABLE)
    assert (handler.pending, handler.code) == (True, ExitCode.RESUMABLE)
    os.kill(os.getpid(), signal.SIGINT)  # one of a burst: the end is on its way
    assert handler.code == ExitCode.RESUMABLE


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(("number", "code"), RIGHT.items())
def test_the_code_is_that_of_the_first_signal(number: signal.Signals, code: int) -> None:
    handler = interrupts.install()
    handler.arm()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert handler.code == code == {130: ExitCode.INTERRUPTED, 143: ExitCode.TERMINATED}[code]


@pytest.mark.usefixtures("restored")
def test_a_run_takes_over_what_was_noted_before_it() -> None:
    from trainrun.launch.signals import Signals

    interrupts.install()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    with Signals(60.0, {signal.SIGUSR1: "checkpoint", signal.SIGUSR2: "stop"}) as signals:
        assert signals.first == signal.SIGTERM
        assert [asked.request for asked in iter(signals.asked, None)] == ["checkpoint", "stop"]
    handler = interrupts.current()
    assert handler is not None
    assert not handler.pending


@pytest.mark.usefixtures("restored")
def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts.install()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    interrupts.ignore()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_second_signal_ends_an_import_that_hangs(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, time; from trainrun import interrupts\n"
        "handler = interrupts.install(); os.kill(os.getpid(), signal.SIGTERM)\n"
        "while time.monotonic() - handler._noted_at <= interrupts._AGAIN: time.sleep(0.05)\n"
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 143
