"""The state of a worker at this moment: a few numbers in a file that the worker keeps mapped and others read.

Writing is a store into memory, so the worker does it in every step and before every hookimpl. What was written stays
readable when the worker hangs, is stopped, or was killed.
"""

from __future__ import annotations

import mmap
import os
import signal
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

from trainrun.rundir import untrusted

# A worker that gets this signal writes the stacks of all its threads. Of the real-time signals, because everything else
# is taken: SIGUSR1 and SIGUSR2 by schedulers and NCCL, and debuggers and profilers have their own. Libraries take
# real-time signals from either end of the range; this one is from its middle.
STACKS_SIGNAL: int = signal.SIGRTMIN + 12

PHASES = ("starting", "setup", "training", "evaluation", "ending", "saving")

SIZE = 1 << 15  # bytes; room for the names of about a thousand hookimpls
CRUMB = 4  # the slot that generated code writes: see trainrun.plugin.dispatch

_MAGIC = int.from_bytes(b"trpulse1", "little")
_KIND, _STEP, _ADVANCES, _PHASE, _CRUMB, _WAITING, _OWN, _OWN_STEPS, _MOVED, _TEXT = 0, 1, 2, 3, CRUMB, 5, 6, 7, 8, 9
_DONE, _TOTAL = 10, 11
_LOADING = 2  # in the slot that is 1 while ranks wait for one another
_SLOTS = 16
_HEAD = 8 * _SLOTS


class Beat(NamedTuple):
    """What a pulse said when it was read.

    advances: counts steps, micro-batches, evaluation batches and changes of phase; it does not change while the worker
        makes no progress.
    instance, hook: the hookimpl that runs, None between hooks.
    waiting: whether the worker is at a point at which ranks wait for one another.
    own_ns, own_steps: nanoseconds of own work, and the number of steps that they cover.
    moved_ns: when a step or phase was last begun, by the monotonic clock.
    done, total: the batches of an evaluation's split; total is 0 if its loader has no length.
    loading: whether it waits for data.
    """

    step: int
    advances: int
    phase: str
    instance: str | None
    hook: str | None
    waiting: bool
    own_ns: int
    own_steps: int
    moved_ns: int
    done: int = 0
    total: int = 0
    loading: bool = False

    @property
    def place(self) -> str:
        """Describe the worker's position in words."""
        at = f" at step {self.step}" if self.step else ""
        if self.loading and self.hook is None:
            return f"for data in {self.phase}{at}"
        if self.hook is None:
            return f"between the hooks of {self.phase}{at}" if self.phase == "training" else f"in {self.phase}{at}"
        return f"in {self.hook} of plugin {self.instance}{at}"


