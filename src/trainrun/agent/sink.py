"""Keeps what the workers of one node print: reads their pipes into files that do not grow without end.

Run by its path, as `python -I -S sink.py LIMIT RUN NODE [PIPE FILE OLD]...`: without `site` and without trainrun it is
there in some milliseconds and stays small. LIMIT is in bytes, for each FILE and OLD together. The pipes exist already.
RUN and NODE are what the run's processes on this node carry in their environment, each as NAME=VALUE.

Any byte over stdin says that the attempt is over. Then the pipes are read to their end, but for no longer than some
seconds. The end is there when the last process that prints is gone. The client that starts this holds signals back from
it (`launch.output`): it has to outlive the workers, to have their last words.

The end of stdin alone says that the client was killed. Workers die with the client by themselves, but not their loader
processes and what plugins have started: these are killed from here.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

TYPE_CHECKING = False  # without the module of that name, which is not small
if TYPE_CHECKING:
    import re

_CHUNK = 256 * 1024  # bytes that are read at a time
_PATIENCE = 5.0  # seconds for what still holds a pipe when the attempt is over
_LOOK = 1000  # milliseconds between two looks at whether the client is alive
_LATE = 0.3  # seconds that dying processes may still start others; no new client has started any by then
_SMALLEST = 2048  # bytes: a file has to hold more than the notice with which it begins
_SECRETS = "TRAINRUN_SECRET_FORMS"  # the variable that lists which secrets are left out of the output
_REDACTED = b"<redacted>"
_MARK = b" bytes of output were dropped so far: "
_STAMP_SECONDS = (1.0, 10.0)  # between two notes of the time: at least, and at most if little is printed
_STAMP_BYTES = 64  # what is little: notes stay small in comparison with the output


class Stamps:
    """Notes when what was written: `rank-0.times` next to `rank-0.out`, each line a time and an offset in the output.

    From that offset on the output is of that time or later. A note that cannot be written is left out.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.splitext(path)[0] + ".times"  # noqa: PTH122
        self._time = -_STAMP_SECONDS[1]
        self._offset = 0

    def note(self, offset: int) -> None:
        """Note that what comes now is written at `offset`."""
        least, most = _STAMP_SECONDS
        passed = time.monotonic() - self._time
        if passed < least or (passed < most and 0 <= offset - self._offset < _STAMP_BYTES):
            return
        self._time, self._offset = time.monotonic(), offset
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self._path, flags, 0o600)
        except OSError:
            return
        try:
            os.write(descriptor, b"%.3f %d\n" % (time.time(), offset))
        except OSError:
            return
        finally:
            os.close(descriptor)

    def rename(self, old: str) -> None:
        """Continue the output in a new file; the old one is now at `old`."""
        self._time = -_STAMP_SECONDS[1]
        try:
            os.replace(self._path, os.path.splitext(old)[0] + ".times")  # noqa: PTH105, PTH122
        except OSError:
            return


