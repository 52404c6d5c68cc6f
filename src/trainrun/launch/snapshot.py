"""A copy of the task's code, when it is a file or module of the user's own and not an installed distribution."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainrun.plugin.resolve import Resolved

_FILES = 200
_BYTES = 4 * 1024 * 1024


def take(resolved: Resolved, folder: Path) -> list[Path]:
    """Copy the sources of the task into `folder`; return the copies.

    Plugins without a distribution are copied too. Stops at a size that source code never has, rather than copy data
    into every run.
    """
    sources = list(_small(_own_sources(resolved)))
    if not sources:
        return []
    root = Path(os.path.commonpath([path.parent for path in sources]))
    return [_copy(path, folder / path.relative_to(root)) for path in sources]


def _own_sources(resolved: Resolved) -> Iterator[Path]:
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]
    for instance in resolved.instances:
        if instance.role == "builtin" or instance.distribution is not None:
            continue
        for name in resolved.descriptions[instance.target].files:
            path = Path(name).resolve()
            if path.is_file() and not any(path.is_relative_to(folder) for folder in installed):
                yield path


def _small(paths: Iterable[Path]) -> Iterator[Path]:
    total = 0
    for number, path in enumerate(dict.fromkeys(paths)):
        total += path.stat().st_size
        if number >= _FILES or total > _BYTES:
            return
        yield path


def _copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target
