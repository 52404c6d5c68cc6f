from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from trainrun.cli.main import run
from trainrun.recipe.template import TEMPLATE

PLUGIN = '[plugins.early-stopping]\nmonitor = "eval/accuracy"\n'
TOMBI = shutil.which("tombi", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(shared_cache))
    Path("train.toml").write_text(TEMPLATE + PLUGIN)


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["schema", *arguments]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_the_schema_of_all_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    schema = _printed(capsys)

    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert {"extends", "run", "task", "train", "plugins"} <= schema["properties"].keys()


def test_the_schema_of_a_recipe_knows_its_task_and_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    schema = _printed(capsys, "train.toml")

    assert "patience" in schema["properties"]["plugins"]["properties"]["early-stopping"]["properties"]
    assert "hidden" in schema["properties"]["task"]["properties"]


def test_a_recipe_with_mistakes_has_a_schema_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.toml").write_text("[task]\nuse = 'no-such-task'\n[train]\nsteps = 'x'\n" + PLUGIN)

    assert "patience" in repr(_printed(capsys, "train.toml"))


def test_write_puts_it_beside_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    Path("configs").mkdir()
    Path("train.toml").rename("configs/train.toml")

    assert run(["schema", "configs/train.toml", "--write"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "configs/train.schema.json\n"
    assert "#:schema ./train.schema.json" in captured.err
    assert json.loads(Path("configs/train.schema.json").read_text())["$schema"]


def test_write_before_the_recipe_does_not_overwrite_it() -> None:
    assert run(["schema", "--write", "train.toml"]) == 0

    assert Path("train.toml").read_text() == TEMPLATE + PLUGIN
    assert Path("train.schema.json").exists()


def test_write_replaces_a_schema_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.json").write_text('{"$schema": "x"}')
    Path("mine.json").write_text('{"mine": 1}')

    assert run(["schema", "--write", "old.json"]) == 0
    assert run(["schema", "--write", "mine.json"]) == 2
    assert run(["schema", "--write", "no/such/folder.json"]) == 2
    assert "mine.json: exists and is not a JSON Schema" in capsys.readouterr().err
    assert Path("mine.json").read_text() == '{"mine": 1}'


@pytest.mark.skipif(TOMBI is None, reason="tombi is not installed")
class TestTombi:
    """An editor's language server reads the schema: what it accepts and refuses is what `check` does."""

    @pytest.fixture(autouse=True)
    def _schema(self) -> None:
        assert run(["schema", "train.toml", "--write"]) == 0

    def _lint(self, text: str) -> subprocess.CompletedProcess[str]:
        Path("train.toml").write_text(f"#:schema ./train.schema.json\n{text}")
        command = [str(TOMBI), "lint", "--offline", "--no-cache", "train.toml"]
        environment = {**os.environ, "NO_COLOR": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)

    def test_a_right_recipe(self) -> None:
        done = self._lint(TEMPLATE + PLUGIN + 'before = ["x"]\n')

        assert done.returncode == 0, done

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[train]\nsteps = -3\n", "-3"),
            ("[train]\nsteps = 1.5\n", "Integer"),
            ("[train]\nstepz = 1\n", '"stepz" is not allowed'),
            ("[launch]\ngrace = '3 parsecs'\n", "3 parsecs"),
            ("[plugins.early-stopping]\nmonitor = 3\n", "String"),
            ("[plugins.early-stopping]\nmonitor = 'x'\npatiense = 3\n", '"patiense" is not allowed'),
            ("[trian]\n", '"trian" is not allowed'),
        ],
    )
    def test_a_wrong_recipe(self, text: str, message: str) -> None:
        done = self._lint(f'task.use = "x"\n{text}')

        assert done.returncode == 1, done
        assert message in done.stdout + done.stderr
