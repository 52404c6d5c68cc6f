"""What `trainrun launch --trace` adds to a run: a line for each call of a hookimpl in the first steps.

It stands around the hookimpls of others, as injected faults do, so that the order of its lines is the order of calls.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trainrun import Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from trainrun.launch.handle import Launch
    from trainrun.worker.run import Run

ALL = "all"

_IN_CLIENT = 20  # calls of one hookimpl that are traced: the client makes no steps, and some hooks come each second
_ITEMS = 4  # of a list or mapping whose types are shown
_DEEPEST = 2


class Trace:
    """Write order, argument types and time of hookimpls into the logs folder, for the first steps."""

    class Options(PluginOptions):
        """What the recipe may set in the plugin's table."""

        hooks: list[str] = Field([ALL], description="Hooks to trace, or `all`.")
        steps: int = Field(2, ge=1, description="Number of steps to trace from the start of an attempt.")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._file: Path | None = None
        self._held: list[str] = []
        self._last: int | None = None  # the last step that is traced, once training has begun
        self._calls: Counter[tuple[str, str]] = Counter()

    @hookimpl
    def on_package_start(self, launch: Launch) -> None:
        self._open(launch.paths.trace("client"))

    @hookimpl
    def on_train_start(self, run: Run) -> None:
        self._last = run.step + self._options.steps

    def intercept_hookimpl(
        self, plugin: str, hook: str, function: Callable[..., Any], run: Run | None
    ) -> Callable[..., Any]:
        """Wrap a hookimpl. `run` is None in the client."""
        own = getattr(function, "__self__", None) is self
        if own or not {hook, ALL} & set(self._options.hooks):
            return function
        if inspect.isgeneratorfunction(function):
            return self._around_wrapper((plugin, hook), function, run)
        names = tuple(inspect.signature(function).parameters)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            if not self._is_on((plugin, hook), run):
                return function(*arguments)
            began, result = perf_counter(), "nothing"
            try:
                returned = function(*arguments)
                result = f"-> {shape(returned)}"
            except BaseException as error:
                result = f"raised {type(error).__name__}"
                raise
            finally:
                self._write((plugin, hook), run, perf_counter() - began, f"({_shown(names, arguments)}) {result}")
            return returned

        return call

    def _around_wrapper(
        self, who: tuple[str, str], function: Callable[..., Any], run: Run | None
    ) -> Callable[..., Any]:
        names = tuple(inspect.signature(function).parameters)

        @functools.wraps(function)
        def call(*arguments: Any) -> Generator[Any, Any, Any]:
            if not self._is_on(who, run):
                return (yield from function(*arguments))
            began = perf_counter()
            self._write(who, run, 0.0, f"({_shown(names, arguments)}) wrapper begins")
            result = "wrapper ends, raised"
            try:
                returned = yield from function(*arguments)
                result = f"wrapper ends -> {shape(returned)}"
            finally:
                self._write(who, run, perf_counter() - began, f"{result}, with all that it wraps")
            return returned

        return call

    def _is_on(self, who: tuple[str, str], run: Run | None) -> bool:
        if run is None:
            self._calls[who] += 1
            return self._calls[who] <= _IN_CLIENT
        return self._last is None or run.step <= self._last

    def _open(self, path: Path) -> None:
        with self._lock:
            self._file, held = path, self._held
            self._held = []
        self._append("".join(held))

    def _write(self, who: tuple[str, str], run: Run | None, seconds: float, text: str) -> None:
        plugin, hook = who
        step = "" if run is None else f"step {run.step}  "
        line = f"{step}{hook}  {plugin}  {1000 * seconds:.3f} ms  {text}\n"
        if run is not None and self._file is None:
            self._open(run.paths.trace(f"rank-{run.world.rank}"))
        if self._file is None:  # in the client, before there is a run directory
            self._held.append(line)
        else:
            self._append(line)

    def _append(self, text: str) -> None:
        if self._file is not None:
            with self._lock, self._file.open("a", encoding="utf-8") as file:
                file.write(text)


def _shown(names: tuple[str, ...], arguments: tuple[Any, ...]) -> str:
    return ", ".join(f"{name}: {shape(value)}" for name, value in zip(names, arguments, strict=True))


def shape(value: Any, depth: int = 0) -> str:
    """Return the type of a value; of a tensor, shape and dtype.

    Never what it holds.
    """
    kind = type(value).__name__
    if value is None:
        return "None"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{kind}[{str(value.dtype).removeprefix('torch.')}, {tuple(value.shape)}]"
    if not isinstance(value, Mapping | list | tuple):
        return kind
    if depth == _DEEPEST or not value:
        return f"{kind}[{len(value)}]"
    items = list(value.values() if isinstance(value, Mapping) else value)
    inner = [shape(item, depth + 1) for item in items[:_ITEMS]] + ["…"] * (len(items) > _ITEMS)
    return f"{kind}[{len(items)}]({', '.join(inner)})"
