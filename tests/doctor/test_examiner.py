"""Checks that hang, crash and leave things behind, in the process that is made for that."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainrun.doctor.examiner import Examination, Examiner
from trainrun.doctor.finding import Finding, Settings

CHECKS = """
import os, subprocess, sys, time
from trainrun.doctor.finding import Verdict

def good(context, name="good"):
    verdict = Verdict(name)
    verdict.say(f"pid {os.getpid()}")
    yield verdict.finding(threads=os.environ["OMP_NUM_THREADS"], path=sys.path[0])

def raises(context):
    raise ValueError("no such luck")
    yield

def leaves(context):
    sys.exit("gone")
    yield

def misses(context):
    import trainrun_needs_this

def silent(context):
    return []

def dies(context):
    context.doing("dying")
    os._exit(7)

def aborts(context):
    context.doing("crashing")
    os.abort()

def second_hangs(context):
    yield from good(context, "first")
    context.made(os.environ["MADE"])
    subprocess.Popen(["sleep", "600"])
    context.doing("sleeping")
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_checks.py").write_text(CHECKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MADE", str(tmp_path / "made"))


@pytest.fixture
def examiner() -> Iterator[Examiner]:
    with Examiner() as made:
        yield made


def examine(examiner: Examiner, function: str, *names: str, timeout: float = 60.0) -> list[Finding]:
    examination = Examination(names or (function,), f"odd_checks:{function}")
    return list(examiner.findings(examination, Settings(timeout=timeout)))


def test_one_process_does_for_many(examiner: Examiner) -> None:
    (first,), (second,) = examine(examiner, "good"), examine(examiner, "good")
    assert first.status == second.status == "ok"
    assert first.finding == second.finding != f"pid {os.getpid()}"
    assert first.seconds > 0


def test_a_fresh_process_is_like_an_agent(examiner: Examiner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (one,) = examine(examiner, "good")
    (other,) = examiner.findings(Examination(("good",), "odd_checks:good", fresh=True), Settings(threads="3"))
    assert one.finding != other.finding
    assert other.facts["threads"] == os.environ.get("OMP_NUM_THREADS", "3")
    assert other.facts["path"] == str(tmp_path), "and not the current folder, as for `python -P`"


@pytest.mark.parametrize(
    ("function", "words", "advice"),
    [
        ("raises", "it cannot be examined: ValueError: no such luck", "report it"),
        ("leaves", "it cannot be examined: SystemExit: gone", "report it"),
        ("misses", "No module named 'trainrun_needs_this'", "install what is missing"),
        ("silent", "it said nothing", "report it"),
        ("nothing", "AttributeError", "report it"),
        ("dies", "dying ended Python with exit code 7", "reinstall"),
        ("aborts", "crashing crashed Python: SIGABRT, in", "reinstall"),
    ],
)
def test_a_check_that_breaks_is_a_finding(examiner: Examiner, function: str, words: str, advice: str) -> None:
    (finding,) = examine(examiner, function)
    assert finding.status == "failed"
    assert words in finding.finding
    assert advice in str(finding.advice)
    assert examine(examiner, "good")[0].status == "ok", "the next one is examined"


def test_one_that_hangs_is_named_and_all_of_it_is_ended(examiner: Examiner, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    begun = time.monotonic()
    first, second, third = examine(examiner, "second_hangs", "first", "second", "third", timeout=5.0)
    assert first.status == "ok"
    assert second.status == "failed"
    assert "sleeping takes longer than 5 s, in" in second.finding
    assert "odd_checks.py, line" in second.finding
    assert "--timeout" in str(second.advice)
    assert (third.status, third.finding) == ("skipped", "not examined, because second failed")
    assert time.monotonic() - begun < 60
    assert not (tmp_path / "made").exists(), "what it made is cleared away"
    deadline = time.monotonic() + 10
    while (left := members(int(first.finding.removeprefix("pid ")))) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []


def members(session: int) -> list[str]:
    """Processes that are left in a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[3]) == session and stat[0] not in "ZX":
                found.append(entry.name)
    return found


def test_no_process_can_be_started(examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainrun.doctor.examiner.PYTHON", ("/nothing/python",))
    first, second = examine(examiner, "good", "first", "second")
    assert first.status == "failed"
    assert "no process could be started" in first.finding
    assert second.status == "skipped"
