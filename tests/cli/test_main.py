from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from trainrun.cli import main as module
from trainrun.cli import reporting
from trainrun.cli.main import COMMANDS, cli, main, run
from trainrun.errors import PluginProblem, Problem, TrainingError, TrainrunError, UsageError

TRAINRUN = [sys.executable, "-m", "trainrun.cli.main"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Make `trainrun ps` do something else."""

    def install(function: Callable[[], object]) -> None:
        from trainrun.cli import ps

        monkeypatch.setattr(ps, "command", click.Command("ps", callback=function))

    return install


def raiser(error: BaseException) -> Callable[[], object]:
    def call() -> object:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong"), 2),
        (PluginProblem([Problem("plugin x", "wrong")]), 4),
        (TrainingError("wrong"), 1),
        (TrainrunError("wrong"), 3),
        (click.UsageError("wrong"), 2),
    ],
)
def test_errors_become_a_message_and_an_exit_code(
    command: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
) -> None:
    command(raiser(error))
    assert run(["ps"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert "wrong" in shown.err
    assert "Traceback" not in shown.err


def test_keyboard_interrupt(
    command: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raiser(KeyboardInterrupt()))
    assert run(["ps"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_bug_leaves_a_report_that_only_its_user_can_read(
    command: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command(raiser(KeyError("oops")))
    assert run(["ps"]) == 3
    shown = capsys.readouterr().err
    assert "a bug in trainrun: KeyError: 'oops'" in shown
    assert "Traceback" not in shown
    report = Path(shown.strip().rpartition("the report is ")[2])
    assert "KeyError: 'oops'" in report.read_text()
    assert stat.S_IMODE(report.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", [UsageError, ValueError])
def test_a_message_of_50_mb_is_cut_and_the_report_has_it_all(
    command: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: type[Exception],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command(raiser(kind("\x1b]0;OWNED\x07" + "x" * 50_000_000)))
    run(["ps"])
    shown = capsys.readouterr().err
    assert len(shown) < 5000
    assert "\\u001b]0;OWNED\\u0007xxx" in shown
    (report,) = tmp_path.glob("trainrun-crash-*/crash.txt")
    assert str(report) in shown
    assert report.stat().st_size > 50_000_000


def test_bug_without_a_place_for_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise PermissionError("read-only")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    assert "ValueError: x" in str(reporting.write_crash_log(ValueError("x")))


def test_near_names_are_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lunch"]) == 2
    assert "Did you mean 'launch'?" in capsys.readouterr().err
    assert run(["launch", "--overide", "a=1"]) == 2
    assert "'--override'?)" in capsys.readouterr().err
    assert run(["train.toml"]) == 2
    assert "did you mean `trainrun launch train.toml`?" in capsys.readouterr().err


def test_help_names_every_command_and_imports_none() -> None:
    script = """
import sys
from trainrun.cli.main import COMMANDS, run
code = run(["--help"])
assert not {module for module, _ in COMMANDS.values()} & set(sys.modules), sorted(sys.modules)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(f"  {name}" in done.stdout for name in COMMANDS)


def test_short_helps_agree_with_the_commands() -> None:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help


def test_version() -> None:
    done = subprocess.run([*TRAINRUN, "-V"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("trainrun 0.")


def test_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    script = "import sys; from trainrun.cli.main import *; import click\n"
    script += "cli.add_command\nfrom trainrun.cli import ps\n"
    script += "ps.command = click.Command('ps', callback=lambda: [click.echo('x' * 99) for _ in range(9999)])\n"
    script += "main(['ps'])"
    started = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.readline()
    started.stdout.close()
    error = started.stderr.read()
    started.stderr.close()
    assert (started.wait(30), error) == (0, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [("--version", 0), ("ps", 0), ("nonsense", 2)])
def test_closed_streams(tmp_path: Path, closed: str, command: str, code: int) -> None:
    script = f'exec "$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *TRAINRUN, command], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("choice", "environment", "coloured"),
    [
        ("always", {}, True),
        ("never", {"FORCE_COLOR": "1"}, False),
        ("auto", {}, False),
        ("auto", {"FORCE_COLOR": "1"}, True),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colour(choice: str, environment: dict[str, str], coloured: bool) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    done = subprocess.run(
        [*TRAINRUN, "--color", choice, "why", "nothing", "--dir", "nowhere"],
        capture_output=True,
        text=True,
        env={**clean, **environment},
        check=False,
    )
    assert done.returncode == 2
    assert ("\x1b[" in done.stderr) == coloured


def test_installed_commands_come_after_our_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "extra_commands.py").write_text(
        "import click\n@click.command()\ndef hello():\n    click.echo('hello there')\nnot_one = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {
        "hello": ("extra", "extra_commands:hello"),
        "launch": ("extra", "extra_commands:hello"),
        "broken": ("extra", "extra_commands:missing"),
        "wrong": ("extra", "extra_commands:not_one"),
    }
    monkeypatch.setattr(module, "installed_commands", lambda: found)
    assert run(["hello"]) == 0
    assert capsys.readouterr().out == "hello there\n"
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "From extra." in shown
    assert shown.count("  launch ") == 1
    assert run(["broken"]) == 4
    assert "command broken of extra (extra_commands:missing) cannot be loaded" in capsys.readouterr().err
    assert run(["wrong"]) == 4
    assert "is no click command" in capsys.readouterr().err


@pytest.fixture
def restore_signals() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("restore_signals")
def test_main_leaves_with_the_exit_code() -> None:
    with pytest.raises(SystemExit) as left:
        main(["nonsense"])
    assert left.value.code == 2


# --- errors as JSON ---


def with_json() -> list[str]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in COMMANDS}
    return [
        name for name, one in found.items() if one is not None and any("--json" in part.opts for part in one.params)
    ]


def test_json_is_offered_wherever_something_is_reported() -> None:
    assert {"launch", "resume", "check", "smoke", "verify-resume", "ps", "status", "logs"} <= set(with_json())


@pytest.mark.parametrize("name", with_json())
def test_wrong_command_line_is_a_document(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--json", "--zzzzzz"]) == 2
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert (document["version"], document["ok"], document["exit_code"]) == (1, False, 2)
    assert document["problems"] == [
        {"where": f"trainrun {name}", "what": "No such option '--zzzzzz'.", "hint": f"see `trainrun {name} --help`"}
    ]
    assert shown.err.startswith("error: No such option '--zzzzzz'.")


@pytest.mark.parametrize(
    "arguments",
    [["launch", "wrong.toml"], ["smoke", "wrong.toml"], ["verify-resume", "wrong.toml", "--at", "1", "--steps", "2"]],
    ids=lambda one: one[0],
)
def test_wrong_recipe_is_a_document(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.toml").write_text('[task]\nuse = "nothing.py"\n[train]\nsteps = 1\nstepz = 3\n')
    assert run([*arguments, "--json"]) == 2
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert (document["ok"], document["exit_code"]) == (False, 2)
    assert {"where": "wrong.toml:5:1", "what": "train.stepz: unknown key", "hint": "did you mean 'steps'?"} in document[
        "problems"
    ]
    assert "wrong.toml:5:1: train.stepz: unknown key" in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.toml"]


@pytest.mark.parametrize(
    ("error", "code", "what"),
    [
        (TrainingError("wrong"), 1, "wrong"),
        (KeyError("oops"), 3, "a bug in trainrun: KeyError: 'oops'"),
        (OSError(28, "No space left on device", "x"), 4, "x cannot be written: No space left on device"),
    ],
)
def test_other_errors_are_documents_too(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    what: str,
) -> None:
    from trainrun.cli import ps

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    option = click.Option(["--json"], is_flag=True)
    monkeypatch.setattr(ps, "command", click.Command("ps", callback=lambda json: raiser(error)(), params=[option]))
    assert run(["ps", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert (document["exit_code"], document["problems"][0]["what"]) == (code, what)