class CappedFile:
    """A file that is renamed when it has grown to half the limit, in place of the one that was renamed before.

    What cannot be kept is dropped and counted: nothing here ever raises because of a disk.
    """

    def __init__(self, path: str, old: str, limit: int) -> None:
        self._path = path
        self._old = old
        self._half = max(limit // 2, _SMALLEST)
        self._file = -1
        self._size = 0
        self._in_line = False  # whether the file ends within a line
        self._dropped = 0
        self._why = b""  # what is still to be reported of the bytes that were dropped
        self._stamps = Stamps(path)
        self.write(memoryview(b""))

    def write(self, data: memoryview) -> None:
        """Append `data`, as far as there is room on the disk."""
        try:
            self._prepare()
            while data:
                part = self._fitting(data)
                if part:
                    data = data[self._append(part) :]
                else:
                    self._rotate()
        except OSError as error:
            self._drop(len(data), (error.strerror or str(error)).encode())
            self._close()  # another try begins with opening it again

    def _prepare(self) -> None:
        if self._file < 0:
            self._open()
        if self._why and self._size < self._half:
            self._tell()

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._file).st_size
        self._in_line = self._size > 0 and os.pread(self._file, 1, self._size - 1) != b"\n"
        self._dropped = max(self._dropped, _noted(_head(self._file)))

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _fitting(self, data: memoryview) -> memoryview:
        """Return the part of `data` for this file: whole lines, unless one is longer; nothing when full."""
        room = self._half - self._size
        if len(data) <= room:
            return data
        whole = bytes(data[: max(room, 0)]).rfind(b"\n") + 1
        if whole:
            return data[:whole]
        keeps_on = self._in_line or self._size < self._half // 2
        return data[: max(room, 0)] if keeps_on else data[:0]

    def _append(self, part: memoryview) -> int:
        self._stamps.note(self._size)
        written = os.write(self._file, part)
        self._size += written
        self._in_line = part[written - 1] != ord("\n")
        return written

    def _rotate(self) -> None:
        replaced = _content(self._old)
        self._close()
        try:
            os.replace(self._path, self._old)  # noqa: PTH105 - pathlib is not small
        except FileNotFoundError:
            replaced = 0  # another process has removed it
        self._stamps.rename(self._old)
        if replaced or self._dropped:
            self._drop(replaced, b"the limit is %d bytes" % (2 * self._half))
        self._prepare()

    def _drop(self, count: int, why: bytes) -> None:
        if count or self._dropped:
            self._dropped += count
            self._why = why

    def _tell(self) -> None:
        line = b"--- %d%s%s ---\n" % (self._dropped, _MARK, self._why)
        before = self._size
        try:
            _write_whole(self._file, b"\n" + line if self._in_line else line)
        except OSError:
            os.ftruncate(self._file, before)
            raise
        self._size = os.fstat(self._file).st_size
        self._in_line = False
        self._why = b""


class Masked:
    """Writes to a file what it is given, but for secrets, also those that come in two pieces.

    What could be the beginning of a secret is held back, until more has come or nothing has for a second.
    """

    def __init__(self, file: CappedFile, forms: list[bytes]) -> None:
        self._file = file
        self._forms = forms
        self._pattern = _any_of(forms) if forms else None
        self._held = b""

    def write(self, data: memoryview) -> None:
        """Append `data`."""
        if self._pattern is None:
            self._file.write(data)
            return
        text, kept, done = self._held + bytes(data), b"", 0
        for found in self._pattern.finditer(text):
            tail = text[found.start() :]
            if any(len(form) > len(tail) and form.startswith(tail) for form in self._forms):
                break  # it may be the beginning of a longer one
            kept += text[done : found.start()] + _REDACTED
            done = found.end()
        rest = text[done:]
        held = max(_overlap(rest, form) for form in self._forms)
        self._held = rest[len(rest) - held :]
        self._file.write(memoryview(kept + rest[: len(rest) - held]))

    def flush(self) -> None:
        """Write what was held back."""
        held, self._held = self._held, b""
        if held and self._pattern is not None:
            self._file.write(memoryview(self._pattern.sub(_REDACTED, held)))


def _any_of(forms: list[bytes]) -> re.Pattern[bytes]:
    import re  # noqa: PLC0415 - only a run with secrets pays for it

    return re.compile(b"|".join(map(re.escape, forms)))


def _overlap(text: bytes, form: bytes) -> int:
    """Return the length of the longest end of `text` that begins `form`."""
    end = text[-(len(form) - 1) :] if len(form) > 1 else b""
    return next((len(end) - start for start in range(len(end)) if form.startswith(end[start:])), 0)


class Source:
    """The pipe of one worker, and the file for what comes out of it."""

    def __init__(self, pipe: str, file: CappedFile, forms: list[bytes] | None = None) -> None:
        self.reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._keeper = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # no end before the first writer
        self._pipe = pipe
        self._file = Masked(file, forms or [])

    def let_end(self) -> None:
        """Let the pipe end with its last writer from now on."""
        os.close(self._keeper)

    def pump(self, buffer: bytearray) -> bool:
        """Move what has come; False at the end."""
        try:
            count = os.readv(self.reader, [buffer])
        except BlockingIOError:
            return True
        self._file.write(memoryview(buffer)[:count])
        return count > 0

    def pause(self) -> None:
        """Write out what is held; nothing has come for a while."""
        self._file.flush()

    def remove(self) -> None:
        """Close the pipe, and remove it: a reader would wait at one that is left."""
        self._file.flush()
        os.close(self.reader)
        try:
            os.unlink(self._pipe)  # noqa: PTH108
        except OSError:
            return


