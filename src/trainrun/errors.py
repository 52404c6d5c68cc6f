"""Every exception that trainrun raises on purpose, and the exit code that each one ends a command with.

    TrainrunError                3   a bug in trainrun, unless a subclass says otherwise
    ├── UsageError               2   a wrong recipe, override or command line; nothing was started
    │   └── RecipeError          2   carries every `Problem` found, not only the first
    ├── EnvironmentProblem       4   a plugin does not load, a device or backend is missing, ranks differ
    │   ├── PluginProblem        4   the same, with every `Problem` found in the plugins
    │   ├── LeaseLost            4   another process owns the run by now
    │   └── BadCheckpoint        4   a checkpoint is damaged, or none of a run's is good
    └── TrainingError            1   training failed
        └── HookFailed           1   a hookimpl raised and its error policy says "fail"; 2 where it was a UsageError

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
    `source` and `column` (1-based) let the message show the offending line with a caret.
    """

    where: str
    what: str
    hint: str | None = None
    source: str | None = None
    column: int | None = None

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
    """Training cannot go on."""

    exit_code = ExitCode.TRAINING_FAILED


class HookFailed(TrainingError):
    """A hookimpl raised, and its policy (or its kind) says that the run fails.

    `instance` is the plugin's name in the recipe, `hook` the hook's name; the exception that the
    plugin raised is `__cause__`. A `UsageError` gives it its exit code: another attempt would be of no use.
    """

    def __init__(self, instance: str, hook: str, error: BaseException, switch: str) -> None:
        self.instance = instance
        self.hook = hook
        if isinstance(error, UsageError):
            self.exit_code = error.exit_code
        super().__init__(f"plugin {instance!r} raised {type(error).__name__} in {hook}: {error}; {switch}")
