from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainrun import HookFailed, hookimpl
from trainrun.builtin import inject
from trainrun.builtin.fault import KINDS, SAVING, parse
from trainrun.builtin.inject import Inject, InjectedFault, claim
from trainrun.rundir import RunPaths, create
from trainrun.rundir.lease import Lease
from trainrun.testing import Result, RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 6, batch_size = 16, log_every = 1 }
evaluate.every = 4
"""

Inject1 = Callable[..., Result]


class Watcher:
    """Survives its own errors."""

    on_error = "disable"

    @hookimpl
    def on_step_end(self) -> None: ...

    @hookimpl
    def should_stop(self) -> None: ...

    @hookimpl(background=True)
    def on_log(self) -> None: ...

    @hookimpl(wrapper=True)
    def on_update_end(self) -> Any:
        yield


@pytest.fixture
def run_with(run_recipe: RunRecipe) -> Inject1:
    """Train in this process with these faults."""

    def run(*faults: str, fails: bool = False, settings: Sequence[str] = ()) -> Result:
        overrides = [f"plugins.inject.faults={json.dumps(faults)}", *settings]
        return run_recipe(RECIPE, Inject, Watcher, overrides=overrides, fails=fails)

    return run


def cause(result: Result) -> BaseException | None:
    assert isinstance(result.error, HookFailed)
    return result.error.__cause__


@pytest.mark.parametrize("phase", ["step-start", "batch", "forward", "backward", "update", "evaluation"])
def test_each_phase(run_with: Inject1, phase: str) -> None:
    error = cause(run_with(f"raise:rank0@3:{phase}", fails=True))
    assert isinstance(error, InjectedFault)
    assert str(error) == f"raise:rank0@3:{phase}"


def test_setup(run_with: Inject1) -> None:
    result = run_with("raise:all@setup", fails=True)
    assert isinstance(cause(result), InjectedFault)
    assert result.outcome.step == 0


def test_other_ranks_are_left_alone(run_with: Inject1) -> None:
    assert run_with("raise:rank3@2").outcome.ok


@pytest.mark.parametrize(("fault", "kind"), [("oom:rank0@2", torch.OutOfMemoryError), ("exit:rank0:0@2", SystemExit)])
def test_errors_of_other_kinds(run_with: Inject1, fault: str, kind: type[BaseException]) -> None:
    assert isinstance(cause(run_with(fault, fails=True)), kind)


def test_loss_that_is_nan_ends_the_run(run_with: Inject1) -> None:
    result = run_with("nan@2", fails=True)
    assert "train/loss is nan at step 2" in str(result.error)


def test_loss_and_gradients_are_nan_in_micro_batches_too(run_with: Inject1) -> None:
    settings = ['train.nonfinite="warn"', "train.micro_batch_size=8", "train.clip_grad_norm=1.0"]
    result = run_with("nan@2", settings=settings)
    assert result.outcome.ok
    for name in ("train/loss", "train/grad_norm"):
        series = result.series(name)
        assert math.isfinite(float(series[1]))
        assert math.isnan(float(series[2]))


@pytest.mark.parametrize("hook", ["on_step_end", "on_log"])
def test_hook_of_a_plugin_that_is_survived(run_with: Inject1, hook: str) -> None:
    result = run_with(f"raise:watcher.{hook}@3")
    assert result.outcome.ok
    [event] = [event for event in result.events if event["plugin"] != "checkpoint"]
    assert (event["decision"], event["plugin"], event["hook"]) == ("disable", "watcher", hook)
    assert event["reason"] == f"InjectedFault: raise:watcher.{hook}@3"
    if hook == "on_step_end":
        assert event["posted"] == 3


@pytest.mark.parametrize(
    ("instance", "hook"), [("watcher", "should_stop"), ("watcher", "on_update_end"), ("task", "training_step")]
)
def test_hook_that_is_fatal(run_with: Inject1, instance: str, hook: str) -> None:
    result = run_with(f"raise:{instance}.{hook}", fails=True)
    assert isinstance(cause(result), InjectedFault)
    assert isinstance(result.error, HookFailed)
    assert (result.error.instance, result.error.hook) == (instance, hook)


def test_wrong_faults_are_wrong_options(run_with: Inject1) -> None:
    with pytest.raises(Exception, match="there is no kind 'kil'; did you mean 'kill'"):
        run_with("kil:rank0@2")


@pytest.mark.parametrize("phase", SAVING)
def test_each_phase_of_a_save(run_with: Inject1, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    struck: list[tuple[str, int]] = []
    monkeypatch.setitem(inject._FIRE, "kill", lambda fault, run: struck.append((fault.text, run.step)))
    fault = f"kill:rank0@3:{phase}"
    result = run_with(fault, settings=["checkpoint.every=2", "checkpoint.background=false"])
    assert result.outcome.ok
    assert struck == [(fault, 4)], "it comes in the first save that is due"


# --- without a run ---


@pytest.fixture
def run(tmp_path: Path) -> Any:
    paths = create(tmp_path / "runs", "test")
    recipe = SimpleNamespace(launch=SimpleNamespace(start="warm", on_usr1="ignore", on_usr2="stop", workers=2))
    return SimpleNamespace(paths=paths, attempt=1, step=3, world=SimpleNamespace(rank=0), recipe=recipe)


def injecting(*faults: str) -> Inject:
    return Inject(Inject.Options(faults=list(faults)))


def test_every_kind_does_something() -> None:
    assert inject._FIRE.keys() | {"nan"} == KINDS.keys()  # which acts on the loss, where a hookimpl is called


def test_once_in_a_run(run: Any) -> None:
    fault = parse("kill:all@3")
    assert [claim(fault, run), claim(fault, run)] == [True, False]
    run.world.rank = 1
    assert claim(fault, run)
    run.world.rank, run.attempt = 2, 2  # the first attempt was over before this rank could come to it
    assert not claim(fault, run)


def test_once_in_an_attempt(run: Any) -> None:
    fault = parse("kill:all@3!")
    assert [claim(fault, run), claim(fault, run)] == [True, False]
    run.attempt = 2
    assert claim(fault, run)


def test_one_of_many_racers_claims(run: Any) -> None:
    fault, won = parse("kill:rank0@3"), []
    start = threading.Barrier(20)

    def race() -> None:
        start.wait()
        won.append(claim(fault, run))

    racers = [threading.Thread(target=race) for _ in range(20)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(won) == [False] * 19 + [True]


def test_signal_goes_to_the_owner_of_the_run(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append("usr1"))
    lease = Lease.acquire(run.paths)
    try:
        injecting("usr1@3").on_step_start(run)
    finally:
        lease.release()
        signal.signal(signal.SIGUSR1, before)
    assert seen == ["usr1"]


def test_signal_waits_for_the_answer(run: Any) -> None:
    seen = []

    def answer(number: int, _: object) -> None:
        seen.append(signal.Signals(number).name)
        paths: RunPaths = run.paths
        paths.attempt(1).mkdir()
        paths.requests(1).write_text("{}\n")

    before = signal.signal(signal.SIGTERM, answer)
    lease = Lease.acquire(run.paths)
    try:
        injecting("sigterm@3").on_step_start(run)
    finally:
        lease.release()
        signal.signal(signal.SIGTERM, before)
    assert seen == ["SIGTERM"]
    assert run.paths.requests(1).exists()


def test_run_without_an_owner(run: Any) -> None:
    with pytest.raises(Exception, match="this run has no owner"):
        injecting("sigterm@3").on_step_start(run)


def test_steps_before_it_are_left_alone(run: Any) -> None:
    run.step = 2
    injecting("raise:rank0@3").on_step_start(run)
    run.step = 4  # another attempt went on from a checkpoint of step 3
    with pytest.raises(InjectedFault):
        injecting("raise:rank0@3").on_step_start(run)


@pytest.mark.parametrize(
    ("process", "start", "expected"),
    [("server", "warm", os.getppid), ("agent", "cold", os.getppid), ("client", "warm", os.getpid)],
)
def test_which_process_is_struck(run: Any, process: str, start: str, expected: Callable[[], int]) -> None:
    run.recipe.launch.start = start
    lease = Lease.acquire(run.paths)
    assert inject._process(parse(f"kill:{process}@3"), run) == expected()
    lease.release()


def test_clients_hook_raises_once() -> None:
    plugin = injecting("raise:watcher.on_attempt_start")
    for _ in range(2):  # the plan is made anew when a plugin is disabled
        function = plugin.intercept_hookimpl("watcher", "on_attempt_start", lambda: "fine", None)
    with pytest.raises(InjectedFault):
        function()
    assert function() == "fine"
    again = plugin.intercept_hookimpl("watcher", "on_attempt_start", lambda: "fine", None)
    assert again() == "fine"


def test_what_cannot_happen_vetoes_the_launch(run: Any) -> None:
    run.recipe.launch.start = "cold"
    plugin = injecting("kill:rank2@3", "kill:server@3", "kill:rank1@3")
    assert plugin.check_recipe(run.recipe) == [
        "fault 'kill:rank2@3': there is no rank 2, launch.workers is 2",
        "fault 'kill:server@3': only launch.start = \"warm\" has a fork server",
    ]
