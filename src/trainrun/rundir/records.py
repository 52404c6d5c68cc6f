"""The records that processes leave for each other in the run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NotRequired, TypedDict, TypeVar

from trainrun.rundir import typed

State = Literal["finished", "stopped", "failed", "interrupted", "terminated"]
Cause = Literal["crash", "preemption", "node"]
ErrorOrigin = Literal["code", "machine"]

Origin = Literal["vote", "request", "signal", "command", "saves"]
ErrorKind = Literal["raised", "explained", "told_to_stop"]

T = TypeVar("T")


@dataclass(frozen=True)
class Stop:
    """Why training stopped before its last step. All ranks have agreed on it.

    `origin` says what asked for it: a plugin's vote, a plugin's `run.request_stop`, a signal, a command such as
    `trainrun stop`, or saves that failed. `source` is its name: of the plugin, the signal, the command. Names may be
    anything, so that only `origin` decides about an exit code.
    """

    reason: str
    source: str
    origin: Origin = "vote"

    def at(self, step: int) -> str:
        """Say that training stopped at `step`, and why."""
        return f"stopped at step {step}{self._why()}"

    def _why(self) -> str:
        match self.origin:
            case "vote":
                return f": plugin {self.source} voted to stop ({self.reason})"
            case "request":
                return f": plugin {self.source} asked to stop ({self.reason})"
            case "command":
                return f" by {self.source}: {self.reason}"
            case _:
                return f": {self.reason}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Stop | None:
        """Build the stop that `asdict` was called on.

        Returns None if there was none.
        """
        return None if data is None else _known(cls, data)


class WorkerError(TypedDict):
    """What raised in a worker. `monotonic_ns` orders the errors of several ranks of one node.

    `raised` is the type of what a plugin raised, if `type` is that of the error that blames the plugin. `kind`
    distinguishes errors, because a user's exception may have any name. It is set for a message that is complete as it
    is ("explained"). It is also set for a worker that could not stop in time when it was asked to. `out_of_memory`: the
    device had no memory left. `origin` says whether memory, a GPU, the network or another process failed, or the code
    itself, which is so if it is absent. `whole` is the file with all of an error whose text is too long for a record.
    """

    type: str
    raised: NotRequired[str]
    kind: NotRequired[ErrorKind]
    out_of_memory: NotRequired[bool]
    message: str
    traceback: str
    monotonic_ns: int
    instance: str | None
    hook: str | None
    exit_code: int
    origin: NotRequired[ErrorOrigin]
    whole: NotRequired[str]


@dataclass(frozen=True)
class WorkerRecord:
    """A worker's own account of itself, rewritten at each change of phase.

    `phase` is ``starting``, ``setup``, ``training``, ``evaluation``, … and at the end ``finished`` or ``failed``. A
    worker that is gone without a ``finished`` record has failed, with any exit code. `stop` is why it ended before its
    last step. `parent` is the pid of the process that it was started by.
    """

    pid: int
    pgid: int
    start_time: int
    rank: int
    phase: str
    step: int = 0
    instance: str | None = None
    hook: str | None = None
    error: WorkerError | None = None
    stop: Stop | None = None
    parent: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkerRecord:
        """Return the record that `to_json` made, also by another version of trainrun."""
        return _known(cls, {**data, "stop": Stop.from_json(data.get("stop"))})


@dataclass(frozen=True)
class Failure:
    """The first thing that went wrong in an attempt.

    `log` is the path of the failing rank's output. `out_of_memory`: the device had no memory left, with any type of
    exception. `origin` is that of a raised exception, see `WorkerError`; None for a death or a hang.
    """

    rank: int | None
    message: str
    kind: Literal["error", "signal", "exit", "agent", "silent", "node", "hang"]
    type: str | None = None
    traceback: str | None = None
    step: int = 0
    phase: str | None = None
    instance: str | None = None
    hook: str | None = None
    signal: str | None = None
    exit_code: int | None = None
    log: str | None = None
    origin: ErrorOrigin | None = None
    out_of_memory: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the failure as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Failure:
        """Return the failure that `to_json` made, also by another version of trainrun."""
        return _known(cls, data)


@dataclass(frozen=True)
class Outcome:
    """How an attempt or a run ended, and why.

    `started` and `ended` are seconds since the epoch, `metrics` the last that were logged, and `run`
    is the run directory. `cause` is the class of an end that another attempt may follow, None for one that is final.
    `stop` is why training ended before its last step, if all ranks agreed to stop.
    """

    state: State
    exit_code: int
    reason: str
    step: int = 0
    attempt: int = 1
    first_failure: Failure | None = None
    started: float = 0.0
    ended: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    run: str = ""
    cause: Cause | None = None
    stop: Stop | None = None

    @property
    def ok(self) -> bool:
        """Return whether the run ended as it should.

        That is finished, or stopped by a vote.
        """
        return self.exit_code == 0

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON values."""
        return {**asdict(self), "metrics": dict(self.metrics)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """Return the outcome that `to_json` made, also by another version of trainrun."""
        failure = data.get("first_failure")
        values = {**data, "metrics": typed.metrics(data.get("metrics")), "stop": Stop.from_json(data.get("stop"))}
        return _known(cls, {**values, "first_failure": Failure.from_json(failure) if failure else None})


def how_it_ended(state: str, reason: str | None, separator: str = ": ") -> str:
    """Join state and reason.

    A state that the reason begins with is not said twice.
    """
    if not reason:
        return state
    return reason if reason.startswith(f"{state} ") else f"{state}{separator}{reason}"


def _known(cls: type[T], data: Mapping[str, Any]) -> T:
    # Keys of a newer version are passed over: `ps` and `why` read runs of any age.
    kinds = {item.name: str(item.type) for item in fields(cls)}  # type: ignore[arg-type]
    known = {key: value for key, value in data.items() if key in kinds}
    for name, value in known.items():
        _require(name, value, kinds[name])
    return cls(**known)


_KINDS: Mapping[str, Callable[[Any], Any]] = {
    "str": typed.text,
    "State": typed.text,
    "int": typed.whole,
    "float": typed.moment,
}


def _require(name: str, value: Any, kind: str) -> None:
    """Raise TypeError if a value has not its field's declared kind."""
    optional = kind.endswith(" | None")
    check = _KINDS.get(kind.removesuffix(" | None"))
    if check is not None and not (optional and value is None) and check(value) is None:
        raise TypeError(f"{name}: expected {kind}, got {str(value)[:80]!r}")
