"""A provider hook that is called without its dispatcher: in the processes of a loader, which have none.

There is no `run` there, and what a call costs or which hookimpl is at work is not recorded. Forked processes inherit
it as it is; to others it is sent by pickle, which the plugin must then allow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainrun.errors import TrainingError, blame
from trainrun.plugin.description import ImplInfo
from trainrun.plugin.guard import CAUGHT, switch
from trainrun.plugin.instance import Instance


@dataclass(frozen=True)
class Part:
    """One hookimpl: its function, what it takes, whose it is, and how to do without it."""

    function: Callable[..., Any]
    arguments: tuple[str, ...]
    wrapper: bool
    plugin: str
    switch: str

    @classmethod
    def of(cls, function: Callable[..., Any], impl: ImplInfo, instance: Instance) -> Part:
        """Make one of a hookimpl's function.

        It must not be a function that only this process has.
        """
        return cls(function, impl.arguments, impl.wrapper, instance.name, switch(instance))


class Detached:
    """Calls the hookimpls of one hook as pluggy does: wrappers around the first result that is not None."""

    def __init__(self, hook: str, parts: Sequence[Part]) -> None:
        self._hook = hook
        self._parts = parts

    @property
    def provides(self) -> bool:
        """Return whether there is more than wrappers."""
        return not all(part.wrapper for part in self._parts)

    def __call__(self, otherwise: Callable[[], Any], **given: Any) -> Any:
        """Return the hook's result for the arguments `given`.

        If no hookimpl has a result, returns that of `otherwise`. Raises TrainingError naming the plugin whose hookimpl
        raises.
        """
        return self._call(0, otherwise, given)

    def _call(self, place: int, otherwise: Callable[[], Any], given: Mapping[str, Any]) -> Any:
        if place == len(self._parts):
            return otherwise()
        part = self._parts[place]
        if part.wrapper:
            return self._around(part, lambda: self._call(place + 1, otherwise, given), given)
        result = self._guarded(part, lambda: part.function(*_picked(part, given)))
        return self._call(place + 1, otherwise, given) if result is None else result

    def _around(self, part: Part, inner: Callable[[], Any], given: Mapping[str, Any]) -> Any:
        wrapper = part.function(*_picked(part, given))
        if self._guarded(part, lambda: next(wrapper, wrapper)) is wrapper:
            raise self._failed(part, RuntimeError("a hook wrapper must yield exactly once"))
        result, problem = None, None
        try:
            result = inner()
        except CAUGHT as error:  # a wrapper is shown it, and decides
            problem = error
        return self._guarded(part, lambda: _finish(wrapper, result, problem))

    def _guarded(self, part: Part, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except TrainingError:
            raise
        except CAUGHT as error:
            raise self._failed(part, error) from error

    def _failed(self, part: Part, error: BaseException) -> TrainingError:
        # Not HookFailed: the error of a loader's process is made again from its text alone.
        what = blame(part.plugin, self._hook, error)
        return TrainingError(f"{what}; {part.switch}" if part.switch else what)


def _picked(part: Part, given: Mapping[str, Any]) -> list[Any]:
    return [given[name] for name in part.arguments]


def _finish(wrapper: Any, result: Any, problem: BaseException | None) -> Any:
    try:
        if problem is None:
            wrapper.send(result)
        else:
            wrapper.throw(problem)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("a hook wrapper must yield exactly once")
