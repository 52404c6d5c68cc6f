"""What `trainrun smoke --inject` adds to a run: chosen faults at chosen places, each once in a run.

Not on by default. A recipe of one's own enables it with `use = "trainrun.builtin.inject:Inject"`.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pydantic

from trainrun import Field, PluginOptions, hookimpl
from trainrun.builtin.fault import Fault, impossible, injected, parse
from trainrun.errors import TrainingError, UsageError
from trainrun.rundir.lease import held

if TYPE_CHECKING:
    import torch

    from trainrun.recipe import Recipe
    from trainrun.worker.run import Run

_HEARD = 10.0  # seconds that the client has to react to a signal
_PRESSED = 0.1  # seconds between two Ctrl-C

_SIGNALS = {
    "sigterm": signal.SIGTERM,
    "sigint": signal.SIGINT,
    "sighup": signal.SIGHUP,
    "usr1": signal.SIGUSR1,
    "usr2": signal.SIGUSR2,
}


class InjectedFault(Exception):
    """Raised on purpose."""


class Inject:
    """Make faults happen: signals, killed and hanging processes, errors in any plugin's hook."""

    class Options(PluginOptions):
        """What the recipe may set in the plugin's table."""

        faults: list[str] = Field(
            [], description="Faults to inject, such as `kill:rank1@5`; see `trainrun smoke --help`."
        )

        @pydantic.field_validator("faults")
        @classmethod
        def _known(cls, faults: list[str]) -> list[str]:
            for text in faults:
                _parsed(text)
            return faults

    on_error = "fail"

    def __init__(self, options: Options) -> None:
        self._faults = tuple(map(parse, options.faults))
        self._fired: set[Fault] = set()  # in the client, which is one process for all attempts
        self._spoiled = 0  # the step whose loss and gradients are NaN

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> list[str]:
        table = recipe.launch
        problems = (impossible(fault, table.workers, table.start) for fault in self._faults)
        return [problem for problem in problems if problem]

    @hookimpl
    def on_worker_start(self, run: Run) -> None:
        self._reach(run, "setup")

    @hookimpl
    def on_step_start(self, run: Run) -> None:
        self._reach(run, "step-start")

    @hookimpl
    def on_microbatch_start(self, run: Run) -> None:
        self._reach(run, "batch")

    @hookimpl
    def on_forward_end(self, run: Run, loss: torch.Tensor) -> None:
        self._reach(run, "forward")
        for fault in self._faults:
            if fault.spoils_loss and _due(fault, run, run.step) and claim(fault, run):
                self._spoiled = run.step
        if self._spoiled == run.step:
            loss.data.fill_(math.nan)  # besides autograd, which the loss's own value does not reach

    @hookimpl
    def on_backward_end(self, run: Run) -> None:
        self._reach(run, "backward")
        if self._spoiled == run.step and run.model is not None:
            for parameter in run.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(math.nan)

    @hookimpl
    def on_update_end(self, run: Run) -> None:
        self._reach(run, "update")

    @hookimpl
    def on_evaluation_start(self, run: Run) -> None:
        self._reach(run, "evaluation")

    def intercept_hookimpl(
        self, plugin: str, hook: str, function: Callable[..., Any], run: Run | None
    ) -> Callable[..., Any]:
        """Wrap another plugin's hookimpl if one of the faults asks for it.

        `run` is None in the client.
        """
        for fault in self._faults:
            if (fault.plugin, fault.hook) == (plugin, hook):
                function = self._raising(fault, function, run)
        return function

    def _raising(self, fault: Fault, function: Callable[..., Any], run: Run | None) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            if self._is_turn(fault, run):
                raise InjectedFault(fault.text)
            return function(*arguments)

        return call

    def _is_turn(self, fault: Fault, run: Run | None) -> bool:
        if run is not None:
            return _due(fault, run, run.step) and claim(fault, run)
        first = fault not in self._fired
        self._fired.add(fault)
        return first or fault.always

    def reach_stage(self, stage: str, step: int, run: Run) -> None:
        """Inject faults when a save has come to a phase in `fault.SAVING`.

        Called on the save's thread, but for "copy". step: that of the save.
        """
        self._reach(run, stage, step)

    def _reach(self, run: Run, phase: str, step: int | None = None) -> None:
        at = run.step if step is None else step
        for fault in self._faults:
            elsewhere = fault.strikes_hook or fault.spoils_loss
            if fault.phase == phase and not elsewhere and _due(fault, run, at) and claim(fault, run):
                _FIRE[fault.kind](fault, run)


