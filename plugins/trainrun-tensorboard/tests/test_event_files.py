"""Event files as TensorBoard itself reads them back."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from trainrun_tensorboard.plugin import TensorBoard, TensorBoardOptions
from trainrun_tensorboard.writer import EventFiles

from trainrun.tracking import Ending, Record, RunFacts, RunPaths

Read = Callable[[Path], dict[str, Any]]

FINISHED = Ending("finished", 0, "all 4 steps were made", 4, {"loss": 0.25})
FAILED = Ending("failed", 1, "a worker died", 2, {})


@pytest.fixture
def facts(tmp_path: Path) -> RunFacts:
    values: dict[str, str | int | float | bool] = {
        "train.steps": 4,
        "optimizer.lr": 0.1,
        "optimizer.name": "adamw",
        "data.drop_last": True,
    }
    return RunFacts("run-1", "digits", RunPaths(tmp_path), "[train]\nsteps = 4", values, resumed=False)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], EventFiles]]:
    made: list[EventFiles] = []

    def make_one() -> EventFiles:
        made.append(EventFiles(tmp_path / "tb"))
        return made[-1]

    yield make_one
    for one in made:
        one.close()


def records(*steps: int, **metrics: float) -> list[Record]:
    return [Record(step, 0, 1000.5 + step, metrics or {"loss": 1.0 / step}) for step in steps]


def points(found: dict[str, Any], tag: str = "loss") -> list[tuple[int, float]]:
    return [(step, value) for step, _, value in found["scalars"][tag]]


def test_scalars_parameters_recipe_and_outcome(make: Any, facts: RunFacts, tmp_path: Path, read: Read) -> None:
    files = make()
    files.open(facts, {})
    files.send(records(1, 2, 4))
    files.send(records(4, **{"eval/accuracy": 0.5}))
    files.finish(FINISHED)
    found = read(tmp_path / "tb")
    assert points(found) == [(1, 1.0), (2, 0.5), (4, 0.25)]
    assert found["scalars"]["loss"][0][1] == 1001.5
    assert points(found, "eval/accuracy") == [(4, 0.5)]
    assert found["hparams"] == facts.parameters
    assert (found["group"], found["status"]) == ("run-1", 1)
    assert found["texts"] == {
        "recipe": ["```toml\n[train]\nsteps = 4\n```"],
        "outcome": [
            "**finished** at step 4, exit code 0\n\nall 4 steps were made\n\n"
            "| metric | last value |\n| --- | --- |\n| loss | 0.25 |"
        ],
    }


def test_numbers_that_are_none_and_too_large_ones(make: Any, facts: RunFacts, tmp_path: Path, read: Read) -> None:
    files = make()
    files.open(facts, {})
    files.send(records(1, a=math.nan, b=math.inf, c=-math.inf, d=1e300, e=-1e300, f=1e-300))
    values = {tag: rows[0][2] for tag, rows in read(tmp_path / "tb")["scalars"].items()}
    assert math.isnan(values["a"])
    assert [values[tag] for tag in "bcdef"] == [math.inf, -math.inf, math.inf, -math.inf, 0.0]


def test_large_steps_and_many_metrics(make: Any, facts: RunFacts, tmp_path: Path, read: Read) -> None:
    files = make()
    files.open(facts, {})
    many = {f"group/metric-{number}-ä": float(number) for number in range(500)}
    files.send(records(2**40, **many))
    found = read(tmp_path / "tb")
    assert {tag: rows[0][2] for tag, rows in found["scalars"].items()} == many
    assert points(found, "group/metric-7-ä") == [(2**40, 7.0)]


def test_what_was_written_and_not_noted_is_written_once(make: Any, facts: RunFacts, tmp_path: Path, read: Read) -> None:
    """The process is killed between the writing and the note of it: the mark is that of the first batch."""
    first = make()
    first.open(facts, {})
    mark = first.send(records(1, 2))
    first.send(records(3))
    with next((tmp_path / "tb").iterdir()).open("ab") as file:
        file.write(b"half an event")
    second = make()
    second.open(facts, mark)
    second.send(records(3, 4))
    assert points(read(tmp_path / "tb")) == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
    assert len(list((tmp_path / "tb").iterdir())) == 1


def test_a_resume_replaces_the_outcome(make: Any, facts: RunFacts, tmp_path: Path, read: Read) -> None:
    first = make()
    first.open(facts, {})
    mark = first.send(records(1, 2))
    first.finish(FAILED)
    assert read(tmp_path / "tb")["status"] == 2
    second = make()
    mark = second.open(facts, mark).mark
    assert read(tmp_path / "tb")["status"] is None
    second.send(records(3, 4))
    second.finish(FINISHED)
    found = read(tmp_path / "tb")
    assert [step for step, _ in points(found)] == [1, 2, 3, 4]
    assert found["status"] == 1
    assert len(found["texts"]["outcome"]) == 1
    assert len(found["texts"]["recipe"]) == 1


def test_files_that_were_removed_are_begun_anew(make: Any, facts: RunFacts, tmp_path: Path, read: Read) -> None:
    first = make()
    first.open(facts, {})
    mark = first.send(records(1, 2))
    for path in (tmp_path / "tb").iterdir():
        path.unlink()
    second = make()
    second.open(facts, mark)
    second.send(records(3))
    found = read(tmp_path / "tb")
    assert [step for step, _ in points(found)] == [3]
    assert found["hparams"] == facts.parameters


def test_a_full_disk_takes_whole_events_or_none(facts: RunFacts, tmp_path: Path, read: Read) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    files = EventFiles(folder / "tb")
    try:
        files.open(facts, {})
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1024))
        sent, refused = 0, False
        for step in range(1, 200):
            try:
                files.send(records(step, **{f"metric-{number}": 1.0 for number in range(20)}))
            except OSError:
                refused = True
                break
            sent = step
        assert refused
        assert [step for step, _ in points(read(folder / "tb"), "metric-0")] == list(range(1, sent + 1))
        filler.unlink()
        files.send(records(sent + 1, **{f"metric-{number}": 1.0 for number in range(20)}))
        assert [step for step, _ in points(read(folder / "tb"), "metric-0")] == list(range(1, sent + 2))
    finally:
        files.close()
        subprocess.run(["umount", str(folder)], check=True)


def test_an_absolute_folder_gets_one_for_each_run(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "runs" / "run-1")

    def folder(said: str) -> Path:
        files: Any = TensorBoard(TensorBoardOptions(folder=Path(said))).make_tracker("tensorboard", paths)
        found: Path = files._folder
        return found

    assert folder("tensorboard") == paths.root / "tensorboard"
    assert folder(str(tmp_path / "all")) == tmp_path / "all" / "run-1"
    assert folder(str(tmp_path / "x" / ".." / "all")) == tmp_path / "x" / ".." / "all" / "run-1"


@pytest.mark.parametrize("folder", ["../tb", "a/../../tb"])
def test_a_relative_folder_stays_in_the_run(folder: str) -> None:
    with pytest.raises(ValueError, match="leaves the run's folder; give one within it, or an absolute one"):
        TensorBoardOptions.from_table({"folder": folder})


def test_names_that_are_no_text_are_curves_of_their_own(make: Any, facts: RunFacts, tmp_path: Path, read: Read) -> None:
    files = make()
    files.open(facts, {})
    files.send(records(1, **{chr(0xD800): 1.0, chr(0xD801): 2.0, "?": 3.0, "a//b": 4.0, "a/b": 5.0}))
    found = read(tmp_path / "tb")
    names = {"\\ud800": 1.0, "\\ud801": 2.0, "?": 3.0, "a//b": 4.0, "a/b": 5.0}
    assert {name: points(found, name) for name in found["scalars"]} == {name: [(1, v)] for name, v in names.items()}
