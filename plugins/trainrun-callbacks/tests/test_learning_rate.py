from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from trainrun_callbacks import LearningRateMonitor, LearningRateMonitorOptions


def logged(groups: list[dict[str, Any]], **options: bool) -> dict[str, float]:
    metrics = {}

    def log(name: str, value: float, reduce: str) -> None:
        assert reduce == "zero"
        metrics[name] = value

    run: Any = SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups), log=log, logs_now=True)
    LearningRateMonitor(LearningRateMonitorOptions(**options)).on_step_start(run)
    return metrics


def test_each_group_is_logged_by_its_place_or_name() -> None:
    assert logged([{"lr": 0.1}, {"lr": 0.2, "name": "head"}]) == {"lr/0": 0.1, "lr/head": 0.2}


def test_momentum_is_the_first_beta_where_there_are_betas() -> None:
    groups: list[dict[str, Any]] = [{"lr": 0.1, "momentum": 0.8}, {"lr": 0.1, "betas": (0.9, 0.99)}, {"lr": 0.1}]
    found = logged(groups, momentum=True)
    assert {name: value for name, value in found.items() if "momentum" in name} == {
        "momentum/0": 0.8,
        "momentum/1": 0.9,
    }


def test_weight_decay_is_logged_on_request() -> None:
    assert logged([{"lr": 0.1, "weight_decay": 0.0}], weight_decay=True) == {"lr/0": 0.1, "weight_decay/0": 0.0}
    assert logged([{"lr": 0.1, "weight_decay": 0.0}]) == {"lr/0": 0.1}
