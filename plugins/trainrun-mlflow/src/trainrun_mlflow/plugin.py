"""The plugin `mlflow`."""

from __future__ import annotations

import os

from trainrun import Field
from trainrun.tracking import RunPaths, Tracker, TrackerOptions, TrackerPlugin
from trainrun_mlflow.tracker import MLflowTracker

_VARIABLE = "MLFLOW_TRACKING_URI"


class MLflowOptions(TrackerOptions):
    """Where to log."""

    tracking_uri: str | None = Field(
        None,
        min_length=1,
        description="A server (`http://…`) or database (`sqlite:///…`). Left out: MLFLOW_TRACKING_URI, else a database "
        "in the folder of runs, `mlflow.db`.",
    )
    experiment: str | None = Field(None, min_length=1, description="The experiment; left out, the name of the run.")
    name: str | None = Field(None, min_length=1, description="What the run is called; left out, its id.")
    tags: dict[str, str] = Field({}, description="Tags of the run.")
    artifacts: list[str] = Field(["recipe.toml"], description="Globs of files of the run that are uploaded at the end.")
    timeout: float = Field(20.0, gt=0, description="Seconds after which a server that does not answer is an outage.")


class MLflow(TrackerPlugin):
    """Log metrics, hyper-parameters, files and outcome to MLflow: a server, or a database on this machine.

    A resumed run goes on in the run of MLflow that it had. Its package is used in a process beside the client only.
    """

    Options = MLflowOptions
    plugin = "mlflow"
    needs = {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"}  # noqa: RUF012 - read only

    def make_tracker(self, name: str, paths: RunPaths) -> Tracker:
        del name
        local = f"sqlite:///{paths.root.parent / 'mlflow.db'}"
        return MLflowTracker(self.options, self.options.tracking_uri or os.environ.get(_VARIABLE) or local)

    @classmethod
    def place(cls, options: MLflowOptions) -> str:
        where = options.tracking_uri or os.environ.get(_VARIABLE) or "mlflow.db in the folder of runs"
        return f"the experiment {options.experiment or '(run.name)'} of {where}"
