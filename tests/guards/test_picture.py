"""The manual's picture of the hooks is the order in which real runs call them, and a wrong picture is noticed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from trainrun import hookimpl, hookspecs
from trainrun.marker import spec_options
from trainrun.testing import HookRecorder, LaunchRecipe, Result, RunRecipe

from .picture import Block, Order, hooks, read

HOOKS = {name for name, function in vars(hookspecs).items() if spec_options(function) is not None}
# Of sweeps, which are no part of a run.
SWEEPS = {"sample_trials", "on_sweep_start", "on_sweep_end"}
ABSENT = sorted(name for name in HOOKS if not hasattr(HookRecorder, name))
TEXT = re.search(r"::\n\n(.*?)\n\n(?=\S)", hookspecs.__doc__ or "", re.DOTALL)
assert TEXT is not None
PICTURE = TEXT[1]

RECIPE = """
task = { use = "digits", channels = 2, hidden = 4 }
train = { steps = 6, batch_size = 32, micro_batch_size = 8, log_every = 2, clip_grad_norm = 1.0 }
evaluate = { every = 3, batch_size = 180 }
scheduler.name = "linear"
"""
SAVED = [RECIPE, "checkpoint = { every = 2, background = false }"]

KILLED = [
    "launch.max_restarts=1",
    'plugins.inject.use="trainrun.builtin.inject:Inject"',
    'plugins.inject.faults=["kill:rank1@5"]',
]


class Voter:
    """Skip an update, evaluate and save at a step, and stop."""

    @hookimpl
    def should_skip_update(self, run: Any) -> str | None:
        return "odd" if run.step == 2 else None

    @hookimpl
    def should_evaluate(self, run: Any) -> str | None:
        return "now" if run.step == 1 else None

    @hookimpl
    def should_checkpoint(self, run: Any) -> str | None:
        return "now" if run.step == 1 else None

    @hookimpl
    def should_stop(self, run: Any) -> str | None:
        return "enough" if run.step == 5 else None


class Breaker:
    @hookimpl
    def on_forward_end(self, run: Any) -> None:
        if run.step == 4:
            raise ValueError("broken as planned")


class Calls:
    """What one process has recorded, from its first call to its last."""

    def __init__(self, part: str, names: list[str]) -> None:
        self.part = part
        self.broken_off = "on_exception" in names or (part == "worker" and names[-1] != "on_worker_end")
        self.names = names[: names.index("on_exception")] if "on_exception" in names else names

    def fault(self, order: Order) -> str | None:
        return order.fault(self.part, self.names, broken_off=self.broken_off)


def calls_of(result: Result) -> Iterator[Calls]:
    if names := result.hooks(None):
        yield Calls("client", names)
    for rank in {call.rank for call in result.calls} - {None}:
        names = result.hooks(rank)
        begins = [place for place, name in enumerate(names) if name == "on_worker_start"]
        for begin, end in zip(begins, [*begins[1:], None], strict=True):
            yield Calls("worker", names[begin:end])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, trainrun_cache: Path) -> Mapping[str, list[Calls]]:
    """Calls of real runs, by what happens in them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINRUN_CACHE_DIR", str(trainrun_cache))
        launch = LaunchRecipe(tmp_path_factory.mktemp("launched"))
        saved = "\n".join(SAVED)
        found = {
            "two workers": launch(saved, HookRecorder),
            "a worker is killed": launch(saved, HookRecorder, overrides=KILLED),
        }
        for name, plugins, overrides, fails in (
            ("one rank", [], [], False),
            ("evaluated at the end of an epoch", [], ['evaluate.every="epoch"', "train.steps=48"], False),
            ("in epochs", [], ["train.epochs=1", "~train.steps"], False),
            ("saved in the background", [], ["checkpoint.every=2", "checkpoint.at_end=true"], False),
            ("votes", [Voter], ["checkpoint.at_end=true"], False),
            ("an exception", [Breaker], [], True),
        ):
            run = RunRecipe(tmp_path_factory.mktemp("run"), patch)
            try:
                found[name] = run(RECIPE, HookRecorder, *plugins, overrides=overrides, fails=fails)
            finally:
                run.close()
    return {name: list(calls_of(result)) for name, result in found.items()}


