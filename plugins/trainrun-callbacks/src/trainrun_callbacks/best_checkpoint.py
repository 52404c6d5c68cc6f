"""Keep the checkpoints, or the weights, at which an evaluation metric was best."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainrun import Field, hookimpl
from trainrun_callbacks.links import LINK_NAME, point_ranked, problem
from trainrun_callbacks.monitor import Monitor, MonitorOptions
from trainrun_callbacks.ranking import Ranking, Scored, rows, scored

if TYPE_CHECKING:
    from trainrun import Recipe, Run

_LINKS = {"best-checkpoint": "best", "last-checkpoint": "last"}  # the plugins that make links, with their defaults
_WEIGHTS = ".safetensors"


class BestCheckpointOptions(MonitorOptions):
    """Which metric decides, how many are kept, and what of them."""

    top_k: int = Field(1, ge=1, description="Number of checkpoints to keep.")
    weights_only: bool = Field(
        False, description="Write only the model's weights, to `RUN/weights`, instead of a whole checkpoint."
    )
    link: str = Field(
        "best",
        pattern=LINK_NAME,
        max_length=64,
        description="Name of the link to the best checkpoint; the next ones are called `best-2`, `best-3` and so on.",
    )


class BestCheckpoint:
    """Save a checkpoint when an evaluation is among the `top_k` best, and keep it while it is.

    All ranks compare the same numbers and get the same ranking. Only rank 0 requests the checkpoint and makes links,
    which protect checkpoints from removal. With `weights_only`, all ranks write the evaluated weights together, at
    the end of the evaluation.
    """

    Options = BestCheckpointOptions

    def __init__(self, options: BestCheckpointOptions) -> None:
        self._options = options
        self._monitor = Monitor(options, options.mode)
        self._ranking = Ranking(options.top_k, options.mode)
        self._asked: list[Scored] = []  # good enough, and being saved
        self._saved = -1
        self._judged = -1  # the step of the evaluation that was judged last
        self._provisional = False  # weights were written that nothing has judged yet
        self._links_fail = False
        self._begins = True  # no links were made yet in this attempt

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> list[str]:
        found = self._monitor.problem(recipe), problem(self._options.link), _clash(recipe)
        return [text for text in found if text]

    @hookimpl
    def on_resume(self, run: Run, checkpoint: str) -> None:
        if Path(checkpoint).parent.resolve() == run.paths.checkpoints.resolve():
            self._saved = run.step

    @hookimpl(mutates=True)
    def on_train_start(self, run: Run) -> None:
        """Forget what the state names and is not there.

        The state may be that of an older checkpoint, or of another run.
        """
        there = self._there(run, [*self._ranking.entries, *self._asked])
        self._ranking.keep(there)
        for one in self._asked:
            if one.step in there:
                self._ranking.add(one)
        self._asked = []
        self._link(run)

    # Around all others, because one may take the weights back that it has put in for the evaluation.
    @hookimpl(mutates=True, wrapper=True)
    def on_evaluation_end(self, run: Run, split: str, metrics: Mapping[str, float]) -> Generator[None, Any, Any]:
        if self._options.weights_only:
            if self._monitor.name in metrics:
                self._judge(run, Scored(run.step, float(metrics[self._monitor.name])))
                self._judged = run.step
            elif self._monitor.is_of([split]):  # it may be logged at this very end
                self._save_weights(run, self._provisional_path(run))
                self._provisional = True
        return (yield)

    @hookimpl(mutates=True)
    def on_evaluated(self, run: Run, splits: Sequence[str], metrics: Mapping[str, float]) -> None:
        value = self._monitor.read(splits, metrics)
        if value is not None and self._judged != run.step:
            self._judge(run, Scored(run.step, float(value)))
        self._drop_provisional(run)

    @hookimpl
    def on_checkpoint_saved(self, run: Run, checkpoint: str) -> None:
        self._saved = _step(checkpoint)
        found = [one for one in self._asked if one.step == self._saved]
        self._asked = [one for one in self._asked if one.step > self._saved]
        for one in found:
            self._take(run, one)
        if self._links_fail:
            self._link(run)

    @hookimpl
    def on_checkpoint_failed(self, checkpoint: str) -> None:
        self._asked = [one for one in self._asked if one.step != _step(checkpoint)]

    @hookimpl
    def on_stop_requested(self) -> None:
        self._monitor.stopped()

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        self._drop_provisional(run)  # of an evaluation that a stop broke off
        self._monitor.require_seen()

    def state_dict(self) -> dict[str, Any]:
        ranked, asked = rows(self._ranking.entries), rows(self._asked)
        return {"monitor": self._monitor.state_dict(), "ranked": ranked, "asked": asked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._monitor.load_state_dict(state["monitor"]):  # numbers of another metric say nothing about this one
            self._asked = scored(state["asked"])
            for one in scored(state["ranked"]):
                self._ranking.add(one)

    def _judge(self, run: Run, new: Scored) -> None:
        self._ranking.keep(self._there(run, self._ranking.entries))
        if self._links_fail:
            self._link(run)
        place = self._ranking.place(new, self._asked)
        if place is None:
            return
        if self._options.weights_only:
            self._write(run, new)
        elif self._saved == run.step:
            self._take(run, new)
        else:
            self._asked = [*(one for one in self._asked if one.step != new.step), new]
            if run.world.rank == 0:
                run.request_checkpoint(self._reason(place, new))

    def _reason(self, place: int, new: Scored) -> str:
        what = "the best so far" if place == 1 else f"the best but {place - 1} so far"
        return f"{self._monitor.name} is {new.value:g} at step {new.step}, {what}"

    def _take(self, run: Run, new: Scored) -> None:
        if self._ranking.add(new):
            self._link(run)

    def _write(self, run: Run, new: Scored) -> None:
        """Add the weights on all ranks.

        If rank 0 could not write them, all ranks learn of that at the next evaluation.
        """
        path, provisional = self._path(run, new.step), self._provisional_path(run)
        if not self._provisional:
            self._save_weights(run, path)
        elif run.world.rank == 0 and provisional.exists():
            provisional.replace(path)
        self._take(run, new)

    def _save_weights(self, run: Run, path: Path) -> None:
        try:
            run.save_weights(path)
        except OSError as error:
            run.logger.warning("the best weights were not saved", step=run.step, reason=str(error))

    def _drop_provisional(self, run: Run) -> None:
        if self._provisional and run.world.rank == 0:
            self._provisional_path(run).unlink(missing_ok=True)
        self._provisional = False

    def _provisional_path(self, run: Run) -> Path:
        """Return the path of evaluated weights until the evaluation's record is complete."""
        return self._folder(run) / f".{self._options.link}-evaluated{_WEIGHTS}"

    def _there(self, run: Run, entries: list[Scored]) -> set[int]:
        """Return the steps of which there is what was saved.

        What rank 0 sees counts for all, so that all continue alike.
        """
        seen = [int(self._path(run, one.step).exists()) for one in entries]
        return {one.step for one, there in zip(entries, _of_rank_0(run, seen), strict=True) if there}

    def _link(self, run: Run) -> None:
        """Make links and files on rank 0 as the ranking says.

        What fails is tried again at the next save or evaluation. In a resumed run, weights which the ranking does not
        know may be those of later steps, or of another metric. They get another name, and are not removed.
        """
        if run.world.rank > 0:
            return
        try:
            self._make_links(run)
            self._links_fail = self._begins = False
        except OSError as error:
            self._links_fail = True
            run.logger.warning("the links to the best were not made, and will be tried again", reason=str(error))

    def _make_links(self, run: Run) -> None:
        paths = [self._path(run, step) for step in self._ranking.steps]
        targets = [path.name for path in paths if path.exists()]
        point_ranked(self._folder(run), self._options.link, targets, _WEIGHTS if self._options.weights_only else "")
        for path in self._files(run) if self._options.weights_only else []:
            superseded = path.with_name(f"superseded-{path.name}")
            if path.name in targets:
                superseded.unlink(missing_ok=True)
            elif self._begins:
                path.replace(superseded)
            else:
                path.unlink(missing_ok=True)

    def _folder(self, run: Run) -> Path:
        return run.paths.root / "weights" if self._options.weights_only else run.paths.checkpoints

    def _path(self, run: Run, step: int) -> Path:
        name = f"step-{step:06}"
        return self._folder(run) / (f"{self._options.link}-{name}{_WEIGHTS}" if self._options.weights_only else name)

    def _files(self, run: Run) -> list[Path]:
        ours = re.compile(rf"{re.escape(self._options.link)}-step-[0-9]+{re.escape(_WEIGHTS)}")
        folder = self._folder(run)
        return [path for path in folder.iterdir() if ours.fullmatch(path.name)] if folder.is_dir() else []


def _clash(recipe: Recipe) -> str | None:
    """Report several instances with one name for their links.

    Those of further places cannot be the name of another.
    """
    used = [(table.use or name, table) for name, table in recipe.plugins.items()]
    names = [
        f"{'weights' if table.options.get('weights_only') else 'checkpoints'}/{table.options.get('link', _LINKS[name])}"
        for name, table in used
        if name in _LINKS and table.enabled is True
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    return f"several tables make the link {', '.join(twice)}; give each another link" if twice else None


def _step(checkpoint: str) -> int:
    return int(Path(checkpoint).name.rpartition("-")[2])


def _of_rank_0(run: Run, numbers: list[int]) -> list[int]:
    if run.world.size == 1 or not numbers:
        return numbers
    import torch  # noqa: PLC0415 - the client imports this module, and must stay free of it

    told = torch.tensor(numbers, device=run.device)
    torch.distributed.broadcast(told, src=0)
    return [int(number) for number in told.tolist()]
