"""The random generators of a worker: seeded for a while, and put back."""

from __future__ import annotations

import random
import sys

import pytest
import torch

from trainrun.worker.checkpoint import rng
from trainrun.worker.parallel import seed_all

CPU = torch.device("cpu")


def draws() -> list[float]:
    numpy = sys.modules.get("numpy")
    return [random.random(), torch.rand(()).item(), *([numpy.random.rand()] if numpy else [])]


@pytest.fixture(params=["without numpy", "with numpy"])
def numpy(request: pytest.FixtureRequest) -> None:
    if request.param == "with numpy":
        pytest.importorskip("numpy")


@pytest.mark.usefixtures("numpy")
@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_generators_are_seeded_within_and_put_back(seed: int) -> None:
    seed_all(5)
    expected = draws()
    seed_all(5)
    with rng.apart(CPU, seed):
        within = draws()
    assert draws() == expected
    with pytest.raises(ValueError, match="a test"), rng.apart(CPU, seed):  # noqa: PT012 - draws, then raises
        assert draws() == within
        raise ValueError("a test")
    seed_all(5)
    assert draws() == expected


def test_generators_of_the_user_are_put_back_and_not_seeded() -> None:
    own = torch.Generator().manual_seed(3)
    first = torch.rand((), generator=torch.Generator().manual_seed(3))
    for _ in range(2):
        with rng.apart(CPU, 1, [own]):
            assert torch.rand((), generator=own) == first


def test_seeds_are_far_apart() -> None:
    seeds = {rng.seed_of("evaluation", 0, step, rank) for step in range(50) for rank in range(8)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_generator_of_a_gpu_is_put_back() -> None:
    device = torch.device("cuda", 0)
    seed_all(5)
    expected = torch.rand(3, device=device)
    seed_all(5)
    with rng.apart(device, 1):
        within = torch.rand(3, device=device)
    assert torch.equal(torch.rand(3, device=device), expected)
    with rng.apart(device, 1):
        assert torch.equal(torch.rand(3, device=device), within)
