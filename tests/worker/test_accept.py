"""Optimizers and schedulers that are refused right when they are built, by name."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from trainrun import hookimpl
from trainrun.errors import TrainingError
from trainrun.worker.accept import require_optimizer
from trainrun.worker.optim import optimizer_classes


def sgd(model: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


class Both(torch.optim.SGD):
    """Steps another optimizer with its own."""

    def __init__(self, model: torch.nn.Module, *, deep: bool = False) -> None:
        super().__init__(model.parameters(), lr=0.1)
        other = sgd(model)
        self.parts: Any = {"all": [other]} if deep else other


class OwnState(torch.optim.SGD):
    """Adds to its state what no checkpoint asks for."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "more": 1}


class OwnLoading(torch.optim.SGD):
    """Looks at what it is given."""

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)


def patched(model: torch.nn.Module) -> torch.optim.SGD:
    found = sgd(model)
    found.state_dict = dict  # type: ignore[method-assign]
    return found


class Facade:
    """Looks like an optimizer, and is none."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.inner = sgd(model)
        self.param_groups = self.inner.param_groups
        self.step = self.inner.step


def optimizing(regression: Any, build: Callable[[torch.nn.Module], Any]) -> Any:
    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_optimizer(self, model: torch.nn.Module) -> Any:
            return build(model)

    return Task


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda model: [sgd(model), sgd(model)], "returned a list of SGD, SGD; return one torch.optim.Optimizer"),
        (lambda model: (sgd(model),), "returned a tuple of SGD; return one"),
        (lambda model: {"g": sgd(model), "d": sgd(model)}, "returned a dict of g: SGD, d: SGD; return one"),
        (Facade, r"returned a .*test_accept\.Facade; return one"),
        (lambda model: torch.optim.SGD, "returned a builtins.type; return one"),
        (Both, r"test_accept\.Both, which holds another optimizer \(parts: SGD\)"),
        (lambda model: Both(model, deep=True), r"holds another optimizer \(parts: SGD\)"),
        (OwnState, r"test_accept\.OwnState, which has its own state_dict; "),
        (OwnLoading, r"test_accept\.OwnLoading, which has its own load_state_dict; "),
        (patched, r"torch\.optim\.sgd\.SGD, which has its own state_dict; "),
    ],
    ids=["list", "tuple", "dict", "facade", "class", "holds", "holds deep", "state", "loading", "patched"],
)
def test_what_is_not_one_plain_optimizer_is_refused(build: Any, what: str, training: Any, regression: Any) -> None:
    built = build if not (isinstance(build, type) and issubclass(build, OwnState | OwnLoading)) else from_model(build)
    with pytest.raises(TrainingError, match=r"build_optimizer of the task \(live_.*" + what):
        training(optimizing(regression, built), train={"steps": 2})


def from_model(kind: type) -> Callable[[torch.nn.Module], Any]:
    return lambda model: kind(model.parameters(), lr=0.1)


def test_plugin_that_built_it_is_named(training: Any, regression: Any) -> None:
    class Lion:
        @hookimpl
        def build_optimizer(self, model: torch.nn.Module) -> Any:
            return [sgd(model)]

    with pytest.raises(TrainingError, match=r"build_optimizer of the plugin 'lion' returned a list of SGD"):
        training(regression, Lion, train={"steps": 2})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_zero_redundancy_optimizer_is_refused_on_all_ranks(training: Any, regression: Any) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def build(model: torch.nn.Module) -> Any:
        return ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)

    trained = training(optimizing(regression, build), ranks=2, train={"steps": 2})
    assert all("ZeroRedundancyOptimizer, which holds another optimizer" in str(error) for error in trained.ranks)


def test_all_optimizers_of_torch_are_accepted() -> None:
    for kind in optimizer_classes().values():
        shape = (2, 2) if kind.__name__ == "Muon" else (2,)
        require_optimizer(kind([torch.nn.Parameter(torch.zeros(shape))], lr=0.1), None)


def test_an_optimizer_of_ones_own_that_keeps_all_in_its_state_is_accepted(training: Any, regression: Any) -> None:
    class Sign(torch.optim.Optimizer):
        """Steps by the sign of the gradient."""

        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {"lr": 0.01})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            del closure
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(parameter.grad.sign(), alpha=-group["lr"])

    task = optimizing(regression, lambda model: Sign(model.parameters()))
    assert training(task, train={"steps": 2}).outcome.state == "finished"


# --- schedulers ---


def scheduling(regression: Any, build: Callable[[Any], Any]) -> Any:
    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_scheduler(self, optimizer: Any) -> Any:
            return build(optimizer)

    return Task


def other_optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda o: [lr_scheduler.StepLR(o, 1)], "returned a list of StepLR, which does not have step, state_dict and"),
        (lambda o: {"scheduler": lr_scheduler.StepLR(o, 1)}, "returned a dict of scheduler: StepLR, which does not"),
        (lambda o: lambda: None, r"returned a builtins\.function, which does not have step"),
        (lambda o: SimpleNamespace(step=print), "returned a types.SimpleNamespace, which does not have step"),
        (lr_scheduler.ReduceLROnPlateau, "whose step takes more .* turn on the plugin plateau-check"),
        (lambda o: lr_scheduler.StepLR(other_optimizer(), 1), "sets the rates of another optimizer"),
    ],
    ids=["list", "dict", "function", "without state", "plateau", "of another"],
)
def test_what_cannot_be_stepped_and_saved_is_refused(build: Any, what: str, training: Any, regression: Any) -> None:
    with pytest.raises(TrainingError, match=r"build_scheduler of the task \(live_.*" + what):
        training(scheduling(regression, build), train={"steps": 2})
