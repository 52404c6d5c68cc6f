from __future__ import annotations

import pytest

from trainrun.checkpoint import layout


@pytest.mark.parametrize("step", [0, 1, 300, 999_999, 1_000_000, 10**17])
def test_a_name_gives_its_step_back(step: int) -> None:
    assert layout.step_of(layout.folder_name(step)) == step


def test_names_sort_as_steps_do_up_to_a_million() -> None:
    names = [layout.folder_name(step) for step in (9, 10, 99, 100, 999_999)]
    assert names == sorted(names)
    assert names[0] == "step-000009"


@pytest.mark.parametrize(
    "name",
    [
        "step-300",
        "step-0000300",
        "step--00300",
        "step-00030x",
        "step-000300 ",
        "step-000300\n",
        "step-٠٠٠٣٠٠",
        "step-",
        "bad-step-000300",
        "superseded-step-000300",
        ".tmp-000300-1-0a",
        "STEP-000300",
        "step-" + "9" * 5000,
    ],
)
def test_every_other_name_is_none(name: str) -> None:
    assert layout.step_of(name) is None


def test_temporary_names() -> None:
    assert layout.is_temporary(layout.temporary_name(300, 2, "1f3a9c0d"))
    assert not layout.is_temporary("step-000300")
    assert not layout.is_temporary(".tmp-mine")


def test_put_aside_names() -> None:
    assert layout.aside_name(layout.BAD, "step-000200") == "bad-step-000200"
    assert layout.aside_name(layout.BAD, "step-000200", 2) == "bad-step-000200-2"
    assert layout.is_aside("superseded-step-000200")
    assert not layout.is_aside("superseded-step-000200", layout.BAD)
    assert not layout.is_aside("badly")
