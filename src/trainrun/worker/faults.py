"""What becomes of errors that the run survives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainrun.errors import HookFailed, described
from trainrun.plugin.guard import Fault
from trainrun.worker.decisions import DecisionKind
from trainrun.worker.state import State

if TYPE_CHECKING:
    import structlog


class Faults:
    """Logs the faults of one rank and posts the decisions that follow from them. Called from any thread."""

    def __init__(self, state: State, logger: structlog.typing.FilteringBoundLogger) -> None:
        self._state = state
        self._logger = logger
        self._seen: dict[tuple[str, str], int] = {}
        self.fatal: HookFailed | None = None

    def __call__(self, fault: Fault) -> None:
        """Log the fault with its traceback, and post what follows from it."""
        key = (fault.instance, fault.hook)
        self._seen[key] = self._seen.get(key, 0) + 1
        if isinstance(fault.error, HookFailed):  # from a background thread, whose exceptions would be lost
            self.fatal = self.fatal or fault.error
        elif fault.action == "disable":
            self._post("disable", fault)
        elif self._seen[key] == 1:
            self._post("warn", fault)
        # Last: even if the log fails, what follows from the fault is on its way.
        self._logger.error(
            "hook failed", plugin=fault.instance, hook=fault.hook, action=fault.action, exc_info=fault.error
        )

    def _post(self, kind: DecisionKind, fault: Fault) -> None:
        self._state.decisions.post(kind, fault.instance, fault.hook, described(fault.error))

    def counts(self) -> dict[str, int]:
        """Return how often each hookimpl raised on this rank, by `INSTANCE.HOOK`."""
        return {f"{instance}.{hook}": count for (instance, hook), count in self._seen.items()}
