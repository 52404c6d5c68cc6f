from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from trainrun.cli.completing import keys_of
from trainrun.cli.main import run
from trainrun.recipe.full import full
from trainrun.recipe.schema import base_schema, resolved
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
    assert "train.toml already exists; give another path" in capsys.readouterr().err
    assert Path("train.toml").read_text() == "mine"


def test_a_link_to_nowhere_is_not_followed() -> None:
    Path("train.toml").symlink_to("elsewhere.toml")

    assert run(["init"]) == 2
    assert not Path("elsewhere.toml").exists()


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "no/such/train.toml"]) == 2
    assert "no/such/train.toml: cannot be written: No such file or directory" in capsys.readouterr().err


# --- with every key ---


def test_full_recipe_trains_as_the_short_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--full"]) == 0
    assert capsys.readouterr().out == "train.toml\n"
    found = tomli.loads(Path("train.toml").read_text())
    assert {name: table for name, table in found.items() if table} == tomli.loads(TEMPLATE)
    assert run(["check"]) == 0
    assert "note" not in capsys.readouterr().err


def test_full_recipe_has_every_key_with_its_default() -> None:
    schema = base_schema()
    lines = full(schema, {}).splitlines()
    keys = [line.removeprefix("# ") for line in lines if not line.startswith("# ") or "=" in line or line[2] == "["]
    found = tomli.loads("\n".join(keys))
    groups = found["optimizer"].pop("groups")
    assert len(groups) == 1
    known = set(keys_of(schema)) - {"optimizer.groups", "plugins", "providers"}
    written = {f"{name}.{key}" for name, table in found.items() if isinstance(table, dict) for key in table}
    assert written - {"plugins.NAME"} == known - {"extends"}
    assert {"use", "enabled", "on_error", "before", "after"} <= set(found["plugins"]["NAME"])
    assert "extends" in found
    for name, raw in schema["properties"].items():
        for key, node in resolved(schema, raw).get("properties", {}).items():
            default = resolved(schema, node).get("default")
            if default not in (None, []) and name != "plugins":
                assert found[name][key] == default, f"{name}.{key}"


def test_every_line_of_the_full_recipe_says_what_it_is() -> None:
    for line in full(base_schema(), tomli.loads(TEMPLATE)).splitlines():
        assert not line or line.startswith(("# A recipe", "# it has", "# plugins")) or "  # " in line, line
