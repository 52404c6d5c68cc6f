"""Writing the files that `new-plugin` and `new-task` make, all of them or none that was there before."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template

from trainrun.builtin import BUILTINS
from trainrun.errors import EnvironmentProblem, UsageError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 60
_TAKEN = {name for name, _ in BUILTINS} | {"task", "trainrun"}


def module_of(name: str, command: str) -> str:
    """Return the name of the Python module for NAME.

    Raises UsageError if it cannot be one.
    """
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise UsageError(
            f"{command}: NAME must be lower-case letters and digits with single hyphens between them, "
            f"{_LONGEST} at most, such as grad-noise; got {name!r}"
        )
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or name in _TAKEN:
        raise UsageError(f"{command}: {name!r} is taken, by Python or by trainrun itself; choose another name")
    return module


def write(folder: Path, files: Mapping[str, str], words: Mapping[str, str], command: str) -> None:
    """Make the folder with these files.

    words: stand for `$name` in paths and texts.
    """
    try:
        folder.mkdir()
        for path, text in files.items():
            file = folder / Template(path).substitute(words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Template(text).safe_substitute(words), encoding="utf-8")
    except FileExistsError:
        raise UsageError(f"{command}: {folder} exists already; nothing was written") from None
    except OSError as error:
        raise EnvironmentProblem(f"{command}: {folder} cannot be written: {error.strerror}") from error
