"""Where a worker is, read from outside, also when it is dead or what it left is broken."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from trainrun.rundir.pulse import CRUMB, PHASES, SIZE, Pulse, read_pulse
from trainrun.worker.parent import die_with_parent


def test_a_reader_sees_each_store(tmp_path: Path) -> None:
    path = tmp_path / "pulse-0"
    pulse = Pulse.create(path)
    first = read_pulse(path)
    assert first is not None
    assert (first.step, first.phase, first.instance, first.hook) == (0, "starting", None, None)
    before = time.monotonic_ns()
    pulse.enter("training")
    pulse.begin_step(7)
    pulse.slots[CRUMB] = pulse.crumb("sleepy", "on_step_start")
    second = read_pulse(path)
    assert second is not None
    assert (second.step, second.phase, second.instance, second.hook) == (7, "training", "sleepy", "on_step_start")
    assert second.advances == first.advances + 2
    assert before <= second.moved_ns <= time.monotonic_ns()
    pulse.slots[CRUMB] = 0
    third = read_pulse(path)
    assert third is not None
    assert (third.instance, third.hook) == (None, None)


def test_waiting_for_data_is_shown_and_is_no_wait_for_others(tmp_path: Path) -> None:
    pulse = Pulse.create(tmp_path / "pulse")
    pulse.enter("training")
    pulse.begin_step(3)
    pulse.begin_loading()
    found = read_pulse(tmp_path / "pulse")
    assert found is not None
    assert (found.loading, found.waiting, found.place) == (True, False, "for data in training at step 3")
    pulse.end_loading()
    found = read_pulse(tmp_path / "pulse")
    assert found is not None
    assert (found.loading, found.waiting) == (False, False)


@pytest.mark.parametrize("phase", PHASES)
def test_phases(tmp_path: Path, phase: str) -> None:
    Pulse.create(tmp_path / "pulse").enter(phase)
    found = read_pulse(tmp_path / "pulse")
    assert found is not None
    assert found.phase == phase


def test_own_time_leaves_out_the_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 10))  # each reading is 10 ns after the one before
    monkeypatch.setattr("trainrun.rundir.pulse.monotonic_ns", lambda: next(clock))
    pulse = Pulse.create(tmp_path / "pulse")
    for step in (1, 2, 3):
        pulse.begin_step(step)
        pulse.pause()
        waiting = read_pulse(tmp_path / "pulse")
        for _ in range(50):
            next(clock)  # another rank is slow
        pulse.resume()
        pulse.end_step()
        assert waiting is not None
        assert waiting.waiting
    found = read_pulse(tmp_path / "pulse")
    assert found is not None
    assert (found.own_ns, found.own_steps, found.waiting) == (3 * 20, 3, False)


def test_what_a_killed_process_wrote_is_there(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        pulse = Pulse.create(tmp_path / "pulse")
        pulse.begin_step(41)
        pulse.slots[CRUMB] = pulse.crumb("killer", "on_log")
        os.write(writer, b"written")
        signal.pause()
    assert os.read(reader, 7) == b"written"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
    found = read_pulse(tmp_path / "pulse")
    assert found is not None
    assert (found.step, found.instance, found.hook) == (41, "killer", "on_log")


def test_a_crumb_has_one_number(tmp_path: Path) -> None:
    pulse = Pulse.create(tmp_path / "pulse")
    numbers = {pulse.crumb(f"plugin-{n}", hook) for n in range(50) for hook in ("on_log", "on_step_end")}
    assert len(numbers) == 100
    assert 0 not in numbers
    assert pulse.crumb("plugin-7", "on_log") == pulse.crumb("plugin-7", "on_log")


def test_too_many_names_are_left_out(tmp_path: Path) -> None:
    pulse = Pulse.create(tmp_path / "pulse")
    numbers = [pulse.crumb(f"{'long' * 16}-{n}", "on_step_start") for n in range(1000)]
    assert numbers[0] == 1
    assert numbers[-1] == 0
    last = max(numbers)
    pulse.slots[CRUMB] = last
    found = read_pulse(tmp_path / "pulse")
    assert found is not None
    assert found.instance == f"{'long' * 16}-{last - 1}"


@pytest.mark.parametrize("content", [b"", b"x", bytes(SIZE), b"\xff" * SIZE, b"\xff" * SIZE * 2, b"x" * (SIZE - 1)])
def test_something_else_in_its_place(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pulse"
    path.write_bytes(content)
    assert read_pulse(path) is None


def test_no_file_or_a_folder(tmp_path: Path) -> None:
    assert read_pulse(tmp_path / "pulse") is None
    assert read_pulse(tmp_path) is None


def test_garbage_behind_the_first_number(tmp_path: Path) -> None:
    path = tmp_path / "pulse"
    Pulse.create(path)
    path.write_bytes(path.read_bytes()[:8] + os.urandom(SIZE - 8))
    found = read_pulse(path)
    assert found is not None
    assert found.instance is None or isinstance(found.instance, str)


def test_a_shortened_file(tmp_path: Path) -> None:
    path = tmp_path / "pulse"
    Pulse.create(path)
    path.write_bytes(path.read_bytes()[:100])
    assert read_pulse(path) is None


def test_a_full_disk_shows_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="No space left"):
        Pulse.create(tmp_path / "pulse")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"kept")
    (tmp_path / "pulse").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"):
        Pulse.create(tmp_path / "pulse")
    assert (tmp_path / "other").read_bytes() == b"kept"


def test_without_memory_it_is_private() -> None:
    pulse = Pulse()
    pulse.begin_step(3)
    assert pulse.slots[1] == 3
