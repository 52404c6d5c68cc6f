"""Run directories with pipes, giants and odd JSON in them: none blocks, none ends a command, the others are listed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.cli.main import run
from trainrun.rundir import Outcome, RunPaths, create
from trainrun.rundir.files import read_json, read_lines, write_json

LOOKING = ("status", "why", "logs", "watch", "checkpoints")
GIANT = 1 << 40  # bytes, of which none is on the disk

Change = Callable[[Path], None]

JSON: dict[str, bytes] = {
    "no JSON": b"{",
    "nothing": b"",
    "zeros": bytes(4096),
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "a deep value": b'{"step": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "thousands of digits": b'{"step": ' + b"9" * 5000 + b"}",
    "too large": b'{"step": ' + b"9" * 400 + b', "steps": 1e999, "attempt": -1e400, "started": 1e300, "time": 1e300}',
    "no numbers": b'{"step": NaN, "steps": Infinity, "started": -Infinity, "ended": NaN, "created": NaN, "time": NaN}',
    "halves of pairs": rb'{"state": "\ud800", "reason": "\udfff and \ud800", "event": "\ud800", "\ud800": "x"}',
    "raw halves of pairs": b'{"state": "\xed\xa0\x80", "reason": "\xed\xa0\x80", "event": "\xed\xa0\x80"}',
    "zeros in texts": rb'{"state": "a\u0000b", "reason": "\u0000", "event": "\u0000", "message": "\u001b[2J"}',
    "other types": json.dumps(
        {
            name: [{"a": [1]}]
            for name in (
                *("state", "step", "steps", "epoch", "updated", "metrics", "cost", "attempt", "samples_per_second"),
                *("exit_code", "reason", "started", "ended", "first_failure", "run", "created", "event", "time"),
                *("decision", "plugin", "hook", "ranks", "rank", "traceback", "why", "action", "instance", "phase"),
                *("error", "checkpoint", "reasons", "level", "timestamp", "workers", "instances"),
            )
        }
    ).encode(),
    "numbers for all": b'{"state": 1, "event": 2, "reason": 3, "time": "x", "attempt": true, "metrics": 4, "cost": 5,'
    b' "first_failure": 6, "started": "x", "ended": [], "step": "x", "phase": 7, "error": 8, "ranks": 9}',
    "rows that lack all": b'{"event": "fault", "cost": [{}, 1, {"total_seconds": "x", "max_seconds": null}],'
    b' "error": {}, "metrics": {"a": [], "b": 1e999, "c": NaN}, "first_failure": {}, "state": "finished"}',
}  # fmt: skip


def written(content: bytes) -> Change:
    return lambda path: path.write_bytes(content) and None


def pipe(path: Path) -> None:
    os.mkfifo(path)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, GIANT)


def folder(path: Path) -> None:
    path.mkdir()


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


KINDS: dict[str, Change] = {
    **{kind.__name__: kind for kind in (pipe, sparse, folder, link_to_a_device, link_to_itself)},
    **{title: written(content + b"\n") for title, content in JSON.items()},
}


def files(paths: RunPaths) -> list[Path]:
    """Every file of a run that a command reads."""
    return [
        *(paths.recipe, paths.manifest, paths.status, paths.outcome, paths.events, paths.metrics),
        *(paths.client_log, paths.agent_log, paths.rank_log(0), paths.rank_output(0)),
        *(paths.rank_output(0).with_suffix(".times"), paths.rank_output_old(0)),
        *(paths.worker_record(1, 0), paths.pulse(1, 0), paths.start(1), paths.lease / "1", paths.lease / "lock"),
        *(paths.tracker("t"), paths.checkpoints / "step-000001" / "manifest.json"),
    ]


@pytest.fixture
def good(tmp_path: Path) -> RunPaths:
    paths = create(tmp_path / "runs", "good")
    write_json(paths.outcome, Outcome("finished", 0, "all is well", step=7, started=100.0, ended=175.0).to_json())
    return paths


@pytest.fixture
def bad(tmp_path: Path, good: RunPaths) -> RunPaths:
    paths = create(good.root.parent, "bad")
    for folder in {path.parent for path in files(paths)}:
        folder.mkdir(parents=True, exist_ok=True)
    return paths


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_all_files_at_once(kind: str, good: RunPaths, bad: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    for path in files(bad):
        KINDS[kind](path)
    base = str(bad.root.parent)
    assert run(["ps", "--dir", base]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == 2
    assert "all is well" in next(row for row in rows if row.startswith(good.run_id))
    assert run(["ps", "--dir", base, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2
    for command in LOOKING:
        for more in ([], ["--json"]):
            assert run([command, str(bad.root), *more]) == 0, (command, more)
            shown = capsys.readouterr()
            (shown.out + shown.err).encode()
            if more and command != "logs":
                json.loads(shown.out)


@pytest.mark.parametrize("kind", ["pipe", "sparse", "no JSON", "a list", "other types", "folder"])
@pytest.mark.parametrize("name", ["outcome", "status", "manifest"])
def test_a_damaged_run_is_one_line_that_says_so(
    kind: str, name: str, bad: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    KINDS[kind](getattr(bad, name))
    assert run(["ps", "--dir", str(bad.root.parent)]) == 0
    row = next(row for row in capsys.readouterr().out.splitlines() if row.startswith(bad.run_id))
    readable = kind == "other types" and name != "outcome"
    assert (f"damaged: {name}.json" in row) is not readable


def test_names_that_no_text_can_hold(good: RunPaths) -> None:
    name = os.fsencode(good.root) + b"-\xff\x1b[31m"
    good.root.rename(os.fsdecode(name))
    for command in (["ps"], ["ps", "--json"], ["status", os.fsdecode(name)], ["why", os.fsdecode(name)]):
        done = subprocess.run(
            [sys.executable, "-m", "trainrun", *command, "--dir", str(good.root.parent)],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
        assert done.returncode == 0, done.stderr
        done.stdout.decode()


def test_text_after_a_hole_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = create(tmp_path, "holed")
    with paths.rank_output(0).open("wb") as file:
        file.write(b"before\n")
        file.seek(GIANT // 2)
        file.write(b"\nafter\n")
        file.truncate(GIANT)
    assert run(["logs", str(paths.root)]) == 0
    shown = capsys.readouterr().out
    assert "| before" in shown
    assert "| after" in shown


def test_what_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(rb'{"a": "\ud83d\ude00 \ud800", "b": 1e999, "c": -Infinity, "d": {"\udc00": [1.5]}}')
    found = read_json(path)
    assert found == {"a": "\U0001f600 \ufffd", "b": "inf", "c": "-Infinity", "d": {"\ufffd": [1.5]}}
    path.write_bytes(b'{"a": 1}\n{"b"\n\x0b{"c": 2}\n{"d": 3}')
    assert read_lines(path)[0] == [{"a": 1}]
