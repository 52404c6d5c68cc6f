"""Guard every call of a hookimpl: apply its error policy and name the plugin that failed.

A hookimpl that raises is survived only if nothing half-done can stay behind: in an event, not in a wrapper, and not if
it declares `mutates=True`. Every other exception fails the run.
"""

from __future__ import annotations

import shlex
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainrun.errors import HookFailed, HookInterrupted
from trainrun.marker import Kind
from trainrun.plugin.description import ImplInfo
from trainrun.plugin.instance import Instance

# Every exception has a plugin and a hook to be named: a plugin that calls sys.exit() must not look like an orderly
# end of the worker, and asyncio.CancelledError is no `Exception` either.
CAUGHT = BaseException

Policy = Literal["fail", "disable", "warn"]


class Interrupt(KeyboardInterrupt):
    """Raised by trainrun itself into running code: no error of the hookimpl that it interrupts."""


@dataclass(frozen=True)
class Fault:
    """A hookimpl raised and the run continues: `action` says what becomes of the plugin."""

    instance: str
    hook: str
    error: BaseException
    action: Policy


def policy(instance: Instance, impl: ImplInfo, kind: Kind) -> Policy:
    """Return what an error in this hookimpl leads to."""
    survivable = kind == "event" and not impl.wrapper and not impl.mutates
    return instance.on_error if survivable else "fail"


def failure(instance: Instance, hook: str, error: BaseException) -> HookFailed:
    """Make the exception that ends the run because of `error`.

    It names the plugin and how to do without it. Raises `error` itself if it is not the plugin's: an `Interrupt` of our
    own.
    """
    if isinstance(error, Interrupt):
        raise error
    if isinstance(error, HookFailed):
        return error
    kind = HookInterrupted if isinstance(error, KeyboardInterrupt) else HookFailed
    failed = kind(instance.name, hook, error, switch(instance))
    failed.__cause__ = error
    return failed


def switch(instance: Instance) -> str:
    """Return how to do without the plugin, and name its distribution.

    The text is empty for the task and for built-in plugins.
    """
    if instance.role != "plugin":
        return ""
    source = f" (from {instance.distribution} {instance.version})" if instance.distribution else ""
    return f"to run without it: -p {shlex.quote(f'no:{instance.name}')}{source}"


def hookimpl_traceback(error: BaseException) -> str:
    """Return the traceback of what a hookimpl raised.

    The frames that called it are left out.
    """
    trace = error.__traceback__
    while trace is not None and _is_caller(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


def _is_caller(file: str) -> bool:
    return file.startswith("<hook ") or file == _DISPATCH or "/site-packages/pluggy/" in file


_DISPATCH = str(Path(__file__).with_name("dispatch.py"))


class Guard:
    """The errors of one hook call: survived ones go to `on_fault`, the first fatal one is raised at its end."""

    def __init__(self, on_fault: Callable[[Fault], None]) -> None:
        self._on_fault = on_fault
        self._fatal: list[HookFailed] = []

    def failed(self, instance: Instance, hook: str, action: Policy, error: BaseException) -> None:
        """Take note of `error`; the remaining hookimpls of the hook still run."""
        # A hookimpl may call hooks itself: what fails the run there is not for its own policy to survive. Nor is a
        # Ctrl-C, which reaches the main thread as an exception in any code that it runs.
        if action == "fail" or isinstance(error, HookFailed | KeyboardInterrupt):
            self._fatal.append(failure(instance, hook, error))
        else:
            self._on_fault(Fault(instance.name, hook, error, action))

    def settle(self) -> None:
        """Raise the first fatal error since the last call.

        The others are its notes.
        """
        if self._fatal:
            first, *others = self._fatal
            self._fatal.clear()
            for other in others:
                first.add_note(f"also: {other}")
            raise first
