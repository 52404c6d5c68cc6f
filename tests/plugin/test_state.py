from __future__ import annotations

from typing import Any

import pytest

from trainrun.errors import HookFailed, TrainingError
from trainrun.plugin.instance import Instance
from trainrun.plugin.links import Member
from trainrun.plugin.state import collect, restore


class Tensor: ...


class Holder:
    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> Any:
        if isinstance(self.state, BaseException):
            raise self.state
        return self.state

    def load_state_dict(self, state: Any) -> None:
        if state == "refused":
            raise ValueError("no such state")
        self.state = state


def member(name: str, plugin: object) -> Member:
    return Member(Instance(name, "plugin", "m:C"), plugin, ())


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


PLAIN: Any = {"n": 1, "x": [0.5, "a", None, True, b"raw", (1, 2)], 3: {"deep": {}}, "t": Tensor()}


def test_states_are_kept_by_instance_and_given_back() -> None:
    states = collect([member("a", Holder(PLAIN)), member("b", Holder(7)), member("none", object())], is_tensor)
    assert states == {"a": PLAIN, "b": 7}
    first, second = Holder(), Holder()
    left = restore([member("b", second), member("a", first), member("none", object())], {**states, "gone": 1})
    assert (first.state, second.state) == (PLAIN, 7)
    assert left == {"gone": 1}, "what is nobody's is carried along"


def test_a_plugin_without_a_state_of_its_own_keeps_what_it_has() -> None:
    holder = Holder("as made")
    assert restore([member("new", holder)], {}) == {}
    assert holder.state == "as made"


@pytest.mark.parametrize(("state", "place"), [
    (lambda: None, "state is a function"),
    ({"x": [1, object()]}, r"state\['x'\]\[1\] is a object"),
    ({"x": {(1, 2): 3}}, r"state\['x'\] has the key \(1, 2\)"),
    ({"x": {1, 2}}, r"state\['x'\] is a set"),
])  # fmt: skip
def test_state_that_is_not_plain_is_named(state: Any, place: str) -> None:
    with pytest.raises(TrainingError, match=rf"plugin 'a': {place}.*plain values and tensors; .*-p no:a"):
        collect([member("a", Holder(state))], is_tensor)


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1)])
def test_what_raises_is_named(error: BaseException) -> None:
    with pytest.raises(HookFailed, match=r"plugin 'a' raised \w+ in state_dict"):
        collect([member("a", Holder(error))], is_tensor)
    with pytest.raises(HookFailed, match="plugin 'a' raised ValueError in load_state_dict: no such state"):
        restore([member("a", Holder())], {"a": "refused"})


def test_state_that_holds_itself_is_refused() -> None:
    state: list[Any] = []
    state.append(state)
    with pytest.raises(TrainingError, match="plugin 'a': state holds itself"):
        collect([member("a", Holder(state))], is_tensor)
