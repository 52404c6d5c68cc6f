"""The page of faults names tests that exist, and every fault that can be injected."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainrun.builtin.fault import KINDS, PHASES, parse

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")


def test_named_tests_exist() -> None:
    named = set(re.findall(r"`([\w/]+/test_\w+\.py)`", PAGE))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_documented(kind: str) -> None:
    assert re.search(rf"`{kind}[`:]", PAGE)


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_is_documented(phase: str) -> None:
    assert f"`{phase}`" in PAGE or f"`@{phase}`" in PAGE


@pytest.mark.parametrize("text", re.findall(r'--inject (\S+)|"([a-z]+\d?:?\w*@\d+)"', PAGE), ids="-".join)
def test_examples_are_faults(text: tuple[str, str]) -> None:
    for fault in "".join(text).split(","):
        assert parse(fault)
