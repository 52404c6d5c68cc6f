"""A plugin for checks.py: it switches the loop's checks off and on, and notes how long the steps of each block take."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import perf_counter
from typing import Any

from trainrun import hookimpl

BLOCK = 10  # steps
WARM_UP = 40  # steps


class Switched:
    def __init__(self) -> None:
        self._blocks: dict[str, list[float]] = {"checked": [], "unchecked": []}
        self._kept: dict[str, Any] = {}
        self._mode = "checked"
        self._began = 0.0

    @hookimpl(mutates=True)
    def on_step_start(self, step: int) -> None:
        block, within = divmod(step - 1 - WARM_UP, BLOCK)
        if within or block < 0:
            return
        now = perf_counter()
        if block:
            self._blocks[self._mode].append((now - self._began) / BLOCK)
        # off on on off off on on off …: a drift weighs on both alike
        self._switch("unchecked" if block % 4 in (0, 3) else "checked")
        self._began = perf_counter()

    @hookimpl
    def on_train_end(self, run: Any) -> None:
        self._switch("checked")
        pairs = min(map(len, self._blocks.values()))
        if run.world.rank == 0:
            blocks = {mode: seconds[:pairs] for mode, seconds in self._blocks.items()}
            Path(os.environ["BLOCKS_FILE"]).write_text(json.dumps(blocks), encoding="utf-8")

    def _switch(self, mode: str) -> None:
        from trainrun.worker import loop
        from trainrun.worker.reduction import Reduction
        from trainrun.worker.replicas import Replicas

        if mode == self._mode:
            return
        self._mode = mode
        places = [(loop, "depends_on"), (Replicas, "changed"), (Reduction, "require_complete")]
        nothing = {"depends_on": lambda *_: True, "changed": lambda _: False, "require_complete": lambda *_: None}
        for owner, name in places:
            self._kept.setdefault(name, getattr(owner, name))
            setattr(owner, name, self._kept[name] if mode == "checked" else nothing[name])