class Pulse:
    """The writer's side, to be written by the training thread only.

    memory: `SIZE` bytes; without, no other process reads it.

    `slots` are the numbers, for code that cannot afford a call.
    """

    def __init__(self, memory: mmap.mmap | bytearray | None = None) -> None:
        self._memory = memoryview(bytearray(SIZE) if memory is None else memory)
        self.slots = self._memory[:_HEAD].cast("q")
        self._crumbs: dict[tuple[str, str], int] = {}
        self._text = 0
        self._advances = 0
        self._own = 0
        self._own_steps = 0
        self._mark = monotonic_ns()
        self.slots[_KIND] = _MAGIC
        self.enter(PHASES[0])

    @classmethod
    def create(cls, path: Path) -> Pulse:
        """Make the file, in place of any other, and map it.

        Raises OSError if the disk is full: later, a store into memory would end the process with SIGBUS.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, SIZE)
            return cls(mmap.mmap(descriptor, SIZE))
        finally:
            os.close(descriptor)

    def crumb(self, instance: str, hook: str) -> int:
        """Return the number that stands for a hookimpl in the slot `CRUMB`.

        It is 0, which is none, if there is no more room.
        """
        key = (instance, hook)
        if key not in self._crumbs:
            line = f"{instance}\t{hook}\n".encode()
            start = _HEAD + self._text
            if start + len(line) > SIZE:
                return 0
            self._memory[start : start + len(line)] = line
            self._text += len(line)
            self.slots[_TEXT] = self._text
            self._crumbs[key] = len(self._crumbs) + 1
        return self._crumbs[key]

    def read(self) -> Beat:
        """Return what others read at this moment. From any thread."""
        beat = _decode(bytes(self._memory))
        assert beat is not None
        return beat

    def enter(self, phase: str) -> None:
        """Note the phase, one of `PHASES`."""
        self.slots[_PHASE] = PHASES.index(phase)
        self.slots[_DONE] = self.slots[_TOTAL] = 0
        self.slots[_MOVED] = monotonic_ns()
        self.advance()

    def advance(self) -> None:
        """Record that something was done: the worker makes progress."""
        self._advances += 1
        self.slots[_ADVANCES] = self._advances

    def count(self, done: int, total: int) -> None:
        """Note how many batches of the evaluation are done.

        total: the number of all, 0 if that is not known.
        """
        self.slots[_DONE], self.slots[_TOTAL] = done, total
        self.advance()

    def begin_step(self, step: int) -> None:
        """Record that a training step begins, and with it the rank's own work."""
        self.slots[_STEP] = step
        self.slots[_MOVED] = self._mark = monotonic_ns()
        self.advance()

    def pause(self) -> None:
        """Record that ranks may wait for one another from here on.

        The time until `resume` is no rank's own work.
        """
        self._own += monotonic_ns() - self._mark
        self.slots[_WAITING] = 1

    def resume(self) -> None:
        """Record that the rank's own work continues."""
        self.slots[_WAITING] = 0
        self.advance()
        self._mark = monotonic_ns()

    def begin_loading(self) -> None:
        """Record that the worker waits for data, which is its own work."""
        self.slots[_WAITING] = _LOADING

    def end_loading(self) -> None:
        """Record that the data is there."""
        self.slots[_WAITING] = 0

    def end_step(self) -> None:
        """Record that the step of `begin_step` is over."""
        self._own += monotonic_ns() - self._mark
        self._own_steps += 1
        self.slots[_OWN] = self._own
        self.slots[_OWN_STEPS] = self._own_steps


class Trail:
    """Shows in a pulse, if there is one, that a hookimpl runs.

    Afterwards it shows what ran around it.
    """

    def __init__(self, pulse: Pulse | None, instance: str, hook: str) -> None:
        self._slots: list[int] | memoryview[int] = [0] * (CRUMB + 1) if pulse is None else pulse.slots
        self._crumb = 0 if pulse is None else pulse.crumb(instance, hook)

    def begin(self) -> int:
        """Record that the hookimpl runs from here on; return the argument of `end`."""
        outer = self._slots[CRUMB]
        self._slots[CRUMB] = self._crumb
        return outer

    def end(self, outer: int) -> None:
        """Record that the hookimpl runs no longer."""
        self._slots[CRUMB] = outer


def read_pulse(path: Path) -> Beat | None:
    """Return what the worker last wrote.

    Returns None if there is no readable pulse.
    """
    try:
        with os.fdopen(untrusted.open_plain(path), "rb") as file:
            data = file.read(SIZE)
    except OSError:
        return None
    return _decode(data)


def _decode(data: bytes) -> Beat | None:
    if len(data) < SIZE:
        return None
    slots = memoryview(data)[:_HEAD].cast("q")
    if slots[_KIND] != _MAGIC:
        return None
    instance, hook = _names(data, slots[_CRUMB], slots[_TEXT])
    return Beat(
        step=slots[_STEP],
        advances=slots[_ADVANCES],
        phase=PHASES[slots[_PHASE]] if 0 <= slots[_PHASE] < len(PHASES) else "",
        instance=instance,
        hook=hook,
        waiting=slots[_WAITING] == 1,
        own_ns=slots[_OWN],
        own_steps=slots[_OWN_STEPS],
        moved_ns=slots[_MOVED],
        done=slots[_DONE],
        total=slots[_TOTAL],
        loading=slots[_WAITING] == _LOADING,
    )


def _names(data: bytes, crumb: int, length: int) -> tuple[str | None, str | None]:
    """Return the instance and hook that a crumb stands for."""
    lines = data[_HEAD : _HEAD + max(0, length)].split(b"\n")[:-1]
    if not 0 < crumb <= len(lines):
        return None, None
    instance, _, hook = lines[crumb - 1].decode(errors="replace").partition("\t")
    return instance, hook
