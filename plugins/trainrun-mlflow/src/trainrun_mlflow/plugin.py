"""The plugin `mlflow`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from trainrun import Field
from trainrun.tracking import RunPaths, ServerOptions, Tracker, TrackerPlugin
from trainrun_mlflow.database import SQLITE
from trainrun_mlflow.tracker import MLflowTracker

if TYPE_CHECKING:
    from trainrun import Recipe

_VARIABLE = "MLFLOW_TRACKING_URI"


class MLflowOptions(ServerOptions):
    """Where to log."""

    tracking_uri: str | None = Field(
        None,
        min_length=1,
        description="Server (`http://…`) or database (`sqlite:///…`); by default, MLFLOW_TRACKING_URI if it is set, "
        "otherwise the database `mlflow.db` in the folder of runs.",
    )
    experiment: str | None = Field(
        None, min_length=1, description="Name of the experiment; by default, the name of the run."
    )
    name: str | None = Field(None, min_length=1, description="Name of the run in MLflow; by default, its id.")
    tags: dict[str, str] = Field({}, description="Tags of the run.")


class MLflow(TrackerPlugin):
    """Log metrics, hyper-parameters, files and outcome to MLflow: a server, or a database on this machine.

    A resumed run continues the same MLflow run. Only a separate process next to the client imports the package.
    """

    Options = MLflowOptions
    plugin = "mlflow"
    needs = {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"}  # noqa: RUF012 - read only

    def make_tracker(self, name: str, paths: RunPaths) -> Tracker:
        del name
        return MLflowTracker(self.options, _uri(self.options, paths.root.parent))

    @classmethod
    def place(cls, options: MLflowOptions, recipe: Recipe) -> str:
        uri = _uri(options, Path(recipe.run.dir)).rstrip("/")
        if uri.startswith(SQLITE):
            uri = f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
        return f"the experiment {options.experiment or recipe.run.name} of {uri}"


def _uri(options: MLflowOptions, runs: Path) -> str:
    """Return where to log.

    runs: the folder of runs.
    """
    return options.tracking_uri or os.environ.get(_VARIABLE) or f"{SQLITE}{runs / 'mlflow.db'}"
