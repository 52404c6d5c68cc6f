"""Watching one attempt from its start to its end: output, status, signals. Every wait here has an end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from trainrun.launch import memory, storage
from trainrun.launch.handle import Launch, WorkersHandle
from trainrun.launch.hooks import poll_interval
from trainrun.launch.nodes.spread import SpreadWorkers
from trainrun.launch.signals import Asked, Signals, StopNow
from trainrun.launch.terminal import Say, Tail
from trainrun.launch.verdict import Ending, Forced
from trainrun.launch.vigil import Hung, Vigil
from trainrun.launch.watchdog import Hang
from trainrun.plugin.dispatch import Dispatcher
from trainrun.rundir.files import append_line, read_json
from trainrun.rundir.requests import take_stop

_PACE = 0.05  # seconds between two looks at everything


class StatusWatch:
    """Calls `on_status` when `status.json` has changed, and as often as a plugin's `poll_interval` asks.

    settle: called at each look; deals with what plugins have raised since the last one.
    """

    def __init__(self, launch: Launch, hooks: Dispatcher, settle: Callable[[], None]) -> None:
        self._launch = launch
        self._hooks = hooks
        self._settle = settle
        self._interval = poll_interval(hooks)
        self._seen: tuple[int, int] | None = None
        self._status: dict[str, Any] = {}
        self._due = 0.0

    def poll(self) -> None:
        """Look once."""
        self._look()
        self._settle()

    def _look(self) -> None:
        seen = self._stamp()
        waited = self._interval is not None and time.monotonic() >= self._due
        if seen is None or (seen == self._seen and not waited):
            return
        status = self._status if seen == self._seen else (read_json(self._launch.paths.status) or self._status)
        previous, self._status, self._seen = self._status, status, seen
        self._due = time.monotonic() + (self._interval or 0.0)
        if self._hooks.on_status:
            self._hooks.on_status(self._launch, status, previous)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._launch.paths.status.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns


def supervise(
    launch: Launch, handle: WorkersHandle, status: StatusWatch, signals: Signals, tails: Sequence[Tail], say: Say
) -> Ending:
    """Watch the workers until they have ended or been ended.

    Nothing of them is left when this returns or raises.
    """
    watch = memory.Watch.begin()
    stored = partial(storage.require, launch.paths)
    looks: list[Callable[[], None]] = [*(tail.poll for tail in tails), stored, status.poll, Vigil(launch, say).look]
    hang: Hang | None = None
    code: int | None = None
    forced: Forced | None = None
    try:
        code = _watch(launch, handle, signals, looks, say)
    except StopNow:
        forced = signals.caught()
    except _GraceOver:
        forced = "grace"
    except Hung as hung:
        hang = hung.hang
    finally:
        with signals.shield():
            handle.kill()
    with signals.shield():
        for tail in tails:
            tail.finish()
        status.poll()
    return Ending(code, signals.first, forced, watch.shortage(), *_of_nodes(handle), hang)


def _of_nodes(handle: WorkersHandle) -> tuple[str | None, Mapping[int, int]]:
    return (handle.lost, handle.clocks) if isinstance(handle, SpreadWorkers) else (None, {})


class _GraceOver(Exception):
    """The workers had their time to stop."""


def _watch(
    launch: Launch, handle: WorkersHandle, signals: Signals, looks: Sequence[Callable[[], None]], say: Say
) -> int:
    deadline: float | None = None
    while True:
        began = time.monotonic()
        code = handle.poll()
        if code is not None:
            return code
        for look in looks:
            look()
        look_for_stop(launch, signals)
        if signals.now:
            raise StopNow
        while (asked := signals.asked()) is not None:
            _forward(launch, handle, asked, say)
            if asked.request == "stop":
                deadline = began + launch.recipe.launch.grace
        if deadline is not None and began > deadline:
            raise _GraceOver
        time.sleep(max(0.0, began + _PACE - time.monotonic()))


def look_for_stop(launch: Launch, signals: Signals) -> None:
    """Take up what `trainrun stop` has left in the run directory.

    Requests from other nodes are taken up too.
    """
    while launch.hub is not None and (wish := launch.hub.asked()) is not None:
        signals.relay(wish.request, wish.source, f"{wish.source} received by {wish.peer}", now=wish.now)
    request = take_stop(launch.paths)
    if request is not None:
        by = f" ({request.by})" if request.by else ""
        signals.ask(Asked("stop", "trainrun stop", f"{request.reason or 'asked for'}{by}", "command"))
        signals.now = signals.now or request.now


def _forward(launch: Launch, handle: WorkersHandle, asked: Asked, say: Say) -> None:
    """Pass the request to the workers.

    They read it when the signal that follows it has reached them.
    """
    append_line(launch.paths.requests(launch.attempt), {"time": time.time(), **asked._asdict()})
    if asked.request == "stop":
        say(f"{asked.source}: stopping after this step; press Ctrl-C again to stop now")
        handle.stop(asked.reason)
    else:
        say(f"{asked.source}: asking for a checkpoint")
        handle.nudge()
