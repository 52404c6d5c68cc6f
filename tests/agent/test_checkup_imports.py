"""What importing leaves in a process, and what torch says of devices that only exist in this file."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainrun.agent import checkup_imports
from trainrun.agent.checkup_imports import Footprint, devices, judge, torch_itself
from trainrun.doctor.examiner import Examination, Examiner
from trainrun.doctor.finding import Context, Finding, Settings, Verdict

MODULES = {
    "polls": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True, name='poller').start()",
    "natives": "import _thread, threading\nhold = threading.Lock()\nhold.acquire()\n"
    "_thread.start_new_thread(hold.acquire, ())",
    "listens": "import socket\nhold = socket.socket()\nhold.bind(('127.0.0.1', 0))\nhold.listen()",
    "listens_by_path": "import os, socket\nhold = socket.socket(socket.AF_UNIX)\nhold.bind('\\0%d' % os.getpid())\n"
    "hold.listen()",
    "raises": "1 / 0",
    "leaves": "raise SystemExit(3)",
    "harmless": "import socket\nsocket.socketpair()",
}

EXPECTED = [
    "polls starts a thread when it is imported (poller)",
    "natives starts 1 native threads",
    "listens opens a listening socket",
    "listens_by_path opens a listening socket",
    "raises cannot be imported: ZeroDivisionError",
    "leaves cannot be imported: SystemExit: 3",
    "absent cannot be imported: ModuleNotFoundError",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
    return tmp_path


def context(**settings: object) -> Context:
    return Context(Settings()._replace(**settings), lambda _: None, lambda _: None)


def check(**settings: object) -> list[Finding]:
    names = ("torch", "fork safety", "devices")
    with Examiner() as examiner:
        examination = Examination(names, "trainrun.agent.checkup_imports:check", fresh=True)
        return list(examiner.findings(examination, Settings()._replace(**settings)))


def test_each_module_that_must_not_be_forked_is_named(folder: Path) -> None:
    torch, fork, found = check(preload=[*MODULES, "absent"], preload_path=[str(folder)])
    assert torch.status == "ok"
    assert fork.status == "failed"
    assert [words for words in EXPECTED if words not in fork.finding] == []
    assert "harmless" not in fork.finding
    assert "trainrun" not in fork.finding, "our own modules are fit for it"
    assert "take it out of launch.preload" in str(fork.advice)
    assert found.status == "ok"


def test_a_module_that_crashes_is_named(folder: Path) -> None:
    (folder / "crashes.py").write_text("import os\nos.abort()")
    torch, fork, found = check(preload=["harmless", "crashes"], preload_path=[str(folder)])
    assert torch.status == "ok"
    assert "importing crashes of launch.preload crashed Python: SIGABRT" in fork.finding
    assert found.status == "skipped"


@pytest.mark.parametrize("source", ["raise ImportError('libcudart.so.12: cannot open shared object file')", "1 / 0"])
def test_torch_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (tmp_path / "torch.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torch, fork, found = check()
    assert torch.status == "failed"
    assert "it cannot be imported: " in torch.finding
    assert fork.status == found.status == "skipped"


def test_nothing_is_forked_by_a_cold_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    torch, fork, found = checkup_imports.check(context(start="cold", preload=["absent"]))
    assert (torch.status, fork.status, found.status) == ("ok", "skipped", "ok")


def test_a_module_that_touches_cuda() -> None:
    verdict = Verdict("fork safety")
    nothing = Footprint(frozenset(), {}, frozenset(), cuda=False)
    judge(verdict, "greedy", nothing, nothing._replace(cuda=True), "leave it out")
    assert verdict.finding().status == "failed"
    assert "greedy uses CUDA" in verdict.finding().finding


def test_the_footprint_sees_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(initialized=True))
    assert Footprint.now().cuda
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    assert not Footprint.now().cuda


class Tensor:
    def __init__(self, total: float) -> None:
        self.total = total

    def sum(self) -> Tensor:
        return self

    def item(self) -> float:
        return self.total


def fake_torch(
    gpus: int = 0,
    *,
    version: str = "2.13.0",
    cuda: str | None = "13.0",
    total: float = 1024,
    free: float = 0.9,
    error: str | None = None,
    initialized: bool = False,
    gloo: bool = True,
) -> Any:
    def ones(count: int, device: str) -> Tensor:
        if error:
            raise RuntimeError(error)
        return Tensor(total)

    return SimpleNamespace(
        __version__=version,
        version=SimpleNamespace(cuda=cuda, hip=None),
        distributed=SimpleNamespace(is_available=lambda: True, is_gloo_available=lambda: gloo),
        ones=ones,
        cuda=SimpleNamespace(
            is_available=lambda: gpus > 0,
            is_initialized=lambda: initialized,
            device_count=lambda: gpus,
            get_device_name=lambda index: "Accelerator 9000",
            mem_get_info=lambda index: (free * 100, 100),
        ),
    )


@pytest.mark.parametrize(
    ("torch", "status", "words"),
    [
        (fake_torch(), "ok", "2.13.0, CUDA 13.0 build, imported in 1.0 s"),
        (fake_torch(cuda=None, version="2.13.0+cpu"), "ok", "CPU build"),
        (fake_torch(version="2.9.1"), "failed", "too old"),
        (fake_torch(gloo=False), "failed", "without gloo"),
    ],
)
def test_torch_itself(torch: Any, status: str, words: str) -> None:
    finding = torch_itself(torch, 1.0)
    assert (finding.status, words in finding.finding) == (status, True)


def test_an_import_that_takes_very_long() -> None:
    assert torch_itself(fake_torch(), 60.0).status == "warning"


@pytest.mark.parametrize(
    ("torch", "present", "device", "status", "words"),
    [
        (fake_torch(), 0, "auto", "ok", "no GPU"),
        (fake_torch(), 0, "cuda", "failed", "the recipe asks for CUDA"),
        (fake_torch(2), 2, "cuda", "ok", "2 GPUs: Accelerator 9000"),
        (fake_torch(cuda=None), 2, "auto", "warning", "this build of torch cannot use"),
        (fake_torch(), 2, "auto", "failed", "2 are there, and torch cannot use them"),
        (fake_torch(1, error="CUDA error: uncorrectable ECC error"), 1, "auto", "failed", "GPU 0 does not compute"),
        (fake_torch(1, total=1000), 1, "auto", "failed", "GPU 0 computes wrongly: 1024 ones are 1000"),
        (fake_torch(1, free=0.1), 1, "auto", "warning", "GPU 0 is more than half full"),
    ],
)
def test_devices(
    monkeypatch: pytest.MonkeyPatch, torch: Any, present: int, device: str, status: str, words: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(checkup_imports, "count_gpus", lambda **_: present)
    finding = devices(torch, context(device=device))
    assert (finding.status, words in finding.finding) == (status, True), finding
    assert (finding.advice is None) == (status == "ok")
    assert finding.facts["settings"]["gpus"] == torch.cuda.device_count()


def test_devices_that_are_hidden_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(checkup_imports, "count_gpus", lambda environment=None: 0 if environment is None else 2)
    finding = devices(fake_torch(), context())
    assert finding.status == "ok"
    assert "CUDA_VISIBLE_DEVICES=" in finding.finding
