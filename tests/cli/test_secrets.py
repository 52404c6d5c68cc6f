"""What `check` shows of secrets: where they are set and what they must be, never what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainrun.cli.main import run

TASK = """
import pydantic

from trainrun import Field, PluginOptions, hookimpl


class Inner(PluginOptions):
    pin: pydantic.SecretStr


class Options(PluginOptions):
    api_token: str = "zq-by-default"
    bearer: pydantic.SecretStr = pydantic.SecretStr("zq-by-default")
    code: pydantic.SecretStr | pydantic.SecretBytes | None = None
    number: pydantic.Secret[int] = pydantic.Secret(918273645)
    inner: Inner = Inner(pin="zq-by-default")
    several: list[pydantic.SecretStr] = []
    named: dict[str, pydantic.SecretStr] = {}
    pairs: list[Inner] = []
    headers: dict[str, str] = {}
    address: str = ""
    max_tokens: int = 0
    count_tokens: str = Field("text", secret=False)
    account: str = Field("", secret=True)

    @pydantic.field_validator("bearer", "api_token")
    @classmethod
    def not_that_one(cls, value):
        text = value if isinstance(value, str) else value.get_secret_value()
        if text.startswith("zq-wrong"):
            raise ValueError(f"{text} is nothing to bear")
        return value


@hookimpl
def build_model(device):
    return None


@hookimpl
def build_dataset(split):
    return None


@hookimpl
def training_step(batch):
    return None


@hookimpl
def evaluation_step(batch):
    return None
"""


@pytest.fixture
def project(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(shared_cache))
    (tmp_path / "task.py").write_text(TASK)
    return tmp_path


def write(project: Path, *lines: str) -> None:
    text = ["[task]", 'use = "task.py"', *lines, "[train]", "steps = 1", "[evaluate]", "splits = []"]
    (project / "train.toml").write_text("\n".join(text) + "\n")


LINES = {
    "api_token": "api_token = 'zq-a'",
    "bearer": "bearer = 'zq-a'",
    "code": "code = 'zq-a'",
    "inner": "inner = { pin = 'zq-a' }",
    "several": "several = ['zq-a', 'zq-b']",
    "named": "named = { one = 'zq-a' }",
    "pairs": "pairs = [{ pin = 'zq-a' }]",
    "headers": "headers = { Authorization = 'zq-a', X-Api-Key = 'zq-b', apiKey = 'zq-c', Accept = 'plain' }",
    "address": "address = 'https://me:zq-a@example.org/x?token=zq-b&page=3'",
}


@pytest.mark.parametrize("key", LINES)
def test_why(key: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(project, LINES[key])
    for arguments in (["--why", f"task.{key}"], ["--why", f"task.{key}", "-o", LINES[key].join(["task.", ""])]):
        assert run(["check", "train.toml", *arguments]) == 0
        shown = "".join(capsys.readouterr())
        assert "zq" not in shown
        assert "redacted" in shown or "a table" in shown
    assert run(["check", "train.toml", "--print"]) == 0
    shown = "".join(capsys.readouterr())
    assert "zq" not in shown
    assert "redacted" in shown
    assert run(["check", "train.toml", "--json"]) == 0
    assert "zq" not in "".join(capsys.readouterr())


def test_what_is_no_secret_is_shown(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(project, LINES["headers"], LINES["address"], LINES["pairs"], "max_tokens = 512", 'count_tokens = "ids"')
    assert run(["check", "train.toml", "--print"]) == 0
    shown = capsys.readouterr().out
    assert 'Accept = "plain"' in shown
    assert 'address = "https://me:<redacted>@example.org/x?token=<redacted>&page=3"' in shown
    assert 'pairs = [{ pin = "<redacted>" }]' in shown
    assert "max_tokens = 512" in shown
    assert 'count_tokens = "ids"' in shown


def test_what_an_option_says_of_itself_counts(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(project, 'account = "zq-nine"', 'count_tokens = "ids"')
    assert run(["check", "train.toml", "--print"]) == 0
    shown = capsys.readouterr().out
    assert 'account = "<redacted>"' in shown
    assert 'count_tokens = "ids"' in shown
    write(project, 'account = ["zq-nine"]')
    assert run(["check", "train.toml"]) == 2
    assert "zq" not in capsys.readouterr().err


def test_defaults_are_left_to_the_model(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The asterisks that pydantic shows for a secret must not become its value."""
    write(project)
    for arguments in (["check", "train.toml", "--print"], ["schema", "train.toml"]):
        assert run(arguments) == 0
        shown = capsys.readouterr().out
        assert "***" not in shown
        assert "zq" not in shown
        assert "918273645" not in shown


@pytest.mark.parametrize(
    "line",
    [
        "bearer = 918273645",
        "bearer = 'zq-wrong-by-name'",
        "bearrer = 'zq-by-name'",
        "several = 'zq-by-name'",
        "several = [3, 'zq-by-name']",
        "inner = { pin = 918273645 }",
        "inner = { pim = 'zq-by-name' }",
        "named = { one = 918273645 }",
        "headers = { Authorization = 918273645 }",
        "number = 'zq-by-name'",
        "inner = 'zq-by-name'",
        "bearer = 'zq-by-name",
    ],
)
def test_errors_show_the_place_and_not_the_value(line: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(project, line)
    for more in ([], ["--json"]):
        assert run(["check", "train.toml", *more]) == 2
        shown = "".join(capsys.readouterr())
        assert "train.toml:3:" in shown or "not valid TOML" in shown
        assert "zq" not in shown
        assert "918273645" not in shown
