from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from trainrun import Field, PluginOptions
from trainrun.plugin.options import live_fields


class Options(PluginOptions):
    count: int = Field(3, ge=1, live=True)
    folder: Path = Path()
    rate: float = 0.5


def test_takes_what_a_recipe_can_hold() -> None:
    options = Options.from_table({"count": 5, "folder": "runs"})
    assert options == Options(count=5, folder=Path("runs"))


@pytest.mark.parametrize("table", [{"count": "3"}, {"count": True}, {"count": 0}, {"rate": float("nan")}, {"coutn": 1}])
def test_converts_and_ignores_nothing(table: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Options.from_table(table)


def test_checks_changes_too() -> None:
    options = Options()
    with pytest.raises(pydantic.ValidationError):
        options.count = 0


def test_live_options_are_marked_in_the_schema() -> None:
    assert live_fields(Options) == ("count",)
    assert Options.model_json_schema()["properties"]["count"]["x-live"] is True


def test_live_keeps_other_schema_extras() -> None:
    class More(PluginOptions):
        count: int = Field(3, live=True, json_schema_extra={"x-unit": "steps"})

    assert More.model_json_schema()["properties"]["count"]["x-unit"] == "steps"
