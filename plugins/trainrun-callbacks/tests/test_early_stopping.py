from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest
from trainrun_callbacks import EarlyStopping, EarlyStoppingOptions

from trainrun import UsageError


def early_stopping(**options: Any) -> EarlyStopping:
    return EarlyStopping(EarlyStoppingOptions(**{"monitor": "eval/loss", **options}))


def at(*rates: float) -> Any:
    """A run with these learning rates."""
    return SimpleNamespace(optimizer=SimpleNamespace(param_groups=[{"lr": rate} for rate in rates]))


def reasons(plugin: EarlyStopping, *values: float) -> list[str | None]:
    found = []
    for value in values:
        plugin.on_evaluated(at(0.1), splits=("eval",), metrics={"eval/loss": value})
        found.append(plugin.should_stop())
    return found


def test_stops_after_patience_evaluations_without_a_better_value() -> None:
    *before, last = reasons(early_stopping(patience=2), 3.0, 2.0, 2.5, 2.0)
    assert before == [None, None, None]
    assert last == "eval/loss no better than 2 for 2 evaluations"


def test_a_better_value_starts_the_count_anew() -> None:
    assert reasons(early_stopping(patience=2), 3.0, 3.0, 2.0, 2.0)[-1] is None


def test_mode_max_takes_larger_as_better() -> None:
    assert reasons(early_stopping(patience=1, mode="max"), 0.1, 0.2, 0.1)[-1] is not None
    assert reasons(early_stopping(patience=1, mode="max"), 0.1, 0.2, 0.3)[-1] is None


def test_a_gain_of_no_more_than_min_delta_is_none() -> None:
    assert reasons(early_stopping(patience=1, min_delta=0.5), 3.0, 2.5)[-1] is not None
    assert reasons(early_stopping(patience=1, min_delta=0.5), 3.0, 2.4)[-1] is None


def test_small_gains_add_up_against_the_best() -> None:
    assert reasons(early_stopping(patience=3, min_delta=0.5), 3.0, 2.8, 2.6, 2.4)[-1] is None


@pytest.mark.parametrize("mode", ["min", "max"])
def test_not_a_number_is_never_the_best(mode: str) -> None:
    plugin = early_stopping(patience=2, mode=mode)
    assert reasons(plugin, math.nan, 1.0, math.nan) == [None, None, None]
    assert plugin.state_dict()["best"] == 1.0
    assert reasons(plugin, math.nan) == ["eval/loss no better than 1 for 2 evaluations"]


