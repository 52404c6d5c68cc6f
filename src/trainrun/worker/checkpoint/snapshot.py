"""One moment of a training, copied: all that a checkpoint will hold of this rank."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trainrun.plugin import state as plugin_state
from trainrun.worker.checkpoint import capture, rng, sharded_state, shards
from trainrun.worker.checkpoint.finite import Claims
from trainrun.worker.checkpoint.shards import Shard
from trainrun.worker.checkpoint.staging import Staging

if TYPE_CHECKING:
    from trainrun.worker.session import Session


@dataclass(frozen=True)
class Snapshot:
    """The copies are the staging's: they are good until the next snapshot is taken.

    `training` is the same on all ranks, `own` is this rank's alone, `plugins` is by instance name. `missing` says
    which plugins could not give their state, and why. `claims` says what must be finite.
    """

    step: int
    epoch: int
    samples_seen: int
    reason: str
    shards: Sequence[Shard]
    training: Mapping[str, Any]
    own: Mapping[str, Any]
    plugins: Mapping[str, Any]
    missing: Mapping[str, str]
    disabled: tuple[str, ...]
    metrics: Mapping[str, float]
    claims: Claims


def take(session: Session, staging: Staging, reason: str) -> Snapshot:
    """Copy the state of a training between two steps.

    Raises TrainingError for what no checkpoint can hold.
    """
    state = session.state
    staging.begin()
    collected, missing = plugin_state.collect_each(session.hooks.members, torch.is_tensor)
    plugins, sharded = sharded_state.take_out({**session.carried, **collected})
    tensors = capture.tensors(session.model, session.optimizer)
    training = capture.values(state) | {"place": session.place(), "disabled": list(session.hooks.disabled)}
    own = {
        "rng": rng.state(state.device),
        "loader": session.train.state_dict(),
        "metrics": state.metrics.state_dict(),
    }
    taken = Snapshot(
        step=state.step,
        epoch=state.epoch,
        samples_seen=state.samples_seen,
        reason=reason,
        shards=shards.stage({**tensors, **sharded}, state.world.rank, staging),
        training=staging.copy_all("training", training),
        own=staging.copy_all("own", own),
        plugins={name: staging.copy_all(("plugin", name), one) for name, one in plugins.items()},
        missing=missing,
        disabled=session.hooks.disabled,
        metrics=dict(session.last_metrics),
        claims=_claims(session, tensors, staging),
    )
    staging.finish()
    return taken


def _claims(session: Session, tensors: Mapping[str, torch.Tensor], staging: Staging) -> Claims:
    weights = {name.removeprefix(capture.MODEL): one.shape for name, one in tensors.items() if _is_of_model(name)}
    loss, weight = staging.copy_all("losses", session.saving.losses.take())
    return Claims((loss, weight), weights, session.state.exempt)


def _is_of_model(name: str) -> bool:
    return name.startswith(capture.MODEL)


def pack(value: Any) -> bytes:
    """Return plain values and tensors as the contents of a file."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def hashed(data: bytes) -> str:
    """Return a name for the contents."""
    return hashlib.sha256(data).hexdigest()
