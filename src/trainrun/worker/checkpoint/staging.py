"""Copies of tensors in host memory, which is kept from one save to the next.

Memory that is allocated anew for each save costs more to touch for the first time than to copy into. Allocators with a
heap for each thread give it back late.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch


class Staging:
    """Host copies by key. A copy is good until the same key is copied again."""

    def __init__(self) -> None:
        self._buffers: dict[Hashable, torch.Tensor] = {}
        self._used: set[Hashable] = set()

    def begin(self) -> None:
        """Begin a new round of copies.

        Those of the last one are not needed any more.
        """
        self._used.clear()

    def copy(self, key: Hashable, tensor: torch.Tensor) -> torch.Tensor:
        """Return a contiguous copy of `tensor` in host memory.

        From a GPU it is there after `finish`.
        """
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            pinned = tensor.device.type == "cuda"
            buffer = self._buffers[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        self._used.add(key)
        return buffer.copy_(tensor.detach(), non_blocking=True)

    def copy_all(self, key: Hashable, value: Any) -> Any:
        """Return `value` with all tensors in it copied.

        Lists, tuples and dicts are made anew.
        """
        if isinstance(value, torch.Tensor):
            return self.copy(key, value)
        if isinstance(value, dict):
            return {name: self.copy_all((key, name), item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.copy_all((key, place), item) for place, item in enumerate(value))
        return value

    def finish(self) -> None:
        """Wait for the copies; free what this round did not copy."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().synchronize()
        self._buffers = {key: buffer for key, buffer in self._buffers.items() if key in self._used}
