"""Processes that load data: however they stand still, fail or die, training goes on or ends with what happened."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from trainrun.errors import TrainingError
from trainrun.worker.data import (
    ForeignBatches,
    Reseeded,
    SampleCounter,
    SampledBatches,
    SampledLoader,
    TrainSampler,
    context,
    evaluation_batches,
    prepare_processes,
)
from trainrun.worker.data.shield import close, iterate
from trainrun.worker.world import World

LONGEST = 60.0  # seconds for what takes a moment, on a machine that does much else


class Samples(Dataset[Any]):
    """Eight samples with a random number each; `fail` is called for the fifth."""

    def __init__(self, fail: Callable[[], Any] | None = None) -> None:
        self.fail = fail

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        if index == 5 and self.fail is not None:
            return self.fail()
        return index, float(torch.rand(()))


class Stream(IterableDataset[Any]):
    def __init__(self, fail: Callable[[], Any]) -> None:
        self.fail = fail

    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(2)
        yield self.fail()


_MADE: list[SampledBatches] = []


def own(dataset: Any, *, workers: int = 1, warn: Callable[[str], None] = pytest.fail, **options: Any) -> SampledBatches:
    """trainrun's loader, as `setup` has it, two samples a batch."""
    sampler = TrainSampler(len(dataset), 2, 2, World(), shuffle=False)
    generator = torch.Generator().manual_seed(3)
    made = DataLoader(Reseeded(dataset), batch_sampler=sampler, num_workers=workers, generator=generator, **options)
    loader = SampledLoader(made, sampler)
    prepare_processes(loader, warn)
    _MADE.append(SampledBatches(loader))
    return _MADE[-1]


def epochs(data: SampledBatches, count: int) -> list[Any]:
    return [(epoch, *(part.tolist() for part in batch)) for epoch in range(1, count + 1) for batch in read(data, epoch)]


def read(data: SampledBatches | ForeignBatches, epoch: int = 1) -> list[Any]:
    found = []
    for update in data.begin(epoch):
        found.append(data.fetch())
        data.use(update)
    return found


def processes() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


