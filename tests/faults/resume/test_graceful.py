"""Told to stop, wherever training is: the stop step is saved, no step is made twice, and the end is the same."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun.checkpoint import scan, verify
from trainrun.rundir import RunPaths

INJECT = "trainrun.builtin.inject:Inject"
STEPS = 12

# Where rank 0 rests, or what is injected, in each phase; and the steps after which training may stop then.
RESTS = {
    "setup": ("build_model", {0}),
    "first step": ("first step", {1, 2, 3}),
    "step": ("step", {3, 4, 5}),
    "waiting for data": ("data", set(range(STEPS))),
    "evaluation": ("evaluation", {4}),
    "right after a save": ("saved", set(range(3, STEPS))),
    "end of an epoch": ("epoch end", {4, 5, 6}),
}
INJECTED = {
    "save in flight": (["sigterm@3:write"], set(range(3, STEPS))),
    "between attempts": (["kill:all@9!"], {3, 6}),
}
DEFAULT = [("evaluation", 0), ("save in flight", 2)]
MATRIX = [
    pytest.param(phase, workers, marks=[] if (phase, workers) in DEFAULT else pytest.mark.long)
    for phase in (*RESTS, *INJECTED)
    for workers in (0, 2)
]

Wait = Callable[[Callable[[], object]], None]


@pytest.fixture(scope="module")
def memory() -> dict[str, Any]:
    """What the run that nobody disturbed came to, once it was made."""
    return {}


@pytest.fixture
def straight(kept: Any, look: Callable[..., Any], memory: dict[str, Any]) -> dict[str, Any]:
    """Samples, metrics and the last checkpoint's contents of the run that nobody disturbs."""
    if not memory:
        ended = kept.launch()
        assert ended.code == 0, ended.stderr
        memory.update(told(look(ended.run)))
    return memory


def told(run: Any) -> dict[str, Any]:
    return {"samples": run.samples(), "metrics": run.metrics(), "contents": run.contents()}


def injected(*faults: str) -> dict[str, object]:
    return {"plugins__inject__use": INJECT, "plugins__inject__faults": json.dumps(faults)}


@pytest.fixture
def stopped(kept: Any, wait_for: Wait) -> Callable[..., Any]:
    """Launch, tell the launching process to stop in a phase, and wait for its end."""

    def stop(phase: str, workers: int, number: signal.Signals = signal.SIGTERM) -> Any:
        settings: dict[str, object] = {"data__workers": workers}
        if phase == "save in flight":
            return kept.launch(**injected(*INJECTED[phase][0]), **settings)
        latest = kept.folder / "runs" / "latest"
        if phase == "between attempts":
            settings |= {**injected(*INJECTED[phase][0]), "launch__max_restarts": 10}
            client = kept.start_launch(**settings)
            wait_for(lambda: client.poll() is not None or waits(latest / "events.jsonl"))
        else:
            client = kept.start_launch(task__rests=json.dumps(RESTS[phase][0]), **settings)
            wait_for(lambda: client.poll() is not None or (latest / "resting").exists())
        client.send_signal(number)
        return kept.finish(client)

    return stop


def waits(events: Path) -> bool:
    """Whether the client waits for a while before it makes another attempt."""
    return events.exists() and '"wait": 1' in events.read_text()


@pytest.mark.parametrize(("phase", "workers"), MATRIX)
def test_sigterm(
    kept: Any, stopped: Any, straight: dict[str, Any], look: Callable[..., Any], phase: str, workers: int
) -> None:
    ended = stopped(phase, workers)
    assert ended.code == 75, ended.stderr
    step = newest(ended.run)
    assert step in {**RESTS, **INJECTED}[phase][1]
    if phase != "between attempts":  # there the outcome tells the step at which the last attempt failed
        assert ended.outcome["step"] == step
    settings = ["-o", "plugins.inject.faults=[]"] if phase == "between attempts" else []
    resumed = kept("resume", "latest", *settings)
    assert resumed.code == 0, resumed.stderr
    run = look(resumed.run)
    starts = run.starts()
    assert starts[max(starts)] == step
    if phase != "between attempts":
        made = [line["step"] for line in run.records()[0]]
        assert made == list(range(1, STEPS + 1)), "no step is made twice"
    assert without_stop(told(run), straight, step) == straight


def without_stop(found: dict[str, Any], straight: dict[str, Any], step: int) -> dict[str, Any]:
    """Leave out what the stopped attempt logged last: the mean of the steps since the log before."""
    kept = [line for line in found["metrics"] if line["step"] != step or line in straight["metrics"]]
    return {**found, "metrics": kept}


def newest(run: Path) -> int:
    """The step of the newest checkpoint; all of them must be good."""
    found = scan(RunPaths(run).checkpoints)
    assert [verify(one.path) for one in found] == [[]] * len(found)
    return found[0].step


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_sigterm_when_all_steps_are_made(kept: Any, wait_for: Wait, workers: int) -> None:
    latest = kept.folder / "runs" / "latest"
    client = kept.start_launch(task__rests='"end"', data__workers=workers)
    wait_for(lambda: client.poll() is not None or (latest / "resting").exists())
    client.terminate()
    ended = kept.finish(client)
    assert (ended.code, ended.outcome["state"], newest(ended.run)) == (0, "finished", STEPS)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGUSR2, 75, marks=pytest.mark.long), (signal.SIGINT, 130)]
)
def test_other_signals(stopped: Any, number: signal.Signals, code: int) -> None:
    ended = stopped("step", 0, number)
    assert ended.code == code, ended.stderr
    assert newest(ended.run) == ended.outcome["step"] in RESTS["step"][1]


@pytest.mark.long
def test_sigusr1_saves_and_training_goes_on(kept: Any, straight: dict[str, Any], look: Callable[..., Any]) -> None:
    ended = kept.launch(**injected("usr1@4"), checkpoint__every=100)
    assert ended.code == 0, ended.stderr
    steps = {found.step for found in scan(RunPaths(ended.run).checkpoints)}
    assert len(steps) == 2
    assert steps < {4, 5, 6, 7, 8, STEPS}
    assert told(look(ended.run)) == straight


@pytest.mark.long
def test_ctrl_c_again_and_again_while_a_checkpoint_is_written(kept: Any) -> None:
    ended = kept.launch(**injected("sigint2@6:write"))
    assert ended.code == 130, ended.stderr
    assert newest(ended.run) == 3
