"""Which modules of a model are gathered as one."""

from __future__ import annotations

import pytest
from torch import nn

from trainrun.worker.blocks import find, fits, tied


def linear() -> nn.Module:
    return nn.Linear(2, 2)


class Holder(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def names(model: nn.Module) -> list[str]:
    known = {module: name for name, module in model.named_modules()}
    return [known[module] for module in find(model)]


def test_a_model_without_lists_has_no_blocks() -> None:
    assert names(linear()) == names(Holder(a=linear(), b=Holder(c=linear()))) == []


def test_children_of_lists_that_have_parameters_are_blocks() -> None:
    assert names(nn.Sequential(linear(), nn.Tanh(), linear())) == ["0", "2"]
    assert names(Holder(embed=linear(), layers=nn.ModuleList([Holder(a=linear()) for _ in range(2)]))) == [
        "layers.0",
        "layers.1",
    ]


def test_each_list_counts() -> None:
    model = Holder(encoder=nn.ModuleList([linear(), linear()]), decoder=Holder(layers=nn.Sequential(linear())))
    assert names(model) == ["encoder.0", "encoder.1", "decoder.layers.0"]


def test_of_lists_within_one_another_the_longest_counts() -> None:
    backbone = Holder(layers=nn.ModuleList([nn.Sequential(linear(), linear()) for _ in range(3)]))
    assert names(nn.Sequential(backbone, linear())) == ["0.layers.0", "0.layers.1", "0.layers.2", "1"]


def test_containers_without_a_forward_are_no_blocks() -> None:
    model = nn.ModuleList([nn.ModuleList([linear()]), nn.ModuleDict({"a": nn.Sequential(linear())})])
    assert names(model) == ["0.0", "1.a.0"]


def test_a_block_that_is_there_twice_counts_once() -> None:
    shared = linear()
    model = nn.Sequential(shared, shared)
    assert names(model) == ["0"]
    assert tied(model, find(model)) == set()


@pytest.mark.parametrize(
    ("pattern", "name", "fit"),
    [
        ("blocks.*", "blocks.0", True),
        ("blocks.*", "blocks.0.norm", False),
        ("blocks.*.norm", "blocks.0.norm", True),
        ("*", "head", True),
        ("*", "blocks.0", True),  # as the name of any class
        ("Lin*", "a.b.c", True),
        ("linear", "a.b.c", False),
    ],
)
def test_patterns(pattern: str, name: str, fit: bool) -> None:
    assert fits(pattern, name, linear()) is fit


def test_modules_that_share_parameters_with_others() -> None:
    model = Holder(first=linear(), second=linear(), third=linear(), fourth=Holder(a=linear(), b=linear()))
    first, second, third, fourth = model.children()
    second.weight = first.weight
    fourth.a.weight = fourth.b.weight
    assert tied(model, [first, third, fourth]) == {first, model}
    assert tied(model, [first, second]) == {first, second}
    assert tied(model, [third, fourth]) == set()
