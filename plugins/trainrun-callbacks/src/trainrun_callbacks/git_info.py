"""Write down which commit is trained, and what was changed since; refuse changes if the recipe asks for that."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trainrun import Field, PluginOptions, hookimpl
from trainrun_callbacks import records

if TYPE_CHECKING:
    from trainrun import Launch

_SHOWN = 10
_PATIENCE = 30.0  # seconds that one call of git may take


class GitInfoOptions(PluginOptions):
    """Which repository, and whether it must be clean."""

    folder: str = Field(".", min_length=1, description="Folder in the repository, relative to the current directory.")
    clean: bool = Field(False, description="Refuse to launch with uncommitted changes.")
    untracked: bool = Field(False, description="Count untracked files as changes.")
    diff: int = Field(1_000_000, ge=0, description="Largest diff to write, in bytes; a larger one is omitted.")


class GitInfo:
    """Write commit, branch and uncommitted changes to `git/` in the run directory when the run is launched.

    With `clean`, a launch with uncommitted changes is refused before anything is created.
    """

    Options = GitInfoOptions
    on_error = "warn"

    def __init__(self, options: GitInfoOptions) -> None:
        self._options = options

    @hookimpl
    def check_recipe(self) -> str | None:
        if not self._options.clean:
            return None
        repository = Repository.of(Path(self._options.folder))
        if repository is None:
            return f"clean = true, and {self._options.folder!r} is in no git repository, or git cannot be called"
        changed = repository.changed(untracked=self._options.untracked)
        if changed is None:
            return f"clean = true, and git cannot say which files are changed in {repository.root}; set clean = false"
        if not changed:
            return None
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        names = f"{', '.join(changed[:_SHOWN])}{more}"
        return f"clean = true, and files are changed: {names}; commit them, or set clean = false"

    @hookimpl
    def on_launch_start(self, launch: Launch) -> None:
        folder = launch.paths.root / "git"
        repository = Repository.of(Path(self._options.folder))
        if repository is None:
            records.write_json(records.free(folder / "info.json"), {"repository": None})
            return
        told = repository.describe(untracked=self._options.untracked)
        difference = repository.difference()
        if difference is None:
            told |= {"patch": None, "why_no_patch": "git gave none"}
        elif len(difference.encode(errors="surrogateescape")) > self._options.diff:
            told |= {"patch": None, "why_no_patch": f"it has more than {self._options.diff} bytes"}
        elif difference:
            file = records.free(folder / "changes.patch")
            records.write(file, difference)
            told["patch"] = file.name
        records.write_json(records.free(folder / "info.json"), told)


class Repository(NamedTuple):
    """A git repository, by its uppermost folder."""

    root: Path

    @classmethod
    def of(cls, folder: Path) -> Repository | None:
        """Return the repository that holds `folder`.

        None if there is none, or git cannot say.
        """
        root = _git(folder, "rev-parse", "--show-toplevel")
        return None if root is None else cls(Path(root.rstrip("\n")))

    def changed(self, *, untracked: bool) -> list[str] | None:
        """Return the files that differ from the last commit, staged ones too.

        None if git cannot say.
        """
        shown = f"--untracked-files={'all' if untracked else 'no'}"
        listed = _git(self.root, "status", "--porcelain=v1", "-z", "--no-renames", shown)
        return None if listed is None else [entry[3:] for entry in listed.split("\0") if entry]

    def describe(self, *, untracked: bool) -> dict[str, Any]:
        """Return commit, branch, remote and changed files.

        None for what git cannot say.
        """
        changed = self.changed(untracked=untracked)
        remote = _line(self.root, "config", "--get", "remote.origin.url")
        return {
            "repository": str(self.root),
            "commit": _line(self.root, "rev-parse", "--verify", "HEAD"),
            "branch": _line(self.root, "symbolic-ref", "--short", "HEAD"),
            "describe": _line(self.root, "describe", "--always", "--dirty", "--tags"),
            "committed": _line(self.root, "log", "-1", "--format=%cI"),
            "remote": None if remote is None else records.masked("remote", remote),
            "dirty": None if changed is None else bool(changed),
            "changed": changed,
        }

    def difference(self) -> str | None:
        """Return what has changed since the last commit as a patch.

        `git apply` takes it. None if git gives none.
        """
        return _git(self.root, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-color")


def _line(folder: Path, *arguments: str) -> str | None:
    answer = _git(folder, *arguments)
    return answer.strip() or None if answer is not None else None


def _git(folder: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=_PATIENCE,
            check=True,
        )
    # No git, no repository, no commit yet, no such setting, or no result in time: git cannot say.
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="surrogateescape")
