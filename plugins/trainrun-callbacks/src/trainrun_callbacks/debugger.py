"""Let a debugger in."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

from trainrun import EnvironmentProblem, Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from trainrun import Launch, Recipe, Run

_HOST = "127.0.0.1"


class DebuggerOptions(PluginOptions):
    """Where to listen, and whether to wait."""

    port: int = Field(5678, ge=1024, le=65000, description="Port of local rank 0; local rank N listens on port + N.")
    ranks: list[int] | None = Field(None, min_length=1, description="Ranks that listen; by default, all.")
    wait: bool = Field(False, description="Wait until a debugger is attached to each of these ranks.")


class Debugger:
    """Listen for a debugger (debugpy) on 127.0.0.1, with one port per worker.

    The launching process and each worker print the address. From another machine, forward the port (`ssh -L`). A
    worker at a breakpoint does not advance, so set `launch.timeout = 0`.
    Needs debugpy (`trainrun-callbacks[debug]`).
    """

    Options = DebuggerOptions

    def __init__(self, options: DebuggerOptions) -> None:
        self._options = options

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> list[str]:
        problems = []
        if not importlib.util.find_spec("debugpy"):
            problems.append("debugpy is not installed; run: pip install 'trainrun-callbacks[debug]'")
        if self._options.wait and recipe.launch.timeout:
            problems.append(
                f"wait = true, but launch.timeout = {recipe.launch.timeout:g} s ends a run that waits for a debugger;"
                " set launch.timeout = 0"
            )
        return problems

    @hookimpl
    def on_attempt_start(self, launch: Launch) -> None:
        if not launch.quiet:
            for local, rank in enumerate(launch.ranks):
                if self._is_chosen(rank):
                    sys.stderr.write(f"{_told(rank, self._options.port + local)}\n")

    @hookimpl
    def on_worker_start(self, run: Run) -> None:
        if not self._is_chosen(run.world.rank):
            return
        import debugpy  # noqa: PLC0415, T100 - needs the extra

        port = self._options.port + run.world.local_rank
        try:
            debugpy.listen((_HOST, port))  # noqa: T100 - what this plugin is for
        except (OSError, RuntimeError) as error:
            raise EnvironmentProblem(
                f"debugger: rank {run.world.rank} cannot listen on {_HOST}:{port} ({error}); set another port"
            ) from error
        print(_told(run.world.rank, port), flush=True)  # noqa: T201 - for who looks at the worker's own output
        run.logger.info("listening for a debugger", host=_HOST, port=port, wait=self._options.wait)
        if self._options.wait:
            debugpy.wait_for_client()  # noqa: T100

    def _is_chosen(self, rank: int) -> bool:
        return self._options.ranks is None or rank in self._options.ranks


def _told(rank: int, port: int) -> str:
    return f"rank {rank}: connect a debugger to {_HOST}:{port} (debugpy, attach)"
