"""Recipes that are none, or wrong, through the command line as its users meet it.

Each ends with exit code 2 and a message that says where, what and what to do; there is no traceback, and
nothing has been created.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Check = Callable[..., subprocess.CompletedProcess[str]]

RIGHT = '[task]\nuse = "trainrun.examples.digits"\n[train]\nsteps = 3\n'


@pytest.fixture
def check(tmp_path: Path, shared_cache: Path) -> Check:
    """Run `trainrun check` in an empty folder."""
    environment = {**os.environ, "TRAINRUN_CACHE_DIR": str(shared_cache), "NO_COLOR": "1"}

    def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trainrun", "check", *arguments],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return check


def _refused(done: subprocess.CompletedProcess[str], folder: Path, *left: str) -> str:
    """The message of a refusal, after making sure that it is one."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "a bug in trainrun" not in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == sorted(left)
    return done.stderr.removeprefix("error: ")


UNREADABLE = {
    "syntax": (
        b"[train]\nsteps = = 3\n",
        "train.toml:2:9: not valid TOML: invalid value\n    steps = = 3\n            ^\n",
    ),
    "end of file": (b"[train", "train.toml:1:7: not valid TOML: expected ']' at the end of a table declaration"),
    "duplicate key": (b"a = 1\na = 2\n", "train.toml:2:6: not valid TOML: cannot overwrite a value"),
    "invalid UTF-8": (b"[run]\nname = 'caf\xe9'\n", "train.toml:2:12: is not UTF-8: byte 0xe9; save it as UTF-8"),
    "UTF-16": ("[run]\n".encode("utf-16"), "train.toml: is UTF-16; save it as UTF-8"),
    "BOM": (
        b"\xef\xbb\xbf[run]\n",
        "train.toml:1:1: starts with a byte-order mark (BOM); save it as UTF-8 without BOM",
    ),
    "nesting bomb": (
        b"x = " + b"[" * 20_000,
        "train.toml: is nested too deeply; no recipe needs more than a few levels",
    ),
    "inline bomb": (
        b"x = " + b"{a=" * 20_000,
        "train.toml: is nested too deeply; no recipe needs more than a few levels",
    ),
    "huge integer": (
        b"x = " + b"9" * 5_000,
        "train.toml: holds a number with thousands of digits; integers have 64 bits",
    ),
    "large integer": (b"x = 99999999999999999999", "train.toml:1:1: x: the number does not fit into 64 bits"),
    "dotted key": (
        b'"a.b" = 1',
        'train.toml:1:1: "a.b": unknown key; write tables as a.b, without quotes',
    ),
    "control characters": (b"a = 1 \x1b[31m\n", "train.toml:1:7: not valid TOML"),
    "binary": (b"\x00" * 100, "train.toml:1:1: not valid TOML"),
    "empty": (b"", "task: is missing"),
}