def test_real_runs_call_the_hooks_in_the_order_of_the_picture(recorded: Mapping[str, list[Calls]]) -> None:
    order = Order(read(PICTURE), ABSENT)
    faults = {name: [calls.fault(order) for calls in found] for name, found in recorded.items()}
    assert faults == {name: [None] * len(found) for name, found in recorded.items()}


def test_what_the_runs_are_about_is_in_them(recorded: Mapping[str, list[Calls]]) -> None:
    assert [calls.part for calls in recorded["two workers"]] == ["client", "worker", "worker"]
    assert [calls.part for calls in recorded["a worker is killed"]] == ["client", *["worker"] * 4]
    assert [calls.broken_off for calls in recorded["an exception"]] == [True]
    (votes,) = recorded["votes"]
    assert {"on_stop_requested", "on_checkpoint_saved", "on_evaluation_start"} <= set(votes.names)


def test_every_hook_is_in_the_picture() -> None:
    parts = read(PICTURE)
    shown = [name for part in parts.values() for name in hooks(part)]
    assert {name for name in shown if name.startswith("<")} == {f"<{name}>" for name in parts} - {
        "<client>",
        "<worker>",
    }
    broken_off = {"on_exception"}  # named below the picture
    assert {name for name in shown if not name.startswith("<")} == HOOKS - SWEEPS - broken_off
    assert "`on_exception`" in (hookspecs.__doc__ or "")


SEEN_IN_NO_RUN = {*ABSENT, "on_control", "on_checkpoint_failed"}


def test_a_hook_that_is_left_out_of_the_picture_is_noticed(recorded: Mapping[str, list[Calls]]) -> None:
    passed = []
    for name in sorted(HOOKS - SWEEPS - SEEN_IN_NO_RUN - {"on_exception"}):
        order = Order({head: _without(part, name) for head, part in read(PICTURE).items()}, ABSENT)
        if all(calls.fault(order) is None for found in recorded.values() for calls in found):
            passed.append(name)
    assert passed == []


def test_two_hooks_that_are_exchanged_are_noticed(recorded: Mapping[str, list[Calls]]) -> None:
    names = [name for part in read(PICTURE).values() for name in hooks(part) if not name.startswith("<")]
    pairs = {pair for pair in itertools.pairwise(names) if not SEEN_IN_NO_RUN & set(pair)}
    passed = []
    for one, other in sorted(pairs):
        exchanged = re.sub(rf"\b({one}|{other})\b", lambda found: other if found[0] == one else one, PICTURE)  # noqa: B023
        order = Order(read(exchanged), ABSENT)
        if all(calls.fault(order) is None for found in recorded.values() for calls in found):
            passed.append((one, other))
    assert passed == []


def _without(block: Block, name: str) -> Block:
    items = [_without(item, name) if isinstance(item, Block) else item for item in block.items if item != name]
    return Block(block.head, items)


@pytest.mark.parametrize(
    ("calls", "fault"),
    [
        (["begin", "step", "step", "end"], None),
        (["begin", "end"], None),
        (["begin", "step", "saved", "step", "saved", "end"], None),
        (["begin", "saved", "end"], "after begin: saved"),
        (["begin", "step"], "after begin, step: the end"),
        (["step", "end"], "after : step"),
    ],
)
def test_order(calls: list[str], fault: str | None) -> None:
    parts = read("run:\n  begin\n  for each step:\n    step\n    if due:\n      <save>\n  end\nsave:\n  saved")
    assert Order(parts).fault("run", calls) == fault
    assert Order(parts).fault("run", calls[:2], broken_off=True) == (
        fault if "saved" in calls[:2] or calls[0] == "step" else None
    )


@pytest.mark.parametrize("line", ["step, end", "step (", "sometimes:\n        step"])
def test_lines_that_say_nothing_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"begin with one of|are no hooks"):
        read(f"run:\n    {line}")
