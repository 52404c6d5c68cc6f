"""`parallel.strategy = "fsdp"` on two ranks, beside one worker and DDP."""

from __future__ import annotations

from typing import Any

import pytest

TABLES = {
    "plain": {},
    "micro-batches": {"micro_batch_size": 2},
    "clipping": {"clip_grad_norm": 0.3},
    "both": {"micro_batch_size": 2, "clip_grad_norm": 0.3},
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_it_trains_as_one_worker_and_as_ddp(training: Any, regression: Any, table: dict[str, Any]) -> None:
    def run(strategy: str, ranks: int) -> Any:
        settings = {"steps": 7, **table}
        return training(regression, ranks=ranks, train=settings, parallel={"strategy": strategy})

    alone, replicated, sharded = run("none", 1), run("ddp", 2), run("fsdp", 2)
    for series in ("train/loss", "train/grad_norm", "eval/error"):
        expected = alone.series(series)
        assert sharded.series(series) == pytest.approx(expected, rel=1e-5)
        assert replicated.series(series) == pytest.approx(expected, rel=1e-5)
