"""Log what the machine is doing: processors, memory, disk, network and GPUs."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal

from trainrun import Field, PluginOptions, hookimpl
from trainrun_callbacks.sampling import Ticker

if TYPE_CHECKING:
    from trainrun import Recipe, Run


class SystemMonitorOptions(PluginOptions):
    """How often to look, and at what."""

    seconds: float = Field(10.0, ge=0.1, description="Seconds between two samples.")
    gpus: bool | Literal["auto"] = Field(
        "auto", description='Also monitor GPUs; "auto" does so if nvidia-ml-py is installed and there is a GPU.'
    )


class SystemMonitor:
    """Log `system/…` of each machine: CPU, memory, disk, network, and GPUs.

    `cpu_percent`, `memory_percent`, `memory_gib`, `process_gib` (of the worker), `disk_percent` and `disk_free_gib`
    (of the run directory), `sent_mib_per_second` and `received_mib_per_second`, and for each GPU `gpuN/percent`,
    `gpuN/memory_percent`, `gpuN/celsius` and `gpuN/watts`, with N as NVML and nvidia-smi count, regardless of
    CUDA_VISIBLE_DEVICES. Machines other than the first are `system/nodeN/…`. A thread takes the samples, and each log
    has the last one.
    Needs psutil (`trainrun-callbacks[system]`), and nvidia-ml-py for GPUs (`trainrun-callbacks[nvidia]`).
    """

    Options = SystemMonitorOptions
    on_error = "disable"

    def __init__(self, options: SystemMonitorOptions) -> None:
        self._options = options
        self._ticker: Ticker | None = None
        self._latest: dict[str, float] = {}

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> list[str]:
        del recipe
        missing = [] if importlib.util.find_spec("psutil") else [("psutil", "system")]
        if self._options.gpus is True and not importlib.util.find_spec("pynvml"):
            missing.append(("nvidia-ml-py", "nvidia"))
        return [f"{name} is not installed; run: pip install 'trainrun-callbacks[{extra}]'" for name, extra in missing]

    @hookimpl(ranks="local_zero")
    def on_train_start(self, run: Run) -> None:
        from trainrun_callbacks.system_probe import Probe  # noqa: PLC0415 - needs the extra

        probe = Probe(run.paths.root, self._options.gpus)

        def sample() -> None:
            self._latest = probe.sample()

        self._ticker = Ticker("system-monitor", self._options.seconds, sample)
        self._ticker.start()

    @hookimpl(ranks="local_zero")
    def on_update_end(self, run: Run) -> None:
        if self._ticker is None or not run.logs_now:
            return
        self._ticker.raise_error()
        node = run.world.node_rank
        prefix = f"system/node{node}" if node else "system"
        for name, value in self._latest.items():
            run.log(f"{prefix}/{name}", value, reduce="last" if node else "zero")

    @hookimpl(ranks="local_zero")
    def on_worker_end(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
