"""MLflow's database in a file: there completely or not at all."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

SQLITE = "sqlite:///"

_OPEN = "import sys; from mlflow import MlflowClient; MlflowClient(sys.argv[1]).search_experiments(max_results=1)"
_log = logging.getLogger(__name__)


def file_of(uri: str) -> Path | None:
    """Return the file of a database, or None.

    None if it is a server, in memory, or has options.
    """
    if not uri.startswith(SQLITE) or "?" in uri or uri == f"{SQLITE}:memory:":
        return None
    return Path(uri.removeprefix(SQLITE)).absolute()


def prepare(file: Path, make: Callable[[str], object]) -> None:
    """Make a database that MLflow can use.

    make: has MLflow make the database of a URI. Its tables are made by dozens of migrations, which take seconds. A
    process that was ended meanwhile, as at the deadline of a tracker, left a database that MLflow never opened again. A
    new one is made under another name. One that cannot be opened and holds no run is put aside.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _sole(file):
        if file.exists() and file.stat().st_size:
            if not _holds_nothing(file) or (error := _problem(file)) is None:
                return
            aside = _free(file)
            file.rename(aside)
            _log.warning("%s holds no run and cannot be opened (%s); it is kept as %s", file, error, aside.name)
        for left in file.parent.glob(f".{file.name}.*.new*"):
            left.unlink(missing_ok=True)
        # Another name each time: MLflow keeps connections to the files that it has opened.
        scratch = file.with_name(f".{file.name}.{os.getpid()}-{time.monotonic_ns()}.new")
        make(f"{SQLITE}{scratch}")
        scratch.replace(file)


def _problem(file: Path) -> str | None:
    """Return why MLflow cannot open a database, None if it can.

    In a process of its own: MLflow keeps connections, also to a file that has another name since.
    """
    command = [sys.executable, "-P", "-c", _OPEN, f"{SQLITE}{file}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")


def _holds_nothing(file: Path) -> bool:
    """Return whether this is a database of MLflow's without a run.

    It is read as far as it goes.
    """
    try:
        with closing(sqlite3.connect(file)) as database:
            kinds = database.execute("SELECT type, name FROM sqlite_master")
            tables = {name for kind, name in kinds if kind == "table"}
            if "runs" in tables and database.execute("SELECT 1 FROM runs LIMIT 1").fetchone() is not None:
                return False
    except sqlite3.Error:
        return False  # it is no database, or another process is writing
    return not tables or bool({"runs", "experiments", "alembic_version"} & tables)


def _free(file: Path) -> Path:
    number = 1
    while (aside := file.with_name(f"{file.name}.broken-{number}")).exists():
        number += 1
    return aside


@contextmanager
def _sole(file: Path) -> Iterator[None]:
    """Let no other process of trainrun make this database meanwhile."""
    descriptor = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
