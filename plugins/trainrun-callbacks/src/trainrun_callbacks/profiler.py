"""Record what a few steps do, operation by operation, with torch's profiler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import profiler as torch_profiler

from trainrun import Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from trainrun import Run

_ASKED = "profiler/asked"


class ProfilerOptions(PluginOptions):
    """When to record, and what."""

    wait: int = Field(5, ge=0, description="Number of steps to skip before each recording.")
    warmup: int = Field(2, ge=0, description="Number of steps to profile without recording.")
    active: int = Field(3, ge=1, description="Number of steps to record.")
    repeat: int = Field(1, ge=1, description="Number of recordings.")
    on_demand: bool = Field(
        False,
        description="Record only on request: if the run directory has a file `profile` at a logged step. The file is"
        " removed, and all ranks start with the next step.",
    )
    ranks: list[int] | None = Field(None, min_length=1, description="Ranks that record; by default, all.")
    record_shapes: bool = Field(False, description="Record the shapes of operands.")
    profile_memory: bool = Field(False, description="Record allocations and frees.")
    with_stack: bool = Field(False, description="Record the source line of each operation.")
    with_flops: bool = Field(False, description="Record estimates of floating-point operations.")


class Profiler:
    """Write Chrome traces to `profiles/rank-N-step-S.json.gz` in the run directory; S is the last step in them.

    Open them in Perfetto (ui.perfetto.dev) or chrome://tracing. Steps take longer only while it records. If training
    fails on a GPU during a recording, that trace is lost.
    """

    Options = ProfilerOptions
    on_error = "disable"

    def __init__(self, options: ProfilerOptions) -> None:
        self._options = options
        self._profile: Any = None
        self._left = 0  # steps until this recording is over
        self._repeat = options.repeat  # recordings that are to be made

    @hookimpl
    def on_train_start(self, run: Run) -> None:
        if not self._options.on_demand:
            self._begin(run, self._options.wait)

    @hookimpl
    def on_update_end(self, run: Run) -> None:
        # A file that one rank sees and another does not yet: the log informs all of them at the same step.
        if self._options.on_demand and self._profile is None and run.logs_now and _request(run).exists():
            run.log(_ASKED, 1.0, reduce="max")

    @hookimpl(ranks="all")
    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        if _ASKED in metrics and self._profile is None:
            if run.world.rank == 0:
                _request(run).unlink(missing_ok=True)
            self._repeat = 1
            self._begin(run, wait=1)  # for what is left of the step that is logged

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        if self._profile is None:
            return
        self._profile.step()
        self._left -= 1
        if self._left == 0:
            self._end()
            if self._repeat:
                self._begin(run, self._options.wait)

    @hookimpl
    def on_train_end(self) -> None:
        self._end()

    @hookimpl
    def on_exception(self, run: Run) -> None:
        if self._profile is None:
            return
        if run.device.type != "cuda":
            self._end()
            return
        # To end the recording would wait for the GPU, which may be what hangs.
        run.logger.warning("the trace of these steps is lost: training failed", step=run.step)

    def _begin(self, run: Run, wait: int) -> None:
        options = self._options
        if options.ranks is not None and run.world.rank not in options.ranks:
            return
        schedule = torch_profiler.schedule(wait=wait, warmup=options.warmup, active=options.active, repeat=1)
        self._profile = torch_profiler.profile(
            schedule=schedule,
            on_trace_ready=lambda profile: _export(run, profile),
            record_shapes=options.record_shapes,
            profile_memory=options.profile_memory,
            with_stack=options.with_stack,
            with_flops=options.with_flops,
        )
        self._repeat -= 1
        self._left = wait + options.warmup + options.active
        self._profile.start()

    def _end(self) -> None:
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()


def _request(run: Run) -> Path:
    return run.paths.root / "profile"


def _export(run: Run, profile: Any) -> None:
    folder = run.paths.root / "profiles"
    folder.mkdir(exist_ok=True)
    path = folder / f"rank-{run.world.rank}-step-{run.step}.json.gz"
    profile.export_chrome_trace(str(path))
    run.logger.info("profile written", path=str(path.relative_to(run.paths.root)), step=run.step)
