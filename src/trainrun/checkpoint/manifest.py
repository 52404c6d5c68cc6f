"""What a checkpoint says of itself: `manifest.json`, written last and checked first.

The file carries its own checksum, so that a flipped bit in it is found like one in any other file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeVar

from trainrun.checkpoint.contents import FileRecord, open_plain
from trainrun.checkpoint.layout import MANIFEST
from trainrun.errors import BadCheckpoint
from trainrun.rundir.files import encode

__all__ = ["LIMIT", "VERSION", "FileRecord", "Manifest", "is_inside", "read_manifest", "to_bytes"]

VERSION = 1
LIMIT = 64 * 1024 * 1024  # bytes of a manifest

_LARGEST = 2**63
_CHECKSUM = "checksum"
_BLANK = "0" * 64
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of a checkpoint.

    `created` is in seconds since the epoch and `seconds` is how long the save took. `recipe` is resolved, with secrets
    redacted. `plugins` maps an instance to its plugin, distribution, version and hash. `missing` maps one to why its
    state is not in. `disabled` are those that were turned off. `finite`: all weights were checked and are finite; older
    versions did not look. `files` maps each file but the manifest, by its path relative to the checkpoint, to its
    record.
    """

    version: int = VERSION
    run: str
    attempt: int
    step: int
    epoch: int
    samples_seen: int
    world_size: int
    created: float
    seconds: float = 0.0
    reason: str = ""
    strategy: str = "none"
    metrics: Mapping[str, float] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    plugins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    disabled: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    finite: bool = False
    dataset: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values.

        Metrics that are no finite numbers are written as text.
        """
        return asdict(self) | {"disabled": list(self.disabled)}

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Return the manifest that `to_json` made. Unknown keys are passed over.

        Raises `BadCheckpoint` for what is missing or has the wrong type, and for names of files that lead elsewhere.
        """
        source = _Source(data)
        version = source.whole("version", at_least=1)
        if version != VERSION:
            _bad(f"version: expected {VERSION}, got {version}; another version of trainrun wrote it")
        return cls(
            version=version,
            run=source.text("run"),
            attempt=source.whole("attempt"),
            step=source.whole("step"),
            epoch=source.whole("epoch"),
            samples_seen=source.whole("samples_seen"),
            world_size=source.whole("world_size", at_least=1),
            created=source.number("created"),
            seconds=source.number("seconds"),
            reason=source.text("reason"),
            strategy=source.text("strategy"),
            metrics={name: _metric(name, value) for name, value in source.table("metrics").items()},
            recipe=source.table("recipe"),
            plugins={name: _texts(f"plugins.{name}", value) for name, value in source.table("plugins").items()},
            versions=_texts("versions", source.table("versions")),
            disabled=source.names("disabled"),
            missing=_texts("missing", source.table("missing")),
            finite=source.flag("finite"),
            dataset=source.table("dataset"),
            files={name: _file(name, value) for name, value in source.table("files").items()},
        )


