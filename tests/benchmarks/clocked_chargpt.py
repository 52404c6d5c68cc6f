"""The chargpt task with a stopwatch on rank 0, for throughput.py."""

from __future__ import annotations

import os
import time
from pathlib import Path

from trainrun import hookimpl
from trainrun.examples.chargpt import CharGPT

WARM_UP = 10


def write_rate(started: float, steps: int, tokens_a_step: int) -> None:
    """Leave tokens a second, over all ranks, where throughput.py asked for it."""
    rate = steps * tokens_a_step / (time.perf_counter() - started)
    Path(os.environ["THROUGHPUT_FILE"]).write_text(str(rate), encoding="utf-8")


class ClockedCharGPT(CharGPT):
    """Times the steps after the warm-up, up to the start of the last one."""

    started = 0.0

    @hookimpl(ranks="zero")
    def on_step_start(self, run, step):  # type: ignore[no-untyped-def]
        recipe = run.recipe
        if step == WARM_UP:
            self.started = time.perf_counter()
        elif step == recipe.train.steps:
            tokens = recipe.train.batch_size * run.options.context
            write_rate(self.started, step - WARM_UP, tokens)
