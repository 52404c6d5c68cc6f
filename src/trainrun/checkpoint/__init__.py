"""Checkpoints as files: written so that they are not lost, checked before they are trusted. Free of torch."""

from __future__ import annotations

from trainrun.checkpoint.choose import Choice, choose, named, set_aside
from trainrun.checkpoint.commit import begin, clear, digest, discard, publish, sync
from trainrun.checkpoint.finite import problems
from trainrun.checkpoint.layout import (
    MANIFEST,
    PLUGINS,
    STATE,
    TRAINING,
    folder_name,
    plugin_file,
    rank_file,
    step_of,
)
from trainrun.checkpoint.manifest import FileRecord, Manifest, read_manifest
from trainrun.checkpoint.retention import linked, prune
from trainrun.checkpoint.scan import Found, put_aside, scan
from trainrun.checkpoint.trust import distrust
from trainrun.checkpoint.verify import verify
from trainrun.errors import BadCheckpoint

__all__ = [
    "MANIFEST",
    "PLUGINS",
    "STATE",
    "TRAINING",
    "BadCheckpoint",
    "Choice",
    "FileRecord",
    "Found",
    "Manifest",
    "begin",
    "choose",
    "clear",
    "digest",
    "discard",
    "distrust",
    "folder_name",
    "linked",
    "named",
    "plugin_file",
    "problems",
    "prune",
    "publish",
    "put_aside",
    "rank_file",
    "read_manifest",
    "scan",
    "set_aside",
    "step_of",
    "sync",
    "verify",
]