def to_bytes(manifest: Manifest) -> bytes:
    """Return the text of the manifest's file.

    It is JSON with a checksum, the SHA-256 of this text with zeros in its place.
    """
    blank = (encode({_CHECKSUM: _BLANK} | manifest.to_json(), indent=2) + "\n").encode()
    return blank.replace(_BLANK.encode(), hashlib.sha256(blank).hexdigest().encode(), 1)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the checkpoint in `folder`.

    Raises `BadCheckpoint`, with the folder, if it has no good one.
    """
    try:
        return Manifest.from_json(_parse(_read(folder / MANIFEST)))
    except FileNotFoundError:
        reason = f"it has no {MANIFEST}: it was never completed"
    except OSError as error:
        reason = f"{MANIFEST} cannot be read: {error.strerror or error}"
    except BadCheckpoint as error:
        reason = f"{MANIFEST}: {error}"
    raise BadCheckpoint(f"{folder}: {reason}")


def _read(path: Path) -> bytes:
    with os.fdopen(open_plain(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > LIMIT:
            _bad(f"it has {size} bytes, and {LIMIT} are the most")
        return file.read(LIMIT)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        _bad("it is no JSON")
    if not isinstance(value, dict):
        _bad("it is no JSON object")
    checksum = value.pop(_CHECKSUM, None)
    if not isinstance(checksum, str) or not _SHA256.fullmatch(checksum):
        _bad(f"{_CHECKSUM}: expected a SHA-256, got {_short(checksum)}")
    if hashlib.sha256(data.replace(checksum.encode(), _BLANK.encode(), 1)).hexdigest() != checksum:
        _bad("its checksum does not fit its text: it was changed after it was written")
    return value


class _Source:
    """A JSON object whose values are taken out by type."""

    def __init__(self, data: Any, where: str = "") -> None:
        if not isinstance(data, dict):
            _bad(f"{where}expected an object, got {_short(data)}")
        self._data = data
        self._where = where

    def text(self, key: str) -> str:
        return self._typed(key, str, "text")

    def whole(self, key: str, at_least: int = 0) -> int:
        value = self._typed(key, int, "an integer")
        if not at_least <= value < _LARGEST:
            _bad(f"{self._where}{key}: expected {at_least} or more, got {_short(value)}")
        return value

    def number(self, key: str) -> float:
        return _number(f"{self._where}{key}", self._get(key))

    def table(self, key: str) -> dict[str, Any]:
        return self._typed(key, dict, "an object")

    def names(self, key: str) -> tuple[str, ...]:
        return tuple(_typed(key, item, str, "names") for item in self._typed(key, list, "a list"))

    def flag(self, key: str) -> bool:
        value = self._data.get(key, False)
        if not isinstance(value, bool):
            _bad(f"{self._where}{key}: expected true or false, got {_short(value)}")
        return value

    def _typed(self, key: str, kind: type[T], name: str) -> T:
        return _typed(f"{self._where}{key}", self._get(key), kind, name)

    def _get(self, key: str) -> Any:
        if key not in self._data:
            _bad(f"{self._where}{key} is missing")
        return self._data[key]


def _typed(key: str, value: Any, kind: type[T], name: str) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        _bad(f"{key}: expected {name}, got {_short(value)}")
    return value


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _bad(f"{key}: expected a number, got {_short(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    return found if math.isfinite(found) else _bad(f"{key}: expected a number, got one that is too large")


def _metric(name: str, value: Any) -> float:
    if isinstance(value, float):
        return value
    # JSON has no such numbers: they were written as text.
    return _NOT_FINITE[value] if isinstance(value, str) and value in _NOT_FINITE else _number(f"metrics.{name}", value)


def _texts(key: str, value: Any) -> dict[str, str]:
    table = _typed(key, value, dict, "an object")
    return {name: _typed(f"{key}.{name}", text, str, "text") for name, text in table.items()}


def _file(name: str, value: Any) -> FileRecord:
    if not is_inside(name):
        _bad(f"files: the name {_short(name)} is not one of a file inside the checkpoint")
    record = _Source(value, f"files: {_short(name)}: ")
    sha256 = record.text("sha256")
    if not _SHA256.fullmatch(sha256):
        _bad(f"files: {_short(name)}: expected a SHA-256, got {_short(sha256)}")
    return FileRecord(record.whole("size"), sha256)


def is_inside(name: str) -> bool:
    """Return whether `name` is a path of a file within a checkpoint.

    The path is relative, and must be written in the one way in which it can be.
    """
    parts = name.split("/")
    plain = all(part not in {"", ".", ".."} for part in parts) and "\0" not in name
    return plain and str(PurePosixPath(name)) == name and name != MANIFEST


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _bad(reason: str) -> NoReturn:
    raise BadCheckpoint(reason)
