"""Secrets reach the plugins, and no file and no screen: by name, by type, in tables of headers, in URLs and in -o."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest

from trainrun.cli.main import run

TASK = """
import os
import sys

import pydantic
import torch

from trainrun import PluginOptions, hookimpl


class Inner(PluginOptions):
    pin: pydantic.SecretStr


class Options(PluginOptions):
    api_token: str
    bearer: pydantic.SecretStr
    given: pydantic.SecretStr
    number: pydantic.Secret[int]
    inner: Inner
    several: list[pydantic.SecretStr] = []
    named: dict[str, pydantic.SecretStr] = {}
    headers: dict[str, str] = {}
    address: str = ""
    default: pydantic.SecretStr = pydantic.SecretStr("zq-by-default")
    fails: bool = False

    @pydantic.field_validator("bearer")
    @classmethod
    def not_that_one(cls, value):
        if value.get_secret_value().startswith("zq-wrong"):
            raise ValueError(f"{value.get_secret_value()} is nothing to bear")
        return value


def clear(options):
    return [
        options.api_token, options.bearer.get_secret_value(), options.given.get_secret_value(),
        str(options.number.get_secret_value()), options.inner.pin.get_secret_value(),
        *(one.get_secret_value() for one in (*options.several, *options.named.values())),
        *options.headers.values(), options.address, options.default.get_secret_value(),
    ]


@hookimpl
def build_model(run):
    texts = clear(run.options)
    assert not [text for text in texts if "redacted" in text or "**" in text], "a secret did not arrive"
    assert run.recipe.task.options["bearer"] == run.options.bearer.get_secret_value()
    for text in texts:
        print("printed", text, repr(text), flush=True)
        sys.stderr.write(text[:5])
        sys.stderr.flush()
        sys.stderr.write(text[5:])
    os.system(f"echo of a child {texts[0]}")
    run.logger.warning("logged " + texts[1], options=texts, said=str(run.options))
    return torch.nn.Linear(4, 1)


@hookimpl
def build_dataset(split):
    return torch.utils.data.TensorDataset(torch.ones(8, 4))


@hookimpl
def training_step(model, batch):
    return model(batch[0]).mean()


@hookimpl
def should_stop(run):
    if not run.options.fails and run.step < 2:
        return None
    if run.options.fails:
        raise RuntimeError("refused with " + " ".join(clear(run.options)))
    return f"enough of {run.options.bearer.get_secret_value()}"
"""

PLUGIN = """
import pydantic

from trainrun import PluginOptions, hookimpl


class Told:
    on_error = "warn"

    class Options(PluginOptions):
        webhook_url: str
        key: pydantic.SecretStr

    def __init__(self, options):
        self.key = options.key.get_secret_value()

    @hookimpl
    def on_launch_start(self, launch):
        raise ValueError(f"on the client: {self.key}")

    @hookimpl
    def on_step_end(self):
        raise ValueError(f"in a worker: {self.key}")
"""

SECRETS = {
    "api_token": "zq-by-name",
    "bearer": 'zq-by-"type"\\\\',
    "pin": "zq-nested",
    "several": "zq-in-a-list",
    "named": "zq-in-a-table",
    "headers": "Bearer zq-in-a-header",
    "address": "zq-in-a-url",
    "given": "zq-by-override",
    "webhook": "zq-of-a-plugin",
    "key": "zq-its-type",
    "number": "918273645",
}

RECIPE = """
[task]
use = "task.py"
api_token = "zq-by-name"
bearer = 'zq-by-"type"\\\\'
given = "zq-overridden"
number = 918273645
inner = { pin = "zq-nested" }
several = ["zq-in-a-list"]
named = { one = "zq-in-a-table" }
address = "https://me:zq-in-a-url@example.org/x"

[task.headers]
Authorization = "Bearer zq-in-a-header"
X-Api-Key = "zq-in-a-header"

