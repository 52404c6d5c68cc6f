from __future__ import annotations

import math

import pytest
import torch
from trainrun_callbacks.reductions import not_finite

TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_found_in_every_type(dtype: torch.dtype, value: float) -> None:
    good, bad, largest = torch.ones(5, dtype=dtype), torch.ones(5, dtype=dtype), torch.ones(5, dtype=dtype)
    bad[2] = value
    largest[1] = torch.finfo(dtype).max  # whose square is infinite
    found = not_finite([good, bad, largest, torch.ones(0), torch.ones(2, dtype=torch.bfloat16)])
    assert found.tolist() == [False, True, False, False, False]
