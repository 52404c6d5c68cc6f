"""Which exceptions may pass by themselves, provoked for real as far as this machine can."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader

from trainrun.errors import HookFailed, TrainingError
from trainrun.worker.origin import origin

GLOO_PEER = """
import os, sys, torch
from datetime import timedelta
from torch import distributed
store = distributed.FileStore(sys.argv[1], 2)
distributed.init_process_group("gloo", store=store, rank=1, world_size=2, timeout=timedelta(seconds=60))
distributed.barrier()
os._exit(0)
"""


class Killing(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_loader_process_that_was_killed() -> None:
    with pytest.raises(RuntimeError) as caught:
        list(DataLoader(Killing(), num_workers=1))
    assert origin(caught.value) == "machine"


def test_a_peer_that_is_gone(tmp_path: object) -> None:
    path = f"{tmp_path}/store"
    with subprocess.Popen([sys.executable, "-c", GLOO_PEER, path]) as peer:
        try:
            store = distributed.FileStore(path, 2)
            distributed.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=timedelta(seconds=60))
            distributed.barrier()
            peer.wait()
            with pytest.raises(RuntimeError) as caught:
                distributed.all_reduce(torch.ones(1))
        finally:
            peer.kill()
            distributed.destroy_process_group()
    assert origin(caught.value) == "machine"


def test_a_store_that_does_not_answer() -> None:
    with pytest.raises(distributed.DistError) as caught:
        distributed.TCPStore("127.0.0.1", 9, 1, is_master=False, timeout=timedelta(milliseconds=200))
    assert origin(caught.value) == "machine"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_no_memory(error: BaseException) -> None:
    assert origin(error) == "machine"


def test_what_a_plugin_or_the_data_raised_it_from() -> None:
    hook = HookFailed("task", "training_step", MemoryError(), "")
    hook.__cause__ = MemoryError()
    assert origin(hook) == "machine"
    data = TrainingError("sample 3")
    data.__cause__ = torch.OutOfMemoryError()
    assert origin(data) == "machine"


@pytest.mark.parametrize(
    "error",
    [ValueError("NCCL error"), RuntimeError("shapes differ"), OSError(5, "I/O"), SystemExit(1), KeyError("gloo")],
)
def test_everything_else_is_code(error: BaseException) -> None:
    assert origin(error) == "code"


def test_causes_in_a_circle() -> None:
    one, two = ValueError(), ValueError()
    one.__cause__, two.__cause__ = two, one
    assert origin(one) == "code"
