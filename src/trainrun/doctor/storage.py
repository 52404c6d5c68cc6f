"""Can a run keep its files here: the run directory, the temporary one, shared memory, the cache."""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trainrun.doctor.filesystem import Mount, Space, mount_of, size, space_of
from trainrun.doctor.finding import Context, Finding, Settings, Verdict, reason
from trainrun.doctor.probes import PROBES, probe_socket
from trainrun.errors import EnvironmentProblem
from trainrun.plugin.cache import cache_folder
from trainrun.worker.sockets import elsewhere

MIB = 1024 * 1024
SCARCE = 1024 * MIB  # bytes free in the run directory below which there is a warning
SCARCE_TEMPORARY = 256 * MIB
LITTLE_SHARED = 64 * MIB  # what a Docker container has by default
FEW_INODES = 1000

_SHM = Path("/dev/shm")  # noqa: S108 - by that name other processes find it


def run_directory(context: Context) -> Iterator[Finding]:
    """Try in a new folder what a run does in its own.

    The file system is looked at too.
    """
    settings = context.settings
    context.doing(f"looking at {settings.run_dir}")
    verdict = Verdict("run directory")
    asked = Path(settings.run_dir).absolute()
    folder = existing(asked)
    mount, space = mount_of(folder), space_of(folder)
    missing = "" if folder == asked else ", not there yet"
    verdict.say(f"{settings.run_dir}{missing}: {mount.kind}, {size(space.free)} free{_owned(folder)}")
    times = _try_out(context, verdict, folder)
    _judge_space(verdict, space, SCARCE, "free some space, or set run.dir to a folder with more")
    _judge_sharing(verdict, mount, settings)
    yield verdict.finding(
        path=str(asked),
        exists=folder == asked,
        file_system=mount.kind,
        network=mount.is_network,
        free_bytes=space.free,
        free_inodes=space.inodes,
        seconds=times,
    )


def temporary(context: Context) -> Iterator[Finding]:
    """Check Python's temporary directory.

    The agent's socket lies there, and what torch compiles.
    """
    verdict = Verdict("temporary directory")
    hint = "set TMPDIR to another folder"
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        verdict.fail(reason(error), f"{hint}, or free some space")
        yield verdict.finding()
        return
    context.doing(f"looking at {folder}")
    mount, space = mount_of(folder), space_of(folder)
    verdict.say(f"{folder}: {mount.kind}, {size(space.free)} free")
    if (first := _wanted_temporary()) != str(folder):
        verdict.warn(f"it is used because {first} cannot be written to", f"free some space in {first}, or {hint}")
    try:
        with tempfile.TemporaryDirectory(prefix="trainrun-doctor-temp-") as made:
            context.made(made)
            if (other := elsewhere()) is None:
                probe_socket(Path(made))
            else:
                verdict.warn(f"its path is too long for sockets, which are made in {other} instead", hint)
            Path(made, "file").write_bytes(bytes(MIB))
    except OSError as error:
        verdict.fail(f"it cannot be used: {reason(error)}", hint)
    except EnvironmentProblem as problem:
        verdict.fail(str(problem), hint)
    _judge_space(verdict, space, SCARCE_TEMPORARY, f"free some, or {hint}")
    if "noexec" in mount.options:
        verdict.warn("nothing in it may be executed, so compiled models fail", hint)
    yield verdict.finding(path=str(folder), file_system=mount.kind, free_bytes=space.free, free_inodes=space.inodes)


def shared_memory(context: Context) -> Iterator[Finding]:
    """Check the folder of shared memory.

    Loader processes send batches and NCCL moves data between GPUs through it.
    """
    verdict = Verdict("shared memory")
    context.doing(f"looking at {_SHM}")
    judge_shared(verdict, _SHM, context.settings.loader_workers)
    space = space_of(_SHM) if _SHM.is_dir() else Space(0, 0, None)
    yield verdict.finding(size_bytes=space.total, free_bytes=space.free)


