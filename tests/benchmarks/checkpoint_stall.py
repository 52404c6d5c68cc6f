"""How long training waits for a checkpoint: `trainrun` beside a plain copy, `torch.save` and torch's own checkpoints.

One process, 202 MB of model and AdamW state on the CPU. The plain copy goes into memory that is there already, which
is the least that anybody can do. Everything else writes to the same disk; nobody but trainrun syncs and hashes. What
goes on in the background after the wait is over is waited for outside the clock. Then, how memory grows over saves.
"""

from __future__ import annotations

import argparse
import operator
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from measure import interleave, paired, show, spread
from torch import nn

from trainrun import hookimpl
from trainrun.builtin import BUILTINS
from trainrun.plugin.instance import Instance
from trainrun.recipe.freeze import freeze
from trainrun.rundir import RunPaths
from trainrun.rundir.files import write_json
from trainrun.worker.checkpoint import capture
from trainrun.worker.checkpoint.saver import Saver
from trainrun.worker.logs import make_logger
from trainrun.worker.session import Session
from trainrun.worker.setup import Worker
from trainrun.worker.ties import Ties
from trainrun.worker.world import World

LAYERS, WIDTH = 16, 1024
PLAIN = "plain copy"


class Work:
    """The task: a model of 16.8 million parameters."""

    @hookimpl
    def build_model(self) -> nn.Module:
        return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return torch.utils.data.TensorDataset(torch.randn(8, WIDTH)) if split == "train" else None

    @hookimpl
    def training_step(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0]).square().mean()


def prepare(root: Path) -> Session:
    """A training whose optimizer has made a step."""
    paths = RunPaths(root)
    paths.logs.mkdir()
    paths.attempt(1).mkdir(parents=True)
    recipe = {
        "task": {"use": "work"},
        "train": {"steps": 1, "batch_size": 8, "device": "cpu"},
        "evaluate": {"splits": []},
        "run": {"deterministic": False},
    }
    paths.recipe.write_text(freeze(recipe), encoding="utf-8")
    instances = [Instance(name, "builtin", target) for name, target in BUILTINS]
    instances.append(Instance("work", "task", f"{__name__}:Work"))
    write_json(paths.manifest, {"instances": [instance.to_json() for instance in instances]})
    logger = make_logger(paths.rank_log(0), 64, run=paths.run_id, rank=0, attempt=1)
    session = Worker(paths, World(), 1, logger, Ties()).session()
    session.model(torch.randn(8, WIDTH)).square().mean().backward()
    session.optimizer.step()
    return session


class Arms:
    """The things compared; each answers with the milliseconds that training would wait."""

    def __init__(self, session: Session, folder: Path) -> None:
        self._session = session
        self._folder = folder
        self._made = 0
        self._saver: Saver = session.saving._saver  # what is measured is behind it
        self._tensors = capture.tensors(session.model, session.optimizer)
        self._copies = [torch.empty_like(tensor) for tensor in self._tensors.values()]

    @property
    def megabytes(self) -> float:
        """What is saved."""
        return sum(tensor.nbytes for tensor in self._tensors.values()) / 1e6

    def copy(self) -> float:
        def work() -> None:
            for copy, tensor in zip(self._copies, self._tensors.values(), strict=True):
                copy.copy_(tensor.detach())

        return _timed(work)

    def trainrun(self) -> float:
        self._session.state.step += 1
        waited = _timed(lambda: self._saver.save(self._session, "benchmark"))
        ended = self._saver.wait(self._session)
        assert ended is not None
        assert ended.problem is None, ended.problem
        return waited

    def torch_save(self) -> float:
        return _timed(lambda: torch.save(self._tensors, self._path("file")))

    def dcp_save(self) -> float:
        return _timed(lambda: dcp.save(self._tensors, checkpoint_id=self._path("folder"), no_dist=True))

    def dcp_async_save(self) -> float:
        futures: list[Any] = []
        waited = _timed(
            lambda: futures.append(dcp.async_save(self._tensors, checkpoint_id=self._path("folder"), no_dist=True))
        )
        futures[0].result()
        return waited

    def _path(self, kind: str) -> str:
        self._made += 1
        return str(self._folder / f"{kind}-{self._made % 2}")


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def resident() -> float:
    """MiB of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--saves", type=int, default=200, help="for the growth of memory")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        root.mkdir()
        arms = Arms(prepare(root), Path(folder))
        trials = {
            PLAIN: arms.copy,
            "trainrun": arms.trainrun,
            "torch.save": arms.torch_save,
            "dcp.save": arms.dcp_save,
            "dcp.async_save": arms.dcp_async_save,
        }
        for trial in trials.values():
            trial()  # the first one allocates
        found = interleave(trials, arguments.rounds)
        ratios = {name: paired(values, found[PLAIN], operator.truediv) for name, values in found.items()}
        header = [f"training waits, ms, for {arms.megabytes:.0f} MB", "", "ratio"]
        show(header, [[name, spread(found[name]), spread(ratios[name], 2)] for name in trials])
        growth(arms.trainrun, arguments.saves)


def growth(save: Callable[[], float], saves: int) -> None:
    """How much more memory there is after the last save than after the first few."""
    early = saves // 10
    for _ in range(early):
        save()
    before = resident()
    for _ in range(saves - early):
        save()
    show(
        ["memory, MiB", f"after {early} saves", f"after {saves}"], [["trainrun", f"{before:.0f}", f"{resident():.0f}"]]
    )


if __name__ == "__main__":
    main()
