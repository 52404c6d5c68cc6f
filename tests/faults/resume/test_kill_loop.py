"""Killed again and again, wherever it hurts, and gone on with: the end is that of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from trainrun.builtin.fault import SAVING

KILLS = int(os.environ.get("TRAINRUN_KILLS", "15"))
SEED = int(os.environ.get("TRAINRUN_SEED", "4"))
EVERY = 3  # steps between two checkpoints

# As often as that in thirty kills: after that of a rank or the server the next attempt is warm, and soon there.
WHO = [*["rank0"] * 12, *["rank1"] * 12, "all", "all", "agent", "server", "client", "client"]
PLACES = ["step-start", "batch", "forward", "backward", "update", *SAVING, *SAVING]


def chain(rng: random.Random, length: int) -> tuple[list[str], int]:
    """Kills at higher and higher steps, and the step of the last.

    There is always a save between two of them that the next one after it waits for, so that every attempt gets on.
    """
    faults, step = [], 0
    for who in rng.sample(WHO * -(-length // len(WHO)), length):
        step += rng.randint(2 * EVERY, 3 * EVERY)
        faults.append(f"kill:{who}@{step}:{rng.choice(PLACES)}")
    return faults, step


@pytest.mark.timeout(1200)
def test_many_kills(kept: Any, over: Callable[..., Any], look: Callable[..., Any]) -> None:
    faults, last = chain(random.Random(SEED), KILLS)
    settings = {"train__steps": last + EVERY, "launch__max_restarts": KILLS}
    straight = kept.launch(**settings)
    assert straight.code == 0, straight.stderr
    undisturbed = look(straight.run)
    table = {"plugins__inject__use": "trainrun.builtin.inject:Inject", "plugins__inject__faults": json.dumps(faults)}
    ended = over(kept.start_launch(**table, **settings))
    for _ in faults:
        if ended.code != -9:  # else it was the client that was killed
            break
        ended = over(kept.start("resume", "latest"))
    assert ended.code == 0, ended.stderr
    run = look(ended.run)
    tokens = [re.sub(r"[^\w.!-]", "-", fault) for fault in faults]
    assert [token for token in tokens if not (run.run / "attempts" / "injected" / token).is_symlink()] == []
    assert len(run.starts()) == KILLS + 1
    assert lost(run) == []
    assert run.samples() == undisturbed.samples()
    assert run.metrics() == undisturbed.metrics()
    assert run.contents() == undisturbed.contents()


def lost(run: Any) -> list[str]:
    """Where more was lost than the steps since a checkpoint and, beside them, those since the save that was made."""
    starts, found = run.starts(), []
    lines = [line for of_rank in run.records().values() for line in of_rank]
    for attempt, start in starts.items():
        reached = max(line["step"] for line in lines if line["attempt"] == attempt)
        if attempt + 1 in starts and reached - starts[attempt + 1] > 2 * EVERY:
            found.append(f"attempt {attempt} from {start} to {reached}, the next one from {starts[attempt + 1]}")
    return found
