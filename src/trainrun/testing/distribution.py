"""Throw-away distributions: what pip would have installed, written by hand into a temporary folder."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

from trainrun.testing.targets import unload

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class DistributionInstaller:
    """Writes distributions into `folder`; `remove` takes them out of the running interpreter again.

    The folder is put on `sys.path`, and on PYTHONPATH for the processes that a test starts.
    """

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def __call__(
        self,
        name: str,
        modules: Mapping[str, str],
        entry_points: Mapping[str, str],
        *,
        version: str = "1.0",
        group: str = "trainrun",
    ) -> Path:
        """Install distribution `name`; return the folder that it is in.

        modules: file names, such as ``"watcher.py"`` or ``"watcher/__init__.py"``, to their source.
        entry_points: names to values, such as ``"watcher:Watcher"``, of `group`.
        """
        site = self.folder / f"{name}-{version}"
        for file, source in modules.items():
            _write(site / file, dedent(source))
        metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
        _write(metadata / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"[{group}]", *(f"{key} = {value}" for key, value in entry_points.items())]
        _write(metadata / "entry_points.txt", "\n".join(lines) + "\n")
        self._show(site)
        return site

    def remove(self) -> None:
        """Forget what was imported from here."""
        unload(self.folder)

    def _show(self, site: Path) -> None:
        before = os.environ.get("PYTHONPATH")
        self.monkeypatch.setattr(sys, "path", [str(site), *sys.path])
        self.monkeypatch.setenv("PYTHONPATH", str(site) if not before else f"{site}{os.pathsep}{before}")
        importlib.invalidate_caches()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
