from __future__ import annotations

from pathlib import Path

import pytest

from trainrun.builtin.fault import KINDS, parse
from trainrun.cli.expecting import Expected, expect
from trainrun.cli.proving import Seen
from trainrun.plugin.resolve import Resolved, resolve
from trainrun.testing import DistributionInstaller

PLUGINS = """
from trainrun import hookimpl

class Watcher:
    @hookimpl
    def on_step_end(self): ...

    @hookimpl(mutates=True)
    def on_gradients_ready(self): ...

    @hookimpl
    def should_stop(self): ...
"""

STOPPED = (143, 75)


@pytest.fixture
def resolved(
    recipe: Path, install: DistributionInstaller, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Resolved:
    """A recipe that stops on SIGUSR1, with one plugin."""
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(shared_cache))
    install("watchers", {"watchers.py": PLUGINS}, {"watcher": "watchers:Watcher"})
    settings = ["launch.on_usr1=stop", "launch.on_usr2=checkpoint", "plugins.watcher.on_error=warn"]
    found = resolve(recipe, settings, ["watcher"])
    found.require()
    return found


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("sigterm@3", Expected(STOPPED, words=("SIGTERM",))),
        ("sighup@3", Expected(STOPPED, words=("SIGHUP",))),
        ("sigint@3", Expected((130,), words=("SIGINT",))),
        ("sigint2@3", Expected((130,))),
        ("usr1@3", Expected(STOPPED)),
        ("usr2@3", Expected((0,))),
        ("kill:client@3", Expected((-9,))),
        ("kill:agent@3", Expected((0,), 2, ("agent", "SIGKILL"))),
        ("kill:server@3", Expected((0,), 2, ("fork server", "killed"))),
        ("kill:rank1@3", Expected((0,), 2, ("rank 1", "SIGKILL"))),
        ("kill:all@3", Expected((0,), 2, ("SIGKILL",))),
        ("leave:rank1:3@3", Expected((0,), 2, ("rank 1", "exit code 3"))),
        ("kill:rank0@3!", Expected((93,), 4, ("rank 0", "SIGKILL"))),
        ("raise:rank0@3", Expected((1,), 1, ("rank 0", "InjectedFault"))),
        ("raise:rank0@3!", Expected((1,), 1, ("rank 0", "InjectedFault"))),
        ("exit:rank1:0@3", Expected((1,), 1, ("rank 1", "SystemExit"))),
        ("raise:watcher.on_step_end@3", Expected((0,), decision="warn")),
        ("raise:watcher.on_gradients_ready@3", Expected((1,), 1, ("InjectedFault",))),
        ("raise:rank1:watcher.should_stop@3", Expected((1,), 1, ("rank 1", "InjectedFault"))),
        ("raise:task.build_model", Expected((1,), 1, ("InjectedFault",))),
        ("nan@3", Expected((1,), 1, ("train/loss is nan",))),
    ],
)
def test_what_has_to_follow(resolved: Resolved, fault: str, expected: Expected) -> None:
    assert expect(parse(fault), resolved) == expected


def test_loss_that_is_nan_ends_only_what_does_not_warn_of_it(resolved: Resolved) -> None:
    resolved.data["train"]["nonfinite"] = "warn"
    assert expect(parse("nan@3"), resolved) == Expected((0,))


def test_something_follows_from_every_kind(resolved: Resolved) -> None:
    for name, kind in KINDS.items():
        fault = parse(f"{name}:rank1@3" if kind.takes else f"{name}@3")
        assert expect(fault, resolved).codes


EXPECTED = Expected((0,), 2, ("rank 1", "SIGKILL"))
REASON = "rank 1 was killed by SIGKILL"


@pytest.mark.parametrize(
    ("seen", "well", "text"),
    [
        (Seen(0, 2, REASON), True, f"exit 0, 2 attempts, {REASON}"),
        (Seen(1, 2, REASON), False, f"exit 1, 2 attempts, {REASON}"),
        (Seen(0, 1, REASON), False, f"exit 0, {REASON}"),
        (Seen(0, 2, "rank 0 was killed by SIGKILL"), False, "exit 0, 2 attempts, rank 0 was killed by SIGKILL"),
        (Seen(0, 2, REASON, decision="warn"), False, f"exit 0, 2 attempts, warn, {REASON}"),
        (Seen(0, 2, REASON, fired=False), False, f"the fault did not come, exit 0, 2 attempts, {REASON}"),
        (Seen(0, 2, REASON, left=3), False, f"exit 0, 2 attempts, 3 processes left, {REASON}"),
        (Seen(None), False, "no end in 600 s"),
    ],
)
def test_comparison(seen: Seen, well: bool, text: str) -> None:
    assert seen.matches(EXPECTED) == well
    assert str(seen) == text


def test_how_it_is_told() -> None:
    assert str(EXPECTED) == "exit 0, 2 attempts, rank 1 SIGKILL"
    assert str(Expected(STOPPED, decision="warn")) == "exit 143 or 75, warn"
