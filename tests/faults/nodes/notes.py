"""Writes down where each rank is, and with what it has ended; and raises or hangs where it is told to."""

from __future__ import annotations

import os
import threading

from trainrun import hookimpl


class Notes:
    @hookimpl
    def on_step_start(self, run, step):
        with (run.paths.root / f"steps-{run.attempt}-{run.world.rank}").open("a") as file:
            file.write(f"{step}\n")
        here = f"{run.world.rank}:{step}"
        if os.environ.get("RAISE_AT") == here and run.attempt == 1:
            raise RuntimeError("as it was told")
        if os.environ.get("HANG_AT") == here:
            threading.Event().wait()

    @hookimpl
    def on_train_end(self, run):
        weights = [parameter.flatten().tolist() for parameter in run.model.parameters()]
        world = run.world
        place = f"{world.rank} of {world.size}, {world.local_rank} of {world.local_size} on node {world.node_rank}"
        (run.paths.root / f"weights-{world.rank}").write_text(f"{weights}")
        (run.paths.root / f"place-{world.rank}").write_text(place)
