"""The log in a node's shared memory: what is written is read once by everybody, and never overwritten unread."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainrun.errors import TrainingError, TrainrunError
from trainrun.worker.shared_log import AREA, SharedLog


def logs(folder: Path, size: int, relayed: int = 0) -> list[SharedLog]:
    path = folder / "decisions" / "log"
    SharedLog.create(path, size, relayed)
    return [SharedLog(path, place, size, relayed) for place in range(size)]


def test_every_rank_reads_what_any_rank_appended_once(tmp_path: Path) -> None:
    first, second = logs(tmp_path, 2)
    assert first.news() == []
    second.append(b"b1")
    first.append(b"a1")
    first.append(b"")
    written, read = first.counters
    assert written != read
    assert first.news() == [b"a1", b"", b"b1"]
    assert written == read
    assert first.news() == []
    second.append(b"b2")
    assert second.news() == [b"a1", b"", b"b1", b"b2"]
    assert first.news() == [b"b2"]
    first.close()
    second.close()


def test_what_the_leader_relays_follows_in_a_ring_of_its_own(tmp_path: Path) -> None:
    leader, other = logs(tmp_path, 2, relayed=AREA)
    leader.relay(b"from afar")
    other.append(b"o")
    leader.append(b"l")
    assert leader.news() == [b"l", b"o", b"from afar"]
    assert other.news() == [b"l", b"o", b"from afar"]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 16 << 10), st.integers(0, 2**32), st.booleans())
def test_the_ring_wraps_around(tmp_path_factory: pytest.TempPathFactory, largest: int, seed: int, afar: bool) -> None:
    rng = random.Random(seed)
    sizes = [rng.randint(0, largest) for _ in range(min(2 * AREA // largest, 2000))]
    writer, reader = logs(tmp_path_factory.mktemp("log"), 2, relayed=AREA)
    written: list[bytes] = []
    read: list[bytes] = []
    for size in sizes:
        entry = rng.randbytes(size)
        written.append(entry)
        writer.relay(entry) if afar else writer.append(entry)
        if rng.random() < 0.1 or len(written) % 30 == 0:  # before the writer comes round again
            read += reader.news()
            writer.news()
    assert read + reader.news() == written
    writer.close()
    reader.close()


def test_entries_end_exactly_at_the_end_of_the_ring(tmp_path: Path) -> None:
    first, second = logs(tmp_path, 2)
    entries = [bytes([place]) * (8192 - 8) for place in range(130)]  # 128 of them fill the ring
    for entry in entries:
        first.append(entry)
        assert first.news() == second.news() == [entry]


@pytest.mark.parametrize("ring", ["append", "relay"])
def test_what_somebody_has_not_read_is_never_overwritten(tmp_path: Path, ring: str) -> None:
    writer, reader = logs(tmp_path, 2, relayed=AREA)
    write = getattr(writer, ring)
    entries = [bytes([place]) * (8192 - 8) for place in range(129)]
    for entry in entries[:128]:
        write(entry)
        writer.news()
    with pytest.raises(TrainingError, match="more than 1024 KiB"):
        write(entries[128])
    assert reader.news() == entries[:128]
    write(entries[128])
    assert reader.news() == entries[128:]


def test_an_entry_that_is_not_whole_yet_is_read_later(tmp_path: Path) -> None:
    writer, reader = logs(tmp_path, 2)
    writer.append(b"first")
    writer.append(b"second")
    start = writer._memory.find(b"second")
    writer._memory[start : start + 6] = b"......"  # as if this store were not visible yet
    assert reader.news() == [b"first"]
    assert reader.news() == []
    written, read = reader.counters
    assert written != read
    writer._memory[start : start + 6] = b"second"
    assert reader.news() == [b"second"]


@pytest.mark.parametrize("before", ["nothing", "the same"])
def test_what_the_ring_held_before_is_no_entry(tmp_path: Path, before: str) -> None:
    """As if the counter were visible, and nothing of the entry that it counts."""
    writer, reader = logs(tmp_path, 2)
    entry = b"x" * (8192 - 8)
    for _ in range(128 if before == "the same" else 0):  # once around
        writer.append(entry)
        assert writer.news() == reader.news()
    writer._written[0] += 8 if before == "nothing" else 8192
    assert reader.news() == []


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    (log,) = logs(tmp_path, 1)
    with pytest.raises(TrainrunError, match="too large"):
        log.append(b"x" * (16 * 1024 + 1))


def test_the_log_is_made_once(tmp_path: Path) -> None:
    SharedLog.create(tmp_path / "log", 1)
    with pytest.raises(FileExistsError):
        SharedLog.create(tmp_path / "log", 1)
