"""What a run directory, a recipe or a plugin brings is shown by every command so that no terminal obeys it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from trainrun.cli.main import COMMANDS, run
from trainrun.rundir import RunPaths, create
from trainrun.rundir.files import append_line
from trainrun.testing.distribution import DistributionInstaller

EVIL = "\x1b]0;OWNED\x07bell\x08\x9b31m\x7f\u202e\r"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

EVENTS: list[dict[str, Any]] = [
    {"event": "attempt_start", "attempt": 1, "workers": EVIL},
    {"event": "resume", "attempt": 1, "step": EVIL, "checkpoint": EVIL, "differences": {EVIL: {EVIL: [EVIL, EVIL]}}},
    {"event": "decision", "step": EVIL, "decision": EVIL, "plugin": EVIL, "hook": EVIL, "reason": EVIL, "rank": EVIL},
    {"event": "decision", "decision": "disable", "plugin": EVIL, "hook": EVIL, "reason": EVIL},
    {"event": "fault", "plugin": EVIL, "hook": EVIL, "action": EVIL, "reason": EVIL, "traceback": f"{EVIL}\n{EVIL}"},
    {"event": "fault", "plugin": EVIL, "hook": EVIL, "action": "warn", "reason": EVIL},
    *(
        {"event": kind, "reason": EVIL, "checkpoint": f"/a/{EVIL}", "reasons": [EVIL], "former": EVIL, "file": EVIL}
        for kind in ("straggler", "quarantine", "set_aside", "trusted", "lease_takeover", "request_refused", "warning")
    ),
    {"event": "tracker_outage", "plugin": EVIL, "reason": EVIL},
    {"event": EVIL, "rank": EVIL, "step": EVIL, "reason": EVIL},
    {"event": "attempt_end", "attempt": 1, "state": EVIL, "reason": EVIL},
    {"event": "restart", "attempt": 1, "why": EVIL, "reason": EVIL},
    {"event": "attempt_start", "attempt": 2, "workers": 2},
]
ERROR = {"type": EVIL, "message": f"{EVIL}\n{EVIL}", "traceback": f"{EVIL}\n{EVIL}", "instance": EVIL, "hook": EVIL}
FAILURE = {"rank": 0, "kind": "error", "message": EVIL, "type": EVIL, "traceback": f"{EVIL}\n{EVIL}", "log": EVIL}
COST = {"instance": EVIL, "hook": EVIL, "calls": EVIL, "total_seconds": 1.0, "max_seconds": 1.0}


def hostile_run(base: Path) -> RunPaths:
    """A run directory in which every text is hostile, its own name too."""
    made = create(base, "run")
    paths = RunPaths(made.root.rename(made.root.with_name(f"run-{EVIL}")))
    status = {"state": EVIL, "step": 1, "epoch": EVIL, "metrics": {EVIL: EVIL, "train/loss": 0.5}, "cost": [COST]}
    write(paths.status, status)
    write(paths.manifest, {"created": 1.0, "instances": [{"name": EVIL}], "plugins": {EVIL: EVIL}})
    outcome = {"state": EVIL, "exit_code": 1, "reason": f"{EVIL}\n{EVIL}", "started": 1.0, "ended": 2.0, "attempt": 2}
    write(paths.outcome, {**outcome, "run": str(paths.root), "first_failure": FAILURE, "metrics": {EVIL: 1.0}})
    record = {"pid": 1, "pgid": 1, "start_time": 1, "rank": 0, "phase": EVIL, "step": 1, "error": ERROR}
    paths.attempt(2).mkdir(parents=True)
    write(paths.worker_record(2, 0), record)
    write(paths.worker_record(2, 1), {**record, "rank": 1, "error": None, "instance": EVIL, "hook": EVIL})
    paths.recipe.write_text(f'[task]\nuse = {json.dumps(EVIL)}\n[evaluate]\nsplits = ["val"]\n')
    for event in EVENTS:
        append_line(paths.events, event)
    append_line(paths.metrics, {"step": 1, f"val/{EVIL}": 0.5})
    paths.rank_output(0).write_bytes(EVIL.encode() + b"\n\xff\x1b[2J\n")
    paths.agent_log.write_bytes(EVIL.encode() + b"\n")
    paths.node_log(1).write_bytes(EVIL.encode() + b"\n")
    for log in (paths.rank_log(0), paths.client_log):
        append_line(log, {"event": EVIL, "level": EVIL, EVIL: EVIL, "long": f"{EVIL}\n{EVIL}", "time": 1.0})
        append_line(log, {"event": EVIL, "level": "error", EVIL: [EVIL]})
        with log.open("ab") as file:
            file.write(b"no JSON \x1b]0;OWNED\x07\n")
    step = paths.checkpoints / "step-000001"
    step.mkdir(parents=True)
    write(step / "manifest.json", {"step": 1, "metrics": {EVIL: EVIL}, "files": {EVIL: EVIL}, "run": EVIL})
    (paths.checkpoints / f"step-000002.damaged-{EVIL}").mkdir()
    (paths.checkpoints / EVIL).symlink_to("step-000001")
    return paths


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


RECIPE = f"""\
[run]
name = {json.dumps(EVIL)}
[task]
use = {json.dumps("missing_" + EVIL + ":Task")}
[train]
steps = {json.dumps(EVIL)}
{json.dumps(EVIL)} = {json.dumps(EVIL)}
[optimizer]
name = {json.dumps(EVIL)}
[plugins.{json.dumps(EVIL)}]
use = {json.dumps(EVIL)}
{json.dumps(EVIL)} = {json.dumps(EVIL)}
"""

PRINTS = f"""\
import sys
print({EVIL!r}, flush=True)
sys.stderr.write({EVIL!r})
raise ValueError({EVIL!r})
"""

# Command lines by command: RUN is the hostile run, RUNS its folder, RECIPE a hostile recipe, GOOD one that can be read.
LINES: dict[str, list[list[str]]] = {
    "launch": [["RECIPE"], [EVIL], ["GOOD", "-o", f"run.{EVIL}=1", "-p", EVIL]],
    "resume": [["RUN"], [EVIL]],
    "check": [["RECIPE"], ["RECIPE", "--json"], ["GOOD"], ["GOOD", "--show"], ["BROKEN"]],
    "hooks": [["RECIPE"], []],
    "plugins": [[], ["--json"]],
    "init": [[f"RUNS/{EVIL}.toml"], ["RUNS"]],
    "schema": [["GOOD"], ["RECIPE"]],
    "new-plugin": [[EVIL], ["evil", "--dir", f"RUNS/{EVIL}"]],
    "new-task": [["../" + EVIL]],
    "completion": [[EVIL], ["bash"]],
    "smoke": [["RECIPE", "--inject", EVIL]],
    "verify-resume": [["RECIPE"]],
    "ps": [["--dir", "RUNS"], ["--dir", "RUNS", "--json"], ["--dir", EVIL]],
    "status": [["RUN"], ["RUN", "--json"], [EVIL, "--dir", "RUNS"]],
    "watch": [["RUN"], ["RUN", "--json"]],
    "logs": [
        ["RUN"],
        ["RUN", "--json"],
        ["RUN", "--rank", "0", "--source", "output"],
        ["RUN", "-f"],
        ["RUN", "--rank", "all"],
        ["RUN", "--source", "agent"],
        ["RUN", "--rank", EVIL],
    ],
    "stop": [["RUN"]],
    "checkpoints": [["RUN"], ["RUN", "--json"], ["RUN", "--verify"], ["RUN", "--export", "RUNS/out.safetensors"]],
    "why": [["RUN"], ["RUN", "--json"]],
    "sync": [["RUN"], ["RUN", "--json"]],
    "doctor": [["RECIPE", "--timeout", "1"]],
}

Look = Callable[[Sequence[str]], None]


@pytest.fixture
def look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: Path, capfd: pytest.CaptureFixture[str]
) -> Look:
    """Run a command line and look at what it writes."""
    runs = tmp_path / "runs"
    known = {
        "RUNS": str(runs),
        "RUN": str(hostile_run(runs).root),
        "RECIPE": "hostile.toml",
        "GOOD": "good.toml",
        "BROKEN": f"{EVIL}.toml",
    }
    (tmp_path / "hostile.toml").write_text(RECIPE)
    (tmp_path / "good.toml").write_text('[run]\nname = "good"\n[task]\nuse = "task.py"\n[train]\nsteps = 1\n')
    (tmp_path / "task.py").write_text(PRINTS)
    (tmp_path / f"{EVIL}.toml").write_text(f"[{EVIL}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(shared_cache))

    def shown(arguments: Sequence[str]) -> None:
        line = [known.get(one, one.replace("RUNS/", f"{runs}/")) for one in arguments]
        code = run(line)
        wrote = capfd.readouterr()
        for stream, text in zip(("stdout", "stderr"), wrote, strict=True):
            found = CONTROLS.findall(text)
            assert not found, f"{line}: {stream} ({code}) holds {found[:5]}: {text[:2000]!r}"
        assert "a bug in trainrun" not in wrote.err, wrote.err

    return shown


def test_no_command_is_forgotten() -> None:
    assert set(LINES) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_reaches_the_terminal_raw(command: str, look: Look) -> None:
    for arguments in [*LINES[command], ["--help"], [f"--{EVIL}"], [EVIL, EVIL, EVIL]]:
        look([command, *arguments])


def test_nor_from_installed_plugins(look: Look, install: DistributionInstaller) -> None:
    name, site = EVIL.replace("\r", "").replace("\x08", ""), {"evil.py": PRINTS}
    install("evil", site, {name: "evil:Evil", "evil": "evil:Evil"}, version="1\x1b[5m")
    install("commands", {"evil_command.py": ""}, {f"say{name}": "evil_command:none"}, group="trainrun.commands")
    for line in (["plugins"], ["plugins", "--json"], ["--help"], ["check", "GOOD", "-p", "evil"]):
        look(line)
    look([f"say{name}"])
