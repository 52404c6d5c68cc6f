"""A run of Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

from trainrun.tracking import Ending, Mark, Opened, Record, RunFacts
from trainrun_wandb.histograms import Histograms

if TYPE_CHECKING:
    from trainrun_wandb.plugin import WandbOptions

_SUMMARY = "outcome"
_KEPT = {"_step", "_timestamp", "_runtime", "_wandb"}  # what W&B writes into each row itself
_OWN = "wandb"  # W&B's own folder in that of the run


class WandbTracker:
    """Logs one row a step. A row that has been sent takes nothing more, so that a step is sent when it is whole.

    Online, the server says which rows it has: those that W&B's own process has taken and lost are sent once more.
    """

    whole_steps = True

    def __init__(self, options: WandbOptions) -> None:
        self._options = options
        self._run: Any = None
        self._facts: RunFacts | None = None
        self._row = -1
        self._coded = False
        self._histograms: Histograms | None = None

    def open(self, facts: RunFacts, mark: Mark) -> Opened:
        import wandb  # noqa: PLC0415 - only in the tracker's process, and only when it is used

        options, online, self._facts = self._options, self._options.mode == "online", facts
        self._run = wandb.init(
            project=options.project or facts.name,
            entity=options.entity,
            id=facts.id,
            name=options.name or facts.id,
            group=options.group,
            tags=options.tags or None,
            mode=options.mode,
            dir=str(facts.paths.root),
            resume="allow" if online else None,
            config=dict(facts.parameters),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=options.timeout,
                disable_git=True,
                x_disable_stats=not options.system,
                stop_fn=lambda: None,  # otherwise stop on W&B's page interrupts this process
            ),
        )
        noted = int(mark.get("row", -2))
        self._row = self._run.starting_step - 1 if online else max(noted, -1)
        self._coded = bool(mark.get("code", False))
        self._histograms = Histograms(facts.paths.trackers)
        self._log_code(facts)
        return Opened(self._mark(), self._row if self._row != noted and online else None)

    def send(self, records: Sequence[Record]) -> Mark:
        for step, group in groupby(records, key=lambda record: record.step):
            row, time = self._merged(step, group)
            self._row = max(step, self._row + 1)  # beyond `step` if the step has been logged before
            self._run.log({**row, "_timestamp": time}, step=self._row, commit=True)
        return self._mark()

    def finish(self, ending: Ending) -> None:
        said = {_SUMMARY: ending.state, f"{_SUMMARY}_reason": ending.reason, f"{_SUMMARY}_step": ending.step}
        self._run.summary.update({**{_key(name): value for name, value in ending.metrics.items()}, **said})
        self._save_files()
        self._run.finish(exit_code=ending.exit_code)
        self._run = None

    def close(self) -> None:
        if self._histograms is not None:
            self._histograms.close()
        run, self._run = self._run, None
        if run is not None:
            run.finish()
        import wandb  # noqa: PLC0415

        wandb.teardown(1)  # ends W&B's own process, which would call the run's id taken after an `init` that failed

    def _merged(self, step: int, records: Iterator[Record]) -> tuple[dict[str, Any], float]:
        """Return one row of all records of a step.

        The row has the step's histograms. It comes with the time at which it was logged first.
        """
        row: dict[str, Any] = {}
        time = 0.0
        for record in records:
            row |= {_key(name): value for name, value in record.metrics.items()}
            time = time or record.time
        assert self._histograms is not None
        return row | self._histograms.at(step), time

    def _log_code(self, facts: RunFacts) -> None:
        source = facts.paths.source
        if self._options.code and not self._coded and any(path.is_file() for path in source.rglob("*")):
            self._run.log_code(str(source), include_fn=lambda _: True)
            self._coded = True

    def _save_files(self) -> None:
        assert self._facts is not None
        root = self._facts.paths.root
        for path in self._facts.files(self._options.artifacts):
            if _OWN not in path.relative_to(root).parts[:1]:
                self._run.save(escape(str(path)), base_path=str(root), policy="now")

    def _mark(self) -> Mark:
        return {"row": self._row, "code": self._coded}


def _key(name: str) -> str:
    """Return the metric's name in W&B.

    One of W&B's own names, with or without slashes before it, gets a slash more.
    """
    return f"/{name}" if name.lstrip("/") in _KEPT else name
