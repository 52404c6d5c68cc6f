"""What signals and the client ask of a worker, and what becomes of one that cannot hear."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from trainrun import hookimpl
from trainrun.rundir import Stop
from trainrun.rundir.files import append_line
from trainrun.rundir.process import REQUEST_SIGNAL
from trainrun.worker.data import prepare_processes
from trainrun.worker.data.shield import iterate
from trainrun.worker.parent import die_with_parent
from trainrun.worker.signals import Deadline, Inbox, Request, stopping_signals
from trainrun.worker.ties import Ties

PATIENCE = 20.0
ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, REQUEST_SIGNAL)
USERS: Any = {signal.SIGUSR1: "checkpoint", signal.SIGUSR2: "stop"}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of before, whatever a test installs."""
    before = {number: signal.getsignal(number) for number in ALL}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


@pytest.fixture
def inbox(requests: Path) -> Inbox:
    made = Inbox(requests, USERS)
    made.install()
    return made


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def by_signal(kind: Any, name: str) -> Request:
    return Request(kind, name, "signal", f"{name} received")


def ask(requests: Path, kind: str, source: str) -> None:
    origin = "signal" if source.startswith("SIG") else "command"
    append_line(requests, {"request": kind, "source": source, "reason": "because", "origin": origin})


# --- the inbox ---


def test_nothing_is_pending_at_first(inbox: Inbox) -> None:
    assert (inbox.pending, inbox.take(), inbox.put_back()) == (False, [], ())


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGTERM, [by_signal("stop", "SIGTERM")]),
        (signal.SIGINT, [by_signal("stop", "SIGINT")]),
        (signal.SIGUSR1, [by_signal("checkpoint", "SIGUSR1")]),
        (signal.SIGUSR2, [by_signal("stop", "SIGUSR2")]),
        (REQUEST_SIGNAL, []),
    ],
)
def test_a_signal_alone(inbox: Inbox, number: int, expected: list[Request]) -> None:
    send(number)
    assert inbox.pending
    assert inbox.take() == expected
    assert (inbox.pending, inbox.take()) == (False, [])


def test_the_recipe_may_want_nothing_of_a_signal(requests: Path) -> None:
    inbox = Inbox(requests, {signal.SIGUSR1: "ignore", signal.SIGUSR2: "ignore"})
    inbox.install()
    send(signal.SIGUSR1, signal.SIGUSR2)
    assert inbox.take() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, REQUEST_SIGNAL])
def test_a_line_says_who_wants_a_stop(inbox: Inbox, requests: Path, number: int) -> None:
    ask(requests, "stop", "trainrun stop")
    send(number)
    assert inbox.take() == [Request("stop", "trainrun stop", "request", "because", "command")]
    send(signal.SIGTERM)
    assert inbox.take() == [], "the stop was asked for already"


def test_a_checkpoint_does_not_hide_a_stop(inbox: Inbox, requests: Path) -> None:
    ask(requests, "checkpoint", "SIGUSR1")
    send(REQUEST_SIGNAL, signal.SIGTERM)
    assert inbox.take() == [Request("checkpoint", "SIGUSR1", "request", "because"), by_signal("stop", "SIGTERM")]


def test_each_line_is_taken_once(inbox: Inbox, requests: Path) -> None:
    for source in ("one", "two"):
        ask(requests, "checkpoint", source)
        send(REQUEST_SIGNAL)
        assert [request.source for request in inbox.take()] == [source]


def test_what_is_no_request_is_passed_over(inbox: Inbox, requests: Path) -> None:
    requests.write_bytes(
        b'no json\n[]\n{"request": "dance", "source": "x"}\n{"request": "stop"}\n\xff\n{"request": "st'
    )
    send(REQUEST_SIGNAL)
    assert inbox.take() == []


def test_a_burst_counts_once(inbox: Inbox) -> None:
    send(*[signal.SIGTERM] * 50)
    assert inbox.take() == [by_signal("stop", "SIGTERM")]


def test_replaced_handlers_are_put_back_and_named_once(inbox: Inbox) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(REQUEST_SIGNAL, signal.SIG_IGN)
    assert inbox.put_back() == ["SIGTERM", f"signal {REQUEST_SIGNAL}"]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert list(inbox.put_back()) == []
    send(signal.SIGTERM)
    assert inbox.take() == [by_signal("stop", "SIGTERM")]


