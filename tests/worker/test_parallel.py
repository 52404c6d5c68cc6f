"""Worlds, devices, collectives, and the comparison of plugins over ranks."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
import torch

from trainrun.errors import EnvironmentProblem
from trainrun.marker import hookimpl
from trainrun.worker import parallel
from trainrun.worker.parallel import Collectives, choose_device, seed_all
from trainrun.worker.world import Job, World

TWO = [World(rank=rank, local_rank=rank, size=2, local_size=2) for rank in range(2)]


@pytest.mark.parametrize(
    ("asked", "gpus", "device"),
    [("cpu", 2, "cpu"), ("auto", 0, "cpu"), ("auto", 2, "cuda:1"), ("cuda", 2, "cuda:1")],
)
def test_each_worker_gets_a_device(monkeypatch: pytest.MonkeyPatch, asked: str, gpus: int, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert str(choose_device(asked, TWO[1])) == device


@pytest.mark.parametrize(("asked", "gpus", "message"), [
    ("cuda", 0, 'train.device is "cuda", but this machine shows 0 GPUs to 2 workers'),
    ("cuda", 1, "this machine shows 1 GPUs"),
    ("auto", 1, "2 workers for 1 GPUs; set launch.workers to 1"),
])  # fmt: skip
def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch, asked: str, gpus: int, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(EnvironmentProblem, match=message):
        choose_device(asked, TWO[1])


def test_the_world_is_what_torchrun_says() -> None:
    environment = {"RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert World.from_environment(environment) == World(3, 1, 1, 4, 2, 2)


def test_rank_classes() -> None:
    assert World().classes == {"all", "local_zero", "zero"}
    assert World(rank=2, local_rank=0, size=4, local_size=2).classes == {"all", "local_zero"}
    assert World(rank=1, local_rank=1, size=4, local_size=2).classes == {"all"}


def test_a_job_is_slurms_or_nobodys() -> None:
    assert (Job.from_environment({}).scheduler, Job.from_environment({}).job_id) == (None, None)
    job = Job.from_environment({"SLURM_JOB_ID": "17"})
    assert (job.scheduler, job.job_id) == ("slurm", "17")
    assert job.host


def test_seeds_make_generators_repeat() -> None:
    draws = []
    for _ in range(2):
        seed_all(3)
        draws.append((random.random(), torch.rand(2).tolist()))
    assert draws[0] == draws[1]


def test_a_single_worker_waits_for_nobody() -> None:
    alone = Collectives(World(), torch.device("cpu"), timedelta(seconds=5))
    alone.barrier()
    assert (alone.gather, alone.gather_objects, alone.gather_integer) == (None, None, None)


def test_gathering_over_ranks(fork_ranks: Any) -> None:
    def job(rank: int) -> Any:
        ties = Collectives(TWO[rank], torch.device("cpu"), timedelta(seconds=20))
        ties.barrier()
        assert ties.gather
        assert ties.gather_integer
        assert ties.gather_objects
        tensors = [row.tolist() for row in ties.gather(torch.tensor([rank, 0.5], dtype=torch.float64))]
        return tensors, ties.gather_integer(rank * 2**40), ties.gather_objects({"é": [rank] * 50 * rank})

    expected = [[0.0, 0.5], [1.0, 0.5]], [0, 2**40], [{"é": []}, {"é": [1] * 50}]
    assert fork_ranks(job) == [expected] * 2


class Early:
    @hookimpl
    def on_train_start(self) -> None:
        raise AssertionError("training must not begin")


def test_ranks_with_unlike_plugins_do_not_train(
    training: Any, regression: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainrun.worker import setup

    identity = setup._identity

    def unlike(loaded: Any) -> str:
        rank = torch.distributed.get_rank()
        return identity(loaded) + (str(rank) if loaded.instance.name == "early" else "")

    monkeypatch.setattr(setup, "_identity", unlike)
    run = training(regression, Early, ranks=2, train={"steps": 1})
    for error in run.ranks:
        assert (error.kind, error.message.partition(";")[0]) == (
            "EnvironmentProblem",
            "rank 1 has other sources than rank 0 of the plugins early",
        )


@pytest.mark.parametrize("lacking", [0, 1])
def test_ranks_must_have_the_same_plugins(lacking: int) -> None:
    from trainrun.worker import setup

    class Ties:
        def gather_objects(self, mine: Any) -> list[Any]:
            both = [{"a": "1", "b": "2"}, {"a": "1", "b": "2"}]
            del both[lacking]["b"]
            return both

    with pytest.raises(EnvironmentProblem, match="of the plugins b;"):
        setup._compare_plugins([], Ties())  # type: ignore[arg-type]


def test_deterministic_mode_warns_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only: asked.append((mode, warn_only)))
    monkeypatch.setattr(torch, "set_deterministic_debug_mode", asked.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    parallel.be_deterministic(compiled=False)
    parallel.be_deterministic(compiled=True)
    assert asked == ["warn", (True, True)]
