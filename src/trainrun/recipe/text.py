"""From a path to text: every way in which a file can fail to be a readable recipe."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from trainrun.errors import Problem, RecipeError
from trainrun.recipe.suggest import did_you_mean

MAX_BYTES = 1 << 20

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_text(path: Path) -> str:
    """Return the text of the recipe at `path`.

    Raises RecipeError; never blocks and never reads more than 1 MiB.
    """
    return _decode(path, _read_bytes(path))


def _read_bytes(path: Path) -> bytes:
    try:
        # O_NONBLOCK: opening a named pipe without a writer would wait forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _error(path, *_cannot_open(path, error)) from None
    try:
        _require_small_file(path, os.fstat(descriptor))
        return os.read(descriptor, MAX_BYTES + 1)
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _cannot_open(path: Path, error: OSError | ValueError) -> tuple[str, str | None]:
    if isinstance(error, FileNotFoundError):
        neighbours = _neighbours(path)
        near = (
            f"did you mean {path}.toml?" if f"{path.name}.toml" in neighbours else did_you_mean(path.name, neighbours)
        )
        return "no such file", near or "`trainrun init` writes a new recipe"
    return f"cannot be opened: {getattr(error, 'strerror', None) or error}", None


def _neighbours(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.parent.iterdir() if entry.suffix == ".toml")
    except OSError:
        return []


def _require_small_file(path: Path, status: os.stat_result) -> None:
    for is_kind, kind in _KINDS:
        if is_kind(status.st_mode):
            raise _error(path, f"is {kind}", "name a TOML file")
    if status.st_size > MAX_BYTES:
        raise _error(
            path, f"is {status.st_size:,} bytes large", f"a recipe has at most {MAX_BYTES:,}; is it this file?"
        )


def _decode(path: Path, raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _error(path, "is UTF-16", "save it as UTF-8")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise _error(path, "starts with a byte-order mark (BOM)", "save it as UTF-8 without BOM", line=1, column=1)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8")) + 1
        byte = raw[error.start]
        raise _error(path, f"is not UTF-8: byte 0x{byte:02x}", "save it as UTF-8", line=line, column=column) from None


def _error(path: Path, what: str, hint: str | None = None, line: int = 0, column: int = 0) -> RecipeError:
    where = f"{path}:{line}:{column}" if line else str(path)
    return RecipeError([Problem(where, what, hint)])
