"""The training data of our own loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader

from trainrun.errors import TaskError, TrainingError, described
from trainrun.worker.data.deaths import died_ahead, fetched, is_death
from trainrun.worker.data.draws import bare
from trainrun.worker.data.samplers import EvaluationSampler, TrainSampler
from trainrun.worker.data.shield import close, iterate
from trainrun.worker.data.sizes import BatchSizes
from trainrun.worker.data.update import Update


class SampledLoader:
    """The default loader: a `DataLoader` together with the sampler that says which samples come when."""

    def __init__(self, loader: DataLoader[Any], sampler: TrainSampler | EvaluationSampler) -> None:
        self.loader = loader
        self.sampler = sampler
        self._seed = 0 if loader.generator is None else loader.generator.initial_seed()

    def __iter__(self) -> Iterator[Any]:
        if self.loader.generator is not None:  # the loader's processes get their seeds from it: one for each epoch
            self.loader.generator.manual_seed((self._seed << 20) + getattr(self.sampler, "epoch", 0))
        return iterate(self.loader)

    def __len__(self) -> int:
        return len(self.sampler)


class SampledBatches:
    """The training data of one run with our own loader.

    Its position counts global samples: it is the same on all ranks, and any number of ranks can resume from it.

    sizes: the batch size of each epoch; None for that of the sampler in all of them.
    """

    def __init__(self, loader: SampledLoader, sizes: BatchSizes | None = None) -> None:
        assert isinstance(loader.sampler, TrainSampler)
        self._loader = loader
        self._sizes = sizes
        self._sampler = loader.sampler
        self._batches: Iterator[Any] = iter(())
        self._used = 0
        self._fetched = 0  # micro-batches since the last update that was counted

    @property
    def dataset(self) -> Any:
        """The dataset, as `fingerprint` takes it."""
        return bare(self._loader.loader.dataset)

    def updates_in(self, epochs: int) -> int | None:
        """Return the number of updates in the first `epochs` epochs."""
        if self._sizes is None:
            return epochs * len(self._sampler)
        return sum(map(self._sampler.updates_with, self._sizes.of(range(1, epochs + 1))))

    @property
    def resumed(self) -> bool:
        """Whether `begin` enters its epoch in the middle."""
        return self._sampler.position > 0

    def progress(self) -> float | None:
        """Return the used share of the epoch, from 0 to 1.

        Only updates that were counted are part of it.
        """
        return (self._sampler.position + self._used) / self._sampler.samples

    def begin(self, epoch: int) -> Iterator[Update]:
        """Start `epoch` and yield its updates.

        It starts at its beginning or at the position of a loaded state.
        """
        if epoch != self._sampler.epoch:
            self._sampler.epoch, self._sampler.position = epoch, 0
        if self._sizes is not None:
            self._sampler.resize(*self._sizes.of([epoch]))
        self._used = self._fetched = 0
        close(self._batches)  # its processes end before others begin, even if another object refers to it
        self._batches = iter(self._loader)
        return self._sampler.updates()

    def fetch(self) -> Any:
        """Return the next micro-batch of the current update.

        Raises TrainingError naming its samples if that fails.
        """
        try:
            batch = fetched(self._batches, self._loader.loader.num_workers)
        except Exception as error:
            raise TrainingError(f"{self._where(error)}: {described(error)}") from error
        self._fetched += 1
        return batch

    def _where(self, error: Exception) -> str:
        start = self._sampler.position + self._used
        indices = self._sampler.indices(start, self._fetched)
        found = (
            f"loading training data failed (epoch {self._sampler.epoch}, micro-batch {self._fetched + 1} after"
            f" {start} samples of the epoch, dataset indices {_shown(indices)}"
        )
        died = self._loader.loader.num_workers and is_death(error)
        return f"{found}{died_ahead(self._loader.loader) if died else ''})"

    def use(self, update: Update) -> None:
        """Count an update that was made.

        The loader itself may be some batches ahead.
        """
        self._used += update.samples
        self._fetched = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data after the updates made so far.

        At the end of an epoch this is the beginning of the next.
        """
        place = self._sampler.state_dict()
        position = place["position"] + self._used
        if position < self._sampler.samples:
            return {**place, "position": position}
        return {"epoch": place["epoch"] + 1, "position": 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a position that `state_dict` returned, when its epoch is begun.

        Call it before `begin`.
        """
        if "position" not in state:
            raise TaskError(
                "the checkpoint's place in the data is that of a loader that the task or a plugin made, and now"
                ' trainrun makes the loader; bring that loader back, or start anew with checkpoint.resume = "never"'
            )
        self._sampler.load_state_dict({"epoch": state["epoch"], "position": state["position"]})
        self._used = 0


def _shown(indices: list[int]) -> str:
    most = 8
    return ", ".join(map(str, indices[:most])) + (f" and {len(indices) - most} more" if len(indices) > most else "")