[plugins.told]
use = "plugin.py:Told"
webhook_url = "https://example.org/zq-of-a-plugin"
key = "zq-its-type"

[launch]
workers = 1
max_restarts = 0

[train]
steps = 2
batch_size = 4

[evaluate]
splits = []

[checkpoint]
at_end = true
"""

LOOKING = ("ps", "status", "why", "logs", "checkpoints", "watch")
OVERRIDE = ("-o", "task.given=zq-by-override")


class Done(NamedTuple):
    code: int
    shown: str


Trainrun = Callable[..., Done]


def forms(secret: str) -> list[str]:
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    return [secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe=""), encoded]


def leaks(text: str) -> list[str]:
    return [form for secret in SECRETS.values() for form in forms(secret) if form in text]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in {"task.py": TASK, "plugin.py": PLUGIN, "train.toml": RECIPE}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def trainrun(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Trainrun:
    """A command. What it shows and every file that it writes, here or in the temporary folder, is searched."""
    own = {path: path.stat().st_mtime_ns for path in project.iterdir()}
    (project / "tmp").mkdir()

    monkeypatch.chdir(project)
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(project / "cache"))
    monkeypatch.setenv("TMPDIR", str(project / "tmp"))

    def call(*arguments: str) -> Done:
        if arguments[0] in LOOKING:
            code, shown = run(arguments), "".join(capsys.readouterr())
        else:
            command = [sys.executable, "-m", "trainrun", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            code, shown = done.returncode, done.stdout + done.stderr
        assert leaks(shown) == [], shown
        for file in project.rglob("*"):
            compiled = file.suffix == ".pyc"  # the task's own source says what it defaults to
            if file.is_file() and file not in own and not compiled and "source" not in file.parts:
                assert leaks(file.read_bytes().decode(errors="replace")) == [], file
        return Done(code, shown)

    return call


def test_check_and_what_lies_in_the_cache(project: Path, trainrun: Trainrun) -> None:
    assert trainrun("check", "train.toml", *OVERRIDE).code == 0
    shown = trainrun("check", "train.toml", *OVERRIDE, "--print").shown
    assert 'address = "https://me:<redacted>@example.org/x"' in shown
    assert shown.count("<redacted>") == 12
    assert "zq" not in trainrun("check", "train.toml", *OVERRIDE, "--json").shown
    trainrun("hooks", "train.toml", *OVERRIDE)
    assert "zq" not in trainrun("schema", "train.toml").shown
    files = list((project / "cache").iterdir())
    assert any(file.name.startswith("validate-") for file in files)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_run_and_what_looks_at_it(project: Path, trainrun: Trainrun) -> None:
    done = trainrun("launch", "train.toml", *OVERRIDE, "--ranks", "all")
    assert done.code == 0, done.shown
    assert "printed <redacted>" in done.shown
    latest = project / "runs" / "latest"
    assert "of a child <redacted>" in (latest / "logs" / "rank-0.out").read_text()
    assert "enough of <redacted>" in (latest / "events.jsonl").read_text()
    for command in LOOKING:
        assert trainrun(command).code == 0
        assert trainrun(command, "--json").code == 0
    done = trainrun("resume", *OVERRIDE, "-o", "train.steps=3", "--allow-changes")
    assert done.code == 0, done.shown


def test_a_failure_with_its_traceback(project: Path, trainrun: Trainrun) -> None:
    done = trainrun("launch", "train.toml", *OVERRIDE, "-o", "task.fails=true")
    assert done.code == 1, done.shown
    assert "RuntimeError: refused with <redacted> <redacted>" in done.shown
    assert "refused with" in trainrun("why").shown
    trainrun("logs", "--rank", "all")
    trainrun("status", "--json")


@pytest.mark.long
def test_smoke(trainrun: Trainrun) -> None:
    done = trainrun("smoke", "train.toml", *OVERRIDE, "--steps", "1")
    assert "<redacted>" in done.shown or done.code == 0, done.shown
