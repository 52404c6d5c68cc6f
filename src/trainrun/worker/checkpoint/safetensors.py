"""Writing tensors in the format of safetensors: https://huggingface.co/docs/safetensors.

The `safetensors` package writes tensors of torch only if NumPy is installed, which trainrun does not require. The
format is eight bytes with the length of a JSON header, the header, and the tensors' bytes without gaps.
"""

from __future__ import annotations

import ctypes
import json
import struct
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import torch

from trainrun.errors import UsageError

_ALIGNMENT = 8  # bytes
_DTYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}


def write(file: BinaryIO, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str]) -> None:
    """Write dense tensors in host memory into an open file.

    notes: for people. Raises UsageError for a tensor of a kind that the format does not have.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps each one aligned
    header = {"__metadata__": dict(notes), **dict(_entries(order, tensors))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    for name in order:
        _write_bytes(file, tensors[name])


def _entries(order: list[str], tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, object]]:
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided:
            raise UsageError(f"{name}: safetensors has no {tensor.layout} tensors of {tensor.dtype}; leave it out")
        end = offset + tensor.numel() * tensor.element_size()
        yield name, {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end


def _write_bytes(file: BinaryIO, tensor: torch.Tensor) -> None:
    # Without NumPy torch offers no view of its memory; the machine is little-endian, as the format is.
    whole = tensor.detach().contiguous()
    count = whole.numel() * whole.element_size()
    if count:
        file.write(memoryview((ctypes.c_char * count).from_address(whole.data_ptr())))
