"""What ties a worker to its client: it shows what it does, and receives requests."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable
from dataclasses import dataclass, field

import tomli

from trainrun.recipe.model import LaunchTable
from trainrun.rundir import RunPaths
from trainrun.rundir.pulse import STACKS_SIGNAL, Beat, Pulse
from trainrun.worker.signals import Deadline, Inbox, stopping_signals, user_signals


@dataclass(frozen=True)
class Ties:
    """Those of one worker. Made without arguments they end nowhere: for training without a client."""

    pulse: Pulse = field(default_factory=Pulse)
    inbox: Inbox = field(default_factory=Inbox)


def tie(paths: RunPaths, attempt: int, rank: int, end: Callable[[Beat], None]) -> tuple[Ties, Deadline]:
    """Tie this process to the client of an attempt whose folder exists.

    The descriptor 2 must be the worker's output.

    end: ends the process if it was asked to stop and has not; called from a thread with the place of the main thread.
    Raises OSError.
    """
    _tell_of_stacks(paths, attempt, rank)
    table = LaunchTable.model_validate(tomli.loads(paths.recipe.read_text(encoding="utf-8")).get("launch", {}))
    users = user_signals(table)
    pulse = Pulse.create(paths.pulse(attempt, rank))
    deadline = Deadline(table.grace, stopping_signals(users), lambda: end(pulse.read()))
    deadline.start()
    inbox = Inbox(paths.requests(attempt), users)
    inbox.install()
    return Ties(pulse, inbox), deadline


def _tell_of_stacks(paths: RunPaths, attempt: int, rank: int) -> None:
    """Have the stacks of all threads written on request and in crashes.

    The request is the client's. It is done in the signal itself, so also if a thread in C never lets another one run.
    """
    file = paths.stacks(attempt, rank).open("w", encoding="utf-8")
    faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True)  # keeps the file
    faulthandler.enable(file=2, all_threads=True)