@pytest.mark.parametrize(("raw", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_files_that_are_no_toml(check: Check, tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "train.toml").write_bytes(raw)
    text = _refused(check("train.toml"), tmp_path, "train.toml")

    assert message in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("value", "got"),
    [("true", "true"), ("1e3", "1000.0"), ('"3"', '"3"'), ("nan", "nan"), ("-3", "-3"), ("[3]", "[3]")],
)
def test_wrong_types(check: Check, tmp_path: Path, value: str, got: str) -> None:
    (tmp_path / "train.toml").write_text(RIGHT.replace("steps = 3", f"steps = {value}"))
    text = _refused(check("train.toml"), tmp_path, "train.toml")

    assert text == f"train.toml:4:1: train.steps: expected a positive integer, got {got}\n    steps = {value}\n    ^\n"


def test_a_learning_rate_that_is_no_number(check: Check, tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(RIGHT)
    text = _refused(check("train.toml", "-o", "optimizer.lr=nan"), tmp_path, "train.toml")

    assert text == "-o #1: optimizer.lr: expected a number of at least 0, got nan\n"


def test_unknown_keys_near_and_far(check: Check, tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(RIGHT + "[optimizer]\nweight_dcay = 0.1\nzzz = 1\n")
    text = _refused(check("train.toml"), tmp_path, "train.toml")

    assert "train.toml:6:1: optimizer.weight_dcay: unknown key; did you mean 'weight_decay'?\n" in text
    assert "train.toml:7:1: optimizer.zzz: unknown key\n" in text


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../b", "..", "."])
def test_a_name_that_would_leave_the_folder(check: Check, tmp_path: Path, name: str) -> None:
    (tmp_path / "train.toml").write_text(f'[run]\nname = "{name}"\n{RIGHT}')
    text = _refused(check("train.toml"), tmp_path, "train.toml")

    assert text.startswith("train.toml:2:1: run.name: expected lower-case letters")
    assert f'got "{name}"' in text


def test_a_missing_file(check: Check, tmp_path: Path) -> None:
    assert _refused(check("train.toml"), tmp_path) == "train.toml: no such file; `trainrun init` writes a new recipe\n"

    (tmp_path / "train.toml").write_text(RIGHT)
    text = _refused(check("trian.toml"), tmp_path, "train.toml")
    assert text == "trian.toml: no such file; did you mean 'train.toml'?\n"


def test_a_directory(check: Check, tmp_path: Path) -> None:
    (tmp_path / "train.toml").mkdir()

    assert _refused(check("train.toml"), tmp_path, "train.toml") == "train.toml: is a directory; name a TOML file\n"


def test_a_named_pipe_is_not_waited_for(check: Check, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.toml")

    assert _refused(check("train.toml"), tmp_path, "train.toml") == "train.toml: is a named pipe; name a TOML file\n"


def test_a_file_of_two_gigabytes_is_not_read(check: Check, tmp_path: Path) -> None:
    with (tmp_path / "train.toml").open("wb") as file:
        file.truncate(2 << 30)
    text = _refused(check("train.toml"), tmp_path, "train.toml")

    assert text.startswith("train.toml: is 2,147,483,648 bytes large; a recipe has at most 1,048,576")


def test_a_file_that_may_not_be_read(check: Check, tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(RIGHT)
    (tmp_path / "train.toml").chmod(0)
    if os.access(tmp_path / "train.toml", os.R_OK):
        pytest.skip("this user reads every file")

    text = _refused(check("train.toml"), tmp_path, "train.toml")
    assert text == "train.toml: cannot be opened: Permission denied\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "-o #1: expected KEY=VALUE or ~KEY, got 'train.steps'; for example -o optimizer.lr=1e-3\n"),
        ("train.steps=[", "-o #1: train.steps: '[' begins like a TOML list, table or string and is none"),
        ("train.stepz=3", "-o #1: train.stepz: unknown key; did you mean 'steps'?\n"),
        ("train=3", "-o #1: train: expected a table, got 3\n"),
    ],
)
def test_wrong_overrides(check: Check, tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "train.toml").write_text(RIGHT)

    assert _refused(check("train.toml", "-o", override), tmp_path, "train.toml").startswith(message)


def test_a_secret_is_not_repeated(check: Check, tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(RIGHT + '[run]\napi_key = "hunter2"\n')

    assert "hunter2" not in _refused(check("train.toml"), tmp_path, "train.toml")


def test_an_unknown_task(check: Check, tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(RIGHT.replace("trainrun.examples.digits", "digitz"))
    text = _refused(check("train.toml"), tmp_path, "train.toml")

    assert text.startswith("train.toml:2:1: ")
    assert "did you mean 'digits'?" in text


def test_an_unknown_plugin(check: Check, tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(RIGHT + "[plugins.no-such-plugin]\n")

    assert "train.toml:5:10: " in _refused(check("train.toml"), tmp_path, "train.toml")
