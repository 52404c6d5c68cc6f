"""What has to follow from an injected fault, by the recipe's own settings and the plugins' error policies."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from trainrun.builtin.fault import Fault, impossible
from trainrun.errors import ExitCode, UsageError
from trainrun.plugin.guard import policy
from trainrun.recipe.suggest import did_you_mean

if TYPE_CHECKING:
    from trainrun.plugin.description import ImplInfo
    from trainrun.plugin.instance import Instance
    from trainrun.plugin.resolve import Resolved

_NO_USE = 4  # attempts with a fault that always comes back: one with progress, and three without

_WORDS = {
    "kill": "SIGKILL",
    "segv": "SIGSEGV",
    "abort": "SIGABRT",
    "exit": "SystemExit",
    "oom": "OutOfMemoryError",
    "raise": "InjectedFault",
    "nan": "train/loss is nan",
}
_STOPPED = (int(ExitCode.TERMINATED), int(ExitCode.RESUMABLE))


class Expected(NamedTuple):
    """What has to follow from a fault. `codes`: the exit codes that will do; `words`: what the reason must name.

    `decision` is what becomes of the plugin whose hook raised.
    """

    codes: tuple[int, ...]
    attempts: int = 1
    words: tuple[str, ...] = ()
    decision: str | None = None

    def __str__(self) -> str:
        code = " or ".join(map(str, self.codes))
        parts = [f"exit {code}", in_attempts(self.attempts), self.decision, " ".join(self.words)]
        return ", ".join(filter(None, parts))


def in_attempts(count: int) -> str:
    """Return the number of attempts in words; empty for the usual one."""
    return "" if count == 1 else f"{count} attempts"


def check(faults: Sequence[Fault], resolved: Resolved) -> None:
    """Raise UsageError for what cannot happen with this recipe."""
    table = resolved.data["launch"]
    for fault in faults:
        if problem := impossible(fault, table["workers"], table["start"]):
            raise UsageError(problem)
        if fault.hook is not None:
            _check_hook(fault, resolved)


def _check_hook(fault: Fault, resolved: Resolved) -> None:
    names = [instance.name for instance in resolved.instances]
    if fault.plugin not in names:
        hint = did_you_mean(str(fault.plugin), names)
        raise UsageError(f"fault {fault.text!r}: no plugin is called {fault.plugin!r}; {hint or ', '.join(names)}")
    hooks = _hooks(fault, resolved)
    if fault.hook not in hooks:
        raise UsageError(f"fault {fault.text!r}: {fault.plugin} implements {', '.join(sorted(hooks)) or 'no hook'}")


def expect(fault: Fault, resolved: Resolved) -> Expected:
    """Return what has to follow from the fault, with this recipe's policies."""
    if fault.hook is not None and (action := _policy(fault, resolved)) != "fail":
        return Expected((0,), decision=action)
    if fault.kind in _BY_SIGNAL:
        return _BY_SIGNAL[fault.kind]
    if fault.kind in {"usr1", "usr2"}:
        stops = resolved.data["launch"][f"on_{fault.kind}"] == "stop"
        return Expected(_STOPPED) if stops else Expected((0,))
    if fault.process == "client":
        return Expected((-signal.SIGKILL,))
    if fault.is_code:
        return _of_code(fault, resolved.data["train"])
    code, attempts = (int(ExitCode.NO_PROGRESS), _NO_USE) if fault.always else (0, 2)
    return Expected((code,), attempts, words=_words(fault))


_BY_SIGNAL = {
    "sigterm": Expected(_STOPPED, words=("SIGTERM",)),
    "sighup": Expected(_STOPPED, words=("SIGHUP",)),
    "sigint": Expected((int(ExitCode.INTERRUPTED),), words=("SIGINT",)),
    "sigint2": Expected((int(ExitCode.INTERRUPTED),)),
}


def _of_code(fault: Fault, train: Mapping[str, Any]) -> Expected:
    """Return what has to follow from an exception or a NaN loss.

    `train.nonfinite` decides about the latter.
    """
    if fault.spoils_loss and train["nonfinite"] == "warn":
        return Expected((int(ExitCode.OK),))
    return Expected((int(ExitCode.TRAINING_FAILED),), words=_words(fault))


def _words(fault: Fault) -> tuple[str, ...]:
    if fault.process is not None:
        return ("agent", "SIGKILL") if fault.process == "agent" else ("fork server", "killed")
    who = () if fault.rank is None else (f"rank {fault.rank}",)
    word = f"exit code {fault.code}" if fault.kind == "leave" else _WORDS.get(fault.kind, "")
    return tuple(filter(None, (*who, word)))


def _hooks(fault: Fault, resolved: Resolved) -> Mapping[str, tuple[Instance, ImplInfo]]:
    instance = next(one for one in resolved.instances if one.name == fault.plugin)
    return {impl.hook: (instance, impl) for impl in resolved.description(instance).impls}


def _policy(fault: Fault, resolved: Resolved) -> str:
    hook = str(fault.hook)
    instance, impl = _hooks(fault, resolved)[hook]
    return policy(instance, impl, resolved.specs[hook].kind)
