from __future__ import annotations

import re

import pytest

from trainrun.recipe.duration import PATTERN, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", 30), ("10m", 600), ("1h30m", 5400), ("250ms", 0.25), ("1.5h", 5400), ("2d", 172800), ("0s", 0)],
)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)
    assert re.match(PATTERN, text)


@pytest.mark.parametrize("text", ["", "30", "s", "1 h", "-1s", "1.s", "1w", "1h ", "1s\n", "9" * 400 + "s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        seconds(text)