class Sink:
    """Reads several pipes until the attempt is over, and then to their end."""

    def __init__(self, sources: list[Source], control: int, parent: int) -> None:
        self._sources = {source.reader: source for source in sources}
        self._control = control
        self._parent = parent
        self._buffer = bytearray(_CHUNK)
        self._poller = select.poll()
        for descriptor in (control, *self._sources):
            self._poller.register(descriptor, select.POLLIN)

    def follow(self) -> bool:
        """Read until the attempt is over or the client is gone; return whether the client is there."""
        told = False
        while os.getppid() == self._parent:
            ready = self._ready(_LOOK)
            if self._control in ready:
                told = bool(os.read(self._control, 1))
                break
            for descriptor in ready:
                self._sources[descriptor].pump(self._buffer)
            for source in () if ready else self._sources.values():
                source.pause()
        self._poller.unregister(self._control)
        return told

    def finish(self) -> None:
        """Read what is left, while there is a process that could write."""
        for source in self._sources.values():
            source.let_end()
        deadline = time.monotonic() + _PATIENCE
        while self._sources and (left := deadline - time.monotonic()) > 0:
            for descriptor in self._ready(left * 1000):
                if not self._sources[descriptor].pump(self._buffer):
                    self._remove(descriptor)
        for descriptor in list(self._sources):
            self._remove(descriptor)

    def _ready(self, milliseconds: float) -> list[int]:
        return [descriptor for descriptor, _ in self._poller.poll(milliseconds)]

    def _remove(self, descriptor: int) -> None:
        self._poller.unregister(descriptor)
        self._sources.pop(descriptor).remove()


def main(arguments: list[str]) -> None:
    """Run the process: see the module's text."""
    parent = os.getppid()  # before anything that can be waited for
    limit, run, node, *names = arguments
    forms = secrets(os.environ.get(_SECRETS, ""))
    triples = zip(names[::3], names[1::3], names[2::3], strict=True)
    sources = [Source(pipe, CappedFile(path, old, int(limit)), forms) for pipe, path, old in triples]
    sink = Sink(sources, control=0, parent=parent)
    if not sink.follow():
        end_orphans({os.fsencode(run), os.fsencode(node)})
    sink.finish()


def secrets(told: str) -> list[bytes]:
    """Return what must not be kept, a JSON list, the longest first."""
    if not told:
        return []
    import json  # noqa: PLC0415 - only a run with secrets pays for it

    return [form.encode(errors="surrogatepass") for form in json.loads(told)]


def end_orphans(marks: set[bytes]) -> None:
    """Send SIGKILL to every process with these marks.

    Processes that another client of the run may start from now on are spared.
    """
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + _LATE
    while time.clock_gettime(time.CLOCK_BOOTTIME) < until:
        for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib is not small
            if name.isdigit() and marks <= _environment(name) and _started(name) < until:
                _kill(int(name))
        time.sleep(_LATE / 10)


def _environment(pid: str) -> set[bytes]:
    return set(_read(f"/proc/{pid}/environ").split(b"\0"))


def _started(pid: str) -> float:
    """Return the start of a process in seconds since boot."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK") if len(fields) > 19 else float("inf")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return b""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return


def _head(descriptor: int) -> bytes:
    """Return the first line of a file, if it could be a notice.

    No more is read than a notice can have.
    """
    return os.pread(descriptor, _SMALLEST // 2, 0).partition(b"\n")[0]


def _noted(line: bytes) -> int:
    """Return how many bytes a notice reports; 0 if `line` is none."""
    number, mark, _ = line.removeprefix(b"--- ").partition(_MARK)
    return int(number) if mark and number.isdigit() and len(number) < 20 else 0


def _content(path: str) -> int:
    """Return how many bytes of output are in a file, without the notice at its beginning."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return 0
    size, head = os.fstat(descriptor).st_size, _head(descriptor)
    os.close(descriptor)
    return size - (len(head) + 1 if _noted(head) else 0)


def _write_whole(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main(sys.argv[1:])
