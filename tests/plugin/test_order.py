from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainrun.plugin.instance import Instance, Role
from trainrun.plugin.order import plan_order

NAMES = "abcdef"


def one(name: str, *, before: tuple[str, ...] = (), after: tuple[str, ...] = (), plugin: str | None = None) -> Instance:
    return Instance(name, "plugin", "m:C", plugin=plugin, before=before, after=after)


def named(role: Role, name: str) -> Instance:
    return Instance(name, role, "m:C")


def names(*instances: Instance) -> list[str]:
    order = plan_order(instances)
    assert order.cycle == ()
    return [instance.name for instance in order.instances]


def test_built_ins_then_task_then_the_order_of_the_recipe() -> None:
    assert names(one("z"), named("task", "task"), one("a"), named("builtin", "metrics")) == [
        "metrics",
        "task",
        "z",
        "a",
    ]


def test_before_and_after() -> None:
    assert names(one("a", after=("b",)), one("b"), one("c")) == ["b", "a", "c"]
    assert names(one("a"), one("b"), one("c", before=("a",))) == ["b", "c", "a"]


def test_a_plugin_can_go_before_a_built_in() -> None:
    assert names(named("builtin", "metrics"), one("early", before=("metrics",))) == ["early", "metrics"]


def test_a_plugin_name_stands_for_all_its_instances() -> None:
    assert names(one("first", after=("saver",)), one("s1", plugin="saver"), one("s2", plugin="saver")) == [
        "s1",
        "s2",
        "first",
    ]


def test_names_that_are_not_enabled_constrain_nothing() -> None:
    assert names(one("a", after=("nobody",)), one("b")) == ["a", "b"]


def test_a_cycle_names_its_members_in_order() -> None:
    order = plan_order([one("x"), one("a", before=("b",)), one("b", before=("c",)), one("c", before=("a",))])
    assert len(order.instances) == 4
    assert order.cycle[0] == order.cycle[-1]
    pairs = set(zip(order.cycle, order.cycle[1:], strict=False))
    assert pairs == {("a", "b"), ("b", "c"), ("c", "a")}


def test_one_that_only_waits_for_a_cycle_is_not_blamed() -> None:
    order = plan_order([one("late", after=("a",)), one("a", after=("b",)), one("b", after=("a",))])
    assert set(order.cycle) == {"a", "b"}


@st.composite
def plugins(draw: st.DrawFn) -> list[Instance]:
    some = st.lists(st.sampled_from(NAMES), max_size=2).map(tuple)
    return [one(name, before=draw(some), after=draw(some)) for name in draw(st.permutations(NAMES))]


@given(plugins())
def test_every_constraint_holds_or_a_true_cycle_is_named(instances: list[Instance]) -> None:
    order = plan_order(instances)
    assert sorted(one.name for one in order.instances) == sorted(NAMES)
    constraints = {(a.name, b) for a in instances for b in a.before} | {(b, a.name) for a in instances for b in a.after}
    if order.cycle:
        assert set(zip(order.cycle, order.cycle[1:], strict=False)) <= constraints
    else:
        place = {one.name: number for number, one in enumerate(order.instances)}
        assert all(place[first] < place[second] for first, second in constraints if first != second)


@given(plugins())
def test_the_order_is_stable(instances: list[Instance]) -> None:
    order = plan_order(instances)
    if not order.cycle:
        assert plan_order(order.instances).instances == order.instances
