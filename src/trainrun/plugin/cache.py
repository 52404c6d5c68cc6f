"""A store for what is slow to find out: one JSON file a key, which is gone without harm at any time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainrun import __version__

FORMAT = 1


def cache_folder() -> Path:
    """``$TRAINRUN_CACHE_DIR``, else the user's cache folder."""
    named = os.environ.get("TRAINRUN_CACHE_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base or "~/.cache").expanduser() / "trainrun"


class Store:
    """Reads and writes entries. A folder that cannot be written, or a damaged file, is the same as no entry."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, *key: str) -> Any:
        """The value under `key`, or None where there is none or a file that it was made from has changed."""
        try:
            entry = json.loads(self._file(key).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        fresh = isinstance(entry, dict) and entry.get("key") == list(key) and _unchanged(entry.get("files"))
        return entry.get("value") if fresh else None

    def put(self, value: Any, files: Iterable[str], *key: str) -> None:
        """Keep `value` under `key` for as long as `files` stay as they are."""
        entry = {"key": list(key), "files": {file: mark for file in files if (mark := _mark(file))}, "value": value}
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(self._file(key), json.dumps(entry))
        except OSError:
            return

    def _file(self, key: tuple[str, ...]) -> Path:
        parts = "\0".join((str(FORMAT), __version__, *key))
        return self._folder / f"{hashlib.sha256(parts.encode(errors='surrogateescape')).hexdigest()[:40]}.json"


def _replace(file: Path, text: str) -> None:
    scratch = file.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(file)


def _mark(file: str) -> list[Any] | None:
    """Size, time and content of a file, None where it cannot be read."""
    try:
        content = Path(file).read_bytes()
        stat = Path(file).stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, hashlib.sha256(content).hexdigest()]


def _unchanged(files: Any) -> bool:
    return isinstance(files, Mapping) and all(_is_same(file, mark) for file, mark in files.items())


def _is_same(file: str, mark: Any) -> bool:
    """By size and time; where those differ, by content: a new checkout of the same text is no change."""
    try:
        stat = Path(file).stat()
    except OSError:
        return False
    if [stat.st_size, stat.st_mtime_ns] == mark[:2]:
        return True
    return stat.st_size == mark[0] and _mark(file) == [stat.st_size, stat.st_mtime_ns, mark[2]]
