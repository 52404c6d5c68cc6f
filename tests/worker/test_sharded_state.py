"""Sharded tensors in the state of plugins: saved like those of the model, and read by any number of ranks."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch.distributed.tensor import DTensor

from trainrun.errors import BadCheckpoint
from trainrun.marker import hookimpl
from trainrun.worker.checkpoint import compare, sharded_state
from trainrun.worker.checkpoint.reader import Tensors, read_tensors

RECIPE: dict[str, Any] = {
    "train": {"steps": 4, "batch_size": 12},
    "checkpoint": {"every": 2, "at_end": True, "keep": 9},
}
FSDP = {"parallel": {"strategy": "fsdp"}}


class Doubler:
    """Keeps twice each parameter."""

    loaded: ClassVar[list[dict[str, Any]]] = []

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    @hookimpl
    def on_checkpoint_start(self, run: Any) -> None:
        self._kept = {name: one.detach() * 2 for name, one in run.module.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self._kept, "some": [3, (torch.tensor(4.0),)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept = state["kept"]
        self.loaded.append(state)

    @classmethod
    def report(cls) -> Any:
        kept = [(name, isinstance(one, DTensor), whole(one)) for name, one in cls.loaded[-1]["kept"].items()]
        return kept, cls.loaded[-1]["some"]


class Stop:
    @hookimpl(ranks="zero")
    def should_stop(self, run: Any) -> str | None:
        return "enough" if run.step == 2 else None


def whole(tensor: Any) -> torch.Tensor:
    full: torch.Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


@pytest.mark.parametrize(("ranks", "strategy"), [(2, "fsdp"), (1, "none"), (3, "fsdp")])
def test_any_number_of_ranks_goes_on(training: Any, regression: Any, ranks: int, strategy: str) -> None:
    stopped = training(regression, Doubler, Stop, ranks=2, **RECIPE, **FSDP)
    folder = stopped.paths.checkpoints / "step-000002"
    model = read_tensors(folder, "model/")
    table = {"parallel": {"strategy": strategy}}
    resumed = training(regression, Doubler, ranks=ranks, report=Doubler.report, after=stopped.paths, **RECIPE, **table)
    for kept, some in resumed.reports:
        assert {name for name, _, _ in kept} == set(model)
        assert all(sharded is (ranks > 1) for _, sharded, _ in kept)
        assert all(torch.equal(value, 2 * model[name]) for name, _, value in kept)
        assert some == [3, (torch.tensor(4.0),)]


def test_state_of_a_plugin_that_is_gone_is_carried_along(training: Any, regression: Any) -> None:
    stopped = training(regression, Doubler, Stop, ranks=2, **RECIPE, **FSDP)
    resumed = training(regression, ranks=2, after=stopped.paths, **RECIPE, **FSDP)
    before, after = (
        read_tensors(resumed.paths.checkpoints / name, "plugins/") for name in ("step-000002", "step-000004")
    )
    assert before.keys() == after.keys() != set()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_two_checkpoints_are_compared_by_them_too(training: Any, regression: Any) -> None:
    one, other = (training(regression, Doubler, ranks=2, **RECIPE, **FSDP).paths.checkpoints for _ in range(2))
    found = {part.name: part.first for part in compare.compare(one / "step-000002", other / "step-000002")}
    assert found["plugins"] is None
    found = {part.name: part.first for part in compare.compare(one / "step-000002", other / "step-000004")}
    assert found["plugins"] is not None
    assert found["plugins"].name.startswith("doubler/kept/")


@pytest.mark.parametrize("name", ["model/0.weight", "plugins/doubler/kept/none", 3])
def test_a_file_that_names_something_else_is_refused(training: Any, regression: Any, name: object) -> None:
    trained = training(regression, **RECIPE)
    source = Tensors(trained.paths.checkpoints / "step-000002")
    state = {"doubler": {"kept": {"__sharded__": name, "__cut__": [0]}}}
    with pytest.raises(BadCheckpoint, match="a sharded tensor of a plugin, is not there"):
        sharded_state.put_back(state, source, torch.nn.Linear(1, 1))
