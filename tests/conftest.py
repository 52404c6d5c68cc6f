from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_signals() -> Iterator[None]:
    """Signals as in a terminal, also where the tests run in the background: what is ignored there is inherited."""
    changed = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in changed.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def checkpoint_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Mapping[str, bytes]]:
    """The files of a checkpoint of a step, as training writes them. values: the contents of further files."""

    @cache
    def tensors(step: int) -> dict[str, bytes]:
        import torch

        from trainrun.worker.checkpoint import shards
        from trainrun.worker.checkpoint.staging import Staging

        folder = tmp_path_factory.mktemp("state")
        staged = shards.stage({"model/weight": torch.arange(1000.0 + step)}, 0, Staging())
        metadata, wanted = shards.plan([shards.rows(staged)])
        shards.finish(folder, metadata, [shards.write(folder, 0, staged, wanted[0])])
        return {f"state/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}

    def files(step: int, values: Mapping[str, Any]) -> Mapping[str, bytes]:
        return {**tensors(step), **{name: packed(value) for name, value in values.items()}}

    def packed(value: Any) -> bytes:
        import torch

        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    return files