def test_a_metric_that_never_was_a_number_stops_too() -> None:
    assert reasons(early_stopping(patience=1), math.nan) == ["eval/loss was never finite for 1 evaluation"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_infinity_is_never_the_best(mode: str) -> None:
    plugin = early_stopping(patience=2, mode=mode)
    reasons(plugin, math.inf, -math.inf, 1.0)
    assert plugin.state_dict()["best"] == 1.0


def rated(plugin: EarlyStopping, *rates: tuple[float, ...]) -> list[str | None]:
    found = []
    for values in rates:
        plugin.on_evaluated(at(*values), splits=("eval",), metrics={"eval/loss": 1.0})
        found.append(plugin.should_stop())
    return found


def test_stops_when_all_learning_rates_are_small() -> None:
    plugin = early_stopping(patience=99, min_lr=0.01)
    *before, last = rated(plugin, (0.1, 0.2), (0.01, 0.02), (0.005, 0.01))
    assert before == [None, None]
    assert last == "no learning rate is above min_lr = 0.01 any more: the largest is 0.01"


def test_small_rates_that_rise_are_a_warm_up() -> None:
    plugin = early_stopping(patience=99, min_lr=0.01)
    assert rated(plugin, (0.001,), (0.005,), (0.1,), (0.02,)) == [None] * 4
    resumed = early_stopping(patience=99, min_lr=0.01)
    resumed.load_state_dict(plugin.state_dict())
    assert rated(resumed, (0.01,))[0] is not None
    assert rated(early_stopping(patience=99, min_lr=0.01), (0.01,), (0.01,))[1] is not None


@pytest.mark.parametrize(("mode", "far", "reached"), [("min", 0.6, 0.5), ("max", 0.4, 0.5)])
def test_stops_at_the_threshold(mode: str, far: float, reached: float) -> None:
    answers = reasons(early_stopping(mode=mode, threshold=0.5), far, reached)
    assert answers == [None, "eval/loss is 0.5, as good as the threshold 0.5"]


def test_infinity_is_not_as_good_as_the_threshold() -> None:
    assert reasons(early_stopping(mode="max", threshold=0.5), math.inf) == [None]
    assert reasons(early_stopping(mode="min", threshold=0.5), -math.inf) == [None]


def test_the_first_evaluations_are_passed_over() -> None:
    plugin = early_stopping(patience=1, skip_first=2, threshold=0.0)
    assert reasons(plugin, -1.0, 5.0, 4.0, 3.0) == [None, None, None, None]
    state = plugin.state_dict()
    del state["monitor"]
    assert state == {"best": 3.0, "seen": 4, "waited": 0, "rates": None}


def test_patience_is_live() -> None:
    options = EarlyStoppingOptions(monitor="eval/loss", patience=1)
    plugin = EarlyStopping(options)
    reasons(plugin, 1.0)
    options.patience = 2
    assert reasons(plugin, 1.0, 1.0) == [None, "eval/loss no better than 1 for 2 evaluations"]


def test_state_goes_on_where_it_was_but_does_not_stop_by_itself() -> None:
    first = early_stopping(patience=2)
    reasons(first, 1.0, 2.0, 2.0)
    second = early_stopping(patience=4)
    second.load_state_dict(first.state_dict())
    assert second.should_stop() is None
    assert reasons(second, 2.0, 2.0) == [None, "eval/loss no better than 1 for 4 evaluations"]


def test_state_of_another_metric_is_left() -> None:
    first = early_stopping(patience=1, mode="max")
    reasons(first, 1.0)
    second = early_stopping(patience=1)
    second.load_state_dict(first.state_dict())
    assert reasons(second, 2.0) == [None]


def test_an_unknown_metric_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'eval/loss': there is no such metric; .* has: eval/accuracy, eval/f1"):
        early_stopping().on_evaluated(at(), splits=("eval",), metrics={"eval/f1": 0.1, "eval/accuracy": 0.2})


def test_a_metric_may_come_later_but_must_come() -> None:
    plugin = early_stopping(must_exist="later")
    plugin.on_evaluated(at(), splits=("eval",), metrics={"eval/f1": 0.1})
    with pytest.raises(UsageError, match=r"'eval/loss': .* no evaluation had it; the last one had: eval/f1"):
        plugin.on_train_end()
    plugin.on_evaluated(at(), splits=("eval",), metrics={"eval/loss": 0.1})
    plugin.on_evaluated(at(), splits=("eval",), metrics={"eval/f1": 0.1})
    plugin.on_train_end()


def test_that_it_never_came_is_an_error_too_where_an_attempt_begins_behind_the_last_evaluation() -> None:
    first, second = early_stopping(must_exist="later"), early_stopping(must_exist="later")
    first.on_evaluated(at(), splits=("eval",), metrics={"eval/f1": 0.1})
    second.load_state_dict(first.state_dict())
    with pytest.raises(UsageError, match="no evaluation had it; the last one had: eval/f1"):
        second.on_train_end()


def test_that_it_never_came_is_no_error_where_training_was_stopped() -> None:
    plugin = early_stopping(must_exist="later")
    plugin.on_evaluated(at(), splits=("eval",), metrics={"eval/f1": 0.1})
    plugin.on_stop_requested()
    plugin.on_train_end()
    assert plugin.should_stop() is None


def test_the_evaluation_of_another_split_is_passed_over() -> None:
    plugin = early_stopping(patience=1)
    plugin.on_evaluated(at(), splits=("test",), metrics={"test/loss": 1.0})
    assert plugin.state_dict()["seen"] == 0


def test_a_split_that_is_not_evaluated_vetoes_the_launch() -> None:
    recipe: Any = SimpleNamespace(evaluate=SimpleNamespace(splits=["eval", "test"]))
    assert early_stopping().check_recipe(recipe) is None
    veto = early_stopping(monitor="train/loss").check_recipe(recipe)
    assert veto == "monitor = 'train/loss' names no evaluated split; there is eval/NAME, test/NAME"


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"mode": "most"}, {"min_delta": -1.0}, {"pateince": 3}])
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        EarlyStoppingOptions(**{"monitor": "eval/loss", **wrong})
