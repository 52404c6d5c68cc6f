"""The files that `torch.save` writes, looked at without torch, before torch reads them.

torch believes what a file says of its own sizes. It unpacks what was packed, and takes memory that lies behind a record
for a part of it. It makes a tensor of 2^40 elements out of one. So all sizes are compared with the file's first.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from trainrun.checkpoint import pickles
from trainrun.checkpoint.contents import open_plain
from trainrun.checkpoint.pickles import Made, Name
from trainrun.errors import BadCheckpoint

WIDTHS: Mapping[str, int] = {
    **dict.fromkeys(("bool", "int8", "uint8", "qint8", "quint8", "quint4x2", "quint2x4", "bits8"), 1),
    **dict.fromkeys((f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("float4_e2m1fn_x2", "bits1x8", "bits2x4", "bits4x2"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16", "bits16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32", "qint32", "complex32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}
"""The bytes of one element, by the name of the type in torch."""

_STORAGES = {
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
}
_UNTYPED = Name("torch.storage", "UntypedStorage")
_REBUILD, _REBUILD_TYPED = Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_tensor_v3")
_BYTES = Name("_codecs", "encode")
_ARRAY = Name("__builtin__", "bytearray")
_CALLED = {
    *(_REBUILD, _REBUILD_TYPED, Name("torch._utils", "_rebuild_parameter")),
    *(_BYTES, _ARRAY, Name("__builtin__", "set"), Name("collections", "OrderedDict"), Name("collections", "Counter")),
    *(Name("torch", "Size"), Name("torch", "device")),
}
_NAMED = {
    *_CALLED,
    _UNTYPED,
    *(Name("torch", name) for name in (*_STORAGES, *WIDTHS)),
}


class Tensor(NamedTuple):
    """A tensor as its file describes it. `dtype` is the name of its type in torch."""

    dtype: str
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        return math.prod(self.size) * WIDTHS[self.dtype]


class _Storage(NamedTuple):
    dtype: str | None  # None: bytes
    length: int


def check_values(path: Path) -> None:
    """Raise BadCheckpoint if a file of values contradicts itself, or would grow.

    The values are plain values and tensors. Every tensor must have its own elements in the file: all values together
    are not larger than the file is.
    """
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            length = os.fstat(file.fileno()).st_size
            found = _Archive(file).value
            if _weight(found, {}) > length:
                _bad(f"it has {length} bytes, and its values would take more")
    except Exception as error:  # a file that was tampered with can raise anything at all
        raise BadCheckpoint(f"{path}: cannot be read: {pickles.reason(error)}") from error


def check_tensor(file: IO[bytes], start: int, length: int, dtype: str, size: Sequence[int]) -> None:
    """Raise an exception unless a part of a file is this tensor.

    It must be whole and in one piece.
    """
    found = _tensor(_Archive(_Window(file, start, length)).value)
    if found is None or (found.dtype, found.size) != (dtype, tuple(size)):
        what = "no tensor" if found is None else f"a tensor of {found.dtype} with the size {found.size}"
        _bad(f"at byte {start} there is {what} instead of one of {dtype} with the size {tuple(size)}")


class _Archive:
    """The records of an archive, and the value in it. Raises exceptions of many kinds for what is none."""

    def __init__(self, file: Any) -> None:
        archive = zipfile.ZipFile(file)
        records = archive.infolist()
        names = {record.filename.lower() for record in records}  # torch makes no difference between a and A
        if len(names) != len(records) or min(record.header_offset for record in records) != 0:
            _bad("its list of records is not one that torch writes")
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                _bad(f"its record {record.filename!r} is compressed")
        end = file.seek(0, os.SEEK_END)
        if sum(record.file_size for record in records) > end:
            _bad("its records are larger than it is")
        folder = records[0].filename.partition("/")[0]
        prefix = f"{folder}/data/"
        self._sizes = {one.filename.removeprefix(prefix): one.file_size for one in records}
        self.value = pickles.load(archive.read(f"{folder}/data.pkl"), _NAMED.__contains__, self._storage)

    def _storage(self, told: Any) -> _Storage:
        kind, of, key, _, count = told
        if kind != "storage" or type(key) is not str or type(count) is not int or not isinstance(of, Name):
            _bad("it names a storage in an unknown way")
        dtype = None if of == _UNTYPED else _STORAGES[of.name]
        size = count * (1 if dtype is None else WIDTHS[dtype])
        if self._sizes[key] != size:
            _bad(f"it names a storage of {size} bytes, and its record {key!r} has {self._sizes[key]}")
        return _Storage(dtype, count)


def _tensor(value: Any) -> Tensor | None:
    """Return the tensor that a value stands for, or None.

    All its elements must be in its storage.
    """
    if not isinstance(value, Made) or value.maker not in {_REBUILD, _REBUILD_TYPED}:
        return None
    storage, offset, size, stride, *_ = value.arguments
    dtype = value.arguments[6].name if value.maker == _REBUILD_TYPED else storage.dtype
    size, stride = whole_numbers(size), whole_numbers(stride)
    if type(offset) is not int or offset < 0 or len(size) != len(stride):
        _bad("a tensor in it has no place")
    count = storage.length if storage.dtype is not None else storage.length // WIDTHS[dtype]
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) and (last >= count or math.prod(size) > count):
        _bad(f"a tensor of the size {size} in it has a storage of {count} elements")
    return Tensor(dtype, size, stride)


def whole_numbers(value: Any) -> tuple[int, ...]:
    """Return a tuple of integers from 0 on.

    The value may stand for a `torch.Size`. Raises TypeError for all other values.
    """
    if isinstance(value, Made) and value.maker == Name("torch", "Size"):
        (value,) = value.arguments
    if not isinstance(value, tuple) or any(type(item) is not int or not 0 <= item < 2**63 for item in value):
        raise TypeError(f"expected a size, got {pickles.described(value)}")
    return value


def _weight(value: Any, known: dict[int, int | None]) -> int:
    """Return a lower bound of the bytes that a value takes.

    It is that of a value in which nothing is shared any more.
    """
    if not isinstance(value, dict | list | tuple | Made):
        return 1
    mine = id(value)
    if mine not in known:
        known[mine] = None
        tensor = _tensor(value)
        found = 1 + sum(_weight(item, known) for item in _parts(value)) if tensor is None else 1 + tensor.nbytes
        known[mine] = found
    if (weight := known[mine]) is None:
        _bad("a value in it holds itself")
    return weight


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, Made):
        counted = value.maker == _ARRAY and isinstance(value.arguments[0], int)  # as many zeros
        if value.maker not in _CALLED or value.state is not None or counted:
            _bad(f"it makes a {value.maker.name}, which no checkpoint needs")
        yield from value.arguments
    else:
        yield from value


class _Window:
    """A part of a file, as a file."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file = file
        self._start = start
        self._length = length
        self._at = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if at < 0:
            raise OSError("before the beginning")
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def close(self) -> None:
        """Leave the file open."""


def _bad(reason: str) -> NoReturn:
    raise BadCheckpoint(reason)
