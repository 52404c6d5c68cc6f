"""The findings as text and as a document, without private data."""

from __future__ import annotations

import os
import platform
import pwd
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from trainrun import __version__
from trainrun.doctor.finding import Finding

_NAMES = 19  # columns for a check's name
_INDENT = " " * 9


def lines_of(finding: Finding, width: int | None) -> Iterator[tuple[str, str]]:
    """Yield status and text of a finding, then its advice.

    The advice has an empty status. Each is folded to `width` columns.
    """
    private = Private()
    head = f"{finding.check:<{_NAMES}} "
    text = private.hide(finding.finding)
    first, *rest = _folded(text, width, len(_INDENT) + len(head))
    yield finding.status, head + first
    yield from (("", " " * len(head) + line) for line in rest)
    if finding.advice:
        lead = " " * len(head) + "→ "
        first, *rest = _folded(private.hide(finding.advice), width, len(_INDENT) + len(lead))
        yield "", lead + first
        yield from (("", " " * len(lead) + line) for line in rest)


def _folded(text: str, width: int | None, used: int) -> list[str]:
    if width is None:
        return [text]
    return textwrap.wrap(text, max(20, width - used), break_on_hyphens=False) or [""]


def summary(findings: Sequence[Finding], seconds: float) -> str:
    """Return how many findings have each status, and the time taken."""
    counts = {"ok": "ok", "warning": "warnings", "failed": "failed", "skipped": "skipped"}
    found = {word: sum(finding.status == status for finding in findings) for status, word in counts.items()}
    return ", ".join(f"{count} {word}" for word, count in found.items() if count) + f" in {seconds:.1f} s"


def bug_report(findings: Sequence[Finding], seconds: float, width: int | None = None) -> list[str]:
    """Return the block to paste into a bug report.

    It says what is installed on what, and everything that is not ok.
    """
    private = Private()
    return [
        "    " + " " * (2 * bool(number)) + line
        for text in _report(findings, seconds)
        for number, line in enumerate(_folded(private.hide(text), width, 6))
    ]


def _report(findings: Sequence[Finding], seconds: float) -> list[str]:
    facts = {finding.check: finding.facts for finding in findings}
    shown = {finding.check: finding.finding for finding in findings if finding.status == "ok"}
    python = facts.get("python", {})
    return [
        f"trainrun {__version__} doctor: {summary(findings, seconds)}",
        f"Python {platform.python_version()} in {python.get('environment', 'some place')}; {_system()}",
        *(f"{name}: {shown[name]}" for name in _PASTED if name in shown),
        *(f"{one.status.upper()} {one.check}: {one.finding}" for one in findings if one.status in _TROUBLE),
    ]


_PASTED = ("packages", "torch", "devices", "plugins", "run directory", "processors", "memory", "gloo", "nccl")
_TROUBLE = ("warning", "failed")


def document(findings: Sequence[Finding], seconds: float) -> dict[str, Any]:
    """Return the output of `--json`."""
    checks = [finding.to_json() for finding in findings]
    answer = {
        "ok": not failed(findings),
        "trainrun": __version__,
        "system": _system(),
        "seconds": round(seconds, 3),
        "checks": checks,
    }
    hidden: dict[str, Any] = Private().hide_all(answer)
    return hidden


def failed(findings: Sequence[Finding]) -> bool:
    """Return whether any check failed."""
    return any(finding.status == "failed" for finding in findings)


def _system() -> str:
    library = " ".join(platform.libc_ver()).strip()
    return f"{platform.system()} {platform.release()} {platform.machine()}" + (f", {library}" if library else "")


class Private:
    """Takes the user's home, the user's name in paths, the machine's name, and passwords in addresses out of texts."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._rules: list[tuple[re.Pattern[str], str]] = [(re.compile(r"(?<=://)[^/\s@]+@"), "…@")]
        for home in sorted(_homes(environment), key=len, reverse=True):
            self._rules.append((re.compile(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])"), "~"))
        if name := _user():
            self._rules.append((re.compile(rf"(?<=/){re.escape(name)}(?![\w.-])"), "$USER"))

    def hide(self, text: str) -> str:
        """Return the text without private data.

        Paths still mean the same to a shell.
        """
        for pattern, instead in self._rules:
            text = pattern.sub(instead, text)
        return text

    def hide_all(self, value: Any) -> Any:
        """Hide them in every text within plain values."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            return {key: self.hide_all(item) for key, item in value.items()}
        return [self.hide_all(item) for item in value] if isinstance(value, list | tuple) else value


def _homes(environment: Mapping[str, str]) -> set[str]:
    found = {environment.get("HOME", "")}
    with suppress(KeyError):
        found.add(pwd.getpwuid(os.geteuid()).pw_dir)
    found |= {os.path.realpath(home) for home in found if home}
    return {home.rstrip("/") for home in found if len(home.rstrip("/")) > 1}


def _user() -> str | None:
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None
    return name if name != "root" else None  # a folder of that name shows nothing
