"""The plugins that are on without being named, through the same decorator as all others."""

from __future__ import annotations

# Name in recipes, and target. In plan order: what only reports comes after what builds.
BUILTINS: tuple[tuple[str, str], ...] = (
    ("local", "trainrun.launch.local:Local"),
    ("providers", "trainrun.worker.build:Defaults"),
    ("journal", "trainrun.builtin.journal:Journal"),
    ("metrics", "trainrun.builtin.metrics:Metrics"),
    ("progress", "trainrun.builtin.progress:Progress"),
)

SMOKE_CHECK = "trainrun.builtin.smoke:SmokeCheck"
"""What `trainrun smoke` adds to them."""
