from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHECKS = [
    *("python", "packages", "plugins", "recipe", "run directory", "temporary directory", "shared memory", "cache"),
    *("ports", "host name", "proxy", "limits", "processors", "memory", "processes"),
    *("torch", "fork safety", "devices", "gloo", "nccl"),
]

Doctor = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def mark() -> Iterator[str]:
    """A variable that marks every process of a test; none may be left at its end."""
    mark = f"DOCTOR_TEST={uuid.uuid4().hex}"
    yield mark
    for pid in marked(mark):
        os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def gone(mark: str, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not left


@pytest.fixture
def doctor(tmp_path: Path, shared_cache: Path, mark: str) -> Iterator[Doctor]:
    """Start the command as its user does, with a home of its own."""
    started = []
    (tmp_path / "home").mkdir()

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        variable, _, value = mark.partition("=")
        own = {"HOME": str(tmp_path / "home"), "TRAINRUN_CACHE_DIR": str(shared_cache), variable: value}
        process = subprocess.Popen(
            [sys.executable, "-m", "trainrun", "doctor", *arguments],
            cwd=tmp_path,
            env={**os.environ, **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def slow_torch(tmp_path: Path) -> str:
    """A folder for PYTHONPATH in which importing torch never ends."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "torch.py").write_text("import time\ntime.sleep(600)\n")
    return str(tmp_path / "slow")


def statuses(document: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["status"] for check in document["checks"]}


def test_everything_is_tried_out(doctor: Doctor, recipe: Path, tmp_path: Path, mark: str) -> None:
    # Not in tmp_path, which is nearly too long for the sockets in it.
    with tempfile.TemporaryDirectory() as temporary:
        secrets = {"HTTP_PROXY": "http://me:hunter2@proxy", "API_TOKEN": "hunter3"}
        process = doctor(recipe.name, "--json", TMPDIR=temporary, **secrets)
        out, err = process.communicate(timeout=150)
        left = [path.name for path in Path(temporary).iterdir()]
        assert [name for name in left if not name.startswith("torchinductor")] == [], (
            "that is made by any import of torch"
        )
    assert err == ""
    document = json.loads(out)
    assert document["version"] == 1
    assert [check["check"] for check in document["checks"]] == CHECKS
    found = statuses(document)
    assert found.pop("nccl") in {"ok", "skipped"}
    assert document["ok"] is (process.returncode == 0) is True, document
    assert set(found.values()) <= {"ok", "warning"}
    assert found["gloo"] == found["torch"] == found["fork safety"] == "ok"
    gloo = document["checks"][CHECKS.index("gloo")]
    assert gloo["facts"]["workers"] == 2
    assert gloo["facts"]["milliseconds"] > 0
    assert "hunter" not in out
    assert str(tmp_path / "home") not in out
    assert not (tmp_path / "runs").exists()
    assert gone(mark)


def test_torch_that_hangs_is_a_failed_check(doctor: Doctor, slow_torch: str, mark: str) -> None:
    process = doctor("--timeout", "8", PYTHONPATH=slow_torch)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 4, err
    assert err == ""
    lines = out.splitlines()
    (torch,) = [line for line in lines if line.startswith("failed   torch")]
    assert "importing torch takes longer than 8 s, in" in torch
    assert "torch.py, line 2" in torch
    assert any(line.startswith("skipped  gloo") for line in lines), "which would hang in the same way"
    assert not any(line.startswith(("failed   ports", "failed   run directory")) for line in lines)
    pasted = out.partition("To report a bug, paste this:")[2]
    assert "FAILED torch: importing torch takes longer" in pasted
    assert "Python 3." in pasted
    assert gone(mark)


def test_a_wrong_recipe_is_one_finding_of_many(doctor: Doctor, tmp_path: Path, recipe: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so: cannot open shared object file')")
    recipe.write_text(recipe.read_text() + "[launch]\ngrece = 1\n")
    out, _ = doctor(recipe.name, "--json", PYTHONPATH=str(tmp_path)).communicate(timeout=150)
    (found,) = [check for check in json.loads(out)["checks"] if check["check"] == "recipe"]
    assert found["status"] == "failed"
    assert "grece" in found["finding"]
    assert "grace" in found["advice"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_it_is_ended(doctor: Doctor, slow_torch: str, mark: str, number: signal.Signals) -> None:
    process = doctor(PYTHONPATH=slow_torch)
    assert process.stdout is not None
    for line in process.stdout:
        if "processes" in line:  # the check before torch, which hangs
            break
    assert len(marked(mark)) >= 2
    process.send_signal(number)
    assert process.wait(30) == (130 if number == signal.SIGINT else -number)
    assert gone(mark)


@pytest.mark.parametrize("arguments", [["--timeout", "0"], ["--workers", "0"], ["a.toml", "b.toml"]])
def test_wrong_arguments(doctor: Doctor, arguments: list[str]) -> None:
    process = doctor(*arguments)
    process.communicate(timeout=60)
    assert process.returncode == 2
