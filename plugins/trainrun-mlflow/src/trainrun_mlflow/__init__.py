"""MLflow for trainrun: the plugin `mlflow`."""

from __future__ import annotations

from trainrun_mlflow.plugin import MLflow, MLflowOptions

__all__ = ["MLflow", "MLflowOptions"]
