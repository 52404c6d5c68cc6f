"""Writing a checkpoint so that it is there completely or not at all, also after a power failure.

Everything is written into a fresh folder of another name. When all its files are on the disk the manifest follows,
then every folder is synced, then one rename publishes it. A checkpoint of that name is never replaced.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainrun.checkpoint.contents import digest, tree
from trainrun.checkpoint.layout import MANIFEST, PLUGINS, STATE, folder_name, is_temporary, temporary_name
from trainrun.checkpoint.manifest import Manifest, to_bytes
from trainrun.errors import BadCheckpoint

__all__ = ["begin", "clear", "digest", "discard", "publish", "sync"]

_TRIES = 100
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}


def begin(checkpoints: Path, step: int, attempt: int) -> Path:
    """Make the folder for the checkpoint of `step`; return its path.

    The folder is for this user only. Raises `BadCheckpoint` if that step is published already, and OSError if nothing
    can be written.
    """
    _require_free(checkpoints / folder_name(step))
    if not checkpoints.is_dir():
        checkpoints.mkdir(mode=0o700, exist_ok=True)
        sync(checkpoints.parent)
    temp = reserve(checkpoints, step, attempt)
    try:
        (temp / STATE).mkdir(mode=0o700)
        (temp / PLUGINS).mkdir(mode=0o700)
    except BaseException:
        discard(temp)
        raise
    return temp


def reserve(checkpoints: Path, step: int, attempt: int) -> Path:
    """Make an empty folder with a temporary name of its own.

    No other process has got the name. Raises OSError.
    """
    for _ in range(_TRIES):
        temp = checkpoints / temporary_name(step, attempt, secrets.token_hex(4))
        with suppress(FileExistsError):
            temp.mkdir(mode=0o700)
            return temp
    raise FileExistsError(errno.EEXIST, f"no free temporary name in {_TRIES} tries", str(checkpoints))


def publish(temp: Path, manifest: Manifest, ready: Callable[[], None] | None = None) -> Path:
    """Publish the checkpoint in `temp` under its own name; return its path.

    Its files, those that `manifest.files` lists and no other, must have been synced. Raises `BadCheckpoint` if files
    and manifest differ or the name is taken, and OSError if the disk fails; then nothing was published. ready: called
    when nothing but the rename is left to do.
    """
    target = temp.with_name(folder_name(manifest.step))
    _require_free(target)
    _require_same(temp, manifest)
    _write_synced(temp / MANIFEST, to_bytes(manifest))
    for name, found in reversed(tree(temp).items()):
        if stat.S_ISDIR(found.st_mode):
            sync(temp / name)
    sync(temp)
    if ready is not None:
        ready()
    temp.rename(target)
    try:
        sync(target.parent)
    except BaseException:
        # Whether the name is on the disk is not known: it is taken back, so that a failed save is never a good one.
        target.rename(temp)
        raise
    return target


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk.

    Raises OSError; a second try would prove nothing.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems sync folders on their own and refuse to be asked.
        if error.errno not in _NO_FOLDER_SYNC or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)


def discard(temp: Path) -> None:
    """Remove what was not published. What cannot be removed now is left to `clear`."""
    if not is_temporary(temp.name):
        raise ValueError(f"{temp}: only a temporary folder can be discarded")
    shutil.rmtree(temp, ignore_errors=True)


def clear(checkpoints: Path) -> list[str]:
    """Remove what earlier attempts were writing or removing; return the removed names.

    Call it while no process writes. Raises OSError if `checkpoints` cannot be listed.
    """
    try:
        names = sorted(name for name in os.listdir(checkpoints) if is_temporary(name))  # noqa: PTH208 - names only
    except FileNotFoundError:
        return []
    for name in names:
        discard(checkpoints / name)
    return [name for name in names if not os.path.lexists(checkpoints / name)]


def _require_free(target: Path) -> None:
    # A rename onto an empty folder would succeed without a word.
    if os.path.lexists(target):
        raise BadCheckpoint(f"{target}: this step has been saved already; a checkpoint is never overwritten")


def _require_same(temp: Path, manifest: Manifest) -> None:
    there = {name: found for name, found in tree(temp).items() if not stat.S_ISDIR(found.st_mode)}
    sizes = {name: found.st_size if stat.S_ISREG(found.st_mode) else -1 for name, found in there.items()}
    wanted = {name: record.size for name, record in manifest.files.items()}
    if sizes != wanted:
        names = sorted(name for name in sizes.keys() | wanted.keys() if sizes.get(name) != wanted.get(name))
        raise BadCheckpoint(f"{temp}: not the files that its manifest lists: {', '.join(map(repr, names))}")


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
