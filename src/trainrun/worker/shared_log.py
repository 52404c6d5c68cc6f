"""An append-only log for each of a node's ranks, in memory that the node's workers share."""

from __future__ import annotations

import mmap
import struct
import zlib
from pathlib import Path

from trainrun.errors import TrainingError, TrainrunError

AREA = 1 << 20  # bytes of a rank's ring

_LARGEST = 16 << 10
_HEAD = struct.Struct("<II")  # length and checksum of the entry that follows


class SharedLog:
    """Counters of bytes written and read, then one ring for each rank of the node, and one for entries of other nodes.

    A ring has one writer: its rank's training thread, or for the last ring the node's leader. Each rank reads all
    rings. It says in the shared memory how far it has read, so that no writer overwrites what a rank still needs.

    An entry carries a checksum, because a reader may look while the writer's stores become visible out of order. Such
    an entry is read again the next time. The checksum includes the position: what a ring held before does not pass.
    """

    def __init__(self, path: Path, place: int, size: int, relayed: int = 0) -> None:
        """Open the log of a node.

        place: this rank's among the node's `size` ranks. relayed: bytes of the ring for other nodes, 0 for none.
        """
        self._place = place
        self._rings = _rings(size, relayed)
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), self.length(size, relayed))
        count = len(self._rings)
        self._counters = memoryview(self._memory)[: 8 * count * (1 + size)].cast("q")
        self._written, *self._read_by = (self._counters[count * row : count * (row + 1)] for row in range(1 + size))
        self._read = self._read_by[place]

    @staticmethod
    def length(size: int, relayed: int = 0) -> int:
        """Return the size in bytes of the file."""
        start, capacity = _rings(size, relayed)[-1]
        return start + capacity

    @classmethod
    def create(cls, path: Path, size: int, relayed: int = 0) -> None:
        """Make the file, empty. To be called by one rank before any opens it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.truncate(cls.length(size, relayed))

    def append(self, entry: bytes) -> None:
        """Add one entry to this rank's ring."""
        self._append(self._place, entry)

    def relay(self, entry: bytes) -> None:
        """Add an entry of another node; for the node's leader only."""
        self._append(len(self._read_by), entry)

    @property
    def counters(self) -> tuple[memoryview[int], memoryview[int]]:
        """The bytes written to each ring, and read of each by this rank.

        They change: they are unequal when there are news.
        """
        return self._written, self._read

    def news(self) -> list[bytes]:
        """Return the entries that were not read yet.

        Ring by ring, each in the order in which they were written.
        """
        found: list[bytes] = []
        for ring, written in enumerate(self._written):
            position = self._read[ring]
            while position < written:
                length, checksum = _HEAD.unpack(self._load(ring, position, _HEAD.size))
                entry = self._load(ring, position + _HEAD.size, min(length, _LARGEST))
                if _checksum(entry, position) != checksum:
                    break
                found.append(entry)
                position += _HEAD.size + length
            self._read[ring] = position
        return found

    def close(self) -> None:
        """Release the memory."""
        for view in (self._written, *self._read_by, self._counters):
            view.release()
        self._memory.close()

    def _append(self, ring: int, entry: bytes) -> None:
        if len(entry) > _LARGEST:
            raise TrainrunError(f"a decision of {len(entry)} bytes is too large to post")
        written, capacity = self._written[ring], self._rings[ring][1]
        end = written + _HEAD.size + len(entry)
        if end - min(read[ring] for read in self._read_by) > capacity:
            raise TrainingError(
                f"decisions: more than {capacity >> 10} KiB were posted before all ranks had read them; post fewer"
            )
        self._store(ring, written, _HEAD.pack(len(entry), _checksum(entry, written)) + entry)
        self._written[ring] = end

    def _store(self, ring: int, position: int, data: bytes) -> None:
        start, capacity = self._rings[ring]
        at = position % capacity
        first = min(len(data), capacity - at)
        self._memory[start + at : start + at + first] = data[:first]
        self._memory[start : start + len(data) - first] = data[first:]

    def _load(self, ring: int, position: int, length: int) -> bytes:
        start, capacity = self._rings[ring]
        at = position % capacity
        first = min(length, capacity - at)
        return self._memory[start + at : start + at + first] + self._memory[start : start + length - first]


def _rings(size: int, relayed: int) -> list[tuple[int, int]]:
    """Return the start and the capacity of each ring."""
    capacities = [AREA] * size + ([relayed] if relayed else [])
    start = 8 * len(capacities) * (1 + size)
    return [(start + sum(capacities[:ring]), capacity) for ring, capacity in enumerate(capacities)]


def _checksum(entry: bytes, position: int) -> int:
    return zlib.crc32(entry, (position + 1) & 0xFFFFFFFF)
