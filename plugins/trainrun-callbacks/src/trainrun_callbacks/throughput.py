"""Log how fast training goes: samples, tokens, steps, and the share of what the devices could compute."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from trainrun import Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from trainrun import Recipe, Run
    from trainrun_callbacks.flops import FlopCounter


class ThroughputOptions(PluginOptions):
    """What to count."""

    tokens: str | None = Field(
        None,
        min_length=1,
        secret=False,
        description="Count tokens in the tensor of the batch whose name matches this shell pattern, such as"
        " `input_ids`, or `0` by position.",
    )
    count: Literal["elements", "sum"] = Field(
        "elements", description="Count the `elements` of that tensor, or take its `sum` (a mask)."
    )
    flops: bool = Field(False, description="Count the FLOPs of the first micro-batch, and log FLOPs per second.")
    flops_per_sample: float | None = Field(
        None, gt=0, description="FLOPs per sample, forward and backward; replaces the count."
    )
    peak_flops: float | None = Field(
        None, gt=0, description="Peak FLOPs per second of one device; known for common GPUs."
    )


class Throughput:
    """Log `throughput/samples`, `throughput/tokens` and `throughput/steps`: per second, over all ranks.

    Time in evaluations and waiting for checkpoints does not count. With `flops`, also log `throughput/flops`, the FLOPs
    per second over all ranks, and `throughput/mfu`, their share of the peak of the devices.
    """

    Options = ThroughputOptions
    on_error = "disable"

    def __init__(self, options: ThroughputOptions, clock: Callable[[], float] = perf_counter) -> None:
        self._options = options
        self._clock = clock
        self._began: float | None = None  # of the window, less what does not count
        self._paused: float | None = None
        self._samples = self._steps = 0
        self._tokens: Tensor | int = 0
        self._counter: FlopCounter | None = None
        self._per_sample = options.flops_per_sample
        self._peak = options.peak_flops
        self._size = 1  # of the micro-batch that is counted
        self._chosen: Callable[[Any, str], Tensor]
        self._samples_of: Callable[[Any], int]

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> str | None:
        counts = self._options.flops and self._options.flops_per_sample is None
        if counts and recipe.train.compile:
            return "flops = true cannot count within compiled code (train.compile); set flops_per_sample"
        return None

    @hookimpl
    def on_train_start(self, run: Run) -> None:
        from trainrun_callbacks.batches import chosen, samples  # noqa: PLC0415 - the client must stay free of torch

        self._chosen, self._samples_of = chosen, samples
        if not (self._options.flops or self._per_sample):
            return
        from trainrun_callbacks.flops import FlopCounter, peak  # noqa: PLC0415 - and this takes a while to import

        if self._per_sample is None and run.world.rank == 0:
            self._counter = FlopCounter()
        if self._peak is None:
            self._peak = peak(run.device, run.recipe.train.precision)
        if run.world.rank == 0 and self._per_sample is not None:
            self._explain(run, "flops_per_sample of the recipe")

    @hookimpl
    def on_step_start(self, run: Run) -> None:
        self._resume()
        if self._began is None and run.device.type != "cuda":
            self._begin(run, run.step - 1)

    @hookimpl
    def on_microbatch_start(self, batch: Any, size: int) -> None:
        if self._options.tokens is not None and size:  # 0 is padding, which does not count
            self._tokens = self._tokens + self._tokens_of(batch)
        if self._counter is not None:
            self._size = self._samples_of(batch)
            self._counter.start()

    @hookimpl
    def on_backward_end(self, run: Run) -> None:
        if self._counter is not None and self._counter.counting:
            self._per_sample = self._counter.stop() / self._size
            self._counter = None
            self._explain(run, f"counted in the first micro-batch of rank 0, of {self._size} samples")

    @hookimpl
    def on_update_end(self, run: Run) -> None:
        if not run.logs_now:
            return
        # The host runs ahead of a GPU, but by as much at the end of a window as at its beginning; but for the first.
        if self._began is not None:
            self._log(run, self._clock() - self._began)
        self._begin(run, run.step)

    @hookimpl
    def on_evaluation_start(self) -> None:
        self._pause()

    @hookimpl
    def on_checkpoint_start(self) -> None:
        self._pause()

    @hookimpl
    def on_exception(self) -> None:
        if self._counter is not None and self._counter.counting:
            self._counter.stop()

    def _begin(self, run: Run, steps: int) -> None:
        """Begin a new window, after `steps` steps."""
        self._began, self._samples, self._steps, self._tokens = self._clock(), run.samples_seen, steps, 0

    def _pause(self) -> None:
        if self._paused is None:
            self._paused = self._clock()

    def _resume(self) -> None:
        if self._paused is not None and self._began is not None:
            self._began += self._clock() - self._paused
        self._paused = None

    def _log(self, run: Run, seconds: float) -> None:
        if self._options.tokens is not None:
            run.log("throughput/tokens", self._tokens / seconds, reduce="sum")
        if run.world.rank != 0:
            return
        rate = (run.samples_seen - self._samples) / seconds
        run.log("throughput/samples", rate, reduce="zero")
        run.log("throughput/steps", (run.step - self._steps) / seconds, reduce="zero")
        if self._per_sample is not None:
            run.log("throughput/flops", rate * self._per_sample, reduce="zero")
        if self._per_sample is not None and self._peak is not None:
            run.log("throughput/mfu", rate * self._per_sample / (self._peak * run.world.size), reduce="zero")

    def _tokens_of(self, batch: Any) -> Tensor | int:
        tensor = self._chosen(batch, self._options.tokens or "*")
        return tensor.numel() if self._options.count == "elements" else tensor.detach().sum()

    def _explain(self, run: Run, how: str) -> None:
        peak = "unknown; set peak_flops for throughput/mfu" if self._peak is None else f"{self._peak:.4g} a device"
        run.logger.info("model FLOPs", per_sample=self._per_sample, how=how, peak=peak)