def test_handlers_that_were_never_installed_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert list(Inbox().put_back()) == []
    assert signal.getsignal(signal.SIGTERM) == before


# --- in training ---


class Signalled:
    """Sends itself signals, or writes requests, in the hooks of a step."""

    number: int = signal.SIGTERM
    at = 3

    @hookimpl(ranks="all")
    def on_step_start(self, run: Any, step: int) -> None:
        if step == self.at and run.world.rank == run.world.size - 1:
            send(self.number)


@pytest.fixture
def ties(requests: Path) -> Callable[[], Ties]:
    def tie() -> Ties:
        inbox = Inbox(requests, USERS)
        inbox.install()
        return Ties(inbox=inbox)

    return tie


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(training: Any, regression: Any, ties: Any, ranks: int) -> None:
    trained = training(regression, Signalled, ranks=ranks, ties=ties, train={"steps": 50})
    outcomes = [outcome for outcome, _ in trained.ranks]
    assert {(outcome.state, outcome.step) for outcome in outcomes} == {("stopped", 4)}
    assert outcomes[0].reason == "stopped at step 4: SIGTERM received"
    assert outcomes[0].stop == Stop("SIGTERM received", "SIGTERM", "signal")


def test_a_request_names_its_source(training: Any, regression: Any, ties: Any, requests: Path) -> None:
    ask(requests, "stop", "trainrun stop")
    trained = training(regression, Signalled, ranks=2, ties=ties, train={"steps": 50})
    assert trained.outcome.reason.endswith(" by trainrun stop: because")
    assert trained.outcome.stop == Stop("because", "trainrun stop", "command")


class SignalledAtBothSteps:
    """Two ranks hear of the same wish, one a step later than the other."""

    @hookimpl(ranks="all")
    def on_step_start(self, run: Any, step: int) -> None:
        if step == 3 + run.world.rank:
            send(REQUEST_SIGNAL)


def test_one_request_is_one_checkpoint(training: Any, regression: Any, ties: Any, requests: Path) -> None:
    ask(requests, "checkpoint", "SIGUSR1")
    trained = training(regression, SignalledAtBothSteps, ranks=2, ties=ties, train={"steps": 12})
    assert trained.outcome.state == "finished"
    assert [(event["decision"], event["plugin"]) for event in trained.decisions] == [("checkpoint", "SIGUSR1")]


class AsksTwice:
    @hookimpl(ranks="all")
    def on_step_start(self, step: int) -> None:
        if step in (3, 6):
            send(signal.SIGUSR1)


def test_a_wish_that_comes_again_is_another_one(training: Any, regression: Any, ties: Any) -> None:
    trained = training(regression, AsksTwice, ranks=2, ties=ties, train={"steps": 12})
    assert [(event["decision"], event["step"]) for event in trained.decisions] == [("checkpoint", 4), ("checkpoint", 7)]


class Replaces:
    @hookimpl
    def on_step_start(self, step: int) -> None:
        if step == 2:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if step == 4:
            send(signal.SIGTERM)


def test_a_plugin_that_takes_a_handler_away(training: Any, regression: Any, ties: Any) -> None:
    trained = training(regression, Replaces, ties=ties, train={"steps": 50})
    assert trained.outcome.stop == Stop("SIGTERM received", "SIGTERM", "signal")
    assert trained.paths.rank_log(0).read_text().count('"signal": "SIGTERM"') == 1


class SignalledEarly:
    @hookimpl
    def on_worker_start(self) -> None:
        send(signal.SIGTERM)


class SignalledInEvaluation:
    @hookimpl
    def on_evaluation_batch_start(self, run: Any) -> None:
        if run.step == 4:
            send(signal.SIGINT)


@pytest.mark.parametrize(("plugin", "step"), [(SignalledEarly, 0), (SignalledInEvaluation, 4)])
def test_signals_outside_of_steps(training: Any, regression: Any, ties: Any, plugin: type, step: int) -> None:
    trained = training(regression, plugin, ties=ties, train={"steps": 50}, evaluate={"every": 4})
    assert (trained.outcome.state, trained.outcome.step) == ("stopped", step)


# --- the deadline ---


