"""How an error is reported: as text on stderr, as a JSON document, and as annotations of GitHub Actions."""

from __future__ import annotations

import itertools
import json
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from trainrun import __version__
from trainrun.cli import options
from trainrun.cli.echo import Styled, echo
from trainrun.errors import HookFailed, Problem, TrainrunError
from trainrun.plugin.guard import hookimpl_traceback
from trainrun.printing import TRACE, shorten
from trainrun.rundir.secrets import scrub, scrub_all

_PLACE = re.compile(r"(?P<file>[^\n]+):(?P<line>\d+):(?P<col>\d+)")
_NOTE = re.compile(r"(?P<place>[^\n]+?:\d+:\d+): (?P<what>.*)", re.DOTALL)


def colored() -> bool | None:
    """Return whether to colour; None leaves it to the terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


# --- text ---


def complain(message: str) -> None:
    """Write an error message to stderr."""
    first, *more = scrub(message).split("\n")
    with suppress(OSError):  # there is no reader
        echo(Styled("error: ", "red", bold=True), first, err=True, color=colored())
        for line in more:
            # Each problem of many is an error of its own; what is indented belongs to the one above.
            echo(line, err=True)


def complain_of(error: TrainrunError) -> None:
    """Write a TrainrunError to stderr.

    The traceback of what a plugin raised comes before its message.
    """
    if isinstance(error, HookFailed) and not isinstance(error.__cause__, TrainrunError):
        trace = scrub(hookimpl_traceback(error.__cause__ or error)).rstrip()
        echo(_whole_elsewhere(trace, error), err=True)
    complain(_whole_elsewhere(str(error), error))


def show_tracebacks(error: TrainrunError) -> None:
    """Write the tracebacks of the user's code to stderr, for `--traceback`."""
    found: Sequence[Problem] = getattr(error, "problems", ())
    for trace in dict.fromkeys(problem.traceback for problem in found if problem.traceback):
        echo(scrub(trace).rstrip(), err=True)


def _whole_elsewhere(text: str, error: BaseException) -> str:
    """Return the text, cut if it is too long for a terminal.

    Its ends are kept. A cut text names the file to which the whole error was written.
    """
    shown = shorten(text, lines=TRACE)
    return shown if shown == text else f"{shown}\n… all of it: {write_crash_log(error)}"


def write_crash_log(error: BaseException) -> Path | str:
    """Write the report of a bug to a private file.

    Only this user can read it. Returns its path. The command line is left out: it may hold what its user keeps to
    themselves.
    """
    import platform  # noqa: PLC0415 - only a crash needs these
    import tempfile  # noqa: PLC0415

    head = f"trainrun {__version__}, Python {platform.python_version()}, {platform.platform()}\n\n"
    report = head + scrub("".join(traceback.format_exception(error)))
    try:
        path = Path(tempfile.mkdtemp(prefix="trainrun-crash-")) / "crash.txt"
        path.write_text(report, encoding="utf-8")
    except OSError:
        return "\n" + report
    return path


# --- JSON ---


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for JSON.

    It may be one that click cannot parse.
    """
    before = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    pairs = itertools.pairwise(before)
    return "--json" in before or "--format=json" in before or ("--format", "json") in pairs


def print_document(code: int, problems: Sequence[Problem]) -> None:
    """Print the JSON document of a command that has failed.

    It is printed in one line: some commands print a document a line.
    """
    found = {"version": options.JSON_VERSION, "ok": False, "exit_code": int(code), "problems": listed(problems)}
    with suppress(OSError):  # there is no reader
        echo(json.dumps(found))


def listed(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Return problems as plain JSON values, without secrets."""
    found = [{"where": one.where, "what": shorten(one.what), "hint": one.hint} for one in problems]
    scrubbed: list[dict[str, Any]] = scrub_all(found)
    return scrubbed


def problems_of(error: Exception) -> list[Problem]:
    """Return what is wrong as problems.

    They are those that a TrainrunError carries, or one of its whole message.
    """
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        path = "trainrun" if context is None else context.command_path
        return [Problem(path, error.format_message().rstrip(), f"see `{path} --help`")]
    return list(getattr(error, "problems", ())) or [Problem("trainrun", str(error))]


# --- GitHub Actions ---


def annotation(level: str, recipe: str, problem: Problem) -> str:
    """Return the workflow command that shows a problem next to its line.

    A problem without a line is shown at the recipe.
    """
    found = _PLACE.fullmatch(problem.where)
    place = {"file": recipe} if found is None else found.groupdict()
    place["file"] = _relative(place["file"])
    text = problem.what if found is not None else f"{problem.where}: {problem.what}"
    text += f"; {problem.hint}" if problem.hint else ""
    return f"::{level} {_properties(place)}::{_escaped(scrub(text))}"


def annotation_of_note(recipe: str, note: str) -> str:
    """Return the workflow command that shows a note."""
    found = _NOTE.fullmatch(note)
    problem = Problem(found["place"], found["what"]) if found else Problem("note", note)
    return annotation("notice", recipe, problem)


def _relative(path: str) -> str:
    """Return the path as GitHub wants it.

    It is relative to the folder of the checkout, in which CI runs commands.
    """
    whole = Path(path).absolute()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else path


def _properties(values: Mapping[str, str]) -> str:
    def value(text: str) -> str:
        return _escaped(text).replace(":", "%3A").replace(",", "%2C")

    return ",".join(f"{name}={value(text)}" for name, text in values.items())


def _escaped(text: str) -> str:
    """Return the text as actions/toolkit escapes it.

    A percent sign and the ends of lines are escaped.
    """
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
