"""Checkpoints of a model in shards: the same format, whatever it was spread over when it was written and is now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainrun.marker import hookimpl
from trainrun.worker.checkpoint.reader import read_tensors

RECIPE: dict[str, Any] = {
    "train": {"steps": 8},
    "optimizer": {"name": "adamw", "lr": 0.05},
    "checkpoint": {"every": 3, "at_end": True, "keep": 9},
}
FSDP = {"parallel": {"strategy": "fsdp"}}


class Stop:
    """Stops at step 3: what was voted before a checkpoint is applied before it is taken."""

    @hookimpl(ranks="zero")
    def should_stop(self, run: Any) -> str | None:
        return "enough" if run.step == 3 else None


def tensors(trained: Any, step: int) -> dict[str, torch.Tensor]:
    return read_tensors(trained.paths.checkpoints / f"step-{step:06}", "")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "state").iterdir())


def require_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)


def test_each_rank_writes_its_shards_and_goes_on_bit_for_bit(training: Any, regression: Any) -> None:
    whole = training(regression, ranks=2, **RECIPE, **FSDP)
    stopped = training(regression, Stop, ranks=2, **RECIPE, **FSDP)
    assert stopped.outcome.step == 3
    assert files(stopped.paths.checkpoints / "step-000003") == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    resumed = training(regression, ranks=2, after=stopped.paths, **RECIPE, **FSDP)
    one, other = tensors(resumed, 8), tensors(whole, 8)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("first", "then"),
    [((2, "fsdp"), (1, "none")), ((2, "fsdp"), (2, "ddp")), ((1, "none"), (2, "fsdp")), ((2, "ddp"), (4, "fsdp"))],
    ids=lambda leg: f"{leg[1]} on {leg[0]}",
)
def test_it_may_be_spread_otherwise_when_it_goes_on(training: Any, regression: Any, first: Any, then: Any) -> None:
    whole = training(regression, **RECIPE)
    legs = [{"ranks": ranks, "parallel": {"strategy": strategy}} for ranks, strategy in (first, then)]
    stopped = training(regression, Stop, **legs[0], **RECIPE)
    require_close(tensors(stopped, 3), tensors(whole, 3))
    resumed = training(regression, **legs[1], after=stopped.paths, **RECIPE)
    assert resumed.outcome.step == 8
    require_close(tensors(resumed, 8), tensors(whole, 8))
