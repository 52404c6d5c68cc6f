"""Which of trainrun's own distributions has which plugin, for saying what to install."""

from __future__ import annotations

_PLUGINS: dict[str, tuple[str, ...]] = {
    "trainrun-callbacks": (
        "activations",
        "batch-schedule",
        "best-checkpoint",
        "debug-mode",
        "debugger",
        "device-memory",
        "early-stopping",
        "ema",
        "environment",
        "epoch-progress",
        "epoch-timer",
        "evaluation-timer",
        "exception-checkpoint",
        "finite-check",
        "git-info",
        "gradient-skipping",
        "heartbeat",
        "last-checkpoint",
        "latest-link",
        "learning-rate-monitor",
        "memory-snapshot",
        "metric-check",
        "metrics-table",
        "norms",
        "parameter-check",
        "phase-timer",
        "plateau-check",
        "predictions",
        "profiler",
        "result",
        "run-time",
        "shared-gradients",
        "spike-guard",
        "system-monitor",
        "tensor-statistics",
        "throughput",
        "weight-averaging",
    ),
    "trainrun-huggingface": ("huggingface",),
    "trainrun-mlflow": ("mlflow",),
    "trainrun-tensorboard": ("tensorboard",),
    "trainrun-wandb": (
        "wandb",
        "wandb-watch",
    ),
}

OWNERS: dict[str, str] = {plugin: distribution for distribution, plugins in _PLUGINS.items() for plugin in plugins}
"""Plugin name to distribution."""


def advice(plugin: str) -> str:
    """Return how to install a plugin that is not installed."""
    if plugin in OWNERS:
        return f"pip install {OWNERS[plugin]}"
    return "pip install the package that provides it; trainrun plugins lists what is installed"
