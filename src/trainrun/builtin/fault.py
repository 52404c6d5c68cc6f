"""The faults that can be injected, and how they are written: `kill:rank1@5`, `raise:PLUGIN.HOOK`, …

    KIND[:ARGUMENT…][@WHEN][!]

WHEN is a step, a step and a phase (`@5:forward`), or `@setup`; left out, the first chance there is. With `!` the fault
comes again in every attempt, otherwise once in a run. Light: the command line reads faults before anything is started.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from trainrun.errors import UsageError
from trainrun.recipe.suggest import did_you_mean

Target = Literal["client", "worker", "process", "hook", "training"]

# In the order of a step, but for the first and those at the end: an evaluation, and how far a save is.
SAVING = ("copy", "write", "commit", "committed", "retention")
PHASES = ("setup", "step-start", "batch", "forward", "backward", "update", "evaluation", *SAVING)

_RANK = re.compile(r"rank(\d{1,4})")
_WHEN = re.compile(r"(?:(?P<step>\d{1,9})(?::(?P<phase>[a-z-]+))?|(?P<setup>setup))")
_HOOK = re.compile(r"(?P<plugin>[^.:@!\s]+(?:\.[^.:@!\s]+)*)\.(?P<hook>[A-Za-z_]\w*)")


class Kind(NamedTuple):
    """One kind of fault: what it takes after its name, whom it strikes, and what it does."""

    takes: str
    target: Target
    does: str


KINDS = {
    "sigterm": Kind("", "client", "SIGTERM to the launching process"),
    "sigint": Kind("", "client", "Ctrl-C once"),
    "sigint2": Kind("", "client", "Ctrl-C again and again"),
    "sighup": Kind("", "client", "SIGHUP: the terminal is closed"),
    "usr1": Kind("", "client", "SIGUSR1"),
    "usr2": Kind("", "client", "SIGUSR2"),
    "kill": Kind("RANK|agent|server|client", "process", "SIGKILL"),
    "stop": Kind("RANK", "worker", "SIGSTOP: suspend the worker"),
    "hang": Kind("RANK", "worker", "wait forever in a hook"),
    "segv": Kind("RANK", "worker", "read from unmapped memory"),
    "abort": Kind("RANK", "worker", "abort(), as a failed assertion in C does"),
    "exit": Kind("RANK[:CODE]", "worker", "sys.exit()"),
    "leave": Kind("RANK[:CODE]", "worker", "exit without a report, as os._exit() does"),
    "oom": Kind("RANK", "worker", "torch.OutOfMemoryError"),
    "raise": Kind("RANK|[RANK:]PLUGIN.HOOK", "hook", "an error, in a hook of that plugin"),
    "nan": Kind("", "training", "a loss and gradients that are NaN, on all ranks"),
}
_PROCESSES = ("agent", "server", "client")
# A save has a thread of its own, on which an error would be the save's and not the worker's.
_RAISING = ("hang", "exit", "oom", "raise")


class Fault(NamedTuple):
    """One fault. `rank` is None for all ranks; `step` is 0 for the first chance; `phase` is the part of the step.

    `process` is the process that `kill` strikes in place of a worker; `plugin` and `hook` say which hookimpl `raise`
    strikes.
    """

    text: str
    kind: str
    rank: int | None = None
    process: str | None = None
    plugin: str | None = None
    hook: str | None = None
    code: int = 0
    step: int = 0
    phase: str = "step-start"
    always: bool = False

    @property
    def strikes_hook(self) -> bool:
        """Whether it is another plugin's hook that must raise."""
        return self.hook is not None

    @property
    def is_code(self) -> bool:
        """Whether it is an exception of the code, as a mistake in it raises.

        It would come back in another attempt.
        """
        return self.kind in {"raise", "exit", "nan"}

    @property
    def spoils_loss(self) -> bool:
        """Whether it is the loss that it strikes, and no process."""
        return self.kind == "nan"

    @property
    def strikes_save(self) -> bool:
        """Whether it comes while a checkpoint is saved."""
        return self.phase in SAVING

    @property
    def struck(self) -> str:
        """What dies or raises: `rank 1`, `all ranks`, `the agent`."""
        if self.process is not None:
            return f"the {self.process}"
        return "all ranks" if self.rank is None else f"rank {self.rank}"


def parse(text: str) -> Fault:
    """Read one fault.

    Raises UsageError that says what is wrong with it and what there is.
    """
    head, at, when = text.strip().removesuffix("!").partition("@")
    kind, *arguments = head.split(":")
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS)
        raise _wrong(text, f"there is no kind {kind!r}" + (f"; {hint}" if hint else ""))
    fault = Fault(text.strip(), kind, always=text.strip().endswith("!"))
    if at:
        fault = _timed(fault, when)
    return _CHECKED[KINDS[kind].target](fault, arguments)


