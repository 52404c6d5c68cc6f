"""Whether a checkpoint is, byte for byte, what was saved."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from trainrun.checkpoint.archive import check_values
from trainrun.checkpoint.contents import FileRecord, digest, tree
from trainrun.checkpoint.index import METADATA, check_chunks, read_index
from trainrun.checkpoint.layout import MANIFEST, PLUGINS, STATE, is_temporary, step_of
from trainrun.checkpoint.manifest import Manifest, read_manifest
from trainrun.errors import BadCheckpoint

_THREADS = 4
_VALUES = ".pt"
_OWN_FOLDERS = frozenset({STATE, PLUGINS})


def verify(folder: Path) -> list[str]:
    """Return every reason not to trust the contents of `folder`.

    The list is empty if it is what was saved. All files are read. The manifest's own checksum is compared, and names,
    kinds, sizes and SHA-256 of the others. Then it is checked that what the files hold makes up every tensor, each
    element once.
    """
    try:
        manifest = read_manifest(folder)
    except BadCheckpoint as error:
        return [str(error).removeprefix(f"{folder}: ")]
    reasons = sizes_and_names(folder, manifest)
    return reasons or _hashes(folder, manifest) or _contents(folder, manifest)


def sizes_and_names(folder: Path, manifest: Manifest) -> list[str]:
    """Return the problems that show without reading the files.

    These are a wrong step, missing and further files, links, and wrong sizes.
    """
    reasons = list(_names(folder, manifest))
    try:
        there = tree(folder)
    except OSError as error:
        return [*reasons, f"it cannot be listed: {error.strerror or error}"]
    there.pop(MANIFEST, None)
    reasons += [f"{name!r} is missing" for name in manifest.files if name not in there]
    folders = _OWN_FOLDERS | {str(parent) for name in manifest.files for parent in PurePosixPath(name).parents}
    for name, found in there.items():
        reasons += _entry(name, found, manifest.files.get(name), name in folders)
    return reasons


def _names(folder: Path, manifest: Manifest) -> Iterator[str]:
    if folder.is_symlink():
        yield "it is a symbolic link"
    if is_temporary(folder.name):
        yield "it was never published"
    if (step := step_of(folder.name)) is not None and step != manifest.step:
        yield f"its manifest is that of step {manifest.step}"


def _entry(name: str, found: os.stat_result, record: FileRecord | None, is_folder: bool) -> list[str]:
    if stat.S_ISDIR(found.st_mode) and is_folder and record is None:
        return []
    if record is None:
        return [f"{name!r} is not in its manifest"]
    if not stat.S_ISREG(found.st_mode):
        return [f"{name!r} is not a plain file"]
    if found.st_size != record.size:
        return [f"{name!r} has {found.st_size} bytes instead of {record.size}"]
    return []


def _hashes(folder: Path, manifest: Manifest) -> list[str]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
        reasons = pool.map(lambda name: _hash(folder, name, manifest.files[name]), manifest.files)
        return [reason for reason in reasons if reason]


def _hash(folder: Path, name: str, record: FileRecord) -> str | None:
    try:
        found = digest(folder / name)
    except OSError as error:
        return f"{name!r} cannot be read: {error.strerror or error}"
    return None if found == record else f"{name!r} has other contents than were saved: its SHA-256 differs"


def _contents(folder: Path, manifest: Manifest) -> list[str]:
    """Return what is wrong with files that are as they were saved.

    A stranger can make a manifest for anything.
    """
    state, values = folder / STATE, sorted(name for name in manifest.files if name.endswith(_VALUES))
    metadata = f"{STATE}/{METADATA}"
    reasons = [f"{metadata!r} is not in its manifest"] if manifest.files and metadata not in manifest.files else []
    try:
        if metadata in manifest.files:
            check_chunks(state, [(one.dtype, chunk) for one in read_index(state).values() for chunk in one.chunks])
        for name in values:
            check_values(folder / name)
    except BadCheckpoint as error:
        reasons.append(str(error).removeprefix(f"{folder}/"))
    return reasons
