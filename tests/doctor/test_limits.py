from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.doctor import limits
from trainrun.doctor.finding import Finding
from trainrun.launch import cgroup
from trainrun.launch.cgroup import Limits

Ask = Callable[..., Finding]

GIB = 1024**3


@pytest.fixture(autouse=True)
def _no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "limits", Limits)


def test_limits_of_this_process(ask: Ask) -> None:
    assert "open files" in ask("trainrun.doctor.limits:limits").finding


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (resource.RLIMIT_NOFILE, 256, "few open files"),
        (resource.RLIMIT_NPROC, 100, "few processes"),
        (resource.RLIMIT_FSIZE, 1000, "files cannot be larger than 1000 B"),
    ],
)
def test_a_low_limit(ask: Ask, monkeypatch: pytest.MonkeyPatch, kind: int, value: int, words: str) -> None:
    infinite = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda one: (value if one == kind else infinite, infinite))
    finding = ask("trainrun.doctor.limits:limits")
    assert finding.status == "warning"
    assert words in finding.finding
    assert "ulimit" in str(finding.advice)


def test_no_limit_at_all(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda one: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    finding = ask("trainrun.doctor.limits:limits")
    assert finding.status == "ok"
    assert finding.finding == "unlimited open files, unlimited processes, unlimited locked memory"


def test_few_processes_in_a_container(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "limits", lambda: Limits(processes=64))
    assert "the container allows 64" in ask("trainrun.doctor.limits:limits").finding


def test_a_share_of_the_processors(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cgroup, "limits", lambda: Limits(processors=4.5))
    finding = ask("trainrun.doctor.limits:processors", workers=2)
    assert finding.status == "warning"
    assert "the container's share is 4.5" in finding.finding
    assert finding.advice == "set OMP_NUM_THREADS=2"


def test_processors(ask: Ask) -> None:
    assert ask("trainrun.doctor.limits:processors").status == "ok"


def test_little_memory(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "meminfo", lambda: (100 * GIB, 90 * GIB))
    assert ask("trainrun.doctor.limits:memory").status == "ok"
    monkeypatch.setattr(cgroup, "limits", lambda: Limits(memory=2 * GIB, memory_used=GIB + GIB // 2))
    finding = ask("trainrun.doctor.limits:memory")
    assert finding.status == "warning"
    assert "the container may use 2.0 GiB, of which 1.5 GiB is used" in finding.finding


def test_meminfo(tmp_path: Path) -> None:
    table = tmp_path / "meminfo"
    table.write_text("MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:    1024 kB\nHugePages_Total: 0\n")
    assert limits.meminfo(table) == (2048 * 1024, 1024 * 1024)
