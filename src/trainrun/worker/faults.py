"""What becomes of errors that the run survives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainrun.errors import HookFailed
from trainrun.plugin.guard import Fault
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
        self._logger.error(
            "hook raised", plugin=fault.instance, hook=fault.hook, action=fault.action, exc_info=fault.error
        )
        if isinstance(fault.error, HookFailed):  # from a background thread, whose exceptions nobody would see
            self.fatal = self.fatal or fault.error
            return
        reason = f"{type(fault.error).__name__}: {fault.error}"
        if fault.action == "disable" or self._seen[key] == 1:
            self._state.decisions.post(
                "disable" if fault.action == "disable" else "warn", fault.instance, fault.hook, reason
            )

    def counts(self) -> dict[str, int]:
        """How often each hookimpl raised on this rank, by `INSTANCE.HOOK`."""
        return {f"{instance}.{hook}": count for (instance, hook), count in self._seen.items()}
