from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from trainrun.checkpoint import Manifest, begin, digest, publish
from trainrun.cli.main import run
from trainrun.rundir import RunPaths, create


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return create(tmp_path, "digits")


Save = Callable[..., Path]


@pytest.fixture
def save(checkpoint_files: Callable[..., Mapping[str, bytes]]) -> Save:
    """Publish a checkpoint of a step. tensors: with the state that training writes."""

    def save(paths: RunPaths, step: int, *, tensors: bool = True) -> Path:
        temp = begin(paths.checkpoints, step, 1)
        for name, content in checkpoint_files(step, {"rank-0.pt": "random numbers"}).items():
            if tensors or not name.startswith("state/"):
                (temp / name).write_bytes(content)
        files = {str(path.relative_to(temp)): digest(path) for path in temp.rglob("*") if path.is_file()}
        manifest = Manifest(
            run=paths.run_id,
            attempt=1,
            step=step,
            epoch=2,
            samples_seen=64 * step,
            world_size=2,
            created=time.time() - 75,
            reason="every 100 steps",
            metrics={"loss": 0.123456789, "accuracy": 0.5, "b": 1.0, "c": 2.0, "d\x1b[31m": 3.0},
            files=files,
            finite=True,
        )
        return publish(temp, manifest)

    return save


def flip(path: Path) -> None:
    path.write_bytes(b"\1" + path.read_bytes()[1:])


def test_they_are_listed(paths: RunPaths, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    save(paths, 100), save(paths, 200)
    (paths.checkpoints / "step-000100" / "rank-0.pt").unlink()
    (paths.checkpoints / "bad-step-000050").mkdir()
    assert run(["checkpoints", "--dir", str(paths.root.parent)]) == 0
    shown = capsys.readouterr()
    header, first, second = shown.out.splitlines()
    assert header.split() == ["step", "size", "age", "state", "metrics"]
    assert re.match(r"200   \d\.\d KiB  1 min 15 s  good", first)
    assert first.endswith("accuracy 0.5  b 1  c 2  and 2 more")
    assert second.startswith("100   ")
    assert "bad: 'rank-0.pt' is missing" in second
    assert shown.err == "moved aside, not used: bad-step-000050\n"


def test_links_are_named_beside_the_step_they_lead_to(
    paths: RunPaths, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    save(paths, 100), save(paths, 200)
    (paths.checkpoints / "best").symlink_to("step-000100")
    assert run(["checkpoints", str(paths.root)]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert re.match(r"200         \d\.\d KiB", first)
    assert re.match(r"100 \(best\)  \d\.\d KiB", second)
    assert run(["checkpoints", str(paths.root), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [(one["step"], one["links"]) for one in shown] == [(200, []), (100, ["best"])]


def test_none(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoints", str(paths.root)]) == 0
    assert run(["checkpoints", str(paths.root), "--verify"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no checkpoints in" in shown.err


def test_verify_reads_them(paths: RunPaths, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(paths, 100)
    save(paths, 200)
    assert run(["checkpoints", str(paths.root), "--verify"]) == 0
    flip(path / "rank-0.pt")
    assert run(["checkpoints", str(paths.root)]) == 0
    assert "bad" not in capsys.readouterr().out
    assert run(["checkpoints", str(paths.root), "--verify"]) == 1
    assert "bad: 'rank-0.pt' has other contents than were saved" in capsys.readouterr().out


def test_json(paths: RunPaths, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    save(paths, 100)
    path = save(paths, 200)
    (path / "manifest.json").write_bytes(b"\xff")
    (paths.checkpoints / "superseded-step-000300").mkdir()
    assert run(["checkpoints", str(paths.root), "--verify", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["version"], answer["run"], answer["verified"]) == (1, paths.run_id, True)
    bad, good = answer["checkpoints"]
    assert (bad["step"], bad["good"], bad["problem"], bad["metrics"]) == (
        200,
        False,
        "manifest.json: it is no JSON",
        None,
    )
    assert (good["step"], good["good"], good["problem"], good["samples_seen"]) == (100, True, None, 6400)
    assert good["path"] == str(paths.checkpoints / "step-000100")
    assert good["metrics"]["loss"] == 0.123456789
    assert answer["put_aside"] == [str(paths.checkpoints / "superseded-step-000300")]


def test_a_name_with_escapes_is_shown_without(paths: RunPaths, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(paths, 100)
    (path / "\x1b[31mred\udcff").touch()
    assert run(["checkpoints", str(paths.root)]) == 0
    shown = capsys.readouterr().out
    assert "is not in its manifest" in shown
    assert "\x1b" not in shown


def test_what_belongs_to_export(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoints", str(paths.root), "--step", "3"]) == 2
    assert run(["checkpoints", str(paths.root), "--force"]) == 2
    assert "add --export FILE" in capsys.readouterr().err


def test_export_the_newest_good_one(
    paths: RunPaths, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(paths, 100)
    flip(save(paths, 200) / "rank-0.pt")
    monkeypatch.chdir(tmp_path)
    Path("torch.py").write_text("raise SystemExit('a file of the folder was imported')")
    assert run(["checkpoints", str(paths.root), "--export", "weights.safetensors"]) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith(" KiB, the weights of step-000100\n")
    assert shown.err == "not good, and skipped: step-000200; --verify shows why\n"
    assert b'"weight":{"dtype":"F32","shape":[1100]' in Path("weights.safetensors").read_bytes()

    assert run(["checkpoints", str(paths.root), "--export", "weights.safetensors"]) == 2
    assert "--force overwrites it" in capsys.readouterr().err
    export = ["--export", "weights.safetensors", "--step", "100", "--force", "--json"]
    assert run(["checkpoints", str(paths.root), *export]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["checkpoint"] == str(path)
    assert answer["exported"] == str(tmp_path / "weights.safetensors")
    assert sorted(file.name for file in tmp_path.glob("*weights*")) == ["weights.safetensors"]


def test_export_what_cannot_be(paths: RunPaths, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "weights"
    assert run(["checkpoints", str(paths.root), "--export", str(out)]) == 4
    assert "there is no checkpoint here" in capsys.readouterr().err
    path = save(paths, 100, tensors=False)
    assert run(["checkpoints", str(paths.root), "--export", str(out), "--step", "99"]) == 2
    assert "no checkpoint of step 99; it has those of: 100" in capsys.readouterr().err
    assert run(["checkpoints", str(paths.root), "--export", str(tmp_path / "nowhere" / "weights")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert run(["checkpoints", str(paths.root), "--export", str(out)]) == 4
    assert "state/.metadata" in capsys.readouterr().err
    flip(path / "rank-0.pt")
    assert run(["checkpoints", str(paths.root), "--export", str(out), "--step", "100"]) == 4
    assert "'rank-0.pt' has other contents" in capsys.readouterr().err
    assert not out.exists()


def test_listing_is_light(paths: RunPaths, save: Save) -> None:
    save(paths, 100)
    source = (
        "import sys; from trainrun.cli.main import run; run(sys.argv[1:]);"
        "sys.exit(bool({'torch', 'rich', 'structlog', 'pydantic.main', 'asyncio'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", source, "checkpoints", str(paths.root), "--verify"]
    assert subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0
