"""`trainrun`: finds the command, and is the one door through which errors become messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click
from click.shell_completion import CompletionItem

from trainrun import __version__, interrupts
from trainrun.cli import options, reporting
from trainrun.errors import EnvironmentProblem, ExitCode, Problem, TrainrunError, described
from trainrun.printing import inline, shorten
from trainrun.rundir.secrets import session

# Name, module and one line of help: `trainrun --help` imports no command.
COMMANDS: dict[str, tuple[str, str]] = {
    "launch": ("trainrun.cli.launch", "Train a model from a recipe."),
    "resume": ("trainrun.cli.resume", "Resume a run from its last checkpoint."),
    "check": ("trainrun.cli.check", "Check a recipe and everything it names."),
    "hooks": ("trainrun.cli.hooks", "List hooks, and what a recipe runs in each."),
    "plugins": ("trainrun.cli.plugins", "List the installed plugins."),
    "init": ("trainrun.cli.init", "Write a commented recipe."),
    "schema": ("trainrun.cli.schema", "Print the JSON Schema of recipes, for editors."),
    "new-plugin": ("trainrun.cli.new_plugin", "Create the distribution of a new plugin."),
    "new-task": ("trainrun.cli.new_task", "Create a new task with recipe and test."),
    "smoke": ("trainrun.cli.smoke", "Run a few steps with every feature enabled, for CI."),
    "verify-resume": ("trainrun.cli.verify_resume", "Check that a resumed run is bit for bit the same."),
    "ps": ("trainrun.cli.ps", "List runs."),
    "status": ("trainrun.cli.status", "Show the state of a run, and what its plugins cost."),
    "watch": ("trainrun.cli.watch", "Watch a run live."),
    "logs": ("trainrun.cli.logs", "Show the logs and output of a run."),
    "stop": ("trainrun.cli.stop", "Ask a run to stop."),
    "checkpoints": ("trainrun.cli.checkpoints", "List a run's checkpoints, verify them, export weights."),
    "why": ("trainrun.cli.why", "Explain a run: decisions, errors, restarts, outcome."),
    "completion": ("trainrun.cli.completion", "Print the completion script for a shell."),
    "sync": ("trainrun.cli.sync", "Upload metrics that trackers have missed."),
    "doctor": ("trainrun.cli.doctor", "Check this machine and suggest fixes."),
}


_ARMS_ITSELF = {"resume"}  # once it knows the run: what SIGTERM ends it with depends on the checkpoints

_LIMITS = {
    errno.EMFILE: "ulimit -n (open files)",
    errno.ENFILE: "the system's limit of open files",
    errno.EAGAIN: "ulimit -u (processes and threads)",
}
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class LazyGroup(click.Group):
    """Imports a command when it is called. Installed ones, of the group `trainrun.commands`, come after our own."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [*COMMANDS, *(name for name in installed_commands() if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name in COMMANDS:
            command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
            return command
        found = installed_commands().get(cmd_name)
        return None if found is None else _load(cmd_name, found)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            found = super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            if args[0].endswith(".toml"):
                raise click.UsageError(
                    f"no such command; did you mean `trainrun launch {shlex.quote(args[0])}`?", ctx
                ) from None
            # click looks for a near name among the commands that it has been given, and this group is given none.
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=self.list_commands(ctx), ctx=ctx
            ) from None
        if (handler := interrupts.current()) is not None and found[0] not in _ARMS_ITSELF:
            handler.arm()
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(_rows())

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names of commands without importing them.

        click's own way would import them for their help.
        """
        found = [CompletionItem(name, help=text) for name, text in _rows() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader has seen enough, as in `trainrun ps | head`
            _close_stdout()
            return None
        except TrainrunError as error:
            if ctx.meta.get(options.TRACEBACK):
                reporting.show_tracebacks(error)
            raise


def _rows() -> list[tuple[str, str]]:
    """Name and help of each command, in the order of `--help`."""
    installed = installed_commands().items()
    others = [(inline(name), f"From {inline(found[0])}.") for name, found in installed if name not in COMMANDS]
    return [*((name, COMMANDS[name][1]) for name in COMMANDS), *others]


def installed_commands() -> dict[str, tuple[str, str]]:
    """Map the commands that plugins bring to distribution and target.

    Of two with one name the first counts.
    """
    from trainrun.plugin.discovery import discover  # noqa: PLC0415 - not needed for a command of our own

    return {name: (entries[0].distribution, entries[0].value) for name, entries in discover().commands.items()}


def _load(name: str, found: tuple[str, str]) -> click.Command:
    from trainrun.plugin.targets import load  # noqa: PLC0415

    distribution, target = found
    try:
        command = load(target)
    except (Exception, SystemExit) as error:
        from trainrun.plugin.import_errors import summary  # noqa: PLC0415

        what = f"cannot be loaded: {summary(error)}"
        raise EnvironmentProblem(f"command {name} of {distribution} ({target}) {what}") from error
    if not isinstance(command, click.Command):
        raise EnvironmentProblem(f"command {name} of {distribution}: {target} is no click command")
    return command


def _choose_color(ctx: click.Context, _: click.Parameter, value: str) -> str:
    """Set the colour for click and other writers to the terminal.

    The others get it through the environment.
    """
    if value != "auto":
        on = value == "always"
        os.environ.pop("NO_COLOR" if on else "FORCE_COLOR", None)
        os.environ["FORCE_COLOR" if on else "NO_COLOR"] = "1"
    ctx.color = reporting.colored()
    return value


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", message="trainrun %(version)s")
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    callback=_choose_color,
    is_eager=True,
    expose_value=False,
    help="Colour the output; auto depends on the terminal, NO_COLOR and FORCE_COLOR.",
)
def cli() -> None:
    """Train PyTorch models from TOML recipes, and extend every step with plugins.

    Start with `trainrun init`, then `trainrun launch train.toml`.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `trainrun` and exit with the exit code of the command."""
    handler = interrupts.current() or interrupts.install()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold what no text can
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        code = handler.code
    interrupts.ignore()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()
    if arguments is None:  # what plugins have left for Python's end is no result
        os.dup2(2, 1)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; return its exit code."""
    with session():
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    try:
        result = _call(arguments)
    except (click.Abort, KeyboardInterrupt):
        handler = interrupts.current()
        return ExitCode.INTERRUPTED if handler is None or not handler.pending else handler.code
    except Exception as error:  # the process door
        code, problems = _complain(error)
        if reporting.asks_for_json(arguments):
            reporting.print_document(code, problems)
        return code
    return result if isinstance(result, int) else ExitCode.OK


