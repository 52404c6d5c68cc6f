"""What a worker shows of itself while it trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from trainrun import hookimpl
from trainrun.rundir.pulse import Beat, Pulse, read_pulse
from trainrun.worker.ties import Ties


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulse"


def looking(path: Path) -> Any:
    """A plugin that reads the pulse from outside in several hooks."""

    class Looking:
        seen: ClassVar[list[tuple[str, Beat]]] = []

        def look(self, name: str) -> None:
            beat = read_pulse(path)
            assert beat is not None
            self.seen.append((name, beat))

        @hookimpl
        def on_worker_start(self) -> None:
            self.look("on_worker_start")

        @hookimpl
        def on_step_start(self) -> None:
            self.look("on_step_start")

        @hookimpl
        def on_evaluation_batch_start(self) -> None:
            self.look("on_evaluation_batch_start")

        @hookimpl
        def on_step_end(self) -> None:
            self.look("on_step_end")

        @hookimpl
        def on_train_end(self) -> None:
            self.look("on_train_end")

    return Looking


def test_step_phase_and_hook(training: Any, regression: Any, path: Path) -> None:
    plugin = looking(path)
    training(
        regression,
        plugin,
        ties=lambda: Ties(pulse=Pulse.create(path)),
        train={"steps": 2, "batch_size": 4},
        evaluate={"every": 1, "batch_size": 4},
    )
    shown = [(name, beat.hook, beat.phase, beat.step) for name, beat in plugin.seen]
    step = [
        ("on_step_start", "training"),
        ("on_step_end", "training"),
        *[("on_evaluation_batch_start", "evaluation")] * 2,
    ]
    expected = [("on_worker_start", "setup", 0)]
    expected += [(name, phase, number) for number in (1, 2) for name, phase in step]
    expected.append(("on_train_end", "ending", 2))
    assert shown == [(name, name, phase, number) for name, phase, number in expected]
    assert {beat.instance for _, beat in plugin.seen} == {"looking"}
    last = read_pulse(path)
    assert last is not None
    assert (last.hook, last.own_steps) == (None, 2)


def test_every_step_and_every_batch_is_an_advance(training: Any, regression: Any, path: Path) -> None:
    plugin = looking(path)
    training(
        regression,
        plugin,
        ties=lambda: Ties(pulse=Pulse.create(path)),
        train={"steps": 3},
        evaluate={"every": 1, "batch_size": 1},
    )
    counts = [beat.advances for name, beat in plugin.seen if name in ("on_step_start", "on_evaluation_batch_start")]
    assert counts == sorted(set(counts))


def slow(hook: str, seconds: float, rank: int) -> Any:
    class Slow:
        def wait(self, run: Any) -> None:
            if run.world.rank == rank:
                time.sleep(seconds)

    def called(self: Any, run: Any) -> None:
        self.wait(run)

    called.__name__ = hook
    setattr(Slow, hook, hookimpl(ranks="all")(called))
    return Slow


@pytest.mark.parametrize("hook", ["on_step_start", "on_forward_end", "on_update_end", "on_step_end"])
def test_only_the_slow_rank_takes_time_of_its_own(training: Any, regression: Any, path: Path, hook: str) -> None:
    ties: list[Ties] = []

    def tie() -> Ties:
        ties.append(Ties())
        return ties[-1]

    trained = training(
        regression,
        slow(hook, 0.1, rank=1),
        ranks=2,
        ties=tie,
        train={"steps": 6},
        report=lambda: ties[-1].pulse.read().own_ns / 6e9,
    )
    fast, late = trained.reports
    assert late >= 0.1
    assert fast < late / 2, "it only waited"