def exit_code_of(child: Callable[[int], None], *numbers: int) -> int:
    """How a forked process ends, told by a byte that it is ready and then sent these signals."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        child(writer)
        os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"r"
        for number in numbers:
            os.kill(pid, number)
        assert select.select([reader], [], [], PATIENCE)[0], "the process did not end"
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def watched(grace: float, wait: Callable[[], None]) -> Callable[[int], None]:
    def child(ready: int) -> None:
        Deadline(grace, stopping_signals(USERS), lambda: os._exit(9)).start()
        Inbox(None, USERS).install()
        os.write(ready, b"r")
        wait()

    return child


def a_wait_in_c() -> None:
    """Signal handlers in Python do not run here: the lock is waited for in C, for ever."""
    lock = torch.multiprocessing.get_context("fork").Lock()
    lock.acquire()
    while True:
        signal.pthread_sigmask(signal.SIG_BLOCK, [])
        lock.acquire()


def for_ever() -> None:
    while True:
        signal.pause()


@pytest.mark.parametrize("wait", [a_wait_in_c, for_ever])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_worker_that_does_not_stop_is_ended(wait: Callable[[], None], number: int) -> None:
    began = time.monotonic()
    assert exit_code_of(watched(-0.9, wait), number) == 9  # a second is added
    assert time.monotonic() - began < PATIENCE / 2


def test_signals_that_ask_for_no_stop_end_nothing() -> None:
    def wait() -> None:
        for _ in range(6):
            select.select([], [], [], 0.1)
        os._exit(5)

    assert exit_code_of(watched(-1.0, wait), signal.SIGUSR1, REQUEST_SIGNAL) == 5


def test_a_worker_that_ends_by_itself_is_left_alone() -> None:
    def child(ready: int) -> None:
        deadline = Deadline(-0.8, {signal.SIGTERM}, lambda: os._exit(9))
        deadline.start()
        Inbox().install()
        send(signal.SIGTERM)
        deadline.cancel()
        os.write(ready, b"r")
        select.select([], [], [], 0.6)
        os._exit(5)

    assert exit_code_of(child) == 5


def test_a_signal_to_a_child_is_none_to_the_worker() -> None:
    def child(ready: int) -> None:
        Deadline(-0.9, {signal.SIGTERM}, lambda: os._exit(9)).start()
        Inbox().install()
        pid = os.fork()
        if pid == 0:
            send(signal.SIGTERM)
            os._exit(0)
        os.waitpid(pid, 0)
        os.write(ready, b"r")
        select.select([], [], [], 0.6)
        os._exit(5)

    assert exit_code_of(child) == 5


# --- processes that load data ---


def marks(folder: Path) -> Callable[[int], None]:
    return lambda number: (folder / f"init-{number}").touch()


class Slow(torch.utils.data.Dataset[int]):
    """Signals its own process, as a signal to the group would."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if torch.utils.data.get_worker_info() is not None:
            send(signal.SIGTERM, signal.SIGINT)
        return index


def test_processes_that_load_data_ignore_signals_to_the_group(tmp_path: Path) -> None:
    loader = DataLoader(Slow(), num_workers=2, worker_init_fn=marks(tmp_path))
    prepare_processes(loader, pytest.fail)
    prepare_processes(loader, pytest.fail)
    assert sorted(int(batch) for batch in loader) == list(range(8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["init-0", "init-1"]


_AT_BIRTH: list[signal.Signals] = []
os.register_at_fork(after_in_child=lambda: send(*_AT_BIRTH))


def test_processes_that_load_data_are_shielded_from_their_birth_on(tmp_path: Path) -> None:
    loader = DataLoader(Slow(), num_workers=2, multiprocessing_context="fork", worker_init_fn=marks(tmp_path))
    prepare_processes(loader, pytest.fail)
    _AT_BIRTH.extend((signal.SIGTERM, signal.SIGINT))
    try:
        batches = iterate(loader)
    finally:
        _AT_BIRTH.clear()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert sorted(int(batch) for batch in batches) == list(range(8))


@pytest.mark.parametrize("loader", [[1, 2], DataLoader([1, 2])])
def test_other_loaders_are_left_alone(loader: Any) -> None:
    prepare_processes(loader, pytest.fail)
    assert getattr(loader, "worker_init_fn", None) is None
