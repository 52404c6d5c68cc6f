from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from trainrun.launch import signals as module
from trainrun.launch.signals import Signals, StopNow


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_is_only_noted(number: signal.Signals) -> None:
    with Signals(60) as signals:
        send(number)
        assert signals.first == number
        assert not signals.now


def test_second_ctrl_c_breaks_in() -> None:
    with Signals(60) as signals:
        send(signal.SIGTERM)
        with pytest.raises(StopNow), signals.breakable():
            send(signal.SIGINT)
        assert signals.now
        assert signals.first == signal.SIGTERM


def test_repeated_sigterm_asks_for_nothing_more() -> None:
    with Signals(60) as signals:
        for _ in range(3):
            send(signal.SIGTERM)
        assert not signals.now


def test_shielded_work_is_done_to_its_end() -> None:
    with Signals(60) as signals:
        with signals.breakable(), signals.shield():
            for _ in range(5):
                send(signal.SIGINT)
        assert signals.now


def test_nothing_breaks_into_what_is_not_breakable() -> None:
    with Signals(60) as signals:
        for _ in range(5):
            send(signal.SIGINT)
        assert signals.now


def test_a_burst_does_not_break_into_what_follows_the_break() -> None:
    unwound = []

    def work(signals: Signals) -> None:
        with signals.breakable():
            send(signal.SIGINT)
            try:
                send(signal.SIGINT)
            finally:
                send(signal.SIGINT)
                unwound.append(True)

    with Signals(60) as signals:
        with pytest.raises(StopNow):
            work(signals)
        assert unwound
        assert signals.caught() == "now"
        with signals.breakable():
            send(signal.SIGINT)


def test_a_break_that_a_plugin_swallowed_can_be_had_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AGAIN", 0.01)
    with Signals(60) as signals, signals.breakable():
        send(signal.SIGINT)
        for _ in range(2):
            with pytest.raises(StopNow):
                send(signal.SIGINT)
            time.sleep(0.02)


def test_limit_breaks_into_what_holds_up_the_client() -> None:
    with Signals(0.05) as signals:
        send(signal.SIGTERM)
        with pytest.raises(StopNow), signals.breakable():
            time.sleep(30)
        assert signals.caught() == "grace"


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)]
    with Signals(60):
        send(signal.SIGTERM)
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)]
    assert after == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(60) as signals:
            send(signal.SIGHUP)
            assert signals.first is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_takes_no_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter() -> None:
        with Signals(60):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