def parse_all(texts: Sequence[str]) -> list[Fault]:
    """Read faults that may stand several in a text, with commas between.

    Raises UsageError as `parse` does.
    """
    return [parse(part) for text in texts for part in text.split(",") if part.strip()]


def usage() -> str:
    """Return every kind with what it takes, in one line."""
    return ", ".join(":".join(filter(None, (name, kind.takes))) for name, kind in KINDS.items())


def impossible(fault: Fault, workers: int | str, start: str) -> str | None:
    """Explain why the fault cannot happen in such a run, if so."""
    if fault.rank and isinstance(workers, int) and fault.rank >= workers:
        return f"fault {fault.text!r}: there is no rank {fault.rank}, launch.workers is {workers}"
    if fault.process == "server" and start != "warm":
        return f'fault {fault.text!r}: only launch.start = "warm" has a fork server'
    return None


def injected(run_dir: Path) -> Path:
    """Return the folder for the file that a fault makes beforehand."""
    return run_dir / "attempts" / "injected"


def _wrong(text: str, what: str) -> UsageError:
    form = "a fault is KIND[:ARGUMENT][@STEP[:PHASE]][!]"
    return UsageError(f"fault {text.strip()!r}: {what}; {form}, with one of the kinds {usage()}; RANK is rankN or all")


def _timed(fault: Fault, when: str) -> Fault:
    found = _WHEN.fullmatch(when)
    if found is None:
        raise _wrong(fault.text, f"'@{when}' is neither a step nor setup")
    if found["setup"]:
        return fault._replace(phase="setup")
    phase = found["phase"] or fault.phase
    if phase not in PHASES:
        hint = did_you_mean(phase, PHASES)
        raise _wrong(fault.text, f"there is no phase {phase!r}; {hint or 'the phases are ' + ', '.join(PHASES)}")
    if phase in SAVING and fault.kind in _RAISING:
        raise _wrong(fault.text, f"{fault.kind} cannot happen within a save ({phase}); kill and leave can, and signals")
    return fault._replace(step=int(found["step"]), phase=phase)


def _client(fault: Fault, arguments: list[str]) -> Fault:
    if arguments:
        raise _wrong(fault.text, f"{fault.kind} takes nothing before the @, got {':'.join(arguments)!r}")
    return fault._replace(rank=0)  # one of the workers has to send it


def _training(fault: Fault, arguments: list[str]) -> Fault:
    if arguments or fault.phase != "step-start":
        raise _wrong(fault.text, f"{fault.kind} takes nothing but a step, as in {fault.kind}@2")
    return fault._replace(phase="forward")


def _worker(fault: Fault, arguments: list[str]) -> Fault:
    first, *more = arguments or [""]
    fault = fault._replace(rank=_rank(fault, first))
    if not more:
        return fault
    if not KINDS[fault.kind].takes.endswith("[:CODE]") or len(more) > 1 or not _is_code(more[0]):
        raise _wrong(fault.text, f"{':'.join(more)!r} is one too many")
    return fault._replace(code=int(more[0]))


def _process(fault: Fault, arguments: list[str]) -> Fault:
    if len(arguments) == 1 and arguments[0] in _PROCESSES:
        return fault._replace(process=arguments[0], rank=0)
    return _worker(fault, arguments)


def _hook(fault: Fault, arguments: list[str]) -> Fault:
    place = _HOOK.fullmatch(arguments[-1]) if arguments else None
    if place is None:
        return _worker(fault, arguments)
    fault = fault._replace(plugin=place["plugin"], hook=place["hook"])
    if len(arguments) > 2:
        raise _wrong(fault.text, f"{':'.join(arguments[:-1])!r} is no rank")
    return fault._replace(rank=_rank(fault, arguments[0])) if len(arguments) == 2 else fault


def _rank(fault: Fault, argument: str) -> int | None:
    """Return the rank that `rank1` names, or None for `all`."""
    if argument == "all":
        return None
    found = _RANK.fullmatch(argument)
    if found is None:
        takes = KINDS[fault.kind].takes.replace("RANK", "rankN|all")
        raise _wrong(fault.text, f"{fault.kind} takes {takes}, got {argument!r}")
    return int(found[1])


def _is_code(argument: str) -> bool:
    return argument.isdecimal() and int(argument) <= 255


_CHECKED = {"client": _client, "worker": _worker, "process": _process, "hook": _hook, "training": _training}
