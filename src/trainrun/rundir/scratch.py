"""What a launch needs outside its run directory: a temporary folder, and the names of its processes' semaphores.

multiprocessing and elastic leave theirs behind when they are killed, and the names do not say whose they are. So both
are given names that do: `trainrun-PLACE-PID-START`, with the client's pid and start time. They are removed at the end
of the launch, and those of launches that were killed by the next one.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from trainrun.errors import EnvironmentProblem
from trainrun.rundir.process import alive, boot_id, start_time

VARIABLE = "TRAINRUN_SCRATCH"  # the folder, in the environment of an agent and its workers

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the C library keeps named semaphores
_SOCKET = 107  # bytes of the path of a socket
_SHORT = ("/tmp", "/var/tmp", "/usr/tmp")  # noqa: S108 - in which a folder of our own is made
_NAMED = re.compile(r"(?:sem\.)?trainrun-([0-9a-f]{6})-([0-9a-f]+)-([0-9a-f]+)(?:-.+)?")


def make() -> Path:
    """Return the temporary folder of this launch.

    Makes it if it is missing.
    """
    folder = Path(short(len(name())), name())
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise EnvironmentProblem(f"{folder}: it is not this user's folder; remove it, or set TMPDIR to another folder")
    return folder


def short(room: int) -> str:
    """Return a folder for temporary files whose path is short enough.

    That is the usual one, or another if its path is too long for sockets in a folder within. The path of a socket has
    at most 107 bytes, that of a file 4095. Raises EnvironmentProblem if there is no other folder.

    room: the bytes of the name of the folder within.
    """
    most = _SOCKET - len("/") - room - len("/listener-xxxxxxxx")  # as multiprocessing names them
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= most:
        return folder
    if (found := next((other for other in _SHORT if os.access(other, os.W_OK | os.X_OK)), None)) is None:
        raise EnvironmentProblem(
            f"TMPDIR={folder} is too long for sockets, and none of {', '.join(_SHORT)} can be written; "
            f"set TMPDIR to a path of at most {most} bytes"
        )
    return found


def adopt() -> None:
    """Have multiprocessing use the launch's folder and names.

    This holds for this process and those that it starts.
    """
    if folder := os.environ.get(VARIABLE):
        import multiprocessing  # noqa: PLC0415 - the client does without

        # There is no public way. Processes take both over from the one that starts them.
        settings = multiprocessing.current_process()._config  # type: ignore[attr-defined]
        settings.update(tempdir=folder, semprefix=f"/{Path(folder).name}")


def clear() -> None:
    """Remove what this launch has left.

    To be called when its processes are gone.
    """
    _remove(lambda place, pid, started: (place, pid, started) == _own())


def sweep() -> None:
    """Remove what killed launches of this user have left.

    Only those on this machine and among the processes that can be seen are known.
    """
    _remove(lambda place, pid, started: place == _place() and not alive(pid, started))


def name() -> str:
    """Return the start of the names of this launch.

    It is short, because the path of a socket has room for 107 bytes.
    """
    return "trainrun-{}-{:x}-{:x}".format(*_own())


def _own() -> tuple[str, int, int]:
    return _place(), os.getpid(), start_time(os.getpid()) or 0


def _place() -> str:
    """Return what distinguishes this machine and its pids from others.

    The others share the folder. Containers are an example of those.
    """
    try:
        pids = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        pids = 0
    return f"{zlib.crc32(f'{boot_id()} {pids}'.encode()):08x}"[:6]


def _remove(wanted: Callable[[str, int, int], bool]) -> None:
    for path in _entries():
        found = _NAMED.fullmatch(path.name)
        if found is None or not wanted(found[1], int(found[2], 16), int(found[3], 16)):
            continue
        with suppress(OSError):
            kept = path.lstat()
            if kept.st_uid != os.geteuid():
                continue
            if stat.S_ISDIR(kept.st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _entries() -> Iterator[Path]:
    for folder in dict.fromkeys([Path(tempfile.gettempdir()), *map(Path, _SHORT), _SHARED_MEMORY]):
        with suppress(OSError):
            yield from folder.iterdir()