def wait_until(question: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONGEST
    while not question():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def leaves_no_process() -> Iterator[None]:
    before = processes()
    yield
    while _MADE:
        close(_MADE.pop()._batches)
    gc.collect()
    wait_until(lambda: set(processes()) <= set(before))


# --- forks that stand still ---

_FAULTS: list[Callable[[], object]] = []  # what the next forked processes do before `fork` returns in them
_ARMED: list[Callable[[], object]] = []
_LOCK = threading.Lock()


def _arm() -> None:
    _ARMED[:] = [_FAULTS.pop(0)] if _FAULTS else []


def _be_hit() -> None:
    for fault in _ARMED:
        fault()


os.register_at_fork(before=_arm, after_in_child=_be_hit)


def stop_oneself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def take_the_lock() -> None:
    _LOCK.acquire()


def do_nothing() -> None: ...


@pytest.fixture
def locked() -> Iterator[None]:
    """Another thread holds a lock, as in a library that takes one in every forked process."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with _LOCK:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    yield
    over.set()
    thread.join()
    _FAULTS.clear()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "PATIENCE", (0.5, 0.5, LONGEST))


@pytest.mark.parametrize("fault", [stop_oneself, take_the_lock])
@pytest.mark.parametrize("place", [0, 1])
def test_a_process_that_stands_still_is_forked_again(
    fault: Callable[[], object], place: int, locked: None, impatient: None
) -> None:
    expected = epochs(own(Samples(), workers=2), 2)
    warnings: list[str] = []
    data = own(Samples(), workers=2, warn=warnings.append)
    _FAULTS.extend([do_nothing] * place + [fault])
    assert epochs(data, 2) == expected
    assert [warning.partition(" (")[0] for warning in warnings][:1] == [
        "a process of a loader stood still when it was forked"
    ]


def test_forks_that_all_stand_still_are_an_error(locked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "PATIENCE", (0.1, 0.1))
    _FAULTS.extend([take_the_lock] * 2)
    with pytest.raises(TrainingError, match="cannot be started: 2 forks in a row stood still"):
        own(Samples(), warn=do_nothing_with).begin(1)


def do_nothing_with(message: str) -> None:
    del message


@pytest.mark.parametrize("workers", [1, 2])
def test_loaders_of_the_task_too(workers: int, locked: None, impatient: None) -> None:
    loader = DataLoader(Samples(), batch_size=2, num_workers=workers, generator=torch.Generator().manual_seed(1))
    warnings: list[str] = []
    prepare_processes(loader, warnings.append)
    _FAULTS.append(take_the_lock)
    found = [index for _, (indices, _) in zip(range(4), iterate(loader), strict=False) for index in indices.tolist()]
    assert (found, len(warnings) >= 1) == (list(range(8)), True)


def test_a_process_that_dies_at_its_birth_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "PATIENCE", (10 * LONGEST,))
    _FAULTS.append(lambda: os._exit(9))
    data = own(Samples())
    with pytest.raises(TrainingError, match="one of the processes that load ahead died"):
        read(data)


def test_many_forks() -> None:
    """The short form of `forks` in tests/soak."""
    data = own(Samples(), workers=2)
    for epoch in range(20):
        for update in data.begin(epoch + 1):
            data.fetch()
            data.use(update)
            break


# --- what goes wrong in them ---


def unlike_others() -> NoReturn:
    class NeedsTwo(KeyError):
        def __init__(self, key: str, needed: int) -> None:
            super().__init__(key)

    raise NeedsTwo("sample five", 5)


def not_to_be_pickled() -> NoReturn:
    error = ValueError("sample five")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def without_a_text() -> NoReturn:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    raise Mute


def beyond_exceptions() -> NoReturn:
    class Beyond(BaseException):
        pass

    raise Beyond("sample five")


def with_a_message() -> NoReturn:
    class WithMessage(Exception):
        message = "not what torch takes it for"

    raise WithMessage("sample five")


def leave() -> NoReturn:
    sys.exit("sample five")


def leave_well() -> NoReturn:
    sys.exit(0)


def interrupted() -> NoReturn:
    raise KeyboardInterrupt


def several() -> NoReturn:
    raise ExceptionGroup("sample five", [ValueError("one"), KeyError("two")])


def end_of_nothing() -> NoReturn:
    next(iter(()))
    raise AssertionError


def a_lock() -> Any:
    return threading.Lock()


RAISING = {
    unlike_others: "NeedsTwo: 'sample five'",
    not_to_be_pickled: "ValueError: sample five",
    without_a_text: "Mute: <exception str() failed>",
    beyond_exceptions: "Beyond: sample five",
    with_a_message: "WithMessage: sample five",
    leave: "SystemExit: sample five",
    leave_well: "SystemExit: 0",
    interrupted: "KeyboardInterrupt",
    several: "ExceptionGroup",
    end_of_nothing: "StopIteration",
}


@pytest.mark.parametrize(("fail", "told"), RAISING.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_raised_is_told_at_once_with_its_samples(fail: Callable[[], Any], told: str) -> None:
    with pytest.raises(TrainingError) as caught:
        read(own(Samples(fail)))
    message = str(caught.value)
    assert message.startswith(
        "loading training data failed (epoch 1, micro-batch 1 after 4 samples of the epoch,"
        f" dataset indices 4, 5): {told}"
    )
    assert f"in {fail.__name__}\n" in message or fail is interrupted  # the traceback; torch catches that one itself


def test_a_group_of_exceptions_is_told_whole() -> None:
    data = own(Samples(several))
    with pytest.raises(TrainingError, match=r"(?s)sample five \(2 sub-exceptions\).*ValueError: one.*KeyError: 'two'"):
        read(data)


def test_a_batch_that_cannot_be_sent_is_told() -> None:
    data = own(Samples(a_lock), collate_fn=list)
    with pytest.raises(TrainingError, match=r"dataset indices 4, 5.*a list, cannot be sent.*TypeError: cannot pickle"):
        read(data)


@pytest.mark.parametrize("how", ["kill", "leave"])
def test_a_process_that_dies_is_told(how: str) -> None:
    end = {"kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "leave": lambda: os._exit(3)}[how]
    data = own(Samples(end))
    with pytest.raises(TrainingError, match="one of the processes that load ahead died"):
        read(data)


def test_a_process_that_leaves_without_a_code_is_told() -> None:
    data = own(Samples(lambda: os._exit(0)))
    with pytest.raises(TrainingError, match="one of the processes that load ahead died"):
        read(data)


class Unsendable(list[int]):
    """Batches of indices, the second of which cannot be pickled."""

    def __iter__(self) -> Iterator[Any]:
        yield [0, 1]
        yield [2, threading.Lock()]

    def __len__(self) -> int:
        return 2


def test_what_a_sampler_yields_and_cannot_be_sent_is_told() -> None:
    loader = DataLoader(Samples(), batch_sampler=Unsendable(), num_workers=1)
    prepare_processes(loader, pytest.fail)
    data = ForeignBatches(loader, 2, 1, World(), None, seed=1, warn=pytest.fail)
    with pytest.raises(TrainingError, match="what the sampler yields cannot be sent"):
        read(data)


@pytest.mark.parametrize("fail", [unlike_others, beyond_exceptions, end_of_nothing])
def test_evaluation_and_streams_tell_it_too(fail: Callable[[], Any]) -> None:
    loader = DataLoader(Stream(fail), batch_size=None, num_workers=1)
    prepare_processes(loader, pytest.fail)
    counter = SampleCounter("split 'test'", "", pytest.fail)
    with pytest.raises(TrainingError, match="split 'test': batch 2 could not be read"):
        list(evaluation_batches(loader, None, counter))


# --- their end ---


class Endless(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 3:
            threading.Event().wait()
        return index


def test_the_next_epoch_ends_the_processes_of_the_last_one_whoever_holds_them() -> None:
    data = own(Samples())
    data.begin(1)
    data.fetch()
    first, held = processes(), [data._batches]
    held.append(held)  # type: ignore[arg-type]  # a cycle, which no one counts down to nothing
    data.begin(2)
    assert not set(first) & set(processes())


def test_what_loads_forever_is_ended() -> None:
    loader = DataLoader(Endless(), num_workers=1)
    prepare_processes(loader, pytest.fail)
    batches = iterate(loader)
    next(batches)
    close(batches)
    assert processes() == []


ON_ITS_OWN = """
import threading
from torch.utils.data import DataLoader, Dataset
from trainrun.worker.data import prepare_processes
from trainrun.worker.data.shield import iterate

class Refused(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

class Samples(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        if index == 1:
            raise Refused(1, 2)
        if index > 1:
            threading.Event().wait()
        return index

if __name__ == "__main__":
    loader = DataLoader(Samples(), num_workers=1, multiprocessing_context="METHOD")
    prepare_processes(loader, print)
    batches = iterate(loader)
    print(next(batches))
    try:
        next(batches)
    except RuntimeError as error:
        print(type(error).__name__, str(error).partition("\\n")[0], sep=": ")
    held = [batches]
    held.append(held)
    raise SystemExit(7)
"""


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(other, marks=pytest.mark.long) for other in ("spawn", "forkserver"))]
)
def test_the_end_of_python_waits_for_no_loader_however_it_is_started(tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(ON_ITS_OWN.replace("METHOD", method))
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=LONGEST, check=False)
    assert (ended.returncode, ended.stdout) == (7, "tensor([0])\nRefused: 1 and 2\n"), ended.stderr
