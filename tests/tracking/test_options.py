"""Options that trackers share, and the files that `artifacts` names."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainrun.rundir.paths import RunPaths
from trainrun.tracking import RunFacts, ServerOptions


@pytest.mark.parametrize("glob", ["", ".", "..", "../*.toml", "logs/../../x", "/etc/hosts", "logs/**.out"])
def test_artifacts_are_within_the_run(glob: str) -> None:
    with pytest.raises(ValueError, match=r"artifacts\n.*got .*; "):
        ServerOptions.from_table({"artifacts": ["recipe.toml", glob]})


def test_files_are_found_once_and_only_within_the_run(paths: RunPaths, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("secret")
    (paths.root / "link.toml").symlink_to(outside)
    (paths.logs / "a.out").touch()
    found = RunFacts.read(paths).files(["*.toml", "logs/*", "recipe.*", "logs"])
    assert found == [paths.logs / "a.out", paths.recipe]