def judge_shared(verdict: Verdict, folder: Path, loaders: int) -> None:
    """Report what of `folder` is too small for the loader processes."""
    larger = "give the container more, as in docker run --shm-size=1g, or set data.workers = 0"
    tell = verdict.fail if loaders else verdict.warn
    if not folder.is_dir():
        tell(f"there is no {folder}, so loader processes cannot work", "mount a tmpfs there, or set data.workers = 0")
        return
    space = space_of(folder)
    verdict.say(f"{size(space.free)} of {size(space.total)} free in {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        tell("it is not writable", f"chmod 1777 {shlex.quote(str(folder))}, or set data.workers = 0")
    elif space.total <= LITTLE_SHARED:
        verdict.warn("that is little: loader processes die of SIGBUS when it is full", larger)
    elif space.free < LITTLE_SHARED:
        verdict.warn("it is nearly full: loader processes die of SIGBUS then", f"remove what is left over in {folder}")


def cache(context: Context) -> Iterator[Finding]:
    """Check the folder in which descriptions of plugins are remembered.

    Runs work without it.
    """
    folder = cache_folder()
    verdict = Verdict("cache")
    if folder is None:
        what = "this user has no home folder, so plugins are imported anew for every command"
        verdict.warn(what, "set HOME, or TRAINRUN_CACHE_DIR to a folder that can be written")
        yield verdict.finding(path=None)
        return
    context.doing(f"looking at {folder}")
    verdict.say(str(folder) if folder.is_dir() else f"{folder}, not there yet")
    if not os.access(existing(folder), os.W_OK | os.X_OK):
        what = "it is not writable, so plugins are imported anew for every command"
        verdict.warn(what, "set TRAINRUN_CACHE_DIR to a folder that is")
    yield verdict.finding(path=str(folder))


def existing(folder: Path) -> Path:
    """Return the folder itself, otherwise the nearest one above it that exists."""
    # Not by Path.exists, which raises if a parent may not be searched.
    return next((one for one in (folder, *folder.parents) if os.path.exists(one)), Path("/"))  # noqa: PTH110


def _wanted_temporary() -> str:
    """Return what Python tries first."""
    named = (os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    return os.path.abspath(next(filter(None, named), "/tmp"))  # noqa: S108, PTH100 - as tempfile does it


def _owned(folder: Path) -> str:
    owner = folder.stat().st_uid
    return "" if owner == os.geteuid() else f", of user {owner}"


def _try_out(context: Context, verdict: Verdict, folder: Path) -> dict[str, float]:
    """Try every probe in turn; return the seconds of those that worked."""
    other = "set run.dir to a folder on another file system"
    if not stat.S_ISDIR(folder.stat().st_mode):
        verdict.fail(f"{folder} is not a folder", "set run.dir to one")
        return {}
    times = {}
    try:
        with tempfile.TemporaryDirectory(prefix=".trainrun-doctor-", dir=folder) as made:
            context.made(made)
            for name, probe in PROBES.items():
                context.doing(f"{name} in {folder}")
                try:
                    times[name] = probe(Path(made))
                except OSError as error:
                    verdict.fail(f"{name} does not work there: {error.strerror or error}", other)
    except OSError as error:
        verdict.fail(
            f"it is not writable: {error.strerror or error}", "make it writable, or set run.dir to another folder"
        )
    return times


def _judge_space(verdict: Verdict, space: Space, scarce: int, advice: str) -> None:
    if space.free < MIB:
        verdict.fail("it is full", advice)
    elif space.free < scarce:
        verdict.warn(f"less than {size(scarce)} is free", advice)
    if space.inodes is not None and space.inodes < FEW_INODES:
        verdict.warn(f"there is room for {space.inodes} more files only", "remove files that are not needed")


def _judge_sharing(verdict: Verdict, mount: Mount, settings: Settings) -> None:
    """Check that several nodes can keep one run directory.

    They must see the same one, and each other's locks on it.
    """
    if settings.nodes == 1:
        if mount.has_local_locks:
            verdict.say("other machines do not see its locks")
    elif not mount.is_network:
        what = f"{settings.nodes} nodes are asked for, and only this one sees a local file system"
        verdict.warn(what, "set run.dir to a folder that all nodes share")
    elif mount.has_local_locks:
        what = "other nodes do not see its locks, so two of them could own one run"
        verdict.warn(what, "mount it without nolock, local_lock and localflock")
    else:
        what = "nodes see each other's changes on a network file system late"
        verdict.warn(what, "mount it with a short attribute cache, as in actimeo=1")
