"""Every exception that trainrun raises on purpose, and the exit code that each one ends a command with.

    TrainrunError                3   a bug in trainrun, unless a subclass says otherwise
    ├── UsageError               2   a wrong recipe, override or command line; nothing was started
    │   └── RecipeError          2   carries every `Problem` found, not only the first
    ├── EnvironmentProblem       4   a plugin does not load, a device or backend is missing, ranks differ
    │   ├── PluginProblem        4   the same, with every `Problem` found in the plugins
    │   ├── LeaseLost            4   another process owns the run by now
    │   └── BadCheckpoint        4   a checkpoint is damaged, or none of a run's is good
    └── TrainingError            1   training failed
        ├── TaskError            2   the task, or the recipe for this task, is wrong, and it shows only in a worker
        ├── HookFailed           1   a hookimpl raised and its policy is "fail"; 2 if that was a UsageError or TaskError
        │   └── HookInterrupted  1   the same of a KeyboardInterrupt, and itself one
        └── WrongReturn          1   a hookimpl returned what its hook cannot use; the cause of a HookFailed

`trainrun.cli` is the one door that turns these into messages and exit codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """How a `trainrun` process ends. The table is documented in docs/outcomes.md."""

    OK = 0
    TRAINING_FAILED = 1
    USAGE = 2
    BUG = 3
    ENVIRONMENT = 4
    RESUMABLE = 75
    NO_PROGRESS = 93
    INTERRUPTED = 130
    TERMINATED = 143


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it is, what it is, and what to do about it.

    `where` is a location such as ``train.toml:12:1`` or ``-o #2`` or ``plugin early-stopping``.
    `source` and `column` (1-based) let the message show the offending line with a caret. `traceback` is that of the
    user's code which raised; `--traceback` shows it.
    """

    where: str
    what: str
    hint: str | None = None
    source: str | None = None
    column: int | None = None
    traceback: str | None = None

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}"
        if self.hint:
            text += f"; {self.hint}"
        if self.source is not None and self.column is not None:
            text += f"\n    {self.source}\n    {' ' * (self.column - 1)}^"
        return text


class TrainrunError(Exception):
    """The root of the tree. Raised as itself it means a bug in trainrun."""

    exit_code: ExitCode = ExitCode.BUG


class _Problems(TrainrunError):
    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


class UsageError(TrainrunError):
    """The recipe or the command cannot be carried out as given.

    Found beforehand, nothing is created or started. Raised by a worker or a hook, for what shows only there, it ends
    the run without another attempt: that would find the same.
    """

    exit_code = ExitCode.USAGE


class RecipeError(_Problems, UsageError):
    """The recipe is wrong. `problems` holds everything that is, in the order of the file."""


class EnvironmentProblem(TrainrunError):
    """Something outside the recipe is missing or broken on this machine."""

    exit_code = ExitCode.ENVIRONMENT


class PluginProblem(_Problems, EnvironmentProblem):
    """Installed plugins are broken, or clash with one another."""


class LeaseLost(EnvironmentProblem):
    """Another process has taken the run over: this one must not write into its directory any more."""


class BadCheckpoint(EnvironmentProblem):
    """A checkpoint is not what was saved, or is none; the message names its folder and says what is wrong with it."""


class TrainingError(TrainrunError):
    """Training cannot continue."""

    exit_code = ExitCode.TRAINING_FAILED


class TaskError(TrainingError):
    """The task returned what cannot be trained, or the recipe does not fit it: no other attempt could go better."""

    exit_code = ExitCode.USAGE


class WrongReturn(TrainingError):
    """A hookimpl returned a value that its hook cannot use; the message says what it returned and what to return."""


class HookFailed(TrainingError):
    """A hookimpl raised, and its policy (or its kind) says that the run fails.

    `instance` is the plugin's name in the recipe, `hook` the hook's name; the exception that the
    plugin raised is `__cause__`. A `UsageError` gives it its exit code: another attempt would be of no use.
    """

    def __init__(self, instance: str, hook: str, error: BaseException, switch: str = "") -> None:
        self.instance = instance
        self.hook = hook
        if isinstance(error, UsageError | TaskError):
            self.exit_code = error.exit_code
        super().__init__(f"{blame(instance, hook, error)}{f'; {switch}' if switch else ''}")


class HookInterrupted(HookFailed, KeyboardInterrupt):
    """A hookimpl raised KeyboardInterrupt. No policy survives it: it ends a program as Ctrl-C does."""


def blame(instance: str, hook: str, error: BaseException) -> str:
    """Say what a plugin did wrong in a hook: what it raised, or what it returned that cannot be used."""
    if isinstance(error, WrongReturn):
        return f"plugin {instance!r}: {message_of(error)}"
    text = message_of(error)
    return f"plugin {instance!r} raised {type(error).__name__} in {hook}{f': {text}' if text else ''}"


def message_of(error: BaseException) -> str:
    """Return the text of an exception, also if its `__str__` raises."""
    try:
        return str(error)
    except BaseException as problem:  # it is the user's code, and the run must still be able to say what failed
        return f"(no message: its __str__ raised {type(problem).__name__})"


def described(error: BaseException) -> str:
    """Return the type and the text of an exception, or the text alone of one that explains itself."""
    text = message_of(error)
    if isinstance(error, WrongReturn):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def shown(value: object) -> str:
    """Show a value that a plugin returned: plain ones as they are, others by their type, so that no tensor is read."""
    if value is None or type(value) in (bool, int, float, str):
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


_LONGEST = 60  # characters of a value in a message
