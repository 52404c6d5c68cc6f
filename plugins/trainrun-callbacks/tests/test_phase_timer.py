from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from trainrun_callbacks.phase_timer import PhaseTimer, PhaseTimerOptions
from trainrun_callbacks.stopwatches import DeviceStopwatch, HostStopwatch, percentile

from trainrun import hookimpl
from trainrun.testing import ForkRecipe

RECIPE = """
task = { use = "digits", channels = 1, hidden = 2 }
train = { steps = 6, batch_size = 16, micro_batch_size = 4, log_every = 2 }
evaluate = { every = 3, batch_size = 180 }
checkpoint = { every = 3 }

[plugins.phase-timer]
"""
PHASES = ("data", "move", "forward", "backward", "optimizer")


class Slow:
    """Rank 1 takes its time before each forward."""

    before = ("phase-timer",)

    @hookimpl(wrapper=True)
    def training_step(self, run: Any) -> Any:
        time.sleep(0.03 * run.world.rank)
        return (yield)


def test_phases_fit_into_the_step_and_the_slow_rank_is_named(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE, Slow)
    for share in (50, 95):
        assert list(result.series(f"phase/step/p{share}")) == [2, 4, 6]
        for name in PHASES:
            assert all(value >= 0 for value in result.series(f"phase/{name}/p{share}").values())
    assert min(result.series("phase/forward/p50").values()) > 0.06  # two micro-batches
    slowest = {name: max(result.series(f"phase/{name}/p50").values()) for name in PHASES}
    assert slowest["forward"] < max(result.series("phase/step/p95").values())
    slowest_rank = result.series("phase/slowest_rank")
    assert list(slowest_rank) == [4, 6]  # of the log before
    assert slowest_rank[6] == 1
    assert all(result.series("phase/evaluation/eval").values())
    assert all(result.series("phase/checkpoint").values())


@pytest.mark.parametrize(("share", "value"), [(0.5, 5.0), (0.95, 10.0), (0.1, 1.0), (0.11, 2.0), (1.0, 10.0)])
def test_percentiles_are_values_that_were_measured(share: float, value: float) -> None:
    assert percentile([float(number) for number in range(10, 0, -1)], share) == value
    assert percentile([7.0], share) == 7.0


def test_parts_of_a_phase_add_up_in_each_step() -> None:
    watch = HostStopwatch()
    for step, begin, end in [(1, 0.0, 2.0), (1, 3.0, 4.0), (2, 0.0, 5.0)]:
        watch.add(step, "forward", begin, end)
    assert watch.take() == {"forward": [3.0, 5.0]}
    assert watch.take() == {}


class Event:
    """A moment that the device reaches when `clock` does."""

    clock = 0

    def __init__(self, at: int) -> None:
        self.at = at

    def query(self) -> bool:
        return self.at <= Event.clock

    def elapsed_time(self, end: Event) -> float:
        assert end.query(), "read before the device was there"
        return 1000.0 * (end.at - self.at)


def test_a_device_is_never_waited_for_and_a_step_is_told_as_a_whole() -> None:
    watch = DeviceStopwatch()
    for step, begin, end in [(1, 0, 1), (1, 1, 3), (2, 3, 4), (2, 5, 8)]:
        watch.add(step, "forward", Event(begin), Event(end))
    Event.clock = 4
    assert watch.take() == {"forward": [3.0]}
    Event.clock = 8
    assert watch.take() == {"forward": [4.0]}


def test_a_single_rank_is_not_called_the_slowest() -> None:
    logged = {}
    run: Any = SimpleNamespace(
        step=1,
        logs_now=True,
        world=SimpleNamespace(size=1, rank=0),
        log=lambda name, value, reduce: logged.update({name: value}),
    )
    timer = PhaseTimer(PhaseTimerOptions(percentiles=[100]))
    timer.on_step_start(run)
    timer.on_batch_fetched(run, 2.0)
    timer.on_microbatch_start(run)
    timer.on_forward_end(run)
    timer.on_backward_end(run)
    timer.on_update_end(run)
    assert logged["phase/data/p100"] == 2.0
    assert set(logged) == {f"phase/{name}/p100" for name in PHASES}