def claim(fault: Fault, run: Run) -> bool:
    """Return whether this rank is to continue with the fault.

    It is in the first attempt that comes to it, unless it comes in all.
    """
    folder = injected(run.paths.root)
    folder.mkdir(exist_ok=True)
    token = folder / re.sub(r"[^\w.!-]", "-", fault.text)
    if not fault.always and _first_attempt(token, run.attempt) != run.attempt:
        return False
    try:
        token.with_name(f"{token.name}-{run.attempt}-rank{run.world.rank}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _first_attempt(token: Path, attempt: int) -> int:
    """Return the attempt that came first to what `token` stands for.

    A link: it is there with its content or not at all.
    """
    with suppress(FileExistsError):
        token.symlink_to(str(attempt))
    return int(os.readlink(token))  # noqa: PTH115 - what it says, not its destination


def _parsed(text: str) -> Fault:
    try:
        return parse(text)
    except UsageError as error:
        raise ValueError(str(error)) from None  # pydantic's way to say it


def _due(fault: Fault, run: Run, step: int) -> bool:
    return fault.rank in (None, run.world.rank) and step >= fault.step


# --- what the kinds do ---


def _signal_client(fault: Fault, run: Run) -> None:
    """Send the signal, and continue only when the client has reacted.

    A few steps could be over before that.
    """
    asked = run.paths.requests(run.attempt)
    before = _size(asked)
    os.kill(_client(run), _SIGNALS[fault.kind])
    deadline = time.monotonic() + _HEARD
    while not _ignored(fault, run) and _size(asked) == before and time.monotonic() < deadline:
        time.sleep(0.01)


def _ignored(fault: Fault, run: Run) -> bool:
    answers = {"usr1": run.recipe.launch.on_usr1, "usr2": run.recipe.launch.on_usr2}
    return answers.get(fault.kind) == "ignore"


def _press_again(_: Fault, run: Run) -> None:
    deadline = time.monotonic() + _HEARD
    while time.monotonic() < deadline:  # until this process is killed
        os.kill(_client(run), signal.SIGINT)
        time.sleep(_PRESSED)


def _kill(fault: Fault, run: Run) -> None:
    if fault.process is None:
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(_process(fault, run), signal.SIGKILL)
    time.sleep(_HEARD)  # this worker must not outlive it; there is no other work until then


def _process(fault: Fault, run: Run) -> int:
    if fault.process == "client":
        return _client(run)
    warm = run.recipe.launch.start == "warm"
    return _parent(os.getppid()) if warm and fault.process == "agent" else os.getppid()


def _stop(_: Fault, __: Run) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang(_: Fault, __: Run) -> None:
    threading.Event().wait()


def _segv(_: Fault, __: Run) -> None:
    ctypes.string_at(0)


def _abort(_: Fault, __: Run) -> NoReturn:
    os.abort()


def _exit(fault: Fault, _: Run) -> NoReturn:
    sys.exit(fault.code)


def _leave(fault: Fault, _: Run) -> NoReturn:
    os._exit(fault.code)


def _oom(fault: Fault, _: Run) -> NoReturn:
    import torch  # noqa: PLC0415 - the client imports this plugin too

    raise torch.OutOfMemoryError(f"{fault.text}: tried to allocate more memory than there is")


def _raise(fault: Fault, _: Run) -> NoReturn:
    raise InjectedFault(fault.text)


_FIRE: dict[str, Callable[[Fault, Run], None]] = {
    **dict.fromkeys(_SIGNALS, _signal_client),
    "sigint2": _press_again,
    "kill": _kill,
    "stop": _stop,
    "hang": _hang,
    "segv": _segv,
    "abort": _abort,
    "exit": _exit,
    "leave": _leave,
    "oom": _oom,
    "raise": _raise,
}


def _client(run: Run) -> int:
    owner = held(run.paths)
    if owner is None:
        raise TrainingError(f"{run.paths.lease}: this run has no owner; there is no launching process to signal")
    return owner.pid


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return int(file.read().rpartition(")")[2].split()[1])


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
