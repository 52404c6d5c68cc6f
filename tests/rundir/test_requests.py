from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun.errors import EnvironmentProblem
from trainrun.rundir import RunPaths
from trainrun.rundir.files import read_lines
from trainrun.rundir.requests import StopRequest, take_stop, write_stop


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


def refusals(paths: RunPaths) -> list[dict[str, Any]]:
    return [event for event in read_lines(paths.events)[0] if event["event"] == "request_refused"]


def test_request_is_taken_once(paths: RunPaths) -> None:
    assert take_stop(paths) is None
    written = write_stop(paths, now=False, reason="enough")
    assert "@" in written.by
    assert take_stop(paths) == written
    assert take_stop(paths) is None
    assert list(paths.control.iterdir()) == []


def test_only_this_user_can_ask(paths: RunPaths) -> None:
    write_stop(paths, now=False, reason="")
    assert stat.S_IMODE(paths.control.stat().st_mode) == 0o700
    assert stat.S_IMODE(paths.stop_request.stat().st_mode) == 0o600


def test_later_request_replaces_the_first(paths: RunPaths) -> None:
    write_stop(paths, now=False, reason="")
    write_stop(paths, now=True, reason="hurry")
    taken = take_stop(paths)
    assert taken is not None
    assert (taken.now, taken.reason) == (True, "hurry")


def test_request_of_a_later_version(paths: RunPaths) -> None:
    paths.control.mkdir()
    paths.stop_request.write_text('{"version": 9, "now": true, "colour": "blue"}')
    assert take_stop(paths) == StopRequest(now=True, reason="", by="")
    assert refusals(paths) == []


def test_reason_is_one_line_that_can_be_shown(paths: RunPaths) -> None:
    write_stop(paths, now=False, reason="a\nb\x1b[31mc\x00" + "x" * 5000)
    taken = take_stop(paths)
    assert taken is not None
    assert taken.reason.startswith("a b [31mc xxx")
    assert len(taken.reason) <= 1000


BAD = {
    "empty": b"",
    "garbage": b"\xff\x00\x00",
    "half": b'{"now": tr',
    "list": b"[]",
    "deep": b"[" * 60_000,
    "now as text": b'{"now": "false"}',
    "now as number": b'{"now": 1}',
    "reason as list": b'{"now": true, "reason": ["x"]}',
    "large": b'{"now": true, "reason": "' + b"x" * 70_000 + b'"}',
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_bad_content_is_refused_once(paths: RunPaths, content: bytes) -> None:
    paths.control.mkdir()
    paths.stop_request.write_bytes(content)
    assert take_stop(paths) is None
    assert take_stop(paths) is None
    assert len(refusals(paths)) == 1
    assert list(paths.control.iterdir()) == []


def a_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text(json.dumps({"now": True}))
    path.symlink_to(target)


def a_full_folder(path: Path) -> None:
    path.mkdir()
    (path / "file").touch()


def a_sparse_giant(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)


MAKERS = [a_link, os.mkfifo, Path.mkdir, a_full_folder, a_sparse_giant, lambda path: path.symlink_to("/dev/zero")]


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_no_plain_file_is_refused_once(paths: RunPaths, make: Callable[[Path], None]) -> None:
    paths.control.mkdir()
    make(paths.stop_request)
    assert take_stop(paths) is None
    assert take_stop(paths) is None
    assert len(refusals(paths)) == 1
    # It is out of the way of the next one.
    write_stop(paths, now=True, reason="")
    assert take_stop(paths) is not None


def test_link_is_taken_away_and_not_what_it_points_to(paths: RunPaths) -> None:
    paths.control.mkdir()
    a_link(paths.stop_request)
    take_stop(paths)
    assert paths.stop_request.with_name("target").exists()


def test_file_of_another_user(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stop(paths, now=True, reason="")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert take_stop(paths) is None
    assert "belongs to user" in refusals(paths)[0]["reason"]


def test_flood_of_other_files_costs_nothing(paths: RunPaths) -> None:
    paths.control.mkdir()
    for number in range(1000):
        (paths.control / f"stop-{number}.json").touch()
    assert take_stop(paths) is None
    write_stop(paths, now=False, reason="")
    assert take_stop(paths) is not None


def test_control_that_is_no_folder(paths: RunPaths) -> None:
    paths.control.write_text("")
    assert take_stop(paths) is None
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        write_stop(paths, now=False, reason="")
