"""All-reduce between real workers, started both ways. That it works warm is seen by tests/cli/test_doctor.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainrun.agent import checkup_reduce
from trainrun.doctor.examiner import Examination, Examiner
from trainrun.doctor.finding import Context, Finding, Settings


def examine(name: str, **settings: object) -> Finding:
    with Examiner() as examiner:
        examination = Examination((name,), f"trainrun.agent.checkup_reduce:{name}", fresh=True)
        (finding,) = examiner.findings(examination, Settings()._replace(**settings))
        return finding


@pytest.mark.long
def test_between_cold_workers() -> None:
    finding = examine("gloo", start="cold", workers=2)
    assert finding.status == "ok", finding
    assert finding.finding.startswith("2 cold workers, 1 MiB all-reduced in ")
    assert finding.facts["milliseconds"] > 0


def test_without_a_gpu_there_is_nothing_to_do() -> None:
    assert examine("nccl")[:3] == ("nccl", "skipped", "not applicable: no GPU")


@pytest.mark.parametrize(
    ("results", "error", "words"),
    [
        (
            [{"error": "RuntimeError: refused"}, None],
            RuntimeError("x"),
            "worker 0: RuntimeError: refused",
        ),
        ([None, None], RuntimeError("rendezvous\nfailed"), "the workers did not end well: RuntimeError: rendezvous"),
        ([{"milliseconds": 1.0}, None], None, "workers 1 said nothing"),
    ],
)
def test_workers_that_fail(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    results: list[dict[str, object] | None],
    error: Exception | None,
    words: str,
) -> None:
    def start(*_: object) -> None:
        for rank, result in enumerate(results):
            if result is not None:
                (tmp_path / f"rank-{rank}.json").write_text(json.dumps(result))
        if error is not None:
            raise error

    monkeypatch.setattr(checkup_reduce, "_start", start)
    monkeypatch.setattr(checkup_reduce.util, "get_temp_dir", lambda: str(tmp_path))
    (finding,) = checkup_reduce.gloo(Context(Settings(), lambda _: None, lambda _: None))
    assert finding.status == "failed"
    assert words in finding.finding
    assert "GLOO_SOCKET_IFNAME" in str(finding.advice)