def _call(arguments: Sequence[str]) -> Any:
    """Call the command; raise KeyboardInterrupt if a signal asked for its end.

    That holds even if Python lost the exception on the way: it drops what a callback of a weak reference raises, and
    makes another error of it while it creates a class.
    """
    handler = interrupts.current()
    try:
        result = cli.main(args=list(arguments), prog_name="trainrun", standalone_mode=False)
    except Exception as error:
        if handler is not None and handler.pending:
            raise KeyboardInterrupt from error
        raise
    if handler is not None and handler.pending:
        raise KeyboardInterrupt
    return result


def _complain(error: Exception) -> tuple[int, Sequence[Problem]]:
    """Report on stderr what ended the command; return its exit code.

    The problems are returned too, for those who asked for JSON.
    """
    if isinstance(error, click.ClickException):
        reporting.complain(_with_usage(error))
        return error.exit_code, reporting.problems_of(error)
    if isinstance(error, TrainrunError):
        reporting.complain_of(error)
        return error.exit_code, reporting.problems_of(error)
    if isinstance(error, OSError) and error.errno in _STORAGE:  # a full disk may come up anywhere, and is no bug
        what = f"{error.filename or 'a file'} cannot be written: {error.strerror}"
        code, problem = ExitCode.ENVIRONMENT, Problem("trainrun", what, "free some space, or use another folder")
    elif isinstance(error, OSError) and error.errno in _LIMITS:
        what = f"{error.strerror}: {_LIMITS[error.errno]} is too low for this command"
        code, problem = ExitCode.ENVIRONMENT, Problem("trainrun", what, "`trainrun doctor` shows limits")
    else:
        what = shorten(f"a bug in trainrun: {described(error)}")
        code, problem = ExitCode.BUG, Problem("trainrun", what, f"the report is {reporting.write_crash_log(error)}")
    reporting.complain(f"{problem.what}; {problem.hint}")
    return code, [problem]


def _with_usage(error: click.ClickException) -> str:
    message = error.format_message().rstrip()
    context = getattr(error, "ctx", None)
    return message if context is None else f"{message}\nsee `{context.command_path} --help`"


def _open_closed_streams() -> None:
    """Open /dev/null in place of each closed standard stream.

    Otherwise other files would get its number, and a child its content.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None and (descriptor := os.open(os.devnull, os.O_RDWR)) <= number:
            setattr(sys, name, open(descriptor, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _close_stdout() -> None:
    """Let Python's last flush of stdout go nowhere.

    Otherwise it would complain about a pipe that is closed.
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
