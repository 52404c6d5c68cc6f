"""What plugins return and how they are called, through the command line: nothing is guessed from truth or names."""

from __future__ import annotations

import re
from typing import Any

import pytest

PLUGINS = """
import asyncio

import torch

from trainrun import hookimpl


class Enough:
    @hookimpl
    def should_stop(self, run):
        return "enough" if run.step >= 2 else False


class Asks:
    @hookimpl
    def on_step_end(self, run, step):
        if step == 2:
            run.request_stop("seen enough")


class Truth:
    @hookimpl
    def should_stop(self, run):
        return run.step >= 2


class Tensor:
    @hookimpl
    def should_skip_update(self, run):
        with (run.paths.root / f"calls-{run.name}").open("a") as file:
            file.write(f"{run.world.rank} {run.step}\\n")
        return torch.tensor(True)


class Cancelled:
    @hookimpl(background=True)
    def on_log(self, run, step):
        with (run.paths.root / f"calls-{run.name}").open("a") as file:
            file.write(f"{run.world.rank} {step}\\n")

        async def send():
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

        asyncio.run(send())


class Terminated(Exception):
    pass


class OutOfMemoryError(Exception):
    pass


class Raises:
    @hookimpl
    def on_step_end(self, step):
        if step == 2:
            raise Terminated("mine")


class Forgets:
    @hookimpl
    def on_step_end(self, step):
        if step == 2:
            raise OutOfMemoryError("mine")
"""
STEPS = 8
PATIENCE = 150


@pytest.fixture
def use(project: Any) -> Any:
    """Makes the overrides that enable plugins of the file: instance name to class."""
    (project.folder / "own.py").write_text(PLUGINS)

    def overrides(instances: dict[str, str], **more: Any) -> dict[str, Any]:
        table = {f"plugins.{name}.use": f'"own.py:{kind}"' for name, kind in instances.items()}
        return {**table, "train.log_every": 1, "launch.workers": 1, **more}

    return overrides


@pytest.mark.long
def test_names_of_plugins_and_exceptions_change_no_exit_code(project: Any, use: Any) -> None:
    """Instances called like a signal and like the source of saves, exceptions like those of trainrun and torch."""
    cases = {
        "SIGNAL": (use({"SIGNAL": "Enough"}), 0, "stopped at step 3: plugin SIGNAL voted to stop (enough)"),
        "checkpoint": (
            use({"checkpoint": "Asks"}),
            0,
            "stopped at step 3: plugin checkpoint asked to stop (seen enough)",
        ),
        "Terminated": (use({"x": "Raises"}), 1, "raised Terminated in on_step_end: mine"),
        "memory": (
            use({"x": "Forgets"}, **{"launch.max_restarts": 1}),
            1,
            "raised OutOfMemoryError in on_step_end: mine",
        ),
    }
    started = {
        name: project.start_launch(**overrides, **{"run.dir": f'"runs-{name}"'})
        for name, (overrides, _, _) in cases.items()
    }
    for command in started.values():  # all of them, before one is asked for what it has left running
        command.wait(PATIENCE)
    ended = {name: project.finish(command) for name, command in started.items()}
    for name, (_, code, text) in cases.items():
        assert ended[name].code == code, ended[name].stderr
        assert text in ended[name].verdict
        assert ended[name].verdict.startswith("stopped at step" if code == 0 else "failed: ")


def test_wrong_returns_and_any_exception_are_survived_by_the_policy(project: Any, use: Any) -> None:
    """With room for one call and training that waits for it, a thread that ended would end the run by its timeout."""
    instances = {"truth": "Truth", "warned": "Tensor", "disabled": "Tensor", "kept": "Cancelled", "out": "Cancelled"}
    policies = {"truth": "warn", "warned": "warn", "disabled": "disable", "kept": "warn", "out": "disable"}
    more: dict[str, Any] = {f"plugins.{name}.on_error": policy for name, policy in policies.items()}
    for name in ("kept", "out"):
        more |= {f"plugins.{name}.queue": 1, f"plugins.{name}.when_full": "block"}
    ended = project.launch(**use(instances, **more, **{"launch.workers": 2}))
    assert (ended.code, ended.verdict) == (0, f"finished: {STEPS}/{STEPS} steps"), ended.stderr
    decisions = {event["plugin"]: event for event in ended.events if event["event"] == "decision"}
    assert {name: one["decision"] for name, one in decisions.items()} == policies
    no = "; return None for no, or a non-empty string with the reason"
    assert re.fullmatch(rf"should_stop \(\w+\.py:\d+\) returned True{no}", decisions["truth"]["reason"])
    assert re.fullmatch(
        rf"should_skip_update \(\w+\.py:\d+\) returned a torch.Tensor{no}", decisions["warned"]["reason"]
    )
    assert decisions["kept"]["reason"] == "CancelledError"
    assert [one["hook"] for one in (decisions["warned"], decisions["out"])] == ["should_skip_update", "on_log"]
    assert sorted(ended.calls("warned")) == [(rank, step) for rank in (0, 1) for step in range(1, STEPS + 1)]
    assert {step for _, step in ended.calls("disabled")} < set(range(1, STEPS))
    assert ended.calls("kept") == [(0, step) for step in range(1, STEPS + 1)]
    assert 1 <= len(ended.calls("out")) < STEPS
    assert "its queue was full" not in ended.stdout


def test_a_wrong_return_fails_the_run_and_names_plugin_and_hook(project: Any, use: Any) -> None:
    ended = project.launch(**use({"truth": "Truth"}))
    assert ended.code == 1
    told = r"plugin 'truth': should_stop \(\w+\.py:\d+\) returned True; return None for no, or a non-empty string"
    assert re.search(told, ended.verdict), ended.verdict
    assert ended.tracebacks == 0
    failure = ended.outcome["first_failure"]
    assert (failure["instance"], failure["hook"]) == ("truth", "should_stop")
