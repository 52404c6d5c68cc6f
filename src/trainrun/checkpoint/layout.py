"""The names inside `RUN/checkpoints`, and inside one checkpoint.

step-000300/                 published: complete, durable, never changed afterwards
  manifest.json              written last: what the checkpoint holds, with the size and SHA-256 of every file
  state/                     model and optimizer, by torch.distributed.checkpoint
  training.pt                step, epoch, position in the data, and the plain state of optimizer, scheduler and scaler
  rank-0.pt …                what each rank has of its own: random numbers, its loader, its metrics
  plugins/NAME.pt            a plugin's state; NAME@3.pt if that of rank 3 differs
.tmp-000300-2-1f3a9c0d       being written or being removed: step, attempt, nonce
bad-step-000200              found damaged; never removed by us
superseded-step-000250       newer than the one that a person chose to resume from; never removed by us
"""

from __future__ import annotations

import re

MANIFEST = "manifest.json"
STATE = "state"
TRAINING = "training.pt"
PLUGINS = "plugins"
BAD = "bad"
SUPERSEDED = "superseded"

_STEP = re.compile(r"step-([0-9]{6,18})")
_PLUGIN = re.compile(r"([^@]+)(?:@([0-9]{1,9}))?\.pt")
_TEMPORARY = re.compile(r"\.tmp-[0-9]{6,18}-[0-9]+-[0-9a-f]+")


def folder_name(step: int) -> str:
    """Return the name of the published checkpoint of `step`."""
    return f"step-{step:06}"


def step_of(name: str) -> int | None:
    """Return the step of a published checkpoint by its folder's name.

    None for every other name.
    """
    found = _STEP.fullmatch(name)
    step = int(found[1]) if found else None
    return step if step is not None and folder_name(step) == name else None


def temporary_name(step: int, attempt: int, nonce: str) -> str:
    """Return the name of a folder that is not, or no longer, a checkpoint."""
    return f".tmp-{step:06}-{attempt}-{nonce}"


def is_temporary(name: str) -> bool:
    """Return whether `temporary_name` made this name."""
    return _TEMPORARY.fullmatch(name) is not None


def aside_name(kind: str, name: str, number: int = 1) -> str:
    """Return the name of a checkpoint that was put aside.

    kind: `BAD` or `SUPERSEDED`. number: of several with one name.
    """
    return f"{kind}-{name}" if number == 1 else f"{kind}-{name}-{number}"


def is_aside(name: str, *kinds: str) -> bool:
    """Return whether this names a checkpoint that was put aside.

    kinds: only as one of these.
    """
    return name.startswith(tuple(f"{kind}-step-" for kind in kinds or (BAD, SUPERSEDED)))


def rank_file(rank: int) -> str:
    """Return the file of what one rank has of its own."""
    return f"rank-{rank}.pt"


def plugin_file(name: str, rank: int | None = None) -> str:
    """Return the file of a plugin's state, relative to the checkpoint.

    rank: whose it is, if it differs from rank 0's.
    """
    return f"{PLUGINS}/{name}.pt" if rank is None else f"{PLUGINS}/{name}@{rank}.pt"


def plugin_of(file: str) -> tuple[str, int | None] | None:
    """Return the plugin of a file, and the rank if it is one's own.

    The file is in the folder of plugins; None for every other name.
    """
    found = _PLUGIN.fullmatch(file)
    return None if found is None else (found[1], None if found[2] is None else int(found[2]))
