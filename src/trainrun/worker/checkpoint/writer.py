"""From the snapshots of all ranks to a published checkpoint, or to none.

Every stage is done by all ranks and ends with an exchange: if one rank fails all know it, and none continues. The
exchange has a process group of its own, because it happens on a thread while training uses the other one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainrun.checkpoint import commit, layout, retention
from trainrun.checkpoint.manifest import FileRecord, Manifest
from trainrun.errors import BadCheckpoint, TrainrunError
from trainrun.worker.checkpoint import finite, shards
from trainrun.worker.checkpoint.snapshot import Snapshot, hashed, pack
from trainrun.worker.world import World

Share = Callable[[object], list[object]]
Stages = Callable[[str, int], None]


class SaveFailed(TrainrunError):
    """A checkpoint was not made; the message says on which rank and why. The same on all ranks."""


class NotFinite(SaveFailed):
    """A checkpoint was not made because it would keep what is not finite; the message names that."""


@dataclass(frozen=True)
class About:
    """What a manifest says of the run, besides what a snapshot knows."""

    run: str
    attempt: int
    recipe: Mapping[str, Any]
    plugins: Mapping[str, Mapping[str, str]]
    versions: Mapping[str, str]
    dataset: Mapping[str, Any]
    strategy: str


def _nobody(_: str, __: int) -> None:
    """Ignore how far a save is."""


class Writer:
    """Writes the checkpoints of one rank together with the other ranks.

    share: gives a JSON value to all ranks and returns the values of all, in the order of ranks.
    stages: called with how far a save is and its step, to inject faults. "copy" comes on the training thread, before
    the state is copied. Then comes "write": this rank's tensors are written. At "commit" nothing but the rename is left
    to do, and at "committed" it is done. "retention" comes before old checkpoints are removed.
    """

    def __init__(
        self, folder: Path, about: About, world: World, *, share: Share, keep: int, stages: Stages = _nobody
    ) -> None:
        self._folder = folder
        self._about = about
        self._rank = world.rank
        self._size = world.size
        self._share = share
        self._keep = keep
        self.stages = stages
        self.protected: set[Path] = set()

    def write(self, snapshot: Snapshot) -> Path:
        """Write and publish the checkpoint; return its path.

        All ranks call it alike. Raises SaveFailed.
        """
        began = time.time()
        temp: Path | None = None
        try:
            temp = Path(self._agree(lambda: self._begin(snapshot))[0])
            return self._fill(temp, snapshot, began)
        except SaveFailed:
            if temp is not None and self._rank == 0:
                commit.discard(temp)
            raise

    def _begin(self, snapshot: Snapshot) -> str:
        if self._rank > 0:
            return ""
        return str(commit.begin(self._folder, snapshot.step, self._about.attempt))

    def _fill(self, temp: Path, snapshot: Snapshot, began: float) -> Path:
        plugins: dict[str, bytes] = {}

        def prepare() -> dict[str, Any]:
            plugins.update({name: pack(state) for name, state in snapshot.plugins.items()})
            return {
                "rows": shards.rows(snapshot.shards),
                "plugins": {name: hashed(data) for name, data in plugins.items()},
                "missing": dict(snapshot.missing),
                "not_finite": finite.unfit(snapshot.shards, snapshot.training, snapshot.plugins, snapshot.claims),
            }

        told = self._agree(prepare)
        if found := finite.of_ranks([one["not_finite"] for one in told]):
            raise NotFinite(found)
        metadata: list[Any] = []

        def plan() -> list[list[shards.Row]] | None:
            if self._rank > 0:
                return None
            made, wanted = shards.plan([one["rows"] for one in told])
            metadata.append(made)
            return wanted

        wanted = self._agree(plan)[0][self._rank]
        written = self._agree(lambda: self._write_files(temp, snapshot, plugins, told[0]["plugins"], wanted))
        stages, step = self.stages, snapshot.step

        def finish() -> str:
            if self._rank > 0:
                stages("commit", step)
                return ""
            shards.finish(temp / layout.STATE, metadata[0], [one["rows"] for one in written])
            files = {name: FileRecord(*record) for one in written for name, record in one["files"].items()}
            hidden = f"{layout.STATE}/.metadata"
            files[hidden] = commit.digest(temp / hidden)
            missing = {name: why for one in told for name, why in one["missing"].items()}
            manifest = self._manifest(snapshot, files, missing, began)
            path = commit.publish(temp, manifest, lambda: stages("commit", step))
            stages("committed", step)
            return str(path)

        path = Path(self._agree(finish)[0])
        if self._rank > 0:
            stages("committed", step)
        stages("retention", step)
        self._prune(path)
        return path

    def _write_files(
        self,
        temp: Path,
        snapshot: Snapshot,
        plugins: Mapping[str, bytes],
        of_rank_0: Mapping[str, str],
        wanted: Sequence[shards.Row],
    ) -> dict[str, Any]:
        rank, files = self._rank, {}
        rows = shards.write(temp / layout.STATE, rank, snapshot.shards, wanted)
        self.stages("write", snapshot.step)
        for name in {row[4] for row in rows}:
            files[f"{layout.STATE}/{name}"] = commit.digest(temp / layout.STATE / name)
        if rank == 0:
            files[layout.TRAINING] = _write(temp / layout.TRAINING, pack(snapshot.training))
        files[layout.rank_file(rank)] = _write(temp / layout.rank_file(rank), pack(snapshot.own))
        for name, data in plugins.items():
            if rank == 0 or hashed(data) != of_rank_0.get(name):
                file = layout.plugin_file(name, rank or None)
                files[file] = _write(temp / file, data)
        return {"rows": rows, "files": {name: [one.size, one.sha256] for name, one in files.items()}}

    def _manifest(
        self, snapshot: Snapshot, files: Mapping[str, FileRecord], missing: Mapping[str, str], began: float
    ) -> Manifest:
        about = self._about
        return Manifest(
            run=about.run,
            attempt=about.attempt,
            step=snapshot.step,
            epoch=snapshot.epoch,
            samples_seen=snapshot.samples_seen,
            world_size=self._size,
            created=began,
            seconds=round(time.time() - began, 3),
            reason=snapshot.reason,
            strategy=about.strategy,
            metrics=snapshot.metrics,
            recipe=about.recipe,
            plugins=about.plugins,
            versions=about.versions,
            disabled=snapshot.disabled,
            missing=missing,
            finite=True,
            dataset=about.dataset,
            files=files,
        )

    def _prune(self, newest: Path) -> None:
        if self._rank > 0:
            return
        # The new one is good, with or without the old ones; they are tried again after the next.
        with suppress(OSError, BadCheckpoint):
            retention.prune(newest.parent, self._keep, protect=self.protected)
        self.protected.clear()

    def _agree(self, work: Callable[[], Any]) -> list[Any]:
        """Do a stage on all ranks; return the results of all.

        Raises SaveFailed on all ranks if one failed.
        """
        mine: dict[str, Any] = {}
        try:
            mine["result"] = work()
        except Exception as error:  # with any exception, the peers wait for a reply
            mine["error"] = f"rank {self._rank}: {type(error).__name__}: {error}"
        told: Any = self._share(mine)
        errors = [one["error"] for one in told if "error" in one]
        if errors:
            raise SaveFailed("; ".join(errors))
        return [one["result"] for one in told]


def _write(path: Path, data: bytes) -> FileRecord:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(len(data), hashed(data))
