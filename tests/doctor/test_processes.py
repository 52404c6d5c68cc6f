from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.doctor import processes
from trainrun.doctor.finding import Finding

Ask = Callable[..., Finding]

CHECK = "trainrun.doctor.processes:check"


def test_this_machine(ask: Ask) -> None:
    finding = ask(CHECK)
    assert finding.status == "ok"
    assert finding.facts == {"dies_with_parent": True, "pidfd_open": True}


def test_children_that_outlive_their_parent(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "die_with_parent", lambda parent: None)
    monkeypatch.setattr(processes, "_WAIT", 500)
    finding = ask(CHECK)
    assert finding.status == "failed"
    assert "children outlive their parent" in finding.finding


def test_no_pidfd(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    finding = ask(CHECK)
    assert finding.status == "failed"
    assert "pidfd_open does not work" in finding.finding


def test_no_proc(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "start_time", lambda _: None)
    assert "/proc cannot be read" in ask(CHECK).finding


def test_who_may_look_at_stacks(tmp_path: Path) -> None:
    assert processes.ptrace_note(tmp_path / "nothing") is None
    (tmp_path / "scope").write_text("0\n")
    assert processes.ptrace_note(tmp_path / "scope") is None
    (tmp_path / "scope").write_text("1\n")
    assert "py-spy" in str(processes.ptrace_note(tmp_path / "scope"))
