"""`trainrun smoke --inject`: one launch for each fault, and whether what followed is what has to follow."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trainrun.builtin.fault import Fault, injected
from trainrun.cli.columns import columns
from trainrun.cli.expecting import Expected, expect, in_attempts
from trainrun.cli.main import main
from trainrun.printing import shorten
from trainrun.rundir import process
from trainrun.rundir.create import run_ids
from trainrun.rundir.files import read_json, read_lines
from trainrun.rundir.paths import RunPaths
from trainrun.worker.parent import die_with_parent

if TYPE_CHECKING:
    from trainrun.plugin.resolve import Resolved

_CHILD = "from trainrun.cli.proving import launched; launched()"

NAME = "smoke-inject"
TARGET = "trainrun.builtin.inject:Inject"

_RESTARTS = {False: 1, True: 3}  # by whether the fault comes in every attempt: enough to see that more are no use
_HANGS = "10s"
_PATIENCE = 600.0  # seconds for one launch
_GONE = 2.0  # seconds that processes have to be gone after the launching one


class Trial(NamedTuple):
    """What is launched for each fault, and the folder in which that is done."""

    recipe: str
    settings: Sequence[str]
    plugins: Sequence[str]
    folder: Path


class Seen(NamedTuple):
    """What followed. `reason` is how the first attempt ended; `left` counts processes that were still there."""

    code: int | None
    attempts: int = 1
    reason: str = ""
    decision: str | None = None
    fired: bool = True
    left: int = 0

    def __str__(self) -> str:
        fired = "" if self.fired else "the fault did not come"
        code = f"exit {self.code}" if self.code is not None else f"no end in {_PATIENCE:g} s"
        left = f"{self.left} processes left" if self.left else ""
        parts = [fired, code, in_attempts(self.attempts), self.decision, left, self.reason.partition("\n")[0]]
        return ", ".join(filter(None, parts))

    def matches(self, expected: Expected) -> bool:
        """Return whether everything is as expected."""
        return (
            (self.fired, self.left) == (True, 0)
            and self.code in expected.codes
            and (self.attempts, self.decision) == (expected.attempts, expected.decision)
            and all(word in self.reason for word in expected.words)
        )


class Proved(NamedTuple):
    """A fault, what has to follow from it, and what did."""

    fault: Fault
    expected: Expected
    seen: Seen

    @property
    def well(self) -> bool:
        """Return whether everything was as it has to be."""
        return self.seen.matches(self.expected)

    def lines(self, width: int) -> Sequence[str]:
        """Return the lines to show. width: of the longest fault."""
        mark = "ok" if self.well else "WRONG"
        rows = [
            (mark, self.fault.text.ljust(width), "expected", str(self.expected)),
            ("", "", "seen", str(self.seen)),
        ]
        return columns([(mark.ljust(5), *rest) for mark, *rest in rows])

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dump`."""
        seen = self.seen._asdict()
        return {
            "fault": self.fault.text,
            "ok": self.well,
            "expected": self.expected._asdict(),
            "seen": {name: shorten(value) if isinstance(value, str) else value for name, value in seen.items()},
        }


def prove(trial: Trial, resolved: Resolved, faults: Sequence[Fault]) -> Iterator[Proved]:
    """Launch once for each fault, and yield what followed."""
    for fault in faults:
        expected, seen = expect(fault, resolved), _launch(trial, fault)
        if fault.hook is not None and resolved.specs[fault.hook].locus != "worker":
            seen = seen._replace(fired=True)  # the client leaves no trace of it; what follows must show it
        yield Proved(fault, expected, seen)


def _launch(trial: Trial, fault: Fault) -> Seen:
    base = trial.folder / re.sub(r"[^\w.-]", "-", fault.text)
    command = [*process.PYTHON, "-c", _CHILD, str(os.getpid()), "launch", trial.recipe, "--dir", str(base), "--quiet"]
    command += [part for name in trial.plugins for part in ("-p", name)]
    command += [part for setting in (*_settings(fault), *trial.settings) for part in ("-o", setting)]
    base.mkdir()
    code = _run(command, base / "output")
    paths = RunPaths((base / run_ids(base)[-1]).resolve()) if run_ids(base) else None
    if paths is None:
        return Seen(code, reason=_last_line(base / "output"), fired=False)
    seen = _look(paths, fault, code)
    process.sweep(paths.root)
    return seen


def _settings(fault: Fault) -> list[str]:
    return [
        f'plugins.{NAME}.use="{TARGET}"',
        f"plugins.{NAME}.faults={json.dumps([fault.text])}",
        f"launch.max_restarts={_RESTARTS[fault.always]}",
        f'launch.timeout="{_HANGS}"',
        # An exception of the code is followed by another attempt only if a checkpoint was committed before it.
        *(['checkpoint.every="never"'] if fault.is_code else []),
    ]


def launched() -> None:
    """Run `trainrun launch` as a child of `trainrun smoke`.

    It ends with its parent, and handles every signal: if signals are ignored, as in the background of a shell, it would
    have inherited that.
    """
    die_with_parent(int(sys.argv.pop(1)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    main()


def _run(command: Sequence[str], output: Path) -> int | None:
    """Run the command and return its exit code.

    Returns None if it had to be killed.

    It runs in a session of its own: a Ctrl-C here is not meant for it.
    """
    with output.open("wb") as file:
        started = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        return started.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        return None
    finally:
        started.kill()
        started.wait()


def _look(paths: RunPaths, fault: Fault, code: int | None) -> Seen:
    left = _left(paths)
    events = read_lines(paths.events)[0]
    ends = [event for event in events if event.get("event") == "attempt_end"]
    outcome = read_json(paths.outcome) or {}
    last = str(outcome.get("reason", ""))
    return Seen(
        code,
        attempts=max(1, len([event for event in events if event.get("event") == "attempt_start"])),
        reason=str(ends[0].get("reason", last)) if ends else last,
        decision=next((action for event in events if (action := _action(event, fault))), None),
        fired=_fired(paths),
        left=left,
    )


def _action(event: dict[str, object], fault: Fault) -> str | None:
    """Return what was decided about the plugin that the fault made raise."""
    action = event.get("action") if event.get("event") == "fault" else event.get("decision")
    about = (event.get("plugin"), event.get("hook")) == (fault.plugin, fault.hook)
    return str(action) if about and action in {"disable", "warn"} else None


def _fired(paths: RunPaths) -> bool:
    """Return whether a worker has come to the fault."""
    with suppress(OSError):
        return any(injected(paths.root).iterdir())
    return False


def _left(paths: RunPaths) -> int:
    deadline = time.monotonic() + _GONE
    while (left := process.members(paths.root)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(left)


def _last_line(output: Path) -> str:
    lines = output.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
