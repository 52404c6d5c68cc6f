from __future__ import annotations

import json
import os
import pwd

import pytest

from trainrun.doctor import report
from trainrun.doctor.finding import Finding
from trainrun.doctor.report import Private

FINDINGS = [
    Finding("python", "ok", "3.11", None, {"version": "3.11"}),
    Finding("shared memory", "warning", "64 MiB", "give it more", {}),
    Finding("gloo", "failed", "no connection", "look at ports", {}),
    Finding("nccl", "skipped", "no GPU"),
]


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> str:
    entry = pwd.struct_passwd(("ada", "x", os.geteuid(), 100, "", "/data/ada", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)
    return "ada"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("/data/ada/runs, /data/ada", "~/runs, ~"),
        ("/data/adam/runs", "/data/adam/runs"),
        ("/mnt/data/ada/runs", "/mnt/data/$USER/runs"),
        ("/scratch/ada/x", "/scratch/$USER/x"),
        ("Canada", "Canada"),
        ("/elsewhere/base/x", "~/x"),
        ("http://me:token@proxy:3128/x", "http://…@proxy:3128/x"),
    ],
)
def test_what_is_private_is_hidden(user: str, text: str, hidden: str) -> None:
    assert Private({"HOME": "/elsewhere/base"}).hide(text) == hidden


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert Private({"HOME": "/"}).hide("/runs") == "/runs", "in a container home may be the root"
    assert Private({}).hide_all({"a": ["/runs", 1, None]}) == {"a": ["/runs", 1, None]}


def test_lines_are_folded_at_a_terminal_only() -> None:
    finding = Finding("gloo", "failed", "word " * 40 + "end", "do " * 40 + "it")
    whole = list(report.lines_of(finding, None))
    assert [status for status, _ in whole] == ["failed", ""]
    folded = list(report.lines_of(finding, 80))
    assert len(folded) > 4
    assert max(len(text) for _, text in folded) <= 80 - 9
    assert "".join(text for _, text in whole).split() == " ".join(text for _, text in folded).split()


def test_summary() -> None:
    assert report.summary(FINDINGS, 1.234) == "1 ok, 1 warnings, 1 failed, 1 skipped in 1.2 s"


def test_what_to_paste() -> None:
    text = "\n".join(report.bug_report(FINDINGS, 1.0))
    assert "WARNING shared memory: 64 MiB" in text
    assert "FAILED gloo: no connection" in text
    assert text.count("gloo") == 1, "what failed is not told twice"
    assert "nccl" not in text


def test_document() -> None:
    answer = json.loads(json.dumps(report.document(FINDINGS, 1.0)))
    assert answer["ok"] is False
    assert [check["status"] for check in answer["checks"]] == ["ok", "warning", "failed", "skipped"]
    assert report.document(FINDINGS[:2], 1.0)["ok"] is True, "warnings do not count"
