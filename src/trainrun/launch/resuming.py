"""The start of an attempt: the client chooses the checkpoint, says so, and leaves it to the workers in `start.json`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainrun.checkpoint import choose, clear, distrust, named, read_manifest, set_aside
from trainrun.errors import BadCheckpoint
from trainrun.launch.committed import short
from trainrun.launch.differences import Differences, compare, present
from trainrun.launch.handle import Launch
from trainrun.launch.manifest import versions
from trainrun.launch.terminal import Say
from trainrun.plugin.resolve import Resolved
from trainrun.rundir.files import append_line, write_json
from trainrun.rundir.paths import RunPaths


def prepare_start(launch: Launch, say: Say) -> None:
    """Choose the start of the attempt and report it.

    The start is written down for the workers. Raises BadCheckpoint if there are checkpoints and none is good. Raises
    UsageError if what would be trained is not what was trained.
    """
    paths, wish = launch.paths, launch.going_on
    clear(paths.checkpoints)
    checkpoint, reason = _choose(launch, say)
    if checkpoint is not None and not _is_of(launch, checkpoint):
        tell_of_trust(paths, checkpoint, say, trust=wish.trust)
    found = differences(launch, checkpoint)
    if checkpoint is not None:
        found.require(checkpoint, allow=wish.allow_changes)
    paths.attempt(launch.attempt).mkdir(mode=0o700, parents=True, exist_ok=True)
    start = {"checkpoint": None if checkpoint is None else str(checkpoint), "reason": reason}
    changes = found.to_json()
    write_json(
        paths.start(launch.attempt),
        {**start, "allow_changes": wish.allow_changes, "trust": wish.trust, "differences": changes},
    )
    if checkpoint is not None:
        _tell(launch, checkpoint, changes, say)
        for note in found.notes():
            say(f"note: {note}")
    elif launch.attempt > 1:
        say(f"starting at step 0: {reason}")


def pick(paths: RunPaths, say: Say) -> Path | None:
    """Return the run's newest good checkpoint; None if it has none.

    Bad ones are put aside, and that is reported.
    """
    choice = choose(paths.checkpoints)
    for path, reasons in choice.rejected:
        say(f"warning: a checkpoint is not good and is skipped; it is kept as {short(paths, path)}: {reasons[0]}")
        _event(paths, "quarantine", checkpoint=str(path), reasons=reasons)
    return choice.path


def put_aside(paths: RunPaths, newer_than: int, say: Say) -> None:
    """Rename the run's checkpoints of later steps, and report it.

    No attempt can resume from them then.
    """
    for path in set_aside(paths.checkpoints, newer_than):
        say(f"note: a newer checkpoint is moved aside as {short(paths, path)}")
        _event(paths, "set_aside", checkpoint=str(path))


def require_trust(checkpoint: Path, *, trust: bool) -> list[str]:
    """Return why another user may have written the checkpoint.

    Raises BadCheckpoint if there is a reason and no `trust`.
    """
    reasons = distrust(checkpoint)
    if reasons and not trust:
        raise BadCheckpoint(
            f"{checkpoint}: another user may have written it: {'; '.join(reasons[:5])}; "
            "if you trust that user: --trust-checkpoint"
        )
    return reasons


def tell_of_trust(paths: RunPaths, checkpoint: Path, say: Say, *, trust: bool) -> None:
    """Call `require_trust`; report what is trusted all the same."""
    reasons = require_trust(checkpoint, trust=trust)
    if reasons:
        say(f"warning: {checkpoint} is trusted, though another user may have written it: {'; '.join(reasons[:5])}")
        _event(paths, "trusted", checkpoint=str(checkpoint), reasons=reasons)


def differences(launch: Launch, checkpoint: Path | None) -> Differences:
    """Return what changed since the checkpoint was written.

    Nothing can have changed if this very launch wrote it.
    """
    if checkpoint is None or _is_of(launch, checkpoint):
        return Differences()
    return compare(
        read_manifest(checkpoint), present(launch.resolved, versions(), launch.workers * launch.recipe.launch.nodes)
    )


def require_same(resolved: Resolved, world: int, checkpoint: Path, *, allow: bool) -> None:
    """Raise UsageError if the training differs from that of the checkpoint.

    allow: only for changes that cannot be made.
    """
    compare(read_manifest(checkpoint), present(resolved, versions(), world)).require(checkpoint, allow=allow)


def named_start(resume: str) -> Path | None:
    """Return the checkpoint that the recipe's `checkpoint.resume` names, if any.

    Raises BadCheckpoint.
    """
    return None if resume in {"auto", "never"} else named(Path(os.path.expanduser(resume)))  # noqa: PTH111


def _is_of(launch: Launch, checkpoint: Path) -> bool:
    """Return whether an attempt of this launch has written the checkpoint."""
    manifest = read_manifest(checkpoint)
    own = checkpoint.parent == launch.paths.checkpoints and manifest.run == launch.run_id
    return own and manifest.attempt >= launch.going_on.since


def _choose(launch: Launch, say: Say) -> tuple[Path | None, str]:
    paths, wish = launch.paths, launch.going_on
    first = launch.attempt == wish.since
    if first and wish.first is not None:
        return wish.first, wish.reason
    if launch.recipe.checkpoint.resume == "never" and not wish.named:
        put_aside(paths, -1, say)
        return None, 'checkpoint.resume is "never"'
    newest = pick(paths, say)
    if newest is not None:
        return newest, "the newest good checkpoint of this run"
    if wish.fallback is not None:
        return named(wish.fallback), "this run has no checkpoint of its own yet"
    return None, "there is no checkpoint yet"


def _tell(launch: Launch, checkpoint: Path, changes: Mapping[str, Any], say: Say) -> None:
    step = read_manifest(checkpoint).step
    say(f"resuming from step {step} ({short(launch.paths, checkpoint)})")
    _event(
        launch.paths,
        "resume",
        attempt=launch.attempt,
        step=step,
        checkpoint=str(checkpoint),
        differences=dict(changes),
    )


def _event(paths: RunPaths, event: str, **values: object) -> None:
    append_line(paths.events, {"event": event, "time": time.time(), **values})
