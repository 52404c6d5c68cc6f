"""TensorBoard's event files, byte by byte: a few protocol buffers, each framed as a TFRecord.

Written by hand because the packages that can bring NumPy and 160 MB with them, and the messages have not changed in
years. The field numbers are those of event.proto, summary.proto, tensor.proto and plugin_data.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

Scalar = str | int | float | bool

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DT_FLOAT, _DT_STRING = 1, 7
_SCALAR, _TENSOR = 1, 2  # DataClass
SUCCESS, FAILURE = 1, 2  # the status of a session, for hyper-parameters


def frame(event: bytes) -> bytes:
    """Return an event as it stands in a file.

    That is its length, the checksum of that, the event, and its checksum.
    """
    length = struct.pack("<Q", len(event))
    return length + _checksum(length) + event + _checksum(event)


def version(wall_time: float) -> bytes:
    """Return the event that a file begins with."""
    return _number(1, wall_time) + _text(3, "brain.Event:2")


def scalars(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """Return one event with the values of a step, by tag."""
    return _event(wall_time, step, (_text(1, tag) + _field(2, _FIXED32, _float32(v)) for tag, v in values.items()))


def text(wall_time: float, step: int, tag: str, content: str) -> bytes:
    """Return one event with a text, which TensorBoard shows as Markdown."""
    tensor = _integer(1, _DT_STRING) + _message(2, _message(2, _integer(1, 1))) + _text(8, content)
    return _event(wall_time, step, [_text(1, tag) + _message(8, tensor) + _message(9, _about("text", b"", _TENSOR))])


def session_start(wall_time: float, group: str, parameters: Mapping[str, Scalar]) -> bytes:
    """Return the hyper-parameters of a run, and when it began."""
    pairs = b"".join(_message(1, _text(1, name) + _message(2, _value(v))) for name, v in parameters.items())
    content = _message(3, pairs + _text(4, group) + _number(5, wall_time))
    return _hparams(wall_time, "_hparams_/session_start_info", content)


def session_end(wall_time: float, status: int) -> bytes:
    """Return how and when a run ended."""
    content = _message(4, _integer(1, status) + _number(2, wall_time))
    return _hparams(wall_time, "_hparams_/session_end_info", content)


def _hparams(wall_time: float, tag: str, content: bytes) -> bytes:
    nothing = _integer(1, _DT_FLOAT) + _message(2, _message(2, b""))
    return _event(
        wall_time, 0, [_text(1, tag) + _message(8, nothing) + _message(9, _about("hparams", content, _TENSOR))]
    )


def _event(wall_time: float, step: int, values: Iterable[bytes]) -> bytes:
    return _number(1, wall_time) + _integer(2, step) + _message(5, b"".join(_message(1, value) for value in values))


def _about(plugin: str, content: bytes, data_class: int) -> bytes:
    """Return a SummaryMetadata: which of TensorBoard's plugins a value is for."""
    return _message(1, _text(1, plugin) + _message(2, content)) + _integer(4, data_class)


def _value(value: Scalar) -> bytes:
    """Return a google.protobuf.Value."""
    if isinstance(value, bool):
        return _integer(4, value)
    return _text(3, value) if isinstance(value, str) else _number(2, float(value))


# --- the wire format ---


def _integer(number: int, value: int) -> bytes:
    return _field(number, _VARINT, _varint(value))


def _number(number: int, value: float) -> bytes:
    return _field(number, _FIXED64, struct.pack("<d", value))


def _text(number: int, value: str) -> bytes:
    return _message(number, value.encode(errors="backslashreplace"))


def _message(number: int, value: bytes) -> bytes:
    return _field(number, _BYTES, _varint(len(value)) + value)


def _field(number: int, kind: int, value: bytes) -> bytes:
    return _varint(number << 3 | kind) + value


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:  # beyond what a scalar of TensorBoard holds
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


# --- the checksum: CRC-32C, masked as TFRecords have it ---


def _table() -> list[int]:
    entries = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)  # noqa: PLW2901
        entries.append(entry)
    return entries


_TABLE = _table()


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
