"""The side of every node but node 0: it finds node 0, is let in, and listens to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from trainrun.launch.nodes import admission, endpoint
from trainrun.launch.nodes.admission import Compare, Refused, Visitor
from trainrun.launch.nodes.channel import Channel
from trainrun.launch.nodes.endpoint import Endpoint
from trainrun.launch.nodes.messages import fit
from trainrun.launch.terminal import Say
from trainrun.printing import inline
from trainrun.rundir.paths import RunPaths

_TRY = 3.0  # seconds that one connection may take to be made
_PAUSE = 0.5  # seconds between two tries
_PAUSES = 0.05


class NotReached(Exception):
    """Node 0 could not be reached in time."""


@dataclass(frozen=True)
class Search:
    """Where to find node 0, for how long to try (seconds), and what asks to give up."""

    where: Endpoint
    seconds: float
    say: Say
    wanted: Callable[[], bool]


def join(search: Search, visitor: Visitor, compare: Compare) -> tuple[Channel, RunPaths]:
    """Join the run of node 0.

    Raises NotReached, or Refused with the reason of a node 0 that has proved itself. Any other process that listens at
    the endpoint only makes this wait: it may have taken the port before node 0.
    """
    deadline = time.monotonic() + search.seconds
    refused_since: float | None = None
    said = ""
    while True:
        try:
            return _once(search, visitor, compare)
        except Refused as refused:
            refused_since = refused_since or time.monotonic()
            if time.monotonic() - refused_since >= refused.patience:
                raise
            why = fit(inline(refused))
        except OSError as error:
            refused_since = None
            why = str(error.strerror or error)
        if why != said:
            search.say(f"waiting for node 0 at {endpoint.described(search.where)}: {why}")
            said = why
        _pause(search, deadline, why)


def _once(search: Search, visitor: Visitor, compare: Compare) -> tuple[Channel, RunPaths]:
    return admission.enter(endpoint.connect(search.where, _TRY), visitor, compare, search.wanted)


def _pause(search: Search, deadline: float, why: str) -> None:
    until = time.monotonic() + _PAUSE
    while time.monotonic() < until:
        if time.monotonic() > deadline or not search.wanted():
            raise NotReached(
                f"--rdzv-endpoint {endpoint.described(search.where)}: node 0 could not be reached within "
                f"{search.seconds:g} s: {why}; is it running there, with the same endpoint?"
            )
        time.sleep(_PAUSES)
