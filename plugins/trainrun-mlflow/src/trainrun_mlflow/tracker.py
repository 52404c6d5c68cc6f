"""A run of MLflow."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainrun.tracking import Ending, Mark, Opened, Record, RunFacts
from trainrun_mlflow.database import SQLITE, file_of, prepare
from trainrun_mlflow.names import MetricNames, distinct, valid

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

    from trainrun_mlflow.plugin import MLflowOptions

_TAG = "trainrun.run_id"
_BATCH = 1000  # metrics in one request: the most that servers take
_FEW = 100  # parameters, or tags, in one request
_LARGEST = 2**63  # of steps
_LENGTH = 5000  # characters of a tag or parameter
_log = logging.getLogger(__name__)
_KILLED = {"interrupted", "terminated"}


class MLflowTracker:
    """Sends batches of metrics, with the time of each record, so that what is sent twice is known to be the same."""

    whole_steps = False

    def __init__(self, options: MLflowOptions, uri: str) -> None:
        self._options = options
        self._uri = uri
        self._client: Any = None
        self._run = ""
        self._facts: RunFacts | None = None
        self._names = MetricNames()
        self._fresh = True  # nothing has been sent since the last trouble

    def open(self, facts: RunFacts, mark: Mark) -> Opened:
        del mark  # the server knows
        _settle(self._options.timeout)
        from mlflow import MlflowClient  # noqa: PLC0415 - only in the tracker's process, and only when it is used

        if (file := file_of(self._uri)) is not None:
            prepare(file, lambda uri: MlflowClient(uri).search_experiments(max_results=1))
        self._client, self._fresh, self._facts = MlflowClient(self._uri), True, facts
        experiment = self._experiment(self._options.experiment or facts.name)
        run = self._found(experiment, facts) or self._created(experiment, facts)
        self._run = run.info.run_id
        self._names = MetricNames(run.data.metrics, run.data.tags)
        self._client.update_run(self._run, status="RUNNING")
        self._log_parameters(run, facts)
        return Opened({"run": self._run, "experiment": experiment})

    def send(self, records: Sequence[Record]) -> Mark:
        metrics = self._metrics(records)
        if self._fresh:
            metrics = self._without_known(metrics)
        for start in range(0, len(metrics), _BATCH):
            self._log_all("metrics", metrics[start : start + _BATCH])
        self._fresh = False
        return {"run": self._run}

    def finish(self, ending: Ending) -> None:
        said = {"outcome": ending.state, "reason": ending.reason, "exit_code": ending.exit_code, "step": ending.step}
        tags = {f"trainrun.{name}": str(value)[:_LENGTH] for name, value in said.items()}
        self._log_tags(
            tags | {f"final.{self._names.get(name)[0]}": repr(value) for name, value in ending.metrics.items()}
        )
        self._log_files()
        failed = "KILLED" if ending.state in _KILLED else "FAILED"
        self._client.set_terminated(self._run, "FINISHED" if ending.exit_code == 0 else failed)

    def close(self) -> None:
        self._client = None

    # --- which run ---

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        files = None
        if self._uri.startswith(SQLITE):  # otherwise MLflow puts them below the current folder
            files = (Path(self._uri.removeprefix(SQLITE)).absolute().parent / "mlflow-artifacts" / name).as_uri()
        return str(self._client.create_experiment(name, artifact_location=files))

    def _found(self, experiment: str, facts: RunFacts) -> Run | None:
        """Return the run that was made before.

        A process that was killed before it could take note may have made it.
        """
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{facts.id}'", max_results=1)
        return found[0] if found else None

    def _created(self, experiment: str, facts: RunFacts) -> Run:
        git = facts.manifest.get("git") or {}
        tags = {
            _TAG: facts.id,
            "trainrun.folder": str(facts.paths.root),
            "mlflow.source.name": str(facts.manifest.get("recipe", "")),
            "mlflow.source.type": "LOCAL",
            **({"mlflow.source.git.commit": git["commit"]} if git.get("commit") else {}),
            **{valid(name): value[:_LENGTH] for name, value in self._options.tags.items()},
        }
        run: Run = self._client.create_run(experiment, tags=tags, run_name=self._options.name or facts.id)
        return run

    def _log_parameters(self, run: Run, facts: RunFacts) -> None:
        """Log what is new.

        A parameter of MLflow cannot change: what a resume changes becomes a tag.
        """
        from mlflow.entities import Param  # noqa: PLC0415

        names = distinct(facts.parameters)
        wanted = {names[name]: str(value)[:_LENGTH] for name, value in facts.parameters.items()}
        known = run.data.params
        new = [Param(name, value) for name, value in wanted.items() if name not in known]
        for start in range(0, len(new), _FEW):
            self._log_all("params", new[start : start + _FEW])
        self._log_tags({f"resumed.{k}": value for k, value in wanted.items() if known.get(k, value) != value})

    def _log_tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag  # noqa: PLC0415

        tags = [RunTag(valid(name), value) for name, value in values.items()]
        for start in range(0, len(tags), _FEW):
            self._log_all("tags", tags[start : start + _FEW])

    def _log_all(self, kind: str, entries: Sequence[Any]) -> None:
        """Log the entries.

        If MLflow refuses one of them for what it is, all others are logged.
        """
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        try:
            self._client.log_batch(self._run, **{kind: entries})
        except MlflowException as error:
            if error.error_code not in {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}:
                raise
            if len(entries) == 1:
                _log.warning("MLflow does not take %s of %s, which is left out: %s", entries[0].key, kind, error)
                return
            middle = len(entries) // 2
            self._log_all(kind, entries[:middle])
            self._log_all(kind, entries[middle:])

    # --- what is sent ---

    def _metrics(self, records: Sequence[Record]) -> list[Metric]:
        """Return the metrics of all records.

        Those whose names MLflow does not take are explained by tags first.
        """
        from mlflow.entities import Metric  # noqa: PLC0415

        tags: dict[str, str] = {}
        found = []
        for record in records:
            if not -_LARGEST <= record.step < _LARGEST:
                _log.warning("MLflow has no step %s; its record is left out", record.step)
                continue
            for own, value in record.metrics.items():
                name, explained = self._names.get(own)
                tags |= explained
                found.append(Metric(name, value, int(record.time * 1000), record.step))
        if tags:
            self._log_tags(tags)
        return found

    def _without_known(self, metrics: Sequence[Metric]) -> list[Metric]:
        """Leave out what the server has taken already.

        No reply may have come, or the process may have died before it took note. Metrics are sent in their order, so
        that its last value of each shows how far it has got: one request, for a run of any length.
        """
        has = self._client.get_run(self._run).data.to_proto().metrics
        last = {one.key: (one.step, one.timestamp) for one in has}
        return [one for one in metrics if one.key not in last or (one.step, one.timestamp) > last[one.key]]

    def _log_files(self) -> None:
        """Log each file into the folder that it has in the run."""
        assert self._facts is not None
        for path in self._facts.files(self._options.artifacts):
            folder = path.relative_to(self._facts.paths.root).parent.as_posix()
            self._client.log_artifact(self._run, str(path), artifact_path=None if folder == "." else folder)


def _settle(timeout: float) -> None:
    """Have MLflow fail soon, and by itself.

    Waiting and trying again is done here, and reported.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, round(timeout))))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
