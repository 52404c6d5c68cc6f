"""Making a run directory, and finding one again by what a person types."""

from __future__ import annotations

import difflib
import os
import random
import shlex
from contextlib import suppress
from datetime import date
from pathlib import Path

from trainrun.errors import EnvironmentProblem, UsageError
from trainrun.rundir.ownership import require_own
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.words import ADJECTIVES, ANIMALS

LATEST = "latest"

_TRIES = 1000
_LISTED = 5  # run ids in a message


def create(
    base: Path, name: str, *, today: date | None = None, rng: random.Random | random.SystemRandom | None = None
) -> RunPaths:
    """Make a new run directory in `base`, for this user only.

    `latest` points at it afterwards.
    """
    day, words = today or date.today(), rng or random.SystemRandom()
    try:
        base.mkdir(parents=True, exist_ok=True)
        root = _reserve(base, f"{day.isoformat()}-{name}", words)
    except OSError as error:
        raise EnvironmentProblem(f"{base}: no run directory can be made here: {error.strerror or error}") from error
    paths = RunPaths(root.resolve())
    paths.logs.mkdir(mode=0o700)
    paths.attempts.mkdir(mode=0o700)
    _point_latest(base, root.name)
    return paths


def find(run: str, base: Path) -> RunPaths:
    """Return the run that `run` means.

    It is a path, an id in `base`, a part of one that no other has, or `latest`. Raises UsageError if there is none, or
    several. An id that begins with `run` comes before those that contain it.
    """
    return RunPaths(_find(run, base).resolve())


def find_own(run: str, base: Path, doing: str) -> RunPaths:
    """Find a run as `find` does, and require this user's ownership.

    Raises EnvironmentProblem if others own the run, or may write to it.

    doing: what is refused.
    """
    found = _find(run, base)
    paths = RunPaths(found.resolve())
    require_own(paths, found, doing)
    return paths


def _find(run: str, base: Path) -> Path:
    for candidate in (base / run, Path(run)):
        if is_run(candidate):
            return candidate
    ids = run_ids(base)
    if run == LATEST and ids:
        return base / ids[-1]
    matches = [run_id for run_id in ids if run_id.startswith(run)] or [run_id for run_id in ids if run in run_id]
    if len(matches) == 1:
        return base / matches[0]
    for candidate in (base / run, Path(run)):
        _require_access(candidate)
    raise UsageError(_not_found(run, base, ids, matches))


def as_argument(paths: RunPaths) -> str:
    """Return the run as an argument of commands for the user.

    That is its id and `--dir`, quoted for a shell.
    """
    base = paths.root.parent
    if base == Path("runs").resolve():
        return shlex.quote(paths.run_id)
    relative = os.path.relpath(base)
    return f"{shlex.quote(paths.run_id)} --dir {shlex.quote(str(base) if relative.startswith('..') else relative)}"


def _require_access(folder: Path) -> None:
    try:
        os.scandir(folder).close()
    except PermissionError as error:
        raise EnvironmentProblem(f"{folder}: this user may not look into it; ask its owner") from error
    except OSError:
        return


def run_ids(base: Path) -> list[str]:
    """Return the ids of all runs in `base`, oldest first."""
    try:
        entries = [entry for entry in base.iterdir() if not entry.is_symlink() and is_run(entry)]
    except OSError:
        return []
    return [entry.name for entry in sorted(entries, key=_age)]


def is_run(folder: Path) -> bool:
    """Return whether `folder` is a run directory."""
    try:
        return (folder / "attempts").is_dir() and (folder / "logs").is_dir()
    except (OSError, ValueError):  # another user's, or a name with a zero in it
        return False


def _reserve(base: Path, prefix: str, rng: random.Random) -> Path:
    # mkdir is the reservation: of two launches that draw the same words one fails and draws again.
    for _ in range(_TRIES):
        root = base / f"{prefix}-{rng.choice(ADJECTIVES)}-{rng.choice(ANIMALS)}"
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
            return root
    raise EnvironmentProblem(f"{base}: no free run id for {prefix} in {_TRIES} tries; use another run.dir")


def _point_latest(base: Path, run_id: str) -> None:
    # A convenience: a file system without symbolic links, or a folder of that name, must not stop a run.
    scratch = base / f".{LATEST}.{run_id}"
    with suppress(OSError):
        scratch.symlink_to(run_id)
        try:
            scratch.replace(base / LATEST)
        finally:
            scratch.unlink(missing_ok=True)


def _age(folder: Path) -> tuple[int, str]:
    with suppress(OSError):
        return (folder / "attempts").stat().st_mtime_ns, folder.name
    return 0, folder.name


def _not_found(run: str, base: Path, ids: list[str], matches: list[str]) -> str:
    if not ids:
        return f"no run {run!r}: there are no runs in {base}"
    if matches:
        newest = ", ".join(reversed(matches[-_LISTED:]))
        more = f" and {len(matches) - _LISTED} older ones" if len(matches) > _LISTED else ""
        return f"{run!r} is part of {len(matches)} run ids: {newest}{more}; type more of it"
    close = difflib.get_close_matches(run, ids, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else "`trainrun ps` lists them"
    return f"no run {run!r} in {base}; {hint}"
