from __future__ import annotations

from pathlib import Path

import pytest

from trainrun.cli.main import run
from trainrun.recipe.template import TEMPLATE


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(tmp_path / "cache"))


def test_it_writes_a_recipe_that_passes_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init"]) == 0
    assert capsys.readouterr().out == "train.toml\n"
    assert Path("train.toml").read_text() == TEMPLATE
    assert run(["check", "train.toml"]) == 0


def test_it_takes_a_path_or_a_folder() -> None:
    Path("folder").mkdir()

    assert run(["init", "other.toml"]) == 0
    assert run(["init", "folder"]) == 0
    assert Path("other.toml").read_text() == Path("folder/train.toml").read_text() == TEMPLATE


def test_it_never_overwrites(capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.toml").write_text("mine")

    assert run(["init"]) == 2
    assert "train.toml: exists already; name another file" in capsys.readouterr().err
    assert Path("train.toml").read_text() == "mine"


def test_a_link_to_nowhere_is_not_followed() -> None:
    Path("train.toml").symlink_to("elsewhere.toml")

    assert run(["init"]) == 2
    assert not Path("elsewhere.toml").exists()


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "no/such/train.toml"]) == 2
    assert "no/such/train.toml: cannot be written: No such file or directory" in capsys.readouterr().err
