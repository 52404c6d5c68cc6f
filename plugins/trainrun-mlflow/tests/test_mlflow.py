"""Sending to MLflow's own server and database, through the process that sends."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from trainrun_mlflow import MLflow, MLflowOptions
from trainrun_mlflow.tracker import MLflowTracker

from trainrun import Recipe
from trainrun.printing import inline
from trainrun.rundir.files import append_line

Read = Callable[[str], list[dict[str, Any]]]

pytestmark = pytest.mark.usefixtures("packages")

USE = "trainrun_mlflow:MLflow"


def steps(run: dict[str, Any], key: str = "train/loss") -> list[int]:
    return [step for step, _, _ in run["metrics"][key]]


def test_a_database_beside_the_runs(make_run: Any, read: Read, tmp_path: Path, until: Any) -> None:
    run = make_run(USE, tags={"team": "vision"}, artifacts=["recipe.toml", "logs/*.out"])
    run.log(1, 2)
    run.log(3, **{"a@b": math.nan, "big": math.inf})
    run.start()
    until(lambda: run.cursor.step == 3)
    run.log(4)
    assert str(run.end()) == "all 4 records were sent"
    (found,) = read(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert (found["experiment"], found["name"], found["status"]) == ("digits", "run-1", "FINISHED")
    assert found["params"] == {"run.name": "digits", "optimizer.lr": "0.1", "optimizer.betas": "0.9, 0.99"}
    assert found["metrics"]["train/loss"][0] == [1, 1_700_000_001_500, 1.0]
    assert steps(found) == [1, 2, 4]
    assert math.isnan(found["metrics"]["a_b"][0][2])
    assert found["metrics"]["big"][0][2] > 1e300
    assert found["artifacts"] == ["logs/tracker-mlflow.out", "recipe.toml"]
    expected = {"team": "vision", "trainrun.outcome": "finished", "trainrun.exit_code": "0", "trainrun.step": "9"}
    expected |= {"final.train/loss": "0.25", "final.a_b": "nan", "final.big": "inf"}
    assert expected.items() <= found["tags"].items()
    assert found["tags"]["mlflow.source.git.commit"] == "abc"


@pytest.mark.long
def test_a_resume_goes_on_in_the_same_run(make_run: Any, read: Read, tmp_path: Path) -> None:
    run = make_run(USE, experiment="other", name="mine")
    run.log(1, 2)
    run.start()
    run.end("failed", 1)
    run.paths.recipe.write_text('[run]\nname = "digits"\n\n[optimizer]\nlr = 0.2\nmomentum = 0.5\n')
    run.log(3, 4)
    run.start(resumed=True)
    run.end("interrupted", 130)
    (found,) = read(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert (found["experiment"], found["name"], found["status"]) == ("other", "mine", "KILLED")
    assert steps(found) == [1, 2, 3, 4]
    assert (found["params"]["optimizer.lr"], found["tags"]["resumed.optimizer.lr"]) == ("0.1", "0.2")
    assert found["params"]["optimizer.momentum"] == "0.5"


@pytest.mark.long
def test_a_server_that_is_down_at_first_and_midway_gets_everything_once(
    make_run: Any, server: Any, read: Read, until: Any
) -> None:
    run = make_run(USE, tracking_uri=server.uri, timeout=5.0)
    run.log(1, 2)
    run.start()
    until(lambda: run.events == ["tracker_outage"])
    server.start()
    until(lambda: run.cursor.step == 2)
    server.stop()
    run.log(3, 4)
    until(lambda: run.events == ["tracker_outage", "tracker_back", "tracker_outage"])
    run.log(5)
    server.start()
    until(lambda: run.cursor.step == 5)
    assert run.end().complete
    assert run.events == ["tracker_outage", "tracker_back"] * 2
    (found,) = read(server.uri)
    assert steps(found) == [1, 2, 3, 4, 5]
    assert found["status"] == "FINISHED"
    assert found["artifacts"] == ["recipe.toml"]


@pytest.mark.long
def test_what_was_sent_and_not_noted_is_sent_once(make_run: Any, read: Read, tmp_path: Path, until: Any) -> None:
    """The process is killed between the sending and the note of it: the note is put back by hand."""
    run = make_run(USE)
    run.log(1, 2, 3)
    sender = run.start()
    until(lambda: run.cursor.step == 3)
    sender.kill()
    cursor = run.cursor
    cursor.step, cursor.mark = 1, {}
    cursor.write(run.paths.tracker("mlflow"))
    run.log(4)
    run.start()
    run.end()
    (found,) = read(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert steps(found) == [1, 2, 3, 4]


@pytest.mark.long
def test_more_than_one_request_takes(make_run: Any, read: Read, tmp_path: Path) -> None:
    run = make_run(USE)
    many = {f"metric {number}": float(number) for number in range(1500)}
    run.log(1, 2, **many)
    run.start()
    assert run.end().complete
    (found,) = read(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert len(found["metrics"]) == 1500
    assert steps(found, "metric 1499") == [1, 2]


@pytest.mark.long
def test_all_that_a_resume_changes_is_told(make_run: Any, read: Read, tmp_path: Path) -> None:
    """More tags than one request takes."""
    run = make_run(USE)
    for value in (1, 2):
        lines = [f"key{number} = {value}" for number in range(150)]
        run.paths.recipe.write_text("\n".join(['[run]\nname = "digits"\n\n[task]', *lines]))
        run.log(value)
        run.start(resumed=value == 2)
        assert run.end().complete
    (found,) = read(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert {f"resumed.task.key{number}": "2" for number in range(150)}.items() <= found["tags"].items()


def test_two_experiments_of_one_server_are_two_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.from_data({"run": {"name": "digits"}, "task": {"use": "digits"}, "train": {"steps": 1}})

    def place(**options: Any) -> str:
        return MLflow.place(MLflowOptions(**options), recipe)

    assert place(experiment="a") != place(experiment="b")
    assert place(experiment="a") == place(experiment="a", name="x")
    assert place() == place(experiment="digits", tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert place() == place(tracking_uri="sqlite:///runs/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert place() == place(tracking_uri="http://server/")


NAMES = [
    "/loss",
    "a//b",
    "x/",
    ".",
    "..",
    "a/../b",
    "./c",
    "..d",
    "",
    "é",
    "n\nl",
    "l" * 400,
    "l" * 399 + "k",
    "m" * 250,
]
TWINS = ["recall@5", "recall_5", "recall#5", "p/q", "p//q", "good"]


def test_metrics_of_any_name_arrive_on_curves_of_their_own(make_run: Any, read: Read, tmp_path: Path) -> None:
    run = make_run(USE)
    values = {name: float(number) for number, name in enumerate([*NAMES, *TWINS])}
    run.log(1, **values)
    run.start(deadline=600.0)
    assert str(run.end()) == "all 1 records were sent"
    run.log(2, **dict(reversed(values.items())))  # the names that were given hold in another process
    run.start(resumed=True, deadline=600.0)
    assert str(run.end()) == "all 2 records were sent"
    (found,) = read(f"sqlite:///{tmp_path}/runs/mlflow.db")
    curves = {key: [(step, value) for step, _, value in rows] for key, rows in found["metrics"].items()}
    assert sorted(rows for rows in curves.values()) == [[(1, v), (2, v)] for v in sorted(values.values())]
    assert curves["recall_5"][0][1] == values["recall@5"]  # the first of those that would become one
    assert curves["good"][0][1] == values["good"]
    told = {key.removeprefix("trainrun.name."): own for key, own in found["tags"].items() if "trainrun.name." in key}
    assert {curves[key][0][1]: own for key, own in told.items()} == {
        values[own]: inline(own) for own in values if own not in {"p/q", "good", "é", "m" * 250}
    }


@pytest.mark.long
def test_one_that_is_refused_does_not_keep_the_others_back(make_run: Any, read: Read, tmp_path: Path) -> None:
    run = make_run(USE)
    run.log(1, good=1.0)
    append_line(run.paths.metrics, {"step": 2**63, "time": 1_700_000_002.5, "bad": 2.0, "also": 3.0})
    run.start(deadline=600.0)
    assert str(run.end()) == "all 2 records were sent"
    (found,) = read(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert found["metrics"]["good"] == [[1, 1_700_000_001_500, 1.0]]
    assert "its record is left out" in run.paths.tracker_log("mlflow").read_text()


@pytest.mark.parametrize(
    "table", ["alembic_version (version_num TEXT)", pytest.param("runs (run_uuid TEXT)", marks=pytest.mark.long)]
)
def test_database_whose_migration_was_cut_off_is_put_aside(
    make_run: Any, read: Read, tmp_path: Path, table: str
) -> None:
    run = make_run(USE)
    database = tmp_path / "runs" / "mlflow.db"
    with closing(sqlite3.connect(database)) as made:
        made.execute(f"CREATE TABLE {table}")
        made.execute("CREATE TABLE _alembic_tmp_metrics (key TEXT)")
    (tmp_path / "runs" / ".mlflow.db.1.new").write_text("of a process that was killed")
    run.log(1)
    run.start(deadline=600.0)
    assert str(run.end()) == "all 1 records were sent"
    (found,) = read(f"sqlite:///{database}")
    assert steps(found) == [1]
    assert sorted(path.name for path in database.parent.glob(".mlflow.db.*")) == [".mlflow.db.lock"]


def test_database_that_is_being_made_when_the_process_ends_is_not_there(
    make_run: Any, read: Read, tmp_path: Path, until: Any
) -> None:
    run, folder = make_run(USE), tmp_path / "runs"
    run.log(1)
    sender = run.start(deadline=600.0)
    until(lambda: any(path.stat().st_size for path in folder.glob(".mlflow.db.*.new")), 600.0)
    sender.kill()
    assert not (folder / "mlflow.db").exists()
    run.start(deadline=600.0)
    assert str(run.end()) == "all 1 records were sent"
    assert steps(read(f"sqlite:///{folder}/mlflow.db")[0]) == [1]


def test_what_mlflow_refuses_is_left_out_alone() -> None:
    from mlflow.entities import Param  # type: ignore[import-not-found, unused-ignore]
    from mlflow.exceptions import MlflowException  # type: ignore[import-not-found, unused-ignore]

    class Client:
        def __init__(self) -> None:
            self.taken: list[str] = []

        def log_batch(self, run: str, params: list[Any]) -> None:
            if any(param.key == "bad" for param in params):
                raise MlflowException("bad is no parameter", error_code=1000)  # INVALID_PARAMETER_VALUE
            self.taken += [param.key for param in params]

    tracker, client = MLflowTracker(MLflowOptions(), "http://nowhere"), Client()
    tracker._client = client
    tracker._log_all("params", [Param(key, "1") for key in ["a", "b", "bad", "c", "d"]])
    assert client.taken == ["a", "b", "c", "d"]
