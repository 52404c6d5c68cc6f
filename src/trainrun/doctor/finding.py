"""The result of a check, and its input. Standard library only: many other packages may be broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Status = Literal["ok", "warning", "failed", "skipped"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Finding(NamedTuple):
    """The result of one check. `finding` and `advice` are one line each; `seconds` is how long it took.

    `skipped` means that there was nothing to examine. `facts` are plain values, for programs.
    """

    check: str
    status: Status
    finding: str
    advice: str | None = None
    facts: Mapping[str, Any] = _NOTHING
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dump`."""
        return {**self._asdict(), "facts": dict(self.facts)}


class Verdict:
    """Gathers what one check finds out; the worst of it is the check's status."""

    def __init__(self, check: str) -> None:
        self._check = check
        self._status: Status = "ok"
        self._findings: list[str] = []
        self._advice: list[str] = []

    def say(self, text: str) -> None:
        """Add what is as it should be, or only worth knowing."""
        self._findings.append(text)

    def warn(self, what: str, advice: str) -> None:
        """Add what can make trouble, and what to do about it."""
        if self._status == "ok":
            self._status = "warning"
        self._findings.append(what)
        self._advice.append(advice)

    def fail(self, what: str, advice: str) -> None:
        """Add a fault with which a run cannot work, and its remedy."""
        self._status = "failed"
        self._findings.append(what)
        self._advice.append(advice)

    def finding(self, **facts: Any) -> Finding:
        """Return all of it as one finding."""
        advice = "; ".join(dict.fromkeys(self._advice)) or None
        return Finding(self._check, self._status, "; ".join(self._findings), advice, facts)


def skipped(check: str, why: str) -> Finding:
    """Return the finding of a check with nothing to examine."""
    return Finding(check, "skipped", why)


class Settings(NamedTuple):
    """What is asked for, and what earlier checks have found out.

    The fields from `run_dir` on are the recipe's, or trainrun's defaults if there is no recipe. `timeout` is the number
    of seconds that a check may take. `preload_path` holds folders in which modules of `preload` are found too.
    `threads` is the workers' OMP_NUM_THREADS, and `gpus` how many of them torch can use.
    """

    recipe: str | None = None
    workers: int = 2
    timeout: float = 60.0
    run_dir: str = "runs"
    start: str = "warm"
    preload: Sequence[str] = ()
    preload_path: Sequence[str] = ()
    nodes: int = 1
    device: str = "auto"
    loader_workers: int = 0
    threads: str = "1"
    gpus: int = 0

    def updated(self, facts: Mapping[str, Any]) -> Settings:
        """Return the settings with those in a check's facts.

        They stand under `settings` there.
        """
        return self._replace(**facts.get("settings", {}))


class Context(NamedTuple):
    """What a check is given. `doing` names what is being tried, in case that it never ends.

    `made` reports a folder that is to be removed if the check is killed before it could do so itself.
    """

    settings: Settings
    doing: Callable[[str], None]
    made: Callable[[str], None]


Check = Callable[[Context], Iterable[Finding]]


def reason(error: BaseException) -> str:
    """Return an exception in one line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
