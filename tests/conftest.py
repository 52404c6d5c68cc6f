from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_signals() -> Iterator[None]:
    """Signals as in a terminal, also where the tests run in the background: what is ignored there is inherited."""
    changed = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in changed.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
