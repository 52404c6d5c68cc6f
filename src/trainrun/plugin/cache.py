"""A store for what is slow to find out: one JSON file a key, which is gone without harm at any time."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from trainrun import __version__

FORMAT = 4  # another one when descriptions hold or refuse other things

_MOST = 2000  # entries that are kept
_OLDEST = 60 * 86400.0  # seconds since an entry was last used after which it is removed
_DAY = 86400.0
_NAME = re.compile(r"(?:describe|installed|recipe-schema|validate)-(?:(?P<format>[0-9]+)-)?[0-9a-f]{8}\.json")


def cache_folder() -> Path | None:
    """Return ``$TRAINRUN_CACHE_DIR`` or the user's cache folder.

    Returns None for a user without a home.
    """
    named = os.environ.get("TRAINRUN_CACHE_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    # os.path returns it as it is if neither HOME nor the user database has a home, as in a container of another user.
    folder = os.path.expanduser(base or "~/.cache")  # noqa: PTH111
    return None if folder.startswith("~") else Path(folder, "trainrun")


class Store:
    """Read and write entries. Without a folder that can be written, or of a damaged file, there is no entry."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._stats: dict[str, tuple[int, int] | None] = {}  # descriptions share most of their files
        self._pruned = False

    def get(self, *key: str) -> Any:
        """Return the value under `key`.

        Returns None if there is none or it is outdated.

        A value is outdated if a file that it was made from has changed.
        """
        file = self._file(key)
        if file is None:
            return None
        try:
            entry = json.loads(file.read_bytes())
            _use(file)
        except (OSError, ValueError, RecursionError):
            return None
        fresh = isinstance(entry, dict) and entry.get("key") == list(key) and self._unchanged(entry.get("files"))
        return entry.get("value") if fresh else None

    def put(self, value: Any, files: Iterable[str], *key: str) -> None:
        """Keep `value` under `key` while `files` do not change."""
        file = self._file(key)
        if self._folder is None or file is None:
            return
        entry = {"key": list(key), "files": {file: mark for file in files if (mark := _mark(file))}, "value": value}
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(file, json.dumps(entry))
            if not self._pruned:
                self._pruned = True
                self._prune(self._folder)
        except OSError:
            return

    def _prune(self, folder: Path) -> None:
        """Remove outdated entries, and the oldest of too many.

        Outdated are those of other formats and those that were not used for long.
        """
        now, ages = time.time(), {}
        with os.scandir(folder) as entries:
            for entry in entries:
                if found := _NAME.fullmatch(entry.name):
                    outdated = found["format"] != str(FORMAT)
                    ages[entry.path] = math.inf if outdated else now - entry.stat(follow_symlinks=False).st_mtime
        oldest = sorted(ages, key=lambda path: ages[path], reverse=True)
        for number, path in enumerate(oldest):
            if ages[path] > _OLDEST or len(oldest) - number > _MOST:
                with suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108 - scandir's paths are texts

    def _unchanged(self, files: Any) -> bool:
        return isinstance(files, Mapping) and all(self._is_same(file, mark) for file, mark in files.items())

    def _is_same(self, file: str, mark: Any) -> bool:
        """Compare a file with its mark by size and time.

        If only the time differs, compare the content: a new checkout of the same text is no change.
        """
        if file not in self._stats:
            self._stats[file] = _stat(file)
        stat = self._stats[file]
        if stat is None or stat[0] != mark[0]:
            return False
        return stat[1] == mark[1] or _mark(file) == [*stat, mark[2]]

    def _file(self, key: tuple[str, ...]) -> Path | None:
        if self._folder is None:
            return None
        parts = "\0".join((str(FORMAT), __version__, *key))
        # The entry holds its key, so that a clash of names is a miss and no mistake.
        return self._folder / f"{key[0]}-{FORMAT}-{crc32(parts.encode(errors='surrogateescape')):08x}.json"


def _replace(file: Path, text: str) -> None:
    scratch = file.with_suffix(f".{os.getpid()}.tmp")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
    scratch.replace(file)


def _use(file: Path) -> None:
    """Note that an entry was used, once a day."""
    if time.time() - file.stat().st_mtime > _DAY:
        with suppress(OSError):
            os.utime(file)


def _mark(file: str) -> list[Any] | None:
    """Return size, time and content of a file.

    Returns None if it cannot be read.
    """
    import hashlib  # noqa: PLC0415 - it loads OpenSSL, and what is unchanged needs no content

    stat = _stat(file)
    try:
        content = Path(file).read_bytes()
    except OSError:
        return None
    return None if stat is None else [*stat, hashlib.sha256(content).hexdigest()]


def _stat(file: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(file)  # noqa: PTH116 - a Path for each of hundreds of files is most of the time
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
